//! A session's bounds, on stores in memory and under virtual time.

use std::{collections::VecDeque, sync::Mutex};

use super::*;
use crate::{
    document::Document,
    journal::feed::Strategy,
    projection::{Source, StoredState},
    projector::{
        effects::Stores,
        host::tests::{change, spec},
        lanes,
        meter::{Meter, Timing},
        replica_cache::ReplicaCache,
    },
    replica::{Header, LastEvent, Replica},
    testing::{MemoryJournal, MemoryStore, PutFault},
};

/// Hands over what it is given, one after another, and then ends or has nothing more.
pub(in crate::projector) struct FedSubscription {
    deliveries: VecDeque<Delivery>,
    /// The connection ends after them.
    ends: bool,
    acks: Arc<Mutex<usize>>,
}

impl Subscription for FedSubscription {
    async fn next(&mut self) -> Result<Delivery, JournalError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match self.deliveries.pop_front() {
            Some(delivery) => Ok(delivery),
            None if self.ends => Err(JournalError::Unavailable("the server went away".into())),
            None => std::future::pending().await,
        }
    }

    async fn ack(&mut self, ids: Vec<Uuid>) -> Result<(), JournalError> {
        *self.acks.lock().unwrap() += ids.len();
        Ok(())
    }

    async fn nack(&mut self, _: Vec<Uuid>, _: Nack, reason: String) -> Result<(), JournalError> {
        panic!("nothing is given back: {reason}")
    }

    async fn close(self) {}
}

struct Unheard;

impl SessionReport for Unheard {
    fn tick(&mut self, _: usize, _: bool) {}
    fn settled(&mut self, _: Vec<Mark>) {}
    fn unplaced(&mut self, _: Unplaced) -> bool {
        false
    }
    fn stands_still(&self) -> Option<Duration> {
        None
    }
    fn marks_to_try(&mut self) -> Vec<Marked> {
        Vec::new()
    }
    fn table_is_anew(&self) -> bool {
        false
    }
}

/// The most that was held.
#[derive(Default)]
struct Most {
    holding: Mutex<f64>,
    memory: Mutex<f64>,
}

impl Meter for Most {
    fn count(&self, _: Count, _: u64) {}
    fn observe(&self, _: Timing, _: Duration) {}
    fn set(&self, level: Level, value: f64) {
        let most = match level {
            Level::Holding => &self.holding,
            Level::MemoryBytes => &self.memory,
            _ => return,
        };
        let mut most = most.lock().unwrap();
        *most = most.max(value);
    }
    fn unset(&self, _: Level) {}
}

/// A group of a server in memory, where sizes do not matter.
pub(in crate::projector) fn group(name: String, source: Source, message_timeout: Duration) -> GroupSpec {
    GroupSpec {
        name: name.into(),
        source,
        strategy: Strategy::Pinned,
        message_timeout,
        max_retries: 1_000,
        checkpoint_after: Duration::from_secs(1),
        checkpoint_upper: 10,
        read_batch: 10,
        history_buffer: 100,
        live_buffer: 100,
    }
}

/// What a session needs to know, with these lanes.
pub(in crate::projector) fn session(lanes: lanes::LanesSpec, buffer: usize) -> SessionSpec {
    SessionSpec {
        lanes: Arc::new(lanes),
        group: group("g".into(), "category:order".parse().unwrap(), Duration::from_mins(1)),
        buffer,
        outage_after: Duration::from_mins(1),
        watchdog_after: Duration::from_mins(1),
        drain: Duration::from_secs(5),
    }
}

fn delivery(event: crate::event::RawEvent, n: u64) -> Delivery {
    Delivery {
        ack: Uuid::from_u128(u128::from(n) + 1),
        retry: 0,
        at: event.created,
        place: Some(Mark::Revision(n)),
        said: Said::Event(event),
    }
}

/// Small events on large states, and a table that throttles: the states of all streams that waited to
/// be put were held beside the budget.
#[tokio::test(start_paused = true)]
async fn states_that_wait_to_be_put_are_in_the_budget() {
    const STREAMS: usize = 300;
    const STATE: usize = 20_000;
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    let mut deliveries = VecDeque::new();
    for n in 0..STREAMS {
        let stream = format!("order-{n}");
        journal.push(&stream, [1, 2].map(|of| change((n * 2 + of) as u128)).into());
        let [first, second] = journal.all(&stream).try_into().unwrap();
        let text = Document::String("x".repeat(STATE));
        table.set(
            &stream,
            Replica {
                header: Header {
                    version: Some(0),
                    event: Some(LastEvent {
                        id: first.id,
                        kind: first.kind,
                        at: first.created,
                    }),
                    ..Header::new()
                },
                view: Some(StoredState::Document(Document::Map(
                    [("text".to_owned(), text)].into_iter().collect(),
                ))),
                fold: None,
                projected_at: None,
                promoted: Vec::new(),
                bytes: STATE,
            },
        );
        deliveries.push_back(delivery(second, n as u64));
    }
    for nth in 1..=3 * STREAMS as u64 {
        table.fail_put(nth, PutFault::Throttle);
    }
    let spec = session(spec(), STREAMS);
    let meter = Arc::new(Most::default());
    let stores = Stores::new(journal, table, meter.clone());
    let acks = Arc::new(Mutex::new(0));
    let sub = FedSubscription {
        deliveries,
        ends: false,
        acks: acks.clone(),
    };
    let memory = spec.lanes.memory;
    let mut host = Host::new(spec.lanes.clone(), "g".into(), stores, ReplicaCache::new(0));
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let running = tokio::spawn(async move {
        let session = Session::new(Arc::new(spec), sub, &mut host, Unheard);
        session.run(stopped).await
    });
    while *acks.lock().unwrap() < STREAMS {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.cancel();
    running.await.unwrap();
    // Each holds its state twice, and some take long to come so far.
    let (most, held) = (*meter.holding.lock().unwrap() as usize, *meter.memory.lock().unwrap());
    assert!(most > 2 && most * STATE < 2 * memory, "{most} streams at once");
    assert!(held < 1.5 * memory as f64, "{held} bytes at once");
}

/// What it holds may wait for what never comes, and the server has taken it back: a session without room used
/// to stay on a connection that had ended.
#[tokio::test(start_paused = true)]
async fn a_full_session_sees_that_its_connection_has_ended() {
    let (whole, journal) = (MemoryJournal::new(), MemoryJournal::new());
    whole.push("order-1", (1..=3).map(change).collect());
    // A copy of the event store came back, which has not got that far.
    journal.push("order-1", vec![change(1)]);
    let last = whole.all("order-1").pop().unwrap();
    let sub = FedSubscription {
        deliveries: [delivery(last, 2)].into(),
        ends: true,
        acks: Arc::default(),
    };
    let spec = session(lanes::LanesSpec { memory: 1, ..spec() }, 10);
    let timeout = spec.group.message_timeout;
    let stores = Stores::new(journal, MemoryStore::new(), Arc::new(Most::default()));
    let mut host = Host::new(spec.lanes.clone(), "g".into(), stores, ReplicaCache::new(0));
    let session = Session::new(Arc::new(spec), sub, &mut host, Unheard);
    let end = tokio::time::timeout(2 * timeout, session.run(CancellationToken::new())).await;
    assert!(matches!(end, Ok(End::Disconnected(_))), "{end:?}");
}

/// A group that drops its consumer delivers again what it held: what was done for it meanwhile is not
/// done again, and the acknowledgement of the dead connection is not sent on the new one.
#[tokio::test(start_paused = true)]
async fn lanes_live_on_when_a_group_is_gone_and_its_deliveries_are_nobodys() {
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    journal.push("order-1", [1, 2, 3].map(change).into());
    let events = journal.all("order-1");
    // The first put is not answered before the connection is gone.
    for nth in 1..=20 {
        table.fail_put(nth, PutFault::Throttle);
    }
    let deliveries = |of: &[usize]| -> VecDeque<_> {
        let delivered = of.iter().map(|n| delivery(events[*n].clone(), *n as u64));
        delivered.collect()
    };
    let spec = Arc::new(session(spec(), 10));
    let stores = Stores::new(journal, table.clone(), Arc::new(Most::default()));
    let mut host = Host::new(spec.lanes.clone(), "g".into(), stores, ReplicaCache::new(1 << 20));
    let first = Arc::new(Mutex::new(0));
    let sub = FedSubscription {
        deliveries: deliveries(&[0, 1]),
        acks: first.clone(),
        ends: true,
    };
    let end = Session::new(spec.clone(), sub, &mut host, Unheard);
    let end = end.run(CancellationToken::new()).await;
    assert!(matches!(end, End::Disconnected(_)), "{end:?}");
    assert!(
        table.stored("order-1").is_none() && !host.is_empty(),
        "it is not done yet"
    );
    let done = async {
        while table
            .stored("order-1")
            .is_none_or(|stored| stored.header.version != Some(2))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = done => {}
        halt = host.alone() => panic!("{halt:?}"),
    }
    assert_eq!(*first.lock().unwrap(), 0);
    let puts = table.calls().puts;
    let second = Arc::new(Mutex::new(0));
    let sub = FedSubscription {
        deliveries: deliveries(&[0, 1, 2]),
        acks: second.clone(),
        ends: false,
    };
    let stop = CancellationToken::new();
    let session = Session::new(spec.clone(), sub, &mut host, Unheard);
    let acknowledged = async {
        while *second.lock().unwrap() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    let (end, ()) = tokio::join!(session.run(stop.clone()), acknowledged);
    assert!(matches!(end, End::Stopped { left: 0 }), "{end:?}");
    assert_eq!((*first.lock().unwrap(), *second.lock().unwrap()), (0, 3));
    assert_eq!(table.calls().puts, puts, "nothing is put twice");
}

/// What changed nothing is acknowledged before it is stored, and was stored by the next event of its stream at
/// the earliest when the process stopped meanwhile: a deletion that another task had stored stood until then
/// against a life that had begun with such an event.
#[tokio::test(start_paused = true)]
async fn a_stop_stores_what_changed_nothing() {
    let (journal, table) = (MemoryJournal::new(), MemoryStore::new());
    let nothing = crate::journal::NewEvent {
        kind: "$>".into(),
        ..change(2)
    };
    journal.push("order-1", vec![change(1), nothing]);
    let events = journal.all("order-1");
    let acks = Arc::new(Mutex::new(0));
    let sub = FedSubscription {
        deliveries: (0..)
            .zip(&events)
            .map(|(n, event)| delivery(event.clone(), n))
            .collect(),
        ends: false,
        acks: acks.clone(),
    };
    let spec = Arc::new(session(spec(), 10));
    let stores = Stores::new(journal, table.clone(), Arc::new(Most::default()));
    let mut host = Host::new(spec.lanes.clone(), "g".into(), stores, ReplicaCache::new(0));
    let stop = CancellationToken::new();
    let session = Session::new(spec, sub, &mut host, Unheard);
    let version = || table.stored("order-1").and_then(|stored| stored.header.version);
    let acknowledged = async {
        while *acks.lock().unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(version(), Some(0));
        stop.cancel();
    };
    let (end, ()) = tokio::join!(session.run(stop.clone()), acknowledged);
    assert!(matches!(end, End::Stopped { left: 0 }), "{end:?}");
    assert_eq!(version(), Some(1));
}
