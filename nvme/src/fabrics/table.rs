//! The command table of one queue: what each command needs until its terminal completion, indexed
//! by command identifier.
//!
//! Invariants:
//! - Everything is preallocated: beginning, completing and freeing a command take no memory.
//! - A CID is a slot's index and, above it, the slot's generation, so that a late or repeated
//!   completion is told from the slot's next command. FFFFh is never used.
//! - The table owns a command's buffers until its completion, whatever became of the task that
//!   asked for it; and beyond it while bytes of it are still being sent ([`State::Held`]).
//! - Each command gets exactly one outcome.

use std::task::{Poll, Waker};

use arrayvec::ArrayVec;
use corebay_core::{buffer::Buffer, disk::SEGMENTS_MAX, units::Time};

use super::error::Error;
use crate::spec::{command::SubmissionEntry, status::Status};

/// The most commands of one queue at a time. Leaves six bits of a CID for the generation.
pub const DEPTH_MAX: u16 = 1024;

/// A command's terminal completion, as the controller gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The status field.
    pub status: Status,
    /// Dwords 0 and 1: what they say depends on the command.
    pub result: u64,
    /// The bytes that came from the controller for a command that reads data.
    pub received: u32,
}

impl Completion {
    /// Dword 0.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub fn dw0(&self) -> u32 {
        self.result as u32
    }

    /// This completion where its status is success.
    ///
    /// # Errors
    /// [`Error::Status`] where it is not.
    pub fn ok(self) -> Result<Self, Error> {
        if self.status.is_success() {
            Ok(self)
        } else {
            Err(Error::Status(self.status))
        }
    }
}

/// What a command ends with.
pub(super) type Outcome = Result<Completion, Error>;

/// The data of a command, and which way it goes. The buffers' bytes, in order, are the data. Nobody
/// may hold a guard on their bytes while the command is in flight.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// None.
    None,
    /// From the controller into these buffers.
    In(&'a [Buffer]),
    /// From these buffers to the controller.
    Out(&'a [Buffer]),
}

impl<'a> Data<'a> {
    /// The buffers.
    #[must_use]
    pub fn buffers(self) -> &'a [Buffer] {
        match self {
            Self::None => &[],
            Self::In(buffers) | Self::Out(buffers) => buffers,
        }
    }

    /// The bytes of all buffers.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.buffers().iter().map(Buffer::len).sum()
    }
}

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    None,
    In,
    Out,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Begun, and not yet completed.
    Active,
    /// Completed, but bytes of its buffers are still being sent.
    Held,
    /// Completed, and its outcome waits to be taken.
    Done,
}

/// Names one command of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) index: u16,
    generation: u16,
}

/// One command.
#[derive(Debug)]
pub(super) struct Slot {
    state: State,
    generation: u16,
    /// The task that asked for it is gone.
    pub(super) abandoned: bool,
    /// Its capsule has begun to be sent.
    pub(super) on_wire: bool,
    /// Its data travels in its capsule.
    pub(super) in_capsule: bool,
    /// A digest of its incoming data was wrong.
    pub(super) digest_failed: bool,
    pub(super) way: Way,
    /// Pieces of its buffers that are being sent.
    wire_pieces: u16,
    /// R2Ts that have not been answered completely.
    pub(super) grants_open: u8,
    /// Bytes that R2Ts have asked for.
    pub(super) granted: u32,
    /// Bytes that have come.
    pub(super) received: u32,
    /// Bytes of all segments.
    pub(super) data_bytes: u32,
    pub(super) segments: ArrayVec<Buffer, SEGMENTS_MAX>,
    pub(super) sqe: SubmissionEntry,
    deadline: Time,
    outcome: Outcome,
    waker: Option<Waker>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    index_bits: u32,
    /// A slot was freed since [`Table::take_freed`].
    freed: bool,
    reads: u32,
    read_bytes: u64,
}

impl Table {
    /// A table for `depth` commands at a time, from 1 to [`DEPTH_MAX`].
    pub(super) fn new(depth: u16) -> Self {
        assert!((1..=DEPTH_MAX).contains(&depth), "a queue of {depth}");
        Self {
            slots: (0..depth).map(|_| Slot::free()).collect(),
            free: (0..depth).rev().collect(),
            index_bits: u32::from(depth).next_power_of_two().ilog2(),
            freed: false,
            reads: 0,
            read_bytes: 0,
        }
    }

    /// The commands there can be at a time.
    pub(super) fn depth(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("at most DEPTH_MAX")
    }

    /// The commands that can begin now.
    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Takes a slot for a command. The caller has checked that one is free, and that `data` has at
    /// most [`SEGMENTS_MAX`] buffers and 2^32 - 1 bytes.
    pub(super) fn begin(&mut self, sqe: &SubmissionEntry, data: Data<'_>, deadline: Time) -> Id {
        let index = self.free.pop().expect("a slot is free");
        let slot = &mut self.slots[usize::from(index)];
        debug_assert_eq!(slot.state, State::Free);
        slot.state = State::Active;
        slot.abandoned = false;
        slot.on_wire = false;
        slot.in_capsule = false;
        slot.digest_failed = false;
        slot.grants_open = 0;
        slot.granted = 0;
        slot.received = 0;
        slot.way = match data {
            Data::None => Way::None,
            Data::In(_) => Way::In,
            Data::Out(_) => Way::Out,
        };
        slot.segments.extend(data.buffers().iter().cloned());
        slot.data_bytes = u32::try_from(data.bytes()).expect("checked by the caller");
        slot.sqe = *sqe;
        slot.deadline = deadline;
        if slot.way == Way::In {
            self.reads += 1;
            self.read_bytes += u64::from(slot.data_bytes);
        }
        let generation = slot.generation;
        Id { index, generation }
    }

    /// The command's identifier on the wire.
    pub(super) fn cid(&self, id: Id) -> u16 {
        id.index | id.generation << self.index_bits
    }

    /// The command in flight that a controller names by `cid`, if there is one.
    pub(super) fn find(&self, cid: u16) -> Option<Id> {
        let index = cid & ((1 << self.index_bits) - 1);
        let id = Id {
            index,
            generation: cid >> self.index_bits,
        };
        let slot = self.slots.get(usize::from(index))?;
        (slot.generation == id.generation && slot.state == State::Active).then_some(id)
    }

    /// The identifier of the `nth` command in flight, counted around.
    pub(super) fn nth_in_flight(&self, nth: usize) -> Option<u16> {
        let in_flight = || {
            (0..)
                .zip(&self.slots)
                .filter(|(_, slot)| slot.state == State::Active)
        };
        let count = in_flight().count();
        let (index, slot) = in_flight().nth(nth.checked_rem(count)?)?;
        let generation = slot.generation;
        Some(self.cid(Id { index, generation }))
    }

    /// The command, if it is in flight.
    pub(super) fn active(&mut self, id: Id) -> Option<&mut Slot> {
        let slot = &mut self.slots[usize::from(id.index)];
        (slot.generation == id.generation && slot.state == State::Active).then_some(slot)
    }

    /// The slot at `index`, whatever its state: for pieces that are being sent, which keep it.
    pub(super) fn slot(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    /// A piece of the command's buffers is about to be sent.
    pub(super) fn hold(&mut self, index: u16) {
        self.slots[usize::from(index)].wire_pieces += 1;
    }

    /// A piece of the command's buffers has been sent.
    pub(super) fn release(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.wire_pieces -= 1;
        if slot.wire_pieces == 0 && slot.state == State::Held {
            self.finish(index);
        }
    }

    /// Ends a command that is in flight.
    pub(super) fn complete(&mut self, id: Id, outcome: Outcome) {
        let slot = &mut self.slots[usize::from(id.index)];
        assert!(
            slot.generation == id.generation && slot.state == State::Active,
            "a command was completed twice"
        );
        slot.outcome = outcome;
        if slot.way == Way::In {
            self.reads -= 1;
            self.read_bytes -= u64::from(slot.data_bytes);
        }
        if slot.wire_pieces == 0 {
            self.finish(id.index);
        } else {
            slot.state = State::Held;
        }
    }

    /// Ends every command that is in flight; nothing is being sent any more.
    pub(super) fn fail_all(&mut self, error: Error) {
        for index in 0..self.slots.len() {
            let index = u16::try_from(index).expect("at most DEPTH_MAX");
            let slot = &mut self.slots[usize::from(index)];
            slot.wire_pieces = 0;
            match slot.state {
                State::Active => {
                    let generation = slot.generation;
                    self.complete(Id { index, generation }, Err(error));
                }
                State::Held => self.finish(index),
                State::Free | State::Done => {}
            }
        }
    }

    /// Ends the commands whose deadline `now` has passed; true where there were some.
    pub(super) fn expire(&mut self, now: Time) -> bool {
        let mut expired = false;
        for index in 0..self.slots.len() {
            let index = u16::try_from(index).expect("at most DEPTH_MAX");
            let slot = &mut self.slots[usize::from(index)];
            if slot.state == State::Active && slot.deadline <= now {
                expired = true;
                let generation = slot.generation;
                self.complete(Id { index, generation }, Err(Error::TimedOut));
            }
        }
        expired
    }

    /// Gives a completed command's outcome to the task that waits for it, and frees its slot.
    pub(super) fn take(&mut self, id: Id, waker: &Waker) -> Poll<Outcome> {
        let slot = &mut self.slots[usize::from(id.index)];
        assert_eq!(slot.generation, id.generation, "a command was taken twice");
        if slot.state == State::Done {
            let outcome = slot.outcome;
            self.free(id.index);
            return Poll::Ready(outcome);
        }
        match &slot.waker {
            Some(known) if known.will_wake(waker) => {}
            _ => slot.waker = Some(waker.clone()),
        }
        Poll::Pending
    }

    /// The task that asked for the command is gone: nobody will take its outcome.
    pub(super) fn abandon(&mut self, id: Id) {
        let slot = &mut self.slots[usize::from(id.index)];
        assert_eq!(slot.generation, id.generation, "the task waits for another");
        slot.abandoned = true;
        slot.waker = None;
        if slot.state == State::Done {
            self.free(id.index);
        }
    }

    /// True once after slots were freed.
    pub(super) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// The commands in flight, or completed and not taken.
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The mean size of the reads in flight, in bytes; 0 where there is none.
    pub(super) fn mean_read_bytes(&self) -> u64 {
        self.read_bytes / u64::from(self.reads.max(1))
    }

    fn finish(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.state = State::Done;
        slot.segments.clear();
        if slot.abandoned {
            self.free(index);
        } else if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    fn free(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.state = State::Free;
        slot.waker = None;
        slot.generation = (slot.generation + 1) & (u16::MAX >> self.index_bits);
        if index | slot.generation << self.index_bits == u16::MAX {
            slot.generation = 0;
        }
        self.free.push(index);
        self.freed = true;
    }
}

impl Slot {
    fn free() -> Self {
        Self {
            state: State::Free,
            generation: 0,
            abandoned: false,
            on_wire: false,
            in_capsule: false,
            digest_failed: false,
            way: Way::None,
            wire_pieces: 0,
            grants_open: 0,
            granted: 0,
            received: 0,
            data_bytes: 0,
            segments: ArrayVec::new(),
            sqe: SubmissionEntry::default(),
            deadline: Time::FAR,
            outcome: Err(Error::Closed),
            waker: None,
        }
    }

    /// The segment that the data's byte `offset` lies in, and where in it.
    pub(super) fn locate(&self, offset: u32) -> (usize, usize) {
        let mut at = offset as usize;
        for (index, segment) in self.segments.iter().enumerate() {
            if at < segment.len() {
                return (index, at);
            }
            at -= segment.len();
        }
        panic!("byte {offset} of {} bytes of data", self.data_bytes)
    }

    /// Copies `bytes` to the data's byte `offset`, in range by the caller's check.
    pub(super) fn copy_in(&mut self, offset: u32, bytes: &[u8]) {
        let mut left = bytes;
        let (mut segment, mut at) = self.locate(offset);
        while !left.is_empty() {
            let mut into = self.segments[segment].bytes_mut();
            let count = left.len().min(into.len() - at);
            into[at..at + count].copy_from_slice(&left[..count]);
            left = &left[count..];
            segment += 1;
            at = 0;
        }
    }
}
