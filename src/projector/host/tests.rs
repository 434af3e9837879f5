//! Lanes that work for readers of the source, on stores in memory and under virtual time.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::{
    journal::{NewEvent, ReadLimit},
    projection::{MergePatch, OnDeletion, OnLostHistory, OnRevival},
    projector::{
        lane::{Arrival, LaneRules},
        meter::NoMeter,
    },
    replica::MarkKind,
    testing::{MemoryJournal, MemoryStore},
};

/// What lanes of a merge-patch over `order` are and may take.
pub(in crate::projector) fn spec() -> LanesSpec {
    let form = item::Rules::new("order");
    LanesSpec {
        rules: Arc::new(LaneRules {
            fold: Arc::new(MergePatch::new("order", 1, "category:order".parse().unwrap(), "test")),
            form: Arc::new(move |stream, header, encoded| item::prepare(encoded, &form, stream, header)),
            on_deletion: OnDeletion::Keep,
            on_revival: OnRevival::Continue,
            on_lost_history: OnLostHistory::Partial,
            read: ReadLimit {
                events: 100,
                bytes: 10_000,
            },
            behind_after: Duration::MAX,
            min_write_interval: Duration::ZERO,
            keep_flush: Duration::from_secs(30),
            commands: 4,
        }),
        memory: 1_000_000,
        reads: 4,
        writes: 2,
        quarantine_limit: 10,
    }
}

/// An event that changes the state.
pub(in crate::projector) fn change(n: u128) -> NewEvent {
    NewEvent {
        id: Uuid::from_u128(n),
        kind: "Changed".into(),
        json: true,
        data: r#"{"n":1}"#.into(),
        metadata: bytes::Bytes::new(),
    }
}

fn work(stream: &str, arrival: Arrival) -> Work {
    Work {
        stream: stream.into(),
        arrival,
        at: clock::now(),
    }
}

fn host(journal: &MemoryJournal, table: &MemoryStore) -> Host<MemoryJournal, MemoryStore> {
    let stores = Stores::new(journal.clone(), table.clone(), Arc::new(NoMeter));
    Host::new(Arc::new(spec()), "g".into(), stores, ReplicaCache::new(0))
}

/// Runs lanes until the replica has this version.
async fn until_stored(host: &mut Host<MemoryJournal, MemoryStore>, table: &MemoryStore, stream: &str, version: u64) {
    let stored = async {
        while table
            .stored(stream)
            .is_none_or(|stored| stored.header.version != Some(version))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = stored => {}
        halt = host.alone() => panic!("{halt:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn work_of_a_reader_is_folded_and_put_while_no_group_is_there() {
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    journal.push("order-1", [1, 2].map(change).into());
    let mut host = host(&journal, &table);
    let reader = host.reader();
    // A reader of `$all` comes upon streams that have no replica, too.
    assert!(reader.look_at(work("$marks", Arrival::Onward)).await);
    assert!(
        reader
            .look_at(work("order-1", Arrival::Revision(1, clock::now())))
            .await
    );
    until_stored(&mut host, &table, "order-1", 1).await;
    assert_eq!(table.streams(), ["order-1"]);
    assert_eq!(host.take_settled(), [], "nobody waits to hear of it");
    // It asks for what is new by a revision, or for whatever there is.
    journal.push("order-1", vec![change(3)]);
    assert!(reader.look_at(work("order-1", Arrival::Onward)).await);
    until_stored(&mut host, &table, "order-1", 2).await;
    drop(host);
    assert!(
        !reader.look_at(work("order-1", Arrival::Onward)).await,
        "it has stopped"
    );
}

#[tokio::test(start_paused = true)]
async fn work_with_a_ticket_gives_it_back_when_it_is_settled() {
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    journal.push("order-1", [1, 2].map(change).into());
    let mut host = host(&journal, &table);
    host.take(work("order-1", Arrival::Revision(0, clock::now())), None);
    host.take(work("order-1", Arrival::Revision(1, clock::now())), Some(Ticket(7)));
    assert!(
        !host.is_empty() && host.take_settled().is_empty(),
        "nothing is durable yet"
    );
    until_stored(&mut host, &table, "order-1", 1).await;
    // What was put is told with the lane's next step.
    let settled = async {
        while !host.is_empty() {
            host.turn().await;
        }
        host.take_settled()
    };
    let ticket = Ticket(7);
    assert_eq!(settled.await, [Settled { ticket, park: None }]);
}

/// What a group that is gone has handed over takes memory until it is done, and no longer.
#[tokio::test(start_paused = true)]
async fn work_that_is_nobodys_stays_in_the_budget() {
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    let mut spec = spec();
    spec.memory = 1_000;
    let stores = Stores::new(journal.clone(), table.clone(), Arc::new(NoMeter));
    let mut host = Host::new(Arc::new(spec), "g".into(), stores, ReplicaCache::new(0));
    assert!(host.has_room());
    for n in 0..2 {
        let stream = format!("order-{n}");
        journal.push(&stream, vec![change(n)]);
        let event = journal.all(&stream).remove(0);
        host.take(work(&stream, Arrival::Event(event)), Some(Ticket(n as u64)));
    }
    assert!(!host.has_room());
    host.begin_time("The group is gone.");
    assert!(!host.has_room(), "lanes hold it still");
    for n in 0..2 {
        until_stored(&mut host, &table, &format!("order-{n}"), 0).await;
    }
    while !host.is_empty() {
        assert_eq!(host.turn().await, None);
    }
    assert!(host.has_room());
    assert_eq!(host.take_settled(), [], "whoever held its ticket is gone");
}

/// An event that came before the event store was another one is not folded: the stream says what there is.
#[tokio::test(start_paused = true)]
async fn what_was_in_hand_at_another_time_is_read_again() {
    let (journal, other, table) = (MemoryJournal::new(), MemoryJournal::new(), MemoryStore::new());
    journal.push("order-1", [1, 2].map(change).into());
    other.push("order-1", [1, 7].map(change).into());
    let mut host = host(&journal, &table);
    host.take(work("order-1", Arrival::Revision(0, clock::now())), None);
    until_stored(&mut host, &table, "order-1", 1).await;
    journal.push("order-1", vec![change(3)]);
    let lost = other.push("order-1", vec![change(8)]);
    assert_eq!(lost, Some(2));
    // It never was in this store.
    let event = other.all("order-1").remove(2);
    host.take(work("order-1", Arrival::Event(event)), Some(Ticket(1)));
    host.begin_time("The connection is another one.");
    until_stored(&mut host, &table, "order-1", 2).await;
    let last = table.stored("order-1").and_then(|stored| stored.header.event);
    assert_eq!(last.map(|event| event.id), Some(Uuid::from_u128(3)));
}

/// What was seen of a stream before a connection ended need not be so after it: a cached base is seen again
/// before anything is folded on it.
#[tokio::test(start_paused = true)]
async fn a_base_of_another_time_is_seen_again() {
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    journal.push("order-1", [1, 2].map(change).into());
    let stores = Stores::new(journal.clone(), table.clone(), Arc::new(NoMeter));
    let mut host = Host::new(Arc::new(spec()), "g".into(), stores, ReplicaCache::new(1 << 20));
    host.take(work("order-1", Arrival::Revision(1, clock::now())), None);
    until_stored(&mut host, &table, "order-1", 1).await;
    while !host.is_empty() {
        assert_eq!(host.turn().await, None);
    }
    // An older copy of the event store, and what others have written since.
    journal.restore("order-1", 1);
    journal.push("order-1", [8, 9].map(change).into());
    host.begin_time("The connection is another one.");
    let next = journal.all("order-1").remove(2);
    host.take(work("order-1", Arrival::Event(next)), None);
    while !host.is_empty() {
        assert_eq!(host.turn().await, None);
    }
    let header = table.stored("order-1").unwrap().header;
    let mark = header.quarantine.map(|mark| mark.kind());
    assert_eq!((header.version, mark), (Some(1), Some(MarkKind::Diverged)));
}
