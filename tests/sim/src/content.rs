//! What the workload writes into blocks: bytes that tell which write of which block they are.
//!
//! Invariant: every word of a block depends on its namespace, its address and its value, so a block
//! that holds parts of two writes, or lies in the wrong place, is recognized.

use crate::trace::mix;

/// The value of a block of zeroes.
pub const ZEROES: u64 = 0;

/// Fills `block` with `value`.
pub fn fill(block: &mut [u8], nsid: u32, lba: u64, value: u64) {
    if value == ZEROES {
        block.fill(0);
        return;
    }
    let place = mix(lba ^ u64::from(nsid) << 48);
    for (index, word) in block.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_at(place, value, index).to_le_bytes());
    }
}

/// The value that fills `block`.
///
/// # Errors
/// Says what is wrong where it is none of this place.
pub fn value(block: &[u8], nsid: u32, lba: u64) -> Result<u64, String> {
    let word = |index: usize| {
        let bytes = block[index * 8..index * 8 + 8].try_into().unwrap_or([0; 8]);
        u64::from_le_bytes(bytes)
    };
    if block.iter().all(|byte| *byte == 0) {
        return Ok(ZEROES);
    }
    let place = mix(lba ^ u64::from(nsid) << 48);
    let value = word(0) ^ place;
    let wrong = (0..block.len() / 8).find(|&index| word(index) != word_at(place, value, index));
    match wrong {
        None => Ok(value),
        Some(index) => Err(format!(
            "its word {index} is {:#x}, which was not written there together with its first, {:#x}",
            word(index),
            word(0)
        )),
    }
}

fn word_at(place: u64, value: u64, index: usize) -> u64 {
    match index {
        0 => value ^ place,
        _ => {
            value.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ place.rotate_left((index % 64) as u32)
                ^ index as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_again_and_nowhere_else() {
        let mut block = [0; 512];
        fill(&mut block, 1, 7, 42);
        assert_eq!(value(&block, 1, 7), Ok(42));
        assert!(value(&block, 1, 8).is_err());
        assert!(value(&block, 2, 7).is_err());
        let mut other = [0; 512];
        fill(&mut other, 1, 7, 43);
        block[256..].copy_from_slice(&other[256..]);
        assert!(value(&block, 1, 7).is_err());
    }
}
