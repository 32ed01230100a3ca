//! Namespaces that are opened before anybody sees them.

use corebay_core::{disk::DiskError, units::BlockSize};

use crate::harness::{
    disk::{Kind, Medium},
    host::Host,
    world::{Plan, World, ram, spec},
};

#[test]
fn what_is_staged_is_seen_only_once_it_is_attached() {
    let world = World::new(Plan {
        cores: 2,
        ..Plan::default()
    });
    let broken = Medium {
        kind: Kind::Broken(BlockSize::B4096, 64),
        volatile_cache: false,
    };
    let good = spec(&world.plan, 2, &ram(BlockSize::B4096, 64));
    let bad = spec(&world.plan, 3, &broken);
    let attached = || {
        let of = |node: &crate::harness::world::Node| node.core.table(world.subsystem.id).all();
        world.nodes.iter().map(|node| of(node).len()).sum::<usize>()
    };
    for node in &world.nodes {
        assert_eq!(node.core.stage(0, good.clone()), Ok(()));
        assert_eq!(node.core.stage(1, bad.clone()), Err(DiskError::Gone));
    }
    assert_eq!(attached(), 2, "the first namespace on both cores");
    for node in &world.nodes {
        node.core.drop_staged();
        assert_eq!(node.core.stage(0, good.clone()), Ok(()));
        node.core.attach_staged(0, world.subsystem.id);
    }
    world.subsystem.add_namespace(good);
    assert_eq!(attached(), 4);
    let (_association, mut io) = Host::new(&world, 1).with_queue(8);
    io.write(2, 0, 4096, &[1; 4096]).ok();
    assert_eq!(io.read(2, 0, 4096, 1).ok(), [1; 4096]);
}
