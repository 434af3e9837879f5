//! The integration tests: one binary, over the real protocols, by subject.
//!
//! | subject | what is tried |
//! |---|---|
//! | `commands` | commands and queries of a service, alone and beside the daemon |
//! | `daemon` | the daemon as a process: streams, marks, lag, outages, its pages, its start, the command line |
//! | `documents` | what is written of it all, held against the code |
//! | `dynamodb`, `journal` | the two ports |
//! | `embedded` | the embedded EventStoreDB as its clients see it |
//!
//! What one stream of a projection goes through is in the library: `projector::lane::tests`, by rule.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::large_futures,
    reason = "helpers of tests fail their test, what is compared are whole numbers, and a test has room on its stack"
)]

mod commands;
mod daemon;
mod documents;
mod dynamodb;
mod embedded;
mod journal;
mod support;
