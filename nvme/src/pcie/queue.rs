//! One core's I/O queue pair of a drive: operations in, commands out, completions back.
//!
//! A turn: [`poll`](Queue::poll) takes completions and looks for commands that take too long;
//! [`flush`](Queue::flush) cuts waiting operations into commands as far as slots are free, and rings
//! the doorbells once.
//!
//! Invariants:
//! - Nothing here allocates, locks or calls the system after [`Queue::open`].
//! - A command identifier is its slot's index and the slot's generation. A completion that names no
//!   command in flight is counted and otherwise ignored; whatever the controller completes, an
//!   operation ends once.
//! - An operation's buffers stay pinned until none of its commands is in flight, whatever becomes of
//!   the future; see [`shared`](super::shared) for what that means when the controller fails.
//! - Operations take turns: none keeps others from their commands for longer than a burst of its own.
//! - A hostile controller costs a turn at most as many completions as the queue has entries.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use corebay_core::{
    buffer::{Buffer, Direction},
    reactor::{PollSource, Reactor},
    sync::{OpTable, Token},
    units::Time,
};

use super::{
    device::{DmaWindows, Registers},
    disk::NvmeDisk,
    operation::{Failure, Kind, Operation, Request},
    options::QueueCounters,
    pointer::List,
    shared::{Drive, Gate, Kit, Phase, State},
};
use crate::spec::{command::SubmissionEntry, completion::CompletionEntry};

/// Tasks that may wait for an operation's place before that takes memory.
const WAITERS: usize = 1024;

/// Strange completions after which the controller is reset.
const STRANGE_MAX: u32 = 8;

/// Resets that a command outlives; then it fails.
const RESETS_PER_COMMAND_MAX: u8 = 2;

/// Commands of one operation in a row, where others wait too.
const BURST: u32 = 8;

/// How often the end of a queue looks for the completions that it still waits for.
const DRAIN_STEPS: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    /// Waits to be submitted again.
    Again,
    Submitted,
    Aborting,
    /// Not even the abort ended it.
    Expired,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    stage: Stage,
    /// The operation that the command is a piece of.
    operation: usize,
    offset: u64,
    blocks: u32,
    deadline: Time,
    resets: u8,
}

const FREE: Slot = Slot {
    stage: Stage::Free,
    operation: 0,
    offset: 0,
    blocks: 0,
    deadline: Time::FAR,
    resets: 0,
};

struct Inner<R> {
    kit: Kit<R>,
    operations: Box<[Operation]>,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// Operations with commands to issue.
    waiting: VecDeque<Token>,
    /// Commands in a row that were issued of the first of them.
    burst: u32,
    /// Slots to submit again after a reset.
    again: VecDeque<u16>,
    in_flight: usize,
    strange: u32,
    next_scan: Time,
    over: bool,
    counters: QueueCounters,
}

/// One core's queue pair of a drive. See the module.
pub struct Queue<R: Registers> {
    drive: Arc<Drive<R>>,
    seat: usize,
    table: OpTable<(), Result<(), Failure>>,
    inner: RefCell<Option<Inner<R>>>,
    windows: DmaWindows,
    scan_interval: Duration,
    /// Bits of a command identifier that are the slot's index.
    index_bits: u32,
    reactor: Reactor,
    gone: Cell<bool>,
}

impl<R: Registers> Queue<R> {
    /// Takes a free queue pair for this core and lets `reactor` poll it. `windows` are where the
    /// core's buffers lie. `None` where every pair is taken.
    #[must_use]
    pub fn open(drive: &Arc<Drive<R>>, reactor: &Reactor, windows: DmaWindows) -> Option<Rc<Self>> {
        let (seat, kit) = drive
            .seats
            .iter()
            .enumerate()
            .find_map(|(seat, place)| place.take_kit().map(|kit| (seat, kit)))?;
        let count = kit.slots.len();
        let index_bits = usize::BITS - count.leading_zeros();
        let options = &drive.options;
        let shortest = options.io_timeout.min(options.abort_timeout);
        let inner = Inner {
            operations: (0..count).map(|_| Operation::unused()).collect(),
            slots: vec![FREE; count].into(),
            free: (0..count as u16).rev().collect(),
            waiting: VecDeque::with_capacity(count),
            burst: 0,
            again: VecDeque::with_capacity(count),
            in_flight: 0,
            strange: 0,
            next_scan: Time::default(),
            over: false,
            counters: QueueCounters::default(),
            kit,
        };
        let queue = Rc::new(Self {
            drive: drive.clone(),
            seat,
            table: OpTable::new(count, WAITERS),
            inner: RefCell::new(Some(inner)),
            windows,
            scan_interval: (shortest / 8)
                .clamp(Duration::from_micros(100), Duration::from_millis(250)),
            index_bits,
            reactor: reactor.clone(),
            gone: Cell::new(false),
        });
        drive.seats[seat].set_gate(Gate::Running);
        reactor.add_source(queue.clone());
        Some(queue)
    }

    /// The drive.
    #[must_use]
    pub fn drive(&self) -> &Arc<Drive<R>> {
        &self.drive
    }

    /// A namespace of the drive as this core's disk.
    #[must_use]
    pub fn disk(self: &Rc<Self>, nsid: u32) -> Option<NvmeDisk<R>> {
        let namespace = self.drive.namespace(nsid)?;
        Some(NvmeDisk::new(self.clone(), namespace))
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> QueueCounters {
        self.inner
            .borrow()
            .as_ref()
            .map(|inner| inner.counters)
            .unwrap_or_default()
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner
            .borrow()
            .as_ref()
            .map_or(0, |inner| inner.in_flight)
    }

    pub(super) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Runs an operation over these buffers to its end.
    pub(super) async fn run(&self, request: Request, buffers: &[Buffer]) -> Result<(), Failure> {
        if self.gone.get() {
            return Err(Failure::Gone);
        }
        if request.blocks == 0 {
            return Ok(());
        }
        let submitted = self.table.begin(()).await;
        let token = submitted.token();
        if self.gone.get() {
            self.table.complete(token, Err(Failure::Gone));
        } else if let Some(inner) = &mut *self.inner.borrow_mut() {
            let operation = &mut inner.operations[token.index()];
            operation.begin(token, request);
            let direction = match request.kind {
                Kind::Read => Direction::FromDevice,
                _ => Direction::ToDevice,
            };
            for buffer in buffers {
                operation.pins.push(buffer.pin(direction));
            }
            inner.waiting.push_back(token);
        }
        submitted.outcome().await
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner<R>) -> T) -> Option<T> {
        self.inner.borrow_mut().as_mut().map(work)
    }

    fn cid(&self, inner: &Inner<R>, slot: u16) -> u16 {
        let generation = u32::from(inner.kit.slots[usize::from(slot)]);
        (generation << self.index_bits) as u16 | slot
    }

    /// Follows the drive's state; false where the ring must not be touched.
    fn follow(&self, inner: &mut Inner<R>) -> bool {
        loop {
            let State { phase, generation } = self.drive.load_state();
            let seat = &self.drive.seats[self.seat];
            match phase {
                Phase::Running if generation == inner.kit.generation && seat.is_running() => {
                    return !inner.over;
                }
                Phase::Running => {
                    if generation != inner.kit.generation {
                        self.start_over(inner, generation);
                    }
                    // Then the state again: it may have changed before it was known that we run.
                    seat.set_gate(Gate::Running);
                }
                Phase::Quiesced => {
                    seat.set_gate(Gate::Stopped);
                    return false;
                }
                Phase::Failed | Phase::FailedUnsafe => {
                    if !inner.over {
                        self.end_all(inner, phase == Phase::FailedUnsafe);
                    }
                    seat.set_gate(Gate::Stopped);
                    return false;
                }
            }
        }
    }

    /// The controller was made anew and knows none of our commands any more.
    fn start_over(&self, inner: &mut Inner<R>, generation: u64) {
        inner.kit.ring.reset();
        inner.kit.generation = generation;
        inner.strange = 0;
        inner.again.clear();
        for index in 0..inner.slots.len() as u16 {
            let slot = &mut inner.slots[usize::from(index)];
            if slot.stage == Stage::Free {
                continue;
            }
            #[cfg(corebay_fault)]
            if corebay_core::fault::is(corebay_core::fault::Fault::DriverForgetsReset) {
                self.end_command(inner, index, Ok(()));
                continue;
            }
            slot.resets += 1;
            if slot.stage == Stage::Expired || slot.resets > RESETS_PER_COMMAND_MAX {
                self.end_command(inner, index, Err(Failure::TimedOut));
                continue;
            }
            slot.stage = Stage::Again;
            inner.kit.slots[usize::from(index)] = self.next_generation(inner, index);
            inner.again.push_back(index);
        }
    }

    fn next_generation(&self, inner: &Inner<R>, slot: u16) -> u16 {
        let mask = (1u32 << (u16::BITS - self.index_bits)) - 1;
        ((u32::from(inner.kit.slots[usize::from(slot)]) + 1) & mask) as u16
    }

    /// The drive is given up.
    fn end_all(&self, inner: &mut Inner<R>, memory_in_danger: bool) {
        inner.over = true;
        self.gone.set(true);
        inner.waiting.clear();
        inner.again.clear();
        for operation in &mut inner.operations {
            if !operation.active {
                continue;
            }
            let pins = std::mem::take(&mut operation.pins);
            if memory_in_danger && operation.outstanding > 0 {
                pins.into_iter().for_each(std::mem::forget);
            }
            operation.active = false;
            self.table.complete(operation.token, Err(Failure::Gone));
        }
        inner.slots.fill(FREE);
        inner.in_flight = 0;
    }

    /// Takes the completions that are there.
    fn reap(&self, inner: &mut Inner<R>) -> usize {
        let mut taken = 0;
        for _ in 0..inner.kit.ring.entries() {
            let Some(entry) = inner.kit.ring.next() else {
                break;
            };
            taken += 1;
            self.take_completion(inner, &entry);
        }
        taken
    }

    fn take_completion(&self, inner: &mut Inner<R>, entry: &CompletionEntry) {
        let cid = entry.cid.get();
        let index = cid & ((1u32 << self.index_bits) - 1) as u16;
        let in_flight = inner
            .slots
            .get(usize::from(index))
            .is_some_and(|slot| !matches!(slot.stage, Stage::Free | Stage::Again));
        if !in_flight || self.cid(inner, index) != cid || entry.sqid.get() != inner.kit.ring.qid() {
            inner.counters.strange_completions += 1;
            inner.strange += 1;
            if inner.strange == STRANGE_MAX {
                tracing::error!(
                    drive = self.drive.address(),
                    "the controller completes commands that it was not given: it is reset"
                );
                self.drive.seats[self.seat].ask_reset();
            }
            return;
        }
        let status = entry.status();
        let outcome = match status.is_success() {
            true => Ok(()),
            false => Err(Failure::Status(status)),
        };
        self.end_command(inner, index, outcome);
    }

    fn end_command(&self, inner: &mut Inner<R>, index: u16, outcome: Result<(), Failure>) {
        let slot = std::mem::replace(&mut inner.slots[usize::from(index)], FREE);
        inner.kit.slots[usize::from(index)] = self.next_generation(inner, index);
        inner.free.push(index);
        inner.in_flight -= 1;
        let operation = &mut inner.operations[slot.operation];
        operation.outstanding -= 1;
        if let Err(failure) = outcome {
            operation.fail(failure);
        }
        self.end_if_over(operation);
    }

    fn end_if_over(&self, operation: &mut Operation) {
        if !operation.is_over() {
            return;
        }
        operation.active = false;
        operation.pins.clear();
        let outcome = operation.failure.map_or(Ok(()), Err);
        self.table.complete(operation.token, outcome);
    }

    /// Looks for commands that take too long.
    fn scan(&self, inner: &mut Inner<R>, now: Time) {
        inner.next_scan = now.plus(self.scan_interval);
        if inner.in_flight == 0 {
            return;
        }
        let seat = &self.drive.seats[self.seat];
        for index in 0..inner.slots.len() as u16 {
            let slot = inner.slots[usize::from(index)];
            if slot.deadline > now {
                continue;
            }
            let (stage, deadline) = match slot.stage {
                Stage::Submitted if seat.ask_abort(self.cid(inner, index)) => {
                    inner.counters.timeouts += 1;
                    let deadline = now.plus(self.drive.options.abort_timeout);
                    (Stage::Aborting, deadline)
                }
                Stage::Aborting => {
                    seat.ask_reset();
                    (Stage::Expired, Time::FAR)
                }
                _ => continue,
            };
            let slot = &mut inner.slots[usize::from(index)];
            (slot.stage, slot.deadline) = (stage, deadline);
        }
    }

    /// Submits what can be submitted; how many commands that was.
    fn issue(&self, inner: &mut Inner<R>, now: Time) -> usize {
        let mut issued = 0;
        while let Some(index) = inner.again.pop_front() {
            let Slot {
                operation,
                offset,
                blocks,
                ..
            } = inner.slots[usize::from(index)];
            match self.command(inner, operation, index, offset, u64::from(blocks)) {
                Ok((entry, _)) => self.submit(inner, index, entry, now),
                Err(failure) => self.end_command(inner, index, Err(failure)),
            }
            inner.counters.resubmitted += 1;
            issued += 1;
        }
        while let Some(&token) = inner.waiting.front() {
            let operation = &inner.operations[token.index()];
            let has_more = operation.token == token && operation.has_more();
            if !has_more || inner.burst >= BURST {
                inner.waiting.pop_front();
                inner.burst = 0;
                // There is room: it was there before.
                inner.waiting.extend(has_more.then_some(token));
                continue;
            }
            let Some(index) = inner.free.pop() else {
                break;
            };
            self.issue_next(inner, token.index(), index, now);
            inner.burst += 1;
            issued += 1;
        }
        issued
    }

    fn issue_next(&self, inner: &mut Inner<R>, operation: usize, index: u16, now: Time) {
        let (offset, left) = {
            let of = &inner.operations[operation];
            (of.issued, of.request.blocks - of.issued)
        };
        match self.command(inner, operation, index, offset, left) {
            Ok((entry, blocks)) => {
                inner.operations[operation].issued += u64::from(blocks);
                inner.operations[operation].outstanding += 1;
                inner.in_flight += 1;
                inner.slots[usize::from(index)] = Slot {
                    operation,
                    offset,
                    blocks,
                    ..FREE
                };
                self.submit(inner, index, entry, now);
            }
            Err(failure) => {
                inner.free.push(index);
                inner.operations[operation].fail(failure);
                self.end_if_over(&mut inner.operations[operation]);
            }
        }
    }

    fn command(
        &self,
        inner: &Inner<R>,
        operation: usize,
        index: u16,
        offset: u64,
        most: u64,
    ) -> Result<(SubmissionEntry, u32), Failure> {
        let kit = &inner.kit;
        let at = usize::from(index) * kit.list_bytes;
        let list = List {
            memory: &kit.lists,
            at,
            bytes: kit.list_bytes,
            address: self
                .drive
                .window
                .translate(kit.lists.address() + at, kit.list_bytes)
                .ok_or(Failure::Unreachable)?,
        };
        inner.operations[operation].command(
            offset,
            most,
            &self.windows,
            self.drive.sgl,
            list,
            &self.drive.zeroes,
        )
    }

    fn submit(&self, inner: &mut Inner<R>, index: u16, entry: SubmissionEntry, now: Time) {
        let cid = self.cid(inner, index);
        inner.kit.ring.push(&entry.with_cid(cid));
        let slot = &mut inner.slots[usize::from(index)];
        slot.stage = Stage::Submitted;
        slot.deadline = now.plus(self.drive.options.io_timeout);
        inner.counters.commands += 1;
    }
}

impl<R: Registers> PollSource for Queue<R> {
    /// Once the drive was given up and everything that was in flight has ended.
    fn is_over(&self) -> bool {
        self.gone.get()
    }

    fn poll(&self, now: Time) -> usize {
        self.with(|inner| {
            if !self.follow(inner) {
                return 0;
            }
            let taken = self.reap(inner);
            if now >= inner.next_scan {
                self.scan(inner, now);
            }
            taken
        })
        .unwrap_or(0)
    }

    fn flush(&self, now: Time) -> usize {
        self.with(|inner| {
            let usable = !inner.over && self.drive.seats[self.seat].is_running();
            if !usable {
                return 0;
            }
            let issued = self.issue(inner, now);
            let rung = inner.kit.ring.ring_doorbells();
            inner.counters.doorbells += rung as u64;
            issued
        })
        .unwrap_or(0)
    }

    fn prepare_sleep(&self) -> bool {
        self.with(|inner| {
            if inner.over {
                return true;
            }
            let idle = inner.in_flight == 0 && inner.waiting.is_empty();
            if idle {
                self.drive.seats[self.seat].set_gate(Gate::Parked);
            }
            idle
        })
        .unwrap_or(true)
    }
}

impl<R: Registers> Drop for Queue<R> {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.get_mut().take() else {
            return;
        };
        let seat = &self.drive.seats[self.seat];
        inner.waiting.clear();
        inner.again.clear();
        for _ in 0..DRAIN_STEPS {
            if inner.in_flight == 0 || !self.follow(&mut inner) {
                break;
            }
            if self.reap(&mut inner) == 0 {
                std::thread::yield_now();
            }
            inner.kit.ring.ring_doorbells();
        }
        if inner.in_flight > 0 {
            tracing::error!(
                drive = self.drive.address(),
                "the drive still works on {} commands: their buffers are given up",
                inner.in_flight
            );
            for operation in &mut inner.operations {
                if operation.outstanding > 0 {
                    operation.pins.drain(..).for_each(std::mem::forget);
                }
            }
            // The pair stays taken: what the controller still completes must meet no new owner.
            std::mem::forget(inner);
            seat.set_gate(Gate::Vacant);
            return;
        }
        // What was given up is not touched any more: its function may be amid a reset.
        if !inner.over {
            inner.kit.ring.ring_doorbells();
        }
        seat.set_gate(Gate::Vacant);
        seat.put_kit(inner.kit);
    }
}
