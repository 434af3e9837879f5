//! Loading what was recorded elsewhere: many events in order, each at most once.
//!
//! For import only. Commands append at the revision that they decided on and nowhere else.

use std::collections::HashSet;

use uuid::Uuid;

use super::{
    super::{Expected, Journal, JournalError, NewEvent, Presence, ReadLimit},
    EventStore,
};
use crate::event::{Revision, Version, next_after};

/// Somebody else may write between a look and an append; more often than this in a row it is not
/// a coincidence.
const ATTEMPTS: usize = 10;

/// Read at once when looking for what is there already.
const LOOK: ReadLimit = ReadLimit {
    events: 4_096,
    bytes: 8 << 20,
};

/// What an import came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Where the stream stands behind the last of the events; give it to the next call.
    pub version: Version,
    /// How many of the events were found there, and so were not sent again. Those that the server
    /// itself recognised count as written.
    pub found: usize,
}

impl EventStore {
    /// Appends `events` in order behind `after`, leaving out those whose ids stand there already,
    /// wherever that is: begun again from `after: None`, a whole import adds nothing twice.
    ///
    /// For import only: the ids are the only thing that is held against the stream, so another
    /// writer's events may come to stand between.
    ///
    /// # Errors
    ///
    /// [`JournalError::WrongExpected`] when another writer keeps being faster; an unknown outcome
    /// is not one, for the same call again settles it.
    pub async fn import_append(
        &self,
        stream: &str,
        after: Version,
        mut events: Vec<NewEvent>,
    ) -> Result<Imported, JournalError> {
        let (mut version, mut found) = (after, 0);
        let mut last = JournalError::WrongExpected { current: None };
        for _ in 0..ATTEMPTS {
            if events.is_empty() {
                return Ok(Imported { version, found });
            }
            let deadline = self.factory.operation_timeout;
            let expected = Expected::from(version);
            match self.append(stream, expected, events.clone(), deadline).await {
                Ok(appended) => {
                    return Ok(Imported {
                        version: appended.revision,
                        found,
                    });
                }
                Err(error @ JournalError::WrongExpected { .. }) => last = error,
                Err(error) => return Err(error),
            }
            version = self.leave_out(stream, after, &mut events, &mut found).await?;
        }
        Err(last)
    }

    /// Drops events that stand behind `after`; answers where the stream ends.
    async fn leave_out(
        &self,
        stream: &str,
        after: Version,
        events: &mut Vec<NewEvent>,
        found: &mut usize,
    ) -> Result<Version, JournalError> {
        let mut version = after;
        loop {
            let slice = self.read(stream, next_after(version), LOOK).await?;
            if slice.presence == Presence::Absent {
                // Soft-deleted or never there; either way it begins anew.
                return Ok(None);
            }
            let there: HashSet<Uuid> = slice.events.iter().map(|event| event.id).collect();
            let before = events.len();
            events.retain(|event| !there.contains(&event.id));
            *found += before - events.len();
            let newest: Option<Revision> = slice.events.last().map(|event| event.revision);
            version = newest.or(version);
            if slice.end {
                return Ok(version);
            }
        }
    }
}
