//! An array over simulated members, the model of what its blocks may hold, and the work on it.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
};

use corebay_core::{
    arena::Arena,
    buffer::BufferPool,
    disk::{Disk, DiskError, Durability, Space},
    reactor::Reactor,
    rng::Rng,
    units::{BlockSize, CoreId, Lba, Time},
};
use corebay_raid::{
    array::{Array, Assembled},
    assemble::{AssembleError, Report, assemble},
    create::create,
    geometry::{Geometry, Wish},
};

use super::power::{Medium, Power, PowerDisk};

/// What block `lba` holds once write `tag` has written it; 0 is never written.
fn fill(block: &mut [u8], lba: u64, tag: u64) {
    block.fill(0);
    if tag > 0 {
        for (place, word) in block.chunks_exact_mut(8).enumerate() {
            let value = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (lba << 20) ^ place as u64;
            word.copy_from_slice(&value.to_le_bytes());
        }
        block[..8].copy_from_slice(&tag.to_le_bytes());
    }
}

fn tag_of(block: &[u8], lba: u64) -> Result<u64, String> {
    let tag = u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
    let mut expected = vec![0; block.len()];
    fill(&mut expected, lba, tag);
    match block == expected {
        true => Ok(tag),
        false => Err(format!("block {lba} is of no write (it begins with {tag})")),
    }
}

/// What a block may hold: the versions since the last that is sure to survive, and one in flight.
#[derive(Clone, Debug)]
struct Block {
    versions: Vec<u64>,
    in_flight: Option<u64>,
}

/// What blocks may hold, by number.
#[derive(Clone)]
pub struct Model {
    blocks: Vec<Block>,
    next_tag: u64,
}

impl Model {
    pub fn new(blocks: u64) -> Self {
        let block = Block {
            versions: vec![0],
            in_flight: None,
        };
        Self {
            blocks: vec![block; blocks as usize],
            next_tag: 1,
        }
    }
}

/// One start of the machine.
pub struct Bench {
    pub reactor: Reactor,
    pub pool: BufferPool,
    pub power: Rc<Power>,
    now: Cell<u64>,
}

impl Bench {
    pub fn new(power: &Rc<Power>) -> Self {
        let mut arena = Arena::lazy(8 << 20).expect("memory");
        Self {
            reactor: Reactor::new(CoreId(0), 64, Time(0)),
            pool: BufferPool::new(arena.take(4 << 20).expect("memory"), 64),
            power: power.clone(),
            now: Cell::new(0),
        }
    }

    /// Runs a task to its end; nothing if the power failed before.
    pub fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Option<T> {
        let value = Rc::new(RefCell::new(None));
        let into = value.clone();
        let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let done = task.await;
            *into.borrow_mut() = Some(done);
        });
        assert!(self.reactor.spawn(task).is_ok(), "a free slot");
        let mut idle = 0;
        while value.borrow().is_none() {
            if self.power.is_off() {
                return None;
            }
            self.now.set(self.now.get() + 1_000);
            let work = self.reactor.poll_once(Time(self.now.get()));
            idle = if work == 0 { idle + 1 } else { 0 };
            assert!(idle < 1_000_000, "nothing moves any more");
        }
        // Not borrowed any more when `value` goes.
        value.take()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}

/// An assembled array and its report, or why there is none.
pub type Assembly = Result<(Rc<Array<PowerDisk>>, Report), AssembleError>;

/// A machine's members.
#[derive(Clone)]
pub struct Machine {
    pub media: Vec<Rc<RefCell<Medium>>>,
    pub power: Rc<Power>,
    pub geometry: Geometry,
}

impl Machine {
    /// A new array.
    pub fn new(wish: Wish, volatile: bool, power: &Rc<Power>) -> Self {
        let bytes = 4 << 20;
        let media: Vec<_> = (0..wish.roles)
            .map(|_| Medium::new(wish.block_size, bytes, volatile))
            .map(|medium| Rc::new(RefCell::new(medium)))
            .collect();
        let machine = Self {
            media,
            power: power.clone(),
            geometry: Geometry::new(wish, bytes).expect("a geometry"),
        };
        let bench = Bench::new(power);
        let (disks, pool) = (machine.disks(&machine.all()), bench.pool.clone());
        let created = bench.run(async move {
            let mut rng = Rng::from_seed(7);
            create(&disks, wish, "sim", &[], &mut rng, &pool).await
        });
        created.expect("power").expect("an array");
        machine
    }

    /// The same content in media of its own, and with power of its own.
    pub fn fork(&self, power: &Rc<Power>) -> Self {
        let copy = |medium: &Rc<RefCell<Medium>>| Rc::new(RefCell::new(medium.borrow().clone()));
        Self {
            media: self.media.iter().map(copy).collect(),
            power: power.clone(),
            geometry: self.geometry,
        }
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.media.len()).collect()
    }

    pub fn disk(&self, member: usize) -> PowerDisk {
        PowerDisk {
            medium: self.media[member].clone(),
            power: self.power.clone(),
        }
    }

    pub fn disks(&self, members: &[usize]) -> Vec<PowerDisk> {
        members.iter().map(|&member| self.disk(member)).collect()
    }

    /// Assembles what these members make; nothing if the power fails.
    pub fn assemble(&self, bench: &Bench, members: &[usize]) -> Option<Assembly> {
        let bytes = Assembled::scratch_bytes(&self.geometry);
        let mut arena = Arena::lazy(bytes).expect("memory");
        let pool = BufferPool::new(arena.take(bytes).expect("memory"), 64);
        let (disks, reactor) = (self.disks(members), bench.reactor.clone());
        let assembled = bench.run(async move { assemble(disks, None, &reactor, &pool).await })?;
        Some(assembled.map(|assembly| (Rc::new(assembly.array), assembly.report)))
    }

    /// The power has failed: caches are lost, and it comes back.
    pub fn lose_power(&self) {
        for medium in &self.media {
            medium.borrow_mut().lose_cache(&self.power);
        }
        self.power.restore();
    }
}

/// Work on a range of blocks that nobody else works on.
pub struct Worker {
    pub array: Rc<Array<PowerDisk>>,
    pub model: Rc<RefCell<Model>>,
    pub pool: BufferPool,
    pub rng: Rng,
    pub first: u64,
    pub blocks: u64,
    pub longest: u64,
}

impl Worker {
    pub async fn run(mut self, operations: usize) {
        for _ in 0..operations {
            self.step().await.expect("no operation fails");
        }
    }

    pub async fn step(&mut self) -> Result<(), DiskError> {
        let count = 1 + self.rng.below(self.longest.min(self.blocks));
        let at = self.first + self.rng.below(self.blocks - count + 1);
        match self.rng.below(20) {
            0 => self.zero(at, count).await,
            1 => self.flush().await,
            2..5 => check(&self.array, &self.model, &self.pool, at, count).await,
            _ => self.write(at, count).await,
        }
    }

    fn size(&self) -> usize {
        self.array.info().block_size.bytes()
    }

    fn begin(&self, at: u64, count: u64, tag: u64) {
        let model = &mut *self.model.borrow_mut();
        for block in &mut model.blocks[at as usize..(at + count) as usize] {
            block.in_flight = Some(tag);
        }
    }

    fn end(&self, at: u64, count: u64, tag: u64, durable: bool) {
        let model = &mut *self.model.borrow_mut();
        for block in &mut model.blocks[at as usize..(at + count) as usize] {
            block.in_flight = None;
            if durable {
                block.versions.clear();
            }
            block.versions.push(tag);
        }
    }

    pub async fn write(&mut self, at: u64, count: u64) -> Result<(), DiskError> {
        let tag = {
            let model = &mut *self.model.borrow_mut();
            model.next_tag += 1;
            model.next_tag
        };
        let size = self.size();
        let mut buffer = self.pool.allocate(count as usize * size).await;
        for (block, lba) in buffer.bytes_mut().chunks_exact_mut(size).zip(at..) {
            fill(block, lba, tag);
        }
        let durability = match self.rng.below(4) {
            0 => Durability::Durable,
            _ => Durability::Cached,
        };
        // In up to three buffers.
        let cut = self.rng.below(count) as usize * size;
        let middle = cut
            + self
                .rng
                .below((count as usize * size - cut) as u64 / size as u64) as usize
                * size;
        let parts = [0..cut, cut..middle, middle..buffer.len()];
        let from: Vec<_> = parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(|part| buffer.slice(part))
            .collect();
        self.begin(at, count, tag);
        self.array.write(Lba(at), &from, durability).await?;
        let durable = durability == Durability::Durable || !self.array.info().volatile_cache;
        self.end(at, count, tag, durable);
        Ok(())
    }

    pub async fn zero(&mut self, at: u64, count: u64) -> Result<(), DiskError> {
        self.begin(at, count, 0);
        let space = match self.rng.below(2) {
            0 => Space::Keep,
            _ => Space::Deallocate,
        };
        let durability = Durability::Cached;
        self.array
            .write_zeroes(Lba(at), count, space, durability)
            .await?;
        let durable = !self.array.info().volatile_cache;
        self.end(at, count, 0, durable);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), DiskError> {
        self.array.flush().await?;
        let model = &mut *self.model.borrow_mut();
        // Of this worker's blocks nothing changed meanwhile.
        for block in &mut model.blocks[self.first as usize..(self.first + self.blocks) as usize] {
            let last = *block.versions.last().expect("one at least");
            block.versions = vec![last];
        }
        Ok(())
    }
}

/// Reads blocks that nobody is writing and holds them against the model.
pub async fn check(
    array: &Array<PowerDisk>,
    model: &Rc<RefCell<Model>>,
    pool: &BufferPool,
    at: u64,
    count: u64,
) -> Result<(), DiskError> {
    let size = array.info().block_size.bytes();
    let buffer = pool.allocate(count as usize * size).await;
    array.read(Lba(at), std::slice::from_ref(&buffer)).await?;
    let model = model.borrow();
    for (bytes, lba) in buffer.bytes().chunks_exact(size).zip(at..) {
        let tag = tag_of(bytes, lba).unwrap_or_else(|problem| panic!("{problem}"));
        let block = &model.blocks[lba as usize];
        let last = block.versions.last().copied();
        assert!(
            block.in_flight.is_some() || Some(tag) == last,
            "block {lba} is {tag}, expected {block:?}"
        );
    }
    Ok(())
}

/// After a crash: each block is of a write that it may be of, twice the same; from now on that counts.
pub async fn settle(
    array: Rc<Array<PowerDisk>>,
    model: Rc<RefCell<Model>>,
    pool: BufferPool,
    may_be_lost: bool,
) {
    let size = array.info().block_size;
    let count = model.borrow().blocks.len() as u64;
    for lba in 0..count {
        let mut seen = Vec::new();
        for _ in 0..3 {
            let buffer = pool.allocate(size.bytes()).await;
            match array.read(Lba(lba), std::slice::from_ref(&buffer)).await {
                Ok(()) => {}
                Err(DiskError::UnrecoveredRead) if may_be_lost => continue,
                Err(error) => panic!("block {lba}: {error}"),
            }
            let tag = tag_of(&buffer.bytes(), lba).unwrap_or_else(|problem| panic!("{problem}"));
            seen.push(tag);
        }
        let block = &mut model.borrow_mut().blocks[lba as usize];
        let unsettled = block.versions.len() > 1 || block.in_flight.is_some();
        let Some(&tag) = seen.first() else {
            assert!(unsettled, "block {lba} is lost, and was durable: {block:?}");
            continue;
        };
        assert!(
            block.versions.contains(&tag) || block.in_flight == Some(tag),
            "block {lba} is {tag}, which it cannot be: {block:?}"
        );
        assert!(seen.iter().all(|other| *other == tag), "{lba}: {seen:?}");
        *block = Block {
            versions: vec![tag],
            in_flight: None,
        };
    }
}

/// A small array for simulations.
pub fn small(level: corebay_raid::geometry::Level, roles: usize, block_size: BlockSize) -> Wish {
    Wish {
        strip_bytes: 16 << 10,
        journal_slots: 16,
        ..Wish::new(level, roles, block_size)
    }
}
