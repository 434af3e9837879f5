//! The fold of the examples and of the model: a state that says which events it was folded from.

use super::*;

/// What an event of the model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Keep,
    /// Only code of fingerprint `new` knows it.
    New,
    /// Makes a state that cannot be stored, and the next event one that can.
    Heavy,
}

/// Collects the revisions of the events that change something.
pub(super) struct Collect(pub(super) &'static str);

impl Fold for Collect {
    fn name(&self) -> &'static str {
        "collect"
    }
    fn schema(&self) -> u32 {
        1
    }
    fn source(&self) -> Source {
        Source::Category("s".into())
    }
    fn fingerprint(&self) -> &str {
        self.0
    }
    fn keeps_commands(&self) -> bool {
        false
    }
    fn initial(&self) -> State {
        State::new(Vec::<u64>::new())
    }
    fn apply(&self, state: &mut State, event: &RawEvent) -> Result<Change, FoldError> {
        let state: &mut Vec<u64> = state.get_mut().unwrap();
        match &*event.kind {
            "Keep" => return Ok(Change::Keep),
            "New" if self.0 != "new" => return Err(FoldError::UnknownKind("New".into())),
            _ => state.push(event.revision),
        }
        Ok(Change::Put)
    }
    fn encode(&self, state: &State) -> Result<Encoded, FoldError> {
        let list = state
            .get::<Vec<u64>>()
            .unwrap()
            .iter()
            .map(|n| Document::Number(n.to_string().into()))
            .collect();
        Ok(Encoded {
            view: Document::List(list),
            fold: None,
        })
    }
    fn decode(&self, view: &StoredState, _: Option<&StoredState>) -> Result<State, StateError> {
        match view {
            StoredState::Document(document) => Ok(State::new(
                numbers(document).ok_or_else(|| StateError("no list".into()))?,
            )),
            StoredState::Json(_) => Err(StateError("json".into())),
        }
    }
}

pub(super) fn numbers(document: &Document) -> Option<Vec<u64>> {
    let Document::List(list) = document else {
        return None;
    };
    list.iter()
        .map(|n| {
            if let Document::Number(n) = n {
                n.parse().ok()
            } else {
                None
            }
        })
        .collect()
}

/// An event of a history that was lost is in hand, and the replica is of the one that took its place: it used
/// to be folded on it, since it is the next in number.
#[test]
fn an_event_older_than_what_it_would_follow_is_folded_only_as_read() {
    for readable in [false, true] {
        let (mut world, mut lane) = loaded_and_delivered();
        let At::Known(known) = &mut lane.lane.at else {
            unreachable!("it is loaded")
        };
        known.base.header.event.as_mut().unwrap().at = time(2) + Duration::from_millis(1);
        if !readable {
            world.log.truncate(2);
        }
        let mut now = Duration::ZERO;
        let put = loop {
            match lane.next(now) {
                Next::Do(Effect::Read { from, limit }) => lane.apply(Outcome::Read(world.read(from, limit)), now),
                Next::Do(Effect::Put(put, _)) => break Some(put.header.version),
                Next::WaitUntil(at) if now < SHOWN_WITHIN * 2 => now = at,
                Next::WaitUntil(_) => break None,
                other => panic!("{other:?}"),
            }
            assert_eq!(lane.verdicts(), [], "at {now:?}");
        };
        assert_eq!(put, readable.then_some(Some(2)));
    }
}
