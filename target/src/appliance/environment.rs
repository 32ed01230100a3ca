//! The machine's own surroundings of the target: its network, its disks, its clocks. The one place
//! that names all concrete disks.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc};

use corebay_core::{
    arena::Region,
    buffer::BufferPool,
    disk::{
        Disk, DiskError, DiskInfo,
        file::{FileDisk, FileEngine, FileMedium},
        null::{NullDisk, NullReads},
        ram::{RamDisk, RamMedium},
    },
    disk_of_kinds,
    net::os::OsNetwork,
    reactor::{PollSource, Reactor},
    units::BlockSize,
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

use corebay_lvol::{PoolCore, PoolDisk, Volume};
use corebay_raid::array::Array;

use crate::cli::Failure;

use super::{
    arrays::ArrayMedium,
    door::{Door, ZoneDoor},
    drives::NvmeMedium,
    keeper::Keeper,
    pools::{Home, VolumeMedium},
};

/// What a namespace's disk is opened from.
#[derive(Clone)]
pub enum Medium {
    /// One disk.
    Plain(PlainMedium),
    /// An array of disks.
    Array(Arc<ArrayMedium>),
    /// A volume of a pool.
    Volume(Arc<VolumeMedium>),
}

/// What a disk that consists of no others is opened from.
#[derive(Clone)]
pub enum PlainMedium {
    /// A file or a kernel block device.
    File(Arc<FileMedium>),
    /// Memory.
    Ram(Arc<RamMedium>),
    /// Nothing.
    Null(BlockSize, u64),
    /// A namespace of an NVMe drive that corebay drives itself.
    Nvme(Arc<NvmeMedium>),
}

/// One core's way to what a namespace exports.
pub enum AnyDisk {
    Floor(Floor),
    Volume(Volume<Floor>),
}

/// One core's way to what a pool may lie on.
pub enum Floor {
    Plain(PlainDisk),
    Array(Rc<Door>),
    /// The mirrored zone of an array.
    Zone(ZoneDoor),
}

/// One core's way to a disk that consists of no others.
pub enum PlainDisk {
    File(FileDisk),
    Ram(RamDisk),
    Null(NullDisk),
    Nvme(NvmeDisk<VfioRegisters>),
}

impl Medium {
    /// What the disks over it are.
    pub fn info(&self) -> DiskInfo {
        match self {
            Self::Plain(medium) => medium.info(),
            Self::Array(array) => array.assembled().info(),
            Self::Volume(volume) => volume.handle.info(),
        }
    }

    /// True where it is a drive again that may have lost acknowledged writes which were not flushed.
    pub fn lost_writes(&self) -> bool {
        matches!(self, Self::Plain(PlainMedium::Nvme(medium)) if medium.lost_writes)
    }

    /// True where both are the same disk.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain(a), Self::Plain(b)) => a.is_same(b),
            (Self::Array(a), Self::Array(b)) => Arc::ptr_eq(a, b),
            (Self::Volume(a), Self::Volume(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl PlainMedium {
    /// What the disks over it are.
    pub fn info(&self) -> DiskInfo {
        match self {
            Self::File(medium) => medium.info(),
            Self::Ram(medium) => medium.info(),
            Self::Null(block_size, blocks) => null(*block_size, *blocks).info(),
            Self::Nvme(medium) => medium.info(),
        }
    }

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

disk_of_kinds!(AnyDisk { Floor, Volume });
disk_of_kinds!(Floor { Plain, Array, Zone });
disk_of_kinds!(PlainDisk {
    File,
    Ram,
    Null,
    Nvme
});

/// One core's way to plain disks of every kind.
pub struct Devices {
    /// To files.
    pub engine: Rc<FileEngine>,
    /// The core's reactor.
    pub reactor: Reactor,
    /// The core's queue pairs of NVMe drives.
    queues: RefCell<Vec<Rc<Queue<VfioRegisters>>>>,
}

impl Devices {
    /// Of the core of `reactor`; its queue pairs are made as they are needed.
    pub fn new(engine: Rc<FileEngine>, reactor: Reactor) -> Self {
        Self {
            engine,
            reactor,
            queues: RefCell::default(),
        }
    }

    /// Opens this core's way to a disk.
    ///
    /// # Errors
    /// Where its drive has no queue for this core.
    pub fn open(&self, medium: &PlainMedium) -> Result<PlainDisk, DiskError> {
        Ok(match medium {
            PlainMedium::File(medium) => PlainDisk::File(FileDisk::open(&self.engine, medium)),
            PlainMedium::Ram(medium) => PlainDisk::Ram(RamDisk::new(medium.clone(), &self.reactor)),
            PlainMedium::Null(block_size, blocks) => PlainDisk::Null(null(*block_size, *blocks)),
            PlainMedium::Nvme(medium) => PlainDisk::Nvme(self.open_nvme(medium)?),
        })
    }

    /// All namespaces of a drive share this core's queue pair.
    fn open_nvme(&self, medium: &NvmeMedium) -> Result<NvmeDisk<VfioRegisters>, DiskError> {
        let mut queues = self.queues.borrow_mut();
        // What was lost and is there again has another queue pair: of the old one nothing is left.
        queues.retain(|queue| !queue.is_over());
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
        // One that took its place is another disk.
        let disk = queue.disk(medium.namespace.nsid);
        disk.filter(|disk| Arc::ptr_eq(disk.namespace(), &medium.namespace))
            .ok_or(DiskError::Gone)
    }
}

/// A core's way to a pool, and the pool's identity.
pub type CorePool = ([u8; 16], Rc<PoolCore<Floor>>);

/// One core of the machine.
pub struct MachineEnvironment {
    /// The core's sockets.
    pub network: OsNetwork,
    /// The core's way to plain disks.
    pub devices: Devices,
    /// The core's way to the state file.
    pub keeper: Keeper,
    /// The arrays that are open here: each once, whoever uses it.
    pub arrays: RefCell<Vec<(Arc<ArrayMedium>, Rc<Door>)>>,
    /// The core's ways to pools, by the pools' identities.
    pub pool_cores: RefCell<Vec<CorePool>>,
    /// The pools, on their home core.
    pub pools: RefCell<Option<Rc<Home>>>,
    /// Begins to listen: once all that hosts are to find is there.
    pub listen: RefCell<Option<Listen>>,
}

/// Begins to listen, and says where.
pub type Listen = Box<dyn FnOnce() -> Result<Vec<(usize, SocketAddr)>, Failure>>;

impl MachineEnvironment {
    /// Opens this core's way to an array, once.
    ///
    /// # Errors
    /// Where there is no memory for it, or no way to a member.
    pub fn open_array(&self, medium: &Arc<ArrayMedium>) -> Result<Rc<Door>, DiskError> {
        if let Some(door) = self.door(medium) {
            return Ok(door);
        }
        let reactor = &self.devices.reactor;
        let members = medium.members().into_iter();
        let members = members.map(|member| member.map(|member| self.devices.open(&member.medium)));
        let members = members.map(Option::transpose).collect::<Result<_, _>>()?;
        let scratch = medium
            .take_scratch(reactor.core())
            .ok_or(DiskError::NoSpace)?;
        let array = Array::open(&medium.assembled(), members, reactor, &scratch)?;
        let door = Rc::new(Door::new(array, scratch));
        self.arrays
            .borrow_mut()
            .push((medium.clone(), door.clone()));
        Ok(door)
    }

    /// This core's way to an array, where it is open.
    pub fn door(&self, medium: &Arc<ArrayMedium>) -> Option<Rc<Door>> {
        let open = self.arrays.borrow();
        let known = open.iter().find(|(known, _)| Arc::ptr_eq(known, medium));
        known.map(|(_, door)| door.clone())
    }

    /// The array behind the door.
    pub fn array(&self, medium: &Arc<ArrayMedium>) -> Option<Rc<Array<PlainDisk>>> {
        self.door(medium)?.array()
    }

    /// Closes this core's way to an array, behind a door that was shut; its memory, or what becomes of it
    /// once nobody holds any of it.
    pub fn close_array(&self, medium: &Arc<ArrayMedium>) -> Option<Result<Region, BufferPool>> {
        let door = self.door(medium)?;
        self.arrays
            .borrow_mut()
            .retain(|(known, _)| !Arc::ptr_eq(known, medium));
        door.close()
    }

    /// Opens this core's way to what a pool lies on.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open_floor(&self, medium: &Medium) -> Result<Floor, DiskError> {
        Ok(match medium {
            Medium::Plain(medium) => Floor::Plain(self.devices.open(medium)?),
            Medium::Array(medium) => Floor::Array(self.open_array(medium)?),
            Medium::Volume(_) => return Err(DiskError::Unsupported),
        })
    }

    /// The same for the pool's home core, which has the pool's journal too: in the mirrored zone of an
    /// array, where that has one.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open_pool_disk(&self, medium: &Medium) -> Result<PoolDisk<Floor>, DiskError> {
        let disk = self.open_floor(medium)?;
        let zone = match &disk {
            Floor::Array(door) => ZoneDoor::new(door).map(Floor::Zone),
            Floor::Plain(_) | Floor::Zone(_) => None,
        };
        Ok(PoolDisk { disk, zone })
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
        match medium {
            Medium::Volume(volume) => {
                let cores = self.pool_cores.borrow();
                let core = cores.iter().find(|(pool, _)| *pool == volume.pool);
                let (_, core) = core.ok_or(DiskError::Gone)?;
                let opened = Volume::open(core, &volume.handle);
                opened.map(AnyDisk::Volume).map_err(DiskError::from)
            }
            floor => self.open_floor(floor).map(AnyDisk::Floor),
        }
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
