//! The supervisor: what follows the end of a session, what lag and marks say, lanes without a group.

use super::*;
use crate::{
    clock,
    journal::feed::{Delivery, GroupSpec, Head},
    projection::Source,
    projector::{
        host::tests::{change, spec},
        lane::Arrival,
        lanes::Work,
        meter::NoMeter,
        session::tests::{FedSubscription, session},
        status::Lag,
    },
    testing::{MemoryJournal, MemoryStore},
};

/// An event store that has no groups.
#[derive(Clone)]
struct NoGroups;

fn refused<T>() -> Result<T, JournalError> {
    Err(JournalError::Unavailable("no group can be had".into()))
}

impl Feed for NoGroups {
    type Subscription = FedSubscription;

    async fn ensure(&self, _: &GroupSpec) -> Result<Ensured, JournalError> {
        refused()
    }
    async fn restart(&self, _: &GroupSpec) -> Result<(), JournalError> {
        refused()
    }
    async fn subscribe(&self, _: &GroupSpec, _: usize) -> Result<FedSubscription, JournalError> {
        refused()
    }
    async fn info(&self, _: &GroupSpec) -> Result<GroupInfo, JournalError> {
        refused()
    }
    async fn head(&self, _: &Source) -> Result<Option<Head>, JournalError> {
        refused()
    }
    async fn stalled(
        &self,
        _: &Source,
        _: Option<&Head>,
    ) -> Result<Option<chrono::DateTime<chrono::Utc>>, JournalError> {
        refused()
    }
    async fn entries(&self, _: &Source, _: Option<Mark>, _: usize) -> Result<Vec<(Mark, Delivery)>, JournalError> {
        refused()
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_the_source_makes_replicas_right_without_a_group() {
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    journal.push("order-1", [1, 2].map(change).into());
    let projection = Supervised {
        spec: Arc::new(session(spec(), 10)),
        feed: NoGroups,
        journal,
        table: table.clone(),
        table_name: "t".into(),
        meter: Arc::new(NoMeter),
        cache_bytes: 0,
        measure_every: Duration::from_secs(1),
    };
    let stop = CancellationToken::new();
    let running = start(projection, stop.clone());
    let work = Work {
        stream: "order-1".into(),
        arrival: Arrival::Onward,
        at: clock::now(),
    };
    assert!(running.reader.look_at(work).await);
    while table
        .stored("order-1")
        .is_none_or(|stored| stored.header.version != Some(1))
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(matches!(
        running.status.borrow().phase,
        Phase::Starting | Phase::Reconnecting(_)
    ));
    stop.cancel();
    running.stopped().await;
}

fn status(waiting: u64, moved: Duration) -> Status {
    Status {
        projection: "loan".into(),
        schema: 1,
        group: "g".into(),
        source: "category:loan".into(),
        table: "t".into(),
        phase: Phase::Running,
        group_confirmed: true,
        table_confirmed: true,
        holding: 0,
        last_progress: Instant::now(),
        lag: Some(Lag {
            events: waiting,
            seconds: 0.0,
            stalled: false,
            as_of: chrono::DateTime::UNIX_EPOCH,
        }),
        lag_unknown: None,
        group_moved: Instant::now()
            .checked_sub(moved)
            .expect("a machine that is up for minutes"),
        info: None,
        quarantined: Vec::new(),
        diverged: Vec::new(),
        waiting: None,
        unplaced: BTreeMap::new(),
        differences: Vec::new(),
        last_error: None,
    }
}

fn reporter(status: Status) -> Reporter {
    Reporter {
        status: Arc::new(watch::channel(status).0),
        asked: Arc::default(),
        connection: 0,
        settled: SharedSettled::default(),
    }
}

/// A task that holds nothing while others work a backlog off has nothing to mend.
#[test]
fn a_standby_task_stands_still_only_when_the_group_does() {
    let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
    assert!(reporter(status(7, minute)).stands_still() >= Some(minute));
    assert!(reporter(status(7, second)).stands_still() < Some(minute));
    assert_eq!(reporter(status(0, minute)).stands_still(), None);
    let unknown = Status {
        lag: None,
        lag_unknown: Some(LagUnknown {
            error: "no answer".into(),
            since: Instant::now(),
            may_wait: true,
        }),
        ..status(0, minute)
    };
    assert!(
        reporter(unknown).stands_still() >= Some(minute),
        "what cannot be seen may wait"
    );
}

/// Between sessions each round used to add every mark once more.
#[test]
fn marks_that_nobody_looks_at_are_asked_for_once() {
    let mark = |stream: &str, generation| Marked {
        stream: stream.into(),
        kind: MarkKind::Quarantined,
        by: crate::replica::Fingerprints::default(),
        generation,
    };
    let mut reporter = reporter(status(0, Duration::ZERO));
    for generation in 1..=3 {
        reporter
            .asked
            .look_at(vec![mark("a-1", generation), mark("b-1", generation)]);
    }
    let mut to_try = reporter.marks_to_try();
    to_try.sort_by(|a, b| a.stream.cmp(&b.stream));
    assert_eq!(to_try, [mark("a-1", 3), mark("b-1", 3)]);
    assert_eq!(reporter.marks_to_try(), []);
}

#[test]
fn a_group_moves_by_what_any_task_settles() {
    let at = |checkpoint, in_flight| GroupInfo {
        checkpoint_revision: Some(checkpoint),
        in_flight,
        ..GroupInfo::default()
    };
    assert_ne!(place(&at(5, 3)), place(&at(6, 3)));
    assert_ne!(place(&at(5, 3)), place(&at(5, 2)));
    assert_eq!(place(&at(5, 3)), place(&at(5, 3)));
}
