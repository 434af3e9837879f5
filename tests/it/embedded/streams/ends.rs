//! How calls end: before their first message, when the server stops, and when a message is too large.

use std::net::SocketAddr;

use prost::Message as _;
use tonic::Code;

use super::{put, server};
use crate::support::{
    eventstore::{client_of, start},
    group::consume,
    raw::{
        At, BatchAppendReq, Empty, Expect, Raw, ReadReq, Reading as _, StreamIdentifier, WireUuid, expecting, groups,
        next, of_all, of_stream, proposed_as, said,
    },
};
use eventstore::{Error, PersistentSubscriptionOptions, StreamPosition};
use projector::embedded::eventstore::{Options, User, Users};

/// Failing as a whole, an answer has no headers before its trailers: the call itself fails, not its stream.
#[tokio::test]
async fn what_fails_before_its_first_message_fails_in_the_trailers_alone() {
    let (server, raw) = server().await;
    put(&raw, "gone", 1..3).await;
    let gone = expecting("gone", Expect::Any);
    raw.delete("Tombstone", gone).await.unwrap();
    for at in [At::Start, At::End, At::Number(1)] {
        let subscribed = raw.read(of_stream("gone", at).subscribed()).await;
        assert_eq!(said(&subscribed.unwrap_err(), "exception"), Some("stream-deleted"));
    }
    let read = of_stream("gone", At::Start);
    for options in [read.clone(), of_stream("gone", At::End).backwards(), read.compatible()] {
        let status = raw.read(options).await.unwrap_err();
        assert_eq!(said(&status, "exception"), Some("stream-deleted"));
        assert_eq!(said(&status, "stream-name"), Some("gone"));
    }
    let consumer = client_of(&server.connection_string());
    let options = eventstore::SubscribeToPersistentSubscriptionOptions::default();
    let none = consumer
        .subscribe_to_persistent_subscription("s", "none", &options)
        .await;
    assert!(matches!(none, Err(Error::ResourceNotFound)));

    let secure = start(Options {
        users: Users::Known(User::defaults()),
        ..Options::default()
    })
    .await;
    let nobody = Raw::connect(secure.address()).await;
    for options in [of_stream("s", At::Start), of_all(At::Start).subscribed()] {
        let status = nobody.read(options).await.unwrap_err();
        assert_eq!(said(&status, "exception"), Some("access-denied"));
    }
}

/// A subscription to `$all`, spoken in frames: what ends it.
async fn reset(address: SocketAddr, stopped: impl Future<Output = ()>) -> h2::Error {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/event_store.client.streams.Streams/Read"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    let options = Some(of_all(At::End).subscribed());
    let message = ReadReq { options }.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    body.send_data(framed.into(), true).unwrap();
    let mut answers = answer.await.unwrap().into_body();
    // Confirmed and caught up: it is there.
    answers.data().await.unwrap().unwrap();
    stopped.await;
    loop {
        match answers.data().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error,
            None => panic!("it ended in good order, with {:?}", answers.trailers().await),
        }
    }
}

#[tokio::test]
async fn a_stop_drops_groups_by_name_and_resets_subscriptions() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    let client = client_of(&server.connection_string());
    let options = PersistentSubscriptionOptions::default().start_from(StreamPosition::Start);
    client.create_persistent_subscription("s", "g", &options).await.unwrap();
    let consumer = consume(&client, "s", 10).await;
    let reading = groups::ReadReq {
        options: Some(groups::ReadOptions {
            stream: Some(StreamIdentifier::new("s")),
            group: "g".to_owned(),
            buffer_size: 10,
            ..groups::ReadOptions::default()
        }),
        ..groups::ReadReq::default()
    };
    let open = futures::StreamExt::chain(futures::stream::iter([reading]), futures::stream::pending());
    let mut other = raw.consume(open).await.unwrap();
    let address = server.address();
    let error = reset(address, server.shutdown()).await;
    assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR), "{error}");
    let status = loop {
        if let Err(status) = next(&mut other).await {
            break status;
        }
    };
    assert_eq!(
        (status.code(), status.message()),
        (Code::Cancelled, "Subscription group g on stream s was dropped.")
    );
    assert_eq!(said(&status, "exception"), Some("persistent-subscription-dropped"));
    assert_eq!(
        (said(&status, "stream-name"), said(&status, "group-name")),
        (Some("s"), Some("g"))
    );
    drop(consumer);
}

#[tokio::test]
async fn a_message_over_the_limit_is_a_resource_exhausted() {
    const LIMIT: usize = 16 * 1024 * 1024 - 10_000;
    let (_server, raw) = server().await;
    let large = |bytes: usize| proposed_as(1, "T", "application/octet-stream", vec![0; bytes]);
    let append = async |bytes| {
        let options = expecting("s", Expect::Any);
        raw.append(options, vec![large(bytes)]).await.unwrap_err()
    };
    let exhausted = |status: &tonic::Status| {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "Received message exceeds the maximum configured message size."
        );
    };
    exhausted(&append(LIMIT).await);
    // Below it an append has a limit of its own.
    let refused = append(LIMIT - 1_000).await;
    assert_eq!(said(&refused, "exception"), Some("maximum-append-size-exceeded"));
    let part = BatchAppendReq {
        correlation_id: Some(WireUuid::of(uuid::Uuid::from_u128(1), true)),
        options: Some(expecting("s", Expect::Any)),
        messages: vec![large(LIMIT)],
        is_final: true,
    };
    let (answers, end) = raw.batch(vec![part]).await;
    assert!(answers.is_empty());
    exhausted(&end.unwrap());
    // A call of one message, too; here the limit is gRPC's own.
    let long = expecting(&"s".repeat(LIMIT), Expect::Any);
    exhausted(&raw.delete("Delete", long).await.unwrap_err());
    let path = "event_store.client.gossip.Gossip/Read";
    let told: Result<Empty, _> = raw.ask(path, vec![large(5 << 20)]).await;
    exhausted(&told.unwrap_err());
}

/// What a group is handed is what was written, whether it is what its content type says or not: once.
#[tokio::test]
async fn a_malformed_event_is_delivered_once() {
    let (server, raw) = server().await;
    let client = client_of(&server.connection_string());
    let options = PersistentSubscriptionOptions::default().start_from(StreamPosition::Start);
    client.create_persistent_subscription("s", "g", &options).await.unwrap();
    put(&raw, "s", 1..4).await;
    let malformed = proposed_as(50, "malformed-event", "application/json", "****");
    raw.append(expecting("s", Expect::Any), vec![malformed]).await.unwrap();
    // The official client's own suite writes it by HTTP, and is sent on for want of an id.
    let http = reqwest::Client::new();
    let at = format!("http://{}/streams/s", server.address());
    let posted = async |type_header: Option<&str>, expected: &str| {
        let mut request = http.post(&at).header("content-type", "application/json");
        if let Some(of) = type_header {
            request = request.header("ES-EventType", of);
        }
        let sent = request.header("ES-ExpectedVersion", expected).body("****").send();
        sent.await.unwrap().status().as_u16()
    };
    assert_eq!(posted(Some("malformed-event"), "-2").await, 201);
    assert_eq!((posted(None, "-2").await, posted(Some("T"), "17").await), (400, 400));
    put(&raw, "s", 60..64).await;
    let mut consumer = consume(&client, "s", 10).await;
    let mut malformed = Vec::new();
    loop {
        let event = consumer.next().await.unwrap();
        let record = event.get_original_event();
        let (revision, kind) = (record.revision, record.event_type.clone());
        if kind == "malformed-event" {
            assert_eq!((&record.data[..], record.is_json), (&b"****"[..], true));
            malformed.push(revision);
        }
        consumer.ack(event).await.unwrap();
        if revision == 8 {
            break;
        }
    }
    assert_eq!(malformed, [3, 4]);
}
