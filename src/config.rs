//! Settings: read from files, variables and flags, checked as a whole before anything is connected.
//!
//! Invariant: I8 secrets (a secret shows in no `Debug`, no error and no printed settings). Every error
//! names the key, its value and what is allowed; unknown keys and variables are errors too.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    journal::{esdb::EsdbSettings, feed::GroupSpec},
    projection::{Fold, MergePatch, Registry, Source},
    replica::{
        dynamodb::{Creation, DynamoSettings, table_name},
        item::{KeyKind, Promoted},
    },
};

mod check;
mod layers;
mod sections;
mod units;

#[cfg(test)]
mod tests;

pub use layers::{CONFIG_DIR, CONFIG_TOML, DEFAULT_DIR, ENV, Inputs};
pub use sections::{
    Connection, CreateTables, Defaults, DynamoDbSection, Engine, EventStoreSection, FoldKind, Http, KeyType, Log,
    LogFormat, ProjectionSection, Promote, Separator, Settings, Strategy,
};
pub use units::{Secret, Size, Span};

pub use crate::projection::{OnDeletion, OnLostHistory, OnRevival};

/// Why there are no settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The folder that was asked for is not there.
    #[error("read the settings: there is no folder {0}; name the folder that holds default.toml")]
    NoDir(PathBuf),
    /// The environment's file is not there.
    #[error(
        "read the settings: PROJECTOR_ENV is `{name}` and there is no file {file}; write it, or unset PROJECTOR_ENV"
    )]
    NoEnvironment {
        /// The environment.
        name: String,
        /// Its file.
        file: PathBuf,
    },
    /// A file cannot be read.
    #[error("read the settings from {file}: {problem}")]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        problem: String,
    },
    /// A file is not TOML.
    #[error("read the settings from {origin}: {problem}")]
    NotToml {
        /// The file, or the variable.
        origin: String,
        /// Where and why.
        problem: String,
    },
    /// A variable that names no setting.
    #[error("use variable {name}: it names no setting; {allowed}")]
    UnknownVariable {
        /// Which.
        name: String,
        /// What is allowed there.
        allowed: String,
    },
    /// A `--set` that names no setting.
    #[error("use `--set {name}`: it names no setting; {allowed}")]
    UnknownFlag {
        /// The key.
        name: String,
        /// What is allowed there.
        allowed: String,
    },
    /// A value of the wrong kind, or a key that is not known.
    #[error("use setting {0}")]
    BadValue(String),
    /// Settings that are each allowed and do not go together.
    #[error("use setting `{key}` = {value}: {allowed}")]
    Refused {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is allowed, and why.
        allowed: String,
    },
}

impl Settings {
    /// The settings that files, variables and flags make, each checked by itself. Whether they go
    /// together, [`Settings::plan`] says.
    pub fn load(inputs: &Inputs) -> Result<Self, ConfigError> {
        layers::load(inputs)
    }

    /// What the event store's adapter takes.
    pub fn esdb(&self) -> EsdbSettings {
        let s = &self.eventstore;
        EsdbSettings {
            connection_string: s.connection.0.clone(),
            user: s.user.clone(),
            password: s.password.as_ref().map(|p| p.0.clone()),
            tls_ca: s.tls_ca.clone(),
            user_certificate: s.user_certificate.clone(),
            user_key: s.user_key.as_ref().map(|k| k.0.clone()),
            operation_timeout: s.operation_timeout.0,
            idle_renew: s.idle_renew.0,
            connection_name: s.connection_name.clone(),
        }
    }

    /// What the replica store's adapter takes.
    pub fn dynamo(&self) -> DynamoSettings {
        let s = &self.dynamodb;
        DynamoSettings {
            region: s.region.clone(),
            endpoint: s.endpoint.clone(),
            profile: s.profile.clone(),
            connect_timeout: s.connect_timeout.0,
            attempt_timeout: s.attempt_timeout.0,
            operation_timeout: s.operation_timeout.0,
            idle_connections: s.idle_connections,
            ..DynamoSettings::default()
        }
    }

    /// How missing tables are created, when they are.
    pub fn creation(&self) -> Option<Creation> {
        match self.dynamodb.create_tables {
            CreateTables::No => None,
            CreateTables::Protected => Some(Creation::PRODUCTION),
            CreateTables::Plain => Some(Creation::LOCAL),
        }
    }

    /// The projections to run: those of the registry and those that the settings make, each with
    /// its settings checked together.
    pub fn plan(&self, registry: &Registry) -> Result<Vec<Planned>, ConfigError> {
        check::process(self)?;
        let mut folds: Vec<Arc<dyn Fold>> = registry.iter().cloned().collect();
        for (name, table) in &self.projection {
            let (compiled, fold) = (registry.get(name).is_some(), table.fold);
            match (compiled, fold) {
                (true, Some(_)) => {
                    return Err(refused(
                        &format!("projection.{name}.fold"),
                        fold.map_or("", FoldKind::word),
                        "the projection of this name is code; leave `fold` out, or choose another name",
                    ));
                }
                (true, None) if table.schema.is_some() => {
                    return Err(refused(
                        &format!("projection.{name}.schema"),
                        &table.schema.unwrap_or_default().to_string(),
                        "the projection is code and says its schema itself; leave it out",
                    ));
                }
                (true, None) => {}
                (false, None) => {
                    let known: Vec<_> = registry.iter().map(|f| f.name().to_owned()).collect();
                    return Err(refused(
                        &format!("projection.{name}"),
                        "…",
                        &format!(
                            "no projection of this name is built in (there are: {}); give it `fold = \"merge-patch\"` and a `source`",
                            if known.is_empty() {
                                "none".to_owned()
                            } else {
                                known.join(", ")
                            }
                        ),
                    ));
                }
                (false, Some(FoldKind::MergePatch)) => folds.push(merge_patch(name, table, registry)?),
            }
        }
        let unset = ProjectionSection::default();
        let mut planned = Vec::new();
        for fold in folds {
            let table = self.projection.get(fold.name()).unwrap_or(&unset);
            if table.enabled != Some(false) {
                planned.push(self.planned(fold, table)?);
            }
        }
        planned.sort_by(|a, b| a.fold.name().cmp(b.fold.name()));
        Ok(planned)
    }

    fn planned(&self, fold: Arc<dyn Fold>, table: &ProjectionSection) -> Result<Planned, ConfigError> {
        let name = fold.name().to_owned();
        let key = |key: &str| format!("projection.{name}.{key}");
        let source = match &table.source {
            Some(source) => parse_source(&key("source"), source)?,
            None => fold.source(),
        };
        let tuned = table.tuned(&self.defaults);
        let promoted = table.promote.iter().map(|(attribute, promote)| {
            let kind = match promote.kind {
                KeyType::Text => KeyKind::S,
                KeyType::Number => KeyKind::N,
            };
            Promoted::new(attribute, &promote.path, kind).map_err(|error| {
                refused(
                    &key(&format!("promote.{attribute}")),
                    &format!("`{}`", promote.path),
                    &error.problem,
                )
            })
        });
        let promoted = promoted.collect::<Result<Vec<_>, _>>()?;
        let table = table_name(&self.dynamodb.table_prefix, &name, fold.schema()).map_err(|error| {
            refused(
                "dynamodb.table_prefix",
                &format!("`{}`", self.dynamodb.table_prefix),
                &format!("failed to {error}"),
            )
        })?;
        let planned = Planned {
            group: group(&name, fold.schema(), &source, &tuned),
            fold,
            source,
            table,
            tuned,
            promoted,
        };
        check::projection(self, &planned)?;
        Ok(planned)
    }

    /// What may be right and hardly is, a sentence each: said at the daemon's start, and beside what
    /// `--check-config` prints.
    pub fn doubts(&self, planned: &[Planned]) -> Vec<String> {
        planned.iter().filter_map(check::doubt).collect()
    }

    /// What `--check-config` prints: the settings with secrets left out, and what they come to.
    pub fn explained(&self, planned: &[Planned]) -> String {
        check::explained(self, planned)
    }
}

/// One projection with all that it needs to run, checked.
#[derive(Clone)]
pub struct Planned {
    /// Its fold.
    pub fold: Arc<dyn Fold>,
    /// Where its events come from.
    pub source: Source,
    /// Its table.
    pub table: String,
    /// Its group.
    pub group: GroupSpec,
    /// Its settings.
    pub tuned: Defaults,
    /// Fields of the view that are attributes of their own.
    pub promoted: Vec<Promoted>,
}

impl std::fmt::Debug for Planned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planned")
            .field("projection", &self.fold.name())
            .field("table", &self.table)
            .field("group", &self.group)
            .field("tuned", &self.tuned)
            .finish_non_exhaustive()
    }
}

impl Planned {
    /// How long a store may be unavailable before the subscription is given up: redelivery would begin
    /// to burn retries at the message time-out.
    pub fn outage_after(&self) -> Duration {
        self.tuned.message_timeout.0 / 2
    }
}

/// The group of one (projection, schema); its name says whose it is (I9 schemas).
fn group(name: &str, schema: u32, source: &Source, tuned: &Defaults) -> GroupSpec {
    GroupSpec {
        name: format!("projector-{name}-s{schema}").into(),
        source: source.clone(),
        strategy: tuned.strategy.into(),
        message_timeout: tuned.message_timeout.0,
        max_retries: tuned.max_retries,
        checkpoint_after: tuned.checkpoint_after.0,
        checkpoint_upper: tuned.checkpoint_upper,
        read_batch: tuned.read_batch,
        history_buffer: tuned.history_buffer,
        live_buffer: tuned.live_buffer,
    }
}

fn merge_patch(name: &str, table: &ProjectionSection, registry: &Registry) -> Result<Arc<dyn Fold>, ConfigError> {
    let key = format!("projection.{name}.source");
    let source = table.source.as_deref().ok_or_else(|| {
        refused(
            &key,
            "nothing",
            "a projection without code needs a source, such as `category:loan`",
        )
    })?;
    let source = parse_source(&key, source)?;
    let fold: Arc<dyn Fold> = Arc::new(MergePatch::new(
        name,
        table.schema.unwrap_or(1),
        source,
        registry.fingerprint().clone(),
    ));
    // The registry's rules for names hold for these too.
    let mut one = Registry::new(registry.fingerprint().clone());
    one.add(fold.clone())
        .map_err(|error| refused(&format!("projection.{name}"), name, &error.to_string()))?;
    Ok(fold)
}

fn parse_source(key: &str, text: &str) -> Result<Source, ConfigError> {
    text.parse::<Source>()
        .map_err(|error| refused(key, &format!("`{text}`"), &format!("failed to {error}")))
}

fn refused(key: &str, value: &str, allowed: &str) -> ConfigError {
    ConfigError::Refused {
        key: key.to_owned(),
        value: value.to_owned(),
        allowed: allowed.to_owned(),
    }
}
