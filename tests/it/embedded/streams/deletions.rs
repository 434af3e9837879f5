//! Soft deletion, revival and tombstones: what each says, what is seen afterwards, and in what order
//! it is written.

use eventstore::{
    AppendToStreamOptions, DeleteStreamOptions, Error, ExpectedRevision, ReadStreamOptions, StreamPosition,
    TombstoneStreamOptions,
};
use tonic::Code;

use super::{beginning, describe, put, server, shows};
use crate::support::{
    eventstore::{append, client_of, event, read, write},
    raw::{
        At, Expect, Raw, Reading as _, all_shown, entry, expecting, many_proposed, of_all, of_stream, proposed_as, said,
    },
};

async fn delete(raw: &Raw, stream: &str, expect: Expect) -> Result<(), tonic::Status> {
    let deleted = raw.delete("Delete", expecting(stream, expect)).await?;
    assert!(deleted.position.is_some() && deleted.no_position.is_none());
    Ok(())
}

/// The newest metadata of a stream, and its revision.
async fn metadata(raw: &Raw, stream: &str) -> (u64, serde_json::Value) {
    let (answers, end) = raw.read_all(of_stream(&format!("$${stream}"), At::Start)).await;
    assert!(end.is_none() && answers.len() == 1, "{answers:?} {end:?}");
    let record = answers[0].event.clone().unwrap().event.unwrap();
    assert_eq!(entry(&record.metadata, "type"), "$metadata");
    assert_eq!(entry(&record.metadata, "content-type"), "application/json");
    (record.revision, serde_json::from_slice(&record.data).unwrap())
}

const GONE: i64 = i64::MAX;

#[tokio::test]
async fn a_deleted_stream_is_missing_until_it_is_written_to() {
    for (n, expect) in [Expect::Any, Expect::NoStream, Expect::At(2)].into_iter().enumerate() {
        let (_server, raw) = server().await;
        let stream = format!("s-{n}");
        put(&raw, &stream, 1..4).await;
        describe(&raw, &stream, r#"{"mine":1,"$maxCount":9}"#).await;
        delete(&raw, &stream, Expect::At(2)).await.unwrap();
        assert_eq!(shows(&raw, &stream).await, [format!("no {stream}")]);
        let backwards = of_stream(&stream, At::End).backwards();
        assert_eq!(all_shown(&raw.read_all(backwards).await.0), [format!("no {stream}")]);
        // Everything else that the metadata said is gone.
        assert_eq!(metadata(&raw, &stream).await, (1, serde_json::json!({ "$tb": GONE })));
        let options = expecting(&stream, expect);
        let revived = raw.append(options, many_proposed(7..9)).await.unwrap();
        assert_eq!(revived.success.unwrap().current_revision, Some(4));
        assert_eq!(
            shows(&raw, &stream).await,
            [format!("3@{stream}"), format!("4@{stream}")]
        );
        assert_eq!(metadata(&raw, &stream).await, (2, serde_json::json!({ "$tb": 3 })));
        // Deleted again, and again.
        for again in 3..5 {
            delete(&raw, &stream, Expect::Any).await.unwrap();
            assert_eq!(metadata(&raw, &stream).await.0, again);
        }
        assert_eq!(put(&raw, &stream, 9..10).await, 5);
        assert_eq!(shows(&raw, &stream).await, [format!("5@{stream}")]);
    }
}

#[tokio::test]
async fn the_log_has_what_revived_a_stream_before_its_new_metadata() {
    let (_server, raw) = server().await;
    let begin = beginning(&raw).await;
    put(&raw, "s", 1..2).await;
    delete(&raw, "s", Expect::Any).await.unwrap();
    put(&raw, "s", 2..4).await;
    let (answers, _) = raw.read_all(of_all(begin)).await;
    assert_eq!(
        all_shown(&answers),
        ["0@s", "0@$$s", "1@s", "2@s", "1@$$s"],
        "$all keeps what is deleted"
    );
}

#[tokio::test]
async fn metadata_revives_a_stream_too() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..4).await;
    delete(&raw, "s", Expect::Any).await.unwrap();
    let event = proposed_as(50, "$metadata", "application/json", r#"{"mine":1}"#);
    let options = expecting("$$s", Expect::Any);
    let answer = raw.append(options, vec![event]).await.unwrap().success.unwrap();
    assert_eq!(
        answer.current_revision,
        Some(1),
        "its own, not that of what the server adds"
    );
    assert_eq!(
        metadata(&raw, "s").await,
        (2, serde_json::json!({ "mine": 1, "$tb": 3 }))
    );
    assert_eq!(shows(&raw, "s").await, Vec::<String>::new(), "there, and empty");
    assert_eq!(put(&raw, "s", 7..8).await, 3);
    assert_eq!(shows(&raw, "s").await, ["3@s"]);
}

#[tokio::test]
async fn no_events_revive_a_stream_as_well() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..4).await;
    delete(&raw, "s", Expect::Any).await.unwrap();
    let nothing = raw.append(expecting("s", Expect::Any), Vec::new()).await;
    assert_eq!(nothing.unwrap().success.unwrap().current_revision, Some(2));
    assert_eq!(shows(&raw, "s").await, Vec::<String>::new());
    assert_eq!(metadata(&raw, "s").await.1, serde_json::json!({ "$tb": 3 }));
}

#[tokio::test]
async fn a_wrong_deletion_says_so_in_trailers() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..4).await;
    for method in ["Delete", "Tombstone"] {
        for (stream, expect, expected, actual) in [
            ("s", Expect::At(0), "0", "2"),
            ("s", Expect::At(7), "7", "2"),
            ("s", Expect::NoStream, "-1", "2"),
            ("none", Expect::At(0), "0", "-1"),
            ("none", Expect::Exists, "-4", "-1"),
        ] {
            let options = expecting(stream, expect);
            let status = raw.delete(method, options).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert_eq!(said(&status, "exception"), Some("wrong-expected-version"));
            assert_eq!(said(&status, "stream-name"), Some(stream));
            assert_eq!(said(&status, "expected-version"), Some(expected));
            assert_eq!(said(&status, "actual-version"), Some(actual));
        }
    }
    assert_eq!(shows(&raw, "s").await.len(), 3);
    // What was never there is deleted softly by nobody, unless it has metadata.
    for expect in [Expect::Any, Expect::NoStream] {
        let status = delete(&raw, "none", expect).await.unwrap_err();
        assert_eq!(said(&status, "exception"), Some("wrong-expected-version"));
    }
    describe(&raw, "only-described", "{}").await;
    delete(&raw, "only-described", Expect::Any).await.unwrap();
}

#[tokio::test]
async fn the_client_sees_a_wrong_deletion_as_a_failed_precondition() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 3).await;
    let at_zero = ExpectedRevision::Exact(0);
    let soft = DeleteStreamOptions::default().expected_revision(at_zero);
    let hard = TombstoneStreamOptions::default().expected_revision(at_zero);
    let soft = client.delete_stream("s", &soft).await.unwrap_err();
    let hard = client.tombstone_stream("s", &hard).await.unwrap_err();
    for error in [soft, hard] {
        assert!(
            matches!(&error, Error::Grpc { code, .. } if *code == Code::FailedPrecondition),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_tombstone_is_for_good() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..4).await;
    raw.delete("Tombstone", expecting("s", Expect::At(2))).await.unwrap();
    for stream in ["s", "$$s"] {
        for options in [
            of_stream(stream, At::Start),
            of_stream(stream, At::End).backwards(),
            of_stream(stream, At::Number(1)).at_most(1),
        ] {
            let (answers, end) = raw.read_all(options).await;
            let status = end.unwrap();
            assert!(answers.is_empty());
            assert_eq!(said(&status, "exception"), Some("stream-deleted"));
            assert_eq!(said(&status, "stream-name"), Some(stream));
        }
        let answer = raw.append(expecting(stream, Expect::Any), many_proposed(9..10));
        let status = answer.await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(said(&status, "exception"), Some("stream-deleted"));
        for method in ["Delete", "Tombstone"] {
            let status = raw.delete(method, expecting(stream, Expect::Any)).await;
            assert_eq!(said(&status.unwrap_err(), "exception"), Some("stream-deleted"));
        }
    }
    let client = client_of(&server.connection_string());
    let any = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
    let appended = client.append_to_stream("s", &any, event(1)).await;
    assert!(matches!(appended, Err(Error::ResourceDeleted)), "{appended:?}");
    let read = read(&client, "s", false).await;
    assert!(matches!(read, Err(Error::ResourceDeleted)), "{read:?}");
    // The log has the tombstone, of a revision that no event reaches.
    let (answers, _) = raw.read_all(of_all(At::End).backwards().at_most(1)).await;
    let tombstone = answers[0].event.clone().unwrap().event.unwrap();
    assert_eq!(
        (tombstone.revision, entry(&tombstone.metadata, "type")),
        (GONE as u64, "$streamDeleted")
    );
}

#[tokio::test]
async fn what_never_was_and_what_is_deleted_can_be_tombstoned() {
    let (_server, raw) = server().await;
    put(&raw, "deleted", 1..3).await;
    delete(&raw, "deleted", Expect::Any).await.unwrap();
    for stream in ["never", "deleted"] {
        raw.delete("Tombstone", expecting(stream, Expect::Any)).await.unwrap();
        assert_eq!(shows(&raw, stream).await, ["FailedPrecondition"]);
    }
}

#[tokio::test]
async fn the_client_takes_a_deleted_stream_for_none() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 2).await;
    let position = client
        .delete_stream("s", &DeleteStreamOptions::default())
        .await
        .unwrap();
    assert!(position.is_some());
    let options = ReadStreamOptions::default().position(StreamPosition::End);
    let mut events = client.read_stream("s", &options).await.unwrap();
    assert!(matches!(events.next().await, Err(Error::ResourceNotFound)));
    let again = write(&client, "s", ExpectedRevision::NoStream, vec![event(1)]).await;
    assert_eq!(again.unwrap().next_expected_version, 2);
    assert_eq!(read(&client, "s", false).await.unwrap().len(), 1);
}
