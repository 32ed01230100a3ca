//! A network in memory. Streams are pairs of pipes with a capacity; readiness comes by edges, as
//! the seam demands.
//!
//! The host's end of a pipe decides how the target sees it: in how small pieces bytes are received
//! ([`MemStream::cut`]), and how much may wait unread ([`Hub::set_room`]).

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use corebay_core::net::{Network, READY_MAX, Ready, Stream};

/// Bytes that wait in a pipe before its writer is told to wait.
const ROOM: usize = 256 << 10;

type Edges = Arc<Mutex<VecDeque<Ready>>>;

struct Watch {
    edges: Edges,
    key: u64,
}

impl Watch {
    fn edge(&self, readable: bool, writable: bool) {
        let mut edges = lock(&self.edges);
        if let Some(last) = edges.back_mut().filter(|last| last.key == self.key) {
            last.readable |= readable;
            last.writable |= writable;
            return;
        }
        edges.push_back(Ready {
            key: self.key,
            readable,
            writable,
        });
    }
}

struct Pipe {
    bytes: VecDeque<u8>,
    room: usize,
    /// The most bytes of one receive.
    cut: usize,
    finished: bool,
    reader_gone: bool,
    was_full: bool,
    reader: Option<Watch>,
    writer: Option<Watch>,
}

impl Pipe {
    fn new(room: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            bytes: VecDeque::with_capacity(room.min(ROOM)),
            room,
            cut: usize::MAX,
            finished: false,
            reader_gone: false,
            was_full: false,
            reader: None,
            writer: None,
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test goes on after a panic")
}

/// One end of a connection.
pub struct MemStream {
    incoming: Arc<Mutex<Pipe>>,
    outgoing: Arc<Mutex<Pipe>>,
    peer: SocketAddr,
    local: SocketAddr,
}

impl MemStream {
    /// The other end receives at most so many bytes at a time from now on.
    pub fn cut(&self, bytes: usize) {
        lock(&self.outgoing).cut = bytes;
    }

    /// Bytes that the other end has not received yet.
    pub fn unread(&self) -> usize {
        lock(&self.outgoing).bytes.len()
    }

    /// Bytes that wait to be received here.
    pub fn waiting(&self) -> usize {
        lock(&self.incoming).bytes.len()
    }
}

impl Stream for MemStream {
    fn receive(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut pipe = lock(&self.incoming);
        if pipe.bytes.is_empty() {
            return match pipe.finished {
                true => Ok(0),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let mut left = pipe.cut.min(pipe.bytes.len());
        let mut taken = 0;
        for slice in into {
            let count = left.min(slice.len());
            let (front, back) = pipe.bytes.as_slices();
            let first = count.min(front.len());
            slice[..first].copy_from_slice(&front[..first]);
            slice[first..count].copy_from_slice(&back[..count - first]);
            pipe.bytes.drain(..count);
            left -= count;
            taken += count;
        }
        if std::mem::take(&mut pipe.was_full)
            && let Some(writer) = &pipe.writer
        {
            writer.edge(false, true);
        }
        Ok(taken)
    }

    fn send(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = lock(&self.outgoing);
        if pipe.reader_gone || pipe.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut left = pipe.room - pipe.bytes.len().min(pipe.room);
        if left == 0 {
            pipe.was_full = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut taken = 0;
        for slice in from {
            let count = left.min(slice.len());
            pipe.bytes.extend(&slice[..count]);
            left -= count;
            taken += count;
        }
        if let Some(reader) = &pipe.reader {
            reader.edge(true, false);
        }
        Ok(taken)
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local(&self) -> SocketAddr {
        self.local
    }

    fn finish(&mut self) {
        let mut pipe = lock(&self.outgoing);
        pipe.finished = true;
        if let Some(reader) = &pipe.reader {
            reader.edge(true, false);
        }
    }
}

impl Drop for MemStream {
    fn drop(&mut self) {
        self.finish();
        let mut pipe = lock(&self.incoming);
        pipe.reader_gone = true;
        pipe.bytes.clear();
        if let Some(writer) = &pipe.writer {
            writer.edge(true, true);
        }
    }
}

struct Listening {
    address: SocketAddr,
    backlog: VecDeque<MemStream>,
    watch: Option<Watch>,
}

struct HubState {
    listening: Vec<Listening>,
    room: usize,
    next_port: u16,
}

/// The network between all cores and hosts.
#[derive(Clone)]
pub struct Hub {
    state: Arc<Mutex<HubState>>,
}

impl Default for Hub {
    fn default() -> Self {
        let state = HubState {
            listening: Vec::new(),
            room: ROOM,
            next_port: 10_000,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }
}

impl Hub {
    /// How many bytes may wait unread in each pipe of connections to come.
    pub fn set_room(&self, bytes: usize) {
        lock(&self.state).room = bytes;
    }

    /// Connects to a listener; gives the host's end.
    pub fn connect(&self, to: SocketAddr) -> io::Result<MemStream> {
        let mut state = lock(&self.state);
        let room = state.room;
        state.next_port = state.next_port.checked_add(1).unwrap_or(10_000);
        let from = SocketAddr::new(to.ip(), state.next_port);
        let listening = state.listening.iter_mut().find(|listening| {
            listening.address.port() == to.port()
                && (listening.address.ip() == to.ip() || listening.address.ip().is_unspecified())
        });
        let listening = listening.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (there, here) = (Pipe::new(room), Pipe::new(room));
        listening.backlog.push_back(MemStream {
            incoming: there.clone(),
            outgoing: here.clone(),
            peer: from,
            local: to,
        });
        if let Some(watch) = &listening.watch {
            watch.edge(true, false);
        }
        Ok(MemStream {
            incoming: here,
            outgoing: there,
            peer: to,
            local: from,
        })
    }
}

/// One core's view of the network.
pub struct MemNetwork {
    hub: Hub,
    edges: Edges,
}

impl MemNetwork {
    pub fn new(hub: &Hub) -> Self {
        Self {
            hub: hub.clone(),
            edges: Arc::new(Mutex::new(VecDeque::with_capacity(4096))),
        }
    }

    fn watch_as(&self, key: u64) -> Watch {
        Watch {
            edges: self.edges.clone(),
            key,
        }
    }
}

impl Network for MemNetwork {
    type Stream = MemStream;
    type Listener = usize;

    fn listen(&self, address: SocketAddr) -> io::Result<usize> {
        let mut state = lock(&self.hub.state);
        if state.listening.iter().any(|known| known.address == address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        state.listening.push(Listening {
            address,
            backlog: VecDeque::new(),
            watch: None,
        });
        Ok(state.listening.len() - 1)
    }

    fn listens_on(&self, listener: &usize) -> SocketAddr {
        lock(&self.hub.state).listening[*listener].address
    }

    fn accept(&self, listener: &usize) -> io::Result<MemStream> {
        let mut state = lock(&self.hub.state);
        let backlog = &mut state.listening[*listener].backlog;
        backlog
            .pop_front()
            .ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn connect(&self, address: SocketAddr) -> io::Result<MemStream> {
        self.hub.connect(address)
    }

    fn watch(&self, stream: &MemStream, key: u64) -> io::Result<()> {
        let watch = self.watch_as(key);
        watch.edge(true, true);
        lock(&stream.incoming).reader = Some(watch);
        lock(&stream.outgoing).writer = Some(self.watch_as(key));
        Ok(())
    }

    fn unwatch(&self, stream: &MemStream) {
        lock(&stream.incoming).reader = None;
        lock(&stream.outgoing).writer = None;
    }

    fn watch_listener(&self, listener: &usize, key: u64) -> io::Result<()> {
        lock(&self.hub.state).listening[*listener].watch = Some(self.watch_as(key));
        Ok(())
    }

    fn poll(&self, ready: &mut Vec<Ready>) {
        let mut edges = lock(&self.edges);
        let count = edges.len().min(READY_MAX);
        ready.extend(edges.drain(..count));
    }
}
