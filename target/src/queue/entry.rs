//! The table of a queue's outstanding commands.
//!
//! Invariant: an entry is in use from the command's arrival until its completion has been handed
//! over, and a command identifier is outstanding for as long.

use corebay_core::buffer::Buffer;
use corebay_nvme::spec::{command::SubmissionEntry, status::Status};

use super::{Operation, Transfer};
use crate::environment::Environment;

/// An entry's index in its queue's table; on NVMe/TCP also the transfer tag (TTAG).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryId(pub u16);

/// How far a command is. See the module [`queue`](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The entry is not in use.
    Free,
    Limit,
    Memory,
    Data,
    Partner,
    Slot,
    Running,
    Parked,
    Responding,
}

pub(super) struct Entry<E: Environment> {
    pub stage: Stage,
    pub sqe: SubmissionEntry,
    /// What to do, from when the command was checked until it executes.
    pub operation: Option<Operation<E>>,
    pub transfer: Transfer,
    /// Another command with the same identifier is outstanding.
    pub conflicts: bool,
    /// Data or room for them, until the command executes.
    pub buffer: Option<Buffer>,
    /// Bytes of the payload block that is counted in the host's share.
    pub held: usize,
    /// Bytes of the block of in-capsule data that is counted there.
    pub capsule: usize,
    /// The other half of a fused command.
    pub partner: Option<EntryId>,
    pub counts_as_fused: bool,
    /// To be aborted once its data have arrived.
    pub aborted: bool,
    /// What it is answered with once its data have arrived, instead of being executed.
    pub verdict: Option<Status>,
}

impl<E: Environment> Entry<E> {
    fn free() -> Self {
        Self {
            stage: Stage::Free,
            sqe: SubmissionEntry::default(),
            operation: None,
            transfer: Transfer::None,
            conflicts: false,
            buffer: None,
            held: 0,
            capsule: 0,
            partner: None,
            counts_as_fused: false,
            aborted: false,
            verdict: None,
        }
    }

    fn is_free(&self) -> bool {
        self.stage == Stage::Free
    }
}

/// What a removed entry had taken, to be given back.
pub(super) struct Removed {
    pub held: usize,
    pub capsule: usize,
    pub counts_as_fused: bool,
}

/// Entries before a queue is connected: Connect is the only command then.
const UNCONNECTED: usize = 1;

pub(super) struct Entries<E: Environment> {
    slots: Vec<Entry<E>>,
    free: Vec<u16>,
    capacity: usize,
    /// One bit per command identifier.
    outstanding: Box<[u64; 1024]>,
}

impl<E: Environment> Default for Entries<E> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            capacity: UNCONNECTED,
            outstanding: Box::new([0; 1024]),
        }
    }
}

impl<E: Environment> Entries<E> {
    /// Lets the table grow to the queue's depth. It does so as the host makes use of it.
    pub fn grow_to(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.free.reserve(capacity.min(128));
    }

    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes an entry for a command, if one is left.
    pub fn insert(&mut self, sqe: &SubmissionEntry) -> Option<(EntryId, &Entry<E>)> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Entry::free());
                u16::try_from(self.slots.len() - 1).ok()?
            }
            None => return None,
        };
        let (word, bit) = place(sqe.cid.get());
        let entry = &mut self.slots[usize::from(index)];
        entry.stage = Stage::Responding;
        entry.sqe = *sqe;
        entry.conflicts = self.outstanding[word] & bit != 0;
        self.outstanding[word] |= bit;
        Some((EntryId(index), entry))
    }

    pub fn get(&self, id: EntryId) -> Option<&Entry<E>> {
        self.slots
            .get(usize::from(id.0))
            .filter(|entry| !entry.is_free())
    }

    pub fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry<E>> {
        self.slots
            .get_mut(usize::from(id.0))
            .filter(|entry| !entry.is_free())
    }

    /// Frees an entry, if it is in use.
    pub fn remove(&mut self, id: EntryId) -> Option<Removed> {
        let entry = self.get_mut(id)?;
        let removed = Removed {
            held: std::mem::take(&mut entry.held),
            capsule: std::mem::take(&mut entry.capsule),
            counts_as_fused: std::mem::take(&mut entry.counts_as_fused),
        };
        entry.stage = Stage::Free;
        entry.operation = None;
        entry.buffer = None;
        entry.partner = None;
        entry.aborted = false;
        entry.verdict = None;
        let (cid, conflicts) = (entry.sqe.cid.get(), entry.conflicts);
        if !conflicts {
            let (word, bit) = place(cid);
            self.outstanding[word] &= !bit;
        }
        self.free.push(id.0);
        Some(removed)
    }

    pub fn find(&self, cid: u16) -> Option<(EntryId, &Entry<E>)> {
        (0u16..)
            .zip(&self.slots)
            .find(|(_, entry)| !entry.is_free() && entry.sqe.cid.get() == cid)
            .map(|(index, entry)| (EntryId(index), entry))
    }

    pub fn not_running(&self) -> Vec<EntryId> {
        let running = |entry: &Entry<E>| {
            // The halves of an executing fused command end together.
            entry.stage == Stage::Running
                || entry.stage == Stage::Partner
                    && entry
                        .partner
                        .and_then(|p| self.get(p))
                        .is_some_and(|p| p.stage == Stage::Running)
        };
        (0u16..)
            .zip(&self.slots)
            .filter(|(_, entry)| !entry.is_free() && !running(entry))
            .map(|(index, _)| EntryId(index))
            .collect()
    }
}

fn place(cid: u16) -> (usize, u64) {
    (usize::from(cid / 64), 1 << (cid % 64))
}
