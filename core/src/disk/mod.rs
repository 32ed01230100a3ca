//! The disk trait: what every floor offers to the one above it, and its contract.
//!
//! # Contract
//! - **One core.** A `Disk` value belongs to one core and is never shared: every core opens its own
//!   over the same medium, with its own queue. What several cores do at once to the same blocks is
//!   ordered only block by block.
//! - **Ranges.** The caller checks: a range lies within [`DiskInfo::blocks`], is not empty, and the
//!   buffers' bytes are exactly its blocks' bytes, each buffer a whole number of blocks that begins
//!   at a multiple of the block size in memory (which the arena's blocks do). A disk may rely on it and answers [`DiskError::OutOfRange`] where it is cheaper to check than to trust.
//!   Reads and writes are at most [`TRANSFER_BYTES_MAX`] and [`SEGMENTS_MAX`] buffers.
//! - **Atomicity.** One block is atomic beside concurrent operations and when the process ends: it is
//!   wholly old or wholly new. When the power fails, what lies within a multiple of
//!   [`DiskInfo::atomic_write_bytes`] is wholly old or wholly new: where that is less than a block, a
//!   block may be torn between such units. Anything larger may be torn between blocks.
//! - **Durability.** A completed write is seen by every later read. It survives a loss of power once
//!   it was written with [`Durability::Durable`], or once a [`flush`](Disk::flush) that began after
//!   its completion has completed, or at once where [`DiskInfo::volatile_cache`] is false. Until
//!   then each of its blocks by itself survives, vanishes or (where the medium tears) is lost.
//! - **Zeroes.** Blocks never written, deallocated, or written with zeroes read as zeroes.
//!   Deallocating is a hint in space, never in content: also where nothing is freed, zeroes are read.
//! - **Errors.** After a failed write each of its blocks is old or new. An error tells about its own
//!   command only, except [`DiskError::Gone`], which is final for this value.
//! - **Limits.** An operation never waits in the disk for the disk's limits: whoever passes on what hosts
//!   ask for asks [`admit`](Disk::admit) before, and waits with nothing in hand that others need.
//! - **Ends.** Each operation ends exactly once. Dropping its future does not end it: the buffers
//!   stay with the disk until the device is done with them.
//!
//! The conformance suite (`tests/conformance`) holds every implementation to this.

mod bits;
pub mod fault;
pub mod file;
mod kinds;
pub mod null;
pub mod ram;

use std::{fmt, future::Future};

use crate::{
    buffer::{BLOCK_BYTES_MAX, Buffer},
    units::{BlockSize, Lba, Time},
};

/// The most bytes of one read or write.
pub const TRANSFER_BYTES_MAX: usize = BLOCK_BYTES_MAX;

/// The most buffers of one read or write.
pub const SEGMENTS_MAX: usize = 16;

/// What a disk is. Fixed for the life of a `Disk` value, except [`blocks`](Self::blocks), which may
/// grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// The size of a block.
    pub block_size: BlockSize,
    /// The blocks there are.
    pub blocks: u64,
    /// A completed write may be lost with the power until it is flushed.
    pub volatile_cache: bool,
    /// Deallocating frees something; in blocks, the granularity that it is best done in.
    pub deallocate_granularity: Option<u32>,
    /// [`Disk::write_uncorrectable`] works.
    pub write_uncorrectable: bool,
    /// A power of two: what a write of so many bytes at a multiple of them leaves whole, old or new,
    /// when the power fails. At least 512. Where it is not known it is taken for that.
    pub atomic_write_bytes: u32,
}

impl DiskInfo {
    /// The disk's bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.block_size.bytes_of(self.blocks)
    }

    /// True where the loss of power may tear a block.
    #[must_use]
    pub fn may_tear_blocks(&self) -> bool {
        (self.atomic_write_bytes as usize) < self.block_size.bytes()
    }

    /// True where `blocks` blocks from `at` lie on the disk.
    #[must_use]
    pub fn contains(&self, at: Lba, blocks: u64) -> bool {
        at.0.checked_add(blocks)
            .is_some_and(|end| end <= self.blocks)
    }
}

/// The bytes of a read or write of `buffers` at `at`, if it lies on the disk.
fn checked_transfer(info: &DiskInfo, at: Lba, buffers: &[Buffer]) -> Result<usize, DiskError> {
    let bytes: usize = buffers.iter().map(Buffer::len).sum();
    debug_assert!(
        bytes > 0 && bytes <= TRANSFER_BYTES_MAX && buffers.len() <= SEGMENTS_MAX,
        "{bytes} bytes in {} buffers",
        buffers.len()
    );
    debug_assert!(
        buffers
            .iter()
            .all(|buffer| buffer.len().is_multiple_of(info.block_size.bytes())),
        "a buffer that is not whole blocks"
    );
    if info.contains(at, info.block_size.blocks_in(bytes as u64)) {
        Ok(bytes)
    } else {
        Err(DiskError::OutOfRange)
    }
}

/// When a write counts as completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Once it is seen by later reads.
    #[default]
    Cached,
    /// Once it also survives a loss of power (Force Unit Access).
    Durable,
}

/// Whether space may be given back when zeroes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// It may (the command's DEAC bit).
    Deallocate,
    /// It stays allocated, so that later writes need none.
    Keep,
}

/// Why an operation failed. Mapped to an NVMe status in one place, by the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The range does not lie on the disk.
    OutOfRange,
    /// The medium could not be read: the blocks' content is lost.
    UnrecoveredRead,
    /// The medium could not be written.
    WriteFault,
    /// No space is left beneath the disk for this write.
    NoSpace,
    /// The disk does not know this operation.
    Unsupported,
    /// The device did not answer in time, and the operation was taken back, or is not waited for any
    /// longer: then the device may still use the buffers. The same with others may succeed.
    TimedOut,
    /// The disk is gone: unplugged, failed or closed.
    Gone,
    /// Something else went wrong inside: the system's error number, or 0.
    Internal(i32),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => write!(f, "the blocks lie outside the disk"),
            Self::UnrecoveredRead => write!(f, "the medium could not be read"),
            Self::WriteFault => write!(f, "the medium could not be written"),
            Self::NoSpace => write!(f, "no space is left beneath the disk"),
            Self::Unsupported => write!(f, "the disk does not support the operation"),
            Self::TimedOut => write!(f, "the device did not answer in time"),
            Self::Gone => write!(f, "the disk is gone"),
            Self::Internal(0) => write!(f, "internal error"),
            Self::Internal(errno) => {
                write!(f, "{}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for DiskError {}

/// Which of a disk's limits an operation is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reading.
    Read,
    /// Writing, deallocating, zeroing.
    Write,
}

/// What operations count for where a disk is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// What they do.
    pub direction: Direction,
    /// How many they are.
    pub operations: u64,
    /// The bytes that they transfer.
    pub bytes: u64,
}

/// When operations may begin that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// From this point in time on.
    pub from: Time,
    /// Under these limits; once [`Disk::limits_generation`] is another, they are to be counted anew.
    pub generation: u64,
}

/// One core's way to a disk. See the module for the contract.
pub trait Disk: 'static {
    /// What the disk is.
    fn info(&self) -> DiskInfo;

    /// True where operations may have to wait before they begin.
    fn is_limited(&self) -> bool {
        false
    }

    /// Counts operations against the disk's limits as if they came at `at`.
    fn admit(&self, _cost: Cost, _at: Time) -> Admission {
        Admission::default()
    }

    /// Changes with the limits.
    fn limits_generation(&self) -> u64 {
        0
    }

    /// Reads blocks from `at` on into `into`.
    fn read(&self, at: Lba, into: &[Buffer]) -> impl Future<Output = Result<(), DiskError>>;

    /// Writes blocks from `at` on out of `from`.
    fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> impl Future<Output = Result<(), DiskError>>;

    /// Makes every write that has completed so far survive a loss of power.
    fn flush(&self) -> impl Future<Output = Result<(), DiskError>>;

    /// Makes the blocks read as zeroes, and gives their space back where that is possible.
    fn deallocate(&self, at: Lba, blocks: u64) -> impl Future<Output = Result<(), DiskError>>;

    /// Writes zeroes.
    fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> impl Future<Output = Result<(), DiskError>>;

    /// Marks blocks so that reading them fails until they are written again.
    fn write_uncorrectable(
        &self,
        at: Lba,
        blocks: u64,
    ) -> impl Future<Output = Result<(), DiskError>>;
}
