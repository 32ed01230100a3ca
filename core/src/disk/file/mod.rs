//! Files and kernel block devices as disks: a [`FileMedium`] for the process, a [`FileEngine`] for
//! each core, and a [`FileDisk`] for each medium on each core.
//!
//! Invariants:
//! - Payload is never copied here: the kernel reads and writes the buffers themselves.
//! - A completed write is in the kernel's hands and survives the process. It survives a loss of power
//!   as the contract says: [`Durability::Durable`] by `RWF_DSYNC`, a flush by `fdatasync`.
//! - A flush that has failed is not forgotten (see `flushes.rs`): no later one claims that what it
//!   lost is durable. Every later flush of the medium fails, until it is opened anew.
//! - Blocks written uncorrectable stay so over a restart (see `bad.rs`).
//! - Where a filesystem or device cannot free or zero a range, zeroes are written, so that they are
//!   read in any case.
//! - What the layers below do to a block at the same time as something else, they do to all of it:
//!   by themselves (a device's sector), or because it claims its blocks first (see `claims.rs`). When
//!   the power fails only the device's physical sectors stay whole, which is what the disk says of
//!   itself (see `atomicity.rs`).

mod atomicity;
mod bad;
mod call;
mod claims;
mod engine;
mod error;
mod flushes;
mod medium;
mod operation;
mod options;
mod proc;
mod threads;
mod uring;

use std::{cell::Cell, ops::Range, rc::Rc, sync::Arc};

use rustix::io::Errno;

pub use atomicity::default_block_size;
pub use engine::FileEngine;
pub use error::{FileError, FileErrorReason};
pub use medium::{Caching, FileMedium, FileMediumOptions, Locked};
pub use options::{EngineKind, FileEngineCounters, FileEngineError, FileEngineOptions};
pub use proc::Holder;
pub use threads::{SpawnThread, machine_thread};

use self::{
    call::{Action, errno},
    engine::Target,
};
use super::{
    Disk, DiskError, DiskInfo, Durability, SEGMENTS_MAX, Space, TRANSFER_BYTES_MAX,
    checked_transfer,
};
use crate::{buffer::Buffer, units::Lba};

/// One core's way to a [`FileMedium`].
pub struct FileDisk {
    /// Before the engine, which it takes leave of when it is dropped.
    target: Rc<Target>,
    engine: Rc<FileEngine>,
    info: DiskInfo,
    gone: Cell<bool>,
}

impl FileDisk {
    /// The core's disk over `medium`, by the core's engine.
    #[must_use]
    pub fn open(engine: &Rc<FileEngine>, medium: &Arc<FileMedium>) -> Self {
        Self {
            target: engine.target(medium),
            engine: engine.clone(),
            info: medium.info(),
            gone: Cell::new(false),
        }
    }

    /// The medium that the disk lies on.
    #[must_use]
    pub fn medium(&self) -> &Arc<FileMedium> {
        &self.target.medium
    }

    fn offset(&self, at: Lba) -> u64 {
        self.info.block_size.bytes_of(at.0)
    }

    fn range(&self, at: Lba, blocks: u64) -> Result<Range<u64>, DiskError> {
        if self.gone.get() {
            return Err(DiskError::Gone);
        }
        if !self.info.contains(at, blocks) {
            return Err(DiskError::OutOfRange);
        }
        Ok(at.0..at.0 + blocks)
    }

    fn any_bad(&self, blocks: Range<u64>) -> bool {
        let bad = &self.target.medium.bad;
        bad.as_ref().is_some_and(|bad| bad.any_in(blocks))
    }

    /// The result of an operation, which may be the last of this disk.
    fn outcome(&self, result: i32, reading: bool) -> Result<(), DiskError> {
        let outcome = error_of(result, reading);
        match outcome {
            Err(DiskError::Gone) => self.gone.set(true),
            Err(DiskError::NoSpace) => self.target.medium.tell_of_no_space(),
            _ => {}
        }
        outcome
    }

    async fn write_durably(&self, offset: u64, bytes: u64, from: &[Buffer]) -> i32 {
        let write = |durable| {
            let action = Action::Write { durable };
            self.engine
                .transfer(&self.target, action, offset, bytes, from)
        };
        if !self.target.medium.is_direct() {
            // Through the page cache `RWF_DSYNC` could be told of the loss of other writes, and the
            // kernel tells only once: that must be a flush, which remembers it.
            return match write(false).await {
                0 => self.engine.command(&self.target, Action::Sync, 0, 0).await,
                failed => failed,
            };
        }
        let result = write(true).await;
        // Either the write failed, which is its own affair, or the device's flush after it, which is
        // everybody's. Writing without that flush tells which.
        if result == errno::IO && write(false).await == 0 {
            self.target.medium.flushes.fail();
        }
        result
    }

    async fn zero(&self, blocks: Range<u64>, space: Space) -> Result<(), DiskError> {
        let medium = &self.target.medium;
        let size = self.info.block_size;
        let (offset, len) = (
            size.bytes_of(blocks.start),
            size.bytes_of(blocks.end - blocks.start),
        );
        let ways: &[Action] = match space {
            Space::Deallocate => &[Action::Punch, Action::ZeroRange],
            Space::Keep => &[Action::ZeroRange],
        };
        for &way in ways {
            if !medium.knows(way) {
                continue;
            }
            let result = self.engine.command(&self.target, way, offset, len).await;
            let refused = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL]
                .iter()
                .any(|refusal| result == -refusal.raw_os_error());
            if !refused {
                return self.outcome(result, false);
            }
            medium.does_not_know(way);
        }
        let mut done = 0;
        while done < len {
            let step = (len - done).min(TRANSFER_BYTES_MAX as u64);
            let result = self.engine.write_zeroes(&self.target, offset + done, step);
            self.outcome(result.await, false)?;
            done += step;
        }
        Ok(())
    }

    /// Makes blocks zero, and good where they were bad.
    async fn clear(
        &self,
        blocks: Range<u64>,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let heals = self.any_bad(blocks.clone());
        self.zero(blocks.clone(), space).await?;
        if heals || durability == Durability::Durable {
            self.flush().await?;
        }
        if heals {
            bad::change(&self.engine, &self.target, blocks, false).await?;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let bytes = checked_transfer(&self.info, at, into)? as u64;
        let blocks = self.range(at, self.info.block_size.blocks_in(bytes))?;
        if self.any_bad(blocks) {
            return Err(DiskError::UnrecoveredRead);
        }
        let (action, offset) = (Action::Read, self.offset(at));
        let result = self
            .engine
            .transfer(&self.target, action, offset, bytes, into)
            .await;
        self.outcome(result, true)
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let bytes = checked_transfer(&self.info, at, from)? as u64;
        let blocks = self.range(at, self.info.block_size.blocks_in(bytes))?;
        let offset = self.offset(at);
        let heals = self.any_bad(blocks.clone());
        let durable = heals || (durability == Durability::Durable && self.info.volatile_cache);
        let result = if durable {
            self.write_durably(offset, bytes, from).await
        } else {
            let action = Action::Write { durable: false };
            self.engine
                .transfer(&self.target, action, offset, bytes, from)
                .await
        };
        self.outcome(result, false)?;
        if heals {
            bad::change(&self.engine, &self.target, blocks, false).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        if self.gone.get() {
            return Err(DiskError::Gone);
        }
        let result = self.engine.command(&self.target, Action::Sync, 0, 0).await;
        self.outcome(result, false)
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let blocks = self.range(at, blocks)?;
        self.clear(blocks, Space::Deallocate, Durability::Cached)
            .await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let blocks = self.range(at, blocks)?;
        self.clear(blocks, space, durability).await
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let blocks = self.range(at, blocks)?;
        if blocks.is_empty() {
            return Ok(());
        }
        bad::change(&self.engine, &self.target, blocks, true).await
    }
}

/// What a result (0, or an error number) means.
fn error_of(result: i32, reading: bool) -> Result<(), DiskError> {
    if result >= 0 {
        return Ok(());
    }
    Err(match Errno::from_raw_os_error(-result) {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => DiskError::NoSpace,
        Errno::IO | Errno::REMOTEIO | Errno::NODATA | Errno::ILSEQ | Errno::BADMSG if reading => {
            DiskError::UnrecoveredRead
        }
        Errno::IO | Errno::REMOTEIO | Errno::NODATA | Errno::ILSEQ | Errno::ROFS => {
            DiskError::WriteFault
        }
        Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM | Errno::SHUTDOWN | Errno::CANCELED => {
            DiskError::Gone
        }
        Errno::TIMEDOUT | Errno::TIME => DiskError::TimedOut,
        Errno::OPNOTSUPP => DiskError::Unsupported,
        _ => DiskError::Internal(-result),
    })
}

/// The bytes of zeroes that there are. As many pieces of them as a transfer may have make its most.
const ZERO_BYTES: usize = TRANSFER_BYTES_MAX / SEGMENTS_MAX;

#[repr(align(4096))]
struct Zeroes([u8; ZERO_BYTES]);

static ZEROES: Zeroes = Zeroes([0; ZERO_BYTES]);

/// Memory that holds nothing but zeroes, to be read only, and its bytes.
fn zero_memory() -> (*mut u8, usize) {
    ((&raw const ZEROES.0).cast::<u8>().cast_mut(), ZERO_BYTES)
}
