//! Carries out what lanes want: loads, reads, looks, puts; tries again while a store is unavailable.
//!
//! Invariant: I3 settled, its last sentence: an outage settles nothing. An effect ends only with an
//! answer; until then the outage is on record, and the session decides how long to hold on.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    lane::{Effect, Outcome, PutKind},
    meter::{Count, Meter, Timing, WriteOutcome},
};
use crate::{
    journal::{Journal, JournalError},
    replica::{Put, PutOutcome, Quarantine, ReplicaStore, StoreError, Throttle},
};

/// First delay before trying again; doubled each time up to [`LONGEST_DELAY`]. Below what a
/// throttled partition needs to refill, above a round trip.
const FIRST_DELAY: Duration = Duration::from_millis(25);
/// Longest delay: "within seconds of the return" is what a store's outage may cost.
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// Delay while only an operator can help: often enough to go on soon after he did.
const OPERATOR_DELAY: Duration = Duration::from_secs(5);

/// An error as a sentence: its text reads after "failed to".
pub(super) fn sentence(error: &impl std::fmt::Display) -> String {
    let text = format!("Failed to {error}");
    if text.ends_with(['.', '!', '?']) {
        return text;
    }
    text + "."
}

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
    /// Keys that were throttled as hot, and when.
    hot: VecDeque<(Instant, Arc<str>)>,
}

/// Keys that are hot at once by chance. A table's own limit shows on as many keys as are put.
const HOT_KEYS: usize = 3;
/// What is hot at once: about two rounds of a throttled put.
const HOT_WITHIN: Duration = Duration::from_secs(1);

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
    pub fn down(&self) -> Option<(Duration, String)> {
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

    /// Notes a key as hot; whether so many are at once that it is not the key.
    fn is_another(&self, key: &Arc<str>) -> bool {
        let now = Instant::now();
        self.with(|t| {
            t.hot.retain(|(at, hot)| now - *at < HOT_WITHIN && hot != key);
            t.hot.push_back((now, key.clone()));
            t.hot.len() > HOT_KEYS
        })
    }

    /// Throttles of the table since the last call.
    pub fn take_throttles(&self) -> u64 {
        self.throttles.swap(0, Ordering::Relaxed)
    }
}

/// What fails in one effect before there is an answer, where anybody asks for that.
#[derive(Clone, Debug, Default)]
pub struct Failures(Option<Arc<Mutex<(u32, String)>>>);

impl Failures {
    /// Asked for.
    #[cfg(feature = "otel")]
    pub(super) fn recorded() -> Self {
        Self(Some(Arc::default()))
    }

    fn failed(&self, error: &impl std::fmt::Display) {
        if let Some(failures) = &self.0 {
            let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
            *failures = (failures.0 + 1, sentence(error));
        }
    }

    /// How many there were, and the last one.
    #[cfg(feature = "otel")]
    pub(super) fn told(&self) -> (u32, String) {
        let Some(failures) = &self.0 else {
            return (0, String::new());
        };
        failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    /// Of the effect that this clone is for.
    pub failures: Failures,
}

impl<J, S> Stores<J, S> {
    /// Nothing has failed yet.
    pub fn new(journal: J, table: S, meter: Arc<dyn Meter>) -> Self {
        Self {
            journal,
            table,
            journal_trouble: Arc::default(),
            table_trouble: Arc::default(),
            meter,
            failures: Failures::default(),
        }
    }
}

impl<J: Clone, S: Clone> Clone for Stores<J, S> {
    fn clone(&self) -> Self {
        Self {
            journal: self.journal.clone(),
            table: self.table.clone(),
            journal_trouble: self.journal_trouble.clone(),
            table_trouble: self.table_trouble.clone(),
            meter: self.meter.clone(),
            failures: self.failures.clone(),
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
            Effect::Load { fresh } => self.load(stream, fresh).await,
            Effect::Read { from, limit } => {
                let answer = self.ask(|| self.journal.read(stream, from, limit)).await;
                answer.map_or_else(Outcome::Denied, Outcome::Read)
            }
            Effect::Look => {
                let answer = self.ask(|| self.journal.look(stream)).await;
                answer.map_or_else(Outcome::Denied, Outcome::Looked)
            }
            Effect::Put(put, kind) => self.put(&put, kind).await,
            Effect::Forget { generation } => {
                match self.table.forget_mark(stream, generation).await {
                    Ok(()) => info!(%stream, "a mark has ended: the stream is folded again"),
                    // It is looked at again, and forgotten then.
                    Err(error) => warn!(%error, %stream, "the note of a mark that has ended stays in the table"),
                }
                Outcome::Forgotten
            }
        }
    }

    /// Loads many replicas at once, where no lane needs the newest.
    pub async fn load_many(&self, streams: &[Arc<str>]) -> Vec<Outcome> {
        let mut delays = Delays::new();
        // Large items on a slow line do not come within one attempt's time, however often it is
        // made: fewer at once do.
        let mut at_once = streams.len();
        let mut outcomes = Vec::with_capacity(streams.len());
        while outcomes.len() < streams.len() {
            let left = &streams[outcomes.len()..];
            let batch = &left[..at_once.min(left.len())];
            match self.table.get_many(batch, false).await {
                Ok(replicas) => {
                    self.table_trouble.answered();
                    for (stream, replica) in batch.iter().zip(replicas) {
                        outcomes.push(match replica {
                            Ok(replica) => Outcome::Loaded(replica.map(Box::new)),
                            Err(StoreError::Corrupt { problem, found, .. }) => Outcome::Corrupt { problem, found },
                            // Nothing else is told of one item.
                            Err(_) => self.load(stream, false).await,
                        });
                    }
                }
                Err(error) => {
                    if matches!(error, StoreError::Unavailable(_)) {
                        at_once = (at_once / 2).max(1);
                    }
                    self.table_failed(&error, &mut delays, None).await;
                }
            }
        }
        outcomes
    }

    async fn load(&self, stream: &Arc<str>, fresh: bool) -> Outcome {
        let mut delays = Delays::new();
        loop {
            match self.table.get(stream, fresh).await {
                Ok(replica) => {
                    self.table_trouble.answered();
                    return Outcome::Loaded(replica.map(Box::new));
                }
                Err(StoreError::Corrupt { problem, found, .. }) => {
                    self.table_trouble.answered();
                    return Outcome::Corrupt { problem, found };
                }
                Err(error) => self.table_failed(&error, &mut delays, None).await,
            }
        }
    }

    /// Marks are noted before they are made and forgotten (see [`Effect::Forget`]) after what was
    /// settled by them is stored, so that none is ever missing from the notes.
    async fn put(&self, put: &Put, kind: PutKind) -> Outcome {
        let marks = matches!(kind, PutKind::Quarantine(_) | PutKind::Diverged | PutKind::Again);
        if let (true, Some(mark)) = (marks, &put.header.quarantine) {
            self.note(put, mark).await;
        }
        let mut delays = Delays::new();
        loop {
            let began = Instant::now();
            let result = self.table.put(put).await;
            self.meter.observe(Timing::Write, began.elapsed());
            let outcome = match &result {
                Ok(PutOutcome::Done) => WriteOutcome::Done,
                Ok(PutOutcome::Refused(_)) => WriteOutcome::Refused,
                Err(StoreError::Throttled { .. }) => WriteOutcome::Throttled,
                Err(StoreError::Setup { .. } | StoreError::NoTable { .. }) => WriteOutcome::Setup,
                Err(StoreError::Unavailable(_) | StoreError::Corrupt { .. }) => WriteOutcome::Unavailable,
            };
            self.meter.count(Count::Write(outcome), 1);
            match result {
                Ok(outcome) => {
                    self.table_trouble.answered();
                    return Outcome::Put(outcome);
                }
                Err(StoreError::Corrupt { problem, found, .. }) => {
                    self.table_trouble.answered();
                    return Outcome::Corrupt { problem, found };
                }
                Err(error) => self.table_failed(&error, &mut delays, Some(&put.stream)).await,
            }
        }
    }

    /// A mark that is not noted is not looked at again, and what is owed for it is forgotten with the
    /// session that clears it: an outage is waited for.
    async fn note(&self, put: &Put, mark: &Quarantine) {
        let mut delays = Delays::new();
        while let Err(error) = self.table.note_mark(&put.stream, mark, put.header.generation).await {
            if !error.is_transient() {
                // The mark itself stands on the replica; what is lost is that others hear of it soon.
                warn!(%error, stream = %put.stream, "a quarantine is not noted in the table");
                return;
            }
            self.table_failed(&error, &mut delays, None).await;
        }
    }

    /// `key`: whose put it was.
    async fn table_failed(&self, error: &StoreError, delays: &mut Delays, key: Option<&Arc<str>>) {
        self.failures.failed(error);
        match error {
            StoreError::Throttled { scope, .. } => {
                // The table does answer. A hot key slows its own lane only; but a table that is one
                // partition, as a new one is, says of each key what holds for all of them.
                let one_key = *scope == Throttle::Key && key.is_none_or(|key| !self.table_trouble.is_another(key));
                if !one_key {
                    self.table_trouble.throttles.fetch_add(1, Ordering::Relaxed);
                }
                debug!(%error, "throttled");
                delays.wait().await;
            }
            StoreError::Unavailable(_) => {
                self.table_trouble.failed(&sentence(&error), false);
                delays.wait().await;
            }
            StoreError::Setup { .. } | StoreError::NoTable { .. } | StoreError::Corrupt { .. } => {
                self.table_trouble.failed(&sentence(&error), true);
                tokio::time::sleep(OPERATOR_DELAY).await;
            }
        }
    }

    /// Asks until there is an answer; that this stream may not be read is one.
    async fn ask<T, F: Future<Output = Result<T, JournalError>>>(&self, question: impl Fn() -> F) -> Result<T, String> {
        let mut delays = Delays::new();
        loop {
            match question().await {
                Ok(answer) => {
                    self.journal_trouble.answered();
                    return Ok(answer);
                }
                Err(error @ JournalError::Denied { .. }) => {
                    self.journal_trouble.answered();
                    return Err(error.to_string());
                }
                Err(error) if error.is_transient() => {
                    self.failures.failed(&error);
                    self.journal_trouble.failed(&sentence(&error), false);
                    delays.wait().await;
                }
                Err(error) => {
                    self.failures.failed(&error);
                    self.journal_trouble.failed(&sentence(&error), true);
                    tokio::time::sleep(OPERATOR_DELAY).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        projector::meter::NoMeter,
        replica::{Demand, Header, item::Body},
        testing::{MemoryJournal, MemoryStore},
    };

    /// It used to be told in the log and not tried again: a stream that was denied stayed marked.
    #[tokio::test(start_paused = true)]
    async fn a_mark_is_noted_whatever_the_table_says_first() {
        let table = MemoryStore::new();
        let stores = Stores::new(MemoryJournal::new(), table.clone(), Arc::new(NoMeter));
        table.fail_notes(3, StoreError::Unavailable("refused".into()));
        let put = Put {
            stream: "s-1".into(),
            header: Header {
                quarantine: Some(Quarantine::denied("read it", "build".into())),
                ..Header::new()
            },
            body: Body::Nothing,
            demand: Demand::Absent,
        };
        stores
            .carry_out(
                &put.stream.clone(),
                Effect::Put(Box::new(put), PutKind::Quarantine("denied")),
            )
            .await;
        assert_eq!(table.marks().await.unwrap().len(), 1);
        assert!(table.stored("s-1").unwrap().header.quarantine.is_some());
    }
}
