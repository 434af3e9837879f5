//! Streams: appends, reads, what a stream's standing is.

use std::time::Duration;

use base64::Engine as _;
use futures::{FutureExt as _, future::BoxFuture};
use projector::journal::{
    Appended, Expected, Journal, JournalError, NewEvent, Presence, ReadLimit, Standing,
    esdb::{EsdbSettings, EventStore, Importing},
};
use uuid::Uuid;

use super::{ALL, event, events, id, revisions, settings, store};
use crate::support::{
    node::{Fault, Node, push},
    raw::{Expect, Raw, entry, expecting},
};

const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_is_appended_is_read_back_as_it_was() {
    let node = Node::start().await;
    let store = store(&node);
    let binary = NewEvent {
        json: false,
        data: vec![0, 255, 7].into(),
        metadata: (&b"{\"a\":1}"[..]).into(),
        kind: "Raw".into(),
        id: Uuid::from_u128(9),
    };
    let done = store
        .append("a-1", Expected::NoStream, vec![event(1), binary.clone()], DEADLINE)
        .await;
    assert_eq!(
        done,
        Ok(Appended {
            revision: Some(1),
            positioned: true
        })
    );

    let slice = store.read("a-1", 0, ALL).await.unwrap();
    assert!(slice.end && slice.presence == Presence::Present);
    let [first, second] = &slice.events[..] else {
        panic!("{slice:?}")
    };
    assert_eq!((&*first.stream, first.revision, first.id), ("a-1", 0, id(1)));
    assert_eq!(
        (&*first.kind, first.json, &first.data[..]),
        ("Counted", true, &b"{\"n\":1}"[..])
    );
    // Whole seconds would lose some of it.
    let record = node.record("a-1", 0).await;
    let ticks: i64 = entry(&record.metadata, "created").parse().unwrap();
    assert_eq!(first.created.timestamp_nanos_opt(), Some(ticks * 100));
    assert!(first.metadata.is_empty());
    assert_eq!((&*second.kind, second.json), ("Raw", false));
    assert_eq!((&second.data, &second.metadata), (&binary.data, &binary.metadata));

    for method in ["Streams/Append", "Streams/Read"] {
        for headers in node.calls(method) {
            assert_eq!(headers["requires-leader"], "true", "{method}");
        }
    }
    // Our time goes along, so that the server gives up with us.
    assert!(node.calls("Streams/Append")[0].contains_key("grpc-timeout"));
}

#[tokio::test]
async fn an_append_stands_where_it_was_expected_or_says_where_the_stream_is() {
    let node = Node::start().await;
    let store = store(&node);
    let append = |expected, events| store.append("a-1", expected, events, DEADLINE);
    assert_eq!(
        append(Expected::Exact(3), events(0..1)).await,
        Err(JournalError::WrongExpected { current: None })
    );
    append(Expected::NoStream, events(0..3)).await.unwrap();
    assert_eq!(
        append(Expected::Exact(0), events(10..11)).await,
        Err(JournalError::WrongExpected { current: Some(2) })
    );
    // The same again is the same.
    assert_eq!(
        append(Expected::NoStream, events(0..3)).await.unwrap().revision,
        Some(2)
    );
    assert_eq!(
        append(Expected::Exact(2), events(3..5)).await.unwrap().revision,
        Some(4)
    );
    assert_eq!(
        revisions(&store.read("a-1", 0, ALL).await.unwrap().events),
        [0, 1, 2, 3, 4]
    );
    // Nothing to append has no revision to name.
    assert_eq!(append(Expected::Exact(4), vec![]).await.unwrap().revision, None);
}

#[tokio::test]
async fn a_body_that_is_not_the_json_it_is_said_to_be_is_refused() {
    let node = Node::start().await;
    let wrong = NewEvent {
        data: (&b"{"[..]).into(),
        ..event(1)
    };
    let said = store(&node)
        .append("a-1", Expected::NoStream, vec![wrong], DEADLINE)
        .await;
    let said = said.unwrap_err();
    assert!(
        said.class() == "refused" && said.to_string().contains("Counted"),
        "{said}"
    );
    assert!(node.calls("Streams/Append").is_empty());
}

#[tokio::test]
async fn a_read_ends_at_its_limits_and_knows_the_end() {
    let node = Node::start().await;
    let store = store(&node);
    store
        .append("a-1", Expected::NoStream, events(0..10), DEADLINE)
        .await
        .unwrap();
    let read = async |from, events, bytes| {
        let slice = store.read("a-1", from, ReadLimit { events, bytes }).await.unwrap();
        (revisions(&slice.events), slice.end)
    };
    assert_eq!(read(0, 3, usize::MAX).await, (vec![0, 1, 2], false));
    assert_eq!(read(7, 3, usize::MAX).await, (vec![7, 8, 9], true));
    assert_eq!(read(8, 3, usize::MAX).await, (vec![8, 9], true));
    assert_eq!(read(10, 3, usize::MAX).await, (vec![], true));
    // Each body has 7 bytes; one event always comes.
    assert_eq!(read(0, 100, 15).await, (vec![0, 1, 2], false));
    assert_eq!(read(4, 100, 1).await, (vec![4], false));
    assert_eq!(read(4, 0, 100).await, (vec![4], false));

    node.truncate("a-1", 6).await;
    assert_eq!(read(0, 2, usize::MAX).await, (vec![6, 7], false));
}

#[tokio::test]
async fn a_streams_standing_is_told_from_its_absence() {
    let node = Node::start().await;
    let store = store(&node);
    for stream in ["gone-1", "empty-1", "tomb-1", "live-1"] {
        store
            .append(stream, Expected::NoStream, events(0..3), DEADLINE)
            .await
            .unwrap();
    }
    node.soft_delete("gone-1").await;
    node.truncate("empty-1", 3).await;
    node.tombstone("tomb-1").await;
    // Metadata without a stream is no deletion.
    node.push("$$never-1", "$metadata", br#"{"$maxCount":3}"#).await;
    assert_eq!(store.look("nothing-1").await, Ok(Standing::Missing));
    assert_eq!(store.look("never-1").await, Ok(Standing::Missing));
    assert_eq!(store.look("gone-1").await, Ok(Standing::SoftDeleted));
    assert_eq!(store.look("empty-1").await, Ok(Standing::Live(None)));
    assert_eq!(store.look("tomb-1").await, Ok(Standing::Tombstoned));
    let Ok(Standing::Live(Some(newest))) = store.look("live-1").await else {
        panic!("not live")
    };
    assert_eq!((newest.revision, newest.id), (2, id(2)));

    for (stream, presence) in [
        ("nothing-1", Presence::Absent),
        ("gone-1", Presence::Absent),
        ("empty-1", Presence::Present),
        ("tomb-1", Presence::Tombstoned),
    ] {
        let slice = store.read(stream, 0, ALL).await.unwrap();
        assert_eq!(
            (slice.presence, slice.end, slice.events.len()),
            (presence, true, 0),
            "{stream}"
        );
    }
    assert_eq!(
        store.append("tomb-1", Expected::NoStream, events(7..8), DEADLINE).await,
        Err(JournalError::Tombstoned("tomb-1".into()))
    );
}

fn revived(raw: Raw) -> BoxFuture<'static, ()> {
    async move { push(&raw, "a-1", "Counted", b"{}").await }.boxed()
}

fn deleted(raw: Raw) -> BoxFuture<'static, ()> {
    async move {
        // It may be deleted already.
        let _ = raw.delete("Delete", expecting("a-1", Expect::Any)).await;
    }
    .boxed()
}

/// Its newest event and its metadata are two reads, and it need not stand still between them.
#[tokio::test]
async fn a_stream_that_is_deleted_and_revived_is_never_missing() {
    let node = Node::start().await;
    let store = store(&node);
    store
        .append("a-1", Expected::NoStream, events(0..3), DEADLINE)
        .await
        .unwrap();
    let look = async |behind_each_read: &[fn(Raw) -> BoxFuture<'static, ()>]| {
        deleted(node.raw.clone()).await;
        for happen in behind_each_read {
            node.inject("Streams/Read", 1, Fault::Meanwhile(*happen));
        }
        match store.look("a-1").await.unwrap() {
            Standing::Live(newest) => newest.map(|n| n.revision),
            Standing::SoftDeleted => None,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(look(&[revived]).await, Some(3));
    assert_eq!(look(&[revived, deleted]).await, None);
    assert_eq!(look(&[revived, deleted, revived]).await, Some(6));
    assert_eq!(look(&[revived, deleted, revived, deleted]).await, None);
}

#[tokio::test]
async fn a_repeated_append_to_a_deleted_stream_has_no_position() {
    let node = Node::start().await;
    let store = store(&node);
    store
        .append("a-1", Expected::NoStream, events(0..2), DEADLINE)
        .await
        .unwrap();
    node.soft_delete("a-1").await;
    let again = store.append("a-1", Expected::NoStream, events(0..2), DEADLINE).await;
    assert_eq!(
        again,
        Ok(Appended {
            revision: Some(1),
            positioned: false
        })
    );
    assert_eq!(store.look("a-1").await, Ok(Standing::SoftDeleted));
    // Other events bring it back, at the next revision.
    let revived = store.append("a-1", Expected::NoStream, events(5..6), DEADLINE).await;
    assert_eq!(revived.unwrap().revision, Some(2));
    assert_eq!(revisions(&store.read("a-1", 0, ALL).await.unwrap().events), [2]);
    assert!(matches!(store.look("a-1").await, Ok(Standing::Live(Some(_)))));
}

#[tokio::test]
async fn a_denial_says_what_is_missing() {
    let node = Node::start().await;
    let with_user = EsdbSettings {
        user: Some("bob".into()),
        password: Some("p@ss:/?%41".into()),
        ..settings(&node)
    };
    let store = EventStore::new(&with_user).unwrap();
    node.inject("Streams/Append", 1, Fault::denied());
    let said = store.append("a-1", Expected::NoStream, events(0..1), DEADLINE).await;
    let JournalError::Denied { action, remedy } = said.unwrap_err() else {
        panic!("not denied")
    };
    assert!(
        action.contains("a-1") && remedy.contains("`bob`") && remedy.contains("$w"),
        "{remedy}"
    );
    // The password went over the wire as it is.
    let sent = node.calls("Streams/Append")[0]["authorization"].clone();
    let expected = base64::engine::general_purpose::STANDARD.encode("bob:p@ss:/?%41");
    assert_eq!(sent, format!("Basic {expected}"));
}

#[tokio::test]
async fn an_import_adds_nothing_twice_wherever_it_was_cut() {
    let node = Node::start().await;
    let store = store(&node);
    // Somebody else's events stand before and between.
    store
        .append("a-1", Expected::NoStream, events(90..92), DEADLINE)
        .await
        .unwrap();
    let mut first = Importing::default();
    assert_eq!(store.import_append("a-1", &mut first, events(0..3)).await, Ok(0));
    store
        .append("a-1", Expected::Exact(4), events(92..93), DEADLINE)
        .await
        .unwrap();
    assert_eq!(store.import_append("a-1", &mut first, events(4..6)).await, Ok(0));

    // The whole import again, cut elsewhere, with one that was left out before and one more.
    let mut again = Importing::default();
    assert_eq!(store.import_append("a-1", &mut again, events(0..4)).await, Ok(3));
    assert_eq!(store.import_append("a-1", &mut again, events(4..5)).await, Ok(1));
    assert_eq!(store.import_append("a-1", &mut again, events(5..7)).await, Ok(1));
    let ids = async || -> Vec<u128> {
        let slice = store.read("a-1", 0, ALL).await.unwrap();
        slice.events.iter().map(|e| e.id.as_u128() - 1).collect()
    };
    assert_eq!(ids().await, [90, 91, 0, 1, 2, 92, 4, 5, 3, 6]);

    // A reply that is lost is looked for.
    node.inject("Streams/Append", 1, Fault::CutAfter);
    assert_eq!(store.import_append("a-1", &mut again, events(7..9)).await, Ok(2));
    assert_eq!(ids().await[10..], [7, 8]);
}

#[tokio::test]
async fn an_import_into_a_deleted_stream_is_written_and_what_is_there_is_not_counted_as_written() {
    let node = Node::start().await;
    let store = store(&node);
    let ids = async || -> Vec<u128> {
        let slice = store.read("a-1", 0, ALL).await.unwrap();
        slice.events.iter().map(|e| e.id.as_u128() - 1).collect()
    };
    let import = async |numbers| {
        store
            .import_append("a-1", &mut Importing::default(), events(numbers))
            .await
    };
    assert_eq!(import(0..3).await, Ok(0));
    assert_eq!(import(0..3).await, Ok(3), "all of it was there already");

    // The server answers success to ids of a deleted stream, and writes nothing.
    node.soft_delete("a-1").await;
    assert_eq!(import(0..2).await, Ok(0), "nothing of it was there");
    assert_eq!(ids().await, [0, 1]);
    // Some of it known from before the deletion, some of it new.
    node.soft_delete("a-1").await;
    assert_eq!(import(1..5).await, Ok(0));
    assert_eq!(ids().await, [1, 2, 3, 4]);
}
