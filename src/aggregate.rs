//! Aggregates and commands: what a service decides on, and the fold that it decides with.
//!
//! Every aggregate is a projection of itself (see [`crate::projection`]), so the replica that the
//! daemon writes is the snapshot that commands read.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use crate::event::Event;

/// The state that one stream's events fold to, as a unit of consistency.
pub trait Aggregate: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Streams are named `{CATEGORY}-{id}`; also the projection's name, its table's and its metrics' label.
    const CATEGORY: &'static str;
    /// Raised when `apply` or the state's shape changes; replicas of another schema are no snapshots.
    const SCHEMA: u32 = 1;
    /// Opt-in: the revision of `apply`'s code; see [`crate::projection::Projection::REVISION`].
    const REVISION: Option<u32> = None;
    /// Its events.
    type Event: Event;

    /// Folds one event. Synchronous and pure: the same events give the same state, always.
    fn apply(&mut self, event: Self::Event);

    /// The stream of the aggregate `id`.
    fn stream(id: &str) -> String {
        format!("{}-{id}", Self::CATEGORY)
    }
}

/// Which aggregates a command is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existence {
    /// New ones and existing ones alike.
    #[default]
    Any,
    /// Those without an event as yet: else `CommandError::AlreadyExists`. Deleted ones as
    /// `CommandSettings::on_deleted` has it: with `Refuse` they are `CommandError::Deleted`; with
    /// `Restart` they count as new; with `Continue` they are there where a snapshot has their state
    /// from before the deletion, and new where none has.
    New,
    /// Those with an event: else `CommandError::NotFound`. Deleted ones the other way round.
    Existing,
}

/// What a command decides: events, or events and a reply for whoever asked.
///
/// `Vec<Event>` and `(Vec<Event>, Reply)` are decisions; the reply of the former is `()`.
pub trait Decision<E> {
    /// What the caller is told beside what was committed. It is not stored: a repetition of a
    /// command that has landed has none.
    type Reply: Send;

    /// The events and the reply.
    fn into_parts(self) -> (Vec<E>, Self::Reply);
}

impl<E> Decision<E> for Vec<E> {
    type Reply = ();

    fn into_parts(self) -> (Vec<E>, ()) {
        (self, ())
    }
}

impl<E, R: Send> Decision<E> for (Vec<E>, R) {
    type Reply = R;

    fn into_parts(self) -> (Vec<E>, R) {
        self
    }
}

/// A wish to change an aggregate.
///
/// It decides on events (`impl Command<Account> for Withdraw`), or on events and a reply to its
/// caller (`impl Command<Account, (Vec<AccountEvent>, Receipt)> for Withdraw`). Boxed commands are
/// commands: `Box<dyn Command<Account, Error = Refusal>>`.
///
/// Everything that it needs from outside (prices, a clock, other services) is fetched before and
/// stands in its fields, for it is decided again after every lost race.
pub trait Command<A: Aggregate, D: Decision<A::Event> = Vec<<A as Aggregate>::Event>>: Send + Sync {
    /// Why it is rejected: an enum of yours, `String`, `anyhow::Error`.
    type Error: Send;

    /// What kind of command it is: a constant, which must not change with the code's names. It is
    /// written beside the events, so that a command id that is used again for another kind of
    /// command is told as that. Empty (the default): ids are compared alone.
    fn name(&self) -> &'static str {
        ""
    }

    /// Which aggregates it is for ([`Existence::Any`] by default): whether there are events, which
    /// the state alone cannot always tell. Judged before [`Self::decide`], on what the leader confirmed.
    fn existence(&self) -> Existence {
        Existence::Any
    }

    /// The events that carry the command out on `state`, none when there is nothing to do.
    ///
    /// Runs again after every lost race, hence `&self`, synchronous and free of side effects.
    fn decide(&self, state: &A) -> Result<D, Self::Error>;
}

macro_rules! behind_a_pointer {
    ($($pointer:ident),*) => {$(
        impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Command<A, D> for $pointer<C> {
            type Error = C::Error;

            fn name(&self) -> &'static str {
                (**self).name()
            }

            fn existence(&self) -> Existence {
                (**self).existence()
            }

            fn decide(&self, state: &A) -> Result<D, C::Error> {
                (**self).decide(state)
            }
        }
    )*};
}

behind_a_pointer!(Box, Arc);
