//! A lane that keeps what it says until it is looked at.

use std::ops::{Deref, DerefMut};

use super::*;

/// A lane, with what it has said and nobody has looked at yet.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) lane: Lane,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) tally: Tally,
}

impl Driven {
    pub(super) fn new(rules: Arc<LaneRules>) -> Self {
        Self {
            lane: Lane::new("s-1".into(), rules),
            verdicts: Vec::new(),
            tally: Tally::default(),
        }
    }

    pub(super) fn next(&mut self, now: Duration) -> Next {
        let step = self.lane.step(now);
        self.verdicts.extend(step.verdicts);
        self.adds(step.tally);
        step.next
    }

    pub(super) fn adds(&mut self, tally: Tally) {
        self.tally.applied += tally.applied;
        self.tally.gap_reads += tally.gap_reads;
        self.tally.durable.extend(tally.durable);
    }

    /// Those that a step would tell now, too: the model looks at each when it is made.
    pub(super) fn verdicts(&mut self) -> Vec<Verdict> {
        self.verdicts.append(&mut self.lane.inbox_mut().verdicts);
        mem::take(&mut self.verdicts)
    }

    pub(super) fn tally(&mut self) -> Tally {
        if let At::Known(known) = &mut self.lane.at {
            let now = mem::take(&mut known.tally);
            self.adds(now);
        }
        mem::take(&mut self.tally)
    }
}

impl Deref for Driven {
    type Target = Lane;
    fn deref(&self) -> &Lane {
        &self.lane
    }
}

impl DerefMut for Driven {
    fn deref_mut(&mut self) -> &mut Lane {
        &mut self.lane
    }
}
