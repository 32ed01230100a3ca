//! A volume's flat map: where every core finds the volume's blocks, without asking and without a lock.
//!
//! It repeats what the pool's state says ([`publish`](crate::publish)), one word for each extent of the
//! volume; what it does not know is asked of the home core.
//!
//! Invariants:
//! - The home core alone writes it, after a record has taken effect and before that is told to
//!   anybody. All cores read it, while they [look](crate::epoch).
//! - Its memory only grows; a slot that an entry named is used for another entry only when no look
//!   from before is left. Entries name only so many slots ([`publish`](crate::publish)), and a segment of
//!   entries is a millionth of the blocks that it is for.
//! - A block is the volume's own, to be written in place, where its entry carries the volume's present
//!   generation: a snapshot takes all of them away by another generation.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use crate::{
    bits::Bits,
    format::{BLOCKS_PER_EXTENT, Extent, page::LEAF_EXTENTS},
    qos::Qos,
    state::map::Run,
};

/// Entries that are made together.
const SEGMENT: usize = 1024;

/// Slots that are made together.
const CHUNK: usize = 64;

/// Each bucket has twice as many places as the one before it.
const BUCKETS: usize = 24;

const WORDS: usize = BLOCKS_PER_EXTENT / 64;

/// Values by index, each made when it is first needed.
struct Spread<T> {
    buckets: [Bucket<T>; BUCKETS],
}

type Bucket<T> = OnceLock<Box<[OnceLock<Box<T>>]>>;

impl<T> Default for Spread<T> {
    fn default() -> Self {
        Self {
            buckets: [const { OnceLock::new() }; BUCKETS],
        }
    }
}

impl<T> Spread<T> {
    #[inline(always)]
    fn place(index: usize) -> (usize, usize) {
        let bucket = (index + 1).ilog2();
        (bucket as usize, index + 1 - (1 << bucket))
    }

    #[inline(always)]
    fn get(&self, index: usize) -> Option<&T> {
        let (bucket, at) = Self::place(index);
        let bucket = self.buckets.get(bucket)?.get()?;
        Some(&**bucket[at].get()?)
    }

    #[inline(always)]
    fn get_or_make(&self, index: usize, make: impl FnOnce() -> Box<T>) -> &T {
        match self.get(index) {
            Some(there) => there,
            None => self.make(index, make),
        }
    }

    #[cold]
    fn make(&self, index: usize, make: impl FnOnce() -> Box<T>) -> &T {
        let (bucket, at) = Self::place(index);
        let places = self.buckets[bucket]
            .get_or_init(|| (0..1 << bucket).map(|_| OnceLock::new()).collect());
        places[at].get_or_init(make)
    }

    fn each(&self) -> impl Iterator<Item = &T> {
        let buckets = self.buckets.iter().filter_map(OnceLock::get);
        buckets.flatten().filter_map(|place| Some(&**place.get()?))
    }
}

const fn zeroes<const LEN: usize>() -> [AtomicU64; LEN] {
    [const { AtomicU64::new(0) }; LEN]
}

pub(crate) type Segment = [AtomicU64; SEGMENT];

const _: () = assert!(SEGMENT.is_multiple_of(LEAF_EXTENTS));

/// An extent's entry in its segment.
#[inline]
pub(crate) fn segment_entry(segment: &Segment, index: u64) -> Word {
    let at = usize::try_from(index).expect("an extent of a volume") % SEGMENT;
    Word::of(segment[at].load(Ordering::Acquire))
}

/// Of an extent with some valid blocks: [`Word`] of the extent, and their bits.
pub(crate) type PartialSlot = [AtomicU64; 1 + WORDS];

/// Of an extent whose blocks lie in several.
pub(crate) struct FragmentsSlot {
    /// [`Word`] of the volume's own.
    pub target: AtomicU64,
    /// Each block's extent, as stored: there are fewer than 2^32.
    pub holders: [AtomicU32; BLOCKS_PER_EXTENT],
}

impl FragmentsSlot {
    const fn empty() -> Self {
        Self {
            target: AtomicU64::new(0),
            holders: [const { AtomicU32::new(0) }; BLOCKS_PER_EXTENT],
        }
    }
}

/// What entries refer to, for all volumes of a pool.
#[derive(Default)]
pub(crate) struct Slots {
    partial: Spread<[PartialSlot; CHUNK]>,
    fragments: Spread<[FragmentsSlot; CHUNK]>,
}

impl Slots {
    #[inline(always)]
    pub fn partial(&self, slot: u64) -> &PartialSlot {
        let slot = usize::try_from(slot).expect("a slot's number");
        let make = || Box::new([const { zeroes::<{ 1 + WORDS }>() }; CHUNK]);
        &self.partial.get_or_make(slot / CHUNK, make)[slot % CHUNK]
    }

    #[inline(always)]
    pub fn fragments(&self, slot: u64) -> &FragmentsSlot {
        let slot = usize::try_from(slot).expect("a slot's number");
        let make = || Box::new([const { FragmentsSlot::empty() }; CHUNK]);
        &self.fragments.get_or_make(slot / CHUNK, make)[slot % CHUNK]
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To be asked of the home core.
    Unknown,
    /// Zeroes.
    Hole,
    /// All blocks lie in the extent.
    Whole,
    /// The number is that of a [`PartialSlot`].
    Partial,
    /// The number is that of a [`FragmentsSlot`].
    Fragments,
}

/// An entry, or the first word of a slot: what it is, a number, and the generation in which the volume
/// alone had the extent (0: it had not).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub kind: Kind,
    pub own: u64,
    pub number: u64,
}

const NUMBER_BITS: u32 = 40;
const OWN_BITS: u32 = 21;

/// Generations are counted so far, and begin again.
pub(crate) const OWN_MAX: u64 = (1 << OWN_BITS) - 1;

impl Word {
    pub const UNKNOWN: Self = Self {
        kind: Kind::Unknown,
        own: 0,
        number: 0,
    };

    pub fn bits(self) -> u64 {
        debug_assert!(self.own <= OWN_MAX && self.number < 1 << NUMBER_BITS);
        (self.kind as u64) << (NUMBER_BITS + OWN_BITS) | self.own << NUMBER_BITS | self.number
    }

    #[inline(always)]
    pub fn of(bits: u64) -> Self {
        let kind = match bits >> (NUMBER_BITS + OWN_BITS) {
            1 => Kind::Hole,
            2 => Kind::Whole,
            3 => Kind::Partial,
            4 => Kind::Fragments,
            _ => Kind::Unknown,
        };
        Self {
            kind,
            own: bits >> NUMBER_BITS & OWN_MAX,
            number: bits & ((1 << NUMBER_BITS) - 1),
        }
    }
}

/// Where blocks within one extent lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// In one or several places, or it is not known here.
    Unclear,
    Zeroes,
    /// Beside each other in this extent; true where they may be written in place.
    In(Extent, bool),
}

/// What all cores know of a volume. What each operation reads lies beside each other, apart from what
/// changes often.
#[repr(C, align(64))]
pub(crate) struct FlatVolume {
    pub id: u32,
    /// The present generation, from 1.
    pub own: AtomicU64,
    pub blocks: AtomicU64,
    /// It takes no writes.
    pub read_only: AtomicBool,
    /// Writes wait.
    pub frozen: AtomicBool,
    /// It is deleted, or its pool is closed.
    pub gone: AtomicBool,
    /// A write in place was dropped amid its way.
    pub forsaken: AtomicBool,
    /// How much hosts may do with it.
    pub qos: Qos,
    /// It is being received: nobody opens it.
    pub receiving: AtomicBool,
    segments: Spread<Segment>,
    pub counts: Counts,
}

/// What changes often.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Counts {
    /// Blocks that hold something.
    pub mapped: AtomicU64,
    /// Disks over the volume.
    pub handles: AtomicU32,
    /// Slow writes and clearings that are under way. Those that only look are not counted.
    pub writers: AtomicU32,
    /// The same of the home core's own, which nobody else counts.
    pub writers_home: AtomicU32,
}

impl Counts {
    /// Some slow write or clearing is under way, for the home core to ask.
    pub fn has_writers(&self) -> bool {
        let home = self.writers_home.load(Ordering::Relaxed);
        home + self.writers.load(Ordering::SeqCst) > 0
    }
}

impl FlatVolume {
    pub fn new(id: u32) -> Self {
        Self {
            id,
            segments: Spread::default(),
            own: AtomicU64::new(1),
            blocks: AtomicU64::new(0),
            read_only: AtomicBool::new(true),
            frozen: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            forsaken: AtomicBool::new(false),
            qos: Qos::default(),
            receiving: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    #[inline]
    pub fn entry(&self, index: u64) -> Word {
        let segment = self.segment(index);
        segment.map_or(Word::UNKNOWN, |segment| segment_entry(segment, index))
    }

    /// The entries beside that of an extent, among them all under its leaf.
    #[inline]
    pub fn segment(&self, index: u64) -> Option<&Segment> {
        let index = usize::try_from(index).expect("an extent of a volume");
        self.segments.get(index / SEGMENT)
    }

    pub fn set_entry(&self, index: u64, word: Word) {
        let index = usize::try_from(index).expect("an extent of a volume");
        let make = || Box::new(zeroes());
        let segment = self.segments.get_or_make(index / SEGMENT, make);
        segment[index % SEGMENT].store(word.bits(), Ordering::Release);
    }

    /// Forgets everything; gives what the entries were.
    pub fn forget(&self) -> impl Iterator<Item = Word> {
        let entries = self.segments.each().flatten();
        entries.map(|entry| Word::of(entry.swap(0, Ordering::AcqRel)))
    }

    /// Where blocks lie, as far as it is seen at one glance: a single block, or an extent that is whole
    /// or a hole. That they may be written in place is told only where it `WRITES`. While looking.
    #[inline(always)]
    pub fn glance<const WRITES: bool>(&self, slots: &Slots, block: u64, blocks: u64) -> Glance {
        let per_extent = BLOCKS_PER_EXTENT as u64;
        let first = block % per_extent;
        let word = self.entry(block / per_extent);
        let present = self.own.load(Ordering::Relaxed);
        let at = |word: Word| Glance::In(Extent(word.number), WRITES && word.own == present);
        match word.kind {
            Kind::Whole if first + blocks <= per_extent => at(word),
            Kind::Hole if first + blocks <= per_extent => Glance::Zeroes,
            Kind::Partial if blocks == 1 => {
                let slot = slots.partial(word.number);
                let of = Word::of(slot[0].load(Ordering::Acquire));
                let valid = slot[1 + within(first / 64)].load(Ordering::Acquire);
                match valid >> (first % 64) & 1 {
                    0 => Glance::Zeroes,
                    _ => at(of),
                }
            }
            Kind::Fragments if blocks == 1 => {
                let slot = slots.fragments(word.number);
                let target = || Word::of(slot.target.load(Ordering::Acquire));
                let target = if WRITES { target() } else { Word::UNKNOWN };
                let holder = slot.holders[within(first)].load(Ordering::Acquire);
                match Extent::from_stored(holder.into()) {
                    None => Glance::Zeroes,
                    Some(Extent(number)) if WRITES && number == target.number => at(target),
                    Some(other) => Glance::In(other, false),
                }
            }
            _ => Glance::Unclear,
        }
    }

    /// Where blocks from `block` on lie, up to `end` and within one extent; `None` where the home core
    /// has to be asked. While looking.
    pub fn run(&self, slots: &Slots, block: u64, end: u64) -> Option<Run> {
        let per_extent = BLOCKS_PER_EXTENT as u64;
        let word = self.entry(block / per_extent);
        let first = within(block % per_extent);
        let most = within((end - block).min(per_extent - block % per_extent));
        let present = self.own.load(Ordering::Relaxed);
        match word.kind {
            Kind::Unknown => None,
            Kind::Hole => Some(Run {
                blocks: most,
                extent: None,
                own: false,
            }),
            Kind::Whole => Some(Run {
                blocks: most,
                extent: Some(Extent(word.number)),
                own: word.own == present,
            }),
            Kind::Partial => {
                let slot = slots.partial(word.number);
                let of = Word::of(slot[0].load(Ordering::Acquire));
                let word = |at: usize| slot[1 + at].load(Ordering::Acquire);
                let set = word(first / 64) >> (first % 64) & 1 != 0;
                let valid = || Bits(std::array::from_fn(word));
                Some(Run {
                    blocks: match most {
                        1 => 1,
                        _ => valid().run_of(set, first..first + most),
                    },
                    extent: set.then_some(Extent(of.number)),
                    own: set && of.own == present,
                })
            }
            Kind::Fragments => {
                let slot = slots.fragments(word.number);
                let target = Word::of(slot.target.load(Ordering::Acquire));
                let holders = &slot.holders[first..first + most];
                let holder = holders[0].load(Ordering::Acquire);
                let alike = |word: &&AtomicU32| word.load(Ordering::Acquire) == holder;
                let extent = Extent::from_stored(holder.into());
                Some(Run {
                    blocks: 1 + holders[1..].iter().take_while(alike).count(),
                    extent,
                    own: extent == Some(Extent(target.number)) && target.own == present,
                })
            }
        }
    }
}

fn within(blocks: u64) -> usize {
    usize::try_from(blocks).expect("within an extent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_places_are_told_apart() {
        for kind in [
            Kind::Unknown,
            Kind::Hole,
            Kind::Whole,
            Kind::Partial,
            Kind::Fragments,
        ] {
            let word = Word {
                kind,
                own: OWN_MAX,
                number: (1 << NUMBER_BITS) - 1,
            };
            assert_eq!(Word::of(word.bits()), word);
        }
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..1000 {
            let (bucket, at) = Spread::<u8>::place(index);
            assert!(at < 1 << bucket && seen.insert((bucket, at)));
        }
    }
}
