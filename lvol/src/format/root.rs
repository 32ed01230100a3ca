//! A checkpoint's root: the extents that hold metadata, and the tables of all pages.
//!
//! Pages have numbers that stay while their places change. A table says for each number where its
//! newest page lies; tables are cut into pieces of a page, and the root says where the pieces lie.

use std::mem::size_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::Extent;

/// The tables: nodes of maps, counts of references, volumes.
pub const TABLES: usize = 3;

/// Where something lies, with its checksum and a number that the table gives a meaning.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
    PartialEq,
    Eq,
)]
#[repr(C)]
pub struct Pointer {
    /// The page's place, or 0 for none.
    pub location: U64,
    /// The page's checksum.
    pub crc: U32,
    /// For a node its references, for counts the extents that are free.
    pub number: U32,
}

const _: () = assert!(size_of::<Pointer>() == 16);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    generation: U64,
    chunks: U32,
    pieces: [U32; TABLES],
    lens: [U32; TABLES],
    reserved: [u8; 4],
}

const MAGIC: [u8; 8] = *b"CBROOT01";
const _: () = assert!(size_of::<Header>() == 48);

/// A root, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Root {
    /// The checkpoint it belongs to.
    pub generation: u64,
    /// The extents that hold the first and the second copy of metadata, in pairs.
    pub chunks: Vec<[Extent; 2]>,
    /// Where the pieces of each table lie.
    pub pieces: [Vec<Pointer>; TABLES],
    /// The entries of each table.
    pub lens: [u32; TABLES],
}

impl Root {
    /// The bytes of a root of so many pieces of tables and so many chunks.
    #[must_use]
    pub fn bytes_for(pieces: usize, chunks: usize) -> u64 {
        (size_of::<Header>() + (pieces + chunks) * size_of::<Pointer>()) as u64
    }

    /// The root's bytes, without padding.
    ///
    /// # Panics
    /// Where a list has more than 2^32 entries.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let count = |len: usize| U32::new(u32::try_from(len).expect("few"));
        let header = Header {
            magic: MAGIC,
            generation: self.generation.into(),
            chunks: count(self.chunks.len()),
            pieces: std::array::from_fn(|table| count(self.pieces[table].len())),
            lens: self.lens.map(U32::new),
            reserved: [0; 4],
        };
        let mut bytes = header.as_bytes().to_vec();
        for pair in &self.chunks {
            for extent in pair {
                bytes.extend(extent.0.to_le_bytes());
            }
        }
        for pieces in &self.pieces {
            bytes.extend(pieces.as_bytes());
        }
        bytes
    }

    /// The root in `bytes`, whose extents lie below `extents`.
    #[must_use]
    pub fn parse(bytes: &[u8], extents: u64) -> Option<Self> {
        let (header, mut rest) = Header::read_from_prefix(bytes).ok()?;
        if header.magic != MAGIC {
            return None;
        }
        let mut chunks = Vec::new();
        for _ in 0..header.chunks.get() {
            let (pair, after) = <[U64; 2]>::read_from_prefix(rest).ok()?;
            rest = after;
            let pair = pair.map(|extent| Extent(extent.get()));
            if pair.iter().any(|extent| extent.0 >= extents) {
                return None;
            }
            chunks.push(pair);
        }
        let mut pieces: [Vec<Pointer>; TABLES] = Default::default();
        for (table, list) in pieces.iter_mut().enumerate() {
            for _ in 0..header.pieces[table].get() {
                let (pointer, after) = Pointer::read_from_prefix(rest).ok()?;
                rest = after;
                list.push(pointer);
            }
        }
        Some(Self {
            generation: header.generation.get(),
            chunks,
            pieces,
            lens: header.lens.map(U32::get),
        })
    }
}
