//! Records that several groups hold at once. Keeps: what a record carries is in memory once, however
//! many groups wait with it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::record::{Record, Resolved};

/// Bytes from which on a record is worth a place in the table, which takes about a hundred.
const WORTH: usize = 256;
/// Places after which those of records that nobody holds any more are looked for the first time.
const FIRST_LOOK: usize = 1_024;

/// The records that groups hold, by position: a position's record never changes.
#[derive(Debug, Default)]
pub(super) struct Payloads(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    held: HashMap<u64, Weak<Record>>,
    /// How many there may be before the next look.
    look_at: usize,
}

impl Payloads {
    /// Puts in place of each record the one that another group holds already, if one does.
    pub(super) fn share(&self, records: &mut [Resolved]) {
        let large = |record: &Arc<Record>| record.data.len() + record.metadata.len() >= WORTH;
        let both = records.iter_mut().flat_map(|one| [&mut one.event, &mut one.link]);
        let mut large = both.flatten().filter(|record| large(record)).peekable();
        if large.peek().is_none() {
            return;
        }
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for record in large {
            table.share(record);
        }
    }
}

impl Table {
    fn share(&mut self, record: &mut Arc<Record>) {
        match self.held.entry(record.commit) {
            Entry::Occupied(mut place) => match place.get().upgrade() {
                Some(held) => *record = held,
                None => *place.get_mut() = Arc::downgrade(record),
            },
            Entry::Vacant(place) => {
                place.insert(Arc::downgrade(record));
            }
        }
        if self.held.len() > self.look_at.max(FIRST_LOOK) {
            self.held.retain(|_, held| held.strong_count() > 0);
            self.look_at = 2 * self.held.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    fn read(commit: u64, bytes: usize) -> Vec<Resolved> {
        let record = Record {
            stream: "s".into(),
            revision: 0,
            id: Uuid::from_u128(1),
            event_type: "T".into(),
            json: false,
            data: Bytes::from(vec![0; bytes]),
            metadata: Bytes::new(),
            commit,
            prepare: commit,
            created: 0,
        };
        let event = Some(Arc::new(record));
        vec![Resolved { event, link: None }]
    }

    fn same(one: &[Resolved], other: &[Resolved]) -> bool {
        let of = |records: &[Resolved]| records[0].event.as_ref().map(Arc::as_ptr);
        of(one) == of(other)
    }

    #[test]
    fn what_is_read_twice_is_held_once() {
        let payloads = Payloads::default();
        let (mut one, mut other, mut third) = (read(256, WORTH), read(256, WORTH), read(999, WORTH));
        for records in [&mut one, &mut other, &mut third] {
            payloads.share(records);
        }
        assert!(same(&one, &other) && !same(&one, &third));
        let (mut small, mut too) = (read(2_000, 1), read(2_000, 1));
        payloads.share(&mut small);
        payloads.share(&mut too);
        assert!(!same(&small, &too));
    }

    #[test]
    fn what_nobody_holds_takes_no_place_for_long() {
        let payloads = Payloads::default();
        for position in 0..10 * FIRST_LOOK as u64 {
            payloads.share(&mut read(position, WORTH));
        }
        assert!(payloads.0.lock().unwrap().held.len() <= FIRST_LOOK + 1);
    }
}
