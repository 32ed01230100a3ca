//! The host takes no memory from the heap per command once it runs: counted.

use std::{cell::Cell, rc::Rc, time::Duration};

use corebay_conformance::counting::{Counting, taken};
use corebay_core::{
    arena::Arena,
    buffer::BufferPool,
    reactor::Reactor,
    units::{CoreId, Time},
};
use corebay_nvme::{
    digest,
    fabrics::{self, Controller, ControllerOptions, Digests, Host, HostIdentity},
    spec,
};

#[allow(dead_code, reason = "shared with the unit tests")]
#[path = "../src/fabrics/tests/net.rs"]
mod net;
#[allow(dead_code, reason = "shared with the unit tests")]
#[path = "../src/fabrics/tests/peer.rs"]
mod peer;

use net::MemNetwork;
use peer::{FakeTarget, Manner};

#[global_allocator]
static COUNTING: Counting = Counting;

struct World {
    reactor: Reactor,
    network: MemNetwork,
    target: FakeTarget,
    now: Time,
    allocations: u64,
}

impl World {
    /// One turn of each; only the host's allocations count.
    fn turn(&mut self) {
        self.now = self.now.plus(Duration::from_micros(20));
        let before = taken();
        self.reactor.poll_once(self.now);
        self.allocations += taken() - before;
        self.target.accept(self.network.accepted());
        self.target.turn();
        // What the target executed is of no interest here, and grows.
        self.target.executed.clear();
    }
}

/// Allocations of 1,000 commands after 300 others, by eight tasks on a queue of six.
fn allocations(manner: Manner, digests: Digests, blocks: u32) -> u64 {
    let network = MemNetwork::new(1, 100_000, 256 << 10);
    let reactor = Reactor::new(CoreId(0), 64, Time(0));
    let mut arena = Arena::lazy(8 << 20).unwrap();
    let buffers = BufferPool::new(arena.take(8 << 20).unwrap(), 64);
    let host = Host::new(&reactor, network.clone(), buffers.clone());
    let mut world = World {
        reactor,
        network,
        target: FakeTarget::new(1, manner),
        now: Time(0),
        allocations: 0,
    };
    let identity = HostIdentity {
        nqn: "nqn.2024-01.example.test:host".parse().unwrap(),
        id: [1; 16],
    };
    let subsystem = "nqn.2024-01.example.test:disk".parse().unwrap();
    let address = "192.0.2.1:4420".parse().unwrap();
    let mut options = ControllerOptions::new(address, subsystem, identity);
    options.digests = digests;
    options.depth = 6;
    let completed = Rc::new(Cell::new(0u64));
    let done = completed.clone();
    let spawner = world.reactor.clone();
    let work = async move {
        let controller = Controller::connect(&host, options).await.unwrap();
        for task in 0..8u64 {
            let queue = controller.io_queue(0).unwrap();
            let data = [buffers.allocate(blocks as usize * peer::BLOCK).await];
            let done = done.clone();
            let work = async move {
                for round in 0.. {
                    let slba = task * u64::from(blocks);
                    let outcome = match round % 2 {
                        0 => queue.write(1, slba, blocks, &data, false).await,
                        _ => queue.read(1, slba, blocks, &data).await,
                    };
                    outcome.unwrap();
                    done.set(done.get() + 1);
                }
            };
            spawner.spawn(work).ok().unwrap();
        }
        std::future::pending::<()>().await;
        drop(controller);
    };
    world.reactor.spawn(Box::pin(work)).ok().unwrap();
    while completed.get() < 300 {
        world.turn();
    }
    let before = world.allocations;
    while completed.get() < 1300 {
        world.turn();
    }
    world.reactor.tear_down();
    world.allocations - before
}

#[test]
fn commands_take_no_memory() {
    let all = Digests {
        header: true,
        data: true,
    };
    for (in_capsule, digests, blocks) in [
        (4096, Digests::default(), 8),
        (4096, all, 8),
        (0, Digests::default(), 8),
        (0, all, 64),
    ] {
        let manner = Manner {
            in_capsule,
            many_r2ts: true,
            chunk: 4096,
            ..Manner::default()
        };
        let taken = allocations(manner, digests, blocks);
        assert_eq!(
            taken, 0,
            "in capsule {in_capsule}, {digests:?}, {blocks} blocks"
        );
    }
}
