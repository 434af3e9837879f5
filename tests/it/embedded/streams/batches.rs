//! `BatchAppend`: many appends on one call, written in the order in which they came, each answered as
//! soon as its answer is known.

use eventstore::{BatchAppendOptions, Error, ExpectedRevision};
use prost::Message as _;
use tonic::Code;
use uuid::Uuid;

use super::{put, server, shows};
use crate::support::{
    eventstore::{client_of, event},
    raw::{
        BatchAppendReq, BatchAppendResp, Empty, Expect, ProposedMessage, Time, WireUuid, WrongDetail, expecting, id,
        many_proposed, proposed, proposed_as, text, without,
    },
};

fn whole(n: u128, stream: &str, expect: Expect, events: Vec<ProposedMessage>) -> BatchAppendReq {
    // Here the cases that say nothing are another kind of nothing; on the wire they are the same.
    BatchAppendReq {
        correlation_id: Some(WireUuid::of(Uuid::from_u128(n), true)),
        options: Some(expecting(stream, expect)),
        messages: events,
        is_final: true,
    }
}

fn correlation(answer: &BatchAppendResp) -> u128 {
    id(answer.correlation_id.as_ref()).as_u128()
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
            whole(u128::from(n) + 1, "s", expect, vec![proposed(u128::from(n) + 1)])
        })
        .collect();
    let (answers, end) = raw.batch(parts).await;
    assert!(end.is_none(), "{end:?}");
    assert_eq!(answers.len(), 300);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(correlation(answer), n as u128 + 1);
        assert_eq!(text(answer.stream.as_ref()), "s");
        let success = answer.success.as_ref().unwrap();
        assert_eq!(success.current_revision, Some(n as u64));
        assert!(success.position.is_some() && success.no_position.is_none());
    }
    assert_eq!(shows(&raw, "s").await.len(), 300);
}

#[tokio::test]
async fn an_append_may_come_in_parts_and_between_others() {
    let (_server, raw) = server().await;
    let part = |n, options, ids: std::ops::Range<u128>, last| BatchAppendReq {
        correlation_id: Some(WireUuid::of(Uuid::from_u128(n), true)),
        options,
        messages: many_proposed(ids),
        is_final: last,
    };
    let any = |stream| Some(expecting(stream, Expect::Any));
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
        .map(|answer| (correlation(answer), answer.success.as_ref().unwrap().current_revision))
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
    raw.delete("Tombstone", expecting("gone", Expect::Any)).await.unwrap();
    let large = proposed_as(9, "T", "application/octet-stream", vec![0; MAX]);
    let (answers, end) = raw
        .batch(vec![
            whole(1, "three", Expect::At(0), many_proposed(9..10)),
            whole(2, "none", Expect::Exists, many_proposed(9..10)),
            whole(3, "gone", Expect::Any, many_proposed(9..10)),
            whole(4, "large", Expect::Any, vec![large]),
            whole(5, "bad", Expect::Any, vec![without(proposed(9), "type")]),
            whole(6, "nil", Expect::Any, vec![proposed(0)]),
            whole(7, "good", Expect::NoStream, many_proposed(9..11)),
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
    assert_eq!(answers[6].success.as_ref().unwrap().current_revision, Some(1));
    assert_eq!(answers[7].success.as_ref().unwrap().no_stream, Some(Empty {}));
    for stream in ["large", "bad", "nil"] {
        assert_eq!(shows(&raw, stream).await, [format!("no {stream}")]);
    }
}

#[tokio::test]
async fn what_cannot_be_done_fails_alone() {
    let (_server, raw) = server().await;
    let good = |n, stream| whole(n, stream, Expect::Any, many_proposed(1..2));
    let nobody = BatchAppendReq {
        correlation_id: None,
        ..good(1, "s")
    };
    let (_, end) = raw.batch(vec![nobody]).await;
    assert_eq!(end.unwrap().code(), Code::InvalidArgument);
    // Parts of nothing are passed over; an append to nowhere says so.
    let stray = BatchAppendReq {
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
        let mut late = whole(n, "s", Expect::Any, many_proposed(1..2));
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
