//! Spans of a command: `command`, and in it `load`, `read`, `decide`, `append`, `keep`.
//!
//! Plain `tracing` spans of one target, in the caller's current one; where nobody takes them each is
//! one comparison. With feature `otel` and a subscriber of `tracing-opentelemetry`, the events carry
//! the context of the span that appends them.
//!
//! One `append` covers all of a command's appends, from the first one on: its context is part of the
//! events, whose ids cover it, and one execution must send the same events however often.

use std::sync::{Arc, OnceLock};

use tracing::{Span, debug_span, field::Empty};
use uuid::Uuid;

use super::{
    attempt::{Action, Append, Reply},
    context::Context,
    observe::Origin,
};
use crate::{
    event::{Version, metadata::SPANS},
    journal::{Expected, JournalError},
};

/// The span of a command, as a child of the caller's.
pub(super) fn command(category: &'static str, name: &str, id: &str, context: &Context) -> Span {
    let span = debug_span!(
        target: SPANS,
        "command",
        otel.name = %if name.is_empty() { category } else { name },
        otel.status_code = Empty,
        error.r#type = Empty,
        projector.stream = %format_args!("{category}-{id}"),
        projector.outcome = Empty,
        projector.attempts = Empty,
        projector.replayed = Empty,
    );
    adopt(&span, context);
    span
}

/// Whether anybody takes spans.
pub(super) fn enabled() -> bool {
    tracing::span_enabled!(target: SPANS, tracing::Level::DEBUG)
}

/// How a command ended.
pub(super) fn ended(span: &Span, outcome: &'static str, failed: bool, attempts: u32, replayed: usize) {
    if span.is_disabled() {
        return;
    }
    span.record("projector.outcome", outcome);
    span.record("projector.attempts", attempts);
    span.record("projector.replayed", replayed);
    if failed {
        span.record("error.type", outcome);
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of a load: all that is asked for before there is a base.
pub(super) fn load() -> Span {
    debug_span!(target: SPANS, "load", projector.origin = Empty)
}

/// The span of what an attempt asks for.
pub(super) fn action(action: &Action) -> Span {
    let what = match action {
        Action::Read(_) => "tail",
        Action::Snapshot | Action::Refresh => "snapshot",
        Action::Look | Action::Begins => "look",
        Action::Search(_) => "search",
        // The one has a span over all its rounds, the others do nothing.
        Action::Append(_) | Action::Wait(_) | Action::Cache | Action::Share | Action::Done => return Span::none(),
    };
    debug_span!(target: SPANS, "read", projector.what = what)
}

/// Where a load found its base.
pub(super) fn loaded(span: &Span, origin: Option<Origin>) {
    if let Some(origin) = origin {
        span.record("projector.origin", origin.label());
    }
}

/// The span of a state that is handed to cache and snapshots.
pub(super) fn keep() -> Span {
    debug_span!(target: SPANS, "keep")
}

/// The one span of a command's appends.
#[derive(Default)]
pub(super) struct TracedAppend {
    span: Arc<OnceLock<Span>>,
    expected: Option<Expected>,
    actual: Option<Version>,
    events: usize,
    conflicts: u32,
    trouble: Option<&'static str>,
}

impl TracedAppend {
    /// Begins when it is asked.
    pub(super) fn asked(
        &self,
        stream: &str,
        command: Uuid,
    ) -> impl FnOnce() -> Vec<(&'static str, String)> + Send + use<> {
        let (begun, stream) = (self.span.clone(), stream.to_owned());
        move || {
            let span = debug_span!(
                target: SPANS,
                "append",
                otel.kind = "producer",
                otel.status_code = Empty,
                error.r#type = Empty,
                messaging.system = "eventstoredb",
                messaging.operation.r#type = "send",
                messaging.destination.name = stream,
                messaging.batch.message_count = Empty,
                projector.command_id = %command,
                projector.expected = Empty,
                projector.actual = Empty,
                projector.attempts = Empty,
                projector.conflicts = Empty,
            );
            let carried = carried(&span);
            // It is asked once.
            let _ = begun.set(span);
            carried
        }
    }

    pub(super) fn sends(&mut self, append: &Append) {
        self.expected = Some(append.expected);
        self.events = append.events.len();
    }

    pub(super) fn answered(&mut self, reply: &Reply) {
        let Reply::Appended(outcome, ..) = reply else {
            return;
        };
        self.trouble = None;
        match outcome {
            Ok(appended) => self.actual = Some(appended.revision),
            Err(JournalError::WrongExpected { current }) => {
                self.actual = Some(*current);
                self.conflicts += 1;
                self.trouble = Some("conflict");
            }
            Err(JournalError::OutcomeUnknown(_)) => self.trouble = Some("outcome_unknown"),
            Err(_) => self.trouble = Some("refused"),
        }
    }

    /// Ends it, where it began.
    pub(super) fn ended(self, attempts: u32) {
        let Some(span) = self.span.get().filter(|span| !span.is_disabled()) else {
            return;
        };
        let place = |version: Version| version.map_or(-1, u64::cast_signed);
        let expected = self.expected.map(|expected| match expected {
            Expected::Exact(revision) => Some(revision),
            Expected::NoStream => None,
        });
        span.record("projector.expected", expected.map(place));
        span.record("projector.actual", self.actual.map(place));
        span.record("projector.attempts", attempts);
        span.record("projector.conflicts", self.conflicts);
        span.record("messaging.batch.message_count", self.events);
        if let Some(trouble) = self.trouble {
            span.record("error.type", trouble);
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// Where the caller has no span, what it says in the context is the parent.
#[cfg(feature = "otel")]
fn adopt(span: &Span, context: &Context) {
    use opentelemetry::trace::TraceContextExt as _;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    use crate::{event::metadata::TRACESTATE, traces::context::Carried};

    let (false, Some(parent)) = (span.is_disabled(), &context.metadata.traceparent) else {
        return;
    };
    let within = |context: opentelemetry::Context| context.span().span_context().is_valid();
    if within(Span::current().context()) || within(opentelemetry::Context::current()) {
        return;
    }
    let state = context.metadata.other.get(TRACESTATE).and_then(|state| state.as_str());
    let said = Carried {
        parent: Some(parent.clone()),
        state: state.map(str::to_owned),
    };
    if let Some(parent) = said.context() {
        // Refused only by a subscriber that knows nothing of OpenTelemetry.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
    }
}

#[cfg(not(feature = "otel"))]
fn adopt(_: &Span, _: &Context) {}

/// What the events that are appended in `span` say of it.
#[cfg(feature = "otel")]
fn carried(span: &Span) -> Vec<(&'static str, String)> {
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    use crate::{
        event::metadata::{TRACEPARENT, TRACESTATE},
        traces::context::Carried,
    };

    let Carried { parent, state } = Carried::from_context(&span.context());
    let parent = parent.map(|parent| (TRACEPARENT, parent));
    parent
        .into_iter()
        .chain(state.map(|state| (TRACESTATE, state)))
        .collect()
}

#[cfg(not(feature = "otel"))]
fn carried(_: &Span) -> Vec<(&'static str, String)> {
    Vec::new()
}
