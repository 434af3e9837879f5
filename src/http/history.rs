//! Lag and rates of the last half hour, kept in memory for people to look at.
//!
//! On a fixed grid: what was not sampled or not known is a gap in it, never a zero and never a line
//! drawn across. Bounded by its length.

use std::{collections::VecDeque, time::Duration};

/// One sample: fine enough to see a deployment, and what is drawn is wider than that.
pub const EVERY: Duration = Duration::from_secs(10);

/// Half an hour: what an operator who was called looks back at. Longer is for Prometheus.
pub const SAMPLES: usize = 180;

/// What is known at one time; what is not is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Entries of the source that wait.
    pub lag_events: Option<u64>,
    /// Age in seconds of the oldest of them.
    pub lag_seconds: Option<f64>,
    /// Events folded a second since the sample before.
    pub applied: Option<f64>,
    /// Puts that became durable a second since the sample before.
    pub written: Option<f64>,
}

/// Counts so far, for rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Events folded.
    pub applied: u64,
    /// Puts that are durable.
    pub written: u64,
}

/// One projection's last half hour.
#[derive(Clone, Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    last: Option<(Duration, Counted)>,
}

impl History {
    /// Takes what is known `at` this time since the process started. The first time there is nothing to
    /// compare with, and no sample; places of the grid that are passed over after it are unknown.
    pub fn record(&mut self, at: Duration, lag: Option<(u64, f64)>, counted: Counted) {
        let Some((before, counts)) = self.last else {
            self.last = Some((at, counted));
            return;
        };
        let took = at.saturating_sub(before).as_secs_f64();
        let steps = (took / EVERY.as_secs_f64()).round() as usize;
        if steps == 0 {
            // Twice in one place: the first stands, and its counts with it.
            return;
        }
        for _ in 1..steps.min(SAMPLES) {
            self.push(Sample::default());
        }
        let rate = |now: u64, then: u64| Some(now.saturating_sub(then) as f64 / took);
        self.push(Sample {
            lag_events: lag.map(|(events, _)| events),
            lag_seconds: lag.map(|(_, seconds)| seconds),
            applied: rate(counted.applied, counts.applied),
            written: rate(counted.written, counts.written),
        });
        self.last = Some((at, counted));
    }

    fn push(&mut self, sample: Sample) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(place: u32) -> Duration {
        EVERY * place
    }

    fn counted(applied: u64) -> Counted {
        Counted {
            applied,
            written: applied / 2,
        }
    }

    fn lags(history: &History) -> Vec<Option<u64>> {
        history.samples().map(|s| s.lag_events).collect()
    }

    #[test]
    fn what_is_unknown_and_what_was_passed_over_is_a_gap() {
        let mut history = History::default();
        history.record(at(0), Some((9, 9.0)), counted(0));
        assert_eq!(lags(&history), [], "nothing to compare with");
        history.record(at(1), None, counted(20));
        history.record(at(2), Some((3, 0.5)), counted(40));
        // A timer is never exact, and a process that was stopped for a while has no samples of it.
        history.record(at(3) + Duration::from_millis(900), Some((0, 0.0)), counted(40));
        history.record(at(3) + Duration::from_secs(1), Some((9, 9.0)), counted(90));
        history.record(at(6), Some((1, 0.1)), counted(91));
        assert_eq!(lags(&history), [None, Some(3), Some(0), None, None, Some(1)]);
        let rates: Vec<_> = history.samples().map(|s| (s.applied, s.written)).collect();
        assert_eq!(rates[..2], [(Some(2.0), Some(1.0)); 2]);
        assert_eq!(rates[3], (None, None));
        assert!(
            rates[5].0.is_some_and(|rate| rate > 1.5 && rate < 2.0),
            "over the time that it took"
        );
    }

    #[test]
    fn half_an_hour_is_kept_however_long_it_runs_or_sleeps() {
        let mut history = History::default();
        for place in 0..1_000 {
            history.record(at(place), Some((u64::from(place), 0.0)), counted(0));
        }
        assert_eq!(history.samples().count(), SAMPLES);
        assert_eq!(lags(&history)[0], Some(820));
        history.record(at(1_000_000), Some((7, 0.0)), counted(0));
        let all = lags(&history);
        assert_eq!((all.len(), all[SAMPLES - 1]), (SAMPLES, Some(7)));
        assert!(all[..SAMPLES - 1].iter().all(Option::is_none));
    }
}
