//! Hosts that hold memory and do not go on: what they may hold, for how long, and who waits.

use std::{rc::Rc, time::Duration};

use corebay_core::{buffer::BufferPool, units::BlockSize};
use corebay_nvme::spec::{
    command::{Fuse, nvm},
    status::Status,
    tcp::{DGST_DATA, DGST_HEADER, H2cData, IcReq},
};
use corebay_target::limits::{Limits, RATE_MIN_BYTES_PER_SECOND, SQUEEZE_AFTER};
use zerocopy::IntoBytes;

use crate::harness::{
    host::{Association, Host, Queue, Witness, pattern},
    wire::{Payload, Pdu, Pipe},
    world::{Plan, World, null, ram},
};

const MIB: usize = 1 << 20;

fn payload(world: &World) -> &BufferPool {
    &world.nodes[0].core.memory.payload
}

/// Queues of one host, each of which asks for `count` reads of so many blocks and takes nothing.
fn glutton(
    world: &Rc<World>,
    host: usize,
    queues: u16,
    count: usize,
    blocks: u32,
) -> (Association, Vec<Queue>) {
    let association = Host::new(world, host).associate();
    world.hub.set_room(4 << 10);
    let mut queues: Vec<_> = (1..=queues).map(|qid| association.io(qid, 1024)).collect();
    world.hub.set_room(256 << 10);
    for _ in 0..count {
        for queue in &mut queues {
            let len = blocks as usize * 4096;
            queue.submit(nvm::read(1, 0, blocks), Payload::ToHost(len));
        }
    }
    world.settle();
    (association, queues)
}

#[test]
fn however_many_connections_a_slow_host_has_the_reserve_is_left() {
    for (queues, count, blocks) in [(1, 100, 32), (8, 50, 32), (40, 20, 64), (2, 1000, 1)] {
        let world = World::with(vec![ram(BlockSize::B4096, 4096)]);
        let mut witness = Witness::new(&world);
        let slow = glutton(&world, 1, queues, count, blocks);
        let (free, total) = (payload(&world).free_bytes(), payload(&world).total_bytes());
        let least = if queues == 1 { total / 2 } else { total / 4 };
        assert!(free >= least, "{free} of {total} bytes: {queues} queues");
        world.advance(Duration::from_millis(500));
        for _ in 0..5 {
            witness.is_served();
        }
        drop((slow, witness));
        world.assert_deserted();
    }
}

#[test]
fn a_share_counts_the_blocks_that_are_taken() {
    // Reads of 512 bytes take blocks of 4 KiB each.
    let world = World::with(vec![null(BlockSize::B512, 4096)]);
    let association = Host::new(&world, 1).associate();
    world.hub.set_room(64);
    let mut queues: Vec<_> = (1..=2).map(|qid| association.io(qid, 1024)).collect();
    for _ in 0..1023 {
        for queue in &mut queues {
            queue.submit(nvm::read(1, 0, 1), Payload::ToHost(512));
        }
    }
    world.settle();
    let (free, total) = (payload(&world).free_bytes(), payload(&world).total_bytes());
    assert!(free * 2 >= total, "{free} of {total} bytes");
    drop((association, queues));
    world.assert_deserted();
}

#[test]
fn writes_whose_data_do_not_come_hold_no_more() {
    let world = World::with(vec![ram(BlockSize::B4096, 4096)]);
    let mut witness = Witness::new(&world);
    let association = Host::new(&world, 1).associate();
    let mut queues: Vec<_> = (1..=8).map(|qid| association.io(qid, 64)).collect();
    let data = pattern(1, MIB / 4);
    for _ in 0..63 {
        for queue in &mut queues {
            queue.answers_r2t = false;
            queue.submit(nvm::write(1, 0, 64, false), Payload::Asked(&data));
        }
    }
    world.advance(Duration::from_millis(500));
    let (free, total) = (payload(&world).free_bytes(), payload(&world).total_bytes());
    assert!(free * 4 >= total, "{free} of {total} bytes");
    for _ in 0..20 {
        witness.is_served();
    }
    drop((association, queues, witness));
    world.assert_deserted();
}

/// Takes whatever PDUs have come.
fn take_all(queue: &mut Queue) {
    while queue.pipe.stream.waiting() > 0 {
        assert!(queue.step());
    }
}

/// So many hosts stall that together they hold everything: those that hold the most are cut off once
/// somebody has waited for it.
#[test]
fn stalled_hosts_give_way_to_one_that_waits() {
    let world = World::with(vec![null(BlockSize::B4096, 4096)]);
    let (_witness, mut queue) = Host::new(&world, 99).with_queue(8);
    let slow: Vec<_> = (0..4)
        .map(|host| glutton(&world, host, 1, 3, 256))
        .collect();
    assert!(payload(&world).free_bytes() < MIB, "nothing is left");
    let before = world.queue_count();
    world.advance(SQUEEZE_AFTER * 2);
    assert_eq!(
        world.queue_count(),
        before,
        "nobody waits who does not stall"
    );
    let from = world.now.get();
    for _ in 0..3 {
        queue.read(1, 0, 4096, 256).ok();
    }
    let took = world.now.get().since(from);
    assert!(took < SQUEEZE_AFTER * 2, "{took:?}");
    assert_eq!(world.queue_count(), before - 1, "no more than it takes");
    drop((slow, queue, _witness));
    world.assert_deserted();
}

/// Small commands of others do not keep a large one waiting for ever.
#[test]
fn a_large_command_is_not_overtaken_for_ever() {
    let world = World::with(vec![null(BlockSize::B4096, 4096)]);
    let (_busy, mut small) = (0..6)
        .map(|host| Host::new(&world, host).with_queue(128))
        .unzip::<_, _, Vec<_>, Vec<_>>();
    let (_large_association, mut large) = Host::new(&world, 99).with_queue(8);
    let submit = |queue: &mut Queue| {
        queue.submit(nvm::read(1, 0, 64), Payload::ToHost(MIB / 4));
    };
    for _ in 0..20 {
        small.iter_mut().for_each(submit);
    }
    world.settle();
    let cid = large.submit(nvm::read(1, 0, 256), Payload::ToHost(MIB));
    for round in 0.. {
        // Whatever the small ones get is replaced at once.
        world.turn();
        for queue in &mut small {
            take_all(queue);
            while queue.outstanding() < 60 {
                submit(queue);
            }
        }
        take_all(&mut large);
        if large.take_done(cid).is_some() {
            break;
        }
        assert!(round < 2000, "it is overtaken for ever");
    }
    drop((large, _large_association, small, _busy));
    world.assert_deserted();
}

/// The same between the connections of one host.
#[test]
fn a_large_command_is_not_overtaken_by_its_own_host() {
    let world = World::with(vec![null(BlockSize::B4096, 4096)]);
    let other = glutton(&world, 2, 1, 3, 256);
    let association = Host::new(&world, 1).associate();
    let mut small: Vec<_> = (1..=8).map(|qid| association.io(qid, 128)).collect();
    let mut large = association.io(9, 8);
    let submit = |queue: &mut Queue| {
        queue.submit(nvm::read(1, 0, 16), Payload::ToHost(64 << 10));
    };
    for _ in 0..60 {
        small.iter_mut().for_each(submit);
    }
    world.settle();
    let cid = large.submit(nvm::read(1, 0, 256), Payload::ToHost(MIB));
    for round in 0.. {
        world.turn();
        for queue in &mut small {
            take_all(queue);
            while queue.outstanding() < 60 {
                submit(queue);
            }
        }
        take_all(&mut large);
        if large.take_done(cid).is_some() {
            break;
        }
        assert!(round < 2000, "it is overtaken for ever");
    }
    drop((large, small, association, other));
    world.assert_deserted();
}

/// The halves of a fused command whose data are asked for, while others hold all but the reserve.
#[test]
fn a_fused_command_gets_both_its_blocks() {
    let world = World::with(vec![ram(BlockSize::B4096, 4096)]);
    let slow = glutton(&world, 1, 8, 50, 32);
    world.advance(Duration::from_millis(500));
    let (association, mut queue) = Host::new(&world, 2).with_queue(256);
    let zeroes = [0; 4096];
    for _ in 0..10 {
        let compare = nvm::compare(1, 9, 1).with_fuse(Fuse::First);
        let write = nvm::write(1, 9, 1, false).with_fuse(Fuse::Second);
        let first = queue.submit(compare, Payload::Asked(&zeroes));
        let second = queue.submit(write, Payload::Asked(&zeroes));
        queue.complete(first).ok();
        queue.complete(second).ok();
    }
    drop((slow, association, queue));
    world.assert_deserted();
}

/// A thousand connections, and the least memory that there can be.
#[test]
fn a_thousand_connections_share_the_smallest_pool() {
    let world = World::new(Plan {
        limits: Limits {
            connections_max: 1100,
            ..Limits::default()
        },
        media: vec![null(BlockSize::B4096, 4096)],
        ..Plan::default()
    });
    let association = Host::new(&world, 0).associate();
    let mut queues: Vec<_> = (1..=60).map(|qid| association.io(qid, 64)).collect();
    let mut associations = vec![association];
    for host in 1..450 {
        let (association, queue) = Host::new(&world, host).with_queue(64);
        associations.push(association);
        queues.push(queue);
    }
    for blocks in [1, 32, 256] {
        let len = blocks as usize * 4096;
        let mut asked = Vec::new();
        for queue in &mut queues {
            asked.push(queue.submit(nvm::read(1, 0, blocks), Payload::ToHost(len)));
        }
        let mut left = queues.len();
        for round in 0.. {
            assert!(
                round < 100_000,
                "{left} of {blocks} blocks each wait for ever"
            );
            world.turn();
            for (queue, cid) in queues.iter_mut().zip(&asked) {
                take_all(queue);
                left -= usize::from(queue.take_done(*cid).is_some());
            }
            if left == 0 {
                break;
            }
        }
    }
    drop((queues, associations));
    world.assert_deserted();
}

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

/// Takes at most so many bytes of what waits.
fn take(queue: &mut Queue, bytes: usize) {
    let bytes = bytes.min(queue.pipe.stream.waiting());
    if bytes > 0 {
        queue.pipe.receive(&mut vec![0; bytes]);
    }
}

#[test]
fn a_host_that_reads_slowly_is_served_and_one_that_hardly_reads_is_cut_off() {
    let steady = 2 * RATE_MIN_BYTES_PER_SECOND as usize;
    for (bytes_per_second, lives) in [(steady, true), (20, false), (0, false)] {
        let world = impatient();
        let mut witness = Witness::new(&world);
        let mut slow = glutton(&world, 1, 1, 20, 32);
        let before = world.queue_count();
        // No PDU of 128 KiB ends within this time.
        for _ in 0..100 {
            take(&mut slow.1[0], bytes_per_second / 20);
            world.advance(Duration::from_millis(50));
        }
        let expected = if lives { before } else { before - 1 };
        assert_eq!(world.queue_count(), expected, "{bytes_per_second} B/s");
        witness.is_served();
        drop((slow, witness));
        world.assert_deserted();
    }
}

#[test]
fn a_host_that_sends_slowly_is_served_and_one_that_hardly_sends_is_cut_off() {
    let steady = 2 * RATE_MIN_BYTES_PER_SECOND as usize;
    for (bytes_per_second, lives) in [(steady, true), (20, false)] {
        let world = impatient();
        let (association, mut queue) = Host::new(&world, 1).with_queue(8);
        queue.answers_r2t = false;
        let data = pattern(1, 16 << 10);
        let cids =
            [(); 2].map(|()| queue.submit(nvm::write(1, 0, 4, false), Payload::Asked(&data)));
        let before = world.queue_count();
        let mut r2ts = Vec::new();
        while r2ts.len() < 2 {
            let Some(Pdu::R2t(r2t)) = queue.pdu() else {
                panic!("no R2T came")
            };
            r2ts.push(r2t);
        }
        // One after the other: the second waits for longer than a host may pause.
        let mut bytes = Vec::new();
        for r2t in r2ts {
            let (cid, tag) = (r2t.cccid.get(), r2t.ttag.get());
            let header = H2cData::new(cid, tag, 0, 16 << 10, true);
            bytes.extend(header.as_bytes());
            bytes.extend(&data);
        }
        for piece in bytes.chunks(bytes_per_second / 20).take(400) {
            queue.pipe.send_all(piece);
            world.advance(Duration::from_millis(50));
        }
        if lives {
            for cid in cids {
                queue.complete(cid).ok();
            }
        } else {
            assert_eq!(world.queue_count(), before - 1);
        }
        drop((association, queue));
        world.assert_deserted();
    }
}

/// Sends a write of 8 KiB in its capsule but for the last bytes; gives those.
fn half_send(queue: &mut Queue, lba: u64, data: &[u8], left: usize) -> (u16, Vec<u8>) {
    let write = nvm::write(1, lba, 2, false);
    let (cid, bytes) = queue.capsule(write, Payload::Capsule(data));
    let (now, later) = bytes.split_at(bytes.len() - left);
    queue.pipe.send_all(now);
    (cid, later.to_vec())
}

#[test]
fn capsules_that_are_never_finished_leave_memory_for_the_others() {
    for dgst in [0, DGST_HEADER | DGST_DATA] {
        let world = World::with(vec![ram(BlockSize::B4096, 4096)]);
        let mut witness = Witness::new(&world);
        let mut host = Host::new(&world, 1);
        host.request = IcReq::new(0, dgst, 3);
        let association = host.associate();
        let mut halves = Vec::new();
        for n in 0..120u16 {
            let mut queue = association.io(n + 1, 8);
            let data = pattern(n.into(), 8192);
            let left = [1, 100, 4000, 8000][usize::from(n) % 4];
            let sent = half_send(&mut queue, u64::from(n) * 2, &data, left);
            halves.push((queue, sent, data));
        }
        world.settle();
        let pool = &world.nodes[0].core.memory.in_capsule;
        assert!(pool.free_bytes() * 4 >= pool.total_bytes() * 3);
        for _ in 0..3 {
            witness.is_served();
        }
        // They are whole when they are finished in the end, each one.
        for (queue, (cid, rest), _) in &mut halves {
            for piece in rest.chunks(3000) {
                queue.pipe.send_all(piece);
                world.settle();
            }
            queue.complete(*cid).ok();
        }
        for (n, (queue, _, data)) in halves.iter_mut().enumerate() {
            assert!(queue.read(1, n as u64 * 2, 4096, 2).ok() == *data, "{n}");
        }
        drop((halves, association, witness));
        world.assert_deserted();
    }
}

/// A capsule that is staged while data that were asked for arrive on the same connection: those do
/// not land where they would be copied.
#[test]
fn a_staged_capsule_among_fetched_data() {
    let world = World::with(vec![ram(BlockSize::B4096, 4096)]);
    let association = Host::new(&world, 1).associate();
    let data = pattern(7, 8192);
    let mut fillers: Vec<_> = (1..=60).map(|qid| association.io(qid, 8)).collect();
    for queue in &mut fillers {
        half_send(queue, 0, &data, 1);
    }
    let large = pattern(8, 64 << 10);
    for cut in [usize::MAX, 1000, 33] {
        let mut host = Host::new(&world, 1);
        host.cut = cut;
        let mut queue = host.queue(100, 8, association.cntlid).0;
        queue.answers_r2t = false;
        let asked = queue.submit(nvm::write(1, 100, 16, false), Payload::Asked(&large));
        while queue.r2ts.is_empty() {
            assert!(queue.step());
        }
        let (cid, rest) = half_send(&mut queue, 50, &data, 5000);
        world.settle();
        queue.pipe.send_all(&rest);
        let r2t = queue.r2ts.pop().unwrap();
        queue.answer(&r2t);
        queue.complete(cid).ok();
        queue.complete(asked).ok();
        assert!(queue.read(1, 50, 4096, 2).ok() == data);
        assert!(queue.read(1, 100, 4096, 16).ok() == large);
        queue.vanish();
        world.settle();
    }
    assert_eq!(world.nodes[0].tcp.counters.fetched_bytes_copied.get(), 0);
    drop((fillers, association));
    world.assert_deserted();
}

/// First halves of fused commands whose second halves never come.
#[test]
fn lone_first_halves_do_not_keep_others_from_their_fused_commands() {
    let world = impatient();
    let association = Host::new(&world, 1).associate();
    let mut queues: Vec<_> = (1..=100).map(|qid| association.io(qid, 8)).collect();
    let zeroes = [0; 4096];
    let mut cids = Vec::new();
    for queue in &mut queues {
        let compare = nvm::compare(1, 9, 1).with_fuse(Fuse::First);
        cids.push(queue.submit(compare, Payload::Capsule(&zeroes)));
    }
    world.settle();
    let (other, mut queue) = Host::new(&world, 2).with_queue(8);
    let (first, second) = queue.compare_and_write(1, 7, &zeroes, &zeroes);
    first.ok();
    second.ok();
    // They are not kept for ever.
    world.advance(STALL * 2);
    let answers = queues.iter_mut().zip(cids);
    let (mut alone, mut refused) = (0, 0);
    for (queue, cid) in answers {
        match queue.complete(cid).status {
            Status::ABORTED_MISSING_FUSED => alone += 1,
            Status::COMMAND_INTERRUPTED => refused += 1,
            other => panic!("{other}"),
        }
        queue.compare_and_write(1, 8, &zeroes, &zeroes).1.ok();
    }
    assert!(alone > 0 && refused > 0, "{alone} {refused}");
    drop((association, queues, other, queue));
    world.assert_deserted();
}
