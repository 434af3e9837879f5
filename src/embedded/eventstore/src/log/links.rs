//! What the system projections write: links of a category, of an event type, to all streams.
//!
//! Invariant: they are written with the event that they point at, so a category is never behind the log;
//! what they say of deletions is what EventStoreDB's say.

use bytes::Bytes;

use super::super::record::{DELETED, METADATA, TOMBSTONE};
use super::cause::CORRELATION;
use super::stream::{described_by, metadata_of};

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

/// Where all standard projections are registered.
pub(super) const REGISTRATION: &str = "$projections-$all";
/// What begins the name of a projection's own stream.
const OF_PROJECTION: &str = "$projections-";
/// The stream in which `$by_event_type` keeps its checkpoints.
pub(super) const TYPES: &str = "$et";

impl SystemProjection {
    /// All of them, as a node runs them that is told to start its standard projections.
    pub const ALL: [Self; 5] = [
        Self::ByCategory,
        Self::ByEventType,
        Self::Streams,
        Self::StreamByCategory,
        Self::ByCorrelationId,
    ];

    /// In the order in which a node registers them: each one's number is its place, from 1.
    const REGISTERED: [Self; 5] = [
        Self::Streams,
        Self::StreamByCategory,
        Self::ByCategory,
        Self::ByEventType,
        Self::ByCorrelationId,
    ];

    /// In the order in which a node starts them.
    const STARTED: [Self; 5] = [
        Self::ByCategory,
        Self::StreamByCategory,
        Self::Streams,
        Self::ByEventType,
        Self::ByCorrelationId,
    ];

    /// The `$v` of what it writes: its number, no epoch, its version once it was started, and the
    /// version of the projections themselves.
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::Streams => "1:-1:1:4",
            Self::StreamByCategory => "2:-1:1:4",
            Self::ByCategory => "3:-1:1:4",
            Self::ByEventType => "4:-1:1:4",
            Self::ByCorrelationId => "5:-1:1:4",
        }
    }

    /// Its class there, and its query.
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::ByCategory => ("CategorizeEventsByStreamPath", "first\r\n-"),
            Self::ByEventType => ("IndexEventsByEventType", ""),
            Self::Streams => ("IndexStreams", ""),
            Self::StreamByCategory => ("CategorizeStreamByPath", "first\r\n-"),
            Self::ByCorrelationId => ("ByCorrelationId", r#"{"correlationIdProperty":"$correlationId"}"#),
        }
    }

    /// The one that writes to a stream of this name.
    pub(super) fn writing(stream: &str) -> Option<Self> {
        if stream.starts_with("$ce-") {
            Some(Self::ByCategory)
        } else if stream.starts_with("$et-") || stream == TYPES {
            Some(Self::ByEventType)
        } else if stream == "$streams" {
            Some(Self::Streams)
        } else if stream.starts_with("$category-") {
            Some(Self::StreamByCategory)
        } else if stream.starts_with("$bc-") {
            Some(Self::ByCorrelationId)
        } else {
            None
        }
    }
}

/// A record as the projections see it: itself, or, of a link, what it points at.
pub(super) struct Seen<'a> {
    /// Where it stands.
    pub(super) stream: &'a str,
    /// Its revision there.
    pub(super) revision: u64,
    /// The type; none of a link to an event that cannot be read.
    pub(super) event_type: Option<&'a str>,
    pub(super) metadata: &'a [u8],
    /// It is metadata that softly deletes its stream.
    pub(super) deletes: bool,
    /// Of a link, what a link to the same says.
    pub(super) link: Option<&'a Bytes>,
}

/// The system's own records are nobody's concern, but what describes a user's stream is.
pub(super) fn concerns_users(stream: &str) -> bool {
    !described_by(stream).unwrap_or(stream).starts_with('$')
}

impl Seen<'_> {
    /// The stream that this deletes, softly or for good.
    fn deleted(&self) -> Option<&str> {
        deleted(self.stream, self.event_type, self.deletes)
    }
}

/// The stream that a record of this type deletes.
pub(super) fn deleted<'a>(stream: &'a str, event_type: Option<&str>, deletes: bool) -> Option<&'a str> {
    match described_by(stream) {
        Some(described) if deletes && event_type == Some(METADATA) => Some(described),
        None if event_type == Some(TOMBSTONE) => Some(stream),
        _ => None,
    }
}

/// What a projection writes of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Projected {
    /// Into which stream.
    pub(super) into: String,
    pub(super) written: LinkBody,
}

/// What stands there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LinkBody {
    /// A link to the record.
    Link,
    /// A link that says this.
    LinkTo(Bytes),
    /// A reference to the stream.
    Reference,
}

/// What a projection makes of this record, if anything.
pub(super) fn project(projection: SystemProjection, seen: &Seen<'_>) -> Option<Projected> {
    if !concerns_users(seen.stream) {
        return None;
    }
    let link = |into| {
        let written = LinkBody::Link;
        Some(Projected { into, written })
    };
    match projection {
        SystemProjection::ByCategory => {
            let category = category_of(seen.deleted().unwrap_or(seen.stream))?;
            let into = format!("$ce-{category}");
            let written = seen.link.cloned().map_or(LinkBody::Link, LinkBody::LinkTo);
            Some(Projected { into, written })
        }
        // These two are not shown links.
        SystemProjection::ByEventType | SystemProjection::ByCorrelationId if seen.link.is_some() => None,
        SystemProjection::ByEventType => {
            let of_type = if seen.deleted().is_some() {
                "$deleted"
            } else {
                seen.event_type?
            };
            let into = format!("$et-{of_type}");
            // Of metadata, the link names the stream that they describe.
            let written = described_by(seen.stream).map_or(LinkBody::Link, |described| {
                LinkBody::LinkTo(format!("{}@{described}", seen.revision).into())
            });
            Some(Projected { into, written })
        }
        SystemProjection::Streams if seen.revision == 0 => link("$streams".to_owned()),
        SystemProjection::StreamByCategory if seen.revision == 0 => {
            let into = format!("$category-{}", category_of(seen.stream)?);
            let written = LinkBody::Reference;
            Some(Projected { into, written })
        }
        SystemProjection::Streams | SystemProjection::StreamByCategory => None,
        SystemProjection::ByCorrelationId => {
            if seen.revision == DELETED || !seen.metadata.starts_with(b"{") {
                return None;
            }
            let metadata: serde_json::Value = serde_json::from_slice(seen.metadata).ok()?;
            match metadata.get(CORRELATION)? {
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

/// Nested deeper than this, EventStoreDB's projections take nothing for JSON.
const DEPTH: usize = 64;

/// Whether a projection is shown an event whose data says that it is JSON: EventStoreDB leaves out
/// what is none, but for comments and trailing commas.
pub(super) fn is_json(data: &[u8]) -> bool {
    let valid = |data: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok();
    (valid(data) || valid(&lenient(data))) && depth(data) <= DEPTH
}

/// JSON without its comments and its trailing commas.
fn lenient(data: &[u8]) -> Vec<u8> {
    let mut kept: Vec<u8> = Vec::with_capacity(data.len());
    let mut rest = data;
    let mut quoted = false;
    while let [first, after @ ..] = rest {
        rest = after;
        match (quoted, first) {
            (true, b'\\') => {
                kept.push(*first);
                if let [escaped, after @ ..] = rest {
                    kept.push(*escaped);
                    rest = after;
                }
                continue;
            }
            (false, b'/') if rest.starts_with(b"/") => {
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                rest = &rest[end..];
                continue;
            }
            (false, b'/') if rest.starts_with(b"*") => {
                let Some(end) = rest.windows(2).skip(1).position(|pair| pair == b"*/") else {
                    return data.to_vec();
                };
                rest = &rest[end + 3..];
                continue;
            }
            (false, b']' | b'}') => {
                let end = kept.iter().rposition(|byte| !byte.is_ascii_whitespace());
                // A comma behind nothing stays, and is no JSON.
                if let Some(end) = end.filter(|end| kept[*end] == b',' && *end > 0) {
                    let before = kept[..end].iter().rposition(|byte| !byte.is_ascii_whitespace());
                    if before.is_some_and(|before| !matches!(kept[before], b'[' | b'{' | b',' | b':')) {
                        kept.truncate(end);
                    }
                }
            }
            (_, b'"') => quoted = !quoted,
            _ => {}
        }
        kept.push(*first);
    }
    kept
}

fn depth(data: &[u8]) -> usize {
    let opens = |byte: &&u8| matches!(**byte, b'[' | b'{');
    if data.iter().filter(opens).take(DEPTH + 1).count() <= DEPTH {
        return 0;
    }
    let (mut now, mut most, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in data {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'[' | b'{') => {
                now += 1;
                most = most.max(now);
            }
            (false, b']' | b'}') => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Metadata of a stream that a projection writes, before its first record: where its history was cut
/// off before, it stays so.
pub(super) fn emitted(truncate_before: Option<u64>) -> Vec<u8> {
    let before = truncate_before.filter(|before| *before > 0);
    let before = before.map(|before| format!(r#""$tb":{before},"#)).unwrap_or_default();
    format!(r#"{{{before}"$acl":{{"$r":"$all","$mr":"$all"}}}}"#).into_bytes()
}

/// A record that a node writes about itself: its stream, its type, whether it is JSON, its data, its
/// metadata.
pub(super) type Own = (String, &'static str, bool, Vec<u8>, Vec<u8>);

/// What a node writes into an empty log before anything else.
pub(super) fn beginning() -> Own {
    let data = br#"{"$maxAge":2592000,"$acl":{"$r":"$ops","$w":[],"$d":[],"$mr":[],"$mw":[]}}"#;
    (metadata_of("$scavenges"), METADATA, true, data.to_vec(), Vec::new())
}

/// What a node writes when it runs projections for the first time: all of them are registered, these
/// are started.
pub(super) fn registration(started: &[SystemProjection]) -> Vec<Own> {
    let mut written = vec![(
        REGISTRATION.to_owned(),
        "$ProjectionsInitialized",
        false,
        Vec::new(),
        Vec::new(),
    )];
    for projection in SystemProjection::REGISTERED {
        let name = projection.name().as_bytes().to_vec();
        written.push((REGISTRATION.to_owned(), "$ProjectionCreated", false, name, Vec::new()));
    }
    let updated = |projection: SystemProjection, enabled| {
        let stream = format!("{OF_PROJECTION}{}", projection.name());
        (
            stream,
            "$ProjectionUpdated",
            true,
            definition(projection, enabled),
            Vec::new(),
        )
    };
    written.extend(SystemProjection::REGISTERED.map(|projection| updated(projection, false)));
    let starts = SystemProjection::STARTED
        .into_iter()
        .filter(|one| started.contains(one));
    written.extend(starts.map(|projection| updated(projection, true)));
    if started.contains(&SystemProjection::ByEventType) {
        let version = SystemProjection::ByEventType.version();
        let metadata = format!(r#"{{"$v":"{version}","$c":0,"$p":-1}}"#).into_bytes();
        written.push((metadata_of(TYPES), METADATA, true, emitted(None), Vec::new()));
        written.push((
            TYPES.to_owned(),
            "$Checkpoint",
            true,
            br#"{"$c":0,"$p":-1}"#.to_vec(),
            metadata,
        ));
    }
    written
}

/// What a projection's own stream says of it.
fn definition(projection: SystemProjection, enabled: bool) -> Vec<u8> {
    let (class, query) = projection.source();
    let mut said = serde_json::json!({
        "handlerType": format!("native:EventStore.Projections.Core.Standard.{class}"),
        "query": query,
        "mode": "Continuous",
        "emitEnabled": true,
        "checkpointsDisabled": false,
        "trackEmittedStreams": false,
        "epoch": -1,
        "version": i32::from(enabled),
        "runAs": { "name": "$system" },
        "checkpointHandledThreshold": 4000,
        "checkpointUnhandledBytesThreshold": 10_000_000,
        "pendingEventsThreshold": 5000,
        "maxWriteBatchLength": 500,
        "maxAllowedWritesInFlight": -1,
        "projectionSubsystemVersion": 4,
    });
    if enabled {
        said["enabled"] = true.into();
    }
    said.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(stream: &'a str, revision: u64, event_type: &'a str, deletes: bool) -> Seen<'a> {
        Seen {
            stream,
            revision,
            event_type: Some(event_type),
            metadata: b"",
            deletes,
            link: None,
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
        assert_eq!(category("$ce-loan", "$>", false), None);
        assert_eq!(category("$$loan-1", METADATA, false), None);
        assert_eq!(category("$$loan-1", METADATA, true).as_deref(), Some("$ce-loan"));
        assert_eq!(category("$$$ce-loan", METADATA, true), None);
        assert_eq!(category("loan-1", TOMBSTONE, false).as_deref(), Some("$ce-loan"));
    }

    #[test]
    fn a_link_is_carried_by_those_that_are_shown_links() {
        let to = Bytes::from_static(b"1@b");
        let link = Seen {
            link: Some(&to),
            ..seen("a-1", 0, "E", false)
        };
        let carried = SystemProjection::ALL.map(|projection| project(projection, &link));
        let projected = |into: &str, written| {
            let into = into.to_owned();
            Some(Projected { into, written })
        };
        assert_eq!(
            carried,
            [
                projected("$ce-a", LinkBody::LinkTo(to.clone())),
                None,
                projected("$streams", LinkBody::Link),
                projected("$category-a", LinkBody::Reference),
                None
            ]
        );
    }

    #[test]
    fn types_tell_deletions_apart_and_name_the_stream_that_metadata_describe() {
        let of =
            |stream, event_type, deletes| project(SystemProjection::ByEventType, &seen(stream, 3, event_type, deletes));
        let linked = |into: &str, written| {
            let into = into.to_owned();
            Some(Projected { into, written })
        };
        let described = || LinkBody::LinkTo(Bytes::from_static(b"3@a"));
        assert_eq!(of("a", "E", false), linked("$et-E", LinkBody::Link));
        assert_eq!(of("a", "$mine", false), linked("$et-$mine", LinkBody::Link));
        assert_eq!(of("a", TOMBSTONE, false), linked("$et-$deleted", LinkBody::Link));
        assert_eq!(of("$$a", METADATA, false), linked("$et-$metadata", described()));
        assert_eq!(of("$$a", METADATA, true), linked("$et-$deleted", described()));
        for (stream, event_type) in [("$a", "E"), ("$$$a", METADATA)] {
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
        assert_eq!((&*first.into, first.written), ("$category-a", LinkBody::Reference));
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

    #[test]
    fn a_streams_name_tells_which_projection_writes_it() {
        for projection in SystemProjection::ALL {
            let mut seen = seen("a-1", 0, "E", false);
            seen.metadata = br#"{"$correlationId":"c"}"#;
            let into = into(projection, &seen).unwrap();
            assert_eq!(SystemProjection::writing(&into), Some(projection), "{into}");
        }
        assert_eq!(SystemProjection::writing("$projections-$all"), None);
    }

    #[test]
    fn json_is_what_the_projections_take_for_it() {
        for json in [
            "{}",
            " [1] ",
            "null",
            "[1,]",
            "// a\n{\"a\": \"//\", /* b */ \"b\": [\"\\\",]\",],} // c",
        ] {
            assert!(is_json(json.as_bytes()), "{json}");
        }
        for none in [
            "",
            " ",
            "{",
            "{} x",
            "{}{}",
            "[,]",
            "[1,,]",
            "{\"a\":,}",
            "/* a",
            "\u{feff}{}",
        ] {
            assert!(!is_json(none.as_bytes()), "{none}");
        }
        let nested = |deep| "[".repeat(deep) + &"]".repeat(deep);
        assert!(is_json(nested(DEPTH).as_bytes()) && !is_json(nested(DEPTH + 1).as_bytes()));
        assert!(is_json(format!("\"{}\"", "[".repeat(100)).as_bytes()));
    }
}
