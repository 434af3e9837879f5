//! The log's tables and connections. Keeps: a commit is on disk before it is answered, when the log
//! is on disk at all; readers never wait for the writer.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

/// The layout of the tables. 2: a projection's record says where the record stands that caused it, and
/// what it says of it is put together when it is read; a log begins as EventStoreDB's does. 3: it keeps
/// in its metadata's place, in short, what it says.
const LAYOUT: i64 = 3;
/// What the file says it is (`application_id`): "pjES" in ASCII.
const APPLICATION: i64 = 0x706a_4553;
/// Pages of 4 KiB that the write-ahead log may grow to before it is folded back: 32 MiB, so that an
/// import folds back seldom and a restart reads little.
const CHECKPOINT_PAGES: i64 = 8192;
/// Cache of the writing connection in KiB: the inner pages of both indexes of some million events.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// Cache of a reading connection in KiB; the kernel's page cache stands behind it.
const READER_CACHE_KIB: i64 = 4 * 1024;
/// Prepared statements kept by a connection: all that there are.
const STATEMENTS: usize = 64;

/// Records, and the columns in the order in which every query lists them.
macro_rules! records {
    () => {
        "SELECT e.position, e.stream, e.revision, e.id, e.type, e.json, e.created, e.data, e.metadata, e.source \
         FROM events e "
    };
}
/// The same, each with the columns of the record that caused it behind its own: for where there are
/// many of those to be shown, for it costs less than to look for them one by one.
macro_rules! records_with_sources {
    () => {
        "SELECT e.position, e.stream, e.revision, e.id, e.type, e.json, e.created, e.data, e.metadata, e.source, \
         s.position, s.stream, s.revision, s.id, s.type, s.json, s.created, s.data, s.metadata \
         FROM events e LEFT JOIN events s ON s.position = e.source "
    };
}
/// How many columns a record has, its source apart.
pub(super) const COLUMNS: usize = 10;
pub(super) use {records, records_with_sources};

/// Opens the connection that writes, and makes the tables where there are none.
pub(super) fn writer(path: &Path, durable: bool) -> Result<Connection, Problem> {
    let connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let layout: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let empty: bool = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
    if !empty && application != APPLICATION {
        return Err(Problem::Foreign);
    }
    if !empty && layout != LAYOUT {
        return Err(Problem::Layout { found: layout });
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: the write-ahead log is synced at every commit. A log that ends with its process needs none.
    connection.pragma_update(None, "synchronous", if durable { "FULL" } else { "OFF" })?;
    // Only one process at a time: a second server on one file would give positions twice.
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    if empty {
        connection.execute_batch(
            "BEGIN;
             CREATE TABLE streams (
                 id INTEGER PRIMARY KEY,
                 name TEXT NOT NULL UNIQUE,
                 next INTEGER NOT NULL,
                 tombstoned INTEGER NOT NULL
             );
             CREATE TABLE types (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
             CREATE TABLE events (
                 position INTEGER PRIMARY KEY,
                 stream INTEGER NOT NULL,
                 revision INTEGER NOT NULL,
                 id BLOB,
                 type INTEGER NOT NULL,
                 json INTEGER NOT NULL,
                 created INTEGER NOT NULL,
                 data BLOB,
                 metadata BLOB,
                 source INTEGER
             );
             CREATE UNIQUE INDEX events_of ON events (stream, revision);
             CREATE TABLE projections (name TEXT PRIMARY KEY, stopped INTEGER NOT NULL);
             COMMIT;",
        )?;
        connection.pragma_update(None, "application_id", APPLICATION)?;
        connection.pragma_update(None, "user_version", LAYOUT)?;
    }
    Ok(connection)
}

/// Opens a connection that reads.
pub(super) fn reader(path: &Path) -> Result<Connection, Problem> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    // Touching the file opens what SQLite opens late: the file may lose its name from here on.
    connection.query_row("SELECT count(*) FROM streams WHERE id < 0", [], |_| Ok(()))?;
    Ok(connection)
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// SQLite says no.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A file of something else.
    #[error("it is no log of an embedded EventStoreDB; choose an empty folder")]
    Foreign,
    /// A file of another version.
    #[error(
        "it has layout {found} and this version reads layout {LAYOUT}; choose an empty folder, or start the version \
         that wrote it and copy its streams with a client"
    )]
    Layout {
        /// What the file says.
        found: i64,
    },
}
