//! Append, `BatchAppend`, Delete, Tombstone. Keeps: what is refused is refused before anything is
//! written; appends of one batch are written in the order in which they came.

use std::sync::Arc;

use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream::BoxStream};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::unfinished::{Open, Unfinished, time_left};
use crate::{
    access::{Identity, Right},
    log::{Appended, Expected, NewEvent, WriteError, described_by},
    node::Node,
    status,
    wire::{
        Empty, Position, StreamIdentifier, WireUuid,
        streams::{
            AnyMessage, AppendOptions, AppendReq, AppendResp, AppendSuccess, AppendWrong, BadRequestDetail,
            BatchAppendReq, BatchAppendResp, DeleteReq, DeleteResp, MaximumSizeDetail, NotFound, ProposedMessage,
            RpcStatus, WrongDetail,
        },
    },
};

/// EventStoreDB's `MaxAppendSize`: what one append may hold, in bytes.
pub(in super::super) const MAX_APPEND_SIZE: usize = 1024 * 1024;
/// Appends of one batch call that may be under way; a client that sends more waits.
const BATCH_WINDOW: usize = 256;

/// What the options say.
fn options(options: Option<AppendOptions>) -> Result<(Arc<str>, Expected), Status> {
    let options = options.ok_or_else(|| Status::invalid_argument("the request has no options"))?;
    let stream = options
        .stream
        .ok_or_else(|| Status::invalid_argument("the request names no stream"))?;
    let stream = super::name(&stream)?;
    if stream.is_empty() {
        return Err(Status::invalid_argument("the stream name is empty"));
    }
    if described_by(&stream) == Some("") {
        return Err(status::unknown("Metadata of no stream."));
    }
    let expected = match (options.revision, options.no_stream, options.any, options.stream_exists) {
        (Some(revision), ..) => Expected::Exact(revision),
        (_, Some(_), ..) => Expected::NoStream,
        (_, _, Some(_), _) => Expected::Any,
        (_, _, _, Some(_)) => Expected::StreamExists,
        _ => {
            return Err(Status::invalid_argument(
                "the request does not say what revision it expects",
            ));
        }
    };
    Ok((stream, expected))
}

/// What an event counts towards the limit, by EventStoreDB's own reckoning.
fn size(event: &NewEvent) -> usize {
    event.data.len() + event.metadata.len() + 2 * event.event_type.encode_utf16().count()
}

fn proposed(message: ProposedMessage) -> Result<NewEvent, Status> {
    let find = |key: &str| message.metadata.iter().find(|entry| entry.key == key);
    let event_type = find("type").ok_or_else(|| status::missing_metadata("type"))?;
    let content_type = find("content-type").ok_or_else(|| status::missing_metadata("content-type"))?;
    let id = message
        .id
        .as_ref()
        .and_then(WireUuid::id)
        .filter(|id| !id.is_nil())
        .ok_or_else(|| status::unknown("Empty eventId provided."))?;
    if event_type.value.is_empty() {
        return Err(status::unknown("Empty eventType provided."));
    }
    Ok(NewEvent {
        id,
        event_type: event_type.value.as_str().into(),
        json: content_type.value == "application/json",
        data: message.data,
        metadata: message.custom_metadata,
    })
}

/// `Streams.Append`.
pub(super) async fn append(
    node: Arc<Node>,
    identity: Identity,
    mut inbound: Streaming<AppendReq>,
) -> Result<AppendResp, Status> {
    let first = inbound.message().await?;
    let (stream, expected) = options(first.and_then(|first| first.options))?;
    node.check(&identity, Right::Write, &stream).await?;
    let mut events = Vec::new();
    let mut bytes = 0;
    while let Some(request) = inbound.message().await? {
        let message = request
            .message
            .ok_or_else(|| Status::invalid_argument("a message after the options proposes no event"))?;
        let event = proposed(message)?;
        bytes += size(&event);
        if bytes > MAX_APPEND_SIZE {
            return Err(status::maximum_append_size(MAX_APPEND_SIZE));
        }
        events.push(event);
    }
    let written = node.log.append(Arc::clone(&stream), expected, events).await;
    node.faults.after_append().await?;
    match written {
        Ok(appended) => Ok(AppendResp {
            success: Some(success(appended)),
            wrong_expected_version: None,
        }),
        Err(WriteError::WrongExpectedVersion { current }) => Ok(AppendResp {
            success: None,
            wrong_expected_version: Some(wrong(expected, current)),
        }),
        Err(error) => Err(status::of_write(&stream, expected, &error)),
    }
}

fn success(appended: Appended) -> AppendSuccess {
    AppendSuccess {
        current_revision: appended.revision,
        no_stream: appended.revision.is_none().then_some(Empty {}),
        position: appended.position.map(|position| Position {
            commit: position,
            prepare: position,
        }),
        no_position: appended.position.is_none().then_some(Empty {}),
    }
}

fn wrong(expected: Expected, current: Option<u64>) -> AppendWrong {
    let said = |of: Expected| (expected == of).then_some(Empty {});
    let exact = match expected {
        Expected::Exact(revision) => Some(revision),
        _ => None,
    };
    AppendWrong {
        old_current: current,
        old_current_no_stream: current.is_none().then_some(Empty {}),
        // Before 20.6.1 there was no way to say `no stream` but this.
        old_expected: exact.or((expected == Expected::NoStream).then_some(u64::MAX)),
        old_any: said(Expected::Any),
        old_stream_exists: said(Expected::StreamExists),
        current,
        current_no_stream: current.is_none().then_some(Empty {}),
        expected: exact,
        any: said(Expected::Any),
        stream_exists: said(Expected::StreamExists),
        no_stream: said(Expected::NoStream),
    }
}

/// `Streams.Delete` and `Streams.Tombstone`.
pub(super) async fn delete(
    node: Arc<Node>,
    identity: Identity,
    request: DeleteReq,
    hard: bool,
) -> Result<DeleteResp, Status> {
    let (stream, expected) = options(request.options)?;
    node.check(&identity, Right::Delete, &stream).await?;
    let written = node.log.delete(Arc::clone(&stream), expected, hard).await;
    let position = written.map_err(|error| status::of_write(&stream, expected, &error))?;
    Ok(DeleteResp {
        position: Some(Position {
            commit: position,
            prepare: position,
        }),
        no_position: None,
    })
}

/// Why an append of a batch fails.
enum Failure {
    Status(Status),
    /// Its time was over when it came.
    Late,
    Size,
    Write(WriteError),
}

type Pending = (Option<WireUuid>, Arc<str>, Expected, Result<Writing, Failure>);

/// An append on its way.
type Writing = BoxFuture<'static, Result<Appended, WriteError>>;

/// `Streams.BatchAppend`.
pub(super) fn batch(
    node: Arc<Node>,
    identity: Identity,
    inbound: Streaming<BatchAppendReq>,
) -> impl Stream<Item = Result<BatchAppendResp, Status>> + Send + 'static {
    let (to, pending) = mpsc::channel(BATCH_WINDOW);
    let stopping = node.stopping();
    tokio::spawn(accept(Arc::clone(&node), identity, inbound, to));
    let mut pending: BoxStream<'static, _> = tokio_stream::wrappers::ReceiverStream::new(pending)
        .map(answer)
        // Each is answered when it is known: a conflict at once, another append when it is committed.
        .buffer_unordered(BATCH_WINDOW)
        .boxed();
    async_stream::stream! {
        loop {
            tokio::select! {
                response = pending.next() => match response {
                    Some(response) => {
                        if let Err(status) = node.faults.after_append().await {
                            yield Err(status);
                            return;
                        }
                        yield response;
                    }
                    None => return,
                },
                () = stopping.cancelled() => {
                    yield Err(status::not_ready());
                    return;
                }
            }
        }
    }
}

/// Hands appends to the log in the order in which their last parts came. One that cannot be done says
/// so at once, and the others go on.
async fn accept(
    node: Arc<Node>,
    identity: Identity,
    mut inbound: Streaming<BatchAppendReq>,
    to: mpsc::Sender<Result<Pending, Status>>,
) {
    let mut unfinished = Unfinished::new(Arc::clone(&node.unfinished));
    // Nobody may listen any more; then nobody misses what is not sent.
    loop {
        let request = tokio::select! {
            biased;
            (id, late) = unfinished.expired() => {
                if to.send(Ok(expired(id, late))).await.is_err() {
                    return;
                }
                continue;
            }
            request = inbound.message() => request,
        };
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(status) => {
                let _ = to.send(Err(status::received(status))).await;
                return;
            }
        };
        let correlation = request.correlation_id.clone();
        let Some(key) = correlation.as_ref().and_then(WireUuid::id) else {
            let _ = to
                .send(Err(Status::invalid_argument("a batch has no correlation id")))
                .await;
            return;
        };
        if let Some(said) = request.options {
            let time = time_left(&said);
            let name = said.stream.as_ref().and_then(|name| super::name(name).ok());
            let refused = match options(Some(said)) {
                Ok((stream, expected)) => match (node.check(&identity, Right::Write, &stream).await, time) {
                    (Ok(()), Some(time)) => {
                        unfinished.begin(key, || Open::new(stream, expected, time));
                        None
                    }
                    (Ok(()), None) => Some((stream, expected, Failure::Late)),
                    (Err(status), _) => Some((stream, expected, Failure::Status(status))),
                },
                Err(status) => Some((name.unwrap_or_default(), Expected::Any, Failure::Status(status))),
            };
            if let Some((stream, expected, failure)) = refused {
                if to
                    .send(Ok((correlation, stream, expected, Err(failure))))
                    .await
                    .is_err()
                {
                    return;
                }
                continue;
            }
        }
        // Parts of what was never begun, or has failed, are nobody's.
        let Some(part) = unfinished.get(key) else { continue };
        let mut bytes = 0;
        let events: Result<Vec<_>, _> = request.messages.into_iter().map(proposed).collect();
        let failure = match &events {
            Ok(events) => {
                bytes = events.iter().map(size).sum();
                part.size += bytes;
                (part.size > MAX_APPEND_SIZE).then_some(Failure::Size)
            }
            Err(status) => Some(Failure::Status(status.clone())),
        };
        let events = events.unwrap_or_default();
        let written = match failure {
            Some(failure) => Err(failure),
            None if !request.is_final => {
                let room = unfinished.wanted(bytes);
                tokio::pin!(room);
                let held = loop {
                    tokio::select! {
                        biased;
                        (id, late) = unfinished.expired() => {
                            if to.send(Ok(expired(id, late))).await.is_err() {
                                return;
                            }
                        }
                        held = &mut room => break held,
                    }
                };
                unfinished.keep(key, events, held);
                continue;
            }
            None => Ok(events),
        };
        let Some(mut done) = unfinished.remove(key) else {
            continue;
        };
        let written = written.map(|last| {
            done.events.extend(last);
            node.log
                .start_append(Arc::clone(&done.stream), done.expected, done.events)
                .boxed()
        });
        if to
            .send(Ok((correlation, done.stream, done.expected, written)))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// The end of an append that was not finished in its time.
fn expired(id: Uuid, late: Open) -> Pending {
    (
        Some(WireUuid::of(id, false)),
        late.stream,
        late.expected,
        Err(Failure::Late),
    )
}

async fn answer(pending: Result<Pending, Status>) -> Result<BatchAppendResp, Status> {
    let (correlation_id, stream, expected, written) = pending?;
    let written = match written {
        Ok(answer) => answer.await.map_err(Failure::Write),
        Err(failure) => Err(failure),
    };
    let name = StreamIdentifier::new(&stream);
    let (error, success) = match written {
        Ok(appended) => (None, Some(success(appended))),
        Err(failure) => (Some(detailed(failure, expected, &name)), None),
    };
    Ok(BatchAppendResp {
        correlation_id,
        error,
        success,
        stream: Some(name),
    })
}

/// `google.rpc.Code` as the batch's errors use it.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const ALREADY_EXISTS: i32 = 6;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const UNAVAILABLE: i32 = 14;
}

fn detailed(failure: Failure, expected: Expected, stream: &StreamIdentifier) -> RpcStatus {
    let of = |code, message: String, name: &str, value: Vec<u8>| RpcStatus {
        code,
        message,
        details: Some(AnyMessage {
            type_url: format!("type.googleapis.com/event_store.client.{name}"),
            value: value.into(),
        }),
    };
    match failure {
        Failure::Size => of(
            code::INVALID_ARGUMENT,
            "Maximum Append Size Exceeded".to_owned(),
            "MaximumAppendSizeExceeded",
            MaximumSizeDetail {
                max: MAX_APPEND_SIZE as u32,
            }
            .encode_to_vec(),
        ),
        Failure::Late | Failure::Write(WriteError::TimedOut) => {
            of(code::DEADLINE_EXCEEDED, "Timeout".to_owned(), "Timeout", Vec::new())
        }
        Failure::Write(WriteError::WrongExpectedVersion { current }) => {
            let said = |of: Expected| (expected == of).then_some(Empty {});
            let detail = WrongDetail {
                current,
                current_no_stream: current.is_none().then_some(Empty {}),
                expected: match expected {
                    Expected::Exact(revision) => Some(revision),
                    _ => None,
                },
                any: said(Expected::Any),
                stream_exists: said(Expected::StreamExists),
                no_stream: said(Expected::NoStream),
            };
            of(
                code::ALREADY_EXISTS,
                "WrongExpectedVersion".to_owned(),
                "WrongExpectedVersion",
                detail.encode_to_vec(),
            )
        }
        Failure::Write(WriteError::StreamDeleted) => {
            // Its detail is a message whose field 1 is the stream's identifier.
            let detail = NotFound {
                stream: Some(stream.clone()),
            };
            of(
                code::NOT_FOUND,
                "Stream Deleted".to_owned(),
                "StreamDeleted",
                detail.encode_to_vec(),
            )
        }
        Failure::Write(error @ (WriteError::Storage(_) | WriteError::Stopped)) => {
            of(code::UNAVAILABLE, error.to_string(), "Unknown", Vec::new())
        }
        Failure::Status(status) if status.code() == tonic::Code::PermissionDenied => of(
            code::PERMISSION_DENIED,
            "Access Denied".to_owned(),
            "AccessDenied",
            Vec::new(),
        ),
        Failure::Status(status) if status.code() == tonic::Code::Unavailable => {
            of(code::UNAVAILABLE, status.message().to_owned(), "Unknown", Vec::new())
        }
        // Whatever is wrong with an event is the request's fault here, though an append says otherwise.
        Failure::Status(status) => {
            let message = status.message().to_owned();
            let detail = BadRequestDetail { message }.encode_to_vec();
            of(
                code::INVALID_ARGUMENT,
                status.message().to_owned(),
                "BadRequest",
                detail,
            )
        }
    }
}
