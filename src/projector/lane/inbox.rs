//! Deliveries that are not settled: what they ask for, and where they wait.
//!
//! Invariant: I3 settled: a delivery leaves here by a verdict and in no other way.

use super::{Lane, Token, Verdict};
use crate::event::RawEvent;

/// Deliveries of one revision that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) event: Option<RawEvent>,
    pub(super) tokens: Vec<Token>,
}

/// What a delivery asks for that carries no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// See how the stream stands.
    Look,
    /// Read it to its end.
    Read,
    /// It is noted as marked: see whether it is, and whether that left something owing.
    Note,
}

impl Lane {
    pub(super) fn has(&self, hint: Hint) -> bool {
        self.hints.iter().any(|(_, of)| *of == hint)
    }

    /// Takes the hints of these kinds out.
    pub(super) fn drain_hints(&mut self, kinds: &[Hint]) -> Vec<(Token, Hint)> {
        self.hints.extract_if(.., |(_, of)| kinds.contains(of)).collect()
    }

    pub(super) fn ack_acting(&mut self) {
        self.verdicts
            .extend(self.acting.drain(..).map(|(token, _)| Verdict::Ack(token)));
    }

    pub(super) fn ack_hints(&mut self, kinds: &[Hint]) {
        let hints = self.drain_hints(kinds);
        self.verdicts
            .extend(hints.into_iter().map(|(token, _)| Verdict::Ack(token)));
    }

    /// A mark takes the place of what was to be put, and how the stream stands was seen before: what asked
    /// for that is heeded behind it, for a deletion, or a life that followed one, ends the mark.
    pub(super) fn act_again(&mut self) {
        self.hints.append(&mut self.acting);
    }

    pub(super) fn clear_suspects(&mut self) {
        let tokens = self.suspects.drain(..).flat_map(|(_, waiting)| waiting.tokens);
        self.verdicts.extend(tokens.map(Verdict::Ack));
    }

    /// On another base, what did not fit may fit.
    pub(super) fn reconsider_suspects(&mut self) {
        for (revision, mut suspect) in self.suspects.drain(..) {
            let waiting = self.waiting.entry(revision).or_default();
            waiting.tokens.append(&mut suspect.tokens);
            waiting.event = waiting.event.take().or(suspect.event);
        }
    }
}
