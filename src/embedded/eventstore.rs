//! The EventStoreDB-compatible server.
pub mod persistent;
