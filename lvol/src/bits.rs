//! A set of blocks of one extent.

use std::ops::Range;

use crate::format::BLOCKS_PER_EXTENT;

const WORDS: usize = BLOCKS_PER_EXTENT / 64;

/// Which blocks of an extent are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Bits(pub [u64; WORDS]);

impl Bits {
    pub const ALL: Self = Self([u64::MAX; WORDS]);

    pub fn of(range: Range<usize>) -> Self {
        let mut bits = Self::default();
        // Mostly it is one block.
        match range.len() {
            1 => bits.0[range.start / 64] = 1 << (range.start % 64),
            _ => bits.set(range),
        }
        bits
    }

    pub fn get(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 != 0
    }

    pub fn set(&mut self, range: Range<usize>) {
        // Mostly it is one block.
        match range.len() {
            1 => self.0[range.start / 64] |= 1 << (range.start % 64),
            _ => masks(range).for_each(|(word, mask)| self.0[word] |= mask),
        }
    }

    /// Sets them; how many were not set before.
    pub fn gain(&mut self, range: Range<usize>) -> u64 {
        // Mostly it is one block, and not every machine counts bits by an instruction.
        if range.len() == 1 {
            let had = self.get(range.start);
            self.0[range.start / 64] |= 1 << (range.start % 64);
            return u64::from(!had);
        }
        let mut gained = 0;
        for (word, mask) in masks(range) {
            gained += u64::from((mask & !self.0[word]).count_ones());
            self.0[word] |= mask;
        }
        gained
    }

    pub fn clear(&mut self, range: Range<usize>) {
        match range.len() {
            1 => self.0[range.start / 64] &= !(1 << (range.start % 64)),
            _ => masks(range).for_each(|(word, mask)| self.0[word] &= !mask),
        }
    }

    /// Some of these are set.
    pub fn meets(&self, range: Range<usize>) -> bool {
        match range.len() {
            1 => self.get(range.start),
            _ => masks(range).any(|(word, mask)| self.0[word] & mask != 0),
        }
    }

    /// True where all are set, for who has just set `range`.
    pub fn are_all(&self, range: &Range<usize>) -> bool {
        // The word that was written is looked at by itself: a processor that is asked for more at once has
        // to wait until the write has left its queue.
        self.0[range.start / 64] == u64::MAX && *self == Self::ALL
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many blocks from `range.start` on are alike, within the range.
    pub fn run(&self, range: Range<usize>) -> usize {
        self.run_of(self.get(range.start), range)
    }

    /// How many blocks from `range.start` on are as `first` says, within the range.
    pub fn run_of(&self, first: bool, range: Range<usize>) -> usize {
        let mut at = range.start;
        while at < range.end {
            let word = self.0[at / 64] >> (at % 64);
            let alike = if first { !word } else { word }.trailing_zeros() as usize;
            let left = 64 - at % 64;
            at += alike.min(left);
            if alike < left {
                break;
            }
        }
        at.min(range.end) - range.start
    }
}

/// The words that a range touches, each with the range's bits in it.
pub(crate) fn masks(range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    debug_assert!(range.end <= BLOCKS_PER_EXTENT);
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let end = range.end.min((at / 64 + 1) * 64);
        let mask = (u64::MAX >> (64 - (end - at))) << (at % 64);
        let word = at / 64;
        at = end;
        Some((word, mask))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn they_agree_with_an_array(steps in proptest::collection::vec(
            (any::<bool>(), 0..BLOCKS_PER_EXTENT, 0..=BLOCKS_PER_EXTENT), 1..20)
        ) {
            let mut bits = Bits::default();
            let mut model = [false; BLOCKS_PER_EXTENT];
            for (set, a, b) in steps {
                for range in [a.min(b)..a.max(b), b / 2..b / 2 + 1] {
                    let met = model[range.clone()].contains(&true);
                    prop_assert_eq!(bits.meets(range.clone()), met);
                    model[range.clone()].fill(set);
                    let (before, had) = (bits, bits.count());
                    match set {
                        true => prop_assert_eq!(bits.gain(range.clone()), bits.count() - had),
                        false => bits.clear(range.clone()),
                    }
                    if set {
                        let mut by_setting = before;
                        by_setting.set(range.clone());
                        prop_assert_eq!(by_setting, bits);
                    }
                    if set && !range.is_empty() {
                        prop_assert_eq!(bits.are_all(&range), !model.contains(&false));
                    }
                }
            }
            prop_assert_eq!(bits.count(), model.iter().filter(|bit| **bit).count() as u64);
            let mut at = 0;
            while at < BLOCKS_PER_EXTENT {
                let run = bits.run(at..BLOCKS_PER_EXTENT);
                prop_assert!(run > 0);
                let alike = model[at..].iter().take_while(|bit| **bit == model[at]).count();
                prop_assert_eq!(run, alike);
                prop_assert_eq!(bits.get(at), model[at]);
                at += run;
            }
        }
    }
}
