//! Checkpoints of many pages: taken over many turns, while hosts go on.

use std::{cell::RefCell, rc::Rc};

use corebay_core::{
    disk::{Disk, Durability},
    units::{BlockSize, Lba},
};
use corebay_lvol::VolumeId;

use crate::support::{Medium, Node, cuts::is_long, disk::block, offline_check};

const PER_LEAF: u64 = 64 * 256;
const PAGE_BYTES: u64 = 4096;

/// Pages that are taken in one turn.
const PAGES_AT_ONCE: u64 = 64;

type Acknowledged = Rc<RefCell<Vec<(u64, u64)>>>;

fn medium() -> Medium {
    Medium::new(BlockSize::B512, 4 << 30, false, 1)
}

/// Begins to write a block under each leaf; what is acknowledged is noted.
fn write_leaves(
    node: &Node,
    id: VolumeId,
    leaves: &[u64],
    within: u64,
    done: &Acknowledged,
) -> impl Fn() -> bool + use<> {
    let volume = node.open(id);
    let mut tasks = Vec::new();
    for leaf in leaves.iter().copied() {
        let (at, tag) = (leaf * PER_LEAF + within, 1 + leaf * 1000 + within);
        let buffer = node.core.filled(&block(tag, 512));
        let (volume, done) = (volume.clone(), done.clone());
        tasks.push(node.core.spawn(async move {
            let from = std::slice::from_ref(&buffer);
            if volume
                .write(Lba(at), from, Durability::Durable)
                .await
                .is_ok()
            {
                done.borrow_mut().push((at, tag));
            }
        }));
    }
    move || tasks.iter().all(|task| task.is_there())
}

#[test]
fn a_turn_takes_few_pages_of_a_large_checkpoint() {
    let medium = medium();
    let node = Node::create(&medium);
    let id = node.create_volume("v", 500 * PER_LEAF);
    let done = Acknowledged::default();
    let all = write_leaves(&node, id, &Vec::from_iter(0..400), 0, &done);
    node.core.turn_until("the writes", all);
    let before = node.pool.status();
    let checkpoint = node.core.spawn({
        let pool = node.pool.clone();
        async move { pool.checkpoint().await }
    });
    let turns_of = |node: &Node| node.core.reactor.counters().turns;
    let begin = turns_of(&node);
    let (mut turns, mut meanwhile) = (0, 0);
    while !checkpoint.is_there() {
        node.core.turn();
        turns += 1;
        // Hosts are served in between: first writes, and writes to what is being taken.
        if node.pool.status().generation == before.generation && turns % 2 == 0 {
            let known = done.borrow().len();
            let leaves = [turns * 5, turns * 5 + 1, 400 + turns];
            let all = write_leaves(&node, id, &leaves, turns, &done);
            node.core.turn_until("a write", all);
            meanwhile += done.borrow().len() - known;
        }
    }
    checkpoint.take().unwrap();
    let turns = turns_of(&node) - begin;
    let pages = (node.pool.status().metadata_bytes - before.metadata_bytes) / PAGE_BYTES;
    assert!(pages > 400, "{pages}");
    assert!(
        turns >= pages / PAGES_AT_ONCE,
        "{turns} turns for {pages} pages"
    );
    assert!(meanwhile > 3, "{meanwhile}");
    node.checkpoint();
    node.checked();
    drop(node);
    let node = Node::import(&medium).unwrap();
    check(&node, id, &done);
    node.checked();
}

fn check(node: &Node, id: VolumeId, done: &Acknowledged) {
    let volume = node.open(id);
    for (at, tag) in &*done.borrow() {
        assert_eq!(node.tags(&volume, *at, 1), [*tag], "block {at}");
    }
}

#[test]
fn what_is_written_amid_a_large_checkpoint_survives_the_power() {
    let base = medium();
    let node = Node::create(&base);
    let id = node.create_volume("v", 200 * PER_LEAF);
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    let changes = write_and_cut(&base, id, 0, None);
    let step = if is_long() { 7 } else { 67 };
    for cut in (0..=changes).step_by(step) {
        write_and_cut(&base, id, cut * 7 + 1, Some(cut));
    }
}

/// Writes amid a checkpoint, on a copy of a medium whose power fails after so many changes, and looks for all
/// that was acknowledged. How many changes there were.
fn write_and_cut(base: &Medium, id: VolumeId, seed: u64, cut: Option<u64>) -> u64 {
    let medium = base.copy(seed);
    let node = Node::import(&medium).unwrap();
    let from = medium.changes();
    if let Some(changes) = cut {
        medium.stop_after(from + changes);
    }
    let done = Acknowledged::default();
    let write = |leaves: Vec<u64>, within| {
        let written = Acknowledged::default();
        let all = write_leaves(&node, id, &leaves, within, &written);
        node.core.turn();
        node.core.turn_until("the writes", all);
        // What is told after the power has failed counts for nothing.
        if !medium.has_stopped() {
            done.borrow_mut().append(&mut written.borrow_mut());
        }
    };
    for part in 0..13 {
        write(Vec::from_iter(part * 10..part * 10 + 10), 0);
    }
    let checkpoint = node.core.spawn({
        let pool = node.pool.clone();
        async move { pool.checkpoint().await }
    });
    for turn in 0..6 {
        write(Vec::from_iter((turn..140).step_by(9)), 1 + turn);
    }
    node.core
        .turn_until("the checkpoint", || checkpoint.is_there());
    let changes = medium.changes() - from;
    drop((node, checkpoint));
    medium.cut_power();
    let report = offline_check(&medium);
    assert_eq!(report.problems, Vec::<String>::new(), "cut {cut:?}");
    let node = Node::import(&medium).unwrap();
    check(&node, id, &done);
    changes
}
