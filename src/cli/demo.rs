//! `projector demo`, and what `dev` shows: orders that are placed, filled, paid and shipped without end.
//!
//! Appends as a service would, at the revision that it knows; what it reads is the events' own
//! business, so the daemon beside it has nothing but the streams to go by.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::{Context, Exit, Failure, out};
use crate::{
    aggregate::Aggregate,
    app,
    event::{Event, Version, codec},
    journal::{
        Expected, Journal, JournalError, NewEvent,
        esdb::{EventStore, redacted},
    },
    projection::{Registry, RegistryError},
};

/// One order, as its events have made it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Order {
    customer: String,
    status: Status,
    items: u32,
    total_cents: u64,
    paid_cents: u64,
    parcel: Option<String>,
}

/// How far an order is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    #[default]
    Open,
    Paid,
    Shipped,
    Cancelled,
}

/// What happens to an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all_fields = "camelCase")]
pub(super) enum OrderEvent {
    OrderPlaced { customer: String },
    ItemAdded { sku: String, quantity: u32, cents: u64 },
    OrderPaid { cents: u64 },
    OrderShipped { parcel: String },
    OrderCancelled { reason: String },
}

impl Event for OrderEvent {}

impl Aggregate for Order {
    const CATEGORY: &'static str = "order";
    type Event = OrderEvent;

    fn apply(&mut self, event: OrderEvent) {
        match event {
            OrderEvent::OrderPlaced { customer } => self.customer = customer,
            OrderEvent::ItemAdded { quantity, cents, .. } => {
                self.items += quantity;
                self.total_cents += u64::from(quantity) * cents;
            }
            OrderEvent::OrderPaid { cents } => {
                self.paid_cents += cents;
                self.status = Status::Paid;
            }
            OrderEvent::OrderShipped { parcel } => {
                self.parcel = Some(parcel);
                self.status = Status::Shipped;
            }
            OrderEvent::OrderCancelled { .. } => self.status = Status::Cancelled,
        }
    }
}

/// The registry with the demo's projection, unless it has one of that name.
pub(super) fn add(registry: Registry) -> Result<Registry, RegistryError> {
    if registry.get(Order::CATEGORY).is_some() {
        return Ok(registry);
    }
    registry.with::<Order>()
}

/// Place, pay and ship orders in any EventStoreDB, for something to watch
///
/// Appends to streams order-…, as a service would, until Ctrl-C. An unavailable store is waited for.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Events a second.
    #[arg(long, value_name = "EVENTS", default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    rate: u32,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    events: Option<u64>,
}

/// Plain to see and no load.
pub(super) const RATE: u32 = 25;
/// More is a load test, and this is none.
const MOST: i64 = 1_000;
/// Events a second of one worker: each append waits for the one before, some milliseconds.
const WORKER: u32 = 50;
/// Orders that a worker has open at the same time: enough streams to see them interleave.
const OPEN: usize = 50;
/// After an append that failed: the store may be restarting.
const REST: Duration = Duration::from_secs(1);
/// Longest time of one append.
const DEADLINE: Duration = Duration::from_secs(5);

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let journal = EventStore::new(&context.settings.esdb()).map_err(|error| Failure::to(Exit::Usage, &error))?;
    let connection = redacted(&context.settings.eventstore.connection.0);
    out::line(format!(
        "Orders are placed, paid and shipped at {connection}, {} events a second. Ctrl-C stops.",
        args.rate
    ));
    let stop = CancellationToken::new();
    let asked = app::shutdown();
    let work = work(journal, args.rate, args.events, stop.clone());
    tokio::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        () = asked => {
            stop.cancel();
            work.await
        }
    };
    out::line(format!("{} events appended", done?));
    Ok(())
}

/// An order as the workload knows it.
#[derive(Clone, Debug, Default)]
struct Working {
    stream: String,
    version: Version,
    order: Order,
}

impl Working {
    fn new() -> Self {
        let id = format!("{:08x}", fastrand::u32(..));
        Self {
            stream: Order::stream(&id),
            ..Self::default()
        }
    }

    /// What happens to it next; `None` when nothing will.
    fn next(&self, dice: u32) -> Option<OrderEvent> {
        if self.version.is_none() {
            let customer = ["ada", "grace", "edsger", "barbara", "tony"][dice as usize % 5].to_owned();
            return Some(OrderEvent::OrderPlaced { customer });
        }
        match (self.order.status, dice % 20) {
            (Status::Open, 0) => Some(OrderEvent::OrderCancelled {
                reason: "changed my mind".into(),
            }),
            (Status::Open, 1..=5) if self.order.items > 0 => Some(OrderEvent::OrderPaid {
                cents: self.order.total_cents,
            }),
            (Status::Open, n) => Some(OrderEvent::ItemAdded {
                sku: format!("sku-{n:02}"),
                quantity: 1 + n % 3,
                cents: 199 + u64::from(n) * 50,
            }),
            (Status::Paid, _) => Some(OrderEvent::OrderShipped {
                parcel: format!("parcel-{dice:010}"),
            }),
            (Status::Shipped | Status::Cancelled, _) => None,
        }
    }

    /// Takes an event that was appended.
    fn took(&mut self, event: OrderEvent, version: Version) {
        self.order.apply(event);
        self.version = version;
    }
}

/// Works on orders at `rate` events a second until `stop`, or until there were `events` of them.
/// Gives how many were appended; ends by itself where the store refuses for good.
pub(super) async fn work<J: Journal>(
    journal: J,
    rate: u32,
    events: Option<u64>,
    stop: CancellationToken,
) -> Result<u64, JournalError> {
    let workers = rate.div_ceil(WORKER);
    let pace = Duration::from_secs(1) * workers / rate;
    let left = AtomicU64::new(events.unwrap_or(u64::MAX));
    let work = (0..workers).map(|_| worker(&journal, pace, &left, &stop));
    Ok(futures::future::try_join_all(work).await?.into_iter().sum())
}

async fn worker<J: Journal>(
    journal: &J,
    pace: Duration,
    left: &AtomicU64,
    stop: &CancellationToken,
) -> Result<u64, JournalError> {
    let mut open: Vec<Working> = (0..OPEN).map(|_| Working::new()).collect();
    let mut ticks = tokio::time::interval(pace);
    // After an outage it goes on at its pace, and does not make up for what was not.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut appended, mut away) = (0, false);
    while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        loop {
            let at = fastrand::usize(..open.len());
            match step(journal, &mut open[at]).await {
                Ok(true) => {
                    (appended, away) = (appended + 1, false);
                    break;
                }
                // Done; or somebody else's by now, or forgotten by a store that was reset.
                Ok(false) | Err(JournalError::WrongExpected { .. }) => open[at] = Working::new(),
                Err(error @ (JournalError::Denied { .. } | JournalError::Refused(_))) => return Err(error),
                Err(error) => {
                    // Whether it landed or not, another order is as good to watch.
                    open[at] = Working::new();
                    if !away {
                        warn!(%error, "an order's event was not taken; trying again");
                    }
                    away = true;
                    tokio::select! {
                        () = tokio::time::sleep(REST) => {}
                        () = stop.cancelled() => return Ok(appended),
                    }
                }
            }
        }
    }
    Ok(appended)
}

/// One event more; `false` when the order is done.
async fn step<J: Journal>(journal: &J, working: &mut Working) -> Result<bool, JournalError> {
    let Some(event) = working.next(fastrand::u32(..)) else {
        return Ok(false);
    };
    let body = codec::encode(&event).map_err(|error| JournalError::Refused(error.to_string()))?;
    let new = NewEvent {
        id: Uuid::new_v4(),
        kind: Arc::clone(&body.kind),
        json: true,
        data: body.data,
        metadata: Bytes::new(),
    };
    let expected = Expected::from(working.version);
    let appended = journal.append(&working.stream, expected, vec![new], DEADLINE).await?;
    working.took(event, appended.revision);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::journal::memory::MemoryJournal;

    /// A store in memory that was started again knows no order that was open.
    #[tokio::test(start_paused = true)]
    async fn a_store_that_forgot_every_order_does_not_slow_the_demo_down() {
        let journal = MemoryJournal::new();
        journal.before_append(100, |journal| {
            for stream in journal.streams() {
                journal.restore(&stream, 0);
            }
        });
        let began = Instant::now();
        let done = work(journal, RATE, Some(250), CancellationToken::new()).await;
        assert_eq!(done, Ok(250));
        assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn every_order_ends_and_its_figures_add_up() {
        let mut dice = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut working = Working::new();
            let mut steps = 0;
            while let Some(event) = working.next(dice.u32(..)) {
                working.took(event, Some(steps));
                steps += 1;
                assert!(steps < 1_000, "{working:?}");
            }
            let order = &working.order;
            match order.status {
                Status::Shipped => assert!(order.paid_cents == order.total_cents && order.parcel.is_some()),
                Status::Cancelled => assert_eq!(order.paid_cents, 0),
                status => panic!("an order ended as {status:?}"),
            }
        }
    }
}
