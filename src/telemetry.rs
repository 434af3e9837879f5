//! Logs: JSON for machines, lines for people, and a brake for errors that come again and again.
//!
//! What happens once an event or a write is `debug`; `info` is for what happens once a start, a
//! stop or an interval. Secrets reach no log (invariant 8): what is logged are our own errors,
//! which hold none.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt::writer::BoxMakeWriter};

use crate::config::{Log, LogFormat};

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

/// Sends this process's logs to standard error, as the settings say.
pub fn install(log: &Log) -> Result<(), TelemetryError> {
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
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(BoxMakeWriter::new(io::stderr))
        .with_ansi(terminal && !json);
    let installed = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_target(false).try_init()
    };
    installed.map_err(|_| TelemetryError::Installed)
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

    /// Whether to log one more of `class`: how many were kept back since the last that was logged,
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
