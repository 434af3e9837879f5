//! The lane: one stream of one projection, from deliveries in any order to durable puts.
//!
//! A pure state machine (I6 pure). [`Lane::step`] says what is to be done and what may be
//! acknowledged, [`Lane::apply`] takes what came of it. It keeps I1 to I4 for its stream: a delivery
//! is a hint, the stream read at the leader is the truth, and nothing is acknowledged before it is
//! settled.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use self::{
    fold::Run,
    gap::NotYet,
    inbox::{Hint, Waiting},
};
use super::meter::LaneState;
use crate::{
    event::Revision,
    journal::ReadLimit,
    replica::{MarkKind, PutOutcome},
};

mod deletion;
mod fold;
mod gap;
mod history;
mod inbox;
mod put;
mod quarantine;
mod settle;
mod types;

#[cfg(test)]
mod tests;

pub use types::{
    Arrival, Base, Effect, Form, Next, OnDeletion, OnRevival, Outcome, PutKind, Rules, Step, Tally, Token, Verdict,
    restarts,
};

/// What an effect under way is for; `high`: the newest delivery that was there when it began.
#[derive(Clone, Copy, Debug)]
enum UnderWay {
    Load {
        fresh: bool,
        high: Token,
    },
    ReadOn {
        from: Revision,
        high: Token,
        /// It is to show what the event in hand follows, and nothing more.
        only_verifies: bool,
    },
    /// Is the replica's last event still the stream's event at that revision?
    Check {
        at: Revision,
    },
    /// Which revision is the first that can be read?
    Probe,
    Look {
        high: Token,
        hinted: bool,
    },
    Put {
        kind: PutKind,
        /// What is stored stays, and the state in hand may not be its.
        adrift: bool,
        high: Token,
    },
    Forget,
}

/// The machine for one stream.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says one thing of its own, and they come in every combination"
)]
pub struct Lane {
    stream: Arc<str>,
    rules: Arc<Rules>,
    base: Option<Base>,
    waiting: BTreeMap<Revision, Waiting>,
    /// Deliveries that only say that something happened to the stream.
    hints: Vec<(Token, Hint)>,
    /// Deliveries of hints that were heeded; settled with whatever follows from that.
    acting: Vec<(Token, Hint)>,
    /// Deliveries at or below the version that do not fit the replica.
    suspects: Vec<(Revision, Waiting)>,
    newest: Token,
    behind: bool,
    under_way: Option<UnderWay>,
    /// The state differs from what is stored.
    changed: bool,
    /// The next put is an administrative one.
    administrative: Option<PutKind>,
    run: Option<Run>,
    /// Read on although no delivery asks for it.
    read_wanted: bool,
    /// The stream was read since the last put: put before reading again.
    read_since_put: bool,
    look_wanted: bool,
    /// The stream was seen to be shorter than the replica, or not there: since when, and when it is
    /// looked at again.
    short: Option<(Duration, Duration)>,
    load_wanted: bool,
    probe_wanted: bool,
    /// What could not be found in the stream up to this token is not there, as far as it stands
    /// below this revision: a read proves nothing of what the stream has not indexed.
    unreadable: Option<(Token, Revision)>,
    not_yet: Option<NotYet>,
    /// A mark that other code left is being tried: it stays until the stream was read to its end,
    /// for deliveries behind it were settled by it.
    retrying: bool,
    /// This lane cleared a mark by which another task may have settled what came meanwhile, and has
    /// yet to store that: no delivery need ask for it.
    owing: bool,
    /// The stream is, or may be, noted as marked; the note goes when nothing is owed.
    noted: bool,
    /// The generation of the mark that was seen noted. Where the item was deleted meanwhile, its new
    /// life's generations begin below.
    note_seen: u64,
    /// The newest delivery that was there when the quarantine mark was last read from the store.
    mark_read: Option<Token>,
    /// Deliveries up to this one that are settled now were settled by a put.
    written: Option<Token>,
    last_put: Option<Duration>,
    dirty_since: Option<Duration>,
    /// Its next put of folded events waits.
    held_back: bool,
    verdicts: Vec<Verdict>,
    tally: Tally,
}

impl Lane {
    /// A lane with nothing to do.
    pub fn new(stream: Arc<str>, rules: Arc<Rules>) -> Self {
        Self {
            stream,
            rules,
            base: None,
            waiting: BTreeMap::new(),
            hints: Vec::new(),
            acting: Vec::new(),
            suspects: Vec::new(),
            newest: 0,
            behind: false,
            under_way: None,
            changed: false,
            administrative: None,
            run: None,
            read_wanted: false,
            read_since_put: false,
            look_wanted: false,
            short: None,
            load_wanted: false,
            probe_wanted: false,
            unreadable: None,
            not_yet: None,
            retrying: false,
            owing: false,
            noted: false,
            note_seen: 0,
            mark_read: None,
            written: None,
            last_put: None,
            dirty_since: None,
            held_back: false,
            verdicts: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Its stream.
    pub fn stream(&self) -> &Arc<str> {
        &self.stream
    }

    /// Takes a delivery. `behind`: its event is old enough that reading the stream on will settle
    /// deliveries that have not come yet.
    pub fn deliver(&mut self, token: Token, arrival: Arrival, behind: bool) {
        self.newest = self.newest.max(token);
        self.behind |= behind;
        let (revision, event) = match arrival {
            Arrival::Moved => return self.hints.push((token, Hint::Look)),
            Arrival::Onward => return self.hints.push((token, Hint::Read)),
            Arrival::Noted { generation } => {
                self.note_seen = self.note_seen.max(generation);
                return self.hints.push((token, Hint::Note));
            }
            Arrival::Revision(revision) => (revision, None),
            Arrival::Event(event) => (event.revision, Some(event)),
        };
        let waiting = self.waiting.entry(revision).or_default();
        waiting.tokens.push(token);
        if event.is_some() {
            waiting.event = event;
        }
    }

    /// Whether its puts of folded events wait: others are under way, and one that is not written down
    /// yet takes no memory and carries what comes meanwhile.
    pub fn hold_back(&mut self, wait: bool) {
        self.held_back = wait;
    }

    /// Deliveries that are not settled.
    pub fn unsettled(&self) -> usize {
        self.waiting.values().map(|w| w.tokens.len()).sum::<usize>()
            + self.hints.len()
            + self.acting.len()
            + self.suspects.iter().map(|(_, w)| w.tokens.len()).sum::<usize>()
    }

    /// The base to keep when the lane is dropped: only one that holds nothing unsaved.
    pub fn into_base(self) -> Option<Base> {
        let clean = self.under_way.is_none() && !self.changed && self.administrative.is_none();
        self.base.filter(|base| clean && !base.rebase)
    }

    /// The replica at hand, if it is known.
    pub fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    /// Whether a denial of its stream would be nothing new: that is what its stored mark says.
    pub fn is_denied(&self) -> bool {
        self.stored_mark().is_some_and(|mark| mark.kind() == MarkKind::Denied)
    }

    /// What it is at.
    pub fn state(&self) -> LaneState {
        match self.under_way {
            None => LaneState::Waiting,
            Some(UnderWay::Load { .. }) => LaneState::Loading,
            Some(UnderWay::Put { .. } | UnderWay::Forget) => LaneState::Writing,
            Some(_) => LaneState::Reading,
        }
    }

    /// What is to be done next, and what has come of all so far. `now`: time since an epoch that never
    /// changes.
    pub fn step(&mut self, now: Duration) -> Step {
        let next = self.next(now);
        Step {
            next,
            verdicts: mem::take(&mut self.verdicts),
            tally: mem::take(&mut self.tally),
        }
    }

    fn next(&mut self, now: Duration) -> Next {
        if self.under_way.is_some() {
            return Next::Busy;
        }
        if self.base.is_none() {
            if self.unsettled() == 0 {
                return Next::Idle;
            }
            return self.load(false);
        }
        if self.load_wanted {
            return self.load(true);
        }
        if let Some(next) = self.act_on_mark().or_else(|| self.act_on_hints()) {
            return next;
        }
        self.settle();
        if let Some(at) = self.suspicion() {
            self.under_way = Some(UnderWay::Check { at });
            return Next::Do(Effect::Read {
                from: at,
                limit: ReadLimit {
                    events: 1,
                    ..self.rules.read
                },
            });
        }
        if let Some(next) = self.gathers(now) {
            return next;
        }
        self.fold_in_hand();
        self.settle();
        if matches!(self.administrative, Some(PutKind::Quarantine(_) | PutKind::Diverged)) {
            return self.put(now);
        }
        if self.probe_wanted {
            return self.probe();
        }
        if let Some((_, due)) = self.short {
            if now < due {
                return Next::WaitUntil(due);
            }
            self.look_wanted = true;
        }
        if self.look_wanted || self.has(Hint::Look) {
            return self.look();
        }
        if self.wants_read(now) {
            return self.read_on();
        }
        if self.changed || self.administrative.is_some() {
            return self.put(now);
        }
        self.ack_acting();
        self.behind = false;
        let again = self.reads_again_at();
        if again.is_none() {
            // The stream was read to its end, and all of it is stored or changed nothing.
            self.owing = false;
            if self.noted && self.known().header.quarantine.is_none() {
                return self.forget();
            }
        }
        match (self.flush_or_idle(now), again) {
            (Next::Idle, Some(due)) => Next::WaitUntil(due),
            (Next::WaitUntil(at), Some(due)) => Next::WaitUntil(at.min(due)),
            (next, _) => next,
        }
    }

    /// Takes what came of the effect under way. `now` as in [`Lane::step`].
    ///
    /// # Panics
    /// When no effect is under way or the outcome is another effect's: a fault of the caller's.
    pub fn apply(&mut self, outcome: Outcome, now: Duration) {
        let under_way = self
            .under_way
            .take()
            .expect("an outcome belongs to an effect under way");
        match (under_way, outcome) {
            (UnderWay::Load { fresh: false, .. }, Outcome::Cached(base)) => self.base = Some(*base),
            (UnderWay::Load { high, .. } | UnderWay::Put { high, .. }, Outcome::Corrupt { problem, found }) => {
                self.broken(&problem, found);
                self.mark_read = Some(high);
            }
            (
                UnderWay::ReadOn { .. } | UnderWay::Check { .. } | UnderWay::Probe | UnderWay::Look { .. },
                Outcome::Denied(why),
            ) => self.denied(&why),
            (UnderWay::Forget, Outcome::Forgotten) => {}
            (UnderWay::Load { fresh, high }, Outcome::Loaded(replica)) => {
                self.rebase_on(Base::from_stored(&*self.rules.fold, replica.map(|r| *r)));
                self.mark_read = fresh.then_some(high);
            }
            (
                UnderWay::ReadOn {
                    from,
                    high,
                    only_verifies,
                },
                Outcome::Read(slice),
            ) => self.read(from, high, only_verifies, slice, now),
            (UnderWay::Check { at }, Outcome::Read(slice)) => self.checked(at, &slice),
            (UnderWay::Probe, Outcome::Read(slice)) => self.probed(&slice),
            (UnderWay::Look { high, hinted }, Outcome::Looked(standing)) => self.looked(&standing, high, hinted, now),
            (UnderWay::Put { kind, adrift, high }, Outcome::Put(PutOutcome::Done)) => {
                self.stored(kind, adrift, high, now);
            }
            (UnderWay::Put { high, .. }, Outcome::Put(PutOutcome::Refused(stored))) => {
                // An earlier try of this put may have landed, and cleared the mark.
                self.owing |= self.retrying;
                self.rebase_on(Base::from_stored(&*self.rules.fold, stored.map(|r| *r)));
                // What a refused put hands back is as fresh as a strongly consistent read.
                self.mark_read = Some(high);
            }
            (under_way, outcome) => panic!("{under_way:?} does not end with {outcome:?}"),
        }
    }

    fn known(&mut self) -> &mut Base {
        self.base
            .as_mut()
            .expect("every caller has seen that the base is known")
    }

    fn load(&mut self, fresh: bool) -> Next {
        self.load_wanted = false;
        self.under_way = Some(UnderWay::Load {
            fresh,
            high: self.newest,
        });
        Next::Do(Effect::Load { fresh })
    }

    /// Forgets what was folded and decided on another base; deliveries stay as they are.
    fn rebase_on(&mut self, base: Base) {
        // Whoever cleared the mark that was here may have left owing what was settled by it.
        self.owing |= self.noted && base.header.quarantine.is_none();
        // What changed nothing was settled by that, and nothing is delivered for it again.
        let kept = self.base.as_ref().filter(|_| !self.changed);
        let behind = kept.is_some_and(|kept| kept.header.version > base.header.version);
        // A state that is folded again is put when it has caught up with what it replaces; what is
        // owed is read again.
        self.read_wanted = (base.rebase || self.owing || behind) && !base.header.deleted;
        // The stream may have come back since the marker was put.
        self.look_wanted |= behind && base.header.deleted && base.broken.is_none();
        self.base = Some(base);
        self.changed = false;
        self.administrative = None;
        self.run = None;
        self.read_since_put = false;
        self.probe_wanted = false;
        self.short = None;
        self.retrying = false;
        self.unreadable = None;
        self.not_yet = None;
        self.dirty_since = None;
        self.reconsider_suspects();
        // What followed from a hint was lost with the old base: heed it again.
        let mut again = mem::take(&mut self.acting);
        self.hints.append(&mut again);
    }

    /// Whether it holds events that it has read or folded and not put.
    pub fn holds_events(&self) -> bool {
        self.run.as_ref().is_some_and(|run| !run.events.is_empty())
    }
}
