//! What the daemon costs beside what it stands on, all in one run:
//!
//! ```text
//! cargo run --release --example bench-daemon -- [EVENTS.jsonl.gz]
//! cargo run --release --example bench-daemon -- memory [STREAMS] [BYTES]
//! cargo run --release --example bench-daemon -- soak [SECONDS] [SEED]
//! ```
//!
//! A backlog drained raw (received and acknowledged, nothing else), then by the daemon, with the
//! processor time of each; a live stream, append called to replica durable, beside one append and one
//! put alone; memory before and after. The stores are a process of their own. With
//! `OTEL_EXPORTER_OTLP_ENDPOINT` the daemon's work is traced, which is what tracing costs.
//! Without a file it makes the loans example's workload up.

#[allow(
    dead_code,
    reason = "the example is a program of its own; its fold and its workload are used here"
)]
#[path = "../../examples/loans.rs"]
mod loans;

#[path = "daemon/counting.rs"]
mod counting;
#[path = "daemon/memory.rs"]
mod memory;
#[path = "daemon/soak.rs"]
mod soak;

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use bytes::Bytes;
use eventstore::{
    Client, PersistentSubscriptionOptions, ReadStreamOptions, StreamPosition, SubscribeToPersistentSubscriptionOptions,
};
use projector::{
    app::{self, Connections},
    event::codec,
    journal::{Expected, Journal as _, NewEvent},
    replica::ReplicaStore as _,
    traces::{Traces, counted},
};
use serde_json::json;
use uuid::Uuid;

use loans::{Failure, Loan, Stores, page, peak, say, sum};

/// Deliveries in flight: the daemon's own default.
const BUFFER: usize = 2_000;
/// Events that the server keeps ahead: the daemon's own default.
const SERVER_BUFFER: i32 = 4_000;
/// The argument that makes a process the stores.
const STORES: &str = "stores";
/// Acknowledged together by the raw drain.
const ACKS: usize = 100;
/// Live events that are timed: enough for a 99th percentile.
const LIVE: usize = 500;
/// Between two looks whether the backlog is done: a look gathers all metrics, and is no work of the
/// daemon's own.
const LOOK: Duration = Duration::from_millis(50);
/// For the spans that are left.
const LAST_TRACES: Duration = Duration::from_secs(5);

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["import", ..] => return projector::cli::main(projector::projection::Registry::with::<Loan>),
        [STORES, folder] => run_stores(Path::new(folder)),
        [memory::DAEMON, connection, endpoint] => memory::daemon(connection.to_owned(), endpoint.to_owned()),
        [soak::WORKER, connection, endpoint, seed] => seed
            .parse()
            .map_err(Into::into)
            .and_then(|seed| soak::work(connection.to_owned(), endpoint.to_owned(), seed)),
        [mode @ ("memory" | "soak"), ref sizes @ ..] => measured(mode, sizes),
        _ => bench(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            loans::complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The stores as a process. Killed when dropped.
struct Apart(std::process::Child);

impl Apart {
    fn start(folder: &Path) -> Result<(Self, Stores), Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(STORES)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = process.stdout.take().ok_or("the stores have no output")?;
        let apart = Self(process);
        let mut lines = BufReader::new(said).lines();
        let mut next = || lines.next().ok_or("the stores ended without saying where they are");
        let (connection, endpoint) = (next()??, next()??);
        Ok((apart, Stores::elsewhere(connection, endpoint)))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // One that has ended by itself is as dead.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The stores' process: says where they are, runs until its input ends.
#[tokio::main]
async fn run_stores(folder: &Path) -> Result<(), Failure> {
    // On disk and synced, as a real node's log is.
    let mut stores = Stores::durable(folder).await?;
    say(&stores.connection);
    say(&stores.endpoint);
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop)).await?;
    stores.stop().await;
    Ok(())
}

/// Processor time so far, in seconds, as `/proc` tells it of a process or a thread; none where there is no
/// `/proc`.
fn ticked(stat: &Path) -> f64 {
    // Linux counts it in hundredths of a second.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(stat).unwrap_or_default();
    // The second field is the program's name in parentheses and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
    (ticks(14).unwrap_or_default() + ticks(15).unwrap_or_default()) / TICKS
}

/// Processor time so far, in seconds: of this process, and of the stores' process by store.
#[derive(Clone, Copy)]
struct Spent {
    here: f64,
    events: f64,
    replicas: f64,
}

impl Spent {
    fn by_now(stores: u32) -> Self {
        let process = PathBuf::from(format!("/proc/{stores}"));
        let threads = std::fs::read_dir(process.join("task")).into_iter().flatten().flatten();
        // Each store names its threads. Those of the other may have ended, and are in the whole only.
        let replicas = threads.map(|thread| thread.path()).filter(|thread| {
            let name = std::fs::read_to_string(thread.join("comm"));
            name.is_ok_and(|name| name.trim_end() == "dynamodb")
        });
        let replicas = replicas.map(|thread| ticked(&thread.join("stat"))).sum();
        Self {
            here: ticked(Path::new("/proc/self/stat")),
            events: ticked(&process.join("stat")) - replicas,
            replicas,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            here: self.here - before.here,
            events: self.events - before.events,
            replicas: self.replicas - before.replicas,
        }
    }

    fn whole(self) -> f64 {
        self.here + self.events + self.replicas
    }

    /// Beside what is measured, in microseconds an event, and how much of the machine all of it took.
    fn beside(self, count: usize, seconds: f64) -> String {
        let micros = 1e6 / count as f64;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!(
            "beside it the EventStoreDB server {:.1} µs and DynamoDB {:.1} µs an event; together {:.0} % of {cores} cores",
            self.events * micros,
            self.replicas * micros,
            100.0 * self.whole() / seconds / cores as f64
        )
    }
}

fn folder() -> Result<PathBuf, Failure> {
    let folder = std::env::temp_dir().join(format!("projector-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[tokio::main]
async fn measured(mode: &str, sizes: &[&str]) -> Result<(), Failure> {
    let size = |at: usize| sizes.get(at).map(|size| size.parse::<u64>()).transpose();
    let (first, second) = (size(0)?, size(1)?);
    let folder = folder()?;
    let ended = match mode {
        "memory" => memory::bench(&folder, first, second).await,
        _ => soak::soak(&folder, first, second).await,
    };
    // What stays behind in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    ended
}

#[tokio::main]
async fn bench() -> Result<(), Failure> {
    let folder = folder()?;
    let events: PathBuf = match std::env::args_os().nth(1) {
        Some(file) => file.into(),
        None => loans::made_up(&folder, 13_087, 1)?.0,
    };
    let (apart, stores) = Apart::start(&folder)?;
    let (settings, planned) = loans::settings(&stores, None)?;
    let traces = Traces::from_env("bench-daemon")?;
    if let Some(traces) = &traces {
        traces.trace_deliveries();
    }
    say(&format!("resident before anything: {} MiB", resident()));

    say(&loans::import(&stores.connection, &events)?);
    say(&format!(
        "resident with the events: {} MiB, of the stores",
        loans::resident(apart.0.id()).unwrap_or_default() >> 20
    ));

    let spent = || Spent::by_now(apart.0.id());
    let before = spent();
    let (count, raw) = raw_drain(&stores.connection).await?;
    let (bare, micros) = (spent().since(before), 1e6 / count as f64);
    say(&format!(
        "raw drain, received and acknowledged only: {count} events in {raw:.2} s, {:.0} events/s, {:.1} µs of processor an event; {}",
        count as f64 / raw,
        bare.here * micros,
        bare.beside(count, raw)
    ));

    let before = spent();
    let began = Instant::now();
    let daemon = app::start(&settings, planned.clone()).await?;
    let address = daemon.address.to_string();
    loop {
        // Not by the page: its making is no work of the daemon's own.
        let metrics = daemon.metrics.render();
        if sum(&metrics, "projector_durable_age_seconds_count", "") >= count as f64 {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let (whole, took) = (began.elapsed().as_secs_f64(), spent().since(before));
    let metrics = page(&address, "/metrics").await.unwrap_or_default();
    say(&format!(
        "daemon, every replica durable: {count} events in {whole:.2} s, {:.0} events/s: {:.2} of the raw drain, {:.1} µs of processor an event, {:.3} writes an event, {:.0} gap reads with {:.0} events",
        count as f64 / whole,
        raw / whole,
        took.here * micros,
        sum(&metrics, "projector_writes_total", "outcome=\"done\"") / count as f64,
        sum(&metrics, "projector_gap_reads_total", ""),
        sum(&metrics, "projector_gap_events_total", ""),
    ));
    say(&took.beside(count, whole));
    // All of them share the cores: a daemon that took no more than the raw drain's client would come so far.
    let least = Spent {
        here: bare.here,
        ..took
    };
    say(&format!(
        "a daemon that did nothing but receive and acknowledge, the stores' work the same: {:.2} of the raw drain",
        raw / (whole * least.whole() / took.whole())
    ));
    say(&format!(
        "resident after it, the daemon and this bench: {} MiB, peak {} MiB",
        resident(),
        peak(std::process::id()).unwrap_or_default() >> 20
    ));
    while !loans::caught_up(&address).await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    live(&settings, &planned).await?;
    daemon.stop().await;
    drop(apart);
    if let Some(sent) = traces {
        tokio::task::spawn_blocking(move || sent.close(LAST_TRACES)).await?;
        say(&format!("spans: {:?}", counted()));
    }
    // What stays behind in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}

/// What is resident here, in MiB.
fn resident() -> u64 {
    loans::resident(std::process::id()).unwrap_or_default() >> 20
}

async fn raw_drain(connection: &str) -> Result<(usize, f64), Failure> {
    let client = Client::new(connection.parse()?)?;
    let settings = PersistentSubscriptionOptions::default()
        .start_from(StreamPosition::Start)
        .resolve_link_tos(true)
        .history_buffer_size(SERVER_BUFFER)
        .live_buffer_size(SERVER_BUFFER)
        .read_batch_size(100);
    client
        .create_persistent_subscription("$ce-loan", "raw", &settings)
        .await?;
    let backwards = ReadStreamOptions::default()
        .position(StreamPosition::End)
        .backwards()
        .max_count(1);
    let mut newest = client.read_stream("$ce-loan", &backwards).await?;
    let last = newest
        .next()
        .await?
        .ok_or("the category is empty")?
        .get_original_event()
        .revision;
    let options = SubscribeToPersistentSubscriptionOptions::default().buffer_size(BUFFER);
    let began = Instant::now();
    let mut subscription = client
        .subscribe_to_persistent_subscription("$ce-loan", "raw", &options)
        .await?;
    let mut acks = Vec::with_capacity(ACKS);
    let mut count = 0;
    loop {
        let event = subscription.next().await?;
        count += 1;
        let original = event.get_original_event();
        let revision = original.revision;
        acks.push(original.id);
        if acks.len() == ACKS || revision == last {
            subscription.ack_ids(std::mem::take(&mut acks)).await?;
        }
        if revision == last {
            return Ok((count, began.elapsed().as_secs_f64()));
        }
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

fn told(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    say(&format!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms",
        percentile(&times, 50),
        percentile(&times, 99)
    ));
}

async fn live(settings: &projector::config::Settings, planned: &[projector::config::Planned]) -> Result<(), Failure> {
    let stores = Connections::new(settings).await?;
    let table = stores.table(&planned[0], None);
    let event = || -> Result<NewEvent, Failure> {
        let activity = codec::AnyEvent {
            kind: "A_SUBMITTED".to_owned(),
            body: json!({ "transition": "COMPLETE", "resource": "1", "at": "2026-01-01T00:00:00Z" }),
        };
        let body = codec::encode(&activity)?;
        Ok(NewEvent {
            id: Uuid::new_v4(),
            kind: body.kind,
            json: true,
            data: body.data,
            metadata: Bytes::new(),
        })
    };
    let deadline = Duration::from_secs(5);
    let (mut appends, mut durable) = (Vec::new(), Vec::new());
    for index in 0..LIVE {
        let stream = format!("loan-live-{}", index % 50);
        let version = u64::try_from(index / 50)?;
        let began = Instant::now();
        stores
            .journal
            .append(
                &stream,
                if version == 0 {
                    Expected::NoStream
                } else {
                    Expected::Exact(version - 1)
                },
                vec![event()?],
                deadline,
            )
            .await?;
        appends.push(began.elapsed());
        // Without a pause: a timer's steps of a millisecond would be half of what is measured.
        while table
            .get(&stream, true)
            .await?
            .is_none_or(|replica| replica.header.version < Some(version))
        {}
        durable.push(began.elapsed());
    }
    told("live, append called to replica durable", durable);
    told("one append alone", appends);
    told("one put alone", puts(&stores.dynamo).await?);
    Ok(())
}

/// Puts of a small item, one after another, into a table of their own.
async fn puts(client: &aws_sdk_dynamodb::Client) -> Result<Vec<Duration>, Failure> {
    let key = AttributeDefinition::builder()
        .attribute_name("pk")
        .attribute_type(ScalarAttributeType::S)
        .build()?;
    let schema = KeySchemaElement::builder()
        .attribute_name("pk")
        .key_type(KeyType::Hash)
        .build()?;
    client
        .create_table()
        .table_name("bench-puts")
        .attribute_definitions(key)
        .key_schema(schema)
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await?;
    let mut times = Vec::with_capacity(LIVE);
    for index in 0..LIVE {
        let began = Instant::now();
        client
            .put_item()
            .table_name("bench-puts")
            .item("pk", AttributeValue::S(format!("loan-{}", index % 50)))
            .item("version", AttributeValue::N(index.to_string()))
            .send()
            .await?;
        times.push(began.elapsed());
    }
    Ok(times)
}
