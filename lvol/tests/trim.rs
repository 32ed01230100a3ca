//! What the disk beneath is told of free space: all of it, nothing else, and not too fast.

use std::rc::Rc;

use crate::support::{Medium, MediumDisk, Node, cuts::each_cut};
use corebay_core::{disk::Durability, rng::Rng, units::BlockSize};
use corebay_lvol::Volume;

const EXTENT: u64 = 128 << 10;

fn medium(mib: u64) -> Medium {
    Medium::new(BlockSize::B512, mib << 20, true, 1)
}

/// A volume of so many extents that hold something.
fn filled(node: &Node, name: &str, extents: u64) -> Rc<Volume<MediumDisk>> {
    let volume = node.open(node.create_volume(name, 1 << 20));
    for extent in 0..extents {
        node.write(&volume, extent * 256, 256, extent + 1, Durability::Durable)
            .unwrap();
    }
    volume
}

fn turn_until(node: &Node, what: &str, done: impl FnMut() -> bool) {
    node.core.turn_until(what, done);
}

#[test]
fn whole_extents_are_told_and_only_those() {
    let medium = medium(16);
    let node = Node::create(&medium);
    let volume = filled(&node, "v", 40);
    node.snapshot(node.pool.find("v").unwrap(), "s");
    // Parts of extents, and what a snapshot holds, are not free.
    node.deallocate(&volume, 0, 256 * 10);
    node.write(&volume, 256 * 20, 256, 9, Durability::Cached)
        .unwrap();
    node.deallocate(&volume, 256 * 20, 100);
    for _ in 0..50 {
        node.core.turn();
    }
    assert_eq!(medium.deallocated(), 0);
    // With the rest of it, the volume's own extent goes.
    node.deallocate(&volume, 256 * 20 + 100, 156);
    turn_until(&node, "an extent to be told", || {
        medium.deallocated() >= 256
    });
    assert_eq!(medium.deallocated(), 256);
    let snapshot = node.pool.find("s").unwrap();
    node.run(move |pool| async move { pool.delete(snapshot).await })
        .unwrap();
    node.settle();
    turn_until(&node, "all to be told", || medium.deallocated() >= 256 * 12);
    assert_eq!(node.pool.status().trimmed_bytes, 12 * EXTENT);
    // What is in use is there.
    for extent in (10..20).chain(21..40) {
        assert_eq!(node.tags(&volume, extent * 256, 256), vec![extent + 1; 256]);
    }
    node.checked();
}

#[test]
fn it_can_be_turned_off_and_made_up_for() {
    let medium = medium(16);
    let node = Node::create(&medium);
    node.pool.set_trim_rate(0);
    let volume = filled(&node, "v", 40);
    node.deallocate(&volume, 0, 256 * 30);
    for _ in 0..50 {
        node.core.turn();
    }
    assert_eq!(medium.deallocated(), 0);
    drop(volume);
    node.checkpoint();
    drop(node);
    // Free since before a restart; the counts are not in memory.
    let node = Node::import(&medium).unwrap();
    node.pool.trim_free().unwrap();
    let free = node.pool.status().free_bytes / EXTENT;
    turn_until(&node, "most to be told", || {
        medium.deallocated() / 256 + 20 >= free
    });
    let volume = node.open(node.pool.find("v").unwrap());
    for extent in 30..40 {
        assert_eq!(node.tags(&volume, extent * 256, 256), vec![extent + 1; 256]);
    }
    drop(volume);
    node.run(|pool| async move { pool.close().await }).unwrap();
    let told = medium.deallocated();
    for _ in 0..50 {
        node.core.turn();
    }
    assert_eq!(medium.deallocated(), told, "the disk is nobody's");
}

#[test]
fn the_rate_is_kept() {
    let medium = medium(16);
    let node = Node::create(&medium);
    node.pool.set_trim_rate(EXTENT * 50);
    let volume = filled(&node, "v", 60);
    let from = node.core.now();
    node.deallocate(&volume, 0, 256 * 60);
    turn_until(&node, "a dozen to be told", || {
        medium.deallocated() >= 256 * 12
    });
    let took = node.core.now().since(from);
    // Twelve extents at fifty a second, less the command that the first pause follows.
    assert!(took.as_millis() >= 150, "{took:?}");
}

#[test]
fn space_is_there_for_writers_while_it_is_told() {
    for seed in 0..2 {
        let medium = medium(8);
        let node = Node::create(&medium);
        node.pool.set_trim_rate(u64::MAX);
        let volume = node.open(node.create_volume("v", 1 << 20));
        let mut rng = Rng::from_seed(seed);
        // As much as the pool holds, again and again, so that what is told is wanted at once.
        let mut most = 0;
        while node
            .write(&volume, most * 256, 256, most + 1, Durability::Cached)
            .is_ok()
        {
            most += 1;
        }
        let mut tags: Vec<u64> = (1..=most).collect();
        for round in 0..25 {
            let first = rng.below(most);
            let count = 1 + rng.below(most - first);
            node.deallocate(&volume, first * 256, count * 256);
            for _ in 0..rng.below(4) {
                node.core.turn();
            }
            for extent in first..first + count {
                let tag = 1000 * (round + 1) + extent;
                node.write(&volume, extent * 256, 256, tag, Durability::Cached)
                    .unwrap();
                tags[extent as usize] = tag;
            }
            let extent = rng.below(most);
            let found = node.tags(&volume, extent * 256, 256);
            assert_eq!(found, vec![tags[extent as usize]; 256], "round {round}");
        }
        for (extent, tag) in tags.iter().enumerate() {
            assert_eq!(node.tags(&volume, extent as u64 * 256, 1), [*tag]);
        }
        node.checked();
    }
}

#[test]
fn nothing_that_is_in_use_is_lost_when_the_power_fails_amid_telling() {
    let base = medium(8);
    base.soil();
    let node = Node::create(&base);
    let volume = filled(&node, "v", 12);
    node.snapshot(node.pool.find("v").unwrap(), "s");
    for extent in 0..6 {
        node.write(&volume, extent * 256, 3, 90 + extent, Durability::Durable)
            .unwrap();
    }
    drop(volume);
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    each_cut(
        &base,
        11,
        |node| {
            node.pool.set_trim_rate(u64::MAX);
            let volume = node.open(node.pool.find("v").unwrap());
            let snapshot = node.pool.find("s").unwrap();
            node.deallocate(&volume, 0, 256 * 2);
            node.run(move |pool| async move { pool.delete(snapshot).await })
                .unwrap();
            node.settle();
            node.write(&volume, 256 * 3, 256, 70, Durability::Durable)
                .unwrap();
            for _ in 0..30 {
                node.core.turn();
            }
        },
        |node, ended| {
            let volume = node.open(node.pool.find("v").unwrap());
            let tags = |extent: u64| node.tags(&volume, extent * 256, 256);
            for extent in (2..3).chain(4..12) {
                let mut expected = vec![extent + 1; 256];
                if extent < 6 {
                    expected[..3].fill(90 + extent);
                }
                assert_eq!(tags(extent), expected, "extent {extent}");
            }
            for block in tags(3) {
                assert!([70, 4, 93].contains(&block) && (!ended || block == 70));
            }
            for block in tags(0) {
                assert!([0, 1, 90].contains(&block) && (!ended || block == 0));
            }
            if let Some(snapshot) = node.pool.find("s") {
                assert!(!ended);
                let snapshot = node.open(snapshot);
                for extent in 0..12 {
                    assert_eq!(
                        node.tags(&snapshot, extent * 256, 256),
                        vec![extent + 1; 256]
                    );
                }
            }
        },
    );
}

#[test]
fn only_whole_units_of_the_disk_are_told() {
    for unit in [None, Some(3 * 256)] {
        let medium = medium(16).freeing(unit);
        let node = Node::create(&medium);
        node.pool.set_trim_rate(u64::MAX);
        let volume = filled(&node, "v", 40);
        // Less than a unit, wherever it lies.
        node.deallocate(&volume, 256 * 30, 256 * 2);
        for _ in 0..50 {
            node.core.turn();
        }
        assert_eq!(medium.deallocated(), 0);
        node.deallocate(&volume, 0, 256 * 10);
        for _ in 0..200 {
            node.core.turn();
        }
        let told = medium.deallocated();
        match unit {
            None => assert_eq!(told, 0),
            Some(unit) => assert!(told >= u64::from(unit) && told <= 256 * 10, "{told}"),
        }
        assert_eq!(node.pool.status().trimmed_bytes, told * 512);
        for extent in (10..30).chain(32..40) {
            assert_eq!(node.tags(&volume, extent * 256, 256), vec![extent + 1; 256]);
        }
        node.checked();
    }
}
