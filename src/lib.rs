//! Skeleton.

pub mod aggregate;
pub mod document;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod event;
pub mod journal;
pub mod projection;
pub mod projector;
pub mod replica;
