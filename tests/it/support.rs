//! What the tests stand on: stores to talk to, and faults between them and us.

pub(crate) mod dynamo;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod tap;
