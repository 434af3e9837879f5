//! Traces of the process that a command runs as, where its variables ask for them.

use tokio::runtime::Runtime;

use super::{Exit, Failure};
use crate::telemetry;
#[cfg(feature = "otel")]
use crate::traces::Traces;

/// What sending the last traces may take: drain, closing and this together are below the 30 s after
/// which ECS kills.
#[cfg(feature = "otel")]
const LAST_TRACES: std::time::Duration = std::time::Duration::from_secs(2);

/// Traces that this process sends, where its variables ask for them.
#[cfg(feature = "otel")]
pub(super) struct Sent(Option<Traces>);

#[cfg(feature = "otel")]
impl Sent {
    pub(super) fn begun(asked: bool, runtime: &Runtime) -> Result<Self, Failure> {
        let _within = runtime.enter();
        let traces = if asked {
            Traces::from_env(env!("CARGO_PKG_NAME")).map_err(|error| Failure::to(Exit::Usage, &error))?
        } else {
            None
        };
        if let Some(traces) = &traces {
            traces.trace_deliveries();
        }
        Ok(Self(traces))
    }

    pub(super) fn spans(&self) -> Option<telemetry::Spans> {
        Some(Box::new(self.0.as_ref()?.layer()))
    }

    /// What is left is sent while connections live.
    pub(super) fn end(self) {
        if let Some(traces) = self.0
            && !traces.close(LAST_TRACES)
        {
            tracing::warn!("the last traces are lost: the collector did not take them in time");
        }
    }
}

#[cfg(not(feature = "otel"))]
pub(super) struct Sent;

#[cfg(not(feature = "otel"))]
#[allow(clippy::unused_self, reason = "it stands for what does something")]
impl Sent {
    /// Whoever asks for traces is told that there are none.
    pub(super) fn begun(asked: bool, _: &Runtime) -> Result<Self, Failure> {
        let asks = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
            if asked && asks(name) {
                let problem = format!("{name} is set, and this build has no traces: build it with feature `otel`");
                return Err(Failure::new(Exit::Usage, problem));
            }
        }
        Ok(Self)
    }

    pub(super) fn spans(&self) -> Option<telemetry::Spans> {
        None
    }

    pub(super) fn end(self) {}
}
