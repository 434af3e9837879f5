//! History that can no longer be read, and the fold in place of a state that cannot be.
//!
//! Invariant: I1 prefix: a replica says where it begins, and the last good one is replaced by complete
//! history or not at all.

use super::Known;
use crate::{event::Revision, journal::Hole, projection::FoldError, reading::Reading};

/// What becomes of a fold that comes upon a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crossing {
    /// The replica covers it, or a new life begins behind it.
    GoesOn,
    /// Folding starts from nothing behind it.
    StartsOver,
    /// The aggregate is quarantined before it.
    Ends,
}

impl Known {
    /// The version at which a refold comes upon another event than what it replaces ends with.
    pub(super) fn replaces_another(&self, reading: &Reading) -> Option<Revision> {
        let stored = self.base.stored.as_ref().filter(|_| self.base.unreadable.is_some())?;
        let other = reading.events().any(|event| stored.ends_with(event) == Some(false));
        stored.version.filter(|_| other)
    }

    /// What becomes of the fold behind history that can no longer be read.
    pub(super) fn cross(&mut self, hole: Hole) -> Crossing {
        let base = &self.base;
        // A stream that begins a new life on purpose begins where that can be read.
        let on_purpose = self.unsaved.administrative.is_some() && base.rebase && base.unreadable.is_none();
        let begins = on_purpose && base.header.version.is_none();
        if begins || hole.last() < self.due() {
            return Crossing::GoesOn;
        }
        // A state that cannot be read is replaced by all of its history or not at all.
        if self.rules.on_lost_history.goes_on() && !base.falls_short() {
            return Crossing::StartsOver;
        }
        self.lost(&format!("revision {} on", hole.last() + 1));
        Crossing::Ends
    }

    /// The first revision that is to be folded. A refold in place of a state that cannot be read begins
    /// where that one began.
    fn due(&self) -> Revision {
        let base = &self.base;
        let begins = base.falls_short() && base.header.version.is_none();
        let replaced = base.stored.as_ref().filter(|_| begins);
        replaced.map_or(base.next(), |stored| stored.first)
    }

    /// History is gone without which the fold does not go on.
    pub(super) fn lost(&mut self, readable: &str) {
        self.agenda.read = false;
        let due = self.due();
        let what = format!("revisions from {due} on cannot be read any more, only {readable}");
        self.poisoned(due, &FoldError::Failed(what), "lost_history");
    }
}
