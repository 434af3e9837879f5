//! What goes into a lane and what comes out: deliveries, effects, outcomes, verdicts.

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use crate::{
    event::{RawEvent, Revision, Version, next_after},
    journal::{ReadLimit, Slice, Standing},
    projection::{Encoded, Fold, FoldError, OnDeletion, OnLostHistory, OnRevival, State},
    replica::{Broken, Header, Put, PutOutcome, Replica, item::Body},
};

/// Names one piece of work between a lane and whoever hosts it. Tokens rise in order of arrival.
pub type LaneToken = u64;

/// Checks that a state can be stored, and in which form: see [`crate::replica::item`].
pub type Form = Arc<dyn Fn(&str, &Header, Encoded) -> Result<Body, FoldError> + Send + Sync>;

/// What all lanes of one projection share.
#[derive(Clone)]
pub struct LaneRules {
    /// The projection.
    pub fold: Arc<dyn Fold>,
    /// Checks a state before a put.
    pub form: Form,
    /// Policy for deletions.
    pub on_deletion: OnDeletion,
    /// Policy for revivals.
    pub on_revival: OnRevival,
    /// Policy for lost history.
    pub on_lost_history: OnLostHistory,
    /// A read's bounds; also the most that is folded between two puts.
    pub read: ReadLimit,
    /// A delivery whose event is at least this old means that the stream is worth reading on.
    pub behind_after: Duration,
    /// At least this long between two puts of one replica; zero for none.
    pub min_write_interval: Duration,
    /// A version that moved without a change of state is stored after this time at the latest.
    pub keep_flush: Duration,
    /// How many command ids a replica keeps.
    pub commands: usize,
}

impl LaneRules {
    /// Whether a stream that comes to life again starts over.
    pub(super) fn restarts(&self) -> bool {
        restarts(self.on_deletion, self.on_revival)
    }
}

/// Whether these policies start over with a stream that comes to life again, for the daemon and for
/// services alike. Dropping the state leaves nothing to fold on, and what was dropped must not depend
/// on who was watching.
pub fn restarts(on_deletion: OnDeletion, on_revival: OnRevival) -> bool {
    on_revival == OnRevival::Restart || on_deletion == OnDeletion::Remove
}

impl fmt::Debug for LaneRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneRules")
            .field("projection", &self.fold.name())
            .finish_non_exhaustive()
    }
}

/// A delivery, reduced to what concerns its lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// An event, in hand.
    Event(RawEvent),
    /// This revision, whose event the group could not hand over, and when its entry in the source was written.
    Revision(Revision, DateTime<Utc>),
    /// The stream was deleted, or something like it.
    Moved,
    /// The stream goes on, at a revision that the delivery does not tell.
    Onward,
    /// The stream is noted as marked: look whether its mark still stands, and what it left owing.
    Noted {
        /// The generation of the mark that is noted.
        generation: u64,
    },
}

/// One thing to be done for a lane, by whoever does I/O.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Get the replica; `fresh`: strongly consistent and past every cache.
    Load {
        /// Whether caches and eventually consistent reads will not do.
        fresh: bool,
    },
    /// Read the stream at the leader.
    Read {
        /// From this revision, inclusive.
        from: Revision,
        /// At most this much.
        limit: ReadLimit,
    },
    /// See at the leader how the stream stands.
    Look,
    /// Put the replica.
    Put(Box<Put>, PutKind),
    /// Forget the note of a mark of this generation or below: what it had settled is stored.
    Forget {
        /// The generation.
        generation: u64,
    },
}

/// What a put is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutKind {
    /// A fold's put.
    Fold,
    /// A quarantine mark; the class of the error that caused it.
    Quarantine(&'static str),
    /// A mark of divergence.
    Diverged,
    /// A mark in place of one that stood already: other code has failed on it too.
    Again,
    /// A deletion marker.
    Deletion,
    /// Any other administrative write: a mark cleared, a fresh start, a deletion taken back.
    Repair,
}

/// What came of an effect. Outages are not among them: whoever does the I/O tries again.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The base from a cache.
    Cached(Box<LaneBase>),
    /// The replica from the store.
    Loaded(Option<Box<Replica>>),
    /// The stream's events.
    Read(Slice),
    /// How the stream stands.
    Looked(Standing),
    /// What became of the put.
    Put(PutOutcome),
    /// The stored item, met by a load or a put, is not readable as a replica.
    Corrupt {
        /// What is wrong with it.
        problem: String,
        /// What can be read of it all the same.
        found: Box<Broken>,
    },
    /// The stream may not be read; why.
    Denied(String),
    /// The note is forgotten.
    Forgotten,
}

/// What is to become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Settled: acknowledge.
    Ack(LaneToken),
    /// Set aside with a reason; a durable mark stands before it.
    Park(LaneToken, String),
}

/// What a lane wants next.
#[derive(Clone, Debug)]
pub enum Next {
    /// This done; its outcome handed to [`super::Lane::apply`].
    Do(Effect),
    /// Nothing until the outcome of the effect under way.
    Busy,
    /// Nothing until this long after the lane's epoch, unless a delivery comes.
    WaitUntil(Duration),
    /// To put, when it is held back no more ([`super::Lane::hold_back`]).
    HeldBack,
    /// Nothing at all: the lane can be dropped.
    Idle,
}

/// What a lane says when it is asked.
#[derive(Clone, Debug)]
#[must_use = "a verdict that is dropped leaves its delivery in flight"]
pub struct Step {
    /// What it wants next.
    pub next: Next,
    /// What may be acknowledged or parked since the last step.
    pub verdicts: Vec<Verdict>,
    /// What was done since the last step.
    pub tally: Tally,
}

/// A replica as a lane goes on from it: what is stored, and what is folded in memory.
#[derive(Clone, Debug)]
pub struct LaneBase {
    /// The stored item's header; `None` when there is no item.
    pub stored: Option<Header>,
    /// All that is folded into `state`; at `stored` or ahead of it.
    pub header: Header,
    /// The state.
    pub state: State,
    /// The state does not continue what is stored (it could not be read, was dropped, or starts
    /// again): the next put replaces what is stored, as an administrative write.
    pub rebase: bool,
    /// Why the stored state cannot be read: it is replaced only by a fold of complete history that has
    /// reached its version, and stays as it is until then.
    pub unreadable: Option<String>,
    /// The stored item is not readable at all; what can be read of it.
    pub broken: Option<Box<Broken>>,
    /// The stream was seen, at this time, to have the replica's last event at its version.
    pub verified: bool,
    /// Size of the stored item, for caches.
    pub bytes: usize,
    /// The time at which it was left in the cache: what was seen before it may not be so any more.
    pub time: u64,
}

impl LaneBase {
    /// The base before any event, with nothing stored.
    pub fn empty(fold: &dyn Fold) -> Self {
        Self {
            stored: None,
            header: Header::new(),
            state: fold.initial(),
            rebase: false,
            unreadable: None,
            broken: None,
            verified: true,
            bytes: 0,
            time: 0,
        }
    }

    /// The base that a stored replica is. A state that the code cannot read is folded again.
    pub fn from_stored(fold: &dyn Fold, stored: Option<Replica>) -> Self {
        let Some(replica) = stored else {
            return Self::empty(fold);
        };
        let state = match (&replica.view, replica.header.version) {
            (Some(view), _) => fold.decode(view, replica.fold.as_ref()).map_err(|e| e.to_string()),
            // Marked before any event was folded: there is nothing yet to read.
            (None, None) => Ok(fold.initial()),
            (None, Some(_)) => Err("find a state in the item".to_owned()),
        };
        let mut base = Self {
            verified: replica.header.version.is_none(),
            bytes: replica.bytes,
            header: replica.header,
            ..Self::empty(fold)
        };
        base.stored = Some(base.header.clone());
        match state {
            Ok(state) => base.state = state,
            // A dropped state of a deleted stream is as it should be until the stream comes back.
            Err(_) if base.header.deleted && replica.view.is_none() => base.rebase = true,
            Err(why) => {
                base.rebase = true;
                base.unreadable = Some(why);
                if !base.header.deleted {
                    base.header = restarted(&base.header);
                }
            }
        }
        base
    }

    /// The base that an item is which is not readable as a replica.
    pub fn from_broken(fold: &dyn Fold, found: Box<Broken>) -> Self {
        let header = Header {
            version: found.version.flatten(),
            generation: found.generation.unwrap_or_default(),
            quarantine: found.quarantine.clone(),
            deleted: found.deleted,
            ..Header::new()
        };
        Self {
            stored: Some(header.clone()),
            header,
            rebase: true,
            broken: Some(found),
            ..Self::empty(fold)
        }
    }

    /// Starts over from the stream's first readable event.
    pub(super) fn restart(&mut self, fold: &dyn Fold) {
        self.header = restarted(&self.header);
        self.state = fold.initial();
        self.rebase = true;
        self.unreadable = None;
        self.verified = true;
    }

    /// Folds again, in place of a state that cannot be read.
    pub(super) fn refold(&mut self, fold: &dyn Fold) {
        self.header = restarted(&self.header);
        self.state = fold.initial();
    }

    /// Whether the state is folded again, in place of one that cannot be read, and is not yet where
    /// that one is.
    pub(super) fn falls_short(&self) -> bool {
        self.unreadable.is_some() && self.header.version < self.durable()
    }

    /// The version that is durable.
    pub fn durable(&self) -> Version {
        self.stored.as_ref().and_then(|h| h.version)
    }

    /// The first revision that is not folded in.
    pub fn next(&self) -> Revision {
        next_after(self.header.version)
    }
}

/// The header of a replica that is folded again: nothing folded, everything administrative kept.
pub(super) fn restarted(header: &Header) -> Header {
    Header {
        generation: header.generation,
        deleted: header.deleted,
        quarantine: header.quarantine.clone(),
        ..Header::new()
    }
}

/// What a lane did between two steps, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events folded.
    pub applied: u64,
    /// Deliveries settled with no put of their own: covered already, or nothing to do.
    pub settled_without_write: u64,
    /// Reads that filled a hole or read on.
    pub gap_reads: u64,
    /// Events that such reads brought.
    pub gap_events: u64,
    /// When the events that became durable were created.
    pub durable: Vec<DateTime<Utc>>,
}
