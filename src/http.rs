//! `/` for people, `/status` for scripts, `/metrics` for Prometheus, `/livez`, `/startupz`, `/readyz` for
//! whoever runs containers.
//!
//! Every answer comes from memory: nothing here waits for a store. No answer holds a secret or a
//! connection string (I8 secrets).

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{health::Health, metrics::Metrics};

pub mod history;
mod page;
mod plot;
pub mod report;

use report::{PageSource, StatusReport};

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
    known: Arc<PageSource>,
}

/// Takes the address, before anything else is started.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })
}

/// Answers until `stop`.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    known: PageSource,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let pages = Pages {
        health,
        metrics,
        known: Arc::new(known),
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

async fn index(State(pages): State<Pages>) -> Response {
    show(&StatusReport::of(&pages.health, &pages.known))
}

/// A report as the page for people. Its style and its script run by a nonce, nothing else does, and
/// nothing of it is asked for elsewhere; no other site may frame it.
pub fn show(report: &StatusReport) -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (
        headers.map(|(name, value)| (name, value.to_owned())),
        page::render(report, &nonce),
    )
        .into_response()
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

async fn status(State(pages): State<Pages>) -> Json<StatusReport> {
    Json(StatusReport::of(&pages.health, &pages.known))
}

/// Whether a character shows nothing of itself, or turns the direction of what follows: what a name
/// may hide behind.
fn unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Soft hyphen, Arabic letter mark, fillers, vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{ffa0}'
            // Without width; marks, embeddings, overrides and isolates of direction; ends of lines.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            // Annotations; tags.
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A text in which what cannot be seen is written out, all but `kept`: control characters, and those
/// that turn the direction of what follows or take no room.
pub(crate) fn visible(text: String, kept: &[char]) -> String {
    let hidden = |c: char| unseen(c) && !kept.contains(&c);
    if !text.chars().any(hidden) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}
