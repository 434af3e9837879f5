//! What lanes hold in memory.
//!
//! Invariant: I5 isolation: a stream's history, however long, and a table that throttles fill no more
//! memory than the projection was given.

use std::{collections::HashMap, sync::Arc};

use crate::projection::IN_MEMORY;

/// States that a lane holds while its put waits: the one to be put, and the one that it began with.
pub(in crate::projector) const HELD_STATES: usize = 2;

/// Bytes, by what holds them.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Of work that is not settled.
    pub(super) work: usize,
    /// Of puts that wait or are under way.
    pub(super) writes: usize,
    /// Of what lanes have read, by stream, until they have put it.
    read_on: HashMap<Arc<str>, usize>,
    read: usize,
    /// What a put's state takes, of late: states of lanes that are held back are not written down yet.
    usual_put: usize,
}

impl Budget {
    /// All of it, and of the states of so many lanes that wait to put.
    pub(super) fn bytes(&self, held_back: usize) -> usize {
        self.work + self.read + self.writes + held_back * self.usual_put * HELD_STATES * IN_MEMORY
    }

    /// A lane has read so much.
    pub(super) fn has_read(&mut self, stream: &Arc<str>, bytes: usize) {
        self.read += bytes;
        *self.read_on.entry(stream.clone()).or_default() += bytes;
    }

    /// What a lane has read is put, or it is dropped.
    pub(super) fn forget_read(&mut self, stream: &Arc<str>) {
        self.read -= self.read_on.remove(stream).unwrap_or_default();
    }

    /// Only so much of work is held any more.
    pub(super) fn begin_again(&mut self, work: usize) {
        *self = Self {
            work,
            usual_put: self.usual_put,
            ..Self::default()
        };
    }

    /// A put of so much waits from now on.
    pub(super) fn will_write(&mut self, bytes: usize) {
        self.writes += bytes;
        self.usual_put = match self.usual_put {
            0 => bytes,
            usual => (usual * 7 + bytes) / 8,
        };
    }
}
