//! Many writers, readers, a projector and faults at once; what they were told is checked against
//! the streams afterwards.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use uuid::Uuid;

use super::{kit::*, once::polled};
use crate::{
    command::{CommandError, CommandSettings, Context, OnDeleted},
    event::{RawEvent, Version},
    projection::folding::command_of,
    query::{Known, Limits, Mode, Queries, QueryError, Token, WhenLate},
};

/// What a client was told, and when it asked and got it.
#[derive(Clone, Debug)]
struct Told {
    account: usize,
    from: u64,
    to: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Committed {
        command: Uuid,
        last: Version,
    },
    /// Withdrawing this much with so much there.
    Rejected {
        command: Uuid,
        wanted: i64,
        there: i64,
    },
    Contended {
        command: Uuid,
    },
    /// Nobody can tell whether it landed before the stream's new life.
    OutOfReach {
        command: Uuid,
    },
    /// Told that the stream is deleted; whether it had asked before without an answer.
    Deleted,
    Read {
        version: Version,
        first: u64,
        state: Account,
    },
    ReadNothing,
    ReadAtLeast {
        token: Version,
        version: Version,
        freshness: Known,
    },
}

/// A clock of steps, and the record of everything that was told.
#[derive(Clone, Default)]
struct History {
    clock: Arc<AtomicU64>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn tell(&self, account: usize, from: u64, what: What) {
        let to = self.tick();
        self.told.lock().unwrap().push(Told {
            account,
            from,
            to,
            what,
        });
    }
}

/// Most calls have been answered after so many polls.
const POLLS: usize = 40;

fn stream(account: usize) -> String {
    format!("account-{account}")
}

/// Executes until the outcome is known; with `drops`, one call in two is dropped at an await that
/// they draw, and made again with the same id.
async fn execute(
    bank: &Bank,
    history: &History,
    drops: Option<&Mutex<fastrand::Rng>>,
    account: usize,
    command: Do,
) -> bool {
    let id = Uuid::new_v4();
    let from = history.tick();
    loop {
        let account_id = account.to_string();
        let call = bank.execute_with(&account_id, &command, Context::with_id(id));
        let polls = drops.and_then(|dice| {
            let mut dice = dice.lock().unwrap();
            dice.bool().then(|| dice.usize(1..POLLS))
        });
        let told = match polls {
            Some(polls) => polled(call, polls).await,
            None => Some(call.await),
        };
        let Some(told) = told else { continue };
        let what = match told {
            Ok(done) => What::Committed {
                command: id,
                last: done.revision,
            },
            Err(CommandError::Rejected(Short(there))) => {
                let Do::Withdraw(wanted) = command else {
                    panic!("a deposit is never rejected")
                };
                What::Rejected {
                    command: id,
                    wanted,
                    there,
                }
            }
            Err(CommandError::Contended { .. }) => What::Contended { command: id },
            Err(CommandError::OutOfReach { .. }) => What::OutOfReach { command: id },
            Err(CommandError::Deleted { .. }) => What::Deleted,
            Err(error) => {
                assert!(error.can_retry(), "{error}");
                continue;
            }
        };
        let committed = matches!(what, What::Committed { .. });
        history.tell(account, from, what);
        return committed;
    }
}

/// Checks what was told of one account against its stream.
fn check(told: &[Told], account: usize, events: &[RawEvent], deletions: &[(u64, u64)]) {
    let told: Vec<&Told> = told.iter().filter(|t| t.account == account).collect();
    let mut places: HashMap<Uuid, Vec<u64>> = HashMap::new();
    for event in events {
        places
            .entry(command_of(event).unwrap())
            .or_default()
            .push(event.revision);
    }
    let starts: HashMap<Uuid, u64> = told
        .iter()
        .filter_map(|t| match t.what {
            What::Committed { command, .. } => Some((command, t.from)),
            _ => None,
        })
        .collect();
    let states: HashMap<u64, Vec<Account>> = std::iter::once(0)
        .chain(deletions.iter().map(|(_, length)| *length))
        .map(|first| {
            let fold = |to| fold_of(&events[first as usize..to]);
            (first, (first as usize..=events.len()).map(fold).collect())
        })
        .collect();
    // A deletion came before the answer, and no append that began after it ended before the question.
    let may_be_deleted = |t: &Told| {
        let revived = |at: u64| {
            told.iter()
                .any(|c| matches!(c.what, What::Committed { .. }) && c.from > at && c.to < t.from)
        };
        deletions.iter().any(|(at, _)| *at <= t.to && !revived(*at))
    };
    for t in &told {
        // What had been acknowledged, or read, when it was asked for.
        let floor = told
            .iter()
            .filter(|before| before.to < t.from)
            .filter_map(|before| match &before.what {
                What::Committed { last, .. } => *last,
                What::Read { version, .. } => *version,
                _ => None,
            })
            .max();
        // A repetition after a deletion cannot see what landed before it.
        let undisturbed = deletions.iter().all(|(at, _)| *at < t.from || *at > t.to);
        match &t.what {
            What::Committed { command, last } => {
                let place = &places[command];
                assert!(place.len() == 1 || !undisturbed, "{t:?} landed at {place:?}");
                assert_eq!(place.last().copied(), *last, "{t:?}");
                assert!(*last > floor, "{t:?} after {floor:?}");
            }
            What::Rejected { command, wanted, there } => {
                assert!(!places.contains_key(command) || !undisturbed, "{t:?} landed");
                assert!(there < wanted);
                let possible = states.iter().any(|(first, after)| {
                    // Of a deleted stream the policy `continue` has what a snapshot kept, no more.
                    let known = if may_be_deleted(t) {
                        0
                    } else {
                        floor.map_or(0, |v| v + 1)
                    };
                    let known = known.saturating_sub(*first) as usize;
                    after.iter().skip(known).any(|state| state.cents == *there)
                });
                assert!(
                    possible,
                    "{t:?} contradicts what was acknowledged before it began ({floor:?})"
                );
            }
            What::Contended { command } => {
                assert!(!places.contains_key(command) || !undisturbed, "{t:?} landed");
            }
            What::OutOfReach { command } => {
                assert!(
                    deletions.iter().any(|(at, _)| *at <= t.to),
                    "{t:?} of a stream that has all its history"
                );
                assert!(!places.contains_key(command) || !undisturbed, "{t:?} landed");
            }
            What::Deleted => assert!(may_be_deleted(t), "{t:?} of a living stream"),
            What::Read { version, first, state } => {
                assert!(*version >= floor, "{t:?} is older than {floor:?}");
                let version = version.unwrap();
                assert_eq!(*state, fold_of(&events[*first as usize..=version as usize]), "{t:?}");
                let by = command_of(&events[version as usize]).unwrap();
                assert!(starts.get(&by).is_none_or(|from| *from < t.to), "{t:?} saw the future");
            }
            What::ReadNothing => assert_eq!(floor, None, "{t:?}"),
            What::ReadAtLeast {
                token,
                version,
                freshness,
            } => {
                assert!(version >= token || *freshness == Known::Behind, "{t:?}");
            }
        }
    }
}

/// Spoils something of the table, or lets the projector take a step.
async fn disturb(world: &World, account: usize, step: u8) {
    let stream = stream(account);
    match step % 8 {
        0 => world.store.garble(&stream),
        1 => world.store.diverge(&stream),
        2 => world.store.remove(&stream),
        3 => world.store.stale_by(usize::from(step / 8 % 4)),
        _ => world.project(&stream, usize::from(step % 5) + 1).await,
    }
}

/// What happens to transfers.
#[derive(Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each says one thing of its own")]
struct Beside {
    daemon: bool,
    through: bool,
    faults: bool,
    /// Milliseconds that a commit takes at most.
    late: u64,
    /// Calls are dropped.
    drops: bool,
}

async fn transfers(count: usize, beside: Beside) {
    let Beside {
        daemon,
        through,
        faults,
        late,
        drops,
    } = beside;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let world = World::default();
    let history = History::default();
    let accounts = 10;
    for account in 0..accounts {
        assert!(execute(&world.bank(), &history, None, account, Do::Deposit(100)).await);
    }
    if faults {
        world.journal.lose_replies(40, seed);
    }
    world.journal.delay_commits(Duration::from_millis(late), 10, seed);
    // Four processes, each with a cache of its own.
    let banks: Vec<Bank> = (0..4)
        .map(|_| if through { world.through() } else { world.bank() })
        .collect();
    let left = Arc::new(AtomicU64::new(count as u64));
    let drops = drops.then(|| Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))));
    let mut tasks = Vec::new();
    for client in 0..40 {
        let (bank, history, left) = (banks[client % 4].clone(), history.clone(), left.clone());
        let drops = drops.clone();
        tasks.push(tokio::spawn(async move {
            let take = |n: u64| n.checked_sub(1);
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                let (from, to) = (fastrand::usize(..accounts), fastrand::usize(..accounts));
                let cents = fastrand::i64(1..80);
                let drops = drops.as_deref();
                if execute(&bank, &history, drops, from, Do::Withdraw(cents)).await {
                    while !execute(&bank, &history, drops, to, Do::Deposit(cents)).await {}
                }
            }
        }));
    }
    let disturber = tokio::spawn({
        let (world, left) = (world.clone(), left.clone());
        async move {
            while left.load(Ordering::SeqCst) > 0 {
                let step = fastrand::u8(..);
                if faults || (daemon && step % 8 > 3) {
                    disturb(&world, fastrand::usize(..accounts), step).await;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    for task in tasks {
        task.await.unwrap();
    }
    disturber.await.unwrap();
    let money: i64 = (0..accounts).map(|a| world.truth(&stream(a)).cents).sum();
    assert_eq!(money, 1000, "money is conserved");
    let told = history.told.lock().unwrap().clone();
    let committed = told.iter().filter(|t| matches!(t.what, What::Committed { .. })).count();
    let events: usize = (0..accounts).map(|a| world.journal.all(&stream(a)).len()).sum();
    assert_eq!(events, committed, "what is in the streams is what was reported");
    for account in 0..accounts {
        check(&told, account, &world.journal.all(&stream(account)), &[]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_transfers() {
    for (daemon, through) in [(false, false), (true, false), (false, true), (true, true)] {
        let beside = Beside {
            daemon,
            through,
            ..Beside::default()
        };
        transfers(1000, beside).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_transfers_with_faults() {
    for through in [false, true] {
        let beside = Beside {
            daemon: true,
            through,
            faults: true,
            ..Beside::default()
        };
        transfers(1000, beside).await;
    }
}

#[tokio::test(start_paused = true)]
async fn transfers_while_commits_take_their_time_and_appends_die() {
    for (through, faults) in [(false, false), (true, false), (false, true), (true, true)] {
        let beside = Beside {
            daemon: true,
            through,
            faults,
            late: 30,
            drops: false,
        };
        transfers(300, beside).await;
    }
}

#[tokio::test(start_paused = true)]
async fn transfers_of_calls_that_are_dropped_at_any_await() {
    for (through, faults, late) in [(false, false, 0), (true, true, 0), (false, true, 30), (true, false, 30)] {
        let beside = Beside {
            daemon: true,
            through,
            faults,
            late,
            drops: true,
        };
        transfers(300, beside).await;
    }
}

/// One step of one client.
#[derive(Clone, Debug)]
enum Step {
    Deposit(i64),
    Withdraw(i64),
    Strong,
    AtLeast,
    Disturb(u8),
    Forget,
    Delete,
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..50_i64).prop_map(Step::Deposit),
        3 => (1..80_i64).prop_map(Step::Withdraw),
        4 => Just(Step::Strong),
        2 => Just(Step::AtLeast),
        4 => any::<u8>().prop_map(Step::Disturb),
        1 => Just(Step::Forget),
        1 => Just(Step::Delete),
        2 => Just(Step::Pause),
    ]
}

async fn client(world: World, bank: Bank, history: History, deletions: Arc<Mutex<Vec<(u64, u64)>>>, steps: Vec<Step>) {
    let queries = Queries::new(world.journal.clone(), world.store.clone(), Arc::new(fold())).with_limits(Limits {
        page: PAGE,
        ..Limits::default()
    });
    for step in steps {
        match step {
            Step::Deposit(cents) => _ = execute(&bank, &history, None, 1, Do::Deposit(cents)).await,
            Step::Withdraw(cents) => _ = execute(&bank, &history, None, 1, Do::Withdraw(cents)).await,
            Step::Strong => {
                let from = history.tick();
                let what = match queries.get(STREAM, &Mode::Strong).await {
                    Ok(Some(answer)) => What::Read {
                        version: answer.version(),
                        first: answer.header.first,
                        state: answer.view::<Account>().unwrap().clone(),
                    },
                    Ok(None) => What::ReadNothing,
                    Err(QueryError::Deleted { .. }) => What::Deleted,
                    Err(error) => panic!("{error}"),
                };
                history.tell(1, from, what);
            }
            Step::AtLeast => {
                let newest = history.told.lock().unwrap().iter().rev().find_map(|t| match t.what {
                    What::Committed { last, .. } => Some(last),
                    _ => None,
                });
                let Some(version) = newest else { continue };
                let token = Token::new(STREAM, version);
                let then = if version.is_some_and(|v| v % 2 == 0) {
                    WhenLate::FoldTail
                } else {
                    WhenLate::AnswerBehind
                };
                let mode = Mode::AtLeast {
                    token,
                    timeout: Duration::from_millis(20),
                    then,
                };
                let from = history.tick();
                if let Ok(Some(answer)) = queries.get(STREAM, &mode).await {
                    let (version, freshness) = (answer.version(), answer.known);
                    let Mode::AtLeast { token, .. } = mode else {
                        unreachable!("made above")
                    };
                    history.tell(
                        1,
                        from,
                        What::ReadAtLeast {
                            token: token.version,
                            version,
                            freshness,
                        },
                    );
                }
            }
            Step::Disturb(step) => disturb(&world, 1, step).await,
            Step::Forget => bank.forget(None),
            Step::Delete => {
                let length = world.journal.all(STREAM).len() as u64;
                if length > 0 {
                    // No other task runs between the two.
                    world.journal.delete(STREAM);
                    deletions.lock().unwrap().push((history.tick(), length));
                }
            }
            Step::Pause => tokio::time::sleep(Duration::from_millis(fastrand::u64(..5))).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_linearizable_under_any_interleaving(
        plans in prop::collection::vec(prop::collection::vec(step(), 1..25), 1..5),
        through: bool,
        lost in prop_oneof![Just(0_u8), Just(60)],
        late in prop_oneof![Just(0_u64), Just(3), Just(40)],
        // A new life as old as the horizon is decided on; a younger one may be history that is gone.
        aged: bool,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (world, history) = (World::default(), History::default());
            if aged {
                world.journal.set_now(chrono::Utc::now() - chrono::TimeDelta::minutes(6));
            }
            world.journal.lose_replies(lost, seed);
            world.journal.delay_commits(Duration::from_millis(late), lost, seed);
            let deletions = Arc::new(Mutex::new(Vec::new()));
            let mut tasks = Vec::new();
            for mut plan in plans {
                // What is accepted before a deletion and committed after it has no place in the record.
                plan.retain(|step| late == 0 || !matches!(step, Step::Delete));
                let settings = CommandSettings { on_deleted: OnDeleted::Continue, ..settings() };
                let bank = if through { world.through() } else { world.bank() };
                let bank = bank.with_settings(settings);
                tasks.push(tokio::spawn(client(world.clone(), bank, history.clone(), deletions.clone(), plan)));
            }
            for task in tasks {
                task.await.unwrap();
            }
            let told = history.told.lock().unwrap().clone();
            check(&told, 1, &world.journal.all(STREAM), &deletions.lock().unwrap());
        });
    }
}

#[test]
#[should_panic(expected = "is older than")]
fn the_checker_sees_a_stale_answer() {
    let world = World::with(&[]);
    let id = Uuid::from_u128(1);
    let mut event = deposited(5);
    event.metadata = format!(r#"{{"commandId":"{id}"}}"#).into();
    let second = crate::journal::NewEvent {
        id: Uuid::from_u128(9),
        ..event.clone()
    };
    world.journal.push(STREAM, vec![event, second]);
    let told = [
        Told {
            account: 1,
            from: 0,
            to: 1,
            what: What::Committed {
                command: id,
                last: Some(1),
            },
        },
        Told {
            account: 1,
            from: 2,
            to: 3,
            what: What::Read {
                version: Some(0),
                first: 0,
                state: Account { cents: 5, entries: 1 },
            },
        },
    ];
    check(&told[1..], 1, &world.journal.all(STREAM), &[]);
    // The deletion excuses the two places of one command, and nothing else.
    check(&told, 1, &world.journal.all(STREAM), &[(1, 2)]);
}
