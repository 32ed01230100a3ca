//! What is reserved for thick volumes: what they may still need, and no more.

use corebay_conformance::TestCore;
use corebay_core::{
    disk::{Disk, Durability},
    mesh::Wakeups,
    reactor::MachineClock,
    units::{BlockSize, Lba},
};
use corebay_lvol::{PoolCore, Volume, VolumeId, error::PoolError};

use crate::support::{Medium, Node, cuts::each_cut, disk::block, named};

const EXTENT: u64 = 128 << 10;
const PER_EXTENT: u64 = 256;

/// Extents of the thick volume: more than under one leaf.
const EXTENTS: u64 = 70;

fn medium() -> Medium {
    Medium::new(BlockSize::B512, 32 << 20, false, 1)
}

fn reserved(node: &Node) -> u64 {
    let bytes = node.pool.status().reserved_bytes;
    assert_eq!(bytes % EXTENT, 0);
    bytes / EXTENT
}

fn thick(node: &Node, name: &'static str, extents: u64) -> Result<VolumeId, PoolError> {
    let blocks = extents * PER_EXTENT;
    node.run(move |pool| async move { pool.create_volume(&named(name), blocks, true).await })
}

fn write_extents(node: &Node, id: VolumeId, extents: impl Iterator<Item = u64>, tag: u64) {
    let volume = node.open(id);
    for extent in extents {
        node.write(&volume, extent * PER_EXTENT + 7, 3, tag, Durability::Cached)
            .unwrap();
    }
}

fn delete(node: &Node, id: VolumeId) {
    node.run(move |pool| async move { pool.delete(id).await })
        .unwrap();
}

#[test]
fn what_was_shared_is_not_reserved_once_it_is_the_volumes_own() {
    let medium = medium();
    let node = Node::create(&medium);
    let id = thick(&node, "thick", EXTENTS).unwrap();
    write_extents(&node, id, 0..EXTENTS, 1);
    assert_eq!(reserved(&node), 0);
    let available = node.pool.status().available_bytes;
    let snapshot = node.snapshot(id, "s");
    assert_eq!(reserved(&node), EXTENTS);
    // Some are its own again, in the place of or beside what the snapshot has.
    write_extents(&node, id, 60..63, 2);
    assert_eq!(reserved(&node), EXTENTS - 3);
    delete(&node, snapshot);
    node.settle();
    assert_eq!(reserved(&node), 0);
    assert_eq!(node.pool.status().available_bytes, available);
    // What is counted goes on from there.
    let volume = node.open(id);
    node.deallocate(&volume, 0, 2 * PER_EXTENT);
    assert_eq!(reserved(&node), 2);
    write_extents(&node, id, 1..2, 3);
    assert_eq!(reserved(&node), 1);
    drop(volume);
    node.checked();
    drop(node);
    let node = Node::import(&medium).unwrap();
    assert_eq!(reserved(&node), 1);
}

#[test]
fn what_others_shared_is_counted_whoever_was_the_last() {
    let medium = medium();
    let node = Node::create(&medium);
    let id = thick(&node, "thick", EXTENTS).unwrap();
    let other = thick(&node, "other", 5).unwrap();
    write_extents(&node, id, 0..EXTENTS, 1);
    write_extents(&node, other, 0..2, 1);
    let of_other = node.snapshot(other, "s of other");
    let snapshot = node.snapshot(id, "s");
    let clone = node.run(move |pool| async move {
        let clone = pool.clone_volume(snapshot, &named("clone")).await;
        pool.delete(snapshot).await.map(|()| clone)
    });
    let clone = clone.unwrap().unwrap();
    node.settle();
    // The clone still has it all, whatever it was made of.
    assert_eq!(reserved(&node), EXTENTS + 5);
    delete(&node, clone);
    node.settle();
    assert_eq!(reserved(&node), 5);
    // Another family's.
    delete(&node, of_other);
    node.settle();
    assert_eq!(reserved(&node), 3);
    node.checked();
}

#[test]
fn what_a_clone_gives_up_by_copies_is_not_reserved() {
    let medium = medium();
    let node = Node::create(&medium);
    let id = thick(&node, "thick", 20).unwrap();
    write_extents(&node, id, 0..20, 1);
    let clone = node.run(move |pool| async move {
        let clone = pool.clone_volume(id, &named("clone")).await?;
        let mut inflate = pool.inflate(clone)?;
        while inflate.step().await?.is_some() {}
        Ok::<_, PoolError>(clone)
    });
    clone.unwrap();
    node.core.turn_until("the count", || reserved(&node) == 0);
}

/// A clone that has nothing any more by the time that it is deleted.
#[test]
fn what_a_clones_host_gave_up_is_not_reserved_once_the_clone_is_deleted() {
    let medium = medium();
    let node = Node::create(&medium);
    let id = thick(&node, "thick", 20).unwrap();
    write_extents(&node, id, 0..20, 1);
    let clone = node.run(move |pool| async move { pool.clone_volume(id, &named("clone")).await });
    let clone = clone.unwrap();
    node.deallocate(&node.open(clone), 0, 20 * PER_EXTENT);
    assert_eq!(reserved(&node), 20);
    delete(&node, clone);
    node.settle();
    assert_eq!(reserved(&node), 0);
    node.checked();
}

/// A snapshot of a clone, which comes from nowhere once it is inflated.
#[test]
fn what_an_inflated_clones_snapshot_shared_is_not_reserved() {
    let medium = medium();
    let node = Node::create(&medium);
    let id = thick(&node, "thick", 20).unwrap();
    write_extents(&node, id, 0..20, 1);
    let snapshot = node.run(move |pool| async move {
        let clone = pool.clone_volume(id, &named("clone")).await?;
        let snapshot = pool.snapshot(&[(clone, named("s"))]).await?[0];
        let mut inflate = pool.inflate(clone)?;
        while inflate.step().await?.is_some() {}
        Ok::<_, PoolError>(snapshot)
    });
    node.settle();
    assert_eq!(reserved(&node), 20);
    delete(&node, snapshot.unwrap());
    node.settle();
    assert_eq!(reserved(&node), 0);
    node.checked();
}

#[test]
fn deletions_in_a_row_share_a_count() {
    let medium = Medium::new(BlockSize::B512, 256 << 20, false, 1);
    let node = Node::create(&medium);
    // A block in each of many leaves.
    let id = thick(&node, "thick", 26 * 64).unwrap();
    write_extents(&node, id, (0..26).map(|leaf| leaf * 64), 1);
    let mut all: Vec<VolumeId> = Vec::new();
    for number in 0..12 {
        all.push(node.snapshot(id, &format!("s{number}")));
    }
    let one = all.pop().unwrap();
    let reserved_before = reserved(&node);
    drop(node);
    let node = Node::import_slow(&medium);
    // A count reads the leaves again.
    node.pool.set_page_limit(2);
    let reads = |ids: Vec<VolumeId>| {
        medium.count_reads();
        node.run(move |pool| async move {
            for id in ids {
                pool.delete(id).await.unwrap();
            }
        });
        node.settle();
        medium.count_reads()
    };
    let of_one = reads(vec![one]);
    assert!(of_one > 20, "{of_one}");
    assert_eq!(reserved(&node), reserved_before);
    // One that is under way, and one for all that were deleted meanwhile.
    let of_many = reads(all);
    assert!(of_many < 4 * of_one, "{of_many} where one takes {of_one}");
    assert_eq!(reserved(&node), reserved_before - 26);
    node.checked();
}

#[test]
fn hosts_change_a_thick_volume_while_it_is_counted() {
    for seed in 0..8 {
        let medium = medium();
        let node = Node::create(&medium);
        let id = thick(&node, "thick", EXTENTS).unwrap();
        write_extents(&node, id, (0..EXTENTS).step_by(2), 1);
        let snapshot = node.snapshot(id, "s");
        write_extents(&node, id, 10..14, 2);
        drop(node);
        // Each command of the disk takes a turn.
        let node = Node::import_slow(&medium);
        delete(&node, snapshot);
        let volume = node.open(id);
        let mut tasks = Vec::new();
        // Before and behind what was counted by then.
        for step in 0..12 {
            let extent = (seed * 13 + step * 17) % EXTENTS;
            let (volume, core) = (volume.clone(), &node.core);
            let buffer = core.filled(&block(5, 512));
            let task = core.spawn(async move {
                let at = Lba(extent * PER_EXTENT);
                if step % 3 == 0 {
                    let _ = volume.deallocate(at, PER_EXTENT).await;
                } else {
                    let from = std::slice::from_ref(&buffer);
                    let _ = volume.write(at, from, Durability::Cached).await;
                }
            });
            tasks.push(task);
            for _ in 0..seed {
                core.turn();
            }
        }
        node.core
            .turn_until("the hosts", || tasks.iter().all(|task| task.is_there()));
        node.settle();
        let mut holds = 0;
        for extent in 0..EXTENTS {
            let tags = node.tags(&volume, extent * PER_EXTENT, PER_EXTENT);
            holds += u64::from(tags.iter().any(|tag| *tag != 0));
        }
        assert_eq!(reserved(&node), EXTENTS - holds, "seed {seed}");
        node.checked();
    }
}

#[test]
fn a_volume_that_shared_becomes_thick_where_the_space_is_there() {
    let medium = medium();
    let node = Node::create(&medium);
    let free = node.pool.status().available_bytes / EXTENT;
    let id = node.create_volume("thin", EXTENTS * PER_EXTENT);
    write_extents(&node, id, 0..EXTENTS, 1);
    let snapshot = node.snapshot(id, "s");
    delete(&node, snapshot);
    node.settle();
    // No room for all of it twice.
    let rest = thick(&node, "rest", free - EXTENTS - 20).unwrap();
    let before = reserved(&node);
    node.run(move |pool| async move { pool.set_flags(id, None, Some(true)).await })
        .unwrap();
    assert_eq!(reserved(&node), before);
    write_extents(&node, rest, 0..free - EXTENTS - 20, 2);
    write_extents(&node, id, 0..EXTENTS, 3);
    assert_eq!(reserved(&node), 0);
}

#[test]
fn reservations_are_right_after_a_crash_while_a_snapshot_is_deleted() {
    let base = medium();
    let node = Node::create(&base);
    let id = thick(&node, "thick", EXTENTS).unwrap();
    write_extents(&node, id, 0..EXTENTS, 1);
    let snapshot = node.snapshot(id, "s");
    write_extents(&node, id, 2..5, 2);
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    each_cut(
        &base,
        3,
        |node| {
            let _ = node.run(move |pool| async move { pool.delete(snapshot).await });
            let _ = node.run(move |pool| async move { pool.settled().await });
        },
        |node, ended| {
            node.settle();
            let is_deleted = node.pool.find("s").is_none();
            assert!(is_deleted || !ended);
            let expected = if is_deleted { 0 } else { EXTENTS - 3 };
            assert_eq!(reserved(node), expected);
        },
    );
}

/// What is written while a change waits to freeze the volume counts, too.
#[test]
fn what_shares_a_thick_volume_reserves_what_it_has_when_it_is_frozen() {
    const WRITTEN: u64 = 20;
    let medium = medium();
    let node = Node::create(&medium);
    let first = node.create_volume("first", PER_EXTENT);
    let own = node.open(first);
    node.write(&own, 0, PER_EXTENT, 7, Durability::Cached)
        .unwrap();
    drop(own);
    let id = thick(&node, "thick", EXTENTS).unwrap();
    write_extents(&node, id, 0..WRITTEN, 1);
    // Just what a snapshot of it reserves is left.
    let left = node.pool.status().available_bytes / EXTENT - WRITTEN;
    thick(&node, "rest", left).unwrap();
    assert_eq!(node.pool.status().available_bytes / EXTENT, WRITTEN);
    let handle = node.pool.share(2, Wakeups::None).unwrap();
    let other = TestCore::new(1, MachineClock::new());
    let part = PoolCore::open(&handle, &other.reactor, medium.open_slow(&other.reactor)).unwrap();
    let away = Volume::open(&part, &node.pool.volume_handle(first).unwrap()).unwrap();
    // The disk of the other core has an overwrite of the first volume, which holds the group up.
    let from = other.filled(&block(8, 512));
    let overwritten = other.spawn(async move {
        away.write(Lba(3), std::slice::from_ref(&from), Durability::Cached)
            .await
    });
    other.turn();
    let (pool, list) = (
        node.pool.clone(),
        [(first, named("s of first")), (id, named("s"))],
    );
    let taken = node.core.spawn(async move { pool.snapshot(&list).await });
    for _ in 0..20 {
        node.core.turn();
    }
    assert!(!taken.is_there());
    write_extents(&node, id, WRITTEN..EXTENTS, 2);
    assert!(!taken.is_there() && !overwritten.is_there());
    node.core.turn_until("the snapshots", || {
        other.turn();
        taken.is_there()
    });
    assert_eq!(taken.take(), Err(PoolError::NoSpace));
    // All that it has reserved is there.
    write_extents(&node, id, 0..EXTENTS, 3);
    node.checked();
}
