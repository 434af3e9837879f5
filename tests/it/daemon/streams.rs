//! Streams that are truncated, deleted, revived, deleted for good: while the daemon runs and while it
//! is down, the replicas are the same.

use serde_json::{Value, json};

use super::world::{Old, Running, World, state};

/// What happens to a stream.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pay(usize),
    Truncate(u64),
    Delete,
    Tombstone,
}

use Step::{Delete, Pay, Tombstone, Truncate};

/// A stream, what happens to it, and its replica at the end: version, deleted, balance.
type Life = (&'static str, &'static [Step], (u64, bool, i64));

const LIVES: [Life; 6] = [
    ("account-truncated", &[Pay(6), Truncate(4), Pay(2)], (7, false, 8)),
    ("account-deleted", &[Pay(3), Delete], (2, true, 3)),
    ("account-revived", &[Pay(3), Delete, Pay(2)], (4, false, 5)),
    (
        "account-twice",
        &[Pay(2), Delete, Pay(2), Delete, Pay(1)],
        (4, false, 5),
    ),
    ("account-tombstoned", &[Pay(3), Tombstone], (2, true, 3)),
    ("account-again", &[Pay(2), Delete, Pay(1), Delete], (2, true, 3)),
];

async fn step(world: &World, stream: &str, step: Step) {
    match step {
        Pay(count) => world.pay(stream, count).await,
        Truncate(before) => world.truncate(stream, before).await,
        Delete => world.delete(stream).await,
        Tombstone => world.tombstone(stream).await,
    }
}

async fn seen(world: &World, stream: &str) -> Value {
    let replica = world.replica(stream).await.unwrap();
    let (version, deleted) = (replica.header.version, replica.header.deleted);
    json!({ "version": version, "deleted": deleted, "balance": state(replica).unwrap()["balance"] })
}

async fn check(world: &World) {
    for (stream, _, (version, deleted, balance)) in LIVES {
        assert_eq!(
            seen(world, stream).await,
            json!({ "version": version, "deleted": deleted, "balance": balance }),
            "{stream}"
        );
    }
}

/// Each step is projected before the next.
#[tokio::test(flavor = "multi_thread")]
async fn lives_seen_step_by_step() {
    let world = World::start().await;
    let daemon = world.daemon::<Old>("a").await;
    for at in 0..6 {
        for (stream, life, _) in LIVES {
            if let Some(next) = life.get(at) {
                step(&world, stream, *next).await;
            }
        }
        daemon.caught_up().await;
    }
    check(&world).await;
    daemon.stop().await;
}

/// The daemon is down whenever something other than a payment happens.
#[tokio::test(flavor = "multi_thread")]
async fn lives_seen_between_stops() {
    let world = World::start().await;
    for at in 0..6 {
        let daemon: Running = world.daemon::<Old>("a").await;
        daemon.caught_up().await;
        daemon.stop().await;
        for (stream, life, _) in LIVES {
            if let Some(next) = life.get(at) {
                step(&world, stream, *next).await;
            }
        }
    }
    let daemon = world.daemon::<Old>("a").await;
    daemon.caught_up().await;
    check(&world).await;
    daemon.stop().await;
}

/// History that is gone before it was folded: the replica says from where on it is.
#[tokio::test(flavor = "multi_thread")]
async fn history_that_was_gone_is_said() {
    let world = World::start().await;
    world.pay("account-1", 6).await;
    world.truncate("account-1", 4).await;
    let daemon = world.daemon::<Old>("a").await;
    daemon.caught_up().await;
    let replica = world.replica("account-1").await.unwrap();
    assert_eq!((replica.header.version, replica.header.first), (Some(5), 4));
    assert_eq!(state(replica).unwrap()["balance"], json!(2));
    daemon.stop().await;
}

/// Policy `remove`: the state goes, a marker stays, and a revived stream begins again.
#[tokio::test(flavor = "multi_thread")]
async fn removed_states_and_new_beginnings() {
    use projector::config::{OnDeletion, OnRevival};
    let world = World::start().await;
    let daemon = world
        .daemon_with::<Old>("a", |settings| {
            settings.defaults.on_deletion = OnDeletion::Remove;
            settings.defaults.on_revival = OnRevival::Restart;
        })
        .await;
    world.pay("account-1", 3).await;
    daemon.caught_up().await;
    world.delete("account-1").await;
    daemon.caught_up().await;
    let replica = world.replica("account-1").await.unwrap();
    assert!(replica.header.deleted && replica.view.is_none(), "{replica:?}");
    world.pay("account-1", 2).await;
    daemon.caught_up().await;
    let replica = world.replica("account-1").await.unwrap();
    assert_eq!((replica.header.first, replica.header.deleted), (3, false));
    assert_eq!(state(replica).unwrap()["balance"], json!(2));
    daemon.stop().await;
}

/// Links that name nothing, among those of the category: each comes once, is told, and holds nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_links_come_once_and_are_told() {
    use eventstore::{AppendToStreamOptions, EventData, ExpectedRevision};
    const NONSENSE: [&str; 4] = ["nonsense", "x@account-1", "1@", "@account-1"];
    let world = World::start().await;
    let links = async || {
        let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
        let events = NONSENSE.map(|data| EventData::binary("$>", data.as_bytes().into()));
        world
            .client()
            .append_to_stream("$ce-account", &options, events.to_vec())
            .await
            .unwrap();
    };
    let seen = |status: &Value| status["unplaced"][0].clone();
    // In a backlog, and live.
    world.pay("account-1", 2).await;
    links().await;
    let daemon = world.daemon::<Old>("a").await;
    daemon.caught_up().await;
    links().await;
    world.pay("account-1", 1).await;
    daemon.caught_up().await;
    let status = daemon.status().await;
    let told = seen(&status);
    assert_eq!(
        (&told["class"], &told["deliveries"]),
        (&json!("malformed_link"), &json!(8)),
        "{status}"
    );
    assert_eq!(daemon.metric("projector_deliveries_received_total").await, 11.0);
    assert_eq!(
        (&status["group"]["parked"], &status["quarantined"]),
        (&json!(0), &json!([]))
    );
    assert_eq!(seen_balance(&world).await, json!(3));
    daemon.stop().await;
    // Nor are they delivered again.
    let daemon = world.daemon::<Old>("a").await;
    world.pay("account-1", 1).await;
    daemon.caught_up().await;
    assert_eq!(seen_balance(&world).await, json!(4));
    assert_eq!(daemon.metric("projector_deliveries_received_total").await, 1.0);
    daemon.stop().await;
}

async fn seen_balance(world: &World) -> Value {
    world.state("account-1").await.unwrap()["balance"].clone()
}
