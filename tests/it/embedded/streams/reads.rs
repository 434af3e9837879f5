//! Reads of a stream: both ways, every window, what newer clients are told of its bounds, and what is
//! no read at all.

use tonic::Code;

use super::{beginning, describe, put, server};
use crate::support::{
    eventstore::{append, client_of, read},
    raw::{
        At, Empty, Expect, FilterOptions, Raw, ReadOptions, ReadResp, Reading as _, StreamIdentifier, UuidOption,
        all_shown, expecting, of_all, of_stream, proposed_as, said, stream_filter, type_filter,
    },
};

async fn read_of(raw: &Raw, options: ReadOptions) -> Vec<String> {
    let (answers, end) = raw.read_all(options).await;
    let mut all = all_shown(&answers);
    all.extend(end.map(|status| format!("{:?}", status.code())));
    all
}

fn range(revisions: impl IntoIterator<Item = u64>) -> Vec<String> {
    revisions.into_iter().map(|n| format!("{n}@s")).collect()
}

#[tokio::test]
async fn forwards_and_backwards_from_everywhere_in_every_size() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..8).await;
    let forwards = |at| of_stream("s", at);
    let backwards = |at| of_stream("s", at).backwards();
    for from in 0..10 {
        for count in [1, 2, 3, 7, 100, u64::MAX] {
            let size = usize::try_from(count).unwrap_or(usize::MAX);
            let options = forwards(At::Number(from)).at_most(count);
            let expected: Vec<_> = range((from..7).take(size));
            assert_eq!(read_of(&raw, options).await, expected, "from {from}, {count}");
            let options = backwards(At::Number(from)).at_most(count);
            let expected: Vec<_> = range((0..=from.min(6)).rev().take(size));
            assert_eq!(read_of(&raw, options).await, expected, "back from {from}, {count}");
        }
    }
    assert_eq!(read_of(&raw, forwards(At::Start)).await, range(0..7));
    assert_eq!(read_of(&raw, backwards(At::End)).await, range((0..7).rev()));
    assert_eq!(read_of(&raw, backwards(At::End).at_most(2)).await, range([6, 5]));
    assert_eq!(read_of(&raw, backwards(At::Start)).await, range([0]));
    assert_eq!(
        read_of(&raw, backwards(At::Number(u64::MAX)).at_most(1)).await,
        range([6])
    );
    for nothing in [forwards(At::End), forwards(At::Number(u64::MAX))] {
        assert_eq!(
            read_of(&raw, nothing).await,
            ["Unknown"],
            "no stream goes on behind its end"
        );
    }
    let none = forwards(At::Start).at_most(0);
    assert_eq!(read_of(&raw, none).await, ["Unknown"]);
}

#[tokio::test]
async fn windows_of_a_truncated_stream_begin_where_it_does() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..8).await;
    describe(&raw, "s", r#"{"$tb":3}"#).await;
    for (options, seen) in [
        (of_stream("s", At::Start).at_most(2), vec![3, 4]),
        (of_stream("s", At::Number(1)).at_most(2), vec![3, 4]),
        (of_stream("s", At::Number(5)), vec![5, 6]),
        (of_stream("s", At::End).backwards(), vec![6, 5, 4, 3]),
        (of_stream("s", At::Number(4)).backwards(), vec![4, 3]),
        (of_stream("s", At::Number(2)).backwards(), vec![]),
    ] {
        assert_eq!(read_of(&raw, options.clone()).await, range(seen), "{options:?}");
    }
}

#[tokio::test]
async fn newer_clients_are_told_the_bounds() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..101).await;
    describe(&raw, "s", r#"{"$tb":60}"#).await;
    let bounds = async |options: ReadOptions| {
        let (answers, _) = raw.read_all(options.compatible()).await;
        let told = |answer: &&String| answer.starts_with("first") || answer.starts_with("last");
        let all = all_shown(&answers);
        let bounds: Vec<_> = all.iter().filter(told).cloned().collect();
        // The first before every event, the last behind.
        if let Some(first) = all.iter().position(|one| one.starts_with("first")) {
            assert_eq!(first, 0);
        }
        assert!(all.last().is_none_or(|last| last.starts_with("last")));
        bounds
    };
    let from = |revision| of_stream("s", At::Number(revision));
    // EventStoreDB says where a stream begins when the 32 that it looks at first, or fewer, are gone.
    assert_eq!(bounds(from(0)).await, ["first 60", "last 99"]);
    assert_eq!(bounds(from(28)).await, ["first 60", "last 99"]);
    assert_eq!(bounds(from(29)).await, ["last 99"]);
    assert_eq!(bounds(from(29).at_most(31)).await, ["first 60", "last 99"]);
    assert_eq!(bounds(from(58).at_most(2)).await, ["first 60", "last 99"]);
    assert_eq!(bounds(from(59).at_most(2)).await, ["last 99"]);
    assert_eq!(bounds(from(60)).await, ["last 99"]);
    assert_eq!(bounds(from(100)).await, ["last 99"]);
    assert_eq!(bounds(from(101)).await, ["first 100", "last 99"]);
    assert_eq!(bounds(from(5_000)).await, ["first 100", "last 99"]);
    assert_eq!(bounds(of_stream("s", At::End).backwards()).await, ["last 99"]);
    // A stream that is truncated as a whole, or beyond its end, or too old, says so wherever it is read.
    let whole = |revision| from(revision).at_most(10);
    for (metadata, told) in [
        (r#"{"$tb":100}"#, &["first 100", "last 99"][..]),
        (r#"{"$tb":500}"#, &["first 500", "first 100", "last 99"]),
    ] {
        describe(&raw, "s", metadata).await;
        assert_eq!(bounds(whole(0)).await, told);
        assert_eq!(bounds(whole(99)).await, told);
        let behind = if told.len() == 2 { &told[1..] } else { told };
        assert_eq!(bounds(whole(100)).await, behind);
        assert_eq!(bounds(of_stream("s", At::End).backwards()).await, ["last 99"]);
    }
    describe(&raw, "s", r#"{"$tb":60}"#).await;
    // Older ones are told nothing but events.
    assert_eq!(read_of(&raw, from(99)).await, ["99@s"]);
    let (answers, _) = raw.read_all(of_stream("none", At::Start).compatible()).await;
    assert_eq!(all_shown(&answers), ["no none"]);
}

#[tokio::test]
async fn a_long_stream_comes_whole_and_in_order() {
    let (server, raw) = server().await;
    let client = client_of(&server.connection_string());
    let ids = append(&client, "s", 3_000).await;
    let events = read(&client, "s", false).await.unwrap();
    let seen: Vec<_> = events.iter().map(|event| event.get_original_event().id).collect();
    assert_eq!(seen, ids);
    let revisions: Vec<_> = events.iter().map(|event| event.get_original_event().revision).collect();
    assert_eq!(revisions, (0..3_000).collect::<Vec<_>>());
    let positions: Vec<_> = events
        .iter()
        .map(|one| one.get_original_event().position.commit)
        .collect();
    assert!(positions.is_sorted_by(|one, next| one < next));
    let back = of_stream("s", At::End).backwards();
    assert_eq!(read_of(&raw, back).await, range((0..3_000).rev()));
}

#[tokio::test]
async fn large_events_do_not_come_in_one_piece_of_memory_but_all_come() {
    let (_server, raw) = server().await;
    let begin = beginning(&raw).await;
    for n in 0..20 {
        let event = proposed_as(n + 1, "T", "application/octet-stream", vec![n as u8; 1_000_000]);
        raw.append(expecting("s", Expect::Any), vec![event]).await.unwrap();
    }
    for options in [
        of_stream("s", At::Start),
        of_stream("s", At::End).backwards(),
        of_all(begin),
        of_all(At::End).backwards().at_most(20),
    ] {
        let (answers, end) = raw.read_all(options.clone()).await;
        assert!(end.is_none());
        let mut first_bytes: Vec<_> = answers
            .iter()
            .map(|answer| answer.event.as_ref().unwrap().event.as_ref().unwrap().data[0])
            .collect();
        if options.direction == 1 {
            first_bytes.reverse();
        }
        assert_eq!(first_bytes, (0..20).collect::<Vec<u8>>());
    }
}

#[tokio::test]
async fn what_is_no_read_is_refused() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    let stream = of_stream("s", At::Start);
    let all = of_all(At::Start);
    let filter = stream_filter(&["s"], 10);
    let nowhere = |options: &ReadOptions| {
        let mut options = options.clone();
        if let Some(stream) = &mut options.stream {
            stream.start = None;
        }
        if let Some(all) = &mut options.all {
            all.start = None;
        }
        options
    };
    let mut unnamed = stream.clone();
    unnamed.stream.as_mut().unwrap().stream = None;
    let mut no_text = stream.clone();
    no_text.stream.as_mut().unwrap().stream = Some(StreamIdentifier {
        name: vec![0xff].into(),
    });
    let refused = [
        // Subscriptions go forwards, and those to a stream have no filter.
        stream.clone().filtered(filter.clone()),
        stream.clone().filtered(filter.clone()).subscribed(),
        stream.clone().subscribed().backwards(),
        all.clone().subscribed().backwards(),
        // A filter needs a window and an interval.
        all.clone()
            .filtered(FilterOptions {
                checkpoint_interval_multiplier: 0,
                ..filter.clone()
            })
            .subscribed(),
        all.clone()
            .filtered(FilterOptions {
                max: None,
                ..filter.clone()
            })
            .subscribed(),
        all.clone().filtered(FilterOptions {
            stream: None,
            ..filter.clone()
        }),
        all.clone().filtered(type_filter("(")),
        // What is not said.
        ReadOptions {
            uuid: None,
            ..stream.clone()
        },
        ReadOptions {
            uuid: Some(UuidOption::default()),
            ..stream.clone()
        },
        ReadOptions {
            count: None,
            ..stream.clone()
        },
        ReadOptions {
            direction: 7,
            ..stream.clone()
        },
        ReadOptions {
            stream: None,
            ..stream.clone()
        },
        nowhere(&stream),
        nowhere(&all),
        unnamed,
        no_text,
    ];
    for options in refused {
        let (answers, end) = raw.read_all(options.clone()).await;
        assert!(answers.is_empty(), "{options:?}");
        assert_eq!(
            end.map(|status| status.code()),
            Some(Code::InvalidArgument),
            "{options:?}"
        );
    }
    let without_options: Result<ReadResp, _> = raw.ask("event_store.client.streams.Streams/Read", vec![Empty {}]).await;
    let status = without_options.unwrap_err();
    assert_eq!(
        (status.code(), said(&status, "exception")),
        (Code::InvalidArgument, None)
    );
}
