//! The integration tests: one binary, over the real protocols.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "helpers of tests fail their test, and what is compared are whole numbers"
)]

mod cli;
mod commands;
mod config;
mod daemon;
mod dynamodb;
mod journal;
mod readme;
mod rules;
mod shipping;
mod stack;
mod support;
