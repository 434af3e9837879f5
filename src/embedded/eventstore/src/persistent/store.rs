//! What the groups need of the log, and no more. Keeps: the groups know neither how the log is kept
//! nor on which thread it is read.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::group::Counted;
use super::place::{Place, ReadFrom};
pub(crate) use crate::record::{Filter, LINK, METADATA, Record, Resolved};

/// The name under which `$all` is asked for.
pub(crate) const ALL: &str = "$all";
/// What a group reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// One stream, written or not yet.
    Stream(Arc<str>),
    /// Everything, or what a filter lets through.
    All(Option<Filter>),
}

impl Source {
    /// The stream's name, or `$all`.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Stream(name) => name,
            Self::All(_) => ALL,
        }
    }

    /// Where a record of this source stands in it.
    pub(crate) fn place(&self, record: &Record) -> Place {
        match self {
            Self::Stream(_) => Place::Stream(record.revision),
            Self::All(_) => Place::All {
                commit: record.commit,
                prepare: record.prepare,
            },
        }
    }
}

/// A page to be read.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Of what.
    pub source: Source,
    /// From where, forwards.
    pub from: ReadFrom,
    /// Matching records at most.
    pub count: usize,
    /// Records looked at at most, under a filter.
    pub window: usize,
    /// Whether links are followed.
    pub resolve_links: bool,
    /// Whether everything before was read: then truncation since hides nothing.
    pub live: bool,
}

/// A page that was read.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    /// Matching records, in order.
    pub records: Vec<Resolved>,
    /// Records filtered out behind the last match.
    pub skipped: u64,
    /// The last record looked at, matching or not.
    pub scanned_to: Option<Place>,
    /// Where to read on.
    pub next: ReadFrom,
    /// Nothing more was there.
    pub end: bool,
}

/// A page that could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Never will be: the stream is tombstoned.
    #[error("read `{stream}`: it is deleted for good; delete the group, too")]
    Gone {
        /// The stream.
        stream: String,
    },
    /// Perhaps later.
    #[error("read the log: {reason}; it is tried again")]
    Busy {
        /// What the log says.
        reason: String,
    },
}

/// A record that could not be written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("write to `{stream}`: {reason}; it is tried again")]
pub(crate) struct RecordError {
    /// The stream.
    pub stream: String,
    /// What the log says.
    pub reason: String,
}

/// A record to be written, at whatever revision comes.
#[derive(Clone, Debug)]
pub(crate) struct NewRecord {
    /// Its event type.
    pub event_type: &'static str,
    /// Whether its data is JSON.
    pub json: bool,
    /// Its data.
    pub data: Bytes,
    /// Its custom metadata.
    pub metadata: Bytes,
}

/// The log, as the groups use it.
pub(crate) trait Store: Send + Sync + 'static {
    /// Reads a page forwards. A stream that was never written, or is softly deleted, is empty. A
    /// tombstone is the last record for whoever has read everything before ([`Ask::live`]), and
    /// [`ReadError::Gone`] for others.
    fn read(&self, ask: Ask) -> BoxFuture<'_, Result<Scan, ReadError>>;

    /// Where a source ends: what is written next is there or beyond.
    fn edge(&self, source: Source) -> BoxFuture<'_, Result<ReadFrom, ReadError>>;

    /// Counts the records from a place to the end; `count` and `window` are those of each step.
    fn count(&self, ask: Ask) -> BoxFuture<'_, Result<Counted, ReadError>>;

    /// The newest readable record of a stream.
    fn newest(&self, stream: String) -> BoxFuture<'_, Result<Option<Arc<Record>>, ReadError>>;

    /// The first revision of a stream that its metadata lets be read, and the next to be written.
    fn bounds(&self, stream: String) -> BoxFuture<'_, Result<(u64, u64), ReadError>>;

    /// The place of the last record of the log; nothing while there is none.
    fn head(&self) -> BoxFuture<'_, Result<Option<Place>, ReadError>>;

    /// Writes records, durable when it returns; the revision of the last.
    fn append(&self, stream: String, records: Vec<NewRecord>) -> BoxFuture<'_, Result<u64, RecordError>>;

    /// Changes whenever something was written. The value means nothing.
    fn changes(&self) -> watch::Receiver<u64>;
}
