//! How much of a task's slot an array's operations take: layers above need some of it, too.

use std::mem::size_of_val;

use corebay_conformance::{Bed, TestCore};
use corebay_core::{
    disk::{Disk, Durability, Space},
    units::{BlockSize, Lba},
};
use corebay_raid::geometry::Level;

use crate::support::ArrayBed;

/// What a slot shall be; it is twice that now (docs/adr/0001).
const SLOT_BYTES: usize = 4032;

#[test]
fn what_a_host_waits_for_takes_less_than_half_of_a_slot() {
    let bed = ArrayBed::new(Level::Raid5, 4, BlockSize::B4096);
    let core = TestCore::single();
    let array = bed.open(&core);
    let buffers = [core.buffer(4096)];
    let (at, cached) = (Lba(0), Durability::Cached);
    let sizes = [
        ("read", size_of_val(&array.read(at, &buffers))),
        ("write", size_of_val(&array.write(at, &buffers, cached))),
        (
            "write zeroes",
            size_of_val(&array.write_zeroes(at, 1, Space::Keep, cached)),
        ),
        ("deallocate", size_of_val(&array.deallocate(at, 1))),
        ("flush", size_of_val(&array.flush())),
    ];
    let too_large = |(_, bytes): &&(&str, usize)| *bytes > SLOT_BYTES / 2;
    assert_eq!(sizes.iter().find(too_large), None, "{sizes:?}");
}
