//! Associations: Connect and what it refuses, properties, reset, shutdown, Disconnect, keep alive.

use std::time::Duration;

use corebay_core::{
    disk::fault::{Effect, Operation, Rule},
    units::BlockSize,
};
use corebay_nvme::spec::{
    command::{SubmissionEntry, admin, nvm},
    fabrics::{
        CNTLID_DYNAMIC, CNTLID_STATIC, ConnectData, PropertySize, disconnect, property_get,
        property_set,
    },
    property,
    status::Status,
};
use corebay_target::{controller::Event, fabrics::report, subsystem::Access};
use zerocopy::IntoBytes;

use crate::harness::{
    disk::Call,
    host::{CC_ENABLED, Host, assert_status},
    wire::{Completed, Payload},
    world::{Plan, World, faulty, host_nqn, ram},
};

/// Sends a Connect command that is not quite right.
fn connect(
    host: &Host,
    qid: u16,
    cntlid: u16,
    command: impl FnOnce(&mut SubmissionEntry),
    data: impl FnOnce(&mut ConnectData),
) -> Completed {
    let mut queue = host.open();
    let mut sqe = host.connect_command(qid, 32);
    let mut sent = host.connect_data(cntlid);
    command(&mut sqe);
    data(&mut sent);
    queue.command(sqe, Payload::Capsule(sent.as_bytes()))
}

#[test]
fn what_connect_refuses() {
    let world = World::new(Plan {
        access: Access::Hosts((0..5).map(host_nqn).collect()),
        ..Plan::default()
    });
    let host = Host::new(&world, 1);
    let association = host.associate();
    let id = association.cntlid;
    let invalid = |done: Completed, in_data: u32, offset: u32| {
        assert_eq!(done.status, Status::CONNECT_INVALID_PARAMETERS.with_dnr());
        assert_eq!(done.result, u64::from(in_data << 16 | offset));
    };
    let same = |_: &mut SubmissionEntry| {};
    let all = |_: &mut ConnectData| {};
    let stranger = Host::new(&world, 9);
    let done = connect(&stranger, 0, CNTLID_DYNAMIC, same, all);
    assert_eq!(done.status, Status::CONNECT_INVALID_HOST.with_dnr());
    assert_eq!(done.result, 0);
    let unknown = |data: &mut ConnectData| {
        "nqn.2026-01.io.corebay:other"
            .parse::<corebay_nvme::spec::nqn::Nqn>()
            .unwrap()
            .write_field(&mut data.subnqn);
    };
    invalid(connect(&host, 0, CNTLID_DYNAMIC, same, unknown), 1, 256);
    invalid(
        connect(&host, 0, CNTLID_DYNAMIC, same, |data| {
            data.subnqn.fill(b'x')
        }),
        1,
        256,
    );
    invalid(
        connect(&host, 0, CNTLID_DYNAMIC, same, |data| data.hostnqn.fill(0)),
        1,
        512,
    );
    invalid(
        connect(&host, 0, CNTLID_DYNAMIC, same, |data| {
            data.hostnqn.fill(0xff)
        }),
        1,
        512,
    );
    let format = connect(&host, 0, CNTLID_DYNAMIC, |sqe| sqe.cdw10.set(1), all);
    assert_eq!(
        format.status,
        Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr()
    );
    for size in [0, 4096, 65_535] {
        let done = connect(&host, 0, CNTLID_DYNAMIC, |sqe| sqe.cdw11.set(size), all);
        invalid(done, 0, 44);
    }
    for size in [0, 1024, 65_535] {
        invalid(connect(&host, 1, id, |sqe| sqe.cdw11.set(size), all), 0, 44);
    }
    // I/O queues: of an unknown controller, of another host, with an id that was not granted.
    invalid(connect(&host, 1, id + 1, same, all), 1, 16);
    invalid(connect(&host, 1, CNTLID_DYNAMIC, same, all), 1, 16);
    invalid(connect(&Host::new(&world, 2), 1, id, same, all), 1, 512);
    invalid(
        connect(&host, 1, id, same, |data| data.hostid[3] ^= 1),
        1,
        0,
    );
    invalid(connect(&host, 129, id, same, all), 0, 42);
    let queue = association.io(1, 32);
    let again = connect(&host, 1, id, same, all);
    assert_eq!(again.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    // Before the controller is enabled.
    let (admin, other) = host.queue(0, 32, CNTLID_DYNAMIC);
    let early = connect(&host, 1, other, same, all);
    assert_eq!(early.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    // Connect data that are too short.
    let mut short = host.open();
    let done = short.command(host.connect_command(0, 32), Payload::Capsule(&[0; 512]));
    assert_status(&done, Status::DATA_SGL_LENGTH_INVALID);
    drop((association, queue, admin, short));
    world.assert_deserted();
}

#[test]
fn commands_at_the_wrong_time() {
    let world = World::new(Plan::default());
    let host = Host::new(&world, 1);
    // Before Connect.
    for sqe in [
        admin::identify(1, 0, 0),
        nvm::flush(1),
        property_get(property::VS, PropertySize::Four),
        disconnect(),
    ] {
        let mut queue = host.open();
        let done = queue.command(sqe, Payload::ToHost(4096));
        assert_eq!(done.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    }
    // Before the controller is enabled.
    let (mut admin, _) = host.queue(0, 32, CNTLID_DYNAMIC);
    let done = admin.command(admin::identify(1, 0, 0), Payload::ToHost(4096));
    assert_eq!(done.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    // Connect twice.
    let data = host.connect_data(CNTLID_DYNAMIC);
    let done = admin.command(
        host.connect_command(0, 32),
        Payload::Capsule(data.as_bytes()),
    );
    assert_eq!(done.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    drop(admin);
    world.assert_deserted();
}

#[test]
fn controller_ids() {
    let world = World::new(Plan::default());
    let host = Host::new(&world, 1);
    let (a, first) = host.queue(0, 32, CNTLID_DYNAMIC);
    let (b, second) = host.queue(0, 32, CNTLID_STATIC);
    let (c, wanted) = host.queue(0, 32, 77);
    assert_eq!((first, second, wanted), (1, 2, 77));
    let (_queue, busy) = host.try_queue(0, 32, 77);
    assert_status(&busy, Status::CONNECT_CONTROLLER_BUSY);
    // Ids that no controller can have: asking again does not help.
    for reserved in [0, 0xfff0, 0xfffd] {
        let (_queue, done) = host.try_queue(0, 32, reserved);
        assert_eq!(done.status, Status::CONNECT_INVALID_PARAMETERS.with_dnr());
        assert_eq!(done.result, 1 << 16 | 16);
    }
    drop((a, b));
    world.settle();
    let (_d, next) = host.queue(0, 32, CNTLID_DYNAMIC);
    assert_eq!(next, 3, "an id is not used again at once");
    drop((c, _d, _queue));
    world.assert_deserted();
}

#[test]
fn properties() {
    let world = World::new(Plan::default());
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    let admin = &mut association.admin;
    let cap = admin
        .command(
            property_get(property::CAP, PropertySize::Eight),
            Payload::None,
        )
        .value();
    assert_eq!(cap & 0xffff, 1023, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!(cap >> 37 & 1, 1, "CSS: NVM command set");
    assert_eq!(cap >> 48 & 0xff, 0, "MPSMIN and MPSMAX: 4 KiB");
    assert_eq!(admin.property(property::VS).value(), 0x0002_0100);
    assert_eq!(admin.property(property::CC).value(), CC_ENABLED);
    assert_eq!(admin.property(property::CSTS).value(), 1);
    for (offset, size) in [
        (property::CAP, PropertySize::Four),
        (property::VS, PropertySize::Eight),
        (property::CC, PropertySize::Reserved(3)),
        (property::AQA, PropertySize::Four),
        (0x1000, PropertySize::Four),
        (1, PropertySize::Four),
    ] {
        let done = admin.command(property_get(offset, size), Payload::None);
        assert_eq!(done.status, Status::INVALID_FIELD.with_dnr(), "{offset:x}");
    }
    for offset in [property::CAP, property::VS, property::CSTS, 0x1000] {
        assert_status(&admin.set_property(offset, 0), Status::INVALID_FIELD);
    }
    let wide = property_set(property::CC, PropertySize::Eight, CC_ENABLED);
    assert_status(&admin.command(wide, Payload::None), Status::INVALID_FIELD);
    assert_status(&io.property(property::CC), Status::INVALID_QUEUE_TYPE);
    assert_status(
        &io.set_property(property::CC, 0),
        Status::INVALID_QUEUE_TYPE,
    );
    // A configuration that CAP does not offer is fatal to the controller alone.
    let (mut other, _) = Host::new(&world, 2).queue(0, 32, CNTLID_DYNAMIC);
    other
        .set_property(property::CC, CC_ENABLED | 1 << 7)
        .value();
    assert_eq!(other.property(property::CSTS).value(), 2, "CFS");
}

#[test]
fn a_reset_waits_for_what_executes() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    association.set_feature(0x0b, 1 << 8).ok();
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Write).times(1));
    io.submit(nvm::write(1, 0, 1, false), Payload::Capsule(&[1; 4096]));
    world.settle();
    association
        .admin
        .set_property(property::CC, CC_ENABLED & !1)
        .value();
    assert!(io.ends().is_none(), "I/O queues end with a reset");
    world.advance(Duration::from_millis(50));
    assert_eq!(association.admin.property(property::CSTS).value() & 1, 1);
    world.faults().release();
    world.advance(Duration::from_millis(50));
    assert_eq!(association.admin.property(property::CSTS).value(), 0);
    association
        .admin
        .set_property(property::CC, CC_ENABLED)
        .value();
    assert_eq!(association.admin.property(property::CSTS).value(), 1);
    assert_eq!(
        association.feature(0x0b, 0).value(),
        0,
        "features are the saved ones again"
    );
    let mut io = association.io(1, 32);
    assert_eq!(io.read(1, 0, 4096, 1).ok(), [1; 4096]);
    drop((association, io));
    world.assert_deserted();
}

#[test]
fn a_controller_that_is_enabled_before_its_reset_ended_gets_ready() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Write).times(1));
    io.submit(nvm::write(1, 0, 1, false), Payload::Capsule(&[1; 4096]));
    world.settle();
    let admin = &mut association.admin;
    admin.set_property(property::CC, CC_ENABLED & !1).value();
    admin.set_property(property::CC, CC_ENABLED).value();
    world.advance(Duration::from_millis(50));
    // The reset goes on: nothing is taken, and no queue connects.
    let early = admin.command(admin::identify(1, 0, 0), Payload::ToHost(4096));
    assert_status(&early, Status::COMMAND_SEQUENCE_ERROR);
    let (_queue, early) = association.host.try_queue(1, 32, association.cntlid);
    assert_status(&early, Status::COMMAND_SEQUENCE_ERROR);
    world.faults().release();
    world.advance(Duration::from_millis(50));
    assert_eq!(association.admin.property(property::CSTS).value(), 1);
    let mut io = association.io(1, 32);
    assert_eq!(io.read(1, 0, 4096, 1).ok(), [1; 4096]);
    drop((association, io, _queue));
    world.assert_deserted();
}

#[test]
fn a_reset_overtakes_a_shutdown() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let mut association = Host::new(&world, 1).associate();
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Flush).times(1));
    let admin = &mut association.admin;
    admin
        .set_property(property::CC, CC_ENABLED | 1 << 14)
        .value();
    world.settle();
    assert_eq!(admin.property(property::CSTS).value(), 1 | 1 << 2);
    admin.set_property(property::CC, CC_ENABLED & !1).value();
    world.advance(Duration::from_millis(50));
    admin.set_property(property::CC, CC_ENABLED).value();
    assert_eq!(admin.property(property::CSTS).value(), 1);
    world.faults().release();
    world.advance(Duration::from_millis(50));
    assert_eq!(
        admin.property(property::CSTS).value(),
        1,
        "the old shutdown says nothing of the new life"
    );
}

#[test]
fn event_requests_end_with_a_reset() {
    let world = World::new(Plan::default());
    let mut association = Host::new(&world, 1).associate();
    let ask = |association: &mut crate::harness::host::Association| {
        let sqe = admin::async_event_request();
        association.admin.submit(sqe, Payload::None)
    };
    for _ in 0..4 {
        ask(&mut association);
    }
    world.settle();
    let admin = &mut association.admin;
    admin.set_property(property::CC, CC_ENABLED & !1).value();
    world.advance(Duration::from_millis(20));
    admin.set_property(property::CC, CC_ENABLED).value();
    association.set_feature(0x0b, 1 << 8).ok();
    // As many as ever may be asked again, and the first that is answered is a new one.
    let first = ask(&mut association);
    for _ in 0..3 {
        ask(&mut association);
    }
    world.settle();
    assert_eq!(association.admin.pipe.stream.waiting(), 0, "all are parked");
    let controller = &world.subsystem.controllers()[0];
    report(
        &world.nodes[0].core,
        controller,
        Event::NamespaceAttributeChanged,
    );
    association.admin.complete(first).value();
    drop(association);
    world.assert_deserted();
}

#[test]
fn a_shutdown_flushes() {
    for (shn, name) in [(1, "normal"), (2, "abrupt")] {
        let mut medium = ram(BlockSize::B4096, 64);
        medium.volatile_cache = true;
        let world = World::with(vec![medium]);
        let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
        io.write(1, 0, 4096, &[1; 4096]).ok();
        world.note_calls();
        association
            .admin
            .set_property(property::CC, CC_ENABLED | shn << 14)
            .value();
        world.settle();
        assert_eq!(world.calls(), [Call::Flush], "{name}");
        assert_eq!(
            association.admin.property(property::CSTS).value() >> 2 & 3,
            2
        );
        // Nothing is served any more that the host was not told to be safe.
        let late = io.write(1, 0, 4096, &[2; 4096]);
        assert_status(&late, Status::COMMAND_SEQUENCE_ERROR);
        assert_status(&io.read(1, 0, 4096, 1), Status::COMMAND_SEQUENCE_ERROR);
        assert!(world.calls().is_empty(), "{name}: it executes");
        // The host may keep the association alive.
        let alive = admin::keep_alive();
        association.admin.command(alive, Payload::None).ok();
        association.admin.set_property(property::CC, 0).value();
        world.advance(Duration::from_millis(20));
        let admin = &mut association.admin;
        assert_eq!(admin.property(property::CSTS).value(), 0);
        admin.set_property(property::CC, CC_ENABLED).value();
        let mut again = association.io(1, 32);
        assert_eq!(again.read(1, 0, 4096, 1).ok(), [1; 4096], "{name}");
        drop(again);
        drop((association, io));
        world.assert_deserted();
    }
}

#[test]
fn disconnect_ends_one_queue() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    let mut other = association.io(2, 32);
    let done = association.admin.command(disconnect(), Payload::None);
    assert_status(&done, Status::INVALID_QUEUE_TYPE);
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Flush).times(1));
    let flush = io.submit(nvm::flush(1), Payload::None);
    world.settle();
    io.command(disconnect(), Payload::None).ok();
    world.advance(Duration::from_millis(100));
    world.faults().release();
    io.complete(flush).ok();
    world.advance(Duration::from_millis(100));
    assert!(io.ends().is_none());
    other.read(1, 0, 4096, 1).ok();
    let mut again = association.io(1, 32);
    again.read(1, 0, 4096, 1).ok();
    drop((association, io, other, again));
    world.assert_deserted();
}

#[test]
fn a_silent_host_loses_its_association() {
    let world = World::new(Plan::default());
    for (asked_ms, granted_ms) in [(1u32, 100u64), (150, 200), (1000, 1000)] {
        let mut host = Host::new(&world, 1);
        host.keep_alive_ms = asked_ms;
        let (mut association, mut io) = host.with_queue(32);
        assert_eq!(association.feature(0x0f, 0).value(), granted_ms);
        // Any command on any queue keeps it alive.
        for _ in 0..5 {
            world.advance(Duration::from_millis(granted_ms * 9 / 10));
            io.command(nvm::flush(1), Payload::None).ok();
        }
        world.advance(Duration::from_millis(granted_ms * 9 / 10));
        association
            .admin
            .command(admin::keep_alive(), Payload::None)
            .ok();
        world.advance(Duration::from_millis(granted_ms));
        assert_eq!(world.queue_count(), 2, "never early");
        world.advance(Duration::from_millis(100));
        assert_eq!(world.queue_count(), 0, "within 100 ms");
        assert!(io.ends().is_none() && association.admin.ends().is_none());
        world.assert_deserted();
    }
    // It can be changed, and switched off.
    let mut host = Host::new(&world, 1);
    host.keep_alive_ms = 100;
    let mut association = host.associate();
    association.set_feature(0x0f, 301).ok();
    assert_eq!(association.feature(0x0f, 0).value(), 400);
    world.advance(Duration::from_millis(390));
    association.set_feature(0x0f, 0).ok();
    world.advance(Duration::from_secs(100));
    association
        .admin
        .command(admin::keep_alive(), Payload::None)
        .ok();
}

#[test]
fn flow_control() {
    let world = World::new(Plan::default());
    let mut host = Host::new(&world, 1);
    host.flow_control = true;
    let (_association, mut io) = host.with_queue(4);
    for expected in [2, 3, 0, 1, 2] {
        let done = io.command(nvm::flush(1), Payload::None);
        assert_eq!(done.sqhd, expected);
    }
    assert!(!io.read(1, 0, 4096, 1).implied, "SQHD has to be told");
    host.flow_control = false;
    let mut io = _association.host.queue(2, 4, _association.cntlid).0;
    assert!(!io.read(1, 0, 4096, 1).implied);
}
