//! Lost replies, stores that are unavailable, snapshots that lie.

use std::time::Duration;

use super::kit::*;
use crate::{
    command::{CommandError, CommandSettings, Context, OnDeleted},
    journal::JournalError,
    replica::{Divergence, StoreError, Throttle},
    testing::{AppendFault, PutFault},
};

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_looked_for_and_lands_once() {
    for fault in [
        AppendFault::LostAfterWrite,
        AppendFault::LostBeforeWrite,
        AppendFault::Unavailable,
    ] {
        for command in [Do::Deposit(2), Do::Split(1, 1)] {
            let world = World::with(&[1]);
            world.journal.fail_append(1, fault);
            let done = world.bank().execute("1", &command).await.unwrap();
            assert_eq!((done.state.cents, done.repeated), (3, false), "{fault:?}");
            assert_eq!(world.truth(STREAM), done.state, "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_and_another_writer_at_once() {
    for fault in [AppendFault::LostAfterWrite, AppendFault::LostBeforeWrite] {
        let world = World::with(&[1]);
        world.journal.fail_append(1, fault);
        world.journal.before_append(2, |j| {
            j.push(STREAM, vec![deposited(10)]);
        });
        let bank = world.bank();
        let first = bank.execute("1", &Do::Deposit(2)).await.unwrap();
        bank.execute("1", &Do::Deposit(100)).await.unwrap();
        assert_eq!(world.truth(STREAM).cents, 113, "{fault:?}");
        assert!(first.revision.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_an_unknown_outcome_is_neither_done_nor_failed() {
    let world = World::with(&[1]);
    for nth in 1..2000 {
        world.journal.fail_append(nth, AppendFault::LostBeforeWrite);
    }
    let id = uuid::Uuid::from_u128(5);
    let error = world
        .bank()
        .execute_with("1", &Do::Deposit(2), Context::with_id(id))
        .await
        .unwrap_err();
    assert_eq!(error, CommandError::OutcomeUnknown { command_id: id });
    assert!(error.can_retry() && error.to_string().contains("lands at most once"));
    // With no reply lost it is an outage, and said so.
    let world = World::with(&[1]);
    for nth in 1..2000 {
        world.journal.fail_append(nth, AppendFault::Unavailable);
    }
    let error = world.bank().execute("1", &Do::Deposit(2)).await.unwrap_err();
    assert!(
        matches!(error, CommandError::Journal(JournalError::Unavailable(_))),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_after_a_lost_reply_stays_unknown() {
    let world = World::with(&[1]);
    world.journal.fail_append(1, AppendFault::LostAfterWrite);
    let bank = world.bank();
    bank.execute("1", &Do::Nothing).await.unwrap();
    for nth in 1..2000 {
        world
            .journal
            .fail_read(nth, JournalError::Unavailable("scripted".into()));
    }
    let deadline = Some(Duration::from_secs(1));
    let context = Context {
        deadline,
        ..Context::with_id(uuid::Uuid::from_u128(6))
    };
    let error = bank.execute_with("1", &Do::Deposit(2), context).await.unwrap_err();
    assert_eq!(error.class(), "outcome_unknown");
}

#[tokio::test(start_paused = true)]
async fn reads_that_fail_for_a_while_are_made_again() {
    let world = World::with(&[1; 20]);
    world.journal.fail_read(1, JournalError::Unavailable("scripted".into()));
    world.journal.fail_read(3, JournalError::Unavailable("scripted".into()));
    assert_eq!(
        world.bank().execute("1", &Do::Deposit(2)).await.unwrap().state.cents,
        22
    );
    let denied = JournalError::Denied {
        action: "read".into(),
        remedy: "grant it".into(),
    };
    world.journal.reset_calls();
    world.journal.fail_read(1, denied.clone());
    assert_eq!(
        world.bank().execute("1", &Do::Deposit(2)).await.unwrap_err(),
        CommandError::Journal(denied)
    );
}

#[tokio::test(start_paused = true)]
async fn snapshots_that_cannot_be_used_are_not() {
    type Break = fn(&World);
    let breaks: [Break; 5] = [
        |w| w.store.garble(STREAM),
        |w| w.store.corrupt(STREAM),
        |w| w.store.fail_get(1, StoreError::Unavailable("scripted".into())),
        |w| {
            w.store.fail_get(
                1,
                StoreError::Throttled {
                    table: "t".into(),
                    scope: Throttle::Key,
                },
            );
        },
        |w| {
            w.store.change(STREAM, |replica| {
                let mark = crate::replica::Quarantine::diverged(Divergence::Missing, STREAM, "x".into());
                replica.header.quarantine = Some(mark);
            });
        },
    ];
    for (index, break_it) in breaks.into_iter().enumerate() {
        let world = World::with(&[1, 2, 4]);
        world.project(STREAM, usize::MAX).await;
        break_it(&world);
        let done = world.bank().execute("1", &Do::Deposit(8)).await.unwrap();
        assert_eq!(done.state.cents, 15, "{index}");
    }
    // What an operator must act on is not hidden behind slow commands.
    let world = World::with(&[1]);
    let setup = StoreError::Setup {
        table: "t".into(),
        problem: "missing".into(),
        remedy: "provision".into(),
    };
    world.store.fail_get(1, setup.clone());
    assert_eq!(
        world.bank().execute("1", &Do::Deposit(8)).await.unwrap_err(),
        CommandError::Replica(setup)
    );
}

#[tokio::test(start_paused = true)]
async fn a_diverged_snapshot_is_seen_by_the_tail_read() {
    let diverged = async || {
        let world = World::with(&[1, 2, 4]);
        world.project(STREAM, usize::MAX).await;
        // Another history of the same length, and one event more.
        world.journal.restore(STREAM, 0);
        world.deposit(&[10, 20, 40, 80]);
        world
    };
    let world = diverged().await;
    assert_eq!(
        world.bank().execute("1", &Do::Deposit(1)).await.unwrap().state.cents,
        151
    );
    let world = diverged().await;
    assert_eq!(
        world.bank().execute("1", &Do::Withdraw(100)).await.unwrap().state.cents,
        50
    );
    // Only the id differs: the item belongs to another event store.
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.store.diverge(STREAM);
    world.store.change(STREAM, |r| r.header.version = Some(0));
    assert_eq!(world.bank().execute("1", &Do::Nothing).await.unwrap().state.cents, 3);
}

#[tokio::test(start_paused = true)]
async fn writing_through_never_fails_a_command() {
    for fault in [PutFault::Throttle, PutFault::Unavailable, PutFault::LostReply] {
        let world = World::with(&[1]);
        world.store.fail_put(1, fault);
        let bank = world.through();
        assert_eq!(bank.execute("1", &Do::Deposit(2)).await.unwrap().state.cents, 3);
        assert_eq!(bank.execute("1", &Do::Deposit(2)).await.unwrap().state.cents, 5);
        assert_eq!(world.store.stored(STREAM).unwrap().header.version, Some(2), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_diverged_base_is_never_written_through() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.journal.restore(STREAM, 0);
    world.deposit(&[10, 20]);
    // The append at revision 1 succeeds: nothing tells the histories apart but the ids.
    let bank = world.through();
    bank.execute("1", &Do::Deposit(5)).await.unwrap();
    let stored = world.store.stored(STREAM).unwrap().header;
    assert_eq!(stored.version, Some(1), "the wrong state was not made to look right");
    assert_eq!(
        bank.execute("1", &Do::Nothing).await.unwrap().state.cents,
        35,
        "nor kept"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_command_leaves_the_next_one_a_clean_start() {
    let world = World::with(&[1; 20]);
    for nth in 1..=20 {
        world
            .journal
            .fail_read(nth, JournalError::Unavailable("scripted".into()));
    }
    let bank = world.bank().with_settings(CommandSettings {
        deadline: Duration::from_millis(1),
        ..settings()
    });
    assert_eq!(bank.execute("1", &Do::Deposit(1)).await.unwrap_err().class(), "journal");
    let context = Context {
        deadline: Some(Duration::from_secs(5)),
        ..Context::default()
    };
    assert_eq!(
        bank.execute_with("1", &Do::Deposit(1), context)
            .await
            .unwrap()
            .state
            .cents,
        21
    );
}

#[tokio::test(start_paused = true)]
async fn what_landed_and_was_deleted_before_it_could_be_looked_for_stays_unknown() {
    for (revived, on_deleted) in [
        (false, OnDeleted::Refuse),
        (false, OnDeleted::Continue),
        (true, OnDeleted::Continue),
        (true, OnDeleted::Restart),
    ] {
        let world = World::with(&[10]);
        world.journal.fail_append(1, AppendFault::LostAfterWrite);
        let bank = world.bank().with_settings(CommandSettings {
            on_deleted,
            ..settings()
        });
        let deletion = async {
            while world.journal.all(STREAM).len() < 2 {
                tokio::task::yield_now().await;
            }
            world.journal.delete(STREAM);
            if revived {
                world.deposit(&[1]);
            }
        };
        let (told, ()) = tokio::join!(bank.execute("1", &Do::Withdraw(10)), deletion);
        assert_eq!(told.unwrap_err().class(), "outcome_unknown", "{revived} {on_deleted:?}");
    }
}
