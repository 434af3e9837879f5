//! A client that says what no official client says: any message, in any order, with any header.
//!
//! Of a `oneof` each case is an optional field of its own: the same bytes on the wire.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::ProstCodec,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use super::eventstore::PATIENCE;
pub(crate) use super::node::messages::{
    AllOptions, Confirmation, Empty, Expression, Features, GroupReadOptions, GroupReadReq, Id, Name, NotFound, Place,
    ReadEvent, StreamOptions, Success,
};

const STREAMS: &str = "event_store.client.streams.Streams";
const GROUPS: &str = "event_store.client.persistent_subscriptions.PersistentSubscriptions";

/// A connection, and what every call on it says in its headers.
#[derive(Clone)]
pub(crate) struct Raw {
    channel: Channel,
    headers: Vec<(&'static str, String)>,
}

impl Raw {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{to}")).unwrap();
        Self {
            channel: endpoint.connect().await.unwrap(),
            headers: Vec::new(),
        }
    }

    /// With one more header.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut other = self.clone();
        other.headers.push((name, value.to_owned()));
        other
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in &self.headers {
            let value = MetadataValue::try_from(value.as_str()).unwrap();
            request.metadata_mut().insert(*name, value);
        }
        request
    }

    /// One message for many.
    pub(crate) async fn ask<Q, A>(&self, path: &str, messages: Vec<Q>) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut answers = self.open(path, stream::iter(messages)).await?;
        let answer = next(&mut answers).await?;
        // The end says whether it went well.
        while answers.message().await?.is_some() {}
        Ok(answer)
    }

    /// Whatever comes for what is sent.
    pub(crate) async fn open<Q, A>(
        &self,
        path: &str,
        messages: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(32 << 20);
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::try_from(format!("/{path}")).unwrap();
        let call = grpc.streaming(self.request(messages), path, ProstCodec::default());
        let called = tokio::time::timeout(PATIENCE, call).await.expect("an answer in time");
        called.map(tonic::Response::into_inner)
    }

    pub(crate) async fn append(&self, options: AppendOptions, events: Vec<Proposed>) -> Result<AppendResp, Status> {
        let first = AppendReq {
            options: Some(options),
            proposed: None,
        };
        let rest = events.into_iter().map(|event| AppendReq {
            options: None,
            proposed: Some(event),
        });
        let messages = std::iter::once(first).chain(rest).collect();
        self.ask(&format!("{STREAMS}/Append"), messages).await
    }

    /// `Delete` or `Tombstone`.
    pub(crate) async fn delete(&self, method: &str, options: AppendOptions) -> Result<DeleteResp, Status> {
        let request = DeleteReq { options: Some(options) };
        self.ask(&format!("{STREAMS}/{method}"), vec![request]).await
    }

    pub(crate) async fn read(&self, options: ReadOptions) -> Result<Streaming<ReadResp>, Status> {
        let request = ReadReq { options: Some(options) };
        self.open(&format!("{STREAMS}/Read"), stream::iter([request])).await
    }

    /// Everything that a read answers, and how it ends.
    pub(crate) async fn read_all(&self, options: ReadOptions) -> (Vec<ReadResp>, Option<Status>) {
        let mut answers = match self.read(options).await {
            Ok(answers) => answers,
            Err(status) => return (Vec::new(), Some(status)),
        };
        let mut all = Vec::new();
        loop {
            let answer = tokio::time::timeout(PATIENCE, answers.next());
            match answer.await.expect("an answer in time") {
                Some(Ok(answer)) => all.push(answer),
                Some(Err(status)) => return (all, Some(status)),
                None => return (all, None),
            }
        }
    }

    /// Appends of one batch call, all of them sent before the first answer is read. The answers come as
    /// each is known; here they are in the order of their correlation ids.
    pub(crate) async fn batch(&self, parts: Vec<BatchReq>) -> (Vec<BatchResp>, Option<Status>) {
        let opened = self.open(&format!("{STREAMS}/BatchAppend"), stream::iter(parts)).await;
        let mut answers = match opened {
            Ok(answers) => answers,
            Err(status) => return (Vec::new(), Some(status)),
        };
        let mut all: Vec<BatchResp> = Vec::new();
        let end = loop {
            match tokio::time::timeout(PATIENCE, answers.message()).await.unwrap() {
                Ok(Some(answer)) => all.push(answer),
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        all.sort_by_key(|answer| answer.correlation.as_ref().map(Id::uuid));
        (all, end)
    }

    /// A call about a group.
    pub(crate) async fn group<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.ask(&format!("{GROUPS}/{method}"), vec![request]).await
    }

    /// A consumer of a group, for as long as the stream of what it sends lives.
    pub(crate) async fn consume(
        &self,
        messages: impl Stream<Item = GroupReadReq> + Send + 'static,
    ) -> Result<Streaming<GroupReadResp>, Status> {
        self.open(&format!("{GROUPS}/Read"), messages).await
    }
}

/// The next answer, in time.
pub(crate) async fn next<A>(answers: &mut Streaming<A>) -> Result<A, Status> {
    let answer = tokio::time::timeout(PATIENCE, answers.next());
    match answer.await.expect("an answer in time") {
        Some(answer) => answer,
        None => panic!("the answers ended in good order"),
    }
}

/// What a status says in a trailer.
pub(crate) fn said<'a>(status: &'a Status, key: &str) -> Option<&'a str> {
    status.metadata().get(key).and_then(|value| value.to_str().ok())
}

/// `ms` as a `grpc-timeout` header.
pub(crate) fn within(time: Duration) -> String {
    format!("{}m", time.as_millis())
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AppendReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<AppendOptions>,
    #[prost(message, optional, tag = "2")]
    pub(crate) proposed: Option<Proposed>,
}

/// Of an append, a deletion, and, but for numbers, a batch.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AppendOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<Name>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) revision: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub(crate) no_stream: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    pub(crate) any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub(crate) stream_exists: Option<Empty>,
    /// Of a batch.
    #[prost(message, optional, tag = "6")]
    pub(crate) until: Option<Time>,
    /// Of a batch.
    #[prost(message, optional, tag = "7")]
    pub(crate) within: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Time {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

/// What a writer expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expect {
    Any,
    NoStream,
    Exists,
    At(u64),
}

impl AppendOptions {
    pub(crate) fn new(stream: &str, expect: Expect) -> Self {
        let said = |of: Expect| (expect == of).then_some(Empty {});
        Self {
            name: Some(Name::new(stream)),
            revision: match expect {
                Expect::At(revision) => Some(revision),
                _ => None,
            },
            until: None,
            within: None,
            no_stream: said(Expect::NoStream),
            any: said(Expect::Any),
            stream_exists: said(Expect::Exists),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Proposed {
    #[prost(message, optional, tag = "1")]
    pub(crate) id: Option<Id>,
    #[prost(map = "string, string", tag = "2")]
    pub(crate) metadata: HashMap<String, String>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) custom_metadata: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
}

impl Proposed {
    pub(crate) fn new(id: u128) -> Self {
        let metadata = [("type", "Counted"), ("content-type", "application/json")];
        Self {
            id: Some(Id::new(Uuid::from_u128(id))),
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            custom_metadata: Bytes::new(),
            data: format!("{{\"n\":{id}}}").into(),
        }
    }

    pub(crate) fn many(ids: std::ops::Range<u128>) -> Vec<Self> {
        ids.map(Self::new).collect()
    }

    /// With this type, and this data as it stands.
    pub(crate) fn of(id: u128, kind: &str, content: &str, data: impl Into<Bytes>) -> Self {
        let mut event = Self::new(id);
        event.metadata.insert("type".to_owned(), kind.to_owned());
        event.metadata.insert("content-type".to_owned(), content.to_owned());
        event.data = data.into();
        event
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.metadata.remove(key);
        self
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AppendResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) success: Option<Success>,
    #[prost(message, optional, tag = "2")]
    pub(crate) wrong: Option<Wrong>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Wrong {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) old_current: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub(crate) old_current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) old_expected: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub(crate) old_any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub(crate) old_stream_exists: Option<Empty>,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) current: Option<u64>,
    #[prost(message, optional, tag = "7")]
    pub(crate) current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) expected: Option<u64>,
    #[prost(message, optional, tag = "9")]
    pub(crate) any: Option<Empty>,
    #[prost(message, optional, tag = "10")]
    pub(crate) stream_exists: Option<Empty>,
    #[prost(message, optional, tag = "11")]
    pub(crate) no_stream: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeleteReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) options: Option<AppendOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeleteResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) position: Option<Place>,
    #[prost(message, optional, tag = "2")]
    pub(crate) no_position: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BatchReq {
    #[prost(message, optional, tag = "1")]
    pub(crate) correlation: Option<Id>,
    #[prost(message, optional, tag = "2")]
    pub(crate) options: Option<AppendOptions>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) messages: Vec<Proposed>,
    #[prost(bool, tag = "4")]
    pub(crate) last: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BatchResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) correlation: Option<Id>,
    #[prost(message, optional, tag = "2")]
    pub(crate) error: Option<RpcStatus>,
    #[prost(message, optional, tag = "3")]
    pub(crate) success: Option<Success>,
    #[prost(message, optional, tag = "4")]
    pub(crate) stream: Option<Name>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) details: Option<AnyDetail>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AnyDetail {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// A batch's wrong revision.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WrongDetail {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) current: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub(crate) current_no_stream: Option<Empty>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) expected: Option<u64>,
    #[prost(message, optional, tag = "4")]
    pub(crate) any: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub(crate) stream_exists: Option<Empty>,
    #[prost(message, optional, tag = "6")]
    pub(crate) no_stream: Option<Empty>,
}

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
    #[prost(message, optional, tag = "6")]
    pub(crate) subscription: Option<Empty>,
    #[prost(message, optional, tag = "7")]
    pub(crate) filter: Option<FilterOptions>,
    #[prost(message, optional, tag = "8")]
    pub(crate) no_filter: Option<Empty>,
    #[prost(message, optional, tag = "9")]
    pub(crate) uuid: Option<UuidOption>,
    #[prost(message, optional, tag = "10")]
    pub(crate) control: Option<Control>,
}

/// Where a read begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Start,
    End,
    Number(u64),
}

impl ReadOptions {
    fn any() -> Self {
        Self {
            no_filter: Some(Empty {}),
            uuid: Some(UuidOption {
                structured: None,
                text: Some(Empty {}),
            }),
            ..Self::default()
        }
    }

    /// A stream, forwards, all of it.
    pub(crate) fn stream(name: &str, at: At) -> Self {
        let (revision, start, end) = at.cases();
        Self {
            stream: Some(StreamOptions {
                name: Some(Name::new(name)),
                revision,
                start,
                end,
            }),
            count: Some(u64::MAX),
            ..Self::any()
        }
    }

    /// `$all`, forwards, all of it.
    pub(crate) fn all(at: At) -> Self {
        let (position, start, end) = at.cases();
        Self {
            all: Some(AllOptions {
                position: position.map(|position| Place {
                    commit: position,
                    prepare: position,
                }),
                start,
                end,
                filter: None,
            }),
            count: Some(u64::MAX),
            ..Self::any()
        }
    }

    pub(crate) fn backwards(mut self) -> Self {
        self.direction = 1;
        self
    }

    /// So many at most.
    pub(crate) fn at_most(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    pub(crate) fn subscribed(mut self) -> Self {
        self.count = None;
        self.subscription = Some(Empty {});
        self
    }

    pub(crate) fn filtered(mut self, filter: FilterOptions) -> Self {
        self.no_filter = None;
        self.filter = Some(filter);
        self
    }

    pub(crate) fn resolved(mut self) -> Self {
        self.resolve_links = true;
        self
    }

    /// As a client from after 21.10 reads.
    pub(crate) fn compatible(mut self) -> Self {
        self.control = Some(Control { compatibility: 1 });
        self
    }
}

impl At {
    fn cases(self) -> (Option<u64>, Option<Empty>, Option<Empty>) {
        match self {
            Self::Start => (None, Some(Empty {}), None),
            Self::End => (None, None, Some(Empty {})),
            Self::Number(number) => (Some(number), None, None),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FilterOptions {
    #[prost(message, optional, tag = "1")]
    pub(crate) stream: Option<Expression>,
    #[prost(message, optional, tag = "2")]
    pub(crate) kind: Option<Expression>,
    #[prost(uint32, optional, tag = "3")]
    pub(crate) max: Option<u32>,
    #[prost(message, optional, tag = "4")]
    pub(crate) count: Option<Empty>,
    #[prost(uint32, tag = "5")]
    pub(crate) multiplier: u32,
}

impl FilterOptions {
    /// Streams that begin so, and a checkpoint every so many records.
    pub(crate) fn streams(prefixes: &[&str], every: u32) -> Self {
        Self {
            stream: Some(Expression {
                regex: String::new(),
                prefixes: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
            }),
            max: Some(every),
            multiplier: 1,
            ..Self::default()
        }
    }

    /// Event types that match.
    pub(crate) fn types(regex: &str) -> Self {
        Self {
            kind: Some(Expression {
                regex: regex.to_owned(),
                prefixes: Vec::new(),
            }),
            count: Some(Empty {}),
            multiplier: 1,
            ..Self::default()
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UuidOption {
    #[prost(message, optional, tag = "1")]
    pub(crate) structured: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub(crate) text: Option<Empty>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Control {
    #[prost(uint32, tag = "1")]
    pub(crate) compatibility: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) event: Option<ReadEvent>,
    #[prost(message, optional, tag = "2")]
    pub(crate) confirmation: Option<Confirmation>,
    #[prost(message, optional, tag = "3")]
    pub(crate) checkpoint: Option<Checkpoint>,
    #[prost(message, optional, tag = "4")]
    pub(crate) not_found: Option<NotFound>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) first_position: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) last_position: Option<u64>,
    #[prost(message, optional, tag = "7")]
    pub(crate) last_all_position: Option<Place>,
    #[prost(message, optional, tag = "8")]
    pub(crate) caught_up: Option<CaughtUp>,
    #[prost(message, optional, tag = "9")]
    pub(crate) fell_behind: Option<CaughtUp>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Checkpoint {
    #[prost(uint64, tag = "1")]
    pub(crate) commit: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) prepare: u64,
    #[prost(message, optional, tag = "3")]
    pub(crate) at: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct CaughtUp {
    #[prost(message, optional, tag = "1")]
    pub(crate) at: Option<Time>,
    #[prost(int64, optional, tag = "2")]
    pub(crate) revision: Option<i64>,
    #[prost(message, optional, tag = "3")]
    pub(crate) position: Option<Place>,
}

impl ReadResp {
    /// In a word: what it is, and of an event which.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self { event: Some(event), .. } => shown(event),
            Self {
                confirmation: Some(_), ..
            } => "confirmed".to_owned(),
            Self {
                checkpoint: Some(_), ..
            } => "checkpoint".to_owned(),
            Self {
                not_found: Some(found), ..
            } => format!("no {}", found.name.as_ref().unwrap().text()),
            Self {
                first_position: Some(first),
                ..
            } => format!("first {first}"),
            Self {
                last_position: Some(last),
                ..
            } => format!("last {last}"),
            Self { caught_up: Some(_), .. } => "caught up".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

/// `REVISION@STREAM` of an event, and of its link where it came by one.
pub(crate) fn shown(event: &ReadEvent) -> String {
    let one = |record: &Option<super::node::messages::Recorded>| {
        record.as_ref().map_or("nothing".to_owned(), |record| {
            let stream = record.stream.as_ref().unwrap().text();
            format!("{}@{stream}", record.revision)
        })
    };
    match &event.link {
        Some(_) => format!("{} by {}", one(&event.event), one(&event.link)),
        None => one(&event.event),
    }
}

/// What all of them say, in a word each.
pub(crate) fn all_shown(answers: &[ReadResp]) -> Vec<String> {
    answers.iter().map(ReadResp::shown).collect()
}

/// A group's answer: what a read's has, but for what only a read says.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GroupReadResp {
    #[prost(message, optional, tag = "1")]
    pub(crate) event: Option<ReadEvent>,
    #[prost(message, optional, tag = "2")]
    pub(crate) confirmation: Option<Confirmation>,
}
