//! The machine's own surroundings of the target: its network, its disks, its clocks. The one place
//! that names all concrete disks.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use corebay_core::{
    buffer::Buffer,
    disk::{
        Disk, DiskError, DiskInfo, Durability, Space,
        file::{FileDisk, FileEngine, FileMedium},
        null::{NullDisk, NullReads},
        ram::{RamDisk, RamMedium},
    },
    net::os::OsNetwork,
    reactor::Reactor,
    units::{BlockSize, Lba},
};
use corebay_nvme::{
    pcie::{NvmeDisk, Queue},
    vfio::VfioRegisters,
};
use corebay_target::{
    environment::{Environment, NotKept},
    feature::FeatureChange,
    subsystem::Subsystem,
};

use super::drives::NvmeMedium;
use super::keeper::Keeper;

/// What a disk is opened from.
#[derive(Clone)]
pub enum Medium {
    /// A file or a kernel block device.
    File(Arc<FileMedium>),
    /// Memory.
    Ram(Arc<RamMedium>),
    /// Nothing.
    Null(BlockSize, u64),
    /// A namespace of an NVMe drive that corebay drives itself.
    Nvme(Arc<NvmeMedium>),
}

/// One core's way to a disk of any kind.
pub enum AnyDisk {
    File(FileDisk),
    Ram(RamDisk),
    Null(NullDisk),
    Nvme(NvmeDisk<VfioRegisters>),
}

impl Medium {
    /// What the disks over it are.
    pub fn info(&self) -> DiskInfo {
        match self {
            Self::File(medium) => medium.info(),
            Self::Ram(medium) => medium.info(),
            Self::Null(block_size, blocks) => null(*block_size, *blocks).info(),
            Self::Nvme(medium) => medium.info(),
        }
    }
}

impl Medium {
    /// True where both are the same disk.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => Arc::ptr_eq(a, b),
            (Self::Ram(a), Self::Ram(b)) => Arc::ptr_eq(a, b),
            (Self::Nvme(a), Self::Nvme(b)) => a.is_same(b),
            (Self::Null(..), Self::Null(..)) => self.info() == other.info(),
            _ => false,
        }
    }
}

fn null(block_size: BlockSize, blocks: u64) -> NullDisk {
    NullDisk::new(block_size, blocks, NullReads::Zeroes)
}

/// Does the same with whichever disk it is.
macro_rules! each {
    ($any:expr, $disk:ident => $action:expr) => {
        match $any {
            AnyDisk::File($disk) => $action,
            AnyDisk::Ram($disk) => $action,
            AnyDisk::Null($disk) => $action,
            AnyDisk::Nvme($disk) => $action,
        }
    };
}

impl Disk for AnyDisk {
    fn info(&self) -> DiskInfo {
        each!(self, disk => disk.info())
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        each!(self, disk => disk.read(at, into).await)
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        each!(self, disk => disk.write(at, from, durability).await)
    }

    async fn flush(&self) -> Result<(), DiskError> {
        each!(self, disk => disk.flush().await)
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        each!(self, disk => disk.deallocate(at, blocks).await)
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        each!(self, disk => disk.write_zeroes(at, blocks, space, durability).await)
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        each!(self, disk => disk.write_uncorrectable(at, blocks).await)
    }
}

/// One core of the machine.
pub struct MachineEnvironment {
    /// The core's sockets.
    pub network: OsNetwork,
    /// The core's way to files.
    pub engine: Rc<FileEngine>,
    /// The core's reactor.
    pub reactor: Reactor,
    /// The core's queue pairs of NVMe drives.
    pub queues: RefCell<Vec<Rc<Queue<VfioRegisters>>>>,
    /// The core's way to the state file.
    pub keeper: Keeper,
}

impl MachineEnvironment {
    /// All namespaces of a drive share this core's queue pair.
    fn open_nvme(&self, medium: &NvmeMedium) -> Result<NvmeDisk<VfioRegisters>, DiskError> {
        let mut queues = self.queues.borrow_mut();
        let known = queues
            .iter()
            .find(|queue| Arc::ptr_eq(queue.drive(), &medium.drive));
        let queue = match known {
            Some(queue) => queue.clone(),
            None => {
                let windows = medium.windows.clone();
                let queue = Queue::open(&medium.drive, &self.reactor, windows);
                let queue = queue.ok_or(DiskError::Gone)?;
                queues.push(queue.clone());
                queue
            }
        };
        queue.disk(medium.namespace.nsid).ok_or(DiskError::Gone)
    }
}

impl Environment for MachineEnvironment {
    type Network = OsNetwork;
    type Disk = AnyDisk;
    type Medium = Medium;

    fn network(&self) -> &OsNetwork {
        &self.network
    }

    fn open(&self, medium: &Medium) -> Result<AnyDisk, DiskError> {
        Ok(match medium {
            Medium::File(medium) => AnyDisk::File(FileDisk::open(&self.engine, medium)),
            Medium::Ram(medium) => AnyDisk::Ram(RamDisk::new(medium.clone(), &self.reactor)),
            Medium::Null(block_size, blocks) => AnyDisk::Null(null(*block_size, *blocks)),
            Medium::Nvme(medium) => AnyDisk::Nvme(self.open_nvme(medium)?),
        })
    }

    #[allow(clippy::disallowed_methods, reason = "this is the environment's clock")]
    fn wall_clock_ms(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // A clock before 1970 is a clock that was never set.
        since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }

    async fn save_feature(
        &self,
        subsystem: &Arc<Subsystem<Medium>>,
        change: FeatureChange,
    ) -> Result<(), NotKept> {
        self.keeper.save(subsystem, change).await
    }
}
