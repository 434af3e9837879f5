//! x
use super::Document;
use crate::projection::StateError;
/// From document.
pub fn from_document<T: serde::de::DeserializeOwned>(_d: &Document) -> Result<T, StateError> {
    unimplemented!()
}
