//! Pools on disks that have grown.

use crate::support::{Medium, Node, cuts::each_cut, offline_check};
use corebay_core::{
    disk::{DiskError, Durability},
    units::BlockSize,
};
use corebay_lvol::{SpaceLevel, error::PoolError};

const PER_EXTENT: u64 = 256;
const MIB: u64 = 1 << 20;

fn extend(node: &Node) -> Result<u64, PoolError> {
    node.run(|pool| async move { pool.extend().await })
}

/// Fills a volume extent by extent; how many there were.
fn fill(node: &Node, name: &str, from: u64) -> u64 {
    let volume = node.open(node.pool.find(name).unwrap());
    let mut extent = from;
    loop {
        match node.write(
            &volume,
            extent * PER_EXTENT,
            1,
            extent + 1,
            Durability::Cached,
        ) {
            Ok(()) => extent += 1,
            Err(error) => {
                assert_eq!(error, DiskError::NoSpace);
                return extent;
            }
        }
    }
}

#[test]
fn a_full_pool_goes_on_once_its_disk_has_grown() {
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let scale = if block_size == BlockSize::B512 { 1 } else { 8 };
        let medium = Medium::new(block_size, 6 * MIB * scale, true, 1);
        medium.soil();
        let node = Node::create(&medium);
        assert_eq!(extend(&node), Ok(6 * MIB * scale), "nothing to take");
        node.create_volume("v", 1 << 20);
        let first = fill(&node, "v", 0);
        assert_eq!(node.pool.space_level(), SpaceLevel::Full);
        let total = node.pool.status().total_bytes;
        medium.resize(160 * MIB * scale);
        assert_eq!(extend(&node), Ok(160 * MIB * scale));
        assert_eq!(extend(&node), Ok(160 * MIB * scale));
        assert_eq!(node.pool.space_level(), SpaceLevel::Normal);
        let added = node.pool.status().total_bytes - total;
        assert!(added >= 153 * MIB * scale, "{added}");
        let volume = node.open(node.pool.find("v").unwrap());
        // More pages of counts than there were.
        for extent in first..first + 20 {
            let tag = extent + 1;
            node.write(&volume, extent * PER_EXTENT, 1, tag, Durability::Durable)
                .unwrap();
        }
        drop(volume);
        node.checked();
        drop(node);
        medium.cut_power();
        let node = Node::import(&medium).unwrap();
        let volume = node.open(node.pool.find("v").unwrap());
        for extent in 0..first + 20 {
            assert_eq!(node.tags(&volume, extent * PER_EXTENT, 2), [extent + 1, 0]);
        }
        node.checked();
        drop((volume, node));
        assert_eq!(offline_check(&medium).problems, Vec::<String>::new());
    }
}

#[test]
fn a_disk_that_shrank_is_refused() {
    let medium = Medium::new(BlockSize::B512, 8 * MIB, false, 1);
    let node = Node::create(&medium);
    medium.resize(7 * MIB);
    assert!(matches!(extend(&node), Err(PoolError::WrongDisk(_))));
    drop(node);
    let refused = Node::import(&medium).map(|_| ());
    assert!(matches!(refused, Err(PoolError::WrongDisk(_))));
    // Also where the journal alone says how large it was.
    medium.resize(8 * MIB);
    drop(Node::import(&medium).unwrap());
    medium.resize(16 * MIB);
    let node = Node::import(&medium).unwrap();
    extend(&node).unwrap();
    drop(node);
    medium.resize(8 * MIB);
    let refused = Node::import(&medium).map(|_| ());
    assert!(matches!(refused, Err(PoolError::WrongDisk(_))));
    medium.resize(16 * MIB);
    Node::import(&medium).unwrap().checked();
}

#[test]
fn a_disk_too_large_for_the_pools_tables_is_refused() {
    let medium = Medium::new(BlockSize::B4096, 64 * MIB, false, 1);
    let node = Node::create(&medium);
    medium.resize(1 << 40);
    assert_eq!(extend(&node), Ok(1 << 40));
    medium.resize(3 << 40);
    assert!(matches!(extend(&node), Err(PoolError::WrongDisk(_))));
    node.checked();
}

#[test]
fn a_pool_is_larger_or_not_when_the_power_fails() {
    let base = Medium::new(BlockSize::B512, 6 * MIB, true, 1);
    let node = Node::create(&base);
    node.create_volume("v", 1 << 20);
    let first = fill(&node, "v", 0);
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    base.resize(8 * MIB);
    each_cut(
        &base,
        3,
        |node| {
            extend(node).unwrap();
            let volume = node.open(node.pool.find("v").unwrap());
            let at = first * PER_EXTENT;
            node.write(&volume, at, 1, first + 1, Durability::Durable)
                .unwrap();
        },
        |node, ended| {
            let volume = node.open(node.pool.find("v").unwrap());
            for extent in 0..first {
                assert_eq!(node.tags(&volume, extent * PER_EXTENT, 2), [extent + 1, 0]);
            }
            let last = node.tags(&volume, first * PER_EXTENT, 1)[0];
            assert!(last == first + 1 || (last == 0 && !ended));
            drop(volume);
            extend(node).unwrap();
            assert!(fill(node, "v", first) > first + 8);
        },
    );
}
