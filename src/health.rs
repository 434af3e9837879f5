//! Whether the process is alive and ready, judged from what projections and probes report.
//!
//! The judgements are pure; what they rest on is gathered in the background, so no request to
//! `/livez` or `/readyz` waits for a store. Alive is not ready: an outage of a store makes a
//! process unready and never dead, for a restart would mend nothing (I5 isolation).

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    metrics::{Backend, Metrics},
    projector::status::{Phase, Status},
};

/// A probe that takes longer than this counts as no answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the last probe of a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Whether it answered; `None` before the first probe ended.
    pub up: Option<bool>,
    /// Why not.
    pub error: Option<String>,
}

/// What health is judged from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    stuck_after: Duration,
    eventstore: watch::Sender<Probe>,
    dynamodb: watch::Sender<Probe>,
    projections: Mutex<Vec<watch::Receiver<Status>>>,
    stopping: watch::Sender<bool>,
    /// Every table and group was found as it is needed, once.
    proved: AtomicBool,
}

/// All that the judgements look at, taken at one time.
#[derive(Clone, Debug)]
pub struct View {
    /// EventStoreDB's last probe.
    pub eventstore: Probe,
    /// DynamoDB's last probe.
    pub dynamodb: Probe,
    /// Each projection, and for how long nothing of it has moved.
    pub projections: Vec<(Status, Duration)>,
    /// The process is asked to stop.
    pub stopping: bool,
}

impl Health {
    /// `stuck_after`: how long nothing may move although work waits and both stores answer.
    pub fn new(stuck_after: Duration) -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            stuck_after,
            eventstore: watch::Sender::new(Probe::default()),
            dynamodb: watch::Sender::new(Probe::default()),
            projections: Mutex::new(Vec::new()),
            stopping: watch::Sender::new(false),
            proved: AtomicBool::new(false),
        }))
    }

    /// Adds a projection.
    pub fn watch(&self, status: watch::Receiver<Status>) {
        lock(&self.0.projections).push(status);
    }

    /// From now on the process is not ready.
    pub fn stopping(&self) {
        self.0.stopping.send_replace(true);
    }

    /// How long the process has run.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// What the judgements look at, now.
    pub fn view(&self) -> View {
        let statuses: Vec<Status> = lock(&self.0.projections)
            .iter()
            .map(|status| status.borrow().clone())
            .collect();
        let projections = statuses.into_iter().map(|status| {
            let still = moved(&status).elapsed();
            (status, still)
        });
        View {
            projections: projections.collect(),
            eventstore: self.0.eventstore.borrow().clone(),
            dynamodb: self.0.dynamodb.borrow().clone(),
            stopping: *self.0.stopping.borrow(),
        }
    }

    /// Why the process should be restarted; empty: it should not.
    pub fn dead(&self) -> Vec<String> {
        dead(&self.view(), self.0.stuck_after)
    }

    /// Why the process is not ready; empty: it is.
    pub fn unready(&self) -> Vec<String> {
        unready(&self.view())
    }

    /// Why the set-up is wrong: a deployment of it is to be rolled back. Empty once everything was
    /// found as it is needed, for the rest of the process, and while a store is unavailable.
    pub fn misconfigured(&self) -> Vec<String> {
        if self.0.proved.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let view = self.view();
        if proved(&view) {
            self.0.proved.store(true, Ordering::Relaxed);
        }
        misconfigured(&view)
    }

    /// Probes a store again and again until `stop`.
    pub async fn probe<F, A>(&self, store: Backend, every: Duration, metrics: Metrics, ask: F, stop: CancellationToken)
    where
        F: Fn() -> A,
        A: Future<Output = Result<(), String>>,
    {
        let sender = match store {
            Backend::EventStore => &self.0.eventstore,
            Backend::DynamoDb => &self.0.dynamodb,
        };
        loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout(PROBE_TIMEOUT, ask()) => answer,
                () = stop.cancelled() => return,
            };
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PROBE_TIMEOUT:?}")));
            let up = answer.is_ok();
            metrics.set_store_up(store, up);
            let probe = Probe {
                up: Some(up),
                error: answer.err(),
            };
            let before = sender.send_replace(probe.clone());
            // Once for each change; between, the gauge tells.
            match (before.up, up) {
                (Some(true) | None, false) => {
                    warn!(store = store.word(), error = probe.error, "the store does not answer");
                }
                (Some(false), true) => info!(store = store.word(), "the store answers again"),
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Notes movement and readiness now and then, so that they are known without being asked for.
    pub async fn keep(&self, every: Duration, stop: CancellationToken) {
        let mut ready = false;
        loop {
            // Latched also where nobody asks.
            self.misconfigured();
            let reasons = self.unready();
            if reasons.is_empty() != ready {
                ready = !ready;
                if ready {
                    info!("ready");
                } else if !*self.0.stopping.borrow() {
                    warn!(reason = reasons.join("; "), "not ready any more");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When the projection last moved. One of many consumers may hold nothing for hours while others
/// work a backlog off: the group's own movement counts too.
fn moved(status: &Status) -> Instant {
    status.last_progress.max(status.group_moved)
}

/// Why a process should be restarted: both stores answer, work waits, and nothing has moved for too
/// long. Nothing else is mended by a restart.
pub fn dead(view: &View, stuck_after: Duration) -> Vec<String> {
    let answers = |probe: &Probe| probe.up == Some(true);
    if view.stopping || !answers(&view.eventstore) || !answers(&view.dynamodb) {
        return Vec::new();
    }
    let stuck = view.projections.iter().filter(|(status, still)| {
        let tried = matches!(status.phase, Phase::Starting | Phase::Running | Phase::Reconnecting(_));
        let waits = status.holding > 0 || status.may_wait();
        tried && waits && *still >= stuck_after
    });
    stuck
        .map(|(status, still)| {
            format!(
                "Projection {}: work waits and nothing has moved for {} s.",
                status.projection,
                still.as_secs()
            )
        })
        .collect()
}

/// Why a process is not ready. A projection that failed for good is reported and not waited for,
/// unless nothing else runs.
pub fn unready(view: &View) -> Vec<String> {
    let mut reasons = Vec::new();
    if view.stopping {
        reasons.push("The process is stopping.".to_owned());
    }
    for (name, probe) in [("EventStoreDB", &view.eventstore), ("DynamoDB", &view.dynamodb)] {
        match (probe.up, &probe.error) {
            (Some(true), _) => {}
            (Some(false), error) => reasons.push(format!(
                "{name} does not answer: {}.",
                error.as_deref().unwrap_or("no reason given").trim_end_matches('.')
            )),
            (None, _) => reasons.push(format!("{name} has not answered yet.")),
        }
    }
    for (status, _) in &view.projections {
        let say = |what: &str| format!("Projection {}: {what}", status.projection);
        match &status.phase {
            Phase::Failed(_) => {}
            Phase::Paused(why) | Phase::StoreAway(why) => reasons.push(say(why)),
            Phase::Stopped => reasons.push(say("It has stopped.")),
            Phase::Starting | Phase::Running | Phase::Reconnecting(_) => {
                if !status.table_confirmed {
                    reasons.push(say("Its table has not answered yet."));
                } else if !status.group_confirmed {
                    reasons.push(say("Its group has not taken a consumer yet."));
                }
            }
        }
    }
    let failed = |(status, _): &(Status, Duration)| matches!(status.phase, Phase::Failed(_));
    if !view.projections.is_empty() && view.projections.iter().all(failed) {
        reasons.push("Every projection has failed.".to_owned());
    }
    reasons
}

/// Whether every projection has had its table and its group: settings, permissions and both stores
/// are what they must be. How far behind it is does not matter: a new schema may fill for hours.
fn proved(view: &View) -> bool {
    let had = |(status, _): &(Status, Duration)| status.table_confirmed && status.group_confirmed;
    !view.projections.is_empty() && view.projections.iter().all(had)
}

/// Why the set-up is wrong: what waits for somebody to act, or has failed for good, before it worked
/// once. An unavailable store says nothing of the set-up.
fn misconfigured(view: &View) -> Vec<String> {
    let waiting = view.projections.iter().filter_map(|(status, _)| match &status.phase {
        Phase::Paused(why) | Phase::Failed(why) if !(status.table_confirmed && status.group_confirmed) => {
            Some(format!("Projection {}: {why}", status.projection))
        }
        _ => None,
    });
    waiting.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projector::status::{Lag, LagUnknown};

    fn status(phase: Phase) -> Status {
        Status {
            projection: "loan".into(),
            schema: 1,
            group: "g".into(),
            source: "category:loan".into(),
            table: "t".into(),
            phase,
            group_confirmed: true,
            table_confirmed: true,
            holding: 0,
            last_progress: Instant::now(),
            lag: None,
            lag_unknown: None,
            group_moved: Instant::now(),
            info: None,
            quarantined: Vec::new(),
            diverged: Vec::new(),
            waiting: None,
            unplaced: std::collections::BTreeMap::new(),
            differences: Vec::new(),
            last_error: None,
        }
    }

    fn view(status: Status, still: u64) -> View {
        let up = Probe {
            up: Some(true),
            error: None,
        };
        View {
            eventstore: up.clone(),
            dynamodb: up,
            projections: vec![(status, Duration::from_secs(still))],
            stopping: false,
        }
    }

    const STUCK: Duration = Duration::from_mins(5);

    fn lagging(phase: Phase) -> Status {
        Status {
            lag: Some(Lag {
                events: 3,
                seconds: 900.0,
                stalled: false,
                as_of: chrono::DateTime::UNIX_EPOCH,
            }),
            ..status(phase)
        }
    }

    #[test]
    fn dead_only_when_both_stores_answer_work_waits_and_nothing_moves() {
        let stuck = view(lagging(Phase::Running), 300);
        assert_eq!(dead(&stuck, STUCK).len(), 1);
        // Each condition alone is what keeps it alive.
        assert!(dead(&view(lagging(Phase::Running), 299), STUCK).is_empty());
        assert!(dead(&view(status(Phase::Running), 900), STUCK).is_empty());
        for store in [true, false] {
            for up in [Some(false), None] {
                let mut view = stuck.clone();
                let probe = if store {
                    &mut view.eventstore
                } else {
                    &mut view.dynamodb
                };
                probe.up = up;
                assert!(dead(&view, STUCK).is_empty());
            }
        }
        // A restart mends no missing permission and no tombstoned source.
        for phase in [
            Phase::Paused("x".into()),
            Phase::Failed("x".into()),
            Phase::StoreAway("x".into()),
        ] {
            assert!(dead(&view(lagging(phase), 900), STUCK).is_empty());
        }
        let held = Status {
            holding: 1,
            ..status(Phase::Running)
        };
        assert_eq!(dead(&view(held, 300), STUCK).len(), 1);
    }

    #[test]
    fn another_consumer_that_moves_the_group_is_movement() {
        let start = Instant::now();
        let at = |progress, group| Status {
            last_progress: start + Duration::from_secs(progress),
            group_moved: start + Duration::from_secs(group),
            ..lagging(Phase::Running)
        };
        assert_eq!(moved(&at(0, 0)), start);
        assert_eq!(moved(&at(0, 401)), start + Duration::from_secs(401));
        assert_eq!(moved(&at(500, 401)), start + Duration::from_secs(500));
    }

    #[test]
    fn a_lag_that_is_not_known_does_not_blind_liveness() {
        let unknown = |may_wait| Status {
            lag_unknown: Some(LagUnknown {
                error: "no answer".into(),
                since: Instant::now(),
                may_wait,
            }),
            ..status(Phase::Running)
        };
        assert_eq!(dead(&view(unknown(true), 300), STUCK).len(), 1);
        assert!(dead(&view(unknown(true), 299), STUCK).is_empty());
        // A missing permission hides nothing that a restart would show.
        assert!(dead(&view(unknown(false), 900), STUCK).is_empty());
    }

    #[test]
    fn ready_with_stores_groups_and_tables() {
        let good = view(status(Phase::Running), 0);
        assert!(unready(&good).is_empty());
        assert!(unready(&view(status(Phase::Reconnecting("x".into())), 0)).is_empty());
        let without_group = Status {
            group_confirmed: false,
            ..status(Phase::Starting)
        };
        assert!(unready(&view(without_group, 0))[0].contains("group"));
        let without_table = Status {
            table_confirmed: false,
            ..status(Phase::Starting)
        };
        assert!(unready(&view(without_table, 0))[0].contains("table"));
        for phase in [
            Phase::Paused("grant the permission".into()),
            Phase::StoreAway("grant the permission".into()),
        ] {
            assert!(unready(&view(status(phase), 0))[0].contains("grant the permission"));
        }
        let mut away = good.clone();
        away.dynamodb = Probe {
            up: Some(false),
            error: Some("refused".into()),
        };
        assert_eq!(unready(&away), ["DynamoDB does not answer: refused."]);
        let mut stopping = good;
        stopping.stopping = true;
        assert_eq!(unready(&stopping), ["The process is stopping."]);
    }

    #[test]
    fn a_set_up_is_wrong_until_it_was_right_once_and_an_outage_is_no_fault_of_it() {
        let wrong = |phase| Status {
            group_confirmed: false,
            ..status(phase)
        };
        for phase in [
            Phase::Paused("grant the permission".into()),
            Phase::Failed("grant the permission".into()),
        ] {
            let view = view(wrong(phase.clone()), 0);
            assert_eq!(misconfigured(&view), ["Projection loan: grant the permission"]);
            assert!(!proved(&view));
            assert!(misconfigured(&super::tests::view(status(phase), 0)).is_empty());
        }
        for phase in [
            Phase::Starting,
            Phase::StoreAway("x".into()),
            Phase::Reconnecting("x".into()),
        ] {
            assert!(misconfigured(&view(wrong(phase), 0)).is_empty());
        }
        // Filling a new schema.
        assert!(proved(&view(lagging(Phase::Running), 0)));

        let health = Health::new(STUCK);
        let (sender, receiver) = watch::channel(wrong(Phase::Paused("x".into())));
        health.watch(receiver);
        assert_eq!(health.misconfigured().len(), 1);
        sender.send_replace(status(Phase::Running));
        assert!(health.misconfigured().is_empty());
        sender.send_replace(wrong(Phase::Paused("deleted since".into())));
        assert!(health.misconfigured().is_empty(), "latched");
    }

    #[test]
    fn what_failed_for_good_is_not_waited_for_unless_it_is_all() {
        let mut both = view(status(Phase::Running), 0);
        both.projections
            .push((status(Phase::Failed("tombstoned".into())), Duration::ZERO));
        assert!(unready(&both).is_empty());
        both.projections.remove(0);
        assert_eq!(unready(&both), ["Every projection has failed."]);
    }
}
