//! Logs: JSON for machines, lines for people, and a brake for errors that come again and again.
//!
//! What happens once an event or a write is `debug`; `info` is for what happens once a start, a
//! stop or an interval. Secrets reach no log (I8 secrets): what is logged are our own errors,
//! which hold none.

use std::{
    collections::HashMap,
    fmt::{Debug, Write as _},
    io::{self, IsTerminal as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::{
    config::{Log, LogFormat},
    document::discreet,
};

/// Logs that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A filter that is not written as one.
    #[error("use setting `log.filter` = `{filter}`: {problem}; write it as `info`, or `projector=debug,warn`")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong.
        problem: String,
    },
    /// Something else in the process logs already.
    #[error("write logs: another subscriber was installed in this process before")]
    Installed,
}

/// What takes this process's spans.
pub type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// Sends this process's logs to standard error, as the settings say. Panics stay with the process's own
/// hook.
pub fn install(log: &Log) -> Result<(), TelemetryError> {
    install_with(log, None)
}

/// As [`install`], with this process's spans to `spans`. Lines are the same with it as without: the
/// log's filter is for them alone.
pub fn install_with(log: &Log, spans: Option<Spans>) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .map_err(|error| TelemetryError::Filter {
            filter: log.filter.clone(),
            problem: error.to_string(),
        })?;
    let terminal = io::stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Human => false,
    };
    let brake = Brake(Repeated::new(SAY_AGAIN));
    let registry = tracing_subscriber::registry();
    let installed = match spans {
        // One filter for all spares asking each layer.
        None => registry.with(filter).with(brake).with(lines(json, terminal)).try_init(),
        Some(spans) => registry
            .with(spans)
            .with(brake.and_then(lines(json, terminal)).with_filter(filter))
            .try_init(),
    };
    installed.map_err(|_| TelemetryError::Installed)?;
    discreet::show_values(log.values);
    Ok(())
}

fn lines<S>(json: bool, terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    if json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines.with_target(false).with_ansi(terminal).boxed()
    }
}

/// One warning of a class in this time: often enough to show that it goes on, seldom enough that
/// an outage of an hour is read on one screen.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// Fields that tell one class of a warning from another. Texts of errors are none of them: they
/// hold ports and times, and every repetition would be new.
const CLASS: [&str; 5] = ["projection", "phase", "store", "setting", "place"];

/// And of an error, which somebody has to act on. In an outage every stream may have its warning.
const STREAM: &str = "stream";

/// Warnings and errors that were not written because the same was written a moment ago.
static KEPT_BACK: AtomicU64 = AtomicU64::new(0);

/// How many warnings and errors were suppressed since the last call.
pub fn kept_back() -> u64 {
    KEPT_BACK.swap(0, Ordering::Relaxed)
}

/// Keeps warnings and errors back that come again and again.
struct Brake(Repeated);

impl<S: Subscriber> Layer<S> for Brake {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let meta = event.metadata();
        if *meta.level() > Level::WARN {
            return true;
        }
        let mut class = Class {
            text: format!("{}:{}", meta.target(), meta.line().unwrap_or_default()),
            by_stream: *meta.level() == Level::ERROR,
        };
        event.record(&mut class);
        let said = self.0.say(&class.text).is_some();
        if !said {
            KEPT_BACK.fetch_add(1, Ordering::Relaxed);
        }
        said
    }
}

/// The class of an event: where it is written, and about what.
struct Class {
    text: String,
    by_stream: bool,
}

impl Visit for Class {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let name = field.name();
        if CLASS.contains(&name) || (self.by_stream && name == STREAM) {
            // Writing into a text cannot fail.
            let _ = write!(self.text, " {}={value:?}", field.name());
        }
    }
}

/// Lets the first of each class through, then one an interval with the number of those between.
#[derive(Debug)]
pub struct Repeated {
    every: Duration,
    seen: Mutex<HashMap<String, (Instant, u64)>>,
}

/// Classes that are remembered. More at once means that something is a class that varies without
/// end; then the oldest are forgotten rather than memory lost.
const CLASSES: usize = 256;

impl Repeated {
    /// One an interval of each class.
    pub fn new(every: Duration) -> Self {
        Self {
            every,
            seen: Mutex::new(HashMap::new()),
        }
    }

    /// Whether to log one more of `class`: how many were suppressed since the last that was logged,
    /// or `None` to keep this one back as well.
    pub fn say(&self, class: &str) -> Option<u64> {
        self.say_at(class, Instant::now())
    }

    fn say_at(&self, class: &str, now: Instant) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, kept)) = seen.get_mut(class) {
            if now.saturating_duration_since(*last) < self.every {
                *kept += 1;
                return None;
            }
            *last = now;
            return Some(std::mem::take(kept));
        }
        if seen.len() >= CLASSES
            && let Some(oldest) = seen
                .iter()
                .min_by_key(|(_, (at, _))| *at)
                .map(|(class, _)| class.clone())
        {
            seen.remove(&oldest);
        }
        seen.insert(class.to_owned(), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_class_then_one_an_interval_with_a_count() {
        let repeated = Repeated::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        assert_eq!(repeated.say_at("a", at(0)), Some(0));
        assert_eq!(repeated.say_at("a", at(1)), None);
        assert_eq!(repeated.say_at("b", at(1)), Some(0));
        assert_eq!(repeated.say_at("a", at(9)), None);
        assert_eq!(repeated.say_at("a", at(10)), Some(2));
        assert_eq!(repeated.say_at("a", at(20)), Some(0));
    }

    #[test]
    fn classes_without_end_are_bounded() {
        let repeated = Repeated::new(Duration::from_secs(10));
        for n in 0..10_000 {
            repeated.say(&n.to_string());
        }
        assert_eq!(repeated.seen.lock().unwrap().len(), CLASSES);
    }

    struct Count(std::sync::Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_same_warning_is_written_once_whatever_its_error_says() {
        let written = std::sync::Arc::new(AtomicU64::new(0));
        let subscriber = tracing_subscriber::registry()
            .with(Brake(Repeated::new(Duration::from_hours(1))))
            .with(Count(written.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..10 {
                for projection in ["a", "b"] {
                    tracing::warn!(projection, error = n, "away");
                }
                tracing::info!("counted always");
            }
        });
        assert_eq!(written.load(Ordering::Relaxed), 2 + 10);
    }

    #[test]
    fn a_warning_is_one_for_all_streams_and_an_error_one_for_each() {
        let written = std::sync::Arc::new(AtomicU64::new(0));
        let subscriber = tracing_subscriber::registry()
            .with(Brake(Repeated::new(SAY_AGAIN)))
            .with(Count(written.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..20 {
                tracing::warn!(stream = n % 10, "away");
                tracing::error!(stream = n % 10, "quarantined");
            }
        });
        assert_eq!(written.load(Ordering::Relaxed), 1 + 10);
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        let log = Log {
            filter: "projector=loud".into(),
            ..Log::default()
        };
        let error = install(&log).unwrap_err().to_string();
        assert!(
            error.contains("log.filter") && error.contains("projector=loud"),
            "{error}"
        );
    }
}
