//! Something to watch: orders that are placed, filled, paid and shipped without end.
//!
//! Appends as a service would, at the revision that it knows; what it reads is the events' own
//! business, so the daemon beside it has nothing but the streams to go by.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::{
    aggregate::Aggregate,
    event::{Event, Version, codec},
    journal::{Expected, Journal, JournalError, NewEvent},
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

/// Orders that are worked on at the same time: enough streams to see them interleave.
const OPEN: usize = 50;
/// Between two appends: about 25 events a second, plain to see and no load.
const PACE: Duration = Duration::from_millis(40);
/// After an append that failed: the store may be restarting.
const REST: Duration = Duration::from_secs(1);
/// Longest time of one append.
const DEADLINE: Duration = Duration::from_secs(5);

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

/// Works on orders until `stop`.
pub(super) async fn work<J: Journal>(journal: J, stop: CancellationToken) {
    let mut open: Vec<Working> = (0..OPEN).map(|_| Working::new()).collect();
    loop {
        let at = fastrand::usize(..open.len());
        let wait = match step(&journal, &mut open[at]).await {
            Ok(true) => PACE,
            Ok(false) => {
                open[at] = Working::new();
                continue;
            }
            Err(error) => {
                debug!(%error, "the demo's append failed");
                // Whether it landed or not, another order is as good to watch.
                open[at] = Working::new();
                REST
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
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
    use super::*;

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
