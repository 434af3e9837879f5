//! An EventStoreDB-compatible server inside the process: the same gRPC services on loopback, over a
//! log in SQLite. Keeps: whatever the official clients can observe of append, read, subscription and
//! persistent subscription is what EventStoreDB 24.10 shows; where it deliberately differs
//! ([`Defects`]) the difference can be switched off.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use projector::embedded::eventstore::{EventStoreDb, Options};
//!
//! let server = EventStoreDb::start(Options::default()).await?;
//! println!("{}", server.connection_string());
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```

#![allow(
    clippy::result_large_err,
    reason = "a status is what every call here answers with, and errors are rare"
)]

mod about;
mod access;
mod deadline;
mod encode;
mod faults;
mod groups;
mod log;
mod node;
mod persistent;
mod record;
mod router;
mod server;
mod status;
mod streams;
mod tls;
mod wire;

pub use self::{
    access::User,
    faults::{Disturbance, End, Faults},
    log::SystemProjection,
    persistent::settings::Defects,
    server::{Cluster, EventStoreDb, Handle, Options, StartError, Users},
};
