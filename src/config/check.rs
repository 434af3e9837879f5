//! Settings that must go together, what they come to, and what each source guarantees.

use std::fmt::Write as _;

use super::{
    ConfigError, Planned, Separator, Settings, refused,
    units::{Size, Span},
};
use crate::{
    projection::{Filter, Source},
    replica::item::ITEM_LIMIT,
};

/// A delivery waits for a write interval and then for its put; both and a redelivery's margin must
/// fit the message time-out, so the interval may have a quarter of it.
const INTERVAL_SHARE: u32 = 4;

/// With a write interval, a stream's deliveries are held until its next put, so a task takes no
/// more than buffer/interval events a second from streams that each move once. Below this a
/// backlog of a million takes more than a day, and the interval was meant for something else.
const LEAST_RATE: f64 = 10.0;

/// The group's messages must outlive a put that fails once and is made again.
const TIMEOUTS_OF_A_PUT: u32 = 2;

/// The read batch that the server takes at most, and the smallest that it uses.
const READ_BATCH: std::ops::RangeInclusive<i32> = 10..=100;

/// A time that a process waits: below `least` it would do nothing else, above `most` never come to it.
struct Bounds {
    key: &'static str,
    value: Span,
    least: Span,
    most: Span,
}

/// The longest that anything is waited for or put off: beyond a day it is a mistake in the unit.
const DAY: Span = Span::secs(24 * 60 * 60);

/// Checks the times of the process, which every projection shares.
pub(super) fn process(settings: &Settings) -> Result<(), ConfigError> {
    let (events, table, engine, http) = (
        &settings.eventstore,
        &settings.dynamodb,
        &settings.engine,
        &settings.http,
    );
    let of = |key, value, least, most| Bounds {
        key,
        value,
        least,
        most,
    };
    // Least: what a call over a network takes; most: what a caller can still be told.
    let (call, patience) = (Span::millis(10), Span::secs(600));
    let (tick, hour) = (Span::millis(10), Span::secs(3_600));
    within(&[
        of("eventstore.operation_timeout", events.operation_timeout, call, patience),
        of("eventstore.idle_renew", events.idle_renew, Span::secs(1), DAY),
        of("dynamodb.connect_timeout", table.connect_timeout, call, patience),
        of("dynamodb.attempt_timeout", table.attempt_timeout, call, patience),
        of("dynamodb.operation_timeout", table.operation_timeout, call, patience),
        of("engine.drain", engine.drain, Span::millis(100), hour),
        // Lag is true within this time, and the alert on a lag that is not known waits a minute.
        of("engine.measure_every", engine.measure_every, tick, Span::secs(60)),
        of("http.stuck_after", http.stuck_after, Span::secs(1), DAY),
        of("http.probe_every", http.probe_every, tick, hour),
        of("log.summary_every", settings.log.summary_every, Span::secs(1), DAY),
    ])?;
    let emf = of("log.emf", settings.log.emf, Span::secs(1), DAY);
    if emf.value == Span::millis(0) {
        return Ok(());
    }
    within(&[emf])
}

fn within(bounds: &[Bounds]) -> Result<(), ConfigError> {
    for Bounds {
        key,
        value,
        least,
        most,
    } in bounds
    {
        if value < least || value > most {
            return Err(refused(
                key,
                &value.to_string(),
                &format!("a time from {least} to {most}"),
            ));
        }
    }
    Ok(())
}

/// Checks one projection's settings against each other and the process's.
pub(super) fn projection(settings: &Settings, planned: &Planned) -> Result<(), ConfigError> {
    let t = &planned.tuned;
    let name = planned.fold.name();
    let key = |key: &str| {
        let own = settings
            .projection
            .get(name)
            .and_then(|table| serde_json::to_value(table).ok())
            .is_some_and(|table| table.get(key).is_some_and(|value| !value.is_null()));
        if own {
            format!("projection.{name}.{key}")
        } else {
            format!("defaults.{key}")
        }
    };
    let refuse = |name: &str, value: &dyn std::fmt::Display, allowed: &str| {
        Err(refused(&key(name), &value.to_string(), allowed))
    };
    for (name, value, least, most) in [
        // EventStoreDB counts both in milliseconds of 32 bits; a day is far from that.
        ("message_timeout", t.message_timeout, Span::secs(1), DAY),
        ("checkpoint_after", t.checkpoint_after, Span::millis(1), DAY),
        ("behind_after", t.behind_after, Span::millis(0), DAY),
        // Sooner, a version that changed nothing costs a put for each event.
        ("keep_flush", t.keep_flush, Span::millis(10), DAY),
        ("watchdog_after", t.watchdog_after, Span::secs(1), DAY),
    ] {
        if value < least || value > most {
            return refuse(name, &value, &format!("a time from {least} to {most}"));
        }
    }
    if let Source::Category(category) = &planned.source
        && let Some((cut, _)) = category.split_once('-')
        && settings.eventstore.category_separator == Separator::First
    {
        return Err(refused(
            &format!("projection.{name}.source"),
            &format!("`{}`", planned.source),
            &format!(
                "a category without `-`: `$by_category` cuts a stream's name at its first `-` and links `{category}-1` in \
                 `$ce-{cut}`, so that nothing would ever come from `$ce-{category}`; choose another category, or \
                 `source = \"all:stream-prefix:{category}-\"`, or, where the server's `$by_category` is set to `last`, \
                 `eventstore.category_separator = \"last\"`"
            ),
        ));
    }
    for (name, value) in [
        ("buffer", t.buffer),
        ("reads", t.reads),
        ("writes", t.writes),
        ("read_events", t.read_events),
        ("quarantine_limit", t.quarantine_limit),
    ] {
        if value == 0 {
            return refuse(name, &value, "at least 1");
        }
    }
    if t.memory.0 < t.read_bytes.0 {
        let allowed = format!(
            "at least `read_bytes`, which is {}: a read takes its room in it",
            t.read_bytes
        );
        return refuse("memory", &t.memory, &allowed);
    }
    if t.read_bytes.0 == 0 {
        return refuse("read_bytes", &t.read_bytes, "more than nothing");
    }
    if !READ_BATCH.contains(&t.read_batch) {
        return refuse("read_batch", &t.read_batch, "10 to 100: what EventStoreDB uses of it");
    }
    if t.history_buffer <= t.read_batch {
        let allowed = format!(
            "more than `read_batch`, which is {}: EventStoreDB refuses the group else",
            t.read_batch
        );
        return refuse("history_buffer", &t.history_buffer, &allowed);
    }
    for (name, value) in [
        ("max_retries", t.max_retries),
        ("checkpoint_upper", t.checkpoint_upper),
        ("live_buffer", t.live_buffer),
    ] {
        if value < 1 {
            return refuse(name, &value, "at least 1");
        }
    }
    let worst = settings.dynamodb.operation_timeout.0 * TIMEOUTS_OF_A_PUT;
    if t.message_timeout.0 < worst {
        let allowed = format!(
            "at least {}, twice `dynamodb.operation_timeout`: a delivery must outlive a put that fails once",
            Span(worst)
        );
        return refuse("message_timeout", &t.message_timeout, &allowed);
    }
    if t.watchdog_after < t.message_timeout {
        let allowed = format!("at least `message_timeout`, which is {}", t.message_timeout);
        return refuse("watchdog_after", &t.watchdog_after, &allowed);
    }
    let most = t.message_timeout.0 / INTERVAL_SHARE;
    if t.min_write_interval.0 > most {
        let allowed = format!(
            "at most {}, a quarter of `message_timeout`: deliveries wait for the next put and would be delivered again",
            Span(most)
        );
        return refuse("min_write_interval", &t.min_write_interval, &allowed);
    }
    if let Some(rate) = held_rate(planned)
        && rate < LEAST_RATE
    {
        let allowed = format!(
            "with `buffer` = {} it leaves {rate:.1} events a second a task when every event is another stream's, \
             and at least {LEAST_RATE} are wanted: raise `buffer` or lower the interval",
            t.buffer
        );
        return refuse("min_write_interval", &t.min_write_interval, &allowed);
    }
    if t.compress_above.0 > ITEM_LIMIT as u64 {
        return refuse(
            "compress_above",
            &t.compress_above,
            "at most 400 KiB, which is the most that an item holds",
        );
    }
    Ok(())
}

/// What speaks against a source that brings none of an aggregate's own streams. (What a regular
/// expression, or a filter by type, brings only the events tell.)
pub(super) fn doubt(planned: &Planned) -> Option<String> {
    let Source::Category(own) = planned.fold.source() else {
        return None;
    };
    let streams = format!("{own}-");
    let brings = match &planned.source {
        Source::Category(category) => *category == own,
        Source::Stream(stream) => stream.starts_with(&streams),
        Source::All(Filter::StreamPrefix(prefixes)) => prefixes
            .iter()
            .any(|prefix| streams.starts_with(&**prefix) || prefix.starts_with(&streams)),
        Source::All(_) => true,
    };
    let name = planned.fold.name();
    (planned.fold.keeps_commands() && !brings).then(|| {
        format!(
            "projection {name}: its source `{}` brings no stream of the aggregate, whose commands write `{streams}…`: its \
             replicas would be of other streams, and each command without a cached state would fold its whole stream; leave \
             `projection.{name}.source` out, or change the aggregate's category",
            planned.source
        )
    })
}

/// Events a second that buffer and write interval allow when every event is another stream's.
fn held_rate(planned: &Planned) -> Option<f64> {
    let interval = planned.tuned.min_write_interval.0.as_secs_f64();
    (interval > 0.0).then(|| planned.tuned.buffer as f64 / interval)
}

/// What a source guarantees, for `--check-config` and the documentation.
pub(super) fn guarantees(source: &Source) -> &'static str {
    match source {
        Source::Category(_) => {
            "every event and deletion of the category's streams arrives at least once, while the server's $by_category \
             projection runs; lag tells when it does not"
        }
        Source::Stream(_) => {
            "every event of the stream arrives at least once; its deletion is seen with the next event or start"
        }
        Source::All(Filter::StreamPrefix(_)) => {
            "events and deletions of the streams arrive at least once while the server runs; a server restart can lose \
             deliveries that waited, so a stream may stay behind until its next event: prefer a category"
        }
        Source::All(Filter::StreamRegex(_) | Filter::KindPrefix(_) | Filter::KindRegex(_)) => {
            "matching events arrive at least once while the server runs; a server restart can lose deliveries that \
             waited, so a stream may stay behind until its next event; deletions are not seen"
        }
    }
}

pub(super) fn explained(settings: &Settings, planned: &[Planned]) -> String {
    let mut text = String::new();
    // Settings are plain tables of texts and numbers.
    let resolved =
        toml::to_string_pretty(settings).unwrap_or_else(|error| format!("# failed to show the settings: {error}\n"));
    let _ = writeln!(text, "# The settings as they are, secrets left out.\n\n{resolved}");
    let _ = writeln!(text, "# What they come to.");
    if planned.is_empty() {
        let _ = writeln!(
            text,
            "#\n# No projection: add a [projection.NAME] table, or run a binary with projections built in."
        );
    }
    for p in planned {
        let t = &p.tuned;
        let _ = writeln!(text, "#\n# projection {} (schema {})", p.fold.name(), p.fold.schema());
        let _ = writeln!(
            text,
            "#   table {}, group {} on {}",
            p.table,
            p.group.name,
            p.source.feed()
        );
        let _ = writeln!(text, "#   source {}: {}", p.source, guarantees(&p.source));
        if let Some(doubt) = doubt(p) {
            let _ = writeln!(text, "#   warning: {doubt}");
        }
        let _ = writeln!(
            text,
            "#   a task holds up to {} deliveries of {} in all, and {} of replicas; {} puts in flight at most",
            t.buffer, t.memory, t.cache, t.writes
        );
        let _ = writeln!(
            text,
            "#   EventStoreDB keeps up to {} events for the group in its memory: {} at 2 KiB an event",
            t.history_buffer + t.live_buffer,
            Size(u64::from((t.history_buffer + t.live_buffer).unsigned_abs()) * 2_048)
        );
        match held_rate(p) {
            None => {
                let _ = writeln!(
                    text,
                    "#   no write interval: a put takes all that gathered while the one before was under way"
                );
            }
            Some(rate) => {
                let _ = writeln!(
                    text,
                    "#   a write interval of {}: at most {rate:.0} events a second a task when every event is another \
                     stream's, and a replica is up to {} older",
                    t.min_write_interval, t.min_write_interval
                );
            }
        }
        let _ = writeln!(
            text,
            "#   a store unavailable for {} drops the subscription until it is back",
            Span(p.outage_after())
        );
    }
    text
}
