//! A volume as a disk.
//!
//! Invariants:
//! - Fast path: blocks that the map gives to this volume alone are read and written where they lie,
//!   without a lock and without the heap.
//! - Slow path: a write to any other block goes to an extent of the volume's own, each block to its
//!   place there, and is answered once the record that makes it readable is durable.
//! - A read looks at the map only after it has said that it is under way, so that what it finds
//!   there is not given to anybody else before it has ended.
//!
//! - Slow writes and clearings of the same blocks go one after the other, in the order they came. Else a
//!   write whose data are in place already could be seen early by another's record, then be cleared,
//!   and be seen again by its own.
//! - Whoever waits for others holds no [look](Shared::begin): what is released is free only when all
//!   looks from before have ended.
//!
//! # A first write, step by step
//! 1. An extent of the volume's own is found or allocated, and pinned. Nothing of this is on the disk.
//! 2. The data are written. A crash leaves an extent that nothing refers to, or blocks in one that
//!    are not valid: they read as they did before.
//! 3. The record is written by the journal, which flushes the data before where the disk has a volatile
//!    cache. A crash leaves the old blocks, or the new ones if the batch is whole.
//! 4. The map shows the new blocks, and the write is answered. A crash loses nothing.

use std::{ops::Range, rc::Rc};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, DiskInfo, Durability, SEGMENTS_MAX, Space},
    units::Lba,
};

use crate::{
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT,
        page::{Kind, LEAF_EXTENTS},
        record::Record,
    },
    journal::Ticket,
    pool::{Gate, Shared, Target},
    state::{Missing, map::Run},
};

const PER_EXTENT: u64 = BLOCKS_PER_EXTENT as u64;

/// A volume, on the core that is its pool's home.
pub struct Volume<D: Disk> {
    shared: Rc<Shared<D>>,
    id: u32,
    gate: Rc<Gate>,
}

impl<D: Disk> Volume<D> {
    pub(crate) fn new(shared: Rc<Shared<D>>, id: u32) -> Self {
        let gate = shared.gate(id);
        gate.handles.set(gate.handles.get() + 1);
        Self { shared, id, gate }
    }

    /// The blocks that hold something, in this volume's own view (NUSE).
    #[must_use]
    pub fn mapped_blocks(&self) -> u64 {
        let state = self.shared.state.borrow();
        state.volume(self.id).map_or(0, |record| record.mapped)
    }

    fn check(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        match self.info().contains(at, blocks) && blocks > 0 {
            true => Ok(()),
            false => Err(DiskError::OutOfRange),
        }
    }

    fn check_buffers(&self, at: Lba, buffers: &[Buffer]) -> Result<u64, DiskError> {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        let blocks = self.info().block_size.blocks_in(bytes as u64);
        self.check(at, blocks).map(|()| blocks)
    }

    fn check_writable(&self) -> Result<(), DiskError> {
        let state = self.shared.state.borrow();
        match state.volume(self.id) {
            Ok(record) if record.kind == Kind::Volume && !record.read_only => Ok(()),
            Ok(_) => Err(DiskError::Unsupported),
            Err(_) => Err(DiskError::Gone),
        }
    }

    async fn read_runs(&self, at: Lba, blocks: u64, into: &[Buffer]) -> Result<(), DiskError> {
        let block_bytes = self.info().block_size.bytes();
        let end = at.0 + blocks;
        let mut from = at.0;
        while from < end {
            let run = self.shared.run(self.id, from, end).await?;
            let first = to_usize(from - at.0) * block_bytes;
            let part = window(into, first..first + run.blocks * block_bytes);
            match run.extent {
                Some(extent) => {
                    let place = self.shared.place(extent, from);
                    self.shared.device.disk.read(place, &part).await?;
                }
                None => part
                    .into_iter()
                    .for_each(|mut part| part.bytes_mut().fill(0)),
            }
            from += run.blocks as u64;
        }
        Ok(())
    }

    /// Writes the first blocks in place, as long as they are the volume's own; how many that were.
    async fn write_own(
        &self,
        at: Lba,
        blocks: u64,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<u64, DiskError> {
        let block_bytes = self.info().block_size.bytes();
        let end = at.0 + blocks;
        let mut block = at.0;
        while block < end {
            let Some((extent, count)) = self.shared.own_run(self.id, block, end) else {
                break;
            };
            let first = to_usize(block - at.0) * block_bytes;
            let part = window(from, first..first + count * block_bytes);
            let place = self.shared.place(extent, block);
            let disk = &self.shared.device.disk;
            disk.write(place, &part, durability).await?;
            block += count as u64;
        }
        Ok(block - at.0)
    }

    async fn write_slowly(
        &self,
        first: u64,
        end: u64,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let _held = self.shared.hold(self.id, first..end).await;
        let mut targets = Vec::new();
        let written = self
            .write_parts(first..end, from, durability, &mut targets)
            .await;
        targets.into_iter().for_each(Target::end);
        written.map_err(DiskError::from)
    }

    async fn write_parts<'a>(
        &'a self,
        range: Range<u64>,
        from: &[Buffer],
        durability: Durability,
        targets: &mut Vec<Target<'a, D>>,
    ) -> Result<(), PoolError> {
        let block_bytes = self.info().block_size.bytes();
        let mut records = Vec::new();
        let mut block = range.start;
        while block < range.end {
            let index = block / PER_EXTENT;
            let end = range.end.min((index + 1) * PER_EXTENT);
            let target = self.shared.target(self.id, index).await?;
            let extent = target.extent;
            targets.push(target);
            let bytes = |at: u64| to_usize(at - range.start) * block_bytes;
            let part = window(from, bytes(block)..bytes(end));
            let place = self.shared.place(extent, block);
            self.shared
                .device
                .disk
                .write(place, &part, durability)
                .await?;
            if !self.shared.is_own(self.id, block, end) {
                records.push(Record::Map {
                    volume: self.id,
                    index,
                    start: u8::try_from(block % PER_EXTENT).expect("below an extent's blocks"),
                    count: u16::try_from(end - block).expect("at most an extent's blocks"),
                    extent,
                });
            }
            block = end;
        }
        if records.is_empty() {
            return Ok(());
        }
        let ticket = self.shared.append(&records).await?;
        self.shared.committed(ticket).await
    }

    async fn clear(&self, at: Lba, blocks: u64, keep: bool) -> Result<(), DiskError> {
        if blocks == 0 {
            return Ok(());
        }
        self.check(at, blocks)?;
        self.check_writable()?;
        let _writing = self.gate.enter().await;
        let end = at.0 + blocks;
        Box::pin(async {
            let _held = self.shared.hold(self.id, at.0..end).await;
            self.shared.unmap(self.id, at.0, end, keep).await?;
            // A write in place that began before may still land: only when it has ended may the
            // blocks' places be filled and shown again.
            self.shared.grace().await;
            Ok(())
        })
        .await
    }
}

impl<D: Disk> Drop for Volume<D> {
    fn drop(&mut self) {
        self.gate.handles.set(self.gate.handles.get() - 1);
    }
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).expect("a transfer's bytes fit")
}

/// The parts of buffers that hold bytes `range` of all of them.
fn window(buffers: &[Buffer], range: Range<usize>) -> ArrayVec<Buffer, SEGMENTS_MAX> {
    let mut parts = ArrayVec::new();
    let mut before = 0;
    for buffer in buffers {
        let from = range.start.max(before);
        let to = range.end.min(before + buffer.len());
        if from < to {
            parts.push(buffer.slice(from - before..to - before));
        }
        before += buffer.len();
    }
    parts
}

impl<D: Disk> Disk for Volume<D> {
    fn info(&self) -> DiskInfo {
        let below = self.shared.device.disk.info();
        let state = self.shared.state.borrow();
        DiskInfo {
            block_size: state.layout.block_size,
            blocks: state.volume(self.id).map_or(0, |record| record.blocks),
            volatile_cache: below.volatile_cache,
            deallocate_granularity: Some(1),
            write_uncorrectable: false,
            // Beyond a block, neighbours may lie in different extents.
            atomic_write_bytes: below
                .atomic_write_bytes
                .min(1 << state.layout.block_size.shift()),
        }
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let blocks = self.check_buffers(at, into)?;
        let look = self.shared.begin();
        let result = self.read_runs(at, blocks, into).await;
        look.end();
        result
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let blocks = self.check_buffers(at, from)?;
        self.check_writable()?;
        let _writing = self.gate.enter().await;
        let look = self.shared.begin();
        let written = self.write_own(at, blocks, from, durability).await;
        look.end();
        let written = written?;
        if written == blocks {
            return Ok(());
        }
        let block_bytes = self.info().block_size.bytes();
        let rest = window(
            from,
            to_usize(written) * block_bytes..to_usize(blocks) * block_bytes,
        );
        let (first, end) = (at.0 + written, at.0 + blocks);
        // On the heap, so that the fast path's future stays small.
        Box::pin(self.write_slowly(first, end, &rest, durability)).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.shared.device.disk.flush().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.clear(at, blocks, false).await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        _durability: Durability,
    ) -> Result<(), DiskError> {
        self.clear(at, blocks, space == Space::Keep).await
    }

    async fn write_uncorrectable(&self, _at: Lba, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
}

impl<D: Disk> Shared<D> {
    /// Where a block of a volume lies, whose extent lies in `extent`.
    fn place(&self, extent: crate::format::Extent, block: u64) -> Lba {
        let within = to_usize(block % PER_EXTENT);
        self.state.borrow().layout.block_of(extent, within)
    }

    /// Where blocks from `block` on lie, up to `end` and within one extent.
    pub(crate) async fn run(&self, volume: u32, block: u64, end: u64) -> Result<Run, PoolError> {
        loop {
            let found = {
                let state = self.state.borrow();
                state.run(volume, block / PER_EXTENT, within_extent(block, end))?
            };
            match found {
                Ok(run) => return Ok(run),
                Err(missing) => Box::pin(self.load(missing)).await?,
            }
        }
    }

    /// The volume's own blocks from `block` on, which may be written in place.
    fn own_run(&self, volume: u32, block: u64, end: u64) -> Option<(crate::format::Extent, usize)> {
        let state = self.state.borrow();
        let found = state.run(volume, block / PER_EXTENT, within_extent(block, end));
        let run = found.ok()?.ok().filter(|run| run.own)?;
        Some((run.extent?, run.blocks))
    }

    fn is_own(&self, volume: u32, block: u64, end: u64) -> bool {
        let run = self.own_run(volume, block, end);
        run.is_some_and(|(_, blocks)| blocks as u64 == end - block)
    }

    /// The first leaf at or after `leaf` that is there.
    pub(crate) async fn next_leaf(&self, volume: u32, leaf: u64) -> Result<Option<u64>, PoolError> {
        loop {
            let next = self.state.borrow().next_leaf(volume, leaf)?;
            match next {
                Ok(found) => return Ok(found),
                Err(id) => self.load(Missing::Node(id)).await?,
            }
        }
    }

    /// Makes blocks `first` to `end` read as zeroes, and gives their space back.
    pub(crate) async fn unmap(
        &self,
        volume: u32,
        first: u64,
        end: u64,
        keep: bool,
    ) -> Result<(), PoolError> {
        let per_leaf = LEAF_EXTENTS as u64 * PER_EXTENT;
        let mut last: Option<Ticket> = None;
        let mut leaf = first / per_leaf;
        while let Some(next) = self.next_leaf(volume, leaf).await? {
            let (from, to) = (first.max(next * per_leaf), end.min((next + 1) * per_leaf));
            if from >= to {
                break;
            }
            let blocks = to - from;
            let record = Record::Unmap {
                volume,
                first: from,
                blocks,
                keep,
            };
            self.prepare(&record).await?;
            last = Some(self.append(&[record]).await?);
            leaf = next + 1;
        }
        match last {
            Some(ticket) => self.committed(ticket).await,
            None => Ok(()),
        }
    }
}

/// Blocks `block` to `end`, as far as they lie in one extent, counted from its start.
fn within_extent(block: u64, end: u64) -> Range<usize> {
    let start = block % PER_EXTENT;
    to_usize(start)..to_usize((start + end - block).min(PER_EXTENT))
}
