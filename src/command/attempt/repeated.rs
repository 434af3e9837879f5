//! A command that landed before: found again, and answered with what was committed then.
//!
//! I1 prefix: the answer is read from the stream, with the state right after the command where one
//! read can fold that, else with the state in hand.

use super::{
    Attempt, Committed, Done, NextPhase, Phase,
    sent::{Open, SentAppend},
};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        catch_up::{CatchUp, CatchUpError, Fed, FoundCommand},
        error::CommandError,
        observe::{Discard, Observation},
    },
    event::{RawEvent, Revision, codec},
    journal::{Presence, Slice},
    projection::{
        FoldError, State,
        folding::{command_of, fold_events, origin_of},
    },
    replica::{Header, Landed},
};

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    pub(super) fn answer_found(&mut self, found: FoundCommand, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        // Of this very call, and found: that is no repetition but the outcome.
        match self.repeats(&found.events) {
            Ok(repeated) => Phase::Done(self.answer(open, &found.events, found.after, found.last, repeated)),
            Err(error) => self.refused(open, error),
        }
    }

    /// Answers with a command whose events cannot be read any more.
    pub(super) fn answer_from_memory(&mut self, landed: &Landed, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        if let Some(error) = self.reused(&landed.sort) {
            return self.refused(open, error);
        }
        self.observed.push(Observation::Repeated);
        let after = (self.base.header.clone(), self.base.state.clone());
        let repeated = !open.in_doubt();
        Phase::Done(self.answer(open, &[], after, landed.last, repeated))
    }

    /// Whether these events of the command's id are another call's.
    ///
    /// # Errors
    ///
    /// They are another command's.
    fn repeats(&mut self, events: &[RawEvent]) -> Result<bool, CommandError<C::Error>> {
        let origin = events.first().and_then(origin_of);
        let own = origin.as_ref().and_then(|o| o.execution) == Some(self.identity.execution);
        if own {
            return Ok(false);
        }
        if let Some(error) = origin.and_then(|origin| self.reused(&origin.sort)) {
            return Err(error);
        }
        self.observed.push(Observation::Repeated);
        Ok(true)
    }

    /// Ends with `events`, the last of them at `last`, and the state after them.
    pub(super) fn answer(
        &mut self,
        open: Open<D::Reply>,
        events: &[RawEvent],
        after: (Header, State),
        last: Revision,
        repeated: bool,
    ) -> Box<Done<A, C::Error, D::Reply>> {
        let mut decoded = Vec::with_capacity(events.len());
        for event in events {
            match codec::decode::<A::Event>(event.clone()) {
                Ok(recorded) => decoded.push(recorded.event),
                Err(error) => {
                    self.confirmed = false;
                    let error = if open.in_doubt() {
                        self.unknown()
                    } else {
                        self.unfolded(event, error.into()).into()
                    };
                    return self.ended(open, Err(error));
                }
            }
        }
        let (header, state) = after;
        let Some(state) = state.get::<A>() else {
            let unknown = self.unknown();
            return self.ended(open, Err(unknown));
        };
        self.settled(open.0.as_deref());
        // Of a decision that is not the one whose events these are, nothing is told.
        let decided = |sent: &SentAppend<D::Reply>| sent.events.first().map(|first| first.id);
        let own = open
            .0
            .filter(|sent| !repeated && decided(sent) == events.first().map(|first| first.id));
        Done::with(Ok(Committed {
            reply: own.map(|sent| sent.reply),
            command: self.identity.command,
            stream: self.stream.clone(),
            state: state.clone(),
            version: header.version,
            revision: Some(last),
            event_id: events
                .last()
                .filter(|event| event.revision == last)
                .map(|event| event.id),
            events: decoded,
            attempts: if repeated { 0 } else { self.attempts.max(1) },
            repeated,
            first: header.first,
            revived: self.lives.revived && !repeated,
        }))
    }

    fn unfolded(&self, event: &RawEvent, error: FoldError) -> CatchUpError {
        CatchUpError::Unfoldable {
            stream: self.stream.to_string(),
            revision: event.revision,
            error,
        }
    }

    /// Folding the stream again up to a command that the base knows of.
    pub(super) fn replayed(
        &mut self,
        mut reading: Box<CatchUp>,
        landed: Landed,
        open: Open<D::Reply>,
        slice: Slice,
    ) -> NextPhase<A, C, D> {
        let fed = reading.feed(self.fold, slice);
        let passed = reading.base.header.version > Some(landed.last);
        match (fed, reading.found.take()) {
            (Ok(Fed::UpToDate), Some(found)) => self.answer_found(found, open),
            (Ok(Fed::More), Some(found)) if passed => self.answer_found(found, open),
            (Ok(Fed::More), found) => {
                reading.found = found;
                Phase::Replay(reading, landed, open)
            }
            (Ok(Fed::Nothing(Presence::Absent | Presence::Tombstoned)), _) => Phase::Look(open),
            // Too long, or its history is gone: its events alone, on the state in hand.
            (Ok(Fed::UpToDate | Fed::Diverged | Fed::Shorter | Fed::Nothing(_)) | Err(_), _) => {
                Phase::Reread(landed, Vec::new(), open)
            }
        }
    }

    /// Reading the events of a command that the base knows of.
    pub(super) fn reread(
        &mut self,
        landed: Landed,
        mut events: Vec<RawEvent>,
        open: Open<D::Reply>,
        slice: Slice,
    ) -> NextPhase<A, C, D> {
        let Slice { events: read, end, .. } = slice;
        if events.is_empty() {
            match read.first() {
                // Nothing that new: deleted, gone, or the stream ends before it.
                None => return Phase::Look(open),
                Some(first) if first.revision == landed.first && command_of(first) != Some(landed.command) => {
                    return self.discard(open, Discard::Diverged);
                }
                Some(_) => {}
            }
        }
        let all = read.len();
        let next = landed.first + events.len() as u64;
        let own = read.into_iter().zip(next..);
        let own = own.take_while(|(e, at)| e.revision == *at && command_of(e) == Some(landed.command));
        let before = events.len();
        events.extend(own.map(|(event, _)| event));
        if !end && events.len() - before == all {
            return Phase::Reread(landed, events, open);
        }
        // A base may end in the middle of a command's events; the stream has the rest.
        let version = self.base.header.version;
        let rest: Vec<RawEvent> = events.iter().filter(|e| Some(e.revision) > version).cloned().collect();
        let base = (&self.base.header, &self.base.state);
        let folded = fold_events(self.fold, base, &rest, self.rules.catch_up.keep_commands);
        if let Some((index, error)) = folded.stopped {
            let error = self.unfolded(&rest[index], error);
            return self.refused(open, error.into());
        }
        match self.repeats(&events) {
            Ok(repeated) => {
                let last = events.last().map_or(landed.last, |e| e.revision).max(landed.last);
                Phase::Done(self.answer(open, &events, (folded.header, folded.state), last, repeated))
            }
            Err(error) => self.refused(open, error),
        }
    }
}
