//! JSON text and [`Document`]s, numbers kept as they are written; differences between two.

use std::{collections::BTreeMap, fmt};

use serde_json::value::RawValue;

use super::Document;

/// `serde_json`'s own limit for nesting; deeper text is refused rather than overflow a stack.
const DEEPEST: usize = 128;

/// Text that is no JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parse JSON: {0}")]
pub struct JsonError(String);

/// JSON text as a document.
pub fn parse(text: &str) -> Result<Document, JsonError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|e| JsonError(e.to_string()))?;
    value(raw.get(), DEEPEST)
}

fn value(text: &str, left: usize) -> Result<Document, JsonError> {
    let wrong = |e: serde_json::Error| JsonError(e.to_string());
    let deeper = || {
        left.checked_sub(1)
            .ok_or_else(|| JsonError(format!("nested deeper than {DEEPEST} levels")))
    };
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let left = deeper()?;
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(wrong)?;
            let members = members.into_iter().map(|(key, raw)| Ok((key, value(raw.get(), left)?)));
            Document::Map(members.collect::<Result<_, JsonError>>()?)
        }
        Some(b'[') => {
            let left = deeper()?;
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
            Document::List(
                items
                    .into_iter()
                    .map(|raw| value(raw.get(), left))
                    .collect::<Result<_, _>>()?,
            )
        }
        Some(b'"') => Document::String(serde_json::from_str(text).map_err(wrong)?),
        Some(b't') => Document::Bool(true),
        Some(b'f') => Document::Bool(false),
        Some(b'n') => Document::Null,
        _ => Document::Number(text.into()),
    })
}

/// A document as JSON text, numbers as they are.
pub fn to_string(document: &Document) -> String {
    let mut out = String::new();
    write(document, &mut out, None, 0);
    out
}

/// The same over several lines, for people.
pub fn to_string_pretty(document: &Document) -> String {
    let mut out = String::new();
    write(document, &mut out, Some("  "), 0);
    out
}

fn write(document: &Document, out: &mut String, indent: Option<&str>, level: usize) {
    match document {
        Document::Null => out.push_str("null"),
        Document::Bool(true) => out.push_str("true"),
        Document::Bool(false) => out.push_str("false"),
        Document::Number(text) => out.push_str(text),
        Document::String(text) => quote(text, out),
        Document::List(items) => {
            let items = items.iter().map(|item| (None, item));
            block(('[', ']'), items, out, indent, level);
        }
        Document::Map(members) => {
            let members = members.iter().map(|(key, value)| (Some(key.as_str()), value));
            block(('{', '}'), members, out, indent, level);
        }
    }
}

fn quote(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn block<'a>(
    (open, close): (char, char),
    entries: impl ExactSizeIterator<Item = (Option<&'a str>, &'a Document)>,
    out: &mut String,
    indent: Option<&str>,
    level: usize,
) {
    let empty = entries.len() == 0;
    let line = |out: &mut String, level: usize| {
        if let (Some(indent), false) = (indent, empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent, level));
        }
    };
    out.push(open);
    for (index, (key, value)) in entries.enumerate() {
        if index > 0 {
            out.push(',');
        }
        line(out, level + 1);
        if let Some(key) = key {
            quote(key, out);
            out.push_str(if indent.is_some() { ": " } else { ":" });
        }
        write(value, out, indent, level + 1);
    }
    line(out, level);
    out.push(close);
}

/// One place in which two documents differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where, as `offers.sent[3]`; empty for the whole.
    pub path: String,
    /// On the left; `None`: nothing there.
    pub left: Option<Document>,
    /// On the right.
    pub right: Option<Document>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |side: &Option<Document>| side.as_ref().map_or("nothing".to_owned(), to_string);
        let path = if self.path.is_empty() { "." } else { &self.path };
        write!(f, "{path}: {} / {}", side(&self.left), side(&self.right))
    }
}

/// Where two documents differ; numbers are compared by value (`1`, `1.0` and `1e0` are equal).
pub fn diff(left: &Document, right: &Document) -> Vec<Difference> {
    let mut out = Vec::new();
    compare(String::new(), Some(left), Some(right), &mut out);
    out
}

fn compare(path: String, left: Option<&Document>, right: Option<&Document>, out: &mut Vec<Difference>) {
    match (left, right) {
        (Some(Document::Map(a)), Some(Document::Map(b))) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                compare(path, a.get(key), b.get(key), out);
            }
        }
        (Some(Document::List(a)), Some(Document::List(b))) => {
            for index in 0..a.len().max(b.len()) {
                compare(format!("{path}[{index}]"), a.get(index), b.get(index), out);
            }
        }
        (Some(Document::Number(a)), Some(Document::Number(b))) if same_number(a, b) => {}
        (left, right) if left == right => {}
        (left, right) => out.push(Difference {
            path,
            left: left.cloned(),
            right: right.cloned(),
        }),
    }
}

/// Whether two JSON numbers have the same value, whatever their size.
pub fn same_number(a: &str, b: &str) -> bool {
    a == b || normal(a) == normal(b)
}

/// Sign, significant digits without zeros at either end, and the power of ten of the last digit.
fn normal(text: &str) -> (bool, String, i64) {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let trimmed = digits.trim_end_matches('0');
    let dropped = (digits.len() - trimmed.len()) as i64;
    let significant = trimmed.trim_start_matches('0');
    if significant.is_empty() {
        return (false, String::new(), 0);
    }
    let exponent = exponent.trim_start_matches('+').parse::<i64>().unwrap_or(i64::MAX / 2);
    (
        negative,
        significant.to_owned(),
        exponent - fraction.len() as i64 + dropped,
    )
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_string(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_as_they_are_written() {
        let text = r#"{"a":[1.50,12345678901234567890123456789012345678,1e400,-0],"b":"\u00e9\n","c":null,"d":{}}"#;
        assert_eq!(to_string(&parse(text).unwrap()), text.replace("\\u00e9", "é"));
        let pretty = to_string_pretty(&parse(text).unwrap());
        assert_eq!(parse(&pretty).unwrap(), parse(text).unwrap());
        assert!(pretty.contains("\n  \"a\": [\n    1.50,"), "{pretty}");
    }

    #[test]
    fn broken_and_bottomless_text_is_refused() {
        for text in ["", "{", "[1,]", "{\"a\":01}", "1 2"] {
            assert!(parse(text).is_err(), "{text}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&deep).unwrap_err().to_string().contains("deeper"));
    }

    #[test]
    fn differences_name_their_path_and_compare_numbers_by_value() {
        let a = parse(r#"{"x":{"y":[1,2,3]},"n":1.0,"gone":1}"#).unwrap();
        let b = parse(r#"{"x":{"y":[1,5]},"n":1e0,"new":null}"#).unwrap();
        let found: Vec<_> = diff(&a, &b).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "gone: 1 / nothing",
                "new: nothing / null",
                "x.y[1]: 2 / 5",
                "x.y[2]: 3 / nothing"
            ]
        );
        for (a, b) in [("100", "1e2"), ("0.10", "1e-1"), ("-0", "0.0"), ("1E+2", "100")] {
            assert!(same_number(a, b), "{a} {b}");
        }
        assert!(!same_number("1", "-1") && !same_number("10", "1"));
    }
}
