//! Pools whose maps do not fit into the memory that they may take.

use corebay_core::{disk::Durability, rng::Rng, units::BlockSize};

use crate::support::{Medium, Node, model::Model, offline_check};

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
