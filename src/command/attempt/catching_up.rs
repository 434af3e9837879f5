//! Reading the stream on from the base, and what that says of it.
//!
//! I1 prefix: nothing is folded across a doubt; a base that the stream does not bear out is thrown away.

use super::{Attempt, NextPhase, Phase, sent::Open};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        base::{Base, Lineage},
        catch_up::{CatchUp, CatchUpError, Fed, FoundCommand},
        observe::{Discard, Observation},
    },
    event::Revision,
    journal::{Hole, Presence, Slice},
};

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    pub(super) fn reading(&self, base: Base) -> CatchUp {
        CatchUp::new(base, Some(self.identity.command), self.rules.catch_up)
    }

    pub(super) fn catch_up(&self, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        Phase::CatchUp(Box::new(self.reading(self.base.clone())), open)
    }

    pub(super) fn read(&mut self, mut reading: Box<CatchUp>, open: Open<D::Reply>, slice: Slice) -> NextPhase<A, C, D> {
        let before = reading.folded;
        let fed = reading.feed(self.fold, slice);
        self.observed.push(Observation::Replayed(reading.folded - before));
        self.lives.gone = self.lives.gone.or(reading.gone.take());
        match fed {
            Err(error) => self.unfoldable(reading.found.take(), open, error),
            // Not while an append is looked for: a fresher state would step over it.
            Ok(Fed::More) if !self.refreshed && !open.in_doubt() && reading.found.is_none() => {
                self.refreshed = true;
                Phase::Refresh(reading, open)
            }
            Ok(Fed::More) => Phase::CatchUp(reading, open),
            Ok(Fed::Diverged) => self.discard(open, Discard::Diverged),
            Ok(Fed::Shorter) => self.discard(open, Discard::WentBackwards),
            Ok(Fed::Nothing(Presence::Tombstoned)) => self.deleted(open, true),
            Ok(Fed::Nothing(_)) => Phase::Look(open),
            Ok(Fed::UpToDate) => match self.lives.gone.take() {
                Some(gone) if !self.lives.revived => Phase::Begins(reading, gone, open),
                _ => self.caught_up(*reading, open),
            },
        }
    }

    /// Goes on from the fresher base when it spares reading. It is checked as every snapshot is,
    /// by the event at its version.
    pub(super) fn refreshed(
        &mut self,
        reading: Box<CatchUp>,
        open: Open<D::Reply>,
        base: Option<Box<Base>>,
    ) -> NextPhase<A, C, D> {
        let reached = reading.base.header.version;
        let Some(base) = base.filter(|base| base.header.version > reached && !base.header.deleted) else {
            return Phase::CatchUp(reading, open);
        };
        self.base = *base;
        self.confirmed = false;
        self.searched = false;
        if self.knows_command() {
            self.look_up(open)
        } else {
            self.catch_up(open)
        }
    }

    pub(super) fn caught_up(&mut self, reading: CatchUp, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        let CatchUp { base, found, hole, .. } = reading;
        self.base = base;
        self.hole = hole;
        self.alive();
        self.confirmed = true;
        if let Some(found) = found {
            return self.answer_found(found, open);
        }
        if self.out_of_sight(&open) {
            return self.lost_track(open);
        }
        let Some(hole) = hole else { return self.resume(open) };
        match self.known() {
            Some(landed) => self.answer_from_memory(&landed, open),
            None if !self.rules.catch_up.on_lost_history.goes_on() => self.lost_history(hole, open),
            None => self.resume(open),
        }
    }

    /// The stream does not fold to its end. A command that was found before is answered all the
    /// same, and one that may stand behind is not known to have failed.
    fn unfoldable(
        &mut self,
        found: Option<FoundCommand>,
        open: Open<D::Reply>,
        error: CatchUpError,
    ) -> NextPhase<A, C, D> {
        self.confirmed = false;
        match found {
            Some(found) => self.answer_found(found, open),
            None if open.in_doubt() => self.give_up(open),
            None => self.refused(open, error.into()),
        }
    }

    /// Where an append in doubt may stand nothing can be read: the base was started over beyond
    /// it, or it would stand in a hole.
    fn out_of_sight(&self, open: &Open<D::Reply>) -> bool {
        let header = &self.base.header;
        let gone = |at: Revision| {
            (header.version.is_some() && header.first > at)
                || self.hole.is_some_and(|hole| (hole.first()..=hole.last()).contains(&at))
        };
        open.in_doubt() && open.0.as_ref().is_some_and(|sent| gone(sent.place()))
    }

    fn lost_history(&mut self, hole: Hole, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        self.confirmed = false;
        if open.in_doubt() {
            return self.give_up(open);
        }
        let error = CatchUpError::LostHistory {
            stream: self.stream.to_string(),
            first: hole.first(),
            last: hole.last(),
        };
        self.refused(open, error.into())
    }

    /// Throws the base away and begins with the stream's first event.
    pub(super) fn discard(&mut self, open: Open<D::Reply>, why: Discard) -> NextPhase<A, C, D> {
        self.observed.push(Observation::Discarded(why));
        self.base = Base::initial(self.fold, Lineage::Foreign);
        self.confirmed = false;
        self.hole = None;
        self.searched = false;
        self.catch_up(open)
    }
}
