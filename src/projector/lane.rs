//! The lane: one stream of one projection, from deliveries in any order to durable puts.
//!
//! A pure state machine (I6 pure). [`Lane::step`] says what is to be done and what may be
//! acknowledged, [`Lane::apply`] takes what came of it. It keeps I1 to I4 for its stream: a delivery
//! is a hint, the stream read at the leader is the truth, and nothing is acknowledged before it is
//! settled.
//!
//! Of a lane either nothing is known, or there is a base and with it all of `Known`. What was known can
//! be given up ([`Lane::doubt`]), with what is under way.
//!
//! Of what is known:
//!
//! | what | its states | file |
//! |---|---|---|
//! | what came in | waiting for its revision, a hint, heeded, suspect | `inbox` |
//! | what is not stored | a fold: none, a run, one that was dropped; beside it an administrative write, which may try a mark again | `unsaved` |
//! | what is to be done | load (alone), probe, look, read | `agenda` |
//! | what reads have shown | what is gone, what is not yet readable | `gap` |
//! | the note of a mark | none, noted, noted with something owed | `quarantine` |
//!
//! `Known::next` is the order of decisions; each decision is in the file of its concern.
//!
//! Of beginning again: a state that cannot be read is *refolded*, and what is stored stays until the
//! refold has caught up with it; a lane *starts over* from the first readable event with a new life;
//! `LaneBase::rebase` says that the next put replaces what is stored, whichever of the two it was, and
//! `rebase_on` goes on from another base, after a load or a refused put.

use std::{mem, sync::Arc, time::Duration};

use self::{
    agenda::{Agenda, Look},
    deletion::Looking,
    gap::{NotFound, ReadOn},
    inbox::{Hint, Inbox},
    put::{Pace, Putting},
    quarantine::MarkNote,
    unsaved::Unsaved,
};
use super::meter::LaneState;
use crate::{
    event::Revision,
    replica::{MarkKind, PutOutcome, Quarantine},
};

mod agenda;
mod deletion;
mod fold;
mod gap;
mod history;
mod inbox;
mod put;
mod quarantine;
mod settle;
mod types;
mod unsaved;

#[cfg(test)]
mod tests;

pub use types::{
    Arrival, Effect, Form, LaneBase, LaneRules, LaneToken, Next, Outcome, PutKind, Step, Tally, Verdict, restarts,
};

/// The machine for one stream.
#[derive(Debug)]
pub struct Lane {
    stream: Arc<str>,
    rules: Arc<LaneRules>,
    at: At,
}

#[derive(Debug)]
enum At {
    /// Nothing is known of the replica; `loading`: the newest delivery that was there when that began.
    Unknown {
        inbox: Inbox,
        loading: Option<LaneToken>,
    },
    Known(Box<Known>),
}

/// A lane whose replica is known. What it holds beside the base is what `base` does not say of itself.
#[derive(Debug)]
struct Known {
    stream: Arc<str>,
    rules: Arc<LaneRules>,
    inbox: Inbox,
    base: LaneBase,
    under_way: Option<UnderWay>,
    unsaved: Unsaved,
    agenda: Agenda,
    not_found: NotFound,
    note: MarkNote,
    /// The newest delivery that was there when the replica was last read from the store itself: older
    /// ones may be settled by a mark that it showed.
    store_read: Option<LaneToken>,
    pace: Pace,
    tally: Tally,
}

/// What an effect under way is for; `high`: the newest delivery that was there when it began.
#[derive(Clone, Copy, Debug)]
enum UnderWay {
    Load {
        high: LaneToken,
    },
    Read(ReadOn),
    /// Is the replica's last event still the stream's event at that revision?
    Check {
        at: Revision,
    },
    /// Which revision is the first that can be read?
    Probe,
    Look(Looking),
    Put(Putting),
    Forget,
}

impl Lane {
    /// A lane with nothing to do.
    pub fn new(stream: Arc<str>, rules: Arc<LaneRules>) -> Self {
        let at = At::Unknown {
            inbox: Inbox::default(),
            loading: None,
        };
        Self { stream, rules, at }
    }

    /// Takes a delivery. `behind`: its event is old enough that reading the stream on will settle
    /// deliveries that have not come yet.
    pub fn deliver(&mut self, token: LaneToken, arrival: Arrival, behind: bool) {
        self.inbox_mut().deliver(token, arrival, behind);
    }

    /// Whether it has folded what changed nothing, and not stored that.
    pub fn is_ahead(&self) -> bool {
        self.known().is_some_and(Known::is_ahead)
    }

    /// Lets it store that with its next step: nobody is there to do so later.
    pub fn flush(&mut self) {
        if let At::Known(known) = &mut self.at {
            known.pace.flushes = true;
        }
    }

    /// Whether its puts of folded events wait: others are under way, and one that is not written down
    /// yet takes no memory and carries what comes meanwhile.
    pub fn hold_back(&mut self, wait: bool) {
        self.inbox_mut().held_back = wait;
    }

    /// Gives up what was seen of stream and replica, for the event store may have become another one:
    /// what is asked for stays, and is read again. No outcome of an effect under way may come any more.
    /// Returns the base to begin again from, when it holds nothing unsaved.
    pub fn doubt(&mut self) -> Option<LaneBase> {
        let nothing = At::Unknown {
            inbox: Inbox::default(),
            loading: None,
        };
        let (mut inbox, base) = match mem::replace(&mut self.at, nothing) {
            At::Unknown { inbox, .. } => (inbox, None),
            At::Known(mut known) => (mem::take(&mut known.inbox), known.into_base()),
        };
        inbox.doubt();
        self.at = At::Unknown { inbox, loading: None };
        base
    }

    /// Deliveries that are not settled.
    pub fn unsettled(&self) -> usize {
        match &self.at {
            At::Unknown { inbox, .. } => inbox.unsettled(),
            At::Known(known) => known.inbox.unsettled(),
        }
    }

    /// The base to keep when the lane is dropped: only one that holds nothing unsaved.
    pub fn into_base(self) -> Option<LaneBase> {
        let At::Known(known) = self.at else { return None };
        known.into_base()
    }

    /// Whether a denial of its stream would be nothing new: that is what its stored mark says.
    pub fn is_denied(&self) -> bool {
        self.known().is_some_and(Known::is_denied)
    }

    /// Whether it holds events that it has read or folded and not put.
    pub fn holds_events(&self) -> bool {
        self.known().is_some_and(|known| known.unsaved.holds_events())
    }

    /// What it is at.
    pub fn state(&self) -> LaneState {
        let under_way = match &self.at {
            At::Unknown { loading: Some(_), .. } => return LaneState::Loading,
            At::Unknown { loading: None, .. } => None,
            At::Known(known) => known.under_way,
        };
        match under_way {
            None => LaneState::Waiting,
            Some(UnderWay::Load { .. }) => LaneState::Loading,
            Some(UnderWay::Put(_) | UnderWay::Forget) => LaneState::Writing,
            Some(_) => LaneState::Reading,
        }
    }

    /// What is to be done next, and what has come of all so far. `now`: time since an epoch that never
    /// changes.
    pub fn step(&mut self, now: Duration) -> Step {
        match &mut self.at {
            At::Unknown { inbox, loading } => {
                let next = if loading.is_some() {
                    Next::Busy
                } else if inbox.unsettled() == 0 {
                    Next::Idle
                } else {
                    *loading = Some(inbox.newest);
                    Next::Do(Effect::Load { fresh: false })
                };
                Step {
                    next,
                    verdicts: mem::take(&mut inbox.verdicts),
                    tally: Tally::default(),
                }
            }
            At::Known(known) => Step {
                next: known.next(now),
                verdicts: mem::take(&mut known.inbox.verdicts),
                tally: mem::take(&mut known.tally),
            },
        }
    }

    /// Takes what came of the effect under way, and folds what was read. Verdicts and tally come with
    /// the next step. `now` as in [`Lane::step`].
    ///
    /// # Panics
    /// When no effect is under way or the outcome is another effect's: a fault of the caller's.
    pub fn apply(&mut self, outcome: Outcome, now: Duration) {
        let (inbox, loading) = match &mut self.at {
            At::Known(known) => return known.apply(outcome, now),
            At::Unknown { inbox, loading } => (mem::take(inbox), loading.take()),
        };
        let high = loading.expect("an outcome belongs to an effect under way");
        let fold = &*self.rules.fold;
        let (base, problem) = match outcome {
            Outcome::Cached(base) => (*base, None),
            Outcome::Loaded(replica) => (LaneBase::from_stored(fold, replica.map(|r| *r)), None),
            Outcome::Corrupt { problem, found } => (LaneBase::from_broken(fold, found), Some(problem)),
            outcome => panic!("a load does not end with {outcome:?}"),
        };
        let mut known = Known::new(self.stream.clone(), self.rules.clone(), inbox, base);
        if let Some(problem) = problem {
            known.mark_broken(&problem);
            known.store_read = Some(high);
        }
        self.at = At::Known(Box::new(known));
    }

    fn known(&self) -> Option<&Known> {
        match &self.at {
            At::Unknown { .. } => None,
            At::Known(known) => Some(known),
        }
    }

    fn inbox_mut(&mut self) -> &mut Inbox {
        match &mut self.at {
            At::Unknown { inbox, .. } => inbox,
            At::Known(known) => &mut known.inbox,
        }
    }
}

impl Known {
    fn new(stream: Arc<str>, rules: Arc<LaneRules>, inbox: Inbox, base: LaneBase) -> Self {
        let agenda = Agenda {
            // A state that is folded again is put when it has caught up with what it replaces.
            read: base.rebase && !base.header.deleted,
            ..Agenda::default()
        };
        Self {
            stream,
            rules,
            inbox,
            base,
            under_way: None,
            unsaved: Unsaved::default(),
            agenda,
            not_found: NotFound::default(),
            note: MarkNote::default(),
            store_read: None,
            pace: Pace::default(),
            tally: Tally::default(),
        }
    }

    fn into_base(self) -> Option<LaneBase> {
        let clean = self.under_way.is_none() && !self.unsaved.any() && !self.base.rebase;
        clean.then_some(self.base)
    }

    /// What is to be done next.
    fn next(&mut self, now: Duration) -> Next {
        if self.under_way.is_some() {
            return Next::Busy;
        }
        if self.agenda.load {
            return self.load();
        }
        if let Some(next) = self.act_on_mark().or_else(|| self.act_on_hints()) {
            return next;
        }
        self.settle();
        if let Some(at) = self.suspicion() {
            return self.check(at);
        }
        if let Some(next) = self.gathers(now) {
            return next;
        }
        self.fold_in_hand();
        self.settle();
        if self.unsaved.is_mark() {
            return self.put(now);
        }
        if self.agenda.probe {
            return self.probe();
        }
        if let Look::Again { due, .. } = self.agenda.look
            && now < due
        {
            return Next::WaitUntil(due);
        }
        if self.agenda.look != Look::No || self.inbox.has(Hint::Look) {
            return self.look();
        }
        if self.wants_read(now) {
            return self.read_on(now);
        }
        if self.unsaved.any() {
            return self.put(now);
        }
        self.rest(now)
    }

    /// All that is known of the stream is folded; what changed something is stored.
    fn rest(&mut self, now: Duration) -> Next {
        // What a hint has led to is durable before the hint is settled, also where it changed nothing: a
        // new life that begins with such an event is told from the old one by its item alone.
        if self.inbox.is_acting() && self.is_ahead() {
            return self.put(now);
        }
        self.inbox.ack_acting();
        self.inbox.behind = false;
        let mut again = self.reads_again_at();
        if again.is_none() {
            // The stream was read to its end, and all of it is stored or changed nothing.
            match self.note {
                // Since it was read others may have marked it again, in the generation of the note.
                MarkNote::Confirmed => {
                    self.note = MarkNote::Paid;
                    return self.load();
                }
                MarkNote::Paid if self.base.header.quarantine.is_none() => return self.forget(),
                _ => {}
            }
            again = self.note.due_since(now);
            if again.is_some_and(|due| now >= due) {
                self.agenda.read = true;
                if self.may_have_begun_again() {
                    return self.probe();
                }
                return self.read_on(now);
            }
        }
        match (self.flush_or_idle(now), again) {
            (Next::Idle, Some(due)) => Next::WaitUntil(due),
            (Next::WaitUntil(at), Some(due)) => Next::WaitUntil(at.min(due)),
            (next, _) => next,
        }
    }

    fn apply(&mut self, outcome: Outcome, now: Duration) {
        let under_way = self
            .under_way
            .take()
            .expect("an outcome belongs to an effect under way");
        match (under_way, outcome) {
            (UnderWay::Load { high } | UnderWay::Put(Putting { high, .. }), Outcome::Corrupt { problem, found }) => {
                self.rebase_on(LaneBase::from_broken(&*self.rules.fold, found));
                self.mark_broken(&problem);
                self.store_read = Some(high);
            }
            (
                UnderWay::Read(_) | UnderWay::Check { .. } | UnderWay::Probe | UnderWay::Look(_),
                Outcome::Denied(why),
            ) => self.denied(&why),
            (UnderWay::Forget, Outcome::Forgotten) => {}
            (UnderWay::Load { high }, Outcome::Loaded(replica)) => {
                self.rebase_on(LaneBase::from_stored(&*self.rules.fold, replica.map(|r| *r)));
                self.store_read = Some(high);
            }
            (UnderWay::Read(asked), Outcome::Read(slice)) => self.read(asked, slice, now),
            (UnderWay::Check { at }, Outcome::Read(slice)) => self.checked(at, slice),
            (UnderWay::Probe, Outcome::Read(slice)) => self.probed(&slice),
            (UnderWay::Look(looking), Outcome::Looked(standing)) => self.looked(&standing, looking, now),
            (UnderWay::Put(put), Outcome::Put(PutOutcome::Done)) => self.stored(put, now),
            (UnderWay::Put(Putting { high, .. }), Outcome::Put(PutOutcome::Refused(stored))) => {
                // An earlier try of this put may have landed, and cleared the mark.
                if self.unsaved.retries() {
                    self.owe();
                }
                self.rebase_on(LaneBase::from_stored(&*self.rules.fold, stored.map(|r| *r)));
                // What a refused put hands back is as fresh as a strongly consistent read.
                self.store_read = Some(high);
            }
            (under_way, outcome) => panic!("{under_way:?} does not end with {outcome:?}"),
        }
    }

    /// Whether the replica was read from the store itself since the newest delivery came.
    fn is_fresh(&self) -> bool {
        self.store_read >= Some(self.inbox.newest)
    }

    /// Loads past every cache.
    fn load(&mut self) -> Next {
        self.agenda.load = false;
        self.under_way = Some(UnderWay::Load {
            high: self.inbox.newest,
        });
        Next::Do(Effect::Load { fresh: true })
    }

    /// Forgets what was folded and decided on another base; deliveries stay as they are.
    fn rebase_on(&mut self, base: LaneBase) {
        // Whoever cleared the mark that was here may have left owing what was settled by it.
        let another = base.header.generation != self.base.stored.as_ref().map_or(0, |stored| stored.generation);
        match self.note {
            MarkNote::Noted if base.header.quarantine.is_none() => self.note.owe(),
            MarkNote::Owing(_) | MarkNote::Confirmed | MarkNote::Paid if another => self.note.owe(),
            _ => {}
        }
        // What changed nothing was settled by that, and nothing is delivered for it again.
        let behind = !self.unsaved.changed() && self.base.header.version > base.header.version;
        // A state that is folded again is put when it has caught up with what it replaces; what is
        // owed is read again.
        let read = (base.rebase || self.note.owes() || behind) && !base.header.deleted;
        // The stream may have come back since the marker was put.
        let look = behind && base.header.deleted && base.broken.is_none();
        self.agenda = self.agenda.on_another_base(read, look);
        self.base = base;
        self.agenda.probe |= self.note.owes() && self.may_have_begun_again();
        self.unsaved = Unsaved::default();
        self.not_found = NotFound::default();
        self.pace.unflushed_since = None;
        self.inbox.reconsider_suspects();
        // What followed from a hint was lost with the old base: heed it again.
        self.inbox.act_again();
    }

    fn stored_mark(&self) -> Option<&Quarantine> {
        self.base.stored.as_ref()?.quarantine.as_ref()
    }

    fn is_denied(&self) -> bool {
        self.stored_mark().is_some_and(|mark| mark.kind() == MarkKind::Denied)
    }
}
