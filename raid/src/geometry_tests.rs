//! The geometry against a slow model: each block has one place, and bands cover a range exactly.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn levels() -> Vec<Level> {
    let ec = |data, parity| Level::ErasureCode { data, parity };
    vec![
        Level::Striped,
        Level::Mirrored,
        Level::StripedMirrors,
        Level::Raid5,
        Level::Raid6,
        ec(1, 1),
        ec(4, 3),
        ec(24, 4),
    ]
}

fn geometry(level: Level, roles: usize, strip_bytes: u32, stripes: u64) -> Geometry {
    let wish = Wish {
        strip_bytes,
        ..Wish::new(level, roles, BlockSize::B512)
    };
    let geometry = Geometry::new(wish, 1 << 40).unwrap();
    geometry.with_stripes(stripes).unwrap()
}

fn roles_for(level: Level, wanted: usize) -> usize {
    match level {
        Level::ErasureCode { data, parity } => usize::from(data + parity),
        Level::Mirrored => 1 + wanted % 4,
        Level::StripedMirrors => 4 + wanted % 8 * 2,
        _ => 4 + wanted % 8,
    }
}

#[test]
fn every_strip_of_a_stripe_has_a_role_of_its_own() {
    for level in levels() {
        let geometry = geometry(level, roles_for(level, 3), 16 << 10, 100);
        for stripe in 0..100 {
            let mut roles = BTreeSet::new();
            if geometry.copies() > 1 {
                let legs = (0..geometry.data()).flat_map(|strip| geometry.legs_of(strip));
                roles.extend(legs);
            } else {
                let indices = 0..geometry.data() + geometry.parity();
                for index in indices {
                    let role = geometry.role_of(stripe, index);
                    assert_eq!(geometry.index_of(stripe, role), index);
                    roles.insert(role);
                }
            }
            assert_eq!(roles, (0..geometry.roles()).collect(), "{level}");
        }
    }
}

#[test]
fn parity_is_shared_out_evenly() {
    let geometry = geometry(Level::Raid6, 6, 16 << 10, 60);
    let mut count = BTreeMap::new();
    for stripe in 0..60 {
        for index in 4..6 {
            *count.entry(geometry.role_of(stripe, index)).or_insert(0) += 1;
        }
    }
    assert!(count.values().all(|&times| times == 20), "{count:?}");
}

/// The left-symmetric layout as everybody draws it.
#[test]
fn the_layout_is_left_symmetric() {
    let geometry = geometry(Level::Raid5, 4, 16 << 10, 4);
    let drawn: Vec<Vec<usize>> = (0..4)
        .map(|stripe| {
            (0..4)
                .map(|index| geometry.role_of(stripe, index))
                .collect()
        })
        .collect();
    let expected = [[0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0]];
    assert_eq!(drawn, expected);
}

proptest! {
    #[test]
    fn bands_and_pieces_cover_a_range_exactly(
        which in 0usize..8, roles in 0usize..8, shift in 14u32..19,
        start in 0u64..5000, blocks in 1u64..3000,
    ) {
        let level = levels()[which];
        let geometry = geometry(level, roles_for(level, roles), 1 << shift, 1 << 20);
        let range = start * 512..(start + blocks) * 512;
        let mut expected = BTreeSet::new();
        for block in start..start + blocks {
            let at = block * 512;
            let strip_bytes = 1u64 << shift;
            let stripe = at / (strip_bytes * geometry.data() as u64);
            let strip = at / strip_bytes % geometry.data() as u64;
            expected.insert((stripe, strip, at % strip_bytes));
        }
        let bands = geometry.bands(range.clone()).collect::<Vec<_>>();
        let pieces = geometry.pieces(range.clone(), 32 << 10).collect::<Vec<_>>();
        for (kind, list) in [("bands", bands), ("pieces", pieces)] {
            let mut found = BTreeSet::new();
            for band in list {
                prop_assert!(kind == "pieces" || band.row_bytes() <= UNIT_BYTES_MAX as usize);
                for strip in band.strips.clone() {
                    for row in band.rows.clone().step_by(512) {
                        let place = (band.stripe, strip as u64, u64::from(row));
                        prop_assert!(found.insert(place), "{kind}: twice {place:?}");
                        let at = geometry.array_offset(band.stripe, strip, row);
                        prop_assert!(range.contains(&at));
                    }
                }
            }
            prop_assert_eq!(&found, &expected, "{}", kind);
        }
    }
}

#[test]
fn a_whole_stripe_is_one_band_per_unit() {
    let geometry = geometry(Level::Raid5, 5, 256 << 10, 8);
    let bands: Vec<Band> = geometry.bands(1 << 20..2 << 20).collect();
    assert_eq!(bands.len(), 2);
    assert!(bands.iter().all(|band| band.strips == (0..4)));
}

#[test]
fn what_does_not_fit_is_refused() {
    let refusal = |change: &dyn Fn(&mut Wish), bytes| {
        let mut wish = Wish::new(Level::Raid5, 4, BlockSize::B4096);
        change(&mut wish);
        Geometry::new(wish, bytes).unwrap_err().to_string()
    };
    let large = 1 << 40;
    assert_eq!(
        refusal(&|wish| wish.roles = 2, large),
        "RAID 5 takes 3 to 25 members, not 2"
    );
    assert_eq!(
        refusal(
            &|wish| (wish.level, wish.roles) = (Level::StripedMirrors, 5),
            large
        ),
        "RAID 10 takes 4 to 32 members, an even number, not 5"
    );
    let ec = |data, parity| Level::ErasureCode { data, parity };
    assert_eq!(
        refusal(&|wish| wish.level = ec(4, 2), large),
        "ec 4+2 takes 6 members, not 4"
    );
    assert!(refusal(&|wish| wish.level = ec(4, 0), large).contains("ec 4+0"));
    assert!(refusal(&|wish| wish.strip_bytes = 48 << 10, large).contains("power of two"));
    assert!(refusal(&|wish| wish.strip_bytes = 8 << 10, large).contains("strip of 8192"));
    assert!(refusal(&|wish| wish.journal_slots = 1, large).contains("journal of 1"));
    assert!(refusal(&|wish| wish.zone_bytes = 1, large).contains("zone of 1"));
    assert!(refusal(&|_| (), 1 << 20).contains("too small"));
}

#[test]
fn the_usual_zone_is_a_small_part_of_a_member_and_for_parity_alone() {
    let usual = |level, mib: u64| Wish::usual_zone_bytes(level, mib << 20) >> 10;
    assert_eq!(
        [31, 32, 64].map(|mib| usual(Level::Raid5, mib)),
        [0, 512, 1024]
    );
    assert_eq!(
        [513, 1 << 20].map(|mib| usual(Level::Raid6, mib)),
        [8192; 2]
    );
    for level in [Level::Striped, Level::Mirrored, Level::StripedMirrors] {
        assert_eq!(usual(level, 1 << 20), 0);
    }
    let bytes = Wish::usual_zone_bytes(Level::Raid5, (100 << 20) + 4096);
    assert!(bytes.is_multiple_of(4096) && bytes > 1 << 20);
}
