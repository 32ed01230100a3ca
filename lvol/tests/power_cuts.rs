//! The power fails after each single change of the disk in turn, amid everything a pool does.
//!
//! Each script runs once to its end, to count its changes; then once for each of them, with the power
//! failing there: of the command under way each block is done or not, of what was not flushed each
//! block's versions survive or none. Then the pool is opened (and the power fails again amid that),
//! checked, and compared with what may be there.

use std::{collections::BTreeMap, rc::Rc};

use crate::support::{
    Medium, MediumDisk, Node, cuts::places, disk::block, model::Model, named, offline_check,
};
use corebay_core::{
    disk::{Disk, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{Volume, error::PoolError};

const DISK_BYTES: u64 = 8 << 20;

const ZONE_BYTES: u64 = 300 << 10;

/// A step of a script. Volumes go by their names.
#[derive(Clone, Debug)]
enum Step {
    Create(&'static str, u64),
    /// From this block on, so many, durable or not.
    Write(&'static str, u64, u64, bool),
    /// Several at once, each as `Write`, none over another.
    Writes(&'static str, &'static [(u64, u64)]),
    Flush(&'static str),
    Clear(&'static str, u64, u64),
    /// Zeroes that keep the space where they lie.
    Zero(&'static str, u64, u64),
    Snapshot(&'static str, &'static str),
    Clone(&'static str, &'static str),
    Delete(&'static str),
    Settle,
    RollBack(&'static str, &'static str),
    Resize(&'static str, u64),
    Checkpoint,
}

use Step::{
    Checkpoint, Clear, Clone as CloneOf, Create, Delete, Flush, Resize, RollBack, Settle, Snapshot,
    Write, Writes, Zero,
};

/// What may be found after the power has failed.
#[derive(Default, Clone)]
struct Expected {
    volumes: BTreeMap<&'static str, Model>,
    /// A step that was under way: its name may be there or not, or with another content or size.
    doubt: Option<Step>,
    /// What a volume was before the step in doubt, or will be after it.
    other: BTreeMap<&'static str, Model>,
}

struct Run {
    node: Node,
    medium: Medium,
    expected: Expected,
    tag: u64,
}

impl Run {
    fn volume(&self, name: &str) -> Option<Rc<Volume<MediumDisk>>> {
        let id = self.node.pool.find(name)?;
        Some(self.node.open(id))
    }

    /// Runs the script until its end or the power's.
    fn all(&mut self, script: &[Step]) {
        for (number, step) in script.iter().enumerate() {
            self.tag = number as u64 * 16 + 1;
            self.expected.doubt = Some(step.clone());
            self.expected.other.clear();
            self.step(step);
            if self.medium.has_stopped() {
                return;
            }
            self.done(step);
            self.expected.doubt = None;
        }
    }

    fn model(&mut self, name: &'static str) -> &mut Model {
        self.expected
            .volumes
            .get_mut(name)
            .expect("a volume of the script")
    }

    fn step(&mut self, step: &Step) {
        let find = |name| self.node.pool.find(name).expect("a volume of the script");
        match *step {
            Create(name, blocks) => {
                self.node.create_volume(name, blocks);
            }
            Write(name, at, blocks, durable) => {
                let tag = self.tag;
                self.model(name).begin(at, blocks, tag);
                let durability = if durable {
                    Durability::Durable
                } else {
                    Durability::Cached
                };
                let volume = self.volume(name).unwrap();
                self.node
                    .write(&volume, at, blocks, tag, durability)
                    .unwrap();
            }
            Writes(name, list) => self.writes(name, list),
            Flush(name) => {
                let volume = self.volume(name).unwrap();
                self.node
                    .core
                    .run(async move { volume.flush().await })
                    .unwrap();
            }
            Clear(name, at, blocks) => {
                self.model(name).begin(at, blocks, 0);
                self.node
                    .deallocate(&self.volume(name).unwrap(), at, blocks);
            }
            Zero(name, at, blocks) => self.zero(name, at, blocks),
            Snapshot(of, name) => {
                self.node.snapshot(find(of), name);
            }
            CloneOf(of, name) => {
                let (of, identity) = (find(of), named(name));
                let made = self
                    .node
                    .run(|pool| async move { pool.clone_volume(of, &identity).await });
                made.unwrap();
            }
            Delete(name) => {
                let id = find(name);
                self.node
                    .run(|pool| async move { pool.delete(id).await })
                    .unwrap();
            }
            Settle => self.node.settle(),
            RollBack(name, to) => {
                let (id, to) = (find(name), find(to));
                self.node
                    .run(|pool| async move { pool.roll_back(id, to).await })
                    .unwrap();
            }
            Resize(name, blocks) => {
                let id = find(name);
                let resized = self
                    .node
                    .run(|pool| async move { pool.resize(id, blocks, true).await });
                resized.unwrap();
            }
            Checkpoint => self.node.checkpoint(),
        }
    }

    fn zero(&mut self, name: &'static str, at: u64, blocks: u64) {
        self.model(name).begin(at, blocks, 0);
        let volume = self.volume(name).unwrap();
        let zeroes = async move {
            let kept = volume.write_zeroes(Lba(at), blocks, Space::Keep, Durability::Cached);
            kept.await
        };
        self.node.core.run(zeroes).unwrap();
    }

    fn writes(&mut self, name: &'static str, list: &[(u64, u64)]) {
        let volume = self.volume(name).unwrap();
        let size = volume.info().block_size.bytes();
        let mut ends = Vec::new();
        for (number, (at, blocks)) in list.iter().enumerate() {
            let tag = self.tag + number as u64;
            self.model(name).begin(*at, *blocks, tag);
            let bytes = block(tag, size).repeat(*blocks as usize);
            let (volume, buffer, at) = (volume.clone(), self.node.core.filled(&bytes), Lba(*at));
            ends.push(
                self.node
                    .core
                    .spawn(async move { volume.write(at, &[buffer], Durability::Cached).await }),
            );
        }
        for end in ends {
            self.node
                .core
                .turn_until("a write's end", || end.is_there());
            end.take().unwrap();
        }
    }

    /// The step was acknowledged before the power failed.
    fn done(&mut self, step: &Step) {
        let volatile = self.medium.info().volatile_cache;
        let expected = &mut self.expected.volumes;
        match *step {
            Create(name, blocks) => {
                expected.insert(name, Model::new(blocks));
            }
            Write(name, at, blocks, durable) if durable || !volatile => {
                self.model(name).sure(at, blocks);
            }
            Writes(name, list) if !volatile => {
                for (at, blocks) in list {
                    self.model(name).sure(*at, *blocks);
                }
            }
            // A flush makes everything sure, of all volumes.
            Flush(_) => expected.values_mut().for_each(Model::all_sure),
            Clear(name, at, blocks) | Zero(name, at, blocks) => {
                self.model(name).sure(at, blocks);
            }
            Snapshot(of, name) | CloneOf(of, name) => {
                let model = expected[of].clone();
                expected.insert(name, model);
            }
            Delete(name) => {
                expected.remove(name);
            }
            RollBack(name, to) => {
                let model = expected[to].clone();
                expected.insert(name, model);
            }
            Resize(name, blocks) => self.model(name).resize(blocks),
            Write(..) | Writes(..) | Settle | Checkpoint => {}
        }
    }
}

impl Expected {
    /// Compares a pool that was opened after a loss of power.
    fn compare(&self, node: &Node, what: &str) {
        for (name, model) in &self.volumes {
            let id = node.pool.find(name);
            let id = match (&self.doubt, id) {
                (Some(Delete(gone)), None) if gone == name => continue,
                (_, None) => panic!("{what}: {name} is gone"),
                (_, Some(id)) => id,
            };
            let volume = node.open(id);
            let mut model = model.clone();
            match &self.doubt {
                Some(RollBack(rolled, to)) if rolled == name => {
                    let old = node.tags(&volume, 0, volume.info().blocks);
                    let possible = |model: &Model| {
                        model.blocks.len() == old.len()
                            && model
                                .blocks
                                .iter()
                                .zip(&old)
                                .all(|(all, tag)| all.contains(tag))
                    };
                    assert!(
                        possible(&model) || possible(&self.volumes[to]),
                        "{what}: {name} is a mixture"
                    );
                    continue;
                }
                Some(Resize(sized, blocks)) if sized == name => {
                    // What is being cut off is zeroes already, or not; the size is either.
                    let now = volume.info().blocks;
                    assert!(
                        now == *blocks || now == model.blocks.len() as u64,
                        "{what}: {now}"
                    );
                    for block in model.blocks.iter_mut().skip(*blocks as usize) {
                        block.push(0);
                    }
                    model.resize(now);
                }
                _ => {}
            }
            let tags = node.tags(&volume, 0, volume.info().blocks);
            model.expect_possible(&tags, &format!("{what}: {name}"));
        }
        for (_, record) in node.pool.volumes() {
            let name = record.name.as_str();
            let doubted = match &self.doubt {
                Some(Create(new, _) | Snapshot(_, new) | CloneOf(_, new)) => *new == name,
                _ => false,
            };
            let dying = record.kind == corebay_lvol::format::page::Kind::Dying;
            assert!(
                dying || doubted || self.volumes.contains_key(name),
                "{what}: {name} came back"
            );
            if let Some(Snapshot(of, new) | CloneOf(of, new)) = &self.doubt
                && *new == name
            {
                let volume = node.open(node.pool.find(name).unwrap());
                let tags = node.tags(&volume, 0, volume.info().blocks);
                self.volumes[of].expect_possible(&tags, &format!("{what}: {name}, taken in doubt"));
            }
        }
    }
}

/// Runs a script on a pool that it finds on `base`, with the power failing after each change.
fn everywhere(base: &Medium, before: &Expected, script: &[Step]) {
    let run = |seed: u64, stop_after: Option<u64>| {
        let medium = base.copy(seed);
        let node = Node::import(&medium).expect("the pool at the start");
        let from = medium.changes();
        if let Some(changes) = stop_after {
            medium.stop_after(from + changes);
        }
        let mut run = Run {
            node,
            medium,
            expected: before.clone(),
            tag: 0,
        };
        run.all(script);
        (
            run.medium.clone(),
            run.medium.changes() - from,
            run.expected.clone(),
        )
    };
    let (medium, changes, expected) = run(0, None);
    assert!(changes > 10, "the script changes nothing");
    expected.compare(&Node::import(&medium).unwrap(), "without a loss of power");
    for cut in places(changes, 31) {
        let seed = cut * 7 + 1;
        let what = format!("cut after {cut} of {changes} changes");
        let (medium, _, expected) = run(seed, Some(cut));
        medium.cut_power();
        // The power may fail again while the pool is opened.
        let mut rng = Rng::from_seed(seed);
        if rng.once_in(2) {
            medium.stop_after(medium.changes() + rng.below(120));
            drop(Node::import(&medium).unwrap_or_else(|error| panic!("{what}: {error}")));
            medium.cut_power();
        }
        let report = offline_check(&medium);
        assert!(
            report.problems.is_empty(),
            "{what}, {:?}: {:?}",
            expected.doubt,
            report.problems
        );
        let node = Node::import(&medium).unwrap_or_else(|error| panic!("{what}: {error}"));
        expected.compare(&node, &format!("{what}, in {:?}", expected.doubt));
        // It goes on working, and nothing is lost of what was freed.
        node.settle();
        if let Some(volume) = expected
            .volumes
            .keys()
            .find_map(|name| node.pool.find(name))
        {
            let volume = node.open(volume);
            if node.write(&volume, 0, 3, 999, Durability::Durable).is_ok() {
                assert_eq!(node.tags(&volume, 0, 3), [999; 3], "{what}");
            }
        }
        node.checked();
    }
}

fn with_pool(kind: Kind, script: &[Step]) {
    with_pool_after(kind, &[], script);
}

/// The script under test, after one that is not cut.
fn with_pool_after(kind: Kind, first: &[Step], script: &[Step]) {
    let medium = kind.medium(1);
    medium.soil();
    let node = Node::create(&medium);
    let expected = Expected::default();
    let mut run = Run {
        node,
        medium,
        expected,
        tag: 0,
    };
    run.all(first);
    let volume = run.expected.volumes.keys().next().copied();
    if let Some(volume) = volume.and_then(|name| run.volume(name)) {
        run.node
            .core
            .run(async move { volume.flush().await })
            .unwrap();
        run.expected.volumes.values_mut().for_each(Model::all_sure);
    }
    let Run {
        node,
        medium,
        expected,
        ..
    } = run;
    drop(node);
    medium.cut_power();
    everywhere(&medium, &expected, script);
}

/// What a pool lies on.
#[derive(Clone, Copy, Debug)]
struct Kind {
    block_size: BlockSize,
    volatile: bool,
    /// The journal is in the mirrored zone beside the disk.
    zone: bool,
}

const fn kind(block_size: BlockSize, volatile: bool, zone: bool) -> Kind {
    Kind {
        block_size,
        volatile,
        zone,
    }
}

const KINDS: [Kind; 4] = [
    kind(BlockSize::B512, false, false),
    kind(BlockSize::B512, true, false),
    kind(BlockSize::B4096, true, false),
    kind(BlockSize::B512, true, true),
];

impl Kind {
    fn medium(self, seed: u64) -> Medium {
        let large = self.block_size == BlockSize::B4096;
        let bytes = DISK_BYTES * if large { 8 } else { 1 };
        let medium = Medium::new(self.block_size, bytes, self.volatile, seed);
        medium.with_zone(if self.zone { ZONE_BYTES } else { 0 })
    }
}

#[test]
fn making_a_pool() {
    for kind in KINDS {
        for cut in places(2000, 31) {
            let medium = kind.medium(cut);
            medium.soil();
            medium.stop_after(cut);
            drop(Node::create(&medium));
            let stopped = medium.has_stopped();
            medium.cut_power();
            match Node::import(&medium) {
                Ok(node) => {
                    node.checked();
                    node.create_volume("v", 10);
                }
                Err(error) => {
                    assert_eq!(error, PoolError::NotAPool, "cut after {cut}");
                    assert!(stopped, "it was made");
                    drop(Node::create(&medium));
                    drop(Node::import(&medium).unwrap());
                }
            }
        }
    }
}

#[test]
fn making_volumes_and_writing_to_them() {
    for kind in KINDS {
        with_pool(
            kind,
            &[
                Create("v", 700),
                Write("v", 3, 5, false),
                Write("v", 5, 9, true),
                Writes("v", &[(250, 12), (20, 1), (21, 1), (600, 100), (262, 1)]),
                Write("v", 3, 20, false),
                Flush("v"),
                Write("v", 4, 2, false),
                Checkpoint,
                Write("v", 5, 3, false),
                Write("v", 290, 3, false),
            ],
        );
    }
}

#[test]
fn clearing() {
    for kind in KINDS {
        with_pool_after(
            kind,
            &[
                Create("v", 40_000),
                Write("v", 200, 200, false),
                Write("v", 20_000, 256, false),
            ],
            &[
                Clear("v", 210, 3),
                Write("v", 211, 1, false),
                Clear("v", 256, 256),
                Write("v", 300, 4, true),
                Zero("v", 216, 60),
                Write("v", 217, 2, true),
                Zero("v", 700, 20),
                Clear("v", 0, 40_000),
                Checkpoint,
                Write("v", 300, 4, false),
                Zero("v", 299, 3),
                Write("v", 20_000, 2, false),
            ],
        );
    }
}

#[test]
fn snapshots_and_writes_after_them() {
    for kind in KINDS {
        with_pool_after(
            kind,
            &[Create("v", 600), Write("v", 30, 256, false)],
            &[
                Snapshot("v", "s"),
                Write("v", 7, 2, false),
                Write("v", 8, 1, false),
                Snapshot("v", "t"),
                CloneOf("s", "c"),
                Write("c", 7, 3, true),
                Clear("v", 0, 9),
                Checkpoint,
                Write("v", 250, 20, false),
            ],
        );
    }
}

#[test]
fn deleting_and_rolling_back() {
    for kind in KINDS {
        with_pool_after(
            kind,
            &[
                Create("v", 20_000),
                Write("v", 30, 256, false),
                Write("v", 19_000, 10, false),
                Snapshot("v", "s"),
                Write("v", 9, 2, false),
                Snapshot("v", "t"),
                Write("v", 9, 1, false),
            ],
            &[
                Delete("s"),
                Settle,
                Write("v", 10, 2, false),
                RollBack("v", "t"),
                Settle,
                Write("v", 9, 2, false),
                Delete("t"),
                Checkpoint,
                Settle,
                Write("v", 300, 250, false),
            ],
        );
    }
}

#[test]
fn resizing() {
    for kind in KINDS {
        with_pool_after(
            kind,
            &[
                Create("v", 300),
                Write("v", 200, 100, false),
                Snapshot("v", "s"),
            ],
            &[
                Resize("v", 40_000),
                Write("v", 39_990, 10, false),
                Checkpoint,
                Resize("v", 250),
                Write("v", 240, 10, false),
                Resize("v", 300),
            ],
        );
    }
}
