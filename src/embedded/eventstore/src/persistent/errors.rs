//! What can be wrong with a call about a group, and how the protocol says it. Keeps: clients tell
//! these apart by the `exception` trailer, so code, trailer and text are EventStoreDB's.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::status;

/// Why a call about a group fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// There is one of that name already.
    #[error("Subscription group {group} on stream {stream} exists.")]
    Exists {
        /// Its source.
        stream: String,
        /// Its name.
        group: String,
    },
    /// There is none of that name.
    #[error("Subscription group {group} on stream {stream} does not exist.")]
    Missing {
        /// Its source.
        stream: String,
        /// Its name; empty when groups of a stream are listed.
        group: String,
    },
    /// It cannot be done.
    #[error("Subscription group {group} on stream {stream} failed: '{reason}'")]
    Failed {
        /// Its source.
        stream: String,
        /// Its name.
        group: String,
        /// Why.
        reason: String,
    },
    /// No more consumers are allowed.
    #[error("Maximum subscriptions reached for subscription group {group} on stream {stream}.")]
    TooMany {
        /// Its source.
        stream: String,
        /// Its name.
        group: String,
    },
    /// The group went away under a consumer.
    #[error("Subscription group {group} on stream {stream} was dropped.")]
    Dropped {
        /// Its source.
        stream: String,
        /// Its name.
        group: String,
    },
    /// `$all` was asked for as if it were a stream. EventStoreDB refuses it, and then takes its own
    /// refusal for the wrong one.
    #[error(
        "Envelope callback expected either {call}PersistentSubscriptionToAllCompleted or NotHandled, \
         received {call}PersistentSubscriptionToStreamCompleted instead"
    )]
    AllByName {
        /// `Create`, `Update` or `Delete`.
        call: &'static str,
    },
    /// The request says what EventStoreDB does not look for, and fails at.
    #[error("{0}")]
    Impossible(&'static str),
    /// The request says what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The groups are being loaded.
    #[error("Server Is Not Ready")]
    NotReady,
}

impl From<GroupError> for Status {
    fn from(error: GroupError) -> Self {
        let (code, exception) = match &error {
            GroupError::Exists { .. } => (Code::AlreadyExists, "persistent-subscription-exists"),
            GroupError::Missing { .. } => (Code::NotFound, "persistent-subscription-does-not-exist"),
            GroupError::Failed { .. } => (Code::Internal, "persistent-subscription-failed"),
            GroupError::TooMany { .. } => (Code::FailedPrecondition, "maximum-subscribers-reached"),
            GroupError::Dropped { .. } => (Code::Cancelled, "persistent-subscription-dropped"),
            GroupError::AllByName { .. } => return Self::unknown(error.to_string()),
            GroupError::Impossible(what) => return status::unknown(what),
            GroupError::Invalid(_) => return Self::invalid_argument(error.to_string()),
            GroupError::NotReady => return Self::unavailable(error.to_string()),
        };
        let mut status = Self::new(code, error.to_string());
        put(&mut status, "exception", exception);
        match &error {
            GroupError::Exists { stream, group }
            | GroupError::Missing { stream, group }
            | GroupError::Failed { stream, group, .. }
            | GroupError::TooMany { stream, group }
            | GroupError::Dropped { stream, group } => {
                put(&mut status, "stream-name", stream);
                put(&mut status, "group-name", group);
            }
            GroupError::AllByName { .. }
            | GroupError::Impossible(_)
            | GroupError::Invalid(_)
            | GroupError::NotReady => {}
        }
        if let GroupError::Failed { reason, .. } = &error {
            put(&mut status, "reason", reason);
        }
        status
    }
}

/// A trailer is ASCII; a name that is not stays in the message alone.
fn put(status: &mut Status, key: &'static str, value: &str) {
    if let Ok(value) = MetadataValue::try_from(value) {
        status.metadata_mut().insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_name_the_exception_the_stream_and_the_group() {
        let status = Status::from(GroupError::Failed {
            stream: "s".into(),
            group: "g".into(),
            reason: "because".into(),
        });
        let said = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(said("exception"), Some("persistent-subscription-failed"));
        assert_eq!((said("stream-name"), said("group-name")), (Some("s"), Some("g")));
        assert_eq!(said("reason"), Some("because"));
    }

    #[test]
    fn a_name_beyond_ascii_is_no_failure() {
        let status = Status::from(GroupError::Missing {
            stream: "größe".into(),
            group: String::new(),
        });
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("größe"));
        assert!(status.metadata().get("group-name").is_some());
    }
}
