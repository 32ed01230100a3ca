//! The seam to the network: byte streams without blocking, and which of them are ready.
//!
//! One [`Network`] belongs to one core. Streams may be handed to another core (a queue moves once,
//! when it connects), networks may not.
//!
//! Contract:
//! - No call waits. What would wait gives [`io::ErrorKind::WouldBlock`].
//! - Readiness comes by edges: a watched stream is reported when it *becomes* readable or writable
//!   (and once at the start), so its user carries on until `WouldBlock`.
//! - A receive of 0 bytes is the peer's end of stream.

pub mod os;

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    os::fd::BorrowedFd,
};

/// A connected byte stream.
pub trait Stream: Send + 'static {
    /// Receives into `into`, in order; returns how many bytes came (0: end of stream).
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there; anything else ends the stream.
    fn receive(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Sends from `from`, in order; returns how many bytes were taken.
    ///
    /// # Errors
    /// `WouldBlock` where nothing can be taken now; anything else ends the stream.
    fn send(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// The peer's address.
    fn peer(&self) -> SocketAddr;

    /// Our own address.
    fn local(&self) -> SocketAddr;

    /// Ends the sending side, so that the peer sees an end of stream after what was sent.
    fn finish(&mut self);
}

/// A stream's readiness, as reported by [`Network::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The key that the stream or listener is watched under.
    pub key: u64,
    /// It became readable (or ended, or failed: the next receive tells).
    pub readable: bool,
    /// It became writable (or failed: the next send tells).
    pub writable: bool,
}

/// The most events of one [`Network::poll`].
pub const READY_MAX: usize = 256;

/// One core's view of the network.
pub trait Network: 'static {
    /// Its streams.
    type Stream: Stream;
    /// Its listeners.
    type Listener;

    /// Listens on `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// What the system says (address in use, not available, not permitted).
    fn listen(&self, address: SocketAddr) -> io::Result<Self::Listener>;

    /// Where a listener listens.
    fn listens_on(&self, listener: &Self::Listener) -> SocketAddr;

    /// Takes the next connection.
    ///
    /// # Errors
    /// `WouldBlock` where none waits.
    fn accept(&self, listener: &Self::Listener) -> io::Result<Self::Stream>;

    /// Begins to connect. The stream becomes writable once it is connected; its first send or
    /// receive says if that failed.
    ///
    /// # Errors
    /// What the system says at once.
    fn connect(&self, address: SocketAddr) -> io::Result<Self::Stream>;

    /// Reports the stream's readiness under `key` from now on.
    ///
    /// # Errors
    /// What the system says.
    fn watch(&self, stream: &Self::Stream, key: u64) -> io::Result<()>;

    /// Reports the stream's readiness no more.
    fn unwatch(&self, stream: &Self::Stream);

    /// Reports waiting connections under `key` from now on.
    ///
    /// # Errors
    /// What the system says.
    fn watch_listener(&self, listener: &Self::Listener, key: u64) -> io::Result<()>;

    /// Appends to `ready` what became ready, at most [`READY_MAX`] entries.
    fn poll(&self, ready: &mut Vec<Ready>);

    /// What becomes readable when [`poll`](Self::poll) would report something.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
