//! What a table's calls cost and came to, one attempt at a time, for whoever counts.

use std::{fmt, time::Duration};

use crate::replica::Throttle;

/// An operation of DynamoDB's that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// One replica read.
    GetItem,
    /// Up to 100 replicas read.
    BatchGetItem,
    /// One replica put.
    PutItem,
    /// A mark noted.
    UpdateItem,
    /// A table looked at.
    DescribeTable,
    /// A table created.
    CreateTable,
    /// Whether point-in-time recovery is on.
    DescribeContinuousBackups,
    /// Point-in-time recovery switched on.
    UpdateContinuousBackups,
}

impl Operation {
    /// What reading, folding and putting needs: the permissions of a running task.
    pub const RUNNING: [Self; 5] = [
        Self::GetItem,
        Self::BatchGetItem,
        Self::PutItem,
        Self::UpdateItem,
        Self::DescribeTable,
    ];
    /// What creating tables needs beside those.
    pub const PROVISIONING: [Self; 3] = [
        Self::CreateTable,
        Self::DescribeContinuousBackups,
        Self::UpdateContinuousBackups,
    ];

    /// DynamoDB's name for it; with `dynamodb:` before it, the permission that it needs.
    pub fn name(self) -> &'static str {
        match self {
            Self::GetItem => "GetItem",
            Self::BatchGetItem => "BatchGetItem",
            Self::PutItem => "PutItem",
            Self::UpdateItem => "UpdateItem",
            Self::DescribeTable => "DescribeTable",
            Self::CreateTable => "CreateTable",
            Self::DescribeContinuousBackups => "DescribeContinuousBackups",
            Self::UpdateContinuousBackups => "UpdateContinuousBackups",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// It did what was asked.
    Done,
    /// A put whose reply was lost had landed: seen when it was read back.
    Recovered,
    /// A put's demand was not met.
    Refused,
    /// A batch came back in part.
    Partial,
    /// It was throttled.
    Throttled(Throttle),
    /// A transaction or another region holds the item.
    Conflict,
    /// No answer, or an error on the server's side; a put may have landed.
    Unavailable,
    /// Refused for good: permissions, table, credentials, an index.
    Setup,
}

impl AttemptOutcome {
    /// A word for a metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Recovered => "recovered",
            Self::Refused => "refused",
            Self::Partial => "partial",
            Self::Throttled(Throttle::Key) => "throttled_key",
            Self::Throttled(Throttle::Table) => "throttled_table",
            Self::Throttled(Throttle::Account) => "throttled_account",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Setup => "setup",
        }
    }
}

/// One request and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct RequestAttempt<'a> {
    /// The table.
    pub table: &'a str,
    /// The operation.
    pub operation: Operation,
    /// What became of it.
    pub outcome: AttemptOutcome,
    /// Capacity units consumed, as far as the reply says; a refused put's does not.
    pub capacity: f64,
    /// From request to reply.
    pub latency: Duration,
}

/// Sees every attempt of a table's calls. Called on the request's own task: it must not block.
pub trait StoreObserver: Send + Sync + 'static {
    /// After each attempt.
    fn attempt(&self, attempt: &RequestAttempt<'_>);

    /// After a put that left fields out which it was to promote (see
    /// [`Promotions`](crate::replica::item::Promotions)).
    fn left_out(&self, table: &str, fields: u32) {
        let _ = (table, fields);
    }
}

/// Nobody looks.
impl StoreObserver for () {
    fn attempt(&self, _attempt: &RequestAttempt<'_>) {}
}
