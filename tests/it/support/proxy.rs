//! Faults between a client and a store, on demand: [`Proxy`] speaks HTTP and knows DynamoDB's
//! requests, [`Wire`] moves bytes and knows nothing, so that it stands before any server.
//!
//! Nothing happens to a request unless a fault was armed.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// What is done to a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answered with this status, error code and message; the store never sees it.
    Refuse(u16, &'static str, &'static str),
    /// Throttled for this reason.
    Throttle(&'static str),
    /// The store does it, and the answer is a 500.
    ErrorAfter,
    /// The store does it, and the connection is cut before the answer.
    LoseReply,
    /// The connection is cut before the store sees it.
    LoseRequest,
    /// Passed on after a while.
    Delay(Duration),
    /// Only this many keys of a batch read are passed on; the rest comes back unprocessed.
    Unprocessed(usize),
}

#[derive(Debug)]
struct Armed {
    operation: &'static str,
    fault: Fault,
    skip: usize,
    times: usize,
}

/// An HTTP proxy before a DynamoDB.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    upstream: String,
    /// Where requests go that are signed for this region; all others go upstream.
    elsewhere: Option<(&'static str, String)>,
    client: reqwest::Client,
    armed: Mutex<Vec<Armed>>,
    operations: Mutex<Vec<String>>,
    /// Items as they were when reads were frozen, by key; `None`: there was none.
    frozen: Mutex<Option<HashMap<String, Option<Value>>>>,
}

impl Proxy {
    pub(crate) async fn start(upstream: &str) -> Self {
        Self::before(upstream, None).await
    }

    /// As AWS is: a region that is another store, with tables of its own.
    pub(crate) async fn with_region(upstream: &str, region: &'static str, store: &str) -> Self {
        Self::before(upstream, Some((region, store.to_owned()))).await
    }

    async fn before(upstream: &str, elsewhere: Option<(&'static str, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            elsewhere,
            client: reqwest::Client::new(),
            armed: Mutex::default(),
            operations: Mutex::default(),
            frozen: Mutex::default(),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let shared = serving.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| Shared::answer(shared.clone(), request));
                    // A cut connection is an error here, and is meant.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self {
            address,
            shared,
            accepting: task.abort_handle(),
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next `times` requests of `operation` meet the fault.
    pub(crate) fn inject(&self, operation: &'static str, times: usize, fault: Fault) {
        self.inject_after(operation, 0, times, fault);
    }

    /// The same after `skip` of them have passed.
    pub(crate) fn inject_after(&self, operation: &'static str, skip: usize, times: usize, fault: Fault) {
        self.shared.armed.lock().unwrap().push(Armed {
            operation,
            fault,
            skip,
            times,
        });
    }

    /// From now on reads that are not strongly consistent show items as they are now.
    pub(crate) fn freeze_reads(&self) {
        *self.shared.frozen.lock().unwrap() = Some(HashMap::new());
    }

    /// Every request that came, by its operation.
    pub(crate) fn operations(&self) -> Vec<String> {
        self.shared.operations.lock().unwrap().clone()
    }

    /// The operations that came.
    pub(crate) fn operations_sent(&self) -> BTreeSet<String> {
        self.operations().into_iter().collect()
    }

    /// How many requests of `operation` came.
    pub(crate) fn count(&self, operation: &str) -> usize {
        self.operations().iter().filter(|o| *o == operation).count()
    }

    /// Ends all that was armed.
    pub(crate) fn disarm(&self) {
        self.shared.armed.lock().unwrap().clear();
    }

    /// Whether faults are left that no request has met.
    pub(crate) fn is_armed(&self) -> bool {
        !self.shared.armed.lock().unwrap().is_empty()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The connection is to be cut.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

type Reply = Result<Response<Full<Bytes>>, Cut>;

fn reply(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
        .headers_mut()
        .insert("content-type", "application/x-amz-json-1.0".parse().unwrap());
    response
}

impl Shared {
    async fn answer(shared: Arc<Self>, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        let operation = head
            .headers
            .get("x-amz-target")
            .and_then(|target| target.to_str().ok()?.split_once('.'))
            .map_or_else(String::new, |(_, operation)| operation.to_owned());
        shared.operations.lock().unwrap().push(operation.clone());
        let fault = shared.fault(&operation);
        let pass = |body| shared.pass_on(&head.headers, &operation, body);
        match fault {
            None => pass(body).await,
            Some(Fault::Refuse(status, code, message)) => Ok(reply(
                status,
                &json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": message}),
            )),
            Some(Fault::Throttle(reason)) => Ok(reply(
                400,
                &json!({
                    "__type": "com.amazonaws.dynamodb.v20120810#ThrottlingException",
                    "message": "slow down",
                    "throttlingReasons": [{"reason": reason, "resource": "arn:aws:dynamodb:::table/x"}],
                }),
            )),
            Some(Fault::ErrorAfter) => {
                pass(body).await?;
                Ok(reply(
                    500,
                    &json!({"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError", "message": "oops"}),
                ))
            }
            Some(Fault::LoseReply) => {
                pass(body).await?;
                Err(Cut)
            }
            Some(Fault::LoseRequest) => Err(Cut),
            Some(Fault::Delay(while_)) => {
                tokio::time::sleep(while_).await;
                pass(body).await
            }
            Some(Fault::Unprocessed(keep)) => {
                let mut request: Value = serde_json::from_slice(&body).unwrap();
                let mut rest = json!({});
                for (table, keys) in request["RequestItems"].as_object_mut().unwrap() {
                    let all = keys["Keys"].as_array_mut().unwrap();
                    let left = all.split_off(keep.min(all.len()));
                    rest[table] = keys.clone();
                    rest[table]["Keys"] = Value::Array(left);
                }
                // The store takes no request without keys.
                let mut answer = if keep == 0 {
                    json!({"Responses": {}})
                } else {
                    let passed = pass(Bytes::from(request.to_string())).await?;
                    let bytes = passed.into_body().collect().await.map_err(|_| Cut)?.to_bytes();
                    serde_json::from_slice(&bytes).unwrap()
                };
                answer["UnprocessedKeys"] = rest;
                Ok(reply(200, &answer))
            }
        }
    }

    fn fault(&self, operation: &str) -> Option<Fault> {
        let mut armed = self.armed.lock().unwrap();
        let at = armed.iter().position(|a| a.operation == operation)?;
        let found = &mut armed[at];
        if found.skip > 0 {
            found.skip -= 1;
            return None;
        }
        found.times -= 1;
        let fault = found.fault.clone();
        if found.times == 0 {
            armed.remove(at);
        }
        Some(fault)
    }

    async fn pass_on(&self, headers: &http::HeaderMap, operation: &str, body: Bytes) -> Reply {
        if operation == "PutItem" {
            self.remember(headers, &body).await?;
        }
        let (status, reply_headers, mut answer) = self.send(headers, body.clone()).await?;
        let mut is_changed = false;
        if let Some(frozen) = &*self.frozen.lock().unwrap() {
            let request: Value = serde_json::from_slice(&body).unwrap();
            let stale = as_frozen(operation, &request, frozen, &answer);
            is_changed = stale.is_some();
            answer = stale.unwrap_or(answer);
        }
        let mut response = Response::new(Full::new(answer));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for name in ["content-type", "x-amz-crc32", "x-amzn-requestid"] {
            if let Some(value) = reply_headers.get(name)
                && !(is_changed && name == "x-amz-crc32")
            {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(response)
    }

    async fn send(&self, headers: &http::HeaderMap, body: Bytes) -> Result<(u16, http::HeaderMap, Bytes), Cut> {
        // `Credential=KEY/DATE/REGION/dynamodb/aws4_request`
        let signed = headers.get("authorization").map_or("", |value| value.to_str().unwrap());
        let upstream = match &self.elsewhere {
            Some((region, store)) if signed.contains(&format!("/{region}/dynamodb/")) => store,
            _ => &self.upstream,
        };
        let mut request = self.client.post(upstream).body(body);
        for (name, value) in headers {
            if !["host", "content-length", "connection"].contains(&name.as_str()) {
                request = request.header(name, value);
            }
        }
        let response = request.send().await.map_err(|_| Cut)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.map_err(|_| Cut)?;
        Ok((status, headers, body))
    }

    /// Keeps an item as it is before its first put since reads were frozen.
    async fn remember(&self, headers: &http::HeaderMap, body: &Bytes) -> Result<(), Cut> {
        let request: Value = serde_json::from_slice(body).unwrap();
        let key = &request["Item"]["pk"];
        let known = match &*self.frozen.lock().unwrap() {
            None => return Ok(()),
            Some(frozen) => frozen.contains_key(&key.to_string()),
        };
        if known {
            return Ok(());
        }
        let get = json!({"TableName": request["TableName"], "Key": {"pk": key}, "ConsistentRead": true});
        let mut headers = headers.clone();
        headers.insert("x-amz-target", "DynamoDB_20120810.GetItem".parse().unwrap());
        let (_, _, answer) = self.send(&headers, Bytes::from(get.to_string())).await?;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        if let Some(frozen) = &mut *self.frozen.lock().unwrap() {
            frozen
                .entry(key.to_string())
                .or_insert_with(|| answer.get("Item").cloned());
        }
        Ok(())
    }
}

/// A read's answer with the items as they were, when it is one that may be stale.
fn as_frozen(
    operation: &str,
    request: &Value,
    frozen: &HashMap<String, Option<Value>>,
    answer: &Bytes,
) -> Option<Bytes> {
    let mut answer: Value = serde_json::from_slice(answer).ok()?;
    match operation {
        "GetItem" if request["ConsistentRead"] != true => {
            let old = frozen.get(&request["Key"]["pk"].to_string())?;
            match old {
                Some(item) => answer["Item"] = item.clone(),
                None => {
                    answer.as_object_mut()?.remove("Item");
                }
            }
        }
        "BatchGetItem" => {
            for (table, keys) in request["RequestItems"].as_object()? {
                if keys["ConsistentRead"] == true {
                    continue;
                }
                let items = answer["Responses"][table].as_array_mut()?;
                items.retain(|item| !frozen.contains_key(&item["pk"].to_string()));
                for key in keys["Keys"].as_array()? {
                    items.extend(frozen.get(&key["pk"].to_string()).cloned().flatten());
                }
            }
        }
        _ => return None,
    }
    Some(Bytes::from(answer.to_string()))
}

/// A TCP proxy: passes bytes, until it is told to cut, refuse or hang.
pub(crate) struct Wire {
    address: SocketAddr,
    upstream: SocketAddr,
    /// Raised by a cut: connections made before it end.
    cuts: watch::Sender<u64>,
    /// Raised when connections made before it are forgotten.
    forgets: watch::Sender<u64>,
    hangs: Arc<AtomicBool>,
    listening: Mutex<Option<AbortHandle>>,
}

impl Wire {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self {
            address: listener.local_addr().unwrap(),
            upstream,
            cuts: watch::Sender::new(0),
            forgets: watch::Sender::new(0),
            hangs: Arc::default(),
            listening: Mutex::default(),
        };
        wire.listen(listener);
        wire
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn listen(&self, listener: TcpListener) {
        let (upstream, cuts, hangs) = (self.upstream, self.cuts.clone(), self.hangs.clone());
        let forgets = self.forgets.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut cut, hangs) = (cuts.subscribe(), hangs.clone());
                let mut forgotten = forgets.subscribe();
                tokio::spawn(async move {
                    let pass = async {
                        if hangs.load(Ordering::SeqCst) {
                            std::future::pending::<()>().await;
                        }
                        let mut far = TcpStream::connect(upstream).await?;
                        copy_bidirectional(&mut near, &mut far).await
                    };
                    let mut pass = std::pin::pin!(pass);
                    tokio::select! {
                        // Either side's end is the other's.
                        _ = &mut pass => {}
                        _ = cut.changed() => {}
                        // Both sockets stay open, and nothing passes between them.
                        _ = forgotten.changed() => { _ = cut.changed().await }
                    }
                });
            }
        });
        *self.listening.lock().unwrap() = Some(task.abort_handle());
    }

    /// Passes nothing any more on the connections that there are, without a word to either side,
    /// as a gateway does that lost its table. New ones are taken.
    pub(crate) fn forget(&self) {
        self.forgets.send_modify(|forgets| *forgets += 1);
    }

    /// Ends every connection; new ones are taken.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Ends every connection and refuses new ones, as a server that is gone does.
    pub(crate) fn refuse(&self) {
        if let Some(task) = self.listening.lock().unwrap().take() {
            task.abort();
        }
        self.cut();
    }

    /// New connections are taken and never answered, as behind a firewall that drops.
    pub(crate) fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// Passes bytes again.
    pub(crate) async fn resume(&self) {
        if self.hangs.swap(false, Ordering::SeqCst) {
            self.cut();
        }
        if self.listening.lock().unwrap().is_none() {
            // The old listener's end may take the runtime a moment.
            let listener = loop {
                match TcpListener::bind(self.address).await {
                    Ok(listener) => break listener,
                    Err(e) if e.kind() == io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                    Err(e) => panic!("listen on {} again: {e}", self.address),
                }
            };
            self.listen(listener);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.refuse();
    }
}
