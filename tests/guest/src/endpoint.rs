//! Owns the description of a target under test: where it listens and what it must export.

use std::net::Ipv4Addr;

/// The subsystem that every target of the lab exports.
pub const NQN: &str = "nqn.2026-01.lab.corebay:subsystem";

/// The well-known discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// The port for NVMe/TCP.
pub const PORT: u16 = 4420;

/// What lies behind a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Memory: fast, gone with the process.
    Memory,
    /// A file: stays over a restart.
    File,
    /// An array of three files, with two files more that are in none.
    Array,
}

/// A namespace as the target was told to export it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The namespace id.
    pub nsid: u32,
    /// What it lies on.
    pub medium: Medium,
    /// Size, MiB.
    pub mib: u64,
    /// Bytes per logical block.
    pub block: u64,
}

impl Namespace {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.mib << 20
    }

    /// Size in logical blocks.
    pub fn blocks(&self) -> u64 {
        self.bytes() / self.block
    }
}

/// A subsystem that a guest can reach.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its addresses, each with a listener on [`PORT`].
    pub addresses: Vec<Ipv4Addr>,
    /// The port on which discovery is asked.
    pub discovery_port: u16,
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
}

impl Endpoint {
    /// The first address.
    pub fn address(&self) -> Ipv4Addr {
        self.addresses[0]
    }

    /// The namespace with this id.
    pub fn namespace(&self, nsid: u32) -> Namespace {
        let found = self
            .namespaces
            .iter()
            .find(|namespace| namespace.nsid == nsid);
        *found.expect("the test names a namespace that its group exports")
    }
}
