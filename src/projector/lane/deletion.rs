//! How the stream stands: deletion, revival, a stream that is shorter than its replica.
//!
//! Invariant: I4 hint: that a stream is deleted, lives again or begins later is seen at the leader, and a
//! leader that may be behind is asked again before it is believed.

use std::{mem, time::Duration};

use super::{
    Effect, Hint, Known, LaneToken, Look, Next, UnderWay,
    gap::{LONGEST_PAUSE, SHOWN_WITHIN},
    unsaved::{UnsavedFold, Write},
};
use crate::{
    event::{Revision, Version},
    journal::{Slice, Standing},
    projection::OnDeletion,
    replica::Divergence,
};

/// A look that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looking {
    high: LaneToken,
    /// A delivery asked for it.
    hinted: bool,
    /// Since when the stream has looked shorter than the replica.
    short_since: Option<Duration>,
}

impl Known {
    pub(super) fn look(&mut self) -> Next {
        // What follows from the look is decided on the store's own word, not on a cached base.
        if self.inbox.has(Hint::Look) && !self.is_fresh() && !self.unsaved.any() {
            if self.agenda.look != Look::No {
                self.agenda.look = Look::Now;
            }
            return self.load();
        }
        let (short_since, asked) = match mem::take(&mut self.agenda.look) {
            Look::Again { since, hinted, .. } => (Some(since), hinted),
            Look::No | Look::Now => (None, false),
        };
        let hinted = self.inbox.heed(&[Hint::Look]) || asked;
        self.under_way = Some(UnderWay::Look(Looking {
            high: self.inbox.newest,
            hinted,
            short_since,
        }));
        Next::Do(Effect::Look)
    }

    pub(super) fn looked(&mut self, standing: &Standing, looking: Looking, now: Duration) {
        let base = &self.base;
        match standing {
            Standing::Live(newest) => {
                let newest = newest.as_ref().map(|n| n.revision);
                let version = if base.unreadable.is_some() {
                    base.durable()
                } else {
                    base.header.version.filter(|_| !base.rebase)
                };
                match newest {
                    Some(end) if newest < version => {
                        self.contradicted(Divergence::Shorter(end), looking, now);
                    }
                    _ => self.lives(newest, looking.hinted),
                }
            }
            Standing::SoftDeleted | Standing::Tombstoned => self.deleted(looking.high),
            Standing::Missing if base.durable().is_some() || base.header.version.is_some() => {
                self.contradicted(Divergence::Missing, looking, now);
            }
            Standing::Missing => {
                self.agenda.read = false;
                self.found_nothing(looking.high, 0, now);
            }
        }
    }

    fn lives(&mut self, newest: Version, hinted: bool) {
        let restarts = self.rules.restarts();
        let base = &mut self.base;
        if !base.header.deleted {
            // A deletion and a revival may have gone by unseen.
            let marked = base.header.quarantine.is_some();
            let known = base.header.version.is_some();
            self.agenda.probe = marked || (restarts && known && hinted);
            // An item stands against a task that still holds events from before.
            self.agenda.read |= restarts && hinted && !known;
        } else if newest > base.header.version {
            self.agenda.read = true;
        } else {
            // Its old events are readable again.
            base.header.deleted = false;
            let unreadable = base.unreadable.is_some();
            let dropped = base.rebase && !unreadable;
            if unreadable && !restarts {
                base.refold(&*self.rules.fold);
                self.agenda.read = true;
            }
            self.unsaved.say(Write::Repair);
            if restarts || dropped {
                self.start_over();
            }
        }
    }

    fn deleted(&mut self, high: LaneToken) {
        let (fold, base) = (&*self.rules.fold, &mut self.base);
        if !base.header.deleted || base.header.quarantine.is_some() {
            // A state that cannot be read is kept as it is, like any other.
            if base.unreadable.is_some()
                && let Some(stored) = &base.stored
            {
                base.header = stored.clone();
                base.state = fold.initial();
                self.unsaved.folded = UnsavedFold::Nothing;
            }
            base.header.deleted = true;
            base.header.quarantine = None;
            if self.rules.on_deletion == OnDeletion::Remove {
                base.state = fold.initial();
            }
            self.unsaved.say(Write::Deletion);
        } else if self.store_read < Some(high) {
            // Another task may have written since: only the store's own word settles.
            self.agenda.load = true;
        }
        self.agenda.read = false;
        self.not_found.nothing_for(high);
    }

    /// The stream does not have what was folded from it. A new leader may not show it yet, and a
    /// deposed one never will: it is believed when it has stayed so for longer than an election takes.
    fn contradicted(&mut self, what: Divergence, looking: Looking, now: Duration) {
        let since = looking.short_since.unwrap_or(now);
        if now < since + SHOWN_WITHIN {
            self.agenda.look = Look::Again {
                since,
                due: now + LONGEST_PAUSE,
                hinted: looking.hinted,
            };
        } else {
            self.diverged(what);
        }
    }

    /// Whether a life may have ended and another begun where nobody looked: what told of it was settled
    /// by a mark.
    pub(super) fn may_have_begun_again(&self) -> bool {
        let header = &self.base.header;
        self.rules.restarts() && header.version.is_some() && !header.deleted
    }

    pub(super) fn probe(&mut self) -> Next {
        self.under_way = Some(UnderWay::Probe);
        self.read_one(0)
    }

    pub(super) fn probed(&mut self, slice: &Slice) {
        self.agenda.probe = false;
        let first = slice.events.first().map(|event| event.revision);
        let later_than = |revision: Revision| first.is_none_or(|first| first > revision);
        let header = &mut self.base.header;
        let outlived = header.quarantine.as_ref().is_some_and(|mark| later_than(mark.at));
        let starts_over = self.rules.restarts() && header.version.is_some() && later_than(header.first);
        if outlived {
            header.quarantine = None;
            self.unsaved.retry();
        }
        if starts_over {
            self.start_over();
        } else if outlived {
            self.not_found.gone = None;
            self.agenda.read = true;
        }
    }

    /// Folds from the first readable event; what was folded so far is replaced when that is done. A mark
    /// is tried with it.
    pub(super) fn start_over(&mut self) {
        if self.base.header.quarantine.take().is_some() {
            self.unsaved.retry();
        } else {
            self.unsaved.say(Write::Repair);
        }
        self.base.restart(&*self.rules.fold);
        self.unsaved.drop_run();
        self.not_found.gone = None;
        self.agenda.read = true;
    }
}
