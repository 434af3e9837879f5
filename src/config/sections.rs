//! The settings, one struct a section, with their defaults in one place each.
//!
//! Unknown keys are refused in every section. `config/default.toml` says the same in TOML, and a
//! test holds the two against each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::units::{Secret, Size, Span, unless_empty, worded, words};
use crate::{
    journal::{
        esdb::{DEFAULT_IDLE_RENEW, DEFAULT_OPERATION_TIMEOUT, redacted},
        feed,
    },
    projection::{OnDeletion, OnLostHistory, OnRevival, folding::COMMANDS_KEPT},
    replica::{dynamodb::without_user_info, item},
};

/// All settings of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How EventStoreDB is reached.
    pub eventstore: EventStoreSection,
    /// How DynamoDB is reached, and what tables are called.
    pub dynamodb: DynamoDbSection,
    /// What all projections of the process share.
    pub engine: Engine,
    /// What a projection does unless its own table says otherwise.
    pub defaults: Defaults,
    /// Projections by name.
    pub projection: BTreeMap<String, ProjectionSection>,
    /// The HTTP server for metrics and health.
    pub http: Http,
    /// Logs.
    pub log: Log,
}

/// How EventStoreDB is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventStoreSection {
    /// The connection string.
    pub connection: Connection,
    /// User name, instead of one in the connection string.
    #[serde(deserialize_with = "unless_empty")]
    pub user: Option<String>,
    /// Its password.
    #[serde(deserialize_with = "unless_empty")]
    pub password: Option<Secret>,
    /// The authority behind the servers' certificates: a path, or the PEM text.
    #[serde(deserialize_with = "unless_empty")]
    pub tls_ca: Option<String>,
    /// A user certificate: a path, or the PEM text.
    #[serde(deserialize_with = "unless_empty")]
    pub user_certificate: Option<String>,
    /// Its key: a path, or the PEM text.
    #[serde(deserialize_with = "unless_empty")]
    pub user_key: Option<Secret>,
    /// Longest time for one call.
    pub operation_timeout: Span,
    /// A connection unused for this long is replaced before the next call.
    pub idle_renew: Span,
    /// How the process is named in the server's figures.
    pub connection_name: String,
    /// At which `-` of a stream's name the server's `$by_category` ends its category.
    pub category_separator: Separator,
}

/// A connection string; shown without the user in it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Connection(pub String);

impl Serialize for Connection {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&redacted(&self.0))
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&redacted(&self.0))
    }
}

impl Default for EventStoreSection {
    fn default() -> Self {
        Self {
            connection: Connection("esdb://localhost:2113?tls=false".into()),
            user: None,
            password: None,
            tls_ca: None,
            user_certificate: None,
            user_key: None,
            operation_timeout: Span(DEFAULT_OPERATION_TIMEOUT),
            idle_renew: Span(DEFAULT_IDLE_RENEW),
            connection_name: "projector".into(),
            category_separator: Separator::First,
        }
    }
}

words! {
    /// Which `-` of a stream's name `$by_category` takes for the end of its category.
    Separator {
        /// The first one, as EventStoreDB comes.
        First = "first",
        /// The last one.
        Last = "last",
    }
}

words! {
    /// Whether tables that are missing are created at start.
    CreateTables {
        /// Never; `projector provision` does.
        No = "no",
        /// With deletion protection and point-in-time recovery.
        Protected = "protected",
        /// Without either: for tests and local servers.
        Plain = "plain",
    }
}

/// How DynamoDB is reached, and what tables are called.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamoDbSection {
    /// The region, unless it comes the AWS way.
    #[serde(deserialize_with = "unless_empty")]
    pub region: Option<String>,
    /// A local endpoint instead of the region's.
    #[serde(deserialize_with = "unless_empty", serialize_with = "address_alone")]
    pub endpoint: Option<String>,
    /// The profile of the AWS configuration files.
    #[serde(deserialize_with = "unless_empty")]
    pub profile: Option<String>,
    /// What every table's name begins with.
    pub table_prefix: String,
    /// Whether missing tables are created at start.
    pub create_tables: CreateTables,
    /// How long connecting may take.
    pub connect_timeout: Span,
    /// How long one attempt may take.
    pub attempt_timeout: Span,
    /// How long one call may take with all its attempts.
    pub operation_timeout: Span,
    /// Idle connections that are kept.
    pub idle_connections: usize,
}

impl std::fmt::Debug for DynamoDbSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DynamoDb")
            .field("region", &self.region)
            .field("endpoint", &self.endpoint.as_deref().map(without_user_info))
            .field("table_prefix", &self.table_prefix)
            .finish_non_exhaustive()
    }
}

/// Nothing stops people from writing a password into an address.
#[allow(clippy::ref_option, reason = "serde calls it with a reference to the field")]
fn address_alone<S: serde::Serializer>(endpoint: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    endpoint.as_deref().map(without_user_info).serialize(serializer)
}

impl Default for DynamoDbSection {
    fn default() -> Self {
        let client = crate::replica::dynamodb::DynamoSettings::default();
        Self {
            region: None,
            endpoint: None,
            profile: None,
            table_prefix: "projector-".into(),
            create_tables: CreateTables::No,
            connect_timeout: Span(client.connect_timeout),
            attempt_timeout: Span(client.attempt_timeout),
            operation_timeout: Span(client.operation_timeout),
            idle_connections: client.idle_connections,
        }
    }
}

/// What all projections of the process share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// How long a stop may take to finish what is held.
    pub drain: Span,
    /// How often lag is measured.
    pub measure_every: Span,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            // Below the 30 s after which ECS kills, with room for closing.
            drain: Span::secs(20),
            // Two or three small reads a projection; lag below this does not matter to anybody.
            measure_every: Span::secs(5),
        }
    }
}

words! {
    /// How a group hands events to several consumers.
    Strategy {
        /// Pinned where the server keeps such groups' checkpoints right, else dispatch-to-single.
        Auto = "auto",
        /// One consumer a stream.
        Pinned = "pinned",
        /// One consumer until it is full.
        DispatchToSingle = "dispatch-to-single",
        /// Each in turn.
        RoundRobin = "round-robin",
    }
}

impl From<Strategy> for feed::Strategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Auto => Self::Auto,
            Strategy::Pinned => Self::Pinned,
            Strategy::DispatchToSingle => Self::DispatchToSingle,
            Strategy::RoundRobin => Self::RoundRobin,
        }
    }
}

worded! { OnDeletion { Keep = "keep", Remove = "remove" } }

worded! { OnRevival { Continue = "continue", Restart = "restart" } }

worded! { OnLostHistory { Partial = "partial", Quarantine = "quarantine" } }

/// Settings that every projection has, once with values and once with "as in `[defaults]`".
macro_rules! tunables {
    ($($(#[$doc:meta])* $key:ident: $type:ty = $default:expr,)+) => {
        /// What a projection does unless its own table says otherwise.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Defaults { $($(#[$doc])* pub $key: $type,)+ }

        impl Default for Defaults {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        /// One projection's table. What it leaves out is as in `[defaults]`.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct ProjectionSection {
            /// Whether it runs; unless said, it does.
            pub enabled: Option<bool>,
            /// Its source instead of the one that its code names.
            #[serde(deserialize_with = "unless_empty")]
            pub source: Option<String>,
            /// The fold of a projection without code.
            pub fold: Option<FoldKind>,
            /// The schema of a projection without code; 1 unless said.
            pub schema: Option<u32>,
            /// Fields of the view that are attributes of their own, by attribute.
            pub promote: BTreeMap<String, Promote>,
            $($(#[$doc])* pub $key: Option<$type>,)+
        }

        impl ProjectionSection {
            /// Its settings, with the defaults for what it leaves out.
            pub fn tuned(&self, defaults: &Defaults) -> Defaults {
                Defaults { $($key: self.$key.unwrap_or(defaults.$key),)+ }
            }
        }
    };
}

words! {
    /// A fold that needs no code.
    FoldKind {
        /// JSON merge patch (RFC 7396) of each event's body into the state.
        MergePatch = "merge-patch",
    }
}

words! {
    /// The type that a promoted attribute is declared with.
    KeyType {
        /// Text.
        Text = "S",
        /// A number.
        Number = "N",
    }
}

/// A field of the view that is an attribute of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// Where it stands in the view: names with dots between them.
    pub path: String,
    /// The attribute's type.
    #[serde(rename = "type")]
    pub kind: KeyType,
}

tunables! {
    /// How the group hands events to several tasks.
    strategy: Strategy = Strategy::Auto,
    /// Deliveries that this process may hold; of less than `memory` bytes.
    buffer: usize = 2_000,
    /// How long the server waits for an acknowledgement.
    message_timeout: Span = Span::secs(60),
    /// How often the server delivers before it parks by itself: high, for parking is ours to decide.
    max_retries: i32 = 1_000_000,
    /// The group's checkpoint at the latest after this time.
    checkpoint_after: Span = Span::secs(2),
    /// The group's checkpoint at the latest after this many events.
    checkpoint_upper: i32 = 1_000,
    /// Events that the server reads at once; it takes no more than 100.
    read_batch: i32 = 100,
    /// Events that the server keeps ahead of consumers, in its own memory.
    history_buffer: i32 = 4_000,
    /// Newest events that the server keeps for joining the live stream, in its own memory.
    live_buffer: i32 = 4_000,
    /// Reads of streams in flight.
    reads: usize = 16,
    /// Puts in flight; fewer while the table throttles.
    writes: usize = 64,
    /// Bytes of deliveries, reads and writes under way; more waits at the stores. Beside `cache`.
    memory: Size = Size::mib(128),
    /// Replicas kept in memory.
    cache: Size = Size::mib(64),
    /// An event at least this old means that its stream is worth reading on.
    behind_after: Span = Span::secs(10),
    /// Events that one read may bring, and that are folded between two puts.
    read_events: usize = 10_000,
    /// Bytes that one read may bring.
    read_bytes: Size = Size::mib(8),
    /// At least this long between two puts of one replica; 0 for none.
    min_write_interval: Span = Span::millis(0),
    /// A version that moved without a change of state is stored after this time.
    keep_flush: Span = Span::secs(30),
    /// A state of more bytes is stored compressed.
    compress_above: Size = Size(item::ITEM_LIMIT as u64),
    /// Command ids that the replica of an aggregate keeps.
    commands: usize = COMMANDS_KEPT,
    /// What becomes of the replica of a deleted stream.
    on_deletion: OnDeletion = OnDeletion::Keep,
    /// How a replica goes on when its deleted stream comes to life again.
    on_revival: OnRevival = OnRevival::Continue,
    /// What to do when history is gone and no replica covers it.
    on_lost_history: OnLostHistory = OnLostHistory::Partial,
    /// Quarantines for one reason within a minute that stop the projection.
    quarantine_limit: usize = 20,
    /// Subscribe again when there is work and nothing comes for this long.
    watchdog_after: Span = Span::secs(120),
}

/// The HTTP server for metrics and health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where it listens.
    #[serde(deserialize_with = "address")]
    pub listen: std::net::SocketAddr,
    /// `/livez` fails when both stores answer, work waits and nothing has moved for this long.
    pub stuck_after: Span,
    /// How often the stores are probed.
    pub probe_every: Span,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 9464)),
            // Longer than the watchdog's own cure takes.
            stuck_after: Span::secs(300),
            probe_every: Span::secs(5),
        }
    }
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<std::net::SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "`{text}` is no address to listen on: write ADDRESS:PORT, such as `127.0.0.1:9464` or `0.0.0.0:9464`"
        ))
    })
}

words! {
    /// How logs are written.
    LogFormat {
        /// For people on a terminal, JSON elsewhere.
        Auto = "auto",
        /// One JSON object a line.
        Json = "json",
        /// For people.
        Human = "human",
    }
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How they are written.
    pub format: LogFormat,
    /// What is written, as tracing's filters say it: `info`, `projector=debug,warn`.
    pub filter: String,
    /// How often a projection's summary is written.
    pub summary_every: Span,
    /// Whether reasons, marks and logs repeat values of events, which more people may read than events.
    pub values: bool,
    /// How often its figures go to standard output as CloudWatch takes them (EMF); 0 for never.
    pub emf: Span,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            // The client logs every failed attempt by itself; what it means is in our own lines.
            filter: "info,eventstore=off".into(),
            summary_every: Span::secs(60),
            values: false,
            emf: Span::millis(0),
        }
    }
}
