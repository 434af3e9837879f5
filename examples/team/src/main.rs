//! A team's own binary: projector's command line, with the team's projections built in.

use std::process::ExitCode;

use projector::{aggregate::Aggregate, event::Event};
use serde::{Deserialize, Serialize};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Order {
    customer: Option<String>,
    parcel: Option<String>,
}

// The variants' names are the event types.
#[derive(Serialize, Deserialize)]
enum OrderEvent {
    OrderPlaced { customer: String },
    OrderShipped { parcel: String },
    #[serde(other)]
    Ignored,
}

impl Event for OrderEvent {}

impl Aggregate for Order {
    const CATEGORY: &'static str = "order";
    type Event = OrderEvent;

    fn apply(&mut self, event: OrderEvent) {
        match event {
            OrderEvent::OrderPlaced { customer } => self.customer = Some(customer),
            OrderEvent::OrderShipped { parcel } => self.parcel = Some(parcel),
            OrderEvent::Ignored => {}
        }
    }
}

// An event takes a quarter less processor time than with glibc's allocator.
#[global_allocator]
static ALLOCATOR: projector::Allocator = projector::Allocator;

fn main() -> ExitCode {
    projector::cli::main(|registry| registry.with::<Order>())
}
