//! Which commands landed on an aggregate within the retry horizon, as far as this process has read back.
//!
//! A state's window holds the last few commands. Where more land within the horizon, the stream's
//! events are read backwards, once: from then on the process knows from here what it read and what
//! it saw since, and reads only what came in between. Nobody reads what another task is reading.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::attempt::Searched;
use crate::{
    event::{RawEvent, Revision},
    journal::{Journal, JournalError, Presence, ReadLimit},
    projection::folding::{begins_anew, origin_of},
    replica::{ALL_COMMANDS, Header, Landed, stored_time},
};

/// Commands remembered over all aggregates: at a hundred bytes each 25 MB at most. An aggregate
/// that takes 370 a second has 111,000 in five minutes.
const MOST: usize = 250_000;

/// Remembered beyond the horizon: commands under way began earlier, by a deadline and some waiting,
/// and ask as much further back.
const SLACK: TimeDelta = TimeDelta::minutes(1);

/// Pages that are read forwards without asking whether backwards were shorter.
const FEW_PAGES: usize = 4;

/// What a search is after.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommandSearch {
    pub(super) command: Uuid,
    /// The last revision to look at: what is beyond it is read anyway.
    pub(super) upto: Revision,
    /// Commands that landed before this time are not asked for.
    pub(super) from: DateTime<Utc>,
    /// Events that it may read.
    pub(super) cap: usize,
    pub(super) page: ReadLimit,
}

/// One aggregate's: every command of the events from `low` to `upto`. History that is gone is never
/// taken for history that never was: a stream's events do not tell a truncation from a new life.
struct Known {
    low: Revision,
    upto: Revision,
    /// Every command after this time.
    since: DateTime<Utc>,
    landed: HashMap<Uuid, Landed>,
    /// By time, oldest first.
    order: VecDeque<(DateTime<Utc>, Uuid)>,
}

type Shared = Arc<tokio::sync::Mutex<Option<Known>>>;

/// What is known of all aggregates.
#[derive(Default)]
pub(super) struct Recent(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    of: HashMap<Arc<str>, Slot>,
    /// All their sizes.
    total: usize,
}

struct Slot {
    shared: Shared,
    /// One, and one for each command, when it was last looked at.
    size: usize,
}

impl Slots {
    fn remove(&mut self, stream: &str) {
        if let Some(slot) = self.of.remove(stream) {
            self.total -= slot.size;
        }
    }
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets one, or all.
    pub(super) fn forget(&self, stream: Option<&str>) {
        match stream {
            Some(stream) => self.lock().remove(stream),
            None => *self.lock() = Slots::default(),
        }
    }

    /// Takes what a base knows beyond what is known here, when nothing lies between, and forgets
    /// what is older than anybody asks for, `from`.
    pub(super) fn heed(&self, stream: &str, header: &Header, from: DateTime<Utc>) {
        let Some(shared) = self.lock().of.get(stream).map(|slot| slot.shared.clone()) else {
            return;
        };
        // Somebody reads: that brings more than this.
        let Ok(mut slot) = shared.try_lock() else { return };
        let (Some(known), Some(version)) = (slot.as_mut(), header.version) else {
            return;
        };
        // A window has every command since its first.
        let joined = header.commands_since <= ALL_COMMANDS
            || header
                .commands
                .first()
                .is_some_and(|oldest| oldest.first <= known.upto + 1);
        if joined && version > known.upto {
            let upto = known.upto;
            let newest = header.event.as_ref().map(|event| stored_time(event.at));
            for landed in header.commands.iter().filter(|landed| landed.last > upto) {
                let at = landed.at.or(newest);
                known.take(Landed { at, ..landed.clone() });
            }
            known.upto = version;
        }
        known.prune(from);
        let size = size_of(slot.as_ref());
        drop(slot);
        self.weigh(stream, &shared, size);
    }

    /// Looks for a command, reading what is not known yet.
    pub(super) async fn search<J: Journal>(
        &self,
        journal: &J,
        stream: &Arc<str>,
        search: CommandSearch,
    ) -> Result<Searched, JournalError> {
        let shared = self.slot(stream);
        let mut slot = shared.lock().await;
        let searched = look(journal, stream, &mut slot, search).await;
        let size = size_of(slot.as_ref());
        drop(slot);
        self.weigh(stream, &shared, size);
        searched
    }

    fn slot(&self, stream: &Arc<str>) -> Shared {
        let mut slots = self.lock();
        if let Some(slot) = slots.of.get(stream) {
            return slot.shared.clone();
        }
        let shared = Shared::default();
        let slot = Slot {
            shared: shared.clone(),
            size: 1,
        };
        slots.of.insert(stream.clone(), slot);
        slots.total += 1;
        shared
    }

    /// Notes what an aggregate's takes, none of nothing, and forgets the others when it is too much.
    fn weigh(&self, stream: &str, shared: &Shared, size: Option<usize>) {
        let mut slots = self.lock();
        let Some(slot) = slots
            .of
            .get_mut(stream)
            .filter(|slot| Arc::ptr_eq(&slot.shared, shared))
        else {
            return;
        };
        let Some(size) = size else { return slots.remove(stream) };
        let before = std::mem::replace(&mut slot.size, size);
        slots.total = slots.total - before + size;
        if size > MOST {
            *slots = Slots::default();
        } else if slots.total > MOST {
            slots.of.retain(|name, _| &**name == stream);
            slots.total = size;
        }
    }
}

/// What is known of an aggregate, in commands; without any it takes room all the same, and may spare
/// reading.
fn size_of(known: Option<&Known>) -> Option<usize> {
    known.map(|known| 1 + known.order.len())
}

impl Known {
    fn add(&mut self, landed: Landed) {
        let at = landed.at.unwrap_or_else(Utc::now);
        let command = landed.command;
        if self.landed.insert(command, landed).is_none() {
            self.order.push_back((at, command));
        }
    }

    /// Takes a newer one: more of the same events, perhaps. Landed twice, which the guarantee is
    /// against, the first counts.
    fn take(&mut self, newer: Landed) {
        match self.landed.get_mut(&newer.command) {
            Some(known) if known.first == newer.first || known.last + 1 == newer.first => {
                (known.last, known.at) = (newer.last, newer.at);
            }
            Some(_) => {}
            None => self.add(newer),
        }
    }

    /// Forgets what is older than anybody asks for.
    fn prune(&mut self, from: DateTime<Utc>) {
        let from = from.checked_sub_signed(SLACK).unwrap_or(from);
        while let Some((at, command)) = self.order.front().copied().filter(|(at, _)| *at < from) {
            self.order.pop_front();
            if let Some(landed) = self.landed.remove(&command) {
                // Who asks further back all the same reads it again.
                self.low = self.low.max(landed.last + 1);
            }
            self.since = self.since.max(at);
        }
    }

    /// The commands of `events`, which come after all that is known.
    fn extend(&mut self, events: &[RawEvent]) {
        for event in events {
            self.upto = event.revision;
            let Some(origin) = origin_of(event) else { continue };
            let at = Some(stored_time(event.created));
            self.take(Landed {
                command: origin.command,
                sort: origin.sort,
                first: event.revision,
                last: event.revision,
                at,
            });
        }
    }
}

async fn look<J: Journal>(
    journal: &J,
    stream: &str,
    slot: &mut Option<Known>,
    search: CommandSearch,
) -> Result<Searched, JournalError> {
    let mut read = 0;
    let few = FEW_PAGES.saturating_mul(search.page.events);
    let far = |known: &mut Known| {
        known.prune(search.from);
        let distance = search.upto.saturating_sub(known.upto);
        distance > few.max(known.order.len()).min(search.cap) as u64
    };
    if slot.as_mut().is_some_and(far) {
        // More came since then than is known of: the horizon may be nearer than that.
        *slot = None;
    }
    // What came since it was read last.
    if let Some(known) = slot {
        while known.upto < search.upto {
            let count = usize::try_from(search.upto - known.upto).unwrap_or(usize::MAX);
            if read >= search.cap {
                return Ok(Searched::OutOfReach(Utc::now()));
            }
            let limit = ReadLimit {
                events: search.page.events.min(count),
                ..search.page
            };
            let events = journal.read(stream, known.upto + 1, limit).await?.events;
            read += events.len();
            match events.first() {
                // Another stream than it was, or history that went away: begin again.
                Some(first) if first.revision == known.upto + 1 && without_hole(&events) == 0 => {
                    known.extend(&events);
                }
                _ => {
                    *slot = None;
                    break;
                }
            }
        }
    }
    if let Some(found) = complete(slot.as_ref(), search) {
        return Ok(found);
    }
    // And what was before, back to the horizon.
    loop {
        let (low, since) = slot
            .as_ref()
            .map_or((search.upto + 1, None), |known| (known.low, Some(known.since)));
        if since.is_some_and(|since| since <= search.from) {
            break;
        }
        if read >= search.cap {
            return Ok(Searched::OutOfReach(since.unwrap_or_else(Utc::now)));
        }
        let start = low.saturating_sub(search.page.events as u64);
        let mut older = Vec::new();
        let mut next = start;
        let mut deleted = false;
        // A page may come short by its bytes.
        while next < low {
            let limit = ReadLimit {
                events: usize::try_from(low - next).unwrap_or(usize::MAX),
                ..search.page
            };
            let slice = journal.read(stream, next, limit).await?;
            let events = slice.events;
            let Some(last) = events.last() else {
                deleted = slice.presence != Presence::Present;
                break;
            };
            next = last.revision + 1;
            read += events.len();
            older.extend(events.into_iter().filter(|event| event.revision < low));
        }
        // What stood in a hole cannot be known; it may lie before what is known already.
        let holed = match older.last() {
            Some(last) if last.revision + 1 != low => older.len(),
            _ => without_hole(&older),
        };
        older.drain(..holed);
        let Some(first) = older.first() else {
            // Nothing below can be read.
            return Ok(match outcome(slot.as_ref(), search) {
                // A deletion ends what can be told.
                Searched::NotThere if !deleted => Searched::OutOfReach(since.unwrap_or_else(Utc::now)),
                outcome => outcome,
            });
        };
        let since = if first.revision == 0 || begins_anew(first) {
            ALL_COMMANDS
        } else {
            stored_time(first.created)
        };
        let gone = holed > 0 || first.revision > start;
        let mut known = Known {
            low: first.revision,
            upto: first.revision,
            since,
            landed: HashMap::new(),
            order: VecDeque::new(),
        };
        known.extend(&older);
        if let Some(newer) = slot.take() {
            for (_, command) in &newer.order {
                if let Some(landed) = newer.landed.get(command) {
                    known.take(landed.clone());
                }
            }
            known.upto = newer.upto;
        }
        *slot = Some(known);
        if let Some(found) = complete(slot.as_ref(), search) {
            return Ok(found);
        }
        if gone && since > search.from {
            return Ok(match outcome(slot.as_ref(), search) {
                Searched::NotThere => Searched::OutOfReach(since),
                outcome => outcome,
            });
        }
    }
    let outcome = outcome(slot.as_ref(), search);
    if let Some(known) = slot {
        known.prune(search.from);
    }
    Ok(outcome)
}

/// Where the events that follow each other up to the last begin.
fn without_hole(events: &[RawEvent]) -> usize {
    let parted = |pair: &[RawEvent]| pair[0].revision + 1 != pair[1].revision;
    events.windows(2).rposition(parted).map_or(0, |index| index + 1)
}

/// The command, when it is known from its first event on: nothing older can be more of it.
fn complete(known: Option<&Known>, search: CommandSearch) -> Option<Searched> {
    let known = known?;
    let landed = known.landed.get(&search.command)?;
    (landed.first > known.low || known.low == 0).then_some(Searched::Found(landed.clone()))
}

fn outcome(known: Option<&Known>, search: CommandSearch) -> Searched {
    known
        .and_then(|known| known.landed.get(&search.command))
        .map_or(Searched::NotThere, |landed| Searched::Found(landed.clone()))
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use bytes::Bytes;

    use super::*;
    use crate::{
        event::metadata::COMMAND_ID,
        journal::{Appended, Expected, NewEvent, Slice, Standing},
        replica::Sort,
    };

    /// A stream's readable events, each a command's of its revision's number.
    #[derive(Clone, Default)]
    struct Readable(Arc<Mutex<Vec<RawEvent>>>, Arc<AtomicUsize>);

    impl Readable {
        fn push(&self, revisions: impl IntoIterator<Item = Revision>, minutes_ago: i64) {
            let event = |revision| RawEvent {
                stream: "account-1".into(),
                revision,
                id: Uuid::from_u128(1 << 64 | u128::from(revision)),
                kind: "Deposited".into(),
                json: true,
                data: Bytes::new(),
                metadata: format!(r#"{{"{COMMAND_ID}":"{}"}}"#, id(revision)).into(),
                created: ago(minutes_ago),
            };
            self.0.lock().unwrap().extend(revisions.into_iter().map(event));
        }

        fn reads(&self) -> usize {
            self.1.swap(0, std::sync::atomic::Ordering::Relaxed)
        }
    }

    impl Journal for Readable {
        async fn read(&self, _: &str, from: Revision, limit: ReadLimit) -> Result<Slice, JournalError> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let all = self.0.lock().unwrap();
            let events: Vec<_> = all
                .iter()
                .filter(|e| e.revision >= from)
                .take(limit.events)
                .cloned()
                .collect();
            let last = all.last().map(|event| event.revision);
            Ok(Slice {
                end: events.last().map(|event| event.revision) == last,
                events,
                presence: Presence::Present,
                first: None,
                last,
            })
        }

        async fn look(&self, _: &str) -> Result<Standing, JournalError> {
            Err(JournalError::Refused("a search only reads".into()))
        }

        async fn append(&self, _: &str, _: Expected, _: Vec<NewEvent>, _: Duration) -> Result<Appended, JournalError> {
            Err(JournalError::Refused("a search only reads".into()))
        }
    }

    fn id(revision: Revision) -> Uuid {
        Uuid::from_u128(u128::from(revision))
    }

    fn ago(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) - TimeDelta::minutes(minutes)
    }

    fn landed(revision: Revision, minutes_ago: i64) -> Landed {
        Landed {
            command: id(revision),
            sort: Sort::default(),
            first: revision,
            last: revision,
            at: Some(ago(minutes_ago)),
        }
    }

    /// Pages of ten; back five minutes.
    fn search(revision: Revision, upto: Revision) -> CommandSearch {
        CommandSearch {
            command: id(revision),
            upto,
            from: ago(5),
            cap: 60,
            page: ReadLimit {
                events: 10,
                bytes: 1 << 20,
            },
        }
    }

    fn stream() -> Arc<str> {
        "account-1".into()
    }

    #[tokio::test]
    async fn a_long_pause_is_read_backwards_and_no_further_than_the_horizon() {
        let (journal, recent) = (Readable::default(), Recent::default());
        journal.push(0..20, 120);
        let found = recent.search(&journal, &stream(), search(99, 19)).await;
        assert_eq!(found, Ok(Searched::NotThere));
        journal.push(20..500, 60);
        journal.push(500..503, 1);
        journal.reads();
        let found = recent.search(&journal, &stream(), search(501, 502)).await;
        assert_eq!(found, Ok(Searched::Found(landed(501, 1))));
        let found = recent.search(&journal, &stream(), search(9_999, 502)).await;
        assert_eq!(found, Ok(Searched::NotThere));
        assert!(journal.reads() <= 2);
        // A short one costs what came in it.
        journal.push(503..520, 0);
        let found = recent.search(&journal, &stream(), search(9_999, 519)).await;
        assert_eq!((found, journal.reads()), (Ok(Searched::NotThere), 2));
    }

    #[tokio::test]
    async fn a_hole_at_a_pages_border_is_a_hole() {
        for border in [90, 95] {
            let (journal, recent) = (Readable::default(), Recent::default());
            // Revisions 85 to `border` are gone, and what landed there with them.
            journal.push(0..85, 60);
            journal.push(border..100, 1);
            for _ in 0..2 {
                let found = recent.search(&journal, &stream(), search(87, 99)).await;
                assert_eq!(found, Ok(Searched::OutOfReach(ago(1))), "{border}");
            }
            let found = recent.search(&journal, &stream(), search(97, 99)).await;
            assert_eq!(found, Ok(Searched::Found(landed(97, 1))), "{border}");
        }
    }

    #[tokio::test]
    async fn what_is_older_than_anybody_asks_for_is_forgotten_whoever_adds_to_it() {
        let (journal, recent) = (Readable::default(), Recent::default());
        journal.push(0..20, 4);
        let found = recent.search(&journal, &stream(), search(99, 19)).await;
        assert_eq!(found, Ok(Searched::NotThere));
        let known = || recent.lock().total;
        assert_eq!(known(), 21);
        let heed = |revision: Revision, from| {
            let mut header = Header::new();
            header.version = Some(revision);
            header.commands_since = ago(0);
            header.commands = (revision - 1..=revision).map(|revision| landed(revision, 0)).collect();
            recent.heed("account-1", &header, from);
        };
        for revision in 20..30 {
            heed(revision, ago(5));
        }
        assert_eq!(known(), 31);
        journal.push(20..30, 0);
        journal.reads();
        // Later.
        heed(30, ago(2));
        assert_eq!(known(), 12);
        // Who began before that and asks further back reads it again.
        let found = recent.search(&journal, &stream(), search(15, 30)).await;
        assert_eq!(found, Ok(Searched::Found(landed(15, 4))));
        assert!(journal.reads() > 0);
        recent.forget(Some("account-1"));
        assert_eq!(known(), 0);
    }

    #[tokio::test]
    async fn a_window_that_begins_beyond_what_is_known_does_not_join_on() {
        let (journal, recent) = (Readable::default(), Recent::default());
        journal.push(0..40, 1);
        let found = recent.search(&journal, &stream(), search(99, 19)).await;
        assert_eq!(found, Ok(Searched::NotThere));
        let mut header = Header::new();
        header.version = Some(39);
        header.commands_since = ago(0);
        for first in [30, 21, 20] {
            header.commands = (first..40).map(|revision| landed(revision, 1)).collect();
            recent.heed("account-1", &header, ago(5));
            journal.reads();
            let found = recent.search(&journal, &stream(), search(25, 39)).await;
            assert_eq!(found, Ok(Searched::Found(landed(25, 1))));
            let joined = journal.reads() == 0;
            assert_eq!(joined, first == 20, "{first}");
            if !joined {
                recent.forget(None);
                recent.search(&journal, &stream(), search(99, 19)).await.unwrap();
            }
        }
    }
}
