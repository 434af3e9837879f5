//! What can come of a command besides being carried out.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{catch_up::CatchUpError, snapshots::SnapshotError};
use crate::{
    event::{Revision, Version},
    journal::JournalError,
    replica::StoreError,
};

/// Why a command was not carried out, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError<E> {
    /// The command's own rules rejected it, on a state that the leader confirmed. Told in the
    /// rejection's own words, and nothing else has a say in its type.
    #[error("{0}")]
    Rejected(E),
    /// Others were faster every time, or what they had appended could not be read before the
    /// deadline. Nothing of the command was appended.
    #[error("append to `{stream}`: {}", contended(*.attempts, *.awaited))]
    Contended {
        /// The stream.
        stream: String,
        /// Appends that lost a race.
        attempts: u32,
        /// The revision that a conflict named and that no read showed up to the deadline.
        awaited: Option<Revision>,
    },
    /// The stream does not stand at the revision that the caller expects, as the leader confirmed
    /// ([`super::Context::expecting`]): nothing was done, and nothing is tried again. A repetition of
    /// a command that landed is never answered so, but with what was committed.
    #[error(
        "execute a command on `{stream}`: wrong expected revision: expected {expected}, actual {}; look at the aggregate as it is now, and decide again",
        actual.map_or_else(|| "none, there are no events".to_owned(), |at| at.to_string())
    )]
    Conflict {
        /// The stream.
        stream: String,
        /// The caller's revision.
        expected: Revision,
        /// Where the stream stands; `None`: it has no events.
        actual: Version,
    },
    /// The deadline ended, or the queue was full, before this command's turn among those of its own
    /// process on the same aggregate: nothing was done.
    #[error(
        "begin on `{stream}`: {ahead} commands of this process were before it; try again, or spread the load over more aggregates"
    )]
    Queued {
        /// The stream.
        stream: String,
        /// Commands that were before it.
        ahead: usize,
    },
    /// The deadline ended while the aggregate was loaded from its stream: nothing was done.
    #[error(
        "load `{stream}` before the command's deadline: {folded} events were folded and are kept for the next command, so try again{}",
        match snapshot { Some(error) => format!("; its snapshot could not be had: failed to {error}"), None => String::new() }
    )]
    SlowLoad {
        /// The stream.
        stream: String,
        /// Events folded within this command.
        folded: usize,
        /// Why there was no snapshot, where its store is to blame.
        #[source]
        snapshot: Option<SnapshotError>,
    },
    /// An append's reply was lost and the deadline ended before its outcome was known.
    #[error("learn the outcome of command {command_id}: execute it again with this id, it lands at most once")]
    OutcomeUnknown {
        /// The command's id.
        command_id: Uuid,
    },
    /// The command's id was used before, for another command: nothing was appended.
    #[error(
        "execute command {command_id}: its id was used before for another command, {landed}; draw a new id for a new command"
    )]
    KeyReused {
        /// The id.
        command_id: Uuid,
        /// What landed with it.
        landed: String,
    },
    /// Whether the command landed before, within the retry horizon, cannot be told: its stream
    /// cannot be read back that far. Nothing was done.
    #[error(
        "tell whether command {command_id} has landed on `{stream}` before: its events can be read back to {since} only, \
         and not to the retry horizon; look at the aggregate, and execute the command without an id where it is missing"
    )]
    OutOfReach {
        /// The command's id.
        command_id: Uuid,
        /// The stream.
        stream: String,
        /// What landed before this is not known.
        since: DateTime<Utc>,
    },
    /// The aggregate's stream is deleted.
    #[error("use `{stream}`: it is deleted{}", if *.tombstoned { " for good" } else { "" })]
    Deleted {
        /// The stream.
        stream: String,
        /// Whether for good.
        tombstoned: bool,
    },
    /// The stream cannot be folded to a state to decide on.
    #[error(transparent)]
    State(#[from] CatchUpError),
    /// The events decided on, or the caller's metadata, cannot be appended: they could not be read back.
    #[error("append to `{stream}`: what is to be written cannot be read back, {problem}")]
    Unwritable {
        /// The stream.
        stream: String,
        /// What is wrong with them.
        problem: String,
    },
    /// The command is for new aggregates ([`crate::aggregate::Existence::New`]), and this one is
    /// there, as the leader confirmed: nothing was done.
    #[error("create `{stream}`: it is there already, at revision {revision}")]
    AlreadyExists {
        /// The stream.
        stream: String,
        /// Where it stands.
        revision: Revision,
    },
    /// The command is for existing aggregates ([`crate::aggregate::Existence::Existing`]), and this
    /// one is not there, as the leader confirmed: nothing was done.
    #[error("use `{stream}`: there is no such aggregate; create it first")]
    NotFound {
        /// The stream.
        stream: String,
    },
    /// The caller's metadata has a name that the library writes itself: nothing was done.
    #[error("put `{name}` into the events' metadata: the library writes that name itself; choose another one")]
    ReservedMetadata {
        /// The name.
        name: String,
    },
    /// The event store failed.
    #[error(transparent)]
    Journal(JournalError),
    /// The replica store failed, and the aggregate may not be loaded without it.
    #[error(transparent)]
    Replica(StoreError),
}

fn contended(attempts: u32, awaited: Option<Revision>) -> String {
    match awaited {
        None => format!("lost the race {attempts} times; try again, or spread the load over more aggregates"),
        Some(revision) => format!(
            "EventStoreDB says that another writer's revision {revision} is there, and no read at the leader showed it before the deadline: that append is under way still, or the server is slow to commit; try again"
        ),
    }
}

impl<E> CommandError<E> {
    /// Whether the same command, with the same id, may succeed later without anybody acting.
    pub fn can_retry(&self) -> bool {
        match self {
            Self::Contended { .. } | Self::Queued { .. } | Self::SlowLoad { .. } | Self::OutcomeUnknown { .. } => true,
            Self::Journal(error) => error.is_transient(),
            Self::Replica(error) => error.is_transient(),
            Self::Rejected(_)
            | Self::Conflict { .. }
            | Self::AlreadyExists { .. }
            | Self::NotFound { .. }
            | Self::ReservedMetadata { .. }
            | Self::KeyReused { .. }
            | Self::OutOfReach { .. }
            | Self::Deleted { .. }
            | Self::State(_)
            | Self::Unwritable { .. } => false,
        }
    }

    /// A word for metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Rejected(_) => "rejected",
            Self::Contended { .. } => "contended",
            Self::Conflict { .. } => "conflict",
            Self::AlreadyExists { .. } => "already_exists",
            Self::NotFound { .. } => "not_found",
            Self::ReservedMetadata { .. } => "reserved_metadata",
            Self::Queued { .. } => "queued",
            Self::SlowLoad { .. } => "slow_load",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::KeyReused { .. } => "key_reused",
            Self::OutOfReach { .. } => "out_of_reach",
            Self::Deleted { .. } => "deleted",
            Self::State(_) => "state",
            Self::Unwritable { .. } => "unwritable",
            Self::Journal(_) => "journal",
            Self::Replica(_) => "replica",
        }
    }
}
