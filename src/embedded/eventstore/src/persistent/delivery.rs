//! Records on their way from the log to consumers. Keeps: what is worked out per record (its bucket,
//! its id to ack) is worked out once, when its page comes, and not on the group's own task.

use std::sync::Arc;

use super::group::{Item, Page};
use super::hash;
use super::names::GROUP_STREAMS;
use super::settings::Strategy;
use super::store::{LINK, Record, Resolved, Scan, Source};

/// A record as a group holds it; shared, because it may be pushed more than once.
pub(super) type Shared = Arc<Resolved>;

/// A page for the machine out of a page of the log.
pub(super) fn page(source: &Source, strategy: Strategy, scan: Scan) -> Page<Shared> {
    Page {
        items: scan
            .records
            .into_iter()
            .filter_map(|resolved| item(source, strategy, resolved))
            .collect(),
        skipped: scan.skipped,
        scanned_to: scan.scanned_to,
        next: scan.next,
        end: scan.end,
    }
}

/// A page of the parked stream; what it points at and is gone stays away, as in EventStoreDB.
pub(super) fn parked(stream: &str, strategy: Strategy, scan: Scan) -> Vec<Item<Shared>> {
    let source = Source::Stream(stream.into());
    scan.records
        .into_iter()
        .filter(|resolved| resolved.event.is_some())
        .filter_map(|resolved| item(&source, strategy, resolved))
        .collect()
}

fn item(source: &Source, strategy: Strategy, resolved: Resolved) -> Option<Item<Shared>> {
    let original = resolved.original()?;
    Some(Item {
        place: source.place(original),
        ack_id: original.id,
        bucket: bucket(strategy, &resolved),
        payload: Arc::new(resolved),
    })
}

fn bucket(strategy: Strategy, resolved: &Resolved) -> u16 {
    let record = resolved.event.as_ref().or(resolved.link.as_ref());
    match (strategy, record) {
        (Strategy::Pinned, Some(record)) => hash::bucket(&stream_of(record)),
        (Strategy::PinnedByCorrelation, Some(record)) => {
            hash::bucket(&correlation(record).unwrap_or_else(|| stream_of(record)))
        }
        _ => 0,
    }
}

/// The record's stream; of a link that was not followed, or led nowhere, the stream it names.
fn stream_of(record: &Record) -> String {
    let named = (&*record.event_type == LINK)
        .then(|| std::str::from_utf8(&record.data).ok()?.split_once('@'))
        .flatten();
    named.map_or_else(|| record.stream.to_string(), |(_, stream)| stream.to_owned())
}

/// The correlation id that the record's metadata says at its top level.
fn correlation(record: &Record) -> Option<String> {
    let metadata: serde_json::Value = serde_json::from_slice(&record.metadata).ok()?;
    Some(metadata.get("$correlationId")?.as_str()?.to_owned())
}

/// Whether a filtered-out record of this stream is progress: what groups write themselves is not, else a group on
/// `$all` that writes a checkpoint would see it and write the next, for ever.
pub(crate) fn counts_as_skipped(stream: &str) -> bool {
    !stream.strip_prefix("$$").unwrap_or(stream).starts_with(GROUP_STREAMS)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::super::place::Place;
    use super::*;

    fn record(stream: &str, event_type: &str, data: &str, metadata: &str) -> Arc<Record> {
        Arc::new(Record {
            stream: stream.into(),
            revision: 3,
            id: Uuid::from_u128(7),
            event_type: event_type.into(),
            json: false,
            data: Bytes::copy_from_slice(data.as_bytes()),
            metadata: Bytes::copy_from_slice(metadata.as_bytes()),
            commit: 90,
            prepare: 90,
            created: 0,
        })
    }

    #[test]
    fn a_link_pins_where_its_target_does() {
        let target = record("loan-7", "lent", "{}", "");
        let link = record("$ce-loan", LINK, "3@loan-7", "");
        let both = |event, link| bucket(Strategy::Pinned, &Resolved { event, link });
        let expected = hash::bucket("loan-7");
        assert_eq!(both(Some(target.clone()), Some(link.clone())), expected);
        assert_eq!(both(Some(link.clone()), None), expected);
        assert_eq!(both(None, Some(link)), expected);
        assert_eq!(both(Some(target), None), expected);
    }

    #[test]
    fn correlation_pins_and_falls_back_to_the_stream() {
        let by = |metadata| {
            let event = Some(record("loan-7", "lent", "", metadata));
            bucket(Strategy::PinnedByCorrelation, &Resolved { event, link: None })
        };
        assert_eq!(by(r#"{"$correlationId":"c-1"}"#), hash::bucket("c-1"));
        assert_eq!(by(r#"{"$correlationId":1}"#), hash::bucket("loan-7"));
        assert_eq!(by(r#"{"a":{"$correlationId":"c-1"}}"#), hash::bucket("loan-7"));
        assert_eq!(by("no json"), hash::bucket("loan-7"));
    }

    #[test]
    fn the_link_is_what_is_acked_and_where_it_stands() {
        let mut link = record("$ce-loan", LINK, "3@loan-7", "");
        Arc::make_mut(&mut link).id = Uuid::from_u128(8);
        let resolved = Resolved {
            event: Some(record("loan-7", "lent", "", "")),
            link: Some(link),
        };
        let source = Source::Stream("$ce-loan".into());
        let item = item(&source, Strategy::RoundRobin, resolved.clone()).unwrap();
        assert_eq!((item.ack_id, item.place), (Uuid::from_u128(8), Place::Stream(3)));
        let on_all = super::item(&Source::All(None), Strategy::RoundRobin, resolved).unwrap();
        assert_eq!(
            on_all.place,
            Place::All {
                commit: 90,
                prepare: 90
            }
        );
    }

    #[test]
    fn what_groups_write_is_no_progress() {
        assert!(counts_as_skipped("loan-1"));
        assert!(!counts_as_skipped("$persistentsubscription-$all::g-checkpoint"));
        assert!(!counts_as_skipped("$$$persistentsubscription-$all::g-checkpoint"));
    }
}
