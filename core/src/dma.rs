//! Memory that this process and a device use at the same time: rings, lists, doorbells in memory.
//!
//! Invariants:
//! - A [`DmaRegion`] owns its part of the arena alone. Nobody ever holds a reference to its bytes:
//!   every access is an atomic load or store of one dword, so that whatever the device does to the
//!   memory at the same time is a stale or strange value, never undefined behaviour.
//! - What a device must find complete is stored first, and published by a release (a doorbell, or
//!   [`DmaRegion::store_release`]). What a device publishes is seen by [`DmaRegion::load_acquire`];
//!   what it wrote before is then there.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::arena::{ArenaMemory, Region};

/// The alignment of every region: a memory page.
pub const DMA_ALIGN: usize = 4096;

/// The bytes of what is loaded and stored at a time.
const DWORD: usize = size_of::<u32>();

/// A part of the arena that is shared with a device. Dwords are little-endian in memory.
#[derive(Debug)]
pub struct DmaRegion {
    region: Region,
}

impl DmaRegion {
    /// Takes a region over; it is zeroed. `None` where it does not begin at a page.
    #[must_use]
    pub fn new(region: Region) -> Option<Self> {
        let aligned = (region.base().as_ptr() as usize).is_multiple_of(DMA_ALIGN);
        let whole = region.len().is_multiple_of(DWORD);
        if !aligned || !whole {
            return None;
        }
        let new = Self { region };
        new.clear(0, new.len());
        Some(new)
    }

    /// The bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// True where there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// The address of the first byte.
    #[must_use]
    pub fn address(&self) -> usize {
        self.region.base().as_ptr() as usize
    }

    /// The memory, to be registered with a device.
    #[must_use]
    pub fn memory(&self) -> ArenaMemory {
        self.region.memory()
    }

    /// Takes the first `bytes`, rounded up to whole pages, off as a region of their own; `None` where
    /// there are fewer.
    pub fn split_off(&mut self, bytes: usize) -> Option<Self> {
        let region = self.region.split_off(bytes.next_multiple_of(DMA_ALIGN))?;
        Some(Self { region })
    }

    /// The dword at byte `at`, in no order with other accesses.
    #[must_use]
    pub fn load(&self, at: usize) -> u32 {
        u32::from_le(self.dword(at).load(Ordering::Relaxed))
    }

    /// The dword at byte `at`; what was stored before it was published is seen by later loads.
    #[must_use]
    pub fn load_acquire(&self, at: usize) -> u32 {
        u32::from_le(self.dword(at).load(Ordering::Acquire))
    }

    /// Stores the dword at byte `at`, in no order with other accesses.
    pub fn store(&self, at: usize, value: u32) {
        self.dword(at).store(value.to_le(), Ordering::Relaxed);
    }

    /// Stores the dword at byte `at`, and publishes what was stored before.
    pub fn store_release(&self, at: usize, value: u32) {
        self.dword(at).store(value.to_le(), Ordering::Release);
    }

    /// Stores two dwords as one number, the lower first.
    pub fn store_u64(&self, at: usize, value: u64) {
        self.store(at, value as u32);
        self.store(at + DWORD, (value >> 32) as u32);
    }

    /// Copies bytes in. Both `at` and their count are multiples of 4.
    pub fn write(&self, at: usize, from: &[u8]) {
        let places = self.dwords(at, from.len()).iter();
        for (place, bytes) in places.zip(from.chunks_exact(DWORD)) {
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            place.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Copies bytes out. Both `at` and their count are multiples of 4.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        let places = self.dwords(at, into.len()).iter();
        for (place, bytes) in places.zip(into.chunks_exact_mut(DWORD)) {
            bytes.copy_from_slice(&u32::from_le(place.load(Ordering::Relaxed)).to_le_bytes());
        }
    }

    /// Stores zeroes. Both `at` and `len` are multiples of 4.
    pub fn clear(&self, at: usize, len: usize) {
        for offset in (0..len).step_by(DWORD) {
            self.store(at + offset, 0);
        }
    }

    fn dword(&self, at: usize) -> &AtomicU32 {
        &self.dwords(at, DWORD)[0]
    }

    /// The dwords of `bytes` bytes from byte `at` on.
    fn dwords(&self, at: usize, bytes: usize) -> &[AtomicU32] {
        assert!(
            at.is_multiple_of(DWORD) && bytes.is_multiple_of(DWORD),
            "{bytes} bytes from byte {at} on are no dwords"
        );
        assert!(
            at <= self.len() && bytes <= self.len() - at,
            "{bytes} bytes from byte {at} on of {}",
            self.len()
        );
        let address = self.region.base().as_ptr().wrapping_add(at);
        // SAFETY: the dwords lie within the region and are aligned, as the region begins at a page; the
        // mapping lives as long as the region; and the region is ours alone, so that in this process
        // nothing but these atomics ever refers to its bytes.
        unsafe { std::slice::from_raw_parts(address.cast(), bytes / DWORD) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{Arena, Hugepages};

    fn region(bytes: usize) -> DmaRegion {
        let mut arena = Arena::new(1, Hugepages::Off).unwrap();
        DmaRegion::new(arena.take(bytes).unwrap()).unwrap()
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let region = region(8192);
        region.write(4096, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(region.load(4096), 0x0403_0201);
        assert_eq!(region.load_acquire(4100), 0x0807_0605);
        region.store_u64(8, 0x1122_3344_5566_7788);
        let mut bytes = [0; 8];
        region.read(8, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), 0x1122_3344_5566_7788);
        region.clear(8, 8);
        assert_eq!((region.load(8), region.load(12)), (0, 0));
    }

    #[test]
    fn parts_begin_at_pages() {
        let mut whole = region(16384);
        let first = whole.split_off(100).unwrap();
        assert_eq!((first.len(), whole.len()), (4096, 12288));
        assert_eq!(whole.address(), first.address() + 4096);
        assert!(whole.split_off(12289).is_none());
    }

    #[test]
    fn a_region_that_begins_within_a_page_is_refused() {
        let mut arena = Arena::new(1, Hugepages::Off).unwrap();
        arena.take(512).unwrap();
        assert!(DmaRegion::new(arena.take(4096).unwrap()).is_none());
    }

    #[test]
    #[should_panic(expected = "4 bytes from byte 4096 on of 4096")]
    fn beyond_the_end_is_a_bug() {
        let _ = region(4096).load(4096);
    }
}
