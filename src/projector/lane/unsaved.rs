//! What is in hand and not stored: a fold, and beside it an administrative write.
//!
//! Invariant: I2 monotonic: the two are told apart here, for a fold's put demands its base and an
//! administrative write exactly what was read.

use chrono::{DateTime, Utc};

use super::PutKind;
use crate::{
    event::{RawEvent, Revision, Version},
    projection::State,
    replica::Header,
};

/// What is in hand and not stored.
#[derive(Debug, Default)]
pub(super) struct Unsaved {
    pub(super) folded: UnsavedFold,
    pub(super) administrative: Option<Administrative>,
    /// Events were read since the last put: it comes before reading again.
    pub(super) read: bool,
}

/// How the state in hand differs from what is stored.
#[derive(Debug, Default)]
pub(super) enum UnsavedFold {
    /// Not at all; the version may have moved.
    #[default]
    Nothing,
    /// By a run of events.
    Run(Box<UnsavedRun>),
    /// A run was given up for a fold from the start, which has not begun.
    Dropped,
}

/// An administrative write that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Administrative {
    pub(super) write: Write,
    /// A mark that other code left is being tried: it stays until the stream was read to its end,
    /// for deliveries behind it were settled by it.
    pub(super) retries: bool,
}

/// What an administrative write says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// An event or an item is quarantined; the class of the error.
    Quarantine(&'static str),
    /// Stream and replica have diverged.
    Diverged,
    /// The stream is deleted.
    Deletion,
    /// A mark cleared, a fresh start, a deletion taken back.
    Repair,
}

impl Write {
    pub(super) fn is_mark(self) -> bool {
        matches!(self, Self::Quarantine(_) | Self::Diverged)
    }
}

impl From<Write> for PutKind {
    fn from(write: Write) -> Self {
        match write {
            Write::Quarantine(class) => Self::Quarantine(class),
            Write::Diverged => Self::Diverged,
            Write::Deletion => Self::Deletion,
            Write::Repair => Self::Repair,
        }
    }
}

/// Folding since the last put.
#[derive(Debug)]
pub(super) struct UnsavedRun {
    /// Where it began; to find the event that makes a state unstorable.
    pub(super) header: Header,
    pub(super) state: State,
    /// What `events` follow, where that is further on: a refold is put when it has caught up, and
    /// lets go of its events page by page.
    pub(super) storable: Option<(Header, State)>,
    /// The first event behind `storable` whose state cannot be stored, and how many of `created` are not
    /// behind it. What a refold reads after it is folded and not kept: its state may become storable again.
    pub(super) unstorable: Option<(Revision, usize)>,
    pub(super) events: Vec<RawEvent>,
    /// When those that were let go were created, as far as they were not durable before.
    pub(super) created: Vec<DateTime<Utc>>,
}

impl UnsavedRun {
    pub(super) fn new((header, state): (Header, State)) -> Self {
        Self {
            header,
            state,
            storable: None,
            unstorable: None,
            events: Vec::new(),
            created: Vec::new(),
        }
    }

    /// What `events` are folded on.
    pub(super) fn begins(&self) -> (Header, State) {
        self.storable
            .clone()
            .unwrap_or_else(|| (self.header.clone(), self.state.clone()))
    }

    /// Lets go of its events. Those that are folded again became durable long ago.
    pub(super) fn let_go(&mut self, durable: Version) {
        let events = self.events.drain(..).filter(|event| Some(event.revision) > durable);
        self.created.extend(events.map(|event| event.created));
    }
}

impl Unsaved {
    /// Whether there is anything to put.
    pub(super) fn any(&self) -> bool {
        self.changed() || self.administrative.is_some()
    }

    /// Whether the state is not the stored one.
    pub(super) fn changed(&self) -> bool {
        !matches!(self.folded, UnsavedFold::Nothing)
    }

    pub(super) fn write(&self) -> Option<Write> {
        self.administrative.map(|administrative| administrative.write)
    }

    pub(super) fn is_mark(&self) -> bool {
        self.write().is_some_and(Write::is_mark)
    }

    pub(super) fn retries(&self) -> bool {
        self.administrative.is_some_and(|administrative| administrative.retries)
    }

    /// Says `write` with the next put; that a mark is tried with it stays so.
    pub(super) fn say(&mut self, write: Write) {
        let retries = self.retries();
        self.administrative = Some(Administrative { write, retries });
    }

    /// Tries a mark again.
    pub(super) fn retry(&mut self) {
        self.administrative = Some(Administrative {
            write: Write::Repair,
            retries: true,
        });
    }

    /// Gives a run up, for a fold from the start.
    pub(super) fn drop_run(&mut self) {
        if self.changed() {
            self.folded = UnsavedFold::Dropped;
        }
        self.read = false;
    }

    pub(super) fn holds_events(&self) -> bool {
        matches!(&self.folded, UnsavedFold::Run(run) if !run.events.is_empty())
    }
}
