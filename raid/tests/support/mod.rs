//! Arrays over ram disks for tests: beds of every level.

pub mod bench;
pub mod power;

use std::sync::{Arc, Mutex};

use corebay_conformance::{Bed, TestCore};
use corebay_core::{
    arena::Arena,
    buffer::BufferPool,
    disk::ram::{RamDisk, RamMedium},
    disk_of_kinds,
    rng::Rng,
    units::BlockSize,
};
use corebay_raid::{
    array::{Array, Assembled},
    assemble::assemble,
    create::create,
    geometry::{Consistency, Geometry, Level, Wish},
    zone::Zone,
};

/// Reed-Solomon with so many data and parity strips.
pub const fn ec(data: u8, parity: u8) -> Level {
    Level::ErasureCode { data, parity }
}

/// The bytes of an array that every check has room in.
const ARRAY_BYTES: u64 = 160 << 20;

/// Scratch memory for one core.
pub fn scratch(geometry: &Geometry) -> BufferPool {
    let bytes = Assembled::scratch_bytes(geometry);
    let mut arena = Arena::lazy(bytes).expect("memory");
    BufferPool::new(arena.take(bytes).expect("as large as that"), 512)
}

/// An array over ram disks that is created with the bed and assembled by the first core that opens it.
pub struct ArrayBed {
    media: Vec<Arc<RamMedium>>,
    geometry: Geometry,
    assembled: Mutex<Option<Assembled>>,
}

impl ArrayBed {
    pub fn new(level: Level, roles: usize, block_size: BlockSize) -> Self {
        let usual = Wish::new(level, roles, block_size);
        Self::with(Wish {
            journal_slots: 64,
            // Fewer stripes of the levels that have the smallest ones.
            strip_bytes: match level {
                Level::Mirrored => 512 << 10,
                _ => usual.strip_bytes,
            },
            ..usual
        })
    }

    pub fn dirty(level: Level, roles: usize, block_size: BlockSize) -> Self {
        Self::with(Wish {
            consistency: Consistency::DirtyRegions,
            ..Wish::new(level, roles, block_size)
        })
    }

    pub fn with(wish: Wish) -> Self {
        let data = Geometry::new(wish, 1 << 40).expect("a geometry").data() as u64;
        let bytes = ARRAY_BYTES / data + (32 << 20) + wish.zone_bytes;
        let media: Vec<_> = (0..wish.roles)
            .map(|_| RamMedium::new(wish.block_size, wish.block_size.blocks_in(bytes)).unwrap())
            .collect();
        let geometry = Geometry::new(wish, bytes).expect("a geometry");
        let core = TestCore::single();
        let disks: Vec<RamDisk> = media
            .iter()
            .map(|medium| RamDisk::new(medium.clone(), &core.reactor))
            .collect();
        let pool = scratch(&geometry);
        core.run(async move {
            let mut rng = Rng::from_seed(1);
            create(&disks, wish, "bed", &[], &mut rng, &pool).await
        })
        .expect("an array");
        Self {
            media,
            geometry,
            assembled: Mutex::new(None),
        }
    }
}

impl Bed for ArrayBed {
    type Disk = Array<RamDisk>;

    fn open(&self, core: &TestCore) -> Self::Disk {
        let mut known = self.assembled.lock().unwrap();
        let disks = self.media.iter();
        let disks = disks.map(|medium| RamDisk::new(medium.clone(), &core.reactor));
        let pool = scratch(&self.geometry);
        if let Some(assembled) = known.as_ref().filter(|assembled| assembled.holders() > 1) {
            let members = disks.map(Some).collect();
            return Array::open(assembled, members, &core.reactor, &pool).expect("memory");
        }
        let (disks, reactor) = (disks.collect::<Vec<_>>(), core.reactor.clone());
        let assembly = async move { assemble(disks, None, &reactor, &pool).await };
        let assembly = core.run(assembly).expect("an assembled array");
        let (array, report) = (assembly.array, assembly.report);
        assert!(report.refused.is_empty(), "{report:?}");
        *known = Some(array.assembled().clone());
        array
    }

    fn reopen(&mut self) -> bool {
        *self.assembled.lock().unwrap() = None;
        true
    }
}

/// The mirrored zone of such an array.
pub struct ZoneBed(ArrayBed);

/// One core's way there, which ends with its array.
pub struct OpenZone {
    zone: Zone<RamDisk>,
    _array: Array<RamDisk>,
}

impl std::ops::Deref for OpenZone {
    type Target = Zone<RamDisk>;

    fn deref(&self) -> &Self::Target {
        &self.zone
    }
}

/// A disk by what it dereferences to.
pub enum ZoneDisk {
    Open(OpenZone),
}

disk_of_kinds!(ZoneDisk { Open });

impl ZoneBed {
    pub fn new(level: Level, roles: usize, block_size: BlockSize) -> Self {
        Self(ArrayBed::with(Wish {
            journal_slots: 64,
            zone_bytes: ARRAY_BYTES,
            ..Wish::new(level, roles, block_size)
        }))
    }
}

impl Bed for ZoneBed {
    type Disk = ZoneDisk;

    fn open(&self, core: &TestCore) -> Self::Disk {
        let array = self.0.open(core);
        let zone = array.zone().expect("it was made with one");
        ZoneDisk::Open(OpenZone {
            zone,
            _array: array,
        })
    }

    fn reopen(&mut self) -> bool {
        self.0.reopen()
    }
}
