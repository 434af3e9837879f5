//! Whole daemons and writers in one thread, under virtual time, with everything that goes wrong
//! drawn from one seed.
//!
//! The code is the code that runs: engines, sessions, lanes, command repositories with write-through.
//! Only the ports are stood in for (`ports`, `server`), and what happens to them is a schedule: stores
//! unavailable, throttling, lost replies, a deposed leader that still answers, kills, deployments of other
//! code and another schema, deletions, tombstones, revivals, truncation, poison, denials, unreadable
//! items, tables wiped and restored, an older copy of the event store. At the end all faults are over and the newest code runs: then
//! everything must be settled and every replica the fold of its stream, or say why not.
//!
//! A seed reproduces a run to the letter; its digest says so. `SIMULATION=10000` runs as many
//! schedules, `SIMULATION_SEED=7` that one, and prints what happened in it.

mod ports;
mod server;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::{
    ports::{Faults, SimulatedProcess},
    server::Groups,
};
use crate::{
    aggregate::{Aggregate, Command},
    clock,
    command::Committed,
    event::{Event, RawEvent, Revision},
    journal::{Presence, memory::Happened},
    projection::{
        Change, Compiled, Encoded, Fold, FoldError, IN_MEMORY, OnDeletion, OnRevival, Source, State, StateError,
        StoredState, folding::fold_events,
    },
    projector::lanes::HELD_STATES,
    replica::{Header, MarkKind, Put, Replica, item::Body},
    testing::{MemoryJournal, MemoryStore},
};

/// Schedules of an ordinary test run.
const SCHEDULES: u64 = 100;

/// Command ids that a replica keeps.
const COMMANDS: usize = 4;

/// What is asked and answered at one instant at most. All streams of a schedule ask a few hundred
/// times; whoever goes round in a circle asks without end, and time stands still meanwhile.
const AT_ONCE: usize = 20_000;

/// A promise that a store, or the code before it, breaks: what the simulation must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    AckBeforePut,
    NoVersion,
    NoGeneration,
    MarkForgotten,
    HoleWithoutProof,
    /// No put is ever taken, and none is said to be in vain.
    Refuses,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tally {
    seen: Vec<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Entry {
    Added {
        n: u64,
    },
    /// Older code does not know it.
    New {
        n: u64,
    },
}
impl Event for Entry {}

impl Aggregate for Tally {
    const CATEGORY: &'static str = "tally";
    type Event = Entry;

    fn apply(&mut self, event: Entry) {
        let (Entry::Added { n } | Entry::New { n }) = event;
        self.seen.push(n);
    }
}

#[derive(Clone, Debug)]
struct Add(Vec<u64>);

impl Command<Tally> for Add {
    type Error = std::convert::Infallible;

    fn decide(&self, tally: &Tally) -> Result<Vec<Entry>, Self::Error> {
        let known = tally.seen.contains(&u64::MAX);
        assert!(!known, "no such number is ever added");
        Ok(self.0.iter().map(|n| Entry::Added { n: *n }).collect())
    }
}

/// A build: what it is called, what it can fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Code {
    fingerprint: &'static str,
    schema: u32,
    knows_new: bool,
    /// Numbers that a state may have to be storable, in place of an item's limit.
    room: usize,
}

const NEWEST: Code = Code {
    fingerprint: "newest",
    schema: 1,
    knows_new: true,
    room: usize::MAX,
};

const BUILDS: [Code; 5] = [
    Code {
        fingerprint: "old",
        schema: 1,
        knows_new: false,
        room: usize::MAX,
    },
    Code {
        fingerprint: "older",
        schema: 1,
        knows_new: false,
        room: 9,
    },
    Code {
        fingerprint: "new",
        schema: 1,
        knows_new: true,
        room: 20,
    },
    Code {
        fingerprint: "next",
        schema: 2,
        knows_new: true,
        room: usize::MAX,
    },
    NEWEST,
];

struct Coded {
    inner: Compiled<Tally>,
    code: Code,
}

impl Coded {
    fn new(code: Code) -> Self {
        Self {
            inner: Compiled::new(code.fingerprint),
            code,
        }
    }
}

impl Fold for Coded {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn schema(&self) -> u32 {
        self.code.schema
    }
    fn source(&self) -> Source {
        self.inner.source()
    }
    fn fingerprint(&self) -> &str {
        self.code.fingerprint
    }
    fn keeps_commands(&self) -> bool {
        true
    }
    fn initial(&self) -> State {
        self.inner.initial()
    }
    fn apply(&self, state: &mut State, event: &RawEvent) -> Result<Change, FoldError> {
        if &*event.kind == "New" && !self.code.knows_new {
            return Err(FoldError::UnknownKind("New".into()));
        }
        self.inner.apply(state, event)
    }
    fn encode(&self, state: &State) -> Result<Encoded, FoldError> {
        self.inner.encode(state)
    }
    fn decode(&self, view: &StoredState, fold: Option<&StoredState>) -> Result<State, StateError> {
        self.inner.decode(view, fold)
    }
}

/// What a schedule is like, before anything happens.
#[derive(Clone, Debug)]
struct Plan {
    streams: usize,
    tasks: usize,
    writers: usize,
    steps: usize,
    on_deletion: OnDeletion,
    on_revival: OnRevival,
    buffer: usize,
    read_events: usize,
    memory: usize,
    reads: usize,
    writes: usize,
    behind_after: Duration,
    min_write_interval: Duration,
    message_timeout: Duration,
    cache_bytes: u64,
    quarantine_limit: usize,
    pinned: bool,
    /// Reads that are not strongly consistent may be behind.
    stale: bool,
    write_through: bool,
    /// What may happen at all: few kinds at a time meet each other more often.
    kinds: Vec<u8>,
}

impl Plan {
    fn draw(dice: &mut fastrand::Rng, seed: u64) -> Self {
        let mut plan = Self::draw_all(dice);
        // By dice of its own, so that all other seeds stay what they were. A service decides on what a
        // replica of the lost history says until somebody has redriven it (see the guide's chapter on
        // restoring): no writers.
        if plan.writers == 0 && fastrand::Rng::with_seed(!seed).u8(..2) == 0 {
            plan.kinds.push(world::RESTORES);
        }
        plan
    }

    fn draw_all(dice: &mut fastrand::Rng) -> Self {
        let mut pick = |most: usize| dice.usize(..most);
        let (on_deletion, on_revival) = match pick(4) {
            0 => (OnDeletion::Keep, OnRevival::Restart),
            1 => (OnDeletion::Remove, OnRevival::Restart),
            _ => (OnDeletion::Keep, OnRevival::Continue),
        };
        let seconds = |n: usize| Duration::from_secs(n as u64);
        Self {
            streams: 1 + pick(3),
            tasks: 1 + pick(3),
            writers: pick(3),
            steps: 10 + pick(70),
            on_deletion,
            on_revival,
            buffer: 1 + pick(12),
            read_events: 1 + pick(5),
            memory: [2_000, 10_000, 1 << 20][pick(3)],
            reads: 1 + pick(3),
            writes: 1 + pick(6),
            behind_after: seconds(pick(3)),
            min_write_interval: Duration::from_millis([0, 0, 0, 700][pick(4)]),
            message_timeout: seconds(2 + pick(10)),
            cache_bytes: if pick(4) == 0 { 0 } else { 1 << 22 },
            quarantine_limit: if pick(8) == 0 { 1 } else { 1_000 },
            pinned: pick(2) == 0,
            stale: pick(2) == 0,
            write_through: pick(4) > 0,
            kinds: {
                let all = pick(3) == 0;
                (0..world::KINDS).filter(|_| all || pick(100) < 45).collect()
            },
        }
    }

    fn restarts(&self) -> bool {
        self.on_revival == OnRevival::Restart || self.on_deletion == OnDeletion::Remove
    }
}

/// Everything of one run.
struct Sim {
    plan: Plan,
    journal: MemoryJournal,
    tables: [MemoryStore; 2],
    dice: Mutex<fastrand::Rng>,
    faults: Mutex<Faults>,
    groups: Mutex<Groups>,
    denied: Mutex<BTreeSet<String>>,
    trace: Mutex<Trace>,
    failures: Mutex<Vec<String>>,
    told: Mutex<Told>,
    defect: Option<Defect>,
    began: Instant,
}

#[derive(Default)]
struct Trace {
    digest: u64,
    shown: bool,
    /// When its last line was said, and how many were then.
    last: Duration,
    at_once: usize,
}

/// What is known of the run beside what the stores show.
#[derive(Default)]
struct Told {
    numbers: u64,
    /// Numbers whose command was acknowledged, and where.
    acknowledged: BTreeMap<u64, String>,
    /// A mark stood, in a table, on these streams.
    marked: BTreeSet<(u32, String)>,
    /// A table lost what it had acknowledged: by then so much had happened in the event store.
    lost: [Option<usize>; 2],
    /// Someone wrote past the code into these items.
    tampered: BTreeSet<(u32, String)>,
    /// Items that are not readable now.
    broken: BTreeSet<String>,
    /// What could be read of a stream at some time began here.
    truncated: BTreeMap<String, Revision>,
    /// What streams were before an older copy of the event store came back.
    histories: BTreeMap<String, Vec<Vec<RawEvent>>>,
    /// Of them, those of which it cannot be seen any more which history a replica is of.
    unprovable: BTreeSet<String>,
    /// Streams whose deletion was lost: they were deleted, and are not in the older copy that came back.
    undeleted: BTreeSet<String>,
}

impl Told {
    fn is_restored(&self, stream: &str) -> bool {
        self.histories.contains_key(stream)
    }
}

impl Sim {
    fn new(seed: u64, defect: Option<Defect>, shown: bool) -> Arc<Self> {
        let mut dice = fastrand::Rng::with_seed(seed);
        let plan = Plan::draw(&mut dice, seed);
        Arc::new(Self {
            plan,
            journal: MemoryJournal::new(),
            tables: [MemoryStore::new(), MemoryStore::new()],
            dice: Mutex::new(dice),
            faults: Mutex::default(),
            groups: Mutex::default(),
            denied: Mutex::default(),
            trace: Mutex::new(Trace {
                digest: 0xcbf2_9ce4_8422_2325,
                shown,
                ..Trace::default()
            }),
            failures: Mutex::default(),
            told: Mutex::default(),
            defect,
            began: Instant::now(),
        })
    }

    fn below(&self, most: usize) -> usize {
        self.dice.lock().unwrap().usize(..most)
    }

    fn fraction(&self) -> f64 {
        self.dice.lock().unwrap().f64()
    }

    /// So many times of 256.
    fn chance(&self, of_256: u8) -> bool {
        of_256 > 0 && self.dice.lock().unwrap().u8(..) < of_256
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap()
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }

    fn table(&self, schema: u32) -> MemoryStore {
        self.tables[schema as usize - 1].clone()
    }

    fn is_denied(&self, stream: &str) -> bool {
        self.denied.lock().unwrap().contains(stream)
    }

    fn fail(&self, what: String) {
        self.say("failed", &what);
        self.failures.lock().unwrap().push(what);
    }

    fn note(&self, process: &SimulatedProcess, what: &str) {
        self.say(&process.name, what);
    }

    /// Goes into the digest: no id that chance alone has drawn.
    fn say(&self, who: &str, what: &str) {
        let at = self.began.elapsed();
        let mut line = String::new();
        let _ = write!(line, "{:>9.3} {who}: {what}", at.as_secs_f64());
        let mut trace = self.trace.lock().unwrap();
        for byte in line.bytes() {
            trace.digest = (trace.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if trace.shown {
            println!("{line}");
        }
        trace.at_once = if trace.last == at { trace.at_once + 1 } else { 1 };
        trace.last = at;
        let endless = trace.at_once == AT_ONCE;
        drop(trace);
        if endless {
            self.fail(format!("goes round without end, the last time by {who}: {what}"));
            // Who is in the circle ends, and time goes on.
            panic!("{who} goes round without end");
        }
    }

    /// A measured lag of zero: all that stood in the source when the measurement began is settled.
    fn check_lag(&self, group: &str, head: usize) {
        let mut newest: BTreeMap<Arc<str>, Happened> = BTreeMap::new();
        for link in self.groups().first(head) {
            let of = newest.entry(link.stream.clone()).or_insert_with(|| link.clone());
            if link.revision > of.revision {
                *of = link;
            }
        }
        for link in newest.values() {
            self.check_settled(group, link, "no lag was shown");
        }
    }

    /// Bytes of all states as puts carry them: a number takes as many digits. And of those that wait to be
    /// put, each as large as the largest is at most.
    fn states(&self) -> f64 {
        const NUMBER: usize = 8;
        let names = (0..self.plan.streams).map(|n| format!("tally-{n}"));
        let numbers: Vec<_> = names.map(|stream| self.journal.all(&stream).len()).collect();
        let largest = numbers.iter().max().copied().unwrap_or(0);
        let waiting = numbers.len() * largest * HELD_STATES * IN_MEMORY;
        ((numbers.iter().sum::<usize>() + waiting) * NUMBER) as f64
    }

    fn readable(&self, stream: &str, revision: Revision) -> Option<RawEvent> {
        let (first, presence) = self.journal.stands(stream);
        if presence != Presence::Present || first? > revision {
            return None;
        }
        self.journal
            .all(stream)
            .into_iter()
            .find(|event| event.revision == revision)
    }

    /// I1 prefix of a replica that holds `first..=version`.
    fn wrong(&self, stream: &str, stored: &Replica) -> Option<String> {
        if self.told().unprovable.contains(stream) {
            return None;
        }
        self.wrong_in(&self.journal.all(stream), stored)
    }

    /// The same, where it may be of a history that was lost.
    fn wrong_in_any(&self, stream: &str, stored: &Replica) -> Option<String> {
        let wrong = self.wrong(stream, stored)?;
        let histories = self.told().histories.get(stream).cloned().unwrap_or_default();
        let right = histories.iter().any(|all| self.wrong_in(all, stored).is_none());
        (!right).then_some(wrong)
    }

    fn wrong_in(&self, all: &[RawEvent], stored: &Replica) -> Option<String> {
        let header = &stored.header;
        let version = header.version?;
        let Some(view) = &stored.view else {
            let dropped = header.deleted && self.plan.on_deletion == OnDeletion::Remove;
            return (!dropped).then(|| "its state is missing".to_owned());
        };
        let Some(events) = all.get(header.first as usize..=version as usize) else {
            return Some(format!("it has {}..={version} of {} events", header.first, all.len()));
        };
        let fold = Coded::new(NEWEST);
        let folded = fold_events(&fold, (&Header::new(), &fold.initial()), events, COMMANDS);
        let right = folded.state.get::<Tally>().cloned().unwrap_or_default();
        if folded.stopped.is_some() {
            return Some("an event that nobody can fold is in it".into());
        }
        if view.read::<Tally>().ok().as_ref() != Some(&right) {
            return Some(format!(
                "it has {view:?}, the fold of {}..={version} is {right:?}",
                header.first
            ));
        }
        if header.event.as_ref().map(|event| event.id) != events.last().map(|event| event.id) {
            return Some("its last event is another one".into());
        }
        let ids = |header: &Header| {
            header
                .commands
                .iter()
                .map(|c| (c.command, c.first, c.last))
                .collect::<Vec<_>>()
        };
        (ids(header) != ids(&folded.header)).then(|| {
            format!(
                "it has the commands {:?}, they are {:?}",
                ids(header),
                ids(&folded.header)
            )
        })
    }

    /// I1 and I2 of a put that landed.
    fn check_put(&self, schema: u32, put: &Put, before: Option<&Replica>) {
        let table = self.table(schema);
        let key = (schema, put.stream.to_string());
        if put.header.quarantine.is_some() {
            self.told().marked.insert(key.clone());
        }
        let tampered = self.told().tampered.contains(&key);
        let after = table
            .stored(&put.stream)
            .filter(|_| !tampered || put.body != Body::Stored);
        if let Some(wrong) = after.and_then(|after| self.wrong_in_any(&put.stream, &after)) {
            self.fail(format!("schema {schema}, {}: {wrong}", put.stream));
        }
        let Some(before) = before.filter(|_| !tampered) else {
            return;
        };
        let (old, new) = (&before.header, &put.header);
        if new.generation < old.generation {
            self.fail(format!(
                "{}: the generation fell from {} to {}",
                put.stream, old.generation, new.generation
            ));
        }
        if new.generation == old.generation && new.version <= old.version {
            self.fail(format!(
                "{}: version {:?} was put over {:?} of its generation",
                put.stream, new.version, old.version
            ));
        }
        let marks = (old.quarantine.is_some(), new.quarantine.is_some());
        if new.generation == old.generation && marks != (false, false) {
            self.fail(format!("{}: a mark came or went within a generation", put.stream));
        }
        if let (Some(was), Some(is)) = (&old.quarantine, &new.quarantine) {
            let same = was.at == is.at && [was, is].iter().all(|mark| mark.kind() == MarkKind::Quarantined);
            let forgotten = !is.by.newest().is_empty() && !is.by.contains(was.by.newest());
            if same && forgotten && !was.by.newest().is_empty() && !self.told().is_restored(&put.stream) {
                self.fail(format!(
                    "{}: a mark forgot what code had failed on its event",
                    put.stream
                ));
            }
        }
    }

    /// I1 prefix of what a command answers.
    fn check_answer(&self, stream: &str, done: &Committed<Tally>) {
        let (first, Some(version)) = (done.first, done.version) else {
            return;
        };
        if self.told().unprovable.contains(stream) {
            return;
        }
        let mut histories = self.told().histories.get(stream).cloned().unwrap_or_default();
        histories.push(self.journal.all(stream));
        let fold = Coded::new(NEWEST);
        let right = histories.iter().any(|all| {
            all.get(first as usize..=version as usize).is_some_and(|events| {
                let folded = fold_events(&fold, (&Header::new(), &fold.initial()), events, COMMANDS);
                folded.state.get::<Tally>() == Some(&done.state)
            })
        });
        if !right {
            self.fail(format!(
                "{stream}: a command answered {:?} as the fold of {first}..={version}",
                done.state
            ));
        }
    }

    /// I3 settled of an acknowledged link, where no mark and no debt can have to do with it.
    fn check_settled(&self, group: &str, link: &Happened, said: &str) {
        let schema = if group.ends_with('2') { 2 } else { 1 };
        let key = (schema, link.stream.to_string());
        let exempt = {
            let told = self.told();
            let lost = told.lost[schema as usize - 1].is_some() || told.is_restored(&link.stream);
            told.marked.contains(&key) || lost || told.tampered.contains(&key)
        };
        let Some(revision) = link.revision.filter(|_| !exempt && !link.stream.ends_with("-odd")) else {
            return;
        };
        let stored = self.table(schema).stored(&link.stream).map(|stored| stored.header);
        let version = stored.as_ref().and_then(|stored| stored.version);
        let events = self.journal.all(&link.stream);
        let mut open = events
            .iter()
            .filter(|e| Some(e.revision) > version && e.revision <= revision && &*e.kind != "$>");
        if let Some(open) = open.find(|event| self.readable(&link.stream, event.revision).is_some()) {
            self.fail(format!(
                "schema {schema}, {}: {said} with revision {revision}, {} is not in version {version:?}",
                link.stream, open.revision
            ));
        }
    }
}

/// How a run ended.
#[derive(Debug)]
struct Ran {
    digest: u64,
    failure: Option<String>,
}

/// Runs in a world of its own, where time is virtual.
fn simulated<T>(seed: u64, what: impl Future<Output = T>) -> T {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let came = runtime.block_on(async {
        clock::simulated::set(chrono::DateTime::from_timestamp(1_800_000_000, 0));
        what.await
    });
    drop(runtime);
    clock::simulated::set(None);
    came
}

fn run(seed: u64, defect: Option<Defect>, shown: bool) -> Ran {
    simulated(seed, async {
        let sim = Sim::new(seed, defect, shown);
        if shown {
            println!("{:?}", sim.plan);
        }
        sim.schedule().await;
        let failure = sim.failures.lock().unwrap().first().cloned();
        let digest = sim.trace.lock().unwrap().digest;
        Ran { digest, failure }
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn replicas_are_right_whatever_happens_to_whole_daemons() {
    if let Some(seed) = number("SIMULATION_SEED") {
        let ran = run(seed, None, true);
        assert_eq!(ran.failure, None, "seed {seed}");
        println!("seed {seed}: digest {:016x}", ran.digest);
        return;
    }
    let (from, all) = (
        number("SIMULATION_FROM").unwrap_or(0),
        number("SIMULATION").unwrap_or(SCHEDULES),
    );
    let mut digest = 0_u64;
    let mut failed = Vec::new();
    for seed in from..from + all {
        let ran = run(seed, None, false);
        digest = digest.rotate_left(1) ^ ran.digest;
        if let Some(failure) = ran.failure {
            println!("seed {seed}: digest {:016x}: {failure}", ran.digest);
            failed.push(seed);
        }
    }
    println!("{all} schedules from seed {from}: digest {digest:016x}");
    assert!(
        failed.is_empty(),
        "{} of {all} schedules failed: {failed:?}",
        failed.len()
    );
}

#[test]
fn a_seed_reproduces_a_run_to_the_letter() {
    for seed in 0..5 {
        assert_eq!(
            run(seed, None, false).digest,
            run(seed, None, false).digest,
            "seed {seed}"
        );
    }
}

/// What was settled in a store that is gone is not settled in the one in its place: lag was 0 until that
/// was connected to.
#[test]
fn what_was_settled_ends_with_the_connection() {
    simulated(0, async {
        let sim = Sim::new(0, None, false);
        let task = sim.start(NEWEST, &mut 0);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut copy = None;
        sim.copies(&mut copy);
        sim.push("tally-0", "Added");
        // Lag is measured every other second; this is just before it is.
        tokio::time::sleep(Duration::from_millis(4_999)).await;
        let waiting = || task.running.status.borrow().lag.as_ref().map(|lag| lag.events);
        assert_eq!(waiting(), Some(0));
        sim.copies(&mut copy);
        sim.push("tally-1", "Added");
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(waiting(), Some(1));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(waiting(), Some(0));
    });
}

/// Stores that break their promises are found out, each within a thousand schedules.
#[test]
fn broken_promises_are_found() {
    for defect in [
        Defect::AckBeforePut,
        Defect::NoVersion,
        Defect::NoGeneration,
        Defect::MarkForgotten,
        Defect::HoleWithoutProof,
        Defect::Refuses,
    ] {
        let found = (0..1_000).find(|seed| run(*seed, Some(defect), false).failure.is_some());
        println!("{defect:?}: found by seed {found:?}");
        assert!(found.is_some(), "{defect:?} is not found");
    }
}
