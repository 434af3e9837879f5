//! `/metrics`, `/livez`, `/startupz`, `/readyz`, `/status`: for Prometheus, for ECS, for people and scripts.
//!
//! Every answer comes from memory: nothing here waits for a store. No answer holds a secret or a
//! connection string (invariant 8).

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    health::{self, Health, Probe},
    metrics::Metrics,
    projector::status::Status,
};

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} for metrics and health: {source}; choose another `http.listen`")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: std::io::Error,
}

/// What the pages are made from.
#[derive(Clone)]
struct Pages {
    health: Health,
    metrics: Metrics,
    about: Arc<Value>,
}

/// Takes the address, before anything else is started.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })
}

/// Answers until `stop`. `about` goes into `/status` as it is.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    about: Value,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let pages = Pages {
        health,
        metrics,
        about: Arc::new(about),
    };
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics_page))
        .route("/livez", get(livez))
        .route("/startupz", get(startupz))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .with_state(pages);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn index() -> &'static str {
    "/metrics  for Prometheus\n/livez    200 unless a restart would help\n/startupz 200 unless that, or the set-up is wrong\n/readyz   200 while replicas are kept up to date\n/status   all of it as JSON\n"
}

async fn metrics_page(State(pages): State<Pages>) -> Response {
    // Judged now, so that it never says otherwise than `/readyz`.
    pages.metrics.set_ready(pages.health.unready().is_empty());
    let text = pages.metrics.render();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

async fn livez(State(pages): State<Pages>) -> Response {
    verdict("alive", &pages.health.dead())
}

async fn startupz(State(pages): State<Pages>) -> Response {
    let mut reasons = pages.health.misconfigured();
    reasons.extend(pages.health.dead());
    verdict("well set up", &reasons)
}

async fn readyz(State(pages): State<Pages>) -> Response {
    verdict("ready", &pages.health.unready())
}

fn verdict(good: &str, reasons: &[String]) -> Response {
    if reasons.is_empty() {
        return (StatusCode::OK, format!("{good}\n")).into_response();
    }
    let text = format!("not {good}\n{}\n", reasons.join("\n"));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn status(State(pages): State<Pages>) -> Json<Value> {
    Json(page(&pages.health, &pages.about))
}

/// What `/status` says.
fn page(health: &Health, about: &Value) -> Value {
    let view = health.view();
    let unready = health::unready(&view);
    let dead = health.dead();
    let projections: Vec<_> = view
        .projections
        .iter()
        .map(|(status, still)| projection(status, still.as_secs_f64()))
        .collect();
    json!({
        "about": about,
        "uptime_seconds": health.uptime().as_secs(),
        "ready": unready.is_empty(),
        "unready_because": unready,
        "alive": dead.is_empty(),
        "dead_because": dead,
        "stores": { "eventstore": probe(&view.eventstore), "dynamodb": probe(&view.dynamodb) },
        "projections": projections,
    })
}

fn probe(probe: &Probe) -> Value {
    json!({ "up": probe.up, "error": probe.error })
}

fn projection(s: &Status, still: f64) -> Value {
    // What was last heard of the group is no news while it cannot be asked.
    let info = s.info.as_ref().filter(|_| s.lag_unknown.is_none());
    let differences: Vec<_> = s
        .differences
        .iter()
        .map(|(setting, wanted, found)| json!({ "setting": setting, "wanted": wanted, "found": found }))
        .collect();
    json!({
        "projection": &*s.projection,
        "schema": s.schema,
        "phase": s.phase.word(),
        "reason": s.phase.reason(),
        "source": s.source,
        "table": s.table,
        "group": {
            "name": &*s.group,
            "confirmed": s.group_confirmed,
            "status": info.map(|i| i.status.as_str()),
            "consumers": info.map(|i| i.consumers),
            "in_flight": info.map(|i| i.in_flight),
            "buffered": info.map(|i| i.buffered),
            "parked": info.map(|i| i.parked),
            "checkpoint": info.and_then(|i| i.checkpoint_revision.or(i.checkpoint_position)),
            "differences": differences,
        },
        "table_confirmed": s.table_confirmed,
        "holding": s.holding,
        "seconds_since_progress": still,
        "lag": s.lag.as_ref().map(|lag| json!({
            "events": lag.events,
            "seconds": lag.seconds,
            "source_stalled": lag.stalled,
            "as_of": lag.as_of.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        })),
        "lag_unknown_because": s.lag_unknown.as_ref().map(|unknown| unknown.error.as_str()),
        "quarantined": s.quarantined,
        "diverged": s.diverged,
        "unplaced": s.unplaced.iter().map(|(class, seen)| json!({
            "class": class.word(), "deliveries": seen, "problem": class.problem(),
        })).collect::<Vec<_>>(),
        "last_error": s.last_error,
    })
}
