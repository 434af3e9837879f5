//! The query modes, one by one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta};

use super::kit::*;
use crate::{
    command::observe::{Observation, Observer},
    event::Version,
    journal::JournalError,
    projection::{MergePatch, OnLostHistory, Source},
    query::{Answer, Erased, Found, Known, Limits, Mode, Moment, Queries, QueryError, Token, WhenLate},
    replica::{Quarantine, StoreError},
    testing::{MemoryJournal, MemoryStore},
};

fn queries(world: &World) -> Queries<Erased, MemoryJournal, MemoryStore> {
    Queries::new(world.journal.clone(), world.store.clone(), Arc::new(fold()))
}

fn cents(answer: &Answer) -> i64 {
    answer.view::<Account>().unwrap().cents
}

fn at_least(version: Version, then: WhenLate) -> Mode {
    Mode::AtLeast {
        token: Token::new(STREAM, version),
        timeout: Duration::from_secs(1),
        then,
    }
}

#[tokio::test(start_paused = true)]
async fn each_mode_is_as_fresh_as_it_says() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.deposit(&[4]);
    let queries = queries(&world);
    let get = async |mode: Mode| queries.get(STREAM, &mode).await.unwrap().unwrap();
    let seen = |answer: &Answer| (cents(answer), answer.known);
    world.journal.reset_calls();
    assert_eq!(seen(&get(Mode::Eventual).await), (3, Known::Eventual));
    assert_eq!(world.journal.calls().total(), 0);
    assert_eq!(
        seen(&get(at_least(Some(1), WhenLate::FoldTail)).await),
        (3, Known::AtLeast)
    );
    assert_eq!(world.journal.calls().total(), 0);
    assert_eq!(seen(&get(Mode::Strong).await), (7, Known::Confirmed));
    assert_eq!((world.journal.calls().reads, world.journal.calls().events_read), (1, 2));
    assert_eq!(
        seen(&get(at_least(Some(2), WhenLate::FoldTail)).await),
        (7, Known::Confirmed)
    );
    assert_eq!(
        seen(&get(at_least(Some(2), WhenLate::AnswerBehind)).await),
        (3, Known::Behind)
    );
    for (revision, expected) in [(0, 1), (1, 3), (2, 7), (9, 7)] {
        let answer = get(Mode::AsOf(Moment::Revision(revision))).await;
        assert_eq!(seen(&answer), (expected, Known::AsOf));
        assert_eq!(answer.version(), Some(revision.min(2)));
    }
    assert!(queries.get("account-9", &Mode::Strong).await.unwrap().is_none());
    assert!(queries.get("account-9", &Mode::Eventual).await.unwrap().is_none());
    let many = queries.get_many(&["account-9".into(), STREAM.into()]).await.unwrap();
    assert!(matches!(&many[..], [Ok(None), Ok(Some(first))] if cents(first) == 3));
}

/// Where the daemon has an aggregate's events from does not change its streams' names: `config` tells
/// operators to take a prefix of `$all` for categories that `$by_category` would cut.
#[tokio::test(start_paused = true)]
async fn an_aggregates_queries_are_on_the_streams_that_its_commands_write() {
    let world = World::with(&[1, 2]);
    let token = world.bank().execute("1", &Do::Deposit(4)).await.unwrap().token();
    for source in ["all:stream-prefix:account-", "stream:account-1", "category:konto"] {
        let queries = Queries::<Account, _, _>::of(world.journal.clone(), world.store.clone());
        let queries = queries.on(source.parse().unwrap());
        let mode = Mode::AtLeast {
            token: token.clone(),
            timeout: Duration::from_secs(1),
            then: WhenLate::FoldTail,
        };
        for mode in [Mode::Strong, mode] {
            let answer = queries.get("1", &mode).await.unwrap().unwrap();
            assert_eq!(answer.state.cents, 7, "{source}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_least_waits_for_the_projector() {
    let world = World::with(&[1]);
    let queries = queries(&world);
    let mode = at_least(Some(0), WhenLate::AnswerBehind);
    let waiting = tokio::spawn(async move { queries.get(STREAM, &mode).await.unwrap().unwrap() });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    // Every eventually consistent read from now on is stale: the waiting ones must not be.
    world.store.stale_by(1);
    world.project(STREAM, usize::MAX).await;
    assert_eq!(waiting.await.unwrap().known, Known::AtLeast);
    let other = Mode::AtLeast {
        token: "account-2@0".parse().unwrap(),
        timeout: Duration::ZERO,
        then: WhenLate::FoldTail,
    };
    let error = Queries::new(world.journal, world.store, Arc::new(fold()))
        .get(STREAM, &other)
        .await
        .unwrap_err();
    assert!(matches!(error, QueryError::WrongToken { .. }));
}

#[tokio::test(start_paused = true)]
async fn at_least_waits_for_the_table_too() {
    let world = World::with(&[1]);
    world.project(STREAM, usize::MAX).await;
    let queries = queries(&world);
    let away = || StoreError::Unavailable("a test".into());
    world.store.fail_get(1, away());
    let answer = queries.get(STREAM, &at_least(Some(0), WhenLate::AnswerBehind)).await;
    assert_eq!(answer.unwrap().unwrap().known, Known::AtLeast);
    // Away all the time: the stream has it; and where it is not asked, the reason is told.
    let fail = || (1..=100).for_each(|nth| world.store.fail_get(nth, away()));
    fail();
    let answer = queries.get(STREAM, &at_least(Some(0), WhenLate::FoldTail)).await;
    assert_eq!(answer.unwrap().unwrap().known, Known::Confirmed);
    fail();
    let answer = queries.get(STREAM, &at_least(Some(0), WhenLate::AnswerBehind)).await;
    assert_eq!(answer.unwrap_err(), QueryError::Replica(away()));
}

#[tokio::test(start_paused = true)]
async fn a_stale_table_read_costs_no_replay() {
    let world = World::with(&[1; 70]);
    world.project(STREAM, usize::MAX).await;
    // The eventually consistent read does not see the item yet.
    world.store.stale_by(1);
    let seen = Arc::new(Replayed::default());
    let queries = queries(&world)
        .with_limits(Limits {
            page: PAGE,
            ..Limits::default()
        })
        .observed_by(seen.clone());
    world.journal.reset_calls();
    for (mode, events) in [
        (Mode::Strong, 7),
        (Mode::AsOf(Moment::Revision(69)), 7),
        (Mode::AsOf(Moment::Revision(20)), 21),
    ] {
        let answer = queries.get(STREAM, &mode).await.unwrap().unwrap();
        assert_eq!(cents(&answer) as u64, answer.version().unwrap() + 1);
        assert_eq!(seen.0.swap(0, Ordering::Relaxed), events, "{mode:?}");
    }
}

/// Events folded, as a query's end tells them.
#[derive(Default)]
struct Replayed(AtomicUsize);

impl Observer for Replayed {
    fn observe(&self, _: &str, observation: Observation) {
        if let Observation::Ended { replayed, .. } = observation {
            self.0.fetch_add(replayed, Ordering::Relaxed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_past_by_time() {
    let world = World::default();
    let at = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
    for (index, cents) in [1, 2, 4].into_iter().enumerate() {
        world.journal.set_now(at(10 * index as i64));
        world.deposit(&[cents]);
    }
    for projected in [0, 1, 3] {
        if projected > 0 {
            world.project(STREAM, projected).await;
        }
        for (seconds, expected) in [(0, 1), (9, 1), (10, 3), (25, 7)] {
            let mode = Mode::AsOf(Moment::Time(at(seconds)));
            assert_eq!(
                cents(&queries(&world).get(STREAM, &mode).await.unwrap().unwrap()),
                expected
            );
        }
        let before = Mode::AsOf(Moment::Time(at(-1)));
        assert!(queries(&world).get(STREAM, &before).await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_and_quarantined() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.journal.delete(STREAM);
    let queries = queries(&world);
    let deleted = |tombstoned| QueryError::Deleted {
        stream: STREAM.into(),
        tombstoned,
    };
    for mode in [
        Mode::Strong,
        Mode::AsOf(Moment::Revision(1)),
        at_least(Some(5), WhenLate::FoldTail),
    ] {
        assert_eq!(queries.get(STREAM, &mode).await.unwrap_err(), deleted(false));
    }
    world.store.change(STREAM, |replica| replica.header.deleted = true);
    let answer = queries.get(STREAM, &Mode::Eventual).await.unwrap().unwrap();
    assert!(answer.header.deleted && cents(&answer) == 3);
    world.store.change(STREAM, |replica| replica.view = None);
    assert!(
        queries
            .get(STREAM, &Mode::Eventual)
            .await
            .unwrap()
            .unwrap()
            .header
            .deleted
    );
    // Alive again, whatever the mark says still.
    world.deposit(&[4]);
    let answer = queries.get(STREAM, &Mode::Strong).await.unwrap().unwrap();
    assert_eq!(
        (cents(&answer), answer.header.first, answer.header.deleted),
        (4, 2, false)
    );
    world.journal.tombstone(STREAM);
    assert_eq!(queries.get(STREAM, &Mode::Strong).await.unwrap_err(), deleted(true));

    let world = World::with(&[1]);
    world.project(STREAM, usize::MAX).await;
    world
        .journal
        .push(STREAM, vec![crate::testing::journal::event("Unheard", "{}")]);
    world.store.change(STREAM, |replica| {
        replica.header.quarantine = Some(Quarantine {
            at: 1,
            reason: "Unheard".into(),
            by: "x".into(),
        });
    });
    let queries = super::queries::queries(&world);
    let begun = tokio::time::Instant::now();
    let behind = queries
        .get(STREAM, &at_least(Some(1), WhenLate::AnswerBehind))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (behind.known, behind.header.quarantine.is_some()),
        (Known::Behind, true)
    );
    assert_eq!(begun.elapsed(), Duration::ZERO, "waiting would change nothing");
    assert_eq!(queries.get(STREAM, &Mode::Strong).await.unwrap_err().class(), "state");
    assert!(
        queries
            .get(STREAM, &Mode::Eventual)
            .await
            .unwrap()
            .unwrap()
            .header
            .quarantine
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn strong_believes_no_snapshot_against_the_stream() {
    let spoil: [fn(&World); 5] = [
        |w| w.store.garble(STREAM),
        |w| w.store.corrupt(STREAM),
        |w| w.store.diverge(STREAM),
        |w| {
            w.journal.restore(STREAM, 0);
            w.deposit(&[3, 4]);
        },
        |w| w.journal.restore(STREAM, 1),
    ];
    for spoil in spoil {
        let world = World::with(&[1, 2]);
        world.project(STREAM, usize::MAX).await;
        spoil(&world);
        let answer = queries(&world).get(STREAM, &Mode::Strong).await.unwrap().unwrap();
        assert_eq!(*answer.view::<Account>().unwrap(), world.truth(STREAM));
    }
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    world.store.garble(STREAM);
    let error = queries(&world).get(STREAM, &Mode::Eventual).await.unwrap_err();
    assert!(error.to_string().contains("strong mode"), "{error}");
    // The event store unavailable for a while, and for longer.
    world.journal.fail_read(1, JournalError::Unavailable("scripted".into()));
    queries(&world).get(STREAM, &Mode::Strong).await.unwrap();
    world.journal.reset_calls();
    for nth in 1..5000 {
        world
            .journal
            .fail_read(nth, JournalError::Unavailable("scripted".into()));
    }
    assert!(
        queries(&world)
            .get(STREAM, &Mode::Strong)
            .await
            .unwrap_err()
            .can_retry()
    );
}

#[tokio::test(start_paused = true)]
async fn projections_known_only_at_start_are_answered_too() {
    let world = World::default();
    let push = |body: &str| {
        world.journal.push(
            "loan-1",
            vec![crate::testing::journal::event("W_Completeren aanvraag", body)],
        )
    };
    push(r#"{"amount":20000,"by":{"user":"112"}}"#);
    push(r#"{"by":{"user":"113"}}"#);
    let fold = MergePatch::new("loan", 1, Source::Category("loan".into()), "x");
    let queries = Queries::new(world.journal.clone(), world.store.clone(), Arc::new(fold));
    let answer = queries.get("loan-1", &Mode::Strong).await.unwrap().unwrap();
    let document = crate::document::json::to_string(&answer.document().unwrap());
    assert_eq!(document, r#"{"amount":20000,"by":{"user":"113"}}"#);
}

#[tokio::test(start_paused = true)]
async fn other_limits_leave_the_policies_of_the_settings() {
    let world = World::with(&[1; 20]);
    world.journal.truncate_before(STREAM, 10);
    let queries = queries(&world)
        .under(false, OnLostHistory::Quarantine)
        .with_limits(Limits {
            page: PAGE,
            ..Limits::default()
        });
    assert!(queries.get(STREAM, &Mode::Strong).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_deletion_between_two_pages_is_no_streams_end() {
    let world = World::with(&[1; 20]);
    let queries = queries(&world).with_limits(Limits {
        page: PAGE,
        ..Limits::default()
    });
    let deletion = async {
        while world.journal.calls().reads < 1 {
            tokio::task::yield_now().await;
        }
        world.journal.delete(STREAM);
    };
    let (answer, ()) = tokio::join!(queries.get(STREAM, &Mode::Strong), deletion);
    assert_eq!(answer.unwrap_err().class(), "deleted");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_reached_by_its_own_event_only() {
    let world = World::with(&[1, 2]);
    let done = world.bank().execute("1", &Do::Deposit(4)).await.unwrap();
    world.project(STREAM, usize::MAX).await;
    let queries = queries(&world);
    let ask = |token: &Token, then| Mode::AtLeast {
        token: token.clone(),
        timeout: Duration::from_secs(1),
        then,
    };
    let ours = done.token();
    assert_eq!(ours.event, Some(world.journal.all(STREAM)[2].id));
    let answer = queries.get(STREAM, &ask(&ours, WhenLate::AnswerBehind)).await;
    assert_eq!(answer.unwrap().unwrap().known, Known::AtLeast);
    // Both stores were restored to before it, and others have written since.
    world.journal.restore(STREAM, 2);
    world.deposit(&[8]);
    world.store.remove(STREAM);
    world.project(STREAM, usize::MAX).await;
    let begun = tokio::time::Instant::now();
    for then in [WhenLate::AnswerBehind, WhenLate::FoldTail] {
        let answer = queries.get(STREAM, &ask(&ours, then)).await.unwrap().unwrap();
        assert_eq!(
            (cents(&answer), answer.known),
            (11, Known::Behind),
            "{then:?}: another event stands there"
        );
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "waiting would change nothing");
    // A replica that has yet to come there: the tail is folded across it, and tells.
    world.store.remove(STREAM);
    world.project(STREAM, 2).await;
    let answer = queries.get(STREAM, &ask(&ours, WhenLate::FoldTail)).await;
    assert_eq!(answer.unwrap().unwrap().known, Known::Behind);
    // A token without an event, as they were before, asks for the version alone.
    let of_before: Token = "account-1@2".parse().unwrap();
    let answer = queries.get(STREAM, &ask(&of_before, WhenLate::FoldTail)).await;
    assert_eq!(answer.unwrap().unwrap().known, Known::Confirmed);
}

#[tokio::test(start_paused = true)]
async fn the_time_out_bounds_all_of_it() {
    let world = World::with(&[1]);
    world.store.silent(true);
    let queries = queries(&world);
    for (then, answers) in [(WhenLate::FoldTail, true), (WhenLate::AnswerBehind, false)] {
        let begun = tokio::time::Instant::now();
        let answer = queries.get(STREAM, &at_least(Some(0), then)).await;
        assert!(begun.elapsed() <= Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(answer.is_ok(), answers, "{answer:?}");
    }
    // And where the event store is unavailable too, and for waits beyond every clock.
    let away = || JournalError::Unavailable("connection refused".into());
    for nth in 1..5_000 {
        world.journal.fail_read(nth, away());
    }
    let begun = tokio::time::Instant::now();
    let error = queries.get(STREAM, &at_least(Some(0), WhenLate::FoldTail)).await;
    assert_eq!(error.unwrap_err(), QueryError::Journal(away()));
    assert!(begun.elapsed() <= Duration::from_secs(1));
    let world = World::with(&[1]);
    world.project(STREAM, usize::MAX).await;
    let queries = super::queries::queries(&world);
    let mode = Mode::AtLeast {
        token: Token::new(STREAM, Some(0)),
        timeout: Duration::MAX,
        then: WhenLate::FoldTail,
    };
    assert!(queries.get(STREAM, &mode).await.is_ok());
}

/// The number of deposits above 100; others change nothing.
struct Large;

impl crate::projection::Projection for Large {
    const NAME: &'static str = "large";
    type Event = Entry;
    type View = u32;

    fn project(view: &mut u32, event: crate::event::Recorded<Entry>) -> crate::projection::Change {
        match event.event {
            Entry::Deposited { cents } if cents > 100 => {
                *view += 1;
                crate::projection::Change::Put
            }
            _ => crate::projection::Change::Keep,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_changes_nothing_is_not_waited_for() {
    let world = World::with(&[500, 1]);
    let fold: Arc<dyn crate::projection::Fold> = Arc::new(crate::projection::Compiled::<Large>::new("x"));
    // As the daemon leaves it: the version of what changed nothing is stored later.
    let put = async |events: usize| {
        let events = &world.journal.all(STREAM)[..events];
        let folded = crate::projection::folding::fold_events(
            &*fold,
            (&crate::replica::Header::new(), &fold.initial()),
            events,
            0,
        );
        let replica = crate::replica::Replica {
            header: folded.header,
            view: Some(crate::projection::StoredState::Document(
                fold.encode(&folded.state).unwrap().view,
            )),
            fold: None,
            projected_at: None,
            bytes: 0,
            promoted: Vec::new(),
        };
        world.store.set(STREAM, replica);
    };
    put(1).await;
    world.deposit(&[2, 3]);
    let queries = Queries::new(world.journal.clone(), world.store.clone(), fold.clone());
    for then in [WhenLate::AnswerBehind, WhenLate::FoldTail] {
        let begun = tokio::time::Instant::now();
        let answer = queries.get(STREAM, &at_least(Some(3), then)).await.unwrap().unwrap();
        assert_eq!(
            (answer.known, answer.view::<u32>(), answer.version()),
            (Known::AtLeast, Some(&1), Some(3))
        );
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    }
    // One that changes something is waited for, and nothing is made of another past's replica.
    world.deposit(&[700]);
    let answer = queries.get(STREAM, &at_least(Some(4), WhenLate::AnswerBehind)).await;
    assert_eq!(answer.unwrap().unwrap().known, Known::Behind);
    world.store.diverge(STREAM);
    let answer = queries.get(STREAM, &at_least(Some(3), WhenLate::AnswerBehind)).await;
    assert_eq!(answer.unwrap().unwrap().known, Known::Behind);
}

#[tokio::test(start_paused = true)]
async fn by_type_absent_marked_and_zero_are_told_apart() {
    let world = World::with(&[0]);
    world.project(STREAM, usize::MAX).await;
    let queries = Queries::<Account, _, _>::of(world.journal.clone(), world.store.clone());
    let zero = queries.get("1", &Mode::Eventual).await.unwrap().unwrap();
    assert_eq!((zero.state.cents, zero.state.entries), (0, 1));
    assert!(queries.get("2", &Mode::Eventual).await.unwrap().is_none());
    let mark = |reason: &str| Quarantine {
        at: 1,
        reason: reason.to_owned(),
        by: "test".into(),
    };
    // At its last good version, and marked.
    world
        .store
        .change(STREAM, |replica| replica.header.quarantine = Some(mark("odd")));
    let marked = queries.get("1", &Mode::Eventual).await.unwrap().unwrap();
    assert_eq!(
        (marked.state, marked.header.quarantine),
        (zero.state, Some(mark("odd")))
    );
    // There is none: no state is made up.
    world.store.change(STREAM, |replica| {
        (replica.view, replica.header.version) = (None, None);
    });
    let error = queries.get("1", &Mode::Eventual).await.unwrap_err();
    assert!(matches!(error, QueryError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("odd"), "{error}");
    let many = queries.get_many(&["1", "2"]).await.unwrap();
    assert!(matches!(&many[..], [Err(QueryError::Unusable { .. }), Ok(None)]));
}

#[tokio::test(start_paused = true)]
async fn of_many_one_bad_item_is_no_matter_to_the_others() {
    let world = World::with(&[1, 2]);
    world.project(STREAM, usize::MAX).await;
    for stream in ["account-2", "account-3"] {
        world.journal.push(stream, vec![deposited(4)]);
        world.project(stream, usize::MAX).await;
    }
    world.store.corrupt("account-2");
    let typed = Queries::<Account, _, _>::of(world.journal.clone(), world.store.clone());
    let told = typed.get_many(&["3", "2", "1", "9"]).await.unwrap();
    let cents = |found: &Found<Account>| {
        found
            .as_ref()
            .map(|found| found.as_ref().map(|found| found.state.cents))
            .ok()
    };
    assert_eq!(
        told.iter().map(cents).collect::<Vec<_>>(),
        [Some(Some(4)), None, Some(Some(3)), Some(None)]
    );
    let alone = typed.get("2", &Mode::Eventual).await.unwrap_err();
    assert_eq!(told[1].as_ref().unwrap_err(), &alone);
    assert!(
        matches!(alone, QueryError::Replica(StoreError::Corrupt { .. })),
        "{alone}"
    );
    let streams = ["account-2".into(), STREAM.into()];
    let erased = typed.erased().get_many(&streams).await.unwrap();
    assert!(matches!(&erased[..], [Err(QueryError::Replica(_)), Ok(Some(_))]));
}
