//! Pools whose journal lies in the mirrored zone beside their disk.

use std::rc::Rc;

use corebay_conformance::TestCore;
use corebay_core::{disk::Durability, units::BlockSize};
use corebay_lvol::{
    CheckReport, PoolDisk, check,
    error::PoolError,
    format::{
        COPIES, JournalPlace, PAGE_BYTES, SUPERBLOCK_AT,
        record::Batch,
        superblock::Superblock,
        zone::{ZONE_HEAD_AT, is_zone_head, zone_head},
    },
};

use crate::support::{Medium, MediumDisk, Node, context, disk::ZONE_AT, offline_check, options};

const PAGE: u64 = PAGE_BYTES as u64;
const ZONE_BYTES: u64 = 300 << 10;

/// Where a byte of the zone lies on its medium.
fn in_zone(at: u64) -> u64 {
    BlockSize::B512.bytes_of(ZONE_AT) + at
}

fn plain() -> Medium {
    Medium::new(BlockSize::B512, 8 << 20, true, 1)
}

fn superblock(medium: &Medium) -> Superblock {
    Superblock::parse(&medium.bytes(SUPERBLOCK_AT[0], PAGE)).unwrap()
}

fn version(medium: &Medium) -> u32 {
    let bytes = medium.bytes(SUPERBLOCK_AT[0], PAGE);
    u32::from_le_bytes(bytes[8..12].try_into().unwrap())
}

/// A pool that has lost its power, with a volume that holds 1 in its first five blocks by its journal.
fn pool(medium: Medium) -> Medium {
    medium.soil();
    let node = Node::create(&medium);
    let volume = node.open(node.create_volume("v", 300));
    node.write(&volume, 0, 5, 1, Durability::Durable).unwrap();
    drop((volume, node));
    medium.cut_power();
    medium
}

fn expect_volume(medium: &Medium) -> Node {
    assert_eq!(offline_check(medium).problems, Vec::<String>::new());
    let node = Node::import(medium).expect("the pool");
    let volume = node.open(node.pool.find("v").expect("its volume"));
    assert_eq!(node.tags(&volume, 0, 6), [1, 1, 1, 1, 1, 0]);
    drop(Rc::into_inner(volume));
    node.checked();
    node
}

fn refusal(medium: &Medium) -> PoolError {
    let changes = medium.changes();
    let refused = Node::import(medium).map(drop).expect_err("a refusal");
    assert_eq!(medium.changes(), changes, "it is left as it is");
    assert_eq!(checked(medium.open_all()), Err(refused.clone()));
    refused
}

fn checked(disk: PoolDisk<MediumDisk>) -> Result<CheckReport, PoolError> {
    let core = TestCore::single();
    let context = context(&core);
    core.run(async move { check(&context, disk).await })
}

#[test]
fn the_journal_lies_in_the_zone_and_nowhere_else() {
    let medium = pool(plain().with_zone(ZONE_BYTES));
    let layout = superblock(&medium).layout;
    assert_eq!((version(&medium), layout.journal), (3, JournalPlace::Zone));
    let uuid = options().uuid;
    for (copy, at) in ZONE_HEAD_AT.into_iter().enumerate() {
        let head = medium.bytes(in_zone(at), PAGE);
        assert!(is_zone_head(&head, uuid));
        let batch = medium.bytes(in_zone(layout.journal_at(copy)), PAGE);
        assert!(Batch::sequence_of(&batch, uuid).is_some(), "copy {copy}");
    }
    // Before the extents there are roots alone.
    let areas = 2 * COPIES as u64 * layout.root_bytes;
    assert_eq!(layout.data_at(), (128 << 10) + areas);
    assert!(superblock(&pool(plain())).layout.data_at() > layout.data_at());
    let node = expect_volume(&medium);
    assert!(node.pool.status().journal_in_zone);
}

#[test]
fn a_zone_without_room_for_a_journal_is_left_alone() {
    for zone in [0, 4096, (256 << 10) + 8192 - 4096] {
        let medium = pool(plain().with_zone(zone));
        let layout = superblock(&medium).layout;
        assert_eq!((version(&medium), layout.journal), (2, JournalPlace::Disk));
        assert!(!expect_volume(&medium).pool.status().journal_in_zone);
    }
    let medium = pool(plain().with_zone((256 << 10) + 8192));
    assert_eq!(superblock(&medium).layout.journal, JournalPlace::Zone);
}

#[test]
fn a_pool_that_was_made_without_a_zone_goes_on_beside_one() {
    let medium = pool(plain()).with_zone(ZONE_BYTES);
    let node = expect_volume(&medium);
    node.create_volume("w", 10);
    node.checkpoint();
    assert!(!node.pool.status().journal_in_zone);
    drop(node);
    assert_eq!(version(&medium), 2);
    let zone = medium.bytes(in_zone(0), 1 << 16);
    assert!(
        zone.iter().all(|byte| *byte == 0),
        "nothing was written there"
    );
    assert!(expect_volume(&medium).pool.find("w").is_some());
}

#[test]
fn without_its_zone_a_pool_is_refused() {
    let medium = pool(plain().with_zone(ZONE_BYTES));
    let none = "this disk has none";
    assert_eq!(
        refusal(&medium.clone().with_zone(0)),
        PoolError::NoZone(none)
    );
    let alone = checked(PoolDisk::from(medium.open()));
    assert_eq!(alone, Err(PoolError::NoZone(none)));
    let smaller = PoolError::NoZone("this one is smaller");
    assert_eq!(refusal(&medium.clone().with_zone(ZONE_BYTES / 2)), smaller);
    // The disk was copied to one beside another zone: blank, or another pool's.
    let wrong = PoolError::NoZone("this one does not hold it");
    for head in [vec![0; PAGE_BYTES], zone_head([9; 16]).to_vec()] {
        let copy = medium.copy(1);
        for at in ZONE_HEAD_AT {
            copy.overwrite(in_zone(at), &head);
        }
        assert_eq!(refusal(&copy), wrong);
    }
    expect_volume(&medium);
}

#[test]
fn a_damaged_copy_in_the_zone_is_mended_from_the_other() {
    let medium = pool(plain().with_zone(ZONE_BYTES));
    let journal = |copy| {
        let at = in_zone(superblock(&medium).layout.journal_at(copy));
        at..at + superblock(&medium).layout.journal_bytes
    };
    for (copy, at) in ZONE_HEAD_AT.into_iter().enumerate() {
        let head = in_zone(at)..in_zone(at) + PAGE;
        for lost in [false, true] {
            let medium = medium.copy(1);
            for range in [head.clone(), journal(copy)] {
                match lost {
                    true => medium.lose(range),
                    false => medium.damage(range),
                }
            }
            assert_eq!(offline_check(&medium).damaged_copies, 1);
            drop(expect_volume(&medium));
            assert_eq!(offline_check(&medium).damaged_copies, 0);
            assert!(is_zone_head(
                &medium.bytes(head.start, PAGE),
                options().uuid
            ));
        }
    }
}

#[test]
fn an_open_pool_mends_the_head_of_its_zone() {
    let medium = pool(plain().with_zone(ZONE_BYTES));
    let node = expect_volume(&medium);
    medium.damage(in_zone(PAGE)..in_zone(2 * PAGE));
    assert_eq!(node.checked().damaged_copies, 1);
    assert_eq!(node.checked().damaged_copies, 0);
    medium.damage(in_zone(0)..in_zone(2 * PAGE));
    let report = node.run(|pool| async move { pool.check().await }).unwrap();
    assert!(report.problems[0].contains("mirrored zone"), "{report:?}");
}

#[test]
fn a_journal_that_is_full_begins_anew_within_its_zone() {
    let medium = plain().with_zone(ZONE_BYTES);
    let node = Node::create(&medium);
    let volume = node.open(node.create_volume("v", 6000));
    // Many times as many batches as it has pages.
    for at in 0..500 {
        node.write(&volume, at * 12, 1, at + 1, Durability::Durable)
            .unwrap();
    }
    assert!(node.pool.status().journal_bytes > 4 * ZONE_BYTES);
    drop((volume, node));
    medium.cut_power();
    let node = Node::import(&medium).unwrap();
    let volume = node.open(node.pool.find("v").unwrap());
    let tags = node.tags(&volume, 0, 6000);
    assert!((0..500).all(|at| tags[at as usize * 12] == at + 1));
    node.checked();
}
