//! Damaged metadata: one copy is mended from the other, and with both gone the pool is refused or the
//! read fails. Nothing panics, and nothing wrong is read.

use std::{ops::Range, rc::Rc};

use crate::support::{self, Medium, MediumDisk, Node, offline_check};
use corebay_core::{
    disk::{Disk, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{
    Volume,
    error::PoolError,
    format::{
        COPIES, Layout, PAGE_BYTES, SUPERBLOCK_AT, VERSION, crc32c,
        root::Root,
        superblock::{Superblock, Thresholds},
    },
};

const BLOCKS: u64 = 3000;

/// A pool with a volume that holds 1 in its first 600 blocks, fragments and a snapshot; the journal
/// holds something too.
fn pool() -> (Medium, Vec<u64>) {
    let medium = Medium::new(BlockSize::B512, 8 << 20, false, 1);
    medium.soil();
    let node = Node::create(&medium);
    let id = node.create_volume("v", BLOCKS);
    let volume = node.open(id);
    node.write(&volume, 0, 600, 1, Durability::Cached).unwrap();
    node.snapshot(id, "s");
    node.write(&volume, 5, 9, 2, Durability::Cached).unwrap();
    node.checkpoint();
    node.write(&volume, 700, 5, 3, Durability::Cached).unwrap();
    node.write(&volume, 6, 1, 4, Durability::Cached).unwrap();
    node.snapshot(id, "t");
    let tags = node.tags(&volume, 0, BLOCKS);
    (medium, tags)
}

fn superblock(medium: &Medium) -> Superblock {
    Superblock::parse(&medium.bytes(SUPERBLOCK_AT[0], PAGE_BYTES as u64)).unwrap()
}

/// What a copy of the metadata takes, each part by itself.
fn parts(medium: &Medium, copy: usize) -> Vec<(&'static str, Range<u64>)> {
    let superblock = superblock(medium);
    let layout: Layout = superblock.layout;
    let root_at = layout.root_at(copy, superblock.generation);
    let journal_at = layout.journal_at(copy);
    let root = medium.bytes(root_at, layout.root_bytes);
    let root = Root::parse(&root, layout.extents()).unwrap();
    let mut parts = vec![
        ("superblock", SUPERBLOCK_AT[copy]..SUPERBLOCK_AT[copy] + 512),
        ("root", root_at..root_at + u64::from(superblock.root_len)),
        ("journal", journal_at..journal_at + layout.journal_bytes),
    ];
    for pair in &root.chunks {
        let at = layout.data_at() + pair[copy].0 * layout.extent_bytes();
        parts.push(("pages", at..at + layout.extent_bytes()));
    }
    parts
}

fn read_all(node: &Node, volume: &Rc<Volume<MediumDisk>>) -> Vec<u64> {
    node.tags(volume, 0, BLOCKS)
}

#[test]
fn a_damaged_copy_is_mended_from_the_other() {
    let (medium, tags) = pool();
    for copy in 0..COPIES {
        for (number, (what, range)) in parts(&medium, copy).into_iter().enumerate() {
            for unreadable in [false, true] {
                println!("{what}, copy {copy}, unreadable: {unreadable}");
                let medium = medium.copy(1);
                match unreadable {
                    true => medium.lose(range.clone()),
                    false => medium.damage(range.clone()),
                }
                let report = offline_check(&medium);
                assert_eq!(report.problems, Vec::<String>::new());
                assert!(report.damaged_copies > 0 || what == "journal");
                let node = Node::import(&medium).unwrap();
                let volume = node.open(node.pool.find("v").unwrap());
                assert_eq!(read_all(&node, &volume), tags);
                node.checked();
                drop(volume);
                drop(node);
                // Now the other copy of the same part may go.
                let (_, other) = parts(&medium, 1 - copy).swap_remove(number);
                medium.damage(other);
                let node = Node::import(&medium).unwrap();
                let volume = node.open(node.pool.find("v").unwrap());
                assert_eq!(read_all(&node, &volume), tags);
                node.checked();
            }
        }
    }
}

#[test]
fn what_is_damaged_while_the_pool_is_open_is_found_and_mended() {
    let (medium, _) = pool();
    let node = Node::import(&medium).unwrap();
    node.checkpoint();
    for copy in 0..COPIES {
        for (what, range) in parts(&medium, copy) {
            if what == "journal" {
                continue;
            }
            for unreadable in [false, true] {
                match unreadable {
                    true => medium.lose(range.clone()),
                    false => medium.damage(range.clone()),
                }
                assert!(node.checked().damaged_copies > 0, "{what}, copy {copy}");
                assert_eq!(node.checked().damaged_copies, 0, "{what}, copy {copy}");
            }
        }
    }
}

#[test]
fn with_both_copies_gone_it_says_so() {
    let (medium, _) = pool();
    let (first, second) = (parts(&medium, 0), parts(&medium, 1));
    for ((what, one), (_, two)) in first.into_iter().zip(second) {
        let medium = medium.copy(1);
        medium.damage(one);
        medium.damage(two);
        let found = Node::import(&medium).map(|_| ());
        match what {
            "superblock" => assert_eq!(found, Err(PoolError::NotAPool)),
            // Without its journal a pool is as it was at the checkpoint; nothing tells that more came.
            "journal" => assert_eq!(found, Ok(())),
            _ => assert!(
                matches!(found, Err(PoolError::Corrupt(_))),
                "{what}: {found:?}"
            ),
        }
    }
}

#[test]
fn a_lost_batch_amid_the_journal_is_told() {
    let (medium, _) = pool();
    let layout = superblock(&medium).layout;
    let page = superblock(&medium).journal_page * PAGE_BYTES as u64;
    for copy in 0..COPIES {
        let at = layout.journal_at(copy) + page;
        medium.damage(at..at + 512);
    }
    let found = Node::import(&medium).map(|_| ());
    assert!(matches!(found, Err(PoolError::Corrupt(_))), "{found:?}");
}

#[test]
fn a_write_of_metadata_that_fails_is_done_again() {
    let medium = Medium::new(BlockSize::B512, 8 << 20, false, 1);
    let node = Node::create(&medium);
    for count in 1..4 {
        medium.fail_next_writes(count);
        let id = node.create_volume(&format!("v{count}"), BLOCKS);
        medium.fail_next_writes(count);
        node.checkpoint();
        assert!(!node.pool.status().failed);
        let volume = node.open(id);
        node.write(&volume, 1, 1, 7, Durability::Cached).unwrap();
    }
    drop(node);
    Node::import(&medium).unwrap().checked();
}

#[test]
fn a_newer_format_is_refused() {
    let (medium, _) = pool();
    let mut page = medium.bytes(SUPERBLOCK_AT[1], 512);
    page[8] = VERSION as u8 + 1;
    page[12..16].fill(0);
    let crc = crc32c(&page).to_le_bytes();
    page[12..16].copy_from_slice(&crc);
    medium.overwrite(SUPERBLOCK_AT[1], &page);
    let found = Node::import(&medium).map(|_| ());
    assert_eq!(found, Err(PoolError::NewerFormat(VERSION + 1)));
}

/// Whatever is imported reads as written, or fails to read.
fn look(medium: &Medium, tags: &[u64]) {
    let Ok(node) = Node::import(medium) else {
        return;
    };
    let Some(id) = node.pool.find("v") else {
        return;
    };
    let volume = node.open(id);
    for at in (0..volume.info().blocks.min(BLOCKS)).step_by(100) {
        let (volume, buffer) = (volume.clone(), node.core.buffer(512));
        let read = node.core.run(async move {
            volume.read(Lba(at), std::slice::from_ref(&buffer)).await?;
            Ok::<_, corebay_core::disk::DiskError>(buffer.bytes().to_vec())
        });
        if let Ok(bytes) = read {
            assert_eq!(
                support::disk::tag_of(&bytes),
                tags[at as usize],
                "block {at}"
            );
        }
    }
    let _ = node.run(|pool| async move { pool.check().await });
    let _ = node.write(&volume, 1, 300, 9, Durability::Cached);
    let _ = node.run(|pool| async move { pool.delete(pool.find("s").unwrap()).await });
}

#[test]
fn random_damage_to_both_copies_never_shows_wrong_data() {
    let (medium, tags) = pool();
    // Up to the checkpoint, as the journal's tail may be lost without being missed.
    drop(Node::import(&medium).unwrap());
    let (first, second) = (parts(&medium, 0), parts(&medium, 1));
    for seed in 0..150 {
        let mut rng = Rng::from_seed(seed);
        let medium = medium.copy(seed);
        for _ in 0..1 + rng.below(3) {
            let part = rng.below(first.len() as u64) as usize;
            let (_, one) = &first[part];
            let (_, two) = &second[part];
            let offset = rng.below((one.end - one.start) / 512) * 512;
            for at in [one.start + offset, two.start + offset] {
                medium.damage(at..at + 512);
            }
        }
        look(&medium, &tags);
    }
}

#[test]
fn a_superblock_with_any_wrong_field_is_refused_or_harmless() {
    let (medium, _) = pool();
    for at in (16..96).chain((352..440).step_by(3)) {
        for value in [0u8, 1, 0x7f, 0xff] {
            let medium = medium.copy(1);
            let mut page = medium.bytes(SUPERBLOCK_AT[0], 512);
            page[at] = value;
            page[12..16].fill(0);
            let crc = crc32c(&page).to_le_bytes();
            page[12..16].copy_from_slice(&crc);
            for place in SUPERBLOCK_AT {
                medium.overwrite(place, &page);
            }
            let _ = Node::import(&medium).map(|_| ());
        }
    }
}

fn renamed(node: &Node, name: &str) {
    let (id, name) = (node.pool.find("v").unwrap(), name.to_owned());
    node.run(move |pool| async move { pool.rename(id, &name).await })
        .unwrap();
}

/// One leg of a mirror has the batch that was torn on the other one, which was read.
#[test]
fn a_torn_batch_that_turns_up_later_does_not_count() {
    let medium = pool().0;
    let node = Node::import_as(&medium, 1, false).unwrap();
    let layout = superblock(&medium).layout;
    // The next batch is the last one that fits behind the others.
    while superblock(&medium).journal_page < layout.journal_pages() - 1 {
        node.run(|pool| async move { pool.set_thresholds(&Thresholds::default()).await })
            .unwrap();
        node.checkpoint();
    }
    drop(node);
    let (page, torn) = (superblock(&medium).journal_page, medium.copy(2));
    renamed(&Node::import(&torn).unwrap(), "torn");

    // Without it, the next one is too large for that place, and lies at the beginning.
    let node = Node::import_as(&medium, 1, false).unwrap();
    let name = |number| support::named(&format!("{number:0>250}"));
    let id = node.pool.find("v").unwrap();
    let list: Vec<_> = (0..20).map(|number| (id, name(number))).collect();
    node.run(move |pool| async move { pool.snapshot(&list).await })
        .unwrap();
    drop(node);
    for copy in 0..COPIES {
        let at = layout.journal_at(copy) + page * PAGE_BYTES as u64;
        medium.overwrite(at, &torn.bytes(at, PAGE_BYTES as u64));
    }
    let node = Node::import_as(&medium, 1, false).unwrap();
    assert!(node.pool.find("torn").is_none());
    assert!(node.pool.find(&name(19).name).is_some());
}

#[test]
fn a_pool_that_was_closed_makes_no_checkpoint() {
    let (medium, _) = pool();
    let node = Node::import(&medium).unwrap();
    node.run(|pool| async move { pool.close().await }).unwrap();
    let made = node.run(|pool| async move { pool.checkpoint().await });
    assert_eq!(made, Err(PoolError::Failed));
}

/// Blocks of "v" that the report says cannot be found.
fn told_lost(problems: &[String]) -> Vec<u64> {
    let ranges = problems.iter().filter_map(|problem| {
        let range = problem.strip_prefix("\"v\": blocks ")?;
        let range = range.strip_suffix(" cannot be found")?;
        let (from, to) = range.split_once(" to ")?;
        Some(from.parse().unwrap()..=to.parse().unwrap())
    });
    ranges.flatten().collect()
}

#[test]
fn a_check_names_the_blocks_that_cannot_be_found() {
    let (medium, _) = pool();
    let node = Node::import(&medium).unwrap();
    let far = node.create_volume("far", 1 << 24);
    node.write(&node.open(far), 5 << 20, 1, 5, Durability::Cached)
        .unwrap();
    node.checkpoint();
    drop(node);
    let (first, second) = (parts(&medium, 0), parts(&medium, 1));
    let chunks = first.into_iter().zip(second).skip(3);
    let pages = chunks.flat_map(|((_, one), (_, two))| {
        let page = PAGE_BYTES as u64;
        one.step_by(PAGE_BYTES)
            .zip(two.step_by(PAGE_BYTES))
            .map(move |(one, two)| [one..one + page, two..two + page])
    });
    let (mut found, mut some) = (0, 0);
    for copies in pages {
        let medium = medium.copy(1);
        copies.into_iter().for_each(|copy| medium.damage(copy));
        let Ok(node) = Node::import(&medium) else {
            continue;
        };
        let report = node.run(|pool| async move { pool.check().await }).unwrap();
        assert_eq!(report, offline_check(&medium));
        let Some(id) = node.pool.find("v").filter(|_| !report.problems.is_empty()) else {
            continue;
        };
        assert_ne!(node.pool.status().lost_pages, 0);
        assert_eq!(report.volumes, 4);
        let volume = node.open(id);
        let is_lost = |at: &u64| {
            let at = *at;
            let (volume, buffer) = (volume.clone(), node.core.buffer(512));
            let read = node
                .core
                .run(async move { volume.read(Lba(at), std::slice::from_ref(&buffer)).await });
            read.is_err()
        };
        let lost: Vec<u64> = (0..BLOCKS).filter(is_lost).collect();
        assert_eq!(told_lost(&report.problems), lost, "{:?}", report.problems);
        found += 1;
        some += u32::from(!lost.is_empty() && lost.len() < 300);
    }
    assert!(found > 3 && some > 0, "{found} {some}");
}
