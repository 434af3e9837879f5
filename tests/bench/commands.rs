//! What a command and a query cost by the length of their stream, all in one run:
//!
//! ```text
//! cargo run --release --example bench-commands -- [LONGEST]
//! cargo run --release --example bench-commands -- writers [COMMANDS]
//! cargo run --release --example bench-commands -- twins [COMMANDS]
//! ```
//!
//! The second is a campaign: writers in four processes on one aggregate, under faults (`commands/writers.rs`).
//! The third: one command id in two processes at once (`commands/twins.rs`).
//!
//! Beside the library: the client crate as it comes, which reads the whole stream and appends. The
//! stores are the embedded ones, EventStoreDB's log on disk and synced; a daemon keeps the replicas,
//! and each sample waits until it has caught up, so that a snapshot is as fresh as in a quiet hour.

#[path = "commands/contention.rs"]
mod contention;
#[path = "commands/processes.rs"]
mod processes;
#[path = "commands/twins.rs"]
mod twins;
#[path = "commands/writers.rs"]
mod writers;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use eventstore::{AppendToStreamOptions, Client, EventData, ExpectedRevision, ReadStreamOptions, StreamPosition};
use projector::{
    aggregate::{Aggregate, Command},
    app::{self, Connections},
    command::{CommandError, CommandSettings, NoSnapshots, Replicas, Repository, snapshots::Snapshots},
    config::{Connection, CreateTables, Inputs, Planned, Settings},
    embedded::{dynamodb, eventstore as embedded},
    event::{Event, Revision},
    journal::{Appended, Expected, Journal, JournalError, NewEvent, ReadLimit, Slice, Standing, esdb::EventStore},
    projection::{Compiled, Registry},
    query::{Mode, Queries},
    replica::{Got, Marked, Put, PutOutcome, Quarantine, Replica, ReplicaStore, StoreError, dynamodb::DynamoTable},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The argument that makes a process the bare client.
const BARE: &str = "bare";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Commands of the writers' campaign unless told otherwise: some minutes of it.
const COMMANDS: usize = 10_000;
/// Commands that two processes get at once, unless told otherwise.
const TWINS: usize = 1_000;
/// Lengths of streams that are measured, up to the one that is asked for.
const LENGTHS: [u64; 5] = [10, 100, 1_000, 10_000, 100_000];
/// Samples of what is quick: enough for a 99th percentile.
const SAMPLES: usize = 200;
/// Events that one run of samples may read altogether: the long streams have fewer samples.
const READ: u64 = 3_000_000;
/// The least number of samples; their 99th percentile is their slowest.
const FEWEST: u64 = 20;
/// Events of one append while streams are filled.
const FILL: u64 = 1_000;
/// Between two looks whether the daemon has caught up: below what is measured.
const LOOK: Duration = Duration::from_micros(500);

/// An account as services have it: figures, and the last entries, about 1 KB in all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Account {
    cents: i64,
    entries: u64,
    last: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Entry {
    Deposited { cents: i64, note: String },
}
impl Event for Entry {}

impl Aggregate for Account {
    const CATEGORY: &'static str = "account";
    type Event = Entry;

    fn apply(&mut self, Entry::Deposited { cents, note }: Entry) {
        self.cents += cents;
        self.entries += 1;
        if self.last.len() == 10 {
            self.last.remove(0);
        }
        self.last.push(note);
    }
}

/// About what a bank writes on a statement.
const NOTE: &str = "standing order 4711, rent of the flat in the third floor, thank you";

struct Deposit;
impl Command<Account> for Deposit {
    type Error = Refused;

    fn decide(&self, _: &Account) -> Result<Vec<Entry>, Refused> {
        Ok(vec![Entry::Deposited {
            cents: 1,
            note: NOTE.to_owned(),
        }])
    }
}

struct Withdraw(i64);
impl Command<Account> for Withdraw {
    type Error = Refused;

    fn decide(&self, account: &Account) -> Result<Vec<Entry>, Refused> {
        Err(Refused(account.cents - self.0))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("withdraw: {0} cents would be left")]
struct Refused(i64);

/// Calls and bytes of bodies, as they pass.
#[derive(Default)]
struct Counts {
    /// One after the other.
    calls: AtomicU64,
    /// Reads of one event beside an append, which verify the state that it was decided on.
    verifying: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    /// Calls, those that verify, and bytes since it was asked last.
    fn take(&self) -> (u64, u64, u64) {
        (
            self.calls.swap(0, Ordering::Relaxed),
            self.verifying.swap(0, Ordering::Relaxed),
            self.bytes.swap(0, Ordering::Relaxed),
        )
    }

    fn add(&self, bytes: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A journal or a table whose calls are counted. Each call is one round trip, unless it goes beside an append.
#[derive(Clone)]
struct Counted<T> {
    inner: T,
    counts: Arc<Counts>,
}

impl Journal for Counted<EventStore> {
    async fn read(&self, stream: &str, from: Revision, limit: ReadLimit) -> Result<Slice, JournalError> {
        let slice = self.inner.read(stream, from, limit).await?;
        let bytes = slice.events.iter().map(|e| e.data.len() + e.metadata.len()).sum();
        if limit.events == 1 {
            self.counts.verifying.fetch_add(1, Ordering::Relaxed);
            self.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        } else {
            self.counts.add(bytes);
        }
        Ok(slice)
    }

    async fn look(&self, stream: &str) -> Result<Standing, JournalError> {
        self.counts.add(0);
        self.inner.look(stream).await
    }

    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
        deadline: Duration,
    ) -> Result<Appended, JournalError> {
        self.counts.add(0);
        self.inner.append(stream, expected, events, deadline).await
    }
}

impl ReplicaStore for Counted<DynamoTable> {
    async fn get(&self, stream: &str, consistent: bool) -> Result<Option<Replica>, StoreError> {
        let replica = self.inner.get(stream, consistent).await?;
        self.counts.add(replica.as_ref().map_or(0, |replica| replica.bytes));
        Ok(replica)
    }

    async fn get_many(&self, streams: &[Arc<str>], consistent: bool) -> Result<Vec<Got>, StoreError> {
        self.counts.add(0);
        self.inner.get_many(streams, consistent).await
    }

    async fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        self.inner.marks().await
    }

    async fn note_mark(&self, stream: &str, mark: &Quarantine, generation: u64) -> Result<(), StoreError> {
        self.inner.note_mark(stream, mark, generation).await
    }

    async fn forget_mark(&self, stream: &str, generation: u64) -> Result<(), StoreError> {
        self.inner.forget_mark(stream, generation).await
    }

    async fn in_use(&self) -> Result<Option<Arc<str>>, StoreError> {
        self.inner.in_use().await
    }

    async fn set_in_use(&self) -> Result<Arc<str>, StoreError> {
        self.inner.set_in_use().await
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, StoreError> {
        self.counts.add(0);
        self.inner.put(put).await
    }
}

type Table = Counted<DynamoTable>;
type Store = Counted<EventStore>;

/// What one way of doing it took.
#[derive(Default)]
struct Row {
    times: Vec<Duration>,
    trips: u64,
    verifying: u64,
    bytes: u64,
}

impl Row {
    fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }

    fn say(&self, length: u64, what: &str) {
        let samples = self.times.len().max(1) as u64;
        say(&format!(
            "| {length} | {what} | {:.2} | {:.2} | {:.1} | {:.2} | {} | {} |",
            self.percentile(50),
            self.percentile(99),
            self.trips as f64 / samples as f64,
            self.verifying as f64 / samples as f64,
            kilobytes(self.bytes / samples),
            self.times.len(),
        ));
    }
}

fn kilobytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e3)
}

#[expect(clippy::print_stdout, reason = "what a bench shows is its output")]
fn say(line: &str) {
    println!("{line}");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // In a process of its own: the library puts TCP_NODELAY on its process's sockets to the nodes.
    let done = match &*arguments {
        [bare, connection, each, streams @ ..] if bare == BARE => as_it_comes(connection, each, streams),
        [of, connection, endpoint, commands] if of == writers::WRITERS => {
            let commands = commands.parse().map_err(Failure::from);
            commands.and_then(|commands| writers::write(connection, endpoint, commands))
        }
        [of, connection, endpoint] if of == twins::TWIN => twins::twin(connection, endpoint),
        [of, commands @ ..] if of == "twins" && commands.len() < 2 => {
            let commands = commands.first().map_or(Ok(TWINS), |commands| commands.parse());
            commands.map_err(Failure::from).and_then(twins::campaign)
        }
        [of, connection, endpoint, id, writers] if of == contention::CONTENDER => {
            let writers = writers.parse().map_err(Failure::from);
            writers.and_then(|writers| contention::contend(connection, endpoint, id, writers))
        }
        [of, commands @ ..] if of == "writers" && commands.len() < 2 => {
            let commands = commands.first().map_or(Ok(COMMANDS), |commands| commands.parse());
            commands.map_err(Failure::from).and_then(writers::campaign)
        }
        [] => bench(u64::MAX),
        [longest] => longest.parse().map_err(Failure::from).and_then(bench),
        _ => Err("takes the longest stream to measure, or `writers` or `twins` and how many commands".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

struct World {
    connection: String,
    /// Fills streams. One for all of them: a client's first call takes half a second.
    filler: Client,
    journal: EventStore,
    table: DynamoTable,
    counts: Arc<Counts>,
}

impl World {
    fn journal(&self) -> Store {
        Counted {
            inner: self.journal.clone(),
            counts: self.counts.clone(),
        }
    }

    fn table(&self) -> Table {
        Counted {
            inner: self.table.clone(),
            counts: self.counts.clone(),
        }
    }

    fn repository<S: Snapshots>(&self, snapshots: S, cache: bool) -> Repository<Account, Store, S> {
        let defaults = CommandSettings::default();
        Repository::new(self.journal(), snapshots).with_settings(CommandSettings {
            // The longest streams are past the cap that protects services.
            cap: usize::MAX,
            deadline: Duration::from_mins(1),
            cache_bytes: if cache { defaults.cache_bytes } else { 0 },
            ..defaults
        })
    }

    async fn fill(&self, stream: &str, events: u64) -> Result<(), Failure> {
        let mut written = 0;
        while written < events {
            let now = FILL.min(events - written);
            let body = Entry::Deposited {
                cents: 1,
                note: NOTE.to_owned(),
            };
            let (kind, data) = body_of(&body)?;
            let batch = (0..now)
                .map(|_| EventData::json(&kind, &data))
                .collect::<Result<Vec<_>, _>>()?;
            self.filler
                .append_to_stream(stream, &AppendToStreamOptions::default(), batch)
                .await?;
            written += now;
        }
        Ok(())
    }

    /// Until the replica covers the stream's newest event.
    async fn caught_up(&self, stream: &str) -> Result<u64, Failure> {
        loop {
            let Standing::Live(Some(newest)) = self.journal.look(stream).await? else {
                return Err(format!("`{stream}` is not there").into());
            };
            let replica = self.table.get(stream, true).await?;
            if replica.is_some_and(|replica| replica.header.version >= Some(newest.revision)) {
                return Ok(newest.revision);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// New streams of this length, and samples to take on each: few, so that it stays that long.
    async fn streams(&self, length: u64, samples: usize) -> Result<(Vec<String>, usize), Failure> {
        let each = (length / 10).clamp(1, samples as u64) as usize;
        let mut ids = Vec::new();
        for _ in 0..samples.div_ceil(each) {
            let id = Uuid::new_v4().to_string();
            self.fill(&Account::stream(&id), length).await?;
            ids.push(id);
        }
        Ok((ids, each))
    }

    /// One way of doing it, many times, each with the replica up to date before it.
    async fn row(
        &self,
        length: u64,
        samples: usize,
        mut run: impl AsyncFnMut(&str) -> Result<(), Failure>,
    ) -> Result<Row, Failure> {
        let mut row = Row::default();
        let (ids, each) = self.streams(length, samples).await?;
        for id in ids {
            let stream = Account::stream(&id);
            self.caught_up(&stream).await?;
            // The first one pays for connections and caches.
            run(&id).await?;
            for _ in 0..each {
                self.caught_up(&stream).await?;
                self.counts.take();
                let began = Instant::now();
                run(&id).await?;
                row.times.push(began.elapsed());
                let (calls, verifying, bytes) = self.counts.take();
                row.trips += calls;
                row.verifying += verifying;
                row.bytes += bytes;
            }
        }
        Ok(row)
    }
}

fn body_of(entry: &Entry) -> Result<(String, serde_json::Value), Failure> {
    let body = projector::event::codec::encode(entry)?;
    Ok((body.kind.to_string(), serde_json::from_slice(&body.data)?))
}

#[tokio::main]
async fn bench(longest: u64) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("projector-bench-commands-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let measured = Box::pin(measure(&folder, longest)).await;
    // What stays behind in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    measured
}

async fn measure(folder: &std::path::Path, longest: u64) -> Result<(), Failure> {
    // On disk and synced, as a real node's log is.
    let events = embedded::EventStoreDb::start(embedded::Options {
        data: Some(folder.join("eventstore")),
        ..embedded::Options::default()
    })
    .await?;
    let replicas = dynamodb::DynamoDb::start(dynamodb::Options::default()).await?;
    let connection = events.connection_string();
    let (settings, planned) = settings::<Account>(&connection, replicas.endpoint())?;
    let daemon = app::start(&settings, planned.clone()).await?;
    let stores = Connections::new(&settings).await?;
    let world = World {
        journal: stores.journal.clone(),
        table: stores.table(&planned[0], None),
        counts: Arc::default(),
        filler: Client::new(connection.parse()?)?,
        connection,
    };

    say("| events | way | p50 ms | p99 ms | round trips | reads beside an append, which verify | KB read | samples |");
    say("|---|---|---|---|---|---|---|---|");
    for length in LENGTHS.into_iter().filter(|length| *length <= longest) {
        Box::pin(lengths(&world, length)).await?;
    }
    say("");
    contention::table(&world, &replicas.endpoint()).await?;
    daemon.stop().await;
    events.shutdown().await;
    replicas.shutdown().await;
    Ok(())
}

fn settings<A: Aggregate>(connection: &str, endpoint: String) -> Result<(Settings, Vec<Planned>), Failure> {
    let mut settings = Settings::load(&Inputs::default())?;
    settings.eventstore.connection = Connection(connection.to_owned());
    settings.dynamodb.endpoint = Some(endpoint);
    settings.dynamodb.create_tables = CreateTables::Plain;
    settings.http.listen.set_port(0);
    let planned = settings.plan(&Registry::new("bench").with::<A>()?)?;
    Ok((settings, planned))
}

async fn lengths(world: &World, length: u64) -> Result<(), Failure> {
    let few = (READ / length).clamp(FEWEST, SAMPLES as u64) as usize;
    let (ids, each) = world.streams(length, few).await?;
    let streams: Vec<String> = ids.iter().map(|id| Account::stream(id)).collect();
    for stream in &streams {
        world.caught_up(stream).await?;
    }
    let bare = std::process::Command::new(std::env::current_exe()?)
        .args([BARE, &world.connection, &each.to_string()])
        .args(&streams)
        .output()?;
    let said = String::from_utf8_lossy(&bare.stdout);
    if !bare.status.success() {
        return Err(format!("the bare client: {}", said.trim()).into());
    }
    for line in said.lines() {
        say(&format!("| {length} | {line}"));
    }

    let replay = world.repository(NoSnapshots, false);
    let row = world.row(length, few, async |id| deposit(&replay, id).await).await?;
    row.say(length, "full replay");
    let cold = world.repository(Replicas::new(world.table()), false);
    let row = world.row(length, SAMPLES, async |id| deposit(&cold, id).await).await?;
    row.say(length, "snapshot, cold");
    let cached = world.repository(Replicas::new(world.table()), true);
    let row = world
        .row(length, SAMPLES, async |id| deposit(&cached, id).await)
        .await?;
    row.say(length, "snapshot, cached");
    let rejected = async |id: &str| match cached.execute(id, &Withdraw(i64::MAX)).await {
        Err(CommandError::Rejected(_)) => Ok(()),
        other => Err(format!("a rejection was expected: {other:?}").into()),
    };
    let row = world.row(length, SAMPLES, rejected).await?;
    row.say(length, "a rejection, cached");

    let queries = Queries::new(
        world.journal(),
        world.table(),
        Arc::new(Compiled::<Account>::new("bench")),
    );
    for (mode, what) in [(Mode::Eventual, "query, eventual"), (Mode::Strong, "query, strong")] {
        let asked = async |id: &str| match queries.get(&Account::stream(id), &mode).await? {
            Some(_) => Ok(()),
            None => Err(Failure::from("no answer")),
        };
        let row = world.row(length, SAMPLES, asked).await?;
        row.say(length, what);
    }
    Ok(())
}

async fn deposit<S: Snapshots>(repository: &Repository<Account, Store, S>, id: &str) -> Result<(), Failure> {
    repository.execute(id, &Deposit).await?;
    Ok(())
}

/// An event's body, as a service without a library has it.
#[derive(Deserialize)]
struct Body {
    cents: i64,
    note: String,
}

/// What a service does without a library: read the whole stream, fold it, append behind it.
#[tokio::main]
async fn as_it_comes(connection: &str, each: &str, streams: &[String]) -> Result<(), Failure> {
    let each: usize = each.parse()?;
    let client = Client::new(connection.parse()?)?;
    let (mut whole, mut append) = (Row::default(), Row::default());
    // The first one pays for the connection.
    let all = streams.iter().flat_map(|stream| std::iter::repeat_n(stream, each));
    for (sample, stream) in streams.iter().take(1).chain(all).enumerate() {
        let began = Instant::now();
        let options = ReadStreamOptions::default()
            .position(StreamPosition::Start)
            .max_count(usize::MAX);
        let mut events = client.read_stream(&**stream, &options).await?;
        let (mut account, mut newest, mut bytes) = (Account::default(), 0, 0);
        while let Some(event) = events.next().await? {
            let event = event.get_original_event();
            bytes += event.data.len() + event.custom_metadata.len();
            newest = event.revision;
            let Body { cents, note } = event.as_json()?;
            account.apply(Entry::Deposited { cents, note });
        }
        let read = Instant::now();
        let (kind, data) = body_of(&Entry::Deposited {
            // What it decides on is used, or it would not be made.
            cents: account.cents.signum(),
            note: NOTE.to_owned(),
        })?;
        let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Exact(newest));
        client
            .append_to_stream(&**stream, &options, EventData::json(kind, &data)?)
            .await?;
        if sample > 0 {
            whole.times.push(began.elapsed());
            whole.trips += 2;
            whole.bytes += bytes as u64;
            append.times.push(read.elapsed());
            append.trips += 1;
        }
    }
    for (row, what) in [
        (whole, "the bare crate: read all, append"),
        (append, "the bare crate: its append alone"),
    ] {
        let samples_taken = row.times.len() as u64;
        say(&format!(
            "{what} | {:.2} | {:.2} | {:.1} | 0.00 | {} | {samples_taken} |",
            row.percentile(50),
            row.percentile(99),
            row.trips as f64 / samples_taken as f64,
            kilobytes(row.bytes / samples_taken),
        ));
    }
    Ok(())
}
