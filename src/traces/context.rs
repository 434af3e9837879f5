//! Trace contexts as events carry them: the W3C's `traceparent` and `tracestate` in their metadata.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
#[cfg(any(test, feature = "daemon"))]
use serde::Deserialize;
#[cfg(any(test, feature = "daemon"))]
use serde_json::Value;

use crate::event::metadata::{TRACEPARENT, TRACESTATE};

/// Both headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) parent: Option<String>,
    pub(crate) state: Option<String>,
}

impl Extractor for Carried {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.parent.as_deref(),
            TRACESTATE => self.state.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

impl Injector for Carried {
    fn set(&mut self, key: &str, value: String) {
        match key {
            TRACEPARENT => self.parent = Some(value),
            TRACESTATE => self.state = Some(value).filter(|state| !state.is_empty()),
            _ => {}
        }
    }
}

impl Carried {
    /// What is carried away from here.
    pub(crate) fn from_context(context: &Context) -> Self {
        let mut carried = Self::default();
        TraceContextPropagator::new().inject_context(context, &mut carried);
        carried
    }

    /// The span that they name; `None` when they name none.
    pub(crate) fn context(&self) -> Option<SpanContext> {
        self.parent.as_ref()?;
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), self);
        Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
    }
}

/// What an event's metadata say of it, whatever it is.
#[cfg(any(test, feature = "daemon"))]
#[derive(Deserialize)]
struct Said {
    traceparent: Option<Value>,
    tracestate: Option<Value>,
}

/// The span that an event's metadata name.
#[cfg(any(test, feature = "daemon"))]
pub(crate) fn of_event(metadata: &[u8]) -> Option<SpanContext> {
    // Most events of most streams have none, and need not be parsed for that.
    let name = TRACEPARENT.as_bytes();
    metadata.windows(name.len()).any(|part| part == name).then_some(())?;
    let said: Said = serde_json::from_slice(metadata).ok()?;
    let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));
    let (parent, state) = (text(said.traceparent), text(said.tracestate));
    Carried { parent, state }.context()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn an_events_metadata_name_a_span_or_nothing() {
        let found = of_event(format!(r#"{{"traceparent":"{PARENT}","tracestate":"a=1,b=2"}}"#).as_bytes());
        let found = found.expect("it names one");
        assert!(found.is_sampled() && found.is_remote());
        assert_eq!(found.trace_state().header(), "a=1,b=2");
        let again = Carried::from_context(&Context::new().with_remote_span_context(found));
        assert_eq!(
            (again.parent.as_deref(), again.state.as_deref()),
            (Some(PARENT), Some("a=1,b=2"))
        );

        let odd = format!(r#"{{"traceparent":"{PARENT}","tracestate":7}}"#);
        assert!(
            of_event(odd.as_bytes()).is_some(),
            "another's member of that name takes nothing away"
        );
        for nothing in [
            "",
            "null",
            r#"{"user":"ada"}"#,
            r#"{"traceparent":7}"#,
            r#"{"traceparent":"of the W3C"}"#,
            r#"{"traceparent":"00-00000000000000000000000000000000-b7ad6b7169203331-01"}"#,
            r#"["traceparent"]"#,
        ] {
            assert_eq!(of_event(nothing.as_bytes()), None, "{nothing}");
        }
    }
}
