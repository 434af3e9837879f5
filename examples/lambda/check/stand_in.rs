//! A small stand-in for the Lambda runtime API: hands out invocations, takes answers and errors.
//!
//! Serves one function, as the real one does: each process has an API of its own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use lambda_runtime::Error;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, oneshot},
};
use uuid::Uuid;

/// The time that an invocation has.
const TIME: Duration = Duration::from_secs(30);

/// What the function answered, or what it said went wrong.
pub(crate) type Answer = Result<Value, Value>;

struct Invocation {
    request: Uuid,
    payload: Value,
    answer: oneshot::Sender<Answer>,
}

struct Desk {
    waiting: Mutex<mpsc::UnboundedReceiver<Invocation>>,
    begun: std::sync::Mutex<HashMap<Uuid, oneshot::Sender<Answer>>>,
}

pub(crate) struct RuntimeApi {
    address: SocketAddr,
    invocations: mpsc::UnboundedSender<Invocation>,
}

impl RuntimeApi {
    /// Answers until the process ends.
    pub(crate) async fn start() -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (invocations, waiting) = mpsc::unbounded_channel();
        let desk = Arc::new(Desk {
            waiting: Mutex::new(waiting),
            begun: std::sync::Mutex::default(),
        });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .with_state(desk);
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Self { address, invocations })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has the function handle `payload`.
    pub(crate) async fn invoke(&self, request: Uuid, payload: Value) -> Result<Answer, Error> {
        let (answer, answered) = oneshot::channel();
        self.invocations.send(Invocation {
            request,
            payload,
            answer,
        })?;
        Ok(answered.await?)
    }
}

impl Desk {
    fn end(&self, id: Uuid, answer: Answer) -> StatusCode {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(asked) = begun.remove(&id) else {
            return StatusCode::BAD_REQUEST;
        };
        // Whoever asked may have lost patience.
        let _ = asked.send(answer);
        StatusCode::ACCEPTED
    }
}

/// Waits as long as there is nothing to do.
async fn next(State(desk): State<Arc<Desk>>) -> Result<impl IntoResponse, StatusCode> {
    let invocation = desk.waiting.lock().await.recv().await.ok_or(StatusCode::GONE)?;
    let Invocation {
        request,
        payload,
        answer,
    } = invocation;
    let mut begun = desk.begun.lock().unwrap_or_else(PoisonError::into_inner);
    begun.insert(request, answer);
    let deadline = (SystemTime::now() + TIME)
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let headers = [
        ("lambda-runtime-aws-request-id", request.to_string()),
        ("lambda-runtime-deadline-ms", deadline.as_millis().to_string()),
        (
            "lambda-runtime-invoked-function-arn",
            "arn:aws:lambda:us-east-1:000000000000:function:bank".to_owned(),
        ),
    ];
    Ok((headers, Json(payload)))
}

/// Functions do not say that what they send is JSON.
async fn response(State(desk): State<Arc<Desk>>, Path(id): Path<Uuid>, body: Bytes) -> StatusCode {
    desk.end(id, Ok(said(&body)))
}

async fn error(State(desk): State<Arc<Desk>>, Path(id): Path<Uuid>, body: Bytes) -> StatusCode {
    desk.end(id, Err(said(&body)))
}

fn said(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into())
}
