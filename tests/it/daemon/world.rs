//! Both stores, any number of daemons over them, and what is right.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use eventstore::{
    AppendToStreamOptions, Client, DeleteStreamOptions, EventData, ExpectedRevision, ReadStreamOptions, StreamPosition,
    TombstoneStreamOptions,
};
use projector::{
    app::{self, Daemon},
    config::{Connection, CreateTables, Inputs, Settings, Span},
    document::json,
    embedded::eventstore::{EventStoreDb, Handle, Options},
    event::Recorded,
    projection::{Change, Projection, Registry, StoredState},
    replica::{Replica, ReplicaStore as _, dynamodb::DynamoTable, dynamodb::table_name},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{
    dynamo::{Dynamo, Seen},
    node::until,
    proxy::Proxy,
};

/// The view that every version of the code here makes: what its stream said, added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) balance: i64,
    pub(crate) events: u64,
    #[serde(default)]
    pub(crate) frozen: bool,
}

/// What old code knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum OldEvent {
    Paid { amount: i64 },
}
impl projector::event::Event for OldEvent {}

/// What new code knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum NewEvent {
    Paid { amount: i64 },
    Frozen {},
}
impl projector::event::Event for NewEvent {}

/// Old code.
pub(crate) struct Old;

impl Projection for Old {
    const NAME: &'static str = "account";
    type Event = OldEvent;
    type View = Account;

    fn project(view: &mut Account, event: Recorded<OldEvent>) -> Change {
        let OldEvent::Paid { amount } = event.event;
        view.balance += amount;
        view.events += 1;
        Change::Put
    }
}

/// New code: another event type.
pub(crate) struct New;

impl Projection for New {
    const NAME: &'static str = "account";
    type Event = NewEvent;
    type View = Account;

    fn project(view: &mut Account, event: Recorded<NewEvent>) -> Change {
        match event.event {
            NewEvent::Paid { amount } => view.balance += amount,
            NewEvent::Frozen {} => view.frozen = true,
        }
        view.events += 1;
        Change::Put
    }
}

/// New code with another shape: the next schema.
pub(crate) struct Next;

/// Its view: cents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cents {
    pub(crate) cents: i64,
}

impl Projection for Next {
    const NAME: &'static str = "account";
    const SCHEMA: u32 = 2;
    type Event = NewEvent;
    type View = Cents;

    fn project(view: &mut Cents, event: Recorded<NewEvent>) -> Change {
        match event.event {
            NewEvent::Paid { amount } => {
                view.cents += 100 * amount;
                Change::Put
            }
            NewEvent::Frozen {} => Change::Keep,
        }
    }
}

/// Both stores.
pub(crate) struct World {
    events: Option<Handle>,
    address: SocketAddr,
    folder: tempfile::TempDir,
    epoch: u32,
    pub(crate) dynamo: Dynamo,
    /// Between the daemons and DynamoDB.
    pub(crate) proxy: Proxy,
}

impl World {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("0");
        let events = EventStoreDb::start(Options {
            data: Some(data),
            ..Options::default()
        })
        .await
        .unwrap();
        let dynamo = Dynamo::start().await;
        Self {
            address: events.address(),
            events: Some(events),
            folder,
            epoch: 0,
            proxy: Proxy::start(&dynamo.endpoint).await,
            dynamo,
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join(self.epoch.to_string())
    }

    /// EventStoreDB becomes unavailable.
    pub(crate) async fn stop_events(&mut self) {
        self.events.take().unwrap().shutdown().await;
    }

    /// EventStoreDB comes back where it was.
    pub(crate) async fn start_events(&mut self) {
        let started = EventStoreDb::start(Options {
            data: Some(self.data()),
            port: self.address.port(),
            ..Options::default()
        });
        self.events = Some(started.await.unwrap());
    }

    /// EventStoreDB comes back with nothing in it.
    pub(crate) async fn reset_events(&mut self) {
        self.stop_events().await;
        self.epoch += 1;
        self.start_events().await;
    }

    pub(crate) fn events(&self) -> &Handle {
        self.events.as_ref().unwrap()
    }

    pub(crate) fn connection(&self) -> String {
        format!("esdb://{}?tls=false&discoveryInterval=10", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.connection().parse().unwrap()).unwrap()
    }

    pub(crate) async fn append(&self, stream: &str, events: &[(&str, Value)]) {
        let events: Vec<_> = events
            .iter()
            .map(|(kind, body)| EventData::json(*kind, body).unwrap())
            .collect();
        let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
        self.client().append_to_stream(stream, &options, events).await.unwrap();
    }

    /// Payments of one each.
    pub(crate) async fn pay(&self, stream: &str, count: usize) {
        let events = vec![("Paid", json!({ "amount": 1 })); count];
        self.append(stream, &events).await;
    }

    pub(crate) async fn truncate(&self, stream: &str, before: u64) {
        self.append(&format!("$${stream}"), &[("$metadata", json!({ "$tb": before }))])
            .await;
    }

    pub(crate) async fn delete(&self, stream: &str) {
        let options = DeleteStreamOptions::default().expected_revision(ExpectedRevision::Any);
        self.client().delete_stream(stream, &options).await.unwrap();
    }

    pub(crate) async fn tombstone(&self, stream: &str) {
        let options = TombstoneStreamOptions::default().expected_revision(ExpectedRevision::Any);
        self.client().tombstone_stream(stream, &options).await.unwrap();
    }

    /// The readable payments of a stream, added up: what a fold from the first readable revision gives.
    pub(crate) async fn readable(&self, stream: &str) -> (i64, u64) {
        let options = ReadStreamOptions::default().forwards().position(StreamPosition::Start);
        let client = self.client();
        let mut read = client.read_stream(stream, &options).await.unwrap();
        let mut sum = (0, 0);
        while let Some(event) = read.next().await.unwrap() {
            let event = event.event.unwrap();
            if &*event.event_type == "Paid" {
                let body: Value = serde_json::from_slice(&event.data).unwrap();
                sum.0 += body["amount"].as_i64().unwrap();
            }
            sum.1 += 1;
        }
        sum
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::load(&Inputs::default()).unwrap();
        settings.eventstore.connection = Connection(self.connection());
        settings.eventstore.operation_timeout = Span(Duration::from_secs(2));
        settings.dynamodb.endpoint = Some(self.proxy.endpoint());
        settings.dynamodb.region = Some("eu-west-1".to_owned());
        settings.dynamodb.table_prefix.clone_from(&self.dynamo.prefix);
        settings.dynamodb.create_tables = CreateTables::Plain;
        settings.dynamodb.operation_timeout = Span(Duration::from_secs(3));
        settings.dynamodb.attempt_timeout = Span(Duration::from_secs(1));
        settings.http.listen.set_port(0);
        settings.http.probe_every = Span(Duration::from_millis(100));
        settings.engine.measure_every = Span(Duration::from_millis(100));
        settings.defaults.checkpoint_after = Span(Duration::from_millis(200));
        settings
    }

    /// A daemon with this code; `fingerprint` tells builds apart.
    pub(crate) async fn daemon<P: Projection>(&self, fingerprint: &str) -> Running {
        self.daemon_with::<P>(fingerprint, |_| ()).await
    }

    pub(crate) async fn daemon_with<P: Projection>(
        &self,
        fingerprint: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Running {
        let mut settings = self.settings();
        change(&mut settings);
        let registry = Registry::new(fingerprint).with::<P>().unwrap();
        let planned = settings.plan(&registry).unwrap();
        Running(app::start(&settings, planned).await.unwrap())
    }

    /// The table of a schema.
    pub(crate) async fn table(&self, schema: u32) -> DynamoTable {
        let name = table_name(&self.dynamo.prefix, "account", schema).unwrap();
        let seen: Arc<Seen> = self.dynamo.seen.clone();
        let client = self.dynamo.client().await;
        DynamoTable::new(client, name, "account", schema, Duration::from_secs(5), seen)
    }

    /// A replica; none as long as there is no table.
    pub(crate) async fn replica(&self, stream: &str) -> Option<Replica> {
        match self.table(1).await.get(stream, true).await {
            Err(error) if error.is_setup() => None,
            replica => replica.unwrap(),
        }
    }

    /// A replica's state, when it has one.
    pub(crate) async fn state(&self, stream: &str) -> Option<Value> {
        state(self.replica(stream).await?)
    }
}

pub(crate) fn state(replica: Replica) -> Option<Value> {
    match replica.view? {
        StoredState::Document(document) => Some(serde_json::from_str(&json::to_string(&document)).unwrap()),
        other @ StoredState::Json(_) => panic!("the state is {other:?}"),
    }
}

/// A daemon.
pub(crate) struct Running(pub(crate) Daemon);

impl Running {
    /// A page, as a scraper or a person gets it: its status code and its text.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.0.address)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// What `/status` says of the projection.
    pub(crate) async fn status(&self) -> Value {
        let status: Value = serde_json::from_str(&self.page("/status").await.1).unwrap();
        let projection = status["projections"][0].clone();
        let reasons = ["reason", "last_error", "lag_unknown_because"].map(|reason| &projection[reason]);
        let both = ["unready_because", "dead_because"].map(|why| status[why].as_array().unwrap());
        for text in reasons
            .into_iter()
            .chain(both.into_iter().flatten())
            .filter_map(Value::as_str)
        {
            let whole = text.starts_with(char::is_uppercase) && text.ends_with('.');
            assert!(whole, "no sentence: {text}");
        }
        projection
    }

    pub(crate) async fn ready(&self) -> bool {
        self.page("/readyz").await.0 == 200
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.page("/metrics").await;
        let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        text.lines()
            .filter(of)
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until it says that nothing is left of what is in the source now; it says so truly, or
    /// invariant 7 is broken.
    pub(crate) async fn caught_up(&self) {
        let now = Utc::now();
        until("the daemon has caught up", async || {
            let status = self.status().await;
            let as_of = status["lag"]["as_of"]
                .as_str()
                .map(|at| at.parse::<DateTime<Utc>>().unwrap());
            as_of > Some(now) && status["lag"]["events"] == json!(0) && status["holding"] == json!(0)
        })
        .await;
    }

    pub(crate) async fn stop(self) {
        self.0.stop().await;
    }
}
