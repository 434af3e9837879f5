//! Aggregates and commands: what a service decides on, and the fold that it decides with.
//!
//! Every aggregate is a projection of itself (see [`crate::projection`]), so the replica that the
//! daemon writes is the snapshot that commands read.

use serde::{Serialize, de::DeserializeOwned};

use crate::event::Event;

/// The state that one stream's events fold to, as a unit of consistency.
pub trait Aggregate: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Streams are named `{CATEGORY}-{id}`; also the projection's name, its table's and its metrics' label.
    const CATEGORY: &'static str;
    /// Raised when `apply` or the state's shape changes; replicas of another schema are no snapshots.
    const SCHEMA: u32 = 1;
    /// Opt-in: the revision of `apply`'s code; see [`crate::projection::Projection::REVISION`].
    const REVISION: Option<u32> = None;
    /// Its events.
    type Event: Event;

    /// Folds one event. Synchronous and pure: the same events give the same state, always.
    fn apply(&mut self, event: Self::Event);

    /// The stream of the aggregate `id`.
    fn stream(id: &str) -> String {
        format!("{}-{id}", Self::CATEGORY)
    }
}

/// A wish to change an aggregate.
pub trait Command<A: Aggregate>: Send + Sync {
    /// Why it is turned away.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What kind of command it is: a constant, which must not change with the code's names. It is
    /// written beside the events, so that a command id that is used again for another kind of
    /// command is told as that. Empty (the default): ids are compared alone.
    fn name(&self) -> &'static str {
        ""
    }

    /// The events that carry the command out on `state`, none when there is nothing to do.
    ///
    /// Runs again after every lost race, hence `&self`, synchronous and free of side effects.
    fn decide(&self, state: &A) -> Result<Vec<A::Event>, Self::Error>;
}
