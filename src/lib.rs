//! Skeleton.

pub mod aggregate;
#[cfg(feature = "daemon")]
pub mod app;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod config;
pub mod document;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod event;
#[cfg(feature = "daemon")]
pub mod health;
#[cfg(feature = "daemon")]
pub mod http;
pub mod journal;
#[cfg(feature = "daemon")]
pub mod metrics;
pub mod projection;
pub mod projector;
pub mod replica;
#[cfg(feature = "daemon")]
pub mod telemetry;
