//! Samples each projection's lag and counts for the last half hour that the page shows.

use std::sync::PoisonError;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Summed;
use crate::http::{
    history::{Counted, EVERY},
    report::WatchedProjection,
};

/// Samples until `close`; the two lists are in the same order.
pub(super) async fn keep(projections: Vec<Summed>, watched: Vec<WatchedProjection>, close: CancellationToken) {
    let began = Instant::now();
    let mut ticks = interval(EVERY);
    // A process that was stopped for a while has no samples of it.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = close.cancelled() => return,
        }
        for ((status, counts), watched) in projections.iter().zip(&watched) {
            let lag = status.borrow().lag.as_ref().map(|lag| (lag.events, lag.seconds));
            let totals = counts.totals();
            let counted = Counted {
                applied: totals.applied,
                written: totals.writes,
            };
            let mut history = watched.history.lock().unwrap_or_else(PoisonError::into_inner);
            history.record(began.elapsed(), lag, counted);
        }
    }
}
