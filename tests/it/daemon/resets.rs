//! A store that lost what it had: said, or made good, never silently wrong.

use serde_json::json;

use super::world::{Old, World, state};
use crate::support::node::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_emptied_is_filled_by_what_moves() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    for stream in 0..5 {
        world.pay(&format!("account-{stream}"), 3).await;
    }
    daemon.caught_up().await;
    let client = world.dynamo.client().await;
    let table = format!("{}account-s1", world.dynamo.prefix);
    for stream in 0..5 {
        let key = aws_sdk_dynamodb::types::AttributeValue::S(format!("account-{stream}"));
        client
            .delete_item()
            .table_name(&table)
            .key("pk", key)
            .send()
            .await
            .unwrap();
    }
    // The daemon has the replicas in its cache; the put that is refused tells it that they are gone.
    for stream in 0..5 {
        world.pay(&format!("account-{stream}"), 1).await;
    }
    until("every stream that moved is whole again", async || {
        for stream in 0..5 {
            let Some(replica) = world.replica(&format!("account-{stream}")).await else {
                return false;
            };
            if state(replica) != Some(json!({ "balance": 4, "events": 4, "frozen": false })) {
                return false;
            }
        }
        true
    })
    .await;
    daemon.caught_up().await;
    daemon.stop().await;
}

/// Nothing moves afterwards, and the group's checkpoint says that all is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_lost_is_filled_again_at_the_next_start() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    for stream in 0..5 {
        world.pay(&format!("account-{stream}"), 3).await;
    }
    daemon.caught_up().await;
    daemon.stop().await;
    let table = format!("{}account-s1", world.dynamo.prefix);
    world
        .dynamo
        .client()
        .await
        .delete_table()
        .table_name(table)
        .send()
        .await
        .unwrap();
    let daemon = world.daemon::<Old>("a").await;
    until("every replica is there again", async || {
        for stream in 0..5 {
            let state = world.state(&format!("account-{stream}")).await;
            if state != Some(json!({ "balance": 3, "events": 3, "frozen": false })) {
                return false;
            }
        }
        true
    })
    .await;
    daemon.caught_up().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eventstoredb_that_was_reset_is_said_to_have_diverged() {
    let mut world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    world.pay("account-same", 3).await;
    world.pay("account-longer", 2).await;
    daemon.caught_up().await;

    world.reset_events().await;
    // As long as before, and longer: other events stand where the replicas' last ones stood.
    world.pay("account-same", 3).await;
    world.pay("account-longer", 4).await;
    world.pay("account-new", 1).await;
    until("both are diverged, and the new one is there", async || {
        let status = daemon.status().await["diverged"].to_string();
        status.contains("account-same")
            && status.contains("account-longer")
            && world.replica("account-new").await.is_some()
    })
    .await;
    let replica = world.replica("account-same").await.unwrap();
    let mark = replica.header.quarantine.clone().unwrap();
    assert!(mark.is_diverged() && mark.reason.contains("rebuild"), "{mark:?}");
    assert_eq!(
        state(replica).unwrap()["balance"],
        json!(3),
        "the old state stays, marked"
    );
    assert!(daemon.metric("projector_diverged_aggregates").await > 1.5);
    daemon.stop().await;
}
