//! What the workload writes into blocks: bytes that tell which write of which block they are.
//!
//! Invariant: every word of a block depends on its namespace and on its *mark*, which is the write's
//! value and the block that it was written to. A block that holds parts of two writes is recognized;
//! one that lies in the wrong place has a mark that the model of that place does not know.

use crate::trace::mix;

/// The mark of a block of zeroes.
pub const ZEROES: u64 = 0;

/// The mark of a block that cannot be read.
pub const LOST: u64 = u64::MAX;

/// The mark of the block `lba` of a write of `value`.
#[must_use]
pub fn mark(value: u64, lba: u64) -> u64 {
    debug_assert!(lba < 1 << 16, "a namespace of the simulator is small");
    match value {
        ZEROES | LOST => value,
        _ => value << 16 | lba,
    }
}

/// Fills `block` with a mark.
pub fn fill(block: &mut [u8], nsid: u32, mark: u64) {
    if mark == ZEROES {
        block.fill(0);
        return;
    }
    let place = mix(u64::from(nsid));
    for (index, word) in block.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_at(place, mark, index).to_le_bytes());
    }
}

/// The mark that fills `block`.
///
/// # Errors
/// Says what is wrong where it is none of this namespace.
pub fn read(block: &[u8], nsid: u32) -> Result<u64, String> {
    let word = |index: usize| {
        let bytes = block[index * 8..index * 8 + 8].try_into().unwrap_or([0; 8]);
        u64::from_le_bytes(bytes)
    };
    if block.iter().all(|byte| *byte == 0) {
        return Ok(ZEROES);
    }
    let place = mix(u64::from(nsid));
    let mark = word(0) ^ place;
    let wrong = (0..block.len() / 8).find(|&index| word(index) != word_at(place, mark, index));
    match wrong {
        None => Ok(mark),
        Some(index) => Err(format!(
            "its word {index} is {:#x}, which was not written there together with its first, {:#x}",
            word(index),
            word(0)
        )),
    }
}

fn word_at(place: u64, mark: u64, index: usize) -> u64 {
    match index {
        0 => mark ^ place,
        _ => {
            mark.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ place.rotate_left((index % 64) as u32)
                ^ index as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_again_in_its_namespace_alone() {
        let mut block = [0; 512];
        fill(&mut block, 1, mark(42, 7));
        assert_eq!(read(&block, 1), Ok(mark(42, 7)));
        assert_ne!(mark(42, 7), mark(42, 8));
        assert!(read(&block, 2).is_err());
        let mut other = [0; 512];
        fill(&mut other, 1, mark(43, 7));
        block[256..].copy_from_slice(&other[256..]);
        assert!(read(&block, 1).is_err());
    }
}
