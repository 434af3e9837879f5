//! A client that says what no official client says: any message, in any order, with any header. The
//! messages are the embedded server's; what stands here makes and shows them.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
pub(crate) use projector_eventstore::wire::{
    Empty, Expression, FilterOptions, MapEntry, Position, ReadEvent, RecordedEvent, StreamIdentifier, StreamOptions,
    Time, UuidOption, WireUuid, groups, node, projections,
    streams::{
        AllOptions, AppendOptions, AppendReq, AppendResp, BatchAppendReq, BatchAppendResp, ControlOption, DeleteReq,
        DeleteResp, ProposedMessage, ReadOptions, ReadReq, ReadResp, WrongDetail,
    },
};
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::ProstCodec,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use super::eventstore::PATIENCE;

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

    pub(crate) async fn append(
        &self,
        options: AppendOptions,
        events: Vec<ProposedMessage>,
    ) -> Result<AppendResp, Status> {
        let first = AppendReq {
            options: Some(options),
            message: None,
        };
        let rest = events.into_iter().map(|event| AppendReq {
            options: None,
            message: Some(event),
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
    pub(crate) async fn batch(&self, parts: Vec<BatchAppendReq>) -> (Vec<BatchAppendResp>, Option<Status>) {
        let opened = self.open(&format!("{STREAMS}/BatchAppend"), stream::iter(parts)).await;
        let mut answers = match opened {
            Ok(answers) => answers,
            Err(status) => return (Vec::new(), Some(status)),
        };
        let mut all: Vec<BatchAppendResp> = Vec::new();
        let end = loop {
            match tokio::time::timeout(PATIENCE, answers.message()).await.unwrap() {
                Ok(Some(answer)) => all.push(answer),
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        all.sort_by_key(|answer| answer.correlation_id.as_ref().map(WireUuid::id));
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
        messages: impl Stream<Item = groups::ReadReq> + Send + 'static,
    ) -> Result<Streaming<groups::ReadResp>, Status> {
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

/// What a writer expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expect {
    Any,
    NoStream,
    Exists,
    At(u64),
}

/// The options of a write to `stream`.
pub(crate) fn expecting(stream: &str, expect: Expect) -> AppendOptions {
    let said = |of: Expect| (expect == of).then_some(Empty {});
    AppendOptions {
        stream: Some(StreamIdentifier::new(stream)),
        revision: match expect {
            Expect::At(revision) => Some(revision),
            _ => None,
        },
        no_stream: said(Expect::NoStream),
        any: said(Expect::Any),
        stream_exists: said(Expect::Exists),
        ..AppendOptions::default()
    }
}

/// An event of type `Counted` with this id.
pub(crate) fn proposed(id: u128) -> ProposedMessage {
    proposed_as(id, "Counted", "application/json", format!("{{\"n\":{id}}}"))
}

pub(crate) fn many_proposed(ids: std::ops::Range<u128>) -> Vec<ProposedMessage> {
    ids.map(proposed).collect()
}

/// With this type, and this data as it stands.
pub(crate) fn proposed_as(id: u128, kind: &str, content: &str, data: impl Into<Bytes>) -> ProposedMessage {
    let entry = |(key, value): (&str, &str)| MapEntry {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    ProposedMessage {
        id: Some(WireUuid::of(Uuid::from_u128(id), true)),
        metadata: [("type", kind), ("content-type", content)].map(entry).into(),
        custom_metadata: Bytes::new(),
        data: data.into(),
    }
}

/// Without what its metadata says under this key.
pub(crate) fn without(mut event: ProposedMessage, key: &str) -> ProposedMessage {
    event.metadata.retain(|entry| entry.key != key);
    event
}

/// What metadata says under a key.
pub(crate) fn entry<'a>(metadata: &'a [MapEntry], key: &str) -> &'a str {
    let found = metadata.iter().find(|entry| entry.key == key);
    &found.unwrap_or_else(|| panic!("no {key} in {metadata:?}")).value
}

/// A name as text.
pub(crate) fn text(stream: Option<&StreamIdentifier>) -> &str {
    std::str::from_utf8(&stream.unwrap().name).unwrap()
}

/// The id that an answer names.
pub(crate) fn id(of: Option<&WireUuid>) -> Uuid {
    of.unwrap().id().unwrap()
}

/// Where a read begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Start,
    End,
    Number(u64),
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

fn forwards() -> ReadOptions {
    ReadOptions {
        count: Some(u64::MAX),
        no_filter: Some(Empty {}),
        uuid: Some(UuidOption {
            structured: None,
            text: Some(Empty {}),
        }),
        ..ReadOptions::default()
    }
}

/// A stream, forwards, all of it.
pub(crate) fn of_stream(name: &str, at: At) -> ReadOptions {
    let (revision, start, end) = at.cases();
    ReadOptions {
        stream: Some(StreamOptions {
            stream: Some(StreamIdentifier::new(name)),
            revision,
            start,
            end,
        }),
        ..forwards()
    }
}

/// `$all`, forwards, all of it.
pub(crate) fn of_all(at: At) -> ReadOptions {
    let (position, start, end) = at.cases();
    ReadOptions {
        all: Some(AllOptions {
            position: position.map(|position| Position {
                commit: position,
                prepare: position,
            }),
            start,
            end,
        }),
        ..forwards()
    }
}

/// What else a read may say.
pub(crate) trait Reading {
    fn backwards(self) -> Self;
    /// So many at most.
    fn at_most(self, count: u64) -> Self;
    fn subscribed(self) -> Self;
    fn filtered(self, filter: FilterOptions) -> Self;
    fn resolved(self) -> Self;
    /// As a client from after 21.10 reads.
    fn compatible(self) -> Self;
}

impl Reading for ReadOptions {
    fn backwards(mut self) -> Self {
        self.direction = 1;
        self
    }

    fn at_most(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    fn subscribed(mut self) -> Self {
        self.count = None;
        self.subscription = Some(Empty {});
        self
    }

    fn filtered(mut self, filter: FilterOptions) -> Self {
        self.no_filter = None;
        self.filter = Some(filter);
        self
    }

    fn resolved(mut self) -> Self {
        self.resolve_links = true;
        self
    }

    fn compatible(mut self) -> Self {
        self.control = Some(ControlOption { compatibility: 1 });
        self
    }
}

/// Streams that begin so, and a checkpoint every so many records.
pub(crate) fn stream_filter(prefixes: &[&str], every: u32) -> FilterOptions {
    FilterOptions {
        stream: Some(Expression {
            regex: String::new(),
            prefix: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
        }),
        max: Some(every),
        checkpoint_interval_multiplier: 1,
        ..FilterOptions::default()
    }
}

/// Event types that match.
pub(crate) fn type_filter(regex: &str) -> FilterOptions {
    FilterOptions {
        event_type: Some(Expression {
            regex: regex.to_owned(),
            prefix: Vec::new(),
        }),
        count: Some(Empty {}),
        checkpoint_interval_multiplier: 1,
        ..FilterOptions::default()
    }
}

/// An answer in a word.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

impl Shown for ReadResp {
    /// What it is, and of an event which.
    fn shown(&self) -> String {
        match self {
            Self { event: Some(event), .. } => event.shown(),
            Self {
                confirmation: Some(_), ..
            } => "confirmed".to_owned(),
            Self {
                checkpoint: Some(_), ..
            } => "checkpoint".to_owned(),
            Self {
                stream_not_found: Some(found),
                ..
            } => format!("no {}", text(found.stream.as_ref())),
            Self {
                first_stream_position: Some(first),
                ..
            } => format!("first {first}"),
            Self {
                last_stream_position: Some(last),
                ..
            } => format!("last {last}"),
            Self { caught_up: Some(_), .. } => "caught up".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

impl Shown for ReadEvent {
    /// `REVISION@STREAM` of an event, and of its link where it came by one.
    fn shown(&self) -> String {
        let one = |record: &Option<RecordedEvent>| {
            record.as_ref().map_or("nothing".to_owned(), |record| {
                format!("{}@{}", record.revision, text(record.stream.as_ref()))
            })
        };
        match &self.link {
            Some(_) => format!("{} by {}", one(&self.event), one(&self.link)),
            None => one(&self.event),
        }
    }
}

/// What all of them say, in a word each.
pub(crate) fn all_shown(answers: &[ReadResp]) -> Vec<String> {
    answers.iter().map(ReadResp::shown).collect()
}
