//! One connection to a group: deliveries become work for lanes, and what lanes settle is acknowledged.
//!
//! The loop waits in one place (`select`) and changes state in plain functions. Invariant: I3 settled on
//! the group's side: an acknowledgement is sent for what the lanes have settled of this very connection
//! and for nothing else.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    effects::sentence,
    held::{Deliveries, Record},
    host::{self, Applied, Host},
    lane::Arrival,
    lanes::{self, Halt, Settled, Work},
    meter::{Count, EndReason, Level},
};
use crate::{
    journal::{
        Journal, JournalError, Unplaced,
        feed::{Delivery, GroupSpec, Mark, Nack, Said, Subscription},
    },
    replica::{Marked, ReplicaStore, item},
};

/// Deliveries taken in one turn of the loop before lanes move and acknowledgements go out: enough
/// to batch both, few enough that the first of them does not wait for long.
const TURN: usize = 256;

/// What a session needs to know of its projection.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// The lanes' part of it.
    pub lanes: Arc<lanes::LanesSpec>,
    /// The group.
    pub group: GroupSpec,
    /// Deliveries in flight at most.
    pub buffer: usize,
    /// A store may be unavailable for this long before the subscription is given up.
    pub outage_after: Duration,
    /// Nothing moves for this long although there is work: subscribe again.
    pub watchdog_after: Duration,
    /// How long a stop may take.
    pub drain: Duration,
}

impl SessionSpec {
    /// The projection's name.
    pub fn projection(&self) -> &str {
        self.lanes.rules.fold.name()
    }
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

    /// Whether lanes end with the connection: what they hold is not to be done by this process, or
    /// belongs to a table that is no more.
    fn ends_lanes(&self) -> bool {
        match self {
            Self::Disconnected(_) | Self::StoreOutage(_) | Self::Watchdog | Self::Operator(_) => false,
            Self::Storm(_) | Self::TableAnew | Self::Panicked(_) | Self::Stopped { .. } => true,
        }
    }

    /// As a sentence.
    fn why(&self) -> String {
        match self {
            Self::Disconnected(error) => sentence(error),
            Self::StoreOutage(why) | Self::Storm(why) | Self::Operator(why) | Self::Panicked(why) => why.clone(),
            Self::Watchdog => "Nothing moved although there was work.".to_owned(),
            Self::TableAnew => "The table was created again.".to_owned(),
            Self::Stopped { .. } => "The daemon stopped.".to_owned(),
        }
    }
}

impl From<Halt> for End {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Storm(what) => Self::Storm(what),
            Halt::Operator(what) => Self::Operator(what),
            Halt::Panicked(how) => Self::Panicked(how),
        }
    }
}

/// What a session tells the outside while it runs.
pub trait SessionReport: Send + 'static {
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

enum Input {
    Delivered(Result<Delivery, JournalError>),
    Host(host::Input),
    Stop,
}

/// One connection, and the lanes' host for as long as it lasts.
pub struct Session<'a, Sub, J, S, R> {
    spec: Arc<SessionSpec>,
    sub: Sub,
    host: &'a mut Host<J, S>,
    report: R,
    deliveries: Deliveries,
    /// When the last one came or went.
    stirred: Instant,
    /// The last one was taken without room for it.
    beyond: bool,
    acks: Vec<Uuid>,
    parks: Vec<(Uuid, String)>,
    /// Whether anything was acknowledged since the last tick.
    moved: bool,
    last_moved: Instant,
    stopping: Option<Instant>,
}

impl<'a, Sub: Subscription, J: Journal, S: ReplicaStore, R: SessionReport> Session<'a, Sub, J, S, R> {
    /// A session on a fresh connection. What the host holds of a connection before it is nobody's.
    pub fn new(spec: Arc<SessionSpec>, sub: Sub, host: &'a mut Host<J, S>, report: R) -> Self {
        host.begin_time("The connection is another one.");
        Self {
            spec,
            sub,
            host,
            report,
            deliveries: Deliveries::default(),
            stirred: Instant::now(),
            beyond: false,
            acks: Vec::new(),
            parks: Vec::new(),
            moved: false,
            last_moved: Instant::now(),
            stopping: None,
        }
    }

    /// Runs until the connection ends or `stop` asks for it. Lanes live on, but for an end that says
    /// that they must not.
    pub async fn run(mut self, stop: CancellationToken) -> End {
        let end = self.connected(&stop).await;
        if end.ends_lanes() {
            self.host.clear(&end.why());
        } else {
            self.host.begin_time(&end.why());
        }
        self.gauges(0);
        if matches!(end, End::Stopped { .. }) {
            // The process may end right after this.
            self.sub.close().await;
        }
        end
    }

    async fn connected(&mut self, stop: &CancellationToken) -> End {
        // What lanes held before comes first.
        let mut end = self.host.go_on().map(End::from);
        self.host.dispatch();
        loop {
            if let Some(end) = end {
                return end;
            }
            let input = self.select(stop).await;
            end = self.apply(input);
            for _ in 1..TURN {
                if end.is_some() || self.stopping.is_some() || !self.has_room() {
                    break;
                }
                let Some(delivered) = self.sub.next().now_or_never() else {
                    break;
                };
                end = self.apply(Input::Delivered(delivered));
            }
            end = end
                .or_else(|| self.host.drain().map(End::from))
                .or_else(|| self.host.go_on().map(End::from));
            self.host.dispatch();
            let flushed = self.flush().await;
            end = end.or(flushed.err().map(End::Disconnected));
            if let Some(deadline) = self.stopping
                && ((self.deliveries.len() == 0 && self.host.is_flushed()) || Instant::now() >= deadline)
            {
                let left = self.deliveries.len();
                end.get_or_insert(End::Stopped { left });
            }
        }
    }

    async fn select(&mut self, stop: &CancellationToken) -> Input {
        let room = self.has_room();
        tokio::select! {
            // What is rare comes first. Deliveries have a turn of their own behind each input.
            biased;
            () = stop.cancelled(), if self.stopping.is_none() => Input::Stop,
            input = self.host.input() => Input::Host(input),
            delivered = self.sub.next(), if self.stopping.is_none() && room => Input::Delivered(delivered),
        }
    }

    fn apply(&mut self, input: Input) -> Option<End> {
        match input {
            Input::Delivered(Ok(delivery)) => self.deliver(delivery),
            Input::Delivered(Err(error)) => return Some(End::Disconnected(error)),
            Input::Host(input) => match self.host.apply(input) {
                Applied::Nothing => {}
                Applied::TickIsDue => return self.tick(),
                Applied::Halted(halt) => return Some(halt.into()),
            },
            Input::Stop => {
                info!(
                    projection = self.spec.projection(),
                    holding = self.deliveries.len(),
                    "draining in-flight deliveries"
                );
                self.host.flush();
                self.stopping = Some(Instant::now() + self.spec.drain);
            }
        }
        None
    }

    /// Whether another delivery may be taken. One always may, whatever lanes hold for others. And so may one
    /// when none has come or gone for a message timeout: the group has taken back by then what is held, and
    /// that the connection has ended shows where deliveries are taken.
    fn has_room(&self) -> bool {
        self.is_within_bounds() || (!self.beyond && self.stirred.elapsed() >= self.spec.group.message_timeout)
    }

    fn is_within_bounds(&self) -> bool {
        self.deliveries.len() == 0 || self.host.has_room()
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.stirred = Instant::now();
        self.beyond = !self.is_within_bounds();
        self.host.meter().count(Count::Received, 1);
        let record = Record::of(&delivery);
        let (stream, arrival) = match delivery.said {
            Said::Event(event) => (event.stream.clone(), Arrival::Event(event)),
            Said::Moved {
                stream,
                revision: Some(revision),
            } => (stream, Arrival::Revision(revision, delivery.at)),
            Said::Moved { stream, revision: None } => (stream, Arrival::Moved),
            Said::Onward { stream } => (stream, Arrival::Onward),
            Said::Nothing => {
                self.host.meter().count(Count::Skipped, 1);
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
        let work = Work {
            stream,
            arrival,
            at: delivery.at,
        };
        // Delivered again while it is held: no progress, and nothing new.
        if let Some(ticket) = self.deliveries.take(record) {
            self.host.take(work, Some(ticket));
        }
    }

    fn unplaced(&mut self, class: Unplaced, record: &Record) {
        self.host.meter().count(Count::Unplaced(class), 1);
        if self.report.unplaced(class) {
            warn!(
                projection = self.spec.projection(),
                class = class.word(),
                ?record,
                "a delivery has no place; more of its kind are only counted: {}",
                class.problem()
            );
        }
    }

    fn let_go(&mut self, settled: Settled) {
        self.stirred = Instant::now();
        let Some(answer) = self.deliveries.settle(settled) else {
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
        if let Some(ticket) = self.deliveries.take(record) {
            self.let_go(Settled { ticket, park });
        }
    }

    async fn flush(&mut self) -> Result<(), JournalError> {
        for settled in self.host.take_settled() {
            self.let_go(settled);
        }
        let settled = self.deliveries.settled();
        if !settled.is_empty() {
            self.report.settled(settled);
        }
        if !self.acks.is_empty() {
            self.moved = true;
            self.sub.ack(std::mem::take(&mut self.acks)).await?;
        }
        for (id, reason) in std::mem::take(&mut self.parks) {
            self.host.meter().count(Count::Parked, 1);
            self.sub.nack(vec![id], Nack::Park, reason).await?;
        }
        Ok(())
    }

    fn tick(&mut self) -> Option<End> {
        let moved = self.host.take_moved() | std::mem::take(&mut self.moved);
        if moved {
            self.last_moved = Instant::now();
        }
        let holding = self.deliveries.len();
        let rests = holding == 0 && self.report.stands_still().is_none();
        self.report.tick(holding, moved || rests);
        self.gauges(holding);
        if self.report.table_is_anew() {
            return Some(End::TableAnew);
        }
        if let Some(halt) = self.host.tick(self.report.marks_to_try()) {
            return Some(halt.into());
        }
        for trouble in self.host.troubles() {
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
        let idle = self.host.is_empty() && holding == 0;
        let after = self.spec.watchdog_after;
        // While another task moves the group there is nothing wrong with this one's connection.
        let still = self.report.stands_still().is_some_and(|still| still >= after);
        if idle && still && self.last_moved.elapsed() >= after {
            warn!(
                projection = self.spec.projection(),
                "the source is ahead and nothing comes: subscribing again"
            );
            return Some(End::Watchdog);
        }
        None
    }

    fn gauges(&self, holding: usize) {
        let meter = self.host.meter();
        meter.set(Level::Holding, holding as f64);
        meter.set(
            Level::OldestHeldSeconds,
            self.deliveries.oldest().unwrap_or_default().as_secs_f64(),
        );
        self.host.gauges();
    }
}

#[cfg(test)]
pub(super) mod tests;
