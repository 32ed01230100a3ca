//! What a configuration comes to: the [`Appliance`], already parsed and checked.
//!
//! Invariants, which the binary relies on without looking again:
//! - an [`Appliance`] is made by this crate alone, and is read-only once made;
//! - every [`DiskId`], [`ArrayId`], [`NamedVolumeId`] and [`ListenerId`] in it is an index that exists in the same appliance;
//! - NQNs of subsystems are unique and none is the discovery NQN; NSIDs are unique in a subsystem
//!   and at most its `max_namespaces`; a disk is exported by at most one namespace, or in one array or beneath one pool; UUIDs, NGUIDs
//!   and EUI-64s of namespaces are unique; the addresses of listeners do not overlap;
//! - sizes of disks are whole numbers of their blocks, and everything is within the limits of
//!   [`crate::limits`].

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use corebay_core::units::BlockSize;
pub use corebay_raid::geometry::{Consistency, Level};
pub use corebay_raid::{Patience, SlowMembers};
use uuid::Uuid;

use crate::units::Size;
use corebay_nvme::spec::nqn::Nqn;

/// The whole appliance: what runs where, what is exported, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    pub(crate) data_dir: PathBuf,
    pub(crate) reactor: Reactor,
    pub(crate) tcp: Tcp,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) arrays: Vec<Array>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) volumes: Vec<NamedVolume>,
    pub(crate) subsystems: Vec<Subsystem>,
    pub(crate) referrals: Vec<Referral>,
    pub(crate) log: Log,
}

impl Appliance {
    /// The folder for what the appliance itself keeps; relative disk files lie below it.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The cores and their memory.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Limits and tuning of NVMe/TCP.
    pub fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    /// Where hosts connect, in the order of the file; at least one.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// The disks, in the order of the file.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The arrays, in the order of the file.
    pub fn arrays(&self) -> &[Array] {
        &self.arrays
    }

    /// The pools, in the order of the file.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The subsystems, in the order of the file.
    pub fn subsystems(&self) -> &[Subsystem] {
        &self.subsystems
    }

    /// Other discovery services that hosts are told of.
    pub fn referrals(&self) -> &[Referral] {
        &self.referrals
    }

    /// What is logged, and how.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The disk with this id.
    pub fn disk(&self, id: DiskId) -> &Disk {
        &self.disks[id.0]
    }

    /// The array with this id.
    pub fn array(&self, id: ArrayId) -> &Array {
        &self.arrays[id.0]
    }

    /// The name of what a namespace exports.
    pub fn store_name(&self, store: Store) -> &str {
        match store {
            Store::Disk(id) => &self.disk(id).name,
            Store::Array(id) => &self.array(id).name,
            Store::Volume(id) => &self.volume(id).name,
        }
    }

    /// The volume with this id.
    pub fn volume(&self, id: NamedVolumeId) -> &NamedVolume {
        &self.volumes[id.0]
    }

    /// The disk or array of this name.
    pub fn store(&self, name: &str) -> Option<Store> {
        let disk = self.disks.iter().position(|disk| disk.name == name);
        let array = self.arrays.iter().position(|array| array.name == name);
        let disk = disk.map(|at| Store::Disk(DiskId(at)));
        disk.or(array.map(|at| Store::Array(ArrayId(at))))
    }

    /// The listener with this id.
    pub fn listener(&self, id: ListenerId) -> &Listener {
        &self.listeners[id.0]
    }
}

/// A disk's place in [`Appliance::disks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub(crate) usize);

impl DiskId {
    /// The index in [`Appliance::disks`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// An array's place in [`Appliance::arrays`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArrayId(pub(crate) usize);

impl ArrayId {
    /// The index in [`Appliance::arrays`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a namespace exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    /// A whole disk.
    Disk(DiskId),
    /// A whole array.
    Array(ArrayId),
    /// A volume of a pool.
    Volume(NamedVolumeId),
}

/// A volume's place among those that namespaces name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedVolumeId(pub(crate) usize);

/// A volume that a namespace names. Whether there is one of this name, its pool knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedVolume {
    /// Pool and volume, as in `pool/volume`.
    pub name: String,
}

impl NamedVolume {
    /// The names of the pool and of the volume.
    pub fn parts(&self) -> (&str, &str) {
        self.name.split_once('/').unwrap_or(("", &self.name))
    }
}

/// A listener's place in [`Appliance::listeners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub(crate) usize);

impl ListenerId {
    /// The index in [`Appliance::listeners`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// `[reactor]`: the cores and their memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reactor {
    /// CPU numbers, one pinned reactor each; at least one, no two the same.
    pub cores: Vec<u32>,
    /// The DMA arena of the whole process; a multiple of 2 MiB.
    pub memory: Size,
    /// What of it is kept for arrays that are made while the appliance runs.
    pub array_memory: Size,
    /// Whether the arena lies on hugepages.
    pub hugepages: Hugepages,
    /// How long a reactor polls without work before it sleeps; `None`: it never sleeps.
    pub idle_sleep: Option<Duration>,
}

/// Whether the DMA arena lies on hugepages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hugepages {
    /// On hugepages where there are enough free ones, on plain locked pages where not.
    Auto,
    /// On hugepages, or the start fails.
    Require,
    /// On plain locked pages.
    Off,
}

/// `[transport.tcp]`: limits and tuning of NVMe/TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tcp {
    /// The largest transfer of one command (MDTS): a power of two from 4 KiB to 1 MiB.
    pub max_transfer: Size,
    /// The largest data inside a command capsule (IOCCSZ less the command): 0 to 16 KiB.
    pub in_capsule: Size,
    /// The most data one H2CData PDU may carry (MAXH2CDATA).
    pub max_h2c_data: Size,
    /// Entries of a queue (MQES + 1).
    pub queue_depth: u16,
    /// I/O queues of one controller.
    pub io_queues: u16,
    /// CRC32C over PDU headers.
    pub header_digest: Digest,
    /// CRC32C over PDU data.
    pub data_digest: Digest,
    /// Connections (each is one queue) of all hosts together.
    pub max_connections: u32,
    /// A host that takes no data for this long is disconnected.
    pub stall_timeout: Duration,
}

/// What a target answers to a host that asks for a digest, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// Used when the host asks for it.
    Allow,
    /// A host that does not ask for it is refused.
    Require,
    /// Never used, even when the host asks for it.
    Off,
}

/// `[[listener]]`: an address where hosts connect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listener {
    /// The name that subsystems call it by.
    pub name: Option<String>,
    /// What is spoken there.
    pub transport: Transport,
    /// Address and port. An IPv6 address, `[::]` included, takes IPv6 connections only
    /// (IPV6_V6ONLY), so that `0.0.0.0` and `[::]` can be listened on side by side.
    /// Port 0 (any free port) comes from the command line only.
    pub address: SocketAddr,
    /// The discovery subsystem is served here.
    pub discovery: bool,
    /// Subsystems with namespaces are served here.
    pub subsystems: bool,
}

/// A transport that hosts connect over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// NVMe/TCP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transport::Tcp => out.write_str("tcp"),
        }
    }
}

/// `[[disk]]`: something that stores blocks, not yet exported to anyone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disk {
    /// Unique among the disks.
    pub name: String,
    /// What it is.
    pub kind: DiskKind,
    /// The logical block that hosts see; `None`: the device's own, and for a file what it was last
    /// served with, or else what its medium keeps whole when the power fails.
    pub block_size: Option<BlockSize>,
    /// The disk's identity; already handed on to the namespace that exports it.
    pub uuid: Option<Uuid>,
}

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// A file, read and written with O_DIRECT where the file system can.
    File {
        /// Already joined with the data folder where it was relative.
        path: PathBuf,
        /// The size of the disk; `None`: the length of the file, which exists.
        size: Option<Size>,
        /// Where the file does not exist it is created, sparse, of `size`, which is then given.
        create: bool,
    },
    /// Memory; gone when the process ends.
    Ram {
        /// The size of the disk.
        size: Size,
    },
    /// Nothing: writes are dropped, reads give zeros. For benchmarks.
    Null {
        /// The size of the disk.
        size: Size,
    },
    /// A block device of the kernel.
    Device {
        /// Its absolute path.
        path: PathBuf,
    },
    /// A namespace of an NVMe drive that corebay drives itself.
    Nvme {
        /// Which drive, or which namespace at once.
        drive: DriveName,
        /// Which of the drive's namespaces; `None`: its only one, or the one that is named.
        nsid: Option<u32>,
    },
}

/// What an NVMe drive, or a namespace of one, is called by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DriveName {
    /// The drive at this PCI address, as in `0000:01:00.0`.
    Address(String),
    /// The drive with this serial number.
    Serial(Serial),
    /// The namespace with this EUI-64.
    Eui64(Eui64),
    /// The namespace with this NGUID.
    Nguid(Nguid),
}

impl fmt::Display for DriveName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8], out: &mut fmt::Formatter<'_>| {
            bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
        };
        match self {
            Self::Address(address) => write!(out, "{address}"),
            Self::Serial(serial) => write!(out, "serial number {}", serial.as_str()),
            Self::Eui64(eui64) => hex(&eui64.bytes(), out),
            Self::Nguid(nguid) => hex(&nguid.bytes(), out),
        }
    }
}

/// `[[array]]`: disks as one that outlives the loss of some of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Array {
    /// Unique among the arrays and the disks.
    pub name: String,
    /// How it spreads its data.
    pub level: Level,
    /// Its members; a new array gives them its roles in this order.
    pub members: Vec<DiskId>,
    /// Disks that take the place of a member that fails.
    pub spares: Vec<DiskId>,
    /// The strip of a new array.
    pub strip: Size,
    /// How a new array survives crashes.
    pub consistency: Consistency,
    /// The mirrored zone of a new array, of no bytes for none; `None`: the usual one of its level.
    pub zone: Option<Size>,
    /// Where all members are blank, the array is made.
    pub create: bool,
    /// What a sweep does in a second while hosts are busy, of each member.
    pub rebuild_floor: Size,
    /// What it does at most; `None`: as much as it can.
    pub rebuild_ceiling: Option<Size>,
    /// How often it is scrubbed by itself; `None`: never.
    pub scrub: Option<Duration>,
    /// How long its members may take.
    pub patience: Patience,
    /// How many members it has.
    pub roles: usize,
    /// It was made while the appliance ran, and its members call it so. Then `members` are the disks
    /// that were its members last, as far as there are such disks.
    pub kept: Option<Uuid>,
}

/// `[[pool]]`: a disk or an array that volumes are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pool {
    /// Unique among the pools. A pool that is found keeps the name that it has.
    pub name: String,
    /// What it lies on: a disk or an array.
    pub store: Store,
    /// Where that is blank, the pool is made.
    pub create: bool,
    /// How full it may be, in percent, before operator and hosts are told; `None`: as the pool keeps it.
    pub warn_at: Option<u8>,
    /// How full it may be before that is urgent.
    pub critical_at: Option<u8>,
    /// The volume that the pool begins with, and its size.
    pub first_volume: Option<(String, Size)>,
}

/// `[[subsystem]]`: what a host connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subsystem {
    /// Its name to hosts.
    pub nqn: Nqn,
    /// Serial number: given, or derived from the NQN and so the same at every start.
    pub serial: Serial,
    /// Model number.
    pub model: Model,
    /// Who may connect.
    pub access: Access,
    /// Where it is served; at least one, and each serves subsystems.
    pub listeners: Vec<ListenerId>,
    /// The highest NSID there can be (NN).
    pub max_namespaces: u32,
    /// Its namespaces, by rising NSID.
    pub namespaces: Vec<Namespace>,
}

/// Who may connect to a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every host that reaches a listener.
    AnyHost,
    /// These hosts; none at all where the list is empty.
    Hosts(Vec<Nqn>),
}

impl Access {
    /// Whether a host of this NQN may connect.
    pub fn allows(&self, host: &str) -> bool {
        match self {
            Access::AnyHost => true,
            Access::Hosts(hosts) => hosts.iter().any(|allowed| allowed.as_str() == host),
        }
    }
}

/// `[[subsystem.namespace]]`: a disk as hosts see it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Namespace {
    /// Namespace id, from 1.
    pub nsid: u32,
    /// What it exports.
    pub store: Store,
    /// UUID: the namespace's own, or its disk's; `None`: the appliance makes one and keeps it.
    pub uuid: Option<Uuid>,
    /// NGUID, where one is given.
    pub nguid: Option<Nguid>,
    /// EUI-64, where one is given.
    pub eui64: Option<Eui64>,
    /// Writes are refused.
    pub read_only: bool,
}

/// A namespace's globally unique identifier; never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nguid(pub(crate) [u8; 16]);

impl Nguid {
    /// The bytes in the order of the wire.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// A namespace's IEEE extended unique identifier; never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eui64(pub(crate) [u8; 8]);

impl Eui64 {
    /// The bytes in the order of the wire.
    pub fn bytes(self) -> [u8; 8] {
        self.0
    }
}

/// A serial number (SN): 1 to 20 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serial(pub(crate) String);

impl Serial {
    /// The text, without the padding of the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The serial number of a subsystem that was given none: a function of its NQN alone.
    pub fn derived(nqn: &Nqn) -> Serial {
        // FNV-1a, 64 bits: fixed for good, because hosts know a subsystem by its serial number.
        let hash = nqn
            .as_str()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        Serial(format!("CB{hash:016X}"))
    }
}

/// A model number (MN): 1 to 40 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Model(pub(crate) String);

impl Model {
    /// The text, without the padding of the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `[[referral]]`: another discovery service that hosts are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Referral {
    /// Where it is.
    pub address: SocketAddr,
    /// What is spoken there.
    pub transport: Transport,
    /// Its NQN: the well-known discovery NQN unless another was given.
    pub nqn: Nqn,
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// The least severe that is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// The least severe event that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what is suspicious.
    Warn,
    /// And what changed.
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// The name in the file, which is also that of `tracing`'s filters.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
