//! Folding: events in hand, events that were read, and what is kept of them until they are stored.
//!
//! Invariant: I1 prefix: events are folded in the stream's order, each on the one before it.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Lane, Next, put::form_of, types};
use crate::{
    event::{RawEvent, Version},
    projection::{State, run::fold_run},
    replica::Header,
};

/// Folding since the last put.
#[derive(Debug)]
pub(super) struct Run {
    /// Where it began; to find the event that makes a state unstorable.
    pub(super) header: Header,
    pub(super) state: State,
    /// What `events` follow, where that is further on: a refold is put when it has caught up, and
    /// lets go of its events as soon as what they make can be stored.
    pub(super) storable: Option<(Header, State)>,
    pub(super) events: Vec<RawEvent>,
    /// When those that were let go were created, as far as they were not durable before.
    pub(super) created: Vec<DateTime<Utc>>,
}

impl Run {
    pub(super) fn begins(&self) -> (Header, State) {
        self.storable
            .clone()
            .unwrap_or_else(|| (self.header.clone(), self.state.clone()))
    }

    /// Lets go of its events. Those that are folded again became durable long ago.
    pub(super) fn let_go(&mut self, durable: Version) {
        let events = self.events.drain(..).filter(|event| Some(event.revision) > durable);
        self.created.extend(events.map(|event| event.created));
    }
}

/// Events in hand that are folded without reading on, however far behind: at one put for eight
/// events the writes are well below one for every six, and an event that is not read is not
/// brought twice.
pub(super) const WORTH_A_PUT: usize = 8;

impl Lane {
    pub(super) fn fold_in_hand(&mut self) {
        let base = self.known();
        let (rebase, deleted, mut next) = (base.rebase, base.header.deleted, base.next());
        // The first fold on a base is on one that was seen to be this stream's: a read, one event
        // earlier than the one in hand, shows it.
        let known = base.verified || base.header.version.is_none();
        if !known || rebase || deleted || self.read_wanted || self.administrative.is_some() {
            return;
        }
        let mut events = Vec::new();
        while let Some(event) = self.waiting.get(&next).and_then(|w| w.event.clone()) {
            events.push(event);
            next += 1;
            if events.len() >= self.rules.read.events {
                break;
            }
        }
        // Far behind, a read settles what has not come yet, too; with enough in hand the put is
        // worth itself, and what a read would bring need not be brought twice.
        let reads_on = self.behind && !self.read_since_put && events.len() < WORTH_A_PUT;
        if !events.is_empty() && !reads_on {
            self.fold(events, false);
        }
    }

    /// Folds events that follow the base, or, `from_scratch`, that follow nothing that is left.
    pub(super) fn fold(&mut self, events: Vec<RawEvent>, from_scratch: bool) {
        let (fold, commands) = (self.rules.fold.clone(), self.rules.commands);
        let base = self.known();
        let start = if from_scratch {
            (types::restarted(&base.header), fold.initial())
        } else {
            (base.header.clone(), base.state.clone())
        };
        let folded = fold_run(&*fold, start.clone(), &events, commands);
        let applied = folded.applied;
        let stopped = folded.stopped.map(|(index, error)| (events[index].revision, error));
        // With not even one event folded the replica stays at its last good version.
        if applied > 0 {
            base.header = folded.header;
            base.state = folded.state;
            // From scratch the version still rises, so the put stays a fold's own.
            self.changed |= folded.changed || from_scratch || base.rebase;
            self.tally.applied += applied as u64;
            if from_scratch {
                self.run = None;
            }
            let run = self.run.get_or_insert_with(|| Run {
                header: start.0,
                state: start.1,
                storable: None,
                events: Vec::new(),
                created: Vec::new(),
            });
            run.events.extend(events.into_iter().take(applied));
            if self.known().rebase {
                self.let_events_go();
            }
            if !self.changed {
                self.run = None;
            }
        }
        if let Some((revision, error)) = stopped {
            self.read_wanted = false;
            self.poisoned(revision, &error, error.class());
        }
    }

    /// A refold reads on to the version of what it replaces, however long that is: it holds its
    /// state, and not all of its stream.
    pub(super) fn let_events_go(&mut self) {
        let (Some(base), Some(run)) = (&self.base, &mut self.run) else {
            return;
        };
        if form_of(&self.rules, &self.stream, &base.header, &base.state).is_ok() {
            run.storable = Some((base.header.clone(), base.state.clone()));
            run.let_go(base.durable());
        }
    }

    /// While its put waits, what comes is gathered and folded by as much as one read brings: each fold
    /// takes a copy of the state. Whatever asks for more than a fold is not kept waiting.
    pub(super) fn gathers(&self, now: Duration) -> Option<Next> {
        let base = self.base.as_ref().filter(|base| self.changed && !base.rebase)?;
        let asks = self.read_wanted || self.look_wanted || self.probe_wanted || self.short.is_some();
        let page = self.rules.read.events.saturating_sub(1);
        if asks || !self.hints.is_empty() || self.waiting.range(base.next()..).nth(page).is_some() {
            return None;
        }
        self.waits_to_put(now)
    }
}
