//! From the client's records to ours. Pure.
//!
//! Invariant: I4 hint: whatever cannot be told from a delivery alone (a link that leads nowhere,
//! a deletion) says only that a stream moved; the stream is then read.

#[cfg(feature = "daemon")]
use std::sync::Arc;

#[cfg(feature = "daemon")]
use chrono::Utc;
use eventstore::RecordedEvent;
#[cfg(feature = "daemon")]
use eventstore::ResolvedEvent;
#[cfg(feature = "daemon")]
use uuid::Uuid;

use super::encoding::from_ticks;
#[cfg(feature = "daemon")]
use super::{
    super::{
        Unplaced,
        feed::{Delivery, Mark, Said},
    },
    encoding::{DELETED, link_target},
};
use crate::event::RawEvent;

/// What the names of groups' own streams begin with, the parked ones among them.
#[cfg(feature = "daemon")]
const PARKED: &str = "$persistentsubscription-";

/// When a record was written, to 100 ns.
pub(super) fn created(record: &RecordedEvent) -> chrono::DateTime<chrono::Utc> {
    record
        .metadata
        .get("created")
        .and_then(|ticks| from_ticks(ticks))
        .unwrap_or(record.created)
}

/// An event as a read of its stream gives it.
pub(super) fn raw_event(record: RecordedEvent) -> RawEvent {
    RawEvent {
        created: created(&record),
        stream: record.stream_id.into(),
        revision: record.revision,
        id: record.id,
        kind: record.event_type.into(),
        json: record.is_json,
        data: record.data,
        metadata: record.custom_metadata,
    }
}

/// A delivery of `feed`.
#[cfg(feature = "daemon")]
pub(super) fn delivery(resolved: ResolvedEvent, retry: u32, feed: &str) -> Delivery {
    let (ack, at, place) = match resolved.link.as_ref().or(resolved.event.as_ref()) {
        Some(entry) => (entry.id, created(entry), place(entry, feed)),
        // There is nothing to acknowledge it by.
        None => (Uuid::nil(), Utc::now(), None),
    };
    let said = match (resolved.event, resolved.link) {
        (Some(event), Some(link)) => onward(&link).unwrap_or_else(|| said(event)),
        (None, Some(link)) => moved_by_link(&link),
        (Some(event), None) => said(event),
        (None, None) => Said::Unplaced(Unplaced::Empty),
    };
    Delivery {
        ack,
        retry,
        at,
        place,
        said,
    }
}

/// Where an entry stands in its feed. What was parked and is replayed comes as a record of the
/// group's parked stream, which has no place in the feed.
#[cfg(feature = "daemon")]
fn place(entry: &RecordedEvent, feed: &str) -> Option<Mark> {
    if feed == "$all" {
        (!entry.stream_id.starts_with(PARKED)).then_some(Mark::Position(entry.position.commit))
    } else {
        (entry.stream_id == feed).then_some(Mark::Revision(entry.revision))
    }
}

/// What a category's link says when what moved is not what it points at: `$by_category` names the
/// stream that moved in the link's metadata (`$o`), and carries a link that stands in that stream
/// straight to its target.
#[cfg(feature = "daemon")]
fn onward(link: &RecordedEvent) -> Option<Said> {
    #[derive(serde::Deserialize)]
    struct Origin {
        #[serde(rename = "$o")]
        stream: Option<String>,
    }
    let (_, target) = link_target(&link.data)?;
    let origin: Origin = serde_json::from_slice(&link.custom_metadata).ok()?;
    let stream = origin.stream?;
    let own = target == stream || target.strip_prefix("$$") == Some(&*stream);
    // Streams of the system are nobody's aggregates.
    (!own && !stream.starts_with('$')).then(|| Said::Onward { stream: stream.into() })
}

#[cfg(feature = "daemon")]
fn said(event: RecordedEvent) -> Said {
    match event.event_type.as_str() {
        // Unresolved: the group does not resolve links, or this one is malformed. A link in a stream
        // of its own is that stream's event, as a read of it shows.
        "$>" if event.stream_id.starts_with('$') => moved_by_link(&event),
        "$streamDeleted" => moved(&event.stream_id, None),
        // Of the metadata only a deletion makes a link, but on `$all` every change passes by;
        // looking once too often costs a read.
        "$metadata" => match event.stream_id.strip_prefix("$$") {
            Some(stream) => moved(stream, None),
            None => Said::Unplaced(Unplaced::Metadata),
        },
        kind if kind.starts_with('$') && event.stream_id.starts_with('$') => Said::Nothing,
        _ => Said::Event(raw_event(event)),
    }
}

#[cfg(feature = "daemon")]
fn moved_by_link(link: &RecordedEvent) -> Said {
    if let Some(said) = onward(link) {
        return said;
    }
    match link_target(&link.data) {
        None => Said::Unplaced(Unplaced::Link),
        Some((revision, stream)) => match stream.strip_prefix("$$") {
            Some(stream) => moved(stream, None),
            None => moved(stream, (revision != DELETED).then_some(revision)),
        },
    }
}

/// Streams of the system are nobody's aggregates.
#[cfg(feature = "daemon")]
fn moved(stream: &str, revision: Option<u64>) -> Said {
    if stream.starts_with('$') {
        Said::Nothing
    } else {
        Said::Moved {
            stream: Arc::from(stream),
            revision,
        }
    }
}

#[cfg(all(test, feature = "daemon"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use chrono::{DateTime, Utc};
    use eventstore::Position;
    use uuid::Uuid;

    use super::*;

    fn record(stream: &str, revision: u64, kind: &str, data: &str, id: u128) -> RecordedEvent {
        RecordedEvent {
            stream_id: stream.to_owned(),
            id: Uuid::from_u128(id),
            revision,
            event_type: kind.to_owned(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            metadata: HashMap::from([(
                "created".to_owned(),
                (17_000_000_000_000_000_u64 + u64::try_from(id).unwrap()).to_string(),
            )]),
            custom_metadata: Bytes::new(),
            is_json: kind == "A",
            position: Position::start(),
            created: DateTime::<Utc>::UNIX_EPOCH,
        }
    }

    fn of(event: Option<RecordedEvent>, link: Option<RecordedEvent>) -> Delivery {
        delivery(
            ResolvedEvent {
                event,
                link,
                commit_position: None,
            },
            3,
            "$ce-a",
        )
    }

    fn link(data: &str) -> RecordedEvent {
        record("$ce-a", 9, "$>", data, 7)
    }

    fn moved_to(stream: &str, revision: Option<u64>) -> Said {
        Said::Moved {
            stream: stream.into(),
            revision,
        }
    }

    #[test]
    fn a_resolved_link_is_its_event_and_the_link_is_what_is_acknowledged() {
        let got = of(Some(record("a-1", 4, "A", "{}", 5)), Some(link("4@a-1")));
        assert_eq!(got.ack, Uuid::from_u128(7));
        assert_eq!(got.at.timestamp_subsec_nanos(), 700);
        assert_eq!(got.retry, 3);
        let Said::Event(event) = got.said else {
            panic!("{got:?}")
        };
        assert_eq!((&*event.stream, event.revision, &*event.kind), ("a-1", 4, "A"));
        assert_eq!(event.created.timestamp_subsec_nanos(), 500);
        assert!(event.json);
        assert_eq!(of(Some(record("a-1", 4, "A", "{}", 5)), None).ack, Uuid::from_u128(5));
    }

    #[test]
    fn a_delivery_says_where_it_stands_in_its_feed() {
        let at = |entry, feed| place(&entry, feed);
        assert_eq!(at(link("4@a-1"), "$ce-a"), Some(Mark::Revision(9)));
        let event = || record("a-1", 4, "A", "{}", 5);
        assert_eq!(at(event(), "a-1"), Some(Mark::Revision(4)));
        assert!(matches!(at(event(), "$all"), Some(Mark::Position(_))));
        // What was parked and is replayed has no place in the feed.
        let parked = || record("$persistentsubscription-$ce-a::g-parked", 0, "$>", "4@a-1", 8);
        assert_eq!(at(parked(), "$ce-a"), None);
        assert_eq!(at(parked(), "$all"), None);
    }

    #[test]
    fn what_the_delivery_does_not_carry_is_a_stream_that_moved() {
        for (data, expected) in [
            ("4@a-1", moved_to("a-1", Some(4))),
            ("4@a@b-1", moved_to("a@b-1", Some(4))),
            ("0@$$a-1", moved_to("a-1", None)),
            ("9223372036854775807@a-1", moved_to("a-1", None)),
            ("x@a-1", Said::Unplaced(Unplaced::Link)),
            ("4", Said::Unplaced(Unplaced::Link)),
            ("1@$system", Said::Nothing),
            ("0@$$$system", Said::Nothing),
        ] {
            assert_eq!(of(None, Some(link(data))).said, expected, "{data}");
            // The same from a group that does not resolve links.
            assert_eq!(of(Some(link(data)), None).said, expected, "{data}");
        }
    }

    /// `$by_category` carries a link that stands in `ord-1` straight to what it points at, and names
    /// `ord-1` in the metadata.
    #[test]
    fn a_link_that_a_category_carries_on_is_the_stream_that_it_stands_in() {
        let carried = |data: &str, origin: &str| RecordedEvent {
            custom_metadata: Bytes::from(format!(r#"{{"$v":"1:-1:3:3","$o":"{origin}"}}"#)),
            ..record("$ce-ord", 9, "$>", data, 7)
        };
        let onward = |stream: &str| Said::Onward { stream: stream.into() };
        let target = || record("inv-7", 1, "A", "{}", 5);
        let got = of(Some(target()), Some(carried("1@inv-7", "ord-1")));
        assert_eq!((got.said, got.ack), (onward("ord-1"), Uuid::from_u128(7)));
        // What it points at is gone; a group that does not resolve links.
        assert_eq!(of(None, Some(carried("1@inv-7", "ord-1"))).said, onward("ord-1"));
        assert_eq!(of(Some(carried("1@inv-7", "ord-1")), None).said, onward("ord-1"));
        // Its own events, and its deletion.
        let stray = record("a-1", 0, "$metadata", "{}", 1);
        assert_eq!(of(Some(stray), None).said, Said::Unplaced(Unplaced::Metadata));
        let own = record("ord-1", 4, "A", "{}", 5);
        assert!(matches!(
            of(Some(own), Some(carried("4@ord-1", "ord-1"))).said,
            Said::Event(_)
        ));
        assert_eq!(
            of(None, Some(carried("4@ord-1", "ord-1"))).said,
            moved_to("ord-1", Some(4))
        );
        assert_eq!(
            of(None, Some(carried("0@$$ord-1", "ord-1"))).said,
            moved_to("ord-1", None)
        );
        // On `$all` the link itself is the stream's event, as a read of the stream shows it.
        let itself = record("ord-1", 1, "$>", "1@inv-7", 5);
        assert!(matches!(of(Some(itself), None).said, Said::Event(event) if event.revision == 1));
    }

    #[test]
    fn deletions_come_through_their_own_events_too() {
        let metadata = || record("$$a-1", 0, "$metadata", "{}", 1);
        assert_eq!(of(Some(metadata()), None).said, moved_to("a-1", None));
        assert_eq!(of(Some(metadata()), Some(link("0@$$a-1"))).said, moved_to("a-1", None));
        let tombstone = record("a-1", DELETED, "$streamDeleted", "", 1);
        assert_eq!(of(Some(tombstone), None).said, moved_to("a-1", None));
        let other = record("$settings", 0, "$settings", "{}", 1);
        assert_eq!(of(Some(other), None).said, Said::Nothing);
        let own = record("a-1", 0, "$odd", "{}", 1);
        assert!(matches!(of(Some(own), None).said, Said::Event(_)));
    }

    #[test]
    fn neither_event_nor_link_is_told_of_all_the_same() {
        assert_eq!(of(None, None).said, Said::Unplaced(Unplaced::Empty));
    }
}
