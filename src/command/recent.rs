//! Which commands landed on an aggregate within the retry horizon, as far as this process has read back.
//!
//! A state's window holds the last few commands. Where more land within the horizon, the stream's
//! events are read backwards, once: from then on the process knows from here what it read and what
//! it saw since, and reads only what came in between. Nobody reads what another task is reading.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::attempt::Searched;
use crate::{
    event::{RawEvent, Revision},
    journal::{Journal, JournalError, Presence, ReadLimit},
    projection::run::origin_of,
    replica::{ALL_COMMANDS, Header, Landed, stored_time},
};

/// Commands remembered over all aggregates: at a hundred bytes each 25 MB at most. An aggregate
/// that takes 370 a second has 111,000 in five minutes.
const MOST: usize = 250_000;

/// What a search is after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) command: Uuid,
    /// The last revision to look at: what is beyond it is read anyway.
    pub(super) upto: Revision,
    /// Commands that landed before this time are not asked for.
    pub(super) from: DateTime<Utc>,
    /// Events that it may read.
    pub(super) cap: usize,
    pub(super) page: ReadLimit,
    /// A stream whose history begins above revision 0 lives anew: nothing was before.
    pub(super) lives_anew: bool,
}

/// One aggregate's: every command of the events from `low` to `upto`.
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
pub(super) struct Recent(Mutex<HashMap<Arc<str>, Shared>>);

impl Recent {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets one, or all.
    pub(super) fn forget(&self, stream: Option<&str>) {
        match stream {
            Some(stream) => drop(self.lock().remove(stream)),
            None => self.lock().clear(),
        }
    }

    /// Takes what a base knows beyond what is known here, when nothing lies between.
    pub(super) fn heed(&self, stream: &str, header: &Header) {
        let Some(shared) = self.lock().get(stream).cloned() else {
            return;
        };
        // Somebody reads: that brings more than this.
        let Ok(mut known) = shared.try_lock() else { return };
        let (Some(known), Some(version)) = (known.as_mut(), header.version) else {
            return;
        };
        let joined = header.commands_since <= ALL_COMMANDS
            || header
                .commands
                .first()
                .is_some_and(|oldest| oldest.first <= known.upto + 1);
        if joined && version > known.upto {
            let upto = known.upto;
            for landed in header.commands.iter().filter(|landed| landed.last > upto) {
                known.add(landed.clone());
            }
            known.upto = version;
        }
    }

    /// Looks for a command, reading what is not known yet.
    pub(super) async fn search<J: Journal>(
        &self,
        journal: &J,
        stream: &Arc<str>,
        search: Search,
    ) -> Result<Searched, JournalError> {
        let shared = self.lock().entry(stream.clone()).or_default().clone();
        let mut slot = shared.lock().await;
        let searched = look(journal, stream, &mut slot, search).await;
        let size = slot.as_ref().map_or(0, |known| known.order.len());
        drop(slot);
        self.make_room(stream, size);
        searched
    }

    /// Forgets other aggregates when too much is remembered; what is in use counts with the next search.
    fn make_room(&self, stream: &Arc<str>, size: usize) {
        let mut all = self.lock();
        let of = |shared: &Shared| {
            shared
                .try_lock()
                .map_or(0, |known| known.as_ref().map_or(0, |known| known.order.len()))
        };
        let total: usize = all.iter().filter(|(name, _)| *name != stream).map(|(_, s)| of(s)).sum();
        if total + size > MOST {
            all.retain(|name, _| name == stream);
        }
        if size > MOST {
            all.clear();
        }
    }
}

impl Known {
    fn add(&mut self, landed: Landed) {
        let at = landed.at.unwrap_or(DateTime::UNIX_EPOCH);
        let command = landed.command;
        if self.landed.insert(command, landed).is_none() {
            self.order.push_back((at, command));
        }
    }

    /// Forgets what is older than anybody asks for.
    fn prune(&mut self, from: DateTime<Utc>) {
        while let Some((at, command)) = self.order.front().copied().filter(|(at, _)| *at < from) {
            self.order.pop_front();
            self.landed.remove(&command);
            self.since = self.since.max(at);
        }
    }

    /// The commands of `events`, which come after all that is known.
    fn extend(&mut self, events: &[RawEvent]) {
        for event in events {
            self.upto = event.revision;
            let Some(origin) = origin_of(event) else { continue };
            let at = Some(stored_time(event.created));
            let landed = Landed {
                command: origin.command,
                sort: origin.sort,
                first: event.revision,
                last: event.revision,
                at,
            };
            match self.landed.get_mut(&landed.command) {
                Some(known) if known.last + 1 == event.revision => (known.last, known.at) = (event.revision, at),
                // Landed twice, which the guarantee is against: the first counts.
                Some(_) => {}
                None => self.add(landed),
            }
        }
    }
}

async fn look<J: Journal>(
    journal: &J,
    stream: &str,
    slot: &mut Option<Known>,
    search: Search,
) -> Result<Searched, JournalError> {
    let mut read = 0;
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
                // Another stream than it was, or history that went away: begin anew.
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
        // What stood in a hole cannot be known.
        let holed = without_hole(&older);
        older.drain(..holed);
        let Some(first) = older.first() else {
            // Nothing below can be read.
            return Ok(match since {
                // A deletion ends what can be told.
                _ if deleted || search.lives_anew => outcome(slot.as_ref(), search),
                Some(since) => Searched::OutOfReach(since),
                None => Searched::OutOfReach(Utc::now()),
            });
        };
        let since = if first.revision == 0 || (holed == 0 && first.revision > start && search.lives_anew) {
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
                    join(&mut known, landed.clone());
                }
            }
            known.upto = newer.upto;
        }
        *slot = Some(known);
        if let Some(found) = complete(slot.as_ref(), search) {
            return Ok(found);
        }
        if gone && since > search.from {
            return Ok(Searched::OutOfReach(since));
        }
    }
    if let Some(known) = slot {
        known.prune(search.from);
    }
    Ok(outcome(slot.as_ref(), search))
}

/// Where the events that follow each other up to the last begin.
fn without_hole(events: &[RawEvent]) -> usize {
    let parted = |pair: &[RawEvent]| pair[0].revision + 1 != pair[1].revision;
    events.windows(2).rposition(parted).map_or(0, |index| index + 1)
}

/// A command of newer events; one whose events a page's border parts is one.
fn join(known: &mut Known, newer: Landed) {
    match known.landed.get_mut(&newer.command) {
        Some(older) if older.last + 1 == newer.first => (older.last, older.at) = (newer.last, newer.at),
        Some(_) => {}
        None => known.add(newer),
    }
}

/// The command, when it is known from its first event on: nothing older can be more of it.
fn complete(known: Option<&Known>, search: Search) -> Option<Searched> {
    let known = known?;
    let landed = known.landed.get(&search.command)?;
    (landed.first > known.low || known.low == 0).then_some(Searched::Found(landed.clone()))
}

fn outcome(known: Option<&Known>, search: Search) -> Searched {
    known
        .and_then(|known| known.landed.get(&search.command))
        .map_or(Searched::NotThere, |landed| Searched::Found(landed.clone()))
}
