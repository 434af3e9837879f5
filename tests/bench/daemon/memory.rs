//! What a daemon with its default settings takes for many streams, projected from nothing:
//!
//! ```text
//! cargo run --release --example bench-daemon -- memory [STREAMS] [BYTES]
//! ```
//!
//! The stores are here, the daemon is a process of its own: this executable once more, with a counting
//! allocator. Ends with an error when it took more than [`MOST`], or when `projector_cache_bytes` is not
//! what its heap holds more than at the daemon's start, which is the cache and little else.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use projector::{
    app,
    config::{Connection, CreateTables, Inputs, Settings},
    event::{Recorded, codec::AnyEvent},
    projection::{Change, Projection, Registry},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    counting,
    loans::{self, Failure, Stores, page, peak, say, sum},
};

/// The argument that makes a process the daemon.
pub(crate) const DAEMON: &str = "memory-daemon";
/// As the issue has it.
const STREAMS: u64 = 150_000;
/// As the issue has it.
const BYTES: u64 = 4_000;
/// What a daemon may take, in bytes.
const MOST: u64 = 256_000_000;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks of the daemon at its own heap.
const LOOK_AT_HEAP: Duration = Duration::from_millis(5);
/// Between two lines on how far it is.
const SAY: Duration = Duration::from_secs(30);

/// Many small members, as a projection of one's own holds them: decoded they take a multiple of
/// their text.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Held(std::collections::BTreeMap<String, String>);

impl Projection for Held {
    const NAME: &'static str = "held";
    type Event = AnyEvent<Self>;
    type View = Self;

    fn project(view: &mut Self, event: Recorded<Self::Event>) -> Change {
        view.0.extend(event.event.body.0);
        Change::Put
    }
}

fn written(folder: &Path, streams: u64, bytes: u64) -> Result<std::path::PathBuf, Failure> {
    let file = folder.join("held.jsonl");
    let mut out = BufWriter::new(File::create(&file)?);
    let members = (0..bytes.div_ceil(32)).map(|n| (format!("member-{n:03}"), json!(format!("value {n:010}"))));
    let state: serde_json::Map<_, _> = members.collect();
    for stream in 0..streams {
        writeln!(
            out,
            "{}",
            json!({ "stream": format!("held-{stream}"), "type": "Held", "data": state })
        )?;
    }
    out.flush()?;
    Ok(file)
}

/// Runs one size. Its folder is the caller's to remove.
pub(crate) async fn bench(folder: &Path, streams: Option<u64>, bytes: Option<u64>) -> Result<(), Failure> {
    let (streams, bytes) = (streams.unwrap_or(STREAMS), bytes.unwrap_or(BYTES));
    let mut stores = Stores::durable(folder).await?;
    let file = written(folder, streams, bytes)?;
    say(&loans::import(&stores.connection, &file)?);
    std::fs::remove_file(file)?;

    let began = Instant::now();
    let mut daemon = Daemon::start(&stores)?;
    let (mut said, mut held) = (Instant::now(), 0.0_f64);
    loop {
        let metrics = page(&daemon.address, "/metrics").await.unwrap_or_default();
        held = held.max(sum(&metrics, "projector_memory_bytes", ""));
        let done = sum(&metrics, "projector_durable_age_seconds_count", "");
        if done >= streams as f64 && loans::caught_up(&daemon.address).await {
            break;
        }
        if said.elapsed() >= SAY {
            said = Instant::now();
            let peak = megabytes(daemon.peak()?);
            say(&format!(
                "{done:.0} of {streams} durable, resident at most {peak:.0} MB"
            ));
        }
        if daemon.process.try_wait()?.is_some() {
            return Err("the daemon has ended".into());
        }
        tokio::time::sleep(LOOK).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    say(&format!(
        "{streams} streams with states of {bytes} bytes, projected in {seconds:.0} s, {:.0} a second",
        streams as f64 / seconds
    ));
    let metrics = page(&daemon.address, "/metrics")
        .await
        .ok_or("the daemon has no metrics")?;
    let cached = sum(&metrics, "projector_cache_bytes", "");
    let resident = loans::resident(daemon.process.id()).ok_or("the daemon has no memory")?;
    let most = daemon.peak()?;
    say(&format!(
        "resident: {:.1} MB at most, {:.1} MB at its end; bound {:.0} MB",
        megabytes(most),
        megabytes(resident),
        megabytes(MOST)
    ));
    let heap = daemon.end()?;
    say(&format!(
        "heap: {:.1} MB at most, {:.1} MB at its end; projector_memory_bytes {:.1} MB at most",
        heap.most / 1e6,
        heap.with / 1e6,
        held / 1e6
    ));
    let grown = heap.with - heap.fresh;
    say(&format!(
        "projector_cache_bytes {:.1} MB; the heap holds {:.1} MB more than when the daemon was started: {:.2} of it",
        cached / 1e6,
        grown / 1e6,
        cached / grown
    ));
    stores.stop().await;
    if most > MOST {
        return Err("the daemon took more memory than it may".into());
    }
    if (cached - grown).abs() > grown / 5.0 {
        return Err("projector_cache_bytes is not within a fifth of what the heap shows".into());
    }
    Ok(())
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The daemon as a process. Killed when dropped.
struct Daemon {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: String,
}

/// Bytes of the daemon's heap, by its allocator.
struct Heap {
    with: f64,
    fresh: f64,
    most: f64,
}

impl Daemon {
    fn start(stores: &Stores) -> Result<Self, Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([DAEMON, &stores.connection, &stores.endpoint])
            // Symbols that a backtrace has loaded stay, and are nobody's leak.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("the daemon has no output")?).lines();
        let address = lines.next().ok_or("the daemon ended without saying where it is")??;
        Ok(Self {
            process,
            lines,
            address,
        })
    }

    fn peak(&self) -> Result<u64, Failure> {
        Ok(peak(self.process.id()).ok_or("there is no /proc to read memory from")?)
    }

    fn end(&mut self) -> Result<Heap, Failure> {
        // It ends with its input.
        drop(self.process.stdin.take());
        let mut next = || -> Result<f64, Failure> {
            Ok(self
                .lines
                .next()
                .ok_or("the daemon ended without its figures")??
                .parse()?)
        };
        Ok(Heap {
            with: next()?,
            fresh: next()?,
            most: next()?,
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended by itself is as dead.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The most that the heap was seen to hold.
static MOST_LIVE: AtomicI64 = AtomicI64::new(0);

/// The daemon's process: says where it is, runs until its input ends, says what its heap held.
#[tokio::main]
pub(crate) async fn daemon(connection: String, endpoint: String) -> Result<(), Failure> {
    counting::count();
    std::thread::spawn(|| {
        loop {
            MOST_LIVE.fetch_max(counting::live(), Ordering::Relaxed);
            std::thread::sleep(LOOK_AT_HEAP);
        }
    });
    let mut settings = Settings::load(&Inputs::default())?;
    settings.eventstore.connection = Connection(connection);
    settings.dynamodb.endpoint = Some(endpoint);
    settings.dynamodb.create_tables = CreateTables::Plain;
    settings.http.listen.set_port(0);
    let planned = settings.plan(&Registry::new("bench").with::<Held>()?)?;
    let daemon = app::start(&settings, planned).await?;
    say(&daemon.address.to_string());
    let fresh = counting::live();
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop)).await?;
    let with = counting::live();
    daemon.stop().await;
    say(&with.to_string());
    say(&fresh.to_string());
    say(&MOST_LIVE.load(Ordering::Relaxed).to_string());
    Ok(())
}
