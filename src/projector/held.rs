//! The deliveries that a session holds: which id acknowledges which ticket, and how long it waits.
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

use super::lanes::{Settled, Ticket};
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
pub(super) struct HeldAnswer {
    pub(super) ack: Uuid,
    /// For as many records; a group that counts each delivery wants as many answers.
    pub(super) records: usize,
    /// Why they are to be parked instead of acknowledged.
    pub(super) park: Option<String>,
}

/// One delivery that is not settled.
#[derive(Clone, Copy, Debug)]
struct Held {
    ack: Uuid,
    /// Where it stands in the source.
    place: Option<Mark>,
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
    next: u64,
    held: BTreeMap<Ticket, Held>,
    /// By the id that acknowledges them.
    ids: HashMap<Uuid, Namesakes>,
    /// Places of what was let go since it was last asked.
    settled: Vec<Mark>,
}

impl Deliveries {
    /// Takes one. Gives `None` when this very record is held already, or settled and not answered yet:
    /// what answers that one answers this one.
    pub(super) fn take(&mut self, record: Record) -> Option<Ticket> {
        let (ack, place) = (record.ack, record.place);
        let same = self.ids.entry(ack).or_default();
        if same.records.contains(&record) {
            return None;
        }
        same.records.push(record);
        self.next += 1;
        let ticket = Ticket(self.next);
        let since = Instant::now();
        self.held.insert(ticket, Held { ack, place, since });
        Some(ticket)
    }

    /// Lets one go, to be parked when there is a reason to; what the group is to be told.
    pub(super) fn settle(&mut self, Settled { ticket, park }: Settled) -> Option<HeldAnswer> {
        let held = self.held.remove(&ticket)?;
        self.settled.extend(held.place);
        let same = self.ids.get_mut(&held.ack)?;
        same.settled += 1;
        same.park = same.park.take().or(park);
        if same.settled < same.records.len() {
            return None;
        }
        let same = self.ids.remove(&held.ack)?;
        Some(HeldAnswer {
            ack: held.ack,
            records: same.settled,
            park: same.park,
        })
    }

    /// Where what was let go since the last call stands in the source.
    pub(super) fn settled(&mut self) -> Vec<Mark> {
        std::mem::take(&mut self.settled)
    }

    /// How many the group waits for.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// How long the oldest has been held.
    pub(super) fn oldest(&self) -> Option<std::time::Duration> {
        self.held.values().next().map(|held| held.since.elapsed())
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

    fn answer(records: usize, park: Option<&str>) -> HeldAnswer {
        HeldAnswer {
            ack: Uuid::from_u128(7),
            records,
            park: park.map(Into::into),
        }
    }

    fn settled(ticket: Ticket, park: Option<&str>) -> Settled {
        let park = park.map(Into::into);
        Settled { ticket, park }
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
            let one = deliveries.take(first.clone()).unwrap();
            let two = deliveries.take(second.clone()).unwrap();
            assert_eq!(deliveries.take(first.clone()), None, "the very same one");
            assert_eq!(deliveries.len(), 2);
            // The group would take both for done.
            assert_eq!(deliveries.settle(settled(one, None)), None);
            assert_eq!(deliveries.take(first.clone()), None, "its answer is to come");
            assert_eq!(deliveries.settle(settled(two, None)), Some(answer(2, None)));
            assert_eq!((deliveries.len(), deliveries.oldest()), (0, None));
            let places: Vec<_> = [first.place, second.place].into_iter().flatten().collect();
            assert_eq!(deliveries.settled(), places);
            // What comes again after that is another delivery, and wants an answer of its own.
            let again = deliveries.take(first).unwrap();
            assert_eq!(deliveries.settle(settled(again, None)), Some(answer(1, None)));
        }
    }

    #[test]
    fn one_that_is_parked_parks_what_has_its_id() {
        let mut deliveries = Deliveries::default();
        let one = deliveries.take(record("a-1", 0, None)).unwrap();
        let two = deliveries.take(record("b-1", 0, None)).unwrap();
        assert_eq!(deliveries.settle(settled(one, Some("poison"))), None);
        assert_eq!(deliveries.settle(settled(two, None)), Some(answer(2, Some("poison"))));
    }
}
