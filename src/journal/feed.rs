//! Deliveries: what a persistent subscription hands over, and the groups that hand them over.
//!
//! A delivery is a hint that a stream moved (I4 hint). What it carries is used when it fits,
//! and read again at the leader when it does not.

use std::{future::Future, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{JournalError, Unplaced};
use crate::{
    event::{RawEvent, Revision},
    projection::Source,
};

/// One event as a group hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The id to acknowledge: the link's where there is one.
    pub ack: Uuid,
    /// How often it was handed over before, by the group's own count.
    pub retry: u32,
    /// When the group's own entry (the link where there is one) was written.
    pub at: DateTime<Utc>,
    /// Where that entry stands in the source; `None` for what an operator had replayed.
    pub place: Option<Mark>,
    /// What it says.
    pub said: Said,
}

/// What a delivery says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// This event was appended.
    Event(RawEvent),
    /// Something happened to this stream that the delivery does not carry: a link that no longer
    /// resolves (`revision` is the one it names), a deletion or a tombstone (no revision).
    Moved {
        /// The stream.
        stream: Arc<str>,
        /// The revision that the link names; `None` for a deletion.
        revision: Option<Revision>,
    },
    /// This stream goes on, at a revision that the delivery does not tell: a link of its own, which a
    /// category carries straight to what it points at, and that is another stream's.
    Onward {
        /// The stream.
        stream: Arc<str>,
    },
    /// Nothing that concerns a stream of ours (a system event on `$all`).
    Nothing,
    /// It cannot be told which stream it concerns.
    Unplaced(Unplaced),
}

/// Why a delivery is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nack {
    /// Set aside with a reason, for an operator to see and replay.
    Park,
    /// Deliver again now.
    Retry,
}

/// How a group hands events to several consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One consumer a stream, where the server's version keeps such groups' checkpoints right,
    /// else [`Strategy::DispatchToSingle`].
    Auto,
    /// One consumer a stream.
    Pinned,
    /// One consumer until it is full.
    DispatchToSingle,
    /// Each in turn.
    RoundRobin,
}

/// A persistent subscription with the settings that a projector needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Its name.
    pub name: Arc<str>,
    /// What it reads.
    pub source: Source,
    /// How it hands events over.
    pub strategy: Strategy,
    /// How long the server waits for an acknowledgement.
    pub message_timeout: Duration,
    /// How often the server delivers before it parks by itself; high, for a projector decides.
    pub max_retries: i32,
    /// Checkpoint at the latest after this time.
    pub checkpoint_after: Duration,
    /// Checkpoint at the latest after this many events.
    pub checkpoint_upper: i32,
    /// Events that the server reads at once.
    pub read_batch: i32,
    /// Events that the server keeps ahead of consumers.
    pub history_buffer: i32,
    /// Newest events that the server keeps for joining the live stream.
    pub live_buffer: i32,
}

/// What became of making sure that a group exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was made.
    Created,
    /// It was there, as wanted.
    Same,
    /// It was there with other settings, left as they are: (setting, wanted, found).
    Different(Vec<(&'static str, String, String)>),
}

/// What the server says of a group. Its figures mislead as lag (measured: filtered and freshly
/// restarted groups); they are shown as what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupInfo {
    /// The server's word for its state.
    pub status: String,
    /// Deliveries not yet acknowledged, over all consumers.
    pub in_flight: u64,
    /// Parked messages.
    pub parked: u64,
    /// Events that the server has read and not delivered, retries included.
    pub buffered: u64,
    /// Deliveries since the server loaded the group, repeated ones included.
    pub delivered: u64,
    /// The newest entry that the group has seen, on a stream: its revision.
    pub known_revision: Option<Revision>,
    /// The same on `$all`: its commit position.
    pub known_position: Option<u64>,
    /// Last checkpoint on a stream: the revision of the feed's entry.
    pub checkpoint_revision: Option<Revision>,
    /// Last checkpoint on `$all`: the commit position.
    pub checkpoint_position: Option<u64>,
    /// Consumers connected.
    pub consumers: u64,
}

/// The newest entry of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its revision in the feed's stream; `None` on `$all`.
    pub revision: Option<Revision>,
    /// Its commit position, where known.
    pub position: Option<u64>,
    /// When it was written.
    pub created: DateTime<Utc>,
}

/// One connection to a group.
pub trait Subscription: Send + 'static {
    /// The next delivery. Cancel-safe. Every error is the end of this subscription.
    fn next(&mut self) -> impl Future<Output = Result<Delivery, JournalError>> + Send;

    /// Acknowledges; `Ok` means queued, not received.
    fn ack(&mut self, ids: Vec<Uuid>) -> impl Future<Output = Result<(), JournalError>> + Send;

    /// Gives deliveries back.
    fn nack(
        &mut self,
        ids: Vec<Uuid>,
        nack: Nack,
        reason: String,
    ) -> impl Future<Output = Result<(), JournalError>> + Send;

    /// Ends the connection. Returns when what was acknowledged has left this process, or when that
    /// takes longer than the connection is worth waiting for: it is delivered again then.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Groups and their sources.
pub trait Feed: Clone + Send + Sync + 'static {
    /// A connection to a group.
    type Subscription: Subscription;

    /// Creates the group when it is missing and compares it when it is there; changes nothing else.
    fn ensure(&self, group: &GroupSpec) -> impl Future<Output = Result<Ensured, JournalError>> + Send;

    /// Makes the group again, from the beginning of its source. Whoever consumes it is dropped.
    fn restart(&self, group: &GroupSpec) -> impl Future<Output = Result<(), JournalError>> + Send;

    /// Connects with at most `buffer` deliveries in flight.
    fn subscribe(
        &self,
        group: &GroupSpec,
        buffer: usize,
    ) -> impl Future<Output = Result<Self::Subscription, JournalError>> + Send;

    /// What the server says of the group.
    fn info(&self, group: &GroupSpec) -> impl Future<Output = Result<GroupInfo, JournalError>> + Send;

    /// The newest entry of the source; `None` when there is none. [`JournalError::Unfinished`] while
    /// a search through a large `$all` goes on: the next call goes on from there.
    fn head(&self, source: &Source) -> impl Future<Output = Result<Option<Head>, JournalError>> + Send;

    /// Since when the source itself stands still while the log grows, as far as this user may see:
    /// a category whose links (`$by_category`) lag behind its streams. `head` is the source's newest
    /// entry.
    fn stalled(
        &self,
        source: &Source,
        head: Option<&Head>,
    ) -> impl Future<Output = Result<Option<DateTime<Utc>>, JournalError>> + Send;

    /// Reads the source itself for entries after `after` (exclusive; `None`: from the start), at
    /// most `max`, as a group would hand them over. For lag, and for whoever audits a group.
    fn entries(
        &self,
        source: &Source,
        after: Option<Mark>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<(Mark, Delivery)>, JournalError>> + Send;
}

/// A place in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// A revision of the feed's stream.
    Revision(Revision),
    /// A commit position of `$all`.
    Position(u64),
}
