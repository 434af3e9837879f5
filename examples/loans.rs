//! Loan applications: 262,200 real events folded to 13,087 read models, every one of them checked.
//!
//! ```text
//! cargo run --release --example loans -- EVENTS.jsonl.gz --expect EXPECTED.jsonl.gz
//! cargo run --release --example loans                       # a made-up workload of the same shape
//! cargo run --release --example loans -- --kill 5           # daemon killed five times on the way
//! cargo run --release --example loans -- --daemons 3        # three daemons side by side
//! ```
//!
//! Starts the embedded stack, imports the events, projects them, waits until nothing is left to be
//! settled, and compares each replica's version and state with what is expected. With `--kill` and
//! `--daemons`, stack and daemons are processes of their own.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use projector::{
    app::{self, Connections},
    config::{Connection, CreateTables, Inputs, Planned, Settings, Span},
    document::json,
    embedded::{dynamodb, eventstore},
    event::{Recorded, codec::AnyEvent},
    projection::{Change, Projection, Registry, StoredState},
    replica::ReplicaStore as _,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// One application, as its events have made it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Loan {
    status: Option<String>,
    amount_requested: Option<f64>,
    registered_at: Option<String>,
    offers: BTreeMap<String, u32>,
    work: BTreeMap<String, Work>,
    handled_by: Vec<String>,
    events: u32,
    last_activity: Option<String>,
    last_at: Option<String>,
}

/// One kind of work on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    scheduled: u32,
    started: u32,
    completed: u32,
}

/// What every event of the data set says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Activity {
    transition: String,
    resource: Option<String>,
    at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    amount_requested: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registered_at: Option<String>,
}

impl Projection for Loan {
    const NAME: &'static str = "loan";
    // The types of work are data, not known beforehand: no enum lists them.
    type Event = AnyEvent<Activity>;
    type View = Self;

    fn project(loan: &mut Self, event: Recorded<Self::Event>) -> Change {
        let AnyEvent { kind, body } = event.event;
        if let Some(status) = kind.strip_prefix("A_") {
            loan.status = Some(status.to_owned());
        } else if let Some(offer) = kind.strip_prefix("O_") {
            *loan.offers.entry(offer.to_owned()).or_default() += 1;
        } else if let Some(work) = kind.strip_prefix("W_") {
            let work = loan.work.entry(work.to_owned()).or_default();
            match body.transition.as_str() {
                "SCHEDULE" => work.scheduled += 1,
                "START" => work.started += 1,
                "COMPLETE" => work.completed += 1,
                _ => {}
            }
        }
        if kind == "A_SUBMITTED" {
            loan.amount_requested = body.amount_requested;
            loan.registered_at = body.registered_at;
        }
        if let Some(resource) = body.resource
            && !loan.handled_by.contains(&resource)
        {
            loan.handled_by.push(resource);
        }
        loan.events += 1;
        loan.last_activity = Some(kind);
        loan.last_at = Some(body.at);
        Change::Put
    }
}

#[derive(Debug, Parser)]
#[command(about = "Fold loan applications into replicas and check every one of them")]
struct Args {
    /// Events, one JSON object a line, plain or gzipped; none makes a workload up.
    events: Option<PathBuf>,
    /// What they fold to, one JSON object a line.
    #[arg(long)]
    expect: Option<PathBuf>,
    /// Daemons side by side.
    #[arg(long, default_value_t = 1)]
    daemons: usize,
    /// How often a daemon is killed (SIGKILL) and started again on the way.
    #[arg(long, default_value_t = 0)]
    kill: usize,
    /// Applications that are made up without a file.
    #[arg(long, default_value_t = 1_500)]
    applications: usize,
    /// Of what is made up.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Deliveries a daemon holds at once.
    #[arg(long)]
    buffer: Option<u16>,
}

fn main() -> ExitCode {
    // The same executable is daemon, stack and importer when it is started with their names.
    if let Some("run" | "stack" | "import") = std::env::args().nth(1).as_deref() {
        return projector::cli::main(projector::projection::Registry::with::<Loan>);
    }
    let args = Args::parse();
    match example(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "what an example shows is its output")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "what an example complains of is no output")]
pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}

#[tokio::main]
async fn example(args: &Args) -> Result<bool, Failure> {
    let folder = std::env::temp_dir().join(format!("projector-loans-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let ended = run(args, &folder).await;
    // What stays behind in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    ended
}

async fn run(args: &Args, folder: &Path) -> Result<bool, Failure> {
    let (events, expected) = match (&args.events, &args.expect) {
        (Some(events), expect) => (events.clone(), expect.as_deref().map(expectations).transpose()?),
        (None, Some(_)) => return Err("--expect needs the events that it goes with".into()),
        (None, None) => {
            let (file, expected) = made_up(folder, args.applications, args.seed)?;
            say(&format!(
                "{} applications made up, seed {}",
                args.applications, args.seed
            ));
            (file, Some(expected))
        }
    };
    let apart = args.kill > 0 || args.daemons > 1;
    let mut stores = if apart {
        Stores::apart(folder)?
    } else {
        Stores::inside().await?
    };

    let began = Instant::now();
    let imported = import(&stores.connection, &events)?;
    say(&format!(
        "imported in {:.1} s: {imported}",
        began.elapsed().as_secs_f64()
    ));

    let (settings, planned) = settings(&stores, args.buffer)?;
    let began = Instant::now();
    let outcome = if apart {
        project_apart(args, &stores, began).await?
    } else {
        project_inside(&settings, planned.clone(), began).await?
    };
    say(&outcome.summary());
    let equal = if let Some(expected) = expected {
        compare(&settings, &planned, &expected).await?
    } else {
        say("nothing to compare with: give --expect FILE");
        true
    };
    stores.stop().await;
    Ok(equal)
}

/// Imports a file by this executable's own command: what it said.
pub(crate) fn import(connection: &str, events: &Path) -> Result<String, Failure> {
    let import = Command::new(std::env::current_exe()?)
        .arg("import")
        .arg(events)
        .arg("--quiet")
        .env("PROJECTOR__EVENTSTORE__CONNECTION", connection)
        .output()?;
    if !import.status.success() {
        return Err(format!("the import: {}", String::from_utf8_lossy(&import.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&import.stdout).trim().to_owned())
}

/// Both stores, here or in a process of their own.
pub(crate) struct Stores {
    pub(crate) connection: String,
    pub(crate) endpoint: String,
    inside: Option<(eventstore::Handle, dynamodb::DynamoDbHandle)>,
    apart: Option<Stack>,
}

impl Stores {
    async fn inside() -> Result<Self, Failure> {
        Self::within(eventstore::Options::default()).await
    }

    /// With a log on disk that is synced, as a real node's is.
    #[allow(dead_code, reason = "the bench measures with it")]
    pub(crate) async fn durable(folder: &Path) -> Result<Self, Failure> {
        let data = Some(folder.join("eventstore"));
        Self::within(eventstore::Options {
            data,
            ..eventstore::Options::default()
        })
        .await
    }

    /// Those that another process runs.
    #[allow(dead_code, reason = "the bench measures with it")]
    pub(crate) fn elsewhere(connection: String, endpoint: String) -> Self {
        Self {
            connection,
            endpoint,
            inside: None,
            apart: None,
        }
    }

    async fn within(options: eventstore::Options) -> Result<Self, Failure> {
        let events = eventstore::EventStoreDb::start(options).await?;
        let replicas = dynamodb::DynamoDb::start(dynamodb::Options::default()).await?;
        Ok(Self {
            connection: events.connection_string(),
            endpoint: replicas.endpoint(),
            inside: Some((events, replicas)),
            apart: None,
        })
    }

    fn apart(folder: &Path) -> Result<Self, Failure> {
        let stack = Stack::start(Some(&folder.join("stack")))?;
        Ok(Self {
            connection: stack.connection.clone(),
            endpoint: stack.endpoint.clone(),
            inside: None,
            apart: Some(stack),
        })
    }

    pub(crate) async fn stop(&mut self) {
        if let Some((events, replicas)) = self.inside.take() {
            events.shutdown().await;
            replicas.shutdown().await;
        }
    }
}

/// Both stores in a process of their own. Killed when dropped.
pub(crate) struct Stack {
    process: Child,
    pub(crate) connection: String,
    pub(crate) endpoint: String,
}

impl Stack {
    /// Starts it; it answers when this returns. Without a folder it keeps everything in memory.
    pub(crate) fn start(data: Option<&Path>) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["stack", "--eventstore-port", "0", "--dynamodb-port", "0"]);
        if let Some(data) = data {
            command.arg("--data-dir").arg(data);
        }
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = process.stdout.take().ok_or("the stack has no output")?;
        let mut this = Self {
            process,
            connection: String::new(),
            endpoint: String::new(),
        };
        for line in BufReader::new(out).lines() {
            match line?.split_once('=') {
                Some(("PROJECTOR__EVENTSTORE__CONNECTION", said)) => said.clone_into(&mut this.connection),
                Some(("PROJECTOR__DYNAMODB__ENDPOINT", said)) => said.clone_into(&mut this.endpoint),
                _ => {}
            }
            if !this.connection.is_empty() && !this.endpoint.is_empty() {
                return Ok(this);
            }
        }
        Err("the stack ended without saying where it is".into())
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, as the worst that can come before a start.
    pub(crate) fn kill(&mut self) {
        // One that has ended by itself is as dead.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn settings(stores: &Stores, buffer: Option<u16>) -> Result<(Settings, Vec<Planned>), Failure> {
    let mut settings = Settings::load(&Inputs::default())?;
    settings.eventstore.connection = Connection(stores.connection.clone());
    settings.dynamodb.endpoint = Some(stores.endpoint.clone());
    settings.dynamodb.create_tables = CreateTables::Plain;
    settings.http.listen.set_port(0);
    settings.engine.measure_every = Span(MEASURE_EVERY);
    if let Some(buffer) = buffer {
        settings.defaults.buffer = buffer.into();
    }
    let planned = settings.plan(&Registry::new("loans").with::<Loan>()?)?;
    Ok((settings, planned))
}

/// How often the daemon measures its lag here: the end of the run is seen by it.
const MEASURE_EVERY: Duration = Duration::from_millis(200);
/// Between two looks at a page.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest run: something is wrong beyond it.
const PATIENCE: Duration = Duration::from_mins(10);

/// What a run came to.
#[derive(Default)]
struct Outcome {
    events: f64,
    seconds: f64,
    writes: f64,
    gap_reads: f64,
    gap_events: f64,
    /// Peak resident memory of each process, in bytes.
    peaks: Vec<(String, u64)>,
    kills: usize,
}

impl Outcome {
    fn count(&mut self, metrics: &str) {
        self.events += sum(metrics, "projector_events_applied_total", "");
        self.writes += sum(metrics, "projector_writes_total", "outcome=\"done\"");
        self.gap_reads += sum(metrics, "projector_gap_reads_total", "");
        self.gap_events += sum(metrics, "projector_gap_events_total", "");
    }

    fn summary(&self) -> String {
        let mut text = format!(
            "projected {:.0} events in {:.1} s: {:.0} events/s, {:.3} writes an event, {:.0} gap reads with {:.0} events",
            self.events,
            self.seconds,
            self.events / self.seconds,
            self.writes / self.events.max(1.0),
            self.gap_reads,
            self.gap_events,
        );
        if self.kills > 0 {
            let _ = write!(text, ", {} kills (their counts are lost with them)", self.kills);
        }
        for (who, bytes) in &self.peaks {
            let _ = write!(text, "\npeak memory of the {who}: {} MiB", bytes >> 20);
        }
        text
    }
}

/// A metric's values, summed over its labels; those with this label only, when one is given.
pub(crate) fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let of = |line: &&str| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
    };
    metrics
        .lines()
        .filter(of)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// The most that was resident of a process, in bytes.
pub(crate) fn peak(process: u32) -> Option<u64> {
    memory(process, "VmHWM:")
}

/// What is resident of a process, in bytes.
#[allow(dead_code, reason = "the benches measure it")]
pub(crate) fn resident(process: u32) -> Option<u64> {
    memory(process, "VmRSS:")
}

pub(crate) fn memory(process: u32, kind: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(kind))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

pub(crate) async fn page(address: &str, path: &str) -> Option<String> {
    let answer = reqwest::get(format!("http://{address}{path}")).await.ok()?;
    answer.text().await.ok()
}

/// Whether this daemon says that nothing is left, by its own measure of lag.
pub(crate) async fn caught_up(address: &str) -> bool {
    let Some(text) = page(address, "/status").await else {
        return false;
    };
    let status: Value = serde_json::from_str(&text).unwrap_or_default();
    let projection = &status["projections"][0];
    projection["lag"]["events"] == json!(0) && projection["holding"] == json!(0)
}

async fn project_inside(settings: &Settings, planned: Vec<Planned>, began: Instant) -> Result<Outcome, Failure> {
    let daemon = app::start(settings, planned).await?;
    let address = daemon.address.to_string();
    let mut seconds = 0.0;
    let mut received = -1.0;
    loop {
        let metrics = page(&address, "/metrics").await.unwrap_or_default();
        let now = sum(&metrics, "projector_deliveries_received_total", "");
        if (now - received).abs() > 0.5 {
            // The last that came is the end; what is after it is the checkpoint's and the measure's pace.
            received = now;
            seconds = began.elapsed().as_secs_f64();
        }
        if caught_up(&address).await {
            break;
        }
        if began.elapsed() > PATIENCE {
            let status = page(&address, "/status").await.unwrap_or_default();
            return Err(format!("the daemon does not catch up: {status}").into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut outcome = Outcome {
        seconds,
        ..Outcome::default()
    };
    outcome.count(&page(&address, "/metrics").await.unwrap_or_default());
    if let Some(peak) = peak(std::process::id()) {
        outcome.peaks.push(("whole: stack and daemon".to_owned(), peak));
    }
    daemon.stop().await;
    Ok(outcome)
}

/// A daemon as a process.
struct Task {
    process: Child,
    address: String,
}

impl Task {
    fn start(stores: &Stores, buffer: Option<u16>) -> Result<Self, Failure> {
        // Free now; who takes it in between makes the start fail, loudly.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("run")
            .env("PROJECTOR__EVENTSTORE__CONNECTION", &stores.connection)
            .env("PROJECTOR__DYNAMODB__ENDPOINT", &stores.endpoint)
            .env("PROJECTOR__DYNAMODB__CREATE_TABLES", "plain")
            .env("PROJECTOR__ENGINE__MEASURE_EVERY", "200ms")
            .env("PROJECTOR__HTTP__LISTEN", &address)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(buffer) = buffer {
            command.env("PROJECTOR__DEFAULTS__BUFFER", buffer.to_string());
        }
        Ok(Self {
            process: command.spawn()?,
            address,
        })
    }

    fn kill(&mut self) {
        // SIGKILL: one that has ended by itself is as dead.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn project_apart(args: &Args, stores: &Stores, began: Instant) -> Result<Outcome, Failure> {
    let mut tasks = Vec::new();
    for _ in 0..args.daemons.max(1) {
        tasks.push(Task::start(stores, args.buffer)?);
    }
    let mut kills = 0;
    while kills < args.kill {
        // Killed once it has got something done, so that every kill is in the middle.
        let at = kills % tasks.len();
        loop {
            let metrics = page(&tasks[at].address, "/metrics").await.unwrap_or_default();
            if sum(&metrics, "projector_writes_total", "outcome=\"done\"") > 100.0 {
                break;
            }
            let mut done = true;
            for task in &tasks {
                done &= caught_up(&task.address).await;
            }
            if done || began.elapsed() > PATIENCE {
                return Err(format!("the events were over after {kills} kills; give more events").into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        tasks[at].kill();
        tasks[at] = Task::start(stores, args.buffer)?;
        kills += 1;
        say(&format!("killed and started again: {kills}"));
    }
    loop {
        let mut done = true;
        for task in &tasks {
            done &= caught_up(&task.address).await;
        }
        if done {
            break;
        }
        if began.elapsed() > PATIENCE {
            let status = page(&tasks[0].address, "/status").await.unwrap_or_default();
            return Err(format!("the daemons do not catch up: {status}").into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut outcome = Outcome {
        seconds: began.elapsed().as_secs_f64(),
        kills,
        ..Outcome::default()
    };
    for (index, task) in tasks.iter().enumerate() {
        outcome.count(&page(&task.address, "/metrics").await.unwrap_or_default());
        if let Some(peak) = peak(task.process.id()) {
            outcome.peaks.push((format!("daemon {}", index + 1), peak));
        }
    }
    if let Some(peak) = stores.apart.as_ref().and_then(|stack| peak(stack.id())) {
        outcome.peaks.push(("stack".to_owned(), peak));
    }
    Ok(outcome)
}

/// By stream: version and state.
pub(crate) type Expected = BTreeMap<String, (u64, Value)>;

fn open(file: &Path) -> Result<Box<dyn BufRead>, Failure> {
    let mut bytes = File::open(file).map_err(|error| format!("open {}: {error}", file.display()))?;
    let mut magic = [0; 2];
    let gzipped = bytes.read(&mut magic)? == 2 && magic == [0x1f, 0x8b];
    let bytes = File::open(file)?;
    Ok(if gzipped {
        Box::new(BufReader::new(MultiGzDecoder::new(bytes)))
    } else {
        Box::new(BufReader::new(bytes))
    })
}

fn expectations(file: &Path) -> Result<Expected, Failure> {
    #[derive(Deserialize)]
    struct Line {
        stream: String,
        version: u64,
        state: Value,
    }
    let mut expected = Expected::new();
    for line in open(file)?.lines() {
        let line: Line = serde_json::from_str(&line?)?;
        expected.insert(line.stream, (line.version, line.state));
    }
    Ok(expected)
}

/// Differences that are printed; there may be thousands.
const SHOWN: usize = 5;
/// Replicas read at a time.
const AT_ONCE: usize = 500;

async fn compare(settings: &Settings, planned: &[Planned], expected: &Expected) -> Result<bool, Failure> {
    let table = Connections::new(settings).await?.table(&planned[0], None);
    let streams: Vec<Arc<str>> = expected.keys().map(|stream| stream.as_str().into()).collect();
    let (mut equal, mut shown) = (0, 0);
    for some in streams.chunks(AT_ONCE) {
        let replicas = table.get_many(some, true).await?;
        for (stream, replica) in some.iter().zip(replicas) {
            let (version, state) = &expected[&**stream];
            let difference = match replica? {
                None => Some("it has no replica".to_owned()),
                Some(replica) => {
                    let seen = replica.header.version;
                    let document = match replica.view {
                        Some(StoredState::Document(document)) => document,
                        other => return Err(format!("{stream}: its state is {other:?}").into()),
                    };
                    let differences = json::diff(&json::parse(&state.to_string())?, &document);
                    if seen == Some(*version) {
                        differences.first().map(ToString::to_string)
                    } else {
                        Some(format!("version {seen:?}, expected {version}"))
                    }
                }
            };
            match difference {
                None => equal += 1,
                Some(difference) if shown < SHOWN => {
                    shown += 1;
                    say(&format!("{stream}: {difference}"));
                }
                Some(_) => {}
            }
        }
    }
    say(&format!("{equal} of {} equal", expected.len()));
    Ok(equal == expected.len())
}

/// Applications of the same shape as the real ones, with what they fold to, worked out without the
/// projection.
pub(crate) fn made_up(folder: &Path, applications: usize, seed: u64) -> Result<(PathBuf, Expected), Failure> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let file = folder.join("made-up.jsonl.gz");
    let mut out = GzEncoder::new(BufWriter::new(File::create(&file)?), Compression::fast());
    let mut expected = Expected::new();
    let mut open: Vec<(String, usize)> = Vec::new();
    let (mut begun, mut clock) = (0, 0_u64);
    while begun < applications || !open.is_empty() {
        clock += 1;
        let at = format!(
            "2026-01-{:02}T{:02}:{:02}:00.000+01:00",
            clock / 86_400 % 28 + 1,
            clock / 3_600 % 24,
            clock / 60 % 60
        );
        let begins = begun < applications && (open.is_empty() || dice.u8(..) < 16);
        let index = if begins {
            begun += 1;
            // Between 3 and 40 events, most of them few: as the real ones.
            open.push((format!("loan-{begun}"), 3 + dice.usize(..38) * dice.usize(..38) / 38));
            open.len() - 1
        } else {
            dice.usize(..open.len())
        };
        let stream = open[index].0.clone();
        let resource = (dice.u8(..) < 230).then(|| format!("{}", 10_000 + dice.u32(..60)));
        let (version, state) = expected.entry(stream.clone()).or_insert_with(|| {
            let state = json!({ "status": null, "amountRequested": null, "registeredAt": null, "offers": {}, "work": {}, "handledBy": [], "events": 0, "lastActivity": null, "lastAt": null });
            (0, state)
        });
        let mut data = json!({ "transition": "COMPLETE", "resource": resource, "at": at });
        let kind = if begins {
            let amount = 500 * dice.u32(1..100);
            data["amountRequested"] = json!(amount);
            data["registeredAt"] = json!(at);
            state["amountRequested"] = json!(amount);
            state["registeredAt"] = json!(at);
            state["status"] = json!("SUBMITTED");
            "A_SUBMITTED".to_owned()
        } else {
            *version += 1;
            match dice.u8(..3) {
                0 => {
                    let status = ["PREACCEPTED", "ACCEPTED", "FINALIZED", "APPROVED", "DECLINED"][dice.usize(..5)];
                    state["status"] = json!(status);
                    format!("A_{status}")
                }
                1 => {
                    let offer = ["CREATED", "SENT", "SENT_BACK", "SELECTED"][dice.usize(..4)];
                    let count = state["offers"][offer].as_u64().unwrap_or_default();
                    state["offers"][offer] = json!(count + 1);
                    format!("O_{offer}")
                }
                _ => {
                    let work = ["Afhandelen leads", "Completeren aanvraag", "Nabellen offertes"][dice.usize(..3)];
                    let (transition, field) = [
                        ("SCHEDULE", "scheduled"),
                        ("START", "started"),
                        ("COMPLETE", "completed"),
                    ][dice.usize(..3)];
                    data["transition"] = json!(transition);
                    let known = &mut state["work"][work];
                    if known.is_null() {
                        *known = json!({ "scheduled": 0, "started": 0, "completed": 0 });
                    }
                    known[field] = json!(known[field].as_u64().unwrap_or_default() + 1);
                    format!("W_{work}")
                }
            }
        };
        if let (Some(resource), Some(handled)) = (&resource, state["handledBy"].as_array_mut()) {
            let resource = json!(resource);
            if !handled.contains(&resource) {
                handled.push(resource);
            }
        }
        state["events"] = json!(*version + 1);
        state["lastActivity"] = json!(kind);
        state["lastAt"] = json!(at);
        writeln!(out, "{}", json!({ "stream": stream, "type": kind, "data": data }))?;
        open[index].1 -= 1;
        if open[index].1 == 0 {
            open.swap_remove(index);
        }
    }
    out.finish()?.flush()?;
    Ok((file, expected))
}
