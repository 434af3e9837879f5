//! What goes into an attempt and comes out of it: rules, identity, actions and replies.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    command::{
        base::{Base, CatchUpRules},
        error::CommandError,
    },
    event::{Event, Revision},
    journal::{Appended, Expected, JournalError, NewEvent, Slice, Standing},
    projection::run::COMMAND_ID,
};

/// What a command finds when its aggregate's stream is deleted softly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDeleted {
    /// [`CommandError::Deleted`].
    #[default]
    Refuse,
    /// It is decided on the state before the deletion, as far as a snapshot has it; an append
    /// revives the stream. Goes with the projection's policy `continue`.
    Continue,
    /// It is decided on a new state; an append revives the stream. Goes with the policy `restart`.
    Restart,
}

/// How a command is attempted.
#[derive(Clone, Copy, Debug)]
pub struct AttemptRules {
    /// Appends to try before [`CommandError::Contended`].
    pub attempts: u32,
    /// What a deleted stream means.
    pub on_deleted: OnDeleted,
    /// How the stream is folded on.
    pub catch_up: CatchUpRules,
}

/// Which command it is, as its events' metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The command's id.
    pub command: Uuid,
    /// What it belongs to; EventStoreDB's `$correlationId`.
    pub correlation: String,
    /// What caused it; EventStoreDB's `$causationId`.
    pub causation: String,
    /// When it was taken in: what its events count as created at until they are read back.
    pub at: DateTime<Utc>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Load a base from the cache, the snapshots or the stream.
    Load,
    /// Read the stream on from here, at the leader.
    Read(Revision),
    /// Load what the snapshots have at their freshest, past every cache: much is to be read otherwise.
    Refresh,
    /// Look how the stream stands.
    Look,
    /// Append.
    Append(Expected, Vec<NewEvent>),
    /// Wait, with jitter.
    Wait(Pause),
    /// Nothing: [`super::Attempt::finish`] has the answer.
    Done,
}

/// What is waited for, and the how manieth time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Others were faster, or a store was away.
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

/// What came of an action.
#[derive(Debug)]
pub enum Reply<E: std::error::Error + 'static> {
    /// A base, and whether it is what the leader had after the attempt began.
    Loaded(Base, bool),
    /// No base can be had.
    NotLoaded(CommandError<E>),
    /// The freshest snapshot, when there is a usable one.
    Refreshed(Option<Box<Base>>),
    /// A read's.
    Read(Result<Slice, JournalError>),
    /// A look's.
    Stands(Result<Standing, JournalError>),
    /// An append's.
    Appended(Result<Appended, JournalError>),
    /// The wait is over.
    Waited,
}

/// The id of a command's event: the same for every process that executes the command.
pub fn event_id(command: Uuid, stream: &str, index: usize) -> Uuid {
    Uuid::new_v5(&command, format!("{stream}/{index}").as_bytes())
}

pub(super) fn metadata<E: Event>(identity: &Identity) -> Bytes {
    serde_json::json!({
        "$correlationId": identity.correlation,
        "$causationId": identity.causation,
        COMMAND_ID: identity.command,
        "schema": E::SCHEMA,
    })
    .to_string()
    .into()
}

/// The most that the nth wait may last, before jitter: doubling, because each further loss says
/// that more writers are at it, up to half a second, where waiting longer only adds latency.
pub fn longest_wait(nth: u32) -> Duration {
    Duration::from_millis((5_u64 << nth.min(8)).min(500))
}

/// The most that the nth round may wait. What is waited for is a commit of the server's: some
/// milliseconds as a rule. Half as long again each time, so that a slow server is asked a dozen
/// times, not a hundred, and is left idle for no more than about half of what a commit takes.
fn longest_round(nth: u32) -> Duration {
    Duration::from_secs_f64((0.003 * 1.5_f64.powi(nth.min(12).cast_signed())).min(0.2))
}
