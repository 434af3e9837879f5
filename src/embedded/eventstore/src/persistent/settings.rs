//! The settings of one group. Keeps: a value is taken literally (there are no server defaults, zero
//! is zero), and the only combinations refused are the ones EventStoreDB refuses.

use std::fmt;

use super::place::StartFrom;

/// Which consumer gets the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// The consumers in turn, full ones skipped.
    RoundRobin,
    /// One consumer until it is full, then the next.
    DispatchToSingle,
    /// All records of a stream to one consumer.
    Pinned,
    /// All records of a correlation id to one consumer.
    PinnedByCorrelation,
}

impl Strategy {
    /// By the name the protocol uses, letter for letter.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [
            Self::RoundRobin,
            Self::DispatchToSingle,
            Self::Pinned,
            Self::PinnedByCorrelation,
        ]
        .into_iter()
        .find(|strategy| strategy.name() == name)
    }

    /// The name the protocol uses.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "RoundRobin",
            Self::DispatchToSingle => "DispatchToSingle",
            Self::Pinned => "Pinned",
            Self::PinnedByCorrelation => "PinnedByCorrelation",
        }
    }
}

/// What a group was created or last updated with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Deliver the record a link points at, with the link.
    pub resolve_links: bool,
    /// Used only while there is no checkpoint.
    pub start: StartFrom,
    /// Measure how long each consumer takes.
    pub extra_statistics: bool,
    /// Milliseconds from a push to its redelivery; 0 or less: the next tick.
    pub message_timeout_ms: i32,
    /// Deliveries before a record is parked, less one.
    pub max_retry_count: i32,
    /// Newest live records remembered.
    pub live_buffer_size: i32,
    /// Records read ahead at most, those to retry included.
    pub history_buffer_size: i32,
    /// Records in a page; below `history_buffer_size`.
    pub read_batch_size: i32,
    /// Milliseconds between checkpoints by time; 0 or less: none by time.
    pub checkpoint_after_ms: i32,
    /// Newly done records that a checkpoint by time needs.
    pub min_checkpoint_count: i32,
    /// Newly done records that force a checkpoint.
    pub max_checkpoint_count: i32,
    /// Consumers at a time; 0: any number.
    pub max_subscriber_count: i32,
    /// Who gets the next record.
    pub strategy: Strategy,
}

impl Default for Settings {
    /// What the official clients send when nothing is said.
    fn default() -> Self {
        Self {
            resolve_links: false,
            start: StartFrom::End,
            extra_statistics: false,
            message_timeout_ms: 30_000,
            max_retry_count: 10,
            live_buffer_size: 500,
            history_buffer_size: 500,
            read_batch_size: 20,
            checkpoint_after_ms: 2_000,
            min_checkpoint_count: 10,
            max_checkpoint_count: 1_000,
            max_subscriber_count: 0,
            strategy: Strategy::RoundRobin,
        }
    }
}

/// Settings no group can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadSettings {
    /// The page would not fit into the read buffer.
    BatchNotBelowBuffer,
}

impl fmt::Display for BadSettings {
    // Clients compare this text, so it is EventStoreDB's to the letter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BatchNotBelowBuffer => f.write_str(
                "Specified argument was out of the range of valid values. \
                 (Parameter 'ReadBatchSize may not be greater than or equal to BufferSize')",
            ),
        }
    }
}

impl std::error::Error for BadSettings {}

/// Smallest page EventStoreDB reads, whatever the settings say.
const MIN_PAGE: i32 = 10;
/// Largest page EventStoreDB reads.
const MAX_PAGE: i32 = 100;

impl Settings {
    /// Refuses what EventStoreDB refuses; all else is literal.
    pub(crate) fn check(&self) -> Result<(), BadSettings> {
        if self.read_batch_size >= self.history_buffer_size {
            return Err(BadSettings::BatchNotBelowBuffer);
        }
        Ok(())
    }

    /// Records in one of EventStoreDB's pages.
    pub(crate) fn page(&self) -> usize {
        self.read_batch_size.clamp(MIN_PAGE, MAX_PAGE) as usize
    }

    /// Room for how many records a read needs to be started, exclusive.
    pub(crate) fn batch(&self) -> usize {
        usize::try_from(self.read_batch_size).unwrap_or(0)
    }

    /// Records read ahead at most.
    pub(crate) fn history(&self) -> usize {
        usize::try_from(self.history_buffer_size).unwrap_or(0)
    }
}

/// Defects of EventStoreDB 24.10 that a test may switch on. All off: none is reproduced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches that are independent of each other"
)]
pub struct Defects {
    /// Pinned: records left behind because their consumer is full do not hold the checkpoint back.
    pub pinned_checkpoint: bool,
    /// Filtered `$all`: filtered-out records move the checkpoint past matched ones that wait.
    pub filtered_checkpoint: bool,
    /// A record whose id is in flight already takes a slot that no ack returns.
    pub repeated_id_slots: bool,
    /// Nothing is read on unless something is acked or nacked.
    pub stall_without_acks: bool,
    /// Making, changing, deleting a group and subscribing to one is not answered at all while the
    /// node is not ready, as long as [`crate::Faults::not_ready_for`] says so.
    pub silent_while_loading: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_must_fit_below_the_buffer() {
        let settings = |read_batch_size, history_buffer_size| Settings {
            history_buffer_size,
            read_batch_size,
            ..Settings::default()
        };
        assert_eq!(settings(20, 500).check(), Ok(()));
        assert_eq!(settings(19, 20).check(), Ok(()));
        assert_eq!(
            settings(20, 20).check().map_err(|e| e.to_string()),
            Err("Specified argument was out of the range of valid values. (Parameter 'ReadBatchSize may not be greater than or equal to BufferSize')".to_owned())
        );
        assert_eq!(settings(0, 500).page(), 10);
        assert_eq!(settings(20, 500).page(), 20);
        assert_eq!(settings(400, 500).page(), 100);
    }

    #[test]
    fn strategies_have_the_names_of_the_protocol() {
        for name in ["RoundRobin", "DispatchToSingle", "Pinned", "PinnedByCorrelation"] {
            assert_eq!(Strategy::named(name).map(Strategy::name), Some(name));
        }
        assert_eq!(Strategy::named("roundrobin"), None);
    }
}
