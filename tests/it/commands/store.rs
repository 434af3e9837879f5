//! One way in: what a store hands out agrees with the daemon and with each other; queries by type
//! and id; a projection that refuses an event.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use projector::{
    aggregate::Aggregate,
    app::{self, Connections},
    command::{
        CatchUpError, CommandSettings, Context, OnDeleted, Repository,
        observe::{Observation, Observer, Origin},
    },
    config::{Inputs, OnDeletion, OnRevival, Settings},
    event::{Event, Recorded},
    projection::{Change, Projection, Registry, Source},
    query::{Known, Limits, Mode, Moment, Queries, QueryError, Token, WhenLate},
    replica::ReplicaStore as _,
    store::{Policy, Store, StoreSettings},
};
use serde::{Deserialize, Serialize};

use super::{Account, Do, Entry, World};
use crate::{
    daemon::world::Running,
    support::{dynamo::Dynamo, node::until},
};

/// A store as a service without the daemon's settings opens one.
async fn opened(world: &World) -> Store {
    opened_with(world, Policy::default()).await
}

async fn opened_with(world: &World, policy: Policy) -> Store {
    let settings = StoreSettings {
        dynamodb: Dynamo::settings(&world.stores.proxy.endpoint()),
        table_prefix: world.stores.dynamo.prefix.clone(),
        ..StoreSettings::new(world.stores.connection())
    };
    Store::open(settings.with_policy::<Account>(policy)).await.unwrap()
}

fn at_least(token: Token) -> Mode {
    Mode::AtLeast {
        token,
        timeout: Duration::from_secs(10),
        then: WhenLate::FoldTail,
    }
}

/// Where commands had their states from.
#[derive(Default)]
struct Loads(Mutex<Vec<Origin>>);

impl Observer for Loads {
    fn observe(&self, _: &str, observation: Observation) {
        if let Observation::Loaded(origin) = observation {
            self.0.lock().unwrap().push(origin);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_hands_out_is_one_for_the_process() {
    let world = World::start().await;
    let loads = Arc::new(Loads::default());
    let store = opened(&world).await.observed_by(loads.clone());
    // Plain signatures: the stores are the ones that production has.
    let accounts: Repository<Account> = store.repository().unwrap();
    let queries: Queries<Account> = store.queries().unwrap();
    let done = accounts.execute("1", &Do::Deposit(5)).await.unwrap();
    // Another clone, from another clone of the store: cached, so DynamoDB is not asked.
    let again = store.clone().repository::<Account>().unwrap();
    assert_eq!(again.execute("1", &Do::Deposit(2)).await.unwrap().state.cents, 7);
    assert_eq!(*loads.0.lock().unwrap(), [Origin::Replay, Origin::Cache]);
    let answer = queries.get("1", &at_least(done.token())).await.unwrap().unwrap();
    assert_eq!((answer.state.cents, answer.version()), (7, Some(1)));
    assert_eq!(answer.token().stream, done.stream);

    let through = again.writing_through();
    through.execute("1", &Do::Deposit(1)).await.unwrap();
    let eventual = queries.get("1", &Mode::Eventual).await.unwrap().unwrap();
    assert_eq!((eventual.state.cents, eventual.known), (8, Known::Eventual));
}

/// Absent, deleted, and nothing left of it are three things, in every mode.
#[tokio::test(flavor = "multi_thread")]
async fn absent_deleted_and_zero_are_told_apart_in_every_mode() {
    let world = World::start().await;
    let daemon = world.daemon().await;
    let store = opened(&world).await;
    let (accounts, queries) = (
        store.repository::<Account>().unwrap(),
        store.queries::<Account>().unwrap(),
    );
    accounts.execute("zero", &Do::Split(1, -1)).await.unwrap();
    accounts.execute("gone", &Do::Deposit(5)).await.unwrap();
    daemon.caught_up().await;
    world.stores.delete("account-gone").await;
    until("the deletion is marked", async || {
        let replica = world.table().await.get("account-gone", true).await.unwrap();
        replica.is_some_and(|replica| replica.header.deleted)
    })
    .await;
    for mode in [Mode::Eventual, Mode::Strong, Mode::AsOf(Moment::Revision(9))] {
        let zero = queries.get("zero", &mode).await.unwrap().unwrap();
        assert_eq!((zero.state.cents, zero.state.entries), (0, 2), "{mode:?}");
        assert!(queries.get("never", &mode).await.unwrap().is_none(), "{mode:?}");
        let gone = queries.get("gone", &mode).await.unwrap_err();
        assert!(matches!(gone, QueryError::Deleted { .. }), "{mode:?}: {gone}");
    }
    let token = "account-gone@0".parse().unwrap();
    let gone = queries.get("gone", &at_least(token)).await.unwrap_err();
    assert!(matches!(gone, QueryError::Deleted { .. }), "{gone}");

    let many = queries.get_many(&["gone", "never", "zero"]).await.unwrap();
    assert!(matches!(many[0], Err(QueryError::Deleted { .. })));
    assert!(matches!(&many[1], Ok(None)));
    assert!(matches!(&many[2], Ok(Some(zero)) if zero.state.cents == 0));
    // What is kept of it is there for whoever asks for it.
    let kept = queries
        .erased()
        .get("account-gone", &Mode::Eventual)
        .await
        .unwrap()
        .unwrap();
    assert!(kept.header.deleted);
    assert_eq!(kept.view::<Account>().unwrap().cents, 5);
    daemon.stop().await;
}

fn settings(world: &World, toml: &str) -> Settings {
    let mut settings = world.stores.settings();
    let inline = BTreeMap::from([("PROJECTOR_CONFIG_TOML".to_owned(), toml.to_owned())]);
    let loaded = Settings::load(&Inputs {
        environment: inline,
        ..Inputs::default()
    });
    settings.projection = loaded.unwrap().projection;
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_by_the_daemons_settings_agrees_with_it() {
    // Dropping a state leaves nothing to fold on.
    for anew in ["on_revival = \"restart\"", "on_deletion = \"remove\""] {
        agrees(anew).await;
    }
}

async fn agrees(anew: &str) {
    let world = World::start().await;
    let settings = settings(
        &world,
        &format!(
            "[projection.account]\n{anew}\ncommands = 7\n\
             promote.cents = {{ path = \"cents\", type = \"N\" }}"
        ),
    );
    let planned = settings
        .plan(&Registry::new("test").with::<Account>().unwrap())
        .unwrap();
    let connections = Connections::new(&settings).await.unwrap();
    let store = connections.store(&settings, &planned);
    let daemon = Running(app::start(&settings, planned).await.unwrap());
    let accounts = store.repository::<Account>().unwrap().writing_through();
    accounts.execute("1", &Do::Deposit(5)).await.unwrap();
    daemon.caught_up().await;
    // Written through by the daemon's own rules: promoted attributes stay.
    for cents in 1..=9 {
        accounts.execute("1", &Do::Deposit(cents)).await.unwrap();
    }
    let table = store.table::<Account>(1).unwrap();
    let replica = table.get("account-1", true).await.unwrap().unwrap();
    assert_eq!(replica.header.version, Some(9), "written through");
    assert_eq!(replica.promoted.len(), 1);
    daemon.caught_up().await;
    let replica = table.get("account-1", true).await.unwrap().unwrap();
    assert_eq!(replica.header.commands.len(), 7, "one window for all");

    // A revived stream starts over, for commands, queries and the daemon alike.
    world.stores.delete("account-1").await;
    world.deposit("account-1", &[3]).await;
    daemon.caught_up().await;
    assert_eq!(accounts.execute("1", &Do::Nothing).await.unwrap().state.cents, 3);
    let queries = store.queries::<Account>().unwrap();
    for mode in [Mode::Strong, Mode::Eventual] {
        let answer = queries.get("1", &mode).await.unwrap().unwrap();
        assert_eq!((answer.state.cents, answer.header.first), (3, 10), "{mode:?}");
    }
    daemon.stop().await;
}

/// What is the service's own matter is its own, and what it shares with the daemon stays shared.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_by_the_daemons_settings_takes_a_services_own_beside_them() {
    let world = World::start().await;
    let settings = settings(
        &world,
        "[projection.account]\non_revival = \"restart\"\ncommands = 7\n\
         promote.cents = { path = \"cents\", type = \"N\" }",
    );
    let planned = settings
        .plan(&Registry::new("test").with::<Account>().unwrap())
        .unwrap();
    let store = Connections::new(&settings).await.unwrap().store(&settings, &planned);
    let store = store
        .with_commands(CommandSettings {
            on_deleted: OnDeleted::Restart,
            // The policies have the last word on these.
            keep_commands: 1,
            restarts: false,
            ..CommandSettings::default()
        })
        .with_limits(Limits {
            cap: 3,
            restarts: false,
            ..Limits::default()
        });
    let daemon = Running(app::start(&settings, planned).await.unwrap());
    let accounts = store.repository::<Account>().unwrap().writing_through();
    for cents in 1..=9 {
        accounts.execute("1", &Do::Deposit(cents)).await.unwrap();
    }
    let table = store.table::<Account>(1).unwrap();
    let replica = table.get("account-1", true).await.unwrap().unwrap();
    assert_eq!((replica.header.commands.len(), replica.promoted.len()), (7, 1));
    daemon.caught_up().await;
    // Its own: a deleted stream is no error, and a query folds three events at most.
    world.stores.delete("account-1").await;
    let done = accounts.execute("1", &Do::Nothing).await.unwrap();
    assert_eq!((done.state.cents, done.version), (0, None));
    let queries = store.queries::<Account>().unwrap();
    world.deposit("account-2", &[1; 4]).await;
    let past = queries.get("2", &Mode::AsOf(Moment::Revision(3))).await.unwrap_err();
    assert!(
        matches!(past, QueryError::State(CatchUpError::TooLong { cap: 3, .. })),
        "{past}"
    );
    // The policy's: a revived stream starts over, for queries too.
    world.deposit("account-1", &[3]).await;
    let answer = queries.get("1", &Mode::Strong).await.unwrap().unwrap();
    assert_eq!((answer.state.cents, answer.header.first), (3, 9));
    daemon.stop().await;
}

/// Its own defaults are the daemon's.
#[test]
fn the_defaults_of_a_store_are_the_daemons() {
    let (settings, daemons) = (StoreSettings::new("esdb://nowhere"), Settings::default());
    assert_eq!(settings.table_prefix, daemons.dynamodb.table_prefix);
    let (policy, theirs) = (&settings.policy, &daemons.defaults);
    assert_eq!(policy.keep_commands, theirs.commands);
    assert_eq!(policy.compress_above as u64, theirs.compress_above.0);
    let restarts = theirs.on_revival == OnRevival::Restart || theirs.on_deletion == OnDeletion::Remove;
    assert_eq!(policy.restarts, restarts);
    assert_eq!(policy.on_lost_history, theirs.on_lost_history);
    assert_eq!(settings.dynamodb, daemons.dynamo());
    let theirs = projector::journal::esdb::EsdbSettings {
        connection_string: settings.eventstore.connection_string.clone(),
        ..daemons.esdb()
    };
    assert_eq!(settings.eventstore, theirs);
}

/// Repositories that share a cache may write through or not: what was loaded without is written with
/// the same care.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_attribute_survives_whoever_loaded_the_state() {
    let world = World::start().await;
    let settings = settings(
        &world,
        "[projection.account]\npromote.cents = { path = \"cents\", type = \"N\" }",
    );
    let planned = settings
        .plan(&Registry::new("test").with::<Account>().unwrap())
        .unwrap();
    let daemon = Running(app::start(&settings, planned).await.unwrap());
    world.deposit("account-1", &[5]).await;
    daemon.caught_up().await;
    daemon.stop().await;
    // A service that does not know of the daemon's settings.
    let accounts = opened(&world).await.repository::<Account>().unwrap();
    accounts.execute("1", &Do::Nothing).await.unwrap();
    accounts
        .clone()
        .writing_through()
        .execute("1", &Do::Deposit(1))
        .await
        .unwrap();
    let replica = world.table().await.get("account-1", true).await.unwrap().unwrap();
    assert_eq!(replica.promoted.len(), 1, "left to the daemon");
    assert_eq!(replica.header.version, Some(0));
}

/// What every deposit came to; refuses an entry that cannot be true.
struct Ledger;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Lines {
    cents: i64,
    users: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("an entry over {0} cents takes out what was never there")]
struct Overdrawn(i64);

fn book(lines: &mut Lines, entry: &Recorded<Entry>) -> Result<Change, Overdrawn> {
    let cents = match entry.event {
        Entry::Deposited { cents } => cents,
        Entry::Withdrew { cents } => -cents,
    };
    // Half done before it is refused: nothing of it is kept.
    lines.cents += cents;
    if lines.cents < 0 {
        return Err(Overdrawn(cents));
    }
    lines.users.extend(entry.metadata().user);
    Ok(Change::Put)
}

impl Projection for Ledger {
    const NAME: &'static str = "ledger";
    type Event = Entry;
    type View = Lines;

    fn project(lines: &mut Lines, entry: Recorded<Entry>) -> Change {
        book(lines, &entry).into()
    }

    fn source() -> Source {
        Source::Category("account".into())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_refuses_an_event_quarantines_its_stream_with_the_reason() {
    let world = World::start().await;
    let daemon = world.stores.daemon::<Ledger>("test").await;
    let store = opened(&world).await;
    let accounts = store.repository::<Account>().unwrap();
    let user = |user: &str| Context::default().user(user);
    accounts.execute_with("1", &Do::Deposit(5), user("ada")).await.unwrap();
    accounts.execute_with("2", &Do::Deposit(5), user("eve")).await.unwrap();
    accounts.execute_with("1", &Do::Deposit(-9), user("eve")).await.unwrap();
    accounts.execute_with("2", &Do::Deposit(1), user("ada")).await.unwrap();
    // Its ids are the category's, whatever the projection is called.
    let queries = store.queries::<Ledger>().unwrap();
    until("the refusal is marked", async || {
        let answer = queries.get("1", &Mode::Eventual).await;
        matches!(answer, Ok(Some(answer)) if answer.header.quarantine.is_some())
    })
    .await;
    let refused = queries.get("1", &Mode::Eventual).await.unwrap().unwrap();
    let expected = Lines {
        cents: 5,
        users: vec!["ada".into()],
    };
    assert_eq!((refused.state, refused.header.version), (expected, Some(0)));
    let mark = refused.header.quarantine.unwrap();
    assert_eq!(mark.at, 1);
    assert!(mark.reason.contains("an entry over -9 cents"), "{}", mark.reason);
    let error = queries.get("1", &Mode::Strong).await.unwrap_err();
    assert!(error.to_string().contains("an entry over -9 cents"), "{error}");
    daemon.caught_up().await;
    let other = queries.get("2", &Mode::Eventual).await.unwrap().unwrap();
    assert_eq!(other.state.users, ["eve", "ada"]);
    assert!(daemon.ready().await);
    daemon.stop().await;
}

/// The schema before, and the one after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_raised_schema_starts_from_the_table_before() {
    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Euros {
        euros: i64,
    }
    #[derive(Serialize, Deserialize)]
    enum Booked {
        Deposited { cents: i64 },
    }
    impl Event for Booked {}
    impl Aggregate for Euros {
        const CATEGORY: &'static str = "account";
        const SCHEMA: u32 = 2;
        type Event = Booked;
        fn apply(&mut self, Booked::Deposited { cents }: Booked) {
            self.euros += cents / 100;
        }
    }
    struct Look;
    impl projector::aggregate::Command<Euros, (Vec<Booked>, i64)> for Look {
        type Error = String;
        fn decide(&self, account: &Euros) -> Result<(Vec<Booked>, i64), String> {
            Ok((Vec::new(), account.euros))
        }
    }
    let world = World::start().await;
    let daemon = world.daemon().await;
    world.deposit("account-1", &[500; 20]).await;
    daemon.caught_up().await;
    let store = opened(&world).await;
    let accounts = store.repository::<Euros>().unwrap();
    let before = store.table::<Euros>(1).unwrap();
    let accounts = accounts.upgrading(before, |old: Account| Euros { euros: old.cents / 100 });
    world.stores.truncate("account-1", 19).await;
    // The stream alone would say 5.
    assert_eq!(accounts.execute("1", &Look).await.unwrap().reply, Some(100));
    daemon.stop().await;
}
