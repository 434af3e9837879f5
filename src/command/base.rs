//! A state with the prefix of its stream that it stands for.
//!
//! I1 prefix on the command path: a base says which events it is the fold of, and what it may be
//! written over.

use uuid::Uuid;

use crate::{
    event::{RawEvent, Revision},
    projection::{Fold, State},
    replica::{Header, Landed},
};

/// How a base relates to the item in the replica table: what a write-through may demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// Folded on from a stored replica of this generation.
    Stored {
        /// The generation.
        generation: u64,
    },
    /// There was no stored replica.
    Absent,
    /// Not from the table's line: started over, or from another source. Never written through.
    Foreign,
}

/// A state and what it is the fold of.
#[derive(Clone, Debug)]
pub struct Base {
    /// Which events.
    pub header: Header,
    /// The state after them.
    pub state: State,
    /// How it relates to the replica table.
    pub lineage: Lineage,
    /// This process folded it from the stream, or saw the stream's event at its version to be its.
    pub verified: bool,
    /// The event before what this process has appended to it since a read has shown it last. A
    /// deletion since then would have taken it, which the events appended later do not tell.
    pub seen: Option<Revision>,
    /// A revival that was seen as it was folded, and told to nobody yet: whoever saw it got an error.
    pub untold: bool,
    /// What the state weighs in a cache.
    pub weight: Weight,
    /// A command that was found before the header's window. Not in it: a window has every command
    /// since its first, and others rely on that.
    pub older: Option<Box<Landed>>,
}

/// What a state takes in memory, weighed seldom: by the last weighing and what was folded since.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weight {
    /// Bytes; `None` before it was weighed first.
    weighed: Option<usize>,
    /// Bytes of the events folded since then.
    since: usize,
}

impl Weight {
    /// An event counts as this much at least: a small one may add more to a state than its size.
    const EVENT: usize = 128;
    /// Weighed again when this part of the last weight was folded: a weighing writes the state
    /// as text once, so that each byte of events pays for eight at most.
    const PART: usize = 8;

    /// These were folded.
    pub fn grew(&mut self, events: &[RawEvent]) {
        let bytes = events.iter().map(|e| e.data.len().max(Self::EVENT)).sum();
        self.since = self.since.saturating_add(bytes);
    }

    /// Bytes: exact when it was just weighed, else what it may have grown to.
    pub fn bytes(&self) -> usize {
        self.weighed.unwrap_or_default().saturating_add(self.since)
    }
}

impl Base {
    /// Before any event.
    pub fn initial(fold: &dyn Fold, lineage: Lineage) -> Self {
        Self {
            verified: true,
            ..Self::stored(Header::new(), fold.initial(), lineage)
        }
    }

    /// As it was stored: nobody in this process has seen that it is the stream's.
    pub fn stored(header: Header, state: State, lineage: Lineage) -> Self {
        Self {
            header,
            state,
            lineage,
            verified: false,
            seen: None,
            untold: false,
            weight: Weight::default(),
            older: None,
        }
    }

    /// Where a command landed, as far as the base knows.
    pub fn landed(&self, command: Uuid) -> Option<&Landed> {
        let mut known = self.header.commands.iter().chain(self.older.as_deref());
        known.find(|landed| landed.command == command)
    }

    /// Weighs the state, when it may have changed by more than a little since it was weighed last.
    pub fn weigh(&mut self, fold: &dyn Fold) {
        let Weight { weighed, since } = self.weight;
        if weighed.is_none_or(|bytes| since >= bytes / Weight::PART) {
            self.weight = Weight {
                weighed: Some(fold.weigh(&self.state)),
                since: 0,
            };
        }
    }
}
