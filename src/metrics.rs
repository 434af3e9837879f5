//! Everything that `/metrics` shows, in one place: names, help, labels, buckets. What of it a
//! projection holds is in `handles`.
//!
//! Label values come from enums and from projection names alone, so their number is bounded; no
//! stream name and no secret is ever one (I8 secrets). Handles are resolved when a projection
//! starts; counting is one atomic addition, and a scrape reads memory only.

use std::sync::Arc;

use prometheus::{CounterVec, Gauge, GaugeVec, HistogramVec, IntCounterVec, Registry, TextEncoder, core::Collector};

pub mod emf;
mod handles;
mod process;

pub use handles::{ProjectionMetrics, Totals};
pub use process::sample as sample_process;

/// From a round trip within a zone to DynamoDB's slowest attempt before its time-out.
const WRITE_BUCKETS: &[f64] = &[
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// From an append nearby to a backlog: fine below 100 ms, where a live projection stands, and on
/// to ten minutes, where an alert has long fired.
const AGE_BUCKETS: &[f64] = &[
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0,
    5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// The labels of everything that belongs to a projection.
const PROJECTION: [&str; 2] = ["projection", "schema"];

/// A store that the daemon needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// The event store.
    EventStore,
    /// The replicas' store.
    DynamoDb,
}

impl Backend {
    /// The label's value.
    pub fn word(self) -> &'static str {
        match self {
            Self::EventStore => "eventstore",
            Self::DynamoDb => "dynamodb",
        }
    }
}

/// All metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

struct Families {
    registry: Registry,
    received: IntCounterVec,
    applied: IntCounterVec,
    settled_without_write: IntCounterVec,
    skipped: IntCounterVec,
    unplaced: IntCounterVec,
    parked: IntCounterVec,
    gap_reads: IntCounterVec,
    gap_events: IntCounterVec,
    writes: IntCounterVec,
    quarantines: IntCounterVec,
    divergences: IntCounterVec,
    reconnects: IntCounterVec,
    panics: IntCounterVec,
    cache_lookups: IntCounterVec,
    write_seconds: HistogramVec,
    durable_age: HistogramVec,
    lag_events: GaugeVec,
    lag_seconds: GaugeVec,
    lag_measured_at: GaugeVec,
    drain: GaugeVec,
    checkpoint_lag: GaugeVec,
    source_stalled: GaugeVec,
    checkpoint: GaugeVec,
    newest: GaugeVec,
    group_parked: GaugeVec,
    group_in_flight: GaugeVec,
    quarantined: GaugeVec,
    diverged: GaugeVec,
    held: GaugeVec,
    held_oldest: GaugeVec,
    lanes: GaugeVec,
    lanes_oldest: GaugeVec,
    subscription_up: GaugeVec,
    write_limit: GaugeVec,
    cache_bytes: GaugeVec,
    memory_bytes: GaugeVec,
    requests: IntCounterVec,
    capacity: CounterVec,
    left_out: IntCounterVec,
    store_up: GaugeVec,
    ready: Gauge,
    process: process::Process,
}

/// Registers families one after another, so that a name twice is found when the process starts.
struct Making(Registry);

impl Making {
    fn keep<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("names and labels of metrics are constants and well formed");
        self.0
            .register(Box::new(collector.clone()))
            .expect("names of metrics are constants and differ");
        collector
    }

    fn counters(&self, name: &str, help: &str, more: &[&str]) -> IntCounterVec {
        let labels: Vec<_> = PROJECTION.iter().chain(more).copied().collect();
        self.keep(IntCounterVec::new(prometheus::opts!(name, help), &labels))
    }

    fn fractions(&self, name: &str, help: &str, more: &[&str]) -> CounterVec {
        let labels: Vec<_> = PROJECTION.iter().chain(more).copied().collect();
        self.keep(CounterVec::new(prometheus::opts!(name, help), &labels))
    }

    fn gauges(&self, name: &str, help: &str, more: &[&str]) -> GaugeVec {
        let labels: Vec<_> = PROJECTION.iter().chain(more).copied().collect();
        self.keep(GaugeVec::new(prometheus::opts!(name, help), &labels))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
        let options = prometheus::histogram_opts!(name, help, buckets.to_vec());
        self.keep(HistogramVec::new(options, &PROJECTION))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// All families, with a registry of their own: several daemons in one process do not mix.
    pub fn new() -> Self {
        let m = Making(Registry::new());
        let families = Families {
            received: m.counters(
                "projector_deliveries_received_total",
                "Deliveries taken from the group, redeliveries included.",
                &[],
            ),
            applied: m.counters(
                "projector_events_applied_total",
                "Events folded into replicas, those brought by gap reads included.",
                &[],
            ),
            settled_without_write: m.counters(
                "projector_deliveries_settled_without_write_total",
                "Deliveries settled with no put of their own: covered already, or they changed nothing.",
                &[],
            ),
            skipped: m.counters(
                "projector_deliveries_skipped_total",
                "Deliveries that concern no stream of the source: system events.",
                &[],
            ),
            unplaced: m.counters(
                "projector_deliveries_unplaced_total",
                "Deliveries that no lane can take, by what is wrong with them; `/status` says what to do.",
                &["class"],
            ),
            parked: m.counters(
                "projector_deliveries_parked_total",
                "Deliveries parked behind a quarantine mark, or for a stream that can have no replica.",
                &[],
            ),
            gap_reads: m.counters(
                "projector_gap_reads_total",
                "Reads of streams that filled a hole or read on behind a delivery.",
                &[],
            ),
            gap_events: m.counters("projector_gap_events_total", "Events that gap reads brought.", &[]),
            writes: m.counters(
                "projector_writes_total",
                "Attempts to put a replica, by what became of them.",
                &["outcome"],
            ),
            quarantines: m.counters(
                "projector_quarantines_total",
                "Quarantine marks made: the next event of an aggregate could not be folded.",
                &[],
            ),
            divergences: m.counters(
                "projector_divergences_total",
                "Marks of divergence made: a stream is not the one that its replica was folded from.",
                &[],
            ),
            reconnects: m.counters(
                "projector_subscription_reconnects_total",
                "Connections to the group that ended and were made again, by reason.",
                &["reason"],
            ),
            panics: m.counters(
                "projector_panics_survived_total",
                "Panics of a session that were treated as a disconnect.",
                &[],
            ),
            cache_lookups: m.counters(
                "projector_cache_lookups_total",
                "Replicas looked up in the process's cache before DynamoDB was asked.",
                &["result"],
            ),
            write_seconds: m.histograms("projector_write_seconds", "Time of one attempt to put a replica.", WRITE_BUCKETS),
            durable_age: m.histograms(
                "projector_durable_age_seconds",
                "From an event's creation in EventStoreDB to its being durable in a replica.",
                AGE_BUCKETS,
            ),
            lag_events: m.gauges(
                "projector_source_lag_events",
                "Entries of the source not settled (on $all a lower bound); absent while it is not known. The same on every task: use max, not sum.",
                &[],
            ),
            lag_seconds: m.gauges(
                "projector_source_lag_seconds",
                "Age of the oldest entry of the source not settled, 0 when all are; absent while it is not known. The same on every task: use max, not sum.",
                &[],
            ),
            lag_measured_at: m.gauges(
                "projector_source_lag_measured_timestamp_seconds",
                "When this process last measured the lag, in seconds since 1970. The same on every task: use max, not sum.",
                &[],
            ),
            drain: m.gauges(
                "projector_source_drain_seconds",
                "How long the backlog lasts at this task's present pace times the group's consumers, at most an hour; stands while nothing moves or the table throttles. For scaling: use max, not sum.",
                &[],
            ),
            checkpoint_lag: m.gauges(
                "projector_group_checkpoint_lag_events",
                "Entries behind the group's checkpoint: what the server would deliver again after a crash; absent on $all. The same on every task: use max, not sum.",
                &[],
            ),
            source_stalled: m.gauges(
                "projector_source_stalled",
                "1 while the source stands still though the log grows ($by_category is stopped). The same on every task: use max, not sum.",
                &[],
            ),
            checkpoint: m.gauges(
                "projector_source_checkpoint",
                "The group's last checkpoint: a revision of the source's stream, or a commit position of $all. The same on every task: use max, not sum.",
                &[],
            ),
            newest: m.gauges(
                "projector_source_newest",
                "The newest entry of the source, in the checkpoint's unit. The same on every task: use max, not sum.",
                &[],
            ),
            group_parked: m.gauges(
                "projector_group_parked_messages",
                "Messages that the group has parked. The same on every task: use max, not sum.",
                &[],
            ),
            group_in_flight: m.gauges(
                "projector_group_in_flight_messages",
                "Deliveries not acknowledged, over all consumers of the group. The same on every task: use max, not sum.",
                &[],
            ),
            quarantined: m.gauges(
                "projector_quarantined_aggregates",
                "Aggregates under a quarantine mark; they are not counted as lag. The same on every task: use max, not sum.",
                &[],
            ),
            diverged: m.gauges(
                "projector_diverged_aggregates",
                "Aggregates whose stream is not the one that their replica was folded from. The same on every task: use max, not sum.",
                &[],
            ),
            held: m.gauges(
                "projector_held_deliveries",
                "Deliveries that this process holds and has not acknowledged.",
                &[],
            ),
            held_oldest: m.gauges(
                "projector_held_oldest_seconds",
                "How long this process has held its oldest delivery.",
                &[],
            ),
            lanes: m.gauges(
                "projector_lanes",
                "Streams at work in this process, by what they wait for.",
                &["state"],
            ),
            lanes_oldest: m.gauges(
                "projector_lanes_oldest_seconds",
                "How long the oldest of those has waited for it.",
                &["state"],
            ),
            subscription_up: m.gauges(
                "projector_subscription_up",
                "1 while this process is connected to the group.",
                &[],
            ),
            write_limit: m.gauges(
                "projector_write_limit",
                "Puts that this process may have in flight; falls while the table throttles.",
                &[],
            ),
            cache_bytes: m.gauges(
                "projector_cache_bytes",
                "Bytes that replicas take in this process's cache, bounded by `cache`.",
                &[],
            ),
            memory_bytes: m.gauges(
                "projector_memory_bytes",
                "Bytes of deliveries, reads and writes under way in this process, bounded by `memory`.",
                &[],
            ),
            requests: m.counters(
                "projector_dynamodb_requests_total",
                "Requests to DynamoDB, every attempt, by operation and outcome.",
                &["operation", "outcome"],
            ),
            capacity: m.fractions(
                "projector_dynamodb_consumed_units_total",
                "Capacity units that DynamoDB says were consumed, by kind; a refused put's are not told.",
                &["kind"],
            ),
            left_out: m.counters(
                "projector_promoted_fields_left_out_total",
                "Promoted fields left out of an item because an index would have refused it for them.",
                &[],
            ),
            store_up: m.keep(GaugeVec::new(
                prometheus::opts!("projector_store_up", "1 while the store answers this process's probes."),
                &["store"],
            )),
            ready: m.keep(Gauge::new("projector_ready", "1 while /readyz answers 200.")),
            process: process::Process::new(&m),
            registry: m.0,
        };
        for store in [Backend::EventStore, Backend::DynamoDb] {
            families.store_up.with_label_values(&[store.word()]).set(0.0);
        }
        Self(Arc::new(families))
    }

    /// The handles of one projection. Asked for again, they count into the same series.
    pub fn projection(&self, projection: &str, schema: u32) -> ProjectionMetrics {
        ProjectionMetrics::new(&self.0, projection, schema)
    }

    /// Whether a store answers.
    pub fn set_store_up(&self, store: Backend, up: bool) {
        self.0
            .store_up
            .with_label_values(&[store.word()])
            .set(f64::from(u8::from(up)));
    }

    /// Whether the process is ready.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.set(f64::from(u8::from(ready)));
    }

    /// All of it in Prometheus's text format.
    pub fn render(&self) -> String {
        // Families are well formed by construction; what cannot be written is left out.
        TextEncoder::new()
            .encode_to_string(&self.0.registry.gather())
            .unwrap_or_default()
    }

    /// Name, kind and help of each family that has a series.
    pub fn described(&self) -> Vec<(String, &'static str, String)> {
        let kind = |family: &prometheus::proto::MetricFamily| match family.get_field_type() {
            prometheus::proto::MetricType::HISTOGRAM => "histogram",
            prometheus::proto::MetricType::COUNTER => "counter",
            _ => "gauge",
        };
        let families = self.0.registry.gather();
        families
            .iter()
            .map(|f| (f.name().to_owned(), kind(f), f.help().to_owned()))
            .collect()
    }

    fn process(&self) -> &process::Process {
        &self.0.process
    }
}
