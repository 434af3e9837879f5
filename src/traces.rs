//! Traces by OpenTelemetry: set up from the standard variables, sent as OTLP over HTTP.
//!
//! On only where a variable asks for it; else nothing is installed, and what is left is one
//! comparison where a span would begin. Sending never holds up what is traced: finished spans wait
//! in a bounded queue for a thread of their own, and what finds it full is dropped. No span comes of
//! sending spans: only those of this library's [`TARGET`] become any.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    Context, InstrumentationScope, KeyValue,
    trace::{Link, SpanKind, TraceContextExt as _, TraceId, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult, SdkTracer,
        SdkTracerProvider, ShouldSample, Span, SpanData, SpanProcessor,
    },
};
use tracing::{Level, Subscriber};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use crate::event::metadata::SPANS;

pub(crate) mod context;
mod export;
mod variables;

pub use variables::TracesError;

/// The target of every span of this library, for filters: `projector::trace=debug` is all of them.
pub const TARGET: &str = SPANS;

/// What the daemon's deliveries are traced with, once they are.
static DELIVERIES: OnceLock<SdkTracer> = OnceLock::new();

/// Spans that ended and were sampled; of them, those that a collector took, and those that none took.
static ENDED: AtomicU64 = AtomicU64::new(0);
static EXPORTED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// What became of this process's spans, by its word. What ended and was neither exported nor failed
/// waits in the queue, or found it full.
pub fn counted() -> [(&'static str, u64); 3] {
    [("ended", &ENDED), ("exported", &EXPORTED), ("failed", &FAILED)]
        .map(|(word, count)| (word, count.load(Ordering::Relaxed)))
}

/// What the daemon's deliveries are traced with; `None`: they are not.
#[cfg(feature = "daemon")]
pub(crate) fn tracer() -> Option<SdkTracer> {
    DELIVERIES.get().cloned()
}

/// Traces that are sent.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// As the process's variables say; `None`: they ask for none. `service` is the service's name
    /// where they do not say it. Sending goes on in the tokio runtime that this is called in.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where traces are asked for.
    pub fn from_env(service: &str) -> Result<Option<Self>, TracesError> {
        Self::from_variables(service, |name| std::env::var(name).ok())
    }

    /// As [`Self::from_env`], with other variables.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where traces are asked for.
    pub fn from_variables(
        service: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TracesError> {
        let Some(wanted) = variables::read(service, &variable)? else {
            return Ok(None);
        };
        let exporter = export::exporter(&wanted)?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(wanted.queue)
            .with_max_export_batch_size(wanted.batch)
            .with_scheduled_delay(wanted.delay)
            .build();
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = wanted
            .resource
            .iter()
            .map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Counted(batches))
            .with_sampler(wanted.sampler)
            .with_resource(Resource::builder_empty().with_attributes(resource).build())
            .build();
        let scope = InstrumentationScope::builder("projector").with_version(env!("CARGO_PKG_VERSION"));
        let tracer = provider.tracer_with_scope(scope.build());
        Ok(Some(Self { provider, tracer }))
    }

    /// For a subscriber: makes spans of commands, and of nothing else that happens in the process.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let ours = filter_fn(|meta| meta.is_span() && meta.target() == TARGET).with_max_level_hint(Level::DEBUG);
        tracing_opentelemetry::layer()
            .with_tracer(self.tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    }

    /// From now on, daemons of this process that begin a connection trace its deliveries. The first
    /// call counts.
    pub fn trace_deliveries(&self) {
        let _ = DELIVERIES.set(self.tracer.clone());
    }

    /// Sends what is left, for `within` at most, and ends; whether all was tried. Blocks: it is for
    /// the end of a process, or for a thread where that is allowed.
    pub fn close(&self, within: Duration) -> bool {
        self.provider.shutdown_with_timeout(within).is_ok()
    }
}

/// Counts what is handed over.
#[derive(Debug)]
struct Counted(BatchSpanProcessor);

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.0.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        ENDED.fetch_add(1, Ordering::Relaxed);
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Parent-based, where links are parents too: what settles events of several sampled commands in one
/// run is sampled, though none of them is its parent.
#[derive(Clone, Debug)]
struct Linked(Sampler);

impl ShouldSample for Linked {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parented = parent.is_some_and(|cx| cx.span().span_context().is_valid());
        if !parented && links.iter().any(|link| link.span_context.is_sampled()) {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: opentelemetry::trace::TraceState::default(),
            };
        }
        self.0.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};

    use super::*;

    fn link(flags: TraceFlags) -> Link {
        let context = SpanContext::new(TraceId::from(7), SpanId::from(7), flags, true, TraceState::default());
        Link::new(context, Vec::new(), 0)
    }

    #[test]
    fn a_sampled_link_samples_and_the_root_sampler_judges_the_rest() {
        let sampler = Linked(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)));
        let judge = |parent: Option<&Context>, links: &[Link]| {
            let kind = SpanKind::Consumer;
            sampler
                .should_sample(parent, TraceId::from(1), "process", &kind, &[], links)
                .decision
        };
        let sampled = link(TraceFlags::SAMPLED);
        let not = link(TraceFlags::NOT_SAMPLED);
        assert_eq!(
            judge(None, &[not.clone(), sampled.clone()]),
            SamplingDecision::RecordAndSample
        );
        assert_eq!(judge(None, std::slice::from_ref(&not)), SamplingDecision::Drop);
        assert_eq!(judge(None, &[]), SamplingDecision::Drop);
        let parent = |link: Link| Context::new().with_remote_span_context(link.span_context);
        assert_eq!(
            judge(Some(&parent(sampled.clone())), &[]),
            SamplingDecision::RecordAndSample
        );
        assert_eq!(judge(Some(&parent(not)), &[sampled]), SamplingDecision::Drop);
    }
}
