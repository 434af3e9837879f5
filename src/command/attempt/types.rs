//! What goes into an attempt and comes out of it: rules, identity, actions and replies.
//!
//! I6 pure: all that an attempt knows of the stores and of time is in its replies.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    backoff::doubled,
    command::{
        base::Base,
        catch_up::CatchUpRules,
        snapshots::{Snapshot, SnapshotError},
    },
    event::{
        Event, Metadata, Revision,
        metadata::{COMMAND, COMMAND_ID, EXECUTION_ID, FINGERPRINT, NEW_LIFE, SCHEMA},
    },
    journal::{Appended, Expected, JournalError, NewEvent, Slice, Standing},
    replica::{Landed, Sort},
};

/// What a command finds when its aggregate's stream is deleted softly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDeleted {
    /// [`super::super::CommandError::Deleted`], where a look or a read of this command saw the
    /// deletion; a stream that another has revived lives, and is folded on. What is not promised: that no command
    /// revives a stream. One that is decided on a state from before the deletion, unmarked as yet,
    /// is appended at that state's revision, which a deletion does not move, and EventStoreDB takes
    /// that. It is told: [`super::super::Committed::revived`].
    #[default]
    Refuse,
    /// It is decided on the state before the deletion, as far as a snapshot has it, and an append
    /// revives the stream: the state goes on as if nothing had been. A revival is told, this
    /// command's or another's ([`super::super::Committed::revived`]), and changes no state. Goes
    /// with the projection's policy `continue`.
    Continue,
    /// It is decided on a new state, and an append revives the stream. No state goes on over a
    /// deletion, whoever revived the stream and whenever that is seen: one event is read beside each
    /// append for that. Goes with the policy `restart`.
    Restart,
}

/// How a command is attempted.
#[derive(Clone, Copy, Debug)]
pub struct AttemptRules {
    /// Appends to try before [`super::super::CommandError::Contended`].
    pub attempts: u32,
    /// What a deleted stream means.
    pub on_deleted: OnDeleted,
    /// The command may have landed since this time, and must not land again: its id is a caller's.
    /// `None`: the id is this attempt's own.
    pub known_from: Option<DateTime<Utc>>,
    /// Where the caller expects the stream to stand: another place is
    /// [`super::super::CommandError::Conflict`].
    pub expected: Option<Revision>,
    /// Whether the leader must have confirmed the state before it is decided on first.
    pub confirmed: bool,
    /// How the stream is folded on.
    pub catch_up: CatchUpRules,
}

/// Which command it is, as its events' metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The command's id.
    pub command: Uuid,
    /// This call's: drawn for it.
    pub execution: Uuid,
    /// What the command is.
    pub sort: Sort,
    /// What is written beside: what it belongs to, what caused it, and what else its caller says.
    pub metadata: Metadata,
    /// When it was taken in: what its events count as created at while it is tried whether they fold.
    pub at: DateTime<Utc>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// See whether this process has a base; if not, be the one who loads it.
    Cache,
    /// Load what the snapshots have.
    Snapshot,
    /// Hand the base that was loaded to those who wait for it: [`super::Attempt::share`].
    Share,
    /// Read the stream on from here, at the leader.
    Read(Revision),
    /// Load what the snapshots have at their freshest, past every cache: much is to be read otherwise.
    Refresh,
    /// Look how the stream stands.
    Look,
    /// Ask before which revision the stream's metadata say that nothing can be read.
    Begins,
    /// Look for the command among those that landed up to this revision, back to the retry horizon.
    Search(Revision),
    /// Append.
    Append(Append),
    /// Wait, with jitter.
    Wait(Pause),
    /// Nothing: [`super::Attempt::finish`] has the answer.
    Done,
}

/// An append to make, and what to read beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Where the stream is expected to stand.
    pub expected: Expected,
    /// What to append.
    pub events: Vec<NewEvent>,
    /// The base's event, unseen as yet: to be read at the same time, one event from here.
    pub verify: Option<Revision>,
    /// It may be under way already, and the server answers no append that is: the stream is to be
    /// read from here, now and then, until the answer comes or there is something at or above
    /// [`Self::place`].
    pub look: Option<Revision>,
}

impl Append {
    /// Where the first of its events would stand, as far as its expectation says.
    pub fn place(&self) -> Revision {
        match self.expected {
            Expected::NoStream => 0,
            Expected::Exact(at) => at + 1,
        }
    }
}

/// What is waited for, and the how manieth time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Others were faster, or a store was unavailable.
    Race(u32),
    /// A rival's append is under way.
    Round(u32),
}

impl Pause {
    /// The most that it may last, before jitter.
    pub fn longest(self) -> Duration {
        match self {
            Self::Race(nth) => longest_wait(nth),
            Self::Round(nth) => longest_round(nth),
        }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Searched {
    /// The command landed.
    Found(Landed),
    /// It did not, within the horizon.
    NotThere,
    /// The horizon cannot be reached: nothing is known before the time that is told.
    OutOfReach(DateTime<Utc>),
}

/// What came of an action.
#[derive(Debug)]
pub enum Reply {
    /// The cache's.
    Cached(Base),
    /// The base is not cached: it is for this attempt to load, on from where a load was cut off.
    NotCached(Option<Base>),
    /// What the snapshots have.
    Snapshot(Result<Snapshot, SnapshotError>),
    /// The freshest snapshot, when there is a usable one.
    Refreshed(Option<Box<Base>>),
    /// A read's.
    Read(Result<Slice, JournalError>),
    /// A look's.
    Stands(Result<Standing, JournalError>),
    /// Before which revision nothing can be read.
    Begins(Result<Option<Revision>, JournalError>),
    /// A search's.
    Searched(Result<Searched, JournalError>),
    /// An append's, and what was read beside it to verify the base, if that was asked for. The
    /// append's look at the stream, where it was quicker, is a [`Self::Read`]. When it was answered:
    /// what its events count as created at until they are read back.
    Appended(
        Result<Appended, JournalError>,
        Option<Result<Slice, JournalError>>,
        DateTime<Utc>,
    ),
    /// The wait is over.
    Waited,
}

impl Reply {
    /// Whether the event store was reached, where it was asked: an error says that it was not.
    pub(crate) fn reached(&self) -> Option<Result<(), &JournalError>> {
        let error = match self {
            Self::Read(outcome) => outcome.as_ref().err(),
            Self::Stands(outcome) => outcome.as_ref().err(),
            Self::Begins(outcome) => outcome.as_ref().err(),
            Self::Searched(outcome) => outcome.as_ref().err(),
            Self::Appended(outcome, ..) => outcome.as_ref().err(),
            Self::Cached(_) | Self::NotCached(_) | Self::Snapshot(_) | Self::Refreshed(_) | Self::Waited => {
                return None;
            }
        };
        Some(error.filter(|error| error.is_transient()).map_or(Ok(()), Err))
    }
}

/// The id of a command's event. It covers everything that is stored of the event, the execution in
/// its metadata included: only the same call's own repetition of an append has the same ids, so an
/// idempotent success is that call's own, and another's append of the same command is a conflict.
pub fn event_id(command: Uuid, stream: &str, index: usize, kind: &str, data: &[u8], metadata: &[u8]) -> Uuid {
    // Lengths keep the parts apart.
    let head = format!("{stream}/{index}/{kind}/{}/", data.len());
    Uuid::new_v5(&command, &[head.as_bytes(), data, metadata].concat())
}

/// What is written beside an event; `new_life`: it is the first of a deleted stream's new life.
pub(super) fn metadata<E: Event>(identity: &Identity, new_life: bool) -> Bytes {
    let mut metadata = identity.metadata.to_object();
    // Written last: nobody else has a say in these.
    let mut own = |name: &str, value: serde_json::Value| metadata.insert(name.to_owned(), value);
    own(COMMAND_ID, identity.command.to_string().into());
    own(EXECUTION_ID, identity.execution.to_string().into());
    own(SCHEMA, E::SCHEMA.into());
    if new_life {
        own(NEW_LIFE, identity.execution.to_string().into());
    }
    for (name, value) in [
        (COMMAND, &identity.sort.name),
        (FINGERPRINT, &identity.sort.fingerprint),
    ] {
        if let Some(value) = value {
            own(name, (**value).into());
        }
    }
    serde_json::Value::Object(metadata).to_string().into()
}

/// The most that the nth wait may last, before jitter: doubling, because each further loss says
/// that more writers are at it, up to half a second, where waiting longer only adds latency.
pub fn longest_wait(nth: u32) -> Duration {
    doubled(Duration::from_millis(5), Duration::from_millis(500), nth)
}

/// The most that the nth round may wait. What is waited for is a commit of the server's: some
/// milliseconds as a rule. Half as long again each time, so that a slow server is asked a dozen
/// times, not a hundred, and is left idle for no more than about half of what a commit takes.
fn longest_round(nth: u32) -> Duration {
    Duration::from_secs_f64((0.003 * 1.5_f64.powi(nth.min(12).cast_signed())).min(0.2))
}
