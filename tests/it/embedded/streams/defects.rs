//! Defects of the real server that lose or hold back events, each switched off, as it is unless a test
//! says otherwise, and switched on: what is right must differ from what is reproduced.

use std::time::Duration;

use eventstore::{
    Client, PersistentSubscriptionOptions, PersistentSubscriptionToAllOptions, StreamPosition,
    SubscribeToPersistentSubscriptionOptions, SubscriptionFilter, SystemConsumerStrategy,
};
use projector::embedded::eventstore::{Defects, Handle, Options};

use crate::support::{
    eventstore::{append, client_of, start},
    group::{consume, next, revision, stats, stats_of_all},
    node::until,
};

async fn with(defects: Defects) -> (Handle, Client) {
    let server = start(Options {
        defects,
        ..Options::default()
    })
    .await;
    let client = client_of(&server.connection_string());
    (server, client)
}

/// A consumer that acks nothing gets everything that it has room for; on the real server only what
/// was read at first (the read buffer less one batch), and then the same again.
#[tokio::test]
async fn a_consumer_that_never_acks_stalls_only_when_it_is_asked_for() {
    const ALL: u64 = 1_200;
    const READ_AT_FIRST: u64 = 480;
    let (_server, client) = with(Defects::default()).await;
    append(&client, "s", ALL as usize).await;
    let options = PersistentSubscriptionOptions::default().start_from(StreamPosition::Start);
    client.create_persistent_subscription("s", "g", &options).await.unwrap();
    let mut consumer = consume(&client, "s", 2_000).await;
    for n in 0..ALL {
        let (event, retries) = next(&mut consumer).await;
        assert_eq!((revision(&event), retries), (n, 0));
    }

    let (_server, client) = with(Defects {
        stall_without_acks: true,
        ..Defects::default()
    })
    .await;
    append(&client, "s", ALL as usize).await;
    // What times out comes again, which nothing that was read before it could follow.
    let options = options.message_timeout(Duration::from_secs(2)).max_retry_count(1_000);
    client.create_persistent_subscription("s", "g", &options).await.unwrap();
    let mut consumer = consume(&client, "s", 2_000).await;
    for n in 0..READ_AT_FIRST {
        let (event, retries) = next(&mut consumer).await;
        assert_eq!((revision(&event), retries), (n, 0));
    }
    let (event, retries) = next(&mut consumer).await;
    assert_eq!((revision(&event), retries), (0, 1));
    // An ack, and it goes on.
    consumer.ack(event).await.unwrap();
    let mut reached = READ_AT_FIRST;
    while reached < ALL {
        let (event, _) = next(&mut consumer).await;
        reached = reached.max(revision(&event) + 1);
        consumer.ack(event).await.unwrap();
    }
}

/// A filtered `$all` group without a consumer: ten events for it, then many for others. Its
/// checkpoint stays before the ten; on the real server it passes them, and a restart loses them.
#[tokio::test]
async fn waiting_events_of_a_filtered_group_are_lost_only_when_it_is_asked_for() {
    let lossy = Defects {
        filtered_checkpoint: true,
        ..Defects::default()
    };
    let mut servers = Vec::new();
    // The right one first: its group has ticked as often as the other's when that one's shows.
    for defects in [Defects::default(), lossy] {
        let (server, client) = with(defects).await;
        let options = PersistentSubscriptionToAllOptions::default()
            .start_from(StreamPosition::Start)
            .filter(SubscriptionFilter::on_stream_name().add_prefix("mine-"))
            .checkpoint_after(Duration::from_millis(200))
            .checkpoint_lower_bound(1);
        client
            .create_persistent_subscription_to_all("g", &options)
            .await
            .unwrap();
        append(&client, "mine-1", 10).await;
        append(&client, "other-1", 1_500).await;
        until("the ten wait", async || {
            stats_of_all(&client).await.read_buffer_count == 10
        })
        .await;
        servers.push((server, client));
    }
    let last_of_mine = stats_of_all(&servers[1].1).await.last_known_position.unwrap();
    until("the checkpoint passes what waits", async || {
        let checkpoint = stats_of_all(&servers[1].1).await.last_checkpointed_position;
        checkpoint.is_some_and(|checkpoint| checkpoint > last_of_mine)
    })
    .await;
    assert_eq!(stats_of_all(&servers[0].1).await.last_checkpointed_position, None);

    for ((server, client), expected) in servers.iter().zip([10, 0]) {
        server.restart_groups().await;
        append(client, "mine-2", 1).await;
        let options = SubscribeToPersistentSubscriptionOptions::default().buffer_size(100);
        let mut consumer = client
            .subscribe_to_persistent_subscription_to_all("g", &options)
            .await
            .unwrap();
        for n in 0..expected {
            let (event, _) = next(&mut consumer).await;
            let original = event.get_original_event();
            assert_eq!((&*original.stream_id, original.revision), ("mine-1", n));
        }
        let (event, _) = next(&mut consumer).await;
        assert_eq!(event.get_original_event().stream_id, "mine-2");
    }
}

/// Pinned: the event that waits for a full consumer holds the checkpoint back; on the real server
/// the checkpoint passes it, and a restart loses it.
#[tokio::test]
async fn what_waits_for_a_full_pinned_consumer_is_lost_only_when_it_is_asked_for() {
    let lossy = Defects {
        pinned_checkpoint: true,
        ..Defects::default()
    };
    for (defects, checkpoint, again) in [(Defects::default(), 1, vec![2, 3, 4]), (lossy, 3, vec![4])] {
        let (server, client) = with(defects).await;
        let options = PersistentSubscriptionOptions::default()
            .start_from(StreamPosition::Start)
            .resolve_link_tos(true)
            .consumer_strategy_name(SystemConsumerStrategy::Pinned)
            .checkpoint_upper_bound(1);
        client
            .create_persistent_subscription("$ce-pin", "g", &options)
            .await
            .unwrap();
        // Streams go to the two in turn; the first has room for one event.
        let mut narrow = consume(&client, "$ce-pin", 1).await;
        let mut wide = consume(&client, "$ce-pin", 10).await;
        for stream in ["pin-0", "pin-1", "pin-2", "pin-3"] {
            append(&client, stream, 1).await;
        }
        let (first, _) = next(&mut narrow).await;
        assert_eq!(revision(&first), 0);
        for expected in [1, 3] {
            let (event, _) = next(&mut wide).await;
            assert_eq!(revision(&event), expected);
            wide.ack(event).await.unwrap();
        }
        until("only the first is in flight", async || {
            stats(&client, "$ce-pin").await.total_in_flight_messages == 1
        })
        .await;
        narrow.ack(first).await.unwrap();
        let (waited, _) = next(&mut narrow).await;
        assert_eq!(revision(&waited), 2);
        until("the checkpoint moves", async || {
            stats(&client, "$ce-pin").await.last_checkpointed_event_revision == Some(checkpoint)
        })
        .await;

        server.restart_groups().await;
        append(&client, "pin-4", 1).await;
        let mut consumer = consume(&client, "$ce-pin", 10).await;
        for expected in again {
            let (event, _) = next(&mut consumer).await;
            assert_eq!(revision(&event), expected);
        }
    }
}
