//! The task of one group: carries inputs to the machine and its effects to the log and the
//! consumers. Keeps: one write of a kind at a time and in order; a stopped group writes nothing more;
//! reading and following links happen beside the task, never on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::config::GroupConfig;
use super::delivery::{self, Shared};
use super::group::{Counted, Group, GroupEffect, Item, Nack, Page, Refused};
use super::info::{Figures, Millis};
use super::names;
use super::place::{Place, ReadFrom, StartFrom};
use super::settings::Defects;
use super::store::{Ask, NewRecord, ReadError, RecordError, Source, Store};
use super::strategy::ConsumerId;

/// How often time-outs and checkpoints are looked at; EventStoreDB's, and what its rules speak of.
const TICK: Duration = Duration::from_secs(1);
/// Inputs taken up before effects are carried out: enough that acks which came together are answered
/// by one batch of pushes.
const INPUTS: usize = 512;
/// Parked records read at once for a replay.
const PARKED_PAGE: usize = 500;
/// Records of `$all` looked at for one page at most: a filter that matches nothing must not keep the
/// log busy for long.
const WINDOW: usize = 2_000;

/// Records of `$all` counted at once for the figures of a group that is behind.
const COUNTED: usize = 1_000;

/// Why a consumer's subscription ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsumerEnd {
    /// The group was deleted, updated, restarted, or is faulted.
    Dropped,
}

/// What a consumer's stream carries.
#[derive(Debug)]
pub(super) enum Outbound {
    /// Records and how often each was sent before.
    Batch(Vec<(Shared, u32)>),
    /// The end.
    End(ConsumerEnd),
}

/// A consumer's side of its stream.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) to: mpsc::UnboundedSender<Outbound>,
    /// Records sent into the stream and not yet taken by the transport.
    pub(super) queued: Arc<AtomicUsize>,
    pub(super) limit: usize,
}

/// What a group can be asked.
#[derive(Debug)]
pub(super) enum GroupCommand {
    Connect {
        outlet: Outlet,
        name: String,
        username: String,
        reply: oneshot::Sender<Result<ConsumerId, Refused>>,
    },
    Disconnect(ConsumerId),
    Ack(Vec<Uuid>),
    Nack {
        ids: Vec<Uuid>,
        action: Nack,
        reason: String,
    },
    Info(oneshot::Sender<Figures>),
    Replay {
        stop_at: Option<u64>,
        reply: oneshot::Sender<()>,
    },
    /// Drops all consumers; answered when nothing is being written any more.
    Stop(oneshot::Sender<()>),
}

/// A group that runs.
#[derive(Debug)]
pub(super) struct GroupHandle {
    pub(super) config: GroupConfig,
    pub(super) commands: mpsc::UnboundedSender<GroupCommand>,
}

impl GroupHandle {
    /// Loads the group and starts it; returns when its first page is in, so that what is appended
    /// afterwards counts as new.
    pub(super) async fn open(config: GroupConfig, defects: Defects, store: Arc<dyn Store>) -> Result<Self, ReadError> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (ready, opened) = oneshot::channel();
        let actor = Actor::load(config.clone(), defects, store, ready).await?;
        tokio::spawn(actor.run(inbox));
        // A task that ended before its first page left nothing to wait for.
        let _ended = opened.await;
        Ok(Self { config, commands })
    }

    /// Stops the group; returns when it writes nothing more.
    pub(super) async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.commands.send(GroupCommand::Stop(reply)).is_ok() {
            let _ended = stopped.await;
        }
    }
}

type Replayed = Result<(Vec<Item<Shared>>, u64), ReplayError>;

#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] RecordError),
}

struct Actor {
    config: GroupConfig,
    store: Arc<dyn Store>,
    group: Group<Shared>,
    outlets: HashMap<ConsumerId, Outlet>,
    next_consumer: u64,
    began: Instant,
    checkpoints: String,
    parked: String,
    page: Option<JoinHandle<Result<Page<Shared>, ReadError>>>,
    checkpoint: Option<JoinHandle<Result<u64, RecordError>>>,
    park: Option<JoinHandle<Result<u64, RecordError>>>,
    parking: Vec<NewRecord>,
    to_park: Vec<NewRecord>,
    replay: Option<JoinHandle<Replayed>>,
    ready: Option<oneshot::Sender<()>>,
    /// Counts what a group that is behind has not read, for whoever asks for its figures.
    count: Option<JoinHandle<Result<Counted, ReadError>>>,
    asking: Vec<oneshot::Sender<Figures>>,
}

impl Actor {
    async fn load(
        config: GroupConfig,
        defects: Defects,
        store: Arc<dyn Store>,
        ready: oneshot::Sender<()>,
    ) -> Result<Self, ReadError> {
        let source = config.source.name();
        let checkpoints = names::checkpoint_stream(source, &config.group);
        let parked = names::parked_stream(source, &config.group);
        let newest = store.newest(checkpoints.clone()).await?;
        let checkpoint = newest.as_deref().and_then(names::checkpointed);
        let (first, next) = store.bounds(parked.clone()).await?;
        let edge = store.edge(config.source.clone()).await?;
        let mut group = Group::new(config.settings.clone(), defects, checkpoint, 0);
        group.begins_live(match (edge, config.settings.start) {
            // What is written before the start concerns nobody.
            (ReadFrom::At(next), StartFrom::At(start)) => ReadFrom::At(next.max(start)),
            _ => edge,
        });
        if checkpoint.is_some() && first < next {
            group.parked_loaded(first, next - 1);
        }
        Ok(Self {
            group,
            config,
            store,
            outlets: HashMap::new(),
            next_consumer: 0,
            began: Instant::now(),
            checkpoints,
            parked,
            page: None,
            checkpoint: None,
            park: None,
            parking: Vec::new(),
            to_park: Vec::new(),
            replay: None,
            ready: Some(ready),
            count: None,
            asking: Vec::new(),
        })
    }

    fn now(&self) -> Millis {
        self.began.elapsed().as_millis() as Millis
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<GroupCommand>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes: watch::Receiver<u64> = self.store.changes();
        let mut commands = Vec::with_capacity(INPUTS);
        loop {
            self.carry_out();
            tokio::select! {
                count = inbox.recv_many(&mut commands, INPUTS) => {
                    if count == 0 {
                        return self.stop().await;
                    }
                    for command in commands.drain(..) {
                        if let GroupCommand::Stop(reply) = command {
                            self.stop().await;
                            // Whoever asked may have gone away; the group is stopped all the same.
                            let _unheard = reply.send(());
                            return;
                        }
                        self.take(command);
                    }
                }
                Some(page) = OptionFuture::from(self.page.as_mut()) => {
                    self.page = None;
                    self.page_came(page.unwrap_or_else(|lost| Err(ReadError::Busy { reason: lost.to_string() })));
                }
                Some(written) = OptionFuture::from(self.checkpoint.as_mut()) => {
                    self.checkpoint = None;
                    if let Ok(Err(error)) = written {
                        tracing::warn!(%error, group = %self.config.group, "failed to store a checkpoint");
                    }
                    self.group.checkpoint_written();
                }
                Some(written) = OptionFuture::from(self.park.as_mut()) => {
                    self.park = None;
                    self.park_came(written.ok().and_then(Result::ok));
                }
                Some(counted) = OptionFuture::from(self.count.as_mut()) => {
                    self.count = None;
                    if let Ok(Ok(counted)) = counted {
                        self.group.counted(&counted);
                    }
                    self.tell_figures();
                }
                Some(replayed) = OptionFuture::from(self.replay.as_mut()) => {
                    self.replay = None;
                    self.replay_came(replayed.ok().and_then(|outcome| {
                        outcome.inspect_err(|error| tracing::warn!(%error, group = %self.config.group, "failed to replay")).ok()
                    }));
                }
                _ = ticks.tick() => {
                    let now = self.now();
                    self.group.tick(now);
                    self.write_parked();
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return self.stop().await;
                    }
                    self.group.news();
                }
            }
        }
    }

    fn take(&mut self, command: GroupCommand) {
        let now = self.now();
        match command {
            GroupCommand::Connect {
                outlet,
                name,
                username,
                reply,
            } => {
                self.next_consumer += 1;
                let consumer = ConsumerId(self.next_consumer);
                let limit = outlet.limit;
                self.outlets.insert(consumer, outlet);
                let outcome = self.group.connect(consumer, limit, name, username, now);
                if outcome.is_err() {
                    self.outlets.remove(&consumer);
                }
                if reply.send(outcome.map(|()| consumer)).is_err() {
                    self.take(GroupCommand::Disconnect(consumer));
                }
            }
            GroupCommand::Disconnect(consumer) => {
                if self.outlets.remove(&consumer).is_some() {
                    self.group.disconnect(consumer, now);
                }
            }
            GroupCommand::Ack(ids) => self.group.ack(&ids, now),
            GroupCommand::Nack { ids, action, reason } => self.group.nack(&ids, action, &reason, now),
            GroupCommand::Info(reply) => {
                self.asking.push(reply);
                match self.group.ahead() {
                    Some(from) if self.count.is_none() => self.count(from),
                    Some(_) => {}
                    None => self.tell_figures(),
                }
            }
            GroupCommand::Replay { stop_at, reply } => {
                self.group.replay(stop_at);
                let _unheard = reply.send(());
            }
            GroupCommand::Stop(_) => {}
        }
    }

    fn count(&mut self, from: ReadFrom) {
        let ask = self.ask(from, COUNTED, true);
        let store = Arc::clone(&self.store);
        self.count = Some(tokio::spawn(async move { store.count(ask).await }));
    }

    fn tell_figures(&mut self) {
        for reply in self.asking.drain(..) {
            // A caller that went away needs no figures.
            let _unheard = reply.send(self.group.figures());
        }
    }

    fn page_came(&mut self, page: Result<Page<Shared>, ReadError>) {
        match page {
            Ok(page) => {
                let now = self.now();
                self.group.page(page, now);
            }
            Err(error) => {
                tracing::warn!(%error, group = %self.config.group, "failed to read on");
                self.group.page_failed(matches!(error, ReadError::Gone { .. }));
            }
        }
        if let Some(ready) = self.ready.take() {
            // The opener may have given up; the group runs all the same.
            let _unheard = ready.send(());
        }
    }

    fn park_came(&mut self, revision: Option<u64>) {
        if let Some(revision) = revision {
            self.parking.clear();
            self.group.parked_written(revision);
            self.write_parked();
        } else {
            // Nothing parked is given up: it is tried again at the next tick.
            let later = std::mem::take(&mut self.to_park);
            self.to_park = std::mem::take(&mut self.parking);
            self.to_park.extend(later);
        }
    }

    fn replay_came(&mut self, replayed: Option<(Vec<Item<Shared>>, u64)>) {
        let now = self.now();
        match replayed {
            Some((items, first)) => self.group.replayed(items, first, now),
            None => self.group.replay_failed(),
        }
    }

    /// Carries effects out until there are none.
    fn carry_out(&mut self) {
        let mut pushes: Vec<(ConsumerId, Vec<(Shared, u32)>)> = Vec::new();
        loop {
            let effects = self.group.effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                match effect {
                    GroupEffect::Push {
                        consumer,
                        payload,
                        retry_count,
                    } => {
                        let push = (payload, retry_count);
                        match pushes.iter_mut().find(|(other, _)| *other == consumer) {
                            Some((_, batch)) => batch.push(push),
                            None => pushes.push((consumer, vec![push])),
                        }
                    }
                    GroupEffect::Read { from, count, live } => self.read(from, count, live),
                    GroupEffect::ReadParked { stop_at } => self.read_parked(stop_at),
                    GroupEffect::Park { payload, reason } => {
                        let added = chrono::Utc::now().to_rfc3339();
                        let record = names::parked(&payload, &reason, &added);
                        self.to_park.push(record);
                        self.write_parked();
                    }
                    GroupEffect::Checkpoint(place) => self.write_checkpoint(place),
                    GroupEffect::Drop(consumer) => self.drop_consumer(consumer),
                }
            }
        }
        for (consumer, mut batch) in pushes {
            if let Some(outlet) = self.outlets.get(&consumer) {
                // A consumer that does not read gets no second copy into its queue: it times out
                // again until there is room.
                let room = outlet.limit.saturating_sub(outlet.queued.load(Ordering::Acquire));
                batch.truncate(room);
                outlet.queued.fetch_add(batch.len(), Ordering::AcqRel);
                // A consumer that is gone says so itself.
                let _gone = outlet.to.send(Outbound::Batch(batch));
            }
        }
    }

    fn drop_consumer(&mut self, consumer: ConsumerId) {
        if let Some(outlet) = self.outlets.remove(&consumer) {
            let _gone = outlet.to.send(Outbound::End(ConsumerEnd::Dropped));
            let now = self.now();
            self.group.disconnect(consumer, now);
        }
    }

    fn ask(&self, from: ReadFrom, count: usize, live: bool) -> Ask {
        Ask {
            source: self.config.source.clone(),
            from,
            count,
            window: WINDOW,
            resolve_links: self.config.settings.resolve_links,
            live,
        }
    }

    fn read(&mut self, from: ReadFrom, count: usize, live: bool) {
        let ask = self.ask(from, count, live);
        let strategy = self.config.settings.strategy;
        let store = Arc::clone(&self.store);
        self.page = Some(tokio::spawn(async move {
            let source = ask.source.clone();
            let scan = store.read(ask).await?;
            Ok(delivery::page(&source, strategy, scan))
        }));
    }

    fn read_parked(&mut self, stop_at: Option<u64>) {
        let store = Arc::clone(&self.store);
        let stream = self.parked.clone();
        let strategy = self.config.settings.strategy;
        self.replay = Some(tokio::spawn(async move {
            let (first, next) = store.bounds(stream.clone()).await?;
            let stop = stop_at.unwrap_or(next).min(next);
            let mut items = Vec::new();
            let mut from = first;
            while from < stop {
                let ask = Ask {
                    source: Source::Stream(stream.as_str().into()),
                    from: ReadFrom::At(Place::Stream(from)),
                    count: PARKED_PAGE.min((stop - from) as usize),
                    window: PARKED_PAGE,
                    resolve_links: true,
                    live: false,
                };
                let scan = store.read(ask).await?;
                from = match (scan.next, scan.end) {
                    (ReadFrom::At(Place::Stream(next)), false) => next,
                    _ => stop,
                };
                items.extend(delivery::parked(&stream, strategy, scan));
            }
            if stop > first {
                let hide = vec![names::replayed_before(stop)];
                store.append(names::metadata_of(&stream), hide).await?;
            }
            Ok((items, stop.max(first)))
        }));
    }

    fn write_parked(&mut self) {
        if self.park.is_some() || self.to_park.is_empty() {
            return;
        }
        self.parking = std::mem::take(&mut self.to_park);
        let (store, stream, records) = (Arc::clone(&self.store), self.parked.clone(), self.parking.clone());
        self.park = Some(tokio::spawn(async move { store.append(stream, records).await }));
    }

    /// Bounded by no metadata: in EventStoreDB, too, all checkpoints stay readable.
    fn write_checkpoint(&mut self, place: Place) {
        let (store, stream) = (Arc::clone(&self.store), self.checkpoints.clone());
        self.checkpoint = Some(tokio::spawn(async move {
            store.append(stream, vec![names::checkpoint(place)]).await
        }));
    }

    /// Drops all consumers and lets what is being written become durable.
    async fn stop(&mut self) {
        for (_, outlet) in self.outlets.drain() {
            let _gone = outlet.to.send(Outbound::End(ConsumerEnd::Dropped));
        }
        for effect in self.group.effects() {
            if let GroupEffect::Park { payload, reason } = effect {
                let added = chrono::Utc::now().to_rfc3339();
                self.to_park.push(names::parked(&payload, &reason, &added));
            }
        }
        if let Some(page) = self.page.take() {
            page.abort();
        }
        if let Some(count) = self.count.take() {
            count.abort();
        }
        for written in [self.checkpoint.take(), self.park.take()].into_iter().flatten() {
            if let Ok(Err(error)) = written.await {
                tracing::warn!(%error, group = %self.config.group, "failed to write before the group stopped");
            }
        }
        if let Some(replay) = self.replay.take() {
            // Replayed or not, its outcome is in the parked stream.
            let _ended = replay.await;
        }
        if !self.to_park.is_empty() {
            let records = std::mem::take(&mut self.to_park);
            if let Err(error) = self.store.append(self.parked.clone(), records).await {
                tracing::warn!(%error, group = %self.config.group, "failed to park before the group stopped");
            }
        }
    }
}
