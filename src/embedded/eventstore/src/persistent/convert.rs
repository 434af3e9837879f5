//! Between the protocol's messages and the groups' own types. Keeps: zero is zero, what a message
//! leaves out is what the protocol says it means, and nothing a client sends can panic.

use super::config::GroupConfig;
use super::errors::GroupError;
use super::info::Figures;
use super::place::{Place, StartFrom};
use super::settings::{Settings, Strategy};
use super::store::{ALL, Filter, Source};
use crate::wire::{
    Empty, FilterOptions, StreamIdentifier, StreamOptions,
    groups::{AllOptions, ManageOptions, WireConnection, WireInfo, WireMeasurement, WireSettings},
};

/// Ticks of 100 ns in a millisecond.
const TICKS_PER_MS: i64 = 10_000;

fn invalid(what: &str) -> GroupError {
    GroupError::Invalid(what.to_owned())
}

/// The stream's name as text.
pub(super) fn name(stream: &StreamIdentifier) -> Result<String, GroupError> {
    String::from_utf8(stream.name.to_vec()).map_err(|_| invalid("the stream name is not UTF-8; send it as UTF-8"))
}

/// The source's name that a request says.
pub(super) fn source_name(stream: Option<&StreamIdentifier>, all: Option<&Empty>) -> Result<String, GroupError> {
    match (stream, all) {
        (Some(stream), _) => name(stream),
        (None, Some(_)) => Ok(ALL.to_owned()),
        (None, None) => Err(invalid("the request names neither a stream nor `$all`")),
    }
}

/// Whether the groups of this stream can be managed by a call for streams.
pub(super) fn manageable(call: &'static str, stream: &str, group: &str) -> Result<(), GroupError> {
    match stream {
        "" => Err(GroupError::Failed {
            stream: stream.to_owned(),
            group: group.to_owned(),
            reason: "Bad stream name.".to_owned(),
        }),
        ALL => Err(GroupError::AllByName { call }),
        _ => Ok(()),
    }
}

/// What a request to create or update a group says.
pub(super) fn config(options: Option<ManageOptions>) -> Result<GroupConfig, GroupError> {
    let options = options.ok_or_else(|| invalid("the request has no options"))?;
    let settings = options.settings.ok_or_else(|| invalid("the request has no settings"))?;
    let (source, start) = match (options.stream, options.all, options.old_stream) {
        (Some(stream), _, _) => stream_source(&stream)?,
        (None, Some(all), _) => all_source(all)?,
        (None, None, Some(old)) => (Source::Stream(name(&old)?.into()), revision(settings.old_revision)),
        (None, None, None) => return Err(invalid("the request names neither a stream nor `$all`")),
    };
    let strategy = strategy(&settings).map_err(|reason| GroupError::Failed {
        stream: source.name().to_owned(),
        group: options.group.clone(),
        reason,
    })?;
    Ok(GroupConfig {
        source,
        group: options.group,
        settings: Settings {
            resolve_links: settings.resolve_links,
            start,
            extra_statistics: settings.extra_statistics,
            message_timeout_ms: millis(settings.message_timeout_ms, settings.message_timeout_ticks),
            max_retry_count: settings.max_retry_count,
            live_buffer_size: settings.live_buffer_size,
            history_buffer_size: settings.history_buffer_size,
            read_batch_size: settings.read_batch_size,
            checkpoint_after_ms: millis(settings.checkpoint_after_ms, settings.checkpoint_after_ticks),
            min_checkpoint_count: settings.min_checkpoint_count,
            max_checkpoint_count: settings.max_checkpoint_count,
            max_subscriber_count: settings.max_subscriber_count,
            strategy,
        },
    })
}

fn millis(ms: Option<i32>, ticks: Option<i64>) -> i32 {
    let from_ticks = || {
        let ms = ticks.unwrap_or(0) / TICKS_PER_MS;
        i32::try_from(ms).unwrap_or(if ms < 0 { i32::MIN } else { i32::MAX })
    };
    ms.unwrap_or_else(from_ticks)
}

fn revision(revision: u64) -> StartFrom {
    match revision {
        0 => StartFrom::Start,
        u64::MAX => StartFrom::End,
        other => StartFrom::At(Place::Stream(other)),
    }
}

fn stream_source(options: &StreamOptions) -> Result<(Source, StartFrom), GroupError> {
    let stream = options
        .stream
        .as_ref()
        .ok_or_else(|| invalid("the request names no stream"))?;
    let start = match (options.revision, options.start, options.end) {
        (Some(at), _, _) => revision(at),
        (None, Some(_), _) => StartFrom::Start,
        (None, None, Some(_)) => StartFrom::End,
        (None, None, None) => return Err(invalid("the request does not say where to start")),
    };
    Ok((Source::Stream(name(stream)?.into()), start))
}

fn all_source(options: AllOptions) -> Result<(Source, StartFrom), GroupError> {
    let start = match (options.position, options.start, options.end) {
        (Some(at), _, _) if (at.commit, at.prepare) == (0, 0) => StartFrom::Start,
        (Some(at), _, _) if at.commit == u64::MAX => StartFrom::End,
        (Some(at), _, _) if at.commit < at.prepare => {
            return Err(GroupError::Impossible(
                "The commit position is below the prepare position.",
            ));
        }
        (Some(at), _, _) => StartFrom::At(Place::All {
            commit: at.commit,
            prepare: at.prepare,
        }),
        (None, Some(_), _) => StartFrom::Start,
        (None, None, Some(_)) => StartFrom::End,
        (None, None, None) => return Err(invalid("the request does not say where to start")),
    };
    let filter = options.filter.map(filter).transpose()?;
    Ok((Source::All(filter), start))
}

fn filter(options: FilterOptions) -> Result<Filter, GroupError> {
    let asked = Filter::asked(options);
    asked.map(|(filter, _)| filter).map_err(GroupError::Invalid)
}

fn strategy(settings: &WireSettings) -> Result<Strategy, String> {
    if !settings.strategy.is_empty() {
        return Strategy::named(&settings.strategy)
            .ok_or_else(|| format!("Consumer strategy {} does not exist.", settings.strategy));
    }
    match settings.named_strategy {
        0 => Ok(Strategy::DispatchToSingle),
        1 => Ok(Strategy::RoundRobin),
        2 => Ok(Strategy::Pinned),
        other => Err(format!("Consumer strategy {other} does not exist.")),
    }
}

fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A group's settings and figures.
pub(super) fn info((config, figures): (GroupConfig, Figures)) -> WireInfo {
    let settings = config.settings;
    let on_all = matches!(config.source, Source::All(_));
    let text = |place: Option<Place>| place.map_or_else(String::new, |place| place.to_string());
    WireInfo {
        event_source: config.source.name().to_owned(),
        group_name: config.group,
        status: figures.status,
        average_per_second: int(figures.pushed.per_second as usize),
        total_items: figures.pushed.total as i64,
        count_since_last_measurement: figures.pushed.since_last() as i64,
        last_checkpointed: text(figures.last_checkpointed),
        last_known: text(figures.last_known),
        resolve_links: settings.resolve_links,
        start_from: settings.start.text(on_all),
        message_timeout_ms: settings.message_timeout_ms,
        extra_statistics: settings.extra_statistics,
        max_retry_count: settings.max_retry_count,
        live_buffer_size: settings.live_buffer_size,
        buffer_size: settings.history_buffer_size,
        read_batch_size: settings.read_batch_size,
        checkpoint_after_ms: settings.checkpoint_after_ms,
        min_checkpoint_count: settings.min_checkpoint_count,
        max_checkpoint_count: settings.max_checkpoint_count,
        read_buffer_count: int(figures.read_buffer),
        live_buffer_count: figures.live_buffer as i64,
        retry_buffer_count: int(figures.retry_buffer),
        in_flight: int(figures.in_flight),
        outstanding: int(figures.outstanding),
        strategy: settings.strategy.name().to_owned(),
        max_subscriber_count: settings.max_subscriber_count,
        parked: figures.parked as i64,
        connections: figures
            .connections
            .into_iter()
            .map(|one| WireConnection {
                from: String::new(),
                username: one.username,
                average_per_second: int(one.pushed.per_second as usize),
                total_items: one.pushed.total as i64,
                count_since_last_measurement: one.pushed.since_last() as i64,
                measurements: one
                    .measurements
                    .into_iter()
                    .map(|(key, value)| WireMeasurement {
                        key: key.to_owned(),
                        value,
                    })
                    .collect(),
                available_slots: int(one.available_slots),
                in_flight: int(one.in_flight),
                name: one.name,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::Expression;

    fn options(settings: WireSettings) -> ManageOptions {
        ManageOptions {
            stream: Some(StreamOptions {
                stream: Some(StreamIdentifier {
                    name: Bytes::from_static(b"s"),
                }),
                revision: None,
                start: Some(Empty {}),
                end: None,
            }),
            group: "g".to_owned(),
            settings: Some(settings),
            ..ManageOptions::default()
        }
    }

    #[test]
    fn zero_and_what_is_left_out_are_literal() {
        let made = config(Some(options(WireSettings::default()))).unwrap();
        assert_eq!(made.settings.start, StartFrom::Start);
        assert_eq!(made.settings.message_timeout_ms, 0);
        assert_eq!(made.settings.strategy, Strategy::DispatchToSingle);
        assert_eq!(made.settings.max_checkpoint_count, 0);
    }

    #[test]
    fn ticks_are_a_tenth_of_a_microsecond() {
        assert_eq!(millis(None, Some(20_000)), 2);
        assert_eq!(millis(Some(7), Some(20_000)), 7);
        assert_eq!(millis(None, Some(i64::MAX)), i32::MAX);
        assert_eq!(millis(None, None), 0);
    }

    #[test]
    fn a_strategy_by_name_wins_and_an_unknown_one_fails_the_group() {
        let named = |name: &str| WireSettings {
            strategy: name.to_owned(),
            named_strategy: 1,
            ..WireSettings::default()
        };
        let made = config(Some(options(named("PinnedByCorrelation")))).unwrap();
        assert_eq!(made.settings.strategy, Strategy::PinnedByCorrelation);
        let error = config(Some(options(named("Nope")))).unwrap_err();
        assert_eq!(
            error,
            GroupError::Failed {
                stream: "s".into(),
                group: "g".into(),
                reason: "Consumer strategy Nope does not exist.".into()
            }
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        for broken in [
            None,
            Some(ManageOptions::default()),
            Some(ManageOptions {
                stream: None,
                ..options(WireSettings::default())
            }),
        ] {
            assert!(matches!(config(broken), Err(GroupError::Invalid(_))));
        }
        let bad = FilterOptions {
            stream: Some(Expression {
                regex: "(".to_owned(),
                prefix: Vec::new(),
            }),
            ..FilterOptions::default()
        };
        assert!(matches!(filter(bad), Err(GroupError::Invalid(_))));
    }
}
