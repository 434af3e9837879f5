//! `event_store.client.streams`: reads, subscriptions, appends, deletions.

use bytes::Bytes;

use super::{
    Confirmation, Empty, FilterOptions, MapEntry, Position, ReadEvent, StreamIdentifier, StreamOptions, Time,
    UuidOption, WireUuid,
};

/// `streams.ReadReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<ReadOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadOptions {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamOptions>,
    #[prost(message, optional, tag = "2")]
    pub all: Option<AllOptions>,
    /// Forwards 0, Backwards 1.
    #[prost(int32, tag = "3")]
    pub direction: i32,
    #[prost(bool, tag = "4")]
    pub resolve_links: bool,
    #[prost(uint64, optional, tag = "5")]
    pub count: Option<u64>,
    #[prost(message, optional, tag = "6")]
    pub subscription: Option<Empty>,
    #[prost(message, optional, tag = "7")]
    pub filter: Option<FilterOptions>,
    #[prost(message, optional, tag = "8")]
    pub no_filter: Option<Empty>,
    #[prost(message, optional, tag = "9")]
    pub uuid: Option<UuidOption>,
    #[prost(message, optional, tag = "10")]
    pub control: Option<ControlOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AllOptions {
    #[prost(message, optional, tag = "1")]
    pub position: Option<Position>,
    #[prost(message, optional, tag = "2")]
    pub start: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub end: Option<Empty>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ControlOption {
    #[prost(uint32, tag = "1")]
    pub compatibility: u32,
}

/// `streams.ReadResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadResp {
    #[prost(message, optional, tag = "1")]
    pub event: Option<ReadEvent>,
    #[prost(message, optional, tag = "2")]
    pub confirmation: Option<Confirmation>,
    #[prost(message, optional, tag = "3")]
    pub checkpoint: Option<Checkpoint>,
    #[prost(message, optional, tag = "4")]
    pub stream_not_found: Option<NotFound>,
    #[prost(uint64, optional, tag = "5")]
    pub first_stream_position: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub last_stream_position: Option<u64>,
    #[prost(message, optional, tag = "7")]
    pub last_all_position: Option<Position>,
    #[prost(message, optional, tag = "8")]
    pub caught_up: Option<CaughtUp>,
    #[prost(message, optional, tag = "9")]
    pub fell_behind: Option<CaughtUp>,
}

/// `streams.ReadResp.Checkpoint`; its time since 24.10.5.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Checkpoint {
    #[prost(uint64, tag = "1")]
    pub commit: u64,
    #[prost(uint64, tag = "2")]
    pub prepare: u64,
    #[prost(message, optional, tag = "3")]
    pub at: Option<Time>,
}

/// `streams.ReadResp.CaughtUp` and `FellBehind`; their content since 24.10.5.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct CaughtUp {
    #[prost(message, optional, tag = "1")]
    pub at: Option<Time>,
    #[prost(int64, optional, tag = "2")]
    pub revision: Option<i64>,
    #[prost(message, optional, tag = "3")]
    pub position: Option<Position>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NotFound {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamIdentifier>,
}

/// `streams.AppendReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AppendReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<AppendOptions>,
    #[prost(message, optional, tag = "2")]
    pub message: Option<ProposedMessage>,
}

/// The options of an append, a deletion, a tombstone, and, with its deadlines, of a batch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AppendOptions {
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamIdentifier>,
    #[prost(uint64, optional, tag = "2")]
    pub revision: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub no_stream: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub stream_exists: Option<Empty>,
    /// Of a batch: until when, by the client's clock.
    #[prost(message, optional, tag = "6")]
    pub until: Option<Time>,
    /// Of a batch: how long.
    #[prost(message, optional, tag = "7")]
    pub within: Option<Time>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ProposedMessage {
    #[prost(message, optional, tag = "1")]
    pub id: Option<WireUuid>,
    #[prost(message, repeated, tag = "2")]
    pub metadata: Vec<MapEntry>,
    #[prost(bytes = "bytes", tag = "3")]
    pub custom_metadata: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// `streams.AppendResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AppendResp {
    #[prost(message, optional, tag = "1")]
    pub success: Option<AppendSuccess>,
    #[prost(message, optional, tag = "2")]
    pub wrong_expected_version: Option<AppendWrong>,
}

/// Of an append and of a batch alike.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AppendSuccess {
    #[prost(uint64, optional, tag = "1")]
    pub current_revision: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub no_stream: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub position: Option<Position>,
    #[prost(message, optional, tag = "4")]
    pub no_position: Option<Empty>,
}

/// Tags 1 to 5 are for clients from before 20.6.1.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AppendWrong {
    #[prost(uint64, optional, tag = "1")]
    pub old_current: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub old_current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "3")]
    pub old_expected: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub old_any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub old_stream_exists: Option<Empty>,
    #[prost(uint64, optional, tag = "6")]
    pub current: Option<u64>,
    #[prost(message, optional, tag = "7")]
    pub current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "8")]
    pub expected: Option<u64>,
    #[prost(message, optional, tag = "9")]
    pub any: Option<Empty>,
    #[prost(message, optional, tag = "10")]
    pub stream_exists: Option<Empty>,
    #[prost(message, optional, tag = "11")]
    pub no_stream: Option<Empty>,
}

/// `streams.BatchAppendReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BatchAppendReq {
    #[prost(message, optional, tag = "1")]
    pub correlation_id: Option<WireUuid>,
    #[prost(message, optional, tag = "2")]
    pub options: Option<AppendOptions>,
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<ProposedMessage>,
    #[prost(bool, tag = "4")]
    pub is_final: bool,
}

/// `streams.BatchAppendResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BatchAppendResp {
    #[prost(message, optional, tag = "1")]
    pub correlation_id: Option<WireUuid>,
    #[prost(message, optional, tag = "2")]
    pub error: Option<RpcStatus>,
    #[prost(message, optional, tag = "3")]
    pub success: Option<AppendSuccess>,
    #[prost(message, optional, tag = "4")]
    pub stream: Option<StreamIdentifier>,
}

/// EventStoreDB's own `google.rpc.Status`: one detail, not a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, optional, tag = "3")]
    pub details: Option<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnyMessage {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `event_store.client.WrongExpectedVersion`, a batch's detail.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WrongDetail {
    #[prost(uint64, optional, tag = "1")]
    pub current: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "3")]
    pub expected: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub stream_exists: Option<Empty>,
    #[prost(message, optional, tag = "6")]
    pub no_stream: Option<Empty>,
}

/// `event_store.client.MaximumAppendSizeExceeded`, a batch's detail.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MaximumSizeDetail {
    #[prost(uint32, tag = "1")]
    pub max: u32,
}

/// `event_store.client.BadRequest`, a batch's detail.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BadRequestDetail {
    #[prost(string, tag = "1")]
    pub message: String,
}

/// `streams.DeleteReq` and `streams.TombstoneReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<AppendOptions>,
}

/// `streams.DeleteResp` and `streams.TombstoneResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteResp {
    #[prost(message, optional, tag = "1")]
    pub position: Option<Position>,
    #[prost(message, optional, tag = "2")]
    pub no_position: Option<Empty>,
}
