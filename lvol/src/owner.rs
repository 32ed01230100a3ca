//! Whose a pool is: what its label says before it is opened, importing, releasing, renaming and
//! destroying it.
//!
//! Invariants:
//! - A pool that one machine has is opened by another one only by force: it may be in use there. A
//!   machine has it from its import, or its making, until it releases it; a crash changes nothing.
//! - Before the owner is known to be right, nothing is written: no copy is mended, no record replayed.
//! - A change of owner or name is a checkpoint, so the label tells it as soon as it is answered. A
//!   crash before leaves the old one.
//! - A pool is destroyed only by whoever can tell its name.

use corebay_core::{disk::Disk, units::BlockSize};

use crate::{
    device::{Device, PoolDisk},
    error::PoolError,
    format::{
        NAME_BYTES_MAX,
        record::Record,
        superblock::{Owner, Superblock},
    },
    import::CreateOptions,
    manage::Pool,
    pool::PoolContext,
};

/// What a pool says of itself without being opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLabel {
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its name.
    pub name: String,
    /// The machine that has it; none where it was released, or never belonged to one.
    pub owner: Option<Owner>,
    /// It was closed, and needs no recovery.
    pub clean: bool,
    /// Counts its checkpoints.
    pub generation: u64,
    /// Bytes of its disk that it uses.
    pub bytes: u64,
    /// The size of its blocks.
    pub block_size: BlockSize,
}

/// How a pool is to be imported.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The machine that imports it, and has it from then on.
    pub owner: Option<Owner>,
    /// It is taken from another machine that has not released it, and that certainly does not use it
    /// any more: two machines that use one pool destroy it.
    pub force: bool,
}

impl ImportOptions {
    pub(crate) fn allow(&self, superblock: &Superblock) -> Result<(), PoolError> {
        let ours = self.owner.as_ref().map(|owner| owner.id);
        match &superblock.owner {
            Some(owner) if !self.force && ours.is_some_and(|ours| ours != owner.id) => {
                Err(PoolError::Foreign(owner.name.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl From<Superblock> for PoolLabel {
    fn from(superblock: Superblock) -> Self {
        let layout = superblock.layout;
        Self {
            uuid: superblock.uuid,
            name: superblock.name,
            owner: superblock.owner,
            clean: superblock.clean,
            generation: superblock.generation,
            bytes: layout.block_size.bytes_of(layout.disk_blocks),
            block_size: layout.block_size,
        }
    }
}

/// Reads the label of the pool on a disk. Nothing is written.
///
/// # Errors
/// Where there is no pool, or a newer one.
pub async fn probe<D: Disk>(context: &PoolContext, disk: D) -> Result<PoolLabel, PoolError> {
    let device = Device::new(PoolDisk::from(disk), context.buffers.clone());
    device.read_only.set(true);
    Ok(device.read_superblock(|_| Ok(())).await?.into())
}

/// Destroys the pool on a disk that nobody has open, with all that is in it. It needs not be whole.
///
/// # Errors
/// Where there is none, it has another name, or it is another machine's.
pub async fn destroy<D: Disk>(
    context: &PoolContext,
    disk: impl Into<PoolDisk<D>>,
    name: &str,
    options: &ImportOptions,
) -> Result<(), PoolError> {
    let device = Device::new(disk.into(), context.buffers.clone());
    device.read_only.set(true);
    let superblock = device.read_superblock(|found| options.allow(found)).await?;
    if superblock.name != name {
        return Err(PoolError::NotFound);
    }
    Ok(device.erase().await?)
}

impl<D: Disk> Pool<D> {
    /// Makes a pool as [`create`](Self::create) does, and says whose it is.
    ///
    /// # Errors
    /// As `create`.
    pub async fn create_as(
        context: &PoolContext,
        disk: impl Into<PoolDisk<D>>,
        options: &CreateOptions,
        owner: &Owner,
    ) -> Result<Self, PoolError> {
        Self::make(context, disk.into(), options, Some(owner.clone())).await
    }

    /// Opens the pool on a disk for a machine, which has it from then on.
    ///
    /// # Errors
    /// Where there is none, it cannot be trusted, or another machine has it.
    pub async fn import_as(
        context: &PoolContext,
        disk: impl Into<PoolDisk<D>>,
        options: &ImportOptions,
    ) -> Result<Self, PoolError> {
        Self::open_on(context, disk.into(), options).await
    }

    /// The machine that has the pool.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        self.shared.state.borrow().owner.clone()
    }

    /// Gives the pool another name.
    ///
    /// # Errors
    /// Where the name is empty or too long.
    pub async fn rename_pool(&self, name: &str) -> Result<(), PoolError> {
        let _control = self.control().await?;
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
            return Err(PoolError::BadName);
        }
        if self.name() == name {
            return Ok(());
        }
        let name = name.to_owned();
        self.change(&[Record::RenamePool { name }]).await?;
        self.checkpoint().await
    }

    /// Closes the pool as [`close`](Self::close) does, and lets any machine import it.
    ///
    /// # Errors
    /// As `close`.
    pub async fn release(&self) -> Result<(), PoolError> {
        let _control = self.control().await?;
        self.finish(true).await
    }

    /// Closes the pool and destroys it, with all that is in it.
    ///
    /// # Errors
    /// Where the name is not the pool's, or a volume is open.
    pub async fn destroy(&self, name: &str) -> Result<(), PoolError> {
        let _control = self.control().await?;
        if self.name() != name {
            return Err(PoolError::NotFound);
        }
        self.finish(false).await?;
        let erased = self.shared.device.erase().await;
        if erased.is_err() {
            // It is closed, and not gone: it can be opened anew.
            self.shared.fail();
        }
        Ok(erased?)
    }
}
