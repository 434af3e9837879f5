//! The deliveries that a session holds: which id acknowledges which token, and how long it waits.
//!
//! An id names no record: an event may stand in several streams, and twice in one. A group knows what
//! it delivered by the id alone, so an id is answered when all records with it that are held are
//! settled; sooner, the group would take those that are not for done.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::lane::Token;
use crate::{
    event::Revision,
    journal::feed::{Delivery, Mark, Said},
};

/// A record as a group delivers it; the very same one may come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The id that acknowledges it.
    ack: Uuid,
    /// Where it stands in the source; `None` for what was parked and is replayed.
    place: Option<Mark>,
    /// The stream that it concerns, and the revision as far as it tells.
    of: Option<(Arc<str>, Option<Revision>)>,
}

impl Record {
    pub(super) fn of(delivery: &Delivery) -> Self {
        let of = match &delivery.said {
            Said::Event(event) => Some((event.stream.clone(), Some(event.revision))),
            Said::Moved { stream, revision } => Some((stream.clone(), *revision)),
            Said::Onward { stream } => Some((stream.clone(), None)),
            Said::Nothing | Said::Unplaced(_) => None,
        };
        Self {
            ack: delivery.ack,
            place: delivery.place,
            of,
        }
    }
}

/// What the group is told when nothing with an id is held any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) ack: Uuid,
    /// For as many records; a group that counts each delivery wants as many answers.
    pub(super) records: usize,
    /// Why they are to be parked instead of acknowledged.
    pub(super) park: Option<String>,
}

/// One delivery that is not settled.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// `None` for what the session itself put into a lane.
    ack: Option<Uuid>,
    /// Where it stands in the source.
    place: Option<Mark>,
    bytes: usize,
    since: Instant,
}

/// All records with one id, until the last of them is settled.
#[derive(Debug, Default)]
struct Namesakes {
    records: Vec<Record>,
    settled: usize,
    park: Option<String>,
}

/// Deliveries in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    next: Token,
    held: BTreeMap<Token, Held>,
    /// By the id that acknowledges them.
    ids: HashMap<Uuid, Namesakes>,
    own: usize,
    bytes: usize,
    /// Places of what was let go since it was last asked.
    settled: Vec<Mark>,
}

impl Deliveries {
    /// Takes one of so many bytes; `None` is the session's own. Gives `None` when this very record is
    /// held already, or settled and not answered yet: what answers that one answers this one.
    pub(super) fn take(&mut self, record: Option<Record>, bytes: usize) -> Option<Token> {
        let (ack, place) = record.as_ref().map_or((None, None), |r| (Some(r.ack), r.place));
        if let Some(record) = record {
            let same = self.ids.entry(record.ack).or_default();
            if same.records.contains(&record) {
                return None;
            }
            same.records.push(record);
        }
        self.next += 1;
        self.bytes += bytes;
        self.own += usize::from(ack.is_none());
        self.held.insert(
            self.next,
            Held {
                ack,
                place,
                bytes,
                since: Instant::now(),
            },
        );
        Some(self.next)
    }

    /// How many are the session's own.
    pub(super) fn own(&self) -> usize {
        self.own
    }

    /// Lets one go, to be parked when there is a reason to; what the group is to be told.
    pub(super) fn settle(&mut self, token: Token, park: Option<String>) -> Option<Answer> {
        let held = self.held.remove(&token)?;
        self.settled.extend(held.place);
        self.bytes -= held.bytes;
        let Some(ack) = held.ack else {
            self.own -= 1;
            return None;
        };
        let same = self.ids.get_mut(&ack)?;
        same.settled += 1;
        same.park = same.park.take().or(park);
        if same.settled < same.records.len() {
            return None;
        }
        let same = self.ids.remove(&ack)?;
        Some(Answer {
            ack,
            records: same.settled,
            park: same.park,
        })
    }

    /// Where what was let go since the last call stands in the source.
    pub(super) fn settled(&mut self) -> Vec<Mark> {
        std::mem::take(&mut self.settled)
    }

    /// Bytes of what is held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many the group waits for.
    pub(super) fn len(&self) -> usize {
        self.held.len() - self.own
    }

    /// How long the oldest has been held.
    pub(super) fn oldest(&self) -> Option<std::time::Duration> {
        self.held
            .values()
            .find(|held| held.ack.is_some())
            .map(|held| held.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stream: &str, revision: Revision, place: Option<Mark>) -> Record {
        Record {
            ack: Uuid::from_u128(7),
            place,
            of: Some((stream.into(), Some(revision))),
        }
    }

    fn answer(records: usize, park: Option<&str>) -> Answer {
        Answer {
            ack: Uuid::from_u128(7),
            records,
            park: park.map(Into::into),
        }
    }

    /// The second one used to be taken for the first one come again, and nobody heard of it.
    #[test]
    fn records_with_one_id_are_held_each_and_answered_together() {
        let place = |at| Some(Mark::Position(at));
        let apart = [
            [record("a-1", 0, place(1)), record("b-1", 0, place(2))],
            [record("a-1", 0, place(1)), record("a-1", 1, place(2))],
            [record("a-1", 0, None), record("b-1", 0, None)],
        ];
        for [first, second] in apart {
            let mut deliveries = Deliveries::default();
            let one = deliveries.take(Some(first.clone()), 1).unwrap();
            let two = deliveries.take(Some(second.clone()), 1).unwrap();
            assert_eq!(deliveries.take(Some(first.clone()), 1), None, "the very same one");
            assert_eq!((deliveries.len(), deliveries.bytes()), (2, 2));
            // The group would take both for done.
            assert_eq!(deliveries.settle(one, None), None);
            assert_eq!(deliveries.take(Some(first.clone()), 1), None, "its answer is to come");
            assert_eq!(deliveries.settle(two, None), Some(answer(2, None)));
            assert_eq!((deliveries.len(), deliveries.bytes()), (0, 0));
            let places: Vec<_> = [first.place, second.place].into_iter().flatten().collect();
            assert_eq!(deliveries.settled(), places);
            // What comes again after that is another delivery, and wants an answer of its own.
            let again = deliveries.take(Some(first), 1).unwrap();
            assert_eq!(deliveries.settle(again, None), Some(answer(1, None)));
        }
    }

    #[test]
    fn one_that_is_parked_parks_what_has_its_id() {
        let mut deliveries = Deliveries::default();
        let one = deliveries.take(Some(record("a-1", 0, None)), 1).unwrap();
        let two = deliveries.take(Some(record("b-1", 0, None)), 1).unwrap();
        assert_eq!(deliveries.settle(one, Some("poison".into())), None);
        assert_eq!(deliveries.settle(two, None), Some(answer(2, Some("poison"))));
    }

    #[test]
    fn what_the_session_puts_into_lanes_is_nobodys_to_wait_for() {
        let mut deliveries = Deliveries::default();
        let own = deliveries.take(None, 0).unwrap();
        assert_eq!((deliveries.own(), deliveries.len(), deliveries.oldest()), (1, 0, None));
        assert_eq!(deliveries.settle(own, None), None);
        assert_eq!(deliveries.own(), 0);
    }
}
