//! A projection without code: JSON merge patch (RFC 7396) of each event's body into the state.
//!
//! Known only at start, by the settings. Keeps the newest value of every member that the stream's
//! events ever set; `null` removes a member.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, Encoded, Fold, FoldError, Source, State, StateError, StoredState};
use crate::{
    document::{Document, json},
    event::RawEvent,
    replica::item::number::as_read_back,
};

/// Merges each JSON object body into the state.
#[derive(Clone, Debug)]
pub struct MergePatch {
    name: String,
    schema: u32,
    source: Source,
    fingerprint: Arc<str>,
}

impl MergePatch {
    /// A merge of this source's events under this name.
    pub fn new(name: impl Into<String>, schema: u32, source: Source, fingerprint: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            schema,
            source,
            fingerprint: fingerprint.into(),
        }
    }
}

impl Fold for MergePatch {
    fn name(&self) -> &str {
        &self.name
    }

    fn schema(&self) -> u32 {
        self.schema
    }

    fn source(&self) -> Source {
        self.source.clone()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn keeps_commands(&self) -> bool {
        false
    }

    fn initial(&self) -> State {
        State::new(Document::Map(BTreeMap::new()))
    }

    /// Bodies that are no JSON object have nothing to merge and change nothing.
    fn apply(&self, state: &mut State, event: &RawEvent) -> Result<Change, FoldError> {
        if !event.json || event.data.is_empty() {
            return Ok(Change::Keep);
        }
        let text = std::str::from_utf8(&event.data).map_err(|e| FoldError::Decode(format!("`{}`: {e}", event.kind)))?;
        let mut patch = json::parse(text).map_err(|e| FoldError::Decode(format!("`{}`: {e}", event.kind)))?;
        if !matches!(&patch, Document::Map(members) if !members.is_empty()) {
            return Ok(Change::Keep);
        }
        // As the table gives them back, so that it makes no difference where a state came from.
        as_read_back(&mut patch);
        let state: &mut Document = state
            .get_mut()
            .expect("a state is only ever handed to the fold that made it");
        merge(state, patch);
        Ok(Change::Put)
    }

    fn encode(&self, state: &State) -> Result<Encoded, FoldError> {
        let state: &Document = state
            .get()
            .expect("a state is only ever handed to the fold that made it");
        Ok(Encoded {
            view: state.clone(),
            fold: None,
        })
    }

    fn decode(&self, view: &StoredState, fold: Option<&StoredState>) -> Result<State, StateError> {
        Ok(State::new(match fold.unwrap_or(view) {
            StoredState::Document(document) => document.clone(),
            StoredState::Json(text) => {
                let text = std::str::from_utf8(text).map_err(|e| StateError(e.to_string()))?;
                json::parse(text).map_err(|e| StateError(e.to_string()))?
            }
        }))
    }
}

fn merge(target: &mut Document, patch: Document) {
    let Document::Map(patch) = patch else {
        *target = patch;
        return;
    };
    if !matches!(target, Document::Map(_)) {
        *target = Document::Map(BTreeMap::new());
    }
    let Document::Map(members) = target else { return };
    for (key, value) in patch {
        if value == Document::Null {
            members.remove(&key);
        } else {
            merge(members.entry(key).or_default(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7396, appendix A, for objects.
    #[test]
    fn merges_as_the_rfc_says() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (
                r#"{"a":{"b":"c"}}"#,
                r#"{"a":{"b":"d","c":null}}"#,
                r#"{"a":{"b":"d"}}"#,
            ),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            (r"{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let mut state = json::parse(target).unwrap();
            merge(&mut state, json::parse(patch).unwrap());
            assert_eq!(state.to_string(), result, "{target} {patch}");
        }
    }
}
