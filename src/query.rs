//! Reading replicas, as fresh as the reader asks for.
//!
//! | mode | promises | costs |
//! |---|---|---|
//! | [`Mode::Eventual`] | some prefix of the stream | one eventually consistent table read |
//! | [`Mode::AtLeast`] | the token's write, or says that it is late | as `Eventual` when it is there, else reads until it is |
//! | [`Mode::Strong`] | every append acknowledged before the query began | a table read and a read at the leader |
//! | [`Mode::AsOf`] | exactly the state at that point | a table read and the stream up to it |
//!
//! `Strong` is linearizable for one aggregate, except while a deposed leader, cut off from its
//! majority, still answers: seconds. Works on every projection, those known only at start too.

use std::{future::Future, marker::PhantomData, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, timeout_at};

use crate::{
    command::{
        after,
        attempt::longest_wait,
        base::{Base, Lineage},
        catch_up::{CatchUp, CatchUpError, CatchUpRules, Fed},
        observe::{Discard, Observation, Observer, Unobserved},
        snapshots::base_of,
    },
    document::Document,
    event::{RawEvent, Revision, Version},
    journal::{Journal, JournalError, Presence, ReadLimit, Slice, Standing, esdb::EventStore},
    projection::{Compiled, Fold, FoldError, OnLostHistory, Projection, Source, State, folding::fold_events},
    replica::{Header, Quarantine, Replica, ReplicaStore, StoreError, dynamodb::DynamoTable},
};

/// What is told of a store that did not answer.
const LATE: &str = "no answer before the query's deadline";
/// The part of the time that is left, one in so many, that loading a replica may take before the
/// stream is folded without it: as commands have it.
const SNAPSHOT_PART: u32 = 5;

pub use crate::event::{Token, TokenError};

/// A point in a stream's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// After this event; past the stream's end: its end.
    Revision(Revision),
    /// After the last event that EventStoreDB wrote at or before this time.
    Time(DateTime<Utc>),
}

/// What to do when a token's write is not in the replica in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenLate {
    /// Fold the stream's tail, as `Strong` does.
    #[default]
    FoldTail,
    /// Answer what there is, with [`Known::Behind`].
    AnswerBehind,
}

/// How fresh an answer has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Whatever the table has. A quarantined replica is answered at its last good version, marked so.
    /// A deleted one is [`QueryError::Deleted`] where the query is typed, and else what is kept of it,
    /// marked so.
    Eventual,
    /// At least this write; deleted replicas as for `Eventual`. Waits for the projector; does not wait
    /// on a quarantined or deleted replica, nor on one from another past, which waiting does not change. A replica at the token's
    /// version must have the token's event there; one beyond it is believed, for the daemon marks
    /// what has diverged. Events that change nothing are not waited for: the stream is looked at once.
    AtLeast {
        /// The write.
        token: Token,
        /// How long all of it may take; with [`WhenLate::FoldTail`] a quarter is left for the tail.
        /// Zero: nothing is waited for, and [`Limits::deadline`] is the bound.
        timeout: Duration,
        /// What to do then.
        then: WhenLate,
    },
    /// The newest. A deleted stream is [`QueryError::Deleted`], an event that does not fold (what a
    /// quarantined replica stands before) [`QueryError::State`]: an older answer would break the promise.
    Strong,
    /// The past. Deleted streams and events that do not fold as for `Strong`; where the beginning
    /// of the history is gone, the answer's `first` says so.
    AsOf(Moment),
}

/// What an answer is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// A prefix of the stream; nothing more is known.
    Eventual,
    /// It holds the token's write.
    AtLeast,
    /// It was to hold the token's write and does not.
    Behind,
    /// The leader had nothing newer when it was asked.
    Confirmed,
    /// The state at the moment asked for.
    AsOf,
}

impl Known {
    /// A word for it, fit for a header.
    pub fn label(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::AtLeast => "at-least",
            Self::Behind => "behind",
            Self::Confirmed => "confirmed",
            Self::AsOf => "as-of",
        }
    }
}

/// A view and what it is the fold of.
#[derive(Clone)]
pub struct Answer<V = State> {
    /// What it is known to be.
    pub known: Known,
    /// The stream that it is of.
    pub stream: Arc<str>,
    /// Version, first revision, marks.
    pub header: Header,
    /// The view.
    pub state: V,
    fold: Arc<dyn Fold>,
}

impl<V> Answer<V> {
    /// The revision of the last event in it.
    pub fn version(&self) -> Version {
        self.header.version
    }

    /// What a later query takes to answer with no less than this one.
    pub fn token(&self) -> Token {
        Token {
            stream: self.stream.clone(),
            version: self.header.version,
            event: self.header.event.as_ref().map(|event| event.id),
        }
    }
}

impl Answer {
    /// The view, when it is a `V`.
    pub fn view<V: 'static>(&self) -> Option<&V> {
        self.state.get()
    }

    /// The view as data, for any projection.
    pub fn document(&self) -> Result<Document, FoldError> {
        Ok(self.fold.encode(&self.state)?.view)
    }
}

impl<V> std::fmt::Debug for Answer<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("known", &self.known)
            .field("stream", &self.stream)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The stream is deleted. What is kept of it, `Queries::erased` shows in the eventual mode.
    #[error("answer for `{stream}`: it is deleted{}", if *.tombstoned { " for good" } else { "" })]
    Deleted {
        /// The stream.
        stream: String,
        /// Whether for good.
        tombstoned: bool,
    },
    /// The token is another stream's.
    #[error("answer for `{stream}`: the token is one of `{token}`")]
    WrongToken {
        /// The stream asked for.
        stream: String,
        /// The token's.
        token: Arc<str>,
    },
    /// The stored state cannot be used.
    #[error("use the replica of `{stream}`: {problem}; the strong mode answers from the stream")]
    Unusable {
        /// The stream.
        stream: String,
        /// Why.
        problem: String,
    },
    /// The stream cannot be folded.
    #[error(transparent)]
    State(#[from] CatchUpError),
    /// The event store failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The replica store failed.
    #[error(transparent)]
    Replica(#[from] StoreError),
}

impl QueryError {
    /// Whether the same query may succeed later without anybody acting.
    pub fn can_retry(&self) -> bool {
        match self {
            Self::Journal(error) => error.is_transient(),
            Self::Replica(error) => error.is_transient(),
            _ => false,
        }
    }

    /// A word for metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Deleted { .. } => "deleted",
            Self::WrongToken { .. } => "wrong_token",
            Self::Unusable { .. } => "unusable",
            Self::State(_) => "state",
            Self::Journal(_) => "journal",
            Self::Replica(_) => "replica",
        }
    }
}

/// Limits of queries.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long the event store may take over all, waits for the projector aside. Default: 10 s.
    pub deadline: Duration,
    /// Events that one query may fold. Default: 100,000.
    pub cap: usize,
    /// One read's size. Default: 1,000 events or 4 MiB.
    pub page: ReadLimit,
    /// Whether the projection's policy for revived streams is `restart`. Default: no.
    pub restarts: bool,
    /// The projection's policy for lost history: what [`Mode::Strong`] and [`Mode::AsOf`] do where
    /// events are gone that no replica covers. Default: `Partial`.
    pub on_lost_history: OnLostHistory,
}

impl Default for Limits {
    fn default() -> Self {
        let command = crate::command::CommandSettings::default();
        Self {
            deadline: command.deadline,
            cap: command.cap,
            page: command.page,
            restarts: false,
            on_lost_history: OnLostHistory::Partial,
        }
    }
}

/// Any projection, its views as its fold has them: what [`Queries::new`] answers on.
#[derive(Clone, Copy, Debug)]
pub enum Erased {}

/// Answers queries on the projection `P`, by its aggregates' ids: [`Queries::of`], or `Store::queries`.
/// On a projection whose type is not known, those of the settings among them, by stream:
/// [`Queries::new`], and [`Queries::erased`] of a typed one.
pub struct Queries<P, J = EventStore, R = DynamoTable> {
    journal: J,
    store: R,
    fold: Arc<dyn Fold>,
    category: Option<Arc<str>>,
    limits: Limits,
    /// What the settings say for the projection: its limits' `restarts` and `on_lost_history`.
    policies: Option<(bool, OnLostHistory)>,
    observer: Arc<dyn Observer>,
    projection: PhantomData<fn() -> P>,
}

impl<P, J: Clone, R: Clone> Clone for Queries<P, J, R> {
    fn clone(&self) -> Self {
        Self {
            journal: self.journal.clone(),
            store: self.store.clone(),
            fold: self.fold.clone(),
            category: self.category.clone(),
            limits: self.limits,
            policies: self.policies,
            observer: self.observer.clone(),
            projection: PhantomData,
        }
    }
}

impl<J: Journal, R: ReplicaStore> Queries<Erased, J, R> {
    /// On this projection, whose replicas `store` has.
    pub fn new(journal: J, store: R, fold: Arc<dyn Fold>) -> Self {
        Self::answering(journal, store, fold)
    }

    /// The view of `stream`; `None` when there is none: no such stream, no replica yet (eventual),
    /// nothing of it left. What is kept of a deleted stream is answered where its header says that
    /// it is deleted.
    pub async fn get(&self, stream: &str, mode: &Mode) -> Result<Option<Answer>, QueryError> {
        self.ask(stream, mode).await
    }

    /// The views of many streams, eventually consistent, in the order asked for. An item that is no
    /// replica, or a state that is not of this code, is no matter to the others.
    pub async fn get_many(&self, streams: &[Arc<str>]) -> Result<Vec<Found<State>>, QueryError> {
        let replicas = self.store.get_many(streams, false).await?;
        let answers = streams.iter().zip(replicas);
        let found = answers.map(|(stream, replica)| self.answer_of(stream, replica?, Known::Eventual));
        Ok(found.collect())
    }
}

impl<P: Projection, J: Journal, R: ReplicaStore> Queries<P, J, R> {
    /// On `P`, whose replicas `store` has.
    pub fn of(journal: J, store: R) -> Self {
        // Queries leave no marks, which is what builds are told apart for.
        Self::answering(journal, store, Arc::new(Compiled::<P>::new("")))
    }

    /// The view of the aggregate `id`. `Ok(None)`: there is none, which in the eventual mode may only
    /// mean that there is no replica yet. [`QueryError::Deleted`]: there was one, in every mode. A
    /// quarantined one is answered at its last good version, its mark in the answer's header; where
    /// there is no good version, that is [`QueryError::Unusable`].
    /// Where the code of a projection, not of an aggregate, has a source that is no category, an id is a
    /// stream's whole name.
    pub async fn get(&self, id: &str, mode: &Mode) -> Result<Option<Answer<P::View>>, QueryError> {
        let stream = self.stream(id);
        let answer = self.ask(&stream, mode).await?;
        answer.map(Self::live).transpose()
    }

    /// The views of many aggregates, eventually consistent, in the order asked for. That one of them
    /// is deleted, has a state that is not of this code, or an item that is no replica at all
    /// ([`StoreError::Corrupt`]) is no matter to the others.
    pub async fn get_many<I: AsRef<str>>(&self, ids: &[I]) -> Result<Vec<Found<P::View>>, QueryError> {
        let streams: Vec<Arc<str>> = ids.iter().map(|id| self.stream(id.as_ref()).into()).collect();
        let replicas = self.store.get_many(&streams, false).await?;
        let found = streams.iter().zip(replicas).map(|(stream, replica)| {
            let answer = self.answer_of(stream, replica?, Known::Eventual)?;
            answer.map(Self::live).transpose()
        });
        Ok(found.collect())
    }

    /// The same by stream, for what is kept of deleted ones.
    pub fn erased(&self) -> Queries<Erased, J, R> {
        let Self {
            journal,
            store,
            fold,
            category,
            limits,
            policies,
            observer,
            ..
        } = self.clone();
        Queries {
            journal,
            store,
            fold,
            category,
            limits,
            policies,
            observer,
            projection: PhantomData,
        }
    }

    /// With another source than the projection's code says, as the settings may have it. Only a
    /// category has a say in the streams' names; and an aggregate's streams are always named by its
    /// code, as its commands name them, wherever the daemon has their events from.
    #[must_use]
    pub fn on(mut self, source: Source) -> Self {
        self.category = match source {
            Source::Category(category) if !P::keeps_commands() => Some(category),
            _ => None,
        };
        self
    }

    fn stream(&self, id: &str) -> String {
        match &self.category {
            Some(category) => format!("{category}-{id}"),
            None => P::stream_of(id),
        }
    }

    fn live(answer: Answer) -> Result<Answer<P::View>, QueryError> {
        let Answer {
            known,
            stream,
            header,
            state,
            fold,
        } = answer;
        if header.deleted {
            return Err(QueryError::Deleted {
                stream: stream.to_string(),
                tombstoned: false,
            });
        }
        // Marked before its first event: what its state would say is of no event, and no view.
        if let (None, Some(mark)) = (header.version, &header.quarantine) {
            return Err(QueryError::Unusable {
                stream: stream.to_string(),
                problem: format!("none of its events could be folded: {}", mark.reason),
            });
        }
        match state.into_view() {
            Some(state) => Ok(Answer {
                known,
                stream,
                header,
                state,
                fold,
            }),
            None => Err(QueryError::Unusable {
                stream: stream.to_string(),
                problem: "its state is another projection's".to_owned(),
            }),
        }
    }
}

/// One of many views; as [`Queries::get`] has it.
pub type Found<V> = Result<Option<Answer<V>>, QueryError>;

impl<P, J: Journal, R: ReplicaStore> Queries<P, J, R> {
    fn answering(journal: J, store: R, fold: Arc<dyn Fold>) -> Self {
        Self {
            journal,
            store,
            fold,
            category: None,
            limits: Limits::default(),
            policies: None,
            observer: Arc::new(Unobserved),
            projection: PhantomData,
        }
    }

    /// With other limits. What comes by the settings (`Store::queries`, `Connections::queries`) keeps
    /// the policies that they say for the projection.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        let (restarts, on_lost_history) = self.policies.unwrap_or((limits.restarts, limits.on_lost_history));
        self.limits = Limits {
            restarts,
            on_lost_history,
            ..limits
        };
        self
    }

    /// By the policies of a projection's settings, whatever limits are set.
    pub(crate) fn under(mut self, restarts: bool, on_lost_history: OnLostHistory) -> Self {
        self.policies = Some((restarts, on_lost_history));
        let limits = self.limits;
        self.with_limits(limits)
    }

    /// Observed by `observer`.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    async fn ask(&self, stream: &str, mode: &Mode) -> Result<Option<Answer>, QueryError> {
        let begun = Instant::now();
        let mut replayed = 0;
        let answer = match mode {
            Mode::Eventual => self.eventual(stream).await,
            // Boxed: what reads the stream is large, and callers await this on stacks of their own.
            Mode::AtLeast { token, timeout, then } => {
                Box::pin(self.at_least(stream, token, *timeout, *then, &mut replayed)).await
            }
            Mode::Strong => Box::pin(self.strong(stream, None, &mut replayed)).await,
            Mode::AsOf(moment) => Box::pin(self.strong(stream, Some(*moment), &mut replayed)).await,
        };
        let outcome = match &answer {
            Ok(Some(Answer {
                known: Known::Behind, ..
            })) => "behind",
            Ok(Some(_)) => "answered",
            Ok(None) => "nothing",
            Err(error) => error.class(),
        };
        let ended = Observation::Ended {
            outcome,
            took: begun.elapsed(),
            attempts: 0,
            replayed,
        };
        self.observer.observe(self.fold.name(), ended);
        answer
    }

    async fn eventual(&self, stream: &str) -> Result<Option<Answer>, QueryError> {
        let replica = self.store.get(stream, false).await?;
        self.answer_of(stream, replica, Known::Eventual)
    }

    /// A stored replica as an answer, marks and all.
    fn answer_of(&self, stream: &str, replica: Option<Replica>, known: Known) -> Result<Option<Answer>, QueryError> {
        let Some(replica) = replica else { return Ok(None) };
        let Some(view) = &replica.view else {
            // Nothing is kept; a deletion is worth telling all the same.
            let state = self.fold.initial();
            let told = replica.header.deleted || replica.header.quarantine.is_some();
            return Ok(told.then(|| self.answer(stream, known, replica.header, state)));
        };
        let state = self.fold.decode(view, replica.fold.as_ref());
        let state = state.map_err(|e| QueryError::Unusable {
            stream: stream.to_owned(),
            problem: e.to_string(),
        })?;
        Ok(Some(self.answer(stream, known, replica.header, state)))
    }

    fn answer(&self, stream: &str, known: Known, header: Header, state: State) -> Answer {
        Answer {
            known,
            stream: stream.into(),
            header,
            state,
            fold: self.fold.clone(),
        }
    }

    async fn at_least(
        &self,
        stream: &str,
        token: &Token,
        timeout: Duration,
        then: WhenLate,
        replayed: &mut usize,
    ) -> Result<Option<Answer>, QueryError> {
        if &*token.stream != stream {
            return Err(QueryError::WrongToken {
                stream: stream.to_owned(),
                token: token.stream.clone(),
            });
        }
        let begun = Instant::now();
        let bound = if timeout.is_zero() {
            self.limits.deadline
        } else {
            timeout
        };
        let until = after(begun, bound);
        let waits_until = match then {
            WhenLate::AnswerBehind => after(begun, timeout),
            WhenLate::FoldTail => after(begun, timeout / 4 * 3),
        };
        let gets_until = if timeout.is_zero() { until } else { waits_until };
        let mut polls = 0;
        let mut looked = !self.fold.may_keep();
        let mut before: Option<Option<Replica>> = None;
        let behind = loop {
            // The first read is the cheap one; once it is late, no read may be stale on top.
            // A table that is unavailable for a moment is as good as one that is late.
            let get = timeout_at(gets_until, self.store.get(stream, polls > 0)).await;
            let found = match get {
                Ok(Err(error)) if !error.is_transient() => return Err(error.into()),
                Ok(found) => found,
                // What was there a moment ago says more than that the time is over.
                Err(_) => break before.map_or_else(|| Err(StoreError::Unavailable(LATE.to_owned())), Ok),
            };
            if let Ok(replica) = &found {
                before = Some(replica.clone());
            }
            let header = found.as_ref().ok().and_then(Option::as_ref).map(|r| &r.header);
            let diverged = header
                .and_then(|h| h.quarantine.as_ref())
                .is_some_and(Quarantine::is_diverged);
            // Another stream's prefix reaches no write of this one.
            let other_past = diverged || header.is_some_and(|h| has_another_event(h, token));
            let reached = !other_past && header.map_or(token.version.is_none(), |h| h.version >= token.version);
            let hopeless = other_past || header.is_some_and(|h| h.quarantine.is_some() || h.deleted);
            let found = match found {
                Ok(replica) if reached => return self.answer_of(stream, replica, Known::AtLeast),
                found => found,
            };
            polls += 1;
            if !hopeless
                && !looked
                && polls > 1
                && let Ok(replica) = &found
            {
                looked = true;
                let unchanged = timeout_at(
                    until,
                    Box::pin(self.unchanged(stream, replica.clone(), token, replayed)),
                );
                if let Ok(Some(answer)) = unchanged.await {
                    return Ok(Some(answer));
                }
            }
            let next = Instant::now() + longest_wait(polls).mul_f64(0.5 + fastrand::f64() / 2.0);
            if hopeless || next >= waits_until {
                break found;
            }
            tokio::time::sleep_until(next).await;
        };
        match then {
            WhenLate::AnswerBehind => self.answer_of(stream, behind?, Known::Behind),
            WhenLate::FoldTail => loop {
                let mut passing = Passing { token, same: None };
                let deadline = until.min(after(Instant::now(), self.limits.deadline));
                let tail = self.fold_tail(stream, None, deadline, Some(&mut passing), replayed);
                let answer = Box::pin(tail).await?;
                let reached = answer.as_ref().map(|a| a.header.version) >= Some(token.version);
                polls += 1;
                let next = Instant::now() + longest_wait(polls).mul_f64(0.5 + fastrand::f64() / 2.0);
                // A new leader may not show yet what the one before it acknowledged.
                if !reached && next < after(begun, timeout) {
                    tokio::time::sleep_until(next).await;
                    continue;
                }
                return Ok(answer.map(|mut answer| {
                    if !reached || passing.same == Some(false) {
                        // The stream itself ends before it, or has another event there: its store was
                        // restored, or history is gone.
                        answer.known = Known::Behind;
                    }
                    answer
                }));
            },
        }
    }

    /// The replica with the token's write in it, when all that it misses of the stream up to there
    /// changes nothing: such a version is stored later than its event was settled.
    async fn unchanged(
        &self,
        stream: &str,
        replica: Option<Replica>,
        token: &Token,
        replayed: &mut usize,
    ) -> Option<Answer> {
        let base = match replica {
            None => Base::initial(&*self.fold, Lineage::Foreign),
            Some(replica) => base_of(&*self.fold, replica).ok()?,
        };
        let (version, target) = (base.header.version, token.version?);
        // The replica's own event too, to see that this is its stream.
        let from = version.unwrap_or(0);
        let count = usize::try_from(target.checked_sub(from)?).ok()?.checked_add(1)?;
        if count > self.limits.page.events {
            return None;
        }
        let limit = ReadLimit {
            events: count,
            ..self.limits.page
        };
        let mut events = self.journal.read(stream, from, limit).await.ok()?.events;
        let last = events.last().filter(|event| event.revision == target)?;
        if events.len() != count || token.event.is_some_and(|id| id != last.id) {
            return None;
        }
        if version.is_some() {
            let own = events.remove(0);
            base.header.event.as_ref().filter(|event| event.id == own.id)?;
        }
        *replayed += events.len();
        let folded = fold_events(&*self.fold, (&base.header, &base.state), &events, 0);
        let kept = !folded.changed && folded.stopped.is_none();
        kept.then(|| self.answer(stream, Known::AtLeast, folded.header, folded.state))
    }

    async fn strong(
        &self,
        stream: &str,
        until: Option<Moment>,
        replayed: &mut usize,
    ) -> Result<Option<Answer>, QueryError> {
        let deadline = after(Instant::now(), self.limits.deadline);
        // On the heap: it holds both stores' futures, which are large.
        Box::pin(self.fold_tail(stream, until, deadline, None, replayed)).await
    }

    async fn fold_tail(
        &self,
        stream: &str,
        until: Option<Moment>,
        deadline: Instant,
        passing: Option<&mut Passing<'_>>,
        replayed: &mut usize,
    ) -> Result<Option<Answer>, QueryError> {
        let base = self.snapshot(stream, until, false, deadline).await?;
        let base = self
            .bring_up_to_date(stream, base, until, deadline, passing, replayed)
            .await?;
        let known = if until.is_some() { Known::AsOf } else { Known::Confirmed };
        let there = base.header.version.is_some();
        Ok(there.then(|| {
            // What the replica's marks say of it does not hold for this answer.
            let header = Header {
                quarantine: None,
                deleted: false,
                ..base.header
            };
            self.answer(stream, known, header, base.state)
        }))
    }

    /// The answer's base where nothing more is to be read. A replica that lies before a hole is the
    /// fold of nothing that can be had now: without it there would be nothing, so there is nothing.
    fn at_end(&self, stream: &str, reading: CatchUp, until: Option<Moment>) -> Result<Base, QueryError> {
        let CatchUp { base, hole, .. } = reading;
        let concerns = |first: Revision| match until {
            None => true,
            Some(Moment::Revision(revision)) => revision >= first,
            // When the events in the hole were written nobody can tell.
            Some(Moment::Time(_)) => false,
        };
        match hole.filter(|hole| concerns(hole.first())) {
            None => Ok(base),
            Some(hole) if !self.limits.on_lost_history.goes_on() => Err(CatchUpError::LostHistory {
                stream: stream.to_owned(),
                first: hole.first(),
                last: hole.last(),
            }
            .into()),
            Some(_) => Ok(Base::initial(&*self.fold, Lineage::Foreign)),
        }
    }

    /// A base to fold on, if the table has one that does not reach beyond `until`.
    async fn snapshot(
        &self,
        stream: &str,
        until: Option<Moment>,
        consistent: bool,
        deadline: Instant,
    ) -> Result<Base, QueryError> {
        let none = || Base::initial(&*self.fold, Lineage::Foreign);
        let discard = |why, problem: String| {
            tracing::warn!(stream, error = problem, "failed to use a snapshot");
            self.observer.observe(self.fold.name(), Observation::Discarded(why));
            Ok(none())
        };
        // What the table does not have, the stream has: most of the time is left for it.
        let bound = deadline.saturating_duration_since(Instant::now()) / SNAPSHOT_PART;
        let get = tokio::time::timeout(bound, self.store.get(stream, consistent)).await;
        let base = match get.unwrap_or_else(|_| Err(StoreError::Unavailable(LATE.to_owned()))) {
            Ok(None) => return Ok(none()),
            Ok(Some(replica)) => match base_of(&*self.fold, replica) {
                Ok(base) => base,
                Err(problem) => return discard(Discard::Undecodable, problem),
            },
            Err(error @ StoreError::Corrupt { .. }) => return discard(Discard::Undecodable, error.to_string()),
            Err(error) if error.is_transient() => return discard(Discard::Unavailable, error.to_string()),
            Err(error) => return Err(error.into()),
        };
        let reaches_too_far = match until {
            None => false,
            Some(Moment::Revision(revision)) => base.header.version > Some(revision),
            // Stored to the millisecond, rounded down.
            Some(Moment::Time(time)) => base
                .header
                .event
                .as_ref()
                .is_some_and(|e| e.at + TimeDelta::milliseconds(1) > time),
        };
        Ok(if reaches_too_far { none() } else { base })
    }

    async fn bring_up_to_date(
        &self,
        stream: &str,
        base: Base,
        until: Option<Moment>,
        deadline: Instant,
        mut passing: Option<&mut Passing<'_>>,
        replayed: &mut usize,
    ) -> Result<Base, QueryError> {
        let rules = CatchUpRules {
            keep_commands: 0,
            cap: self.limits.cap,
            restarts: self.limits.restarts,
            on_lost_history: self.limits.on_lost_history,
        };
        let from_scratch = || CatchUp::new(Base::initial(&*self.fold, Lineage::Foreign), None, rules);
        let discard = |why| self.observer.observe(self.fold.name(), Observation::Discarded(why));
        let mut reading = CatchUp::new(base, None, rules);
        let mut looks = 0;
        let mut refreshed = false;
        loop {
            let read = || self.journal.read(stream, reading.from(), self.limits.page);
            let slice = cut(patiently(deadline, read).await?, until);
            if let Some(passing) = &mut passing {
                passing.heed(&slice.events);
            }
            let before = reading.folded;
            let fed = reading.feed(&*self.fold, slice)?;
            *replayed += reading.folded - before;
            self.observer
                .observe(self.fold.name(), Observation::Replayed(reading.folded - before));
            match fed {
                // A second read is dearer than the table's newest word.
                Fed::More if !refreshed => {
                    refreshed = true;
                    if let Ok(base) = self.snapshot(stream, until, true, deadline).await
                        && base.header.version > reading.base.header.version
                    {
                        reading = CatchUp::new(base, None, rules);
                    }
                }
                Fed::More => {}
                Fed::UpToDate => return self.at_end(stream, reading, until),
                Fed::Shorter => {
                    discard(Discard::WentBackwards);
                    reading = from_scratch();
                }
                Fed::Diverged => {
                    discard(Discard::Diverged);
                    reading = from_scratch();
                }
                Fed::Nothing(Presence::Tombstoned) => {
                    return Err(QueryError::Deleted {
                        stream: stream.to_owned(),
                        tombstoned: true,
                    });
                }
                Fed::Nothing(_) => {
                    let version = reading.base.header.version;
                    match patiently(deadline, || self.journal.look(stream)).await? {
                        Standing::Tombstoned => {
                            return Err(QueryError::Deleted {
                                stream: stream.to_owned(),
                                tombstoned: true,
                            });
                        }
                        Standing::SoftDeleted => {
                            return Err(QueryError::Deleted {
                                stream: stream.to_owned(),
                                tombstoned: false,
                            });
                        }
                        Standing::Missing => return Ok(from_scratch().base),
                        Standing::Live(Some(newest)) if Some(newest.revision) < version => {
                            discard(Discard::WentBackwards);
                            reading = from_scratch();
                        }
                        // Nothing that old: everything readable is after the moment asked for.
                        Standing::Live(Some(_)) if until.is_some() => return Ok(reading.base),
                        // Revived or written to meanwhile.
                        Standing::Live(_) => {
                            looks += 1;
                            tokio::time::sleep_until(deadline.min(Instant::now() + longest_wait(looks))).await;
                            if Instant::now() >= deadline {
                                return Err(JournalError::Unavailable(format!("`{stream}` does not hold still")).into());
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Whether the replica is at the token's version, and has another event there than the token's.
fn has_another_event(header: &Header, token: &Token) -> bool {
    let (Some(wanted), Some(own)) = (token.event, &header.event) else {
        return false;
    };
    header.version == token.version && own.id != wanted
}

/// A token whose event a read may pass.
struct Passing<'a> {
    token: &'a Token,
    /// Whether the stream has the token's event at its version, once it was seen.
    same: Option<bool>,
}

impl Passing<'_> {
    fn heed(&mut self, events: &[RawEvent]) {
        let there = events.iter().find(|event| Some(event.revision) == self.token.version);
        if let (Some(there), Some(wanted)) = (there, self.token.event) {
            self.same = Some(there.id == wanted);
        }
    }
}

/// What of a read is not after `until`: no stream's end any more, when something is.
fn cut(mut slice: Slice, until: Option<Moment>) -> Slice {
    let Some(until) = until else { return slice };
    let beyond = |event: &RawEvent| match until {
        Moment::Revision(revision) => event.revision > revision,
        Moment::Time(time) => event.created > time,
    };
    if let Some(at) = slice.events.iter().position(beyond) {
        slice.events.truncate(at);
        slice.end = true;
        slice.last = None;
    }
    slice
}

/// The same request again, with back-off, while the event store is unavailable and there is time.
async fn patiently<T, F>(deadline: Instant, request: impl Fn() -> F) -> Result<T, JournalError>
where
    F: Future<Output = Result<T, JournalError>>,
{
    let mut waits = 0;
    let mut last = None;
    loop {
        // What went wrong before says more than that there was no answer.
        let late = |last: Option<JournalError>| {
            let late = || JournalError::Unavailable(LATE.to_owned());
            Err(last.unwrap_or_else(late))
        };
        match timeout_at(deadline, request())
            .await
            .unwrap_or_else(|_| late(last.take()))
        {
            Err(error) if error.is_transient() => {
                last = Some(error.clone());
                waits += 1;
                let next = Instant::now() + longest_wait(waits).mul_f64(fastrand::f64());
                if next >= deadline {
                    return Err(error);
                }
                tokio::time::sleep_until(next).await;
            }
            outcome => return outcome,
        }
    }
}
