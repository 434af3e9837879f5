//! What a stream's metadata hides, and metadata that says nothing because something in it is wrong.

use eventstore::{
    AppendToStreamOptions, Client, ExpectedRevision, ReadStreamOptions, StreamAclBuilder, StreamMetadataBuilder,
    StreamMetadataResult, VersionedMetadata,
};

use projector::embedded::eventstore::Options;

use super::{beginning, describe, put, server, shows};
use crate::support::{
    eventstore::{PATIENCE, append, client_of, describe as describe_by_client, event, read, start, write},
    raw::{At, Expect, Raw, Reading as _, all_shown, expecting, many_proposed, of_all, of_stream, proposed_as},
};

/// The metadata as the client reads it.
async fn said(client: &Client, stream: &str) -> Box<VersionedMetadata> {
    let options = ReadStreamOptions::default();
    match client.get_stream_metadata(stream, &options).await.unwrap() {
        StreamMetadataResult::Success(said) => said,
        other => panic!("the metadata of `{stream}`: {other:?}"),
    }
}

fn revisions(stream: &str, of: impl IntoIterator<Item = u64>) -> Vec<String> {
    of.into_iter().map(|revision| format!("{revision}@{stream}")).collect()
}

#[tokio::test]
async fn the_first_readable_revision_is_the_highest_that_any_key_says() {
    let (_server, raw) = server().await;
    for (n, (metadata, first)) in [
        (r"{}", 0),
        (r#"{"mine":{"$tb":5}}"#, 0),
        (r#"{"$tb":0}"#, 0),
        (r#"{"$tb":4}"#, 4),
        (r#"{"$tb":10}"#, 10),
        (r#"{"$tb":400}"#, 10),
        (r#"{"$maxCount":1}"#, 9),
        (r#"{"$maxCount":3}"#, 7),
        (r#"{"$maxCount":300}"#, 0),
        (r#"{"$tb":4,"$maxCount":3}"#, 7),
        (r#"{"$tb":8,"$maxCount":3}"#, 8),
        (r#"{"$tb":4,"$maxAge":1000}"#, 4),
        (r#"{"$tb":4,"$cacheControl":1}"#, 4),
        (r#"{"$tb":4,"$acl":{}}"#, 4),
        (r#"{"$tb":4,"$acl":{"$r":"$all","$w":["a","b"]}}"#, 4),
        // A number that means nothing says nothing.
        (r#"{"$tb":4,"$maxCount":0}"#, 4),
        (r#"{"$tb":4,"$maxCount":-1}"#, 4),
        (r#"{"$tb":4,"$maxAge":0}"#, 4),
        (r#"{"$tb":-4}"#, 0),
        (r#"{"$tb":-4,"$maxCount":2}"#, 8),
        (r#"{"$tb":4,"$cacheControl":0}"#, 4),
        // What is of another type voids all of it, wherever it stands.
        (r#"{"$tb":4,"$maxCount":"3"}"#, 0),
        (r#"{"$tb":4,"$maxAge":"1000"}"#, 0),
        (r#"{"$tb":4,"$tmp":"x"}"#, 0),
        (r#"{"$tb":4,"$acl":{"mine":"x"}}"#, 0),
        (r#"{"$tb":4,"$acl":"$userStreamAcl"}"#, 0),
        (r#"{"$tb":4,"$acl":{"$r":7}}"#, 0),
        (r#"[{"$tb":4}]"#, 0),
        (r#"{"$tb":4"#, 0),
        ("", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = format!("s-{n}");
        put(&raw, &stream, 1..11).await;
        describe(&raw, &stream, metadata).await;
        let left = revisions(&stream, first..10);
        assert_eq!(shows(&raw, &stream).await, left, "{metadata}");
        let backwards = of_stream(&stream, At::End).backwards();
        let (answers, end) = raw.read_all(backwards).await;
        assert!(end.is_none());
        let mut seen = all_shown(&answers);
        seen.reverse();
        assert_eq!(seen, left, "{metadata}");
        // What is hidden is not what is expected.
        let options = expecting(&stream, Expect::At(9));
        let next = raw.append(options, many_proposed(99..100)).await.unwrap();
        assert_eq!(next.success.unwrap().current_revision, Some(10));
    }
}

#[tokio::test]
async fn metadata_that_is_not_json_says_nothing() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..4).await;
    let event = proposed_as(50, "$metadata", "application/octet-stream", r#"{"$tb":2}"#);
    let options = expecting("$$s", Expect::Any);
    raw.append(options, vec![event]).await.unwrap();
    assert_eq!(shows(&raw, "s").await.len(), 3);
}

#[tokio::test]
async fn newer_metadata_replaces_older_and_can_bring_events_back() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..6).await;
    for (metadata, first) in [(r#"{"$tb":3}"#, 3), (r#"{"$maxCount":1}"#, 4), ("{}", 0)] {
        describe(&raw, "s", metadata).await;
        assert_eq!(shows(&raw, "s").await, revisions("s", first..5), "{metadata}");
    }
}

#[tokio::test]
async fn a_count_moves_on_with_the_stream() {
    let (_server, raw) = server().await;
    describe(&raw, "s", r#"{"$maxCount":2}"#).await;
    for last in 0..6 {
        assert_eq!(put(&raw, "s", (last + 1)..(last + 2)).await, last as u64);
        let first = (last as u64).saturating_sub(1);
        assert_eq!(shows(&raw, "s").await, revisions("s", first..=last as u64));
    }
}

#[tokio::test]
async fn an_age_is_in_seconds_and_what_is_older_is_gone() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 3).await;
    describe_by_client(&client, "s", serde_json::json!({ "$maxAge": 1 })).await;
    append(&client, "linking", 1).await;
    let link = eventstore::EventData::binary("$>", "0@s".into());
    write(&client, "links", ExpectedRevision::Any, vec![link])
        .await
        .unwrap();
    let empty = async {
        while !read(&client, "s", false).await.unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("a second passes");
    let links = read(&client, "links", true).await.unwrap();
    assert!(links[0].event.is_none() && links[0].link.is_some());
    let next = write(&client, "s", ExpectedRevision::Exact(2), vec![event(3)])
        .await
        .unwrap();
    assert_eq!(next.next_expected_version, 3);
    assert!(read(&client, "s", false).await.unwrap().len() <= 1);
}

#[tokio::test]
async fn a_metadata_stream_shows_its_newest_alone() {
    let (server, raw) = server().await;
    for n in 0..3 {
        describe(&raw, "s", &format!(r#"{{"n":{n}}}"#)).await;
    }
    assert_eq!(shows(&raw, "$$s").await, ["2@$$s"]);
    let (answers, _) = raw.read_all(of_stream("$$s", At::Number(0)).at_most(1)).await;
    assert_eq!(all_shown(&answers), ["2@$$s"]);
    assert_eq!(shows(&raw, "s").await, ["no s"], "described is not written");
    let client = client_of(&server.connection_string());
    let said = said(&client, "s").await;
    assert_eq!(said.metadata().custom_properties["n"], 2);
    // Whatever is said of metadata, it stays so.
    describe(&raw, "$$s", r#"{"$maxCount":2,"$tb":3}"#).await;
    assert_eq!(shows(&raw, "$$s").await, ["2@$$s"]);
    let deletion = expecting("$$s", Expect::Any);
    raw.delete("Delete", deletion).await.unwrap();
    assert_eq!(shows(&raw, "$$s").await, ["2@$$s"]);
}

#[tokio::test]
async fn metadata_is_set_and_read_by_the_client() {
    let (server, raw) = server().await;
    let client = client_of(&server.connection_string());
    append(&client, "s", 5).await;
    let missing = client.get_stream_metadata("none", &ReadStreamOptions::default()).await;
    assert!(missing.unwrap().is_not_found());
    let acl = StreamAclBuilder::new().add_read_roles("ann").build();
    let metadata = StreamMetadataBuilder::new()
        .max_count(2)
        .acl(eventstore::Acl::Stream(acl))
        .insert_custom_property("mine", 7)
        .build();
    let set = client
        .set_stream_metadata("s", &AppendToStreamOptions::default(), &metadata)
        .await
        .unwrap();
    assert_eq!(set.next_expected_version, 0);
    assert_eq!(shows(&raw, "s").await, ["3@s", "4@s"]);
    let said = said(&client, "s").await;
    assert_eq!(said.metadata().max_count, Some(2));
    assert_eq!(said.metadata().custom_properties["mine"], 7);
}

#[tokio::test]
async fn what_is_hidden_stays_in_the_log() {
    let (_server, raw) = server().await;
    let begin = beginning(&raw).await;
    put(&raw, "s", 1..4).await;
    describe(&raw, "s", r#"{"$tb":2}"#).await;
    let (answers, _) = raw.read_all(of_all(begin)).await;
    assert_eq!(all_shown(&answers), ["0@s", "1@s", "2@s", "0@$$s"]);
}

#[tokio::test]
async fn metadata_that_was_there_before_a_tombstone_can_be_written_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let kept = || Options {
        data: Some(folder.path().to_owned()),
        ..Options::default()
    };
    let server = start(kept()).await;
    let raw = Raw::connect(server.address()).await;
    let write = async |raw: &Raw, stream: &str, id: u128, expect| {
        let event = proposed_as(id, "$metadata", "application/json", r#"{"$maxCount":3}"#);
        let options = expecting(&format!("$${stream}"), expect);
        match raw.append(options, vec![event]).await {
            Ok(answer) => answer
                .success
                .map_or("wrong".to_owned(), |one| format!("{:?}", one.current_revision)),
            Err(status) => format!("{} of {:?}", status.message(), said_of(&status)),
        }
    };
    for stream in ["never", "some", "deleted"] {
        put(&raw, stream, 1..3).await;
    }
    describe(&raw, "some", r#"{"$maxCount":5}"#).await;
    let any = |stream| expecting(stream, Expect::Any);
    raw.delete("Delete", any("deleted")).await.unwrap();
    for stream in ["never", "some", "deleted"] {
        raw.delete("Tombstone", any(stream)).await.unwrap();
    }
    let gone = |stream: &str| format!("Event stream '$${stream}' is deleted. of Some(\"$${stream}\")");
    assert_eq!(write(&raw, "never", 11, Expect::Any).await, gone("never"));
    assert_eq!(write(&raw, "some", 12, Expect::Any).await, "Some(1)");
    assert_eq!(write(&raw, "some", 13, Expect::At(0)).await, "wrong");
    assert_eq!(write(&raw, "some", 14, Expect::At(1)).await, "Some(2)");
    // What was softly deleted before is told to begin again, as if it could.
    assert_eq!(write(&raw, "deleted", 15, Expect::Any).await, "Some(1)");
    assert_eq!(write(&raw, "deleted", 16, Expect::Any).await, "Some(3)");
    for stream in ["never", "some", "deleted"] {
        assert_eq!(shows(&raw, &format!("$${stream}")).await, ["FailedPrecondition"]);
        assert_eq!(shows(&raw, stream).await, ["FailedPrecondition"]);
    }
    // That is what the server remembers of it; one that was started since remembers nothing.
    server.shutdown().await;
    let server = start(kept()).await;
    let raw = Raw::connect(server.address()).await;
    assert_eq!(write(&raw, "some", 17, Expect::Any).await, gone("some"));
}

fn said_of(status: &tonic::Status) -> Option<&str> {
    crate::support::raw::said(status, "stream-name")
}
