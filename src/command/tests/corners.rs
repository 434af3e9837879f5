//! Round trips, races, deletion, lost history.

use super::kit::*;
use crate::{
    command::{CommandError, CommandSettings, Context, OnDeleted},
    journal::{Expected, NewEvent},
    testing::{AppendFault, MemoryJournal},
};

#[tokio::test]
async fn cached_is_one_round_trip_cold_two_a_rejection_one_more() {
    let world = World::with(&[5; 40]);
    world.project(STREAM, usize::MAX).await;
    let bank = world.bank();
    world.journal.reset_calls();
    let before = world.store.calls().gets;
    let done = bank.execute("1", &Do::Withdraw(3)).await.unwrap();
    assert_eq!(
        (done.state.cents, done.revision, done.attempts, done.repeated),
        (197, Some(40), 1, false)
    );
    assert_eq!(done.events, [Entry::Withdrew { cents: 3 }]);
    assert_eq!(
        (world.journal.calls().total(), world.store.calls().gets - before),
        (2, 1),
        "cold, its last event read beside the append"
    );
    let trips = world.trips();
    bank.execute("1", &Do::Withdraw(3)).await.unwrap();
    assert_eq!(world.trips(), (trips.0 + 1, trips.1), "cached");
    let rejected = bank.execute("1", &Do::Withdraw(1000)).await.unwrap_err();
    assert_eq!(rejected, CommandError::Rejected(Short(194)));
    assert_eq!(world.trips(), (trips.0 + 2, trips.1), "a rejection reads the tail");
    assert_eq!(
        world.journal.calls().events_read,
        1 + 3,
        "the tail starts at the last event that a read has shown"
    );
}

#[tokio::test]
async fn a_stale_snapshot_turns_no_valid_command_away() {
    let world = World::with(&[1]);
    world.project(STREAM, usize::MAX).await;
    world.deposit(&[100]);
    let done = world.bank().execute("1", &Do::Withdraw(50)).await.unwrap();
    assert_eq!(
        (done.state.cents, done.attempts),
        (51, 1),
        "confirmed before it was appended"
    );
    // An empty decision is an answer too.
    world.deposit(&[1]);
    let bank = world.bank();
    let nothing = bank.execute("1", &Do::Nothing).await.unwrap();
    assert_eq!(
        (nothing.state.cents, nothing.revision, nothing.events.len()),
        (52, Some(3), 0)
    );
    let token = format!("account-1@3:{}", world.journal.all(STREAM)[3].id.simple());
    assert_eq!(nothing.token().to_string(), token);
}

#[tokio::test]
async fn after_a_lost_race_only_what_is_missing_is_read() {
    let world = World::with(&[1; 30]);
    world.project(STREAM, usize::MAX).await;
    let bank = world.bank();
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    world.deposit(&[10, 10]);
    world.journal.reset_calls();
    let done = bank.execute("1", &Do::Withdraw(45)).await.unwrap();
    assert_eq!(
        (done.state.cents, done.attempts, done.revision),
        (6, 1, Some(33)),
        "rejected on the stale state, confirmed"
    );
    world.deposit(&[10]);
    world.journal.reset_calls();
    let done = bank.execute("1", &Do::Deposit(1)).await.unwrap();
    assert_eq!((done.state.cents, done.attempts), (17, 2));
    let calls = world.journal.calls();
    assert_eq!(
        (calls.appends, calls.reads, calls.events_read),
        (2, 1, 3),
        "what a read has shown last, its own event and the missing one"
    );
}

#[tokio::test(start_paused = true)]
async fn conflicts_end() {
    let world = World::with(&[1]);
    for nth in 1..=5 {
        world.journal.before_append(nth, |j| {
            j.push(STREAM, vec![deposited(1)]);
        });
    }
    let error = world.bank().execute("1", &Do::Deposit(9)).await.unwrap_err();
    assert_eq!(
        error,
        CommandError::Contended {
            stream: STREAM.into(),
            attempts: 5,
            awaited: None
        }
    );
    assert!(error.can_retry());
    assert_eq!(world.truth(STREAM).cents, 6, "nothing of it landed");
    // Conflicts that no event explains end as well.
    for nth in 1..=5 {
        world.journal.fail_append(nth, AppendFault::Conflict);
    }
    assert_eq!(
        world.bank().execute("1", &Do::Deposit(9)).await.unwrap_err().class(),
        "contended"
    );
    for nth in 1..=4 {
        world.journal.fail_append(nth, AppendFault::Conflict);
    }
    assert_eq!(world.bank().execute("1", &Do::Deposit(9)).await.unwrap().attempts, 5);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_went_backwards_is_folded_anew() {
    let world = World::with(&[1, 2, 4, 8]);
    world.project(STREAM, usize::MAX).await;
    let bank = world.bank();
    bank.execute("1", &Do::Nothing).await.unwrap();
    world.journal.restore(STREAM, 2);
    let done = bank.execute("1", &Do::Deposit(16)).await.unwrap();
    assert_eq!((done.state.cents, done.revision), (19, Some(2)));
    // The replica is wrong still; a cold process finds out as well, even by a rejection.
    let rejected = world.bank().execute("1", &Do::Withdraw(100)).await.unwrap_err();
    assert_eq!(rejected, CommandError::Rejected(Short(19)));
    // Reset altogether.
    world.journal.restore(STREAM, 0);
    let done = world.bank().execute("1", &Do::Deposit(5)).await.unwrap();
    assert_eq!((done.state.cents, done.revision), (5, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn where_all_history_is_gone_the_servers_revision_is_adopted() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.deposit(&[4, 8]);
    world.journal.truncate_before(STREAM, 4);
    let done = world.bank().execute("1", &Do::Deposit(16)).await.unwrap();
    // Decided on the state in hand; from now on everybody starts with what can be read.
    assert_eq!((done.revision, done.state.cents), (Some(4), 16));
    assert_eq!(world.bank().execute("1", &Do::Nothing).await.unwrap().state, done.state);
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.deposit(&[4]);
    world.journal.truncate_before(STREAM, 3);
    world.bank().execute("1", &Do::Withdraw(3)).await.unwrap();
    // Without any snapshot too.
    let world = World::with(&[1, 2]);
    world.journal.truncate_before(STREAM, 2);
    let done = world.without_snapshots().execute("1", &Do::Deposit(16)).await.unwrap();
    assert_eq!((done.revision, done.state.cents), (Some(2), 16));
}

#[tokio::test(start_paused = true)]
async fn a_hole_between_snapshot_and_history_starts_over() {
    let world = World::with(&[1, 2, 4, 8, 16]);
    world.project(STREAM, 2).await;
    world.journal.truncate_before(STREAM, 3);
    let done = world.bank().execute("1", &Do::Deposit(0)).await.unwrap();
    assert_eq!(
        done.state.cents, 24,
        "as the daemon does: from the first readable event"
    );
    // Truncated up to the snapshot, not beyond: nothing is missing.
    let world = World::with(&[1, 2, 4]);
    world.project(STREAM, 2).await;
    world.journal.truncate_before(STREAM, 2);
    assert_eq!(world.bank().execute("1", &Do::Deposit(0)).await.unwrap().state.cents, 7);
}

#[tokio::test(start_paused = true)]
async fn deleted_streams_end_by_policy() {
    let deleted = |tombstoned| CommandError::Deleted {
        stream: STREAM.into(),
        tombstoned,
    };
    let with = |world: &World, on_deleted| {
        world.bank().with_settings(CommandSettings {
            on_deleted,
            ..settings()
        })
    };
    for projected in [false, true] {
        let make = async || {
            let world = World::with(&[1, 2]);
            if projected {
                world.project(STREAM, usize::MAX).await;
                world.store.change(STREAM, |replica| replica.header.deleted = true);
            }
            world.journal.delete(STREAM);
            world
        };
        let world = make().await;
        assert_eq!(
            with(&world, OnDeleted::Refuse)
                .execute("1", &Do::Deposit(4))
                .await
                .unwrap_err(),
            deleted(false)
        );
        assert_eq!(world.journal.all(STREAM).len(), 2);
        let bank = with(&world, OnDeleted::Continue);
        let done = bank.execute("1", &Do::Deposit(4)).await.unwrap();
        assert_eq!(
            (done.state.cents, done.revision),
            (if projected { 7 } else { 4 }, Some(2))
        );
        let world = make().await;
        let bank = with(&world, OnDeleted::Restart);
        let done = bank.execute("1", &Do::Deposit(4)).await.unwrap();
        assert_eq!((done.state.cents, done.revision), (4, Some(2)));
        assert_eq!(bank.execute("1", &Do::Nothing).await.unwrap().state.cents, 4);
        world.journal.tombstone(STREAM);
        assert_eq!(
            world.bank().execute("1", &Do::Deposit(4)).await.unwrap_err(),
            deleted(true)
        );
    }
    // Deleted behind a rejection on a state that knows nothing of it.
    let world = World::with(&[1]);
    world.project(STREAM, usize::MAX).await;
    world.journal.delete(STREAM);
    assert_eq!(
        world.bank().execute("1", &Do::Withdraw(9)).await.unwrap_err(),
        deleted(false)
    );
}

#[tokio::test(start_paused = true)]
async fn a_restarted_life_does_not_see_the_former_one() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.journal.delete(STREAM);
    world.deposit(&[4]);
    // With commands on deleted streams refused or not: how a new life is folded is another matter.
    for (on_deleted, restarts) in [(OnDeleted::Restart, false), (OnDeleted::Refuse, true)] {
        let bank = world.bank().with_settings(CommandSettings {
            on_deleted,
            restarts,
            ..settings()
        });
        assert_eq!(bank.execute("1", &Do::Nothing).await.unwrap().state.cents, 4);
    }
    assert_eq!(
        world.bank().execute("1", &Do::Nothing).await.unwrap().state.cents,
        7,
        "the policy `continue`"
    );
}

#[tokio::test]
async fn what_could_not_be_read_back_is_not_appended() {
    let world = World::default();
    let error = world.bank().execute("1", &Do::Rate(f64::NAN)).await.unwrap_err();
    assert_eq!(error.class(), "unwritable");
    assert!(error.to_string().contains("Rated"), "{error}");
    assert_eq!(world.journal.all(STREAM), []);
    world.bank().execute("1", &Do::Rate(0.1)).await.unwrap();
}

#[tokio::test]
async fn a_poison_event_in_the_tail_says_where_it_stands() {
    let world = World::with(&[1]);
    world.project(STREAM, usize::MAX).await;
    world
        .journal
        .push(STREAM, vec![crate::testing::journal::event("Unheard", "{}")]);
    let error = world.bank().execute("1", &Do::Deposit(1)).await.unwrap_err();
    assert_eq!(error.class(), "state");
    assert!(
        error.to_string().contains("revision 1") && error.to_string().contains("Unheard"),
        "{error}"
    );
    assert!(!error.can_retry());
}

#[tokio::test]
async fn a_load_is_capped_and_says_what_to_do() {
    let world = World::with(&[1; 50]);
    let bank = world.bank().with_settings(CommandSettings { cap: 20, ..settings() });
    let error = bank.execute("1", &Do::Deposit(1)).await.unwrap_err();
    assert!(error.to_string().contains("more than 20 events"), "{error}");
    world.project(STREAM, usize::MAX).await;
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
}

#[tokio::test]
async fn loads_of_one_aggregate_are_made_once() {
    let world = World::with(&[1; 30]);
    let bank = world.bank();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let bank = bank.clone();
            tokio::spawn(async move { bank.execute("1", &Do::Nothing).await.unwrap().state.cents })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 30);
    }
    // 5 pages once; and each of the others reads its tail.
    assert_eq!(world.journal.calls().reads, 5 + 15);
    // The second time at its freshest, before the second page.
    assert_eq!(world.store.calls().gets, 2);
}

#[tokio::test]
async fn an_id_is_needed_and_metadata_follows_the_conventions() {
    let world = World::default();
    let error = world.bank().execute("", &Do::Deposit(1)).await.unwrap_err();
    assert!(error.to_string().contains("id is empty"));
    let context = Context::default().correlation("order-7");
    let done = world.bank().execute_with("1", &Do::Deposit(1), context).await.unwrap();
    let event = &world.journal.all(STREAM)[0];
    let metadata: serde_json::Value = serde_json::from_slice(&event.metadata).unwrap();
    assert_eq!(metadata["$correlationId"], "order-7");
    assert_eq!(metadata["$causationId"], done.command.to_string());
    assert_eq!(metadata["commandId"], done.command.to_string());
    assert_eq!(metadata["schema"], 1);
    assert!(metadata["executionId"].is_string());
    let id = crate::command::attempt::event_id(done.command, STREAM, 0, &event.kind, &event.data, &event.metadata);
    assert_eq!(event.id, id);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_ends_the_guarantee_and_another_calls_ids_are_no_success() {
    let world = World::default();
    let context = || Context::with_id(uuid::Uuid::from_u128(7));
    let on_deleted = OnDeleted::Restart;
    let bank = || {
        world.without_snapshots().with_settings(CommandSettings {
            on_deleted,
            ..settings()
        })
    };
    bank().execute_with("1", &Do::Deposit(1), context()).await.unwrap();
    world.journal.delete(STREAM);
    // EventStoreDB knows ids of before the deletion, and would call the same ones written.
    let done = bank().execute_with("1", &Do::Deposit(1), context()).await.unwrap();
    assert_eq!((done.repeated, done.revived, done.first), (false, true, 1));
    assert_eq!((done.state.cents, done.revision), (1, Some(1)));
}

#[tokio::test]
async fn another_writers_event_at_the_same_place_is_a_conflict_not_an_idempotent_success() {
    let journal = MemoryJournal::new();
    let event = |id: u128| NewEvent {
        id: uuid::Uuid::from_u128(id),
        ..deposited(1)
    };
    journal.push(STREAM, vec![event(1)]);
    let world = World {
        journal,
        ..World::default()
    };
    let bank = world.bank();
    bank.execute("1", &Do::Nothing).await.unwrap();
    let there = crate::journal::Journal::append(
        &world.journal,
        STREAM,
        Expected::Exact(0),
        vec![event(2)],
        std::time::Duration::from_secs(1),
    );
    there.await.unwrap();
    let done = bank.execute("1", &Do::Deposit(5)).await.unwrap();
    assert_eq!((done.state.cents, done.attempts, done.revision), (7, 2, Some(2)));
}
