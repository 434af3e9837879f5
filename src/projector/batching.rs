//! Whether puts carry enough events each. While they do, reading streams on saves nothing: what a
//! read brings is delivered once more all the same. When they do not, far behind, it is the reads
//! that keep the writes few.

/// Events that a put should carry on average: a write for every eight leaves room below one for six.
const EVENTS_A_PUT: f64 = 8.0;
/// Puts before anything is judged: the first of a backlog are no sample.
const LEAST: f64 = 32.0;
/// Puts that are remembered; the older half then counts half.
const MOST: f64 = 512.0;

/// What puts carried lately, of one session.
#[derive(Debug, Default)]
pub struct Batching {
    events: f64,
    puts: f64,
}

impl Batching {
    /// Events were folded.
    pub fn folded(&mut self, events: u64) {
        self.events += events as f64;
    }

    /// A put is on its way.
    pub fn put(&mut self) {
        self.puts += 1.0;
        if self.puts > MOST {
            self.puts /= 2.0;
            self.events /= 2.0;
        }
    }

    /// Whether puts carry too little.
    pub fn wasteful(&self) -> bool {
        self.puts >= LEAST && self.events < self.puts * EVENTS_A_PUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_on_is_worth_it_only_while_puts_carry_little() {
        let mut batching = Batching::default();
        assert!(!batching.wasteful(), "nothing is known yet");
        for _ in 0..1_000 {
            batching.folded(20);
            batching.put();
        }
        assert!(!batching.wasteful());
        for _ in 0..1_000 {
            batching.folded(1);
            batching.put();
        }
        assert!(batching.wasteful(), "what was long ago is forgotten");
    }
}
