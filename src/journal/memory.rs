//! An event store in memory that obeys EventStoreDB's rules, with faults to order, for tests.
//!
//! Expected revisions, idempotency by ids, soft deletion, tombstones, revival and truncation are
//! those of the real store; clones share one store, as clients share a server. So is what happens
//! between an append's acceptance and its commit: expectations are judged against what is accepted
//! and conflicts answered at once, reads show what is committed, an accepted append may die, and
//! the same append sent again before its commit is never answered.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Appended, Expected, Journal, JournalError, NewEvent, Newest, Presence, ReadLimit, Slice, Standing};
use crate::{
    clock,
    event::{RawEvent, Revision},
};

/// Something to go wrong with an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendFault {
    /// It is refused as if the stream stood elsewhere, though nobody appended.
    Conflict,
    /// It is carried out, and the reply is lost.
    LostAfterWrite,
    /// It never arrives, and nobody can tell.
    LostBeforeWrite,
    /// The store cannot be reached, and says so.
    Unavailable,
    /// It is accepted, and committed only after this long: until then others conflict with what
    /// nobody can read.
    Late(Duration),
    /// It is accepted, dies after this long with everything that was accepted behind it, and
    /// nobody can tell.
    Dies(Duration),
    /// It is accepted and committed after this long, and its reply is lost at once.
    LateAndLost(Duration),
}

/// What was asked of the store, for tests that count round trips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalCalls {
    /// Reads of streams.
    pub reads: u64,
    /// Events that reads brought.
    pub events_read: u64,
    /// Looks at how a stream stands.
    pub looks: u64,
    /// Appends.
    pub appends: u64,
}

impl JournalCalls {
    /// All round trips.
    pub fn total(self) -> u64 {
        self.reads + self.looks + self.appends
    }
}

/// Runs before an append, on the store.
type Hook = Box<dyn FnOnce(&MemoryJournal) + Send>;

/// The store. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryJournal {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    streams: HashMap<String, Stream>,
    calls: JournalCalls,
    /// What goes wrong with the nth append and the nth read of all.
    append_faults: BTreeMap<u64, AppendFault>,
    read_faults: BTreeMap<u64, JournalError>,
    hooks: BTreeMap<u64, Hook>,
    /// Parts of 256 of appends whose reply is lost, half of them written, and its dice.
    chaos: Option<(u8, fastrand::Rng)>,
    /// How long appends take to commit at most, parts of 256 of them that die, and their dice.
    commits: Option<(Duration, u8, fastrand::Rng)>,
    batches: u64,
    now: Option<DateTime<Utc>>,
    /// What happened to streams, oldest first.
    log: Vec<Happened>,
}

impl Inner {
    /// A batch's time is over; see [`Stream::resolve`].
    fn resolve(&mut self, stream: &str, number: u64, dies: bool) {
        if let Some(entry) = self.streams.get_mut(stream) {
            let before = entry.events.len();
            entry.resolve(number, dies);
            let happened = |event: &RawEvent| Happened {
                stream: event.stream.clone(),
                revision: Some(event.revision),
                at: event.created,
            };
            self.log.extend(entry.events[before..].iter().map(happened));
        }
        MemoryJournal::heed_metadata(self, stream);
    }

    fn deleted(&mut self, stream: &str) {
        let at = self.now.unwrap_or_else(clock::now);
        self.log.push(Happened {
            stream: stream.into(),
            revision: None,
            at,
        });
    }
}

/// One thing that happened to a stream: an event was committed, or the stream was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The stream.
    pub stream: Arc<str>,
    /// The event's revision; `None` for a deletion.
    pub revision: Option<Revision>,
    /// When.
    pub at: DateTime<Utc>,
}

/// How long the real server lets a call wait for a commit, before it gives up on telling.
const UNANSWERED: Duration = Duration::from_secs(2);

/// An append that is accepted and not committed.
struct Batch {
    number: u64,
    events: Vec<RawEvent>,
    /// It brings a deleted stream to life.
    revives: bool,
    ready: bool,
    told: Option<oneshot::Sender<bool>>,
}

#[derive(Default)]
struct Stream {
    /// Every event ever committed; the index is the revision.
    events: Vec<RawEvent>,
    /// Accepted behind them.
    batches: Vec<Batch>,
    first_readable: usize,
    /// Where it began again, each time after it was deleted.
    lives: Vec<Revision>,
    max_count: Option<usize>,
    soft_deleted: bool,
    tombstoned: bool,
}

impl Stream {
    fn readable(&self) -> &[RawEvent] {
        if self.soft_deleted || self.tombstoned {
            return &[];
        }
        let all = self.events.len();
        let kept = self.max_count.map_or(0, |count| all.saturating_sub(count));
        &self.events[self.first_readable.max(kept).min(all)..]
    }

    /// All that is accepted, whether it can be read or not.
    fn accepted(&self) -> impl Iterator<Item = &RawEvent> {
        self.events.iter().chain(self.batches.iter().flat_map(|b| &b.events))
    }

    fn deleted_as_accepted(&self) -> bool {
        self.soft_deleted && !self.batches.iter().any(|b| b.revives)
    }

    /// A batch's time is over: it commits when those before it have, or dies with those behind it.
    fn resolve(&mut self, number: u64, dies: bool) {
        let Some(at) = self.batches.iter().position(|b| b.number == number) else {
            return;
        };
        if dies {
            for mut batch in self.batches.drain(at..) {
                batch.told.take().map(|told| told.send(false));
            }
        } else {
            self.batches[at].ready = true;
        }
        while self.batches.first().is_some_and(|b| b.ready) {
            let mut batch = self.batches.remove(0);
            if batch.revives {
                self.soft_deleted = false;
                self.first_readable = self.events.len();
                self.lives.push(self.first_readable as Revision);
            }
            self.events.append(&mut batch.events);
            batch.told.take().map(|told| told.send(true));
        }
    }

    #[cfg(test)]
    fn committed(&self) -> Self {
        Self {
            events: self.events.clone(),
            batches: Vec::new(),
            lives: self.lives.clone(),
            ..*self
        }
    }

    fn presence(&self) -> Presence {
        match (self.tombstoned, self.soft_deleted || self.events.is_empty()) {
            (true, _) => Presence::Tombstoned,
            (false, true) => Presence::Absent,
            (false, false) => Presence::Present,
        }
    }
}

/// The store as it once was.
#[cfg(test)]
pub(crate) struct LogBackup {
    streams: HashMap<String, Stream>,
    log: Vec<Happened>,
}

impl MemoryJournal {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panicking test thread leaves the store as consistent as any other moment does.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked of it so far.
    pub fn calls(&self) -> JournalCalls {
        self.lock().calls
    }

    /// Counts from zero again.
    pub fn reset_calls(&self) {
        let mut inner = self.lock();
        let past = std::mem::take(&mut inner.calls);
        // Ordered faults stay as far ahead as they were.
        inner.append_faults = inner
            .append_faults
            .iter()
            .map(|(n, f)| (n.saturating_sub(past.appends), *f))
            .collect();
        let reads = std::mem::take(&mut inner.read_faults);
        inner.read_faults = reads
            .into_iter()
            .map(|(n, f)| (n.saturating_sub(past.reads), f))
            .collect();
        let hooks = std::mem::take(&mut inner.hooks);
        inner.hooks = hooks
            .into_iter()
            .map(|(n, f)| (n.saturating_sub(past.appends), f))
            .collect();
    }

    /// The nth append from now (1: the next) goes wrong.
    pub fn fail_append(&self, nth: u64, fault: AppendFault) {
        let mut inner = self.lock();
        let at = inner.calls.appends + nth;
        inner.append_faults.insert(at, fault);
    }

    /// The nth read from now (1: the next) goes wrong.
    pub fn fail_read(&self, nth: u64, error: JournalError) {
        let mut inner = self.lock();
        let at = inner.calls.reads + nth;
        inner.read_faults.insert(at, error);
    }

    /// Before the nth append from now (1: the next) something else happens: another writer, say.
    pub fn before_append(&self, nth: u64, hook: impl FnOnce(&Self) + Send + 'static) {
        let mut inner = self.lock();
        let at = inner.calls.appends + nth;
        inner.hooks.insert(at, Box::new(hook));
    }

    /// From now on, of 256 appends this many lose their reply, written or not, by these dice.
    pub fn lose_replies(&self, of_256: u8, seed: u64) {
        self.lock().chaos = Some((of_256, fastrand::Rng::with_seed(seed)));
    }

    /// Nothing is lost any more.
    pub fn calm(&self) {
        let mut inner = self.lock();
        (inner.chaos, inner.commits) = (None, None);
    }

    /// From now on an append is committed up to `at_most` after it was accepted, and of 256 this
    /// many die instead, by these dice. A zero: at once.
    pub fn delay_commits(&self, at_most: Duration, dying_of_256: u8, seed: u64) {
        self.lock().commits = (!at_most.is_zero()).then(|| (at_most, dying_of_256, fastrand::Rng::with_seed(seed)));
    }

    /// What the store's clock says from now on.
    pub fn set_now(&self, now: DateTime<Utc>) {
        self.lock().now = Some(now);
    }

    /// Appends at the stream's end, whatever it is, faults aside; the last event's revision.
    ///
    /// # Panics
    ///
    /// On a tombstoned stream: a test that appends to one has a mistake.
    pub fn push(&self, stream: &str, events: Vec<NewEvent>) -> Option<Revision> {
        let mut inner = self.lock();
        let now = inner.now.unwrap_or_else(clock::now);
        inner.batches += 1;
        let number = inner.batches;
        let entry = inner.streams.entry(stream.to_owned()).or_default();
        let expected = (entry.accepted().count() as u64).checked_sub(1).into();
        let judged = judge(stream, entry, expected, events, now, number).expect("a stream that is not tombstoned");
        // Behind what is under way it is committed with that.
        inner.resolve(stream, number, false);
        match judged {
            Judged::Done(appended) | Judged::Accepted(appended, _) => appended.revision,
            Judged::Twin => None,
        }
    }

    /// All events that the stream ever had, readable or not.
    pub fn all(&self, stream: &str) -> Vec<RawEvent> {
        self.lock()
            .streams
            .get(stream)
            .map(|s| s.events.clone())
            .unwrap_or_default()
    }

    /// Everything that has happened since so much had.
    pub fn happened(&self, since: usize) -> Vec<Happened> {
        self.lock().log.get(since..).unwrap_or_default().to_vec()
    }

    /// How much has happened.
    pub fn so_far(&self) -> usize {
        self.lock().log.len()
    }

    /// The revision that a forward read of the stream begins at, and how the stream stands.
    pub fn stands(&self, stream: &str) -> (Option<Revision>, Presence) {
        let inner = self.lock();
        inner.streams.get(stream).map_or((None, Presence::Absent), |s| {
            (s.readable().first().map(|event| event.revision), s.presence())
        })
    }

    /// Where the stream began again, each time after it was deleted.
    #[cfg(test)]
    pub(crate) fn lives(&self, stream: &str) -> Vec<Revision> {
        self.lock()
            .streams
            .get(stream)
            .map(|s| s.lives.clone())
            .unwrap_or_default()
    }

    /// The names of all streams that have events.
    pub fn streams(&self) -> Vec<String> {
        self.lock()
            .streams
            .iter()
            .filter(|(_, s)| !s.events.is_empty())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Deletes softly; an append revives.
    pub fn delete(&self, stream: &str) {
        let mut inner = self.lock();
        let entry = inner.streams.entry(stream.to_owned()).or_default();
        entry.soft_deleted = true;
        // What was accepted before is deleted with the rest.
        entry.batches.iter_mut().for_each(|batch| batch.revives = false);
        inner.deleted(stream);
    }

    /// Deletes for good.
    pub fn tombstone(&self, stream: &str) {
        let mut inner = self.lock();
        inner.streams.entry(stream.to_owned()).or_default().tombstoned = true;
        inner.deleted(stream);
    }

    /// Makes events below `revision` unreadable; above the end: all.
    pub fn truncate_before(&self, stream: &str, revision: Revision) {
        let mut inner = self.lock();
        let entry = inner.streams.entry(stream.to_owned()).or_default();
        entry.first_readable = entry.first_readable.max(revision as usize);
    }

    /// Brings an older backup of the stream back: its first `events` events only.
    pub fn restore(&self, stream: &str, events: usize) {
        if let Some(entry) = self.lock().streams.get_mut(stream) {
            entry.events.truncate(events);
            entry.batches.clear();
        }
    }

    /// All that is committed now, to be brought back by [`Self::restore_all`].
    #[cfg(test)]
    pub(crate) fn backup(&self) -> LogBackup {
        let inner = self.lock();
        let streams = inner
            .streams
            .iter()
            .map(|(name, stream)| (name.clone(), stream.committed()));
        LogBackup {
            streams: streams.collect(),
            log: inner.log.clone(),
        }
    }

    /// Brings an older copy of the whole store back.
    #[cfg(test)]
    pub(crate) fn restore_all(&self, backup: LogBackup) {
        let mut inner = self.lock();
        inner.streams = backup.streams;
        inner.log = backup.log;
    }

    /// What metadata of a stream, the newest event of `$$STREAM`, says of its events.
    fn heed_metadata(inner: &mut Inner, stream: &str) {
        let Some(name) = stream.strip_prefix("$$") else { return };
        let metadata = inner.streams.get(stream).and_then(|s| s.events.last());
        let metadata = metadata.and_then(|e| serde_json::from_slice::<serde_json::Value>(&e.data).ok());
        let Some(metadata) = metadata else { return };
        let number = |key: &str| metadata[key].as_u64().map(|n| n as usize);
        let (max_count, first) = (number("$maxCount"), number("$tb"));
        let entry = inner.streams.entry(name.to_owned()).or_default();
        entry.max_count = max_count;
        entry.first_readable = entry.first_readable.max(first.unwrap_or(0));
    }

    fn fault_of_append(&self) -> (Option<AppendFault>, Option<Hook>) {
        let (fault, hook) = self.ordered_fault();
        if fault.is_some() {
            return (fault, hook);
        }
        let fault = self.lock().commits.as_mut().map(|(at_most, dying, dice)| {
            let wait = at_most.mul_f64(dice.f64());
            if dice.u8(..) < *dying {
                AppendFault::Dies(wait)
            } else {
                AppendFault::Late(wait)
            }
        });
        (fault, hook)
    }

    fn ordered_fault(&self) -> (Option<AppendFault>, Option<Hook>) {
        let mut inner = self.lock();
        inner.calls.appends += 1;
        let nth = inner.calls.appends;
        let hook = inner.hooks.remove(&nth);
        let mut fault = inner.append_faults.remove(&nth);
        if let Some((of_256, dice)) = &mut inner.chaos
            && dice.u8(..) < *of_256
        {
            fault = Some(if dice.bool() {
                AppendFault::LostAfterWrite
            } else {
                AppendFault::LostBeforeWrite
            });
        }
        (fault, hook)
    }
}

/// What becomes of an append at once.
enum Judged {
    /// It was committed before.
    Done(Appended),
    /// It is accepted, and will be this.
    Accepted(Appended, oneshot::Receiver<bool>),
    /// It is under way already.
    Twin,
}

/// The real store's rules for an append (its order of checks included), judged against all that is
/// accepted.
fn judge(
    name: &str,
    stream: &mut Stream,
    expected: Expected,
    events: Vec<NewEvent>,
    now: DateTime<Utc>,
    number: u64,
) -> Result<Judged, JournalError> {
    if stream.tombstoned {
        return Err(JournalError::Tombstoned(name.to_owned()));
    }
    let accepted = stream.accepted().count() as u64;
    let current = accepted.checked_sub(1);
    let deleted = stream.deleted_as_accepted();
    let wrong = Err(JournalError::WrongExpected { current });
    let base = match expected {
        Expected::NoStream => None,
        Expected::Exact(revision) => Some(revision),
    };
    if base > current {
        return wrong;
    }
    if base < current {
        let next = base.map_or(0, |r| r as usize + 1);
        let there = stream.accepted().skip(next);
        let same = there.zip(&events).take_while(|(old, new)| old.id == new.id).count();
        if same == events.len() && same > 0 {
            if next + same > stream.events.len() {
                return Ok(Judged::Twin);
            }
            return Ok(Judged::Done(Appended {
                revision: Some((next + same - 1) as u64),
                positioned: !deleted,
            }));
        }
        if !(same == 0 && expected == Expected::NoStream && deleted) {
            return wrong;
        }
    }
    let name: Arc<str> = name.into();
    let recorded = |(event, revision): (NewEvent, u64)| RawEvent {
        stream: name.clone(),
        revision,
        id: event.id,
        kind: event.kind,
        json: event.json,
        data: event.data,
        metadata: event.metadata,
        created: now,
    };
    let events: Vec<RawEvent> = events.into_iter().zip(accepted..).map(recorded).collect();
    let (told, heard) = oneshot::channel();
    let appended = Appended {
        revision: (accepted + events.len() as u64).checked_sub(1),
        positioned: true,
    };
    stream.batches.push(Batch {
        number,
        revives: deleted && !events.is_empty(),
        events,
        ready: false,
        told: Some(told),
    });
    Ok(Judged::Accepted(appended, heard))
}

impl Journal for MemoryJournal {
    async fn read(&self, stream: &str, from: Revision, limit: ReadLimit) -> Result<Slice, JournalError> {
        breathe().await;
        let mut inner = self.lock();
        inner.calls.reads += 1;
        let nth = inner.calls.reads;
        if let Some(error) = inner.read_faults.remove(&nth) {
            return Err(error);
        }
        let Some(entry) = inner.streams.get(stream) else {
            return Ok(Slice::nothing(Presence::Absent));
        };
        let readable: Vec<&RawEvent> = entry.readable().iter().filter(|e| e.revision >= from).collect();
        let (mut events, mut bytes) = (Vec::new(), 0);
        for event in &readable {
            bytes += event.data.len() + event.metadata.len();
            if !events.is_empty() && (events.len() >= limit.events || bytes > limit.bytes) {
                break;
            }
            events.push((*event).clone());
        }
        let presence = entry.presence();
        let last = (entry.events.len() as u64).checked_sub(1);
        let slice = Slice {
            end: events.len() == readable.len(),
            events,
            presence,
            first: None,
            last: last.filter(|_| presence == Presence::Present),
        };
        inner.calls.events_read += slice.events.len() as u64;
        Ok(slice)
    }

    async fn look(&self, stream: &str) -> Result<Standing, JournalError> {
        breathe().await;
        let mut inner = self.lock();
        inner.calls.looks += 1;
        Ok(match inner.streams.get(stream) {
            None => Standing::Missing,
            Some(s) if s.tombstoned => Standing::Tombstoned,
            Some(s) if s.soft_deleted => Standing::SoftDeleted,
            Some(s) if s.events.is_empty() => Standing::Missing,
            Some(s) => Standing::Live(s.readable().last().map(|e| Newest {
                revision: e.revision,
                id: e.id,
                created: e.created,
            })),
        })
    }

    async fn begins(&self, stream: &str) -> Result<Option<Revision>, JournalError> {
        breathe().await;
        let mut inner = self.lock();
        inner.calls.reads += 1;
        let first = inner.streams.get(stream).map(|entry| entry.first_readable as u64);
        Ok(first.filter(|first| *first > 0))
    }

    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
        deadline: Duration,
    ) -> Result<Appended, JournalError> {
        breathe().await;
        let (fault, hook) = self.fault_of_append();
        if let Some(hook) = hook {
            hook(self);
        }
        let lost = || Err(JournalError::OutcomeUnknown("the reply was lost".to_owned()));
        match fault {
            Some(AppendFault::Unavailable) => return Err(JournalError::Unavailable("scripted".to_owned())),
            Some(AppendFault::LostBeforeWrite) => return lost(),
            _ => {}
        }
        let (wait, dies) = match fault {
            Some(AppendFault::Late(wait) | AppendFault::LateAndLost(wait)) => (wait, false),
            Some(AppendFault::Dies(wait)) => (wait, true),
            _ => (Duration::ZERO, false),
        };
        let judged = {
            let mut inner = self.lock();
            let now = inner.now.unwrap_or_else(clock::now);
            inner.batches += 1;
            let number = inner.batches;
            let entry = inner.streams.entry(stream.to_owned()).or_default();
            if fault == Some(AppendFault::Conflict) {
                let current = (entry.accepted().count() as u64).checked_sub(1);
                return Err(JournalError::WrongExpected { current });
            }
            let judged = judge(stream, entry, expected, events, now, number)?;
            if matches!(judged, Judged::Accepted(..)) {
                if wait.is_zero() && !dies {
                    inner.resolve(stream, number, false);
                } else {
                    // It goes on whether or not its caller waits.
                    let (journal, stream) = (self.clone(), stream.to_owned());
                    tokio::spawn(async move {
                        tokio::time::sleep(wait).await;
                        journal.lock().resolve(&stream, number, dies);
                    });
                }
            }
            judged
        };
        if matches!(fault, Some(AppendFault::LateAndLost(_))) {
            return lost();
        }
        let done = match judged {
            Judged::Done(appended) => appended,
            Judged::Accepted(appended, committed) => match tokio::time::timeout(deadline, committed).await {
                Ok(Ok(true)) => appended,
                Ok(Ok(false) | Err(_)) | Err(_) => return lost(),
            },
            Judged::Twin => {
                tokio::time::sleep(deadline.min(UNANSWERED)).await;
                return lost();
            }
        };
        breathe().await;
        if fault == Some(AppendFault::LostAfterWrite) {
            lost()
        } else {
            Ok(done)
        }
    }
}

/// Lets other tasks run, as a round trip does, so that tests see interleavings.
pub(crate) async fn breathe() {
    tokio::task::yield_now().await;
}

/// An event to append, for tests: `kind` with a JSON body and a random id.
pub fn event(kind: &str, body: &str) -> NewEvent {
    NewEvent {
        id: Uuid::new_v4(),
        kind: kind.into(),
        json: true,
        data: body.to_owned().into(),
        metadata: bytes::Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(1);
    const ALL: ReadLimit = ReadLimit {
        events: 1000,
        bytes: 1 << 20,
    };

    async fn append(journal: &MemoryJournal, expected: Expected, ids: &[u128]) -> Result<Appended, JournalError> {
        let events = ids
            .iter()
            .map(|id| NewEvent {
                id: Uuid::from_u128(*id),
                ..event("E", "{}")
            })
            .collect();
        journal.append("s-1", expected, events, DEADLINE).await
    }

    fn at(revision: u64) -> Appended {
        Appended {
            revision: Some(revision),
            positioned: true,
        }
    }

    #[tokio::test]
    async fn expected_revisions_and_ids_are_checked_as_the_real_store_checks_them() {
        let journal = MemoryJournal::new();
        let wrong = |current| Err(JournalError::WrongExpected { current });
        assert_eq!(append(&journal, Expected::Exact(0), &[1]).await, wrong(None));
        assert_eq!(append(&journal, Expected::NoStream, &[1, 2]).await, Ok(at(1)));
        assert_eq!(
            append(&journal, Expected::NoStream, &[1, 2]).await,
            Ok(at(1)),
            "idempotent"
        );
        assert_eq!(
            append(&journal, Expected::Exact(0), &[2]).await,
            Ok(at(1)),
            "idempotent"
        );
        assert_eq!(append(&journal, Expected::Exact(0), &[2, 3]).await, wrong(Some(1)));
        assert_eq!(append(&journal, Expected::Exact(0), &[9]).await, wrong(Some(1)));
        assert_eq!(append(&journal, Expected::Exact(7), &[9]).await, wrong(Some(1)));
        // At expected == current the ids are not looked at.
        assert_eq!(append(&journal, Expected::Exact(1), &[2]).await, Ok(at(2)));
    }

    #[tokio::test]
    async fn deletion_revival_truncation_and_tombstones() {
        let journal = MemoryJournal::new();
        append(&journal, Expected::NoStream, &[1, 2, 3]).await.unwrap();
        journal.delete("s-1");
        assert_eq!(journal.look("s-1").await, Ok(Standing::SoftDeleted));
        assert_eq!(journal.read("s-1", 0, ALL).await.unwrap().presence, Presence::Absent);
        let unpositioned = Appended {
            revision: Some(2),
            positioned: false,
        };
        assert_eq!(append(&journal, Expected::NoStream, &[1, 2, 3]).await, Ok(unpositioned));
        assert_eq!(append(&journal, Expected::NoStream, &[4]).await, Ok(at(3)));
        let slice = journal.read("s-1", 0, ALL).await.unwrap();
        assert_eq!(
            (slice.events[0].revision, slice.end, slice.presence),
            (3, true, Presence::Present)
        );
        journal.truncate_before("s-1", 9);
        assert_eq!(journal.look("s-1").await, Ok(Standing::Live(None)));
        journal.tombstone("s-1");
        assert_eq!(
            append(&journal, Expected::Exact(3), &[5]).await,
            Err(JournalError::Tombstoned("s-1".into()))
        );
        assert_eq!(journal.look("s-1").await, Ok(Standing::Tombstoned));
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_is_answered_before_what_it_speaks_of_can_be_read() {
        let journal = MemoryJournal::new();
        append(&journal, Expected::NoStream, &[1]).await.unwrap();
        journal.fail_append(1, AppendFault::Late(Duration::from_millis(50)));
        let rival = tokio::spawn({
            let journal = journal.clone();
            async move { append(&journal, Expected::Exact(0), &[2]).await }
        });
        while journal.calls().appends < 2 {
            tokio::task::yield_now().await;
        }
        let wrong = Err(JournalError::WrongExpected { current: Some(1) });
        assert_eq!(append(&journal, Expected::Exact(0), &[3]).await, wrong);
        let slice = journal.read("s-1", 0, ALL).await.unwrap();
        assert_eq!((slice.events.len(), slice.end, slice.last), (1, true, Some(0)));
        // The same append again is not answered, though it lands.
        let twin = append(&journal, Expected::Exact(0), &[2]).await;
        assert_eq!(twin.unwrap_err().class(), "outcome_unknown");
        assert_eq!(rival.await.unwrap(), Ok(at(1)));
        let slice = journal.read("s-1", 2, ALL).await.unwrap();
        assert_eq!((slice.events.len(), slice.end, slice.last), (0, true, Some(1)));
        assert_eq!(append(&journal, Expected::Exact(0), &[2]).await, Ok(at(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_append_that_dies_takes_with_it_what_stands_on_it() {
        let journal = MemoryJournal::new();
        journal.fail_append(1, AppendFault::Dies(Duration::from_millis(50)));
        let first = tokio::spawn({
            let journal = journal.clone();
            async move { append(&journal, Expected::NoStream, &[1]).await }
        });
        while journal.calls().appends < 1 {
            tokio::task::yield_now().await;
        }
        let second = append(&journal, Expected::Exact(0), &[2]).await;
        assert_eq!(first.await.unwrap().unwrap_err().class(), "outcome_unknown");
        assert_eq!(second.unwrap_err().class(), "outcome_unknown");
        assert_eq!(journal.all("s-1"), []);
        assert_eq!(append(&journal, Expected::NoStream, &[3]).await, Ok(at(0)));
    }

    #[tokio::test]
    async fn faults_come_when_they_were_ordered() {
        let journal = MemoryJournal::new();
        journal.fail_append(2, AppendFault::LostAfterWrite);
        journal.fail_append(3, AppendFault::LostBeforeWrite);
        journal.before_append(4, |j| {
            j.push("s-1", vec![event("Other", "{}")]);
        });
        journal.fail_read(1, JournalError::Unavailable("x".into()));
        assert_eq!(append(&journal, Expected::NoStream, &[1]).await, Ok(at(0)));
        assert_eq!(
            append(&journal, Expected::Exact(0), &[2]).await.unwrap_err().class(),
            "outcome_unknown"
        );
        assert_eq!(
            append(&journal, Expected::Exact(1), &[3]).await.unwrap_err().class(),
            "outcome_unknown"
        );
        assert_eq!(
            append(&journal, Expected::Exact(1), &[3]).await,
            Err(JournalError::WrongExpected { current: Some(2) })
        );
        assert!(journal.read("s-1", 0, ALL).await.unwrap_err().is_transient());
        let slice = journal.read("s-1", 1, ReadLimit { events: 1, bytes: 1 }).await.unwrap();
        assert_eq!((slice.events.len(), slice.end), (1, false));
        assert_eq!(
            journal.calls(),
            JournalCalls {
                reads: 2,
                events_read: 1,
                looks: 0,
                appends: 4
            }
        );
    }
}
