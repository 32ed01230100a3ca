//! Limits of volumes, in a time that the test makes.

use std::{rc::Rc, time::Duration};

use crate::support::{Medium, MediumDisk, Node, named};
use corebay_conformance::{Outcome, TestCore};
use corebay_core::{
    disk::{Cost, Direction, Disk, DiskError, Durability},
    mesh::Wakeups,
    reactor::{MachineClock, Reactor},
    units::{BlockSize, Lba, Time},
};
use corebay_lvol::{Limits, PoolCore, Rate, Volume, VolumeId};

const BLOCKS: u64 = 1024;

/// Waits as who passes on hosts' commands does.
async fn admitted(volume: &Volume<MediumDisk>, reactor: &Reactor, cost: Cost) {
    loop {
        let mut at = reactor.now();
        let admission = volume.admit(cost, at);
        while volume.limits_generation() == admission.generation {
            if admission.from <= at {
                return;
            }
            let look = at.plus(Duration::from_millis(10));
            reactor.sleep_until(admission.from.min(look)).await;
            at = reactor.now();
        }
    }
}

fn cost(direction: Direction, bytes: usize) -> Cost {
    Cost {
        direction,
        operations: 1,
        bytes: bytes as u64,
    }
}

/// Cores that turn together, in one time.
struct Bench {
    node: Node,
    other: TestCore,
    volumes: [Rc<Volume<MediumDisk>>; 2],
    id: VolumeId,
    now: Time,
}

impl Bench {
    fn new() -> Self {
        let medium = Medium::new(BlockSize::B4096, 48 << 20, false, 1);
        let node = Node::create(&medium);
        let id = node.create_volume("v", BLOCKS);
        let handle = node.pool.share(2, Wakeups::None).unwrap();
        let other = TestCore::new(1, MachineClock::new());
        let part = PoolCore::open(&handle, &other.reactor, medium.open()).unwrap();
        let volume = node.pool.volume_handle(id).unwrap();
        let volumes = [
            node.open(id),
            Rc::new(Volume::open(&part, &volume).unwrap()),
        ];
        let own = &volumes[0];
        for at in (0..BLOCKS).step_by(256) {
            node.write(own, at, 256, 1, Durability::Cached).unwrap();
        }
        Self {
            node,
            other,
            volumes,
            id,
            // Later than whatever the clock says.
            now: Time(1_000_000_000_000),
        }
    }

    /// Both cores turn until nothing is left to do; then time goes on.
    fn step(&mut self) {
        let cores = [&self.node.core.reactor, &self.other.reactor];
        while cores
            .iter()
            .map(|core| core.poll_once(self.now))
            .sum::<usize>()
            > 0
        {}
        let next = cores.iter().filter_map(|core| core.next_deadline()).min();
        let most = self.now.plus(Duration::from_millis(10));
        self.now = next
            .unwrap_or(most)
            .clamp(self.now.plus(Duration::from_nanos(1)), most);
    }

    fn finish<T: 'static>(&mut self, all: &[Outcome<T>]) -> Duration {
        let from = self.now;
        while !all.iter().all(Outcome::is_there) {
            self.step();
            assert!(self.now.since(from) < Duration::from_secs(100), "it hangs");
        }
        self.now.since(from)
    }

    fn set(&mut self, limits: Limits) {
        let (pool, id) = (self.node.pool.clone(), self.id);
        let set = self
            .node
            .core
            .spawn(async move { pool.set_limits(id, &limits).await });
        self.finish(std::slice::from_ref(&set));
        set.take().unwrap();
    }

    /// Begins operations, on both cores in turn.
    fn begin(&self, count: u64, blocks: u64, reads: bool) -> Vec<Outcome<Result<(), DiskError>>> {
        let one = |number: u64| {
            let core = [&self.node.core, &self.other][(number % 2) as usize];
            let volume = self.volumes[(number % 2) as usize].clone();
            let buffer = core.buffer(4096 * blocks as usize);
            let at = Lba(number * blocks % (BLOCKS - blocks));
            let reactor = core.reactor.clone();
            core.spawn(async move {
                let buffers = std::slice::from_ref(&buffer);
                let direction = if reads {
                    Direction::Read
                } else {
                    Direction::Write
                };
                admitted(&volume, &reactor, cost(direction, buffer.len())).await;
                match reads {
                    true => volume.read(at, buffers).await,
                    false => volume.write(at, buffers, Durability::Cached).await,
                }
            })
        };
        (0..count).map(one).collect()
    }
}

fn rate(per_second: u64, burst: u64) -> Rate {
    Rate { per_second, burst }
}

fn assert_near(took: Duration, millis: u64) {
    let wanted = Duration::from_millis(millis);
    let slack = Duration::from_millis(25);
    assert!(
        took + slack >= wanted && took <= wanted + slack,
        "{took:?}, not {wanted:?}"
    );
}

#[test]
fn both_cores_together_keep_to_the_limits() {
    let mut bench = Bench::new();
    bench.set(Limits {
        write_operations: rate(100, 10),
        read_bytes: rate(1 << 20, 0),
        ..Limits::default()
    });
    let writes = bench.begin(110, 1, false);
    assert_near(bench.finish(&writes), 1000);
    // 64 reads of 32 KiB are two seconds' worth.
    let reads = bench.begin(64, 8, true);
    assert_near(bench.finish(&reads), 1970);
    // The last one is paid for.
    for _ in 0..10 {
        bench.step();
    }
    // Reads are not held up by writes that wait, nor writes by reads.
    let writes = bench.begin(60, 1, false);
    let read = bench.begin(1, 1, true);
    assert_near(bench.finish(&read), 0);
    bench.finish(&writes);
    for done in writes {
        done.take().unwrap();
    }
}

#[test]
fn a_limit_that_is_taken_away_lets_go_who_waits() {
    let mut bench = Bench::new();
    bench.set(Limits {
        write_operations: rate(1, 0),
        ..Limits::default()
    });
    let writes = bench.begin(80, 1, false);
    for _ in 0..150 {
        bench.step();
    }
    let done = writes.iter().filter(|write| write.is_there()).count();
    assert!((1..=3).contains(&done), "{done}");
    bench.set(Limits {
        write_operations: rate(1000, 0),
        ..Limits::default()
    });
    assert_near(bench.finish(&writes[..40]), 75);
    bench.set(Limits::default());
    assert!(bench.finish(&writes) < Duration::from_millis(80));
}

#[test]
fn limits_are_the_volumes_own_and_are_kept() {
    let medium = Medium::new(BlockSize::B512, 8 << 20, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 100);
    let limits = Limits {
        read_operations: rate(10, 1),
        read_bytes: rate(20, 2),
        write_operations: rate(30, 3),
        write_bytes: rate(40, 4),
    };
    node.run(move |pool| async move { pool.set_limits(id, &limits).await })
        .unwrap();
    let snapshot = node.snapshot(id, "s");
    let clone = node.run(move |pool| async move { pool.clone_volume(snapshot, &named("c")).await });
    let of = |node: &Node, id| node.pool.volume(id).unwrap().limits;
    assert_eq!(of(&node, clone.unwrap()), Limits::default());
    node.run(move |pool| async move { pool.roll_back(id, snapshot).await })
        .unwrap();
    assert_eq!(of(&node, id), limits);
    drop(node);
    for checkpoint in [false, true] {
        let node = Node::import(&medium).unwrap();
        assert_eq!(of(&node, id), limits);
        if !checkpoint {
            node.checkpoint();
        }
    }
}

#[test]
fn what_waited_while_the_volume_shrank_is_refused() {
    let mut bench = Bench::new();
    bench.set(Limits {
        write_operations: rate(100, 1),
        ..Limits::default()
    });
    let mut waiting = bench.begin(20, 32, false);
    for (core, volume) in [&bench.node.core, &bench.other]
        .into_iter()
        .zip(&bench.volumes)
    {
        let (volume, reactor) = (volume.clone(), core.reactor.clone());
        waiting.push(core.spawn(async move {
            admitted(&volume, &reactor, cost(Direction::Write, 0)).await;
            volume.deallocate(Lba(512), 64).await
        }));
    }
    let (pool, id) = (bench.node.pool.clone(), bench.id);
    let resized = (bench.node.core).spawn(async move { pool.resize(id, 32, true).await });
    bench.finish(std::slice::from_ref(&resized));
    resized.take().unwrap();
    bench.finish(&waiting);
    let refused = waiting.iter().map(Outcome::take).filter(|ended| {
        assert!(
            matches!(ended, Ok(()) | Err(DiskError::OutOfRange)),
            "{ended:?}"
        );
        ended.is_err()
    });
    assert!(refused.count() >= 10);
    bench.set(Limits::default());
    let write = bench.begin(1, 32, false);
    bench.finish(&write);
    assert_eq!(write[0].take(), Ok(()));
}

#[test]
fn a_read_that_waited_while_the_volume_shrank_finds_no_other_blocks() {
    const FAR: u64 = 1 << 20;
    let mut bench = Bench::new();
    let id = bench.id;
    let resize = |bench: &mut Bench, blocks| {
        let pool = bench.node.pool.clone();
        let resized = (bench.node.core).spawn(async move { pool.resize(id, blocks, true).await });
        bench.finish(std::slice::from_ref(&resized));
        resized.take().unwrap();
    };
    let read = |bench: &Bench, at| {
        let (volume, buffer) = (bench.volumes[0].clone(), bench.node.core.buffer(4096));
        let reactor = bench.node.core.reactor.clone();
        bench.node.core.spawn(async move {
            admitted(&volume, &reactor, cost(Direction::Read, 4096)).await;
            let read = volume.read(Lba(at), std::slice::from_ref(&buffer)).await;
            read.map(|()| buffer.bytes().iter().all(|byte| *byte == 0))
        })
    };
    resize(&mut bench, FAR + 1024);
    bench.set(Limits {
        read_operations: rate(10, 1),
        ..Limits::default()
    });
    let waiting = [0, 1, FAR].map(|at| read(&bench, at));
    resize(&mut bench, BLOCKS);
    bench.finish(&waiting);
    assert_eq!(waiting[0].take(), Ok(false));
    assert_eq!(waiting[2].take(), Err(DiskError::OutOfRange));
    resize(&mut bench, FAR + 1024);
    bench.set(Limits::default());
    let again = read(&bench, FAR);
    bench.finish(std::slice::from_ref(&again));
    assert_eq!(again.take(), Ok(true));
}
