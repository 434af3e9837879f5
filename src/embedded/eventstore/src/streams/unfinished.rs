//! Appends of a batch that are still being sent. Keeps: none of them outlives its time, and what a node
//! holds of all of them together is bounded; a client that sends more waits until others are done.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::Utc;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use crate::{
    log::{Expected, NewEvent},
    wire::{Time, streams::AppendOptions},
};

/// EventStoreDB's write timeout: the longest that a part of an append waits for the rest.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of unfinished appends that a node holds: 64 of the largest, which no client sends at once.
const HELD: usize = 64 * 1024 * 1024;
/// What a part takes beside its events, so that empty ones have a bound, too.
const PART: usize = 256;

/// The room that all unfinished appends of a node share, in bytes.
pub(in super::super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(HELD))
}

/// How long an append has from now on; none when its time is over.
pub(super) fn time_left(said: &AppendOptions) -> Option<Duration> {
    let nanos = |time: Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let now = || {
        let now = Utc::now();
        i128::from(now.timestamp()) * 1_000_000_000 + i128::from(now.timestamp_subsec_nanos())
    };
    let asked = match (said.within, said.until) {
        (Some(within), _) => nanos(within),
        (None, Some(until)) => nanos(until) - now(),
        (None, None) => return Some(WRITE_TIMEOUT),
    };
    let left = u64::try_from(asked).ok().filter(|left| *left > 0);
    // Longer than a u64 of nanoseconds is longer than the server waits for anything.
    let left = if asked > i128::from(u64::MAX) {
        Some(u64::MAX)
    } else {
        left
    };
    left.map(|left| Duration::from_nanos(left).min(WRITE_TIMEOUT))
}

/// One of them.
pub(super) struct Open {
    pub(super) stream: Arc<str>,
    pub(super) expected: Expected,
    pub(super) events: Vec<NewEvent>,
    /// By EventStoreDB's reckoning.
    pub(super) size: usize,
    until: Instant,
    held: Option<OwnedSemaphorePermit>,
}

impl Open {
    pub(super) fn new(stream: Arc<str>, expected: Expected, time: Duration) -> Self {
        Self {
            stream,
            expected,
            events: Vec::new(),
            size: 0,
            until: Instant::now() + time,
            held: None,
        }
    }
}

/// All of one call.
pub(super) struct Unfinished {
    room: Arc<Semaphore>,
    open: HashMap<Uuid, Open>,
    ends: BTreeSet<(Instant, Uuid)>,
}

impl Unfinished {
    pub(super) fn new(room: Arc<Semaphore>) -> Self {
        Self {
            room,
            open: HashMap::new(),
            ends: BTreeSet::new(),
        }
    }

    /// Begins one; an id that is in use stays with the append that has it.
    pub(super) fn begin(&mut self, id: Uuid, open: impl FnOnce() -> Open) {
        let ends = &mut self.ends;
        self.open.entry(id).or_insert_with(|| {
            let open = open();
            ends.insert((open.until, id));
            open
        });
    }

    pub(super) fn get(&mut self, id: Uuid) -> Option<&mut Open> {
        self.open.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: Uuid) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.ends.remove(&(open.until, id));
        Some(open)
    }

    /// The next whose time is over; waits for it.
    pub(super) async fn expired(&mut self) -> (Uuid, Open) {
        loop {
            let Some((until, id)) = self.ends.first().copied() else {
                return std::future::pending().await;
            };
            sleep_until(until).await;
            if let Some(open) = self.remove(id) {
                return (id, open);
            }
        }
    }

    /// Room for a part of so many bytes.
    pub(super) fn wanted(&self, bytes: usize) -> impl Future<Output = Option<OwnedSemaphorePermit>> + use<> {
        let room = Arc::clone(&self.room);
        // A part is no larger than the largest append.
        let wanted = u32::try_from(bytes.saturating_add(PART).min(HELD)).unwrap_or(u32::MAX);
        async move { room.acquire_many_owned(wanted).await.ok() }
    }

    /// Keeps a part that has room.
    pub(super) fn keep(&mut self, id: Uuid, events: Vec<NewEvent>, held: Option<OwnedSemaphorePermit>) {
        // One that has expired meanwhile is nobody's.
        let Some(open) = self.open.get_mut(&id) else { return };
        open.events.extend(events);
        match (&mut open.held, held) {
            (Some(all), Some(more)) => all.merge(more),
            (all, more) => *all = more.or(all.take()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_has_the_time_it_asks_for_and_at_most_the_servers() {
        let within = |seconds, nanos| {
            time_left(&AppendOptions {
                within: Some(Time { seconds, nanos }),
                ..AppendOptions::default()
            })
        };
        assert_eq!(within(0, 5_000_000), Some(Duration::from_millis(5)));
        assert_eq!(within(1_764_000_000_000, 0), Some(WRITE_TIMEOUT));
        assert_eq!((within(0, 0), within(-1, 0)), (None, None));
        assert_eq!(time_left(&AppendOptions::default()), Some(WRITE_TIMEOUT));
        let past = AppendOptions {
            until: Some(Time { seconds: 1, nanos: 0 }),
            ..AppendOptions::default()
        };
        assert_eq!(time_left(&past), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_finished_expires_and_gives_its_room_back() {
        let mut unfinished = Unfinished::new(room());
        let open = || Open::new("s".into(), Expected::Any, WRITE_TIMEOUT);
        let [first, second] = [1, 2].map(Uuid::from_u128);
        unfinished.begin(first, open);
        unfinished.begin(second, || {
            Open::new("s".into(), Expected::Any, Duration::from_millis(1))
        });
        let all = unfinished.wanted(HELD).await;
        unfinished.keep(first, Vec::new(), all);
        let more = unfinished.wanted(1);
        tokio::pin!(more);
        let (expired, _) = tokio::select! {
            biased;
            _ = &mut more => panic!("there was no room"),
            expired = unfinished.expired() => expired,
        };
        assert_eq!(expired, second, "the earliest ends first");
        drop(unfinished.expired().await);
        assert!(more.await.is_some());
    }
}
