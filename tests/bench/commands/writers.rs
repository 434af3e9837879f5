//! Writers in processes of their own on one aggregate, each command writing the next number, while
//! commits take their time, appends die and leaders are lost. What must hold: no number twice, each
//! command committed once, every answer true, and every state that an answer, the cache or the table
//! gives equal to the fold of the stream.

use std::{
    collections::HashSet,
    path::Path,
    process::{Command as Process, Stdio},
    time::{Duration, Instant},
};

use projector::{
    aggregate::{Aggregate, Command},
    app::{self, Connections},
    command::{CommandError, CommandSettings, Context},
    embedded::{
        dynamodb,
        eventstore::{Cluster, EventStoreDb, Faults, Handle, Options},
    },
    event::Event,
    journal::{Journal as _, ReadLimit, esdb::EsdbSettings, esdb::EventStore},
    query::Mode,
    replica::dynamodb::DynamoSettings,
    store::{Policy, Store, StoreSettings},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Failure, say, settings};

/// The argument that makes a process one of the writers'.
pub(super) const WRITERS: &str = "writers-of";
/// Processes, and writers in each.
const PROCESSES: usize = 4;
const EACH: usize = 8;
/// Nodes of the cluster: all but two lose their leadership by being killed.
const NODES: usize = 8;
/// Between an append's death and the next: longer than the 2.5 s after which a writer gives up the one
/// that died, or there would be nothing but deaths.
const DEATHS: Duration = Duration::from_secs(4);
/// Between an election and the next leader's end, and how long there is none.
const LEADS: Duration = Duration::from_secs(1);
const ELECTION: Duration = Duration::from_millis(250);
/// Between two looks whether the writers are done.
const LOOK: Duration = Duration::from_millis(50);
/// The one aggregate.
const ID: &str = "1";
/// What a run without faults commits at least, of a thousand commands at their first call.
const COMMITTED_OF_1000: usize = 999;

/// Counts its own events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counter {
    number: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Counted {
    Counted { number: u64 },
}
impl Event for Counted {}

impl Aggregate for Counter {
    const CATEGORY: &'static str = "counter";
    type Event = Counted;

    fn apply(&mut self, Counted::Counted { number }: Counted) {
        self.number = number;
    }
}

struct Count;

impl Command<Counter> for Count {
    type Error = std::convert::Infallible;

    fn name(&self) -> &'static str {
        "count"
    }

    fn decide(&self, counter: &Counter) -> Result<Vec<Counted>, Self::Error> {
        let number = counter.number + 1;
        Ok(vec![Counted::Counted { number }])
    }
}

/// What one call told.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// At the revision, with the state's number; whether it was the command's first call, how many
    /// appends it took, and whether it was told as a repetition.
    Committed {
        revision: u64,
        number: u64,
        first: bool,
        attempts: u32,
        repeated: bool,
    },
    Contended,
    Unknown,
}

/// One of the processes: its commands, until each is known to be committed.
#[tokio::main]
pub(super) async fn write(connection: &str, endpoint: &str, commands: usize) -> Result<(), Failure> {
    let store = Store::open(StoreSettings {
        dynamodb: DynamoSettings {
            endpoint: Some(endpoint.to_owned()),
            region: Some("eu-central-1".to_owned()),
            ..DynamoSettings::default()
        },
        commands: CommandSettings {
            // A gateway's patience. A lost race costs a window, so five are not enough at 500 ms.
            deadline: Duration::from_secs(30),
            attempts: 100,
            ..CommandSettings::default()
        },
        policy: Policy {
            write_through: true,
            ..Policy::default()
        },
        ..StoreSettings::new(connection)
    })
    .await?;
    let counters = store.repository::<Counter>()?;
    let writers = (0..EACH).map(|writer| {
        let counters = counters.clone();
        tokio::spawn(async move {
            let mut told = Vec::new();
            for _ in (writer..commands).step_by(EACH) {
                let context = Context::with_id(Uuid::new_v4());
                let mut first = true;
                loop {
                    match counters.execute_with(ID, &Count, context.clone()).await {
                        Ok(done) => {
                            told.push(Told::Committed {
                                revision: done.revision.ok_or("committed without a revision")?,
                                number: done.state.number,
                                first,
                                attempts: done.attempts,
                                repeated: done.repeated,
                            });
                            break;
                        }
                        Err(CommandError::Contended { .. } | CommandError::Queued { .. }) => told.push(Told::Contended),
                        Err(CommandError::OutcomeUnknown { .. }) => told.push(Told::Unknown),
                        // A leader is being elected: nothing was appended.
                        Err(error) if error.can_retry() => tokio::time::sleep(Duration::from_millis(50)).await,
                        Err(error) => return Err(Failure::from(error.to_string())),
                    }
                    first = false;
                }
            }
            Ok::<_, Failure>(told)
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        for told in writer.await?? {
            say(&serde_json::to_string(&told)?);
        }
    }
    Ok(())
}

/// A server, or several.
enum Nodes {
    One(Handle),
    Several(Cluster),
}

impl Nodes {
    fn connection(&self) -> String {
        match self {
            Self::One(server) => server.connection_string(),
            Self::Several(cluster) => cluster.connection_string(),
        }
    }

    fn faults(&self) -> Option<&Faults> {
        match self {
            Self::One(server) => Some(server.faults()),
            Self::Several(cluster) => cluster.faults(cluster.leader()?),
        }
    }
}

/// What happens while they write.
struct Row {
    name: &'static str,
    /// Of the commands that were asked for, one in so many: a window lets one append through at a time.
    share: usize,
    window: Duration,
    dying: bool,
    leaders_lost: bool,
}

const ROWS: [Row; 6] = [
    row("as it is", 1, 0, false, false),
    row("commits after 50 ms", 50, 50, false, false),
    row("commits after 500 ms", 500, 500, false, false),
    row("appends die", 10, 0, true, false),
    row("appends die, commits after 50 ms", 100, 50, true, false),
    row("a cluster loses its leaders", 5, 0, false, true),
];

const fn row(name: &'static str, share: usize, window_ms: u64, dying: bool, leaders_lost: bool) -> Row {
    Row {
        name,
        share,
        window: Duration::from_millis(window_ms),
        dying,
        leaders_lost,
    }
}

/// Every row with this many commands, or its share of them.
#[tokio::main]
pub(super) async fn campaign(commands: usize) -> Result<(), Failure> {
    say(
        "| one aggregate, 32 writers in 4 processes | commands | committed at the first call | contended | unknown | attempts a command | commands/s |",
    );
    say("|---|---|---|---|---|---|---|");
    for row in &ROWS {
        let folder = std::env::temp_dir().join(format!("projector-bench-writers-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let ran = run(row, (commands / row.share).max(PROCESSES * EACH), &folder).await;
        // What stays behind in the temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&folder);
        ran.map_err(|error| format!("{}: {error}", row.name))?;
    }
    Ok(())
}

async fn run(row: &Row, commands: usize, folder: &Path) -> Result<(), Failure> {
    let options = Options {
        data: Some(folder.join("eventstore")),
        ..Options::default()
    };
    let nodes = if row.leaders_lost {
        Nodes::Several(Cluster::start(options, NODES).await?)
    } else {
        Nodes::One(EventStoreDb::start(options).await?)
    };
    let connection = nodes.connection();
    let replicas = dynamodb::DynamoDb::start(dynamodb::Options::default()).await?;
    let (settings, planned) = settings::<Counter>(&connection, replicas.endpoint())?;
    let daemon = app::start(&settings, planned.clone()).await?;
    if let Some(faults) = nodes.faults() {
        faults.delay_commits(None, row.window);
    }
    let began = Instant::now();
    let mut writers = Vec::new();
    for _ in 0..PROCESSES {
        let process = Process::new(std::env::current_exe()?)
            .args([
                WRITERS,
                &connection,
                &replicas.endpoint(),
                &(commands / PROCESSES).to_string(),
            ])
            .stdout(Stdio::piped())
            .spawn()?;
        writers.push(tokio::task::spawn_blocking(move || process.wait_with_output()));
    }
    let mut kills = 0;
    let mut next = began + if row.dying { DEATHS } else { LEADS };
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(LOOK).await;
        if Instant::now() < next {
            continue;
        }
        match &nodes {
            Nodes::One(server) if row.dying => {
                server.faults().lose_accepted(Some("counter-1"), 1);
                next = Instant::now() + DEATHS;
            }
            Nodes::Several(cluster) if kills < NODES - 2 => {
                kills += 1;
                cluster.kill_leader().await;
                tokio::time::sleep(ELECTION).await;
                cluster.elect().await;
                next = Instant::now() + LEADS;
            }
            _ => {}
        }
    }
    let took = began.elapsed();
    if let Some(faults) = nodes.faults() {
        faults.lose_accepted(None, 0);
        faults.delay_commits(None, Duration::ZERO);
    }
    let mut told: Vec<Told> = Vec::new();
    for writer in writers {
        let output = writer.await??;
        let said = String::from_utf8(output.stdout)?;
        if !output.status.success() {
            return Err(format!("a writer: {}", said.lines().last().unwrap_or_default()).into());
        }
        for line in said.lines() {
            told.push(serde_json::from_str(line)?);
        }
    }
    let calls = judge(&told, &numbers(&connection).await?, commands / PROCESSES * PROCESSES)?;
    let store = Connections::new(&settings).await?.store(&settings, &planned);
    let stored = store.queries::<Counter>()?;
    let stored = stored.get(ID, &Mode::Strong).await?.ok_or("the table has no counter")?;
    if stored.state.number != commands as u64 / PROCESSES as u64 * PROCESSES as u64 {
        return Err(format!("the table's counter says {}", stored.state.number).into());
    }
    calls.say(row, took);
    if row.window.is_zero() && !row.dying && !row.leaders_lost {
        let enough = calls.first * 1_000 >= calls.committed * COMMITTED_OF_1000;
        enough
            .then_some(())
            .ok_or("fewer than 99.9 % were committed at the first call")?;
    }
    daemon.stop().await;
    replicas.shutdown().await;
    match nodes {
        Nodes::One(server) => server.shutdown().await,
        Nodes::Several(cluster) => cluster.shutdown().await,
    }
    Ok(())
}

/// Every number of the stream, in its order.
async fn numbers(connection: &str) -> Result<Vec<u64>, Failure> {
    let journal = EventStore::new(&EsdbSettings::new(connection))?;
    let limit = ReadLimit {
        events: 1_000,
        bytes: usize::MAX,
    };
    let mut numbers = Vec::new();
    loop {
        let slice = journal.read("counter-1", numbers.len() as u64, limit).await?;
        for event in &slice.events {
            let body: serde_json::Value = serde_json::from_slice(&event.data)?;
            numbers.push(body["number"].as_u64().ok_or("an event without a number")?);
        }
        if slice.end {
            return Ok(numbers);
        }
    }
}

#[derive(Default)]
struct Calls {
    committed: usize,
    first: usize,
    contended: usize,
    unknown: usize,
    attempts: u64,
}

impl Calls {
    fn say(&self, row: &Row, took: Duration) {
        say(&format!(
            "| {} | {} | {:.2} % | {} | {} | {:.2} | {:.1} |",
            row.name,
            self.committed,
            100.0 * self.first as f64 / self.committed as f64,
            self.contended,
            self.unknown,
            self.attempts as f64 / self.committed as f64,
            self.committed as f64 / took.as_secs_f64(),
        ));
    }
}

/// What was told beside what is there.
fn judge(told: &[Told], numbers: &[u64], commands: usize) -> Result<Calls, Failure> {
    let expected: Vec<u64> = (1..=commands as u64).collect();
    if numbers != expected {
        let wrong = numbers.iter().zip(&expected).position(|(is, should)| is != should);
        return Err(format!(
            "{} numbers for {commands} commands, the first wrong one at {wrong:?}",
            numbers.len()
        )
        .into());
    }
    let mut revisions = HashSet::new();
    let mut calls = Calls::default();
    for told in told {
        match told {
            Told::Committed {
                revision,
                number,
                first,
                attempts,
                repeated,
            } => {
                if !revisions.insert(*revision) {
                    return Err(format!("revision {revision} was told to two commands").into());
                }
                // A repetition is answered with a state at or behind what was committed.
                if *number != revision + 1 && !(*repeated && number > revision) {
                    return Err(format!("revision {revision} was told with the number {number}").into());
                }
                if *first && *repeated {
                    return Err(format!("revision {revision}: a first call was told as a repetition").into());
                }
                calls.committed += 1;
                calls.first += usize::from(*first);
                calls.attempts += u64::from(*attempts);
            }
            Told::Contended => calls.contended += 1,
            Told::Unknown => calls.unknown += 1,
        }
    }
    if calls.committed != commands {
        return Err(format!("{} of {commands} commands were told as committed", calls.committed).into());
    }
    Ok(calls)
}
