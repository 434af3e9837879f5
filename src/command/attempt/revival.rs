//! Streams that are gone, deleted or begin again: what the policy makes of them.
//!
//! I1 prefix: a new life goes on with the state before it, or without, by the policy, and says so.

use super::{Attempt, OnDeleted, appending::Doubt};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        base::{Base, Lineage},
        error::CommandError,
        observe::{Discard, Observation},
    },
    event::Revision,
    journal::{Expected, Standing},
};

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    pub(super) fn deleted(&mut self, tombstoned: bool) {
        self.confirmed = false;
        if self.in_doubt() {
            return self.give_up();
        }
        // What is known of the life before is kept, with what ended it: the next command looks first.
        self.base.header.deleted = !tombstoned;
        self.confirmed = !tombstoned;
        self.done(Err(CommandError::Deleted {
            stream: self.stream.to_string(),
            tombstoned,
        }));
    }

    pub(super) fn knows_command(&self) -> bool {
        self.base.landed(self.identity.command).is_some()
    }

    /// The base was marked deleted and the stream lives: what its item says next is the daemon's.
    pub(super) fn alive(&mut self) {
        if std::mem::take(&mut self.base.header.deleted) {
            self.base.lineage = Lineage::Foreign;
        }
        self.reviving = false;
    }

    pub(super) fn stands(&mut self, standing: &Standing) {
        let version = self.base.header.version;
        match standing {
            Standing::Tombstoned => return self.deleted(true),
            Standing::SoftDeleted if self.in_doubt() && self.doubt != Doubt::WrittenBefore => {
                return self.lost_track();
            }
            // It was carried out before the deletion; doing it again would be twice.
            Standing::SoftDeleted if self.doubt == Doubt::WrittenBefore || self.knows_command() => {
                return self.deleted(false);
            }
            Standing::SoftDeleted => {
                self.hole = None;
                match self.rules.on_deleted {
                    OnDeleted::Refuse => return self.deleted(false),
                    OnDeleted::Continue => {}
                    OnDeleted::Restart => {
                        let former = std::mem::replace(&mut self.base, Base::initial(self.fold, Lineage::Foreign));
                        if former.header.version.is_some() {
                            self.former = Some(former);
                        }
                    }
                }
                self.base.header.deleted = true;
                self.reviving = true;
            }
            Standing::Missing if version.is_some() && self.in_doubt() => return self.lost_track(),
            Standing::Missing => {
                if version.is_some() {
                    self.observed.push(Observation::Discarded(Discard::WentBackwards));
                    self.base = Base::initial(self.fold, Lineage::Foreign);
                }
                self.hole = None;
                self.reviving = false;
            }
            Standing::Live(Some(newest)) if Some(newest.revision) < version => {
                return self.discard(Discard::WentBackwards);
            }
            Standing::Live(_) => {
                // It moved while we looked, or it was revived: read it.
                self.alive();
                let next = self.catch_up();
                if self.waits < self.rules.attempts || self.awaiting() {
                    self.wait_then(next);
                } else {
                    self.give_up();
                }
                return;
            }
        }
        self.confirmed = true;
        self.resume();
    }

    /// Where an append on the base in hand expects the stream to stand. A deleted stream's end is
    /// not shown by anything: the base's version, as long as no conflict spoke against it; then
    /// "no stream", which the server judges by the deletion. Where the caller says a version: that
    /// one and no other.
    pub(super) fn expected(&self) -> Expected {
        if let Some(expected) = self.callers_place() {
            return Expected::Exact(expected);
        }
        match self.base.header.version {
            Some(version) if self.reviving && !self.unknown_end => Expected::Exact(version),
            _ if self.reviving => Expected::NoStream,
            _ => Expected::from(self.place()),
        }
    }

    /// The caller's version of a deleted stream that goes on where it ended: the base may end before
    /// that, and the server alone knows. A stream that starts over has no version before its first event.
    pub(super) fn callers_place(&self) -> Option<Revision> {
        let goes_on = self.reviving && self.rules.on_deleted == OnDeleted::Continue;
        self.rules.expected.filter(|_| goes_on)
    }
}
