//! What a node says of itself: `server_features`, `gossip` and `monitoring`.

use super::{MapEntry, WireUuid};

/// `server_features.SupportedMethods`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SupportedMethods {
    #[prost(message, repeated, tag = "1")]
    pub methods: Vec<SupportedMethod>,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SupportedMethod {
    #[prost(string, tag = "1")]
    pub method: String,
    #[prost(string, tag = "2")]
    pub service: String,
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
}

/// `gossip.ClusterInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterInfo {
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<MemberInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberInfo {
    #[prost(message, optional, tag = "1")]
    pub instance_id: Option<WireUuid>,
    /// Ticks of 100 ns since the Unix epoch.
    #[prost(int64, tag = "2")]
    pub time_stamp: i64,
    /// Follower 6, Leader 8.
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(bool, tag = "4")]
    pub is_alive: bool,
    #[prost(message, optional, tag = "5")]
    pub http_end_point: Option<EndPoint>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EndPoint {
    #[prost(string, tag = "1")]
    pub address: String,
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// `monitoring.StatsReq`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct StatsReq {
    #[prost(bool, tag = "1")]
    pub use_metadata: bool,
    #[prost(uint64, tag = "4")]
    pub refresh_ms: u64,
}

/// `monitoring.StatsResp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsResp {
    #[prost(message, repeated, tag = "1")]
    pub stats: Vec<MapEntry>,
}
