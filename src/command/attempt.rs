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

use chrono::{DateTime, Utc};
use tracing::debug_span;
use uuid::Uuid;

use super::{
    base::{Base, CatchUp, CatchUpError, Fed, Found, Lineage},
    error::CommandError,
    observe::{Discard, Observation},
};
use crate::{
    aggregate::{Aggregate, Command, Decision, Existence},
    event::{RawEvent, Revision, Version, codec, metadata::SPANS, next_after},
    journal::{Appended, Expected, Hole, JournalError, NewEvent, Presence, Slice, Standing},
    projection::{
        Fold, OnLostHistory, State,
        run::{command_of, fold_run, origin_of},
    },
    replica::{Header, Landed, Sort},
};

mod answer;

pub use answer::Committed;

mod parts;

pub use parts::{Action, Append, AttemptRules, Identity, OnDeleted, Pause, Reply, Searched, event_id, longest_wait};

use parts::metadata;

/// Events on their way to the stream.
#[derive(Clone, Debug)]
struct Pending {
    expected: Expected,
    /// The version that they were decided on.
    base: Version,
    events: Vec<NewEvent>,
}

/// Events of one process in a row, no read of the stream between, after which one is read beside an
/// append: a revival is not overlooked for longer, and an append in a hundred costs a read more.
const UNREAD: Revision = 100;

/// Events that are folded from a stream's first on to answer a repetition with the state as it was
/// then: a read of so many costs a round trip, not much more.
const WORTH_FOLDING: Revision = 1_000;

/// What is not known of an append that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    /// Everything is known.
    None,
    /// Its reply was lost.
    Lost,
    /// It was answered with ids that were written before, and not with where they are.
    WrittenBefore,
}

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

    /// The pending append is not sent again.
    fn settled(&mut self) {
        if std::mem::take(&mut self.rounds) > 0 && self.hint.is_some() {
            self.observed.push(Observation::HintSettled);
        }
    }

    fn reading(&self) -> CatchUp {
        CatchUp::new(self.base.clone(), Some(self.identity.command), self.rules.catch_up)
    }

    fn catch_up(&self) -> Phase<A, C::Error, D::Reply> {
        Phase::CatchUp(Box::new(self.reading()))
    }

    /// The base's event, when nobody in this process has seen that it is the stream's; and where a
    /// stream's new life starts over, or many were appended since, the last event that was seen of
    /// it, which a deletion since would have taken. Of a deleted stream nothing can be seen.
    fn to_verify(&self) -> Option<Revision> {
        let version = self.base.header.version;
        let unread = self
            .base
            .seen
            .zip(version)
            .is_some_and(|(seen, version)| version - seen >= UNREAD);
        let unseen = !self.base.verified || self.rules.catch_up.restarts || unread;
        let version = version.filter(|_| unseen && !self.reviving && self.hole.is_none());
        version.map(|version| self.base.seen.unwrap_or(version))
    }

    fn wait_then(&mut self, next: Phase<A, C::Error, D::Reply>) {
        self.waits += 1;
        self.phase = Phase::Wait(Pause::Race(self.waits), Box::new(next));
    }

    fn contended(&self) -> CommandError<C::Error> {
        CommandError::Contended {
            stream: self.stream.to_string(),
            attempts: self.attempts,
            awaited: self.hint.flatten().filter(|_| self.awaiting()),
        }
    }

    /// The last conflict speaks of a revision that no read has shown or proved to be gone.
    fn awaiting(&self) -> bool {
        self.hint.is_some_and(|at| at > self.place())
    }

    /// Where the stream ends as far as it was read.
    fn place(&self) -> Version {
        self.hole.map(Hole::last).or(self.base.header.version)
    }

    fn deleted(&mut self, tombstoned: bool) {
        self.confirmed = false;
        if self.in_doubt() {
            return self.give_up();
        }
        // What is known of the life before is kept, with what ended it: the next command looks first.
        self.base.header.deleted = !tombstoned;
        self.confirmed = !tombstoned;
        self.done(Err(CommandError::Deleted {
            stream: self.stream.to_string(),
            tombstoned,
        }));
    }

    fn failed(&mut self, phase: Phase<A, C::Error, D::Reply>, error: JournalError) {
        match error {
            JournalError::Tombstoned(_) => self.deleted(true),
            error if error.is_transient() => {
                self.trouble = Some(error);
                self.wait_then(phase);
            }
            _ if self.in_doubt() => {
                self.done(Err(CommandError::OutcomeUnknown {
                    command_id: self.identity.command,
                }));
            }
            error => self.done(Err(CommandError::Journal(error))),
        }
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

    /// Has the command landed already, as far as the base knows? Else it is decided.
    fn look_up(&mut self) {
        let command = self.identity.command;
        let known = self.base.landed(command).cloned();
        match known {
            Some(landed) if self.reused(&landed.sort) => {}
            // Its state is behind the base: fold the stream again, up to it, where one read does that.
            // Further on its events are read where they stand, and the state in hand goes with them.
            Some(landed) if self.base.header.version > Some(landed.last) && landed.last < WORTH_FOLDING => {
                let start = Base::initial(self.fold, Lineage::Foreign);
                let reading = CatchUp::new(start, Some(command), self.rules.catch_up);
                self.phase = Phase::Replay(Box::new(reading), landed);
            }
            Some(landed) => self.phase = Phase::Recall(landed, Vec::new()),
            // The base does not remember as much as was promised.
            None if !self.searched
                && self
                    .rules
                    .known_from
                    .is_some_and(|from| self.base.header.commands_since > from) =>
            {
                self.phase = Phase::Search;
            }
            None => self.decide(),
        }
    }

    /// Another command landed with this one's id: ends with that.
    fn reused(&mut self, landed: &Sort) -> bool {
        let reused = landed.differs(&self.identity.sort);
        if reused {
            let named = landed
                .name
                .as_ref()
                .filter(|name| self.identity.sort.name.as_ref() != Some(name));
            let landed = named.map_or("with another fingerprint".to_owned(), |name| format!("`{name}`"));
            self.done(Err(CommandError::KeyReused {
                command_id: self.identity.command,
                landed,
            }));
        }
        reused
    }

    fn searched(&mut self, searched: Searched) {
        match searched {
            Searched::Found(landed) if landed.first > next_after(self.base.header.version) => {
                // Beyond the base: on the way there it is found.
                self.searched = true;
                self.phase = self.catch_up();
            }
            Searched::Found(landed) => {
                self.base.older = Some(Box::new(landed));
                self.look_up();
            }
            Searched::NotThere => {
                self.searched = true;
                self.decide();
            }
            Searched::OutOfReach(_) if self.in_doubt() => self.lost_track(),
            Searched::OutOfReach(since) => {
                self.confirmed = false;
                self.done(Err(CommandError::OutOfReach {
                    command_id: self.identity.command,
                    stream: self.stream.to_string(),
                    since,
                }));
            }
        }
    }

    fn in_doubt(&self) -> bool {
        self.doubt != Doubt::None
    }

    fn knows_command(&self) -> bool {
        self.base.landed(self.identity.command).is_some()
    }

    /// The base was marked deleted and the stream lives: what its item says next is the daemon's.
    fn alive(&mut self) {
        if std::mem::take(&mut self.base.header.deleted) {
            self.base.lineage = Lineage::Foreign;
        }
        self.reviving = false;
    }

    /// Throws the base away and begins with the stream's first event.
    fn discard(&mut self, why: Discard) {
        self.observed.push(Observation::Discarded(why));
        self.base = Base::initial(self.fold, Lineage::Foreign);
        self.confirmed = false;
        self.hole = None;
        self.searched = false;
        self.phase = self.catch_up();
    }

    fn read(&mut self, mut reading: Box<CatchUp>, slice: Slice) {
        let before = reading.folded;
        let fed = reading.feed(self.fold, slice);
        self.observed.push(Observation::Replayed(reading.folded - before));
        self.gone = self.gone.or(reading.gone.take());
        match fed {
            Err(error) => self.unfoldable(reading.found.take(), error),
            // Not while an append is looked for: a fresher state would step over it.
            Ok(Fed::More) if !self.refreshed && !self.in_doubt() && reading.found.is_none() => {
                self.refreshed = true;
                self.phase = Phase::Refresh(reading);
            }
            Ok(Fed::More) => self.phase = Phase::CatchUp(reading),
            Ok(Fed::Diverged) => self.discard(Discard::Diverged),
            Ok(Fed::Shorter) => self.discard(Discard::WentBackwards),
            Ok(Fed::Nothing(Presence::Tombstoned)) => self.deleted(true),
            Ok(Fed::Nothing(_)) => self.phase = Phase::Look,
            Ok(Fed::UpToDate) => match self.gone.take() {
                Some(gone) if !self.revived => self.phase = Phase::Begins(reading, gone),
                _ => self.caught_up(*reading),
            },
        }
    }

    fn caught_up(&mut self, reading: CatchUp) {
        let CatchUp { base, found, hole, .. } = reading;
        self.base = base;
        self.hole = hole;
        self.alive();
        self.confirmed = true;
        match found {
            Some(found) => self.answer_found(found),
            None if self.out_of_sight() => self.lost_track(),
            None => match hole.filter(|_| self.rules.catch_up.on_lost_history == OnLostHistory::Quarantine) {
                Some(hole) if !self.answer_from_memory() => self.lost_history(hole),
                Some(_) => {}
                None if hole.is_some() && self.answer_from_memory() => {}
                None => self.resume(),
            },
        }
    }

    /// The stream does not fold to its end. A command that was found before is answered all the
    /// same, and one that may stand behind is not known to have failed.
    fn unfoldable(&mut self, found: Option<Found>, error: CatchUpError) {
        self.confirmed = false;
        match found {
            Some(found) => self.answer_found(found),
            None if self.in_doubt() => self.give_up(),
            None => self.done(Err(error.into())),
        }
    }

    /// Where an append in doubt may stand nothing can be read: the base was started over beyond
    /// it, or it would stand in a hole.
    fn out_of_sight(&self) -> bool {
        let place = |p: &Pending| match p.expected {
            Expected::Exact(at) => at + 1,
            Expected::NoStream => next_after(p.base),
        };
        let gone = |at: Revision| {
            (self.base.header.version.is_some() && self.base.header.first > at)
                || self.hole.is_some_and(|hole| (hole.first()..=hole.last()).contains(&at))
        };
        self.in_doubt() && self.pending.as_ref().is_some_and(|p| gone(place(p)))
    }

    fn lost_history(&mut self, hole: Hole) {
        self.confirmed = false;
        if self.in_doubt() {
            return self.give_up();
        }
        self.done(Err(CommandError::State(CatchUpError::LostHistory {
            stream: self.stream.to_string(),
            first: hole.first(),
            last: hole.last(),
        })));
    }

    /// Goes on from the fresher base when it spares reading. It is checked as every snapshot is,
    /// by the event at its version.
    fn refreshed(&mut self, reading: Box<CatchUp>, base: Option<Box<Base>>) {
        let reached = reading.base.header.version;
        match base.filter(|base| base.header.version > reached && !base.header.deleted) {
            None => self.phase = Phase::CatchUp(reading),
            Some(base) => {
                self.base = *base;
                self.confirmed = false;
                self.searched = false;
                if self.knows_command() {
                    self.look_up();
                } else {
                    self.phase = self.catch_up();
                }
            }
        }
    }

    /// An append may have landed where nothing can be read any more: looking finds nothing, and
    /// that says nothing. Deciding again could contradict it or do it twice.
    fn lost_track(&mut self) {
        self.confirmed = false;
        self.done(Err(CommandError::OutcomeUnknown {
            command_id: self.identity.command,
        }));
    }

    fn stands(&mut self, standing: &Standing) {
        let version = self.base.header.version;
        match standing {
            Standing::Tombstoned => return self.deleted(true),
            Standing::SoftDeleted if self.in_doubt() && self.doubt != Doubt::WrittenBefore => {
                return self.lost_track();
            }
            // It was carried out before the deletion; doing it again would be twice.
            Standing::SoftDeleted if self.doubt == Doubt::WrittenBefore || self.knows_command() => {
                return self.deleted(false);
            }
            Standing::SoftDeleted => {
                self.hole = None;
                match self.rules.on_deleted {
                    OnDeleted::Refuse => return self.deleted(false),
                    OnDeleted::Continue => {}
                    OnDeleted::Restart => {
                        let former = std::mem::replace(&mut self.base, Base::initial(self.fold, Lineage::Foreign));
                        if former.header.version.is_some() {
                            self.former = Some(former);
                        }
                    }
                }
                self.base.header.deleted = true;
                self.reviving = true;
            }
            Standing::Missing if version.is_some() && self.in_doubt() => return self.lost_track(),
            Standing::Missing => {
                if version.is_some() {
                    self.observed.push(Observation::Discarded(Discard::WentBackwards));
                    self.base = Base::initial(self.fold, Lineage::Foreign);
                }
                self.hole = None;
                self.reviving = false;
            }
            Standing::Live(Some(newest)) if Some(newest.revision) < version => {
                return self.discard(Discard::WentBackwards);
            }
            Standing::Live(_) => {
                // It moved while we looked, or it was revived: read it.
                self.alive();
                let next = self.catch_up();
                if self.waits < self.rules.attempts || self.awaiting() {
                    self.wait_then(next);
                } else {
                    self.give_up();
                }
                return;
            }
        }
        self.confirmed = true;
        self.resume();
    }

    /// The races are lost. An append in doubt may have won one of them all the same.
    fn give_up(&mut self) {
        let error = if self.in_doubt() {
            CommandError::OutcomeUnknown {
                command_id: self.identity.command,
            }
        } else {
            self.contended()
        };
        self.done(Err(error));
    }

    /// Goes on with a base that the leader confirmed and that does not hold the command.
    fn resume(&mut self) {
        if let Some((expected, actual)) = self.callers_place().zip(self.hint)
            && actual != Some(expected)
        {
            // The server has judged the caller's version. A rival under way may have been meant, and
            // may die: nothing shows that of a deleted stream, and nothing was done.
            self.confirmed = false;
            return self.done(Err(CommandError::Conflict {
                stream: self.stream.to_string(),
                expected,
                actual,
            }));
        }
        if let Some(pending) = &self.pending {
            let moved = pending.base < self.base.header.version;
            if (pending.base, pending.expected) == (self.base.header.version, self.expected()) {
                if self.in_doubt() || self.awaiting() {
                    // On its way still, perhaps, or the rival's is, or that one died: the same
                    // events at the same place land at most once, and the answer tells.
                    self.rounds += 1;
                    self.phase = Phase::Append;
                    return;
                }
            } else if moved {
                // Another's events stand where the pending ones would.
                self.doubt = Doubt::None;
            }
        }
        self.settled();
        if self.hint.take().is_some() {
            self.attempts += 1;
        }
        // A race that a command had no right to any more is no race: the answer is where the stream stands.
        if self.attempts >= self.rules.attempts && self.misplaced().is_none() {
            self.give_up();
        } else {
            self.look_up();
        }
    }

    /// Where an append on the base in hand expects the stream to stand. A deleted stream's end is
    /// not shown by anything: the base's version, as long as no conflict spoke against it; then
    /// "no stream", which the server judges by the deletion. Where the caller says a version: that
    /// one and no other.
    fn expected(&self) -> Expected {
        if let Some(expected) = self.callers_place() {
            return Expected::Exact(expected);
        }
        match self.base.header.version {
            Some(version) if self.reviving && !self.unknown_end => Expected::Exact(version),
            _ if self.reviving => Expected::NoStream,
            _ => Expected::from(self.place()),
        }
    }

    /// The caller's version of a deleted stream that goes on where it ended: the base may end before
    /// that, and the server alone knows. A stream that starts over has no version before its first event.
    fn callers_place(&self) -> Option<Revision> {
        let goes_on = self.reviving && self.rules.on_deleted == OnDeleted::Continue;
        self.rules.expected.filter(|_| goes_on)
    }

    /// Why the command has no place where the stream stands, as far as the base knows.
    fn misplaced(&self) -> Option<CommandError<C::Error>> {
        let (place, stream) = (self.place(), || self.stream.to_string());
        let expected = self.rules.expected.filter(|_| self.callers_place().is_none());
        match (expected, self.command.existence(), place) {
            (Some(expected), _, actual) if actual != Some(expected) => Some(CommandError::Conflict {
                stream: stream(),
                expected,
                actual,
            }),
            (_, Existence::New, Some(revision)) => Some(CommandError::AlreadyExists {
                stream: stream(),
                revision,
            }),
            (_, Existence::Existing, None) => Some(CommandError::NotFound { stream: stream() }),
            _ => None,
        }
    }

    /// Reads on from a base that nobody confirmed in this attempt: a stale state must never turn a
    /// valid command away.
    fn confirm(&mut self) {
        self.observed.push(Observation::Confirming);
        self.phase = self.catch_up();
    }

    fn decide(&mut self) {
        let misplaced = self.misplaced();
        if !self.confirmed && (misplaced.is_some() || self.rules.confirmed) {
            return self.confirm();
        }
        match misplaced {
            // What was appended before may be where nothing can be seen any more.
            Some(_) if self.in_doubt() => return self.give_up(),
            Some(error) => return self.done(Err(error)),
            None => {}
        }
        let Some(state) = self.base.state.get::<A>() else {
            // States come from the aggregate's own fold; another type is a snapshot source's defect.
            return self.discard(Discard::Undecodable);
        };
        let decided = debug_span!(target: SPANS, "decide").in_scope(|| self.command.decide(state));
        let decided = decided.map(D::into_parts);
        let appends = decided.as_ref().is_ok_and(|(events, _)| !events.is_empty());
        if !appends && !self.confirmed {
            return self.confirm();
        }
        if !appends && self.callers_place().is_some_and(|at| Some(at) != self.place()) {
            // No append asks the server whether the stream ended at the caller's version.
            return self.deleted(false);
        }
        match decided {
            Err(rejection) => self.done(Err(CommandError::Rejected(rejection))),
            Ok((events, reply)) if events.is_empty() => {
                let answer = Committed {
                    reply: Some(reply),
                    command: self.identity.command,
                    stream: self.stream.clone(),
                    state: state.clone(),
                    version: self.base.header.version,
                    revision: self.base.header.version,
                    event_id: self.base.header.event.as_ref().map(|event| event.id),
                    events,
                    attempts: self.attempts,
                    repeated: false,
                    first: self.base.header.first,
                    revived: self.revived,
                };
                self.done(Ok(answer));
            }
            Ok((events, reply)) => self.prepare(&events, reply),
        }
    }

    /// Encodes what was decided, and makes sure that everybody will be able to read it.
    fn prepare(&mut self, events: &[A::Event], reply: D::Reply) {
        let unwritable = |problem: String| CommandError::Unwritable {
            stream: self.stream.to_string(),
            problem,
        };
        for (name, value) in self.appending.take().map(|ask| ask()).unwrap_or_default() {
            self.identity.metadata.trace(name, value);
        }
        let mut new = Vec::with_capacity(events.len());
        let plain = metadata::<A::Event>(&self.identity, false);
        for (index, event) in events.iter().enumerate() {
            let metadata = if self.reviving && index == 0 {
                // What the server takes then proves that the stream was still deleted.
                metadata::<A::Event>(&self.identity, true)
            } else {
                plain.clone()
            };
            match codec::encode(event) {
                Ok(body) => new.push(NewEvent {
                    id: event_id(
                        self.identity.command,
                        &self.stream,
                        index,
                        &body.kind,
                        &body.data,
                        &metadata,
                    ),
                    kind: body.kind,
                    json: true,
                    data: body.data,
                    metadata,
                }),
                Err(error) => {
                    let error = unwritable(error.to_string());
                    return self.done(Err(error));
                }
            }
        }
        let version = self.base.header.version;
        let pending = Pending {
            expected: self.expected(),
            base: version,
            events: new,
        };
        let raw = self.raw(&pending, next_after(self.place()), self.identity.at);
        let folded = fold_run(self.fold, (self.base.header.clone(), self.base.state.clone()), &raw, 0);
        if let Some((index, error)) = folded.stopped {
            let error = unwritable(format!("event {index} (`{}`): {error}", raw[index].kind));
            return self.done(Err(error));
        }
        self.reply = pending.events.first().map(|first| (first.id, reply));
        self.pending = Some(pending);
        self.phase = Phase::Append;
    }

    /// The pending events as a read would give them, the first at `first`, written at `at`.
    fn raw(&self, pending: &Pending, first: Revision, at: DateTime<Utc>) -> Vec<RawEvent> {
        let raw = |(event, revision): (&NewEvent, Revision)| RawEvent {
            stream: self.stream.clone(),
            revision,
            id: event.id,
            kind: event.kind.clone(),
            json: event.json,
            data: event.data.clone(),
            metadata: event.metadata.clone(),
            created: at,
        };
        pending.events.iter().zip(first..).map(raw).collect()
    }

    fn appended(
        &mut self,
        outcome: Result<Appended, JournalError>,
        beside: Option<Result<Slice, JournalError>>,
        at: DateTime<Utc>,
    ) {
        let to_verify = self.to_verify();
        let Some(pending) = self.pending.take() else {
            return self.expire();
        };
        match outcome {
            Ok(appended) => match to_verify {
                Some(_) if self.verifies(beside) => self.landed(pending, appended, at),
                Some(_) => {
                    // It landed, on a state that is not known to be the stream's: what it came to
                    // is read from the stream.
                    self.attempts += 1;
                    self.doubt = self.doubt.max(Doubt::Lost);
                    self.pending = Some(pending);
                    self.phase = self.catch_up();
                }
                None => self.landed(pending, appended, at),
            },
            Err(JournalError::WrongExpected { current }) => {
                self.observed.push(if self.rounds == 0 {
                    Observation::Conflict
                } else {
                    Observation::Awaited
                });
                self.hint = Some(current);
                self.unknown_end |= self.reviving && current > pending.base;
                self.pending = Some(pending);
                let next = self.catch_up();
                if self.rounds == 0 {
                    self.wait_then(next);
                } else {
                    self.phase = Phase::Wait(Pause::Round(self.rounds), Box::new(next));
                }
            }
            Err(JournalError::OutcomeUnknown(_)) => {
                self.observed.push(Observation::OutcomeLost);
                self.doubt = self.doubt.max(Doubt::Lost);
                self.pending = Some(pending);
                let next = self.catch_up();
                self.wait_then(next);
            }
            Err(error) => {
                self.pending = Some(pending);
                self.failed(Phase::Append, error);
            }
        }
    }

    /// Whether what was read beside an append says that the base is the stream's.
    fn verifies(&mut self, beside: Option<Result<Slice, JournalError>>) -> bool {
        let Some(Ok(slice)) = beside else {
            // Of a state that is known to be the stream's it was to tell a revival, and no more: an
            // append that was acknowledged is not in doubt for that. The next one asks again.
            return self.base.verified && !self.rules.catch_up.restarts;
        };
        let header = &self.base.header;
        let own = header.event.as_ref().map(|event| event.id);
        // What a read has shown of it since must still be there: without that it may be a life that
        // was deleted, whose last event came behind the deletion.
        let whole = self.base.seen.is_none_or(|seen| Some(seen) == header.version);
        match slice.events.first() {
            Some(first) if Some(first.revision) == header.version && Some(first.id) == own && whole => {
                self.base.verified = true;
            }
            Some(first) if Some(first.revision) == header.version && Some(first.id) != own => {
                self.observed.push(Observation::Discarded(Discard::Diverged));
                self.base = Base::initial(self.fold, Lineage::Foreign);
            }
            Some(first) if Some(first.revision) == self.base.seen => self.base.seen = None,
            // Deleted, truncated, gone: read on, by the rules for that.
            _ => {
                self.revived |= slice.presence == Presence::Absent;
                if self.rules.catch_up.restarts {
                    self.base = Base::initial(self.fold, Lineage::Foreign);
                }
                return false;
            }
        }
        self.base.verified && self.base.header.version.is_some()
    }

    fn landed(&mut self, pending: Pending, appended: Appended, at: DateTime<Utc>) {
        let count = pending.events.len() as u64;
        let place = match pending.expected {
            Expected::Exact(at) => Some(at + count),
            Expected::NoStream => appended.revision,
        };
        let last = appended.revision.or(place);
        let first = last.and_then(|last| (last + 1).checked_sub(count));
        let (Some(first), Some(last), true) = (first, last, appended.positioned && last == place) else {
            // These ids were written before. Whether they can still be read is for a read to say.
            self.attempts += 1;
            self.doubt = Doubt::WrittenBefore;
            self.pending = Some(pending);
            let next = self.catch_up();
            return self.wait_then(next);
        };
        self.attempts += 1;
        self.observed.push(Observation::Appended);
        // Written before it was answered: a window that forgets it says so no earlier than it was.
        let raw = self.raw(&pending, first, at);
        self.parent = self
            .base
            .header
            .version
            .zip(self.base.header.event.as_ref().map(|e| e.id));
        if first > next_after(self.base.header.version) {
            // What lies between is gone: as everybody will read it from now on, from here.
            self.base = Base::initial(self.fold, Lineage::Foreign);
        }
        let base = (self.base.header.clone(), self.base.state.clone());
        let folded = fold_run(self.fold, base, &raw, self.rules.catch_up.keep_commands);
        self.base.weight.grew(&raw);
        // What went with the deletion, or a truncation, is known to be gone.
        let gone = (self.reviving || self.hole.is_some()) && !self.rules.catch_up.restarts;
        self.base.seen = self.base.seen.or(self.base.header.version).filter(|_| !gone);
        self.base.header = folded.header;
        self.base.state = folded.state;
        if self.reviving || self.hole.is_some() {
            // What the table has to say about deletions and lost history is the daemon's to write.
            self.base.lineage = Lineage::Foreign;
            self.base.header.deleted = false;
        }
        // A stream that was taken to be new had a life before.
        self.revived |= self.reviving || (pending.expected == Expected::NoStream && first > 0);
        self.confirmed = folded.stopped.is_none();
        let after = (self.base.header.clone(), self.base.state.clone());
        self.answer(&raw, after, last, false);
    }
}

mod recall;
