//! From a base to events: has the command landed, may it be decided here, what does it come to.
//!
//! I6 pure: the caller's `decide` is asked with a state and answers with events. A rejection and an
//! empty decision leave only on a state that the leader confirmed in this attempt.

use tracing::debug_span;

use super::{
    Attempt, Committed, NextPhase, Phase, Searched, event_id,
    sent::{Doubt, Open, SentAppend},
    types::metadata,
};
use crate::{
    aggregate::{Aggregate, Command, Decision, Existence},
    command::{
        base::{Base, Lineage},
        error::CommandError,
        observe::{Discard, Observation},
    },
    event::{Revision, codec, metadata::SPANS, next_after},
    journal::NewEvent,
    projection::folding::fold_events,
    replica::{Landed, Sort},
};

/// Events that are folded from a stream's first on to answer a repetition with the state as it was
/// then: a read of so many costs a round trip, not much more.
const WORTH_FOLDING: Revision = 1_000;

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    /// Where the command landed, as far as the base knows.
    pub(super) fn known(&self) -> Option<Landed> {
        self.base.landed(self.identity.command).cloned()
    }

    /// Has the command landed already, as far as the base knows? Else it is decided.
    pub(super) fn look_up(&mut self, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        let header = &self.base.header;
        let Some(landed) = self.known() else {
            let forgotten = self.rules.known_from.is_some_and(|from| header.commands_since > from);
            // The base does not remember as much as was promised.
            return if forgotten && !self.searched {
                Phase::Search(open)
            } else {
                self.decide(open)
            };
        };
        if let Some(error) = self.reused(&landed.sort) {
            return self.refused(open, error);
        }
        // Its state is behind the base: fold the stream again, up to it, where one read does that.
        // Further on its events are read where they stand, and the state in hand goes with them.
        if header.version > Some(landed.last) && landed.last < WORTH_FOLDING {
            let reading = self.reading(Base::initial(self.fold, Lineage::Foreign));
            return Phase::Replay(Box::new(reading), landed, open);
        }
        Phase::Reread(landed, Vec::new(), open)
    }

    /// What ends it when another command landed with this one's id.
    pub(super) fn reused(&self, landed: &Sort) -> Option<CommandError<C::Error>> {
        if !landed.differs(&self.identity.sort) {
            return None;
        }
        let named = landed
            .name
            .as_ref()
            .filter(|name| self.identity.sort.name.as_ref() != Some(name));
        Some(CommandError::KeyReused {
            command_id: self.identity.command,
            landed: named.map_or("with another fingerprint".to_owned(), |name| format!("`{name}`")),
        })
    }

    pub(super) fn searched(&mut self, open: Open<D::Reply>, searched: Searched) -> NextPhase<A, C, D> {
        match searched {
            Searched::Found(landed) if landed.first > next_after(self.base.header.version) => {
                // Beyond the base: on the way there it is found.
                self.searched = true;
                self.catch_up(open)
            }
            Searched::Found(landed) => {
                self.base.older = Some(Box::new(landed));
                self.look_up(open)
            }
            Searched::NotThere => {
                self.searched = true;
                self.decide(open)
            }
            Searched::OutOfReach(_) if open.in_doubt() => self.lost_track(open),
            Searched::OutOfReach(since) => {
                self.confirmed = false;
                let error = CommandError::OutOfReach {
                    command_id: self.identity.command,
                    stream: self.stream.to_string(),
                    since,
                };
                self.refused(open, error)
            }
        }
    }

    /// Why the command has no place where the stream stands, as far as the base knows.
    pub(super) fn misplaced(&self) -> Option<CommandError<C::Error>> {
        let (place, stream) = (self.place(), || self.stream.to_string());
        let expected = self.rules.expected.filter(|_| self.callers_place().is_none());
        match (expected, self.command.existence(), place) {
            (Some(expected), _, actual) if actual != Some(expected) => Some(CommandError::Conflict {
                stream: stream(),
                expected,
                actual,
            }),
            (_, Existence::New, Some(revision)) => Some(CommandError::AlreadyExists {
                stream: stream(),
                revision,
            }),
            (_, Existence::Existing, None) => Some(CommandError::NotFound { stream: stream() }),
            _ => None,
        }
    }

    /// Reads on from a base that nobody confirmed in this attempt: a stale state must never turn a
    /// valid command away.
    fn confirm(&mut self, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        self.observed.push(Observation::Confirming);
        self.catch_up(open)
    }

    fn decide(&mut self, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        let misplaced = self.misplaced();
        if !self.confirmed && (misplaced.is_some() || self.rules.confirmed) {
            return self.confirm(open);
        }
        match misplaced {
            // What was appended before may be where nothing can be seen any more.
            Some(_) if open.in_doubt() => return self.give_up(open),
            Some(error) => return self.refused(open, error),
            None => {}
        }
        let Some(state) = self.base.state.get::<A>() else {
            // States come from the aggregate's own fold; another type is a snapshot source's defect.
            return self.discard(open, Discard::Undecodable);
        };
        let decided = debug_span!(target: SPANS, "decide").in_scope(|| self.command.decide(state));
        let decided = decided.map(D::into_parts);
        let appends = decided.as_ref().is_ok_and(|(events, _)| !events.is_empty());
        if !appends && !self.confirmed {
            return self.confirm(open);
        }
        if !appends && self.callers_place().is_some_and(|at| Some(at) != self.place()) {
            // No append asks the server whether the stream ended at the caller's version.
            return self.deleted(open, false);
        }
        match decided {
            Err(rejection) => self.refused(open, CommandError::Rejected(rejection)),
            Ok((events, reply)) if events.is_empty() => {
                let answer = Committed {
                    reply: Some(reply),
                    command: self.identity.command,
                    stream: self.stream.clone(),
                    state: state.clone(),
                    version: self.base.header.version,
                    revision: self.base.header.version,
                    event_id: self.base.header.event.as_ref().map(|event| event.id),
                    events,
                    attempts: self.attempts,
                    repeated: false,
                    first: self.base.header.first,
                    revived: self.lives.revived,
                };
                Phase::Done(self.ended(open, Ok(answer)))
            }
            Ok((events, reply)) => self.prepare(&events, reply, open.doubt()),
        }
    }

    /// Encodes what was decided, and makes sure that everybody will be able to read it.
    fn prepare(&mut self, events: &[A::Event], reply: D::Reply, doubt: Doubt) -> NextPhase<A, C, D> {
        let unwritable = |problem: String| CommandError::Unwritable {
            stream: self.stream.to_string(),
            problem,
        };
        for (name, value) in self.appending.take().map(|ask| ask()).unwrap_or_default() {
            self.identity.metadata.trace(name, value);
        }
        let mut new = Vec::with_capacity(events.len());
        let plain = metadata::<A::Event>(&self.identity, false);
        for (index, event) in events.iter().enumerate() {
            let metadata = if self.lives.reviving && index == 0 {
                // What the server takes then proves that the stream was still deleted.
                metadata::<A::Event>(&self.identity, true)
            } else {
                plain.clone()
            };
            match codec::encode(event) {
                Ok(body) => new.push(NewEvent {
                    id: event_id(
                        self.identity.command,
                        &self.stream,
                        index,
                        &body.kind,
                        &body.data,
                        &metadata,
                    ),
                    kind: body.kind,
                    json: true,
                    data: body.data,
                    metadata,
                }),
                Err(error) => {
                    let error = unwritable(error.to_string());
                    return self.refused(Open::NOTHING, error);
                }
            }
        }
        let sent = Box::new(SentAppend {
            expected: self.expected(),
            base: self.base.header.version,
            events: new,
            reply,
            doubt,
            hint: None,
            rounds: 0,
        });
        let raw = sent.raw(&self.stream, next_after(self.place()), self.identity.at);
        let folded = fold_events(self.fold, (&self.base.header, &self.base.state), &raw, 0);
        if let Some((index, error)) = folded.stopped {
            let error = unwritable(format!("event {index} (`{}`): {error}", raw[index].kind));
            return self.refused(Open::NOTHING, error);
        }
        Phase::Append(sent)
    }
}
