//! All groups of a server: made, changed, deleted, listed, found again after a restart. Keeps: what
//! the configuration stream says is what runs; a group exists when its creator is told so.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{RwLock, mpsc, oneshot};

use super::actor::{GroupCommand, GroupHandle, Outlet};
use super::config::{self, ConfigError, GroupConfig};
use super::errors::GroupError;
use super::group::Refused;
use super::info::Figures;
use super::names;
use super::place::{Place, StartFrom};
use super::settings::{Defects, Settings};
use super::store::{ReadError, RecordError, Source, Store};
use super::strategy::ConsumerId;

/// What EventStoreDB says of a start on `$all` behind the last record.
const BEYOND: &str = "Invalid Start From position: commit position must be less than or equal to \
                      the last commit position in the transaction file.";

/// Why the groups could not be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The settings could not be understood.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A consumer's hold on a group.
pub(super) struct Connected {
    pub(super) consumer: ConsumerId,
    pub(super) commands: mpsc::UnboundedSender<GroupCommand>,
}

/// The groups.
pub(crate) struct Groups {
    store: Arc<dyn Store>,
    defects: Mutex<Defects>,
    running: RwLock<Running>,
}

#[derive(Default)]
struct Running {
    ready: bool,
    /// In the order in which they were made, which is how they are kept and listed.
    groups: Vec<GroupHandle>,
    /// Streams that have, or had, a group: listing those is no error.
    seen: BTreeSet<String>,
}

impl Running {
    fn get(&self, stream: &str, group: &str) -> Result<&GroupHandle, GroupError> {
        self.find(stream, group).map(|at| &self.groups[at])
    }

    /// Where a group stands among all.
    fn find(&self, stream: &str, group: &str) -> Result<usize, GroupError> {
        if !self.ready {
            return Err(GroupError::NotReady);
        }
        self.groups
            .iter()
            .position(|handle| handle.config.group == group && handle.config.source.name() == stream)
            .ok_or_else(|| missing(stream, group))
    }

    fn configs(&self) -> impl Iterator<Item = &GroupConfig> {
        self.groups.iter().map(|handle| &handle.config)
    }
}

fn missing(stream: &str, group: &str) -> GroupError {
    GroupError::Missing {
        stream: stream.to_owned(),
        group: group.to_owned(),
    }
}

fn failed(stream: &str, group: &str, reason: &dyn std::fmt::Display) -> GroupError {
    GroupError::Failed {
        stream: stream.to_owned(),
        group: group.to_owned(),
        reason: reason.to_string(),
    }
}

impl Groups {
    /// Groups of this log; they answer [`GroupError::NotReady`] until [`Groups::load`].
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            defects: Mutex::new(Defects::default()),
            running: RwLock::default(),
        }
    }

    /// Defects of the real server that groups made or loaded from now on reproduce.
    pub(crate) fn reproduce(&self, defects: Defects) {
        *self.defects.lock().unwrap_or_else(PoisonError::into_inner) = defects;
    }

    fn defects(&self) -> Defects {
        *self.defects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what the configuration stream says, each from its checkpoint.
    pub(crate) async fn load(&self) -> Result<(), LoadError> {
        let mut running = self.running.write().await;
        self.start(&mut running).await
    }

    async fn start(&self, running: &mut Running) -> Result<(), LoadError> {
        let newest = self.store.newest(names::CONFIG_STREAM.to_owned()).await?;
        let configs = match newest {
            Some(record) => config::parse(&record.data)?,
            None => Vec::new(),
        };
        for config in configs {
            running.seen.insert(config.source.name().to_owned());
            let handle = GroupHandle::open(config, self.defects(), Arc::clone(&self.store)).await?;
            running.groups.push(handle);
        }
        running.ready = true;
        Ok(())
    }

    /// Stops all groups: consumers are dropped, what is being written becomes durable.
    pub(crate) async fn stop(&self) {
        let mut running = self.running.write().await;
        Self::stop_all(&mut running).await;
    }

    async fn stop_all(running: &mut Running) {
        running.ready = false;
        for handle in std::mem::take(&mut running.groups) {
            handle.stop().await;
        }
    }

    /// Stops all groups and starts them from their checkpoints.
    pub(crate) async fn restart(&self) -> Result<(), LoadError> {
        let mut running = self.running.write().await;
        Self::stop_all(&mut running).await;
        self.start(&mut running).await
    }

    /// Makes a group.
    pub(crate) async fn create(&self, config: GroupConfig) -> Result<(), GroupError> {
        let mut running = self.running.write().await;
        let (stream, group) = (config.source.name().to_owned(), config.group.clone());
        match running.get(&stream, &group) {
            Ok(_) => return Err(GroupError::Exists { stream, group }),
            Err(GroupError::Missing { .. }) => {}
            Err(other) => return Err(other),
        }
        self.check(&config).await?;
        // It runs before its settings are written: from the end of `$all`, those are news to it.
        let made = self.open(config).await?;
        if let Err(error) = self.store_config(running.configs().chain([&made.config])).await {
            made.stop().await;
            return Err(failed(&stream, &group, &error));
        }
        running.seen.insert(stream);
        running.groups.push(made);
        Ok(())
    }

    /// Gives a group other settings: its consumers are dropped, and it resumes at its checkpoint.
    pub(crate) async fn update(&self, source: Source, group: &str, settings: Settings) -> Result<(), GroupError> {
        let mut running = self.running.write().await;
        let stream = source.name().to_owned();
        // What a group on `$all` filters cannot be changed.
        let at = running.find(&stream, group)?;
        let kept = running.groups[at].config.source.clone();
        let config = GroupConfig {
            source: kept,
            group: group.to_owned(),
            settings,
        };
        self.check(&config).await?;
        let before = running.groups[at].config.clone();
        running.groups.remove(at).stop().await;
        // As when it is made, it runs before its settings are written.
        let changed = match self.open(config).await {
            Ok(changed) => changed,
            Err(error) => {
                // What the configuration says goes on.
                let before = self.open(before).await?;
                running.groups.insert(at, before);
                return Err(error);
            }
        };
        running.groups.insert(at, changed);
        if let Err(error) = self.store_config(running.configs()).await {
            running.groups.remove(at).stop().await;
            let before = self.open(before).await?;
            running.groups.insert(at, before);
            return Err(failed(&stream, group, &error));
        }
        Ok(())
    }

    async fn open(&self, config: GroupConfig) -> Result<GroupHandle, GroupError> {
        let (stream, group) = (config.source.name().to_owned(), config.group.clone());
        GroupHandle::open(config, self.defects(), Arc::clone(&self.store))
            .await
            .map_err(|error| failed(&stream, &group, &error))
    }

    /// Deletes a group, its checkpoint and what it parked.
    pub(crate) async fn delete(&self, stream: &str, group: &str) -> Result<(), GroupError> {
        let mut running = self.running.write().await;
        let at = running.find(stream, group)?;
        let others = running.configs().enumerate();
        let others = others.filter_map(|(n, other)| (n != at).then_some(other));
        let wrong = |error: RecordError| failed(stream, group, &error);
        self.store_config(others).await.map_err(wrong)?;
        running.groups.remove(at).stop().await;
        for theirs in [
            names::checkpoint_stream(stream, group),
            names::parked_stream(stream, group),
        ] {
            let bounds = self.store.bounds(theirs.clone()).await;
            let (_, next) = bounds.map_err(|error| failed(stream, group, &error))?;
            if next > 0 {
                let deleted = vec![names::soft_delete()];
                self.store
                    .append(names::metadata_of(&theirs), deleted)
                    .await
                    .map_err(wrong)?;
            }
        }
        Ok(())
    }

    async fn store_config<'a>(&self, groups: impl Iterator<Item = &'a GroupConfig>) -> Result<(), RecordError> {
        let record = config::record(groups, &chrono::Utc::now().to_rfc3339());
        let stream = names::CONFIG_STREAM;
        let newest = self.store.newest(stream.to_owned()).await;
        // What cannot be read is written to all the same, and says by itself what is wrong.
        if matches!(newest, Ok(None)) {
            let keep = vec![names::keep_newest()];
            self.store.append(names::metadata_of(stream), keep).await?;
        }
        self.store.append(stream.to_owned(), vec![record]).await?;
        Ok(())
    }

    async fn check(&self, config: &GroupConfig) -> Result<(), GroupError> {
        let (stream, group) = (config.source.name(), config.group.as_str());
        config.settings.check().map_err(|error| failed(stream, group, &error))?;
        let StartFrom::At(start @ Place::All { .. }) = config.settings.start else {
            return Ok(());
        };
        let head = self.store.head().await.map_err(|error| failed(stream, group, &error))?;
        if Some(start) > head {
            return Err(failed(stream, group, &BEYOND));
        }
        Ok(())
    }

    /// Connects a consumer.
    pub(super) async fn connect(
        &self,
        stream: &str,
        group: &str,
        outlet: Outlet,
        name: String,
        username: String,
    ) -> Result<Connected, GroupError> {
        let (reply, answer) = oneshot::channel();
        let commands = self.running.read().await.get(stream, group)?.commands.clone();
        let connect = GroupCommand::Connect {
            outlet,
            name,
            username,
            reply,
        };
        let sent = commands.send(connect);
        match sent.ok().map(|()| answer) {
            Some(answer) => match answer.await {
                Ok(Ok(consumer)) => Ok(Connected { consumer, commands }),
                Ok(Err(Refused::TooMany)) => Err(GroupError::TooMany {
                    stream: stream.to_owned(),
                    group: group.to_owned(),
                }),
                Err(_) => Err(missing(stream, group)),
            },
            None => Err(missing(stream, group)),
        }
    }

    /// A group's settings and figures.
    pub(crate) async fn info(&self, stream: &str, group: &str) -> Result<(GroupConfig, Figures), GroupError> {
        let (config, commands) = {
            let running = self.running.read().await;
            let handle = running.get(stream, group)?;
            (handle.config.clone(), handle.commands.clone())
        };
        let figures = figures(&commands).await.ok_or_else(|| missing(stream, group))?;
        Ok((config, figures))
    }

    /// All groups by their streams' names, or those of one stream; one stream's as they were made.
    pub(crate) async fn list(&self, stream: Option<&str>) -> Result<Vec<(GroupConfig, Figures)>, GroupError> {
        let mut chosen: Vec<(GroupConfig, _)> = {
            let running = self.running.read().await;
            if !running.ready {
                return Err(GroupError::NotReady);
            }
            if let Some(stream) = stream.filter(|stream| !running.seen.contains(*stream)) {
                return Err(missing(stream, ""));
            }
            running
                .groups
                .iter()
                .filter(|handle| stream.is_none_or(|stream| handle.config.source.name() == stream))
                .map(|handle| (handle.config.clone(), handle.commands.clone()))
                .collect()
        };
        chosen.sort_by(|(one, _), (other, _)| one.source.name().cmp(other.source.name()));
        let mut listed = Vec::with_capacity(chosen.len());
        for (config, commands) in chosen {
            if let Some(figures) = figures(&commands).await {
                listed.push((config, figures));
            }
        }
        Ok(listed)
    }

    /// Starts a replay of what a group parked, below `stop_at`; one that runs already goes on alone.
    pub(crate) async fn replay(&self, stream: &str, group: &str, stop_at: Option<i64>) -> Result<(), GroupError> {
        let commands = self.running.read().await.get(stream, group)?.commands.clone();
        let stop_at = stop_at.map(u64::try_from).transpose().map_err(|_| {
            failed(
                stream,
                group,
                &"Cannot stop replaying parked message at a negative version.",
            )
        })?;
        let (reply, answer) = oneshot::channel();
        let asked = commands.send(GroupCommand::Replay { stop_at, reply });
        if asked.is_err() || answer.await.is_err() {
            return Err(missing(stream, group));
        }
        Ok(())
    }
}

async fn figures(commands: &mpsc::UnboundedSender<GroupCommand>) -> Option<Figures> {
    let (reply, answer) = oneshot::channel();
    commands.send(GroupCommand::Info(reply)).ok()?;
    answer.await.ok()
}
