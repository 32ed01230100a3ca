//! Fused Compare and Write: both halves or neither, beside every other write of every core.

use std::{rc::Rc, time::Duration};

use corebay_core::{
    disk::fault::{Effect, Operation, Rule},
    units::BlockSize,
};
use corebay_nvme::spec::{
    command::{
        Fuse,
        nvm::{self, CopyRangeFormat0},
    },
    status::Status,
};
use corebay_target::limits::TASKS_PER_CORE;
use zerocopy::IntoBytes;

use crate::harness::{
    host::{Association, Host, Queue, pattern},
    wire::{Completed, Payload, Pipe},
    world::{Plan, World, faulty, ram},
};

fn start() -> (Rc<World>, Association, Queue) {
    let world = World::with(vec![ram(BlockSize::B4096, 64), ram(BlockSize::B4096, 64)]);
    let (association, queue) = Host::new(&world, 1).with_queue(64);
    (world, association, queue)
}

fn statuses(pair: (Completed, Completed)) -> (Status, Status) {
    (pair.0.status, pair.1.status)
}

fn compare(lba: u64) -> corebay_nvme::spec::command::SubmissionEntry {
    nvm::compare(1, lba, 1).with_fuse(Fuse::First)
}

fn write(lba: u64) -> corebay_nvme::spec::command::SubmissionEntry {
    nvm::write(1, lba, 1, false).with_fuse(Fuse::Second)
}

const OK: Status = Status::SUCCESS;

#[test]
fn it_writes_where_the_comparison_holds() {
    let (world, association, mut queue) = start();
    let (zero, one, two) = ([0; 4096], [1; 4096], [2; 4096]);
    assert_eq!(
        statuses(queue.compare_and_write(1, 5, &zero, &one)),
        (OK, OK)
    );
    assert!(queue.read(1, 5, 4096, 1).ok() == one);
    let failed = statuses(queue.compare_and_write(1, 5, &zero, &two));
    let expected = (
        Status::COMPARE_FAILURE.with_dnr(),
        Status::ABORTED_FAILED_FUSED,
    );
    assert_eq!(failed, expected);
    assert!(queue.read(1, 5, 4096, 1).ok() == one);
    drop((association, queue));
    world.assert_deserted();
}

#[test]
fn its_data_may_come_either_way_and_in_any_order() {
    let (world, association, mut queue) = start();
    let mut old = vec![0; 4096];
    for turn in 0..4 {
        let new = pattern(turn, 4096);
        let way = |asked: bool, data| match asked {
            true => Payload::Asked(data),
            false => Payload::Capsule(data),
        };
        let (first, mut bytes) = queue.capsule(compare(0), way(turn & 1 != 0, &old));
        let (second, more) = queue.capsule(write(0), way(turn & 2 != 0, &new));
        bytes.extend(more);
        queue.pipe.send_all(&bytes);
        if turn == 3 {
            // The second half's data before the first's.
            queue.answers_r2t = false;
            while queue.r2ts.len() < 2 {
                assert!(queue.step());
            }
            queue.answers_r2t = true;
            for r2t in std::mem::take(&mut queue.r2ts).into_iter().rev() {
                queue.answer(&r2t);
            }
        }
        queue.complete(first).ok();
        queue.complete(second).ok();
        assert!(queue.read(1, 0, 4096, 1).ok() == new);
        old = new;
    }
    drop((association, queue));
    world.assert_deserted();
}

#[test]
fn halves_that_do_not_belong_together() {
    let (world, association, mut queue) = start();
    let block = [0; 4096];
    let missing = Status::ABORTED_MISSING_FUSED;
    for asked in [false, true] {
        let way = |data| {
            if asked {
                Payload::Asked(data)
            } else {
                Payload::Capsule(data)
            }
        };
        // A first half that is followed by another command.
        let first = queue.submit(compare(0), way(&block));
        let other = queue.submit(nvm::flush(1), Payload::None);
        assert_eq!(queue.complete(first).status, missing);
        queue.complete(other).ok();
        // A first half twice.
        let first = queue.submit(compare(0), way(&block));
        let again = queue.submit(compare(0), way(&block));
        let second = queue.submit(write(0), way(&block));
        assert_eq!(queue.complete(first).status, missing);
        queue.complete(again).ok();
        queue.complete(second).ok();
        // A second half alone.
        let second = queue.submit(write(0), way(&block));
        assert_eq!(queue.complete(second).status, missing);
        // Ranges or namespaces that differ.
        for second in [write(1), nvm::write(2, 0, 1, false).with_fuse(Fuse::Second)] {
            let first = queue.submit(compare(0), way(&block));
            let second = queue.submit(second, way(&block));
            let invalid = Status::INVALID_FIELD.with_dnr();
            assert_eq!(queue.complete(first).status, invalid);
            assert_eq!(queue.complete(second).status, invalid);
        }
        // A second half that is wrong in itself.
        let first = queue.submit(compare(0), way(&block));
        let second = queue.submit(write(64), way(&block));
        assert_eq!(
            queue.complete(second).status,
            Status::LBA_OUT_OF_RANGE.with_dnr()
        );
        assert_eq!(queue.complete(first).status, Status::ABORTED_FAILED_FUSED);
        // A first half that is wrong in itself.
        let first = queue.submit(compare(64), way(&block));
        let second = queue.submit(write(64), way(&block));
        assert_eq!(
            queue.complete(first).status,
            Status::LBA_OUT_OF_RANGE.with_dnr()
        );
        queue.complete(second);
    }
    // More blocks than are atomic.
    let two = [0; 8192];
    let first = queue.submit(
        nvm::compare(1, 0, 2).with_fuse(Fuse::First),
        Payload::Capsule(&two),
    );
    let second = queue.submit(
        nvm::write(1, 0, 2, false).with_fuse(Fuse::Second),
        Payload::Capsule(&two),
    );
    let exceeded = Status::ATOMIC_WRITE_UNIT_EXCEEDED.with_dnr();
    assert_eq!(queue.complete(first).status, exceeded);
    assert!(!queue.complete(second).status.is_success());
    world.assert_at_rest();
    // A first half whose second never comes goes with its connection.
    queue.submit(compare(0), Payload::Capsule(&block));
    world.settle();
    drop((association, queue));
    world.assert_deserted();
}

/// Hosts on different cores count in one block, each by fused commands, while plain writes of other
/// blocks go on; no count is lost.
#[test]
fn no_update_is_lost_between_cores() {
    const COUNTERS: usize = 4;
    const EACH: u64 = 30;
    let world = World::new(Plan {
        cores: 2,
        media: vec![ram(BlockSize::B4096, 64)],
        ..Plan::default()
    });
    let association = Host::new(&world, 1).associate();
    let mut queues: Vec<_> = (1..=COUNTERS as u16)
        .map(|qid| association.io(qid, 64))
        .collect();
    let mut plain = association.io(9, 64);
    let cores: std::collections::BTreeSet<_> = world.subsystem.controllers()[0]
        .queues()
        .iter()
        .map(|queue| queue.core)
        .collect();
    assert_eq!(cores.len(), 2, "the queues are on both cores");
    let mut done = [0; COUNTERS];
    let mut seen = [0u64; COUNTERS];
    let mut turn = 0u64;
    let block = |count: u64| {
        let mut block = vec![0; 4096];
        block[..8].copy_from_slice(&count.to_le_bytes());
        block
    };
    while done.iter().any(|&count| count < EACH) {
        turn += 1;
        assert!(turn < 20_000);
        let writing = plain.submit(
            nvm::write(1, 1 + turn % 8, 1, false),
            Payload::Capsule(&block(turn)),
        );
        let mut pairs = Vec::new();
        for (index, queue) in queues.iter_mut().enumerate() {
            if done[index] < EACH {
                let (old, new) = (block(seen[index]), block(seen[index] + 1));
                let (first, mut bytes) = queue.capsule(compare(0), Payload::Capsule(&old));
                let (second, more) = queue.capsule(write(0), Payload::Capsule(&new));
                bytes.extend(more);
                queue.pipe.send_all(&bytes);
                pairs.push((index, first, second));
            }
        }
        for (index, first, second) in pairs {
            let compared = queues[index].complete(first).status.is_success();
            assert_eq!(queues[index].complete(second).status.is_success(), compared);
            if compared {
                done[index] += 1;
            }
        }
        plain.complete(writing).ok();
        let now = queues[0].read(1, 0, 4096, 1).ok();
        let now = u64::from_le_bytes(now[..8].try_into().unwrap());
        assert_eq!(now, done.iter().sum::<u64>(), "every success is one count");
        seen = [now; COUNTERS];
    }
    drop((association, queues, plain));
    world.assert_deserted();
}

/// Two cores and four namespaces, two with their home on each; queues on both cores.
fn many() -> (Rc<World>, Association, Vec<Queue>) {
    let world = World::new(Plan {
        cores: 2,
        memory_bytes: 64 << 20,
        media: (0..4).map(|_| faulty(BlockSize::B4096, 64)).collect(),
        ..Plan::default()
    });
    let association = Host::new(&world, 1).associate();
    let queues = (1..=10).map(|qid| association.io(qid, 1024)).collect();
    (world, association, queues)
}

/// Submits fused commands for the first block of `nsid`, which is zero and stays so.
fn submit_pairs(queue: &mut Queue, nsid: u32, count: usize) -> Vec<u16> {
    let zeroes = [0; 4096];
    let mut cids = Vec::new();
    for _ in 0..count {
        let compare = nvm::compare(nsid, 0, 1).with_fuse(Fuse::First);
        let write = nvm::write(nsid, 0, 1, false).with_fuse(Fuse::Second);
        let (first, mut bytes) = queue.capsule(compare, Payload::Capsule(&zeroes));
        let (second, more) = queue.capsule(write, Payload::Capsule(&zeroes));
        bytes.extend(more);
        queue.pipe.send_all(&bytes);
        cids.extend([first, second]);
    }
    cids
}

fn release(world: &World) {
    for node in &world.nodes {
        node.faults.clear();
        node.faults.release();
    }
}

#[test]
fn waiting_for_the_turn_or_a_lock_holds_no_slot_of_another_core() {
    let (world, association, mut queues) = many();
    let hang = |operation| {
        for node in &world.nodes {
            node.faults.add(Rule::new(Effect::Hang).on(operation));
        }
    };
    let free = || [0, 1].map(|core: usize| world.nodes[core].reactor.executor().free());
    let before = free();
    // The first compares for ever, the others wait for their turn.
    hang(Operation::Read);
    let mut cids = Vec::new();
    for (queue, nsid) in queues.iter_mut().zip([1, 2, 3, 4].into_iter().cycle()) {
        cids.push(submit_pairs(queue, nsid, 10));
    }
    world.settle();
    let used: usize = before.iter().zip(free()).map(|(b, now)| b - now).sum();
    assert_eq!(used, 100, "each fused command its own slot");
    release(&world);
    for (queue, cids) in queues.iter_mut().zip(cids) {
        for cid in cids {
            queue.complete(cid).ok();
        }
    }
    // A write that executes keeps locks waiting, without a slot for it.
    hang(Operation::WriteZeroes);
    let writes: Vec<_> = queues
        .iter_mut()
        .map(|queue| queue.submit(nvm::write_zeroes(1, 9, 1, false, false), Payload::None))
        .collect();
    world.settle();
    let pair = submit_pairs(&mut queues[0], 1, 1);
    world.settle();
    let used: usize = before.iter().zip(free()).map(|(b, now)| b - now).sum();
    assert_eq!(used, 10 + 1);
    release(&world);
    for cid in pair {
        queues[0].complete(cid).ok();
    }
    for (queue, cid) in queues.iter_mut().zip(writes) {
        queue.complete(cid).ok();
    }
    drop((association, queues));
    world.assert_deserted();
}

/// Fused commands on all namespaces have their locks, and wait; every task slot of both cores that one
/// host may have is taken by writes that wait for those, and there are more behind them. When the first go
/// on, all end.
fn crowd(world: &World, queues: &mut [Queue]) -> Vec<Vec<u16>> {
    for node in &world.nodes {
        node.faults.add(Rule::new(Effect::Hang).on(Operation::Read));
    }
    let firsts = queues.iter_mut().zip([1, 2, 3, 4].into_iter().cycle());
    let mut cids: Vec<_> = firsts
        .map(|(queue, nsid)| submit_pairs(queue, nsid, 1))
        .collect();
    world.settle();
    for (index, queue) in queues.iter_mut().enumerate() {
        for n in 0..10 {
            let nsid = ((index + n) % 4 + 1) as u32;
            let zero = nvm::write_zeroes(nsid, 0, 1, false, false);
            for _ in 0..98 {
                cids[index].push(queue.submit(zero, Payload::None));
            }
            if n % 2 == 0 {
                cids[index].extend(submit_pairs(queue, nsid, 1));
            }
        }
    }
    world.settle();
    for node in &world.nodes {
        let free = node.reactor.executor().free();
        assert!(free <= 64 + TASKS_PER_CORE / 5 + 1, "{free} slots are left");
        assert!(free > 64, "they are for other hosts");
    }
    cids
}

#[test]
fn no_circle_between_the_turns_of_namespaces_with_homes_on_two_cores() {
    let (world, association, mut queues) = many();
    for _ in 0..2 {
        let cids = crowd(&world, &mut queues);
        release(&world);
        for (queue, cids) in queues.iter_mut().zip(cids) {
            for cid in cids {
                queue.complete(cid).ok();
            }
        }
    }
    drop((association, queues));
    world.assert_deserted();
}

#[test]
fn a_drain_under_fused_commands_ends() {
    let (world, mut association, mut queues) = many();
    let cids = crowd(&world, &mut queues);
    for node in &world.nodes {
        node.core.drain();
    }
    world.advance(Duration::from_millis(100));
    assert_eq!(world.queue_count(), 11, "commands are under way");
    release(&world);
    for (queue, cids) in queues.iter_mut().zip(cids) {
        for cid in cids {
            queue.complete(cid).ok();
        }
        assert!(queue.ends().is_none());
    }
    world.advance(Duration::from_millis(200));
    assert!(association.admin.ends().is_none());
    world.assert_deserted();
}

/// A reload takes a namespace away and brings it back while commands execute on it.
#[test]
fn a_namespace_that_is_attached_again_keeps_what_executes_apart() {
    for fused_first in [false, true] {
        let medium = faulty(BlockSize::B4096, 64);
        let world = World::with(vec![medium.clone()]);
        let (association, mut queue) = Host::new(&world, 1).with_queue(64);
        world
            .faults()
            .add(Rule::new(Effect::Hang).on(Operation::Write));
        let mut fused = Vec::new();
        let data = pattern(1, 4096);
        let mut write = None;
        if fused_first {
            fused = submit_pairs(&mut queue, 1, 1);
        } else {
            let plain = nvm::write(1, 0, 1, false);
            write = Some(queue.submit(plain, Payload::Capsule(&data)));
        }
        world.settle();
        world.attach(1, &medium);
        // What comes now is of the namespace that was attached last.
        world.faults().clear();
        if fused_first {
            let plain = nvm::write(1, 0, 1, false);
            write = Some(queue.submit(plain, Payload::Capsule(&data)));
        } else {
            fused = submit_pairs(&mut queue, 1, 1);
        }
        world.settle();
        release(&world);
        queue.complete(write.unwrap()).ok();
        let compared = queue.complete(fused[0]).status;
        let replaced = queue.complete(fused[1]).status;
        match fused_first {
            true => assert_eq!((compared, replaced), (OK, OK)),
            false => assert_eq!(compared, Status::COMPARE_FAILURE.with_dnr()),
        }
        assert!(queue.read(1, 0, 4096, 1).ok() == data);
        drop((association, queue));
        world.assert_deserted();
    }
}

/// A Copy that holds working space waits for blocks that a fused command has, which needs working
/// space too.
#[test]
fn copies_and_fused_commands_of_one_namespace() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (association, mut queue) = Host::new(&world, 1).with_queue(1024);
    let mut range = CopyRangeFormat0::new(8, 1).as_bytes().to_vec();
    range.resize(32, 0);
    for _ in 0..3 {
        // Copies hold all working space when the fused command comes, and want its block then.
        world
            .faults()
            .add(Rule::new(Effect::Hang).on(Operation::Read));
        let copy = nvm::copy(1, 0, 1, false);
        let mut cids: Vec<_> = (0..40)
            .map(|_| queue.submit(copy, Payload::Capsule(&range)))
            .collect();
        world.settle();
        assert_eq!(world.nodes[0].core.memory.scratch.free_bytes(), 0);
        cids.extend(submit_pairs(&mut queue, 1, 2));
        world.settle();
        release(&world);
        for cid in cids {
            queue.complete(cid).ok();
        }
    }
    drop((association, queue));
    world.assert_deserted();
}
