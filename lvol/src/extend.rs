//! A pool takes the rest of a disk that has grown.
//!
//! Only the extents grow: everything before them stays where it is. The new ones count from the record
//! on; a crash before it is durable leaves the pool as it was, and it may be extended again.

use corebay_core::disk::Disk;

use crate::{
    error::PoolError,
    format::{Layout, record::Record},
    import::root_bytes_least,
    manage::Pool,
    state::{State, corrupt},
};

/// The most blocks of a disk.
pub(crate) const DISK_BLOCKS_MAX: u64 = 1 << 50;

impl State {
    /// The pool uses so many blocks of its disk.
    pub fn extend(&mut self, blocks: u64) -> Result<(), PoolError> {
        if blocks <= self.layout.disk_blocks || blocks > DISK_BLOCKS_MAX {
            return Err(corrupt("a record that extends the pool"));
        }
        let from = self.layout.extents();
        self.layout.disk_blocks = blocks;
        self.grow_extents(from, self.layout.extents());
        Ok(())
    }
}

impl<D: Disk> Pool<D> {
    /// Takes the rest of the disk, where it has grown; the bytes that the pool uses of it now.
    ///
    /// # Errors
    /// [`PoolError::WrongDisk`] where the disk has become smaller, or so large that the place for the
    /// pool's tables does not suffice.
    pub async fn extend(&self) -> Result<u64, PoolError> {
        let _control = self.control().await?;
        let before = self.shared.state.borrow().layout;
        let info = self.shared.device.disk.info();
        let layout = Layout {
            disk_blocks: info.blocks.min(DISK_BLOCKS_MAX),
            ..before
        };
        let bytes = layout.block_size.bytes_of(layout.disk_blocks);
        if layout.disk_blocks < before.disk_blocks {
            let (now, then) = (layout.disk_blocks, before.disk_blocks);
            return Err(PoolError::WrongDisk(format!(
                "it has {now} blocks, and the pool uses {then}"
            )));
        }
        if root_bytes_least(bytes) > layout.root_bytes {
            let most = layout.root_bytes << crate::import::ROOT_SHIFT_LEAST;
            return Err(PoolError::WrongDisk(format!(
                "the pool was made for disks of at most {most} bytes"
            )));
        }
        // Less than an extent more is nothing.
        if layout.extents() > before.extents() {
            let blocks = layout.disk_blocks;
            self.change(&[Record::Extend { blocks }]).await?;
        }
        let now = self.shared.state.borrow().layout;
        Ok(now.block_size.bytes_of(now.disk_blocks))
    }
}
