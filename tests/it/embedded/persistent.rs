//! Groups over the wire, through the client that production uses.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use eventstore::{
    Client, DeletePersistentSubscriptionOptions, Error, ExpectedRevision, ListPersistentSubscriptionsOptions,
    NakAction, PersistentSubscription, PersistentSubscriptionOptions, PersistentSubscriptionStats,
    PersistentSubscriptionToAllOptions, Position, ReplayParkedMessagesOptions, StreamPosition,
    SubscribeToPersistentSubscriptionOptions, SubscriptionFilter, TombstoneStreamOptions,
};
use projector::embedded::eventstore::Options;

use crate::support::{
    eventstore::{PATIENCE, append, client_of, contents, empty, event, read, start, write},
    group::{consume, group_info, group_info_of_all, next, revision, stats, stats_of_all},
};

fn from_start() -> PersistentSubscriptionOptions {
    PersistentSubscriptionOptions::default()
        .start_from(StreamPosition::Start)
        .checkpoint_after(Duration::from_millis(200))
        .checkpoint_lower_bound(1)
        .checkpoint_upper_bound(10)
}

async fn take_and_ack(from: &mut PersistentSubscription, count: usize) -> Vec<(u64, usize)> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let (event, retries) = next(from).await;
        seen.push((revision(&event), retries));
        from.ack(event).await.unwrap();
    }
    seen
}

/// Asks for the figures until they are as wanted.
async fn until(client: &Client, stream: &str, wanted: impl Fn(&PersistentSubscriptionStats) -> bool) {
    let asking = async {
        while !wanted(&stats(client, stream).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, asking).await;
    assert!(outcome.is_ok(), "never as wanted: {:?}", stats(client, stream).await);
}

async fn create(client: &Client, stream: &str, options: &PersistentSubscriptionOptions) {
    client
        .create_persistent_subscription(stream, "g", options)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_category_comes_resolved_is_acked_and_checkpointed() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let first = append(&client, "loan-1", 2).await;
    append(&client, "loan-2", 1).await;
    client
        .tombstone_stream("loan-2", &TombstoneStreamOptions::default())
        .await
        .unwrap();
    create(&client, "$ce-loan", &from_start().resolve_link_tos(true)).await;
    let mut consumer = consume(&client, "$ce-loan", 10).await;
    for (n, id) in first.iter().enumerate() {
        let (event, retries) = next(&mut consumer).await;
        let (target, link) = (event.event.as_ref().unwrap(), event.link.as_ref().unwrap());
        assert_eq!(
            (&*target.stream_id, target.revision, target.id),
            ("loan-1", n as u64, *id)
        );
        assert_eq!(
            (&*link.stream_id, link.revision, &*link.event_type),
            ("$ce-loan", n as u64, "$>")
        );
        assert_eq!(target.position.commit, link.position.commit);
        assert_eq!(retries, 0);
        consumer.ack(event).await.unwrap();
    }
    // The event that was there, and the tombstone itself.
    for points_at in ["0@loan-2", "9223372036854775807@loan-2"] {
        let (gone, _) = next(&mut consumer).await;
        assert!(gone.event.is_none());
        assert_eq!(gone.link.as_ref().unwrap().data, points_at);
        consumer.ack(gone).await.unwrap();
    }
    until(&client, "$ce-loan", |stats| {
        stats.last_checkpointed_event_revision == Some(3)
    })
    .await;
    let stats = stats(&client, "$ce-loan").await;
    assert_eq!(stats.last_known_event_revision, Some(3));
    assert_eq!(
        (stats.total_in_flight_messages, stats.outstanding_messages_count),
        (0, 0)
    );
    assert_eq!(stats.total_items, 4);
    let kept = contents(&client, "$persistentsubscription-$ce-loan::g-checkpoint").await;
    assert_eq!(kept.last().unwrap(), "\"3\"");
}

#[tokio::test]
async fn groups_checkpoints_and_parked_records_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        data: Some(folder.path().to_owned()),
        ..Options::default()
    };
    let server = start(options.clone()).await;
    let client = client_of(&server.connection_string());
    create(&client, "s", &from_start().max_retry_count(7)).await;
    append(&client, "s", 6).await;
    let mut consumer = consume(&client, "s", 10).await;
    for n in 0..4 {
        let (event, _) = next(&mut consumer).await;
        if n == 1 {
            consumer.nack(event, NakAction::Park, "poison").await.unwrap();
        } else {
            consumer.ack(event).await.unwrap();
        }
    }
    until(&client, "s", |stats| stats.last_checkpointed_event_revision == Some(3)).await;
    until(&client, "s", |stats| stats.parked_message_count == 1).await;
    server.shutdown().await;
    assert!(matches!(
        consumer.next().await,
        Ok(_) | Err(Error::IllegalStateError(_))
    ));

    let server = start(options).await;
    let client = client_of(&server.connection_string());
    let listed = client
        .list_all_persistent_subscriptions(&ListPersistentSubscriptionsOptions::default())
        .await
        .unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].settings.as_ref().unwrap().max_retry_count, 7);
    assert_eq!(stats(&client, "s").await.parked_message_count, 1);
    let mut consumer = consume(&client, "s", 10).await;
    assert_eq!(take_and_ack(&mut consumer, 2).await, [(4, 0), (5, 0)]);
    client
        .replay_parked_messages("s", "g", &ReplayParkedMessagesOptions::default())
        .await
        .unwrap();
    let (replayed, retries) = next(&mut consumer).await;
    assert_eq!((replayed.event.as_ref().unwrap().revision, retries), (1, 0));
    let parked = "$persistentsubscription-s::g-parked";
    assert_eq!(&*replayed.link.as_ref().unwrap().stream_id, parked);
    consumer.ack(replayed).await.unwrap();
    until(&client, "s", |stats| stats.parked_message_count == 0).await;
    until(&client, "s", |stats| stats.total_in_flight_messages == 0).await;
}

#[tokio::test]
async fn parked_records_say_what_and_why() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    create(&client, "s", &from_start().max_retry_count(1)).await;
    append(&client, "s", 2).await;
    let mut consumer = consume(&client, "s", 1).await;
    let (first, _) = next(&mut consumer).await;
    consumer.nack(first, NakAction::Park, "poison").await.unwrap();
    for retries in 0..2 {
        let (second, count) = next(&mut consumer).await;
        assert_eq!((revision(&second), count), (1, retries));
        consumer.nack(second, NakAction::Retry, "again").await.unwrap();
    }
    until(&client, "s", |stats| stats.parked_message_count == 2).await;
    let kept = read(&client, "$persistentsubscription-s::g-parked", false)
        .await
        .unwrap();
    let reason = |n: usize| {
        let metadata = &kept[n].get_original_event().custom_metadata;
        let said: serde_json::Value = serde_json::from_slice(metadata).unwrap();
        assert_eq!(said["subscriptionEventNumber"], n);
        said["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason(0), "Client explicitly NAK'ed message.\npoison");
    assert_eq!(reason(1), "Reached retry count of 1");
    let kept = contents(&client, "$persistentsubscription-s::g-parked").await;
    assert_eq!(kept, ["0@s", "1@s"]);
}

#[tokio::test]
async fn checkpoints_stay_and_what_was_replayed_is_hidden_from_all_but_administrators() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let always = from_start().checkpoint_upper_bound(1);
    create(&client, "s", &always).await;
    append(&client, "s", 4).await;
    let mut consumer = consume(&client, "s", 1).await;
    for n in 0..3 {
        take_and_ack(&mut consumer, 1).await;
        until(&client, "s", |stats| stats.last_checkpointed_event_revision == Some(n)).await;
    }
    let checkpoints = "$persistentsubscription-s::g-checkpoint";
    let kept = async {
        while contents(&client, checkpoints).await != ["\"0\"", "\"1\"", "\"2\""] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.unwrap();
    let undescribed = read(&client, &format!("$${checkpoints}"), false).await;
    assert!(matches!(undescribed, Err(Error::ResourceNotFound)), "{undescribed:?}");
    take_and_park(&mut consumer, 1).await;
    until(&client, "s", |stats| stats.parked_message_count == 1).await;
    client
        .replay_parked_messages("s", "g", &ReplayParkedMessagesOptions::default())
        .await
        .unwrap();
    take_and_ack(&mut consumer, 1).await;
    let described = contents(&client, "$$$persistentsubscription-s::g-parked").await;
    let described: serde_json::Value = serde_json::from_str(described.last().unwrap()).unwrap();
    let admins = "$admins";
    let acl = serde_json::json!({ "$r": admins, "$w": admins, "$d": admins, "$mr": admins, "$mw": admins });
    assert_eq!(described, serde_json::json!({ "$tb": 1, "$acl": acl }));
}

#[tokio::test]
async fn a_record_parked_by_a_group_on_all_is_numbered_in_its_stream() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let filter = SubscriptionFilter::on_stream_name().add_prefix("s");
    let options = PersistentSubscriptionToAllOptions::default().start_from(StreamPosition::Start);
    client
        .create_persistent_subscription_to_all("g", &options.filter(filter))
        .await
        .unwrap();
    append(&client, "s", 2).await;
    let mut consumer = client
        .subscribe_to_persistent_subscription_to_all("g", &SubscribeToPersistentSubscriptionOptions::default())
        .await
        .unwrap();
    let (first, _) = next(&mut consumer).await;
    consumer.ack(first).await.unwrap();
    take_and_park(&mut consumer, 1).await;
    let parked = async {
        loop {
            if let Ok(kept) = read(&client, "$persistentsubscription-$all::g-parked", false).await {
                return kept;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let kept = tokio::time::timeout(PATIENCE, parked).await.unwrap();
    let said: serde_json::Value = serde_json::from_slice(&kept[0].get_original_event().custom_metadata).unwrap();
    assert_eq!(said["subscriptionEventNumber"], 1);
}

#[tokio::test]
async fn a_group_from_the_end_of_all_is_told_of_its_own_settings() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    for group in ["g", "h"] {
        let options = PersistentSubscriptionToAllOptions::default().start_from(StreamPosition::End);
        client
            .create_persistent_subscription_to_all(group, &options)
            .await
            .unwrap();
    }
    let told = async |group: &str, count: usize| {
        let options = SubscribeToPersistentSubscriptionOptions::default();
        let mut consumer = client
            .subscribe_to_persistent_subscription_to_all(group, &options)
            .await
            .unwrap();
        let mut told = Vec::new();
        for _ in 0..count {
            let (event, _) = next(&mut consumer).await;
            let record = event.get_original_event();
            told.push(format!("{}@{}", record.revision, record.stream_id));
            consumer.ack(event).await.unwrap();
        }
        told
    };
    append(&client, "s", 1).await;
    // The first group's settings find no stream for them; where they are kept is described before.
    let (described, first, second) = (
        "0@$$$persistentSubscriptionConfig",
        "0@$persistentSubscriptionConfig",
        "1@$persistentSubscriptionConfig",
    );
    assert_eq!(told("g", 4).await, [described, first, second, "1@s"]);
    assert_eq!(told("h", 2).await, [second, "1@s"]);
    let kept = contents(&client, "$$$persistentSubscriptionConfig").await;
    assert_eq!(kept, [r#"{"$maxCount":2}"#]);
}

#[tokio::test]
async fn a_buffer_is_all_a_consumer_gets_and_a_gone_ones_go_to_the_next() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    create(&client, "s", &from_start()).await;
    append(&client, "s", 5).await;
    let mut gone = consume(&client, "s", 3).await;
    let (event, _) = next(&mut gone).await;
    gone.ack(event).await.unwrap();
    until(&client, "s", |stats| stats.total_items == 4).await;
    assert_eq!(stats(&client, "s").await.total_in_flight_messages, 3);
    drop(gone);
    until(&client, "s", |stats| stats.total_in_flight_messages == 0).await;
    let mut consumer = consume(&client, "s", 10).await;
    let seen = take_and_ack(&mut consumer, 4).await;
    assert_eq!(seen, [(1, 1), (2, 1), (3, 1), (4, 0)]);
}

#[tokio::test]
async fn silence_is_a_retry_and_then_parking() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let impatient = from_start()
        .message_timeout(Duration::from_millis(100))
        .max_retry_count(1);
    create(&client, "s", &impatient).await;
    append(&client, "s", 1).await;
    let mut consumer = consume(&client, "s", 10).await;
    assert_eq!(next(&mut consumer).await.1, 0);
    assert_eq!(next(&mut consumer).await.1, 1);
    until(&client, "s", |stats| stats.parked_message_count == 1).await;
    assert_eq!(stats(&client, "s").await.total_in_flight_messages, 0);
}

#[tokio::test]
async fn errors_are_those_that_clients_tell_apart() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let options = from_start();
    let again = client.update_persistent_subscription("s", "g", &options).await;
    assert!(matches!(again, Err(Error::ResourceNotFound)), "{again:?}");
    create(&client, "s", &options.clone().max_subscriber_count(1)).await;
    let twice = client.create_persistent_subscription("s", "g", &options).await;
    assert!(matches!(twice, Err(Error::ResourceAlreadyExists)), "{twice:?}");
    let small = options.clone().history_buffer_size(10).read_batch_size(20);
    let failed = client.create_persistent_subscription("s", "other", &small).await;
    assert!(matches!(failed, Err(Error::ServerError(_))), "{failed:?}");
    let mut one = consume(&client, "s", 1).await;
    let two = client
        .subscribe_to_persistent_subscription("s", "g", &SubscribeToPersistentSubscriptionOptions::default())
        .await;
    assert!(matches!(&two, Err(Error::Grpc { message, .. }) if message.starts_with("Maximum")));
    let list = ListPersistentSubscriptionsOptions::default();
    let unknown = client.list_persistent_subscriptions_for_stream("never", &list).await;
    assert!(matches!(unknown, Err(Error::ResourceNotFound)), "{unknown:?}");
    client
        .delete_persistent_subscription("s", "g", &DeletePersistentSubscriptionOptions::default())
        .await
        .unwrap();
    let end = tokio::time::timeout(PATIENCE, one.next()).await.unwrap();
    assert!(matches!(end, Err(Error::IllegalStateError(_))));
    let none = client.list_persistent_subscriptions_for_stream("s", &list).await;
    assert_eq!(none.unwrap().len(), 0);
}

#[tokio::test]
async fn groups_are_listed_as_they_were_made() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    for (stream, group) in [("t", "aa"), ("s", "zz"), ("s", "mm"), ("s", "aa")] {
        client
            .create_persistent_subscription(stream, group, &from_start())
            .await
            .unwrap();
    }
    client
        .update_persistent_subscription("s", "zz", &from_start().max_retry_count(7))
        .await
        .unwrap();
    let options = ListPersistentSubscriptionsOptions::default();
    for _ in 0..2 {
        let listed = client.list_persistent_subscriptions_for_stream("s", &options).await;
        let names: Vec<String> = listed.unwrap().into_iter().map(|info| info.group_name).collect();
        assert_eq!(names, ["zz", "mm", "aa"]);
        let all = client.list_all_persistent_subscriptions(&options).await.unwrap();
        let names: Vec<(&str, &str)> = all
            .iter()
            .map(|info| (&*info.event_source, &*info.group_name))
            .collect();
        assert_eq!(names, [("s", "zz"), ("s", "mm"), ("s", "aa"), ("t", "aa")]);
        server.restart_groups().await;
    }
}

/// What the server said that has no error of its own.
fn told<T: std::fmt::Debug>(answer: eventstore::Result<T>) -> String {
    match answer.unwrap_err() {
        Error::ServerError(said) => said,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn all_is_no_stream_and_neither_is_no_name() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let on_all = PersistentSubscriptionToAllOptions::default().start_from(StreamPosition::Start);
    client
        .create_persistent_subscription_to_all("g", &on_all)
        .await
        .unwrap();
    let gone = DeletePersistentSubscriptionOptions::default();
    for (stream, [created, updated, deleted]) in [
        ("$all", ["received Create", "received Update", "received Delete"]),
        ("", ["Bad stream name."; 3]),
    ] {
        let create = client.create_persistent_subscription(stream, "g", &from_start()).await;
        assert!(told(create).contains(created));
        let update = client.update_persistent_subscription(stream, "g", &from_start()).await;
        assert!(told(update).contains(updated));
        let delete = client.delete_persistent_subscription(stream, "g", &gone).await;
        assert!(told(delete).contains(deleted));
    }
    let info = group_info_of_all(&client).await;
    assert_eq!(info.settings.unwrap().checkpoint_lower_bound, 10);
}

#[tokio::test]
async fn a_start_on_all_has_to_be_there() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    for (commit, prepare, expected) in [
        (
            1 << 40,
            1 << 40,
            "must be less than or equal to the last commit position",
        ),
        (1, 5, "Exception was thrown by handler."),
    ] {
        let start = StreamPosition::Position(Position { commit, prepare });
        let options = PersistentSubscriptionToAllOptions::default().start_from(start);
        let created = client.create_persistent_subscription_to_all("g", &options).await;
        assert!(told(created).contains(expected));
    }
}

#[tokio::test]
async fn an_update_drops_consumers_and_goes_on_at_the_checkpoint() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    create(&client, "s", &from_start()).await;
    append(&client, "s", 3).await;
    let mut consumer = consume(&client, "s", 10).await;
    take_and_ack(&mut consumer, 2).await;
    until(&client, "s", |stats| stats.last_checkpointed_event_revision == Some(1)).await;
    let changed = from_start().message_timeout(Duration::from_secs(5));
    client.update_persistent_subscription("s", "g", &changed).await.unwrap();
    let ended = async { while consumer.next().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    let mut consumer = consume(&client, "s", 10).await;
    assert_eq!(take_and_ack(&mut consumer, 1).await, [(2, 0)]);
}

/// Parks the next so many.
async fn take_and_park(from: &mut PersistentSubscription, count: usize) {
    for _ in 0..count {
        let (event, _) = next(from).await;
        from.nack(event, NakAction::Park, "poison").await.unwrap();
    }
}

#[tokio::test]
async fn without_a_checkpoint_what_is_parked_is_forgotten_until_more_is() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let never = from_start().checkpoint_lower_bound(100).checkpoint_upper_bound(1_000);
    create(&client, "s", &never).await;
    append(&client, "s", 3).await;
    let mut consumer = consume(&client, "s", 10).await;
    take_and_park(&mut consumer, 3).await;
    until(&client, "s", |stats| stats.parked_message_count == 3).await;
    client.update_persistent_subscription("s", "g", &never).await.unwrap();
    assert_eq!(stats(&client, "s").await.parked_message_count, 0);
    server.restart_groups().await;
    assert_eq!(stats(&client, "s").await.parked_message_count, 0);
    let mut consumer = consume(&client, "s", 10).await;
    take_and_park(&mut consumer, 1).await;
    until(&client, "s", |stats| stats.parked_message_count == 4).await;
}

#[tokio::test]
async fn a_group_made_again_counts_what_its_namesake_parked() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    for parked in [1, 2] {
        create(&client, "s", &from_start()).await;
        let mut consumer = consume(&client, "s", 10).await;
        take_and_park(&mut consumer, 1).await;
        until(&client, "s", |stats| stats.parked_message_count == parked).await;
        client
            .delete_persistent_subscription("s", "g", &DeletePersistentSubscriptionOptions::default())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn deleting_forgets_the_checkpoint() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    create(&client, "s", &from_start()).await;
    append(&client, "s", 3).await;
    let mut consumer = consume(&client, "s", 10).await;
    take_and_ack(&mut consumer, 3).await;
    until(&client, "s", |stats| stats.last_checkpointed_event_revision == Some(2)).await;
    client
        .delete_persistent_subscription("s", "g", &DeletePersistentSubscriptionOptions::default())
        .await
        .unwrap();
    create(&client, "s", &from_start()).await;
    let mut consumer = consume(&client, "s", 10).await;
    assert_eq!(take_and_ack(&mut consumer, 3).await, [(0, 0), (1, 0), (2, 0)]);
    until(&client, "s", |stats| stats.last_checkpointed_event_revision == Some(2)).await;
}

#[tokio::test]
async fn what_is_filtered_out_of_all_moves_the_checkpoint_only_when_nothing_waits() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let filter = SubscriptionFilter::on_stream_name().add_prefix("mine-");
    let options = PersistentSubscriptionToAllOptions::default()
        .start_from(StreamPosition::Start)
        .checkpoint_after(Duration::from_millis(200))
        .checkpoint_lower_bound(1)
        .filter(filter);
    client
        .create_persistent_subscription_to_all("g", &options)
        .await
        .unwrap();
    append(&client, "mine-1", 3).await;
    append(&client, "other-1", 3_000).await;
    // A younger group's second time-out says that this one had a look at its checkpoint since.
    let clock = from_start().message_timeout(Duration::ZERO);
    create(&client, "other-1", &clock).await;
    let mut watch = consume(&client, "other-1", 1).await;
    while next(&mut watch).await.1 < 2 {}
    let before = stats_of_all(&client).await;
    assert!(before.last_checkpointed_position < before.last_known_position);
    assert_eq!(before.read_buffer_count, 3);
    server.restart_groups().await;
    let mut consumer = client
        .subscribe_to_persistent_subscription_to_all("g", &SubscribeToPersistentSubscriptionOptions::default())
        .await
        .unwrap();
    let seen = take_and_ack(&mut consumer, 3).await;
    assert_eq!(seen, [(0, 0), (1, 0), (2, 0)]);
    let moved = async {
        loop {
            let stats = stats_of_all(&client).await;
            if stats.last_checkpointed_position > stats.last_known_position {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.unwrap();
}

#[tokio::test]
async fn a_filter_looks_at_what_a_live_link_points_at() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let filter = SubscriptionFilter::on_stream_name().add_prefix("mine-");
    let options = PersistentSubscriptionToAllOptions::default()
        .start_from(StreamPosition::Start)
        .resolve_link_tos(true)
        .filter(filter);
    append(&client, "mine-1", 1).await;
    client
        .create_persistent_subscription_to_all("g", &options)
        .await
        .unwrap();
    let options = SubscribeToPersistentSubscriptionOptions::default();
    let mut consumer = client
        .subscribe_to_persistent_subscription_to_all("g", &options)
        .await
        .unwrap();
    let live = async {
        while group_info_of_all(&client).await.status != "Live" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, live).await.unwrap();
    append(&client, "other-1", 1).await;
    append(&client, "mine-2", 1).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (event, _) = next(&mut consumer).await;
        let link = event.link.as_ref().map(|link| link.stream_id.clone());
        seen.push((event.event.as_ref().unwrap().stream_id.clone(), link));
        consumer.ack(event).await.unwrap();
    }
    let came = |stream: &str, link: Option<&str>| (stream.to_owned(), link.map(str::to_owned));
    let expected = [
        came("mine-1", None),
        came("mine-2", None),
        came("mine-2", Some("$ce-mine")),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn an_id_that_comes_twice_costs_no_slot() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    let options = PersistentSubscriptionToAllOptions::default().start_from(StreamPosition::Start);
    let filter = SubscriptionFilter::on_stream_name().add_prefix("twin-");
    client
        .create_persistent_subscription_to_all("g", &options.filter(filter))
        .await
        .unwrap();
    for _ in 0..9 {
        let id = uuid::Uuid::new_v4();
        for stream in ["twin-a", "twin-b"] {
            let twin = event(0).id(id);
            write(&client, stream, ExpectedRevision::Any, vec![twin]).await.unwrap();
        }
    }
    let options = SubscribeToPersistentSubscriptionOptions::default().buffer_size(5);
    let mut consumer = client
        .subscribe_to_persistent_subscription_to_all("g", &options)
        .await
        .unwrap();
    assert_eq!(take_and_ack(&mut consumer, 18).await.len(), 18);
}

#[tokio::test]
async fn a_group_that_is_behind_knows_of_what_it_has_not_read() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 600).await;
    create(&client, "s", &from_start()).await;
    let filter = SubscriptionFilter::on_stream_name().add_prefix("s");
    let on_all = PersistentSubscriptionToAllOptions::default().start_from(StreamPosition::Start);
    client
        .create_persistent_subscription_to_all("g", &on_all.filter(filter))
        .await
        .unwrap();
    until(&client, "s", |stats| stats.read_buffer_count == 480).await;
    let before = stats(&client, "s").await;
    assert_eq!(
        (before.last_known_event_revision, before.live_buffer_count),
        (Some(479), 0)
    );
    let before = stats_of_all(&client).await;
    append(&client, "s", 1).await;
    let after = stats(&client, "s").await;
    assert_eq!(
        (after.last_known_event_revision, after.live_buffer_count),
        (Some(600), 1)
    );
    assert_eq!(after.read_buffer_count, 480);
    append(&client, "other", 1).await;
    let after = stats_of_all(&client).await;
    assert!(after.last_known_position > before.last_known_position);
    assert_eq!((before.live_buffer_count, after.live_buffer_count), (0, 1));
    // More at once than the buffer takes.
    let small = from_start()
        .history_buffer_size(30)
        .live_buffer_size(20)
        .read_batch_size(5);
    create(&client, "t", &small).await;
    append(&client, "t", 40).await;
    until(&client, "t", |stats| stats.read_buffer_count == 30).await;
    let full = stats(&client, "t").await;
    assert_eq!((full.last_known_event_revision, full.live_buffer_count), (Some(39), 20));
}

#[tokio::test]
async fn a_live_group_delivers_what_waits_and_then_the_tombstone() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 3).await;
    create(&client, "s", &from_start()).await;
    let mut consumer = consume(&client, "s", 1).await;
    let (first, _) = next(&mut consumer).await;
    client
        .tombstone_stream("s", &TombstoneStreamOptions::default())
        .await
        .unwrap();
    consumer.ack(first).await.unwrap();
    assert_eq!(take_and_ack(&mut consumer, 2).await, [(1, 0), (2, 0)]);
    let (tombstone, _) = next(&mut consumer).await;
    let last = i64::MAX as u64;
    assert_eq!(
        (revision(&tombstone), &*tombstone.get_original_event().event_type),
        (last, "$streamDeleted")
    );
    consumer.ack(tombstone).await.unwrap();
    until(&client, "s", |stats| {
        stats.last_checkpointed_event_revision == Some(last)
    })
    .await;
    let info = group_info(&client, "s").await;
    assert_eq!((&*info.status, info.connections.len()), ("Live", 1));
    // What is read again is not live.
    server.restart_groups().await;
    let info = group_info(&client, "s").await;
    assert_eq!(info.status, "Behind, OutstandingPageRequest");
}

#[tokio::test]
async fn a_group_at_the_end_of_a_tombstoned_stream_waits() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    client
        .tombstone_stream("s", &TombstoneStreamOptions::default())
        .await
        .unwrap();
    create(&client, "s", &from_start().start_from(StreamPosition::End)).await;
    let _consumer = consume(&client, "s", 1).await;
    let live = async {
        while group_info(&client, "s").await.status != "Live" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, live).await.unwrap();
    let info = group_info(&client, "s").await;
    assert_eq!(info.connections.len(), 1);
    assert_eq!(info.connections[0].username, "system");
    assert_eq!(info.stats.total_items, 0);
}

#[tokio::test]
async fn a_tombstone_faults_the_group() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    create(&client, "s", &from_start()).await;
    client
        .tombstone_stream("s", &TombstoneStreamOptions::default())
        .await
        .unwrap();
    server.restart_groups().await;
    for _ in 0..2 {
        let mut consumer = consume(&client, "s", 1).await;
        let end = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap();
        assert!(matches!(end, Err(Error::IllegalStateError(_))));
    }
    let info = group_info(&client, "s").await;
    assert_eq!(info.status, "Behind, OutstandingPageRequest");
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_so() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    create(&client, "s", &from_start()).await;
    server.faults().not_ready_for(PATIENCE);
    let made = client.create_persistent_subscription("s", "h", &from_start()).await;
    assert!(
        matches!(&made, Err(Error::ServerError(said)) if said.contains("Not Ready")),
        "{made:?}"
    );
    server.faults().not_ready_for(Duration::ZERO);
    client
        .create_persistent_subscription("s", "h", &from_start())
        .await
        .unwrap();
}

#[tokio::test]
async fn many_consumers_share_a_backlog_and_nothing_is_left() {
    let server = empty().await;
    let client = client_of(&server.connection_string());
    for stream in 0..20 {
        append(&client, &format!("loan-{stream}"), 100).await;
    }
    let options = from_start().resolve_link_tos(true).checkpoint_upper_bound(1_000);
    create(&client, "$ce-loan", &options).await;
    let mut workers = Vec::new();
    for _ in 0..3 {
        let mut consumer = consume(&client, "$ce-loan", 50).await;
        workers.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Ok(Ok(event)) = tokio::time::timeout(PATIENCE, consumer.next()).await {
                seen.push(revision(&event));
                consumer.ack(event).await.unwrap();
            }
            seen
        }));
    }
    until(&client, "$ce-loan", |stats| {
        stats.last_checkpointed_event_revision == Some(1_999)
    })
    .await;
    client
        .delete_persistent_subscription("$ce-loan", "g", &DeletePersistentSubscriptionOptions::default())
        .await
        .unwrap();
    let mut all = Vec::new();
    for worker in workers {
        let seen = worker.await.unwrap();
        assert!(!seen.is_empty());
        all.extend(seen);
    }
    all.sort_unstable();
    assert_eq!(all, (0..2_000).collect::<Vec<u64>>());
}
