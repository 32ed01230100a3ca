//! Owns measuring what a volume costs over its bare disk, on one core and in one process: overwrites,
//! reads, first writes, writes after a snapshot, reads with many snapshots beneath.
//!
//! The disks are in memory and answer at once, so that what is shown is the pool's own work; the bare
//! disk and the volume take turns. Processor time of the thread is measured; instructions, too, where the
//! machine counts them. Elsewhere a simulator of processors counts those of one load, a row of the table:
//!
//! `valgrind --tool=callgrind --toggle-collect='*looked_at*' corebay-bench volume --only ram \`
//! `--rounds 1 --look-at 'first write'`

mod away;

use std::{cell::Cell, rc::Rc, time::Duration};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use corebay_core::{
    arena::{Arena, Hugepages},
    buffer::{Buffer, BufferPool},
    disk::{
        Disk, DiskError, DiskInfo, Durability, Space,
        ram::{RamDisk, RamMedium},
    },
    disk_of_kinds,
    reactor::{MachineClock, Reactor},
    rng::Rng,
    units::{BlockSize, CoreId, Lba, Time},
};
use corebay_lvol::{CreateOptions, Identity, Pool, PoolContext, PoolDisk, Volume, VolumeId};
use corebay_raid::{
    array::Array,
    assemble::assemble,
    create::create,
    geometry::{Level, Wish},
    zone::Zone,
};

use crate::{
    instructions::{Counter, cpu_time},
    pin::pin,
    table::{Table, command_line, median},
};

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The volume's blocks of 4 KiB.
    #[arg(long, default_value_t = 8 << 10)]
    blocks: u64,
    /// Only the disks whose name holds this: ram, mirror, raid5.
    #[arg(long)]
    only: Option<String>,
    /// Blocks of 4 KiB of each disk; a simulator of processors cannot map as many.
    #[arg(long, default_value_t = POOL_BLOCKS)]
    disk_blocks: u64,
    /// The cpu.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The row that is run in a function of its own, for a profile.
    #[arg(long, default_value = "")]
    look_at: String,
}

const SNAPSHOTS: u64 = 64;
/// Blocks written after each of many snapshots.
const BETWEEN_SNAPSHOTS: u64 = 8;
const DEPTH: u64 = 128;
/// Held against the bare disk's reads of blocks that lie beside each other, and against its reads of the
/// places where the volume's blocks have come to lie.
const BENEATH: &str = "read, 64 snapshots beneath";
const BENEATH_SAME: &str = "the same, of the same places";
/// Blocks that a pool gives out together.
const EXTENT: u64 = 256;
const POOL_BLOCKS: u64 = 8 << 20;
/// What `corebay array create` makes.
const ZONE_BYTES: u64 = 8 << 20;
const MEMORY_BYTES: usize = 64 << 20;
const WAITERS: usize = 1024;
/// What a slow disk takes for anything, in the reactor's time.
const SLOW: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Read,
    Write,
}

/// What one operation took.
#[derive(Clone, Copy)]
struct Sample {
    nanos: f64,
    instructions: f64,
}

struct Bench {
    reactor: Reactor,
    /// Another core's, which has its turns where the load is there.
    away: Reactor,
    is_away: Cell<bool>,
    buffers: BufferPool,
    /// For arrays.
    scratch: BufferPool,
    clock: MachineClock,
    blocks: u64,
    seed: Cell<u64>,
    look_at: String,
    disk_blocks: u64,
    counter: Option<std::cell::RefCell<Counter>>,
}

impl Bench {
    fn new(arguments: &Arguments) -> Result<Self> {
        let clock = MachineClock::new();
        let mut arena = Arena::new(2 * MEMORY_BYTES, Hugepages::Off)?;
        let mut region = || arena.take(MEMORY_BYTES).context("the arena is that large");
        Ok(Self {
            buffers: BufferPool::new(region()?, WAITERS),
            scratch: BufferPool::new(region()?, WAITERS),
            reactor: Reactor::new(CoreId(0), 1024, clock.now()),
            away: Reactor::new(CoreId(1), 1024, clock.now()),
            is_away: Cell::new(false),
            clock,
            blocks: arguments.blocks,
            look_at: arguments.look_at.clone(),
            disk_blocks: arguments.disk_blocks,
            seed: Cell::new(1),
            counter: Counter::new().map(std::cell::RefCell::new),
        })
    }

    /// The same, for whoever looks at where the time goes.
    #[inline(never)]
    fn looked_at(&self, done: impl Fn() -> bool) {
        self.turns(done);
        // Else the compiler makes one function of both.
        std::hint::black_box(self.blocks);
    }

    /// Turns the reactor until `done`.
    #[inline(never)]
    fn turns(&self, done: impl Fn() -> bool) {
        while !done() {
            self.reactor.poll_once(self.clock.now());
            if self.is_away.get() {
                self.away.poll_once(self.clock.now());
            }
        }
    }

    fn spawn<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
    ) -> Result<Rc<Cell<Option<T>>>> {
        let out = Rc::new(Cell::new(None));
        let into = out.clone();
        let task: std::pin::Pin<Box<dyn Future<Output = ()>>> =
            Box::pin(async move { into.set(Some(task.await)) });
        let full = self.reactor.spawn(task).is_err();
        (!full).then_some(out).context("every task slot is taken")
    }

    fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Result<T> {
        let out = self.spawn(task)?;
        let ended = Cell::new(None);
        self.turns(|| {
            ended.set(out.take());
            let value = ended.take();
            let there = value.is_some();
            ended.set(value);
            there
        });
        ended.take().context("it has ended")
    }

    /// All blocks in an order that a new seed says.
    fn order(&self) -> Rc<Vec<u64>> {
        let mut order: Vec<u64> = (0..self.blocks).collect();
        self.seed.set(self.seed.get() + 1);
        let mut rng = Rng::from_seed(self.seed.get());
        for at in (1..order.len()).rev() {
            order.swap(at, rng.below(at as u64 + 1) as usize);
        }
        Rc::new(order)
    }

    /// Each of these blocks once, 4 KiB at a time.
    fn measure<D: Disk>(
        &self,
        disk: &Rc<D>,
        work: Work,
        amount: (u64, u64),
        row: &str,
    ) -> Result<Sample> {
        self.measure_at(disk, work, amount, row, &self.order())
    }

    /// The same with the first of the blocks that `order` says.
    fn measure_at<D: Disk>(
        &self,
        disk: &Rc<D>,
        work: Work,
        (count, depth): (u64, u64),
        row: &str,
        order: &Rc<Vec<u64>>,
    ) -> Result<Sample> {
        let left = Rc::new(Cell::new(depth));
        let reactor = match self.is_away.get() {
            true => &self.away,
            false => &self.reactor,
        };
        for worker in 0..depth {
            let (disk, order, left) = (disk.clone(), order.clone(), left.clone());
            let buffer: Buffer = self.buffers.try_allocate(4096).context("a free buffer")?;
            let task = async move {
                let buffers = std::slice::from_ref(&buffer);
                for number in (worker..count).step_by(depth as usize) {
                    let at = Lba(order[number as usize]);
                    match work {
                        Work::Read => disk.read(at, buffers).await,
                        Work::Write => disk.write(at, buffers, Durability::Cached).await,
                    }
                    .expect("an operation");
                }
                left.set(left.get() - 1);
            };
            let spawned = reactor.spawn(task).is_ok();
            spawned.then_some(()).context("every task slot is taken")?;
        }
        let instructions = || {
            let counter = self.counter.as_ref();
            let count = counter.and_then(|counter| counter.borrow_mut().read());
            count.map_or(f64::NAN, |count| count as f64)
        };
        let (began, counted) = (cpu_time(), instructions());
        match row == self.look_at {
            true => self.looked_at(|| left.get() == 0),
            false => self.turns(|| left.get() == 0),
        }
        let each = |all: f64| all / count as f64;
        Ok(Sample {
            nanos: each((cpu_time() - began).as_secs_f64() * 1e9),
            instructions: each(instructions() - counted),
        })
    }
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    pin(arguments.cpu);
    let bench = Bench::new(arguments)?;
    println!("{}\n", command_line());
    println!(
        "Processor time of one operation of 4 KiB at a random place; {} rounds over {} blocks, medians.\n",
        arguments.rounds, arguments.blocks
    );
    let wanted = |name: &str| {
        arguments
            .only
            .as_deref()
            .is_none_or(|only| name.contains(only))
    };
    if wanted("ram") {
        let (bare, under) = (bench.ram()?, bench.ram()?);
        let read_last = under.read_last.clone();
        let under = || PoolDisk::from(under.clone());
        bench.compare("ram", arguments.rounds, (bare, read_last), under)?;
        bench.away(arguments.rounds)?;
    }
    for (name, level, members, zone_bytes) in [
        ("mirror", Level::Mirrored, 2, 0),
        ("raid5", Level::Raid5, 4, 0),
        ("raid5 with a zone", Level::Raid5, 4, ZONE_BYTES),
    ] {
        if wanted(name) {
            let wish = Wish {
                zone_bytes,
                ..Wish::new(level, members, BlockSize::B4096)
            };
            let (bare, under) = (bench.array(wish)?, bench.array(wish)?);
            let read_last = under.read_last.clone();
            let under = || PoolDisk {
                zone: under.below.zone().map(Rc::new).map(Base::Zone),
                disk: Base::Array(under.clone()),
            };
            bench.compare(name, arguments.rounds, (bare, read_last), under)?;
        }
    }
    bench.depth()?;
    bench.reactor.tear_down();
    bench.away.tear_down();
    Ok(())
}

/// One core's way to an array, or to its mirrored zone.
enum Base {
    Array(Kept<Array<RamDisk>>),
    Zone(Rc<Zone<RamDisk>>),
}

disk_of_kinds!(Base { Array, Zone });

/// A row of the table.
struct Row {
    what: &'static str,
    bare: Vec<Sample>,
    volume: Vec<Sample>,
}

impl Bench {
    /// A small pool makes checkpoints more often. Only what is written takes memory.
    fn medium(&self) -> Result<std::sync::Arc<RamMedium>> {
        Ok(RamMedium::new(BlockSize::B4096, self.disk_blocks)?)
    }

    fn kept<D>(&self, below: D) -> Kept<D> {
        Kept {
            below: Rc::new(below),
            reactor: self.reactor.clone(),
            takes: Duration::ZERO,
            read_last: Rc::default(),
        }
    }

    fn ram(&self) -> Result<Kept<RamDisk>> {
        let disk = RamDisk::new(self.medium()?, &self.reactor);
        self.touched(self.kept(disk))
    }

    fn array(&self, wish: Wish) -> Result<Kept<Array<RamDisk>>> {
        let disks = (0..wish.roles).map(|_| Ok(RamDisk::new(self.medium()?, &self.reactor)));
        let disks = disks.collect::<Result<Vec<_>>>()?;
        let (reactor, scratch) = (self.reactor.clone(), self.scratch.clone());
        let made = self.run(async move {
            let mut rng = Rng::from_seed(1);
            create(&disks, wish, "bench", &[], &mut rng, &scratch)
                .await
                .map_err(|error| anyhow!("{error}"))?;
            let found = assemble(disks, None, &reactor, &scratch).await;
            found.map_err(|error| anyhow!("{error}"))
        })??;
        self.touched(self.kept(made.array))
    }

    /// Memory that was never touched is dear; that is not what is asked here.
    fn touched<D: Disk>(&self, disk: D) -> Result<D> {
        let whole: Buffer = self
            .buffers
            .try_allocate(1 << 20)
            .context("a free buffer")?;
        let blocks = (self.blocks * 24).min(disk.info().blocks);
        self.run(async move {
            for at in (0..blocks - 256).step_by(256) {
                let from = std::slice::from_ref(&whole);
                disk.write(Lba(at), from, Durability::Cached).await?;
            }
            Ok::<_, DiskError>(disk)
        })?
        .map_err(|error| anyhow!("{error}"))
    }

    fn pool<D: Disk>(&self, disk: PoolDisk<D>) -> Result<Pool<D>> {
        let context = PoolContext {
            reactor: self.reactor.clone(),
            buffers: self.buffers.clone(),
        };
        let options = CreateOptions {
            name: "bench".to_owned(),
            uuid: [1; 16],
            journal_bytes: None,
        };
        let made = self.run(async move { Pool::create(&context, disk, &options).await })?;
        Ok(made?)
    }

    fn volume<D: Disk>(&self, pool: &Pool<D>) -> Result<(VolumeId, Rc<Volume<D>>)> {
        let (made, blocks) = (pool.clone(), self.blocks);
        let id =
            self.run(async move { made.create_volume(&named("v"), blocks, false).await })??;
        Ok((id, Rc::new(pool.open(id)?)))
    }

    fn snapshot<D: Disk>(&self, pool: &Pool<D>, id: VolumeId, number: u64) -> Result<VolumeId> {
        let (pool, list) = (pool.clone(), [(id, named(&format!("s{number}")))]);
        Ok(self.run(async move { pool.snapshot(&list).await })??[0])
    }

    fn delete<D: Disk>(&self, pool: &Pool<D>, ids: Vec<VolumeId>) -> Result<()> {
        let pool = pool.clone();
        Ok(self.run(async move {
            for id in ids {
                pool.delete(id).await?;
            }
            pool.settled().await
        })??)
    }

    fn compare<D: Disk, B: Disk>(
        &self,
        name: &str,
        rounds: usize,
        (bare, read_last): (B, Rc<Cell<Lba>>),
        under: impl Fn() -> PoolDisk<D>,
    ) -> Result<()> {
        let bare = Rc::new(bare);
        let row = |what| Row {
            what,
            bare: Vec::new(),
            volume: Vec::new(),
        };
        let mut rows = [
            row("overwrite"),
            row("read"),
            row("first write"),
            row("write after a snapshot"),
            row(BENEATH),
            row(BENEATH_SAME),
            row("overwrite, depth 1"),
            row("first write, depth 1"),
        ];
        let (mut records, mut pages) = (Vec::new(), Vec::new());
        self.measure(&bare, Work::Write, (self.blocks, DEPTH), "")?;
        for _ in 0..rounds {
            // A new pool gives out the same space again, of which every byte was touched.
            let pool = self.pool(under())?;
            let (id, volume) = self.volume(&pool)?;
            let all = self.blocks;
            let warm = || self.warm(&pool, under().disk, &read_last);
            warm()?;
            let before = pool.status();
            let first = self.measure(&volume, Work::Write, (all, DEPTH), "first write")?;
            let after = pool.status();
            let each = |bytes: u64| bytes as f64 / all as f64;
            records.push(each(after.journal_bytes - before.journal_bytes));
            pages.push(each(after.metadata_bytes - before.metadata_bytes));
            let write = self.measure(&volume, Work::Write, (all, DEPTH), "overwrite")?;
            let bare_write = self.measure(&bare, Work::Write, (all, DEPTH), "bare write")?;
            let mut add = |row: usize, bare: Sample, volume: Sample| {
                rows[row].bare.push(bare);
                rows[row].volume.push(volume);
            };
            add(0, bare_write, write);
            let read = self.measure(&volume, Work::Read, (all, DEPTH), "read")?;
            let bare_read = self.measure(&bare, Work::Read, (all, DEPTH), "bare read")?;
            add(1, bare_read, read);
            // What follows is held against overwrites of the volume itself.
            add(2, write, first);
            warm()?;
            let mut snapshots = vec![self.snapshot(&pool, id, 0)?];
            let quarter = (all / 4, DEPTH);
            let after = self.measure(&volume, Work::Write, quarter, "write after a snapshot")?;
            add(3, write, after);
            snapshots.extend(self.more_snapshots(&pool, (id, &volume))?);
            // Each of them changed some of the blocks.
            let (bare_there, beneath) = self.beneath(&bare, &volume, &read_last)?;
            add(4, bare_read, beneath);
            add(5, bare_there, beneath);
            let bare_one = self.measure(&bare, Work::Write, (all / 8, 1), "")?;
            drop(volume);
            snapshots.push(id);
            self.delete(&pool, snapshots)?;
            let (id, volume) = self.volume(&pool)?;
            warm()?;
            let row = "first write, depth 1";
            let first_one = self.measure(&volume, Work::Write, (all / 8, 1), row)?;
            self.measure(&volume, Work::Write, (all, DEPTH), "")?;
            let one = self.measure(&volume, Work::Write, (all / 8, 1), "overwrite, depth 1")?;
            add(6, bare_one, one);
            add(7, one, first_one);
            drop(volume);
            self.delete(&pool, vec![id])?;
            self.run(async move { pool.close().await })??;
        }
        show(name, &rows);
        println!(
            "A first write takes {:.0} bytes of journal and {:.1} bytes of checkpoints, each twice.\n",
            median(records),
            median(pages)
        );
        Ok(())
    }

    /// All snapshots but the first, each with a few blocks written after it.
    fn more_snapshots<D: Disk>(
        &self,
        pool: &Pool<D>,
        (id, volume): (VolumeId, &Rc<Volume<D>>),
    ) -> Result<Vec<VolumeId>> {
        let few = (BETWEEN_SNAPSHOTS, BETWEEN_SNAPSHOTS);
        let each = (1..SNAPSHOTS).map(|number| {
            let made = self.snapshot(pool, id, number)?;
            self.measure(volume, Work::Write, few, "")?;
            Ok(made)
        });
        each.collect()
    }

    /// Reads the places that the pool gives out next, so that the processor's caches hold as much of them
    /// as of those that were written before: where they hold nothing of a place, writing to it takes the
    /// bare disk as much longer.
    fn warm<D: Disk>(&self, pool: &Pool<D>, disk: D, read_last: &Rc<Cell<Lba>>) -> Result<()> {
        let (made, last, blocks) = (pool.clone(), read_last.clone(), self.blocks);
        let probe =
            self.run(async move { made.create_volume(&named("probe"), EXTENT, false).await })??;
        let volume = pool.open(probe)?;
        let whole: Buffer = self
            .buffers
            .try_allocate(1 << 20)
            .context("a free buffer")?;
        let warmed = self.run(async move {
            let one = [whole.slice(0..4096)];
            volume.write(Lba(0), &one, Durability::Cached).await?;
            volume.read(Lba(0), &one).await?;
            let next = last.get().0 + EXTENT;
            for at in (next..next + blocks).step_by(256) {
                disk.read(Lba(at), std::slice::from_ref(&whole)).await?;
            }
            Ok::<_, DiskError>(())
        })?;
        warmed.map_err(|error| anyhow!("{error}"))?;
        self.delete(pool, vec![probe])
    }

    /// Reads of the bare disk at the places where the volume's blocks lie, and reads of the volume. Both
    /// disks were read before in the same order, so that the processor's caches hold as much of either.
    fn beneath<D: Disk, B: Disk>(
        &self,
        bare: &Rc<B>,
        volume: &Rc<Volume<D>>,
        read_last: &Rc<Cell<Lba>>,
    ) -> Result<(Sample, Sample)> {
        let (disk, last, blocks) = (volume.clone(), read_last.clone(), self.blocks);
        let buffer: Buffer = self.buffers.try_allocate(4096).context("a free buffer")?;
        let places = self.run(async move {
            let mut places = Vec::new();
            for at in 0..blocks {
                disk.read(Lba(at), std::slice::from_ref(&buffer)).await?;
                places.push(last.get().0);
            }
            Ok::<_, DiskError>(places)
        })?;
        let places = places.map_err(|error| anyhow!("{error}"))?;
        let there = |order: Rc<Vec<u64>>| -> Rc<Vec<u64>> {
            Rc::new(order.iter().map(|at| places[*at as usize]).collect())
        };
        let all = (self.blocks, DEPTH);
        self.measure_at(bare, Work::Read, all, "", &there(self.order()))?;
        let beneath = self.measure(volume, Work::Read, all, BENEATH)?;
        let row = "bare read, same places";
        let bare = self.measure_at(bare, Work::Read, all, row, &there(self.order()))?;
        Ok((bare, beneath))
    }

    /// How many writes of the disk one after the other a first write waits for.
    fn depth(&self) -> Result<()> {
        let disk = Kept {
            takes: SLOW,
            ..self.kept(RamDisk::new(self.medium()?, &self.reactor))
        };
        let pool = self.pool(disk.into())?;
        let (_, volume) = self.volume(&pool)?;
        let buffer: Buffer = self.buffers.try_allocate(4096).context("a free buffer")?;
        let reactor = self.reactor.clone();
        let took = self.run(async move {
            let from = std::slice::from_ref(&buffer);
            let mut took = Vec::new();
            for at in 0..32u64 {
                let began: Time = reactor.now();
                let at = Lba(at * 37);
                volume
                    .write(at, from, Durability::Cached)
                    .await
                    .expect("a write");
                took.push(reactor.now().since(began).as_secs_f64() / SLOW.as_secs_f64());
            }
            took
        })?;
        println!(
            "Over a disk that takes {SLOW:?} for each write, a first write at depth 1 takes {:.1} times as \
             long.",
            median(took)
        );
        Ok(())
    }
}

fn named(name: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        uuid: [1; 16],
    }
}

fn show(name: &str, rows: &[Row]) {
    let mut table = Table::new(&[
        name,
        "against",
        "its ns",
        "ours ns",
        "ratio",
        "min..max",
        "its instr",
        "ours instr",
        "ratio by instr",
    ]);
    for row in rows {
        let nanos = |samples: &[Sample]| median(samples.iter().map(|sample| sample.nanos));
        let count = |samples: &[Sample]| median(samples.iter().map(|sample| sample.instructions));
        let pairs = || row.bare.iter().zip(&row.volume);
        let ratios = || pairs().map(|(bare, ours)| bare.nanos / ours.nanos * 100.0);
        let least = ratios().fold(f64::INFINITY, f64::min);
        let most = ratios().fold(0.0, f64::max);
        let against = match row.what {
            "first write" | "write after a snapshot" | "first write, depth 1" => "overwrite",
            BENEATH_SAME => "bare disk there",
            what if away::ROWS.contains(&what) => "home core",
            _ => "bare disk",
        };
        let whole = |value: f64| match value.is_nan() {
            true => "-".to_owned(),
            false => format!("{value:.0}"),
        };
        table.row(vec![
            row.what.to_owned(),
            against.to_owned(),
            whole(nanos(&row.bare)),
            whole(nanos(&row.volume)),
            format!("{:.1} %", median(ratios())),
            format!("{least:.0}..{most:.0}"),
            whole(count(&row.bare)),
            whole(count(&row.volume)),
            match count(&row.bare) / count(&row.volume) * 100.0 {
                share if share.is_nan() => "-".to_owned(),
                share => format!("{share:.1} %"),
            },
        ]);
    }
    println!("{}", table.markdown());
}

/// A disk that gives no memory back, so that a write into what was freed does not ask the system for it
/// anew; where `takes` is not zero, a read or a write takes that long.
struct Kept<D> {
    below: Rc<D>,
    reactor: Reactor,
    takes: Duration,
    /// Where it was read from last.
    read_last: Rc<Cell<Lba>>,
}

impl<D> Clone for Kept<D> {
    fn clone(&self) -> Self {
        Self {
            below: self.below.clone(),
            reactor: self.reactor.clone(),
            takes: self.takes,
            read_last: self.read_last.clone(),
        }
    }
}

impl<D> Kept<D> {
    async fn wait(&self) {
        if !self.takes.is_zero() {
            self.reactor.sleep(self.takes).await;
        }
    }
}

impl<D: Disk> Disk for Kept<D> {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            deallocate_granularity: None,
            ..self.below.info()
        }
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        self.wait().await;
        self.read_last.set(at);
        self.below.read(at, into).await
    }

    async fn write(&self, at: Lba, from: &[Buffer], how: Durability) -> Result<(), DiskError> {
        self.wait().await;
        self.below.write(at, from, how).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.below.flush().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.below.deallocate(at, blocks).await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        how: Durability,
    ) -> Result<(), DiskError> {
        self.below.write_zeroes(at, blocks, space, how).await
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.below.write_uncorrectable(at, blocks).await
    }
}
