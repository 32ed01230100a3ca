//! The clean stop: what is under way is answered, nothing new is taken, and then all is closed.

use std::{cell::RefCell, rc::Rc, time::Duration};

use corebay_core::{
    disk::fault::{Effect, Operation, Rule},
    units::{BlockSize, Time},
};
use corebay_nvme::spec::command::{admin, nvm};
use corebay_target::{
    memory::HostShare,
    queue::{EntryId, Pumped, QueueControl, QueueKey},
};

use crate::harness::{
    host::{Host, Witness, pattern},
    wire::Payload,
    world::{Plan, World, faulty},
};

fn world() -> Rc<World> {
    World::new(Plan {
        cores: 2,
        media: vec![faulty(BlockSize::B4096, 1024)],
        ..Plan::default()
    })
}

fn drain(world: &World) {
    for node in &world.nodes {
        node.core.drain();
    }
    world.advance(Duration::from_millis(100));
}

#[test]
fn a_drain_with_nothing_under_way_closes_at_once() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let mut queue = association.io(1, 8);
    // It waits for an event that will not come; that keeps nobody.
    association
        .admin
        .submit(admin::async_event_request(), Payload::None);
    world.settle();
    drain(&world);
    assert!(queue.ends().is_none());
    assert!(association.admin.ends().is_none());
    world.assert_deserted();
    // Nobody gets in any more.
    let late = Host::new(&world, 2).pipe();
    world.settle();
    assert_eq!(world.queue_count(), 0);
    drop(late);
}

#[test]
fn a_drain_answers_what_is_under_way_and_takes_nothing_new() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let mut queues: Vec<_> = (1..=4).map(|qid| association.io(qid, 64)).collect();
    let hang = |operation| {
        for node in &world.nodes {
            node.faults.add(Rule::new(Effect::Hang).on(operation));
        }
    };
    hang(Operation::Read);
    hang(Operation::Write);
    let data = pattern(1, 64 << 10);
    let mut answered = Vec::new();
    let mut ignored = Vec::new();
    for (n, queue) in queues.iter_mut().enumerate() {
        let at = n as u64 * 100;
        answered.push([
            queue.submit(nvm::read(1, at, 16), Payload::ToHost(64 << 10)),
            queue.submit(nvm::write(1, at, 1, false), Payload::Capsule(&data[..4096])),
            queue.submit(nvm::write(1, at + 1, 16, false), Payload::Asked(&data)),
        ]);
        // Its data are asked for, and on their way when the drain begins.
        queue.answers_r2t = false;
        while queue.r2ts.is_empty() {
            assert!(queue.step());
        }
    }
    world.settle();
    for node in &world.nodes {
        node.core.drain();
    }
    world.settle();
    for queue in &mut queues {
        queue.answers_r2t = true;
        let r2t = queue.r2ts.pop().unwrap();
        queue.answer(&r2t);
    }
    world.advance(Duration::from_millis(100));
    assert_eq!(world.queue_count(), 5, "commands are under way");
    for queue in &mut queues {
        ignored.push(queue.submit(nvm::flush(1), Payload::None));
    }
    world.advance(Duration::from_millis(100));
    for node in &world.nodes {
        node.faults.clear();
        node.faults.release();
    }
    for (n, (queue, cids)) in queues.iter_mut().zip(answered).enumerate() {
        for cid in cids {
            queue.complete(cid).ok();
        }
        assert!(queue.take_done(ignored[n]).is_none());
        assert!(queue.ends().is_none(), "nothing else was answered");
    }
    world.advance(Duration::from_millis(100));
    assert!(association.admin.ends().is_none());
    world.assert_deserted();
}

/// A host that keeps its queues full is not kept from its end by that.
#[test]
fn a_drain_under_load_ends() {
    let world = world();
    let mut witness = Witness::new(&world);
    witness.is_served();
    let (association, mut queue) = Host::new(&world, 1).with_queue(128);
    for node in &world.nodes {
        let slow = Effect::Delay(Duration::from_millis(2));
        node.faults.add(Rule::new(slow).on(Operation::Read));
    }
    queue.order.clear();
    let mut outstanding = std::collections::BTreeSet::new();
    let read = nvm::read(1, 0, 4);
    for _ in 0..100 {
        outstanding.insert(queue.submit(read, Payload::ToHost(16 << 10)));
    }
    for turn in 0..100 {
        if turn == 20 {
            for node in &world.nodes {
                node.core.drain();
            }
        }
        world.advance(Duration::from_millis(1));
        while queue.pipe.stream.waiting() > 0 && queue.step() {
            for cid in std::mem::take(&mut queue.order) {
                queue.take_done(cid).unwrap().ok();
                assert!(outstanding.remove(&cid), "answered twice");
                outstanding.insert(queue.submit(read, Payload::ToHost(16 << 10)));
            }
        }
    }
    assert_eq!(world.queue_count(), 0);
    assert!(
        outstanding.len() >= 100,
        "what came too late is not answered"
    );
    drop((association, queue, witness));
    world.assert_deserted();
}

/// A queue that notes when it is asked for something.
struct Noting {
    key: u64,
    noted: Rc<RefCell<Vec<u64>>>,
}

impl QueueControl for Noting {
    fn pump(self: Rc<Self>, _memory: bool) -> Pumped {
        Pumped::Nothing
    }

    fn admitted(self: Rc<Self>, _id: EntryId) {}

    fn housekeeping(self: Rc<Self>, _now: Time) {
        self.noted.borrow_mut().push(self.key);
    }

    fn squeeze(self: Rc<Self>, _share: &Rc<HostShare>) {}

    fn close(self: Rc<Self>, _why: &'static str) {
        self.noted.borrow_mut().push(self.key);
    }

    fn drain(self: Rc<Self>) {
        self.noted.borrow_mut().push(self.key);
    }

    fn abort(self: Rc<Self>, _cid: u16) -> bool {
        false
    }

    fn deliver_events(self: Rc<Self>) {}
}

/// Equal runs are equal: whatever goes over all queues does so by their keys, in whatever order they
/// came.
#[test]
fn queues_are_gone_over_in_the_order_of_their_keys() {
    let world = world();
    let core = &world.nodes[0].core;
    let noted = Rc::new(RefCell::new(Vec::new()));
    let keys = (0..200).map(|n| 1000 + n * 7919 % 200);
    for key in keys {
        let noted = noted.clone();
        core.add_queue(QueueKey(key), Rc::new(Noting { key, noted }));
    }
    let expected: Vec<_> = (1000..1200).collect();
    world.advance(Duration::from_millis(60));
    assert_eq!(noted.take(), expected, "housekeeping");
    core.drain();
    assert_eq!(noted.take(), expected, "drain");
    core.close_all();
    assert_eq!(noted.take(), expected, "close");
    for key in expected {
        core.remove_queue(QueueKey(key));
    }
}
