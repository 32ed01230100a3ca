//! Hosts that vanish, dawdle or ask for more than there is: nobody else suffers, and nothing stays.

use std::{rc::Rc, time::Duration};

use corebay_core::{
    disk::fault::{Effect, Operation, Rule},
    units::BlockSize,
};
use corebay_nvme::spec::{command::nvm, fabrics::CNTLID_DYNAMIC, status::Status};
use corebay_target::{limits::Limits, tcp::TcpOptions};
use zerocopy::IntoBytes;

use crate::harness::{
    disk::Call,
    host::{Host, Queue, Witness, assert_status, pattern},
    wire::{Payload, Pdu, Pipe},
    world::{Plan, World, faulty, null, ram},
};

const STALL: Duration = Duration::from_secs(1);

fn impatient() -> Rc<World> {
    World::new(Plan {
        limits: Limits {
            stall_timeout: STALL,
            ..Limits::default()
        },
        ..Plan::default()
    })
}

#[test]
fn a_host_that_vanishes_at_any_byte() {
    let world = World::with(vec![ram(BlockSize::B4096, 64)]);
    let mut witness = Witness::new(&world);
    let data = pattern(1, 4096);
    for at in [0, 1, 7, 8, 71, 72, 73, 2000, 4167, 4168] {
        let (association, mut queue) = Host::new(&world, 1).with_queue(8);
        let (_, bytes) = queue.capsule(nvm::write(1, 9, 1, false), Payload::Capsule(&data));
        queue.pipe.send_all(&bytes[..at]);
        queue.vanish();
        world.settle();
        association.admin.vanish();
        witness.is_served();
        world.assert_at_rest();
        assert_eq!(world.queue_count(), 2);
    }
    // While its data are asked for: all, some or none have come.
    for at in [0, 10, 24, 25, 30_000] {
        let (association, mut queue) = Host::new(&world, 1).with_queue(8);
        queue.answers_r2t = false;
        let data = pattern(1, 64 << 10);
        for _ in 0..3 {
            queue.submit(nvm::write(1, 9, 16, false), Payload::Asked(&data));
        }
        let Some(Pdu::R2t(r2t)) = queue.pdu() else {
            panic!("no R2T came")
        };
        let mut bytes = corebay_nvme::spec::tcp::H2cData::new(
            r2t.cccid.get(),
            r2t.ttag.get(),
            0,
            64 << 10,
            true,
        )
        .as_bytes()
        .to_vec();
        bytes.extend(&data);
        queue.pipe.send_all(&bytes[..at]);
        drop((queue, association));
        witness.is_served();
        world.assert_at_rest();
    }
    // With reads that it never takes.
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    for _ in 0..8 {
        queue.submit(nvm::read(1, 0, 64), Payload::ToHost(64 * 4096));
    }
    world.settle();
    drop((queue, association, witness));
    world.assert_deserted();
}

/// While a write of a former association still executes, its host gets no new one: the old write
/// must not land upon a newer one.
#[test]
fn an_old_write_ends_before_its_host_is_back() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    let hang = Rule::new(Effect::Hang).on(Operation::Write).times(1);
    world.faults().add(hang);
    queue.submit(nvm::write(1, 0, 1, false), Payload::Capsule(&[1; 4096]));
    world.settle();
    drop((association, queue));
    world.advance(Duration::from_millis(100));

    // Another host is not concerned.
    drop(Host::new(&world, 2).associate());
    let host = Host::new(&world, 1);
    let mut admin = host.open();
    let data = host.connect_data(CNTLID_DYNAMIC);
    let cid = admin.submit(
        host.connect_command(0, 32),
        Payload::Capsule(data.as_bytes()),
    );
    world.advance(Duration::from_millis(200));
    assert_eq!(admin.pipe.stream.waiting(), 0, "it has to wait");
    world.faults().release();
    admin.complete(cid).ok();
    drop(admin);
    world.assert_deserted();
}

#[test]
fn a_host_that_leaves_while_it_waits_to_connect_leaves_nothing() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Write).times(1));
    queue.submit(nvm::write(1, 0, 1, false), Payload::Capsule(&[1; 4096]));
    world.settle();
    drop((association, queue));
    let host = Host::new(&world, 1);
    let mut admin = host.open();
    let data = host.connect_data(CNTLID_DYNAMIC);
    admin.submit(
        host.connect_command(0, 32),
        Payload::Capsule(data.as_bytes()),
    );
    world.advance(Duration::from_millis(100));
    admin.vanish();
    world.advance(Duration::from_millis(100));
    world.faults().release();
    world.advance(Duration::from_millis(100));
    world.assert_deserted();
}

#[test]
fn a_disk_that_hangs_makes_connects_fail_in_time() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Write).times(1));
    queue.submit(nvm::write(1, 0, 1, false), Payload::Capsule(&[1; 4096]));
    world.settle();
    drop((association, queue));
    let host = Host::new(&world, 1);
    let mut admin = host.open();
    let data = host.connect_data(CNTLID_DYNAMIC);
    let cid = admin.submit(
        host.connect_command(0, 32),
        Payload::Capsule(data.as_bytes()),
    );
    world.advance(Duration::from_secs(11));
    let done = admin.complete(cid);
    assert_eq!(
        done.status,
        Status::CONNECT_CONTROLLER_BUSY,
        "and it may try again"
    );
    world.faults().release();
    world.settle();
    drop(host.associate());
    drop(admin);
    world.assert_deserted();
}

#[test]
fn a_host_that_sends_and_never_reads() {
    let world = impatient();
    let mut witness = Witness::new(&world);
    let (association, mut queue) = Host::new(&world, 1).with_queue(128);
    world.hub.set_room(64 << 10);
    for _ in 0..127 {
        queue.submit(nvm::read(1, 0, 32), Payload::ToHost(32 * 4096));
    }
    world.settle();
    let memory = &world.nodes[0].core.memory.payload;
    let free = memory.free_bytes();
    assert!(
        free * 3 >= memory.total_bytes(),
        "{free} bytes are left for the others"
    );
    for _ in 0..20 {
        witness.is_served();
    }
    world.advance(STALL / 2);
    assert_eq!(world.queue_count(), 4, "it is not late yet");
    world.advance(STALL);
    assert_eq!(world.queue_count(), 3, "its I/O queue is closed");
    witness.is_served();
    drop((association, queue));
    world.assert_at_rest();
    drop(witness);
    world.assert_deserted();
}

#[test]
fn pdus_that_are_never_finished() {
    let world = impatient();
    let mut witness = Witness::new(&world);
    let data = pattern(1, 8192);
    for at in [1, 8, 40, 72, 100, 8000] {
        let (association, mut queue) = Host::new(&world, 1).with_queue(8);
        let (_, bytes) = queue.capsule(nvm::write(1, 0, 2, false), Payload::Capsule(&data));
        queue.pipe.send_all(&bytes[..at]);
        world.advance(STALL / 2);
        witness.is_served();
        assert_eq!(world.queue_count(), 4);
        world.advance(STALL);
        assert_eq!(world.queue_count(), 3, "at {at}");
        drop((association, queue));
        world.assert_at_rest();
    }
    // Behind a whole PDU.
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    let (cid, mut bytes) = queue.capsule(nvm::flush(1), Payload::None);
    bytes.extend([4, 0, 72]);
    queue.pipe.send_all(&bytes);
    queue.complete(cid).ok();
    world.advance(STALL * 2);
    assert_eq!(world.queue_count(), 3);
    drop((association, queue));
    // Data that were asked for and never come.
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    queue.answers_r2t = false;
    queue.submit(nvm::write(1, 0, 2, false), Payload::Asked(&data));
    world.advance(STALL * 2);
    assert_eq!(world.queue_count(), 3);
    drop((association, queue));
    // A connection that says nothing, and one that is set up and then says nothing.
    let silent = Host::new(&world, 2).pipe();
    let half = Host::new(&world, 2).open();
    world.advance(Duration::from_secs(29));
    assert_eq!(world.queue_count(), 4);
    world.advance(Duration::from_secs(2));
    witness.is_served();
    assert_eq!(world.queue_count(), 2);
    drop((silent, half));
    drop(witness);
    world.assert_deserted();
}

#[test]
fn pipes_of_a_single_byte() {
    let world = World::with(vec![ram(BlockSize::B4096, 64)]);
    world.hub.set_room(1);
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    let data = pattern(1, 12 << 10);
    queue.write(1, 0, 4096, &data[..4096]).ok();
    queue.write(1, 0, 4096, &data).ok();
    assert!(queue.read(1, 0, 4096, 3).ok() == data);
    drop((association, queue));
    world.assert_deserted();
}

#[test]
fn the_deepest_and_the_shallowest_queue() {
    let world = World::with(vec![ram(BlockSize::B4096, 4096)]);
    let mut association = Host::new(&world, 1).associate();
    let mut shallow = association.io(1, 2);
    let mut deep = association.io(2, 1024);
    for turn in 0..50 {
        shallow.write(1, 0, 4096, &pattern(turn, 4096)).ok();
        assert!(shallow.read(1, 0, 4096, 1).ok() == pattern(turn, 4096));
    }
    for round in 0..3 {
        let mut batch = Vec::new();
        let mut cids = Vec::new();
        for index in 0..1023u64 {
            let data = [index as u8; 4096];
            let (sqe, payload) = match round {
                0 => (nvm::flush(1), Payload::None),
                1 => (nvm::write(1, index, 1, false), Payload::Asked(&data[..])),
                _ => (nvm::read(1, index, 1), Payload::ToHost(4096)),
            };
            let (cid, bytes) = deep.capsule(sqe, payload);
            batch.extend(bytes);
            cids.push(cid);
        }
        deep.pipe.send_all(&batch);
        for (index, cid) in cids.into_iter().enumerate() {
            let data = deep.complete(cid).ok();
            assert!(data.iter().all(|&b| b == index as u8));
        }
    }
    association
        .admin
        .command(
            corebay_nvme::spec::command::admin::keep_alive(),
            Payload::None,
        )
        .ok();
    drop((association, shallow, deep));
    world.assert_deserted();
}

fn flood(queues: &mut [Queue], turn: u64) {
    let data = pattern(turn, 1 << 20);
    let mut submitted = Vec::new();
    for (index, queue) in queues.iter_mut().enumerate() {
        for n in 0..64 {
            let (sqe, payload) = match (n + index as u64 + turn) % 2 {
                0 => (nvm::write(1, 0, 256, false), Payload::Asked(&data[..])),
                _ => (nvm::read(1, 0, 256), Payload::ToHost(1 << 20)),
            };
            submitted.push((index, queue.submit(sqe, payload)));
        }
    }
    for (index, cid) in submitted {
        queues[index].complete(cid).ok();
    }
}

#[test]
fn large_transfers_against_little_memory() {
    let world = World::new(Plan {
        media: vec![null(BlockSize::B4096, 4096)],
        ..Plan::default()
    });
    let mut witness = Witness2::new(&world);
    let association = Host::new(&world, 1).associate();
    let mut queues: Vec<_> = (1..=2).map(|qid| association.io(qid, 65)).collect();
    flood(&mut queues, 0);
    witness.is_served();
    drop((association, queues, witness));
    world.assert_deserted();
}

/// A host on a disk that keeps nothing.
struct Witness2 {
    _association: crate::harness::host::Association,
    queue: Queue,
}

impl Witness2 {
    fn new(world: &Rc<World>) -> Self {
        let (association, queue) = Host::new(world, 77).with_queue(8);
        Self {
            _association: association,
            queue,
        }
    }

    fn is_served(&mut self) {
        self.queue.write(1, 0, 4096, &[0; 4096]).ok();
        self.queue.read(1, 0, 4096, 8).ok();
    }
}

#[test]
fn a_thousand_connections_and_a_thousand_namespaces() {
    let world = World::new(Plan {
        cores: 2,
        memory_bytes: 16 << 20,
        media: (0..1024).map(|_| null(BlockSize::B4096, 1024)).collect(),
        ..Plan::default()
    });
    let mut associations = Vec::new();
    let mut queues = Vec::new();
    for n in 0..512 {
        let (association, queue) = Host::new(&world, n).with_queue(32);
        associations.push(association);
        queues.push(queue);
    }
    // One more is not taken.
    let mut one_more = Host::new(&world, 1000).pipe();
    assert_eq!(one_more.receive(&mut [0; 1]), 0);
    for nsid in 1..=1024 {
        let queue = &mut queues[nsid % 512];
        queue.read(nsid as u32, 0, 4096, 1).ok();
    }
    let list = associations[300].identify(2, 0).ok();
    let nsids: Vec<u32> = list
        .chunks(4)
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(nsids, (1..=1024).collect::<Vec<_>>());
    assert_eq!(world.subsystem.controllers().len(), 512);
    // Room again once one has gone.
    drop(queues.pop());
    world.settle();
    drop(Host::new(&world, 1000).open());
    drop((associations, queues));
    world.assert_deserted();
}

#[test]
fn a_host_leaves_no_trace_in_what_runs_on_other_cores() {
    let world = World::new(Plan {
        cores: 3,
        media: vec![faulty(BlockSize::B4096, 64)],
        ..Plan::default()
    });
    for _ in 0..3 {
        let association = Host::new(&world, 1).associate();
        let mut queues: Vec<_> = (1..=6).map(|qid| association.io(qid, 8)).collect();
        for node in &world.nodes {
            node.faults.add(Rule::new(Effect::Hang).on(Operation::Read));
        }
        for queue in &mut queues {
            queue.submit(nvm::read(1, 0, 1), Payload::ToHost(4096));
        }
        world.settle();
        // The admin queue goes, and all others with it; what executes still holds its memory.
        association.admin.vanish();
        world.settle();
        assert_eq!(world.queue_count(), 0);
        for node in &world.nodes {
            node.faults.clear();
            node.faults.release();
        }
        world.settle();
        for queue in &mut queues {
            assert!(queue.ends().is_none());
        }
        drop(queues);
        world.assert_deserted();
    }
}

#[test]
fn several_r2ts_of_one_command() {
    let world = World::new(Plan {
        tcp: TcpOptions {
            h2c_data_bytes_max: 4096,
            ..TcpOptions::default()
        },
        ..Plan::default()
    });
    for (maxr2t, expected) in [(0, 1), (1, 2), (3, 4), (u32::MAX, 8)] {
        let mut host = Host::new(&world, 1);
        host.request.maxr2t.set(maxr2t);
        let (_association, mut queue) = host.with_queue(8);
        queue.answers_r2t = false;
        let data = pattern(1, 64 << 10);
        let cid = queue.submit(nvm::write(1, 0, 16, false), Payload::Asked(&data));
        for n in 0..expected {
            while queue.r2ts.len() <= n {
                assert!(queue.step());
            }
        }
        world.settle();
        assert_eq!(queue.pipe.stream.waiting(), 0, "no more than MAXR2T allows");
        // They may be answered in any order.
        queue.answers_r2t = true;
        for r2t in std::mem::take(&mut queue.r2ts).into_iter().rev() {
            queue.answer(&r2t);
        }
        queue.complete(cid).ok();
        assert!(queue.read(1, 0, 4096, 16).ok() == data);
    }
}

#[test]
fn writes_that_wait_for_memory_are_not_lost_when_their_host_leaves() {
    let world = World::with(vec![faulty(BlockSize::B4096, 1024)]);
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Read));
    let (association, mut queue) = Host::new(&world, 1).with_queue(128);
    for _ in 0..100 {
        queue.submit(nvm::read(1, 0, 64), Payload::ToHost(256 << 10));
    }
    world.note_calls();
    world.settle();
    drop((association, queue));
    world.settle();
    world.faults().clear();
    world.faults().release();
    world.settle();
    assert!(
        world
            .calls()
            .iter()
            .all(|call| !matches!(call, Call::Write(..)))
    );
    world.assert_deserted();
    let (association, mut queue) = Host::new(&world, 1).with_queue(8);
    assert_status(&queue.read(1, 0, 4096, 1), Status::SUCCESS);
    drop((association, queue));
    world.assert_deserted();
}
