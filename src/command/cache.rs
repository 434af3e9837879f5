//! Bases of the aggregates that this process dealt with last: baselines only, never answers.
//!
//! Bounded in bytes. Who asks for an aggregate that another task is loading waits for that load.

use std::sync::Arc;

use quick_cache::{Weighter, sync};

use super::base::Base;

/// What an entry takes beside its state: key, header, and the cache's own bookkeeping.
const OVERHEAD: u64 = 512;

#[derive(Clone)]
struct Bytes;

impl Weighter<Arc<str>, Arc<Base>> for Bytes {
    fn weight(&self, key: &Arc<str>, base: &Arc<Base>) -> u64 {
        // A state in memory takes about twice its stored form.
        OVERHEAD + key.len() as u64 + 2 * base.bytes as u64
    }
}

/// The cache.
pub(super) struct Cache(sync::Cache<Arc<str>, Arc<Base>, Bytes>);

type Guard<'a> = sync::PlaceholderGuard<
    'a,
    Arc<str>,
    Arc<Base>,
    Bytes,
    quick_cache::DefaultHashBuilder,
    sync::DefaultLifecycle<Arc<str>, Arc<Base>>,
>;

/// The right to load one aggregate for everybody who waits for it; dropped, the next one has it.
pub(super) struct Lead<'a>(Guard<'a>);

impl Lead<'_> {
    /// Here it is.
    pub(super) fn found(self, base: Arc<Base>) {
        // Refused when the entry was replaced meanwhile: by something newer.
        let _ = self.0.insert(base);
    }
}

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        // The number of entries is only a hint for the first allocation.
        let entries = (bytes / 4096).clamp(16, 4096) as usize;
        Self(sync::Cache::with_weighter(entries, bytes, Bytes))
    }

    /// The base, or the right to load it.
    pub(super) async fn get_or_lead(&self, stream: &Arc<str>) -> Result<Arc<Base>, Lead<'_>> {
        self.0.get_value_or_guard_async(stream).await.map_err(Lead)
    }

    /// Keeps `base` unless a newer one is there; `force`: whatever is there.
    pub(super) fn put(&self, stream: &Arc<str>, base: Base, force: bool) {
        // Two commands may end at once; which of them is kept only decides how long a tail is read.
        let newer = |there: Arc<Base>| there.header.version > base.header.version;
        if force || !self.0.peek(stream).is_some_and(newer) {
            self.0.insert(stream.clone(), Arc::new(base));
        }
    }

    /// Forgets one, or all.
    pub(super) fn forget(&self, stream: Option<&str>) {
        match stream {
            Some(stream) => {
                self.0.remove(stream);
            }
            None => self.0.clear(),
        }
    }
}
