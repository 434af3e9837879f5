//! Documents, templates and sources, held against the code.

mod alerts;
mod ecs;
mod examples;
mod logs;
pub(crate) mod readme;
mod rules;
mod shipping;
