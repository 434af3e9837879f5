//! The engine: from deliveries to durable replicas.
//!
//! [`lane`] is the pure machine for one stream of one projection; everything that waits is
//! around it.

pub mod lane;
pub mod meter;

pub mod batching;
#[cfg(feature = "daemon")]
pub mod effects;
#[cfg(feature = "daemon")]
pub mod engine;
#[cfg(feature = "daemon")]
mod held;
#[cfg(feature = "daemon")]
pub mod host;
#[cfg(feature = "daemon")]
pub mod lag;
#[cfg(feature = "daemon")]
pub mod lanes;
#[cfg(feature = "daemon")]
pub mod replica_cache;
#[cfg(feature = "daemon")]
pub mod session;
#[cfg(all(test, feature = "daemon"))]
#[allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail their test, and a run that is asked for is shown"
)]
mod simulation;
#[cfg(feature = "daemon")]
pub mod status;
#[cfg(feature = "daemon")]
mod told;
#[cfg(all(feature = "daemon", feature = "otel"))]
mod traced;
#[cfg(all(feature = "daemon", not(feature = "otel")))]
#[path = "projector/untraced.rs"]
mod traced;
#[cfg(feature = "daemon")]
pub mod write_limit;
