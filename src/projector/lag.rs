//! How far a projection is behind its source, measured in the background and never in a scrape.
//!
//! Invariant: I7 lag: zero only when everything readable is settled. What is not settled lies
//! between the group's checkpoint and the source's newest entry, less what this process has settled
//! in between ([`SettledMarks`]); the server's own figures are believed only where they are exact (a
//! group that is live), for they mislead for filtered, idle and restarted groups.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, Utc};

use super::status::Lag;
use crate::{
    clock,
    journal::{
        JournalError,
        feed::{Feed, GroupInfo, GroupSpec, Head, Mark},
    },
    projection::Source,
};

/// Ranges that are remembered: 3 MB of them. Beyond it (one delivery holds the checkpoint back for
/// hours while other consumers take every second entry) what is settled is shown as waiting, never
/// the other way round.
const MOST_RANGES: usize = 1 << 16;

/// Entries looked at for the oldest that is not settled: holes of the source, and on `$all` what
/// is settled beyond the checkpoint.
const LOOK: usize = 64;

/// How often a hole of the source is passed over in one measurement; the next goes on from there.
const HOLES: usize = 16;

/// The state in which a group's own figures are exact: everything up to its last known entry was
/// buffered, is in flight, or is done.
const LIVE: &str = "Live";

/// What this process has settled of a source beyond the group's checkpoint: places in the feed (a
/// revision, or a commit position of `$all`), in ranges.
#[derive(Debug, Default)]
pub struct SettledMarks {
    /// First to last, both inclusive; they neither touch nor overlap.
    ranges: BTreeMap<u64, u64>,
}

/// One that a session fills and the measuring task asks. Cheap to clone.
pub type SharedSettled = Arc<Mutex<SettledMarks>>;

impl SettledMarks {
    /// Notes a range, both ends inclusive.
    pub fn insert(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first, last);
        if let Some((&before, &end)) = self.ranges.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            if end >= last {
                return;
            }
            first = before;
            self.ranges.remove(&before);
        }
        while let Some((&next, &end)) = self.ranges.range(first..).next()
            && next <= last.saturating_add(1)
        {
            last = last.max(end);
            self.ranges.remove(&next);
        }
        if self.ranges.len() < MOST_RANGES {
            self.ranges.insert(first, last);
        }
    }

    /// Forgets what the checkpoint covers.
    pub fn forget_through(&mut self, checkpoint: u64) {
        while let Some((&first, &last)) = self.ranges.first_key_value()
            && first <= checkpoint
        {
            self.ranges.remove(&first);
            if last > checkpoint {
                self.ranges.insert(checkpoint + 1, last);
                return;
            }
        }
    }

    /// Forgets everything: another connection, or another store behind the same name.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// How many places from `from` to `through` (inclusive) are settled.
    fn count(&self, from: u64, through: u64) -> u64 {
        if from > through {
            return 0;
        }
        let before = self.ranges.range(..from).next_back().map(|(_, &last)| (from, last));
        let inside = self.ranges.range(from..=through).map(|(&first, &last)| (first, last));
        before
            .into_iter()
            .chain(inside)
            .map(|(first, last)| (last.min(through) + 1).saturating_sub(first))
            .sum()
    }

    /// Whether this place is settled.
    fn contains(&self, place: u64) -> bool {
        self.ranges
            .range(..=place)
            .next_back()
            .is_some_and(|(_, &last)| last >= place)
    }

    /// The first place from `from` on that is not settled.
    fn first_open(&self, from: u64) -> u64 {
        match self.ranges.range(..=from).next_back() {
            Some((_, &last)) if last >= from => last.saturating_add(1),
            _ => from,
        }
    }
}

/// What was found of a group and its source at one time.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How far it is behind.
    pub lag: Lag,
    /// What the server says of the group; nothing when there is no group yet.
    pub info: GroupInfo,
    /// The checkpoint: a revision of the feed, or a commit position of `$all`.
    pub checkpoint: Option<u64>,
    /// The newest entry, likewise.
    pub newest: Option<u64>,
    /// Entries behind the checkpoint; not told on `$all`, where places are bytes.
    pub checkpoint_lag: Option<u64>,
}

/// Measures a group's lag.
///
/// # Errors
///
/// When it cannot be told now: [`JournalError::Unfinished`] while the search for the newest match
/// in a large `$all` goes on.
pub async fn measure<F: Feed>(
    feed: &F,
    group: &GroupSpec,
    settled: &Mutex<SettledMarks>,
) -> Result<Measured, JournalError> {
    let as_of = clock::now();
    // In this order: what is settled after the head was read makes the lag smaller, never negative.
    let head = feed.head(&group.source).await?;
    let info = match feed.info(group).await {
        // Nothing was ever delivered: all that the source holds waits.
        Err(JournalError::NoGroup { .. }) => GroupInfo::default(),
        other => other?,
    };
    let stalled = feed.stalled(&group.source, head.as_ref()).await?;
    let all = matches!(group.source, Source::All(_));
    let (checkpoint, newest, known) = if all {
        let newest = head.as_ref().and_then(|h| h.position);
        (info.checkpoint_position, newest, info.known_position)
    } else {
        let newest = head.as_ref().and_then(|h| h.revision);
        (info.checkpoint_revision, newest, info.known_revision)
    };
    let with =
        |f: &mut dyn FnMut(&mut SettledMarks) -> u64| f(&mut settled.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(checkpoint) = checkpoint {
        with(&mut |s| {
            s.forget_through(checkpoint);
            0
        });
    }
    let from = checkpoint.map_or(0, |at| at.saturating_add(1));
    let mut events = 0;
    let mut oldest = None;
    for _ in 0..HOLES {
        let waiting = Waiting {
            info: &info,
            known,
            newest,
            checkpoint,
            settled: newest.map_or(0, |newest| with(&mut |s| s.count(from, newest))),
        };
        events = if all { waiting.on_all() } else { waiting.on_a_stream() };
        if events == 0 {
            break;
        }
        let open = if all { from } else { with(&mut |s| s.first_open(from)) };
        let after = open
            .checked_sub(1)
            .map(|at| if all { Mark::Position(at) } else { Mark::Revision(at) });
        let look = if all { LOOK } else { 1 };
        let entries = feed.entries(&group.source, after, look).await?;
        let place = |mark: &Mark| match mark {
            Mark::Revision(at) | Mark::Position(at) => *at,
        };
        let settled_already = |at: u64| with(&mut |s| u64::from(s.contains(at))) == 1;
        let Some((mark, entry)) = entries.iter().find(|(mark, _)| !(all && settled_already(place(mark)))) else {
            break;
        };
        oldest = Some(entry.at);
        if all || place(mark) <= open {
            break;
        }
        // What lies between was truncated from the source itself; nothing there can wait.
        let last = place(mark) - 1;
        with(&mut |s| {
            s.insert(open, last);
            0
        });
    }
    let seconds = seconds_behind(events, oldest, head.as_ref(), stalled, clock::now());
    let behind = newest.map_or(0, |newest| (newest + 1).saturating_sub(from));
    Ok(Measured {
        lag: Lag {
            events,
            seconds,
            stalled: stalled.is_some(),
            as_of,
        },
        info,
        checkpoint,
        newest,
        checkpoint_lag: (!all).then_some(behind),
    })
}

/// What is known of the entries that may wait.
struct Waiting<'a> {
    info: &'a GroupInfo,
    /// The newest entry that the group has seen.
    known: Option<u64>,
    newest: Option<u64>,
    checkpoint: Option<u64>,
    /// Settled by this process between checkpoint and newest.
    settled: u64,
}

impl Waiting<'_> {
    /// Not done by the group's own books, which are exact while it is live: what it saw and did not
    /// buffer, or buffered and did not deliver, or delivered without an acknowledgement.
    fn held_by_group(&self) -> Option<u64> {
        (self.info.status == LIVE && self.known.is_some()).then_some(self.info.buffered + self.info.in_flight)
    }

    /// Places on a stream are revisions: the checkpoint stands before the oldest that waits.
    fn on_a_stream(&self) -> u64 {
        let Some(newest) = self.newest else { return 0 };
        let ahead = match self.checkpoint {
            None => newest.saturating_add(1),
            Some(checkpoint) => newest.saturating_sub(checkpoint),
        };
        let own = ahead.saturating_sub(self.settled);
        // Where others work too, what they have settled shows in the group's books alone.
        match (self.held_by_group(), self.known) {
            (Some(held), Some(known)) => own.min(held + newest.saturating_sub(known)),
            _ => own,
        }
    }

    /// Places on `$all` are bytes: they tell whether, not how many; and a checkpoint may have passed
    /// events that wait in the server's buffer.
    fn on_all(&self) -> u64 {
        let Some(newest) = self.newest else { return 0 };
        let waiting = self.info.buffered + self.info.in_flight;
        let passed = self.checkpoint >= Some(newest) || (self.held_by_group().is_some() && self.known >= Some(newest));
        waiting.max(u64::from(!passed))
    }
}

fn seconds_behind(
    events: u64,
    oldest: Option<DateTime<Utc>>,
    head: Option<&Head>,
    stalled: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> f64 {
    let since = if events > 0 {
        oldest.or_else(|| head.map(|h| h.created))
    } else {
        None
    };
    let age = |at: DateTime<Utc>| (now - at).to_std().unwrap_or_default().as_secs_f64();
    since.into_iter().chain(stalled).map(age).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use proptest::prelude::*;

    use super::*;

    fn group(status: &str, buffered: u64, in_flight: u64) -> GroupInfo {
        GroupInfo {
            status: status.to_owned(),
            in_flight,
            buffered,
            ..GroupInfo::default()
        }
    }

    fn waiting(info: &GroupInfo, known: Option<u64>, checkpoint: Option<u64>, newest: Option<u64>) -> Waiting<'_> {
        Waiting {
            info,
            known,
            newest,
            checkpoint,
            settled: 0,
        }
    }

    /// The states of a group as a real server showed them.
    #[test]
    fn lag_is_zero_only_when_nothing_waits() {
        let (idle, ten) = (group(LIVE, 0, 0), group(LIVE, 10, 0));
        // Category: nothing matched yet, 10 matched and none acknowledged, all acknowledged.
        assert_eq!(waiting(&idle, None, None, None).on_a_stream(), 0);
        assert_eq!(waiting(&ten, Some(9), None, Some(9)).on_a_stream(), 10);
        assert_eq!(waiting(&idle, Some(9), Some(9), Some(9)).on_a_stream(), 0);
        // A restarted group knows nothing of its newest entry; the source does.
        assert_eq!(waiting(&idle, None, Some(12), Some(20)).on_a_stream(), 8);
        // Filtered: the checkpoint stands past ten that wait; then all are done.
        assert_eq!(waiting(&ten, Some(900), Some(5_000), Some(900)).on_all(), 10);
        assert_eq!(waiting(&idle, Some(900), Some(5_000), Some(900)).on_all(), 0);
        assert_eq!(waiting(&idle, None, Some(900), Some(5_000)).on_all(), 1);
    }

    #[test]
    fn what_is_done_beyond_the_checkpoint_does_not_wait() {
        // Settled by this process; by others, which only the group's books show.
        let behind = group("Behind", 0, 0);
        let own = Waiting {
            settled: 797,
            ..waiting(&behind, Some(999), Some(202), Some(999))
        };
        assert_eq!(own.on_a_stream(), 0);
        let done = group(LIVE, 0, 0);
        assert_eq!(waiting(&done, Some(999), Some(202), Some(999)).on_a_stream(), 0);
        assert_eq!(waiting(&done, Some(999), Some(202), Some(999)).on_all(), 0);
        assert_eq!(
            waiting(&group(LIVE, 3, 4), Some(997), Some(202), Some(999)).on_a_stream(),
            9
        );
        // A group that reads its history has heard of what it has not read.
        assert_eq!(waiting(&behind, Some(999), Some(202), Some(999)).on_a_stream(), 797);
        assert_eq!(waiting(&behind, Some(999), Some(202), Some(999)).on_all(), 1);
    }

    #[test]
    fn a_source_that_stands_still_ages() {
        let now = DateTime::from_timestamp(1_000, 0).unwrap();
        let then = DateTime::from_timestamp(940, 0);
        let lag = Duration::from_secs_f64;
        assert_eq!(lag(seconds_behind(0, None, None, then, now)), Duration::from_mins(1));
        assert_eq!(lag(seconds_behind(0, then, None, None, now)), Duration::ZERO);
        assert_eq!(lag(seconds_behind(3, then, None, None, now)), Duration::from_mins(1));
    }

    proptest! {
        #[test]
        fn ranges_are_the_set_that_went_in(
            steps in prop::collection::vec((0_u64..60, 0_u64..6, prop::bool::weighted(0.1)), 0..60),
            from in 0_u64..60,
            length in 0_u64..60,
        ) {
            let (mut ranges, mut set) = (SettledMarks::default(), BTreeSet::new());
            for (at, more, forget) in steps {
                if forget {
                    ranges.forget_through(at);
                    set.retain(|place| *place > at);
                } else {
                    ranges.insert(at, at + more);
                    set.extend(at..=at + more);
                }
            }
            let through = from + length;
            prop_assert_eq!(ranges.count(from, through), set.range(from..=through).count() as u64);
            prop_assert_eq!(ranges.contains(from), set.contains(&from));
            prop_assert_eq!(ranges.first_open(from), (from..1_000).find(|at| !set.contains(at)).unwrap());
            let ends: Vec<_> = ranges.ranges.iter().collect();
            prop_assert!(ends.windows(2).all(|w| w[0].1 + 1 < *w[1].0), "{:?}", ends);
        }
    }
}
