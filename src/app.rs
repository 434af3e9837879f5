//! Puts the daemon together from its settings and runs it: stores, projections, probes, pages.
//!
//! The one place that knows every part. Keeps the order of a stop: take nothing more, finish what
//! is held, acknowledge it, close the pages last, all within the deadline of the settings.

use std::{
    future::Future,
    io::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock,
    config::{ConfigError, Planned, Settings},
    health::Health,
    http::{
        self, ListenError,
        report::{About, PageSource, WatchedProjection},
    },
    journal::esdb::{EventStore, SettingsError},
    metrics::{Backend, Metrics, ProjectionMetrics, emf, sample_process},
    projection::Fold,
    projector::{
        engine::{self, Running},
        lane, lanes,
        meter::Meter,
        session,
    },
    query::{Erased, Queries},
    replica::{
        ReplicaStore as _, StoreError,
        dynamodb::{ConnectError, DynamoTable, Tables, connect},
        item,
    },
    store::{Policy, Store, StoreSettings},
    telemetry,
};

mod checked;
mod drain;
mod past;
mod signals;

pub use checked::Checked;
pub use signals::shutdown;

/// Room that a stop has beyond the sessions' own deadline, for closing what is open.
const CLOSING: Duration = Duration::from_secs(3);
/// How often readiness is judged without being asked.
const JUDGE_EVERY: Duration = Duration::from_millis(500);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// How EventStoreDB is reached.
    #[error(transparent)]
    EventStore(#[from] SettingsError),
    /// How DynamoDB is reached.
    #[error(transparent)]
    DynamoDb(#[from] ConnectError),
    /// The pages' address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Nothing to run.
    #[error(
        "run: there is no projection; add a [projection.NAME] table to the settings, or build a binary with your own (guide, \"Projections\")"
    )]
    NothingToRun,
}

/// Both stores, connected to as the settings say. Makes no call.
#[derive(Clone, Debug)]
pub struct Connections {
    /// The event store.
    pub journal: EventStore,
    /// The replicas' store.
    pub dynamo: aws_sdk_dynamodb::Client,
    /// Bound on one call to DynamoDB with all its attempts.
    pub operation_timeout: Duration,
}

impl Connections {
    /// Checks the settings of both and makes their clients.
    pub async fn new(settings: &Settings) -> Result<Self, RunError> {
        Ok(Self {
            journal: EventStore::new(&settings.esdb())?,
            dynamo: connect(&settings.dynamo()).await?,
            operation_timeout: settings.dynamodb.operation_timeout.0,
        })
    }

    /// A projection's table. Makes no call.
    pub fn table(&self, planned: &Planned, metrics: Option<&ProjectionMetrics>) -> DynamoTable {
        DynamoTable::new(
            self.dynamo.clone(),
            planned.table.clone(),
            planned.fold.name(),
            planned.fold.schema(),
            self.operation_timeout,
            metrics.map_or_else(|| Arc::new(()) as _, |m| Arc::new(m.clone()) as _),
        )
    }

    /// What a service beside the daemon has repositories and queries from, by the same settings:
    /// tables, promoted attributes, windows, policies. Makes no call. How commands are carried out
    /// and queries bounded is the service's own matter: [`Store::with_commands`], [`Store::with_limits`].
    pub fn store(&self, settings: &Settings, planned: &[Planned]) -> Store {
        let policies = planned.iter().map(|plan| (plan.fold.name().to_owned(), policy(plan)));
        let settings = StoreSettings {
            dynamodb: settings.dynamo(),
            table_prefix: settings.dynamodb.table_prefix.clone(),
            policies: policies.collect(),
            ..StoreSettings::new(String::new())
        };
        Store::on(self.journal.clone(), self.dynamo.clone(), settings)
    }

    /// Answers queries on a projection whose type is not known, one of the settings for example:
    /// by stream. For all others there is [`Store::queries`].
    pub fn queries(&self, planned: &Planned) -> Queries<Erased, EventStore, DynamoTable> {
        let policy = policy(planned);
        Queries::new(self.journal.clone(), self.table(planned, None), planned.fold.clone())
            .under(policy.restarts, policy.on_lost_history)
    }

    /// Tables, for making and checking them.
    pub fn tables(&self, metrics: Option<&ProjectionMetrics>) -> Tables {
        let observer = metrics.map_or_else(|| Arc::new(()) as _, |m| Arc::new(m.clone()) as _);
        Tables::new(self.dynamo.clone(), self.operation_timeout, observer)
    }
}

/// What holds for a projection beyond the daemon.
fn policy(planned: &Planned) -> Policy {
    let t = &planned.tuned;
    let rules = item_rules(planned);
    Policy {
        source: Some(planned.source.clone()),
        restarts: lane::restarts(t.on_deletion, t.on_revival),
        on_lost_history: t.on_lost_history,
        keep_commands: t.commands,
        compress_above: rules.compress_above,
        promoted: rules.promoted,
        ..Policy::default()
    }
}

/// How the states of a projection are stored.
pub fn item_rules(planned: &Planned) -> item::Rules {
    let compress_above = usize::try_from(planned.tuned.compress_above.0).unwrap_or(usize::MAX);
    item::Rules {
        compress_above,
        promoted: planned.promoted.clone(),
        ..item::Rules::new(planned.fold.name())
    }
}

/// The rules of a projection's lanes; `fold` is the plan's own, or one that stands for it.
pub fn lane_rules(planned: &Planned, fold: Arc<dyn Fold>) -> lane::LaneRules {
    let t = &planned.tuned;
    let rules = item_rules(planned);
    lane::LaneRules {
        fold,
        form: Arc::new(move |stream, header, encoded| item::prepare(encoded, &rules, stream, header)),
        on_deletion: t.on_deletion,
        on_revival: t.on_revival,
        on_lost_history: t.on_lost_history,
        read: crate::journal::ReadLimit {
            events: t.read_events,
            bytes: usize::try_from(t.read_bytes.0).unwrap_or(usize::MAX),
        },
        behind_after: t.behind_after.0,
        min_write_interval: t.min_write_interval.0,
        keep_flush: t.keep_flush.0,
        commands: t.commands,
    }
}

fn session_spec(settings: &Settings, planned: &Planned) -> session::SessionSpec {
    let t = &planned.tuned;
    session::SessionSpec {
        lanes: Arc::new(lanes::LanesSpec {
            rules: Arc::new(lane_rules(planned, planned.fold.clone())),
            memory: usize::try_from(t.memory.0).unwrap_or(usize::MAX),
            reads: t.reads,
            writes: t.writes,
            quarantine_limit: t.quarantine_limit,
        }),
        group: planned.group.clone(),
        buffer: t.buffer,
        outage_after: planned.outage_after(),
        watchdog_after: t.watchdog_after.0,
        drain: settings.engine.drain.0,
    }
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Daemon {
    /// Where the pages are.
    pub address: SocketAddr,
    /// What health is judged from.
    pub health: Health,
    /// All metrics.
    pub metrics: Metrics,
    running: Vec<Running>,
    background: JoinSet<()>,
    /// Ends the projections.
    stop: CancellationToken,
    /// Ends the rest, after the projections.
    close: CancellationToken,
    drain: Duration,
}

/// Starts the daemon: takes its address, then runs every projection. Neither store has to be there.
pub async fn start(settings: &Settings, planned: Vec<Planned>) -> Result<Daemon, RunError> {
    if planned.is_empty() {
        return Err(RunError::NothingToRun);
    }
    for doubt in settings.doubts(&planned) {
        warn!(reason = %doubt, "a setting is doubtful");
    }
    let listener = http::listen(settings.http.listen).await?;
    let address = listener.local_addr().unwrap_or(settings.http.listen);
    let connections = Connections::new(settings).await?;
    let (stop, close) = (CancellationToken::new(), CancellationToken::new());
    let metrics = Metrics::new();
    let health = Health::new(settings.http.stuck_after.0);
    let mut background = JoinSet::new();

    let mut running = Vec::new();
    let mut summaries = Vec::new();
    let mut drains = Vec::new();
    let mut watched = Vec::new();
    let probed = connections.table(&planned[0], None);
    let about = About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        eventstore: format!("{:?}", settings.eventstore.connection),
        fingerprint: planned[0].fold.fingerprint().to_owned(),
    };
    for plan in &planned {
        let counts = metrics.projection(plan.fold.name(), plan.fold.schema());
        let table = Checked::new(
            connections.table(plan, Some(&counts)),
            connections.tables(Some(&counts)),
            item_rules(plan),
            settings.creation(),
        );
        let projection = engine::Supervised {
            spec: Arc::new(session_spec(settings, plan)),
            feed: connections.journal.clone(),
            journal: connections.journal.clone(),
            table,
            table_name: plan.table.clone(),
            meter: Arc::new(counts.clone()) as Arc<dyn Meter>,
            cache_bytes: plan.tuned.cache.0,
            measure_every: settings.engine.measure_every.0,
        };
        let projection = engine::start(projection, stop.clone());
        health.watch(projection.status.clone());
        drains.push((projection.status.clone(), counts.clone()));
        watched.push(WatchedProjection {
            counts: counts.clone(),
            history: Arc::default(),
        });
        summaries.push((projection.status.clone(), counts));
        running.push(projection);
    }

    let every = settings.http.probe_every.0;
    {
        let (health, metrics, close, journal) = (
            health.clone(),
            metrics.clone(),
            close.clone(),
            connections.journal.clone(),
        );
        background.spawn(async move {
            let ask = || async { journal.ping().await.map_err(|error| error.to_string()) };
            health.probe(Backend::EventStore, every, metrics, ask, close).await;
        });
    }
    {
        let (health, metrics, close) = (health.clone(), metrics.clone(), close.clone());
        background.spawn(async move {
            let ask = || async {
                match probed.in_use().await {
                    // Refused is answered.
                    Ok(_) | Err(StoreError::Throttled { .. } | StoreError::Corrupt { .. }) => Ok(()),
                    Err(error) if error.is_setup() => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            };
            health.probe(Backend::DynamoDb, every, metrics, ask, close).await;
        });
    }
    {
        let (health, close) = (health.clone(), close.clone());
        background.spawn(async move { health.keep(JUDGE_EVERY, close).await });
    }
    background.spawn(sample_process(metrics.clone(), close.clone()));
    background.spawn(past::keep(drains.clone(), watched.clone(), close.clone()));
    background.spawn(keep_drains(drains, settings.engine.measure_every.0, close.clone()));
    if settings.log.emf.0 > Duration::ZERO {
        background.spawn(embed(
            summaries.clone(),
            health.clone(),
            settings.log.emf.0,
            close.clone(),
        ));
    }
    background.spawn(summarise(summaries, settings.log.summary_every.0, close.clone()));
    let known = PageSource {
        about,
        // As `--check-config` prints them; plain tables of texts and numbers.
        settings: serde_json::to_value(settings).unwrap_or_default(),
        watched,
    };
    {
        let (health, metrics, close) = (health.clone(), metrics.clone(), close.clone());
        background.spawn(async move {
            if let Err(error) = http::serve(listener, health, metrics, known, close).await {
                warn!(%error, "the pages for metrics and health ended");
            }
        });
    }
    info!(%address, projections = planned.len(), version = env!("CARGO_PKG_VERSION"), "started");
    Ok(Daemon {
        address,
        health,
        metrics,
        running,
        background,
        stop,
        close,
        drain: settings.engine.drain.0,
    })
}

impl Daemon {
    /// Takes nothing more, finishes what is held, acknowledges it and closes; within the deadline.
    pub async fn stop(mut self) {
        let began = Instant::now();
        info!("shutting down: draining in-flight deliveries");
        self.health.stopping();
        self.stop.cancel();
        let finished = async {
            for projection in self.running {
                projection.stopped().await;
            }
        };
        if tokio::time::timeout(self.drain + CLOSING, finished).await.is_err() {
            warn!("stopped before everything held was finished; what is left is delivered again");
        }
        self.close.cancel();
        let closed = async { while self.background.join_next().await.is_some() {} };
        // A scraper that keeps its connection open must not keep the process.
        let _ = tokio::time::timeout(CLOSING, closed).await;
        info!(seconds = began.elapsed().as_secs_f64(), "stopped");
    }
}

/// Runs the daemon until `shutdown`.
pub async fn run(
    settings: &Settings,
    planned: Vec<Planned>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let daemon = start(settings, planned).await?;
    shutdown.await;
    daemon.stop().await;
    Ok(())
}

type Summed = (
    tokio::sync::watch::Receiver<crate::projector::status::Status>,
    ProjectionMetrics,
);

/// Keeps each projection's seconds to drain, as often as lag is measured.
async fn keep_drains(projections: Vec<Summed>, every: Duration, close: CancellationToken) {
    let began = Instant::now();
    let mut drains: Vec<_> = projections.iter().map(|_| drain::Drain::default()).collect();
    loop {
        for ((status, counts), drain) in projections.iter().zip(&mut drains) {
            let totals = counts.totals();
            let seen = {
                let status = status.borrow();
                drain::Seen {
                    lag: status.lag.as_ref().map(|lag| lag.events),
                    applied: totals.applied,
                    throttled: totals.throttled,
                    consumers: status.info.as_ref().map_or(1, |info| info.consumers),
                }
            };
            counts.set_drain_seconds(drain.at(began.elapsed(), seen));
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = close.cancelled() => return,
        }
    }
}

/// One line a projection and interval on standard output, for CloudWatch.
async fn embed(projections: Vec<Summed>, health: Health, every: Duration, close: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = close.cancelled() => return,
        }
        let ready = health.unready().is_empty();
        let mut lines = String::new();
        for (status, counts) in &projections {
            let status = status.borrow();
            let figures = emf::Figures {
                lag_seconds: status.lag.as_ref().map(|lag| lag.seconds),
                drain_seconds: counts.drain_seconds(),
                ready,
                quarantined: status.quarantined.len(),
            };
            lines += &emf::line(clock::now(), &status.projection, status.schema, &figures);
            lines.push('\n');
        }
        // Whoever reads them no more must not stop the daemon.
        let written = tokio::task::spawn_blocking(move || {
            let mut out = std::io::stdout().lock();
            out.write_all(lines.as_bytes()).and_then(|()| out.flush())
        });
        if let Ok(Err(error)) = written.await {
            warn!(%error, "failed to write figures for CloudWatch");
            return;
        }
    }
}

/// One line a projection and interval, when anything happened in it or is behind.
async fn summarise(projections: Vec<Summed>, every: Duration, close: CancellationToken) {
    let mut before: Vec<_> = projections.iter().map(|(_, counts)| counts.totals()).collect();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = close.cancelled() => return,
        }
        for ((status, counts), before) in projections.iter().zip(&mut before) {
            let now = counts.totals();
            let status = status.borrow().clone();
            let lag = status.lag.as_ref();
            let behind = lag.is_some_and(|lag| lag.events > 0);
            if now != *before || behind || status.phase.reason().is_some() {
                info!(
                    projection = &*status.projection,
                    schema = status.schema,
                    phase = status.phase.word(),
                    applied = now.applied - before.applied,
                    writes = now.writes - before.writes,
                    refused = now.refused - before.refused,
                    throttled = now.throttled - before.throttled,
                    gap_events = now.gap_events - before.gap_events,
                    holding = status.holding,
                    lag_events = lag.map(|l| l.events),
                    lag_seconds = lag.map(|l| l.seconds),
                    drain_seconds = counts.drain_seconds(),
                    quarantined = status.quarantined.len(),
                    diverged = status.diverged.len(),
                    "summary"
                );
            }
            *before = now;
        }
        let kept_back = telemetry::kept_back();
        if kept_back > 0 {
            info!(kept_back, "repeated warnings were not written");
        }
    }
}
