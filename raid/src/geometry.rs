//! Owns the geometry: where each block of an array lies on its members.
//!
//! An array is a sequence of *stripes*; a stripe has one *strip* on each member. Of a stripe's strips
//! `data` hold the host's data and `parity` their parity, or each data strip is there `copies` times.
//! A member's place in the array is its *role*; a strip's place in its stripe is its *index*: data
//! first, parity after. A *row* is a byte offset within a strip; the same rows of all strips belong
//! together.
//!
//! Invariants:
//! - A [`Geometry`] cannot be wrong: [`Geometry::new`] is the only way to one.
//! - Parity moves by one role from stripe to stripe, so every member carries its share, and any
//!   sequential read as long as a stripe goes to all members (left-symmetric).
//! - A [`Band`] takes the same rows of neighbouring strips of one stripe, so its parity follows from
//!   itself and the other strips' same rows.

use std::{fmt, ops::Range};

use corebay_core::units::{BlockSize, Lba};

use crate::kernels::{DATA_MAX, PARITY_MAX};

/// The most members with a role.
pub const ROLES_MAX: usize = 32;

/// The most copies of a mirror.
pub const COPIES_MAX: u8 = 4;

/// The smallest and the largest strip.
pub const STRIP_BYTES: Range<u32> = 16 << 10..(1 << 20) + 1;

/// The most rows that one write to a stripe takes at a time: bounds its memory and its journal record.
pub const UNIT_BYTES_MAX: u32 = 128 << 10;

/// Where things lie on a member, in bytes. See FORMAT.md.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 << 10];
/// The two copies of the dirty map.
pub const MAP_OFFSETS: [u64; 2] = [8 << 10, 72 << 10];
/// Where the mirrored zone begins.
pub const ZONE_OFFSET: u64 = 128 << 10;
/// What precedes a journal record's data: its header is the last block of this.
pub const RECORD_HEADER_BYTES: u64 = 4096;
/// What the data area is aligned to.
const DATA_ALIGN: u64 = 1 << 20;

/// How an array spreads its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// RAID 0: striped over all members, no redundancy.
    Striped,
    /// RAID 1: every member holds everything.
    Mirrored,
    /// RAID 10: striped over pairs that mirror each other.
    StripedMirrors,
    /// RAID 5: striped, with one member's worth of parity.
    Raid5,
    /// RAID 6: striped, with two members' worth of parity.
    Raid6,
    /// Reed-Solomon: `k` strips of data and `m` of parity.
    ErasureCode {
        /// Data strips of a stripe.
        data: u8,
        /// Parity strips of a stripe: the members that may be lost.
        parity: u8,
    },
}

impl Level {
    /// Its redundancy is parity, not copies.
    #[must_use]
    pub fn has_parity(self) -> bool {
        matches!(self, Self::Raid5 | Self::Raid6 | Self::ErasureCode { .. })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Striped => write!(f, "RAID 0"),
            Self::Mirrored => write!(f, "RAID 1"),
            Self::StripedMirrors => write!(f, "RAID 10"),
            Self::Raid5 => write!(f, "RAID 5"),
            Self::Raid6 => write!(f, "RAID 6"),
            Self::ErasureCode { data, parity } => write!(f, "ec {data}+{parity}"),
        }
    }
}

/// How what a crash interrupts is made whole again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Each write to a stripe with parity is journaled first. No write hole.
    #[default]
    Journal,
    /// Regions being written are marked and their parity is made anew after a crash: cheaper, but
    /// where a member is lost in the same crash, blocks beside those being written may be lost.
    DirtyRegions,
}

/// What a new array is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Its level.
    pub level: Level,
    /// The members that get a role.
    pub roles: usize,
    /// The size of its blocks.
    pub block_size: BlockSize,
    /// The bytes of a strip: a power of two.
    pub strip_bytes: u32,
    /// How it survives crashes.
    pub consistency: Consistency,
    /// Journal records that each member has room for.
    pub journal_slots: u32,
    /// The bytes of the mirrored zone beside the data.
    pub zone_bytes: u64,
}

/// The usual mirrored zone takes this part of a member, at most so much, and none of less than the least:
/// a journal with both its copies.
const ZONE_PART: u64 = 64;
const ZONE_USUAL: u64 = 8 << 20;
const ZONE_LEAST: u64 = 512 << 10;
const ZONE_STEP: u64 = 128 << 10;

impl Wish {
    /// The usual mirrored zone over members of which the smallest has so many bytes. None without parity:
    /// there small writes read nothing either.
    #[must_use]
    pub fn usual_zone_bytes(level: Level, member_bytes: u64) -> u64 {
        let bytes = (member_bytes / ZONE_PART).min(ZONE_USUAL) / ZONE_STEP * ZONE_STEP;
        match level.has_parity() && bytes >= ZONE_LEAST {
            true => bytes,
            false => 0,
        }
    }

    /// The usual for a level over so many members, without a zone.
    #[must_use]
    pub fn new(level: Level, roles: usize, block_size: BlockSize) -> Self {
        Self {
            level,
            roles,
            block_size,
            strip_bytes: 64 << 10,
            consistency: Consistency::Journal,
            journal_slots: 256,
            zone_bytes: 0,
        }
    }
}

/// Why there is no such array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidGeometry {
    /// The level cannot have so many members.
    Members {
        /// The level.
        level: Level,
        /// The members that there are.
        members: usize,
        /// The fewest and most that it takes.
        takes: (usize, usize),
        /// It takes an even number.
        even: bool,
    },
    /// More data or parity strips than can be worked on, or none.
    Code {
        /// Data strips.
        data: u8,
        /// Parity strips.
        parity: u8,
    },
    /// The strip is no power of two, too small or too large.
    Strip {
        /// Its bytes.
        bytes: u32,
    },
    /// The journal has too few or too many slots.
    JournalSlots {
        /// The slots.
        slots: u32,
    },
    /// The mirrored zone is no multiple of 4 KiB or too large.
    Zone {
        /// Its bytes.
        bytes: u64,
    },
    /// The smallest member has no room for the metadata and one stripe.
    TooSmall {
        /// The member's bytes.
        bytes: u64,
        /// The bytes that it needs.
        needs: u64,
    },
}

impl fmt::Display for InvalidGeometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Members {
                level,
                members,
                takes: (least, most),
                even,
            } => {
                let even = if *even { ", an even number" } else { "" };
                match least == most {
                    true => write!(f, "{level} takes {least} members, not {members}"),
                    false => write!(
                        f,
                        "{level} takes {least} to {most} members{even}, not {members}"
                    ),
                }
            }
            Self::Code { data, parity } => write!(
                f,
                "ec {data}+{parity}: 1 to {DATA_MAX} data and 1 to {PARITY_MAX} parity strips are possible"
            ),
            Self::Strip { bytes } => write!(
                f,
                "a strip of {bytes} bytes: a power of two from {} to {} is possible",
                STRIP_BYTES.start,
                STRIP_BYTES.end - 1
            ),
            Self::JournalSlots { slots } => write!(
                f,
                "a journal of {slots} slots: {} to {} are possible",
                JOURNAL_SLOTS.start,
                JOURNAL_SLOTS.end - 1
            ),
            Self::Zone { bytes } => write!(
                f,
                "a mirrored zone of {bytes} bytes: a multiple of 4096 up to 2^40 is possible"
            ),
            Self::TooSmall { bytes, needs } => {
                write!(
                    f,
                    "a member of {bytes} bytes is too small: {needs} are needed"
                )
            }
        }
    }
}

impl std::error::Error for InvalidGeometry {}

/// How many slots a journal may have.
pub const JOURNAL_SLOTS: Range<u32> = 8..65_537;

/// Where each block of an array lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    wish: Wish,
    data: u8,
    parity: u8,
    copies: u8,
    stripes: u64,
    journal_offset: u64,
    data_offset: u64,
}

/// The same rows of neighbouring data strips of one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    /// Which stripe.
    pub stripe: u64,
    /// Which rows of each strip.
    pub rows: Range<u32>,
    /// Which data strips.
    pub strips: Range<usize>,
}

impl Band {
    /// The bytes of each strip.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        (self.rows.end - self.rows.start) as usize
    }
}

impl Geometry {
    /// The geometry of an array over members of which the smallest has so many bytes.
    ///
    /// # Errors
    /// Where there is no such array.
    pub fn new(wish: Wish, member_bytes: u64) -> Result<Self, InvalidGeometry> {
        let (data, parity, copies) = shape(&wish)?;
        let bytes = wish.strip_bytes;
        if !bytes.is_power_of_two() || !STRIP_BYTES.contains(&bytes) {
            return Err(InvalidGeometry::Strip { bytes });
        }
        let slots = wish.journal_slots;
        if !JOURNAL_SLOTS.contains(&slots) {
            return Err(InvalidGeometry::JournalSlots { slots });
        }
        let bytes = wish.zone_bytes;
        if !bytes.is_multiple_of(4096) || bytes > 1 << 40 {
            return Err(InvalidGeometry::Zone { bytes });
        }
        let mut geometry = Self {
            wish,
            data,
            parity,
            copies,
            stripes: 0,
            journal_offset: ZONE_OFFSET + wish.zone_bytes,
            data_offset: 0,
        };
        let journal = match geometry.is_journaled() {
            true => u64::from(wish.journal_slots) * geometry.slot_bytes(),
            false => 0,
        };
        geometry.data_offset = (geometry.journal_offset + journal).next_multiple_of(DATA_ALIGN);
        let strip = u64::from(wish.strip_bytes);
        geometry.stripes = member_bytes.saturating_sub(geometry.data_offset) / strip;
        if geometry.stripes == 0 {
            return Err(InvalidGeometry::TooSmall {
                bytes: member_bytes,
                needs: geometry.data_offset + strip,
            });
        }
        Ok(geometry)
    }

    /// The same array with so many stripes.
    ///
    /// # Errors
    /// Where it would have none.
    pub fn with_stripes(mut self, stripes: u64) -> Result<Self, InvalidGeometry> {
        let needs = self.member_bytes_for(stripes);
        if stripes == 0 || needs.is_none() {
            return Err(InvalidGeometry::TooSmall {
                bytes: 0,
                needs: self.data_offset + u64::from(self.wish.strip_bytes),
            });
        }
        self.stripes = stripes;
        Ok(self)
    }

    fn member_bytes_for(&self, stripes: u64) -> Option<u64> {
        stripes
            .checked_mul(u64::from(self.wish.strip_bytes))?
            .checked_add(self.data_offset)
            .filter(|bytes| bytes.checked_mul(ROLES_MAX as u64).is_some())
    }

    /// The bytes that a member must have.
    #[must_use]
    pub fn member_bytes(&self) -> u64 {
        self.data_offset + self.stripes * u64::from(self.wish.strip_bytes)
    }

    /// What was asked for.
    #[must_use]
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// The size of a block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.wish.block_size
    }

    /// Members with a role.
    #[must_use]
    pub fn roles(&self) -> usize {
        self.wish.roles
    }

    /// Data strips of a stripe.
    #[must_use]
    pub fn data(&self) -> usize {
        usize::from(self.data)
    }

    /// Parity strips of a stripe.
    #[must_use]
    pub fn parity(&self) -> usize {
        usize::from(self.parity)
    }

    /// Copies of each data strip.
    #[must_use]
    pub fn copies(&self) -> usize {
        usize::from(self.copies)
    }

    /// The stripes there are.
    #[must_use]
    pub fn stripes(&self) -> u64 {
        self.stripes
    }

    /// The bytes of a strip.
    #[must_use]
    pub fn strip_bytes(&self) -> u32 {
        self.wish.strip_bytes
    }

    /// The most rows that are worked on at a time.
    #[must_use]
    pub fn unit_bytes(&self) -> u32 {
        self.wish.strip_bytes.min(UNIT_BYTES_MAX)
    }

    /// The host's bytes in a stripe.
    #[must_use]
    pub fn stripe_bytes(&self) -> u64 {
        u64::from(self.wish.strip_bytes) * u64::from(self.data)
    }

    /// The array's blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.block_size()
            .blocks_in(self.stripes * self.stripe_bytes())
    }

    /// True where writes are journaled.
    #[must_use]
    pub fn is_journaled(&self) -> bool {
        self.parity > 0 && self.wish.consistency == Consistency::Journal
    }

    /// Where the journal begins on each member.
    #[must_use]
    pub fn journal_offset(&self) -> u64 {
        self.journal_offset
    }

    /// The bytes of a journal slot.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES + u64::from(self.unit_bytes())
    }

    /// Where the data begin on each member.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// The block of a member at which a byte offset lies.
    #[must_use]
    pub fn member_lba(&self, offset: u64) -> Lba {
        Lba(self.block_size().blocks_in(offset))
    }

    /// The bytes of the mirrored zone.
    #[must_use]
    pub fn zone_bytes(&self) -> u64 {
        self.wish.zone_bytes
    }

    /// Where a row of a stripe lies, on every member alike.
    #[must_use]
    pub fn row_lba(&self, stripe: u64, row: u32) -> Lba {
        let strip = u64::from(self.wish.strip_bytes);
        self.member_lba(self.data_offset + stripe * strip + u64::from(row))
    }

    /// The role that holds strip `index` of a stripe: data, then parity. For levels with parity or
    /// without redundancy.
    #[must_use]
    pub fn role_of(&self, stripe: u64, index: usize) -> usize {
        debug_assert!(self.copies == 1, "strips of a mirror have several roles");
        if self.parity == 0 {
            return index;
        }
        let roles = self.wish.roles;
        let turn = (stripe % roles as u64) as usize;
        // Parity begins at the last role and moves down; data follow it, wrapping around.
        let parity_first = roles - 1 - turn;
        let place = match index.checked_sub(self.data()) {
            Some(parity) => parity,
            None => self.parity() + index,
        };
        (parity_first + place) % roles
    }

    /// The index of the strip that a role holds in a stripe.
    #[must_use]
    pub fn index_of(&self, stripe: u64, role: usize) -> usize {
        if self.copies > 1 {
            return role / self.copies();
        }
        if self.parity == 0 {
            return role;
        }
        let roles = self.wish.roles;
        let turn = (stripe % roles as u64) as usize;
        let place = (role + roles - (roles - 1 - turn)) % roles;
        match place.checked_sub(self.parity()) {
            Some(data) => data,
            None => self.data() + place,
        }
    }

    /// The roles that hold the copies of a data strip of a mirror.
    #[must_use]
    pub fn legs_of(&self, strip: usize) -> Range<usize> {
        strip * self.copies()..(strip + 1) * self.copies()
    }

    /// The array's byte at a row of a data strip.
    #[must_use]
    pub fn array_offset(&self, stripe: u64, strip: usize, row: u32) -> u64 {
        stripe * self.stripe_bytes()
            + strip as u64 * u64::from(self.wish.strip_bytes)
            + u64::from(row)
    }

    /// The bands that a range of the array's bytes comes to, in ascending order of stripes.
    #[must_use]
    pub fn bands(&self, bytes: Range<u64>) -> Bands {
        Bands {
            geometry: *self,
            stripe: bytes.start / self.stripe_bytes(),
            bytes,
            part: 0,
            row: 0,
        }
    }

    /// The pieces of single strips that a range of the array's bytes comes to, in their order, of at
    /// most so many rows.
    pub fn pieces(&self, bytes: Range<u64>, most: u32) -> impl Iterator<Item = Band> + use<> {
        let (geometry, mut at) = (*self, bytes.start);
        let strip_bytes = u64::from(self.wish.strip_bytes);
        std::iter::from_fn(move || {
            if at >= bytes.end {
                return None;
            }
            let (stripe, within) = (at / geometry.stripe_bytes(), at % geometry.stripe_bytes());
            let (strip, row) = (within / strip_bytes, within % strip_bytes);
            let end = strip_bytes.min(row + u64::from(most).min(bytes.end - at));
            at += end - row;
            Some(Band {
                stripe,
                rows: small(row)..small(end),
                strips: small(strip) as usize..small(strip) as usize + 1,
            })
        })
    }
}

fn small(value: u64) -> u32 {
    u32::try_from(value).expect("within a stripe")
}

fn shape(wish: &Wish) -> Result<(u8, u8, u8), InvalidGeometry> {
    let takes = |least: usize, most: usize, even: bool| {
        let fits = (least..=most).contains(&wish.roles) && !(even && wish.roles % 2 == 1);
        let refusal = InvalidGeometry::Members {
            level: wish.level,
            members: wish.roles,
            takes: (least, most),
            even,
        };
        if fits { Ok(()) } else { Err(refusal) }
    };
    let roles = u8::try_from(wish.roles).unwrap_or(u8::MAX);
    Ok(match wish.level {
        Level::Striped => {
            takes(1, ROLES_MAX, false)?;
            (roles, 0, 1)
        }
        Level::Mirrored => {
            takes(1, COPIES_MAX.into(), false)?;
            (1, 0, roles)
        }
        Level::StripedMirrors => {
            takes(4, ROLES_MAX, true)?;
            (roles / 2, 0, 2)
        }
        Level::Raid5 => {
            takes(3, DATA_MAX + 1, false)?;
            (roles - 1, 1, 1)
        }
        Level::Raid6 => {
            takes(4, DATA_MAX + 2, false)?;
            (roles - 2, 2, 1)
        }
        Level::ErasureCode { data, parity } => {
            let possible =
                (1..=DATA_MAX).contains(&data.into()) && (1..=PARITY_MAX).contains(&parity.into());
            if !possible {
                return Err(InvalidGeometry::Code { data, parity });
            }
            let members = usize::from(data) + usize::from(parity);
            takes(members, members, false)?;
            (data, parity, 1)
        }
    })
}

/// See [`Geometry::bands`].
#[derive(Clone, Debug)]
pub struct Bands {
    geometry: Geometry,
    bytes: Range<u64>,
    stripe: u64,
    /// Of the at most three row ranges of a stripe, the one that is next.
    part: usize,
    row: u32,
}

impl Iterator for Bands {
    type Item = Band;

    fn next(&mut self) -> Option<Band> {
        let strip_bytes = self.geometry.strip_bytes();
        loop {
            let begin = self.stripe * self.geometry.stripe_bytes();
            if begin >= self.bytes.end {
                return None;
            }
            let first = self.bytes.start.max(begin) - begin;
            let last = self
                .bytes
                .end
                .min(begin + self.geometry.stripe_bytes())
                .checked_sub(begin + 1)?;
            let (first_strip, first_row) = (small(first) / strip_bytes, small(first) % strip_bytes);
            let (last_strip, end_row) = (small(last) / strip_bytes, small(last) % strip_bytes + 1);
            let cuts = match first_strip == last_strip {
                true => [first_row, first_row, end_row, end_row],
                false => [
                    0,
                    first_row.min(end_row),
                    first_row.max(end_row),
                    strip_bytes,
                ],
            };
            let rows = cuts[self.part].max(self.row)..cuts[self.part + 1];
            let from = first_strip + u32::from(rows.start < first_row);
            let to = last_strip + u32::from(rows.end <= end_row);
            if rows.start >= rows.end || from >= to {
                self.row = 0;
                self.part += 1;
                if self.part == 3 {
                    self.part = 0;
                    self.stripe += 1;
                }
                continue;
            }
            let end = rows.end.min(rows.start + self.geometry.unit_bytes());
            self.row = end;
            return Some(Band {
                stripe: self.stripe,
                rows: rows.start..end,
                strips: from as usize..to as usize,
            });
        }
    }
}

#[cfg(test)]
#[path = "geometry_tests.rs"]
mod tests;
