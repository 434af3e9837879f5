//! In place of `traced`, where feature `otel` is left out.

use std::sync::Arc;

use super::{
    effects::Failures,
    lane::{Arrival, Effect, LaneRules, Outcome},
};

#[derive(Debug)]
pub(super) struct Runs;

#[allow(clippy::unused_self, reason = "it stands for what does something")]
impl Runs {
    pub(super) fn new(_: &LaneRules, _: &str) -> Self {
        Self
    }

    pub(super) fn arrived(&mut self, _: &Arc<str>, _: &Arrival) {}

    pub(super) fn begins(&mut self, _: &Arc<str>, _: &Effect) -> Failures {
        Failures::default()
    }

    pub(super) fn load(&mut self, _: &[Arc<str>]) {}

    pub(super) fn answered(&mut self, _: &Arc<str>, _: &Outcome) {}

    pub(super) fn goes_on(&mut self, _: &Arc<str>) {}

    pub(super) fn went_on(&mut self, _: &Arc<str>, _: u64, _: bool) {}

    pub(super) fn abandon(&mut self, _: &str) {}
}
