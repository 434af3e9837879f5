//! The same command id again, from wherever it may come: one append, the same answer.

use projector::{
    command::{Committed, Context},
    replica::ReplicaStore as _,
};
use uuid::Uuid;

use super::{Account, Bank, Do, World, length};
use crate::support::node::until;

fn again() -> Context {
    Context::with_id(Uuid::from_u128(42))
}

fn same(first: &Committed<Account>, then: &Committed<Account>) {
    assert!(then.repeated);
    assert_eq!(
        (&then.state, then.version, then.revision, &then.events),
        (&first.state, first.version, first.revision, &first.events)
    );
    assert_eq!(then.token(), first.token());
}

#[tokio::test(flavor = "multi_thread")]
async fn by_others_after_the_projector_and_without_a_cache() {
    let world = World::start().await;
    for (id, command, events) in [("one", Do::Withdraw(2), 1), ("two", Do::Split(3, 4), 2)] {
        let stream = format!("account-{id}");
        world.deposit(&stream, &[1; 10]).await;
        let bank = world.bank().await;
        let first = bank.execute_with(id, &command, again()).await.unwrap();
        assert!(!first.repeated && first.events.len() == events);
        let check = async |bank: &Bank, others: usize| {
            same(&first, &bank.execute_with(id, &command, again()).await.unwrap());
            assert_eq!(world.events(&stream).await.len(), 10 + events + others);
        };
        check(&bank, 0).await;
        check(&world.bank().await, 0).await;
        bank.forget(None);
        check(&bank, 0).await;
        let daemon = world.daemon().await;
        daemon.caught_up().await;
        let replica = world.stores.replica(&stream).await.unwrap();
        assert_eq!(replica.header.version, first.revision);
        check(&world.bank().await, 0).await;
        world.deposit(&stream, &[100, 100]).await;
        check(&bank, 2).await;
        until("the projector has passed it", async || {
            let replica = world.table().await.get(&stream, true).await.unwrap();
            replica.unwrap().header.version > first.revision
        })
        .await;
        check(&world.bank().await, 2).await;
        check(&world.through().await, 2).await;
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_moment_from_two_processes() {
    let world = World::start().await;
    let banks = [world.bank().await, world.through().await];
    for round in 0..length(50) {
        let id = format!("{round}");
        if round % 2 == 0 {
            world.deposit(&format!("account-{round}"), &[50]).await;
        }
        let run = |bank: &Bank| {
            let (bank, id) = (bank.clone(), id.clone());
            tokio::spawn(async move { bank.execute_with(&id, &Do::Deposit(7), again()).await.unwrap() })
        };
        let (a, b) = (run(&banks[0]), run(&banks[1]));
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert_eq!(
            (&a.state, a.revision, &a.events, a.token()),
            (&b.state, b.revision, &b.events, b.token())
        );
        assert_ne!(a.repeated, b.repeated, "exactly one of them wrote");
        let events = world.events(&format!("account-{round}")).await;
        assert_eq!(events.len(), if round % 2 == 0 { 2 } else { 1 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_reply_and_a_deadline_the_id_finds_what_landed() {
    let world = World::start().await;
    world.deposit("account-1", &[10]).await;
    let bank = world.bank().await;
    bank.execute("1", &Do::Nothing).await.unwrap();
    let faults = world.stores.events().faults();
    // Written, the reply lost, and nothing answers until the deadline is over.
    faults.lose_append_replies(1);
    faults.refuse_connections(true);
    let context = Context {
        deadline: Some(std::time::Duration::from_millis(500)),
        ..again()
    };
    let told = bank.execute_with("1", &Do::Withdraw(10), context).await.unwrap_err();
    assert_eq!(told.class(), "outcome_unknown");
    faults.refuse_connections(false);
    // On a state that has it, the same withdrawal would be rejected: it is not decided again.
    let done = world
        .bank()
        .await
        .execute_with("1", &Do::Withdraw(10), again())
        .await
        .unwrap();
    assert!(done.repeated);
    assert_eq!((done.state.cents, done.revision), (0, Some(1)));
    assert_eq!(world.events("account-1").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_the_deadline_a_lost_reply_is_the_commands_own_matter() {
    let world = World::start().await;
    world.deposit("account-1", &[10]).await;
    for through in [false, true] {
        let bank = world.bank_by(world.journal(), through).await;
        for command in [Do::Deposit(1), Do::Split(1, 1)] {
            let before = world.events("account-1").await.len();
            world.stores.events().faults().lose_append_replies(1);
            let done = bank.execute("1", &command).await.unwrap();
            let events = world.events("account-1").await;
            assert!(!done.repeated, "asked once, answered once");
            assert_eq!(events.len(), before + done.events.len());
            assert_eq!(done.state, super::fold_of(&events));
        }
    }
}
