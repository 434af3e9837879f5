//! How each projection stands, for readiness, `/status` and people.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

pub use super::told::{Told, Waiting};
use crate::journal::{Unplaced, feed::GroupInfo};

/// What a projection is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Making sure of table and group.
    Starting,
    /// Connected to its group.
    Running,
    /// Between two connections.
    Reconnecting(String),
    /// A store is unavailable; it goes on by itself.
    StoreAway(String),
    /// It waits for somebody to act, tries again now and then, and is not ready.
    Paused(String),
    /// Nothing that is tried here can help (a tombstoned source): reported, not waited for.
    Failed(String),
    /// Stopped as asked.
    Stopped,
}

impl Phase {
    /// A word for `/status`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reconnecting(_) => "reconnecting",
            Self::StoreAway(_) => "store_away",
            Self::Paused(_) => "paused",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// Why, where there is more to say.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Reconnecting(why) | Self::StoreAway(why) | Self::Paused(why) | Self::Failed(why) => Some(why),
            _ => None,
        }
    }
}

/// How far a projection is behind its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Lag {
    /// Entries of the source not settled; on `$all` a lower bound, above zero while any waits.
    pub events: u64,
    /// Age of the oldest of them in seconds.
    pub seconds: f64,
    /// The source itself stands still while the log grows (`$by_category` is stopped).
    pub stalled: bool,
    /// What was in the source at this time is counted; what came later may not be.
    pub as_of: DateTime<Utc>,
}

/// Why lag is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LagUnknown {
    /// What went wrong with the last measurement.
    pub error: String,
    /// Since when.
    pub since: Instant,
    /// Whether work may wait unseen: the store did not answer, or work waited when it last did.
    pub may_wait: bool,
}

/// How one projection stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// The projection.
    pub projection: Arc<str>,
    /// Its schema.
    pub schema: u32,
    /// Its group.
    pub group: Arc<str>,
    /// What it reads.
    pub source: String,
    /// Its table.
    pub table: String,
    /// What it is at.
    pub phase: Phase,
    /// The group was there and took a consumer since the process started.
    pub group_confirmed: bool,
    /// The table was there and answered since the process started.
    pub table_confirmed: bool,
    /// Deliveries that this process holds.
    pub holding: usize,
    /// When a delivery was last settled, or nothing was left to settle.
    pub last_progress: Instant,
    /// How far it is behind; `None` before it was measured and while it cannot be.
    pub lag: Option<Lag>,
    /// Why it is not known, once that was tried.
    pub lag_unknown: Option<LagUnknown>,
    /// When the group last moved, on whatever task.
    pub group_moved: Instant,
    /// What the server says of the group.
    pub info: Option<GroupInfo>,
    /// Quarantined streams.
    pub quarantined: Vec<String>,
    /// Diverged streams.
    pub diverged: Vec<String>,
    /// The first of both, with what their marks say; `None` before the table was asked.
    pub waiting: Option<Arc<[Waiting]>>,
    /// Deliveries that no lane could take, since the process started.
    pub unplaced: BTreeMap<Unplaced, u64>,
    /// Settings of the group that differ from the wanted ones: (setting, wanted, found).
    pub differences: Vec<(&'static str, String, String)>,
    /// The newest problem, and when.
    pub last_error: Option<String>,
}

impl Status {
    /// Whether anything of the source waits, or may wait unseen.
    pub fn may_wait(&self) -> bool {
        match (&self.lag, &self.lag_unknown) {
            (Some(lag), _) => lag.events > 0,
            (None, Some(unknown)) => unknown.may_wait,
            (None, None) => false,
        }
    }
}
