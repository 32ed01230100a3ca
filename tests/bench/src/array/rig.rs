//! Owns what is measured: a core, arrays over members of several kinds, and the load on them.

use std::{cell::Cell, cell::RefCell, future::Future, pin::Pin, rc::Rc, time::Duration};

use anyhow::{Context, Result, anyhow};
use corebay_core::{
    arena::{Arena, Hugepages},
    buffer::{Buffer, BufferPool},
    disk::{
        Disk, DiskError, DiskInfo, Durability, Space,
        null::{NullDisk, NullReads},
        ram::{RamDisk, RamMedium},
    },
    reactor::{MachineClock, Reactor},
    rng::Rng,
    units::{BlockSize, CoreId, Lba},
};
use corebay_raid::{
    array::{Array, Assembled},
    assemble::assemble,
    create::create,
    geometry::{Geometry, Wish, ZONE_OFFSET},
};

use crate::instructions::{Counter, cpu_time};

/// The blocks of everything measured.
pub const SIZE: BlockSize = BlockSize::B4096;

/// Requests that a worker makes before others have a turn.
const REQUESTS_PER_TURN: u64 = 8;

/// What members keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but superblocks and marks.
    Null,
    /// Everything, in memory.
    Ram,
    /// The same, and each command takes so long.
    Slow(Duration),
}

/// A member.
pub struct Member {
    kind: Kind,
    ram: RamDisk,
    null: NullDisk,
    reactor: Reactor,
}

impl Member {
    /// A member of so many bytes.
    pub fn new(kind: Kind, bytes: u64, core: &Core) -> Result<Self> {
        let blocks = SIZE.blocks_in(bytes);
        let kept = match kind {
            Kind::Null => SIZE.blocks_in(ZONE_OFFSET),
            Kind::Ram | Kind::Slow(_) => blocks,
        };
        let medium = RamMedium::new(SIZE, kept).context("memory of a member")?;
        Ok(Self {
            kind,
            ram: RamDisk::new(medium, &core.reactor),
            null: NullDisk::new(SIZE, blocks, NullReads::Untouched),
            reactor: core.reactor.clone(),
        })
    }

    fn is_kept(&self, at: Lba) -> bool {
        self.kind != Kind::Null || SIZE.bytes_of(at.0) < ZONE_OFFSET
    }

    async fn wait(&self) {
        if let Kind::Slow(time) = self.kind {
            self.reactor.sleep(time).await;
        }
    }
}

impl Disk for Member {
    fn info(&self) -> DiskInfo {
        self.null.info()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        self.wait().await;
        match self.is_kept(at) {
            true => self.ram.read(at, into).await,
            false => self.null.read(at, into).await,
        }
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.wait().await;
        match self.is_kept(at) {
            true => self.ram.write(at, from, durability).await,
            false => self.null.write(at, from, durability).await,
        }
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.wait().await;
        Ok(())
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        match self.kind {
            Kind::Null => Ok(()),
            _ => self.ram.deallocate(at, blocks).await,
        }
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        match self.kind {
            Kind::Null => Ok(()),
            _ => self.ram.write_zeroes(at, blocks, space, durability).await,
        }
    }

    async fn write_uncorrectable(&self, _at: Lba, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
}

/// A task's value, once it has ended.
type Later<T> = Rc<RefCell<Option<T>>>;

/// One core that is turned by hand.
pub struct Core {
    pub reactor: Reactor,
    pool: BufferPool,
    clock: MachineClock,
}

impl Core {
    pub fn new() -> Result<Self> {
        let clock = MachineClock::new();
        Ok(Self {
            reactor: Reactor::new(CoreId(0), 256, clock.now()),
            pool: memory(32 << 20)?,
            clock,
        })
    }

    pub fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Result<T> {
        let value = self.start(task)?;
        while value.borrow().is_none() {
            self.turn();
        }
        value.take().context("the task has ended")
    }

    fn start<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Result<Later<T>> {
        let value = Rc::new(RefCell::new(None));
        let into = value.clone();
        let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let ended = task.await;
            *into.borrow_mut() = Some(ended);
        });
        let spawned = self.reactor.spawn(task);
        spawned.map_err(|_| anyhow!("no task slot is free"))?;
        Ok(value)
    }

    fn turn(&self) {
        self.reactor.poll_once(self.clock.now());
    }
}

pub fn memory(bytes: usize) -> Result<BufferPool> {
    let mut arena = Arena::new(bytes, Hugepages::Off).context("memory")?;
    let region = arena.take(bytes).context("the arena is as large")?;
    Ok(BufferPool::new(region, 512))
}

/// A new array over members of a kind.
pub fn array(core: &Core, wish: Wish, kind: Kind, member_bytes: u64) -> Result<Array<Member>> {
    let geometry = Geometry::new(wish, member_bytes).map_err(|error| anyhow!("{error}"))?;
    let pool = memory(Assembled::scratch_bytes(&geometry))?;
    let members = (0..wish.roles).map(|_| Member::new(kind, member_bytes, core));
    let members = members.collect::<Result<Vec<_>>>()?;
    let reactor = core.reactor.clone();
    let made = core.run(async move {
        let mut rng = Rng::from_seed(1);
        let made = create(&members, wish, "bench", &[], &mut rng, &pool).await;
        made.map_err(|error| anyhow!("{error}"))?;
        let assembled = assemble(members, None, &reactor, &pool).await;
        assembled.map_err(|error| anyhow!("{error}"))
    })?;
    Ok(made?.array)
}

/// Requests at random places.
#[derive(Clone, Copy)]
pub struct Load {
    pub writes: bool,
    pub bytes: usize,
    pub depth: usize,
}

/// What a request costs the thread.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub nanos: f64,
    pub instructions: f64,
}

/// Workers that go on for as long as they are measured.
pub struct Workers {
    done: Rc<Cell<u64>>,
    stop: Rc<Cell<bool>>,
    ends: Vec<Later<Result<(), DiskError>>>,
}

impl Workers {
    /// Starts them; they pause with the core's turns.
    pub fn start<D: Disk>(core: &Core, disk: &Rc<D>, load: Load) -> Result<Self> {
        let (done, stop) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let blocks = SIZE.blocks_in(load.bytes as u64);
        let places = disk.info().blocks / blocks;
        let mut ends = Vec::new();
        for worker in 0..load.depth {
            let (disk, done, stop) = (disk.clone(), done.clone(), stop.clone());
            let buffer = core.pool.try_allocate(load.bytes).context("memory")?;
            let mut rng = Rng::from_seed(worker as u64);
            ends.push(core.start(async move {
                while !stop.get() {
                    for _ in 0..REQUESTS_PER_TURN {
                        let at = Lba(rng.below(places) * blocks);
                        let buffers = std::slice::from_ref(&buffer);
                        match load.writes {
                            true => disk.write(at, buffers, Durability::Cached).await?,
                            false => disk.read(at, buffers).await?,
                        }
                        done.set(done.get() + 1);
                    }
                    next_turn().await;
                }
                Ok(())
            })?);
        }
        Ok(Self { done, stop, ends })
    }

    /// Turns the core for so much processor time.
    pub fn measure(&self, core: &Core, time: Duration) -> Cost {
        let mut counter = Counter::new();
        let before = self.done.get();
        let instructions = counter.as_mut().and_then(Counter::read);
        let began = cpu_time();
        while cpu_time() - began < time {
            (0..16).for_each(|_| core.turn());
        }
        let took = cpu_time() - began;
        let executed = counter.as_mut().and_then(Counter::read);
        let requests = (self.done.get() - before).max(1) as f64;
        let executed = instructions
            .zip(executed)
            .map(|(from, to)| (to - from) as f64);
        Cost {
            nanos: took.as_nanos() as f64 / requests,
            instructions: executed.map_or(f64::NAN, |count| count / requests),
        }
    }

    /// Ends them.
    pub fn end(self, core: &Core) -> Result<()> {
        self.stop.set(true);
        for end in self.ends {
            while end.borrow().is_none() {
                core.turn();
            }
            end.take().context("it has ended")??;
        }
        Ok(())
    }
}

async fn next_turn() {
    let mut waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
