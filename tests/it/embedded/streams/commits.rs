//! Accepted, committed, visible, answered: in this order, and a conflict is answered at the first.

use std::time::Duration;

use tonic::Code;
use uuid::Uuid;

use super::{put, server, shows};
use crate::support::{
    eventstore::{PATIENCE, client_of},
    group::consume,
    node::until,
    raw::{
        AppendResp, At, BatchAppendReq, Expect, Raw, Reading as _, Shown as _, WireUuid, expecting, many_proposed,
        next, of_stream,
    },
};

/// Longer than any test: what is held is held until it is released.
const HELD: Duration = Duration::from_hours(1);

async fn append(raw: &Raw, stream: &str, expect: Expect, id: u128) -> Result<AppendResp, tonic::Status> {
    raw.append(expecting(stream, expect), many_proposed(id..id + 1)).await
}

/// What a conflict names.
async fn conflict(raw: &Raw, stream: &str, expect: Expect) -> Option<u64> {
    let answer = append(raw, stream, expect, fastrand::u128(1_000_000..)).await.unwrap();
    answer.wrong_expected_version.and_then(|wrong| wrong.current)
}

/// Starts an append of this id after the stream's one event, and waits until it is accepted.
async fn accepted(raw: &Raw, id: u128) -> tokio::task::JoinHandle<Result<AppendResp, tonic::Status>> {
    let mine = raw.clone();
    let append = tokio::spawn(async move { append(&mine, "s", Expect::At(0), id).await });
    until("the append is accepted", async || {
        // An expectation that nothing meets writes nothing and tells how the stream stands.
        conflict(raw, "s", Expect::At(77)).await == Some(1)
    })
    .await;
    append
}

#[tokio::test]
async fn a_conflict_names_a_revision_that_nothing_shows_yet() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    let client = client_of(&server.connection_string());
    client
        .create_persistent_subscription("s", "g", &eventstore::PersistentSubscriptionOptions::default())
        .await
        .unwrap();
    let mut consumer = consume(&client, "s", 20).await;
    let mut subscription = raw.read(of_stream("s", At::End).subscribed()).await.unwrap();
    assert_eq!(next(&mut subscription).await.unwrap().shown(), "confirmed");
    assert_eq!(next(&mut subscription).await.unwrap().shown(), "caught up");
    server.faults().delay_commits(Some("s"), HELD);
    let rival = accepted(&raw, 2).await;
    assert_eq!(conflict(&raw, "s", Expect::At(0)).await, Some(1));
    assert_eq!(shows(&raw, "s").await.len(), 1, "reads show what is committed");
    // Another stream is not held up, and its events come before.
    assert_eq!(put(&raw, "t", 3..4).await, 0);
    assert_eq!(shows(&raw, "t").await.len(), 1);
    assert!(!rival.is_finished());
    server.faults().delay_commits(Some("s"), Duration::ZERO);
    let written = rival.await.unwrap().unwrap().success.unwrap();
    assert_eq!(written.current_revision, Some(1));
    assert_eq!(shows(&raw, "s").await.len(), 2, "what is answered is readable at once");
    let told = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
    assert_eq!(told.get_original_event().revision, 1);
    assert!(next(&mut subscription).await.unwrap().shown().contains("1@s"));
}

#[tokio::test]
async fn an_append_may_die_accepted() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    server.faults().delay_commits(None, HELD);
    server.faults().lose_accepted(Some("s"), 1);
    let dying = accepted(&raw, 2).await;
    server.faults().delay_commits(None, Duration::ZERO);
    until("the revision that a conflict named is free again", async || {
        conflict(&raw, "s", Expect::At(77)).await == Some(0)
    })
    .await;
    let next = append(&raw, "s", Expect::At(0), 3).await.unwrap();
    assert_eq!(next.success.unwrap().current_revision, Some(1));
    let unanswered = dying.await.unwrap().unwrap_err();
    assert_eq!(unanswered.code(), Code::Aborted, "{unanswered:?}");
}

#[tokio::test]
async fn the_same_append_twice_at_once_is_answered_once() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    server.faults().delay_commits(Some("s"), HELD);
    let first = accepted(&raw, 2).await;
    // The second is no conflict and no success: it ends by the server's own time-out.
    let batch = BatchAppendReq {
        correlation_id: Some(WireUuid::of(Uuid::from_u128(7), true)),
        options: Some(expecting("s", Expect::At(0))),
        messages: many_proposed(2..3),
        is_final: true,
    };
    let ((answers, _), second) = tokio::join!(raw.batch(vec![batch]), append(&raw, "s", Expect::Any, 2));
    assert_eq!(second.unwrap_err().code(), Code::Aborted);
    let error = answers[0].error.as_ref().unwrap();
    assert_eq!(error.code, Code::DeadlineExceeded as i32, "{error:?}");
    drop(first);
    server.faults().delay_commits(Some("s"), Duration::ZERO);
    until("the first is committed", async || shows(&raw, "s").await.len() == 2).await;
    let again = append(&raw, "s", Expect::At(0), 2).await.unwrap();
    assert_eq!(
        again.success.unwrap().current_revision,
        Some(1),
        "afterwards it is a repetition"
    );
}
