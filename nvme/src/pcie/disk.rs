//! A namespace of a drive as a core's disk.
//!
//! Invariants:
//! - Zeroes are made by Write Zeroes, or by writing them: never by Dataset Management alone, which is
//!   a hint that the controller may ignore.
//! - Force Unit Access and Flush are used where the controller has a volatile write cache that is
//!   enabled; elsewhere a completed write is durable already.
//! - What may be in that cache is known ([`NamespaceInfo::has_unflushed`]) before it is acknowledged.

use std::{rc::Rc, sync::Arc, time::Duration};

use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, DiskInfo, Durability, Space, TRANSFER_BYTES_MAX},
    units::Lba,
};

use super::{
    device::Registers,
    info::NamespaceInfo,
    operation::{Failure, Kind, Request},
    queue::Queue,
};
use crate::spec::{identify::controller::oncs, status::Status};

/// How often a command is tried again that the controller could not serve for the moment.
const RETRIES_MAX: u32 = 5;

/// The wait before the first of these; it doubles from one to the next.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// One core's way to a namespace of a drive.
pub struct NvmeDisk<R: Registers> {
    queue: Rc<Queue<R>>,
    namespace: Arc<NamespaceInfo>,
}

impl<R: Registers> NvmeDisk<R> {
    pub(super) fn new(queue: Rc<Queue<R>>, namespace: Arc<NamespaceInfo>) -> Self {
        Self { queue, namespace }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Arc<NamespaceInfo> {
        &self.namespace
    }

    /// The core's queue.
    #[must_use]
    pub fn queue(&self) -> &Rc<Queue<R>> {
        &self.queue
    }

    /// Compares blocks with what is in `with`; true where they are equal.
    ///
    /// # Errors
    /// As for reads, and [`DiskError::Unsupported`] where the controller has no Compare, or would
    /// compare metadata too.
    pub async fn compare(&self, at: Lba, with: &[Buffer]) -> Result<bool, DiskError> {
        let compares = self.queue.drive().info().supports(oncs::COMPARE);
        if !compares || self.namespace.has_metadata() {
            return Err(DiskError::Unsupported);
        }
        let blocks = self.blocks_of(with);
        let request = self.request(Kind::Compare, at, blocks)?;
        match self.attempt(request, with).await {
            Ok(()) => Ok(true),
            Err(Failure::Status(status)) if status.same_as(Status::COMPARE_FAILURE) => Ok(false),
            Err(failure) => Err(failure.to_error()),
        }
    }

    /// Has the controller read blocks without transferring them.
    ///
    /// # Errors
    /// As for reads, and [`DiskError::Unsupported`] where the controller has no Verify.
    pub async fn verify(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        if !self.queue.drive().info().supports(oncs::VERIFY) {
            return Err(DiskError::Unsupported);
        }
        self.on_blocks(Kind::Verify, at, blocks).await
    }

    fn blocks_of(&self, buffers: &[Buffer]) -> u64 {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        debug_assert!(bytes <= TRANSFER_BYTES_MAX);
        self.namespace.block_size.blocks_in(bytes as u64)
    }

    /// A request for blocks of the namespace, of which there is at least one.
    fn request(&self, kind: Kind, at: Lba, blocks: u64) -> Result<Request, DiskError> {
        let info = self.namespace.disk_info();
        if !self.namespace.is_attached() {
            return Err(DiskError::Gone);
        }
        if kind != Kind::Flush && !info.contains(at, blocks) {
            return Err(DiskError::OutOfRange);
        }
        let limits = &self.namespace.limits;
        let limit = match kind {
            Kind::Read | Kind::Write { .. } | Kind::WriteZeroPages { .. } | Kind::Compare => {
                limits.transfer
            }
            Kind::Verify => limits.verify,
            Kind::WriteZeroes { .. } => limits.zeroes,
            Kind::WriteUncorrectable => limits.uncorrectable,
            Kind::Deallocate => limits.deallocate,
            Kind::Flush => 1,
        };
        Ok(Request {
            kind,
            nsid: self.namespace.nsid,
            shift: self.namespace.block_size.shift(),
            limit,
            at: at.0,
            blocks,
            metadata: self.namespace.has_metadata(),
        })
    }

    async fn attempt(&self, request: Request, buffers: &[Buffer]) -> Result<(), Failure> {
        let outcome = self.attempt_again(request, buffers).await;
        match outcome {
            Ok(()) if request.kind.stays_in_cache() => self.namespace.note_cached(),
            Err(failure) if failure.is_missing() => self.namespace.note_missed(),
            _ => {}
        }
        outcome
    }

    async fn attempt_again(&self, request: Request, buffers: &[Buffer]) -> Result<(), Failure> {
        let mut delay = RETRY_DELAY;
        for _ in 0..RETRIES_MAX {
            match self.queue.run(request, buffers).await {
                Err(failure) if failure.is_transient() => {
                    self.queue.reactor().sleep(delay).await;
                    delay *= 2;
                }
                outcome => return outcome,
            }
        }
        self.queue.run(request, buffers).await
    }

    async fn transfer(&self, kind: Kind, at: Lba, buffers: &[Buffer]) -> Result<(), DiskError> {
        let request = self.request(kind, at, self.blocks_of(buffers))?;
        self.attempt(request, buffers)
            .await
            .map_err(Failure::to_error)
    }

    async fn on_blocks(&self, kind: Kind, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let request = self.request(kind, at, blocks)?;
        if blocks == 0 {
            return Ok(());
        }
        self.attempt(request, &[]).await.map_err(Failure::to_error)
    }

    fn is_durable(&self, durability: Durability) -> bool {
        durability == Durability::Durable && self.namespace.volatile_cache
    }
}

impl<R: Registers> Disk for NvmeDisk<R> {
    fn info(&self) -> DiskInfo {
        self.namespace.disk_info()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        self.transfer(Kind::Read, at, into).await
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let durable = self.is_durable(durability);
        self.transfer(Kind::Write { durable }, at, from).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        let request = self.request(Kind::Flush, Lba(0), 1)?;
        if !self.namespace.volatile_cache {
            return match self.queue.drive().has_failed() {
                true => Err(DiskError::Gone),
                false => Ok(()),
            };
        }
        let is_owed = self.namespace.begin_flush();
        let flushed = self.attempt(request, &[]).await;
        if is_owed && flushed.is_err() {
            self.namespace.note_cached();
        }
        flushed.map_err(Failure::to_error)
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.write_zeroes(at, blocks, Space::Deallocate, Durability::Cached)
            .await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let clearing = self.namespace.clearing;
        let durable = self.is_durable(durability);
        let kind = match clearing.write_zeroes {
            true => Kind::WriteZeroes {
                durable,
                deac: space == Space::Deallocate && clearing.deac,
            },
            false => Kind::WriteZeroPages { durable },
        };
        self.on_blocks(kind, at, blocks).await?;
        if space == Space::Deallocate && clearing.dsm {
            // The zeroes are written. That space is freed besides is a hint, which may fail.
            match self.on_blocks(Kind::Deallocate, at, blocks).await {
                Err(DiskError::Gone) => return Err(DiskError::Gone),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        if !self.namespace.uncorrectable {
            return Err(DiskError::Unsupported);
        }
        self.on_blocks(Kind::WriteUncorrectable, at, blocks).await
    }
}
