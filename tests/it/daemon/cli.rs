//! The commands, by the binary itself, against both stores' protocols.

use std::{collections::BTreeSet, path::Path};

use projector::replica::dynamodb::Operation;
use serde_json::{Value, json};

use crate::support::{
    dynamo::Dynamo,
    node::{Node, until},
    process::{Daemon, World, line, write},
    proxy::{Proxy, Wire},
};

struct Stores {
    node: Node,
    dynamo: Dynamo,
}

impl Stores {
    async fn start() -> Self {
        Self {
            node: Node::start().await,
            dynamo: Dynamo::start().await,
        }
    }

    fn world(&self) -> World {
        self.world_by(&self.dynamo.endpoint)
    }

    /// With DynamoDB by way of something else.
    fn world_by(&self, endpoint: &str) -> World {
        World::new(&self.node.url(), endpoint, &self.dynamo.prefix)
    }

    async fn wire(&self) -> Wire {
        let address = self.dynamo.endpoint.trim_start_matches("http://");
        Wire::start(address.parse().unwrap()).await
    }

    fn table(&self) -> String {
        format!("{}orders-s1", self.dynamo.prefix)
    }
}

/// Orders with three events each.
fn orders(numbers: std::ops::Range<u32>) -> String {
    let mut text = String::new();
    for step in ["Placed", "Paid", "Shipped"] {
        for n in numbers.clone() {
            text += &line(
                &format!("order-{n}"),
                step,
                &json!({ "status": step, "customer": { "id": n } }),
            );
        }
    }
    text
}

async fn import(world: &World, dir: &Path, text: &str) {
    let file = write(dir, "events.jsonl", text);
    let done = world.run(&["import", &file]).await;
    assert_eq!(done.code, 0, "{done:?}");
}

/// Waits until everything readable is settled.
async fn caught_up(daemon: &Daemon, streams: u32) {
    until("caught up", async || {
        let status = daemon.status().await;
        let p = &status["projections"][0];
        p["lag"]["events"] == 0
            && p["holding"] == 0
            && p["group"]["checkpoint"].as_u64() >= Some(u64::from(streams) * 3 - 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_works_on_orders_anywhere_at_a_rate_and_waits_for_a_store_that_is_away() {
    let stores = Stores::start().await;
    let world = stores.world();
    stores.node.kill();
    let mut demo = world.spawn(&["demo", "--rate", "200", "--events", "99"]);
    demo.logged("an order's event was not taken; trying again").await;
    stores.node.restart().await;
    demo.printed("99 events appended").await;
    let daemon = world.daemon().await;
    caught_up(&daemon, 33).await;
    daemon.stop().await;
    // What is wrong for good is not tried again.
    let done = world.run(&["demo", "--rate", "0"]).await;
    assert!(done.code == 64 && done.err.contains("--rate"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_replicas_out_and_every_page_says_so() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    import(&world, dir.path(), &orders(0..20)).await;
    let daemon = world.daemon().await;
    daemon.ready().await;
    caught_up(&daemon, 20).await;

    let done = world.run(&["get", "order-7", "--fresh"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let shown: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(shown["state"], json!({ "status": "Shipped", "customer": { "id": 7 } }));
    assert_eq!((&shown["version"], &shown["first"]), (&json!(2), &json!(0)));
    assert_eq!((&shown["same_at_version"], &shown["behind"]), (&json!(true), &json!(0)));
    let none = world.run(&["get", "order-99", "--projection", "orders"]).await;
    assert_eq!(none.code, 1, "{none:?}");
    let unknown = world.run(&["get", "order-7", "--projection", "nope"]).await;
    assert_eq!(unknown.code, 64, "{unknown:?}");
    assert!(unknown.err.contains("nope") && unknown.err.contains("orders"));

    assert_eq!(daemon.page("/livez").await, (200, "alive\n".into()));
    let of = r#"{projection="orders",schema="1"}"#;
    assert_eq!(
        daemon.metric(&format!("projector_events_applied_total{of}")).await,
        60.0
    );
    assert_eq!(daemon.metric(&format!("projector_source_lag_events{of}")).await, 0.0);
    assert_eq!(daemon.metric("projector_ready").await, 1.0);
    assert!(daemon.metric("process_resident_memory_bytes").await > 1e6);
    let address = daemon.address.clone();
    let at = ["--at", address.as_str()];
    assert_eq!(world.run(&["health", at[0], at[1]]).await.code, 0);
    assert_eq!(world.run(&["health", "--ready", at[0], at[1]]).await.code, 0);
    let status = world.run(&["status", at[0], at[1]]).await;
    assert_eq!(status.code, 0, "{status:?}");
    assert!(status.out.contains("orders (schema 1): running") && status.out.contains("lag          none"));
    let as_json = world.run(&["status", "--json", at[0], at[1]]).await;
    assert_eq!(serde_json::from_str::<Value>(&as_json.out).unwrap()["ready"], true);

    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
    assert!(log.contains("shutting down: draining in-flight deliveries") && log.contains("\"message\":\"stopped\""));
    let gone = world.run(&["health", at[0], at[1]]).await;
    assert_eq!(gone.code, 69, "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_repeated_or_resumed_adds_nothing() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    let text = orders(0..50);
    // Broken off in the middle, then whole, then whole again, then from standard input.
    let half: String = text.split_inclusive('\n').take(77).collect();
    import(&world, dir.path(), &half).await;
    for _ in 0..2 {
        import(&world, dir.path(), &text).await;
    }
    let piped = world.run_with(&["import", "-"], &text).await;
    assert_eq!(piped.code, 0, "{piped:?}");
    for n in 0..50 {
        let kinds = stores.node.kinds(&format!("order-{n}")).await;
        assert_eq!(kinds, ["Placed", "Paid", "Shipped"]);
    }
    // Under another name they are other events.
    let file = write(dir.path(), "more.jsonl", &text);
    assert_eq!(world.run(&["import", &file, "--as", "second"]).await.code, 0);
    assert_eq!(stores.node.kinds("order-3").await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_stops_an_import_or_is_left_out() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    let good = |n: u32| line("order-1", "Counted", &json!({ "n": n }));
    let text = format!("{}{}nonsense\n{}", good(0), good(1), good(2));
    let file = write(dir.path(), "events.jsonl", &text);
    let count = async || stores.node.kinds("order-1").await.len();
    let stopped = world.run(&["import", &file]).await;
    assert_eq!((stopped.code, count().await), (1, 2), "{stopped:?}");
    assert!(
        stopped.err.contains("Line 3: ") && stopped.err.contains("--keep-going"),
        "{}",
        stopped.err
    );
    let went_on = world.run(&["import", &file, "--keep-going"]).await;
    assert_eq!((went_on.code, count().await), (1, 3), "{went_on:?}");
    assert!(went_on.err.contains("Line 3: ") && went_on.out.contains("1 lines left out"));
    let missing = world.run(&["import", "/nowhere/at.all"]).await;
    assert_eq!(missing.code, 64);
    assert!(missing.err.contains("/nowhere/at.all"));
    stores.node.kill();
    let away = world.run(&["import", &file]).await;
    assert_eq!(away.code, 69, "{away:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn provision_makes_compares_and_applies() {
    let stores = Stores::start().await;
    let world = stores.world().with("DYNAMODB__CREATE_TABLES", "no");
    let before = world.run(&["provision", "--check"]).await;
    assert_eq!(before.code, 1, "{before:?}");
    assert!(
        before.out.contains(&format!("table {} is missing", stores.table()))
            && before.out.contains("group projector-orders-s1 on $ce-order is missing")
    );
    let world = world.with("DYNAMODB__CREATE_TABLES", "plain");
    let made = world.run(&["provision"]).await;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.out.contains(&format!("table {} created", stores.table())) && made.out.contains("$ce-order created"));
    assert_eq!(world.run(&["provision", "--check"]).await.code, 0);
    let other = world.clone().with("DEFAULTS__MESSAGE_TIMEOUT", "45s");
    let differs = other.run(&["provision", "--check"]).await;
    assert_eq!(differs.code, 1, "{differs:?}");
    assert!(
        differs.out.contains("45") && differs.out.contains("--apply"),
        "{}",
        differs.out
    );
    assert_eq!(other.run(&["provision", "--apply"]).await.code, 0);
    assert_eq!(other.run(&["provision", "--check"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_store_there_then_both_and_nothing_is_lost() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    import(&stores.world(), dir.path(), &orders(0..5)).await;
    let wire = stores.wire().await;
    wire.refuse();
    stores.node.kill();
    let world = stores.world_by(&format!("http://{}", wire.address()));
    let daemon = world.daemon().await;
    until("both are missed", async || {
        let (code, text) = daemon.page("/readyz").await;
        code == 503 && text.contains("EventStoreDB does not answer") && text.contains("DynamoDB does not answer")
    })
    .await;
    assert_eq!(daemon.page("/livez").await.0, 200);
    let address = daemon.address.clone();
    let at = ["--at", address.as_str()];
    assert_eq!(world.run(&["health", at[0], at[1]]).await.code, 0);
    assert_eq!(world.run(&["health", "--ready", at[0], at[1]]).await.code, 1);
    assert_eq!(world.run(&["status", at[0], at[1]]).await.code, 1);

    stores.node.restart().await;
    wire.resume().await;
    daemon.ready().await;
    caught_up(&daemon, 5).await;

    // And away in the middle.
    wire.refuse();
    import(&stores.world(), dir.path(), &orders(5..9)).await;
    until("the table is missed", async || daemon.page("/readyz").await.0 == 503).await;
    assert_eq!(daemon.page("/livez").await.0, 200);
    wire.resume().await;
    daemon.ready().await;
    caught_up(&daemon, 9).await;
    assert_eq!(world.run(&["get", "order-8", "--fresh"]).await.code, 0);
    let parked = daemon.metric("projector_deliveries_parked_total").await;
    assert_eq!(parked, 0.0);
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_stores_that_are_away() {
    let stores = Stores::start().await;
    let world = stores.world();
    stores.node.kill();
    let daemon = world.daemon().await;
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_twice_it_does_not_wait_for_what_it_holds() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    let wire = stores.wire().await;
    let world = world.with("DYNAMODB__ENDPOINT", &format!("http://{}", wire.address()));
    let mut daemon = world.daemon().await;
    daemon.ready().await;
    // Deliveries that cannot be settled, so that a stop has something to wait for.
    wire.hang();
    import(&world, dir.path(), &orders(0..3)).await;
    until("something is held", async || {
        daemon.status().await["projections"][0]["holding"] != 0
    })
    .await;
    daemon.ask_to_stop().await;
    daemon.logged("draining in-flight deliveries").await;
    let (code, reasons) = daemon.page("/readyz").await;
    assert_eq!((code, reasons.contains("stopping")), (503, true), "{reasons}");
    let (status, log) = daemon.stop().await;
    assert_eq!(status.code(), Some(130), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_leaves_nothing_wrong() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    for round in 0..3 {
        import(&world, dir.path(), &orders(round * 10..round * 10 + 10)).await;
        let daemon = world.daemon().await;
        until("something is folded", async || {
            daemon.metric("projector_events_applied_total").await > 0.0
        })
        .await;
        daemon.kill().await;
    }
    let daemon = world.daemon().await;
    caught_up(&daemon, 30).await;
    for n in 0..30 {
        let done = world.run(&["get", &format!("order-{n}"), "--fresh"]).await;
        let shown: Value = serde_json::from_str(&done.out).unwrap();
        assert_eq!((done.code, &shown["version"]), (0, &json!(2)), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_waits_alone_until_it_can_be_folded() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    import(&world, dir.path(), &orders(0..3)).await;
    let daemon = world.daemon().await;
    caught_up(&daemon, 3).await;
    // With a trailing comma it is JSON to the server, which links it, and to nobody else.
    stores.node.push("order-1", "Broken", br#"{"n":1,}"#).await;
    until("it is quarantined", async || {
        daemon.status().await["projections"][0]["quarantined"] == json!(["order-1"])
    })
    .await;
    let of = r#"{projection="orders",schema="1"}"#;
    assert_eq!(daemon.metric(&format!("projector_quarantines_total{of}")).await, 1.0);
    assert_eq!(daemon.page("/readyz").await.0, 200, "one stream is no reason");
    let shown: Value = serde_json::from_str(&world.run(&["get", "order-1"]).await.out).unwrap();
    assert_eq!((&shown["version"], &shown["quarantine"]["at"]), (&json!(2), &json!(3)));

    let still = world.run(&["redrive", "order-1"]).await;
    assert_eq!(still.code, 1, "{still:?}");
    assert!(
        still.err.contains("still quarantined") && still.err.contains("Broken"),
        "{}",
        still.err
    );
    // The others go on.
    import(&world, dir.path(), &orders(3..4)).await;
    until("another order is folded", async || {
        world.run(&["get", "order-3"]).await.code == 0
    })
    .await;

    // An operator truncates the event away; what follows can be folded.
    stores.node.truncate("order-1", 4).await;
    stores.node.push("order-1", "Mended", br#"{"status":"Mended"}"#).await;
    let mended = world.run(&["redrive", "order-1"]).await;
    assert_eq!(mended.code, 0, "{mended:?}");
    let shown: Value = serde_json::from_str(&world.run(&["get", "order-1"]).await.out).unwrap();
    assert_eq!(
        (&shown["version"], &shown["state"]["status"]),
        (&json!(4), &json!("Mended"))
    );
    assert!(shown.get("quarantine").is_none());
    until("nobody counts it any more", async || {
        daemon.status().await["projections"][0]["quarantined"] == json!([])
    })
    .await;
    let nothing = world.run(&["redrive", "order-1"]).await;
    assert_eq!((nothing.code, nothing.out.contains("nothing to do")), (0, true));
    // What changed nothing and was settled by a process that died before it stored the version.
    stores.node.push("order-1", "Kept", b"{}").await;
    let behind = world.run(&["redrive", "order-1"]).await;
    assert_eq!(
        (behind.code, behind.out.contains("revision 5")),
        (0, true),
        "{behind:?}"
    );
    let shown: Value = serde_json::from_str(&world.run(&["get", "order-1"]).await.out).unwrap();
    assert_eq!(shown["version"], json!(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_another_history_is_found_and_folded_anew() {
    let (mut stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    import(&world, dir.path(), &orders(0..2)).await;
    let daemon = world.daemon().await;
    caught_up(&daemon, 2).await;
    daemon.stop().await.0.success().then_some(()).unwrap();
    // The event store is another one now, under the same name.
    stores.node.replace().await;
    let other: String = (0..5).map(|n| line("order-1", "Other", &json!({ "n": n }))).collect();
    import(&world, dir.path(), &other).await;
    let daemon = world.daemon().await;
    until("it is found", async || {
        daemon.status().await["projections"][0]["diverged"] == json!(["order-1"])
    })
    .await;
    let refused = world.run(&["redrive", "order-1"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("--from-start"), "{}", refused.err);
    let anew = world.run(&["redrive", "order-1", "--from-start"]).await;
    assert_eq!(anew.code, 0, "{anew:?}");
    let done = world.run(&["get", "order-1", "--fresh"]).await;
    let shown: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&shown["version"], &shown["state"]), (&json!(4), &json!({ "n": 4 })));
    assert_eq!(shown["same_at_version"], true);
}

/// What the text of an unreadable replica names as the remedy is one.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_replica_is_folded_anew_by_the_command_that_it_names() {
    use aws_sdk_dynamodb::types::AttributeValue;
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    let world = stores.world();
    import(&world, dir.path(), &orders(0..3)).await;
    let daemon = world.daemon().await;
    caught_up(&daemon, 3).await;
    daemon.stop().await.0.success().then_some(()).unwrap();
    let client = stores.dynamo.client().await;
    for (stream, broken) in [("order-1", "REMOVE version, generation"), ("order-2", "SET #s = :x")] {
        let update = client
            .update_item()
            .table_name(stores.table())
            .key("pk", AttributeValue::S(stream.into()))
            .update_expression(broken);
        let update = if broken.contains("#s") {
            update
                .expression_attribute_names("#s", "state")
                .expression_attribute_values(":x", AttributeValue::S("x".into()))
        } else {
            update
        };
        update.send().await.unwrap();
        let shown = world.run(&["get", stream]).await;
        assert!(
            shown.err.contains(&format!("projector redrive --from-start {stream}")),
            "{}",
            shown.err
        );
    }
    let daemon = world.daemon().await;
    import(
        &world,
        dir.path(),
        &line("order-1", "Returned", &json!({ "status": "Returned" })),
    )
    .await;
    until("it is quarantined", async || {
        daemon.status().await["projections"][0]["quarantined"] == json!(["order-1"])
    })
    .await;
    for (stream, version) in [("order-1", 3), ("order-2", 2)] {
        let done = world.run(&["redrive", "--from-start", stream]).await;
        assert_eq!(done.code, 0, "{done:?}");
        let shown: Value = serde_json::from_str(&world.run(&["get", stream, "--fresh"]).await.out).unwrap();
        assert_eq!(
            (&shown["version"], &shown["same_at_version"]),
            (&json!(version), &json!(true))
        );
    }
    until("nobody counts it any more", async || {
        daemon.status().await["projections"][0]["quarantined"] == json!([])
    })
    .await;
}

/// The permissions that the guide's policies give are those that are used.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_that_the_policies_do_not_grant() {
    let (stores, dir) = (Stores::start().await, tempfile::tempdir().unwrap());
    import(&stores.world(), dir.path(), &orders(0..3)).await;
    let names =
        |operations: &[Operation]| -> BTreeSet<String> { operations.iter().map(|o| o.name().to_owned()).collect() };
    let (running, mut provisioning) = (names(&Operation::RUNNING), names(&Operation::PROVISIONING));
    provisioning.insert("DescribeTable".into());

    let proxy = Proxy::start(&stores.dynamo.endpoint).await;
    let world = stores.world_by(&proxy.endpoint()).with("DYNAMODB__CREATE_TABLES", "no");
    let made = world
        .clone()
        .with("DYNAMODB__CREATE_TABLES", "plain")
        .run(&["provision"])
        .await;
    assert_eq!(made.code, 0, "{made:?}");
    let sent = proxy.operations_sent();
    assert!(sent.is_subset(&provisioning), "{sent:?}");

    let proxy = Proxy::start(&stores.dynamo.endpoint).await;
    let world = stores.world_by(&proxy.endpoint()).with("DYNAMODB__CREATE_TABLES", "no");
    let daemon = world.daemon().await;
    caught_up(&daemon, 3).await;
    stores.node.push("order-1", "Broken", br#"{"n":1,}"#).await;
    until("it is quarantined", async || {
        daemon.status().await["projections"][0]["quarantined"] == json!(["order-1"])
    })
    .await;
    assert_eq!(proxy.operations_sent(), running);
}
