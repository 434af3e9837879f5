//! The routes, and what errors come to in HTTP: what a service of your own would look like.
//!
//! Every answer says what it is: a command's has a token, a query's its version and freshness.

use std::{fmt::Display, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use projector::{
    aggregate::{Aggregate, Command},
    command::{CommandError, Context},
    query::{Answer, Mode, Moment, QueryError, Token, WhenLate},
};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Service,
    account::{Account, Close, Deposit, Open, Refusal, Withdraw},
};

/// The caller's id for a command; repeated with the same one, the command lands once.
const KEY: &str = "idempotency-key";
/// What a command's answer hands to later queries; also what queries answer with, so that a reader
/// who passes it on never sees an account go backwards.
const TOKEN: &str = "projector-token";
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
        .route("/accounts/{id}/deposits", post(deposit))
        .route("/accounts/{id}/withdrawals", post(withdraw))
        .route("/accounts/{id}/closure", post(close))
        .route("/metrics", get(metrics))
        .with_state(service)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Opening {
    owner: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Amount {
    cents: u64,
}

type Body<T> = Result<Json<T>, JsonRejection>;

async fn open(State(s): State<Service>, Path(id): Path<String>, headers: HeaderMap, body: Body<Opening>) -> Answered {
    let Json(Opening { owner }) = body?;
    execute(&s, &id, &headers, &Open { owner }).await
}

async fn deposit(State(s): State<Service>, Path(id): Path<String>, headers: HeaderMap, body: Body<Amount>) -> Answered {
    let Json(Amount { cents }) = body?;
    execute(&s, &id, &headers, &Deposit { cents }).await
}

async fn withdraw(
    State(s): State<Service>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body<Amount>,
) -> Answered {
    let Json(Amount { cents }) = body?;
    execute(&s, &id, &headers, &Withdraw { cents }).await
}

async fn close(State(s): State<Service>, Path(id): Path<String>, headers: HeaderMap) -> Answered {
    execute(&s, &id, &headers, &Close).await
}

async fn execute(
    service: &Service,
    id: &str,
    headers: &HeaderMap,
    command: &impl Command<Account, Error = Refusal>,
) -> Answered {
    let context = Context {
        command_id: header::<Uuid>(headers, KEY)?,
        ..Context::default()
    };
    let done = service.accounts.execute_with(id, command, context).await?;
    let said = [(KEY, done.command.to_string()), (TOKEN, done.token().to_string())];
    let body = json!({
        "account": done.state,
        "revision": done.revision,
        "repeated": done.repeated,
    });
    Ok((said, Json(body)).into_response())
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
    let stream = Account::stream(&id);
    let answer = service.queries.get(&stream, &mode).await?;
    let answer = answer.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no account `{id}`")))?;
    if answer.header.deleted {
        return Err(Problem::gone());
    }
    let token = Token {
        stream: stream.into(),
        version: answer.version(),
        event: answer.header.event.as_ref().map(|event| event.id),
    };
    let said = [
        (TOKEN, token.to_string()),
        (FRESHNESS, answer.freshness.label().to_owned()),
    ];
    Ok((said, Json(shown(&answer)?)).into_response())
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
    let streams: Vec<Arc<str>> = ids.split(',').map(|id| Account::stream(id).into()).collect();
    if streams.len() > MOST {
        return Err(Problem::bad(format!("at most {MOST} accounts at once")));
    }
    let answers = service.queries.get_many(&streams).await?;
    let accounts: Vec<Value> = answers
        .iter()
        .map(|answer| match answer {
            Some(answer) if !answer.header.deleted => shown(answer),
            _ => Ok(Value::Null),
        })
        .collect::<Result<_, _>>()?;
    Ok(([(FRESHNESS, "eventual")], Json(json!({ "accounts": accounts }))).into_response())
}

fn shown(answer: &Answer) -> Result<Value, Problem> {
    let account = answer
        .view::<Account>()
        .ok_or_else(|| Problem::fault(&"the queries are another projection's"))?;
    Ok(json!({
        "account": account,
        "version": answer.version(),
        "freshness": answer.freshness.label(),
    }))
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
    let text = value.to_str().unwrap_or_default();
    let parsed = text.parse().map(Some);
    parsed.map_err(|error| Problem::bad(format!("the header {name} makes no sense: {error}")))
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
        tracing::warn!(%error, "a store is away");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "a store is away; try again").again()
    }
}

impl From<CommandError<Refusal>> for Problem {
    fn from(error: CommandError<Refusal>) -> Self {
        match error {
            CommandError::Rejected(refusal) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, refusal.to_string()),
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

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::bad(rejection.body_text())
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
