//! The messages of the protocol that are not about groups. Keeps: field numbers and types are the
//! protocol's.
//!
//! In requests a `oneof` is written as optional fields: on the wire it is the same, and of several
//! that a client sends the service takes the first that it knows.

use bytes::Bytes;

pub(super) use super::persistent::wire::{
    Empty, Expression, MapEntry, StreamIdentifier, UuidOption, WirePosition as Position, WireUuid,
};

/// `streams.ReadReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadReq {
    #[prost(message, optional, tag = "1")]
    pub(super) options: Option<ReadOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadOptions {
    #[prost(message, optional, tag = "1")]
    pub(super) stream: Option<StreamOptions>,
    #[prost(message, optional, tag = "2")]
    pub(super) all: Option<AllOptions>,
    /// Forwards 0, Backwards 1.
    #[prost(int32, tag = "3")]
    pub(super) direction: i32,
    #[prost(bool, tag = "4")]
    pub(super) resolve_links: bool,
    #[prost(uint64, optional, tag = "5")]
    pub(super) count: Option<u64>,
    #[prost(message, optional, tag = "6")]
    pub(super) subscription: Option<Empty>,
    #[prost(message, optional, tag = "7")]
    pub(super) filter: Option<FilterOptions>,
    #[prost(message, optional, tag = "8")]
    pub(super) no_filter: Option<Empty>,
    #[prost(message, optional, tag = "9")]
    pub(super) uuid: Option<UuidOption>,
    #[prost(message, optional, tag = "10")]
    pub(super) control: Option<ControlOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StreamOptions {
    #[prost(message, optional, tag = "1")]
    pub(super) stream: Option<StreamIdentifier>,
    #[prost(uint64, optional, tag = "2")]
    pub(super) revision: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub(super) start: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub(super) end: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AllOptions {
    #[prost(message, optional, tag = "1")]
    pub(super) position: Option<Position>,
    #[prost(message, optional, tag = "2")]
    pub(super) start: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub(super) end: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FilterOptions {
    #[prost(message, optional, tag = "1")]
    pub(super) stream: Option<Expression>,
    #[prost(message, optional, tag = "2")]
    pub(super) event_type: Option<Expression>,
    #[prost(uint32, optional, tag = "3")]
    pub(super) max: Option<u32>,
    #[prost(message, optional, tag = "4")]
    pub(super) count: Option<Empty>,
    #[prost(uint32, tag = "5")]
    pub(super) checkpoint_interval_multiplier: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct ControlOption {
    #[prost(uint32, tag = "1")]
    pub(super) compatibility: u32,
}

/// `streams.ReadResp`, but for its events, which [`super::encode`] writes.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadResp {
    #[prost(message, optional, tag = "2")]
    pub(super) confirmation: Option<Confirmation>,
    #[prost(message, optional, tag = "3")]
    pub(super) checkpoint: Option<Checkpoint>,
    #[prost(message, optional, tag = "4")]
    pub(super) stream_not_found: Option<NotFound>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) first_stream_position: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub(super) last_stream_position: Option<u64>,
    #[prost(message, optional, tag = "8")]
    pub(super) caught_up: Option<CaughtUp>,
}

/// `streams.ReadResp.Checkpoint`; its time since 24.10.5.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Checkpoint {
    #[prost(uint64, tag = "1")]
    pub(super) commit: u64,
    #[prost(uint64, tag = "2")]
    pub(super) prepare: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) at: Option<Time>,
}

/// `streams.ReadResp.CaughtUp`; its content since 24.10.5.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct CaughtUp {
    #[prost(message, optional, tag = "1")]
    pub(super) at: Option<Time>,
    #[prost(int64, optional, tag = "2")]
    pub(super) revision: Option<i64>,
    #[prost(message, optional, tag = "3")]
    pub(super) position: Option<Position>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Confirmation {
    #[prost(string, tag = "1")]
    pub(super) subscription_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NotFound {
    #[prost(message, optional, tag = "1")]
    pub(super) stream: Option<StreamIdentifier>,
}

/// `streams.AppendReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AppendReq {
    #[prost(message, optional, tag = "1")]
    pub(super) options: Option<ExpectedOptions>,
    #[prost(message, optional, tag = "2")]
    pub(super) message: Option<ProposedMessage>,
}

/// The options of an append, a deletion, a tombstone, and, with its deadlines, of a batch.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExpectedOptions {
    #[prost(message, optional, tag = "1")]
    pub(super) stream: Option<StreamIdentifier>,
    #[prost(uint64, optional, tag = "2")]
    pub(super) revision: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub(super) no_stream: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub(super) any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub(super) stream_exists: Option<Empty>,
    /// Of a batch: until when, by the client's clock.
    #[prost(message, optional, tag = "6")]
    pub(super) until: Option<Time>,
    /// Of a batch: how long.
    #[prost(message, optional, tag = "7")]
    pub(super) within: Option<Time>,
}

/// `google.protobuf.Timestamp` and `google.protobuf.Duration`, whose fields are the same.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ProposedMessage {
    #[prost(message, optional, tag = "1")]
    pub(super) id: Option<WireUuid>,
    #[prost(message, repeated, tag = "2")]
    pub(super) metadata: Vec<MapEntry>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) custom_metadata: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) data: Bytes,
}

/// `streams.AppendResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AppendResp {
    #[prost(message, optional, tag = "1")]
    pub(super) success: Option<AppendSuccess>,
    #[prost(message, optional, tag = "2")]
    pub(super) wrong_expected_version: Option<AppendWrong>,
}

/// Of an append and of a batch alike.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AppendSuccess {
    #[prost(uint64, optional, tag = "1")]
    pub(super) current_revision: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub(super) no_stream: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub(super) position: Option<Position>,
    #[prost(message, optional, tag = "4")]
    pub(super) no_position: Option<Empty>,
}

/// Tags 1 to 5 are for clients from before 20.6.1.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AppendWrong {
    #[prost(uint64, optional, tag = "1")]
    pub(super) old_current: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub(super) old_current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "3")]
    pub(super) old_expected: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub(super) old_any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub(super) old_stream_exists: Option<Empty>,
    #[prost(uint64, optional, tag = "6")]
    pub(super) current: Option<u64>,
    #[prost(message, optional, tag = "7")]
    pub(super) current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "8")]
    pub(super) expected: Option<u64>,
    #[prost(message, optional, tag = "9")]
    pub(super) any: Option<Empty>,
    #[prost(message, optional, tag = "10")]
    pub(super) stream_exists: Option<Empty>,
    #[prost(message, optional, tag = "11")]
    pub(super) no_stream: Option<Empty>,
}

/// `streams.BatchAppendReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BatchAppendReq {
    #[prost(message, optional, tag = "1")]
    pub(super) correlation_id: Option<WireUuid>,
    #[prost(message, optional, tag = "2")]
    pub(super) options: Option<ExpectedOptions>,
    #[prost(message, repeated, tag = "3")]
    pub(super) messages: Vec<ProposedMessage>,
    #[prost(bool, tag = "4")]
    pub(super) is_final: bool,
}

/// `streams.BatchAppendResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BatchAppendResp {
    #[prost(message, optional, tag = "1")]
    pub(super) correlation_id: Option<WireUuid>,
    #[prost(message, optional, tag = "2")]
    pub(super) error: Option<RpcStatus>,
    #[prost(message, optional, tag = "3")]
    pub(super) success: Option<AppendSuccess>,
    #[prost(message, optional, tag = "4")]
    pub(super) stream: Option<StreamIdentifier>,
}

/// EventStoreDB's own `google.rpc.Status`: one detail, not a list.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(message, optional, tag = "3")]
    pub(super) details: Option<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AnyMessage {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

/// `event_store.client.WrongExpectedVersion`, a batch's detail.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WrongDetail {
    #[prost(uint64, optional, tag = "1")]
    pub(super) current: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub(super) current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "3")]
    pub(super) expected: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub(super) any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub(super) stream_exists: Option<Empty>,
    #[prost(message, optional, tag = "6")]
    pub(super) no_stream: Option<Empty>,
}

/// `event_store.client.MaximumAppendSizeExceeded`, a batch's detail.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MaximumSizeDetail {
    #[prost(uint32, tag = "1")]
    pub(super) max: u32,
}

/// `event_store.client.BadRequest`, a batch's detail.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BadRequestDetail {
    #[prost(string, tag = "1")]
    pub(super) message: String,
}

/// `streams.DeleteReq` and `streams.TombstoneReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteReq {
    #[prost(message, optional, tag = "1")]
    pub(super) options: Option<ExpectedOptions>,
}

/// `streams.DeleteResp` and `streams.TombstoneResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteResp {
    #[prost(message, optional, tag = "1")]
    pub(super) position: Option<Position>,
    #[prost(message, optional, tag = "2")]
    pub(super) no_position: Option<Empty>,
}

/// `server_features.SupportedMethods`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SupportedMethods {
    #[prost(message, repeated, tag = "1")]
    pub(super) methods: Vec<SupportedMethod>,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SupportedMethod {
    #[prost(string, tag = "1")]
    pub(super) method: String,
    #[prost(string, tag = "2")]
    pub(super) service: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) features: Vec<String>,
}

/// `gossip.ClusterInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ClusterInfo {
    #[prost(message, repeated, tag = "1")]
    pub(super) members: Vec<MemberInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MemberInfo {
    #[prost(message, optional, tag = "1")]
    pub(super) instance_id: Option<WireUuid>,
    /// Ticks of 100 ns since the Unix epoch.
    #[prost(int64, tag = "2")]
    pub(super) time_stamp: i64,
    /// Follower 6, Leader 8.
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    #[prost(bool, tag = "4")]
    pub(super) is_alive: bool,
    #[prost(message, optional, tag = "5")]
    pub(super) http_end_point: Option<EndPoint>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EndPoint {
    #[prost(string, tag = "1")]
    pub(super) address: String,
    #[prost(uint32, tag = "2")]
    pub(super) port: u32,
}

/// `monitoring.StatsReq`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct StatsReq {
    #[prost(bool, tag = "1")]
    pub(super) use_metadata: bool,
    #[prost(uint64, tag = "4")]
    pub(super) refresh_ms: u64,
}

/// `monitoring.StatsResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatsResp {
    #[prost(message, repeated, tag = "1")]
    pub(super) stats: Vec<MapEntry>,
}
