//! Reading the stream on: what is missing, what is not readable yet and what never will be.
//!
//! Invariants: I4 hint (a revision that a delivery names is waited for, never skipped), I1 prefix (a base
//! is seen to be this stream's before anything is folded on it).

use std::time::Duration;

use super::{Effect, Known, LaneToken, Next, UnderWay, fold::Follows, history::Crossing, unsaved::Write};
use crate::{
    backoff::doubled,
    event::{Revision, next_after},
    journal::{Presence, ReadLimit, Slice},
    reading::{Evidence, Reading, Stretch},
    replica::{Divergence, Header},
};

/// How long a revision that a delivery names, its event not in hand, is waited for while no read
/// shows it: longer than a leader's election takes. A link may name what will never be.
pub(super) const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// Between two reads for what a delivery names and no read shows: a commit's time, to begin with.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// An outage of the server's own; asking more often would not end it.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Events of a read that shows what a base's last event is: that one, and the one that follows it.
const VERIFIES: usize = 2;

/// A read that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOn {
    from: Revision,
    high: LaneToken,
    /// It is to show what the event in hand follows, and nothing more.
    only_verifies: bool,
    /// It began late enough to show all that a cleared mark had settled.
    confirms: bool,
}

/// What reads have shown the stream not to have.
#[derive(Debug, Default)]
pub(super) struct NotFound {
    pub(super) gone: Option<Gone>,
    pub(super) not_yet: Option<NotYet>,
}

/// What could not be found in the stream up to this delivery is not there, as far as it stands
/// below this revision: a read proves nothing of what the stream has not indexed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub(super) high: LaneToken,
    pub(super) below: Revision,
}

/// Deliveries, up to `high`, of revisions that were not yet readable when the stream was read last.
#[derive(Clone, Copy, Debug)]
pub(super) struct NotYet {
    high: LaneToken,
    /// Where the stream ended then: nothing at or above it was readable.
    below: Revision,
    /// Since when it has ended there, and the newest delivery that has waited as long.
    since: Duration,
    waited: LaneToken,
    reads: u32,
    due: Duration,
}

impl NotYet {
    /// Up to which delivery nothing more is expected.
    pub(super) fn hopeless(&self) -> Option<LaneToken> {
        (self.due > self.since + SHOWN_WITHIN).then_some(self.waited)
    }
}

impl NotFound {
    /// Nothing of what was delivered up to `high` can be read.
    pub(super) fn nothing_for(&mut self, high: LaneToken) {
        let below = Revision::MAX;
        self.gone = Some(Gone { high, below });
    }

    /// Up to which delivery another read would show nothing new.
    fn up_to(&self, now: Duration) -> LaneToken {
        let gone = self.gone.map_or(0, |gone| gone.high);
        let waits = self.not_yet.filter(|n| now < n.due).map_or(0, |n| n.high);
        gone.max(waits)
    }
}

impl Known {
    pub(super) fn wants_read(&self, now: Duration) -> bool {
        let base = &self.base;
        // What cannot be read is replaced by all of its history or not at all.
        if base.falls_short() && !base.header.deleted {
            return true;
        }
        if self.unsaved.read && self.unsaved.any() {
            // A fresh start is put only when it is not behind what it replaces.
            return base.rebase && self.agenda.read && base.header.version < base.durable();
        }
        let not_found = self.not_found.up_to(now);
        let mut missing = self.inbox.waiting.range(base.next()..).flat_map(|(_, w)| &w.tokens);
        self.agenda.read || missing.any(|token| *token > not_found)
    }

    pub(super) fn read_on(&mut self, now: Duration) -> Next {
        let (limit, high, base) = (self.rules.read, self.inbox.newest, &self.base);
        // One event more, the first time: it shows whether this is still the stream it was.
        let verifies = !base.verified && !base.rebase && base.header.version.is_some();
        let from = match base.header.version {
            Some(version) if verifies => version,
            _ if base.rebase && base.header.deleted => 0,
            version => next_after(version),
        };
        // What follows is in hand: only what it follows is to be seen.
        let follows = self.inbox.waiting.get(&base.next());
        let in_hand = follows.is_some_and(|w| w.event.is_some());
        let only_verifies = verifies && in_hand && !self.agenda.read && !self.inbox.behind;
        let events = if only_verifies {
            VERIFIES
        } else {
            limit.events.max(VERIFIES)
        };
        self.under_way = Some(UnderWay::Read(ReadOn {
            from,
            high,
            only_verifies,
            confirms: self.note.is_due(now),
        }));
        Next::Do(Effect::Read {
            from,
            limit: ReadLimit { events, ..limit },
        })
    }

    pub(super) fn read_one(&self, from: Revision) -> Next {
        Next::Do(Effect::Read {
            from,
            limit: ReadLimit {
                events: 1,
                ..self.rules.read
            },
        })
    }

    pub(super) fn read(&mut self, asked: ReadOn, slice: Slice, now: Duration) {
        let ReadOn { from, high, .. } = asked;
        if slice.presence != Presence::Present {
            self.agenda.read = false;
            self.inbox.behind = false;
            if asked.confirms {
                self.note.confirm();
            }
            if self.base.header.deleted {
                self.not_found.nothing_for(high);
            } else {
                self.agenda.look.want();
            }
            return;
        }
        let below = slice.last.map_or(Revision::MAX, |last| last + 1);
        let base = &self.base;
        // A state that was dropped with its stream is no part of what is read from the start.
        let reading = if base.rebase && base.header.deleted {
            Reading::new(&Header::new(), from, slice)
        } else {
            Reading::new(&base.header, from, slice)
        };
        let Some(follows) = self.follows(&reading) else {
            return self.diverged(Divergence::OtherEvent(from));
        };
        if !asked.only_verifies {
            self.tally.gap_reads += 1;
            self.tally.gap_events += reading.events().count() as u64;
        }
        if self.base.header.deleted && !reading.stretches.is_empty() {
            self.base.header.deleted = false;
            if self.rules.restarts() {
                return self.start_over();
            }
            if self.base.unreadable.is_some() {
                self.base.refold(&*self.rules.fold);
            }
        }
        if let Some(version) = self.replaces_another(&reading) {
            return self.diverged(Divergence::OtherEvent(version));
        }
        let proven = Some(below) > self.base.durable();
        if !self.fold_read(reading.stretches, follows) || !reading.end {
            return;
        }
        let quarantined = matches!(self.unsaved.write(), Some(Write::Quarantine(_)));
        if self.base.falls_short() && !quarantined {
            if proven {
                return self.lost("nothing");
            }
            // Not all of it is readable yet, or it is another stream: a look tells.
            return self.agenda.look.want();
        }
        if asked.confirms {
            self.note.confirm();
        }
        self.found_nothing(high, below, now);
        self.agenda.read = false;
        self.inbox.behind = false;
    }

    /// What the events of a read follow; `None` when the stream has another event where the replica
    /// has its last one.
    fn follows(&mut self, reading: &Reading) -> Option<Follows> {
        let base = &mut self.base;
        if base.rebase {
            return Some(Follows::Base);
        }
        // What ends before the replica bears nothing out, and may have grown past it by the next read.
        if reading.shorter {
            self.agenda.look.want();
            return Some(Follows::Base);
        }
        let follows = match reading.evidence {
            Evidence::NotAsked => return Some(Follows::Base),
            Evidence::Another => return None,
            Evidence::Same => Follows::Base,
            Evidence::Outlived => Follows::Outlived,
            Evidence::Nothing | Evidence::Unreached => {
                self.agenda.look.want();
                Follows::Base
            }
        };
        base.verified = true;
        Some(follows)
    }

    /// Folds what was read, across holes as the policy for lost history says. Whether it goes on.
    fn fold_read(&mut self, stretches: Vec<Stretch>, mut follows: Follows) -> bool {
        for Stretch { hole, events } in stretches {
            match hole.map(|hole| self.cross(hole)) {
                Some(Crossing::Ends) => return false,
                Some(Crossing::StartsOver) => follows = Follows::Nothing,
                Some(Crossing::GoesOn) | None => {}
            }
            self.unsaved.read = true;
            self.fold(events, follows);
            if self.unsaved.is_mark() {
                break;
            }
            follows = Follows::Base;
        }
        true
    }

    /// The stream was read, and ends below `below`: deliveries of what stands there or above are
    /// waited for.
    pub(super) fn found_nothing(&mut self, high: LaneToken, below: Revision, now: Duration) {
        self.not_found.gone = Some(Gone { high, below });
        let above = self.inbox.waiting.range(below.max(self.base.next())..);
        if above.flat_map(|(_, w)| &w.tokens).all(|token| *token > high) {
            self.not_found.not_yet = None;
            return;
        }
        // A stream that grows is on its way to what is waited for; what came after the last wait
        // began waits as long.
        let (since, waited, reads) = match self.not_found.not_yet {
            Some(n) if below > n.below => (now, high, 0),
            Some(n) if n.hopeless().is_some() => (now, high, n.reads),
            Some(n) => (n.since, n.waited, n.reads + 1),
            None => (now, high, 0),
        };
        self.not_found.not_yet = Some(NotYet {
            high,
            below,
            since,
            waited,
            reads,
            due: now + doubled(FIRST_PAUSE, LONGEST_PAUSE, reads),
        });
    }

    /// When the stream is read again for what was not readable yet.
    pub(super) fn reads_again_at(&self) -> Option<Duration> {
        let waits = self.inbox.waiting.range(self.base.next()..).next().is_some();
        self.not_found.not_yet.filter(|_| waits).map(|n| n.due)
    }
}
