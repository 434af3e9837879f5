//! Who did what to an account last: a view beside the aggregate, by the events' metadata.

use projector::{
    event::Recorded,
    projection::{Change, Projection, Source},
};
use serde::{Deserialize, Serialize};

use crate::account::AccountEvent;

/// The projection.
pub(crate) struct Activity;

/// Its view.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Last {
    what: String,
    by: Option<String>,
    request: Option<String>,
    moved: u64,
}

impl Projection for Activity {
    const NAME: &'static str = "activity";
    type Event = AccountEvent;
    type View = Last;

    fn project(last: &mut Last, event: Recorded<AccountEvent>) -> Change {
        let said = event.metadata();
        last.what = event.kind.to_string();
        last.by = said.user;
        last.request = said.correlation_id;
        match event.event {
            AccountEvent::Opened { .. } | AccountEvent::Closed {} => {}
            AccountEvent::Deposited { cents } | AccountEvent::Withdrawn { cents } => {
                match last.moved.checked_add(cents) {
                    Some(moved) => last.moved = moved,
                    // It would be wrong from here on: its stream waits, and says why.
                    None => return Change::refuse("more was moved than can be counted"),
                }
            }
        }
        Change::Put
    }

    fn source() -> Source {
        Source::Category("account".into())
    }
}
