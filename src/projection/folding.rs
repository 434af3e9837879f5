//! Folding events onto a replica: the one place where a version grows.
//!
//! Invariant: I1 prefix: header and state move together, by the same events, whoever folds (the
//! daemon, a command, a query, the command line).

use serde::Deserialize;
use uuid::Uuid;

use super::{Change, Fold, FoldError, State};
use crate::{
    event::{RawEvent, metadata::COMMAND_ID},
    replica::{ALL_COMMANDS, Header, Landed, LastEvent, Sort, stored_time},
};

/// How many commands an aggregate's replica remembers unless the settings say otherwise: what a
/// busy aggregate takes within the minutes in which callers still repeat a command, at 60 bytes each.
pub const COMMANDS_KEPT: usize = 32;

/// The type of a record that only points at another stream's event. In an aggregate's own stream it
/// is what its read shows, unresolved, and changes nothing: what it points at is not this stream's.
pub const LINK: &str = "$>";

/// What folded events came to.
#[derive(Clone, Debug)]
pub struct Folded {
    /// The replica's header after the last event that could be folded.
    pub header: Header,
    /// The state after it.
    pub state: State,
    /// Whether any event changed the state.
    pub changed: bool,
    /// How many events were folded.
    pub applied: usize,
    /// Which event (by index) could not be, and why.
    pub stopped: Option<(usize, FoldError)>,
}

/// Folds `events`, which follow `base` without a hole, as far as they can be folded.
/// `keep`: how many command ids an aggregate's header remembers.
pub fn fold_events(fold: &dyn Fold, base: (&Header, &State), events: &[RawEvent], keep: usize) -> Folded {
    let (mut header, mut state) = (base.0.clone(), base.1.clone());
    let mut changed = false;
    for (index, event) in events.iter().enumerate() {
        let change = if &*event.kind == LINK {
            Ok(Change::Keep)
        } else {
            match fold.apply(&mut state, event) {
                // Folds of users' own may say it either way.
                Ok(Change::Refuse(reason)) => Err(FoldError::Refused(reason)),
                change => change,
            }
        };
        match change {
            Ok(change) => {
                changed |= change == Change::Put;
                advance(&mut header, event, if fold.keeps_commands() { keep } else { 0 });
            }
            Err(error) => {
                // The code may have left the state half changed: fold the good events once more.
                if matches!(
                    error,
                    FoldError::Panicked(_) | FoldError::Refused(_) | FoldError::Failed(_)
                ) {
                    let good = fold_events(fold, base, &events[..index], keep);
                    return Folded {
                        stopped: Some((index, error)),
                        ..good
                    };
                }
                return Folded {
                    header,
                    state,
                    changed,
                    applied: index,
                    stopped: Some((index, error)),
                };
            }
        }
    }
    Folded {
        header,
        state,
        changed,
        applied: events.len(),
        stopped: None,
    }
}

fn advance(header: &mut Header, event: &RawEvent, keep: usize) {
    let at = stored_time(event.created);
    if header.version.is_none() {
        header.first = event.revision;
        header.commands.clear();
        // What was before the first event that can be read, nobody knows; before a new life, nothing
        // counts any more.
        let whole = event.revision == 0 || begins_anew(event);
        header.commands_since = if whole { ALL_COMMANDS } else { at };
    }
    header.version = Some(event.revision);
    header.event = Some(LastEvent {
        id: event.id,
        kind: event.kind.clone(),
        at: event.created,
    });
    // A window is never made shorter than others have it: who keeps more relies on it.
    let keep = keep.max(header.commands.len());
    if keep == 0 {
        header.commands_since = at;
        return;
    }
    let Some(origin) = origin_of(event) else { return };
    match header.commands.last_mut() {
        Some(last) if last.command == origin.command => (last.last, last.at) = (event.revision, Some(at)),
        _ => header.commands.push(Landed {
            command: origin.command,
            sort: origin.sort,
            first: event.revision,
            last: event.revision,
            at: Some(at),
        }),
    }
    let surplus = header.commands.len().saturating_sub(keep);
    for dropped in header.commands.drain(..surplus) {
        header.commands_since = header.commands_since.max(dropped.at.unwrap_or(at));
    }
}

/// Which command an event carries out, as its metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOrigin {
    /// The command's id.
    pub command: Uuid,
    /// The call that appended it; unknown of what older code wrote.
    pub execution: Option<Uuid>,
    /// What the command was.
    pub sort: Sort,
    /// It found its stream deleted, and this event begins the new life.
    pub new_life: bool,
}

/// The command that an event's metadata names.
pub fn origin_of(event: &RawEvent) -> Option<CommandOrigin> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "commandId")]
        command: Option<Uuid>,
        #[serde(rename = "executionId", default)]
        execution: Option<Uuid>,
        #[serde(rename = "newLife", default)]
        new_life: Option<serde_json::Value>,
        #[serde(flatten)]
        sort: Sort,
    }
    #[derive(Deserialize)]
    struct Bare {
        #[serde(rename = "commandId")]
        command: Option<Uuid>,
    }
    // Most metadata names none; a search is cheaper than a parse.
    let named = event
        .metadata
        .windows(COMMAND_ID.len())
        .any(|window| window == COMMAND_ID.as_bytes());
    if !named {
        return None;
    }
    // Somebody else's members of the same names may be anything.
    let named = serde_json::from_slice(&event.metadata).or_else(|_| {
        serde_json::from_slice(&event.metadata).map(|Bare { command }| Named {
            command,
            execution: None,
            new_life: None,
            sort: Sort::default(),
        })
    });
    let Named {
        command,
        execution,
        new_life,
        sort,
    } = named.ok()?;
    let own = |said: &serde_json::Value| execution.is_some_and(|own| said.as_str() == Some(&own.to_string()));
    Some(CommandOrigin {
        command: command?,
        execution,
        sort,
        new_life: new_life.as_ref().is_some_and(own),
    })
}

/// Whether the event says that it begins a deleted stream's new life: a deletion ends what command
/// ids promise, so that none from before it is missed.
pub fn begins_anew(event: &RawEvent) -> bool {
    origin_of(event).is_some_and(|origin| origin.new_life)
}

/// The id of the command that an event's metadata names.
pub fn command_of(event: &RawEvent) -> Option<Uuid> {
    origin_of(event).map(|origin| origin.command)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::DateTime;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{
        aggregate::Aggregate,
        event::Event,
        projection::{Compiled, StoredState},
    };

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Sum(i64);

    #[derive(Serialize, Deserialize)]
    enum Added {
        Added(i64),
    }
    impl Event for Added {}

    impl Aggregate for Sum {
        const CATEGORY: &'static str = "sum";
        type Event = Added;
        fn apply(&mut self, Added::Added(n): Added) {
            self.0 += n;
            assert!(n != 13, "thirteen");
        }
    }

    fn event(revision: u64, body: &str, command: Option<u128>) -> RawEvent {
        let metadata = command
            .map(|id| format!(r#"{{"commandId":"{}"}}"#, Uuid::from_u128(id)))
            .unwrap_or_default();
        RawEvent {
            stream: "sum-1".into(),
            revision,
            id: Uuid::from_u128(u128::from(revision) + 100),
            kind: "Added".into(),
            json: true,
            data: Bytes::copy_from_slice(body.as_bytes()),
            metadata: Bytes::from(metadata),
            created: DateTime::UNIX_EPOCH,
        }
    }

    fn run(events: &[RawEvent], keep: usize) -> Folded {
        let fold = Compiled::<Sum>::new("test");
        fold_events(&fold, (&Header::new(), &fold.initial()), events, keep)
    }

    #[test]
    fn header_and_state_move_together() {
        let folded = run(&[event(4, "1", None), event(5, "2", None)], 8);
        assert_eq!(folded.state.get(), Some(&Sum(3)));
        assert_eq!((folded.header.first, folded.header.version), (4, Some(5)));
        assert_eq!(folded.header.event.unwrap().id, Uuid::from_u128(105));
        assert!(folded.stopped.is_none() && folded.changed);
    }

    #[test]
    fn a_bad_event_leaves_the_good_prefix() {
        for bad in ["\"x\"", "13"] {
            let folded = run(
                &[
                    event(0, "1", None),
                    event(1, "2", None),
                    event(2, bad, None),
                    event(3, "4", None),
                ],
                8,
            );
            assert_eq!(folded.state.get(), Some(&Sum(3)), "{bad}");
            assert_eq!((folded.header.version, folded.applied), (Some(1), 2));
            assert_eq!(folded.stopped.as_ref().unwrap().0, 2);
        }
    }

    /// A handler that copies the members of what it answers to, this one among them, begins no life.
    #[test]
    fn a_copied_new_life_says_nothing() {
        let [own, other] = [1, 2].map(Uuid::from_u128);
        let said = |id: Uuid| serde_json::Value::from(id.to_string());
        for (says, begins) in [
            (said(own), true),
            (said(other), false),
            (true.into(), false),
            (serde_json::Value::Null, false),
        ] {
            let metadata = serde_json::json!({
                "commandId": other, "executionId": own, "command": "x", "newLife": says,
            });
            let event = RawEvent {
                metadata: metadata.to_string().into(),
                ..event(0, "1", None)
            };
            assert_eq!(begins_anew(&event), begins, "{metadata}");
            assert_eq!(origin_of(&event).unwrap().sort.name.as_deref(), Some("x"), "{metadata}");
        }
    }

    /// A view whose type panics as it is read, and one that says what it read.
    #[test]
    fn a_stored_state_that_cannot_be_read_is_an_error_without_its_values() {
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        struct Odd;
        impl<'de> Deserialize<'de> for Odd {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                assert_ne!(text, "4111", "it panics");
                Ok(Self)
            }
        }
        impl Aggregate for Odd {
            const CATEGORY: &'static str = "odd";
            type Event = Added;
            fn apply(&mut self, _: Added) {}
        }
        let fold = Compiled::<Odd>::new("test");
        for stored in [r#""4111""#, "4111"] {
            let error = fold.decode(&StoredState::Json(stored.into()), None).unwrap_err();
            assert!(!error.to_string().contains("4111"), "{error}");
        }
    }

    /// Code that knows no such event, and has no catch-all, is not asked.
    #[test]
    fn a_link_in_a_stream_of_its_own_changes_nothing() {
        let link = RawEvent {
            kind: LINK.into(),
            json: false,
            ..event(1, "1@inv-7", None)
        };
        let folded = run(&[event(0, "1", None), link.clone(), event(2, "2", None)], 8);
        assert_eq!(folded.state.get(), Some(&Sum(3)));
        assert!(folded.stopped.is_none());
        assert_eq!((folded.applied, folded.header.version), (3, Some(2)));
        assert!(!run(&[link], 8).changed);
    }

    #[test]
    fn the_last_commands_are_remembered_with_their_revisions() {
        let events = [
            event(0, "1", Some(1)),
            event(1, "1", Some(1)),
            event(2, "1", None),
            event(3, "1", Some(2)),
            event(4, "1", Some(3)),
        ];
        let landed = run(&events, 2).header.commands;
        let expected = [(2, 3, 3), (3, 4, 4)].map(|(id, first, last)| Landed {
            command: Uuid::from_u128(id),
            sort: Sort::default(),
            first,
            last,
            at: Some(DateTime::UNIX_EPOCH),
        });
        assert_eq!(landed, expected);
        assert_eq!(run(&events[..2], 2).header.commands[0].last, 1);
    }
}

#[cfg(test)]
mod read_back {
    //! A state that stayed in memory and one that was read from its table between any two events
    //! are the same, and so is all that is folded on them.

    use bytes::Bytes;
    use chrono::DateTime;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};
    use serde_json::Value;

    use super::*;
    use crate::{
        document::json,
        event::Recorded,
        projection::{Compiled, MergePatch, Projection, StoredState},
        replica::item::{self, Body, number::as_read_back},
    };

    /// Folds what it has seen into what it makes next, by how the numbers look to it.
    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Seen {
        last: Value,
        floats: u64,
        integers: u64,
        sum: f64,
        pair: (f64, Value),
        either: Vec<Either>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Float(f64),
        Other(Value),
    }

    #[derive(Serialize, Deserialize)]
    enum Told {
        Told(Value),
    }
    impl crate::event::Event for Told {}

    fn count(value: &Value, seen: &mut (u64, u64, f64)) {
        match value {
            Value::Number(number) if number.is_f64() => {
                seen.0 += 1;
                seen.2 += number.as_f64().unwrap();
            }
            Value::Number(_) => seen.1 += 1,
            Value::Array(items) => items.iter().for_each(|item| count(item, seen)),
            Value::Object(members) => members.values().for_each(|value| count(value, seen)),
            _ => {}
        }
    }

    struct Counts;
    impl Projection for Counts {
        const NAME: &'static str = "counts";
        type Event = Told;
        type View = Seen;
        fn project(view: &mut Seen, event: Recorded<Told>) -> Change {
            let mut seen = (0, 0, 0.0);
            count(&view.last, &mut seen);
            view.floats += seen.0;
            view.integers += seen.1;
            // Bounded, so that every sum is a number that the table holds.
            view.sum = (view.sum + seen.2) % 1_000.0 + 0.0;
            let Told::Told(value) = event.event;
            view.pair = (view.integers as f64, value.clone());
            // An integer among floats would come back as one of them.
            match &value {
                Value::Number(number) if !number.is_f64() => {}
                Value::Number(number) => view.either.push(Either::Float(number.as_f64().unwrap() + 0.0)),
                other => view.either.push(Either::Other(other.clone())),
            }
            view.last = value;
            Change::Put
        }
    }

    fn event(revision: u64, body: &str) -> RawEvent {
        RawEvent {
            stream: "s-1".into(),
            revision,
            id: Uuid::from_u128(u128::from(revision)),
            kind: "Told".into(),
            json: true,
            data: Bytes::copy_from_slice(body.as_bytes()),
            metadata: Bytes::new(),
            created: DateTime::UNIX_EPOCH,
        }
    }

    /// The state as its table gives it back.
    fn through_the_table(fold: &dyn Fold, header: &Header, state: &State) -> State {
        let rules = item::Rules::new(fold.name());
        let body = item::prepare(fold.encode(state).unwrap(), &rules, "s-1", header).unwrap();
        let (view, kept) = body.stored().unwrap();
        let given = |stored| match stored {
            StoredState::Document(mut document) => {
                // One text for each number: what DynamoDB's number type does.
                if matches!(body, Body::Native { .. }) {
                    as_read_back(&mut document);
                }
                StoredState::Document(document)
            }
            json @ StoredState::Json(_) => json,
        };
        fold.decode(&given(view.unwrap()), kept.map(given).as_ref()).unwrap()
    }

    fn number() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<i64>().prop_map(|n| n.to_string()),
            any::<u64>().prop_map(|n| n.to_string()),
            (-1_000_i64..1_000).prop_map(|n| format!("{n}.0")),
            (-1_000_i64..1_000, 0_u32..100).prop_map(|(n, cents)| format!("{n}.{cents:02}")),
            (1_u32..1_000, -20_i32..20).prop_map(|(n, power)| format!("{n}e{power}")),
            (1_u32..1_000, 0_i32..20).prop_map(|(n, power)| format!("{n}.50E+{power}")),
            Just("0.0".to_owned()),
            Just("1e200".to_owned()),
        ]
    }

    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            4 => number(),
            1 => Just("null".to_owned()),
            1 => any::<bool>().prop_map(|b| b.to_string()),
            1 => "[a-z]{0,4}".prop_map(|text| format!("\"{text}\"")),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
                prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|members| {
                    let members: Vec<_> = members
                        .iter()
                        .map(|(key, value)| format!("\"{key}\":{value}"))
                        .collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    fn the_same(fold: &dyn Fold, bodies: &[String], read: &[bool]) -> Result<(), TestCaseError> {
        let events: Vec<_> = bodies.iter().zip(0..).map(|(body, n)| event(n, body)).collect();
        let whole = fold_events(fold, (&Header::new(), &fold.initial()), &events, 0);
        prop_assert!(whole.stopped.is_none(), "{:?}", whole.stopped);
        let (mut header, mut state) = (Header::new(), fold.initial());
        for (event, read) in events.iter().zip(read) {
            let folded = fold_events(fold, (&header, &state), std::slice::from_ref(event), 0);
            (header, state) = (folded.header, folded.state);
            if *read {
                state = through_the_table(fold, &header, &state);
            }
        }
        let text = |state: &State| {
            let mut view = fold.encode(state).unwrap().view;
            as_read_back(&mut view);
            json::to_string(&view)
        };
        prop_assert_eq!(text(&whole.state), text(&state));
        Ok(())
    }

    /// Found by the property below: floats of a state that is stored as text were read one unit off.
    #[test]
    fn a_float_in_a_state_that_is_stored_as_text_is_read_exactly() {
        for float in [218.120_000_000_000_06_f64, 0.1 + 0.2, 1e200, 5e-324, f64::MAX, -294.09] {
            let text = serde_json::to_vec(&float).unwrap();
            assert_eq!(
                StoredState::Json(text).read::<f64>().unwrap().to_bits(),
                float.to_bits()
            );
        }
    }

    proptest! {
        #[test]
        fn folding_from_memory_and_from_the_table_is_the_same(
            bodies in prop::collection::vec(value(), 1..8),
            read in prop::collection::vec(any::<bool>(), 8),
        ) {
            the_same(&Compiled::<Counts>::new("test"), &bodies, &read)?;
            let patches: Vec<_> = bodies.iter().map(|body| format!("{{\"a\":{body}}}")).collect();
            let fold = MergePatch::new("patch", 1, "category:s".parse().unwrap(), "test");
            the_same(&fold, &patches, &read)?;
        }
    }
}
