//! Notes of marks, in the table's own `$marks`.

use projector::replica::{Marked, dynamodb::connect};

use super::*;
use crate::support::proxy::{Fault, Proxy};

fn quarantine(by: &str) -> Quarantine {
    Quarantine {
        at: 3,
        reason: "decode the event's body: missing field".to_owned(),
        by: by.into(),
    }
}

fn marked(stream: &str, diverged: bool, by: &str) -> Marked {
    Marked {
        stream: stream.into(),
        diverged,
        by: by.into(),
    }
}

#[tokio::test]
async fn marks_are_noted_and_cleared_and_every_task_sees_them() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    assert_eq!(table.marks().await.unwrap(), []);
    // Nothing to clear is nothing to do, and makes no item.
    table.note_mark("loan-1", None).await.unwrap();
    assert_eq!(table.marks().await.unwrap(), []);

    let longest = "x".repeat(2048);
    let odd = "loan-ü.#:[0] \"x\"";
    table.note_mark("loan-1", Some(&quarantine("v1"))).await.unwrap();
    table
        .note_mark(
            odd,
            Some(&Quarantine::diverged("the stream is shorter", odd, "v2".into())),
        )
        .await
        .unwrap();
    table.note_mark(&longest, Some(&quarantine("v1"))).await.unwrap();
    // Again, by other code: the newer stands.
    table.note_mark("loan-1", Some(&quarantine("v2"))).await.unwrap();
    let other = dynamo.open(dynamo.client().await);
    let all = [
        marked("loan-1", false, "v2"),
        marked(odd, true, "v2"),
        marked(&longest, false, "v1"),
    ];
    assert_eq!(other.marks().await.unwrap(), all);
    other.note_mark(odd, None).await.unwrap();
    other.note_mark(odd, None).await.unwrap();
    other.note_mark("loan-7", None).await.unwrap();
    assert_eq!(table.marks().await.unwrap(), [all[0].clone(), all[2].clone()]);
    // They are no replica.
    assert_eq!(table.get("$marks", true).await.unwrap(), None);
    assert_eq!(table.get_many(&["$marks".into()], true).await.unwrap(), [None]);
}

#[tokio::test]
async fn marks_of_many_tasks_at_once_are_all_noted() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let streams: Vec<String> = (0..40).map(|n| format!("loan-{n:02}")).collect();
    let noting = streams.iter().map(|stream| {
        let table = table.clone();
        async move { table.note_mark(stream, Some(&quarantine("v1"))).await }
    });
    futures::future::try_join_all(noting).await.unwrap();
    let noted: Vec<_> = table
        .marks()
        .await
        .unwrap()
        .iter()
        .map(|m| m.stream.to_string())
        .collect();
    assert_eq!(noted, streams);
}

#[tokio::test]
async fn a_lost_or_throttled_note_is_repeated_and_a_full_item_is_no_error() {
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
    table.note_mark("loan-1", Some(&quarantine("v1"))).await.unwrap();
    assert!(!proxy.is_armed());
    assert_eq!(table.marks().await.unwrap(), [marked("loan-1", false, "v1")]);

    // 400 KB are about 190 names of this length.
    let names: Vec<String> = (0..230).map(|n| format!("{n:0>2048}")).collect();
    for name in &names {
        table.note_mark(name, Some(&quarantine("v1"))).await.unwrap();
    }
    let noted = table.marks().await.unwrap().len();
    assert!((150..names.len()).contains(&noted), "{noted}");
    assert!(dynamo.seen.count(Operation::UpdateItem, AttemptOutcome::Refused) > 1);
    assert_eq!(dynamo.seen.count(Operation::UpdateItem, AttemptOutcome::Setup), 0);
    // Room again as marks are cleared.
    table.note_mark(&names[0], None).await.unwrap();
    assert_eq!(table.marks().await.unwrap().len(), noted - 1);
}
