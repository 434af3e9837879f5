//! How long to wait before trying again: the formula alone. Who waits adds the jitter and sleeps, so
//! that pure machines count their repetitions themselves (I6 pure). A crate for it has an iterator to
//! keep in each of them, and a jitter of its own.

use std::time::Duration;

/// The longest wait before the `nth` repetition, from 0: `first`, then doubled each time up to
/// `longest`.
pub(crate) fn doubled(first: Duration, longest: Duration, nth: u32) -> Duration {
    // Beyond this every `longest` is reached.
    first.saturating_mul(1 << nth.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_longest() {
        let waits = |nth| doubled(Duration::from_millis(25), Duration::from_secs(1), nth).as_millis();
        assert_eq!([0, 1, 2, 5, 6, u32::MAX].map(waits), [25, 50, 100, 800, 1_000, 1_000]);
    }
}
