//! Stores that go away and come back: nothing is parked, nothing is lost, nobody is asked.

use serde_json::json;

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
        "a store that is away is no reason to be killed"
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
