//! Carrying out commands: the replica is the snapshot, EventStoreDB the judge.
//!
//! [`Repository::execute`] loads a snapshot, decides, and appends with the snapshot's revision as
//! the expected one. After a lost race it reads only what is missing, folds it on, and decides
//! again. Uncontended and cached that is one round trip, whatever the stream's length; not cached,
//! two; a rejection one more, because only an append or a read at the leader confirms a state.
//! (Not cached, one event is read beside the append: it shows that the snapshot is this stream's.
//! So it is beside every append where a stream's new life starts over, [`CommandSettings::restarts`].)
//!
//! A call that is dropped at any await may have appended, or may append yet: what it sent goes on.
//! It leaves nothing behind that the next one would be wrong to start from. With a command id the
//! same command can be executed again, and lands at most once.
//!
//! The shell around [`attempt`], which has the rules: here is what waits.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use crate::{
    aggregate::{Aggregate, Command, Decision},
    event::Metadata,
    journal::{Journal, JournalError, ReadLimit, Slice, esdb::EventStore},
    projection::{Compiled, OnLostHistory, folding::COMMANDS_KEPT},
    replica::{ALL_COMMANDS, Sort, dynamodb::DynamoTable, stored_time},
};

#[doc(hidden)]
pub mod attempt;
#[doc(hidden)]
pub mod base;
mod cache;
#[doc(hidden)]
pub mod catch_up;
mod context;
mod error;
mod executor;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod observe;
mod queue;
mod recent;
pub mod snapshots;
mod traced;

pub use attempt::{Committed, OnDeleted};
pub use catch_up::CatchUpError;
pub use context::{Context, Freshness};
pub use error::CommandError;
pub use executor::{Executing, Executor};
pub use snapshots::{NoSnapshots, Replicas, SnapshotError, SnapshotEvents};

use attempt::{Action, Append, Attempt, AttemptRules, Finished, Identity, Reply};
use base::{Base, Lineage};
use cache::{Cache, Lead};
use catch_up::CatchUpRules;
use observe::{Discard, Observation, Observer, Origin, Unobserved};
use queue::{Full, Queue, Turn};
use recent::{CommandSearch, Recent};
use snapshots::{Snapshot, Snapshots};

/// Before the first look for an append that may be under way already: a commit's time, with room.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// Between the later ones, doubling up to here: the server gives up on such an append in 2 s.
const LAST_LOOK: Duration = Duration::from_millis(400);
/// What is read beside an append has so long after the append's answer, and half of what is left at
/// most: it comes in milliseconds, and what landed must not be told as unknown for a read that hangs.
const BESIDE: Duration = Duration::from_secs(1);
const LATE_BESIDE: &str = "no answer to the read beside an append";
/// Longer than any wait: a clock cannot be asked for all of `Duration::MAX`.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// A time-out's end; of one beyond all reason, a year from now.
pub(crate) fn after(begun: Instant, timeout: Duration) -> Instant {
    begun + timeout.min(FOR_EVER)
}

/// How a repository carries out commands.
#[derive(Clone, Debug)]
pub struct CommandSettings {
    /// Appends to try before [`CommandError::Contended`]. Default: 5; beyond as many lost races
    /// waiting is worse than telling the caller.
    pub attempts: u32,
    /// How long a command may take. Default: 10 s, over `EventStoreDB`'s own 2 s for a write and a
    /// leader's election, below a gateway's 30 s.
    pub deadline: Duration,
    /// How many commands of this repository and its clones may wait for their turn on one aggregate;
    /// 0: none waits, they race each other as those of different processes do. A command whose turn
    /// does not come before its deadline, or that finds the queue full, is
    /// [`CommandError::Queued`]. Repetitions of one key take turns in any case.
    /// Default: 1,000.
    pub queue: usize,
    /// The part of what is left of the deadline, 0 to 1, that loading a snapshot may take; after it
    /// the aggregate is folded from its stream. Default: 0.2, two seconds of the usual deadline.
    pub snapshot_share: f64,
    /// Within this time a command with a caller's id lands at most once, and its repetition is
    /// answered with what was committed. By the server's clock and this process's, which must not be
    /// further apart than callers leave between their last try and it. A deletion ends the
    /// guarantee: what landed before it can only be known by a replica. A new life that a command
    /// began says so in its first event, and counts as the whole stream. One that somebody else
    /// began, or a command on a state of before the deletion, cannot be told from a stream that was
    /// truncated: until it is as old as this, a command with an id that is not remembered is
    /// [`CommandError::OutOfReach`], under every policy. Default: 5 minutes.
    pub retry_horizon: Duration,
    /// Events that may be read back to the horizon for a command with a caller's id, where the state
    /// does not remember as much; beyond them it is [`CommandError::OutOfReach`]. Default:
    /// 200,000.
    pub horizon_cap: usize,
    /// Command ids that a state remembers. As long as no more land within the horizon, ids cost
    /// nothing; where more do, a command with a caller's id costs a read back to the horizon, in
    /// pages, the first time in a process. No smaller than the daemon's setting for the aggregate is
    /// best; a window that others keep longer is never made shorter. Default: 32.
    pub keep_commands: usize,
    /// Events that one load may bring, snapshot aside. Default: 100,000.
    pub cap: usize,
    /// One read's size. Default: 1,000 events or 4 MiB.
    pub page: ReadLimit,
    /// What a command on a softly deleted stream finds, where it looks at the stream: a deletion
    /// does not move the revision, and no look before an append is free of a race, so what each
    /// policy promises stands beside it. Default: `Refuse`.
    pub on_deleted: OnDeleted,
    /// Whether a stream that was deleted and lives again is folded from its first readable event:
    /// the projection's policy for revived streams is `restart`. [`OnDeleted::Restart`] implies it.
    /// Default: no.
    pub restarts: bool,
    /// Whether a command is decided on what is left of a stream whose beginning can no longer be
    /// read and that no snapshot covers: the projection's policy of the same name. Default: `Partial`, it is.
    pub on_lost_history: OnLostHistory,
    /// Bytes of states that the cache keeps; 0 for no cache. Default: 32 MiB.
    pub cache_bytes: u64,
    /// How long a write-through may take, within the deadline: what is left of that bounds it too. Default: 1 s.
    pub keep_deadline: Duration,
}

impl Default for CommandSettings {
    fn default() -> Self {
        Self {
            // Beyond five lost races waiting is worse than telling the caller.
            attempts: 5,
            // Over EventStoreDB's own 2 s for a write and a leader's election, below a gateway's 30 s.
            deadline: Duration::from_secs(10),
            // Within the deadline as many turns come at a round trip of 10 ms.
            queue: 1_000,
            // Two seconds of the usual deadline: a table that answers at all does so in a tenth of
            // it, and most of the time is left for the stream.
            snapshot_share: 0.2,
            // What clients and gateways repeat within.
            retry_horizon: Duration::from_mins(5),
            // 370 commands a second for five minutes are 111,000 events.
            horizon_cap: 200_000,
            keep_commands: COMMANDS_KEPT,
            // Some seconds of reading: an aggregate that needs more needs a snapshot.
            cap: 100_000,
            // A read's cost is the round trip up to about here.
            page: ReadLimit {
                events: 1_000,
                bytes: 4 * 1024 * 1024,
            },
            on_deleted: OnDeleted::default(),
            restarts: false,
            on_lost_history: OnLostHistory::Partial,
            // Thousands of usual states; a Lambda's smallest memory holds it.
            cache_bytes: 32 * 1024 * 1024,
            // The caller waits for it: better stale for a moment than slow.
            keep_deadline: Duration::from_secs(1),
        }
    }
}

impl CommandSettings {
    /// The time since which a command with a caller's id is looked for; from the beginning, where
    /// the horizon is longer than there are times.
    fn horizon(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        TimeDelta::from_std(self.retry_horizon)
            .ok()
            .and_then(|horizon| now.checked_sub_signed(horizon))
            .map_or(ALL_COMMANDS, |from| from.max(ALL_COMMANDS))
    }

    fn catch_up(&self) -> CatchUpRules {
        CatchUpRules {
            keep_commands: self.keep_commands,
            cap: self.cap,
            restarts: self.restarts || self.on_deleted == OnDeleted::Restart,
            on_lost_history: self.on_lost_history,
        }
    }
}

/// What came of a command: `D` is what it decides, which is events unless it has a reply for its caller.
pub type Executed<A, E, D = Vec<<A as Aggregate>::Event>> =
    Result<Committed<A, <D as Decision<<A as Aggregate>::Event>>::Reply>, CommandError<E>>;

/// Carries out the commands of one kind of aggregate. Clones share the cache and the queues: a
/// process should have one repository of a kind, and clones of it.
pub struct Repository<A, J = EventStore, S = Replicas<DynamoTable>> {
    journal: J,
    snapshots: S,
    fold: Arc<Compiled<A>>,
    settings: Arc<CommandSettings>,
    cache: Option<Arc<Cache>>,
    recent: Arc<Recent>,
    queue: Arc<Queue>,
    observer: Arc<dyn Observer>,
}

impl<A, J: Clone, S: Clone> Clone for Repository<A, J, S> {
    fn clone(&self) -> Self {
        Self {
            journal: self.journal.clone(),
            snapshots: self.snapshots.clone(),
            fold: self.fold.clone(),
            settings: self.settings.clone(),
            cache: self.cache.clone(),
            recent: self.recent.clone(),
            queue: self.queue.clone(),
            observer: self.observer.clone(),
        }
    }
}

impl<A: Aggregate, J: Journal, S: Snapshots> Repository<A, J, S> {
    /// With default settings, observed by nobody.
    pub fn new(journal: J, snapshots: S) -> Self {
        Self {
            journal,
            snapshots,
            fold: Arc::new(Compiled::new("")),
            settings: Arc::default(),
            cache: None,
            recent: Arc::default(),
            queue: Arc::new(Queue::new(0)),
            observer: Arc::new(Unobserved),
        }
        .with_settings(CommandSettings::default())
    }

    /// With these settings, an empty cache and queues of its own.
    #[must_use]
    pub fn with_settings(mut self, settings: CommandSettings) -> Self {
        self.queue = Arc::new(Queue::new(settings.queue));
        self.recent = Arc::default();
        self.cache = (settings.cache_bytes > 0).then(|| Arc::new(Cache::new(settings.cache_bytes)));
        self.settings = Arc::new(settings);
        self
    }

    /// Observed by `observer`.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Forgets the cached state of an aggregate, or of all.
    pub fn forget(&self, id: Option<&str>) {
        let stream = id.map(A::stream);
        self.recent.forget(stream.as_deref());
        if let Some(cache) = &self.cache {
            cache.forget(stream.as_deref());
        }
    }

    /// Carries out `command` on the aggregate `id`, at most once in this call.
    pub async fn execute<C, D>(&self, id: &str, command: &C) -> Executed<A, C::Error, D>
    where
        C: Command<A, D> + ?Sized,
        D: Decision<A::Event>,
    {
        self.execute_with(id, command, Context::default()).await
    }

    /// Carries out `command` on the aggregate `id`; with a command id in `context` at most once,
    /// however often and from wherever it is called.
    pub async fn execute_with<C, D>(&self, id: &str, command: &C, context: Context) -> Executed<A, C::Error, D>
    where
        C: Command<A, D> + ?Sized,
        D: Decision<A::Event>,
    {
        let span = traced::command(A::CATEGORY, command.name(), id, &context);
        self.executed(id, command, context, &span)
            .instrument(span.clone())
            .await
    }

    async fn executed<C, D>(&self, id: &str, command: &C, context: Context, span: &Span) -> Executed<A, C::Error, D>
    where
        C: Command<A, D> + ?Sized,
        D: Decision<A::Event>,
    {
        let begun = Instant::now();
        if id.is_empty() {
            return Err(CommandError::Journal(JournalError::Refused(
                "execute a command: the aggregate's id is empty".to_owned(),
            )));
        }
        if let Some(name) = context.metadata.taken() {
            return Err(CommandError::ReservedMetadata { name: name.to_owned() });
        }
        let deadline = after(begun, context.deadline.unwrap_or(self.settings.deadline));
        let stream: Arc<str> = A::stream(id).into();
        if let Some(error) = context.metadata.unreadable() {
            // What the command was and which call wrote it would stand where nobody reads it.
            return Err(CommandError::Unwritable {
                stream: stream.to_string(),
                problem: format!("the caller's metadata: {error}; nest it less deep, or write it as text"),
            });
        }
        let mut seen = Seen::default();
        let (answer, attempts) = match self.turn(&stream, context.command_id, deadline).await {
            Ok(turn) => {
                self.attempt(&stream, command, context, deadline, turn.as_ref(), &mut seen)
                    .await
            }
            Err(error) => (Err(error), 0),
        };
        let outcome = match &answer {
            Ok(done) if done.events.is_empty() && !done.repeated => "nothing",
            Ok(_) => "committed",
            Err(error) => error.class(),
        };
        // A rejection is an answer.
        let failed = !matches!(&answer, Ok(_) | Err(CommandError::Rejected(_)));
        traced::ended(span, outcome, failed, attempts, seen.replayed);
        self.observer.observe(
            A::CATEGORY,
            Observation::Ended {
                outcome,
                took: begun.elapsed(),
                attempts,
                replayed: seen.replayed,
            },
        );
        answer
    }

    /// Waits for the command's turn among those of this process on its aggregate.
    async fn turn<E>(
        &self,
        stream: &Arc<str>,
        command: Option<Uuid>,
        deadline: Instant,
    ) -> Result<Option<Turn<'_>>, CommandError<E>> {
        let queued = |ahead| CommandError::Queued {
            stream: stream.to_string(),
            ahead,
        };
        let place = match self.queue.join(stream, command) {
            Ok(None) => return Ok(None),
            Ok(Some(place)) => place,
            Err(Full(ahead)) => return Err(queued(ahead)),
        };
        if place.ahead() > 0 {
            self.observer.observe(A::CATEGORY, Observation::Queued);
        }
        match timeout_at(deadline, place.turn()).await {
            Ok(turn) if Instant::now() < deadline => Ok(Some(place.with(turn))),
            // What kept those before it would have kept this one.
            _ => Err(place
                .trouble()
                .map_or_else(|| queued(place.ahead()), CommandError::Journal)),
        }
    }

    /// Carries out a command whose turn it is; the answer, and the appends that it took.
    async fn attempt<C, D>(
        &self,
        stream: &Arc<str>,
        command: &C,
        context: Context,
        deadline: Instant,
        turn: Option<&Turn<'_>>,
        seen: &mut Seen,
    ) -> (Executed<A, C::Error, D>, u32)
    where
        C: Command<A, D> + ?Sized,
        D: Decision<A::Event>,
    {
        let command_id = context.command_id.unwrap_or_else(Uuid::now_v7);
        let said = context.metadata;
        let identity = Identity {
            command: command_id,
            execution: Uuid::new_v4(),
            sort: Sort {
                name: Some(command.name()).filter(|name| !name.is_empty()).map(Into::into),
                fingerprint: context.fingerprint.map(Into::into),
            },
            metadata: Metadata {
                correlation_id: said.correlation_id.or_else(|| Some(command_id.to_string())),
                causation_id: said.causation_id.or_else(|| Some(command_id.to_string())),
                ..said
            },
            at: Utc::now(),
        };
        let rules = AttemptRules {
            attempts: self.settings.attempts,
            on_deleted: self.settings.on_deleted,
            known_from: context.command_id.map(|_| self.settings.horizon(identity.at)),
            expected: context.expected,
            confirmed: context.freshness == Freshness::Confirmed,
            catch_up: self.settings.catch_up(),
        };
        seen.known_from = rules.known_from;
        let mut attempt = Attempt::new(&*self.fold, command, stream.clone(), identity, rules);
        let mut appending = traced::TracedAppend::default();
        if traced::enabled() {
            attempt = attempt.traced(Box::new(appending.asked(stream, command_id)));
        }
        let span = traced::load();
        let load = self.load(&mut attempt, stream, command_id, deadline, turn, seen);
        let lead = timeout_at(deadline, Box::pin(load.instrument(span.clone()))).await;
        traced::loaded(&span, seen.origin);
        drop(span);
        match lead {
            Ok(lead) => attempt.share(|base| {
                if let Some(lead) = lead {
                    base.weigh(&*self.fold);
                    lead.found(Arc::new(base.clone()));
                }
            }),
            Err(_) => attempt.expire(),
        }
        loop {
            for observation in attempt.observed() {
                self.see(seen, observation);
            }
            let action = attempt.select();
            if action == Action::Done {
                break;
            }
            if let Action::Append(append) = &action {
                appending.sends(append);
            }
            let sends = matches!(action, Action::Append(..));
            let span = traced::action(&action);
            let performed = self.perform(stream, command_id, action, deadline, seen);
            let reply = timeout_at(deadline, Box::pin(performed.instrument(span))).await;
            if let Ok(reply) = reply {
                appending.answered(&reply);
                note(turn, &reply);
                attempt.apply(reply);
            } else {
                if sends {
                    let late = JournalError::OutcomeUnknown("no reply before the command's deadline".to_owned());
                    attempt.apply(Reply::Appended(Err(late), None, Utc::now()));
                }
                attempt.expire();
            }
        }
        let finished = attempt.finish();
        let attempts = finished.attempts;
        appending.ended(attempts);
        let kept = self.keep(stream, finished, seen.discarded, deadline);
        (Box::pin(kept.instrument(traced::keep())).await, attempts)
    }

    fn see(&self, seen: &mut Seen, observation: Observation) {
        match observation {
            Observation::Discarded(why) => {
                seen.discarded = true;
                tracing::warn!(
                    projection = A::CATEGORY,
                    reason = why.label(),
                    "a snapshot was thrown away"
                );
            }
            Observation::Replayed(events) => seen.replayed += events,
            Observation::Loaded(origin) => seen.origin = Some(origin),
            Observation::Conflict => seen.conflict = Some(Instant::now()),
            _ => {}
        }
        self.observer.observe(A::CATEGORY, observation);
        if observation == Observation::HintSettled
            && let Some(conflict) = seen.conflict.take()
        {
            let took = Observation::HintAwaited(conflict.elapsed());
            self.observer.observe(A::CATEGORY, took);
        }
    }

    async fn perform(
        &self,
        stream: &Arc<str>,
        command: Uuid,
        action: Action,
        deadline: Instant,
        seen: &mut Seen,
    ) -> Reply {
        match action {
            Action::Snapshot => Reply::Snapshot(self.first_snapshot(stream, deadline, seen).await),
            Action::Read(from) => Reply::Read(self.journal.read(stream, from, self.settings.page).await),
            Action::Refresh => Reply::Refreshed(self.refresh(stream, deadline, seen).await.map(Box::new)),
            Action::Look => Reply::Stands(self.journal.look(stream).await),
            Action::Begins => Reply::Begins(self.journal.begins(stream).await),
            Action::Search(upto) => {
                let search = CommandSearch {
                    command,
                    upto,
                    from: seen.known_from.unwrap_or(ALL_COMMANDS),
                    cap: self.settings.horizon_cap,
                    page: self.settings.page,
                };
                self.observer.observe(A::CATEGORY, Observation::Searched);
                Reply::Searched(self.recent.search(&self.journal, stream, search).await)
            }
            // On the heap: the stores' futures are large, and this one holds two of them.
            Action::Append(append) => Box::pin(self.append(stream, append, deadline)).await,
            Action::Wait(pause) => {
                // Full jitter: those who lost the same race must not meet again.
                tokio::time::sleep(pause.longest().mul_f64(fastrand::f64())).await;
                Reply::Waited
            }
            // Loading has the first; the others ask for nothing.
            Action::Cache | Action::Share | Action::Done => Reply::Waited,
        }
    }

    async fn append(&self, stream: &Arc<str>, append: Append, deadline: Instant) -> Reply {
        let left = deadline.saturating_duration_since(Instant::now());
        let (place, look, verify) = (append.place(), append.look, append.verify);
        let mut answer = Box::pin(self.journal.append(stream, append.expected, append.events, left));
        let one = ReadLimit {
            events: 1,
            ..self.settings.page
        };
        match (look, verify) {
            (Some(from), _) => tokio::select! {
                biased;
                outcome = answer => Reply::Appended(outcome, None, Utc::now()),
                slice = Box::pin(self.look_for(stream, from, place)) => Reply::Read(Ok(slice)),
            },
            (None, Some(at)) => {
                let mut read = Box::pin(self.journal.read(stream, at, one));
                let (outcome, at, slice) = tokio::select! {
                    biased;
                    outcome = &mut answer => {
                        let (at, left) = (Utc::now(), deadline.saturating_duration_since(Instant::now()));
                        let slice = tokio::time::timeout(BESIDE.min(left / 2), read).await;
                        let late = |_| Err(JournalError::Unavailable(LATE_BESIDE.to_owned()));
                        (outcome, at, slice.unwrap_or_else(late))
                    }
                    slice = &mut read => (answer.await, Utc::now(), slice),
                };
                Reply::Appended(outcome, Some(slice), at)
            }
            (None, None) => Reply::Appended(answer.await, None, Utc::now()),
        }
    }

    /// Reads the stream now and then, until something stands at `place` or above.
    async fn look_for(&self, stream: &Arc<str>, from: u64, place: u64) -> Slice {
        let mut pause = FIRST_LOOK;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
            let read = self.journal.read(stream, from, self.settings.page).await;
            if let Ok(slice) = read
                && slice.events.last().is_some_and(|event| event.revision >= place)
            {
                return slice;
            }
        }
    }

    /// Drives an attempt until it has a base to share, or has ended without. Cut off, at a deadline or
    /// dropped, it leaves what was folded to whoever loads the aggregate next.
    async fn load<C, D>(
        &self,
        attempt: &mut Attempt<'_, A, C, D>,
        stream: &Arc<str>,
        command: Uuid,
        deadline: Instant,
        turn: Option<&Turn<'_>>,
        seen: &mut Seen,
    ) -> Option<Lead<'_>>
    where
        C: Command<A, D> + ?Sized,
        D: Decision<A::Event>,
    {
        let mut lead = None;
        loop {
            let reply = match (attempt.select(), &self.cache) {
                (Action::Share | Action::Done, _) => return lead,
                (Action::Cache, None) => Reply::NotCached(None),
                (Action::Cache, Some(cache)) => match cache.get_or_lead(stream).await {
                    Ok(base) => {
                        self.see(seen, Observation::Loaded(Origin::Cache));
                        Reply::Cached((*base).clone())
                    }
                    // Everybody else who wants this aggregate waits for this load.
                    Err(led) => Reply::NotCached(lead.insert(led).part.as_deref().cloned()),
                },
                (action, _) => self.perform(stream, command, action, deadline, seen).await,
            };
            note(turn, &reply);
            attempt.apply(reply);
            if let Some(lead) = &mut lead {
                lead.part = attempt.part().cloned().map(Arc::new);
            }
            for observation in attempt.observed() {
                self.see(seen, observation);
            }
        }
    }

    async fn first_snapshot(
        &self,
        stream: &Arc<str>,
        deadline: Instant,
        seen: &mut Seen,
    ) -> Result<Snapshot, SnapshotError> {
        let snapshot = self.snapshot(stream, false, deadline, seen).await;
        match &snapshot {
            Ok(Snapshot::Base(base)) => {
                self.see(seen, Observation::Loaded(S::ORIGIN));
                self.compare_window(base, seen);
            }
            Ok(Snapshot::Unusable(why, problem)) => {
                tracing::warn!(%stream, error = problem, "failed to use a snapshot");
                self.see(seen, Observation::Discarded(*why));
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(%stream, %error, "failed to load a snapshot");
                self.see(seen, Observation::Discarded(Discard::Unavailable));
                seen.unavailable = true;
            }
            Ok(Snapshot::Nothing(_)) | Err(_) => {}
        }
        snapshot
    }

    /// Notices a snapshot that remembers fewer commands than this repository relies on.
    fn compare_window(&self, base: &Base, seen: &mut Seen) {
        let header = &base.header;
        let dropped = header.first == 0 && header.version.is_some() && header.commands_since > ALL_COMMANDS;
        if dropped && header.commands.len() < self.settings.keep_commands {
            self.see(seen, Observation::ShortWindow);
            tracing::warn!(
                projection = A::CATEGORY,
                kept = header.commands.len(),
                wanted = self.settings.keep_commands,
                "a snapshot remembers fewer commands than `keep_commands`: raise the daemon's `commands` for the \
                 projection, or let its newer version write the replica; ids cost a read back until then"
            );
        }
    }

    /// What the snapshots have, within a part of the time that is left: what they do not have, the
    /// stream has.
    async fn snapshot(
        &self,
        stream: &str,
        fresh: bool,
        deadline: Instant,
        seen: &Seen,
    ) -> Result<Snapshot, SnapshotError> {
        let share = self.settings.snapshot_share.clamp(0.0, 1.0);
        let bound = deadline.saturating_duration_since(Instant::now()).mul_f64(share);
        if fresh && seen.unavailable {
            // It was unavailable a moment ago, and asking it took its time.
            return Ok(Snapshot::Nothing(Lineage::Foreign));
        }
        tokio::time::timeout(bound, self.snapshots.load(&*self.fold, stream, fresh))
            .await
            .unwrap_or_else(|_| Err(S::late(bound)))
    }

    /// What the snapshots have at their freshest; nothing when that cannot be used.
    async fn refresh(&self, stream: &Arc<str>, deadline: Instant, seen: &mut Seen) -> Option<Base> {
        match self.snapshot(stream, true, deadline, seen).await {
            Ok(Snapshot::Base(base)) => {
                self.see(seen, Observation::Loaded(S::ORIGIN));
                Some(base)
            }
            // What ails it was counted when it was loaded first, or is no matter: the stream has everything.
            Ok(Snapshot::Nothing(_) | Snapshot::Unusable(..)) | Err(_) => None,
        }
    }

    /// Hands the new base to cache and snapshots; nothing here can fail the command.
    async fn keep<E, R>(
        &self,
        stream: &Arc<str>,
        finished: Finished<A, E, R>,
        discarded: bool,
        deadline: Instant,
    ) -> Result<Committed<A, R>, CommandError<E>> {
        let Finished {
            answer,
            base,
            part,
            parent,
            begun_anew,
            ..
        } = finished;
        let replaces = discarded || begun_anew;
        if replaces {
            self.recent.forget(Some(stream));
        }
        let Some(mut base) = base else {
            // An outage says nothing of the state that is cached; a deletion, or events that do not
            // fold, do.
            let wrong = matches!(
                answer,
                Err(CommandError::Deleted { .. } | CommandError::State(_) | CommandError::OutcomeUnknown { .. })
            );
            if let (Some(cache), true) = (&self.cache, replaces || wrong) {
                cache.distrust(stream);
            }
            if let (Some(cache), Some(mut part)) = (&self.cache, part) {
                part.weigh(&*self.fold);
                cache.put_part(stream, part);
            }
            return answer;
        };
        let appended = answer
            .as_ref()
            .map_or(0, |done| if done.repeated { 0 } else { done.events.len() as u64 });
        let mut trusted = true;
        if appended > 0 {
            let keeping = async {
                if self.snapshots.keeps_times() {
                    trusted = self.read_back(stream, &mut base, parent, appended).await?;
                    if !trusted {
                        return Some(false);
                    }
                }
                self.snapshots.keep(&*self.fold, stream, &mut base, appended).await
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let kept = tokio::time::timeout(self.settings.keep_deadline.min(left), keeping)
                .await
                .unwrap_or(Some(false));
            if let Some(kept) = kept {
                self.observer.observe(A::CATEGORY, Observation::WroteThrough(kept));
            }
        }
        if trusted {
            self.recent
                .heed(stream, &base.header, self.settings.horizon(Utc::now()));
        }
        if let Some(cache) = &self.cache {
            if trusted {
                base.weigh(&*self.fold);
                cache.put(stream, base, replaces);
            } else {
                cache.forget(Some(stream));
            }
        }
        answer
    }

    /// Reads the appended events back for the server's own time, from the event before them on: a
    /// base that had another one there must not be written over the replica. Whether it is the
    /// stream's; `None` when it could not be read.
    async fn read_back(
        &self,
        stream: &Arc<str>,
        base: &mut Base,
        parent: Option<(u64, Uuid)>,
        appended: u64,
    ) -> Option<bool> {
        let (version, last) = (base.header.version?, base.header.event.as_mut()?);
        let from = parent.map_or((version + 1).saturating_sub(appended), |(revision, _)| revision);
        let limit = ReadLimit {
            events: usize::try_from(version + 1 - from).ok()?,
            ..self.settings.page
        };
        let read = self.journal.read(stream, from, limit).await.ok()?;
        if let (Some((revision, id)), Some(first)) = (parent, read.events.first())
            && first.revision == revision
            && first.id != id
        {
            return Some(false);
        }
        // Cut short by its bytes, it says nothing of the last one.
        let event = read
            .events
            .last()
            .filter(|e| e.revision == version && e.id == last.id)?;
        last.at = event.created;
        let at = stored_time(event.created);
        for landed in base.header.commands.iter_mut().rev() {
            if landed.last != version {
                break;
            }
            landed.at = Some(at);
        }
        Some(true)
    }
}

/// Tells those who wait behind a command whether the event store answers.
fn note(turn: Option<&Turn<'_>>, reply: &Reply) {
    if let (Some(turn), Some(reached)) = (turn, reply.reached()) {
        turn.note(reached.err());
    }
}

/// What a command's shell remembers of it.
#[derive(Default)]
struct Seen {
    discarded: bool,
    replayed: usize,
    /// Where the newest base came from.
    origin: Option<Origin>,
    /// The command may have landed since this time.
    known_from: Option<DateTime<Utc>>,
    /// When an append met its last conflict.
    conflict: Option<Instant>,
    /// The snapshots were unavailable a moment ago.
    unavailable: bool,
}

#[cfg(test)]
mod tests;
