//! Runs projections: makes sure of table and group, holds a session open, measures, reports.
//!
//! One supervised task a projection. Whatever ends a session (an outage, a clean end, a panic in
//! the client's code) is a disconnect here: back off, and make a new one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    effects::{Stores, sentence},
    host::{Host, Reader},
    lag::{self, Measured, SharedSettled},
    lanes::Halt,
    meter::{Count, Level, Meter},
    replica_cache::ReplicaCache,
    session::{End, Session, SessionReport, SessionSpec},
    status::{LagUnknown, Phase, Status},
    told,
};
use crate::{
    journal::{
        Journal, JournalError, Unplaced,
        feed::{Ensured, Feed, GroupInfo, Mark},
    },
    panics,
    replica::{MarkKind, Marked, ReplicaStore, StoreError},
};

/// First delay before connecting again: a server that only dropped the group takes it back at once.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay: "goes on by itself within seconds of the return".
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// Delay while only an operator can help.
const OPERATOR_DELAY: Duration = Duration::from_secs(10);
/// A session that lasted this long was a good one: the next delay is the first again.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// How often marks are looked up, once the first look found none of other code's.
const MARKS_EVERY: Duration = Duration::from_secs(10);
/// A mark that other code left is tried at most this often by one process.
const TRY_MARK_EVERY: Duration = Duration::from_secs(30);
/// A mark that does not wait for other code is looked at this often: a stream that may not be read, an
/// item that cannot be, a note whose mark is gone.
const LOOK_AT_MARK_EVERY: Duration = Duration::from_mins(5);
/// A question of the measuring task that takes longer than this is given up until the next round.
const QUESTION: Duration = Duration::from_secs(10);

/// After a measurement that failed, at the longest: what was unknown is known soon after it can be.
const MEASURE_AGAIN: Duration = Duration::from_secs(1);

/// One projection to run.
pub struct Supervised<F, J, S> {
    /// What its sessions need to know.
    pub spec: Arc<SessionSpec>,
    /// Groups and sources.
    pub feed: F,
    /// The event store.
    pub journal: J,
    /// Its table.
    pub table: S,
    /// Its table's name, for people.
    pub table_name: String,
    /// Takes counts.
    pub meter: Arc<dyn Meter>,
    /// Bytes of replicas kept in memory.
    pub cache_bytes: u64,
    /// How often lag is measured.
    pub measure_every: Duration,
}

/// A projection that runs.
#[derive(Debug)]
pub struct Running {
    /// How it stands.
    pub status: watch::Receiver<Status>,
    /// Has its lanes look at streams, beside its group and while there is none.
    pub reader: Reader,
    task: JoinHandle<()>,
}

impl Running {
    /// Waits until it has stopped.
    pub async fn stopped(self) {
        let projection = self.status.borrow().projection.clone();
        if let Err(error) = self.task.await
            && error.is_panic()
        {
            error!(%projection, "a projection's supervisor panicked; its group delivers again what it held");
        }
    }
}

/// Starts a projection; it runs until `stop`.
pub fn start<F: Feed, J: Journal, S: ReplicaStore>(
    projection: Supervised<F, J, S>,
    stop: CancellationToken,
) -> Running {
    let spec = &projection.spec;
    let status = Status {
        projection: spec.projection().into(),
        schema: spec.lanes.rules.fold.schema(),
        group: spec.group.name.clone(),
        source: spec.group.source.to_string(),
        table: projection.table_name.clone(),
        phase: Phase::Starting,
        group_confirmed: false,
        table_confirmed: false,
        holding: 0,
        last_progress: Instant::now(),
        lag: None,
        lag_unknown: None,
        group_moved: Instant::now(),
        info: None,
        quarantined: Vec::new(),
        diverged: Vec::new(),
        waiting: None,
        unplaced: BTreeMap::new(),
        differences: Vec::new(),
        last_error: None,
    };
    let (sender, receiver) = watch::channel(status);
    let stores = Stores::new(projection.journal, projection.table, projection.meter);
    let cache = ReplicaCache::new(projection.cache_bytes);
    let host = Host::new(spec.lanes.clone(), spec.group.name.clone(), stores, cache);
    let reader = host.reader();
    let (spec, feed, every) = (projection.spec, projection.feed, projection.measure_every);
    let task = tokio::spawn(supervise(spec, feed, host, every, Arc::new(sender), stop));
    Running {
        status: receiver,
        reader,
        task,
    }
}

type Shared = Arc<watch::Sender<Status>>;

async fn supervise<F: Feed, J: Journal, S: ReplicaStore>(
    spec: Arc<SessionSpec>,
    feed: F,
    mut host: Host<J, S>,
    measure_every: Duration,
    status: Shared,
    stop: CancellationToken,
) {
    let name = spec.projection().to_owned();
    let (table, meter) = (host.stores().table.clone(), host.stores().meter.clone());
    let shared = Reporter {
        status,
        asked: Arc::default(),
        settled: SharedSettled::default(),
        connection: 0,
    };
    let status = shared.status.clone();
    let measuring = tokio::spawn(measure(
        spec.clone(),
        feed.clone(),
        table,
        meter.clone(),
        shared.clone(),
        measure_every,
    ));
    let mut delay = FIRST_DELAY;
    let mut halted = None;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let next = match halted.take() {
            Some(next) => next,
            None => connected(&spec, &feed, &mut host, &shared, &stop).await,
        };
        meter.set(Level::SubscriptionUp, 0.0);
        if began.elapsed() >= GOOD_SESSION {
            delay = FIRST_DELAY;
        }
        let (phase, wait) = match next {
            AfterSession::Stopped => break,
            AfterSession::Again(phase) => {
                delay = (delay * 2).min(LONGEST_DELAY);
                (phase, delay.mul_f64(0.5 + fastrand::f64() / 2.0))
            }
            AfterSession::Operator(phase) => (phase, OPERATOR_DELAY),
            AfterSession::Never(phase) => {
                error!(projection = name, reason = phase.reason(), "the projection stopped");
                host.clear("The projection stopped.");
                status.send_modify(|s| s.phase = phase);
                stop.cancelled().await;
                break;
            }
        };
        match (&phase, phase.reason()) {
            // Somebody has to act; until then it is tried now and then.
            (Phase::Paused(_) | Phase::Failed(_), Some(reason)) => {
                error!(projection = name, phase = phase.word(), reason, "not connected");
            }
            (_, Some(reason)) => warn!(projection = name, phase = phase.word(), reason, "not connected"),
            (_, None) => {}
        }
        status.send_modify(|s| {
            s.last_error = phase.reason().map(str::to_owned);
            s.phase = phase;
            s.holding = 0;
        });
        halted = meanwhile(&mut host, &stop, tokio::time::sleep(wait)).await.err();
    }
    measuring.abort();
    status.send_modify(|s| s.phase = Phase::Stopped);
}

/// What follows when a connection could not be made or has ended.
enum AfterSession {
    Stopped,
    Again(Phase),
    Operator(Phase),
    Never(Phase),
}

impl AfterSession {
    fn journal(error: &JournalError) -> Self {
        let text = sentence(error);
        match error {
            JournalError::Unavailable(_)
            | JournalError::Unfinished(_)
            | JournalError::OutcomeUnknown(_)
            | JournalError::NoGroup { .. } => Self::Again(Phase::Reconnecting(text)),
            JournalError::Denied { .. } => Self::Operator(Phase::Paused(text)),
            JournalError::Refused(_) | JournalError::Tombstoned(_) | JournalError::WrongExpected { .. } => {
                Self::Operator(Phase::Failed(text))
            }
        }
    }

    fn store(error: &StoreError) -> Self {
        let text = sentence(error);
        match error {
            StoreError::Throttled { .. } | StoreError::Unavailable(_) => Self::Again(Phase::StoreAway(text)),
            StoreError::Setup { .. } | StoreError::NoTable { .. } | StoreError::Corrupt { .. } => {
                Self::Operator(Phase::Paused(text))
            }
        }
    }
}

/// Waits while lanes go on without a session, and no longer than the process is to run: a store that
/// does not answer must not keep one that is asked to stop.
async fn meanwhile<T, J: Journal, S: ReplicaStore>(
    host: &mut Host<J, S>,
    stop: &CancellationToken,
    done: impl Future<Output = T>,
) -> Result<T, AfterSession> {
    let halted = tokio::select! {
        biased;
        done = done => return Ok(done),
        () = stop.cancelled() => return Err(AfterSession::Stopped),
        halted = panics::caught(host.alone()) => halted.unwrap_or_else(Halt::Panicked),
    };
    host.clear("The projection cannot go on.");
    Err(followed(End::from(halted), host))
}

async fn connected<F: Feed, J: Journal, S: ReplicaStore>(
    spec: &Arc<SessionSpec>,
    feed: &F,
    host: &mut Host<J, S>,
    shared: &Reporter,
    stop: &CancellationToken,
) -> AfterSession {
    let status = &shared.status;
    let stores = host.stores().clone();
    let known = match meanwhile(host, stop, prepared(spec, feed, &stores, &shared.asked, status)).await {
        Ok(Ok(known)) => known,
        Ok(Err(next)) | Err(next) => return next,
    };
    if !known {
        // Another task may have been first to fill it again: what is remembered of the old one does
        // not cover what is delivered for the new.
        host.clear("The table was created again.");
    }
    let sub = match meanwhile(host, stop, feed.subscribe(&spec.group, spec.buffer)).await {
        Ok(Ok(sub)) => sub,
        Ok(Err(error)) => return AfterSession::journal(&error),
        Err(next) => return next,
    };
    let name = spec.projection();
    let schema = spec.lanes.rules.fold.schema();
    info!(projection = name, schema, group = %spec.group.name, source = %spec.group.source, "connected");
    stores.meter.set(Level::SubscriptionUp, 1.0);
    status.send_modify(|s| {
        s.phase = Phase::Running;
        s.group_confirmed = true;
        s.last_progress = Instant::now();
    });
    let report = Reporter {
        connection: shared.asked.connected(),
        ..shared.clone()
    };
    let session = Session::new(spec.clone(), sub, host, report);
    let end = match panics::caught(session.run(stop.clone())).await {
        Ok(end) => end,
        Err(how) => {
            // Whatever it was at when it panicked is not to be trusted.
            host.clear("The session panicked.");
            End::Panicked(how)
        }
    };
    // Lag is measured without a session, too.
    shared.forget_settled();
    followed(end, host)
}

/// What follows the end of a session, or of lanes that went on without one.
fn followed<J: Journal, S: ReplicaStore>(end: End, host: &Host<J, S>) -> AfterSession {
    let (name, meter) = (host.projection(), host.meter());
    if !matches!(end, End::Stopped { .. }) {
        meter.count(Count::Reconnect(end.reason()), 1);
    }
    match end {
        End::Stopped { left } => {
            info!(
                projection = name,
                holding = left,
                "stopped; what is left is delivered again"
            );
            AfterSession::Stopped
        }
        End::Panicked(how) => {
            meter.count(Count::Panic, 1);
            error!(
                projection = name,
                error = how,
                "a session panicked; its group delivers again what it held"
            );
            AfterSession::Again(Phase::Reconnecting(format!(
                "The session panicked, and its group delivers again what it held ({how})."
            )))
        }
        End::Disconnected(error) => AfterSession::journal(&error),
        End::StoreOutage(what) => AfterSession::Again(Phase::StoreAway(what)),
        End::Watchdog => AfterSession::Again(Phase::Reconnecting(
            "The source is ahead and the group delivers nothing: it is subscribed to again.".into(),
        )),
        End::Storm(what) => AfterSession::Never(Phase::Paused(what)),
        End::Operator(what) => AfterSession::Operator(Phase::Paused(what)),
        End::TableAnew => AfterSession::Again(Phase::Reconnecting(
            "The table was created again: the group starts again from the beginning.".into(),
        )),
    }
}

/// Makes sure of table and group. Whether the table is the one that was known before.
async fn prepared<F: Feed, J: Journal, S: ReplicaStore>(
    spec: &Arc<SessionSpec>,
    feed: &F,
    stores: &Stores<J, S>,
    asked: &Asked,
    status: &Shared,
) -> Result<bool, AfterSession> {
    let name = spec.projection();
    // Nothing is taken from the group while the table cannot take it.
    let in_use = match stores.table.in_use().await {
        Ok(in_use) => in_use,
        Err(error) => return Err(AfterSession::store(&error)),
    };
    stores.table_trouble.answered();
    stores.journal_trouble.answered();
    status.send_modify(|s| s.table_confirmed = true);
    match feed.ensure(&spec.group).await {
        Ok(ensured) => report_group(name, &ensured, status),
        // A user who may not manage groups may still consume one that is there.
        Err(error @ JournalError::Denied { .. }) => {
            if feed.info(&spec.group).await.is_err() {
                return Err(AfterSession::journal(&error));
            }
        }
        Err(error) => return Err(AfterSession::journal(&error)),
    }
    let table = if let Some(table) = in_use {
        table
    } else {
        refill(spec, feed)
            .await
            .map_err(|error| AfterSession::journal(&error))?;
        stores
            .table
            .set_in_use()
            .await
            .map_err(|error| AfterSession::store(&error))?
    };
    Ok(asked.is_known(table))
}

/// A table that never served, beside a group that has delivered: what was acknowledged, whether the
/// group has a checkpoint for it yet or not, is not in the table. The group starts again, and every replica is made again.
async fn refill<F: Feed>(spec: &SessionSpec, feed: &F) -> Result<(), JournalError> {
    let info = feed.info(&spec.group).await?;
    if info.checkpoint_revision.is_none() && info.checkpoint_position.is_none() && info.delivered == 0 {
        return Ok(());
    }
    warn!(
        projection = spec.projection(),
        group = %spec.group.name,
        "the table has lost what the group has delivered: the group starts again from the beginning"
    );
    feed.restart(&spec.group).await
}

fn report_group(name: &str, ensured: &Ensured, status: &Shared) {
    match ensured {
        Ensured::Created => info!(projection = name, "group created"),
        Ensured::Same => {}
        Ensured::Different(differences) => {
            let known = status.borrow().differences == *differences;
            for (setting, wanted, found) in differences.iter().filter(|_| !known) {
                warn!(
                    projection = name,
                    setting, wanted, found, "the group has another setting; `projector provision --apply` changes it"
                );
            }
        }
    }
    status.send_modify(|s| {
        s.differences = match ensured {
            Ensured::Different(differences) => differences.clone(),
            _ => Vec::new(),
        };
    });
}

/// What sessions, one after another, and the measuring task tell each other.
#[derive(Clone)]
struct Reporter {
    status: Shared,
    asked: Arc<Asked>,
    settled: SharedSettled,
    /// The number of its connection.
    connection: u64,
}

/// What the measuring task asks of sessions.
#[derive(Default)]
struct Asked {
    /// Noted streams to look at; each once, for there may be no session that takes them.
    looks: Mutex<BTreeMap<Arc<str>, Marked>>,
    /// Which table the sessions know.
    table: Mutex<Option<Arc<str>>>,
    /// Connections made so far.
    connections: AtomicU64,
    /// The connection at whose time the table was seen to be another one.
    created_again: AtomicU64,
}

impl Asked {
    /// One more connection; its number.
    fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether this is the table that is known already; it is from now on.
    fn is_known(&self, table: Arc<str>) -> bool {
        let mut known = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.as_ref().is_none_or(|known| *known == table);
        *known = Some(table);
        same
    }

    /// Tells the session of connection `at` when the table is not the one that it knows.
    fn compare(&self, at: u64, table: Option<&Arc<str>>) {
        let known = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() && known.as_ref() != table {
            self.created_again.store(at, Ordering::Release);
        }
    }

    fn looks(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, Marked>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look at each; the newest word of a stream stands.
    fn look_at(&self, marks: Vec<Marked>) {
        self.looks()
            .extend(marks.into_iter().map(|mark| (mark.stream.clone(), mark)));
    }
}

impl Reporter {
    /// Between two connections: what the server has of the last acknowledgements its checkpoint tells,
    /// and another store may come to stand behind the same name.
    fn forget_settled(&self) {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl SessionReport for Reporter {
    fn tick(&mut self, holding: usize, moved: bool) {
        self.status.send_if_modified(|s| {
            s.holding = holding;
            if moved {
                s.last_progress = Instant::now();
            }
            false
        });
    }

    fn settled(&mut self, places: Vec<Mark>) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            let (Mark::Revision(at) | Mark::Position(at)) = place;
            settled.insert(at, at);
        }
    }

    fn unplaced(&mut self, class: Unplaced) -> bool {
        let mut first = false;
        self.status.send_if_modified(|s| {
            let seen = s.unplaced.entry(class).or_default();
            *seen += 1;
            first = *seen == 1;
            first
        });
        first
    }

    fn stands_still(&self) -> Option<Duration> {
        let status = self.status.borrow();
        status.may_wait().then(|| status.group_moved.elapsed())
    }

    fn marks_to_try(&mut self) -> Vec<Marked> {
        std::mem::take(&mut *self.asked.looks()).into_values().collect()
    }

    fn table_is_anew(&self) -> bool {
        self.asked.created_again.load(Ordering::Acquire) == self.connection
    }
}

/// Measures lag and looks up marks, until it is aborted. Begins before there is a group: what is not
/// measured is unknown, never zero.
async fn measure<F: Feed, S: ReplicaStore>(
    spec: Arc<SessionSpec>,
    feed: F,
    table: S,
    meter: Arc<dyn Meter>,
    shared: Reporter,
    every: Duration,
) {
    let mut tried: HashMap<Arc<str>, Instant> = HashMap::new();
    let mut marks_at: Option<Instant> = None;
    let mut known = told::KnownMarks::default();
    let mut connection = 0;
    loop {
        let measured = tokio::time::timeout(QUESTION, lag::measure(&feed, &spec.group, &shared.settled)).await;
        let measured = measured.unwrap_or_else(|_| {
            Err(JournalError::Unavailable(format!(
                "measure lag: EventStoreDB did not answer within {QUESTION:?}"
            )))
        });
        let next = if measured.is_ok() {
            every
        } else {
            every.min(MEASURE_AGAIN)
        };
        match measured {
            Ok(measured) => lag_known(measured, &spec, &*meter, &shared.status),
            Err(error) => lag_unknown(&error, &spec, &*meter, &shared.status),
        }
        let now = shared.asked.connections.load(Ordering::Acquire);
        if now != connection {
            // What a session owed for a mark died with it; every note is looked at once by the next.
            connection = now;
            tried.clear();
            marks_at = None;
        }
        if marks_at.is_none_or(|at| at.elapsed() >= MARKS_EVERY) {
            if let Ok(Ok(in_use)) = tokio::time::timeout(QUESTION, table.in_use()).await {
                shared.asked.compare(connection, in_use.as_ref());
                known.of(in_use);
            }
            if let Ok(Ok(marks)) = tokio::time::timeout(QUESTION, table.marks()).await {
                marks_at = Some(Instant::now());
                heed(&marks, &spec, &*meter, &shared.status, &shared.asked, &mut tried);
                let show = |waiting| shared.status.send_modify(|s| s.waiting = Some(waiting));
                show(known.shown(&marks));
                // After the marks are heeded: nothing but people waits for their reasons.
                let _ = tokio::time::timeout(QUESTION, known.read(&marks, &table)).await;
                show(known.shown(&marks));
            }
        }
        tokio::time::sleep(next).await;
    }
}

fn lag_known(measured: Measured, spec: &SessionSpec, meter: &dyn Meter, status: &Shared) {
    let lag = measured.lag;
    meter.set(Level::LagEvents, lag.events as f64);
    meter.set(Level::LagSeconds, lag.seconds);
    meter.set(Level::LagMeasuredAt, lag.as_of.timestamp_millis() as f64 / 1000.0);
    meter.set(Level::SourceStalled, f64::from(u8::from(lag.stalled)));
    meter.set(Level::ParkedMessages, measured.info.parked as f64);
    meter.set(Level::GroupInFlight, measured.info.in_flight as f64);
    for (level, value) in [
        (Level::Checkpoint, measured.checkpoint),
        (Level::Newest, measured.newest),
        (Level::CheckpointLag, measured.checkpoint_lag),
    ] {
        match value {
            Some(value) => meter.set(level, value as f64),
            None => meter.unset(level),
        }
    }
    status.send_modify(|s| {
        if s.lag_unknown.take().is_some() {
            info!(
                projection = spec.projection(),
                lag_events = lag.events,
                "lag is known again"
            );
        }
        if s.info.as_ref().map(place) != Some(place(&measured.info)) {
            s.group_moved = Instant::now();
        }
        s.lag = Some(lag);
        s.info = Some(measured.info);
    });
}

/// What moves when any task settles deliveries of the group.
fn place(info: &GroupInfo) -> (Option<u64>, u64, u64, u64) {
    let checkpoint = info.checkpoint_revision.or(info.checkpoint_position);
    (checkpoint, info.in_flight, info.buffered, info.parked)
}

fn lag_unknown(error: &JournalError, spec: &SessionSpec, meter: &dyn Meter, status: &Shared) {
    for level in [
        Level::LagEvents,
        Level::LagSeconds,
        Level::SourceStalled,
        Level::ParkedMessages,
        Level::GroupInFlight,
        Level::Checkpoint,
        Level::Newest,
        Level::CheckpointLag,
    ] {
        meter.unset(level);
    }
    let text = sentence(error);
    status.send_modify(|s| {
        let waited = s.may_wait();
        let since = s.lag_unknown.as_ref().map(|unknown| unknown.since);
        if since.is_none() {
            warn!(projection = spec.projection(), error = text, "lag is unknown");
        }
        s.lag = None;
        s.lag_unknown = Some(LagUnknown {
            error: text,
            since: since.unwrap_or_else(Instant::now),
            // A search that goes on is at work; a permission that is missing hides nothing new.
            may_wait: waited || matches!(error, JournalError::Unavailable(_)),
        });
    });
}

fn heed(
    marks: &[Marked],
    spec: &SessionSpec,
    meter: &dyn Meter,
    status: &Shared,
    asked: &Asked,
    tried: &mut HashMap<Arc<str>, Instant>,
) {
    let (diverged, quarantined): (Vec<_>, Vec<_>) = marks.iter().partition(|mark| mark.kind == MarkKind::Diverged);
    meter.set(Level::Quarantined, quarantined.len() as f64);
    meter.set(Level::Diverged, diverged.len() as f64);
    let own = spec.lanes.rules.fold.fingerprint();
    let due = |mark: &&Marked| {
        let every = if mark.kind == MarkKind::Quarantined && !mark.by.contains(own) {
            TRY_MARK_EVERY
        } else {
            LOOK_AT_MARK_EVERY
        };
        tried.get(&mark.stream).is_none_or(|at| at.elapsed() >= every)
    };
    let due: Vec<Marked> = marks.iter().filter(due).cloned().collect();
    tried.retain(|_, at| at.elapsed() < LOOK_AT_MARK_EVERY);
    tried.extend(due.iter().map(|mark| (mark.stream.clone(), Instant::now())));
    asked.look_at(due);
    let names = |marks: &[&Marked]| marks.iter().map(|mark| mark.stream.to_string()).collect();
    status.send_modify(|s| {
        s.quarantined = names(&quarantined);
        s.diverged = names(&diverged);
    });
}

#[cfg(test)]
mod tests;
