//! The links that the system projections write: a category's, an event type's, all streams'. Keeps:
//! they are written with the event that they point at, so a category is never behind the log; and a
//! deletion is told as EventStoreDB's tells it.

use super::super::record::{DELETED, LINK, METADATA, TOMBSTONE};
use super::stream::described_by;

/// A system projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemProjection {
    /// `$by_category`: `$ce-CATEGORY`, the category being what stands before the first `-`.
    ByCategory,
    /// `$by_event_type`: `$et-TYPE`, and deletions in `$et-$deleted`.
    ByEventType,
    /// `$streams`: the first event of every stream, in `$streams`.
    Streams,
    /// `$stream_by_category`: the name of every stream, in `$category-CATEGORY`.
    StreamByCategory,
    /// `$by_correlation_id`: `$bc-ID`, by `$correlationId` in the metadata.
    ByCorrelationId,
}

impl SystemProjection {
    /// All of them, as a node runs them that is told to start its standard projections.
    pub const ALL: [Self; 5] = [
        Self::ByCategory,
        Self::ByEventType,
        Self::Streams,
        Self::StreamByCategory,
        Self::ByCorrelationId,
    ];
}

/// A record as the projections see it.
pub(super) struct Seen<'a> {
    pub(super) stream: &'a str,
    pub(super) revision: u64,
    pub(super) event_type: &'a str,
    pub(super) metadata: &'a [u8],
    /// It is metadata that softly deletes its stream.
    pub(super) deletes: bool,
}

impl Seen<'_> {
    /// The system's own records are nobody's concern, but what describes a user's stream is.
    fn concerns_users(&self) -> bool {
        !described_by(self.stream).unwrap_or(self.stream).starts_with('$')
    }

    /// The stream that this deletes, softly or for good.
    fn deleted(&self) -> Option<&str> {
        match described_by(self.stream) {
            Some(described) if self.deletes && self.event_type == METADATA => Some(described),
            None if self.event_type == TOMBSTONE => Some(self.stream),
            _ => None,
        }
    }
}

/// What a projection writes of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Projected<'a> {
    /// Into which stream.
    pub(super) into: String,
    pub(super) written: Written<'a>,
}

/// What stands there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written<'a> {
    /// A link to the record, or to where the record points, if it is a link itself.
    Link,
    /// A link to the record's revision, in another stream than its own.
    LinkIn(&'a str),
    /// A reference to the stream.
    Reference,
}

/// What a projection makes of this record, if anything.
pub(super) fn project<'a>(projection: SystemProjection, seen: &Seen<'a>) -> Option<Projected<'a>> {
    if !seen.concerns_users() {
        return None;
    }
    let link = |into| {
        let written = Written::Link;
        Some(Projected { into, written })
    };
    match projection {
        SystemProjection::ByCategory => {
            let category = category_of(seen.deleted().unwrap_or(seen.stream))?;
            link(format!("$ce-{category}"))
        }
        SystemProjection::ByEventType if seen.event_type == LINK => None,
        SystemProjection::ByEventType => {
            let of_type = seen.deleted().map_or(seen.event_type, |_| "$deleted");
            let into = format!("$et-{of_type}");
            // Of metadata, the link names the stream that they describe.
            let written = described_by(seen.stream).map_or(Written::Link, Written::LinkIn);
            Some(Projected { into, written })
        }
        SystemProjection::Streams if seen.revision == 0 => link("$streams".to_owned()),
        SystemProjection::StreamByCategory if seen.revision == 0 => {
            let into = format!("$category-{}", category_of(seen.stream)?);
            let written = Written::Reference;
            Some(Projected { into, written })
        }
        SystemProjection::Streams | SystemProjection::StreamByCategory => None,
        SystemProjection::ByCorrelationId => {
            if seen.event_type == LINK || seen.revision == DELETED || !seen.metadata.starts_with(b"{") {
                return None;
            }
            let metadata: serde_json::Value = serde_json::from_slice(seen.metadata).ok()?;
            match metadata.get("$correlationId")? {
                serde_json::Value::String(id) => link(format!("$bc-{id}")),
                serde_json::Value::Number(id) => link(format!("$bc-{id}")),
                _ => None,
            }
        }
    }
}

/// What stands before the first `-`; nothing before it is no category.
fn category_of(stream: &str) -> Option<&str> {
    let (category, _) = stream.split_once('-')?;
    (!category.is_empty() && !stream.starts_with('$')).then_some(category)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(stream: &'a str, revision: u64, event_type: &'a str, deletes: bool) -> Seen<'a> {
        Seen {
            stream,
            revision,
            event_type,
            metadata: b"",
            deletes,
        }
    }

    fn into(projection: SystemProjection, seen: &Seen<'_>) -> Option<String> {
        project(projection, seen).map(|projected| projected.into)
    }

    #[test]
    fn a_category_ends_at_the_first_dash() {
        let category =
            |stream, event_type, deletes| into(SystemProjection::ByCategory, &seen(stream, 0, event_type, deletes));
        assert_eq!(category("loan-1-a", "E", false).as_deref(), Some("$ce-loan"));
        assert_eq!(category("loan-", "E", false).as_deref(), Some("$ce-loan"));
        assert_eq!(category("-1", "E", false), None);
        assert_eq!(category("loan", "E", false), None);
        assert_eq!(category("$ce-loan", LINK, false), None);
        assert_eq!(category("$$loan-1", METADATA, false), None);
        assert_eq!(category("$$loan-1", METADATA, true).as_deref(), Some("$ce-loan"));
        assert_eq!(category("$$$ce-loan", METADATA, true), None);
        assert_eq!(category("loan-1", TOMBSTONE, false).as_deref(), Some("$ce-loan"));
    }

    #[test]
    fn types_tell_deletions_apart_and_name_the_stream_that_metadata_describe() {
        let of =
            |stream, event_type, deletes| project(SystemProjection::ByEventType, &seen(stream, 3, event_type, deletes));
        let linked = |into: &str, written| {
            let into = into.to_owned();
            Some(Projected { into, written })
        };
        assert_eq!(of("a", "E", false), linked("$et-E", Written::Link));
        assert_eq!(of("a", "$mine", false), linked("$et-$mine", Written::Link));
        assert_eq!(of("a", TOMBSTONE, false), linked("$et-$deleted", Written::Link));
        assert_eq!(
            of("$$a", METADATA, false),
            linked("$et-$metadata", Written::LinkIn("a"))
        );
        assert_eq!(of("$$a", METADATA, true), linked("$et-$deleted", Written::LinkIn("a")));
        for (stream, event_type) in [("a", LINK), ("$a", "E"), ("$$$a", METADATA)] {
            assert_eq!(of(stream, event_type, false), None, "{stream}");
        }
    }

    #[test]
    fn a_streams_first_event_tells_of_the_stream() {
        let streams = |stream, revision| into(SystemProjection::Streams, &seen(stream, revision, "E", false));
        assert_eq!(streams("a", 0).as_deref(), Some("$streams"));
        assert_eq!(streams("$$a", 0).as_deref(), Some("$streams"));
        assert_eq!((streams("a", 1), streams("$a", 0)), (None, None));
        let category =
            |stream, revision| project(SystemProjection::StreamByCategory, &seen(stream, revision, "E", false));
        let first = category("a-1", 0).unwrap();
        assert_eq!((&*first.into, first.written), ("$category-a", Written::Reference));
        assert_eq!(
            (category("a-1", 1), category("$$a-1", 0), category("a", 0)),
            (None, None, None)
        );
    }

    #[test]
    fn correlation_comes_from_json_metadata() {
        let by = |metadata: &[u8]| {
            let seen = Seen {
                metadata,
                ..seen("a-1", 3, "E", false)
            };
            into(SystemProjection::ByCorrelationId, &seen)
        };
        assert_eq!(by(br#"{"$correlationId":"x"}"#).as_deref(), Some("$bc-x"));
        assert_eq!(by(br#"{"$correlationId":1}"#).as_deref(), Some("$bc-1"));
        assert_eq!(by(br#"{"$correlationId":null}"#), None);
        assert_eq!(by(b"{"), None);
    }
}
