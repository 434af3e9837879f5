//! An EventStoreDB-compatible server inside the process: the same gRPC services on loopback, over a
//! log in SQLite. Keeps: whatever the official clients can observe of append, read, subscription and
//! persistent subscription is what EventStoreDB 24.10 shows; where it leaves out one of
//! its defects ([`Defects`]) that can be switched on.
//!
//! # Use it in your tests
//!
//! It starts in milliseconds, on a free port, and keeps nothing unless [`Options::data`] names a
//! folder. From Rust:
//!
//! ```no_run
//! //! An EventStoreDB inside a test: started in milliseconds, gone with the test.
//!
//! use eventstore::{AppendToStreamOptions, Client, EventData, ExpectedRevision, PersistentSubscriptionOptions};
//! use eventstore::{StreamPosition, SubscribeToPersistentSubscriptionOptions};
//! use projector_eventstore::{EventStoreDb, Options};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let server = EventStoreDb::start(Options::default()).await?;
//!     let client = Client::new(server.connection_string().parse()?)?;
//!
//!     let new = AppendToStreamOptions::default().expected_revision(ExpectedRevision::NoStream);
//!     let placed = EventData::json("OrderPlaced", &serde_json::json!({ "total": 7 }))?.id(uuid::Uuid::new_v4());
//!     // What a real server shows only when something breaks, this one shows when it is asked to: the
//!     // append is written and its reply is lost. Sent again, it is not written again.
//!     server.faults().lose_append_replies(1);
//!     assert!(client.append_to_stream("order-1", &new, placed.clone()).await.is_err());
//!     client.append_to_stream("order-1", &new, placed).await?;
//!
//!     let options = PersistentSubscriptionOptions::default()
//!         .start_from(StreamPosition::Start)
//!         .resolve_link_tos(true);
//!     client
//!         .create_persistent_subscription("$ce-order", "test", &options)
//!         .await?;
//!     let options = SubscribeToPersistentSubscriptionOptions::default();
//!     let mut orders = client
//!         .subscribe_to_persistent_subscription("$ce-order", "test", &options)
//!         .await?;
//!     let order = orders.next().await?;
//!     assert_eq!(order.event.as_ref().map(|event| event.revision), Some(0));
//!     orders.ack(order).await?;
//!
//!     server.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! From any other language: `projector stack --eventstore-port 0 --dynamodb-port 0` prints where it
//! listens. `examples/eventstore` has this for Node and Python.
//!
//! # What is there
//!
//! - Streams: every append, batch append, read, catch-up subscription, deletion, tombstone; metadata
//!   with `$maxCount`, `$maxAge`, `$tb` and `$acl`; links; filters, in .NET's patterns.
//! - Persistent subscriptions: all calls, all four consumer strategies, on streams and on `$all`.
//! - The five standard projections ([`SystemProjection`]), in the transaction of the event itself: a
//!   category is never behind. A handle runs `$by_category` unless told otherwise, `projector stack`
//!   all of them.
//! - Gossip, server features, a few statistics; over HTTP `/health/live`, `/ping`, `/info`, `/gossip`,
//!   and `POST /streams/NAME` of one event.
//! - TLS by a certificate made at start, users with the permissions of the default policy ([`Users`]),
//!   several nodes of which one leads ([`Cluster`]).
//! - Faults on demand ([`Faults`]), none of which runs unless it was armed.
//!
//! Any other call is answered `Unimplemented` with its name: projections of one's own, users,
//! operations, the HTTP API.
//!
//! # What differs from EventStoreDB
//!
//! - What it acknowledges is on disk where it has a folder: one sync for all appends that wait
//!   together.
//! - Its defects are left out. Where a test is about one of them, [`Defects`] brings it back: of pinned
//!   groups the checkpoint that passes records which wait for a full consumer; of filtered `$all`
//!   groups the checkpoint that passes matched records; slots lost to an event id that comes twice;
//!   no reply while groups load; a group that stands still until somebody acknowledges.
//! - Nothing is scavenged: what is truncated or deleted stays in `$all`.
//! - No standard projection is ever late, so what it links to is resolved at once; of projections a
//!   fresh log has the registration, and no checkpoints follow.
//! - A read of `$all` may start inside a record: it goes on behind it.

#![allow(
    clippy::result_large_err,
    reason = "a status is what every call here answers with, and errors are rare"
)]

mod about;
mod access;
mod answers;
mod deadline;
mod encode;
mod faults;
mod groups;
mod log;
mod node;
mod pages;
mod payloads;
mod persistent;
mod projections;
mod record;
mod reset;
mod router;
mod server;
mod status;
mod streams;
mod tls;
#[doc(hidden)]
pub mod wire;

pub use self::{
    access::User,
    faults::{Disturbance, End, Faults},
    log::SystemProjection,
    persistent::settings::Defects,
    server::{Cluster, EventStoreDb, Handle, Options, StartError, Users},
};
