//! What the command path and the queries count, as a port: a host service brings its own registry.
//!
//! Labels come from these enums alone, so their number is bounded; no stream name is ever one.

use std::time::Duration;

/// Why a snapshot was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discard {
    /// Its state does not decode as the aggregate, or its item is not one of ours.
    Undecodable,
    /// Its stream has another event at its version.
    Diverged,
    /// Its stream ends before its version.
    WentBackwards,
    /// It could not be loaded: the store was unavailable or throttled.
    Unavailable,
    /// It begins behind events that can be read.
    Skipped,
    /// There is no table of snapshots.
    NoTable,
}

impl Discard {
    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Diverged => "diverged",
            Self::WentBackwards => "went_backwards",
            Self::Unavailable => "unavailable",
            Self::Skipped => "skipped",
            Self::NoTable => "no_table",
        }
    }
}

/// Where a base came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The process's own cache.
    Cache,
    /// The replica table.
    Replica,
    /// A snapshot event beside the stream.
    SnapshotEvent,
    /// The whole stream was folded.
    Replay,
}

impl Origin {
    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Replica => "replica",
            Self::SnapshotEvent => "snapshot_event",
            Self::Replay => "replay",
        }
    }
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A base was loaded.
    Loaded(Origin),
    /// A snapshot was thrown away.
    Discarded(Discard),
    /// A read brought this many events to fold.
    Replayed(usize),
    /// A command with a caller's id is looked for further back than its state remembers.
    Searched,
    /// A snapshot remembers fewer commands than the repository's settings say.
    ShortWindow,
    /// A command waits for its turn behind others of its process on the same aggregate.
    Queued,
    /// A rejection or an empty decision is being confirmed at the leader.
    Confirming,
    /// An append succeeded.
    Appended,
    /// An append lost its race.
    Conflict,
    /// The same append met the same conflict again: what it speaks of could not be read yet.
    Awaited,
    /// What a conflict spoke of and could not be read at first is known: it can be read, or its
    /// append has died. [`Self::HintAwaited`] says how long that took.
    HintSettled,
    /// From such a conflict until what it spoke of was known.
    HintAwaited(Duration),
    /// An append's reply was lost.
    OutcomeLost,
    /// The command had landed before.
    Repeated,
    /// A write-through was made; whether it was taken.
    WroteThrough(bool),
    /// A command or query ended: its outcome's word, how long it took, appends tried and events folded.
    Ended {
        /// `committed`, `nothing`, or the error's class.
        outcome: &'static str,
        /// From the call to the answer.
        took: Duration,
        /// Appends tried.
        attempts: u32,
        /// Events folded.
        replayed: usize,
    },
}

/// Takes observations; called on the path of every command, so it must be quick and never block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened on this aggregate or projection.
    fn observe(&self, projection: &str, observation: Observation);
}

/// Takes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _: &str, _: Observation) {}
}
