//! Owns the superblock: what each member says of itself and of its array. FORMAT.md has the byte map.
//!
//! Invariants:
//! - What is read is an allegation until [`Superblock::decode`] has checked it: magic, version,
//!   checksum, and that its geometry and matrix are possible.
//! - A superblock of a newer version is never taken for an empty or a corrupted one.

use std::fmt;

use arrayvec::ArrayVec;
use corebay_core::units::BlockSize;
use crc_fast::{CrcAlgorithm, checksum};
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    geometry::{Consistency, Geometry, Level, ROLES_MAX, Wish},
    kernels::{Codec, DATA_MAX, PARITY_MAX},
    state::{ArrayState, RoleRecord, RoleState, SPARES_MAX, Uuid},
};

/// The bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// The version of the format that is written; older ones are read.
pub const VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"CBAYRAID";
const MATRIX_BYTES: usize = DATA_MAX * PARITY_MAX;

/// The longest name of an array, in bytes.
pub const NAME_BYTES: usize = 32;

/// The CRC32C of `bytes`.
#[must_use]
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRole {
    member: [u8; 16],
    state: u8,
    delta: u8,
    reserved: [u8; 6],
    stripes: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    /// CRC32C of all 4096 bytes, this field taken as zero.
    crc: U32,
    array: [u8; 16],
    member: [u8; 16],
    name: [u8; NAME_BYTES],
    generation: U64,
    epoch: U64,
    level: u8,
    data: u8,
    parity: u8,
    roles_count: u8,
    block_shift: u8,
    consistency: u8,
    spares_count: u8,
    reserved: u8,
    strip_bytes: U32,
    journal_slots: U32,
    zone_bytes: U64,
    stripes: U64,
    matrix: [u8; MATRIX_BYTES],
    roles: [RawRole; ROLES_MAX],
    spares: [[u8; 16]; SPARES_MAX],
    taken_in: [U64; ROLES_MAX],
    rest: [u8; 2464],
}

const _: () = {
    assert!(size_of::<RawRole>() == 32);
    assert!(size_of::<Raw>() == SUPERBLOCK_BYTES);
    assert!(std::mem::offset_of!(Raw, crc) == 12);
    assert!(std::mem::offset_of!(Raw, generation) == 80);
    assert!(std::mem::offset_of!(Raw, level) == 96);
    assert!(std::mem::offset_of!(Raw, strip_bytes) == 104);
    assert!(std::mem::offset_of!(Raw, matrix) == 128);
    assert!(std::mem::offset_of!(Raw, roles) == 224);
    assert!(std::mem::offset_of!(Raw, spares) == 1248);
    assert!(std::mem::offset_of!(Raw, taken_in) == 1376);
};

/// What a member says of itself and of its array.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// The array.
    pub array: Uuid,
    /// The member.
    pub member: Uuid,
    /// The array's name.
    pub name: ArrayVec<u8, NAME_BYTES>,
    /// Where its blocks lie.
    pub geometry: Geometry,
    /// How its parity is made, for levels with parity.
    pub codec: Option<Codec>,
    /// The state when this was written.
    pub state: ArrayState,
}

/// Why bytes are no superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSuperblock {
    /// There is none.
    Absent,
    /// It is of a newer format.
    Newer {
        /// Its version.
        version: u32,
    },
    /// Its checksum is wrong.
    Corrupt,
    /// Its checksum is right, but there is no such array.
    Impossible,
}

impl fmt::Display for BadSuperblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "it holds no superblock"),
            Self::Newer { version } => write!(
                f,
                "its format is version {version}; this program knows up to {VERSION}"
            ),
            Self::Corrupt => write!(f, "its superblock's checksum is wrong"),
            Self::Impossible => write!(f, "its superblock describes no possible array"),
        }
    }
}

/// The codec of a level's parity, if it has any.
#[must_use]
pub fn codec_of(geometry: &Geometry) -> Option<Codec> {
    let data = geometry.data();
    match geometry.wish().level {
        Level::Raid5 => Codec::xor(data).ok(),
        Level::Raid6 => Codec::pq(data).ok(),
        Level::ErasureCode { parity, .. } => Codec::new(data, parity.into()).ok(),
        Level::Striped | Level::Mirrored | Level::StripedMirrors => None,
    }
}

impl Superblock {
    /// The bytes as they are written.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let (wish, state) = (self.geometry.wish(), &self.state);
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.array = self.array.0;
        raw.member = self.member.0;
        raw.name[..self.name.len()].copy_from_slice(&self.name);
        raw.generation = state.generation.into();
        raw.epoch = state.epoch.into();
        let (level, data, parity) = match wish.level {
            Level::Striped => (0, 0, 0),
            Level::Mirrored => (1, 0, 0),
            Level::StripedMirrors => (10, 0, 0),
            Level::Raid5 => (5, 0, 0),
            Level::Raid6 => (6, 0, 0),
            Level::ErasureCode { data, parity } => (100, data, parity),
        };
        (raw.level, raw.data, raw.parity) = (level, data, parity);
        raw.roles_count = count(wish.roles);
        raw.block_shift = count(wish.block_size.shift() as usize);
        raw.consistency = match wish.consistency {
            Consistency::Journal => 0,
            Consistency::DirtyRegions => 1,
        };
        raw.spares_count = count(state.spares.len());
        raw.strip_bytes = wish.strip_bytes.into();
        raw.journal_slots = wish.journal_slots.into();
        raw.zone_bytes = wish.zone_bytes.into();
        raw.stripes = self.geometry.stripes().into();
        if let Some(codec) = &self.codec {
            let coefficients = codec.coefficients();
            raw.matrix[..coefficients.len()].copy_from_slice(coefficients);
        }
        for (into, role) in raw.roles.iter_mut().zip(&state.roles) {
            *into = encode_role(role);
        }
        for (into, spare) in raw.spares.iter_mut().zip(&state.spares) {
            *into = spare.0;
        }
        raw.taken_in = state.taken_in.map(U64::new);
        raw.crc = crc32c(raw.as_bytes()).into();
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Checks bytes that were read.
    ///
    /// # Errors
    /// Where they are no superblock that this program knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadSuperblock> {
        let raw = Raw::read_from_bytes(bytes).map_err(|_| BadSuperblock::Absent)?;
        if raw.magic != MAGIC {
            return Err(BadSuperblock::Absent);
        }
        let version = raw.version.get();
        let mut blank = raw;
        blank.crc = 0.into();
        if crc32c(blank.as_bytes()) != raw.crc.get() {
            return Err(BadSuperblock::Corrupt);
        }
        if version > VERSION {
            return Err(BadSuperblock::Newer { version });
        }
        decode_checked(&raw).ok_or(BadSuperblock::Impossible)
    }

    /// The same, as another member of the array says it, in another state.
    #[must_use]
    pub fn for_member(&self, member: Uuid, state: &ArrayState) -> Self {
        Self {
            member,
            state: state.clone(),
            ..self.clone()
        }
    }
}

fn count(value: usize) -> u8 {
    u8::try_from(value).expect("fewer than 256")
}

fn encode_role(role: &RoleRecord) -> RawRole {
    let (state, delta, stripes) = match role.state {
        RoleState::Failed => (0, 0, 0),
        RoleState::Active => (1, 0, 0),
        RoleState::Rebuilding { stripes, delta } => (2, u8::from(delta), stripes),
    };
    RawRole {
        member: role.member.0,
        state,
        delta,
        reserved: [0; 6],
        stripes: stripes.into(),
    }
}

fn decode_role(raw: &RawRole) -> Option<RoleRecord> {
    let state = match raw.state {
        0 => RoleState::Failed,
        1 => RoleState::Active,
        2 => RoleState::Rebuilding {
            stripes: raw.stripes.get(),
            delta: raw.delta != 0,
        },
        _ => return None,
    };
    Some(RoleRecord {
        member: Uuid(raw.member),
        state,
    })
}

fn decode_checked(raw: &Raw) -> Option<Superblock> {
    let level = match raw.level {
        0 => Level::Striped,
        1 => Level::Mirrored,
        10 => Level::StripedMirrors,
        5 => Level::Raid5,
        6 => Level::Raid6,
        100 => Level::ErasureCode {
            data: raw.data,
            parity: raw.parity,
        },
        _ => return None,
    };
    let wish = Wish {
        level,
        roles: raw.roles_count.into(),
        block_size: BlockSize::from_bytes(1u64.checked_shl(raw.block_shift.into())?)?,
        strip_bytes: raw.strip_bytes.get(),
        consistency: match raw.consistency {
            0 => Consistency::Journal,
            1 => Consistency::DirtyRegions,
            _ => return None,
        },
        journal_slots: raw.journal_slots.get(),
        zone_bytes: raw.zone_bytes.get(),
    };
    let geometry = Geometry::new(wish, u64::MAX)
        .and_then(|geometry| geometry.with_stripes(raw.stripes.get()))
        .ok()?;
    let codec = match (geometry.data(), geometry.parity()) {
        (_, 0) => None,
        (data, parity) => {
            Some(Codec::from_matrix(data, parity, &raw.matrix[..data * parity]).ok()?)
        }
    };
    let roles = raw.roles[..geometry.roles()].iter().map(decode_role);
    let spares = raw.spares.get(..raw.spares_count.into())?;
    let end = raw.name.iter().position(|&byte| byte == 0);
    Some(Superblock {
        array: Uuid(raw.array),
        member: Uuid(raw.member),
        name: raw.name[..end.unwrap_or(NAME_BYTES)].try_into().ok()?,
        geometry,
        codec,
        state: ArrayState {
            generation: raw.generation.get(),
            epoch: raw.epoch.get(),
            roles: roles.collect::<Option<_>>()?,
            spares: spares.iter().map(|&spare| Uuid(spare)).collect(),
            taken_in: raw.taken_in.map(U64::get),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use corebay_core::rng::Rng;

    fn example() -> Superblock {
        let level = Level::ErasureCode { data: 4, parity: 2 };
        let wish = Wish::new(level, 6, BlockSize::B4096);
        let geometry = Geometry::new(wish, 1 << 30).unwrap();
        let record = |number| RoleRecord {
            member: Uuid([number; 16]),
            state: RoleState::Active,
        };
        let mut roles: ArrayVec<_, ROLES_MAX> = (1..=6).map(record).collect();
        roles[1].state = RoleState::Failed;
        roles[2].state = RoleState::Rebuilding {
            stripes: 77,
            delta: true,
        };
        Superblock {
            array: Uuid([9; 16]),
            member: Uuid([3; 16]),
            name: b"tank".as_slice().try_into().unwrap(),
            codec: codec_of(&geometry),
            geometry,
            state: ArrayState {
                generation: 5,
                epoch: 2,
                roles,
                spares: [Uuid([8; 16])].into_iter().collect(),
                taken_in: std::array::from_fn(|role| role as u64),
            },
        }
    }

    #[test]
    fn it_reads_back() {
        let written = example();
        let read = Superblock::decode(&written.encode()).unwrap();
        assert_eq!(read.state, written.state);
        assert_eq!(read.geometry, written.geometry);
        assert_eq!((read.array, read.member), (written.array, written.member));
        assert_eq!(&read.name[..], b"tank");
        let coefficients = |codec: &Option<Codec>| codec.as_ref().unwrap().coefficients().to_vec();
        assert_eq!(coefficients(&read.codec), coefficients(&written.codec));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut bytes = example().encode();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    fn resealed(change: impl FnOnce(&mut Raw)) -> Result<Superblock, BadSuperblock> {
        let mut raw = Raw::read_from_bytes(&example().encode()).unwrap();
        change(&mut raw);
        raw.crc = 0.into();
        raw.crc = crc32c(raw.as_bytes()).into();
        Superblock::decode(raw.as_bytes())
    }

    #[test]
    fn refusals_say_why() {
        let newer = resealed(|raw| raw.version = 3.into()).unwrap_err();
        assert_eq!(newer, BadSuperblock::Newer { version: 3 });
        let older = resealed(|raw| raw.version = 1.into()).unwrap();
        assert_eq!(older.state, example().state);
        let empty = Superblock::decode(&[0; SUPERBLOCK_BYTES]).unwrap_err();
        assert_eq!(empty, BadSuperblock::Absent);
        let impossible = [
            resealed(|raw| raw.level = 7),
            resealed(|raw| raw.block_shift = 200),
            resealed(|raw| raw.roles_count = 255),
            resealed(|raw| raw.strip_bytes = 3.into()),
            resealed(|raw| raw.stripes = 0.into()),
            resealed(|raw| raw.stripes = u64::MAX.into()),
            resealed(|raw| raw.zone_bytes = u64::MAX.into()),
            resealed(|raw| raw.matrix = [0; MATRIX_BYTES]),
            resealed(|raw| raw.spares_count = 200),
            resealed(|raw| raw.roles[0].state = 9),
        ];
        for attempt in impossible {
            assert_eq!(attempt.unwrap_err(), BadSuperblock::Impossible);
        }
    }

    #[test]
    fn arbitrary_content_never_panics() {
        let mut rng = Rng::from_seed(4);
        for _ in 0..3000 {
            let _ = resealed(|raw| {
                let mut noise = [0; 1400];
                rng.fill(&mut noise);
                let at = usize::try_from(rng.below(1376)).unwrap();
                let len = usize::try_from(rng.below(24)).unwrap();
                // Magic and version stay, or nothing behind them is looked at.
                raw.as_mut_bytes()[16 + at..16 + at + len].copy_from_slice(&noise[..len]);
            });
        }
    }
}
