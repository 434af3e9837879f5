//! The messages of EventStoreDB's protocol: the one definition for the server and for the raw clients
//! of tests. This file has what several services share, the others have a service each.
//! Invariant: field numbers and types are the protocol's.
//!
//! They are `prost` derives and not `.proto` files. The files would need a compiler for them among the
//! build dependencies (protox and prost-build: some twenty crates more, and a build script), and what it
//! generates is not what the server wants: a `oneof` as an enum hides that a faulty client
//! sent two cases, a map loses the order of its entries and a key that comes twice.
//!
//! So a `oneof` is written as optional fields, and a map as entries: on the wire both are the same. Of
//! several cases that a client sends the server takes the first that it knows. A name begins with
//! `Wire` where a service has a type of its own for the same thing.
//!
//! Public for the tests of this workspace alone; no promise is made about it. Events are written by
//! `encode`, whose tests read them with these messages.

#![allow(missing_docs, reason = "the protocol's own documents say what a field means")]

use bytes::Bytes;
use uuid::Uuid;

pub mod groups;
pub mod node;
pub mod projections;
pub mod streams;

/// `event_store.client.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

/// `event_store.client.UUID`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireUuid {
    #[prost(message, optional, tag = "1")]
    pub structured: Option<Halves>,
    #[prost(string, optional, tag = "2")]
    pub text: Option<String>,
}

/// A UUID as two big-endian halves.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Halves {
    #[prost(int64, tag = "1")]
    pub most: i64,
    #[prost(int64, tag = "2")]
    pub least: i64,
}

impl WireUuid {
    /// As text, or as two halves.
    pub fn of(id: Uuid, text: bool) -> Self {
        if text {
            return Self {
                structured: None,
                text: Some(id.to_string()),
            };
        }
        let (most, least) = id.as_u64_pair();
        Self {
            structured: Some(Halves {
                most: most as i64,
                least: least as i64,
            }),
            text: None,
        }
    }

    /// Either form; nothing when it is neither.
    pub fn id(&self) -> Option<Uuid> {
        match (&self.structured, &self.text) {
            (Some(halves), _) => Some(Uuid::from_u64_pair(halves.most as u64, halves.least as u64)),
            (None, Some(text)) => Uuid::parse_str(text).ok(),
            (None, None) => None,
        }
    }
}

/// `event_store.client.StreamIdentifier`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamIdentifier {
    #[prost(bytes = "bytes", tag = "3")]
    pub name: Bytes,
}

impl StreamIdentifier {
    pub fn new(name: &str) -> Self {
        Self {
            name: Bytes::copy_from_slice(name.as_bytes()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct UuidOption {
    #[prost(message, optional, tag = "1")]
    pub structured: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub text: Option<Empty>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Position {
    #[prost(uint64, tag = "1")]
    pub commit: u64,
    #[prost(uint64, tag = "2")]
    pub prepare: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamOptions {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamIdentifier>,
    #[prost(uint64, optional, tag = "2")]
    pub revision: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub start: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub end: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Expression {
    #[prost(string, tag = "1")]
    pub regex: String,
    #[prost(string, repeated, tag = "2")]
    pub prefix: Vec<String>,
}

/// The filter of `$all`, of a read, a subscription or a group; the window and the interval are of
/// subscriptions only.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FilterOptions {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<Expression>,
    #[prost(message, optional, tag = "2")]
    pub event_type: Option<Expression>,
    #[prost(uint32, optional, tag = "3")]
    pub max: Option<u32>,
    #[prost(message, optional, tag = "4")]
    pub count: Option<Empty>,
    #[prost(uint32, tag = "5")]
    pub checkpoint_interval_multiplier: u32,
}

/// An entry of a `map<string, string>`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MapEntry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `google.protobuf.Timestamp` and `google.protobuf.Duration`, whose fields are the same.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Time {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Confirmation {
    #[prost(string, tag = "1")]
    pub subscription_id: String,
}

/// `ReadResp.ReadEvent`, of `Streams` and of groups: its retries are of groups only.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadEvent {
    #[prost(message, optional, tag = "1")]
    pub event: Option<RecordedEvent>,
    #[prost(message, optional, tag = "2")]
    pub link: Option<RecordedEvent>,
    #[prost(uint64, optional, tag = "3")]
    pub commit_position: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub no_position: Option<Empty>,
    #[prost(int32, optional, tag = "5")]
    pub retry_count: Option<i32>,
}

/// `ReadResp.ReadEvent.RecordedEvent`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RecordedEvent {
    #[prost(message, optional, tag = "1")]
    pub id: Option<WireUuid>,
    #[prost(message, optional, tag = "2")]
    pub stream: Option<StreamIdentifier>,
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    #[prost(uint64, tag = "4")]
    pub prepare_position: u64,
    #[prost(uint64, tag = "5")]
    pub commit_position: u64,
    #[prost(message, repeated, tag = "6")]
    pub metadata: Vec<MapEntry>,
    #[prost(bytes = "bytes", tag = "7")]
    pub custom_metadata: Bytes,
    #[prost(bytes = "bytes", tag = "8")]
    pub data: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_come_in_both_forms() {
        let id = Uuid::from_u128(0xfedc_ba98_7654_3210_0123_4567_89ab_cdef);
        for text in [true, false] {
            assert_eq!(WireUuid::of(id, text).id(), Some(id));
        }
        assert_eq!(WireUuid::default().id(), None);
        let junk = WireUuid {
            text: Some("x".to_owned()),
            structured: None,
        };
        assert_eq!(junk.id(), None);
    }
}
