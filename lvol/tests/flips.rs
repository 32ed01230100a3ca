//! Bits that change by themselves in each page of a pool's metadata, whatever it is a page of: in one copy
//! they are told and mended, in both the pool is refused or the check tells of them. No volume or snapshot ever
//! reads as what it was not, also after it was written, and nothing panics.

use std::{collections::BTreeMap, rc::Rc};

use crate::support::{Medium, MediumDisk, Node, context, cuts::is_long, disk::tag_of};
use corebay_conformance::TestCore;
use corebay_core::{
    disk::{Disk, DiskError, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{
    CheckReport, Export, Identity, Volume, check,
    error::PoolError,
    format::{
        COPIES, PAGE_BYTES, SUPERBLOCK_AT, record::Batch, root::Root, superblock::Superblock,
    },
};

const BLOCKS: u64 = 1500;
const FAR: u64 = 1 << 24;
const PAGE: u64 = PAGE_BYTES as u64;

/// Blocks that are read at once.
const STEP: u64 = 50;

/// By volume or snapshot and block: what may be there. The first is what is there.
type Permitted = BTreeMap<String, Vec<Vec<u64>>>;

/// A page of metadata: what it is, and where its copies lie.
type Place = (String, [u64; COPIES]);

/// A pool with all there is, and what it holds.
struct Sample {
    medium: Medium,
    permitted: Permitted,
}

fn identity(name: &str, number: u8) -> Identity {
    Identity {
        name: name.to_owned(),
        uuid: [number; 16],
    }
}

fn export() -> Export {
    Export {
        subsystem: "nqn.2024-01.example:s".to_owned(),
        nsid: 1,
        hosts: vec!["nqn.2024-01.example:h".to_owned()],
        ..Default::default()
    }
}

impl Sample {
    /// Whole extents, fragments, holes, several leaves; snapshots, a clone, a thick volume, an export. In the
    /// journal are changes since the checkpoint.
    fn new() -> Self {
        let medium = Medium::new(BlockSize::B512, 8 << 20, false, 1);
        medium.soil();
        let node = Node::create(&medium);
        let id = node.create_volume("v", BLOCKS);
        let volume = node.open(id);
        let write = |volume: &Rc<Volume<MediumDisk>>, at, blocks, tag| {
            node.write(volume, at, blocks, tag, Durability::Cached)
                .unwrap();
        };
        write(&volume, 0, 600, 1);
        node.snapshot(id, "s");
        write(&volume, 5, 9, 2);
        node.snapshot(id, "t");
        write(&volume, 7, 300, 3);
        let far = node.open(node.create_volume("far", FAR));
        write(&far, FAR - 3, 3, 4);
        node.run(move |pool| async move {
            let clone = pool.clone_volume(id, &identity("c", 5)).await?;
            pool.set_export(clone, Some(&export())).await?;
            pool.create_volume(&identity("w", 6), 300, true).await?;
            pool.checkpoint().await
        })
        .unwrap();
        let mut permitted = Permitted::new();
        let mut note = |what: &Node| {
            for (name, tags) in all_tags(what) {
                let of = permitted
                    .entry(name)
                    .or_insert_with(|| vec![vec![]; tags.len()]);
                of.iter_mut()
                    .zip(tags)
                    .for_each(|(of, tag)| of.insert(0, tag));
            }
        };
        note(&node);
        write(&volume, 700, 5, 7);
        note(&node);
        node.deallocate(&volume, 10, 40);
        note(&node);
        write(&volume, 12, 2, 8);
        note(&node);
        node.snapshot(id, "u");
        note(&node);
        drop((volume, far, node));
        Self { medium, permitted }
    }

    fn superblock(&self) -> Superblock {
        Superblock::parse(&self.medium.bytes(SUPERBLOCK_AT[0], PAGE)).unwrap()
    }

    /// Every page that something refers to.
    fn places(&self) -> Vec<Place> {
        let superblock = self.superblock();
        let layout = superblock.layout;
        let root_at = |copy| layout.root_at(copy, superblock.generation);
        let root = self.medium.bytes(root_at(0), layout.root_bytes);
        let root = Root::parse(&root[..superblock.root_len as usize], layout.extents()).unwrap();
        let mut places = vec![
            ("superblock".to_owned(), SUPERBLOCK_AT),
            ("root".to_owned(), [root_at(0), root_at(1)]),
        ];
        let place = |number: u64| {
            let per_extent = layout.pages_per_extent();
            let pair = root.chunks[((number - 1) / per_extent) as usize];
            let within = (number - 1) % per_extent * PAGE;
            pair.map(|extent| layout.data_at() + extent.0 * layout.extent_bytes() + within)
        };
        let kind_of = |at: u64| format!("page of kind {}", self.medium.bytes(at, PAGE)[4]);
        for piece in root.pieces.iter().flatten() {
            let piece = place(piece.location.get());
            places.push((kind_of(piece[0]), piece));
            let pointers = self.medium.bytes(piece[0], PAGE);
            for pointer in pointers[16..].chunks_exact(16) {
                let number = u64::from_le_bytes(pointer[..8].try_into().unwrap());
                if number != 0 {
                    let page = place(number);
                    places.push((kind_of(page[0]), page));
                }
            }
        }
        for page in 0..layout.journal_pages() {
            let at = [0, 1].map(|copy| layout.journal_at(copy) + page * PAGE);
            let batch = Batch::parse(&self.medium.bytes(at[0], PAGE), superblock.uuid);
            if batch.is_some_and(|batch| batch.sequence >= superblock.journal_sequence) {
                places.push(("journal".to_owned(), at));
            }
        }
        places
    }
}

/// What all volumes and snapshots hold; of large ones the end.
fn all_tags(node: &Node) -> BTreeMap<String, Vec<u64>> {
    let held = node.pool.volumes().into_iter().map(|(id, record)| {
        let volume = node.open(id);
        let (from, blocks) = window(volume.info().blocks);
        (record.name, node.tags(&volume, from, blocks))
    });
    held.collect()
}

fn window(blocks: u64) -> (u64, u64) {
    let count = blocks.min(BLOCKS);
    (blocks - count, count)
}

/// One bit of the page changes, in what there is of it.
fn flip(medium: &Medium, (what, at): (&str, u64), rng: &mut Rng) {
    let mut page = medium.bytes(at, PAGE);
    let used = match what {
        "superblock" => 512,
        // Behind its end, and behind a batch's, is nothing.
        _ => 1 + page.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64,
    };
    let byte = rng.below(used) as usize;
    page[byte] ^= 1 << rng.below(8);
    medium.overwrite(at, &page);
}

fn check_offline(medium: &Medium) -> Result<CheckReport, PoolError> {
    let core = TestCore::single();
    let (context, disk) = (context(&core), medium.open_all());
    core.run(async move { check(&context, disk).await })
}

fn read(node: &Node, volume: &Rc<Volume<MediumDisk>>, at: u64, blocks: u64) -> Option<Vec<u64>> {
    let (volume, buffer) = (volume.clone(), node.core.buffer(512 * blocks as usize));
    let bytes = node.core.run(async move {
        volume.read(Lba(at), std::slice::from_ref(&buffer)).await?;
        Ok::<_, DiskError>(buffer.bytes().to_vec())
    });
    Some(bytes.ok()?.chunks_exact(512).map(tag_of).collect())
}

/// Every block that can be read is what it may be; how many there are that cannot.
fn compare(node: &Node, permitted: &Permitted, what: &str) -> u64 {
    let mut unread = 0;
    for (id, record) in node.pool.volumes() {
        let of = permitted.get(&record.name);
        let of = of.unwrap_or_else(|| panic!("{what}: {} came from nowhere", record.name));
        let Ok(volume) = node.pool.open(id) else {
            unread += of.len() as u64;
            continue;
        };
        let volume = Rc::new(volume);
        let (from, blocks) = window(volume.info().blocks);
        assert_eq!(blocks, of.len() as u64, "{what}: {}", record.name);
        for at in (0..blocks).step_by(STEP as usize) {
            let count = STEP.min(blocks - at);
            let whole = read(node, &volume, from + at, count);
            let one = |at| read(node, &volume, from + at, 1).map(|tags| tags[0]);
            let tags: Vec<Option<u64>> = match whole {
                Some(tags) => tags.into_iter().map(Some).collect(),
                None => (at..at + count).map(one).collect(),
            };
            for (tag, at) in tags.into_iter().zip(at..) {
                unread += u64::from(tag.is_none());
                let may_be = tag.is_none_or(|tag| of[at as usize].contains(&tag));
                assert!(may_be, "{what}: block {at} of {} is {tag:?}", record.name);
            }
        }
    }
    unread
}

fn times() -> u64 {
    if is_long() { 60 } else { 2 }
}

#[test]
fn a_changed_bit_in_one_copy_is_told_and_mended() {
    let sample = Sample::new();
    let all = sample.places();
    for kind in 1..=6 {
        let name = format!("page of kind {kind}");
        assert!(all.iter().any(|(what, _)| *what == name), "no {name}");
    }
    let batches = all.iter().filter(|(what, _)| what == "journal").count();
    assert!(batches >= 4, "{batches} batches");
    // Of each block the newest alone.
    let mut now = sample.permitted.clone();
    now.values_mut().flatten().for_each(|of| of.truncate(1));
    for (number, (name, at)) in all.iter().enumerate() {
        for seed in 0..times() {
            let mut rng = Rng::from_seed(seed << 32 | number as u64);
            let medium = sample.medium.copy(seed);
            let copy = rng.below(COPIES as u64) as usize;
            flip(&medium, (name, at[copy]), &mut rng);
            let what = format!("{name} at {at:?}, copy {copy}, seed {seed}");
            let report = check_offline(&medium).unwrap();
            assert_eq!(report.problems, Vec::<String>::new(), "{what}");
            assert!(report.damaged_copies > 0 || name == "journal", "{what}");
            let node = Node::import(&medium).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(compare(&node, &now, &what), 0, "{what}");
            node.checked();
            assert_eq!(node.checked().damaged_copies, 0, "{what}");
            drop(node);
            assert_eq!(check_offline(&medium).unwrap().damaged_copies, 0, "{what}");
        }
    }
}

/// Writes a volume and lets go of a snapshot, as far as that can be: nobody else may notice. Its space is given
/// back while the pool is used; where that cannot be read, it is tried again and again.
fn go_on(node: &Node, permitted: &mut Permitted) {
    let volume = node.pool.find("v").and_then(|id| node.pool.open(id).ok());
    if let Some(volume) = volume {
        let of = permitted.get_mut("v").unwrap();
        of[1..301].iter_mut().for_each(|of| of.push(9));
        let _ = node.write(&Rc::new(volume), 1, 300, 9, Durability::Cached);
    }
    let _ = node.run(|pool| async move {
        let gone = pool.find("s").ok_or(PoolError::NotFound)?;
        pool.delete(gone).await
    });
}

#[test]
fn changed_bits_in_both_copies_are_told_and_show_nothing_wrong() {
    let sample = Sample::new();
    let (mut refused, mut opened) = (0, 0);
    for (number, (name, at)) in sample.places().iter().enumerate() {
        for seed in 0..times() {
            let mut rng = Rng::from_seed(seed << 32 | number as u64);
            let medium = sample.medium.copy(seed);
            at.iter()
                .for_each(|at| flip(&medium, (name, *at), &mut rng));
            let what = format!("{name} at {at:?}, seed {seed}");
            let told = match check_offline(&medium) {
                Ok(report) => !report.problems.is_empty(),
                Err(PoolError::NotAPool | PoolError::Corrupt(_)) => true,
                Err(error) => panic!("{what}: {error}"),
            };
            // The last batch of the journal may be one that was never finished.
            assert!(told || name == "journal", "{what}: nothing is told");
            let node = match Node::import(&medium) {
                Ok(node) => node,
                Err(PoolError::NotAPool | PoolError::Corrupt(_)) => {
                    refused += 1;
                    continue;
                }
                Err(error) => panic!("{what}: {error}"),
            };
            opened += 1;
            let mut permitted = sample.permitted.clone();
            compare(&node, &permitted, &what);
            let _ = node.run(|pool| async move { pool.check().await });
            go_on(&node, &mut permitted);
            compare(&node, &permitted, &format!("{what}, afterwards"));
            drop(node);
            if let Ok(node) = Node::import(&medium) {
                compare(&node, &permitted, &format!("{what}, imported again"));
            }
        }
    }
    assert!(refused > 5 && opened > 5, "{refused} {opened}");
}
