//! The same command id again: one append, the same answer, from everywhere.

use uuid::Uuid;

use super::kit::*;
use crate::command::{Committed, Context, Settings};

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
        let capped = world.bank().with_settings(Settings { cap: 5, ..settings() });
        let late = capped.execute_with("1", &command, again()).await.unwrap();
        assert_eq!((late.revision, &late.events), (first.revision, &first.events));
        assert!(
            late.repeated && late.version > late.revision,
            "too long to fold anew: what could be had"
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

#[tokio::test(start_paused = true)]
async fn the_window_is_the_guarantee() {
    let world = World::default();
    let few = || {
        world.bank().with_settings(Settings {
            keep_commands: 2,
            ..settings()
        })
    };
    few().execute_with("1", &Do::Deposit(1), again()).await.unwrap();
    let bank = few();
    for _ in 0..2 {
        bank.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    // Beyond the window of a state in hand it is a new command; a full replay still sees it.
    assert!(
        few()
            .execute_with("1", &Do::Deposit(1), again())
            .await
            .unwrap()
            .repeated
    );
    assert!(!bank.execute_with("1", &Do::Deposit(1), again()).await.unwrap().repeated);
    assert_eq!(world.truth(STREAM).cents, 4);
}
