//! Many operations at once, on one core and on two.

use std::{cell::RefCell, rc::Rc};

use corebay_core::{
    buffer::Buffer,
    disk::{Disk, Durability, Space},
    reactor::MachineClock,
    rng::Rng,
    units::{Lba, Time},
};

use super::Bench;
use crate::{
    Bed, TestCore,
    history::{Event, History},
    pattern,
};

/// Where random operations go.
#[derive(Clone, Copy)]
struct Area {
    first: u64,
    blocks: u64,
    longest: u64,
    /// Clear blocks too, not only write them.
    clears: bool,
}

/// One worker's run of random operations in an area, all entered into a history.
struct Worker<D> {
    disk: Rc<D>,
    history: Rc<RefCell<History>>,
    rng: Rng,
    area: Area,
    clock: MachineClock,
    /// Tags are this one, plus a multiple of `tag_step`.
    next_tag: u64,
    tag_step: u64,
    buffer: Buffer,
}

impl<D: Disk> Worker<D> {
    async fn run(mut self, operations: usize) {
        for _ in 0..operations {
            let blocks = 1 + self.rng.below(self.area.longest);
            let at = self.area.first + self.rng.below(self.area.blocks - blocks + 1);
            match self.rng.below(100) {
                0..40 => self.write(at, blocks).await,
                40..50 if self.area.clears => self.clear(at, blocks).await,
                50 => self.disk.flush().await.expect("flush"),
                _ => self.read(at, blocks).await,
            }
        }
    }

    /// The payload as one window or two, both of whole blocks.
    fn windows(&mut self, blocks: u64) -> Vec<Buffer> {
        let size = self.disk.info().block_size.bytes();
        let len = usize::try_from(blocks).expect("few") * size;
        let cut = usize::try_from(self.rng.below(blocks)).expect("few") * size;
        let parts = [0..cut, cut..len];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.map(|part| self.buffer.slice(part)).collect()
    }

    async fn write(&mut self, at: u64, blocks: u64) {
        let size = self.disk.info().block_size.bytes();
        let tag = self.next_tag;
        self.next_tag += self.tag_step;
        for (block, lba) in self
            .buffer
            .bytes_mut()
            .chunks_exact_mut(size)
            .zip(at..at + blocks)
        {
            pattern::fill(block, lba, tag);
        }
        let durability = match self.rng.once_in(50) {
            true => Durability::Durable,
            false => Durability::Cached,
        };
        let from = self.windows(blocks);
        let begin = self.clock.now();
        let written = self.disk.write(Lba(at), &from, durability).await;
        written.expect("write");
        self.enter(at, blocks, begin, tag);
    }

    async fn clear(&mut self, at: u64, blocks: u64) {
        let begin = self.clock.now();
        let cleared = match self.rng.below(3) {
            0 => self.disk.deallocate(Lba(at), blocks).await,
            way => {
                let space = if way == 1 {
                    Space::Keep
                } else {
                    Space::Deallocate
                };
                let durability = Durability::Cached;
                self.disk
                    .write_zeroes(Lba(at), blocks, space, durability)
                    .await
            }
        };
        cleared.expect("clear");
        self.enter(at, blocks, begin, pattern::ZEROES);
    }

    fn enter(&self, at: u64, blocks: u64, begin: Time, tag: u64) {
        let end = self.clock.now();
        for lba in at..at + blocks {
            let event = Event { begin, end, tag };
            self.history.borrow_mut().wrote(lba, event);
        }
    }

    async fn read(&mut self, at: u64, blocks: u64) {
        let size = self.disk.info().block_size.bytes();
        let into = self.windows(blocks);
        let begin = self.clock.now();
        self.disk.read(Lba(at), &into).await.expect("read");
        let end = self.clock.now();
        for (block, lba) in self.buffer.bytes().chunks_exact(size).zip(at..at + blocks) {
            let tag = pattern::tag_of(block, lba).unwrap_or_else(|torn| panic!("{torn}"));
            let event = Event { begin, end, tag };
            self.history.borrow_mut().read(lba, event);
        }
    }
}

/// Starts workers on a core and turns it until they have ended; what they did.
fn work<D: Disk>(
    core: &TestCore,
    disk: &Rc<D>,
    area: Area,
    workers: u64,
    operations: usize,
    seed: u64,
) -> History {
    let blocks = usize::try_from(area.blocks).expect("few");
    let history = Rc::new(RefCell::new(History::new(area.first, blocks)));
    let size = disk.info().block_size.bytes();
    let longest = usize::try_from(area.longest).expect("few");
    let core_number = core.reactor.core().0 as u64;
    let ends: Vec<_> = (0..workers)
        .map(|worker| {
            let number = core_number * workers + worker;
            let worker = Worker {
                disk: disk.clone(),
                history: history.clone(),
                rng: Rng::from_seed(seed ^ number << 32),
                area,
                clock: core.clock(),
                next_tag: 1 + number,
                tag_step: workers * 2,
                buffer: core.buffer(longest * size),
            };
            core.spawn(worker.run(operations))
        })
        .collect();
    for end in ends {
        core.turn_until("a worker's end", || end.is_there());
    }
    Rc::try_unwrap(history)
        .expect("the workers have ended")
        .into_inner()
}

/// A seed, new at each run unless `COREBAY_SEED` gives one.
fn seed() -> u64 {
    let given = std::env::var("COREBAY_SEED").ok();
    let seed = given.map_or_else(
        || {
            let random = std::hash::RandomState::new();
            std::hash::BuildHasher::hash_one(&random, 0)
        },
        |text| text.parse().expect("COREBAY_SEED is a number"),
    );
    println!("COREBAY_SEED={seed}");
    seed
}

/// Random reads, writes and clearings of overlapping ranges, many in flight.
pub fn random_operations_agree_with_the_model<B: Bed>(bed: &mut B) {
    let seed = seed();
    let bench = Bench::new(bed);
    let area = Area {
        first: 100,
        blocks: 96,
        longest: 16,
        clears: true,
    };
    let history = work(&bench.core, &bench.disk, area, 24, 50, seed);
    if let Err(problem) = history.check() {
        panic!("COREBAY_SEED={seed}: {problem}");
    }
}

/// Two threads read and write the same few blocks: every block that is read is wholly of one write,
/// and of none that was overwritten before the read began.
pub fn two_cores_see_whole_blocks<B: Bed>(bed: &mut B) {
    let seed = seed();
    let bed = &*bed;
    let clock = MachineClock::new();
    let area = Area {
        first: 7,
        blocks: 6,
        longest: 4,
        clears: false,
    };
    let run = |number: usize| {
        let core = TestCore::new(number, clock);
        let disk = Rc::new(bed.open(&core));
        work(&core, &disk, area, 4, 200, seed)
    };
    let (mut first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| run(1));
        let first = run(0);
        (first, second.join())
    });
    let second = second.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    first.merge(&second);
    if let Err(problem) = first.check() {
        panic!("COREBAY_SEED={seed}: {problem}");
    }
}
