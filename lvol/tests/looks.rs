//! Reads that are under way while what they look at is left to another volume: none returns what that writes
//! there.

use std::{future::Future, rc::Rc};

use crate::support::{Medium, MediumDisk, Node, disk, named};
use corebay_conformance::{Outcome, TestCore};
use corebay_core::{
    disk::{Disk, DiskError, Durability},
    mesh::Wakeups,
    reactor::MachineClock,
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

    fn read(&self) -> Outcome<u64> {
        let (volume, into) = (self.volume.clone(), self.core.buffer(512));
        self.core.spawn(async move {
            let read = volume.read(Lba(AT), std::slice::from_ref(&into)).await;
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
        assert_eq!(cores.end("a look", &open.read()), BEFORE);
    }
    if way == Way::Rest {
        let beside = writer.write(FIRST, 1, BEFORE);
        cores.end("a write beside", &beside).unwrap();
    }
    let mut orders = Vec::new();
    orders.extend(volumes.begin(&cores, way));
    cores.turn(turns);
    cores.medium.hold_next_read();
    let read = reader.read();
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
    assert_eq!(cores.end("a read", &writer.read()), OF_WRITER);
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
