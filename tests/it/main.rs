//! The integration tests: one binary, over the real protocols.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "helpers of tests fail their test, and what is compared are whole numbers"
)]

mod cli;
mod config;
mod crash;
mod daemon;
mod dynamodb;
mod journal;
mod persistent;
mod readme;
mod rules;
mod shipping;
mod stack;
mod streams;
mod support;
mod together;
