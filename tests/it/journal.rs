//! The adapter for EventStoreDB, held over the wire to what its port promises.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod failures;
mod groups;
mod sources;
mod streams;

use std::{sync::Arc, time::Duration};

use projector::{
    event::RawEvent,
    journal::{
        NewEvent, ReadLimit,
        esdb::{EsdbSettings, EventStore},
    },
};
use uuid::Uuid;

use crate::support::node::Node;

/// Long enough for a loaded machine, short enough to wait for in a test that expects it.
const SOON: Duration = Duration::from_millis(300);

const ALL: ReadLimit = ReadLimit {
    events: 1_000,
    bytes: usize::MAX,
};

fn settings(node: &Node) -> EsdbSettings {
    EsdbSettings::new(node.url())
}

fn store(node: &Node) -> EventStore {
    EventStore::new(&settings(node)).unwrap()
}

/// A store whose calls give up soon.
fn hasty(node: &Node) -> EventStore {
    EventStore::new(&EsdbSettings {
        operation_timeout: SOON,
        ..settings(node)
    })
    .unwrap()
}

/// Of the event with this number; the id of zero is none.
fn id(n: u128) -> Uuid {
    Uuid::from_u128(n + 1)
}

fn event(n: u128) -> NewEvent {
    NewEvent {
        id: id(n),
        kind: Arc::from("Counted"),
        json: true,
        data: format!("{{\"n\":{n}}}").into(),
        metadata: bytes::Bytes::new(),
    }
}

fn events(numbers: std::ops::Range<u128>) -> Vec<NewEvent> {
    numbers.map(event).collect()
}

fn revisions(events: &[RawEvent]) -> Vec<u64> {
    events.iter().map(|event| event.revision).collect()
}
