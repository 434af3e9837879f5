//! An event's metadata by the names that EventStoreDB and this library give them.
//!
//! Keeps the library's own members out of callers' hands: what says which command an event carries
//! out decides whether a repetition is one.

use serde_json::{Map, Value};

/// What an event's command belongs to: EventStoreDB's own name, by which its `$by_correlation_id`
/// projection links events together.
pub const CORRELATION_ID: &str = "$correlationId";
/// What caused an event's command: EventStoreDB's own name.
pub const CAUSATION_ID: &str = "$causationId";
/// Who asked for the command.
pub const USER: &str = "user";
/// The trace that the command was part of, as the W3C's header of this name has it.
pub const TRACEPARENT: &str = "traceparent";
/// The target of every span of this library.
pub(crate) const SPANS: &str = "projector::trace";
/// What goes with [`TRACEPARENT`], by the W3C as well. No field of its own: hardly anybody has it.
pub const TRACESTATE: &str = "tracestate";
/// The command that an event carries out: its id.
pub const COMMAND_ID: &str = "commandId";
/// The execution of a command that appended an event: one call.
pub const EXECUTION_ID: &str = "executionId";
/// An event begins a deleted stream's new life: its command found the stream deleted, and nothing
/// before it can be read. Says the event's own execution, so that a copy on another event says nothing.
pub const NEW_LIFE: &str = "newLife";
/// The command's name.
pub const COMMAND: &str = "command";
/// The caller's fingerprint of its request.
pub const FINGERPRINT: &str = "fingerprint";
/// The version of the events' shape: [`super::Event::SCHEMA`].
pub const SCHEMA: &str = "schema";

/// Members that callers cannot give a value of their own in [`Metadata::other`]: those that the
/// library writes itself, and those that have a field.
const TAKEN: [&str; 10] = [
    CORRELATION_ID,
    CAUSATION_ID,
    USER,
    TRACEPARENT,
    COMMAND_ID,
    EXECUTION_ID,
    NEW_LIFE,
    COMMAND,
    FINGERPRINT,
    SCHEMA,
];

/// What callers say beside a command, and what projections read beside its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// What it belongs to (`$correlationId`); of a command that says nothing, the command's id.
    pub correlation_id: Option<String>,
    /// What caused it (`$causationId`); of a command that says nothing, the command's id.
    pub causation_id: Option<String>,
    /// Who asked for it (`user`).
    pub user: Option<String>,
    /// The trace that it is part of (`traceparent`, the W3C's), verbatim.
    pub traceparent: Option<String>,
    /// Everything else, by its own names. Those that the library itself writes are not among them.
    pub other: Map<String, Value>,
}

impl Metadata {
    /// Reads an event's metadata. What is no JSON object has nothing to say, nor has a member of
    /// another type than its field's.
    pub fn parse(metadata: &[u8]) -> Self {
        let mut all: Map<String, Value> = serde_json::from_slice(metadata).unwrap_or_default();
        let mut text = |name: &str| match all.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        Self {
            correlation_id: text(CORRELATION_ID),
            causation_id: text(CAUSATION_ID),
            user: text(USER),
            traceparent: text(TRACEPARENT),
            other: {
                all.retain(|name, _| !TAKEN.contains(&name.as_str()));
                all
            },
        }
    }

    /// The first name in [`Self::other`] that is not the caller's to use.
    pub fn taken(&self) -> Option<&str> {
        self.other.keys().map(String::as_str).find(|name| TAKEN.contains(name))
    }

    /// Why nobody could read it back from an event: it is nested deeper than readers go.
    pub(crate) fn unreadable(&self) -> Option<serde_json::Error> {
        // What is flat reads back.
        let nested = self.other.values().any(|value| value.is_array() || value.is_object());
        let written = nested.then(|| Value::Object(self.to_object()).to_string())?;
        serde_json::from_str::<Map<String, Value>>(&written).err()
    }

    /// Adds what says which trace it is part of, unless the caller said that.
    pub(crate) fn trace(&mut self, name: &str, value: String) {
        if name == TRACEPARENT {
            self.traceparent.get_or_insert(value);
        } else {
            self.other.entry(name).or_insert_with(|| value.into());
        }
    }

    /// As an object, to which the library's own members are added.
    pub(crate) fn to_object(&self) -> Map<String, Value> {
        let mut all = self.other.clone();
        let named = [
            (CORRELATION_ID, &self.correlation_id),
            (CAUSATION_ID, &self.causation_id),
            (USER, &self.user),
            (TRACEPARENT, &self.traceparent),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                all.insert(name.to_owned(), value.clone().into());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_and_somebody_elses_is_read_as_far_as_it_goes() {
        let metadata = Metadata {
            correlation_id: Some("order-7".to_owned()),
            causation_id: None,
            user: Some("ada".to_owned()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            other: json!({ "$traceId": "0af7", "depth": [1, { "a": null }] })
                .as_object()
                .unwrap()
                .clone(),
        };
        let mut written = metadata.to_object();
        written.insert(COMMAND_ID.to_owned(), json!("c"));
        written.insert(SCHEMA.to_owned(), json!(3));
        let written = Value::Object(written).to_string();
        assert_eq!(Metadata::parse(written.as_bytes()), metadata);

        for nothing in ["", "null", "[1]", "\u{0}", "{\"user\":"] {
            assert_eq!(Metadata::parse(nothing.as_bytes()), Metadata::default(), "{nothing}");
        }
        let odd = Metadata::parse(br#"{"user":7,"$correlationId":null,"x":1}"#);
        assert_eq!((odd.user, odd.correlation_id, odd.other.len()), (None, None, 1));
    }

    #[test]
    fn the_librarys_own_names_are_taken() {
        for name in TAKEN {
            let mut metadata = Metadata::default();
            metadata.other.insert("mine".to_owned(), json!(1));
            assert_eq!(metadata.taken(), None);
            metadata.other.insert(name.to_owned(), json!(1));
            assert_eq!(metadata.taken(), Some(name));
        }
    }
}
