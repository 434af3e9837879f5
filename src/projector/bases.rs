//! Replicas that idle lanes leave behind, bounded in bytes.
//!
//! A base is only ever a place to start from: a put on a stale one is refused and hands back what
//! is stored (invariant 2), so nothing here has to be fresh.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};

use super::lane::Base;

/// What a base weighs beyond its state: key, header, map entries.
const OVERHEAD: u64 = 512;
/// A decoded state against its stored form; measured on maps of small members, where it is most.
const EXPANSION: u64 = 3;

#[derive(Clone)]
struct Weigh;

impl Weighter<Arc<str>, Base> for Weigh {
    fn weight(&self, key: &Arc<str>, base: &Base) -> u64 {
        OVERHEAD + key.len() as u64 + base.bytes as u64 * EXPANSION
    }
}

/// Bases by stream.
#[derive(Clone)]
pub struct Bases(Arc<Cache<Arc<str>, Base, Weigh>>);

impl Bases {
    /// At most `bytes` of them, as far as they can be weighed.
    pub fn new(bytes: u64) -> Self {
        // An item weighs about 2 KiB; the estimate only sizes tables.
        let items = usize::try_from(bytes / 2048).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        Self(Arc::new(Cache::with_weighter(items, bytes, Weigh)))
    }

    /// Takes the base of a stream out.
    pub fn take(&self, stream: &Arc<str>) -> Option<Base> {
        self.0.remove(stream).map(|(_, base)| base)
    }

    /// Keeps a base.
    pub fn keep(&self, stream: Arc<str>, base: Base) {
        self.0.insert(stream, base);
    }

    /// What they weigh.
    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }
}
