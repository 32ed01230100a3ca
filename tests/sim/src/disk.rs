//! A core's way to a simulated medium: a queue of operations in flight, each with the time at which
//! the device carries it out.
//!
//! Invariants:
//! - The device moves data when an operation has its effect, not when it is submitted: memory that
//!   was freed or reused meanwhile gives itself away.
//! - Effects come in the order of their times, so operations overtake each other.
//! - A completion reaches the core with its next turn; between effect and completion the process may
//!   die.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::{Buffer, DevicePin, Direction},
    disk::{Disk, DiskError, DiskInfo, Durability, SEGMENTS_MAX, Space},
    reactor::{PollSource, Reactor},
    sync::{OpTable, Token},
    units::{Lba, Time},
};

use crate::{
    medium::{Content, SimMedium},
    trace::{Trace, event},
};

/// Operations that a core has in flight on one disk.
const DEPTH: usize = 64;

/// Tasks that may wait for one of them to end.
const WAITERS: usize = 1024;

/// All queues of a node's disks, so that the world can let time pass for them.
pub type Queues = Rc<RefCell<Vec<Rc<DiskQueue>>>>;

enum Work {
    Read,
    Write { durable: bool },
    Clear { durable: bool },
    Spoil,
    Flush { order: u64 },
}

impl Work {
    /// For the trace.
    fn number(&self) -> u64 {
        match self {
            Self::Read => 1,
            Self::Write { durable } => 2 + u64::from(*durable),
            Self::Clear { durable } => 4 + u64::from(*durable),
            Self::Spoil => 6,
            Self::Flush { .. } => 7,
        }
    }
}

struct Operation {
    due: Time,
    sequence: u64,
    token: Token,
    work: Work,
    at: u64,
    blocks: u64,
    buffers: ArrayVec<Buffer, SEGMENTS_MAX>,
    pins: ArrayVec<DevicePin, SEGMENTS_MAX>,
}

/// What a core has in flight on one disk.
pub struct DiskQueue {
    medium: SimMedium,
    trace: Trace,
    reactor: Reactor,
    table: OpTable<(), Result<(), DiskError>>,
    flying: RefCell<Vec<Operation>>,
    done: RefCell<VecDeque<(Token, Result<(), DiskError>)>>,
    sequence: Cell<u64>,
    /// When the next operation has its effect.
    next: Cell<Time>,
    gone: Cell<bool>,
}

/// A core's disk over a [`SimMedium`].
pub struct SimDisk {
    queue: Rc<DiskQueue>,
}

impl SimDisk {
    /// Opens a medium on the core of `reactor`.
    ///
    /// # Errors
    /// Where it is unplugged.
    pub fn open(
        medium: &SimMedium,
        reactor: &Reactor,
        trace: &Trace,
        queues: &Queues,
    ) -> Result<Self, DiskError> {
        if medium.is_gone() {
            return Err(DiskError::Gone);
        }
        // A reactor keeps its sources: who opens a medium again gets the same queue.
        let is_it = |queue: &&Rc<DiskQueue>| {
            let here = queue.reactor.core() == reactor.core();
            here && queue.medium.is_same(medium) && !queue.gone.get()
        };
        if let Some(queue) = queues.borrow().iter().find(is_it) {
            let queue = queue.clone();
            return Ok(Self { queue });
        }
        let queue = Rc::new(DiskQueue {
            medium: medium.clone(),
            trace: trace.clone(),
            reactor: reactor.clone(),
            table: OpTable::new(DEPTH, WAITERS),
            flying: RefCell::default(),
            done: RefCell::default(),
            sequence: Cell::new(0),
            next: Cell::new(Time::FAR),
            gone: Cell::new(false),
        });
        reactor.add_source(queue.clone());
        queues.borrow_mut().push(queue.clone());
        Ok(Self { queue })
    }
}

impl DiskQueue {
    /// When the next operation has its effect.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        Some(self.next.get()).filter(|next| *next != Time::FAR)
    }

    /// Carries out what is due.
    pub fn advance(&self, now: Time) {
        if self.medium.is_gone() && !self.gone.replace(true) {
            let lost = std::mem::take(&mut *self.flying.borrow_mut());
            let mut done = self.done.borrow_mut();
            done.extend(lost.iter().map(|op| (op.token, Err(DiskError::Gone))));
            self.next.set(Time::FAR);
        }
        if self.next.get() > now {
            return;
        }
        while let Some(operation) = self.take_due(now) {
            let token = operation.token;
            let result = self.carry_out(operation);
            self.done.borrow_mut().push_back((token, result));
        }
        let next = self.flying.borrow().iter().map(|op| op.due).min();
        self.next.set(next.unwrap_or(Time::FAR));
    }

    /// Operations in flight or not yet told of.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.table.in_use()
    }

    /// The power fails: what was being written is written, block by block, or not.
    pub fn abandon(&self) {
        for operation in std::mem::take(&mut *self.flying.borrow_mut()) {
            self.half_done(&operation, true);
        }
    }

    /// The process is killed: what the kernel has begun is carried out in its time, the rest never.
    pub fn orphan(&self) {
        for operation in std::mem::take(&mut *self.flying.borrow_mut()) {
            let mut blocks = Vec::new();
            // The kernel may have cut it up: each part by itself.
            let mut take = |at, content| {
                if self.medium.toss() {
                    blocks.push((at, content));
                }
                Ok(())
            };
            let _: Result<(), DiskError> = match operation.work {
                Work::Write { .. } => self.each_block(&operation, take),
                Work::Clear { .. } => {
                    let mut all = operation.at..operation.at + operation.blocks;
                    all.try_for_each(|at| take(at, Content::Zeroes))
                }
                Work::Read | Work::Spoil | Work::Flush { .. } => Ok(()),
            };
            self.medium.add_orphan(operation.due, blocks);
        }
    }

    fn take_due(&self, now: Time) -> Option<Operation> {
        let mut flying = self.flying.borrow_mut();
        let next = (0..flying.len()).min_by_key(|&i| (flying[i].due, flying[i].sequence))?;
        (flying[next].due <= now).then(|| flying.swap_remove(next))
    }

    async fn submit(
        &self,
        work: Work,
        at: Lba,
        blocks: u64,
        buffers: &[Buffer],
    ) -> Result<(), DiskError> {
        let submitted = self.table.begin(()).await;
        let token = submitted.token();
        if self.gone.get() || self.medium.is_gone() {
            self.done
                .borrow_mut()
                .push_back((token, Err(DiskError::Gone)));
            return submitted.outcome().await;
        }
        let reads = matches!(work, Work::Read);
        let direction = match reads {
            true => Direction::FromDevice,
            false => Direction::ToDevice,
        };
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        let due = self.reactor.now().plus(self.medium.draw_latency(reads));
        self.next.set(self.next.get().min(due));
        self.flying.borrow_mut().push(Operation {
            due,
            sequence,
            token,
            work,
            at: at.0,
            blocks,
            buffers: buffers.iter().cloned().collect(),
            pins: buffers.iter().map(|buffer| buffer.pin(direction)).collect(),
        });
        submitted.outcome().await
    }

    fn carry_out(&self, mut operation: Operation) -> Result<(), DiskError> {
        operation.pins.clear();
        let (at, blocks) = (operation.at, operation.blocks);
        let what = operation.work.number() << 56 | operation.sequence << 32 | blocks;
        self.trace.mark([event::DEVICE, at, what]);
        match operation.work {
            Work::Read => self.read(&mut operation),
            Work::Write { durable } => {
                if self.medium.fails_write() {
                    self.half_done(&operation, false);
                    return Err(DiskError::WriteFault);
                }
                self.each_block(&operation, |at, content| {
                    self.medium.write(at, content, durable)
                })
            }
            Work::Clear { durable } => {
                (at..at + blocks).try_for_each(|at| self.medium.write(at, Content::Zeroes, durable))
            }
            Work::Spoil => {
                (at..at + blocks).try_for_each(|at| self.medium.write(at, Content::Lost, false))
            }
            Work::Flush { order } => {
                self.medium.flush(order);
                Ok(())
            }
        }
    }

    /// Each block of a write by itself is written or not, or torn by a loss of power.
    fn half_done(&self, operation: &Operation, power: bool) {
        let some = |at, content| match self.medium.toss() {
            _ if power && self.medium.tears_now() => self.medium.write(at, Content::Lost, true),
            // Without space a block stays as it was.
            true => self.medium.write(at, content, false).or(Ok(())),
            false => Ok(()),
        };
        let _: Result<(), DiskError> = match operation.work {
            Work::Write { .. } => self.each_block(operation, some),
            Work::Clear { .. } => {
                let mut blocks = operation.at..operation.at + operation.blocks;
                blocks.try_for_each(|at| some(at, Content::Zeroes))
            }
            Work::Read | Work::Spoil | Work::Flush { .. } => Ok(()),
        };
    }

    fn each_block(
        &self,
        operation: &Operation,
        mut action: impl FnMut(u64, Content) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let block = self.medium.options().block_size.bytes();
        let mut at = operation.at;
        for buffer in &operation.buffers {
            for bytes in buffer.bytes().chunks(block) {
                action(at, Content::of(bytes))?;
                at += 1;
            }
        }
        Ok(())
    }

    fn read(&self, operation: &mut Operation) -> Result<(), DiskError> {
        let block = self.medium.options().block_size.bytes();
        let mut at = operation.at;
        for buffer in &mut operation.buffers {
            for into in buffer.bytes_mut().chunks_mut(block) {
                match self.medium.read(at)? {
                    Content::Bytes(bytes) => into.copy_from_slice(&bytes),
                    Content::Zeroes | Content::Lost => into.fill(0),
                }
                at += 1;
            }
        }
        Ok(())
    }
}

impl PollSource for DiskQueue {
    fn poll(&self, _now: Time) -> usize {
        let mut count = 0;
        loop {
            let Some((token, result)) = self.done.borrow_mut().pop_front() else {
                return count;
            };
            self.table.complete(token, result);
            count += 1;
        }
    }
}

fn durable(durability: Durability) -> bool {
    durability == Durability::Durable
}

impl SimDisk {
    fn blocks_of(&self, buffers: &[Buffer]) -> u64 {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        self.info().block_size.blocks_in(bytes as u64)
    }

    fn check(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        assert!(blocks > 0, "an operation on no block");
        match self.info().contains(at, blocks) {
            true => Ok(()),
            false => Err(DiskError::OutOfRange),
        }
    }
}

impl Disk for SimDisk {
    fn info(&self) -> DiskInfo {
        self.queue.medium.info()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let blocks = self.blocks_of(into);
        self.check(at, blocks)?;
        self.queue.submit(Work::Read, at, blocks, into).await
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let blocks = self.blocks_of(from);
        self.check(at, blocks)?;
        let durable = durable(durability);
        self.queue
            .submit(Work::Write { durable }, at, blocks, from)
            .await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        let order = self.queue.medium.order();
        self.queue
            .submit(Work::Flush { order }, Lba(0), 0, &[])
            .await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.check(at, blocks)?;
        let work = Work::Clear { durable: false };
        self.queue.submit(work, at, blocks, &[]).await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        _space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.check(at, blocks)?;
        let durable = durable(durability);
        self.queue
            .submit(Work::Clear { durable }, at, blocks, &[])
            .await
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.check(at, blocks)?;
        self.queue.submit(Work::Spoil, at, blocks, &[]).await
    }
}
