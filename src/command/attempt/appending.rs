//! An append, and what its answers mean.
//!
//! I1 prefix: what landed is folded on only where the base is known to be this stream's.

use chrono::{DateTime, Utc};

use super::{Attempt, Pause, Phase};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        base::{Base, Lineage},
        observe::{Discard, Observation},
    },
    event::{Revision, Version, next_after},
    journal::{Appended, Expected, JournalError, NewEvent, Presence, Slice},
    projection::run::fold_run,
};

/// Events on their way to the stream.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) expected: Expected,
    /// The version that they were decided on.
    pub(super) base: Version,
    pub(super) events: Vec<NewEvent>,
}

/// What is not known of an append that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// Everything is known.
    None,
    /// Its reply was lost.
    Lost,
    /// It was answered with ids that were written before, and not with where they are.
    WrittenBefore,
}

/// Events of one process in a row, no read of the stream between, after which one is read beside an
/// append: a revival is not overlooked for longer, and an append in a hundred costs a read more.
const UNREAD: Revision = 100;

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    /// The base's event, when nobody in this process has seen that it is the stream's; and where a
    /// stream's new life starts over, or many were appended since, the last event that was seen of
    /// it, which a deletion since would have taken. Of a deleted stream nothing can be seen.
    pub(super) fn to_verify(&self) -> Option<Revision> {
        let version = self.base.header.version;
        let unread = self
            .base
            .seen
            .zip(version)
            .is_some_and(|(seen, version)| version - seen >= UNREAD);
        let unseen = !self.base.verified || self.rules.catch_up.restarts || unread;
        let version = version.filter(|_| unseen && !self.reviving && self.hole.is_none());
        version.map(|version| self.base.seen.unwrap_or(version))
    }

    pub(super) fn appended(
        &mut self,
        outcome: Result<Appended, JournalError>,
        beside: Option<Result<Slice, JournalError>>,
        at: DateTime<Utc>,
    ) {
        let to_verify = self.to_verify();
        let Some(pending) = self.pending.take() else {
            return self.expire();
        };
        match outcome {
            Ok(appended) => match to_verify {
                Some(_) if self.verifies(beside) => self.landed(pending, appended, at),
                Some(_) => {
                    // It landed, on a state that is not known to be the stream's: what it came to
                    // is read from the stream.
                    self.attempts += 1;
                    self.doubt = self.doubt.max(Doubt::Lost);
                    self.pending = Some(pending);
                    self.phase = self.catch_up();
                }
                None => self.landed(pending, appended, at),
            },
            Err(JournalError::WrongExpected { current }) => {
                self.observed.push(if self.rounds == 0 {
                    Observation::Conflict
                } else {
                    Observation::Awaited
                });
                self.hint = Some(current);
                self.unknown_end |= self.reviving && current > pending.base;
                self.pending = Some(pending);
                let next = self.catch_up();
                if self.rounds == 0 {
                    self.wait_then(next);
                } else {
                    self.phase = Phase::Wait(Pause::Round(self.rounds), Box::new(next));
                }
            }
            Err(JournalError::OutcomeUnknown(_)) => {
                self.observed.push(Observation::OutcomeLost);
                self.doubt = self.doubt.max(Doubt::Lost);
                self.pending = Some(pending);
                let next = self.catch_up();
                self.wait_then(next);
            }
            Err(error) => {
                self.pending = Some(pending);
                self.failed(Phase::Append, error);
            }
        }
    }

    /// Whether what was read beside an append says that the base is the stream's.
    pub(super) fn verifies(&mut self, beside: Option<Result<Slice, JournalError>>) -> bool {
        let Some(Ok(slice)) = beside else {
            // Of a state that is known to be the stream's it was to tell a revival, and no more: an
            // append that was acknowledged is not in doubt for that. The next one asks again.
            return self.base.verified && !self.rules.catch_up.restarts;
        };
        let header = &self.base.header;
        let own = header.event.as_ref().map(|event| event.id);
        // What a read has shown of it since must still be there: without that it may be a life that
        // was deleted, whose last event came behind the deletion.
        let whole = self.base.seen.is_none_or(|seen| Some(seen) == header.version);
        match slice.events.first() {
            Some(first) if Some(first.revision) == header.version && Some(first.id) == own && whole => {
                self.base.verified = true;
            }
            Some(first) if Some(first.revision) == header.version && Some(first.id) != own => {
                self.observed.push(Observation::Discarded(Discard::Diverged));
                self.base = Base::initial(self.fold, Lineage::Foreign);
            }
            Some(first) if Some(first.revision) == self.base.seen => self.base.seen = None,
            // Deleted, truncated, gone: read on, by the rules for that.
            _ => {
                self.revived |= slice.presence == Presence::Absent;
                if self.rules.catch_up.restarts {
                    self.base = Base::initial(self.fold, Lineage::Foreign);
                }
                return false;
            }
        }
        self.base.verified && self.base.header.version.is_some()
    }

    pub(super) fn landed(&mut self, pending: Pending, appended: Appended, at: DateTime<Utc>) {
        let count = pending.events.len() as u64;
        let place = match pending.expected {
            Expected::Exact(at) => Some(at + count),
            Expected::NoStream => appended.revision,
        };
        let last = appended.revision.or(place);
        let first = last.and_then(|last| (last + 1).checked_sub(count));
        let (Some(first), Some(last), true) = (first, last, appended.positioned && last == place) else {
            // These ids were written before. Whether they can still be read is for a read to say.
            self.attempts += 1;
            self.doubt = Doubt::WrittenBefore;
            self.pending = Some(pending);
            let next = self.catch_up();
            return self.wait_then(next);
        };
        self.attempts += 1;
        self.observed.push(Observation::Appended);
        // Written before it was answered: a window that forgets it says so no earlier than it was.
        let raw = self.raw(&pending, first, at);
        self.parent = self
            .base
            .header
            .version
            .zip(self.base.header.event.as_ref().map(|e| e.id));
        if first > next_after(self.base.header.version) {
            // What lies between is gone: as everybody will read it from now on, from here.
            self.base = Base::initial(self.fold, Lineage::Foreign);
        }
        let base = (self.base.header.clone(), self.base.state.clone());
        let folded = fold_run(self.fold, base, &raw, self.rules.catch_up.keep_commands);
        self.base.weight.grew(&raw);
        // What went with the deletion, or a truncation, is known to be gone.
        let gone = (self.reviving || self.hole.is_some()) && !self.rules.catch_up.restarts;
        self.base.seen = self.base.seen.or(self.base.header.version).filter(|_| !gone);
        self.base.header = folded.header;
        self.base.state = folded.state;
        if self.reviving || self.hole.is_some() {
            // What the table has to say about deletions and lost history is the daemon's to write.
            self.base.lineage = Lineage::Foreign;
            self.base.header.deleted = false;
        }
        // A stream that was taken to be new had a life before.
        self.revived |= self.reviving || (pending.expected == Expected::NoStream && first > 0);
        self.confirmed = folded.stopped.is_none();
        let after = (self.base.header.clone(), self.base.state.clone());
        self.answer(&raw, after, last, false);
    }
}
