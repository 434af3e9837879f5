//! `event_store.client.persistent_subscriptions`: groups are made, consumed, looked at.

use super::{
    Confirmation, Empty, FilterOptions, Position, ReadEvent, StreamIdentifier, StreamOptions, UuidOption, WireUuid,
};

/// What a consumer sends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<ReadOptions>,
    #[prost(message, optional, tag = "2")]
    pub ack: Option<Ack>,
    #[prost(message, optional, tag = "3")]
    pub nack: Option<NackReq>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadOptions {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "5")]
    pub all: Option<Empty>,
    #[prost(string, tag = "2")]
    pub group: String,
    #[prost(int32, tag = "3")]
    pub buffer_size: i32,
    #[prost(message, optional, tag = "4")]
    pub uuid: Option<UuidOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ack {
    #[prost(message, repeated, tag = "2")]
    pub ids: Vec<WireUuid>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NackReq {
    #[prost(message, repeated, tag = "2")]
    pub ids: Vec<WireUuid>,
    /// Unknown 0, Park 1, Retry 2, Skip 3, Stop 4.
    #[prost(int32, tag = "3")]
    pub action: i32,
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// What a consumer gets.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadResp {
    #[prost(message, optional, tag = "1")]
    pub event: Option<ReadEvent>,
    #[prost(message, optional, tag = "2")]
    pub confirmation: Option<Confirmation>,
}

/// `CreateReq` and `UpdateReq`, which differ only in what the second lacks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ManageReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<ManageOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ManageOptions {
    #[prost(message, optional, tag = "4")]
    pub stream: Option<StreamOptions>,
    #[prost(message, optional, tag = "5")]
    pub all: Option<AllOptions>,
    /// From before groups on `$all`; clients fill it still.
    #[prost(message, optional, tag = "1")]
    pub old_stream: Option<StreamIdentifier>,
    #[prost(string, tag = "2")]
    pub group: String,
    #[prost(message, optional, tag = "3")]
    pub settings: Option<WireSettings>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AllOptions {
    #[prost(message, optional, tag = "1")]
    pub position: Option<Position>,
    #[prost(message, optional, tag = "2")]
    pub start: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub end: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub filter: Option<FilterOptions>,
    #[prost(message, optional, tag = "5")]
    pub no_filter: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WireSettings {
    #[prost(bool, tag = "1")]
    pub resolve_links: bool,
    #[prost(uint64, tag = "2")]
    pub old_revision: u64,
    #[prost(bool, tag = "3")]
    pub extra_statistics: bool,
    #[prost(int64, optional, tag = "4")]
    pub message_timeout_ticks: Option<i64>,
    #[prost(int32, tag = "5")]
    pub max_retry_count: i32,
    #[prost(int64, optional, tag = "6")]
    pub checkpoint_after_ticks: Option<i64>,
    #[prost(int32, tag = "7")]
    pub min_checkpoint_count: i32,
    #[prost(int32, tag = "8")]
    pub max_checkpoint_count: i32,
    #[prost(int32, tag = "9")]
    pub max_subscriber_count: i32,
    #[prost(int32, tag = "10")]
    pub live_buffer_size: i32,
    #[prost(int32, tag = "11")]
    pub read_batch_size: i32,
    #[prost(int32, tag = "12")]
    pub history_buffer_size: i32,
    /// `DispatchToSingle` 0, `RoundRobin` 1, `Pinned` 2.
    #[prost(int32, tag = "13")]
    pub named_strategy: i32,
    #[prost(int32, optional, tag = "14")]
    pub message_timeout_ms: Option<i32>,
    #[prost(int32, optional, tag = "15")]
    pub checkpoint_after_ms: Option<i32>,
    #[prost(string, tag = "16")]
    pub strategy: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<DeleteOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteOptions {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "3")]
    pub all: Option<Empty>,
    #[prost(string, tag = "2")]
    pub group: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<InfoOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoOptions {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "2")]
    pub all: Option<Empty>,
    #[prost(string, tag = "3")]
    pub group: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResp {
    #[prost(message, optional, tag = "1")]
    pub info: Option<WireInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WireInfo {
    #[prost(string, tag = "1")]
    pub event_source: String,
    #[prost(string, tag = "2")]
    pub group_name: String,
    #[prost(string, tag = "3")]
    pub status: String,
    #[prost(message, repeated, tag = "4")]
    pub connections: Vec<WireConnection>,
    #[prost(int32, tag = "5")]
    pub average_per_second: i32,
    #[prost(int64, tag = "6")]
    pub total_items: i64,
    #[prost(int64, tag = "7")]
    pub count_since_last_measurement: i64,
    #[prost(string, tag = "8")]
    pub last_checkpointed: String,
    #[prost(string, tag = "9")]
    pub last_known: String,
    #[prost(bool, tag = "10")]
    pub resolve_links: bool,
    #[prost(string, tag = "11")]
    pub start_from: String,
    #[prost(int32, tag = "12")]
    pub message_timeout_ms: i32,
    #[prost(bool, tag = "13")]
    pub extra_statistics: bool,
    #[prost(int32, tag = "14")]
    pub max_retry_count: i32,
    #[prost(int32, tag = "15")]
    pub live_buffer_size: i32,
    #[prost(int32, tag = "16")]
    pub buffer_size: i32,
    #[prost(int32, tag = "17")]
    pub read_batch_size: i32,
    #[prost(int32, tag = "18")]
    pub checkpoint_after_ms: i32,
    #[prost(int32, tag = "19")]
    pub min_checkpoint_count: i32,
    #[prost(int32, tag = "20")]
    pub max_checkpoint_count: i32,
    #[prost(int32, tag = "21")]
    pub read_buffer_count: i32,
    #[prost(int64, tag = "22")]
    pub live_buffer_count: i64,
    #[prost(int32, tag = "23")]
    pub retry_buffer_count: i32,
    #[prost(int32, tag = "24")]
    pub in_flight: i32,
    #[prost(int32, tag = "25")]
    pub outstanding: i32,
    #[prost(string, tag = "26")]
    pub strategy: String,
    #[prost(int32, tag = "27")]
    pub max_subscriber_count: i32,
    #[prost(int64, tag = "28")]
    pub parked: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WireConnection {
    #[prost(string, tag = "1")]
    pub from: String,
    #[prost(string, tag = "2")]
    pub username: String,
    #[prost(int32, tag = "3")]
    pub average_per_second: i32,
    #[prost(int64, tag = "4")]
    pub total_items: i64,
    #[prost(int64, tag = "5")]
    pub count_since_last_measurement: i64,
    #[prost(message, repeated, tag = "6")]
    pub measurements: Vec<WireMeasurement>,
    #[prost(int32, tag = "7")]
    pub available_slots: i32,
    #[prost(int32, tag = "8")]
    pub in_flight: i32,
    #[prost(string, tag = "9")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WireMeasurement {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(int64, tag = "2")]
    pub value: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReplayReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<ReplayOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReplayOptions {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(message, optional, tag = "2")]
    pub stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "3")]
    pub all: Option<Empty>,
    #[prost(int64, optional, tag = "4")]
    pub stop_at: Option<i64>,
    #[prost(message, optional, tag = "5")]
    pub no_limit: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<ListOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListOptions {
    #[prost(message, optional, tag = "1")]
    pub everything: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub of: Option<ListOf>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListOf {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamIdentifier>,
    #[prost(message, optional, tag = "2")]
    pub all: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResp {
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<WireInfo>,
}
