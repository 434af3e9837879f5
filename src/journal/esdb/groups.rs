//! Groups: made with settings of ours, compared when they are there, never changed unasked.

use std::time::Duration;

use chrono::{DateTime, Utc};
use eventstore::{
    DeletePersistentSubscriptionOptions, Error, GetPersistentSubscriptionInfoOptions, PersistentSubscriptionInfo,
    PersistentSubscriptionOptions, PersistentSubscriptionSettings, PersistentSubscriptionToAllOptions, Position,
    ReadStreamOptions, ReplayParkedMessagesOptions, RevisionOrPosition, StreamPosition, SubscriptionFilter,
    SystemConsumerStrategy,
};
use serde::Deserialize;

use super::{
    super::{
        JournalError, ReadLimit,
        feed::{Ensured, GroupInfo, GroupSpec, Strategy},
    },
    EventStore,
    encoding::link_target,
    errors::Doing,
    filter::{Matcher, resolves_links, whole_name},
};
use crate::{
    event::{RawEvent, Revision},
    projection::{Filter, Source},
};

/// Every settled event may be checkpointed; with the server's default of 10 the last nine of a
/// quiet group never are, and come again after each restart.
const CHECKPOINT_LOWER: i32 = 1;

/// The filter's window on `$all`: events passed over before the server notes where it is. The
/// server's own unit.
const FILTER_WINDOW: u32 = 32;

/// Whether the server's version keeps the checkpoints of Pinned groups right: others let a
/// checkpoint pass events that waited for a full consumer, and a restart loses them.
pub fn pinned_is_safe((major, minor, patch): (usize, usize, usize)) -> bool {
    match (major, minor) {
        (24, 10) => patch >= 14,
        (26, 0) => patch >= 3,
        later => later >= (26, 1),
    }
}

/// A message that a group has parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its number among the group's parked messages.
    pub number: Revision,
    /// The stream of the event.
    pub stream: String,
    /// The event's revision.
    pub revision: Revision,
    /// Why it was parked.
    pub reason: String,
    /// When it was parked.
    pub at: DateTime<Utc>,
}

impl EventStore {
    /// Brings an existing group to these settings. Drops its consumers, which come back by
    /// themselves; what they held is delivered again.
    pub async fn update_group(&self, group: &GroupSpec) -> Result<(), JournalError> {
        let strategy = self.strategy(group.strategy).await?;
        let feed = group.source.feed();
        let (feed, name) = (&*feed, &*group.name);
        let limit = self.factory.operation_timeout;
        match &group.source {
            Source::All(_) => {
                let options = PersistentSubscriptionToAllOptions::default()
                    .settings(settings(group, strategy))
                    .deadline(limit)
                    .requires_leader(true);
                let options = &options;
                self.factory
                    .call(Some(limit), |client| async move {
                        client.update_persistent_subscription_to_all(name, options).await
                    })
                    .await
            }
            Source::Category(_) | Source::Stream(_) => {
                let options = PersistentSubscriptionOptions::default()
                    .settings(settings(group, strategy))
                    .deadline(limit)
                    .requires_leader(true);
                let options = &options;
                self.factory
                    .call(Some(limit), |client| async move {
                        client.update_persistent_subscription(feed, name, options).await
                    })
                    .await
            }
        }
        .map_err(|failure| {
            self.explain(
                failure,
                Doing::Manage {
                    verb: "update",
                    feed,
                    group: name,
                },
            )
        })
    }

    /// Deletes a group, its checkpoint and what it has parked.
    pub async fn delete_group(&self, source: &Source, group: &str) -> Result<(), JournalError> {
        let feed = source.feed();
        let feed = &*feed;
        let limit = self.factory.operation_timeout;
        let options = DeletePersistentSubscriptionOptions::default()
            .deadline(limit)
            .requires_leader(true);
        let options = &options;
        self.factory
            .call(Some(limit), |client| async move {
                match source {
                    Source::All(_) => client.delete_persistent_subscription_to_all(group, options).await,
                    Source::Category(_) | Source::Stream(_) => {
                        client.delete_persistent_subscription(feed, group, options).await
                    }
                }
            })
            .await
            .map_err(|failure| {
                self.explain(
                    failure,
                    Doing::Manage {
                        verb: "delete",
                        feed,
                        group,
                    },
                )
            })
    }

    /// Has everything that the group has parked delivered again. The server answers when it has
    /// begun, not when it is done.
    pub async fn replay_parked(&self, source: &Source, group: &str) -> Result<(), JournalError> {
        let feed = source.feed();
        let feed = &*feed;
        let limit = self.factory.operation_timeout;
        let options = ReplayParkedMessagesOptions::default()
            .deadline(limit)
            .requires_leader(true);
        let options = &options;
        self.factory
            .call(Some(limit), |client| async move {
                match source {
                    Source::All(_) => client.replay_parked_messages_to_all(group, options).await,
                    Source::Category(_) | Source::Stream(_) => {
                        client.replay_parked_messages(feed, group, options).await
                    }
                }
            })
            .await
            .map_err(|failure| {
                let verb = "replay what is parked by";
                self.explain(failure, Doing::Manage { verb, feed, group })
            })
    }

    /// What the group has parked, newest first, at most `max`.
    pub async fn parked(&self, source: &Source, group: &str, max: usize) -> Result<Vec<Parked>, JournalError> {
        let feed = source.feed();
        let stream = format!("$persistentsubscription-{feed}::{group}-parked");
        let options = ReadStreamOptions::default()
            .position(StreamPosition::End)
            .backwards()
            .requires_leader(true)
            .max_count(max.max(1));
        let limit = ReadLimit {
            events: max.max(1),
            bytes: usize::MAX,
        };
        let found = self
            .collect(&stream, &options, limit)
            .await
            .map_err(|failure| self.explain(failure, Doing::ReadParked { feed: &feed, group }))?;
        Ok(found.events.iter().filter_map(parked).collect())
    }

    /// The strategy that stands for `wanted` on this server.
    async fn strategy(&self, wanted: Strategy) -> Result<SystemConsumerStrategy, JournalError> {
        Ok(match wanted {
            Strategy::Pinned => SystemConsumerStrategy::Pinned,
            Strategy::RoundRobin => SystemConsumerStrategy::RoundRobin,
            Strategy::Auto if pinned_is_safe(self.connect().await?.version) => SystemConsumerStrategy::Pinned,
            Strategy::Auto | Strategy::DispatchToSingle => SystemConsumerStrategy::DispatchToSingle,
        })
    }

    pub(super) async fn group_info(
        &self,
        source: &Source,
        group: &str,
    ) -> Result<PersistentSubscriptionInfo<RevisionOrPosition>, JournalError> {
        let feed = source.feed();
        let feed = &*feed;
        let limit = self.factory.operation_timeout;
        let options = GetPersistentSubscriptionInfoOptions::default()
            .deadline(limit)
            .requires_leader(true);
        let options = &options;
        self.factory
            .call(Some(limit), |client| async move {
                match source {
                    Source::All(_) => client
                        .get_persistent_subscription_info_to_all(group, options)
                        .await
                        .map(|info| either(info, RevisionOrPosition::Position)),
                    Source::Category(_) | Source::Stream(_) => client
                        .get_persistent_subscription_info(feed, group, options)
                        .await
                        .map(|info| either(info, RevisionOrPosition::Revision)),
                }
            })
            .await
            .map_err(|failure| self.explain(failure, Doing::Inspect { feed, group }))
    }

    pub(super) async fn info_of(&self, group: &GroupSpec) -> Result<GroupInfo, JournalError> {
        let info = self.group_info(&group.source, &group.name).await?;
        Ok(GroupInfo {
            status: info.status,
            in_flight: info.stats.total_in_flight_messages as u64,
            parked: info.stats.parked_message_count as u64,
            // The live buffer is a ring that keeps what was delivered, so it does not count.
            buffered: (info.stats.read_buffer_count + info.stats.retry_buffer_count) as u64,
            delivered: info.stats.total_items as u64,
            known_revision: info.stats.last_known_event_revision,
            known_position: info.stats.last_known_position.map(|p| p.commit),
            checkpoint_revision: info.stats.last_checkpointed_event_revision,
            checkpoint_position: info.stats.last_checkpointed_position.map(|p| p.commit),
            consumers: info.connections.len() as u64,
        })
    }

    pub(super) async fn ensure_group(&self, group: &GroupSpec) -> Result<Ensured, JournalError> {
        check(group)?;
        // Looking first: it needs fewer permissions than creating, and a group that an operator made
        // is all that a plain user's projector needs.
        match self.group_info(&group.source, &group.name).await {
            Ok(info) => self.compare(group, &info).await,
            Err(JournalError::NoGroup { .. }) => {
                if self.create(group).await? {
                    return Ok(Ensured::Created);
                }
                // Another task was faster.
                let info = self.group_info(&group.source, &group.name).await?;
                self.compare(group, &info).await
            }
            Err(error) => Err(error),
        }
    }

    async fn compare(
        &self,
        group: &GroupSpec,
        info: &PersistentSubscriptionInfo<RevisionOrPosition>,
    ) -> Result<Ensured, JournalError> {
        let Some(found) = &info.settings else {
            return Ok(Ensured::Same);
        };
        let wanted: PersistentSubscriptionSettings<u64> = settings(group, self.strategy(group.strategy).await?);
        let differences = differences(&wanted, found);
        Ok(if differences.is_empty() {
            Ensured::Same
        } else {
            Ensured::Different(differences)
        })
    }

    /// Whether it was made; it is there already otherwise.
    async fn create(&self, group: &GroupSpec) -> Result<bool, JournalError> {
        let strategy = self.strategy(group.strategy).await?;
        let feed = group.source.feed();
        let (feed, name) = (&*feed, &*group.name);
        let limit = self.factory.operation_timeout;
        let made = match &group.source {
            Source::All(filter) => {
                let options = PersistentSubscriptionToAllOptions::default()
                    .settings(settings(group, strategy))
                    .filter(server_filter(filter))
                    .deadline(limit)
                    .requires_leader(true);
                let options = &options;
                self.factory
                    .call(Some(limit), |client| async move {
                        already(client.create_persistent_subscription_to_all(name, options).await)
                    })
                    .await
            }
            Source::Category(_) | Source::Stream(_) => {
                let options = PersistentSubscriptionOptions::default()
                    .settings(settings(group, strategy))
                    .deadline(limit)
                    .requires_leader(true);
                let options = &options;
                self.factory
                    .call(Some(limit), |client| async move {
                        already(client.create_persistent_subscription(feed, name, options).await)
                    })
                    .await
            }
        };
        made.map_err(|failure| {
            self.explain(
                failure,
                Doing::Manage {
                    verb: "create",
                    feed,
                    group: name,
                },
            )
        })
    }
}

fn already(created: Result<(), Error>) -> Result<bool, Error> {
    match created {
        Ok(()) => Ok(true),
        Err(Error::ResourceAlreadyExists) => Ok(false),
        Err(error) => Err(error),
    }
}

fn either<A>(
    info: PersistentSubscriptionInfo<A>,
    wrap: impl Fn(A) -> RevisionOrPosition,
) -> PersistentSubscriptionInfo<RevisionOrPosition> {
    PersistentSubscriptionInfo {
        event_source: info.event_source,
        group_name: info.group_name,
        status: info.status,
        connections: info.connections,
        settings: info.settings.map(|s| PersistentSubscriptionSettings {
            resolve_link_tos: s.resolve_link_tos,
            start_from: s.start_from.map(wrap),
            extra_statistics: s.extra_statistics,
            message_timeout: s.message_timeout,
            max_retry_count: s.max_retry_count,
            live_buffer_size: s.live_buffer_size,
            read_batch_size: s.read_batch_size,
            history_buffer_size: s.history_buffer_size,
            checkpoint_after: s.checkpoint_after,
            checkpoint_lower_bound: s.checkpoint_lower_bound,
            checkpoint_upper_bound: s.checkpoint_upper_bound,
            max_subscriber_count: s.max_subscriber_count,
            consumer_strategy_name: s.consumer_strategy_name,
        }),
        stats: info.stats,
    }
}

/// What the server takes without a word and then does not work with.
fn check(group: &GroupSpec) -> Result<(), JournalError> {
    let wrong = |what: String| {
        Err(JournalError::Refused(format!(
            "create group `{}` on `{}`: {what}",
            group.name,
            group.source.feed()
        )))
    };
    if group.read_batch >= group.history_buffer {
        return wrong(format!(
            "read batch {} must be below history buffer {}",
            group.read_batch, group.history_buffer
        ));
    }
    for (name, value) in [
        ("read batch", group.read_batch),
        ("live buffer", group.live_buffer),
        ("checkpoint upper bound", group.checkpoint_upper),
        ("maximum of retries", group.max_retries),
    ] {
        if value < 1 {
            return wrong(format!("{name} is {value}, and must be above 0"));
        }
    }
    for (name, value) in [
        ("message timeout", group.message_timeout),
        ("checkpoint interval", group.checkpoint_after),
    ] {
        if value < Duration::from_millis(1) || i32::try_from(value.as_millis()).is_err() {
            return wrong(format!("{name} is {value:?}, and must be from 1 ms to 24 days"));
        }
    }
    if let Source::All(filter) = &group.source {
        Matcher::new(filter)?;
        let (Filter::StreamPrefix(list) | Filter::KindPrefix(list)) = filter else {
            return Ok(());
        };
        // The server stores the list joined by commas, and reads other prefixes after a restart.
        if let Some(prefix) = list.iter().find(|prefix| prefix.contains(',')) {
            return wrong(format!("prefix `{prefix}` holds a comma"));
        }
    }
    Ok(())
}

fn settings<P>(group: &GroupSpec, strategy: SystemConsumerStrategy) -> PersistentSubscriptionSettings<P> {
    PersistentSubscriptionSettings {
        resolve_link_tos: resolves_links(&group.source),
        // The client's default is the end, which loses everything written before.
        start_from: StreamPosition::Start,
        extra_statistics: false,
        message_timeout: group.message_timeout,
        max_retry_count: group.max_retries,
        live_buffer_size: group.live_buffer,
        read_batch_size: group.read_batch,
        history_buffer_size: group.history_buffer,
        checkpoint_after: group.checkpoint_after,
        checkpoint_lower_bound: CHECKPOINT_LOWER,
        checkpoint_upper_bound: group.checkpoint_upper,
        max_subscriber_count: 0,
        consumer_strategy_name: strategy,
    }
}

/// Settings that differ, each with what is wanted and what was found. A filter cannot be
/// compared: the server does not tell it.
fn differences(
    wanted: &PersistentSubscriptionSettings<u64>,
    found: &PersistentSubscriptionSettings<RevisionOrPosition>,
) -> Vec<(&'static str, String, String)> {
    let start = |from: &StreamPosition<RevisionOrPosition>| match from {
        StreamPosition::Start => "the start".to_owned(),
        StreamPosition::End => "the end".to_owned(),
        StreamPosition::Position(RevisionOrPosition::Revision(r)) => format!("revision {r}"),
        StreamPosition::Position(RevisionOrPosition::Position(Position { commit, .. })) => {
            format!("position {commit}")
        }
    };
    let wanted_start = start(&wanted.start_from.map(RevisionOrPosition::Revision));
    [
        ("start", wanted_start, start(&found.start_from)),
        (
            "resolve links",
            wanted.resolve_link_tos.to_string(),
            found.resolve_link_tos.to_string(),
        ),
        (
            "strategy",
            wanted.consumer_strategy_name.to_string(),
            found.consumer_strategy_name.to_string(),
        ),
        (
            "message timeout",
            format!("{:?}", wanted.message_timeout),
            format!("{:?}", found.message_timeout),
        ),
        (
            "maximum of retries",
            wanted.max_retry_count.to_string(),
            found.max_retry_count.to_string(),
        ),
        (
            "live buffer",
            wanted.live_buffer_size.to_string(),
            found.live_buffer_size.to_string(),
        ),
        (
            "read batch",
            wanted.read_batch_size.to_string(),
            found.read_batch_size.to_string(),
        ),
        (
            "history buffer",
            wanted.history_buffer_size.to_string(),
            found.history_buffer_size.to_string(),
        ),
        (
            "checkpoint interval",
            format!("{:?}", wanted.checkpoint_after),
            format!("{:?}", found.checkpoint_after),
        ),
        (
            "checkpoint lower bound",
            wanted.checkpoint_lower_bound.to_string(),
            found.checkpoint_lower_bound.to_string(),
        ),
        (
            "checkpoint upper bound",
            wanted.checkpoint_upper_bound.to_string(),
            found.checkpoint_upper_bound.to_string(),
        ),
        (
            "maximum of consumers",
            wanted.max_subscriber_count.to_string(),
            found.max_subscriber_count.to_string(),
        ),
    ]
    .into_iter()
    .filter(|(_, wanted, found)| wanted != found)
    .collect()
}

/// A source's filter as the server takes it. Deletions of a stream stand in `$$STREAM`.
fn server_filter(filter: &Filter) -> SubscriptionFilter {
    let prefixes = |to: SubscriptionFilter, list: Vec<String>| list.iter().fold(to, SubscriptionFilter::add_prefix);
    match filter {
        Filter::StreamPrefix(list) => prefixes(
            SubscriptionFilter::on_stream_name(),
            list.iter().flat_map(|p| [p.to_string(), format!("$${p}")]).collect(),
        ),
        Filter::KindPrefix(list) => prefixes(
            SubscriptionFilter::on_event_type(),
            list.iter().map(ToString::to_string).collect(),
        ),
        Filter::StreamRegex(regex) => SubscriptionFilter::on_stream_name().regex(whole_name(regex)),
        Filter::KindRegex(regex) => SubscriptionFilter::on_event_type().regex(regex),
    }
    .max(FILTER_WINDOW)
}

/// An entry of a group's parked stream; `None` for what is not one.
fn parked(entry: &RawEvent) -> Option<Parked> {
    /// What the server writes beside a parked message.
    #[derive(Default, Deserialize)]
    struct Note {
        #[serde(default)]
        reason: String,
    }

    let (revision, stream) = link_target(&entry.data)?;
    let note: Note = serde_json::from_slice(&entry.metadata).unwrap_or_default();
    Some(Parked {
        number: entry.revision,
        stream: stream.to_owned(),
        revision,
        reason: note.reason,
        at: entry.created,
    })
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
