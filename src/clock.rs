//! What time it is, for who compares it with what a server wrote. Waiting and measuring go by tokio's
//! clock; a simulation turns both.

use chrono::{DateTime, Utc};

/// The time now.
pub(crate) fn now() -> DateTime<Utc> {
    #[cfg(test)]
    if let Some(simulated) = simulated::now() {
        return simulated;
    }
    Utc::now()
}

/// A thread's clock that goes by tokio's.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;

    use chrono::{DateTime, TimeDelta, Utc};
    use tokio::time::Instant;

    thread_local! {
        static EPOCH: Cell<Option<(Instant, DateTime<Utc>)>> = const { Cell::new(None) };
    }

    /// From now on this thread's time goes by tokio's clock, and it is `at` now; or it is the
    /// machine's again.
    pub(crate) fn set(at: Option<DateTime<Utc>>) {
        EPOCH.set(at.map(|at| (Instant::now(), at)));
    }

    pub(super) fn now() -> Option<DateTime<Utc>> {
        let (began, at) = EPOCH.get()?;
        Some(at + TimeDelta::from_std(began.elapsed()).expect("a simulation lasts no ages"))
    }
}
