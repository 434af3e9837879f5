//! The messages of `event_store.client.persistent_subscriptions`, and the few shared ones they use.
//! Keeps: field numbers and types are the protocol's.
//!
//! A `oneof` is written as optional fields: on the wire it is the same, and of several that a client
//! sends the service takes the first that it knows. A nested message that is encoded beforehand is a
//! bytes field, which is the same on the wire, too.

use bytes::Bytes;
use uuid::Uuid;

/// `event_store.client.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// `event_store.client.UUID`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireUuid {
    #[prost(message, optional, tag = "1")]
    pub(crate) structured: Option<Halves>,
    #[prost(string, optional, tag = "2")]
    pub(crate) text: Option<String>,
}

/// A UUID as two big-endian halves.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Halves {
    #[prost(int64, tag = "1")]
    pub(crate) most: i64,
    #[prost(int64, tag = "2")]
    pub(crate) least: i64,
}

impl WireUuid {
    /// As text, or as two halves.
    pub(crate) fn of(id: Uuid, text: bool) -> Self {
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
    pub(crate) fn id(&self) -> Option<Uuid> {
        match (&self.structured, &self.text) {
            (Some(halves), _) => Some(Uuid::from_u64_pair(halves.most as u64, halves.least as u64)),
            (None, Some(text)) => Uuid::parse_str(text).ok(),
            (None, None) => None,
        }
    }
}

/// `event_store.client.StreamIdentifier`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StreamIdentifier {
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) name: Bytes,
}

/// What a consumer sends.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<ReadOptions>,
    #[prost(message, optional, tag = "2")]
    pub(crate) ack: Option<Ack>,
    #[prost(message, optional, tag = "3")]
    pub(crate) nack: Option<NackReq>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "5")]
    pub(crate) all: Option<Empty>,
    #[prost(string, tag = "2")]
    pub(crate) group: String,
    #[prost(int32, tag = "3")]
    pub(crate) buffer_size: i32,
    #[prost(message, optional, tag = "4")]
    pub(crate) uuid: Option<UuidOption>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct UuidOption {
    #[prost(message, optional, tag = "1")]
    pub(crate) structured: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub(crate) text: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ack {
    #[prost(message, repeated, tag = "2")]
    pub(crate) ids: Vec<WireUuid>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NackReq {
    #[prost(message, repeated, tag = "2")]
    pub(crate) ids: Vec<WireUuid>,
    /// Unknown 0, Park 1, Retry 2, Skip 3, Stop 4.
    #[prost(int32, tag = "3")]
    pub(crate) action: i32,
    #[prost(string, tag = "4")]
    pub(crate) reason: String,
}

/// What a consumer gets.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) event: Option<ReadEvent>,
    #[prost(message, optional, tag = "2")]
    pub(crate) confirmation: Option<Confirmation>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Confirmation {
    #[prost(string, tag = "1")]
    pub(crate) subscription_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadEvent {
    /// An encoded `RecordedEvent`.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub(crate) event: Option<Bytes>,
    /// An encoded `RecordedEvent`.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(crate) link: Option<Bytes>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) commit_position: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub(crate) no_position: Option<Empty>,
    #[prost(int32, optional, tag = "5")]
    pub(crate) retry_count: Option<i32>,
}

/// `ReadResp.ReadEvent.RecordedEvent`, as a client reads it; the server writes it by hand.
#[cfg(test)]
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireRecord {
    #[prost(message, optional, tag = "1")]
    pub(crate) id: Option<WireUuid>,
    #[prost(message, optional, tag = "2")]
    pub(crate) stream: Option<StreamIdentifier>,
    #[prost(uint64, tag = "3")]
    pub(crate) revision: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) prepare_position: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) commit_position: u64,
    #[prost(message, repeated, tag = "6")]
    pub(crate) metadata: Vec<MapEntry>,
    #[prost(bytes = "bytes", tag = "7")]
    pub(crate) custom_metadata: Bytes,
    #[prost(bytes = "bytes", tag = "8")]
    pub(crate) data: Bytes,
}

/// An entry of a `map<string, string>`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MapEntry {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// `CreateReq` and `UpdateReq`, which differ only in what the second lacks.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ManageReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<ManageOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ManageOptions {
    #[prost(message, optional, tag = "4")]
    pub(crate) stream: Option<StreamOptions>,
    #[prost(message, optional, tag = "5")]
    pub(crate) all: Option<AllOptions>,
    /// From before groups on `$all`; clients fill it still.
    #[prost(message, optional, tag = "1")]
    pub(crate) old_stream: Option<StreamIdentifier>,
    #[prost(string, tag = "2")]
    pub(crate) group: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) settings: Option<WireSettings>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StreamOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<StreamIdentifier>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) revision: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub(crate) start: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub(crate) end: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AllOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) position: Option<WirePosition>,
    #[prost(message, optional, tag = "2")]
    pub(crate) start: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub(crate) end: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub(crate) filter: Option<WireFilter>,
    #[prost(message, optional, tag = "5")]
    pub(crate) no_filter: Option<Empty>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct WirePosition {
    #[prost(uint64, tag = "1")]
    pub(crate) commit: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) prepare: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireFilter {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<Expression>,
    #[prost(message, optional, tag = "2")]
    pub(crate) event_type: Option<Expression>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Expression {
    #[prost(string, tag = "1")]
    pub(crate) regex: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) prefix: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireSettings {
    #[prost(bool, tag = "1")]
    pub(crate) resolve_links: bool,
    #[prost(uint64, tag = "2")]
    pub(crate) old_revision: u64,
    #[prost(bool, tag = "3")]
    pub(crate) extra_statistics: bool,
    #[prost(int64, optional, tag = "4")]
    pub(crate) message_timeout_ticks: Option<i64>,
    #[prost(int32, tag = "5")]
    pub(crate) max_retry_count: i32,
    #[prost(int64, optional, tag = "6")]
    pub(crate) checkpoint_after_ticks: Option<i64>,
    #[prost(int32, tag = "7")]
    pub(crate) min_checkpoint_count: i32,
    #[prost(int32, tag = "8")]
    pub(crate) max_checkpoint_count: i32,
    #[prost(int32, tag = "9")]
    pub(crate) max_subscriber_count: i32,
    #[prost(int32, tag = "10")]
    pub(crate) live_buffer_size: i32,
    #[prost(int32, tag = "11")]
    pub(crate) read_batch_size: i32,
    #[prost(int32, tag = "12")]
    pub(crate) history_buffer_size: i32,
    /// `DispatchToSingle` 0, `RoundRobin` 1, `Pinned` 2.
    #[prost(int32, tag = "13")]
    pub(crate) named_strategy: i32,
    #[prost(int32, optional, tag = "14")]
    pub(crate) message_timeout_ms: Option<i32>,
    #[prost(int32, optional, tag = "15")]
    pub(crate) checkpoint_after_ms: Option<i32>,
    #[prost(string, tag = "16")]
    pub(crate) strategy: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeleteReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<DeleteOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeleteOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "3")]
    pub(crate) all: Option<Empty>,
    #[prost(string, tag = "2")]
    pub(crate) group: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InfoReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<InfoOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InfoOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "2")]
    pub(crate) all: Option<Empty>,
    #[prost(string, tag = "3")]
    pub(crate) group: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InfoResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<WireInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireInfo {
    #[prost(string, tag = "1")]
    pub(crate) event_source: String,
    #[prost(string, tag = "2")]
    pub(crate) group_name: String,
    #[prost(string, tag = "3")]
    pub(crate) status: String,
    #[prost(message, repeated, tag = "4")]
    pub(crate) connections: Vec<WireConnection>,
    #[prost(int32, tag = "5")]
    pub(crate) average_per_second: i32,
    #[prost(int64, tag = "6")]
    pub(crate) total_items: i64,
    #[prost(int64, tag = "7")]
    pub(crate) count_since_last_measurement: i64,
    #[prost(string, tag = "8")]
    pub(crate) last_checkpointed: String,
    #[prost(string, tag = "9")]
    pub(crate) last_known: String,
    #[prost(bool, tag = "10")]
    pub(crate) resolve_links: bool,
    #[prost(string, tag = "11")]
    pub(crate) start_from: String,
    #[prost(int32, tag = "12")]
    pub(crate) message_timeout_ms: i32,
    #[prost(bool, tag = "13")]
    pub(crate) extra_statistics: bool,
    #[prost(int32, tag = "14")]
    pub(crate) max_retry_count: i32,
    #[prost(int32, tag = "15")]
    pub(crate) live_buffer_size: i32,
    #[prost(int32, tag = "16")]
    pub(crate) buffer_size: i32,
    #[prost(int32, tag = "17")]
    pub(crate) read_batch_size: i32,
    #[prost(int32, tag = "18")]
    pub(crate) checkpoint_after_ms: i32,
    #[prost(int32, tag = "19")]
    pub(crate) min_checkpoint_count: i32,
    #[prost(int32, tag = "20")]
    pub(crate) max_checkpoint_count: i32,
    #[prost(int32, tag = "21")]
    pub(crate) read_buffer_count: i32,
    #[prost(int64, tag = "22")]
    pub(crate) live_buffer_count: i64,
    #[prost(int32, tag = "23")]
    pub(crate) retry_buffer_count: i32,
    #[prost(int32, tag = "24")]
    pub(crate) in_flight: i32,
    #[prost(int32, tag = "25")]
    pub(crate) outstanding: i32,
    #[prost(string, tag = "26")]
    pub(crate) strategy: String,
    #[prost(int32, tag = "27")]
    pub(crate) max_subscriber_count: i32,
    #[prost(int64, tag = "28")]
    pub(crate) parked: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireConnection {
    #[prost(string, tag = "1")]
    pub(crate) from: String,
    #[prost(string, tag = "2")]
    pub(crate) username: String,
    #[prost(int32, tag = "3")]
    pub(crate) average_per_second: i32,
    #[prost(int64, tag = "4")]
    pub(crate) total_items: i64,
    #[prost(int64, tag = "5")]
    pub(crate) count_since_last_measurement: i64,
    #[prost(message, repeated, tag = "6")]
    pub(crate) measurements: Vec<WireMeasurement>,
    #[prost(int32, tag = "7")]
    pub(crate) available_slots: i32,
    #[prost(int32, tag = "8")]
    pub(crate) in_flight: i32,
    #[prost(string, tag = "9")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireMeasurement {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(int64, tag = "2")]
    pub(crate) value: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReplayReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<ReplayOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReplayOptions {
    #[prost(string, tag = "1")]
    pub(crate) group: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "3")]
    pub(crate) all: Option<Empty>,
    #[prost(int64, optional, tag = "4")]
    pub(crate) stop_at: Option<i64>,
    #[prost(message, optional, tag = "5")]
    pub(crate) no_limit: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<ListOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) everything: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub(crate) of: Option<ListOf>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListOf {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "2")]
    pub(crate) all: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListResp {
    #[prost(message, repeated, tag = "1")]
    pub(crate) groups: Vec<WireInfo>,
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
