//! The memory that arrays use and will use: a part of the arena that the cores' pools are not made of.
//!
//! Invariant: what is free is kept by its place, and neighbours are one, so that an array that goes
//! leaves room for one as large.

use corebay_core::arena::Region;

/// See the module.
#[derive(Default)]
pub struct Reserve {
    /// By place.
    free: Vec<Region>,
}

impl Reserve {
    /// All of it is free.
    pub fn new(region: Region) -> Self {
        let mut reserve = Self::default();
        reserve.give(region);
        reserve
    }

    /// The bytes that are free.
    pub fn free_bytes(&self) -> usize {
        self.free.iter().map(Region::len).sum()
    }

    /// As many regions of `bytes` as asked for, or none.
    pub fn take(&mut self, bytes: usize, count: usize) -> Option<Vec<Region>> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let fits = self.free.iter_mut().find(|region| region.len() >= bytes);
            match fits.and_then(|region| region.split_off(bytes)) {
                Some(region) => taken.push(region),
                None => {
                    taken.into_iter().for_each(|region| self.give(region));
                    return None;
                }
            }
        }
        self.free.retain(|region| !region.is_empty());
        Some(taken)
    }

    /// Takes a region back.
    pub fn give(&mut self, region: Region) {
        if region.is_empty() {
            return;
        }
        let place = self
            .free
            .partition_point(|known| known.offset() < region.offset());
        self.free.insert(place, region);
        let mut joined: Vec<Region> = Vec::new();
        for region in self.free.drain(..) {
            let Some(last) = joined.pop() else {
                joined.push(region);
                continue;
            };
            match last.join(region) {
                Ok(one) => joined.push(one),
                Err((last, region)) => joined.extend([last, region]),
            }
        }
        self.free = joined;
    }
}

#[cfg(test)]
mod tests {
    use corebay_core::arena::{Arena, Hugepages};

    use super::*;

    #[test]
    fn what_comes_back_is_one_again() {
        let mut arena = Arena::new(8 << 20, Hugepages::Off).unwrap();
        let mut reserve = Reserve::new(arena.take(8 << 20).unwrap());
        let mut taken = reserve.take(2 << 20, 3).unwrap();
        assert!(reserve.take(2 << 20, 2).is_none());
        assert_eq!(reserve.free_bytes(), 2 << 20);
        taken.rotate_left(1);
        taken.into_iter().for_each(|region| reserve.give(region));
        assert!(reserve.take(8 << 20, 1).is_some());
        assert_eq!(reserve.free_bytes(), 0);
    }
}
