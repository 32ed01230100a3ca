//! Pools whose maps do not fit into the memory that they may take.

use corebay_core::{
    disk::{Disk, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};

use crate::support::{Medium, Node, disk::block, model::Model, offline_check};

/// Blocks under one leaf of a map.
const LEAF_BLOCKS: u64 = 64 * 256;

const LEAVES: u64 = 24;

/// The places that are written to, a few in each leaf.
fn place(number: u64) -> u64 {
    number / 4 * LEAF_BLOCKS + number % 4 * 300
}

#[test]
fn maps_are_read_again_where_they_do_not_fit_into_memory() {
    let medium = Medium::new(BlockSize::B4096, 2 << 30, true, 1);
    let node = Node::create(&medium);
    node.pool.set_page_limit(6);
    let id = node.create_volume("v", LEAVES * LEAF_BLOCKS);
    let volume = node.open(id);
    let places = LEAVES * 4;
    let mut model = Model::new(places);
    let mut snapshots = Vec::new();
    let mut rng = Rng::from_seed(7);
    let mut most = 0;
    for tag in 1..600 {
        let number = rng.below(places);
        if rng.once_in(6) {
            node.deallocate(&volume, place(number), 1);
            model.begin(number, 1, 0);
        } else {
            node.write(&volume, place(number), 1, tag, Durability::Durable)
                .unwrap();
            model.begin(number, 1, tag);
        }
        model.sure(number, 1);
        let look = rng.below(places);
        let newest = *model.blocks[look as usize].last().unwrap();
        assert_eq!(node.tags(&volume, place(look), 1), [newest]);
        if tag % 100 == 0 {
            snapshots.push((node.snapshot(id, &format!("s{tag}")), model.clone()));
            node.checkpoint();
            node.write(&volume, 300 * 17, 1, 9999, Durability::Cached)
                .unwrap();
            most = most.max(node.pool.pages_in_memory());
        }
        if tag == 350 {
            let (gone, _) = snapshots.remove(1);
            node.run(|pool| async move { pool.delete(gone).await })
                .unwrap();
            node.settle();
        }
    }
    // Inner nodes and what has changed since the checkpoint stay.
    assert!(most < 40, "{most} pages were in memory");
    let all = |node: &Node, id, model: &Model, what: &str| {
        let volume = node.open(id);
        let tags: Vec<u64> = (0..places)
            .flat_map(|number| node.tags(&volume, place(number), 1))
            .collect();
        model.expect_newest(&tags, what);
    };
    for (snapshot, model) in &snapshots {
        all(&node, *snapshot, model, "a snapshot");
    }
    all(&node, id, &model, "the volume");
    node.checked();
    drop((volume, node));
    assert_eq!(offline_check(&medium).problems, Vec::<String>::new());
    let node = Node::import(&medium).unwrap();
    all(&node, id, &model, "after a crash");
}

#[test]
fn what_cores_know_of_a_volume_takes_the_memory_that_it_may() {
    const EXTENTS: u64 = 150;
    const MOST: usize = 16;
    let medium = Medium::new(BlockSize::B4096, 512 << 20, true, 1);
    let node = Node::create(&medium);
    node.pool.set_slot_limits(MOST, MOST);
    let id = node.create_volume("v", EXTENTS * 256);
    let volume = node.open(id);
    let mut model = Model::new(EXTENTS * 2);
    let mut rng = Rng::from_seed(3);
    let mut write = |node: &Node, model: &mut Model, number: u64, tag: u64| {
        let at = number / 2 * 256 + number % 2;
        node.write(&volume, at, 1, tag, Durability::Cached).unwrap();
        model.begin(number, 1, tag);
        model.sure(number, 1);
        let number = rng.below(EXTENTS * 2);
        let newest = *model.blocks[number as usize].last().unwrap();
        let at = number / 2 * 256 + number % 2;
        assert_eq!(node.tags(&volume, at, 1), [newest]);
        assert!(node.pool.slots_in_use() <= 2 * MOST);
    };
    // Extents with some blocks, then such as lie in two extents each.
    (0..EXTENTS).for_each(|extent| write(&node, &mut model, extent * 2, 1 + extent));
    assert_eq!(node.pool.slots_in_use(), MOST);
    let snapshot = node.snapshot(id, "s");
    let before = model.clone();
    (0..EXTENTS).for_each(|extent| write(&node, &mut model, extent * 2 + 1, 1000 + extent));
    assert_eq!(node.pool.slots_in_use(), MOST);
    let taken = node.open(snapshot);
    for number in 0..EXTENTS * 2 {
        let newest = |model: &Model| *model.blocks[number as usize].last().unwrap();
        let at = number / 2 * 256 + number % 2;
        assert_eq!(node.tags(&volume, at, 1), [newest(&model)]);
        assert_eq!(node.tags(&taken, at, 1), [newest(&before)]);
    }
    assert!(node.pool.slots_in_use() <= 2 * MOST);
    // Nothing is named for those that are gone.
    drop((volume, taken));
    for id in [snapshot, id] {
        node.run(move |pool| async move { pool.delete(id).await })
            .unwrap();
    }
    node.settle();
    assert_eq!(node.pool.slots_in_use(), 0);
    node.checked();
}

/// A pool whose one volume has so many leaves, none of which is in memory; each has fragments.
fn cold(medium: &Medium, leaves: u64) -> Node {
    let node = Node::create(medium);
    let id = node.create_volume("v", leaves * LEAF_BLOCKS);
    let volume = node.open(id);
    for round in 1..3 {
        for leaf in 0..leaves {
            for extent in 0..3 {
                let at = leaf * LEAF_BLOCKS + extent * 256 + round;
                node.write(&volume, at, 2, round, Durability::Durable)
                    .unwrap();
            }
        }
        if round == 1 {
            node.snapshot(id, "s");
        }
    }
    node.checkpoint();
    drop((volume, node));
    Node::import(medium).unwrap()
}

#[test]
fn an_operation_may_need_more_pages_than_there_may_be() {
    let medium = Medium::new(BlockSize::B512, 8 << 20, true, 1);
    let node = cold(&medium, 2);
    node.pool.set_page_limit(1);
    let volume = node.open(node.pool.find("v").unwrap());
    assert_eq!(node.tags(&volume, LEAF_BLOCKS, 4), [0, 1, 2, 2]);
    // Two leaves and all that is beneath them.
    let at = LEAF_BLOCKS - 1;
    node.write(&volume, at, 2, 7, Durability::Durable).unwrap();
    assert_eq!(node.tags(&volume, at, 5), [7, 7, 1, 2, 2]);
    drop(volume);
    node.checked();
}

#[test]
fn space_of_deleted_volumes_comes_back_after_a_failure_that_passes() {
    let medium = Medium::new(BlockSize::B512, 8 << 20, true, 1);
    let node = cold(&medium, 4);
    let free = node.pool.status().free_bytes;
    for name in ["s", "v"] {
        let id = node.pool.find(name).unwrap();
        medium.fail_reads(true);
        node.run(move |pool| async move { pool.delete(id).await })
            .unwrap();
        for _ in 0..20 {
            node.core.turn();
        }
        medium.fail_reads(false);
    }
    node.settle();
    assert!(node.pool.status().free_bytes > free);
    assert!(!node.pool.status().failed);
    node.checked();
}

#[test]
fn a_pool_goes_on_after_its_maps_could_not_be_read_for_a_moment() {
    for turns in 1..16 {
        let medium = Medium::new(BlockSize::B512, 8 << 20, true, 1);
        let node = cold(&medium, 2);
        node.pool.set_page_limit(1);
        let volume = node.open(node.pool.find("v").unwrap());
        let (writer, buffer) = (volume.clone(), node.core.filled(&block(9, 512)));
        let write = node.core.spawn(async move {
            let from = std::slice::from_ref(&buffer);
            writer.write(Lba(5), from, Durability::Durable).await
        });
        for _ in 0..turns {
            node.core.turn();
        }
        // What is read for others pushes out what the record needs.
        let _ = node.tags(&volume, LEAF_BLOCKS, 1);
        medium.fail_reads(true);
        for _ in 0..6 {
            node.core.turn();
        }
        medium.fail_reads(false);
        node.core
            .turn_until("the end of a write", || write.is_there());
        let written = write.take();
        assert!(!node.pool.status().failed, "after {turns} turns");
        if written == Ok(()) {
            assert_eq!(node.tags(&volume, 5, 1), [9]);
        }
        drop(volume);
        node.checked();
    }
}
