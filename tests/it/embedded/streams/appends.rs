//! What an append answers, for every expectation of every stream; what it never writes twice; what
//! it refuses.

use eventstore::{Error, ExpectedRevision};
use tonic::Code;

use super::{describe, put, server, shows};
use crate::support::{
    eventstore::{client_of, event, write},
    raw::{
        AppendOptions, AppendReq, AppendResp, At, Empty, Expect, MapEntry, ProposedMessage, Raw, ReadOptions,
        StreamIdentifier, UuidOption, WireUuid, entry, expecting, many_proposed, of_stream, proposed, proposed_as,
        said, without,
    },
};

/// An append's answer, in a word.
fn word(answer: &Result<AppendResp, tonic::Status>) -> String {
    match answer {
        Ok(AppendResp {
            success: Some(success), ..
        }) => {
            let revision = success.current_revision.map_or("none".to_owned(), |n| n.to_string());
            assert_eq!(success.current_revision.is_none(), success.no_stream.is_some());
            assert_eq!(success.position.is_none(), success.no_position.is_some());
            match success.position {
                Some(at) => {
                    assert_eq!(at.commit, at.prepare);
                    revision
                }
                None => format!("{revision}, nowhere"),
            }
        }
        Ok(AppendResp {
            wrong_expected_version: Some(wrong),
            ..
        }) => {
            assert_eq!(wrong.current.is_none(), wrong.current_no_stream.is_some());
            assert_eq!(wrong.old_current, wrong.current);
            wrong.current.map_or("wrong".to_owned(), |n| format!("wrong, {n}"))
        }
        Ok(neither) => format!("{neither:?}"),
        Err(status) => said(status, "exception").map_or_else(|| format!("{:?}", status.code()), str::to_owned),
    }
}

async fn appended(raw: &Raw, stream: &str, expect: Expect, events: Vec<ProposedMessage>) -> String {
    word(&raw.append(expecting(stream, expect), events).await)
}

/// Makes a stream of one of the kinds that the rules tell apart; those with events have the first
/// three ids above `base`.
async fn stand(raw: &Raw, kind: &str, stream: &str, base: u128) {
    if matches!(kind, "three" | "deleted" | "tombstoned") {
        put(raw, stream, base + 1..base + 4).await;
    }
    let any = expecting(stream, Expect::Any);
    match kind {
        "described" => describe(raw, stream, "{}").await,
        "deleted" => drop(raw.delete("Delete", any).await.unwrap()),
        "tombstoned" => drop(raw.delete("Tombstone", any).await.unwrap()),
        _ => {}
    }
}

#[tokio::test]
async fn every_expectation_of_every_stream() {
    use Expect::{Any, At, Exists, NoStream};
    let (_server, raw) = server().await;
    let new = [9_u128].as_slice();
    let none: &[u128] = &[];
    for (n, (kind, expect, ids, answer)) in [
        ("new", Any, new, "0"),
        ("new", NoStream, new, "0"),
        ("new", Exists, new, "wrong"),
        ("new", At(0), new, "wrong"),
        ("new", At(7), new, "wrong"),
        ("new", Any, none, "none"),
        ("new", NoStream, none, "none"),
        ("new", Exists, none, "wrong"),
        ("described", Exists, new, "0"),
        ("described", NoStream, new, "0"),
        ("described", At(0), new, "wrong"),
        ("three", Any, new, "3"),
        ("three", Exists, new, "3"),
        ("three", At(2), new, "3"),
        ("three", At(3), new, "wrong, 2"),
        ("three", At(1), new, "wrong, 2"),
        ("three", NoStream, new, "wrong, 2"),
        ("three", Any, none, "2"),
        ("three", At(2), none, "2"),
        ("three", At(1), none, "wrong, 2"),
        ("three", NoStream, none, "wrong, 2"),
        ("three", At(i64::MAX as u64), new, "wrong, 2"),
        // Written before: whole, in part, and not quite.
        ("three", Any, &[1, 2, 3], "2"),
        ("three", Any, &[1], "0"),
        ("three", Any, &[1, 3], "2"),
        ("three", Exists, &[3, 1], "0"),
        ("three", Any, &[2, 9], "wrong, 2"),
        ("three", Exists, &[2, 9], "wrong, 2"),
        ("three", Any, &[9, 2], "4"),
        ("three", NoStream, &[1, 2, 3], "2"),
        ("three", NoStream, &[1, 2], "1"),
        ("three", NoStream, &[1, 2, 3, 4], "wrong, 2"),
        ("three", NoStream, &[1, 9], "wrong, 2"),
        ("three", NoStream, &[2], "wrong, 2"),
        ("three", At(0), &[2, 3], "2"),
        ("three", At(0), &[2], "1"),
        ("three", At(1), &[3], "2"),
        ("three", At(0), &[3], "wrong, 2"),
        // At the current revision ids are not looked at.
        ("three", At(2), &[1], "3"),
        ("deleted", Any, new, "3"),
        ("deleted", NoStream, new, "3"),
        ("deleted", At(2), new, "3"),
        ("deleted", At(1), new, "wrong, 2"),
        ("deleted", Exists, new, "stream-deleted"),
        // Was there before, is not there now.
        ("deleted", Any, &[1, 2, 3], "2, nowhere"),
        ("deleted", NoStream, &[1, 2], "1, nowhere"),
        ("deleted", At(0), &[2], "1, nowhere"),
        ("deleted", NoStream, &[1, 9], "wrong, 2"),
        ("tombstoned", Any, new, "stream-deleted"),
        ("tombstoned", NoStream, new, "stream-deleted"),
        ("tombstoned", Exists, new, "stream-deleted"),
        ("tombstoned", At(2), new, "stream-deleted"),
        ("tombstoned", Any, &[1], "stream-deleted"),
        ("tombstoned", Any, none, "stream-deleted"),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = format!("{kind}-{n}");
        // An id is remembered for one stream only.
        let base = 100 * n as u128;
        stand(&raw, kind, &stream, base).await;
        let before = shows(&raw, &stream).await;
        let events = ids.iter().map(|id| proposed(base + id)).collect();
        let got = appended(&raw, &stream, expect, events).await;
        assert_eq!(got, answer, "{kind} {expect:?} {ids:?}");
        let written = got
            .parse::<u64>()
            .is_ok_and(|last| last > 2 || kind == "new" || kind == "described");
        if !written {
            assert_eq!(shows(&raw, &stream).await, before, "{kind} {expect:?} {ids:?}");
        }
    }
}

/// As the server remembers ids, whatever is expected does not tell by itself.
#[tokio::test]
async fn an_id_is_remembered_where_it_came_first() {
    let (_server, raw) = server().await;
    let any = async |stream: &str, ids: &[u128]| {
        let events = ids.iter().copied().map(proposed).collect();
        appended(&raw, stream, Expect::Any, events).await
    };
    assert_eq!(any("a", &[1]).await, "0");
    assert_eq!(any("b", &[1]).await, "0");
    assert_eq!(any("b", &[1]).await, "1", "it is known for the other stream");
    assert_eq!(any("a", &[1]).await, "0");
    assert_eq!(any("twice", &[2, 2]).await, "1");
    assert_eq!(any("twice", &[2, 2]).await, "0", "the first place counts");
    assert_eq!(shows(&raw, "b").await, ["0@b", "1@b"]);
    assert_eq!(shows(&raw, "twice").await, ["0@twice", "1@twice"]);
}

#[tokio::test]
async fn a_refusal_says_what_was_expected_in_old_and_new_words() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..3).await;
    for expect in [Expect::At(0), Expect::NoStream] {
        let answer = raw.append(expecting("s", expect), many_proposed(8..9)).await;
        let wrong = answer.unwrap().wrong_expected_version.unwrap();
        let (exact, old) = match expect {
            Expect::At(revision) => (Some(revision), Some(revision)),
            _ => (None, Some(u64::MAX)),
        };
        assert_eq!((wrong.expected, wrong.old_expected), (exact, old));
        assert_eq!(wrong.no_stream.is_some(), expect == Expect::NoStream);
        assert_eq!((wrong.current, wrong.old_current), (Some(1), Some(1)));
    }
    let missing = raw.append(expecting("m", Expect::Exists), many_proposed(8..9)).await;
    let wrong = missing.unwrap().wrong_expected_version.unwrap();
    assert!(wrong.stream_exists.is_some() && wrong.old_stream_exists.is_some());
    assert!(wrong.current_no_stream.is_some() && wrong.old_current_no_stream.is_some());
}

#[tokio::test]
async fn one_of_many_writers_wins_and_the_others_are_told_by_whom() {
    let (server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    let client = client_of(&server.connection_string());
    let mut writers = Vec::new();
    for n in 0..16 {
        let client = client.clone();
        writers.push(tokio::spawn(async move {
            write(&client, "s", ExpectedRevision::Exact(0), vec![event(n)]).await
        }));
    }
    let (mut won, mut lost) = (0, 0);
    for writer in writers {
        match writer.await.unwrap() {
            Ok(result) => {
                assert_eq!(result.next_expected_version, 1);
                won += 1;
            }
            Err(Error::WrongExpectedVersion { current, .. }) => {
                assert_eq!(current, eventstore::CurrentRevision::Current(1));
                lost += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((won, lost), (1, 15));
    assert_eq!(shows(&raw, "s").await, ["0@s", "1@s"]);
}

#[tokio::test]
async fn ids_count_within_one_stream_only() {
    let (_server, raw) = server().await;
    put(&raw, "a", 1..3).await;
    assert_eq!(appended(&raw, "b", Expect::Any, many_proposed(1..3)).await, "1");
    assert_eq!(shows(&raw, "b").await, ["0@b", "1@b"]);
}

#[tokio::test]
async fn what_an_event_is_made_of_comes_back() {
    let (_server, raw) = server().await;
    let mut event = proposed_as(7, "Größe", "application/vnd.whatever", &b"\0\x01\xff"[..]);
    event.custom_metadata = vec![b'm'; 3].into();
    event.metadata.push(MapEntry {
        key: "mine".to_owned(),
        value: "dropped".to_owned(),
    });
    raw.append(expecting("ünï cødé ☃", Expect::NoStream), vec![event])
        .await
        .unwrap();
    put(&raw, "ünï cødé ☃", 8..9).await;
    let options = of_stream("ünï cødé ☃", At::Start);
    let (answers, end) = raw.read_all(options.clone()).await;
    assert!(end.is_none());
    let record = answers[0].event.as_ref().unwrap().event.as_ref().unwrap();
    let id = record.id.as_ref().unwrap();
    assert_eq!(id.text.as_deref(), Some("00000000-0000-0000-0000-000000000007"));
    let mut keys: Vec<_> = record.metadata.iter().map(|entry| entry.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["content-type", "created", "type"]);
    assert_eq!(entry(&record.metadata, "type"), "Größe");
    assert_eq!(entry(&record.metadata, "content-type"), "application/octet-stream");
    let created: i64 = entry(&record.metadata, "created").parse().unwrap();
    let now = chrono::Utc::now().timestamp_micros() * 10;
    assert!((now - created).abs() < 600_000_000 * 10, "ticks of 100 ns: {created}");
    assert_eq!(
        (&record.data[..], &record.custom_metadata[..]),
        (&b"\0\x01\xff"[..], &b"mmm"[..])
    );
    let json = answers[1].event.as_ref().unwrap().event.as_ref().unwrap();
    assert_eq!(entry(&json.metadata, "content-type"), "application/json");
    // Asked for otherwise, ids come as two halves.
    let halves = UuidOption {
        structured: Some(Empty {}),
        text: None,
    };
    let (answers, _) = raw
        .read_all(ReadOptions {
            uuid: Some(halves),
            ..options
        })
        .await;
    let id = answers[0]
        .event
        .as_ref()
        .unwrap()
        .event
        .as_ref()
        .unwrap()
        .id
        .clone()
        .unwrap();
    assert!(id.text.is_none());
    assert_eq!(id.id().unwrap(), uuid::Uuid::from_u128(7));
}

#[tokio::test]
async fn events_that_are_none_are_refused_by_what_they_lack() {
    let (_server, raw) = server().await;
    let refused = async |event: ProposedMessage| {
        let answer = raw.append(expecting("s", Expect::Any), vec![event]).await;
        answer.unwrap_err()
    };
    for key in ["type", "content-type"] {
        let status = refused(without(proposed(1), key)).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(said(&status, "exception"), Some("missing-required-metadata-property"));
        assert_eq!(said(&status, "required-metadata-properties"), Some("type,content-type"));
    }
    let empty_type = proposed_as(1, "", "application/json", "{}");
    assert_eq!(refused(empty_type).await.code(), Code::Unknown);
    assert_eq!(refused(proposed(0)).await.code(), Code::Unknown);
    let no_id = ProposedMessage {
        id: None,
        ..proposed(1)
    };
    assert_eq!(refused(no_id).await.code(), Code::Unknown);
    let text = |text: &str| ProposedMessage {
        id: Some(WireUuid {
            structured: None,
            text: Some(text.to_owned()),
        }),
        ..proposed(1)
    };
    assert_eq!(refused(text("no id")).await.code(), Code::Unknown);
    assert_eq!(shows(&raw, "s").await, ["no s"]);
    let halves = ProposedMessage {
        id: Some(WireUuid {
            structured: Some(projector_eventstore::wire::Halves { most: -1, least: 1 }),
            text: None,
        }),
        ..proposed(1)
    };
    assert_eq!(appended(&raw, "s", Expect::Any, vec![halves]).await, "0");
}

#[tokio::test]
async fn one_append_holds_a_mebibyte_by_the_servers_own_reckoning() {
    const MAX: usize = 1024 * 1024;
    let (_server, raw) = server().await;
    // The type counts twice its letters.
    let sized = |id, bytes: usize| proposed_as(id, "Tü", "application/octet-stream", vec![0; bytes - 4]);
    assert_eq!(appended(&raw, "s", Expect::Any, vec![sized(1, MAX)]).await, "0");
    let parts = |bytes: usize| vec![sized(2, MAX / 2), sized(3, MAX / 2 - 10), sized(4, bytes)];
    assert_eq!(appended(&raw, "s", Expect::Any, parts(10)).await, "3");
    let with_metadata = ProposedMessage {
        custom_metadata: vec![0; 5].into(),
        ..sized(6, MAX - 4)
    };
    for too_large in [vec![sized(5, MAX + 1)], parts(11), vec![with_metadata]] {
        let answer = raw.append(expecting("t", Expect::Any), too_large).await;
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(said(&status, "exception"), Some("maximum-append-size-exceeded"));
        assert_eq!(said(&status, "maximum-append-size"), Some("1048576"));
    }
    assert_eq!(shows(&raw, "t").await, ["no t"]);
    let answer = raw.append(expecting("t", Expect::Any), vec![sized(7, 12 * MAX)]).await;
    assert_eq!(
        said(&answer.unwrap_err(), "exception"),
        Some("maximum-append-size-exceeded")
    );
}

#[tokio::test]
async fn a_request_that_says_too_little_is_told_so() {
    let (_server, raw) = server().await;
    let path = "event_store.client.streams.Streams/Append";
    let unnamed = AppendOptions {
        stream: None,
        ..expecting("s", Expect::Any)
    };
    let unexpecting = AppendOptions {
        any: None,
        ..expecting("s", Expect::Any)
    };
    let no_text = AppendOptions {
        stream: Some(StreamIdentifier {
            name: vec![0xff].into(),
        }),
        ..expecting("s", Expect::Any)
    };
    for options in [None, Some(unnamed), Some(unexpecting), Some(no_text)] {
        let first = AppendReq { options, message: None };
        let answer: Result<AppendResp, _> = raw.ask(path, vec![first]).await;
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    }
    let nothing: Result<AppendResp, _> = raw.ask(path, Vec::<AppendReq>::new()).await;
    assert_eq!(nothing.unwrap_err().code(), Code::InvalidArgument);
    let hollow = AppendReq {
        options: None,
        message: None,
    };
    let first = AppendReq {
        options: Some(expecting("s", Expect::Any)),
        message: None,
    };
    let answer: Result<AppendResp, _> = raw.ask(path, vec![first, hollow]).await;
    assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_stream_of_all_that_one_connection_carries_at_once() {
    let (server, raw) = server().await;
    let client = client_of(&server.connection_string());
    let mut writers = Vec::new();
    for stream in 0..40_usize {
        let client = client.clone();
        writers.push(tokio::spawn(async move {
            for n in 0..25 {
                let expected = match n {
                    0 => ExpectedRevision::NoStream,
                    n => ExpectedRevision::Exact(n - 1),
                };
                let name = format!("many-{stream}");
                let written = write(&client, &name, expected, vec![event(n as usize)]).await.unwrap();
                assert_eq!(written.next_expected_version, n);
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for stream in 0..40 {
        assert_eq!(shows(&raw, &format!("many-{stream}")).await.len(), 25);
    }
    assert_eq!(shows(&raw, "$ce-many").await.len(), 1_000);
}
