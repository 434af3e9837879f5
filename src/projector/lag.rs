//! How far a projection is behind its source, measured in the background and never in a scrape.
//!
//! Keeps invariant 7: zero only when everything readable is settled. The server's own figures
//! mislead for filtered, idle and restarted groups, so the source's newest entry is looked at.

use chrono::{DateTime, Utc};

use super::status::Lag;
use crate::{
    journal::{
        JournalError,
        feed::{Feed, GroupInfo, GroupSpec, Head, Mark},
    },
    projection::Source,
};

/// What was found of a group and its source at one time.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How far it is behind.
    pub lag: Lag,
    /// What the server says of the group.
    pub info: GroupInfo,
    /// The checkpoint: a revision of the feed, or a commit position of `$all`.
    pub checkpoint: Option<u64>,
    /// The newest entry, likewise.
    pub newest: Option<u64>,
}

/// Measures a group's lag.
pub async fn measure<F: Feed>(feed: &F, group: &GroupSpec) -> Result<Measured, JournalError> {
    let as_of = Utc::now();
    // In this order: what is settled after the head was read makes the lag smaller, never negative.
    let head = feed.head(&group.source).await?;
    let info = feed.info(group).await?;
    let stalled = feed.stalled(&group.source, head.as_ref()).await?;
    let all = matches!(group.source, Source::All(_));
    let (checkpoint, newest) = if all {
        (info.checkpoint_position, head.as_ref().and_then(|h| h.position))
    } else {
        (info.checkpoint_revision, head.as_ref().and_then(|h| h.revision))
    };
    let events = events_behind(all, &info, checkpoint, newest);
    let mut oldest = None;
    if events > 0 {
        let after = checkpoint.map(|at| if all { Mark::Position(at) } else { Mark::Revision(at) });
        oldest = feed
            .entries(&group.source, after, 1)
            .await?
            .first()
            .map(|(_, delivery)| delivery.at);
    }
    let seconds = seconds_behind(events, oldest, head.as_ref(), stalled, Utc::now());
    Ok(Measured {
        lag: Lag {
            events,
            seconds,
            stalled: stalled.is_some(),
            as_of,
        },
        info,
        checkpoint,
        newest,
    })
}

/// Entries not settled, by what the server tells. On a stream the checkpoint stands before the
/// oldest of them; on `$all` it may have passed events that wait in the server's buffer.
fn events_behind(all: bool, info: &GroupInfo, checkpoint: Option<u64>, newest: Option<u64>) -> u64 {
    let Some(newest) = newest else { return 0 };
    let waiting = info.buffered + info.in_flight;
    let ahead = match checkpoint {
        None => newest.saturating_add(1),
        Some(checkpoint) => newest.saturating_sub(checkpoint),
    };
    if all {
        // Positions are bytes: they tell whether, not how many.
        waiting.max(u64::from(ahead > 0))
    } else {
        ahead
    }
}

fn seconds_behind(
    events: u64,
    oldest: Option<DateTime<Utc>>,
    head: Option<&Head>,
    stalled: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> f64 {
    let since = if events > 0 {
        oldest.or_else(|| head.map(|h| h.created))
    } else {
        None
    };
    let age = |at: DateTime<Utc>| (now - at).to_std().unwrap_or_default().as_secs_f64();
    since.into_iter().chain(stalled).map(age).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn info(buffered: u64, in_flight: u64) -> GroupInfo {
        GroupInfo {
            in_flight,
            buffered,
            ..GroupInfo::default()
        }
    }

    /// The states of a group as a real server showed them.
    #[test]
    fn lag_is_zero_only_when_nothing_waits() {
        // Category: nothing matched yet, 10 matched and none acknowledged, all acknowledged.
        assert_eq!(events_behind(false, &info(0, 0), None, None), 0);
        assert_eq!(events_behind(false, &info(10, 0), None, Some(9)), 10);
        assert_eq!(events_behind(false, &info(0, 0), Some(9), Some(9)), 0);
        // A restarted group knows nothing of its newest entry; the source does.
        assert_eq!(events_behind(false, &info(0, 0), Some(12), Some(20)), 8);
        // Filtered: the checkpoint stands past ten that wait; then all are done.
        assert_eq!(events_behind(true, &info(10, 0), Some(5_000), Some(900)), 10);
        assert_eq!(events_behind(true, &info(0, 0), Some(5_000), Some(900)), 0);
        assert_eq!(events_behind(true, &info(0, 0), Some(900), Some(5_000)), 1);
    }

    #[test]
    fn a_source_that_stands_still_ages() {
        let now = DateTime::from_timestamp(1_000, 0).unwrap();
        let then = DateTime::from_timestamp(940, 0);
        let lag = Duration::from_secs_f64;
        assert_eq!(lag(seconds_behind(0, None, None, then, now)), Duration::from_mins(1));
        assert_eq!(lag(seconds_behind(0, then, None, None, now)), Duration::ZERO);
        assert_eq!(lag(seconds_behind(3, then, None, None, now)), Duration::from_mins(1));
    }
}
