//! The lanes of one projection and all that belongs to them: work in, effects out, completions in,
//! what is settled out.
//!
//! Nothing here waits and nothing here knows of a group. Work comes from its deliveries and from any
//! reader of the source alike; whoever wants to hear that a piece of work is settled hands in a
//! [`Ticket`] with it. Invariants: I3 settled (a ticket is given back for a lane's verdict and for
//! nothing else) and I5 isolation (what a lane waits for, it alone waits for).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use tracing::{debug, error, warn};

use self::{budget::Budget, looks::Looks};
use super::{
    batching::Batching,
    effects::{Failures, Trouble},
    lane::{Arrival, Effect, Lane, LaneBase, LaneRules, LaneToken, Next, Outcome, PutKind, Step, Verdict},
    meter::{Count, LaneState, Level, Meter, Timing},
    replica_cache::ReplicaCache,
    traced::Runs,
    write_limit::WriteLimit,
};
use crate::{event::RawEvent, replica::Marked};

mod budget;
mod looks;

#[cfg(test)]
pub(super) use budget::HELD_STATES;

/// How often time alone moves things: outage, watchdog, gauges.
const TICK: Duration = Duration::from_millis(500);
/// `BatchGetItem`'s limit.
const LOAD_BATCH: usize = 100;
/// Batches of cold replicas read at once; more gains nothing while each fills by itself.
const LOADS: usize = 4;
/// The time in which quarantines for one reason are counted as one storm.
const STORM_WINDOW: Duration = Duration::from_mins(1);
/// Noted marks that are looked at again at once; with a tick's pace some eight a second, so that a
/// thousand of them take two minutes and hardly a place of what streams that move need.
const LOOKS: usize = 4;
/// How long a denial waits for others before it becomes a mark: permissions that are taken away from all
/// streams show on all that move.
const DENIED_TOGETHER: Duration = Duration::from_secs(2);
/// Tells times of one process apart; see [`Lanes::begin_time`].
static TIMES: AtomicU64 = AtomicU64::new(1);

/// What an event takes beside its bodies: its id, type, place in a lane.
const EVENT_BYTES: usize = 512;

/// What an event takes in memory.
fn event_bytes(event: &RawEvent) -> usize {
    event.data.len() + event.metadata.len() + EVENT_BYTES
}

/// What the lanes of one projection are and may take.
#[derive(Clone, Debug)]
pub struct LanesSpec {
    /// The fold and its policies.
    pub rules: Arc<LaneRules>,
    /// Bytes of deliveries, reads and writes under way at most; more waits at the stores.
    pub memory: usize,
    /// Reads of streams in flight at most.
    pub reads: usize,
    /// Puts in flight at most; fewer while the table throttles.
    pub writes: usize,
    /// Quarantines for one reason within a minute that stop the projection.
    pub quarantine_limit: usize,
}

/// Something that a lane is to look at. What nobody waits for any more is still looked at.
#[derive(Clone, Debug)]
pub struct Work {
    /// Its stream.
    pub stream: Arc<str>,
    /// What is known to have happened to it.
    pub arrival: Arrival,
    /// When that was written to the source.
    pub at: DateTime<Utc>,
}

/// Names a piece of work to whoever handed it in, and says nothing to anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A piece of work with a ticket is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Its ticket.
    pub ticket: Ticket,
    /// Why it is to be parked instead of acknowledged.
    pub park: Option<String>,
}

/// Why lanes cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// Too many quarantines for one reason; the text says which.
    Storm(String),
    /// Only an operator can help.
    Operator(String),
    /// An effect panicked; where and how.
    Panicked(String),
}

/// What is to be started.
pub(super) enum Start {
    /// Load many replicas at once.
    Load(Vec<Arc<str>>),
    /// Carry out one effect.
    One {
        stream: Arc<str>,
        class: Class,
        effect: Effect,
        failures: Failures,
    },
}

/// What came of it.
pub(super) enum Done {
    One {
        stream: Arc<str>,
        class: Class,
        /// Bytes that the effect held while it was under way.
        bytes: usize,
        outcome: Outcome,
    },
    Loaded(Vec<(Arc<str>, Outcome)>),
    Panicked(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Load,
    Read,
    Write,
}

/// Work that is not settled.
#[derive(Clone, Copy, Debug)]
struct Held {
    ticket: Option<Ticket>,
    bytes: usize,
    /// It is a look at a noted mark.
    looks: bool,
}

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Since an epoch that never changes.
    pub(super) at: Duration,
    /// By the servers' clocks.
    pub(super) wall: DateTime<Utc>,
}

/// The lanes of one projection.
pub(super) struct Lanes {
    spec: Arc<LanesSpec>,
    cache: ReplicaCache,
    meter: Arc<dyn Meter>,
    table_trouble: Arc<Trouble>,
    by_stream: HashMap<Arc<str>, Lane>,
    /// Since when each lane has been at what it is at; kept apart, for figures only.
    since: HashMap<Arc<str>, Duration>,
    /// What is done for each stream, for traces only.
    runs: Runs,
    /// All work that is not settled, in order of arrival.
    held: BTreeMap<LaneToken, Held>,
    newest: LaneToken,
    settled: Vec<Settled>,
    touched: Vec<Arc<str>>,
    cold: VecDeque<Arc<str>>,
    reads: VecDeque<(Arc<str>, Effect)>,
    writes: VecDeque<(Arc<str>, Effect)>,
    /// Lanes that put when it is their turn, in its order; and which they are.
    held_back: VecDeque<Arc<str>>,
    are_held_back: HashSet<Arc<str>>,
    budget: Budget,
    loading: usize,
    reading: usize,
    writing: usize,
    write_limit: WriteLimit,
    batching: Batching,
    timers: BTreeSet<(Duration, Arc<str>)>,
    next_tick: Duration,
    storms: HashMap<&'static str, VecDeque<Duration>>,
    /// Which time it is: what was seen of streams in another one is to be seen again.
    time: u64,
    /// Noted marks to look at, and how many are being looked at.
    looks: Looks,
    looking: usize,
    /// Denials that wait whether they are a stream's own, and since when.
    denials: VecDeque<(Duration, Arc<str>, String)>,
    /// Lanes that are ahead of what is stored, where they are not to be any more.
    flushing: Option<HashSet<Arc<str>>>,
    moved: bool,
}

impl Lanes {
    pub(super) fn new(
        spec: Arc<LanesSpec>,
        cache: ReplicaCache,
        meter: Arc<dyn Meter>,
        table_trouble: Arc<Trouble>,
        runs: Runs,
    ) -> Self {
        let write_limit = WriteLimit::new(spec.writes);
        Self {
            spec,
            cache,
            meter,
            table_trouble,
            by_stream: HashMap::new(),
            since: HashMap::new(),
            runs,
            held: BTreeMap::new(),
            newest: 0,
            settled: Vec::new(),
            touched: Vec::new(),
            cold: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            held_back: VecDeque::new(),
            are_held_back: HashSet::new(),
            budget: Budget::default(),
            loading: 0,
            reading: 0,
            writing: 0,
            write_limit,
            batching: Batching::default(),
            timers: BTreeSet::new(),
            next_tick: TICK,
            storms: HashMap::new(),
            time: TIMES.fetch_add(1, Ordering::Relaxed),
            looks: Looks::default(),
            looking: 0,
            denials: VecDeque::new(),
            flushing: None,
            moved: false,
        }
    }

    /// When time alone is to move something.
    pub(super) fn wake(&self) -> Duration {
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.map_or(self.next_tick, |at| at.min(self.next_tick))
    }

    /// Whether nothing is held and nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.by_stream.is_empty()
    }

    /// Bytes of work, reads and writes under way, and of states that wait to be written. A read that is
    /// under way holds what it may bring.
    fn memory(&self) -> usize {
        let reading = self.reading.saturating_mul(self.spec.rules.read.bytes);
        self.budget.bytes(self.are_held_back.len()) + reading
    }

    /// Whether there is memory for more work. For one piece there always is: nothing stops for good
    /// because of an event that does not fit.
    pub(super) fn has_room(&self) -> bool {
        self.held.is_empty() || self.memory() < self.spec.memory
    }

    /// Whether an outcome has come since the last call.
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// What was settled since the last call, of what had a ticket.
    pub(super) fn take_settled(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.settled)
    }

    /// Lets lanes store at once what changed nothing: who ends now would leave that to the next event of
    /// each stream, and with it a deletion that another task has stored meanwhile.
    pub(super) fn flush(&mut self) {
        let ahead = self.by_stream.iter().filter(|(_, lane)| lane.is_ahead());
        let ahead: HashSet<_> = ahead.map(|(stream, _)| stream.clone()).collect();
        self.touched.extend(ahead.iter().cloned());
        self.flushing = Some(ahead);
    }

    /// Whether no lane is left that [`Self::flush`] was about.
    pub(super) fn is_flushed(&self) -> bool {
        self.flushing.as_ref().is_none_or(HashSet::is_empty)
    }

    /// Takes work. Without a ticket nobody hears that it is settled.
    pub(super) fn take(&mut self, work: Work, ticket: Option<Ticket>, now: &Now) {
        let Work { stream, arrival, at } = work;
        let age = (now.wall - at).to_std().unwrap_or_default();
        // Live, no delivery is behind; on a backlog reading on is for puts that would carry too little.
        let behind = age >= self.spec.rules.behind_after && self.batching.wasteful();
        let bytes = match &arrival {
            Arrival::Event(event) => event_bytes(event),
            _ => EVENT_BYTES,
        };
        if bytes > self.spec.memory {
            warn!(
                projection = self.spec.rules.fold.name(),
                %stream,
                bytes,
                "an event alone takes more than `memory`: raise it"
            );
        }
        let held = Held {
            ticket,
            bytes,
            looks: false,
        };
        self.hand_over(stream, held, arrival, behind);
    }

    fn hand_over(&mut self, stream: Arc<str>, held: Held, arrival: Arrival, behind: bool) {
        self.newest += 1;
        self.budget.work += held.bytes;
        self.looking += usize::from(held.looks);
        self.held.insert(self.newest, held);
        let rules = &self.spec.rules;
        let lane = self
            .by_stream
            .entry(stream.clone())
            .or_insert_with(|| Lane::new(stream.clone(), rules.clone()));
        self.runs.arrived(&stream, &arrival);
        lane.deliver(self.newest, arrival, behind);
        self.touched.push(stream);
    }

    /// Takes what came of an effect.
    pub(super) fn done(&mut self, done: Done, now: &Now) -> Option<Halt> {
        match done {
            Done::Panicked(how) => return Some(Halt::Panicked(how)),
            Done::One {
                stream,
                class,
                bytes,
                outcome,
            } => {
                match class {
                    Class::Load => self.loading -= 1,
                    Class::Read => {
                        self.reading -= 1;
                        if let Outcome::Read(slice) = &outcome {
                            let read = slice.events.iter().map(event_bytes).sum::<usize>();
                            self.budget.has_read(&stream, read);
                        }
                    }
                    Class::Write => {
                        self.writing -= 1;
                        self.budget.writes -= bytes;
                        self.budget.forget_read(&stream);
                        self.write_limit.answered(self.table_trouble.take_throttles());
                    }
                }
                self.outcome(stream, outcome, now);
            }
            Done::Loaded(outcomes) => {
                self.loading -= 1;
                for (stream, outcome) in outcomes {
                    self.outcome(stream, outcome, now);
                }
            }
        }
        None
    }

    fn outcome(&mut self, stream: Arc<str>, outcome: Outcome, now: &Now) {
        self.runs.answered(&stream, &outcome);
        let Some(lane) = self.by_stream.get_mut(&stream) else {
            return;
        };
        if let (Outcome::Denied(why), false) = (&outcome, lane.is_denied()) {
            self.denials.push_back((now.at, stream, why.clone()));
            return;
        }
        self.moved = true;
        lane.apply(outcome, now.at);
        self.touched.push(stream);
    }

    /// Denials become marks when they have been few for a while; many at once are nobody's mark.
    fn judge_denials(&mut self, now: &Now) -> Option<Halt> {
        if self.denials.len() > self.spec.quarantine_limit {
            let (_, stream, why) = self.denials.back()?;
            return Some(Halt::Operator(format!(
                "Failed to read {} streams at once, the last one `{stream}`: failed to {why}. Nothing is marked; \
                 give the user the right to read them.",
                self.denials.len()
            )));
        }
        while let Some((since, ..)) = self.denials.front()
            && now.at.saturating_sub(*since) >= DENIED_TOGETHER
            && let Some((_, stream, why)) = self.denials.pop_front()
        {
            if let Some(lane) = self.by_stream.get_mut(&stream) {
                lane.apply(Outcome::Denied(why), now.at);
                self.touched.push(stream);
            }
        }
        None
    }

    /// Lets every lane that something happened to go on.
    pub(super) fn advance(&mut self, now: &Now) -> Option<Halt> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        // Whoever has waited for a turn has it before those that come to it now.
        while self.may_put()
            && let Some(stream) = self.held_back.pop_front()
        {
            self.are_held_back.remove(&stream);
            if let Some(halt) = self.advance_lane(&stream, now) {
                return Some(halt);
            }
        }
        for stream in touched {
            if let Some(halt) = self.advance_lane(&stream, now) {
                return Some(halt);
            }
        }
        None
    }

    /// Whether another put would be under way at once. A put is written down when it is, and not
    /// before: what waits takes no more than its events and its state.
    fn may_put(&self) -> bool {
        self.writing + self.writes.len() < self.write_limit.limit()
    }

    fn advance_lane(&mut self, stream: &Arc<str>, now: &Now) -> Option<Halt> {
        loop {
            let wait = !self.may_put();
            let lane = self.by_stream.get_mut(stream)?;
            lane.hold_back(wait);
            self.runs.goes_on(stream);
            if self.flushing.is_some() {
                lane.flush();
            }
            let Step { next, verdicts, tally } = lane.step(now.at);
            if let Some(flushing) = &mut self.flushing {
                if lane.is_ahead() {
                    flushing.insert(stream.clone());
                } else if matches!(next, Next::Idle | Next::WaitUntil(_)) {
                    flushing.remove(stream);
                }
            }
            let waits = matches!(next, Next::WaitUntil(_)) && lane.unsettled() == 0;
            self.runs
                .went_on(stream, tally.applied, waits || matches!(next, Next::Idle));
            if !lane.holds_events() {
                self.budget.forget_read(stream);
            }
            self.settle(verdicts);
            let meter = &self.meter;
            meter.count(Count::Applied, tally.applied);
            self.batching.folded(tally.applied);
            meter.count(Count::SettledWithoutWrite, tally.settled_without_write);
            meter.count(Count::GapReads, tally.gap_reads);
            meter.count(Count::GapEvents, tally.gap_events);
            for created in tally.durable {
                meter.observe(Timing::DurableAge, (now.wall - created).to_std().unwrap_or_default());
            }
            if matches!(next, Next::Do(_)) {
                self.since.insert(stream.clone(), now.at);
            }
            match next {
                Next::Do(Effect::Load { fresh: false }) => {
                    if let Some(mut base) = self.cache.take(&*self.spec.rules.fold, stream) {
                        self.meter.count(Count::CacheHit, 1);
                        // Since then the event store may have become another one.
                        if base.time != self.time {
                            base.verified = base.header.version.is_none();
                        }
                        let lane = self.by_stream.get_mut(stream)?;
                        lane.apply(Outcome::Cached(Box::new(base)), now.at);
                        continue;
                    }
                    self.meter.count(Count::CacheMiss, 1);
                    self.cold.push_back(stream.clone());
                }
                Next::Do(Effect::Put(put, kind)) => {
                    self.batching.put();
                    let reason = put.header.quarantine.as_ref().map(|mark| &*mark.reason);
                    if let Some(halt) = self.mark(stream, kind, reason, now) {
                        return Some(halt);
                    }
                    self.budget.will_write(put.body.bytes());
                    self.writes.push_back((stream.clone(), Effect::Put(put, kind)));
                }
                Next::Do(effect @ Effect::Forget { .. }) => self.writes.push_back((stream.clone(), effect)),
                Next::Do(effect) => self.reads.push_back((stream.clone(), effect)),
                Next::WaitUntil(at) => {
                    if self.timers.insert((at, stream.clone())) {
                        self.since.insert(stream.clone(), now.at);
                    }
                }
                Next::HeldBack => {
                    if self.are_held_back.insert(stream.clone()) {
                        self.held_back.push_back(stream.clone());
                        self.since.insert(stream.clone(), now.at);
                    }
                }
                Next::Busy => {}
                Next::Idle => self.drop_lane(stream),
            }
            return None;
        }
    }

    /// Nothing is to be done for a stream: what is known of it is kept while there is room.
    fn drop_lane(&mut self, stream: &Arc<str>) {
        self.budget.forget_read(stream);
        self.since.remove(stream);
        let base: Option<LaneBase> = self.by_stream.remove(stream).and_then(Lane::into_base);
        if let Some(mut base) = base {
            base.time = self.time;
            self.cache.keep(&*self.spec.rules.fold, stream.clone(), base);
        }
    }

    /// Counts a mark that is about to be made where none stood; too many for one reason stop the
    /// projection first.
    fn mark(&mut self, stream: &str, kind: PutKind, reason: Option<&str>, now: &Now) -> Option<Halt> {
        let class = match kind {
            PutKind::Quarantine(class) => class,
            PutKind::Diverged => "diverged",
            _ => return None,
        };
        let storm = self.storms.entry(class).or_default();
        storm.retain(|at| now.at.saturating_sub(*at) < STORM_WINDOW);
        storm.push_back(now.at);
        if storm.len() > self.spec.quarantine_limit {
            let reason = reason.unwrap_or_default();
            return Some(Halt::Storm(format!(
                "{} aggregates within a minute are to be quarantined for `{class}`, the last one `{stream}` ({reason}). \
                 The projection stopped before marking more: deploy code that folds them, or raise `quarantine_limit`.",
                storm.len()
            )));
        }
        let count = if kind == PutKind::Diverged {
            Count::Diverged
        } else {
            Count::Quarantined
        };
        self.meter.count(count, 1);
        let projection = self.spec.rules.fold.name();
        if kind == PutKind::Diverged {
            error!(
                projection,
                stream, reason, "diverged: the stream is not the one that the replica was folded from"
            );
        } else {
            error!(
                projection,
                stream, class, reason, "quarantined: the replica stays at its last good version"
            );
        }
        None
    }

    fn settle(&mut self, verdicts: Vec<Verdict>) {
        for verdict in verdicts {
            let (token, park) = match verdict {
                Verdict::Ack(token) => (token, None),
                Verdict::Park(token, reason) => (token, Some(reason)),
            };
            let Some(held) = self.held.remove(&token) else {
                continue;
            };
            self.budget.work -= held.bytes;
            self.looking -= usize::from(held.looks);
            let settled = held.ticket.map(|ticket| Settled { ticket, park });
            self.settled.extend(settled);
        }
    }

    /// The next thing to start, while as many are in flight as may be.
    pub(super) fn start(&mut self) -> Option<Start> {
        if self.loading < LOADS && !self.cold.is_empty() {
            let batch: Vec<_> = self.cold.drain(..self.cold.len().min(LOAD_BATCH)).collect();
            self.runs.load(&batch);
            self.loading += 1;
            return Some(Start::Load(batch));
        }
        // One read always goes on: what lanes hold may wait for nothing but it.
        let room = self.spec.memory.saturating_sub(self.spec.rules.read.bytes);
        if self.reading < self.spec.reads
            && (self.reading == 0 || self.memory() <= room)
            && let Some((stream, effect)) = self.reads.pop_front()
        {
            let class = if matches!(effect, Effect::Load { .. }) {
                self.loading += 1;
                Class::Load
            } else {
                self.reading += 1;
                Class::Read
            };
            return Some(self.one(stream, class, effect));
        }
        if self.writing < self.write_limit.limit()
            && let Some((stream, effect)) = self.writes.pop_front()
        {
            self.writing += 1;
            return Some(self.one(stream, Class::Write, effect));
        }
        None
    }

    fn one(&mut self, stream: Arc<str>, class: Class, effect: Effect) -> Start {
        let failures = self.runs.begins(&stream, &effect);
        Start::One {
            stream,
            class,
            effect,
            failures,
        }
    }

    /// Lets lanes go on whose time has come; whether a tick's has, too.
    pub(super) fn time(&mut self, now: &Now) -> bool {
        while let Some((at, stream)) = self.timers.first().cloned() {
            if at > now.at {
                break;
            }
            self.timers.remove(&(at, stream.clone()));
            self.touched.push(stream);
        }
        let ticks = now.at >= self.next_tick;
        if ticks {
            self.next_tick = now.at + TICK;
        }
        ticks
    }

    /// What is done each tick. `marked`: streams that are noted as marked and are to be looked at again.
    pub(super) fn tick(&mut self, marked: Vec<Marked>, now: &Now) -> Option<Halt> {
        for marked in marked {
            self.looks.add(marked.stream, marked.generation);
        }
        while self.looking < LOOKS
            && let Some((stream, generation)) = self.looks.next()
        {
            debug!(%stream, "looking at a noted mark");
            let held = Held {
                ticket: None,
                bytes: 0,
                looks: true,
            };
            self.hand_over(stream, held, Arrival::Noted { generation }, false);
        }
        self.judge_denials(now)
    }

    /// Tells how lanes stand.
    pub(super) fn gauges(&self, now: &Now) {
        let meter = &self.meter;
        for state in LaneState::ALL {
            let (mut lanes, mut oldest) = (0_u32, Duration::ZERO);
            for (stream, _) in self.by_stream.iter().filter(|(_, lane)| lane.state() == state) {
                lanes += 1;
                oldest = oldest.max(
                    self.since
                        .get(stream)
                        .map_or(Duration::ZERO, |since| now.at.saturating_sub(*since)),
                );
            }
            meter.set(Level::Lanes(state), f64::from(lanes));
            meter.set(Level::LanesOldestSeconds(state), oldest.as_secs_f64());
        }
        meter.set(Level::WriteLimit, self.write_limit.limit() as f64);
        meter.set(Level::CacheBytes, self.cache.bytes() as f64);
        meter.set(Level::MemoryBytes, self.memory() as f64);
    }

    /// Another time begins: a connection has ended or begun, and meanwhile the event store may have
    /// become another one. What is under way is given up, for a put of what was folded of a lost history
    /// would be taken; whoever calls this sees that no outcome comes any more. The work stays: what was
    /// seen of streams is seen again, and what was in hand is read again. Who handed it in with a ticket
    /// hears no more of it, for the group that waits for it is gone. `why`: for traces.
    pub(super) fn begin_time(&mut self, why: &str) {
        self.runs.abandon(why);
        self.settled.clear();
        let mut work = 0;
        for held in self.held.values_mut() {
            held.ticket = None;
            // The event is let go.
            held.bytes = held.bytes.min(EVENT_BYTES);
            work += held.bytes;
        }
        self.budget.begin_again(work);
        (self.loading, self.reading, self.writing) = (0, 0, 0);
        self.cold.clear();
        self.reads.clear();
        self.writes.clear();
        self.held_back.clear();
        self.are_held_back.clear();
        self.timers.clear();
        self.denials.clear();
        self.flushing = None;
        let mut streams: Vec<_> = self.by_stream.keys().cloned().collect();
        streams.sort_unstable();
        for stream in &streams {
            if let Some(mut base) = self.by_stream.get_mut(stream).and_then(Lane::doubt) {
                base.time = self.time;
                self.cache.keep(&*self.spec.rules.fold, stream.clone(), base);
            }
        }
        self.touched = streams;
        self.time = TIMES.fetch_add(1, Ordering::Relaxed);
    }

    /// The runs that are under way come to nothing: for traces.
    pub(super) fn abandon(&mut self, why: &str) {
        self.runs.abandon(why);
    }
}
