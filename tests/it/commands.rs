//! Commands and queries over the wire: the embedded stores, the clients that production uses.
//!
//! Sizes are small by default; `PROJECTOR_TEST_LONG=1` runs the campaigns ten times as long.

mod campaign;
mod corners;
mod dropped;
mod early;
mod history;
mod interleavings;
mod queries;
mod repeated;
mod store;
mod together;
mod trips;
mod turns;

use std::{sync::Arc, time::Duration};

use projector::{
    aggregate::{Aggregate, Command},
    command::{CommandSettings, Replicas, Repository},
    event::{Event, RawEvent},
    journal::{
        Journal as _, ReadLimit,
        esdb::{EsdbSettings, EventStore},
    },
    projection::{Compiled, Fold as _, folding::fold_events},
    query::Queries,
    replica::{
        Header,
        dynamodb::{Creation, DynamoTable, connect, table_name},
        item::Rules,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    daemon::world::{Running, World as Stores},
    support::dynamo::Dynamo,
};

/// How much longer than usual the campaigns are.
fn length(usual: usize) -> usize {
    usual
        * if std::env::var_os("PROJECTOR_TEST_LONG").is_some() {
            10
        } else {
            1
        }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    cents: i64,
    entries: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Entry {
    Deposited { cents: i64 },
    Withdrew { cents: i64 },
}
impl Event for Entry {}

impl Aggregate for Account {
    const CATEGORY: &'static str = "account";
    type Event = Entry;

    fn apply(&mut self, event: Entry) {
        self.entries += 1;
        match event {
            Entry::Deposited { cents } => self.cents += cents,
            Entry::Withdrew { cents } => self.cents -= cents,
        }
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("withdraw: only {0} cents are there")]
struct Short(i64);

#[derive(Clone, Copy, Debug)]
enum Do {
    Deposit(i64),
    Withdraw(i64),
    /// Two events at once.
    Split(i64, i64),
    Nothing,
}

impl Command<Account> for Do {
    type Error = Short;

    fn decide(&self, account: &Account) -> Result<Vec<Entry>, Short> {
        Ok(match *self {
            Self::Deposit(cents) => vec![Entry::Deposited { cents }],
            Self::Withdraw(cents) if account.cents < cents => return Err(Short(account.cents)),
            Self::Withdraw(cents) => vec![Entry::Withdrew { cents }],
            Self::Split(a, b) => vec![Entry::Deposited { cents: a }, Entry::Deposited { cents: b }],
            Self::Nothing => Vec::new(),
        })
    }
}

type Bank = Repository<Account, EventStore, Replicas<DynamoTable>>;

fn fold() -> Compiled<Account> {
    Compiled::new("test")
}

/// What these events come to.
fn fold_of(events: &[RawEvent]) -> Account {
    let fold = fold();
    let folded = fold_events(&fold, (&Header::new(), &fold.initial()), events, 0);
    assert!(folded.stopped.is_none(), "{:?}", folded.stopped);
    folded.state.get::<Account>().unwrap().clone()
}

/// Both stores, with the accounts' table in place.
struct World {
    stores: Stores,
}

impl World {
    async fn start() -> Self {
        let stores = Stores::start().await;
        let name = table_name(&stores.dynamo.prefix, "account", 1).unwrap();
        let tables = stores.dynamo.tables().await;
        tables
            .ensure(&name, &Rules::new("account"), Some(&Creation::LOCAL))
            .await
            .unwrap();
        Self { stores }
    }

    /// A client of its own, as another process has.
    fn journal(&self) -> EventStore {
        journal(&self.stores.connection())
    }

    /// The table, by way of the proxy.
    async fn table(&self) -> DynamoTable {
        let client = connect(&Dynamo::settings(&self.stores.proxy.endpoint())).await.unwrap();
        let name = table_name(&self.stores.dynamo.prefix, "account", 1).unwrap();
        DynamoTable::new(
            client,
            name,
            "account",
            1,
            Duration::from_secs(5),
            self.stores.dynamo.seen.clone(),
        )
    }

    /// Another process: clients and cache of its own.
    async fn bank(&self) -> Bank {
        self.bank_by(self.journal(), false).await
    }

    async fn through(&self) -> Bank {
        self.bank_by(self.journal(), true).await
    }

    async fn bank_by(&self, journal: EventStore, through: bool) -> Bank {
        let replicas = Replicas::new(self.table().await);
        let replicas = if through {
            replicas.write_through(Rules::new("account"))
        } else {
            replicas
        };
        Repository::new(journal, replicas).with_settings(CommandSettings {
            // A loaded machine is no fault of the command path's.
            deadline: Duration::from_secs(30),
            ..CommandSettings::default()
        })
    }

    async fn queries(&self) -> Queries<projector::query::Erased, EventStore, DynamoTable> {
        Queries::new(self.journal(), self.table().await, Arc::new(fold()))
    }

    async fn daemon(&self) -> Running {
        self.stores.daemon::<Account>("test").await
    }

    /// Deposits by somebody who does not use the library.
    async fn deposit(&self, stream: &str, cents: &[i64]) {
        let bodies = cents
            .iter()
            .map(|cents| ("Deposited", serde_json::json!({ "cents": cents })));
        self.stores.append(stream, &bodies.collect::<Vec<_>>()).await;
    }

    /// Every readable event.
    async fn events(&self, stream: &str) -> Vec<RawEvent> {
        let journal = self.journal();
        let limit = ReadLimit {
            events: 1_000,
            bytes: usize::MAX,
        };
        let mut events: Vec<RawEvent> = Vec::new();
        loop {
            let from = events.last().map_or(0, |e| e.revision + 1);
            let slice = journal.read(stream, from, limit).await.unwrap();
            events.extend(slice.events);
            if slice.end {
                return events;
            }
        }
    }
}

fn journal(connection: &str) -> EventStore {
    EventStore::new(&EsdbSettings::new(connection)).unwrap()
}
