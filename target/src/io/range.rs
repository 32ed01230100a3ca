//! Commands that go over blocks in pieces (Compare, Verify, Copy) or over lists of ranges (Dataset
//! Management, Copy).
//!
//! Invariant: at most one scratch piece is held per command, and while it is held the command waits
//! for disks, and for fused commands at the write gate, which took their piece before they locked it.

use corebay_core::{
    buffer::Buffer,
    disk::{Cost, Direction, Disk, DiskError, Durability},
    units::Lba,
};
use corebay_nvme::spec::{
    command::nvm::{CopyRangeFormat0, DsmRange},
    status::Status,
};
use zerocopy::FromBytes;

use super::{Blocks, READS_MAX, status_of};
use crate::{
    controller::IoCounters,
    core::Core,
    environment::Environment,
    limits::{COPY_BLOCKS_MAX, COPY_RANGE_BLOCKS_MAX, DSM_BLOCKS_MAX, SCRATCH_BYTES},
    namespace::Namespace,
    queue::Done,
};

/// The bytes of one Dataset Management range.
pub const DSM_RANGE_BYTES: usize = size_of::<DsmRange>();

/// The bytes of one Copy source range (descriptor format 0h).
pub const COPY_RANGE_BYTES: usize = size_of::<CopyRangeFormat0>();

/// Compares blocks with the host's data.
pub async fn compare<E: Environment>(
    core: &Core<E>,
    blocks: &Blocks<E>,
    data: &Buffer,
    counters: &IoCounters,
) -> Result<(), Status> {
    let mut piece = core.memory.scratch_piece().await;
    compare_by(core, &mut piece, blocks, data, counters).await
}

/// The same, with a scratch piece that the caller holds already.
pub async fn compare_by<E: Environment>(
    core: &Core<E>,
    piece: &mut Buffer,
    blocks: &Blocks<E>,
    data: &Buffer,
    counters: &IoCounters,
) -> Result<(), Status> {
    let shift = blocks.namespace.spec.info.block_size.shift();
    let mut done = 0;
    while done < data.len() {
        let len = (data.len() - done).min(SCRATCH_BYTES);
        let at = blocks.at.plus((done >> shift) as u64);
        let part = read_part(core, &blocks.namespace.disk, at, (piece, len)).await;
        let part = part.map_err(|error| status_of(error, counters))?;
        if *part.bytes() != *data.slice(done..done + len).bytes() {
            #[cfg(corebay_fault)]
            if crate::fault::is(crate::fault::Fault::ScratchLeaked) {
                std::mem::forget(piece.clone());
            }
            return Err(Status::COMPARE_FAILURE.with_dnr());
        }
        done += len;
    }
    Ok(())
}

/// Reads so many bytes into a scratch piece; into another one where a device did not answer, which may still
/// write to the first.
async fn read_part<E: Environment>(
    core: &Core<E>,
    disk: &E::Disk,
    at: Lba,
    (piece, len): (&mut Buffer, usize),
) -> Result<Buffer, DiskError> {
    let mut part = piece.slice(0..len);
    for _ in 1..READS_MAX {
        match disk.read(at, std::slice::from_ref(&part)).await {
            Err(DiskError::TimedOut) => {}
            read => return read.map(|()| part),
        }
        let other = core.memory.scratch.try_allocate(SCRATCH_BYTES);
        *piece = other.ok_or(DiskError::TimedOut)?;
        part = piece.slice(0..len);
    }
    let read = disk.read(at, std::slice::from_ref(&part)).await;
    read.map(|()| part)
}

/// Reads blocks without transferring them.
pub async fn verify<E: Environment>(
    core: &Core<E>,
    blocks: &Blocks<E>,
    counters: &IoCounters,
) -> Result<(), Status> {
    let block_size = blocks.namespace.spec.info.block_size;
    let step = block_size.blocks_in(SCRATCH_BYTES as u64);
    let mut piece = core.memory.scratch_piece().await;
    let mut done = 0;
    while done < blocks.count {
        let count = (blocks.count - done).min(step);
        let len = count as usize * block_size.bytes();
        let at = blocks.at.plus(done);
        let read = read_part(core, &blocks.namespace.disk, at, (&mut piece, len)).await;
        read.map_err(|error| status_of(error, counters))?;
        done += count;
    }
    Ok(())
}

/// Deallocates the ranges that the data list, so many. All are checked before the first is touched.
pub async fn dataset_management<D: Disk, M>(
    namespace: &Namespace<D, M>,
    (ranges, data): (usize, &Buffer),
    deallocate: bool,
    counters: &IoCounters,
) -> Result<(), Status> {
    let mut total = 0;
    for index in 0..ranges {
        let (at, count) = dsm_range(data, index)?;
        if !namespace.disk.info().contains(at, count) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        total += count;
    }
    if !deallocate {
        return Ok(());
    }
    if total > u64::from(DSM_BLOCKS_MAX) {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
    }
    for index in 0..ranges {
        let (at, count) = dsm_range(data, index)?;
        if count != 0 {
            let _pass = namespace.gate.enter(at, count).await;
            namespace
                .disk
                .deallocate(at, count)
                .await
                .map_err(|error| status_of(error, counters))?;
        }
    }
    Ok(())
}

fn dsm_range(data: &Buffer, index: usize) -> Result<(Lba, u64), Status> {
    let start = index * DSM_RANGE_BYTES;
    let part = data.slice(start..start + DSM_RANGE_BYTES);
    let range = DsmRange::read_from_bytes(&part.bytes()).map_err(|_| Status::INTERNAL_ERROR)?;
    Ok((Lba(range.slba.get()), u64::from(range.nlb.get())))
}

fn copy_range(data: &Buffer, index: usize) -> Result<(Lba, u64), Status> {
    let start = index * COPY_RANGE_BYTES;
    let part = data.slice(start..start + COPY_RANGE_BYTES);
    let range =
        CopyRangeFormat0::read_from_bytes(&part.bytes()).map_err(|_| Status::INTERNAL_ERROR)?;
    Ok((Lba(range.slba.get()), u64::from(range.blocks())))
}

/// Copies the ranges that the data list, so many, to `to` and on, one after the other. Where one
/// fails, dword 0 of the completion is its index.
pub async fn copy<E: Environment>(
    core: &Core<E>,
    namespace: &Namespace<E::Disk, E::Medium>,
    to: Lba,
    (ranges, data): (usize, &Buffer),
    durability: Durability,
    counters: &IoCounters,
) -> Done {
    if let Err(status) = check_copy(namespace, to, ranges, data) {
        return Done::status(status);
    }
    count_copied(core, namespace, ranges, data);
    let mut piece = core.memory.scratch_piece().await;
    let mut to = to;
    for index in 0..ranges {
        let copied = match copy_range(data, index) {
            Ok(range) => {
                let with = (&mut piece, counters);
                copy_one(core, namespace, to, range, durability, with).await
            }
            Err(status) => Err(status),
        };
        match copied {
            Ok(count) => to = to.plus(count),
            Err(status) => {
                return Done {
                    result: index as u64,
                    ..Done::status(status)
                };
            }
        }
    }
    Done::SUCCESS
}

/// Counts what a Copy reads and writes, where its namespace is limited: what comes next waits for it. Its
/// writes were counted as operations before it began.
fn count_copied<E: Environment>(
    core: &Core<E>,
    namespace: &Namespace<E::Disk, E::Medium>,
    ranges: usize,
    data: &Buffer,
) {
    if !namespace.disk.is_limited() {
        return;
    }
    let blocks = (0..ranges).filter_map(|index| Some(copy_range(data, index).ok()?.1));
    let bytes = namespace.spec.info.block_size.bytes_of(blocks.sum());
    for (direction, operations) in [(Direction::Read, ranges as u64), (Direction::Write, 0)] {
        let cost = Cost {
            direction,
            operations,
            bytes,
        };
        namespace.disk.admit(cost, core.reactor.now());
    }
}

fn check_copy<D: Disk, M>(
    namespace: &Namespace<D, M>,
    to: Lba,
    ranges: usize,
    data: &Buffer,
) -> Result<(), Status> {
    let info = namespace.disk.info();
    let mut total = 0;
    for index in 0..ranges {
        let (at, count) = copy_range(data, index)?;
        if count > u64::from(COPY_RANGE_BLOCKS_MAX) {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
        }
        if !info.contains(at, count) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        total += count;
    }
    if total > u64::from(COPY_BLOCKS_MAX) {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
    }
    if !info.contains(to, total) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    Ok(())
}

async fn copy_one<E: Environment>(
    core: &Core<E>,
    namespace: &Namespace<E::Disk, E::Medium>,
    to: Lba,
    (from, count): (Lba, u64),
    durability: Durability,
    (piece, counters): (&mut Buffer, &IoCounters),
) -> Result<u64, Status> {
    let block_size = namespace.spec.info.block_size;
    let step = block_size.blocks_in(SCRATCH_BYTES as u64);
    let mut done = 0;
    while done < count {
        let blocks = (count - done).min(step);
        let len = blocks as usize * block_size.bytes();
        let part = read_part(core, &namespace.disk, from.plus(done), (piece, len)).await;
        let part = part.map_err(|error| status_of(error, counters))?;
        let buffers = std::slice::from_ref(&part);
        #[cfg(not(corebay_fault))]
        let _pass = namespace.gate.enter(to.plus(done), blocks).await;
        #[cfg(corebay_fault)]
        let _pass = match crate::fault::is(crate::fault::Fault::CopyUngated) {
            true => None,
            false => Some(namespace.gate.enter(to.plus(done), blocks).await),
        };
        namespace
            .disk
            .write(to.plus(done), buffers, durability)
            .await
            .map_err(|error| status_of(error, counters))?;
        done += blocks;
    }
    Ok(count)
}
