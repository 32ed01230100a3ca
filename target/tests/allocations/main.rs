//! What an I/O costs in memory: no allocation on the heap once the queues are warm, no copy of
//! fetched payload, and at most one copy of in-capsule data.
//!
//! The counting allocator counts only while the target turns, and only on this thread; the host's
//! own work and the network's set-up are not counted.

#[path = "../harness/mod.rs"]
mod harness;

use std::{cell::Cell, rc::Rc};

use corebay_conformance::counting::{Counting, taken};
use corebay_core::units::BlockSize;
use corebay_nvme::spec::{
    command::nvm,
    tcp::{DGST_DATA, DGST_HEADER, IcReq},
};
use harness::{
    host::{Host, Queue, pattern},
    wire::{Payload, Pipe},
    world::{Plan, World, ram},
};

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Lets the target do all it can; what it allocates meanwhile is counted.
fn settle(world: &World) {
    let before = taken();
    world.settle();
    COUNT.set(COUNT.get() + taken() - before);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Read,
    Capsule,
    Asked,
    Mixed,
}

/// One batch of commands; the bytes that went in capsules.
fn round(world: &Rc<World>, queue: &mut Queue, work: Work, depth: usize, data: &[u8]) -> u64 {
    let blocks = (data.len() / 4096) as u32;
    let mut batch = Vec::new();
    let mut cids = Vec::new();
    let mut in_capsule = 0;
    for index in 0..depth {
        let at = (index * 16) as u64;
        let kind = match work {
            Work::Mixed => [Work::Read, Work::Capsule, Work::Asked][index % 3],
            other => other,
        };
        let (sqe, payload) = match kind {
            Work::Read => (nvm::read(1, at, blocks), Payload::ToHost(data.len())),
            Work::Capsule => (nvm::write(1, at, blocks, false), Payload::Capsule(data)),
            _ => (nvm::write(1, at, blocks, false), Payload::Asked(data)),
        };
        if kind == Work::Capsule {
            in_capsule += data.len() as u64;
        }
        let (cid, bytes) = queue.capsule(sqe, payload);
        batch.extend(bytes);
        cids.push(cid);
    }
    queue.pipe.send_all(&batch);
    settle(world);
    while !cids.is_empty() {
        while queue.pipe.stream.waiting() > 0 {
            assert!(queue.step());
        }
        settle(world);
        cids.retain(|cid| queue.take_done(*cid).map(|done| done.ok()).is_none());
    }
    in_capsule
}

fn measure(work: Work, depth: usize, bytes: usize, dgst: u8) {
    let world = World::new(Plan {
        media: vec![ram(BlockSize::B4096, 1024)],
        memory_bytes: 16 << 20,
        ..Plan::default()
    });
    // A batch and its answers fit into the network, so that the host never has to wait.
    world.hub.set_room(2 << 20);
    let mut host = Host::new(&world, 1);
    host.request = IcReq::new(0, dgst, 3);
    let (_association, mut queue) = host.with_queue(64);
    let data = pattern(1, bytes);
    let mut in_capsule = 0;
    for _ in 0..4 {
        in_capsule += round(&world, &mut queue, work, depth, &data);
    }
    let counters = world.nodes[0].tcp.counters.clone();
    COUNT.set(0);
    for _ in 0..20 {
        in_capsule += round(&world, &mut queue, work, depth, &data);
    }
    let allocations = COUNT.get();
    assert_eq!(
        allocations, 0,
        "{work:?} of {bytes} bytes at depth {depth}, digests {dgst}"
    );
    assert_eq!(counters.fetched_bytes_copied.get(), 0);
    // Connect data are in their capsules too.
    let copied = counters.in_capsule_bytes_copied.get();
    assert!(
        copied <= in_capsule + 2 * 1024,
        "{copied} of {in_capsule} bytes"
    );
}

#[test]
fn reads_allocate_nothing() {
    for depth in [1, 32] {
        for dgst in [0, DGST_HEADER | DGST_DATA] {
            measure(Work::Read, depth, 4096, dgst);
            measure(Work::Read, depth, 32 << 10, dgst);
        }
    }
}

#[test]
fn writes_in_capsules_allocate_nothing() {
    for depth in [1, 32] {
        for dgst in [0, DGST_HEADER | DGST_DATA] {
            measure(Work::Capsule, depth, 4096, dgst);
            measure(Work::Capsule, depth, 8192, dgst);
        }
    }
}

#[test]
fn writes_that_are_asked_for_allocate_nothing() {
    for depth in [1, 32] {
        for dgst in [0, DGST_HEADER | DGST_DATA] {
            measure(Work::Asked, depth, 4096, dgst);
            measure(Work::Asked, depth, 32 << 10, dgst);
        }
    }
}

#[test]
fn a_mix_allocates_nothing() {
    for depth in [3, 32] {
        measure(Work::Mixed, depth, 8192, 0);
    }
}
