//! Cold loads: what they may cost, what they leave behind, and what the cache makes of it.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::kit::*;
use crate::{
    aggregate::{Aggregate, Command},
    command::{CommandError, CommandSettings, Context, NoSnapshots, Replicas, Repository, SnapshotError},
    event::{Event, Revision},
    journal::{Appended, Expected, Journal, JournalError, NewEvent, ReadLimit, Slice, Standing},
    replica::StoreError,
    testing::{MemoryJournal, MemoryStore},
};

/// An event store whose reads take a second each, or for ever.
#[derive(Clone)]
struct Slow(MemoryJournal, Arc<AtomicBool>);

impl Journal for Slow {
    async fn read(&self, stream: &str, from: Revision, limit: ReadLimit) -> Result<Slice, JournalError> {
        if self.1.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.0.read(stream, from, limit).await
    }

    async fn look(&self, stream: &str) -> Result<Standing, JournalError> {
        self.0.look(stream).await
    }

    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
        deadline: Duration,
    ) -> Result<Appended, JournalError> {
        self.0.append(stream, expected, events, deadline).await
    }
}

impl World {
    fn slow(&self) -> Repository<Account, Slow, Replicas<MemoryStore>> {
        self.hanging(&Arc::default())
    }

    /// Once `hangs` says so, its reads do.
    fn hanging(&self, hangs: &Arc<AtomicBool>) -> Repository<Account, Slow, Replicas<MemoryStore>> {
        let journal = Slow(self.journal.clone(), hangs.clone());
        Repository::new(journal, Replicas::new(self.store.clone())).with_settings(settings())
    }
}

/// One is made beside an append in a hundred, to notice a revival.
#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_beside_an_append_does_not_make_it_unknown() {
    let world = World::with(&[1]);
    let hangs = Arc::new(AtomicBool::new(false));
    let bank = world.hanging(&hangs);
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    hangs.store(true, Ordering::Relaxed);
    for cents in 3..250 {
        let done = bank.execute("1", &Do::Deposit(1)).await.unwrap();
        assert_eq!(done.state.cents, cents);
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_answer_takes_its_share_of_the_deadline() {
    let world = World::with(&[1, 2, 4]);
    world.project(STREAM, usize::MAX).await;
    world.store.silent(true);
    let begun = Instant::now();
    let done = world.bank().execute("1", &Do::Deposit(8)).await.unwrap();
    assert_eq!(done.state.cents, 15);
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(3),
        "{took:?}"
    );
    let short = Context {
        deadline: Some(Duration::from_millis(100)),
        ..Context::default()
    };
    assert!(world.bank().execute_with("1", &Do::Deposit(8), short).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_error_names_the_store_that_failed() {
    let world = World::with(&[1; 200]);
    world.store.silent(true);
    let error = world.slow().execute("1", &Do::Deposit(1)).await.unwrap_err();
    let CommandError::SlowLoad { folded, snapshot, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(*folded > 0);
    assert!(
        matches!(snapshot, Some(SnapshotError::Replica(StoreError::Unavailable(_)))),
        "{snapshot:?}"
    );
    assert!(error.to_string().contains("DynamoDB"), "{error}");
    assert!(error.source().is_some() && error.can_retry());
    // With the table as it should be, the stream is to blame alone.
    let world = World::with(&[1; 200]);
    let error = world.slow().execute("1", &Do::Deposit(1)).await.unwrap_err();
    assert!(!error.to_string().contains("DynamoDB"), "{error}");
    // And where the event store is unavailable, it is.
    let world = World::with(&[1]);
    let refused = || JournalError::Unavailable("connection refused".into());
    for nth in 1..5_000 {
        world.journal.fail_read(nth, refused());
    }
    assert_eq!(
        world.bank().execute("1", &Do::Deposit(1)).await.unwrap_err(),
        CommandError::Journal(refused())
    );
}

#[tokio::test(start_paused = true)]
async fn a_cold_load_that_is_cut_off_keeps_what_it_folded() {
    // 20 pages of a second each; a command has ten.
    let world = World::with(&[1; 140]);
    let bank = world.slow();
    let mut calls = 0;
    let done = loop {
        calls += 1;
        match bank.execute("1", &Do::Withdraw(140)).await {
            Ok(done) => break done,
            Err(error) => assert_eq!(error.class(), "slow_load"),
        }
        assert!(calls < 5, "it never ends");
    };
    assert_eq!((done.state.cents, calls), (0, 3));
    // A page more for each call that goes on, to see that it goes on in the same stream.
    assert!(world.journal.calls().reads <= 20 + 3 + 3, "{:?}", world.journal.calls());
    // Dropped, the same; and what it left is no state to answer from.
    let bank = world.slow();
    for _ in 0..3 {
        let cut = tokio::time::timeout(Duration::from_millis(6_500), bank.execute("1", &Do::Nothing));
        assert!(cut.await.is_err());
    }
    let rejected = bank.execute("1", &Do::Withdraw(1)).await.unwrap_err();
    assert_eq!(rejected, CommandError::Rejected(Short(0)));
}

#[tokio::test(start_paused = true)]
async fn catching_up_that_is_cut_off_keeps_what_it_folded() {
    let world = World::with(&[1; 7]);
    world.project(STREAM, usize::MAX).await;
    // 20 pages of a second each beyond the replica.
    for _ in 0..20 {
        world.deposit(&[1; PAGE.events]);
    }
    let bank = world.slow();
    let mut calls = 0;
    let done = loop {
        calls += 1;
        match bank.execute("1", &Do::Withdraw(147)).await {
            Ok(done) => break done,
            Err(error) => assert!(error.can_retry(), "{error}"),
        }
        assert!(calls < 5, "it never ends");
    };
    assert_eq!(done.state.cents, 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_cut_off_load_left_is_compared_with_the_stream() {
    for deleted in [false, true] {
        let world = World::with(&[1; 140]);
        let bank = world.slow();
        assert!(bank.execute("1", &Do::Nothing).await.is_err());
        if deleted {
            world.journal.delete(STREAM);
            let error = bank.execute("1", &Do::Nothing).await.unwrap_err();
            assert_eq!(error.class(), "deleted");
        } else {
            world.journal.restore(STREAM, 0);
            world.deposit(&[5]);
            assert_eq!(bank.execute("1", &Do::Nothing).await.unwrap().state.cents, 5);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_table_a_command_folds_the_stream() {
    let world = World::with(&[1, 2]);
    for nth in 1..=2 {
        world.store.fail_get(
            nth,
            StoreError::NoTable {
                table: "projector-account-s1".into(),
                problem: "a test".into(),
            },
        );
    }
    assert_eq!(world.bank().execute("1", &Do::Deposit(4)).await.unwrap().state.cents, 7);
}

#[tokio::test]
async fn a_constant_state_weighs_the_same_for_ever() {
    let world = World::default();
    let bank = world.bank();
    let weight = || bank.cache.as_ref().unwrap().weight();
    for _ in 0..100 {
        bank.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    let before = weight();
    for _ in 0..500 {
        bank.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    assert!(weight() <= before + 200, "{before} {}", weight());
    assert!(before < 10_000, "{before}");
}

/// A state that grows by more than its events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Pages(Vec<String>);

#[derive(Serialize, Deserialize)]
enum Turned {
    Turned {},
}
impl Event for Turned {}

impl Aggregate for Pages {
    const CATEGORY: &'static str = "pages";
    type Event = Turned;

    fn apply(&mut self, _: Turned) {
        self.0.push("x".repeat(1_000));
    }
}

struct Turn;

impl Command<Pages> for Turn {
    type Error = Short;

    fn decide(&self, _: &Pages) -> Result<Vec<Turned>, Short> {
        Ok(vec![Turned::Turned {}])
    }
}

#[tokio::test]
async fn the_cache_weighs_states_and_ids_and_keeps_to_its_bound() {
    let journal = MemoryJournal::new();
    let pages = Repository::<Pages, _, _>::new(journal.clone(), NoSnapshots).with_settings(CommandSettings {
        // No state is larger than a shard of it.
        cache_bytes: 32 << 20,
        ..settings()
    });
    let weight = || pages.cache.as_ref().unwrap().weight();
    for n in 1..=100_u64 {
        pages.execute("1", &Turn).await.unwrap();
        // A kilobyte each, and its command's id; no more than a few are not weighed yet.
        assert!(weight() >= 1_000 * n / 2, "{n}: {}", weight());
    }
    for id in 0..40 {
        for _ in 0..20 {
            pages.execute(&id.to_string(), &Turn).await.unwrap();
        }
        assert!(weight() <= 32 << 20);
    }
    // Ids alone, in a state of nothing.
    let bank = World::default().bank();
    for _ in 0..32 {
        bank.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    assert!(bank.cache.as_ref().unwrap().weight() >= 32 * 32);
}
