//! One bit for each of very many things, in memory that is only taken where bits were set.
//!
//! Invariants:
//! - Every bit is 0 at the start.
//! - Any core may look at and change any bit at any time; ordering between bits is the caller's.

use std::{
    io,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

/// A fixed number of bits, all 0 at the start.
#[derive(Debug)]
pub(super) struct AtomicBits {
    map: MmapRaw,
    words: usize,
}

impl AtomicBits {
    /// `count` bits.
    pub(super) fn new(count: u64) -> io::Result<Self> {
        let words = usize::try_from(count.div_ceil(64)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = anonymous_memory(words.max(1) * 8)?;
        Ok(Self { map, words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, holds `words` zeroed words, lives as long as `self`
        // and is only ever used through these atomics.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.words) }
    }

    pub(super) fn get(&self, bit: u64) -> bool {
        let (word, mask) = position(bit);
        self.words()[word].load(Ordering::Acquire) & mask != 0
    }

    /// Sets the bit; true where it was 0.
    pub(super) fn set(&self, bit: u64) -> bool {
        let (word, mask) = position(bit);
        let word = &self.words()[word];
        // Most bits are set already: looking first keeps the cache line shared.
        word.load(Ordering::Acquire) & mask == 0
            && word.fetch_or(mask, Ordering::AcqRel) & mask == 0
    }

    /// Clears the bit; true where it was 1.
    pub(super) fn clear(&self, bit: u64) -> bool {
        let (word, mask) = position(bit);
        let word = &self.words()[word];
        word.load(Ordering::Acquire) & mask != 0
            && word.fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// The first bit of `range` that is set.
    pub(super) fn first_set(&self, range: Range<u64>) -> Option<u64> {
        let mut bit = range.start;
        while bit < range.end {
            let (word, mask) = position(bit);
            let left = self.words()[word].load(Ordering::Acquire) & mask.wrapping_neg();
            if left != 0 {
                let found = bit / 64 * 64 + u64::from(left.trailing_zeros());
                return (found < range.end).then_some(found);
            }
            bit = (bit / 64 + 1) * 64;
        }
        None
    }
}

fn position(bit: u64) -> (usize, u64) {
    let word = usize::try_from(bit / 64).expect("the bit is one of this process's memory");
    (word, 1 << (bit % 64))
}

/// Zeroed private memory that takes pages only where it is written, however large it is.
pub(super) fn anonymous_memory(bytes: usize) -> io::Result<MmapRaw> {
    let mut options = MmapOptions::new();
    // Without it the kernel refuses what exceeds the machine's memory, touched or not.
    Ok(options.len(bytes).no_reserve_swap().map_anon()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_found_and_cleared() {
        let bits = AtomicBits::new(1 << 33).unwrap();
        assert_eq!(bits.first_set(0..1000), None);
        assert!(bits.set(63) && bits.set(64) && bits.set(700));
        assert!(!bits.set(64) && bits.get(64) && !bits.get(65));
        assert_eq!(bits.first_set(0..1000), Some(63));
        assert_eq!(bits.first_set(64..1000), Some(64));
        assert_eq!(bits.first_set(65..1000), Some(700));
        assert_eq!(bits.first_set(65..700), None);
        assert!(bits.clear(64) && !bits.clear(64));
        assert!(bits.set((1 << 33) - 1));
    }
}
