//! One group: what to read, whom to push to, what to send again, what to park, what to checkpoint.
//! Keeps: every record taken up is done (acked, skipped, parked, stopped), in flight, or waiting in
//! exactly one list; the checkpoint never passes a record that is not done; no consumer has more
//! records than it asked for.
//!
//! No clock, thread or disk: each input says what time it is and may leave [`Effect`]s to carry out.

mod figures;
mod outcome;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use uuid::Uuid;

use super::info::{Latencies, Millis, RateMeter};
use super::place::{Place, ReadFrom, StartFrom};
use super::settings::{Defects, Settings};
use super::strategy::{ConsumerId, Consumers, Offer};

/// Most records asked for in one read: bounds what is held beside the buffer, and the time one read
/// keeps the log.
const MAX_READ: usize = 1_000;

/// A record as the group sees it.
#[derive(Clone, Debug)]
pub(crate) struct Item<P> {
    /// Its place in the source; for a replayed one, its revision in the parked stream.
    pub place: Place,
    /// What a consumer acks: the link's id where there is a link.
    pub ack_id: Uuid,
    /// Where the pinned strategies put it.
    pub bucket: u16,
    /// The record; cloned for every push.
    pub payload: P,
}

/// What came of [`Effect::Read`].
#[derive(Clone, Debug)]
pub(crate) struct Page<P> {
    /// Matching records, in order.
    pub items: Vec<Item<P>>,
    /// Records filtered out behind the last item.
    pub skipped: u64,
    /// The last record looked at, matching or not.
    pub scanned_to: Option<Place>,
    /// Where the next page begins.
    pub next: ReadFrom,
    /// Nothing more was readable.
    pub end: bool,
}

/// Records that were looked at and not taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// From where on.
    pub from: ReadFrom,
    /// How many matched.
    pub count: usize,
    /// The last that matched.
    pub last: Option<Place>,
    /// Where to go on.
    pub next: ReadFrom,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GroupEffect<P> {
    /// Send a record to a consumer.
    Push {
        /// To whom.
        consumer: ConsumerId,
        /// What.
        payload: P,
        /// How often it was sent before.
        retry_count: u32,
    },
    /// Read a page; answered by [`Group::page`] or [`Group::page_failed`]. One at a time.
    Read {
        /// Where it begins.
        from: ReadFrom,
        /// Matching records at most.
        count: usize,
        /// Everything before it was read.
        live: bool,
    },
    /// Read the parked stream; answered by [`Group::replayed`]. One at a time.
    ReadParked {
        /// The first revision not to replay.
        stop_at: Option<u64>,
    },
    /// Write a record to the parked stream; answered by [`Group::parked_written`].
    Park {
        /// What.
        payload: P,
        /// Why.
        reason: String,
    },
    /// Write a checkpoint; answered by [`Group::checkpoint_written`]. One at a time.
    Checkpoint(Place),
    /// End a consumer's subscription.
    Drop(ConsumerId),
}

/// What a consumer says of a record it does not ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nack {
    /// As [`Nack::Retry`].
    Unknown,
    /// Into the parked stream.
    Park,
    /// Again, at once.
    Retry,
    /// Done, without a trace.
    Skip,
    /// Done, without a trace; EventStoreDB stops nothing either.
    Stop,
}

/// Why a consumer may not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// `max_subscriber_count` are there.
    TooMany,
}

#[derive(Clone, Debug)]
struct Message<P> {
    item: Item<P>,
    /// Number in the order of the source; replayed ones have none that counts.
    seq: u64,
    /// The place before it, which is the checkpoint while it is the oldest not done.
    previous: Option<Place>,
    retry_count: u32,
    replayed: bool,
}

#[derive(Debug)]
struct Flying<P> {
    message: Message<P>,
    consumer: ConsumerId,
    pushed: Millis,
    expires: Millis,
}

#[derive(Debug)]
struct Consumer {
    name: String,
    username: String,
    pushed: RateMeter,
    latencies: Latencies,
}

/// A mark in the order of the source: everything with a lower number is done.
#[derive(Clone, Copy, Debug, Default)]
struct Frontier {
    seq: u64,
    place: Option<Place>,
}

/// What is known of the parked stream; without a checkpoint nothing is, until a record is parked.
#[derive(Clone, Copy, Debug, Default)]
struct Parked {
    /// The first revision that is not replayed.
    first: Option<u64>,
    /// The last revision that was written.
    last: Option<u64>,
}

/// The machine. `P` is the record, cheap to clone.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent: one enum of all combinations would say less"
)]
pub(crate) struct Group<P> {
    settings: Settings,
    defects: Defects,
    consumers: Consumers,
    who: BTreeMap<ConsumerId, Consumer>,
    buffer: VecDeque<Message<P>>,
    retry: VecDeque<Message<P>>,
    /// By the id to ack. The same id twice in flight: the oldest delivery is the one acked.
    flying: HashMap<Uuid, VecDeque<Flying<P>>>,
    outstanding: usize,
    /// Not done though taken out of the buffer: number and the place before it.
    open: BTreeMap<u64, Option<Place>>,
    /// The next number to give, and the last place looked at.
    head: Frontier,
    pushed_to: Frontier,
    skipped_to: Frontier,
    checkpointed: Frontier,
    last_checkpointed: Option<Place>,
    writing: bool,
    checkpoint_time: Millis,
    cursor: ReadFrom,
    floor: Option<Place>,
    reading: bool,
    read_again: bool,
    live: bool,
    news: bool,
    live_seen: usize,
    /// Behind: where the live records begin that are not counted yet.
    ahead: ReadFrom,
    faulted: bool,
    replaying: bool,
    parked: Parked,
    last_known: Option<Place>,
    pushed: RateMeter,
    effects: Vec<GroupEffect<P>>,
}

impl<P: Clone> Group<P> {
    /// A group that resumes after `checkpoint`, or at the start its settings say.
    pub(crate) fn new(settings: Settings, defects: Defects, checkpoint: Option<Place>, now: Millis) -> Self {
        let cursor = match (checkpoint, settings.start) {
            (Some(place), _) => ReadFrom::After(place),
            (None, StartFrom::Start) => ReadFrom::Start,
            (None, StartFrom::At(place)) => ReadFrom::At(place),
            (None, StartFrom::End) => ReadFrom::End,
        };
        let head = Frontier {
            seq: 0,
            place: checkpoint,
        };
        let mut group = Self {
            consumers: Consumers::new(settings.strategy),
            settings,
            defects,
            who: BTreeMap::new(),
            buffer: VecDeque::new(),
            retry: VecDeque::new(),
            flying: HashMap::new(),
            outstanding: 0,
            open: BTreeMap::new(),
            head,
            pushed_to: head,
            skipped_to: head,
            checkpointed: head,
            last_checkpointed: checkpoint,
            writing: false,
            checkpoint_time: now,
            cursor,
            floor: checkpoint,
            reading: false,
            read_again: false,
            live: false,
            news: false,
            live_seen: 0,
            ahead: ReadFrom::End,
            faulted: false,
            replaying: false,
            parked: Parked::default(),
            last_known: None,
            pushed: RateMeter::default(),
            effects: Vec::new(),
        };
        group.pushed.look(now);
        group.read_on();
        group
    }

    /// What is to be done, in order; empties it.
    pub(crate) fn effects(&mut self) -> Vec<GroupEffect<P>> {
        std::mem::take(&mut self.effects)
    }

    /// A consumer that takes `limit` records at a time (at least one).
    pub(crate) fn connect(
        &mut self,
        consumer: ConsumerId,
        limit: usize,
        name: String,
        username: String,
        now: Millis,
    ) -> Result<(), Refused> {
        let max = self.settings.max_subscriber_count;
        if max != 0 && self.consumers.connected() as i64 >= i64::from(max) {
            return Err(Refused::TooMany);
        }
        if self.faulted {
            self.effects.push(GroupEffect::Drop(consumer));
            return Ok(());
        }
        self.consumers.connect(consumer, limit.max(1));
        let mut pushed = RateMeter::default();
        pushed.look(now);
        self.who.insert(
            consumer,
            Consumer {
                name,
                username,
                pushed,
                latencies: Latencies::default(),
            },
        );
        self.pump(now);
        Ok(())
    }

    /// A consumer is gone: what it had is sent again at once, one retry older, and not parked here.
    pub(crate) fn disconnect(&mut self, consumer: ConsumerId, now: Millis) {
        self.consumers.disconnect(consumer);
        self.who.remove(&consumer);
        let mut lost = self.take_flying(|flying| flying.consumer == consumer);
        lost.sort_by_key(|flying| flying.message.item.place);
        for flying in lost {
            let mut message = flying.message;
            message.retry_count += 1;
            self.queue_retry(message);
        }
        self.pump(now);
    }

    /// There may be something new behind what was read.
    pub(crate) fn news(&mut self) {
        self.news = true;
        self.read_on();
    }

    /// A page came.
    pub(crate) fn page(&mut self, page: Page<P>, now: Millis) {
        self.reading = false;
        for item in page.items {
            self.enqueue(item);
        }
        if let Some(place) = page.scanned_to {
            self.head.place = self.head.place.max(Some(place));
        }
        if page.skipped > 0 {
            self.head.seq += page.skipped;
            self.skipped_to = self.head;
        }
        self.cursor = page.next;
        if page.end {
            if !self.live {
                // What was remembered while behind has been read by now.
                self.live_seen = 0;
            }
            self.live = true;
        } else {
            self.news = true;
        }
        if self.live {
            self.ahead = page.next;
        }
        self.read_on();
        self.pump(now);
        self.checkpoint_by_count();
    }

    /// A page could not be read: for now (tried again at the next tick), or for good.
    pub(crate) fn page_failed(&mut self, for_good: bool) {
        // One that never comes stays asked for, and that is all that the figures say of the fault.
        self.reading = for_good;
        if for_good {
            self.faulted = true;
            self.live = false;
            let all: Vec<ConsumerId> = self.who.keys().copied().collect();
            for consumer in all {
                self.effects.push(GroupEffect::Drop(consumer));
            }
        } else {
            self.read_again = true;
        }
    }

    /// What is written from here on is live, whether the group is so far or not.
    pub(crate) fn begins_live(&mut self, at: ReadFrom) {
        self.ahead = at;
    }

    /// While the group is behind: from where on live records are to be counted before its figures are
    /// right; answered by [`Group::counted`].
    pub(crate) fn ahead(&self) -> Option<ReadFrom> {
        (!self.live).then_some(self.ahead)
    }

    /// So many live records there are ahead of the group, which takes them up later.
    pub(crate) fn counted(&mut self, counted: &Counted) {
        // Meanwhile it may have come so far itself.
        if self.ahead() == Some(counted.from) {
            self.live_seen += counted.count;
            self.last_known = self.last_known.max(counted.last);
            self.ahead = counted.next;
        }
    }

    /// A checkpoint is stored, or could not be.
    pub(crate) fn checkpoint_written(&mut self) {
        self.writing = false;
        self.checkpoint_by_count();
    }

    /// A second (or so) passed: expired records go again, the checkpoint is looked at.
    pub(crate) fn tick(&mut self, now: Millis) {
        let mut expired = self.take_flying(|flying| flying.expires <= now);
        expired.sort_by_key(|flying| (flying.expires, flying.message.item.place));
        for flying in expired {
            self.consumers.release(flying.consumer, flying.message.item.bucket);
            self.retry_or_park(flying.message);
        }
        if std::mem::take(&mut self.read_again) || !self.defects.stall_without_acks {
            self.read_on();
        }
        self.push_all(now);
        let after = u64::try_from(self.settings.checkpoint_after_ms).unwrap_or(0);
        if after > 0 && now.saturating_sub(self.checkpoint_time) >= after {
            self.checkpoint_time = now;
            self.checkpoint(i64::from(self.settings.min_checkpoint_count));
        }
        self.checkpoint_by_count();
        self.pushed.look(now);
        for consumer in self.who.values_mut() {
            consumer.pushed.look(now);
        }
    }

    fn enqueue(&mut self, item: Item<P>) {
        if self.floor.is_some_and(|floor| item.place <= floor) {
            return;
        }
        if self.live {
            self.live_seen += 1;
        }
        let place = item.place;
        self.floor = Some(place);
        self.last_known = self.last_known.max(Some(place));
        self.buffer.push_back(Message {
            item,
            seq: self.head.seq,
            previous: self.head.place,
            retry_count: 0,
            replayed: false,
        });
        self.head.seq += 1;
        self.head.place = Some(place);
    }

    /// A replayed one waits behind all others; any other before the first that comes later in the
    /// source, whatever replayed ones stand between.
    fn queue_retry(&mut self, message: Message<P>) {
        let later = |other: &Message<P>| !other.replayed && message.item.place < other.item.place;
        let at = if message.replayed {
            None
        } else {
            self.retry.iter().position(later)
        };
        self.retry.insert(at.unwrap_or(self.retry.len()), message);
    }

    /// Asks for the next page where there is room and something may be there.
    fn read_on(&mut self) {
        if self.reading || self.read_again {
            return;
        }
        let history = self.settings.history();
        if self.live {
            if !self.news {
                return;
            }
            let room = history.saturating_sub(self.buffer.len());
            if room > 0 {
                return self.read(room);
            }
            self.live = false;
        }
        let room = history.saturating_sub(self.buffer.len() + self.retry.len());
        let batch = self.settings.batch();
        if room > batch {
            // As many as EventStoreDB's pages would bring, one after the other, before it stops.
            let page = self.settings.page();
            self.read((room - batch).div_ceil(page) * page);
        }
    }

    fn read(&mut self, count: usize) {
        self.reading = true;
        self.news = false;
        self.effects.push(GroupEffect::Read {
            from: self.cursor,
            count: count.min(MAX_READ),
            live: self.live,
        });
    }

    fn pump(&mut self, now: Millis) {
        self.push_all(now);
        if !self.defects.stall_without_acks {
            self.read_on();
        }
    }

    fn push_all(&mut self, now: Millis) {
        if !self.consumers.any_free() {
            return;
        }
        let mut retry = std::mem::take(&mut self.retry);
        self.push_list(&mut retry, now);
        self.retry = retry;
        let mut buffer = std::mem::take(&mut self.buffer);
        self.push_list(&mut buffer, now);
        self.buffer = buffer;
    }

    fn push_list(&mut self, list: &mut VecDeque<Message<P>>, now: Millis) {
        let mut left = Vec::new();
        while let Some(message) = list.pop_front() {
            match self.consumers.offer(message.item.bucket) {
                Offer::To(consumer) => self.push(consumer, message, now),
                Offer::Leave => left.push(message),
                Offer::Full => {
                    list.push_front(message);
                    break;
                }
            }
        }
        for message in left.into_iter().rev() {
            list.push_front(message);
        }
    }

    fn push(&mut self, consumer: ConsumerId, message: Message<P>, now: Millis) {
        self.effects.push(GroupEffect::Push {
            consumer,
            payload: message.item.payload.clone(),
            retry_count: message.retry_count,
        });
        self.pushed.count();
        if let Some(consumer) = self.who.get_mut(&consumer) {
            consumer.pushed.count();
        }
        if !message.replayed && message.seq >= self.pushed_to.seq {
            self.pushed_to = Frontier {
                seq: message.seq + 1,
                place: Some(message.item.place),
            };
        }
        if self.defects.repeated_id_slots && self.flying.contains_key(&message.item.ack_id) {
            return;
        }
        if !message.replayed {
            self.open.insert(message.seq, message.previous);
        }
        let timeout = u64::try_from(self.settings.message_timeout_ms).unwrap_or(0);
        self.outstanding += 1;
        self.flying.entry(message.item.ack_id).or_default().push_back(Flying {
            message,
            consumer,
            pushed: now,
            expires: now + timeout,
        });
    }

    /// Takes what is in flight and meets the test, in no order.
    fn take_flying(&mut self, test: impl Fn(&Flying<P>) -> bool) -> Vec<Flying<P>> {
        let mut taken = Vec::new();
        self.flying.retain(|_, deliveries| {
            for flying in std::mem::take(deliveries) {
                if test(&flying) {
                    taken.push(flying);
                } else {
                    deliveries.push_back(flying);
                }
            }
            !deliveries.is_empty()
        });
        self.outstanding -= taken.len();
        taken
    }
}
