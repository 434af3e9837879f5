//! Faults on demand, for tests. Keeps: nothing here runs unless it was armed; every fault is one that
//! a real node or network shows.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status};

use super::log::Commits;

/// How deliveries of groups are disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// Deliveries that are ready together change places.
    pub reorder: bool,
    /// Every delivery comes twice.
    pub twice: bool,
    /// Of the order; the same seed disturbs alike.
    pub seed: u64,
}

/// How consumers' streams and subscriptions are ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Without an error: what EventStoreDB never does, but a proxy may.
    Clean,
    /// With this status; `dropped` makes it a consumer's that was dropped, trailers and all.
    Status {
        /// The code.
        code: Code,
        /// What it says.
        message: String,
        /// Whether it is said to have been dropped.
        dropped: bool,
    },
}

/// A server's faults. All off until armed.
#[derive(Debug)]
pub struct Faults {
    armed: AtomicBool,
    cut: watch::Sender<u64>,
    refuse: AtomicBool,
    delay_ms: AtomicU64,
    lost_replies: AtomicUsize,
    commits: Commits,
    not_leader: Mutex<Option<(String, u16)>>,
    not_ready: Mutex<Option<Instant>>,
    disturbance: Mutex<Option<Disturbance>>,
    end: watch::Sender<(u64, End)>,
    end_subscriptions: watch::Sender<(u64, End)>,
}

impl Faults {
    pub(super) fn new(commits: Commits) -> Self {
        Self {
            commits,
            armed: AtomicBool::new(false),
            cut: watch::Sender::new(0),
            refuse: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            lost_replies: AtomicUsize::new(0),
            not_leader: Mutex::new(None),
            not_ready: Mutex::new(None),
            disturbance: Mutex::new(None),
            end: watch::Sender::new((0, End::Clean)),
            end_subscriptions: watch::Sender::new((0, End::Clean)),
        }
    }
}

fn set<T>(mutex: &Mutex<T>, value: T) {
    *mutex.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

fn get<T: Clone>(mutex: &Mutex<T>) -> T {
    mutex.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Faults {
    fn arm(&self) {
        self.armed.store(true, Ordering::Release);
    }

    fn armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    /// Closes every connection now, without a word.
    pub fn cut_connections(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// Accepts no more connections until told otherwise; those that are open stay.
    pub fn refuse_connections(&self, refuse: bool) {
        self.arm();
        self.refuse.store(refuse, Ordering::Release);
    }

    /// Every call waits this long before it is looked at; zero ends it.
    pub fn delay_calls(&self, delay: Duration) {
        self.arm();
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Release);
    }

    /// The next appends are written, and then the connection is cut instead of an answer.
    pub fn lose_append_replies(&self, count: usize) {
        self.arm();
        self.lost_replies.store(count, Ordering::Release);
    }

    /// Writes are accepted as ever and committed so much later; a shorter delay counts for what is
    /// held already, and zero ends it. Of one stream (and its
    /// metadata), or of all. Meanwhile nothing shows them, though conflicts already name them, as a
    /// real node does for the 5 to 60 ms that a commit may take it. A write that waits longer than
    /// 2.5 s is answered with a time-out and committed all the same. It is a fault of the log: all
    /// nodes of a cluster share it.
    pub fn delay_commits(&self, stream: Option<&str>, delay: Duration) {
        self.commits.delay(stream, delay);
    }

    /// The next writes are accepted and never committed, as when the leader dies that accepted them;
    /// with them goes whatever is accepted on top of them. They die when they would have been
    /// committed (see [`delay_commits`](Self::delay_commits)) and are answered with a time-out. Of
    /// one stream, or of all.
    pub fn lose_accepted(&self, stream: Option<&str>, count: usize) {
        self.commits.lose(stream, count);
    }

    /// Calls that require the leader are sent to this one; `None` ends it.
    pub fn answer_not_leader(&self, leader: Option<(String, u16)>) {
        self.arm();
        set(&self.not_leader, leader);
    }

    /// Every call is answered `Server Is Not Ready` for so long.
    pub fn not_ready_for(&self, time: Duration) {
        self.arm();
        set(&self.not_ready, Some(Instant::now() + time));
    }

    /// Disturbs the deliveries of groups from now on; `None` ends it.
    pub fn disturb_deliveries(&self, disturbance: Option<Disturbance>) {
        self.arm();
        set(&self.disturbance, disturbance);
    }

    /// Ends the streams of all consumers of groups that are connected now.
    pub fn end_consumers(&self, end: End) {
        self.end.send_modify(|(count, how)| {
            *count += 1;
            *how = end;
        });
    }

    /// Ends all catch-up subscriptions that there are now.
    pub fn end_subscriptions(&self, end: End) {
        self.end_subscriptions.send_modify(|(count, how)| {
            *count += 1;
            *how = end;
        });
    }

    pub(super) fn cuts(&self) -> watch::Receiver<u64> {
        self.cut.subscribe()
    }

    pub(super) fn ends(&self) -> watch::Receiver<(u64, End)> {
        self.end.subscribe()
    }

    pub(super) fn subscription_ends(&self) -> watch::Receiver<(u64, End)> {
        self.end_subscriptions.subscribe()
    }

    /// Whether the node says now that it is not ready.
    pub(super) fn not_ready(&self) -> bool {
        self.armed() && get(&self.not_ready).is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn refuses(&self) -> bool {
        self.armed() && self.refuse.load(Ordering::Acquire)
    }

    pub(super) fn disturbance(&self) -> Option<Disturbance> {
        if self.armed() { get(&self.disturbance) } else { None }
    }

    /// Before a call is looked at.
    pub(super) async fn before_call(&self, requires_leader: bool) -> Result<(), Status> {
        if !self.armed() {
            return Ok(());
        }
        let delay = Duration::from_millis(self.delay_ms.load(Ordering::Acquire));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.not_ready() {
            return Err(super::status::not_ready());
        }
        match get(&self.not_leader) {
            Some((host, port)) if requires_leader => Err(super::status::not_leader(&host, port)),
            _ => Ok(()),
        }
    }

    /// After an append was written, before it is answered.
    pub(super) async fn after_append(&self) -> Result<(), Status> {
        if !self.armed() {
            return Ok(());
        }
        let lose = self
            .lost_replies
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1));
        if lose.is_ok() {
            self.cut_connections();
            // The connection ends under this call; its answer never comes.
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}
