//! Promoted attributes: fields of a view that are attributes of their own, so that indexes reach them.
//!
//! An index refuses a whole item whose key attribute is of another type, empty or too long. So a
//! value that an index could refuse is left out here (the item then is not in that index) and
//! counted, and never stops a projection.

use std::sync::Arc;

use crate::document::Document;

use super::{attribute, number::Decimal};

/// The longest text that every kind of index key takes: a sort key's 1,024 bytes ("Quotas").
const DEFAULT_MAX_BYTES: usize = 1024;
/// An index key attribute's name ("Quotas").
const MAX_NAME: usize = 255;

/// The type that a promoted attribute is declared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Text.
    S,
    /// A number.
    N,
}

/// A field of the view that is an attribute of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The attribute's name.
    pub attribute: Arc<str>,
    /// Where the field stands in the view: names from the outside in.
    pub path: Vec<String>,
    /// What it must be.
    pub kind: KeyKind,
    /// The longest text in bytes: 1,024 for a sort key, 2,048 for a partition key.
    pub max_bytes: usize,
}

/// A promoted attribute that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("promote `{attribute}`: {problem}")]
pub struct PromotedError {
    /// Its name.
    pub attribute: String,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

impl Promoted {
    /// `path` is the field's path in the view with dots between names; text of up to 1,024 bytes.
    pub fn new(attribute: &str, path: &str, kind: KeyKind) -> Result<Self, PromotedError> {
        let refuse = |problem: String| {
            Err(PromotedError {
                attribute: attribute.to_owned(),
                problem,
            })
        };
        if attribute::ALL.contains(&attribute) {
            return refuse("that is the name of one of the replica's own attributes; choose another".into());
        }
        if attribute.is_empty() || attribute.len() > MAX_NAME {
            return refuse(format!("a name has 1 to {MAX_NAME} bytes"));
        }
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return refuse("its path is names with dots between them, such as `customer.id`".into());
        }
        Ok(Self {
            attribute: attribute.into(),
            path,
            kind,
            max_bytes: DEFAULT_MAX_BYTES,
        })
    }
}

/// A promoted value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Text, not empty.
    S(String),
    /// A number that DynamoDB holds exactly.
    N(String),
}

/// The promoted attributes of one view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promotions {
    /// Names and values.
    pub set: Vec<(Arc<str>, Key)>,
    /// How many fields were there and are left out: of another type, empty or too long.
    pub left_out: u32,
}

impl Promotions {
    /// Bytes by DynamoDB's rules.
    pub(super) fn bytes(&self) -> usize {
        let value = |key: &Key| match key {
            Key::S(text) => text.len(),
            Key::N(text) => Decimal::parse(text).map_or(text.len(), |n| n.size()),
        };
        self.set.iter().map(|(name, key)| name.len() + value(key)).sum()
    }
}

/// Takes the promoted fields out of a view. A field that is absent or null is simply absent.
pub(super) fn promote(view: &Document, promoted: &[Promoted]) -> Promotions {
    let mut out = Promotions::default();
    for field in promoted {
        match value(view, field) {
            Ok(Some(key)) => out.set.push((field.attribute.clone(), key)),
            Ok(None) => {}
            Err(LeftOut) => out.left_out += 1,
        }
    }
    out
}

struct LeftOut;

fn value(view: &Document, field: &Promoted) -> Result<Option<Key>, LeftOut> {
    let mut here = view;
    for name in &field.path {
        match here {
            Document::Map(map) => match map.get(name) {
                Some(next) => here = next,
                None => return Ok(None),
            },
            Document::Null => return Ok(None),
            _ => return Err(LeftOut),
        }
    }
    match (here, field.kind) {
        (Document::Null, _) => Ok(None),
        (Document::String(text), KeyKind::S) if !text.is_empty() && text.len() <= field.max_bytes => {
            Ok(Some(Key::S(text.clone())))
        }
        (Document::Number(text), KeyKind::N) => match Decimal::parse(text) {
            Some(number) if number.fits() => Ok(Some(Key::N(number.canonical()))),
            _ => Err(LeftOut),
        },
        _ => Err(LeftOut),
    }
}
