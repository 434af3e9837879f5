//! The replica port: one versioned item for each (projection, schema, stream).
//!
//! Keeps invariant 2: a fold's put is refused unless its base is still the stored one's
//! generation and older, and an administrative write demands exactly what it read. A refusal
//! hands back what is stored, which then is the base.

use std::{future::Future, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    event::{Revision, Version},
    projection::StoredState,
};

pub mod dynamodb;
pub mod item;
#[cfg(any(test, feature = "testing"))]
pub mod memory;

/// The last event folded into a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastEvent {
    /// Its id: at the replica's version the stream must have this event, else they have diverged.
    pub id: Uuid,
    /// Its type.
    pub kind: Arc<str>,
    /// When EventStoreDB wrote it.
    pub at: DateTime<Utc>,
}

/// A durable mark: the event after the replica's version cannot be folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The revision of the event that cannot be folded.
    pub at: Revision,
    /// Why, for people.
    pub reason: String,
    /// The fingerprint of the code that could not.
    pub by: Arc<str>,
}

/// How the reason of a mark begins that says that stream and replica have diverged.
const DIVERGED: &str = "diverged: ";

impl Quarantine {
    /// The mark of a replica whose stream is not the one that it was folded from. It stands before
    /// every revision.
    pub fn diverged(what: &str, stream: &str, by: Arc<str>) -> Self {
        let reason = format!(
            "{DIVERGED}{what}; a store was restored or reset: check that the event store is the right one, \
             then rebuild with `projector redrive --from-start {stream}`"
        );
        Self { at: 0, reason, by }
    }

    /// Whether the mark says so.
    pub fn is_diverged(&self) -> bool {
        self.reason.starts_with(DIVERGED)
    }
}

/// What a command was, as its events' metadata and the window of commands say it. Either is
/// compared only where both sides have it: what older code wrote has neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sort {
    /// Its name ([`crate::aggregate::Command::name`]).
    #[serde(default, rename = "command", skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
    /// The caller's fingerprint of its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Arc<str>>,
}

impl Sort {
    /// Whether the two say that they are different commands.
    pub fn differs(&self, other: &Self) -> bool {
        let differ = |a: &Option<Arc<str>>, b: &Option<Arc<str>>| a.is_some() && b.is_some() && a != b;
        differ(&self.name, &other.name) || differ(&self.fingerprint, &other.fingerprint)
    }
}

/// A command that landed: its id, what it was and the revisions of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landed {
    /// The command's id.
    pub command: Uuid,
    /// What it was.
    pub sort: Sort,
    /// The revision of its first event.
    pub first: Revision,
    /// The revision of its last event.
    pub last: Revision,
}

/// A replica without its state: what the lane decides on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The revision of the last event folded in.
    pub version: Version,
    /// The revision of the first event folded in; above 0 when history was already gone.
    pub first: Revision,
    /// Administrative writes so far.
    pub generation: u64,
    /// The last event folded in; `None` when `version` is.
    pub event: Option<LastEvent>,
    /// The last commands that landed, oldest first (aggregates only).
    pub commands: Vec<Landed>,
    /// Set while the aggregate waits for an operator or other code.
    pub quarantine: Option<Quarantine>,
    /// Whether the stream is deleted.
    pub deleted: bool,
}

impl Header {
    /// Before any event.
    pub fn new() -> Self {
        Self {
            version: None,
            first: 0,
            generation: 0,
            event: None,
            commands: Vec::new(),
            quarantine: None,
            deleted: false,
        }
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

/// A replica as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// All but the state.
    pub header: Header,
    /// The view; `None` when nothing is kept (deleted with policy `remove`, or marked before any event).
    pub view: Option<StoredState>,
    /// What to fold on where a transform makes the view differ.
    pub fold: Option<StoredState>,
    /// When it was put, by the writer's clock.
    pub projected_at: Option<DateTime<Utc>>,
    /// Size of the stored item in bytes, as far as known; what a cache weighs it by.
    pub bytes: usize,
}

/// What a put demands of the item that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// There is none.
    Absent,
    /// A fold's put on a base that was read: same generation, and an older version.
    Older {
        /// The base's generation.
        generation: u64,
    },
    /// An administrative write: exactly the generation and version that were read. `None` for
    /// the version means −1, which is stored so.
    Exactly {
        /// The generation read.
        generation: u64,
        /// The version read.
        version: Version,
    },
}

/// A replica to put, its state already in the form that is stored (see [`item`]).
#[derive(Clone, Debug)]
pub struct Put {
    /// The stream: the item's key.
    pub stream: Arc<str>,
    /// All but the state.
    pub header: Header,
    /// The state, checked and in its stored form.
    pub body: item::Body,
    /// What is demanded of the stored item.
    pub demand: Demand,
}

/// What became of a put.
#[derive(Clone, Debug, PartialEq)]
pub enum PutOutcome {
    /// It is durable.
    Done,
    /// The demand was not met; what is stored, `None` for nothing.
    Refused(Option<Box<Replica>>),
}

/// Why the replica store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It slows us down: back off. Names what is throttled.
    #[error("use table `{table}`: throttled ({scope:?}); raise its capacity or wait")]
    Throttled {
        /// The table.
        table: String,
        /// How far the throttling reaches.
        scope: Throttle,
    },
    /// It cannot be reached or failed on its side. Trying again helps, and is safe: a put's demand
    /// makes the repetition of a put that did land a refusal that shows it.
    #[error("reach DynamoDB: {0}")]
    Unavailable(String),
    /// Table missing, rights missing, an index that refuses our items: pauses the projection until
    /// somebody acts.
    #[error("use table `{table}`: {problem}; {remedy}")]
    Setup {
        /// The table.
        table: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The stored item is not one of ours or not readable as one.
    #[error("read the item `{stream}` of table `{table}`: {problem}; delete the item or run `projector rebuild`")]
    Corrupt {
        /// The table.
        table: String,
        /// The item's key.
        stream: String,
        /// What is wrong.
        problem: String,
    },
}

/// How far a throttling reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttle {
    /// One key range: a hot key. Only its own lane slows down.
    Key,
    /// The table or one of its indexes.
    Table,
    /// The account's limit in this region.
    Account,
}

impl StoreError {
    /// Whether the same request may succeed later without anybody acting.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable(_))
    }

    /// A word for metrics and log classes.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Throttled { .. } => "throttled",
            Self::Unavailable(_) => "unavailable",
            Self::Setup { .. } => "setup",
            Self::Corrupt { .. } => "corrupt",
        }
    }
}

/// An aggregate with a mark, as it is noted beside the replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Its stream.
    pub stream: Arc<str>,
    /// Whether it has diverged, else it is quarantined.
    pub diverged: bool,
    /// The fingerprint of the code that left the mark.
    pub by: Arc<str>,
}

/// One table of replicas, of one (projection, schema).
pub trait ReplicaStore: Clone + Send + Sync + 'static {
    /// One replica. `consistent`: not older than any put acknowledged before.
    fn get(&self, stream: &str, consistent: bool) -> impl Future<Output = Result<Option<Replica>, StoreError>> + Send;

    /// Many replicas, strongly consistent or not, in the order asked for.
    fn get_many(
        &self,
        streams: &[Arc<str>],
        consistent: bool,
    ) -> impl Future<Output = Result<Vec<Option<Replica>>, StoreError>> + Send;

    /// The aggregates that are noted as marked. A hint, for metrics and for code that wants to try
    /// them again: the replica's own mark decides.
    fn marks(&self) -> impl Future<Output = Result<Vec<Marked>, StoreError>> + Send;

    /// Notes an aggregate's mark, or that it has none any more.
    fn note_mark(&self, stream: &str, mark: Option<&Quarantine>)
    -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Whether the table has served its projection before. One that has not, beside a group that
    /// has a checkpoint, has lost its replicas.
    fn in_use(&self) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Notes that the table serves its projection from now on.
    fn set_in_use(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Puts when the demand is met.
    fn put(&self, put: &Put) -> impl Future<Output = Result<PutOutcome, StoreError>> + Send;
}
