//! Marks over deployments: what stood before is not new, what failed everywhere is left alone, and
//! what code cannot read stays as it is.

use aws_sdk_dynamodb::types::AttributeValue;
use projector::replica::ReplicaStore as _;
use serde_json::{Value, json};

use super::world::{New, Old, World, state};
use crate::support::node::until;

async fn freeze(world: &World, streams: std::ops::Range<usize>) {
    for stream in streams {
        let stream = format!("account-{stream}");
        world.pay(&stream, 1).await;
        world.append(&stream, &[("Frozen", json!({}))]).await;
    }
}

async fn marked(world: &World, stream: &str) -> bool {
    let replica = world.replica(stream).await;
    replica.is_some_and(|replica| replica.header.quarantine.is_some())
}

fn table(world: &World) -> String {
    format!("{}account-s1", world.dynamo.prefix)
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

/// Sets or removes an attribute of a replica's item, as a defect or a person might.
async fn change(world: &World, stream: &str, attribute: &str, value: Option<AttributeValue>) {
    let client = world.dynamo.client().await;
    let request = client
        .update_item()
        .table_name(table(world))
        .key("pk", text(stream))
        .expression_attribute_names("#a", attribute);
    let request = match value {
        Some(value) => request
            .update_expression("SET #a = :v")
            .expression_attribute_values(":v", value),
        None => request.update_expression("REMOVE #a"),
    };
    request.send().await.unwrap();
}

/// A replica's item, attribute by attribute.
async fn item(world: &World, stream: &str) -> std::collections::HashMap<String, AttributeValue> {
    let client = world.dynamo.client().await;
    let get = client
        .get_item()
        .table_name(table(world))
        .key("pk", text(stream))
        .consistent_read(true);
    get.send().await.unwrap().item.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_onto_more_marks_than_the_limit_goes_on() {
    let world = World::start().await;
    let first = world.daemon::<Old>("first").await;
    freeze(&world, 0..12).await;
    until("all are marked", async || {
        first.status().await["quarantined"].as_array().map(Vec::len) == Some(12)
    })
    .await;
    first.caught_up().await;
    first.stop().await;

    // Another build that cannot fold them either: all marks are tried, and none of them is new.
    let second = world
        .daemon_with::<Old>("second", |settings| settings.defaults.quarantine_limit = 3)
        .await;
    until("every mark was tried by the new build", async || {
        for stream in 0..12 {
            let mark = world.replica(&format!("account-{stream}")).await;
            let mark = mark.unwrap().header.quarantine.unwrap();
            if !mark.by.to_string().contains("second") {
                return false;
            }
        }
        true
    })
    .await;
    world.pay("account-healthy", 2).await;
    until("a healthy stream is projected", async || {
        world.state("account-healthy").await.is_some()
    })
    .await;
    second.caught_up().await;
    assert_eq!(second.status().await["phase"], json!("running"));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_side_by_side_leave_each_others_marks_alone() {
    let world = World::start().await;
    let one = world.daemon::<Old>("one").await;
    let two = world.daemon::<Old>("two").await;
    freeze(&world, 0..4).await;
    until("both have failed on all of them", async || {
        for stream in 0..4 {
            let Some(replica) = world.replica(&format!("account-{stream}")).await else {
                return false;
            };
            let by = replica.header.quarantine.map(|mark| mark.by.to_string());
            if !by.is_some_and(|by| by.contains("one") && by.contains("two")) {
                return false;
            }
        }
        true
    })
    .await;
    let generations = async || {
        let mut all = Vec::new();
        for stream in 0..4 {
            let replica = world.replica(&format!("account-{stream}")).await.unwrap();
            all.push(replica.header.generation);
        }
        all
    };
    let before = generations().await;
    for _ in 0..5 {
        for stream in 0..4 {
            world.pay(&format!("account-{stream}"), 2).await;
        }
    }
    one.caught_up().await;
    two.caught_up().await;
    assert_eq!(generations().await, before, "nobody wrote a mark again");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_read_outlives_the_loss_of_its_history() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    world.pay("account-1", 6).await;
    daemon.caught_up().await;
    daemon.stop().await;
    let unreadable = AttributeValue::M([("balance".to_owned(), text("six"))].into());
    change(&world, "account-1", "state", Some(unreadable.clone())).await;
    world.truncate("account-1", 4).await;

    let daemon = world.daemon::<Old>("b").await;
    world.pay("account-1", 1).await;
    until("it is marked", async || marked(&world, "account-1").await).await;
    daemon.caught_up().await;
    let replica = world.replica("account-1").await.unwrap();
    assert_eq!((replica.header.version, replica.header.first), (Some(5), 0));
    assert_eq!(item(&world, "account-1").await["state"], unreadable);
    let reason = replica.header.quarantine.unwrap().reason;
    assert!(reason.contains("state") && reason.contains("balance"), "{reason}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_read_outlives_an_early_event_that_does_not_fold() {
    let world = World::start().await;
    let daemon = world.daemon::<New>("new").await;
    world.pay("account-1", 1).await;
    world.append("account-1", &[("Frozen", json!({}))]).await;
    world.pay("account-1", 3).await;
    daemon.caught_up().await;
    daemon.stop().await;
    let unreadable = AttributeValue::M([("balance".to_owned(), text("four"))].into());
    change(&world, "account-1", "state", Some(unreadable.clone())).await;

    let daemon = world.daemon::<Old>("old").await;
    world.pay("account-1", 1).await;
    until("it is marked", async || marked(&world, "account-1").await).await;
    daemon.caught_up().await;
    assert_eq!(world.replica("account-1").await.unwrap().header.version, Some(4));
    assert_eq!(item(&world, "account-1").await["state"], unreadable);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_cannot_be_read_wait_alone() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    for stream in 0..12 {
        world.pay(&format!("account-{stream}"), 2).await;
    }
    daemon.caught_up().await;
    daemon.stop().await;
    let broken: [(&str, Option<AttributeValue>); 6] = [
        ("version", None),
        ("generation", Some(text("many"))),
        ("state", Some(text("lost"))),
        ("event_id", None),
        ("projection", None),
        ("first", Some(text("zero"))),
    ];
    for (stream, (attribute, value)) in broken.iter().enumerate() {
        change(&world, &format!("account-{stream}"), attribute, value.clone()).await;
    }

    let daemon = world.daemon::<Old>("a").await;
    for stream in 0..12 {
        world.pay(&format!("account-{stream}"), 1).await;
    }
    until("the others go on", async || {
        for stream in 6..12 {
            if world.state(&format!("account-{stream}")).await.unwrap()["balance"] != json!(3) {
                return false;
            }
        }
        true
    })
    .await;
    until("each of them is quarantined, visibly", async || {
        let quarantined = daemon.status().await["quarantined"].to_string();
        (0..6).all(|stream| quarantined.contains(&format!("account-{stream}")))
    })
    .await;
    daemon.caught_up().await;
    for (stream, (attribute, value)) in broken.iter().enumerate() {
        let item = item(&world, &format!("account-{stream}")).await;
        assert_eq!(item.get(*attribute), value.as_ref(), "nothing but a mark was written");
        let AttributeValue::S(reason) = &item["quarantine_reason"] else {
            panic!("{item:?}")
        };
        assert!(reason.contains("projector redrive"), "{reason}");
    }
    assert!(daemon.metric("projector_quarantined_aggregates").await > 5.5);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_deletion_costs_what_its_puts_cost() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    for stream in 0..60 {
        world.pay(&format!("account-{stream}"), 1).await;
    }
    daemon.caught_up().await;
    let before = (world.proxy.count("UpdateItem"), world.proxy.count("PutItem"));
    for stream in 0..60 {
        world.delete(&format!("account-{stream}")).await;
    }
    until("all are deleted", async || {
        for stream in 0..60 {
            if !world
                .replica(&format!("account-{stream}"))
                .await
                .unwrap()
                .header
                .deleted
            {
                return false;
            }
        }
        true
    })
    .await;
    daemon.caught_up().await;
    assert_eq!(world.proxy.count("PutItem") - before.1, 60);
    assert_eq!(world.proxy.count("UpdateItem") - before.0, 0, "no note is touched");
    daemon.stop().await;
}

/// The group's checkpoint says that all is done, the daemon's memory holds all of it, and nothing moves.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_anew_under_a_running_daemon_is_filled_again() {
    let world = World::start().await;
    let one = world.daemon::<Old>("a").await;
    let two = world.daemon::<Old>("a").await;
    for stream in 0..8 {
        world.pay(&format!("account-{stream}"), 3).await;
    }
    one.caught_up().await;
    two.caught_up().await;
    let client = world.dynamo.client().await;
    client.delete_table().table_name(table(&world)).send().await.unwrap();
    until("every replica is there again", async || {
        for stream in 0..8 {
            let state = match world.replica(&format!("account-{stream}")).await {
                Some(replica) => state(replica),
                None => None,
            };
            if state != Some(json!({ "balance": 3, "events": 3, "frozen": false })) {
                return false;
            }
        }
        true
    })
    .await;
    one.caught_up().await;
    one.stop().await;
    two.stop().await;
}

/// A mark noted in a table that never served does not make it look used: the group starts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_noted_mark_does_not_make_a_new_table_look_used() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    world.pay("account-1", 3).await;
    daemon.caught_up().await;
    let table_of = world.table(1).await;
    daemon.stop().await;
    let client = world.dynamo.client().await;
    client.delete_table().table_name(table(&world)).send().await.unwrap();
    world
        .dynamo
        .tables()
        .await
        .ensure(
            &table(&world),
            &projector::replica::item::Rules::new("account"),
            Some(&projector::replica::dynamodb::Creation::LOCAL),
        )
        .await
        .unwrap();
    let mark = projector::replica::Quarantine {
        at: 0,
        reason: "being folded again from the start".into(),
        by: "".into(),
    };
    table_of.note_mark("account-9", &mark, 1).await.unwrap();

    let daemon = world.daemon::<Old>("a").await;
    until("what the checkpoint stands for is there again", async || {
        world.state("account-1").await == Some(json!({ "balance": 3, "events": 3, "frozen": false }))
    })
    .await;
    let status: Value = daemon.status().await;
    assert_eq!(status["phase"], json!("running"));
    daemon.stop().await;
}
