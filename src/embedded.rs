//! Embedded stack.
pub mod dynamodb;
pub mod eventstore;
