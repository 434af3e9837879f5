//! How many puts may be in flight at once: additive increase, multiplicative decrease by what the
//! table says. One hot key does not come here; its lane alone waits.

/// In flight at the start: enough to fill a local round trip, little enough for a cold table.
const START: usize = 16;
/// Never fewer, so that a throttled table still moves.
const LEAST: usize = 2;

/// The limit for one table.
#[derive(Debug)]
pub struct WriteLimit {
    limit: f64,
    most: f64,
}

impl WriteLimit {
    /// At most `most` in flight.
    pub fn new(most: usize) -> Self {
        let most = most.max(LEAST) as f64;
        Self {
            limit: (START as f64).min(most),
            most,
        }
    }

    /// How many may be in flight now.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// One put was answered, after the table throttled `throttles` attempts since the last answer.
    pub fn answered(&mut self, throttles: u64) {
        self.limit = if throttles > 0 {
            // However many attempts one burst of throttling hit, it is one signal.
            (self.limit * 0.7).max(LEAST as f64)
        } else {
            // About one more for each round of answers.
            (self.limit + 1.0 / self.limit).min(self.most)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttling_shrinks_and_answers_grow_within_bounds() {
        let mut limit = WriteLimit::new(64);
        for _ in 0..10_000 {
            limit.answered(0);
        }
        assert_eq!(limit.limit(), 64);
        for _ in 0..100 {
            limit.answered(3);
        }
        assert_eq!(limit.limit(), LEAST);
        let low = limit.limit();
        for _ in 0..50 {
            limit.answered(0);
        }
        assert!(limit.limit() > low);
    }
}
