//! What a host is told about a controller to connect to: where, as whom, and what to do when the
//! connection is lost.

use std::{net::SocketAddr, time::Duration};

use super::wire::Digests;
use crate::spec::nqn::Nqn;

/// How to make a connection.
#[derive(Clone, Debug)]
pub struct ConnectionOptions {
    /// The commands in flight at a time, from 1 to [`DEPTH_MAX`](super::DEPTH_MAX).
    pub depth: u16,
    /// The digests to ask for. The controller may decline them.
    pub digests: Digests,
    /// How long the connection may take to be established.
    pub connect_timeout: Duration,
}

/// As whom a host connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// The host's NQN.
    pub nqn: Nqn,
    /// The host identifier: by the specification never zero.
    pub id: [u8; 16],
}

/// What to connect to, and how.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Where the controller listens.
    pub address: SocketAddr,
    /// The subsystem, or the discovery service.
    pub subsystem: Nqn,
    /// As whom.
    pub host: HostIdentity,
    /// The digests to ask for; the controller may decline them.
    pub digests: Digests,
    /// How many I/O queues to ask for; the controller may grant fewer. 0 for admin commands only.
    pub io_queues: u16,
    /// The commands in flight at a time on one I/O queue; the controller may allow fewer.
    pub depth: u16,
    /// The Keep Alive Timeout; zero for none.
    pub keep_alive: Duration,
    /// How long one connection may take to be established.
    pub connect_timeout: Duration,
    /// How long a command may take, before its connection is ended.
    pub command_timeout: Duration,
    /// What happens when a connection is lost.
    pub recovery: Recovery,
}

impl ControllerOptions {
    /// One I/O queue of 128 commands, without digests; lost connections stay lost.
    #[must_use]
    pub fn new(address: SocketAddr, subsystem: Nqn, host: HostIdentity) -> Self {
        Self {
            address,
            subsystem,
            host,
            digests: Digests::default(),
            io_queues: 1,
            depth: 128,
            keep_alive: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(30),
            recovery: Recovery::None,
        }
    }

    /// The discovery service at `address`: admin commands only, without keep-alive.
    #[must_use]
    pub fn discovery(address: SocketAddr, host: HostIdentity) -> Self {
        Self {
            io_queues: 0,
            keep_alive: Duration::ZERO,
            ..Self::new(address, Nqn::discovery(), host)
        }
    }
}

/// What happens when one of a controller's connections is lost. All of them are then ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The controller stays lost; its commands fail.
    None,
    /// The controller is connected to again.
    Reconnect {
        /// The pause after the first failed attempt; it doubles with each.
        delay_min: Duration,
        /// The longest pause.
        delay_max: Duration,
        /// The controller stays lost where no attempt succeeds for this long.
        give_up_after: Duration,
        /// What becomes of commands meanwhile.
        commands: LostCommands,
    },
}

/// What becomes of commands while the connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostCommands {
    /// They fail at once, those in flight and new ones.
    Fail,
    /// New ones wait. Those in flight are sent again, each completing once, at least `after` the
    /// loss; so are reads whose data came with a wrong digest, at once. A command that meets loss
    /// after loss fails in the end.
    ///
    /// The old controller may still execute what it has received. A command that is sent again too
    /// early can be overtaken by its own first copy, which then overwrites a later write: `after`
    /// must be long enough for the old controller to have ended (its Keep Alive Timeout, and its
    /// Command Quiesce Time), unless the target is known to end it with its connection.
    Replay {
        /// The least time from the loss to the second sending.
        after: Duration,
    },
}
