//! What an append that did not simply land leaves open, and how long that is waited for.
//!
//! I4 hint: a revision that a conflict names is waited for in rounds of the same append, never
//! skipped. A command that may have landed is never told as failed.

use super::{Attempt, Pause, Phase, appending::Doubt};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{error::CommandError, observe::Observation},
    event::Version,
    journal::{Hole, JournalError},
};

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    /// The pending append is not sent again.
    pub(super) fn settled(&mut self) {
        if std::mem::take(&mut self.rounds) > 0 && self.hint.is_some() {
            self.observed.push(Observation::HintSettled);
        }
    }

    pub(super) fn wait_then(&mut self, next: Phase<A, C::Error, D::Reply>) {
        self.waits += 1;
        self.phase = Phase::Wait(Pause::Race(self.waits), Box::new(next));
    }

    pub(super) fn in_doubt(&self) -> bool {
        self.doubt != Doubt::None
    }

    /// The last conflict speaks of a revision that no read has shown or proved to be gone.
    pub(super) fn awaiting(&self) -> bool {
        self.hint.is_some_and(|at| at > self.place())
    }

    /// Where the stream ends as far as it was read.
    pub(super) fn place(&self) -> Version {
        self.hole.map(Hole::last).or(self.base.header.version)
    }

    pub(super) fn contended(&self) -> CommandError<C::Error> {
        CommandError::Contended {
            stream: self.stream.to_string(),
            attempts: self.attempts,
            awaited: self.hint.flatten().filter(|_| self.awaiting()),
        }
    }

    /// The races are lost. An append in doubt may have won one of them all the same.
    pub(super) fn give_up(&mut self) {
        let error = if self.in_doubt() {
            CommandError::OutcomeUnknown {
                command_id: self.identity.command,
            }
        } else {
            self.contended()
        };
        self.done(Err(error));
    }

    pub(super) fn failed(&mut self, phase: Phase<A, C::Error, D::Reply>, error: JournalError) {
        match error {
            JournalError::Tombstoned(_) => self.deleted(true),
            error if error.is_transient() => {
                self.trouble = Some(error);
                self.wait_then(phase);
            }
            _ if self.in_doubt() => {
                self.done(Err(CommandError::OutcomeUnknown {
                    command_id: self.identity.command,
                }));
            }
            error => self.done(Err(CommandError::Journal(error))),
        }
    }

    /// Goes on with a base that the leader confirmed and that does not hold the command.
    pub(super) fn resume(&mut self) {
        if let Some((expected, actual)) = self.callers_place().zip(self.hint)
            && actual != Some(expected)
        {
            // The server has judged the caller's version. A rival under way may have been meant, and
            // may die: nothing shows that of a deleted stream, and nothing was done.
            self.confirmed = false;
            return self.done(Err(CommandError::Conflict {
                stream: self.stream.to_string(),
                expected,
                actual,
            }));
        }
        if let Some(pending) = &self.pending {
            let moved = pending.base < self.base.header.version;
            if (pending.base, pending.expected) == (self.base.header.version, self.expected()) {
                if self.in_doubt() || self.awaiting() {
                    // On its way still, perhaps, or the rival's is, or that one died: the same
                    // events at the same place land at most once, and the answer tells.
                    self.rounds += 1;
                    self.phase = Phase::Append;
                    return;
                }
            } else if moved {
                // Another's events stand where the pending ones would.
                self.doubt = Doubt::None;
            }
        }
        self.settled();
        if self.hint.take().is_some() {
            self.attempts += 1;
        }
        // A race that a command had no right to any more is no race: the answer is where the stream stands.
        if self.attempts >= self.rules.attempts && self.misplaced().is_none() {
            self.give_up();
        } else {
            self.look_up();
        }
    }
}
