//! The bytes of a pool: where they lie, and what they mean. `FORMAT.md` is the map of it.
//!
//! Invariants:
//! - Everything is little-endian, of fixed size, and checksummed with CRC32C, by itself or by what
//!   refers to it.
//! - Nothing is taken from the disk but through a function here that has checked its ranges.

pub mod export;
pub mod limits;
pub mod page;
pub mod record;
pub mod root;
pub mod stream;
pub mod superblock;
pub mod zone;

use corebay_core::units::{BlockSize, Lba};
use crc_fast::{CrcAlgorithm, checksum};

/// The blocks of an extent, whatever the block size is: 1 MiB of blocks of 4 KiB.
pub const BLOCKS_PER_EXTENT: usize = 256;

/// The unit that metadata are read and written in.
pub const PAGE_BYTES: usize = 4096;

/// The newest version of the format that this program reads.
pub const VERSION: u32 = 3;

/// The version that it writes, unless the pool needs the newest.
pub const VERSION_USUAL: u32 = 2;

/// The two copies that everything but data is kept in.
pub const COPIES: usize = 2;

/// Where the superblocks lie, in bytes from the disk's start.
pub const SUPERBLOCK_AT: [u64; COPIES] = [0, 64 << 10];

/// Where the first copy of roots and journal begins, in bytes.
const AREAS_AT: u64 = 128 << 10;

/// Where the journal begins in a mirrored zone, behind the copies of its head.
const JOURNAL_IN_ZONE_AT: u64 = (COPIES * PAGE_BYTES) as u64;

/// The most bytes of one batch of the journal.
pub const BATCH_BYTES_MAX: usize = 64 << 10;

/// The most bytes of a volume's or a pool's name.
pub const NAME_BYTES_MAX: usize = 255;

/// The most bytes of an NQN.
pub const NQN_BYTES_MAX: usize = 223;

/// The most bytes of a subsystem's serial number.
pub const SERIAL_BYTES_MAX: usize = 20;

/// The most bytes that a volume's export takes.
pub const EXPORT_BYTES_MAX: usize = 1536;

/// The most bytes of an owner's name.
pub const OWNER_NAME_BYTES_MAX: usize = 64;

/// Numbers of volumes and snapshots are below this.
pub const VOLUMES_MAX: u32 = 1 << 20;

/// The most blocks of a volume: 2^36 of them are 256 TiB at 4 KiB.
pub const VOLUME_BLOCKS_MAX: u64 = 1 << 40;

/// The most extents of a pool, 4 PiB of blocks of 4 KiB: what lies beyond is not used.
pub const EXTENTS_MAX: u64 = u32::MAX as u64 - 1;

/// CRC32C.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "the algorithm has 32 bits")]
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A physical extent, counted from the first behind the pool's own areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent(pub u64);

impl Extent {
    /// As it is stored where there may be none: one more, so that 0 is none.
    #[must_use]
    pub fn to_stored(this: Option<Self>) -> u64 {
        this.map_or(0, |extent| extent.0 + 1)
    }

    /// The extent that is stored as `stored`.
    #[must_use]
    pub fn from_stored(stored: u64) -> Option<Self> {
        stored.checked_sub(1).map(Self)
    }
}

/// Where a pool's journal lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum JournalPlace {
    /// Among the pool's areas on its disk.
    #[default]
    Disk,
    /// In the mirrored zone beside the disk.
    Zone,
}

/// Where a pool's parts lie on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The disk's block size, and the volumes'.
    pub block_size: BlockSize,
    /// The disk's blocks that the pool uses.
    pub disk_blocks: u64,
    /// The bytes of a root's place.
    pub root_bytes: u64,
    /// The bytes of a journal.
    pub journal_bytes: u64,
    /// Where it lies.
    pub journal: JournalPlace,
}

impl Layout {
    /// The bytes of an extent.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        self.block_size.bytes_of(BLOCKS_PER_EXTENT as u64)
    }

    /// The pages of metadata in an extent.
    #[must_use]
    pub fn pages_per_extent(&self) -> u64 {
        self.extent_bytes() / PAGE_BYTES as u64
    }

    fn area_bytes(&self) -> u64 {
        let journal = match self.journal {
            JournalPlace::Disk => self.journal_bytes,
            JournalPlace::Zone => 0,
        };
        2 * self.root_bytes + journal
    }

    /// Where one of the two roots lies in a copy, in bytes.
    #[must_use]
    pub fn root_at(&self, copy: usize, generation: u64) -> u64 {
        AREAS_AT + copy as u64 * self.area_bytes() + (generation % 2) * self.root_bytes
    }

    /// Where a copy of the journal begins, in bytes, on the disk or in the zone.
    #[must_use]
    pub fn journal_at(&self, copy: usize) -> u64 {
        match self.journal {
            JournalPlace::Disk => AREAS_AT + copy as u64 * self.area_bytes() + 2 * self.root_bytes,
            JournalPlace::Zone => JOURNAL_IN_ZONE_AT + copy as u64 * self.journal_bytes,
        }
    }

    /// The bytes of the mirrored zone that the pool uses.
    #[must_use]
    pub fn zone_bytes(&self) -> u64 {
        match self.journal {
            JournalPlace::Disk => 0,
            JournalPlace::Zone => self.journal_at(COPIES),
        }
    }

    /// The most bytes of a journal of which a zone of so many has room for all copies.
    #[must_use]
    pub fn journal_bytes_in_zone(zone_bytes: u64) -> u64 {
        let each = zone_bytes.saturating_sub(JOURNAL_IN_ZONE_AT) / COPIES as u64;
        each / PAGE_BYTES as u64 * PAGE_BYTES as u64
    }

    /// The pages of the journal.
    #[must_use]
    pub fn journal_pages(&self) -> u64 {
        self.journal_bytes / PAGE_BYTES as u64
    }

    /// Where the first extent begins, in bytes.
    #[must_use]
    pub fn data_at(&self) -> u64 {
        // A power of two, and this is asked for often.
        let within = self.extent_bytes() - 1;
        (AREAS_AT + COPIES as u64 * self.area_bytes() + within) & !within
    }

    /// The extents there are.
    #[must_use]
    pub fn extents(&self) -> u64 {
        let bytes = self.block_size.bytes_of(self.disk_blocks);
        let extents = bytes.saturating_sub(self.data_at()) >> self.extent_bytes().ilog2();
        extents.min(EXTENTS_MAX)
    }

    /// The block at `bytes` from the disk's start.
    #[must_use]
    pub fn lba(&self, bytes: u64) -> Lba {
        Lba(self.block_size.blocks_in(bytes))
    }

    /// A block of an extent.
    #[must_use]
    pub fn block_of(&self, extent: Extent, block: usize) -> Lba {
        self.lba(self.data_at() + extent.0 * self.extent_bytes())
            .plus(block as u64)
    }
}
