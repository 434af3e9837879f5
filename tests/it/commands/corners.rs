//! Streams that are deleted, revived, truncated or another's, and snapshots that are wrong.

use aws_sdk_dynamodb::types::AttributeValue;
use projector::{
    command::{CommandError, CommandSettings, Context, OnDeleted},
    replica::dynamodb::table_name,
};
use serde_json::json;

use super::{Bank, Do, World, fold_of};
use crate::support::proxy::Fault;

/// Wants what the policy says on deleted streams.
async fn bank(world: &World, on_deleted: OnDeleted) -> Bank {
    world.bank().await.with_settings(CommandSettings {
        on_deleted,
        ..CommandSettings::default()
    })
}

async fn project(world: &World) {
    let daemon = world.daemon().await;
    daemon.caught_up().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_streams_end_by_policy() {
    let world = World::start().await;
    for (policy, expected) in [
        (OnDeleted::Refuse, None),
        (OnDeleted::Continue, Some((6, 0))),
        (OnDeleted::Restart, Some((5, 3))),
    ] {
        for (marked, cached) in [(false, false), (false, true), (true, false), (true, true)] {
            let id = format!("{policy:?}-{marked}-{cached}").to_lowercase();
            let stream = format!("account-{id}");
            world.deposit(&stream, &[1, 0, 0]).await;
            project(&world).await;
            let bank = bank(&world, policy).await;
            if cached {
                // An empty decision brings it into the cache.
                bank.execute(&id, &Do::Nothing).await.unwrap();
            }
            world.stores.delete(&stream).await;
            if marked {
                // The replica says so before the command is there.
                project(&world).await;
                assert!(world.stores.replica(&stream).await.unwrap().header.deleted);
            }
            // Something that has to look at the stream first.
            let told = bank.execute(&id, &Do::Nothing).await;
            match expected {
                None => {
                    let deleted = CommandError::Deleted {
                        stream: stream.clone(),
                        tombstoned: false,
                    };
                    assert_eq!(told.unwrap_err(), deleted, "{id}");
                    let told = bank.execute(&id, &Do::Withdraw(100)).await;
                    assert_eq!(told.unwrap_err(), deleted, "{id}");
                }
                Some(_) => assert_eq!(told.unwrap().events.len(), 0, "{id}"),
            }
            let Some((cents, _)) = expected else { continue };
            let done = bank.execute(&id, &Do::Deposit(5)).await.unwrap();
            assert_eq!((done.state.cents, done.revision), (cents, Some(3)), "{id}");
            let readable = world.events(&stream).await;
            assert_eq!(readable.iter().map(|e| e.revision).collect::<Vec<_>>(), [3]);
            // It goes on as any other.
            let done = bank.execute(&id, &Do::Deposit(5)).await.unwrap();
            assert_eq!(
                (done.state.cents, done.revision, done.attempts),
                (cents + 5, Some(4), 1),
                "{id}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revival_behind_a_state_in_hand_is_told() {
    let world = World::start().await;
    for policy in [OnDeleted::Refuse, OnDeleted::Continue] {
        let id = format!("{policy:?}").to_lowercase();
        let stream = format!("account-{id}");
        world.deposit(&stream, &[1, 2]).await;
        let bank = bank(&world, policy).await;
        bank.execute(&id, &Do::Deposit(4)).await.unwrap();
        // Another's, by the append's own tail.
        world.stores.delete(&stream).await;
        world.deposit(&stream, &[8]).await;
        let done = bank.execute(&id, &Do::Deposit(16)).await.unwrap();
        assert_eq!((done.revived, done.state.cents, done.attempts), (true, 31, 2), "{id}");
        assert!(!bank.execute(&id, &Do::Nothing).await.unwrap().revived, "{id}");
        // Its own, which nothing told it of: by the next fold.
        world.stores.delete(&stream).await;
        assert!(!bank.execute(&id, &Do::Deposit(32)).await.unwrap().revived, "{id}");
        let told = bank.execute(&id, &Do::Nothing).await.unwrap();
        assert_eq!((told.revived, told.state.cents), (true, 63), "{id}");
        assert!(!bank.execute(&id, &Do::Nothing).await.unwrap().revived, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_life_takes_commands_with_ids_from_its_first_event_on() {
    let world = World::start().await;
    for policy in [OnDeleted::Continue, OnDeleted::Restart] {
        let id = format!("young-{policy:?}").to_lowercase();
        let stream = format!("account-{id}");
        let key = |n| Context::with_id(uuid::Uuid::from_u128(n));
        world.deposit(&stream, &[1, 2]).await;
        world.stores.delete(&stream).await;
        let begun = bank(&world, policy).await.execute(&id, &Do::Deposit(4)).await.unwrap();
        assert!(begun.revived && begun.first == 2, "{id}");
        let process = async || bank(&world, policy).await;
        let first = process()
            .await
            .execute_with(&id, &Do::Deposit(8), key(1))
            .await
            .unwrap();
        let again = process()
            .await
            .execute_with(&id, &Do::Deposit(8), key(1))
            .await
            .unwrap();
        assert_eq!(
            (first.repeated, again.repeated, again.revision),
            (false, true, Some(3)),
            "{id}"
        );
        assert_eq!(again.state.cents, 12, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstoned_streams_are_deleted_for_good() {
    let world = World::start().await;
    for cached in [false, true] {
        let id = format!("{cached}");
        let stream = format!("account-{id}");
        world.deposit(&stream, &[1]).await;
        let bank = bank(&world, OnDeleted::Continue).await;
        if cached {
            bank.execute(&id, &Do::Deposit(1)).await.unwrap();
        }
        world.stores.tombstone(&stream).await;
        for command in [Do::Deposit(1), Do::Withdraw(100), Do::Nothing] {
            let told = bank.execute(&id, &command).await.unwrap_err();
            let deleted = CommandError::Deleted {
                stream: stream.clone(),
                tombstoned: true,
            };
            assert_eq!(told, deleted, "{command:?}");
            assert!(!told.can_retry());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_streams_go_on_where_a_snapshot_covers_what_is_gone() {
    let world = World::start().await;
    world.deposit("account-1", &[1; 10]).await;
    project(&world).await;
    world.stores.truncate("account-1", 8).await;
    let done = world.bank().await.execute("1", &Do::Deposit(1)).await.unwrap();
    assert_eq!((done.state.cents, done.revision), (11, Some(10)));
    // Nothing covers it: from the first readable event on, as everybody reads it.
    world.deposit("account-2", &[1; 10]).await;
    world.stores.truncate("account-2", 8).await;
    let done = world.bank().await.execute("2", &Do::Deposit(1)).await.unwrap();
    assert_eq!((done.state.cents, done.revision), (3, Some(10)));
    // The history that the snapshot lacks is gone.
    world.deposit("account-1", &[1; 10]).await;
    world.stores.truncate("account-1", 15).await;
    let told = world.bank().await.execute("1", &Do::Withdraw(100)).await.unwrap_err();
    assert_eq!(told, CommandError::Rejected(super::Short(6)), "revisions 15 to 20");
    // All of it is gone: the server's own revision is what is left to know.
    world.stores.truncate("account-2", 11).await;
    let fresh = world.bank().await;
    let done = fresh.execute("2", &Do::Deposit(9)).await.unwrap();
    assert_eq!((done.state.cents, done.revision), (9, Some(11)));
    let done = fresh.execute("2", &Do::Deposit(9)).await.unwrap();
    assert_eq!((done.state.cents, done.attempts), (18, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_reset_is_folded_anew() {
    let mut world = World::start().await;
    for id in ["shorter", "same", "longer", "gone"] {
        world.deposit(&format!("account-{id}"), &[100, 100, 100]).await;
    }
    project(&world).await;
    world.stores.reset_events().await;
    world.deposit("account-shorter", &[1, 2]).await;
    world.deposit("account-same", &[1, 2, 4]).await;
    world.deposit("account-longer", &[1, 2, 4, 8]).await;
    for (id, cents) in [("shorter", 3), ("same", 7), ("longer", 15), ("gone", 0)] {
        let told = world.bank().await.execute(id, &Do::Withdraw(400)).await.unwrap_err();
        assert_eq!(
            told,
            CommandError::Rejected(super::Short(cents)),
            "{id}: no withdrawal on a snapshot of another life"
        );
        let bank = world.through().await;
        bank.execute(id, &Do::Deposit(10)).await.unwrap();
        let done = bank.execute(id, &Do::Nothing).await.unwrap();
        let events = world.events(&format!("account-{id}")).await;
        assert_eq!(done.state, fold_of(&events), "{id}");
        assert_eq!(done.state.cents, cents + 10, "{id}");
    }
}

/// Changes an item as nobody should.
async fn spoil(world: &World, stream: &str, attribute: &str, value: AttributeValue) {
    let dynamo = &world.stores.dynamo;
    dynamo
        .client()
        .await
        .update_item()
        .table_name(table_name(&dynamo.prefix, "account", 1).unwrap())
        .key("pk", AttributeValue::S(stream.to_owned()))
        .update_expression("SET #a = :v")
        .expression_attribute_names("#a", attribute)
        .expression_attribute_values(":v", value)
        .send()
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_are_wrong_are_not_believed() {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let number = |n: i64| AttributeValue::N(n.to_string());
    let wrong_state = || AttributeValue::M([("cents".to_owned(), text("many"))].into());
    let world = World::start().await;
    let spoils = [
        ("state", wrong_state()),
        ("state", text("no map")),
        ("version", text("seven")),
        ("version", number(70)),
        ("event_id", text("b5e4f5a6-0000-4000-8000-000000000000")),
        ("event_id", text("no id")),
        ("commands", text("none")),
        ("first", number(-4)),
    ];
    for nth in 0..spoils.len() {
        world.deposit(&format!("account-{nth}"), &[100, 50]).await;
    }
    project(&world).await;
    for (nth, (attribute, value)) in spoils.into_iter().enumerate() {
        let stream = format!("account-{nth}");
        spoil(&world, &stream, attribute, value.clone()).await;
        let id = nth.to_string();
        let told = world
            .through()
            .await
            .execute(&id, &Do::Withdraw(151))
            .await
            .unwrap_err();
        assert_eq!(told, CommandError::Rejected(super::Short(150)), "{attribute} {value:?}");
        let done = world.bank().await.execute(&id, &Do::Withdraw(150)).await.unwrap();
        // A snapshot with another event at its version is found out by a tail read; an append at
        // that version succeeds, as it is the stream's own.
        let events = world.events(&stream).await;
        assert_eq!((events.len(), done.revision), (3, Some(2)), "{attribute} {value:?}");
        assert_eq!(fold_of(&events).cents, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_reads_turn_no_valid_command_away() {
    let world = World::start().await;
    world.deposit("account-1", &[1]).await;
    let daemon = world.daemon().await;
    daemon.caught_up().await;
    world.stores.proxy.freeze_reads();
    world.deposit("account-1", &[100]).await;
    daemon.caught_up().await;
    // What is read is the item with one cent, for ever.
    let bank = world.bank().await;
    assert_eq!(bank.execute("1", &Do::Withdraw(50)).await.unwrap().state.cents, 51);
    bank.forget(None);
    let done = bank.execute("1", &Do::Deposit(1)).await.unwrap();
    assert_eq!(
        (done.state.cents, done.attempts),
        (52, 2),
        "an append at a stale revision is refused, not believed"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_away_makes_commands_slower_and_not_wrong() {
    let world = World::start().await;
    world.deposit("account-1", &[1, 2]).await;
    project(&world).await;
    let bank = world.through().await;
    world
        .stores
        .proxy
        .inject("GetItem", 1, Fault::Throttle("TableReadProvisionedThroughputExceeded"));
    world.stores.proxy.inject("PutItem", usize::MAX, Fault::LoseRequest);
    let done = bank.execute("1", &Do::Deposit(4)).await.unwrap();
    assert_eq!(done.state.cents, 7);
    world.stores.proxy.disarm();
    let done = bank.execute("1", &Do::Deposit(8)).await.unwrap();
    assert_eq!(done.state.cents, 15);
    assert_eq!(world.stores.state("account-1").await.unwrap()["cents"], json!(15));
}
