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
    pub operation: Option<Operation<E>>,
    pub transfer: Transfer,
    /// Another command with the same identifier is outstanding.
    pub conflicts: bool,
    pub buffer: Option<Buffer>,
    /// Bytes of the payload block that is counted in the host's share.
    pub held: usize,
    /// The other half of a fused command.
    pub partner: Option<EntryId>,
    pub counts_as_fused: bool,
    /// To be aborted once its data have arrived.
    pub aborted: bool,
    /// What it is answered with once its data have arrived, instead of being executed.
    pub verdict: Option<Status>,
}

/// Entries before a queue is connected: Connect is the only command then.
const UNCONNECTED: usize = 1;

pub(super) struct Entries<E: Environment> {
    slots: Vec<Option<Entry<E>>>,
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

    pub fn insert(&mut self, sqe: SubmissionEntry) -> Option<EntryId> {
        let entry = Entry {
            stage: Stage::Responding,
            sqe,
            operation: None,
            transfer: Transfer::None,
            conflicts: self.is_outstanding(sqe.cid.get()),
            buffer: None,
            held: 0,
            partner: None,
            counts_as_fused: false,
            aborted: false,
            verdict: None,
        };
        let (word, bit) = place(sqe.cid.get());
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(entry);
                index
            }
            None if self.slots.len() < self.capacity => {
                self.slots.push(Some(entry));
                u16::try_from(self.slots.len() - 1).ok()?
            }
            None => return None,
        };
        self.outstanding[word] |= bit;
        Some(EntryId(index))
    }

    pub fn get(&self, id: EntryId) -> Option<&Entry<E>> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry<E>> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    pub fn remove(&mut self, id: EntryId) -> Option<Entry<E>> {
        let entry = self.slots.get_mut(id.0 as usize)?.take()?;
        self.free.push(id.0);
        if !entry.conflicts {
            let (word, bit) = place(entry.sqe.cid.get());
            self.outstanding[word] &= !bit;
        }
        Some(entry)
    }

    pub fn is_outstanding(&self, cid: u16) -> bool {
        let (word, bit) = place(cid);
        self.outstanding[word] & bit != 0
    }

    pub fn find(&self, cid: u16) -> Option<(EntryId, &Entry<E>)> {
        self.slots.iter().enumerate().find_map(|(index, slot)| {
            let entry = slot.as_ref().filter(|entry| entry.sqe.cid.get() == cid)?;
            Some((EntryId(u16::try_from(index).ok()?), entry))
        })
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
            .filter(|(_, slot)| slot.as_ref().is_some_and(|entry| !running(entry)))
            .map(|(index, _)| EntryId(index))
            .collect()
    }
}

fn place(cid: u16) -> (usize, u64) {
    (usize::from(cid / 64), 1 << (cid % 64))
}
