//! What is put, when, and what follows when it is stored.
//!
//! Invariant: I2 monotonic: a fold's put demands its base, an administrative write exactly what was read.

use std::{mem, time::Duration};

use super::{
    Effect, Known, LaneRules, LaneToken, Next, PutKind, UnderWay,
    unsaved::{UnsavedFold, UnsavedRun, Write},
};
use crate::{
    event::{Revision, Version, next_after},
    projection::{FoldError, OnDeletion, State, folding::fold_events},
    replica::{Demand, Header, Put, Quarantine, item::Body},
};

/// When this lane puts, and when it has put.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last_put: Option<Duration>,
    /// Since when the version has been ahead of the stored one without a change.
    pub(super) unflushed_since: Option<Duration>,
    /// It is stored at once.
    pub(super) flushes: bool,
    /// Deliveries up to this one that are settled now were settled by a put.
    pub(super) written: Option<LaneToken>,
}

/// A put that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Putting {
    /// `None`: a fold's put.
    write: Option<Write>,
    /// What is stored stays, and the state in hand may not be its.
    adrift: bool,
    pub(super) high: LaneToken,
}

impl Known {
    /// What a put of folded events waits for, if it does.
    pub(super) fn waits_to_put(&self, now: Duration) -> Option<Next> {
        if self.unsaved.administrative.is_some() {
            return None;
        }
        let due = self.pace.last_put.map(|last| last + self.rules.min_write_interval);
        match due {
            Some(due) if now < due => Some(Next::WaitUntil(due)),
            _ if self.inbox.held_back => Some(Next::HeldBack),
            _ => None,
        }
    }

    pub(super) fn put(&mut self, now: Duration) -> Next {
        if let Some(next) = self.waits_to_put(now) {
            return next;
        }
        if self.unsaved.retries() && self.agenda.read && self.unsaved.write() == Some(Write::Repair) {
            self.base.header.quarantine = Some(Quarantine::folded_again(self.base.next()));
        }
        let body = if self.keeps_stored() {
            Body::Stored
        } else {
            let form = form_of(&self.rules, &self.stream, &self.base.header, &self.base.state);
            form.unwrap_or_else(|error| self.back_to_storable(&error))
        };
        let write = self.unsaved.write().or(self.base.rebase.then_some(Write::Repair));
        let kind = match write {
            None => PutKind::Fold,
            Some(write) if write.is_mark() && self.stored_mark().is_some() => PutKind::Again,
            Some(write) => write.into(),
        };
        let demand = self.demand(write);
        self.under_way = Some(UnderWay::Put(Putting {
            write,
            adrift: body == Body::Stored && self.base.rebase,
            high: self.inbox.newest,
        }));
        let put = Put {
            stream: self.stream.clone(),
            header: self.base.header.clone(),
            body,
            demand,
        };
        Next::Do(Effect::Put(Box::new(put), kind))
    }

    /// What the put demands of the stored item; an administrative write raises the generation.
    fn demand(&mut self, write: Option<Write>) -> Demand {
        let base = &mut self.base;
        match &base.stored {
            None => Demand::Absent,
            Some(stored) if write.is_none() => Demand::Older {
                generation: stored.generation,
            },
            Some(_) if base.broken.as_ref().is_some_and(|b| b.demand() == Demand::Broken) => Demand::Broken,
            Some(stored) => {
                base.header.generation = stored.generation + 1;
                Demand::Exactly {
                    generation: stored.generation,
                    version: stored.version,
                    deleted: stored.deleted,
                }
            }
        }
    }

    /// Whether the put is a mark on what is stored as it is, or says something else of a state that
    /// stays though nobody can read it.
    fn keeps_stored(&self) -> bool {
        let base = &self.base;
        let (Some(stored), Some(write)) = (&base.stored, self.unsaved.write()) else {
            return false;
        };
        let same = base.header.version == stored.version && !self.unsaved.changed();
        let dropped = base.header.deleted && self.rules.on_deletion == OnDeletion::Remove;
        same && (write.is_mark() || (base.unreadable.is_some() && !dropped))
    }

    /// Folds again from where the run began, up to the last event whose state can be stored, and
    /// quarantines the one after it.
    fn back_to_storable(&mut self, error: &FoldError) -> Body {
        let mut run = match mem::take(&mut self.unsaved.folded) {
            UnsavedFold::Run(run) => run,
            other => {
                self.unsaved.folded = other;
                // Stored before, by other code or under another limit, and not storable now: it stays
                // as it is, and no event is to blame.
                if self.unsaved.administrative.is_some() && self.stays_as_stored() {
                    return Body::Stored;
                }
                return self.marked_as_stored(self.base.next(), error);
            }
        };
        let Some(Storable { events, best, body }) = run.storable(&self.rules, &self.stream) else {
            // Not even what it began with, which other code has stored: that stays as it is.
            let blamed = run.events.first();
            let blamed = blamed.map_or(next_after(run.begins().0.version), |event| event.revision);
            self.unsaved.folded = UnsavedFold::Run(run);
            return self.marked_as_stored(blamed, error);
        };
        let blamed = match (run.unstorable, run.events.get(events)) {
            (Some((revision, created)), _) => {
                run.created.truncate(created);
                revision
            }
            (None, event) => event.map_or(self.base.next(), |event| event.revision),
        };
        run.events.truncate(events);
        (self.base.header, self.base.state) = best;
        self.unsaved.folded = UnsavedFold::Run(run);
        self.agenda.read = false;
        self.inbox.act_again();
        // What is folded in place of a state that cannot be read does not replace it half done.
        let keeps = self.base.falls_short();
        self.poisoned(blamed, error, error.class());
        if keeps { Body::Stored } else { body }
    }

    /// Quarantines an event, on what is stored as it is. How the stream stands was seen before: what
    /// asked for that is heeded behind the mark, for a deletion, or a life that followed one, ends it.
    fn marked_as_stored(&mut self, at: Revision, error: &FoldError) -> Body {
        self.inbox.act_again();
        self.back_to_stored();
        self.poisoned(at, error, error.class());
        if self.base.stored.is_some() {
            Body::Stored
        } else {
            Body::Nothing
        }
    }

    /// Whether what an administrative put says leaves the stored state and its version as they are.
    fn stays_as_stored(&self) -> bool {
        let base = &self.base;
        // A version that moved without a change would be read again and again.
        !base.rebase && base.stored.is_some() && base.header.version == base.durable()
    }

    pub(super) fn stored(&mut self, put: Putting, now: Duration) {
        let Putting { write, adrift, high } = put;
        if write.is_some_and(Write::is_mark) {
            self.agenda.read = false;
            self.note.see();
        }
        let goes_on = self.unsaved.retries() && self.agenda.read;
        if let UnsavedFold::Run(mut run) = mem::take(&mut self.unsaved).folded {
            run.let_go(self.base.durable());
            self.tally.durable.append(&mut run.created);
        }
        self.pace = Pace {
            last_put: Some(now),
            unflushed_since: None,
            flushes: false,
            written: Some(high),
        };
        // What is stored is not what is in hand: whatever comes next begins with reading it.
        self.store_read = Some(high).filter(|_| !adrift);
        let cleared = self.stored_mark().is_some() && self.base.header.quarantine.is_none();
        let base = &mut self.base;
        base.stored = Some(base.header.clone());
        if !adrift {
            // A state that was dropped is not one to fold on.
            let removes = self.rules.on_deletion == OnDeletion::Remove;
            base.rebase = base.header.deleted && removes && base.header.version.is_some();
            base.unreadable = None;
        }
        if goes_on {
            base.header.quarantine = None;
            self.unsaved.retry();
        } else if cleared {
            // Another task may have settled a delivery by the mark after the stream was read and
            // before the mark was cleared: what came in between is read now.
            self.agenda.read = true;
            self.owe();
        }
    }

    /// Whether the version has moved without a change.
    pub(super) fn is_ahead(&self) -> bool {
        !self.base.rebase && self.base.header.version != self.base.durable()
    }

    /// Nothing is left to do but to store, in time, a version that moved without a change.
    pub(super) fn flush_or_idle(&mut self, now: Duration) -> Next {
        if !self.is_ahead() {
            return Next::Idle;
        }
        let due = *self.pace.unflushed_since.get_or_insert(now) + self.rules.keep_flush;
        if now < due && !self.pace.flushes {
            return Next::WaitUntil(due);
        }
        self.put(now)
    }
}

/// How far a run can be stored: its first events, and the replica after them.
struct Storable {
    events: usize,
    best: (Header, State),
    body: Body,
}

impl UnsavedRun {
    /// `None`: not even what it begins with can be. What it comes to in the end is known not to be.
    fn storable(&self, rules: &LaneRules, stream: &str) -> Option<Storable> {
        let begins = self.begins();
        let (mut good, mut bad) = (0, self.events.len());
        let mut body = form_of(rules, stream, &begins.0, &begins.1).ok()?;
        let mut best = begins.clone();
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            let begins = (&begins.0, &begins.1);
            let folded = fold_events(&*rules.fold, begins, &self.events[..middle], rules.commands);
            match form_of(rules, stream, &folded.header, &folded.state) {
                Ok(storable) => {
                    good = middle;
                    body = storable;
                    best = (folded.header, folded.state);
                }
                Err(_) => bad = middle,
            }
        }
        Some(Storable {
            events: good,
            best,
            body,
        })
    }

    /// Keeps of a refold's events what they have come to, `folded`, or how far that could be stored.
    pub(super) fn fold_down(&mut self, rules: &LaneRules, stream: &str, folded: (&Header, &State), durable: Version) {
        if form_of(rules, stream, folded.0, folded.1).is_ok() {
            self.storable = Some((folded.0.clone(), folded.1.clone()));
            self.unstorable = None;
        } else if self.unstorable.is_none() {
            let Some(Storable { events, best, .. }) = self.storable(rules, stream) else {
                return;
            };
            let beyond = self.events.split_off(events);
            self.let_go(durable);
            self.unstorable = beyond.first().map(|event| (event.revision, self.created.len()));
            self.storable = Some(best);
            self.events = beyond;
        }
        self.let_go(durable);
    }
}

pub(super) fn form_of(rules: &LaneRules, stream: &str, header: &Header, state: &State) -> Result<Body, FoldError> {
    let dropped = header.deleted && rules.on_deletion == OnDeletion::Remove;
    if header.version.is_none() || dropped {
        return Ok(Body::Nothing);
    }
    (rules.form)(stream, header, rules.fold.encode(state)?)
}
