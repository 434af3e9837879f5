//! Whether an append may be written. Keeps: the order of the checks is EventStoreDB's own, so every
//! corner (repeated ids, soft-deleted streams, streams that have only metadata) ends as it does there.

use uuid::Uuid;

/// What a writer expects of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Anything.
    Any,
    /// No stream, or a softly deleted one.
    NoStream,
    /// A stream that exists.
    StreamExists,
    /// This last revision.
    Exact(u64),
}

/// A stream as the rules see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The next revision: 0 for a stream without events.
    pub(super) next: u64,
    /// Deleted for good.
    pub(super) tombstoned: bool,
    /// Softly deleted.
    pub(super) deleted: bool,
    /// Its metadata stream has records.
    pub(super) described: bool,
}

/// What to do with an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Write it.
    Write,
    /// It was written before; its last event has this revision.
    Repeated(u64),
    /// The stream is not as expected.
    Wrong,
    /// The stream is deleted.
    Deleted,
}

/// What was written to the stream before.
pub(super) trait WrittenEvents<E> {
    /// The revision of a recent event, by its id.
    fn recent(&mut self, id: Uuid) -> Option<u64>;
    /// The id at a revision.
    fn at(&mut self, revision: u64) -> Result<Option<Uuid>, E>;
}

/// Decides about an append of events with these ids.
pub(super) fn decide<E>(
    expected: Expected,
    ids: &[Uuid],
    stream: Standing,
    written: &mut impl WrittenEvents<E>,
) -> Result<Decision, E> {
    if stream.tombstoned {
        return Ok(Decision::Deleted);
    }
    let from = match expected {
        Expected::StreamExists if stream.deleted => return Ok(Decision::Deleted),
        Expected::StreamExists if stream.next == 0 && !stream.described => return Ok(Decision::Wrong),
        Expected::Any | Expected::StreamExists => return Ok(by_recent_ids(ids, written)),
        Expected::NoStream => 0,
        // A revision that cannot be is beyond every stream.
        Expected::Exact(revision) => revision.saturating_add(1),
    };
    if from >= stream.next {
        return Ok(if from == stream.next {
            Decision::Write
        } else {
            Decision::Wrong
        });
    }
    for (revision, id) in (from..).zip(ids) {
        if written.at(revision)? != Some(*id) {
            let recreates = revision == from && stream.deleted && expected == Expected::NoStream;
            return Ok(if recreates { Decision::Write } else { Decision::Wrong });
        }
    }
    Ok(match ids.len() as u64 {
        0 => Decision::Wrong,
        count => Decision::Repeated(from + count - 1),
    })
}

fn by_recent_ids<E>(ids: &[Uuid], written: &mut impl WrittenEvents<E>) -> Decision {
    let mut last = None;
    for id in ids {
        match (written.recent(*id), last) {
            (Some(revision), _) => last = Some(revision),
            (None, None) => return Decision::Write,
            (None, Some(_)) => return Decision::Wrong,
        }
    }
    last.map_or(Decision::Write, Decision::Repeated)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A stream of these ids, all of them recent.
    struct Ids(Vec<Uuid>);

    impl WrittenEvents<Infallible> for Ids {
        fn recent(&mut self, id: Uuid) -> Option<u64> {
            self.0.iter().rposition(|one| *one == id).map(|at| at as u64)
        }
        fn at(&mut self, revision: u64) -> Result<Option<Uuid>, Infallible> {
            Ok(self.0.get(revision as usize).copied())
        }
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn decided(expected: Expected, ids: &[u128], stream: Standing) -> Decision {
        let ids: Vec<_> = ids.iter().copied().map(id).collect();
        let mut written = Ids((0..stream.next).map(|n| id(u128::from(n) + 100)).collect());
        let Ok(decision) = decide(expected, &ids, stream, &mut written);
        decision
    }

    const NONE: Standing = Standing {
        next: 0,
        tombstoned: false,
        deleted: false,
        described: false,
    };
    const THREE: Standing = Standing { next: 3, ..NONE };
    const GONE: Standing = Standing { deleted: true, ..THREE };

    #[test]
    fn every_row_of_the_table() {
        use Decision::{Deleted, Repeated, Write, Wrong};
        use Expected::{Any, Exact, NoStream, StreamExists};
        let tombstoned = Standing {
            tombstoned: true,
            ..THREE
        };
        let described = Standing {
            described: true,
            ..NONE
        };
        for (expected, ids, stream, decision) in [
            (Any, &[1_u128][..], tombstoned, Deleted),
            (NoStream, &[1], tombstoned, Deleted),
            (Exact(2), &[1], tombstoned, Deleted),
            (StreamExists, &[1], tombstoned, Deleted),
            (Any, &[1], NONE, Write),
            (NoStream, &[1], NONE, Write),
            (StreamExists, &[1], NONE, Wrong),
            (Exact(0), &[1], NONE, Wrong),
            (StreamExists, &[1], GONE, Deleted),
            (StreamExists, &[1], described, Write),
            (Any, &[1], THREE, Write),
            (Any, &[100, 102], THREE, Repeated(2)),
            (StreamExists, &[101, 100], THREE, Repeated(0)),
            (Any, &[100, 1], THREE, Wrong),
            (Any, &[1, 100], THREE, Write),
            (NoStream, &[100, 101], THREE, Repeated(1)),
            (Exact(0), &[101], THREE, Repeated(1)),
            (Exact(0), &[1], THREE, Wrong),
            (NoStream, &[1], THREE, Wrong),
            (NoStream, &[1], GONE, Write),
            (NoStream, &[100, 101], GONE, Repeated(1)),
            (NoStream, &[100, 1], GONE, Wrong),
            (Exact(0), &[1], GONE, Wrong),
            (Exact(2), &[1], GONE, Write),
            (NoStream, &[100, 101, 102, 103], THREE, Wrong),
            (Exact(0), &[], THREE, Wrong),
            (Exact(2), &[], THREE, Write),
            (Any, &[], NONE, Write),
            (Exact(9), &[1], THREE, Wrong),
            (Exact(2), &[102], THREE, Write),
            (Exact(u64::MAX), &[1], THREE, Wrong),
        ] {
            assert_eq!(
                decided(expected, ids, stream),
                decision,
                "{expected:?} {ids:?} {stream:?}"
            );
        }
    }
}
