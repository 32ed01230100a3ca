//! Fused Compare and Write: both halves or neither, beside every other write of every core.

use corebay_core::units::BlockSize;
use corebay_nvme::spec::{
    command::{Fuse, nvm},
    status::Status,
};

use crate::harness::{
    host::{Host, Queue, pattern},
    wire::{Completed, Payload, Pipe},
    world::{Plan, World, ram},
};

fn start() -> (std::rc::Rc<World>, crate::harness::host::Association, Queue) {
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
