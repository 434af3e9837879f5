//! Whose an append was, what a command id stands for, and what an end says of it.

use std::{
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::kit::*;
use crate::{
    command::{CommandError, CommandSettings, Context, OnDeleted},
    journal::{JournalError, ReadLimit},
    projection::OnLostHistory,
    query::{Mode, Queries},
    testing::{AppendFault, journal},
};

fn key() -> Context {
    Context::with_id(Uuid::from_u128(42))
}

#[tokio::test(start_paused = true)]
async fn one_id_in_two_processes_at_once_lands_once_and_one_says_that_it_is_repeated() {
    for round in 0..50 {
        let world = World::with(&[10]);
        world.journal.delay_commits(Duration::from_millis(30), 0, round);
        let begun = Instant::now();
        let run =
            |bank: Bank| tokio::spawn(async move { bank.execute_with("1", &Do::Withdraw(7), key()).await.unwrap() });
        let (a, b) = (run(world.bank()), run(world.bank()));
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert!(begun.elapsed() < Duration::from_millis(150), "{:?}", begun.elapsed());
        assert!(a.repeated != b.repeated, "{} {}", a.repeated, b.repeated);
        assert_eq!((&a.state, a.revision, &a.events), (&b.state, b.revision, &b.events));
        assert_eq!(world.journal.all(STREAM).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_call_wrote_is_answered_and_never_what_this_one_would_have_written() {
    let world = World::with(&[10]);
    let (one, other) = (world.through(), world.through());
    other.execute("1", &Do::Nothing).await.unwrap();
    one.execute_with("1", &Do::Deposit(5), key()).await.unwrap();
    // On the older base, by code or a clock that makes something else of the same request.
    let done = other.execute_with("1", &Do::Deposit(7), key()).await.unwrap();
    assert_eq!(
        (done.repeated, &done.events[..]),
        (true, &[Entry::Deposited { cents: 5 }][..])
    );
    assert_eq!(done.state, world.truth(STREAM));
    assert_eq!(
        other.execute("1", &Do::Nothing).await.unwrap().state,
        world.truth(STREAM)
    );
    assert_eq!(
        world.store.stored(STREAM).unwrap().header.event.unwrap().id,
        world.journal.all(STREAM)[1].id
    );
}

#[tokio::test(start_paused = true)]
async fn an_append_of_ones_own_that_is_under_way_is_found_by_a_look() {
    let world = World::with(&[10]);
    world
        .journal
        .fail_append(1, AppendFault::LateAndLost(Duration::from_millis(100)));
    let begun = Instant::now();
    let done = world.bank().execute("1", &Do::Withdraw(7)).await.unwrap();
    // Sent again it is not answered for two seconds.
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!((done.repeated, done.state.cents, done.revision), (false, 3, Some(1)));
    assert_eq!(world.truth(STREAM), done.state);
}

#[tokio::test(start_paused = true)]
async fn a_diverged_base_is_not_made_to_look_right_by_its_own_append() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.journal.restore(STREAM, 0);
    world.deposit(&[10, 20]);
    for bank in [world.bank(), world.through()] {
        let done = bank.execute("1", &Do::Deposit(5)).await.unwrap();
        assert_eq!((&done.state, done.repeated), (&world.truth(STREAM), false));
        let next = bank.execute("1", &Do::Deposit(1)).await.unwrap();
        assert_eq!(next.state, world.truth(STREAM), "nor kept");
        assert_eq!(
            world.store.stored(STREAM).unwrap().header.version,
            Some(1),
            "nor written through"
        );
        world.journal.restore(STREAM, 2);
    }
    // The read beside it fails: it is made again before anything is told.
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.journal.fail_read(1, JournalError::Unavailable("scripted".into()));
    let done = world.bank().execute("1", &Do::Deposit(5)).await.unwrap();
    assert_eq!(
        (done.state, done.repeated, done.attempts),
        (world.truth(STREAM), false, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn in_doubt_no_end_is_told_as_a_failure() {
    type Then = fn(&World);
    let poison: Then = |w| _ = w.journal.push(STREAM, vec![journal::event("Unheard", "{}")]);
    let tombstone: Then = |w| w.journal.tombstone(STREAM);
    let cases: [(AppendFault, Then, Option<&str>); 4] = [
        (AppendFault::LostAfterWrite, poison, None),
        (AppendFault::LostBeforeWrite, poison, Some("outcome_unknown")),
        (AppendFault::LostAfterWrite, tombstone, Some("outcome_unknown")),
        (AppendFault::LostBeforeWrite, tombstone, Some("outcome_unknown")),
    ];
    for (index, (fault, then, end)) in cases.into_iter().enumerate() {
        let world = World::with(&[10]);
        let bank = world.bank();
        bank.execute("1", &Do::Nothing).await.unwrap();
        world.journal.fail_append(1, fault);
        let appends = world.journal.calls().appends;
        let happens = async {
            while world.journal.calls().appends == appends {
                tokio::task::yield_now().await;
            }
            // The append itself is over.
            tokio::task::yield_now().await;
            then(&world);
        };
        let (told, ()) = tokio::join!(bank.execute("1", &Do::Deposit(2)), happens);
        match end {
            Some(class) => assert_eq!(told.unwrap_err().class(), class, "{index}"),
            None => assert_eq!(told.unwrap().state.cents, 12, "{index}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_key_and_another_command() {
    let world = World::with(&[100]);
    let bank = world.bank();
    bank.execute_with("1", &Do::Deposit(5), key()).await.unwrap();
    let reused = CommandError::KeyReused {
        command_id: Uuid::from_u128(42),
        landed: "`deposit`".to_owned(),
    };
    let fingerprint = |text: &str| Context {
        fingerprint: Some(text.to_owned()),
        ..Context::with_id(Uuid::from_u128(43))
    };
    bank.execute_with("1", &Do::Deposit(1), fingerprint("a")).await.unwrap();
    // From the cache, from the stream, from the window in the table, and behind it.
    for step in 0..4 {
        if step == 2 {
            world.project(STREAM, usize::MAX).await;
        }
        if step == 3 {
            world.deposit(&[1]);
        }
        let bank = if step == 0 { bank.clone() } else { world.bank() };
        let error = bank.execute_with("1", &Do::Withdraw(5), key()).await.unwrap_err();
        assert_eq!(error, reused, "{step}");
        assert!(!error.can_retry());
        assert!(bank.execute_with("1", &Do::Deposit(5), key()).await.unwrap().repeated);
        let error = bank
            .execute_with("1", &Do::Deposit(1), fingerprint("b"))
            .await
            .unwrap_err();
        assert_eq!(error.class(), "key_reused", "{step}");
        assert!(
            bank.execute_with("1", &Do::Deposit(1), fingerprint("a"))
                .await
                .unwrap()
                .repeated
        );
    }
    // What older code wrote matches by its id alone.
    let mut old = deposited(5);
    old.metadata = format!(r#"{{"commandId":"{}"}}"#, Uuid::from_u128(9)).into();
    world.journal.push(STREAM, vec![old]);
    let context = Context::with_id(Uuid::from_u128(9));
    assert!(
        world
            .bank()
            .execute_with("1", &Do::Withdraw(1), context)
            .await
            .unwrap()
            .repeated
    );
}

#[tokio::test(start_paused = true)]
async fn a_repetition_far_behind_is_read_where_it_stands() {
    let world = World::with(&[1; 1_200]);
    let wide = CommandSettings {
        page: ReadLimit {
            events: 1_000,
            bytes: 1 << 22,
        },
        ..settings()
    };
    let bank = || world.bank().with_settings(wide.clone());
    let first = bank().execute_with("1", &Do::Deposit(7), key()).await.unwrap();
    world.deposit(&[1; 3]);
    world.project(STREAM, usize::MAX).await;
    world.journal.reset_calls();
    let then = bank().execute_with("1", &Do::Deposit(7), key()).await.unwrap();
    assert_eq!(
        (then.repeated, then.revision, &then.events),
        (true, first.revision, &first.events)
    );
    assert_eq!((then.version, &then.state), (Some(1_203), &world.truth(STREAM)));
    let calls = world.journal.calls();
    assert!(calls.reads == 1 && calls.events_read < 10, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_deleted_between_two_pages_is_no_half_a_state() {
    for on_deleted in [OnDeleted::Refuse, OnDeleted::Continue] {
        let world = World::with(&[1; 20]);
        let deletion = async {
            while world.journal.calls().reads < 1 {
                tokio::task::yield_now().await;
            }
            world.journal.delete(STREAM);
        };
        let bank = world.without_snapshots().with_settings(CommandSettings {
            on_deleted,
            ..settings()
        });
        let (told, ()) = tokio::join!(bank.execute("1", &Do::Withdraw(15)), deletion);
        let expected = match on_deleted {
            OnDeleted::Refuse => "deleted",
            _ => "rejected",
        };
        let error = told.unwrap_err();
        assert_eq!(error.class(), expected);
        assert!(!matches!(error, CommandError::Rejected(Short(7))), "half a stream");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_leaves_the_cache_and_no_deadline_is_too_long() {
    // Where the deadline ends in the millisecond in which an append goes out, that one is in doubt.
    while !outage().await {}
}

/// Whether the deadline ended while nothing was under way.
async fn outage() -> bool {
    let world = World::with(&[1; 30]);
    let bank = world.without_snapshots();
    let context = || Context {
        deadline: Some(Duration::MAX),
        ..Context::default()
    };
    bank.execute_with("1", &Do::Deposit(1), context()).await.unwrap();
    world.journal.reset_calls();
    for nth in 1..300 {
        world.journal.fail_append(nth, AppendFault::Unavailable);
    }
    let short = Context {
        deadline: Some(Duration::from_millis(200)),
        ..Context::default()
    };
    let error = bank.execute_with("1", &Do::Deposit(1), short).await.unwrap_err();
    if error.class() == "outcome_unknown" {
        return false;
    }
    assert_eq!(error.class(), "journal");
    bank.execute_with("1", &Do::Deposit(1), context()).await.unwrap();
    assert_eq!(world.journal.calls().reads, 0, "from the cache");
    assert_eq!(world.truth(STREAM).cents, 32);
    true
}

#[tokio::test(start_paused = true)]
async fn strong_never_calls_an_older_replica_confirmed() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.deposit(&[4, 8]);
    world.journal.truncate_before(STREAM, 4);
    let queries = Queries::new(world.journal.clone(), world.store.clone(), Arc::new(fold()));
    assert!(
        queries.get(STREAM, &Mode::Strong).await.unwrap().is_none(),
        "nothing of it is left"
    );
    // A replica that covers it all is the newest that can be had.
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.journal.truncate_before(STREAM, 2);
    let queries = Queries::new(world.journal.clone(), world.store.clone(), Arc::new(fold()));
    let answer = queries.get(STREAM, &Mode::Strong).await.unwrap().unwrap();
    assert_eq!(answer.version(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn lost_history_ends_by_the_projections_policy() {
    let strict = |world: &World| {
        world.bank().with_settings(CommandSettings {
            on_lost_history: OnLostHistory::Quarantine,
            ..settings()
        })
    };
    let world = World::with(&[1, 2, 4, 8]);
    world.journal.truncate_before(STREAM, 2);
    let error = strict(&world).execute("1", &Do::Deposit(16)).await.unwrap_err();
    assert_eq!(error.class(), "state");
    assert!(error.to_string().contains("revisions 0 to 1"), "{error}");
    let done = world.bank().execute("1", &Do::Deposit(16)).await.unwrap();
    assert_eq!((done.state.cents, done.first), (28, 2));
    // Nothing readable at all.
    world.journal.truncate_before(STREAM, 5);
    assert_eq!(
        strict(&world).execute("1", &Do::Deposit(1)).await.unwrap_err().class(),
        "state"
    );
    // A snapshot that covers what is gone is as good as the whole.
    let world = World::with(&[1, 2, 4]);
    world.project(STREAM, 2).await;
    world.journal.truncate_before(STREAM, 2);
    let done = strict(&world).execute("1", &Do::Deposit(8)).await.unwrap();
    assert_eq!((done.state.cents, done.first), (15, 0));
    // The projection has stopped at what is gone: so do its commands, whatever their own settings.
    let world = World::with(&[1, 2, 4, 8]);
    world.project(STREAM, 1).await;
    world.journal.truncate_before(STREAM, 3);
    world.store.change(STREAM, |replica| {
        replica.header.quarantine = Some(crate::replica::Quarantine {
            at: 1,
            reason: "lost".into(),
            by: "x".into(),
        });
    });
    assert_eq!(
        world.bank().execute("1", &Do::Deposit(1)).await.unwrap_err().class(),
        "state"
    );
}

#[tokio::test(start_paused = true)]
async fn a_restarted_life_is_seen_behind_a_cached_state() {
    let world = World::with(&[1, 2]);
    let bank = world.bank_on(OnDeleted::Restart);
    bank.execute("1", &Do::Deposit(4)).await.unwrap();
    // No look tells a cached state of it: the append revives the stream, and the read beside it shows that.
    world.journal.delete(STREAM);
    let done = bank.execute("1", &Do::Deposit(8)).await.unwrap();
    assert_eq!((done.state.cents, done.first, done.revision), (8, 3, Some(3)));
    assert_eq!(bank.execute("1", &Do::Deposit(16)).await.unwrap().state.cents, 24);
    // Found deleted, it is told.
    world.journal.delete(STREAM);
    let fresh = world.bank_on(OnDeleted::Restart);
    let done = fresh.execute("1", &Do::Deposit(1)).await.unwrap();
    assert!(done.revived && done.state.cents == 1);
}

/// Polls a future so many times, and drops it.
pub(super) async fn polled<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    for _ in 0..times {
        if let Poll::Ready(output) = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
            return Some(output);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_at_any_await_leaves_no_wrong_state() {
    let mut finished = 0;
    for times in 0..120 {
        for (through, fault) in [
            (false, None),
            (true, None),
            (true, Some(AppendFault::Late(Duration::from_millis(20)))),
            (true, Some(AppendFault::LostAfterWrite)),
            (false, Some(AppendFault::Conflict)),
            (false, Some(AppendFault::Dies(Duration::from_millis(20)))),
        ] {
            let world = World::with(&[10; 20]);
            world.project(STREAM, 9).await;
            let bank = if through { world.through() } else { world.bank() };
            if let Some(fault) = fault {
                world.journal.fail_append(1, fault);
            }
            let call = bank.execute_with("1", &Do::Withdraw(3), key());
            finished += usize::from(polled(call, times).await.is_some());
            world.journal.calm();
            // A key makes the repetition safe, whatever the dropped call has done.
            let done = bank.execute_with("1", &Do::Withdraw(3), key()).await.unwrap();
            assert_eq!(done.state.cents, 197, "{times} {fault:?}");
            assert_eq!(world.journal.all(STREAM).len(), 21, "{times} {fault:?}");
            let next = bank.execute("1", &Do::Deposit(1)).await.unwrap();
            assert_eq!(next.state, world.truth(STREAM), "{times} {fault:?}");
            if let Some(stored) = world.store.stored(STREAM) {
                let until = stored.header.version.unwrap() as usize;
                let state = fold_of(&world.journal.all(STREAM)[..=until]);
                let answer = Queries::new(world.journal.clone(), world.store.clone(), Arc::new(fold()));
                let answer = answer.get(STREAM, &Mode::Eventual).await.unwrap().unwrap();
                assert_eq!(answer.view::<Account>(), Some(&state), "{times} {fault:?}");
            }
        }
    }
    assert!(
        finished > 100,
        "most calls are cut off, the last ones are not: {finished}"
    );
}
