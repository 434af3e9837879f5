//! The ports of the simulation: both stores as one process sees them, with everything that a network
//! and a busy store do to a call, and the meter.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Defect, Sim};
use crate::{
    event::Revision,
    journal::{
        Appended, Expected, Journal, JournalError, NewEvent, Newest, Presence, ReadLimit, Slice, Standing,
        memory::{AppendFault, Happened},
    },
    projector::meter::{Count, Level, Meter, Timing},
    replica::{
        Demand, Got, Marked, Put, PutOutcome, Quarantine, Replica, ReplicaStore, StoreError, Throttle, item::Body,
    },
};

/// A process: what it has asked for is carried out or not when it dies, and never answered.
#[derive(Debug)]
pub(super) struct SimulatedProcess {
    pub(super) name: String,
    alive: AtomicBool,
    /// Its client still talks to a leader that was deposed: reads end here.
    deposed: Mutex<Option<usize>>,
    /// Links that the category had when it was asked for its newest, the last time.
    head: AtomicUsize,
}

impl SimulatedProcess {
    pub(super) fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            alive: AtomicBool::new(true),
            deposed: Mutex::new(None),
            head: AtomicUsize::new(0),
        })
    }

    pub(super) fn alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    pub(super) fn die(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    pub(super) fn depose(&self, at: Option<usize>) {
        *self.deposed.lock().unwrap() = at;
    }

    pub(super) fn saw_head(&self, links: usize) {
        self.head.store(links, Ordering::Relaxed);
    }

    fn reads_up_to(&self) -> Option<usize> {
        *self.deposed.lock().unwrap()
    }
}

/// What goes wrong now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) journal_down: bool,
    pub(super) store_down: bool,
    pub(super) throttled: bool,
    /// Of 256 puts and appends, as many lose their reply.
    pub(super) lost_replies: u8,
    /// Of 256 calls, as many fail by themselves.
    pub(super) flaky: u8,
    /// How long a call takes at most, each way.
    pub(super) slow: Duration,
}

impl Sim {
    /// How long one way takes.
    pub(super) fn latency(&self) -> Duration {
        let slow = self.faults().slow;
        if self.chance(90) {
            Duration::ZERO
        } else {
            slow.mul_f64(self.fraction())
        }
    }

    /// One way of a call. A process that dies meanwhile gets no further, or what it asked for is
    /// carried out all the same.
    pub(super) async fn trip(&self, process: &SimulatedProcess) {
        let wait = self.latency();
        let zombie = self.chance(128);
        tokio::task::yield_now().await;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let carried_out = zombie && !wait.is_zero();
        if !process.alive() && !carried_out {
            std::future::pending::<()>().await;
        }
    }

    async fn back(&self, process: &SimulatedProcess) {
        self.trip(process).await;
        if !process.alive() {
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn journal_answers(&self, process: &SimulatedProcess) -> Result<(), JournalError> {
        if !process.alive() {
            // Whoever asks has no one to tell.
            return Err(JournalError::Unavailable("the process is dead".into()));
        }
        let faults = self.faults();
        if faults.journal_down || self.chance(faults.flaky) {
            return Err(JournalError::Unavailable("scripted".into()));
        }
        Ok(())
    }

    fn store_answers(&self) -> Result<(), StoreError> {
        let faults = self.faults();
        if faults.store_down || self.chance(faults.flaky) {
            return Err(StoreError::Unavailable("scripted".into()));
        }
        Ok(())
    }
}

/// The event store as one process sees it.
#[derive(Clone)]
pub(super) struct SimJournal {
    pub(super) sim: Arc<Sim>,
    pub(super) process: Arc<SimulatedProcess>,
}

/// A stream as it was when so much had happened.
struct Past {
    events: u64,
    first: u64,
    deleted: bool,
}

impl SimJournal {
    async fn asked(&self, stream: &str) -> Result<(), JournalError> {
        self.sim.trip(&self.process).await;
        self.sim.journal_answers(&self.process)?;
        if self.sim.is_denied(stream) {
            return Err(JournalError::Denied {
                action: format!("read stream `{stream}`"),
                remedy: "grant the permission".into(),
            });
        }
        Ok(())
    }

    fn past(&self, stream: &str) -> Option<Past> {
        let cut = self.process.reads_up_to()?;
        // That a deposed leader does not know of a deletion or of a new life shows in nothing that it
        // answers: here it knows of both.
        let happened = self.sim.journal.happened(0);
        let of_stream = |h: &Happened| &*h.stream == stream;
        let deleted = happened.iter().rposition(|h| of_stream(h) && h.revision.is_none());
        let revived = deleted.map(|at| happened[at + 1..].iter().position(of_stream).map_or(at, |n| at + 1 + n));
        let cut = cut.max(revived.map_or(0, |at| at + 1));
        let mut past = Past {
            events: 0,
            first: 0,
            deleted: false,
        };
        for happened in happened.iter().take(cut).filter(|h| &*h.stream == stream) {
            match happened.revision {
                Some(_) => past.events += 1,
                None => past.first = past.events,
            }
            past.deleted = happened.revision.is_none();
        }
        Some(past)
    }
}

impl Journal for SimJournal {
    async fn read(&self, stream: &str, from: Revision, limit: ReadLimit) -> Result<Slice, JournalError> {
        self.asked(stream).await?;
        let mut slice = match self.past(stream) {
            None => self.sim.journal.read(stream, from, limit).await?,
            Some(past) if past.deleted || past.events == 0 => Slice::nothing(Presence::Absent),
            Some(past) => {
                let all = self.sim.journal.all(stream);
                let there = all.into_iter().take(past.events as usize).skip(past.first as usize);
                let mut events: Vec<_> = there.filter(|e| e.revision >= from).collect();
                let end = events.len() <= limit.events;
                events.truncate(limit.events);
                Slice {
                    events,
                    end,
                    presence: Presence::Present,
                    first: None,
                    last: past.events.checked_sub(1),
                }
            }
        };
        if self.sim.has(Defect::HoleWithoutProof) {
            slice.last = None;
        }
        self.sim.note(
            &self.process,
            &format!(
                "read {stream} {from} {:?} {} {:?}",
                slice.events.iter().map(|e| e.revision).collect::<Vec<_>>(),
                slice.end,
                slice.last
            ),
        );
        self.sim.back(&self.process).await;
        Ok(slice)
    }

    async fn look(&self, stream: &str) -> Result<Standing, JournalError> {
        self.asked(stream).await?;
        let standing = match self.past(stream) {
            None => self.sim.journal.look(stream).await?,
            Some(past) if past.deleted => Standing::SoftDeleted,
            Some(past) if past.events == 0 => Standing::Missing,
            Some(past) => {
                Standing::Live(
                    self.sim
                        .journal
                        .all(stream)
                        .get(past.events as usize - 1)
                        .map(|event| Newest {
                            revision: event.revision,
                            id: event.id,
                            created: event.created,
                        }),
                )
            }
        };
        let shown = match &standing {
            Standing::Live(newest) => format!("live {:?}", newest.as_ref().map(|n| n.revision)),
            other => format!("{other:?}"),
        };
        self.sim.note(&self.process, &format!("look {stream} {shown}"));
        self.sim.back(&self.process).await;
        Ok(standing)
    }

    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
        deadline: Duration,
    ) -> Result<Appended, JournalError> {
        self.asked(stream).await?;
        if self.process.reads_up_to().is_some() {
            return Err(JournalError::OutcomeUnknown("the leader was deposed".into()));
        }
        if self.sim.chance(self.sim.faults().lost_replies) {
            let wait = Duration::from_millis(self.sim.below(400) as u64);
            let fault = match self.sim.below(6) {
                0 => AppendFault::LostAfterWrite,
                1 => AppendFault::LostBeforeWrite,
                2 => AppendFault::LateAndLost(wait),
                3 => AppendFault::Dies(wait),
                _ => AppendFault::Late(wait),
            };
            self.sim.journal.fail_append(1, fault);
        }
        self.sim
            .note(&self.process, &format!("append {stream} {expected:?} {}", events.len()));
        let outcome = self.sim.journal.append(stream, expected, events, deadline).await;
        self.sim.pump();
        self.sim.note(
            &self.process,
            &format!(
                "appended {stream} {}",
                outcome.as_ref().map_or_else(JournalError::class, |_| "done")
            ),
        );
        self.sim.back(&self.process).await;
        outcome
    }
}

/// A table as one process sees it.
#[derive(Clone)]
pub(super) struct SimStore {
    pub(super) sim: Arc<Sim>,
    pub(super) process: Arc<SimulatedProcess>,
    pub(super) schema: u32,
}

impl SimStore {
    async fn asked(&self) -> Result<(), StoreError> {
        self.sim.trip(&self.process).await;
        self.sim.store_answers()
    }

    fn shown(replica: Option<&Replica>) -> String {
        replica.map_or("none".to_owned(), |r| {
            let mark = r.header.quarantine.as_ref().map(|mark| mark.at);
            format!(
                "{:?} g{} first {} deleted {} mark {mark:?}",
                r.header.version, r.header.generation, r.header.first, r.header.deleted
            )
        })
    }
}

impl ReplicaStore for SimStore {
    async fn get(&self, stream: &str, consistent: bool) -> Result<Option<Replica>, StoreError> {
        self.asked().await?;
        let table = self.sim.table(self.schema);
        table.stale_by(if self.sim.plan.stale { self.sim.below(3) } else { 0 });
        let found = table.get(stream, consistent).await;
        if let Ok(found) = &found {
            self.sim.note(
                &self.process,
                &format!("get {stream} {consistent} {}", Self::shown(found.as_ref())),
            );
        }
        self.sim.back(&self.process).await;
        found
    }

    async fn get_many(&self, streams: &[Arc<str>], consistent: bool) -> Result<Vec<Got>, StoreError> {
        self.asked().await?;
        let table = self.sim.table(self.schema);
        table.stale_by(if self.sim.plan.stale { self.sim.below(3) } else { 0 });
        let found = table.get_many(streams, consistent).await;
        self.sim
            .note(&self.process, &format!("get {streams:?} {}", found.is_ok()));
        self.sim.back(&self.process).await;
        found
    }

    async fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        self.asked().await?;
        let marks = self.sim.table(self.schema).marks().await;
        self.sim.back(&self.process).await;
        marks
    }

    async fn note_mark(&self, stream: &str, mark: &Quarantine, generation: u64) -> Result<(), StoreError> {
        self.asked().await?;
        self.sim
            .note(&self.process, &format!("note {stream} {} g{generation}", mark.at));
        if !self.sim.has(Defect::MarkForgotten) {
            self.sim.table(self.schema).note_mark(stream, mark, generation).await?;
        }
        self.sim.back(&self.process).await;
        Ok(())
    }

    async fn forget_mark(&self, stream: &str, generation: u64) -> Result<(), StoreError> {
        self.asked().await?;
        self.sim.note(&self.process, &format!("forget {stream} g{generation}"));
        self.sim.table(self.schema).forget_mark(stream, generation).await?;
        self.sim.back(&self.process).await;
        Ok(())
    }

    async fn in_use(&self) -> Result<Option<Arc<str>>, StoreError> {
        self.asked().await?;
        self.sim.table(self.schema).in_use().await
    }

    async fn set_in_use(&self) -> Result<Arc<str>, StoreError> {
        self.asked().await?;
        self.sim.table(self.schema).set_in_use().await
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, StoreError> {
        self.asked().await?;
        if self.sim.faults().throttled && self.sim.chance(150) {
            let scope = if self.sim.chance(128) {
                Throttle::Key
            } else {
                Throttle::Table
            };
            return Err(StoreError::Throttled {
                table: "t".into(),
                scope,
            });
        }
        let table = self.sim.table(self.schema);
        if self.sim.has(Defect::AckBeforePut) && self.sim.chance(128) {
            let (sim, process, put) = (self.sim.clone(), self.process.clone(), put.clone());
            tokio::spawn(async move {
                sim.back(&process).await;
                drop(table.put(&put).await);
            });
            return Ok(PutOutcome::Done);
        }
        let before = table.stored(&put.stream);
        let demand = match (put.demand, &before) {
            (Demand::Older { .. }, Some(stored)) if self.sim.has(Defect::NoGeneration) => Demand::Older {
                generation: stored.header.generation,
            },
            (Demand::Older { generation }, Some(stored))
                if self.sim.has(Defect::NoVersion) && stored.header.generation == generation =>
            {
                Demand::Exactly {
                    generation,
                    version: stored.header.version,
                    deleted: stored.header.deleted,
                }
            }
            (demand, _) => demand,
        };
        let outcome = if self.sim.has(Defect::Refuses) {
            PutOutcome::Refused(before.clone().map(Box::new))
        } else {
            table.put(&Put { demand, ..put.clone() }).await?
        };
        let what = if outcome == PutOutcome::Done { "done" } else { "refused" };
        self.sim.note(
            &self.process,
            &format!(
                "put {} {:?} {:?}: {what} on {}; now {}",
                put.stream,
                put.demand,
                put.body == Body::Stored,
                Self::shown(before.as_ref()),
                Self::shown(table.stored(&put.stream).as_ref())
            ),
        );
        if outcome == PutOutcome::Done {
            self.sim.check_put(self.schema, put, before.as_ref());
        }
        if self.sim.chance(self.sim.faults().lost_replies) {
            return Err(StoreError::Unavailable("the reply was lost".into()));
        }
        self.sim.back(&self.process).await;
        Ok(outcome)
    }
}

/// Sees that nothing panics, that memory stays within its bound and that lag is the truth.
pub(super) struct SimMeter {
    pub(super) sim: Arc<Sim>,
    pub(super) process: Arc<SimulatedProcess>,
    pub(super) group: String,
    pub(super) most: f64,
    pub(super) levels: Mutex<HashMap<Level, f64>>,
}

impl Meter for SimMeter {
    fn count(&self, count: Count, _: u64) {
        if count == Count::Panic {
            self.sim.fail("a session panicked".to_owned());
        }
    }

    fn observe(&self, _: Timing, _: Duration) {}

    fn set(&self, level: Level, value: f64) {
        if level == Level::MemoryBytes && value > self.most {
            let most = self.most + self.sim.states();
            if value > most {
                self.sim.fail(format!("{value} bytes are held, of {most} at most"));
            }
        }
        if level == Level::LagEvents && value == 0.0 && self.process.alive() {
            self.sim
                .check_lag(&self.group, self.process.head.load(Ordering::Relaxed));
        }
        self.levels.lock().unwrap().insert(level, value);
    }

    fn unset(&self, level: Level) {
        self.levels.lock().unwrap().remove(&level);
    }
}
