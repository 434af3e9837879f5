//! One stream as the log knows it. Keeps: reading and writing see the same bounds.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};

use super::metadata::Metadata;

/// What makes a stream's name a metadata stream's.
pub(in super::super) const META: &str = "$$";
/// A metadata stream keeps its newest record only.
const META_MAX_COUNT: u64 = 1;

/// The stream whose metadata a stream keeps.
pub(in super::super) fn described_by(name: &str) -> Option<&str> {
    name.strip_prefix(META)
}

/// The stream that keeps a stream's metadata.
pub(in super::super) fn metadata_of(name: &str) -> String {
    format!("{META}{name}")
}

/// A stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stream {
    pub(super) id: i64,
    pub(super) name: Arc<str>,
    /// The next revision.
    pub(super) next: u64,
    /// Deleted for good: itself, or the stream whose metadata this is.
    pub(super) tombstoned: bool,
    pub(super) metadata: Metadata,
    /// Its metadata stream has records.
    pub(super) described: bool,
}

impl Stream {
    /// The first revision that the metadata lets be read; age apart.
    pub(super) fn first(&self) -> u64 {
        let by_count = self
            .metadata
            .max_count
            .map_or(0, |count| self.next.saturating_sub(count));
        let before = if self.metadata.deletes() {
            self.next
        } else {
            self.metadata.truncate_before.unwrap_or(0)
        };
        by_count.max(before)
    }

    /// Whether there is anything to be read at all.
    pub(super) fn missing(&self) -> bool {
        self.next == 0 || self.metadata.deletes()
    }

    /// Looks a stream up by name.
    pub(super) fn by_name(connection: &Connection, name: &str) -> rusqlite::Result<Option<Self>> {
        let mut statement = connection.prepare_cached("SELECT id, next, tombstoned FROM streams WHERE name = ?1")?;
        let found = statement
            .query_row([name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((id, next, tombstoned)) = found else {
            return Ok(None);
        };
        Self::complete(connection, id, name.into(), next, tombstoned).map(Some)
    }

    /// Looks a stream up by its number.
    pub(super) fn by_id(connection: &Connection, id: i64) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare_cached("SELECT name, next, tombstoned FROM streams WHERE id = ?1")?;
        let (name, next, tombstoned): (String, u64, bool) =
            statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Self::complete(connection, id, name.into(), next, tombstoned)
    }

    fn complete(
        connection: &Connection,
        id: i64,
        name: Arc<str>,
        next: u64,
        tombstoned: bool,
    ) -> rusqlite::Result<Self> {
        let mut stream = Self {
            id,
            next,
            tombstoned,
            metadata: Metadata::default(),
            described: false,
            name,
        };
        if let Some(newest) = newest_metadata(connection, &stream.name)? {
            stream.metadata = Metadata::parse(&newest.0, newest.1);
            stream.described = true;
        }
        if let Some(described) = described_by(&stream.name) {
            // Whatever is said of it: a metadata stream shows its newest record.
            stream.metadata = of_metadata();
            let mut statement = connection.prepare_cached("SELECT tombstoned FROM streams WHERE name = ?1")?;
            let gone: Option<bool> = statement.query_row([described], |row| row.get(0)).optional()?;
            stream.tombstoned |= gone.unwrap_or(false);
        }
        Ok(stream)
    }

    /// A stream that nothing was written to.
    pub(super) fn new(id: i64, name: Arc<str>) -> Self {
        let metadata = described_by(&name).map(|_| of_metadata()).unwrap_or_default();
        Self {
            id,
            name,
            next: 0,
            tombstoned: false,
            metadata,
            described: false,
        }
    }
}

/// The metadata of every metadata stream.
fn of_metadata() -> Metadata {
    Metadata {
        max_count: Some(META_MAX_COUNT),
        ..Metadata::default()
    }
}

/// The newest metadata of a stream, and whether it was written as JSON.
pub(super) fn newest_metadata(connection: &Connection, name: &str) -> rusqlite::Result<Option<(Vec<u8>, bool)>> {
    let mut statement = connection.prepare_cached(
        "SELECT e.data, e.json FROM events e, streams s
         WHERE s.name = ?1 AND e.stream = s.id AND s.next > 0 AND e.revision = s.next - 1",
    )?;
    let found = statement.query_row([metadata_of(name)], |row| {
        let data: Option<Vec<u8>> = row.get(0)?;
        Ok((data.unwrap_or_default(), row.get(1)?))
    });
    found.optional()
}
