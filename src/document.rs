//! A state as data: the neutral form between a fold's Rust type and the table's item.
//!
//! Numbers are kept as their exact decimal text, never as `f64`, so that a replica read back is
//! the value that was written, or the write is refused (I1 prefix).

use std::collections::BTreeMap;

pub mod de;
pub(crate) mod discreet;
pub mod json;
pub mod ser;
pub(crate) mod whole;

/// One value of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Document {
    /// JSON `null`, `None`, `()`.
    #[default]
    Null,
    /// A boolean.
    Bool(bool),
    /// A number as its decimal text, a JSON number by form.
    Number(Box<str>),
    /// Text.
    String(String),
    /// An array.
    List(Vec<Document>),
    /// An object; DynamoDB maps keep no order, so neither does this.
    Map(BTreeMap<String, Document>),
}
