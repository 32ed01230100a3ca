//! The seam between validation and the machine: what a configuration may assume to be there.
//!
//! Validation asks only through [`Machine`], so that it is pure, and can be tested for machines
//! that are not at hand. [`crate::LocalMachine`] answers for the one it runs on.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use crate::appliance::{Consistency, Level, Patience};
use crate::units::Size;

/// Answers questions about the machine that an appliance is to run on.
pub trait Machine {
    /// Whether a reactor can be pinned to this CPU.
    fn core(&self, core: u32) -> CoreState;

    /// The first CPU that a reactor can be pinned to; `None` where that cannot be found out.
    fn first_core(&self) -> Option<u32>;

    /// The CPUs that a reactor can be pinned to, as in "0-3,8", for a message.
    fn usable_cores(&self) -> String;

    /// What lies at a path; symbolic links are followed.
    fn path(&self, path: &Path) -> PathState;

    /// Whether a socket can listen on this address.
    fn address(&self, address: IpAddr) -> AddressState;

    /// The arrays that an appliance with this data folder has made while it ran, and keeps.
    fn kept_arrays(&self, _data_dir: &Path) -> Vec<KeptArray> {
        Vec::new()
    }

    /// The machine's memory; `None` where that cannot be found out.
    fn memory_bytes(&self) -> Option<u64>;
}

/// An array that was made while the appliance ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptArray {
    /// Its name.
    pub name: String,
    /// What its members call it.
    pub uuid: Uuid,
    /// Its level.
    pub level: Level,
    /// How many members it has.
    pub roles: usize,
    /// The disks that are members, by name, as far as there are disks.
    pub members: Vec<String>,
    /// The disks that are spares, by name.
    pub spares: Vec<String>,
    /// Its strip.
    pub strip: Size,
    /// How it survives crashes.
    pub consistency: Consistency,
    /// See [`Array`](crate::appliance::Array).
    pub rebuild_floor: Size,
    /// See [`Array`](crate::appliance::Array).
    pub rebuild_ceiling: Option<Size>,
    /// See [`Array`](crate::appliance::Array).
    pub scrub: Option<Duration>,
    /// See [`Array`](crate::appliance::Array).
    pub patience: Patience,
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
