//! Sources read beside their groups: newest entry, entries, standstill.

use std::time::Duration;

use projector::{
    journal::{
        Expected, Journal,
        esdb::EventStore,
        feed::{Feed, Mark, Said, Subscription as _},
    },
    projection::{Filter, Source},
};

use super::{events, store};
use crate::support::{
    node::{Fault, Node, until},
    raw::entry,
};

/// Where a record stands in the log.
async fn position(node: &Node, stream: &str, revision: u64) -> u64 {
    node.record(stream, revision).await.commit_position
}

/// When it was written, in nanoseconds.
async fn created(node: &Node, stream: &str, revision: u64) -> Option<i64> {
    let record = node.record(stream, revision).await;
    let ticks: i64 = entry(&record.metadata, "created").parse().unwrap();
    Some(ticks * 100)
}

async fn write(store: &EventStore, stream: &str, numbers: std::ops::Range<u128>) {
    let deadline = Duration::from_secs(10);
    store
        .append(stream, Expected::NoStream, events(numbers), deadline)
        .await
        .unwrap();
}

fn category() -> Source {
    Source::Category("a".into())
}

fn prefix(prefix: &str) -> Source {
    Source::All(Filter::StreamPrefix(vec![prefix.into()]))
}

#[tokio::test]
async fn the_newest_entry_is_the_feeds_own() {
    let node = Node::start().await;
    let store = store(&node);
    assert_eq!(store.head(&category()).await, Ok(None));
    assert_eq!(store.head(&prefix("a-")).await, Ok(None));
    write(&store, "a-1", 0..3).await;
    write(&store, "b-1", 10..12).await;
    // Of the category the link, of a stream and of `$all` the event.
    let head = store.head(&category()).await.unwrap().unwrap();
    assert_eq!(
        (head.revision, head.position),
        (Some(2), Some(position(&node, "$ce-a", 2).await))
    );
    assert_eq!(head.created.timestamp_nanos_opt(), created(&node, "$ce-a", 2).await);
    let head = store.head(&Source::Stream("a-1".into())).await.unwrap().unwrap();
    assert_eq!(head.revision, Some(2));
    let head = store.head(&prefix("a-")).await.unwrap().unwrap();
    assert_eq!(
        (head.revision, head.position),
        (None, Some(position(&node, "a-1", 2).await))
    );
    assert_eq!(head.created.timestamp_nanos_opt(), created(&node, "a-1", 2).await);
}

#[tokio::test]
async fn the_newest_match_is_found_anew_reading_only_what_came_since() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..1).await;
    write(&store, "b-1", 10..1_210).await;
    let at = async || store.head(&prefix("a-")).await.unwrap().unwrap().position;
    assert_eq!(at().await, Some(position(&node, "a-1", 0).await));
    let pages = node.calls("Streams/Read").len();
    assert_eq!(at().await, Some(position(&node, "a-1", 0).await));
    assert_eq!(node.calls("Streams/Read").len(), pages + 1);
    write(&store, "a-2", 20..21).await;
    assert_eq!(at().await, Some(position(&node, "a-2", 0).await));
}

/// An EventStoreDB in memory that was started again, or one restored to an earlier time.
#[tokio::test]
async fn the_newest_match_of_a_log_that_became_shorter_is_of_that_log() {
    let mut node = Node::start().await;
    let store = store(&node);
    write(&store, "b-1", 10..40).await;
    write(&store, "a-1", 0..30).await;
    let at = async || {
        store
            .head(&prefix("a-"))
            .await
            .map(|head| head.and_then(|head| head.position))
    };
    assert_eq!(at().await, Ok(Some(position(&node, "a-1", 29).await)));
    node.replace().await;
    until("the other server is spoken to", async || at().await == Ok(None)).await;
    write(&store, "a-1", 0..1).await;
    assert_eq!(at().await, Ok(Some(position(&node, "a-1", 0).await)));
}

#[tokio::test]
async fn entries_come_in_order_behind_a_mark() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    write(&store, "b-1", 10..12).await;
    write(&store, "a-2", 20..21).await;
    node.soft_delete("a-1").await;

    let read = async |source: &Source, after, max| store.entries(source, after, max).await.unwrap();
    let all = read(&category(), None, 100).await;
    let marks: Vec<Mark> = all.iter().map(|(mark, _)| *mark).collect();
    assert_eq!(marks, (0..5).map(Mark::Revision).collect::<Vec<_>>());
    // The deleted stream's links lead nowhere any more.
    let moved = |stream: &str, revision| Said::Moved {
        stream: stream.into(),
        revision,
    };
    assert_eq!(all[0].1.said, moved("a-1", Some(0)));
    assert!(matches!(&all[3].1.said, Said::Event(event) if &*event.stream == "a-2"));
    assert_eq!(all[4].1.said, moved("a-1", None));
    assert_eq!(read(&category(), Some(Mark::Revision(2)), 1).await, all[3..4]);
    assert_eq!(read(&category(), Some(Mark::Revision(4)), 9).await, []);
    assert_eq!(read(&Source::Category("none".into()), None, 9).await, []);

    let filtered = read(&prefix("a-"), None, 100).await;
    let marks: Vec<Mark> = filtered.iter().map(|(mark, _)| *mark).collect();
    // Links and `b-1` stand between; the last is the deletion's metadata.
    let mut ours = Vec::new();
    for (stream, revision) in [("a-1", 0), ("a-1", 1), ("a-1", 2), ("a-2", 0), ("$$a-1", 0)] {
        ours.push(Mark::Position(position(&node, stream, revision).await));
    }
    assert_eq!(marks, ours);
    assert_eq!(filtered[4].1.said, moved("a-1", None));
    let rest = read(&prefix("a-"), Some(filtered[1].0), 2).await;
    assert_eq!(rest, filtered[2..4]);
    assert_eq!(read(&prefix("none"), None, 9).await, []);

    let wrong = store.entries(&category(), Some(Mark::Position(1)), 1).await;
    assert_eq!(wrong.unwrap_err().class(), "refused");
}

#[tokio::test]
async fn a_group_delivers_what_its_source_holds() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    node.tombstone("a-1").await;
    write(&store, "a-2", 5..8).await;
    for source in [category(), prefix("a-"), Source::Stream("a-2".into())] {
        let spec = super::groups::group(source.clone());
        store.ensure(&spec).await.unwrap();
        let mut subscription = store.subscribe(&spec, 100).await.unwrap();
        let entries = store.entries(&source, None, 100).await.unwrap();
        assert!(entries.len() >= 3);
        for (_, entry) in entries {
            assert_eq!(subscription.next().await, Ok(entry), "{source}");
        }
    }
}

#[tokio::test]
async fn a_category_that_stands_still_is_noticed_by_whoever_may_read_all() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    let stalled = async || {
        let head = store.head(&category()).await.unwrap();
        store.stalled(&category(), head.as_ref()).await.unwrap()
    };
    assert_eq!(stalled().await, None);
    node.stop_links().await;
    // Stopped, but there is nothing that it left out.
    assert_eq!(stalled().await, None);
    write(&store, "b-1", 10..11).await;
    write(&store, "a-2", 20..22).await;
    // Links come after their events, so a moment's lag is none.
    assert_eq!(stalled().await, None);
    until("it lags by more than a moment", async || stalled().await.is_some()).await;
    let since = stalled().await.unwrap();
    assert_eq!(since.timestamp_nanos_opt(), created(&node, "a-2", 0).await);
    for source in [prefix("a-"), Source::Stream("a-1".into())] {
        assert_eq!(store.stalled(&source, None).await, Ok(None));
    }
}

#[tokio::test]
async fn a_plain_user_asks_for_the_projections_status() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    let head = store.head(&category()).await.unwrap();
    let stalled = async || {
        node.inject("Streams/Read", 1, Fault::denied());
        store.stalled(&category(), head.as_ref()).await.unwrap()
    };
    assert_eq!(stalled().await, None);
    node.stop_links().await;
    assert_eq!(stalled().await, head.as_ref().map(|head| head.created));
}

/// With `last`, `a-b-1` is of category `a-b`: no link of `a` leads there, and none is missing.
#[tokio::test]
async fn a_category_is_told_as_the_servers_own_projection_tells_it() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    node.stop_links().await;
    write(&store, "a-b-1", 10..11).await;
    let updated = async |query: &[u8]| {
        let stream = "$projections-$by_category";
        node.push(stream, "$ProjectionUpdated", query).await;
    };
    updated(br#"{"handlerType":"native:x","query":"last\r\n-"}"#).await;
    let stalled = async |category: &str| {
        let source = Source::Category(category.into());
        let head = store.head(&source).await.unwrap();
        store.stalled(&source, head.as_ref()).await.unwrap()
    };
    until("its own category lags", async || stalled("a-b").await.is_some()).await;
    assert_eq!(stalled("a").await, None);
    updated(br#"{"query":"first\r\n-"}"#).await;
    assert!(stalled("a").await.is_some());
}

#[tokio::test]
async fn a_page_of_large_events_ends_by_its_bytes() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..1).await;
    let body = format!("\"{}\"", "x".repeat(500_000));
    for _ in 0..20 {
        node.push("b-1", "Counted", body.as_bytes()).await;
    }
    write(&store, "a-2", 1..2).await;
    let pages = async |ask: &dyn Fn() -> futures::future::BoxFuture<'static, usize>| {
        let before = node.calls("Streams/Read").len();
        let found = ask().await;
        (found, node.calls("Streams/Read").len() - before)
    };
    let (here, there) = (store.clone(), store.clone());
    let (found, read) = pages(&move || {
        let store = here.clone();
        Box::pin(async move { store.entries(&prefix("a-"), None, 10).await.unwrap().len() })
    })
    .await;
    assert_eq!(found, 2);
    assert!(read >= 3, "10 MB came in {read} pages");
    let (found, read) = pages(&move || {
        let store = there.clone();
        Box::pin(async move { usize::from(store.head(&prefix("c-")).await.unwrap().is_some()) })
    })
    .await;
    assert_eq!(found, 0);
    assert!(read >= 3, "10 MB came in {read} pages");
}
