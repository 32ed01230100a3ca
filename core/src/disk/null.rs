//! The null disk: takes every write and keeps none, for benchmarks of what lies above it.
//!
//! Invariants:
//! - It breaks the contract in one point, on purpose: a read does not return what was written.
//! - [`NullReads::Zeroes`] never shows anybody's data. [`NullReads::Untouched`] shows whatever the
//!   buffer held, which may be another host's data: it is for benchmarks inside one process and is
//!   never to be reached from a configuration.

use super::{Disk, DiskError, DiskInfo, Durability, Space, checked_transfer};
use crate::{
    buffer::{Buffer, Direction},
    units::{BlockSize, Lba},
};

/// What a read from a null disk gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NullReads {
    /// Zeroes: the cost of filling the buffer, and nobody's data.
    #[default]
    Zeroes,
    /// Whatever the buffer held. See the module for where this may be used.
    Untouched,
}

/// A disk that keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct NullDisk {
    info: DiskInfo,
    reads: NullReads,
}

impl NullDisk {
    /// A disk of `blocks` blocks.
    #[must_use]
    pub fn new(block_size: BlockSize, blocks: u64, reads: NullReads) -> Self {
        let info = DiskInfo {
            block_size,
            blocks,
            volatile_cache: false,
            deallocate_granularity: None,
            write_uncorrectable: false,
            atomic_write_bytes: block_size.bytes() as u32,
        };
        Self { info, reads }
    }

    fn check(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        if self.info.contains(at, blocks) {
            Ok(())
        } else {
            Err(DiskError::OutOfRange)
        }
    }
}

impl Disk for NullDisk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        checked_transfer(&self.info, at, into)?;
        if self.reads == NullReads::Zeroes {
            for buffer in into {
                let pin = buffer.pin(Direction::FromDevice);
                // SAFETY: the pin keeps the window's memory, and keeps everybody else from it.
                unsafe { pin.address().write_bytes(0, pin.len()) };
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        _durability: Durability,
    ) -> Result<(), DiskError> {
        checked_transfer(&self.info, at, from).map(|_| ())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.check(at, blocks)
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        _space: Space,
        _durability: Durability,
    ) -> Result<(), DiskError> {
        self.check(at, blocks)
    }

    async fn write_uncorrectable(&self, _at: Lba, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
}
