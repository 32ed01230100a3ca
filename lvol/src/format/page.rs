//! The pages of metadata: nodes of maps, counts of references, volumes, pieces of tables.
//!
//! A page begins with its kind and its number, so that one that was written to a wrong place is told
//! from the right one; its checksum lies in what refers to it.

use std::{mem::size_of, ops::Range};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    BLOCKS_PER_EXTENT, EXPORT_BYTES_MAX, Extent, NAME_BYTES_MAX, PAGE_BYTES, VOLUME_BLOCKS_MAX,
    export::Export,
    limits::{LIMITS_BYTES, Limits},
    root::Pointer,
};
use crate::bits::Bits;

/// The bytes of a page.
pub type PageBytes = [u8; PAGE_BYTES];

/// The extents that a leaf maps.
pub const LEAF_EXTENTS: usize = 64;

/// The children of an inner node.
pub const FANOUT: usize = 512;

/// The counts in a page.
pub const COUNTS_PER_PAGE: usize = 1020;

/// The entries of a table's piece.
pub const POINTERS_PER_PIECE: usize = 255;

/// The bytes that a volume carries for whoever exports it.
pub const ATTRIBUTES_MAX: usize = 2048;

const MAGIC: [u8; 4] = *b"CBPG";

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    kind: u8,
    detail: u8,
    reserved: [u8; 2],
    number: U64,
}

const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 16);

const INNER: u8 = 1;
const LEAF: u8 = 2;
const FRAGMENTS: u8 = 3;
const COUNTS: u8 = 4;
const VOLUME: u8 = 5;
const PIECE: u8 = 6;

fn begin(kind: u8, detail: u8, number: u64) -> PageBytes {
    let header = Header {
        magic: MAGIC,
        kind,
        detail,
        reserved: [0; 2],
        number: number.into(),
    };
    let mut page = [0; PAGE_BYTES];
    page[..HEADER].copy_from_slice(header.as_bytes());
    page
}

/// The kind and the detail of a page, if it is the page of this number.
fn open(page: &PageBytes, number: u64) -> Option<(u8, u8)> {
    let (header, _) = Header::read_from_prefix(page).ok()?;
    let right = header.magic == MAGIC && header.number.get() == number;
    right.then_some((header.kind, header.detail))
}

/// What a kind of page is held as in memory.
pub trait Body: Sized {
    /// The page.
    fn encode(&self, number: u64) -> PageBytes;

    /// What is in the page of this number. `None` where it is another page, or its bytes mean nothing.
    fn parse(page: &PageBytes, number: u64) -> Option<Self>;
}

/// Where a node of a map lies in the table of nodes; 0 is none.
pub type NodeId = u32;

/// What an extent of a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Entry {
    /// Nothing: it reads as zeroes.
    #[default]
    Hole,
    /// All blocks lie in one extent, each in its own place.
    Whole(Extent),
    /// Some blocks lie in one extent, each in its own place; the others are zeroes.
    Partial(Box<(Extent, Bits)>),
    /// The blocks lie in several extents: a page says where.
    Fragments(NodeId),
}

impl Entry {
    /// The entry for these blocks of one extent.
    pub fn of(extent: Extent, valid: Bits) -> Self {
        match valid == Bits::ALL {
            true => Self::Whole(extent),
            false => Self::Partial(Box::new((extent, valid))),
        }
    }

    /// The single extent that the blocks lie in, and which blocks do.
    pub fn single(&self) -> Option<(Extent, Bits)> {
        match self {
            Self::Whole(extent) => Some((*extent, Bits::ALL)),
            Self::Partial(partial) => Some(**partial),
            Self::Hole | Self::Fragments(_) => None,
        }
    }
}

/// The lowest node of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub entries: [Entry; LEAF_EXTENTS],
    /// Which volume has established, at which of its epochs, that some entries are its own. Not
    /// on the disk.
    pub owner: (u32, u32),
    /// Those entries: their valid blocks may be written in place.
    pub owned: u64,
    /// Everything that the entries refer to was in memory after so many evictions. Not on the disk.
    pub complete: Option<u64>,
}

impl Leaf {
    pub fn empty() -> Self {
        Self {
            entries: std::array::from_fn(|_| Entry::Hole),
            owner: (0, 0),
            owned: 0,
            complete: None,
        }
    }
}

/// Which extent each block of an extent of a volume lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fragments {
    /// The extent of each block, as stored: 0 is none.
    pub owners: [u64; BLOCKS_PER_EXTENT],
    /// The extent that newly written blocks go to, if nobody else refers to it.
    pub target: Extent,
    /// A block that came to the target lately, where one of the target's is looked for first. Not kept on
    /// the disk.
    pub hint: u8,
}

impl Fragments {
    pub fn new(owners: [u64; BLOCKS_PER_EXTENT], target: Extent) -> Self {
        Self {
            owners,
            target,
            hint: 0,
        }
    }

    /// Blocks lie in the extent now, and it is the target.
    #[inline]
    pub fn put(&mut self, blocks: &Range<usize>, extent: Extent) {
        let stored = Extent::to_stored(Some(extent));
        // Mostly it is one block.
        match blocks.len() {
            1 => self.owners[blocks.start] = stored,
            _ => self.owners[blocks.clone()].fill(stored),
        }
        self.target = extent;
        self.hint = u8::try_from(blocks.start).unwrap_or(0);
    }
}

/// A node of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Inner(Box<[NodeId; FANOUT]>),
    Leaf(Box<Leaf>),
    Fragments(Box<Fragments>),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    /// The top byte is the entry's kind.
    target: U64,
    valid: [U64; BLOCKS_PER_EXTENT / 64],
}

const _: () = assert!(size_of::<RawEntry>() == 40);
const _: () = assert!(HEADER + LEAF_EXTENTS * size_of::<RawEntry>() <= PAGE_BYTES);
const _: () = assert!(HEADER + FANOUT * 4 <= PAGE_BYTES);
const _: () = assert!(HEADER + 8 + BLOCKS_PER_EXTENT * 8 <= PAGE_BYTES);

const ENTRY_WHOLE: u64 = 1 << 56;
const ENTRY_PARTIAL: u64 = 2 << 56;
const ENTRY_FRAGMENTS: u64 = 3 << 56;
const ENTRY_NUMBER: u64 = (1 << 56) - 1;

impl RawEntry {
    fn of(entry: &Entry) -> Self {
        let (target, valid) = match entry {
            Entry::Hole => (0, Bits::default()),
            Entry::Whole(extent) => (ENTRY_WHOLE | extent.0, Bits::ALL),
            Entry::Partial(partial) => (ENTRY_PARTIAL | partial.0.0, partial.1),
            Entry::Fragments(node) => (ENTRY_FRAGMENTS | u64::from(*node), Bits::default()),
        };
        Self {
            target: target.into(),
            valid: valid.0.map(U64::new),
        }
    }

    fn parse(&self) -> Option<Entry> {
        let valid = Bits(self.valid.map(U64::get));
        let number = self.target.get() & ENTRY_NUMBER;
        Some(match self.target.get() & !ENTRY_NUMBER {
            0 if number == 0 => Entry::Hole,
            ENTRY_WHOLE => Entry::Whole(Extent(number)),
            ENTRY_PARTIAL => Entry::of(Extent(number), valid),
            ENTRY_FRAGMENTS => Entry::Fragments(u32::try_from(number).ok()?),
            _ => return None,
        })
    }
}

impl Body for Node {
    fn encode(&self, number: u64) -> PageBytes {
        match self {
            Self::Inner(children) => {
                let mut page = begin(INNER, 0, number);
                for (place, child) in page[HEADER..].chunks_exact_mut(4).zip(children.iter()) {
                    place.copy_from_slice(&child.to_le_bytes());
                }
                page
            }
            Self::Leaf(leaf) => {
                let mut page = begin(LEAF, 0, number);
                let places = page[HEADER..].chunks_exact_mut(size_of::<RawEntry>());
                for (place, entry) in places.zip(&leaf.entries) {
                    place.copy_from_slice(RawEntry::of(entry).as_bytes());
                }
                page
            }
            Self::Fragments(fragments) => {
                let mut page = begin(FRAGMENTS, 0, number);
                page[HEADER..HEADER + 8].copy_from_slice(&fragments.target.0.to_le_bytes());
                let places = page[HEADER + 8..].chunks_exact_mut(8);
                for (place, owner) in places.zip(&fragments.owners) {
                    place.copy_from_slice(&owner.to_le_bytes());
                }
                page
            }
        }
    }

    fn parse(page: &PageBytes, number: u64) -> Option<Self> {
        let (kind, _) = open(page, number)?;
        let body = &page[HEADER..];
        match kind {
            INNER => {
                let (children, _) = <[U32; FANOUT]>::read_from_prefix(body).ok()?;
                Some(Self::Inner(Box::new(children.map(U32::get))))
            }
            LEAF => {
                let (raw, _) = <[RawEntry; LEAF_EXTENTS]>::read_from_prefix(body).ok()?;
                let mut leaf = Leaf::empty();
                leaf.complete = None;
                for (entry, raw) in leaf.entries.iter_mut().zip(&raw) {
                    *entry = raw.parse()?;
                }
                Some(Self::Leaf(Box::new(leaf)))
            }
            FRAGMENTS => {
                let (target, rest) = U64::read_from_prefix(body).ok()?;
                let (owners, _) = <[U64; BLOCKS_PER_EXTENT]>::read_from_prefix(rest).ok()?;
                let fragments = Fragments::new(owners.map(U64::get), Extent(target.get()));
                Some(Self::Fragments(Box::new(fragments)))
            }
            _ => None,
        }
    }
}

/// How often the extents of a part of the pool are referred to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub references: Box<[u32; COUNTS_PER_PAGE]>,
    /// Extents without references that may not be given out yet. Not on the disk.
    pub busy: Box<[bool; COUNTS_PER_PAGE]>,
}

impl Counts {
    pub fn empty() -> Self {
        Self {
            references: Box::new([0; COUNTS_PER_PAGE]),
            busy: Box::new([false; COUNTS_PER_PAGE]),
        }
    }
}

const _: () = assert!(HEADER + COUNTS_PER_PAGE * 4 == PAGE_BYTES);

impl Body for Counts {
    fn encode(&self, number: u64) -> PageBytes {
        let mut page = begin(COUNTS, 0, number);
        let places = page[HEADER..].chunks_exact_mut(4);
        for (place, count) in places.zip(self.references.iter()) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        page
    }

    fn parse(page: &PageBytes, number: u64) -> Option<Self> {
        let (kind, _) = open(page, number)?;
        let (counts, _) = <[U32; COUNTS_PER_PAGE]>::read_from_prefix(&page[HEADER..]).ok()?;
        let mut body = Self::empty();
        *body.references = counts.map(U32::get);
        (kind == COUNTS).then_some(body)
    }
}

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Hosts write to it.
    Volume,
    /// It stays as it is.
    Snapshot,
    /// Its name is gone, and its space is being given back.
    Dying,
}

/// How much of a stream a volume has received.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Receiving {
    /// The UUID of the snapshot that it is the difference to; zeroes for a whole one.
    pub from: [u8; 16],
    /// The UUID of the snapshot that comes.
    pub to: [u8; 16],
    next: U64,
}

impl Receiving {
    /// A stream of which everything before block `next` is there.
    #[must_use]
    pub fn new(from: [u8; 16], to: [u8; 16], next: u64) -> Self {
        let next = next.into();
        Self { from, to, next }
    }

    /// The block from which on the stream is to be sent again.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next.get()
    }
}

/// A volume, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// What it is for.
    pub kind: Kind,
    /// Nothing may be written to it.
    pub read_only: bool,
    /// Space for all its blocks is reserved.
    pub thick: bool,
    /// Its name, one of a kind in the pool.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its size.
    pub blocks: u64,
    /// The number of what it was taken of, or its own.
    pub origin: u32,
    /// Counts volumes and snapshots as they are made; never used again.
    pub serial: u64,
    /// The serial of what it was taken of, or its own.
    pub origin_serial: u64,
    /// Blocks that hold something.
    pub mapped: u64,
    /// What its exporter keeps with it.
    pub attributes: Vec<u8>,
    /// The namespace's NGUID; zeroes are none.
    pub nguid: [u8; 16],
    /// The namespace's EUI64; zeroes are none.
    pub eui64: [u8; 8],
    /// How hosts reach it, if they do.
    pub export: Option<Export>,
    /// How much hosts may do with it.
    pub limits: Limits,
    /// The stream that it is being made of; nobody may use it before that is done.
    pub receiving: Option<Receiving>,
    pub(crate) root: NodeId,
    pub(crate) height: u8,
    /// Extents that were given to it and not shared since.
    pub(crate) own_extents: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVolume {
    blocks: U64,
    mapped: U64,
    own_extents: U64,
    root: U32,
    origin: U32,
    uuid: [u8; 16],
    height: u8,
    flags: u8,
    name_len: u8,
    reserved: u8,
    attributes_len: U32,
    name: [u8; 256],
}

const _: () = assert!(size_of::<RawVolume>() == 312);
const _: () = assert!(HEADER + size_of::<RawVolume>() + ATTRIBUTES_MAX <= PAGE_BYTES);

/// What lies behind a volume's attributes, whatever their length. In pools of version 1 all of it is
/// zero.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtra {
    nguid: [u8; 16],
    eui64: [u8; 8],
    receiving: Receiving,
    flags: u8,
    limits: [u8; LIMITS_BYTES],
    reserved: [u8; 13],
    export_len: U16,
}

const EXTRA_AT: usize = HEADER + size_of::<RawVolume>() + ATTRIBUTES_MAX;
const EXPORT_AT: usize = EXTRA_AT + size_of::<RawExtra>();
const _: () = assert!(EXTRA_AT == 2376 && EXPORT_AT == 2520);
const SERIALS_AT: usize = EXPORT_AT + EXPORT_BYTES_MAX;
const _: () = assert!(SERIALS_AT == 4056);

const READ_ONLY: u8 = 1;
const THICK: u8 = 2;

const RECEIVING: u8 = 1;

impl Body for VolumeRecord {
    fn encode(&self, number: u64) -> PageBytes {
        let mut page = begin(VOLUME, self.kind as u8, number);
        let read_only = if self.read_only { READ_ONLY } else { 0 };
        let flags = read_only | if self.thick { THICK } else { 0 };
        let mut raw = RawVolume {
            blocks: self.blocks.into(),
            mapped: self.mapped.into(),
            own_extents: self.own_extents.into(),
            root: self.root.into(),
            origin: self.origin.into(),
            uuid: self.uuid,
            height: self.height,
            flags,
            name_len: u8::try_from(self.name.len()).expect("names were checked"),
            reserved: 0,
            attributes_len: u32::try_from(self.attributes.len()).expect("few").into(),
            name: [0; 256],
        };
        raw.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let body = &mut page[HEADER..];
        body[..size_of::<RawVolume>()].copy_from_slice(raw.as_bytes());
        body[size_of::<RawVolume>()..][..self.attributes.len()].copy_from_slice(&self.attributes);
        let export = self.export.as_ref().map(Export::encode);
        let export = export.map_or(Vec::new(), |bytes| bytes.expect("exports were checked"));
        let extra = RawExtra {
            nguid: self.nguid,
            eui64: self.eui64,
            receiving: self
                .receiving
                .unwrap_or(Receiving::new([0; 16], [0; 16], 0)),
            flags: if self.receiving.is_some() {
                RECEIVING
            } else {
                0
            },
            limits: self.limits.encode(),
            reserved: [0; 13],
            export_len: u16::try_from(export.len()).expect("few").into(),
        };
        page[EXTRA_AT..EXPORT_AT].copy_from_slice(extra.as_bytes());
        page[EXPORT_AT..][..export.len()].copy_from_slice(&export);
        let serials = [U64::new(self.serial), U64::new(self.origin_serial)];
        page[SERIALS_AT..][..16].copy_from_slice(serials.as_bytes());
        page
    }

    fn parse(page: &PageBytes, number: u64) -> Option<Self> {
        let (kind, detail) = open(page, number)?;
        let (raw, rest) = RawVolume::read_from_prefix(&page[HEADER..]).ok()?;
        let kinds = [Kind::Volume, Kind::Snapshot, Kind::Dying];
        let is = *kinds.iter().find(|kind| **kind as u8 == detail)?;
        let attributes = rest.get(..raw.attributes_len.get() as usize)?;
        let (extra, export) = RawExtra::read_from_prefix(&page[EXTRA_AT..]).ok()?;
        let (serials, _) = <[U64; 2]>::read_from_prefix(&page[SERIALS_AT..]).ok()?;
        let export = match usize::from(extra.export_len.get()) {
            0 => None,
            len => Some(Export::parse(export.get(..len)?)?),
        };
        let sane = kind == VOLUME
            && attributes.len() <= ATTRIBUTES_MAX
            && (1..=VOLUME_BLOCKS_MAX).contains(&raw.blocks.get())
            && raw.height == height_for(raw.blocks.get());
        let name = raw.name[..usize::from(raw.name_len).min(NAME_BYTES_MAX)].to_vec();
        sane.then_some(Self {
            kind: is,
            read_only: raw.flags & READ_ONLY != 0,
            thick: raw.flags & THICK != 0,
            name: String::from_utf8(name).ok()?,
            uuid: raw.uuid,
            blocks: raw.blocks.get(),
            origin: raw.origin.get(),
            serial: serials[0].get(),
            origin_serial: serials[1].get(),
            mapped: raw.mapped.get(),
            attributes: attributes.to_vec(),
            nguid: extra.nguid,
            eui64: extra.eui64,
            export,
            limits: Limits::parse(&extra.limits),
            receiving: (extra.flags & RECEIVING != 0).then_some(extra.receiving),
            root: raw.root.get(),
            height: raw.height,
            own_extents: raw.own_extents.get(),
        })
    }
}

/// The levels of inner nodes over the leaves of a volume of so many blocks.
#[must_use]
pub fn height_for(blocks: u64) -> u8 {
    let mut height = 0;
    let mut reach = (LEAF_EXTENTS * BLOCKS_PER_EXTENT) as u64;
    while reach < blocks {
        reach *= FANOUT as u64;
        height += 1;
    }
    height
}

/// A piece of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece(pub Box<[Pointer; POINTERS_PER_PIECE]>);

const _: () = assert!(HEADER + POINTERS_PER_PIECE * size_of::<Pointer>() == PAGE_BYTES);

impl Body for Piece {
    fn encode(&self, number: u64) -> PageBytes {
        let mut page = begin(PIECE, 0, number);
        page[HEADER..].copy_from_slice(self.0.as_bytes());
        page
    }

    fn parse(page: &PageBytes, number: u64) -> Option<Self> {
        let (kind, _) = open(page, number)?;
        let pointers = <[Pointer; POINTERS_PER_PIECE]>::read_from_bytes(&page[HEADER..]).ok()?;
        (kind == PIECE).then(|| Self(Box::new(pointers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_reads_back_and_only_under_its_number() {
        let mut leaf = Leaf::empty();
        leaf.entries[0] = Entry::Whole(Extent(7));
        leaf.entries[5] = Entry::of(Extent(8), Bits::of(3..9));
        leaf.entries[63] = Entry::Fragments(77);
        let page = Node::Leaf(Box::new(leaf.clone())).encode(9);
        leaf.complete = None;
        assert_eq!(Node::parse(&page, 9), Some(Node::Leaf(Box::new(leaf))));
        assert_eq!(Node::parse(&page, 10), None);
        assert_eq!(Counts::parse(&page, 9), None);
    }

    #[test]
    fn a_volume_reads_back_with_all_that_it_carries() {
        let mut record = VolumeRecord::new(Kind::Volume, [3; 16], &"n".repeat(255));
        record.attributes = vec![7; ATTRIBUTES_MAX];
        (record.nguid, record.eui64) = ([4; 16], [5; 8]);
        (record.serial, record.origin_serial) = (10, 11);
        record.limits.write_bytes.burst = 9;
        record.receiving = Some(Receiving::new([6; 16], [7; 16], 8));
        let page = record.encode(9);
        assert_eq!(VolumeRecord::parse(&page, 9), Some(record.clone()));
        let mut export = Export {
            subsystem: "s".repeat(223),
            nsid: 1,
            ..Export::default()
        };
        while export.encode().is_some() {
            record.export = Some(export.clone());
            export.hosts.push(format!("{:0223}", export.hosts.len()));
        }
        let page = record.encode(9);
        assert_eq!(VolumeRecord::parse(&page, 9), Some(record));
    }

    #[test]
    fn heights_reach_the_largest_volume() {
        let leaf = (LEAF_EXTENTS * BLOCKS_PER_EXTENT) as u64;
        assert_eq!(height_for(1), 0);
        assert_eq!(height_for(leaf), 0);
        assert_eq!(height_for(leaf + 1), 1);
        assert_eq!(height_for(leaf * 512 + 1), 2);
        assert_eq!(height_for(VOLUME_BLOCKS_MAX), 3);
    }
}
