//! What a caller says of a command beside the command itself.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::event::{Metadata, Recorded, Revision};

/// What a command may be decided on first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// On what is at hand, cached or stored: an append there confirms it, and so does a read at the
    /// leader before a rejection. The cheaper one, and right for nearly every command.
    #[default]
    Cached,
    /// On what the leader has after the call began: one read more where something was at hand. For
    /// decisions that do something outside on the way, or whose reply must not come of an old state.
    Confirmed,
}

/// What a caller may say of a command beside the command itself. By default: nothing.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The command's id: executed again with the same one within [`super::CommandSettings::retry_horizon`],
    /// it lands at most once. Default: drawn.
    pub command_id: Option<Uuid>,
    /// The caller's fingerprint of its request (a digest of an HTTP body, say): stored beside the
    /// events, and compared when the same command id comes again. Another one is
    /// [`super::CommandError::KeyReused`].
    pub fingerprint: Option<String>,
    /// The revision that the aggregate must stand at, as its caller has seen it (HTTP's `If-Match`):
    /// elsewhere the command is [`super::CommandError::Conflict`], which is not retried. A deleted
    /// aggregate that goes on where it ended ([`super::OnDeleted::Continue`]) is revived at this
    /// revision or not at all: the append asks the server, for no read shows where it ended. What
    /// decides on nothing to append is [`super::CommandError::Deleted`] then, unless the state in hand
    /// is this revision's.
    pub expected: Option<Revision>,
    /// What is written into each event's metadata.
    pub metadata: Metadata,
    /// What the command may be decided on first.
    pub freshness: Freshness,
    /// Another deadline than the settings'.
    pub deadline: Option<Duration>,
}

impl Context {
    /// A command with an id that the caller will use again when it has to ask again.
    pub fn with_id(command_id: Uuid) -> Self {
        Self {
            command_id: Some(command_id),
            ..Self::default()
        }
    }

    /// A command that an event is the cause of: it belongs to what the event belongs to, in the
    /// same trace. Neither the user nor anything else is taken over.
    pub fn caused_by<E>(event: &Recorded<E>) -> Self {
        let Metadata {
            correlation_id,
            traceparent,
            ..
        } = event.metadata();
        Self {
            metadata: Metadata {
                correlation_id,
                causation_id: Some(event.id.to_string()),
                traceparent,
                ..Metadata::default()
            },
            ..Self::default()
        }
    }

    /// Only on the aggregate as the caller has seen it, at this revision: [`Self::expected`].
    #[must_use]
    pub fn expecting(mut self, revision: Revision) -> Self {
        self.expected = Some(revision);
        self
    }

    /// With the caller's fingerprint of its request: [`Self::fingerprint`].
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// As part of this conversation: `$correlationId`.
    #[must_use]
    pub fn correlation(mut self, id: impl Into<String>) -> Self {
        self.metadata.correlation_id = Some(id.into());
        self
    }

    /// Because of this message: `$causationId`.
    #[must_use]
    pub fn causation(mut self, id: impl Into<String>) -> Self {
        self.metadata.causation_id = Some(id.into());
        self
    }

    /// On behalf of this user: `user`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.metadata.user = Some(user.into());
        self
    }

    /// In this trace: `traceparent`, the value of the W3C's header, stored as it is.
    #[must_use]
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.metadata.traceparent = Some(traceparent.into());
        self
    }

    /// With a member of the events' metadata more. A name that the library writes itself is
    /// [`super::CommandError::ReservedMetadata`] when the command is executed, and a value that is
    /// nested too deep to be read back (beyond 126 levels) [`super::CommandError::Unwritable`].
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.other.insert(name.into(), value.into());
        self
    }

    /// Decided on what the leader has now, from the first time on: [`Freshness::Confirmed`].
    #[must_use]
    pub fn confirmed(mut self) -> Self {
        self.freshness = Freshness::Confirmed;
        self
    }

    /// Within this time instead of the settings'.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}
