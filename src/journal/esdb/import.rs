//! Loading what was recorded elsewhere: many events in order, each at most once.
//!
//! For import only. Commands append at the revision that they decided on and nowhere else.

use std::collections::HashSet;

use uuid::Uuid;

use super::{
    super::{Expected, Journal, JournalError, NewEvent, Presence, ReadLimit},
    EventStore,
};
use crate::event::{Version, next_after};

/// Somebody else may write between a look and an append; more often than this in a row it is not
/// a coincidence.
const ATTEMPTS: usize = 10;

/// Read at once when looking for what is there already.
const LOOK: ReadLimit = ReadLimit {
    events: 4_096,
    bytes: 8 << 20,
};

/// How far the import into one stream has come. Begun with `default()`, kept from one call to the
/// next; small for a stream that only the import writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Importing {
    /// Whether the stream was looked at: an append of what is there already is answered with success.
    looked: bool,
    /// Where the stream stands, as far as was seen.
    version: Version,
    /// Ids that were seen in the stream. An event of the import may be among them whose turn
    /// has not come yet: it was written by an earlier import.
    seen: HashSet<Uuid>,
}

impl EventStore {
    /// Appends `events` in order at the stream's end, leaving out those whose ids stand in it
    /// already, wherever that is: a whole import done again, from a fresh [`Importing`], adds
    /// nothing, in whatever portions. Answers how many were left out. What stood in the stream before
    /// it was deleted is not in it, and is written.
    ///
    /// For import only: the ids are all that is held against the stream, so another writer's
    /// events may come to stand between.
    ///
    /// # Errors
    ///
    /// [`JournalError::WrongExpected`] when another writer keeps being faster. After every error,
    /// an unknown outcome as well, the same call may be made again.
    pub async fn import_append(
        &self,
        stream: &str,
        importing: &mut Importing,
        mut events: Vec<NewEvent>,
    ) -> Result<usize, JournalError> {
        let all = events.len();
        let mut last = JournalError::WrongExpected { current: None };
        if !importing.looked {
            self.see(stream, importing, None).await?;
            importing.looked = true;
        }
        for _ in 0..ATTEMPTS {
            events.retain(|event| !importing.seen.contains(&event.id));
            let left_out = all - events.len();
            if events.is_empty() {
                return Ok(left_out);
            }
            let deadline = self.factory.operation_timeout;
            let expected = Expected::from(importing.version);
            match self.append(stream, expected, events.clone(), deadline).await {
                Ok(appended) if appended.positioned => {
                    importing.version = appended.revision;
                    return Ok(left_out);
                }
                // Nothing was written: the server knows the ids from before the stream was deleted.
                Ok(appended) => {
                    *importing = Importing {
                        looked: true,
                        ..Importing::default()
                    };
                    self.see(stream, importing, appended.revision).await?;
                }
                // The server looks at ids only where the stream has moved on, so an append whose
                // outcome is unknown is looked for before it is made again.
                Err(error @ (JournalError::OutcomeUnknown(_) | JournalError::WrongExpected { .. })) => {
                    let ends = match error {
                        JournalError::WrongExpected { current } => current,
                        _ => None,
                    };
                    self.see(stream, importing, ends).await?;
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Notes what has come to stand behind what was seen. `ends`: where the stream was said to end.
    async fn see(&self, stream: &str, importing: &mut Importing, ends: Version) -> Result<(), JournalError> {
        loop {
            let slice = self.read(stream, next_after(importing.version), LOOK).await?;
            if slice.presence == Presence::Absent {
                // Deleted, or never there; either way it begins again. Behind what was deleted the
                // server does not look at ids, so what was in it can be written once more.
                *importing = Importing {
                    looked: true,
                    version: ends,
                    ..Importing::default()
                };
                return Ok(());
            }
            importing.seen.extend(slice.events.iter().map(|event| event.id));
            if let Some(newest) = slice.events.last() {
                importing.version = Some(newest.revision);
            }
            if slice.end {
                return Ok(());
            }
        }
    }
}
