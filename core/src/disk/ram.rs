//! The ram disk: a sparse medium in this process's memory, shared by all cores.
//!
//! Invariants:
//! - Memory is taken only where something was written, so the size may exceed the machine's memory.
//!   Whoever offers such a disk answers for what is written to it: there is no [`DiskError::NoSpace`]
//!   here, the system ends the process when its memory is used up.
//! - Every access to a page's bytes, and to what is known about it, happens while its stripe's flag
//!   is held. On the data path a flag is held for one page's copying, and only one at a time, so a
//!   core waits for another only where both want one page (or one stripe) in the same instant, and
//!   then for one copy (and, where the page is new, the system's work to provide it). That makes a
//!   block atomic between cores.
//! - Whoever holds several flags (giving a chunk's memory back) takes them in ascending order.
//! - A chunk that was not touched reads as zeroes without its memory being looked at, so reading
//!   takes no memory.
//! - Reads, writes and flushes complete in place, without suspending. What works on many blocks
//!   (deallocate, write zeroes) lets the reactor turn between portions.
//! - Nothing survives the process. A write is as durable as it will ever be once it has completed,
//!   so there is no volatile cache to flush.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use memmap2::{MmapRaw, UncheckedAdvice};

use super::{
    Disk, DiskError, DiskInfo, Durability, Space,
    bits::{AtomicBits, anonymous_memory},
    checked_transfer,
};
use crate::{
    buffer::{Buffer, Direction},
    reactor::Reactor,
    units::{BlockSize, Lba},
};

/// The unit that memory is taken and given back in, and that a flag is held for.
const PAGE_BYTES: u64 = 4096;

/// Pages in a chunk: what is given back by one system call, and known as touched or not. At most
/// [`STRIPES_MIN`], so that its pages have different flags.
const CHUNK_PAGES: u64 = 64;
const CHUNK_BYTES: u64 = CHUNK_PAGES * PAGE_BYTES;

/// A flag costs a cache line; neighbouring pages have different ones.
const STRIPES_MIN: u64 = CHUNK_PAGES;
const STRIPES_MAX: u64 = 1024;

/// What is cleared in one turn of the reactor, in chunks that need only be looked at (about 1 us); a
/// chunk whose memory is given back costs a quarter of it.
const TURN_COST_MAX: u32 = 64;

/// Spins before a core lets others run: the flag's holder may have been taken off its CPU.
const SPINS_MAX: u32 = 256;

/// The memory behind a ram disk. All cores share one.
#[derive(Debug)]
pub struct RamMedium {
    block_size: BlockSize,
    blocks: u64,
    memory: MmapRaw,
    stripes: Box<[Stripe]>,
    /// Chunks that were written and not given back since.
    touched: AtomicBits,
    /// Blocks that were written uncorrectable.
    bad: AtomicBits,
    bad_blocks: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe {
    held: AtomicBool,
}

/// A stripe's flag, held.
struct Held<'a>(&'a Stripe);

impl Stripe {
    fn hold(&self) -> Held<'_> {
        let mut spins = 0;
        while self
            .held
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            spins += 1;
            if spins % SPINS_MAX == 0 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        Held(self)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Release);
    }
}

impl RamMedium {
    /// Zeroes: `blocks` blocks of them.
    ///
    /// # Errors
    /// Where the process's address space has no room for so many.
    pub fn new(block_size: BlockSize, blocks: u64) -> io::Result<Arc<Self>> {
        let bytes = blocks
            .checked_mul(block_size.bytes() as u64)
            .and_then(|bytes| usize::try_from(bytes.next_multiple_of(PAGE_BYTES)).ok())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = bytes as u64 / PAGE_BYTES;
        let stripes = pages.next_power_of_two().clamp(STRIPES_MIN, STRIPES_MAX);
        Ok(Arc::new(Self {
            block_size,
            blocks,
            memory: {
                let m = anonymous_memory(bytes.max(1))?;
                let _ = m.advise(memmap2::Advice::HugePage);
                m
            },
            stripes: (0..stripes).map(|_| Stripe::default()).collect(),
            touched: AtomicBits::new(pages.div_ceil(CHUNK_PAGES))?,
            bad: AtomicBits::new(blocks)?,
            bad_blocks: AtomicU64::new(0),
        }))
    }

    /// What the disks over it are.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        let block_size = self.block_size;
        DiskInfo {
            block_size,
            blocks: self.blocks,
            volatile_cache: false,
            deallocate_granularity: Some(1 << (PAGE_BYTES.ilog2() - block_size.shift())),
            write_uncorrectable: true,
            atomic_write_bytes: block_size.bytes() as u32,
        }
    }

    /// The memory that is taken, in bytes, counted in chunks of 256 KiB that were touched.
    #[must_use]
    pub fn touched_bytes(&self) -> u64 {
        let chunks = (self.memory.len() as u64).div_ceil(CHUNK_BYTES);
        let (mut count, mut from) = (0, 0);
        while let Some(found) = self.touched.first_set(from..chunks) {
            count += 1;
            from = found + 1;
        }
        count * CHUNK_BYTES
    }

    fn stripe(&self, page: u64) -> &Stripe {
        let mask = self.stripes.len() as u64 - 1;
        &self.stripes[usize::try_from(page & mask).expect("below the number of stripes")]
    }

    /// Where byte `at` of the medium lies.
    fn address(&self, at: u64) -> *mut u8 {
        let at = usize::try_from(at).expect("within the mapping");
        debug_assert!(at <= self.memory.len());
        self.memory.as_mut_ptr().wrapping_add(at)
    }

    fn blocks_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let shift = self.block_size.shift();
        bytes.start >> shift..(bytes.end + self.block_size.bytes() as u64 - 1) >> shift
    }

    /// Copies the bytes from `at` on to `to`.
    ///
    /// # Safety
    /// `to` is good for writing `len` bytes that nothing else uses; the range lies on the medium.
    unsafe fn read(&self, at: u64, to: *mut u8, len: usize) -> Result<(), DiskError> {
        for part in pages_of(at..at + len as u64) {
            let page = part.start / PAGE_BYTES;
            let (offset, bytes) = offset_and_len(at, &part);
            let to = to.wrapping_add(offset);
            let _held = self.stripe(page).hold();
            if self.bad_blocks.load(Ordering::Relaxed) != 0
                && self.bad.first_set(self.blocks_of(&part)).is_some()
            {
                return Err(DiskError::UnrecoveredRead);
            }
            if self.touched.get(page / CHUNK_PAGES) {
                // SAFETY: both ranges are good by the caller's promise and distinct mappings; the
                // flag keeps every other core from these bytes of the medium.
                unsafe { std::ptr::copy_nonoverlapping(self.address(part.start), to, bytes) };
            } else {
                // SAFETY: by the caller's promise.
                unsafe { to.write_bytes(0, bytes) };
            }
        }
        Ok(())
    }

    /// Copies `len` bytes at `from` to the medium, from `at` on.
    ///
    /// # Safety
    /// `from` is good for reading `len` bytes that nobody writes; the range lies on the medium.
    unsafe fn write(&self, at: u64, from: *const u8, len: usize) {
        for part in pages_of(at..at + len as u64) {
            let page = part.start / PAGE_BYTES;
            let (offset, bytes) = offset_and_len(at, &part);
            let from = from.wrapping_add(offset);
            let _held = self.stripe(page).hold();
            self.touched.set(page / CHUNK_PAGES);
            self.heal(&part);
            // SAFETY: as in `read`.
            unsafe { std::ptr::copy_nonoverlapping(from, self.address(part.start), bytes) };
        }
    }

    /// The blocks are good again. Called with the flags of their pages held.
    fn heal(&self, bytes: &Range<u64>) {
        if self.bad_blocks.load(Ordering::Relaxed) == 0 {
            return;
        }
        let blocks = self.blocks_of(bytes);
        let mut from = blocks.start;
        while let Some(found) = self.bad.first_set(from..blocks.end) {
            if self.bad.clear(found) {
                self.bad_blocks.fetch_sub(1, Ordering::Relaxed);
            }
            from = found + 1;
        }
    }

    fn spoil(&self, bytes: Range<u64>) {
        for part in pages_of(bytes) {
            let _held = self.stripe(part.start / PAGE_BYTES).hold();
            for block in self.blocks_of(&part) {
                if self.bad.set(block) {
                    self.bad_blocks.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Makes a part of one chunk zero; true where that took some work.
    fn clear(&self, part: Range<u64>, space: Space) -> bool {
        let chunk = part.start / CHUNK_BYTES;
        let pages = part.start / PAGE_BYTES..part.end.div_ceil(PAGE_BYTES);
        // From the chunk's first page on, the flags ascend.
        let held: arrayvec::ArrayVec<Held<'_>, { CHUNK_PAGES as usize }> =
            pages.map(|page| self.stripe(page).hold()).collect();
        self.heal(&part);
        let touched = self.touched.get(chunk);
        let inner = part.start.next_multiple_of(PAGE_BYTES)..part.end / PAGE_BYTES * PAGE_BYTES;
        if touched && space == Space::Deallocate && inner.start < inner.end {
            self.zero(part.start..inner.start);
            self.give_back(&inner);
            self.zero(inner.end..part.end);
            let chunk_end = ((chunk + 1) * CHUNK_BYTES).min(self.memory.len() as u64);
            if inner == (chunk * CHUNK_BYTES..chunk_end) {
                self.touched.clear(chunk);
            }
        } else if touched {
            self.zero(part);
        }
        drop(held);
        touched
    }

    /// Called with the flags of the bytes' pages held.
    fn zero(&self, bytes: Range<u64>) {
        let len = usize::try_from(bytes.end - bytes.start).expect("within a chunk");
        // SAFETY: the range lies within the mapping, and the flags keep every other core from it.
        unsafe { self.address(bytes.start).write_bytes(0, len) };
    }

    /// Called with the flags of the bytes' pages held; `bytes` are whole pages.
    fn give_back(&self, bytes: &Range<u64>) {
        let offset = usize::try_from(bytes.start).expect("within the mapping");
        let len = usize::try_from(bytes.end - bytes.start).expect("within a chunk");
        // SAFETY: the pages belong to the medium alone and nobody refers to their bytes while the
        // flags are held; afterwards they are zeroes, which is what is wanted.
        let advised = unsafe {
            self.memory
                .unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len)
        };
        if advised.is_err() {
            // Locked memory cannot be given back. The content counts, the space is a hint.
            self.zero(bytes.clone());
        }
    }
}

/// The parts of `bytes` that lie in one page each.
fn pages_of(bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    parts_of(bytes, PAGE_BYTES)
}

fn parts_of(bytes: Range<u64>, unit: u64) -> impl Iterator<Item = Range<u64>> {
    let mut from = bytes.start;
    std::iter::from_fn(move || {
        let end = ((from / unit + 1) * unit).min(bytes.end);
        let part = from..end;
        from = end;
        (part.start < part.end).then_some(part)
    })
}

#[allow(clippy::cast_possible_truncation, reason = "a transfer's bytes fit")]
fn offset_and_len(at: u64, part: &Range<u64>) -> (usize, usize) {
    ((part.start - at) as usize, (part.end - part.start) as usize)
}

/// One core's way to a [`RamMedium`].
#[derive(Clone)]
pub struct RamDisk {
    medium: Arc<RamMedium>,
    reactor: Reactor,
}

impl RamDisk {
    /// This core's disk over `medium`. `reactor` is the core's own, to pause long operations by.
    #[must_use]
    pub fn new(medium: Arc<RamMedium>, reactor: &Reactor) -> Self {
        Self {
            medium,
            reactor: reactor.clone(),
        }
    }

    fn bytes(&self, at: Lba, blocks: u64) -> Result<Range<u64>, DiskError> {
        if !self.info().contains(at, blocks) {
            return Err(DiskError::OutOfRange);
        }
        let size = self.medium.block_size;
        Ok(size.bytes_of(at.0)..size.bytes_of(at.0 + blocks))
    }

    async fn clear(&self, bytes: Range<u64>, space: Space) {
        let medium = &*self.medium;
        let mut cost = 0;
        // A bad block may lie in a chunk that was not touched, so that all have to be looked at.
        let all = medium.bad_blocks.load(Ordering::Relaxed) != 0;
        let mut from = bytes.start;
        while from < bytes.end {
            let chunk = from / CHUNK_BYTES;
            if !all {
                let last = bytes.end.div_ceil(CHUNK_BYTES);
                let Some(next) = medium.touched.first_set(chunk..last) else {
                    break;
                };
                from = from.max(next * CHUNK_BYTES);
            }
            let end = ((from / CHUNK_BYTES + 1) * CHUNK_BYTES).min(bytes.end);
            let worked = medium.clear(from..end, space);
            cost += if worked { TURN_COST_MAX / 4 } else { 1 };
            from = end;
            if cost >= TURN_COST_MAX {
                cost = 0;
                self.reactor.sleep(Duration::ZERO).await;
            }
        }
    }
}

impl Disk for RamDisk {
    fn info(&self) -> DiskInfo {
        self.medium.info()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        checked_transfer(&self.info(), at, into)?;
        let mut at = self.medium.block_size.bytes_of(at.0);
        for buffer in into {
            let pin = buffer.pin(Direction::FromDevice);
            // SAFETY: the pin keeps the window's memory, and everybody else from it; the range was
            // checked.
            unsafe { self.medium.read(at, pin.address(), pin.len()) }?;
            at += pin.len() as u64;
        }
        Ok(())
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        _durability: Durability,
    ) -> Result<(), DiskError> {
        checked_transfer(&self.info(), at, from)?;
        let mut at = self.medium.block_size.bytes_of(at.0);
        for buffer in from {
            let pin = buffer.pin(Direction::ToDevice);
            // SAFETY: the pin keeps the window's memory and every writer from it; the range was
            // checked.
            unsafe { self.medium.write(at, pin.address(), pin.len()) };
            at += pin.len() as u64;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let bytes = self.bytes(at, blocks)?;
        self.clear(bytes, Space::Deallocate).await;
        Ok(())
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        _durability: Durability,
    ) -> Result<(), DiskError> {
        let bytes = self.bytes(at, blocks)?;
        self.clear(bytes, space).await;
        Ok(())
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let bytes = self.bytes(at, blocks)?;
        self.medium.spoil(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(medium: &RamMedium, at: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0xee; len];
        // SAFETY: the vector is `len` bytes long; the tests stay on the medium.
        unsafe { medium.read(at, bytes.as_mut_ptr(), len) }?;
        Ok(bytes)
    }

    fn put(medium: &RamMedium, at: u64, bytes: &[u8]) {
        // SAFETY: as above.
        unsafe { medium.write(at, bytes.as_ptr(), bytes.len()) };
    }

    #[test]
    fn a_tebibyte_takes_what_is_written() {
        let medium = RamMedium::new(BlockSize::B512, 1 << 31).unwrap();
        assert_eq!(get(&medium, (1 << 40) - 512, 512).unwrap(), [0; 512]);
        assert_eq!(medium.touched_bytes(), 0);
        put(&medium, (1 << 40) - 512, &[7; 512]);
        assert_eq!(get(&medium, (1 << 40) - 512, 512).unwrap(), [7; 512]);
        assert_eq!(medium.touched_bytes(), CHUNK_BYTES);
        assert!(medium.clear((1 << 40) - CHUNK_BYTES..1 << 40, Space::Deallocate));
        assert_eq!(medium.touched_bytes(), 0);
        assert_eq!(get(&medium, (1 << 40) - 512, 512).unwrap(), [0; 512]);
    }

    #[test]
    fn clearing_a_part_leaves_the_rest() {
        for space in [Space::Deallocate, Space::Keep] {
            let medium = RamMedium::new(BlockSize::B512, 4096).unwrap();
            put(&medium, 0, &vec![5; 65536]);
            medium.clear(512..40_448, space);
            let mut expected = vec![5; 65536];
            expected[512..40_448].fill(0);
            assert_eq!(get(&medium, 0, 65536).unwrap(), expected);
        }
    }

    #[test]
    fn a_medium_that_ends_within_a_page_is_whole() {
        let medium = RamMedium::new(BlockSize::B512, 3).unwrap();
        put(&medium, 0, &[1; 1536]);
        medium.clear(1024..1536, Space::Deallocate);
        medium.clear(0..512, Space::Deallocate);
        assert_eq!(get(&medium, 512, 512).unwrap(), [1; 512]);
        assert_eq!(get(&medium, 1024, 512).unwrap(), [0; 512]);
    }

    #[test]
    fn bad_blocks_heal_by_writing_and_by_clearing() {
        let medium = RamMedium::new(BlockSize::B512, 4096).unwrap();
        medium.spoil(1024..10_240);
        assert_eq!(get(&medium, 512, 1024), Err(DiskError::UnrecoveredRead));
        put(&medium, 1024, &[3; 512]);
        assert_eq!(get(&medium, 1024, 512).unwrap(), [3; 512]);
        medium.clear(0..CHUNK_BYTES, Space::Keep);
        assert_eq!(get(&medium, 0, 16384).unwrap(), [0; 16384]);
        assert_eq!(medium.bad_blocks.load(Ordering::Relaxed), 0);
    }
}
