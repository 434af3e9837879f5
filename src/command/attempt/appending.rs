//! An append, and what its answers mean.
//!
//! I1 prefix: what landed is folded on only where the base is known to be this stream's.

use chrono::{DateTime, Utc};

use super::{
    Append, Attempt, NextPhase, Pause, Phase,
    sent::{Doubt, SentAppend},
};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        base::{Base, Lineage},
        observe::{Discard, Observation},
    },
    event::{Revision, next_after},
    journal::{Appended, Expected, JournalError, Presence, Slice},
    projection::folding::fold_events,
};

/// Events of one process in a row, no read of the stream between, after which one is read beside an
/// append: a revival is not overlooked for longer, and an append in a hundred costs a read more.
const UNREAD: Revision = 100;

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    pub(super) fn append(&self, sent: &SentAppend<D::Reply>) -> Append {
        Append {
            expected: sent.expected,
            events: sent.events.clone(),
            verify: self.to_verify(),
            look: (sent.doubt != Doubt::None).then(|| self.reading(self.base.clone()).from()),
        }
    }

    /// The base's event, when nobody in this process has seen that it is the stream's; and where a
    /// stream's new life starts over, or many were appended since, the last event that was seen of
    /// it, which a deletion since would have taken. Of a deleted stream nothing can be seen.
    fn to_verify(&self) -> Option<Revision> {
        let version = self.base.header.version;
        let unread = self
            .base
            .seen
            .zip(version)
            .is_some_and(|(seen, version)| version - seen >= UNREAD);
        let unseen = !self.base.verified || self.rules.catch_up.restarts || unread;
        let version = version.filter(|_| unseen && !self.lives.reviving && self.hole.is_none());
        version.map(|version| self.base.seen.unwrap_or(version))
    }

    pub(super) fn appended(
        &mut self,
        mut sent: Box<SentAppend<D::Reply>>,
        outcome: Result<Appended, JournalError>,
        beside: Option<Result<Slice, JournalError>>,
        at: DateTime<Utc>,
    ) -> NextPhase<A, C, D> {
        match outcome {
            Ok(_) if self.to_verify().is_some() && !self.verifies(beside) => {
                // It landed, on a state that is not known to be the stream's: what it came to
                // is read from the stream.
                self.attempts += 1;
                self.catch_up(sent.doubted(Doubt::Lost).into())
            }
            Ok(appended) => self.landed(sent, appended, at),
            Err(JournalError::WrongExpected { current }) => {
                let rounds = sent.rounds;
                self.observed.push(if rounds == 0 {
                    Observation::Conflict
                } else {
                    Observation::Awaited
                });
                sent.hint = Some(current);
                self.lives.unknown_end |= self.lives.reviving && current > sent.base;
                let next = self.catch_up(sent.into());
                if rounds == 0 {
                    self.wait_then(next)
                } else {
                    Phase::Wait(Pause::Round(rounds), Box::new(next))
                }
            }
            Err(JournalError::OutcomeUnknown(_)) => {
                self.observed.push(Observation::OutcomeLost);
                let next = self.catch_up(sent.doubted(Doubt::Lost).into());
                self.wait_then(next)
            }
            Err(error) => self.failed(Phase::Append(sent), error),
        }
    }

    /// Whether what was read beside an append says that the base is the stream's.
    fn verifies(&mut self, beside: Option<Result<Slice, JournalError>>) -> bool {
        let Some(Ok(slice)) = beside else {
            // Of a state that is known to be the stream's it was to tell a revival, and no more: an
            // append that was acknowledged is not in doubt for that. The next one asks again.
            return self.base.verified && !self.rules.catch_up.restarts;
        };
        // What a read has shown of it since must still be there: without that it may be a life that
        // was deleted, whose last event came behind the deletion.
        let header = &self.base.header;
        let whole = self.base.seen.is_none_or(|seen| Some(seen) == header.version);
        match slice.events.first() {
            Some(first) if header.ends_with(first) == Some(true) && whole => self.base.verified = true,
            Some(first) if header.ends_with(first) == Some(false) => {
                self.observed.push(Observation::Discarded(Discard::Diverged));
                self.base = Base::initial(self.fold, Lineage::Foreign);
            }
            Some(first) if Some(first.revision) == self.base.seen => self.base.seen = None,
            // Deleted, truncated, gone: read on, by the rules for that.
            _ => {
                self.lives.revived |= slice.presence == Presence::Absent;
                if self.rules.catch_up.restarts {
                    self.base = Base::initial(self.fold, Lineage::Foreign);
                }
                return false;
            }
        }
        self.base.verified && self.base.header.version.is_some()
    }

    fn landed(
        &mut self,
        mut sent: Box<SentAppend<D::Reply>>,
        appended: Appended,
        at: DateTime<Utc>,
    ) -> NextPhase<A, C, D> {
        self.attempts += 1;
        let count = sent.events.len() as u64;
        let place = match sent.expected {
            Expected::Exact(at) => Some(at + count),
            Expected::NoStream => appended.revision,
        };
        let last = appended.revision.or(place);
        let first = last.and_then(|last| (last + 1).checked_sub(count));
        let (Some(first), Some(last), true) = (first, last, appended.positioned && last == place) else {
            // These ids were written before. Whether they can still be read is for a read to say.
            sent.doubt = Doubt::WrittenBefore;
            let next = self.catch_up(sent.into());
            return self.wait_then(next);
        };
        self.observed.push(Observation::Appended);
        // Written before it was answered: a window that forgets it says so no earlier than it was.
        let raw = sent.raw(&self.stream, first, at);
        let header = &self.base.header;
        let parent = header.version.zip(header.event.as_ref().map(|event| event.id));
        if first > next_after(header.version) {
            // What lies between is gone: as everybody will read it from now on, from here.
            self.base = Base::initial(self.fold, Lineage::Foreign);
        }
        let base = (&self.base.header, &self.base.state);
        let folded = fold_events(self.fold, base, &raw, self.rules.catch_up.keep_commands);
        let reviving = self.lives.reviving;
        self.base.weight.grew(&raw);
        // What went with the deletion, or a truncation, is known to be gone.
        let gone = (reviving || self.hole.is_some()) && !self.rules.catch_up.restarts;
        self.base.seen = self.base.seen.or(self.base.header.version).filter(|_| !gone);
        self.base.header = folded.header;
        self.base.state = folded.state;
        if reviving || self.hole.is_some() {
            // What the table has to say about deletions and lost history is the daemon's to write.
            self.base.lineage = Lineage::Foreign;
            self.base.header.deleted = false;
        }
        // A stream that was taken to be new had a life before.
        self.lives.revived |= reviving || (sent.expected == Expected::NoStream && first > 0);
        self.confirmed = folded.stopped.is_none();
        let after = (self.base.header.clone(), self.base.state.clone());
        let mut done = self.answer(sent.into(), &raw, after, last, false);
        done.parent = parent;
        Phase::Done(done)
    }
}
