//! The disks of the tests: memory, nothing, or memory with faults; each notes what it is asked.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use corebay_core::{
    buffer::Buffer,
    disk::{
        Admission, Cost, Direction, Disk, DiskError, DiskInfo, Durability, Space,
        fault::{FaultDisk, Faults},
        null::{NullDisk, NullReads},
        ram::{RamDisk, RamMedium},
    },
    reactor::Reactor,
    units::{BlockSize, Lba, Time},
};

/// What a disk was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read(u64, u64),
    Write(u64, u64, Durability),
    Flush,
    Deallocate(u64, u64),
    WriteZeroes(u64, u64, Space, Durability),
    WriteUncorrectable(u64, u64),
}

/// What the disks of a core were asked, while it is noted at all.
pub type Calls = Rc<RefCell<Option<Vec<Call>>>>;

#[derive(Clone)]
pub enum Kind {
    Ram(Arc<RamMedium>),
    Null(BlockSize, u64),
    /// What no core can open.
    Broken(BlockSize, u64),
    /// Memory, with the faults of the core that opens it.
    Fault(Arc<RamMedium>),
    /// Memory, with limits.
    Limited(Arc<RamMedium>, Arc<Limit>),
}

/// Limits: so many operations a second, in each direction, without a burst; none where that is 0.
#[derive(Default)]
pub struct Limit {
    pub per_second: AtomicU64,
    pub generation: AtomicU64,
    /// When what was admitted would be done.
    done: [AtomicU64; 2],
}

#[derive(Clone)]
pub struct Medium {
    pub kind: Kind,
    /// It says that it has a volatile cache.
    pub volatile_cache: bool,
}

enum Inner {
    Ram(RamDisk),
    Null(NullDisk),
    Fault(FaultDisk<RamDisk>),
}

pub struct TestDisk {
    inner: Inner,
    volatile_cache: bool,
    limit: Option<Arc<Limit>>,
    calls: Calls,
}

macro_rules! each {
    ($disk:expr, $inner:ident => $action:expr) => {
        match &$disk.inner {
            Inner::Ram($inner) => $action,
            Inner::Null($inner) => $action,
            Inner::Fault($inner) => $action,
        }
    };
}

impl TestDisk {
    pub fn open(medium: &Medium, faults: &Faults, calls: &Calls, reactor: &Reactor) -> Self {
        let inner = match &medium.kind {
            Kind::Ram(medium) | Kind::Limited(medium, _) => {
                Inner::Ram(RamDisk::new(medium.clone(), reactor))
            }
            Kind::Null(size, blocks) | Kind::Broken(size, blocks) => {
                Inner::Null(NullDisk::new(*size, *blocks, NullReads::Zeroes))
            }
            Kind::Fault(medium) => Inner::Fault(FaultDisk::new(
                RamDisk::new(medium.clone(), reactor),
                faults.clone(),
                reactor,
            )),
        };
        let limit = match &medium.kind {
            Kind::Limited(_, limit) => Some(limit.clone()),
            _ => None,
        };
        Self {
            limit,
            inner,
            volatile_cache: medium.volatile_cache,
            calls: calls.clone(),
        }
    }

    fn note(&self, call: Call) {
        if let Some(calls) = &mut *self.calls.borrow_mut() {
            calls.push(call);
        }
    }

    fn blocks_of(&self, buffers: &[Buffer]) -> u64 {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        self.info().block_size.blocks_in(bytes as u64)
    }
}

impl Medium {
    pub fn info(&self) -> DiskInfo {
        let info = match &self.kind {
            Kind::Ram(medium) | Kind::Fault(medium) | Kind::Limited(medium, _) => medium.info(),
            Kind::Null(size, blocks) | Kind::Broken(size, blocks) => {
                NullDisk::new(*size, *blocks, NullReads::Zeroes).info()
            }
        };
        DiskInfo {
            volatile_cache: self.volatile_cache,
            ..info
        }
    }
}

impl Disk for TestDisk {
    fn info(&self) -> DiskInfo {
        let info = each!(self, inner => inner.info());
        DiskInfo {
            volatile_cache: self.volatile_cache,
            ..info
        }
    }

    fn is_limited(&self) -> bool {
        let limit = self.limit.as_ref();
        limit.is_some_and(|limit| limit.per_second.load(Ordering::Relaxed) > 0)
    }

    fn admit(&self, cost: Cost, at: Time) -> Admission {
        let Some(limit) = self.limit.as_ref().filter(|_| self.is_limited()) else {
            return Admission::default();
        };
        let done = &limit.done[usize::from(cost.direction == Direction::Write)];
        let from = done.load(Ordering::Relaxed).max(at.0);
        let each = 1_000_000_000 / limit.per_second.load(Ordering::Relaxed);
        done.store(from + each * cost.operations, Ordering::Relaxed);
        Admission {
            from: Time(from),
            generation: self.limits_generation(),
        }
    }

    fn limits_generation(&self) -> u64 {
        let limit = self.limit.as_ref();
        limit.map_or(0, |limit| limit.generation.load(Ordering::Relaxed))
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        self.note(Call::Read(at.0, self.blocks_of(into)));
        each!(self, inner => inner.read(at, into).await)
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.note(Call::Write(at.0, self.blocks_of(from), durability));
        each!(self, inner => inner.write(at, from, durability).await)
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.note(Call::Flush);
        each!(self, inner => inner.flush().await)
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.note(Call::Deallocate(at.0, blocks));
        each!(self, inner => inner.deallocate(at, blocks).await)
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.note(Call::WriteZeroes(at.0, blocks, space, durability));
        each!(self, inner => inner.write_zeroes(at, blocks, space, durability).await)
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.note(Call::WriteUncorrectable(at.0, blocks));
        each!(self, inner => inner.write_uncorrectable(at, blocks).await)
    }
}
