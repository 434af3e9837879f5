//! Streams that were deleted and live again while a process had a state of before in hand: that is
//! told, no later than the next fold, and a new life takes commands with ids at once.

use uuid::Uuid;

use super::kit::*;
use crate::{
    command::{
        CommandSettings, Context, OnDeleted,
        attempt::{Action, Attempt, AttemptRules, Identity, Reply},
        base::{Base, Lineage},
        catch_up::CatchUpRules,
    },
    event::{Metadata, RawEvent},
    journal::{Appended, JournalError, Presence, Slice, Standing},
    projection::{Fold, folding::fold_events},
    replica::Sort,
    testing::journal,
};

const BOTH: [OnDeleted; 2] = [OnDeleted::Refuse, OnDeleted::Continue];

fn id(n: u128) -> Context {
    Context::with_id(Uuid::from_u128(n))
}

/// The base that these events make.
fn folded(fold: &dyn Fold, events: &[RawEvent]) -> Base {
    let mut base = Base::initial(fold, Lineage::Foreign);
    let folded = fold_events(fold, (&base.header, &base.state), events, 8);
    (base.header, base.state) = (folded.header, folded.state);
    base
}

/// Lost to a rival at revision 4, whose event is read then behind the base.
fn loses_to(attempt: &mut Attempt<'_, Account, Do>, rival: &[RawEvent]) {
    let conflict = JournalError::WrongExpected { current: Some(4) };
    attempt.apply(Reply::Appended(Err(conflict), None, chrono::Utc::now()));
    attempt.apply(Reply::Waited);
    assert_eq!(attempt.select(), Action::Read(3));
    attempt.apply(Reply::Read(Ok(Slice {
        events: rival.to_vec(),
        end: true,
        presence: Presence::Present,
        first: None,
        last: Some(4),
    })));
    assert_eq!(attempt.select(), Action::Begins);
}

#[tokio::test(start_paused = true)]
async fn another_ones_revival_is_seen_by_the_appends_own_tail() {
    for on_deleted in BOTH {
        let world = World::with(&[1, 2]);
        let bank = world.bank_on(on_deleted);
        bank.execute("1", &Do::Deposit(4)).await.unwrap();
        world.journal.delete(STREAM);
        world.deposit(&[8]);
        let done = bank.execute("1", &Do::Deposit(16)).await.unwrap();
        assert!(done.revived, "{on_deleted:?}");
        assert_eq!((done.state.cents, done.first, done.attempts), (31, 0, 2), "it goes on");
        // Told once: what begins with that state knows of it.
        let next = bank.execute("1", &Do::Deposit(32)).await.unwrap();
        let read = bank.execute("1", &Do::Nothing).await.unwrap();
        assert_eq!((next.revived, read.revived), (false, false));
    }
}

#[tokio::test(start_paused = true)]
async fn a_revival_by_ones_own_append_is_seen_by_the_next_fold() {
    for on_deleted in BOTH {
        for more in [0, 1, 30] {
            let world = World::with(&[1, 2]);
            let bank = world.bank_on(on_deleted);
            bank.execute("1", &Do::Deposit(4)).await.unwrap();
            world.journal.delete(STREAM);
            // Nothing moved, so it lands, and nobody looked.
            assert!(!bank.execute("1", &Do::Deposit(8)).await.unwrap().revived);
            for _ in 0..more {
                assert!(!bank.execute("1", &Do::Deposit(0)).await.unwrap().revived);
            }
            let told = bank.execute("1", &Do::Nothing).await.unwrap();
            assert_eq!((told.revived, told.state.cents), (true, 15), "{on_deleted:?} {more}");
            assert!(!bank.execute("1", &Do::Nothing).await.unwrap().revived);
        }
    }
}

/// An error says nothing of it, so the next answer does.
#[tokio::test(start_paused = true)]
async fn a_revival_that_a_rejected_command_saw_is_told_by_the_next_answer() {
    for on_deleted in BOTH {
        let world = World::with(&[1, 2]);
        let bank = world.bank_on(on_deleted);
        bank.execute("1", &Do::Deposit(4)).await.unwrap();
        world.journal.delete(STREAM);
        world.deposit(&[8]);
        for _ in 0..2 {
            let rejected = bank.execute("1", &Do::Withdraw(999)).await;
            assert_eq!(rejected.unwrap_err().class(), "rejected");
        }
        let told = bank.execute("1", &Do::Deposit(16)).await.unwrap();
        assert_eq!((told.revived, told.state.cents), (true, 31), "{on_deleted:?}");
        assert!(!bank.execute("1", &Do::Deposit(32)).await.unwrap().revived);
    }
}

/// The deletion came behind the read beside one's own append, and before that append: the event that
/// was read then is gone, though one's own stands where it was put.
#[test]
fn ones_own_event_alone_does_not_say_that_the_life_goes_on() {
    let (fold, command) = (fold(), Do::Deposit(1));
    for (restarts, gone) in [(true, true), (true, false), (false, true)] {
        let world = World::with(&[1, 2, 4, 8]);
        let all = world.journal.all(STREAM);
        let mut base = folded(&fold, &all);
        (base.verified, base.seen) = (restarts, Some(2));
        let mut attempt = attempt_by(&fold, &command, restarts);
        loaded(&mut attempt, base);
        let Action::Append(append) = attempt.select() else {
            panic!("{:?}", attempt.select())
        };
        assert_eq!(append.verify, Some(2));
        let beside = Slice {
            events: all[if gone { 3 } else { 2 }..].to_vec(),
            end: true,
            presence: Presence::Present,
            first: None,
            last: Some(3),
        };
        let appended = Appended {
            revision: Some(4),
            positioned: true,
        };
        attempt.apply(Reply::Appended(Ok(appended), Some(Ok(beside)), chrono::Utc::now()));
        let reads_on = matches!(attempt.select(), Action::Read(_));
        assert_eq!(reads_on, gone, "{restarts}");
    }
}

/// The read beside it fails: of a state that was verified the append's own word is enough.
#[test]
fn an_acknowledged_append_is_not_in_doubt_for_a_read_that_only_tells_revivals() {
    let (fold, command) = (fold(), Do::Deposit(1));
    for (verified, restarts, lands) in [(true, false, true), (false, false, false), (true, true, false)] {
        let world = World::with(&[1; 130]);
        let all = world.journal.all(STREAM);
        let mut base = folded(&fold, &all);
        (base.verified, base.seen) = (verified, Some(2));
        let mut attempt = attempt_by(&fold, &command, restarts);
        loaded(&mut attempt, base);
        let Action::Append(append) = attempt.select() else {
            panic!("{:?}", attempt.select())
        };
        assert_eq!(append.verify, Some(2));
        let appended = Appended {
            revision: Some(130),
            positioned: true,
        };
        let failed = JournalError::Unavailable("the read".into());
        attempt.apply(Reply::Appended(Ok(appended), Some(Err(failed)), chrono::Utc::now()));
        assert_eq!(attempt.select() == Action::Done, lands, "{verified} {restarts}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_else_reads_one_append_in_a_hundred_does() {
    for deleted_after in [0, 57] {
        let world = World::with(&[1]);
        let bank = world.bank().with_settings(CommandSettings::default());
        bank.execute("1", &Do::Nothing).await.unwrap();
        world.journal.reset_calls();
        let mut told = Vec::new();
        for n in 0..350 {
            if n == deleted_after {
                world.journal.delete(STREAM);
            }
            let done = bank.execute("1", &Do::Deposit(1)).await.unwrap();
            assert_eq!(done.state.cents, n + 2);
            if done.revived {
                told.push(n);
            }
        }
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0] - deleted_after <= 102, "{told:?} after {deleted_after}");
        let reads = world.journal.calls().reads;
        assert!(reads <= 6, "{reads} reads for 350 appends");
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_expire_are_no_revival() {
    let world = World::with(&[1, 2, 4]);
    let metadata = journal::event("$metadata", r#"{"$maxCount":1}"#);
    world.journal.push(&format!("$${STREAM}"), vec![metadata]);
    for on_deleted in BOTH {
        let bank = world.bank_on(on_deleted);
        bank.execute("1", &Do::Nothing).await.unwrap();
        for _ in 0..3 {
            world.deposit(&[8]);
            let done = bank.execute("1", &Do::Deposit(16)).await.unwrap();
            assert!(!done.revived);
            assert!(!bank.execute("1", &Do::Nothing).await.unwrap().revived);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_young_new_life_takes_commands_with_ids_and_each_of_them_once() {
    for on_deleted in [OnDeleted::Continue, OnDeleted::Restart] {
        for begun_by_key in [false, true] {
            let world = World::with(&[1, 2, 4]);
            let process = || {
                world.without_snapshots().with_settings(CommandSettings {
                    on_deleted,
                    keep_commands: 2,
                    ..settings()
                })
            };
            world.journal.delete(STREAM);
            let context = if begun_by_key { id(1) } else { Context::default() };
            let begun = process().execute_with("1", &Do::Deposit(8), context).await.unwrap();
            assert!(begun.revived && begun.state.cents == 8);
            let first = process().execute_with("1", &Do::Split(16, 1), id(2)).await.unwrap();
            assert_eq!((first.state.cents, first.repeated), (25, false));
            // Beyond the window: the new life is read back to its beginning, over pages.
            let busy = process();
            for _ in 0..20 {
                busy.execute("1", &Do::Deposit(0)).await.unwrap();
            }
            for bank in [&busy, &process()] {
                let again = bank.execute_with("1", &Do::Split(16, 1), id(2)).await.unwrap();
                assert_eq!(
                    (again.repeated, again.revision),
                    (true, first.revision),
                    "{on_deleted:?}"
                );
                if begun_by_key {
                    let again = bank.execute_with("1", &Do::Deposit(8), id(1)).await.unwrap();
                    assert_eq!((again.repeated, again.revision), (true, begun.revision));
                }
                let fresh = bank.execute_with("1", &Do::Nothing, id(3)).await.unwrap();
                assert_eq!((fresh.repeated, fresh.state.cents), (false, 25));
            }
        }
    }
}

/// Nothing tells what somebody else began from what an operator truncated.
#[tokio::test(start_paused = true)]
async fn a_new_life_that_does_not_say_so_is_history_that_is_gone() {
    let world = World::with(&[1, 2, 4]);
    world.journal.delete(STREAM);
    world.deposit(&[8]);
    let bank = world.without_snapshots();
    let told = bank.execute_with("1", &Do::Deposit(1), id(1)).await.unwrap_err();
    assert_eq!(told.class(), "out_of_reach");
    assert_eq!(bank.execute("1", &Do::Deposit(1)).await.unwrap().state.cents, 9);
}

/// What was told of a deleted stream is told again, and what is not told changes nothing.
#[tokio::test(start_paused = true)]
async fn a_second_command_without_events_on_a_deleted_stream_is_answered_as_the_first() {
    for on_deleted in [OnDeleted::Refuse, OnDeleted::Continue, OnDeleted::Restart] {
        for cached in [false, true] {
            for projected in [false, true] {
                for keyed in [false, true] {
                    let world = World::with(&[1, 2]);
                    if projected {
                        world.project(STREAM, usize::MAX).await;
                    }
                    let bank = world.bank_on(on_deleted);
                    if cached {
                        bank.execute("1", &Do::Nothing).await.unwrap();
                    }
                    world.journal.delete(STREAM);
                    let case = format!("{on_deleted:?} {cached} {projected} {keyed}");
                    let context = || if keyed { id(7) } else { Context::default() };
                    for _ in 0..3 {
                        let told = bank.execute_with("1", &Do::Nothing, context()).await;
                        if on_deleted == OnDeleted::Refuse {
                            assert_eq!(told.unwrap_err().class(), "deleted", "{case}");
                            continue;
                        }
                        let told = told.unwrap();
                        let kept = on_deleted == OnDeleted::Continue && (cached || projected);
                        assert_eq!(told.state.cents, if kept { 3 } else { 0 }, "{case}");
                        assert_eq!(
                            (told.events.len(), told.repeated, told.revived),
                            (0, false, false),
                            "{case}"
                        );
                    }
                    assert_eq!(world.journal.all(STREAM).len(), 2, "{case}");
                    // Found deleted, the revival is told, by whoever appends next.
                    if on_deleted != OnDeleted::Refuse {
                        let done = bank.execute_with("1", &Do::Deposit(4), id(8)).await.unwrap();
                        assert!(done.revived && !done.repeated, "{case}");
                    }
                }
            }
        }
    }
}

/// It was carried out before the deletion; the second repetition must not do it again because the
/// first one was told of the deletion.
#[tokio::test(start_paused = true)]
async fn a_command_of_before_the_deletion_is_told_deleted_however_often_it_is_repeated() {
    for on_deleted in [OnDeleted::Refuse, OnDeleted::Continue, OnDeleted::Restart] {
        let world = World::with(&[1, 2]);
        let bank = world.bank_on(on_deleted);
        bank.execute_with("1", &Do::Deposit(4), id(7)).await.unwrap();
        world.journal.delete(STREAM);
        for _ in 0..3 {
            let told = bank.execute_with("1", &Do::Deposit(4), id(7)).await;
            assert_eq!(told.unwrap_err().class(), "deleted", "{on_deleted:?}");
            // Whatever else is asked of it meanwhile, as long as it revives nothing.
            let (nothing, rejected) = (Do::Nothing, Do::Withdraw(999));
            for command in [nothing, rejected] {
                drop(bank.execute("1", &command).await);
            }
        }
        assert_eq!(world.journal.all(STREAM).len(), 3);
        // Another revives it: it goes on, or starts over, as the policy says.
        world.deposit(&[8]);
        let done = bank.execute("1", &Do::Nothing).await.unwrap();
        let anew = on_deleted == OnDeleted::Restart;
        assert_eq!((done.state.cents, done.revived), (if anew { 8 } else { 15 }, true));
    }
}

fn attempt<'a>(fold: &'a dyn Fold, command: &'a Do) -> Attempt<'a, Account, Do> {
    attempt_by(fold, command, false)
}

fn attempt_by<'a>(fold: &'a dyn Fold, command: &'a Do, restarts: bool) -> Attempt<'a, Account, Do> {
    let identity = Identity {
        command: Uuid::from_u128(42),
        execution: Uuid::from_u128(43),
        sort: Sort::default(),
        metadata: Metadata::default(),
        at: chrono::Utc::now(),
    };
    let rules = AttemptRules {
        attempts: 3,
        on_deleted: OnDeleted::Continue,
        known_from: None,
        expected: None,
        confirmed: false,
        catch_up: CatchUpRules {
            restarts,
            ..settings().catch_up()
        },
    };
    Attempt::new(fold, command, STREAM, identity, rules)
}

#[test]
fn the_first_event_of_a_new_life_says_so_and_no_other() {
    for (standing, says) in [
        (Standing::SoftDeleted, [true, false]),
        (Standing::Missing, [false, false]),
    ] {
        let (fold, command) = (fold(), Do::Split(1, 2));
        let mut attempt = attempt(&fold, &command);
        nothing_loaded(&mut attempt);
        attempt.apply(Reply::Stands(Ok(standing)));
        let Action::Append(append) = attempt.select() else {
            panic!("{:?}", attempt.select())
        };
        let said = append.events.iter().map(|event| {
            let metadata: serde_json::Value = serde_json::from_slice(&event.metadata).unwrap();
            metadata.get("newLife").is_some()
        });
        assert!(said.eq(says));
    }
}

/// Only where an event of before is gone, and whatever the answer is the command goes on.
#[test]
fn the_metadata_is_asked_where_an_event_of_before_is_gone() {
    let (fold, command) = (fold(), Do::Deposit(1));
    for (begins, told) in [
        (Ok(Some(4)), true),
        (Ok(Some(3)), false),
        (Ok(None), false),
        (Err(JournalError::Unavailable("away".into())), false),
    ] {
        let world = World::with(&[1, 2, 4, 8, 16]);
        let all = world.journal.all(STREAM);
        let base = folded(&fold, &all[..4]);
        let mut attempt = attempt(&fold, &command);
        loaded(&mut attempt, base);
        loses_to(&mut attempt, &all[4..]);
        attempt.apply(Reply::Begins(begins));
        let Action::Append(append) = attempt.select() else {
            panic!("{:?}", attempt.select())
        };
        assert_eq!(append.place(), 5);
        let appended = Appended {
            revision: Some(5),
            positioned: true,
        };
        attempt.apply(Reply::Appended(Ok(appended), None, chrono::Utc::now()));
        let done = attempt.finish().answer.unwrap();
        assert_eq!((done.revived, done.state.cents), (told, 32));
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_found_is_answered_though_the_metadata_does_not_come() {
    let (fold, command) = (fold(), Do::Deposit(16));
    let world = World::with(&[1, 2, 4, 8]);
    let context = Context::with_id(Uuid::from_u128(42));
    world.bank().execute_with("1", &command, context).await.unwrap();
    let all = world.journal.all(STREAM);
    let base = folded(&fold, &all[..4]);
    let mut attempt = attempt(&fold, &command);
    loaded(&mut attempt, base);
    loses_to(&mut attempt, &all[4..]);
    attempt.expire();
    let done = attempt.finish().answer.unwrap();
    assert_eq!((done.repeated, done.state.cents), (true, 31));
}
