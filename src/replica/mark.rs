//! Marks: why an aggregate waits, as its replica says it.
//!
//! Invariant: I5 isolation: a mark says what failed and who failed on it, so that the aggregate waits alone
//! and whoever may try again knows it. The reason's first word is the kind, in every version's items.

use std::{fmt, sync::Arc};

use crate::{event::Revision, projection::FoldError};

/// The builds that have failed on a mark, oldest first: none of them tries it again by itself, so
/// that builds side by side leave each other's marks alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprints(Vec<Arc<str>>);

impl Fingerprints {
    /// Builds that one mark remembers; more do not run side by side, and all must fit beside the
    /// mark's reason on an item that was full before.
    const KEPT: usize = 8;
    /// Bytes of the older ones, for the same reason.
    const BYTES: usize = 400;

    /// These, oldest first.
    pub fn new(all: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut own = Self::default();
        for one in all {
            own = own.with(&one);
        }
        own
    }

    /// Whether this build has failed on the mark.
    pub fn contains(&self, fingerprint: &str) -> bool {
        self.0.iter().any(|one| **one == *fingerprint)
    }

    /// The same with one more, as the newest. Nobody's (an empty one) changes nothing.
    #[must_use]
    pub fn with(&self, fingerprint: &str) -> Self {
        let mut all = self.0.clone();
        if !fingerprint.is_empty() {
            all.retain(|one| **one != *fingerprint);
            all.push(fingerprint.into());
        }
        let older = |all: &[Arc<str>]| all.iter().rev().skip(1).map(|one| one.len()).sum::<usize>();
        while all.len() > Self::KEPT || older(&all) > Self::BYTES {
            all.remove(0);
        }
        Self(all)
    }

    /// The build that made the mark as it stands; empty for nobody.
    pub fn newest(&self) -> &str {
        self.0.last().map_or("", |one| one)
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter()
    }
}

impl From<&str> for Fingerprints {
    fn from(one: &str) -> Self {
        Self::default().with(one)
    }
}

impl From<String> for Fingerprints {
    fn from(one: String) -> Self {
        one.as_str().into()
    }
}

impl fmt::Display for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.0.iter().enumerate() {
            write!(f, "{}{one}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// An event cannot be folded, or the stored state cannot be read. Other code tries again.
    Quarantined,
    /// Stream and replica have diverged. It stands before every revision until an operator acts.
    Diverged,
    /// The stored item is not readable as one. It stands before every revision until it is mended.
    Corrupt,
    /// The stream may not be read. It stands before every revision and is tried again now and then.
    Denied,
}

impl MarkKind {
    /// The word that begins such a mark's reason, and stands in its note.
    fn word(self) -> &'static str {
        match self {
            Self::Quarantined => "quarantined",
            Self::Diverged => "diverged",
            Self::Corrupt => "unreadable item",
            Self::Denied => "denied",
        }
    }

    /// The kind whose word this is.
    pub fn of(word: &str) -> Option<Self> {
        [Self::Quarantined, Self::Diverged, Self::Corrupt, Self::Denied]
            .into_iter()
            .find(|kind| kind.word() == word)
    }
}

impl fmt::Display for MarkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A durable mark: the event after the replica's version cannot be folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The revision of the event that cannot be folded.
    pub at: Revision,
    /// Why, for people.
    pub reason: String,
    /// The fingerprints of the code that could not.
    pub by: Fingerprints,
}

/// How a stream is seen not to be the one that its replica was folded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// It has another event at a revision that was folded in.
    #[error("the stream has another event at revision {0} than the replica was folded from")]
    OtherEvent(Revision),
    /// It ends at this revision.
    #[error("the stream ends at revision {0}, before the replica's version")]
    Shorter(Revision),
    /// It is not there, and was not deleted.
    #[error("the stream is not in the event store")]
    Missing,
}

impl Quarantine {
    /// The mark on an event that cannot be folded.
    pub fn poisoned(at: Revision, error: &FoldError, by: Fingerprints) -> Self {
        let reason = format!("Failed to {error} (revision {at}).");
        Self { at, reason, by }
    }

    /// The mark of a replica whose stored state this code cannot read, nor fold again: that failed at
    /// revision `failed`.
    pub fn unreadable_state(
        at: Revision,
        problem: &str,
        (error, failed): (&FoldError, Revision),
        stream: &str,
        by: Fingerprints,
    ) -> Self {
        let reason = format!(
            "Failed to read the stored state ({problem}), which stays as it is, for folding it again failed to \
             {error} (revision {failed}); deploy code that reads it, or run `projector redrive --from-start {stream}`."
        );
        Self { at, reason, by }
    }

    /// The mark that stands while a marked stream is folded again, so that other code lets it be.
    pub fn folded_again(at: Revision) -> Self {
        Self {
            at,
            reason: "It is being folded again.".into(),
            by: Fingerprints::default(),
        }
    }

    /// The mark of a replica that was emptied, to be folded again.
    pub fn emptied() -> Self {
        Self {
            at: 0,
            reason: "It is being folded again from the start.".into(),
            by: Fingerprints::default(),
        }
    }

    fn before_all(kind: MarkKind, what: &str, by: Fingerprints) -> Self {
        Self {
            at: 0,
            reason: format!("{kind}: {what}"),
            by,
        }
    }

    /// The mark of a replica whose stream is not the one that it was folded from. It stands before
    /// every revision.
    pub fn diverged(what: Divergence, stream: &str, by: Fingerprints) -> Self {
        let what = format!(
            "{what}; a store was restored or reset: check that the event store is the right one, \
             then rebuild with `projector redrive --from-start {stream}`."
        );
        Self::before_all(MarkKind::Diverged, &what, by)
    }

    /// The mark of an item that is not readable as a replica. It stands before every revision.
    pub fn corrupt(problem: &str, stream: &str, by: Fingerprints) -> Self {
        let what = format!("{problem}; fold it again with `projector redrive --from-start {stream}`.");
        Self::before_all(MarkKind::Corrupt, &what, by)
    }

    /// The mark of a stream that may not be read. It stands before every revision.
    pub fn denied(problem: &str, by: Fingerprints) -> Self {
        let what = format!("failed to {problem}; it is tried again every few minutes.");
        Self::before_all(MarkKind::Denied, &what, by)
    }

    /// What it says.
    pub fn kind(&self) -> MarkKind {
        self.reason
            .split_once(": ")
            .and_then(|(word, _)| MarkKind::of(word))
            .unwrap_or(MarkKind::Quarantined)
    }

    /// Whether it says that stream and replica have diverged.
    pub fn is_diverged(&self) -> bool {
        self.kind() == MarkKind::Diverged
    }
}

/// An aggregate with a mark, as it is noted beside the replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Its stream.
    pub stream: Arc<str>,
    /// What the mark says.
    pub kind: MarkKind,
    /// The fingerprints of the code that has failed on it.
    pub by: Fingerprints,
    /// The generation of the put that made it.
    pub generation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items of every version hold these, and the kind is read from the text.
    #[test]
    fn a_marks_text_says_its_kind_and_stays_as_it_is() {
        let by = || Fingerprints::from("v1");
        let error = FoldError::UnknownKind("Paid".into());
        let marks = [
            (
                Quarantine::diverged(Divergence::OtherEvent(7), "loan-1", by()),
                MarkKind::Diverged,
                "diverged: the stream has another event at revision 7 than the replica was folded from; a store was \
                 restored or reset: check that the event store is the right one, then rebuild with `projector redrive \
                 --from-start loan-1`."
                    .to_owned(),
            ),
            (
                Quarantine::corrupt("its version is a text", "loan-1", by()),
                MarkKind::Corrupt,
                "unreadable item: its version is a text; fold it again with `projector redrive --from-start loan-1`."
                    .to_owned(),
            ),
            (
                Quarantine::denied("read stream `loan-1`", by()),
                MarkKind::Denied,
                "denied: failed to read stream `loan-1`; it is tried again every few minutes.".to_owned(),
            ),
            (
                Quarantine::poisoned(7, &error, by()),
                MarkKind::Quarantined,
                format!("Failed to {error} (revision 7)."),
            ),
            (
                Quarantine::unreadable_state(8, "no list", (&error, 7), "loan-1", by()),
                MarkKind::Quarantined,
                format!(
                    "Failed to read the stored state (no list), which stays as it is, for folding it again failed to \
                     {error} (revision 7); deploy code that reads it, or run `projector redrive --from-start loan-1`."
                ),
            ),
            (
                Quarantine::folded_again(8),
                MarkKind::Quarantined,
                "It is being folded again.".to_owned(),
            ),
        ];
        for (mark, kind, text) in marks {
            assert_eq!((mark.kind(), mark.reason), (kind, text));
        }
        let others = [Divergence::Shorter(3), Divergence::Missing].map(|what| what.to_string());
        assert_eq!(
            others,
            [
                "the stream ends at revision 3, before the replica's version",
                "the stream is not in the event store"
            ]
        );
    }
}
