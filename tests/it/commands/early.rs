//! Conflicts that are answered before what they name can be read, and appends that die, over the wire.

use std::time::Duration;

use projector::{
    aggregate::{Aggregate, Command},
    command::{CommandError, CommandSettings, Context, NoSnapshots, Repository},
    event::Event,
    journal::{Expected, Journal as _, JournalError, NewEvent, ReadLimit, esdb::EventStore},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Do, Short, World, length};
use crate::support::{eventstore::PATIENCE, node::until};

/// Counts its own events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counter {
    number: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Counted {
    Counted { number: u64 },
}
impl Event for Counted {}

impl Aggregate for Counter {
    const CATEGORY: &'static str = "counter";
    type Event = Counted;

    fn apply(&mut self, Counted::Counted { number }: Counted) {
        self.number = number;
    }
}

/// The next number.
struct Count;

impl Command<Counter> for Count {
    type Error = std::convert::Infallible;

    fn name(&self) -> &'static str {
        "count"
    }

    fn decide(&self, counter: &Counter) -> Result<Vec<Counted>, Self::Error> {
        Ok(vec![Counted::Counted {
            number: counter.number + 1,
        }])
    }
}

fn counters(journal: EventStore) -> Repository<Counter, EventStore, NoSnapshots> {
    Repository::new(journal, NoSnapshots).with_settings(CommandSettings {
        attempts: 10_000,
        deadline: Duration::from_mins(2),
        ..CommandSettings::default()
    })
}

/// 32 writers in four processes; every number once, every answer true.
async fn count(window: Duration, commands: usize, dying: usize) {
    let world = World::start().await;
    let faults = world.stores.events().faults();
    faults.delay_commits(None, window);
    let processes: Vec<_> = (0..4).map(|_| counters(world.journal())).collect();
    let writers: Vec<_> = (0..32)
        .map(|writer| {
            let counters = processes[writer % 4].clone();
            tokio::spawn(async move {
                let mut told = Vec::new();
                for _ in (writer..commands).step_by(32) {
                    let context = Context::with_id(Uuid::new_v4());
                    let done = loop {
                        match counters.execute_with("1", &Count, context.clone()).await {
                            Ok(done) => break done,
                            Err(error) => assert!(
                                matches!(
                                    error,
                                    CommandError::OutcomeUnknown { .. } | CommandError::Contended { .. }
                                ),
                                "{error}"
                            ),
                        }
                    };
                    assert_eq!(Some(done.state.number), done.revision.map(|r| r + 1));
                    told.push(done.revision.unwrap());
                }
                told
            })
        })
        .collect();
    for _ in 0..dying {
        tokio::time::sleep(window.max(Duration::from_millis(20)) * 4).await;
        faults.lose_accepted(Some("counter-1"), 1);
    }
    let mut told = Vec::new();
    for writer in writers {
        told.extend(writer.await.unwrap());
    }
    told.sort_unstable();
    let expected: Vec<u64> = (0..commands as u64).collect();
    assert_eq!(told, expected, "each revision was told once");
    let events = world.events("counter-1").await;
    let numbers: Vec<u64> = events
        .iter()
        .map(|event| {
            serde_json::from_slice::<serde_json::Value>(&event.data).unwrap()["number"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(numbers, (1..=commands as u64).collect::<Vec<_>>(), "no number twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_is_written_twice() {
    count(Duration::ZERO, length(640), 0).await;
    count(Duration::from_millis(50), length(64), 0).await;
    count(Duration::from_millis(50), length(64), 3).await;
}

/// Looks, and does nothing; or writes what its caller made of what it saw.
struct Set(Option<u64>);

impl Command<Counter> for Set {
    type Error = std::convert::Infallible;

    fn decide(&self, _: &Counter) -> Result<Vec<Counted>, Self::Error> {
        Ok(self.0.map(|number| Counted::Counted { number }).into_iter().collect())
    }
}

/// With `If-Match` a rule needs no command: sixteen callers in four processes write one more than
/// what they saw, and say which version that was. Whoever is told that it is another one wrote nothing.
async fn match_what_was_seen(window: Duration, rounds: usize, dying: usize) {
    let world = World::start().await;
    let faults = world.stores.events().faults();
    let processes: Vec<_> = (0..4).map(|_| counters(world.journal())).collect();
    processes[0].execute("1", &Count).await.unwrap();
    faults.delay_commits(None, window);
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let counters = processes[caller % 4].clone();
            tokio::spawn(async move {
                let mut wrote = Vec::new();
                for _ in 0..rounds {
                    let seen = counters.execute("1", &Set(None)).await.unwrap();
                    let (version, number) = (seen.version.unwrap(), seen.state.number + 1);
                    let context = Context::with_id(Uuid::new_v4()).expecting(version);
                    loop {
                        match counters.execute_with("1", &Set(Some(number)), context.clone()).await {
                            Ok(done) => {
                                assert_eq!(done.revision, Some(version + 1));
                                wrote.push(number);
                                break;
                            }
                            Err(CommandError::Conflict { expected, actual, .. }) => {
                                assert!(expected == version && actual > Some(version), "{actual:?}");
                                break;
                            }
                            Err(error) => assert!(error.can_retry(), "{error}"),
                        }
                    }
                }
                wrote
            })
        })
        .collect();
    for _ in 0..dying {
        tokio::time::sleep(window.max(Duration::from_millis(20)) * 4).await;
        faults.lose_accepted(Some("counter-1"), 1);
    }
    let mut wrote = vec![1];
    for caller in callers {
        wrote.extend(caller.await.unwrap());
    }
    wrote.sort_unstable();
    let numbers: Vec<u64> = (1..=wrote.len() as u64).collect();
    assert!(wrote.len() > rounds, "somebody wins each round");
    assert_eq!(wrote, numbers, "each number was told once");
    assert_eq!(world.events("counter-1").await.len(), numbers.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_say_what_they_saw_lose_no_update() {
    match_what_was_seen(Duration::ZERO, length(12), 0).await;
    match_what_was_seen(Duration::from_millis(50), length(3), 0).await;
    match_what_was_seen(Duration::from_millis(50), length(3), 3).await;
}

/// Why a conflict's revision alone is nothing to decide on: who takes it for where the stream stands,
/// as this command path once did, decides without the rival's event and overwrites it.
#[tokio::test]
async fn who_believes_a_conflict_that_cannot_be_read_yet_loses_an_update() {
    let world = World::start().await;
    let append = |expected, number: u64| {
        let journal = world.journal();
        let event = NewEvent {
            id: Uuid::new_v4(),
            kind: "Counted".into(),
            json: true,
            data: serde_json::to_vec(&serde_json::json!({ "number": number }))
                .unwrap()
                .into(),
            metadata: bytes::Bytes::new(),
        };
        async move { journal.append("counter-1", expected, vec![event], PATIENCE).await }
    };
    append(Expected::NoStream, 1).await.unwrap();
    let faults = world.stores.events().faults();
    faults.delay_commits(Some("counter-1"), PATIENCE);
    let rival = tokio::spawn(append(Expected::Exact(0), 2));
    let named = async |revision| {
        let told = append(Expected::Exact(77), 0).await;
        told == Err(JournalError::WrongExpected {
            current: Some(revision),
        })
    };
    until("the rival's event is named", async || named(1).await).await;
    let limit = ReadLimit {
        events: 10,
        bytes: usize::MAX,
    };
    let tail = world.journal().read("counter-1", 1, limit).await.unwrap();
    assert_eq!(
        (tail.events.len(), tail.last),
        (0, Some(0)),
        "the read says that it is not there yet"
    );
    let mine = tokio::spawn(append(Expected::Exact(1), 2));
    until("mine is under way, too", async || named(2).await).await;
    faults.delay_commits(Some("counter-1"), Duration::ZERO);
    until("both are there", async || world.events("counter-1").await.len() == 3).await;
    let events = world.events("counter-1").await;
    assert_eq!(events[1].data, events[2].data, "the same number twice");
    // Either may have been told meanwhile that its outcome is not known.
    let _told = (rival.await.unwrap(), mine.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_is_sold_once_while_the_sale_is_under_way() {
    let world = World::start().await;
    world.deposit("account-1", &[10]).await;
    let (one, other) = (world.bank().await, world.bank().await);
    for bank in [&one, &other] {
        bank.execute("1", &Do::Nothing).await.unwrap();
    }
    world
        .stores
        .events()
        .faults()
        .delay_commits(None, Duration::from_millis(500));
    let told = tokio::join!(one.execute("1", &Do::Withdraw(7)), other.execute("1", &Do::Withdraw(7)));
    let ((Ok(won), Err(lost)) | (Err(lost), Ok(won))) = told else {
        panic!("both were told the same");
    };
    assert_eq!((won.state.cents, lost), (3, CommandError::Rejected(Short(3))));
}
