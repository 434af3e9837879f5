//! Snapshots as events: one stream beside the aggregate's, of which EventStoreDB keeps the newest
//! event only, for aggregates without a projection.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Snapshot, SnapshotError, Snapshots};
use crate::{
    command::{
        base::{Base, Lineage},
        observe::{Discard, Origin},
    },
    document::json,
    event::{RawEvent, next_after},
    journal::{Expected, Journal, JournalError, NewEvent, ReadLimit, Standing},
    projection::{Fold, StoredState},
    replica::{Header, Landed, LastEvent, Sort},
};

/// The event type of a snapshot.
const KIND: &str = "Snapshot";
/// One event, however large: EventStoreDB takes none over 16 MB.
const ONE: ReadLimit = ReadLimit {
    events: 1,
    bytes: 16 * 1024 * 1024,
};
/// A snapshot that is not written in this time is written by a later command.
const DEADLINE: Duration = Duration::from_secs(2);

/// Snapshot events in the stream `snapshot.{schema}.{stream}`, written about every `every` events.
#[derive(Clone, Debug)]
pub struct SnapshotEvents<J> {
    journal: J,
    every: u64,
}

impl<J: Journal> SnapshotEvents<J> {
    /// A snapshot about every `every` events of a stream (at least 1).
    pub fn new(journal: J, every: u64) -> Self {
        Self {
            journal,
            every: every.max(1),
        }
    }

    /// The stream of an aggregate's snapshots. Another category than the aggregate's, and another
    /// stream for each schema, so that old and new services run side by side.
    pub fn stream(fold: &dyn Fold, stream: &str) -> String {
        format!("snapshot.{}.{stream}", fold.schema())
    }

    async fn write(&self, stream: &str, event: NewEvent) -> Result<(), JournalError> {
        let expected = if let Some(newest) = self.newest(stream).await? {
            Expected::Exact(newest.revision)
        } else {
            // Before the first snapshot: a crash in between leaves metadata of nothing, and not
            // snapshots of which the oldest is read for ever.
            self.keep_newest_only(stream).await?;
            Expected::NoStream
        };
        match self.journal.append(stream, expected, vec![event], DEADLINE).await {
            // Others write the same snapshot; theirs is as good.
            Ok(_) | Err(JournalError::WrongExpected { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The newest snapshot. Where more than one can be read, EventStoreDB has not been told to keep
    /// one only: a process died before it could, and that is made good.
    async fn newest(&self, stream: &str) -> Result<Option<RawEvent>, JournalError> {
        // With `$maxCount` 1 the first readable event is the newest.
        let first = self.journal.read(stream, 0, ONE).await?;
        if first.end {
            return Ok(first.events.into_iter().next());
        }
        self.keep_newest_only(stream).await?;
        let Standing::Live(Some(newest)) = self.journal.look(stream).await? else {
            return Ok(None);
        };
        let mut last = self.journal.read(stream, newest.revision, ONE).await?.events;
        Ok(last.pop())
    }

    async fn keep_newest_only(&self, stream: &str) -> Result<(), JournalError> {
        let metadata = NewEvent {
            id: Uuid::new_v4(),
            kind: "$metadata".into(),
            json: true,
            data: Bytes::from_static(br#"{"$maxCount":1}"#),
            metadata: Bytes::new(),
        };
        match self
            .journal
            .append(&format!("$${stream}"), Expected::NoStream, vec![metadata], DEADLINE)
            .await
        {
            // There is metadata already: an operator's, or another service's the same as ours.
            Ok(_) | Err(JournalError::WrongExpected { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A snapshot's body.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    first: u64,
    event_id: Uuid,
    event_type: String,
    event_at: DateTime<Utc>,
    commands: Vec<(Uuid, u64, u64)>,
    /// What each of them was; older code knows nothing of it.
    #[serde(default)]
    sorts: Vec<Sort>,
    /// When each of them landed, in milliseconds, and since when they are all; versions of before
    /// did not say.
    #[serde(default)]
    commands_at: Vec<Option<i64>>,
    #[serde(default)]
    commands_since: Option<i64>,
    state: Box<RawValue>,
}

impl Stored {
    fn base(self, fold: &dyn Fold) -> Result<Base, String> {
        let text = self.state.get().as_bytes().to_vec();
        let state = fold.decode(&StoredState::Json(text), None).map_err(|e| e.to_string())?;
        let moment = |at: i64| DateTime::from_timestamp_millis(at);
        let sorts = self.sorts.into_iter().chain(std::iter::repeat_with(Sort::default));
        let times = self.commands_at.into_iter().chain(std::iter::repeat(None));
        let commands = self.commands.into_iter().zip(sorts).zip(times);
        let header = Header {
            version: Some(self.version),
            first: self.first,
            event: Some(LastEvent {
                id: self.event_id,
                kind: self.event_type.into(),
                at: self.event_at,
            }),
            commands: commands
                .map(|(((command, first, last), sort), at)| Landed {
                    command,
                    sort,
                    first,
                    last,
                    at: at.and_then(moment),
                })
                .collect(),
            commands_since: self.commands_since.and_then(moment).unwrap_or(self.event_at),
            ..Header::new()
        };
        Ok(Base::stored(header, state, Lineage::Foreign))
    }

    fn of(fold: &dyn Fold, base: &Base) -> Result<Option<Self>, String> {
        let (Some(version), Some(event)) = (base.header.version, &base.header.event) else {
            return Ok(None);
        };
        let encoded = fold.encode(&base.state).map_err(|e| e.to_string())?;
        let state = json::to_string(encoded.fold.as_ref().unwrap_or(&encoded.view));
        Ok(Some(Self {
            version,
            first: base.header.first,
            event_id: event.id,
            event_type: event.kind.to_string(),
            event_at: event.at,
            commands: base
                .header
                .commands
                .iter()
                .map(|l| (l.command, l.first, l.last))
                .collect(),
            sorts: base.header.commands.iter().map(|l| l.sort.clone()).collect(),
            commands_at: base
                .header
                .commands
                .iter()
                .map(|l| l.at.map(|at| at.timestamp_millis()))
                .collect(),
            commands_since: Some(base.header.commands_since.timestamp_millis()),
            state: RawValue::from_string(state).map_err(|e| e.to_string())?,
        }))
    }
}

impl<J: Journal> Snapshots for SnapshotEvents<J> {
    const ORIGIN: Origin = Origin::SnapshotEvent;

    async fn load(&self, fold: &dyn Fold, stream: &str, _: bool) -> Result<Snapshot, SnapshotError> {
        let unusable = |why, text| Ok(Snapshot::Unusable(why, text));
        let event = match self.newest(&Self::stream(fold, stream)).await {
            Ok(event) => event,
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => return unusable(Discard::Unavailable, error.to_string()),
        };
        let Some(event) = event else {
            return Ok(Snapshot::Nothing(Lineage::Foreign));
        };
        let stored = serde_json::from_slice::<Stored>(&event.data).map_err(|e| e.to_string());
        let base = match stored.and_then(|stored| stored.base(fold)) {
            Ok(base) => base,
            Err(error) => return unusable(Discard::Undecodable, error),
        };
        // It says that history before it is gone. Believed only where that is so: one that was
        // written on a state which skipped an event says the same.
        if let Some(below) = base.header.first.checked_sub(1) {
            match self.journal.read(stream, 0, ONE).await {
                Ok(slice) if slice.events.first().is_some_and(|event| event.revision <= below) => {
                    let text = format!(
                        "a snapshot event of `{stream}` begins at revision {}, and events before it can be read",
                        base.header.first
                    );
                    return unusable(Discard::Skipped, text);
                }
                Ok(_) => {}
                Err(error) => return unusable(Discard::Unavailable, error.to_string()),
            }
        }
        Ok(Snapshot::Base(base))
    }

    async fn keep(&self, fold: &dyn Fold, stream: &Arc<str>, base: &mut Base, appended: u64) -> Option<bool> {
        let next = next_after(base.header.version);
        // A multiple of `every` was reached or passed by this command.
        if next / self.every == next.saturating_sub(appended) / self.every {
            return None;
        }
        let written = match Stored::of(fold, base) {
            Ok(Some(stored)) => serde_json::to_vec(&stored).map_err(|e| e.to_string()),
            Ok(None) => return None,
            Err(error) => Err(error),
        };
        let written = match written {
            Ok(data) => {
                let id = Uuid::new_v4();
                let event = NewEvent {
                    id,
                    kind: KIND.into(),
                    json: true,
                    data: data.into(),
                    metadata: Bytes::new(),
                };
                self.write(&Self::stream(fold, stream), event)
                    .await
                    .map_err(|e| e.to_string())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &written {
            tracing::warn!(%stream, %error, "failed to write a snapshot event");
        }
        Some(written.is_ok())
    }
}
