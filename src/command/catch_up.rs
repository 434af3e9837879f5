//! Catching up: what reads of its stream make of a base.
//!
//! I1 prefix, I6 pure: what a read shows of the stream decides whether a base is built on, started
//! over or thrown away; nothing is folded across a doubt.
//!
//! A hole, wherever it stands, is crossed in one way, which is the daemon's too: what was folded
//! before it is no beginning of what stands behind it, so that the fold starts over with the first
//! event behind it (`first` says so), or not at all, by the policy for lost history. While nothing
//! is readable behind it, the state before it stays.

use uuid::Uuid;

use super::base::{Base, Lineage};
use crate::{
    event::{RawEvent, Revision, next_after},
    journal::{Hole, Presence, Slice},
    projection::{
        Fold, FoldError, OnLostHistory, State,
        folding::{command_of, fold_events},
    },
    reading::{Evidence, Reading, Stretch},
    replica::Header,
};

/// How reads are folded on.
#[derive(Clone, Copy, Debug)]
pub struct CatchUpRules {
    /// Command ids that a header remembers.
    pub keep_commands: usize,
    /// Events that one load may bring before it is given up.
    pub cap: usize,
    /// A base whose last event cannot be read any more is started over from the first readable
    /// event (policy `restart`), even where nothing is missing between them.
    pub restarts: bool,
    /// Whether a fold starts over behind a hole, or ends before it.
    pub on_lost_history: OnLostHistory,
}

/// What one read did for a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// There is more to read.
    More,
    /// The base is the whole stream's fold, as the leader had it during this read.
    UpToDate,
    /// Nothing readable at or above the base's version: how the stream stands must be looked at.
    Nothing(Presence),
    /// The stream ends before the base's version.
    Shorter,
    /// The stream has another event at the base's version: the base is not this stream's.
    Diverged,
}

/// Why a base cannot be brought up to date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatchUpError {
    /// An event does not fold.
    #[error("fold revision {revision} of `{stream}`: {error}; the daemon quarantines such an aggregate too")]
    Unfoldable {
        /// The stream.
        stream: String,
        /// The event's revision.
        revision: Revision,
        /// Why.
        error: FoldError,
    },
    /// Events are gone without which the policy does not go on.
    #[error(
        "load `{stream}`: revisions {first} to {last} cannot be read any more, and no state covers them; bring them back, or take the rest for the whole with `on_lost_history` `partial`"
    )]
    LostHistory {
        /// The stream.
        stream: String,
        /// The first revision that is gone.
        first: Revision,
        /// The last.
        last: Revision,
    },
    /// The stream has more events to fold than one load may take.
    #[error(
        "load `{stream}`: more than {cap} events to fold; let the daemon project it, or raise the cap on events per load"
    )]
    TooLong {
        /// The stream.
        stream: String,
        /// The cap.
        cap: usize,
    },
}

/// A command's events as a read found them, and the base right after them.
#[derive(Clone, Debug)]
pub struct FoundCommand {
    /// Its events, in order.
    pub events: Vec<RawEvent>,
    /// The revision of the last of them.
    pub last: Revision,
    /// Header and state right after them.
    pub after: (Header, State),
}

/// A base on its way to the stream's end.
#[derive(Debug)]
pub struct CatchUp {
    /// The base so far.
    pub base: Base,
    /// The command that is looked for, and what was found of it.
    pub found: Option<FoundCommand>,
    /// Events folded so far.
    pub folded: usize,
    /// What stands behind the base and cannot be read, once the base is up to date: the stream goes
    /// on behind it.
    pub hole: Option<Hole>,
    /// The last event that was known to be there and cannot be read any more, though the stream goes
    /// on: it was deleted and revived, or truncated.
    pub gone: Option<Revision>,
    watched: Option<Uuid>,
    /// The event at the base's version has been seen to be the base's, or cannot be any more.
    verified: bool,
    /// Where the next read starts as long as it is not verified.
    again: Revision,
    rules: CatchUpRules,
}

impl CatchUp {
    /// Starts from `base`, looking for the events of the command `watched` on the way.
    pub fn new(base: Base, watched: Option<Uuid>, rules: CatchUpRules) -> Self {
        Self {
            verified: base.header.version.is_none(),
            again: base.seen.or(base.header.version).unwrap_or_default(),
            base,
            found: None,
            folded: 0,
            hole: None,
            gone: None,
            watched,
            rules,
        }
    }

    /// How far it came, when that is known to be this stream's: for whoever goes on later.
    pub fn part(&self) -> Option<&Base> {
        (self.verified && self.folded > 0).then_some(&self.base)
    }

    /// Where the next read starts: at the last event that was seen to be this stream's, or at the
    /// base's own version, as long as that is not known to be; after it from then on.
    pub fn from(&self) -> Revision {
        if self.verified {
            next_after(self.base.header.version)
        } else {
            self.again
        }
    }

    /// Takes what a read from [`Self::from`] brought.
    pub fn feed(&mut self, fold: &dyn Fold, slice: Slice) -> Result<Fed, CatchUpError> {
        let (nothing, presence) = (slice.events.is_empty(), slice.presence);
        let begun = self.verified && self.base.header.version.is_some();
        // Deleted between two pages, perhaps: then this is no stream's end.
        if nothing && (presence != Presence::Present || (slice.last.is_none() && !begun)) {
            return Ok(Fed::Nothing(presence));
        }
        if slice.ends_before(self.base.header.version) {
            return Ok(Fed::Shorter);
        }
        let (from, reached) = (self.from(), slice.events.last().map(|last| last.revision));
        if !self.verified && slice.events.first().is_some_and(|first| first.revision > from) {
            self.gone.get_or_insert(from);
            if self.rules.restarts {
                // What is left begins a new life, also where it stands below the former one's version.
                self.start_over(fold);
            }
        }
        let reading = Reading::new(&self.base.header, from, slice);
        match reading.evidence {
            Evidence::Another => return Ok(Fed::Diverged),
            Evidence::Unreached => {
                // What was folded is not folded again.
                self.again = reached.map_or(from, |last| last + 1);
                return Ok(Fed::More);
            }
            // Deleted and revived, or truncated.
            Evidence::Outlived | Evidence::Nothing if self.rules.restarts => {
                self.start_over(fold);
                return Ok(Fed::More);
            }
            Evidence::Same | Evidence::Outlived | Evidence::Nothing => self.verify(),
            Evidence::NotAsked => {}
        }
        self.hole = reading.hole;
        for Stretch { hole, events } in reading.stretches {
            if let Some(hole) = hole {
                self.cross(fold, hole, &events)?;
            }
            self.take(fold, &events)?;
        }
        Ok(if reading.end { Fed::UpToDate } else { Fed::More })
    }

    /// What is read from now on follows the base.
    fn verify(&mut self) {
        self.verified = true;
        self.base.verified = true;
        self.base.seen = None;
    }

    /// Starts over with the first event that can be read.
    fn start_over(&mut self, fold: &dyn Fold) {
        self.base = Base::initial(fold, Lineage::Foreign);
        self.verify();
    }

    /// Starts again behind a hole, where the policy allows that.
    fn cross(&mut self, fold: &dyn Fold, hole: Hole, behind: &[RawEvent]) -> Result<(), CatchUpError> {
        let header = &self.base.header;
        // The projection itself has stopped there.
        let marked = header.quarantine.as_ref().map(|mark| mark.at);
        let marked = marked.is_some_and(|at| (hole.first()..=hole.last()).contains(&at));
        if marked || !self.rules.on_lost_history.goes_on() {
            return Err(CatchUpError::LostHistory {
                stream: behind
                    .first()
                    .map_or_else(String::new, |event| event.stream.to_string()),
                first: hole.first(),
                last: hole.last(),
            });
        }
        if header.version.is_some() {
            self.start_over(fold);
        }
        Ok(())
    }

    fn take(&mut self, fold: &dyn Fold, events: &[RawEvent]) -> Result<(), CatchUpError> {
        let Some(first) = events.first() else { return Ok(()) };
        self.folded += events.len();
        if self.folded > self.rules.cap {
            return Err(CatchUpError::TooLong {
                stream: first.stream.to_string(),
                cap: self.rules.cap,
            });
        }
        // Cut after the watched command's events, so that the state right after them is seen.
        let mut rest = events;
        while !rest.is_empty() {
            let ours = |event: &RawEvent| self.watched.is_some() && command_of(event) == self.watched;
            let own = ours(&rest[0]);
            let cut = rest.iter().position(|e| ours(e) != own).unwrap_or(rest.len());
            let (run, later) = rest.split_at(cut);
            self.fold(fold, run)?;
            if let (true, Some(last)) = (own, run.last()) {
                let after = (self.base.header.clone(), self.base.state.clone());
                match &mut self.found {
                    // The same command twice: the window was left between them. The first counts.
                    Some(found) if found.last + 1 != run[0].revision => {}
                    Some(found) => {
                        found.events.extend_from_slice(run);
                        (found.last, found.after) = (last.revision, after);
                    }
                    None => {
                        self.found = Some(FoundCommand {
                            events: run.to_vec(),
                            last: last.revision,
                            after,
                        });
                    }
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn fold(&mut self, fold: &dyn Fold, run: &[RawEvent]) -> Result<(), CatchUpError> {
        let base = (&self.base.header, &self.base.state);
        let folded = fold_events(fold, base, run, self.rules.keep_commands);
        self.base.header = folded.header;
        self.base.state = folded.state;
        self.base.weight.grew(run);
        match folded.stopped {
            None => Ok(()),
            Some((index, error)) => Err(CatchUpError::Unfoldable {
                stream: run[index].stream.to_string(),
                revision: run[index].revision,
                error,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::tests::kit::{Account, deposited, fold},
        journal::Presence,
    };

    fn slice(revisions: &[Revision]) -> Slice {
        let event = |revision: &Revision| {
            let new = deposited(1 << revision);
            RawEvent {
                stream: "account-1".into(),
                revision: *revision,
                id: new.id,
                kind: new.kind,
                json: true,
                data: new.data,
                metadata: new.metadata,
                created: chrono::DateTime::UNIX_EPOCH,
            }
        };
        Slice {
            events: revisions.iter().map(event).collect(),
            end: true,
            presence: Presence::Present,
            first: None,
            last: revisions.last().copied(),
        }
    }

    /// The daemon's lane does the same with the same stream.
    #[test]
    fn a_hole_between_two_events_is_crossed_as_one_before_them() {
        for policy in [OnLostHistory::Partial, OnLostHistory::Quarantine] {
            let rules = CatchUpRules {
                keep_commands: 8,
                cap: 100,
                restarts: false,
                on_lost_history: policy,
            };
            let mut reading = CatchUp::new(Base::initial(&fold(), Lineage::Absent), None, rules);
            let fed = reading.feed(&fold(), slice(&[0, 1, 4, 5]));
            let header = &reading.base.header;
            let cents = reading.base.state.get::<Account>().unwrap().cents;
            match policy {
                OnLostHistory::Partial => {
                    assert_eq!(fed, Ok(Fed::UpToDate));
                    assert_eq!((header.first, header.version, cents), (4, Some(5), 48));
                }
                OnLostHistory::Quarantine => {
                    assert!(matches!(fed, Err(CatchUpError::LostHistory { first: 2, last: 3, .. })));
                    assert_eq!((header.first, header.version, cents), (0, Some(1), 3));
                }
            }
        }
    }
}
