//! The extents of volumes that slow writes are on their way to.
//!
//! Invariants:
//! - An extent is here as long as a write to it is under way, and keeps its place so long: whoever knows
//!   the place need not look for it.
//! - Nothing is allocated once there is room for as many as were ever here at a time.

use std::{collections::HashMap, ops::Range};

use crate::{
    bits::Bits,
    format::{BLOCKS_PER_EXTENT, Extent},
    sync::BuildMix,
};

/// A volume, and which of its extents.
pub(crate) type Key = (u32, u64);

/// An extent of a volume that slow writes are on their way to.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Where their data go, once that is known; pinned.
    pub extent: Option<Extent>,
    /// The blocks that they work on.
    pub busy: Bits,
    writes: u32,
    key: Key,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct AllStaged {
    places: HashMap<Key, usize, BuildMix>,
    all: Vec<Staged>,
    free: Vec<usize>,
}

/// The bits of blocks that lie in one extent.
pub(crate) fn bits_of(part: &Range<u64>) -> Bits {
    let within = |block: u64| usize::try_from(block).expect("within an extent");
    let first = within(part.start % BLOCKS_PER_EXTENT as u64);
    Bits::of(first..first + within(part.end - part.start))
}

impl Staged {
    /// A write to some of its blocks begins, none of which is busy.
    pub fn begin(&mut self, blocks: &Bits) {
        self.busy.add(blocks);
        self.writes += 1;
    }
}

impl AllStaged {
    /// Where an extent is kept, until the last write to it has ended.
    pub fn place(&self, key: Key) -> Option<usize> {
        self.places.get(&key).copied()
    }

    pub fn at(&mut self, place: usize) -> &mut Staged {
        &mut self.all[place]
    }

    pub fn get(&self, key: Key) -> Option<&Staged> {
        self.place(key).map(|place| &self.all[place])
    }

    /// The extent; the caller begins a write to it where it was not here.
    pub fn get_or_add(&mut self, key: Key) -> (usize, &mut Staged) {
        let (all, free) = (&mut self.all, &mut self.free);
        let place = *self.places.entry(key).or_insert_with(|| {
            let staged = Staged {
                key,
                ..Staged::default()
            };
            match free.pop() {
                Some(place) => {
                    all[place] = staged;
                    place
                }
                None => {
                    all.push(staged);
                    all.len() - 1
                }
            }
        });
        (place, &mut self.all[place])
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &Staged)> {
        let places = self.places.iter();
        places.map(|(key, place)| (*key, &self.all[*place]))
    }

    /// A write to some of an extent's blocks has ended; where it was the last, where their data went.
    pub fn end(&mut self, place: usize, blocks: &Bits) -> Option<Extent> {
        let staged = &mut self.all[place];
        staged.busy.remove(blocks);
        staged.writes -= 1;
        if staged.writes > 0 {
            return None;
        }
        let (key, extent) = (staged.key, staged.extent);
        self.places.remove(&key);
        self.free.push(place);
        extent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_here_until_its_last_write_has_ended() {
        let mut all = AllStaged::default();
        let blocks = |from: u64, to: u64| bits_of(&(from..to));
        let (first, staged) = all.get_or_add((1, 7));
        staged.begin(&blocks(7 * 256, 7 * 256 + 2));
        staged.extent = Some(Extent(3));
        let (again, staged) = all.get_or_add((1, 7));
        staged.begin(&blocks(7 * 256 + 2, 7 * 256 + 3));
        assert_eq!((again, all.iter().count()), (first, 1));
        let (other, staged) = all.get_or_add((2, 7));
        staged.begin(&blocks(0, 1));
        assert_ne!(other, first);
        assert_eq!(all.end(first, &blocks(0, 2)), None);
        let staged = all.get((1, 7)).unwrap();
        assert!(!staged.busy.meets(&blocks(0, 2)) && staged.busy.meets(&blocks(2, 3)));
        assert_eq!(all.end(first, &blocks(2, 3)), Some(Extent(3)));
        assert!(all.get((1, 7)).is_none() && all.get((2, 7)).is_some());
        // Its place is another's, which finds nothing of what was there.
        let (place, staged) = all.get_or_add((1, 8));
        assert_eq!((place, staged.extent), (first, None));
        assert!(staged.busy.is_empty());
    }
}
