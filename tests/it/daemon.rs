//! The daemon end to end: both stores behind their real protocols, replicas compared with what the
//! streams say. What happens to streams, stores and code here happens in production, too.

mod codes;
mod lag;
mod marks;
mod outages;
mod page;
mod resets;
mod streams;
mod truth;
pub(crate) mod world;
