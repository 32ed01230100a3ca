//! A volume as a disk, on whichever core.
//!
//! Invariants:
//! - Fast path: blocks that the flat map gives to this volume alone are read and written where they lie,
//!   by the core's own disk, without a lock and without the heap.
//! - Slow path: a write to any other block goes to an extent of the volume's own, which the home core
//!   names, each block to its place there, and is answered once the record that makes it readable is
//!   durable.
//! - An operation reads the map only while it [looks](crate::epoch), so that what it finds there is not
//!   given to anybody else before it has ended.
//! - A write looks first, then whether the volume is frozen; a slow one counts itself before it looks
//!   no more. So whoever freezes a volume and waits for all looks from before has them all.
//! - Slow writes and clearings of the same blocks go one after the other, in the order they came. Else a
//!   write whose data are in place already could be seen early by another's record, then be cleared,
//!   and be seen again by its own.
//! - Whoever waits for others holds no look: what is released is free only when all looks from before
//!   have ended.
//!
//! # A first write, step by step
//! 1. An extent of the volume's own is found or allocated, and pinned. Nothing of this is on the disk.
//! 2. The data are written. A crash leaves an extent that nothing refers to, or blocks in one that
//!    are not valid: they read as they did before.
//! 3. The record is written by the journal, which flushes the data before where the disk has a volatile
//!    cache. A crash leaves the old blocks, or the new ones if the batch is whole.
//! 4. The map shows the new blocks, and the write is answered. A crash loses nothing.

use std::{
    ops::Range,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::Buffer,
    disk::{Admission, Cost, Disk, DiskError, DiskInfo, Durability, SEGMENTS_MAX, Space},
    units::{Lba, Time},
};

use crate::{
    across::{PoolCore, VolumeHandle},
    error::PoolError,
    flat::{FlatVolume, Glance},
    format::{BLOCKS_PER_EXTENT, Extent, page::LEAF_EXTENTS, record::Record},
    journal::Ticket,
    pool::Shared,
    slow::parts_of,
    state::{Missing, map::Run},
};

const PER_EXTENT: u64 = BLOCKS_PER_EXTENT as u64;

/// One core's disk over a volume.
pub struct Volume<D: Disk> {
    core: Rc<PoolCore<D>>,
    flat: Arc<FlatVolume>,
}

/// A slow write or a clearing, which whoever freezes the volume waits for.
pub(crate) struct Writing<'a> {
    flat: &'a FlatVolume,
    /// Counted by the home core for itself: it alone writes that count.
    is_home: bool,
}

impl<'a> Writing<'a> {
    fn begin(flat: &'a FlatVolume, is_home: bool) -> Self {
        let counts = &flat.counts;
        if is_home {
            let count = counts.writers_home.load(Ordering::Relaxed);
            counts.writers_home.store(count + 1, Ordering::Relaxed);
        } else {
            counts.writers.fetch_add(1, Ordering::SeqCst);
        }
        Self { flat, is_home }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let counts = &self.flat.counts;
        if self.is_home {
            let count = counts.writers_home.load(Ordering::Relaxed);
            counts.writers_home.store(count - 1, Ordering::Relaxed);
        } else {
            counts.writers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl<D: Disk> Volume<D> {
    /// Opens a volume on the core of `core`.
    ///
    /// # Errors
    /// Where it was deleted or is being received, its pool is being closed, or `core` is of another pool.
    pub fn open(core: &Rc<PoolCore<D>>, handle: &VolumeHandle) -> Result<Self, PoolError> {
        if !Arc::ptr_eq(&core.common, &handle.common) {
            return Err(PoolError::NotFound);
        }
        // Its end takes the handle back, whatever comes of it.
        let opened = Self::open_received(core, handle.flat.clone());
        let common = &opened.core.common;
        if opened.flat.receiving.load(Ordering::SeqCst) {
            return Err(PoolError::Busy);
        }
        if opened.flat.gone.load(Ordering::SeqCst) || common.closing.load(Ordering::SeqCst) {
            return Err(PoolError::NotFound);
        }
        Ok(opened)
    }

    /// Opens a volume for whoever receives it.
    pub(crate) fn open_received(core: &Rc<PoolCore<D>>, flat: Arc<FlatVolume>) -> Self {
        flat.counts.handles.fetch_add(1, Ordering::SeqCst);
        let core = core.clone();
        Self { core, flat }
    }

    /// The blocks that hold something, in this volume's own view (NUSE).
    #[must_use]
    pub fn mapped_blocks(&self) -> u64 {
        self.flat.counts.mapped.load(Ordering::Relaxed)
    }

    fn check(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let there = self.flat.blocks.load(Ordering::Relaxed);
        let end = at.0.checked_add(blocks);
        match blocks > 0 && end.is_some_and(|end| end <= there) {
            true => Ok(()),
            false => Err(DiskError::OutOfRange),
        }
    }

    fn check_buffers(&self, at: Lba, buffers: &[Buffer]) -> Result<u64, DiskError> {
        let bytes: usize = match buffers {
            [one] => one.len(),
            several => several.iter().map(Buffer::len).sum(),
        };
        let blocks = (bytes >> self.core.common.info.block_size.shift()) as u64;
        self.check(at, blocks).map(|()| blocks)
    }

    /// Whether the volume takes writes to these blocks; false: not now. It may have become smaller since
    /// the command came.
    fn takes_writes_to(&self, at: Lba, blocks: u64) -> Result<bool, DiskError> {
        let takes = self.takes_writes()?;
        self.check(at, blocks).map(|()| takes)
    }

    /// Whether the volume takes writes; false: not now.
    fn takes_writes(&self) -> Result<bool, DiskError> {
        let flat = &*self.flat;
        if flat.gone.load(Ordering::Relaxed) {
            return Err(DiskError::Gone);
        }
        if flat.read_only.load(Ordering::Relaxed) {
            return Err(DiskError::Unsupported);
        }
        // Whoever sees that it is thawed sees the generation, too.
        Ok(!flat.frozen.load(Ordering::Acquire))
    }

    fn begin_writing(&self) -> Writing<'_> {
        Writing::begin(&self.flat, self.core.is_home())
    }

    /// Whoever freezes the volume waits until this is dropped; waits while it is frozen.
    pub(crate) async fn writing(&self) -> Writing<'_> {
        loop {
            let look = self.core.looks.begin();
            let frozen = self.flat.frozen.load(Ordering::Acquire);
            let writing = (!frozen).then(|| self.begin_writing());
            look.end();
            match writing {
                Some(writing) => return writing,
                None => self.thawed().await,
            }
        }
    }

    async fn thawed(&self) {
        let frozen = || self.flat.frozen.load(Ordering::Relaxed);
        self.core.thawed.until(|| (!frozen()).then_some(())).await;
    }

    /// Whether the volume takes writes to these blocks without further ado.
    fn is_ready_for(&self, at: Lba, blocks: u64) -> bool {
        let flat = &*self.flat;
        let flags = [&flat.gone, &flat.read_only];
        let is_set = flags.map(|flag| flag.load(Ordering::Relaxed));
        // As in `takes_writes`.
        is_set == [false; 2]
            && !flat.frozen.load(Ordering::Acquire)
            && self.check(at, blocks).is_ok()
    }

    #[inline(always)]
    fn glance<const WRITES: bool>(&self, block: u64, blocks: u64) -> Glance {
        let slots = &self.core.common.slots;
        self.flat.glance::<WRITES>(slots, block, blocks)
    }

    /// Where blocks lie, as `run` says, for who has glanced at them.
    fn run_of(&self, glance: Glance, block: u64, blocks: u64) -> Option<Run> {
        let (extent, own) = match glance {
            Glance::In(extent, own) => (Some(extent), own),
            Glance::Zeroes => (None, false),
            Glance::Unclear => return self.run(block, block + blocks),
        };
        Some(Run {
            blocks: to_usize(blocks),
            extent,
            own,
        })
    }

    fn run(&self, block: u64, end: u64) -> Option<Run> {
        self.flat.run(&self.core.common.slots, block, end)
    }

    fn place(&self, extent: Extent, block: u64) -> Lba {
        Lba(self.core.common.data + extent.0 * PER_EXTENT + block % PER_EXTENT)
    }

    /// Reads blocks that lie in several places, or that the flat map does not know.
    async fn read_runs(&self, at: Lba, blocks: u64, into: &[Buffer]) -> Result<(), DiskError> {
        let shift = self.core.common.info.block_size.shift();
        let end = at.0 + blocks;
        let mut from = at.0;
        while from < end {
            let look = self.core.looks.begin();
            let mut parts = self.core.gather.parts();
            let mut alone = None;
            while from < end
                && alone.is_none()
                && let Some(run) = self.run(from, end)
            {
                let first = to_usize(from - at.0) << shift;
                let part = window(into, first..first + (run.blocks << shift));
                from += run.blocks as u64;
                let Some(extent) = run.extent else {
                    clear(&part);
                    continue;
                };
                let place = self.place(extent, from - run.blocks as u64);
                if !parts.begin(place, &part) {
                    alone = Some((place, part));
                }
            }
            let is_known = from == end || alone.is_some();
            let mut read = parts.end().await;
            if let Some((place, part)) = alone {
                read = read.and(self.core.disk.read(place, &part).await);
            }
            drop(parts);
            look.end();
            read?;
            if !is_known {
                Box::pin(self.core.look_up(self.flat.id, from)).await?;
            }
        }
        Ok(())
    }

    /// Writes what is not all the volume's own, or not in one place.
    async fn write_runs(
        &self,
        at: Lba,
        blocks: u64,
        from: &[Buffer],
        durability: Durability,
        _writing: Writing<'_>,
    ) -> Result<(), DiskError> {
        let shift = self.core.common.info.block_size.shift();
        let end = at.0 + blocks;
        let mut block = at.0;
        while block < end {
            let look = self.core.looks.begin();
            let own = self.run(block, end).filter(|run| run.own);
            let first = to_usize(block - at.0) << shift;
            let Some((extent, count)) = own.and_then(|run| Some((run.extent?, run.blocks))) else {
                look.end();
                let rest = window(from, first..to_usize(blocks) << shift);
                return self.write_slowly(block..end, &rest, durability).await;
            };
            let look = look.of_write(&self.flat.forsaken);
            let part = window(from, first..first + (count << shift));
            let place = self.place(extent, block);
            let written = self.core.disk.write(place, &part, durability).await;
            look.end();
            written?;
            block += count as u64;
        }
        Ok(())
    }

    /// Writes blocks of one extent of the volume's, of which the first is not its own.
    async fn write_first(
        &self,
        at: Lba,
        blocks: u64,
        from: &[Buffer],
        durability: Durability,
        _writing: Writing<'_>,
    ) -> Result<(), DiskError> {
        let blocks = at.0..at.0 + blocks;
        let begun = self.core.begin_write(&self.flat, blocks).await?;
        let place = self.place(begun.extents()[0], at.0);
        let written = self.core.disk.write(place, from, durability).await;
        let shown = begun.finish(written.is_ok()).await;
        written.and(shown.map_err(DiskError::from))
    }

    async fn write_slowly(
        &self,
        blocks: Range<u64>,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let begun = self.core.begin_write(&self.flat, blocks.clone()).await?;
        let shift = self.core.common.info.block_size.shift();
        let mut written = Ok(());
        for (extent, part) in begun.extents().into_iter().zip(parts_of(blocks.clone())) {
            let bytes = |at: u64| to_usize(at - blocks.start) << shift;
            let buffers = window(from, bytes(part.start)..bytes(part.end));
            let place = self.place(extent, part.start);
            let disk = &self.core.disk;
            written = written.and(disk.write(place, &buffers, durability).await);
        }
        let shown = begun.finish(written.is_ok()).await;
        written.and(shown.map_err(DiskError::from))
    }

    async fn clear(&self, at: Lba, blocks: u64, keep: bool) -> Result<(), DiskError> {
        if blocks == 0 {
            return Ok(());
        }
        self.check(at, blocks)?;
        loop {
            let look = self.core.looks.begin();
            let takes = self.takes_writes_to(at, blocks);
            let writing = matches!(takes, Ok(true)).then(|| self.begin_writing());
            look.end();
            takes?;
            let Some(_writing) = writing else {
                self.thawed().await;
                continue;
            };
            let range = at.0..at.0 + blocks;
            let cleared = Box::pin(self.core.clear(&self.flat, range, keep)).await;
            return cleared.map_err(DiskError::from);
        }
    }
}

impl<D: Disk> Drop for Volume<D> {
    fn drop(&mut self) {
        self.flat.counts.handles.fetch_sub(1, Ordering::SeqCst);
    }
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).expect("a transfer's bytes fit")
}

fn clear(into: &[Buffer]) {
    for part in into {
        part.slice(0..part.len()).bytes_mut().fill(0);
    }
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
        DiskInfo {
            blocks: self.flat.blocks.load(Ordering::Relaxed),
            ..self.core.common.info
        }
    }

    fn is_limited(&self) -> bool {
        self.flat.qos.is_limited()
    }

    fn admit(&self, cost: Cost, at: Time) -> Admission {
        self.flat.qos.admit(cost, at)
    }

    fn limits_generation(&self) -> u64 {
        self.flat.qos.generation()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let blocks = self.check_buffers(at, into)?;
        let look = self.core.looks.begin();
        let glance = self.glance::<false>(at.0, blocks);
        if let Glance::In(extent, _) = glance {
            let read = self.core.disk.read(self.place(extent, at.0), into).await;
            look.end();
            return read;
        }
        match self.run_of(glance, at.0, blocks) {
            Some(run) if run.blocks as u64 == blocks => {
                let read = match run.extent {
                    Some(extent) => self.core.disk.read(self.place(extent, at.0), into).await,
                    None => {
                        clear(into);
                        Ok(())
                    }
                };
                look.end();
                read
            }
            _ => {
                look.end();
                self.read_runs(at, blocks, into).await
            }
        }
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let blocks = self.check_buffers(at, from)?;
        loop {
            let look = self.core.looks.begin();
            if !self.is_ready_for(at, blocks) {
                look.end();
                if !self.takes_writes_to(at, blocks)? {
                    self.thawed().await;
                }
                continue;
            }
            let glance = self.glance::<true>(at.0, blocks);
            if let Glance::In(extent, true) = glance {
                let look = look.of_write(&self.flat.forsaken);
                let place = self.place(extent, at.0);
                let written = self.core.disk.write(place, from, durability).await;
                look.end();
                return written;
            }
            let run = self.run_of(glance, at.0, blocks);
            let is_first =
                at.0 % PER_EXTENT + blocks <= PER_EXTENT && run.is_none_or(|run| !run.own);
            if let Some(run) = run
                && run.own
                && run.blocks as u64 == blocks
                && let Some(extent) = run.extent
            {
                let look = look.of_write(&self.flat.forsaken);
                let place = self.place(extent, at.0);
                let written = self.core.disk.write(place, from, durability).await;
                look.end();
                return written;
            }
            let writing = self.begin_writing();
            look.end();
            if is_first {
                let lies = run.map(|run| run.extent);
                let blocks = at.0..at.0 + blocks;
                if let Some(mut first) = self.core.try_begin(self.flat.id, &blocks, lies) {
                    let place = self.place(first.extent(), at.0);
                    let written = self.core.disk.write(place, from, durability).await;
                    // Every future within another one would be one more to go through.
                    let shown = match written.is_ok().then(|| first.record()) {
                        Some(Some(Ok(Some(committed)))) => committed.await,
                        Some(Some(Err(error))) => Err(error),
                        Some(None) => Box::pin(first.record_later()).await,
                        Some(Some(Ok(None))) | None => Ok(()),
                    };
                    first.end();
                    drop(writing);
                    return written.and(shown.map_err(DiskError::from));
                }
            }
            // On the heap, so that the fast path's future stays small.
            return match is_first {
                true => Box::pin(self.write_first(at, blocks, from, durability, writing)).await,
                false => Box::pin(self.write_runs(at, blocks, from, durability, writing)).await,
            };
        }
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.core.disk.flush().await
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
    /// Makes blocks of a volume zeroes, in its turn, for whoever asks.
    pub(crate) async fn clear(
        self: &Rc<Self>,
        volume: u32,
        blocks: Range<u64>,
        keep: bool,
    ) -> Result<(), PoolError> {
        let _held = self.hold(volume, blocks.clone()).await;
        self.check_end(volume, &blocks)?;
        let unmapped = self.unmap(volume, blocks.start, blocks.end, keep).await;
        // A write in place that began before may still land: only when it has ended may the
        // blocks' places be filled and shown again. This holds for each part that was unmapped.
        self.grace().await;
        unmapped
    }

    /// Nothing beyond a volume's end may reach the journal.
    pub(crate) fn check_end(&self, volume: u32, blocks: &Range<u64>) -> Result<(), PoolError> {
        match blocks.end <= self.state.borrow().volume(volume)?.blocks {
            true => Ok(()),
            false => Err(PoolError::Disk(DiskError::OutOfRange)),
        }
    }

    /// Where blocks from `block` on lie, up to `end` and within one extent.
    pub(crate) async fn run(&self, volume: u32, block: u64, end: u64) -> Result<Run, PoolError> {
        let mut needs = self.needs();
        loop {
            let found = {
                let state = self.state.borrow();
                state.run(volume, block / PER_EXTENT, within_extent(block, end))?
            };
            match found {
                Ok(run) => return Ok(run),
                Err(missing) => Box::pin(needs.load(missing)).await?,
            }
        }
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

    /// Makes blocks `first` to `end` read as zeroes, and gives their space back. Where it fails, whatever
    /// it has begun has taken effect.
    pub(crate) async fn unmap(
        &self,
        volume: u32,
        first: u64,
        end: u64,
        keep: bool,
    ) -> Result<(), PoolError> {
        let mut last: Option<Ticket> = None;
        let begun = self.begin_unmap(volume, first..end, keep, &mut last).await;
        let ended = match last {
            Some(ticket) => self.committed(ticket).await,
            None => Ok(()),
        };
        begun.and(ended)
    }

    async fn begin_unmap(
        &self,
        volume: u32,
        all: Range<u64>,
        keep: bool,
        last: &mut Option<Ticket>,
    ) -> Result<(), PoolError> {
        let (first, end) = (all.start, all.end);
        let per_leaf = LEAF_EXTENTS as u64 * PER_EXTENT;
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
            *last = Some(self.append_unmap(&record).await?);
            leaf = next + 1;
        }
        Ok(())
    }

    /// Appends a record that gives space back. Extents that writes are on their way to, and that are reserved for
    /// them as well, are no reason to refuse it: it waits for these.
    async fn append_unmap(&self, record: &Record) -> Result<Ticket, PoolError> {
        loop {
            self.prepare(record).await?;
            let appended = self.append(|| std::iter::once(record.clone())).await;
            let is_refused = matches!(appended, Err(PoolError::NoSpace));
            let may_wait = || !self.is_abandoned() && self.state.borrow().has_space_soon(record);
            if !is_refused || !may_wait() {
                return appended;
            }
            self.space_may_change().await?;
        }
    }
}

/// Blocks `block` to `end`, as far as they lie in one extent, counted from its start.
fn within_extent(block: u64, end: u64) -> Range<usize> {
    let start = block % PER_EXTENT;
    to_usize(start)..to_usize((start + end - block).min(PER_EXTENT))
}
