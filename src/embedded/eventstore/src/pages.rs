//! What a node answers over plain HTTP: to probes, to load balancers, to tools that ask who leads, and
//! to a client that writes one event. Keeps: an event that comes this way is one like any other.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Serialize;
use tonic::{
    body::BoxBody,
    codegen::{Body, StdError},
};
use uuid::Uuid;

use super::{
    about,
    access::Right,
    log::{Expected, NewEvent, WriteError},
    node::Node,
    streams::MAX_MESSAGE,
};

/// The header that names an event's type.
const TYPE: &str = "es-eventtype";
/// The header that names its id; without one EventStoreDB sends the client where it has one.
const ID: &str = "es-eventid";
/// The header that says which revision is expected, as a number.
const EXPECTED: &str = "es-expectedversion";
/// The header that says which revision was found instead.
const CURRENT: &str = "es-currentversion";

/// Answers one request.
pub(super) async fn answer<B>(node: &Arc<Node>, request: Request<B>) -> Response<BoxBody>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET | &Method::HEAD, "/health/live") => {
            if node.stopping.is_cancelled() || node.faults.not_ready() {
                text(StatusCode::SERVICE_UNAVAILABLE, "")
            } else {
                text(StatusCode::NO_CONTENT, "")
            }
        }
        (&Method::GET, "/ping") => text(
            StatusCode::OK,
            "{\"msgTypeId\":\"ping\",\"text\":\"Ping request successfully handled\"}",
        ),
        (&Method::GET, "/info") => {
            json(&serde_json::json!({ "esVersion": about::VERSION, "state": "leader", "projectionsMode": "System" }))
        }
        (&Method::GET, "/gossip") => json(&Gossip::of(node)),
        (&Method::POST, _) if path.starts_with("/streams/") => written(node, request, &path).await,
        _ => text(
            StatusCode::NOT_FOUND,
            "this server speaks gRPC, and answers /health/live, /ping, /info and /gossip\n",
        ),
    }
}

fn text(code: StatusCode, text: &str) -> Response<BoxBody> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
}

fn json(value: &impl Serialize) -> Response<BoxBody> {
    let mut response = match serde_json::to_string_pretty(value) {
        Ok(value) => text(StatusCode::OK, &value),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    let json = header::HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// The cluster, in the words of EventStoreDB's HTTP API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Gossip {
    members: Vec<Told>,
    server_ip: String,
    server_port: u16,
}

/// A node of it. Nothing here speaks EventStoreDB's old protocol over TCP, which port 0 says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    instance_id: Uuid,
    time_stamp: String,
    state: &'static str,
    is_alive: bool,
    internal_tcp_ip: String,
    internal_tcp_port: u16,
    internal_secure_tcp_port: u16,
    external_tcp_ip: String,
    external_tcp_port: u16,
    external_secure_tcp_port: u16,
    internal_http_end_point_ip: String,
    internal_http_end_point_port: u16,
    http_end_point_ip: String,
    http_end_point_port: u16,
    last_commit_position: u64,
    writer_checkpoint: u64,
    chaser_checkpoint: u64,
    epoch_position: i64,
    epoch_number: i32,
    epoch_id: Uuid,
    node_priority: i32,
    is_read_only_replica: bool,
    es_version: &'static str,
}

impl Gossip {
    fn of(node: &Node) -> Self {
        let members = node.members.all();
        let own = members.iter().find(|member| member.id == node.id);
        let (server_ip, server_port) = own.map_or_else(Default::default, |own| (own.host.clone(), own.port));
        let (head, end) = (node.log.head().unwrap_or_default(), node.log.end());
        let told = members.into_iter().map(|member| Told {
            instance_id: member.id,
            time_stamp: Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
            state: if member.leader { "Leader" } else { "Follower" },
            is_alive: member.alive,
            internal_tcp_ip: member.host.clone(),
            internal_tcp_port: 0,
            internal_secure_tcp_port: 0,
            external_tcp_ip: member.host.clone(),
            external_tcp_port: 0,
            external_secure_tcp_port: 0,
            internal_http_end_point_ip: member.host.clone(),
            internal_http_end_point_port: member.port,
            http_end_point_ip: member.host,
            http_end_point_port: member.port,
            last_commit_position: head,
            writer_checkpoint: end,
            chaser_checkpoint: end,
            epoch_position: 0,
            epoch_number: 0,
            epoch_id: Uuid::nil(),
            node_priority: 0,
            is_read_only_replica: false,
            es_version: about::VERSION,
        });
        Self {
            members: told.collect(),
            server_ip,
            server_port,
        }
    }
}

/// A stream's name as a path has it.
fn unescaped(escaped: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// An expectation as EventStoreDB numbers it.
fn expected(number: &str) -> Option<Expected> {
    Some(match number.trim().parse::<i64>().ok()? {
        -1 => Expected::NoStream,
        -2 => Expected::Any,
        -4 => Expected::StreamExists,
        number => Expected::Exact(u64::try_from(number).ok()?),
    })
}

fn said<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// One event, written to `/streams/STREAM`, or to `/streams/STREAM/incoming/ID`. The body is its data,
/// as it stands: whether it is JSON is what its content type says, not what it looks like.
async fn written<B>(node: &Arc<Node>, request: Request<B>, path: &str) -> Response<BoxBody>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let headers = request.headers().clone();
    let rest = path.trim_start_matches("/streams/");
    let (stream, in_path) = rest
        .split_once("/incoming/")
        .map_or((rest, None), |(s, id)| (s, Some(id)));
    let Some(stream) = unescaped(stream).filter(|stream| !stream.is_empty() && !stream.contains('/')) else {
        return text(StatusCode::NOT_FOUND, "Not Found");
    };
    let bad = |what: &str| text(StatusCode::BAD_REQUEST, what);
    let json = match said(&headers, "content-type").and_then(|value| value.split(';').next()) {
        Some("application/json") => true,
        Some("application/octet-stream") => false,
        _ => return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"),
    };
    let Some(event_type) = said(&headers, TYPE).filter(|said| !said.is_empty()) else {
        return bad("Must include an event type with the request either in body or as ES-EventType header.");
    };
    let Some(id) = in_path.or(said(&headers, ID)) else {
        let mut response = text(StatusCode::TEMPORARY_REDIRECT, "Forwarding to idempotent URI");
        let host = said(&headers, "host").unwrap_or_default();
        let scheme = if node.tls { "https" } else { "http" };
        let to = format!("{scheme}://{host}{path}/incoming/{}", Uuid::new_v4());
        if let Ok(to) = to.try_into() {
            response.headers_mut().insert(header::LOCATION, to);
        }
        return response;
    };
    let Some(id) = Uuid::parse_str(id).ok().filter(|id| !id.is_nil()) else {
        return bad("ES-EventId header in wrong format.");
    };
    let Some(expected) = said(&headers, EXPECTED).map_or(Some(Expected::Any), expected) else {
        return bad("ES-ExpectedVersion header in wrong format.");
    };
    let Ok(identity) = node.users.identify(said(&headers, "authorization")) else {
        return text(StatusCode::UNAUTHORIZED, "Unauthorized");
    };
    if let Err(refused) = node.check(&identity, Right::Write, &stream).await {
        return match refused.code() {
            tonic::Code::PermissionDenied => text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, refused.message()),
        };
    }
    let Ok(data) = Limited::new(request.into_body(), MAX_MESSAGE).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "Too large events received.");
    };
    let event = NewEvent {
        id,
        event_type: event_type.into(),
        json,
        data: data.to_bytes(),
        metadata: Bytes::new(),
    };
    let stream: Arc<str> = stream.into();
    match node.log.append(Arc::clone(&stream), expected, vec![event]).await {
        Ok(appended) => {
            let mut response = text(StatusCode::CREATED, "");
            let at = format!("{path}/{}", appended.revision.unwrap_or_default());
            if let Ok(at) = at.try_into() {
                response.headers_mut().insert(header::LOCATION, at);
            }
            response
        }
        Err(WriteError::WrongExpectedVersion { current }) => {
            let mut response = bad("Wrong expected EventNumber");
            let current = current.map_or(-1, |current| current as i64);
            response
                .headers_mut()
                .insert(HeaderName::from_static(CURRENT), current.into());
            response
        }
        Err(WriteError::StreamDeleted) => text(StatusCode::GONE, "Stream deleted"),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_stream() {
        assert_eq!(unescaped("a-1").as_deref(), Some("a-1"));
        assert_eq!(unescaped("%24ce-a%C3%B6").as_deref(), Some("$ce-aö"));
        for wrong in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(unescaped(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn expectations_are_numbers() {
        let all = ["-1", "-2", "-4", "0", "7"].map(expected);
        let of = Expected::Exact;
        assert_eq!(
            all,
            [Expected::NoStream, Expected::Any, Expected::StreamExists, of(0), of(7)].map(Some)
        );
        assert_eq!((expected("-3"), expected("x")), (None, None));
    }
}
