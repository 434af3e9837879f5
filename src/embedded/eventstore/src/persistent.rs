//! Persistent subscriptions: groups of consumers that the server feeds, and that acknowledge.
//! Keeps: the rules of one group live in a machine without clock, thread or disk
//! ([`group::Group`]); everything around it only carries what the machine asks for.

mod actor;
pub(crate) mod config;
mod convert;
mod delivery;
pub(crate) mod errors;
pub(crate) mod group;
pub(crate) mod grpc;
mod hash;
pub(crate) mod info;
mod names;
pub(crate) mod place;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod store;
pub(crate) mod strategy;

pub(crate) use delivery::counts_as_skipped;
