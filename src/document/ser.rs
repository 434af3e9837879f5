//! x
use super::Document;
use crate::projection::StateError;
/// To document.
pub fn to_document<T: serde::Serialize + ?Sized>(_v: &T) -> Result<Document, StateError> {
    unimplemented!()
}
