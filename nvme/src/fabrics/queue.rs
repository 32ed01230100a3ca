//! An I/O queue: the NVM command set's commands.
//!
//! Ranges are the caller's to check against the namespace; the controller refuses what lies
//! outside. The buffers' bytes must be those of the command's blocks: the controller is told their
//! sum, and a read that succeeds has filled all of it. Nobody may hold a guard on the buffers' bytes
//! until the command has completed. Waiting commands take no memory.

use std::{rc::Rc, slice, time::Duration};

use corebay_core::{
    buffer::{BLOCK_BYTES_MIN, Buffer},
    net::Network,
};
use zerocopy::IntoBytes;

use super::{
    association::whole,
    controller::{Inner, QueueIndex},
    error::Error,
    table::{Completion, Data},
};
use crate::spec::{
    command::{
        Fuse, SubmissionEntry,
        nvm::{self, CopyRangeFormat0, DsmRange, RANGES_MAX},
    },
    fabrics,
};

/// One I/O queue of a [`Controller`](super::Controller). Outlives its associations.
pub struct IoQueue<N: Network> {
    controller: Rc<Inner<N>>,
    index: QueueIndex,
    timeout: Duration,
}

impl<N: Network> Clone for IoQueue<N> {
    fn clone(&self) -> Self {
        Self {
            controller: self.controller.clone(),
            index: self.index,
            timeout: self.timeout,
        }
    }
}

impl<N: Network> IoQueue<N> {
    pub(super) fn new(controller: Rc<Inner<N>>, index: QueueIndex) -> Self {
        Self {
            timeout: controller.options.command_timeout,
            controller,
            index,
        }
    }

    /// Sends any command and gives its completion, whatever its status. The identifier and the data
    /// pointer are filled in.
    ///
    /// # Errors
    /// As for [`Connection::command`](super::Connection::command).
    pub async fn io_command(
        &self,
        sqe: &SubmissionEntry,
        data: Data<'_>,
    ) -> Result<Completion, Error> {
        let timeout = Some(self.timeout);
        self.controller
            .command(self.index, sqe, data, timeout)
            .await
    }

    /// Reads `blocks` blocks from `slba` on into `into`.
    ///
    /// # Errors
    /// As for [`io_command`](Self::io_command), and [`Error::Status`], [`Error::Short`].
    pub async fn read(
        &self,
        nsid: u32,
        slba: u64,
        blocks: u32,
        into: &[Buffer],
    ) -> Result<(), Error> {
        check_blocks(blocks)?;
        let data = Data::In(into);
        let sqe = nvm::read(nsid, slba, blocks);
        let completion = self.io_command(&sqe, data).await?.ok()?;
        whole(completion, data.bytes())
    }

    /// Writes `blocks` blocks from `slba` on out of `from`; with `fua`, to the media before it
    /// completes.
    ///
    /// # Errors
    /// As for [`io_command`](Self::io_command), and [`Error::Status`].
    pub async fn write(
        &self,
        nsid: u32,
        slba: u64,
        blocks: u32,
        from: &[Buffer],
        fua: bool,
    ) -> Result<(), Error> {
        check_blocks(blocks)?;
        let sqe = nvm::write(nsid, slba, blocks, fua);
        self.succeed(&sqe, Data::Out(from)).await
    }

    /// Compares `blocks` blocks from `slba` on with `with`.
    ///
    /// # Errors
    /// As for [`write`](Self::write); [`Error::Status`] with Compare Failure where they differ.
    pub async fn compare(
        &self,
        nsid: u32,
        slba: u64,
        blocks: u32,
        with: &[Buffer],
    ) -> Result<(), Error> {
        check_blocks(blocks)?;
        let sqe = nvm::compare(nsid, slba, blocks);
        self.succeed(&sqe, Data::Out(with)).await
    }

    /// Compares `blocks` blocks from `slba` on with `old` and, where they are equal, writes `new`,
    /// as one operation. It is never sent again: a second compare would meet the first's write.
    ///
    /// # Errors
    /// As for [`compare`](Self::compare).
    pub async fn compare_and_write(
        &self,
        nsid: u32,
        slba: u64,
        blocks: u32,
        old: &[Buffer],
        new: &[Buffer],
    ) -> Result<(), Error> {
        check_blocks(blocks)?;
        let compare = nvm::compare(nsid, slba, blocks).with_fuse(Fuse::First);
        let write = nvm::write(nsid, slba, blocks, false).with_fuse(Fuse::Second);
        let connection = self.controller.live(self.index).await?;
        let first = (&compare, Data::Out(old));
        let second = (&write, Data::Out(new));
        let (compared, written) = connection.fused(first, second, Some(self.timeout)).await;
        // The compare's status says more: the write is aborted when it fails.
        compared?.ok()?;
        written?.ok().map(drop)
    }

    /// Makes all completed writes to the namespace survive a loss of power.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn flush(&self, nsid: u32) -> Result<(), Error> {
        self.succeed(&nvm::flush(nsid), Data::None).await
    }

    /// Writes zeroes to `blocks` blocks from `slba` on; with `deallocate`, the controller may give
    /// their space back.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn write_zeroes(
        &self,
        nsid: u32,
        slba: u64,
        blocks: u32,
        deallocate: bool,
        fua: bool,
    ) -> Result<(), Error> {
        check_blocks(blocks)?;
        let sqe = nvm::write_zeroes(nsid, slba, blocks, deallocate, fua);
        self.succeed(&sqe, Data::None).await
    }

    /// Tells the controller that the ranges (at most 256) are no longer used.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn deallocate(&self, nsid: u32, ranges: &[DsmRange]) -> Result<(), Error> {
        if !(1..=RANGES_MAX).contains(&ranges.len()) {
            return Err(Error::Invalid("a deallocation has 1 to 256 ranges"));
        }
        let buffer = self.scratch(ranges.as_bytes()).await;
        let sqe = nvm::deallocate(nsid, ranges.len());
        self.succeed(&sqe, Data::Out(slice::from_ref(&buffer)))
            .await
    }

    /// Copies the ranges (at most 256), one behind the other, to `sdlba`.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn copy(
        &self,
        nsid: u32,
        sdlba: u64,
        ranges: &[CopyRangeFormat0],
    ) -> Result<(), Error> {
        if !(1..=RANGES_MAX).contains(&ranges.len()) {
            return Err(Error::Invalid("a copy has 1 to 256 ranges"));
        }
        let buffer = self.scratch(ranges.as_bytes()).await;
        let sqe = nvm::copy(nsid, sdlba, ranges.len(), false);
        self.succeed(&sqe, Data::Out(slice::from_ref(&buffer)))
            .await
    }

    /// Lets the controller read `blocks` blocks from `slba` on, without transferring them.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn verify(&self, nsid: u32, slba: u64, blocks: u32) -> Result<(), Error> {
        check_blocks(blocks)?;
        self.succeed(&nvm::verify(nsid, slba, blocks), Data::None)
            .await
    }

    /// Marks `blocks` blocks from `slba` on as unreadable until they are written again.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn write_uncorrectable(
        &self,
        nsid: u32,
        slba: u64,
        blocks: u32,
    ) -> Result<(), Error> {
        check_blocks(blocks)?;
        let sqe = nvm::write_uncorrectable(nsid, slba, blocks);
        self.succeed(&sqe, Data::None).await
    }

    /// Sends a Disconnect command, which ends this queue at the controller, and closes its
    /// connection where it succeeds. Its commands then fail with [`Error::Closed`], until a later
    /// association has the queue again.
    ///
    /// # Errors
    /// As for [`io_command`](Self::io_command).
    pub async fn disconnect(&self) -> Result<Completion, Error> {
        let connection = self.controller.live(self.index).await?;
        let timeout = Some(self.timeout);
        let sqe = fabrics::disconnect();
        let completion = connection.command(&sqe, Data::None, timeout).await?;
        if completion.status.is_success() {
            connection.retire();
        }
        Ok(completion)
    }

    async fn succeed(&self, sqe: &SubmissionEntry, data: Data<'_>) -> Result<(), Error> {
        self.io_command(sqe, data).await?.ok().map(drop)
    }

    /// A buffer with a command's parameters.
    async fn scratch(&self, bytes: &[u8]) -> Buffer {
        debug_assert!(bytes.len() <= 2 * BLOCK_BYTES_MIN);
        let mut buffer = self.controller.host.buffers().allocate(bytes.len()).await;
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }
}

fn check_blocks(blocks: u32) -> Result<(), Error> {
    if (1..=nvm::BLOCKS_MAX).contains(&blocks) {
        Ok(())
    } else {
        Err(Error::Invalid("a command has 1 to 65536 blocks"))
    }
}
