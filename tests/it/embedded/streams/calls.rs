//! What holds for every call: deadlines, unknown methods, what the node says of itself, its pages.

use std::time::Duration;

use eventstore::{AppendToStreamOptions, Error};
use futures::stream;
use tonic::{Code, Streaming};

use super::{put, server};
use crate::support::{
    eventstore::{PATIENCE, append, client_of, event},
    raw::{
        At, Empty, Expect, Raw, ReadResp, Reading as _, Shown as _, StreamIdentifier, expecting, groups, many_proposed,
        next, node, of_stream, within,
    },
};

const SOON: Duration = Duration::from_millis(300);

async fn deadline(answers: &mut Streaming<ReadResp>) -> tonic::Status {
    loop {
        if let Err(status) = next(answers).await {
            return status;
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_a_call_that_waits_and_one_that_streams() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    let hasty = raw.with("grpc-timeout", &within(SOON));
    // Answered in time, it does nothing.
    let options = expecting("s", Expect::Any);
    assert!(hasty.append(options, many_proposed(2..3)).await.is_ok());
    assert!(hasty.read_all(of_stream("s", At::Start)).await.1.is_none());
    let began = tokio::time::Instant::now();
    let subscription = of_stream("s", At::Start).subscribed();
    let mut answers = hasty.read(subscription).await.unwrap();
    assert_eq!(deadline(&mut answers).await.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() >= SOON);
    // The production client waits for the server to say it.
    let client = client_of(&server.connection_string());
    append(&client, "other", 1).await;
    server.faults().delay_calls(PATIENCE);
    let hasty = AppendToStreamOptions::default().deadline(SOON);
    let late = client.append_to_stream("s", &hasty, event(3)).await;
    assert!(matches!(late, Err(Error::DeadlineExceeded)), "{late:?}");
    server.faults().delay_calls(Duration::ZERO);
    assert_eq!(
        put(&raw, "s", 4..5).await,
        2,
        "what was refused in time was not written"
    );
}

#[tokio::test]
async fn what_is_not_served_says_its_name() {
    let (_server, raw) = server().await;
    for path in [
        "event_store.client.streams.Streams/Mend",
        "event_store.client.persistent_subscriptions.PersistentSubscriptions/Mend",
        "event_store.client.users.Users/Create",
        "event_store.client.operations.Operations/Shutdown",
        "nothing",
    ] {
        let answer: Result<Empty, _> = raw.ask(path, vec![Empty {}]).await;
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(path), "{status:?}");
    }
}

#[tokio::test]
async fn it_says_what_it_can_in_the_words_that_clients_look_for() {
    let (_server, raw) = server().await;
    let said: node::SupportedMethods = raw
        .ask(
            "event_store.client.server_features.ServerFeatures/GetSupportedMethods",
            vec![Empty {}],
        )
        .await
        .unwrap();
    let numbers: Vec<u32> = said.version.split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!(numbers[..2], [24, 10]);
    let has = |service: &str, method: &str, feature: Option<&str>| {
        said.methods.iter().any(|one| {
            let named = one.service == service && one.method == method;
            named && feature.is_none_or(|feature| one.features.iter().any(|other| other == feature))
        })
    };
    let groups = "event_store.client.persistent_subscriptions.persistentsubscriptions";
    for method in ["create", "update", "delete", "read", "getinfo", "list", "replayparked"] {
        assert!(has(groups, method, Some("all")), "{method}");
        assert!(has(groups, method, Some("stream")), "{method}");
    }
    assert!(has(groups, "restartsubsystem", None));
    let streams = "event_store.client.streams.streams";
    assert!(has(streams, "batchappend", Some("deadline_duration")));
    assert!(has(streams, "read", Some("position")) && has(streams, "read", Some("events")));
}

#[tokio::test]
async fn its_pages_say_whether_it_lives() {
    let (server, _) = server().await;
    let get = async |path: &str| {
        let answer = reqwest::get(format!("http://{}{path}", server.address()))
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get("/health/live").await, (204, String::new()));
    let (code, info) = get("/info").await;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        (code, info["esVersion"].as_str().map(|text| &text[..6])),
        (200, Some("24.10."))
    );
    assert_eq!(get("/ping").await.0, 200);
    assert_eq!(get("/web/index.html").await.0, 404);
    server.faults().not_ready_for(PATIENCE);
    assert_eq!(get("/health/live").await.0, 503);
    server.faults().not_ready_for(Duration::ZERO);
    assert_eq!(get("/health/live").await.0, 204);
}

#[tokio::test]
async fn one_connection_carries_many_calls() {
    let (_server, raw) = server().await;
    let mut subscriptions = Vec::new();
    for n in 0..300 {
        let options = of_stream(&format!("s-{n}"), At::Start).subscribed();
        subscriptions.push(raw.read(options).await.unwrap());
    }
    for (n, subscription) in subscriptions.iter_mut().enumerate() {
        assert_eq!(next(subscription).await.unwrap().shown(), "confirmed");
        assert_eq!(next(subscription).await.unwrap().shown(), "caught up");
        put(&raw, &format!("s-{n}"), 1..2).await;
        assert_eq!(next(subscription).await.unwrap().shown(), format!("0@s-{n}"));
    }
}

#[tokio::test]
async fn consumers_that_say_too_little_are_told_so_before_anything_else() {
    let (_server, raw) = server().await;
    let first = |options| groups::ReadReq {
        options,
        ack: None,
        nack: None,
    };
    let options = groups::ReadOptions {
        stream: Some(StreamIdentifier::new("s")),
        group: "g".to_owned(),
        buffer_size: 10,
        ..groups::ReadOptions::default()
    };
    let refused = async |raw: &Raw, options| {
        let opened = raw.consume(stream::iter([first(options)])).await;
        opened.map(|_| ()).unwrap_err().code()
    };
    assert_eq!(refused(&raw, None).await, Code::InvalidArgument);
    let unnamed = groups::ReadOptions {
        stream: None,
        ..options.clone()
    };
    assert_eq!(refused(&raw, Some(unnamed)).await, Code::InvalidArgument);
    assert_eq!(refused(&raw, Some(options.clone())).await, Code::NotFound);
    let none = groups::ReadOptions {
        buffer_size: 0,
        ..options
    };
    assert_eq!(refused(&raw, Some(none)).await, Code::InvalidArgument);
}
