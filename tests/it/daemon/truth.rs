//! Lag beside the truth: an observer that looks every 100 ms at what was appended, at what stands in
//! durable replicas and at what each daemon shows, through all that a deployment goes through.
//!
//! What is asked of each look (invariant 7) is independent of how fast this machine is: of what was
//! appended before a measurement began, as much as is not durable after the look is in its lag; and
//! once everything is durable, the second measurement that begins after it says 0.
//!
//! ```text
//! PROJECTOR_LAG_CSV=lag.csv cargo test --test it lag_is_the_truth
//! ```
//! writes every look for a plot.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, Utc};
use eventstore::{AppendToStreamOptions, Client, EventData, ExpectedRevision};
use projector::{
    config::Span,
    replica::{ReplicaStore as _, dynamodb::DynamoTable},
};
use serde_json::json;

use super::world::{Old, Running, World};
use crate::support::{node::until, proxy::Fault};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two measurements of a daemon: every measurement is looked at more than once.
const MEASURE_EVERY: Duration = Duration::from_millis(300);
/// Their replicas are read in one batch.
const STREAMS: usize = 40;

/// What one look found.
#[derive(Clone, Debug)]
struct Look {
    at: DateTime<Utc>,
    phase: &'static str,
    /// Events whose append was answered before the look, and that were in durable replicas after it.
    appended: u64,
    durable: u64,
    /// One a daemon that was asked.
    shown: Vec<Shown>,
}

impl Look {
    fn waiting(&self) -> u64 {
        self.appended.saturating_sub(self.durable)
    }
}

/// What a daemon shows.
#[derive(Clone, Debug)]
struct Shown {
    daemon: &'static str,
    lag: Option<f64>,
    /// When the measurement that `lag` is of began, or one before it.
    measured: Option<DateTime<Utc>>,
}

#[derive(Debug, Default)]
struct Seen {
    phase: &'static str,
    daemons: Vec<(&'static str, SocketAddr)>,
    /// When an append was answered, and how many events there were then.
    appended: Vec<(DateTime<Utc>, u64)>,
    looks: Vec<Look>,
    faults: Vec<String>,
}

impl Seen {
    /// Events that were there for certain at this time.
    fn appended_before(&self, at: DateTime<Utc>) -> u64 {
        let after = self.appended.partition_point(|(answered, _)| *answered < at);
        after.checked_sub(1).map_or(0, |last| self.appended[last].1)
    }

    fn take(&mut self, look: Look) {
        for shown in &look.shown {
            let (Some(lag), Some(measured)) = (shown.lag, shown.measured) else {
                continue;
            };
            let owed = self.appended_before(measured).saturating_sub(look.durable);
            if lag < owed as f64 {
                self.faults.push(format!(
                    "{}, {}: {} shows a lag of {lag}; {owed} of what was there at {measured} wait",
                    look.at, look.phase, shown.daemon
                ));
            }
        }
        self.looks.push(look);
    }

    fn csv(&self) -> String {
        let mut text = String::from("seconds,phase,appended,durable,waiting,daemon,lag\n");
        let began = self.looks.first().map(|look| look.at).unwrap_or_default();
        for look in &self.looks {
            let seconds = (look.at - began).as_seconds_f64();
            let row = format!(
                "{seconds:.3},{},{},{},{}",
                look.phase,
                look.appended,
                look.durable,
                look.waiting()
            );
            if look.shown.is_empty() {
                let _ = writeln!(text, "{row},,");
            }
            for shown in &look.shown {
                let lag = shown.lag.map(|lag| lag.to_string()).unwrap_or_default();
                let _ = writeln!(text, "{row},{},{lag}", shown.daemon);
            }
        }
        text
    }
}

/// A gauge on a page of metrics; `None` where it is not shown.
fn gauge(page: &str, name: &str) -> Option<f64> {
    let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    page.lines().find(of)?.rsplit(' ').next()?.parse().ok()
}

async fn metrics(address: SocketAddr) -> Option<String> {
    let answer = reqwest::get(format!("http://{address}/metrics")).await.ok()?;
    answer.text().await.ok()
}

/// Looks until it is stopped; stops with the test.
struct Observer {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Observer {
    fn start(table: DynamoTable) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, mut ticks) = (seen.clone(), tokio::time::interval(LOOK_EVERY));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let task = tokio::spawn(async move {
            loop {
                ticks.tick().await;
                look(&shared, &table).await;
            }
        });
        Self { seen, task }
    }

    fn phase(&self, name: &'static str) {
        self.seen.lock().unwrap().phase = name;
    }

    fn asks(&self, name: &'static str, daemon: &Running) {
        self.seen.lock().unwrap().daemons.push((name, daemon.0.address));
    }

    fn asks_no_more(&self, name: &str) {
        self.seen.lock().unwrap().daemons.retain(|(daemon, _)| *daemon != name);
    }

    /// Waits until this is so of the looks of this phase.
    async fn sees(&self, what: &str, holds: impl Fn(&[Look]) -> bool) {
        let phase = self.seen.lock().unwrap().phase;
        until(&format!("{phase}: {what}"), async || {
            let seen = self.seen.lock().unwrap();
            assert!(!self.task.is_finished(), "the observer has ended");
            let from = seen
                .looks
                .iter()
                .rposition(|look| look.phase != phase)
                .map_or(0, |at| at + 1);
            holds(&seen.looks[from..])
        })
        .await;
    }

    /// Waits until everything is durable, and judges what is measured from then on: the first
    /// measurement may have begun while the last acknowledgement was under way, the second may not.
    async fn comes_to_rest(&self) {
        self.sees("everything is durable", |looks| {
            looks.last().is_some_and(|look| look.waiting() == 0)
        })
        .await;
        let since = Utc::now();
        let daemons = self.seen.lock().unwrap().daemons.clone();
        for (daemon, _) in daemons {
            let measured = |looks: &[Look]| {
                let mut measured: Vec<(DateTime<Utc>, Option<f64>)> = Vec::new();
                for shown in looks.iter().flat_map(|look| &look.shown).filter(|s| s.daemon == daemon) {
                    if let Some(at) = shown.measured.filter(|at| *at > since)
                        && measured.last().is_none_or(|(last, _)| *last != at)
                    {
                        measured.push((at, shown.lag));
                    }
                }
                measured
            };
            self.sees("it is measured again", |looks| measured(looks).len() >= 4)
                .await;
            let mut seen = self.seen.lock().unwrap();
            let found = measured(&seen.looks);
            if found[1..].iter().any(|(_, lag)| *lag != Some(0.0)) {
                let phase = seen.phase;
                seen.faults.push(format!(
                    "{phase}: everything is durable since {since}, and {daemon} shows {found:?}"
                ));
            }
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(seen: &Mutex<Seen>, table: &DynamoTable) {
    let (phase, daemons, appended) = {
        let seen = seen.lock().unwrap();
        let appended = seen.appended.last().map_or(0, |(_, appended)| *appended);
        (seen.phase, seen.daemons.clone(), appended)
    };
    let at = Utc::now();
    let mut shown = Vec::new();
    for (daemon, address) in daemons {
        // A page is no snapshot. What an earlier page says of the time is at most too early for what a
        // later one says of the lag.
        let earlier = metrics(address).await;
        let measured = earlier
            .and_then(|page| gauge(&page, "projector_source_lag_measured_timestamp_seconds"))
            .and_then(|at| DateTime::from_timestamp_millis((at * 1000.0).floor() as i64));
        if let Some(page) = metrics(address).await {
            let lag = gauge(&page, "projector_source_lag_events");
            shown.push(Shown { daemon, lag, measured });
        }
    }
    let names: Vec<Arc<str>> = (0..STREAMS).map(|n| stream(n).into()).collect();
    let replicas = match table.get_many(&names, true).await {
        // Before there is a table there is no replica.
        Err(error) if error.is_setup() => Vec::new(),
        replicas => replicas.unwrap().into_iter().map(Result::unwrap).collect(),
    };
    let events = |version: Option<u64>| version.map_or(0, |version| version + 1);
    let durable = replicas.iter().flatten().map(|r| events(r.header.version)).sum();
    seen.lock().unwrap().take(Look {
        at,
        phase,
        appended,
        durable,
        shown,
    });
}

fn stream(number: usize) -> String {
    format!("account-{number}")
}

/// Appends, and says so to the observer when it was answered.
struct Writer<'a> {
    observer: &'a Observer,
    client: Client,
    appended: u64,
}

impl Writer<'_> {
    async fn pays(&mut self, to: usize, count: usize) {
        let paid = || EventData::json("Paid", &json!({ "amount": 1 })).unwrap();
        let events: Vec<_> = std::iter::repeat_with(paid).take(count).collect();
        let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
        self.client
            .append_to_stream(stream(to % STREAMS), &options, events)
            .await
            .unwrap();
        self.appended += count as u64;
        let now = (Utc::now(), self.appended);
        self.observer.seen.lock().unwrap().appended.push(now);
    }

    async fn pays_all(&mut self, each: usize) {
        for to in 0..STREAMS {
            self.pays(to, each).await;
        }
    }

    /// A steady load: until so many looks have seen it.
    async fn pays_on(&mut self, looks: usize) {
        let observer = self.observer;
        let count = || observer.seen.lock().unwrap().looks.len();
        let from = count();
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for to in 0.. {
            ticks.tick().await;
            self.pays(to, 1).await;
            if count() >= from + looks {
                return;
            }
        }
    }
}

/// DynamoDB, as the daemons see it, becomes unavailable.
fn take_tables_away(world: &World) {
    for operation in ["GetItem", "BatchGetItem", "PutItem", "UpdateItem", "DescribeTable"] {
        world.proxy.inject(operation, usize::MAX, Fault::LoseRequest);
    }
}

/// Catching up takes a number of measurements.
fn slow_puts(world: &World) {
    world
        .proxy
        .inject("PutItem", usize::MAX, Fault::Delay(Duration::from_millis(100)));
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_the_truth() {
    let mut world = World::start().await;
    let observer = Observer::start(world.table(1).await);
    let mut writer = Writer {
        observer: &observer,
        client: world.client(),
        appended: 0,
    };
    // Few puts at a time.
    let slow = |settings: &mut projector::config::Settings| {
        settings.engine.measure_every = Span(MEASURE_EVERY);
        settings.defaults.writes = 2;
        // The group has to read on for what it has heard of.
        settings.defaults.buffer = 20;
        (settings.defaults.history_buffer, settings.defaults.live_buffer) = (60, 60);
        settings.defaults.read_batch = 20;
        // What is done shows by the checkpoint late, if at all.
        settings.defaults.checkpoint_after = Span(Duration::from_hours(1));
        settings.defaults.checkpoint_upper = 1_000_000;
    };

    observer.phase("backlog");
    writer.pays_all(25).await;
    slow_puts(&world);
    let one = world.daemon_with::<Old>("a", slow).await;
    observer.asks("one", &one);
    let between = |looks: &[Look]| {
        let lags = looks.iter().flat_map(|look| &look.shown).filter_map(|shown| shown.lag);
        let mut between: Vec<_> = lags.filter(|lag| (1.0..1_000.0).contains(lag)).collect();
        between.dedup();
        between.len() >= 2
    };
    observer.sees("it is seen to catch up", between).await;
    world.proxy.disarm();
    observer.comes_to_rest().await;

    observer.phase("idle");
    observer.comes_to_rest().await;

    observer.phase("live");
    writer.pays_on(20).await;
    observer.comes_to_rest().await;

    observer.phase("tables unavailable");
    take_tables_away(&world);
    writer.pays_all(2).await;
    let all = |looks: &[Look]| {
        let shows = |look: &Look| !look.shown.is_empty() && look.shown.iter().all(|s| s.lag >= Some(80.0));
        looks.last().is_some_and(shows)
    };
    observer.sees("all of it is shown", all).await;
    writer.pays_on(10).await;
    world.proxy.disarm();
    observer.comes_to_rest().await;

    observer.phase("events unavailable");
    world.stop_events().await;
    let unknown = |looks: &[Look]| {
        looks
            .last()
            .is_some_and(|look| look.shown.iter().all(|s| s.lag.is_none()))
    };
    observer.sees("the lag is not shown", unknown).await;
    world.start_events().await;
    writer.client = world.client();
    observer.phase("events back");
    writer.pays_all(1).await;
    one.caught_up().await;
    observer.comes_to_rest().await;

    observer.phase("restart");
    slow_puts(&world);
    observer.asks_no_more("one");
    one.stop().await;
    writer.pays_all(5).await;
    let one = world.daemon_with::<Old>("a", slow).await;
    observer.asks("one", &one);
    world.proxy.disarm();
    observer.comes_to_rest().await;

    observer.phase("two");
    let two = world.daemon_with::<Old>("a", slow).await;
    observer.asks("two", &two);
    until("both are connected", async || {
        one.status().await["group"]["consumers"] == json!(2)
    })
    .await;
    writer.pays_on(20).await;
    observer.comes_to_rest().await;

    observer.phase("two without tables");
    take_tables_away(&world);
    writer.pays_all(2).await;
    observer.sees("all of it is shown by both", all).await;
    world.proxy.disarm();
    observer.comes_to_rest().await;

    observer.phase("one of two goes");
    slow_puts(&world);
    writer.pays_all(5).await;
    observer.asks_no_more("one");
    one.stop().await;
    world.proxy.disarm();
    observer.comes_to_rest().await;
    two.stop().await;

    let seen = observer.seen.lock().unwrap();
    if let Some(file) = std::env::var_os("PROJECTOR_LAG_CSV") {
        std::fs::write(&file, seen.csv()).unwrap();
    }
    assert_eq!(seen.faults, [""; 0]);
    let unseen = |look: &&Look| look.waiting() > 0 && look.shown.iter().any(|shown| shown.lag == Some(0.0));
    println!(
        "{} looks; in {} a daemon showed 0 while something waited that was newer than its measurement",
        seen.looks.len(),
        seen.looks.iter().filter(unseen).count()
    );
}
