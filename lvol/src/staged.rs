//! The extents of volumes that slow writes are on their way to.
//!
//! Invariants:
//! - An extent is here as long as a write to it is under way, and keeps its place so long: whoever knows
//!   the place need not look for it.
//! - Nothing is allocated once there is room for as many as were ever here at a time.

use std::{hash::BuildHasher, ops::Range};

use hashbrown::HashTable;

use crate::{
    bits::Bits,
    format::{BLOCKS_PER_EXTENT, Extent},
    sync::BuildMix,
};

/// A volume, and which of its extents.
pub(crate) type Key = (u32, u64);

/// An extent of a volume that slow writes are on their way to. All that is known of it is one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Staged {
    /// Where their data go, once that is known; pinned.
    pub extent: Option<Extent>,
    /// The blocks that they work on.
    busy: Bits,
    writes: u32,
    /// The volume, and which of its extents, of which no volume has 2^32.
    volume: u32,
    index: u32,
}

const _: () = assert!(size_of::<Staged>() == 64);

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct AllStaged {
    /// Where each is kept.
    places: HashTable<u32>,
    all: Vec<Staged>,
    free: Vec<u32>,
}

/// Which blocks of their extent these are, which lie in one.
pub(crate) fn within_extent(part: &Range<u64>) -> Range<usize> {
    let within = |block: u64| usize::try_from(block).expect("within an extent");
    let first = within(part.start % BLOCKS_PER_EXTENT as u64);
    first..first + within(part.end - part.start)
}

impl Staged {
    /// A write to some of its blocks begins, none of which is busy.
    pub fn begin(&mut self, blocks: &Range<u64>) {
        self.busy.set(within_extent(blocks));
        self.writes += 1;
    }

    /// A write to some of these blocks is under way.
    pub fn is_busy(&self, blocks: &Range<u64>) -> bool {
        self.busy.meets(within_extent(blocks))
    }

    fn key(&self) -> Key {
        (self.volume, self.index.into())
    }
}

fn hash_of(key: Key) -> u64 {
    BuildMix.hash_one(key)
}

impl AllStaged {
    /// Where an extent is kept, until the last write to it has ended.
    pub fn place(&self, key: Key) -> Option<usize> {
        let is_it = |place: &u32| self.all[*place as usize].key() == key;
        let place = self.places.find(hash_of(key), is_it);
        place.map(|place| *place as usize)
    }

    pub fn at(&mut self, place: usize) -> &mut Staged {
        &mut self.all[place]
    }

    pub fn get(&self, key: Key) -> Option<&Staged> {
        self.place(key).map(|place| &self.all[place])
    }

    /// The extent; the caller begins a write to it where it was not here.
    pub fn get_or_add(&mut self, key: Key) -> (usize, &mut Staged) {
        let place = self.place(key).unwrap_or_else(|| self.add(key));
        (place, &mut self.all[place])
    }

    fn add(&mut self, key: Key) -> usize {
        let staged = Staged {
            volume: key.0,
            index: u32::try_from(key.1).expect("fewer than 2^32"),
            ..Staged::default()
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.all[place as usize] = staged;
                place
            }
            None => {
                self.all.push(staged);
                u32::try_from(self.all.len() - 1).expect("fewer than 2^32 writes")
            }
        };
        let all = &self.all;
        let hash = |place: &u32| hash_of(all[*place as usize].key());
        self.places.insert_unique(hash_of(key), place, hash);
        place as usize
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &Staged)> {
        let all = self.places.iter().map(|place| &self.all[*place as usize]);
        all.map(|staged| (staged.key(), staged))
    }

    /// A write to some of an extent's blocks has ended; where it was the last, where their data went.
    pub fn end(&mut self, place: usize, blocks: &Range<u64>) -> Option<Extent> {
        let staged = &mut self.all[place];
        staged.busy.clear(within_extent(blocks));
        staged.writes -= 1;
        if staged.writes > 0 {
            return None;
        }
        let (key, extent) = (staged.key(), staged.extent);
        let is_it = |other: &u32| *other as usize == place;
        if let Ok(found) = self.places.find_entry(hash_of(key), is_it) {
            self.free.push(found.remove().0);
        }
        extent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_here_until_its_last_write_has_ended() {
        let mut all = AllStaged::default();
        let (first, staged) = all.get_or_add((1, 7));
        staged.begin(&(7 * 256..7 * 256 + 2));
        staged.extent = Some(Extent(3));
        let (again, staged) = all.get_or_add((1, 7));
        staged.begin(&(7 * 256 + 2..7 * 256 + 3));
        assert_eq!((again, all.iter().count()), (first, 1));
        let (other, staged) = all.get_or_add((2, 7));
        staged.begin(&(0..1));
        assert_ne!(other, first);
        assert_eq!(all.end(first, &(0..2)), None);
        let staged = all.get((1, 7)).unwrap();
        assert!(!staged.is_busy(&(0..2)) && staged.is_busy(&(2..3)));
        assert_eq!(all.end(first, &(2..3)), Some(Extent(3)));
        assert!(all.get((1, 7)).is_none() && all.get((2, 7)).is_some());
        // Its place is another's, which finds nothing of what was there.
        let (place, staged) = all.get_or_add((1, 8));
        assert_eq!((place, staged.extent), (first, None));
        assert!(staged.busy.is_empty());
    }
}
