//! Whether a category stands still while the log grows (I7 lag).
//!
//! The links of a category are made by a projection of the server's own. Stopped, it leaves the
//! category as it is, and every figure about the group says that all is well. Who may read `$all`
//! sees events there that no link leads to; anybody else can ask for that projection's status.

use std::time::Duration;

use chrono::{DateTime, Utc};
use eventstore::{GenericProjectionOptions, ProjectionClient};

use super::{
    super::{JournalError, feed::Head},
    EventStore,
    filter::Matcher,
};
use crate::projection::Source;

/// Links are made after their events. A server that is behind by less than this is only busy.
const GRACE: Duration = Duration::from_secs(5);

/// The projection that makes a category's links.
const LINKER: &str = "$by_category";

impl EventStore {
    pub(super) async fn stalled_since(
        &self,
        source: &Source,
        head: Option<&Head>,
    ) -> Result<Option<DateTime<Utc>>, JournalError> {
        let Source::Category(category) = source else {
            // A stream and `$all` are what they are; nothing stands between.
            return Ok(None);
        };
        match self.unlinked_since(category, head).await {
            // Reading `$all` needs an admin, and the first search through a large one takes more
            // than one call.
            Err(JournalError::Denied { .. } | JournalError::Unavailable(_) | JournalError::Unfinished(_)) => {
                Ok(self.linker_is_stopped().await.then(|| {
                    // Since when exactly cannot be seen from here: not before the newest link.
                    head.map_or_else(Utc::now, |head| head.created)
                }))
            }
            other => other,
        }
    }

    /// The time of the oldest event of the category that no link leads to.
    async fn unlinked_since(&self, category: &str, head: Option<&Head>) -> Result<Option<DateTime<Utc>>, JournalError> {
        let separation = self.separation().await?;
        let key = format!("the streams of category {category} by {separation:?}");
        let matcher = Matcher::category(category, separation);
        let linked = head.and_then(|head| head.position);
        let newest = self.newest_match(&key, &matcher).await?;
        // A link stands behind its event in the log: what is newer than the newest link has none.
        let Some(newest) = newest.filter(|newest| newest.position > linked) else {
            return Ok(None);
        };
        let oldest = self
            .all_entries(&matcher, linked, 1)
            .await?
            .first()
            .map_or(newest.created, |(_, entry)| entry.at);
        let age = Utc::now().signed_duration_since(oldest).to_std();
        Ok(age.is_ok_and(|age| age > GRACE).then_some(oldest))
    }

    /// Whether the server says that the projection is not at work. A server that says nothing
    /// (projections off, or not known) is no reason to say that it is stopped.
    async fn linker_is_stopped(&self) -> bool {
        let limit = self.factory.operation_timeout;
        let options = &GenericProjectionOptions::default()
            .deadline(limit)
            .requires_leader(true);
        let status = self
            .factory
            .call(Some(limit), |client| async move {
                ProjectionClient::from(client).get_status(LINKER, options).await
            })
            .await;
        status.is_ok_and(|status| status.is_some_and(|status| is_stopped(&status.status)))
    }
}

/// The server joins several words, as in `Stopped/Writing results`.
fn is_stopped(status: &str) -> bool {
    ["Stopped", "Faulted", "Aborted"]
        .iter()
        .any(|word| status.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_projection_is_told_from_a_running_one() {
        for stopped in ["Stopped", "Faulted", "Aborted/Stopped", "Faulted (Enabled)"] {
            assert!(is_stopped(stopped), "{stopped}");
        }
        for running in ["Running", "Preparing/Running", "Starting", ""] {
            assert!(!is_stopped(running), "{running}");
        }
    }
}
