//! Skeleton.

pub mod aggregate;
pub mod command;
pub mod document;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod event;
pub mod journal;
pub mod projection;
pub mod projector;
pub mod query;
pub mod replica;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
