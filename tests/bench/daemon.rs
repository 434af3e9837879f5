//! What the daemon costs beside what it stands on, all in one run:
//!
//! ```text
//! cargo run --release --example bench-daemon -- [EVENTS.jsonl.gz]
//! cargo run --release --example bench-daemon -- memory [STREAMS] [BYTES]
//! cargo run --release --example bench-daemon -- soak [SECONDS] [SEED]
//! ```
//!
//! A backlog drained raw (received and acknowledged, nothing else), then by the daemon; a live stream,
//! append called to replica durable, beside one append and one put alone; memory before and after.
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
    path::PathBuf,
    process::ExitCode,
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
};
use serde_json::json;
use uuid::Uuid;

use loans::{Failure, Loan, Stores, page, peak, say, sum};

/// Deliveries in flight: the daemon's own default.
const BUFFER: usize = 2_000;
/// Acknowledged together by the raw drain.
const ACKS: usize = 100;
/// Live events that are timed: enough for a 99th percentile.
const LIVE: usize = 500;
/// Between two looks whether a replica is there: below what is measured.
const LOOK: Duration = Duration::from_micros(200);

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["import", ..] => return projector::cli::main(projector::projection::Registry::with::<Loan>),
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
    // On disk and synced, as a real node's log is.
    let mut stores = Stores::durable(&folder).await?;
    let (settings, planned) = loans::settings(&stores, None)?;
    say(&format!("resident before anything: {} MiB", resident()));

    say(&loans::import(&stores.connection, &events)?);
    say(&format!("resident with the events: {} MiB", resident()));

    let (count, raw) = raw_drain(&stores.connection).await?;
    say(&format!(
        "raw drain, received and acknowledged only: {count} events in {raw:.2} s, {:.0} events/s",
        count as f64 / raw
    ));

    let began = Instant::now();
    let daemon = app::start(&settings, planned.clone()).await?;
    let address = daemon.address.to_string();
    loop {
        let metrics = page(&address, "/metrics").await.unwrap_or_default();
        if sum(&metrics, "projector_durable_age_seconds_count", "") >= count as f64 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let whole = began.elapsed().as_secs_f64();
    let metrics = page(&address, "/metrics").await.unwrap_or_default();
    say(&format!(
        "daemon, every replica durable: {count} events in {whole:.2} s, {:.0} events/s: {:.2} of the raw drain, {:.3} writes an event, {:.0} gap reads with {:.0} events",
        count as f64 / whole,
        raw / whole,
        sum(&metrics, "projector_writes_total", "outcome=\"done\"") / count as f64,
        sum(&metrics, "projector_gap_reads_total", ""),
        sum(&metrics, "projector_gap_events_total", ""),
    ));
    say(&format!(
        "resident after it, stack and daemon: {} MiB, peak {} MiB",
        resident(),
        peak(std::process::id()).unwrap_or_default() >> 20
    ));
    while !loans::caught_up(&address).await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    live(&settings, &planned).await?;
    daemon.stop().await;
    stores.stop().await;
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
        .history_buffer_size(1_000)
        .live_buffer_size(1_000)
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
        loop {
            let replica = table.get(&stream, true).await?;
            if replica.is_some_and(|replica| replica.header.version >= Some(version)) {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
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
