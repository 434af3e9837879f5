//! Where states come from and where they are kept.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::kit::*;
use crate::{
    command::{
        Context, Replicas, Repository, SnapshotEvents,
        base::{Base, Lineage},
        observe::Origin,
        snapshots::{Snapshot, SnapshotError, Snapshots, base_of},
    },
    journal::NewEvent,
    projection::{Fold, StoredState},
    replica::{
        Header, Replica, StoreError,
        item::{KeyKind, Promoted, Rules},
    },
    testing::{AppendFault, MemoryJournal, MemoryStore},
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

/// The daemon started over with the stream's new life: a state of the old one must not take its place.
#[tokio::test(start_paused = true)]
async fn a_stored_replica_of_another_beginning_is_not_written_over() {
    let world = World::with(&[1]);
    let bank = world.through();
    bank.execute("1", &Do::Deposit(2)).await.unwrap();
    world.store.change(STREAM, |replica| {
        replica.header.generation = 1;
        replica.header.first = 1;
    });
    let daemons = world.store.stored(STREAM).unwrap();
    for _ in 0..2 {
        bank.execute("1", &Do::Deposit(4)).await.unwrap();
        assert_eq!(world.store.stored(STREAM).unwrap(), daemons, "left to the daemon");
    }
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

    async fn load(&self, fold: &dyn Fold, stream: &str, fresh: bool) -> Result<Snapshot, SnapshotError> {
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

#[tokio::test(start_paused = true)]
async fn a_write_through_keeps_promoted_attributes() {
    let world = World::with(&[1]);
    let through = |rules| {
        let snapshots = Replicas::new(world.store.clone()).write_through(rules);
        Repository::<Account, _, _>::new(world.journal.clone(), snapshots).with_settings(settings())
    };
    let promoting = || Rules {
        promoted: vec![Promoted::new("owes", "cents", KeyKind::N).unwrap()],
        ..Rules::new("account")
    };
    let promoted = || {
        let stored = world.store.stored(STREAM).unwrap();
        (stored.header.version, stored.promoted.len())
    };
    // As the daemon's settings have it, and then a service that does not know.
    through(promoting()).execute("1", &Do::Deposit(2)).await.unwrap();
    assert_eq!(promoted(), (Some(1), 1));
    let unaware = through(Rules::new("account"));
    unaware.execute("1", &Do::Deposit(4)).await.unwrap();
    unaware.execute("1", &Do::Deposit(4)).await.unwrap();
    assert_eq!(promoted(), (Some(1), 1), "left to the daemon");
    through(promoting()).execute("1", &Do::Deposit(8)).await.unwrap();
    assert_eq!(promoted(), (Some(4), 1));
    // Seen only when the put is refused.
    let world_2 = World::with(&[1]);
    let bank = world_2.through();
    bank.execute("1", &Do::Nothing).await.unwrap();
    let mut other = world.store.stored(STREAM).unwrap();
    other.header = crate::replica::Header::new();
    world_2.store.set(STREAM, other);
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    assert_eq!(world_2.store.stored(STREAM).unwrap().promoted.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_through_stays_inside_the_deadline() {
    let world = World::with(&[1]);
    let bank = world.through();
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    world.store.silent(true);
    let begun = tokio::time::Instant::now();
    let context = Context {
        deadline: Some(Duration::from_millis(300)),
        ..Context::default()
    };
    bank.execute_with("1", &Do::Deposit(1), context).await.unwrap();
    assert!(begun.elapsed() <= Duration::from_millis(301), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_first_snapshot_event_and_its_metadata_heals() {
    let stream = SnapshotEvents::<MemoryJournal>::stream(&fold(), STREAM);
    let metadata = format!("$${stream}");
    let bank = |world: &World| {
        let snapshots = SnapshotEvents::new(world.journal.clone(), 10);
        Repository::<Account, _, _>::new(world.journal.clone(), snapshots).with_settings(settings())
    };
    let deposit = async |bank: &Repository<Account, _, _>, count| {
        for _ in 0..count {
            bank.execute("1", &Do::Deposit(1)).await.unwrap();
        }
    };
    // Whichever of its two writes is the last before the crash.
    for fails in [1, 2] {
        let world = World::default();
        let service = bank(&world);
        deposit(&service, 9).await;
        world.journal.fail_append(1 + fails, AppendFault::LostBeforeWrite);
        deposit(&service, 1).await;
        let snapshots = world.journal.all(&stream).len();
        assert!(snapshots == 0 || world.journal.all(&metadata).len() == 1);
        deposit(&bank(&world), 20).await;
        assert_eq!(world.journal.all(&metadata).len(), 1, "{fails}");
    }
    // As it was written before: two snapshots, and nobody told the server to keep one.
    let donor = World::default();
    let service = bank(&donor);
    deposit(&service, 20).await;
    let world = World {
        journal: MemoryJournal::new(),
        ..World::default()
    };
    let copy = |from: &str| {
        donor.journal.all(from).into_iter().map(|event| NewEvent {
            id: event.id,
            kind: event.kind,
            json: true,
            data: event.data,
            metadata: event.metadata,
        })
    };
    world.journal.push(STREAM, copy(STREAM).collect());
    world.journal.push(&stream, copy(&stream).collect());
    assert_eq!(world.journal.all(&stream).len(), 2);
    let seen = world.journal.calls().events_read;
    bank(&world).execute("1", &Do::Nothing).await.unwrap();
    assert_eq!(world.journal.all(&metadata).len(), 1);
    assert_eq!(
        world.journal.calls().events_read - seen,
        3,
        "both snapshots and the last event"
    );
}

/// An account as it was before its schema was raised.
#[derive(serde::Deserialize)]
struct Before {
    cents: i64,
    entries: u32,
}

#[tokio::test(start_paused = true)]
async fn a_raised_schema_starts_from_the_replica_of_the_one_before() {
    let world = World::with(&[1; 100]);
    world.project(STREAM, usize::MAX).await;
    world.deposit(&[1]);
    for no_table in [false, true] {
        let raised = MemoryStore::new();
        if no_table {
            let table = "projector-account-s2".to_owned();
            let problem = "a test".to_owned();
            raised.fail_get(1, StoreError::NoTable { table, problem });
        }
        let snapshots = Replicas::new(raised.clone())
            .write_through(Rules::new("account"))
            .upgrading(world.store.clone(), |before: Before| Account {
                cents: before.cents,
                entries: before.entries,
            });
        let bank = Repository::<Account, _, _>::new(world.journal.clone(), snapshots).with_settings(settings());
        world.journal.reset_calls();
        let done = bank.execute("1", &Do::Deposit(1)).await.unwrap();
        assert_eq!(done.state, world.truth(STREAM));
        assert!(world.journal.calls().events_read <= 6, "{:?}", world.journal.calls());
        assert!(raised.stored(STREAM).is_none(), "the daemon's to fold");
    }
}
