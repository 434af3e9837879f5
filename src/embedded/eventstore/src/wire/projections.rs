//! `event_store.client.projections`, as far as the standard projections are served.

use super::Empty;

/// `EnableReq`, `DisableReq` and `ResetReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SwitchReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<SwitchOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SwitchOptions {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Without, a projection that is disabled is aborted.
    #[prost(bool, tag = "2")]
    pub write_checkpoint: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatisticsReq {
    #[prost(message, optional, tag = "1")]
    pub options: Option<StatisticsOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatisticsOptions {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub all: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub transient: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub continuous: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub one_time: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatisticsResp {
    #[prost(message, optional, tag = "1")]
    pub details: Option<Details>,
}

/// What is told of a projection; what the server always leaves 0 is left out, which is the same on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Details {
    #[prost(string, tag = "4")]
    pub effective_name: String,
    #[prost(string, tag = "8")]
    pub status: String,
    #[prost(string, tag = "10")]
    pub name: String,
    #[prost(string, tag = "11")]
    pub mode: String,
    #[prost(string, tag = "12")]
    pub position: String,
    #[prost(float, tag = "13")]
    pub progress: f32,
    #[prost(string, tag = "14")]
    pub last_checkpoint: String,
}
