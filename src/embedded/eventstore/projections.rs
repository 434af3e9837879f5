//! The system projections by their names. Keeps: a name means the same on the command line, in a
//! program, and over the wire.

use super::SystemProjection;

impl SystemProjection {
    /// What EventStoreDB calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ByCategory => "$by_category",
            Self::ByEventType => "$by_event_type",
            Self::Streams => "$streams",
            Self::StreamByCategory => "$stream_by_category",
            Self::ByCorrelationId => "$by_correlation_id",
        }
    }

    /// The one of this name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == name)
    }
}
