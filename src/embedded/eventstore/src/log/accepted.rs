//! Appends that are accepted and not committed yet, held for as long as a fault says.
//!
//! Invariant: an append is judged against everything accepted before it, committed or not, so a
//! conflict may name a revision that no read shows yet; and what is accepted for a stream is committed
//! in that order, or dies with everything that was accepted on top of it.
//!
//! Without a fault nothing is held: the window between acceptance and visibility is the commit itself.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    metadata::{self, Metadata},
    rules::Standing,
    stream,
    writer::{What, Write},
};

/// Faults of commits, shared by all nodes of a log.
#[derive(Debug, Default)]
pub(super) struct CommitFaults {
    armed: AtomicBool,
    set: Mutex<Set>,
}

#[derive(Debug, Default)]
struct Set {
    all: Fault,
    streams: HashMap<String, Fault>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fault {
    delay: Duration,
    dying: usize,
}

impl CommitFaults {
    fn change(&self, stream: Option<&str>, change: impl FnOnce(&mut Fault)) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        match stream {
            None => change(&mut set.all),
            Some(stream) => change(set.streams.entry(family(stream).to_owned()).or_default()),
        }
        self.armed.store(true, Ordering::Release);
    }

    /// Commits come so much later than their acceptance; of one stream, or of all.
    pub(super) fn delay(&self, stream: Option<&str>, delay: Duration) {
        self.change(stream, |fault| fault.delay = delay);
    }

    /// So many of the next appends are accepted and never committed; of one stream, or of all.
    pub(super) fn lose(&self, stream: Option<&str>, count: usize) {
        self.change(stream, |fault| fault.dying = count);
    }

    /// How long writes of this family are held.
    fn delay_of(&self, family: &str) -> Duration {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let own = set.streams.get(family).map(|own| own.delay).unwrap_or_default();
        own.max(set.all.delay)
    }

    /// How long a write of this family is held if it is accepted. None: it is not held.
    fn of(&self, family: &str) -> Option<Duration> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let own = set.streams.get(family).copied().unwrap_or_default();
        let delay = own.delay.max(set.all.delay);
        (own.dying > 0 || set.all.dying > 0 || !delay.is_zero()).then_some(delay)
    }

    /// Whether an accepted write of this family is one of those that die.
    fn dies(&self, family: &str) -> bool {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let own = set.streams.get_mut(family).map(|own| &mut own.dying);
        if let Some(own) = own.filter(|own| **own > 0) {
            *own -= 1;
            return true;
        }
        let dies = set.all.dying > 0;
        set.all.dying -= usize::from(dies);
        dies
    }
}

/// A stream and its metadata stream stand and fall together: a write to one may be told by the other.
fn family(stream: &str) -> &str {
    stream::described_by(stream).unwrap_or(stream)
}

/// A write that waits for its commit.
struct Waiting {
    number: u64,
    since: Instant,
    write: Write,
    dies: bool,
}

/// What is accepted for a stream and its metadata stream.
struct Family {
    own: Standing,
    /// The metadata stream's next revision.
    described: u64,
    /// The server knows of the metadata stream by itself, which outlives a tombstone.
    remembered: bool,
    ids: HashMap<Uuid, (bool, u64)>,
    at: HashMap<(bool, u64), Uuid>,
    waiting: VecDeque<Waiting>,
    due: Instant,
}

/// Everything that is held.
#[derive(Default)]
pub(super) struct Accepted {
    faults: Arc<CommitFaults>,
    families: HashMap<Arc<str>, Family>,
    due: BinaryHeap<Reverse<(Instant, u64, Arc<str>)>>,
    number: u64,
}

/// How a write is judged that is to be held.
pub(super) struct Judged<'a> {
    family: &'a Family,
    of_metadata: bool,
}

impl Judged<'_> {
    /// The stream with everything that is accepted for it.
    pub(super) fn standing(&self) -> Standing {
        if self.of_metadata {
            Standing {
                next: self.family.described,
                tombstoned: self.family.own.tombstoned && !self.family.remembered,
                deleted: false,
                described: false,
            }
        } else {
            self.family.own
        }
    }

    /// The revision of an accepted event, by its id.
    pub(super) fn recent(&self, id: Uuid) -> Option<u64> {
        let (of_metadata, revision) = self.family.ids.get(&id)?;
        (*of_metadata == self.of_metadata).then_some(*revision)
    }

    /// The id of the accepted event at a revision.
    pub(super) fn at(&self, revision: u64) -> Option<Uuid> {
        self.family.at.get(&(self.of_metadata, revision)).copied()
    }
}

impl Accepted {
    pub(super) fn new(faults: Arc<CommitFaults>) -> Self {
        Self {
            faults,
            ..Self::default()
        }
    }

    /// How long a write to this stream is held, if at all. What follows something that is held is
    /// held, too.
    pub(super) fn holds(&self, stream: &str) -> Option<Duration> {
        let family = family(stream);
        let follows = || self.families.contains_key(family).then_some(Duration::ZERO);
        self.faults.of(family).or_else(follows)
    }

    /// What is held for a stream's family; `load` gives how the stream and its metadata stream (its
    /// next revision, and whether it is remembered) stand without that.
    pub(super) fn judged<E>(
        &mut self,
        stream: &str,
        load: impl FnOnce(&str) -> Result<(Standing, u64, bool), E>,
    ) -> Result<Judged<'_>, E> {
        let name = family(stream);
        let of_metadata = name != stream;
        let family = match self.families.entry(name.into()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let (own, described, remembered) = load(name)?;
                new.insert(Family {
                    own,
                    described,
                    remembered,
                    ids: HashMap::new(),
                    at: HashMap::new(),
                    waiting: VecDeque::new(),
                    due: Instant::now(),
                })
            }
        };
        Ok(Judged { family, of_metadata })
    }

    /// Gives up a family for which nothing is held after all.
    pub(super) fn settle(&mut self, stream: &str) {
        let name = family(stream);
        if self.families.get(name).is_some_and(|family| family.waiting.is_empty()) {
            self.families.remove(name);
        }
    }

    /// Accepts a write that was judged to be written.
    pub(super) fn accept(&mut self, write: Write, delay: Duration) {
        let name: Arc<str> = family(&write.stream).into();
        let of_metadata = *name != *write.stream;
        let Some(family) = self.families.get_mut(&name) else {
            return;
        };
        let dies = self.faults.dies(&name);
        family.take(&write.what, of_metadata);
        // In the order of acceptance, whatever the delay was set to meanwhile.
        family.due = family.due.max(Instant::now() + delay);
        self.number += 1;
        self.due.push(Reverse((family.due, self.number, Arc::clone(&name))));
        family.waiting.push_back(Waiting {
            number: self.number,
            since: Instant::now(),
            write,
            dies,
        });
    }

    /// The delays were changed: what is held is held for as long as they say now.
    pub(super) fn retime(&mut self) {
        self.due.clear();
        for (name, family) in &mut self.families {
            let delay = self.faults.delay_of(name);
            for (index, waiting) in family.waiting.iter().enumerate() {
                let due = waiting.since + delay;
                family.due = if index == 0 { due } else { family.due.max(due) };
                self.due.push(Reverse((family.due, waiting.number, Arc::clone(name))));
            }
        }
    }

    /// When the next held write is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, ..))| *due)
    }

    /// When the last of them is due.
    pub(super) fn last_due(&self) -> Option<Instant> {
        self.due.iter().map(|Reverse((due, ..))| *due).max()
    }

    /// The next write that is due: to be written now, or one that dies, with all that was accepted
    /// on top of it.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Due> {
        loop {
            if self.next_due()? > now {
                return None;
            }
            let Reverse((_, number, name)) = self.due.pop()?;
            let Some(family) = self.families.get_mut(&name) else {
                continue;
            };
            // One that died with another is still listed here.
            if family.waiting.front().is_none_or(|first| first.number != number) {
                continue;
            }
            let Some(first) = family.waiting.pop_front() else {
                continue;
            };
            if first.dies {
                let rest = std::mem::take(&mut family.waiting);
                self.families.remove(&name);
                let dead = std::iter::once(first.write).chain(rest.into_iter().map(|waiting| waiting.write));
                return Some(Due::Dead(dead.collect()));
            }
            if family.waiting.is_empty() {
                self.families.remove(&name);
            }
            return Some(Due::Commit(first.write));
        }
    }

    /// Everything that is held dies, as with its leader.
    pub(super) fn lose(&mut self) -> Vec<Write> {
        self.due.clear();
        let families = std::mem::take(&mut self.families);
        families
            .into_values()
            .flat_map(|family| family.waiting)
            .map(|waiting| waiting.write)
            .collect()
    }
}

/// What became of a write that was held.
pub(super) enum Due {
    /// It is to be committed.
    Commit(Write),
    /// These are never committed.
    Dead(Vec<Write>),
}

impl Family {
    /// What a write changes, as the writer itself will do it.
    fn take(&mut self, what: &What, of_metadata: bool) {
        match what {
            What::Append { events, .. } if of_metadata => {
                for event in events {
                    self.note(true, self.described, event.id);
                    self.described += 1;
                    self.own.described = true;
                    self.remembered = true;
                }
                if self.own.deleted {
                    // The server's own record, behind what revives the stream: the metadata once more,
                    // unless they are no object.
                    self.own.deleted = false;
                    let said = events
                        .last()
                        .is_none_or(|last| metadata::revived(&last.data, 0).is_some());
                    self.described += u64::from(said);
                } else if let Some(last) = events.last() {
                    self.own.deleted = Metadata::parse(&last.data, last.json).deletes();
                }
            }
            What::Append { events, .. } => {
                for event in events {
                    self.note(false, self.own.next, event.id);
                    self.own.next += 1;
                }
                if std::mem::take(&mut self.own.deleted) {
                    self.described += 1;
                }
            }
            // Of the metadata stream itself: that is another family's.
            What::Delete { .. } if of_metadata => {}
            What::Delete { hard: true, .. } => self.own.tombstoned = true,
            What::Delete { hard: false, .. } => {
                self.described += 1;
                self.own.described = true;
                self.remembered = true;
                self.own.deleted = true;
            }
        }
    }

    fn note(&mut self, of_metadata: bool, revision: u64, id: Uuid) {
        self.ids.entry(id).or_insert((of_metadata, revision));
        self.at.insert((of_metadata, revision), id);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::{Appended, Expected, Log, LogPlace, NewEvent, WriteError},
        *,
    };

    const HOUR: Duration = Duration::from_hours(1);
    const STREAMS: [&str; 4] = ["a", "$$a", "b", "$$b"];

    fn log() -> Log {
        Log::open(&LogPlace::Memory, Vec::new()).unwrap()
    }

    fn event(random: &mut fastrand::Rng, stream: &str) -> NewEvent {
        let data: &[u8] = match random.u8(0..4) {
            0 if stream.starts_with("$$") => br#"{"$tb":9223372036854775807}"#,
            1 => b"no object",
            _ => br#"{"mine":1}"#,
        };
        NewEvent {
            id: Uuid::from_u128(random.u128(1..)),
            event_type: "$metadata".into(),
            json: true,
            data: Bytes::from_static(data),
            metadata: Bytes::new(),
        }
    }

    /// Writes with every expectation, deletions of both kinds; ids that never come twice.
    fn writes(seed: u64) -> Vec<(&'static str, What)> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..random.usize(1..40))
            .map(|_| {
                let stream = STREAMS[random.usize(..STREAMS.len())];
                let expected = match random.u8(0..6) {
                    0 | 1 => Expected::Any,
                    2 => Expected::NoStream,
                    3 => Expected::StreamExists,
                    _ => Expected::Exact(random.u64(0..6)),
                };
                let deletes = !stream.starts_with("$$") && random.u8(0..5) == 0;
                let what = if deletes {
                    let hard = random.u8(0..12) == 0;
                    What::Delete { expected, hard }
                } else {
                    let events = (0..random.usize(0..3)).map(|_| event(&mut random, stream)).collect();
                    What::Append { expected, events }
                };
                (stream, what)
            })
            .collect()
    }

    /// Its position is given at the commit, so it is no part of the comparison.
    fn plain(result: Result<Appended, WriteError>) -> Result<Option<u64>, WriteError> {
        result.map(|appended| appended.revision)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_held_is_judged_as_if_it_were_written() {
        for seed in 0..300_u64 {
            let (written, held) = (log(), log());
            held.commits().delay(None, HOUR);
            let mut expected = Vec::new();
            for (stream, what) in writes(seed) {
                expected.push(plain(written.start(stream.into(), what).await));
            }
            let started: Vec<_> = writes(seed)
                .into_iter()
                .map(|(stream, what)| held.start(stream.into(), what))
                .collect();
            held.commits().delay(None, Duration::ZERO);
            for (index, (expected, answer)) in expected.into_iter().zip(started).enumerate() {
                assert_eq!(plain(answer.await), expected, "seed {seed}, write {index}");
            }
            for stream in STREAMS {
                let bounds = written.bounds(stream.to_owned()).await.unwrap();
                assert_eq!(
                    held.bounds(stream.to_owned()).await.unwrap(),
                    bounds,
                    "seed {seed}, {stream}"
                );
            }
        }
    }

    #[tokio::test]
    async fn what_was_accepted_on_top_of_a_write_dies_with_it() {
        let log = log();
        let append = |log: &Log, stream: &str, expected| {
            let events = vec![event(&mut fastrand::Rng::new(), stream)];
            log.start_append(stream.into(), expected, events)
        };
        append(&log, "a", Expected::NoStream).await.unwrap();
        log.commits().delay(None, HOUR);
        log.commits().lose(Some("a"), 1);
        // What is refused is not accepted, so it takes nobody's death.
        append(&log, "a", Expected::Exact(7)).await.unwrap_err();
        let first = append(&log, "a", Expected::Exact(0));
        let on_top = append(&log, "a", Expected::Exact(1));
        let elsewhere = append(&log, "b", Expected::NoStream);
        let current = append(&log, "a", Expected::Exact(0)).await.unwrap_err();
        assert_eq!(current, WriteError::WrongExpectedVersion { current: Some(2) });
        log.commits().delay(None, Duration::ZERO);
        assert_eq!(elsewhere.await.unwrap().revision, Some(0));
        assert_eq!(first.await.unwrap_err(), WriteError::TimedOut);
        assert_eq!(on_top.await.unwrap_err(), WriteError::TimedOut);
        assert_eq!(append(&log, "a", Expected::Exact(0)).await.unwrap().revision, Some(1));
    }
}
