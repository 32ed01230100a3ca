//! Volumes as hosts see them, against the model, with restarts and checks between.

use std::{collections::BTreeMap, rc::Rc};

use crate::support::{self, Medium, Node, model::Model, named, offline_check};
use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{VolumeId, error::PoolError};

const MIB: u64 = 1 << 20;

#[test]
fn a_volume_reads_zeroes_until_it_is_written_whatever_the_disk_held() {
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let medium = Medium::new(
            block_size,
            if block_size == BlockSize::B512 { 8 } else { 64 } * MIB,
            false,
            1,
        );
        medium.soil();
        let node = Node::create(&medium);
        let id = node.create_volume("a", 1000);
        let volume = node.open(id);
        assert_eq!(node.tags(&volume, 0, 1000), vec![0; 1000]);
        node.write(&volume, 250, 20, 5, Durability::Cached).unwrap();
        let mut expected = vec![0; 1000];
        expected[250..270].fill(5);
        assert_eq!(node.tags(&volume, 0, 1000), expected);
        assert_eq!(volume.mapped_blocks(), 20);
        node.deallocate(&volume, 255, 5);
        expected[255..260].fill(0);
        assert_eq!(node.tags(&volume, 0, 1000), expected);
        assert_eq!(volume.mapped_blocks(), 15);
        node.checked();
        drop(volume);
        drop(node);
        let node = Node::import(&medium).unwrap();
        let volume = node.open(node.pool.find("a").unwrap());
        assert_eq!(node.tags(&volume, 0, 1000), expected);
        node.checked();
    }
}

#[test]
fn snapshots_and_clones_keep_what_they_saw_and_go_in_any_order() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let medium = Medium::new(BlockSize::B512, 16 * MIB, false, 1);
        let node = Node::create(&medium);
        let free = node.pool.status().free_bytes;
        let id = node.create_volume("v", 2000);
        let volume = node.open(id);
        let mut seen = Vec::new();
        for round in 0..3u64 {
            node.write(&volume, round * 100, 300, round + 1, Durability::Cached)
                .unwrap();
            let snapshot = node.snapshot(id, &format!("s{round}"));
            seen.push((snapshot, node.tags(&volume, 0, 2000)));
        }
        node.write(&volume, 50, 700, 9, Durability::Cached).unwrap();
        let clone = node.run(|pool| async move {
            let source = pool.find("s1").unwrap();
            pool.clone_volume(source, &named("c")).await
        });
        let clone = node.open(clone.unwrap());
        node.write(&clone, 0, 1, 77, Durability::Cached).unwrap();
        let mut cloned = seen[1].1.clone();
        cloned[0] = 77;
        for number in order {
            for (snapshot, content) in &seen {
                if let Ok(snapshot) = node.pool.open(*snapshot) {
                    assert_eq!(&node.tags(&Rc::new(snapshot), 0, 2000), content);
                }
            }
            let (snapshot, _) = seen[number];
            node.run(|pool| async move { pool.delete(snapshot).await })
                .unwrap();
            node.settle();
            node.checked();
        }
        assert_eq!(node.tags(&clone, 0, 2000), cloned);
        assert_eq!(node.tags(&volume, 50, 700), vec![9; 700]);
        drop((volume, clone));
        for name in ["v", "c"] {
            let id = node.pool.find(name).unwrap();
            node.run(|pool| async move { pool.delete(id).await })
                .unwrap();
        }
        node.settle();
        node.checkpoint();
        node.checked();
        let status = node.pool.status();
        // All is free but the extents that metadata took.
        assert!(status.free_bytes + 8 * (128 << 10) >= free, "{status:?}");
        drop(node);
        assert_eq!(offline_check(&medium).problems, Vec::<String>::new());
    }
}

#[test]
fn small_writes_after_a_snapshot_take_one_extent_and_copy_nothing() {
    let medium = Medium::new(BlockSize::B512, 16 * MIB, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 256);
    let volume = node.open(id);
    node.write(&volume, 0, 256, 1, Durability::Cached).unwrap();
    node.snapshot(id, "s");
    let (before, free) = (medium.changes(), node.pool.status().free_bytes);
    node.write(&volume, 7, 1, 2, Durability::Cached).unwrap();
    // One block of data, and one page of the journal in two copies.
    assert_eq!(medium.changes() - before, 1 + 2 * 8);
    assert_eq!(free - node.pool.status().free_bytes, 128 << 10);
    let before = medium.changes();
    node.write(&volume, 7, 1, 3, Durability::Cached).unwrap();
    assert_eq!(
        medium.changes() - before,
        1,
        "the block is the volume's own now"
    );
    node.write(&volume, 9, 1, 4, Durability::Cached).unwrap();
    assert_eq!(free - node.pool.status().free_bytes, 128 << 10);
    let mut expected = vec![1; 256];
    (expected[7], expected[9]) = (3, 4);
    assert_eq!(node.tags(&volume, 0, 256), expected);
}

#[test]
fn a_full_pool_refuses_and_recovers() {
    let medium = Medium::new(BlockSize::B512, 6 * MIB, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 1 << 20);
    let volume = node.open(id);
    let mut written = 0;
    let refused = loop {
        match node.write(&volume, written * 256, 256, written + 1, Durability::Cached) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, DiskError::NoSpace);
    assert!(written > 4, "{written} extents were there");
    // Everything else is served: overwrites, reads, a snapshot, deallocation, checkpoints.
    node.write(&volume, 3, 9, 99, Durability::Cached).unwrap();
    node.checkpoint();
    node.snapshot(id, "s");
    let refused = node.write(&volume, 3, 1, 100, Durability::Cached);
    assert_eq!(
        refused,
        Err(DiskError::NoSpace),
        "the snapshot holds the extent"
    );
    let snapshot = node.pool.find("s").unwrap();
    node.run(|pool| async move { pool.delete(snapshot).await })
        .unwrap();
    node.settle();
    node.write(&volume, 3, 1, 100, Durability::Cached).unwrap();
    node.deallocate(&volume, 256, 512);
    node.write(&volume, written * 256, 256, 7, Durability::Cached)
        .unwrap();
    node.write(&volume, (written + 1) * 256, 256, 8, Durability::Cached)
        .unwrap();
    let refused = node.write(&volume, (written + 2) * 256, 1, 9, Durability::Cached);
    assert_eq!(refused, Err(DiskError::NoSpace));
    assert_eq!(
        node.tags(&volume, 0, 13)[3..],
        [100, 99, 99, 99, 99, 99, 99, 99, 99, 1]
    );
    for round in 0..40 {
        node.deallocate(&volume, 0, 256);
        node.write(&volume, 0, 256, round, Durability::Cached)
            .unwrap();
    }
    node.checked();
    drop(volume);
    drop(node);
    let node = Node::import(&medium).unwrap();
    node.checked();
}

#[test]
fn a_thick_volume_keeps_its_space() {
    let medium = Medium::new(BlockSize::B512, 8 * MIB, false, 1);
    let node = Node::create(&medium);
    let all = node.pool.status().available_bytes / (128 << 10);
    let make = |name: &'static str, blocks, thick| {
        node.run(move |pool| async move { pool.create_volume(&named(name), blocks, thick).await })
    };
    assert_eq!(
        make("too much", (all + 1) * 256, true),
        Err(PoolError::NoSpace)
    );
    let thick = make("thick", 256 * 8, true).unwrap();
    let thin = node.open(make("thin", 256 * 100, false).unwrap());
    let mut written = 0;
    while node
        .write(&thin, written * 256, 256, 1, Durability::Cached)
        .is_ok()
    {
        written += 1;
    }
    assert!(
        written >= all - 9 && written <= all - 8,
        "{written} of {all}"
    );
    let refused = node.run(move |pool| async move { pool.snapshot(&[(thick, named("s"))]).await });
    assert!(refused.is_ok(), "nothing of it is mapped yet");
    let volume = node.open(thick);
    for extent in 0..8 {
        node.write(&volume, extent * 256, 256, 2, Durability::Cached)
            .unwrap();
    }
    let refused = node.run(move |pool| async move { pool.snapshot(&[(thick, named("t"))]).await });
    assert_eq!(
        refused,
        Err(PoolError::NoSpace),
        "its space could not be kept"
    );
    for extent in 0..8 {
        node.write(&volume, extent * 256, 256, 3, Durability::Cached)
            .unwrap();
    }
    node.checked();
}

#[test]
fn resizing_keeps_what_stays() {
    let medium = Medium::new(BlockSize::B512, 16 * MIB, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 300);
    let volume = node.open(id);
    node.write(&volume, 290, 10, 1, Durability::Cached).unwrap();
    node.snapshot(id, "s");
    let resize =
        |blocks, cut| node.run(move |pool| async move { pool.resize(id, blocks, cut).await });
    // To where the map needs two more levels, and back.
    let large = 256 * 64 * 512 * 3;
    resize(large, false).unwrap();
    assert_eq!(volume.info().blocks, large);
    node.write(&volume, large - 3, 3, 2, Durability::Cached)
        .unwrap();
    assert_eq!(node.tags(&volume, large - 5, 5), [0, 0, 2, 2, 2]);
    assert_eq!(
        node.tags(&volume, 288, 14),
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    );
    assert_eq!(resize(295, false), Err(PoolError::InUse));
    resize(295, true).unwrap();
    assert_eq!(volume.info().blocks, 295);
    assert_eq!(volume.mapped_blocks(), 5);
    resize(400, false).unwrap();
    assert_eq!(
        node.tags(&volume, 288, 14),
        [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    );
    node.checked();
    let snapshot = node.open(node.pool.find("s").unwrap());
    assert_eq!(snapshot.info().blocks, 300);
    assert_eq!(
        node.tags(&snapshot, 288, 12),
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    );
}

#[test]
fn zeroes_that_keep_space_need_none_later() {
    let medium = Medium::new(BlockSize::B512, 16 * MIB, false, 1);
    let node = Node::create(&medium);
    let volume = node.open(node.create_volume("v", 1000));
    node.write(&volume, 0, 600, 1, Durability::Cached).unwrap();
    let free = node.pool.status().free_bytes;
    let cleared = volume.clone();
    let zeroes = async move {
        cleared
            .write_zeroes(Lba(0), 512, Space::Keep, Durability::Durable)
            .await
    };
    node.core.run(zeroes).unwrap();
    assert_eq!(node.tags(&volume, 510, 4), [0, 0, 1, 1]);
    assert_eq!(node.pool.status().free_bytes, free);
    node.write(&volume, 0, 512, 2, Durability::Cached).unwrap();
    assert_eq!(node.pool.status().free_bytes, free);
    node.checked();
}

/// A pool, and what its volumes, snapshots (s...) and clones hold.
struct World {
    medium: Medium,
    node: Node,
    rng: Rng,
    models: BTreeMap<String, Model>,
}

impl World {
    fn new(seed: u64, block_size: BlockSize) -> Self {
        let bytes = if block_size == BlockSize::B512 {
            24
        } else {
            160
        } * MIB;
        let medium = Medium::new(block_size, bytes, seed.is_multiple_of(2), seed);
        medium.soil();
        let node = Node::create(&medium);
        let mut models = BTreeMap::new();
        for (name, blocks) in [("a", 700), ("b", 20_000)] {
            node.create_volume(name, blocks);
            models.insert(name.to_owned(), Model::new(blocks));
        }
        let rng = Rng::from_seed(seed);
        Self {
            medium,
            node,
            rng,
            models,
        }
    }

    fn step(&mut self, step: u64) {
        let names: Vec<String> = self.models.keys().cloned().collect();
        let name = &names[self.rng.below(names.len() as u64) as usize];
        let id = self.node.pool.find(name).unwrap();
        let writable = !name.starts_with('s');
        match self.rng.below(20) {
            0..12 if writable => self.change_blocks(name, id, step),
            12..17 => self.change_volumes(name, id, step),
            17 => self.node.checkpoint(),
            18 => {
                self.node.checked();
            }
            19 => self.restart(id),
            _ => self.compare(name, id),
        }
    }

    fn change_blocks(&mut self, name: &str, id: VolumeId, step: u64) {
        let model = self.models.get_mut(name).unwrap();
        let blocks = model.blocks.len() as u64;
        let longest = [3, 40, 600][self.rng.below(3) as usize];
        let volume = self.node.open(id);
        let most = (1 << 20) / volume.info().block_size.bytes() as u64;
        let span = 1 + self.rng.below(longest).min(blocks - 1).min(most - 1);
        let at = self.rng.below(blocks - span + 1);
        if self.rng.once_in(4) {
            self.node.deallocate(&volume, at, span);
            model.begin(at, span, 0);
        } else {
            let written = self.node.write(&volume, at, span, step, Durability::Cached);
            written.unwrap();
            model.begin(at, span, step);
        }
    }

    fn change_volumes(&mut self, name: &str, id: VolumeId, step: u64) {
        let model = self.models[name].clone();
        let node = &self.node;
        match self.rng.below(5) {
            0 => {
                let made = format!("s{step}");
                node.snapshot(id, &made);
                self.models.insert(made, model);
            }
            1 => {
                let made = format!("c{step}");
                let identity = named(&made);
                node.run(|pool| async move { pool.clone_volume(id, &identity).await })
                    .unwrap();
                self.models.insert(made, model);
            }
            2 | 3 if self.models.len() > 4 => {
                self.models.remove(name);
                node.run(|pool| async move { pool.delete(id).await })
                    .unwrap();
            }
            4 if !name.starts_with('s') => {
                let Some(from) = self.models.keys().find(|name| name.starts_with('s')) else {
                    return;
                };
                let (from, snapshot) = (from.clone(), node.pool.find(from).unwrap());
                node.run(|pool| async move { pool.roll_back(id, snapshot).await })
                    .unwrap();
                self.models
                    .insert(name.to_owned(), self.models[&from].clone());
            }
            _ => {}
        }
    }

    /// A loss of power. All is flushed before, so nothing is lost.
    fn restart(&mut self, id: VolumeId) {
        let volume = self.node.open(id);
        let flushed = self.node.core.run(async move { volume.flush().await });
        flushed.unwrap();
        self.medium.cut_power();
        self.node = Node::import(&self.medium).unwrap();
    }

    fn compare(&self, name: &str, id: VolumeId) {
        let volume = self.node.open(id);
        let model = &self.models[name];
        let tags = self.node.tags(&volume, 0, model.blocks.len() as u64);
        model.expect_newest(&tags, name);
        let mapped = tags.iter().filter(|tag| **tag != 0).count() as u64;
        assert_eq!(volume.mapped_blocks(), mapped, "{name}");
    }
}

fn random_run(seed: u64, block_size: BlockSize) {
    let mut world = World::new(seed, block_size);
    for step in 1..150 {
        world.step(step);
    }
    for name in world.models.keys() {
        world.compare(name, world.node.pool.find(name).unwrap());
    }
    world.node.settle();
    world.node.checked();
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 0..12 {
        println!("seed {seed}");
        let block_size = if seed % 3 == 2 {
            BlockSize::B4096
        } else {
            BlockSize::B512
        };
        random_run(seed, block_size);
    }
}

#[test]
fn a_closed_pool_opens_without_a_replay_and_its_names_are_there() {
    let medium = Medium::new(BlockSize::B512, 8 * MIB, true, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 100);
    node.run(|pool| async move {
        pool.rename(id, "w").await?;
        pool.set_attributes(id, b"nsid 7").await?;
        assert_eq!(
            pool.create_volume(&named("w"), 1, false).await,
            Err(PoolError::Exists)
        );
        assert_eq!(pool.delete(VolumeId(99)).await, Err(PoolError::NotFound));
        pool.close().await
    })
    .unwrap();
    drop(node);
    medium.cut_power();
    let node = Node::import(&medium).unwrap();
    let record = node.pool.volume(node.pool.find("w").unwrap()).unwrap();
    assert_eq!(
        (record.blocks, &record.attributes[..], record.uuid),
        (100, &b"nsid 7"[..], [1; 16])
    );
    assert_eq!(node.pool.status().journal_bytes, 0);
}

/// Polls a future so often, then drops it.
struct DropAfter<F> {
    future: Option<std::pin::Pin<Box<F>>>,
    polls: usize,
}

impl<F: Future> Future for DropAfter<F> {
    type Output = ();

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<()> {
        let ended = match &mut self.future {
            Some(future) => future.as_mut().poll(context).is_ready(),
            None => true,
        };
        if ended || self.polls <= 1 {
            self.future = None;
            return std::task::Poll::Ready(());
        }
        self.polls -= 1;
        std::task::Poll::Pending
    }
}

#[test]
fn dropped_operations_harm_nobody() {
    for polls in 1..8 {
        let medium = Medium::new(BlockSize::B512, 16 * MIB, true, 1);
        medium.soil();
        let node = Node::create(&medium);
        let id = node.create_volume("v", 2000);
        let volume = node.open(id);
        node.write(&volume, 0, 256, 1, Durability::Cached).unwrap();
        node.snapshot(id, "s");
        for number in 0..24u64 {
            let (volume, at) = (volume.clone(), number * 7);
            let buffer = node.core.filled(&support::disk::block(2, 4 * 512));
            let operation = async move {
                match number % 4 {
                    0 => volume.read(Lba(at), &[buffer]).await.map(|_| ()),
                    1 => volume.deallocate(Lba(at), 4).await,
                    _ => volume.write(Lba(at), &[buffer], Durability::Cached).await,
                }
            };
            let dropped = DropAfter {
                future: Some(Box::pin(operation)),
                polls,
            };
            node.core.spawn(dropped);
        }
        for _ in 0..20 {
            node.core.turn();
        }
        node.write(&volume, 100, 300, 3, Durability::Cached)
            .unwrap();
        node.deallocate(&volume, 120, 10);
        node.snapshot(id, "t");
        node.write(&volume, 100, 300, 4, Durability::Cached)
            .unwrap();
        let snapshot = node.open(node.pool.find("s").unwrap());
        assert_eq!(node.tags(&snapshot, 0, 256), vec![1; 256]);
        assert_eq!(node.tags(&volume, 100, 300), vec![4; 300]);
        node.checked();
        drop((volume, snapshot));
        drop(node);
        medium.cut_power();
        Node::import(&medium).unwrap().checked();
    }
}

#[test]
fn a_volume_may_be_far_larger_than_its_pool() {
    let medium = Medium::new(BlockSize::B4096, 128 * MIB, false, 1);
    let mut node = Node::create(&medium);
    // 256 TiB.
    let blocks = 1 << 36;
    let id = node.create_volume("v", blocks);
    let volume = node.open(id);
    let places = [0, 1 << 20, (1 << 30) + 255, blocks - 1];
    for (tag, at) in (1..).zip(places) {
        node.write(&volume, at, 1, tag, Durability::Cached).unwrap();
    }
    drop(volume);
    for _ in 0..2 {
        let volume = node.open(id);
        for (tag, at) in (1..).zip(places) {
            assert_eq!(node.tags(&volume, at, 1), [tag]);
        }
        assert_eq!(node.tags(&volume, 1 << 35, 3), [0; 3]);
        node.checked();
        drop(volume);
        node.checkpoint();
        node = Node::import(&medium).unwrap();
    }
    let volume = node.open(id);
    node.deallocate(&volume, 1, blocks - 2);
    assert_eq!(volume.mapped_blocks(), 2);
    node.deallocate(&volume, 0, blocks);
    assert_eq!(volume.mapped_blocks(), 0);
    // The whole map is gone: nothing but the volume is left.
    assert_eq!(node.checked().pages, 0);
}

#[test]
fn a_pool_whose_disk_fails_goes_on_reading() {
    let medium = Medium::new(BlockSize::B512, 8 * MIB, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 500);
    let volume = node.open(id);
    node.write(&volume, 0, 10, 1, Durability::Cached).unwrap();
    medium.fail_writes(true);
    let refused = node.write(&volume, 300, 1, 2, Durability::Cached);
    assert_eq!(refused, Err(DiskError::WriteFault));
    assert!(!node.pool.status().failed, "a write of data fails alone");
    let identity = named("w");
    let refused = node.run(|pool| async move { pool.create_volume(&identity, 9, false).await });
    assert_eq!(refused, Err(PoolError::Failed));
    assert!(node.pool.status().failed);
    medium.fail_writes(false);
    let refused = node.write(&volume, 300, 1, 2, Durability::Cached);
    assert_eq!(refused, Err(DiskError::WriteFault));
    node.write(&volume, 3, 1, 5, Durability::Cached).unwrap();
    assert_eq!(node.tags(&volume, 0, 5), [1, 1, 1, 5, 1]);
    drop(volume);
    drop(node);
    let node = Node::import(&medium).unwrap();
    let volume = node.open(id);
    assert_eq!(node.tags(&volume, 0, 5), [1, 1, 1, 5, 1]);
    node.write(&volume, 300, 1, 2, Durability::Cached).unwrap();
    node.checked();
}

#[test]
fn flags_that_are_set_at_once_are_all_kept() {
    let medium = Medium::new(BlockSize::B512, 8 * MIB, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 100);
    drop(node);
    for turns in 0..8 {
        let node = Node::import_slow(&medium.copy(1));
        let set = |read_only, thick| {
            let pool = node.pool.clone();
            (node.core).spawn(async move { pool.set_flags(id, read_only, thick).await })
        };
        let thick = set(None, Some(true));
        for _ in 0..turns {
            node.core.turn();
        }
        let read_only = set(Some(true), None);
        (node.core).turn_until("both", || thick.is_there() && read_only.is_there());
        assert_eq!((thick.take(), read_only.take()), (Ok(()), Ok(())));
        let record = node.pool.volume(id).unwrap();
        assert_eq!((record.read_only, record.thick), (true, true), "{turns}");
    }
}
