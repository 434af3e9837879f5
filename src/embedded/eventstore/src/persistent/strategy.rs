//! Who gets the next record. Keeps: a record is offered only to a consumer with a free slot; a
//! pinned record goes to its bucket's consumer or, while that one is full, to nobody.

use std::collections::{BTreeMap, VecDeque};

use super::hash::BUCKETS;
use super::settings::Strategy;

/// A consumer's number within its group; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConsumerId(pub u64);

/// What becomes of an offered record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// This consumer gets it.
    To(ConsumerId),
    /// Its own consumer is full; others may take other records.
    Leave,
    /// Nobody has a free slot.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Slots {
    limit: usize,
    taken: usize,
}

impl Slots {
    fn free(self) -> bool {
        self.taken < self.limit
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    owner: Option<ConsumerId>,
    in_flight: usize,
}

/// Consumers, their free slots, and the order in which they are asked.
#[derive(Debug)]
pub(crate) struct Consumers {
    strategy: Strategy,
    slots: BTreeMap<ConsumerId, Slots>,
    turn: VecDeque<ConsumerId>,
    free: usize,
    buckets: Vec<Bucket>,
}

impl Consumers {
    /// Nobody yet.
    pub(crate) fn new(strategy: Strategy) -> Self {
        let pinned = matches!(strategy, Strategy::Pinned | Strategy::PinnedByCorrelation);
        let buckets = if pinned { usize::from(BUCKETS) } else { 0 };
        Self {
            strategy,
            slots: BTreeMap::new(),
            turn: VecDeque::new(),
            free: 0,
            buckets: vec![Bucket::default(); buckets],
        }
    }

    /// Consumers connected.
    pub(crate) fn connected(&self) -> usize {
        self.slots.len()
    }

    /// Whether any consumer has a free slot.
    pub(crate) fn any_free(&self) -> bool {
        self.free > 0
    }

    /// A consumer with room for `limit` records at a time.
    pub(crate) fn connect(&mut self, consumer: ConsumerId, limit: usize) {
        self.slots.insert(consumer, Slots { limit, taken: 0 });
        self.turn.push_back(consumer);
        if limit > 0 {
            self.free += 1;
        }
        self.rebalance(consumer);
    }

    /// The consumer is gone; its buckets find a new one when their next record comes.
    pub(crate) fn disconnect(&mut self, consumer: ConsumerId) {
        if self.slots.remove(&consumer).is_some_and(Slots::free) {
            self.free -= 1;
        }
        self.turn.retain(|other| *other != consumer);
        for bucket in &mut self.buckets {
            if bucket.owner == Some(consumer) {
                *bucket = Bucket::default();
            }
        }
    }

    /// Takes a slot for a record of `bucket`, if there is one.
    pub(crate) fn offer(&mut self, bucket: u16) -> Offer {
        if self.free == 0 {
            return Offer::Full;
        }
        match self.strategy {
            Strategy::RoundRobin => self.first_free(true),
            Strategy::DispatchToSingle => self.first_free(false),
            Strategy::Pinned | Strategy::PinnedByCorrelation => self.pinned(bucket),
        }
    }

    /// Gives the slot of a record of `bucket` back.
    pub(crate) fn release(&mut self, consumer: ConsumerId, bucket: u16) {
        if let Some(slots) = self.slots.get_mut(&consumer) {
            if slots.taken == slots.limit {
                self.free += 1;
            }
            slots.taken = slots.taken.saturating_sub(1);
        }
        if let Some(pinned) = self.buckets.get_mut(usize::from(bucket)) {
            // A bucket that moved counts its new owner's records only.
            if pinned.owner == Some(consumer) {
                pinned.in_flight = pinned.in_flight.saturating_sub(1);
            }
        }
    }

    /// Records a consumer has, and how many more it takes.
    pub(crate) fn slots(&self, consumer: ConsumerId) -> (usize, usize) {
        self.slots
            .get(&consumer)
            .map_or((0, 0), |slots| (slots.taken, slots.limit.saturating_sub(slots.taken)))
    }

    fn take(&mut self, consumer: ConsumerId) -> bool {
        let Some(slots) = self.slots.get_mut(&consumer).filter(|slots| slots.free()) else {
            return false;
        };
        slots.taken += 1;
        if slots.taken == slots.limit {
            self.free -= 1;
        }
        true
    }

    /// The first in turn with a free slot; it goes last when `rotate`, the full ones before it always.
    fn first_free(&mut self, rotate: bool) -> Offer {
        for _ in 0..self.turn.len() {
            let Some(consumer) = self.turn.front().copied() else {
                break;
            };
            let taken = self.take(consumer);
            if !taken || rotate {
                self.turn.rotate_left(1);
            }
            if taken {
                return Offer::To(consumer);
            }
        }
        Offer::Full
    }

    fn pinned(&mut self, bucket: u16) -> Offer {
        let index = usize::from(bucket % BUCKETS);
        let owner = match self.buckets[index].owner {
            Some(owner) => owner,
            None => match self.fewest_buckets() {
                Some(owner) => {
                    self.buckets[index] = Bucket {
                        owner: Some(owner),
                        in_flight: 0,
                    };
                    owner
                }
                None => return Offer::Full,
            },
        };
        if self.take(owner) {
            self.buckets[index].in_flight += 1;
            Offer::To(owner)
        } else {
            Offer::Leave
        }
    }

    fn owned(&self) -> BTreeMap<ConsumerId, usize> {
        let mut owned: BTreeMap<_, _> = self.slots.keys().map(|id| (*id, 0)).collect();
        for owner in self.buckets.iter().filter_map(|bucket| bucket.owner) {
            *owned.entry(owner).or_default() += 1;
        }
        owned
    }

    fn fewest_buckets(&self) -> Option<ConsumerId> {
        self.owned()
            .into_iter()
            .min_by_key(|(_, count)| *count)
            .map(|(id, _)| id)
    }

    /// Moves what the others have above their share to a newcomer, the quietest buckets first.
    fn rebalance(&mut self, newcomer: ConsumerId) {
        let owned = self.owned();
        let share = owned.values().sum::<usize>().div_ceil(owned.len().max(1));
        for (owner, count) in owned {
            let mut theirs: Vec<usize> = (0..self.buckets.len())
                .filter(|index| self.buckets[*index].owner == Some(owner))
                .collect();
            theirs.sort_by_key(|index| self.buckets[*index].in_flight);
            for index in theirs.into_iter().take(count.saturating_sub(share)) {
                self.buckets[index] = Bucket {
                    owner: Some(newcomer),
                    in_flight: 0,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConsumerId = ConsumerId(1);
    const B: ConsumerId = ConsumerId(2);

    fn pair(strategy: Strategy, limit: usize) -> Consumers {
        let mut consumers = Consumers::new(strategy);
        consumers.connect(A, limit);
        consumers.connect(B, limit);
        consumers
    }

    #[test]
    fn round_robin_takes_turns_and_skips_the_full() {
        let mut consumers = pair(Strategy::RoundRobin, 2);
        let got: Vec<_> = (0..5).map(|_| consumers.offer(0)).collect();
        assert_eq!(
            got,
            [Offer::To(A), Offer::To(B), Offer::To(A), Offer::To(B), Offer::Full]
        );
        consumers.release(B, 0);
        assert_eq!(consumers.offer(0), Offer::To(B));
        assert_eq!(consumers.slots(B), (2, 0));
    }

    #[test]
    fn dispatch_to_single_stays_until_full_and_does_not_return_by_itself() {
        let mut consumers = pair(Strategy::DispatchToSingle, 2);
        let got: Vec<_> = (0..3).map(|_| consumers.offer(0)).collect();
        assert_eq!(got, [Offer::To(A), Offer::To(A), Offer::To(B)]);
        consumers.release(A, 0);
        assert_eq!(consumers.offer(0), Offer::To(B));
        assert_eq!(consumers.offer(0), Offer::To(A));
    }

    #[test]
    fn a_pinned_bucket_waits_for_its_consumer_while_others_flow() {
        let mut consumers = pair(Strategy::Pinned, 1);
        assert_eq!(consumers.offer(1), Offer::To(A));
        assert_eq!(consumers.offer(1), Offer::Leave);
        assert_eq!(consumers.offer(2), Offer::To(B));
        assert_eq!(consumers.offer(3), Offer::Full);
        consumers.release(A, 1);
        assert_eq!(consumers.offer(1), Offer::To(A));
    }

    #[test]
    fn buckets_of_a_gone_consumer_find_another() {
        let mut consumers = pair(Strategy::Pinned, 8);
        assert_eq!(consumers.offer(1), Offer::To(A));
        consumers.disconnect(A);
        assert_eq!(consumers.offer(1), Offer::To(B));
        assert_eq!(consumers.connected(), 1);
    }

    #[test]
    fn a_newcomer_gets_its_share_the_quiet_buckets_first() {
        let mut consumers = Consumers::new(Strategy::Pinned);
        consumers.connect(A, 100);
        for bucket in 0..4 {
            for _ in 0..=bucket {
                assert_eq!(consumers.offer(bucket), Offer::To(A));
            }
        }
        consumers.connect(B, 100);
        let owners: Vec<_> = (0..4).map(|bucket| consumers.offer(bucket)).collect();
        assert_eq!(owners, [Offer::To(B), Offer::To(B), Offer::To(A), Offer::To(A)]);
    }

    #[test]
    fn nobody_takes_nothing() {
        for strategy in [Strategy::RoundRobin, Strategy::DispatchToSingle, Strategy::Pinned] {
            let mut consumers = Consumers::new(strategy);
            assert_eq!(consumers.offer(0), Offer::Full);
            consumers.connect(A, 1);
            assert_eq!(consumers.offer(0), Offer::To(A));
            assert!(!consumers.any_free());
            consumers.disconnect(A);
            assert_eq!(consumers.offer(0), Offer::Full);
        }
    }
}
