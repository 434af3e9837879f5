//! What a lane is told: deliveries, what they ask for, and where they wait.
//!
//! Invariant: I3 settled: a delivery leaves here by a verdict and in no other way.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{Arrival, LaneToken, Verdict};
use crate::event::{RawEvent, Revision};

/// Deliveries of one revision that wait.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) event: Option<RawEvent>,
    /// When it was named last by what does not carry it.
    pub(super) named_at: Option<DateTime<Utc>>,
    pub(super) tokens: Vec<LaneToken>,
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

/// Each delivery is in one of four places, and its token in the verdicts when it leaves.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) waiting: BTreeMap<Revision, Pending>,
    /// Deliveries that only say that something happened to the stream.
    pub(super) hints: Vec<(LaneToken, Hint)>,
    /// Deliveries of hints that were heeded; settled with whatever follows from that.
    acting: Vec<(LaneToken, Hint)>,
    /// Deliveries at or below the version that do not fit the replica.
    suspects: Vec<(Revision, Pending)>,
    pub(super) newest: LaneToken,
    /// Reading the stream on will settle deliveries that have not come yet.
    pub(super) behind: bool,
    /// The generation of the mark that was seen noted. Where the item was deleted meanwhile, its new
    /// life's generations begin below.
    pub(super) note_seen: u64,
    /// The next put of folded events waits.
    pub(super) held_back: bool,
    pub(super) verdicts: Vec<Verdict>,
}

impl Inbox {
    pub(super) fn deliver(&mut self, token: LaneToken, arrival: Arrival, behind: bool) {
        self.newest = self.newest.max(token);
        self.behind |= behind;
        let (revision, event, named_at) = match arrival {
            Arrival::Moved => return self.hints.push((token, Hint::Look)),
            Arrival::Onward => return self.hints.push((token, Hint::Read)),
            Arrival::Noted { generation } => {
                self.note_seen = self.note_seen.max(generation);
                return self.hints.push((token, Hint::Note));
            }
            Arrival::Revision(revision, at) => (revision, None, Some(at)),
            Arrival::Event(event) => (event.revision, Some(event), None),
        };
        let waiting = self.waiting.entry(revision).or_default();
        waiting.named_at = waiting.named_at.max(named_at);
        waiting.tokens.push(token);
        if event.is_some() {
            waiting.event = event;
        }
    }

    /// What was heeded is heeded again, and what was in hand is read again.
    pub(super) fn doubt(&mut self) {
        self.act_again();
        self.reconsider_suspects();
        for waiting in self.waiting.values_mut() {
            let written = waiting.event.take().map(|event| event.created);
            waiting.named_at = waiting.named_at.max(written);
        }
    }

    pub(super) fn unsettled(&self) -> usize {
        let suspects = self.suspects.iter().map(|(_, waiting)| waiting);
        let waiting = self.waiting.values().chain(suspects).map(|w| w.tokens.len());
        waiting.sum::<usize>() + self.hints.len() + self.acting.len()
    }

    pub(super) fn ack(&mut self, tokens: impl IntoIterator<Item = LaneToken>) {
        self.verdicts.extend(tokens.into_iter().map(Verdict::Ack));
    }

    pub(super) fn has(&self, hint: Hint) -> bool {
        self.hints.iter().any(|(_, of)| *of == hint)
    }

    /// Begins to act on the hints of these kinds; whether there are any.
    pub(super) fn heed(&mut self, kinds: &[Hint]) -> bool {
        let before = self.acting.len();
        self.acting
            .extend(self.hints.extract_if(.., |(_, of)| kinds.contains(of)));
        self.acting.len() > before
    }

    pub(super) fn ack_hints(&mut self, kinds: &[Hint]) {
        let hints = self.hints.extract_if(.., |(_, of)| kinds.contains(of));
        self.verdicts.extend(hints.map(|(token, _)| Verdict::Ack(token)));
    }

    /// Whether hints were heeded, and what follows from them is not done yet.
    pub(super) fn is_acting(&self) -> bool {
        !self.acting.is_empty()
    }

    pub(super) fn ack_acting(&mut self) {
        self.verdicts
            .extend(self.acting.drain(..).map(|(token, _)| Verdict::Ack(token)));
    }

    /// What was heeded came to nothing: it is heeded again.
    pub(super) fn act_again(&mut self) {
        self.hints.append(&mut self.acting);
    }

    pub(super) fn suspect(&mut self, revision: Revision, waiting: Pending) {
        self.suspects.push((revision, waiting));
    }

    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    pub(super) fn clear_suspects(&mut self) {
        let tokens = self.suspects.drain(..).flat_map(|(_, waiting)| waiting.tokens);
        self.verdicts.extend(tokens.map(Verdict::Ack));
    }

    /// A look is to show what they are.
    pub(super) fn look_for_suspects(&mut self) {
        let tokens = self.suspects.drain(..).flat_map(|(_, waiting)| waiting.tokens);
        self.acting.extend(tokens.map(|token| (token, Hint::Look)));
    }

    /// On another base, what did not fit may fit.
    pub(super) fn reconsider_suspects(&mut self) {
        for (revision, mut suspect) in self.suspects.drain(..) {
            let waiting = self.waiting.entry(revision).or_default();
            waiting.tokens.append(&mut suspect.tokens);
            waiting.event = waiting.event.take().or(suspect.event);
            waiting.named_at = waiting.named_at.max(suspect.named_at);
        }
    }
}
