//! Which deliveries are settled.
//!
//! Invariant: I3 settled: only by what is durable, by what changed nothing, or by what the stream was seen
//! not to have. A delivery that does not look like what was folded is checked first.

use std::mem;

use super::{
    Known, LaneBase, LaneToken, Next, UnderWay,
    gap::{Gone, NotYet},
    inbox::Pending,
};
use crate::{
    event::Revision,
    journal::Slice,
    reading::{Evidence, Reading},
    replica::{Divergence, Header},
};

impl Known {
    /// Settles deliveries that what is durable covers, and those that the stream no longer has.
    pub(super) fn settle(&mut self) {
        if self.base.header.version.is_none() {
            self.inbox.reconsider_suspects();
        }
        let unsaved = self.unsaved.any();
        self.settle_covered(unsaved);
        // What was folded before it comes first.
        if !unsaved && let Some(gone) = self.not_found.gone.take() {
            self.settle_gone(gone);
        }
    }

    fn settle_covered(&mut self, unsaved: bool) {
        let Some((header, covered)) = covers(&self.base, unsaved) else {
            return;
        };
        let seen = self.inbox.waiting.get(&covered).and_then(|w| w.event.as_ref());
        let verified = seen.is_some_and(|event| header.ends_with(event) == Some(true));
        let above = self.inbox.waiting.split_off(&(covered + 1));
        for (revision, waiting) in mem::replace(&mut self.inbox.waiting, above) {
            if suspicious(header, self.pace.written, &waiting) {
                self.inbox.suspect(revision, waiting);
            } else {
                let unwritten = waiting.tokens.iter().filter(|token| Some(**token) > self.pace.written);
                self.tally.settled_without_write += unwritten.count() as u64;
                self.inbox.ack(waiting.tokens);
            }
        }
        self.base.verified |= verified;
    }

    fn settle_gone(&mut self, gone: Gone) {
        let hopeless = self.not_found.not_yet.as_ref().and_then(NotYet::hopeless);
        let next = self.base.next();
        let mut settled = Vec::new();
        for (revision, waiting) in self.inbox.waiting.range_mut(next..) {
            let high = match hopeless {
                _ if *revision < gone.below => gone.high,
                Some(waited) if waiting.event.is_none() => waited,
                _ => continue,
            };
            settled.extend(waiting.tokens.extract_if(.., |token| *token <= high));
        }
        self.tally.settled_without_write += settled.len() as u64;
        self.inbox.ack(settled);
        self.inbox.waiting.retain(|_, waiting| !waiting.tokens.is_empty());
        if self.inbox.waiting.range(next..).next().is_none() {
            self.not_found.not_yet = None;
        }
    }

    /// The version to compare with the stream, when deliveries do not fit the replica.
    pub(super) fn suspicion(&self) -> Option<Revision> {
        let suspects = self.inbox.has_suspects() && self.unsaved.administrative.is_none();
        self.base.header.version.filter(|_| suspects)
    }

    pub(super) fn check(&mut self, at: Revision) -> Next {
        self.under_way = Some(UnderWay::Check { at });
        self.read_one(at)
    }

    pub(super) fn checked(&mut self, at: Revision, slice: Slice) {
        match Reading::new(&self.base.header, at, slice).evidence {
            Evidence::Another => self.diverged(Divergence::OtherEvent(at)),
            Evidence::Same => {
                self.base.verified = true;
                self.inbox.clear_suspects();
            }
            // Truncated, or the stream is shorter than the replica: the look tells which.
            _ => {
                self.inbox.look_for_suspects();
                self.agenda.look.want();
            }
        }
    }
}

/// The header that covers deliveries, and the version that it covers them to.
fn covers(base: &LaneBase, unsaved: bool) -> Option<(&Header, Revision)> {
    // What is stored is about to be replaced, or is no replica: it covers nothing.
    if (base.rebase && !base.header.deleted) || base.broken.is_some() {
        return None;
    }
    // All that is folded and not stored changed nothing.
    let header = if unsaved { base.stored.as_ref()? } else { &base.header };
    Some((header, header.version?))
}

/// Whether a delivery at or below the version does not look like one of the events folded in.
fn suspicious(header: &Header, written: Option<LaneToken>, waiting: &Pending) -> bool {
    let Some(last) = &header.event else { return false };
    match &waiting.event {
        Some(event) => header.ends_with(event).map_or(event.created > last.at, |own| !own),
        // A link is written soon after its event, and before most of what follows that. What was written
        // since the delivery came was read for it.
        None => waiting.named_at > Some(last.at) && waiting.tokens.iter().any(|token| Some(*token) > written),
    }
}
