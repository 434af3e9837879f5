//! EventStoreDB over the wire, by the crate `eventstore`: the one place that knows that crate.
//!
//! Every read goes to the leader (I4 hint). Every call has a time-out of ours, since the
//! client enforces none, and every way in which the client dies is a disconnect here.

use std::{sync::Arc, time::Duration};

use eventstore::{
    AppendToStreamOptions, Error, EventData, ExpectedRevision, ReadEvent, ReadStreamOptions, StreamPosition,
};

use self::{
    connection::{ConnectFailure, Factory},
    convert::raw_event,
    encoding::DELETED,
    errors::Doing,
};
use super::{Appended, Expected, Journal, JournalError, NewEvent, Newest, Presence, ReadLimit, Slice, Standing};
use crate::event::Revision;

#[cfg(feature = "daemon")]
mod category_lag;
mod client_settings;
mod connection;
mod convert;
mod encoding;
mod errors;
#[cfg(feature = "daemon")]
mod filter;
#[cfg(feature = "daemon")]
mod groups;
#[cfg(feature = "daemon")]
mod import;
mod nodelay;
mod settings;
#[cfg(feature = "daemon")]
mod sources;
#[cfg(feature = "daemon")]
mod subscription;

#[cfg(feature = "daemon")]
pub use groups::{Parked, pinned_is_safe};
#[cfg(feature = "daemon")]
pub use import::Importing;
pub use settings::{DEFAULT_IDLE_RENEW, DEFAULT_OPERATION_TIMEOUT, EsdbSettings, SettingsError, redacted};
#[cfg(feature = "daemon")]
pub use subscription::GroupSubscription;

/// As long as an append may be told to wait: no server does for so long.
const LONGEST: Duration = Duration::from_hours(24);

/// EventStoreDB. Cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct EventStore {
    factory: Arc<Factory>,
    #[cfg(feature = "daemon")]
    heads: sources::Heads,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its version: major, minor, patch. All zero when it does not say.
    pub version: (usize, usize, usize),
    /// Whether it has groups on `$all`.
    pub groups_on_all: bool,
}

impl std::fmt::Debug for EventStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStore").finish_non_exhaustive()
    }
}

impl EventStore {
    /// Checks the settings and reads the certificates; connects on first use.
    pub fn new(settings: &EsdbSettings) -> Result<Self, SettingsError> {
        Ok(Self {
            factory: Arc::new(Factory::new(settings)?),
            #[cfg(feature = "daemon")]
            heads: sources::Heads::default(),
        })
    }

    /// Connects now when there is no connection, and says what is at the other end. The first
    /// client of a process installs the process's default TLS provider, and fails when another
    /// one was installed before it: so call this before any `install_default` of your own.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, as every call here.
    pub async fn connect(&self) -> Result<Server, JournalError> {
        let connection = tokio::time::timeout(self.factory.operation_timeout, self.factory.connection())
            .await
            .unwrap_or_else(|_| {
                Err(JournalError::Unavailable(format!(
                    "connect: not within {:?}",
                    self.factory.operation_timeout
                )))
            })?;
        let version = connection.info.version();
        Ok(Server {
            version: (version.major(), version.minor(), version.patch()),
            groups_on_all: connection
                .info
                .contains_features(eventstore::operations::Features::PERSISTENT_SUBSCRIPITON_TO_ALL),
        })
    }

    /// Whether the server answers: one read of a stream that need not be there.
    pub async fn ping(&self) -> Result<(), JournalError> {
        match self.look("projector-ping").await {
            // Not being allowed to read is an answer as well.
            Ok(_) | Err(JournalError::Denied { .. } | JournalError::Tombstoned(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How many clients were made so far: one, and one more for each reconnect that needed one.
    pub fn clients_made(&self) -> u64 {
        self.factory.built()
    }

    /// This process's sockets to the nodes, and whether each shows `TCP_NODELAY` on now. Empty
    /// where the operating system does not show them (anything but Linux).
    pub fn sockets(&self) -> Vec<(std::net::SocketAddr, bool)> {
        self.factory.guard.shown()
    }

    fn explain(&self, failure: ConnectFailure, doing: Doing<'_>) -> JournalError {
        failure.explain(doing, self.factory.user())
    }

    /// Reads until `limit`, the end, or a step that takes too long.
    async fn collect(
        &self,
        stream: &str,
        options: &ReadStreamOptions,
        limit: ReadLimit,
    ) -> Result<Slice, ConnectFailure> {
        let step = self.factory.operation_timeout;
        let found = self
            .factory
            .call(None, |client| async move {
                let mut read = within(step, client.read_stream(stream, options)).await?;
                let mut slice = Slice::nothing(Presence::Present);
                let mut bytes = 0;
                while let Some(next) = within(step, read.next_read_event()).await? {
                    match next {
                        ReadEvent::LastStreamPosition(revision) => slice.last = Some(revision),
                        // The server may tell it twice, the later one being what it came to.
                        ReadEvent::FirstStreamPosition(revision) => slice.first = Some(revision),
                        ReadEvent::Event(resolved) => {
                            let Some(record) = resolved.event.or(resolved.link) else {
                                continue;
                            };
                            let event = raw_event(record);
                            bytes += event.data.len() + event.metadata.len();
                            slice.events.push(event);
                            if bytes >= limit.bytes {
                                slice.end = false;
                                return Ok(slice);
                            }
                        }
                        ReadEvent::LastAllStreamPosition(_) => {}
                    }
                }
                // All that was asked for came: whether more stands behind it, the server tells
                // by the stream's last revision.
                if slice.events.len() >= limit.events {
                    slice.end = slice.events.last().map(|event| event.revision) == slice.last;
                }
                Ok(slice)
            })
            .await;
        match found {
            Err(ConnectFailure::Client(Error::ResourceNotFound)) => Ok(Slice::nothing(Presence::Absent)),
            Err(ConnectFailure::Client(Error::ResourceDeleted)) => Ok(Slice::nothing(Presence::Tombstoned)),
            other => other,
        }
    }

    /// The newest readable event of `stream`.
    async fn newest(&self, stream: &str) -> Result<Slice, JournalError> {
        let options = ReadStreamOptions::default()
            .position(StreamPosition::End)
            .backwards()
            .requires_leader(true)
            .max_count(1);
        let one = ReadLimit {
            events: 1,
            bytes: usize::MAX,
        };
        self.collect(stream, &options, one)
            .await
            .map_err(|failure| self.explain(failure, Doing::Read(stream)))
    }
}

/// One step of a read; too slow a one is the client's own word for that.
async fn within<T>(limit: Duration, step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, step)
        .await
        .unwrap_or(Err(Error::DeadlineExceeded))
}

impl Journal for EventStore {
    async fn read(&self, stream: &str, from: Revision, limit: ReadLimit) -> Result<Slice, JournalError> {
        let limit = ReadLimit {
            events: limit.events.max(1),
            ..limit
        };
        let options = ReadStreamOptions::default()
            .position(StreamPosition::Position(from))
            .forwards()
            .requires_leader(true)
            .max_count(limit.events);
        self.collect(stream, &options, limit)
            .await
            .map_err(|failure| self.explain(failure, Doing::Read(stream)))
    }

    async fn look(&self, stream: &str) -> Result<Standing, JournalError> {
        let described_by = format!("$${stream}");
        let mut seen = None;
        loop {
            let newest = self.newest(stream).await?;
            match newest.presence {
                Presence::Tombstoned => return Ok(Standing::Tombstoned),
                Presence::Present => {
                    return Ok(Standing::Live(newest.events.first().map(|event| Newest {
                        revision: event.revision,
                        id: event.id,
                        created: event.created,
                    })));
                }
                Presence::Absent => {}
            }
            let metadata = self.newest(&described_by).await?;
            if metadata.presence == Presence::Tombstoned {
                // Its stream was tombstoned between the two reads.
                return Ok(Standing::Tombstoned);
            }
            match metadata.events.first() {
                Some(last) if is_soft_deletion(&last.data) => return Ok(Standing::SoftDeleted),
                // Metadata that say nothing of a deletion may have been written between the two
                // reads, by the stream's revival; the same ones before and after a read were not.
                Some(last) if seen != Some(last.revision) => seen = Some(last.revision),
                _ => return Ok(Standing::Missing),
            }
        }
    }

    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
        deadline: Duration,
    ) -> Result<Appended, JournalError> {
        let any = !events.is_empty();
        let options = AppendToStreamOptions::default()
            .expected_revision(match expected {
                Expected::NoStream => ExpectedRevision::NoStream,
                Expected::Exact(revision) => ExpectedRevision::Exact(revision),
            })
            // The header has eight digits for it.
            .deadline(deadline.min(LONGEST))
            .requires_leader(true);
        let events: Vec<EventData> = events
            .iter()
            .map(|event| event_data(stream, event))
            .collect::<Result<_, _>>()?;
        let written = self
            .factory
            .call(Some(deadline), |client| {
                let (options, events) = (&options, events.clone());
                async move { client.append_to_stream(stream, options, events).await }
            })
            .await
            .map_err(|failure| failure.explain_append(stream, self.factory.user()))?;
        Ok(Appended {
            // An append of nothing is answered with "no stream" as 0 when there is none.
            revision: any.then_some(written.next_expected_version),
            // "No position" comes as (0, 0), where no event of a user ever stands.
            positioned: (written.position.commit, written.position.prepare) != (0, 0),
        })
    }
}

/// The client takes JSON only as something to serialize; `RawValue` hands the text through as it
/// stands, but for white space around it.
fn event_data(stream: &str, event: &NewEvent) -> Result<EventData, JournalError> {
    let data = if event.json {
        serde_json::from_slice::<&serde_json::value::RawValue>(&event.data)
            .and_then(|raw| EventData::json(&*event.kind, &raw))
            .map_err(|error| {
                JournalError::Refused(format!(
                    "append to stream `{stream}`: an event of type `{}` is said to be JSON and is not: {error}",
                    event.kind
                ))
            })?
    } else {
        EventData::binary(&*event.kind, event.data.clone())
    };
    let data = data.id(event.id);
    Ok(if event.metadata.is_empty() {
        data
    } else {
        data.metadata(event.metadata.clone())
    })
}

/// Whether this is the metadata that a soft deletion leaves.
fn is_soft_deletion(metadata: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(metadata)
        .ok()
        .and_then(|value| value.get("$tb")?.as_u64())
        == Some(DELETED)
}

#[cfg(feature = "daemon")]
impl super::feed::Feed for EventStore {
    type Subscription = GroupSubscription;

    async fn ensure(&self, group: &super::feed::GroupSpec) -> Result<super::feed::Ensured, JournalError> {
        self.ensure_group(group).await
    }

    async fn restart(&self, group: &super::feed::GroupSpec) -> Result<(), JournalError> {
        match self.delete_group(&group.source, &group.name).await {
            // Another task may have been first.
            Ok(()) | Err(JournalError::NoGroup { .. }) => {}
            Err(error) => return Err(error),
        }
        self.ensure_group(group).await.map(|_| ())
    }

    async fn subscribe(
        &self,
        group: &super::feed::GroupSpec,
        buffer: usize,
    ) -> Result<GroupSubscription, JournalError> {
        self.subscribe_to(group, buffer).await
    }

    async fn info(&self, group: &super::feed::GroupSpec) -> Result<super::feed::GroupInfo, JournalError> {
        self.info_of(group).await
    }

    async fn head(&self, source: &crate::projection::Source) -> Result<Option<super::feed::Head>, JournalError> {
        self.head_of(source).await
    }

    async fn stalled(
        &self,
        source: &crate::projection::Source,
        head: Option<&super::feed::Head>,
    ) -> Result<Option<chrono::DateTime<chrono::Utc>>, JournalError> {
        self.stalled_since(source, head).await
    }

    async fn entries(
        &self,
        source: &crate::projection::Source,
        after: Option<super::feed::Mark>,
        max: usize,
    ) -> Result<Vec<(super::feed::Mark, super::feed::Delivery)>, JournalError> {
        self.entries_of(source, after, max).await
    }
}
