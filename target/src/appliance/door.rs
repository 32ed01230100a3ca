//! One core's way to an array and to its mirrored zone, by whoever uses it: it can be shut while the array changes its shape, and
//! for good.
//!
//! Invariants:
//! - While it is shut nothing goes on in the array by it: who comes waits, who is within is waited for.
//! - Once it is closed everybody finds that the disk is gone, and the array's memory can be taken back.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use corebay_core::{
    arena::Region,
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError, DiskInfo, Durability, Space},
    sync::FifoWait,
    units::Lba,
};
use corebay_raid::{array::Array, zone::Zone};
use corebay_target::limits::TASKS_PER_CORE;

use super::environment::PlainDisk;

type CoreArray = Rc<Array<PlainDisk>>;

/// See the module.
pub struct Door {
    array: RefCell<Option<CoreArray>>,
    /// The array's scratch memory on this core.
    scratch: RefCell<Option<BufferPool>>,
    info: Cell<DiskInfo>,
    /// Of the mirrored zone, where the array has one.
    zone_info: Cell<Option<DiskInfo>>,
    shut: Cell<bool>,
    within: Cell<usize>,
    waiting: FifoWait,
    /// What is to be done once nobody is within.
    empty: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl Door {
    /// An open door to an array that uses `scratch`.
    pub fn new(array: Array<PlainDisk>, scratch: BufferPool) -> Self {
        Self {
            info: Cell::new(array.info()),
            zone_info: Cell::new(array.zone().map(|zone| zone.info())),
            array: RefCell::new(Some(Rc::new(array))),
            scratch: RefCell::new(Some(scratch)),
            shut: Cell::new(false),
            within: Cell::new(0),
            waiting: FifoWait::new(TASKS_PER_CORE),
            empty: RefCell::default(),
        }
    }

    /// The array, unless the door is closed.
    pub fn array(&self) -> Option<CoreArray> {
        self.array.borrow().clone()
    }

    /// Lets nobody in from now on, and does `empty` once nobody is within.
    pub fn shut(&self, empty: impl FnOnce() + 'static) {
        self.shut.set(true);
        match self.within.get() {
            0 => empty(),
            _ => *self.empty.borrow_mut() = Some(Box::new(empty)),
        }
    }

    /// Lets go of the array behind a shut door.
    pub fn take_out(&self) {
        drop(self.array.take());
    }

    /// The memory of the array behind the door.
    pub fn scratch(&self) -> Option<BufferPool> {
        self.scratch.borrow().clone()
    }

    /// This array is behind the door from now on.
    pub fn put(&self, array: Array<PlainDisk>) {
        self.info.set(array.info());
        self.zone_info.set(array.zone().map(|zone| zone.info()));
        *self.array.borrow_mut() = Some(Rc::new(array));
    }

    /// Opens the door again, to what is behind it.
    pub fn reopen(&self) {
        self.shut.set(false);
        self.waiting.notify();
    }

    /// Closes a shut door for good; the array's memory, or what becomes of it once nobody holds any of it.
    pub fn close(&self) -> Option<Result<Region, BufferPool>> {
        self.take_out();
        let scratch = self.scratch.take();
        // Who waits is told that there is nothing behind it.
        self.reopen();
        Some(scratch?.reclaim())
    }

    async fn enter(&self) -> Result<Pass<'_>, DiskError> {
        if self.shut.get() {
            let is_open = || (!self.shut.get()).then_some(());
            self.waiting.wait_for(is_open).await;
        }
        let array = self.array().ok_or(DiskError::Gone)?;
        self.within.set(self.within.get() + 1);
        Ok(Pass { door: self, array })
    }
}

/// One core's way to the mirrored zone of an array, by the same door.
pub struct ZoneDoor {
    door: Rc<Door>,
    info: DiskInfo,
}

impl ZoneDoor {
    /// The way there, if the array has a zone.
    pub fn new(door: &Rc<Door>) -> Option<Self> {
        let (door, info) = (door.clone(), door.zone_info.get()?);
        Some(Self { door, info })
    }
}

/// Somebody is within.
struct Pass<'a> {
    door: &'a Door,
    array: CoreArray,
}

impl Pass<'_> {
    fn zone(&self) -> Result<Zone<PlainDisk>, DiskError> {
        self.array.zone().ok_or(DiskError::Gone)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let within = self.door.within.get() - 1;
        self.door.within.set(within);
        if within == 0
            && self.door.shut.get()
            && let Some(empty) = self.door.empty.take()
        {
            empty();
        }
    }
}

impl Disk for Door {
    fn info(&self) -> DiskInfo {
        self.info.get()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        self.enter().await?.array.read(at, into).await
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.enter().await?.array.write(at, from, durability).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.enter().await?.array.flush().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.enter().await?.array.deallocate(at, blocks).await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let pass = self.enter().await?;
        pass.array.write_zeroes(at, blocks, space, durability).await
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let pass = self.enter().await?;
        pass.array.write_uncorrectable(at, blocks).await
    }
}

impl Disk for ZoneDoor {
    fn info(&self) -> DiskInfo {
        self.info
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let pass = self.door.enter().await?;
        pass.zone()?.read(at, into).await
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let pass = self.door.enter().await?;
        pass.zone()?.write(at, from, durability).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        let pass = self.door.enter().await?;
        pass.zone()?.flush().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let pass = self.door.enter().await?;
        pass.zone()?.deallocate(at, blocks).await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let pass = self.door.enter().await?;
        let zone = pass.zone()?;
        zone.write_zeroes(at, blocks, space, durability).await
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let pass = self.door.enter().await?;
        pass.zone()?.write_uncorrectable(at, blocks).await
    }
}
