//! A simulated network between machines: what connections do is in [`hub`], this is the seam's side.
//!
//! Invariants:
//! - Readiness comes by edges, no oftener than the seam promises: once at the start where there is
//!   something, and again only after a call has given `WouldBlock`.
//! - Bytes arrive in order and unchanged, cut and delayed at will.

mod hub;
mod state;

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use corebay_core::net::{Network, Ready, Stream};

pub use hub::{Hub, NetProfile};

/// One end of a connection.
pub struct SimStream {
    hub: Hub,
    connection: u64,
    side: usize,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Stream for SimStream {
    fn receive(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.hub.receive(self.connection, self.side, into)
    }

    fn send(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.hub.send(self.connection, self.side, from)
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local(&self) -> SocketAddr {
        self.local
    }

    fn finish(&mut self) {
        self.hub.finish(self.connection, self.side);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.hub.close(self.connection, self.side);
    }
}

/// One core's view of the network, on the machine with address `ip`.
pub struct SimNetwork {
    hub: Hub,
    ip: IpAddr,
    core: usize,
}

impl SimNetwork {
    /// The view of one more core.
    #[must_use]
    pub fn new(hub: &Hub, ip: IpAddr) -> Self {
        Self {
            hub: hub.clone(),
            ip,
            core: hub.add_core(),
        }
    }

    fn stream(&self, connection: u64, side: usize, ends: [SocketAddr; 2]) -> SimStream {
        SimStream {
            hub: self.hub.clone(),
            connection,
            side,
            local: ends[side],
            peer: ends[1 - side],
        }
    }
}

impl Drop for SimNetwork {
    fn drop(&mut self) {
        self.hub.remove_core(self.core);
    }
}

/// Where connections are accepted, for as long as this lives.
pub struct SimListener {
    hub: Hub,
    address: SocketAddr,
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.hub.unlisten(self.address);
    }
}

impl Network for SimNetwork {
    type Stream = SimStream;
    type Listener = SimListener;

    fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        self.hub.listen(address)?;
        Ok(SimListener {
            hub: self.hub.clone(),
            address,
        })
    }

    fn listens_on(&self, listener: &SimListener) -> SocketAddr {
        listener.address
    }

    fn accept(&self, listener: &SimListener) -> io::Result<SimStream> {
        let (connection, ends) = self.hub.accept(listener.address)?;
        Ok(self.stream(connection, 1, ends))
    }

    fn connect(&self, address: SocketAddr) -> io::Result<SimStream> {
        let (connection, ends) = self.hub.connect(self.ip, address);
        Ok(self.stream(connection, 0, ends))
    }

    fn watch(&self, stream: &SimStream, key: u64) -> io::Result<()> {
        self.hub
            .watch(stream.connection, stream.side, self.core, key);
        Ok(())
    }

    fn unwatch(&self, stream: &SimStream) {
        self.hub.unwatch(stream.connection, stream.side);
    }

    fn watch_listener(&self, listener: &SimListener, key: u64) -> io::Result<()> {
        self.hub.watch_listener(listener.address, self.core, key);
        Ok(())
    }

    fn poll(&self, ready: &mut Vec<Ready>) {
        self.hub.poll(self.core, ready);
    }
}
