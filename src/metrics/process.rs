//! The process itself: build, memory, processor time, open files. Looked at in the background, so
//! that a scrape never touches the file system; the collector that comes with `prometheus` reads
//! `/proc` within the scrape.

use std::{fs, time::Duration};

#[cfg(feature = "otel")]
use prometheus::IntCounterVec;
use prometheus::{Counter, Gauge, GaugeVec};
use tokio_util::sync::CancellationToken;

use super::{Making, Metrics};

/// Between two looks: below every sensible scrape interval, and three small reads each.
const EVERY: Duration = Duration::from_secs(5);

/// Linux counts processor time in hundredths of a second on every architecture that Rust knows
/// (`USER_HZ`, fixed by the kernel's interface).
const TICKS: f64 = 100.0;

pub(super) struct Process {
    memory: Gauge,
    cpu: Counter,
    files: Gauge,
    most_files: Gauge,
    threads: Gauge,
    start: Gauge,
    #[cfg(feature = "otel")]
    spans: IntCounterVec,
}

impl Process {
    pub(super) fn new(m: &Making) -> Self {
        let gauge = |name: &str, help: &str| m.keep(Gauge::new(name, help));
        let build: GaugeVec = m.keep(GaugeVec::new(
            prometheus::opts!("projector_build_info", "Always 1; the labels say what runs."),
            &["version", "features"],
        ));
        let features = [
            ("daemon", cfg!(feature = "daemon")),
            ("embedded", cfg!(feature = "embedded")),
            ("otel", cfg!(feature = "otel")),
        ];
        let features: Vec<_> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), &features.join(",")])
            .set(1.0);
        Self {
            memory: gauge("process_resident_memory_bytes", "Resident memory."),
            cpu: m.keep(Counter::new(
                "process_cpu_seconds_total",
                "Processor time in user and system mode.",
            )),
            files: gauge("process_open_fds", "Open file descriptors."),
            most_files: gauge("process_max_fds", "Most file descriptors that may be open."),
            threads: gauge("process_threads", "Threads."),
            start: gauge(
                "process_start_time_seconds",
                "When the process started, in seconds since 1970.",
            ),
            #[cfg(feature = "otel")]
            spans: spans(m),
        }
    }

    fn take(&self, seen: &Seen) {
        self.memory.set(seen.memory);
        let more = seen.cpu - self.cpu.get();
        if more > 0.0 {
            self.cpu.inc_by(more);
        }
        self.files.set(seen.files);
        self.most_files.set(seen.most_files);
        self.threads.set(seen.threads);
        self.start.set(seen.start);
    }

    #[cfg(feature = "otel")]
    fn count_spans(&self) {
        for (outcome, count) in crate::traces::counted() {
            let counter = self.spans.with_label_values(&[outcome]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }
}

#[cfg(feature = "otel")]
fn spans(m: &Making) -> IntCounterVec {
    let spans: IntCounterVec = m.keep(IntCounterVec::new(
        prometheus::opts!(
            "projector_trace_spans_total",
            "Spans of sampled traces, by what became of them; what ended and was neither exported nor failed waits, or \
             found the queue full."
        ),
        &["outcome"],
    ));
    for (outcome, _) in crate::traces::counted() {
        spans.with_label_values(&[outcome]);
    }
    spans
}

/// Looks at the process now and then until `stop`. Does nothing where there is no `/proc`.
pub async fn sample(metrics: Metrics, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        #[cfg(feature = "otel")]
        metrics.process().count_spans();
        let seen = tokio::task::spawn_blocking(Seen::look).await;
        if let Ok(Some(seen)) = seen {
            metrics.process().take(&seen);
        }
    }
}

#[derive(Debug)]
struct Seen {
    memory: f64,
    cpu: f64,
    files: f64,
    most_files: f64,
    threads: f64,
    start: f64,
}

impl Seen {
    /// `None` where the operating system has no `/proc` (anything but Linux).
    fn look() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the program's name in parentheses and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // `proc(5)` counts from 1 and has the state, the first after the name, as number 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        let kilobytes: f64 = resident.split_whitespace().next()?.parse().ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let booted: f64 = boot
            .lines()
            .find_map(|l| l.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let most_files = limits
            .lines()
            .find_map(|l| l.strip_prefix("Max open files"))
            .and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(f64::INFINITY);
        Some(Self {
            memory: kilobytes * 1024.0,
            cpu: (field(14)? + field(15)?) / TICKS,
            files: fs::read_dir("/proc/self/fd").ok()?.count() as f64,
            most_files,
            threads: field(20)?,
            start: booted + field(22)? / TICKS,
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_process_sees_itself() {
        let seen = Seen::look().unwrap();
        assert!(
            seen.memory > 1e6 && seen.threads >= 1.0 && seen.files >= 3.0,
            "{seen:?}"
        );
        let now = chrono::Utc::now().timestamp() as f64;
        assert!(seen.start > now - 86_400.0 && seen.start <= now + 2.0, "{seen:?}");
        let metrics = Metrics::new();
        metrics.process().take(&seen);
        metrics.process().take(&seen);
        assert!(metrics.render().contains("process_threads"));
    }
}
