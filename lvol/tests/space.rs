//! Space: exact numbers, thresholds and their events, and a pool that is full.

use std::{cell::RefCell, rc::Rc};

use crate::support::{Medium, Node, cuts::each_cut, named};
use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{PoolEvent, SpaceLevel, Thresholds, VolumeId, VolumeSpace, error::PoolError};

const EXTENT: u64 = 128 << 10;
const PER_EXTENT: u64 = 256;

fn medium(mib: u64) -> Medium {
    Medium::new(BlockSize::B512, mib << 20, false, 1)
}

fn space(node: &Node, id: VolumeId) -> VolumeSpace {
    node.run(move |pool| async move { pool.volume_space(id).await })
        .unwrap()
}

fn delete(node: &Node, id: VolumeId) {
    node.run(move |pool| async move { pool.delete(id).await })
        .unwrap();
    node.settle();
}

fn watch(node: &Node) -> Rc<RefCell<Vec<PoolEvent>>> {
    let told = Rc::new(RefCell::new(Vec::new()));
    let (mut watch, list) = (node.pool.watch(), told.clone());
    node.core.spawn(async move {
        while let Some(event) = watch.next().await {
            list.borrow_mut().push(event);
        }
    });
    told
}

#[test]
fn exclusive_bytes_are_what_deleting_gives_back() {
    for seed in 0..6 {
        let medium = medium(16);
        let mut node = Node::create(&medium);
        let mut rng = Rng::from_seed(seed);
        let id = node.create_volume("v", 12 * PER_EXTENT);
        let mut all = vec![id];
        for round in 0..6 {
            for _ in 0..rng.below(8) {
                let of = all[rng.below(all.len() as u64) as usize];
                let blocks = 1 + rng.below(300);
                let at = rng.below(12 * PER_EXTENT - blocks);
                let volume = node.open(of);
                match rng.below(4) {
                    0 if volume_is_writable(&node, of) => node.deallocate(&volume, at, blocks),
                    _ => {
                        let _ = node.write(&volume, at, blocks, 1, Durability::Cached);
                    }
                }
            }
            let of = all[rng.below(all.len() as u64) as usize];
            all.push(match rng.below(2) {
                0 => node.snapshot(of, &format!("s{round}")),
                _ => {
                    let made = node.run(move |pool| async move {
                        pool.clone_volume(of, &named(&format!("c{round}"))).await
                    });
                    made.unwrap()
                }
            });
        }
        // What is on the disk says the same.
        node.checkpoint();
        node = Node::import(&medium).unwrap();
        while !all.is_empty() {
            let id = all.swap_remove(rng.below(all.len() as u64) as usize);
            let volume = node.open(id);
            let blocks = volume.info().blocks;
            let tags = node.tags(&volume, 0, blocks);
            drop(volume);
            let used = tags.iter().filter(|tag| **tag != 0).count() as u64;
            let says = space(&node, id);
            assert_eq!((says.size, says.used), (blocks * 512, used * 512));
            let free = node.pool.status().free_bytes;
            delete(&node, id);
            let given_back = node.pool.status().free_bytes - free;
            assert_eq!(says.exclusive, given_back, "seed {seed}, {id:?}");
            if all.is_empty() {
                assert_eq!(says.shared, 0);
            }
        }
        node.checked();
    }
}

fn volume_is_writable(node: &Node, id: VolumeId) -> bool {
    !node.pool.volume(id).unwrap().read_only
}

#[test]
fn namespaces_tell_what_they_can_hold() {
    let medium = medium(8);
    let node = Node::create(&medium);
    let thin = node.create_volume("thin", 1 << 20);
    let volume = node.open(thin);
    node.write(&volume, 0, 3, 1, Durability::Cached).unwrap();
    let says = node.pool.namespace_space(thin).unwrap();
    let free = node.pool.status().available_bytes / 512;
    assert_eq!((says.size, says.used, says.thin), (1 << 20, 3, true));
    assert_eq!(says.capacity, free + 3);
    let made: Result<VolumeId, PoolError> =
        node.run(|pool| async move { pool.create_volume(&named("thick"), 1000, true).await });
    let says = node.pool.namespace_space(made.clone().unwrap()).unwrap();
    assert_eq!(
        (says.size, says.capacity, says.used, says.thin),
        (1000, 1000, 0, false)
    );
    let reserved = space(&node, made.unwrap()).reserved;
    assert_eq!(reserved, 4 * EXTENT);
    let status = node.pool.status();
    assert_eq!(status.provisioned_bytes, ((1 << 20) + 1000) * 512);
    assert_eq!(status.reserved_bytes, reserved);
}

/// Writes one more extent of a volume.
fn fill_one(node: &Node, id: VolumeId, extent: u64) -> Result<(), DiskError> {
    let volume = node.open(id);
    node.write(&volume, extent * PER_EXTENT, 1, 1, Durability::Cached)
}

#[test]
fn thresholds_are_told_once_on_the_way_up_and_down() {
    let medium = medium(16);
    let node = Node::create(&medium);
    let wrong = Thresholds {
        warning_percent: 90,
        critical_percent: 80,
        hysteresis_percent: 1,
    };
    let refused = node.run(move |pool| async move { pool.set_thresholds(&wrong).await });
    assert_eq!(refused, Err(PoolError::BadSize));
    let limits = Thresholds {
        warning_percent: 50,
        critical_percent: 75,
        hysteresis_percent: 10,
    };
    node.run(move |pool| async move { pool.set_thresholds(&limits).await })
        .unwrap();
    let told = watch(&node);
    let id = node.create_volume("v", 1 << 20);
    let mut written = 0;
    let mut levels = Vec::new();
    while fill_one(&node, id, written).is_ok() {
        written += 1;
        let status = node.pool.status();
        let expected = match status.used_percent {
            0..50 => SpaceLevel::Normal,
            50..75 => SpaceLevel::Warning,
            75..100 => SpaceLevel::Critical,
            _ => SpaceLevel::Full,
        };
        assert_eq!(status.level, expected, "at {} %", status.used_percent);
        levels.push(status.level);
    }
    node.core.turn();
    let seen = |told: &Rc<RefCell<Vec<PoolEvent>>>| -> Vec<SpaceLevel> {
        let events = std::mem::take(&mut *told.borrow_mut());
        let level = |event: &PoolEvent| match event {
            PoolEvent::Space { level, .. } => *level,
            PoolEvent::Failed => panic!("it works"),
        };
        events.iter().map(level).collect()
    };
    use SpaceLevel::{Critical, Full, Normal, Warning};
    assert_eq!(seen(&told), [Warning, Critical, Full]);
    assert_eq!(node.pool.thresholds(), limits);
    // Around a threshold nothing is told again.
    let volume = node.open(id);
    let mut left = written;
    while node.pool.status().used_percent > 72 {
        left -= 1;
        node.deallocate(&volume, left * PER_EXTENT, 1);
    }
    assert_eq!(node.pool.space_level(), Critical);
    fill_one(&node, id, left).unwrap();
    node.core.turn();
    assert_eq!(seen(&told), [Critical]);
    for extent in 0..left {
        node.deallocate(&volume, extent * PER_EXTENT, 1);
    }
    node.core.turn();
    assert_eq!(seen(&told), [Warning, Normal]);
    drop(volume);
    // They are kept, and a pool that is full already says so at once.
    drop(node);
    let node = Node::import(&medium).unwrap();
    assert_eq!(node.pool.thresholds(), limits);
    while fill_one(&node, id, written).is_ok() {
        written += 1;
    }
    drop(node);
    let node = Node::import(&medium).unwrap();
    assert!(node.pool.space_level() >= Critical);
    let told = watch(&node);
    node.core.turn();
    assert!(seen(&told)[0] >= Critical);
}

#[test]
fn a_failed_pool_and_a_closed_one_are_told() {
    let medium = medium(8);
    let node = Node::create(&medium);
    let told = watch(&node);
    medium.fail_writes(true);
    let identity = named("w");
    let _ = node.run(|pool| async move { pool.create_volume(&identity, 9, false).await });
    node.core.turn();
    assert_eq!(*told.borrow(), [PoolEvent::Failed]);
    let medium = self::medium(8);
    let node = Node::create(&medium);
    let mut watch = node.pool.watch();
    let end = node.core.spawn(async move { watch.next().await });
    node.run(|pool| async move { pool.close().await }).unwrap();
    node.core.turn_until("the watch's end", || end.is_there());
    assert_eq!(end.take(), None);
}

#[test]
fn a_full_pool_serves_all_that_needs_no_space() {
    let medium = medium(8);
    let node = Node::create(&medium);
    let make = |name: &'static str, blocks, thick| {
        node.run(move |pool| async move { pool.create_volume(&named(name), blocks, thick).await })
    };
    let thin = make("thin", 1 << 20, false).unwrap();
    let thick = make("thick", 8 * PER_EXTENT, true).unwrap();
    let mut written = 0;
    let refused = loop {
        match fill_one(&node, thin, written) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, DiskError::NoSpace);
    assert_eq!(node.pool.space_level(), SpaceLevel::Full);
    let volume = node.open(thin);
    // Overwrites; first writes of blocks in an extent that is there; reads; zeroes that keep space.
    node.write(&volume, 0, 1, 7, Durability::Durable).unwrap();
    node.write(&volume, 1, 99, 8, Durability::Cached).unwrap();
    let other = volume.clone();
    let zeroes = async move {
        other
            .write_zeroes(Lba(2), 3, Space::Keep, Durability::Cached)
            .await
    };
    node.core.run(zeroes).unwrap();
    assert_eq!(node.tags(&volume, 0, 7), [7, 8, 0, 0, 0, 8, 8]);
    // A write that spans what is there and what is not is refused as a whole command, and what it
    // would have changed is old or new.
    let spanning = node.write(&volume, written * PER_EXTENT - 1, 2, 9, Durability::Cached);
    assert_eq!(spanning, Err(DiskError::NoSpace));
    assert_eq!(node.tags(&volume, written * PER_EXTENT, 1), [0]);
    // Whoever has reserved space gets it, all of it.
    for extent in 0..8 {
        fill_one(&node, thick, extent).unwrap();
    }
    assert_eq!(make("more", PER_EXTENT, true), Err(PoolError::NoSpace));
    // Administration goes on.
    let empty = make("empty", 1 << 20, false).unwrap();
    node.run(move |pool| async move {
        pool.rename(empty, "renamed").await?;
        pool.resize(empty, 1 << 21, false).await
    })
    .unwrap();
    node.checkpoint();
    let snapshot = node.snapshot(empty, "s");
    delete(&node, snapshot);
    // It recovers as soon as space is free: an extent for an extent.
    node.deallocate(&volume, 0, PER_EXTENT);
    fill_one(&node, thin, written).unwrap();
    assert_eq!(fill_one(&node, thin, written + 1), Err(DiskError::NoSpace));
    assert_eq!(node.tags(&volume, written * PER_EXTENT, 2), [1, 0]);
    drop(volume);
    delete(&node, thin);
    assert_eq!(node.pool.space_level(), SpaceLevel::Normal);
    node.checked();
}

#[test]
fn thresholds_are_old_or_new_when_the_power_fails() {
    let base = medium(8);
    drop(Node::create(&base));
    let limits = Thresholds {
        warning_percent: 33,
        critical_percent: 44,
        hysteresis_percent: 3,
    };
    each_cut(
        &base,
        3,
        |node| {
            node.run(move |pool| async move { pool.set_thresholds(&limits).await })
                .unwrap();
        },
        |node, ended| {
            let found = node.pool.thresholds();
            assert!(found == limits || (!ended && found == Thresholds::default()));
        },
    );
}
