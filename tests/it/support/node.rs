//! A node that speaks EventStoreDB's protocol and misbehaves on demand: what a healthy server
//! never does, or only while it is dying, is scripted here call by call.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::AbortHandle,
};

use self::{
    calls::{call, key, parked_stream},
    log::{Log, position},
    messages::*,
};

mod calls;
pub(crate) mod log;
pub(crate) mod messages;

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Reply = Response<Body>;

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
    /// Done, and this happens to the log before the answer leaves.
    Meanwhile(fn(&mut Log)),
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
    shared: Arc<Shared>,
    accepting: Mutex<Option<AbortHandle>>,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

struct Shared {
    log: Mutex<Log>,
    faults: Mutex<Vec<(&'static str, usize, Fault)>>,
    calls: Mutex<Vec<(String, HeaderMap)>>,
    /// Raised by whatever may give a consumer something to do.
    moved: watch::Sender<u64>,
    /// Raised to cut every connection.
    cuts: watch::Sender<u64>,
    consumers: AtomicU64,
    members: Mutex<Vec<(SocketAddr, i32)>>,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With TLS on, and the certificate (PEM) by which it is known.
    pub(crate) async fn start_tls() -> (Self, String) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let signed = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
        // Its own provider: the process-wide one is the client's to install.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        (Self::start_with(Some(tls)).await, signed.cert.pem())
    }

    async fn start_with(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Shared {
                log: Mutex::new(Log {
                    version: "24.10.14".to_owned(),
                    ..Log::default()
                }),
                faults: Mutex::default(),
                calls: Mutex::default(),
                moved: watch::Sender::new(0),
                cuts: watch::Sender::new(0),
                consumers: AtomicU64::new(1),
                members: Mutex::default(),
            }),
            accepting: Mutex::default(),
            tls,
        };
        node.listen(listener);
        node
    }

    /// As if killed: the port is closed and every connection is cut.
    pub(crate) fn kill(&self) {
        if let Some(task) = self.accepting.lock().unwrap().take() {
            task.abort();
        }
        self.shared.cuts.send_modify(|n| *n += 1);
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

    pub(crate) fn url(&self) -> String {
        format!("esdb://{}?tls=false", self.address)
    }

    pub(crate) fn log<T>(&self, with: impl FnOnce(&mut Log) -> T) -> T {
        let result = with(&mut self.shared.log.lock().unwrap());
        self.shared.moved.send_modify(|n| *n += 1);
        result
    }

    /// The next `times` calls of a method whose path ends so meet the fault.
    pub(crate) fn inject(&self, method: &'static str, times: usize, fault: Fault) {
        self.shared.faults.lock().unwrap().push((method, times, fault));
    }

    pub(crate) fn members(&self, members: Vec<(SocketAddr, i32)>) {
        *self.shared.members.lock().unwrap() = members;
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

    fn listen(&self, listener: TcpListener) {
        let (shared, tls) = (self.shared.clone(), self.tls.clone());
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                let (shared, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    let mut cut = shared.cuts.subscribe();
                    let serve = async {
                        match tls {
                            None => serve(shared.clone(), socket).await,
                            Some(tls) => {
                                if let Ok(socket) = tls.accept(socket).await {
                                    serve(shared.clone(), socket).await;
                                }
                            }
                        }
                    };
                    tokio::select! {
                        () = serve => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        *self.accepting.lock().unwrap() = Some(task.abort_handle());
    }
}

async fn serve<S>(shared: Arc<Shared>, socket: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(shared.clone(), request));
    // Its end is nobody's concern here.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let path = request.uri().path().to_owned();
    shared
        .calls
        .lock()
        .unwrap()
        .push((path.clone(), request.headers().clone()));
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        let at = faults
            .iter()
            .position(|(method, times, _)| *times > 0 && path.ends_with(method));
        at.map(|at| {
            faults[at].1 -= 1;
            faults[at].2.clone()
        })
    };
    match &fault {
        Some(Fault::Status(code, message, headers)) => return Ok(status(*code, message, headers)),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Empty) => return Ok(ok(&[Empty {}])),
        _ => {}
    }
    let reply = if path.ends_with("PersistentSubscriptions/Read") {
        consume(
            shared.clone(),
            request.into_body(),
            matches!(fault, Some(Fault::EndWell)),
        )
        .await
    } else {
        let body = request
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        let messages = frames(&mut BytesMut::from(body.unwrap_or_default()));
        call(&shared, &path, &messages)
    };
    match fault {
        Some(Fault::HangAfter) => std::future::pending().await,
        Some(Fault::CutAfter) => {
            shared.cuts.send_modify(|n| *n += 1);
            std::future::pending().await
        }
        Some(Fault::Meanwhile(happen)) => {
            happen(&mut shared.log.lock().unwrap());
            Ok(reply)
        }
        _ => Ok(reply),
    }
}

/// Whole messages, taken out of `buffer`.
fn frames(buffer: &mut BytesMut) -> Vec<Bytes> {
    let mut found = Vec::new();
    while buffer.len() >= 5 {
        let length = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
        if buffer.len() < 5 + length {
            break;
        }
        buffer.advance(5);
        found.push(buffer.split_to(length).freeze());
    }
    found
}

fn frame(message: &impl Message) -> Frame<Bytes> {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    Frame::data(bytes.freeze())
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

fn with_headers(body: Body, headers: HeaderMap) -> Reply {
    let mut reply = Response::new(body);
    *reply.headers_mut() = headers;
    reply
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    reply
}

fn status(code: u16, message: &str, headers: &[(&'static str, String)]) -> Reply {
    let nothing = StreamBody::new(stream::empty::<Result<Frame<Bytes>, Infallible>>());
    with_headers(nothing.boxed_unsync(), trailers(code, message, headers))
}

fn exception(code: u16, name: &str) -> Reply {
    status(code, name, &[("exception", name.to_owned())])
}

fn ok<M: Message>(messages: &[M]) -> Reply {
    let end = Frame::trailers(trailers(0, "", &[]));
    let all: Vec<_> = messages
        .iter()
        .map(frame)
        .chain([end])
        .map(Ok::<_, Infallible>)
        .collect();
    with_headers(StreamBody::new(stream::iter(all)).boxed_unsync(), HeaderMap::new())
}

/// One consumer of a group.
async fn consume(shared: Arc<Shared>, mut body: Incoming, end_well: bool) -> Reply {
    let mut buffer = BytesMut::new();
    let options = loop {
        match body.frame().await {
            Some(Ok(frame)) => buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
            _ => return status(3, "no request", &[]),
        }
        if let Some(first) = frames(&mut buffer).first() {
            break GroupReadReq::decode(first.clone()).unwrap().options.unwrap();
        }
    };
    let key = key(options.stream.as_ref(), options.group);
    let me = shared.consumers.fetch_add(1, Ordering::SeqCst);
    let dropped = {
        let mut log = shared.log.lock().unwrap();
        let Some(group) = log.groups.get_mut(&key) else {
            return exception(5, "persistent-subscription-does-not-exist");
        };
        group.consumers.insert(me);
        group.dropped
    };
    let (out, replies) = mpsc::unbounded_channel::<Frame<Bytes>>();
    let confirmation = Confirmation { id: me.to_string() };
    // Nobody has hung up yet.
    let _ = out.send(frame(&ReadResp {
        confirmation: Some(confirmation),
        ..ReadResp::default()
    }));
    tokio::spawn(async move {
        let mut moved = shared.moved.subscribe();
        let end = loop {
            if end_well {
                break Some(trailers(0, "", &[]));
            }
            if !push(&shared, &key, me, options.buffer as usize, dropped, &out) {
                break Some(trailers(
                    1,
                    "dropped",
                    &[("exception", "persistent-subscription-dropped".to_owned())],
                ));
            }
            tokio::select! {
                _ = moved.changed() => {}
                () = out.closed() => break None,
                frame = body.frame() => {
                    let Some(Ok(frame)) = frame else { break None };
                    buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
                    for message in frames(&mut buffer) {
                        settle(&mut shared.log.lock().unwrap(), &key, &message);
                    }
                }
            }
        };
        if let Some(end) = end {
            let _ = out.send(Frame::trailers(end));
        }
        shared.log.lock().unwrap().leave(&key, me);
        shared.moved.send_modify(|n| *n += 1);
    });
    let frames = stream::unfold(replies, |mut replies| async move {
        replies.recv().await.map(|frame| (Ok::<_, Infallible>(frame), replies))
    });
    with_headers(StreamBody::new(frames).boxed_unsync(), HeaderMap::new())
}

/// Hands over what there is room for; false when the group is gone or has dropped its consumers.
fn push(
    shared: &Shared,
    key: &(String, String),
    me: u64,
    buffer: usize,
    dropped: u64,
    out: &mpsc::UnboundedSender<Frame<Bytes>>,
) -> bool {
    let mut log = shared.log.lock().unwrap();
    loop {
        match log.groups.get(key) {
            Some(group) if group.dropped == dropped => {
                if group.in_flight_of(me) >= buffer {
                    return true;
                }
            }
            _ => return false,
        }
        let Some((index, retry, resolve)) = log.take(key, me) else {
            return true;
        };
        let parked = log.records[index].stream == parked_stream(key);
        let (event, link) = log.resolved(index, resolve || parked);
        let event = ReadEvent {
            event,
            link,
            commit: Some(position(index)),
            retry: Some(retry),
        };
        let _ = out.send(frame(&ReadResp {
            event: Some(event),
            ..ReadResp::default()
        }));
    }
}

fn settle(log: &mut Log, key: &(String, String), message: &Bytes) {
    let request = GroupReadReq::decode(message.clone()).unwrap();
    for id in request.ack.iter().flat_map(|ack| &ack.ids) {
        if let Some(group) = log.groups.get_mut(key) {
            group.ack(id.uuid());
        }
    }
    let Some(nack) = request.nack else { return };
    for id in &nack.ids {
        let given_back = log
            .groups
            .get_mut(key)
            .and_then(|g| g.nack(id.uuid(), nack.action == 1));
        if let Some(index) = given_back.filter(|_| nack.action == 1) {
            let record = &log.records[index];
            let data = if record.kind == "$>" {
                record.data.clone()
            } else {
                format!("{}@{}", record.revision, record.stream).into_bytes()
            };
            log.push(&parked_stream(key), "$>", &data, false);
            let note = HashMap::from([("reason", format!("Client explicitly NAK'ed message.\n{}", nack.reason))]);
            if let Some(last) = log.records.last_mut() {
                last.metadata = serde_json::to_vec(&note).unwrap();
            }
        }
    }
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
