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
    /// `$by_event_type`: `$et-TYPE`.
    ByEventType,
    /// `$streams`: the first event of every stream, in `$streams`.
    Streams,
    /// `$by_correlation_id`: `$bc-ID`, by `$correlationId` in the metadata.
    ByCorrelationId,
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

/// The stream into which a projection links this record, if it does.
pub(super) fn stream_for(projection: SystemProjection, seen: &Seen<'_>) -> Option<String> {
    match projection {
        SystemProjection::ByCategory => {
            // Of the system's own records, a soft deletion is told to the category of its stream.
            let of = match described_by(seen.stream) {
                Some(described) if seen.deletes && seen.event_type == METADATA => described,
                _ => seen.stream,
            };
            if of.starts_with('$') {
                return None;
            }
            let (category, _) = of.split_once('-')?;
            Some(format!("$ce-{category}"))
        }
        SystemProjection::ByEventType => {
            let own = seen.event_type != LINK && seen.event_type != TOMBSTONE && !seen.event_type.starts_with('$');
            own.then(|| format!("$et-{}", seen.event_type))
        }
        SystemProjection::Streams => {
            (seen.revision == 0 && !seen.stream.starts_with('$')).then(|| "$streams".to_owned())
        }
        SystemProjection::ByCorrelationId => {
            if seen.event_type == LINK || seen.revision == DELETED || !seen.metadata.starts_with(b"{") {
                return None;
            }
            let metadata: serde_json::Value = serde_json::from_slice(seen.metadata).ok()?;
            let id = metadata.get("$correlationId")?.as_str()?;
            Some(format!("$bc-{id}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn category(stream: &str, event_type: &str, deletes: bool) -> Option<String> {
        let seen = Seen {
            stream,
            revision: 0,
            event_type,
            metadata: b"",
            deletes,
        };
        stream_for(SystemProjection::ByCategory, &seen)
    }

    #[test]
    fn a_category_ends_at_the_first_dash() {
        assert_eq!(category("loan-1-a", "E", false).as_deref(), Some("$ce-loan"));
        assert_eq!(category("-1", "E", false).as_deref(), Some("$ce-"));
        assert_eq!(category("loan", "E", false), None);
        assert_eq!(category("$ce-loan", LINK, false), None);
        assert_eq!(category("$$loan-1", METADATA, false), None);
        assert_eq!(category("$$loan-1", METADATA, true).as_deref(), Some("$ce-loan"));
        assert_eq!(category("$$$ce-loan", METADATA, true), None);
        assert_eq!(category("loan-1", TOMBSTONE, false).as_deref(), Some("$ce-loan"));
    }

    #[test]
    fn correlation_comes_from_json_metadata() {
        let by = |metadata: &[u8]| {
            let seen = Seen {
                stream: "a-1",
                revision: 3,
                event_type: "E",
                metadata,
                deletes: false,
            };
            stream_for(SystemProjection::ByCorrelationId, &seen)
        };
        assert_eq!(by(br#"{"$correlationId":"x"}"#).as_deref(), Some("$bc-x"));
        assert_eq!(by(br#"{"$correlationId":1}"#), None);
        assert_eq!(by(b"{"), None);
    }
}
