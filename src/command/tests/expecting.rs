//! The caller's version (`If-Match`): elsewhere nothing is done, and the answer says where.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use uuid::Uuid;

use super::kit::*;
use crate::{
    command::{CommandError, CommandSettings, Committed, Context, OnDeleted},
    event::{Revision, Version},
    journal::{Expected, Journal},
    testing::AppendFault,
};

const LATE: Duration = Duration::from_millis(60);

fn at(revision: Revision) -> Context {
    Context::default().expecting(revision)
}

fn conflict(expected: Revision, actual: Version) -> CommandError<Short> {
    CommandError::Conflict {
        stream: STREAM.into(),
        expected,
        actual,
    }
}

async fn deposit(bank: &Bank, context: Context) -> Result<Committed<Account>, CommandError<Short>> {
    bank.execute_with("1", &Do::Deposit(5), context).await
}

#[tokio::test(start_paused = true)]
async fn a_command_is_carried_out_at_the_callers_version_and_nowhere_else() {
    for (cached, projected) in [(false, false), (false, true), (true, true)] {
        let world = World::with(&[1, 2, 3]);
        if projected {
            world.project(STREAM, usize::MAX).await;
        }
        let bank = world.bank();
        if cached {
            bank.execute("1", &Do::Nothing).await.unwrap();
        }
        for (expected, actual) in [(0, 2), (1, 2), (3, 2), (99, 2)] {
            assert_eq!(
                deposit(&bank, at(expected)).await,
                Err(conflict(expected, Some(actual)))
            );
            // Before any rule of the command, and though there is nothing to do.
            for command in [Do::Withdraw(1_000), Do::Nothing] {
                let told = bank.execute_with("1", &command, at(expected)).await;
                assert_eq!(told, Err(conflict(expected, Some(actual))), "{command:?}");
            }
        }
        assert_eq!(world.journal.all(STREAM).len(), 3);
        assert_eq!(deposit(&bank, at(2)).await.unwrap().revision, Some(3));
        let nothing = bank.execute_with("1", &Do::Nothing, at(3)).await.unwrap();
        assert_eq!(nothing.revision, Some(3));
    }
    let error = conflict(4, Some(7));
    assert!(!error.can_retry());
    assert!(error.to_string().contains("expected 4, actual 7"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_no_version_fits() {
    let world = World::default();
    assert_eq!(deposit(&world.bank(), at(0)).await, Err(conflict(0, None)));
    assert!(conflict(0, None).to_string().contains("actual none"));
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_behind_or_ahead_answers_for_nobody() {
    let world = World::with(&[1]);
    let bank = world.bank();
    bank.execute("1", &Do::Nothing).await.unwrap();
    world.deposit(&[2, 3]);
    // The cache would have it so.
    assert_eq!(deposit(&bank, at(0)).await, Err(conflict(0, Some(2))));

    let bank = world.bank();
    bank.execute("1", &Do::Nothing).await.unwrap();
    world.deposit(&[4]);
    assert_eq!(deposit(&bank, at(3)).await.unwrap().state, world.truth(STREAM));

    // The event store was restored to an earlier time: the cache is ahead.
    let bank = world.bank();
    bank.execute("1", &Do::Nothing).await.unwrap();
    world.journal.restore(STREAM, 2);
    assert_eq!(deposit(&bank, at(4)).await, Err(conflict(4, Some(1))));
    assert_eq!(deposit(&bank, at(1)).await.unwrap().state, world.truth(STREAM));
}

/// Nothing shows where a deleted stream ends; the server alone can judge the caller's version.
#[tokio::test(start_paused = true)]
async fn a_deleted_stream_is_revived_at_the_callers_version_or_not_at_all() {
    for (cached, projected) in [(false, false), (false, true), (true, false)] {
        let world = World::with(&[1, 2, 3, 4]);
        if projected {
            world.project(STREAM, usize::MAX).await;
        }
        let bank = world.bank_on(OnDeleted::Continue);
        if cached {
            bank.execute("1", &Do::Nothing).await.unwrap();
        }
        world.deposit(&[5, 6]);
        world.journal.delete(STREAM);
        for expected in [3, 4, 6, 99] {
            assert_eq!(
                deposit(&bank, at(expected)).await,
                Err(conflict(expected, Some(5))),
                "{cached} {projected}"
            );
        }
        assert_eq!(world.journal.all(STREAM).len(), 6);
        let done = deposit(&bank, at(5)).await.unwrap();
        assert_eq!((done.revision, done.revived), (Some(6), true));
        assert_eq!(deposit(&bank, at(5)).await, Err(conflict(5, Some(6))));
    }
    // A new life has no version before its first event.
    let world = World::with(&[1, 2, 3, 4]);
    let bank = world.bank_on(OnDeleted::Restart);
    bank.execute("1", &Do::Nothing).await.unwrap();
    world.deposit(&[5, 6]);
    world.journal.delete(STREAM);
    for expected in [3, 5] {
        assert_eq!(deposit(&bank, at(expected)).await, Err(conflict(expected, None)));
    }
    assert_eq!(world.journal.all(STREAM).len(), 6);
}

/// A decision without events is judged by no server.
#[tokio::test(start_paused = true)]
async fn where_nothing_is_appended_a_deleted_streams_version_is_the_one_that_was_decided_on() {
    let world = World::with(&[1, 2, 3, 4]);
    let bank = world.bank_on(OnDeleted::Continue);
    bank.execute("1", &Do::Nothing).await.unwrap();
    world.deposit(&[5, 6]);
    world.journal.delete(STREAM);
    let nothing = bank.execute_with("1", &Do::Nothing, at(3)).await.unwrap();
    assert_eq!(nothing.revision, Some(3));
    for command in [Do::Nothing, Do::Withdraw(1_000)] {
        let told = bank.execute_with("1", &command, at(5)).await;
        assert!(matches!(told, Err(CommandError::Deleted { .. })), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_is_told_at_once_and_not_decided_again() {
    struct Counted(AtomicU32);
    impl crate::aggregate::Command<Account> for Counted {
        type Error = Short;
        fn decide(&self, _: &Account) -> Result<Vec<Entry>, Short> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(vec![Entry::Deposited { cents: 1 }])
        }
    }
    for attempts in [1, 5] {
        let world = World::with(&[1]);
        let bank = world.bank().with_settings(CommandSettings { attempts, ..settings() });
        bank.execute("1", &Do::Nothing).await.unwrap();
        world.journal.before_append(1, |journal| {
            journal.push(STREAM, vec![deposited(9)]);
        });
        let command = Counted(AtomicU32::new(0));
        let told = bank.execute_with("1", &command, at(0)).await;
        assert_eq!(told, Err(conflict(0, Some(1))));
        assert_eq!(command.0.into_inner(), 1);
        assert_eq!(world.journal.all(STREAM).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rival_under_way_is_waited_for_before_it_is_told() {
    for (fault, lands) in [(AppendFault::Late(LATE), true), (AppendFault::Dies(LATE), false)] {
        let world = World::with(&[1]);
        let bank = world.bank();
        bank.execute("1", &Do::Nothing).await.unwrap();
        let before = world.journal.calls().appends;
        world.journal.fail_append(1, fault);
        let journal = world.journal.clone();
        tokio::spawn(async move {
            let rival = vec![deposited(10)];
            journal
                .append(STREAM, Expected::Exact(0), rival, Duration::from_mins(1))
                .await
        });
        while world.journal.calls().appends == before {
            tokio::task::yield_now().await;
        }
        let told = deposit(&bank, at(0)).await;
        if lands {
            assert_eq!(told, Err(conflict(0, Some(1))));
        } else {
            assert_eq!(told.unwrap().state, world.truth(STREAM));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_repetition_is_answered_with_what_was_committed_though_its_version_is_past() {
    let again = || Context::with_id(Uuid::from_u128(7)).expecting(0);
    for later in [0, 3, 60] {
        let world = World::with(&[1]);
        let bank = world.bank();
        let first = deposit(&bank, again()).await.unwrap();
        assert_eq!((first.revision, first.repeated), (Some(1), false));
        world.deposit(&vec![1; later]);
        let projected = world.clone();
        projected.project(STREAM, usize::MAX).await;
        let beginner = world.bank();
        beginner.execute("1", &Do::Nothing).await.unwrap();
        for bank in [bank, beginner, world.bank()] {
            let told = deposit(&bank, again()).await.unwrap();
            assert_eq!((told.revision, told.repeated), (Some(1), true), "{later}");
        }
        // Another command's id does not make an old version a new one.
        let other = Context::with_id(Uuid::from_u128(8)).expecting(0);
        let told = deposit(&world.bank(), other).await;
        assert_eq!(told, Err(conflict(0, Some(1 + later as u64))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_no_conflict_with_oneself() {
    for fault in [AppendFault::LostAfterWrite, AppendFault::LostBeforeWrite] {
        let world = World::with(&[1]);
        world.journal.fail_append(1, fault);
        let done = deposit(&world.bank(), at(0)).await.unwrap();
        assert_eq!((done.revision, done.repeated), (Some(1), false));
        assert_eq!(world.journal.all(STREAM).len(), 2);
    }
}

/// Callers who read a version, add one to what they saw, and say which version that was: with
/// `If-Match` nobody needs a rule in the command, whatever fails on the way.
#[tokio::test(start_paused = true)]
async fn callers_who_say_what_they_saw_lose_no_update() {
    for seed in 0..40 {
        let world = World::with(&[0]);
        world.journal.delay_commits(Duration::from_millis(30), 16, seed);
        world.journal.lose_replies(24, seed);
        let callers: Vec<_> = (0..6_u128)
            .map(|caller| {
                let bank = world.bank();
                tokio::spawn(async move {
                    let mut won = 0;
                    for nth in 0..8_u128 {
                        let seen = bank.execute("1", &Do::Nothing).await.unwrap();
                        let version = seen.version.unwrap();
                        let number = seen.state.cents + 1;
                        let id = Uuid::from_u128((caller << 64) + nth + 1);
                        let context = || Context::with_id(id).expecting(version);
                        loop {
                            match bank.execute_with("1", &Set(number), context()).await {
                                Ok(done) => {
                                    assert_eq!(done.revision, Some(version + 1), "seed {seed}");
                                    won += 1;
                                    break;
                                }
                                Err(CommandError::Conflict { expected, actual, .. }) => {
                                    assert!(expected == version && actual > Some(version), "seed {seed}");
                                    break;
                                }
                                Err(error) if error.can_retry() => {}
                                Err(error) => panic!("seed {seed}: {error}"),
                            }
                        }
                    }
                    won
                })
            })
            .collect();
        let mut won = 0;
        for caller in callers {
            won += caller.await.unwrap();
        }
        assert!(won > 0);
        assert_eq!(world.truth(STREAM).cents, won, "seed {seed}: each number once");
        assert_eq!(world.journal.all(STREAM).len() as i64, won + 1, "seed {seed}");
    }
}

/// Writes the number that its caller worked out.
struct Set(i64);

impl crate::aggregate::Command<Account> for Set {
    type Error = Short;
    fn decide(&self, _: &Account) -> Result<Vec<Entry>, Short> {
        Ok(vec![Entry::Counted { number: self.0 }])
    }
}
