//! x
/// x
pub struct MergePatch;
