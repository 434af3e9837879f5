//! The system streams of a group, and what is written to them. Keeps: names and contents are those
//! EventStoreDB uses, so that tools which read them keep working.

use bytes::Bytes;
use serde_json::json;

use super::place::Place;
use super::store::{LINK, METADATA, NewRecord, Record, Resolved};

/// Where the settings of all groups are kept.
pub(super) const CONFIG_STREAM: &str = "$persistentSubscriptionConfig";
/// The type of the record with the settings.
pub(super) const CONFIG_TYPE: &str = "$PersistentConfig";
/// The type of a checkpoint.
pub(super) const CHECKPOINT_TYPE: &str = "$SubscriptionCheckpoint";
/// How all streams of groups begin; what is written to them is no progress of a group on `$all`.
pub(super) const GROUP_STREAMS: &str = "$persistentsubscription-";
/// Settings remembered: the newest and, should it be unreadable, those before.
const KEPT: u64 = 2;

/// Where a group's checkpoints are kept.
pub(super) fn checkpoint_stream(source: &str, group: &str) -> String {
    format!("{GROUP_STREAMS}{source}::{group}-checkpoint")
}

/// Where a group's parked records are kept.
pub(super) fn parked_stream(source: &str, group: &str) -> String {
    format!("{GROUP_STREAMS}{source}::{group}-parked")
}

/// The stream of a stream's metadata.
pub(super) fn metadata_of(stream: &str) -> String {
    format!("$${stream}")
}

fn metadata(value: &serde_json::Value) -> NewRecord {
    NewRecord {
        event_type: METADATA,
        json: true,
        data: Bytes::from(value.to_string()),
        metadata: Bytes::new(),
    }
}

/// Metadata that keeps the newest records only.
pub(super) fn keep_newest() -> NewRecord {
    metadata(&json!({ "$maxCount": KEPT }))
}

/// Metadata of a parked stream that was replayed up to a revision: the rest is the administrators',
/// as all that groups write.
pub(super) fn replayed_before(revision: u64) -> NewRecord {
    let admins = "$admins";
    let acl = json!({ "$r": admins, "$w": admins, "$d": admins, "$mr": admins, "$mw": admins });
    metadata(&json!({ "$tb": revision, "$acl": acl }))
}

/// Metadata that deletes softly.
pub(super) fn soft_delete() -> NewRecord {
    metadata(&json!({ "$tb": i64::MAX }))
}

/// A checkpoint: its place as a JSON string.
pub(super) fn checkpoint(place: Place) -> NewRecord {
    NewRecord {
        event_type: CHECKPOINT_TYPE,
        json: true,
        data: Bytes::from(format!("\"{place}\"")),
        metadata: Bytes::new(),
    }
}

/// The place a checkpoint says; nothing when it says none.
pub(super) fn checkpointed(record: &Record) -> Option<Place> {
    // Before 20.6 the value was a bare number.
    let value: serde_json::Value = serde_json::from_slice(&record.data).ok()?;
    match value {
        serde_json::Value::String(text) => text.parse().ok(),
        serde_json::Value::Number(number) => number.as_u64().map(Place::Stream),
        _ => None,
    }
}

/// A parked record: a link to what was refused, and why. `added` is the wall clock's, RFC 3339.
pub(super) fn parked(resolved: &Resolved, reason: &str, added: &str) -> NewRecord {
    let target = match (&resolved.event, &resolved.link) {
        (Some(event), _) => Bytes::from(format!("{}@{}", event.revision, event.stream)),
        (None, Some(link)) => link.data.clone(),
        (None, None) => Bytes::new(),
    };
    // Of a group on `$all`, too, its revision in its stream.
    let number = resolved.original().map(|original| original.revision);
    let said = json!({ "added": added, "reason": reason, "subscriptionEventNumber": number });
    NewRecord {
        event_type: LINK,
        json: false,
        data: target,
        metadata: Bytes::from(said.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_eventstoredbs_names() {
        assert_eq!(
            checkpoint_stream("$ce-loan", "g"),
            "$persistentsubscription-$ce-loan::g-checkpoint"
        );
        assert_eq!(
            parked_stream(super::super::store::ALL, "g"),
            "$persistentsubscription-$all::g-parked"
        );
        assert_eq!(metadata_of("s"), "$$s");
    }

    #[test]
    fn checkpoints_are_read_back_the_old_form_too() {
        let record = |data: &[u8]| Record {
            stream: "c".into(),
            revision: 0,
            id: uuid::Uuid::nil(),
            event_type: CHECKPOINT_TYPE.into(),
            json: true,
            data: Bytes::copy_from_slice(data),
            metadata: Bytes::new(),
            commit: 0,
            prepare: 0,
            created: 0,
        };
        for place in [Place::Stream(42), Place::All { commit: 9, prepare: 9 }] {
            assert_eq!(checkpointed(&record(&checkpoint(place).data)), Some(place));
        }
        assert_eq!(checkpointed(&record(b"42")), Some(Place::Stream(42)));
        assert_eq!(checkpointed(&record(b"{}")), None);
        assert_eq!(checkpointed(&record(b"no json")), None);
    }
}
