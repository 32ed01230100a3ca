//! The NVMe over Fabrics host (initiator) over TCP, in user space, on corebay's own reactor.
//!
//! ```text
//! Host          one core's connections, a poll source of its reactor
//!  └ Controller   one association at a time with a controller: admin queue, I/O queues, keep-alive,
//!     │           reconnection
//!     └ IoQueue     reads, writes and the rest of the NVM command set
//!        └ Connection  PDUs over one stream: transmit, receive, and the table of commands
//! ```
//!
//! Invariants:
//! - Everything belongs to one core. A program with several cores has a [`Host`], and as many
//!   [`Controller`]s as it likes, on each of them.
//! - It is generic over the core's [`Network`](corebay_core::net::Network) and reads no clock, so it
//!   runs under a simulator as it does on a machine.
//! - A command's buffers belong to its connection's table until the command has completed: a future
//!   may be dropped at any time.
//! - Sending a command, its data and its completion take no memory from the heap.
//! - What a controller says is an allegation. No sequence of bytes makes this host panic, wait
//!   beyond its time-outs, or take more than its tables' memory.
//!
//! Absent on purpose: authentication and TLS (to come), other transports than TCP, metadata.

mod admin;
mod association;
mod connection;
mod controller;
mod discovery;
mod error;
mod host;
mod loss;
mod options;
mod queue;
mod receive;
mod table;
#[cfg(test)]
mod tests;
mod transmit;
mod wire;

pub use admin::Namespace;
pub use association::Facts;
pub use connection::{Connection, Link};
pub use controller::Controller;
pub use discovery::{DiscoveryLog, DiscoveryRecord, discover};
pub use error::{Error, Violation};
pub use host::Host;
pub use options::{ConnectionOptions, ControllerOptions, HostIdentity, LostCommands, Recovery};
pub use queue::IoQueue;
pub use table::{Completion, DEPTH_MAX, Data};
pub use wire::Digests;
