//! What is to be done beside folding what is in hand: the next thing is the first of it, in the order of
//! `Known::next`.
//!
//! Invariant: I4 hint: what a delivery or an answer asked for stays here until it is done, or until there
//! is another base to ask it of.

use std::time::Duration;

/// Any of these may be wanted beside the others, but for `load`, which ends in another base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agenda {
    /// Read the replica from the store itself.
    pub(super) load: bool,
    /// Find the first revision that can be read.
    pub(super) probe: bool,
    pub(super) look: Look,
    /// Read on although no delivery asks for it.
    pub(super) read: bool,
}

/// Seeing how the stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Look {
    #[default]
    No,
    Now,
    /// The stream was seen to be shorter than the replica, or not there.
    Again {
        since: Duration,
        due: Duration,
        /// A delivery asked for the look that showed it.
        hinted: bool,
    },
}

impl Look {
    /// Asks for one; one that waits for its time shows the same.
    pub(super) fn want(&mut self) {
        if *self == Self::No {
            *self = Self::Now;
        }
    }
}

impl Agenda {
    /// What is left of it when the base is another one.
    pub(super) fn on_another_base(self, read: bool, look: bool) -> Self {
        let wanted = look || self.look == Look::Now;
        Self {
            look: if wanted { Look::Now } else { Look::No },
            read,
            ..Self::default()
        }
    }
}
