//! Marks: what is marked and why, what a stored mark settles, when it is tried again, and what is owed
//! once it is cleared.
//!
//! Invariants: I5 isolation (a fault becomes a mark on its own replica), I3 settled (a mark settles what
//! stands behind it once it is durable, and what it settled is read again when it ends).

use std::{mem, time::Duration};

use super::{
    Agenda, Effect, Hint, Known, Next, NotFound, UnderWay, Verdict,
    gap::SHOWN_WITHIN,
    unsaved::{UnsavedFold, Write},
};
use crate::{
    event::Revision,
    projection::FoldError,
    replica::{Divergence, Fingerprints, Header, MarkKind, Quarantine},
};

/// Whether the stream is noted as marked; the note goes when nothing is owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum MarkNote {
    #[default]
    None,
    /// It is, or may be.
    Noted,
    /// A mark was cleared by which another task may have settled what came meanwhile, and that is yet
    /// to be stored: no delivery need ask for it. Since when, once that is known.
    Owing(Option<Duration>),
    /// What is owed was read to its end, and is yet to be stored.
    Confirmed,
    /// All of it is stored: the note goes, if no other mark has come meanwhile.
    Paid,
}

impl MarkNote {
    /// A mark was seen: it stands before all that is not stored.
    pub(super) fn see(&mut self) {
        *self = Self::Noted;
    }

    /// A mark was seen to be cleared.
    pub(super) fn owe(&mut self) {
        *self = Self::Owing(None);
    }

    pub(super) fn owes(self) -> bool {
        matches!(self, Self::Owing(_) | Self::Confirmed)
    }

    /// Whether a read that begins now shows all that is owed. Nothing is delivered again for what a mark
    /// had settled, and no delivery names it: it takes one at a leader that knows of the mark's end.
    pub(super) fn is_due(self, now: Duration) -> bool {
        matches!(self, Self::Owing(Some(since)) if now >= since + SHOWN_WITHIN)
    }

    /// When it is read for the last time, where that is known to be owed since now at the latest.
    pub(super) fn due_since(&mut self, now: Duration) -> Option<Duration> {
        match self {
            Self::Owing(since) => Some(*since.get_or_insert(now) + SHOWN_WITHIN),
            _ => None,
        }
    }

    /// The stream was read to its end, late enough.
    pub(super) fn confirm(&mut self) {
        *self = Self::Confirmed;
    }
}

impl Known {
    /// The stored item is no replica: that is marked on it, and nothing else of it is touched.
    pub(super) fn mark_broken(&mut self, problem: &str) {
        self.agenda.read = false;
        let stands = self.stored_mark().is_some_and(|mark| mark.kind() == MarkKind::Corrupt);
        if !stands {
            let by = self.rules.fold.fingerprint().into();
            let mark = Quarantine::corrupt(problem, &self.stream, by);
            self.mark(mark, Write::Quarantine("corrupt_item"));
        }
    }

    /// The stream may not be read. Under a mark that says so already nothing changes.
    pub(super) fn denied(&mut self, why: &str) {
        self.inbox.reconsider_suspects();
        self.back_to_stored();
        if self.is_denied() {
            return self.inbox.ack_acting();
        }
        let mark = Quarantine::denied(why, self.rules.fold.fingerprint().into());
        self.mark(mark, Write::Quarantine("denied"));
    }

    pub(super) fn diverged(&mut self, what: Divergence) {
        // What was folded ahead of the store was folded on something that is not this stream.
        self.back_to_stored();
        let mark = Quarantine::diverged(what, &self.stream, self.rules.fold.fingerprint().into());
        self.mark(mark, Write::Diverged);
    }

    pub(super) fn poisoned(&mut self, at: Revision, error: &FoldError, class: &'static str) {
        if !self.base.falls_short() {
            let mark = Quarantine::poisoned(at, error, self.failed_by(at));
            return self.mark(mark, Write::Quarantine(class));
        }
        // The last good replica stays as it is, for code that can read it.
        let unread = self.base.unreadable.clone().unwrap_or_default();
        self.back_to_stored();
        let next = self.base.next();
        let mark = Quarantine::unreadable_state(next, &unread, (error, at), &self.stream, self.failed_by(next));
        self.mark(mark, Write::Quarantine("unreadable_state"));
    }

    fn mark(&mut self, mark: Quarantine, write: Write) {
        self.base.header.quarantine = Some(mark);
        self.unsaved.say(write);
    }

    /// This code, and all that failed before it on the same revision.
    fn failed_by(&self, at: Revision) -> Fingerprints {
        let same = |mark: &&Quarantine| mark.at == at && mark.kind() == MarkKind::Quarantined;
        let before = self.stored_mark().filter(same).map(|mark| mark.by.clone());
        before.unwrap_or_default().with(self.rules.fold.fingerprint())
    }

    /// Drops what was folded and is not stored, for a mark that goes on what is.
    pub(super) fn back_to_stored(&mut self) {
        let unsaved = mem::take(&mut self.unsaved);
        let base = &mut self.base;
        if let Some(stored) = base.stored.clone() {
            // Without a run all that was folded since changed nothing; a run that began again did not
            // begin with what is stored.
            if let UnsavedFold::Run(run) = unsaved.folded {
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
            base.state = self.rules.fold.initial();
        }
        self.agenda = Agenda::default();
        self.not_found = NotFound::default();
    }

    /// A mark was cleared, by this task or another: what was settled by it is read.
    pub(super) fn owe(&mut self) {
        self.note.owe();
        self.agenda.probe |= self.may_have_begun_again();
    }

    /// A stored mark settles what stands behind it, unless other code left it: then this code tries.
    pub(super) fn act_on_mark(&mut self) -> Option<Next> {
        if self.unsaved.administrative.is_some() {
            return None;
        }
        let mark = self.base.header.quarantine.clone()?;
        self.note.see();
        if self.agenda.probe {
            return Some(self.probe());
        }
        self.inbox.ack_acting();
        if self.inbox.unsettled() == 0 {
            return Some(Next::Idle);
        }
        if !self.is_fresh() {
            return Some(self.load());
        }
        if self.tries(&mark) {
            self.base.header.quarantine = None;
            // Behind such a mark a deletion and a revival may have gone by.
            let known = self.base.header.version.is_some();
            self.agenda.probe = self.rules.restarts() && known && mark.kind() != MarkKind::Quarantined;
            self.agenda.read = true;
            self.not_found.gone = None;
            self.unsaved.retry();
            return None;
        }
        self.settle_behind(&mark);
        if self.inbox.hints.is_empty() {
            return Some(Next::Idle);
        }
        // A deletion ends the wait for the event that could not be folded.
        Some(self.look())
    }

    fn tries(&self, mark: &Quarantine) -> bool {
        match mark.kind() {
            MarkKind::Quarantined => !mark.by.contains(self.rules.fold.fingerprint()),
            MarkKind::Diverged => false,
            // It was mended.
            MarkKind::Corrupt => self.base.broken.is_none(),
            MarkKind::Denied => self.inbox.has(Hint::Note),
        }
    }

    fn settle_behind(&mut self, mark: &Quarantine) {
        let kind = mark.kind();
        for (revision, waiting) in mem::take(&mut self.inbox.waiting) {
            if revision == mark.at && kind == MarkKind::Quarantined {
                let park = |token| Verdict::Park(token, mark.reason.clone());
                self.inbox.verdicts.extend(waiting.tokens.into_iter().map(park));
            } else {
                self.inbox.ack(waiting.tokens);
            }
        }
        self.inbox.clear_suspects();
        self.inbox.ack_hints(&[Hint::Read, Hint::Note]);
        if matches!(kind, MarkKind::Diverged | MarkKind::Corrupt) {
            self.inbox.ack_hints(&[Hint::Look]);
        }
    }

    /// What asks for a read to the end. A note without a mark means that whoever cleared it may have
    /// left owing what others had settled by it.
    pub(super) fn act_on_hints(&mut self) -> Option<Next> {
        let waits = self.unsaved.administrative.is_some();
        if self.unsaved.changed() || (waits && !self.unsaved.retries()) {
            // First what is at hand.
            return None;
        }
        if self.inbox.has(Hint::Note) {
            if !self.is_fresh() && !waits {
                return Some(self.load());
            }
            self.owe();
        }
        self.agenda.read |= self.inbox.heed(&[Hint::Read, Hint::Note]);
        None
    }

    pub(super) fn forget(&mut self) -> Next {
        self.note = MarkNote::None;
        let stored = self.base.stored.as_ref().map_or(0, |stored| stored.generation);
        let generation = stored.max(mem::take(&mut self.inbox.note_seen));
        self.under_way = Some(UnderWay::Forget);
        Next::Do(Effect::Forget { generation })
    }
}
