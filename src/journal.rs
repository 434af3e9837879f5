//! The event store port: what the engine and the command path ask of EventStoreDB, and nothing more.
//!
//! Every read here goes to the leader: a decision is only as good as the read it rests on
//! (I4 hint). Adapters: [`esdb`] over the wire, `memory` for tests.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::event::Revision;

#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod feed;

pub mod esdb;
#[cfg(any(test, feature = "testing", all(doc, not(doctest))))]
pub mod memory;
mod slice;

#[cfg(test)]
pub(crate) use slice::tests::slice as read_of;
pub use slice::{Hole, Slice};

/// Why a delivery has no place in any lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unplaced {
    /// The server sent neither an event nor a link.
    Empty,
    /// A link that does not name a revision and a stream.
    Link,
    /// A stream's metadata, in a stream that is nobody's metadata.
    Metadata,
    /// Its stream can have no replica: no name, a reserved one, or one longer than a key.
    Stream,
}

impl Unplaced {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Empty, Self::Link, Self::Metadata, Self::Stream];

    /// A word for metrics and `/status`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Link => "malformed_link",
            Self::Metadata => "stray_metadata",
            Self::Stream => "unusable_stream",
        }
    }

    /// What is wrong with it and what to do, as a sentence.
    pub fn problem(self) -> &'static str {
        match self {
            Self::Empty => {
                "The server sent neither an event nor a link: check the group's source for records that were lost."
            }
            Self::Link => {
                "A link does not have the form `revision@stream`: find who writes links into the source, or leave them out by its filter."
            }
            Self::Metadata => {
                "A `$metadata` event stands in a stream that is nobody's metadata: leave that stream out by the source's filter."
            }
            Self::Stream => {
                "The stream can have no replica, for its name is empty, reserved or too long: leave it out by the source's filter."
            }
        }
    }
}

/// Where an append expects its stream to stand. There is no "any": nothing here appends blindly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No event, or soft-deleted.
    NoStream,
    /// The revision of the last event.
    Exact(Revision),
}

impl From<Option<Revision>> for Expected {
    fn from(version: Option<Revision>) -> Self {
        version.map_or(Self::NoStream, Self::Exact)
    }
}

/// An event to append. The id makes a repeated append recognisable, within EventStoreDB's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Its id.
    pub id: Uuid,
    /// Its event type.
    pub kind: Arc<str>,
    /// Whether the body is JSON.
    pub json: bool,
    /// Its body.
    pub data: Bytes,
    /// Its metadata, empty for none.
    pub metadata: Bytes,
}

/// A successful append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The revision of the last event of this append, or of the identical one before it.
    pub revision: Option<Revision>,
    /// Whether the reply named a position. Without one the ids were written before, which does
    /// not say that they can still be read (facts of the protocol: a soft-deleted stream).
    pub positioned: bool,
}

/// How much a read may bring. Whichever is reached first ends it; one event always comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// Events.
    pub events: usize,
    /// Bytes of bodies and metadata.
    pub bytes: usize,
}

/// What a read found of the stream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there, though perhaps nothing of it is readable.
    Present,
    /// EventStoreDB answers "stream not found": never there, or soft-deleted.
    Absent,
    /// Tombstoned: gone for good.
    Tombstoned,
}

/// The newest readable event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Its revision.
    pub revision: Revision,
    /// Its id.
    pub id: Uuid,
    /// When it was written.
    pub created: DateTime<Utc>,
}

/// The state of a stream, as the leader has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No event and no deletion is known: it never was, or its store was reset.
    Missing,
    /// Soft-deleted; an append brings it back to life.
    SoftDeleted,
    /// Tombstoned: gone for good.
    Tombstoned,
    /// There; `None` when all its events are truncated or expired.
    Live(Option<Newest>),
}

/// Why the event store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It cannot be reached, is not ready, or has no leader now. Trying again helps.
    #[error("reach EventStoreDB: {0}")]
    Unavailable(String),
    /// The answer takes longer than one call may: asking again goes on where this call ended.
    #[error("{0}")]
    Unfinished(String),
    /// An append whose reply was lost: it may have been written. Look before trying again.
    #[error("learn the outcome of an append to EventStoreDB: {0}")]
    OutcomeUnknown(String),
    /// The stream does not stand where the append expected it.
    #[error("append: wrong expected revision: the stream is at {}", .current.map_or("no event".to_owned(), |r| format!("revision {r}")))]
    WrongExpected {
        /// Where it stands, `None` for no event. A hint: it may have moved again.
        current: Option<Revision>,
    },
    /// The stream is tombstoned.
    #[error("use stream `{0}`: it is tombstoned")]
    Tombstoned(String),
    /// The user may not. Trying again does not help until an operator acts.
    #[error("{action}: EventStoreDB denies it; {remedy}")]
    Denied {
        /// What was tried.
        action: String,
        /// Which permission is missing and how to grant it.
        remedy: String,
    },
    /// The group does not exist.
    #[error("find group `{group}` on `{feed}`: create it with `projector provision`")]
    NoGroup {
        /// The stream that it is to read.
        feed: String,
        /// Its name.
        group: String,
    },
    /// The request can never succeed as it is: too large, malformed, a faulted group.
    #[error("{0}")]
    Refused(String),
}

impl JournalError {
    /// Whether the same request may succeed later without anybody acting.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unfinished(_))
    }

    /// A word for metrics and log classes.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Unfinished(_) => "unfinished",
            Self::OutcomeUnknown(_) => "outcome_unknown",
            Self::WrongExpected { .. } => "wrong_expected",
            Self::Tombstoned(_) => "tombstoned",
            Self::Denied { .. } => "denied",
            Self::NoGroup { .. } => "no_group",
            Self::Refused(_) => "refused",
        }
    }
}

/// The event store.
pub trait Journal: Clone + Send + Sync + 'static {
    /// Reads `stream` forwards from `from` (inclusive) at the leader.
    fn read(
        &self,
        stream: &str,
        from: Revision,
        limit: ReadLimit,
    ) -> impl Future<Output = Result<Slice, JournalError>> + Send;

    /// The state of `stream`, read at the leader: its newest readable event, or which kind of deletion.
    fn look(&self, stream: &str) -> impl Future<Output = Result<Standing, JournalError>> + Send;

    /// The revision before which `stream`'s metadata say that nothing can be read (`$tb`): a deleted
    /// stream's new life begins there, and so does what an operator left of a truncated one.
    fn begins(&self, stream: &str) -> impl Future<Output = Result<Option<Revision>, JournalError>> + Send {
        async move {
            // The server keeps one event of a stream's metadata, the newest.
            let one = ReadLimit {
                events: 1,
                bytes: usize::MAX,
            };
            let metadata = self.read(&format!("$${stream}"), 0, one).await?.events.pop();
            let said = metadata.and_then(|event| serde_json::from_slice::<serde_json::Value>(&event.data).ok());
            Ok(said.and_then(|said| said.get("$tb")?.as_u64()))
        }
    }

    /// Appends `events` at `expected` within `deadline`.
    fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
        deadline: Duration,
    ) -> impl Future<Output = Result<Appended, JournalError>> + Send;
}
