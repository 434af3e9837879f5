//! Faults on demand: each shows what a real node or network shows, when it is armed and no longer.

use std::time::Duration;

use eventstore::{
    AppendToStreamOptions, Client, Error, ExpectedRevision, GetPersistentSubscriptionInfoOptions,
    PersistentSubscription, PersistentSubscriptionOptions, StreamPosition, SubscribeToPersistentSubscriptionOptions,
    SubscribeToStreamOptions,
};
use projector::embedded::eventstore::{Defects, Disturbance, End, Options};
use tonic::Code;

use super::{put, server};
use crate::support::{
    eventstore::{PATIENCE, append, client_of, event, read, start, write},
    group::{acked, consume, stats},
    node::until,
    raw::{At, Expect, Raw, Reading as _, Shown as _, expecting, many_proposed, next, of_stream, said},
};

async fn group(client: &Client, stream: &str) {
    let options = PersistentSubscriptionOptions::default().start_from(StreamPosition::Start);
    client
        .create_persistent_subscription(stream, "g", &options)
        .await
        .unwrap();
}

async fn error(consumer: &mut PersistentSubscription) -> Error {
    loop {
        if let Err(error) = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap() {
            return error;
        }
    }
}

#[tokio::test]
async fn cut_connections_say_nothing_and_can_be_made_anew() {
    let (server, raw) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    group(&client, "s").await;
    let mut consumer = consume(&client, "s", 20).await;
    assert_eq!(acked(&mut consumer, 1).await, [0]);
    let mut subscription = raw.read(of_stream("s", At::End).subscribed()).await.unwrap();
    assert_eq!(next(&mut subscription).await.unwrap().shown(), "confirmed");
    assert_eq!(next(&mut subscription).await.unwrap().shown(), "caught up");
    server.faults().cut_connections();
    let error = error(&mut consumer).await;
    assert!(matches!(error, Error::ServerError(_)), "{error:?}");
    let status = next(&mut subscription).await.unwrap_err();
    assert!(said(&status, "exception").is_none());
    assert_ne!(status.message(), "Server Is Not Ready");
    append(&client, "s", 1).await;
    let mut consumer = consume(&client, "s", 20).await;
    assert_eq!(acked(&mut consumer, 1).await, [1]);
}

#[tokio::test]
async fn refused_connections_are_closed_at_once() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    server.faults().refuse_connections(true);
    let client = client_of(&server.connection_string());
    assert!(read(&client, "s", false).await.is_err());
    assert_eq!(put(&raw, "s", 2..3).await, 1, "those that are open stay");
    server.faults().refuse_connections(false);
    let client = client_of(&server.connection_string());
    assert_eq!(read(&client, "s", false).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_lost_reply_was_written_and_a_retry_finds_it() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 2).await;
    let id = uuid::Uuid::new_v4();
    server.faults().lose_append_replies(1);
    let again = || vec![event(2).id(id)];
    let lost = write(&client, "s", ExpectedRevision::Exact(1), again()).await;
    assert!(matches!(lost, Err(Error::ServerError(_))), "{lost:?}");
    let found = write(&client, "s", ExpectedRevision::Exact(1), again()).await.unwrap();
    assert_eq!(found.next_expected_version, 2);
    assert_eq!(read(&client, "s", false).await.unwrap().len(), 3);
}

#[tokio::test]
async fn not_ready_and_not_leader_for_as_long_as_they_are_armed() {
    let (server, raw) = server().await;
    let options = || expecting("s", Expect::Any);
    server.faults().not_ready_for(PATIENCE);
    let status = raw.append(options(), many_proposed(1..2)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "Server Is Not Ready")
    );
    server.faults().not_ready_for(Duration::from_millis(100));
    until("the time is over", async || {
        raw.append(options(), many_proposed(1..2)).await.is_ok()
    })
    .await;
    server.faults().answer_not_leader(Some(("somewhere".to_owned(), 7)));
    let strict = raw.with("requires-leader", "true");
    let status = strict.append(options(), many_proposed(2..3)).await.unwrap_err();
    assert_eq!(said(&status, "leader-endpoint-host"), Some("somewhere"));
    assert_eq!(said(&status, "leader-endpoint-port"), Some("7"));
    assert!(raw.append(options(), many_proposed(2..3)).await.is_ok());
    server.faults().answer_not_leader(None);
    assert!(strict.append(options(), many_proposed(3..4)).await.is_ok());
}

#[tokio::test]
async fn calls_are_delayed() {
    let (server, raw) = server().await;
    let delay = Duration::from_millis(200);
    server.faults().delay_calls(delay);
    let began = std::time::Instant::now();
    put(&raw, "s", 1..2).await;
    assert!(began.elapsed() >= delay);
    server.faults().delay_calls(Duration::ZERO);
    let began = std::time::Instant::now();
    put(&raw, "s", 2..3).await;
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn deliveries_come_twice_or_in_another_order() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 10).await;
    group(&client, "s").await;
    let disturb = |reorder, twice| Disturbance {
        reorder,
        twice,
        seed: 7,
    };
    server.faults().disturb_deliveries(Some(disturb(true, true)));
    let mut consumer = consume(&client, "s", 20).await;
    let mut seen = acked(&mut consumer, 20).await;
    assert!(!seen.is_sorted());
    seen.sort_unstable();
    assert_eq!(seen, (0..20).map(|n| n / 2).collect::<Vec<_>>());
    server.faults().disturb_deliveries(None);
    append(&client, "s", 10).await;
    assert_eq!(acked(&mut consumer, 10).await, (10..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn consumers_are_ended_by_every_status_and_by_none() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    group(&client, "s").await;
    let of = |code, dropped| End::Status {
        code,
        message: "because".to_owned(),
        dropped,
    };
    for (end, looks_like) in [
        (of(Code::Cancelled, true), "IllegalStateError"),
        (of(Code::Unavailable, false), "ServerError"),
        (of(Code::PermissionDenied, false), "AccessDenied"),
        (of(Code::NotFound, false), "ResourceNotFound"),
        (of(Code::ResourceExhausted, false), "Grpc"),
    ] {
        let mut consumer = consume(&client, "s", 20).await;
        assert_eq!(consumer.next().await.unwrap().get_original_event().revision, 0);
        server.faults().end_consumers(end.clone());
        let error = format!("{:?}", error(&mut consumer).await);
        assert!(error.starts_with(looks_like), "{end:?} {error}");
    }
    // In good order: what the client takes for impossible.
    let mut consumer = consume(&client, "s", 20).await;
    assert_eq!(consumer.next().await.unwrap().get_original_event().revision, 0);
    server.faults().end_consumers(End::Clean);
    let panicked = tokio::spawn(async move { consumer.next().await.map(|_| ()) });
    assert!(tokio::time::timeout(PATIENCE, panicked).await.unwrap().is_err());
}

#[tokio::test]
async fn subscriptions_are_ended_too() {
    let (server, raw) = server().await;
    let subscribed = async |raw: &Raw| {
        let options = of_stream("s", At::Start).subscribed();
        let mut answers = raw.read(options).await.unwrap();
        assert_eq!(next(&mut answers).await.unwrap().shown(), "confirmed");
        assert_eq!(next(&mut answers).await.unwrap().shown(), "caught up");
        answers
    };
    let mut answers = subscribed(&raw).await;
    server.faults().end_subscriptions(End::Status {
        code: Code::Internal,
        message: "because".to_owned(),
        dropped: false,
    });
    let status = next(&mut answers).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "because"));
    let mut answers = subscribed(&raw).await;
    server.faults().end_subscriptions(End::Clean);
    let end = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
    assert!(matches!(end, Ok(None)));
    // The client goes on where it was.
    let client = client_of(&server.connection_string());
    let options = SubscribeToStreamOptions::default()
        .start_from(StreamPosition::Start)
        .retry_options(eventstore::RetryOptions::default());
    let mut subscription = client.subscribe_to_stream("s", &options).await;
    append(&client, "s", 1).await;
    assert_eq!(subscription.next().await.unwrap().get_original_event().revision, 0);
    server.faults().end_subscriptions(End::Status {
        code: Code::Unavailable,
        message: String::new(),
        dropped: false,
    });
    append(&client, "s", 1).await;
    let next = tokio::time::timeout(PATIENCE, subscription.next()).await.unwrap();
    assert_eq!(next.unwrap().get_original_event().revision, 1);
}

#[tokio::test]
async fn groups_start_again_from_their_checkpoints() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 6).await;
    let options = PersistentSubscriptionOptions::default()
        .start_from(StreamPosition::Start)
        .checkpoint_lower_bound(1)
        .checkpoint_upper_bound(3);
    client.create_persistent_subscription("s", "g", &options).await.unwrap();
    let mut consumer = consume(&client, "s", 20).await;
    assert_eq!(acked(&mut consumer, 3).await, [0, 1, 2]);
    until("three are checkpointed", async || {
        stats(&client, "s").await.last_checkpointed_event_revision == Some(2)
    })
    .await;
    server.restart_groups().await;
    let error = error(&mut consumer).await;
    assert!(matches!(error, Error::IllegalStateError(_)), "{error:?}");
    let mut consumer = consume(&client, "s", 20).await;
    assert_eq!(acked(&mut consumer, 3).await, [3, 4, 5]);
}

#[tokio::test]
async fn silence_while_the_groups_load_when_it_is_asked_for() {
    let server = start(Options {
        defects: Defects {
            silent_while_loading: true,
            ..Defects::default()
        },
        ..Options::default()
    })
    .await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    server.faults().not_ready_for(PATIENCE);
    let options = PersistentSubscriptionOptions::default().deadline(Duration::from_millis(300));
    let made = client.create_persistent_subscription("s", "g", &options).await;
    assert!(matches!(made, Err(Error::DeadlineExceeded)), "{made:?}");
    let any = AppendToStreamOptions::default();
    let appended = client.append_to_stream("s", &any, event(1)).await;
    assert!(
        matches!(&appended, Err(Error::ServerError(said)) if said.contains("Not Ready")),
        "{appended:?}"
    );
    server.faults().not_ready_for(Duration::ZERO);
    group(&client, "s").await;
}

/// Ids that are in flight already cost slots: after nine pairs one of five is left.
#[tokio::test]
async fn the_real_servers_lost_slots_when_they_are_asked_for() {
    let server = start(Options {
        defects: Defects {
            repeated_id_slots: true,
            ..Defects::default()
        },
        ..Options::default()
    })
    .await;
    let client = client_of(&server.connection_string());
    let filter = eventstore::SubscriptionFilter::on_stream_name().add_prefix("twin");
    let options = eventstore::PersistentSubscriptionToAllOptions::default()
        .start_from(StreamPosition::Start)
        .filter(filter);
    client
        .create_persistent_subscription_to_all("g", &options)
        .await
        .unwrap();
    for _ in 0..9 {
        let id = uuid::Uuid::new_v4();
        for stream in ["twin-a", "twin-b"] {
            let any = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
            client.append_to_stream(stream, &any, event(0).id(id)).await.unwrap();
        }
    }
    let options = SubscribeToPersistentSubscriptionOptions::default().buffer_size(5);
    let mut consumer = client
        .subscribe_to_persistent_subscription_to_all("g", &options)
        .await
        .unwrap();
    assert_eq!(acked(&mut consumer, 18).await.len(), 18);
    until("one slot is left", async || {
        let info = client
            .get_persistent_subscription_info_to_all("g", &GetPersistentSubscriptionInfoOptions::default())
            .await;
        info.unwrap().connections[0].available_slots == 1
    })
    .await;
}
