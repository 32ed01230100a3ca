//! A network in memory, for one thread: bounded pipes, edges of readiness, and segments of any size.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use corebay_core::{
    net::{Network, READY_MAX, Ready, Stream},
    rng::Rng,
};

/// One direction of a connection.
struct Pipe {
    bytes: VecDeque<u8>,
    capacity: usize,
    ended: bool,
    /// Count what happened, so that a watcher sees edges.
    puts: u64,
    takes: u64,
}

type SharedPipe = Arc<Mutex<Pipe>>;

/// How streams cut what they carry.
#[derive(Clone)]
pub struct Chop {
    rng: Arc<Mutex<Rng>>,
    bytes_max: usize,
}

/// One end of a connection.
pub struct MemStream {
    incoming: SharedPipe,
    outgoing: SharedPipe,
    chop: Chop,
    pub peer: SocketAddr,
}

struct Watched {
    key: u64,
    incoming: SharedPipe,
    outgoing: SharedPipe,
    seen: Option<(u64, u64)>,
}

#[derive(Default)]
struct Shared {
    watched: Vec<Watched>,
    waiting: Vec<MemStream>,
    refuse: bool,
}

/// The network; clones are the same one.
#[derive(Clone)]
pub struct MemNetwork {
    shared: Arc<Mutex<Shared>>,
    chop: Chop,
    pipe_bytes: usize,
}

impl MemNetwork {
    /// A network whose receives and sends carry 1 to `bytes_max` bytes, through pipes of
    /// `pipe_bytes`.
    pub fn new(seed: u64, bytes_max: usize, pipe_bytes: usize) -> Self {
        Self {
            shared: Arc::default(),
            chop: Chop {
                rng: Arc::new(Mutex::new(Rng::from_seed(seed))),
                bytes_max,
            },
            pipe_bytes,
        }
    }

    /// The other ends of the connections made since the last call.
    pub fn accepted(&self) -> Vec<MemStream> {
        std::mem::take(&mut self.shared.lock().unwrap().waiting)
    }

    /// Refuses connections from now on, or takes them again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.lock().unwrap().refuse = refuse;
    }

    fn pipe(&self) -> SharedPipe {
        Arc::new(Mutex::new(Pipe {
            bytes: VecDeque::new(),
            capacity: self.pipe_bytes,
            ended: false,
            puts: 0,
            takes: 0,
        }))
    }
}

impl Chop {
    fn cut(&self, available: usize) -> usize {
        let cut = self.rng.lock().unwrap().below(self.bytes_max as u64) as usize + 1;
        cut.min(available)
    }
}

impl Stream for MemStream {
    fn receive(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut pipe = self.incoming.lock().unwrap();
        if pipe.bytes.is_empty() {
            return if pipe.ended {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let room: usize = into.iter().map(|slice| slice.len()).sum();
        let count = self.chop.cut(pipe.bytes.len().min(room));
        let mut left = count;
        for slice in into {
            let part = left.min(slice.len());
            pipe.bytes.read_exact(&mut slice[..part])?;
            left -= part;
        }
        pipe.takes += 1;
        Ok(count)
    }

    fn send(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.outgoing.lock().unwrap();
        if pipe.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = pipe.capacity - pipe.bytes.len();
        let offered: usize = from.iter().map(|slice| slice.len()).sum();
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.chop.cut(room.min(offered));
        let mut left = count;
        for slice in from {
            let part = left.min(slice.len());
            pipe.bytes.extend(&slice[..part]);
            left -= part;
        }
        pipe.puts += 1;
        Ok(count)
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local(&self) -> SocketAddr {
        self.peer
    }

    fn finish(&mut self) {
        end(&self.outgoing);
    }
}

impl Drop for MemStream {
    fn drop(&mut self) {
        end(&self.outgoing);
        end(&self.incoming);
    }
}

fn end(pipe: &SharedPipe) {
    let mut pipe = pipe.lock().unwrap();
    pipe.ended = true;
    pipe.puts += 1;
    pipe.takes += 1;
}

impl Network for MemNetwork {
    type Stream = MemStream;
    type Listener = ();

    fn listen(&self, _address: SocketAddr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn listens_on(&self, _listener: &()) -> SocketAddr {
        unreachable!("nobody listens")
    }

    fn accept(&self, _listener: &()) -> io::Result<MemStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, address: SocketAddr) -> io::Result<MemStream> {
        let mut shared = self.shared.lock().unwrap();
        if shared.refuse {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (to, back) = (self.pipe(), self.pipe());
        let end = |incoming: &SharedPipe, outgoing: &SharedPipe| MemStream {
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            chop: self.chop.clone(),
            peer: address,
        };
        shared.waiting.push(end(&to, &back));
        Ok(end(&back, &to))
    }

    fn watch(&self, stream: &MemStream, key: u64) -> io::Result<()> {
        self.shared.lock().unwrap().watched.push(Watched {
            key,
            incoming: stream.incoming.clone(),
            outgoing: stream.outgoing.clone(),
            seen: None,
        });
        Ok(())
    }

    fn unwatch(&self, stream: &MemStream) {
        let mut shared = self.shared.lock().unwrap();
        shared
            .watched
            .retain(|watched| !Arc::ptr_eq(&watched.incoming, &stream.incoming));
    }

    fn watch_listener(&self, _listener: &(), _key: u64) -> io::Result<()> {
        Ok(())
    }

    fn poll(&self, ready: &mut Vec<Ready>) {
        let mut shared = self.shared.lock().unwrap();
        for watched in &mut shared.watched {
            let now = (
                watched.incoming.lock().unwrap().puts,
                watched.outgoing.lock().unwrap().takes,
            );
            let readable = watched.seen.is_none_or(|(puts, _)| puts != now.0);
            let writable = watched.seen.is_none_or(|(_, takes)| takes != now.1);
            if (readable || writable) && ready.len() < READY_MAX {
                watched.seen = Some(now);
                ready.push(Ready {
                    key: watched.key,
                    readable,
                    writable,
                });
            }
        }
    }
}
