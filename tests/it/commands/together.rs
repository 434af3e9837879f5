//! Commands, queries and the daemon on the same stores, over both real protocols.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use projector::{
    aggregate::{Aggregate, Command},
    app,
    command::{CommandError, Committed, Context, Replicas, Repository},
    config::{Inputs, Settings},
    event::Event,
    journal::esdb::{EsdbSettings, EventStore},
    projection::{Compiled, Registry},
    query::{Known, Mode, Queries, WhenLate},
    replica::{
        ReplicaStore as _,
        dynamodb::{Creation, DynamoTable, table_name},
        item::Rules,
    },
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::support::{
    dynamo::Dynamo,
    node::{Node, until},
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    cents: u64,
    moves: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Moved {
    Deposited { cents: u64 },
    Withdrawn { cents: u64 },
}

impl Event for Moved {}

impl Aggregate for Account {
    const CATEGORY: &'static str = "account";
    type Event = Moved;

    fn apply(&mut self, event: Moved) {
        match event {
            Moved::Deposited { cents } => self.cents += cents,
            Moved::Withdrawn { cents } => self.cents -= cents,
        }
        self.moves += 1;
    }
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("withdraw {wanted} cents: there are {there}")]
struct TooLittle {
    wanted: u64,
    there: u64,
}

struct Deposit(u64);
struct Withdraw(u64);

impl Command<Account> for Deposit {
    type Error = TooLittle;

    fn decide(&self, _: &Account) -> Result<Vec<Moved>, TooLittle> {
        Ok(vec![Moved::Deposited { cents: self.0 }])
    }
}

impl Command<Account> for Withdraw {
    type Error = TooLittle;

    fn decide(&self, account: &Account) -> Result<Vec<Moved>, TooLittle> {
        if self.0 > account.cents {
            return Err(TooLittle {
                wanted: self.0,
                there: account.cents,
            });
        }
        Ok(vec![Moved::Withdrawn { cents: self.0 }])
    }
}

type Accounts = Repository<Account, EventStore, Replicas<DynamoTable>>;

struct Stores {
    node: Node,
    dynamo: Dynamo,
    name: String,
}

impl Stores {
    /// With the table that the daemon would make.
    async fn start() -> Self {
        let (node, dynamo) = (Node::start().await, Dynamo::start().await);
        let name = table_name(&dynamo.prefix, Account::CATEGORY, Account::SCHEMA).unwrap();
        let tables = dynamo.tables().await;
        tables
            .ensure(&name, &Rules::new(Account::CATEGORY), Some(&Creation::LOCAL))
            .await
            .unwrap();
        Self { node, dynamo, name }
    }

    fn journal(&self) -> EventStore {
        EventStore::new(&EsdbSettings::new(self.node.url())).unwrap()
    }

    async fn table(&self) -> DynamoTable {
        let (client, bound) = (self.dynamo.client().await, Duration::from_secs(5));
        let (projection, schema) = (Account::CATEGORY, Account::SCHEMA);
        DynamoTable::new(
            client,
            self.name.clone(),
            projection,
            schema,
            bound,
            self.dynamo.seen.clone(),
        )
    }

    /// As a process of its own would have it: its own connections and an empty cache.
    async fn accounts(&self) -> Accounts {
        Repository::new(self.journal(), Replicas::new(self.table().await))
    }

    async fn writing_through(&self) -> Accounts {
        let rules = Rules::new(Account::CATEGORY);
        Repository::new(self.journal(), Replicas::new(self.table().await).write_through(rules))
    }

    async fn queries(&self) -> Queries<projector::query::Erased, EventStore, DynamoTable> {
        let fold = Arc::new(Compiled::<Account>::new(""));
        Queries::new(self.journal(), self.table().await, fold)
    }

    async fn daemon(&self) -> app::Daemon {
        let value = |name: &str, value: &str| (format!("PROJECTOR__{name}"), value.to_owned());
        let environment = BTreeMap::from([
            value("EVENTSTORE__CONNECTION", &self.node.url()),
            value("DYNAMODB__ENDPOINT", &self.dynamo.endpoint),
            value("DYNAMODB__REGION", "eu-west-1"),
            value("DYNAMODB__TABLE_PREFIX", &self.dynamo.prefix),
            value("HTTP__LISTEN", "127.0.0.1:0"),
        ]);
        let settings = Settings::load(&Inputs {
            dir: None,
            environment,
            flags: Vec::new(),
        })
        .unwrap();
        let registry = Registry::new("one").with::<Account>().unwrap();
        app::start(&settings, settings.plan(&registry).unwrap()).await.unwrap()
    }

    fn reads(&self) -> usize {
        self.node.calls("Streams/Read").len()
    }
}

fn outcome(done: &Committed<Account>) -> (u64, Option<u64>, u32, bool) {
    (done.state.cents, done.revision, done.attempts, done.repeated)
}

#[tokio::test]
async fn what_a_writer_puts_is_the_next_processs_snapshot_at_two_round_trips() {
    let stores = Stores::start().await;
    let writer = stores.writing_through().await;
    assert_eq!(
        outcome(&writer.execute("1", &Deposit(70)).await.unwrap()),
        (70, Some(0), 1, false)
    );
    assert_eq!(
        outcome(&writer.execute("1", &Deposit(30)).await.unwrap()),
        (100, Some(1), 1, false)
    );
    let replica = stores.table().await.get("account-1", true).await.unwrap().unwrap();
    assert_eq!((replica.header.version, replica.header.first), (Some(1), 0));
    assert_eq!(replica.header.commands.len(), 2);

    // Another process: the replica, the append, and beside it the one event that says whether the
    // replica is this stream's; nothing is waited for one after the other but the two.
    let (other, reads) = (stores.accounts().await, stores.reads());
    assert_eq!(
        outcome(&other.execute("1", &Withdraw(60)).await.unwrap()),
        (40, Some(2), 1, false)
    );
    assert_eq!(stores.reads(), reads + 1);
    // The first one's cache is behind now: one lost race, one read of what is missing.
    assert_eq!(
        outcome(&writer.execute("1", &Withdraw(40)).await.unwrap()),
        (0, Some(3), 2, false)
    );
    let Err(CommandError::Rejected(why)) = other.execute("1", &Withdraw(1)).await else {
        panic!("there is nothing left")
    };
    assert_eq!(why, TooLittle { wanted: 1, there: 0 });
}

#[tokio::test]
async fn a_command_with_an_id_lands_once_from_whichever_process() {
    let stores = Stores::start().await;
    let id = Uuid::from_u128(7);
    let (first, second) = (stores.writing_through().await, stores.accounts().await);
    let done = first
        .execute_with("1", &Deposit(5), Context::with_id(id))
        .await
        .unwrap();
    assert_eq!(outcome(&done), (5, Some(0), 1, false));
    first.execute("1", &Deposit(1)).await.unwrap();
    let again = second
        .execute_with("1", &Deposit(5), Context::with_id(id))
        .await
        .unwrap();
    assert!(again.repeated && again.revision == Some(0), "{again:?}");
    assert_eq!(again.events, [Moved::Deposited { cents: 5 }]);
    assert_eq!(stores.node.kinds("account-1").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_replica_is_the_commands_snapshot_and_the_queries_answer() {
    let stores = Stores::start().await;
    let accounts = stores.accounts().await;
    let mut last = None;
    for cents in 1..=20 {
        last = Some(accounts.execute("1", &Deposit(cents)).await.unwrap());
    }
    let token = last.unwrap().token();
    let queries = stores.queries().await;
    let cents = |answer: &projector::query::Answer| answer.view::<Account>().unwrap().cents;

    // Nothing is there yet but the stream.
    assert!(queries.get("account-1", &Mode::Eventual).await.unwrap().is_none());
    let answer = queries.get("account-1", &Mode::Strong).await.unwrap().unwrap();
    assert_eq!((answer.known, cents(&answer)), (Known::Confirmed, 210));

    let daemon = stores.daemon().await;
    let wait = Mode::AtLeast {
        token,
        timeout: Duration::from_secs(20),
        then: WhenLate::AnswerBehind,
    };
    let answer = queries.get("account-1", &wait).await.unwrap().unwrap();
    assert_eq!((answer.known, cents(&answer)), (Known::AtLeast, 210));
    let replica = stores.table().await.get("account-1", true).await.unwrap().unwrap();
    assert_eq!(replica.header.version, Some(19));
    assert_eq!(
        replica.header.commands.len(),
        20,
        "the daemon notes what landed, for whoever asks again"
    );

    let (other, reads) = (stores.accounts().await, stores.reads());
    assert_eq!(
        outcome(&other.execute("1", &Withdraw(10)).await.unwrap()),
        (200, Some(20), 1, false)
    );
    // The daemon has it by its delivery: the stream was read once, beside the append, to see that the
    // replica is its own.
    until("the daemon has the withdrawal", async || {
        let answer = queries.get("account-1", &Mode::Eventual).await.unwrap().unwrap();
        answer.version() == Some(20) && cents(&answer) == 200
    })
    .await;
    assert_eq!(stores.reads(), reads + 1);
    daemon.stop().await;
}
