//! What a folder keeps: over an orderly stop, over a kill, and for one server at a time.

use std::{path::Path, time::Duration};

use eventstore::{
    Client, Error, ExpectedRevision, NakAction, PersistentSubscriptionOptions, ReplayParkedMessagesOptions,
    StreamPosition, SubscribeToPersistentSubscriptionOptions,
};
use projector::embedded::eventstore::{EventStoreDb, Handle, Options, StartError};

use super::{describe, put, shows};
use crate::support::{
    eventstore::{PATIENCE, append, client_of, event, read, start, write},
    group::{acked, consume, group_info, stats},
    node::until,
    raw::{At, Expect, Raw, Reading as _, Shown as _, expecting, many_proposed, next, of_all, of_stream},
};

fn kept(folder: &Path) -> Options {
    Options {
        data: Some(folder.to_owned()),
        ..Options::default()
    }
}

/// Ends a server in one of two ways, and starts it again.
async fn again(server: Handle, kill: bool, folder: &Path) -> (Handle, Client) {
    if kill {
        server.kill().await;
    } else {
        server.shutdown().await;
    }
    let server = start(kept(folder)).await;
    let client = client_of(&server.connection_string());
    (server, client)
}

#[tokio::test]
async fn everything_is_there_again_after_a_stop_and_after_a_kill() {
    for kill in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let server = start(kept(folder.path())).await;
        let client = client_of(&server.connection_string());
        let raw = Raw::connect(server.address()).await;
        put(&raw, "s-1", 1..6).await;
        put(&raw, "s-2", 6..9).await;
        describe(&raw, "s-1", r#"{"$tb":2}"#).await;
        raw.delete("Delete", expecting("s-2", Expect::Any)).await.unwrap();
        put(&raw, "gone", 1..2).await;
        raw.delete("Tombstone", expecting("gone", Expect::Any)).await.unwrap();
        let before = raw.read_all(of_all(At::Start)).await.0;
        let category = raw.read_all(of_stream("$ce-s", At::Start).resolved()).await.0;
        append(&client, "late", 1).await;

        let (server, client) = again(server, kill, folder.path()).await;
        let raw = Raw::connect(server.address()).await;
        let after = raw.read_all(of_all(At::Start)).await.0;
        assert_eq!(after[..before.len()], before, "ids, positions and times included");
        assert_eq!(after.len(), before.len() + 1);
        assert_eq!(raw.read_all(of_stream("$ce-s", At::Start).resolved()).await.0, category);
        assert_eq!(shows(&raw, "s-1").await, ["2@s-1", "3@s-1", "4@s-1"]);
        assert_eq!(shows(&raw, "s-2").await, ["no s-2"]);
        assert_eq!(shows(&raw, "gone").await, ["FailedPrecondition"]);
        // Positions and revisions go on where they were, and what was written is known by its id.
        let last = after.last().unwrap().event.as_ref().unwrap().commit_position.unwrap();
        let repeated = raw.append(expecting("s-1", Expect::NoStream), many_proposed(1..6));
        assert_eq!(repeated.await.unwrap().success.unwrap().current_revision, Some(4));
        let next = write(&client, "s-1", ExpectedRevision::Exact(4), vec![event(1)])
            .await
            .unwrap();
        assert_eq!(next.next_expected_version, 5);
        assert!(next.position.commit > last);
        let repeat = write(&client, "gone", ExpectedRevision::Any, vec![event(1)]).await;
        assert!(matches!(repeat, Err(Error::ResourceDeleted)));
    }
}

#[tokio::test]
async fn groups_go_on_at_their_checkpoints_with_what_they_parked() {
    for kill in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let server = start(kept(folder.path())).await;
        let client = client_of(&server.connection_string());
        let options = PersistentSubscriptionOptions::default()
            .start_from(StreamPosition::Start)
            .message_timeout(Duration::from_secs(77))
            .checkpoint_lower_bound(1)
            .checkpoint_after(Duration::from_millis(100));
        client.create_persistent_subscription("s", "g", &options).await.unwrap();
        append(&client, "s", 8).await;
        let mut consumer = consume(&client, "s", 10).await;
        assert_eq!(acked(&mut consumer, 2).await, [0, 1]);
        let poison = consumer.next().await.unwrap();
        consumer.nack(poison, NakAction::Park, "poison").await.unwrap();
        assert_eq!(acked(&mut consumer, 1).await, [3]);
        let _unacked = consumer.next().await.unwrap();
        until("all of it is written", async || {
            let stats = stats(&client, "s").await;
            stats.last_checkpointed_event_revision == Some(3) && stats.parked_message_count == 1
        })
        .await;
        // What the figures say was handed over; the stream has it when it is written.
        let raw = Raw::connect(server.address()).await;
        until("the checkpoint is written", async || {
            let stream = "$persistentsubscription-s::g-checkpoint";
            let newest = of_stream(stream, At::End).backwards().at_most(1);
            let (answers, _) = raw.read_all(newest).await;
            let newest = answers.first().and_then(|one| one.event.clone()?.event);
            newest.is_some_and(|record| record.data == "\"3\"")
        })
        .await;
        let (_server, client) = again(server, kill, folder.path()).await;
        let info = group_info(&client, "s").await;
        assert_eq!(info.settings.unwrap().message_timeout, Duration::from_secs(77));
        assert_eq!(info.stats.parked_message_count, 1);
        assert_eq!(info.stats.last_checkpointed_event_revision, Some(3));
        let mut consumer = consume(&client, "s", 10).await;
        assert_eq!(
            acked(&mut consumer, 4).await,
            [4, 5, 6, 7],
            "what was in flight, and what was not"
        );
        let replay = ReplayParkedMessagesOptions::default();
        client.replay_parked_messages("s", "g", &replay).await.unwrap();
        let replayed = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
        assert_eq!(replayed.event.as_ref().unwrap().revision, 2);
        consumer.ack(replayed).await.unwrap();
    }
}

#[tokio::test]
async fn a_group_without_a_checkpoint_starts_where_it_was_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(kept(folder.path())).await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 3).await;
    for (group, from) in [("start", StreamPosition::Start), ("end", StreamPosition::End)] {
        let options = PersistentSubscriptionOptions::default().start_from(from);
        client
            .create_persistent_subscription("s", group, &options)
            .await
            .unwrap();
    }
    append(&client, "s", 2).await;
    let (_server, client) = again(server, true, folder.path()).await;
    append(&client, "s", 1).await;
    for (group, first) in [("start", 0), ("end", 5)] {
        let options = SubscribeToPersistentSubscriptionOptions::default();
        let mut consumer = client
            .subscribe_to_persistent_subscription("s", group, &options)
            .await
            .unwrap();
        assert_eq!(
            acked(&mut consumer, 1).await,
            [first],
            "{group}: its gap is the real server's"
        );
    }
}

#[tokio::test]
async fn subscribers_are_told_of_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(kept(folder.path())).await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 1).await;
    let options = PersistentSubscriptionOptions::default().start_from(StreamPosition::Start);
    client.create_persistent_subscription("s", "g", &options).await.unwrap();
    let mut consumer = consume(&client, "s", 10).await;
    acked(&mut consumer, 1).await;
    let raw = Raw::connect(server.address()).await;
    let mut subscription = raw.read(of_stream("s", At::End).subscribed()).await.unwrap();
    assert_eq!(next(&mut subscription).await.unwrap().shown(), "confirmed");
    assert_eq!(next(&mut subscription).await.unwrap().shown(), "caught up");
    let address = server.address();
    server.shutdown().await;
    let end = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap();
    assert!(matches!(end, Err(Error::IllegalStateError(_))), "{end:?}");
    // Reset, which a client of gRPC takes for the end of the stream without its status.
    assert!(subscription.message().await.is_ok_and(|message| message.is_none()));
    // Port and folder are free.
    let options = Options {
        port: address.port(),
        ..kept(folder.path())
    };
    let _server = start(options).await;
    assert_eq!(
        read(&client, "s", false).await.unwrap().len(),
        1,
        "the same client goes on"
    );
}

#[tokio::test]
async fn a_folder_and_a_port_have_one_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(kept(folder.path())).await;
    let second = EventStoreDb::start(kept(folder.path())).await;
    let error = second.map(|_| ()).unwrap_err();
    assert!(matches!(error, StartError::Open(_)), "{error:?}");
    assert!(error.to_string().contains("another server uses it"), "{error}");
    let taken = Options {
        port: server.address().port(),
        ..Options::default()
    };
    let error = EventStoreDb::start(taken).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }), "{error:?}");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = EventStoreDb::start(kept(&file)).await.map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("check that the folder is writable"),
        "{error}"
    );
    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("log.sqlite"), vec![7; 5_000]).unwrap();
    assert!(EventStoreDb::start(kept(foreign.path())).await.is_err());
}

#[tokio::test]
async fn without_a_folder_nothing_is_kept() {
    let server = start(Options::default()).await;
    let raw = Raw::connect(server.address()).await;
    put(&raw, "s", 1..2).await;
    server.shutdown().await;
    let server = start(Options::default()).await;
    let raw = Raw::connect(server.address()).await;
    assert_eq!(shows(&raw, "s").await, ["no s"]);
}
