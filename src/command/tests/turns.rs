//! Commands of one process on one aggregate: they queue up, and one key is one execution.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use uuid::Uuid;

use super::kit::*;
use crate::{
    aggregate::Command,
    command::{CommandError, CommandSettings, Context},
    journal::JournalError,
};

/// Sixteen writers that never pause; what each of their commands came to.
async fn sixteen(bank: Bank) -> Vec<Result<u32, &'static str>> {
    let writers: Vec<_> = (0..16)
        .map(|_| {
            let bank = bank.clone();
            tokio::spawn(async move {
                let mut outcomes = Vec::new();
                for _ in 0..25 {
                    let done = bank.execute("1", &Do::Deposit(1)).await;
                    outcomes.push(done.map(|done| done.attempts).map_err(|error| error.class()));
                }
                outcomes
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for writer in writers {
        outcomes.extend(writer.await.unwrap());
    }
    outcomes
}

#[tokio::test(start_paused = true)]
async fn sixteen_writers_of_one_process_do_not_race_each_other() {
    let world = World::with(&[1]);
    let outcomes = sixteen(world.bank()).await;
    assert_eq!(outcomes.len(), 400);
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(1)), "{outcomes:?}");
    assert_eq!(world.truth(STREAM).cents, 401);
    // They would without.
    let racing = world.bank().with_settings(CommandSettings { queue: 0, ..settings() });
    let outcomes = sixteen(racing).await;
    assert!(outcomes.iter().any(|outcome| *outcome != Ok(1)));
}

/// Deposits, and counts how often it was decided.
struct Counted(AtomicU32);

impl Command<Account> for Counted {
    type Error = Short;

    fn decide(&self, _: &Account) -> Result<Vec<Entry>, Short> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(vec![Entry::Deposited { cents: 1 }])
    }
}

#[tokio::test(start_paused = true)]
async fn one_key_twice_in_a_process_is_one_execution() {
    for (queue, cache_bytes) in [(1_000, 1 << 20), (0, 1 << 20), (0, 0)] {
        let world = World::with(&[1]);
        let bank = world.bank().with_settings(CommandSettings {
            queue,
            cache_bytes,
            ..settings()
        });
        let command = Counted(AtomicU32::new(0));
        let id = Uuid::from_u128(7);
        let twice = || bank.execute_with("1", &command, Context::with_id(id));
        let (a, b) = tokio::join!(twice(), twice());
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(command.0.into_inner(), 1, "decided once");
        assert_eq!(a.revision, b.revision);
        assert_eq!([a.repeated, b.repeated].iter().filter(|r| **r).count(), 1);
        assert_eq!(world.journal.all(STREAM).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_bounded_and_a_turn_that_does_not_come_is_told() {
    let world = World::with(&[1]);
    world.store.silent(true);
    let bank = world.bank().with_settings(CommandSettings { queue: 1, ..settings() });
    let short = || Context {
        deadline: Some(Duration::from_secs(1)),
        ..Context::default()
    };
    let (first, second, third) = tokio::join!(
        bank.execute("1", &Do::Deposit(1)),
        bank.execute_with("1", &Do::Deposit(1), short()),
        bank.execute("1", &Do::Deposit(1)),
    );
    assert!(first.is_ok());
    let queued = |ahead| CommandError::Queued {
        stream: STREAM.into(),
        ahead,
    };
    assert_eq!(second.unwrap_err(), queued(1));
    let third = third.unwrap_err();
    assert_eq!(third, queued(2));
    assert!(third.can_retry() && third.to_string().contains("2 commands"), "{third}");
    // Another aggregate is not kept.
    assert!(bank.execute("2", &Do::Deposit(1)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_to_those_who_wait_too() {
    let world = World::with(&[1]);
    let refused = || JournalError::Unavailable("connection refused".into());
    for nth in 1..5_000 {
        world.journal.fail_read(nth, refused());
    }
    let bank = world.bank();
    let command = || bank.execute("1", &Do::Deposit(1));
    let (a, b, c) = tokio::join!(command(), command(), command());
    for outcome in [a, b, c] {
        assert_eq!(outcome.unwrap_err(), CommandError::Journal(refused()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_dropped_leaves_its_turn() {
    let world = World::with(&[1; 30]);
    let bank = world.bank();
    for polls in 0..40 {
        let mut command = Box::pin(bank.execute("1", &Do::Deposit(1)));
        let mut waiting = Box::pin(bank.execute("1", &Do::Deposit(1)));
        for _ in 0..polls {
            if futures::poll!(command.as_mut()).is_ready() {
                break;
            }
        }
        let _ = futures::poll!(waiting.as_mut());
        drop(command);
        waiting.await.unwrap();
        assert_eq!(
            bank.execute("1", &Do::Nothing).await.unwrap().state,
            world.truth(STREAM),
            "{polls}"
        );
        bank.forget(None);
    }
}
