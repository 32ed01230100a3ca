//! The conformance suite over arrays of every level, and over their mirrored zones.

use corebay_conformance::conformance_tests;
use corebay_raid::geometry::Level;

use crate::support::{ArrayBed, ZoneBed, ec};

macro_rules! levels {
    ($($name:ident: $make:expr;)+) => {
        $(mod $name {
            use super::*;
            conformance_tests!($make);
        })+
    };
}

levels! {
    raid0: |size| ArrayBed::new(Level::Striped, 3, size);
    raid1_one_leg: |size| ArrayBed::new(Level::Mirrored, 1, size);
    raid1: |size| ArrayBed::new(Level::Mirrored, 2, size);
    raid1_four_legs: |size| ArrayBed::new(Level::Mirrored, 4, size);
    raid10: |size| ArrayBed::new(Level::StripedMirrors, 4, size);
    raid5: |size| ArrayBed::new(Level::Raid5, 4, size);
    raid5_dirty_regions: |size| ArrayBed::dirty(Level::Raid5, 4, size);
    raid6: |size| ArrayBed::new(Level::Raid6, 5, size);
    ec_4_3: |size| ArrayBed::new(ec(4, 3), 7, size);
    raid5_zone: |size| ZoneBed::new(Level::Raid5, 3, size);
}
