//! A command that landed before: found again, and answered with what was committed then.

use super::{Attempt, Committed, Phase};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        catch_up::{CatchUp, CatchUpError, Fed, Found},
        error::CommandError,
        observe::{Discard, Observation},
    },
    event::{RawEvent, Revision, codec},
    journal::{Presence, Slice},
    projection::{
        State,
        run::{command_of, fold_run, origin_of},
    },
    replica::{Header, Landed},
};

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    pub(super) fn answer_found(&mut self, found: Found) {
        let Some(last) = found.events.last().map(|e| e.revision) else {
            return self.resume();
        };
        // Of this very call, and found: that is no repetition but the outcome.
        let Some(repeated) = self.repeats(&found.events) else {
            return;
        };
        self.answer(&found.events, found.after, last, repeated);
    }

    /// Whether these events of the command's id are another call's; `None` when they are another
    /// command's, and the answer says so.
    fn repeats(&mut self, events: &[RawEvent]) -> Option<bool> {
        let origin = events.first().and_then(origin_of);
        let own = origin.as_ref().and_then(|o| o.execution) == Some(self.identity.execution);
        if own {
            return Some(false);
        }
        if origin.is_some_and(|origin| self.reused(&origin.sort)) {
            return None;
        }
        self.observed.push(Observation::Repeated);
        Some(true)
    }

    /// Answers with `events`, which end at `last`, and the state after them.
    pub(super) fn answer(&mut self, events: &[RawEvent], after: (Header, State), last: Revision, repeated: bool) {
        let mut decoded = Vec::with_capacity(events.len());
        for event in events {
            match codec::decode::<A::Event>(event.clone()) {
                Ok(recorded) => decoded.push(recorded.event),
                Err(error) => {
                    let (stream, revision) = (self.stream.to_string(), event.revision);
                    let error = CatchUpError::Unfoldable {
                        stream,
                        revision,
                        error: error.into(),
                    };
                    return self.unfoldable(None, error);
                }
            }
        }
        let (header, state) = after;
        let Some(state) = state.get::<A>() else {
            return self.done(Err(CommandError::OutcomeUnknown {
                command_id: self.identity.command,
            }));
        };
        // Of a decision that is not the one whose events these are, nothing is told.
        let own = |first: &RawEvent| self.reply.take_if(|(id, _)| *id == first.id);
        let reply = events.first().filter(|_| !repeated).and_then(own);
        self.done(Ok(Committed {
            reply: reply.map(|(_, reply)| reply),
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
            revived: self.revived && !repeated,
        }));
    }

    /// Answers with a command whose events cannot be read any more, if the base knows it.
    pub(super) fn answer_from_memory(&mut self) -> bool {
        let command = self.identity.command;
        let Some(landed) = self.base.landed(command).cloned() else {
            return false;
        };
        if self.reused(&landed.sort) {
            return true;
        }
        self.observed.push(Observation::Repeated);
        let after = (self.base.header.clone(), self.base.state.clone());
        self.answer(&[], after, landed.last, !self.in_doubt());
        true
    }

    /// Folding the stream again up to a command that the base knows of.
    pub(super) fn replayed(&mut self, mut reading: Box<CatchUp>, landed: Landed, slice: Slice) {
        let fed = reading.feed(self.fold, slice);
        let passed = reading.base.header.version > Some(landed.last);
        match (fed, reading.found.take()) {
            (Ok(Fed::UpToDate), Some(found)) => self.answer_found(found),
            (Ok(Fed::More), Some(found)) if passed => self.answer_found(found),
            (Ok(Fed::More), found) => {
                reading.found = found;
                self.phase = Phase::Replay(reading, landed);
            }
            (Ok(Fed::Nothing(Presence::Absent | Presence::Tombstoned)), _) => self.phase = Phase::Look,
            // Too long, or its history is gone: its events alone, on the state in hand.
            (Ok(Fed::UpToDate | Fed::Diverged | Fed::Shorter | Fed::Nothing(_)) | Err(_), _) => {
                self.phase = Phase::Recall(landed, Vec::new());
            }
        }
    }

    /// Reading the events of a command that the base knows of.
    pub(super) fn recalled(&mut self, landed: Landed, mut events: Vec<RawEvent>, slice: Slice) {
        let Slice { events: read, end, .. } = slice;
        if events.is_empty() {
            match read.first() {
                // Nothing that new: deleted, gone, or the stream ends before it.
                None => {
                    self.phase = Phase::Look;
                    return;
                }
                Some(first) if first.revision == landed.first && command_of(first) != Some(landed.command) => {
                    self.discard(Discard::Diverged);
                    return;
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
            self.phase = Phase::Recall(landed, events);
            return;
        }
        // A base may end in the middle of a command's events; the stream has the rest.
        let version = self.base.header.version;
        let rest: Vec<RawEvent> = events.iter().filter(|e| Some(e.revision) > version).cloned().collect();
        let base = (self.base.header.clone(), self.base.state.clone());
        let folded = fold_run(self.fold, base, &rest, self.rules.catch_up.keep_commands);
        if let Some((index, error)) = folded.stopped {
            let (stream, revision) = (self.stream.to_string(), rest[index].revision);
            return self.done(Err(CatchUpError::Unfoldable {
                stream,
                revision,
                error,
            }
            .into()));
        }
        let Some(repeated) = self.repeats(&events) else {
            return;
        };
        let last = events.last().map_or(landed.last, |e| e.revision).max(landed.last);
        self.answer(&events, (folded.header, folded.state), last, repeated);
    }
}
