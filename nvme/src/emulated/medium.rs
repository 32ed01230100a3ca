//! What a namespace of the emulated controller keeps: sparse blocks, bad ones among them, and what of
//! it a loss of power may undo.

use std::collections::{BTreeMap, BTreeSet};

use corebay_core::{rng::Rng, units::BlockSize};

use crate::spec::status::Status;

/// The unit that memory is taken in.
const CHUNK_BYTES: u64 = 64 << 10;

/// Where a test keeps a namespace's blocks itself, with faults and losses of its own.
pub trait Backing: std::fmt::Debug + Send {
    /// Reads blocks.
    ///
    /// # Errors
    /// The status that the command ends with.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Status>;

    /// Writes blocks; durably where they are not `cached`.
    ///
    /// # Errors
    /// The status that the command ends with: each block is old or new then.
    fn write(&mut self, at: u64, from: &[u8], cached: bool) -> Result<(), Status>;

    /// Makes blocks zeroes; durably where they are not `cached`.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn clear(&mut self, at: u64, blocks: u64, cached: bool) -> Result<(), Status>;

    /// Makes blocks unreadable until they are written.
    fn spoil(&mut self, at: u64, blocks: u64);

    /// Makes durable whatever was written.
    fn flush(&mut self);

    /// What is not durable may be lost.
    fn lose_power(&mut self);
}

/// A medium.
#[derive(Debug)]
pub(super) struct Medium {
    /// Takes the place of all below.
    pub(super) backing: Option<Box<dyn Backing>>,
    pub(super) block_size: BlockSize,
    pub(super) blocks: u64,
    chunks: BTreeMap<u64, Box<[u8]>>,
    bad: BTreeSet<u64>,
    /// What blocks held before they were written into the volatile cache; `None` for zeroes.
    unflushed: BTreeMap<u64, Option<Box<[u8]>>>,
}

impl Medium {
    pub(super) fn new(block_size: BlockSize, blocks: u64) -> Self {
        Self {
            backing: None,
            block_size,
            blocks,
            chunks: BTreeMap::new(),
            bad: BTreeSet::new(),
            unflushed: BTreeMap::new(),
        }
    }

    pub(super) fn contains(&self, at: u64, blocks: u64) -> bool {
        at.checked_add(blocks).is_some_and(|end| end <= self.blocks)
    }

    /// Whether blocks can be read.
    pub(super) fn verify(&mut self, at: u64, blocks: u64) -> Result<(), Status> {
        if let Some(backing) = &mut self.backing {
            let bytes = self.block_size.bytes_of(blocks);
            return backing.read(at, &mut vec![0; usize::try_from(bytes).unwrap_or(0)]);
        }
        match self.bad.range(at..at + blocks).next() {
            Some(_) => Err(Status::UNRECOVERED_READ_ERROR.with_dnr()),
            None => Ok(()),
        }
    }

    /// A block's chunk, and where it lies in that.
    fn place(&self, lba: u64) -> (u64, usize) {
        let byte = self.block_size.bytes_of(lba);
        (byte / CHUNK_BYTES, (byte % CHUNK_BYTES) as usize)
    }

    /// Reads blocks that can be read.
    pub(super) fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Status> {
        if let Some(backing) = &mut self.backing {
            return backing.read(at, into);
        }
        self.verify(at, (into.len() / self.block_size.bytes()) as u64)?;
        self.peek(at, into);
        Ok(())
    }

    fn peek(&self, at: u64, into: &mut [u8]) {
        for (lba, block) in (at..).zip(into.chunks_exact_mut(self.block_size.bytes())) {
            let (chunk, offset) = self.place(lba);
            match self.chunks.get(&chunk) {
                Some(bytes) => block.copy_from_slice(&bytes[offset..offset + block.len()]),
                None => block.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, at: u64, from: &[u8], cached: bool) -> Result<(), Status> {
        match &mut self.backing {
            Some(backing) => backing.write(at, from, cached),
            None => {
                self.put(at, from, cached);
                Ok(())
            }
        }
    }

    fn put(&mut self, at: u64, from: &[u8], cached: bool) {
        for (lba, block) in (at..).zip(from.chunks_exact(self.block_size.bytes())) {
            self.remember(lba, cached);
            self.bad.remove(&lba);
            let (chunk, offset) = self.place(lba);
            let bytes = self
                .chunks
                .entry(chunk)
                .or_insert_with(|| vec![0; CHUNK_BYTES as usize].into());
            bytes[offset..offset + block.len()].copy_from_slice(block);
        }
    }

    pub(super) fn clear(&mut self, at: u64, blocks: u64, cached: bool) -> Result<(), Status> {
        match &mut self.backing {
            Some(backing) => backing.clear(at, blocks, cached),
            None => {
                self.wipe(at, blocks, cached);
                Ok(())
            }
        }
    }

    fn wipe(&mut self, at: u64, blocks: u64, cached: bool) {
        let end = at + blocks;
        let bad: Vec<u64> = self.bad.range(at..end).copied().collect();
        bad.iter().for_each(|lba| {
            self.bad.remove(lba);
        });
        if !cached {
            let unflushed: Vec<u64> = self.unflushed.range(at..end).map(|(lba, _)| *lba).collect();
            unflushed.iter().for_each(|lba| {
                self.unflushed.remove(lba);
            });
        }
        let per_chunk = self.block_size.blocks_in(CHUNK_BYTES);
        let first = at / per_chunk;
        let last = end.div_ceil(per_chunk);
        let touched: Vec<u64> = self
            .chunks
            .range(first..last)
            .map(|(key, _)| *key)
            .collect();
        for key in touched {
            let range = at.max(key * per_chunk)..end.min((key + 1) * per_chunk);
            for lba in range.clone() {
                self.remember(lba, cached);
            }
            if range.end - range.start == per_chunk {
                self.chunks.remove(&key);
                continue;
            }
            let bytes = self.block_size.bytes();
            for lba in range {
                let (_, offset) = self.place(lba);
                if let Some(chunk) = self.chunks.get_mut(&key) {
                    chunk[offset..offset + bytes].fill(0);
                }
            }
        }
    }

    pub(super) fn spoil(&mut self, at: u64, blocks: u64) {
        match &mut self.backing {
            Some(backing) => backing.spoil(at, blocks),
            None => self.bad.extend(at..at + blocks),
        }
    }

    /// Keeps what a block holds, for a loss of power to bring back.
    fn remember(&mut self, lba: u64, cached: bool) {
        if !cached {
            self.unflushed.remove(&lba);
            return;
        }
        if self.unflushed.contains_key(&lba) {
            return;
        }
        let (chunk, offset) = self.place(lba);
        let bytes = self.block_size.bytes();
        let old = self
            .chunks
            .get(&chunk)
            .map(|chunk| chunk[offset..offset + bytes].into());
        self.unflushed.insert(lba, old);
    }

    pub(super) fn flush(&mut self) {
        self.unflushed.clear();
        if let Some(backing) = &mut self.backing {
            backing.flush();
        }
    }

    /// Each block that was not flushed by itself stays or goes.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        if let Some(backing) = &mut self.backing {
            backing.lose_power();
        }
        for (lba, old) in std::mem::take(&mut self.unflushed) {
            if rng.once_in(2) {
                continue;
            }
            match old {
                Some(bytes) => self.put(lba, &bytes, false),
                None => self.wipe(lba, 1, false),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(medium: &Medium, lba: u64) -> u8 {
        let mut bytes = vec![9; medium.block_size.bytes()];
        medium.peek(lba, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    #[test]
    fn a_loss_of_power_undoes_what_was_not_flushed_and_nothing_else() {
        let mut medium = Medium::new(BlockSize::B512, 1 << 20);
        medium.put(0, &[1; 512 * 300], true);
        medium.flush();
        medium.put(0, &[2; 512 * 100], true);
        medium.put(100, &[3; 512 * 100], false);
        medium.wipe(200, 50, true);
        medium.put(0, &[4; 512], false);
        medium.lose_power(&mut Rng::from_seed(1));
        assert_eq!((get(&medium, 0), get(&medium, 299)), (4, 1));
        let kept = (1..100).filter(|&lba| get(&medium, lba) == 2).count();
        assert!((20..80).contains(&kept));
        assert!((1..100).all(|lba| matches!(get(&medium, lba), 1 | 2)));
        assert!((100..200).all(|lba| get(&medium, lba) == 3));
        assert!((200..250).all(|lba| matches!(get(&medium, lba), 0 | 1)));
    }

    #[test]
    fn clearing_a_part_of_a_chunk_leaves_the_rest() {
        let mut medium = Medium::new(BlockSize::B4096, 1 << 20);
        medium.put(10, &vec![7; 4096 * 40], false);
        medium.wipe(12, 30, false);
        assert_eq!(
            [11, 12, 41, 42, 49, 50].map(|lba| get(&medium, lba)),
            [7, 0, 0, 7, 7, 0]
        );
    }
}
