//! Noted marks in turn, each stream once however often it is asked for.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Streams that wait for a look.
#[derive(Debug, Default)]
pub(super) struct Looks {
    turns: VecDeque<Arc<str>>,
    generations: HashMap<Arc<str>, u64>,
}

impl Looks {
    pub(super) fn add(&mut self, stream: Arc<str>, generation: u64) {
        // The newest word stands: a stream that began again counts from below.
        if self.generations.insert(stream.clone(), generation).is_none() {
            self.turns.push_back(stream);
        }
    }

    pub(super) fn next(&mut self) -> Option<(Arc<str>, u64)> {
        let stream = self.turns.pop_front()?;
        self.generations.remove_entry(&stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each round used to add every stream once more while the first one waited its turn.
    #[test]
    fn a_noted_stream_waits_for_one_look() {
        let mut looks = Looks::default();
        for generation in [7, 8] {
            for stream in ["b-1", "a-1"] {
                looks.add(stream.into(), generation);
            }
        }
        assert_eq!(looks.next(), Some(("b-1".into(), 8)), "in turn");
        looks.add("b-1".into(), 9);
        assert_eq!(looks.next(), Some(("a-1".into(), 8)));
        assert_eq!(looks.next(), Some(("b-1".into(), 9)), "asked for again after its turn");
        assert_eq!(looks.next(), None);
        assert!(looks.generations.is_empty());
    }
}
