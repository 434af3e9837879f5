//! Commands of one process on one aggregate take turns, in the order in which they came.
//!
//! Racing each other they would lose all races but one, each loss a round trip and a decision. One
//! key twice in a process is one execution too: the second waits and finds what the first did. A
//! turn only saves work; what a command may rely on is still the append's expected revision.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use crate::journal::JournalError;

/// Whose turns these are: an aggregate's, or without queues a key's alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    stream: Arc<str>,
    command: Option<Uuid>,
}

#[derive(Default)]
struct Line {
    /// Fair: who came first has it first.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// What keeps the one whose turn it is, so that those behind it can tell.
    trouble: Mutex<Option<JournalError>>,
}

/// Everybody who has a turn or waits for one, by line; a line that is empty is gone.
#[derive(Default)]
struct Lines(HashMap<Key, (Arc<Line>, usize)>);

/// The queues of one repository.
pub(super) struct Queue {
    /// How many may wait in one of them; 0: none does, and only repetitions of one key take turns.
    bound: usize,
    lines: Mutex<Lines>,
}

/// A place in a line; dropped, it is left.
pub(super) struct QueuePlace<'a> {
    queue: &'a Queue,
    key: Key,
    line: Arc<Line>,
    ahead: usize,
}

/// The turn; dropped, the next one has it.
pub(super) struct Turn<'a> {
    _turn: OwnedMutexGuard<()>,
    place: QueuePlace<'a>,
}

/// There is no room for another one; how many are in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full(pub(super) usize);

impl Queue {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            bound,
            lines: Mutex::default(),
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing that is done under the lock leaves it half done.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the line of `stream`; `None` where nobody waits for anybody. `command`: the id,
    /// where the caller gave it.
    pub(super) fn join(&self, stream: &Arc<str>, command: Option<Uuid>) -> Result<Option<QueuePlace<'_>>, Full> {
        let command = if self.bound > 0 { None } else { command };
        if self.bound == 0 && command.is_none() {
            return Ok(None);
        }
        let key = Key {
            stream: stream.clone(),
            command,
        };
        let mut lines = self.lines();
        let (line, inside) = lines.0.entry(key.clone()).or_default();
        if self.bound > 0 && *inside > self.bound {
            return Err(Full(*inside));
        }
        let ahead = *inside;
        *inside += 1;
        Ok(Some(QueuePlace {
            queue: self,
            line: line.clone(),
            key,
            ahead,
        }))
    }
}

impl<'a> QueuePlace<'a> {
    /// How many were before this one when it came.
    pub(super) fn ahead(&self) -> usize {
        self.ahead
    }

    /// What keeps those before it.
    pub(super) fn trouble(&self) -> Option<JournalError> {
        self.line.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the turn.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.line.turn.clone().lock_owned().await
    }

    /// With the turn that it waited for.
    pub(super) fn with(self, turn: OwnedMutexGuard<()>) -> Turn<'a> {
        Turn {
            _turn: turn,
            place: self,
        }
    }
}

impl Turn<'_> {
    /// Says what keeps it, or that nothing does.
    pub(super) fn note(&self, trouble: Option<&JournalError>) {
        let mut noted = self.place.line.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.as_ref() != trouble {
            *noted = trouble.cloned();
        }
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let mut lines = self.queue.lines();
        if let Some((_, inside)) = lines.0.get_mut(&self.key) {
            *inside -= 1;
            if *inside == 0 {
                lines.0.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take<'a>(queue: &'a Queue, stream: &Arc<str>, command: Option<Uuid>) -> Option<Turn<'a>> {
        let place = queue.join(stream, command).unwrap()?;
        let turn = place.turn().await;
        Some(place.with(turn))
    }

    #[tokio::test]
    async fn turns_come_in_order_and_a_line_that_is_empty_is_gone() {
        let queue = Queue::new(8);
        let (a, b): (Arc<str>, Arc<str>) = ("a-1".into(), "b-1".into());
        let order = Mutex::new(Vec::new());
        let first = take(&queue, &a, None).await.unwrap();
        let wait = async |n: u32| {
            let _turn = take(&queue, &a, None).await;
            order.lock().unwrap().push(n);
        };
        let free = async {
            // Another aggregate waits for nobody.
            drop(take(&queue, &b, None).await);
            drop(first);
        };
        tokio::join!(wait(1), wait(2), wait(3), free);
        assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
        assert!(queue.lines().0.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_line_and_a_full_one_takes_nobody() {
        let queue = Queue::new(2);
        let stream: Arc<str> = "a-1".into();
        let first = take(&queue, &stream, None).await.unwrap();
        let second = queue.join(&stream, None).unwrap().unwrap();
        let third = queue.join(&stream, None).unwrap().unwrap();
        assert_eq!((second.ahead(), third.ahead()), (1, 2));
        assert_eq!(queue.join(&stream, None).err(), Some(Full(3)));
        {
            let waiting = second.turn();
            tokio::pin!(waiting);
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        drop(second);
        first.note(Some(&JournalError::Unavailable("a test".into())));
        assert!(third.trouble().is_some());
        drop(first);
        let turn = third.turn().await;
        drop(third.with(turn));
        assert!(queue.lines().0.is_empty());
    }

    #[tokio::test]
    async fn without_queues_only_one_key_waits_for_itself() {
        let queue = Queue::new(0);
        let stream: Arc<str> = "a-1".into();
        assert!(take(&queue, &stream, None).await.is_none());
        let first = take(&queue, &stream, Some(Uuid::from_u128(1))).await;
        drop(take(&queue, &stream, Some(Uuid::from_u128(2))).await);
        let same = queue.join(&stream, Some(Uuid::from_u128(1))).unwrap().unwrap();
        let waiting = same.turn();
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(first);
        drop(waiting.await);
    }
}
