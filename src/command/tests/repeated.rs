//! The same command id again: one append, the same answer, from everywhere.

use std::time::Duration;

use uuid::Uuid;

use super::kit::*;
use crate::{
    command::{
        CommandSettings, Committed, Context, OnDeleted,
        attempt::{Action, Attempt, AttemptRules, Identity, Reply},
    },
    journal::{Appended, Standing},
    replica::Sort,
};

fn again() -> Context {
    Context::with_id(Uuid::from_u128(42))
}

fn same(first: &Committed<Account>, then: &Committed<Account>) {
    assert!(then.repeated);
    assert_eq!(
        (&then.state, then.version, then.revision),
        (&first.state, first.version, first.revision)
    );
    assert_eq!(then.events, first.events);
    assert_eq!(then.token(), first.token());
}

#[tokio::test(start_paused = true)]
async fn the_same_command_lands_once_from_wherever_it_is_executed_again() {
    for split in [false, true] {
        let world = World::with(&[1; 10]);
        let command = if split { Do::Split(3, 4) } else { Do::Withdraw(2) };
        let landed = 10 + 1 + usize::from(split);
        let bank = world.bank();
        let first = bank.execute_with("1", &command, again()).await.unwrap();
        assert!(!first.repeated);
        let check = async |bank: &Bank, events: usize| {
            same(&first, &bank.execute_with("1", &command, again()).await.unwrap());
            assert_eq!(world.journal.all(STREAM).len(), events);
        };
        check(&bank, landed).await;
        // By another process.
        check(&world.bank(), landed).await;
        // After the cache is gone.
        bank.forget(None);
        check(&bank, landed).await;
        // When the projector is in the middle of it.
        world.project(STREAM, 11).await;
        check(&world.bank(), landed).await;
        // After the projector has passed it.
        world.project(STREAM, usize::MAX).await;
        check(&world.bank(), landed).await;
        // After others have come.
        world.deposit(&[100, 100]);
        check(&bank, landed + 2).await;
        world.project(STREAM, usize::MAX).await;
        check(&world.bank(), landed + 2).await;
        let capped = world.bank().with_settings(CommandSettings { cap: 5, ..settings() });
        let late = capped.execute_with("1", &command, again()).await.unwrap();
        assert_eq!((late.revision, &late.events), (first.revision, &first.events));
        assert!(
            late.repeated && late.version > late.revision,
            "too long to fold again: what could be had"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_same_moment_from_two_processes() {
    for seed in 0..20 {
        let world = World::with(&[5; 3]);
        if seed % 2 == 0 {
            world.project(STREAM, 2).await;
        }
        let run =
            |bank: Bank| tokio::spawn(async move { bank.execute_with("1", &Do::Withdraw(7), again()).await.unwrap() });
        let (a, b) = (run(world.bank()), run(world.bank()));
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert_eq!((&a.state, a.revision, &a.events), (&b.state, b.revision, &b.events));
        assert_ne!(a.repeated, b.repeated, "exactly one of them wrote");
        assert_eq!(world.journal.all(STREAM).len(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn what_landed_and_cannot_be_read_any_more_is_still_known() {
    let world = World::with(&[1]);
    let bank = world.through();
    let first = bank.execute_with("1", &Do::Deposit(2), again()).await.unwrap();
    world.deposit(&[4]);
    world.project(STREAM, usize::MAX).await;
    world.journal.truncate_before(STREAM, 2);
    let then = world.bank().execute_with("1", &Do::Deposit(2), again()).await.unwrap();
    assert_eq!(
        (then.repeated, then.revision, then.events.len()),
        (true, first.revision, 0)
    );
    assert_eq!(world.journal.all(STREAM).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_claims_a_command_the_stream_does_not_have_is_not_believed() {
    let world = World::with(&[1]);
    world
        .through()
        .execute_with("1", &Do::Deposit(2), again())
        .await
        .unwrap();
    // An older backup of the event store, and another event since.
    world.journal.restore(STREAM, 1);
    world.deposit(&[8]);
    let done = world.bank().execute_with("1", &Do::Deposit(2), again()).await.unwrap();
    assert_eq!((done.repeated, done.state.cents, done.revision), (false, 11, Some(2)));
    // The same without an event since.
    world.journal.restore(STREAM, 1);
    let done = world.bank().execute_with("1", &Do::Deposit(2), again()).await.unwrap();
    assert_eq!((done.repeated, done.state.cents), (false, 3));
}

fn few(world: &World, more: impl FnOnce(CommandSettings) -> CommandSettings) -> Bank {
    world.bank().with_settings(more(CommandSettings {
        keep_commands: 2,
        ..settings()
    }))
}

#[tokio::test(start_paused = true)]
async fn the_horizon_is_the_guarantee_and_not_the_window() {
    let world = World::with(&[10]);
    let first = few(&world, |s| s)
        .execute_with("1", &Do::Withdraw(10), again())
        .await
        .unwrap();
    let bank = few(&world, |s| s);
    for _ in 0..50 {
        bank.execute("1", &Do::Deposit(0)).await.unwrap();
    }
    // Decided again it would be rejected; and a cold load is no different from a warm one.
    for projected in [false, true] {
        if projected {
            world.project(STREAM, usize::MAX).await;
        }
        for bank in [bank.clone(), few(&world, |s| s)] {
            same(
                &first,
                &bank.execute_with("1", &Do::Withdraw(10), again()).await.unwrap(),
            );
        }
    }
    assert_eq!(world.journal.all(STREAM).len(), 52);
    // Beyond the horizon it is a new command.
    let short = few(&world, |settings| CommandSettings {
        retry_horizon: Duration::ZERO,
        ..settings
    });
    short.execute("1", &Do::Nothing).await.unwrap();
    let anew = short.execute_with("1", &Do::Withdraw(10), again()).await.unwrap_err();
    assert_eq!(anew.class(), "rejected");
}

#[tokio::test(start_paused = true)]
async fn an_id_costs_nothing_while_the_window_reaches_back_and_one_read_back_where_it_does_not() {
    let id = |n: u32| Context::with_id(Uuid::from_u128(u128::from(n)));
    let world = World::default();
    let bank = world.bank();
    for n in 0..32 {
        bank.execute_with("1", &Do::Deposit(1), id(n)).await.unwrap();
    }
    world.journal.reset_calls();
    let one = |world: &World| world.journal.calls().reads;
    bank.execute_with("1", &Do::Deposit(1), id(100)).await.unwrap();
    assert_eq!(one(&world), 0);
    for n in 200..400 {
        bank.execute("1", &Do::Deposit(1)).await.unwrap();
        if n == 300 {
            world.journal.reset_calls();
            bank.execute_with("1", &Do::Deposit(1), id(n)).await.unwrap();
            let back = one(&world);
            // All of the stream, for it is all younger than the horizon: pages of seven.
            assert!((15..=25).contains(&back), "{back}");
        }
    }
    world.journal.reset_calls();
    for n in 400..450 {
        bank.execute_with("1", &Do::Deposit(1), id(n)).await.unwrap();
    }
    assert_eq!(one(&world), 0, "it knows from memory");
    // What other processes write in between is read, with its own that no read has shown, and no more.
    for _ in 0..35 {
        world.bank().execute("1", &Do::Deposit(1)).await.unwrap();
    }
    world.journal.reset_calls();
    bank.execute_with("1", &Do::Deposit(1), id(450)).await.unwrap();
    assert!(one(&world) <= 20, "{}", one(&world));
    // Who looks at the same time waits for the one who reads.
    let racing = world.bank().with_settings(CommandSettings { queue: 0, ..settings() });
    racing.execute("1", &Do::Nothing).await.unwrap();
    let pages = (world.journal.all(STREAM).len() / 7 + 1) as u64;
    world.journal.reset_calls();
    let commands = (0..4).map(|n| {
        let racing = racing.clone();
        let context = id(500 + n);
        tokio::spawn(async move { racing.execute_with("1", &Do::Nothing, context).await })
    });
    for command in commands.collect::<Vec<_>>() {
        command.await.unwrap().unwrap();
    }
    assert!(one(&world) < 2 * pages, "{} of {pages}", one(&world));
}

#[tokio::test(start_paused = true)]
async fn where_the_horizon_is_out_of_reach_nothing_is_decided() {
    let busy = async || {
        let world = World::with(&[1]);
        let bank = few(&world, |s| s);
        for _ in 0..40 {
            bank.execute("1", &Do::Deposit(1)).await.unwrap();
        }
        world
    };
    // History that is gone.
    let world = busy().await;
    world.journal.truncate_before(STREAM, 20);
    let error = few(&world, |s| s)
        .execute_with("1", &Do::Deposit(1), again())
        .await
        .unwrap_err();
    assert_eq!(error.class(), "out_of_reach");
    assert!(
        !error.can_retry() && error.to_string().contains("without an id"),
        "{error}"
    );
    // More than may be read.
    let world = busy().await;
    world.project(STREAM, usize::MAX).await;
    world.store.change(STREAM, |replica| {
        // As a version of before stored it.
        replica.header.commands.clear();
        replica.header.commands_since = replica.header.event.as_ref().unwrap().at;
    });
    let capped = few(&world, |settings| CommandSettings {
        horizon_cap: 14,
        ..settings
    });
    let error = capped.execute_with("1", &Do::Deposit(1), again()).await.unwrap_err();
    assert_eq!(error.class(), "out_of_reach");
    assert_eq!(world.journal.all(STREAM).len(), 41, "nothing landed");
    // Without an id nobody asks; and with one, once all that is older than the horizon.
    capped.execute("1", &Do::Deposit(1)).await.unwrap();
    let world = World::default();
    world
        .journal
        .set_now(chrono::Utc::now() - chrono::TimeDelta::minutes(6));
    world.deposit(&[1; 40]);
    world.journal.truncate_before(STREAM, 20);
    let done = world.bank().execute_with("1", &Do::Deposit(1), again()).await;
    assert!(done.is_ok(), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn writers_that_keep_fewer_do_not_shrink_the_window() {
    let world = World::default();
    let through = |keep_commands| {
        world.through().with_settings(CommandSettings {
            keep_commands,
            ..settings()
        })
    };
    let many = through(8);
    for _ in 0..10 {
        many.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    let window = || world.store.stored(STREAM).unwrap().header;
    assert_eq!(window().commands.len(), 8);
    assert_eq!(Some(window().commands_since), world_time(&world, 1));
    for _ in 0..3 {
        through(2).execute("1", &Do::Deposit(1)).await.unwrap();
    }
    assert_eq!(window().commands.len(), 8);
    assert_eq!(Some(window().commands_since), world_time(&world, 4));
}

fn world_time(world: &World, revision: usize) -> Option<chrono::DateTime<chrono::Utc>> {
    let events = world.journal.all(STREAM);
    events
        .get(revision)
        .map(|event| crate::replica::stored_time(event.created))
}

fn id(n: u128) -> Context {
    Context::with_id(Uuid::from_u128(n))
}

#[tokio::test(start_paused = true)]
async fn what_is_found_before_the_window_is_no_part_of_it() {
    let world = World::default();
    let bank = few(&world, |s| s);
    bank.execute_with("1", &Do::Deposit(1), again()).await.unwrap();
    for _ in 0..5 {
        bank.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    // This process knows the stream from here on.
    bank.execute_with("1", &Do::Nothing, id(7)).await.unwrap();
    let other = few(&world, |s| s);
    other.execute_with("1", &Do::Deposit(1), id(8)).await.unwrap();
    for _ in 0..5 {
        other.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    // A replay on whose way the oldest command is seen.
    let cache = bank.cache.as_ref().unwrap();
    cache.forget(Some(STREAM));
    let old = bank.execute_with("1", &Do::Deposit(1), again()).await.unwrap();
    assert!(old.repeated);
    let base = cache.get_or_lead(&STREAM.into()).await.ok().unwrap();
    assert_eq!(base.header.commands.len(), 2, "no longer for it");
    let then = bank.execute_with("1", &Do::Deposit(1), id(8)).await.unwrap();
    assert!(then.repeated, "what the others wrote in between is looked at");
    assert_eq!(world.journal.all(STREAM).len(), 12);
}

#[tokio::test(start_paused = true)]
async fn no_horizon_is_too_long() {
    let years = |years: u64| Duration::from_hours(24 * 365 * years);
    for retry_horizon in [years(50), years(60), years(600_000_000), Duration::MAX] {
        let world = World::with(&[1]);
        let bank = few(&world, |settings| CommandSettings {
            retry_horizon,
            ..settings
        });
        let first = bank.execute_with("1", &Do::Deposit(2), again()).await.unwrap();
        for _ in 0..10 {
            bank.execute("1", &Do::Deposit(1)).await.unwrap();
        }
        same(&first, &bank.execute_with("1", &Do::Deposit(2), again()).await.unwrap());
        let fresh = bank.execute_with("1", &Do::Deposit(2), id(7)).await.unwrap();
        assert!(!fresh.repeated, "and a new one is decided");
    }
}

#[tokio::test(start_paused = true)]
async fn truncated_history_is_no_new_life_under_any_policy() {
    for (on_deleted, restarts) in [
        (OnDeleted::Refuse, false),
        (OnDeleted::Continue, false),
        (OnDeleted::Restart, false),
        (OnDeleted::Refuse, true),
    ] {
        let world = World::with(&[1]);
        let bank = || {
            few(&world, |settings| CommandSettings {
                on_deleted,
                restarts,
                ..settings
            })
        };
        bank().execute_with("1", &Do::Deposit(2), again()).await.unwrap();
        let writer = bank();
        for _ in 0..20 {
            writer.execute("1", &Do::Deposit(1)).await.unwrap();
        }
        world.journal.truncate_before(STREAM, 10);
        let error = bank().execute_with("1", &Do::Deposit(2), again()).await.unwrap_err();
        assert_eq!(error.class(), "out_of_reach", "{on_deleted:?} {restarts}");
        assert_eq!(world.journal.all(STREAM).len(), 22);
    }
}

/// The window says since when it has every command: no earlier than the last that it forgot.
#[test]
fn a_command_counts_as_landed_when_its_append_was_answered() {
    let (fold, command) = (fold(), Do::Deposit(1));
    let begun = crate::replica::stored_time(chrono::Utc::now());
    let answered = begun + chrono::TimeDelta::seconds(8);
    let identity = Identity {
        command: Uuid::from_u128(42),
        execution: Uuid::from_u128(43),
        sort: Sort::default(),
        metadata: crate::event::Metadata::default(),
        at: begun,
    };
    let rules = AttemptRules {
        attempts: 1,
        on_deleted: OnDeleted::Refuse,
        known_from: Some(begun),
        expected: None,
        confirmed: false,
        catch_up: settings().catch_up(),
    };
    let mut attempt = Attempt::new(&fold, &command, STREAM, identity, rules);
    nothing_loaded(&mut attempt);
    attempt.apply(Reply::Stands(Ok(Standing::Missing)));
    assert!(matches!(attempt.select(), Action::Append(_)));
    let appended = Appended {
        revision: Some(0),
        positioned: true,
    };
    attempt.apply(Reply::Appended(Ok(appended), None, answered));
    let header = attempt.finish().base.unwrap().header;
    assert_eq!(header.commands[0].at, Some(answered));
}
