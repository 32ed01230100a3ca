//! Owns the counting of what each thread takes from the heap, for tests that allow nothing of it.

#![allow(unsafe_code, reason = "an allocator is called by promises")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local!(static TAKEN: Cell<u64> = const { Cell::new(0) });

/// The system's allocator, counting; a test makes it its `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

/// The allocations, larger ones of what was there included, that this thread has made so far.
#[must_use]
pub fn taken() -> u64 {
    TAKEN.get()
}

fn count() {
    TAKEN.set(TAKEN.get() + 1);
}

// SAFETY: everything is passed on to the system's allocator as it came; counting takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: by the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: by the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: by the caller's promise.
        unsafe { System.realloc(at, layout, bytes) }
    }
}
