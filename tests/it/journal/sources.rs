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
use crate::support::node::{Fault, Node, log::position};

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
    let ticks = node.log(|log| {
        log.records[5].ticks = 17_000_000_001_234_567;
        log.records[4].ticks = 17_000_000_001_234_568;
        (log.records[5].kind.clone(), log.records[4].kind.clone())
    });
    assert_eq!(ticks, ("$>".to_owned(), "Counted".to_owned()));
    // Of the category the link, of a stream and of `$all` the event.
    let head = store.head(&category()).await.unwrap().unwrap();
    assert_eq!((head.revision, head.position), (Some(2), Some(position(5))));
    assert_eq!(head.created.timestamp_subsec_nanos(), 123_456_700);
    let head = store.head(&Source::Stream("a-1".into())).await.unwrap().unwrap();
    assert_eq!(head.revision, Some(2));
    let head = store.head(&prefix("a-")).await.unwrap().unwrap();
    assert_eq!((head.revision, head.position), (None, Some(position(4))));
    assert_eq!(head.created.timestamp_subsec_nanos(), 123_456_800);
}

#[tokio::test]
async fn the_newest_match_is_found_anew_reading_only_what_came_since() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..1).await;
    write(&store, "b-1", 10..1_210).await;
    let at = async || store.head(&prefix("a-")).await.unwrap().unwrap().position;
    assert_eq!(at().await, Some(position(0)));
    let pages = node.calls("Streams/Read").len();
    assert_eq!(at().await, Some(position(0)));
    assert_eq!(node.calls("Streams/Read").len(), pages + 1);
    write(&store, "a-2", 20..21).await;
    assert_eq!(at().await, Some(position(2_402)));
}

#[tokio::test]
async fn entries_come_in_order_behind_a_mark() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    write(&store, "b-1", 10..12).await;
    write(&store, "a-2", 20..21).await;
    node.log(|log| log.soft_delete("a-1"));

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
    let ours: Vec<usize> = filtered
        .iter()
        .map(|(mark, _)| match mark {
            Mark::Position(at) => (*at / 100 - 1) as usize,
            Mark::Revision(_) => panic!("{mark:?}"),
        })
        .collect();
    // Of 0..3, 6 links and `b-1` stand between; the last is the deletion's metadata.
    assert_eq!(ours, [0, 2, 4, 10, 12]);
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
    node.log(|log| log.tombstone("a-1"));
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
    node.log(|log| log.links_stopped = true);
    // Stopped, but there is nothing that it left out.
    assert_eq!(stalled().await, None);
    write(&store, "b-1", 10..11).await;
    write(&store, "a-2", 20..22).await;
    // Links come after their events, so a moment's lag is none.
    assert_eq!(stalled().await, None);
    let hour = 36_000_000_000;
    let oldest = node.log(|log| {
        let (second, first) = (log.records.pop().unwrap(), log.records.pop().unwrap());
        for (mut record, age) in [(first, 2 * hour), (second, hour)] {
            record.ticks -= age;
            log.records.push(record);
        }
        log.records[log.records.len() - 2].ticks
    });
    let since = stalled().await.unwrap();
    assert_eq!(since.timestamp() as u64, oldest / 10_000_000);
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
    node.log(|log| log.links_stopped = true);
    assert_eq!(stalled().await, head.as_ref().map(|head| head.created));
}

/// With `last`, `a-b-1` is of category `a-b`: no link of `a` leads there, and none is missing.
#[tokio::test]
async fn a_category_is_told_as_the_servers_own_projection_tells_it() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    node.log(|log| log.links_stopped = true);
    write(&store, "a-b-1", 10..11).await;
    node.log(|log| {
        let hour = 36_000_000_000;
        log.records.last_mut().unwrap().ticks -= hour;
        log.push(
            "$projections-$by_category",
            "$ProjectionUpdated",
            br#"{"handlerType":"native:x","query":"last\r\n-"}"#,
            true,
        );
    });
    let stalled = async |category: &str| {
        let source = Source::Category(category.into());
        let head = store.head(&source).await.unwrap();
        store.stalled(&source, head.as_ref()).await.unwrap()
    };
    assert_eq!(stalled("a").await, None);
    assert!(stalled("a-b").await.is_some());
    node.log(|log| {
        let first = br#"{"query":"first\r\n-"}"#;
        log.push("$projections-$by_category", "$ProjectionUpdated", first, true);
    });
    assert!(stalled("a").await.is_some());
}

#[tokio::test]
async fn a_page_of_large_events_ends_by_its_bytes() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..1).await;
    node.log(|log| {
        let body = format!("\"{}\"", "x".repeat(500_000));
        for _ in 0..20 {
            log.push("b-1", "Counted", body.as_bytes(), true);
        }
    });
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
