//! What a medium knows about its flushes, on all cores.
//!
//! After a failed `fdatasync` the kernel forgets: it marks the pages clean, or the device has dropped
//! part of its cache, and the next `fdatasync` succeeds although what the failed one should have made
//! durable is lost. So the failure is remembered here.
//!
//! Invariants:
//! - At most one flush of a medium is in the kernel at a time, so the outcome of each is known before
//!   the next begins.
//! - Once one has failed, no flush of this medium succeeds again. Only opening the medium anew, which
//!   is a new start for whoever uses it too, ends that.

use std::sync::atomic::{AtomicBool, Ordering};

/// The flushes of one medium.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    running: AtomicBool,
    failed: AtomicBool,
}

impl Flushes {
    /// Begins a flush; false where one is running.
    pub(super) fn begin(&self) -> bool {
        !self.running.load(Ordering::Relaxed) && !self.running.swap(true, Ordering::Acquire)
    }

    /// Ends the flush that has begun, with its result.
    pub(super) fn end(&self, result: i32) {
        if result < 0 {
            self.fail();
        }
        self.running.store(false, Ordering::Release);
    }

    /// Something that should have become durable has not.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// A flush has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}
