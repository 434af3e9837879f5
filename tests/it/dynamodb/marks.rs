//! Marks on items whose state stays as it is, and notes of marks in the table's own `$marks`.

use aws_sdk_dynamodb::types::AttributeValue;
use futures::{StreamExt as _, TryStreamExt as _};
use projector::replica::{Broken, Fingerprints, Marked, dynamodb::connect};

use super::*;
use crate::support::proxy::{Fault, Proxy};

fn quarantine(by: &str) -> Quarantine {
    Quarantine {
        at: 3,
        reason: "Failed to decode the event's body: missing field (revision 3).".to_owned(),
        by: by.into(),
    }
}

fn marked(stream: &str, kind: MarkKind, by: &str, generation: u64) -> Marked {
    Marked {
        stream: stream.into(),
        kind,
        by: by.into(),
        generation,
    }
}

#[tokio::test]
async fn marks_are_noted_and_cleared_and_every_task_sees_them() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    assert_eq!(table.marks().await.unwrap(), []);
    // Nothing to forget is nothing to do, and makes no item.
    table.forget_mark("loan-1", 1).await.unwrap();
    assert_eq!(table.marks().await.unwrap(), []);

    let longest = "x".repeat(2048);
    let odd = "loan-ü.#:[0] \"x\"";
    table.note_mark("loan-1", &quarantine("v1"), 1).await.unwrap();
    let diverged = Quarantine::diverged(Divergence::Missing, odd, "v2".into());
    table.note_mark(odd, &diverged, 4).await.unwrap();
    table.note_mark(&longest, &quarantine("v1"), 1).await.unwrap();
    // Again, by other code: the newer stands, and says who else has failed.
    let mut both = quarantine("v1");
    both.by = both.by.with("v2");
    table.note_mark("loan-1", &both, 2).await.unwrap();
    let other = dynamo.open(dynamo.client().await);
    let mut first = marked("loan-1", MarkKind::Quarantined, "v1", 2);
    first.by = first.by.with("v2");
    let all = [
        first,
        marked(odd, MarkKind::Diverged, "v2", 4),
        marked(&longest, MarkKind::Quarantined, "v1", 1),
    ];
    assert_eq!(other.marks().await.unwrap(), all);
    other.forget_mark(odd, 4).await.unwrap();
    other.forget_mark(odd, 4).await.unwrap();
    other.forget_mark("loan-7", 4).await.unwrap();
    // The mark that has ended is an earlier one than the one that is noted.
    other.forget_mark("loan-1", 1).await.unwrap();
    assert_eq!(table.marks().await.unwrap(), [all[0].clone(), all[2].clone()]);
    // They are no replica.
    assert_eq!(table.get("$marks", true).await.unwrap(), None);
    assert_eq!(table.get_many(&["$marks".into()], true).await.unwrap(), [Ok(None)]);
}

#[tokio::test]
async fn a_table_is_in_use_when_it_was_said_to_be_and_not_for_a_note() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    assert_eq!(table.in_use().await.unwrap(), None);
    table.note_mark("loan-1", &quarantine("v1"), 1).await.unwrap();
    assert_eq!(table.in_use().await.unwrap(), None);
    let first = table.set_in_use().await.unwrap();
    assert_eq!(
        table.set_in_use().await.unwrap(),
        first,
        "whoever is second changes nothing"
    );
    assert_eq!(table.in_use().await.unwrap(), Some(first.clone()));
    // Deleted and created again, it is another one.
    dynamo
        .client()
        .await
        .delete_table()
        .table_name(dynamo.table_name())
        .send()
        .await
        .unwrap();
    let anew = dynamo.table().await;
    assert_eq!(anew.in_use().await.unwrap(), None);
    assert_ne!(anew.set_in_use().await.unwrap(), first);
}

/// What the code before this one noted, in one map with the kind and one fingerprint as text.
#[tokio::test]
async fn notes_of_older_code_are_read_and_forgotten() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let streams = [("loan-1", "quarantined 0.1.0 00ff"), ("loan-2", "diverged 0.1.0 00ff")];
    let streams = streams.map(|(stream, note)| (stream.to_owned(), text(note)));
    let put = dynamo.client().await.put_item().table_name(dynamo.table_name());
    put.item("pk", text("$marks"))
        .item("streams", AttributeValue::M(streams.into()))
        .send()
        .await
        .unwrap();
    assert!(table.in_use().await.unwrap().is_some());
    let noted = [
        marked("loan-1", MarkKind::Quarantined, "0.1.0 00ff", 0),
        marked("loan-2", MarkKind::Diverged, "0.1.0 00ff", 0),
    ];
    assert_eq!(table.marks().await.unwrap(), noted);
    table.note_mark("loan-1", &quarantine("v2"), 3).await.unwrap();
    assert_eq!(table.marks().await.unwrap()[0].by, "v2".into());
    table.forget_mark("loan-2", 0).await.unwrap();
    assert_eq!(table.marks().await.unwrap().len(), 1);
}

#[tokio::test]
async fn marks_of_many_tasks_at_once_are_all_noted_and_each_costs_little() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let streams: Vec<String> = (0..600).map(|n| format!("loan-{n:03}")).collect();
    let noting = streams.iter().map(|stream| {
        let table = table.clone();
        async move { table.note_mark(stream, &quarantine("0.1.0 0123456789abcdef"), 1).await }
    });
    // At once, but no more than a server on a busy machine answers within an attempt's time-out.
    let noting = futures::stream::iter(noting).buffer_unordered(64);
    noting.try_collect::<()>().await.unwrap();
    let noted: Vec<_> = table
        .marks()
        .await
        .unwrap()
        .iter()
        .map(|m| m.stream.to_string())
        .collect();
    assert_eq!(noted, streams);
    let before = dynamo.seen.capacity(Operation::UpdateItem);
    table.note_mark("loan-one-more", &quarantine("v1"), 1).await.unwrap();
    let cost = dynamo.seen.capacity(Operation::UpdateItem) - before;
    assert!(
        (0.5..=3.0).contains(&cost),
        "a note beside 600 others took {cost} units"
    );
}

#[tokio::test]
async fn a_lost_or_throttled_note_is_repeated() {
    let dynamo = Dynamo::start().await;
    dynamo.table().await;
    let proxy = Proxy::start(&dynamo.endpoint).await;
    let table = dynamo.open(connect(&Dynamo::settings(&proxy.endpoint())).await.unwrap());
    proxy.inject("UpdateItem", 1, Fault::LoseReply);
    proxy.inject(
        "UpdateItem",
        1,
        Fault::Throttle("TableWriteProvisionedThroughputExceeded"),
    );
    proxy.inject("UpdateItem", 1, Fault::ErrorAfter);
    table.note_mark("loan-1", &quarantine("v1"), 1).await.unwrap();
    assert!(!proxy.is_armed());
    assert_eq!(
        table.marks().await.unwrap(),
        [marked("loan-1", MarkKind::Quarantined, "v1", 1)]
    );
}

#[tokio::test]
async fn a_mark_leaves_what_is_stored_as_it_is() {
    let dynamo = Dynamo::start().await;
    dynamo.table().await;
    let proxy = Proxy::start(&dynamo.endpoint).await;
    let table = dynamo.open(connect(&Dynamo::settings(&proxy.endpoint())).await.unwrap());
    must(&table, &put("loan-1", header(Some(4), 2), Demand::Absent)).await;
    let before = stored(&table, "loan-1").await.unwrap();
    let mut by: Fingerprints = "v1".into();
    by = by.with("v2").with("v3");
    let mut marking = put(
        "loan-1",
        header(Some(4), 3),
        Demand::Exactly {
            generation: 2,
            version: Some(4),
            deleted: false,
        },
    );
    marking.body = Body::Stored;
    marking.header.quarantine = Some(Quarantine { by, ..quarantine("") });
    // Its reply is lost: it is found to have landed.
    proxy.inject("UpdateItem", 1, Fault::LoseReply);
    must(&table, &marking).await;
    let after = stored(&table, "loan-1").await.unwrap();
    assert_eq!((&after.view, &after.fold), (&before.view, &before.fold));
    assert_eq!(after.header, marking.header);
    // What it demanded holds no longer.
    let Ok(PutOutcome::Refused(Some(refused))) = table.put(&marking).await else {
        panic!("the generation has moved on")
    };
    assert_eq!(refused.header, after.header);
}

#[tokio::test]
async fn a_mark_stands_on_items_that_are_no_replicas() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let client = dynamo.client().await;
    let number = |n: &str| AttributeValue::N(n.to_owned());
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let bare = vec![("other", text("x"))];
    let unversioned = vec![("generation", number("5")), ("version", text("four"))];
    let wrong = vec![
        ("generation", number("5")),
        ("version", number("4")),
        ("state", text("x")),
    ];
    for (stream, attributes, demand) in [
        ("loan-1", bare, Demand::Broken),
        ("loan-2", unversioned, Demand::Broken),
        (
            "loan-3",
            wrong,
            Demand::Exactly {
                generation: 5,
                version: Some(4),
                deleted: false,
            },
        ),
    ] {
        let mut item = client
            .put_item()
            .table_name(dynamo.table_name())
            .item("pk", text(stream));
        for (name, value) in &attributes {
            item = item.item(*name, value.clone());
        }
        item.send().await.unwrap();
        let found = async || match table.get(stream, true).await {
            Err(StoreError::Corrupt { found, .. }) => *found,
            other => panic!("{other:?}"),
        };
        let before = found().await;
        assert_eq!(before.demand(), demand, "{stream}");
        assert_eq!(before.quarantine, None);
        let generation = before.generation.unwrap_or_default() + 1;
        let mut marking = put(stream, header(before.version.flatten(), generation), demand);
        marking.body = Body::Stored;
        let mark = Quarantine::corrupt("its attribute `projection` is not a text", stream, "v1".into());
        marking.header.quarantine = Some(mark.clone());
        must(&table, &marking).await;
        let expected = Broken {
            quarantine: Some(mark),
            generation: if demand == Demand::Broken {
                before.generation
            } else {
                Some(generation)
            },
            ..before
        };
        assert_eq!(found().await, expected, "{stream}");
        let get = client
            .get_item()
            .table_name(dynamo.table_name())
            .key("pk", text(stream));
        let item = get.consistent_read(true).send().await.unwrap().item.unwrap();
        for (name, value) in attributes.iter().filter(|(name, _)| *name != "generation") {
            assert_eq!(item.get(*name), Some(value), "{stream}");
        }
        // No cached base puts over it where nothing can be compared.
        let fold = table
            .put(&put(stream, header(Some(9), 5), Demand::Older { generation: 5 }))
            .await;
        if demand == Demand::Broken {
            assert!(matches!(fold, Err(StoreError::Corrupt { .. })), "{fold:?}");
        }
        // An operator's word replaces it.
        let demand = match table.get(stream, true).await {
            Err(StoreError::Corrupt { found, .. }) => found.demand(),
            other => panic!("{other:?}"),
        };
        must(&table, &put(stream, header(Some(1), 1_000), demand)).await;
        assert_eq!(stored(&table, stream).await.unwrap().header.version, Some(1));
    }
}
