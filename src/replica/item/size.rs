//! What a state takes of an item, by DynamoDB's rules ("Item sizes and formats"), and whether a
//! native map can hold it exactly.

use std::fmt::Write;

use super::number::Decimal;
use crate::document::Document;

/// A list or a map takes three bytes, whatever it holds.
const CONTAINER: usize = 3;
/// And one for each element or pair.
const ELEMENT: usize = 1;
/// A map's key is an attribute's name: 64 KB at most ("Quotas", attribute names).
const MAX_KEY: usize = 65_535;
/// A map may be nested 32 levels deep and the item itself is the first ("Quotas", nested depth).
const MAX_NATIVE_DEPTH: usize = 31;

/// Bytes of a value, never fewer than DynamoDB counts.
pub(crate) fn of(value: &Document) -> usize {
    match value {
        Document::Null | Document::Bool(_) => 1,
        Document::Number(text) => Decimal::parse(text).map_or(text.len(), |n| n.size()),
        Document::String(text) => text.len(),
        Document::List(list) => CONTAINER + list.iter().map(|item| ELEMENT + of(item)).sum::<usize>(),
        Document::Map(map) => {
            CONTAINER
                + map
                    .iter()
                    .map(|(key, item)| ELEMENT + key.len() + of(item))
                    .sum::<usize>()
        }
    }
}

/// Levels of lists and maps, 1 for a flat one; 0 for a scalar.
pub(crate) fn depth(value: &Document) -> usize {
    match value {
        Document::List(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Document::Map(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Whether the value can be the top of a native map: an object, within depth, names and numbers.
pub(crate) fn is_native(value: &Document) -> bool {
    matches!(value, Document::Map(_)) && depth(value) <= MAX_NATIVE_DEPTH && holds(value)
}

fn holds(value: &Document) -> bool {
    match value {
        Document::Number(text) => Decimal::parse(text).is_some_and(|n| n.fits()),
        Document::List(list) => list.iter().all(holds),
        Document::Map(map) => map
            .iter()
            .all(|(key, item)| !key.is_empty() && key.len() <= MAX_KEY && holds(item)),
        Document::Null | Document::Bool(_) | Document::String(_) => true,
    }
}

/// The path of the part that takes most, with its bytes: goes down while one child is at least
/// half of its parent, for that is where something is to be done.
pub(crate) fn largest(value: &Document) -> (String, usize) {
    let mut path = String::new();
    let mut here = value;
    let mut bytes = of(value);
    loop {
        let child = match here {
            Document::List(list) => list
                .iter()
                .enumerate()
                .map(|(index, item)| (Step::Index(index), item, of(item)))
                .max_by_key(|(_, _, bytes)| *bytes),
            Document::Map(map) => map
                .iter()
                .map(|(key, item)| (Step::Key(key), item, key.len() + of(item)))
                .max_by_key(|(_, _, bytes)| *bytes),
            _ => None,
        };
        match child {
            Some((step, item, size)) if size * 2 >= bytes => {
                step.write(&mut path);
                here = item;
                bytes = size;
            }
            _ => break,
        }
    }
    if path.is_empty() {
        path.push_str("(the whole state)");
    }
    (path, bytes)
}

enum Step<'a> {
    Index(usize),
    Key(&'a str),
}

impl Step<'_> {
    fn write(&self, path: &mut String) {
        /// A key longer than this is shown shortened: it is read by people.
        const SHOWN: usize = 60;
        // Writing to a `String` cannot fail.
        let _ = match self {
            Self::Index(index) => write!(path, "[{index}]"),
            Self::Key(key) => {
                let plain =
                    !key.is_empty() && key.len() <= SHOWN && key.chars().all(|c| c.is_alphanumeric() || c == '_');
                if !plain {
                    let shown: String = key.chars().take(SHOWN).collect();
                    write!(path, "[{shown:?}]")
                } else if path.is_empty() {
                    write!(path, "{key}")
                } else {
                    write!(path, ".{key}")
                }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn map<const N: usize>(pairs: [(&str, Document); N]) -> Document {
        Document::Map(pairs.map(|(k, v)| (k.to_owned(), v)).into_iter().collect())
    }

    fn nested(levels: usize) -> Document {
        (1..levels).fold(Document::Map(BTreeMap::new()), |inner, _| map([("a", inner)]))
    }

    #[test]
    fn sizes_follow_the_rules() {
        assert_eq!(of(&Document::Null), 1);
        assert_eq!(of(&Document::String("añb".into())), 4);
        assert_eq!(of(&Document::List(vec![])), 3);
        assert_eq!(of(&map([("ab", Document::Bool(true))])), 3 + 1 + 2 + 1);
        // 1 + digits/2 by the guide, and never under it.
        assert!(of(&Document::Number("1234".into())) >= 3);
        assert!(of(&Document::Number("-1234".into())) >= 4);
    }

    #[test]
    fn a_native_map_has_31_levels_and_no_empty_name() {
        assert_eq!(depth(&nested(31)), 31);
        assert!(is_native(&nested(31)));
        assert!(!is_native(&nested(32)));
        assert!(!is_native(&map([("", Document::Null)])));
        assert!(!is_native(&Document::List(vec![])));
        assert!(!is_native(&map([("n", Document::Number("1e300".into()))])));
        assert!(is_native(&map([("s", Document::String(String::new()))])));
    }

    #[test]
    fn the_largest_part_is_named_where_something_can_be_done() {
        let state = map([
            ("id", Document::Number("1".into())),
            (
                "lines",
                Document::List(vec![
                    Document::Null,
                    map([("odd key", Document::String("x".repeat(1000)))]),
                ]),
            ),
        ]);
        let (path, bytes) = largest(&state);
        assert_eq!(path, r#"lines[1]["odd key"]"#);
        assert!(bytes >= 1000);
        let even = map([("lines", Document::List(vec![Document::String("x".repeat(100)); 50]))]);
        assert_eq!(largest(&even).0, "lines");
    }
}
