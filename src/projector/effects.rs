//! Carries out what lanes want: loads, reads, looks, puts; tries again while a store is away.
//!
//! Keeps invariant 3's last sentence: an outage settles nothing. An effect ends only with an
//! answer; until then the outage is on record, and the session decides how long to hold on.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{
    lane::{Effect, Outcome, PutKind},
    meter::{Count, Meter, Timing, WriteOutcome},
};
use crate::{
    journal::{Journal, JournalError},
    replica::{Put, PutOutcome, Replica, ReplicaStore, StoreError, Throttle},
};

/// First delay before trying again; doubled each time up to [`LONGEST_DELAY`]. Below what a
/// throttled partition needs to refill, above a round trip.
const FIRST_DELAY: Duration = Duration::from_millis(25);
/// Longest delay: "within seconds of the return" is what a store's outage may cost.
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// Delay while only an operator can help: often enough to go on soon after he did.
const OPERATOR_DELAY: Duration = Duration::from_secs(5);

/// Since when a store does not answer, and what it is that only an operator can mend.
#[derive(Debug, Default)]
pub struct Trouble {
    inner: Mutex<TroubleInner>,
    throttles: AtomicU64,
}

#[derive(Debug, Default)]
struct TroubleInner {
    since: Option<Instant>,
    setup: Option<String>,
    last: Option<String>,
}

impl Trouble {
    fn with<T>(&self, f: impl FnOnce(&mut TroubleInner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a failure; `setup`: only an operator can help.
    pub fn failed(&self, what: &str, setup: bool) {
        self.with(|t| {
            t.since.get_or_insert_with(Instant::now);
            if setup {
                t.setup = Some(what.to_owned());
            }
            t.last = Some(what.to_owned());
        });
    }

    /// Records an answer.
    pub fn answered(&self) {
        self.with(|t| {
            t.since = None;
            t.setup = None;
        });
    }

    /// How long no store has answered, and the last reason.
    pub fn away(&self) -> Option<(Duration, String)> {
        self.with(|t| {
            t.since
                .map(|since| (since.elapsed(), t.last.clone().unwrap_or_default()))
        })
    }

    /// What only an operator can mend.
    pub fn setup(&self) -> Option<String> {
        self.with(|t| t.setup.clone())
    }

    /// The newest problem, mended or not.
    pub fn last(&self) -> Option<String> {
        self.with(|t| t.last.clone())
    }

    /// Throttles of the table since the last call.
    pub fn take_throttles(&self) -> u64 {
        self.throttles.swap(0, Ordering::Relaxed)
    }
}

/// What carries effects out, for one projection.
pub struct Stores<J, S> {
    /// The event store.
    pub journal: J,
    /// The projection's table.
    pub table: S,
    /// Trouble with the event store.
    pub journal_trouble: Arc<Trouble>,
    /// Trouble with the table.
    pub table_trouble: Arc<Trouble>,
    /// Takes counts.
    pub meter: Arc<dyn Meter>,
}

impl<J: Clone, S: Clone> Clone for Stores<J, S> {
    fn clone(&self) -> Self {
        Self {
            journal: self.journal.clone(),
            table: self.table.clone(),
            journal_trouble: self.journal_trouble.clone(),
            table_trouble: self.table_trouble.clone(),
            meter: self.meter.clone(),
        }
    }
}

/// Delays with full jitter, so that tasks do not come back together.
struct Delays(Duration);

impl Delays {
    fn new() -> Self {
        Self(FIRST_DELAY)
    }

    async fn wait(&mut self) {
        let longest = self.0;
        self.0 = (longest * 2).min(LONGEST_DELAY);
        tokio::time::sleep(longest.mul_f64(fastrand::f64().max(0.1))).await;
    }
}

impl<J: Journal, S: ReplicaStore> Stores<J, S> {
    /// Carries out an effect on one stream; returns when there is an answer.
    pub async fn carry_out(&self, stream: &Arc<str>, effect: Effect) -> Outcome {
        match effect {
            Effect::Load { fresh } => Outcome::Loaded(self.load(stream, fresh).await.map(Box::new)),
            Effect::Read { from, limit } => Outcome::Read(self.ask(|| self.journal.read(stream, from, limit)).await),
            Effect::Look => Outcome::Looked(self.ask(|| self.journal.look(stream)).await),
            Effect::Put(put, kind) => Outcome::Put(self.put(&put, kind).await),
        }
    }

    /// Loads many replicas at once, where no lane needs the newest.
    pub async fn load_many(&self, streams: &[Arc<str>]) -> Vec<Option<Replica>> {
        let mut delays = Delays::new();
        loop {
            match self.table.get_many(streams, false).await {
                Ok(replicas) => {
                    self.table_trouble.answered();
                    return replicas;
                }
                // One bad item must not keep the others from being read.
                Err(StoreError::Corrupt { .. }) => {
                    let each = streams.iter().map(|stream| self.load(stream, false));
                    return futures::future::join_all(each).await;
                }
                Err(error) => self.table_failed(&error, &mut delays).await,
            }
        }
    }

    async fn load(&self, stream: &Arc<str>, fresh: bool) -> Option<Replica> {
        let mut delays = Delays::new();
        loop {
            match self.table.get(stream, fresh).await {
                Ok(replica) => {
                    self.table_trouble.answered();
                    return replica;
                }
                Err(error) => self.table_failed(&error, &mut delays).await,
            }
        }
    }

    /// Marks are noted before they are made and forgotten after they are cleared, so that none is
    /// ever missing from the notes.
    async fn put(&self, put: &Put, kind: PutKind) -> PutOutcome {
        let marks = matches!(kind, PutKind::Quarantine(_) | PutKind::Diverged);
        if marks {
            self.note(put).await;
        }
        let outcome = self.put_replica(put).await;
        if !marks && kind != PutKind::Fold && put.header.quarantine.is_none() && outcome == PutOutcome::Done {
            self.note(put).await;
        }
        outcome
    }

    async fn note(&self, put: &Put) {
        if let Err(error) = self.table.note_mark(&put.stream, put.header.quarantine.as_ref()).await {
            // The mark itself stands on the replica; what is lost is that others hear of it soon.
            warn!(%error, stream = %put.stream, "a quarantine is not noted in the table");
        }
    }

    async fn put_replica(&self, put: &Put) -> PutOutcome {
        let mut delays = Delays::new();
        loop {
            let began = Instant::now();
            let result = self.table.put(put).await;
            self.meter.observe(Timing::Write, began.elapsed());
            let outcome = match &result {
                Ok(PutOutcome::Done) => WriteOutcome::Done,
                Ok(PutOutcome::Refused(_)) => WriteOutcome::Refused,
                Err(StoreError::Throttled { .. }) => WriteOutcome::Throttled,
                Err(StoreError::Setup { .. }) => WriteOutcome::Setup,
                Err(StoreError::Unavailable(_) | StoreError::Corrupt { .. }) => WriteOutcome::Unavailable,
            };
            self.meter.count(Count::Write(outcome), 1);
            match result {
                Ok(outcome) => {
                    self.table_trouble.answered();
                    return outcome;
                }
                Err(error) => self.table_failed(&error, &mut delays).await,
            }
        }
    }

    async fn table_failed(&self, error: &StoreError, delays: &mut Delays) {
        match error {
            StoreError::Throttled { scope, .. } => {
                // The table does answer. A hot key slows its own lane only.
                if *scope != Throttle::Key {
                    self.table_trouble.throttles.fetch_add(1, Ordering::Relaxed);
                }
                debug!(%error, "throttled");
                delays.wait().await;
            }
            StoreError::Unavailable(_) => {
                self.table_trouble.failed(&error.to_string(), false);
                delays.wait().await;
            }
            StoreError::Setup { .. } | StoreError::Corrupt { .. } => {
                let setup = matches!(error, StoreError::Setup { .. });
                if setup {
                    self.table_trouble.failed(&error.to_string(), true);
                } else {
                    warn!(%error, "a lane waits until the item is mended");
                }
                tokio::time::sleep(OPERATOR_DELAY).await;
            }
        }
    }

    async fn ask<T, F: Future<Output = Result<T, JournalError>>>(&self, question: impl Fn() -> F) -> T {
        let mut delays = Delays::new();
        loop {
            match question().await {
                Ok(answer) => {
                    self.journal_trouble.answered();
                    return answer;
                }
                Err(error) if error.is_transient() => {
                    self.journal_trouble.failed(&error.to_string(), false);
                    delays.wait().await;
                }
                Err(error) => {
                    self.journal_trouble.failed(&error.to_string(), true);
                    tokio::time::sleep(OPERATOR_DELAY).await;
                }
            }
        }
    }
}
