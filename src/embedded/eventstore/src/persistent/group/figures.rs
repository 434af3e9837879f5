//! What a group says of itself.

use super::Group;
use crate::persistent::info::{ConnectionFigures, Figures};

impl<P: Clone> Group<P> {
    /// The figures now.
    pub(crate) fn figures(&self) -> Figures {
        let connections: Vec<ConnectionFigures> = self
            .who
            .iter()
            .map(|(id, consumer)| {
                let (in_flight, available_slots) = self.consumers.slots(*id);
                ConnectionFigures {
                    username: consumer.username.clone(),
                    name: consumer.name.clone(),
                    available_slots,
                    in_flight,
                    pushed: consumer.pushed,
                    measurements: consumer.latencies.measurements(),
                }
            })
            .collect();
        let ring = usize::try_from(self.settings.live_buffer_size).unwrap_or(0);
        Figures {
            status: self.status(),
            in_flight: connections.iter().map(|one| one.in_flight).sum(),
            connections,
            pushed: self.pushed,
            last_checkpointed: self.last_checkpointed,
            last_known: self.last_known,
            read_buffer: self.buffer.len(),
            live_buffer: self.live_seen.min(ring),
            retry_buffer: self.retry.len(),
            outstanding: self.outstanding,
            parked: self.parked.last.map_or(0, |last| {
                (last + 1).saturating_sub(self.parked.first.unwrap_or_default())
            }),
        }
    }

    /// The state's flags, in the order in which EventStoreDB names them.
    fn status(&self) -> String {
        let flags = [
            (!self.live, "Behind"),
            // Live, a page is only how new records come.
            (self.reading && !self.live, "OutstandingPageRequest"),
            (self.replaying, "ReplayingParkedMessages"),
            (self.live, "Live"),
        ];
        let named: Vec<&str> = flags
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect();
        named.join(", ")
    }
}
