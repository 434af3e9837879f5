//! The append that an attempt sent last, and what is not known of it.
//!
//! I4 hint: what a conflict names is kept until a read shows it, or shows that it is gone for good.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::{
    event::{RawEvent, Revision, Version, next_after},
    journal::{Expected, NewEvent},
};

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

/// Events on their way to the stream.
pub(super) struct SentAppend<R> {
    pub(super) expected: Expected,
    /// The version that they were decided on.
    pub(super) base: Version,
    pub(super) events: Vec<NewEvent>,
    /// What their decision replies.
    pub(super) reply: R,
    pub(super) doubt: Doubt,
    /// Where the last conflict said that the stream stands.
    pub(super) hint: Option<Version>,
    /// Times that it was sent since nothing explains its conflict.
    pub(super) rounds: u32,
}

impl<R> SentAppend<R> {
    /// With no more known of it than before.
    #[expect(clippy::unnecessary_box_returns, reason = "its box goes on from phase to phase")]
    pub(super) fn doubted(mut self: Box<Self>, doubt: Doubt) -> Box<Self> {
        self.doubt = self.doubt.max(doubt);
        self
    }

    /// Where the first of its events stands if it landed.
    pub(super) fn place(&self) -> Revision {
        match self.expected {
            Expected::Exact(at) => at + 1,
            Expected::NoStream => next_after(self.base),
        }
    }

    /// The events as a read would give them, the first at `first`, written at `at`.
    pub(super) fn raw(&self, stream: &Arc<str>, first: Revision, at: DateTime<Utc>) -> Vec<RawEvent> {
        let raw = |(event, revision): (&NewEvent, Revision)| RawEvent {
            stream: stream.clone(),
            revision,
            id: event.id,
            kind: event.kind.clone(),
            json: event.json,
            data: event.data.clone(),
            metadata: event.metadata.clone(),
            created: at,
        };
        self.events.iter().zip(first..).map(raw).collect()
    }
}

/// What is open of an append of before: nothing, when none was sent or what came of it is known.
pub(super) struct Open<R>(pub(super) Option<Box<SentAppend<R>>>);

impl<R> From<Box<SentAppend<R>>> for Open<R> {
    fn from(sent: Box<SentAppend<R>>) -> Self {
        Self(Some(sent))
    }
}

impl<R> Open<R> {
    pub(super) const NOTHING: Self = Self(None);

    pub(super) fn doubt(&self) -> Doubt {
        self.0.as_ref().map_or(Doubt::None, |sent| sent.doubt)
    }

    /// It may have landed.
    pub(super) fn in_doubt(&self) -> bool {
        self.doubt() != Doubt::None
    }

    /// Where its conflict said that the stream stands.
    pub(super) fn hint(&self) -> Option<Version> {
        self.0.as_ref().and_then(|sent| sent.hint)
    }

    /// The conflict speaks of a revision beyond `place`, where the stream ends as far as it was
    /// read: nothing has shown it or proved it to be gone.
    pub(super) fn awaits_beyond(&self, place: Version) -> bool {
        self.hint().is_some_and(|at| at > place)
    }

    /// It lost its race: what stays open is whether it landed all the same.
    pub(super) fn lost(self) -> Self {
        Self(self.0.filter(|sent| sent.doubt != Doubt::None).map(|mut sent| {
            (sent.hint, sent.rounds) = (None, 0);
            sent
        }))
    }
}
