//! How the stream stands: deletion, revival, a stream that is shorter than its replica.
//!
//! Invariant: I4 hint: that a stream is deleted, lives again or begins later is seen at the leader, and a
//! leader that may be behind is asked again before it is believed.

use std::time::Duration;

use super::{
    Effect, Hint, Lane, Next, OnDeletion, PutKind, Token, UnderWay,
    gap::{LONGEST_PAUSE, SHOWN_WITHIN},
};
use crate::{
    event::Revision,
    journal::{ReadLimit, Slice, Standing},
};

impl Lane {
    pub(super) fn look(&mut self) -> Next {
        // What follows from the look is decided on the store's own word, not on a cached base.
        if self.has(Hint::Look) && self.mark_read < Some(self.newest) && !self.changed && self.administrative.is_none()
        {
            return self.load(true);
        }
        self.look_wanted = false;
        let mut looks = self.drain_hints(&[Hint::Look]);
        let hinted = !looks.is_empty();
        self.acting.append(&mut looks);
        self.under_way = Some(UnderWay::Look {
            high: self.newest,
            hinted,
        });
        Next::Do(Effect::Look)
    }

    pub(super) fn looked(&mut self, standing: &Standing, high: Token, hinted: bool, now: Duration) {
        let fold = self.rules.fold.clone();
        let (restarts, removes) = (self.rules.restarts(), self.rules.on_deletion == OnDeletion::Remove);
        let stale = self.mark_read < Some(high);
        let short = self.short.take();
        let base = self.known();
        match standing {
            Standing::Live(newest) => {
                let newest = newest.as_ref().map(|n| n.revision);
                let version = if base.unreadable.is_some() {
                    base.durable()
                } else {
                    base.header.version.filter(|_| !base.rebase)
                };
                if newest.is_some() && newest < version {
                    let text = newest.map_or_else(String::new, |n| n.to_string());
                    let what = format!("the stream ends at revision {text}, before the replica's version");
                    return self.contradicted(&what, short, now);
                }
                if base.header.deleted {
                    if newest > base.header.version {
                        self.read_wanted = true;
                    } else {
                        // Its old events are readable again.
                        base.header.deleted = false;
                        let unreadable = base.unreadable.is_some();
                        let dropped = base.rebase && !unreadable;
                        if unreadable && !restarts {
                            base.refold(&*fold);
                            self.read_wanted = true;
                        }
                        self.administrative = Some(PutKind::Repair);
                        if restarts || dropped {
                            self.start_over();
                        }
                    }
                } else {
                    // A deletion and a revival may have gone by unseen.
                    let marked = base.header.quarantine.is_some();
                    let known = base.header.version.is_some();
                    self.probe_wanted = marked || (restarts && known && hinted);
                    // An item stands against a task that still holds events from before.
                    self.read_wanted |= restarts && hinted && !known;
                }
            }
            Standing::SoftDeleted | Standing::Tombstoned => {
                if !base.header.deleted || base.header.quarantine.is_some() {
                    // A state that cannot be read is kept as it is, like any other.
                    let kept = base.stored.clone().filter(|_| base.unreadable.is_some());
                    let keeps = kept.is_some();
                    if let Some(stored) = kept {
                        base.header = stored;
                        base.state = fold.initial();
                    }
                    base.header.deleted = true;
                    base.header.quarantine = None;
                    if removes {
                        base.state = fold.initial();
                    }
                    if keeps {
                        self.changed = false;
                        self.run = None;
                    }
                    self.administrative = Some(PutKind::Deletion);
                } else if stale {
                    // Another task may have written since: only the store's own word settles.
                    self.load_wanted = true;
                }
                self.read_wanted = false;
                self.unreadable = Some((high, Revision::MAX));
            }
            Standing::Missing => {
                if base.durable().is_some() || base.header.version.is_some() {
                    return self.contradicted("the stream is not in the event store", short, now);
                }
                self.read_wanted = false;
                self.found_nothing(high, 0, now);
            }
        }
    }

    /// The stream does not have what was folded from it. A new leader may not show it yet, and a
    /// deposed one never will: it is believed when it has stayed so for longer than an election takes.
    pub(super) fn contradicted(&mut self, what: &str, short: Option<(Duration, Duration)>, now: Duration) {
        let since = short.map_or(now, |(since, _)| since);
        if now < since + SHOWN_WITHIN {
            self.short = Some((since, now + LONGEST_PAUSE));
        } else {
            self.diverged(what);
        }
    }

    pub(super) fn probe(&mut self) -> Next {
        self.under_way = Some(UnderWay::Probe);
        Next::Do(Effect::Read {
            from: 0,
            limit: ReadLimit {
                events: 1,
                ..self.rules.read
            },
        })
    }

    pub(super) fn probed(&mut self, slice: &Slice) {
        self.probe_wanted = false;
        let restarts = self.rules.restarts();
        let first = slice.events.first().map(|event| event.revision);
        let base = self.known();
        let mark = base.header.quarantine.as_ref();
        let outlived = mark.is_some_and(|mark| first.is_none_or(|first| first > mark.at));
        let starts_over =
            restarts && base.header.version.is_some() && first.is_none_or(|first| first > base.header.first);
        if outlived {
            base.header.quarantine = None;
            self.retrying = true;
        }
        if starts_over {
            self.start_over();
        } else if outlived {
            self.administrative = Some(PutKind::Repair);
            self.unreadable = None;
            self.read_wanted = true;
        }
    }

    /// Folds from the first readable event; what was folded so far is replaced when that is done. A mark
    /// is tried with it.
    pub(super) fn start_over(&mut self) {
        let fold = self.rules.fold.clone();
        let base = self.known();
        let marked = base.header.quarantine.take().is_some();
        base.restart(&*fold);
        self.retrying |= marked;
        self.administrative = Some(PutKind::Repair);
        self.run = None;
        self.unreadable = None;
        self.read_since_put = false;
        self.read_wanted = true;
    }
}
