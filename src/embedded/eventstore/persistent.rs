//! Persistent subscriptions: groups of consumers that the server feeds, and that acknowledge.
//! Keeps: the rules of one group live in a machine without clock, thread or disk
//! ([`group::Group`]); everything around it only carries what the machine asks for.

mod actor;
pub mod config;
mod convert;
mod delivery;
pub mod errors;
pub mod group;
pub mod grpc;
mod hash;
pub mod info;
mod names;
pub mod place;
pub mod service;
pub mod settings;
pub mod store;
pub mod strategy;
pub(crate) mod wire;

pub(crate) use delivery::counts_as_skipped;
