//! The lane's specification: named examples of its rules, a file for each concern, and here the lane
//! against a model of everything around it: two tasks with their own caches, a group
//! that shuffles, repeats and loses deliveries, a store that refuses and loses replies, other
//! writers, truncation, deletion and revival. After every step I1 to I3 are checked
//! against the stream itself; at the end everything must be settled and the replica right.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use uuid::Uuid;

use super::{gap::SHOWN_WITHIN, unsaved::UnsavedFold, *};
use crate::{
    document::Document,
    event::RawEvent,
    journal::{Newest, Presence, ReadLimit, Slice, Standing},
    projection::{
        Change, Encoded, Fold, FoldError, OnDeletion, OnLostHistory, OnRevival, Source, State, StateError, StoredState,
    },
    replica::{
        Broken, Demand, Header, LastEvent, Put, Replica,
        item::{Body, Promotions},
    },
};

mod checks;
mod deletion;
mod driven;
mod fold;
mod gap;
mod put;
mod quarantine;

use driven::Driven;
use fold::{Collect, Kind, numbers};

#[derive(Clone, Debug)]
enum Op {
    Append(Kind),
    Truncate(u8),
    Delete,
    Revive,
    Deliver {
        task: u8,
        pick: u8,
    },
    Step {
        task: u8,
        lose_reply: bool,
    },
    Crash {
        task: u8,
    },
    /// A task's connection is another one.
    Doubt {
        task: u8,
    },
    /// Somebody writes administratively.
    Bump,
    /// Somebody writes a state that this code cannot read.
    Garble,
    /// The table is emptied.
    Wipe,
    /// The stored item becomes unreadable: with a version and a generation, or without.
    Break {
        whole: bool,
    },
    /// It becomes what it was, its mark kept.
    Mend,
    /// The stream may not be read any more, or may again.
    Deny(bool),
    /// A task is told that the stream is noted as marked, when it is.
    Note {
        task: u8,
    },
    /// The next look is answered by a leader that does not have the stream's last event.
    LookShort,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => prop_oneof![6 => Just(Kind::Put), 2 => Just(Kind::Keep), 1 => Just(Kind::New), 1 => Just(Kind::Heavy)].prop_map(Op::Append),
        1 => (0u8..20).prop_map(Op::Truncate),
        1 => Just(Op::Delete),
        1 => Just(Op::Revive),
        10 => (0u8..2, any::<u8>()).prop_map(|(task, pick)| Op::Deliver { task, pick }),
        14 => (0u8..2, any::<bool>()).prop_map(|(task, lose_reply)| Op::Step { task, lose_reply }),
        1 => (0u8..2).prop_map(|task| Op::Crash { task }),
        1 => (0u8..2).prop_map(|task| Op::Doubt { task }),
        1 => Just(Op::Bump),
        1 => Just(Op::Garble),
        1 => Just(Op::Wipe),
        1 => any::<bool>().prop_map(|whole| Op::Break { whole }),
        1 => Just(Op::Mend),
        1 => any::<bool>().prop_map(Op::Deny),
        1 => (0u8..2).prop_map(|task| Op::Note { task }),
        1 => Just(Op::LookShort),
    ];
    prop::collection::vec(op, 1..120)
}

struct Task {
    rules: Arc<LaneRules>,
    lane: Driven,
    cache: Option<LaneBase>,
    /// Which entries the tokens stand for.
    tokens: BTreeMap<LaneToken, usize>,
    /// It was told of the note, and has not come to rest since.
    told: bool,
    effect: Option<Effect>,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each says one thing that happened to one of the stores"
)]
struct World {
    log: Vec<RawEvent>,
    kinds: Vec<Kind>,
    readable_from: u64,
    deleted: bool,
    /// Entries of the feed: an event's revision, or a deletion.
    entries: Vec<Option<u64>>,
    unsettled: BTreeSet<usize>,
    /// Revisions whose deliveries were parked.
    parked: Vec<u64>,
    stored: Option<Replica>,
    tasks: Vec<Task>,
    next_token: LaneToken,
    clock: Duration,
    /// The store lost data that it had acknowledged: what was settled no longer is.
    wiped: bool,
    /// A state was made unreadable; when its history goes too, nothing can make it right.
    garbled: bool,
    /// What tasks that cleared a mark have yet to settle, for others settled by it meanwhile.
    clearing: [Option<Clearing>; 2],
    /// What tasks that crashed had yet to settle so: the note is there for it.
    orphaned: Option<BTreeSet<u64>>,
    /// The stream is noted as marked, by a mark of this generation.
    noted: Option<u64>,
    /// The stored item is not readable; whether what a put stands on is.
    broken: Option<bool>,
    denied: bool,
    looks_short: bool,
    on_deletion: OnDeletion,
    on_revival: OnRevival,
}

/// A task cleared a mark. Until it comes to rest, what others acknowledge by the mark that they
/// read before is its concern.
#[derive(Clone, Debug, Default)]
struct Clearing {
    /// The end of the stream when it was last read since; what came later it need not know.
    read: Option<u64>,
    /// What was acknowledged so.
    owed: BTreeSet<u64>,
}

/// An item as it is stored.
fn replica(header: Header, view: Option<StoredState>) -> Replica {
    Replica {
        header,
        view,
        fold: None,
        projected_at: None,
        promoted: Vec::new(),
        bytes: 1,
    }
}

/// The header of a replica that ends with this event.
fn ends_with(event: &RawEvent) -> Header {
    Header {
        version: Some(event.revision),
        event: Some(LastEvent {
            id: event.id,
            kind: event.kind.clone(),
            at: event.created,
        }),
        ..Header::new()
    }
}

fn time(n: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + n as i64, 0).unwrap()
}

impl World {
    fn new(on_deletion: OnDeletion, on_revival: OnRevival, same_code: bool) -> Self {
        let tasks = ["new", if same_code { "new" } else { "old" }]
            .into_iter()
            .map(|fingerprint| {
                let rules = Arc::new(LaneRules {
                    fold: Arc::new(Collect(fingerprint)),
                    form: Arc::new(|_: &str, header: &Header, encoded: Encoded| {
                        if header.event.as_ref().is_some_and(|event| &*event.kind == "Heavy") {
                            return Err(FoldError::Unstorable("it is too large".into()));
                        }
                        Ok(Body::Native {
                            view: encoded.view,
                            fold: None,
                            bytes: 1,
                            promoted: Promotions::default(),
                        })
                    }),
                    on_deletion,
                    on_revival,
                    on_lost_history: OnLostHistory::Partial,
                    read: ReadLimit {
                        events: 3,
                        bytes: 1 << 20,
                    },
                    behind_after: Duration::from_secs(5),
                    min_write_interval: Duration::ZERO,
                    keep_flush: Duration::from_secs(30),
                    commands: 4,
                });
                Task {
                    lane: Driven::new(rules.clone()),
                    rules,
                    cache: None,
                    tokens: BTreeMap::new(),
                    told: false,
                    effect: None,
                }
            })
            .collect();
        Self {
            log: Vec::new(),
            kinds: Vec::new(),
            readable_from: 0,
            deleted: false,
            entries: Vec::new(),
            unsettled: BTreeSet::new(),
            parked: Vec::new(),
            stored: None,
            tasks,
            next_token: 1,
            clock: Duration::ZERO,
            wiped: false,
            garbled: false,
            clearing: [None, None],
            orphaned: None,
            noted: None,
            broken: None,
            denied: false,
            looks_short: false,
            on_deletion,
            on_revival,
        }
    }

    fn append(&mut self, kind: Kind) {
        let revision = self.log.len() as u64;
        if self.deleted {
            self.deleted = false;
            self.readable_from = revision;
        }
        self.kinds.push(kind);
        self.log.push(RawEvent {
            stream: "s-1".into(),
            revision,
            id: Uuid::from_u128(u128::from(revision) + 1),
            kind: format!("{kind:?}").into(),
            json: true,
            data: Bytes::new(),
            metadata: Bytes::new(),
            created: time(revision),
        });
        self.unsettled.insert(self.entries.len());
        self.entries.push(Some(revision));
    }

    fn readable(&self) -> &[RawEvent] {
        if self.deleted {
            &[]
        } else {
            &self.log[(self.readable_from as usize).min(self.log.len())..]
        }
    }

    fn deliver(&mut self, task: usize, entry: usize) {
        let token = self.next_token;
        self.next_token += 1;
        let arrival = match self.entries[entry] {
            None => Arrival::Moved,
            Some(revision) => self
                .readable()
                .iter()
                .find(|e| e.revision == revision)
                .map_or(Arrival::Revision(revision, time(revision)), |e| {
                    Arrival::Event(e.clone())
                }),
        };
        let behind = token.is_multiple_of(3);
        let task = &mut self.tasks[task];
        task.tokens.insert(token, entry);
        task.lane.deliver(token, arrival, behind);
    }

    fn note(&mut self, task: usize) {
        // In a table that was emptied generations begin again, and the note of a mark that was made
        // meanwhile may be taken for an older one's.
        let Some(generation) = self.noted.or(self.wiped.then_some(0)) else {
            return;
        };
        let token = self.next_token;
        self.next_token += 1;
        self.tasks[task].told = true;
        self.tasks[task]
            .lane
            .deliver(token, Arrival::Noted { generation }, false);
    }

    fn found(&self, whole: bool) -> Broken {
        let header = self.stored.as_ref().map(|s| s.header.clone()).unwrap_or_default();
        Broken {
            version: whole.then_some(header.version),
            generation: whole.then_some(header.generation),
            quarantine: header.quarantine,
            deleted: header.deleted,
        }
    }

    fn loaded(&self) -> Outcome {
        match self.broken {
            Some(whole) => Outcome::Corrupt {
                problem: "scripted".into(),
                found: Box::new(self.found(whole)),
            },
            None => Outcome::Loaded(self.stored.clone().map(Box::new)),
        }
    }

    /// Does one thing that a task's lane wants; says whether it wanted anything.
    fn step(&mut self, index: usize, lose_reply: bool, held_back: bool) -> Result<bool, TestCaseError> {
        let now = self.clock;
        let task = &mut self.tasks[index];
        task.lane.hold_back(held_back);
        let effect = match task.effect.take() {
            Some(effect) => effect,
            None => match task.lane.next(now) {
                Next::Do(effect) => effect,
                Next::HeldBack => {
                    task.lane.hold_back(false);
                    self.verdicts(index)?;
                    return Ok(true);
                }
                Next::WaitUntil(at) => {
                    self.clock = at;
                    self.verdicts(index)?;
                    return Ok(true);
                }
                Next::Busy => unreachable!("the model runs each effect to its end"),
                Next::Idle => {
                    self.verdicts(index)?;
                    let task = &mut self.tasks[index];
                    let lane = std::mem::replace(&mut task.lane, Driven::new(task.rules.clone()));
                    prop_assert_eq!(lane.unsettled(), 0, "an idle lane holds deliveries");
                    self.cleared(index)?;
                    let task = &mut self.tasks[index];
                    if let Some(base) = lane.lane.into_base() {
                        task.cache = Some(base);
                    }
                    return Ok(false);
                }
            },
        };
        self.verdicts(index)?;
        let outcome = match &effect {
            Effect::Load { fresh } => match self.tasks[index].cache.clone() {
                Some(base) if !fresh => Outcome::Cached(Box::new(base)),
                _ => self.loaded(),
            },
            Effect::Read { .. } | Effect::Look if self.denied => Outcome::Denied("read it".into()),
            Effect::Forget { generation } => {
                let generation = *generation;
                self.cleared(index)?;
                if self.noted.is_some_and(|noted| noted <= generation) {
                    self.noted = None;
                    // Whoever forgets the note has read the stream since no mark stood: nobody owes.
                    let others: Vec<_> = self.clearing.iter_mut().filter_map(Option::take).collect();
                    let owed = others.into_iter().flat_map(|c| c.owed);
                    let owed: BTreeSet<u64> = owed.chain(self.orphaned.take().unwrap_or_default()).collect();
                    self.paid(&owed)?;
                }
                Outcome::Forgotten
            }
            Effect::Read { from, limit } => {
                let end = self.log.len() as u64;
                if let Some(clearing) = &mut self.clearing[index] {
                    clearing.read = Some(end);
                }
                Outcome::Read(self.read(*from, *limit))
            }
            Effect::Look => Outcome::Looked(self.look()),
            Effect::Put(put, kind) => {
                if matches!(kind, PutKind::Quarantine(_) | PutKind::Diverged | PutKind::Again) {
                    self.noted = Some(put.header.generation);
                }
                let outcome = self.put(index, put)?;
                if lose_reply && outcome == Some(PutOutcome::Done) {
                    // Whoever does the I/O tries again, and finds its own put.
                    self.tasks[index].effect = Some(effect.clone());
                    return Ok(true);
                }
                outcome.map_or_else(|| self.loaded(), Outcome::Put)
            }
        };
        self.tasks[index].lane.apply(outcome, now);
        self.verdicts(index)?;
        Ok(true)
    }

    fn read(&self, from: u64, limit: ReadLimit) -> Slice {
        if self.deleted || self.log.is_empty() {
            return Slice::nothing(Presence::Absent);
        }
        let all: Vec<_> = self.readable().iter().filter(|e| e.revision >= from).cloned().collect();
        let end = all.len() <= limit.events;
        Slice {
            events: all.into_iter().take(limit.events).collect(),
            end,
            presence: Presence::Present,
            first: None,
            last: self.log.last().map(|event| event.revision),
        }
    }

    fn look(&mut self) -> Standing {
        let short = usize::from(mem::take(&mut self.looks_short));
        if self.deleted {
            return Standing::SoftDeleted;
        }
        if self.log.len() <= short {
            return Standing::Missing;
        }
        Standing::Live(self.readable().iter().rev().nth(short).map(|e| Newest {
            revision: e.revision,
            id: e.id,
            created: e.created,
        }))
    }

    /// `None`: the item that it met is not readable.
    fn put(&mut self, index: usize, put: &Put) -> Result<Option<PutOutcome>, TestCaseError> {
        let met = match (put.demand, &self.stored) {
            (Demand::Broken, _) => self.broken == Some(false),
            (_, Some(_)) if self.broken == Some(false) => false,
            (Demand::Absent, None) => true,
            (Demand::Older { generation }, Some(s)) => {
                s.header.generation == generation && s.header.version < put.header.version
            }
            (
                Demand::Exactly {
                    generation,
                    version,
                    deleted,
                },
                Some(s),
            ) => {
                let stands = (s.header.generation, s.header.version, s.header.deleted);
                stands == (generation, version, deleted)
            }
            _ => false,
        };
        if !met {
            let refused = PutOutcome::Refused(self.stored.clone().map(Box::new));
            return Ok(self.broken.is_none().then_some(refused));
        }
        if let (Some(_), Some(stored)) = (self.broken, &mut self.stored) {
            prop_assert!(
                put.body == Body::Stored || matches!(put.demand, Demand::Older { .. } | Demand::Exactly { .. }),
                "a broken item was replaced by {:?}",
                put
            );
            if put.body == Body::Stored {
                stored.header.quarantine.clone_from(&put.header.quarantine);
                stored.header.deleted = put.header.deleted;
                if put.demand != Demand::Broken {
                    stored.header.generation = put.header.generation;
                }
                return Ok(Some(PutOutcome::Done));
            }
            self.broken = None;
        }
        self.keeps_what_it_cannot_read(put)?;
        if let (Some(s), Demand::Exactly { .. }) = (&self.stored, put.demand) {
            prop_assert!(
                put.header.generation > s.header.generation,
                "an administrative write kept the generation"
            );
        }
        if put.header.quarantine.is_none() && self.stored.as_ref().is_some_and(|s| s.header.quarantine.is_some()) {
            self.clearing[index] = Some(Clearing::default());
        }
        let view = match &put.body {
            Body::Native { view, .. } => Some(StoredState::Document(view.clone())),
            Body::Stored => self.stored.as_ref().and_then(|stored| stored.view.clone()),
            _ => None,
        };
        let header = match (&put.body, &self.stored) {
            (Body::Stored, Some(stored)) => Header {
                generation: put.header.generation,
                quarantine: put.header.quarantine.clone(),
                deleted: put.header.deleted,
                ..stored.header.clone()
            },
            _ => put.header.clone(),
        };
        self.stored = Some(replica(header, view));
        self.check_replica()?;
        Ok(Some(PutOutcome::Done))
    }

    fn verdicts(&mut self, index: usize) -> Result<(), TestCaseError> {
        for verdict in self.tasks[index].lane.verdicts() {
            let (token, parked) = match verdict {
                Verdict::Ack(token) => (token, false),
                Verdict::Park(token, _) => (token, true),
            };
            let Some(entry) = self.tasks[index].tokens.get(&token).copied() else {
                // That it was told of the note.
                continue;
            };
            if let (Some(revision), false) = (self.entries[entry], self.wiped) {
                let settled = self.settled(revision) || self.owes(revision);
                prop_assert!(settled, "revision {} was acknowledged before it was settled", revision);
            }
            self.unsettled.remove(&entry);
            self.parked.extend(self.entries[entry].filter(|_| parked));
        }
        Ok(())
    }

    /// What a task owed is for whoever is told of the note.
    fn forget_debt(&mut self, index: usize) {
        if let Some(clearing) = self.clearing[index].take() {
            assert!(self.noted.is_some() || self.wiped, "a debt died with its session");
            self.orphaned.get_or_insert_default().extend(clearing.owed);
        }
        self.tasks[index].told = false;
    }

    fn doubt(&mut self, index: usize) {
        self.forget_debt(index);
        let task = &mut self.tasks[index];
        task.effect = None;
        if let Some(mut base) = task.lane.doubt() {
            base.verified = base.header.version.is_none();
            task.cache = Some(base);
        }
    }

    fn crash(&mut self, index: usize) {
        self.forget_debt(index);
        let task = &mut self.tasks[index];
        task.lane = Driven::new(task.rules.clone());
        task.effect = None;
        task.tokens.clear();
        task.cache = None;
    }

    fn run(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Append(kind) => self.append(kind),
            Op::Truncate(n) => self.readable_from = self.readable_from.max(u64::from(n)).min(self.log.len() as u64),
            Op::Delete if !self.deleted && !self.log.is_empty() => {
                self.deleted = true;
                self.unsettled.insert(self.entries.len());
                self.entries.push(None);
            }
            Op::Revive if self.deleted => self.append(Kind::Put),
            Op::Deliver { task, pick } if !self.entries.is_empty() => {
                // Mostly what is not settled; now and then something again that is.
                let open: Vec<_> = self.unsettled.iter().copied().collect();
                let entry = if open.is_empty() || pick > 220 {
                    usize::from(pick) % self.entries.len()
                } else {
                    open[usize::from(pick) % open.len()]
                };
                self.deliver(usize::from(task), entry);
            }
            Op::Delete | Op::Revive | Op::Deliver { .. } => {}
            Op::Step { task, lose_reply } => {
                // As often as a reply is kept: what is drawn already serves.
                self.step(usize::from(task), lose_reply, !lose_reply)?;
            }
            Op::Crash { task } => self.crash(usize::from(task)),
            Op::Doubt { task } => self.doubt(usize::from(task)),
            Op::Bump => {
                if let Some(stored) = &mut self.stored {
                    stored.header.generation += 1;
                }
            }
            Op::Garble => {
                // Only where all history is there to fold again from.
                if let (Some(stored), 0) = (&mut self.stored, self.readable_from)
                    && stored.view.is_some()
                    && !self.deleted
                {
                    stored.view = Some(StoredState::Json(Vec::new()));
                    stored.header.generation += 1;
                    self.garbled = true;
                }
            }
            Op::Wipe => {
                self.stored = None;
                self.broken = None;
                self.noted = None;
                self.wiped = true;
            }
            Op::Break { whole } => {
                if self.stored.is_some() {
                    self.broken = Some(whole);
                }
            }
            Op::Mend => self.broken = None,
            Op::Deny(denied) => self.denied = denied,
            Op::Note { task } => self.note(usize::from(task)),
            Op::LookShort => self.looks_short = true,
        }
        Ok(())
    }
}

fn scenario(ops: &[Op], on_deletion: OnDeletion, on_revival: OnRevival, same_code: bool) -> Result<(), TestCaseError> {
    let mut world = World::new(on_deletion, on_revival, same_code);
    for op in ops {
        world.run(op)?;
    }
    world.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200_000, ..ProptestConfig::default() })]

    #[test]
    fn replicas_are_right_whatever_happens(
        ops in ops(),
        on_deletion in prop_oneof![Just(OnDeletion::Keep), Just(OnDeletion::Remove)],
        on_revival in prop_oneof![Just(OnRevival::Continue), Just(OnRevival::Restart)],
        same_code in any::<bool>(),
    ) {
        scenario(&ops, on_deletion, on_revival, same_code)?;
    }
}

/// A short run for every build; `PROPTEST_CASES` makes it a campaign.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2_000)
}

/// Steps a task until its lane rests.
fn rest(world: &mut World, task: usize) {
    let mut steps = 0;
    while world.step(task, false, false).unwrap() {
        steps += 1;
        assert!(
            steps < 100,
            "the lane does not come to rest: {:?}",
            world.tasks[task].lane
        );
    }
}

/// From here on a task cannot store states that are refused.
fn refuses(world: &mut World, task: usize, refused: fn(&Document) -> bool) {
    let task = &mut world.tasks[task];
    let mut rules = (*task.rules).clone();
    let form = rules.form.clone();
    rules.form = Arc::new(move |stream: &str, header: &Header, encoded: Encoded| {
        if refused(&encoded.view) {
            return Err(FoldError::Unstorable("it is too large".into()));
        }
        form(stream, header, encoded)
    });
    task.rules = Arc::new(rules);
    task.lane = Driven::new(task.rules.clone());
}

/// A lane of the code `new` on a stored replica at revision 1, with the event after it in hand.
fn loaded_and_delivered() -> (World, Driven) {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    for _ in 0..4 {
        world.append(Kind::Put);
    }
    let header = ends_with(&world.log[1]);
    let list = [0, 1].map(|n: u64| Document::Number(n.to_string().into()));
    let view = StoredState::Document(Document::List(list.into()));
    let replica = replica(header, Some(view));
    let mut lane = Driven::new(world.tasks[0].rules.clone());
    lane.deliver(1, Arrival::Event(world.log[2].clone()), false);
    assert!(matches!(
        lane.next(Duration::ZERO),
        Next::Do(Effect::Load { fresh: false })
    ));
    lane.apply(Outcome::Loaded(Some(Box::new(replica))), Duration::ZERO);
    (world, lane)
}
