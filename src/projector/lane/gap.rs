//! Reading the stream on: what is missing, what is not readable yet and what never will be.
//!
//! Invariants: I4 hint (a revision that a delivery names is waited for, never skipped), I1 prefix (a base
//! is seen to be this stream's before anything is folded on it).

use std::time::Duration;

use super::{Base, Effect, Lane, Next, PutKind, Token, UnderWay, settle::other_event_at};
use crate::{
    event::Revision,
    journal::{Presence, ReadLimit, Slice},
    projection::OnLostHistory,
};

/// How long a revision that a delivery names, its event not in hand, is waited for while no read
/// shows it: longer than a leader's election takes. A link may name what will never be.
pub(super) const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// Between two reads for what a delivery names and no read shows: a commit's time, to begin with.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// An outage of the server's own; asking more often would not end it.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Deliveries, up to `high`, of revisions that were not yet readable when the stream was read last.
#[derive(Clone, Copy, Debug)]
pub(super) struct NotYet {
    pub(super) high: Token,
    /// Where the stream ended then: nothing at or above it was readable.
    pub(super) below: Revision,
    /// Since when it has ended there, and the newest delivery that has waited as long.
    pub(super) since: Duration,
    pub(super) waited: Token,
    pub(super) reads: u32,
    pub(super) due: Duration,
}

impl NotYet {
    /// Up to which delivery nothing more is expected.
    pub(super) fn hopeless(&self) -> Option<Token> {
        (self.due > self.since + SHOWN_WITHIN).then_some(self.waited)
    }
}

/// Events of a read that shows what a base's last event is: that one, and the one that follows it.
pub(super) const VERIFIES: usize = 2;

impl Lane {
    pub(super) fn wants_read(&self, now: Duration) -> bool {
        let Some(base) = self.base.as_ref() else {
            return false;
        };
        // What cannot be read is replaced by all of its history or not at all.
        if base.falls_short() && !base.header.deleted {
            return true;
        }
        if self.read_since_put && (self.changed || self.administrative.is_some()) {
            // A fresh start is put only when it is not behind what it replaces.
            return base.rebase && self.read_wanted && base.header.version < base.durable();
        }
        let searched = self.unreadable.map_or(0, |(high, _)| high);
        let waits = self.not_yet.filter(|n| now < n.due).map_or(0, |n| n.high);
        let searched = searched.max(waits);
        self.read_wanted
            || self
                .waiting
                .range(base.next()..)
                .any(|(_, w)| w.tokens.iter().any(|token| *token > searched))
    }

    pub(super) fn read_on(&mut self) -> Next {
        let limit = self.rules.read;
        let high = self.newest;
        let base = self.known();
        // One event more, the first time: it shows whether this is still the stream it was.
        let verifies = !base.verified && !base.rebase && base.header.version.is_some();
        let from = match base.header.version {
            Some(version) if verifies => version,
            _ if base.rebase && base.header.deleted => 0,
            version => crate::event::next_after(version),
        };
        let next = base.next();
        // What follows is in hand: only what it follows is to be seen.
        let in_hand = self.waiting.get(&next).is_some_and(|w| w.event.is_some());
        let only_verifies = verifies && in_hand && !self.read_wanted && !self.behind;
        let events = if only_verifies {
            VERIFIES
        } else {
            limit.events.max(VERIFIES)
        };
        self.under_way = Some(UnderWay::ReadOn {
            from,
            high,
            only_verifies,
        });
        Next::Do(Effect::Read {
            from,
            limit: ReadLimit { events, ..limit },
        })
    }

    pub(super) fn read(&mut self, from: Revision, high: Token, only_verifies: bool, mut slice: Slice, now: Duration) {
        if slice.presence != Presence::Present {
            self.read_wanted = false;
            self.behind = false;
            if self.known().header.deleted {
                self.unreadable = Some((high, Revision::MAX));
            } else {
                self.look_wanted = true;
            }
            return;
        }
        let base = self.known();
        if slice.ends_before(base.header.version) && !base.rebase {
            self.look_wanted = true;
        }
        let base = self.known();
        if base.header.version == Some(from) && !base.rebase {
            match slice.events.first() {
                Some(first) if first.revision == from => {
                    if base.header.event.as_ref().is_some_and(|e| e.id != first.id) {
                        return self.diverged(&other_event_at(from));
                    }
                    slice.events.remove(0);
                }
                // The replica's last event cannot be read any more; what is above it can.
                Some(_) => {}
                None => self.look_wanted = true,
            }
            self.known().verified = true;
        }
        if !only_verifies {
            self.tally.gap_reads += 1;
            self.tally.gap_events += slice.events.len() as u64;
        }
        let (fold, restarts) = (self.rules.fold.clone(), self.rules.restarts());
        let version = self.known().header.version;
        // A hole before the first event is minded below; of those between, as the policy has it.
        let between: Vec<usize> = slice
            .holes(version)
            .map(|(index, _)| index)
            .filter(|at| *at > 0)
            .collect();
        let below = slice.last.map_or(Revision::MAX, |last| last + 1);
        let Slice {
            mut events, mut end, ..
        } = slice;
        if let (Some(first), Some(last)) = (between.first(), between.last()) {
            if self.rules.on_lost_history == OnLostHistory::Partial {
                events.drain(..*last);
            } else {
                events.truncate(*first);
                end = false;
                self.read_wanted = true;
            }
        }
        let base = self.known();
        if base.header.deleted && !events.is_empty() {
            base.header.deleted = false;
            if restarts {
                self.start_over();
                return;
            }
            if base.unreadable.is_some() {
                base.refold(&*fold);
            }
        }
        if self.replaces_another(&events) {
            return;
        }
        let proven = Some(below) > self.known().durable();
        let Some(from_scratch) = self.handle_lost_history(&events, end && proven) else {
            return;
        };
        if !events.is_empty() {
            self.read_since_put = true;
            self.fold(events, from_scratch);
        }
        if !end {
            return;
        }
        let base = self.known();
        if base.falls_short() && !matches!(self.administrative, Some(PutKind::Quarantine(_))) {
            if proven {
                let next = self.known().next();
                return self.lost(next, "nothing");
            }
            // Not all of it is readable yet, or it is another stream: a look tells.
            self.look_wanted = true;
            return;
        }
        self.found_nothing(high, below, now);
        self.read_wanted = false;
        self.behind = false;
    }

    /// The stream was read, and ends below `below`: deliveries of what stands there or above are
    /// waited for.
    pub(super) fn found_nothing(&mut self, high: Token, below: Revision, now: Duration) {
        self.unreadable = Some((high, below));
        let next = self.known().next();
        let mut above = self.waiting.range(below.max(next)..);
        if above.all(|(_, w)| w.tokens.iter().all(|token| *token > high)) {
            self.not_yet = None;
            return;
        }
        // A stream that grows is on its way to what is waited for; what came after the last wait
        // began waits as long.
        let (since, waited, reads) = match self.not_yet {
            Some(n) if below > n.below => (now, high, 0),
            Some(n) if n.hopeless().is_some() => (now, high, n.reads),
            Some(n) => (n.since, n.waited, n.reads + 1),
            None => (now, high, 0),
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << reads.min(10)).min(LONGEST_PAUSE);
        self.not_yet = Some(NotYet {
            high,
            below,
            since,
            waited,
            reads,
            due: now + pause,
        });
    }

    /// When the stream is read again for what was not readable yet.
    pub(super) fn reads_again_at(&self) -> Option<Duration> {
        let next = self.base.as_ref().map_or(0, Base::next);
        let waits = self.waiting.range(next..).next().is_some();
        self.not_yet.filter(|_| waits).map(|n| n.due)
    }
}
