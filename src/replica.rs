//! The replica port: one versioned item for each (projection, schema, stream).
//!
//! Invariant: I2 monotonic: a fold's put is refused unless its base is still the stored one's
//! generation and older, and an administrative write demands exactly what it read. A refusal
//! hands back what is stored, which then is the base.

use std::{future::Future, sync::Arc};

use chrono::{DateTime, SubsecRound, Utc};
use uuid::Uuid;

use crate::{
    event::{RawEvent, Revision, Version},
    projection::StoredState,
};

pub mod dynamodb;
pub mod item;
mod mark;
#[cfg(any(test, feature = "testing", all(doc, not(doctest))))]
pub mod memory;

pub use mark::{Divergence, Fingerprints, MarkKind, Marked, Quarantine};

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
    /// When that was written, to the millisecond; `None` where a version of before kept it.
    pub at: Option<DateTime<Utc>>,
}

/// [`Header::commands_since`] of a header that has every command of its stream.
pub const ALL_COMMANDS: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// A time as replicas keep it: to the millisecond, rounded down.
pub fn stored_time(at: DateTime<Utc>) -> DateTime<Utc> {
    at.trunc_subsecs(3)
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
    /// Every command that landed after this time is among them; [`ALL_COMMANDS`]: every one at all.
    pub commands_since: DateTime<Utc>,
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
            commands_since: ALL_COMMANDS,
            quarantine: None,
            deleted: false,
        }
    }

    /// Whether it ends with this event; `None` for one of another revision.
    pub fn ends_with(&self, event: &RawEvent) -> Option<bool> {
        let own = self.event.as_ref().map(|own| own.id);
        (self.version == Some(event.revision)).then(|| own == Some(event.id))
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
    /// Names of attributes beside the replica's own: those that were promoted when it was put.
    pub promoted: Vec<Arc<str>>,
}

/// What a put demands of the item that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// There is none.
    Absent,
    /// A fold's put on a base that was read: same generation, an older version, and no mark. A mark
    /// is put and taken away by administrative writes alone; a base of before the table was emptied
    /// may have the generation of one that was put since.
    Older {
        /// The base's generation.
        generation: u64,
    },
    /// An administrative write: exactly what was read. `None` for the version means −1, which is
    /// stored so.
    Exactly {
        /// The generation read.
        generation: u64,
        /// The version read.
        version: Version,
        /// Whether the stream was said to be deleted. In a table that was emptied generations begin
        /// again, and a marker without a state may have those of a state that was there before.
        deleted: bool,
    },
    /// An administrative write on an item that lacks a version or a generation, so that no other
    /// demand can be met by it: that it still does.
    Broken,
}

/// What can be read of an item that is not readable as a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// Its version, where it has one.
    pub version: Option<Version>,
    /// Its generation, where it has one.
    pub generation: Option<u64>,
    /// Its mark, where it has one.
    pub quarantine: Option<Quarantine>,
    /// Whether its stream is said to be deleted.
    pub deleted: bool,
}

impl Broken {
    /// What an administrative write on it demands.
    pub fn demand(&self) -> Demand {
        match (self.generation, self.version) {
            (Some(generation), Some(version)) => Demand::Exactly {
                generation,
                version,
                deleted: self.deleted,
            },
            _ => Demand::Broken,
        }
    }
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
    /// There is no such table. For commands that is no snapshot; for everybody else a set-up fault.
    #[error(
        "use table `{table}`: there is none, {problem}; create it with `projector provision`, or check prefix, region and endpoint"
    )]
    NoTable {
        /// The table.
        table: String,
        /// What was said.
        problem: String,
    },
    /// Permissions missing, not a table of ours, an index that refuses our items: pauses the projection until
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
    #[error(
        "read the item `{stream}` of table `{table}`: {problem}; fold it again with `projector redrive --from-start {stream}`"
    )]
    Corrupt {
        /// The table.
        table: String,
        /// The item's key.
        stream: String,
        /// What is wrong.
        problem: String,
        /// What can be read of it all the same.
        found: Box<Broken>,
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

    /// Whether it stays until somebody sets something up.
    pub fn is_setup(&self) -> bool {
        matches!(self, Self::Setup { .. } | Self::NoTable { .. })
    }

    /// A word for metrics and log classes.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Throttled { .. } => "throttled",
            Self::Unavailable(_) => "unavailable",
            Self::Setup { .. } | Self::NoTable { .. } => "setup",
            Self::Corrupt { .. } => "corrupt",
        }
    }
}

/// One of many replicas: none, one, or an item that is no replica ([`StoreError::Corrupt`]), which is
/// no matter to the others.
pub type Got = Result<Option<Replica>, StoreError>;

/// One table of replicas, of one (projection, schema).
pub trait ReplicaStore: Clone + Send + Sync + 'static {
    /// One replica. `consistent`: not older than any put acknowledged before.
    fn get(&self, stream: &str, consistent: bool) -> impl Future<Output = Result<Option<Replica>, StoreError>> + Send;

    /// Many replicas, strongly consistent or not, in the order asked for. Only what ails the table or
    /// the call as a whole fails it.
    fn get_many(
        &self,
        streams: &[Arc<str>],
        consistent: bool,
    ) -> impl Future<Output = Result<Vec<Got>, StoreError>> + Send;

    /// The aggregates that are noted as marked. A hint, for metrics and for code that wants to try
    /// them again: the replica's own mark decides.
    fn marks(&self) -> impl Future<Output = Result<Vec<Marked>, StoreError>> + Send;

    /// Notes an aggregate's mark, before it is made by a put of this generation. It does not make a
    /// table look used.
    fn note_mark(
        &self,
        stream: &str,
        mark: &Quarantine,
        generation: u64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets the note of a mark that was made at this generation or below: what was settled by it
    /// is stored. A note of a later one stays.
    fn forget_mark(&self, stream: &str, generation: u64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Which table this is, when it has served its projection before: another id is another table
    /// under the same name. One that has not served (`None`), beside a group that has a checkpoint,
    /// has lost its replicas.
    fn in_use(&self) -> impl Future<Output = Result<Option<Arc<str>>, StoreError>> + Send;

    /// Notes that the table serves its projection from now on; says which table it is.
    fn set_in_use(&self) -> impl Future<Output = Result<Arc<str>, StoreError>> + Send;

    /// Puts when the demand is met.
    fn put(&self, put: &Put) -> impl Future<Output = Result<PutOutcome, StoreError>> + Send;
}
