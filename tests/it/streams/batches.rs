//! `BatchAppend`: many appends on one call, written in the order in which they came, each answered as
//! soon as its answer is known.

use eventstore::{BatchAppendOptions, Error, ExpectedRevision};
use prost::Message as _;
use tonic::Code;
use uuid::Uuid;

use super::{put, server, shows};
use crate::support::{
    eventstore::{client_of, event},
    raw::{AppendOptions, BatchReq, BatchResp, Empty, Expect, Id, Proposed, Time, WrongDetail},
};

fn whole(n: u128, stream: &str, expect: Expect, events: Vec<Proposed>) -> BatchReq {
    // Here the cases that say nothing are another kind of nothing; on the wire they are the same.
    BatchReq {
        correlation: Some(Id::new(Uuid::from_u128(n))),
        options: Some(AppendOptions::new(stream, expect)),
        messages: events,
        last: true,
    }
}

fn correlation(answer: &BatchResp) -> u128 {
    answer.correlation.as_ref().unwrap().uuid().as_u128()
}

#[tokio::test]
async fn appends_are_written_in_order_and_each_is_answered() {
    let (_server, raw) = server().await;
    let parts = (0..300)
        .map(|n| {
            let expect = match n {
                0 => Expect::NoStream,
                n => Expect::At(n - 1),
            };
            whole(u128::from(n) + 1, "s", expect, vec![Proposed::new(u128::from(n) + 1)])
        })
        .collect();
    let (answers, end) = raw.batch(parts).await;
    assert!(end.is_none(), "{end:?}");
    assert_eq!(answers.len(), 300);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(correlation(answer), n as u128 + 1);
        assert_eq!(answer.stream.as_ref().unwrap().text(), "s");
        let success = answer.success.as_ref().unwrap();
        assert_eq!(success.revision, Some(n as u64));
        assert!(success.position.is_some() && success.no_position.is_none());
    }
    assert_eq!(shows(&raw, "s").await.len(), 300);
}

#[tokio::test]
async fn an_append_may_come_in_parts_and_between_others() {
    let (_server, raw) = server().await;
    let part = |n, options, ids: std::ops::Range<u128>, last| BatchReq {
        correlation: Some(Id::new(Uuid::from_u128(n))),
        options,
        messages: Proposed::many(ids),
        last,
    };
    let any = |stream| Some(AppendOptions::new(stream, Expect::Any));
    let (answers, end) = raw
        .batch(vec![
            part(1, any("a"), 1..3, false),
            part(2, any("b"), 3..4, false),
            part(1, None, 4..5, false),
            part(2, None, 5..5, true),
            part(1, None, 6..7, true),
            // Never finished, never written.
            part(3, any("c"), 7..9, false),
        ])
        .await;
    assert!(end.is_none());
    let done: Vec<_> = answers
        .iter()
        .map(|answer| (correlation(answer), answer.success.as_ref().unwrap().revision))
        .collect();
    assert_eq!(done, [(1, Some(3)), (2, Some(0))]);
    assert_eq!(shows(&raw, "c").await, ["no c"]);
}

#[tokio::test]
async fn each_failure_is_its_own_with_code_and_detail() {
    const MAX: usize = 1024 * 1024;
    let (_server, raw) = server().await;
    put(&raw, "three", 1..4).await;
    put(&raw, "gone", 1..4).await;
    raw.delete("Tombstone", AppendOptions::new("gone", Expect::Any))
        .await
        .unwrap();
    let large = Proposed::of(9, "T", "application/octet-stream", vec![0; MAX]);
    let (answers, end) = raw
        .batch(vec![
            whole(1, "three", Expect::At(0), Proposed::many(9..10)),
            whole(2, "none", Expect::Exists, Proposed::many(9..10)),
            whole(3, "gone", Expect::Any, Proposed::many(9..10)),
            whole(4, "large", Expect::Any, vec![large]),
            whole(5, "bad", Expect::Any, vec![Proposed::new(9).without("type")]),
            whole(6, "nil", Expect::Any, vec![Proposed::new(0)]),
            whole(7, "good", Expect::NoStream, Proposed::many(9..11)),
            whole(8, "nothing", Expect::Any, Vec::new()),
        ])
        .await;
    assert!(end.is_none());
    let failures: Vec<_> = answers
        .iter()
        .filter_map(|answer| {
            let error = answer.error.as_ref()?;
            let detail = error.details.as_ref().unwrap();
            let name = detail
                .type_url
                .strip_prefix("type.googleapis.com/event_store.client.")
                .unwrap();
            Some((correlation(answer), error.code, name))
        })
        .collect();
    assert_eq!(
        failures,
        [
            (1, 6, "WrongExpectedVersion"),
            (2, 6, "WrongExpectedVersion"),
            (3, 5, "StreamDeleted"),
            (4, 3, "MaximumAppendSizeExceeded"),
            (5, 3, "BadRequest"),
            (6, 3, "BadRequest"),
        ]
    );
    assert_eq!(answers.len(), 8, "the others go on");
    let detail = |n: usize| {
        let error = answers[n].error.clone().unwrap();
        WrongDetail::decode(error.details.unwrap().value).unwrap()
    };
    let (first, second) = (detail(0), detail(1));
    assert_eq!((first.current, first.expected), (Some(2), Some(0)));
    assert!(first.current_no_stream.is_none() && first.any.is_none() && first.no_stream.is_none());
    assert!(second.current_no_stream.is_some() && second.stream_exists.is_some());
    assert_eq!(answers[6].success.as_ref().unwrap().revision, Some(1));
    assert_eq!(answers[7].success.as_ref().unwrap().no_stream, Some(Empty {}));
    for stream in ["large", "bad", "nil"] {
        assert_eq!(shows(&raw, stream).await, [format!("no {stream}")]);
    }
}

#[tokio::test]
async fn what_cannot_be_done_fails_alone() {
    let (_server, raw) = server().await;
    let good = |n, stream| whole(n, stream, Expect::Any, Proposed::many(1..2));
    let nobody = BatchReq {
        correlation: None,
        ..good(1, "s")
    };
    let (_, end) = raw.batch(vec![nobody]).await;
    assert_eq!(end.unwrap().code(), Code::InvalidArgument);
    // Parts of nothing are passed over; an append to nowhere says so.
    let stray = BatchReq {
        options: None,
        ..good(1, "s")
    };
    let (answers, end) = raw.batch(vec![stray, good(2, ""), good(3, "$$"), good(4, "s")]).await;
    assert!(end.is_none(), "{end:?}");
    let codes: Vec<_> = answers.iter().map(|one| one.error.as_ref().map(|e| e.code)).collect();
    assert_eq!(codes, [Some(3), Some(3), None]);
    assert_eq!(shows(&raw, "s").await, ["0@s"]);
}

#[tokio::test]
async fn a_batch_whose_time_is_over_writes_nothing() {
    let (_server, raw) = server().await;
    let until = |seconds| Some(Time { seconds, nanos: 0 });
    let late = |n, until, within| {
        let mut late = whole(n, "s", Expect::Any, Proposed::many(1..2));
        let options = late.options.as_mut().unwrap();
        (options.until, options.within) = (until, within);
        late
    };
    let far = chrono::Utc::now().timestamp() + 1_000;
    let batch = vec![
        late(1, until(1), None),
        late(2, None, until(0)),
        late(3, None, until(-1)),
        late(4, until(far), None),
    ];
    let (answers, end) = raw.batch(batch).await;
    assert!(end.is_none(), "{end:?}");
    let codes: Vec<_> = answers.iter().map(|one| one.error.as_ref().map(|e| e.code)).collect();
    assert_eq!(codes, [Some(4), Some(4), Some(4), None]);
    assert_eq!(shows(&raw, "s").await, ["0@s"]);
}

#[tokio::test]
async fn the_client_takes_a_failure_for_the_end_of_its_batch() {
    let (server, _) = server().await;
    let client = client_of(&server.connection_string());
    let batch = client.batch_append(&BatchAppendOptions::default()).await.unwrap();
    for n in 0..3 {
        let written = batch
            .append_to_stream("s", ExpectedRevision::Any, vec![event(n)])
            .await
            .unwrap();
        assert_eq!(written.current_revision(), Some(n as u64));
    }
    let wrong = batch
        .append_to_stream("s", ExpectedRevision::NoStream, vec![event(9)])
        .await;
    assert!(
        matches!(&wrong, Err(Error::Grpc { code, .. }) if *code == Code::AlreadyExists),
        "{wrong:?}"
    );
}
