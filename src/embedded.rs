//! Both stores inside the process, behind their real protocols: the endpoint differs, the code that
//! talks to it does not.

pub mod dynamodb;
/// An EventStoreDB-compatible server. A crate of its own, which knows nothing of projector: tests of
/// other projects use it without the AWS SDK.
pub use projector_eventstore as eventstore;
