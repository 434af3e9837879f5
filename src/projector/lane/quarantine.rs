//! Marks: what is marked and why, what a stored mark settles, when it is tried again, and what is owed
//! once it is cleared.
//!
//! Invariants: I5 isolation (a fault becomes a mark on its own replica), I3 settled (a mark settles what
//! stands behind it once it is durable, and what it settled is read again when it ends).

use std::mem;

use super::{Base, Effect, Hint, Lane, Next, PutKind, UnderWay, Verdict};
use crate::{
    event::Revision,
    projection::FoldError,
    replica::{Broken, Fingerprints, Header, MarkKind, Quarantine},
};

impl Lane {
    /// The stored item is no replica: that is marked on it, and nothing else of it is touched.
    pub(super) fn broken(&mut self, problem: &str, found: Box<Broken>) {
        self.rebase_on(Base::from_broken(&*self.rules.fold, found));
        self.read_wanted = false;
        let stands = self.stored_mark().is_some_and(|mark| mark.kind() == MarkKind::Corrupt);
        if !stands {
            let mark = Quarantine::corrupt(problem, &self.stream, self.rules.fold.fingerprint().into());
            self.known().header.quarantine = Some(mark);
            self.administrative = Some(PutKind::Quarantine("corrupt_item"));
        }
    }

    /// The stream may not be read. Under a mark that says so already nothing changes.
    pub(super) fn denied(&mut self, why: &str) {
        self.reconsider_suspects();
        self.back_to_stored();
        if self.is_denied() {
            self.ack_acting();
            return;
        }
        let mark = Quarantine::denied(why, self.rules.fold.fingerprint().into());
        self.known().header.quarantine = Some(mark);
        self.administrative = Some(PutKind::Quarantine("denied"));
    }

    pub(super) fn poisoned(&mut self, at: Revision, error: &FoldError, class: &'static str) {
        let by = self.failed_by(at);
        let base = self.known();
        if !base.falls_short() {
            let reason = format!("Failed to {error} (revision {at}).");
            base.header.quarantine = Some(Quarantine { at, reason, by });
            self.administrative = Some(PutKind::Quarantine(class));
            return;
        }
        // The last good replica stays as it is, for code that can read it.
        let unread = base.unreadable.clone().unwrap_or_default();
        self.back_to_stored();
        let reason = format!(
            "Failed to read the stored state ({unread}), which stays as it is, for folding it again failed to {error} \
             (revision {at}); deploy code that reads it, or run `projector redrive --from-start {}`.",
            self.stream
        );
        let at = self.known().next();
        let by = self.failed_by(at);
        self.known().header.quarantine = Some(Quarantine { at, reason, by });
        self.administrative = Some(PutKind::Quarantine("unreadable_state"));
    }

    /// This code, and all that failed before it on the same revision.
    pub(super) fn failed_by(&self, at: Revision) -> Fingerprints {
        let same = |mark: &&Quarantine| mark.at == at && mark.kind() == MarkKind::Quarantined;
        let before = self.stored_mark().filter(same).map(|mark| mark.by.clone());
        before.unwrap_or_default().with(self.rules.fold.fingerprint())
    }

    pub(super) fn diverged(&mut self, what: &str) {
        let by = self.rules.fold.fingerprint().into();
        let stream = self.stream.clone();
        // What was folded ahead of the store was folded on something that is not this stream.
        self.back_to_stored();
        self.known().header.quarantine = Some(Quarantine::diverged(what, &stream, by));
        self.administrative = Some(PutKind::Diverged);
    }

    /// Drops what was folded and is not stored, for a mark that goes on what is.
    pub(super) fn back_to_stored(&mut self) {
        let run = self.run.take();
        let fold = self.rules.fold.clone();
        let base = self.known();
        if let Some(stored) = base.stored.clone() {
            // Without a run all that was folded since changed nothing; a run that began again did not
            // begin with what is stored.
            if let Some(run) = run {
                base.rebase |= run.header.version.is_none() && stored.version.is_some();
                base.state = run.state;
            }
            // Of a state that is kept although nobody reads it, how its stream stands is known.
            let deleted = if base.unreadable.is_some() {
                base.header.deleted
            } else {
                stored.deleted
            };
            base.header = Header { deleted, ..stored };
        } else {
            base.header = Header::new();
            base.state = fold.initial();
        }
        self.changed = false;
        self.administrative = None;
        self.retrying = false;
        self.read_wanted = false;
        self.read_since_put = false;
        self.look_wanted = false;
        self.short = None;
        self.probe_wanted = false;
        self.unreadable = None;
        self.not_yet = None;
    }

    /// A stored mark settles what stands behind it, unless other code left it: then this code tries.
    pub(super) fn act_on_mark(&mut self) -> Option<Next> {
        if self.administrative.is_some() {
            return None;
        }
        let mark = self.known().header.quarantine.clone()?;
        self.noted = true;
        if self.probe_wanted {
            return Some(self.probe());
        }
        self.ack_acting();
        if self.unsettled() == 0 {
            return Some(Next::Idle);
        }
        if self.mark_read < Some(self.newest) {
            return Some(self.load(true));
        }
        let kind = mark.kind();
        let again = match kind {
            MarkKind::Quarantined => !mark.by.contains(self.rules.fold.fingerprint()),
            MarkKind::Diverged => false,
            // It was mended.
            MarkKind::Corrupt => self.known().broken.is_none(),
            MarkKind::Denied => self.has(Hint::Note),
        };
        if again {
            let restarts = self.rules.restarts();
            let base = self.known();
            base.header.quarantine = None;
            // Behind such a mark a deletion and a revival may have gone by.
            let known = base.header.version.is_some();
            self.probe_wanted = restarts && known && kind != MarkKind::Quarantined;
            self.administrative = Some(PutKind::Repair);
            self.unreadable = None;
            self.read_wanted = true;
            self.retrying = true;
            return None;
        }
        for (revision, waiting) in mem::take(&mut self.waiting) {
            let park = revision == mark.at && kind == MarkKind::Quarantined;
            self.verdicts.extend(waiting.tokens.into_iter().map(|token| {
                if park {
                    Verdict::Park(token, mark.reason.clone())
                } else {
                    Verdict::Ack(token)
                }
            }));
        }
        self.clear_suspects();
        self.ack_hints(&[Hint::Read, Hint::Note]);
        if matches!(kind, MarkKind::Diverged | MarkKind::Corrupt) {
            self.ack_hints(&[Hint::Look]);
        }
        if self.hints.is_empty() {
            return Some(Next::Idle);
        }
        // A deletion ends the wait for the event that could not be folded.
        Some(self.look())
    }

    /// What asks for a read to the end. A note without a mark means that whoever cleared it may have
    /// left owing what others had settled by it.
    pub(super) fn act_on_hints(&mut self) -> Option<Next> {
        if self.changed || (self.administrative.is_some() && !self.retrying) {
            // First what is at hand.
            return None;
        }
        if self.has(Hint::Note) {
            if self.mark_read < Some(self.newest) && self.administrative.is_none() {
                return Some(self.load(true));
            }
            self.noted = true;
            self.owing = true;
        }
        let mut heeded = self.drain_hints(&[Hint::Read, Hint::Note]);
        self.read_wanted |= !heeded.is_empty();
        self.acting.append(&mut heeded);
        None
    }

    pub(super) fn forget(&mut self) -> Next {
        self.noted = false;
        let stored = self.known().stored.as_ref().map_or(0, |stored| stored.generation);
        let generation = stored.max(mem::take(&mut self.note_seen));
        self.under_way = Some(UnderWay::Forget);
        Next::Do(Effect::Forget { generation })
    }

    pub(super) fn stored_mark(&self) -> Option<&Quarantine> {
        self.base.as_ref()?.stored.as_ref()?.quarantine.as_ref()
    }
}
