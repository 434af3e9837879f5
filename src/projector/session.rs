//! One connection to a group: deliveries into lanes, lanes' effects out to the stores, settled
//! deliveries acknowledged.
//!
//! The loop waits in one place (`select`) and changes state in plain functions. Invariants: I3 settled
//! on the group's side (an acknowledgement is sent for a lane's verdict and for nothing else) and
//! I5 isolation (what a lane waits for, it alone waits for).

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::{
    batching::Batching,
    effects::{Stores, sentence},
    held::{Deliveries, Record},
    lane::{Arrival, Base, Effect, Lane, Next, Outcome, PutKind, Rules, Step, Token, Verdict},
    meter::{Count, EndReason, LaneState, Level, Meter, Timing},
    replica_cache::ReplicaCache,
    traced::Runs,
    write_limit::WriteLimit,
};
use crate::{
    clock,
    event::RawEvent,
    journal::{
        Journal, JournalError, Unplaced,
        feed::{Delivery, GroupSpec, Mark, Nack, Said, Subscription},
    },
    panics,
    projection::IN_MEMORY,
    replica::{Marked, ReplicaStore, item},
};

/// Deliveries taken in one turn of the loop before lanes move and acknowledgements go out: enough
/// to batch both, few enough that the first of them does not wait for long.
const TURN: usize = 256;
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
/// Tells sessions of one process apart.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// What an event takes beside its bodies: its id, type, place in a lane.
const EVENT_BYTES: usize = 512;

/// States that a lane holds while its put waits: the one to be put, and the one that it began with.
pub(super) const HELD_STATES: usize = 2;

/// What an event takes in memory.
fn event_bytes(event: &RawEvent) -> usize {
    event.data.len() + event.metadata.len() + EVENT_BYTES
}

/// What a session needs to know of its projection.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The fold and its policies.
    pub rules: Arc<Rules>,
    /// The group.
    pub group: GroupSpec,
    /// Deliveries in flight at most.
    pub buffer: usize,
    /// Bytes of deliveries, reads and writes under way at most; more waits at the stores.
    pub memory: usize,
    /// Reads of streams in flight at most.
    pub reads: usize,
    /// Puts in flight at most; fewer while the table throttles.
    pub writes: usize,
    /// A store may be unavailable for this long before the subscription is given up.
    pub outage_after: Duration,
    /// Nothing moves for this long although there is work: subscribe again.
    pub watchdog_after: Duration,
    /// Quarantines for one reason within a minute that stop the projection.
    pub quarantine_limit: usize,
    /// How long a stop may take.
    pub drain: Duration,
}

/// Why a connection ended.
#[derive(Debug)]
pub enum End {
    /// The server ended it or went away.
    Disconnected(JournalError),
    /// A store was unavailable for too long.
    StoreOutage(String),
    /// Nothing moved although there was work.
    Watchdog,
    /// Too many quarantines for one reason; the text says which.
    Storm(String),
    /// Only an operator can help: permissions are missing, the table is not what it was. Tried again.
    Operator(String),
    /// The table was created again: what the group's checkpoint stands for is not in it.
    TableAnew,
    /// Our own code panicked; where and how.
    Panicked(String),
    /// As asked. `left`: deliveries that could not be settled in time.
    Stopped {
        /// Deliveries not settled; they will be delivered again.
        left: usize,
    },
}

impl End {
    /// The label for metrics.
    pub fn reason(&self) -> EndReason {
        match self {
            Self::Disconnected(_) => EndReason::Disconnected,
            Self::StoreOutage(_) => EndReason::StoreOutage,
            Self::Watchdog => EndReason::Watchdog,
            Self::Storm(_) => EndReason::QuarantineStorm,
            Self::Operator(_) => EndReason::Setup,
            Self::TableAnew => EndReason::TableAnew,
            Self::Panicked(_) => EndReason::Panic,
            Self::Stopped { .. } => EndReason::Stopping,
        }
    }
}

/// What a session tells the outside while it runs.
pub trait Report: Send + 'static {
    /// Called each tick: deliveries held, and whether anything moved since the last tick.
    fn tick(&mut self, holding: usize, moved: bool);
    /// Where deliveries that are settled stand in the source. Called before they are acknowledged.
    fn settled(&mut self, places: Vec<Mark>);
    /// No lane can take a delivery; whether it is the first of its class.
    fn unplaced(&mut self, class: Unplaced) -> bool;
    /// For how long the source has had entries that are not settled while nothing of the group has
    /// moved, on whatever task; `None` while nothing is known to wait.
    fn stands_still(&self) -> Option<Duration>;
    /// Streams that are noted as marked and are to be looked at again.
    fn marks_to_try(&mut self) -> Vec<Marked>;
    /// Whether the table was seen to have been created again since the connection was made.
    fn table_is_anew(&self) -> bool;
}

enum Done {
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
enum Class {
    Load,
    Read,
    Write,
}

enum Input {
    Delivered(Result<Delivery, JournalError>),
    Done(Result<Done, tokio::task::JoinError>),
    Time,
    Stop,
}

/// Noted marks in turn, each stream once however often it is asked for.
#[derive(Debug, Default)]
struct Looks {
    turns: VecDeque<Arc<str>>,
    generations: HashMap<Arc<str>, u64>,
}

impl Looks {
    fn add(&mut self, stream: Arc<str>, generation: u64) {
        // The newest word stands: a stream that began again counts from below.
        if self.generations.insert(stream.clone(), generation).is_none() {
            self.turns.push_back(stream);
        }
    }

    fn next(&mut self) -> Option<(Arc<str>, u64)> {
        let stream = self.turns.pop_front()?;
        self.generations.remove_entry(&stream)
    }
}

/// One connection and all that hangs on it.
pub struct Session<Sub, J, S, R> {
    spec: Arc<Spec>,
    sub: Sub,
    stores: Stores<J, S>,
    cache: ReplicaCache,
    report: R,
    lanes: HashMap<Arc<str>, Lane>,
    /// Since when each lane has been at what it is at; kept apart, for figures only.
    since: HashMap<Arc<str>, Instant>,
    /// What is done for each stream, for traces only.
    runs: Runs,
    deliveries: Deliveries,
    touched: Vec<Arc<str>>,
    cold: VecDeque<Arc<str>>,
    reads: VecDeque<(Arc<str>, Effect)>,
    writes: VecDeque<(Arc<str>, Effect)>,
    /// Lanes that put when it is their turn, in its order; and which they are.
    held_back: VecDeque<Arc<str>>,
    are_held_back: HashSet<Arc<str>>,
    running: JoinSet<Done>,
    /// Bytes that lanes hold of what they have read, by stream, until they have put it.
    read_on: HashMap<Arc<str>, usize>,
    read_bytes: usize,
    /// Bytes of puts that wait or are under way.
    write_bytes: usize,
    /// What a put's state takes, of late: states of lanes that are held back are not written down yet.
    usual_put: usize,
    loading: usize,
    reading: usize,
    writing: usize,
    write_limit: WriteLimit,
    batching: Batching,
    timers: BTreeSet<(Duration, Arc<str>)>,
    acks: Vec<Uuid>,
    parks: Vec<(Uuid, String)>,
    epoch: Instant,
    next_tick: Instant,
    storms: HashMap<&'static str, VecDeque<Instant>>,
    number: u64,
    /// Noted marks to look at.
    looks: Looks,
    /// Denials that wait whether they are a stream's own, and since when.
    denials: VecDeque<(Instant, Arc<str>, String)>,
    moved: bool,
    last_moved: Instant,
    stopping: Option<Instant>,
}

impl<Sub: Subscription, J: Journal, S: ReplicaStore, R: Report> Session<Sub, J, S, R> {
    /// A session on a fresh connection.
    pub fn new(spec: Arc<Spec>, sub: Sub, stores: Stores<J, S>, cache: ReplicaCache, report: R) -> Self {
        let now = Instant::now();
        let write_limit = WriteLimit::new(spec.writes);
        let runs = Runs::new(&spec);
        Self {
            spec,
            sub,
            stores,
            cache,
            report,
            lanes: HashMap::new(),
            since: HashMap::new(),
            runs,
            deliveries: Deliveries::default(),
            touched: Vec::new(),
            cold: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            held_back: VecDeque::new(),
            are_held_back: HashSet::new(),
            running: JoinSet::new(),
            read_on: HashMap::new(),
            read_bytes: 0,
            write_bytes: 0,
            usual_put: 0,
            loading: 0,
            reading: 0,
            writing: 0,
            write_limit,
            batching: Batching::default(),
            timers: BTreeSet::new(),
            acks: Vec::new(),
            parks: Vec::new(),
            epoch: now,
            next_tick: now + TICK,
            storms: HashMap::new(),
            number: SESSIONS.fetch_add(1, Ordering::Relaxed),
            looks: Looks::default(),
            denials: VecDeque::new(),
            moved: false,
            last_moved: now,
            stopping: None,
        }
    }

    /// Runs until the connection ends or `stop` asks for it.
    pub async fn run(mut self, stop: CancellationToken) -> End {
        let end = loop {
            let input = self.select(&stop).await;
            let mut end = self.apply(input);
            for _ in 1..TURN {
                if end.is_some() || self.stopping.is_some() || !self.has_room() {
                    break;
                }
                let Some(delivered) = self.sub.next().now_or_never() else {
                    break;
                };
                end = self.apply(Input::Delivered(delivered));
            }
            while end.is_none() {
                let Some(done) = self.running.try_join_next() else {
                    break;
                };
                end = self.apply(Input::Done(done));
            }
            let end = end.or_else(|| self.advance());
            self.dispatch();
            let flushed = self.flush().await;
            if let Some(end) = end {
                break end;
            }
            if let Err(error) = flushed {
                break End::Disconnected(error);
            }
            if let Some(deadline) = self.stopping
                && (self.deliveries.len() == 0 || Instant::now() >= deadline)
            {
                break End::Stopped {
                    left: self.deliveries.len(),
                };
            }
        };
        self.running.abort_all();
        self.runs.abandon(&end);
        self.spec_gauges(0);
        if matches!(end, End::Stopped { .. }) {
            // The process may end right after this.
            self.sub.close().await;
        }
        end
    }

    async fn select(&mut self, stop: &CancellationToken) -> Input {
        let timer = self.timers.first().map(|(at, _)| self.epoch + *at);
        let wake = timer.map_or(self.next_tick, |at| at.min(self.next_tick));
        tokio::select! {
            // What is rare comes first. Deliveries have a turn of their own behind each input.
            biased;
            () = stop.cancelled(), if self.stopping.is_none() => Input::Stop,
            () = tokio::time::sleep_until(wake) => Input::Time,
            Some(done) = self.running.join_next(), if !self.running.is_empty() => Input::Done(done),
            delivered = self.sub.next(), if self.stopping.is_none() && self.has_room() => Input::Delivered(delivered),
        }
    }

    fn apply(&mut self, input: Input) -> Option<End> {
        match input {
            Input::Delivered(Ok(delivery)) => self.deliver(delivery),
            Input::Delivered(Err(error)) => return Some(End::Disconnected(error)),
            Input::Done(Ok(done)) => return self.done(done),
            Input::Done(Err(_)) => {}
            Input::Stop => {
                info!(
                    projection = self.spec.rules.fold.name(),
                    holding = self.deliveries.len(),
                    "draining in-flight deliveries"
                );
                self.stopping = Some(Instant::now() + self.spec.drain);
            }
            Input::Time => return self.time(),
        }
        None
    }

    /// Bytes of deliveries, reads and writes under way, and of states that wait to be written. A read
    /// that is under way holds what it may bring.
    fn memory(&self) -> usize {
        let reading = self.reading.saturating_mul(self.spec.rules.read.bytes);
        let held_back = self.are_held_back.len() * self.usual_put * HELD_STATES * IN_MEMORY;
        self.deliveries.bytes() + self.read_bytes + self.write_bytes + reading + held_back
    }

    /// Whether another delivery may be taken. One always may: a group is never stopped for good by
    /// an event that does not fit.
    fn has_room(&self) -> bool {
        self.deliveries.len() == 0 || self.memory() < self.spec.memory
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.meter().count(Count::Received, 1);
        let record = Record::of(&delivery);
        let (stream, arrival) = match delivery.said {
            Said::Event(event) => (event.stream.clone(), Arrival::Event(event)),
            Said::Moved {
                stream,
                revision: Some(revision),
            } => (stream, Arrival::Revision(revision)),
            Said::Moved { stream, revision: None } => (stream, Arrival::Moved),
            Said::Onward { stream } => (stream, Arrival::Onward),
            Said::Nothing => {
                self.meter().count(Count::Skipped, 1);
                self.pass(record, None);
                return;
            }
            Said::Unplaced(class) => {
                self.unplaced(class, &record);
                self.pass(record, None);
                return;
            }
        };
        if let Err(error) = item::check_key(&stream) {
            // Nothing can stand under such a name, not even a mark: it must not stop the others.
            self.unplaced(Unplaced::Stream, &record);
            self.pass(record, Some(sentence(&error)));
            return;
        }
        let age = (clock::now() - delivery.at).to_std().unwrap_or_default();
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
        // Delivered again while it is held: no progress, and nothing new.
        if let Some(token) = self.deliveries.take(Some(record), bytes) {
            self.hand_over(stream, token, arrival, behind);
        }
    }

    fn unplaced(&mut self, class: Unplaced, record: &Record) {
        self.meter().count(Count::Unplaced(class), 1);
        if self.report.unplaced(class) {
            warn!(
                projection = self.spec.rules.fold.name(),
                class = class.word(),
                ?record,
                "a delivery has no place; more of its kind are only counted: {}",
                class.problem()
            );
        }
    }

    fn hand_over(&mut self, stream: Arc<str>, token: Token, arrival: Arrival, behind: bool) {
        let rules = &self.spec.rules;
        let lane = self
            .lanes
            .entry(stream.clone())
            .or_insert_with(|| Lane::new(stream.clone(), rules.clone()));
        self.runs.arrived(&stream, &arrival);
        lane.deliver(token, arrival, behind);
        self.touched.push(stream);
    }

    fn done(&mut self, done: Done) -> Option<End> {
        let now = self.epoch.elapsed();
        match done {
            Done::Panicked(how) => return Some(End::Panicked(how)),
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
                            self.read_bytes += read;
                            *self.read_on.entry(stream.clone()).or_default() += read;
                        }
                    }
                    Class::Write => {
                        self.writing -= 1;
                        self.write_bytes -= bytes;
                        self.forget_read(&stream);
                        self.write_limit.answered(self.stores.table_trouble.take_throttles());
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

    fn outcome(&mut self, stream: Arc<str>, outcome: Outcome, now: Duration) {
        self.runs.answered(&stream, &outcome);
        let Some(lane) = self.lanes.get_mut(&stream) else {
            return;
        };
        if let (Outcome::Denied(why), false) = (&outcome, lane.is_denied()) {
            self.denials.push_back((Instant::now(), stream, why.clone()));
            return;
        }
        self.moved = true;
        lane.apply(outcome, now);
        self.touched.push(stream);
    }

    /// Denials become marks when they have been few for a while; many at once are nobody's mark.
    fn judge_denials(&mut self) -> Option<End> {
        if self.denials.len() > self.spec.quarantine_limit {
            let (_, stream, why) = self.denials.back()?;
            return Some(End::Operator(format!(
                "Failed to read {} streams at once, the last one `{stream}`: failed to {why}. Nothing is marked; \
                 give the user the right to read them.",
                self.denials.len()
            )));
        }
        let now = self.epoch.elapsed();
        while let Some((since, ..)) = self.denials.front()
            && since.elapsed() >= DENIED_TOGETHER
            && let Some((_, stream, why)) = self.denials.pop_front()
        {
            if let Some(lane) = self.lanes.get_mut(&stream) {
                lane.apply(Outcome::Denied(why), now);
                self.touched.push(stream);
            }
        }
        None
    }

    /// What a lane has read is put, or it is dropped.
    fn forget_read(&mut self, stream: &Arc<str>) {
        self.read_bytes -= self.read_on.remove(stream).unwrap_or_default();
    }

    /// Lets every lane that something happened to go on.
    fn advance(&mut self) -> Option<End> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        // Whoever has waited for a turn has it before those that come to it now.
        while self.may_put()
            && let Some(stream) = self.held_back.pop_front()
        {
            self.are_held_back.remove(&stream);
            if let Some(end) = self.advance_lane(&stream) {
                return Some(end);
            }
        }
        for stream in touched {
            if let Some(end) = self.advance_lane(&stream) {
                return Some(end);
            }
        }
        None
    }

    /// Whether another put would be under way at once. A put is written down when it is, and not
    /// before: what waits takes no more than its events and its state.
    fn may_put(&self) -> bool {
        self.writing + self.writes.len() < self.write_limit.limit()
    }

    fn advance_lane(&mut self, stream: &Arc<str>) -> Option<End> {
        let now = self.epoch.elapsed();
        loop {
            let wait = !self.may_put();
            let lane = self.lanes.get_mut(stream)?;
            lane.hold_back(wait);
            self.runs.goes_on(stream);
            let Step { next, verdicts, tally } = lane.step(now);
            let waits = matches!(next, Next::WaitUntil(_)) && lane.unsettled() == 0;
            self.runs
                .went_on(stream, tally.applied, waits || matches!(next, Next::Idle));
            if !lane.holds_events() {
                self.forget_read(stream);
            }
            self.settle(verdicts);
            let meter = self.meter();
            meter.count(Count::Applied, tally.applied);
            self.batching.folded(tally.applied);
            meter.count(Count::SettledWithoutWrite, tally.settled_without_write);
            meter.count(Count::GapReads, tally.gap_reads);
            meter.count(Count::GapEvents, tally.gap_events);
            let written = clock::now();
            for created in tally.durable {
                meter.observe(Timing::DurableAge, (written - created).to_std().unwrap_or_default());
            }
            if matches!(next, Next::Do(_)) {
                self.since.insert(stream.clone(), Instant::now());
            }
            match next {
                Next::Do(Effect::Load { fresh: false }) => {
                    if let Some(mut base) = self.cache.take(&*self.spec.rules.fold, stream) {
                        self.meter().count(Count::CacheHit, 1);
                        // Between two sessions the event store may have become another one.
                        if base.session != self.number {
                            base.verified = base.header.version.is_none();
                        }
                        let lane = self.lanes.get_mut(stream)?;
                        lane.apply(Outcome::Cached(Box::new(base)), now);
                        continue;
                    }
                    self.meter().count(Count::CacheMiss, 1);
                    self.cold.push_back(stream.clone());
                }
                Next::Do(Effect::Put(put, kind)) => {
                    self.batching.put();
                    if let Some(end) = self.mark(stream, kind, put.header.quarantine.as_ref().map(|m| &*m.reason)) {
                        return Some(end);
                    }
                    let bytes = put.body.bytes();
                    self.write_bytes += bytes;
                    self.usual_put = match self.usual_put {
                        0 => bytes,
                        usual => (usual * 7 + bytes) / 8,
                    };
                    self.writes.push_back((stream.clone(), Effect::Put(put, kind)));
                }
                Next::Do(effect @ Effect::Forget { .. }) => self.writes.push_back((stream.clone(), effect)),
                Next::Do(effect) => self.reads.push_back((stream.clone(), effect)),
                Next::WaitUntil(at) => {
                    if self.timers.insert((at, stream.clone())) {
                        self.since.insert(stream.clone(), Instant::now());
                    }
                }
                Next::HeldBack => {
                    if self.are_held_back.insert(stream.clone()) {
                        self.held_back.push_back(stream.clone());
                        self.since.insert(stream.clone(), Instant::now());
                    }
                }
                Next::Busy => {}
                Next::Idle => {
                    self.forget_read(stream);
                    self.since.remove(stream);
                    let base: Option<Base> = self.lanes.remove(stream).and_then(Lane::into_base);
                    if let Some(mut base) = base {
                        base.session = self.number;
                        self.cache.keep(&*self.spec.rules.fold, stream.clone(), base);
                    }
                }
            }
            return None;
        }
    }

    /// Counts a mark that is about to be made where none stood; too many for one reason stop the
    /// projection first.
    fn mark(&mut self, stream: &str, kind: PutKind, reason: Option<&str>) -> Option<End> {
        let class = match kind {
            PutKind::Quarantine(class) => class,
            PutKind::Diverged => "diverged",
            _ => return None,
        };
        let now = Instant::now();
        let storm = self.storms.entry(class).or_default();
        storm.retain(|at| now - *at < STORM_WINDOW);
        storm.push_back(now);
        if storm.len() > self.spec.quarantine_limit {
            let reason = reason.unwrap_or_default();
            return Some(End::Storm(format!(
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
        self.meter().count(count, 1);
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
            self.let_go(token, park);
        }
    }

    fn let_go(&mut self, token: Token, park: Option<String>) {
        let Some(answer) = self.deliveries.settle(token, park) else {
            return;
        };
        for _ in 0..answer.records {
            match &answer.park {
                None => self.acks.push(answer.ack),
                Some(reason) => self.parks.push((answer.ack, reason.clone())),
            }
        }
    }

    /// Settles what no lane need hear of.
    fn pass(&mut self, record: Record, park: Option<String>) {
        if let Some(token) = self.deliveries.take(Some(record), 0) {
            self.let_go(token, park);
        }
    }

    /// Starts as many effects as may be in flight.
    fn dispatch(&mut self) {
        while self.loading < LOADS && !self.cold.is_empty() {
            let batch: Vec<_> = self.cold.drain(..self.cold.len().min(LOAD_BATCH)).collect();
            let stores = self.stores.clone();
            self.runs.load(&batch);
            self.loading += 1;
            self.spawn(async move {
                let outcomes = stores.load_many(&batch).await;
                Done::Loaded(batch.into_iter().zip(outcomes).collect())
            });
        }
        // One read always goes on: what lanes hold may wait for nothing but it.
        let room = self.spec.memory.saturating_sub(self.spec.rules.read.bytes);
        while self.reading < self.spec.reads
            && (self.reading == 0 || self.memory() <= room)
            && let Some((stream, effect)) = self.reads.pop_front()
        {
            let class = if matches!(effect, Effect::Load { .. }) {
                Class::Load
            } else {
                Class::Read
            };
            match class {
                Class::Load => self.loading += 1,
                _ => self.reading += 1,
            }
            self.start(stream, class, effect);
        }
        while self.writing < self.write_limit.limit()
            && let Some((stream, effect)) = self.writes.pop_front()
        {
            self.writing += 1;
            self.start(stream, Class::Write, effect);
        }
    }

    fn start(&mut self, stream: Arc<str>, class: Class, effect: Effect) {
        let mut stores = self.stores.clone();
        stores.failures = self.runs.begins(&stream, &effect);
        let bytes = match &effect {
            Effect::Put(put, _) => put.body.bytes(),
            _ => 0,
        };
        self.spawn(async move {
            let outcome = stores.carry_out(&stream, effect).await;
            Done::One {
                stream,
                class,
                bytes,
                outcome,
            }
        });
    }

    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.running
            .spawn(async move { panics::caught(work).await.unwrap_or_else(Done::Panicked) });
    }

    async fn flush(&mut self) -> Result<(), JournalError> {
        let settled = self.deliveries.settled();
        if !settled.is_empty() {
            self.report.settled(settled);
        }
        if !self.acks.is_empty() {
            self.moved = true;
            self.sub.ack(std::mem::take(&mut self.acks)).await?;
        }
        for (id, reason) in std::mem::take(&mut self.parks) {
            self.meter().count(Count::Parked, 1);
            self.sub.nack(vec![id], Nack::Park, reason).await?;
        }
        Ok(())
    }

    fn time(&mut self) -> Option<End> {
        let now = self.epoch.elapsed();
        while let Some((at, stream)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, stream.clone()));
            self.touched.push(stream);
        }
        if Instant::now() < self.next_tick {
            return None;
        }
        self.next_tick = Instant::now() + TICK;
        self.tick()
    }

    fn tick(&mut self) -> Option<End> {
        if self.moved {
            self.last_moved = Instant::now();
        }
        let holding = self.deliveries.len();
        self.report.tick(
            holding,
            std::mem::take(&mut self.moved) || (holding == 0 && self.report.stands_still().is_none()),
        );
        self.spec_gauges(holding);
        for marked in self.report.marks_to_try() {
            self.looks.add(marked.stream, marked.generation);
        }
        while self.deliveries.own() < LOOKS
            && let Some((stream, generation)) = self.looks.next()
        {
            debug!(%stream, "looking at a noted mark");
            if let Some(token) = self.deliveries.take(None, 0) {
                self.hand_over(stream, token, Arrival::Noted { generation }, false);
            }
        }
        if self.report.table_is_anew() {
            return Some(End::TableAnew);
        }
        if let Some(end) = self.judge_denials() {
            return Some(end);
        }
        for trouble in [&self.stores.journal_trouble, &self.stores.table_trouble] {
            if let Some((down, what)) = trouble.down()
                && down >= self.spec.outage_after
            {
                // What only an operator can mend is said to be that, however late it shows.
                return Some(match trouble.setup() {
                    Some(setup) => End::Operator(setup),
                    None => End::StoreOutage(what),
                });
            }
        }
        let idle = self.lanes.is_empty() && holding == 0;
        let after = self.spec.watchdog_after;
        // While another task moves the group there is nothing wrong with this one's connection.
        let still = self.report.stands_still().is_some_and(|still| still >= after);
        if idle && still && self.last_moved.elapsed() >= after {
            warn!(
                projection = self.spec.rules.fold.name(),
                "the source is ahead and nothing comes: subscribing again"
            );
            return Some(End::Watchdog);
        }
        None
    }

    fn spec_gauges(&self, holding: usize) {
        let meter = self.meter();
        meter.set(Level::Holding, holding as f64);
        meter.set(
            Level::OldestHeldSeconds,
            self.deliveries.oldest().unwrap_or_default().as_secs_f64(),
        );
        for state in LaneState::ALL {
            let (mut lanes, mut oldest) = (0_u32, Duration::ZERO);
            for (stream, _) in self.lanes.iter().filter(|(_, lane)| lane.state() == state) {
                lanes += 1;
                oldest = oldest.max(self.since.get(stream).map_or(Duration::ZERO, Instant::elapsed));
            }
            meter.set(Level::Lanes(state), f64::from(lanes));
            meter.set(Level::LanesOldestSeconds(state), oldest.as_secs_f64());
        }
        meter.set(Level::WriteLimit, self.write_limit.limit() as f64);
        meter.set(Level::CacheBytes, self.cache.bytes() as f64);
        meter.set(Level::MemoryBytes, self.memory() as f64);
    }

    fn meter(&self) -> Arc<dyn Meter> {
        self.stores.meter.clone()
    }
}

#[cfg(test)]
mod tests;
