//! A schedule: what happens, in which order, and what must be true at its end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Add, BUILDS, COMMANDS, Code, Coded, NEWEST, Sim, Tally,
    ports::{SimJournal, SimMeter, SimStore, SimulatedProcess},
    server::{GroupsBackup, SimFeed},
};
use crate::{
    command::{CommandError, CommandSettings, Context, OnDeleted, Replicas, Repository},
    document::Document,
    event::{Revision, next_after},
    journal::{NewEvent, Presence, ReadLimit, memory},
    projection::{FoldError, OnLostHistory},
    projector::{
        engine::{self, Running, Supervised},
        lane::LaneRules,
        lanes,
        session::{SessionSpec, tests::group},
        status::Phase,
    },
    replica::{MarkKind, ReplicaStore as _, item},
};

/// How many kinds of things happen.
pub(super) const KINDS: u8 = 25;

/// One more, which only some schedules have: the event store is copied, and the copy comes back.
pub(super) const RESTORES: u8 = KINDS;

/// Everything is settled within this time after the last fault. Marks that nobody can be told to
/// look at are looked at every five minutes.
const AT_REST_WITHIN: Duration = Duration::from_mins(20);

/// An event's bodies, and what is counted beside them.
const LARGEST_EVENT: usize = 2_000;

pub(super) struct Task {
    code: Code,
    process: Arc<SimulatedProcess>,
    stop: CancellationToken,
    pub(super) running: Running,
}

struct Writer {
    process: Arc<SimulatedProcess>,
    task: JoinHandle<()>,
}

impl Sim {
    pub(super) async fn schedule(self: &Arc<Self>) {
        let closing = CancellationToken::new();
        tokio::spawn({
            let sim = self.clone();
            async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    sim.hang_up();
                    sim.pump();
                }
            }
        });
        let mut started = 0;
        let mut tasks = Vec::new();
        for _ in 0..self.plan.tasks {
            let code = BUILDS[self.below(BUILDS.len())];
            tasks.push(self.start(code, &mut started));
        }
        let mut writers: Vec<_> = (0..self.plan.writers).map(|n| self.write(n, closing.clone())).collect();
        let (mut backup, mut copy) = (None, None);
        for _ in 0..self.plan.steps {
            let pause = [0, 1, 20, 300, 2_000][self.below(5)];
            tokio::time::sleep(Duration::from_millis(self.below(pause + 1) as u64)).await;
            if self.plan.kinds.is_empty() {
                continue;
            }
            let kind = self.plan.kinds[self.below(self.plan.kinds.len())];
            if kind == RESTORES {
                self.copies(&mut copy);
                continue;
            }
            self.happens(kind, &mut tasks, &mut started, &mut writers, &closing, &mut backup)
                .await;
            if !self.failures.lock().unwrap().is_empty() {
                return;
            }
        }
        closing.cancel();
        self.come_to_rest(tasks, writers, &mut started).await;
    }

    fn later(self: &Arc<Self>, most: u64, then: impl FnOnce(&Self) + Send + 'static) {
        let sim = self.clone();
        let wait = Duration::from_millis(self.below(most as usize) as u64);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            then(&sim);
        });
    }

    fn stream(&self) -> String {
        format!("tally-{}", self.below(self.plan.streams))
    }

    pub(super) fn push(&self, stream: &str, kind: &str) {
        if self.journal.stands(stream).1 == Presence::Tombstoned {
            return;
        }
        let n = self.number();
        let event = NewEvent {
            id: Uuid::from_u128(u128::from(n) | 1 << 100),
            kind: kind.into(),
            json: true,
            data: format!(r#"{{"n":{n}}}"#).into(),
            metadata: bytes::Bytes::new(),
        };
        let revision = self.journal.push(stream, vec![event]);
        self.say("someone", &format!("appends {kind} {n} to {stream} as {revision:?}"));
        self.pump();
    }

    fn number(&self) -> u64 {
        let mut told = self.told();
        told.numbers += 1;
        told.numbers
    }

    fn rules(&self, code: Code) -> LaneRules {
        let form = item::Rules::new("tally");
        LaneRules {
            fold: Arc::new(Coded::new(code)),
            form: Arc::new(move |stream, header, encoded| {
                let numbers = match &encoded.view {
                    Document::Map(members) => members.get("seen"),
                    _ => None,
                };
                match numbers {
                    Some(Document::List(numbers)) if numbers.len() > code.room => {
                        Err(FoldError::Unstorable("it has no room for so many numbers".into()))
                    }
                    _ => item::prepare(encoded, &form, stream, header),
                }
            }),
            on_deletion: self.plan.on_deletion,
            on_revival: self.plan.on_revival,
            on_lost_history: OnLostHistory::Partial,
            read: ReadLimit {
                events: self.plan.read_events,
                bytes: 1_000,
            },
            behind_after: self.plan.behind_after,
            min_write_interval: self.plan.min_write_interval,
            keep_flush: Duration::from_secs(3),
            commands: COMMANDS,
        }
    }

    pub(super) fn start(self: &Arc<Self>, code: Code, started: &mut u64) -> Task {
        *started += 1;
        let process = SimulatedProcess::new(format!("{}#{started}", code.fingerprint));
        let rules = self.rules(code);
        let spec = SessionSpec {
            group: group(
                format!("tally-s{}", code.schema),
                rules.fold.source(),
                self.plan.message_timeout,
            ),
            lanes: Arc::new(lanes::LanesSpec {
                rules: Arc::new(rules),
                memory: self.plan.memory,
                reads: self.plan.reads,
                writes: self.plan.writes,
                quarantine_limit: if code == NEWEST {
                    1_000
                } else {
                    self.plan.quarantine_limit
                },
            }),
            buffer: self.plan.buffer,
            outage_after: self.plan.message_timeout / 2,
            watchdog_after: Duration::from_mins(1),
            drain: Duration::from_secs(5),
        };
        // Of each stream a page that is read and folded, beside what the budget is for.
        let most = self.plan.memory + 1_000 + LARGEST_EVENT * (2 + self.plan.streams);
        let sim = self.clone();
        let (journal, table) = (
            SimJournal {
                sim: sim.clone(),
                process: process.clone(),
            },
            SimStore {
                sim: sim.clone(),
                process: process.clone(),
                schema: code.schema,
            },
        );
        let stop = CancellationToken::new();
        self.say(&process.name, "starts");
        let projection = Supervised {
            spec: Arc::new(spec),
            feed: SimFeed {
                sim: sim.clone(),
                process: process.clone(),
            },
            journal,
            table,
            table_name: "t".into(),
            meter: Arc::new(SimMeter {
                sim,
                process: process.clone(),
                group: format!("tally-s{}", code.schema),
                most: most as f64,
                levels: Mutex::new(HashMap::new()),
            }),
            cache_bytes: self.plan.cache_bytes,
            measure_every: Duration::from_secs(2),
        };
        Task {
            code,
            process,
            running: engine::start(projection, stop.clone()),
            stop,
        }
    }

    async fn end(&self, task: Task, gently: bool) {
        self.say(&task.process.name, if gently { "is stopped" } else { "is killed" });
        if !gently {
            task.process.die();
            self.hang_up();
        }
        task.stop.cancel();
        if gently {
            let stopped = tokio::time::timeout(Duration::from_mins(1), task.running.stopped());
            if stopped.await.is_err() {
                self.fail(format!("{} does not stop", task.process.name));
            }
            task.process.die();
            self.hang_up();
        }
    }

    fn write(self: &Arc<Self>, number: usize, closing: CancellationToken) -> Writer {
        let process = SimulatedProcess::new(format!("writer {number}"));
        let journal = SimJournal {
            sim: self.clone(),
            process: process.clone(),
        };
        let store = SimStore {
            sim: self.clone(),
            process: process.clone(),
            schema: 1,
        };
        let mut snapshots = Replicas::new(store);
        if self.plan.write_through {
            snapshots = snapshots.write_through(item::Rules::new("tally"));
        }
        let settings = CommandSettings {
            keep_commands: COMMANDS,
            // What it is compared with is the machine's clock.
            retry_horizon: Duration::MAX,
            on_deleted: if self.plan.restarts() {
                OnDeleted::Restart
            } else {
                OnDeleted::Continue
            },
            restarts: self.plan.restarts(),
            cache_bytes: self.plan.cache_bytes,
            page: ReadLimit {
                events: 1 + self.plan.read_events,
                bytes: 10_000,
            },
            ..CommandSettings::default()
        };
        let repository = Repository::<Tally, _, _>::new(journal, snapshots).with_settings(settings);
        let sim = self.clone();
        let writes = process.clone();
        let task = tokio::spawn(async move {
            while !closing.is_cancelled() && writes.alive() {
                let numbers: Vec<u64> = (0..=sim.below(2)).map(|_| sim.number()).collect();
                let aggregate = sim.below(sim.plan.streams).to_string();
                let id = Uuid::from_u128(u128::from(numbers[0]) | 1 << 101);
                for _ in 0..6 {
                    let context = Context {
                        deadline: Some(Duration::from_secs(4)),
                        ..Context::with_id(id)
                    };
                    let answer = repository
                        .execute_with(&aggregate, &Add(numbers.clone()), context)
                        .await;
                    let word = answer.as_ref().map_or_else(CommandError::class, |_| "done");
                    sim.note(&writes, &format!("{numbers:?} on {aggregate}: {word}"));
                    match &answer {
                        Ok(done) => {
                            let stream = format!("tally-{aggregate}");
                            sim.check_answer(&stream, done);
                            let acknowledged = numbers.iter().map(|n| (*n, stream.clone()));
                            sim.told().acknowledged.extend(acknowledged);
                            break;
                        }
                        Err(error) if word == "key_reused" => {
                            sim.fail(format!("a command was told that its id was used before: {error}"));
                        }
                        Err(_) if matches!(word, "deleted" | "state" | "out_of_reach" | "unwritable") => break,
                        Err(_) => {}
                    }
                    tokio::time::sleep(Duration::from_millis(sim.below(1_000) as u64)).await;
                }
                tokio::time::sleep(Duration::from_millis(sim.below(800) as u64)).await;
            }
        });
        Writer { process, task }
    }

    /// Copies the event store, or brings the copy back.
    pub(super) fn copies(self: &Arc<Self>, copy: &mut Option<(memory::LogBackup, GroupsBackup)>) {
        let Some((journal, groups)) = copy.take() else {
            self.say("someone", "copies the event store");
            *copy = Some((self.journal.backup(), self.groups().backup()));
            return;
        };
        self.say("someone", "brings the copy of the event store back");
        let names: Vec<String> = (0..self.plan.streams).map(|n| format!("tally-{n}")).collect();
        let before: Vec<_> = names.iter().map(|stream| self.journal.all(stream)).collect();
        let gone = |stream: &String| self.journal.stands(stream).1 != Presence::Present;
        let deleted: Vec<_> = names.iter().filter(|stream| gone(stream)).cloned().collect();
        self.journal.restore_all(journal);
        self.groups().restore(groups);
        let mut told = self.told();
        told.undeleted
            .extend(deleted.into_iter().filter(|stream| !gone(stream)));
        for (stream, before) in names.into_iter().zip(before) {
            if self.journal.all(&stream).len() < before.len() {
                told.histories.entry(stream).or_default().push(before);
            }
        }
    }

    /// The events before this are not readable any more, and with them what would tell that a replica is
    /// of a history that was lost.
    fn hides(&self, stream: &str) {
        let mut told = self.told();
        if told.is_restored(stream) {
            told.unprovable.insert(stream.to_owned());
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each thing that happens")]
    async fn happens(
        self: &Arc<Self>,
        kind: u8,
        tasks: &mut Vec<Task>,
        started: &mut u64,
        writers: &mut Vec<Writer>,
        closing: &CancellationToken,
        backup: &mut Option<(u32, crate::replica::memory::TableBackup)>,
    ) {
        let stream = self.stream();
        match kind {
            0 => {
                for _ in 0..=self.below(4) {
                    self.push(&stream, "Added");
                }
            }
            1 => self.push(&stream, "New"),
            2 if self.below(4) == 0 => self.push(&stream, "Never"),
            3 => self.push(&stream, "$>"),
            4 if self.journal.stands(&stream).1 == Presence::Present => {
                self.journal.delete(&stream);
                self.hides(&stream);
                self.say("someone", &format!("deletes {stream}"));
                if self.below(2) == 0 {
                    self.push(&stream, "Added");
                }
            }
            5 if self.below(6) == 0 && self.journal.stands(&stream).1 == Presence::Present => {
                self.journal.tombstone(&stream);
                self.hides(&stream);
                self.say("someone", &format!("tombstones {stream}"));
            }
            6 => {
                let all = self.journal.all(&stream).len() as u64;
                if self.journal.stands(&stream).1 == Presence::Present && all > 0 {
                    let at = self.below(all as usize + 1) as u64;
                    self.journal.truncate_before(&stream, at);
                    self.hides(&stream);
                    self.say("someone", &format!("truncates {stream} before {at}"));
                    let mut told = self.told();
                    let most = told.truncated.entry(stream).or_default();
                    *most = at.max(*most);
                }
            }
            7 | 8 => {
                let at = self.below(tasks.len());
                let task = tasks.remove(at);
                let code = if kind == 7 && self.below(2) == 0 {
                    task.code
                } else {
                    BUILDS[self.below(BUILDS.len())]
                };
                // A rolling deployment has both for a while.
                let first = self.below(2) == 0;
                if first {
                    tasks.push(self.start(code, started));
                }
                self.end(task, kind == 8).await;
                if !first {
                    tasks.push(self.start(code, started));
                }
            }
            9 => {
                self.say("someone", "takes the event store down");
                self.faults.lock().unwrap().journal_down = true;
                self.later(8_000, |sim| sim.faults.lock().unwrap().journal_down = false);
            }
            10 => {
                self.say("someone", "takes the tables down");
                self.faults.lock().unwrap().store_down = true;
                self.later(8_000, |sim| sim.faults.lock().unwrap().store_down = false);
            }
            11 => {
                self.faults.lock().unwrap().throttled = true;
                self.later(8_000, |sim| sim.faults.lock().unwrap().throttled = false);
            }
            12 => {
                self.faults.lock().unwrap().lost_replies = 80;
                self.later(8_000, |sim| sim.faults.lock().unwrap().lost_replies = 0);
            }
            13 => {
                let slow = Duration::from_millis([5, 100, 1_500][self.below(3)]);
                let mut faults = self.faults.lock().unwrap();
                (faults.flaky, faults.slow) = ([0, 30][usize::from(slow.as_millis() > 50)], slow);
                drop(faults);
                self.later(15_000, |sim| {
                    let mut faults = sim.faults.lock().unwrap();
                    (faults.flaky, faults.slow) = (0, Duration::from_millis(2));
                });
            }
            14 => {
                let all: Vec<_> = tasks
                    .iter()
                    .map(|t| &t.process)
                    .chain(writers.iter().map(|w| &w.process))
                    .collect();
                let process = all[self.below(all.len())].clone();
                self.say(&process.name, "reads at a leader that is deposed");
                let so_far = self.journal.so_far();
                process.depose(Some(so_far.saturating_sub(self.below(3))));
                self.later(5_000, move |_| process.depose(None));
            }
            15 => {
                self.say("someone", "restarts the server");
                self.restart_groups();
            }
            16 => {
                self.say("someone", &format!("denies {stream}"));
                self.denied.lock().unwrap().insert(stream.clone());
                self.later(8_000, move |sim| {
                    sim.denied.lock().unwrap().remove(&stream);
                });
            }
            17 => {
                let table = self.table(1);
                if table.stored(&stream).is_some() && self.told().broken.insert(stream.clone()) {
                    let whole = self.below(2) == 0;
                    self.say("someone", &format!("breaks the item of {stream}, whole {whole}"));
                    self.told().tampered.insert((1, stream.clone()));
                    if whole {
                        table.corrupt(&stream);
                    } else {
                        table.shatter(&stream);
                    }
                    self.later(8_000, move |sim| {
                        sim.table(1).mend(&stream);
                        sim.told().broken.remove(&stream);
                    });
                }
            }
            18 => {
                let table = self.table(1);
                if table.stored(&stream).is_some_and(|stored| stored.view.is_some()) {
                    self.say("someone", &format!("garbles the state of {stream}"));
                    self.told().tampered.insert((1, stream.clone()));
                    table.garble(&stream);
                }
            }
            19 if self.below(3) == 0 => {
                let schema = 1 + self.below(2) as u32;
                self.say("someone", &format!("creates table {schema} again"));
                self.told().lost[schema as usize - 1] = Some(self.journal.so_far());
                self.table(schema).make_anew();
            }
            20 => match backup.take() {
                None => {
                    let schema = 1 + self.below(2) as u32;
                    *backup = Some((schema, self.table(schema).backup()));
                }
                Some((schema, kept)) => {
                    self.say("someone", &format!("restores table {schema}"));
                    self.told().lost[schema as usize - 1] = Some(self.journal.so_far());
                    self.table(schema).restore(kept);
                }
            },
            21 => {
                self.groups().stalled = true;
                self.later(10_000, |sim| sim.groups().stalled = false);
            }
            22 if !writers.is_empty() => {
                let at = self.below(writers.len());
                let gone = writers.remove(at);
                self.say(&gone.process.name, "is killed");
                gone.process.die();
                writers.push(self.write(at, closing.clone()));
            }
            23 => self.push("tally-odd", "Added"),
            24 => tokio::time::sleep(Duration::from_secs(self.below(50) as u64)).await,
            _ => {}
        }
    }

    async fn come_to_rest(self: &Arc<Self>, mut tasks: Vec<Task>, writers: Vec<Writer>, started: &mut u64) {
        self.say("someone", "ends all faults");
        let calm = || *self.faults.lock().unwrap() = super::Faults::default();
        calm();
        self.groups().stalled = false;
        self.denied.lock().unwrap().clear();
        for process in tasks
            .iter()
            .map(|t| &t.process)
            .chain(writers.iter().map(|w| &w.process))
        {
            process.depose(None);
        }
        for writer in writers {
            match tokio::time::timeout(Duration::from_mins(2), writer.task).await {
                Ok(Err(error)) if error.is_panic() => self.fail(format!("{} panicked", writer.process.name)),
                Ok(_) => {}
                Err(_) => self.fail(format!("{} does not end", writer.process.name)),
            }
            writer.process.die();
        }
        calm();
        let names: Vec<String> = (0..self.plan.streams).map(|n| format!("tally-{n}")).collect();
        for stream in &names {
            self.tables.iter().for_each(|table| table.mend(stream));
        }
        // The newest code takes over, from the old one or with some of it.
        let first = self.below(2) == 0;
        let count = 1 + self.below(2);
        let mut new = Vec::new();
        if first {
            new.extend((0..count).map(|_| self.start(NEWEST, started)));
        }
        for task in tasks.drain(..) {
            let gently = self.below(2) == 0;
            self.end(task, gently).await;
        }
        if !first {
            new.extend((0..count).map(|_| self.start(NEWEST, started)));
        }
        let touched = self.told().lost[0].is_some();
        for stream in &names {
            // What a store has lost or somebody has spoiled shows with the stream's next event.
            let touched = touched || self.told().is_restored(stream) || self.told().undeleted.contains(stream);
            if (touched || self.told().tampered.contains(&(1, stream.clone()))) && !self.journal.all(stream).is_empty()
            {
                self.push(stream, "Added");
            }
        }
        let mut unrest = String::new();
        let mut waited = Duration::ZERO;
        while waited < AT_REST_WITHIN {
            let step = if waited < Duration::from_secs(20) { 1 } else { 10 };
            tokio::time::sleep(Duration::from_secs(step)).await;
            waited += Duration::from_secs(step);
            if !self.failures.lock().unwrap().is_empty() {
                return;
            }
            match self.at_rest(&new, &names).await {
                None => {
                    unrest.clear();
                    break;
                }
                Some(what) => unrest = what,
            }
        }
        if !unrest.is_empty() {
            self.fail(format!("does not come to rest: {unrest}"));
        }
        self.check_acknowledged(&names);
        for task in new {
            self.end(task, true).await;
        }
        for stream in &names {
            let shown = self
                .table(1)
                .stored(stream)
                .map(|s| (s.header.version, s.header.generation, s.header.deleted));
            self.say("someone", &format!("sees {stream} at {shown:?}"));
        }
    }

    async fn at_rest(&self, tasks: &[Task], names: &[String]) -> Option<String> {
        if let Some(unrest) = self.unrest("tally-s1") {
            return Some(unrest);
        }
        for task in tasks {
            let status = task.running.status.borrow();
            let lag = status.lag.as_ref().map(|lag| lag.events);
            if status.phase != Phase::Running || status.holding > 0 || lag != Some(0) {
                return Some(format!(
                    "{} is {:?}, holds {}, lag {lag:?}",
                    task.process.name, status.phase, status.holding
                ));
            }
        }
        for stream in names {
            if let Some(wrong) = self.unsettled(stream) {
                return Some(format!("{stream}: {wrong}"));
            }
        }
        let table = self.table(1);
        let marks = table.marks().await.unwrap_or_default();
        let over = marks.iter().find(|mark| {
            let stored = table.stored(&mark.stream);
            stored.is_none_or(|stored| stored.header.quarantine.is_none())
        });
        over.map(|mark| format!("{} is noted as marked and is not", mark.stream))
    }

    /// Why a stream's replica is not what it is to be at the end.
    fn unsettled(&self, stream: &str) -> Option<String> {
        let all = self.journal.all(stream);
        if all.is_empty() {
            return None;
        }
        let (first, presence) = self.journal.stands(stream);
        let key = (1, stream.to_owned());
        let (tampered, lost_at, restored) = {
            let told = self.told();
            (told.tampered.contains(&key), told.lost[0], told.is_restored(stream))
        };
        let (gone, lost) = (presence != Presence::Present, lost_at.is_some());
        let Some(stored) = self.table(1).stored(stream) else {
            let first = first.filter(|first| all[*first as usize..].iter().any(|event| &*event.kind != "$>"));
            return ((!gone && first.is_some()) || (gone && !lost)).then(|| "it has no item".to_owned());
        };
        let header = &stored.header;
        if let Some(mark) = &header.quarantine {
            let never = all.get(mark.at as usize).is_some_and(|event| &*event.kind == "Never");
            let says_why = match mark.kind() {
                // A mark on an event that was lost stays, too, until somebody has redriven it.
                MarkKind::Quarantined => (never && !gone) || tampered || restored,
                MarkKind::Diverged => restored,
                MarkKind::Corrupt | MarkKind::Denied => false,
            };
            if !says_why {
                return Some(format!("it is marked: {}", mark.reason));
            }
            return if tampered {
                None
            } else {
                self.wrong_in_any(stream, &stored)
            };
        }
        if gone {
            if !header.deleted && !lost {
                return Some("its deletion is not known".to_owned());
            }
            return if tampered { None } else { self.wrong(stream, &stored) };
        }
        if let Some(wrong) = self.wrong(stream, &stored) {
            return Some(wrong);
        }
        if header.deleted && first.is_some() {
            return Some("it lives and is said to be deleted".to_owned());
        }
        let open = all[next_after(header.version) as usize..]
            .iter()
            .find(|event| first.is_some_and(|first| event.revision >= first) && &*event.kind != "$>");
        if let Some(open) = open {
            return Some(format!("it is at {:?}, and {} is open", header.version, open.revision));
        }
        let lives = self.lives(stream);
        let life = lives.last_key_value();
        // A table that lost the marker of a deletion, or the mark that its notice was settled by, is not
        // told again: later events show a stream whose history is gone, as after a truncation.
        let told = life.is_some_and(|(_, at)| lost_at.is_none_or(|lost| *at >= lost));
        let life = life.map(|(began, _)| *began);
        if self.plan.restarts()
            && header.version.is_some()
            && told
            && life.is_some_and(|began| header.first < began)
            && first.is_some()
        {
            return Some(format!(
                "it did not start over: it begins at {}, its life at {life:?}",
                header.first
            ));
        }
        let cut = self
            .told()
            .truncated
            .get(stream)
            .copied()
            .unwrap_or(0)
            .max(life.unwrap_or(0));
        (header.first > cut).then(|| format!("it begins at {}, and {cut} could always be read", header.first))
    }

    /// Where a stream began again; and when, in all that happened, it was deleted before that.
    fn lives(&self, stream: &str) -> BTreeMap<Revision, usize> {
        let began = self.journal.lives(stream);
        let (mut lives, mut deleted) = (BTreeMap::new(), 0);
        for (at, happened) in self.journal.happened(0).iter().enumerate() {
            match happened.revision {
                _ if &*happened.stream != stream => {}
                Some(revision) if began.contains(&revision) => {
                    lives.insert(revision, deleted);
                }
                Some(_) => {}
                None => deleted = at,
            }
        }
        lives
    }

    fn check_acknowledged(&self, names: &[String]) {
        let mut seen = BTreeSet::new();
        let mut twice = Vec::new();
        for stream in names {
            let lives = self.lives(stream);
            let mut last: BTreeMap<u64, Revision> = BTreeMap::new();
            for event in self.journal.all(stream) {
                let body: serde_json::Value = serde_json::from_slice(&event.data).unwrap_or_default();
                let n = body["n"].as_u64().unwrap_or(0);
                let before = last.insert(n, event.revision);
                // A command's id is remembered until its stream is deleted. Where its events are truncated the
                // table alone remembers it, and not where an older copy of that came back.
                let unknown = |at: Revision| {
                    let told = self.told();
                    told.lost[0].is_some() && told.truncated.get(stream).is_some_and(|first| at < *first)
                };
                let one_life = |at: Revision| lives.range(at + 1..=event.revision).next().is_none();
                let again = before.is_some_and(|before| one_life(before) && !unknown(before));
                let elsewhere = !seen.insert(n) && before.is_none();
                if again || elsewhere {
                    twice.push(n);
                }
            }
        }
        let acknowledged = self.told().acknowledged.clone();
        let lost: Vec<_> = acknowledged.iter().filter(|(n, _)| !seen.contains(n)).collect();
        if !twice.is_empty() || !lost.is_empty() {
            self.fail(format!(
                "commands that landed twice: {twice:?}; acknowledged and lost: {lost:?}"
            ));
        }
    }
}
