//! Conflicts that are answered before what they speak of can be read, and appends that die.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use super::kit::*;
use crate::{
    command::{
        CommandError, CommandSettings, Context, OnDeleted, Repository, SnapshotEvents,
        observe::{Observation, Observer},
    },
    journal::{Expected, Journal, ReadLimit},
    query::{Mode, Queries},
    testing::AppendFault,
};

const LATE: Duration = Duration::from_millis(60);

/// Appends what somebody else has to say, and is back when it is accepted.
async fn rival(world: &World, expected: Expected, fault: AppendFault, cents: &[i64]) {
    let before = world.journal.calls().appends;
    world.journal.fail_append(1, fault);
    let (journal, events) = (world.journal.clone(), cents.iter().copied().map(deposited).collect());
    tokio::spawn(async move { journal.append(STREAM, expected, events, Duration::from_mins(1)).await });
    while world.journal.calls().appends == before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_seat_is_sold_once_though_the_sale_cannot_be_read_yet() {
    for cached in [false, true] {
        let world = World::with(&[10]);
        world.project(STREAM, usize::MAX).await;
        let (one, other) = (world.bank(), world.bank());
        if cached {
            one.execute("1", &Do::Nothing).await.unwrap();
            other.execute("1", &Do::Nothing).await.unwrap();
        }
        world.journal.fail_append(1, AppendFault::Late(LATE));
        let told = tokio::join!(one.execute("1", &Do::Withdraw(7)), other.execute("1", &Do::Withdraw(7)));
        let ((Ok(won), Err(lost)) | (Err(lost), Ok(won))) = told else {
            panic!("both were told the same");
        };
        assert_eq!(won.state.cents, 3);
        assert_eq!(lost, CommandError::Rejected(Short(3)), "{cached}");
        assert_eq!(world.truth(STREAM).cents, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_rival_has_under_way_is_folded_before_the_next_append() {
    // One event, several at once, and a stream's first.
    for (base, cents) in [(vec![1], vec![10]), (vec![1], vec![10, 20, 30]), (vec![], vec![10, 20])] {
        let world = World::with(&base);
        let expected = Expected::from((base.len() as u64).checked_sub(1));
        rival(&world, expected, AppendFault::Late(LATE), &cents).await;
        let bank = world.bank();
        let done = bank.execute("1", &Do::Deposit(2)).await.unwrap();
        assert_eq!(done.state, world.truth(STREAM), "{cents:?}");
        assert_eq!(done.attempts, 2, "a round is no lost race");
        assert_eq!(
            bank.execute("1", &Do::Nothing).await.unwrap().state,
            world.truth(STREAM)
        );
    }
}

/// How long hints were waited for.
#[derive(Default)]
struct Hints(Mutex<Vec<Duration>>);

impl Observer for Hints {
    fn observe(&self, _: &str, observation: Observation) {
        if let Observation::HintAwaited(took) = observation {
            self.0.lock().unwrap().push(took);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn how_long_a_conflict_spoke_of_what_nobody_could_read_is_told() {
    for (fault, deadline, waited) in [
        (AppendFault::Late(LATE), 10_000, 1),
        (AppendFault::Dies(LATE), 10_000, 1),
        // Not settled before the deadline: so long at least.
        (AppendFault::Late(LATE * 10), 200, 1),
        // What can be read at once is not waited for.
        (AppendFault::Late(Duration::ZERO), 10_000, 0),
    ] {
        let world = World::with(&[1]);
        let hints = Arc::new(Hints::default());
        let bank = world.bank().observed_by(hints.clone());
        bank.execute("1", &Do::Nothing).await.unwrap();
        rival(&world, Expected::Exact(0), fault, &[10]).await;
        let deadline = Duration::from_millis(deadline);
        let context = Context {
            deadline: Some(deadline),
            ..Context::default()
        };
        let _ = bank.execute_with("1", &Do::Deposit(2), context).await;
        let told = hints.0.lock().unwrap().clone();
        assert_eq!(told.len(), waited, "{fault:?} {told:?}");
        // No sooner than it was committed or died, and no later than the longest pause after that.
        let (least, most) = (deadline.min(LATE) / 2, deadline.min(LATE + Duration::from_millis(200)));
        assert!(
            told.iter().all(|took| (least..=most).contains(took)),
            "{fault:?} {told:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rival_that_dies_leaves_its_place() {
    for base in [vec![1], vec![]] {
        let world = World::with(&base);
        let expected = Expected::from((base.len() as u64).checked_sub(1));
        rival(&world, expected, AppendFault::Dies(LATE), &[10]).await;
        let done = world.bank().execute("1", &Do::Deposit(2)).await.unwrap();
        assert_eq!((done.revision, done.attempts), (Some(base.len() as u64), 1));
        assert_eq!(
            (done.state.cents, world.truth(STREAM).cents),
            (2 + base.iter().sum::<i64>(), done.state.cents)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_the_wait_and_says_what_was_waited_for() {
    let world = World::with(&[1]);
    rival(
        &world,
        Expected::Exact(0),
        AppendFault::Late(Duration::from_hours(1)),
        &[10],
    )
    .await;
    let error = world.bank().execute("1", &Do::Deposit(2)).await.unwrap_err();
    assert_eq!(
        error,
        CommandError::Contended {
            stream: STREAM.into(),
            attempts: 0,
            awaited: Some(1)
        }
    );
    assert!(error.can_retry() && error.to_string().contains("revision 1"), "{error}");
    // Rounds grow: a slow server is not asked in a loop.
    assert!(world.journal.calls().appends < 150, "{:?}", world.journal.calls());
}

#[tokio::test(start_paused = true)]
async fn a_revival_under_way_is_waited_for() {
    for on_deleted in [OnDeleted::Continue, OnDeleted::Restart] {
        for projected in [false, true] {
            let world = World::with(&[1, 2]);
            if projected {
                world.project(STREAM, usize::MAX).await;
                world.store.change(STREAM, |replica| replica.header.deleted = true);
            }
            world.journal.delete(STREAM);
            rival(&world, Expected::NoStream, AppendFault::Late(LATE), &[10]).await;
            let bank = world.bank_on(on_deleted);
            let done = bank.execute("1", &Do::Deposit(4)).await.unwrap();
            let former = if projected && on_deleted == OnDeleted::Continue {
                3
            } else {
                0
            };
            assert_eq!(
                (done.revision, done.state.cents),
                (Some(3), former + 14),
                "{on_deleted:?} {projected}"
            );
            assert_eq!(bank.execute("1", &Do::Nothing).await.unwrap().state, done.state);
        }
    }
    // With the end of the deleted stream beyond what the snapshot has.
    let world = World::with(&[1, 2, 4]);
    world.project(STREAM, 2).await;
    world.store.change(STREAM, |replica| replica.header.deleted = true);
    world.journal.delete(STREAM);
    let done = world
        .bank_on(OnDeleted::Continue)
        .execute("1", &Do::Deposit(8))
        .await
        .unwrap();
    assert_eq!(done.revision, Some(3));
}

#[tokio::test(start_paused = true)]
async fn only_a_read_that_reaches_it_proves_a_hole() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.deposit(&[4, 8]);
    world.journal.truncate_before(STREAM, 4);
    // Behind the hole somebody's event is under way: it is not part of the hole.
    rival(&world, Expected::Exact(3), AppendFault::Late(LATE), &[16]).await;
    let done = world.bank().execute("1", &Do::Deposit(32)).await.unwrap();
    assert_eq!((done.revision, done.state.cents), (Some(5), 48));
    let queries = Queries::new(world.journal.clone(), world.store.clone(), std::sync::Arc::new(fold()));
    let strong = queries.get(STREAM, &Mode::Strong).await.unwrap().unwrap();
    assert_eq!((strong.view::<Account>(), strong.header.first), (Some(&done.state), 4));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_event_that_skipped_what_can_be_read_is_not_used() {
    let world = World::with(&[1, 2, 4]);
    let stream = SnapshotEvents::<crate::testing::MemoryJournal>::stream(&fold(), STREAM);
    let last = world.journal.all(STREAM)[2].clone();
    let body = serde_json::json!({
        "version": 2, "first": 2, "event_id": last.id, "event_type": "Deposited", "event_at": last.created,
        "commands": [], "state": { "cents": 4, "entries": 1 },
    });
    world.journal.push(
        &stream,
        vec![crate::testing::journal::event("Snapshot", &body.to_string())],
    );
    let bank = || {
        let snapshots = SnapshotEvents::new(world.journal.clone(), 100);
        Repository::<Account, _, _>::new(world.journal.clone(), snapshots).with_settings(settings())
    };
    assert_eq!(bank().execute("1", &Do::Nothing).await.unwrap().state.cents, 7);
    // Where history is gone it is as it should be.
    world.journal.truncate_before(STREAM, 2);
    assert_eq!(bank().execute("1", &Do::Nothing).await.unwrap().state.cents, 4);
}

#[tokio::test(start_paused = true)]
async fn sixteen_writers_write_no_number_twice() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    for (late, dying) in [(5, 0), (5, 20), (80, 20)] {
        let world = World::with(&[0]);
        world.journal.delay_commits(Duration::from_millis(late), dying, seed);
        let banks: Vec<Bank> = (0..4).map(|_| world.bank()).collect();
        let tasks: Vec<_> = (0..16)
            .map(|writer| {
                let bank = banks[writer % 4].clone().with_settings(CommandSettings {
                    attempts: 1000,
                    deadline: Duration::from_mins(10),
                    ..settings()
                });
                tokio::spawn(async move {
                    for n in 0..15 {
                        let id = uuid::Uuid::from_u128((writer * 100 + n) as u128);
                        let done = bank.execute_with("1", &Do::Count, Context::with_id(id)).await.unwrap();
                        assert_eq!(done.state.cents, i64::try_from(done.revision.unwrap()).unwrap());
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        // Each says how many stand before it: a number written twice would not be its revision.
        let events = world.journal.all(STREAM);
        assert_eq!(events.len(), 1 + 16 * 15, "seed {seed}");
        assert_eq!(world.truth(STREAM).cents, 16 * 15, "seed {seed}");
        let slice = world
            .journal
            .read(
                STREAM,
                0,
                ReadLimit {
                    events: 1000,
                    bytes: 1 << 20,
                },
            )
            .await
            .unwrap();
        for event in &slice.events[1..] {
            let body: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
            assert_eq!(body["number"].as_u64(), Some(event.revision), "seed {seed}");
        }
    }
}
