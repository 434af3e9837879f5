//! What a read of a stream answers, and what it proves of the revisions that it does not show.
//!
//! Invariant: I4 hint: EventStoreDB answers a conflict before what it speaks of can be read, so that
//! an empty read says nothing by itself. A read also tells the stream's last indexed revision. What
//! is at or below that and is not shown can never be read; what is above it, nobody knows
//! yet. [`Hole`] is the first, and only a read makes one.

use super::Presence;
use crate::event::{RawEvent, Revision, Version, next_after};

/// A forward read's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// In order of revision. What lies between two of them, or between the revision asked for and
    /// the first, cannot be read any more.
    pub events: Vec<RawEvent>,
    /// Nothing readable stood above the last of them (above the start, when there is none) when
    /// the read ended.
    pub end: bool,
    /// What was found of the stream.
    pub presence: Presence,
    /// The first revision that may be readable, where the read told: it brought nothing, and does
    /// not begin there.
    pub first: Option<Revision>,
    /// The last revision that the stream's index had when the read ended, readable or not. `None`
    /// where the read did not get to tell: it was cut by its size, or found no stream.
    pub last: Option<Revision>,
}

/// Revisions that are in a stream and cannot be read: truncated, expired, scavenged. Proof of it:
/// only [`Slice::holes`] and [`Slice::hole_at_end`] make one, from what one read showed. (It says
/// nothing of an operator who takes `$maxCount` or `$tb` back before a scavenge.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    first: Revision,
    last: Revision,
}

impl Hole {
    /// The first revision that cannot be read.
    pub fn first(self) -> Revision {
        self.first
    }

    /// The last revision that cannot be read.
    pub fn last(self) -> Revision {
        self.last
    }

    fn between(next: Revision, readable: Revision) -> Option<Self> {
        (next < readable).then(|| Self {
            first: next,
            last: readable - 1,
        })
    }
}

impl Slice {
    /// Of a stream that is not there: never written, deleted softly or for good.
    pub fn nothing(presence: Presence) -> Self {
        Self {
            events: Vec::new(),
            end: true,
            presence,
            first: None,
            last: None,
        }
    }

    /// The holes before and between the events, for who has read up to `version`: each with the
    /// index of the event that stands behind it. An event that is readable proves that those before
    /// it were indexed, since a stream is indexed in its order.
    pub fn holes(&self, version: Version) -> impl Iterator<Item = (usize, Hole)> + '_ {
        let mut next = next_after(version);
        self.events.iter().enumerate().filter_map(move |(index, event)| {
            let hole = Hole::between(next, event.revision);
            next = event.revision + 1;
            hole.map(|hole| (index, hole))
        })
    }

    /// What is indexed behind the last event (behind `version`, when there is none) and cannot be
    /// read. Nothing where the read was not the stream's end.
    pub fn hole_at_end(&self, version: Version) -> Option<Hole> {
        let seen = self.events.last().map(|event| event.revision).max(version);
        let last = self.last.filter(|_| self.end && self.presence == Presence::Present)?;
        Hole::between(next_after(seen), last + 1)
    }

    /// Whether the stream ends before `version`, as far as this read knows.
    pub fn ends_before(&self, version: Version) -> bool {
        self.presence == Presence::Present && self.last.is_some() && self.last < version
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;

    use super::*;

    /// A read that shows these events, each with its revision as its id.
    pub(crate) fn slice(revisions: &[Revision], end: bool, last: Option<Revision>) -> Slice {
        let event = |revision: &Revision| RawEvent {
            stream: "s-1".into(),
            revision: *revision,
            id: uuid::Uuid::from_u128(u128::from(*revision)),
            kind: "A".into(),
            json: true,
            data: Bytes::new(),
            metadata: Bytes::new(),
            created: chrono::DateTime::UNIX_EPOCH,
        };
        Slice {
            events: revisions.iter().map(event).collect(),
            end,
            presence: Presence::Present,
            first: None,
            last,
        }
    }

    fn holes(slice: &Slice, version: Version) -> Vec<(usize, u64, u64)> {
        let holes = slice.holes(version);
        holes.map(|(index, hole)| (index, hole.first(), hole.last())).collect()
    }

    #[test]
    fn what_a_read_skips_is_a_hole() {
        let read = slice(&[5, 6, 9], true, Some(9));
        assert_eq!(holes(&read, Some(2)), [(0, 3, 4), (2, 7, 8)]);
        assert_eq!(holes(&read, Some(4)), [(2, 7, 8)]);
        assert_eq!(holes(&read, None), [(0, 0, 4), (2, 7, 8)]);
        // Read again from an event that is known.
        assert_eq!(holes(&read, Some(5)), [(2, 7, 8)]);
        assert_eq!(read.hole_at_end(Some(2)), None);
    }

    #[test]
    fn only_what_is_indexed_is_a_hole_at_the_end() {
        let at_end = |slice: Slice, version| slice.hole_at_end(version).map(|hole| (hole.first(), hole.last()));
        assert_eq!(at_end(slice(&[], true, Some(6)), Some(3)), Some((4, 6)));
        assert_eq!(at_end(slice(&[], true, Some(6)), None), Some((0, 6)));
        assert_eq!(at_end(slice(&[], true, Some(6)), Some(6)), None);
        assert_eq!(
            at_end(slice(&[], true, Some(6)), Some(8)),
            None,
            "the stream ends before it"
        );
        assert!(slice(&[], true, Some(6)).ends_before(Some(8)));
        assert!(!slice(&[], true, Some(6)).ends_before(Some(6)));
        assert_eq!(at_end(slice(&[4], true, Some(6)), Some(3)), Some((5, 6)));
        assert_eq!(
            at_end(slice(&[4], false, Some(6)), Some(3)),
            None,
            "there is more to read"
        );
        assert_eq!(at_end(slice(&[4], false, None), Some(3)), None);
        assert_eq!(at_end(Slice::nothing(Presence::Absent), Some(3)), None);
        assert!(!Slice::nothing(Presence::Absent).ends_before(Some(3)));
    }
}
