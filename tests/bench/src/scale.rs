//! Owns measuring what large pools take: memory, the time of an import after a crash, and the time until
//! the first I/O then.
//!
//! The disk is in memory and holds only pages that are not zeroes, so that it can be of any size; what hosts
//! write is zeroes. It answers at once: reads are counted, so that what a real disk would take for them can
//! be told. A crash takes the reactor with all its tasks away, as `kill -9` does, and opens the disk again.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use corebay_core::{
    arena::{Arena, Hugepages},
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError, DiskInfo, Durability, Space},
    reactor::{MachineClock, Reactor},
    units::{BlockSize, CoreId, Lba},
};
use corebay_lvol::{CreateOptions, Identity, Pool, PoolContext, Volume, VolumeId};

use crate::{
    instructions::give_back_freed,
    table::{Table, command_line},
};

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// The pool's TiB.
    #[arg(long, default_value_t = 100)]
    pool_tib: u64,
    /// Thin volumes of 1 TiB, with some blocks written in each.
    #[arg(long, default_value_t = 10_000)]
    volumes: u64,
    /// Snapshots of one volume, with some blocks written between.
    #[arg(long, default_value_t = 1000)]
    snapshots: u64,
    /// TiB of the largest thin volume.
    #[arg(long, default_value_t = 256)]
    largest_tib: u64,
    /// GiB that are mapped for the memory that maps take.
    #[arg(long, default_value_t = 1024)]
    mapped_gib: u64,
    /// GiB of extents whose blocks lie in two places each, as writes after a snapshot leave them.
    #[arg(long, default_value_t = 128)]
    fragments_gib: u64,
    /// Only the rows whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
}

const PAGE: usize = 4096;
const ZEROES: [u8; PAGE] = [0; PAGE];
const BLOCKS_PER_TIB: u64 = 1 << 28;
const EXTENT: u64 = 256;
/// Blocks written in each of many volumes, and after each snapshot.
const FEW: u64 = 8;
const MEMORY_BYTES: usize = 16 << 20;
const WAITERS: usize = 64;
const STEP: u64 = 7919;

/// What outlives a crash.
#[derive(Default)]
struct Store {
    pages: RefCell<HashMap<u64, Box<[u8]>>>,
    reads: Cell<(u64, u64)>,
}

/// A disk of any size, of which only what is not zeroes is kept.
#[derive(Clone)]
struct SparseDisk {
    store: Rc<Store>,
    blocks: u64,
}

impl Disk for SparseDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            block_size: BlockSize::B4096,
            blocks: self.blocks,
            volatile_cache: false,
            deallocate_granularity: Some(1),
            write_uncorrectable: false,
            atomic_write_bytes: PAGE as u32,
        }
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let pages = self.store.pages.borrow();
        let (count, bytes) = self.store.reads.get();
        let mut at = at.0;
        for buffer in into {
            for place in buffer.slice(0..buffer.len()).bytes_mut().chunks_mut(PAGE) {
                match pages.get(&at) {
                    Some(page) => place.copy_from_slice(page),
                    None => place.fill(0),
                }
                at += 1;
            }
        }
        let all: usize = into.iter().map(Buffer::len).sum();
        self.store.reads.set((count + 1, bytes + all as u64));
        Ok(())
    }

    async fn write(&self, at: Lba, from: &[Buffer], _: Durability) -> Result<(), DiskError> {
        let mut pages = self.store.pages.borrow_mut();
        let mut at = at.0;
        if from[0].len() == EXTENT as usize * PAGE {
            // Metadata move in smaller pieces: these are a host's zeroes.
            (at..at + EXTENT).for_each(|at| drop(pages.remove(&at)));
            return Ok(());
        }
        for buffer in from {
            for page in buffer.bytes().chunks(PAGE) {
                match *page == ZEROES[..page.len()] {
                    true => drop(pages.remove(&at)),
                    false => drop(pages.insert(at, page.into())),
                }
                at += 1;
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let mut pages = self.store.pages.borrow_mut();
        (at.0..at.0 + blocks).for_each(|at| drop(pages.remove(&at)));
        Ok(())
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        _: Space,
        _: Durability,
    ) -> Result<(), DiskError> {
        self.deallocate(at, blocks).await
    }

    async fn write_uncorrectable(&self, _: Lba, _: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
}

/// One life of a core.
struct Life {
    reactor: Reactor,
    buffers: BufferPool,
    clock: MachineClock,
}

impl Life {
    fn new() -> Result<Self> {
        let clock = MachineClock::new();
        let mut arena = Arena::new(MEMORY_BYTES, Hugepages::Off)?;
        let region = arena.take(MEMORY_BYTES).context("the arena is that large");
        Ok(Self {
            buffers: BufferPool::new(region?, WAITERS),
            reactor: Reactor::new(CoreId(0), 256, clock.now()),
            clock,
        })
    }

    fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Result<T> {
        let out = Rc::new(RefCell::new(None));
        let into = out.clone();
        let task: std::pin::Pin<Box<dyn Future<Output = ()>>> =
            Box::pin(async move { *into.borrow_mut() = Some(task.await) });
        let full = self.reactor.spawn(task).is_err();
        (!full).then_some(()).context("every task slot is taken")?;
        loop {
            self.reactor.poll_once(self.clock.now());
            if let Some(value) = out.borrow_mut().take() {
                return Ok(value);
            }
        }
    }

    fn context(&self) -> PoolContext {
        PoolContext {
            reactor: self.reactor.clone(),
            buffers: self.buffers.clone(),
        }
    }

    /// Writes zeroes to these places, so many blocks each.
    fn write(
        &self,
        volume: Rc<Volume<SparseDisk>>,
        blocks: u64,
        places: impl Iterator<Item = u64> + 'static,
    ) -> Result<()> {
        let bytes = blocks as usize * PAGE;
        let buffer: Buffer = self.buffers.try_allocate(bytes).context("a free buffer")?;
        self.run(async move {
            for at in places {
                let from = std::slice::from_ref(&buffer);
                volume.write(Lba(at), from, Durability::Cached).await?;
            }
            Ok::<_, DiskError>(())
        })?
        .map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn read(&self, volume: Rc<Volume<SparseDisk>>, places: Vec<u64>) -> Result<()> {
        let buffer: Buffer = self.buffers.try_allocate(PAGE).context("a free buffer")?;
        self.run(async move {
            for at in places {
                volume.read(Lba(at), std::slice::from_ref(&buffer)).await?;
            }
            Ok::<_, DiskError>(())
        })?
        .map_err(|error| anyhow::anyhow!("{error}"))
    }
}

/// A pool while it is filled.
struct Filled {
    life: Life,
    disk: SparseDisk,
    pool: Pool<SparseDisk>,
}

impl Filled {
    fn new(arguments: &Arguments) -> Result<Self> {
        let life = Life::new()?;
        let disk = SparseDisk {
            store: Rc::default(),
            blocks: arguments.pool_tib * BLOCKS_PER_TIB,
        };
        let (context, under) = (life.context(), disk.clone());
        let options = CreateOptions {
            name: "bench".to_owned(),
            uuid: [1; 16],
            journal_bytes: None,
        };
        let pool = life.run(async move { Pool::create(&context, under, &options).await })??;
        Ok(Self { life, disk, pool })
    }

    fn volume(&self, name: String, blocks: u64) -> Result<(VolumeId, Rc<Volume<SparseDisk>>)> {
        let pool = self.pool.clone();
        let made = async move { pool.create_volume(&named(name), blocks, false).await };
        let id = self.life.run(made)??;
        Ok((id, Rc::new(self.pool.open(id)?)))
    }
}

fn named(name: String) -> Identity {
    Identity {
        name,
        uuid: [1; 16],
    }
}

/// What memory the process has, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    pages.unwrap_or(0) * PAGE as u64
}

/// What an import after a crash took.
struct Found {
    name: String,
    import: Duration,
    reads: (u64, u64),
    first_read: Duration,
    first_write: Duration,
    /// Memory, once every place has been read.
    grown: u64,
    each: Duration,
}

/// Crashes the pool, imports it, and reads these places of a volume.
fn crash(filled: Filled, row: &str, volume: &str, places: Vec<u64>) -> Result<Found> {
    let Filled { life, disk, pool } = filled;
    life.reactor.tear_down();
    drop((pool, life));
    give_back_freed();
    disk.store.reads.set((0, 0));
    let life = Life::new()?;
    let before = resident();
    let (context, under) = (life.context(), disk.clone());
    let began = life.clock.now();
    let pool = life.run(async move { Pool::import(&context, under).await })??;
    let import = life.clock.now().since(began);
    let reads = disk.store.reads.get();
    let id = pool.find(volume).context("the volume")?;
    let open = Rc::new(pool.open(id)?);
    life.read(open.clone(), places[..1].to_vec())?;
    let first_read = life.clock.now().since(began);
    life.write(open.clone(), 1, std::iter::once(places[0] + 1))?;
    let first_write = life.clock.now().since(began);
    let (count, reading) = (places.len() as u32, life.clock.now());
    life.read(open, places)?;
    let each = life.clock.now().since(reading) / count;
    let grown = resident().saturating_sub(before);
    life.reactor.tear_down();
    Ok(Found {
        name: row.to_owned(),
        import,
        reads,
        first_read,
        first_write,
        grown,
        each,
    })
}

fn many_volumes(arguments: &Arguments, row: &str) -> Result<Found> {
    let filled = Filled::new(arguments)?;
    for number in 0..arguments.volumes {
        let (_, volume) = filled.volume(format!("v{number}"), BLOCKS_PER_TIB)?;
        let places = move |at| (number + at * 999_983) * STEP % (BLOCKS_PER_TIB - 1);
        filled.life.write(volume, 1, (0..FEW).map(places))?;
    }
    let last = arguments.volumes - 1;
    let place = |at| (last + at * 999_983) * STEP % (BLOCKS_PER_TIB - 1);
    let places = (0..FEW).map(place).collect();
    crash(filled, row, &format!("v{last}"), places)
}

fn many_snapshots(arguments: &Arguments, row: &str) -> Result<Found> {
    let filled = Filled::new(arguments)?;
    let (id, volume) = filled.volume("v".to_owned(), BLOCKS_PER_TIB)?;
    let all = 1 << 14;
    let place = move |at: u64| at * STEP % all;
    for number in 0..arguments.snapshots {
        let few = number * FEW..(number + 1) * FEW;
        filled.life.write(volume.clone(), 1, few.map(place))?;
        let (pool, list) = (filled.pool.clone(), [(id, named(format!("s{number}")))]);
        let taken = filled.life.run(async move { pool.snapshot(&list).await })?;
        taken?;
    }
    drop(volume);
    let places = (0..all / 4).map(place).collect();
    crash(filled, row, "v", places)
}

fn largest(arguments: &Arguments, row: &str) -> Result<Found> {
    let filled = Filled::new(arguments)?;
    let blocks = arguments.largest_tib * BLOCKS_PER_TIB;
    let (_, volume) = filled.volume("v".to_owned(), blocks)?;
    // All over it, each in a leaf of its own, and its last block but one.
    let leaves = blocks / (64 * EXTENT);
    let place = move |at: u64| blocks - 2 - at * STEP % leaves * (64 * EXTENT);
    let count = 16_384.min(leaves);
    filled.life.write(volume, 1, (0..count).map(place))?;
    crash(filled, row, "v", (0..count).map(place).collect())
}

/// Every extent has `blocks` blocks.
fn mapped(arguments: &Arguments, row: &str, blocks: u64) -> Result<Found> {
    let filled = Filled::new(arguments)?;
    let all = arguments.mapped_gib << 18;
    let (_, volume) = filled.volume("v".to_owned(), all)?;
    let places = move || (0..all).step_by(EXTENT as usize);
    filled.life.write(volume, blocks, places())?;
    let found = crash(filled, row, "v", places().collect())?;
    tell_memory(&found, arguments.mapped_gib);
    Ok(found)
}

/// Every extent has a block that a snapshot has too, and one that was written after it.
fn fragments(arguments: &Arguments, row: &str) -> Result<Found> {
    let filled = Filled::new(arguments)?;
    let all = arguments.fragments_gib << 18;
    let (id, volume) = filled.volume("v".to_owned(), all)?;
    let places = move |block| (block..all).step_by(EXTENT as usize);
    filled.life.write(volume.clone(), 1, places(0))?;
    let (pool, list) = (filled.pool.clone(), [(id, named("s".to_owned()))]);
    let taken = filled.life.run(async move { pool.snapshot(&list).await })?;
    taken?;
    filled.life.write(volume, 1, places(1))?;
    let found = crash(filled, row, "v", places(0).collect())?;
    tell_memory(&found, arguments.fragments_gib);
    Ok(found)
}

fn tell_memory(found: &Found, gib: u64) {
    let tib = gib as f64 / 1024.0;
    println!(
        "{}: {:.1} MiB of memory for each TiB.",
        found.name,
        found.grown as f64 / tib / f64::from(1 << 20),
    );
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    println!("{}\n", command_line());
    let mut table = Table::new(&[
        "pool with",
        "import ms",
        "in reads",
        "of MiB",
        "first read ms",
        "first write ms",
        "memory MiB",
        "a read then, us",
    ]);
    type Row<'a> = (String, Box<dyn Fn(&str) -> Result<Found> + 'a>);
    let rows: [Row<'_>; 6] = [
        (
            format!("{} volumes", arguments.volumes),
            Box::new(|row| many_volumes(arguments, row)),
        ),
        (
            format!("{} snapshots", arguments.snapshots),
            Box::new(|row| many_snapshots(arguments, row)),
        ),
        (
            format!("a volume of {} TiB", arguments.largest_tib),
            Box::new(|row| largest(arguments, row)),
        ),
        (
            format!("{} GiB in whole extents", arguments.mapped_gib),
            Box::new(|row| mapped(arguments, row, EXTENT)),
        ),
        (
            format!("{} GiB in single blocks of extents", arguments.mapped_gib),
            Box::new(|row| mapped(arguments, row, 1)),
        ),
        (
            format!("{} GiB in fragments", arguments.fragments_gib),
            Box::new(|row| fragments(arguments, row)),
        ),
    ];
    for (row, measure) in &rows {
        if !row.contains(&arguments.only) {
            continue;
        }
        let found = measure(row)?;
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        let millis = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        table.row(vec![
            found.name,
            millis(found.import),
            found.reads.0.to_string(),
            mib(found.reads.1),
            millis(found.first_read),
            millis(found.first_write),
            mib(found.grown),
            format!("{:.1}", found.each.as_secs_f64() * 1e6),
        ]);
    }
    println!(
        "\nA pool of {} TiB after a crash: times since the import began; memory that the process took \
         from then on, until all that was written had been read.\n",
        arguments.pool_tib
    );
    println!("{}", table.markdown());
    Ok(())
}
