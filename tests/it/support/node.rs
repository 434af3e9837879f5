//! The embedded EventStoreDB behind a gate. The gate does, call by call, what a server never does, or
//! only while it dies: it answers nothing, loses an answer, breaks the protocol, is killed and comes
//! back on the same port. Everything else is the server's own answer.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{future::BoxFuture, stream};
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use projector::embedded::eventstore::Handle;
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

use super::{
    eventstore::empty,
    raw::{
        At, Empty, Expect, Raw, RecordedEvent, StreamIdentifier, expecting, groups, of_all, projections, proposed_as,
    },
};

type Reply = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// What is done to one call.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answered with this status and these headers; nothing is done.
    Status(u16, &'static str, Vec<(&'static str, String)>),
    /// Never answered; nothing is done.
    Hang,
    /// Done, and never answered.
    HangAfter,
    /// Done, and every connection is cut before the answer.
    CutAfter,
    /// Done, and this happens before the answer leaves.
    Meanwhile(fn(Raw) -> BoxFuture<'static, ()>),
    /// Answered with a message that has none of its fields.
    Empty,
    /// A subscription that ends in good order, behind its confirmation.
    EndWell,
}

impl Fault {
    pub(crate) fn not_ready() -> Self {
        Self::Status(14, "Server Is Not Ready", vec![])
    }

    pub(crate) fn denied() -> Self {
        Self::Status(7, "Access Denied", vec![("exception", "access-denied".into())])
    }

    pub(crate) fn not_leader(leader: SocketAddr) -> Self {
        Self::Status(
            5,
            "Leader info available",
            vec![
                ("exception", "not-leader".into()),
                ("leader-endpoint-host", leader.ip().to_string()),
                ("leader-endpoint-port", leader.port().to_string()),
            ],
        )
    }
}

/// The node. Dropped, it is gone like a killed process.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    /// Past the gate.
    pub(crate) raw: Raw,
    shared: Arc<Shared>,
    accepting: Mutex<Option<AbortHandle>>,
}

struct Shared {
    server: Mutex<Handle>,
    faults: Mutex<Vec<(&'static str, usize, Fault)>>,
    /// What is answered in the server's place, by the end of the call's path.
    said: Mutex<Vec<(&'static str, Bytes)>>,
    calls: Mutex<Vec<(String, HeaderMap)>>,
    /// Raised to cut every connection.
    cuts: watch::Sender<u64>,
}

impl Node {
    pub(crate) async fn start() -> Self {
        let (server, listener) = (empty().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
        let node = Self {
            address: listener.local_addr().unwrap(),
            raw: Raw::connect(server.address()).await,
            shared: Arc::new(Shared {
                server: Mutex::new(server),
                faults: Mutex::default(),
                said: Mutex::default(),
                calls: Mutex::default(),
                cuts: watch::Sender::new(0),
            }),
            accepting: Mutex::default(),
        };
        node.listen(listener);
        node
    }

    /// As if killed: the port is closed and every connection is cut.
    pub(crate) fn kill(&self) {
        if let Some(task) = self.accepting.lock().unwrap().take() {
            task.abort();
        }
        self.cut();
    }

    /// Cuts every connection and goes on listening.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|n| *n += 1);
    }

    /// Back on the same port, with the same log.
    pub(crate) async fn restart(&self) {
        loop {
            // The old listener is closed when its task has ended.
            if let Ok(listener) = TcpListener::bind(self.address).await {
                return self.listen(listener);
            }
            // A look costs the process under test time of its own.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Another server under the same address, with nothing in it.
    pub(crate) async fn replace(&mut self) {
        let server = empty().await;
        self.raw = Raw::connect(server.address()).await;
        *self.shared.server.lock().unwrap() = server;
        self.cut();
    }

    pub(crate) fn url(&self) -> String {
        format!("esdb://{}?tls=false", self.address)
    }

    /// The next `times` calls of a method whose path ends so meet the fault.
    pub(crate) fn inject(&self, method: &'static str, times: usize, fault: Fault) {
        self.shared.faults.lock().unwrap().push((method, times, fault));
    }

    /// From now on the calls whose path ends so are answered with this message.
    pub(crate) fn say(&self, method: &'static str, message: &impl Message) {
        let mut said = self.shared.said.lock().unwrap();
        said.retain(|(of, _)| *of != method);
        said.push((method, message.encode_to_vec().into()));
    }

    /// Calls whose path ends so, with their headers.
    pub(crate) fn calls(&self, method: &str) -> Vec<HeaderMap> {
        let calls = self.shared.calls.lock().unwrap();
        calls
            .iter()
            .filter(|(path, _)| path.ends_with(method))
            .map(|(_, h)| h.clone())
            .collect()
    }

    /// Everything that was ever written, links included.
    pub(crate) async fn log(&self) -> Vec<RecordedEvent> {
        let (answers, end) = self.raw.read_all(of_all(At::Start)).await;
        assert!(end.is_none(), "{end:?}");
        answers.into_iter().filter_map(|answer| answer.event?.event).collect()
    }

    /// The record of this revision, also when its stream does not show it any more.
    pub(crate) async fn record(&self, stream: &str, revision: u64) -> RecordedEvent {
        let log = self.log().await;
        let mut found = log.into_iter().filter(|record| is_of(record, stream));
        found.find(|record| record.revision == revision).unwrap()
    }

    /// The types of what was written to a stream.
    pub(crate) async fn kinds(&self, stream: &str) -> Vec<String> {
        let log = self.log().await;
        let of = log.iter().filter(|record| is_of(record, stream));
        of.map(|record| super::raw::entry(&record.metadata, "type").to_owned())
            .collect()
    }

    /// Writes an event that says it is JSON, whatever it is.
    pub(crate) async fn push(&self, stream: &str, kind: &str, data: &[u8]) {
        push(&self.raw, stream, kind, data).await;
    }

    pub(crate) async fn truncate(&self, stream: &str, before: u64) {
        let metadata = format!("{{\"$tb\":{before}}}");
        self.push(&format!("$${stream}"), "$metadata", metadata.as_bytes())
            .await;
    }

    pub(crate) async fn soft_delete(&self, stream: &str) {
        self.raw.delete("Delete", expecting(stream, Expect::Any)).await.unwrap();
    }

    pub(crate) async fn tombstone(&self, stream: &str) {
        let options = expecting(stream, Expect::Any);
        self.raw.delete("Tombstone", options).await.unwrap();
    }

    /// `$by_category` stands still.
    pub(crate) async fn stop_links(&self) {
        let options = projections::SwitchOptions {
            name: "$by_category".to_owned(),
            write_checkpoint: true,
        };
        let request = projections::SwitchReq { options: Some(options) };
        let path = "event_store.client.projections.Projections/Disable";
        let _: Empty = self.raw.ask(path, vec![request]).await.unwrap();
    }

    /// What the server says of a group.
    pub(crate) async fn group(&self, stream: &str, group: &str) -> groups::WireInfo {
        let options = groups::InfoOptions {
            stream: Some(StreamIdentifier::new(stream)),
            all: None,
            group: group.to_owned(),
        };
        let request = groups::InfoReq { options: Some(options) };
        let answer: groups::InfoResp = self.raw.group("GetInfo", request).await.unwrap();
        answer.info.unwrap()
    }

    fn listen(&self, listener: TcpListener) {
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let mut cut = shared.cuts.subscribe();
                    tokio::select! {
                        () = serve(shared, socket) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        *self.accepting.lock().unwrap() = Some(task.abort_handle());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_of(record: &RecordedEvent, stream: &str) -> bool {
    record.stream.as_ref().is_some_and(|of| of.name == stream)
}

pub(crate) async fn push(raw: &Raw, stream: &str, kind: &str, data: &[u8]) {
    let event = proposed_as(
        uuid::Uuid::new_v4().as_u128(),
        kind,
        "application/json",
        Bytes::copy_from_slice(data),
    );
    let answer = raw.append(expecting(stream, Expect::Any), vec![event]).await;
    assert!(answer.unwrap().success.is_some());
}

/// One connection, and one to the server that lives as long.
async fn serve(shared: Arc<Shared>, socket: TcpStream) {
    let server = shared.server.lock().unwrap().address();
    let Ok(behind) = TcpStream::connect(server).await else {
        return;
    };
    socket.set_nodelay(true).unwrap();
    behind.set_nodelay(true).unwrap();
    let Ok((sender, connection)) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(behind)).await
    else {
        return;
    };
    let service = service_fn(move |request| answer(shared.clone(), sender.clone(), server, request));
    let serving =
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service);
    // The end of either is the other's, and nobody's concern here.
    tokio::select! {
        _ = serving => {}
        _ = connection => {}
    }
}

async fn answer(
    shared: Arc<Shared>,
    sender: SendRequest<Incoming>,
    server: SocketAddr,
    request: Request<Incoming>,
) -> hyper::Result<Reply> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    shared.calls.lock().unwrap().push((path.clone(), headers));
    match shared.fault(&path) {
        Some(Fault::Status(code, message, headers)) => Ok(reply(None, trailers(code, message, &headers))),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Empty) => Ok(reply(Some(Bytes::new()), trailers(0, "", &[]))),
        Some(Fault::HangAfter) => {
            whole(pass(sender, server, request).await?).await?;
            std::future::pending().await
        }
        Some(Fault::CutAfter) => {
            whole(pass(sender, server, request).await?).await?;
            shared.cuts.send_modify(|n| *n += 1);
            std::future::pending().await
        }
        Some(Fault::Meanwhile(happen)) => {
            let reply = whole(pass(sender, server, request).await?).await?;
            happen(Raw::connect(server).await).await;
            Ok(reply)
        }
        Some(Fault::EndWell) => {
            let mut reply_of_server = pass(sender, server, request).await?;
            let first = reply_of_server.body_mut().frame().await.unwrap()?;
            let first = first.into_data().unwrap();
            let length = u32::from_be_bytes(first[1..HEADER].try_into().unwrap()) as usize;
            Ok(reply(Some(first.slice(HEADER..HEADER + length)), trailers(0, "", &[])))
        }
        None => match shared.said(&path) {
            Some(message) => Ok(reply(Some(message), trailers(0, "", &[]))),
            None => pass(sender, server, request).await,
        },
    }
}

impl Shared {
    fn fault(&self, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let (_, times, fault) = faults
            .iter_mut()
            .find(|(method, times, _)| *times > 0 && path.ends_with(*method))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn said(&self, path: &str) -> Option<Bytes> {
        let said = self.said.lock().unwrap();
        let found = said.iter().find(|(method, _)| path.ends_with(*method));
        found.map(|(_, message)| message.clone())
    }
}

/// The server's own answer.
async fn pass(
    mut sender: SendRequest<Incoming>,
    server: SocketAddr,
    request: Request<Incoming>,
) -> hyper::Result<Reply> {
    let (mut parts, body) = request.into_parts();
    parts.uri = Uri::try_from(format!("http://{server}{}", parts.uri.path())).unwrap();
    sender.ready().await?;
    let reply = sender.send_request(Request::from_parts(parts, body)).await?;
    Ok(reply.map(BodyExt::boxed_unsync))
}

/// An answer that has come to its end.
async fn whole(reply: Reply) -> hyper::Result<Reply> {
    let (parts, body) = reply.into_parts();
    let body = body.collect().await?.map_err(|never| match never {});
    Ok(Response::from_parts(parts, body.boxed_unsync()))
}

/// Before each message: whether it is compressed, and its length.
const HEADER: usize = 5;

/// An answer of ours: a message or none, and how it ends.
fn reply(message: Option<Bytes>, end: HeaderMap) -> Reply {
    let framed = message.map(|message| {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(message.len() as u32);
        bytes.put(message);
        Ok(Frame::data(bytes.freeze()))
    });
    // Without a message the headers are the trailers as well.
    let (headers, end) = match framed {
        Some(_) => (HeaderMap::new(), Some(Ok(Frame::trailers(end)))),
        None => (end, None),
    };
    let body = StreamBody::new(stream::iter(framed.into_iter().chain(end)));
    let mut reply = Response::new(body.boxed_unsync());
    *reply.headers_mut() = headers;
    let grpc = http::HeaderValue::from_static("application/grpc");
    reply.headers_mut().insert("content-type", grpc);
    reply
}

fn trailers(code: u16, message: &str, headers: &[(&'static str, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", code.into());
    map.insert("grpc-message", message.parse().unwrap());
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    map
}

/// Until `holds`; whatever takes longer than this, on however busy a machine, has failed.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_mins(1), async {
        while !holds().await {
            // A look costs the process under test time of its own.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never came true: {what}"));
}
