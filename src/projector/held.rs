//! The deliveries that a session holds: which id acknowledges which token, and how long it waits.

use std::{
    collections::{BTreeMap, HashSet},
    time::Instant,
};

use uuid::Uuid;

use super::lane::Token;
use crate::journal::feed::Mark;

/// One delivery that is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// `None` for what the session itself put into a lane.
    ack: Option<Uuid>,
    /// Where it stands in the source.
    place: Option<Mark>,
    bytes: usize,
    since: Instant,
}

/// Deliveries in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    next: Token,
    held: BTreeMap<Token, Held>,
    /// The ids that acknowledge them: a redelivery of one that is held is that one.
    ids: HashSet<Uuid>,
    own: usize,
    bytes: usize,
    /// Places of what was let go since it was last asked.
    settled: Vec<Mark>,
}

impl Deliveries {
    /// Takes one of so many bytes; `ack` is `None` for the session's own. `None`: it is held already, and what
    /// acknowledges it acknowledges this one.
    pub(super) fn take(&mut self, ack: Option<Uuid>, place: Option<Mark>, bytes: usize) -> Option<Token> {
        if let Some(ack) = ack
            && !self.ids.insert(ack)
        {
            return None;
        }
        self.next += 1;
        self.bytes += bytes;
        self.own += usize::from(ack.is_none());
        self.held.insert(
            self.next,
            Held {
                ack,
                place,
                bytes,
                since: Instant::now(),
            },
        );
        Some(self.next)
    }

    /// How many are the session's own.
    pub(super) fn own(&self) -> usize {
        self.own
    }

    /// Lets one go; the id that acknowledges it.
    pub(super) fn settle(&mut self, token: Token) -> Option<Uuid> {
        let held = self.held.remove(&token)?;
        self.settled.extend(held.place);
        self.bytes -= held.bytes;
        self.own -= usize::from(held.ack.is_none());
        if let Some(ack) = &held.ack {
            self.ids.remove(ack);
        }
        held.ack
    }

    /// Notes one that was never held: nothing of it waits.
    pub(super) fn passed(&mut self, place: Option<Mark>) {
        self.settled.extend(place);
    }

    /// Where what was let go since the last call stands in the source.
    pub(super) fn settled(&mut self) -> Vec<Mark> {
        std::mem::take(&mut self.settled)
    }

    /// Bytes of what is held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
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
