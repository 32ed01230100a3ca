//! One core's commands: a task for each command in flight, from the first to the last.
//!
//! Invariants:
//! - With --verify, a unit belongs to one task, which has at most one command on it: what a read
//!   must find is what that task's last completed write left.
//! - Where a write failed, what its unit holds is unknown until the next write.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use corebay_core::{
    buffer::Buffer,
    net::os::OsNetwork,
    reactor::{MachineClock, Reactor},
    rng::Rng,
    units::Time,
};
use corebay_nvme::fabrics::{Error, IoQueue};

use super::{
    args::Pattern,
    content::{self, Stamp},
    plan::Plan,
    stats::{Direction, Live, Stats, count},
};

/// A generation that says that nothing is known.
const UNKNOWN: u32 = u32::MAX;

/// One core's run.
pub struct Job {
    pub plan: Arc<Plan>,
    pub reactor: Reactor,
    pub clock: MachineClock,
    pub live: Arc<Live>,
    pub interrupted: Arc<AtomicBool>,
    pub stats: RefCell<Stats>,
    /// What is measured lies between these.
    measure_from: Cell<Time>,
    until: Cell<Time>,
    /// The commands that may still be sent.
    left: Cell<u64>,
    /// With --rate: when the next command is due, and the time from one to the next.
    due: Cell<Time>,
    interval: Option<Duration>,
    /// The last completion that was measured.
    last: Cell<Time>,
    /// The tasks that still send what is measured, and those that have not ended.
    pub measuring: Cell<usize>,
    pub running: Cell<usize>,
    /// The tasks of all cores: a unit's number, divided by it, leaves its owner's.
    slots: u64,
    cursors: Vec<Cell<u64>>,
    first_queue: u64,
}

/// One task's place.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The queue, counted on this core.
    pub queue: usize,
    /// The task, counted over all cores.
    pub number: u64,
}

/// What one task knows of its units.
struct Owned {
    /// Of each unit, the generation that was last written; 0 where none was.
    generations: Vec<u32>,
    /// The units that were written, for random reads: what they hold is known.
    written: Vec<u64>,
    /// The generation of the next write, so that no two of the task's writes share one.
    generation: u32,
    /// With --pattern sequential: the next unit.
    next: u64,
}

impl Job {
    /// The run of core `index`, which starts when [`start`](Self::start) is called.
    pub fn new(
        plan: Arc<Plan>,
        index: usize,
        reactor: Reactor,
        clock: MachineClock,
        live: Arc<Live>,
        interrupted: Arc<AtomicBool>,
    ) -> Self {
        let queues = plan.queues_of(index);
        let cores = plan.cpus.len() as u64;
        let left = match plan.args.io_count {
            Some(all) => all / cores + u64::from((index as u64) < all % cores),
            None => u64::MAX,
        };
        let interval = plan
            .args
            .rate
            .map(|rate| Duration::from_nanos(1_000_000_000 * cores / rate));
        Self {
            first_queue: plan.queues_before(index),
            slots: u64::from(plan.queues) * u64::from(plan.args.depth),
            cursors: (0..queues).map(|_| Cell::new(0)).collect(),
            plan,
            reactor,
            clock,
            live,
            interrupted,
            stats: RefCell::new(Stats::new()),
            measure_from: Cell::new(Time::FAR),
            until: Cell::new(Time::FAR),
            left: Cell::new(left),
            due: Cell::new(Time(0)),
            interval,
            last: Cell::new(Time(0)),
            measuring: Cell::new(0),
            running: Cell::new(0),
        }
    }

    /// The places of this core's tasks.
    pub fn slots(&self) -> Vec<Slot> {
        let depth = usize::from(self.plan.args.depth);
        let queues = self.cursors.len();
        // Task by task over the queues, so that the first commands fall on all of them.
        let places = (0..depth).flat_map(|at| (0..queues).map(move |queue| (at, queue)));
        let number =
            |at: usize, queue: usize| (self.first_queue + queue as u64) * depth as u64 + at as u64;
        places
            .map(|(at, queue)| Slot {
                queue,
                number: number(at, queue),
            })
            .collect()
    }

    /// The time begins now.
    pub fn start(&self) {
        let now = self.clock.now();
        self.due.set(now);
        let from = now.plus(self.plan.args.ramp.duration());
        self.measure_from.set(from);
        self.until.set(from.plus(self.plan.args.time.duration()));
    }

    /// The time has ended: what was measured is complete.
    pub fn finish(&self) {
        let end = if self.left.get() == 0 || self.interrupted.load(Ordering::Relaxed) {
            self.last.get()
        } else {
            self.clock.now()
        };
        let end = end.min(self.until.get());
        self.stats.borrow_mut().elapsed = end.since(self.measure_from.get());
    }

    fn is_over(&self) -> bool {
        self.left.get() == 0
            || self.interrupted.load(Ordering::Relaxed)
            || self.reactor.now() >= self.until.get()
    }

    /// One task: sends one command after the other, then reads back what it has written.
    pub async fn run(self: Rc<Self>, slot: Slot, queue: IoQueue<OsNetwork>, buffer: Buffer) {
        let mut rng = Rng::from_seed(self.plan.args.seed ^ (slot.number + 1) << 20);
        let mut buffer = [buffer];
        let verify = self.plan.args.verify;
        let mut owned = Owned {
            generations: Vec::new(),
            written: Vec::new(),
            generation: 1,
            next: 0,
        };
        if verify {
            let units = self.units_of(slot);
            owned.generations = vec![0; usize::try_from(units).expect("checked by the plan")];
        }
        rng.fill(&mut buffer[0].bytes_mut());
        while !self.is_over() {
            let due = self.wait_until_due().await;
            if self.is_over() {
                break;
            }
            self.left.set(self.left.get() - 1);
            let outcome = if verify {
                self.verified(slot, &queue, &mut buffer, &mut rng, &mut owned, due)
                    .await
            } else {
                self.plain(slot, &queue, &buffer, &mut rng, due).await
            };
            if outcome.is_err_and(|error| error.is_connection_lost()) {
                // The controller is gone for good: every further command would fail at once.
                self.left.set(0);
            }
        }
        self.measuring.set(self.measuring.get() - 1);
        if verify && self.plan.read_percent < 100 {
            self.read_back(slot, &queue, &mut buffer, &owned).await;
        }
        self.running.set(self.running.get() - 1);
    }

    /// When the next command is due; waits until then.
    async fn wait_until_due(&self) -> Option<Time> {
        let interval = self.interval?;
        let due = self.due.get();
        self.due.set(due.plus(interval));
        if due > self.clock.now() {
            self.reactor.sleep_until(due.min(self.until.get())).await;
        }
        Some(due)
    }

    fn direction(&self, rng: &mut Rng) -> Direction {
        match self.plan.read_percent {
            100 => Direction::Read,
            0 => Direction::Write,
            percent if rng.below(100) < u64::from(percent) => Direction::Read,
            _ => Direction::Write,
        }
    }

    async fn plain(
        &self,
        slot: Slot,
        queue: &IoQueue<OsNetwork>,
        buffer: &[Buffer; 1],
        rng: &mut Rng,
        due: Option<Time>,
    ) -> Result<(), Error> {
        let direction = self.direction(rng);
        let unit = match self.plan.args.pattern {
            Pattern::Random => rng.below(self.plan.units),
            Pattern::Sequential => self.next_of_queue(slot.queue),
        };
        self.measured(direction, unit, queue, buffer, due).await
    }

    /// The next unit of a queue's own part.
    fn next_of_queue(&self, queue: usize) -> u64 {
        let share = self.plan.units / u64::from(self.plan.queues);
        let cursor = &self.cursors[queue];
        let at = cursor.get();
        cursor.set((at + 1) % share);
        (self.first_queue + queue as u64) * share + at
    }

    /// Sends one command, and counts what becomes of it.
    async fn measured(
        &self,
        direction: Direction,
        unit: u64,
        queue: &IoQueue<OsNetwork>,
        buffer: &[Buffer; 1],
        due: Option<Time>,
    ) -> Result<(), Error> {
        let plan = &*self.plan;
        let (nsid, slba, blocks) = (plan.args.nsid, plan.slba(unit), plan.unit_blocks);
        let start = due.unwrap_or_else(|| self.clock.now());
        let outcome = match direction {
            Direction::Read => queue.read(nsid, slba, blocks, buffer).await,
            Direction::Write => queue.write(nsid, slba, blocks, buffer, false).await,
        };
        let end = self.clock.now();
        count(&self.live.ios);
        if start < self.measure_from.get() || end > self.until.get() {
            if let Err(error) = outcome {
                self.failed(direction, &error);
            }
            return outcome;
        }
        self.last.set(end);
        match outcome {
            Ok(()) => {
                let mut stats = self.stats.borrow_mut();
                stats.succeeded(direction, end.since(start));
            }
            Err(error) => self.failed(direction, &error),
        }
        outcome
    }

    fn failed(&self, direction: Direction, error: &Error) {
        count(&self.live.errors);
        let mut stats = self.stats.borrow_mut();
        stats.failed(direction, error.to_string());
    }
}

/// Verification.
impl Job {
    /// How many units belong to a task: every one whose number leaves the task's when divided.
    fn units_of(&self, slot: Slot) -> u64 {
        let units = self.plan.units;
        units / self.slots + u64::from(slot.number < units % self.slots)
    }

    async fn verified(
        &self,
        slot: Slot,
        queue: &IoQueue<OsNetwork>,
        buffer: &mut [Buffer; 1],
        rng: &mut Rng,
        owned: &mut Owned,
        due: Option<Time>,
    ) -> Result<(), Error> {
        let direction = self.direction(rng);
        let units = owned.generations.len() as u64;
        let at = match (self.plan.args.pattern, direction) {
            (Pattern::Sequential, _) => {
                let at = owned.next;
                owned.next = (at + 1) % units;
                at
            }
            (Pattern::Random, Direction::Read) if !owned.written.is_empty() => {
                let known = rng.below(owned.written.len() as u64);
                owned.written[usize::try_from(known).expect("within a vector")]
            }
            (Pattern::Random, _) => rng.below(units),
        };
        let unit = at * self.slots + slot.number;
        let generation = &mut owned.generations[usize::try_from(at).expect("within a vector")];
        match direction {
            Direction::Write => {
                let next = owned.generation;
                owned.generation = if next == UNKNOWN - 1 { 1 } else { next + 1 };
                self.fill(unit, next, &mut buffer[0]);
                if *generation == 0 {
                    owned.written.push(at);
                }
                *generation = UNKNOWN;
                let outcome = self.measured(direction, unit, queue, buffer, due).await;
                if outcome.is_ok() {
                    *generation = next;
                }
                outcome
            }
            Direction::Read => {
                let outcome = self.measured(direction, unit, queue, buffer, due).await;
                if outcome.is_ok() {
                    self.check(unit, *generation, &mut buffer[0]);
                }
                outcome
            }
        }
    }

    fn stamp(&self, lba: u64, generation: u32) -> Stamp {
        Stamp {
            lba,
            generation: u64::from(generation),
            seed: self.plan.args.seed,
        }
    }

    fn fill(&self, unit: u64, generation: u32, buffer: &mut Buffer) {
        let first = self.plan.slba(unit);
        let mut bytes = buffer.bytes_mut();
        for (block, lba) in bytes.chunks_mut(self.plan.lba_bytes as usize).zip(first..) {
            content::fill(block, self.stamp(lba, generation));
        }
    }

    fn check(&self, unit: u64, generation: u32, buffer: &mut Buffer) {
        let first = self.plan.slba(unit);
        let blocks = u64::from(self.plan.unit_blocks);
        let only_reads = self.plan.read_percent == 100;
        let mut stats = self.stats.borrow_mut();
        if generation == UNKNOWN || (generation == 0 && !only_reads) {
            stats.verify.unknown += blocks;
            return;
        }
        let mut bytes = buffer.bytes_mut();
        for (block, lba) in bytes.chunks_mut(self.plan.lba_bytes as usize).zip(first..) {
            let expected = (!only_reads).then(|| self.stamp(lba, generation));
            match content::check(block, lba, expected) {
                Ok(()) => stats.verify.blocks += 1,
                // Never written: nothing is known of it, and zeroes are what it should hold.
                Err(mismatch) if only_reads && mismatch.found == content::Wrong::Zeroes => {
                    stats.verify.unknown += 1;
                }
                Err(mismatch) => stats.mismatched(mismatch),
            }
        }
    }

    /// Reads everything that the task has written, once.
    async fn read_back(
        &self,
        slot: Slot,
        queue: &IoQueue<OsNetwork>,
        buffer: &mut [Buffer; 1],
        owned: &Owned,
    ) {
        let written = |generation: u32| generation != 0 && generation != UNKNOWN;
        let all = owned
            .generations
            .iter()
            .filter(|one| written(**one))
            .count();
        self.stats.borrow_mut().verify.read_back.0 += all as u64;
        for (&generation, at) in owned.generations.iter().zip(0u64..) {
            if !written(generation) {
                continue;
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return;
            }
            let unit = at * self.slots + slot.number;
            let plan = &*self.plan;
            let (slba, blocks) = (plan.slba(unit), plan.unit_blocks);
            match queue.read(plan.args.nsid, slba, blocks, &*buffer).await {
                Ok(()) => {
                    self.check(unit, generation, &mut buffer[0]);
                    self.stats.borrow_mut().verify.read_back.1 += 1;
                    count(&self.live.read_back);
                }
                Err(error) => {
                    self.failed(Direction::Read, &error);
                    if error.is_connection_lost() {
                        return;
                    }
                }
            }
        }
    }
}
