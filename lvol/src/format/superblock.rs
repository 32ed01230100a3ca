//! The superblock: what a pool is, and where its newest checkpoint lies.

use std::mem::{offset_of, size_of};

use corebay_core::units::BlockSize;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::{
    JournalPlace, Layout, OWNER_NAME_BYTES_MAX, PAGE_BYTES, VERSION, VERSION_USUAL, crc32c,
};
use crate::error::PoolError;

/// What a superblock begins with.
pub const MAGIC: [u8; 8] = *b"COREBAYP";

/// The most bytes of a root's place or of a journal.
pub const AREA_BYTES_MAX: u64 = 64 << 20;

/// The fewest bytes of a journal: the largest batch fits with as much room again.
pub const JOURNAL_BYTES_MIN: u64 = 128 << 10;

/// The superblock as it lies on the disk, in the first 512 bytes of its page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    uuid: [u8; 16],
    generation: U64,
    disk_blocks: U64,
    root_bytes: U64,
    journal_bytes: U64,
    journal_sequence: U64,
    journal_page: U32,
    block_bytes: U32,
    root_len: U32,
    root_crc: U32,
    name_len: U32,
    flags: U32,
    name: [u8; 256],
    owner: [u8; 16],
    owner_name: [u8; OWNER_NAME_BYTES_MAX],
    /// Warning, critical, hysteresis; where all are zero, the default.
    thresholds: [u8; 3],
    reserved_middle: [u8; 5],
    serials: U64,
    reserved_end: [u8; 64],
}

const _: () = assert!(size_of::<Raw>() == 512);
const _: () = assert!(offset_of!(Raw, crc) == 12 && offset_of!(Raw, generation) == 32);
const _: () = assert!(offset_of!(Raw, journal_page) == 72 && offset_of!(Raw, name) == 96);
const _: () = assert!(offset_of!(Raw, owner) == 352 && offset_of!(Raw, serials) == 440);

/// What is counted up never comes this far.
const COUNT_MAX: u64 = 1 << 62;

/// Flags.
const CLEAN: u32 = 1;
const JOURNAL_IN_ZONE: u32 = 2;

/// A machine that has a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its identity, the same after every start; not zero.
    pub id: [u8; 16],
    /// What its operator calls it. Of longer names the first 64 bytes are kept.
    pub name: String,
}

impl Owner {
    fn name_as_kept(&self) -> [u8; OWNER_NAME_BYTES_MAX] {
        let mut kept = [0; OWNER_NAME_BYTES_MAX];
        let mut len = self.name.len().min(kept.len());
        while !self.name.is_char_boundary(len) {
            len -= 1;
        }
        kept[..len].copy_from_slice(&self.name.as_bytes()[..len]);
        kept
    }

    fn parse(raw: &Raw) -> Option<Self> {
        let name = raw.owner_name.split(|byte| *byte == 0).next();
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        let id = raw.owner;
        (id != [0; 16]).then_some(Self { id, name })
    }
}

/// How full a pool is when its owner is told, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// The operator is warned.
    pub warning_percent: u8,
    /// It is urgent. Not below the warning.
    pub critical_percent: u8,
    /// By how much usage falls below a threshold before it counts as left. Below the warning.
    pub hysteresis_percent: u8,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            warning_percent: 80,
            critical_percent: 95,
            hysteresis_percent: 2,
        }
    }
}

impl Thresholds {
    /// True where they can be reached, in order, and left again.
    #[must_use]
    pub fn are_sane(&self) -> bool {
        self.hysteresis_percent < self.warning_percent
            && self.warning_percent <= self.critical_percent
            && self.critical_percent <= 100
    }

    /// The bytes they are kept in.
    #[must_use]
    pub fn encode(&self) -> [u8; 3] {
        [
            self.warning_percent,
            self.critical_percent,
            self.hysteresis_percent,
        ]
    }

    /// The thresholds that are kept so; `None` where they cannot be.
    #[must_use]
    pub fn parse(bytes: [u8; 3]) -> Option<Self> {
        let [warning_percent, critical_percent, hysteresis_percent] = bytes;
        let this = Self {
            warning_percent,
            critical_percent,
            hysteresis_percent,
        };
        match bytes {
            [0, 0, 0] => Some(Self::default()),
            _ => this.are_sane().then_some(this),
        }
    }
}

/// A superblock, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool's identity.
    pub uuid: [u8; 16],
    /// The pool's name.
    pub name: String,
    /// Counts checkpoints.
    pub generation: u64,
    /// Where the pool's parts lie.
    pub layout: Layout,
    /// The first batch of the journal that the checkpoint does not contain.
    pub journal_sequence: u64,
    /// The page of the journal where that batch is expected.
    pub journal_page: u64,
    /// The bytes of the root.
    pub root_len: u32,
    /// The checksum of the root.
    pub root_crc: u32,
    /// The machine that has the pool; none where it was released.
    pub owner: Option<Owner>,
    /// The pool was closed after this checkpoint.
    pub clean: bool,
    /// When the owner is told that space runs out.
    pub thresholds: Thresholds,
    /// The newest serial of a volume.
    pub serials: u64,
}

impl Superblock {
    /// The superblock's page.
    ///
    /// # Panics
    /// Where a field does not fit, which its maker has checked.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_BYTES] {
        // Who does not know of zones must not open a pool whose journal is in one.
        let (version, place) = match self.layout.journal {
            JournalPlace::Disk => (VERSION_USUAL, 0),
            JournalPlace::Zone => (VERSION, JOURNAL_IN_ZONE),
        };
        let mut raw = Raw {
            magic: MAGIC,
            version: version.into(),
            crc: 0.into(),
            uuid: self.uuid,
            generation: self.generation.into(),
            disk_blocks: self.layout.disk_blocks.into(),
            root_bytes: self.layout.root_bytes.into(),
            journal_bytes: self.layout.journal_bytes.into(),
            journal_sequence: self.journal_sequence.into(),
            journal_page: u32::try_from(self.journal_page).expect("checked").into(),
            block_bytes: (1u32 << self.layout.block_size.shift()).into(),
            root_len: self.root_len.into(),
            root_crc: self.root_crc.into(),
            name_len: u32::try_from(self.name.len()).expect("checked").into(),
            flags: (place | if self.clean { CLEAN } else { 0 }).into(),
            name: [0; 256],
            owner: self.owner.as_ref().map_or([0; 16], |owner| owner.id),
            owner_name: self
                .owner
                .as_ref()
                .map_or([0; OWNER_NAME_BYTES_MAX], Owner::name_as_kept),
            thresholds: self.thresholds.encode(),
            reserved_middle: [0; 5],
            serials: self.serials.into(),
            reserved_end: [0; 64],
        };
        raw.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        raw.crc = crc32c(raw.as_bytes()).into();
        let mut page = [0; PAGE_BYTES];
        page[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        page
    }

    /// The superblock in a page.
    ///
    /// # Errors
    /// [`PoolError::NotAPool`] where there is none or it is damaged, [`PoolError::NewerFormat`]
    /// where it is whole and newer.
    pub fn parse(page: &[u8]) -> Result<Self, PoolError> {
        let (raw, _) = Raw::read_from_prefix(page).map_err(|_| PoolError::NotAPool)?;
        let mut unsigned = raw;
        unsigned.crc = 0.into();
        if raw.magic != MAGIC || crc32c(unsigned.as_bytes()) != raw.crc.get() {
            return Err(PoolError::NotAPool);
        }
        if raw.version.get() > VERSION {
            return Err(PoolError::NewerFormat(raw.version.get()));
        }
        Self::check(&raw).ok_or_else(|| PoolError::Corrupt("a superblock's fields".into()))
    }

    fn check(raw: &Raw) -> Option<Self> {
        let flags = raw.flags.get();
        if flags & !(CLEAN | JOURNAL_IN_ZONE) != 0 {
            return None;
        }
        let layout = Layout {
            block_size: BlockSize::from_bytes(u64::from(raw.block_bytes.get()))?,
            disk_blocks: raw.disk_blocks.get(),
            root_bytes: raw.root_bytes.get(),
            journal_bytes: raw.journal_bytes.get(),
            journal: match flags & JOURNAL_IN_ZONE {
                0 => JournalPlace::Disk,
                _ => JournalPlace::Zone,
            },
        };
        let page = PAGE_BYTES as u64;
        let sizes = [layout.root_bytes, layout.journal_bytes];
        let sane = sizes
            .iter()
            .all(|bytes| *bytes > 0 && bytes.is_multiple_of(page) && *bytes <= AREA_BYTES_MAX);
        let journal_page = u64::from(raw.journal_page.get());
        let counters = [
            raw.generation.get(),
            raw.journal_sequence.get(),
            raw.serials.get(),
        ];
        if !sane
            || layout.journal_bytes < JOURNAL_BYTES_MIN
            || layout.disk_blocks > crate::extend::DISK_BLOCKS_MAX
            || layout.extents() == 0
            || counters.iter().any(|count| *count > COUNT_MAX)
            || journal_page > layout.journal_pages()
            || u64::from(raw.root_len.get()) > layout.root_bytes
        {
            return None;
        }
        let name = raw.name.get(..raw.name_len.get() as usize)?;
        Some(Self {
            uuid: raw.uuid,
            name: String::from_utf8(name.to_vec()).ok()?,
            generation: raw.generation.get(),
            layout,
            journal_sequence: raw.journal_sequence.get(),
            journal_page,
            root_len: raw.root_len.get(),
            root_crc: raw.root_crc.get(),
            owner: Owner::parse(raw),
            clean: flags & CLEAN != 0,
            thresholds: Thresholds::parse(raw.thresholds)?,
            serials: raw.serials.get(),
        })
    }
}
