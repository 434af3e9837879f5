//! The lane against a model of everything around it: two tasks with their own caches, a group
//! that shuffles, repeats and loses deliveries, a store that refuses and loses replies, other
//! writers, truncation, deletion and revival. After every step I1 to I3 are checked
//! against the stream itself; at the end everything must be settled and the replica right.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use uuid::Uuid;

use super::{gap::SHOWN_WITHIN, unsaved::Folded, *};
use crate::{
    document::Document,
    event::RawEvent,
    journal::{Newest, Presence, ReadLimit, Slice, Standing},
    projection::{Change, Encoded, Fold, FoldError, OnLostHistory, Source, State, StateError, StoredState},
    replica::{
        Broken, Demand, Header, LastEvent, Put, Replica,
        item::{Body, Promotions},
    },
};

/// What an event of the model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Put,
    Keep,
    /// Only code of fingerprint `new` knows it.
    New,
    /// Makes a state that cannot be stored, and the next event one that can.
    Heavy,
}

/// Collects the revisions of the events that change something.
struct Collect(&'static str);

impl Fold for Collect {
    fn name(&self) -> &'static str {
        "collect"
    }
    fn schema(&self) -> u32 {
        1
    }
    fn source(&self) -> Source {
        Source::Category("s".into())
    }
    fn fingerprint(&self) -> &str {
        self.0
    }
    fn keeps_commands(&self) -> bool {
        false
    }
    fn initial(&self) -> State {
        State::new(Vec::<u64>::new())
    }
    fn apply(&self, state: &mut State, event: &RawEvent) -> Result<Change, FoldError> {
        let state: &mut Vec<u64> = state.get_mut().unwrap();
        match &*event.kind {
            "Keep" => return Ok(Change::Keep),
            "New" if self.0 != "new" => return Err(FoldError::UnknownKind("New".into())),
            _ => state.push(event.revision),
        }
        Ok(Change::Put)
    }
    fn encode(&self, state: &State) -> Result<Encoded, FoldError> {
        let list = state
            .get::<Vec<u64>>()
            .unwrap()
            .iter()
            .map(|n| Document::Number(n.to_string().into()))
            .collect();
        Ok(Encoded {
            view: Document::List(list),
            fold: None,
        })
    }
    fn decode(&self, view: &StoredState, _: Option<&StoredState>) -> Result<State, StateError> {
        match view {
            StoredState::Document(document) => Ok(State::new(
                numbers(document).ok_or_else(|| StateError("no list".into()))?,
            )),
            StoredState::Json(_) => Err(StateError("json".into())),
        }
    }
}

fn numbers(document: &Document) -> Option<Vec<u64>> {
    let Document::List(list) = document else {
        return None;
    };
    list.iter()
        .map(|n| {
            if let Document::Number(n) = n {
                n.parse().ok()
            } else {
                None
            }
        })
        .collect()
}

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
        1 => Just(Op::Bump),
        1 => Just(Op::Garble),
        1 => Just(Op::Wipe),
        1 => any::<bool>().prop_map(|whole| Op::Break { whole }),
        1 => Just(Op::Mend),
        1 => any::<bool>().prop_map(Op::Deny),
        1 => (0u8..2).prop_map(|task| Op::Note { task }),
    ];
    prop::collection::vec(op, 1..120)
}

/// A lane, with what it has said and nobody has looked at yet.
#[derive(Debug)]
struct Driven {
    lane: Lane,
    verdicts: Vec<Verdict>,
    tally: Tally,
}

impl Driven {
    fn new(rules: Arc<Rules>) -> Self {
        Self {
            lane: Lane::new("s-1".into(), rules),
            verdicts: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn next(&mut self, now: Duration) -> Next {
        let step = self.lane.step(now);
        self.verdicts.extend(step.verdicts);
        self.adds(step.tally);
        step.next
    }

    fn adds(&mut self, tally: Tally) {
        self.tally.applied += tally.applied;
        self.tally.gap_reads += tally.gap_reads;
        self.tally.durable.extend(tally.durable);
    }

    /// Those that a step would tell now, too: the model looks at each when it is made.
    fn verdicts(&mut self) -> Vec<Verdict> {
        self.verdicts.append(&mut self.lane.inbox_mut().verdicts);
        mem::take(&mut self.verdicts)
    }

    fn tally(&mut self) -> Tally {
        if let At::Known(known) = &mut self.lane.at {
            let now = mem::take(&mut known.tally);
            self.adds(now);
        }
        mem::take(&mut self.tally)
    }
}

impl Deref for Driven {
    type Target = Lane;
    fn deref(&self) -> &Lane {
        &self.lane
    }
}

impl DerefMut for Driven {
    fn deref_mut(&mut self) -> &mut Lane {
        &mut self.lane
    }
}

struct Task {
    rules: Arc<Rules>,
    lane: Driven,
    cache: Option<Base>,
    /// Which entries the tokens stand for.
    tokens: BTreeMap<Token, usize>,
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
    stored: Option<Replica>,
    tasks: Vec<Task>,
    next_token: Token,
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
                let rules = Arc::new(Rules {
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
                .map_or(Arrival::Revision(revision), |e| Arrival::Event(e.clone())),
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

    fn look(&self) -> Standing {
        if self.deleted {
            return Standing::SoftDeleted;
        }
        if self.log.is_empty() {
            return Standing::Missing;
        }
        Standing::Live(self.readable().last().map(|e| Newest {
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

    /// A state that nobody here can read is replaced by complete history that has reached it, by the
    /// policy for deletions or revivals, or not at all.
    fn keeps_what_it_cannot_read(&self, put: &Put) -> Result<(), TestCaseError> {
        let Some(stored) = &self.stored else { return Ok(()) };
        let unreadable = matches!(stored.view, Some(StoredState::Json(_)));
        let by_policy = self.on_deletion == OnDeletion::Remove || self.on_revival == OnRevival::Restart;
        if unreadable && put.body != Body::Stored && !by_policy {
            prop_assert!(
                put.header.version >= stored.header.version && put.header.first <= stored.header.first,
                "the last good replica was destroyed: {:?} by {:?}",
                stored.header,
                put.header
            );
        }
        Ok(())
    }

    /// I1 prefix: the replica is the fold of `first..=version`.
    fn check_replica(&self) -> Result<(), TestCaseError> {
        let Some(stored) = &self.stored else {
            return Ok(());
        };
        let Some(version) = stored.header.version else {
            return Ok(());
        };
        let Some(StoredState::Document(view)) = &stored.view else {
            if self.garbled && stored.view.is_some() {
                return Ok(());
            }
            prop_assert!(
                stored.header.deleted && self.on_deletion == OnDeletion::Remove,
                "a state is missing"
            );
            return Ok(());
        };
        let expected: Vec<u64> = (stored.header.first..=version)
            .filter(|r| self.kinds[*r as usize] != Kind::Keep)
            .collect();
        prop_assert_eq!(
            numbers(view),
            Some(expected),
            "not the fold of {}..={}",
            stored.header.first,
            version
        );
        prop_assert_eq!(
            stored.header.event.as_ref().map(|e| e.id),
            Some(self.log[version as usize].id)
        );
        Ok(())
    }

    /// I3 settled, as design and protocol put it.
    fn settled(&self, revision: u64) -> bool {
        let version = self.stored.as_ref().and_then(|s| s.header.version);
        let from = crate::event::next_after(version);
        if from > revision {
            return true;
        }
        if self
            .stored
            .as_ref()
            .and_then(|s| s.header.quarantine.as_ref())
            .is_some_and(|m| m.at <= revision)
        {
            return true;
        }
        // Nothing readable but what changes nothing.
        self.readable()
            .iter()
            .filter(|e| e.revision >= from && e.revision <= revision)
            .all(|e| &*e.kind == "Keep")
    }

    fn verdicts(&mut self, index: usize) -> Result<(), TestCaseError> {
        for verdict in self.tasks[index].lane.verdicts() {
            let (Verdict::Ack(token) | Verdict::Park(token, _)) = verdict;
            let Some(entry) = self.tasks[index].tokens.get(&token).copied() else {
                // That it was told of the note.
                continue;
            };
            if let (Some(revision), false) = (self.entries[entry], self.wiped) {
                let settled = self.settled(revision) || self.owes(revision);
                prop_assert!(settled, "revision {} was acknowledged before it was settled", revision);
            }
            self.unsettled.remove(&entry);
        }
        Ok(())
    }

    /// Whether a task that cleared a mark is to settle this, which another acknowledged by it.
    fn owes(&mut self, revision: u64) -> bool {
        let to_come = |c: &&mut Clearing| c.read.is_none_or(|end| revision < end);
        let debtor = self.clearing.iter_mut().flatten().find(to_come);
        let owed = debtor.map(|clearing| &mut clearing.owed).or(self.orphaned.as_mut());
        owed.map(|owed| owed.insert(revision)).is_some()
    }

    /// A task came to rest: whatever it owed is settled.
    fn cleared(&mut self, index: usize) -> Result<(), TestCaseError> {
        let mut owed = self.clearing[index].take().map_or_else(BTreeSet::new, |c| c.owed);
        if std::mem::take(&mut self.tasks[index].told)
            && self.stored.as_ref().is_none_or(|s| s.header.quarantine.is_none())
        {
            owed.extend(self.orphaned.take().unwrap_or_default());
        }
        self.paid(&owed)
    }

    fn paid(&self, owed: &BTreeSet<u64>) -> Result<(), TestCaseError> {
        for revision in owed {
            prop_assert!(
                self.wiped || self.settled(*revision),
                "revision {} was acknowledged by a mark and lost with it",
                revision
            );
        }
        Ok(())
    }

    fn crash(&mut self, index: usize) {
        // What it owed is for whoever is told of the note.
        if let Some(clearing) = self.clearing[index].take() {
            assert!(self.noted.is_some() || self.wiped, "a debt died with its session");
            self.orphaned.get_or_insert_default().extend(clearing.owed);
        }
        let task = &mut self.tasks[index];
        task.lane = Driven::new(task.rules.clone());
        task.effect = None;
        task.told = false;
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
        }
        Ok(())
    }

    /// Where the life after the last deletion began.
    fn last_life(&self) -> Option<u64> {
        let deleted = self.entries.iter().rposition(Option::is_none)?;
        self.entries[deleted..].iter().flatten().next().copied()
    }

    /// Delivers what is left until nothing is, as a group does.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        // The old task leaves, as in a rolling deployment; the new one sees the stream once more.
        self.crash(1);
        self.broken = None;
        self.denied = false;
        if !self.deleted {
            self.append(Kind::Put);
        }
        for round in 0..200 {
            for entry in self.unsettled.clone() {
                self.deliver(0, entry);
            }
            self.note(0);
            let mut steps = 0;
            while self.step(0, false, false)? {
                steps += 1;
                prop_assert!(steps < 2000, "the lane does not come to rest: {:?}", self.tasks[0].lane);
            }
            // A mark that was just made is looked at again; one that was looked at stays.
            if self.unsettled.is_empty() && (round > 3 || self.noted.is_none()) {
                break;
            }
        }
        prop_assert!(self.unsettled.is_empty(), "left unsettled: {:?}", self.unsettled);
        if self.log.is_empty() {
            return Ok(());
        }
        let header = self.stored.as_ref().map(|s| s.header.clone()).unwrap_or_default();
        if header
            .quarantine
            .as_ref()
            .is_some_and(|m| m.reason.contains("stored state"))
            && self.garbled
        {
            return Ok(());
        }
        if let Some(mark) = &header.quarantine
            && self.kinds.get(mark.at as usize) == Some(&Kind::Heavy)
            && !self.deleted
        {
            // Nobody can store what that event makes: it waits there, if this is still its life.
            let life = self.last_life().unwrap_or(0);
            prop_assert!(mark.at >= life, "a mark on {} outlived its life", mark.at);
            prop_assert!(header.version < Some(mark.at), "what is marked is in the replica");
            prop_assert!(self.noted.is_some() || self.wiped, "a mark is not noted");
            return Ok(());
        }
        prop_assert_eq!(&header.quarantine, &None, "a mark is left");
        prop_assert_eq!(self.noted, None, "a note is left of a mark that has ended");
        prop_assert!(self.orphaned.as_ref().is_none_or(BTreeSet::is_empty), "a debt is left");
        if !self.wiped {
            prop_assert_eq!(header.deleted, self.deleted, "the deletion is not known");
        }
        if !self.deleted {
            prop_assert_eq!(
                header.version,
                Some(self.log.len() as u64 - 1),
                "the replica is not the whole stream's"
            );
            if self.on_revival == OnRevival::Restart && !self.wiped && self.entries.contains(&None) {
                let first_after = self.last_life();
                prop_assert!(
                    Some(header.first) >= first_after,
                    "did not start over after the last deletion: {:?} < {:?}",
                    header.first,
                    first_after
                );
            }
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

/// One task acknowledges by a mark that it has read; another clears the mark, reads on, and its put
/// is refused for somebody else's (`bump`), or the clearing one for its own, whose reply was lost.
#[test]
fn what_a_cleared_mark_had_settled_outlives_a_refused_put() {
    for bump in [true, false] {
        what_was_settled_by_a_mark(bump);
    }
}

fn what_was_settled_by_a_mark(bump: bool) {
    let deliver = |task, pick| Op::Deliver { task, pick };
    let step = |task| Op::Step {
        task,
        lose_reply: false,
    };
    let mut ops = vec![Op::Append(Kind::Put), Op::Append(Kind::New)];
    // The old code marks revision 1; the new one reads on to its end behind the mark.
    ops.extend([deliver(1, 0), deliver(1, 1)]);
    ops.extend([1, 1, 1, 1].map(step));
    ops.push(deliver(0, 0));
    ops.extend([0, 0, 0].map(step));
    // More events; the old code takes one, and reads the mark for it just before it is cleared.
    ops.extend([Kind::Put; 4].map(Op::Append));
    ops.push(deliver(1, 0));
    ops.extend([1, 1].map(step));
    if bump {
        ops.extend([step(0), step(0), Op::Bump]);
    } else {
        let (task, lose_reply) = (0, true);
        ops.push(Op::Step { task, lose_reply });
    }
    ops.extend([0, 0, 1].map(step));
    scenario(&ops, OnDeletion::Keep, OnRevival::Continue, false).unwrap();
}

/// In a table that was emptied a deletion marker has come to the generation and version of what one
/// task still remembers; its mark, which keeps what is stored, used to make it a state that is not there.
#[test]
fn a_mark_on_what_was_wiped_leaves_a_deletion_marker_alone() {
    let deliver = |task, pick| Op::Deliver { task, pick };
    let steps = |task| {
        let step = Op::Step {
            task,
            lose_reply: false,
        };
        vec![step; 6]
    };
    let mut ops = vec![Op::Append(Kind::Put), deliver(0, 0)];
    ops.extend(steps(0));
    // The old code remembers version 0 at generation 1.
    ops.extend([Op::Bump, Op::Crash { task: 0 }, deliver(1, 0)]);
    ops.extend(steps(1));
    // Made again, the replica is deleted at version 0, which is its first administrative write.
    ops.extend([Op::Wipe, deliver(0, 0)]);
    ops.extend(steps(0));
    ops.extend([Op::Append(Kind::New), deliver(1, 0), Op::Delete, deliver(0, 1)]);
    ops.extend(steps(0));
    ops.extend(steps(1));
    scenario(&ops, OnDeletion::Remove, OnRevival::Continue, false).unwrap();
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

/// The event whose state cannot be stored and the deletion behind it came together: the mark takes the
/// deletion's place in the put, and used to settle its notice, too.
#[test]
fn a_deletion_that_came_with_an_event_that_cannot_be_stored_is_not_lost() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    world.run(&Op::Append(Kind::Put)).unwrap();
    world.deliver(0, 0);
    rest(&mut world, 0);
    // What the next lane stands on is this task's own.
    world.tasks[0].cache.as_mut().unwrap().verified = true;
    world.run(&Op::Append(Kind::Heavy)).unwrap();
    // The event was delivered when it could still be read.
    world.deliver(0, 1);
    world.run(&Op::Delete).unwrap();
    world.deliver(0, 2);
    rest(&mut world, 0);
    assert!(world.unsettled.is_empty(), "{:?}", world.unsettled);
    let header = world.stored.unwrap().header;
    assert_eq!(
        (header.deleted, header.quarantine, header.version),
        (true, None, Some(0))
    );
}

/// A deletion says nothing of the state that other code has stored, and need not be able to store it: it
/// used to become a mark on an event that was not there, which settled the deletion's notice; under
/// `restart` the next life was then folded onto the last.
#[test]
fn a_deletion_is_stored_by_code_that_cannot_store_the_state() {
    for with_an_event in [false, true] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, true);
        refuses(&mut world, 0, |view| numbers(view).unwrap().len() > 1);
        for entry in 0..2 {
            world.run(&Op::Append(Kind::Put)).unwrap();
            world.deliver(1, entry);
        }
        rest(&mut world, 1);
        if with_an_event {
            world.run(&Op::Append(Kind::Put)).unwrap();
            let mut verified = Base::from_stored(&*world.tasks[0].rules.fold, world.stored.clone());
            verified.verified = true;
            world.tasks[0].cache = Some(verified);
            world.deliver(0, 2);
        }
        world.run(&Op::Delete).unwrap();
        world.deliver(0, world.entries.len() - 1);
        rest(&mut world, 0);
        let header = world.stored.as_ref().unwrap().header.clone();
        assert_eq!(
            (header.deleted, header.quarantine, header.version),
            (true, None, Some(1)),
            "with an event behind the version: {with_an_event}"
        );
        world.run(&Op::Revive).unwrap();
        world.deliver(0, world.entries.len() - 1);
        rest(&mut world, 0);
        let (header, began) = (
            world.stored.as_ref().unwrap().header.clone(),
            world.log.len() as u64 - 1,
        );
        assert_eq!(
            (header.deleted, header.quarantine, header.first, header.version),
            (false, None, began, Some(began))
        );
    }
}

/// Another's mark is tried by code that cannot store the state either; what is read behind it changes
/// nothing and takes more than one page. It was read from the beginning after each put, without an end.
#[test]
fn a_mark_on_what_cannot_be_stored_is_tried_once() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, false);
    for task in 0..2 {
        refuses(&mut world, task, |view| numbers(view).unwrap().len() > 1);
    }
    world.append(Kind::Put);
    world.append(Kind::Put);
    let list = [0, 1].map(|n: u64| Document::Number(n.to_string().into()));
    let view = StoredState::Document(Document::List(list.into()));
    world.stored = Some(replica(ends_with(&world.log[1]), Some(view)));
    for entry in 2..9 {
        world.append(Kind::Keep);
        world.deliver(1, entry);
    }
    rest(&mut world, 1);
    let marked = world.stored.as_ref().unwrap().header.quarantine.clone();
    assert!(marked.is_some_and(|mark| mark.by.contains("old")));
    world.deliver(0, 8);
    rest(&mut world, 0);
    let header = &world.stored.as_ref().unwrap().header;
    let mark = header.quarantine.as_ref();
    assert_eq!(
        (header.version, mark.map(|mark| mark.by.contains("new"))),
        (Some(1), Some(true))
    );
}

/// Events that change nothing, on a base that is not what is stored: they were settled by that, and the put
/// of their version was refused. The replica stayed behind, or deleted, until the next event.
#[test]
fn a_version_without_a_change_that_the_store_refuses_is_read_on_to() {
    for deleted in [false, true] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
        world.run(&Op::Append(Kind::Put)).unwrap();
        world.deliver(0, 0);
        if deleted {
            world.run(&Op::Delete).unwrap();
            world.deliver(0, 1);
        }
        rest(&mut world, 0);
        assert_eq!(world.stored.as_ref().unwrap().header.deleted, deleted);
        world.run(&Op::Append(Kind::Keep)).unwrap();
        world.deliver(1, world.entries.len() - 1);
        // An eventually consistent load misses the marker, or the cache an administrative write.
        let stored = world.stored.clone();
        if deleted {
            world.stored = None;
        } else {
            let mut verified = Base::from_stored(&*world.tasks[1].rules.fold, stored.clone());
            verified.verified = true;
            world.tasks[1].cache = Some(verified);
        }
        assert!(world.step(1, false, false).unwrap(), "it loads");
        world.stored = stored;
        if !deleted {
            world.run(&Op::Bump).unwrap();
        }
        rest(&mut world, 1);
        let header = world.stored.as_ref().unwrap().header.clone();
        assert_eq!((header.deleted, header.version), (false, Some(1)), "deleted: {deleted}");
    }
}

/// The deletion and the life after it were looked at between the fold and its put, which marked an event
/// of the life before: nothing was left that could have ended the mark.
#[test]
fn a_mark_that_is_made_after_a_look_does_not_outlive_its_life() {
    let step = Op::Step {
        task: 0,
        lose_reply: false,
    };
    let mut ops = vec![Op::Append(Kind::Put), Op::Append(Kind::Put), Op::Truncate(1)];
    ops.extend([
        Op::Append(Kind::Heavy),
        Op::Deliver { task: 0, pick: 0 },
        step.clone(),
        step,
    ]);
    ops.extend([Op::Append(Kind::Put), Op::Delete, Op::Append(Kind::Put)]);
    scenario(&ops, OnDeletion::Keep, OnRevival::Continue, true).unwrap();
}

/// Under `restart` a marked stream that was found to begin later is folded again: beyond the mark, which
/// used to stay and to settle whatever came from then on.
#[test]
fn a_mark_ends_with_the_life_that_is_folded_anew() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, true);
    for (entry, kind) in [Kind::Put, Kind::Put, Kind::Heavy].into_iter().enumerate() {
        world.append(kind);
        world.deliver(0, entry);
        rest(&mut world, 0);
    }
    let mark = world.stored.as_ref().unwrap().header.quarantine.clone();
    assert_eq!(mark.map(|mark| mark.at), Some(2));
    world.run(&Op::Truncate(1)).unwrap();
    world.append(Kind::Put);
    let token = world.next_token;
    world.tasks[0].lane.deliver(token, Arrival::Moved, false);
    rest(&mut world, 0);
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!(
        (header.first, header.version, header.quarantine.clone()),
        (1, Some(3), None)
    );
}

fn raw(revision: Revision) -> RawEvent {
    RawEvent {
        stream: "s-1".into(),
        revision,
        id: Uuid::from_u128(u128::from(revision) + 1),
        kind: "Put".into(),
        json: true,
        data: Bytes::new(),
        metadata: Bytes::new(),
        created: time(revision),
    }
}

/// Runs a lane whose stream shows `readable` and has indexed up to `last`, until it rests or waits.
fn run(lane: &mut Driven, now: Duration, readable: &[Revision], last: Revision) -> (Option<Duration>, Option<Header>) {
    let mut stored = None;
    loop {
        let outcome = match lane.next(now) {
            Next::Idle => return (None, stored),
            Next::WaitUntil(at) => return (Some(at), stored),
            Next::Busy | Next::HeldBack => unreachable!("each effect is run to its end, and none is held back"),
            Next::Do(Effect::Load { .. }) => Outcome::Loaded(None),
            Next::Do(Effect::Forget { .. }) => Outcome::Forgotten,
            Next::Do(Effect::Look) => unreachable!("nothing to look at"),
            Next::Do(Effect::Read { from, .. }) => Outcome::Read(Slice {
                events: readable.iter().filter(|r| **r >= from).map(|r| raw(*r)).collect(),
                end: true,
                presence: Presence::Present,
                first: None,
                last: Some(last),
            }),
            Next::Do(Effect::Put(put, _)) => {
                stored = Some(put.header.clone());
                Outcome::Put(PutOutcome::Done)
            }
        };
        lane.apply(outcome, now);
    }
}

#[test]
fn what_a_delivery_names_and_no_read_shows_is_waited_for() {
    for event in [None, Some(raw(2))] {
        let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
            .rules
            .clone();
        let mut lane = Driven::new(rules);
        let named = event.clone().map_or(Arrival::Revision(2), Arrival::Event);
        lane.deliver(1, named, false);
        let (wait, stored) = run(&mut lane, Duration::ZERO, &[0], 0);
        assert_eq!(stored.unwrap().version, Some(0));
        assert!(
            !lane.verdicts().contains(&Verdict::Ack(1)),
            "it was there for whoever named it"
        );
        let due = wait.unwrap();
        assert!(due > Duration::ZERO && lane.unsettled() == 1);
        let (_, stored) = run(&mut lane, due, &[0, 1, 2], 2);
        assert_eq!(stored.unwrap().version, Some(2));
        assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
    }
    // A link may name what will never be: it is not waited for for good. An event in hand is.
    for (named, given_up) in [(Arrival::Revision(2), true), (Arrival::Event(raw(2)), false)] {
        let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
            .rules
            .clone();
        let mut lane = Driven::new(rules);
        lane.deliver(1, named, false);
        let mut now = Duration::ZERO;
        while let (Some(at), _) = run(&mut lane, now, &[0], 0) {
            now = at;
            if now > 2 * SHOWN_WITHIN {
                break;
            }
        }
        assert_eq!(lane.verdicts() == [Verdict::Ack(1)], given_up);
        assert!(now > SHOWN_WITHIN / 2, "{now:?}");
    }
    // What is indexed and not shown is gone, and settled at once.
    let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
        .rules
        .clone();
    let mut lane = Driven::new(rules);
    lane.deliver(1, Arrival::Revision(2), false);
    assert_eq!(run(&mut lane, Duration::ZERO, &[0], 2).0, None);
    assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
}

/// The wait used to be counted from the first read that fell short, whatever later reads showed.
#[test]
fn a_stream_that_becomes_readable_bit_by_bit_is_waited_for() {
    let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
        .rules
        .clone();
    let mut lane = Driven::new(rules);
    let (mut now, mut shown) = (Duration::ZERO, 0);
    lane.deliver(1, Arrival::Revision(100), false);
    while now < 3 * SHOWN_WITHIN {
        let readable: Vec<_> = (0..=shown).collect();
        let (wait, _) = run(&mut lane, now, &readable, shown);
        assert_eq!((lane.unsettled(), lane.verdicts()), (1, vec![]), "at {now:?}");
        now = wait.unwrap().max(now + SHOWN_WITHIN / 4);
        shown += 1;
    }
    let readable: Vec<_> = (0..=100).collect();
    let (_, stored) = run(&mut lane, now, &readable, 100);
    assert_eq!(stored.unwrap().version, Some(100));
    assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
}

/// Each delivery waits for as long; none is given up with one that came long before it.
#[test]
fn what_is_delivered_late_is_waited_for_from_then_on() {
    let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
        .rules
        .clone();
    let mut lane = Driven::new(rules);
    lane.deliver(1, Arrival::Revision(2), false);
    let mut now = Duration::ZERO;
    let mut given_up = [None, None];
    while let (Some(at), _) = run(&mut lane, now, &[0], 0) {
        now = at;
        if now > SHOWN_WITHIN / 2 && lane.unsettled() == 1 && lane.inbox_mut().newest == 1 {
            lane.deliver(2, Arrival::Revision(3), false);
        }
        for verdict in lane.verdicts() {
            let Verdict::Ack(token) = verdict else { unreachable!() };
            given_up[usize::try_from(token).unwrap() - 1] = Some(now);
        }
    }
    lane.verdicts().iter().for_each(|v| match v {
        Verdict::Ack(2) => given_up[1] = Some(now),
        other => panic!("{other:?}"),
    });
    let [Some(first), Some(second)] = given_up else {
        panic!("{given_up:?}")
    };
    assert!(first < 2 * SHOWN_WITHIN, "{first:?}");
    assert!(second > first + SHOWN_WITHIN / 2, "{first:?}, {second:?}");
}

#[test]
fn a_hole_between_two_events_is_crossed_as_one_before_them() {
    for policy in [OnLostHistory::Partial, OnLostHistory::Quarantine] {
        let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
            .rules
            .clone();
        let rules = Rules {
            on_lost_history: policy,
            ..(*rules).clone()
        };
        let mut lane = Driven::new(Arc::new(rules));
        lane.deliver(1, Arrival::Revision(5), false);
        let (_, stored) = run(&mut lane, Duration::ZERO, &[0, 1, 4, 5], 5);
        let header = stored.unwrap();
        let seen = (header.first, header.version, header.quarantine.map(|mark| mark.at));
        match policy {
            OnLostHistory::Partial => assert_eq!(seen, (4, Some(5), None)),
            OnLostHistory::Quarantine => assert_eq!(seen, (0, Some(1), Some(2))),
        }
    }
}

/// The ages of a whole stream used to be kept, and counted as though it had become durable now.
#[test]
fn what_a_fold_anew_replaces_does_not_become_durable_again() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    for _ in 0..20 {
        world.append(Kind::Put);
    }
    let unreadable = StoredState::Json(Vec::new());
    world.stored = Some(replica(ends_with(&world.log[18]), Some(unreadable)));
    world.garbled = true;
    world.deliver(0, 19);
    let rules = world.tasks[0].rules.clone();
    while world.stored.as_ref().unwrap().header.version != Some(19) {
        assert!(world.step(0, false, false).unwrap());
        let kept = match world.tasks[0].lane.known().map(|known| &known.unsaved.folded) {
            Some(Folded::Run(run)) => run.created.len(),
            _ => 0,
        };
        assert!(kept <= rules.read.events, "{kept} of one page");
    }
    assert_eq!(world.tasks[0].lane.tally().durable, [time(19)]);
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

/// The event in hand follows the version, and the stream that it comes from is another one.
#[test]
fn the_first_fold_on_a_loaded_base_sees_what_it_follows() {
    for same in [true, false] {
        let (mut world, mut lane) = loaded_and_delivered();
        if !same {
            world.log[1].id = Uuid::from_u128(99);
        }
        let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
            panic!("it is folded unseen")
        };
        assert_eq!((from, limit.events), (1, 2));
        lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
        let Next::Do(Effect::Put(put, kind)) = lane.next(Duration::ZERO) else {
            panic!("nothing is put")
        };
        if same {
            assert_eq!((kind, put.header.version), (PutKind::Fold, Some(2)));
            assert_eq!(lane.tally().gap_reads, 0, "a look at what is followed fills no gap");
        } else {
            assert_eq!(
                (kind, put.header.version, &put.body),
                (PutKind::Diverged, Some(1), &Body::Stored)
            );
        }
    }
}

/// A new leader may not show all of a stream yet, and a deposed one shows what it had: neither used to
/// be given the time, and the mark stayed until an operator came.
#[test]
fn a_stream_that_looks_short_is_looked_at_again_before_it_is_marked() {
    for (standing, stays) in [(0, false), (0, true), (1, false), (1, true)] {
        let (_, mut lane) = loaded_and_delivered();
        assert!(matches!(lane.next(Duration::ZERO), Next::Do(Effect::Read { .. })));
        lane.apply(Outcome::Read(Slice::nothing(Presence::Absent)), Duration::ZERO);
        let short = [
            Standing::Missing,
            Standing::Live(Some(Newest {
                revision: 0,
                id: Uuid::from_u128(1),
                created: time(0),
            })),
        ];
        let mut now = Duration::ZERO;
        let marked = loop {
            match lane.next(now) {
                Next::Do(Effect::Look) if stays || now < SHOWN_WITHIN / 2 => {
                    lane.apply(Outcome::Looked(short[standing].clone()), now);
                }
                Next::Do(Effect::Put(_, kind)) => break kind == PutKind::Diverged && now >= SHOWN_WITHIN,
                Next::WaitUntil(at) => now = at,
                Next::Do(_) => break false,
                other => panic!("{other:?}"),
            }
            assert_eq!(lane.verdicts(), [], "at {now:?}");
        };
        assert_eq!(marked, stays);
    }
}

/// A category's link says that the stream goes on, not where: it is settled when all is folded.
#[test]
fn a_stream_that_goes_on_somewhere_is_read_to_its_end() {
    let (world, mut lane) = loaded_and_delivered();
    lane.deliver(2, Arrival::Onward, false);
    let mut reads = 0;
    let put = loop {
        match lane.next(Duration::ZERO) {
            Next::Do(Effect::Read { from, limit }) => {
                reads += 1;
                lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
            }
            Next::Do(Effect::Put(put, _)) => break put,
            other => panic!("{other:?}"),
        }
        assert_eq!(lane.verdicts(), [], "nothing is stored yet");
    };
    assert!(reads > 0);
    assert_eq!(put.header.version, Some(3));
    lane.apply(Outcome::Put(PutOutcome::Done), Duration::ZERO);
    while let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) {
        lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
    }
    assert_eq!(lane.verdicts().len(), 2);
}

/// Whatever came while its put waited for its turn used to be folded at once, on one more copy of the
/// state each time.
#[test]
fn what_waits_for_its_turn_gathers_what_comes_and_folds_it_once() {
    let (mut world, mut lane) = loaded_and_delivered();
    lane.hold_back(true);
    let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
        panic!("it is folded unseen")
    };
    let slice = Slice {
        events: world.log[1..3].to_vec(),
        last: Some(2),
        ..world.read(from, limit)
    };
    lane.apply(Outcome::Read(slice), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    assert_eq!(lane.tally().applied, 1);
    for revision in 3..5 {
        if revision == 4 {
            world.append(Kind::Put);
        }
        lane.deliver(revision, Arrival::Event(world.log[revision as usize].clone()), false);
        assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
        assert_eq!(lane.tally().applied, 0, "at revision {revision}");
    }
    // So much is in hand that a put would not take more.
    world.append(Kind::Put);
    lane.deliver(5, Arrival::Event(world.log[5].clone()), false);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    assert_eq!(lane.tally().applied, 3);
    world.append(Kind::Put);
    lane.deliver(6, Arrival::Event(world.log[6].clone()), false);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    lane.hold_back(false);
    let Next::Do(Effect::Put(put, PutKind::Fold)) = lane.next(Duration::ZERO) else {
        panic!("its turn has come")
    };
    assert_eq!((put.header.version, lane.tally().applied), (Some(6), 1));
    lane.apply(Outcome::Put(PutOutcome::Done), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::Idle));
    assert_eq!(lane.verdicts().len(), 5);
}

/// How its stream stands is seen without waiting for a turn to put.
#[test]
fn what_waits_for_its_turn_looks_first() {
    let (world, mut lane) = loaded_and_delivered();
    lane.hold_back(true);
    let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
        panic!("it is folded unseen")
    };
    lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    lane.deliver(2, Arrival::Moved, false);
    assert!(matches!(lane.next(Duration::ZERO), Next::Do(Effect::Look)));
    lane.apply(Outcome::Looked(Standing::SoftDeleted), Duration::ZERO);
    assert!(matches!(
        lane.next(Duration::ZERO),
        Next::Do(Effect::Put(_, PutKind::Deletion))
    ));
}

/// A stream that may not be read is marked once, and looked at again when its note says so.
#[test]
fn a_denied_stream_is_marked_and_tried_again() {
    let (world, mut lane) = loaded_and_delivered();
    assert!(matches!(lane.next(Duration::ZERO), Next::Do(Effect::Read { .. })));
    lane.apply(Outcome::Denied("read stream `s-1`".into()), Duration::ZERO);
    let Next::Do(Effect::Put(put, PutKind::Quarantine("denied"))) = lane.next(Duration::ZERO) else {
        panic!("it is not marked")
    };
    let mark = put.header.quarantine.clone().unwrap();
    assert_eq!(
        (mark.kind(), &put.body, put.header.version),
        (MarkKind::Denied, &Body::Stored, Some(1))
    );
    lane.apply(Outcome::Put(PutOutcome::Done), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::Idle));
    assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
    assert!(lane.is_denied());

    let list = [0, 1].map(|n: u64| Document::Number(n.to_string().into()));
    let view = StoredState::Document(Document::List(list.into()));
    let replica = replica(put.header.clone(), Some(view));
    for (token, denied) in [(2, true), (3, false)] {
        lane.deliver(token, Arrival::Noted { generation: 1 }, false);
        assert!(matches!(
            lane.next(Duration::ZERO),
            Next::Do(Effect::Load { fresh: true })
        ));
        lane.apply(Outcome::Loaded(Some(Box::new(replica.clone()))), Duration::ZERO);
        let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
            panic!("it is not tried")
        };
        if denied {
            lane.apply(Outcome::Denied("read stream `s-1`".into()), Duration::ZERO);
            assert!(matches!(lane.next(Duration::ZERO), Next::Idle), "nothing is written");
        } else {
            lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
            let Next::Do(Effect::Put(put, PutKind::Repair)) = lane.next(Duration::ZERO) else {
                panic!("the mark stays")
            };
            assert_eq!((put.header.version, put.header.quarantine), (Some(3), None));
        }
    }
}
