//! What the engine counts, as a port: the engine knows what happened, not how it is exposed.
//!
//! Labels come from these enums alone, so their number is bounded; no stream name is ever one.

use std::time::Duration;

use crate::journal::Unplaced;

/// Something that happened, once or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Count {
    /// Deliveries taken.
    Received,
    /// Events folded.
    Applied,
    /// Deliveries settled with no put of their own.
    SettledWithoutWrite,
    /// Deliveries that concern no stream.
    Skipped,
    /// Deliveries that cannot be placed.
    Unplaced(Unplaced),
    /// Deliveries parked behind a quarantine mark.
    Parked,
    /// Reads of streams that filled a hole or read on.
    GapReads,
    /// Events that such reads brought.
    GapEvents,
    /// A put became of this.
    Write(WriteOutcome),
    /// Quarantine marks made.
    Quarantined,
    /// Marks of divergence made.
    Diverged,
    /// The subscription ended and was made again.
    Reconnect(EndReason),
    /// A panic was survived.
    Panic,
    /// Bases found in the cache.
    CacheHit,
    /// Bases that had to be loaded.
    CacheMiss,
}

/// What became of one attempt to put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteOutcome {
    /// Durable.
    Done,
    /// The stored item was not what the put demanded.
    Refused,
    /// Throttled; tried again.
    Throttled,
    /// No or no clear answer; tried again.
    Unavailable,
    /// The table or the permissions to it are not set up; tried again.
    Setup,
}

/// Why a connection to a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The server ended it or went away.
    Disconnected,
    /// A store was unavailable for too long: it was given up so that redelivery burns no retries.
    StoreOutage,
    /// Nothing moved although there was work.
    Watchdog,
    /// A panic.
    Panic,
    /// Too many quarantines for one reason.
    QuarantineStorm,
    /// Only an operator can help.
    Setup,
    /// The table was deleted and created again.
    TableAnew,
    /// The process is asked to stop.
    Stopping,
}

/// How long something took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timing {
    /// One attempt to put.
    Write,
    /// From an event's creation to its being durable in a replica.
    DurableAge,
}

/// What a lane is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneState {
    /// It waits for nothing but time.
    Waiting,
    /// It loads its replica.
    Loading,
    /// It reads its stream, or looks at it.
    Reading,
    /// It puts its replica.
    Writing,
}

impl LaneState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Loading, Self::Reading, Self::Writing];
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Entries of the source that are not settled.
    LagEvents,
    /// Age in seconds of the oldest entry of the source that is not settled.
    LagSeconds,
    /// When lag was last measured, in seconds since 1970.
    LagMeasuredAt,
    /// Entries behind the group's checkpoint: what the server would deliver again after a crash.
    CheckpointLag,
    /// The feed's last checkpoint: a revision, or a commit position of `$all`.
    Checkpoint,
    /// The newest entry of the source, likewise.
    Newest,
    /// Messages that the group has parked.
    ParkedMessages,
    /// Deliveries in flight over all consumers of the group.
    GroupInFlight,
    /// Deliveries that this process holds.
    Holding,
    /// Age in seconds of the oldest delivery that this process holds.
    OldestHeldSeconds,
    /// Lanes in this state.
    Lanes(LaneState),
    /// How long the oldest of them has been in it, in seconds.
    LanesOldestSeconds(LaneState),
    /// 1 while connected to the group.
    SubscriptionUp,
    /// Puts that may be in flight at once.
    WriteLimit,
    /// Quarantined aggregates of the projection.
    Quarantined,
    /// Diverged aggregates of the projection.
    Diverged,
    /// Bytes of replicas in the cache.
    CacheBytes,
    /// Bytes of deliveries, reads and writes under way.
    MemoryBytes,
    /// 1 while the source's own projection (`$by_category`) stands still while the log grows.
    SourceStalled,
}

impl Level {
    /// What is asked of the stores now and then: not there before the first answer, nor while there
    /// is none.
    pub const MEASURED: [Self; 11] = [
        Self::LagEvents,
        Self::LagSeconds,
        Self::LagMeasuredAt,
        Self::CheckpointLag,
        Self::SourceStalled,
        Self::Checkpoint,
        Self::Newest,
        Self::ParkedMessages,
        Self::GroupInFlight,
        Self::Quarantined,
        Self::Diverged,
    ];
}

/// Takes what the engine counts, for one projection.
pub trait Meter: Send + Sync + 'static {
    /// `n` more of `count`.
    fn count(&self, count: Count, n: u64);
    /// Once more, it took `took`.
    fn observe(&self, timing: Timing, took: Duration);
    /// It stands at `value` now.
    fn set(&self, level: Level, value: f64);
    /// How it stands is not known now.
    fn unset(&self, level: Level);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMeter;

impl Meter for NoMeter {
    fn count(&self, _: Count, _: u64) {}
    fn observe(&self, _: Timing, _: Duration) {}
    fn set(&self, _: Level, _: f64) {}
    fn unset(&self, _: Level) {}
}
