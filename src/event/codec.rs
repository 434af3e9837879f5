//! Between (event type, body) and a plain serde enum.
use super::{Event, NewBody, RawEvent, Recorded};
use crate::projection::FoldError;
/// Decodes.
pub fn decode<E: Event>(_event: RawEvent) -> Result<Recorded<E>, FoldError> {
    unimplemented!()
}
/// Encodes.
pub fn encode<E: Event>(_event: &E) -> Result<NewBody, FoldError> {
    unimplemented!()
}
