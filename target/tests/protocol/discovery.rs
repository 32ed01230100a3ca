//! The discovery service: who is told of what, and when.

use std::net::SocketAddr;

use corebay_nvme::spec::{command::admin, status::Status};
use corebay_target::{
    controller::Event,
    fabrics::report,
    subsystem::{Access, Referral, TransportType},
};

use crate::harness::{
    host::{Association, Host, assert_status},
    wire::Payload,
    world::{Plan, SUBSYSTEM, World, address, host_nqn},
};

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

struct Log {
    generation: u64,
    /// Subtype, port, NQN, address and service of each entry.
    entries: Vec<(u8, u16, String, String)>,
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec())
        .unwrap()
        .trim_end()
        .to_owned()
}

fn read(association: &mut Association) -> Log {
    let page = association.log(0x70, 0, 16 << 10).ok();
    let number = |at: usize, bytes: usize| -> u64 {
        (0..bytes).map(|n| u64::from(page[at + n]) << (8 * n)).sum()
    };
    assert_eq!(number(16, 2), 0, "RECFMT");
    let entries = (1..=number(8, 8) as usize).map(|index| {
        let entry = &page[index * 1024..][..1024];
        assert_eq!(entry[0], 3, "TRTYPE: TCP");
        assert_eq!(
            entry[3] & 0b111,
            0b110,
            "TREQ: no secure channel, flow control may be off"
        );
        assert_eq!(entry[6..8], [0xff, 0xff], "CNTLID: dynamic");
        assert_eq!(entry[8..10], [32, 0], "ASQSZ");
        let port = u16::from_le_bytes([entry[4], entry[5]]);
        let at = format!("{}:{}", text(&entry[512..768]), text(&entry[32..64]));
        (entry[2], port, text(&entry[256..512]), at)
    });
    Log {
        generation: number(0, 8),
        entries: entries.collect(),
    }
}

fn entry(subtype: u8, port: u16, nqn: &str, at: &str) -> (u8, u16, String, String) {
    (subtype, port, nqn.into(), at.into())
}

fn world() -> std::rc::Rc<World> {
    World::new(Plan {
        access: Access::Hosts([host_nqn(1)].into()),
        listen: vec![
            (address(4420), true, true),
            (address(8009), true, false),
            (SocketAddr::from(([0, 0, 0, 0], 4421)), false, true),
        ],
        ..Plan::default()
    })
}

#[test]
fn hosts_are_told_of_what_they_may_connect_to() {
    let world = world();
    let mut host = Host::discovery(&world, 1);
    host.to = address(8009);
    let log = read(&mut host.associate());
    let services = [
        entry(3, 1, DISCOVERY, "127.0.0.1:4420"),
        entry(3, 2, DISCOVERY, "127.0.0.1:8009"),
    ];
    let subsystems = [
        entry(2, 1, SUBSYSTEM, "127.0.0.1:4420"),
        entry(2, 3, SUBSYSTEM, "127.0.0.1:4421"),
    ];
    assert_eq!(log.entries, [&services[..], &subsystems].concat());
    let stranger = Host::discovery(&world, 2);
    assert_eq!(read(&mut stranger.associate()).entries, services);
    // A listener without discovery, and one without subsystems.
    host.to = address(4421);
    let (_queue, refused) = host.try_queue(0, 32, 0xffff);
    assert_status(&refused, Status::CONNECT_INVALID_PARAMETERS);
    let mut host = Host::new(&world, 1);
    host.to = address(8009);
    let (_queue, refused) = host.try_queue(0, 32, 0xffff);
    assert_status(&refused, Status::CONNECT_INVALID_PARAMETERS);
}

#[test]
fn the_generation_counts_changes_and_referrals_are_told() {
    let world = world();
    let mut association = Host::discovery(&world, 2).associate();
    let before = read(&mut association);
    assert_eq!(read(&mut association).generation, before.generation);
    world.registry.set_referrals(vec![Referral {
        transport: TransportType::Tcp,
        address: "[fe80::1]:8010".parse().unwrap(),
        nqn: DISCOVERY.parse().unwrap(),
    }]);
    let after = read(&mut association);
    assert!(after.generation > before.generation);
    assert_eq!(after.entries[2], entry(1, 0, DISCOVERY, "fe80::1:8010"));
    world.subsystem.set_access(Access::Any);
    world.registry.bump_generation();
    let open = read(&mut association);
    assert!(open.generation > after.generation);
    assert_eq!(open.entries.len(), 5);
}

#[test]
fn a_discovery_controller_and_its_events() {
    let world = world();
    let mut association = Host::discovery(&world, 1).associate();
    let page = association.identify(1, 0).ok();
    assert_eq!(page[111], 2, "CNTRLTYPE: discovery");
    assert_eq!(page[92..96], [0, 0, 0, 0x80], "OAES: discovery log change");
    assert!(page[768..].starts_with(DISCOVERY.as_bytes()));
    assert_status(&association.identify(2, 0), Status::INVALID_FIELD);
    assert_status(&association.log(2, 0, 512), Status::INVALID_LOG_PAGE);
    assert_status(&association.feature(6, 0), Status::INVALID_FIELD);
    let done = association.admin.command(admin::abort(0, 1), Payload::None);
    assert_status(&done, Status::INVALID_OPCODE);
    let (_queue, refused) = association.host.try_queue(1, 32, association.cntlid);
    assert_status(&refused, Status::CONNECT_INVALID_PARAMETERS);
    association.set_feature(0x0b, 1 << 31).ok();
    let event = association
        .admin
        .submit(admin::async_event_request(), Payload::None);
    let controller = world.registry.discovery().controllers()[0].clone();
    report(
        &world.nodes[0].core,
        &controller,
        Event::DiscoveryLogChanged,
    );
    assert_eq!(association.admin.complete(event).value(), 0x70_f002);
    association
        .admin
        .command(admin::keep_alive(), Payload::None)
        .ok();
    drop((association, _queue));
    world.settle();
    assert!(world.registry.discovery().controllers().is_empty());
    world.assert_deserted();
}
