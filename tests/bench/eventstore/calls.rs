//! Reads and appends: how many, and how long one takes.

use std::time::{Duration, Instant};

use eventstore::{
    AppendToStreamOptions, Client, Error, EventData, ExpectedRevision, ReadAllOptions, ReadStreamOptions,
    StreamPosition,
};
use serde_json::json;

use super::{
    loans::Failure,
    median,
    server::{Server, Sockets},
    table::Table,
};

/// Records of `$all` that are read: as many as of the real server.
const ALL: usize = 300_000;
/// How long writers write: some hundred commits even by one of them.
const WRITING: Duration = Duration::from_secs(3);
/// Calls timed one after another; fewer where each waits 40 ms.
const CALLS: usize = 500;
const SLOW_CALLS: usize = 40;
/// Not timed: connections, caches and statements come to life.
const WARM: usize = 10;
/// Events in a call when a long stream is made: a call is limited to 1 MiB.
const AT_ONCE: usize = 1_000;
/// Events of a whole stream that is appended by one call.
const WHOLE: usize = 20;
/// Who append whole streams.
const STREAM_WRITERS: usize = 16;

/// An event of the size of the loans' own.
pub(super) fn event() -> Result<EventData, Failure> {
    let data = json!({ "transition": "COMPLETE", "resource": "10909", "at": "2026-01-01T00:00:00.000+01:00" });
    Ok(EventData::json("W_MEASURED", &data)?)
}

pub(super) async fn measure(table: &mut Table, server: &Server) -> Result<(), Failure> {
    if table.wants_row("read/all") {
        let client = server.client(Sockets::NoDelay).await?;
        let options = ReadAllOptions::default().position(StreamPosition::Start).max_count(ALL);
        let began = Instant::now();
        let mut read = client.read_all(&options).await?;
        let mut count = 0;
        while read.next().await?.is_some() {
            count += 1;
        }
        table.tell("read/all", f64::from(count) / began.elapsed().as_secs_f64())?;
    }
    if table.wants_row("read/links") {
        let client = server.client(Sockets::NoDelay).await?;
        let (count, time) = replay(&client, "$ce-loan").await?;
        table.tell("read/links", count as f64 / time.as_secs_f64())?;
    }
    for (sockets, kind) in [(Sockets::NoDelay, "append"), (Sockets::Nagle, "append-nagle")] {
        for (writers, ids) in [
            (1, ["append/1", "append-nagle/1"]),
            (32, ["append/32", "append-nagle/32"]),
            (128, ["append/128", "append-nagle/128"]),
        ] {
            let id = ids[usize::from(sockets == Sockets::Nagle)];
            if table.wants_row(id) {
                let client = server.client(sockets).await?;
                let rate = appends(&client, kind, writers, 1).await?;
                table.tell(id, rate)?;
            }
        }
    }
    if table.wants_row("streams") {
        let client = server.client(Sockets::NoDelay).await?;
        let rate = appends(&client, "whole", STREAM_WRITERS, WHOLE).await?;
        table.tell("streams", rate * WHOLE as f64)?;
    }
    if table.wants(&["latency/"]) {
        let client = server.client(Sockets::NoDelay).await?;
        let [append, conflict, tail] = latencies(&client, "latency", CALLS).await?;
        table.tell("latency/append", append)?;
        table.tell("latency/conflict", conflict)?;
        table.tell("latency/tail", tail)?;
    }
    if table.wants(&["latency-nagle/"]) {
        let client = server.client(Sockets::Nagle).await?;
        let [append, conflict, tail] = latencies(&client, "nagle", SLOW_CALLS).await?;
        table.tell("latency-nagle/append", append)?;
        table.tell("latency-nagle/conflict", conflict)?;
        table.tell("latency-nagle/tail", tail)?;
    }
    for (id, events, times) in [
        ("replay/10", 10, 200),
        ("replay/100", 100, 100),
        ("replay/1000", 1_000, 30),
        ("replay/10000", 10_000, 9),
        ("replay/100000", 100_000, 3),
    ] {
        if table.wants_row(id) {
            let client = server.client(Sockets::NoDelay).await?;
            table.tell(id, replays(&client, events, times).await?)?;
        }
    }
    Ok(())
}

/// Appends by so many writers, each to streams of its own, over one connection: calls a second.
async fn appends(client: &Client, kind: &str, writers: usize, events: usize) -> Result<f64, Failure> {
    let began = Instant::now();
    let until = began + WRITING;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let client = client.clone();
        let category = format!("{kind}{writers}");
        tasks.spawn(async move {
            let mut count = 0_u64;
            while Instant::now() < until {
                // One event each goes to the writer's one stream, whole streams are new each time.
                let (stream, expected) = if events == 1 {
                    (format!("{category}-{writer}"), ExpectedRevision::Any)
                } else {
                    (format!("{category}-{writer}_{count}"), ExpectedRevision::NoStream)
                };
                let events = (0..events).map(|_| event()).collect::<Result<Vec<_>, _>>()?;
                let options = AppendToStreamOptions::default().expected_revision(expected);
                client.append_to_stream(&*stream, &options, events).await?;
                count += 1;
            }
            Ok::<_, Failure>(count)
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done??;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

/// Medians of an append, a conflict, and a read of the three newest of a stream's events.
async fn latencies(client: &Client, category: &str, calls: usize) -> Result<[f64; 3], Failure> {
    let stream = format!("{category}-1");
    let (mut appends, mut conflicts, mut tails) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..WARM + calls {
        let revision = (index as u64).checked_sub(1);
        let expected = revision.map_or(ExpectedRevision::NoStream, ExpectedRevision::Exact);
        let options = AppendToStreamOptions::default().expected_revision(expected);
        let data = event()?;
        let began = Instant::now();
        client.append_to_stream(&*stream, &options, data).await?;
        appends.push(began.elapsed());
    }
    let last = (WARM + calls) as u64 - 1;
    for _ in 0..WARM + calls {
        let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Exact(last - 3));
        let data = event()?;
        let began = Instant::now();
        match client.append_to_stream(&*stream, &options, data).await {
            Err(Error::WrongExpectedVersion { .. }) => conflicts.push(began.elapsed()),
            other => return Err(format!("no conflict but {other:?}").into()),
        }
        let options = ReadStreamOptions::default()
            .position(StreamPosition::Position(last - 2))
            .forwards();
        let began = Instant::now();
        let mut read = client.read_stream(&*stream, &options).await?;
        let mut count = 0;
        while read.next().await?.is_some() {
            count += 1;
        }
        tails.push(began.elapsed());
        if count != 3 {
            return Err(format!("a tail of {count} events, not 3").into());
        }
    }
    Ok([appends, conflicts, tails].map(|mut times| median(&mut times[WARM..])))
}

/// The median of so many replays of a stream of so many events.
async fn replays(client: &Client, events: usize, times: usize) -> Result<f64, Failure> {
    let stream = format!("replay-{events}");
    let mut left = events;
    while left > 0 {
        let some = (0..left.min(AT_ONCE)).map(|_| event()).collect::<Result<Vec<_>, _>>()?;
        left -= some.len();
        client
            .append_to_stream(&*stream, &AppendToStreamOptions::default(), some)
            .await?;
    }
    let mut taken = Vec::with_capacity(times);
    for _ in 0..times {
        let (count, time) = replay(client, &stream).await?;
        if count != events {
            return Err(format!("{stream} has {count} events, not {events}").into());
        }
        taken.push(time);
    }
    Ok(median(&mut taken))
}

/// Reads a stream from its start to its end.
async fn replay(client: &Client, stream: &str) -> Result<(usize, Duration), Failure> {
    let options = ReadStreamOptions::default().position(StreamPosition::Start);
    let began = Instant::now();
    let mut read = client.read_stream(stream, &options).await?;
    let mut count = 0;
    while read.next().await?.is_some() {
        count += 1;
    }
    Ok((count, began.elapsed()))
}
