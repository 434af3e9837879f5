//! What the tests stand on: stores to talk to, and faults between them and us.

pub(crate) mod dynamo;
#[allow(dead_code, reason = "what is said for users and metadata is for the tests of access")]
pub(crate) mod eventstore;
pub(crate) mod group;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod tap;
