//! The settings of all groups as one JSON record. Keeps: what was written is read back the same, and
//! an entry that cannot be read is named instead of silently forgotten.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::names::CONFIG_TYPE;
use super::place::NoPlace;
use super::settings::{Settings, Strategy};
use super::store::{ALL, Filter, NewRecord, Source};

/// One group: what it reads, what it is called, how it behaves.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GroupConfig {
    /// What it reads.
    pub source: Source,
    /// Its name.
    pub group: String,
    /// Its settings.
    pub settings: Settings,
}

/// Settings that cannot be read back.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The record is no such JSON.
    #[error("read the groups' settings: {reason}; restore or delete `$persistentSubscriptionConfig`")]
    Json {
        /// What the parser says.
        reason: String,
    },
    /// A value means nothing.
    #[error(
        "read the settings of group `{group}` on `{stream}`: {reason}; restore or delete `$persistentSubscriptionConfig`"
    )]
    Entry {
        /// The group's source.
        stream: String,
        /// The group's name.
        group: String,
        /// What is wrong.
        reason: String,
    },
}

/// The layout's version; EventStoreDB's since there are groups on `$all`.
const VERSION: &str = "2";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    version: String,
    updated: String,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    stream: String,
    group: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<EntryFilter>,
    resolve_link_tos: bool,
    extra_statistics: bool,
    message_timeout: i32,
    start_position: String,
    live_buffer_size: i32,
    history_buffer_size: i32,
    max_retry_count: i32,
    read_batch_size: i32,
    check_point_after: i32,
    min_check_point_count: i32,
    max_check_point_count: i32,
    max_subscriber_count: i32,
    named_consumer_strategy: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum EntryFilter {
    StreamPrefix(Vec<String>),
    StreamRegex(String),
    TypePrefix(Vec<String>),
    TypeRegex(String),
}

/// The record that keeps these groups; `updated` is the wall clock's, RFC 3339.
pub(crate) fn record<'a>(groups: impl Iterator<Item = &'a GroupConfig>, updated: &str) -> NewRecord {
    let file = File {
        version: VERSION.to_owned(),
        updated: updated.to_owned(),
        entries: groups.map(entry).collect(),
    };
    // Strings, numbers and lists only: there is nothing that JSON could not say.
    let data = serde_json::to_vec(&file).unwrap_or_default();
    NewRecord {
        event_type: CONFIG_TYPE,
        json: true,
        data: Bytes::from(data),
        metadata: Bytes::new(),
    }
}

/// The groups a record keeps.
pub(crate) fn parse(data: &[u8]) -> Result<Vec<GroupConfig>, ConfigError> {
    let file: File = serde_json::from_slice(data).map_err(|error| ConfigError::Json {
        reason: error.to_string(),
    })?;
    file.entries.into_iter().map(group).collect()
}

fn entry(group: &GroupConfig) -> Entry {
    let settings = &group.settings;
    let (on_all, filter) = match &group.source {
        Source::Stream(_) => (false, None),
        Source::All(filter) => (true, filter.clone()),
    };
    Entry {
        stream: group.source.name().to_owned(),
        group: group.group.clone(),
        filter: filter.map(|filter| match filter {
            Filter::StreamPrefix(any) => EntryFilter::StreamPrefix(any),
            Filter::StreamRegex(regex) => EntryFilter::StreamRegex(regex),
            Filter::TypePrefix(any) => EntryFilter::TypePrefix(any),
            Filter::TypeRegex(regex) => EntryFilter::TypeRegex(regex),
        }),
        resolve_link_tos: settings.resolve_links,
        extra_statistics: settings.extra_statistics,
        message_timeout: settings.message_timeout_ms,
        start_position: settings.start.text(on_all),
        live_buffer_size: settings.live_buffer_size,
        history_buffer_size: settings.history_buffer_size,
        max_retry_count: settings.max_retry_count,
        read_batch_size: settings.read_batch_size,
        check_point_after: settings.checkpoint_after_ms,
        min_check_point_count: settings.min_checkpoint_count,
        max_check_point_count: settings.max_checkpoint_count,
        max_subscriber_count: settings.max_subscriber_count,
        named_consumer_strategy: settings.strategy.name().to_owned(),
    }
}

fn group(entry: Entry) -> Result<GroupConfig, ConfigError> {
    let wrong = |reason: String| ConfigError::Entry {
        stream: entry.stream.clone(),
        group: entry.group.clone(),
        reason,
    };
    let start = entry
        .start_position
        .parse()
        .map_err(|error: NoPlace| wrong(error.to_string()))?;
    let strategy = Strategy::named(&entry.named_consumer_strategy)
        .ok_or_else(|| wrong(format!("no strategy `{}`", entry.named_consumer_strategy)))?;
    let source = if entry.stream == ALL {
        Source::All(entry.filter.map(|filter| match filter {
            EntryFilter::StreamPrefix(any) => Filter::StreamPrefix(any),
            EntryFilter::StreamRegex(regex) => Filter::StreamRegex(regex),
            EntryFilter::TypePrefix(any) => Filter::TypePrefix(any),
            EntryFilter::TypeRegex(regex) => Filter::TypeRegex(regex),
        }))
    } else {
        Source::Stream(entry.stream.into())
    };
    Ok(GroupConfig {
        source,
        group: entry.group,
        settings: Settings {
            resolve_links: entry.resolve_link_tos,
            start,
            extra_statistics: entry.extra_statistics,
            message_timeout_ms: entry.message_timeout,
            max_retry_count: entry.max_retry_count,
            live_buffer_size: entry.live_buffer_size,
            history_buffer_size: entry.history_buffer_size,
            read_batch_size: entry.read_batch_size,
            checkpoint_after_ms: entry.check_point_after,
            min_checkpoint_count: entry.min_check_point_count,
            max_checkpoint_count: entry.max_check_point_count,
            max_subscriber_count: entry.max_subscriber_count,
            strategy,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persistent::place::{Place, StartFrom};

    #[test]
    fn groups_are_read_back_as_written() {
        let settings = Settings {
            start: StartFrom::At(Place::All { commit: 7, prepare: 7 }),
            strategy: Strategy::Pinned,
            max_retry_count: -1,
            resolve_links: true,
            ..Settings::default()
        };
        let comma = Filter::StreamPrefix(vec!["a,b".into(), "c".into()]);
        let groups = vec![
            GroupConfig {
                source: Source::Stream("$ce-loan".into()),
                group: "a::b \"quoted\"".into(),
                settings: Settings::default(),
            },
            GroupConfig {
                source: Source::All(Some(comma)),
                group: "g".into(),
                settings: settings.clone(),
            },
            GroupConfig {
                source: Source::All(None),
                group: "h".into(),
                settings,
            },
        ];
        let written = record(groups.iter(), "2026-01-01T00:00:00Z");
        assert_eq!(parse(&written.data).unwrap(), groups);
    }

    #[test]
    fn an_unreadable_entry_is_named() {
        let broken = GroupConfig {
            source: Source::Stream("s".into()),
            group: "g".into(),
            settings: Settings::default(),
        };
        let text = String::from_utf8(record([&broken].into_iter(), "").data.to_vec()).unwrap();
        let error = parse(text.replace("RoundRobin", "Nope").as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("group `g` on `s`: no strategy `Nope`"),
            "{error}"
        );
        assert!(parse(b"{}").is_err());
    }
}
