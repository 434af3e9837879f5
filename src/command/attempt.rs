//! One command on its way: look up, load, decide, append, and after a lost race the tail, decide again.
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
mod replay;
mod revival;
mod types;
mod waiting;

pub use answer::Committed;
pub use types::{Action, Append, AttemptRules, Identity, OnDeleted, Pause, Reply, Searched, event_id, longest_wait};

use appending::{Doubt, Pending};

enum Phase<A: Aggregate, E, R> {
    Load,
    CatchUp(Box<CatchUp>),
    /// There is more than one read to catch up with: a fresher snapshot may spare it.
    Refresh(Box<CatchUp>),
    /// Replaying from the start up to a command that landed before the base's version.
    Replay(Box<CatchUp>, Landed),
    /// Reading a landed command's events.
    Recall(Landed, Vec<RawEvent>),
    Look,
    /// Caught up, with an event of before gone: did the stream begin again behind it?
    Begins(Box<CatchUp>, Revision),
    /// Looking for the command further back than the base remembers.
    Search,
    Append,
    Wait(Pause, Box<Phase<A, E, R>>),
    Done(Box<Result<Committed<A, R>, CommandError<E>>>),
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
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says one thing of its own, and they come in every combination"
)]
pub struct Attempt<'a, A: Aggregate, C: Command<A, D> + ?Sized, D: Decision<A::Event> = Vec<<A as Aggregate>::Event>> {
    fold: &'a dyn Fold,
    command: &'a C,
    stream: Arc<str>,
    identity: Identity,
    rules: AttemptRules,
    phase: Phase<A, C::Error, D::Reply>,
    /// What the pending events' decision replies, and the first of them.
    reply: Option<(Uuid, D::Reply)>,
    base: Base,
    /// Which events the base held when it was loaded.
    loaded: (Version, Revision),
    /// The leader had nothing beyond `base` after this attempt began.
    confirmed: bool,
    /// The command was looked for back to the retry horizon, and not found up to the base.
    searched: bool,
    /// The snapshots were asked for their freshest: once is enough.
    refreshed: bool,
    /// The stream is deleted, and the append is to revive it.
    reviving: bool,
    /// A deleted stream does not end where the base does: what lies between cannot be known.
    unknown_end: bool,
    /// What stands behind the base and was proved to be never readable.
    hole: Option<Hole>,
    /// Where the last conflict of the pending append said that the stream stands.
    hint: Option<Version>,
    /// Times that the pending append was sent since nothing explains its conflict.
    rounds: u32,
    /// An event that was known to be there cannot be read any more, though the stream goes on.
    gone: Option<Revision>,
    /// The stream was deleted and lives again: by this attempt's append, or another's.
    revived: bool,
    /// The life before, of a deleted stream that starts over.
    former: Option<Base>,
    pending: Option<Pending>,
    doubt: Doubt,
    part: Option<Base>,
    parent: Option<(Revision, Uuid)>,
    attempts: u32,
    waits: u32,
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
            phase: Phase::Load,
            reply: None,
            base: Base::initial(fold, Lineage::Foreign),
            loaded: (None, 0),
            confirmed: false,
            searched: false,
            refreshed: false,
            reviving: false,
            unknown_end: false,
            hole: None,
            hint: None,
            rounds: 0,
            gone: None,
            revived: false,
            former: None,
            pending: None,
            doubt: Doubt::None,
            part: None,
            parent: None,
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
            Phase::Load => Action::Load,
            Phase::CatchUp(reading) | Phase::Replay(reading, _) => Action::Read(reading.from()),
            Phase::Recall(landed, events) => Action::Read(landed.first + events.len() as u64),
            Phase::Refresh(_) => Action::Refresh,
            Phase::Look => Action::Look,
            Phase::Begins(..) => Action::Begins,
            Phase::Search => Action::Search(self.base.header.version.unwrap_or_default()),
            Phase::Append => match &self.pending {
                Some(pending) => Action::Append(Append {
                    expected: pending.expected,
                    events: pending.events.clone(),
                    verify: self.to_verify(),
                    look: self.in_doubt().then(|| self.reading().from()),
                }),
                // Events to append are set with the phase.
                None => Action::Load,
            },
            Phase::Wait(pause, _) => Action::Wait(*pause),
            Phase::Done(_) => Action::Done,
        }
    }

    /// Takes what came of the selected action.
    pub fn apply(&mut self, reply: Reply<C::Error>) {
        if matches!(
            reply,
            Reply::Read(Ok(_)) | Reply::Stands(Ok(_)) | Reply::Appended(Ok(_), ..)
        ) {
            self.trouble = None;
        }
        let phase = std::mem::replace(&mut self.phase, Phase::Load);
        match (phase, reply) {
            (Phase::Load, Reply::Loaded(base, confirmed)) => self.loaded(base, confirmed),
            (_, Reply::NotLoaded(error)) => self.done(Err(error)),
            (Phase::Wait(_, next), Reply::Waited) => self.phase = *next,
            (Phase::CatchUp(reading), Reply::Read(Ok(slice))) => self.read(reading, slice),
            (Phase::Replay(reading, landed), Reply::Read(Ok(slice))) => self.replayed(reading, landed, slice),
            (Phase::Recall(landed, events), Reply::Read(Ok(slice))) => self.recalled(landed, events, slice),
            (Phase::Refresh(reading), Reply::Refreshed(base)) => self.refreshed(reading, base),
            (Phase::Look, Reply::Stands(Ok(standing))) => self.stands(&standing),
            (Phase::Begins(reading, gone), Reply::Begins(begins)) => {
                // What cannot be told is not: it decides nothing.
                self.revived |= begins.is_ok_and(|begins| begins > Some(gone));
                self.caught_up(*reading);
            }
            (Phase::Search, Reply::Searched(Ok(searched))) => self.searched(searched),
            (Phase::Append, Reply::Appended(outcome, beside, at)) => self.appended(outcome, beside, at),
            // The answer was not waited for any longer.
            (Phase::Append, Reply::Read(Ok(slice))) => {
                self.doubt = self.doubt.max(Doubt::Lost);
                self.read(Box::new(self.reading()), slice);
            }
            (phase, Reply::Read(Err(error)) | Reply::Stands(Err(error)) | Reply::Searched(Err(error))) => {
                self.failed(phase, error);
            }
            // A reply to something that was not asked changes nothing.
            (phase, _) => self.phase = phase,
        }
    }

    /// The deadline is over.
    pub fn expire(&mut self) {
        // What a command came to that was found does not hang on what else was asked.
        if matches!(&self.phase, Phase::Begins(reading, _) if reading.found.is_some())
            && let Phase::Begins(reading, _) = std::mem::replace(&mut self.phase, Phase::Load)
        {
            self.caught_up(*reading);
        }
        match &self.phase {
            Phase::Done(_) => return,
            Phase::CatchUp(reading) => self.part = reading.part().cloned(),
            _ => {}
        }
        let error = if self.in_doubt() {
            CommandError::OutcomeUnknown {
                command_id: self.identity.command,
            }
        } else if let Some(trouble) = self.trouble.take() {
            CommandError::Journal(trouble)
        } else if self.attempts > 0 || self.hint.is_some() {
            self.contended()
        } else {
            CommandError::Journal(JournalError::Unavailable(
                "no answer before the command's deadline".to_owned(),
            ))
        };
        self.done(Err(error));
    }

    /// The answer, and what the next command may start from. Before [`Action::Done`]: as if the
    /// deadline were over.
    pub fn finish(mut self) -> Finished<A, C::Error, D::Reply> {
        self.expire();
        let answer = match self.phase {
            Phase::Done(answer) => *answer,
            // `expire` ends every other phase.
            _ => Err(CommandError::OutcomeUnknown {
                command_id: self.identity.command,
            }),
        };
        // Nothing came of the new life: what the former one knew of commands still holds.
        if let (true, Some(former)) = (self.base.header.deleted, self.former) {
            self.base = former;
            self.base.header.deleted = true;
        }
        let told = matches!(&answer, Ok(done) if done.revived);
        self.base.untold = self.revived && !told;
        let header = &self.base.header;
        let (version, first) = self.loaded;
        Finished {
            answer,
            begun_anew: version.is_some() && (header.version < version || header.first != first),
            base: self.confirmed.then_some(self.base),
            part: self.part,
            parent: self.parent,
            attempts: self.attempts,
        }
    }

    /// What happened since it was last asked, for metrics.
    pub fn observed(&mut self) -> Vec<Observation> {
        std::mem::take(&mut self.observed)
    }

    fn done(&mut self, answer: Result<Committed<A, D::Reply>, CommandError<C::Error>>) {
        self.settled();
        self.phase = Phase::Done(Box::new(answer));
    }

    fn loaded(&mut self, base: Base, confirmed: bool) {
        let deleted = base.header.deleted;
        self.loaded = (base.header.version, base.header.first);
        self.base = base;
        self.revived |= std::mem::take(&mut self.base.untold);
        self.confirmed = confirmed;
        if deleted || (confirmed && self.base.header.version.is_none()) {
            // Nothing there: never written, or deleted? The policy needs to know which.
            self.confirmed = false;
            self.phase = Phase::Look;
        } else {
            self.look_up();
        }
    }
}
