//! Asynchronous events and aborts.

use corebay_core::{
    disk::{
        DiskError,
        fault::{Effect, Operation, Rule},
    },
    units::BlockSize,
};
use corebay_nvme::spec::{
    command::{admin, nvm},
    status::Status,
};
use corebay_target::{controller::Event, fabrics::report};

use crate::{
    admin::field,
    harness::{
        host::{Association, Host, pattern},
        wire::{Completed, Payload},
        world::{World, faulty, ram},
    },
};

fn world() -> std::rc::Rc<World> {
    World::with(vec![
        ram(BlockSize::B4096, 1000),
        ram(BlockSize::B512, 8000),
        faulty(BlockSize::B4096, 64),
    ])
}

fn event(association: &mut Association) -> u16 {
    association
        .admin
        .submit(admin::async_event_request(), Payload::None)
}

fn raise(world: &World, event: Event) {
    for controller in world.subsystem.controllers() {
        report(&world.nodes[0].core, &controller, event);
    }
    world.settle();
}

#[test]
fn asynchronous_events() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let first = event(&mut association);
    let changed = |world: &World, nsid| {
        world.subsystem.controllers()[0].namespace_changed(nsid);
        raise(world, Event::NamespaceAttributeChanged);
    };
    changed(&world, 2);
    assert_eq!(
        association.admin.pipe.stream.waiting(),
        0,
        "it did not ask for such"
    );
    association.set_feature(0x0b, 1 << 8).ok();
    changed(&world, 3);
    assert_eq!(association.admin.complete(first).value(), 0x04_0002);
    // Masked until the log page is read.
    let second = event(&mut association);
    changed(&world, 1);
    assert_eq!(association.admin.pipe.stream.waiting(), 0);
    let retained = admin::get_log_page(4, u32::MAX, 0, 1024, true);
    let list = association
        .admin
        .command(retained, Payload::ToHost(4096))
        .ok();
    assert_eq!(
        [field(&list, 0, 4), field(&list, 4, 4), field(&list, 8, 4)],
        [1, 2, 3]
    );
    changed(&world, 1);
    assert_eq!(association.admin.pipe.stream.waiting(), 0, "retained");
    assert!(
        !association.log(4, 8192, 64).status.is_success(),
        "a read that fails reads nothing"
    );
    let uneven = association.log(4, 2, 64);
    assert!(!uneven.status.is_success());
    changed(&world, 1);
    assert_eq!(association.admin.pipe.stream.waiting(), 0, "not re-armed");
    assert_eq!(association.log(4, 0, 4096).ok(), list);
    assert!(
        association.log(4, 0, 4096).ok().iter().all(|&b| b == 0),
        "read once"
    );
    changed(&world, 2);
    assert_eq!(association.admin.complete(second).value(), 0x04_0002);
    // An event that comes before the request waits for it.
    association.log(4, 0, 4096).ok();
    changed(&world, 2);
    let third = event(&mut association);
    assert_eq!(association.admin.complete(third).value(), 0x04_0002);
    // No more than AERL + 1.
    let outstanding: Vec<_> = (0..4).map(|_| event(&mut association)).collect();
    let sqe = admin::async_event_request();
    let done = association.admin.command(sqe, Payload::None);
    assert_eq!(done.status, Status::AER_LIMIT_EXCEEDED.with_dnr());
    assert_eq!(outstanding.len(), 4);
    drop(association);
    world.assert_deserted();
}

/// What fails on the medium is reported as it happens, once until the host has read the log.
#[test]
fn errors_are_reported_and_logged() {
    const ERROR: u64 = 0x01_0400;
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let mut other = Host::new(&world, 2).associate();
    let mut io = association.io(1, 64);
    let first = event(&mut association);
    let others = event(&mut other);
    // A host's own mistakes, and a comparison that does not hold, are no such event.
    assert!(!io.read(3, 64, 4096, 1).status.is_success());
    let compare = nvm::compare(3, 0, 1);
    let differs = io.command(compare, Payload::Capsule(&pattern(1, 4096)));
    assert_eq!(differs.status, Status::COMPARE_FAILURE.with_dnr());
    world.settle();
    assert_eq!(association.admin.pipe.stream.waiting(), 0);
    let logged = association.log(1, 0, 64 * 64).ok();
    let before = field(&logged, 0, 8);
    // One on the medium is.
    let broken = Effect::Fail(DiskError::UnrecoveredRead);
    world.faults().add(Rule::new(broken).on(Operation::Read));
    let cid = io.submit(nvm::read(3, 5, 2), Payload::ToHost(8192));
    assert!(!io.complete(cid).status.is_success());
    assert_eq!(association.admin.complete(first).value(), ERROR);
    // Masked until the log was read without Retain Asynchronous Event.
    let second = event(&mut association);
    assert!(!io.read(3, 6, 4096, 1).status.is_success());
    world.settle();
    assert_eq!(association.admin.pipe.stream.waiting(), 0);
    let logged = association.log(1, 0, 64 * 64).ok();
    assert_eq!(field(&logged, 0, 8), before + 2);
    let (newest, older) = (&logged[..64], &logged[64..128]);
    assert_eq!(field(older, 8, 2), 1, "submission queue");
    assert_eq!(field(older, 10, 2), u64::from(cid));
    assert_eq!([field(older, 16, 8), field(newest, 16, 8)], [5, 6]);
    assert_eq!(field(older, 24, 4), 3, "namespace");
    assert!(!io.read(3, 7, 4096, 1).status.is_success());
    assert_eq!(association.admin.complete(second).value(), ERROR);
    world.settle();
    assert_eq!(other.admin.pipe.stream.waiting(), 0, "another host's error");
    assert!(other.admin.take_done(others).is_none());
    drop((association, other, io));
    world.assert_deserted();
}

fn abort(association: &mut Association, sqid: u16, cid: u16) -> Completed {
    association
        .admin
        .command(admin::abort(sqid, cid), Payload::None)
}

const ABORTED: u64 = 0;
const NOT_ABORTED: u64 = 1;

#[test]
fn aborts_answer_truly() {
    let world = world();
    let (mut association, mut io) = Host::new(&world, 1).with_queue(64);
    // What is not there.
    assert_eq!(abort(&mut association, 1, 4000).value(), NOT_ABORTED);
    assert_eq!(abort(&mut association, 9, 1).value(), NOT_ABORTED);
    // A request that waits for an event.
    let parked = event(&mut association);
    assert_eq!(abort(&mut association, 0, parked).value(), ABORTED);
    let order = association.admin.order.clone();
    assert_eq!(
        order[order.len() - 2],
        parked,
        "it is answered before the abort is"
    );
    assert_eq!(
        association.admin.complete(parked).status,
        Status::ABORT_REQUESTED
    );
    // One that executes.
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Flush));
    let running = io.submit(nvm::flush(3), Payload::None);
    world.settle();
    assert_eq!(abort(&mut association, 1, running).value(), NOT_ABORTED);
    world.faults().clear();
    world.faults().release();
    io.complete(running).ok();
    // One that waits for memory, which reads that hang hold.
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Read));
    let hanging: Vec<_> = (0..40)
        .map(|_| io.submit(nvm::read(3, 0, 64), Payload::ToHost(256 << 10)))
        .collect();
    world.settle();
    let last = hanging[39];
    assert_eq!(abort(&mut association, 1, last).value(), ABORTED);
    assert_eq!(io.complete(last).status, Status::ABORT_REQUESTED);
    world.faults().clear();
    world.faults().release();
    for cid in &hanging[..39] {
        io.complete(*cid).ok();
    }
    // One whose data are on their way: the abort is not immediate, and says so.
    io.answers_r2t = false;
    let data = pattern(1, 4096);
    let fetching = io.submit(nvm::write(3, 0, 1, false), Payload::Asked(&data));
    while io.r2ts.is_empty() {
        assert!(io.step());
    }
    assert_eq!(abort(&mut association, 1, fetching).value(), NOT_ABORTED);
    let r2t = io.r2ts.pop().unwrap();
    io.answer(&r2t);
    assert_eq!(io.complete(fetching).status, Status::ABORT_REQUESTED);
    assert!(
        io.read(3, 0, 4096, 1).ok().iter().all(|&b| b == 0),
        "nothing was written"
    );
    drop((association, io));
    world.assert_deserted();
}
