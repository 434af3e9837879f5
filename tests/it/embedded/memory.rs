//! What a server holds for its clients, seen from outside: in a process of its own, by its peak.
#![cfg(target_os = "linux")]

use std::net::SocketAddr;

use eventstore::{PersistentSubscriptionOptions, StreamPosition};
use uuid::Uuid;

use crate::support::{
    eventstore::client_of,
    node::until,
    process::{Daemon, World},
    raw::{
        BatchAppendReq, BatchAppendResp, Expect, ProposedMessage, Raw, StreamIdentifier, WireUuid, expecting, groups,
        next, proposed_as, text,
    },
};

/// Bytes of one event: close to what one append may hold.
const LARGE: usize = 900_000;

async fn stack() -> (Daemon, SocketAddr, String) {
    let mut stack = World::default().spawn(&["stack", "--eventstore-port", "0", "--dynamodb-port", "0"]);
    let printed = stack.printed("PROJECTOR__DYNAMODB__ENDPOINT=").await;
    let named = |line: &str| {
        line.strip_prefix("PROJECTOR__EVENTSTORE__CONNECTION=")
            .map(str::to_owned)
    };
    let connection = printed.lines().find_map(named).unwrap();
    let host = connection.trim_start_matches("esdb://").split('?').next().unwrap();
    (stack, host.parse().unwrap(), connection)
}

/// The most that it ever held, in bytes.
fn peak(stack: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", stack.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1_024
}

fn large(id: u128) -> ProposedMessage {
    proposed_as(id, "T", "application/octet-stream", vec![7; LARGE])
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_appends_of_a_batch_have_a_bound_in_bytes_and_in_time() {
    const UNFINISHED: u128 = 300;
    let (stack, address, _) = stack().await;
    let raw = Raw::connect(address).await;
    let before = peak(&stack);
    let parts = (1..=UNFINISHED).map(|n| BatchAppendReq {
        correlation_id: Some(WireUuid::of(Uuid::from_u128(n), true)),
        options: Some(expecting("s", Expect::Any)),
        messages: vec![large(n)],
        is_final: false,
    });
    let open = futures::StreamExt::chain(futures::stream::iter(parts), futures::stream::pending());
    let path = "event_store.client.streams.Streams/BatchAppend";
    let mut answers: tonic::Streaming<BatchAppendResp> = raw.open(path, open).await.unwrap();
    // Each ends as it does on a real node: its time is over.
    for _ in 0..UNFINISHED {
        let answer = next(&mut answers).await.unwrap();
        let error = answer.error.unwrap();
        assert_eq!((error.code, error.message.as_str()), (4, "Timeout"));
        assert_eq!(text(answer.stream.as_ref()), "s");
    }
    let held = peak(&stack) - before;
    assert!(held < 150_000_000, "{held} bytes for {UNFINISHED} unfinished appends");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_their_consumers_share_what_they_hold() {
    const GROUPS: usize = 200;
    let (stack, address, connection) = stack().await;
    let raw = Raw::connect(address).await;
    raw.append(expecting("s", Expect::Any), vec![large(1)]).await.unwrap();
    let client = client_of(&connection);
    let before = peak(&stack);
    let options = PersistentSubscriptionOptions::default().start_from(StreamPosition::Start);
    for n in 0..GROUPS {
        let group = format!("g-{n}");
        client
            .create_persistent_subscription("s", &group, &options)
            .await
            .unwrap();
    }
    until("every group holds the event", async || {
        let all = client
            .list_persistent_subscriptions_for_stream("s", &eventstore::ListPersistentSubscriptionsOptions::default())
            .await;
        all.is_ok_and(|all| all.len() == GROUPS && all.iter().all(|one| one.stats.read_buffer_count == 1))
    })
    .await;
    let held = peak(&stack) - before;
    assert!(held < 90_000_000, "{held} bytes for {GROUPS} groups with one event");
    // Every other one reads what it is sent; the rest stand, with the event on its way to them, on a
    // connection that takes no more of it.
    let standing = Raw::connect(address).await;
    let mut consumers = Vec::new();
    for n in 0..GROUPS {
        let options = groups::ReadOptions {
            stream: Some(StreamIdentifier::new("s")),
            group: format!("g-{n}"),
            buffer_size: 10,
            ..groups::ReadOptions::default()
        };
        let reading = groups::ReadReq {
            options: Some(options),
            ack: None,
            nack: None,
        };
        let open = futures::StreamExt::chain(futures::stream::iter([reading]), futures::stream::pending());
        let reads = n % 2 == 0;
        let connection = if reads { &raw } else { &standing };
        let mut consumer = connection.consume(open).await.unwrap();
        if reads {
            assert!(next(&mut consumer).await.unwrap().confirmation.is_some());
            let event = next(&mut consumer).await.unwrap().event.unwrap();
            assert_eq!(event.event.unwrap().data.len(), LARGE);
        }
        consumers.push(consumer);
    }
    let held = peak(&stack) - before;
    assert!(held < 90_000_000, "{held} bytes for {GROUPS} consumers of one event");
}
