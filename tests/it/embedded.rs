//! The embedded EventStoreDB and the stack around it: what clients see over the wire, and what a server
//! holds through crashes and for its clients.

mod crash;
mod memory;
mod persistent;
mod stack;
mod streams;
