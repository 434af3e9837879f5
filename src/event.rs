//! Events: as a stream read gives them (`RawEvent`), and decoded for a fold (`Recorded`).
//!
//! Invariant: I1 prefix, its second half: nothing here depends on the route by which an event came.
//! There is no position, no link and no delivery count, so a fold cannot tell a subscription
//! from a gap read from a replay.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

pub mod codec;
pub mod metadata;
mod token;

pub use metadata::Metadata;
pub use token::{Token, TokenError};

/// An event's number in its stream, from 0.
pub type Revision = u64;

/// The revision of the last event folded into a state; `None` when none was (stored as −1).
///
/// `Option`'s own order is the right one: `None` is older than every revision.
pub type Version = Option<Revision>;

/// The revision that follows `version`: where the next event of the stream stands.
pub fn next_after(version: Version) -> Revision {
    version.map_or(0, |v| v + 1)
}

/// One event as a read of its stream gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// The stream that the event was appended to, never a `$ce-` stream that links to it.
    pub stream: Arc<str>,
    /// Its number in that stream.
    pub revision: Revision,
    /// Its id, unique in the stream.
    pub id: Uuid,
    /// Its event type. Upcasting may rename it.
    pub kind: Arc<str>,
    /// Whether it was appended as `application/json`.
    pub json: bool,
    /// Its body. Upcasting may reshape it.
    pub data: Bytes,
    /// Its metadata, verbatim; empty when there is none.
    pub metadata: Bytes,
    /// When EventStoreDB wrote it (100 ns precision).
    pub created: DateTime<Utc>,
}

/// What the events of a stream are in Rust: a plain serde enum whose variant names are event types.
///
/// `#[serde(rename)]`, `alias` and `other` work; without `#[serde(other)]` an unknown type is
/// poison and quarantines its stream.
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Version of the events' shape, written to the metadata of appended events as `schema`.
    const SCHEMA: u32 = 1;

    /// Brings an event written by older code to today's type and shape. Runs on every read path
    /// before decoding: deliveries, gap reads, replays and command tails alike.
    fn upcast(_old: &mut RawEvent) {}
}

/// An event's type and body as they are appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBody {
    /// Its event type.
    pub kind: Arc<str>,
    /// Its body, JSON.
    pub data: Bytes,
}

/// A decoded event with what its stream says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded<E> {
    /// The decoded event.
    pub event: E,
    /// The stream that it was appended to.
    pub stream: Arc<str>,
    /// Its number in that stream.
    pub revision: Revision,
    /// Its id.
    pub id: Uuid,
    /// Its event type, after upcasting.
    pub kind: Arc<str>,
    /// Its metadata, verbatim; [`Self::metadata`] reads it.
    pub metadata: Bytes,
    /// When EventStoreDB wrote it.
    pub created: DateTime<Utc>,
}

impl<E> Recorded<E> {
    /// The part of the stream name after the first `-`: the aggregate's id.
    pub fn aggregate_id(&self) -> &str {
        self.stream.split_once('-').map_or(&*self.stream, |(_, id)| id)
    }

    /// What the metadata says: what the event belongs to, what caused it, who asked for it.
    pub fn metadata(&self) -> Metadata {
        Metadata::parse(&self.metadata)
    }

    /// The metadata as `T`; `None` when it is empty or does not decode.
    pub fn metadata_as<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.metadata).ok()
    }
}
