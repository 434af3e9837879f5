//! What an append that did not simply land leaves open, and how long that is waited for.
//!
//! I4 hint: a revision that a conflict names is waited for in rounds of the same append, never
//! skipped. A command that may have landed is never told as failed.

use super::{
    Attempt, NextPhase, Pause, Phase,
    sent::{Doubt, Open, SentAppend},
};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{error::CommandError, observe::Observation},
    event::Version,
    journal::{Hole, JournalError},
};

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    /// Where the stream ends as far as it was read.
    pub(super) fn place(&self) -> Version {
        self.hole.map(Hole::last).or(self.base.header.version)
    }

    pub(super) fn wait_then(&mut self, next: NextPhase<A, C, D>) -> NextPhase<A, C, D> {
        self.waits += 1;
        Phase::Wait(Pause::Race(self.waits), Box::new(next))
    }

    /// Goes on with a base that the leader confirmed and that does not hold the command.
    pub(super) fn resume(&mut self, mut open: Open<D::Reply>) -> NextPhase<A, C, D> {
        if let Some((expected, actual)) = self.callers_place().zip(open.hint())
            && actual != Some(expected)
        {
            // The server has judged the caller's version. A rival under way may have been meant, and
            // may die: nothing shows that of a deleted stream, and nothing was done.
            self.confirmed = false;
            let error = CommandError::Conflict {
                stream: self.stream.to_string(),
                expected,
                actual,
            };
            return self.refused(open, error);
        }
        let (version, awaiting) = (self.base.header.version, open.awaits_beyond(self.place()));
        open = match open.0 {
            Some(mut sent) if (sent.base, sent.expected) == (version, self.expected()) => {
                if sent.doubt != Doubt::None || awaiting {
                    // On its way still, perhaps, or the rival's is, or that one died: the same
                    // events at the same place land at most once, and the answer tells.
                    sent.rounds += 1;
                    return Phase::Append(sent);
                }
                sent.into()
            }
            Some(mut sent) if sent.base < version => {
                // Another's events stand where its own would.
                sent.doubt = Doubt::None;
                sent.into()
            }
            open => Open(open),
        };
        self.settled(open.0.as_deref());
        if open.hint().is_some() {
            self.attempts += 1;
        }
        let open = open.lost();
        // A race that a command had no right to any more is no race: the answer is where the stream stands.
        if self.attempts >= self.rules.attempts && self.misplaced().is_none() {
            self.give_up(open)
        } else {
            self.look_up(open)
        }
    }

    /// What was sent is not sent again.
    pub(super) fn settled(&mut self, sent: Option<&SentAppend<D::Reply>>) {
        if sent.is_some_and(|sent| sent.rounds > 0 && sent.hint.is_some()) {
            self.observed.push(Observation::HintSettled);
        }
    }

    pub(super) fn failed(&mut self, phase: NextPhase<A, C, D>, error: JournalError) -> NextPhase<A, C, D> {
        if error.is_transient() {
            self.trouble = Some(error);
            return self.wait_then(phase);
        }
        let open = phase.into_open();
        match error {
            JournalError::Tombstoned(_) => self.deleted(open, true),
            _ if open.in_doubt() => {
                let unknown = self.unknown();
                self.refused(open, unknown)
            }
            error => self.refused(open, CommandError::Journal(error)),
        }
    }

    /// The races are lost. An append in doubt may have won one of them all the same.
    pub(super) fn give_up(&mut self, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        let error = if open.in_doubt() {
            self.unknown()
        } else {
            self.contended(&open)
        };
        self.refused(open, error)
    }

    /// An append may have landed where nothing can be read any more: looking finds nothing, and
    /// that says nothing. Deciding again could contradict it or do it twice.
    pub(super) fn lost_track(&mut self, open: Open<D::Reply>) -> NextPhase<A, C, D> {
        self.confirmed = false;
        let unknown = self.unknown();
        self.refused(open, unknown)
    }

    pub(super) fn unknown(&self) -> CommandError<C::Error> {
        CommandError::OutcomeUnknown {
            command_id: self.identity.command,
        }
    }

    pub(super) fn contended(&self, open: &Open<D::Reply>) -> CommandError<C::Error> {
        CommandError::Contended {
            stream: self.stream.to_string(),
            attempts: self.attempts,
            awaited: open.hint().flatten().filter(|_| open.awaits_beyond(self.place())),
        }
    }
}
