//! What `/status` says and the page shows: one value, made from what the process knows already.
//!
//! Nothing here waits for a store (the measuring tasks have asked), and no secret is in it: the
//! settings come without them.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;

use super::history::{self, History};
use crate::{
    clock,
    health::{self, Health, Probe},
    metrics::ProjectionMetrics,
    projector::status::{self, Status},
    replica::MarkKind,
};

/// What does not change while the process runs.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The version of the crate.
    pub version: String,
    /// The connection string, without a user.
    pub eventstore: String,
    /// Tells builds apart.
    pub fingerprint: String,
}

/// One projection, as the pages see it beside its health.
#[derive(Clone, Debug)]
pub struct WatchedProjection {
    /// What it counts into.
    pub counts: ProjectionMetrics,
    /// Its last half hour.
    pub history: Arc<Mutex<History>>,
}

/// What the pages are made from.
#[derive(Clone, Debug)]
pub struct PageSource {
    /// What does not change.
    pub about: About,
    /// The settings in force, secrets left out.
    pub settings: Value,
    /// Every projection, in the order in which health watches them.
    pub watched: Vec<WatchedProjection>,
}

/// How the process stands. Its fields are the keys of `/status`.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct StatusReport {
    pub about: About,
    #[serde(serialize_with = "milliseconds")]
    pub as_of: DateTime<Utc>,
    pub uptime_seconds: u64,
    pub ready: bool,
    pub unready_because: Vec<String>,
    pub alive: bool,
    pub dead_because: Vec<String>,
    pub stores: StoresReport,
    pub projections: Vec<ProjectionReport>,
    pub settings: Value,
}

/// Both stores.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct StoresReport {
    pub eventstore: StoreUp,
    pub dynamodb: StoreUp,
}

/// Whether a store answers; `None` before it was asked.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct StoreUp {
    pub up: Option<bool>,
    pub error: Option<String>,
}

/// One projection.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct ProjectionReport {
    pub projection: String,
    pub schema: u32,
    pub phase: &'static str,
    pub reason: Option<String>,
    pub source: String,
    pub table: String,
    pub group: Group,
    pub table_confirmed: bool,
    pub holding: usize,
    pub seconds_since_progress: f64,
    pub lag: Option<LagReport>,
    pub lag_unknown_because: Option<String>,
    pub drain_seconds: Option<f64>,
    pub rates: Rates,
    /// Names of all of them.
    pub quarantined: Vec<String>,
    /// Names of all of them.
    pub diverged: Vec<String>,
    /// The first of both, with reasons; `None` before they were asked for.
    pub waiting: Option<WaitingReport>,
    pub unplaced: Vec<UnplacedReport>,
    pub last_error: Option<String>,
    pub history: Past,
}

/// The persistent subscription. What only the server knows is `None` while it cannot be asked.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct Group {
    pub name: String,
    pub confirmed: bool,
    pub status: Option<String>,
    pub consumers: Option<u64>,
    pub in_flight: Option<u64>,
    pub buffered: Option<u64>,
    pub parked: Option<u64>,
    pub checkpoint: Option<u64>,
    pub differences: Vec<DifferenceReport>,
}

/// A setting of the group that is not the wanted one.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct DifferenceReport {
    pub setting: String,
    pub wanted: String,
    pub found: String,
}

/// How far behind.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct LagReport {
    pub events: u64,
    pub seconds: f64,
    pub source_stalled: bool,
    #[serde(serialize_with = "milliseconds")]
    pub as_of: DateTime<Utc>,
}

/// Over the last sample of the history; `None` before there are two.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct Rates {
    pub applied_per_second: Option<f64>,
    pub written_per_second: Option<f64>,
}

/// Streams that wait under a mark, the first of them.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct WaitingReport {
    pub streams: Vec<Stream>,
    /// How many there are beside those.
    pub more: usize,
}

/// A stream that waits under a mark.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct Stream {
    pub stream: String,
    pub kind: String,
    pub revision: Option<u64>,
    pub reason: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// What helps, to be given to a shell.
    pub command: Option<String>,
}

/// Deliveries that no lane can take.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct UnplacedReport {
    pub class: String,
    pub deliveries: u64,
    pub problem: String,
}

/// The last half hour, column by column, oldest first; the last place of each is now.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the guide says what each key is")]
pub struct Past {
    pub every_seconds: u64,
    pub lag_events: Vec<Option<u64>>,
    pub lag_seconds: Vec<Option<f64>>,
    pub applied_per_second: Vec<Option<f64>>,
    pub written_per_second: Vec<Option<f64>>,
}

fn milliseconds<S: serde::Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// More digits are noise.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl StatusReport {
    /// How the process stands now.
    pub fn of(health: &Health, known: &PageSource) -> Self {
        let view = health.view();
        let unready = health::unready(&view);
        let dead = health.dead();
        let projections = view.projections.iter().zip(&known.watched);
        let projections = projections.map(|((status, still), watched)| {
            let past = watched.history.lock().unwrap_or_else(PoisonError::into_inner);
            ProjectionReport {
                seconds_since_progress: still.as_secs_f64(),
                drain_seconds: status.lag.as_ref().map(|_| rounded(watched.counts.drain_seconds())),
                ..ProjectionReport::of(status, &past)
            }
        });
        Self {
            about: known.about.clone(),
            as_of: clock::now(),
            uptime_seconds: health.uptime().as_secs(),
            ready: unready.is_empty(),
            unready_because: unready,
            alive: dead.is_empty(),
            dead_because: dead,
            stores: StoresReport {
                eventstore: StoreUp::of(&view.eventstore),
                dynamodb: StoreUp::of(&view.dynamodb),
            },
            projections: projections.collect(),
            settings: known.settings.clone(),
        }
    }
}

impl StoreUp {
    fn of(probe: &Probe) -> Self {
        Self {
            up: probe.up,
            error: probe.error.clone(),
        }
    }
}

impl ProjectionReport {
    /// How it stands by its status and its last half hour alone.
    pub fn of(s: &Status, history: &History) -> Self {
        // What was last heard of the group is no news while it cannot be asked.
        let info = s.info.as_ref().filter(|_| s.lag_unknown.is_none());
        let past = Past::of(history);
        let waiting = s.waiting.as_deref().map(|first| WaitingReport {
            streams: first.iter().map(|w| Stream::of(&s.projection, w)).collect(),
            more: (s.quarantined.len() + s.diverged.len()).saturating_sub(first.len()),
        });
        let unplaced = s.unplaced.iter().map(|(class, seen)| UnplacedReport {
            class: class.word().to_owned(),
            deliveries: *seen,
            problem: class.problem().to_owned(),
        });
        let differences = s.differences.iter().map(|(setting, wanted, found)| DifferenceReport {
            setting: (*setting).to_owned(),
            wanted: wanted.clone(),
            found: found.clone(),
        });
        Self {
            projection: s.projection.to_string(),
            schema: s.schema,
            phase: s.phase.word(),
            reason: s.phase.reason().map(str::to_owned),
            source: s.source.clone(),
            table: s.table.clone(),
            group: Group {
                name: s.group.to_string(),
                confirmed: s.group_confirmed,
                status: info.map(|i| i.status.clone()),
                consumers: info.map(|i| i.consumers),
                in_flight: info.map(|i| i.in_flight),
                buffered: info.map(|i| i.buffered),
                parked: info.map(|i| i.parked),
                checkpoint: info.and_then(|i| i.checkpoint_revision.or(i.checkpoint_position)),
                differences: differences.collect(),
            },
            table_confirmed: s.table_confirmed,
            holding: s.holding,
            seconds_since_progress: 0.0,
            lag: s.lag.as_ref().map(|lag| LagReport {
                events: lag.events,
                seconds: lag.seconds,
                source_stalled: lag.stalled,
                as_of: lag.as_of,
            }),
            lag_unknown_because: s.lag_unknown.as_ref().map(|unknown| unknown.error.clone()),
            drain_seconds: None,
            rates: Rates {
                applied_per_second: past.applied_per_second.last().copied().flatten(),
                written_per_second: past.written_per_second.last().copied().flatten(),
            },
            waiting,
            quarantined: s.quarantined.clone(),
            diverged: s.diverged.clone(),
            unplaced: unplaced.collect(),
            last_error: s.last_error.clone(),
            history: past,
        }
    }
}

impl Stream {
    fn of(projection: &str, waiting: &status::Waiting) -> Self {
        let told = waiting.told.as_ref();
        Self {
            stream: waiting.stream.to_string(),
            kind: waiting.kind.to_string(),
            revision: told.map(|told| told.revision),
            reason: told.map(|told| told.reason.to_string()),
            since: told.and_then(|told| told.since),
            command: command(projection, &waiting.stream, waiting.kind),
        }
    }
}

impl Past {
    /// As the history has it.
    pub fn of(history: &History) -> Self {
        let mut past = Self {
            every_seconds: history::EVERY.as_secs(),
            ..Self::default()
        };
        for sample in history.samples() {
            past.lag_events.push(sample.lag_events);
            past.lag_seconds.push(sample.lag_seconds.map(rounded));
            past.applied_per_second.push(sample.applied.map(rounded));
            past.written_per_second.push(sample.written.map(rounded));
        }
        past
    }
}

/// The command that helps a stream under such a mark; nothing helps where a permission is missing.
fn command(projection: &str, stream: &str, kind: MarkKind) -> Option<String> {
    let from_start = match kind {
        MarkKind::Quarantined => "",
        MarkKind::Diverged | MarkKind::Corrupt => " --from-start",
        MarkKind::Denied => return None,
    };
    Some(format!(
        "projector redrive --projection {}{from_start} {}{}",
        quoted(projection),
        if stream.starts_with('-') { "-- " } else { "" },
        quoted(stream)
    ))
}

/// A text as one word of a shell: bash, zsh, ksh, and what follows POSIX of 2024. What cannot be seen
/// is written as its bytes, so that what is copied from a screen is what stands there.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    if !text.chars().any(super::unseen) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut word = "$'".to_owned();
    for c in text.chars() {
        match c {
            '\'' | '\\' => word.extend(['\\', c]),
            c if super::unseen(c) => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    // Octal: its length is bound, and what follows cannot be taken for a part of it.
                    // Writing into a text cannot fail.
                    let _ = write!(word, "\\{byte:03o}");
                }
            }
            c => word.push(c),
        }
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_what_the_mark_needs() {
        let command = |kind| command("loan", "loan-7", kind);
        assert_eq!(
            command(MarkKind::Quarantined).as_deref(),
            Some("projector redrive --projection loan loan-7")
        );
        for kind in [MarkKind::Diverged, MarkKind::Corrupt] {
            assert_eq!(
                command(kind).as_deref(),
                Some("projector redrive --projection loan --from-start loan-7")
            );
        }
        assert_eq!(command(MarkKind::Denied), None);
        assert_eq!(
            super::command("loan", "-x", MarkKind::Quarantined).as_deref(),
            Some("projector redrive --projection loan -- -x")
        );
    }

    /// A shell has the last word on what a word is.
    #[test]
    fn a_shell_reads_the_name_that_was_meant() {
        let names = [
            "loan-7",
            "",
            "a b; rm -rf $HOME `id` \"x\" 'y' \\",
            "é-ß",
            "loan-\u{202e}gpj.exe",
            "tab\there\nand\u{1b}[31m'quoted\\'",
            "7\u{1}7",
            "<script>alert(1)</script>",
        ];
        for name in names {
            let word = quoted(name);
            assert!(!word.chars().any(super::super::unseen), "{word}");
            let echoed = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {word}")])
                .output()
                .expect("bash is where this is built");
            assert_eq!(String::from_utf8_lossy(&echoed.stdout), name, "{word}");
        }
    }
}
