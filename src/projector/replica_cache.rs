//! Replicas that idle lanes leave behind, bounded in bytes.
//!
//! A base is only ever a place to start from: a put on a stale one is refused and hands back what
//! is stored (I2 monotonic), so nothing here has to be fresh.
//!
//! Kept is not the state but its JSON: its weight is then what it takes and no guess, three to four
//! times as many fit, and a state that comes from here is one that was read back, as one from the
//! table is.

use std::{mem::size_of, sync::Arc};

use quick_cache::{Weighter, sync::Cache};

use super::lane::LaneBase;
use crate::{
    document::json,
    projection::{Fold, State, StoredState},
    replica::Header,
};

/// What the cache's own tables take for an entry: key, pointer, links, and their room to grow.
const ENTRY: usize = 96;
/// What an `Arc` puts before its text.
const COUNTS: usize = 16;

/// What jemalloc takes for so many bytes: steps of 16 to begin with, then four to each doubling;
/// glibc's steps stay fine.
const fn heap(bytes: usize) -> usize {
    match bytes {
        0 | 8 => bytes,
        1..=128 => bytes.next_multiple_of(16),
        _ => bytes.next_multiple_of(1 << ((bytes - 1).ilog2() - 2)),
    }
}

/// A base without its state.
struct Kept {
    base: LaneBase,
    /// The stored header is the base's own, and is left out of it.
    stored: bool,
    /// The state that is folded on.
    state: Box<str>,
}

impl Kept {
    fn new(fold: &dyn Fold, base: LaneBase) -> Option<Self> {
        // What cannot be written down is loaded when it is wanted.
        let encoded = fold.encode(&base.state).ok()?;
        let state = json::to_string(encoded.fold.as_ref().unwrap_or(&encoded.view)).into_boxed_str();
        let stored = base.stored.as_ref() == Some(&base.header);
        Some(Self {
            base: LaneBase {
                stored: if stored { None } else { base.stored },
                state: State::new(()),
                ..base
            },
            stored,
            state,
        })
    }

    fn base(self, fold: &dyn Fold) -> Option<LaneBase> {
        let document = json::parse(&self.state).ok()?;
        let state = fold.decode(&StoredState::Document(document), None).ok()?;
        let stored = if self.stored {
            Some(self.base.header.clone())
        } else {
            self.base.stored
        };
        Some(LaneBase {
            stored,
            state,
            ..self.base
        })
    }

    fn bytes(&self) -> usize {
        let headers = self.base.stored.iter().chain([&self.base.header]);
        heap(size_of::<Self>()) + heap(self.state.len()) + headers.map(beside).sum::<usize>()
    }
}

/// What a header takes beside itself.
fn beside(header: &Header) -> usize {
    let event = header.event.as_ref().map_or(0, |event| heap(COUNTS + event.kind.len()));
    let mark = header.quarantine.as_ref().map_or(0, |mark| {
        let by = mark.by.iter().map(|one| COUNTS + heap(COUNTS + one.len()));
        heap(mark.reason.capacity()) + by.sum::<usize>()
    });
    event + mark + heap(header.commands.capacity() * size_of::<crate::replica::Landed>())
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Arc<str>, Arc<Kept>> for Weigh {
    fn weight(&self, key: &Arc<str>, kept: &Arc<Kept>) -> u64 {
        (ENTRY + heap(COUNTS + key.len()) + COUNTS + kept.bytes()) as u64
    }
}

/// Replicas by stream.
#[derive(Clone)]
pub struct ReplicaCache(Arc<Cache<Arc<str>, Arc<Kept>, Weigh>>);

impl ReplicaCache {
    /// At most `bytes` of them.
    pub fn new(bytes: u64) -> Self {
        // An item weighs about 2 KiB; the estimate only sizes tables.
        let items = usize::try_from(bytes / 2048).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        Self(Arc::new(Cache::with_weighter(items, bytes, Weigh)))
    }

    /// Takes the base of a stream out.
    pub fn take(&self, fold: &dyn Fold, stream: &Arc<str>) -> Option<LaneBase> {
        let (_, kept) = self.0.remove(stream)?;
        Arc::into_inner(kept)?.base(fold)
    }

    /// Keeps a base.
    pub fn keep(&self, fold: &dyn Fold, stream: Arc<str>, base: LaneBase) {
        if let Some(kept) = Kept::new(fold, base) {
            self.0.insert(stream, Arc::new(kept));
        }
    }

    /// Lets all of them go: the table that they were read from is another one now.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// What they weigh: bytes of memory.
    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, process::Command};

    use super::*;
    use crate::{document::Document, projection::MergePatch, replica::Replica};

    fn fold() -> MergePatch {
        MergePatch::new("order", 1, "category:order".parse().unwrap(), "test")
    }

    /// A state of many small members: where the decoded form is largest against its text.
    fn state(members: usize) -> Document {
        let mut text = String::from("{\"n\":1.50");
        for member in 0..members {
            let _ = write!(text, ",\"member-{member:03}\":\"value {member:010}\"");
        }
        text.push('}');
        json::parse(&text).unwrap()
    }

    /// A base as a lane leaves it: of a stream that had no replica, and put once.
    fn base(version: u64, members: usize) -> LaneBase {
        let mut base = LaneBase::from_stored(&fold(), None::<Replica>);
        base.header.version = Some(version);
        base.stored = Some(base.header.clone());
        base.state = State::new(state(members));
        base
    }

    #[test]
    fn what_is_taken_out_is_what_was_kept() {
        let (cache, fold) = (ReplicaCache::new(1 << 20), fold());
        let mut ahead = base(7, 3);
        ahead.header.version = Some(9);
        for before in [base(7, 3), ahead] {
            cache.keep(&fold, "order-1".into(), before.clone());
            let after = cache.take(&fold, &"order-1".into()).unwrap();
            assert_eq!(after.state.get(), Some(&state(3)));
            assert_eq!((after.header, after.stored), (before.header, before.stored));
            assert_eq!((after.rebase, after.verified), (before.rebase, before.verified));
        }
        assert!(cache.take(&fold, &"order-1".into()).is_none());
        assert_eq!(cache.bytes(), 0);
    }

    /// A base used to weigh what was loaded, which for a new stream is nothing.
    #[test]
    fn states_of_new_streams_weigh_what_they_hold() {
        let (cache, fold) = (ReplicaCache::new(1 << 20), fold());
        let one = json::to_string(&state(100)).len() as u64;
        cache.keep(&fold, "order-0".into(), base(0, 100));
        assert!(cache.bytes() > one, "{} for a state of {one}", cache.bytes());
        for stream in 1..2_000 {
            cache.keep(&fold, format!("order-{stream}").into(), base(0, 100));
        }
        assert!(cache.bytes() <= 1 << 20);
        let here = (0..2_000).filter(|stream| cache.take(&fold, &format!("order-{stream}").into()).is_some());
        assert!((here.count() as u64) < (1 << 20) / one);
    }

    /// Resident memory of this process in bytes.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Held against the process's own memory, in a process of its own.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_weight_is_the_memory_within_a_fifth() {
        const ALONE: &str = "PROJECTOR_TEST_BASES_ALONE";
        let Ok(case) = std::env::var(ALONE) else {
            for case in ["0", "1"] {
                let done = Command::new(std::env::current_exe().unwrap())
                    .args([
                        "--exact",
                        "projector::replica_cache::tests::the_weight_is_the_memory_within_a_fifth",
                        "--nocapture",
                    ])
                    .env(ALONE, case)
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
                assert!(done.status.success() && said.contains("1 passed"), "{said}");
            }
            return;
        };
        let fold = fold();
        // States of 4 KB, and many small ones.
        let (streams, members) = [(20_000_u64, 100), (200_000, 3)][case.parse::<usize>().unwrap()];
        let cache = ReplicaCache::new(1 << 30);
        // What is freed while it is made is used again for what comes after.
        cache.keep(&fold, "order-warm".into(), base(0, members));
        let before = resident();
        for stream in 0..streams {
            cache.keep(&fold, format!("order-{stream:09}").into(), base(stream, members));
        }
        let (taken, weight) = (resident() - before, cache.bytes());
        assert!(
            weight.abs_diff(taken) * 5 <= taken,
            "{members} members: weighed {weight}, took {taken}"
        );
    }
}
