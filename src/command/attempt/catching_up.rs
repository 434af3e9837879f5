//! Reading the stream on from the base, and what that says of it.
//!
//! I1 prefix: nothing is folded across a doubt; a base that the stream does not bear out is thrown away.

use super::{Attempt, Phase, appending::Pending};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        base::{Base, Lineage},
        catch_up::{CatchUp, CatchUpError, Fed, Found},
        error::CommandError,
        observe::{Discard, Observation},
    },
    event::{Revision, next_after},
    journal::{Expected, Hole, Presence, Slice},
    projection::OnLostHistory,
};

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    pub(super) fn reading(&self) -> CatchUp {
        CatchUp::new(self.base.clone(), Some(self.identity.command), self.rules.catch_up)
    }

    pub(super) fn catch_up(&self) -> Phase<A, C::Error, D::Reply> {
        Phase::CatchUp(Box::new(self.reading()))
    }

    /// Goes on from the fresher base when it spares reading. It is checked as every snapshot is,
    /// by the event at its version.
    pub(super) fn refreshed(&mut self, reading: Box<CatchUp>, base: Option<Box<Base>>) {
        let reached = reading.base.header.version;
        match base.filter(|base| base.header.version > reached && !base.header.deleted) {
            None => self.phase = Phase::CatchUp(reading),
            Some(base) => {
                self.base = *base;
                self.confirmed = false;
                self.searched = false;
                if self.knows_command() {
                    self.look_up();
                } else {
                    self.phase = self.catch_up();
                }
            }
        }
    }

    pub(super) fn read(&mut self, mut reading: Box<CatchUp>, slice: Slice) {
        let before = reading.folded;
        let fed = reading.feed(self.fold, slice);
        self.observed.push(Observation::Replayed(reading.folded - before));
        self.gone = self.gone.or(reading.gone.take());
        match fed {
            Err(error) => self.unfoldable(reading.found.take(), error),
            // Not while an append is looked for: a fresher state would step over it.
            Ok(Fed::More) if !self.refreshed && !self.in_doubt() && reading.found.is_none() => {
                self.refreshed = true;
                self.phase = Phase::Refresh(reading);
            }
            Ok(Fed::More) => self.phase = Phase::CatchUp(reading),
            Ok(Fed::Diverged) => self.discard(Discard::Diverged),
            Ok(Fed::Shorter) => self.discard(Discard::WentBackwards),
            Ok(Fed::Nothing(Presence::Tombstoned)) => self.deleted(true),
            Ok(Fed::Nothing(_)) => self.phase = Phase::Look,
            Ok(Fed::UpToDate) => match self.gone.take() {
                Some(gone) if !self.revived => self.phase = Phase::Begins(reading, gone),
                _ => self.caught_up(*reading),
            },
        }
    }

    pub(super) fn caught_up(&mut self, reading: CatchUp) {
        let CatchUp { base, found, hole, .. } = reading;
        self.base = base;
        self.hole = hole;
        self.alive();
        self.confirmed = true;
        match found {
            Some(found) => self.answer_found(found),
            None if self.out_of_sight() => self.lost_track(),
            None => match hole.filter(|_| self.rules.catch_up.on_lost_history == OnLostHistory::Quarantine) {
                Some(hole) if !self.answer_from_memory() => self.lost_history(hole),
                Some(_) => {}
                None if hole.is_some() && self.answer_from_memory() => {}
                None => self.resume(),
            },
        }
    }

    /// The stream does not fold to its end. A command that was found before is answered all the
    /// same, and one that may stand behind is not known to have failed.
    pub(super) fn unfoldable(&mut self, found: Option<Found>, error: CatchUpError) {
        self.confirmed = false;
        match found {
            Some(found) => self.answer_found(found),
            None if self.in_doubt() => self.give_up(),
            None => self.done(Err(error.into())),
        }
    }

    /// Where an append in doubt may stand nothing can be read: the base was started over beyond
    /// it, or it would stand in a hole.
    pub(super) fn out_of_sight(&self) -> bool {
        let place = |p: &Pending| match p.expected {
            Expected::Exact(at) => at + 1,
            Expected::NoStream => next_after(p.base),
        };
        let gone = |at: Revision| {
            (self.base.header.version.is_some() && self.base.header.first > at)
                || self.hole.is_some_and(|hole| (hole.first()..=hole.last()).contains(&at))
        };
        self.in_doubt() && self.pending.as_ref().is_some_and(|p| gone(place(p)))
    }

    pub(super) fn lost_history(&mut self, hole: Hole) {
        self.confirmed = false;
        if self.in_doubt() {
            return self.give_up();
        }
        self.done(Err(CommandError::State(CatchUpError::LostHistory {
            stream: self.stream.to_string(),
            first: hole.first(),
            last: hole.last(),
        })));
    }

    /// An append may have landed where nothing can be read any more: looking finds nothing, and
    /// that says nothing. Deciding again could contradict it or do it twice.
    pub(super) fn lost_track(&mut self) {
        self.confirmed = false;
        self.done(Err(CommandError::OutcomeUnknown {
            command_id: self.identity.command,
        }));
    }

    /// Throws the base away and begins with the stream's first event.
    pub(super) fn discard(&mut self, why: Discard) {
        self.observed.push(Observation::Discarded(why));
        self.base = Base::initial(self.fold, Lineage::Foreign);
        self.confirmed = false;
        self.hole = None;
        self.searched = false;
        self.phase = self.catch_up();
    }
}
