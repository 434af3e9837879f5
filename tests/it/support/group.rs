//! What every test does with a group named "g", through the client that production uses.

use eventstore::{
    Client, GetPersistentSubscriptionInfoOptions, PersistentSubscription, PersistentSubscriptionEvent,
    PersistentSubscriptionInfo, PersistentSubscriptionStats, Position, ResolvedEvent,
    SubscribeToPersistentSubscriptionOptions,
};

use super::eventstore::PATIENCE;

/// A consumer that holds so many events at once.
pub(crate) async fn consume(client: &Client, stream: &str, buffer: usize) -> PersistentSubscription {
    let options = SubscribeToPersistentSubscriptionOptions::default().buffer_size(buffer);
    client
        .subscribe_to_persistent_subscription(stream, "g", &options)
        .await
        .unwrap()
}

/// The next event, and how often it came before.
pub(crate) async fn next(consumer: &mut PersistentSubscription) -> (ResolvedEvent, usize) {
    loop {
        let event = tokio::time::timeout(PATIENCE, consumer.next_subscription_event()).await;
        let event = event.expect("an event in time").unwrap();
        if let PersistentSubscriptionEvent::EventAppeared { retry_count, event } = event {
            return (event, retry_count);
        }
    }
}

/// The next so many events' revisions, each acked.
pub(crate) async fn acked(consumer: &mut PersistentSubscription, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let (event, _) = next(consumer).await;
        seen.push(revision(&event));
        consumer.ack(event).await.unwrap();
    }
    seen
}

/// Of the event itself, or of its link.
pub(crate) fn revision(event: &ResolvedEvent) -> u64 {
    event.get_original_event().revision
}

/// All that the server says of the group on `stream`.
pub(crate) async fn group_info(client: &Client, stream: &str) -> PersistentSubscriptionInfo<u64> {
    let options = GetPersistentSubscriptionInfoOptions::default();
    let info = client.get_persistent_subscription_info(stream, "g", &options).await;
    info.unwrap()
}

/// Its figures.
pub(crate) async fn stats(client: &Client, stream: &str) -> PersistentSubscriptionStats {
    group_info(client, stream).await.stats
}

/// All that the server says of the group on `$all`.
pub(crate) async fn group_info_of_all(client: &Client) -> PersistentSubscriptionInfo<Position> {
    let options = GetPersistentSubscriptionInfoOptions::default();
    let info = client.get_persistent_subscription_info_to_all("g", &options).await;
    info.unwrap()
}

/// Its figures.
pub(crate) async fn stats_of_all(client: &Client) -> PersistentSubscriptionStats {
    group_info_of_all(client).await.stats
}
