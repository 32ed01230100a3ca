//! NVMe/TCP: the connections of one core, and the listeners that accept them.
//!
//! A connection's PDUs are taken apart by [`receive`], its responses put together by [`send`]. It is
//! accepted by whichever core listens, and moves once, with its Connect command, to the core that
//! its queue will live on.
//!
//! Invariants:
//! - Nothing here knows what a command means; nothing above here knows of PDUs.
//! - Payload is received into the buffer that the disk reads, and sent from the buffer that the disk
//!   has filled. Only in-capsule data that arrived together with its capsule's header are copied,
//!   once, and [`Counters`] says how many bytes that were.

pub mod link;
mod progress;
pub mod receive;
pub mod send;

use std::{
    any::Any,
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    os::fd::BorrowedFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use corebay_core::{
    net::{Network, READY_MAX, Ready, Stream},
    reactor::PollSource,
    units::{CoreId, Time},
};
use corebay_nvme::spec::command::SubmissionEntry;
use slab::Slab;
use tracing::{debug, info, warn};

#[cfg(corebay_fault)]
use crate::fault;
use crate::{
    core::Core,
    environment::Environment,
    queue::{Announced, Queue, QueueControl},
};
use link::{Link, Negotiated, TcpWire};
use receive::Receiver;

/// The name under which cores hand each other TCP connections.
const KIND: &str = "tcp";

/// Keys at and above this are listeners, below it connections.
const LISTENER_KEYS: u64 = 1 << 63;

/// How long a connection is asked for data without being reported as readable, after it last had
/// some: under load that saves the question which connections are ready.
const HOT_FOR: Duration = Duration::from_micros(200);

/// The connections that may be asked so. With more, asking which are ready is cheaper.
const HOT_MAX: usize = 8;

/// While hot connections have data, the others are looked after once in so many turns.
const TURNS_BETWEEN_READY_QUESTIONS: u32 = 8;

/// How long after a failed accept the next one is tried. Housekeeping turns the core often enough.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long a connection that was told why it ends may take to close from the host's side.
const LINGER: Duration = Duration::from_secs(5);

/// Whether a digest is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DigestPolicy {
    /// Where the host asks for it.
    #[default]
    Allow,
    /// A host that does not ask for it is refused.
    Require,
    /// Never.
    Off,
}

/// What is configured for NVMe/TCP alone.
#[derive(Clone, Copy, Debug)]
pub struct TcpOptions {
    /// The most data of one H2CData PDU (MAXH2CDATA), in bytes.
    pub h2c_data_bytes_max: u32,
    /// Header digests.
    pub header_digest: DigestPolicy,
    /// Data digests.
    pub data_digest: DigestPolicy,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            h2c_data_bytes_max: 1 << 20,
            header_digest: DigestPolicy::Allow,
            data_digest: DigestPolicy::Allow,
        }
    }
}

/// Connections of the process, so that their number stays bounded.
pub type ConnectionCount = Arc<AtomicUsize>;

/// What one core's connections have done.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls that received.
    pub receives: Cell<u64>,
    /// Calls that sent.
    pub sends: Cell<u64>,
    /// In-capsule bytes that were copied from where they were received to their buffer.
    pub in_capsule_bytes_copied: Cell<u64>,
    /// Payload bytes of fetched writes that were copied: none, and a test asserts it.
    pub fetched_bytes_copied: Cell<u64>,
}

/// A queue over TCP.
pub type TcpQueue<E> = Queue<E, TcpWire<E>>;

struct Connection<E: Environment> {
    link: Rc<Link<E>>,
    queue: Rc<TcpQueue<E>>,
    receiver: RefCell<Receiver<E>>,
    last_data: Cell<Time>,
}

/// A connection on its way to the core that its queue will live on.
struct Handover<S> {
    stream: S,
    negotiated: Negotiated,
    connect: SubmissionEntry,
    data: Vec<u8>,
    unread: Vec<u8>,
}

struct Accepting<E: Environment> {
    listener: <E::Network as Network>::Listener,
    readable: bool,
}

/// One core's NVMe/TCP.
pub struct Tcp<E: Environment> {
    core: Rc<Core<E>>,
    options: TcpOptions,
    count: ConnectionCount,
    connections: RefCell<Slab<Rc<Connection<E>>>>,
    listeners: RefCell<Vec<Accepting<E>>>,
    ready: RefCell<Vec<Ready>>,
    /// Connections to be received from, by key.
    active: RefCell<Vec<usize>>,
    turns: Cell<u32>,
    accept_again_at: Cell<Option<Time>>,
    /// What the connections have done.
    pub counters: Rc<Counters>,
    dirty: Rc<RefCell<Vec<usize>>>,
    batch: RefCell<Vec<usize>>,
}

impl<E: Environment> Tcp<E> {
    /// NVMe/TCP on `core`, which polls it from now on.
    pub fn start(core: &Rc<Core<E>>, options: TcpOptions, count: ConnectionCount) -> Rc<Self> {
        let room = core.limits.connections_max;
        let tcp = Rc::new(Self {
            core: core.clone(),
            options,
            count,
            connections: RefCell::default(),
            listeners: RefCell::default(),
            ready: RefCell::new(Vec::with_capacity(READY_MAX)),
            active: RefCell::new(Vec::with_capacity(room)),
            turns: Cell::new(0),
            accept_again_at: Cell::new(None),
            counters: Rc::default(),
            dirty: Rc::new(RefCell::new(Vec::with_capacity(room))),
            batch: RefCell::new(Vec::with_capacity(room)),
        });
        let adopting = Rc::downgrade(&tcp);
        core.set_adopter(
            KIND,
            Rc::new(move |connection| {
                if let Some(tcp) = adopting.upgrade() {
                    tcp.adopt(connection);
                }
            }),
        );
        core.reactor.add_source(tcp.clone());
        tcp
    }

    /// Listens on `address`; gives the address, whose port may have been picked.
    ///
    /// # Errors
    /// What the network says.
    pub fn listen(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let network = self.core.environment.network();
        let listener = network.listen(address)?;
        let mut listeners = self.listeners.borrow_mut();
        network.watch_listener(&listener, LISTENER_KEYS + listeners.len() as u64)?;
        let address = network.listens_on(&listener);
        listeners.push(Accepting {
            listener,
            readable: true,
        });
        Ok(address)
    }

    /// The connections of this core.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.connections.borrow().len()
    }

    fn accept(&self, now: Time) -> usize {
        let mut accepted = 0;
        if self.accept_again_at.get().is_some_and(|at| now >= at) {
            self.accept_again_at.set(None);
            self.listeners
                .borrow_mut()
                .iter_mut()
                .for_each(|a| a.readable = true);
        }
        if self.core.is_draining() {
            self.listeners.borrow_mut().clear();
        }
        let network = self.core.environment.network();
        let mut new = Vec::new();
        for accepting in self
            .listeners
            .borrow_mut()
            .iter_mut()
            .filter(|a| a.readable)
        {
            match network.accept(&accepting.listener) {
                Ok(stream) => new.push(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    accepting.readable = false;
                }
                Err(error) => {
                    // The connection is gone already, or descriptors are short. No edge tells when
                    // that is over, so it is tried again.
                    warn!(%error, "a connection could not be accepted");
                    accepting.readable = false;
                    self.accept_again_at.set(Some(now.plus(ACCEPT_AGAIN)));
                }
            }
        }
        for stream in new {
            accepted += 1;
            let peer = stream.peer();
            let before = self.count.fetch_add(1, Ordering::AcqRel);
            if before >= self.core.limits.connections_max || self.core.is_draining() {
                self.count.fetch_sub(1, Ordering::AcqRel);
                warn!(%peer, connections = before, "no more connections are taken");
                continue;
            }
            debug!(%peer, local = %stream.local(), "accepted a connection");
            if let Err(error) = self.open(stream, None, now) {
                warn!(%peer, %error, "a connection could not be watched");
            }
        }
        accepted
    }

    /// Takes up a connection: a new one, or one that another core hands over.
    fn open(
        &self,
        stream: <E::Network as Network>::Stream,
        negotiated: Option<Negotiated>,
        now: Time,
    ) -> io::Result<Rc<Connection<E>>> {
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        let key = entry.key();
        if let Err(error) = self.core.environment.network().watch(&stream, key as u64) {
            self.count.fetch_sub(1, Ordering::AcqRel);
            return Err(error);
        }
        let moved = negotiated.is_some();
        let link = Link::new(stream, negotiated, self.options, key, self.dirty.clone());
        let queue = Queue::new(self.core.clone(), TcpWire { link: link.clone() });
        link.local_core_settled.set(moved);
        let receiver = Receiver::new(
            link.clone(),
            queue.clone(),
            self.options,
            self.counters.clone(),
        );
        let receiver = RefCell::new(receiver);
        let connection = Rc::new(Connection {
            link,
            queue,
            receiver,
            last_data: Cell::new(now),
        });
        entry.insert(connection.clone());
        Ok(connection)
    }

    fn adopt(&self, handover: Box<dyn Any + Send>) {
        type Given<E> = Handover<<<E as Environment>::Network as Network>::Stream>;
        let Ok(handover) = handover.downcast::<Given<E>>() else {
            unreachable!("only this module hands over TCP connections")
        };
        let Handover {
            stream,
            negotiated,
            connect,
            data,
            unread,
        } = *handover;
        let now = self.core.reactor.now();
        let connection = match self.open(stream, Some(negotiated), now) {
            Ok(connection) => connection,
            Err(error) => {
                warn!(%error, "a connection could not be watched by its core");
                return;
            }
        };
        connection.receiver.borrow_mut().preload(&unread);
        if self.core.is_draining() {
            connection.queue.clone().close("the target drains");
            return;
        }
        let core = self.core.clone();
        let queue = connection.queue.clone();
        self.core.spawn_control(async move {
            let mut buffer = core.memory.in_capsule.allocate(data.len()).await;
            buffer.bytes_mut().copy_from_slice(&data);
            let announced = Announced {
                len: data.len(),
                in_capsule: Some(buffer),
            };
            if queue.accept(&connect, Ok(announced)).is_err() {
                queue.close("it sent more commands than its queue is deep");
            }
        });
    }

    fn poll_ready(&self, now: Time) -> usize {
        let turn = self.turns.get().wrapping_add(1);
        self.turns.set(turn);
        let busy = !self.active.borrow().is_empty();
        if busy && !turn.is_multiple_of(TURNS_BETWEEN_READY_QUESTIONS) {
            return 0;
        }
        let mut ready = self.ready.borrow_mut();
        ready.clear();
        self.core.environment.network().poll(&mut ready);
        let connections = self.connections.borrow();
        for event in ready.iter() {
            if event.key >= LISTENER_KEYS {
                let index = (event.key - LISTENER_KEYS) as usize;
                if let Some(accepting) = self.listeners.borrow_mut().get_mut(index) {
                    accepting.readable = true;
                }
                continue;
            }
            let Some(connection) = connections.get(event.key as usize) else {
                continue;
            };
            if event.writable {
                connection.link.became_writable();
            }
            if event.readable {
                connection.last_data.set(now);
                self.activate(event.key as usize, connection);
            }
        }
        ready.len()
    }

    fn activate(&self, key: usize, connection: &Connection<E>) {
        if !connection.link.active.replace(true) {
            self.active.borrow_mut().push(key);
        }
    }

    /// Receives from every active connection once.
    fn receive(&self, now: Time) -> usize {
        let mut work = 0;
        let mut index = 0;
        loop {
            let Some(key) = self.active.borrow().get(index).copied() else {
                break;
            };
            let connection = self.connections.borrow().get(key).cloned();
            let keep = connection.as_ref().is_some_and(|connection| {
                let got = connection.receiver.borrow_mut().receive(now);
                if got > 0 {
                    work += 1;
                    connection.last_data.set(now);
                }
                let hot = self.active.borrow().len() <= HOT_MAX
                    && now.since(connection.last_data.get()) < HOT_FOR;
                let blocked = connection.receiver.borrow().is_waiting_for_memory();
                #[cfg(corebay_fault)]
                if fault::is(fault::Fault::EdgeForgotten) {
                    return !connection.link.is_gone() && blocked;
                }
                !connection.link.is_gone() && (got > 0 || hot || blocked)
            });
            if keep {
                index += 1;
                continue;
            }
            self.active.borrow_mut().swap_remove(index);
            if let Some(connection) = connection {
                connection.link.active.set(false);
                #[cfg(corebay_fault)]
                if fault::is(fault::Fault::EdgeForgotten) {
                    continue;
                }
                // Not drained, only not asked any more: it must not wait for an edge that came.
                if connection.receiver.borrow().may_have_more() && !connection.link.is_gone() {
                    self.activate(key, &connection);
                    break;
                }
            }
        }
        work
    }

    /// Sends for every connection that has something to send, and lets go of those that ended.
    fn send(&self, now: Time) -> usize {
        let mut work = 0;
        // What becomes dirty meanwhile is for the next turn, behind the others.
        let mut batch = self.batch.borrow_mut();
        std::mem::swap(&mut *batch, &mut *self.dirty.borrow_mut());
        for key in batch.drain(..) {
            let Some(connection) = self.connections.borrow().get(key).cloned() else {
                continue;
            };
            connection.link.dirty.set(false);
            work += connection
                .link
                .flush(now, &self.counters, |entry| connection.queue.sent(entry));
            if let Some(why) = connection.link.failure()
                && !connection.queue.is_closed()
            {
                connection.queue.clone().close(why);
            }
            if let Some((to, connect, data)) = connection.link.take_handover() {
                self.hand_over(key, &connection, to, connect, data);
            } else if connection.link.is_gone() {
                self.forget(key, &connection);
            }
        }
        work
    }

    fn hand_over(
        &self,
        key: usize,
        connection: &Rc<Connection<E>>,
        to: CoreId,
        connect: SubmissionEntry,
        data: Vec<u8>,
    ) {
        let unread = connection.receiver.borrow_mut().take_unread();
        let Some(stream) = connection.link.take_stream() else {
            return;
        };
        self.core.environment.network().unwatch(&stream);
        self.remove(key, connection);
        let negotiated = connection.link.negotiated();
        let handover = Handover {
            stream,
            negotiated,
            connect,
            data,
            unread,
        };
        connection.queue.clone().close("it goes on at another core");
        self.core
            .send(to, move |core| core.adopt(KIND, Box::new(handover)));
    }

    fn forget(&self, key: usize, connection: &Rc<Connection<E>>) {
        if let Some(stream) = connection.link.take_stream() {
            info!(peer = %stream.peer(), "connection closed");
            self.core.environment.network().unwatch(&stream);
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        self.remove(key, connection);
    }

    fn remove(&self, key: usize, connection: &Rc<Connection<E>>) {
        let mut connections = self.connections.borrow_mut();
        if connections
            .get(key)
            .is_some_and(|known| Rc::ptr_eq(known, connection))
        {
            connections.remove(key);
        }
        connection.receiver.borrow_mut().end();
    }
}

impl<E: Environment> PollSource for Tcp<E> {
    fn poll(&self, now: Time) -> usize {
        self.poll_ready(now) + self.accept(now) + self.receive(now)
    }

    fn flush(&self, now: Time) -> usize {
        if self.dirty.borrow().is_empty() {
            0
        } else {
            self.send(now)
        }
    }

    fn prepare_sleep(&self) -> bool {
        self.active.borrow().is_empty()
            && self.dirty.borrow().is_empty()
            && !self.listeners.borrow().iter().any(|a| a.readable)
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.core.environment.network().wake_fd()
    }
}
