//! Owns the journal's records and its ring of slots. See FORMAT.md for the bytes, and
//! docs/adr/0004-write-hole.md for why it is like this.
//!
//! A write to a stripe with parity changes the same rows of some of its members: those whose data
//! change, and those with parity. Each of them first gets, in its own journal, its own new rows (a
//! *part*); only when every part is durable does the first member change in place. So after a crash
//! either some part is missing, then nothing had changed in place and all is old; or no part is
//! missing, then writing all parts in place makes all new. A part that was lost together with its
//! member is not missed: the rows of the others say what it was.
//!
//! Invariants:
//! - The write with sequence `s` has slot `s % slots` on every member that takes part. At most half of
//!   the slots belong to writes that are not retired, so the slots of the last `slots / 2` writes
//!   before the oldest of them are intact: recovery replays a suffix of history without gaps, in order.
//! - A write retires when it is durable in place on all its members.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{state::Uuid, superblock::crc32c};

/// The bytes of a record's header.
pub(crate) const HEADER_BYTES: usize = 512;

const MAGIC: [u8; 8] = *b"CBAYJRNL";
const VERSION: u32 = 1;

/// What a record has done to the rows of its stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// The member's rows become the record's data.
    Write,
    /// The member's rows become zeroes; there are no data.
    Zero,
}

/// What a part says besides its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) array: Uuid,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    /// Every write before this one had retired.
    pub(crate) tail: u64,
    pub(crate) stripe: u64,
    /// The stripes after it that it covers, too: only of zeroes.
    pub(crate) more: u32,
    pub(crate) rows: Range<u32>,
    pub(crate) kind: RecordKind,
    /// The roles that have a part, as bits.
    pub(crate) participants: u32,
    pub(crate) role: u8,
    pub(crate) data_crc: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    array: [u8; 16],
    epoch: U64,
    sequence: U64,
    tail: U64,
    stripe: U64,
    row_start: U32,
    row_end: U32,
    participants: U32,
    data_crc: U32,
    kind: u8,
    role: u8,
    pad: [u8; 2],
    more: U32,
    reserved: [u8; 424],
}

const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);

impl RecordHeader {
    /// The stripes that it covers.
    pub(crate) fn stripes(&self) -> Range<u64> {
        self.stripe..self.stripe.saturating_add(1 + u64::from(self.more))
    }

    /// The bytes as they are written.
    pub(crate) fn encode(&self, into: &mut [u8]) {
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.array = self.array.0;
        raw.epoch = self.epoch.into();
        raw.sequence = self.sequence.into();
        raw.tail = self.tail.into();
        raw.stripe = self.stripe.into();
        raw.row_start = self.rows.start.into();
        raw.row_end = self.rows.end.into();
        raw.participants = self.participants.into();
        raw.data_crc = self.data_crc.into();
        raw.kind = match self.kind {
            RecordKind::Write => 0,
            RecordKind::Zero => 1,
        };
        raw.role = self.role;
        raw.more = self.more.into();
        raw.crc = crc32c(raw.as_bytes()).into();
        into[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
        into[HEADER_BYTES..].fill(0);
    }

    /// The header in a block that was read, if it is one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut raw = Raw::read_from_bytes(bytes.get(..HEADER_BYTES)?).ok()?;
        let crc = raw.crc.get();
        raw.crc = 0.into();
        if raw.magic != MAGIC || crc32c(raw.as_bytes()) != crc || raw.version.get() != VERSION {
            return None;
        }
        Some(Self {
            array: Uuid(raw.array),
            epoch: raw.epoch.get(),
            sequence: raw.sequence.get(),
            tail: raw.tail.get(),
            stripe: raw.stripe.get(),
            more: raw.more.get(),
            rows: raw.row_start.get()..raw.row_end.get(),
            kind: match raw.kind {
                0 => RecordKind::Write,
                1 => RecordKind::Zero,
                _ => return None,
            },
            participants: raw.participants.get(),
            role: raw.role,
            data_crc: raw.data_crc.get(),
        })
    }
}

/// The ring of slots, shared by all cores.
#[derive(Debug)]
pub(crate) struct Ring {
    slots: u64,
    /// The next sequence.
    head: AtomicU64,
    /// Every write before this one is in place.
    settled: AtomicU64,
    /// Every write before this one is durable in place.
    tail: AtomicU64,
    /// By slot: the sequence after the last one that is in place.
    done: Box<[AtomicU64]>,
    /// By slot: the stripe of its last write.
    stripes: Box<[AtomicU64]>,
}

/// Set in the head while nothing may be reserved.
const CLOSED: u64 = 1 << 63;

impl Ring {
    /// A ring that begins at a sequence.
    pub(crate) fn new(slots: u32, first: u64) -> Self {
        Self {
            slots: slots.into(),
            head: AtomicU64::new(first),
            settled: AtomicU64::new(first),
            tail: AtomicU64::new(first),
            done: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            stripes: (0..slots).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Begins at a sequence. Nothing is in the ring.
    pub(crate) fn begin(&self, first: u64) {
        for counter in [&self.head, &self.settled, &self.tail] {
            counter.store(first, Ordering::SeqCst);
        }
    }

    /// The slot of a sequence.
    pub(crate) fn slot(&self, sequence: u64) -> u64 {
        sequence % self.slots
    }

    /// The next sequence for a write to a stripe, if the ring has room for it, and the tail.
    pub(crate) fn reserve(&self, stripe: u64) -> Option<(u64, u64)> {
        let tail = self.tail.load(Ordering::SeqCst);
        let is_open = |head: u64| head & CLOSED == 0;
        let next = |head: u64| (is_open(head) && head - tail < self.slots / 2).then_some(head + 1);
        let (done, looked) = (Ordering::SeqCst, Ordering::SeqCst);
        let head = self.head.fetch_update(done, looked, next).ok()?;
        self.stripes[self.slot(head) as usize].store(stripe, Ordering::SeqCst);
        Some((head, tail))
    }

    /// Nothing is reserved from now on.
    pub(crate) fn close(&self) {
        self.head.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// Writes may be reserved again.
    pub(crate) fn open(&self) {
        self.head.fetch_and(!CLOSED, Ordering::SeqCst);
    }

    /// True where every write that was reserved is in place.
    pub(crate) fn is_drained(&self) -> bool {
        self.head.load(Ordering::SeqCst) & !CLOSED == self.settled()
    }

    /// A write is in place.
    pub(crate) fn settle(&self, sequence: u64) {
        let slot = self.slot(sequence) as usize;
        self.done[slot].store(sequence + 1, Ordering::SeqCst);
        loop {
            let at = self.settled.load(Ordering::SeqCst);
            if self.done[self.slot(at) as usize].load(Ordering::SeqCst) != at + 1 {
                return;
            }
            let (done, looked) = (Ordering::SeqCst, Ordering::SeqCst);
            // Whoever loses the race looks again.
            let _ = self.settled.compare_exchange(at, at + 1, done, looked);
        }
    }

    /// Every write before this one is in place, though maybe in volatile caches.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.load(Ordering::SeqCst)
    }

    /// Every write before `sequence` is durable in place.
    pub(crate) fn retire(&self, sequence: u64) {
        self.tail.fetch_max(sequence, Ordering::SeqCst);
    }

    /// The stripes of the writes that are not retired. A write that is being reserved may be missing.
    pub(crate) fn unretired(&self) -> impl Iterator<Item = u64> {
        let head = self.head.load(Ordering::SeqCst) & !CLOSED;
        let sequences = self.tail.load(Ordering::SeqCst)..head;
        sequences.map(|at| self.stripes[self.slot(at) as usize].load(Ordering::SeqCst))
    }

    /// True where some write is in place and not retired.
    pub(crate) fn has_settled(&self) -> bool {
        self.settled() > self.tail.load(Ordering::SeqCst)
    }
}

/// Of the records that were found, the sequences to replay: none where there are none.
pub(crate) fn replay_from(slots: u32, found: &[RecordHeader]) -> Option<u64> {
    let newest = found.iter().map(|record| record.sequence).max()?;
    let tail = found.iter().map(|record| record.tail).max()?;
    let intact = (newest + 1).saturating_sub(u64::from(slots) / 2);
    Some(tail.max(intact))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u64, tail: u64) -> RecordHeader {
        RecordHeader {
            array: Uuid([3; 16]),
            epoch: 4,
            sequence,
            tail,
            stripe: 7,
            more: 3,
            rows: 512..4096,
            kind: RecordKind::Write,
            participants: 0b1101,
            role: 2,
            data_crc: 99,
        }
    }

    #[test]
    fn a_header_reads_back_and_every_flipped_bit_is_noticed() {
        let mut bytes = [0xff; 4096];
        header(11, 5).encode(&mut bytes);
        assert_eq!(RecordHeader::decode(&bytes), Some(header(11, 5)));
        for bit in 0..HEADER_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn half_of_the_ring_is_given_out_and_comes_back_in_order() {
        let ring = Ring::new(8, 100);
        let given: Vec<u64> = (0..4).map(|_| ring.reserve(9).unwrap().0).collect();
        assert_eq!(given, [100, 101, 102, 103]);
        assert_eq!(ring.reserve(9), None);
        ring.settle(101);
        assert_eq!(ring.settled(), 100);
        ring.settle(100);
        assert_eq!(ring.settled(), 102);
        assert_eq!(ring.reserve(9), None, "in place is not durable");
        ring.retire(ring.settled());
        assert_eq!(ring.reserve(7), Some((104, 102)));
        assert_eq!(ring.unretired().collect::<Vec<_>>(), [9, 9, 7]);
    }

    #[test]
    fn a_closed_ring_drains() {
        let ring = Ring::new(8, 5);
        let (given, _) = ring.reserve(1).unwrap();
        ring.close();
        assert_eq!((ring.reserve(1), ring.is_drained()), (None, false));
        assert_eq!(ring.unretired().count(), 1);
        ring.settle(given);
        assert!(ring.is_drained());
        ring.open();
        assert_eq!(ring.reserve(1), Some((6, 5)));
    }

    #[test]
    fn old_records_are_not_replayed() {
        assert_eq!(replay_from(8, &[]), None);
        let found = [header(3, 0), header(20, 18), header(19, 15)];
        assert_eq!(replay_from(8, &found), Some(18));
        assert_eq!(replay_from(8, &[header(3, 0), header(20, 0)]), Some(17));
    }
}
