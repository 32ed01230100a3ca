//! A submission queue and its completion queue in memory, and their doorbells.
//!
//! Invariants:
//! - Entries are written first and published by the doorbell, which is rung once however many they
//!   are.
//! - A completion is taken only once its phase tag says that it is new; the rest of it is read after
//!   that (acquire), so it is whole.
//! - The caller has fewer commands in flight than the queue has entries, so the tail never passes the
//!   head.

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use corebay_core::dma::{DMA_ALIGN, DmaRegion};
use zerocopy::{FromBytes, IntoBytes};

use super::device::Registers;
use crate::spec::{
    command::SubmissionEntry,
    completion::CompletionEntry,
    property::{cq_head_doorbell, sq_tail_doorbell},
};

const SQ_ENTRY: usize = size_of::<SubmissionEntry>();
const CQ_ENTRY: usize = size_of::<CompletionEntry>();

/// The dword of a completion that the device writes last: identifier, phase, status.
const LAST_DWORD: usize = 12;

/// The phase tag in that dword.
const PHASE: u32 = 1 << 16;

/// Doorbells in memory (Base, section 5.2.5): a page that the host writes, and a page in which the
/// controller says from which value on it wants to be told by the register.
#[derive(Debug)]
pub(super) struct ShadowDoorbells {
    shadow: DmaRegion,
    event_index: DmaRegion,
}

impl ShadowDoorbells {
    /// Over two pages.
    pub(super) fn new(mut pages: DmaRegion) -> Option<Self> {
        let shadow = pages.split_off(DMA_ALIGN)?;
        let event_index = pages.split_off(DMA_ALIGN)?;
        Some(Self {
            shadow,
            event_index,
        })
    }

    pub(super) fn addresses(&self) -> [usize; 2] {
        [self.shadow.address(), self.event_index.address()]
    }

    pub(super) fn clear(&self) {
        self.shadow.clear(0, self.shadow.len());
        self.event_index.clear(0, self.event_index.len());
    }

    /// Writes a doorbell; true where the register has to be written too.
    fn write(&self, at: usize, old: u16, new: u16) -> bool {
        self.shadow.store_release(at, u32::from(new));
        // The controller writes its index, then looks at the shadow; we the other way round.
        fence(Ordering::SeqCst);
        let event = self.event_index.load_acquire(at) as u16;
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

/// One queue pair.
#[derive(Debug)]
pub(super) struct Ring<R> {
    registers: R,
    qid: u16,
    dstrd: u8,
    entries: u16,
    memory: DmaRegion,
    cq_offset: usize,
    shadow: Option<Arc<ShadowDoorbells>>,
    tail: u16,
    rung_tail: u16,
    head: u16,
    rung_head: u16,
    phase: bool,
}

impl<R: Registers> Ring<R> {
    /// The bytes that a pair of this many entries takes.
    pub(super) const fn bytes(entries: u16) -> usize {
        let sq = (entries as usize * SQ_ENTRY).next_multiple_of(DMA_ALIGN);
        sq + (entries as usize * CQ_ENTRY).next_multiple_of(DMA_ALIGN)
    }

    /// A pair over `memory`, which has [`bytes`](Self::bytes).
    pub(super) fn new(
        registers: R,
        qid: u16,
        dstrd: u8,
        entries: u16,
        memory: DmaRegion,
        shadow: Option<Arc<ShadowDoorbells>>,
    ) -> Self {
        assert!(entries >= 2 && memory.len() >= Self::bytes(entries));
        // A page holds the doorbells of the first queues only.
        let last = (cq_head_doorbell(qid, dstrd) - sq_tail_doorbell(0, dstrd)) as usize + 4;
        Self {
            registers,
            qid,
            dstrd,
            entries,
            cq_offset: (entries as usize * SQ_ENTRY).next_multiple_of(DMA_ALIGN),
            memory,
            shadow: shadow.filter(|_| qid > 0 && last <= DMA_ALIGN),
            tail: 0,
            rung_tail: 0,
            head: 0,
            rung_head: 0,
            phase: true,
        }
    }

    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    pub(super) fn qid(&self) -> u16 {
        self.qid
    }

    /// Where the submission and the completion queue lie.
    pub(super) fn addresses(&self) -> [usize; 2] {
        let start = self.memory.address();
        [start, start + self.cq_offset]
    }

    /// Back to the start, as the controller is after it was made anew. It must not use the memory.
    pub(super) fn reset(&mut self) {
        self.memory
            .clear(self.cq_offset, self.entries as usize * CQ_ENTRY);
        (self.tail, self.rung_tail) = (0, 0);
        (self.head, self.rung_head) = (0, 0);
        self.phase = true;
    }

    /// Puts a command in line.
    pub(super) fn push(&mut self, entry: &SubmissionEntry) {
        self.memory
            .write(self.tail as usize * SQ_ENTRY, entry.as_bytes());
        self.tail = self.after(self.tail);
    }

    /// The next completion, if there is one.
    pub(super) fn next(&mut self) -> Option<CompletionEntry> {
        let at = self.cq_offset + self.head as usize * CQ_ENTRY;
        let last = self.memory.load_acquire(at + LAST_DWORD);
        if (last & PHASE != 0) != self.phase {
            return None;
        }
        let mut bytes = [0; CQ_ENTRY];
        self.memory.read(at, &mut bytes[..LAST_DWORD]);
        bytes[LAST_DWORD..].copy_from_slice(&last.to_le_bytes());
        self.head = self.after(self.head);
        if self.head == 0 {
            self.phase = !self.phase;
        }
        Some(CompletionEntry::read_from_bytes(&bytes).expect("the bytes of an entry"))
    }

    /// Tells the controller what was put in line and what was taken since the last time. Returns how
    /// many registers that wrote.
    pub(super) fn ring_doorbells(&mut self) -> usize {
        let mut writes = 0;
        if self.head != self.rung_head {
            let register = cq_head_doorbell(self.qid, self.dstrd);
            writes += self.doorbell(register, self.rung_head, self.head);
            self.rung_head = self.head;
        }
        if self.tail != self.rung_tail {
            let register = sq_tail_doorbell(self.qid, self.dstrd);
            writes += self.doorbell(register, self.rung_tail, self.tail);
            self.rung_tail = self.tail;
        }
        writes
    }

    fn doorbell(&self, register: u32, old: u16, new: u16) -> usize {
        if let Some(shadow) = &self.shadow {
            let at = (register - sq_tail_doorbell(0, self.dstrd)) as usize;
            if !shadow.write(at, old, new) {
                return 0;
            }
        }
        self.registers.write32(register, u32::from(new));
        1
    }

    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.entries {
            0
        } else {
            index + 1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use corebay_core::arena::{Arena, Hugepages};

    use super::*;
    use crate::spec::status::Status;

    thread_local!(static WRITTEN: Cell<(u32, u32, usize)> = const { Cell::new((0, 0, 0)) });

    #[derive(Clone)]
    struct Recorder;

    impl Registers for Recorder {
        fn bytes(&self) -> u32 {
            8192
        }

        fn read32(&self, _at: u32) -> u32 {
            0
        }

        fn write32(&self, at: u32, value: u32) {
            WRITTEN.with(|written| {
                let count = written.get().2;
                written.set((at, value, count + 1));
            });
        }
    }

    fn ring(entries: u16, shadow: bool) -> (Ring<Recorder>, usize) {
        let mut arena = Arena::new(1, Hugepages::Off).unwrap();
        let mut memory = DmaRegion::new(arena.take(1 << 20).unwrap()).unwrap();
        let pages = memory.split_off(2 * DMA_ALIGN).unwrap();
        let shadow = shadow.then(|| Arc::new(ShadowDoorbells::new(pages).unwrap()));
        let ring = Ring::new(Recorder, 1, 0, entries, memory, shadow);
        let cq = ring.cq_offset;
        (ring, cq)
    }

    fn complete(ring: &Ring<Recorder>, at: usize, cid: u16, phase: bool) {
        let entry = CompletionEntry::new(cid, Status::SUCCESS).with_phase(phase);
        ring.memory.write(at, entry.as_bytes());
    }

    #[test]
    fn completions_are_taken_by_their_phase() {
        let (mut ring, cq) = ring(3, false);
        assert!(ring.next().is_none());
        for round in 0..5u16 {
            for index in 0..3 {
                let at = cq + index * CQ_ENTRY;
                assert!(ring.next().is_none(), "the old phase is not new");
                complete(&ring, at, round * 3 + index as u16, round % 2 == 0);
                let cid = ring.next().unwrap().cid.get();
                assert_eq!(cid, round * 3 + index as u16);
            }
        }
        ring.reset();
        assert!(ring.next().is_none());
        complete(&ring, cq, 7, true);
        assert_eq!(ring.next().unwrap().cid.get(), 7);
    }

    #[test]
    fn a_doorbell_is_rung_once_for_all() {
        let (mut ring, _) = ring(8, false);
        assert_eq!(ring.ring_doorbells(), 0);
        for _ in 0..5 {
            ring.push(&SubmissionEntry::new(2, 1));
        }
        WRITTEN.with(|written| written.set((0, 0, 0)));
        assert_eq!(ring.ring_doorbells(), 1);
        assert_eq!(WRITTEN.with(Cell::get), (0x1008, 5, 1));
        assert_eq!(ring.ring_doorbells(), 0);
    }

    #[test]
    fn shadow_doorbells_save_the_register() {
        let (mut ring, _) = ring(8, true);
        let shadow = ring.shadow.clone().unwrap();
        ring.push(&SubmissionEntry::new(2, 1));
        // The event index 0 is passed by the new tail 1: the controller wants to know.
        assert_eq!(ring.ring_doorbells(), 1);
        ring.push(&SubmissionEntry::new(2, 1));
        assert_eq!(ring.ring_doorbells(), 0, "it has been told already");
        assert_eq!(shadow.shadow.load(8), 2);
        shadow.event_index.store(8, 2);
        ring.push(&SubmissionEntry::new(2, 1));
        assert_eq!(ring.ring_doorbells(), 1);
    }
}
