//! The connections of one core, polled once per turn.
//!
//! Invariants:
//! - A turn makes at most one round of receives and one of sends for each connection that has
//!   something to receive or send; connections that have nothing cost nothing.
//! - Where there are few connections, those with commands in flight are received from without
//!   asking the network first: one system call less. The network is still asked now and then, and
//!   always before the core sleeps.
//! - A connection that has ended is forgotten within the turn, or once its controller has closed.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::BorrowedFd,
    rc::Rc,
    time::Duration,
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::BufferPool,
    net::{Network, READY_MAX, Ready},
    reactor::{PollSource, Reactor},
    timer::Timer,
    units::Time,
};
use slab::Slab;

use super::connection::Connection;

/// How often deadlines are looked at: the precision of command time-outs.
const TICK: Duration = Duration::from_millis(25);

/// Up to this many connections are received from without asking the network first.
const DIRECT_CONNECTIONS_MAX: usize = 4;

/// The turns after which the network is asked all the same.
const DIRECT_TURNS: u32 = 64;

/// What the connections of a host have to do, by their keys.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    to_send: RefCell<Vec<usize>>,
    to_receive: RefCell<Vec<usize>>,
    to_reap: RefCell<Vec<usize>>,
}

impl Agenda {
    /// The connection has something to send.
    pub(super) fn send(&self, key: usize) {
        self.to_send.borrow_mut().push(key);
    }

    /// The connection may have something to receive.
    pub(super) fn receive(&self, key: usize) {
        self.to_receive.borrow_mut().push(key);
    }

    /// The connection's stream is to be closed.
    pub(super) fn reap(&self, key: usize) {
        self.to_reap.borrow_mut().push(key);
    }

    fn is_empty(&self) -> bool {
        self.to_send.borrow().is_empty()
            && self.to_receive.borrow().is_empty()
            && self.to_reap.borrow().is_empty()
    }
}

/// The initiator of one core: makes connections, and is their poll source.
pub struct Host<N: Network> {
    reactor: Reactor,
    network: N,
    buffers: BufferPool,
    connections: RefCell<Slab<Rc<Connection<N::Stream>>>>,
    agenda: Rc<Agenda>,
    /// Lists that are worked on, kept for their memory.
    scratch: RefCell<Vec<usize>>,
    ready: RefCell<Vec<Ready>>,
    turns: Cell<u32>,
    next_tick: Cell<Time>,
    /// Wakes a sleeping core for the next tick.
    ticker: RefCell<Option<Timer>>,
}

impl<N: Network> Host<N> {
    /// An initiator on `reactor`, whose connections use `network`, and whose own commands take
    /// their data buffers from `buffers`.
    pub fn new(reactor: &Reactor, network: N, buffers: BufferPool) -> Rc<Self> {
        let host = Rc::new(Self {
            reactor: reactor.clone(),
            network,
            buffers,
            connections: RefCell::default(),
            agenda: Rc::default(),
            scratch: RefCell::default(),
            ready: RefCell::new(Vec::with_capacity(READY_MAX)),
            turns: Cell::new(0),
            next_tick: Cell::new(Time::FAR),
            ticker: RefCell::default(),
        });
        reactor.add_source(host.clone());
        host
    }

    /// The reactor.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Where the data of the host's own commands is kept.
    #[must_use]
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// The connections that have not been forgotten yet.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.borrow().len()
    }

    pub(super) fn network(&self) -> &N {
        &self.network
    }

    pub(super) fn agenda(&self) -> &Rc<Agenda> {
        &self.agenda
    }

    /// Watches a connection's stream from now on; gives the connection's key.
    pub(super) fn register(
        &self,
        connection: &Rc<Connection<N::Stream>>,
        stream: &N::Stream,
    ) -> io::Result<usize> {
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        let key = entry.key();
        self.network.watch(stream, key as u64)?;
        entry.insert(connection.clone());
        if self.next_tick.get() == Time::FAR {
            self.arm_tick(self.reactor.now());
        }
        Ok(key)
    }

    fn connection(&self, key: usize) -> Option<Rc<Connection<N::Stream>>> {
        self.connections.borrow().get(key).cloned()
    }

    /// Calls `work` for each key that `list` has now; what is added meanwhile waits.
    fn for_each(
        &self,
        list: &RefCell<Vec<usize>>,
        mut work: impl FnMut(&Rc<Connection<N::Stream>>) -> usize,
    ) -> usize {
        if list.borrow().is_empty() {
            return 0;
        }
        let mut keys = self.scratch.take();
        keys.clear();
        std::mem::swap(&mut keys, &mut *list.borrow_mut());
        let mut total = 0;
        for key in &keys {
            if let Some(connection) = self.connection(*key) {
                total += work(&connection);
            }
        }
        self.scratch.replace(keys);
        total
    }

    fn ask_network(&self) -> usize {
        let mut ready = self.ready.borrow_mut();
        ready.clear();
        self.network.poll(&mut ready);
        for event in ready.iter() {
            let key = usize::try_from(event.key).expect("keys are indices");
            if let Some(connection) = self.connection(key) {
                connection.became_ready(event.readable, event.writable);
            }
        }
        ready.len()
    }

    /// Receives from the few connections there are, where they have commands in flight, ready or
    /// not.
    fn receive_direct(&self) -> usize {
        let few: ArrayVec<Rc<Connection<N::Stream>>, DIRECT_CONNECTIONS_MAX> = {
            let connections = self.connections.borrow();
            connections.iter().map(|(_, one)| one.clone()).collect()
        };
        let busy = few.iter().filter(|connection| connection.is_busy());
        busy.map(|connection| connection.receive()).sum()
    }

    fn receive_ready(&self) -> usize {
        self.for_each(&self.agenda.to_receive, |connection| {
            if !connection.is_readable() {
                return 0;
            }
            let work = connection.receive();
            if connection.is_readable() {
                self.agenda.receive(connection.key());
            }
            work
        })
    }

    fn arm_tick(&self, now: Time) {
        let next = now.plus(TICK);
        self.next_tick.set(next);
        *self.ticker.borrow_mut() = Some(self.reactor.sleep_until(next));
    }

    fn tick(&self, now: Time) {
        let connections = self.connections.borrow();
        if connections.is_empty() {
            drop(connections);
            self.next_tick.set(Time::FAR);
            *self.ticker.borrow_mut() = None;
            return;
        }
        for (_, connection) in connections.iter() {
            connection.tick(now);
        }
        drop(connections);
        self.arm_tick(now);
    }

    /// Closes the streams of connections that have ended.
    fn reap(&self) {
        self.for_each(&self.agenda.to_reap, |connection| {
            if let Some(stream) = connection.take_stream() {
                self.network.unwatch(&stream);
                self.connections.borrow_mut().remove(connection.key());
            }
            0
        });
    }
}

impl<N: Network> PollSource for Host<N> {
    fn poll(&self, now: Time) -> usize {
        if self.next_tick.get() <= now {
            self.tick(now);
        }
        let turn = self.turns.get().wrapping_add(1);
        self.turns.set(turn);
        let few = {
            let connections = self.connections.borrow();
            connections.len() <= DIRECT_CONNECTIONS_MAX
                && !connections.iter().any(|(_, one)| one.needs_readiness())
        };
        let mut work = 0;
        if !few || turn.is_multiple_of(DIRECT_TURNS) {
            work += self.ask_network();
        }
        if few {
            work += self.receive_direct();
        }
        work + self.receive_ready()
    }

    fn flush(&self, _now: Time) -> usize {
        let work = self.for_each(&self.agenda.to_send, |connection| connection.send());
        self.reap();
        work
    }

    fn prepare_sleep(&self) -> bool {
        self.ask_network();
        self.agenda.is_empty()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.network.wake_fd()
    }
}
