//! Catch-up subscriptions: to streams and to `$all`, from everywhere, into live and back.

use eventstore::{StreamPosition, SubscribeToStreamOptions};
use tonic::Streaming;

use super::{beginning, describe, put, server};
use crate::support::{
    eventstore::{PATIENCE, append, client_of},
    raw::{
        At, Expect, Raw, ReadOptions, ReadResp, Reading as _, Shown as _, entry, expecting, many_proposed, next,
        of_all, of_stream, said,
    },
};

async fn subscribe(raw: &Raw, options: ReadOptions) -> Streaming<ReadResp> {
    raw.read(options.subscribed()).await.unwrap()
}

/// So many answers, in a word each.
async fn take(from: &mut Streaming<ReadResp>, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.push(next(from).await.unwrap().shown());
    }
    seen
}

async fn tombstone(raw: &Raw, stream: &str) {
    let options = expecting(stream, Expect::Any);
    raw.delete("Tombstone", options).await.unwrap();
}

#[tokio::test]
async fn a_stream_from_its_start_from_within_and_from_its_end() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..4).await;
    let mut start = subscribe(&raw, of_stream("s", At::Start)).await;
    let mut within = subscribe(&raw, of_stream("s", At::Number(1))).await;
    let mut end = subscribe(&raw, of_stream("s", At::End)).await;
    let mut beyond = subscribe(&raw, of_stream("s", At::Number(4))).await;
    assert_eq!(
        take(&mut start, 5).await,
        ["confirmed", "0@s", "1@s", "2@s", "caught up"]
    );
    assert_eq!(
        take(&mut within, 3).await,
        ["confirmed", "2@s", "caught up"],
        "exclusive"
    );
    assert_eq!(take(&mut end, 2).await, ["confirmed", "caught up"]);
    assert_eq!(take(&mut beyond, 2).await, ["confirmed", "caught up"]);
    put(&raw, "other", 90..95).await;
    put(&raw, "s", 4..7).await;
    for subscription in [&mut start, &mut within, &mut end] {
        assert_eq!(take(subscription, 3).await, ["3@s", "4@s", "5@s"]);
    }
    assert_eq!(take(&mut beyond, 1).await, ["5@s"]);
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_waited_for() {
    let (_server, raw) = server().await;
    put(&raw, "deleted", 1..3).await;
    let options = expecting("deleted", Expect::Any);
    raw.delete("Delete", options).await.unwrap();
    for (stream, revision) in [("new", 0), ("deleted", 2)] {
        let mut answers = subscribe(&raw, of_stream(stream, At::Start)).await;
        assert_eq!(take(&mut answers, 2).await, ["confirmed", "caught up"]);
        put(&raw, stream, 7..8).await;
        assert_eq!(take(&mut answers, 1).await, [format!("{revision}@{stream}")]);
    }
}

#[tokio::test]
async fn a_tombstone_is_told_and_ends_it() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..3).await;
    let mut live = subscribe(&raw, of_stream("s", At::End)).await;
    assert_eq!(take(&mut live, 2).await, ["confirmed", "caught up"]);
    tombstone(&raw, "s").await;
    let told = next(&mut live).await.unwrap().event.unwrap().event.unwrap();
    assert_eq!(
        (told.revision, entry(&told.metadata, "type")),
        (i64::MAX as u64, "$streamDeleted")
    );
    let status = next(&mut live).await.unwrap_err();
    assert_eq!(said(&status, "exception"), Some("stream-deleted"));
    // Who comes later is not even confirmed, nor is who asks for its metadata.
    for stream in ["s", "$$s"] {
        for at in [At::Start, At::End, At::Number(9)] {
            let late = raw.read(of_stream(stream, at).subscribed()).await;
            let status = match late {
                Ok(mut late) => next(&mut late).await.unwrap_err(),
                Err(status) => status,
            };
            assert_eq!(said(&status, "stream-name"), Some(stream));
        }
    }
}

#[tokio::test]
async fn live_every_event_is_told_whatever_the_metadata_hides() {
    let (_server, raw) = server().await;
    describe(&raw, "s", r#"{"$maxCount":1}"#).await;
    put(&raw, "s", 1..4).await;
    let mut live = subscribe(&raw, of_stream("s", At::Start)).await;
    assert_eq!(
        take(&mut live, 3).await,
        ["confirmed", "2@s", "caught up"],
        "read, it is hidden"
    );
    put(&raw, "s", 4..8).await;
    assert_eq!(take(&mut live, 4).await, ["3@s", "4@s", "5@s", "6@s"]);
    let mut metadata = subscribe(&raw, of_stream("$$s", At::End)).await;
    assert_eq!(take(&mut metadata, 2).await, ["confirmed", "caught up"]);
    let three = many_proposed(20..23);
    raw.append(expecting("$$s", Expect::Any), three).await.unwrap();
    assert_eq!(take(&mut metadata, 3).await, ["1@$$s", "2@$$s", "3@$$s"]);
}

#[tokio::test]
async fn a_category_is_followed_live_with_links_resolved() {
    let (_server, raw) = server().await;
    put(&raw, "s-1", 1..2).await;
    let mut live = subscribe(&raw, of_stream("$ce-s", At::Start).resolved()).await;
    assert_eq!(take(&mut live, 3).await, ["confirmed", "0@s-1 by 0@$ce-s", "caught up"]);
    put(&raw, "s-2", 2..4).await;
    assert_eq!(take(&mut live, 2).await, ["0@s-2 by 1@$ce-s", "1@s-2 by 2@$ce-s"]);
    let options = expecting("s-1", Expect::Any);
    raw.delete("Delete", options).await.unwrap();
    assert_eq!(take(&mut live, 1).await, ["0@$$s-1 by 3@$ce-s"]);
    tombstone(&raw, "s-2").await;
    assert_eq!(take(&mut live, 1).await, ["nothing by 4@$ce-s"]);
}

#[tokio::test]
async fn all_of_it_from_its_start_from_within_and_from_its_end() {
    let (_server, raw) = server().await;
    let own = raw.read_all(of_all(At::Start)).await.0.len();
    put(&raw, "a", 1..3).await;
    let (answers, _) = raw.read_all(of_all(At::Start)).await;
    let first = answers[own].event.as_ref().unwrap().commit_position.unwrap();
    let mut start = subscribe(&raw, of_all(At::Start)).await;
    let mut within = subscribe(&raw, of_all(At::Number(first))).await;
    let mut end = subscribe(&raw, of_all(At::End)).await;
    assert_eq!(take(&mut start, own + 1).await[..2], ["confirmed", "0@$$$scavenges"]);
    assert_eq!(take(&mut start, 3).await, ["0@a", "1@a", "caught up"]);
    assert_eq!(
        take(&mut within, 3).await,
        ["confirmed", "1@a", "caught up"],
        "exclusive"
    );
    assert_eq!(take(&mut end, 2).await, ["confirmed", "caught up"]);
    put(&raw, "b", 3..5).await;
    for subscription in [&mut start, &mut within, &mut end] {
        assert_eq!(take(subscription, 2).await, ["0@b", "1@b"]);
    }
}

#[tokio::test]
async fn nothing_is_missed_between_reading_and_live() {
    let (server, raw) = server().await;
    let begin = beginning(&raw).await;
    let client = client_of(&server.connection_string());
    let writing = tokio::spawn(async move {
        for _ in 0..60 {
            append(&client, "s", 50).await;
        }
    });
    let mut subscriptions = Vec::new();
    for _ in 0..3 {
        subscriptions.push(subscribe(&raw, of_stream("s", At::Start)).await);
        subscriptions.push(subscribe(&raw, of_all(begin)).await);
    }
    for mut subscription in subscriptions {
        let mut revision = 0;
        while revision < 3_000 {
            if let Some(event) = next(&mut subscription).await.unwrap().event {
                assert_eq!(event.event.unwrap().revision, revision);
                revision += 1;
            }
        }
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn the_clients_own_subscription_goes_on_where_it_was() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 3).await;
    let options = SubscribeToStreamOptions::default().start_from(StreamPosition::Position(0));
    let mut subscription = client.subscribe_to_stream("s", &options).await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = tokio::time::timeout(PATIENCE, subscription.next())
            .await
            .unwrap()
            .unwrap();
        seen.push(event.get_original_event().revision);
        if seen.len() == 2 {
            append(&client, "s", 2).await;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4]);
}
