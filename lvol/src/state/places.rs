//! The places of pages of metadata: pairs of extents, cut into pages.
//!
//! Invariant: a place is given out only where neither the last checkpoint nor the one that is being
//! written uses it. A place's number is one more than its index, so that 0 is none.

use crate::format::{Extent, Layout, PAGE_BYTES};

/// Which places there are, and which are free.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The extents of the first and the second copy.
    pub chunks: Vec<[Extent; 2]>,
    used: Vec<bool>,
    free: usize,
    /// Free as soon as the checkpoint that is being written is there.
    leaving: usize,
    cursor: usize,
}

impl Places {
    pub fn free(&self) -> usize {
        self.free
    }

    /// Those that the next checkpoint finds free.
    pub fn free_soon(&self) -> usize {
        self.free + self.leaving
    }

    /// A checkpoint is sealed that uses so many no more.
    pub fn leave(&mut self, count: usize) {
        self.leaving = count;
    }

    /// It is written.
    pub fn release_left(&mut self, left: &[u64]) {
        self.leaving = 0;
        left.iter().for_each(|place| self.release(*place));
    }

    pub fn add_chunk(&mut self, pair: [Extent; 2], layout: &Layout) {
        self.chunks.push(pair);
        let pages = usize::try_from(layout.pages_per_extent()).expect("few");
        self.used.resize(self.used.len() + pages, false);
        self.free += pages;
    }

    /// Marks a place as used; false where there is none, or it is used already.
    pub fn mark_used(&mut self, place: u64) -> bool {
        let Some(used) = index(place).and_then(|index| self.used.get_mut(index)) else {
            return false;
        };
        self.free -= usize::from(!*used);
        !std::mem::replace(used, true)
    }

    pub fn release(&mut self, place: u64) {
        let index = index(place).expect("a place that was given out");
        assert!(self.used[index], "a place was released twice");
        self.used[index] = false;
        self.free += 1;
    }

    /// A free place. The caller has made sure that there is one.
    pub fn take(&mut self) -> u64 {
        let (before, behind) = self.used.split_at(self.cursor);
        let free = |used: &[bool]| used.iter().position(|used| !used);
        let found = free(behind).map(|at| self.cursor + at);
        let found = found.or_else(|| free(before));
        let found = found.expect("places were made for a whole checkpoint");
        self.cursor = (found + 1) % self.used.len();
        self.used[found] = true;
        self.free -= 1;
        found as u64 + 1
    }

    /// Where a copy of a place lies, in bytes; `None` where there is no such place.
    pub fn at(&self, place: u64, copy: usize, layout: &Layout) -> Option<u64> {
        let index = place.checked_sub(1)?;
        let pages = layout.pages_per_extent();
        let pair = self.chunks.get(usize::try_from(index / pages).ok()?)?;
        let extent = layout.data_at() + pair[copy].0 * layout.extent_bytes();
        Some(extent + index % pages * PAGE_BYTES as u64)
    }
}

fn index(place: u64) -> Option<usize> {
    usize::try_from(place.checked_sub(1)?).ok()
}
