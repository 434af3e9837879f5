//! What the embedded EventStoreDB reaches beside a real one, row by row:
//!
//! ```text
//! cargo run --release --example bench-eventstore -- [EVENTS.jsonl.gz] [--only PREFIX]
//! ```
//!
//! The server is a process of its own with its log on disk, synced at every commit; it and the client
//! share the machine, as they did when the real one was measured. `--only` runs the rows whose id
//! begins so (`drain`, `append/1`). Without a file it makes the loans example's workload up.

#[path = "eventstore/by_hand.rs"]
mod by_hand;
#[path = "eventstore/calls.rs"]
mod calls;
#[path = "eventstore/drains.rs"]
mod drains;
#[allow(
    dead_code,
    reason = "the example is a program of its own; its fold and its workload are used here"
)]
#[path = "../../examples/loans.rs"]
mod loans;
#[allow(
    dead_code,
    reason = "the library's own way to TCP_NODELAY; the bench connects once and never doubts"
)]
#[path = "../../src/journal/esdb/nodelay.rs"]
mod nodelay;
#[path = "eventstore/server.rs"]
mod server;
#[path = "eventstore/table.rs"]
mod table;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;

use loans::{Failure, say};
use server::{Server, Sockets};
use table::Table;

/// Applications made up without a file: about as many events as the real ones.
const MADE_UP: usize = 13_087;
/// Starts that are timed; the median is told.
const STARTS: usize = 5;
/// Writes by which the disk is judged.
const SYNCS: usize = 200;

#[derive(Debug, Parser)]
#[command(about = "Measure the embedded EventStoreDB beside a real one's figures")]
struct Args {
    /// Events, one JSON object a line, plain or gzipped; none makes a workload up.
    events: Option<PathBuf>,
    /// Only the rows whose id begins so.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    only: String,
}

fn main() -> ExitCode {
    // The same executable is stack and importer when it is started with their names.
    if let Some("stack" | "import") = std::env::args().nth(1).as_deref() {
        return projector::cli::main(projector::projection::Registry::with::<loans::Loan>);
    }
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            loans::complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn bench(args: &Args) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("projector-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let ended = rows(args, &folder).await;
    // What stays behind in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    ended
}

async fn rows(args: &Args, folder: &Path) -> Result<(), Failure> {
    let mut table = Table::new(&args.only)?;
    say(&format!(
        "cores: {}; load before: {}; a write of 4 KiB and its sync here: p50 {:.2} ms",
        std::thread::available_parallelism()?,
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
        sync_of(folder)? * 1e3,
    ));
    let data = folder.join("stack");
    let mut server = Server::start(Some(&data))?;
    // An answered call first: what a client's first call makes is not left out.
    server.client(Sockets::NoDelay).await?;
    table.tell("memory/empty", server.resident()? as f64 / MEBIBYTE)?;
    if table.wants(&[
        "memory/loans",
        "start",
        "drain",
        "filtered",
        "strategy",
        "read",
        "by-hand",
    ]) {
        let events = match &args.events {
            Some(file) => file.clone(),
            None => loans::made_up(folder, MADE_UP, 1)?.0,
        };
        say(&loans::import(&server.stack.connection, &events)?);
        table.tell("memory/loans", server.resident()? as f64 / MEBIBYTE)?;
    }
    if table.wants(&["start"]) {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            server.stack.kill();
            let began = Instant::now();
            server = Server::start(Some(&data))?;
            server.answers().await?;
            times.push(began.elapsed());
        }
        table.tell("start", median(&mut times))?;
    }
    table.head();
    drains::measure(&mut table, &server).await?;
    table.tell("memory/drained", server.resident()? as f64 / MEBIBYTE)?;
    calls::measure(&mut table, &server).await?;
    by_hand::measure(&mut table, &server).await?;
    table.tell("memory/peak", server.peak()? as f64 / MEBIBYTE)?;
    table.end()
}

/// A mebibyte, as memory is told.
const MEBIBYTE: f64 = 1_048_576.0;

/// What the disk takes for the least that an append needs, in seconds.
fn sync_of(folder: &Path) -> Result<f64, Failure> {
    let mut file = std::fs::File::create(folder.join("sync"))?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    Ok(median(&mut times))
}

/// The percentile of these times, in seconds.
fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, Duration::as_secs_f64)
}

fn median(times: &mut [Duration]) -> f64 {
    percentile(times, 50)
}
