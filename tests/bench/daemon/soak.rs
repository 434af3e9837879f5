//! A daemon and commands under load while everything goes wrong that may, by a script from a seed:
//!
//! ```text
//! cargo run --release --example bench-daemon -- soak [SECONDS] [SEED]
//! ```
//!
//! The stores are here, and what is done to them: connections cut and refused, a leader lost, appends
//! that commit late or whose answers are lost, a DynamoDB that is unavailable, throttles or is slow, streams
//! deleted. Daemon and commands with write-through are a process of their own. At the end every replica
//! must be its stream's, and what that process holds must be what it held after the first tenth (after
//! eight seconds in a short run).

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use eventstore::{AppendToStreamOptions, Client, DeleteStreamOptions, EventData, ExpectedRevision};
use projector::{
    aggregate::Aggregate,
    app::{self, Connections},
    command::{CommandSettings, Context, Repository},
    config::{Connection, CreateTables, Inputs, Planned, Settings, Size, Span},
    embedded::{
        dynamodb,
        eventstore::{Cluster, Disturbance, End, Faults, Options},
    },
    event::Event,
    journal::{Journal as _, ReadLimit, Standing},
    projection::Registry,
    replica::ReplicaStore as _,
    store::{Policy, Store, StoreSettings},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    counting,
    loans::{self, Failure, say},
};

#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the integration tests' own, which use all of it and may panic"
)]
#[path = "../../it/support/proxy.rs"]
mod proxy;

use proxy::{Fault, Proxy};

/// The argument that makes a process daemon and commands.
pub(crate) const WORKER: &str = "soak-worker";
/// As long as an ordinary check may take.
const SECONDS: u64 = 60;
/// Nodes of the cluster: all but two lose their leadership by being killed.
const NODES: usize = 8;
/// Aggregates: few enough that commands, appends and deletions meet.
const STREAMS: usize = 50;
/// Commands that are carried out at a time.
const WRITERS: usize = 8;
/// Everything is settled within this time after the last fault.
const PATIENCE: Duration = Duration::from_mins(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Looks at what a process holds; the least of each counts, for a look has a socket of its own.
const LOOKS: usize = 30;
/// Before this, a short run has neither filled its pools nor its allocator.
const WARM: Duration = Duration::from_secs(8);
/// What may be held more at the end: sockets, tasks, files; and memory, a tenth.
const MORE: usize = 5;
/// Idle connections that each client of DynamoDB may keep.
const IDLE: usize = 4;
/// The daemon and the commands have a client each. How many of their connections are open when it is
/// looked depends on how many calls met at the last fault, so a whole pool more is no leak.
const POOLED: usize = 2 * IDLE;
/// Memory that is not told from what an allocator keeps for itself.
const NOISE: u64 = 8 << 20;

/// The last number that was written, and how many were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tally {
    last: u64,
    count: u64,
    /// Some body, so that states have a size.
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Entry {
    Added { n: u64 },
}
impl Event for Entry {}

impl Aggregate for Tally {
    const CATEGORY: &'static str = "soak";
    type Event = Entry;

    fn apply(&mut self, Entry::Added { n }: Entry) {
        self.last = n;
        self.count += 1;
        self.notes.push(format!("the number {n} was added"));
        if self.notes.len() > 20 {
            self.notes.remove(0);
        }
    }
}

struct Add(u64);

impl projector::aggregate::Command<Tally> for Add {
    type Error = std::convert::Infallible;

    fn decide(&self, _: &Tally) -> Result<Vec<Entry>, Self::Error> {
        Ok(vec![Entry::Added { n: self.0 }])
    }
}

fn settings(connection: &str, endpoint: String) -> Result<(Settings, Vec<Planned>), Failure> {
    let mut settings = Settings::load(&Inputs::default())?;
    settings.eventstore.connection = Connection(connection.to_owned());
    settings.eventstore.operation_timeout = Span::secs(2);
    // What is renewed when it was idle is renewed within a run.
    settings.eventstore.idle_renew = Span::secs(2);
    settings.dynamodb.endpoint = Some(endpoint);
    settings.dynamodb.region = Some("eu-central-1".to_owned());
    settings.dynamodb.create_tables = CreateTables::Plain;
    settings.dynamodb.attempt_timeout = Span::secs(1);
    settings.dynamodb.operation_timeout = Span::secs(2);
    settings.dynamodb.idle_connections = IDLE;
    settings.http.listen.set_port(0);
    settings.engine.measure_every = Span::millis(200);
    // Full before the first tenth is over.
    settings.defaults.cache = Size(64 << 10);
    // A store that is unavailable for two seconds ends the subscription.
    settings.defaults.message_timeout = Span::secs(4);
    let planned = settings.plan(&Registry::new("soak").with::<Tally>()?)?;
    Ok((settings, planned))
}

/// What the worker says when it was told to rest.
#[derive(Debug, Serialize, Deserialize)]
struct AtRest {
    tasks: usize,
    heap: i64,
    commands: u64,
}

/// The process under test: a daemon, and commands while it is told to go on.
#[tokio::main]
pub(crate) async fn work(connection: String, endpoint: String, seed: u64) -> Result<(), Failure> {
    counting::count();
    let (settings, planned) = settings(&connection, endpoint)?;
    let daemon = app::start(&settings, planned.clone()).await?;
    let connections = Connections::new(&settings).await?;
    let store = Store::on(
        connections.journal,
        connections.dynamo,
        StoreSettings {
            commands: CommandSettings {
                deadline: Duration::from_secs(5),
                cache_bytes: 64 << 10,
                ..CommandSettings::default()
            },
            policy: Policy {
                write_through: true,
                ..Policy::default()
            },
            ..StoreSettings::new(connection)
        },
    );
    let tallies = store.repository::<Tally>()?;
    let commands = Arc::new(AtomicU64::new(0));
    say(&daemon.address.to_string());
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.is_err() || tell.send(()).is_err() {
                return;
            }
        }
    });
    let mut round = 0;
    while told.recv().await.is_some() {
        round += 1;
        let going = Arc::new(AtomicBool::new(true));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let dice = fastrand::Rng::with_seed(seed ^ (writer as u64) << 32 ^ round);
                tokio::spawn(write(tallies.clone(), dice, going.clone(), commands.clone()))
            })
            .collect();
        let on = told.recv().await;
        going.store(false, Ordering::Relaxed);
        for writer in writers {
            writer.await?;
        }
        if on.is_none() {
            break;
        }
        // What has ended is gone from the count at the runtime's own pace.
        let mut tasks = usize::MAX;
        for _ in 0..LOOKS {
            tokio::time::sleep(LOOK).await;
            tasks = tasks.min(tokio::runtime::Handle::current().metrics().num_alive_tasks());
        }
        say(&serde_json::to_string(&AtRest {
            tasks,
            heap: counting::live(),
            commands: commands.load(Ordering::Relaxed),
        })?);
    }
    daemon.stop().await;
    Ok(())
}

async fn write(tallies: Repository<Tally>, mut dice: fastrand::Rng, going: Arc<AtomicBool>, commands: Arc<AtomicU64>) {
    while going.load(Ordering::Relaxed) {
        let id = dice.usize(..STREAMS).to_string();
        // An outage is what this is about, and a number may be added or not.
        if tallies
            .execute_with(&id, &Add(dice.u64(1..1 << 50)), Context::default())
            .await
            .is_ok()
        {
            commands.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(dice.u64(..40))).await;
    }
}

/// The worker as a process. Killed when dropped.
struct Worker {
    process: Child,
    input: Option<ChildStdin>,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: String,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    resident: u64,
    heap: i64,
    files: usize,
    sockets: usize,
    tasks: usize,
    threads: usize,
    commands: u64,
}

impl Worker {
    fn start(connection: &str, endpoint: &str, seed: u64) -> Result<Self, Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([WORKER, connection, endpoint, &seed.to_string()])
            // Symbols that a backtrace has loaded stay, and are nobody's leak.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("the worker has no output")?).lines();
        Ok(Self {
            address: lines.next().ok_or("the worker ended without saying where it is")??,
            input: process.stdin.take(),
            process,
            lines,
        })
    }

    /// Go on when it rests, rest when it goes on.
    fn turn(&mut self) -> Result<(), Failure> {
        let input = self.input.as_mut().ok_or("the worker has no input")?;
        writeln!(input)?;
        Ok(input.flush()?)
    }

    /// What it says of itself when it has come to rest.
    fn rested(&mut self) -> Result<AtRest, Failure> {
        let line = self.lines.next().ok_or("the worker has ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    /// What it holds at rest.
    fn holds(&self, at_rest: &AtRest) -> Result<Holds, Failure> {
        let id = self.process.id();
        let mut least = Holds {
            resident: u64::MAX,
            files: usize::MAX,
            sockets: usize::MAX,
            threads: usize::MAX,
            heap: at_rest.heap,
            tasks: at_rest.tasks,
            commands: at_rest.commands,
        };
        for _ in 0..LOOKS {
            std::thread::sleep(LOOK);
            let files: Vec<_> = std::fs::read_dir(format!("/proc/{id}/fd"))?.flatten().collect();
            let is_socket = |file: &&std::fs::DirEntry| {
                std::fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
            };
            // Without the executable's own pages, which come as they are run for the first time.
            let resident = loans::memory(id, "RssAnon:").ok_or("the worker has no memory")?;
            least.resident = least.resident.min(resident);
            least.files = least.files.min(files.len());
            least.sockets = least.sockets.min(files.iter().filter(is_socket).count());
            least.threads = least
                .threads
                .min(std::fs::read_dir(format!("/proc/{id}/task"))?.count());
        }
        Ok(least)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One that has ended by itself is as dead.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Holds {
    fn say(&self, when: &str) {
        say(&format!(
            "{when}: resident {:.1} MB, heap {:.2} MB, {} files, {} of them sockets, {} tasks, {} threads; {} commands done",
            self.resident as f64 / 1e6,
            self.heap as f64 / 1e6,
            self.files,
            self.sockets,
            self.tasks,
            self.threads,
            self.commands
        ));
    }

    /// What is more than it was, and more than it may be.
    fn leaked(&self, before: &Self) -> Vec<String> {
        let mut leaked = Vec::new();
        let most = before.resident + (before.resident / 10).max(NOISE);
        if self.resident > most {
            leaked.push(format!("resident {} of {} bytes at most", self.resident, most));
        }
        for (what, now, before, more) in [
            ("files", self.files, before.files, MORE + POOLED),
            ("sockets", self.sockets, before.sockets, MORE + POOLED),
            ("tasks", self.tasks, before.tasks, MORE + POOLED),
            ("threads", self.threads, before.threads, MORE),
        ] {
            if now > before + more {
                leaked.push(format!("{now} {what}, {before} before"));
            }
        }
        leaked
    }
}

/// Both stores and what is done to them.
struct World {
    cluster: Cluster,
    proxy: Proxy,
    dice: fastrand::Rng,
    kills: usize,
    happened: BTreeMap<&'static str, usize>,
    number: u64,
}

/// An unavailable DynamoDB answers none of these.
const OPERATIONS: [&str; 5] = ["GetItem", "BatchGetItem", "PutItem", "UpdateItem", "DescribeTable"];

impl World {
    fn faults(&self) -> Option<&Faults> {
        self.cluster.faults(self.cluster.leader()?)
    }

    fn stream(&mut self) -> String {
        format!("soak-{}", self.dice.usize(..STREAMS))
    }

    async fn pause(&mut self, from: u64, to: u64) {
        tokio::time::sleep(Duration::from_millis(self.dice.u64(from..to))).await;
    }

    /// A client of its own each time: faults end with what they are done to.
    async fn append(&mut self, stream: &str, count: usize) {
        let mut events = Vec::new();
        for _ in 0..count {
            self.number += 1;
            events.extend(EventData::json("Added", &json!({ "n": self.number })).ok());
        }
        let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
        if let Some(client) = self.client() {
            // What an outage swallows is not there for anybody.
            let append = client.append_to_stream(stream, &options, events);
            let _ = tokio::time::timeout(Duration::from_secs(3), append).await;
        }
    }

    fn client(&self) -> Option<Client> {
        Client::new(self.cluster.connection_string().parse().ok()?).ok()
    }

    async fn delete(&self, stream: &str) {
        let options = DeleteStreamOptions::default().expected_revision(ExpectedRevision::Any);
        if let Some(client) = self.client() {
            // One that is not there, or not reached, is not deleted.
            let _ = tokio::time::timeout(Duration::from_secs(3), client.delete_stream(stream, &options)).await;
        }
    }

    async fn happens(&mut self) {
        let kind = self.dice.u8(..18);
        let name = match kind {
            0 => {
                if let Some(faults) = self.faults() {
                    faults.cut_connections();
                }
                "connections cut"
            }
            1 => {
                for node in self.cluster.nodes() {
                    if let Some(faults) = self.cluster.faults(node) {
                        faults.refuse_connections(true);
                        faults.cut_connections();
                    }
                }
                self.pause(100, 2_000).await;
                self.calm_events();
                "connections refused"
            }
            2 => {
                let time = Duration::from_millis(self.dice.u64(100..2_000));
                if let Some(faults) = self.faults() {
                    faults.not_ready_for(time);
                }
                "leader not ready"
            }
            3 => {
                if let Some(faults) = self.faults() {
                    faults.end_consumers(End::Clean);
                }
                "consumers ended"
            }
            4 => {
                if let Some(faults) = self.faults() {
                    faults.lose_append_replies(2);
                }
                "replies of appends lost"
            }
            5 => {
                if let Some(faults) = self.faults() {
                    faults.delay_commits(None, Duration::from_millis(100));
                }
                self.pause(500, 2_000).await;
                self.calm_events();
                "commits late"
            }
            6 if self.kills + 2 < NODES => {
                self.kills += 1;
                self.cluster.kill_leader().await;
                self.pause(100, 1_500).await;
                self.cluster.elect().await;
                "leader killed"
            }
            6 | 7 => {
                self.cluster.elect().await;
                "groups restarted"
            }
            8 => {
                for operation in OPERATIONS {
                    self.proxy.inject(operation, usize::MAX, Fault::LoseRequest);
                }
                self.pause(200, 4_000).await;
                self.proxy.disarm();
                "tables unavailable"
            }
            9 => {
                let reason = "TableWriteMaxOnDemandThroughputExceeded";
                self.proxy.inject("PutItem", 50, Fault::Throttle(reason));
                "throttled"
            }
            10 => {
                self.proxy.inject("PutItem", 5, Fault::LoseReply);
                self.proxy.inject("BatchGetItem", 2, Fault::LoseReply);
                "replies of puts lost"
            }
            11 => {
                self.proxy
                    .inject("PutItem", 50, Fault::Delay(Duration::from_millis(200)));
                "slow puts"
            }
            12 => {
                let disturbance = Disturbance {
                    reorder: true,
                    twice: self.dice.bool(),
                    seed: self.dice.u64(..),
                };
                if let Some(faults) = self.faults() {
                    faults.disturb_deliveries(Some(disturbance));
                }
                self.pause(500, 2_000).await;
                self.calm_events();
                "deliveries disturbed"
            }
            13 | 14 => {
                let stream = self.stream();
                self.delete(&stream).await;
                "stream deleted"
            }
            _ => {
                let (stream, count) = (self.stream(), self.dice.usize(1..20));
                self.append(&stream, count).await;
                "appended by others"
            }
        };
        *self.happened.entry(name).or_default() += 1;
    }

    fn calm_events(&self) {
        for node in self.cluster.nodes() {
            if let Some(faults) = self.cluster.faults(node) {
                faults.refuse_connections(false);
                faults.delay_commits(None, Duration::ZERO);
                faults.lose_append_replies(0);
                faults.disturb_deliveries(None);
            }
        }
    }

    /// Ends all faults, lets the worker rest, waits until every replica is right, and looks.
    async fn rests(&mut self, worker: &mut Worker, stores: &Connections, planned: &Planned) -> Result<Holds, Failure> {
        self.calm_events();
        self.proxy.disarm();
        worker.turn()?;
        let at_rest = worker.rested()?;
        let began = Instant::now();
        loop {
            let wrong = wrong(stores, planned).await;
            let caught_up = loans::caught_up(&worker.address).await;
            match wrong {
                Ok(None) if caught_up => break,
                wrong if began.elapsed() > PATIENCE => {
                    let status = loans::page(&worker.address, "/status").await.unwrap_or_default();
                    return Err(format!("it does not come to rest: {wrong:?}, caught up {caught_up}: {status}").into());
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
        worker.holds(&at_rest)
    }
}

/// What is wrong with a replica, if anything is.
async fn wrong(stores: &Connections, planned: &Planned) -> Result<Option<String>, Failure> {
    let table = stores.table(planned, None);
    for number in 0..STREAMS {
        let stream = format!("soak-{number}");
        let replica = table.get(&stream, true).await?;
        let standing = stores.journal.look(&stream).await?;
        let problem = match (&standing, &replica) {
            (Standing::Missing | Standing::Live(None), None) => None,
            (Standing::SoftDeleted, Some(replica)) if replica.header.deleted => None,
            (Standing::Live(Some(newest)), Some(replica)) => {
                let event = replica.header.event.as_ref().map(|event| event.id);
                let same = replica.header.version == Some(newest.revision) && event == Some(newest.id);
                let last = last(stores, &stream, newest.revision).await?;
                let state: Option<Tally> = replica
                    .view
                    .as_ref()
                    .map(projector::projection::StoredState::read)
                    .transpose()?;
                let right = state.as_ref().map(|state| state.last) == last;
                (!same || !right || replica.header.quarantine.is_some() || replica.header.deleted)
                    .then(|| format!("{:?}, {state:?}; the stream's last number is {last:?}", replica.header))
            }
            _ => Some(format!("{replica:?}")),
        };
        if let Some(problem) = problem {
            return Ok(Some(format!("{stream} is {standing:?}: {problem}")));
        }
    }
    Ok(None)
}

/// The number that an event added.
async fn last(stores: &Connections, stream: &str, revision: u64) -> Result<Option<u64>, Failure> {
    let limit = ReadLimit {
        events: 1,
        bytes: 1 << 20,
    };
    let slice = stores.journal.read(stream, revision, limit).await?;
    let Some(event) = slice.events.first() else {
        return Ok(None);
    };
    let body: serde_json::Value = serde_json::from_slice(&event.data)?;
    Ok(body["n"].as_u64())
}

/// Runs for so long. Its folder is the caller's to remove.
pub(crate) async fn soak(folder: &Path, seconds: Option<u64>, seed: Option<u64>) -> Result<(), Failure> {
    let seconds = seconds.unwrap_or(SECONDS);
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    say(&format!("soak: {seconds} s, seed {seed}"));
    let options = Options {
        data: Some(folder.join("eventstore")),
        ..Options::default()
    };
    let cluster = Cluster::start(options, NODES).await?;
    let tables = dynamodb::DynamoDb::start(dynamodb::Options::default()).await?;
    let connection = cluster.connection_string();
    let proxy = Proxy::start(&tables.endpoint()).await;
    // Past the faults between the worker and its tables.
    let (settings, planned) = settings(&connection, tables.endpoint())?;
    let stores = Connections::new(&settings).await?;
    let mut worker = Worker::start(&connection, &proxy.endpoint(), seed)?;
    let mut world = World {
        cluster,
        proxy,
        dice: fastrand::Rng::with_seed(seed),
        kills: 0,
        happened: BTreeMap::new(),
        number: 0,
    };
    let whole = Duration::from_secs(seconds);
    let began = Instant::now();
    let mut before: Option<Holds> = None;
    worker.turn()?;
    while began.elapsed() < whole {
        world.pause(50, 1_000).await;
        world.happens().await;
        if before.is_none() && began.elapsed() >= (whole / 10).max(WARM) {
            let holds = world.rests(&mut worker, &stores, &planned[0]).await?;
            holds.say("after the first tenth");
            before = Some(holds);
            worker.turn()?;
        }
    }
    let after = world.rests(&mut worker, &stores, &planned[0]).await?;
    after.say("at the end");
    let happened = world.happened.iter().map(|(what, times)| format!("{what} {times}"));
    say(&format!(
        "{}; every replica is right",
        happened.collect::<Vec<_>>().join(", ")
    ));
    drop(worker);
    world.cluster.shutdown().await;
    tables.shutdown().await;
    let leaked = after.leaked(&before.ok_or("it was over before it was warm")?);
    if leaked.is_empty() {
        return Ok(());
    }
    Err(format!("it holds more than after the first tenth: {}", leaked.join("; ")).into())
}
