//! What namespaces lie on, as a running target has it: disks, NVMe drives, arrays of disks, and
//! volumes of pools over any of these.
//!
//! Invariants:
//! - A bay holds one medium at a time. Whatever is unplugged loses its power, and with it its cache.
//! - Every core opens its own way to a store; an array once, whoever uses it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use corebay_core::{
    arena::Arena,
    buffer::BufferPool,
    disk::{DiskError, DiskInfo},
    disk_of_kinds,
    reactor::Reactor,
    units::Time,
};
use corebay_lvol::{PoolDisk, Volume};
use corebay_nvme::{
    emulated::{
        Backing, Emulated, EmulatedFaults, EmulatedNamespace, EmulatedOptions, EmulatedRegisters,
    },
    pcie::{DmaWindows, Drive, NvmeDisk, Queue},
    spec::status::Status,
};
use corebay_raid::{
    array::{Array, Assembled},
    zone::Zone,
};

use crate::{
    beneath::{DrivePlan, FloorPlan},
    disk::{Queues, SimDisk},
    medium::{Content, MediumFaults, SimMedium, Supply},
    pool::{OpenPool, POOL_BYTES, PoolStore},
    trace::{Trace, lock},
};

/// Tasks of an array that may wait for its scratch memory.
const SCRATCH_WAITERS: usize = 512;

/// A drive's medium, as its controller sees it.
#[derive(Clone)]
struct Platter(SimMedium);

impl std::fmt::Debug for Platter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Platter")
    }
}

/// What a command ends with whose medium fails.
fn status_of(error: DiskError) -> Status {
    match error {
        DiskError::UnrecoveredRead => Status::UNRECOVERED_READ_ERROR.with_dnr(),
        DiskError::WriteFault => Status::WRITE_FAULT.with_dnr(),
        _ => Status::INTERNAL_ERROR.with_dnr(),
    }
}

impl Platter {
    /// Writes each block; where the medium has a fault, only some of them, and says so.
    fn put(
        &self,
        blocks: impl Iterator<Item = (u64, Content)>,
        cached: bool,
    ) -> Result<(), Status> {
        let fails = self.0.fails_write();
        for (at, content) in blocks {
            if !fails || self.0.toss() {
                self.0.write(at, content, !cached).map_err(status_of)?;
            }
        }
        match fails {
            true => Err(status_of(DiskError::WriteFault)),
            false => Ok(()),
        }
    }
}

impl Backing for Platter {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Status> {
        let size = self.0.options().block_size.bytes();
        for (at, block) in (at..).zip(into.chunks_mut(size)) {
            match self.0.read(at).map_err(status_of)? {
                Content::Bytes(bytes) => block.copy_from_slice(&bytes),
                Content::Zeroes | Content::Lost => block.fill(0),
            }
        }
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[u8], cached: bool) -> Result<(), Status> {
        let size = self.0.options().block_size.bytes();
        self.put((at..).zip(from.chunks(size).map(Content::of)), cached)
    }

    fn clear(&mut self, at: u64, blocks: u64, cached: bool) -> Result<(), Status> {
        let zeroes = (at..at + blocks).map(|at| (at, Content::Zeroes));
        self.put(zeroes, cached)
    }

    fn spoil(&mut self, at: u64, blocks: u64) {
        for at in at..at + blocks {
            let _: Result<(), DiskError> = self.0.write(at, Content::Lost, false);
        }
    }

    fn flush(&mut self) {
        self.0.flush(self.0.order());
    }

    fn lose_power(&mut self) {
        self.0.cut_power();
    }
}

/// A controller that was just powered on.
fn controller(plan: &DrivePlan, medium: &SimMedium, seed: u64) -> Emulated {
    let controller = Emulated::new(EmulatedOptions {
        volatile_cache: plan.volatile_cache,
        sgl: plan.sgl,
        shadow_doorbells: plan.shadow_doorbells,
        namespaces: vec![EmulatedNamespace::new(plan.block_size, plan.blocks)],
        latency: plan.latency,
        seed,
        ..EmulatedOptions::default()
    });
    controller.keep_on(DRIVE_NSID, Box::new(Platter(medium.clone())));
    controller
}

/// Where the media beneath one floor are plugged in.
pub struct Bays {
    /// What lies on them.
    pub plan: FloorPlan,
    plain_faults: MediumFaults,
    /// Stripes of an array whose parity has changed by itself since the last scrub.
    pub rotten: Mutex<Vec<u64>>,
    calm: AtomicBool,
    supply: Supply,
    media: Mutex<Vec<SimMedium>>,
    /// Of a drive, its controller.
    pub controller: Option<Emulated>,
}

impl Bays {
    /// Bays with blank media; `plain_faults` is what goes wrong on media that nothing protects. Nothing
    /// does before [`begin_faults`](Self::begin_faults).
    #[must_use]
    pub fn new(
        plan: &FloorPlan,
        plain_faults: MediumFaults,
        supply: &Supply,
        mut seed: impl FnMut() -> u64,
    ) -> Arc<Self> {
        let media = plan.media();
        let media = media.iter();
        let media: Vec<_> = media
            .map(|options| SimMedium::new(*options, seed(), supply))
            .collect();
        Arc::new(Self {
            plan: plan.clone(),
            plain_faults,
            rotten: Mutex::default(),
            calm: AtomicBool::new(true),
            supply: supply.clone(),
            controller: plan
                .drive()
                .map(|drive| controller(drive, &media[0], seed())),
            media: Mutex::new(media),
        })
    }

    /// The media, by bay.
    #[must_use]
    pub fn media(&self) -> Vec<SimMedium> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SimMedium>> {
        lock(&self.media)
    }

    /// Lets the media do what is due.
    pub fn advance(&self, now: Time) {
        for medium in self.lock().iter() {
            medium.advance(now);
        }
        if let Some(controller) = &self.controller {
            controller.poll(now);
        }
    }

    /// What a drive's controller does wrong, or nothing.
    pub fn set_drive_faults(&self, on: bool) {
        if let (Some(plan), Some(controller)) = (self.plan.drive(), &self.controller) {
            let on = on && !self.calm.load(Ordering::Relaxed);
            controller.set_faults(if on {
                plan.faults
            } else {
                EmulatedFaults::default()
            });
        }
    }

    /// From now on the media have the faults of the plan.
    pub fn begin_faults(&self) {
        self.calm.store(false, Ordering::Relaxed);
        for (bay, medium) in self.lock().iter().enumerate() {
            medium.set_faults(self.plan.faults(bay, self.plain_faults));
        }
    }

    /// No more faults from now on.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
        for medium in self.lock().iter() {
            medium.set_faults(MediumFaults::default());
        }
        self.set_drive_faults(false);
    }

    /// True where nothing goes wrong any more.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Puts a blank medium into a bay.
    pub fn replace(&self, bay: usize, seed: u64) {
        let options = self.plan.media()[bay];
        let blank = SimMedium::new(options, seed, &self.supply);
        if !self.calm.load(Ordering::Relaxed) {
            blank.set_faults(self.plan.faults(bay, self.plain_faults));
        }
        let old = std::mem::replace(&mut self.lock()[bay], blank);
        old.set_gone(true);
    }
}

/// A store, to be opened by every core.
#[derive(Clone)]
pub enum Store {
    /// A disk.
    Disk(SimMedium),
    /// A drive.
    Drive(Arc<DriveStore>),
    /// An array.
    Array(Arc<ArrayStore>),
    /// A pool's volume.
    Pool(Arc<PoolStore>),
}

impl Store {
    /// What a pool lies on; itself where it is none.
    #[must_use]
    pub fn base(&self) -> &Self {
        match self {
            Self::Pool(pool) => &pool.base,
            _ => self,
        }
    }

    /// The array that it is or lies on.
    #[must_use]
    pub fn array(&self) -> Option<&Arc<ArrayStore>> {
        match self.base() {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// True where it is a drive that was given up, or lies on one.
    #[must_use]
    pub fn has_failed_drive(&self) -> bool {
        matches!(self.base(), Self::Drive(store) if store.drive.has_failed())
    }
}

/// A drive that was brought up.
pub struct DriveStore {
    /// What all cores share of it.
    pub drive: Arc<Drive<EmulatedRegisters>>,
    /// By core: where its buffers lie.
    pub windows: Vec<DmaWindows>,
}

/// The only namespace of a drive.
pub const DRIVE_NSID: u32 = 1;

impl Store {
    /// What the disks over it are.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        match self {
            Self::Disk(medium) => medium.info(),
            Self::Drive(store) => {
                let namespace = store.drive.namespace(DRIVE_NSID);
                namespace.expect("it was looked at").disk_info()
            }
            Self::Array(array) => array.assembled.info(),
            Self::Pool(pool) => pool.info(),
        }
    }
}

/// An array that was assembled.
pub struct ArrayStore {
    /// What all cores share of it.
    pub assembled: Assembled,
    /// Its members' bays.
    pub bays: Arc<Bays>,
    /// Which of the appliance's floors it is.
    pub floor: usize,
    holders: Mutex<Vec<Option<SimMedium>>>,
    /// The disk that is its spare.
    spare: Mutex<Option<SimMedium>>,
    scrub: AtomicBool,
    /// One has ended in this life.
    scrubbed: AtomicBool,
}

impl ArrayStore {
    /// The array on a floor; `holders` are the media that had the roles last.
    #[must_use]
    pub fn new(
        assembled: Assembled,
        bays: &Arc<Bays>,
        floor: usize,
        (holders, spare): (Vec<Option<SimMedium>>, Option<SimMedium>),
    ) -> Arc<Self> {
        Arc::new(Self {
            assembled,
            bays: bays.clone(),
            floor,
            holders: Mutex::new(holders),
            spare: Mutex::new(spare),
            scrub: AtomicBool::new(false),
            scrubbed: AtomicBool::new(false),
        })
    }

    /// By role: the medium that had it last.
    #[must_use]
    pub fn holders(&self) -> Vec<Option<SimMedium>> {
        lock(&self.holders).clone()
    }

    /// A medium has a role from now on.
    pub fn set_holder(&self, role: usize, medium: SimMedium) {
        lock(&self.holders)[role] = Some(medium);
    }

    /// The disk that is its spare, until it has a role.
    #[must_use]
    pub fn take_spare(&self) -> Option<SimMedium> {
        lock(&self.spare).take()
    }

    /// Asks for a scrub.
    pub fn ask_scrub(&self) {
        self.scrub.store(true, Ordering::Relaxed);
    }

    /// One has ended: all stripes were looked at.
    pub fn end_scrub(&self) {
        self.scrubbed.store(true, Ordering::Relaxed);
    }

    /// True once one has ended in this life.
    #[must_use]
    pub fn is_scrubbed(&self) -> bool {
        self.scrubbed.load(Ordering::Relaxed)
    }

    /// True where one was asked for.
    #[must_use]
    pub fn take_scrub(&self) -> bool {
        self.scrub.swap(false, Ordering::Relaxed)
    }
}

/// One core's way to a disk that consists of no others.
pub enum Leaf {
    /// A simulated disk.
    Disk(SimDisk),
    /// A namespace of an NVMe drive.
    Drive(NvmeDisk<EmulatedRegisters>),
}

/// One core's array.
pub type CoreArray = Rc<Array<Leaf>>;

/// One core's way to what is no pool's volume.
pub enum Base {
    /// To a disk.
    Leaf(Leaf),
    /// To an array.
    Array(CoreArray),
    /// To the mirrored zone of an array.
    Zone(Zone<Leaf>),
}

/// One core's way to a store.
pub enum AnyDisk {
    /// To a disk or an array.
    Base(Base),
    /// To a pool's volume.
    Volume(Volume<Base>),
}

/// A core's memory for what lies on a floor, beside that for its hosts' data.
#[derive(Clone, Default)]
pub struct Scratch {
    /// For an array.
    pub array: Option<BufferPool>,
    /// For a pool.
    pub pool: Option<BufferPool>,
}

impl Scratch {
    /// Both.
    pub fn all(&self) -> impl Iterator<Item = &BufferPool> {
        self.array.iter().chain(&self.pool)
    }
}

/// What a core opens stores with.
pub struct Opener {
    /// The core's reactor.
    pub reactor: Reactor,
    /// All disk queues of the node.
    pub queues: Queues,
    /// The run's trace.
    pub trace: Trace,
    /// By floor, the core's scratch memory.
    pub scratch: Vec<Scratch>,
    /// With what was free of their scratch memory while nothing used them.
    arrays: RefCell<Vec<(Arc<ArrayStore>, CoreArray, usize)>>,
    drives: RefCell<Vec<Rc<Queue<EmulatedRegisters>>>>,
    /// The core's parts of pools.
    pub pools: RefCell<Vec<OpenPool>>,
}

impl Opener {
    /// A core's, which has opened nothing yet.
    #[must_use]
    pub fn new(reactor: &Reactor, queues: &Queues, trace: &Trace, scratch: &[Scratch]) -> Self {
        Self {
            reactor: reactor.clone(),
            queues: queues.clone(),
            trace: trace.clone(),
            scratch: scratch.to_vec(),
            arrays: RefCell::default(),
            drives: RefCell::default(),
            pools: RefCell::default(),
        }
    }

    /// Opens this core's way to a store.
    ///
    /// # Errors
    /// Where its medium is gone.
    pub fn open(&self, store: &Store) -> Result<AnyDisk, DiskError> {
        Ok(match store {
            Store::Pool(pool) => AnyDisk::Volume(self.open_volume(pool)?),
            base => AnyDisk::Base(self.open_base(base)?),
        })
    }

    /// Opens this core's way to a store that is no pool's volume.
    ///
    /// # Errors
    /// Where its medium is gone.
    pub fn open_base(&self, store: &Store) -> Result<Base, DiskError> {
        Ok(match store {
            Store::Disk(medium) => Base::Leaf(self.open_leaf(medium)?),
            Store::Drive(drive) => Base::Leaf(Leaf::Drive(self.open_drive(drive)?)),
            Store::Array(array) => Base::Array(self.open_array(array)?),
            Store::Pool(_) => unreachable!("a pool lies on no pool"),
        })
    }

    /// The same for a pool's home core, with the mirrored zone where it has one.
    ///
    /// # Errors
    /// Where its medium is gone.
    pub fn open_pool_disk(&self, store: &Store) -> Result<PoolDisk<Base>, DiskError> {
        let disk = self.open_base(store)?;
        let zone = match &disk {
            Base::Array(array) => array.zone().map(Base::Zone),
            Base::Leaf(_) | Base::Zone(_) => None,
        };
        Ok(PoolDisk { disk, zone })
    }

    fn open_drive(&self, store: &DriveStore) -> Result<NvmeDisk<EmulatedRegisters>, DiskError> {
        let mut queues = self.drives.borrow_mut();
        let known = queues
            .iter()
            .find(|queue| Arc::ptr_eq(queue.drive(), &store.drive));
        let queue = match known {
            Some(queue) => queue.clone(),
            None => {
                let windows = store.windows[self.reactor.core().0].clone();
                let queue = Queue::open(&store.drive, &self.reactor, windows);
                let queue = queue.ok_or(DiskError::Gone)?;
                queues.push(queue.clone());
                queue
            }
        };
        queue.disk(DRIVE_NSID).ok_or(DiskError::Gone)
    }

    /// Opens this core's way to a disk.
    ///
    /// # Errors
    /// Where its medium is gone.
    pub fn open_leaf(&self, medium: &SimMedium) -> Result<Leaf, DiskError> {
        let disk = SimDisk::open(medium, &self.reactor, &self.trace, &self.queues)?;
        Ok(Leaf::Disk(disk))
    }

    /// Opens this core's way to an array, once.
    ///
    /// # Errors
    /// Where its scratch memory is too small.
    pub fn open_array(&self, store: &Arc<ArrayStore>) -> Result<CoreArray, DiskError> {
        let mut open = self.arrays.borrow_mut();
        if let Some((_, array, _)) = open.iter().find(|(known, ..)| Arc::ptr_eq(known, store)) {
            return Ok(array.clone());
        }
        let roles = store.assembled.state().roles;
        let members = store.holders().into_iter().zip(roles);
        // One that is gone by now fails with the first operation on it.
        let members = members.map(|(medium, record)| match record.state {
            corebay_raid::state::RoleState::Failed => None,
            _ => medium.and_then(|medium| self.open_leaf(&medium).ok()),
        });
        let scratch = self.scratch[store.floor].array.as_ref();
        let scratch = scratch.ok_or(DiskError::NoSpace)?;
        let array = Array::open(&store.assembled, members.collect(), &self.reactor, scratch)?;
        let array = Rc::new(array);
        open.push((store.clone(), array.clone(), scratch.free_bytes()));
        Ok(array)
    }

    /// Commands of drives that have not ended.
    #[must_use]
    pub fn drive_commands(&self) -> usize {
        let drives = self.drives.borrow();
        drives.iter().map(|queue| queue.in_flight()).sum()
    }

    /// What arrays have under way, or hold of their memory for it.
    #[must_use]
    pub fn held_by_arrays(&self) -> Option<String> {
        let arrays = self.arrays.borrow();
        arrays.iter().find_map(|(store, array, free)| {
            let scratch = self.scratch[store.floor].array.as_ref()?;
            let (work, held) = (array.under_way(), free.checked_sub(scratch.free_bytes()));
            (work != 0 || held != Some(0)).then(|| {
                let floor = store.floor;
                format!("the array on floor {floor} has {work} operations left, {held:?} bytes")
            })
        })
    }

    /// Lets go of what is open.
    pub fn close(&self) {
        drop(self.pools.take());
        drop(self.arrays.take());
        drop(self.drives.take());
    }
}

/// A core's scratch memory, by floor.
#[must_use]
pub fn scratch(floors: &[FloorPlan]) -> Vec<Scratch> {
    let buffers = |bytes: usize| {
        let mut arena = Arena::lazy(bytes).expect("memory for an array or a pool");
        let region = arena.take(bytes).expect("all of the arena");
        BufferPool::new(region, SCRATCH_WAITERS)
    };
    let of = |floor: &FloorPlan| Scratch {
        array: floor
            .array()
            .map(|array| buffers(Assembled::scratch_bytes(&array.geometry()))),
        pool: matches!(floor, FloorPlan::Pool(_)).then(|| buffers(POOL_BYTES)),
    };
    floors.iter().map(of).collect()
}

disk_of_kinds!(Leaf { Disk, Drive });
disk_of_kinds!(Base { Leaf, Array, Zone });
disk_of_kinds!(AnyDisk { Base, Volume });
