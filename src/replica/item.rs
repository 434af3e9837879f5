//! The item's layout, and the checks that decide before a put whether a state can be stored.
//!
//! Keeps invariant 1: a state is stored exactly or refused with the path that is to blame.

use crate::document::Document;

/// A state in the form in which it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// None is kept.
    Nothing,
    /// Native maps: the view, and the fold where it differs.
    Native {
        /// For readers.
        view: Document,
        /// For folding on.
        fold: Option<Document>,
        /// Size in bytes by DynamoDB's rules.
        bytes: usize,
    },
    /// Compressed JSON of the view, and of the fold where it differs.
    Compressed {
        /// zstd of the view's JSON.
        view: Vec<u8>,
        /// zstd of the fold's JSON.
        fold: Option<Vec<u8>>,
    },
}
