//! Blocks that tell who wrote them: which write, to which address.
//!
//! Invariant: a block that [`tag_of`] accepts was written whole, by one write, to this address.

/// The tag of a block of zeroes.
pub const ZEROES: u64 = 0;

/// The content of block `lba` as the write `tag` (not 0) makes it.
pub fn fill(block: &mut [u8], lba: u64, tag: u64) {
    if tag == ZEROES {
        block.fill(0);
        return;
    }
    for (place, word) in block.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_at(lba, tag, place as u64).to_le_bytes());
    }
}

/// Which write made this block, or what is wrong with it.
///
/// # Errors
/// Where it is not the content of any write to `lba`.
pub fn tag_of(block: &[u8], lba: u64) -> Result<u64, String> {
    let word = |place: usize| {
        let bytes = &block[place * 8..][..8];
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    };
    let tag = word(0);
    if tag == ZEROES && block.iter().all(|&byte| byte == 0) {
        return Ok(ZEROES);
    }
    match (0..block.len() / 8).find(|&place| word(place) != word_at(lba, tag, place as u64)) {
        None => Ok(tag),
        Some(place) => Err(format!(
            "block {lba} begins like that of write {tag}, but differs at byte {} ({:#018x})",
            place * 8,
            word(place)
        )),
    }
}

/// The blocks from `lba` on, all of one write.
#[must_use]
pub fn blocks(lba: u64, tag: u64, count: usize, block_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * block_bytes];
    for (at, block) in bytes.chunks_exact_mut(block_bytes).enumerate() {
        fill(block, lba + at as u64, tag);
    }
    bytes
}

fn word_at(lba: u64, tag: u64, place: u64) -> u64 {
    match place {
        0 => tag,
        1 => lba,
        _ => (tag.rotate_left(32) ^ lba ^ place << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_or_misplaced_block_is_told() {
        let mut bytes = blocks(7, 3, 1, 512);
        assert_eq!(tag_of(&bytes, 7), Ok(3));
        assert!(tag_of(&bytes, 8).is_err());
        fill(&mut bytes[256..], 7, 4);
        assert!(tag_of(&bytes, 7).is_err());
        let mut bytes = blocks(7, ZEROES, 1, 512);
        assert_eq!(tag_of(&bytes, 7), Ok(ZEROES));
        bytes[511] = 1;
        assert!(tag_of(&bytes, 7).is_err());
    }
}
