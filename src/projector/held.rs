//! The deliveries that a session holds: which id acknowledges which token, and how long it waits.

use std::{collections::BTreeMap, time::Instant};

use uuid::Uuid;

use super::lane::Token;

/// One delivery that is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// `None` for what the session itself put into a lane.
    ack: Option<Uuid>,
    since: Instant,
}

/// Deliveries in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    next: Token,
    held: BTreeMap<Token, Held>,
    own: usize,
}

impl Deliveries {
    /// Takes one; `ack` is `None` for the session's own.
    pub(super) fn take(&mut self, ack: Option<Uuid>) -> Token {
        self.next += 1;
        self.own += usize::from(ack.is_none());
        self.held.insert(
            self.next,
            Held {
                ack,
                since: Instant::now(),
            },
        );
        self.next
    }

    /// Lets one go; the id that acknowledges it.
    pub(super) fn settle(&mut self, token: Token) -> Option<Uuid> {
        let held = self.held.remove(&token)?;
        self.own -= usize::from(held.ack.is_none());
        held.ack
    }

    /// How many the group waits for.
    pub(super) fn len(&self) -> usize {
        self.held.len() - self.own
    }

    /// How long the oldest has been held.
    pub(super) fn oldest(&self) -> Option<std::time::Duration> {
        self.held
            .values()
            .find(|held| held.ack.is_some())
            .map(|held| held.since.elapsed())
    }
}
