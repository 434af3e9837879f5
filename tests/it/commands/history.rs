//! What clients were told, and whether one order of events explains all of it: a linearizability
//! checker for one aggregate at a time.
//!
//! The stream's own order is the order of the writes, so no search is needed. Each answer belongs
//! to a place in that order: a commit to its last revision, a read to its version, a rejection to
//! any state that allows it. One order explains everything if and only if an answer that came
//! before a question never belongs to a later place than the answer to that question; of the places
//! that a rejection may belong to, the first possible one leaves most room.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use projector::{event::RawEvent, event::Revision, event::Version, projection::folding::command_of, query::Known};
use uuid::Uuid;

use super::{Account, fold_of};

/// What a client was told, and when it asked and was answered.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) stream: String,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Committed {
        command: Uuid,
        /// Its last event's.
        revision: Version,
        state: Account,
    },
    /// Withdrawing this much with so much there.
    Rejected {
        command: Uuid,
        wanted: i64,
        there: i64,
    },
    Contended {
        command: Uuid,
    },
    /// Nobody knows, and nobody asked again.
    Unknown {
        command: Uuid,
    },
    /// Told that the stream is deleted.
    Deleted,
    /// By [`Known::Confirmed`]; `None`: there is nothing.
    Strong(Option<Seen>),
    /// By any other mode.
    Weak {
        seen: Seen,
        freshness: Known,
        token: Version,
    },
    /// The stream was deleted by this client when its newest event was this.
    Deletes(Revision),
    /// It was to be, and the answer was lost.
    MayDelete(Revision),
}

/// A state and which events it is the fold of.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) version: Version,
    pub(super) first: Revision,
    pub(super) state: Account,
}

/// The record, and a clock of steps.
#[derive(Clone, Default)]
pub(super) struct History {
    clock: Arc<AtomicU64>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl History {
    /// The time of a question.
    pub(super) fn ask(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Takes an answer.
    pub(super) fn tell(&self, stream: &str, from: u64, what: What) {
        let to = self.clock.fetch_add(1, Ordering::SeqCst);
        let stream = stream.to_owned();
        self.told.lock().unwrap().push(Told { stream, from, to, what });
    }

    pub(super) fn of(&self, stream: &str) -> Vec<Told> {
        let told = self.told.lock().unwrap();
        told.iter().filter(|t| t.stream == stream).cloned().collect()
    }

    /// The newest write on `stream` that anybody was told of.
    pub(super) fn newest(&self, stream: &str) -> Option<Version> {
        let told = self.told.lock().unwrap();
        told.iter().rev().find_map(|t| match &t.what {
            What::Committed { revision, .. } if t.stream == stream => Some(*revision),
            _ => None,
        })
    }
}

/// Places are even after an event, odd after a deletion: twice the number of events, and one more.
fn place(version: Version) -> u64 {
    version.map_or(0, |v| 2 * (v + 1))
}

/// Panics with the first answer that no order explains. `events`: all that the stream ever had, or
/// would have without deletions.
pub(super) fn check(told: &[Told], events: &[RawEvent]) {
    let mut revisions: HashMap<Uuid, Vec<Revision>> = HashMap::new();
    for event in events {
        if let Some(command) = command_of(event) {
            revisions.entry(command).or_default().push(event.revision);
        }
    }
    let deletions: HashSet<Revision> = told
        .iter()
        .filter_map(|t| match t.what {
            What::Deletes(at) | What::MayDelete(at) => Some(at),
            _ => None,
        })
        .collect();
    // Where a fold may begin: at the start, and after each deletion.
    let firsts: Vec<Revision> = std::iter::once(0).chain(deletions.iter().map(|at| at + 1)).collect();
    let state = |first: Revision, version: Version| {
        let to = version.map_or(0, |v| v as usize + 1);
        fold_of(&events[(first as usize).min(to)..to])
    };
    let begun: HashMap<Uuid, u64> = told
        .iter()
        .filter_map(|t| match t.what {
            What::Committed { command, .. } | What::Unknown { command } => Some((command, t.from)),
            _ => None,
        })
        .collect();
    let is_a_prefix = |t: &Told, seen: &Seen| {
        assert!(
            firsts.contains(&seen.first) || seen.version.is_none(),
            "{t:?} begins nowhere"
        );
        assert_eq!(
            seen.state,
            state(seen.first, seen.version),
            "{t:?} is no fold of its events"
        );
        if let Some(version) = seen.version {
            let by = command_of(&events[version as usize]);
            let known = by.and_then(|by| begun.get(&by));
            assert!(known.is_none_or(|from| *from < t.to), "{t:?} saw the future");
        }
    };

    // In the order of the questions: whoever answered before one of them asked it earlier still.
    let mut told: Vec<&Told> = told.iter().collect();
    told.sort_by_key(|t| t.from);
    let mut placed: Vec<(u64, u64)> = Vec::new();
    for t in told {
        let floor = placed.iter().filter(|(to, _)| *to < t.from).map(|(_, at)| *at).max();
        let floor = floor.unwrap_or(0);
        let at = match &t.what {
            What::Committed {
                command,
                revision,
                state: shown,
            } => {
                let own = revisions
                    .get(command)
                    .unwrap_or_else(|| panic!("{t:?} is not in the stream"));
                let (first, last) = (own[0], own[own.len() - 1]);
                assert_eq!(
                    last - first + 1,
                    own.len() as u64,
                    "{t:?} landed more than once: {own:?}"
                );
                assert_eq!(Some(last), *revision, "{t:?}");
                let possible = firsts
                    .iter()
                    .any(|first| *first <= last && *shown == state(*first, *revision));
                assert!(possible, "{t:?} shows a state that never was");
                assert!(place(*revision) > floor, "{t:?} came after place {floor}");
                place(*revision)
            }
            What::Rejected { command, wanted, there } => {
                assert!(!revisions.contains_key(command), "{t:?} is in the stream");
                assert!(there < wanted, "{t:?} for no reason");
                let allows = |at: &u64| {
                    let version = (*at / 2).checked_sub(1);
                    let deleted = at % 2 == 1;
                    let kept = |version| firsts.iter().any(|first| state(*first, version).cents == *there);
                    // After a deletion there is what some snapshot kept, or nothing.
                    let older = || *there == 0 || (0..version.unwrap_or(0)).any(|v| kept(Some(v)));
                    kept(version) || (deleted && older())
                };
                let ends = 2 * events.len() as u64 + 1;
                let is_place = |at: &u64| at.is_multiple_of(2) || (*at > 1 && deletions.contains(&(at / 2 - 1)));
                (floor..=ends).filter(is_place).find(allows).unwrap_or_else(|| {
                    panic!("{t:?} contradicts what was acknowledged before it began (place {floor})")
                })
            }
            What::Contended { command } => {
                assert!(!revisions.contains_key(command), "{t:?} is in the stream");
                continue;
            }
            What::MayDelete(_) => continue,
            What::Unknown { command } => {
                if let Some(own) = revisions.get(command) {
                    let span = own[own.len() - 1] - own[0] + 1;
                    assert_eq!(span, own.len() as u64, "{t:?} landed more than once: {own:?}");
                }
                continue;
            }
            What::Strong(None) => {
                assert_eq!(floor, 0, "{t:?} of a stream that had come to place {floor}");
                0
            }
            What::Strong(Some(seen)) => {
                is_a_prefix(t, seen);
                let at = place(seen.version);
                assert!(at >= floor, "{t:?} is older than place {floor}");
                at
            }
            What::Weak { seen, freshness, token } => {
                is_a_prefix(t, seen);
                let late = *freshness == Known::Behind;
                assert!(seen.version >= *token || late, "{t:?} is older than its token");
                continue;
            }
            What::Deletes(at) => place(Some(*at)) + 1,
            What::Deleted => {
                let mut places: Vec<u64> = deletions.iter().map(|at| place(Some(*at)) + 1).collect();
                places.sort_unstable();
                let found = places.into_iter().find(|at| *at >= floor);
                found.unwrap_or_else(|| panic!("{t:?} of a living stream"))
            }
        };
        assert!(at >= floor, "{t:?} belongs to place {at}, after place {floor}");
        placed.push((t.to, at));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::DateTime;

    use super::*;

    fn command(n: u64) -> Uuid {
        Uuid::from_u128(u128::from(n) + 1)
    }

    /// Deposits of one cent, each by a command of its own.
    fn deposits(count: u64) -> Vec<RawEvent> {
        let event = |revision| RawEvent {
            stream: "account-1".into(),
            revision,
            id: Uuid::from_u128(u128::from(revision) + 100),
            kind: "Deposited".into(),
            json: true,
            data: Bytes::from_static(br#"{"cents":1}"#),
            metadata: format!(r#"{{"commandId":"{}"}}"#, command(revision)).into(),
            created: DateTime::UNIX_EPOCH,
        };
        (0..count).map(event).collect()
    }

    fn seen(version: u64) -> Seen {
        Seen {
            version: Some(version),
            first: 0,
            state: fold_of(&deposits(version + 1)),
        }
    }

    fn committed(from: u64, to: u64, n: u64) -> Told {
        let state = fold_of(&deposits(n + 1));
        let what = What::Committed {
            command: command(n),
            revision: Some(n),
            state,
        };
        told(from, to, what)
    }

    fn told(from: u64, to: u64, what: What) -> Told {
        let stream = "account-1".to_owned();
        Told { stream, from, to, what }
    }

    fn rejected(from: u64, to: u64, there: i64) -> Told {
        let (command, wanted) = (Uuid::from_u128(77), 50);
        told(from, to, What::Rejected { command, wanted, there })
    }

    /// Whether one order explains it.
    fn explains(history: &[Told], events: u64) -> bool {
        let (history, events) = (history.to_vec(), deposits(events));
        std::panic::catch_unwind(move || check(&history, &events)).is_ok()
    }

    #[test]
    fn what_one_order_explains_passes() {
        let strong = |from, to, version| told(from, to, What::Strong(Some(seen(version))));
        assert!(explains(&[committed(0, 1, 0), strong(2, 3, 0), committed(4, 5, 1)], 2));
        // At the same time, either is right.
        assert!(explains(&[committed(0, 9, 0), told(1, 2, What::Strong(None))], 1));
        assert!(explains(&[committed(0, 9, 0), strong(1, 2, 0)], 1));
        assert!(explains(
            &[
                committed(0, 1, 0),
                committed(2, 9, 1),
                rejected(3, 4, 1),
                rejected(5, 6, 2)
            ],
            2
        ));
    }

    #[test]
    fn what_no_order_explains_does_not() {
        let strong = |from, to, version| told(from, to, What::Strong(Some(seen(version))));
        // Older than what was acknowledged.
        assert!(!explains(&[committed(0, 1, 0), committed(2, 3, 1), strong(4, 5, 0)], 2));
        assert!(!explains(&[committed(0, 1, 0), told(2, 3, What::Strong(None))], 1));
        assert!(!explains(
            &[committed(0, 1, 0), committed(2, 3, 1), rejected(4, 5, 1)],
            2
        ));
        // Older than what another reader saw, though nobody was told yet that it was committed.
        assert!(!explains(
            &[committed(0, 9, 0), strong(1, 2, 0), told(3, 4, What::Strong(None))],
            1
        ));
        assert!(!explains(
            &[
                committed(0, 1, 0),
                committed(2, 9, 1),
                rejected(3, 4, 2),
                rejected(5, 6, 1)
            ],
            2
        ));
        // From the future, a state that never was, one that is not there, one that should not be.
        assert!(!explains(&[strong(0, 1, 0), committed(2, 3, 0)], 1));
        let mut wrong = seen(1);
        wrong.state.cents = 5;
        assert!(!explains(&[told(0, 1, What::Strong(Some(wrong)))], 2));
        assert!(!explains(&[committed(0, 1, 3)], 2));
        assert!(!explains(&[told(0, 1, What::Contended { command: command(0) })], 1));
        assert!(!explains(&[committed(0, 1, 1), committed(2, 3, 0)], 2));
        assert!(!explains(&[told(0, 1, What::Deleted)], 1));
        let weak = What::Weak {
            seen: seen(0),
            freshness: Known::AtLeast,
            token: Some(1),
        };
        assert!(!explains(&[told(0, 1, weak)], 2));
    }
}
