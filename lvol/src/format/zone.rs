//! The head of a mirrored zone: whose journal lies there.
//!
//! A zone is no part of the disk that the superblocks lie on. Who copies that disk, or puts another zone
//! beside it, leaves a journal that says nothing of what was acknowledged: the head tells.

use std::mem::{offset_of, size_of};

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U32,
};

use super::{COPIES, PAGE_BYTES, crc32c};

/// What it begins with.
const MAGIC: [u8; 8] = *b"COREBAYZ";

/// Where the copies lie, in bytes from the zone's start. They are written once, before there is a pool.
pub const ZONE_HEAD_AT: [u64; COPIES] = [0, PAGE_BYTES as u64];

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    reserved_front: U32,
    crc: U32,
    uuid: [u8; 16],
    reserved: [u8; PAGE_BYTES - 32],
}

const _: () = assert!(size_of::<Raw>() == PAGE_BYTES);
const _: () = assert!(offset_of!(Raw, crc) == 12 && offset_of!(Raw, uuid) == 16);

/// The page that says that the journal of this pool lies in the zone.
#[must_use]
pub fn zone_head(pool: [u8; 16]) -> [u8; PAGE_BYTES] {
    let mut raw = Raw::new_zeroed();
    raw.magic = MAGIC;
    raw.uuid = pool;
    raw.crc = crc32c(raw.as_bytes()).into();
    let mut page = [0; PAGE_BYTES];
    page.copy_from_slice(raw.as_bytes());
    page
}

/// Whether a page is the head of the zone with the journal of this pool.
#[must_use]
pub fn is_zone_head(page: &[u8], pool: [u8; 16]) -> bool {
    page == zone_head(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_names_its_pool_alone() {
        let head = zone_head([7; 16]);
        assert!(is_zone_head(&head, [7; 16]));
        assert!(!is_zone_head(&head, [8; 16]));
        assert!(!is_zone_head(&[0; PAGE_BYTES], [0; 16]));
        let mut torn = head;
        torn[4000] = 1;
        assert!(!is_zone_head(&torn, [7; 16]));
    }
}
