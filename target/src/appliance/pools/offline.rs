//! A pool that nobody uses, on a file or a device: looked at, and not changed.

use std::{os::unix::fs::FileTypeExt, path::Path};

use corebay_core::{
    arena::{Arena, Hugepages},
    buffer::BufferPool,
    disk::file::{Caching, FileMedium, FileMediumOptions, default_block_size},
    units::BlockSize,
};
use corebay_lvol::{PoolContext, PoolDisk, check, error::PoolError};
use serde_json::Value;

use super::{MEMORY_WAITERS, POOL_MEMORY_BYTES, describe::describe_check};
use crate::{
    appliance::{arrays::run_here, environment::PlainMedium},
    cli::Failure,
};

/// Checks the pool at `path`.
///
/// # Errors
/// Where it cannot be opened, or there is no pool.
pub fn check_offline(path: &Path) -> Result<Value, Failure> {
    let metadata = std::fs::metadata(path);
    let metadata =
        metadata.map_err(|error| Failure::new(format!("{}: {error}", path.display()), ""))?;
    let kind = metadata.file_type();
    // A file that is not of whole blocks was never a disk.
    let can_be_pool = kind.is_file() && metadata.len().is_multiple_of(512) && metadata.len() > 0;
    if !can_be_pool && !kind.is_block_device() {
        let error = PoolError::NotAPool;
        return Err(Failure::new(format!("{}: {error}", path.display()), ""));
    }
    let first = default_block_size(path);
    let other = match first {
        BlockSize::B512 => BlockSize::B4096,
        BlockSize::B4096 => BlockSize::B512,
    };
    // What the pool was made with decides, and only it knows.
    match check_with(path, first) {
        Ok(Err(PoolError::OtherBlocks { then, .. })) => check_with(path, then)?,
        Ok(Err(PoolError::NotAPool)) | Err(_) => check_with(path, other)?,
        Ok(found) => found,
    }
    .map(|report| report_of(&report))
    .map_err(|error| Failure::new(format!("{}: {error}", path.display()), ""))
}

type Checked = Result<corebay_lvol::CheckReport, PoolError>;

fn report_of(report: &corebay_lvol::CheckReport) -> Value {
    describe_check(report)
}

fn check_with(path: &Path, block_size: BlockSize) -> Result<Checked, Failure> {
    let options = FileMediumOptions {
        block_size,
        bytes: None,
        create: false,
        caching: Caching::Direct,
    };
    let medium = FileMedium::open(path, options).map_err(|error| {
        let help =
            "stop the appliance that uses it, or let that check it: `corebay pool check POOL`";
        Failure::new(error.to_string(), help)
    })?;
    let arena = Arena::new(2 * POOL_MEMORY_BYTES, Hugepages::Off);
    let mut arena = arena.map_err(|error| Failure::new(error.to_string(), ""))?;
    let region = arena.take(POOL_MEMORY_BYTES);
    let region = region.ok_or_else(|| Failure::new("there is no memory", ""))?;
    let buffers = BufferPool::new(region, MEMORY_WAITERS);
    let own = buffers.clone();
    run_here(&buffers, move |devices| async move {
        let disk = devices.open(&PlainMedium::File(medium));
        let disk = disk.map_err(|error| Failure::new(error.to_string(), ""))?;
        let context = PoolContext {
            reactor: devices.reactor.clone(),
            buffers: own,
        };
        Ok(check(&context, PoolDisk::from(disk)).await)
    })
}
