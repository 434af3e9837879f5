//! The command path's and the queries' figures in a Prometheus registry: the daemon's, or a host service's own.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, exponential_buckets};

use super::observe::{Observation, Observer};

/// An [`Observer`] that counts in a registry. Every name starts with `projector_command_`.
#[derive(Clone, Debug)]
pub struct CommandMetrics {
    events: IntCounterVec,
    snapshots: IntCounterVec,
    discards: IntCounterVec,
    attempts: HistogramVec,
    replayed: HistogramVec,
    seconds: HistogramVec,
    hints: HistogramVec,
}

impl CommandMetrics {
    /// Registers its metrics.
    ///
    /// # Errors
    ///
    /// When metrics of these names are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name, help, label| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["projection", label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let histogram = |name, help, labels: &[&str], buckets| {
            let options = HistogramOpts::new(name, help).buckets(buckets);
            let histogram = HistogramVec::new(options, labels)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        Ok(Self {
            events: counter(
                "projector_command_events_total",
                "What happened on the way of commands.",
                "event",
            )?,
            snapshots: counter(
                "projector_command_loads_total",
                "Loads of states by where they came from.",
                "source",
            )?,
            discards: counter(
                "projector_command_discards_total",
                "Snapshots thrown away by reason.",
                "reason",
            )?,
            attempts: histogram(
                "projector_command_attempts",
                "Appends tried for a command.",
                &["projection", "outcome"],
                vec![0.0, 1.0, 2.0, 3.0, 5.0, 8.0],
            )?,
            // 0 is a command that was decided on its snapshot alone; 10,000 is a missing snapshot.
            replayed: histogram(
                "projector_command_replayed_events",
                "Events folded for a command or query.",
                &["projection", "outcome"],
                vec![0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0],
            )?,
            // From 0.5 ms, below one round trip, to 16 s, above every deadline by default.
            seconds: histogram(
                "projector_command_seconds",
                "From a command's or query's call to its answer.",
                &["projection", "outcome"],
                exponential_buckets(0.0005, 2.0, 16)?,
            )?,
            // From 1 ms, a commit's time, to 8 s, beyond the 2 s after which the server gives one up.
            hints: histogram(
                "projector_command_hint_seconds",
                "From a conflict that spoke of what could not be read yet until that was known.",
                &["projection"],
                exponential_buckets(0.001, 2.0, 14)?,
            )?,
        })
    }
}

impl Observer for CommandMetrics {
    fn observe(&self, projection: &str, observation: Observation) {
        let event = |name| self.events.with_label_values(&[projection, name]).inc();
        match observation {
            Observation::Loaded(origin) => self.snapshots.with_label_values(&[projection, origin.label()]).inc(),
            Observation::Discarded(why) => self.discards.with_label_values(&[projection, why.label()]).inc(),
            // Summed up when the command ends; told with the time that it took.
            Observation::Replayed(_) | Observation::HintSettled => {}
            Observation::HintAwaited(took) => self.hints.with_label_values(&[projection]).observe(took.as_secs_f64()),
            Observation::Searched => event("horizon_read"),
            Observation::ShortWindow => event("short_window"),
            Observation::Queued => event("queued"),
            Observation::Confirming => event("confirmation"),
            Observation::Appended => event("append"),
            Observation::Conflict => event("conflict"),
            Observation::Awaited => event("conflict_awaited"),
            Observation::OutcomeLost => event("outcome_lost"),
            Observation::Repeated => event("repetition"),
            Observation::WroteThrough(true) => event("write_through"),
            Observation::WroteThrough(false) => event("write_through_failed"),
            Observation::Ended {
                outcome,
                took,
                attempts,
                replayed,
            } => {
                let labels = [projection, outcome];
                self.attempts.with_label_values(&labels).observe(f64::from(attempts));
                self.replayed.with_label_values(&labels).observe(replayed as f64);
                self.seconds.with_label_values(&labels).observe(took.as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_host_services_registry_has_the_figures() {
        let registry = Registry::new();
        let metrics = CommandMetrics::register(&registry).unwrap();
        metrics.observe("account", Observation::Conflict);
        let took = Duration::from_millis(1);
        metrics.observe(
            "account",
            Observation::Ended {
                outcome: "committed",
                took,
                attempts: 2,
                replayed: 3,
            },
        );
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        assert!(
            text.contains(r#"projector_command_events_total{event="conflict",projection="account"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"projector_command_attempts_sum{outcome="committed",projection="account"} 2"#),
            "{text}"
        );
        assert!(CommandMetrics::register(&registry).is_err(), "twice");
    }
}
