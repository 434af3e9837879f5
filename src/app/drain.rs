//! Seconds to drain: how long the backlog lasts at the present pace, for scaling by.
//!
//! Lag says how much waits; whether more tasks would help, only the pace can tell. The figure never
//! grows because nothing moves: an outage and a throttled table are no reason for more tasks.

use std::{collections::VecDeque, time::Duration};

/// Long enough to see over a pause between two batches, short enough to follow a burst.
const WINDOW: Duration = Duration::from_mins(1);

/// An hour is as good a reason for more tasks as a day, and a chart shows both.
const MOST_SECONDS: f64 = 3_600.0;

/// What is known at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Entries of the source not settled; `None` while it is not known.
    pub(super) lag: Option<u64>,
    /// Events that this process has folded so far.
    pub(super) applied: u64,
    /// Puts of this process that the table throttled so far.
    pub(super) throttled: u64,
    /// Consumers of the group; each is taken to be as fast as this one.
    pub(super) consumers: u64,
}

/// One projection's figure.
#[derive(Debug, Default)]
pub(super) struct Drain {
    window: VecDeque<(Duration, Seen)>,
    figure: f64,
}

impl Drain {
    /// The figure at `now`. Nothing waits: 0. Nothing moves, the table throttles, or the lag is not
    /// known: what it was before, 0 at first.
    pub(super) fn at(&mut self, now: Duration, seen: Seen) -> f64 {
        self.window.push_back((now, seen));
        // One from before the window stays, so that it is spanned.
        while self
            .window
            .get(1)
            .is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW)
        {
            self.window.pop_front();
        }
        let (since, first) = self.window[0];
        let seconds = now.saturating_sub(since).as_secs_f64();
        let applied = seen.applied.saturating_sub(first.applied);
        match seen.lag {
            Some(0) => self.figure = 0.0,
            Some(lag) if applied > 0 && seconds > 0.0 && seen.throttled == first.throttled => {
                let pace = applied as f64 * seen.consumers.max(1) as f64 / seconds;
                self.figure = (lag as f64 / pace).min(MOST_SECONDS);
            }
            Some(_) | None => {}
        }
        self.figure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seen(lag: Option<u64>, applied: u64) -> Seen {
        Seen {
            lag,
            applied,
            throttled: 0,
            consumers: 1,
        }
    }

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn it_is_the_backlog_over_the_pace_of_all_consumers() {
        let mut drain = Drain::default();
        assert!(drain.at(second(0), seen(Some(1_000), 0)).abs() < 1e-9);
        assert!((drain.at(second(10), seen(Some(900), 100)) - 90.0).abs() < 1e-9);
        let two = Seen {
            consumers: 2,
            ..seen(Some(900), 100)
        };
        assert!((drain.at(second(10), two) - 45.0).abs() < 1e-9);
        assert!(drain.at(second(11), seen(Some(0), 1_100)).abs() < 1e-9);
    }

    #[test]
    fn what_stands_still_does_not_grow_and_what_is_endless_is_capped() {
        let mut drain = Drain::default();
        drain.at(second(0), seen(Some(1_000), 0));
        let before = drain.at(second(10), seen(Some(1_000), 100));
        // An outage: the source grows, nothing is folded, at last nobody knows how far behind.
        for n in 1..200 {
            let lag = (n < 100).then_some(1_000 + n * 1_000);
            assert!(drain.at(second(10 + n), seen(lag, 100)) >= before);
        }
        // Beyond the window nothing moved: the figure stands.
        let still = drain.at(second(299), seen(None, 100));
        assert!((drain.at(second(300), seen(Some(10_000_000), 100)) - still).abs() < 1e-9);
        let mut slow = Drain::default();
        slow.at(second(0), seen(Some(u64::MAX), 0));
        assert!((slow.at(second(10), seen(Some(u64::MAX), 1)) - MOST_SECONDS).abs() < 1e-9);
    }

    #[test]
    fn a_throttled_table_is_no_reason_for_more_tasks() {
        let mut drain = Drain::default();
        drain.at(second(0), seen(Some(100), 0));
        let before = drain.at(second(10), seen(Some(100), 100));
        let throttled = Seen {
            throttled: 3,
            ..seen(Some(5_000), 110)
        };
        assert!((drain.at(second(20), throttled) - before).abs() < 1e-9);
        // Once it throttles no more, the pace counts again.
        let over = Seen {
            applied: 200,
            ..throttled
        };
        drain.at(second(80), over);
        let later = drain.at(second(90), Seen { applied: 300, ..over });
        assert!(later > before);
    }
}
