//! The command path on the in-memory doubles: every corner of its rules.

mod campaign;
mod corners;
mod decisions;
mod early;
mod expecting;
mod faults;
pub(super) mod kit;
mod loads;
mod once;
mod queries;
mod repeated;
mod revived;
mod sources;
mod turns;
