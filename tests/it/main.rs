//! The integration tests: one binary, over the real protocols.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::large_futures,
    reason = "helpers of tests fail their test, what is compared are whole numbers, and a test has room on its stack"
)]

mod alerts;
mod cli;
mod commands;
mod config;
mod crash;
mod daemon;
mod documented;
mod dynamodb;
mod ecs;
mod journal;
mod logs;
mod memory;
mod persistent;
mod readme;
mod rules;
mod shipping;
mod stack;
mod startup;
mod streams;
mod support;
mod together;
#[cfg(feature = "otel")]
mod traces;
