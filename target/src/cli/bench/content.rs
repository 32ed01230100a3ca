//! Blocks that say what and where they are: how they are written, and how they are checked.
//!
//! A block of the namespace holds, little-endian: 8 bytes of magic, its LBA (8), the generation of
//! its write (8), the run's seed (8), a CRC32C (4) of the whole block with this field zero, zeroes
//! (4), and from byte 40 on pseudo-random bytes that follow from LBA, generation and seed.

use std::fmt;

use corebay_core::rng::Rng;
use corebay_nvme::digest::crc32c;

const MAGIC: [u8; 8] = *b"corebayV";
const CRC_AT: usize = 32;
const BODY_AT: usize = 40;

/// What a block says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Where it belongs.
    pub lba: u64,
    /// Which write of the unit it is from, counted from 1.
    pub generation: u64,
    /// Which run it is from.
    pub seed: u64,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It holds zeroes, and something was written.
    Zeroes,
    /// It was never written by a verifying run.
    Foreign,
    /// It does not match its CRC; its first byte that differs from what its stamp promises.
    Torn(Stamp, usize),
    /// It is whole, and another block, or from another write or run.
    Other(Stamp),
}

/// A block that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The block.
    pub lba: u64,
    /// What should be there; no generation where any will do.
    pub expected: Option<Stamp>,
    /// What is there.
    pub found: Wrong,
}

/// Fills one block.
pub fn fill(block: &mut [u8], stamp: Stamp) {
    block[..8].copy_from_slice(&MAGIC);
    block[8..16].copy_from_slice(&stamp.lba.to_le_bytes());
    block[16..24].copy_from_slice(&stamp.generation.to_le_bytes());
    block[24..32].copy_from_slice(&stamp.seed.to_le_bytes());
    block[CRC_AT..BODY_AT].fill(0);
    body(stamp).fill(&mut block[BODY_AT..]);
    let crc = crc32c(block);
    block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

fn body(stamp: Stamp) -> Rng {
    let mixed = stamp.lba.rotate_left(32) ^ stamp.generation ^ stamp.seed.rotate_left(17);
    Rng::from_seed(mixed)
}

/// Checks one block, which is given back as it was. Where `expected` is `None`, any whole block
/// that belongs to `lba` will do, and one of zeroes is none.
pub fn check(block: &mut [u8], lba: u64, expected: Option<Stamp>) -> Result<(), Mismatch> {
    let wrong = |found| {
        Err(Mismatch {
            lba,
            expected,
            found,
        })
    };
    if block[..8] != MAGIC {
        let zeroes = block.iter().all(|byte| *byte == 0);
        return wrong(if zeroes {
            Wrong::Zeroes
        } else {
            Wrong::Foreign
        });
    }
    let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("8 bytes"));
    let found = Stamp {
        lba: word(8),
        generation: word(16),
        seed: word(24),
    };
    let crc: [u8; 4] = block[CRC_AT..CRC_AT + 4].try_into().expect("4 bytes");
    block[CRC_AT..CRC_AT + 4].fill(0);
    let matches = crc32c(block).to_le_bytes() == crc;
    block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc);
    if !matches {
        let mut promised = vec![0; block.len()];
        fill(&mut promised, found);
        let first = promised.iter().zip(&*block).position(|(a, b)| a != b);
        return wrong(Wrong::Torn(found, first.unwrap_or(CRC_AT)));
    }
    match expected {
        Some(expected) if found != expected => wrong(Wrong::Other(found)),
        None if found.lba != lba => wrong(Wrong::Other(found)),
        _ => Ok(()),
    }
}

impl Wrong {
    /// The word for it, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Zeroes => "zeroes",
            Self::Foreign => "foreign",
            Self::Torn(..) => "torn",
            Self::Other(_) => "other",
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LBA {}: ", self.lba)?;
        match self.found {
            Wrong::Zeroes => write!(f, "zeroes")?,
            Wrong::Foreign => write!(f, "no block of a verifying run")?,
            Wrong::Torn(stamp, at) => write!(
                f,
                "a damaged block: it says LBA {}, generation {}, and differs from byte {at} on",
                stamp.lba, stamp.generation
            )?,
            Wrong::Other(stamp) if stamp.lba != self.lba => write!(
                f,
                "the block of LBA {}, generation {}",
                stamp.lba, stamp.generation
            )?,
            Wrong::Other(stamp) => {
                write!(f, "generation {}, seed {}", stamp.generation, stamp.seed)?;
            }
        }
        match self.expected {
            Some(stamp) => write!(
                f,
                "; expected generation {}, seed {}",
                stamp.generation, stamp.seed
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        lba: 7,
        generation: 3,
        seed: 9,
    };

    fn block() -> Vec<u8> {
        let mut block = vec![0; 512];
        fill(&mut block, STAMP);
        block
    }

    #[test]
    fn what_is_filled_passes_and_is_left_as_it_was() {
        let mut one = block();
        assert_eq!(check(&mut one, 7, Some(STAMP)), Ok(()));
        assert_eq!(check(&mut one, 7, None), Ok(()));
        assert_eq!(one, block());
    }

    #[test]
    fn each_damage_is_told() {
        let found =
            |block: &mut [u8], lba, expected| check(block, lba, expected).unwrap_err().found;
        let newer = Stamp {
            generation: 4,
            ..STAMP
        };
        assert_eq!(found(&mut block(), 7, Some(newer)), Wrong::Other(STAMP));
        assert_eq!(found(&mut block(), 8, None), Wrong::Other(STAMP));
        assert_eq!(found(&mut [0; 512], 7, Some(STAMP)), Wrong::Zeroes);
        assert_eq!(found(&mut [1; 512], 7, Some(STAMP)), Wrong::Foreign);
        for at in [CRC_AT, CRC_AT + 4, BODY_AT, 511] {
            let mut torn = block();
            torn[at] ^= 0x10;
            let wrong = found(&mut torn, 7, Some(STAMP));
            assert_eq!(wrong, Wrong::Torn(STAMP, at), "byte {at}");
        }
    }
}
