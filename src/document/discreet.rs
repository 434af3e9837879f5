//! What serde says of data that does not fit, without the data (in the spirit of I8 secrets: a log, a mark
//! and a parked message are read by more people than an event is).
//!
//! Kept are what was found by its kind, what was expected, the member's name and the place.

use std::sync::atomic::{AtomicBool, Ordering};

/// Somebody asked for values: of the whole process, for what is told is read where no settings are.
static VALUES: AtomicBool = AtomicBool::new(false);

/// Whether values are told all the same, as the setting `log.values` asks.
#[cfg(feature = "daemon")]
pub(crate) fn show_values(show: bool) {
    VALUES.store(show, Ordering::Relaxed);
}

/// Whether values are told.
pub(crate) fn shows_values() -> bool {
    VALUES.load(Ordering::Relaxed)
}

/// Beginnings of what serde and we say by ourselves, none of which repeats a value. What begins with
/// words that a type of somebody's is likely to choose ("expected a date, got ...") is none of them.
const HARMLESS: [&str; 10] = [
    "missing field `",
    "duplicate field `",
    "unknown field `",
    "invalid length ",
    "a list with ",
    "a value without a key",
    "invalid type: ",
    "invalid value: ",
    "nested deeper than ",
    "no event type",
];

/// What `serde_json` says, without what it repeats of the data: of text that is no JSON it repeats
/// nothing.
pub(crate) fn told(error: &serde_json::Error) -> String {
    if error.is_data() {
        without_values(&error.to_string())
    } else {
        error.to_string()
    }
}

/// The message without what it repeats of the data.
pub(crate) fn without_values(message: &str) -> String {
    if shows_values() {
        return message.to_owned();
    }
    let (text, place) = match message.rfind(" at line ") {
        Some(at) => message.split_at(at),
        None => (message, ""),
    };
    // A member's path was put before it: names, no values.
    if let Some((path, rest)) = text.strip_prefix("at `").and_then(|rest| rest.split_once("`: ")) {
        return format!("at `{path}`: {}{place}", without_values(rest));
    }
    for start in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = text.strip_prefix(start) {
            let (found, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, "something else"));
            let kind = found.split(['`', '"']).next().unwrap_or_default().trim_end();
            let kind = kind
                .trim_end_matches(|c: char| c.is_ascii_digit() || "+-.eE".contains(c))
                .trim_end();
            return format!("{start}{kind}, expected {expected}{place}");
        }
    }
    if text.starts_with("unknown variant") {
        let expected = text
            .rsplit_once(", expected ")
            .map_or("another", |(_, expected)| expected);
        return format!("unknown variant, expected {expected}{place}");
    }
    if HARMLESS.iter().any(|start| text.starts_with(start)) {
        return message.to_owned();
    }
    // A type's own words: they may quote what they refuse.
    format!("a value that its type does not take{place}")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr};

    use serde::{Deserialize, de::DeserializeOwned};

    use super::*;
    use crate::document::{de::from_document, json};

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only read by serde")]
    enum Kind {
        One,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only read by serde")]
    struct Body {
        count: i64,
        kind: Option<Kind>,
        at: Option<IpAddr>,
        by: Option<BTreeMap<String, bool>>,
    }

    /// Refuses whatever it is given, in words of its own.
    #[derive(Debug)]
    struct Picky;

    impl<'de> Deserialize<'de> for Picky {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            Err(serde::de::Error::custom(format!("expected a date, got {text}")))
        }
    }

    #[test]
    fn a_types_own_words_are_left_out_and_a_parsers_are_not() {
        for said in said::<Picky>(r#""4111""#) {
            assert!(said.starts_with("a value that its type does not take"), "{said}");
        }
        let error = serde_json::from_str::<Body>(r#"{"count":1"#).unwrap_err();
        assert_eq!(told(&error), error.to_string());
        let error = serde_json::from_str::<Body>(r#"{"count":"4111"}"#).unwrap_err();
        assert!(!told(&error).contains("4111"), "{}", told(&error));
    }

    fn said<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> [String; 2] {
        let read = serde_json::from_str::<T>(text).unwrap_err().to_string();
        let document = from_document::<T>(&json::parse(text).unwrap()).unwrap_err().to_string();
        [without_values(&read), without_values(&document)]
    }

    #[test]
    fn values_are_left_out_and_the_kind_and_place_stay() {
        for (text, parts) in [
            (r#"{"count":"4111 hush, expected 7"}"#, &["string", "i64"][..]),
            (r#"{"count":4111.5}"#, &["expected i64"]),
            (r#"{"count":41114111411141114111}"#, &["expected i64"]),
            (r#"{"count":1,"kind":"4111hush"}"#, &["unknown variant", "`One`"]),
            (r#"{"count":1,"at":"4111.hush"}"#, &["type does not take"]),
            (r#"{"count":1,"by":{"x":"4111hush"}}"#, &["string", "boolean"]),
            (r#"{"kind":null}"#, &["missing field `count`"]),
        ] {
            for said in said::<Body>(text) {
                assert!(!said.contains("4111") && !said.contains("hush"), "{said}");
                for part in parts {
                    assert!(said.contains(part), "`{part}` in: {said}");
                }
            }
        }
        let [read, _] = said::<Body>(r#"{"count":"x"}"#);
        assert!(read.contains("at line 1 column"), "{read}");
    }
}
