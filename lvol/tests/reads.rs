//! Reads of blocks that lie in several places.

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    units::{BlockSize, Lba},
};
use corebay_lvol::VolumeId;

use crate::support::{Medium, Node};

const BLOCKS: u64 = 1024;

/// Parts of a read that go together.
const TOGETHER: usize = 8;

/// A volume whose blocks hold their numbers, from 1; every fourth of the first extent, and the second extent,
/// were written after a snapshot, and the third is empty.
fn fragmented(medium: &Medium) -> (Node, VolumeId, Vec<u64>) {
    let node = Node::create(medium);
    let id = node.create_volume("v", BLOCKS);
    let volume = node.open(id);
    for at in (0..512).chain(768..BLOCKS) {
        node.write(&volume, at, 1, at + 1, Durability::Cached)
            .unwrap();
    }
    node.snapshot(id, "s");
    for at in (0..256).step_by(4).chain(256..512) {
        node.write(&volume, at, 1, at + 1, Durability::Cached)
            .unwrap();
    }
    let expected = (0..BLOCKS).map(|at| if at / 256 == 2 { 0 } else { at + 1 });
    (node, id, expected.collect())
}

#[test]
fn parts_of_a_read_are_on_their_way_together() {
    let medium = Medium::new(BlockSize::B4096, 32 << 20, true, 1);
    medium.soil();
    let (node, id, expected) = fragmented(&medium);
    let volume = node.open(id);
    for (at, blocks, together) in [
        (1, 3, 1),
        (0, 4, 2),
        (250, 256, 4),
        (0, 256, TOGETHER),
        (255, 2, 2),
        (500, 256, 1),
        (400, 500, 1),
    ] {
        medium.most_reads();
        let found = node.tags(&volume, at, blocks);
        let range = at as usize..(at + blocks) as usize;
        assert_eq!(found, expected[range], "{blocks} blocks from {at}");
        assert_eq!(medium.most_reads(), together, "{blocks} blocks from {at}");
    }
    // Also before anything was looked at: then its places are learned first.
    drop((volume, node));
    let node = Node::import(&medium).unwrap();
    let volume = node.open(id);
    assert_eq!(node.tags(&volume, 0, BLOCKS), expected);
    node.checked();
}

#[test]
fn many_reads_of_many_parts_at_once_all_end() {
    let medium = Medium::new(BlockSize::B4096, 32 << 20, true, 1);
    let (node, id, expected) = fragmented(&medium);
    let volume = node.open(id);
    let all: Vec<_> = (0..16u64)
        .map(|number| {
            let buffer = node.core.buffer(64 << 12);
            let volume = volume.clone();
            node.core.spawn(async move {
                let into = std::slice::from_ref(&buffer);
                volume.read(Lba(number * 12), into).await.unwrap();
                let tags = buffer.bytes().chunks_exact(4096).map(tag).collect();
                (number as usize * 12, tags)
            })
        })
        .collect();
    medium.most_reads();
    node.core
        .turn_until("the reads", || all.iter().all(|read| read.is_there()));
    // More than one read has its parts under way, and not more than there are places for.
    let most = medium.most_reads();
    assert!((TOGETHER + 1..=48).contains(&most), "{most}");
    for read in all {
        let (at, tags): (usize, Vec<u64>) = read.take();
        assert_eq!(tags, expected[at..at + 64]);
    }
}

fn tag(block: &[u8]) -> u64 {
    crate::support::disk::tag_of(block)
}

#[test]
fn a_part_that_cannot_be_read_fails_the_read_alone() {
    let medium = Medium::new(BlockSize::B4096, 32 << 20, true, 1);
    let (node, id, expected) = fragmented(&medium);
    let volume = node.open(id);
    // Wherever block 101 lies.
    let lies = (0..32 << 8).find(|at| {
        let bytes = medium.bytes(at << 12, 4096);
        bytes[..] == crate::support::disk::block(102, 4096)
    });
    medium.lose(lies.unwrap() << 12..(lies.unwrap() + 1) << 12);
    let read = |at: u64, blocks: usize| {
        let (volume, buffer) = (volume.clone(), node.core.buffer(blocks << 12));
        let read = async move { volume.read(Lba(at), std::slice::from_ref(&buffer)).await };
        node.core.run(read)
    };
    for _ in 0..40 {
        assert_eq!(read(90, 20), Err(DiskError::UnrecoveredRead));
    }
    medium.most_reads();
    assert_eq!(node.tags(&volume, 0, 100), expected[..100]);
    // Those that failed have given their places back.
    assert_eq!(medium.most_reads(), TOGETHER);
}
