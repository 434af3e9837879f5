//! A projector as one writes it by hand: get, fold, put on a condition, for every event. The real
//! server's figures are of one in TypeScript beside DynamoDB Local; this one is in Rust beside the
//! embedded DynamoDB, so its ratio says as much of languages and stores as of event stores.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Instant,
};

use aws_sdk_dynamodb::{
    Client as Dynamo,
    config::{BehaviorVersion, Credentials, Region},
    types::{AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType},
};
use eventstore::{
    PersistentSubscriptionOptions, ResolvedEvent, StreamPosition, SubscribeToPersistentSubscriptionOptions,
};
use serde_json::Value;

use super::{
    loans::Failure,
    server::{Server, Sockets},
    table::Table,
};

/// Events projected one at a time, and in parallel: some seconds each.
const ONE_BY_ONE: usize = 3_000;
const PARALLEL: usize = 10_000;
/// Streams worked on at once: what a buffer of 500 deliveries keeps busy.
const LANES: usize = 64;
/// Deliveries in flight.
const BUFFER: usize = 500;

pub(super) async fn measure(table: &mut Table, server: &Server) -> Result<(), Failure> {
    if !table.wants(&["by-hand"]) {
        return Ok(());
    }
    let memory = Server::start(None)?;
    for (id, name, lanes, events) in [
        ("by-hand/one", "one", 1, ONE_BY_ONE),
        ("by-hand/parallel", "parallel", LANES, PARALLEL),
    ] {
        if table.wants_row(id) {
            let dynamo = dynamo(&memory.stack.endpoint);
            make(&dynamo, name).await?;
            let seconds = project(server, &dynamo, name, lanes, events).await?;
            table.tell(id, events as f64 / seconds)?;
        }
    }
    Ok(())
}

fn dynamo(endpoint: &str) -> Dynamo {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("bench", "bench", None, None, "bench"))
        .endpoint_url(endpoint)
        .build();
    Dynamo::from_conf(config)
}

async fn make(dynamo: &Dynamo, name: &str) -> Result<(), Failure> {
    let key = AttributeDefinition::builder()
        .attribute_name("pk")
        .attribute_type(ScalarAttributeType::S)
        .build()?;
    let schema = KeySchemaElement::builder()
        .attribute_name("pk")
        .key_type(KeyType::Hash)
        .build()?;
    dynamo
        .create_table()
        .table_name(name)
        .attribute_definitions(key)
        .key_schema(schema)
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await?;
    Ok(())
}

/// Takes so many events and projects each; lanes keep a stream's events in order.
async fn project(
    server: &Server,
    dynamo: &Dynamo,
    name: &'static str,
    lanes: usize,
    events: usize,
) -> Result<f64, Failure> {
    let client = server.client(Sockets::NoDelay).await?;
    let settings = PersistentSubscriptionOptions::default()
        .start_from(StreamPosition::Start)
        .resolve_link_tos(true);
    client
        .create_persistent_subscription("$ce-loan", name, &settings)
        .await?;
    let options = SubscribeToPersistentSubscriptionOptions::default().buffer_size(BUFFER);
    let began = Instant::now();
    let mut subscription = client
        .subscribe_to_persistent_subscription("$ce-loan", name, &options)
        .await?;
    let (settled, mut done) = tokio::sync::mpsc::unbounded_channel();
    let mut inlets = Vec::with_capacity(lanes);
    for _ in 0..lanes {
        let (inlet, mut deliveries) = tokio::sync::mpsc::unbounded_channel::<ResolvedEvent>();
        let (dynamo, settled) = (dynamo.clone(), settled.clone());
        tokio::spawn(async move {
            while let Some(delivery) = deliveries.recv().await {
                let outcome = fold(&dynamo, name, &delivery).await.map(|()| delivery);
                if settled.send(outcome).is_err() {
                    return;
                }
            }
        });
        inlets.push(inlet);
    }
    let (mut taken, mut finished) = (0, 0);
    while finished < events {
        tokio::select! {
            delivery = subscription.next(), if taken < events => {
                let delivery = delivery?;
                let mut hasher = DefaultHasher::new();
                delivery.event.as_ref().map(|event| &event.stream_id).hash(&mut hasher);
                inlets[hasher.finish() as usize % lanes].send(delivery)?;
                taken += 1;
            }
            delivery = done.recv() => {
                subscription.ack(delivery.ok_or("all lanes ended")??).await?;
                finished += 1;
            }
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

async fn fold(dynamo: &Dynamo, table: &str, delivery: &ResolvedEvent) -> Result<(), Failure> {
    let event = delivery.event.as_ref().ok_or("a link to nothing")?;
    let key = || AttributeValue::S(event.stream_id.clone());
    let found = dynamo
        .get_item()
        .table_name(table)
        .key("pk", key())
        .consistent_read(true)
        .send()
        .await?;
    let known = found.item.unwrap_or_default();
    let events = known.get("events").and_then(|events| events.as_n().ok());
    let events = events.and_then(|events| events.parse::<u64>().ok()).unwrap_or_default();
    let data: Value = serde_json::from_slice(&event.data)?;
    let number = |number: u64| AttributeValue::N(number.to_string());
    dynamo
        .put_item()
        .table_name(table)
        .item("pk", key())
        .item("version", number(event.revision))
        .item("events", number(events + 1))
        .item("lastActivity", AttributeValue::S(event.event_type.clone()))
        .item(
            "lastAt",
            AttributeValue::S(data["at"].as_str().unwrap_or_default().to_owned()),
        )
        .condition_expression("attribute_not_exists(pk) OR version < :version")
        .expression_attribute_values(":version", number(event.revision))
        .send()
        .await?;
    Ok(())
}
