//! A DynamoDB to test against: the embedded emulator, or the one that
//! `PROJECTOR_TEST_DYNAMODB_ENDPOINT` names; tables of each test's own.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_dynamodb::Client;
use projector::{
    embedded::dynamodb::{DynamoDb, DynamoDbHandle, Options},
    replica::{
        dynamodb::{
            AttemptOutcome, Creation, DynamoSettings, DynamoTable, Operation, RequestAttempt, StoreObserver, Tables,
            connect, table_name,
        },
        item::Rules,
    },
};
use uuid::Uuid;

/// The projection that tests put replicas of.
pub(crate) const PROJECTION: &str = "loan";
/// Its schema.
pub(crate) const SCHEMA: u32 = 3;

/// A running DynamoDB and a table in it.
pub(crate) struct Dynamo {
    /// Where it answers.
    pub(crate) endpoint: String,
    /// Of this test alone.
    pub(crate) prefix: String,
    /// What its tables' calls came to.
    pub(crate) seen: Arc<Seen>,
    // Stops with the test.
    embedded: Option<DynamoDbHandle>,
}

impl Dynamo {
    pub(crate) async fn start() -> Self {
        let (endpoint, embedded) = if let Ok(endpoint) = std::env::var("PROJECTOR_TEST_DYNAMODB_ENDPOINT") {
            (endpoint, None)
        } else {
            let handle = DynamoDb::start(Options::default()).await.unwrap();
            (handle.endpoint(), Some(handle))
        };
        Self {
            endpoint,
            prefix: format!("t{}-", Uuid::new_v4().simple()),
            seen: Arc::default(),
            embedded,
        }
    }

    /// Whether it is the emulator, and not Amazon's own.
    pub(crate) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// The name of the table of [`PROJECTION`].
    pub(crate) fn table_name(&self) -> String {
        table_name(&self.prefix, PROJECTION, SCHEMA).unwrap()
    }

    /// Settings with short time-outs, so that tests of outages end soon.
    pub(crate) fn settings(endpoint: &str) -> DynamoSettings {
        DynamoSettings {
            endpoint: Some(endpoint.to_owned()),
            region: Some("eu-west-1".to_owned()),
            attempt_timeout: Duration::from_secs(2),
            ..DynamoSettings::default()
        }
    }

    /// A client that goes straight to it.
    pub(crate) async fn client(&self) -> Client {
        connect(&Self::settings(&self.endpoint)).await.unwrap()
    }

    /// For setting tables up.
    pub(crate) async fn tables(&self) -> Tables {
        Tables::new(self.client().await, Duration::from_secs(10), self.seen.clone())
    }

    /// The test's table, created.
    pub(crate) async fn table(&self) -> DynamoTable {
        self.tables()
            .await
            .ensure(&self.table_name(), &Rules::new(PROJECTION), Some(&Creation::LOCAL))
            .await
            .unwrap();
        self.open(self.client().await)
    }

    /// The test's table by another client.
    pub(crate) fn open(&self, client: Client) -> DynamoTable {
        self.open_for(client, Duration::from_secs(5))
    }

    /// The test's table by another client, with a bound on each call.
    pub(crate) fn open_for(&self, client: Client, bound: Duration) -> DynamoTable {
        DynamoTable::new(client, self.table_name(), PROJECTION, SCHEMA, bound, self.seen.clone())
    }
}

/// Every attempt that an observer saw.
#[derive(Default)]
pub(crate) struct Seen {
    attempts: Mutex<Vec<(Operation, AttemptOutcome, f64)>>,
    left_out: Mutex<u32>,
}

impl Seen {
    /// How many attempts of `operation` came to `outcome`.
    pub(crate) fn count(&self, operation: Operation, outcome: AttemptOutcome) -> usize {
        self.attempts
            .lock()
            .unwrap()
            .iter()
            .filter(|(o, what, _)| (*o, *what) == (operation, outcome))
            .count()
    }

    /// Capacity units that `operation` consumed.
    pub(crate) fn capacity(&self, operation: Operation) -> f64 {
        self.attempts
            .lock()
            .unwrap()
            .iter()
            .filter(|(o, ..)| *o == operation)
            .map(|(.., capacity)| capacity)
            .sum()
    }

    /// How many promoted fields were left out.
    pub(crate) fn left_out(&self) -> u32 {
        *self.left_out.lock().unwrap()
    }
}

impl StoreObserver for Seen {
    fn attempt(&self, attempt: &RequestAttempt<'_>) {
        self.attempts
            .lock()
            .unwrap()
            .push((attempt.operation, attempt.outcome, attempt.capacity));
    }

    fn left_out(&self, _table: &str, fields: u32) {
        *self.left_out.lock().unwrap() += fields;
    }
}
