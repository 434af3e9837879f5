//! Which deliveries are settled.
//!
//! Invariant: I3 settled: only by what is durable, by what changed nothing, or by what the stream was seen
//! not to have. A delivery that does not look like what was folded is checked first.

use std::mem;

use super::{Hint, Lane, Verdict, gap::NotYet};
use crate::{
    event::{RawEvent, Revision},
    journal::Slice,
    replica::Header,
};

impl Lane {
    /// Settles deliveries that what is durable covers, and those that the stream no longer has.
    pub(super) fn settle(&mut self) {
        let unreadable = self.unreadable.take();
        if self.base.as_ref().is_some_and(|base| base.header.version.is_none()) {
            self.reconsider_suspects();
        }
        let Some(base) = self.base.as_ref() else {
            return;
        };
        let replaces = base.rebase && !base.header.deleted;
        let unsaved = self.changed || self.administrative.is_some();
        let header = if unsaved {
            base.stored.as_ref().unwrap_or(&base.header)
        } else {
            &base.header
        };
        let covered = match (replaces || base.broken.is_some(), unsaved) {
            // What is stored is about to be replaced, or is no replica: it covers nothing.
            (true, _) => None,
            (false, true) => base.durable(),
            // All that is folded and not stored changed nothing.
            (false, false) => base.header.version,
        };
        let seen = self.waiting.get(&covered.unwrap_or(Revision::MAX));
        let last = header.event.as_ref().filter(|_| header.version == covered);
        let same = seen.and_then(|w| w.event.as_ref()).zip(last);
        let verified = same.is_some_and(|(event, last)| event.id == last.id);
        if let Some(covered) = covered {
            let above = self.waiting.split_off(&(covered + 1));
            for (revision, waiting) in mem::replace(&mut self.waiting, above) {
                if suspicious(header, revision, waiting.event.as_ref()) {
                    self.suspects.push((revision, waiting));
                } else {
                    let unwritten = waiting
                        .tokens
                        .iter()
                        .filter(|token| Some(**token) > self.written)
                        .count();
                    self.tally.settled_without_write += unwritten as u64;
                    self.verdicts.extend(waiting.tokens.into_iter().map(Verdict::Ack));
                }
            }
        }
        let version = base.header.version;
        if verified && let Some(base) = self.base.as_mut() {
            base.verified = true;
        }
        let Some((high, below)) = unreadable else { return };
        // What was folded before it comes first.
        if unsaved {
            self.unreadable = Some((high, below));
            return;
        }
        let hopeless = self.not_yet.as_ref().and_then(NotYet::hopeless);
        for (revision, waiting) in self.waiting.range_mut(crate::event::next_after(version)..) {
            let high = match hopeless {
                _ if *revision < below => high,
                Some(waited) if waiting.event.is_none() => waited,
                _ => continue,
            };
            let (gone, newer): (Vec<_>, Vec<_>) = waiting.tokens.drain(..).partition(|token| *token <= high);
            waiting.tokens = newer;
            self.tally.settled_without_write += gone.len() as u64;
            self.verdicts.extend(gone.into_iter().map(Verdict::Ack));
        }
        self.waiting.retain(|_, waiting| !waiting.tokens.is_empty());
        if self.waiting.range(crate::event::next_after(version)..).next().is_none() {
            self.not_yet = None;
        }
    }

    /// The version to compare with the stream, when deliveries do not fit the replica.
    pub(super) fn suspicion(&self) -> Option<Revision> {
        if self.suspects.is_empty() || self.administrative.is_some() {
            return None;
        }
        self.base.as_ref().and_then(|base| base.header.version)
    }

    pub(super) fn checked(&mut self, at: Revision, slice: &Slice) {
        match slice.events.first() {
            Some(event) if event.revision == at => {
                let same = self.known().header.event.as_ref().is_none_or(|e| e.id == event.id);
                if same {
                    self.known().verified = true;
                    self.clear_suspects();
                } else {
                    self.diverged(&other_event_at(at));
                }
            }
            // Truncated, or the stream is shorter than the replica: the look tells which.
            _ => {
                let suspects = self.suspects.drain(..).flat_map(|(_, waiting)| waiting.tokens);
                self.acting.extend(suspects.map(|token| (token, Hint::Look)));
                self.look_wanted = true;
            }
        }
    }
}

/// Whether a delivery at or below the version does not look like one of the events folded in.
pub(super) fn suspicious(header: &Header, revision: Revision, event: Option<&RawEvent>) -> bool {
    let (Some(event), Some(last)) = (event, header.event.as_ref()) else {
        return false;
    };
    if header.version == Some(revision) {
        event.id != last.id
    } else {
        event.created > last.at
    }
}

pub(super) fn other_event_at(revision: Revision) -> String {
    format!("the stream has another event at revision {revision} than the replica was folded from")
}
