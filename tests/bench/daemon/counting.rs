//! What the allocator has given out and not got back, in a process that asks for it to be counted.
//! In all others an allocation costs one look at a flag more.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use projector::Allocator;

/// The binary's allocator, counted.
pub(crate) struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
/// Below zero when what was given out before it counted has come back.
static LIVE: AtomicI64 = AtomicI64::new(0);

/// What jemalloc takes for so many bytes: steps of 16, from 128 on four to each doubling.
fn taken(bytes: usize) -> i64 {
    let step = match bytes {
        ..=128 => 16,
        _ => 1 << ((bytes - 1).ilog2() - 2),
    };
    bytes.next_multiple_of(step) as i64
}

fn add(bytes: i64) {
    if COUNTS.load(Ordering::Relaxed) {
        LIVE.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[expect(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; this one hands each call on as it came"
)]
// SAFETY: every call goes to the binary's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(taken(layout.size()));
        unsafe { Allocator.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(taken(layout.size()));
        unsafe { Allocator.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(taken(size) - taken(layout.size()));
        unsafe { Allocator.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-taken(layout.size()));
        unsafe { Allocator.dealloc(at, layout) }
    }
}

/// Counts from here on.
pub(crate) fn count() {
    COUNTS.store(true, Ordering::Relaxed);
}

/// Bytes given out since then and not got back.
pub(crate) fn live() -> i64 {
    LIVE.load(Ordering::Relaxed)
}
