//! The daemon end to end: both stores behind their real protocols, replicas compared with what the
//! streams say. What happens to streams, stores and code here happens in production, too.

mod cli;
mod codes;
mod config;
mod lag;
mod marks;
mod outages;
mod page;
mod resets;
mod startup;
mod streams;
#[cfg(feature = "otel")]
mod traces;
mod truth;
pub(crate) mod world;
