//! One way in for services: both stores, connected to once, and what holds for every projection.
//!
//! Repositories and queries come out of it, so that they agree: on the table, the schema, the
//! window of command ids, promoted attributes, and what a revival or lost history means. Those that
//! agree with the daemon say what its settings say; `app::Connections::store` takes them from there.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    aggregate::Aggregate,
    command::{
        CommandSettings, Replicas, Repository,
        observe::{Observer, Unobserved},
    },
    journal::esdb::{EsdbSettings, EventStore, SettingsError},
    projection::{OnLostHistory, Projection, Source, folding::COMMANDS_KEPT},
    query::{Limits, Queries},
    replica::{
        StoreError,
        dynamodb::{ConnectError, DynamoSettings, DynamoTable, connect, table_name},
        item::{ITEM_LIMIT, Promoted, Rules},
    },
};

/// What stands before the names of tables unless the settings say otherwise.
pub const TABLE_PREFIX: &str = "projector-";

/// How a [`Store`] is reached, and what it hands out.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// How EventStoreDB is reached. No default for where.
    pub eventstore: EsdbSettings,
    /// How DynamoDB is reached: the AWS way, by default.
    pub dynamodb: DynamoSettings,
    /// What stands before the names of tables, [`TABLE_PREFIX`] by default: the daemon's
    /// `dynamodb.table_prefix`.
    pub table_prefix: String,
    /// How commands are carried out; the defaults are [`CommandSettings`]'s. What [`Policy`] has as well is taken from there.
    pub commands: CommandSettings,
    /// The limits of queries; the defaults are [`Limits`]'s. What [`Policy`] has as well is taken from there.
    pub queries: Limits,
    /// What holds for projections that [`Self::policies`] does not name: the daemon's `[defaults]`,
    /// and its defaults by default.
    pub policy: Policy,
    /// What holds for single projections, by their names: the daemon's `[projection.NAME]`. Default: none.
    pub policies: BTreeMap<String, Policy>,
}

impl StoreSettings {
    /// With this connection string for EventStoreDB, and the defaults for the rest.
    pub fn new(connection_string: impl Into<String>) -> Self {
        Self {
            eventstore: EsdbSettings::new(connection_string),
            dynamodb: DynamoSettings::default(),
            table_prefix: TABLE_PREFIX.to_owned(),
            commands: CommandSettings::default(),
            queries: Limits::default(),
            policy: Policy::default(),
            policies: BTreeMap::new(),
        }
    }

    /// With this policy for `P`.
    #[must_use]
    pub fn with_policy<P: Projection>(mut self, policy: Policy) -> Self {
        self.policies.insert(P::NAME.to_owned(), policy);
        self
    }
}

/// What holds for a projection wherever it is used, in the daemon and in services alike. The
/// defaults are the daemon's.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Where its events come from (`source`): a category names the streams of a projection that is no
    /// aggregate ([`Queries::on`]). Default: where its code says.
    pub source: Option<Source>,
    /// Whether a stream that was deleted and lives again is folded from its first readable event:
    /// `on_revival = "restart"`, or `on_deletion = "remove"`, which implies it. Default: no, it is folded on.
    pub restarts: bool,
    /// What is done where history is gone that no replica covers: `on_lost_history`. Default: a
    /// replica begins at the first readable event.
    pub on_lost_history: OnLostHistory,
    /// Command ids that a replica remembers: `commands`. Default: 32.
    pub keep_commands: usize,
    /// A state of more bytes than this is stored compressed: `compress_above`. Default: 409,600, an
    /// item's limit.
    pub compress_above: usize,
    /// Fields of the view that are attributes of their own: `promote`. Default: none.
    pub promoted: Vec<Promoted>,
    /// Whether repositories put the new replica after each append. Default: no, that is left to the
    /// daemon. [`Repository::writing_through`] does it for one.
    pub write_through: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            source: None,
            restarts: false,
            on_lost_history: OnLostHistory::Partial,
            keep_commands: COMMANDS_KEPT,
            compress_above: ITEM_LIMIT,
            promoted: Vec::new(),
            write_through: false,
        }
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// How EventStoreDB is reached.
    #[error(transparent)]
    EventStore(#[from] SettingsError),
    /// How DynamoDB is reached.
    #[error(transparent)]
    DynamoDb(#[from] ConnectError),
}

/// Both stores, for a whole process: what it hands out shares connections, and repositories of one
/// aggregate share their cache and queues. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    journal: EventStore,
    dynamo: aws_sdk_dynamodb::Client,
    settings: Arc<StoreSettings>,
    observer: Arc<dyn Observer>,
    made: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Checks the settings of both stores and makes their clients. Makes no call.
    pub async fn open(settings: StoreSettings) -> Result<Self, OpenError> {
        let journal = EventStore::new(&settings.eventstore)?;
        let dynamo = connect(&settings.dynamodb).await?;
        Ok(Self::on(journal, dynamo, settings))
    }

    /// On clients that are there. Of the settings, how the stores are reached is not used.
    pub fn on(journal: EventStore, dynamo: aws_sdk_dynamodb::Client, settings: StoreSettings) -> Self {
        Self {
            journal,
            dynamo,
            settings: Arc::new(settings),
            observer: Arc::new(Unobserved),
            made: Arc::default(),
        }
    }

    /// Everything that it hands out is observed by `observer`, `command::metrics::CommandMetrics`
    /// for one. To be said before anything is handed out.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self.made = Arc::default();
        self
    }

    /// Commands are carried out like this; what [`Policy`] has as well stays as the policies have it.
    /// To be said before anything is handed out.
    #[must_use]
    pub fn with_commands(self, commands: CommandSettings) -> Self {
        self.changed(|settings| settings.commands = commands)
    }

    /// Queries have these limits; what [`Policy`] has as well stays as the policies have it. To be
    /// said before anything is handed out.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        self.changed(|settings| settings.queries = limits)
    }

    fn changed(mut self, change: impl FnOnce(&mut StoreSettings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self.made = Arc::default();
        self
    }

    /// Carries out commands on `A`. The first call makes it, later ones give clones of it.
    ///
    /// # Errors
    ///
    /// When table prefix, category and schema make no table's name.
    pub fn repository<A: Aggregate>(&self) -> Result<Repository<A>, StoreError> {
        if let Some(made) = self.made().get(&TypeId::of::<A>()).and_then(|made| made.downcast_ref()) {
            return Ok(Repository::clone(made));
        }
        let policy = self.policy::<A>();
        let rules = Rules {
            compress_above: policy.compress_above,
            promoted: policy.promoted.clone(),
            ..Rules::of::<A>()
        };
        let replicas = Replicas::new(self.table::<A>(A::SCHEMA)?).stored_by(rules);
        let repository = Repository::new(self.journal.clone(), replicas)
            .with_settings(CommandSettings {
                restarts: policy.restarts,
                on_lost_history: policy.on_lost_history,
                keep_commands: policy.keep_commands,
                ..self.settings.commands.clone()
            })
            .observed_by(self.observer.clone());
        let repository = if policy.write_through {
            repository.writing_through()
        } else {
            repository
        };
        let mut made = self.made();
        // Whoever was quicker has the one that all share.
        let shared = made
            .entry(TypeId::of::<A>())
            .or_insert_with(|| Box::new(repository.clone()));
        Ok(shared.downcast_ref::<Repository<A>>().cloned().unwrap_or(repository))
    }

    /// Answers queries on `P`: an aggregate, or any other projection.
    ///
    /// # Errors
    ///
    /// When table prefix, name and schema make no table's name.
    pub fn queries<P: Projection>(&self) -> Result<Queries<P>, StoreError> {
        let policy = self.policy::<P>();
        let queries = Queries::of(self.journal.clone(), self.table::<P>(P::SCHEMA)?)
            .with_limits(self.settings.queries)
            .under(policy.restarts, policy.on_lost_history)
            .observed_by(self.observer.clone());
        Ok(match &policy.source {
            Some(source) => queries.on(source.clone()),
            None => queries,
        })
    }

    /// The table of `P` at this schema, which [`Repository::upgrading`] takes of the one before.
    ///
    /// # Errors
    ///
    /// When table prefix, name and schema make no table's name.
    pub fn table<P: Projection>(&self, schema: u32) -> Result<DynamoTable, StoreError> {
        let name = table_name(&self.settings.table_prefix, P::NAME, schema)?;
        let timeout = self.settings.dynamodb.operation_timeout;
        Ok(DynamoTable::new(
            self.dynamo.clone(),
            name,
            P::NAME,
            schema,
            timeout,
            Arc::new(()),
        ))
    }

    /// The event store, for what is no command: to ask whether it is there, say.
    pub fn journal(&self) -> &EventStore {
        &self.journal
    }

    fn policy<P: Projection>(&self) -> &Policy {
        self.settings.policies.get(P::NAME).unwrap_or(&self.settings.policy)
    }

    fn made(&self) -> MutexGuard<'_, HashMap<TypeId, Box<dyn Any + Send>>> {
        // Nothing that is done under the lock leaves it half done.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
