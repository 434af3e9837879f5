//! Streams that are gone, deleted or begin again: what the policy makes of them.
//!
//! I1 prefix: a new life goes on with the state before it, or without, by the policy, and says so.

use super::{
    Attempt, NextPhase, OnDeleted,
    sent::{Doubt, Open},
};
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

/// What is known of the stream's lives.
#[derive(Default)]
pub(super) struct Lives {
    /// The stream is deleted, and the append is to revive it.
    pub(super) reviving: bool,
    /// A deleted stream does not end where the base does: what lies between cannot be known.
    pub(super) unknown_end: bool,
    /// An event that was known to be there cannot be read any more, though the stream goes on.
    pub(super) gone: Option<Revision>,
    /// The stream was deleted and lives again: by this attempt's append, or another's.
    pub(super) revived: bool,
    /// The life before, of a deleted stream that starts over.
    pub(super) former: Option<Base>,
}

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    pub(super) fn deleted(&mut self, open: Open<D::Reply>, tombstoned: bool) -> NextPhase<A, C, D> {
        self.confirmed = false;
        if open.in_doubt() {
            return self.give_up(open);
        }
        // What is known of the life before is kept, with what ended it: the next command looks first.
        self.base.header.deleted = !tombstoned;
        self.confirmed = !tombstoned;
        let stream = self.stream.to_string();
        self.refused(open, CommandError::Deleted { stream, tombstoned })
    }

    pub(super) fn knows_command(&self) -> bool {
        self.base.landed(self.identity.command).is_some()
    }

    /// The base was marked deleted and the stream lives: what its item says next is the daemon's.
    pub(super) fn alive(&mut self) {
        if std::mem::take(&mut self.base.header.deleted) {
            self.base.lineage = Lineage::Foreign;
        }
        self.lives.reviving = false;
    }

    pub(super) fn stands(&mut self, open: Open<D::Reply>, standing: &Standing) -> NextPhase<A, C, D> {
        let version = self.base.header.version;
        match standing {
            Standing::Tombstoned => return self.deleted(open, true),
            Standing::SoftDeleted if open.doubt() == Doubt::Lost => {
                return self.lost_track(open);
            }
            // It was carried out before the deletion; doing it again would be twice.
            Standing::SoftDeleted if open.doubt() == Doubt::WrittenBefore || self.knows_command() => {
                return self.deleted(open, false);
            }
            Standing::SoftDeleted => {
                self.hole = None;
                match self.rules.on_deleted {
                    OnDeleted::Refuse => return self.deleted(open, false),
                    OnDeleted::Continue => {}
                    OnDeleted::Restart => {
                        let former = std::mem::replace(&mut self.base, Base::initial(self.fold, Lineage::Foreign));
                        if former.header.version.is_some() {
                            self.lives.former = Some(former);
                        }
                    }
                }
                self.base.header.deleted = true;
                self.lives.reviving = true;
            }
            Standing::Missing if version.is_some() && open.in_doubt() => return self.lost_track(open),
            Standing::Missing => {
                if version.is_some() {
                    self.observed.push(Observation::Discarded(Discard::WentBackwards));
                    self.base = Base::initial(self.fold, Lineage::Foreign);
                }
                self.hole = None;
                self.lives.reviving = false;
            }
            Standing::Live(Some(newest)) if Some(newest.revision) < version => {
                return self.discard(open, Discard::WentBackwards);
            }
            Standing::Live(_) => {
                // It moved while we looked, or it was revived: read it.
                self.alive();
                if self.waits >= self.rules.attempts && !open.awaits_beyond(self.place()) {
                    return self.give_up(open);
                }
                let next = self.catch_up(open);
                return self.wait_then(next);
            }
        }
        self.confirmed = true;
        self.resume(open)
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
            Some(version) if self.lives.reviving && !self.lives.unknown_end => Expected::Exact(version),
            _ if self.lives.reviving => Expected::NoStream,
            _ => Expected::from(self.place()),
        }
    }

    /// The caller's version of a deleted stream that goes on where it ended: the base may end before
    /// that, and the server alone knows. A stream that starts over has no version before its first event.
    pub(super) fn callers_place(&self) -> Option<Revision> {
        let goes_on = self.lives.reviving && self.rules.on_deleted == OnDeleted::Continue;
        self.rules.expected.filter(|_| goes_on)
    }
}
