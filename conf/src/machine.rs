//! The seam between validation and the machine: what a configuration may assume to be there.
//!
//! Validation asks only through [`Machine`], so that it is pure, and can be tested for machines
//! that are not at hand. [`crate::LocalMachine`] answers for the one it runs on.

use std::net::IpAddr;
use std::path::Path;

/// Answers questions about the machine that an appliance is to run on.
pub trait Machine {
    /// Whether a reactor can be pinned to this CPU.
    fn core(&self, core: u32) -> CoreState;

    /// The CPUs that a reactor can be pinned to, as in "0-3,8", for a message.
    fn usable_cores(&self) -> String;

    /// What lies at a path; symbolic links are followed.
    fn path(&self, path: &Path) -> PathState;

    /// Whether a socket can listen on this address.
    fn address(&self, address: IpAddr) -> AddressState;

    /// The machine's memory; `None` where that cannot be found out.
    fn memory_bytes(&self) -> Option<u64>;
}

/// Whether a reactor can be pinned to a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreState {
    /// It can.
    Usable,
    /// The CPU is there, but this process may not run on it (affinity, cgroup).
    NotAllowed,
    /// There is no such CPU, or it is offline.
    Absent,
}

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathState {
    /// Nothing; the folder it would lie in exists.
    Missing,
    /// Nothing, and the folder it would lie in does not exist either.
    MissingFolder,
    /// A regular file.
    File {
        /// Its length.
        size_bytes: u64,
        /// Which file it is, under whatever name.
        identity: FileIdentity,
    },
    /// A block device of the kernel.
    BlockDevice {
        /// Its capacity.
        size_bytes: u64,
        /// Its logical block.
        block_size: u32,
        /// Which device it is, under whatever name.
        identity: FileIdentity,
        /// Who uses it, as in "mounted on /home"; `None`: nobody that is known of.
        used_by: Option<String>,
    },
    /// A folder.
    Folder,
    /// Something else, as in "a character device".
    Other(&'static str),
    /// It cannot be looked at, and why.
    Unreadable(String),
}

/// Device and inode numbers: equal for two names of the same file or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity(pub u64, pub u64);

/// Whether a socket can listen on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// It can.
    Local,
    /// No network interface has the address.
    NotLocal,
    /// It cannot, and why.
    Unusable(String),
}
