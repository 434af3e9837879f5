//! One projection's handles: what the engine and the table count, resolved when it starts.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus::{Counter, Gauge, GaugeVec, Histogram, IntCounter};

use super::Families;
use crate::{
    journal::Unplaced,
    projector::meter::{Count, EndReason, LaneState, Level, Meter, Timing, WriteOutcome},
    replica::{
        Throttle,
        dynamodb::{AttemptOutcome, Operation, RequestAttempt, StoreObserver},
    },
};

/// Every outcome of an attempt; the position is the slot of its counter.
const OUTCOMES: [AttemptOutcome; 10] = [
    AttemptOutcome::Done,
    AttemptOutcome::Recovered,
    AttemptOutcome::Refused,
    AttemptOutcome::Partial,
    AttemptOutcome::Throttled(Throttle::Key),
    AttemptOutcome::Throttled(Throttle::Table),
    AttemptOutcome::Throttled(Throttle::Account),
    AttemptOutcome::Conflict,
    AttemptOutcome::Unavailable,
    AttemptOutcome::Setup,
];

/// Every operation sent, likewise.
const OPERATIONS: [Operation; 8] = [
    Operation::GetItem,
    Operation::BatchGetItem,
    Operation::PutItem,
    Operation::UpdateItem,
    Operation::DescribeTable,
    Operation::CreateTable,
    Operation::DescribeContinuousBackups,
    Operation::UpdateContinuousBackups,
];

/// The metrics of one projection: what its engine and its table count into. Cheap to clone.
#[derive(Clone)]
pub struct ProjectionMetrics(Arc<Handles>);

impl std::fmt::Debug for ProjectionMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProjectionMetrics")
            .field("projection", &self.0.projection)
            .field("schema", &self.0.schema)
            .finish_non_exhaustive()
    }
}

/// Some of the counts of a projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events folded.
    pub applied: u64,
    /// Puts that are durable.
    pub writes: u64,
    /// Puts that were refused.
    pub refused: u64,
    /// Events that gap reads brought.
    pub gap_events: u64,
    /// Puts that the table throttled.
    pub throttled: u64,
}

struct Handles {
    families: Arc<Families>,
    projection: String,
    schema: String,
    received: IntCounter,
    applied: IntCounter,
    settled_without_write: IntCounter,
    skipped: IntCounter,
    unplaced: [IntCounter; Unplaced::ALL.len()],
    parked: IntCounter,
    gap_reads: IntCounter,
    gap_events: IntCounter,
    writes: [IntCounter; 5],
    quarantines: IntCounter,
    divergences: IntCounter,
    reconnects: [IntCounter; 8],
    panics: IntCounter,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    write_seconds: Histogram,
    durable_age: Histogram,
    drain: Gauge,
    held: Gauge,
    held_oldest: Gauge,
    lanes: [Gauge; 4],
    lanes_oldest: [Gauge; 4],
    subscription_up: Gauge,
    write_limit: Gauge,
    cache_bytes: Gauge,
    memory_bytes: Gauge,
    /// By operation and outcome. Most pairs never happen, so each becomes a series when it does.
    requests: [[OnceLock<IntCounter>; OUTCOMES.len()]; OPERATIONS.len()],
    read_units: Counter,
    write_units: Counter,
    left_out: IntCounter,
}

/// Every outcome of a put; the position is the slot of its counter.
const WRITES: [WriteOutcome; 5] = [
    WriteOutcome::Done,
    WriteOutcome::Refused,
    WriteOutcome::Throttled,
    WriteOutcome::Unavailable,
    WriteOutcome::Setup,
];

/// Every reason of a connection's end; the position is the slot of its counter.
const ENDS: [EndReason; 8] = [
    EndReason::Disconnected,
    EndReason::StoreOutage,
    EndReason::Watchdog,
    EndReason::Panic,
    EndReason::QuarantineStorm,
    EndReason::Setup,
    EndReason::TableAnew,
    EndReason::Stopping,
];

fn write_word(outcome: WriteOutcome) -> &'static str {
    match outcome {
        WriteOutcome::Done => "done",
        WriteOutcome::Refused => "refused",
        WriteOutcome::Throttled => "throttled",
        WriteOutcome::Unavailable => "unavailable",
        WriteOutcome::Setup => "setup",
    }
}

fn lane_word(state: LaneState) -> &'static str {
    match state {
        LaneState::Waiting => "waiting",
        LaneState::Loading => "loading",
        LaneState::Reading => "reading",
        LaneState::Writing => "writing",
    }
}

fn end_word(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Disconnected => "disconnected",
        EndReason::StoreOutage => "store_outage",
        EndReason::Watchdog => "watchdog",
        EndReason::Panic => "panic",
        EndReason::QuarantineStorm => "quarantine_storm",
        EndReason::Setup => "setup",
        EndReason::TableAnew => "table_anew",
        EndReason::Stopping => "stopping",
    }
}

impl ProjectionMetrics {
    pub(super) fn new(families: &Arc<Families>, projection: &str, schema: u32) -> Self {
        let f = families.clone();
        let schema = schema.to_string();
        let of = [projection, schema.as_str()];
        let and = |word| [of[0], of[1], word];
        let handles = Handles {
            received: f.received.with_label_values(&of),
            applied: f.applied.with_label_values(&of),
            settled_without_write: f.settled_without_write.with_label_values(&of),
            skipped: f.skipped.with_label_values(&of),
            unplaced: Unplaced::ALL.map(|class| f.unplaced.with_label_values(&and(class.word()))),
            parked: f.parked.with_label_values(&of),
            gap_reads: f.gap_reads.with_label_values(&of),
            gap_events: f.gap_events.with_label_values(&of),
            writes: WRITES.map(|outcome| f.writes.with_label_values(&and(write_word(outcome)))),
            quarantines: f.quarantines.with_label_values(&of),
            divergences: f.divergences.with_label_values(&of),
            reconnects: ENDS.map(|reason| f.reconnects.with_label_values(&and(end_word(reason)))),
            panics: f.panics.with_label_values(&of),
            cache_hits: f.cache_lookups.with_label_values(&and("hit")),
            cache_misses: f.cache_lookups.with_label_values(&and("miss")),
            write_seconds: f.write_seconds.with_label_values(&of),
            durable_age: f.durable_age.with_label_values(&of),
            drain: f.drain.with_label_values(&of),
            held: f.held.with_label_values(&of),
            held_oldest: f.held_oldest.with_label_values(&of),
            lanes: LaneState::ALL.map(|state| f.lanes.with_label_values(&and(lane_word(state)))),
            lanes_oldest: LaneState::ALL.map(|state| f.lanes_oldest.with_label_values(&and(lane_word(state)))),
            subscription_up: f.subscription_up.with_label_values(&of),
            write_limit: f.write_limit.with_label_values(&of),
            cache_bytes: f.cache_bytes.with_label_values(&of),
            memory_bytes: f.memory_bytes.with_label_values(&of),
            requests: Default::default(),
            read_units: f.capacity.with_label_values(&and("read")),
            write_units: f.capacity.with_label_values(&and("write")),
            left_out: f.left_out.with_label_values(&of),
            projection: projection.to_owned(),
            schema: schema.clone(),
            families: families.clone(),
        };
        Self(Arc::new(handles))
    }

    /// What was counted so far, for summaries.
    pub fn totals(&self) -> Totals {
        Totals {
            applied: self.0.applied.get(),
            writes: self.0.writes[WriteOutcome::Done as usize].get(),
            refused: self.0.writes[WriteOutcome::Refused as usize].get(),
            gap_events: self.0.gap_events.get(),
            throttled: self.0.writes[WriteOutcome::Throttled as usize].get(),
        }
    }

    /// Tells how long the backlog lasts at the present pace.
    pub fn set_drain_seconds(&self, seconds: f64) {
        self.0.drain.set(seconds);
    }

    /// What was told of that last; 0 before.
    pub fn drain_seconds(&self) -> f64 {
        self.0.drain.get()
    }

    fn request(&self, operation: Operation, outcome: AttemptOutcome) -> Option<&IntCounter> {
        let slot = &self.0.requests[OPERATIONS.iter().position(|o| *o == operation)?]
            [OUTCOMES.iter().position(|o| *o == outcome)?];
        Some(slot.get_or_init(|| {
            let labels = [
                self.0.projection.as_str(),
                self.0.schema.as_str(),
                operation.name(),
                outcome.word(),
            ];
            self.0.families.requests.with_label_values(&labels)
        }))
    }
}

impl Meter for ProjectionMetrics {
    fn count(&self, count: Count, n: u64) {
        let m = &*self.0;
        match count {
            Count::Received => &m.received,
            Count::Applied => &m.applied,
            Count::SettledWithoutWrite => &m.settled_without_write,
            Count::Skipped => &m.skipped,
            Count::Unplaced(class) => &m.unplaced[class as usize],
            Count::Parked => &m.parked,
            Count::GapReads => &m.gap_reads,
            Count::GapEvents => &m.gap_events,
            Count::Write(outcome) => &m.writes[outcome as usize],
            Count::Quarantined => &m.quarantines,
            Count::Diverged => &m.divergences,
            Count::Reconnect(reason) => &m.reconnects[reason as usize],
            Count::Panic => &m.panics,
            Count::CacheHit => &m.cache_hits,
            Count::CacheMiss => &m.cache_misses,
        }
        .inc_by(n);
    }

    fn observe(&self, timing: Timing, took: Duration) {
        match timing {
            Timing::Write => &self.0.write_seconds,
            Timing::DurableAge => &self.0.durable_age,
        }
        .observe(took.as_secs_f64());
    }

    fn set(&self, level: Level, value: f64) {
        let m = &*self.0;
        match level {
            Level::Holding => &m.held,
            Level::OldestHeldSeconds => &m.held_oldest,
            Level::Lanes(state) => &m.lanes[state as usize],
            Level::LanesOldestSeconds(state) => &m.lanes_oldest[state as usize],
            Level::SubscriptionUp => &m.subscription_up,
            Level::WriteLimit => &m.write_limit,
            Level::CacheBytes => &m.cache_bytes,
            Level::MemoryBytes => &m.memory_bytes,
            measured => {
                if let Some(family) = m.measured(measured) {
                    family.with_label_values(&[&*m.projection, &*m.schema]).set(value);
                }
                return;
            }
        }
        .set(value);
    }

    fn unset(&self, level: Level) {
        let m = &*self.0;
        if let Some(family) = m.measured(level) {
            // An error says only that it is absent already.
            drop(family.remove_label_values(&[&*m.projection, &*m.schema]));
        }
    }
}

impl Handles {
    /// What is not there before it was measured, nor while it cannot be: a 0 would be a lie.
    fn measured(&self, level: Level) -> Option<&GaugeVec> {
        let f = &*self.families;
        Some(match level {
            Level::LagEvents => &f.lag_events,
            Level::LagSeconds => &f.lag_seconds,
            Level::LagMeasuredAt => &f.lag_measured_at,
            Level::CheckpointLag => &f.checkpoint_lag,
            Level::SourceStalled => &f.source_stalled,
            Level::Checkpoint => &f.checkpoint,
            Level::Newest => &f.newest,
            Level::ParkedMessages => &f.group_parked,
            Level::GroupInFlight => &f.group_in_flight,
            Level::Quarantined => &f.quarantined,
            Level::Diverged => &f.diverged,
            _ => return None,
        })
    }
}

impl StoreObserver for ProjectionMetrics {
    fn attempt(&self, attempt: &RequestAttempt<'_>) {
        if let Some(counter) = self.request(attempt.operation, attempt.outcome) {
            counter.inc();
        }
        match attempt.operation {
            Operation::GetItem | Operation::BatchGetItem => self.0.read_units.inc_by(attempt.capacity),
            Operation::PutItem | Operation::UpdateItem => self.0.write_units.inc_by(attempt.capacity),
            _ => {}
        }
    }

    fn left_out(&self, _table: &str, fields: u32) {
        self.0.left_out.inc_by(u64::from(fields));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// A slot is found by the enum's own number: the lists must be in the enums' order and whole.
    #[test]
    fn every_value_has_the_slot_of_its_own() {
        for (slot, outcome) in WRITES.into_iter().enumerate() {
            assert_eq!(outcome as usize, slot, "{outcome:?}");
        }
        for (slot, reason) in ENDS.into_iter().enumerate() {
            assert_eq!(reason as usize, slot, "{reason:?}");
        }
        for (slot, state) in LaneState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, slot, "{state:?}");
        }
        let sent: Vec<_> = Operation::RUNNING.into_iter().chain(Operation::PROVISIONING).collect();
        assert!(sent.iter().all(|o| OPERATIONS.contains(o)) && sent.len() == OPERATIONS.len());
    }

    #[test]
    fn what_is_not_known_is_absent_and_never_zero() {
        let metrics = Metrics::new();
        let loans = metrics.projection("loan", 1);
        let shown = |name: &str| metrics.render().contains(name);
        let measured = [
            (Level::LagEvents, "projector_source_lag_events"),
            (Level::LagSeconds, "projector_source_lag_seconds"),
            (Level::Checkpoint, "projector_source_checkpoint"),
            (Level::Newest, "projector_source_newest"),
            (Level::Quarantined, "projector_quarantined_aggregates"),
        ];
        for (level, name) in measured {
            assert!(!shown(name), "{name} before it was measured");
            loans.set(level, 0.0);
            assert!(shown(name), "{name}");
            loans.unset(level);
            assert!(!shown(name), "{name} while it is not known");
        }
    }

    #[test]
    fn what_is_counted_shows_under_its_projection_and_schema() {
        let metrics = Metrics::new();
        let loans = metrics.projection("loan", 2);
        loans.count(Count::Received, 3);
        loans.count(Count::Write(WriteOutcome::Refused), 2);
        loans.observe(Timing::DurableAge, Duration::from_millis(4));
        loans.set(Level::Lanes(LaneState::Writing), 7.0);
        metrics.projection("loan", 2).count(Count::Received, 1);
        loans.attempt(&RequestAttempt {
            table: "t",
            operation: Operation::PutItem,
            outcome: AttemptOutcome::Done,
            capacity: 1.5,
            latency: Duration::from_millis(1),
        });
        let text = metrics.render();
        for line in [
            r#"projector_deliveries_received_total{projection="loan",schema="2"} 4"#,
            r#"projector_writes_total{outcome="refused",projection="loan",schema="2"} 2"#,
            r#"projector_durable_age_seconds_bucket{projection="loan",schema="2",le="0.005"} 1"#,
            r#"projector_durable_age_seconds_bucket{projection="loan",schema="2",le="0.003"} 0"#,
            r#"projector_lanes{projection="loan",schema="2",state="writing"} 7"#,
            r#"projector_dynamodb_consumed_units_total{kind="write",projection="loan",schema="2"} 1.5"#,
            r#"projector_dynamodb_requests_total{operation="PutItem",outcome="done",projection="loan",schema="2"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
