#![doc = include_str!("ARCHITECTURE.md")]

pub mod aggregate;
#[cfg(feature = "daemon")]
pub mod app;
mod backoff;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(any(feature = "daemon", feature = "testing", test))]
mod clock;
pub mod command;
#[cfg(feature = "daemon")]
pub mod config;
pub mod document;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod event;
#[cfg(any(all(doc, not(doctest)), all(doctest, feature = "embedded")))]
pub mod guide;
#[cfg(feature = "daemon")]
pub mod health;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod http;
pub mod journal;
#[cfg(feature = "daemon")]
pub mod metrics;
mod panics;
pub mod projection;
#[doc(hidden)]
pub mod projector;
pub mod query;
mod reading;
pub mod replica;
pub mod store;
#[cfg(feature = "daemon")]
pub mod telemetry;
// Documented in any case; `doctest`s are built against the library as its features have it.
#[cfg(any(test, feature = "testing", all(doc, not(doctest))))]
pub mod testing;
#[cfg(feature = "otel")]
pub mod traces;

#[cfg(not(all(feature = "jemalloc", not(target_env = "msvc"))))]
#[doc(no_inline)]
pub use std::alloc::System as Allocator;
/// What a binary that runs the daemon allocates with: jemalloc with the feature `jemalloc`, else the
/// system's allocator.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: projector::Allocator = projector::Allocator;
/// # fn main() {}
/// ```
#[cfg(all(feature = "jemalloc", not(target_env = "msvc")))]
pub use tikv_jemallocator::Jemalloc as Allocator;

/// The tests measure memory as the binary takes it.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The README's code, compiled as whoever copies it would.
#[cfg(all(doctest, feature = "embedded"))]
#[doc = include_str!("../README.md")]
pub mod readme {}
