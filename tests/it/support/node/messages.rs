//! The messages of EventStoreDB's protocol, as far as [`super::Node`] reads or writes them.
//!
//! Of a `oneof` each case is an optional field of its own: the same bytes on the wire.

use std::collections::HashMap;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Structured {
    #[prost(int64, tag = "1")]
    pub(crate) most: i64,
    #[prost(int64, tag = "2")]
    pub(crate) least: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Id {
    #[prost(message, optional, tag = "1")]
    pub(crate) structured: Option<Structured>,
    #[prost(string, optional, tag = "2")]
    pub(crate) text: Option<String>,
}

impl Id {
    pub(crate) fn new(id: uuid::Uuid) -> Self {
        Self {
            structured: None,
            text: Some(id.to_string()),
        }
    }

    pub(crate) fn uuid(&self) -> uuid::Uuid {
        match (&self.structured, &self.text) {
            (Some(s), _) => uuid::Uuid::from_u64_pair(s.most as u64, s.least as u64),
            (None, text) => text.as_deref().unwrap_or_default().parse().unwrap_or_default(),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Name {
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) name: Vec<u8>,
}

impl Name {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Place {
    #[prost(uint64, tag = "1")]
    pub(crate) commit: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) prepare: u64,
}

// Streams.Read

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<ReadOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<StreamOptions>,
    #[prost(message, optional, tag = "2")]
    pub(crate) all: Option<AllOptions>,
    #[prost(int32, tag = "3")]
    pub(crate) direction: i32,
    #[prost(bool, tag = "4")]
    pub(crate) resolve_links: bool,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) count: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StreamOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<Name>,
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
    pub(crate) position: Option<Place>,
    #[prost(message, optional, tag = "2")]
    pub(crate) start: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub(crate) end: Option<Empty>,
    /// Of a group's options only.
    #[prost(message, optional, tag = "4")]
    pub(crate) filter: Option<Filter>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Filter {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<Expression>,
    #[prost(message, optional, tag = "2")]
    pub(crate) kind: Option<Expression>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Expression {
    #[prost(string, tag = "1")]
    pub(crate) regex: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) prefixes: Vec<String>,
}

/// An answer of `Streams.Read` and of a group's `Read`: they differ in one field.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) event: Option<ReadEvent>,
    #[prost(message, optional, tag = "2")]
    pub(crate) confirmation: Option<Confirmation>,
    #[prost(message, optional, tag = "4")]
    pub(crate) not_found: Option<NotFound>,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) last_stream_position: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadEvent {
    #[prost(message, optional, tag = "1")]
    pub(crate) event: Option<Recorded>,
    #[prost(message, optional, tag = "2")]
    pub(crate) link: Option<Recorded>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) commit: Option<u64>,
    /// Of a group's answers only.
    #[prost(int32, optional, tag = "5")]
    pub(crate) retry: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Recorded {
    #[prost(message, optional, tag = "1")]
    pub(crate) id: Option<Id>,
    #[prost(message, optional, tag = "2")]
    pub(crate) stream: Option<Name>,
    #[prost(uint64, tag = "3")]
    pub(crate) revision: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) prepare: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) commit: u64,
    #[prost(map = "string, string", tag = "6")]
    pub(crate) metadata: HashMap<String, String>,
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) custom_metadata: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Confirmation {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NotFound {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<Name>,
}

// Streams.Append

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AppendReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<AppendOptions>,
    #[prost(message, optional, tag = "2")]
    pub(crate) proposed: Option<Proposed>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AppendOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<Name>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) revision: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub(crate) no_stream: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Proposed {
    #[prost(message, optional, tag = "1")]
    pub(crate) id: Option<Id>,
    #[prost(map = "string, string", tag = "2")]
    pub(crate) metadata: HashMap<String, String>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) custom_metadata: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AppendResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) success: Option<Success>,
    #[prost(message, optional, tag = "2")]
    pub(crate) wrong: Option<Wrong>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Success {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) revision: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub(crate) no_stream: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub(crate) position: Option<Place>,
    #[prost(message, optional, tag = "4")]
    pub(crate) no_position: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Wrong {
    #[prost(uint64, optional, tag = "6")]
    pub(crate) current: Option<u64>,
    #[prost(message, optional, tag = "7")]
    pub(crate) current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) expected: Option<u64>,
    #[prost(message, optional, tag = "11")]
    pub(crate) expected_no_stream: Option<Empty>,
}

// Groups

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GroupReadReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<GroupReadOptions>,
    #[prost(message, optional, tag = "2")]
    pub(crate) ack: Option<Ack>,
    #[prost(message, optional, tag = "3")]
    pub(crate) nack: Option<Ack>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GroupReadOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<Name>,
    #[prost(string, tag = "2")]
    pub(crate) group: String,
    #[prost(int32, tag = "3")]
    pub(crate) buffer: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ack {
    #[prost(message, repeated, tag = "2")]
    pub(crate) ids: Vec<Id>,
    #[prost(int32, tag = "3")]
    pub(crate) action: i32,
    #[prost(string, tag = "4")]
    pub(crate) reason: String,
}

/// `CreateReq` and `UpdateReq`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GroupReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<GroupOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GroupOptions {
    #[prost(string, tag = "2")]
    pub(crate) group: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) settings: Option<GroupSettings>,
    #[prost(message, optional, tag = "4")]
    pub(crate) stream: Option<StreamOptions>,
    #[prost(message, optional, tag = "5")]
    pub(crate) all: Option<AllOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GroupSettings {
    #[prost(bool, tag = "1")]
    pub(crate) resolve_links: bool,
    #[prost(int32, tag = "5")]
    pub(crate) max_retries: i32,
    #[prost(int32, tag = "7")]
    pub(crate) checkpoint_lower: i32,
    #[prost(int32, tag = "8")]
    pub(crate) checkpoint_upper: i32,
    #[prost(int32, tag = "9")]
    pub(crate) max_consumers: i32,
    #[prost(int32, tag = "10")]
    pub(crate) live_buffer: i32,
    #[prost(int32, tag = "11")]
    pub(crate) read_batch: i32,
    #[prost(int32, tag = "12")]
    pub(crate) history_buffer: i32,
    #[prost(int32, tag = "13")]
    pub(crate) strategy: i32,
    #[prost(int32, tag = "14")]
    pub(crate) message_timeout_ms: i32,
    #[prost(int32, tag = "15")]
    pub(crate) checkpoint_after_ms: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeleteReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<DeleteOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeleteOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<Name>,
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
    pub(crate) stream: Option<Name>,
    #[prost(string, tag = "3")]
    pub(crate) group: String,
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
    pub(crate) stream: Option<Name>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InfoResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Info {
    #[prost(string, tag = "1")]
    pub(crate) source: String,
    #[prost(string, tag = "2")]
    pub(crate) group: String,
    #[prost(string, tag = "3")]
    pub(crate) status: String,
    #[prost(message, repeated, tag = "4")]
    pub(crate) connections: Vec<Connection>,
    #[prost(string, tag = "8")]
    pub(crate) checkpoint: String,
    #[prost(bool, tag = "10")]
    pub(crate) resolve_links: bool,
    #[prost(string, tag = "11")]
    pub(crate) start_from: String,
    #[prost(int32, tag = "12")]
    pub(crate) message_timeout_ms: i32,
    #[prost(int32, tag = "14")]
    pub(crate) max_retries: i32,
    #[prost(int32, tag = "15")]
    pub(crate) live_buffer: i32,
    #[prost(int32, tag = "16")]
    pub(crate) history_buffer: i32,
    #[prost(int32, tag = "17")]
    pub(crate) read_batch: i32,
    #[prost(int32, tag = "18")]
    pub(crate) checkpoint_after_ms: i32,
    #[prost(int32, tag = "19")]
    pub(crate) checkpoint_lower: i32,
    #[prost(int32, tag = "20")]
    pub(crate) checkpoint_upper: i32,
    #[prost(int32, tag = "24")]
    pub(crate) in_flight: i32,
    #[prost(string, tag = "26")]
    pub(crate) strategy: String,
    #[prost(int32, tag = "27")]
    pub(crate) max_consumers: i32,
    #[prost(int64, tag = "28")]
    pub(crate) parked: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Connection {
    #[prost(string, tag = "9")]
    pub(crate) name: String,
}

// Features, gossip, projections

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Features {
    #[prost(message, repeated, tag = "1")]
    pub(crate) methods: Vec<Feature>,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Feature {
    #[prost(string, tag = "1")]
    pub(crate) method: String,
    #[prost(string, tag = "2")]
    pub(crate) service: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) features: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Cluster {
    #[prost(message, repeated, tag = "1")]
    pub(crate) members: Vec<Member>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Member {
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
    #[prost(bool, tag = "4")]
    pub(crate) alive: bool,
    #[prost(message, optional, tag = "5")]
    pub(crate) endpoint: Option<EndPoint>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EndPoint {
    #[prost(string, tag = "1")]
    pub(crate) address: String,
    #[prost(uint32, tag = "2")]
    pub(crate) port: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StatisticsResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) details: Option<Statistics>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Statistics {
    #[prost(string, tag = "8")]
    pub(crate) status: String,
    #[prost(string, tag = "10")]
    pub(crate) name: String,
}
