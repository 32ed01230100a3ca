//! Namespaces with limits: their hosts wait, and nobody else does.

use std::{rc::Rc, sync::Arc, time::Duration};

use corebay_core::units::BlockSize;
use corebay_nvme::spec::{
    command::{admin, nvm},
    status::Status,
};

use crate::harness::{
    disk::Limit,
    host::{Association, Host, Queue, Witness, assert_status, pattern},
    wire::Payload,
    world::{Plan, World, limited, ram},
};

const PER_SECOND: u64 = 100;

/// A world whose second namespace is limited.
fn world() -> (Rc<World>, Arc<Limit>) {
    let (medium, limit) = limited(BlockSize::B4096, 4096, PER_SECOND);
    let media = vec![ram(BlockSize::B4096, 4096), medium];
    let plan = Plan {
        media,
        ..Plan::default()
    };
    (World::new(plan), limit)
}

/// Takes what has come, on all queues; how many commands were answered.
fn answered(queues: &mut [Queue]) -> usize {
    let before: usize = queues.iter().map(Queue::outstanding).sum();
    for queue in &mut *queues {
        while queue.pipe.stream.waiting() > 0 {
            queue.step();
        }
    }
    before - queues.iter().map(Queue::outstanding).sum::<usize>()
}

/// A host with many queues, all full of reads of the limited namespace.
fn crowd(world: &Rc<World>) -> (Association, Vec<Queue>) {
    let association = Host::new(world, 1).associate();
    let mut queues: Vec<_> = (1..=5).map(|qid| association.io(qid, 1024)).collect();
    for queue in &mut queues {
        for at in 0..1000 {
            queue.submit(nvm::read(2, at, 1), Payload::ToHost(4096));
        }
    }
    world.settle();
    (association, queues)
}

#[test]
fn who_waits_for_a_limit_takes_nothing_from_others() {
    let (world, _) = world();
    let mut witness = Witness::new(&world);
    let node = &world.nodes[0];
    let free = node.reactor.executor().free();
    let (association, mut queues) = crowd(&world);
    assert_eq!(node.reactor.executor().free(), free, "slots are taken");
    let payload = &node.core.memory.payload;
    assert_eq!(payload.free_bytes(), payload.total_bytes());
    answered(&mut queues);
    let before = world.now.get();
    for _ in 0..50 {
        witness.is_served();
    }
    let took = world.now.get().since(before);
    assert!(took < Duration::from_millis(100), "{took:?}");
    // Neither lost nor hurried by the pause.
    world.advance(Duration::from_secs(1) - took);
    let count = answered(&mut queues);
    assert!((98..=102).contains(&count), "{count} in a second");
    drop((association, queues, witness));
    world.assert_deserted();
}

#[test]
fn a_host_whose_writes_wait_for_a_limit_keeps_its_other_controllers() {
    let (world, _) = world();
    let host = Host::new(&world, 1);
    let association = host.associate();
    let data = pattern(1, 4096);
    let mut queues: Vec<_> = (1..=5).map(|qid| association.io(qid, 1024)).collect();
    let in_capsule = &world.nodes[0].core.memory.in_capsule;
    let free = || in_capsule.free_bytes();
    for queue in &mut queues {
        for at in 0..100 {
            queue.submit(nvm::write(2, at, 1, false), Payload::Capsule(&data));
        }
    }
    world.settle();
    // It holds all that it may.
    let left = free();
    assert!(left < in_capsule.total_bytes(), "{left}");
    queues[0].submit(nvm::write(2, 0, 1, false), Payload::Capsule(&data));
    world.settle();
    assert_eq!(free(), left);
    let before = world.now.get();
    let mut second = host.associate();
    let stamp = [7; 8];
    for _ in 0..5 {
        let set = admin::set_features(0x0e, 0, 0);
        second.admin.command(set, Payload::Capsule(&stamp)).ok();
    }
    let took = world.now.get().since(before);
    assert!(took < Duration::from_millis(20), "{took:?}");
    drop((association, queues, second));
    world.assert_deserted();
}

#[test]
fn a_host_that_goes_leaves_no_debt_behind() {
    let (world, _) = world();
    let crowd = crowd(&world);
    drop(crowd);
    world.assert_deserted();
    let (association, mut queue) = Host::new(&world, 2).with_queue(8);
    let cid = queue.submit(nvm::read(2, 0, 1), Payload::ToHost(4096));
    world.advance(Duration::from_millis(25));
    queue.complete(cid).ok();
    drop((association, queue));
    world.assert_deserted();
}

#[test]
fn who_waits_for_a_limit_can_be_aborted_and_goes_with_its_namespace() {
    let (world, _) = world();
    let (mut association, mut queue) = Host::new(&world, 1).with_queue(64);
    let cids: Vec<_> = (0..40)
        .map(|at| queue.submit(nvm::read(2, at, 1), Payload::ToHost(4096)))
        .collect();
    world.settle();
    let aborted = association
        .admin
        .command(admin::abort(1, cids[20]), Payload::None);
    assert_eq!(aborted.value() & 1, 0, "it is aborted");
    assert_status(&queue.complete(cids[20]), Status::ABORT_REQUESTED);
    // A write is not held up by reads that wait.
    let before = world.now.get();
    queue.write(2, 1, 4096, &pattern(1, 4096)).ok();
    assert!(world.now.get().since(before) < Duration::from_millis(5));
    // What is left begins once the namespace is attached no more, and ends as it would have.
    let table = world.nodes[0].core.table(world.subsystem.id);
    drop(table.detach(2));
    world.advance(Duration::from_millis(60));
    let queues = &mut [queue];
    answered(queues);
    assert_eq!(queues[0].outstanding(), 0);
    drop(association);
}
