//! The integration tests: one binary, over the real protocols.

mod cli;
mod config;
mod dynamodb;
mod journal;
mod readme;
mod shipping;
mod support;
