//! A record of the log, and what a link points at. Keeps: how a record was reached changes nothing in it.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

/// The type of a record that points at another, `REVISION@STREAM` in its data.
pub(crate) const LINK: &str = "$>";
/// The type of a record that names a stream.
pub(crate) const REFERENCE: &str = "$@";
/// The type of a stream's metadata, kept in `$$STREAM`.
pub(crate) const METADATA: &str = "$metadata";
/// The type of a tombstone.
pub(crate) const TOMBSTONE: &str = "$streamDeleted";
/// A tombstone's revision, and the `$tb` that says softly deleted: .NET's largest `long`.
pub(crate) const DELETED: u64 = i64::MAX as u64;

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// Its stream.
    pub stream: Arc<str>,
    /// Its revision there.
    pub revision: u64,
    /// Its event id.
    pub id: Uuid,
    /// Its event type.
    pub event_type: Arc<str>,
    /// Whether it was written as `application/json`.
    pub json: bool,
    /// Its data.
    pub data: Bytes,
    /// Its custom metadata.
    pub metadata: Bytes,
    /// Commit position in `$all`.
    pub commit: u64,
    /// Prepare position in `$all`.
    pub prepare: u64,
    /// When it was written, in ticks of 100 ns since the Unix epoch.
    pub created: i64,
}

/// A record, or a link and what it points at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resolved {
    /// The record; of a link, its target, absent when that is gone.
    pub event: Option<Arc<Record>>,
    /// The link, when the record was reached by one.
    pub link: Option<Arc<Record>>,
}

impl Resolved {
    /// The record that stands in the source: the link where there is one.
    pub(crate) fn original(&self) -> Option<&Arc<Record>> {
        self.link.as_ref().or(self.event.as_ref())
    }
}

/// Which records of `$all` are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// The stream's name begins with one of these.
    StreamPrefix(Vec<String>),
    /// The stream's name matches.
    StreamRegex(String),
    /// The event type begins with one of these.
    TypePrefix(Vec<String>),
    /// The event type matches.
    TypeRegex(String),
}
