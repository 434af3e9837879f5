//! The routes, and what errors come to in HTTP: what a service of your own would look like.
//!
//! Every answer says what it is: a command's has a token, a query's its version and freshness.

use std::{fmt::Display, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use projector::{
    aggregate::{Command, Existence},
    command::{CommandError, Context},
    event::Revision,
    query::{Answer, Mode, Moment, QueryError, WhenLate},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{Service, account::Refusal, bus};

/// The caller's id for a command; repeated with the same one, the command lands once.
const KEY: &str = "idempotency-key";
/// What a command's answer hands to later queries; also what queries answer with, so that a reader
/// who passes it on never sees an account go backwards.
const TOKEN: &str = "projector-token";
/// Who asks: written beside the events, for whoever looks into them later.
const USER: &str = "x-user";
/// What a request belongs to, where its caller says so.
const CORRELATION: &str = "x-correlation-id";
/// The trace that a request is part of, as the W3C has it.
const TRACE: &str = "traceparent";
/// What an answer is known to be.
const FRESHNESS: &str = "projector-freshness";
/// How long a query with a token waits for the daemon before it folds the stream's tail itself:
/// usually it is there in milliseconds.
const WAIT: Duration = Duration::from_millis(250);
/// When to come again, in seconds: the shortest that the header can say.
const SOON: &str = "1";
/// Accounts in one request: two requests to the table.
const MOST: usize = 200;

pub(crate) fn router(service: Service) -> Router {
    Router::new()
        .route("/accounts", get(read_many))
        .route("/accounts/{id}", get(read).post(open))
        .route("/accounts/{id}/activity", get(activity))
        .route("/accounts/{id}/deposits", post(deposit))
        .route("/accounts/{id}/withdrawals", post(withdraw))
        .route("/accounts/{id}/closure", post(close))
        .route("/accounts/{id}/commands/{name}", post(any))
        .route("/metrics", get(metrics))
        .with_state(service)
}

async fn open(State(s): State<Service>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Answered {
    execute(&s, &id, "open", &headers, &body).await
}

async fn deposit(State(s): State<Service>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Answered {
    execute(&s, &id, "deposit", &headers, &body).await
}

async fn withdraw(State(s): State<Service>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Answered {
    execute(&s, &id, "withdraw", &headers, &body).await
}

async fn close(State(s): State<Service>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Answered {
    execute(&s, &id, "close", &headers, &body).await
}

/// Any command, by its name: a new one needs no route.
async fn any(
    State(s): State<Service>,
    Path((id, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answered {
    execute(&s, &id, &name, &headers, &body).await
}

async fn execute(service: &Service, id: &str, name: &str, headers: &HeaderMap, body: &[u8]) -> Answered {
    let context = context(headers, body)?;
    let command = bus::command(name, body)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no command `{name}`")))?
        .map_err(|error| Problem::bad(format!("the body makes no sense: {error}")))?;
    // `If-Match: *` asks for an account that is there: what commands for existing ones ask for anyhow.
    let any = headers.get(header::IF_MATCH).is_some_and(|tag| tag == "*");
    if any && command.existence() != Existence::Existing {
        return Err(Problem::nothing_matches());
    }
    let done = service.accounts.execute_with(id, &command, context).await;
    let done = done.map_err(|error| match error {
        CommandError::NotFound { .. } if any => Problem::nothing_matches(),
        error => error.into(),
    })?;
    let said = [(KEY, done.command.to_string()), (TOKEN, done.token().to_string())];
    let body = json!({
        "account": done.state,
        "revision": done.revision,
        "repeated": done.repeated,
    });
    // The state is that of the tag's revision, also where a repetition is answered.
    Ok((said, tag(done.version), Json(body)).into_response())
}

/// What the request says beside its command.
fn context(headers: &HeaderMap, body: &[u8]) -> Result<Context, Problem> {
    let mut context = Context::default();
    if let Some(key) = header::<Uuid>(headers, KEY)? {
        context = Context::with_id(key).fingerprint(fingerprint(body));
    }
    if let Some(revision) = if_match(headers)? {
        context = context.expecting(revision);
    }
    if let Some(user) = header::<String>(headers, USER)? {
        context = context.user(user);
    }
    if let Some(request) = header::<String>(headers, CORRELATION)? {
        context = context.correlation(request);
    }
    if let Some(trace) = header::<String>(headers, TRACE)? {
        context = context.traceparent(trace);
    }
    Ok(context)
}

/// Tells one body from another: a key that comes again with another one is a mistake of the caller's.
fn fingerprint(body: &[u8]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, body).to_string()
}

/// The revision of the account that the caller has seen, as [`tag`] told it.
fn if_match(headers: &HeaderMap) -> Result<Option<Revision>, Problem> {
    let Some(tag) = header::<String>(headers, header::IF_MATCH.as_str())? else {
        return Ok(None);
    };
    if tag == "*" {
        return Ok(None);
    }
    let revision = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    let revision = revision.and_then(|revision| revision.parse().ok());
    revision
        .map(Some)
        .ok_or_else(|| Problem::bad("If-Match is no tag of ours: send back an ETag, such as \"3\""))
}

/// What `If-Match` takes: the revision that an account was shown at.
fn tag(version: Option<Revision>) -> Option<[(header::HeaderName, String); 1]> {
    version.map(|version| [(header::ETAG, format!("\"{version}\""))])
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Reading {
    #[serde(default)]
    read: How,
    as_of: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    #[default]
    Eventual,
    AtLeast,
    Strong,
    AsOf,
}

async fn read(
    State(service): State<Service>,
    Path(id): Path<String>,
    headers: HeaderMap,
    reading: Result<Query<Reading>, QueryRejection>,
) -> Answered {
    let Query(reading) = reading?;
    let mode = match (reading.read, reading.as_of) {
        (How::AsOf, Some(at)) => Mode::AsOf(moment(&at)?),
        (How::AsOf, None) => return Err(Problem::bad("read=as-of needs as-of=REVISION or as-of=TIME")),
        (_, Some(_)) => return Err(Problem::bad("as-of=… goes with read=as-of")),
        (How::Eventual, None) => Mode::Eventual,
        (How::Strong, None) => Mode::Strong,
        (How::AtLeast, None) => Mode::AtLeast {
            token: header(&headers, TOKEN)?
                .ok_or_else(|| Problem::bad("read=at-least needs a token in the header Projector-Token"))?,
            timeout: WAIT,
            then: WhenLate::FoldTail,
        },
    };
    let answer = service.views.get(&id, &mode).await?;
    let answer = answer.ok_or_else(|| Problem::nobody(&id))?;
    let said = [
        (TOKEN, answer.token().to_string()),
        (FRESHNESS, answer.known.label().to_owned()),
    ];
    Ok((said, tag(answer.version()), Json(shown(&answer))).into_response())
}

async fn activity(State(service): State<Service>, Path(id): Path<String>) -> Answered {
    let answer = service.activity.get(&id, &Mode::Eventual).await?;
    let answer = answer.ok_or_else(|| Problem::nobody(&id))?;
    Ok(Json(json!({ "activity": answer.state, "version": answer.version() })).into_response())
}

/// A revision, or a time as RFC 3339 has it.
fn moment(text: &str) -> Result<Moment, Problem> {
    if let Ok(revision) = text.parse() {
        return Ok(Moment::Revision(revision));
    }
    DateTime::parse_from_rfc3339(text)
        .map(|time| Moment::Time(time.with_timezone(&Utc)))
        .map_err(|_| Problem::bad("as-of is neither a revision, such as 3, nor a time, such as 2030-01-31T12:00:00Z"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Many {
    ids: String,
}

async fn read_many(State(service): State<Service>, many: Result<Query<Many>, QueryRejection>) -> Answered {
    let Query(Many { ids }) = many?;
    let ids: Vec<&str> = ids.split(',').collect();
    if ids.len() > MOST {
        return Err(Problem::bad(format!("at most {MOST} accounts at once")));
    }
    // That one of them is gone or cannot be read is no matter to the others.
    let accounts = service
        .views
        .get_many(&ids)
        .await?
        .into_iter()
        .map(|found| match found {
            Ok(Some(answer)) => Ok(shown(&answer)),
            Ok(None) | Err(QueryError::Deleted { .. }) => Ok(Value::Null),
            Err(error) => Err(Problem::from(error)),
        });
    let accounts: Vec<Value> = accounts
        .map(|account| account.unwrap_or_else(|problem| json!({ "error": problem.message })))
        .collect();
    Ok(([(FRESHNESS, "eventual")], Json(json!({ "accounts": accounts }))).into_response())
}

fn shown<V: Serialize>(answer: &Answer<V>) -> Value {
    json!({
        "account": answer.state,
        "version": answer.version(),
        "freshness": answer.known.label(),
    })
}

async fn metrics(State(service): State<Service>) -> Answered {
    prometheus::TextEncoder::new()
        .encode_to_string(&service.registry.gather())
        .map(|text| ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
        .map_err(|error| Problem::fault(&error))
}

/// A header's value, when it is there; nonsense in it is the caller's mistake.
fn header<T: std::str::FromStr<Err: Display>>(headers: &HeaderMap, name: &str) -> Result<Option<T>, Problem> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let nonsense = |error: &dyn Display| Problem::bad(format!("the header {name} makes no sense: {error}"));
    let text = value.to_str().map_err(|error| nonsense(&error))?;
    text.parse().map(Some).map_err(|error: T::Err| nonsense(&error))
}

type Answered = Result<Response, Problem>;

/// What went wrong, for whoever asked.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    message: String,
    again: bool,
    command: Option<Uuid>,
}

impl Problem {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            again: false,
            command: None,
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn nobody(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no account `{id}`"))
    }

    fn nothing_matches() -> Self {
        let problem = "If-Match: * is for commands on accounts that are there";
        Self::new(StatusCode::PRECONDITION_FAILED, problem)
    }

    fn gone() -> Self {
        Self::new(StatusCode::GONE, "the account was deleted")
    }

    /// The caller can do nothing, and need not know how we are built.
    fn fault(error: &dyn Display) -> Self {
        tracing::error!(%error, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "that is our fault; it was logged")
    }

    fn again(mut self) -> Self {
        self.again = true;
        self
    }

    fn away(error: &dyn Display) -> Self {
        tracing::warn!(%error, "a store is unavailable");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "a store is unavailable; try again").again()
    }
}

impl From<CommandError<Refusal>> for Problem {
    fn from(error: CommandError<Refusal>) -> Self {
        match error {
            CommandError::Rejected(refusal) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, refusal.to_string()),
            CommandError::Conflict { actual, .. } => Self::new(
                StatusCode::PRECONDITION_FAILED,
                format!(
                    "the account is at {} now; look at it again",
                    actual.map_or_else(|| "nothing".to_owned(), |at| format!("revision {at}"))
                ),
            ),
            CommandError::AlreadyExists { .. } => Self::new(StatusCode::CONFLICT, "the account is open already"),
            CommandError::NotFound { .. } => {
                Self::new(StatusCode::NOT_FOUND, "there is no account of this name; open it first")
            }
            CommandError::KeyReused { .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "the Idempotency-Key was used before, for another request; draw a new one",
            ),
            CommandError::Contended { .. } => {
                Self::new(StatusCode::CONFLICT, "others were faster every time; try again").again()
            }
            CommandError::OutcomeUnknown { command_id } => Self {
                command: Some(command_id),
                ..Self::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    format!("whether it was done is not known; send it again with Idempotency-Key: {command_id}"),
                )
            }
            .again(),
            CommandError::Deleted { .. } => Self::gone(),
            error if error.can_retry() => Self::away(&error),
            error => Self::fault(&error),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Deleted { .. } => Self::gone(),
            QueryError::WrongToken { .. } => Self::bad("the token is another account's"),
            error if error.can_retry() => Self::away(&error),
            error => Self::fault(&error),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.message, "command": self.command }));
        let again = self.again.then_some([(header::RETRY_AFTER, SOON)]);
        let key = self.command.map(|id| [(KEY, id.to_string())]);
        (self.status, again, key, body).into_response()
    }
}
