//! Owns the dirty map: which regions of an array may differ between its members.
//!
//! A region is marked, on all members, before the first write to it begins; the mark goes once
//! nothing is being written there and every member has it all. So after a crash only marked regions
//! are made equal again, and a member that returns takes only those.
//!
//! Invariants:
//! - A mark counts only once it is on the members. [`DirtyMap::enter`] counts the writer first and
//!   looks for the mark after; [`DirtyMap::unmark_idle`] takes the mark first and looks for writers
//!   after: one of the two sees the other.
//! - The map has two places on each member, written in turn, each with its sequence and checksum: a
//!   torn write leaves the one before. Between members marks add up, and a mark that is on some of
//!   them alone is written to all as the array is assembled, before it counts.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{state::Uuid, superblock::crc32c};

/// The bytes of a map as it is written.
pub(crate) const MAP_BYTES: usize = 4096;

const HEADER_BYTES: usize = 64;
const WORDS: usize = (MAP_BYTES - HEADER_BYTES) / 8;
const REGIONS_MAX: u64 = WORDS as u64 * 64;

/// The fewest stripes of a region: fewer marks for small arrays.
const REGION_STRIPES_MIN: u64 = 16;

const MAGIC: [u8; 8] = *b"CBAYDMAP";

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    array: [u8; 16],
    sequence: U64,
    region_stripes: U64,
    reserved: [u8; 16],
    words: [U64; WORDS],
}

const _: () = assert!(size_of::<Raw>() == MAP_BYTES);

/// Bits that all cores share.
#[derive(Debug)]
pub(crate) struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new() -> Self {
        Self((0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn get(&self, bit: usize) -> bool {
        self.0[bit / 64].load(Ordering::SeqCst) >> (bit % 64) & 1 == 1
    }

    pub(crate) fn set(&self, bit: usize) {
        self.0[bit / 64].fetch_or(1 << (bit % 64), Ordering::SeqCst);
    }

    pub(crate) fn clear(&self, bit: usize) {
        self.0[bit / 64].fetch_and(!(1 << (bit % 64)), Ordering::SeqCst);
    }

    pub(crate) fn load(&self) -> Marks {
        let words = self.0.iter().map(|word| word.load(Ordering::SeqCst));
        Marks(words.collect())
    }

    pub(crate) fn add(&self, marks: &Marks) {
        for (word, value) in self.0.iter().zip(&marks.0) {
            word.fetch_or(*value, Ordering::SeqCst);
        }
    }

    pub(crate) fn store(&self, marks: &Marks) {
        for (word, value) in self.0.iter().zip(&marks.0) {
            word.store(*value, Ordering::SeqCst);
        }
    }
}

/// A copy of bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marks(Box<[u64]>);

impl Marks {
    pub(crate) fn none() -> Self {
        Self(vec![0; WORDS].into())
    }

    pub(crate) fn all(regions: usize) -> Self {
        let mut marks = Self::none();
        (0..regions).for_each(|region| marks.0[region / 64] |= 1 << (region % 64));
        marks
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The marks as they are written.
    pub(crate) fn encode(
        &self,
        array: Uuid,
        region_stripes: u64,
        sequence: u64,
    ) -> [u8; MAP_BYTES] {
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.version = 1.into();
        raw.array = array.0;
        raw.sequence = sequence.into();
        raw.region_stripes = region_stripes.into();
        for (into, word) in raw.words.iter_mut().zip(&self.0) {
            *into = (*word).into();
        }
        raw.crc = crc32c(raw.as_bytes()).into();
        let mut bytes = [0; MAP_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// The marks that were written for an array with regions of this size, and their sequence.
    pub(crate) fn decode(bytes: &[u8], array: Uuid, region_stripes: u64) -> Option<(u64, Self)> {
        let mut raw = Raw::read_from_bytes(bytes).ok()?;
        let crc = raw.crc.get();
        raw.crc = 0.into();
        let good = raw.magic == MAGIC
            && crc32c(raw.as_bytes()) == crc
            && raw.array == array.0
            && raw.version.get() == 1
            && raw.region_stripes.get() == region_stripes;
        let words = raw.words.iter().map(|word| word.get());
        good.then(|| (raw.sequence.get(), Self(words.collect())))
    }
}

/// The marks of an array, and who is writing where.
#[derive(Debug)]
pub(crate) struct DirtyMap {
    region_stripes: u64,
    regions: usize,
    /// Marks that are wanted; those that wait for the same write of the map share it.
    wanted: Bits,
    /// Marks that are on the members.
    written: Bits,
    /// Regions that are to be made equal since a crash.
    pub(crate) unequal: Bits,
    writers: Box<[AtomicU32]>,
    sequence: AtomicU64,
}

impl DirtyMap {
    /// The map of an array of so many stripes, with these marks on its members.
    pub(crate) fn new(stripes: u64, marks: &Marks, sequence: u64) -> Self {
        let region_stripes = region_stripes(stripes);
        let regions = regions(stripes);
        let map = Self {
            region_stripes,
            regions,
            wanted: Bits::new(),
            written: Bits::new(),
            unequal: Bits::new(),
            writers: (0..regions).map(|_| AtomicU32::new(0)).collect(),
            sequence: AtomicU64::new(sequence),
        };
        map.wanted.store(marks);
        map.written.store(marks);
        map
    }

    /// Bits for as many regions.
    #[allow(clippy::unused_self, reason = "all maps are of one size")]
    pub(crate) fn empty_bits(&self) -> Bits {
        Bits::new()
    }

    pub(crate) fn regions(&self) -> usize {
        self.regions
    }

    pub(crate) fn region_of(&self, stripe: u64) -> usize {
        (stripe / self.region_stripes) as usize
    }

    pub(crate) fn region_stripes(&self) -> u64 {
        self.region_stripes
    }

    /// A writer comes to a region; true where the mark is on the members already.
    pub(crate) fn enter(&self, region: usize) -> bool {
        self.writers[region].fetch_add(1, Ordering::SeqCst);
        self.wanted.set(region);
        self.written.get(region)
    }

    /// A writer leaves.
    pub(crate) fn leave(&self, region: usize) {
        self.writers[region].fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn is_written(&self, region: usize) -> bool {
        self.written.get(region)
    }

    /// All marks, also those that are not on the members yet.
    pub(crate) fn marks(&self) -> Marks {
        self.wanted.load()
    }

    /// Some mark is wanted that is not on the members.
    pub(crate) fn has_unwritten(&self) -> bool {
        let words = self.wanted.0.iter().zip(&self.written.0);
        let mut words = words.map(|(wanted, written)| {
            wanted.load(Ordering::SeqCst) & !written.load(Ordering::SeqCst)
        });
        words.any(|word| word != 0)
    }

    /// A mark is wanted, whoever writes there.
    pub(crate) fn want(&self, region: usize) {
        self.wanted.set(region);
    }

    /// The sequence of the newest map. With the map's lock held.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::SeqCst)
    }

    /// What is to be written now, and its sequence. With the map's lock held.
    pub(crate) fn next(&self) -> (Marks, u64) {
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        (self.wanted.load(), sequence)
    }

    /// These marks are on the members. With the map's lock held.
    pub(crate) fn wrote(&self, marks: &Marks) {
        self.written.store(marks);
    }

    /// What was unmarked in memory and is still on the members counts again. With the map's lock held.
    pub(crate) fn remark(&self) {
        for region in 0..self.regions {
            // Too many marks cost time; which ones went is not remembered.
            self.wanted.set(region);
            self.written.clear(region);
        }
    }

    /// Takes the marks of regions in which nothing is being written; how many those were. With the
    /// map's lock held; they are to be written next.
    pub(crate) fn unmark_idle(&self) -> usize {
        let mut count = 0;
        for region in 0..self.regions {
            if !self.written.get(region) || self.unequal.get(region) {
                continue;
            }
            self.written.clear(region);
            self.wanted.clear(region);
            if self.writers[region].load(Ordering::SeqCst) > 0 {
                self.wanted.set(region);
                self.written.set(region);
            } else {
                count += 1;
            }
        }
        count
    }
}

/// How many stripes a region of an array has.
pub(crate) fn region_stripes(stripes: u64) -> u64 {
    stripes
        .div_ceil(REGIONS_MAX)
        .next_power_of_two()
        .max(REGION_STRIPES_MIN)
}

/// How many regions an array has.
pub(crate) fn regions(stripes: u64) -> usize {
    stripes.div_ceil(region_stripes(stripes)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_back_and_every_flipped_bit_is_noticed() {
        let mut marks = Marks::none();
        marks.0[3] = 0x8000_0000_0000_0001;
        let mut bytes = marks.encode(Uuid([1; 16]), 16, 7);
        let decode = |bytes: &[u8]| Marks::decode(bytes, Uuid([1; 16]), 16);
        assert_eq!(decode(&bytes), Some((7, marks)));
        assert_eq!(Marks::decode(&bytes, Uuid([2; 16]), 16), None);
        assert_eq!(Marks::decode(&bytes, Uuid([1; 16]), 32), None);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn regions_fit_the_map_at_any_size() {
        for stripes in [
            1,
            16,
            17,
            1000,
            REGIONS_MAX * 16,
            REGIONS_MAX * 16 + 1,
            1 << 50,
        ] {
            let regions = regions(stripes) as u64;
            assert!(regions <= REGIONS_MAX && regions * region_stripes(stripes) >= stripes);
        }
    }

    #[test]
    fn a_mark_goes_only_where_nobody_writes() {
        let map = DirtyMap::new(64, &Marks::none(), 0);
        assert!(!map.enter(0) && !map.enter(1));
        let (marks, sequence) = map.next();
        assert_eq!((marks.count(), sequence), (2, 1));
        map.wrote(&marks);
        map.leave(0);
        assert_eq!(map.unmark_idle(), 1);
        assert!(!map.is_written(0) && map.is_written(1));
        assert!(!map.enter(0), "the mark has to be written again");
    }
}
