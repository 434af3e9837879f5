//! The integration tests: one binary, over the real protocols.

mod dynamodb;
mod rules;
mod support;
