//! Code that cannot fold an event, and code that can: beside it, after it, and in another schema.

use projector::replica::ReplicaStore as _;
use serde_json::json;

use super::world::{New, Next, Old, World, state};
use crate::support::node::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_stops_its_own_stream_until_code_can_fold_it() {
    let world = World::start().await;
    let old = world.daemon::<Old>("old").await;
    world.pay("account-1", 2).await;
    world.append("account-1", &[("Frozen", json!({}))]).await;
    world.pay("account-1", 1).await;
    world.pay("account-2", 4).await;

    until("its stream is quarantined, with the reason", async || {
        let replica = world.replica("account-1").await;
        replica.is_some_and(|replica| {
            replica.header.version == Some(1)
                && replica
                    .header
                    .quarantine
                    .is_some_and(|mark| mark.at == 2 && mark.reason.contains("Frozen"))
        })
    })
    .await;
    until("every other stream goes on", async || {
        world
            .state("account-2")
            .await
            .is_some_and(|state| state["balance"] == json!(4))
    })
    .await;
    until("it is in status and metrics", async || {
        let status = old.status().await;
        status["quarantined"].to_string().contains("account-1")
            && (old.metric("projector_quarantined_aggregates").await - 1.0).abs() < 0.1
    })
    .await;
    old.caught_up().await;
    old.stop().await;

    // Another build tries it again by itself, without an operator.
    let new = world.daemon::<New>("new").await;
    until("new code folds it", async || {
        world
            .state("account-1")
            .await
            .is_some_and(|state| state == json!({ "balance": 3, "events": 4, "frozen": true }))
    })
    .await;
    until("no mark is left", async || {
        world.replica("account-1").await.unwrap().header.quarantine.is_none()
            && new.metric("projector_quarantined_aggregates").await < 0.1
    })
    .await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_code_side_by_side_leave_no_mark() {
    let world = World::start().await;
    let old = world.daemon::<Old>("old").await;
    let new = world.daemon::<New>("new").await;
    for round in 0..3 {
        for stream in 0..8 {
            let stream = format!("account-{stream}");
            world.pay(&stream, 2).await;
            if round == 1 {
                world.append(&stream, &[("Frozen", json!({}))]).await;
            }
        }
    }
    // The deployment ends: the old task is stopped.
    old.stop().await;
    until("all are right, and none is marked", async || {
        for stream in 0..8 {
            let Some(replica) = world.replica(&format!("account-{stream}")).await else {
                return false;
            };
            if replica.header.quarantine.is_some()
                || state(replica) != Some(json!({ "balance": 6, "events": 7, "frozen": true }))
            {
                return false;
            }
        }
        true
    })
    .await;
    new.caught_up().await;
    until("no note of a mark is left", async || {
        world.table(1).await.marks().await.unwrap().is_empty()
    })
    .await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_raised_and_rolled_back() {
    let world = World::start().await;
    world.pay("account-1", 3).await;
    let one = world.daemon::<New>("1").await;
    one.caught_up().await;
    let two = world.daemon::<Next>("2").await;
    world.pay("account-1", 1).await;
    world.append("account-1", &[("Frozen", json!({}))]).await;
    one.caught_up().await;
    two.caught_up().await;
    let raised = async || state(world.table(2).await.get("account-1", true).await.unwrap().unwrap());
    assert_eq!(
        world.state("account-1").await.unwrap(),
        json!({ "balance": 4, "events": 5, "frozen": true })
    );
    assert_eq!(raised().await, Some(json!({ "cents": 400 })));

    // Rolled back: the old one goes on from where it was, the new one's replicas stay as they are.
    two.stop().await;
    world.pay("account-1", 2).await;
    one.caught_up().await;
    assert_eq!(world.state("account-1").await.unwrap()["balance"], json!(6));
    assert_eq!(raised().await, Some(json!({ "cents": 400 })));

    // And forward again: it catches up from its own checkpoint.
    let two = world.daemon::<Next>("2").await;
    until("the new schema has caught up", async || {
        raised().await == Some(json!({ "cents": 600 }))
    })
    .await;
    one.stop().await;
    two.stop().await;
}
