//! The machine's network: nonblocking TCP sockets and an edge-triggered epoll.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{Timespec, epoll},
    net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt},
};

use super::{Network, READY_MAX, Ready, Stream};

/// The connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The machine's network as one core sees it.
pub struct OsNetwork {
    epoll: OwnedFd,
    events: std::cell::RefCell<Vec<epoll::Event>>,
}

/// A TCP connection.
#[derive(Debug)]
pub struct OsStream {
    socket: TcpStream,
    /// The last send took less than all: there is no room, and its next edge will tell when there is
    /// (epoll(7), question 9).
    full: bool,
    peer: SocketAddr,
    local: SocketAddr,
}

impl OsNetwork {
    /// A view for one core.
    ///
    /// # Errors
    /// Where the system has no epoll to give.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll,
            events: std::cell::RefCell::new(Vec::with_capacity(READY_MAX)),
        })
    }

    fn add(&self, fd: BorrowedFd<'_>, key: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(key),
            flags,
        )?)
    }
}

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    Ok(rustix::net::socket_with(
        family,
        kind,
        flags,
        Some(ipproto::TCP),
    )?)
}

impl Network for OsNetwork {
    type Stream = OsStream;
    type Listener = TcpListener;

    fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = socket(address)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            // An IPv4 listener on the same port is a listener of its own.
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(TcpListener::from(socket))
    }

    fn listens_on(&self, listener: &TcpListener) -> SocketAddr {
        listener
            .local_addr()
            .expect("a bound socket has an address")
    }

    fn accept(&self, listener: &TcpListener) -> io::Result<OsStream> {
        let (socket, peer) = listener.accept()?;
        socket.set_nonblocking(true)?;
        // Without it a small response can wait for the host's delayed acknowledgement.
        socket.set_nodelay(true)?;
        let local = socket.local_addr()?;
        Ok(OsStream {
            socket,
            full: false,
            peer,
            local,
        })
    }

    fn connect(&self, address: SocketAddr) -> io::Result<OsStream> {
        let socket = socket(address)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        let local = socket.local_addr()?;
        Ok(OsStream {
            socket,
            full: false,
            peer: address,
            local,
        })
    }

    fn watch(&self, stream: &OsStream, key: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
        self.add(stream.socket.as_fd(), key, flags | epoll::EventFlags::ET)
    }

    fn unwatch(&self, stream: &OsStream) {
        // Fails only where the stream was not watched.
        let _ = epoll::delete(&self.epoll, &stream.socket);
    }

    fn watch_listener(&self, listener: &TcpListener, key: u64) -> io::Result<()> {
        self.add(
            listener.as_fd(),
            key,
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )
    }

    fn poll(&self, ready: &mut Vec<Ready>) {
        let mut events = self.events.borrow_mut();
        events.clear();
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // An interrupted wait reports nothing: the next turn asks again.
        let _ = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        );
        for event in events.iter() {
            let flags = event.flags;
            let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            let ended = flags.contains(epoll::EventFlags::RDHUP);
            ready.push(Ready {
                key: event.data.u64(),
                readable: failed || ended || flags.contains(epoll::EventFlags::IN),
                writable: failed || flags.contains(epoll::EventFlags::OUT),
            });
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

impl Stream for OsStream {
    fn receive(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        retry(|| match &mut *into {
            [one] => self.socket.read(&mut *one),
            many => self.socket.read_vectored(&mut *many),
        })
    }

    fn send(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        if std::mem::take(&mut self.full) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = retry(|| match from {
            [one] => self.socket.write(one),
            many => self.socket.write_vectored(many),
        })?;
        self.full = taken < from.iter().map(|slice| slice.len()).sum();
        Ok(taken)
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local(&self) -> SocketAddr {
        self.local
    }

    fn finish(&mut self) {
        // The peer may be gone already, which is what this is for.
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A connect under way looks like this to a stream that is used too early.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(network: &OsNetwork, want: impl Fn(&Ready) -> bool) {
        for _ in 0..1_000_000 {
            let mut ready = Vec::new();
            network.poll(&mut ready);
            if ready.iter().any(&want) {
                return;
            }
        }
        panic!("it never became ready");
    }

    #[test]
    fn streams_connect_carry_bytes_and_end() {
        let network = OsNetwork::new().unwrap();
        let listener = network.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        network.watch_listener(&listener, 1).unwrap();
        let mut client = network.connect(network.listens_on(&listener)).unwrap();
        wait(&network, |ready| ready.key == 1 && ready.readable);
        let mut server = network.accept(&listener).unwrap();
        network.watch(&client, 2).unwrap();
        wait(&network, |ready| ready.key == 2 && ready.writable);
        assert_eq!(
            client
                .send(&[IoSlice::new(b"ab"), IoSlice::new(b"c")])
                .unwrap(),
            3
        );
        client.finish();
        network.watch(&server, 3).unwrap();
        wait(&network, |ready| ready.key == 3 && ready.readable);
        let mut bytes = [0; 8];
        assert_eq!(
            server.receive(&mut [IoSliceMut::new(&mut bytes)]).unwrap(),
            3
        );
        assert_eq!(&bytes[..3], b"abc");
        let end = loop {
            match server.receive(&mut [IoSliceMut::new(&mut bytes)]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other,
            }
        };
        assert_eq!(end.unwrap(), 0);
        let nothing = client
            .receive(&mut [IoSliceMut::new(&mut bytes)])
            .unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let network = OsNetwork::new().unwrap();
        let first = network.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = network.listen(network.listens_on(&first)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
