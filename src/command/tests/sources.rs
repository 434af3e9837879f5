//! Where states come from and where they are kept.

use std::sync::Arc;

use uuid::Uuid;

use super::kit::*;
use crate::{
    command::{
        Context, Replicas, Repository, SnapshotEvents,
        base::{Base, Lineage},
        observe::Origin,
        snapshots::{Snapshot, Snapshots, base_of},
    },
    projection::{Fold, StoredState},
    replica::{Header, Replica, StoreError},
    testing::MemoryStore,
};

fn without_times(replica: Replica) -> (Header, Option<StoredState>) {
    (replica.header, replica.view)
}

#[tokio::test(start_paused = true)]
async fn a_write_through_is_the_replica_that_the_daemon_would_have_put() {
    let world = World::with(&[1, 2]);
    // Its clock is not ours.
    world
        .journal
        .set_now(chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::days(3));
    let bank = world.through();
    bank.execute("1", &Do::Split(4, 8)).await.unwrap();
    bank.execute("1", &Do::Deposit(16)).await.unwrap();
    let written = world.store.stored(STREAM).unwrap();
    let daemon = World {
        journal: world.journal.clone(),
        ..World::default()
    };
    daemon.project(STREAM, usize::MAX).await;
    assert_eq!(
        without_times(written),
        without_times(daemon.store.stored(STREAM).unwrap())
    );
    // Beside the daemon, either first.
    world.deposit(&[32]);
    world.project(STREAM, usize::MAX).await;
    bank.execute("1", &Do::Deposit(64)).await.unwrap();
    daemon.project(STREAM, usize::MAX).await;
    let written = world.store.stored(STREAM).unwrap();
    assert_eq!(
        without_times(written),
        without_times(daemon.store.stored(STREAM).unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn administered_replicas_are_left_to_the_daemon() {
    let world = World::with(&[1]);
    let bank = world.through();
    bank.execute("1", &Do::Deposit(2)).await.unwrap();
    world.store.change(STREAM, |replica| replica.header.generation = 3);
    bank.execute("1", &Do::Deposit(4)).await.unwrap();
    let header = world.store.stored(STREAM).unwrap().header;
    assert_eq!(
        (header.version, header.generation),
        (Some(2), 3),
        "with the generation it found"
    );
    let mark = crate::replica::Quarantine {
        at: 3,
        reason: "x".into(),
        by: "y".into(),
    };
    world.store.change(STREAM, |replica| {
        replica.header.generation = 4;
        replica.header.quarantine = Some(mark.clone());
    });
    bank.execute("1", &Do::Deposit(8)).await.unwrap();
    let header = world.store.stored(STREAM).unwrap().header;
    assert_eq!(
        (header.version, header.quarantine),
        (Some(2), Some(mark)),
        "marks are not ours to clear"
    );
    assert_eq!(bank.execute("1", &Do::Deposit(0)).await.unwrap().state.cents, 15);
}

#[tokio::test(start_paused = true)]
async fn snapshot_events_beside_the_stream() {
    let world = World::default();
    let bank = || {
        let snapshots = SnapshotEvents::new(world.journal.clone(), 10);
        Repository::<Account, _, _>::new(world.journal.clone(), snapshots).with_settings(settings())
    };
    let warm = bank();
    for _ in 0..25 {
        warm.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    let stream = SnapshotEvents::<crate::testing::MemoryJournal>::stream(&fold(), STREAM);
    assert_eq!(world.journal.all(&stream).len(), 2, "every ten events");
    let metadata = world.journal.all(&format!("$${stream}"));
    assert_eq!(&*metadata[0].data, br#"{"$maxCount":1}"#);
    world.journal.reset_calls();
    let done = bank().execute("1", &Do::Withdraw(100)).await.unwrap_err();
    assert_eq!(done.class(), "rejected");
    assert_eq!(
        world.journal.calls().events_read,
        1 + 6,
        "the newest snapshot, its own event and five more"
    );
    // A snapshot that does not decode is none.
    world.journal.push(
        &stream,
        vec![crate::testing::journal::event("Snapshot", r#"{"version":1}"#)],
    );
    assert_eq!(bank().execute("1", &Do::Deposit(1)).await.unwrap().state.cents, 26);
    assert_eq!(fold().schema(), 1);
}

/// A cache before the table that answers what it took in once, however old, as DAX does.
#[derive(Clone)]
struct ReadThrough {
    table: Replicas<MemoryStore>,
    cached: Option<Replica>,
}

impl Snapshots for ReadThrough {
    const ORIGIN: Origin = Origin::Replica;

    async fn load(&self, fold: &dyn Fold, stream: &str, fresh: bool) -> Result<Snapshot, StoreError> {
        if fresh {
            return self.table.load(fold, stream, true).await;
        }
        let cached = self.cached.clone();
        Ok(cached.map_or(Snapshot::Nothing(Lineage::Absent), |replica| {
            Snapshot::Base(base_of(fold, replica).unwrap())
        }))
    }

    async fn keep(&self, _: &dyn Fold, _: &Arc<str>, _: &mut Base, _: u64) -> Option<bool> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_through_caches_miss_or_old_answer_costs_one_read_of_the_table_and_no_replay() {
    let world = World::with(&[1]);
    world.project(STREAM, usize::MAX).await;
    let old = world.store.stored(STREAM).unwrap();
    let mut foreign = old.clone();
    foreign.header.event.as_mut().unwrap().id = Uuid::from_u128(7);
    // Ten pages, as these settings have it.
    for _ in 0..10 {
        world.deposit(&[1; PAGE.events]);
    }
    world.project(STREAM, usize::MAX).await;

    // What each costs EventStoreDB: a first page that shows that there are more, and the append; an
    // old answer is found out by the append that it loses, one from another past is thrown away too.
    // Beside the append of each stored state its event is read.
    for (what, cached, expected) in [
        ("a miss", None, 3),
        ("old", Some(old), 5),
        ("foreign", Some(foreign), 6),
    ] {
        let before = world.trips();
        let snapshots = ReadThrough {
            table: Replicas::new(world.store.clone()),
            cached,
        };
        let bank = Repository::<Account, _, _>::new(world.journal.clone(), snapshots).with_settings(settings());
        let done = bank.execute("1", &Do::Deposit(1)).await.unwrap();
        assert_eq!(done.state, world.truth(STREAM), "{what}");
        let after = world.trips();
        assert_eq!((after.0 - before.0, after.1 - before.1), (expected, 1), "{what}");
        world.project(STREAM, usize::MAX).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresher_snapshot_is_no_way_past_a_command_that_landed() {
    let world = World::with(&[1; 10]);
    world.project(STREAM, usize::MAX).await;
    let old = world.store.stored(STREAM).unwrap();
    let id = Uuid::from_u128(1);
    let first = world
        .bank()
        .execute_with("1", &Do::Deposit(2), Context::with_id(id))
        .await
        .unwrap();
    for _ in 0..10 {
        world.deposit(&[1; PAGE.events]);
    }
    world.project(STREAM, usize::MAX).await;
    for cached in [None, Some(old)] {
        let snapshots = ReadThrough {
            table: Replicas::new(world.store.clone()),
            cached,
        };
        let bank = Repository::<Account, _, _>::new(world.journal.clone(), snapshots).with_settings(settings());
        let again = bank
            .execute_with("1", &Do::Deposit(2), Context::with_id(id))
            .await
            .unwrap();
        assert_eq!((again.revision, again.state), (first.revision, first.state.clone()));
        assert_eq!(world.journal.all(STREAM).len(), 81, "once");
    }
}
