//! Bases of the aggregates that this process dealt with last: baselines only, never answers.
//!
//! Bounded in bytes of what it holds: states, ids, names, its own bookkeeping. Who asks for an
//! aggregate that another task is loading waits for that load, and a load that was cut off is gone
//! on with where it stopped.

use std::sync::Arc;

use quick_cache::{Weighter, sync};

use super::base::Base;
use crate::replica::Landed;

/// What the cache itself takes for an entry: its slot, its hash, two reference counts each for name
/// and base, and what the allocator adds to four allocations.
const OVERHEAD: usize = 192;

/// A base that is kept.
#[derive(Clone)]
struct Entry {
    base: Arc<Base>,
    /// Whether it was folded to where its stream ended; else a load was cut off here.
    whole: bool,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Arc<str>, Entry> for Bytes {
    fn weight(&self, key: &Arc<str>, entry: &Entry) -> u64 {
        let header = &entry.base.header;
        let ids = header.commands.capacity() * size_of::<Landed>();
        let texts = header.event.as_ref().map_or(0, |event| event.kind.len())
            + header.quarantine.as_ref().map_or(0, |mark| {
                mark.reason.len() + mark.by.iter().map(|by| by.len()).sum::<usize>()
            });
        (OVERHEAD + size_of::<Base>() + key.len() + ids + texts + entry.base.weight.bytes()) as u64
    }
}

/// The cache.
pub(super) struct Cache(sync::Cache<Arc<str>, Entry, Bytes>);

type Guard<'a> = sync::PlaceholderGuard<
    'a,
    Arc<str>,
    Entry,
    Bytes,
    quick_cache::DefaultHashBuilder,
    sync::DefaultLifecycle<Arc<str>, Entry>,
>;

/// The right to load one aggregate for everybody who waits for it; dropped, the next one has it, and
/// goes on where this load was cut off.
pub(super) struct Lead<'a> {
    guard: Option<Guard<'a>>,
    /// How far the load came, or one before it.
    pub(super) part: Option<Arc<Base>>,
}

impl Lead<'_> {
    /// Here it is.
    pub(super) fn found(mut self, base: Arc<Base>) {
        self.insert(Entry { base, whole: true });
    }

    fn insert(&mut self, entry: Entry) {
        if let Some(guard) = self.guard.take() {
            // Refused when the entry was replaced meanwhile: by something newer.
            let _ = guard.insert(entry);
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if let Some(base) = self.part.take() {
            self.insert(Entry { base, whole: false });
        }
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
        let mut part = None;
        loop {
            match self.0.get_value_or_guard_async(stream).await {
                Ok(entry) if entry.whole => return Ok(entry.base),
                Ok(begun) => {
                    // Whoever takes it out goes on with it; everybody else waits for that.
                    let same = |entry: &Entry| Arc::ptr_eq(&entry.base, &begun.base);
                    if self.0.remove_if(stream, same).is_some() {
                        part = Some(begun.base);
                    }
                }
                Err(guard) => {
                    let guard = Some(guard);
                    return Err(Lead { guard, part });
                }
            }
        }
    }

    /// Keeps `base` unless a newer one is there; `force`: whatever is there.
    pub(super) fn put(&self, stream: &Arc<str>, base: Base, force: bool) {
        // Two commands may end at once; which of them is kept only decides how long a tail is read.
        let newer = |there: Entry| there.whole && there.base.header.version > base.header.version;
        if force || !self.0.peek(stream).is_some_and(newer) {
            let base = Arc::new(base);
            self.0.insert(stream.clone(), Entry { base, whole: true });
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

    /// Keeps how far a load came, for the next one to go on with.
    pub(super) fn put_part(&self, stream: &Arc<str>, base: Base) {
        let base = Arc::new(base);
        self.0.insert(stream.clone(), Entry { base, whole: false });
    }

    /// Forgets one that may be wrong; a part of one, which the stream is compared with first, stays.
    pub(super) fn distrust(&self, stream: &str) {
        self.0.remove_if(stream, |entry| entry.whole);
    }

    /// What it holds weighs this many bytes.
    #[cfg(test)]
    pub(super) fn weight(&self) -> u64 {
        self.0.weight()
    }
}
