//! Stores that become unavailable and come back: nothing is parked, nothing is lost, nobody is asked.

use eventstore::{AppendToStreamOptions, EventData, ExpectedRevision};
use projector::config::{self, Size};
use serde_json::json;
use uuid::Uuid;

use super::world::{Old, World};
use crate::support::{node::until, proxy::Fault};

#[tokio::test(flavor = "multi_thread")]
async fn eventstoredb_away_at_start_and_in_the_middle() {
    let mut world = World::start().await;
    world.pay("account-1", 3).await;
    world.stop_events().await;

    let daemon = world.daemon::<Old>("a").await;
    until("it is unready and says why", async || {
        let (code, text) = daemon.page("/readyz").await;
        code == 503 && text.contains("EventStoreDB")
    })
    .await;
    assert_eq!(
        daemon.page("/livez").await.0,
        200,
        "an unavailable store is no reason to be killed"
    );
    world.start_events().await;
    daemon.caught_up().await;
    until("it is ready", async || daemon.ready().await).await;
    assert_eq!(world.state("account-1").await.unwrap()["balance"], json!(3));

    world.stop_events().await;
    until("it is unready", async || !daemon.ready().await).await;
    assert_eq!(daemon.page("/livez").await.0, 200);
    world.start_events().await;
    world.pay("account-1", 2).await;
    world.pay("account-2", 1).await;
    until("what came afterwards is there", async || {
        let two = world.state("account-2").await;
        world.state("account-1").await.unwrap()["balance"] == json!(5) && two.is_some()
    })
    .await;
    daemon.caught_up().await;
    until("it is ready again", async || daemon.ready().await).await;
    assert_eq!(daemon.status().await["group"]["parked"], json!(0));
    assert!(daemon.metric("projector_subscription_reconnects_total").await > 0.0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_away_at_start_and_in_the_middle() {
    let world = World::start().await;
    world.pay("account-1", 3).await;
    let away = |times| {
        for operation in [
            "DescribeTable",
            "CreateTable",
            "GetItem",
            "BatchGetItem",
            "PutItem",
            "UpdateItem",
        ] {
            world.proxy.inject(operation, times, Fault::LoseRequest);
        }
    };
    away(usize::MAX);

    let daemon = world.daemon::<Old>("a").await;
    until("it is unready and says why", async || {
        let (code, text) = daemon.page("/readyz").await;
        code == 503 && text.contains("DynamoDB")
    })
    .await;
    assert_eq!(daemon.page("/livez").await.0, 200);
    world.proxy.disarm();
    daemon.caught_up().await;
    assert_eq!(world.state("account-1").await.unwrap()["balance"], json!(3));
    until("it is ready", async || daemon.ready().await).await;

    away(usize::MAX);
    world.pay("account-1", 2).await;
    until("it is unready", async || !daemon.ready().await).await;
    assert_eq!(daemon.page("/livez").await.0, 200);
    world.proxy.disarm();
    until("what was held is written", async || {
        world.state("account-1").await.unwrap()["balance"] == json!(5)
    })
    .await;
    daemon.caught_up().await;
    let status = daemon.status().await;
    assert_eq!(status["group"]["parked"], json!(0));
    assert_eq!(status["quarantined"], json!([]));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_acknowledgements_leave_before_the_process_does() {
    let world = std::sync::Arc::new(World::start().await);
    for round in 0..5 {
        // A process of its own, as far as can be: its runtime ends the moment that it has stopped.
        let theirs = world.clone();
        let process = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let daemon = theirs.daemon::<Old>("a").await;
                theirs.pay("account-1", 50).await;
                until("the last is durable", async || {
                    let state = theirs.state("account-1").await;
                    state.is_some_and(|state| state["balance"] == json!(50 * (round + 1)))
                })
                .await;
                daemon.stop().await;
            });
            runtime.shutdown_background();
        });
        tokio::task::spawn_blocking(|| process.join().unwrap()).await.unwrap();
        let client = world.client();
        until("nothing of it is delivered again", async || {
            let info = client
                .get_persistent_subscription_info(
                    "$ce-account",
                    "projector-account-s1",
                    &eventstore::GetPersistentSubscriptionInfoOptions::default(),
                )
                .await
                .unwrap();
            info.stats.total_in_flight_messages + info.stats.read_buffer_count + info.stats.retry_buffer_count == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_and_replies_lost_change_nothing() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    world.proxy.inject("PutItem", 5, Fault::LoseReply);
    for round in 0..5 {
        for stream in 0..10 {
            world.pay(&format!("account-{stream}"), 2).await;
        }
        world.events().faults().cut_connections();
        world.pay(&format!("account-{round}"), 1).await;
    }
    daemon.caught_up().await;
    for stream in 0..10 {
        let stream = format!("account-{stream}");
        let (balance, events) = world.readable(&stream).await;
        assert_eq!(
            world.state(&stream).await.unwrap(),
            json!({ "balance": balance, "events": events, "frozen": false }),
            "{stream}"
        );
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_out_of_order_and_twice_change_nothing() {
    use projector::embedded::eventstore::Disturbance;
    let world = World::start().await;
    for stream in 0..20 {
        world.pay(&format!("account-{stream}"), 30).await;
    }
    world.events().faults().disturb_deliveries(Some(Disturbance {
        reorder: true,
        twice: true,
        seed: 7,
    }));
    let one = world.daemon::<Old>("a").await;
    let two = world.daemon::<Old>("a").await;
    for stream in 0..20 {
        world.pay(&format!("account-{stream}"), 5).await;
    }
    one.caught_up().await;
    two.caught_up().await;
    for stream in 0..20 {
        let state = world.state(&format!("account-{stream}")).await.unwrap();
        assert_eq!(state, json!({ "balance": 35, "events": 35, "frozen": false }));
    }
    one.stop().await;
    two.stop().await;
}

/// An event id may stand in two streams, and twice in one: while the first was held, the second was
/// taken for it come again, and its stream stayed behind with a lag of zero.
#[tokio::test(flavor = "multi_thread")]
async fn events_with_one_id_are_projected_each() {
    for (source, placed) in [
        ("all:stream-prefix:account-", [("account-1", 0), ("account-2", 0)]),
        ("stream:account-1", [("account-1", 0), ("account-1", 1)]),
    ] {
        let world = World::start().await;
        let daemon = world
            .daemon_with::<Old>("a", |settings| {
                let own = config::ProjectionSection {
                    source: Some(source.to_owned()),
                    ..config::ProjectionSection::default()
                };
                settings.projection.insert("account".to_owned(), own);
            })
            .await;
        daemon.caught_up().await;
        world.proxy.inject("PutItem", usize::MAX, Fault::LoseRequest);
        let id = Uuid::new_v4();
        for (number, (stream, revision)) in (1..).zip(placed) {
            let event = EventData::json("Paid", &json!({ "amount": 1 })).unwrap().id(id);
            let expected = match revision {
                0 => ExpectedRevision::NoStream,
                after => ExpectedRevision::Exact(after - 1),
            };
            let options = AppendToStreamOptions::default().expected_revision(expected);
            world.client().append_to_stream(stream, &options, event).await.unwrap();
            until("it is delivered, and held", async || {
                daemon.metric("projector_held_deliveries").await >= f64::from(number)
            })
            .await;
        }
        world.proxy.disarm();
        daemon.caught_up().await;
        for (stream, revision) in placed {
            let version = world.replica(stream).await.unwrap().header.version;
            assert!(version >= Some(revision), "{source}: {stream} is at {version:?}");
        }
        until("the group has an answer for each", async || {
            daemon.metric("projector_group_in_flight_messages").await == 0.0
        })
        .await;
        daemon.stop().await;
    }
}

/// Deliveries of any size used to be taken up to their number alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_store_is_bounded_in_bytes() {
    const MIB: u64 = 1 << 20;
    let world = World::start().await;
    let daemon = world
        .daemon_with::<Old>("a", |settings| {
            settings.defaults.memory = Size(2 * MIB);
            settings.defaults.read_bytes = Size(MIB);
        })
        .await;
    daemon.caught_up().await;
    world.proxy.inject("PutItem", usize::MAX, Fault::LoseRequest);
    let large = json!({ "amount": 1, "note": "x".repeat(100_000) });
    for stream in 0..40 {
        let events = vec![("Paid", large.clone()); 5];
        world.append(&format!("account-{stream}"), &events).await;
    }
    until("as much is held as may be", async || {
        daemon.metric("projector_memory_bytes").await >= 1.9 * MIB as f64
    })
    .await;
    for _ in 0..20 {
        // One delivery, and what it makes of its state, may come on top.
        let held = daemon.metric("projector_memory_bytes").await;
        assert!(held <= 2.3 * MIB as f64, "{held}");
        assert!(daemon.metric("projector_held_deliveries").await <= 25.0);
    }
    world.proxy.disarm();
    daemon.caught_up().await;
    for stream in 0..40 {
        assert_eq!(
            world.state(&format!("account-{stream}")).await.unwrap()["balance"],
            json!(5)
        );
    }
    daemon.stop().await;
}
