//! The host against a target in memory: good ones, odd ones, hostile ones.

mod commands;
mod hostile;
mod net;
mod peer;
mod recovery;

use std::{cell::RefCell, future::Future, rc::Rc, time::Duration};

use corebay_core::{
    arena::Arena,
    buffer::{Buffer, BufferPool},
    reactor::Reactor,
    units::{CoreId, Time},
};

use super::{Controller, ControllerOptions, Digests, Host, HostIdentity};
use net::MemNetwork;
use peer::{FakeTarget, Manner};

/// The turns after which a future that has not ended is taken to hang.
const TURNS_MAX: usize = 4_000_000;

/// The time of one turn.
const TURN: Duration = Duration::from_micros(20);

/// One reactor, one host, one target, and the time they share.
struct World {
    reactor: Reactor,
    host: Rc<Host<MemNetwork>>,
    network: MemNetwork,
    target: FakeTarget,
    now: Time,
}

impl World {
    fn new(seed: u64, manner: Manner) -> Self {
        Self::chopped(seed, manner, 1 << 20)
    }

    /// Streams carry at most `bytes_max` bytes at a time.
    fn chopped(seed: u64, manner: Manner, bytes_max: usize) -> Self {
        let network = MemNetwork::new(seed, bytes_max, 96 << 10);
        let reactor = Reactor::new(CoreId(0), 256, Time(0));
        let mut arena = Arena::lazy(16 << 20).unwrap();
        let region = arena.take(16 << 20).unwrap();
        let buffers = BufferPool::new(region, 64);
        let host = Host::new(&reactor, network.clone(), buffers);
        Self {
            reactor,
            host,
            network,
            target: FakeTarget::new(seed, manner),
            now: Time(0),
        }
    }

    fn turn(&mut self) {
        self.now = self.now.plus(TURN);
        self.reactor.poll_once(self.now);
        self.target.accept(self.network.accepted());
        self.target.turn();
    }

    /// Starts a future; its outcome appears in what is given back.
    fn start<T: 'static>(
        &self,
        future: impl Future<Output = T> + 'static,
    ) -> Rc<RefCell<Option<T>>> {
        let out = Rc::new(RefCell::new(None));
        let into = out.clone();
        let task = async move {
            let outcome = future.await;
            *into.borrow_mut() = Some(outcome);
        };
        self.reactor.spawn(Box::pin(task)).ok().unwrap();
        out
    }

    /// Turns until `done`.
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("it hangs");
    }

    /// Runs a future to its end.
    fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let out = self.start(future);
        self.until(|_| out.borrow().is_some());
        out.take().unwrap()
    }

    fn options(&self) -> ControllerOptions {
        let identity = HostIdentity {
            nqn: "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001"
                .parse()
                .unwrap(),
            id: [1; 16],
        };
        let subsystem = "nqn.2024-01.example.test:disk".parse().unwrap();
        ControllerOptions::new("192.0.2.1:4420".parse().unwrap(), subsystem, identity)
    }

    fn connect(&mut self, options: ControllerOptions) -> Controller<MemNetwork> {
        let host = self.host.clone();
        self.run(async move { Controller::connect(&host, options).await })
            .unwrap()
    }

    fn buffer(&self, bytes: usize) -> Buffer {
        self.host.buffers().try_allocate(bytes).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}

/// Cuts a buffer into `count` windows of whole dwords.
fn cut(buffer: &Buffer, count: usize) -> Vec<Buffer> {
    let part = (buffer.len() / count).next_multiple_of(4).max(4);
    (0..buffer.len())
        .step_by(part)
        .map(|at| buffer.slice(at..(at + part).min(buffer.len())))
        .collect()
}

fn digests(bits: u8) -> Digests {
    Digests {
        header: bits & 1 != 0,
        data: bits & 2 != 0,
    }
}
