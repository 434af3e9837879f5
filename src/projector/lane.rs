//! The lane: one stream of one projection, from deliveries in any order to durable puts.
//!
//! A pure state machine (I6 pure). [`Lane::next`] says what is to be done, [`Lane::apply`]
//! takes what came of it, [`Lane::verdicts`] what may be acknowledged. It keeps I1 to I4
//! for its stream: a delivery is a hint, the stream read at the leader is the truth, and nothing
//! is acknowledged before it is settled.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::meter::LaneState;
use crate::{
    event::{RawEvent, Revision, Version},
    journal::{Presence, ReadLimit, Slice, Standing},
    projection::{FoldError, OnLostHistory, State, run::fold_run},
    replica::{Broken, Demand, Fingerprints, Header, MarkKind, Put, PutOutcome, Quarantine, item::Body},
};

mod types;

#[cfg(test)]
mod tests;

pub use types::{
    Arrival, Base, Effect, Form, Next, OnDeletion, OnRevival, Outcome, PutKind, Rules, Tally, Token, Verdict, restarts,
};

/// Deliveries of one revision that wait.
#[derive(Debug, Default)]
struct Waiting {
    event: Option<RawEvent>,
    tokens: Vec<Token>,
}

/// What a delivery asks for that carries no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    /// See how the stream stands.
    Look,
    /// Read it to its end.
    Read,
    /// It is noted as marked: see whether it is, and whether that left something owing.
    Note,
}

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

/// Folding since the last put.
#[derive(Debug)]
struct Run {
    /// Where it began; to find the event that makes a state unstorable.
    header: Header,
    state: State,
    /// What `events` follow, where that is further on: a refold is put when it has caught up, and
    /// lets go of its events as soon as what they make can be stored.
    storable: Option<(Header, State)>,
    events: Vec<RawEvent>,
    /// When those that were let go were created, as far as they were not durable before.
    created: Vec<DateTime<Utc>>,
}

impl Run {
    fn begins(&self) -> (Header, State) {
        self.storable
            .clone()
            .unwrap_or_else(|| (self.header.clone(), self.state.clone()))
    }

    /// Lets go of its events. Those that are folded again became durable long ago.
    fn let_go(&mut self, durable: Version) {
        let events = self.events.drain(..).filter(|event| Some(event.revision) > durable);
        self.created.extend(events.map(|event| event.created));
    }
}

/// Events in hand that are folded without reading on, however far behind: at one put for eight
/// events the writes are well below one for every six, and an event that is not read is not
/// brought twice.
const WORTH_A_PUT: usize = 8;

/// How long a revision that a delivery names, its event not in hand, is waited for while no read
/// shows it: longer than a leader's election takes. A link may name what will never be.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// Between two reads for what a delivery names and no read shows: a commit's time, to begin with.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// An outage of the server's own; asking more often would not end it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Deliveries, up to `high`, of revisions that were not yet readable when the stream was read last.
#[derive(Clone, Copy, Debug)]
struct NotYet {
    high: Token,
    /// Where the stream ended then: nothing at or above it was readable.
    below: Revision,
    /// Since when it has ended there, and the newest delivery that has waited as long.
    since: Duration,
    waited: Token,
    reads: u32,
    due: Duration,
}

impl NotYet {
    /// Up to which delivery nothing more is expected.
    fn hopeless(&self) -> Option<Token> {
        (self.due > self.since + SHOWN_WITHIN).then_some(self.waited)
    }
}

/// Events of a read that shows what a base's last event is: that one, and the one that follows it.
const VERIFIES: usize = 2;

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

    /// What may be acknowledged or parked since the last call.
    pub fn verdicts(&mut self) -> Vec<Verdict> {
        mem::take(&mut self.verdicts)
    }

    /// What was done since the last call.
    pub fn tally(&mut self) -> Tally {
        mem::take(&mut self.tally)
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

    fn stored_mark(&self) -> Option<&Quarantine> {
        self.base.as_ref()?.stored.as_ref()?.quarantine.as_ref()
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

    /// What is to be done next. `now`: time since an epoch that never changes.
    pub fn next(&mut self, now: Duration) -> Next {
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

    fn has(&self, hint: Hint) -> bool {
        self.hints.iter().any(|(_, of)| *of == hint)
    }

    /// Takes the hints of these kinds out.
    fn drain_hints(&mut self, kinds: &[Hint]) -> Vec<(Token, Hint)> {
        self.hints.extract_if(.., |(_, of)| kinds.contains(of)).collect()
    }

    fn ack_acting(&mut self) {
        self.verdicts
            .extend(self.acting.drain(..).map(|(token, _)| Verdict::Ack(token)));
    }

    fn ack_hints(&mut self, kinds: &[Hint]) {
        let hints = self.drain_hints(kinds);
        self.verdicts
            .extend(hints.into_iter().map(|(token, _)| Verdict::Ack(token)));
    }

    fn forget(&mut self) -> Next {
        self.noted = false;
        let stored = self.known().stored.as_ref().map_or(0, |stored| stored.generation);
        let generation = stored.max(mem::take(&mut self.note_seen));
        self.under_way = Some(UnderWay::Forget);
        Next::Do(Effect::Forget { generation })
    }

    /// Takes what came of the effect under way. `now` as in [`Lane::next`].
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

    fn clear_suspects(&mut self) {
        let tokens = self.suspects.drain(..).flat_map(|(_, waiting)| waiting.tokens);
        self.verdicts.extend(tokens.map(Verdict::Ack));
    }

    /// On another base, what did not fit may fit.
    fn reconsider_suspects(&mut self) {
        for (revision, mut suspect) in self.suspects.drain(..) {
            let waiting = self.waiting.entry(revision).or_default();
            waiting.tokens.append(&mut suspect.tokens);
            waiting.event = waiting.event.take().or(suspect.event);
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

    /// The stored item is no replica: that is marked on it, and nothing else of it is touched.
    fn broken(&mut self, problem: &str, found: Box<Broken>) {
        self.rebase_on(Base::from_broken(&*self.rules.fold, found));
        self.read_wanted = false;
        let stands = self.stored_mark().is_some_and(|mark| mark.kind() == MarkKind::Corrupt);
        if !stands {
            let mark = Quarantine::corrupt(problem, &self.stream, self.rules.fold.fingerprint().into());
            self.known().header.quarantine = Some(mark);
            self.administrative = Some(PutKind::Quarantine("corrupt_item"));
        }
    }

    /// The stream may not be read. Under a mark that says so already nothing changes.
    fn denied(&mut self, why: &str) {
        self.reconsider_suspects();
        self.back_to_stored();
        if self.is_denied() {
            self.ack_acting();
            return;
        }
        let mark = Quarantine::denied(why, self.rules.fold.fingerprint().into());
        self.known().header.quarantine = Some(mark);
        self.administrative = Some(PutKind::Quarantine("denied"));
    }

    /// Drops what was folded and is not stored, for a mark that goes on what is.
    fn back_to_stored(&mut self) {
        let run = self.run.take();
        let fold = self.rules.fold.clone();
        let base = self.known();
        if let Some(stored) = base.stored.clone() {
            // Without a run all that was folded since changed nothing; a run that began again did not
            // begin with what is stored.
            if let Some(run) = run {
                base.rebase |= run.header.version.is_none() && stored.version.is_some();
                base.state = run.state;
            }
            // Of a state that is kept although nobody reads it, how its stream stands is known.
            let deleted = if base.unreadable.is_some() {
                base.header.deleted
            } else {
                stored.deleted
            };
            base.header = Header { deleted, ..stored };
        } else {
            base.header = Header::new();
            base.state = fold.initial();
        }
        self.changed = false;
        self.administrative = None;
        self.retrying = false;
        self.read_wanted = false;
        self.read_since_put = false;
        self.look_wanted = false;
        self.short = None;
        self.probe_wanted = false;
        self.unreadable = None;
        self.not_yet = None;
    }

    /// A stored mark settles what stands behind it, unless other code left it: then this code tries.
    fn act_on_mark(&mut self) -> Option<Next> {
        if self.administrative.is_some() {
            return None;
        }
        let mark = self.known().header.quarantine.clone()?;
        self.noted = true;
        if self.probe_wanted {
            return Some(self.probe());
        }
        self.ack_acting();
        if self.unsettled() == 0 {
            return Some(Next::Idle);
        }
        if self.mark_read < Some(self.newest) {
            return Some(self.load(true));
        }
        let kind = mark.kind();
        let again = match kind {
            MarkKind::Quarantined => !mark.by.contains(self.rules.fold.fingerprint()),
            MarkKind::Diverged => false,
            // It was mended.
            MarkKind::Corrupt => self.known().broken.is_none(),
            MarkKind::Denied => self.has(Hint::Note),
        };
        if again {
            let restarts = self.rules.restarts();
            let base = self.known();
            base.header.quarantine = None;
            // Behind such a mark a deletion and a revival may have gone by.
            let known = base.header.version.is_some();
            self.probe_wanted = restarts && known && kind != MarkKind::Quarantined;
            self.administrative = Some(PutKind::Repair);
            self.unreadable = None;
            self.read_wanted = true;
            self.retrying = true;
            return None;
        }
        for (revision, waiting) in mem::take(&mut self.waiting) {
            let park = revision == mark.at && kind == MarkKind::Quarantined;
            self.verdicts.extend(waiting.tokens.into_iter().map(|token| {
                if park {
                    Verdict::Park(token, mark.reason.clone())
                } else {
                    Verdict::Ack(token)
                }
            }));
        }
        self.clear_suspects();
        self.ack_hints(&[Hint::Read, Hint::Note]);
        if matches!(kind, MarkKind::Diverged | MarkKind::Corrupt) {
            self.ack_hints(&[Hint::Look]);
        }
        if self.hints.is_empty() {
            return Some(Next::Idle);
        }
        // A deletion ends the wait for the event that could not be folded.
        Some(self.look())
    }

    /// What asks for a read to the end. A note without a mark means that whoever cleared it may have
    /// left owing what others had settled by it.
    fn act_on_hints(&mut self) -> Option<Next> {
        if self.changed || (self.administrative.is_some() && !self.retrying) {
            // First what is at hand.
            return None;
        }
        if self.has(Hint::Note) {
            if self.mark_read < Some(self.newest) && self.administrative.is_none() {
                return Some(self.load(true));
            }
            self.noted = true;
            self.owing = true;
        }
        let mut heeded = self.drain_hints(&[Hint::Read, Hint::Note]);
        self.read_wanted |= !heeded.is_empty();
        self.acting.append(&mut heeded);
        None
    }

    fn probe(&mut self) -> Next {
        self.under_way = Some(UnderWay::Probe);
        Next::Do(Effect::Read {
            from: 0,
            limit: ReadLimit {
                events: 1,
                ..self.rules.read
            },
        })
    }

    fn look(&mut self) -> Next {
        // What follows from the look is decided on the store's own word, not on a cached base.
        if self.has(Hint::Look) && self.mark_read < Some(self.newest) && !self.changed && self.administrative.is_none()
        {
            return self.load(true);
        }
        self.look_wanted = false;
        let mut looks = self.drain_hints(&[Hint::Look]);
        let hinted = !looks.is_empty();
        self.acting.append(&mut looks);
        self.under_way = Some(UnderWay::Look {
            high: self.newest,
            hinted,
        });
        Next::Do(Effect::Look)
    }

    /// Settles deliveries that what is durable covers, and those that the stream no longer has.
    fn settle(&mut self) {
        let unreadable = self.unreadable.take();
        if self.base.as_ref().is_some_and(|base| base.header.version.is_none()) {
            self.reconsider_suspects();
        }
        let Some(base) = self.base.as_ref() else {
            return;
        };
        let replaces = base.rebase && !base.header.deleted;
        let unsaved = self.changed || self.administrative.is_some();
        let header = if unsaved {
            base.stored.as_ref().unwrap_or(&base.header)
        } else {
            &base.header
        };
        let covered = match (replaces || base.broken.is_some(), unsaved) {
            // What is stored is about to be replaced, or is no replica: it covers nothing.
            (true, _) => None,
            (false, true) => base.durable(),
            // All that is folded and not stored changed nothing.
            (false, false) => base.header.version,
        };
        let seen = self.waiting.get(&covered.unwrap_or(Revision::MAX));
        let last = header.event.as_ref().filter(|_| header.version == covered);
        let same = seen.and_then(|w| w.event.as_ref()).zip(last);
        let verified = same.is_some_and(|(event, last)| event.id == last.id);
        if let Some(covered) = covered {
            let above = self.waiting.split_off(&(covered + 1));
            for (revision, waiting) in mem::replace(&mut self.waiting, above) {
                if suspicious(header, revision, waiting.event.as_ref()) {
                    self.suspects.push((revision, waiting));
                } else {
                    let unwritten = waiting
                        .tokens
                        .iter()
                        .filter(|token| Some(**token) > self.written)
                        .count();
                    self.tally.settled_without_write += unwritten as u64;
                    self.verdicts.extend(waiting.tokens.into_iter().map(Verdict::Ack));
                }
            }
        }
        let version = base.header.version;
        if verified && let Some(base) = self.base.as_mut() {
            base.verified = true;
        }
        let Some((high, below)) = unreadable else { return };
        // What was folded before it comes first.
        if unsaved {
            self.unreadable = Some((high, below));
            return;
        }
        let hopeless = self.not_yet.as_ref().and_then(NotYet::hopeless);
        for (revision, waiting) in self.waiting.range_mut(crate::event::next_after(version)..) {
            let high = match hopeless {
                _ if *revision < below => high,
                Some(waited) if waiting.event.is_none() => waited,
                _ => continue,
            };
            let (gone, newer): (Vec<_>, Vec<_>) = waiting.tokens.drain(..).partition(|token| *token <= high);
            waiting.tokens = newer;
            self.tally.settled_without_write += gone.len() as u64;
            self.verdicts.extend(gone.into_iter().map(Verdict::Ack));
        }
        self.waiting.retain(|_, waiting| !waiting.tokens.is_empty());
        if self.waiting.range(crate::event::next_after(version)..).next().is_none() {
            self.not_yet = None;
        }
    }

    /// The version to compare with the stream, when deliveries do not fit the replica.
    fn suspicion(&self) -> Option<Revision> {
        if self.suspects.is_empty() || self.administrative.is_some() {
            return None;
        }
        self.base.as_ref().and_then(|base| base.header.version)
    }

    fn fold_in_hand(&mut self) {
        let base = self.known();
        let (rebase, deleted, mut next) = (base.rebase, base.header.deleted, base.next());
        // The first fold on a base is on one that was seen to be this stream's: a read, one event
        // earlier than the one in hand, shows it.
        let known = base.verified || base.header.version.is_none();
        if !known || rebase || deleted || self.read_wanted || self.administrative.is_some() {
            return;
        }
        let mut events = Vec::new();
        while let Some(event) = self.waiting.get(&next).and_then(|w| w.event.clone()) {
            events.push(event);
            next += 1;
            if events.len() >= self.rules.read.events {
                break;
            }
        }
        // Far behind, a read settles what has not come yet, too; with enough in hand the put is
        // worth itself, and what a read would bring need not be brought twice.
        let reads_on = self.behind && !self.read_since_put && events.len() < WORTH_A_PUT;
        if !events.is_empty() && !reads_on {
            self.fold(events, false);
        }
    }

    /// The stream was read, and ends below `below`: deliveries of what stands there or above are
    /// waited for.
    fn found_nothing(&mut self, high: Token, below: Revision, now: Duration) {
        self.unreadable = Some((high, below));
        let next = self.known().next();
        let mut above = self.waiting.range(below.max(next)..);
        if above.all(|(_, w)| w.tokens.iter().all(|token| *token > high)) {
            self.not_yet = None;
            return;
        }
        // A stream that grows is on its way to what is waited for; what came after the last wait
        // began waits as long.
        let (since, waited, reads) = match self.not_yet {
            Some(n) if below > n.below => (now, high, 0),
            Some(n) if n.hopeless().is_some() => (now, high, n.reads),
            Some(n) => (n.since, n.waited, n.reads + 1),
            None => (now, high, 0),
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << reads.min(10)).min(LONGEST_PAUSE);
        self.not_yet = Some(NotYet {
            high,
            below,
            since,
            waited,
            reads,
            due: now + pause,
        });
    }

    /// When the stream is read again for what was not readable yet.
    fn reads_again_at(&self) -> Option<Duration> {
        let next = self.base.as_ref().map_or(0, Base::next);
        let waits = self.waiting.range(next..).next().is_some();
        self.not_yet.filter(|_| waits).map(|n| n.due)
    }

    fn wants_read(&self, now: Duration) -> bool {
        let Some(base) = self.base.as_ref() else {
            return false;
        };
        // What cannot be read is replaced by all of its history or not at all.
        if base.falls_short() && !base.header.deleted {
            return true;
        }
        if self.read_since_put && (self.changed || self.administrative.is_some()) {
            // A fresh start is put only when it is not behind what it replaces.
            return base.rebase && self.read_wanted && base.header.version < base.durable();
        }
        let searched = self.unreadable.map_or(0, |(high, _)| high);
        let waits = self.not_yet.filter(|n| now < n.due).map_or(0, |n| n.high);
        let searched = searched.max(waits);
        self.read_wanted
            || self
                .waiting
                .range(base.next()..)
                .any(|(_, w)| w.tokens.iter().any(|token| *token > searched))
    }

    fn read_on(&mut self) -> Next {
        let limit = self.rules.read;
        let high = self.newest;
        let base = self.known();
        // One event more, the first time: it shows whether this is still the stream it was.
        let verifies = !base.verified && !base.rebase && base.header.version.is_some();
        let from = match base.header.version {
            Some(version) if verifies => version,
            _ if base.rebase && base.header.deleted => 0,
            version => crate::event::next_after(version),
        };
        let next = base.next();
        // What follows is in hand: only what it follows is to be seen.
        let in_hand = self.waiting.get(&next).is_some_and(|w| w.event.is_some());
        let only_verifies = verifies && in_hand && !self.read_wanted && !self.behind;
        let events = if only_verifies {
            VERIFIES
        } else {
            limit.events.max(VERIFIES)
        };
        self.under_way = Some(UnderWay::ReadOn {
            from,
            high,
            only_verifies,
        });
        Next::Do(Effect::Read {
            from,
            limit: ReadLimit { events, ..limit },
        })
    }

    fn read(&mut self, from: Revision, high: Token, only_verifies: bool, mut slice: Slice, now: Duration) {
        if slice.presence != Presence::Present {
            self.read_wanted = false;
            self.behind = false;
            if self.known().header.deleted {
                self.unreadable = Some((high, Revision::MAX));
            } else {
                self.look_wanted = true;
            }
            return;
        }
        let base = self.known();
        if slice.ends_before(base.header.version) && !base.rebase {
            self.look_wanted = true;
        }
        let base = self.known();
        if base.header.version == Some(from) && !base.rebase {
            match slice.events.first() {
                Some(first) if first.revision == from => {
                    if base.header.event.as_ref().is_some_and(|e| e.id != first.id) {
                        return self.diverged(&other_event_at(from));
                    }
                    slice.events.remove(0);
                }
                // The replica's last event cannot be read any more; what is above it can.
                Some(_) => {}
                None => self.look_wanted = true,
            }
            self.known().verified = true;
        }
        if !only_verifies {
            self.tally.gap_reads += 1;
            self.tally.gap_events += slice.events.len() as u64;
        }
        let (fold, restarts) = (self.rules.fold.clone(), self.rules.restarts());
        let version = self.known().header.version;
        // A hole before the first event is minded below; of those between, as the policy has it.
        let between: Vec<usize> = slice
            .holes(version)
            .map(|(index, _)| index)
            .filter(|at| *at > 0)
            .collect();
        let below = slice.last.map_or(Revision::MAX, |last| last + 1);
        let Slice {
            mut events, mut end, ..
        } = slice;
        if let (Some(first), Some(last)) = (between.first(), between.last()) {
            if self.rules.on_lost_history == OnLostHistory::Partial {
                events.drain(..*last);
            } else {
                events.truncate(*first);
                end = false;
                self.read_wanted = true;
            }
        }
        let base = self.known();
        if base.header.deleted && !events.is_empty() {
            base.header.deleted = false;
            if restarts {
                self.start_over();
                return;
            }
            if base.unreadable.is_some() {
                base.refold(&*fold);
            }
        }
        if self.replaces_another(&events) {
            return;
        }
        let proven = Some(below) > self.known().durable();
        let Some(from_scratch) = self.handle_lost_history(&events, end && proven) else {
            return;
        };
        if !events.is_empty() {
            self.read_since_put = true;
            self.fold(events, from_scratch);
        }
        if !end {
            return;
        }
        let base = self.known();
        if base.falls_short() && !matches!(self.administrative, Some(PutKind::Quarantine(_))) {
            if proven {
                let next = self.known().next();
                return self.lost(next, "nothing");
            }
            // Not all of it is readable yet, or it is another stream: a look tells.
            self.look_wanted = true;
            return;
        }
        self.found_nothing(high, below, now);
        self.read_wanted = false;
        self.behind = false;
    }

    /// Whether a refold comes upon another event than the one at the version of what it replaces.
    fn replaces_another(&mut self, events: &[RawEvent]) -> bool {
        let base = self.known();
        let stored = base.stored.as_ref().filter(|_| base.unreadable.is_some());
        let last = stored.and_then(|stored| stored.version.zip(stored.event.as_ref()));
        let Some((version, id)) = last.map(|(version, event)| (version, event.id)) else {
            return false;
        };
        let other = events.iter().any(|e| e.revision == version && e.id != id);
        if other {
            self.diverged(&other_event_at(version));
        }
        other
    }

    /// Deals with history that can no longer be read and that the replica does not cover. Says
    /// whether folding starts from nothing; `None` when it does not go on.
    fn handle_lost_history(&mut self, events: &[RawEvent], end: bool) -> Option<bool> {
        let policy = self.rules.on_lost_history;
        let administrative = self.administrative.is_some();
        let base = self.known();
        let on_purpose = administrative && base.rebase && base.unreadable.is_none();
        let next = base.next();
        // A refold in place of a state that cannot be read begins where that one began.
        let replaced = base.stored.as_ref().filter(|_| base.falls_short());
        let due = match replaced {
            Some(stored) if base.header.version.is_none() => stored.first,
            _ => next,
        };
        let replaces = replaced.is_some();
        let begins = base.header.version.is_none();
        let lost = match events.first() {
            // A stream that begins a new life on purpose begins where that can be read.
            Some(first) => first.revision > due && !(on_purpose && begins),
            // Nothing to fold again from, and the stored state cannot be used.
            None => end && replaces,
        };
        if !lost {
            return Some(false);
        }
        if policy == OnLostHistory::Partial && !events.is_empty() && !replaces {
            return Some(!begins);
        }
        let readable = events
            .first()
            .map_or("nothing".to_owned(), |e| format!("revision {} on", e.revision));
        self.lost(due, &readable);
        None
    }

    fn lost(&mut self, from: Revision, readable: &str) {
        self.read_wanted = false;
        let what = format!("revisions from {from} on cannot be read any more, only {readable}");
        self.poisoned(from, &FoldError::Failed(what), "lost_history");
    }

    /// Folds events that follow the base, or, `from_scratch`, that follow nothing that is left.
    fn fold(&mut self, events: Vec<RawEvent>, from_scratch: bool) {
        let (fold, commands) = (self.rules.fold.clone(), self.rules.commands);
        let base = self.known();
        let start = if from_scratch {
            (types::restarted(&base.header), fold.initial())
        } else {
            (base.header.clone(), base.state.clone())
        };
        let folded = fold_run(&*fold, start.clone(), &events, commands);
        let applied = folded.applied;
        let stopped = folded.stopped.map(|(index, error)| (events[index].revision, error));
        // With not even one event folded the replica stays at its last good version.
        if applied > 0 {
            base.header = folded.header;
            base.state = folded.state;
            // From scratch the version still rises, so the put stays a fold's own.
            self.changed |= folded.changed || from_scratch || base.rebase;
            self.tally.applied += applied as u64;
            if from_scratch {
                self.run = None;
            }
            let run = self.run.get_or_insert_with(|| Run {
                header: start.0,
                state: start.1,
                storable: None,
                events: Vec::new(),
                created: Vec::new(),
            });
            run.events.extend(events.into_iter().take(applied));
            if self.known().rebase {
                self.let_events_go();
            }
            if !self.changed {
                self.run = None;
            }
        }
        if let Some((revision, error)) = stopped {
            self.read_wanted = false;
            self.poisoned(revision, &error, error.class());
        }
    }

    /// A refold reads on to the version of what it replaces, however long that is: it holds its
    /// state, and not all of its stream.
    fn let_events_go(&mut self) {
        let (Some(base), Some(run)) = (&self.base, &mut self.run) else {
            return;
        };
        if form_of(&self.rules, &self.stream, &base.header, &base.state).is_ok() {
            run.storable = Some((base.header.clone(), base.state.clone()));
            run.let_go(base.durable());
        }
    }

    /// Whether it holds events that it has read or folded and not put.
    pub fn holds_events(&self) -> bool {
        self.run.as_ref().is_some_and(|run| !run.events.is_empty())
    }

    fn poisoned(&mut self, at: Revision, error: &FoldError, class: &'static str) {
        let by = self.failed_by(at);
        let base = self.known();
        if !base.falls_short() {
            let reason = format!("Failed to {error} (revision {at}).");
            base.header.quarantine = Some(Quarantine { at, reason, by });
            self.administrative = Some(PutKind::Quarantine(class));
            return;
        }
        // The last good replica stays as it is, for code that can read it.
        let unread = base.unreadable.clone().unwrap_or_default();
        self.back_to_stored();
        let reason = format!(
            "Failed to read the stored state ({unread}), which stays as it is, for folding it again failed to {error} \
             (revision {at}); deploy code that reads it, or run `projector redrive --from-start {}`.",
            self.stream
        );
        let at = self.known().next();
        let by = self.failed_by(at);
        self.known().header.quarantine = Some(Quarantine { at, reason, by });
        self.administrative = Some(PutKind::Quarantine("unreadable_state"));
    }

    /// This code, and all that failed before it on the same revision.
    fn failed_by(&self, at: Revision) -> Fingerprints {
        let same = |mark: &&Quarantine| mark.at == at && mark.kind() == MarkKind::Quarantined;
        let before = self.stored_mark().filter(same).map(|mark| mark.by.clone());
        before.unwrap_or_default().with(self.rules.fold.fingerprint())
    }

    fn diverged(&mut self, what: &str) {
        let by = self.rules.fold.fingerprint().into();
        let stream = self.stream.clone();
        // What was folded ahead of the store was folded on something that is not this stream.
        self.back_to_stored();
        self.known().header.quarantine = Some(Quarantine::diverged(what, &stream, by));
        self.administrative = Some(PutKind::Diverged);
    }

    fn checked(&mut self, at: Revision, slice: &Slice) {
        match slice.events.first() {
            Some(event) if event.revision == at => {
                let same = self.known().header.event.as_ref().is_none_or(|e| e.id == event.id);
                if same {
                    self.known().verified = true;
                    self.clear_suspects();
                } else {
                    self.diverged(&other_event_at(at));
                }
            }
            // Truncated, or the stream is shorter than the replica: the look tells which.
            _ => {
                let suspects = self.suspects.drain(..).flat_map(|(_, waiting)| waiting.tokens);
                self.acting.extend(suspects.map(|token| (token, Hint::Look)));
                self.look_wanted = true;
            }
        }
    }

    fn probed(&mut self, slice: &Slice) {
        self.probe_wanted = false;
        let restarts = self.rules.restarts();
        let first = slice.events.first().map(|event| event.revision);
        let base = self.known();
        let mark = base.header.quarantine.as_ref();
        let outlived = mark.is_some_and(|mark| first.is_none_or(|first| first > mark.at));
        let starts_over =
            restarts && base.header.version.is_some() && first.is_none_or(|first| first > base.header.first);
        if outlived {
            base.header.quarantine = None;
            self.retrying = true;
        }
        if starts_over {
            self.start_over();
        } else if outlived {
            self.administrative = Some(PutKind::Repair);
            self.unreadable = None;
            self.read_wanted = true;
        }
    }

    /// Folds from the first readable event; what was folded so far is replaced when that is done. A mark
    /// is tried with it.
    fn start_over(&mut self) {
        let fold = self.rules.fold.clone();
        let base = self.known();
        let marked = base.header.quarantine.take().is_some();
        base.restart(&*fold);
        self.retrying |= marked;
        self.administrative = Some(PutKind::Repair);
        self.run = None;
        self.unreadable = None;
        self.read_since_put = false;
        self.read_wanted = true;
    }

    fn looked(&mut self, standing: &Standing, high: Token, hinted: bool, now: Duration) {
        let fold = self.rules.fold.clone();
        let (restarts, removes) = (self.rules.restarts(), self.rules.on_deletion == OnDeletion::Remove);
        let stale = self.mark_read < Some(high);
        let short = self.short.take();
        let base = self.known();
        match standing {
            Standing::Live(newest) => {
                let newest = newest.as_ref().map(|n| n.revision);
                let version = if base.unreadable.is_some() {
                    base.durable()
                } else {
                    base.header.version.filter(|_| !base.rebase)
                };
                if newest.is_some() && newest < version {
                    let text = newest.map_or_else(String::new, |n| n.to_string());
                    let what = format!("the stream ends at revision {text}, before the replica's version");
                    return self.contradicted(&what, short, now);
                }
                if base.header.deleted {
                    if newest > base.header.version {
                        self.read_wanted = true;
                    } else {
                        // Its old events are readable again.
                        base.header.deleted = false;
                        let unreadable = base.unreadable.is_some();
                        let dropped = base.rebase && !unreadable;
                        if unreadable && !restarts {
                            base.refold(&*fold);
                            self.read_wanted = true;
                        }
                        self.administrative = Some(PutKind::Repair);
                        if restarts || dropped {
                            self.start_over();
                        }
                    }
                } else {
                    // A deletion and a revival may have gone by unseen.
                    let marked = base.header.quarantine.is_some();
                    let known = base.header.version.is_some();
                    self.probe_wanted = marked || (restarts && known && hinted);
                    // An item stands against a task that still holds events from before.
                    self.read_wanted |= restarts && hinted && !known;
                }
            }
            Standing::SoftDeleted | Standing::Tombstoned => {
                if !base.header.deleted || base.header.quarantine.is_some() {
                    // A state that cannot be read is kept as it is, like any other.
                    let kept = base.stored.clone().filter(|_| base.unreadable.is_some());
                    let keeps = kept.is_some();
                    if let Some(stored) = kept {
                        base.header = stored;
                        base.state = fold.initial();
                    }
                    base.header.deleted = true;
                    base.header.quarantine = None;
                    if removes {
                        base.state = fold.initial();
                    }
                    if keeps {
                        self.changed = false;
                        self.run = None;
                    }
                    self.administrative = Some(PutKind::Deletion);
                } else if stale {
                    // Another task may have written since: only the store's own word settles.
                    self.load_wanted = true;
                }
                self.read_wanted = false;
                self.unreadable = Some((high, Revision::MAX));
            }
            Standing::Missing => {
                if base.durable().is_some() || base.header.version.is_some() {
                    return self.contradicted("the stream is not in the event store", short, now);
                }
                self.read_wanted = false;
                self.found_nothing(high, 0, now);
            }
        }
    }

    /// The stream does not have what was folded from it. A new leader may not show it yet, and a
    /// deposed one never will: it is believed when it has stayed so for longer than an election takes.
    fn contradicted(&mut self, what: &str, short: Option<(Duration, Duration)>, now: Duration) {
        let since = short.map_or(now, |(since, _)| since);
        if now < since + SHOWN_WITHIN {
            self.short = Some((since, now + LONGEST_PAUSE));
        } else {
            self.diverged(what);
        }
    }

    fn stored(&mut self, kind: PutKind, adrift: bool, high: Token, now: Duration) {
        let removes = self.rules.on_deletion == OnDeletion::Remove;
        if matches!(kind, PutKind::Quarantine(_) | PutKind::Diverged) {
            self.read_wanted = false;
            self.noted = true;
        }
        if let Some(mut run) = self.run.take() {
            run.let_go(self.known().durable());
            self.tally.durable.append(&mut run.created);
        }
        self.changed = false;
        self.administrative = None;
        self.read_since_put = false;
        self.last_put = Some(now);
        self.dirty_since = None;
        // What is stored is not what is in hand: whatever comes next begins with reading it.
        self.mark_read = Some(high).filter(|_| !adrift);
        self.written = Some(high);
        let goes_on = self.retrying && self.read_wanted;
        let cleared = self.stored_mark().is_some() && self.known().header.quarantine.is_none();
        let base = self.known();
        base.stored = Some(base.header.clone());
        if !adrift {
            // A state that was dropped is not one to fold on.
            base.rebase = base.header.deleted && removes && base.header.version.is_some();
            base.unreadable = None;
        }
        if goes_on {
            base.header.quarantine = None;
            self.administrative = Some(PutKind::Repair);
        } else if cleared {
            // Another task may have settled a delivery by the mark after the stream was read and
            // before the mark was cleared: what came in between is read now.
            self.read_wanted = true;
            self.owing = true;
        } else if !self.read_wanted {
            self.owing = false;
        }
        self.retrying = goes_on;
    }

    /// What a put of folded events waits for, if it does.
    fn waits_to_put(&self, now: Duration) -> Option<Next> {
        if self.administrative.is_some() {
            return None;
        }
        let due = self.last_put.map(|last| last + self.rules.min_write_interval);
        match due {
            Some(due) if now < due => Some(Next::WaitUntil(due)),
            _ if self.held_back => Some(Next::HeldBack),
            _ => None,
        }
    }

    /// While its put waits, what comes is gathered and folded by as much as one read brings: each fold
    /// takes a copy of the state. Whatever asks for more than a fold is not kept waiting.
    fn gathers(&self, now: Duration) -> Option<Next> {
        let base = self.base.as_ref().filter(|base| self.changed && !base.rebase)?;
        let asks = self.read_wanted || self.look_wanted || self.probe_wanted || self.short.is_some();
        let page = self.rules.read.events.saturating_sub(1);
        if asks || !self.hints.is_empty() || self.waiting.range(base.next()..).nth(page).is_some() {
            return None;
        }
        self.waits_to_put(now)
    }

    fn put(&mut self, now: Duration) -> Next {
        if let Some(next) = self.waits_to_put(now) {
            return next;
        }
        if self.retrying && self.read_wanted && self.administrative == Some(PutKind::Repair) {
            let base = self.known();
            let at = base.next();
            base.header.quarantine = Some(Quarantine {
                at,
                reason: "It is being folded again.".into(),
                by: "".into(),
            });
        }
        let keeps = self.keeps_stored();
        let body = match self.body() {
            _ if keeps => Body::Stored,
            Ok(body) => body,
            Err(error) => self.back_to_storable(&error),
        };
        let keeps = body == Body::Stored;
        let (rebase, marked) = (self.known().rebase, self.stored_mark().is_some());
        let kind = match self.administrative {
            Some(kind) => kind,
            None if rebase => PutKind::Repair,
            None => PutKind::Fold,
        };
        let base = self.known();
        let demand = match &base.stored {
            None => Demand::Absent,
            Some(stored) if kind == PutKind::Fold => Demand::Older {
                generation: stored.generation,
            },
            Some(_) if base.broken.as_ref().is_some_and(|b| b.demand() == Demand::Broken) => Demand::Broken,
            Some(stored) => {
                base.header.generation = stored.generation + 1;
                Demand::Exactly {
                    generation: stored.generation,
                    version: stored.version,
                    deleted: stored.deleted,
                }
            }
        };
        let header = base.header.clone();
        self.under_way = Some(UnderWay::Put {
            kind,
            adrift: keeps && rebase,
            high: self.newest,
        });
        let kind = match kind {
            PutKind::Quarantine(_) | PutKind::Diverged if marked => PutKind::Again,
            kind => kind,
        };
        Next::Do(Effect::Put(
            Box::new(Put {
                stream: self.stream.clone(),
                header,
                body,
                demand,
            }),
            kind,
        ))
    }

    /// Whether the put is a mark on what is stored as it is, or says something else of a state that
    /// stays though nobody can read it.
    fn keeps_stored(&self) -> bool {
        let Some(base) = &self.base else { return false };
        let Some(stored) = &base.stored else { return false };
        let same = base.header.version == stored.version && !self.changed;
        match self.administrative {
            Some(PutKind::Quarantine(_) | PutKind::Diverged) => same,
            Some(_) => {
                let dropped = base.header.deleted && self.rules.on_deletion == OnDeletion::Remove;
                same && base.unreadable.is_some() && !dropped
            }
            None => false,
        }
    }

    fn body(&self) -> Result<Body, FoldError> {
        let base = self.base.as_ref().expect("a put has a base");
        form_of(&self.rules, &self.stream, &base.header, &base.state)
    }

    /// Folds again from where the run began, up to the last event whose state can be stored, and
    /// quarantines the one after it.
    fn back_to_storable(&mut self, error: &FoldError) -> Body {
        let Some(run) = self.run.take() else {
            // Stored before, by other code or under another limit, and not storable now: it stays as it
            // is, and no event is to blame.
            if self.administrative.is_some() && self.stays_as_stored() {
                return Body::Stored;
            }
            let next = self.known().next();
            return self.marked_as_stored(next, error);
        };
        let rules = self.rules.clone();
        let begins = run.begins();
        let (mut good, mut bad) = (0, run.events.len());
        let at = |n: usize| fold_run(&*rules.fold, begins.clone(), &run.events[..n], rules.commands);
        let mut best = begins.clone();
        let Ok(mut body) = form_of(&rules, &self.stream, &best.0, &best.1) else {
            // Not even what it began with, which other code has stored: that stays as it is.
            let blamed = run
                .events
                .first()
                .map_or(crate::event::next_after(begins.0.version), |event| event.revision);
            self.run = Some(run);
            return self.marked_as_stored(blamed, error);
        };
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            let folded = at(middle);
            match form_of(&rules, &self.stream, &folded.header, &folded.state) {
                Ok(storable) => {
                    good = middle;
                    body = storable;
                    best = (folded.header, folded.state);
                }
                Err(_) => bad = middle,
            }
        }
        let blamed = run.events.get(good).map_or(self.known().next(), |event| event.revision);
        let base = self.known();
        (base.header, base.state) = best;
        self.run = Some(Run {
            events: run.events.into_iter().take(good).collect(),
            ..run
        });
        self.read_wanted = false;
        self.act_again();
        // What is folded in place of a state that cannot be read does not replace it half done.
        let keeps = self.known().falls_short();
        self.poisoned(blamed, error, error.class());
        if keeps { Body::Stored } else { body }
    }

    /// Quarantines an event, on what is stored as it is.
    fn marked_as_stored(&mut self, at: Revision, error: &FoldError) -> Body {
        self.act_again();
        self.back_to_stored();
        self.poisoned(at, error, error.class());
        if self.known().stored.is_some() {
            Body::Stored
        } else {
            Body::Nothing
        }
    }

    /// A mark takes the place of what was to be put, and how the stream stands was seen before: what asked
    /// for that is heeded behind it, for a deletion, or a life that followed one, ends the mark.
    fn act_again(&mut self) {
        self.hints.append(&mut self.acting);
    }

    /// Whether what an administrative put says leaves the stored state and its version as they are.
    fn stays_as_stored(&self) -> bool {
        let base = self.base.as_ref().filter(|base| !base.rebase);
        // A version that moved without a change would be read again and again.
        base.is_some_and(|base| base.stored.is_some() && base.header.version == base.durable())
    }

    /// Nothing is left to do but to store, in time, a version that moved without a change.
    fn flush_or_idle(&mut self, now: Duration) -> Next {
        let base = self.known();
        if base.rebase || base.header.version == base.durable() {
            self.run = None;
            return Next::Idle;
        }
        let due = *self.dirty_since.get_or_insert(now) + self.rules.keep_flush;
        if now < due {
            return Next::WaitUntil(due);
        }
        self.put(now)
    }
}

fn other_event_at(revision: Revision) -> String {
    format!("the stream has another event at revision {revision} than the replica was folded from")
}

/// Whether a delivery at or below the version does not look like one of the events folded in.
fn suspicious(header: &Header, revision: Revision, event: Option<&RawEvent>) -> bool {
    let (Some(event), Some(last)) = (event, header.event.as_ref()) else {
        return false;
    };
    if header.version == Some(revision) {
        event.id != last.id
    } else {
        event.created > last.at
    }
}

fn form_of(rules: &Rules, stream: &str, header: &Header, state: &State) -> Result<Body, FoldError> {
    let dropped = header.deleted && rules.on_deletion == OnDeletion::Remove;
    if header.version.is_none() || dropped {
        return Ok(Body::Nothing);
    }
    (rules.form)(stream, header, rules.fold.encode(state)?)
}
