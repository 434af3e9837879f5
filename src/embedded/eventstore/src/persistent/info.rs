//! The figures a group shows. Keeps: a figure says what EventStoreDB's of the same name says, its
//! oddities included, so that a dashboard made for the one reads the other.

use std::collections::VecDeque;

use super::place::Place;

/// Milliseconds on the clock that is passed in; only differences mean anything.
pub(crate) type Millis = u64;

/// Deliveries whose time is remembered for one consumer; enough for a 99.9th percentile.
const MEASURED: usize = 1_000;

/// Items counted, in all and since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RateMeter {
    /// Since the consumer or group began.
    pub total: u64,
    seen: u64,
    since: Millis,
    /// In the second before the last look.
    pub per_second: u64,
}

impl RateMeter {
    /// One more.
    pub(crate) fn count(&mut self) {
        self.total += 1;
    }

    /// Items since the last look.
    pub(crate) fn since_last(&self) -> u64 {
        self.total - self.seen
    }

    /// Looks: works the average out and starts a new one.
    pub(crate) fn look(&mut self, now: Millis) {
        let elapsed = now.saturating_sub(self.since).max(1);
        self.per_second = self.since_last() * 1_000 / elapsed;
        self.seen = self.total;
        self.since = now;
    }
}

/// How long a consumer took, push to ack.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    newest: VecDeque<Millis>,
}

impl Latencies {
    /// One more, the oldest forgotten.
    pub(crate) fn note(&mut self, took: Millis) {
        if self.newest.len() == MEASURED {
            self.newest.pop_front();
        }
        self.newest.push_back(took);
    }

    /// Name and milliseconds of each measurement; none before the first ack.
    pub(crate) fn measurements(&self) -> Vec<(&'static str, i64)> {
        if self.newest.is_empty() {
            return Vec::new();
        }
        let mut sorted: Vec<Millis> = self.newest.iter().copied().collect();
        sorted.sort_unstable();
        let at = |part: f64| {
            let index = (part * sorted.len() as f64).ceil() as usize;
            sorted[index.clamp(1, sorted.len()) - 1] as i64
        };
        let mean = sorted.iter().sum::<Millis>() / sorted.len() as Millis;
        vec![
            ("Mean", mean as i64),
            ("Median", at(0.5)),
            ("Fastest", sorted[0] as i64),
            ("Quintile 1", at(0.2)),
            ("Quintile 2", at(0.4)),
            ("Quintile 3", at(0.6)),
            ("Quintile 4", at(0.8)),
            ("Quintile 5", at(1.0)),
            ("90%", at(0.9)),
            ("95%", at(0.95)),
            ("99%", at(0.99)),
            ("99.5%", at(0.995)),
            ("99.9%", at(0.999)),
            ("Highest", at(1.0)),
        ]
    }
}

/// One connection's figures.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionFigures {
    /// Who, or `anonymous`; `system` on a node without users.
    pub username: String,
    /// What the client calls its connection, or `<unknown>`.
    pub name: String,
    /// Records it takes on top of those it has.
    pub available_slots: usize,
    /// Records it has.
    pub in_flight: usize,
    /// Records pushed to it, retries included.
    pub pushed: RateMeter,
    /// Only with extra statistics.
    pub measurements: Vec<(&'static str, i64)>,
}

/// A group's figures.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// The state's flags by name.
    pub status: String,
    /// One for each consumer.
    pub connections: Vec<ConnectionFigures>,
    /// Records pushed, retries included.
    pub pushed: RateMeter,
    /// The last checkpoint handed over to be written.
    pub last_checkpointed: Option<Place>,
    /// The highest place of a record the group took up.
    pub last_known: Option<Place>,
    /// Records read and not yet pushed.
    pub read_buffer: usize,
    /// Live records remembered, delivered ones included.
    pub live_buffer: usize,
    /// Records to be pushed again.
    pub retry_buffer: usize,
    /// Over all connections.
    pub in_flight: usize,
    /// In flight by the group's own book.
    pub outstanding: usize,
    /// Parked and not replayed.
    pub parked: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_newest_thousand() {
        let mut latencies = Latencies::default();
        assert!(latencies.measurements().is_empty());
        for took in 0..2_000 {
            latencies.note(took);
        }
        let by_name = |name: &str| {
            latencies
                .measurements()
                .into_iter()
                .find(|(other, _)| *other == name)
                .map(|(_, value)| value)
        };
        assert_eq!(by_name("Fastest"), Some(1_000));
        assert_eq!(by_name("Median"), Some(1_499));
        assert_eq!(by_name("99.9%"), Some(1_998));
        assert_eq!(by_name("Highest"), Some(1_999));
        assert_eq!(latencies.measurements().len(), 14);
    }

    #[test]
    fn the_average_is_of_the_time_since_the_last_look() {
        let mut meter = RateMeter::default();
        for _ in 0..10 {
            meter.count();
        }
        meter.look(500);
        assert_eq!((meter.per_second, meter.since_last(), meter.total), (20, 0, 10));
        meter.look(1_500);
        assert_eq!(meter.per_second, 0);
    }
}
