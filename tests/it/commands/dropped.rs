//! Calls that are dropped at whichever await they stand, by dice with a seed.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};

/// Most calls have been answered after so many polls: a dropped one ends somewhere before.
const POLLS: usize = 24;

/// Which calls are dropped, and where. Clones share the dice.
#[derive(Clone)]
pub(super) struct Drops {
    dice: Arc<Mutex<fastrand::Rng>>,
    dropped: Arc<AtomicUsize>,
}

impl Drops {
    /// With a seed that is printed, so that a failure tells it.
    #[expect(clippy::print_stdout, reason = "a test that fails shows it")]
    pub(super) fn new() -> Self {
        let seed = fastrand::u64(..);
        println!("calls are dropped by seed {seed}");
        Self {
            dice: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
            dropped: Arc::default(),
        }
    }

    /// How many were dropped.
    pub(super) fn count(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What the call comes to; `None` when it was dropped before that: one in two is meant to be,
    /// as soon as its request is out, or when the answer is there and nobody has looked at it yet.
    pub(super) async fn run<F: Future>(&self, call: F) -> Option<F::Output> {
        let (meant, mut left, unread) = {
            let mut dice = self.dice.lock().unwrap();
            (dice.bool(), dice.usize(1..POLLS), dice.bool())
        };
        if !meant {
            return Some(call.await);
        }
        let mut call = pin!(call);
        let told = poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            match call.as_mut().poll(context) {
                Poll::Pending if left == 0 && !unread => Poll::Ready(None),
                polled => polled.map(Some),
            }
        });
        let told = told.await;
        self.dropped.fetch_add(usize::from(told.is_none()), Ordering::Relaxed);
        told
    }
}
