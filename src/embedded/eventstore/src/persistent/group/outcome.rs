//! What becomes of a record that was pushed: acked, refused, parked, replayed; and how far the group
//! is done, which is its checkpoint.

use uuid::Uuid;

use super::{Flying, Frontier, Group, GroupEffect, Item, Message, Nack, Parked};
use crate::persistent::info::Millis;

impl<P: Clone> Group<P> {
    /// Records are done. Any consumer may say so; ids not in flight are ignored.
    pub(crate) fn ack(&mut self, ids: &[Uuid], now: Millis) {
        for id in ids {
            if let Some(flying) = self.land(*id) {
                if self.settings.extra_statistics
                    && let Some(consumer) = self.who.get_mut(&flying.consumer)
                {
                    consumer.latencies.note(now.saturating_sub(flying.pushed));
                }
                self.done(&flying.message);
            }
        }
        self.after_outcome(now);
    }

    /// Records are refused; ids not in flight are ignored.
    pub(crate) fn nack(&mut self, ids: &[Uuid], action: Nack, reason: &str, now: Millis) {
        for id in ids {
            let Some(flying) = self.land(*id) else {
                continue;
            };
            match action {
                Nack::Skip | Nack::Stop => self.done(&flying.message),
                Nack::Park => self.park(flying.message, format!("Client explicitly NAK'ed message.\n{reason}")),
                Nack::Retry | Nack::Unknown => self.retry_or_park(flying.message),
            }
        }
        self.after_outcome(now);
    }

    /// Replays what is parked below `stop_at`. False, and nothing happens, while a replay runs.
    pub(crate) fn replay(&mut self, stop_at: Option<u64>) -> bool {
        if self.replaying {
            return false;
        }
        self.replaying = true;
        self.effects.push(GroupEffect::ReadParked { stop_at });
        true
    }

    /// The parked records to replay, their places being revisions of the parked stream; `first` is
    /// the first revision that stays parked.
    pub(crate) fn replayed(&mut self, items: Vec<Item<P>>, first: u64, now: Millis) {
        self.replaying = false;
        self.parked.first = self.parked.first.max(Some(first));
        for item in items {
            self.queue_retry(Message {
                item,
                seq: 0,
                previous: None,
                retry_count: 0,
                replayed: true,
            });
        }
        self.pump(now);
    }

    /// The parked stream could not be read; the next replay may be asked for.
    pub(crate) fn replay_failed(&mut self) {
        self.replaying = false;
    }

    /// What the parked stream holds when a group with a checkpoint is loaded: its first readable
    /// revision and its last. EventStoreDB does not look without a checkpoint, and then takes all
    /// revisions up to that of the next parked record for parked.
    pub(crate) fn parked_loaded(&mut self, first: u64, last: u64) {
        self.parked = Parked {
            first: Some(first),
            last: Some(last),
        };
    }

    /// A record is parked at this revision of the parked stream.
    pub(crate) fn parked_written(&mut self, revision: u64) {
        self.parked.last = self.parked.last.max(Some(revision));
    }

    fn after_outcome(&mut self, now: Millis) {
        self.checkpoint_by_count();
        self.push_all(now);
        self.read_on();
    }

    /// Takes the oldest delivery of an id out of the air and frees its slot.
    fn land(&mut self, id: Uuid) -> Option<Flying<P>> {
        let deliveries = self.flying.get_mut(&id)?;
        let flying = deliveries.pop_front();
        if deliveries.is_empty() {
            self.flying.remove(&id);
        }
        let flying = flying?;
        self.outstanding -= 1;
        self.consumers.release(flying.consumer, flying.message.item.bucket);
        Some(flying)
    }

    fn done(&mut self, message: &Message<P>) {
        if !message.replayed {
            self.open.remove(&message.seq);
        }
    }

    pub(super) fn retry_or_park(&mut self, mut message: Message<P>) {
        let max = self.settings.max_retry_count;
        if i64::from(message.retry_count) >= i64::from(max) {
            self.park(message, format!("Reached retry count of {max}"));
        } else {
            message.retry_count += 1;
            self.queue_retry(message);
        }
    }

    /// Parked counts as done at once; the write follows.
    fn park(&mut self, message: Message<P>, reason: String) {
        self.done(&message);
        self.effects.push(GroupEffect::Park {
            payload: message.item.payload,
            reason,
        });
    }

    /// How far everything is done.
    fn frontier(&self) -> Frontier {
        let open = self.open.iter().next().map(|(seq, previous)| Frontier {
            seq: *seq,
            place: *previous,
        });
        if let Some(mark) = open {
            let waiting = self.buffer.front().filter(|front| front.seq < mark.seq);
            return match waiting {
                Some(front) if !self.defects.pinned_checkpoint => before(front),
                _ => mark,
            };
        }
        if self.defects.filtered_checkpoint && self.skipped_to.seq > self.pushed_to.seq {
            return self.skipped_to;
        }
        match self.buffer.front() {
            Some(_) if self.defects.pinned_checkpoint => self.pushed_to,
            Some(front) => before(front),
            None => self.head,
        }
    }

    pub(super) fn checkpoint_by_count(&mut self) {
        let max = i64::from(self.settings.max_checkpoint_count).max(1);
        self.checkpoint(max);
    }

    /// Writes a checkpoint when at least so many records are newly done, one write at a time.
    pub(super) fn checkpoint(&mut self, at_least: i64) {
        if self.writing {
            return;
        }
        let mark = self.frontier();
        let Some(place) = mark.place else {
            return;
        };
        let newly =
            i64::try_from(mark.seq).unwrap_or(i64::MAX) - i64::try_from(self.checkpointed.seq).unwrap_or(i64::MAX);
        if newly < at_least {
            return;
        }
        self.checkpointed = mark;
        self.last_checkpointed = Some(place);
        self.writing = true;
        self.effects.push(GroupEffect::Checkpoint(place));
    }
}

fn before<P>(message: &Message<P>) -> Frontier {
    Frontier {
        seq: message.seq,
        place: message.previous,
    }
}
