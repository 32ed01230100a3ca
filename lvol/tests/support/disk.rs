//! A disk in memory whose power can be cut after any of its changes.
//!
//! Invariants:
//! - One block is atomic. Of what is not durable a cut keeps each block's versions or none, as the
//!   seed says; of a command under way each block is done or not.
//! - Every command suspends once before it has its effect, so that others come between.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, DiskInfo, Durability, Space},
    reactor::Reactor,
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::PoolDisk;

type Block = Rc<[u8]>;

/// Where the mirrored zone lies on a medium.
pub const ZONE_AT: u64 = 1 << 40;

/// A block that holds a tag; 0 is zeroes.
pub fn block(tag: u64, size: usize) -> Vec<u8> {
    tag.to_le_bytes().repeat(size / 8)
}

/// The tag that a whole block holds.
pub fn tag_of(bytes: &[u8]) -> u64 {
    let tag = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(
        bytes == block(tag, bytes.len()),
        "a block that no one wrote: {:02x?}",
        &bytes[..32]
    );
    tag
}

struct State {
    durable: BTreeMap<u64, Block>,
    cached: BTreeMap<u64, Vec<Block>>,
    rng: Rng,
    changes: u64,
    stop_after: Option<u64>,
    stopped: bool,
    /// So many writes fail, and none after them.
    fail_next: u32,
    fail_writes: bool,
    fail_reads: bool,
    deallocated: u64,
    /// Blocks that cannot be read.
    lost: std::collections::BTreeSet<u64>,
}

/// What outlives the power.
#[derive(Clone)]
pub struct Medium {
    state: Rc<RefCell<State>>,
    info: DiskInfo,
    /// As many as there are now.
    blocks: Rc<Cell<u64>>,
    /// Of the mirrored zone beside the disk.
    zone_blocks: u64,
    /// Reads that are under way, and the most that were.
    reads: Rc<Cell<(usize, usize)>>,
    /// All reads that were begun.
    all_reads: Rc<Cell<u64>>,
    held: Rc<Held>,
}

/// Reads that the disk takes, and answers when it is told to.
#[derive(Default)]
struct Held {
    /// So many of those that come.
    next: Cell<u32>,
    /// How often it was told.
    released: Cell<u64>,
}

impl Medium {
    pub fn new(block_size: BlockSize, bytes: u64, volatile_cache: bool, seed: u64) -> Self {
        let state = State {
            durable: BTreeMap::new(),
            cached: BTreeMap::new(),
            rng: Rng::from_seed(seed),
            changes: 0,
            stop_after: None,
            stopped: false,
            fail_next: 0,
            fail_writes: false,
            fail_reads: false,
            deallocated: 0,
            lost: Default::default(),
        };
        let info = DiskInfo {
            block_size,
            blocks: block_size.blocks_in(bytes),
            volatile_cache,
            deallocate_granularity: Some(1),
            write_uncorrectable: true,
            atomic_write_bytes: 1 << block_size.shift(),
        };
        Self {
            state: Rc::new(RefCell::new(state)),
            blocks: Rc::new(Cell::new(info.blocks)),
            zone_blocks: 0,
            reads: Rc::default(),
            all_reads: Rc::default(),
            held: Rc::default(),
            info,
        }
    }

    /// The same with a mirrored zone of so many bytes, which shares its power and its faults.
    pub fn with_zone(mut self, bytes: u64) -> Self {
        self.zone_blocks = self.info.block_size.blocks_in(bytes);
        self
    }

    /// The same, that frees space in units of so many blocks, or not at all.
    pub fn freeing(mut self, unit: Option<u32>) -> Self {
        self.info.deallocate_granularity = unit;
        self
    }

    /// The disk is full of what somebody left there.
    pub fn soil(&self) {
        let mut state = self.state.borrow_mut();
        let size = self.info.block_size.bytes();
        let left: Block = vec![0xee; size].into();
        let zone = ZONE_AT..ZONE_AT + self.zone_blocks;
        let all = (0..self.info.blocks).chain(zone);
        state.durable = all.map(|at| (at, left.clone())).collect();
    }

    pub fn open(&self) -> MediumDisk {
        MediumDisk {
            medium: self.clone(),
            is_zone: false,
            reactor: None,
        }
    }

    /// The disk, and the zone where there is one.
    pub fn open_all(&self) -> PoolDisk<MediumDisk> {
        let zone = (self.zone_blocks > 0).then(|| MediumDisk {
            is_zone: true,
            ..self.open()
        });
        PoolDisk {
            disk: self.open(),
            zone,
        }
    }

    /// A disk of which every command takes a turn of its core.
    pub fn open_slow(&self, reactor: &Reactor) -> MediumDisk {
        MediumDisk {
            reactor: Some(reactor.clone()),
            ..self.open()
        }
    }

    /// The most reads that were under way at a time since this was asked for.
    pub fn most_reads(&self) -> usize {
        let (now, most) = self.reads.get();
        self.reads.set((now, now));
        most
    }

    /// Reads since this was asked for.
    pub fn count_reads(&self) -> u64 {
        self.all_reads.take()
    }

    /// Who has it: this, its clones, and all disks that are open over it.
    pub fn holders(&self) -> usize {
        Rc::strong_count(&self.state)
    }

    /// The next read is not answered before it is told so.
    pub fn hold_next_read(&self) {
        self.held.next.set(1);
    }

    /// Answers the reads that are held, and holds no more.
    pub fn release_reads(&self) {
        self.held.next.set(0);
        self.held.released.set(self.held.released.get() + 1);
    }

    /// Blocks that it was told to deallocate.
    pub fn deallocated(&self) -> u64 {
        self.state.borrow().deallocated
    }

    pub fn changes(&self) -> u64 {
        self.state.borrow().changes
    }

    /// The power fails after so many changes from its start.
    pub fn stop_after(&self, changes: u64) {
        self.state.borrow_mut().stop_after = Some(changes);
    }

    pub fn has_stopped(&self) -> bool {
        self.state.borrow().stopped
    }

    /// So many writes fail from now on.
    pub fn fail_next_writes(&self, count: u32) {
        self.state.borrow_mut().fail_next = count;
    }

    pub fn fail_writes(&self, fail: bool) {
        self.state.borrow_mut().fail_writes = fail;
    }

    /// Reads are not answered, for now.
    pub fn fail_reads(&self, fail: bool) {
        self.state.borrow_mut().fail_reads = fail;
    }

    /// The power fails and comes back.
    pub fn cut_power(&self) {
        let state = &mut *self.state.borrow_mut();
        for (at, mut versions) in std::mem::take(&mut state.cached) {
            let chosen = state.rng.below(versions.len() as u64 + 1) as usize;
            if chosen < versions.len() {
                state.durable.insert(at, versions.swap_remove(chosen));
            }
        }
        state.stop_after = None;
        state.stopped = false;
    }

    /// Flips a bit in each block of the range.
    pub fn damage(&self, bytes: std::ops::Range<u64>) {
        let state = &mut *self.state.borrow_mut();
        let size = self.info.block_size.bytes() as u64;
        for at in bytes.start / size..bytes.end.div_ceil(size) {
            let zero: Block = vec![0; size as usize].into();
            let mut block = state.durable.get(&at).unwrap_or(&zero).to_vec();
            block[17] ^= 4;
            state.durable.insert(at, block.into());
        }
    }

    /// Puts other bytes on the medium, whole blocks of them.
    pub fn overwrite(&self, at: u64, bytes: &[u8]) {
        let size = self.info.block_size.bytes();
        let mut state = self.state.borrow_mut();
        for (block, at) in bytes.chunks_exact(size).zip(at / size as u64..) {
            state.durable.insert(at, block.into());
        }
    }

    /// Makes blocks unreadable until they are written.
    pub fn lose(&self, bytes: std::ops::Range<u64>) {
        let size = self.info.block_size.bytes() as u64;
        let blocks = bytes.start / size..bytes.end.div_ceil(size);
        self.state.borrow_mut().lost.extend(blocks);
    }

    /// The bytes as they are on the medium.
    pub fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        let size = self.info.block_size.bytes();
        let blocks = at / size as u64..(at + len) / size as u64;
        let state = self.state.borrow();
        blocks
            .flat_map(|at| {
                state
                    .newest(at)
                    .map_or(vec![0; size], |block| block.to_vec())
            })
            .collect()
    }

    /// Another medium with the same content.
    pub fn copy(&self, seed: u64) -> Self {
        let other = Self::new(
            self.info.block_size,
            self.info().bytes(),
            self.info.volatile_cache,
            seed,
        );
        other.state.borrow_mut().durable = self.state.borrow().durable.clone();
        Self {
            zone_blocks: self.zone_blocks,
            ..other
        }
    }

    pub fn info(&self) -> DiskInfo {
        DiskInfo {
            blocks: self.blocks.get(),
            ..self.info
        }
    }

    /// The disk has so many bytes now.
    pub fn resize(&self, bytes: u64) {
        self.blocks.set(self.info.block_size.blocks_in(bytes));
    }
}

impl Held {
    async fn wait(&self) {
        let Some(left) = self.next.get().checked_sub(1) else {
            return;
        };
        self.next.set(left);
        let before = self.released.get();
        while self.released.get() == before {
            pause().await;
        }
    }
}

impl State {
    fn newest(&self, at: u64) -> Option<&Block> {
        let cached = self.cached.get(&at).and_then(|versions| versions.last());
        cached.or_else(|| self.durable.get(&at))
    }

    /// A change is about to be made; false where the power is gone.
    fn may_change(&mut self) -> bool {
        if self.stop_after.is_some_and(|most| self.changes >= most) {
            // Of the command under way, each block that is left is done or not.
            let torn = !self.stopped;
            self.stopped = true;
            return torn && self.rng.once_in(2);
        }
        self.changes += 1;
        !self.stopped
    }

    fn put(&mut self, at: u64, block: Block, durable: bool) {
        self.lost.remove(&at);
        if durable {
            self.cached.remove(&at);
            self.durable.insert(at, block);
        } else {
            self.cached.entry(at).or_default().push(block);
        }
    }
}

/// A way to a medium's disk, or to the zone beside it.
pub struct MediumDisk {
    medium: Medium,
    is_zone: bool,
    reactor: Option<Reactor>,
}

impl MediumDisk {
    /// Where a block lies on the medium, and the end of what may be asked for.
    fn place(&self, at: Lba) -> (u64, u64) {
        match self.is_zone {
            true => (ZONE_AT + at.0, ZONE_AT + self.medium.zone_blocks),
            false => (at.0, self.medium.blocks.get()),
        }
    }

    async fn pause(&self) {
        match &self.reactor {
            Some(reactor) => reactor.sleep(std::time::Duration::from_nanos(1)).await,
            None => pause().await,
        }
    }
}

/// A read under way.
struct Reading<'a>(&'a Cell<(usize, usize)>);

impl<'a> Reading<'a> {
    fn begin(reads: &'a Cell<(usize, usize)>) -> Self {
        let (now, most) = reads.get();
        reads.set((now + 1, most.max(now + 1)));
        Self(reads)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let (now, most) = self.0.get();
        self.0.set((now - 1, most));
    }
}

async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl Disk for MediumDisk {
    fn info(&self) -> DiskInfo {
        let info = self.medium.info();
        match self.is_zone {
            true => DiskInfo {
                blocks: self.medium.zone_blocks,
                ..info
            },
            false => info,
        }
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let _reading = Reading::begin(&self.medium.reads);
        let all = &self.medium.all_reads;
        all.set(all.get() + 1);
        self.pause().await;
        self.medium.held.wait().await;
        let size = self.info().block_size.bytes();
        let (mut at, end) = self.place(at);
        for buffer in into {
            let mut window = buffer.slice(0..buffer.len());
            let mut bytes = window.bytes_mut();
            let state = self.medium.state.borrow();
            if state.fail_reads {
                return Err(DiskError::TimedOut);
            }
            for place in bytes.chunks_exact_mut(size) {
                if at >= end {
                    return Err(DiskError::OutOfRange);
                }
                if state.lost.contains(&at) {
                    return Err(DiskError::UnrecoveredRead);
                }
                match state.newest(at) {
                    Some(block) => place.copy_from_slice(block),
                    None => place.fill(0),
                }
                at += 1;
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.pause().await;
        let state = &mut *self.medium.state.borrow_mut();
        let fails_now = state.fail_next > 0;
        state.fail_next -= u32::from(fails_now);
        if state.fail_writes || fails_now {
            return Err(DiskError::WriteFault);
        }
        let size = self.info().block_size.bytes();
        let durable = durability == Durability::Durable || !self.info().volatile_cache;
        let was_stopped = state.stopped;
        let (mut at, end) = self.place(at);
        for buffer in from {
            for bytes in buffer.bytes().chunks_exact(size) {
                assert!(at < end, "a write beyond the disk");
                let may =
                    state.may_change() || (!was_stopped && state.stopped && state.rng.once_in(2));
                if may && !was_stopped {
                    state.put(at, bytes.into(), durable);
                }
                at += 1;
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        // What had completed when it began.
        let covered: Vec<(u64, usize)> = {
            let state = self.medium.state.borrow();
            state
                .cached
                .iter()
                .map(|(at, versions)| (*at, versions.len()))
                .collect()
        };
        self.pause().await;
        let state = &mut *self.medium.state.borrow_mut();
        if !state.may_change() {
            return Ok(());
        }
        for (at, count) in covered {
            let Some(versions) = state.cached.get_mut(&at) else {
                continue;
            };
            let later = versions.split_off(count.min(versions.len()));
            if let Some(block) = versions.pop() {
                state.durable.insert(at, block);
            }
            *versions = later;
            if versions.is_empty() {
                state.cached.remove(&at);
            }
        }
        Ok(())
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        pause().await;
        let state = &mut *self.medium.state.borrow_mut();
        if state.fail_writes {
            return Err(DiskError::WriteFault);
        }
        let was_stopped = state.stopped;
        let may = state.may_change();
        let zeroes: Block = vec![0; self.info().block_size.bytes()].into();
        let durable = !self.info().volatile_cache;
        assert!(!self.is_zone, "nothing of a zone is deallocated");
        assert!(at.0 + blocks <= self.info().blocks, "beyond the disk");
        let unit = self.info().deallocate_granularity.map_or(1, u64::from);
        let whole = at.0.is_multiple_of(unit) && blocks.is_multiple_of(unit);
        assert!(whole, "parts of units are told");
        for at in at.0..at.0 + blocks {
            // Amid a loss of power each block is done or not.
            if may && !was_stopped && (!state.stopped || state.rng.once_in(2)) {
                state.put(at, zeroes.clone(), durable);
            }
        }
        state.deallocated += blocks;
        Ok(())
    }

    async fn write_zeroes(&self, _: Lba, _: u64, _: Space, _: Durability) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }

    async fn write_uncorrectable(&self, _at: Lba, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
}
