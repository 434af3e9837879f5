//! What a read of a stream makes of a state: one judgement for the daemon's lanes, commands and queries.
//!
//! Invariant: I1 prefix: a state is folded on only where the stream still has the event that it ends
//! with, and nothing is folded across a hole. What follows from either, the policies say.

use crate::{
    event::{RawEvent, Revision},
    journal::{Hole, Slice},
    replica::Header,
};

/// What a read shows of the event that a state ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing was asked: the read began behind it, or there is no such event.
    NotAsked,
    /// The stream has it where the state has it.
    Same,
    /// The stream has another event there: the state is not this stream's.
    Another,
    /// It cannot be read any more. What stands above it can.
    Outlived,
    /// Nothing at or above it can be read.
    Nothing,
    /// The read ended before it, and the stream goes on.
    Unreached,
}

/// Events that follow one another without a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// What stands before them, behind the state or the stretch before, and cannot be read.
    pub hole: Option<Hole>,
    /// In order; at least one.
    pub events: Vec<RawEvent>,
}

/// A read, judged against a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// What it shows of the state's last event.
    pub evidence: Evidence,
    /// The stream ends before the state's version, as far as this read knows.
    pub shorter: bool,
    /// What stands above the state's version, in order.
    pub stretches: Vec<Stretch>,
    /// What stands behind all of that, is indexed and cannot be read.
    pub hole: Option<Hole>,
    /// The stream had nothing more to read.
    pub end: bool,
}

impl Reading {
    /// Judges what a read from `from` brought against a state with this header. Events at or below the
    /// header's version are not folded again.
    pub(crate) fn new(header: &Header, from: Revision, mut slice: Slice) -> Self {
        let version = header.version;
        let shorter = slice.ends_before(version);
        let hole = slice.hole_at_end(version);
        let below = slice.events.partition_point(|event| Some(event.revision) < version);
        slice.events.drain(..below);
        let evidence = match slice.events.first() {
            _ if version.is_none_or(|version| from > version) => Evidence::NotAsked,
            Some(first) => match header.ends_with(first) {
                Some(true) => Evidence::Same,
                Some(false) => Evidence::Another,
                None => Evidence::Outlived,
            },
            None if !slice.end => Evidence::Unreached,
            None => Evidence::Nothing,
        };
        if matches!(evidence, Evidence::Same | Evidence::Another) {
            slice.events.remove(0);
        }
        let holes: Vec<_> = slice.holes(version).collect();
        let Slice { mut events, end, .. } = slice;
        let mut stretches = Vec::with_capacity(holes.len() + 1);
        for (index, hole) in holes.into_iter().rev() {
            let behind = events.split_off(index);
            stretches.push(Stretch {
                hole: Some(hole),
                events: behind,
            });
        }
        if !events.is_empty() {
            stretches.push(Stretch { hole: None, events });
        }
        stretches.reverse();
        Self {
            evidence,
            shorter,
            stretches,
            hole,
            end,
        }
    }

    /// All events above the state's version.
    pub(crate) fn events(&self) -> impl Iterator<Item = &RawEvent> {
        self.stretches.iter().flat_map(|stretch| &stretch.events)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{journal::read_of, replica::LastEvent};

    fn id(revision: Revision) -> Uuid {
        Uuid::from_u128(u128::from(revision))
    }

    fn at(version: Option<Revision>, id: Uuid) -> Header {
        let event = version.map(|_| LastEvent {
            id,
            kind: "A".into(),
            at: chrono::DateTime::UNIX_EPOCH,
        });
        Header {
            version,
            event,
            ..Header::new()
        }
    }

    /// A read that shows these events, of a stream whose index ends with `last`.
    fn slice(revisions: &[Revision], end: bool, last: Revision) -> Slice {
        read_of(revisions, end, Some(last))
    }

    /// Evidence, and the stretches: what stands before each and what is in it.
    fn judged(header: &Header, from: Revision, slice: Slice) -> (Evidence, String) {
        let reading = Reading::new(header, from, slice);
        let told = reading.stretches.iter().map(|stretch| {
            let hole = stretch.hole.map(|hole| format!("({}-{})", hole.first(), hole.last()));
            let events: Vec<_> = stretch.events.iter().map(|e| e.revision.to_string()).collect();
            format!("{}{}", hole.unwrap_or_default(), events.join(","))
        });
        (reading.evidence, told.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_state_is_borne_out_by_the_event_that_it_ends_with() {
        let own = at(Some(4), id(4));
        let judged = |from, events: &[Revision], end| judged(&own, from, slice(events, end, 9));
        assert_eq!(judged(4, &[4, 5, 6], true), (Evidence::Same, "5,6".into()));
        assert_eq!(judged(5, &[5, 6], true), (Evidence::NotAsked, "5,6".into()));
        assert_eq!(judged(4, &[5, 6], true), (Evidence::Outlived, "5,6".into()));
        assert_eq!(judged(4, &[7], true), (Evidence::Outlived, "(5-6)7".into()));
        assert_eq!(judged(4, &[], true), (Evidence::Nothing, String::new()));
        // Begun further back, at the last event that was seen.
        assert_eq!(judged(2, &[2, 3, 4, 5], true), (Evidence::Same, "5".into()));
        assert_eq!(judged(2, &[2, 3], false), (Evidence::Unreached, String::new()));
        assert_eq!(judged(2, &[2, 3], true), (Evidence::Nothing, String::new()));
        let other = at(Some(4), id(40));
        assert_eq!(
            super::tests::judged(&other, 4, slice(&[4, 5], true, 5)).0,
            Evidence::Another
        );
        // Before any event there is nothing to be borne out.
        let nothing = Header::new();
        let whole = super::tests::judged(&nothing, 0, slice(&[0, 1], true, 1));
        assert_eq!(whole, (Evidence::NotAsked, "0,1".into()));
    }

    #[test]
    fn stretches_end_at_holes() {
        let judged = |version, from, events: &[Revision]| judged(&at(version, id(4)), from, slice(events, true, 9)).1;
        assert_eq!(judged(Some(4), 4, &[4, 5, 8, 9]), "5 (6-7)8,9");
        assert_eq!(judged(Some(4), 5, &[6, 9]), "(5-5)6 (7-8)9");
        assert_eq!(judged(None, 0, &[3, 4]), "(0-2)3,4");
    }

    #[test]
    fn what_is_indexed_and_not_shown_is_a_hole_at_the_end() {
        let reading = Reading::new(&at(Some(4), id(4)), 4, slice(&[4, 5], true, 7));
        let hole = reading.hole.unwrap();
        assert_eq!((hole.first(), hole.last(), reading.shorter), (6, 7, false));
        assert!(Reading::new(&at(Some(4), id(4)), 4, slice(&[], true, 3)).shorter);
    }
}
