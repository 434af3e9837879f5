//! What is put, when, and what follows when it is stored.
//!
//! Invariant: I2 monotonic: a fold's put demands its base, an administrative write exactly what was read.

use std::time::Duration;

use super::{Effect, Lane, Next, OnDeletion, PutKind, Rules, Token, UnderWay, fold::Run};
use crate::{
    event::Revision,
    projection::{FoldError, State, run::fold_run},
    replica::{Demand, Header, Put, Quarantine, item::Body},
};

impl Lane {
    pub(super) fn put(&mut self, now: Duration) -> Next {
        if let Some(next) = self.waits_to_put(now) {
            return next;
        }
        if self.retrying && self.read_wanted && self.administrative == Some(PutKind::Repair) {
            let base = self.known();
            let at = base.next();
            base.header.quarantine = Some(Quarantine {
                at,
                reason: "It is being folded again.".into(),
                by: "".into(),
            });
        }
        let keeps = self.keeps_stored();
        let body = match self.body() {
            _ if keeps => Body::Stored,
            Ok(body) => body,
            Err(error) => self.back_to_storable(&error),
        };
        let keeps = body == Body::Stored;
        let (rebase, marked) = (self.known().rebase, self.stored_mark().is_some());
        let kind = match self.administrative {
            Some(kind) => kind,
            None if rebase => PutKind::Repair,
            None => PutKind::Fold,
        };
        let base = self.known();
        let demand = match &base.stored {
            None => Demand::Absent,
            Some(stored) if kind == PutKind::Fold => Demand::Older {
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
        };
        let header = base.header.clone();
        self.under_way = Some(UnderWay::Put {
            kind,
            adrift: keeps && rebase,
            high: self.newest,
        });
        let kind = match kind {
            PutKind::Quarantine(_) | PutKind::Diverged if marked => PutKind::Again,
            kind => kind,
        };
        Next::Do(Effect::Put(
            Box::new(Put {
                stream: self.stream.clone(),
                header,
                body,
                demand,
            }),
            kind,
        ))
    }

    /// What a put of folded events waits for, if it does.
    pub(super) fn waits_to_put(&self, now: Duration) -> Option<Next> {
        if self.administrative.is_some() {
            return None;
        }
        let due = self.last_put.map(|last| last + self.rules.min_write_interval);
        match due {
            Some(due) if now < due => Some(Next::WaitUntil(due)),
            _ if self.held_back => Some(Next::HeldBack),
            _ => None,
        }
    }

    /// Whether the put is a mark on what is stored as it is, or says something else of a state that
    /// stays though nobody can read it.
    pub(super) fn keeps_stored(&self) -> bool {
        let Some(base) = &self.base else { return false };
        let Some(stored) = &base.stored else { return false };
        let same = base.header.version == stored.version && !self.changed;
        match self.administrative {
            Some(PutKind::Quarantine(_) | PutKind::Diverged) => same,
            Some(_) => {
                let dropped = base.header.deleted && self.rules.on_deletion == OnDeletion::Remove;
                same && base.unreadable.is_some() && !dropped
            }
            None => false,
        }
    }

    pub(super) fn body(&self) -> Result<Body, FoldError> {
        let base = self.base.as_ref().expect("a put has a base");
        form_of(&self.rules, &self.stream, &base.header, &base.state)
    }

    /// Folds again from where the run began, up to the last event whose state can be stored, and
    /// quarantines the one after it.
    pub(super) fn back_to_storable(&mut self, error: &FoldError) -> Body {
        let Some(run) = self.run.take() else {
            // Stored before, by other code or under another limit, and not storable now: it stays as it
            // is, and no event is to blame.
            if self.administrative.is_some() && self.stays_as_stored() {
                return Body::Stored;
            }
            let next = self.known().next();
            return self.marked_as_stored(next, error);
        };
        let rules = self.rules.clone();
        let begins = run.begins();
        let (mut good, mut bad) = (0, run.events.len());
        let at = |n: usize| fold_run(&*rules.fold, begins.clone(), &run.events[..n], rules.commands);
        let mut best = begins.clone();
        let Ok(mut body) = form_of(&rules, &self.stream, &best.0, &best.1) else {
            // Not even what it began with, which other code has stored: that stays as it is.
            let blamed = run
                .events
                .first()
                .map_or(crate::event::next_after(begins.0.version), |event| event.revision);
            self.run = Some(run);
            return self.marked_as_stored(blamed, error);
        };
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            let folded = at(middle);
            match form_of(&rules, &self.stream, &folded.header, &folded.state) {
                Ok(storable) => {
                    good = middle;
                    body = storable;
                    best = (folded.header, folded.state);
                }
                Err(_) => bad = middle,
            }
        }
        let blamed = run.events.get(good).map_or(self.known().next(), |event| event.revision);
        let base = self.known();
        (base.header, base.state) = best;
        self.run = Some(Run {
            events: run.events.into_iter().take(good).collect(),
            ..run
        });
        self.read_wanted = false;
        self.act_again();
        // What is folded in place of a state that cannot be read does not replace it half done.
        let keeps = self.known().falls_short();
        self.poisoned(blamed, error, error.class());
        if keeps { Body::Stored } else { body }
    }

    /// Quarantines an event, on what is stored as it is.
    pub(super) fn marked_as_stored(&mut self, at: Revision, error: &FoldError) -> Body {
        self.act_again();
        self.back_to_stored();
        self.poisoned(at, error, error.class());
        if self.known().stored.is_some() {
            Body::Stored
        } else {
            Body::Nothing
        }
    }

    /// Whether what an administrative put says leaves the stored state and its version as they are.
    pub(super) fn stays_as_stored(&self) -> bool {
        let base = self.base.as_ref().filter(|base| !base.rebase);
        // A version that moved without a change would be read again and again.
        base.is_some_and(|base| base.stored.is_some() && base.header.version == base.durable())
    }

    /// Nothing is left to do but to store, in time, a version that moved without a change.
    pub(super) fn flush_or_idle(&mut self, now: Duration) -> Next {
        let base = self.known();
        if base.rebase || base.header.version == base.durable() {
            self.run = None;
            return Next::Idle;
        }
        let due = *self.dirty_since.get_or_insert(now) + self.rules.keep_flush;
        if now < due {
            return Next::WaitUntil(due);
        }
        self.put(now)
    }

    pub(super) fn stored(&mut self, kind: PutKind, adrift: bool, high: Token, now: Duration) {
        let removes = self.rules.on_deletion == OnDeletion::Remove;
        if matches!(kind, PutKind::Quarantine(_) | PutKind::Diverged) {
            self.read_wanted = false;
            self.noted = true;
        }
        if let Some(mut run) = self.run.take() {
            run.let_go(self.known().durable());
            self.tally.durable.append(&mut run.created);
        }
        self.changed = false;
        self.administrative = None;
        self.read_since_put = false;
        self.last_put = Some(now);
        self.dirty_since = None;
        // What is stored is not what is in hand: whatever comes next begins with reading it.
        self.mark_read = Some(high).filter(|_| !adrift);
        self.written = Some(high);
        let goes_on = self.retrying && self.read_wanted;
        let cleared = self.stored_mark().is_some() && self.known().header.quarantine.is_none();
        let base = self.known();
        base.stored = Some(base.header.clone());
        if !adrift {
            // A state that was dropped is not one to fold on.
            base.rebase = base.header.deleted && removes && base.header.version.is_some();
            base.unreadable = None;
        }
        if goes_on {
            base.header.quarantine = None;
            self.administrative = Some(PutKind::Repair);
        } else if cleared {
            // Another task may have settled a delivery by the mark after the stream was read and
            // before the mark was cleared: what came in between is read now.
            self.read_wanted = true;
            self.owing = true;
        } else if !self.read_wanted {
            self.owing = false;
        }
        self.retrying = goes_on;
    }
}

pub(super) fn form_of(rules: &Rules, stream: &str, header: &Header, state: &State) -> Result<Body, FoldError> {
    let dropped = header.deleted && rules.on_deletion == OnDeletion::Remove;
    if header.version.is_none() || dropped {
        return Ok(Body::Nothing);
    }
    (rules.form)(stream, header, rules.fold.encode(state)?)
}
