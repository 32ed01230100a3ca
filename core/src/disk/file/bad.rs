//! The blocks of a file that were written uncorrectable, and the list of them beside the file.
//!
//! # Format
//! The list of `PATH` is `PATH.bad`: two slots of [`SLOT_BYTES`] each, of which the valid one with the
//! higher generation counts. All numbers are little-endian.
//!
//! | bytes of a slot | content |
//! |---|---|
//! | 0..8 | `CBBADBLK` |
//! | 8..12 | version, 1 |
//! | 12..16 | the number of ranges, at most [`RANGES_MAX`] |
//! | 16..24 | generation: one more than that of the other slot |
//! | 24..28 | CRC-32C of the whole slot, with these four bytes zero |
//! | 28..64 | zero |
//! | 64.. | the ranges, ascending: first byte and number of bytes, 8 bytes each; then zeroes |
//!
//! Ranges count bytes of the file, so that the list holds for any block size.
//!
//! # Order
//! A change writes the whole list into the slot that does not count, so a torn write leaves the other.
//! 1. The slot is written and made durable. A crash before that: the old list counts; after it: the
//!    new one. Nobody has been told either way.
//! 2. The change is acknowledged.
//!
//! Blocks become good again by being written: the data is durable before the list forgets them, so a
//! crash in between leaves them bad, never showing what was there before.
//!
//! # Invariants
//! - One change at a time, on all cores. None of them blocks its core.
//! - Where no block is bad, reads and writes look at one counter and take no lock.

use std::{
    fs::File,
    io::Write,
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

use super::{
    call::Action,
    engine::{FileEngine, Target},
    error::{FileError, FileErrorReason},
    error_of,
    medium::FileMedium,
    operation::Extra,
};
use crate::{
    disk::{DiskError, bits::AtomicBits},
    units::BlockSize,
};

const MAGIC: [u8; 8] = *b"CBBADBLK";
const VERSION: u32 = 1;
const SLOT_BYTES: usize = 16384;
/// The most ranges of bad blocks that a file can have.
const RANGES_MAX: usize = (SLOT_BYTES - size_of::<Header>()) / size_of::<RangeOnDisk>();

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    ranges: U32,
    generation: U64,
    checksum: U32,
    reserved: [u8; 36],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct RangeOnDisk {
    first_byte: U64,
    bytes: U64,
}

const CHECKSUM_AT: usize = 24;
const _: () = assert!(size_of::<Header>() == 64 && size_of::<RangeOnDisk>() == 16);
const _: () = assert!(std::mem::offset_of!(Header, checksum) == CHECKSUM_AT);

/// The bad blocks of one medium.
#[derive(Debug)]
pub(super) struct BadBlocks {
    path: PathBuf,
    block_size: BlockSize,
    bits: AtomicBits,
    count: AtomicU64,
    /// Somebody changes the list.
    changing: AtomicBool,
    /// Never held while something is waited for.
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    /// In blocks, ascending, not touching each other.
    ranges: Vec<Range<u64>>,
    generation: u64,
    file: Option<Arc<OwnedFd>>,
}

impl BadBlocks {
    /// Reads the list beside the file at `path`, if there is one.
    pub(super) fn open(path: &Path, block_size: BlockSize, blocks: u64) -> Result<Self, FileError> {
        let mut list_path = path.as_os_str().to_owned();
        list_path.push(".bad");
        let list_path = PathBuf::from(list_path);
        let bits = AtomicBits::new(blocks)
            .map_err(FileError::system(path, "take memory for its bad blocks"))?;
        let list = match std::fs::read(&list_path) {
            Ok(bytes) => {
                let refuse = |problem: &str| {
                    let reason = FileErrorReason::BadBlockList {
                        list: list_path.clone(),
                        problem: problem.to_owned(),
                    };
                    FileError::new(path, reason)
                };
                let (generation, ranges) =
                    newest(&bytes).ok_or_else(|| refuse("neither of its two copies is whole"))?;
                let ranges = to_blocks(&ranges, block_size);
                if ranges.last().is_some_and(|last| last.end > blocks) {
                    return Err(refuse("it names blocks beyond the file's end"));
                }
                let file = File::options()
                    .write(true)
                    .open(&list_path)
                    .map_err(FileError::system(&list_path, "open it"))?;
                List {
                    ranges,
                    generation,
                    file: Some(Arc::new(file.into())),
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => List::default(),
            Err(error) => return Err(FileError::system(&list_path, "read it")(error)),
        };
        let this = Self {
            path: list_path,
            block_size,
            bits,
            count: AtomicU64::new(0),
            changing: AtomicBool::new(false),
            list: Mutex::default(),
        };
        for range in &list.ranges {
            this.mark(range.clone(), true);
        }
        *this.list.lock().expect("nobody has panicked with it") = list;
        Ok(this)
    }

    /// True where one of the blocks is bad.
    pub(super) fn any_in(&self, blocks: Range<u64>) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.bits.first_set(blocks).is_some()
    }

    fn mark(&self, blocks: Range<u64>, bad: bool) {
        for block in blocks {
            if bad && self.bits.set(block) {
                self.count.fetch_add(1, Ordering::AcqRel);
            } else if !bad && self.bits.clear(block) {
                self.count.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn begin_change(&self) -> bool {
        !self.changing.swap(true, Ordering::Acquire)
    }
}

/// The right to change the list, given back when it is dropped.
struct Turn(Arc<FileMedium>);

impl Turn {
    fn bad(&self) -> &BadBlocks {
        self.0.bad.as_ref().expect("a file has a list")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.bad().changing.store(false, Ordering::Release);
    }
}

/// Makes blocks of the target bad, or good again, durably.
///
/// # Errors
/// [`DiskError::NoSpace`] where the list is full, [`DiskError::Unsupported`] where there can be none,
/// and what writing it gives.
pub(super) async fn change(
    engine: &FileEngine,
    target: &Rc<Target>,
    blocks: Range<u64>,
    bad: bool,
) -> Result<(), DiskError> {
    let of = target.medium.bad.as_ref().ok_or(DiskError::Unsupported)?;
    while !of.begin_change() {
        engine.next_turn().await;
    }
    let turn = Arc::new(Turn(target.medium.clone()));
    let (ranges, generation, file) = {
        let list = of.list.lock().expect("nobody has panicked with it");
        let ranges = changed(&list.ranges, &blocks, bad);
        (ranges, list.generation + 1, list.file.clone())
    };
    if ranges.len() > RANGES_MAX {
        return Err(DiskError::NoSpace);
    }
    let file = match file {
        Some(file) => file,
        None => create(engine, &turn).await?,
    };
    let bytes = encode(&ranges, generation, of.block_size);
    let at_end = move |result| {
        if result == 0 {
            let of = turn.bad();
            let mut list = of.list.lock().expect("nobody has panicked with it");
            list.ranges = ranges;
            list.generation = generation;
            of.mark(blocks, bad);
        }
        drop(turn);
    };
    let extra = Extra {
        file,
        bytes,
        at_end: Box::new(at_end),
    };
    let offset = slot_at(generation);
    let action = Action::Write { durable: true };
    let result = engine.extra(target, action, offset, extra).await;
    error_of(result, false)
}

/// Makes the list's file. A thread of its own does it, once in a file's life: making and naming files
/// blocks, and a core does not.
async fn create(engine: &FileEngine, turn: &Arc<Turn>) -> Result<Arc<OwnedFd>, DiskError> {
    let failed = |error: std::io::Error| match error.raw_os_error() {
        Some(code) => error_of(-code, false)
            .err()
            .unwrap_or(DiskError::Internal(0)),
        None => DiskError::Internal(0),
    };
    let made = Arc::new(Mutex::new(None));
    let (result, held) = (made.clone(), turn.clone());
    let body = move || {
        let file = make_file(held.bad());
        if let Ok(file) = &file {
            // Here, so that it is known also where nobody waits for it any more.
            let mut list = held.bad().list.lock().expect("nobody has panicked with it");
            list.file = Some(file.clone());
        }
        drop(held);
        *result.lock().expect("nobody has panicked with it") = Some(file);
    };
    engine
        .spawn_thread("corebay-list".into(), Box::new(body))
        .map_err(failed)?;
    loop {
        let made = made.lock().expect("nobody has panicked with it").take();
        match made {
            Some(file) => return file.map_err(failed),
            None => engine.next_turn().await,
        }
    }
}

/// Makes the list's file, empty: under another name first, so that it is never there half made.
fn make_file(of: &BadBlocks) -> std::io::Result<Arc<OwnedFd>> {
    let new = of.path.with_extension("bad.new");
    let mut file = File::create(&new)?;
    file.write_all(&encode(&[], 0, of.block_size))?;
    // 1. The file is durable. 2. It gets its name. 3. The name is durable.
    file.sync_all()?;
    std::fs::rename(&new, &of.path)?;
    let folder = of.path.parent().filter(|path| !path.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(Arc::new(file.into()))
}

/// `ranges` with `blocks` added or taken out.
fn changed(ranges: &[Range<u64>], blocks: &Range<u64>, bad: bool) -> Vec<Range<u64>> {
    let mut result = Vec::with_capacity(ranges.len() + 1);
    let mut whole = blocks.clone();
    for range in ranges {
        if bad && range.end >= whole.start && range.start <= whole.end {
            whole = whole.start.min(range.start)..whole.end.max(range.end);
        } else if bad {
            result.push(range.clone());
        } else {
            let before = range.start..range.end.min(blocks.start);
            let after = range.start.max(blocks.end)..range.end;
            result.extend(
                [before, after]
                    .into_iter()
                    .filter(|part| part.start < part.end),
            );
        }
    }
    if bad {
        let place = result.partition_point(|range| range.start < whole.start);
        result.insert(place, whole);
    }
    result
}

fn slot_at(generation: u64) -> u64 {
    generation % 2 * SLOT_BYTES as u64
}

fn checksum(slot: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&slot[..CHECKSUM_AT]);
    digest.update(&[0; 4]);
    digest.update(&slot[CHECKSUM_AT + 4..]);
    u32::try_from(digest.finalize()).expect("a CRC of 32 bits")
}

/// A slot with these ranges of blocks.
fn encode(ranges: &[Range<u64>], generation: u64, size: BlockSize) -> Box<[u8]> {
    let mut slot = vec![0; SLOT_BYTES].into_boxed_slice();
    let header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        ranges: u32::try_from(ranges.len())
            .expect("at most RANGES_MAX")
            .into(),
        generation: generation.into(),
        checksum: 0.into(),
        reserved: [0; 36],
    };
    let (head, rest) = slot.split_at_mut(size_of::<Header>());
    head.copy_from_slice(header.as_bytes());
    for (place, range) in rest.chunks_exact_mut(size_of::<RangeOnDisk>()).zip(ranges) {
        let entry = RangeOnDisk {
            first_byte: size.bytes_of(range.start).into(),
            bytes: size.bytes_of(range.end - range.start).into(),
        };
        place.copy_from_slice(entry.as_bytes());
    }
    let sum = checksum(&slot);
    slot[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
    slot
}

/// The generation and the ranges, in bytes, of a slot that is whole.
fn decode(slot: &[u8]) -> Option<(u64, Vec<Range<u64>>)> {
    let (header, rest) = Header::read_from_prefix(slot).ok()?;
    let count = usize::try_from(header.ranges.get()).ok()?;
    let whole = header.magic == MAGIC
        && header.version.get() == VERSION
        && count <= RANGES_MAX
        && header.checksum.get() == checksum(slot);
    if !whole {
        return None;
    }
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(count);
    for entry in rest.chunks_exact(size_of::<RangeOnDisk>()).take(count) {
        let entry = RangeOnDisk::read_from_bytes(entry).ok()?;
        let start = entry.first_byte.get();
        let end = start.checked_add(entry.bytes.get())?;
        let after = ranges.last().is_none_or(|last| last.end <= start);
        if start >= end || !after {
            return None;
        }
        ranges.push(start..end);
    }
    Some((header.generation.get(), ranges))
}

fn newest(bytes: &[u8]) -> Option<(u64, Vec<Range<u64>>)> {
    bytes
        .chunks_exact(SLOT_BYTES)
        .take(2)
        .filter_map(decode)
        .max_by_key(|(generation, _)| *generation)
}

/// Ranges of bytes as ranges of blocks: a block that is bad in part is bad.
fn to_blocks(ranges: &[Range<u64>], size: BlockSize) -> Vec<Range<u64>> {
    let mut result = Vec::new();
    for range in ranges {
        let end = size.blocks_in(range.end.saturating_add(size.bytes() as u64 - 1));
        result = changed(&result, &(size.blocks_in(range.start)..end), true);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const ONE: Range<u64> = 3..5;

    #[test]
    fn ranges_agree_with_a_slow_model() {
        let mut rng = Rng::from_seed(3);
        let (mut ranges, mut model) = (Vec::new(), [false; 64]);
        for _ in 0..3000 {
            let start = rng.below(63);
            let blocks = start..start + 1 + rng.below(64 - start);
            let bad = rng.once_in(2);
            ranges = changed(&ranges, &blocks, bad);
            for block in blocks {
                model[usize::try_from(block).unwrap()] = bad;
            }
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let listed: Vec<bool> = (0..64)
                .map(|block| ranges.iter().any(|range| range.contains(&block)))
                .collect();
            assert_eq!(listed, model);
        }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let mut file = encode(&[ONE; 1], 4, BlockSize::B512).into_vec();
        file.extend_from_slice(&encode(&[3..5, 9..10], 5, BlockSize::B512));
        let bytes = |ranges: &[Range<u64>]| -> Vec<Range<u64>> {
            ranges.iter().map(|r| r.start * 512..r.end * 512).collect()
        };
        assert_eq!(newest(&file), Some((5, bytes(&[3..5, 9..10]))));
        file[SLOT_BYTES + 100] ^= 1;
        assert_eq!(newest(&file), Some((4, bytes(&[ONE; 1]))));
        file[0] ^= 1;
        assert_eq!(newest(&file), None);
        assert_eq!(newest(&file[..100]), None);
    }

    #[test]
    fn a_list_of_small_blocks_holds_for_large_ones() {
        let small = [512..1024, 8192..8704, 12_000..13_000];
        assert_eq!(to_blocks(&small, BlockSize::B4096), [0..1, 2..4]);
    }
}
