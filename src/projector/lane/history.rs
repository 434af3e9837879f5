//! History that can no longer be read, and the fold in place of a state that cannot be.
//!
//! Invariant: I1 prefix: a replica says where it begins, and the last good one is replaced by complete
//! history or not at all.

use super::Known;
use crate::{
    event::{RawEvent, Revision},
    projection::FoldError,
    replica::Divergence,
};

impl Known {
    /// Whether a refold comes upon another event than the one at the version of what it replaces.
    pub(super) fn replaces_another(&mut self, events: &[RawEvent]) -> bool {
        let stored = self.base.stored.as_ref().filter(|_| self.base.unreadable.is_some());
        let last = stored.and_then(|stored| stored.version.zip(stored.event.as_ref()));
        let Some((version, id)) = last.map(|(version, event)| (version, event.id)) else {
            return false;
        };
        let other = events.iter().any(|e| e.revision == version && e.id != id);
        if other {
            self.diverged(Divergence::OtherEvent(version));
        }
        other
    }

    /// Deals with history that can no longer be read and that the replica does not cover. Says
    /// whether folding starts from nothing; `None` when it does not go on.
    pub(super) fn handle_lost_history(&mut self, events: &[RawEvent], end: bool) -> Option<bool> {
        let base = &self.base;
        let on_purpose = self.unsaved.administrative.is_some() && base.rebase && base.unreadable.is_none();
        let begins = base.header.version.is_none();
        // A refold in place of a state that cannot be read begins where that one began.
        let replaced = base.stored.as_ref().filter(|_| base.falls_short());
        let due = replaced.filter(|_| begins).map_or(base.next(), |stored| stored.first);
        let replaces = replaced.is_some();
        let lost = match events.first() {
            // A stream that begins a new life on purpose begins where that can be read.
            Some(first) => first.revision > due && !(on_purpose && begins),
            // Nothing to fold again from, and the stored state cannot be used.
            None => end && replaces,
        };
        if !lost {
            return Some(false);
        }
        if self.rules.on_lost_history.goes_on() && !events.is_empty() && !replaces {
            return Some(true);
        }
        let readable = events
            .first()
            .map_or("nothing".to_owned(), |e| format!("revision {} on", e.revision));
        self.lost(due, &readable);
        None
    }

    pub(super) fn lost(&mut self, from: Revision, readable: &str) {
        self.agenda.read = false;
        let what = format!("revisions from {from} on cannot be read any more, only {readable}");
        self.poisoned(from, &FoldError::Failed(what), "lost_history");
    }
}
