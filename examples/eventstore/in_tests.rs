//! An EventStoreDB inside a test: started in milliseconds, gone with the test.

use eventstore::{AppendToStreamOptions, Client, EventData, ExpectedRevision, PersistentSubscriptionOptions};
use eventstore::{StreamPosition, SubscribeToPersistentSubscriptionOptions};
use projector_eventstore::{EventStoreDb, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = EventStoreDb::start(Options::default()).await?;
    let client = Client::new(server.connection_string().parse()?)?;

    let new = AppendToStreamOptions::default().expected_revision(ExpectedRevision::NoStream);
    let placed = EventData::json("OrderPlaced", &serde_json::json!({ "total": 7 }))?.id(uuid::Uuid::new_v4());
    // What a real server shows only when something breaks, this one shows when it is asked to: the
    // append is written and its reply is lost. Sent again, it is not written again.
    server.faults().lose_append_replies(1);
    assert!(client.append_to_stream("order-1", &new, placed.clone()).await.is_err());
    client.append_to_stream("order-1", &new, placed).await?;

    let options = PersistentSubscriptionOptions::default()
        .start_from(StreamPosition::Start)
        .resolve_link_tos(true);
    client
        .create_persistent_subscription("$ce-order", "test", &options)
        .await?;
    let options = SubscribeToPersistentSubscriptionOptions::default();
    let mut orders = client
        .subscribe_to_persistent_subscription("$ce-order", "test", &options)
        .await?;
    let order = orders.next().await?;
    assert_eq!(order.event.as_ref().map(|event| event.revision), Some(0));
    orders.ack(order).await?;

    server.shutdown().await;
    Ok(())
}
