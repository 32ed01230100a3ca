//! Reads that are under way while what they look at is left to another volume: none returns what that writes
//! there.

use std::{future::Future, rc::Rc};

use crate::support::{Medium, MediumDisk, Node, disk, named};
use corebay_conformance::{Outcome, TestCore};
use corebay_core::{
    disk::{Disk, DiskError, Durability},
    mesh::Wakeups,
    reactor::MachineClock,
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{Pool, PoolCore, Volume, VolumeId, error::PoolError};

const EXTENT: u64 = 256;
/// All that is written lies in the second extent.
const FIRST: u64 = EXTENT;
/// The block that is read, and then written by the other volume.
const AT: u64 = FIRST + 5;

const BEFORE: u64 = 1;
const OF_WRITER: u64 = 2;
const OF_READER: u64 = 3;

/// How the reader's volume lets go of the extent that it shares with the writer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Deallocate,
    Overwrite,
    Shrink,
    Inflate,
    RollBack,
    /// The extent's blocks are fragments of both.
    Fragments,
    /// What the writer wrote beside it goes first, and the shared one is what is left.
    Rest,
    /// The writer's volume is inflated before it is written to.
    InflateWriter,
    /// A snapshot that had it, too, is dropped last.
    Snapshot,
}

const WAYS: [Way; 9] = [
    Way::Deallocate,
    Way::Overwrite,
    Way::Shrink,
    Way::Inflate,
    Way::RollBack,
    Way::Fragments,
    Way::Rest,
    Way::InflateWriter,
    Way::Snapshot,
];

/// Two cores with a pool; the home core is the first.
struct Cores {
    medium: Medium,
    node: Node,
    other: TestCore,
    part: Rc<PoolCore<MediumDisk>>,
}

impl Cores {
    fn new() -> Self {
        let medium = Medium::new(BlockSize::B512, 32 << 20, false, 1);
        let node = Node::create(&medium);
        let handle = node.pool.share(2, Wakeups::None).unwrap();
        let other = TestCore::new(1, MachineClock::new());
        let part = PoolCore::open(&handle, &other.reactor, medium.open()).unwrap();
        Self {
            medium,
            node,
            other,
            part,
        }
    }

    fn turn(&self, turns: usize) {
        for _ in 0..turns {
            self.node.core.turn();
            self.other.turn();
        }
    }

    fn end<T>(&self, what: &str, outcome: &Outcome<T>) -> T {
        self.node.core.turn_until(what, || {
            self.other.turn();
            outcome.is_there()
        });
        outcome.take()
    }

    fn order<F: Future<Output = Result<(), PoolError>> + 'static>(
        &self,
        call: impl FnOnce(Pool<MediumDisk>) -> F,
    ) -> Outcome<Result<(), DiskError>> {
        let order = call(self.node.pool.clone());
        let done = async move { order.await.map_err(DiskError::from) };
        self.node.core.spawn(done)
    }

    fn inflate(&self, id: VolumeId) -> Outcome<Result<(), DiskError>> {
        self.order(move |pool| async move {
            let mut inflate = pool.inflate(id)?;
            while inflate.step().await?.is_some() {}
            Ok(())
        })
    }

    /// A volume, open on the home core or away from it.
    fn open(&self, id: VolumeId, is_away: bool) -> Open<'_> {
        let handle = self.node.pool.volume_handle(id).unwrap();
        let (core, part) = match is_away {
            true => (&self.other, &self.part),
            false => (&self.node.core, self.node.pool.core()),
        };
        let volume = Rc::new(Volume::open(part, &handle).unwrap());
        Open { core, volume }
    }
}

/// A volume that a core has open.
struct Open<'a> {
    core: &'a TestCore,
    volume: Rc<Volume<MediumDisk>>,
}

impl Open<'_> {
    fn write(&self, at: u64, blocks: u64, tag: u64) -> Outcome<Result<(), DiskError>> {
        let bytes: Vec<u8> = (0..blocks).flat_map(|_| disk::block(tag, 512)).collect();
        let (volume, from) = (self.volume.clone(), self.core.filled(&bytes));
        self.core.spawn(async move {
            let from = std::slice::from_ref(&from);
            volume.write(Lba(at), from, Durability::Cached).await
        })
    }

    fn read(&self, at: u64) -> Outcome<u64> {
        let (volume, into) = (self.volume.clone(), self.core.buffer(512));
        self.core.spawn(async move {
            let read = volume.read(Lba(at), std::slice::from_ref(&into)).await;
            read.unwrap();
            disk::tag_of(&into.bytes())
        })
    }

    fn deallocate(&self, at: u64, blocks: u64) -> Outcome<Result<(), DiskError>> {
        let volume = self.volume.clone();
        (self.core).spawn(async move { volume.deallocate(Lba(at), blocks).await })
    }
}

/// A volume that reads, one that writes, and a snapshot that the way needs.
struct Volumes {
    reader: VolumeId,
    writer: VolumeId,
    snapshot: VolumeId,
}

impl Volumes {
    /// Both have the extent, and nobody else, or the snapshot.
    fn new(node: &Node, way: Way, is_thick: bool) -> Self {
        let made = node.run(move |pool| async move {
            pool.create_volume(&named("v"), 2 * EXTENT, is_thick).await
        });
        let first = made.unwrap();
        let volume = node.open(first);
        let fill = |blocks| {
            let written = node.write(&volume, FIRST, blocks, BEFORE, Durability::Cached);
            written.unwrap();
        };
        let early = node.snapshot(first, "early");
        fill(EXTENT);
        let late = node.snapshot(first, "late");
        if way == Way::Fragments {
            fill(8);
        }
        let second =
            node.run(move |pool| async move { pool.clone_volume(first, &named("c")).await });
        if way != Way::Snapshot {
            let deleted = node.run(move |pool| async move { pool.delete(late).await });
            deleted.unwrap();
            node.settle();
        }
        let (reader, writer, snapshot) = match way {
            Way::RollBack => (first, second.unwrap(), early),
            _ => (second.unwrap(), first, late),
        };
        Self {
            reader,
            writer,
            snapshot,
        }
    }

    /// What waits for all reads, and so has to begin before the read does.
    fn begin(&self, cores: &Cores, way: Way) -> Option<Outcome<Result<(), DiskError>>> {
        let (reader, snapshot) = (self.reader, self.snapshot);
        match way {
            Way::RollBack => {
                Some(cores.order(move |pool| async move { pool.roll_back(reader, snapshot).await }))
            }
            Way::Snapshot => {
                Some(cores.order(move |pool| async move { pool.delete(snapshot).await }))
            }
            _ => None,
        }
    }

    /// The reader's volume lets go of the extent.
    fn let_go(
        &self,
        cores: &Cores,
        way: Way,
        open: &Open<'_>,
    ) -> Option<Outcome<Result<(), DiskError>>> {
        let reader = self.reader;
        match way {
            Way::RollBack => None,
            Way::Overwrite => Some(open.write(FIRST, EXTENT, OF_READER)),
            Way::Inflate => Some(cores.inflate(reader)),
            Way::Shrink => {
                Some(cores.order(move |pool| async move { pool.resize(reader, FIRST, true).await }))
            }
            _ => Some(open.deallocate(FIRST, EXTENT)),
        }
    }
}

/// What a read finds that begins so many turns after what waits for all reads, and is on its way while the
/// other volume is written to.
fn found(way: Way, [reader_away, writer_away]: [bool; 2], is_thick: bool, turns: usize) -> u64 {
    let cores = Cores::new();
    let volumes = Volumes::new(&cores.node, way, is_thick);
    let reader = cores.open(volumes.reader, reader_away);
    let writer = cores.open(volumes.writer, writer_away);
    // Both know where the block lies.
    for open in [&reader, &writer] {
        assert_eq!(cores.end("a look", &open.read(AT)), BEFORE);
    }
    if way == Way::Rest {
        let beside = writer.write(FIRST, 1, BEFORE);
        cores.end("a write beside", &beside).unwrap();
    }
    let mut orders = Vec::new();
    orders.extend(volumes.begin(&cores, way));
    cores.turn(turns);
    cores.medium.hold_next_read();
    let read = reader.read(AT);
    cores.turn(4);
    orders.extend(volumes.let_go(&cores, way, &reader));
    cores.turn(100);
    match way {
        Way::Rest => orders.push(writer.deallocate(FIRST, 1)),
        Way::InflateWriter => orders.push(cores.inflate(volumes.writer)),
        _ => {}
    }
    cores.turn(100);
    let written = writer.write(AT, 1, OF_WRITER);
    cores.turn(200);
    cores.medium.release_reads();
    let found = cores.end("the read", &read);
    cores.end("the write", &written).unwrap();
    for order in orders {
        cores.end("the order", &order).unwrap();
    }
    assert_eq!(cores.end("a read", &writer.read(AT)), OF_WRITER);
    drop((reader, writer));
    cores.node.checked();
    found
}

#[test]
fn a_read_never_returns_what_another_volume_writes_to_what_was_left_to_it() {
    for way in WAYS {
        // Of what waits for all reads, some turns come between that and its effect.
        let turns = match way {
            Way::RollBack | Way::Snapshot => 0..4,
            _ => 0..1,
        };
        for turns in turns {
            for away in [[false, false], [false, true], [true, false], [true, true]] {
                for is_thick in [false, true] {
                    let found = found(way, away, is_thick, turns);
                    let what = format!("{way:?}, away {away:?}, thick {is_thick}, {turns} turns");
                    assert_ne!(found, OF_WRITER, "{what}");
                }
            }
        }
    }
}

/// A volume of the world, with its opens on both cores.
struct Family<'a> {
    id: VolumeId,
    opens: [Open<'a>; 2],
    snapshots: Vec<VolumeId>,
}

/// A read under way, of which volume, and which tags there were when it began.
struct Reading {
    of: usize,
    last: u64,
    found: Outcome<u64>,
}

/// Volumes that share what they hold, and let go of it, while reads take their time.
struct World<'a> {
    cores: &'a Cores,
    families: Vec<Family<'a>>,
    /// Who wrote each tag. The first write's was there before all clones.
    writers: Vec<usize>,
    reads: Vec<Reading>,
    orders: Vec<Outcome<Result<(), DiskError>>>,
    taking: Vec<(usize, Outcome<VolumeId>)>,
    names: u32,
    rng: Rng,
}

impl<'a> World<'a> {
    fn new(cores: &'a Cores, seed: u64) -> Self {
        let id = cores.node.create_volume("v", 2 * EXTENT);
        let mut world = Self {
            cores,
            families: Vec::new(),
            writers: vec![0, 0],
            reads: Vec::new(),
            orders: Vec::new(),
            taking: Vec::new(),
            names: 0,
            rng: Rng::from_seed(seed),
        };
        world.add(id);
        let written = world.families[0].opens[0].write(0, 2 * EXTENT, 1);
        cores.end("the first write", &written).unwrap();
        // What is shared by few is soon left to one.
        for _ in 0..1 + world.rng.below(2) {
            let name = world.name();
            let cloned = cores.node.run(move |pool| async move {
                let identity = named(&name);
                pool.clone_volume(id, &identity).await
            });
            world.add(cloned.unwrap());
        }
        world
    }

    fn add(&mut self, id: VolumeId) {
        let opens = [self.cores.open(id, false), self.cores.open(id, true)];
        let snapshots = Vec::new();
        self.families.push(Family {
            id,
            opens,
            snapshots,
        });
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.rng.below(count as u64)).unwrap()
    }

    /// Of few, so that the same ones are read and written.
    fn block(&mut self) -> u64 {
        self.rng.below(2) * EXTENT + self.rng.below(4)
    }

    fn read(&mut self, of: usize) {
        if self.reads.len() > 6 {
            return;
        }
        if self.rng.once_in(2) {
            self.cores.medium.hold_next_read();
        }
        let (at, core) = (self.block(), self.below(2));
        let found = self.families[of].opens[core].read(at);
        // So that it is the one that is held.
        self.cores.turn(3);
        let last = self.writers.len() as u64 - 1;
        self.reads.push(Reading { of, last, found });
    }

    fn change(&mut self, of: usize) {
        let (block, core) = (self.block(), self.below(2));
        let (at, blocks) = match self.rng.once_in(2) {
            true => (block / EXTENT * EXTENT, EXTENT),
            false => (block, 1),
        };
        let open = &self.families[of].opens[core];
        let order = match self.rng.below(3) {
            0 => open.deallocate(at, blocks),
            _ => {
                self.writers.push(of);
                open.write(at, blocks, self.writers.len() as u64 - 1)
            }
        };
        self.orders.push(order);
    }

    fn order(&mut self, of: usize) {
        let id = self.families[of].id;
        let (name, pool) = (self.name(), self.cores.node.pool.clone());
        let snapshots = self.families[of].snapshots.len();
        let order = match self.rng.below(4) {
            0 => self.cores.inflate(id),
            1 if snapshots > 0 => {
                let at = self.below(snapshots);
                let snapshot = self.families[of].snapshots[at];
                (self.cores).order(move |pool| async move { pool.roll_back(id, snapshot).await })
            }
            2 if snapshots > 0 => {
                let at = self.below(snapshots);
                let snapshot = self.families[of].snapshots.swap_remove(at);
                (self.cores).order(move |pool| async move { pool.delete(snapshot).await })
            }
            _ if snapshots < 3 => {
                let taking = self.cores.node.core.spawn(async move {
                    let made = pool.snapshot(&[(id, named(&name))]).await;
                    made.unwrap()[0]
                });
                return self.taking.push((of, taking));
            }
            _ => return,
        };
        self.orders.push(order);
    }

    /// Takes what has ended.
    fn settle(&mut self) {
        for (of, taken) in self.taking.extract_if(.., |(_, taken)| taken.is_there()) {
            self.families[of].snapshots.push(taken.take());
        }
        for order in self.orders.extract_if(.., |order| order.is_there()) {
            order.take().unwrap();
        }
        for read in self.reads.extract_if(.., |read| read.found.is_there()) {
            let found = read.found.take();
            let writer = self.writers.get(usize::try_from(found).unwrap());
            let is_own = found <= read.last || writer == Some(&read.of);
            assert!(is_own, "volume {} read {found} of {writer:?}", read.of);
        }
    }

    fn run(&mut self) {
        for _ in 0..150 {
            let of = self.below(self.families.len());
            match self.rng.below(24) {
                0..5 => self.read(of),
                5..10 if self.orders.len() < 6 => self.change(of),
                10 if self.orders.len() < 6 && self.taking.is_empty() => self.order(of),
                11 => self.cores.medium.release_reads(),
                _ => self.cores.turn(3),
            }
            self.settle();
        }
        self.cores.medium.release_reads();
        self.cores.node.core.turn_until("the end of all", || {
            self.cores.other.turn();
            let reads = self.reads.iter().all(|read| read.found.is_there());
            let taking = self.taking.iter().all(|(_, taken)| taken.is_there());
            reads && taking && self.orders.iter().all(|order| order.is_there())
        });
        self.settle();
    }
}

#[test]
fn reads_return_what_their_volume_held_or_got_meanwhile() {
    for seed in 0..100 {
        let cores = Cores::new();
        World::new(&cores, seed).run();
        cores.node.checked();
    }
}
