//! Groups: backlogs drained, and events delivered live.

use std::time::{Duration, Instant};

use eventstore::{
    AppendToStreamOptions, Client, DeletePersistentSubscriptionOptions, EventData, PersistentSubscription,
    PersistentSubscriptionOptions, PersistentSubscriptionToAllOptions, ReadStreamOptions, ResolvedEvent,
    StreamPosition, SubscribeToPersistentSubscriptionOptions, SubscriptionFilter, SystemConsumerStrategy,
};
use uuid::Uuid;

use super::{
    calls::event,
    loans::Failure,
    percentile,
    server::{Server, Sockets},
    table::Table,
};

/// What a group reads ahead, with room beyond the largest buffer measured.
const AHEAD: i32 = 2_000;
/// What it reads at once: the most that EventStoreDB takes.
const PAGE: i32 = 100;
/// Live events that are timed: enough for a 99th percentile.
const LIVE: usize = 500;
/// Not timed: connections, caches and statements come to life.
const WARM: usize = 20;
/// The prefix of the loans' streams.
const LOANS: &str = "loan-";

pub(super) async fn measure(table: &mut Table, server: &Server) -> Result<(), Failure> {
    let round = || SystemConsumerStrategy::RoundRobin;
    for (id, buffer, strategy) in [
        ("drain/10", 10, round()),
        ("drain/100", 100, round()),
        ("drain/500", 500, round()),
        ("drain/1000", 1_000, round()),
        ("strategy/pinned", 500, SystemConsumerStrategy::Pinned),
        ("strategy/round-robin", 500, round()),
        ("strategy/single", 500, SystemConsumerStrategy::DispatchToSingle),
    ] {
        if table.wants_row(id) {
            table.tell(id, category(server, id, buffer, strategy).await?)?;
        }
    }
    for (id, buffer) in [("filtered/500", 500), ("filtered/1000", 1_000)] {
        if table.wants_row(id) {
            table.tell(id, filtered(server, id, buffer).await?)?;
        }
    }
    if table.wants(&["live/category"]) {
        let mut times = live(server, false).await?;
        table.tell("live/category/p50", percentile(&mut times, 50))?;
        table.tell("live/category/p99", percentile(&mut times, 99))?;
    }
    if table.wants(&["live/filtered"]) {
        let mut times = live(server, true).await?;
        table.tell("live/filtered/p50", percentile(&mut times, 50))?;
        table.tell("live/filtered/p99", percentile(&mut times, 99))?;
    }
    Ok(())
}

/// How many events the category has.
async fn count(client: &Client) -> Result<u64, Failure> {
    let newest = ReadStreamOptions::default()
        .position(StreamPosition::End)
        .backwards()
        .max_count(1);
    let mut read = client.read_stream("$ce-loan", &newest).await?;
    let newest = read.next().await?.ok_or("the category is empty")?;
    Ok(newest.get_original_event().revision + 1)
}

fn subscribing(buffer: usize) -> SubscribeToPersistentSubscriptionOptions {
    SubscribeToPersistentSubscriptionOptions::default().buffer_size(buffer)
}

async fn category(
    server: &Server,
    group: &str,
    buffer: usize,
    strategy: SystemConsumerStrategy,
) -> Result<f64, Failure> {
    let client = server.client(Sockets::NoDelay).await?;
    let settings = PersistentSubscriptionOptions::default()
        .start_from(StreamPosition::Start)
        .resolve_link_tos(true)
        .history_buffer_size(AHEAD)
        .live_buffer_size(AHEAD)
        .read_batch_size(PAGE)
        .consumer_strategy_name(strategy);
    client
        .create_persistent_subscription("$ce-loan", group, &settings)
        .await?;
    let count = count(&client).await?;
    let began = Instant::now();
    let subscription = client
        .subscribe_to_persistent_subscription("$ce-loan", group, &subscribing(buffer))
        .await?;
    // One consumer that acks everything: each event once, in the category's order.
    drain(subscription, count, |event, n| {
        event.event.is_some() && event.link.as_ref().is_some_and(|link| link.revision == n)
    })
    .await?;
    let rate = count as f64 / began.elapsed().as_secs_f64();
    client
        .delete_persistent_subscription("$ce-loan", group, &DeletePersistentSubscriptionOptions::default())
        .await?;
    Ok(rate)
}

async fn filtered(server: &Server, group: &str, buffer: usize) -> Result<f64, Failure> {
    let client = server.client(Sockets::NoDelay).await?;
    let settings = PersistentSubscriptionToAllOptions::default()
        .start_from(StreamPosition::Start)
        .filter(SubscriptionFilter::on_stream_name().add_prefix(LOANS))
        .history_buffer_size(AHEAD)
        .live_buffer_size(AHEAD)
        .read_batch_size(PAGE);
    client.create_persistent_subscription_to_all(group, &settings).await?;
    let count = count(&client).await?;
    let began = Instant::now();
    let subscription = client
        .subscribe_to_persistent_subscription_to_all(group, &subscribing(buffer))
        .await?;
    let mut last = 0;
    drain(subscription, count, |event, _| {
        let Some(event) = &event.event else { return false };
        event.stream_id.starts_with(LOANS)
            && std::mem::replace(&mut last, event.position.commit) < event.position.commit
    })
    .await?;
    let rate = count as f64 / began.elapsed().as_secs_f64();
    client
        .delete_persistent_subscription_to_all(group, &DeletePersistentSubscriptionOptions::default())
        .await?;
    Ok(rate)
}

/// Receives and acknowledges so many, one by one: the client's plainest way, and its dearest. A rate of
/// anything but the right events is none.
async fn drain(
    mut subscription: PersistentSubscription,
    count: u64,
    mut right: impl FnMut(&ResolvedEvent, u64) -> bool,
) -> Result<(), Failure> {
    for n in 0..count {
        let event = subscription.next().await?;
        if !right(&event, n) {
            return Err(format!("delivery {n} is not the one that is due: {event:?}").into());
        }
        subscription.ack(event).await?;
    }
    Ok(())
}

/// Appends one after another, each timed from its call until its event comes through the group.
async fn live(server: &Server, on_all: bool) -> Result<Vec<Duration>, Failure> {
    let (reading, writing) = (
        server.client(Sockets::NoDelay).await?,
        server.client(Sockets::NoDelay).await?,
    );
    let category = if on_all { "liveall" } else { "live" };
    let mut subscription = if on_all {
        let settings = PersistentSubscriptionToAllOptions::default()
            .start_from(StreamPosition::End)
            .filter(SubscriptionFilter::on_stream_name().add_prefix(format!("{category}-")));
        reading.create_persistent_subscription_to_all("live", &settings).await?;
        reading
            .subscribe_to_persistent_subscription_to_all("live", &subscribing(10))
            .await?
    } else {
        let feed = format!("$ce-{category}");
        let settings = PersistentSubscriptionOptions::default()
            .start_from(StreamPosition::End)
            .resolve_link_tos(true);
        reading
            .create_persistent_subscription(&*feed, "live", &settings)
            .await?;
        reading
            .subscribe_to_persistent_subscription(&*feed, "live", &subscribing(10))
            .await?
    };
    let (received, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let receiver = tokio::spawn(async move {
        // Ends when the subscription does, or nobody waits any more.
        while let Ok(event) = subscription.next().await {
            let id = event.event.as_ref().map(|event| event.id);
            if received.send((id, Instant::now())).is_err() || subscription.ack(event).await.is_err() {
                return;
            }
        }
    });
    let mut times = Vec::with_capacity(LIVE);
    for index in 0..WARM + LIVE {
        let id = Uuid::new_v4();
        let data: EventData = event()?.id(id);
        let stream = format!("{category}-{}", index % 50);
        let began = Instant::now();
        writing
            .append_to_stream(&*stream, &AppendToStreamOptions::default(), data)
            .await?;
        let at = loop {
            let (arrived, at) = arrivals.recv().await.ok_or("the subscription ended")?;
            if arrived == Some(id) {
                break at;
            }
        };
        if index >= WARM {
            times.push(at.duration_since(began));
        }
    }
    receiver.abort();
    Ok(times)
}
