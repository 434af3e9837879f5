//! One connection to a group, in a task of its own.
//!
//! The client panics when the server ends a subscription in good order, and cannot be read and
//! written at once. The task reads, acknowledges, and catches that panic: to whoever takes the
//! deliveries it is a disconnect like every other. A dropped [`GroupSubscription`] ends the task
//! after the acknowledgements given to it have left.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use eventstore::{
    GetPersistentSubscriptionInfoOptions, NakAction, PersistentSubscription, PersistentSubscriptionEvent,
    SubscribeToPersistentSubscriptionOptions,
};
use futures::FutureExt;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::{
    super::{
        JournalError,
        feed::{Delivery, GroupSpec, Nack, Said, Subscription},
    },
    EventStore,
    connection::{ConnectFailure, EsdbConnection, Factory, panic_text},
    convert::delivery,
    errors::{Doing, explain},
};
use crate::projection::Source;

/// Acknowledgements sent in one message: 18 bytes each, so some 36 KB.
const IDS_AT_ONCE: usize = 2_000;

/// Bytes of deliveries between the task and whoever takes them: a turn of small events. What is
/// beyond waits in the connection's own window, and then at the server.
const QUEUED_BYTES: usize = 4 << 20;

/// Commands waiting for the task; a full queue makes the sender wait, nothing is lost.
const COMMANDS: usize = 256;

/// Calls made on the same connection after the last acknowledgements: what was written before
/// them has left when they are answered. One would do but for the order in which the client's
/// own tasks run.
const FLUSH_CALLS: usize = 2;

/// A server that is gone must not keep a dropped subscription alive.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// A connection to a group. Ended by dropping it.
#[derive(Debug)]
pub struct GroupSubscription {
    deliveries: mpsc::Receiver<Result<Delivery, JournalError>>,
    queued: Arc<Queued>,
    commands: mpsc::Sender<Command>,
    ended: Option<JournalError>,
    task: tokio::task::JoinHandle<()>,
}

/// Bytes of deliveries that were read and not taken.
#[derive(Debug, Default)]
struct Queued {
    bytes: AtomicUsize,
    taken: Notify,
}

impl Queued {
    /// Waits until there is room for more.
    async fn room(&self) {
        loop {
            let taken = self.taken.notified();
            if self.bytes.load(Ordering::Acquire) < QUEUED_BYTES {
                return;
            }
            taken.await;
        }
    }

    fn take(&self, delivery: &Delivery) {
        self.bytes.fetch_sub(bytes(delivery), Ordering::AcqRel);
        // Kept for the next wait when nobody waits now.
        self.taken.notify_one();
    }
}

fn bytes(delivery: &Delivery) -> usize {
    match &delivery.said {
        Said::Event(event) => event.data.len() + event.metadata.len(),
        _ => 0,
    }
}

#[derive(Debug)]
enum Command {
    Ack(Vec<Uuid>),
    Nack(Vec<Uuid>, Nack, String),
}

impl Subscription for GroupSubscription {
    async fn next(&mut self) -> Result<Delivery, JournalError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let next = self
            .deliveries
            .recv()
            .await
            .unwrap_or_else(|| Err(JournalError::Unavailable("the subscription has ended".into())));
        match &next {
            Ok(delivery) => self.queued.take(delivery),
            Err(error) => self.ended = Some(error.clone()),
        }
        next
    }

    async fn ack(&mut self, ids: Vec<Uuid>) -> Result<(), JournalError> {
        self.command(Command::Ack(ids)).await
    }

    async fn nack(&mut self, ids: Vec<Uuid>, nack: Nack, reason: String) -> Result<(), JournalError> {
        self.command(Command::Nack(ids, nack, reason)).await
    }

    async fn close(self) {
        let Self {
            deliveries,
            commands,
            task,
            ..
        } = self;
        drop((deliveries, commands));
        // The task keeps time itself while it flushes; before that it may wait for a server that
        // takes nothing.
        drop(tokio::time::timeout(FLUSH_WITHIN * 2, task).await);
    }
}

impl GroupSubscription {
    async fn command(&self, command: Command) -> Result<(), JournalError> {
        // The task says why it ended through the deliveries; this is only the consequence.
        self.commands.send(command).await.map_err(|_| {
            self.ended
                .clone()
                .unwrap_or_else(|| JournalError::Unavailable("acknowledge: the subscription has ended".into()))
        })
    }
}

impl EventStore {
    pub(super) async fn subscribe_to(
        &self,
        group: &GroupSpec,
        buffer: usize,
    ) -> Result<GroupSubscription, JournalError> {
        let feed = group.source.feed();
        let (stream, name) = (&*feed, &*group.name);
        let doing = Doing::Consume {
            feed: stream,
            group: name,
        };
        let all = matches!(group.source, Source::All(_));
        // The server rejects none at all by never delivering, and counts in 32 bits.
        let buffer = buffer.clamp(1, i32::MAX as usize);
        let options = SubscribeToPersistentSubscriptionOptions::default()
            .buffer_size(buffer)
            .requires_leader(true);
        let options = &options;
        // A server that is still loading its groups answers nothing at all, so the time is ours.
        let (subscription, connection) = self
            .factory
            .call_on(Some(self.factory.operation_timeout), |client| async move {
                if all {
                    client.subscribe_to_persistent_subscription_to_all(name, options).await
                } else {
                    client.subscribe_to_persistent_subscription(stream, name, options).await
                }
            })
            .await
            .map_err(|failure| self.explain(failure, doing))?;
        let (to_us, deliveries) = mpsc::channel(buffer);
        let (commands, from_us) = mpsc::channel(COMMANDS);
        let queued = Arc::new(Queued::default());
        let task = Task {
            queued: Arc::clone(&queued),
            subscription,
            connection,
            factory: Arc::clone(&self.factory),
            group: group.name.clone(),
            feed,
            all,
        };
        let task = tokio::spawn(task.run(to_us, from_us));
        Ok(GroupSubscription {
            deliveries,
            queued,
            commands,
            ended: None,
            task,
        })
    }
}

struct Task {
    queued: Arc<Queued>,
    subscription: PersistentSubscription,
    connection: Arc<EsdbConnection>,
    factory: Arc<Factory>,
    group: Arc<str>,
    feed: Arc<str>,
    all: bool,
}

/// How the task's work ended, short of a panic.
enum SubscriptionEnd {
    /// Nobody takes deliveries any more.
    Dropped,
    Error(eventstore::Error),
}

impl Task {
    async fn run(mut self, to_us: mpsc::Sender<Result<Delivery, JournalError>>, mut from_us: mpsc::Receiver<Command>) {
        let began = Instant::now();
        let work = AssertUnwindSafe(self.work(&to_us, &mut from_us)).catch_unwind();
        let failure = match work.await {
            Ok(SubscriptionEnd::Dropped) => {
                let flushed = AssertUnwindSafe(self.flush(&mut from_us)).catch_unwind();
                // Whatever was lost in it is delivered again; there is nobody left to tell.
                drop(tokio::time::timeout(FLUSH_WITHIN, flushed).await);
                return;
            }
            Ok(SubscriptionEnd::Error(error)) => {
                self.factory.judge(&self.connection, &error, began);
                ConnectFailure::Client(error)
            }
            Err(panic) => ConnectFailure::Panic(format!("the server ended the subscription: {}", panic_text(&*panic))),
        };
        let doing = Doing::Consume {
            feed: &self.feed,
            group: &self.group,
        };
        let error = match failure {
            // Both mean that the group goes on without us, or is gone; subscribing again tells.
            ConnectFailure::Client(eventstore::Error::IllegalStateError(_)) => JournalError::Unavailable(format!(
                "{}: the server dropped its consumers (it is stopping, or the group was changed or deleted)",
                doing.action()
            )),
            ConnectFailure::Client(error) => explain(&error, doing, self.factory.user()),
            other => other.explain(doing, self.factory.user()),
        };
        // When nobody listens any more there is nobody to tell.
        drop(to_us.send(Err(error)).await);
    }

    async fn work(
        &mut self,
        to_us: &mpsc::Sender<Result<Delivery, JournalError>>,
        from_us: &mut mpsc::Receiver<Command>,
    ) -> SubscriptionEnd {
        loop {
            let subscription = &mut self.subscription;
            tokio::select! {
                // Acknowledgements first: they make room for what else is to come.
                biased;
                command = from_us.recv() => {
                    let Some(command) = command else { return SubscriptionEnd::Dropped };
                    if let Err(error) = send(subscription, command, from_us).await {
                        return SubscriptionEnd::Error(error);
                    }
                }
                // No await stands between the event and its place in the channel, so that losing
                // the race above loses nothing.
                outcome = async {
                    let Ok(place) = to_us.reserve().await else { return Ok(Some(SubscriptionEnd::Dropped)) };
                    tokio::select! {
                        () = self.queued.room() => {}
                        () = to_us.closed() => return Ok(Some(SubscriptionEnd::Dropped)),
                    }
                    match subscription.next_subscription_event().await? {
                        PersistentSubscriptionEvent::Confirmed(_) => {}
                        PersistentSubscriptionEvent::EventAppeared { retry_count, event } => {
                            let delivery = delivery(event, retry_count as u32, &self.feed);
                            self.queued.bytes.fetch_add(bytes(&delivery), Ordering::AcqRel);
                            place.send(Ok(delivery));
                        }
                    }
                    Ok(None)
                } => match outcome {
                    Ok(None) => self.connection.answer(),
                    Ok(Some(end)) => return end,
                    Err(error) => return SubscriptionEnd::Error(error),
                }
            }
        }
    }

    /// Sends what is queued and waits until it has left.
    async fn flush(&mut self, from_us: &mut mpsc::Receiver<Command>) {
        while let Some(command) = from_us.recv().await {
            if send(&mut self.subscription, command, from_us).await.is_err() {
                return;
            }
        }
        let client = self.connection.client.clone();
        let (feed, group, all) = (Arc::clone(&self.feed), Arc::clone(&self.group), self.all);
        let calls = async move {
            let options = GetPersistentSubscriptionInfoOptions::default().deadline(FLUSH_WITHIN);
            for _ in 0..FLUSH_CALLS {
                // Any answer will do, a denial as well.
                if all {
                    drop(client.get_persistent_subscription_info_to_all(&*group, &options).await);
                } else {
                    drop(client.get_persistent_subscription_info(&*feed, &*group, &options).await);
                }
            }
        };
        let mut calls = std::pin::pin!(calls);
        loop {
            tokio::select! {
                () = &mut calls => return,
                // Deliveries that still come are let go: they are delivered again elsewhere.
                event = self.subscription.next_subscription_event() => if event.is_err() { return },
            }
        }
    }
}

/// Sends one command, and with it the acknowledgements that wait behind it.
async fn send(
    subscription: &mut PersistentSubscription,
    first: Command,
    waiting: &mut mpsc::Receiver<Command>,
) -> Result<(), eventstore::Error> {
    let mut gathered = Vec::new();
    let mut next = Some(first);
    while let Some(command) = next.take() {
        match command {
            Command::Ack(ids) => {
                gathered.extend(ids);
                if gathered.len() < IDS_AT_ONCE {
                    next = waiting.try_recv().ok();
                }
            }
            Command::Nack(ids, nack, reason) => {
                acknowledge(subscription, std::mem::take(&mut gathered)).await?;
                let action = match nack {
                    Nack::Park => NakAction::Park,
                    Nack::Retry => NakAction::Retry,
                };
                subscription.nack_ids(ids, action, reason).await?;
            }
        }
    }
    acknowledge(subscription, gathered).await
}

async fn acknowledge(subscription: &mut PersistentSubscription, ids: Vec<Uuid>) -> Result<(), eventstore::Error> {
    for some in ids.chunks(IDS_AT_ONCE) {
        subscription.ack_ids(some.iter().copied()).await?;
    }
    Ok(())
}
