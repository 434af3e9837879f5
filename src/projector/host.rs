//! Where lanes live: starts what they ask for, and waits for what comes of it.
//!
//! A host belongs to a projection and to no connection. Work comes from the deliveries of a group, and
//! from any [`Reader`] of the source beside it. A session has the host wait in its own loop
//! (`Host::input`, `Host::apply`, `Host::go_on`); while there is none it goes on [`Host::alone`].
//! Invariant: I6 pure: what waits is here, what is decided is in `lanes`.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::warn;

use super::{
    effects::{Stores, Trouble, sentence},
    lane::Effect,
    lanes::{Class, Done, Halt, Lanes, LanesSpec, Now, Settled, Start, Ticket, Work},
    meter::Meter,
    replica_cache::ReplicaCache,
    traced::Runs,
};
use crate::{
    clock,
    journal::Journal,
    panics,
    replica::{Marked, ReplicaStore, item},
};

/// What readers have handed in and no lane has taken yet: enough that a page of a source is handed in
/// at once, little beside what lanes hold.
const HANDED_IN: usize = 64;

/// Hands in work of which nobody waits to hear that it is settled: for whoever reads the source beside
/// the group. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader(mpsc::Sender<Work>);

impl Reader {
    /// Has the lane of a stream look at it; waits while there is no room. Whether there is a lane that
    /// will: there is none any more when the projection has stopped.
    pub async fn look_at(&self, work: Work) -> bool {
        self.0.send(work).await.is_ok()
    }
}

/// What a host has waited for.
pub(super) enum Input {
    Done(Result<Done, tokio::task::JoinError>),
    Work(Work),
    Time,
}

/// What follows from it.
pub(super) enum Applied {
    Nothing,
    /// It is time for [`Host::tick`].
    TickIsDue,
    Halted(Halt),
}

/// The lanes of one projection, and what is under way for them.
pub struct Host<J, S> {
    spec: Arc<LanesSpec>,
    group: Arc<str>,
    cache: ReplicaCache,
    stores: Stores<J, S>,
    lanes: Lanes,
    running: JoinSet<Done>,
    epoch: Instant,
    reader: Reader,
    work: mpsc::Receiver<Work>,
}

impl<J: Journal, S: ReplicaStore> Host<J, S> {
    /// A host without lanes. `group`: whose deliveries they are for, for traces.
    pub fn new(spec: Arc<LanesSpec>, group: Arc<str>, stores: Stores<J, S>, cache: ReplicaCache) -> Self {
        let (reader, work) = mpsc::channel(HANDED_IN);
        Self {
            lanes: lanes(&spec, &group, &stores, &cache),
            spec,
            group,
            cache,
            stores,
            running: JoinSet::new(),
            epoch: Instant::now(),
            reader: Reader(reader),
            work,
        }
    }

    /// Hands in work for its lanes.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Runs without a session until it cannot go on. Cancel-safe.
    pub async fn alone(&mut self) -> Halt {
        loop {
            if let Some(halt) = self.turn().await {
                return halt;
            }
        }
    }

    /// What a session has left comes first; then waits for one thing.
    async fn turn(&mut self) -> Option<Halt> {
        let halted = self.go_on();
        self.dispatch();
        if halted.is_some() {
            return halted;
        }
        let input = self.input().await;
        let halted = match self.apply(input) {
            Applied::Nothing => None,
            Applied::TickIsDue => {
                self.gauges();
                // That too many streams may not be read is for a session to say, and waits for it.
                self.tick(Vec::new()).filter(|halt| !matches!(halt, Halt::Operator(_)))
            }
            Applied::Halted(halt) => Some(halt),
        };
        halted.or_else(|| self.drain())
    }

    fn now(&self) -> Now {
        Now {
            at: self.epoch.elapsed(),
            wall: clock::now(),
        }
    }

    /// Waits for time or for what was started. Cancel-safe.
    pub(super) async fn input(&mut self) -> Input {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(self.epoch + self.lanes.wake()) => Input::Time,
            Some(done) = self.running.join_next(), if !self.running.is_empty() => Input::Done(done),
            Some(work) = self.work.recv(), if self.lanes.has_room() => Input::Work(work),
        }
    }

    pub(super) fn apply(&mut self, input: Input) -> Applied {
        let now = self.now();
        match input {
            Input::Done(Ok(done)) => self.lanes.done(done, &now).map_or(Applied::Nothing, Applied::Halted),
            Input::Work(work) => {
                self.look_at(work, &now);
                Applied::Nothing
            }
            Input::Time if self.lanes.time(&now) => Applied::TickIsDue,
            // A task that was aborted.
            Input::Done(Err(_)) | Input::Time => Applied::Nothing,
        }
    }

    fn look_at(&mut self, work: Work, now: &Now) {
        if let Err(error) = item::check_key(&work.stream) {
            // Nothing can stand under such a name, not even a mark.
            warn!(
                projection = self.projection(),
                stream = %work.stream,
                error = sentence(&error),
                "a reader of the source came upon a stream that has no replica"
            );
            return;
        }
        self.lanes.take(work, None, now);
    }

    /// Takes what else has come by now, without waiting for it.
    pub(super) fn drain(&mut self) -> Option<Halt> {
        while let Some(done) = self.running.try_join_next() {
            if let Applied::Halted(halt) = self.apply(Input::Done(done)) {
                return Some(halt);
            }
        }
        None
    }

    /// Lets lanes go on.
    pub(super) fn go_on(&mut self) -> Option<Halt> {
        self.lanes.advance(&self.now())
    }

    /// Starts as many effects as may be in flight.
    pub(super) fn dispatch(&mut self) {
        while let Some(start) = self.lanes.start() {
            let mut stores = self.stores.clone();
            match start {
                Start::Load(batch) => self.spawn(async move {
                    let outcomes = stores.load_many(&batch).await;
                    Done::Loaded(batch.into_iter().zip(outcomes).collect())
                }),
                Start::One {
                    stream,
                    class,
                    effect,
                    failures,
                } => {
                    stores.failures = failures;
                    self.spawn(one(stores, stream, class, effect));
                }
            }
        }
    }

    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.running
            .spawn(async move { panics::caught(work).await.unwrap_or_else(Done::Panicked) });
    }

    /// Takes work; see [`Work`]. Of what has no ticket nobody hears that it is settled.
    pub(super) fn take(&mut self, work: Work, ticket: Option<Ticket>) {
        self.lanes.take(work, ticket, &self.now());
    }

    /// What was settled since the last call, of what had a ticket.
    pub(super) fn take_settled(&mut self) -> Vec<Settled> {
        self.lanes.take_settled()
    }

    /// Lets lanes store at once what changed nothing.
    pub(super) fn flush(&mut self) {
        self.lanes.flush();
    }

    /// Whether nothing is left to flush, or the table would not take it.
    pub(super) fn is_flushed(&self) -> bool {
        self.lanes.is_flushed() || self.stores.table_trouble.down().is_some()
    }

    /// Whether there is memory for more work.
    pub(super) fn has_room(&self) -> bool {
        self.lanes.has_room()
    }

    /// Whether no stream has anything to be done for it.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether an outcome has come since the last call.
    pub(super) fn take_moved(&mut self) -> bool {
        self.lanes.take_moved()
    }

    /// What is done each tick. `marked`: streams that are noted as marked and are to be looked at again.
    pub(super) fn tick(&mut self, marked: Vec<Marked>) -> Option<Halt> {
        self.lanes.tick(marked, &self.now())
    }

    /// Tells how lanes stand.
    pub(super) fn gauges(&self) {
        self.lanes.gauges(&self.now());
    }

    /// The projection's name.
    pub(super) fn projection(&self) -> &str {
        self.spec.rules.fold.name()
    }

    /// What carries effects out.
    pub(super) fn stores(&self) -> &Stores<J, S> {
        &self.stores
    }

    /// Trouble with the event store and with the table.
    pub(super) fn troubles(&self) -> [&Trouble; 2] {
        [&self.stores.journal_trouble, &self.stores.table_trouble]
    }

    pub(super) fn meter(&self) -> &dyn Meter {
        &*self.stores.meter
    }

    /// A connection has ended or begun: lanes live on, and trust nothing that they saw before. Work
    /// that was handed in with a ticket is done, and nobody hears of it. `why`: for traces.
    pub(super) fn begin_time(&mut self, why: &str) {
        self.end_effects();
        self.lanes.begin_time(why);
    }

    /// Of what is under way no outcome comes any more. A request that has left may still be carried out.
    fn end_effects(&mut self) {
        self.running.abort_all();
        self.running = JoinSet::new();
    }

    /// Ends all that is under way and begins again with no lane and nothing kept. `why`: for traces.
    pub(super) fn clear(&mut self, why: &str) {
        self.end_effects();
        self.lanes.abandon(why);
        self.cache.clear();
        self.lanes = lanes(&self.spec, &self.group, &self.stores, &self.cache);
        self.epoch = Instant::now();
    }
}

fn lanes<J, S>(spec: &Arc<LanesSpec>, group: &str, stores: &Stores<J, S>, cache: &ReplicaCache) -> Lanes {
    let runs = Runs::new(&spec.rules, group);
    let (meter, trouble) = (stores.meter.clone(), stores.table_trouble.clone());
    Lanes::new(spec.clone(), cache.clone(), meter, trouble, runs)
}

async fn one<J: Journal, S: ReplicaStore>(
    stores: Stores<J, S>,
    stream: Arc<str>,
    class: Class,
    effect: Effect,
) -> Done {
    let bytes = match &effect {
        Effect::Put(put, _) => put.body.bytes(),
        _ => 0,
    };
    let outcome = stores.carry_out(&stream, effect).await;
    Done::One {
        stream,
        class,
        bytes,
        outcome,
    }
}

#[cfg(test)]
pub(super) mod tests;
