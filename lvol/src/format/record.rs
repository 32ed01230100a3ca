//! The journal's batches, and the records in them: every change of a pool's state.

use std::mem::size_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    BATCH_BYTES_MAX, BLOCKS_PER_EXTENT, Extent, PAGE_BYTES, crc32c,
    limits::{LIMITS_BYTES, Limits},
    page::Receiving,
    superblock::Thresholds,
};

/// A change of a pool's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Blocks of a volume's extent lie in `extent` now. Their data are durable.
    Map {
        /// The volume.
        volume: u32,
        /// Which extent of the volume.
        index: u64,
        /// The first block in it.
        start: u8,
        /// How many blocks.
        count: u16,
        /// Where they lie.
        extent: Extent,
    },
    /// Blocks of a volume, all under one leaf, read as zeroes now.
    Unmap {
        /// The volume.
        volume: u32,
        /// The first block.
        first: u64,
        /// How many.
        blocks: u64,
        /// The volume keeps its own extent, for later writes.
        keep: bool,
    },
    /// There is a new, empty volume.
    Create {
        /// The volume's number.
        volume: u32,
        /// Its size.
        blocks: u64,
        /// Space is reserved for all of it.
        thick: bool,
        /// Its identity.
        uuid: [u8; 16],
        /// Its name.
        name: String,
    },
    /// A new volume has the content that another one has at this point.
    Share {
        /// The new volume's number.
        volume: u32,
        /// Whose content.
        source: u32,
        /// It stays as it is; else it is a clone, which hosts write to.
        snapshot: bool,
        /// Its identity.
        uuid: [u8; 16],
        /// Its name.
        name: String,
    },
    /// The volume is gone; its space follows.
    Delete {
        /// The volume.
        volume: u32,
    },
    /// The next part of a deleted volume's space is free.
    Drop {
        /// The volume.
        volume: u32,
        /// The volume's number stays taken though nothing is left.
        keep: bool,
    },
    /// The volume has another size.
    Resize {
        /// The volume.
        volume: u32,
        /// Its new size.
        blocks: u64,
    },
    /// The volume has another name.
    Rename {
        /// The volume.
        volume: u32,
        /// Its new name.
        name: String,
    },
    /// The volume's flags.
    Flags {
        /// The volume.
        volume: u32,
        /// Nothing may be written to it.
        read_only: bool,
        /// Space is reserved for all of it.
        thick: bool,
    },
    /// The volume's content is that of a snapshot again; the content it had is being dropped.
    Rollback {
        /// The volume.
        volume: u32,
        /// The snapshot.
        snapshot: u32,
        /// The number under which the old content is dropped.
        old: u32,
    },
    /// What the exporter keeps with the volume.
    Attributes {
        /// The volume.
        volume: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Who the volume's namespace is to hosts.
    Identity {
        /// The volume.
        volume: u32,
        /// Its UUID.
        uuid: [u8; 16],
        /// Its NGUID, or zeroes.
        nguid: [u8; 16],
        /// Its EUI64, or zeroes.
        eui64: [u8; 8],
    },
    /// How hosts reach the volume.
    Export {
        /// The volume.
        volume: u32,
        /// The export's bytes; none where they do not any more.
        bytes: Vec<u8>,
    },
    /// The pool has another name.
    RenamePool {
        /// Its new name.
        name: String,
    },
    /// When the pool's owner is told that space runs out.
    Thresholds(Thresholds),
    /// How much of a stream the volume has received.
    Receive {
        /// The volume.
        volume: u32,
        /// The stream, or none any more.
        state: Option<Receiving>,
    },
    /// How much hosts may do with the volume.
    Limits {
        /// The volume.
        volume: u32,
        /// Its limits.
        limits: Limits,
    },
    /// Where the volume comes from.
    Origin {
        /// The volume.
        volume: u32,
        /// What it was taken of, or itself.
        origin: u32,
    },
    /// The pool uses more of its disk.
    Extend {
        /// All blocks that it uses.
        blocks: u64,
    },
    /// So many of the volume's extents lie in one that is its own.
    Recount {
        /// The volume.
        volume: u32,
        /// How many.
        own: u64,
    },
}

/// A record as it lies in the journal, before its tail.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    kind: u8,
    detail: u8,
    /// The bytes of the tail.
    tail: U16,
    volume: U32,
    a: U64,
    b: U64,
    c: U64,
}

const _: () = assert!(size_of::<Raw>() == 32);

/// The bytes of a [`Record::Map`].
pub const MAP_BYTES: usize = size_of::<Raw>();

impl Record {
    /// Adds the record's bytes.
    ///
    /// # Panics
    /// Where a name or attributes are longer than may be, which their maker has checked.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.head().as_bytes());
        let (uuid, text) = self.tail();
        into.extend(uuid.into_iter().flatten());
        into.extend(text);
        if let Self::Limits { limits, .. } = self {
            into.extend(limits.encode());
        }
    }

    /// The identity and the text or bytes that follow the numbers.
    fn tail(&self) -> (Option<&[u8; 16]>, &[u8]) {
        match self {
            Self::Create { uuid, name, .. } | Self::Share { uuid, name, .. } => {
                (Some(uuid), name.as_bytes())
            }
            Self::Rename { name, .. } | Self::RenamePool { name } => (None, name.as_bytes()),
            Self::Attributes { bytes, .. } | Self::Export { bytes, .. } => (None, bytes),
            Self::Identity { uuid, nguid, .. } => (Some(uuid), nguid),
            Self::Receive {
                state: Some(state), ..
            } => (Some(&state.from), &state.to),
            _ => (None, &[]),
        }
    }

    fn head(&self) -> Raw {
        let (kind, volume, detail, numbers) = match self {
            Self::Map {
                volume,
                index,
                start,
                count,
                extent,
            } => return map_head(*volume, *index, *extent, (*start, *count)),
            Self::Unmap {
                volume,
                first,
                blocks,
                keep,
            } => (2, volume, u8::from(*keep), [*first, *blocks, 0]),
            Self::Create {
                volume,
                blocks,
                thick,
                ..
            } => (3, volume, u8::from(*thick), [*blocks, 0, 0]),
            Self::Share {
                volume,
                source,
                snapshot,
                ..
            } => (4, volume, u8::from(*snapshot), [u64::from(*source), 0, 0]),
            Self::Delete { volume } => (5, volume, 0, [0; 3]),
            Self::Drop { volume, keep } => (6, volume, u8::from(*keep), [0; 3]),
            Self::Resize { volume, blocks } => (7, volume, 0, [*blocks, 0, 0]),
            Self::Rename { volume, .. } => (8, volume, 0, [0; 3]),
            Self::Flags {
                volume,
                read_only,
                thick,
            } => (
                9,
                volume,
                u8::from(*read_only) | (u8::from(*thick) << 1),
                [0; 3],
            ),
            Self::Rollback {
                volume,
                snapshot,
                old,
            } => (10, volume, 0, [u64::from(*snapshot), u64::from(*old), 0]),
            Self::Attributes { volume, .. } => (11, volume, 0, [0; 3]),
            Self::Identity { volume, eui64, .. } => {
                (12, volume, 0, [u64::from_le_bytes(*eui64), 0, 0])
            }
            Self::Export { volume, .. } => (13, volume, 0, [0; 3]),
            Self::RenamePool { .. } => (14, &0, 0, [0; 3]),
            Self::Receive { volume, state } => {
                let next = state.map_or(0, |state| state.next());
                (16, volume, u8::from(state.is_some()), [next, 0, 0])
            }
            Self::Limits { volume, .. } => (18, volume, 0, [0; 3]),
            Self::Origin { volume, origin } => (19, volume, 0, [u64::from(*origin), 0, 0]),
            Self::Extend { blocks } => (17, &0, 0, [*blocks, 0, 0]),
            Self::Recount { volume, own } => (20, volume, 0, [*own, 0, 0]),
            Self::Thresholds(thresholds) => (15, &0, 0, thresholds.encode().map(u64::from)),
        };
        let tail = self.encoded_len() - size_of::<Raw>();
        let [a, b, c] = numbers.map(U64::new);
        Raw {
            kind,
            detail,
            tail: u16::try_from(tail).expect("tails were checked").into(),
            volume: (*volume).into(),
            a,
            b,
            c,
        }
    }

    /// The bytes that [`encode`](Self::encode) adds.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        if let Self::Map { .. } = self {
            return MAP_BYTES;
        }
        let (uuid, text) = self.tail();
        let limits = match self {
            Self::Limits { .. } => LIMITS_BYTES,
            _ => 0,
        };
        size_of::<Raw>() + uuid.map_or(0, |uuid| uuid.len()) + text.len() + limits
    }

    /// True where it may change how many extents a volume has reserved.
    #[must_use]
    pub fn may_reserve(&self) -> bool {
        matches!(
            self,
            Self::Create { .. }
                | Self::Share { .. }
                | Self::Resize { .. }
                | Self::Flags { .. }
                | Self::Rollback { .. }
        )
    }

    /// True where a pool whose metadata have no room for more pages does without it.
    #[must_use]
    pub fn may_add_pages(&self) -> bool {
        matches!(
            self,
            Self::Map { .. }
                | Self::Unmap { .. }
                | Self::Create { .. }
                | Self::Share { .. }
                | Self::Resize { .. }
                | Self::Rollback { .. }
        )
    }

    /// The first record in `bytes`, and the bytes after it.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (raw, rest) = Raw::read_from_prefix(bytes).ok()?;
        let tail = rest.get(..usize::from(raw.tail.get()))?;
        let after = &rest[tail.len()..];
        let record = Self::from_raw(&raw, tail)?;
        // A tail that the kind does not have belongs to something else.
        let whole = record.encoded_len() == size_of::<Raw>() + tail.len();
        whole.then_some((record, after))
    }

    fn from_raw(raw: &Raw, tail: &[u8]) -> Option<Self> {
        let volume = raw.volume.get();
        let (a, b, c) = (raw.a.get(), raw.b.get(), raw.c.get());
        let number = |value: u64| u32::try_from(value).ok();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let uuid = || tail.first_chunk::<16>().copied();
        Some(match raw.kind {
            1 => {
                let count = u16::try_from(c).ok()?;
                let end = usize::from(raw.detail) + usize::from(count);
                if count == 0 || end > BLOCKS_PER_EXTENT {
                    return None;
                }
                let (index, extent) = (a, Extent(b));
                Self::Map {
                    volume,
                    index,
                    start: raw.detail,
                    count,
                    extent,
                }
            }
            2 => Self::Unmap {
                volume,
                first: a,
                blocks: b,
                keep: raw.detail != 0,
            },
            3 => Self::Create {
                volume,
                blocks: a,
                thick: raw.detail != 0,
                uuid: uuid()?,
                name: text(&tail[16..])?,
            },
            4 => Self::Share {
                volume,
                source: number(a)?,
                snapshot: raw.detail != 0,
                uuid: uuid()?,
                name: text(&tail[16..])?,
            },
            5 => Self::Delete { volume },
            6 => Self::Drop {
                volume,
                keep: raw.detail != 0,
            },
            7 => Self::Resize { volume, blocks: a },
            8 => Self::Rename {
                volume,
                name: text(tail)?,
            },
            9 => Self::Flags {
                volume,
                read_only: raw.detail & 1 != 0,
                thick: raw.detail & 2 != 0,
            },
            10 => Self::Rollback {
                volume,
                snapshot: number(a)?,
                old: number(b)?,
            },
            11 => Self::Attributes {
                volume,
                bytes: tail.to_vec(),
            },
            _ => return Self::from_raw_later(raw, tail),
        })
    }

    /// The kinds that version 2 has beyond the first.
    fn from_raw_later(raw: &Raw, tail: &[u8]) -> Option<Self> {
        let volume = raw.volume.get();
        let (a, b, c) = (raw.a.get(), raw.b.get(), raw.c.get());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let uuid = || tail.first_chunk::<16>().copied();
        Some(match raw.kind {
            12 => Self::Identity {
                volume,
                uuid: uuid()?,
                nguid: tail.get(16..)?.try_into().ok()?,
                eui64: a.to_le_bytes(),
            },
            13 => Self::Export {
                volume,
                bytes: tail.to_vec(),
            },
            17 => Self::Extend { blocks: a },
            20 => Self::Recount { volume, own: a },
            19 => Self::Origin {
                volume,
                origin: u32::try_from(a).ok()?,
            },
            18 => Self::Limits {
                volume,
                limits: Limits::parse(tail.try_into().ok()?),
            },
            16 => {
                let to = || tail.get(16..)?.try_into().ok();
                let state = match raw.detail {
                    0 => None,
                    _ => Some(Receiving::new(uuid()?, to()?, a)),
                };
                Self::Receive { volume, state }
            }
            14 => Self::RenamePool { name: text(tail)? },
            15 => {
                let byte = |value: u64| u8::try_from(value).ok();
                Self::Thresholds(Thresholds::parse([byte(a)?, byte(b)?, byte(c)?])?)
            }
            _ => return None,
        })
    }
}

/// The most frequent record.
fn map_head(volume: u32, index: u64, extent: Extent, (start, count): (u8, u16)) -> Raw {
    Raw {
        kind: 1,
        detail: start,
        tail: 0.into(),
        volume: volume.into(),
        a: index.into(),
        b: extent.0.into(),
        c: u64::from(count).into(),
    }
}

/// A batch's first bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    crc: U32,
    uuid: [u8; 16],
    sequence: U64,
    /// All bytes of the batch, without the padding.
    len: U32,
    records: U32,
    reserved: [u8; 24],
}

const MAGIC: [u8; 4] = *b"CBJB";

/// The bytes of a batch that its records do not get.
pub const BATCH_HEADER_BYTES: usize = 64;

const _: () = assert!(size_of::<Header>() == BATCH_HEADER_BYTES);

/// A batch of records, made durable by one write of each copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Counts batches of the pool.
    pub sequence: u64,
    /// The records, in the order they take effect.
    pub records: Vec<Record>,
    /// The pages it takes.
    pub pages: u64,
}

impl Batch {
    /// The bytes of a batch, padded to pages.
    ///
    /// # Panics
    /// Where the records do not fit.
    #[must_use]
    pub fn encode(
        uuid: [u8; 16],
        sequence: u64,
        records: &[Record],
        mut bytes: Vec<u8>,
    ) -> Vec<u8> {
        bytes.clear();
        bytes.resize(BATCH_HEADER_BYTES, 0);
        for record in records {
            match *record {
                Record::Map {
                    volume,
                    index,
                    start,
                    count,
                    extent,
                } => {
                    let head = map_head(volume, index, extent, (start, count));
                    bytes.extend_from_slice(head.as_bytes());
                }
                _ => record.encode(&mut bytes),
            }
        }
        assert!(bytes.len() <= BATCH_BYTES_MAX, "the batch is too large");
        let mut header = Header {
            magic: MAGIC,
            crc: 0.into(),
            uuid,
            sequence: sequence.into(),
            len: u32::try_from(bytes.len())
                .expect("at most BATCH_BYTES_MAX")
                .into(),
            records: u32::try_from(records.len()).expect("few").into(),
            reserved: [0; 24],
        };
        bytes[..BATCH_HEADER_BYTES].copy_from_slice(header.as_bytes());
        header.crc = crc32c(&bytes).into();
        bytes[..BATCH_HEADER_BYTES].copy_from_slice(header.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
        bytes
    }

    /// The batch at the beginning of `bytes`, if one of this pool is there and whole, and its records
    /// mean something.
    #[must_use]
    pub fn parse(bytes: &[u8], uuid: [u8; 16]) -> Option<Self> {
        let (header, whole) = Self::signed(bytes, uuid)?;
        let mut rest = &whole[BATCH_HEADER_BYTES..];
        let mut records = Vec::new();
        for _ in 0..header.records.get() {
            let (record, after) = Record::parse(rest)?;
            rest = after;
            records.push(record);
        }
        Some(Self {
            sequence: header.sequence.get(),
            records,
            pages: whole.len().div_ceil(PAGE_BYTES) as u64,
        })
    }

    /// The number of the batch at the beginning of `bytes`, if one of this pool is there and whole,
    /// whatever its records mean.
    #[must_use]
    pub fn sequence_of(bytes: &[u8], uuid: [u8; 16]) -> Option<u64> {
        Self::signed(bytes, uuid).map(|(header, _)| header.sequence.get())
    }

    fn signed(bytes: &[u8], uuid: [u8; 16]) -> Option<(Header, &[u8])> {
        let (header, _) = Header::read_from_prefix(bytes).ok()?;
        let len = header.len.get() as usize;
        let right = header.magic == MAGIC
            && header.uuid == uuid
            && (BATCH_HEADER_BYTES..=BATCH_BYTES_MAX).contains(&len);
        let whole = right.then(|| bytes.get(..len)).flatten()?;
        let mut unsigned = header;
        unsigned.crc = 0.into();
        let mut copy = whole.to_vec();
        copy[..BATCH_HEADER_BYTES].copy_from_slice(unsigned.as_bytes());
        (crc32c(&copy) == header.crc.get()).then_some((header, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let (uuid, name) = ([3; 16], "a volume".to_owned());
        vec![
            Record::Map {
                volume: 1,
                index: 2,
                start: 3,
                count: 253,
                extent: Extent(9),
            },
            Record::Unmap {
                volume: 1,
                first: 77,
                blocks: 1000,
                keep: true,
            },
            Record::Create {
                volume: 4,
                blocks: 9,
                thick: true,
                uuid,
                name: name.clone(),
            },
            Record::Share {
                volume: 5,
                source: 4,
                snapshot: true,
                uuid,
                name: name.clone(),
            },
            Record::Delete { volume: 5 },
            Record::Drop {
                volume: 5,
                keep: false,
            },
            Record::Resize {
                volume: 4,
                blocks: 10,
            },
            Record::Rename { volume: 4, name },
            Record::Flags {
                volume: 4,
                read_only: true,
                thick: false,
            },
            Record::Rollback {
                volume: 4,
                snapshot: 6,
                old: 7,
            },
            Record::Attributes {
                volume: 4,
                bytes: vec![1, 2, 3],
            },
        ]
    }

    fn all_records() -> Vec<Record> {
        records().into_iter().chain(later_records()).collect()
    }

    fn later_records() -> Vec<Record> {
        let uuid = [3; 16];
        vec![
            Record::Identity {
                volume: 4,
                uuid,
                nguid: [5; 16],
                eui64: [1, 2, 3, 4, 5, 6, 7, 8],
            },
            Record::Export {
                volume: 4,
                bytes: vec![4; 99],
            },
            Record::RenamePool {
                name: "another".to_owned(),
            },
            Record::Receive {
                volume: 4,
                state: Some(Receiving::new([1; 16], [2; 16], 9)),
            },
            Record::Receive {
                volume: 4,
                state: None,
            },
            Record::Limits {
                volume: 4,
                limits: Limits::parse(&[6; LIMITS_BYTES]),
            },
            Record::Origin {
                volume: 4,
                origin: 3,
            },
            Record::Extend { blocks: 99 },
            Record::Drop {
                volume: 5,
                keep: true,
            },
            Record::Recount { volume: 4, own: 7 },
            Record::Thresholds(Thresholds {
                warning_percent: 70,
                critical_percent: 90,
                hysteresis_percent: 5,
            }),
        ]
    }

    #[test]
    fn a_batch_reads_back() {
        let bytes = Batch::encode([1; 16], 42, &all_records(), Vec::new());
        let batch = Batch::parse(&bytes, [1; 16]).unwrap();
        assert_eq!((batch.sequence, batch.pages), (42, 1));
        assert_eq!(batch.records, all_records());
        assert_eq!(Batch::parse(&bytes, [2; 16]), None, "another pool's");
        let len: usize = all_records().iter().map(Record::encoded_len).sum();
        assert!(
            len + BATCH_HEADER_BYTES <= bytes.len()
                && bytes[len + BATCH_HEADER_BYTES..].iter().all(|b| *b == 0)
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = Batch::encode([1; 16], 42, &all_records(), Vec::new());
        let len = all_records().iter().map(Record::encoded_len).sum::<usize>() + BATCH_HEADER_BYTES;
        for at in 0..len {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << (at % 8);
            assert_eq!(Batch::parse(&wrong, [1; 16]), None, "byte {at}");
        }
    }
}
