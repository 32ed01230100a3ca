//! Simulated members that lose their power together, after any change of any block.
//!
//! Invariants:
//! - One block is atomic. What is durable survives; of what is not, each block by itself keeps any of
//!   its versions, or none; where media tear, it may also be lost until it is written again.
//! - The blocks of one write change one by one, in any order, and operations overtake each other.
//! - The same seed gives the same run.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    task::Poll,
};

use corebay_core::{
    buffer::{Buffer, Direction},
    disk::{Disk, DiskError, DiskInfo, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};

/// A block's content; `None` is lost.
type Content = Option<Rc<[u8]>>;

/// The power of all members of a test, and what goes wrong.
pub struct Power {
    rng: RefCell<Rng>,
    changes: Cell<u64>,
    cut_at: Cell<u64>,
    /// A block that is being written as the power fails may be lost.
    pub tears: bool,
}

impl Power {
    pub fn new(seed: u64, tears: bool) -> Rc<Self> {
        Rc::new(Self {
            rng: RefCell::new(Rng::from_seed(seed)),
            changes: Cell::new(0),
            cut_at: Cell::new(u64::MAX),
            tears,
        })
    }

    /// The power fails after so many more changes.
    pub fn cut_after(&self, changes: u64) {
        self.cut_at.set(self.changes.get() + changes);
    }

    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    pub fn is_off(&self) -> bool {
        self.changes.get() >= self.cut_at.get()
    }

    /// The power is back.
    pub fn restore(&self) {
        self.cut_at.set(u64::MAX);
    }

    fn below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }
}

/// One member's medium.
#[derive(Clone)]
pub struct Medium {
    info: DiskInfo,
    durable: BTreeMap<u64, Content>,
    cached: BTreeMap<u64, Vec<(u64, Content)>>,
    order: u64,
    /// Blocks that cannot be read until they are written.
    pub bad: BTreeSet<u64>,
    /// Blocks whose next read fails, and no other one.
    pub bad_once: BTreeSet<u64>,
    /// Every operation fails from now on.
    pub gone: bool,
    /// The same once this block was written.
    pub gone_with: Option<u64>,
    /// The same from a write of this block on, which changes nothing.
    pub gone_before: Option<u64>,
    /// Blocks are not made unreadable, for this reason.
    pub refuses_to_spoil: Option<DiskError>,
}

impl Medium {
    pub fn new(block_size: BlockSize, bytes: u64, volatile_cache: bool) -> Self {
        Self {
            info: DiskInfo {
                block_size,
                blocks: block_size.blocks_in(bytes),
                volatile_cache,
                deallocate_granularity: Some(1),
                write_uncorrectable: false,
                atomic_write_bytes: 4096,
            },
            durable: BTreeMap::new(),
            cached: BTreeMap::new(),
            order: 0,
            bad: BTreeSet::new(),
            bad_once: BTreeSet::new(),
            gone: false,
            gone_with: None,
            gone_before: None,
            refuses_to_spoil: None,
        }
    }

    /// The medium has so many bytes from now on.
    pub fn enlarge(&mut self, bytes: u64) {
        self.info.blocks = self.info.block_size.blocks_in(bytes);
    }

    pub fn last_block(&self) -> u64 {
        self.info.blocks - 1
    }

    /// Nothing was ever written to a block.
    pub fn is_blank(&self, at: u64) -> bool {
        !self.durable.contains_key(&at) && !self.cached.contains_key(&at)
    }

    /// Somebody has left something in a block.
    pub fn scribble(&mut self, at: u64) {
        let bytes = vec![0x5a; self.info.block_size.bytes()];
        self.durable.insert(at, Some(bytes.into()));
    }

    fn newest(&self, at: u64) -> Content {
        if let Some((_, content)) = self.cached.get(&at).and_then(|versions| versions.last()) {
            return content.clone();
        }
        let zeroes = || Some(vec![0; self.info.block_size.bytes()].into());
        self.durable.get(&at).cloned().unwrap_or_else(zeroes)
    }

    fn put(&mut self, at: u64, content: Content, durable: bool) {
        self.order += 1;
        self.gone |= self.gone_with == Some(at);
        self.bad.remove(&at);
        if durable || !self.info.volatile_cache {
            self.cached.remove(&at);
            self.durable.insert(at, content);
        } else {
            let entry = (self.order, content);
            self.cached.entry(at).or_default().push(entry);
        }
    }

    fn flush(&mut self, order: u64) {
        for (at, versions) in &mut self.cached {
            let later = versions.partition_point(|(version, _)| *version <= order);
            let rest = versions.split_off(later);
            if let Some((_, content)) = std::mem::replace(versions, rest).pop() {
                self.durable.insert(*at, content);
            }
        }
        self.cached.retain(|_, versions| !versions.is_empty());
    }

    /// The power has failed.
    pub fn lose_cache(&mut self, power: &Power) {
        for (at, mut versions) in std::mem::take(&mut self.cached) {
            if power.tears && power.below(8) == 0 {
                self.durable.insert(at, None);
                continue;
            }
            let chosen = power.below(versions.len() as u64 + 1) as usize;
            if chosen < versions.len() {
                self.durable.insert(at, versions.swap_remove(chosen).1);
            }
        }
    }

    /// Whether blocks can be made unreadable.
    pub fn let_spoil(&mut self, works: bool) {
        self.info.write_uncorrectable = works;
    }

    /// A crash has struck amid a write of a block: it is lost until it is written, durably.
    pub fn tear(&mut self, at: u64) {
        self.cached.remove(&at);
        self.durable.insert(at, None);
    }

    /// A crash has struck before these blocks were written: they are what they were in an earlier copy.
    pub fn put_back(&mut self, blocks: std::ops::Range<u64>, before: &Self) {
        for at in blocks {
            self.cached.remove(&at);
            self.durable.insert(at, before.newest(at));
        }
    }

    /// The bytes of a block, changed behind everybody's back.
    pub fn corrupt(&mut self, at: u64) {
        let flipped: Vec<u8> = match self.newest(at) {
            Some(bytes) => bytes.iter().map(|byte| byte ^ 0x5a).collect(),
            None => return,
        };
        self.cached.remove(&at);
        self.durable.insert(at, Some(flipped.into()));
    }

    /// Everything is zeroes again: another disk.
    pub fn wipe(&mut self) {
        self.durable.clear();
        self.cached.clear();
        self.bad.clear();
        self.gone = false;
        self.gone_with = None;
        self.gone_before = None;
    }
}

/// A way to a medium.
pub struct PowerDisk {
    pub medium: Rc<RefCell<Medium>>,
    pub power: Rc<Power>,
}

impl PowerDisk {
    /// Lets others go first, some of the time; forever once the power is off.
    async fn pause(&self) -> Result<(), DiskError> {
        let mut left = self.power.below(4);
        std::future::poll_fn(|context| {
            if self.power.is_off() {
                return Poll::Pending;
            }
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        match self.medium.borrow().gone {
            true => Err(DiskError::Gone),
            false => Ok(()),
        }
    }

    fn check(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        match self.info().contains(at, blocks) {
            true => Ok(()),
            false => Err(DiskError::OutOfRange),
        }
    }

    /// Changes blocks in any order, until the power fails; which then strikes amid a block.
    async fn change(&self, mut changes: Vec<(u64, Content)>, durable: bool) {
        while !changes.is_empty() {
            let next = self.power.below(changes.len() as u64) as usize;
            let (at, content) = changes.swap_remove(next);
            if self.power.is_off() {
                std::future::pending::<()>().await;
            }
            self.power.changes.set(self.power.changes.get() + 1);
            let mut medium = self.medium.borrow_mut();
            if self.power.is_off() {
                match self.power.below(3) {
                    0 if self.power.tears => medium.put(at, None, true),
                    1 => medium.put(at, content, durable),
                    _ => {}
                }
            } else {
                medium.put(at, content, durable);
            }
        }
        if self.power.is_off() {
            std::future::pending::<()>().await;
        }
    }

    fn blocks_of(&self, buffers: &[Buffer]) -> u64 {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        self.info().block_size.blocks_in(bytes as u64)
    }
}

impl Disk for PowerDisk {
    fn info(&self) -> DiskInfo {
        self.medium.borrow().info
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        self.check(at, self.blocks_of(into))?;
        let pins: Vec<_> = into
            .iter()
            .map(|buffer| buffer.pin(Direction::FromDevice))
            .collect();
        let paused = self.pause().await;
        drop(pins);
        paused?;
        let blocks = at.0..at.0 + self.blocks_of(into);
        let mut medium = self.medium.borrow_mut();
        let failing = medium.bad_once.range(blocks).next().copied();
        if let Some(once) = failing {
            medium.bad_once.remove(&once);
            return Err(DiskError::UnrecoveredRead);
        }
        let mut lba = at.0;
        for buffer in into {
            let mut buffer = buffer.clone();
            let mut bytes = buffer.bytes_mut();
            for block in bytes.chunks_mut(medium.info.block_size.bytes()) {
                match medium.newest(lba) {
                    Some(content) if !medium.bad.contains(&lba) => block.copy_from_slice(&content),
                    _ => return Err(DiskError::UnrecoveredRead),
                }
                lba += 1;
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
        self.check(at, self.blocks_of(from))?;
        let pins: Vec<_> = from
            .iter()
            .map(|buffer| buffer.pin(Direction::ToDevice))
            .collect();
        self.pause().await?;
        let blocks = at.0..at.0 + self.blocks_of(from);
        let goes = self.medium.borrow().gone_before;
        if goes.is_some_and(|block| blocks.contains(&block)) {
            self.medium.borrow_mut().gone = true;
            return Err(DiskError::Gone);
        }
        let size = self.info().block_size.bytes();
        let mut changes = Vec::new();
        let mut lba = at.0;
        for buffer in from {
            for block in buffer.bytes().chunks(size) {
                changes.push((lba, Some(block.into())));
                lba += 1;
            }
        }
        drop(pins);
        self.change(changes, durability == Durability::Durable)
            .await;
        self.pause().await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        let order = self.medium.borrow().order;
        self.pause().await?;
        self.power.changes.set(self.power.changes.get() + 1);
        if self.power.is_off() {
            std::future::pending::<()>().await;
        }
        self.medium.borrow_mut().flush(order);
        Ok(())
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.write_zeroes(at, blocks, Space::Deallocate, Durability::Cached)
            .await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        _space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.check(at, blocks)?;
        self.pause().await?;
        let durable = durability == Durability::Durable;
        if durable && blocks > 4096 {
            // A whole medium at once: only arrays being made do that.
            let mut medium = self.medium.borrow_mut();
            medium
                .durable
                .retain(|lba, _| !(at.0..at.0 + blocks).contains(lba));
            medium.cached.clear();
            return Ok(());
        }
        let zeroes: Rc<[u8]> = vec![0; self.info().block_size.bytes()].into();
        let changes = (at.0..at.0 + blocks).map(|lba| (lba, Some(zeroes.clone())));
        self.change(changes.collect(), durable).await;
        Ok(())
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        if !self.info().write_uncorrectable {
            return Err(DiskError::Unsupported);
        }
        self.check(at, blocks)?;
        self.pause().await?;
        if let Some(why) = self.medium.borrow().refuses_to_spoil {
            return Err(why);
        }
        let changes = (at.0..at.0 + blocks).map(|lba| (lba, None));
        self.change(changes.collect(), false).await;
        self.pause().await
    }
}
