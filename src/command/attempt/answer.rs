//! What a command that was carried out answers.
//!
//! I1 prefix: a state goes with the version that it is the fold of.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    aggregate::Aggregate,
    event::{Revision, Token, Version},
};

/// A command that was carried out, or had nothing to do. `R` is what its decision replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed<A: Aggregate, R = ()> {
    /// The command's id: the one given, or the one drawn for it.
    pub command: Uuid,
    /// The aggregate's stream.
    pub stream: Arc<str>,
    /// The aggregate's state at `version`.
    pub state: A,
    /// The version of `state`: the same as `revision`, except for a command that landed earlier
    /// whose history cannot be read any more; then it is what could be had.
    pub version: Version,
    /// The revision of the command's last event; of an empty decision, the state's version.
    pub revision: Version,
    /// The command's events, as they read back from the stream; none for an empty decision, or
    /// where they cannot be read any more.
    pub events: Vec<A::Event>,
    /// What the decision that was committed told its caller. `None` for a repetition, whose decision
    /// was another call's, and where the events cannot be read any more: it is not stored.
    pub reply: Option<R>,
    /// The id of the event at `revision`, where it is known.
    pub event_id: Option<Uuid>,
    /// Appends that it took, lost races counted; 0 for an empty decision or a repetition.
    pub attempts: u32,
    /// Another call had carried the command out: this one wrote nothing.
    pub repeated: bool,
    /// The revision of the first event in `state`: above 0 where the history before it is gone.
    pub first: Revision,
    /// The stream was deleted and lives again since the state that the command began with: this
    /// append brought it to life, or another's had. Told where the command found the stream deleted,
    /// and else by the first command of the process that reads on from a state of before: after a
    /// lost race, for a rejection, for [`super::super::Freshness::Confirmed`], or within a hundred
    /// events of its own. A stream whose first events an operator truncated by `$tb`, up to beyond
    /// that state, looks the same, and is told as this.
    pub revived: bool,
}

impl<A: Aggregate, R> Committed<A, R> {
    /// The revision of the command's first event.
    pub fn first_revision(&self) -> Option<Revision> {
        let count = self.events.len() as u64;
        self.revision
            .and_then(|last| (last + 1).checked_sub(count))
            .filter(|_| count > 0)
    }

    /// What a query takes to answer with this command's effect, at least.
    pub fn token(&self) -> Token {
        Token {
            stream: self.stream.clone(),
            version: self.revision,
            event: self.event_id,
        }
    }
}
