//! Volumes on several cores: turned by hand in an order that the seed says, with the power cut amid
//! it; and as threads.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::Poll,
    thread::JoinHandle,
};

use crate::support::{
    self, Medium, MediumDisk, Node, disk, model::Model, named, offline_check, options,
};
use corebay_conformance::{Bed, TestCore, conformance_tests};
use corebay_core::{
    disk::{
        Disk, DiskError, Durability,
        ram::{RamDisk, RamMedium},
    },
    mesh::Wakeups,
    reactor::MachineClock,
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{Pool, PoolCore, PoolHandle, Volume, VolumeHandle, VolumeId, error::PoolError};

const BLOCKS: u64 = 1024;
const CORES: usize = 3;

type Done = corebay_conformance::Outcome<Result<Vec<u64>, DiskError>>;

/// Something that a core does to the volume.
struct Operation {
    at: u64,
    blocks: u64,
    reads: bool,
    done: Done,
}

/// A snapshot, or one that is being taken, and what it may hold.
struct Snapshot {
    taking: Option<corebay_conformance::Outcome<VolumeId>>,
    model: Model,
    seen: Option<(VolumeId, Vec<u64>)>,
}

struct World {
    medium: Medium,
    node: Node,
    others: Vec<(TestCore, Rc<Volume<MediumDisk>>)>,
    id: VolumeId,
    own: Rc<Volume<MediumDisk>>,
    model: Model,
    under_way: Vec<Operation>,
    snapshots: Vec<Snapshot>,
    tag: u64,
    turning: usize,
    rng: Rng,
}

impl World {
    fn new(seed: u64) -> Self {
        let medium = Medium::new(BlockSize::B4096, 48 << 20, seed.is_multiple_of(2), seed);
        medium.soil();
        let node = Node::create(&medium);
        if seed.is_multiple_of(3) {
            // What cores know of the volume is forgotten all the time.
            node.pool.set_slot_limits(1, 1);
        }
        let id = node.create_volume("v", BLOCKS);
        let handle = node.pool.share(CORES, Wakeups::None).unwrap();
        let volume = node.pool.volume_handle(id).unwrap();
        let others = (1..CORES).map(|number| {
            let core = TestCore::new(number, MachineClock::new());
            let part =
                PoolCore::open(&handle, &core.reactor, medium.open_slow(&core.reactor)).unwrap();
            let volume = Rc::new(Volume::open(&part, &volume).unwrap());
            (core, volume)
        });
        Self {
            others: others.collect(),
            own: node.open(id),
            medium,
            id,
            node,
            model: Model::new(BLOCKS),
            under_way: Vec::new(),
            snapshots: Vec::new(),
            tag: 0,
            turning: 0,
            rng: Rng::from_seed(seed),
        }
    }

    fn core(&self, number: usize) -> (&TestCore, &Rc<Volume<MediumDisk>>) {
        match number.checked_sub(1) {
            None => (&self.node.core, &self.own),
            Some(other) => (&self.others[other].0, &self.others[other].1),
        }
    }

    fn begin(&mut self) {
        let longest = if self.rng.once_in(4) { 40 } else { 4 };
        let blocks = 1 + self.rng.below(longest);
        let at = self.rng.below(BLOCKS - blocks);
        let apart = |other: &Operation| other.at + other.blocks <= at || at + blocks <= other.at;
        if self.under_way.len() > 12 || !self.under_way.iter().all(apart) {
            return;
        }
        let what = self.rng.below(10);
        self.tag += 1;
        let tag = if what == 0 { 0 } else { self.tag };
        let (reads, number) = (what > 6, self.rng.below(CORES as u64) as usize);
        if !reads {
            self.model.begin(at, blocks, tag);
            for snapshot in &mut self.snapshots {
                if snapshot.taking.is_some() {
                    snapshot.model.begin(at, blocks, tag);
                }
            }
        }
        let (core, volume) = self.core(number);
        let bytes: Vec<u8> = (0..blocks).flat_map(|_| disk::block(tag, 4096)).collect();
        let (volume, buffer) = (volume.clone(), core.filled(&bytes));
        let done = core.spawn(async move {
            let buffers = std::slice::from_ref(&buffer);
            match (reads, what) {
                (true, _) => volume.read(Lba(at), buffers).await?,
                (_, 0) => {
                    volume.deallocate(Lba(at), blocks).await?;
                    volume.flush().await?;
                }
                _ => volume.write(Lba(at), buffers, Durability::Durable).await?,
            }
            let bytes = buffer.bytes();
            Ok(bytes.chunks_exact(4096).map(disk::tag_of).collect())
        });
        self.under_way.push(Operation {
            at,
            blocks,
            reads,
            done,
        });
    }

    fn take_snapshot(&mut self) {
        let (pool, id) = (self.node.pool.clone(), self.id);
        let name = named(&format!("s{}", self.snapshots.len()));
        let taking = self.node.core.spawn(async move {
            let made = pool.snapshot(&[(id, name)]).await;
            made.expect("a snapshot")[0]
        });
        self.snapshots.push(Snapshot {
            taking: Some(taking),
            model: self.model.clone(),
            seen: None,
        });
    }

    /// Takes what has ended; false where the power has gone.
    fn settle(&mut self) -> bool {
        if self.medium.has_stopped() {
            return false;
        }
        let (ended, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.under_way)
            .into_iter()
            .partition(|op| op.done.is_there());
        self.under_way = left;
        for operation in ended {
            let found = operation.done.take().expect("an operation");
            let range = operation.at as usize..(operation.at + operation.blocks) as usize;
            if operation.reads {
                let newest = self.model.blocks[range].iter().map(|b| *b.last().unwrap());
                assert_eq!(found, newest.collect::<Vec<_>>(), "at {}", operation.at);
            } else {
                self.model.sure(operation.at, operation.blocks);
            }
        }
        for at in 0..self.snapshots.len() {
            let taken = self.snapshots[at].taking.as_ref();
            if taken.is_some_and(|taken| taken.is_there()) {
                let id = self.snapshots[at].taking.take().unwrap().take();
                let volume = self.node.open(id);
                // Turns the home core alone; nothing that is read asks another.
                let tags = self.node.tags(&volume, 0, BLOCKS);
                self.snapshots[at]
                    .model
                    .expect_possible(&tags, "a snapshot");
                self.snapshots[at].seen = Some((id, tags));
            }
        }
        !self.medium.has_stopped()
    }

    /// False where the power has gone meanwhile.
    fn run(&mut self, steps: u64) -> bool {
        for _ in 0..steps {
            match self.rng.below(40) {
                0 => {
                    let idle = self
                        .snapshots
                        .last()
                        .is_none_or(|last| last.taking.is_none());
                    if self.snapshots.len() < 5 && idle {
                        self.take_snapshot();
                    }
                }
                1..6 => self.begin(),
                // One core turns alone for a while: the others stand amid their operations.
                6 => self.turning = self.rng.below(CORES as u64) as usize,
                _ => {
                    self.core(self.turning).0.turn();
                }
            }
            if !self.settle() {
                return false;
            }
        }
        true
    }

    fn finish(&mut self) -> bool {
        for _ in 0..200_000 {
            for number in 0..CORES {
                self.core(number).0.turn();
            }
            if !self.settle() {
                return false;
            }
            let taking = self.snapshots.iter().any(|s| s.taking.is_some());
            if self.under_way.is_empty() && !taking {
                return true;
            }
        }
        panic!("{} operations do not end", self.under_way.len());
    }

    /// What is on the medium is what may be there, after a loss of power or without one.
    fn look(self, cut: bool, what: &str) {
        let Self {
            medium,
            node,
            others,
            own,
            model,
            snapshots,
            ..
        } = self;
        drop((own, others));
        drop(node);
        medium.cut_power();
        let report = offline_check(&medium);
        assert_eq!(report.problems, Vec::<String>::new(), "{what}");
        let node = Node::import(&medium).expect("the pool");
        let volume = node.open(node.pool.find("v").unwrap());
        let tags = node.tags(&volume, 0, BLOCKS);
        match cut {
            true => model.expect_possible(&tags, what),
            false => model.expect_newest(&tags, what),
        }
        for (id, seen) in snapshots
            .iter()
            .filter_map(|snapshot| snapshot.seen.as_ref())
        {
            let tags = node.tags(&node.open(*id), 0, BLOCKS);
            assert!(tags == *seen, "{what}: a snapshot has changed");
        }
    }
}

#[test]
fn cores_that_turn_in_any_order_agree_with_the_model() {
    for seed in 0..6 {
        let mut world = World::new(seed);
        assert!(world.run(3000) && world.finish(), "seed {seed}");
        world.node.checked();
        world.look(false, &format!("seed {seed}"));
    }
}

#[test]
fn the_power_fails_while_cores_write() {
    for seed in 100..120 {
        let mut world = World::new(seed);
        let stop = world.rng.below(400);
        let from = world.medium.changes();
        world.medium.stop_after(from + stop);
        let _ = world.run(4000) && world.finish();
        world.look(true, &format!("seed {seed}"));
    }
}

/// A volume with one extent that holds 7, and a core beside the home core that has it open.
fn beside() -> (Medium, Node, VolumeId, TestCore, Rc<Volume<MediumDisk>>) {
    let medium = Medium::new(BlockSize::B4096, 24 << 20, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 256);
    let own = node.open(id);
    node.write(&own, 0, 256, 7, Durability::Cached).unwrap();
    let handle = node.pool.share(2, Wakeups::None).unwrap();
    let core = TestCore::new(1, MachineClock::new());
    let part = PoolCore::open(&handle, &core.reactor, medium.open_slow(&core.reactor)).unwrap();
    let volume = Volume::open(&part, &node.pool.volume_handle(id).unwrap());
    (medium, node, id, core, Rc::new(volume.unwrap()))
}

fn turns(core: &TestCore) {
    for _ in 0..200 {
        core.turn();
    }
}

#[test]
fn a_snapshot_waits_for_an_overwrite_of_another_core() {
    let (_medium, node, id, core, volume) = beside();
    snapshot_waits(&node, id, &core, &volume);
}

/// Nobody will be told how it ended, and nobody asks.
#[test]
fn a_process_that_ends_amid_a_write_of_another_core_leaves_nothing() {
    let before = Medium::new(BlockSize::B4096, 24 << 20, false, 1);
    let node = Node::create(&before);
    node.create_volume("v", 256);
    drop(node);
    assert_eq!(before.holders(), 1);
    for turns in 0..60 {
        let medium = before.copy(1);
        let node = Node::import_slow(&medium);
        let handle = node.pool.share(2, Wakeups::None).unwrap();
        let core = TestCore::new(1, MachineClock::new());
        let part = PoolCore::open(&handle, &core.reactor, medium.open_slow(&core.reactor)).unwrap();
        let volume = node
            .pool
            .volume_handle(node.pool.find("v").unwrap())
            .unwrap();
        let volume = Rc::new(Volume::open(&part, &volume).unwrap());
        drop((handle, part));
        let (writing, from) = (volume.clone(), core.filled(&disk::block(9, 4096)));
        let written = core.spawn(async move {
            let from = std::slice::from_ref(&from);
            writing.write(Lba(3), from, Durability::Durable).await
        });
        for turn in 0..turns {
            // The home core is the slower one.
            core.turn();
            if turn % 2 == 0 {
                node.core.turn();
            }
        }
        assert!(turns < 59 || written.is_there());
        drop((node, written));
        drop((volume, core));
        assert_eq!(medium.holders(), 1, "after {turns} turns");
    }
}

/// Begins an operation, and drops it while the disk works for it.
fn drop_amid(core: &TestCore, operation: impl Future<Output = Result<(), DiskError>> + 'static) {
    core.spawn(async move {
        let mut operation = Box::pin(operation);
        std::future::poll_fn(|context| {
            assert!(operation.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
    });
    core.turn();
}

#[test]
fn a_snapshot_waits_for_an_overwrite_also_after_an_operation_was_dropped() {
    let (_medium, node, id, core, volume) = beside();
    let (disk, into) = (volume.clone(), core.buffer(4096));
    drop_amid(&core, async move {
        disk.read(Lba(9), std::slice::from_ref(&into)).await
    });
    snapshot_waits(&node, id, &core, &volume);
}

#[test]
fn a_volume_with_a_dropped_overwrite_is_shared_only_once_its_pool_was_opened_anew() {
    let (medium, node, id, core, volume) = beside();
    let (disk, from) = (volume.clone(), core.filled(&disk::block(8, 4096)));
    drop_amid(&core, async move {
        disk.write(Lba(3), std::slice::from_ref(&from), Durability::Cached)
            .await
    });
    for clones in [false, true] {
        let pool = node.pool.clone();
        let shared = node.core.spawn(async move {
            match clones {
                true => pool.clone_volume(id, &named("c")).await.map(drop),
                false => pool.snapshot(&[(id, named("s"))]).await.map(drop),
            }
        });
        for _ in 0..20 {
            turns(&node.core);
            turns(&core);
        }
        assert_eq!(shared.take(), Err(PoolError::Busy));
    }
    drop((volume, core, node));
    let node = Node::import(&medium).unwrap();
    node.snapshot(id, "s");
}

/// It took the slow way, as the pool had just been opened, on the home core or on another one.
#[test]
fn a_volume_with_a_dropped_overwrite_that_took_the_slow_way_is_not_shared_either() {
    let (before, node, id, core, volume) = beside();
    drop((volume, core));
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    for is_home in [true, false] {
        let (mut refused, mut shared) = (0, 0);
        for turns in 0..25 {
            let medium = before.copy(1);
            let node = Node::import_slow(&medium);
            let handle = node.pool.share(2, Wakeups::None).unwrap();
            let other = TestCore::new(1, MachineClock::new());
            let disk = medium.open_slow(&other.reactor);
            let part = PoolCore::open(&handle, &other.reactor, disk).unwrap();
            let (core, volume) = match is_home {
                true => (&node.core, node.pool.open(id)),
                false => {
                    let volume = node.pool.volume_handle(id).unwrap();
                    (&other, Volume::open(&part, &volume))
                }
            };
            let (volume, from) = (volume.unwrap(), core.filled(&disk::block(8, 4096)));
            let is_over = Rc::new(Cell::new(false));
            let over = is_over.clone();
            core.spawn(async move {
                let from = std::slice::from_ref(&from);
                let mut writing = Box::pin(volume.write(Lba(3), from, Durability::Cached));
                std::future::poll_fn(|context| {
                    context.waker().wake_by_ref();
                    match over.get() || writing.as_mut().poll(context).is_ready() {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
                .await;
            });
            for _ in 0..turns {
                node.core.turn();
                other.turn();
            }
            is_over.set(true);
            core.turn();
            let pool = node.pool.clone();
            let taken = (node.core)
                .spawn(async move { pool.snapshot(&[(id, named("s"))]).await.map(drop) });
            node.core.turn_until("the snapshot", || {
                other.turn();
                taken.is_there()
            });
            match taken.take() {
                Err(PoolError::Busy) => refused += 1,
                ended => shared += i32::from(ended == Ok(())),
            }
        }
        // While the disk worked for it; before that and after that nothing is in the way.
        assert!(
            refused > 0 && shared > 0 && refused + shared == 25,
            "{refused} {shared}"
        );
    }
}

fn snapshot_waits(node: &Node, id: VolumeId, core: &TestCore, volume: &Rc<Volume<MediumDisk>>) {
    let from = core.filled(&disk::block(8, 4096));
    let (disk, own) = (volume.clone(), node.open(id));
    let written = core.spawn(async move {
        disk.write(Lba(3), std::slice::from_ref(&from), Durability::Cached)
            .await
    });
    // The disk has it, and takes its time.
    core.turn();
    let (pool, name) = (node.pool.clone(), [(id, named("s"))]);
    let taken = node.core.spawn(async move { pool.snapshot(&name).await });
    let late = node.core.filled(&disk::block(9, 4096));
    let later = node.core.spawn(async move {
        own.write(Lba(4), std::slice::from_ref(&late), Durability::Cached)
            .await
    });
    turns(&node.core);
    assert!(!written.is_there() && !taken.is_there() && !later.is_there());
    core.turn_until("the overwrite", || written.is_there());
    core.turn();
    turns(&node.core);
    assert!(later.is_there(), "writes go on");
    let snapshot = node.open(taken.take().unwrap()[0]);
    assert_eq!(node.tags(&snapshot, 2, 4), [7, 8, 7, 7]);
    assert_eq!(node.tags(&node.open(id), 2, 4), [7, 8, 9, 7]);
}

#[test]
fn an_extent_is_given_out_again_once_a_read_of_another_core_has_ended() {
    let (_medium, node, id, core, volume) = beside();
    let filler = node.open(node.create_volume("filler", 1 << 20));
    let mut extents = 0;
    while node
        .write(&filler, extents * 256, 1, 5, Durability::Cached)
        .is_ok()
    {
        extents += 1;
    }
    let own = node.open(id);
    // This core knows where the block lies, and the disk takes its time.
    let (disk, into) = (volume.clone(), core.buffer(4096));
    let read = core.spawn(async move {
        let read = disk.read(Lba(3), std::slice::from_ref(&into)).await;
        read.map(|()| disk::tag_of(&into.bytes()))
    });
    core.turn();
    let cleared = node
        .core
        .spawn(async move { own.deallocate(Lba(0), 256).await });
    turns(&node.core);
    assert!(!read.is_there() && !cleared.is_there());
    let from = node.core.filled(&disk::block(6, 4096));
    let written = node.core.spawn(async move {
        filler
            .write(
                Lba(extents * 256),
                std::slice::from_ref(&from),
                Durability::Cached,
            )
            .await
    });
    turns(&node.core);
    assert!(!written.is_there(), "the extent may still be read");
    core.turn_until("the read", || read.is_there());
    assert_eq!(read.take(), Ok(7));
    core.turn();
    turns(&node.core);
    assert_eq!((cleared.take(), written.take()), (Ok(()), Ok(())));
    node.checked();
}

#[test]
fn a_first_write_of_another_core_takes_no_task_slot_of_the_home_core() {
    let (_medium, node, id, core, volume) = beside();
    let own = node.open(id);
    let cleared = node
        .core
        .run(async move { own.deallocate(Lba(0), 256).await });
    assert_eq!(cleared, Ok(()));
    let has_ended = Rc::new(Cell::new(false));
    let holds_a_slot = || {
        let has_ended = has_ended.clone();
        std::future::poll_fn(move |context| {
            context.waker().wake_by_ref();
            match has_ended.get() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
    };
    while node.core.reactor.spawn(holds_a_slot()).is_ok() {}
    let (disk, from) = (volume.clone(), core.filled(&disk::block(6, 4096)));
    let written = core.spawn(async move {
        let from = std::slice::from_ref(&from);
        disk.write(Lba(9), from, Durability::Cached).await
    });
    core.turn_until("the write", || {
        node.core.turn();
        written.is_there()
    });
    assert_eq!(written.take(), Ok(()));
    has_ended.set(true);
    turns(&node.core);
    assert_eq!(node.tags(&node.open(id), 8, 3), [0, 6, 0]);
    drop(volume);
    turns(&core);
    node.checked();
}

/// Pools whose home is a thread of its own; every core of a check is another.
struct SharedBed {
    medium: Arc<RamMedium>,
    home: Mutex<Option<Home>>,
}

struct Home {
    pool: PoolHandle,
    volume: VolumeHandle,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const MEDIUM_BYTES: u64 = 400 << 20;
const VOLUME_BYTES: u64 = 200 << 20;

impl Home {
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the environment's thread"
    )]
    fn begin(medium: &Arc<RamMedium>, is_new: bool) -> Self {
        let (medium, end) = (medium.clone(), Arc::new(AtomicBool::new(false)));
        let ending = end.clone();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let core = TestCore::new(7, MachineClock::new());
            let context = support::context(&core);
            let disk = RamDisk::new(medium.clone(), &core.reactor);
            let pool: Pool<RamDisk> = core.run(async move {
                match is_new {
                    true => Pool::create(&context, disk, &options()).await,
                    false => Pool::import(&context, disk).await,
                }
                .expect("a pool")
            });
            if is_new {
                let blocks = medium.info().block_size.blocks_in(VOLUME_BYTES);
                let pool = pool.clone();
                let made = async move {
                    pool.create_volume(&named("v"), blocks, false)
                        .await
                        .unwrap()
                };
                core.run(made);
            }
            let handle = pool.share(8, Wakeups::None).expect("shared");
            let volume = pool.volume_handle(pool.find("v").unwrap()).unwrap();
            tell.send((handle, volume)).unwrap();
            while !ending.load(Ordering::Relaxed) {
                if core.turn() == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let (pool, volume) = told.recv().unwrap();
        Self {
            pool,
            volume,
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// A controller that moves a pool to and fro, a drive that comes and goes.
#[test]
fn a_pool_that_comes_and_goes_leaves_nothing_to_be_polled() {
    let medium = RamMedium::new(BlockSize::B4096, 4096).unwrap();
    let cores = [0, 1].map(|number| TestCore::new(number, MachineClock::new()));
    let mut sources = Vec::new();
    for round in 0..5 {
        let disk = || RamDisk::new(medium.clone(), &cores[0].reactor);
        let (context, own) = (support::context(&cores[0]), disk());
        let pool: Pool<RamDisk> = cores[0].run(async move {
            match round {
                0 => Pool::create(&context, own, &options()).await,
                _ => Pool::import(&context, own).await,
            }
            .expect("a pool")
        });
        let handle = pool.share(2, Wakeups::None).expect("shared");
        let away = RamDisk::new(medium.clone(), &cores[1].reactor);
        let part = PoolCore::open(&handle, &cores[1].reactor, away).unwrap();
        for core in &cores {
            core.turn();
        }
        sources.push([0, 1].map(|core: usize| cores[core].reactor.sources()));
        drop((part, handle));
        cores[0].run(async move { pool.close().await }).unwrap();
        for _ in 0..3 {
            for core in &cores {
                core.turn();
            }
        }
    }
    assert_eq!(sources[1], sources[4], "{sources:?}");
}

impl SharedBed {
    fn new(block_size: BlockSize) -> Self {
        let medium = RamMedium::new(block_size, block_size.blocks_in(MEDIUM_BYTES)).unwrap();
        let home = Home::begin(&medium, true);
        Self {
            medium,
            home: Mutex::new(Some(home)),
        }
    }
}

impl Bed for SharedBed {
    type Disk = Volume<RamDisk>;

    fn open(&self, core: &TestCore) -> Self::Disk {
        let home = self.home.lock().unwrap();
        let home = home.as_ref().unwrap();
        let disk = RamDisk::new(self.medium.clone(), &core.reactor);
        let part = PoolCore::open(&home.pool, &core.reactor, disk).unwrap();
        Volume::open(&part, &home.volume).unwrap()
    }

    fn reopen(&mut self) -> bool {
        let home = self.home.get_mut().unwrap();
        // As a crash of the process leaves it.
        *home = None;
        *home = Some(Home::begin(&self.medium, false));
        true
    }
}

conformance_tests!(
    SharedBed::new,
    edges_read_back,
    segments_and_offsets_read_back,
    the_largest_transfer_reads_back,
    deallocated_blocks_are_zeroes,
    random_operations_agree_with_the_model,
    what_was_written_survives_reopening,
    more_operations_than_the_depth_all_end,
    dropped_operations_keep_their_buffers,
    a_core_may_end_amid_operations,
    two_cores_see_whole_blocks,
);
