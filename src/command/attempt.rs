//! One command on its way: load, look up, decide, append, and after a lost race catch up, decide again.
//!
//! A pure machine (I6 pure): [`Attempt::select`] says what to do next, [`Attempt::apply`] takes
//! what came of it. Keeps the command path's first rule: a state is answered on only after an append
//! or a read at the leader confirmed it in this attempt.
//!
//! And its second: a conflict is answered against what is being written, before anybody can read
//! it. What it names is a hint to wait for. An append expects only what was folded, or what a read
//! proved to be there and never readable ([`Hole`]). While the hinted revision is not indexed, the
//! same append is sent again in rounds, tail reads between: a conflict says that the rival is there
//! or under way still, a success that it died. A round is no lost race.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    base::{Base, Lineage},
    catch_up::CatchUp,
    error::CommandError,
    observe::Observation,
};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    event::{RawEvent, Revision, Version},
    journal::{Hole, JournalError},
    projection::Fold,
    replica::Landed,
};

mod answer;
mod appending;
mod catching_up;
mod deciding;
mod loading;
mod repeated;
mod revival;
mod sent;
mod types;
mod waiting;

pub use answer::Committed;
pub use types::{Action, Append, AttemptRules, Identity, OnDeleted, Pause, Reply, Searched, event_id, longest_wait};

use loading::{Loading, fresher, share};
use revival::Lives;
use sent::{Doubt, Open, SentAppend};

/// Where an attempt is, and all that it takes there. [`Attempt::select`] says what each phase asks
/// for, [`Attempt::apply`] which answer leads where. Past loading, each knows what is still open of
/// an append of before.
enum Phase<A: Aggregate, E, R> {
    /// No base yet.
    Load(Loading),
    /// Reading the stream on from the base.
    CatchUp(Box<CatchUp>, Open<R>),
    /// There is more than one read to catch up with: a fresher snapshot may spare it.
    Refresh(Box<CatchUp>, Open<R>),
    /// Caught up, with an event of before gone: did the stream begin again behind it?
    Begins(Box<CatchUp>, Revision, Open<R>),
    /// Nothing readable: is the stream deleted, or was it never written?
    Look(Open<R>),
    /// Looking for the command further back than the base remembers.
    Search(Open<R>),
    /// The command landed before the base's version: folding from the start up to it.
    Replay(Box<CatchUp>, Landed, Open<R>),
    /// The command landed: reading its events where they stand.
    Reread(Landed, Vec<RawEvent>, Open<R>),
    /// Decided.
    Append(Box<SentAppend<R>>),
    /// Before the next phase.
    Wait(Pause, Box<Phase<A, E, R>>),
    Done(Box<Done<A, E, R>>),
}

/// The phase that follows, in terms of an [`Attempt`]'s own parameters.
type NextPhase<A, C, D> = Phase<A, <C as Command<A, D>>::Error, <D as Decision<<A as Aggregate>::Event>>::Reply>;

/// How an attempt ended.
struct Done<A: Aggregate, E, R> {
    answer: Result<Committed<A, R>, CommandError<E>>,
    part: Option<Base>,
    parent: Option<(Revision, Uuid)>,
}

impl<A: Aggregate, E, R> Done<A, E, R> {
    fn with(answer: Result<Committed<A, R>, CommandError<E>>) -> Box<Self> {
        Box::new(Self {
            answer,
            part: None,
            parent: None,
        })
    }
}

impl<A: Aggregate, E, R> Phase<A, E, R> {
    /// What is open of an append of before, whatever the phase is about.
    fn into_open(self) -> Open<R> {
        match self {
            Self::Load(_) | Self::Done(_) => Open::NOTHING,
            Self::CatchUp(_, open)
            | Self::Refresh(_, open)
            | Self::Begins(_, _, open)
            | Self::Look(open)
            | Self::Search(open)
            | Self::Replay(_, _, open)
            | Self::Reread(_, _, open) => open,
            Self::Append(sent) => sent.into(),
            Self::Wait(_, next) => next.into_open(),
        }
    }
}

/// What is left of an attempt.
pub struct Finished<A: Aggregate, E, R> {
    /// The answer.
    pub answer: Result<Committed<A, R>, CommandError<E>>,
    /// The base that whoever comes next may start from, where the leader confirmed it.
    pub base: Option<Base>,
    /// How far the catching up came that the deadline ended: no state to decide on.
    pub part: Option<Base>,
    /// The event that this attempt's append followed: its revision and id, as the base had it.
    pub parent: Option<(Revision, Uuid)>,
    /// The state that was loaded is no part of the base: whoever has it cached has it wrong.
    pub begun_anew: bool,
    /// Appends tried.
    pub attempts: u32,
}

/// The machine.
pub struct Attempt<'a, A: Aggregate, C: Command<A, D> + ?Sized, D: Decision<A::Event> = Vec<<A as Aggregate>::Event>> {
    fold: &'a dyn Fold,
    command: &'a C,
    stream: Arc<str>,
    identity: Identity,
    rules: AttemptRules,
    phase: NextPhase<A, C, D>,
    base: Base,
    /// Which events the base held when it was loaded.
    loaded: (Version, Revision),
    /// The leader had nothing beyond `base` after this attempt began.
    confirmed: bool,
    /// What stands behind the base and was proved to be never readable.
    hole: Option<Hole>,
    /// The command was looked for back to the retry horizon, and not found up to the base.
    searched: bool,
    /// The snapshots were asked for their freshest: once is enough.
    refreshed: bool,
    lives: Lives,
    attempts: u32,
    waits: u32,
    /// What keeps the event store from answering.
    trouble: Option<JournalError>,
    observed: Vec<Observation>,
    appending: Option<Appending<'a>>,
}

/// Says which trace the events belong to that are about to be appended: members of their metadata.
/// Asked once, before the first of them is encoded: their ids cover it, and must stay the same.
pub type Appending<'a> = Box<dyn FnOnce() -> Vec<(&'static str, String)> + Send + 'a>;

impl<'a, A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'a, A, C, D> {
    /// Begins. `fold` is the aggregate's own.
    pub fn new(
        fold: &'a dyn Fold,
        command: &'a C,
        stream: impl Into<Arc<str>>,
        identity: Identity,
        rules: AttemptRules,
    ) -> Self {
        Self {
            fold,
            command,
            stream: stream.into(),
            identity,
            rules,
            phase: Phase::Load(Loading::Cache),
            base: Base::initial(fold, Lineage::Foreign),
            loaded: (None, 0),
            confirmed: false,
            hole: None,
            searched: false,
            refreshed: false,
            lives: Lives::default(),
            attempts: 0,
            waits: 0,
            trouble: None,
            observed: Vec::new(),
            appending: None,
        }
    }

    /// Asks `appending` before it appends. What the caller's metadata say stands.
    #[must_use]
    pub fn traced(mut self, appending: Appending<'a>) -> Self {
        self.appending = Some(appending);
        self
    }

    /// What to do next. Asking twice changes nothing.
    pub fn select(&self) -> Action {
        match &self.phase {
            Phase::Load(loading) => loading.select(),
            Phase::CatchUp(reading, _) | Phase::Replay(reading, ..) => Action::Read(reading.from()),
            Phase::Refresh(..) => Action::Refresh,
            Phase::Begins(..) => Action::Begins,
            Phase::Look(_) => Action::Look,
            Phase::Search(_) => Action::Search(self.base.header.version.unwrap_or_default()),
            Phase::Reread(landed, events, _) => Action::Read(landed.first + events.len() as u64),
            Phase::Append(sent) => Action::Append(self.append(sent)),
            Phase::Wait(pause, _) => Action::Wait(*pause),
            Phase::Done(_) => Action::Done,
        }
    }

    /// Takes what came of the selected action.
    pub fn apply(&mut self, reply: Reply) {
        if matches!(
            reply,
            Reply::Read(Ok(_)) | Reply::Stands(Ok(_)) | Reply::Appended(Ok(_), ..)
        ) {
            self.trouble = None;
        }
        self.phase = match (self.take(), reply) {
            (Phase::Load(Loading::Cache), Reply::Cached(base)) => share(base, false),
            (Phase::Load(Loading::Cache), Reply::NotCached(begun)) => self.not_cached(begun),
            (Phase::Load(Loading::Snapshot), Reply::Snapshot(snapshot)) => self.snapshot(snapshot),
            (Phase::Load(Loading::Fold(folding)), Reply::Read(read)) => self.fold_on(folding, read),
            (Phase::Load(Loading::Refresh(folding)), Reply::Refreshed(base)) => fresher(folding, base),
            (Phase::CatchUp(reading, open), Reply::Read(Ok(slice))) => self.read(reading, open, slice),
            (Phase::Refresh(reading, open), Reply::Refreshed(base)) => self.refreshed(reading, open, base),
            (Phase::Begins(reading, gone, open), Reply::Begins(begins)) => {
                // What cannot be told is not: it decides nothing.
                self.lives.revived |= begins.is_ok_and(|begins| begins > Some(gone));
                self.caught_up(*reading, open)
            }
            (Phase::Look(open), Reply::Stands(Ok(standing))) => self.stands(open, &standing),
            (Phase::Search(open), Reply::Searched(Ok(searched))) => self.searched(open, searched),
            (Phase::Replay(reading, landed, open), Reply::Read(Ok(slice))) => {
                self.replayed(reading, landed, open, slice)
            }
            (Phase::Reread(landed, events, open), Reply::Read(Ok(slice))) => self.reread(landed, events, open, slice),
            (Phase::Append(sent), Reply::Appended(outcome, beside, at)) => self.appended(sent, outcome, beside, at),
            // The answer was not waited for any longer.
            (Phase::Append(sent), Reply::Read(Ok(slice))) => {
                let reading = Box::new(self.reading(self.base.clone()));
                self.read(reading, sent.doubted(Doubt::Lost).into(), slice)
            }
            (Phase::Wait(_, next), Reply::Waited) => *next,
            (phase, Reply::Read(Err(error)) | Reply::Stands(Err(error)) | Reply::Searched(Err(error))) => {
                self.failed(phase, error)
            }
            // A reply to something that was not asked changes nothing.
            (phase, _) => phase,
        };
    }

    /// The deadline is over.
    pub fn expire(&mut self) {
        let phase = self.take();
        self.phase = Phase::Done(self.expired(phase));
    }

    fn expired(&mut self, phase: NextPhase<A, C, D>) -> Box<Done<A, C::Error, D::Reply>> {
        let part = match phase {
            Phase::Done(done) => return done,
            // What a command came to that was found does not hang on what else was asked.
            Phase::Begins(reading, _, open) if reading.found.is_some() => {
                let next = self.caught_up(*reading, open);
                return self.expired(next);
            }
            Phase::CatchUp(ref reading, _) => reading.part().cloned(),
            _ => None,
        };
        let late = phase.folding().map(|folding| folding.late(&self.stream));
        let open = phase.into_open();
        let error = if open.in_doubt() {
            self.unknown()
        } else if let Some(trouble) = self.trouble.take() {
            CommandError::Journal(trouble)
        } else if self.attempts > 0 || open.hint().is_some() {
            self.contended(&open)
        } else {
            let unavailable = || JournalError::Unavailable("no answer before the command's deadline".to_owned());
            late.unwrap_or_else(|| CommandError::Journal(unavailable()))
        };
        let mut done = self.ended(open, Err(error));
        done.part = part;
        done
    }

    /// The answer, and what the next command may start from. Before [`Action::Done`]: as if the
    /// deadline were over.
    pub fn finish(mut self) -> Finished<A, C::Error, D::Reply> {
        let phase = self.take();
        let Done { answer, part, parent } = *self.expired(phase);
        let told = matches!(&answer, Ok(done) if done.revived);
        let mut base = self.base;
        // Nothing came of the new life: what the former one knew of commands still holds.
        if let (true, Some(former)) = (base.header.deleted, self.lives.former) {
            base = former;
            base.header.deleted = true;
        }
        base.untold = self.lives.revived && !told;
        let header = &base.header;
        let (version, first) = self.loaded;
        Finished {
            answer,
            begun_anew: version.is_some() && (header.version < version || header.first != first),
            base: self.confirmed.then_some(base),
            part,
            parent,
            attempts: self.attempts,
        }
    }

    /// What happened since it was last asked, for metrics.
    pub fn observed(&mut self) -> Vec<Observation> {
        std::mem::take(&mut self.observed)
    }

    /// The phase, to be followed by another at once.
    fn take(&mut self) -> NextPhase<A, C, D> {
        std::mem::replace(&mut self.phase, Phase::Load(Loading::Cache))
    }

    /// Ends with `answer`: nothing that is open is sent again.
    fn ended(
        &mut self,
        open: Open<D::Reply>,
        answer: Result<Committed<A, D::Reply>, CommandError<C::Error>>,
    ) -> Box<Done<A, C::Error, D::Reply>> {
        let Open(sent) = open;
        self.settled(sent.as_deref());
        Done::with(answer)
    }

    fn refused(&mut self, open: Open<D::Reply>, error: CommandError<C::Error>) -> NextPhase<A, C, D> {
        Phase::Done(self.ended(open, Err(error)))
    }
}
