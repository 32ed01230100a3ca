//! A disk that misbehaves as it is told: for tests of what lies above.
//!
//! A [`FaultDisk`] passes everything on to another disk, unless a rule of its [`Faults`] says
//! otherwise. One `Faults` may command several disks of a core (two paths to one medium, say).
//!
//! Invariants:
//! - Without rules it is the disk below.
//! - The same rules, seed and operations give the same faults.
//! - A fault keeps the contract: an operation ends once, a failed write leaves each of its blocks old
//!   or new, and after [`DiskError::Gone`] there is nothing but that.

use std::{
    cell::RefCell,
    future::poll_fn,
    ops::Range,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use arrayvec::ArrayVec;

use super::{Disk, DiskError, DiskInfo, Durability, SEGMENTS_MAX, Space};
use crate::{buffer::Buffer, reactor::Reactor, rng::Rng, units::Lba};

/// The kinds of operations that a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Disk::read`].
    Read,
    /// [`Disk::write`].
    Write,
    /// [`Disk::flush`].
    Flush,
    /// [`Disk::deallocate`].
    Deallocate,
    /// [`Disk::write_zeroes`].
    WriteZeroes,
    /// [`Disk::write_uncorrectable`].
    WriteUncorrectable,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does nothing and fails.
    Fail(DiskError),
    /// It waits this long first.
    Delay(Duration),
    /// It waits until [`Faults::release`].
    Hang,
    /// A write writes this many of its blocks and fails ([`DiskError::WriteFault`]); other operations
    /// only fail.
    Torn {
        /// The blocks written.
        blocks: u64,
    },
    /// It and everything after it finds the disk gone.
    Gone,
}

/// Which operations an effect has. Starts as all of them; each method narrows it.
#[derive(Clone, Debug)]
pub struct Rule {
    effect: Effect,
    operation: Option<Operation>,
    blocks: Option<Range<u64>>,
    skip: u64,
    times: u64,
    one_in: u64,
}

impl Rule {
    /// Every operation has this effect.
    #[must_use]
    pub fn new(effect: Effect) -> Self {
        Self {
            effect,
            operation: None,
            blocks: None,
            skip: 0,
            times: u64::MAX,
            one_in: 1,
        }
    }

    /// Only operations of this kind.
    #[must_use]
    pub fn on(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Only operations that touch some of these blocks.
    #[must_use]
    pub fn at(mut self, first: Lba, blocks: u64) -> Self {
        self.blocks = Some(first.0..first.plus(blocks).0);
        self
    }

    /// Only the `nth` one (1 is the next) that the rule otherwise holds for.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.skip = nth.saturating_sub(1);
        self.times = 1;
        self
    }

    /// Only so many times, and never after.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Only one in so many, at random.
    #[must_use]
    pub fn one_in(mut self, one_in: u64) -> Self {
        self.one_in = one_in;
        self
    }
}

/// The rules of one or several [`FaultDisk`]s of a core; clones name the same ones.
#[derive(Clone, Debug)]
pub struct Faults {
    state: Rc<RefCell<State>>,
}

#[derive(Debug)]
struct State {
    rules: Vec<Rule>,
    rng: Rng,
    gone: bool,
    seen: u64,
    had_effect: u64,
    /// Counts [`Faults::release`], so that an operation that hangs can tell whether it came.
    releases: u64,
    hanging: Vec<Waker>,
}

impl Faults {
    /// No rules yet; those with a probability draw from this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: Rc::new(RefCell::new(State {
                rules: Vec::new(),
                rng: Rng::from_seed(seed),
                gone: false,
                seen: 0,
                had_effect: 0,
                releases: 0,
                hanging: Vec::new(),
            })),
        }
    }

    /// Adds a rule. Of several that hold for an operation, the one that was added first has effect.
    pub fn add(&self, rule: Rule) {
        self.state.borrow_mut().rules.push(rule);
    }

    /// Takes all rules back. What hangs or waits goes on doing so; what is gone stays gone.
    pub fn clear(&self) {
        self.state.borrow_mut().rules.clear();
    }

    /// Lets everything that hangs carry on.
    pub fn release(&self) {
        let hanging = {
            let mut state = self.state.borrow_mut();
            state.releases += 1;
            std::mem::take(&mut state.hanging)
        };
        hanging.into_iter().for_each(Waker::wake);
    }

    /// The disks are gone from now on; what hangs finds out at once.
    pub fn remove(&self) {
        self.state.borrow_mut().gone = true;
        self.release();
    }

    /// The operations that have come.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.state.borrow().seen
    }

    /// The operations that a rule had an effect on.
    #[must_use]
    pub fn had_effect(&self) -> u64 {
        self.state.borrow().had_effect
    }

    /// The operations that hang.
    #[must_use]
    pub fn hanging(&self) -> usize {
        self.state.borrow().hanging.len()
    }

    fn is_gone(&self) -> bool {
        self.state.borrow().gone
    }

    fn effect_on(&self, operation: Operation, blocks: &Range<u64>) -> Option<Effect> {
        let state = &mut *self.state.borrow_mut();
        state.seen += 1;
        if state.gone {
            return Some(Effect::Gone);
        }
        let rng = &mut state.rng;
        let rule = state.rules.iter_mut().find_map(|rule| {
            let holds = rule.operation.is_none_or(|only| only == operation)
                && rule.blocks.as_ref().is_none_or(|only| {
                    // A flush touches every block.
                    operation == Operation::Flush
                        || (only.start < blocks.end && blocks.start < only.end)
                })
                && rule.times > 0
                && rng.once_in(rule.one_in);
            if !holds {
                return None;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                return None;
            }
            rule.times -= 1;
            Some(rule.effect)
        })?;
        state.had_effect += 1;
        state.gone |= rule == Effect::Gone;
        Some(rule)
    }

    async fn hang(&self) {
        let before = self.state.borrow().releases;
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.releases != before {
                return Poll::Ready(());
            }
            if !state.hanging.iter().any(|w| w.will_wake(context.waker())) {
                state.hanging.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// A disk with faults. See the module.
pub struct FaultDisk<D> {
    disk: D,
    faults: Faults,
    reactor: Reactor,
}

impl<D: Disk> FaultDisk<D> {
    /// `disk`, with these faults. `reactor` is the core's own, for delays.
    #[must_use]
    pub fn new(disk: D, faults: Faults, reactor: &Reactor) -> Self {
        Self {
            disk,
            faults,
            reactor: reactor.clone(),
        }
    }

    /// The disk below.
    #[must_use]
    pub fn inner(&self) -> &D {
        &self.disk
    }

    /// Goes through what the rules have for an operation; how many blocks a torn write still writes.
    async fn suffer(
        &self,
        operation: Operation,
        at: Lba,
        blocks: u64,
    ) -> Result<Option<u64>, DiskError> {
        let range = at.0..at.plus(blocks).0;
        match self.faults.effect_on(operation, &range) {
            None => return Ok(None),
            Some(Effect::Fail(error)) => return Err(error),
            Some(Effect::Gone) => return Err(DiskError::Gone),
            Some(Effect::Torn { blocks }) => return Ok(Some(blocks)),
            Some(Effect::Delay(time)) => self.reactor.sleep(time).await,
            Some(Effect::Hang) => self.faults.hang().await,
        }
        if self.faults.is_gone() {
            return Err(DiskError::Gone);
        }
        Ok(None)
    }

    /// As [`suffer`](Self::suffer), for what cannot be torn.
    async fn suffer_whole(
        &self,
        operation: Operation,
        at: Lba,
        blocks: u64,
    ) -> Result<(), DiskError> {
        match self.suffer(operation, at, blocks).await? {
            None => Ok(()),
            Some(_) => Err(match operation {
                Operation::Read => DiskError::UnrecoveredRead,
                _ => DiskError::WriteFault,
            }),
        }
    }

    fn blocks_of(&self, buffers: &[Buffer]) -> u64 {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        self.disk.info().block_size.blocks_in(bytes as u64)
    }
}

impl<D: Disk> Disk for FaultDisk<D> {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let blocks = self.blocks_of(into);
        self.suffer_whole(Operation::Read, at, blocks).await?;
        self.disk.read(at, into).await
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let blocks = self.blocks_of(from);
        let Some(written) = self.suffer(Operation::Write, at, blocks).await? else {
            return self.disk.write(at, from, durability).await;
        };
        let size = self.disk.info().block_size;
        let mut left = usize::try_from(size.bytes_of(written.min(blocks))).unwrap_or(usize::MAX);
        let mut part = ArrayVec::<Buffer, SEGMENTS_MAX>::new();
        for buffer in from {
            let bytes = left.min(buffer.len());
            if bytes > 0 {
                part.push(buffer.slice(0..bytes));
            }
            left -= bytes;
        }
        if !part.is_empty() {
            self.disk.write(at, &part, durability).await?;
        }
        Err(DiskError::WriteFault)
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.suffer_whole(Operation::Flush, Lba(0), 0).await?;
        self.disk.flush().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.suffer_whole(Operation::Deallocate, at, blocks).await?;
        self.disk.deallocate(at, blocks).await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.suffer_whole(Operation::WriteZeroes, at, blocks)
            .await?;
        self.disk.write_zeroes(at, blocks, space, durability).await
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.suffer_whole(Operation::WriteUncorrectable, at, blocks)
            .await?;
        self.disk.write_uncorrectable(at, blocks).await
    }
}
