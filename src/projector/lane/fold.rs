//! Folding: events in hand and events that were read.
//!
//! Invariant: I1 prefix: events are folded in the stream's order, each on the one before it.

use std::{mem, time::Duration};

use super::{
    Agenda, Known, Next, types,
    unsaved::{UnsavedFold, UnsavedRun, Write},
};
use crate::{event::RawEvent, projection::folding::fold_events};

/// Events in hand that are folded without reading on, however far behind: at one put for eight
/// events the writes are well below one for every six, and an event that is not read is not
/// brought twice.
const WORTH_A_PUT: usize = 8;

/// What events follow that are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    Base,
    /// The base, whose last event cannot be read any more.
    Outlived,
    /// Nothing that is left.
    Nothing,
}

impl Known {
    pub(super) fn fold_in_hand(&mut self) {
        let base = &self.base;
        // The first fold on a base is on one that was seen to be this stream's: a read, one event
        // earlier than the one in hand, shows it.
        let known = base.verified || base.header.version.is_none();
        let waits = self.agenda.read || self.unsaved.administrative.is_some();
        if !known || base.rebase || base.header.deleted || waits {
            return;
        }
        // One that is older than what it would follow may be of a history that was lost: a copy of the event
        // store came back, and others have written since. A read shows what the stream has there.
        let mut before = base.header.event.as_ref().map(|last| last.at);
        let in_hand = (base.next()..).map_while(|next| {
            let event = self.inbox.waiting.get(&next)?.event.clone()?;
            let follows = before.replace(event.created) <= Some(event.created);
            follows.then_some(event)
        });
        let events: Vec<_> = in_hand.take(self.rules.read.events.max(1)).collect();
        // Far behind, a read settles what has not come yet, too; with enough in hand the put is
        // worth itself, and what a read would bring need not be brought twice.
        let reads_on = self.inbox.behind && !self.unsaved.read && events.len() < WORTH_A_PUT;
        if !events.is_empty() && !reads_on {
            self.fold(events, Follows::Base);
        }
    }

    /// Folds events, and keeps of them what a put that fails needs.
    pub(super) fn fold(&mut self, events: Vec<RawEvent>, follows: Follows) {
        let (fold, base) = (&*self.rules.fold, &mut self.base);
        let from_scratch = follows == Follows::Nothing;
        let scratch = from_scratch.then(|| (types::restarted(&base.header), fold.initial()));
        let (header, state) = scratch.as_ref().map_or((&base.header, &base.state), |(h, s)| (h, s));
        let folded = fold_events(fold, (header, state), &events, self.rules.commands);
        let applied = folded.applied;
        let stopped = folded.stopped.map(|(index, error)| (events[index].revision, error));
        // With not even one event folded the replica stays at its last good version.
        if applied > 0 {
            let before = (
                mem::replace(&mut base.header, folded.header),
                mem::replace(&mut base.state, folded.state),
            );
            let start = scratch.unwrap_or(before);
            self.tally.applied += applied as u64;
            // Who replaces history that is lost demands exactly what it read, and raises the generation: a
            // cached base or an eventually consistent load may be behind a replica that has all of it, and
            // whoever else stands on such a base must not go on from there.
            if from_scratch && base.stored.is_some() && self.unsaved.administrative.is_none() {
                self.unsaved.say(Write::Repair);
            }
            // What went before may have been another life, whose end a cached base or an eventually
            // consistent load does not show: only a put does.
            let changed = folded.changed || follows != Follows::Base || base.rebase;
            let run = match mem::take(&mut self.unsaved.folded) {
                UnsavedFold::Run(run) if !from_scratch => Some(run),
                UnsavedFold::Nothing if !changed => None,
                _ => Some(Box::new(UnsavedRun::new(start))),
            };
            if let Some(mut run) = run {
                run.events.extend(events.into_iter().take(applied));
                // A refold reads on to the version of what it replaces, however long that is: it
                // holds its states, and not all of its stream.
                if base.rebase {
                    let durable = base.durable();
                    run.fold_down(&self.rules, &self.stream, (&base.header, &base.state), durable);
                }
                self.unsaved.folded = UnsavedFold::Run(run);
            }
        }
        if let Some((revision, error)) = stopped {
            self.agenda.read = false;
            self.poisoned(revision, &error, error.class());
        }
    }

    /// While its put waits, what comes is gathered and folded by as much as one read brings: each fold
    /// takes a copy of the state. Whatever asks for more than a fold is not kept waiting.
    pub(super) fn gathers(&self, now: Duration) -> Option<Next> {
        if !self.unsaved.changed() || self.base.rebase {
            return None;
        }
        let asks = self.agenda != Agenda::default() || !self.inbox.hints.is_empty();
        let page = self.rules.read.events.saturating_sub(1);
        if asks || self.inbox.waiting.range(self.base.next()..).nth(page).is_some() {
            return None;
        }
        self.waits_to_put(now)
    }
}
