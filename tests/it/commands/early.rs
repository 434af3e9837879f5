//! Conflicts that are answered before what they name can be read, and appends that die, over the wire.

use std::time::Duration;

use projector::{
    aggregate::{Aggregate, Command},
    command::{CommandError, Context, NoSnapshots, Repository, Settings},
    event::Event,
    journal::esdb::EventStore,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Do, Short, World, length};

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
    Repository::new(journal, NoSnapshots).with_settings(Settings {
        attempts: 10_000,
        deadline: Duration::from_mins(2),
        ..Settings::default()
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
