//! What lies beneath the namespaces of an appliance, as a plan: disks, NVMe drives, arrays of disks,
//! pools over one of these.
//!
//! Invariants:
//! - What a host must never see stays forbidden in every world: a plan draws only faults that what it
//!   draws them beneath promises to bear. Of an array, only so many members are *victims* as it bears
//!   the loss of, and all faults of members strike these.
//! - Silent faults of a member strike what an array keeps twice and checks: superblocks and dirty maps.
//!   Of data an array keeps no checksum, so a rotten block of them is read as it is; that is promised to
//!   nobody, and not drawn. Nor is the journal's rot: it protects from crashes, not from media.
//! - Of the metadata of a pool over a disk the first copies alone are struck, which the second ones mend. Its data have
//!   no second copy: where the medium tears, hosts may be told that a block is lost.
//! - An array with parity and without a journal promises nothing to what is lost in the same crash:
//!   where processes end, its members do not fail, and where its media tear, hosts may be told that a
//!   block is lost.

use std::time::Duration;

use corebay_core::{rng::Rng, units::BlockSize};
use corebay_nvme::emulated::EmulatedFaults;
use corebay_raid::geometry::{Consistency, Geometry, Level, Wish, ZONE_OFFSET};

use crate::{
    medium::{Latency, MediumFaults, MediumOptions},
    plan::pick,
};

/// The most blocks of a namespace, so that all of them can be read often.
const BLOCKS_MAX: u64 = 800;

/// Where the first copies of a small pool's roots and journal lie (`lvol/FORMAT.md`).
const FIRST_COPIES: std::ops::Range<u64> = 128 << 10..(128 + 2 * 64 + 128) << 10;

/// A mirrored zone with room for the smallest journal of a pool.
const ZONE_BYTES: u64 = 264 << 10;

/// The smallest strip there is.
const STRIP_BYTES: u32 = 16 << 10;

/// A namespace as its hosts know it, and the floor that it lies on.
#[derive(Clone, Copy, Debug)]
pub struct NamespacePlan {
    /// The size of its blocks.
    pub block_size: BlockSize,
    /// Its blocks.
    pub blocks: u64,
    /// What is written may be lost with the power until it is flushed.
    pub volatile_cache: bool,
    /// Which of the appliance's floors it lies on.
    pub floor: usize,
}

/// What namespaces lie on.
#[derive(Clone, Debug)]
pub enum FloorPlan {
    /// A disk.
    Disk(MediumOptions),
    /// An NVMe drive that the target drives itself.
    Drive(DrivePlan),
    /// An array of disks.
    Array(ArrayPlan),
    /// A volume of a pool.
    Pool(PoolPlan),
}

/// A pool with one volume.
#[derive(Clone, Debug)]
pub struct PoolPlan {
    /// What it lies on: a disk, a drive or an array.
    pub base: Box<FloorPlan>,
    /// What goes wrong with the first copies of its metadata, where that is a disk.
    pub faults: MediumFaults,
    /// The volume's blocks.
    pub blocks: u64,
    /// The volume's space is reserved.
    pub thick: bool,
    /// The longest pause between two orders of the operator, in microseconds; none where there is none.
    pub orders: Option<u64>,
    /// The operator makes clones that share with the volume alone, and writes them where hosts work.
    pub twins: bool,
}

/// An NVMe drive with one namespace.
#[derive(Clone, Copy, Debug)]
pub struct DrivePlan {
    /// The size of a block.
    pub block_size: BlockSize,
    /// The blocks there are.
    pub blocks: u64,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
    /// A power cut may lose a block that was being written.
    pub tears: bool,
    /// It takes SGLs.
    pub sgl: bool,
    /// It has doorbells in memory.
    pub shadow_doorbells: bool,
    /// How long a command takes at least and at most.
    pub latency: (Duration, Duration),
    /// What its controller does wrong.
    pub faults: EmulatedFaults,
}

/// An array.
#[derive(Clone, Debug)]
pub struct ArrayPlan {
    /// What it is made as.
    pub wish: Wish,
    /// Each of its members.
    pub member: MediumOptions,
    /// The roles whose members have faults.
    pub victims: Vec<usize>,
    /// What goes wrong on these.
    pub faults: MediumFaults,
    /// Disks beside the members.
    pub spares: usize,
    /// Now and then parity changes by itself, and a scrub has to mend it.
    pub parity_rots: bool,
}

/// What a world has in store for its disks.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Nothing goes wrong.
    pub calm: bool,
    /// Processes are killed or lose their power.
    pub cuts: bool,
    /// What goes wrong on disks that nothing protects.
    pub faults: MediumFaults,
}

impl FloorPlan {
    /// The media beneath it.
    #[must_use]
    pub fn media(&self) -> Vec<MediumOptions> {
        match self {
            Self::Disk(medium) => vec![*medium],
            Self::Drive(drive) => vec![drive.medium()],
            Self::Array(array) => {
                let members = array.wish.roles + array.spares;
                used(vec![array.member; members])
            }
            Self::Pool(pool) => used(pool.base.media()),
        }
    }

    /// What a pool lies on; itself where it is none.
    #[must_use]
    pub fn base(&self) -> &Self {
        match self {
            Self::Pool(pool) => &pool.base,
            _ => self,
        }
    }

    /// The drive that it is or lies on.
    #[must_use]
    pub fn drive(&self) -> Option<&DrivePlan> {
        match self.base() {
            Self::Drive(drive) => Some(drive),
            _ => None,
        }
    }

    /// The array that it is or lies on.
    #[must_use]
    pub fn array(&self) -> Option<&ArrayPlan> {
        match self.base() {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// True where clones of it share with its volume alone, and are written.
    #[must_use]
    pub fn has_twins(&self) -> bool {
        matches!(self, Self::Pool(pool) if pool.twins)
    }

    /// What goes wrong on one of these; `plain` on those that nothing protects.
    #[must_use]
    pub fn faults(&self, place: usize, plain: MediumFaults) -> MediumFaults {
        match self {
            Self::Disk(_) | Self::Drive(_) => plain,
            Self::Array(array) if array.victims.contains(&place) => array.faults,
            Self::Pool(pool) if matches!(*pool.base, Self::Disk(_)) => pool.faults,
            // A pool bears no fault of a drive.
            Self::Pool(pool) => pool.base.faults(place, MediumFaults::default()),
            Self::Array(_) => MediumFaults::default(),
        }
    }

    /// True where hosts may be told that a medium failed, `plain` going wrong on those that nothing
    /// protects.
    #[must_use]
    pub fn may_fail(&self, plain: &MediumFaults) -> bool {
        match self {
            Self::Disk(medium) => medium.tears || plain.are_told(),
            // A command outlives so many resets, and a drive so many lost admin commands.
            Self::Drive(drive) => {
                drive.tears || drive.faults != EmulatedFaults::default() || plain.are_told()
            }
            Self::Array(array) => array.may_fail(),
            Self::Pool(pool) => pool.base.may_fail(&MediumFaults::default()),
        }
    }

    /// True where the controllers of its drives do nothing wrong by themselves.
    #[must_use]
    pub fn has_sound_drives(&self) -> bool {
        self.drive()
            .is_none_or(|drive| drive.faults == EmulatedFaults::default())
    }

    /// The one namespace that all of it is.
    #[must_use]
    pub fn namespace(&self, floor: usize) -> NamespacePlan {
        let (block_size, blocks, volatile_cache) = match self {
            Self::Disk(medium) => (medium.block_size, medium.blocks, medium.volatile_cache),
            Self::Drive(drive) => (drive.block_size, drive.blocks, drive.volatile_cache),
            Self::Array(array) => {
                let geometry = array.geometry();
                let volatile = array.member.volatile_cache && !geometry.is_journaled();
                (geometry.block_size(), geometry.blocks(), volatile)
            }
            Self::Pool(PoolPlan { base, blocks, .. }) => {
                let base = base.namespace(floor);
                (base.block_size, *blocks, base.volatile_cache)
            }
        };
        NamespacePlan {
            block_size,
            blocks,
            volatile_cache,
            floor,
        }
    }

    /// Whatever takes longest takes no longer than this.
    pub fn hurry(&mut self, tail_max: Duration) {
        let (latency, most) = match self {
            Self::Disk(medium) => (&mut medium.latency, tail_max),
            Self::Drive(_) => return,
            // A write to a stripe waits for several operations one after the other, and for its turn.
            Self::Array(array) => (&mut array.member.latency, tail_max / 10),
            // And one to a pool for a batch of its journal, and the one before.
            Self::Pool(pool) => return pool.base.hurry(tail_max / 10),
        };
        latency.tail = latency.tail.min(most);
        if most < tail_max {
            latency.spread = latency.spread.min(tail_max / 100);
        }
    }
}

/// Whatever is made on these, something else was there before.
fn used(mut media: Vec<MediumOptions>) -> Vec<MediumOptions> {
    media.iter_mut().for_each(|medium| medium.used = true);
    media
}

impl DrivePlan {
    /// What its namespace's blocks lie on.
    fn medium(&self) -> MediumOptions {
        MediumOptions {
            block_size: self.block_size,
            blocks: self.blocks,
            volatile_cache: self.volatile_cache,
            tears: self.tears,
            used: false,
            // The controller takes the time.
            latency: Latency {
                min: Duration::ZERO,
                spread: Duration::ZERO,
                tail_one_in: 0,
                tail: Duration::ZERO,
                slow_read_one_in: 0,
            },
        }
    }

    /// Draws one.
    pub fn draw(rng: &mut Rng, around: &Circumstances) -> Self {
        let mut faults = EmulatedFaults::default();
        if !around.calm && rng.once_in(2) {
            let mut some = |one_in: u64| if rng.once_in(3) { one_in } else { 0 };
            // A completion that names another command in flight cannot be told from a right one.
            faults = EmulatedFaults {
                late: some(50),
                late_by: Duration::from_millis(300),
                lost: some(200),
                duplicate: some(30),
                wrong_sqid: some(200),
                bad_phase: some(200),
                ..EmulatedFaults::default()
            };
        }
        let least = Duration::from_micros(pick(rng, &[1, 20, 100]));
        Self {
            block_size: pick(rng, &[BlockSize::B512, BlockSize::B4096]),
            blocks: pick(rng, &[16, 64, 200]),
            volatile_cache: !rng.once_in(3),
            tears: rng.once_in(4),
            sgl: rng.once_in(2),
            shadow_doorbells: rng.once_in(2),
            latency: (
                least,
                least + Duration::from_micros(pick(rng, &[0, 50, 2_000])),
            ),
            faults,
        }
    }
}

impl PoolPlan {
    /// Draws one. What it lies on is large enough for the volume and all that the pool keeps of it.
    pub fn draw(rng: &mut Rng, around: &Circumstances) -> Self {
        let block_size = pick(rng, &[BlockSize::B512, BlockSize::B4096]);
        let bytes: u64 = match block_size {
            BlockSize::B512 => 16 << 20,
            BlockSize::B4096 => 64 << 20,
        };
        let base = match rng.below(6) {
            0 => FloorPlan::Drive(DrivePlan {
                block_size,
                blocks: block_size.blocks_in(bytes),
                // A pool whose disk fails a write takes no change any more.
                faults: EmulatedFaults::default(),
                ..DrivePlan::draw(rng, around)
            }),
            1 | 2 => FloorPlan::Array(ArrayPlan::draw_for_pool(rng, around)),
            _ => FloorPlan::Disk(MediumOptions {
                block_size,
                blocks: block_size.blocks_in(bytes),
                volatile_cache: !rng.once_in(3),
                tears: rng.once_in(4),
                used: false,
                latency: latency(rng),
            }),
        };
        Self {
            base: Box::new(base),
            faults: match !around.calm && rng.once_in(2) {
                true => Self::faults(rng, block_size),
                false => MediumFaults::default(),
            },
            blocks: pick(rng, &[16, 64, 200, 300, 600]),
            thick: rng.once_in(3),
            orders: pick(rng, &[None, Some(500), Some(5_000), Some(40_000)]),
            twins: false,
        }
    }

    /// Draws one over a disk that reads slowly now and then: what a read of the volume is on its way to may
    /// have become another's meanwhile, who writes it.
    pub fn draw_shared(rng: &mut Rng, around: &Circumstances) -> Self {
        let mut plan = Self::draw(rng, around);
        while !matches!(*plan.base, FloorPlan::Disk(_)) {
            plan = Self::draw(rng, around);
        }
        if let FloorPlan::Disk(medium) = &mut *plan.base {
            medium.latency = Latency {
                min: Duration::from_micros(pick(rng, &[1, 20])),
                spread: Duration::from_micros(pick(rng, &[0, 50])),
                tail_one_in: 0,
                tail: Duration::from_millis(pick(rng, &[2, 5, 20])),
                slow_read_one_in: pick(rng, &[2, 4, 8]),
            };
        }
        plan.blocks = pick(rng, &[4, 8, 300]);
        plan.orders = Some(pick(rng, &[100, 500, 2_000]));
        plan.twins = true;
        plan
    }

    fn faults(rng: &mut Rng, block_size: BlockSize) -> MediumFaults {
        let mut some = |one_in: u64| if rng.once_in(2) { one_in } else { 0 };
        MediumFaults {
            transient_read: some(20),
            latent_read: some(20),
            bit_rot: some(20),
            lost_write: some(4),
            misdirected_write: some(4),
            silent_from: block_size.blocks_in(FIRST_COPIES.start),
            silent_below: block_size.blocks_in(FIRST_COPIES.end),
            told_there: true,
            ..MediumFaults::default()
        }
    }

    /// True where nothing beneath it damages what it writes.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let nothing = MediumFaults::default();
        self.faults == nothing && !self.base.may_fail(&nothing)
    }

    /// A small one, with an operator.
    #[must_use]
    pub fn script(medium: MediumOptions) -> Self {
        let block_size = BlockSize::B4096;
        Self {
            base: Box::new(FloorPlan::Disk(MediumOptions {
                block_size,
                blocks: block_size.blocks_in(16 << 20),
                ..medium
            })),
            faults: MediumFaults::default(),
            blocks: 24,
            thick: false,
            orders: Some(800),
            twins: false,
        }
    }
}

impl ArrayPlan {
    /// Where its blocks lie.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let bytes = self.member.block_size.bytes_of(self.member.blocks);
        Geometry::new(self.wish, bytes).expect("drawn so that there is one")
    }

    /// Blocks of it may be lost, or writes fail.
    fn may_fail(&self) -> bool {
        // What lies in the journal is written anew where the power tore it.
        let torn = self.member.tears && !self.geometry().is_journaled();
        let unprotected = self.redundancy() == 0 || self.has_write_hole();
        torn || unprotected && !self.victims.is_empty()
    }

    /// Between a crash and the resync after it, parity without a journal protects nothing.
    fn has_write_hole(&self) -> bool {
        let geometry = self.geometry();
        geometry.parity() > 0 && !geometry.is_journaled()
    }

    /// The members that it bears the loss of, whichever they are.
    #[must_use]
    pub fn redundancy(&self) -> usize {
        let geometry = self.geometry();
        match self.wish.level {
            Level::Mirrored => geometry.copies() - 1,
            Level::StripedMirrors => 1,
            _ => geometry.parity(),
        }
    }

    /// True where members are lost and come back.
    #[must_use]
    pub fn loses_members(&self) -> bool {
        self.redundancy() > 0 && !self.victims.is_empty()
    }

    /// Draws one.
    pub fn draw(rng: &mut Rng, around: &Circumstances) -> Self {
        let (level, roles) = draw_level(rng);
        let block_size = pick(rng, &[BlockSize::B512, BlockSize::B4096]);
        let mut wish = Wish {
            strip_bytes: STRIP_BYTES,
            journal_slots: pick(rng, &[8, 8, 16]),
            ..Wish::new(level, roles, block_size)
        };
        if rng.once_in(4) {
            wish.consistency = Consistency::DirtyRegions;
        }
        let mut plan = Self {
            wish,
            member: draw_member(rng, &wish),
            victims: Vec::new(),
            faults: MediumFaults::default(),
            spares: 0,
            parity_rots: false,
        };
        if !around.calm && rng.once_in(2) {
            plan.draw_victims(rng, around);
        }
        plan.spares = usize::from(plan.loses_members() && rng.once_in(2));
        // With a member lost, wrong parity would make wrong data.
        let safe = plan.victims.is_empty() && !plan.member.tears;
        plan.parity_rots = !around.calm && safe && plan.geometry().parity() > 0 && rng.once_in(2);
        plan
    }

    /// Draws one that is large enough for a pool, and gives it what it has been told to keep.
    fn draw_for_pool(rng: &mut Rng, around: &Circumstances) -> Self {
        let mut plan = Self::draw(rng, around);
        while plan.redundancy() == 0 || plan.wish.block_size != BlockSize::B512 {
            plan = Self::draw(rng, around);
        }
        if plan.geometry().parity() > 0 && rng.once_in(2) {
            // The pool's journal lies there.
            plan.wish.zone_bytes = ZONE_BYTES;
            plan.member.blocks += plan.wish.block_size.blocks_in(ZONE_BYTES);
        }
        let geometry = plan.geometry();
        let of_data = (16u64 << 20).div_ceil(geometry.stripe_bytes());
        let bytes = geometry.data_offset() + of_data * u64::from(STRIP_BYTES);
        plan.member.blocks = plan.member.block_size.blocks_in(bytes);
        plan
    }

    /// A small one without faults.
    pub fn script(rng: &mut Rng, member: MediumOptions) -> Self {
        let (level, roles) = pick(
            rng,
            &[(Level::Raid5, 3), (Level::Mirrored, 2), (Level::Raid6, 4)],
        );
        let wish = Wish {
            strip_bytes: STRIP_BYTES,
            journal_slots: 8,
            ..Wish::new(level, roles, member.block_size)
        };
        let mut plan = Self {
            wish,
            member: MediumOptions {
                blocks: 1 << 20,
                ..member
            },
            victims: Vec::new(),
            faults: MediumFaults::default(),
            spares: 0,
            parity_rots: false,
        };
        let bytes = plan.geometry().data_offset() + u64::from(STRIP_BYTES);
        plan.member.blocks = member.block_size.blocks_in(bytes);
        plan
    }

    fn draw_victims(&mut self, rng: &mut Rng, around: &Circumstances) {
        if self.has_write_hole() && around.cuts {
            return;
        }
        let most = match self.redundancy() {
            0 => self.wish.roles,
            redundancy => 1 + rng.below(redundancy as u64) as usize,
        };
        while self.victims.len() < most {
            let victim = rng.below(self.wish.roles as u64) as usize;
            if !self.victims.contains(&victim) {
                self.victims.push(victim);
            }
        }
        self.faults = around.faults;
        if self.redundancy() == 0 {
            // Both copies of a superblock may be lost, and with them all.
            self.faults.latent_read = 0;
        }
        if self.redundancy() > 0 && rng.once_in(3) {
            let mut some = |one_in: u64| if rng.once_in(2) { one_in } else { 0 };
            self.faults.bit_rot = some(20);
            self.faults.lost_write = some(4);
            self.faults.misdirected_write = some(4);
            self.faults.silent_below = self.member.block_size.blocks_in(ZONE_OFFSET);
        }
    }
}

fn draw_level(rng: &mut Rng) -> (Level, usize) {
    let ec = |data: u8, parity: u8| {
        let level = Level::ErasureCode { data, parity };
        (level, usize::from(data + parity))
    };
    let all = [
        (Level::Striped, 2),
        (Level::Mirrored, 2),
        (Level::Mirrored, 3),
        (Level::StripedMirrors, 4),
        (Level::Raid5, 3),
        (Level::Raid5, 4),
        (Level::Raid6, 4),
        (Level::Raid6, 5),
        ec(2, 2),
        ec(3, 1),
        ec(2, 3),
    ];
    pick(rng, &all)
}

/// Members with a few stripes; with larger blocks so many that there are several dirty regions.
fn draw_member(rng: &mut Rng, wish: &Wish) -> MediumOptions {
    let block = wish.block_size;
    let enough = Geometry::new(*wish, 1 << 30).expect("a valid wish");
    let per_stripe = enough.stripe_bytes() / block.bytes() as u64;
    let stripes = 1 + rng.below(BLOCKS_MAX / per_stripe);
    let bytes = enough.data_offset() + stripes * u64::from(STRIP_BYTES);
    MediumOptions {
        block_size: block,
        blocks: block.blocks_in(bytes) + rng.below(8),
        volatile_cache: !rng.once_in(3),
        tears: rng.once_in(4),
        used: false,
        latency: latency(rng),
    }
}

/// How long the operations of a medium take.
fn latency(rng: &mut Rng) -> Latency {
    Latency {
        min: Duration::from_micros(pick(rng, &[1, 20, 100])),
        spread: Duration::from_micros(pick(rng, &[0, 50, 500, 2_000])),
        tail_one_in: pick(rng, &[0, 0, 40]),
        tail: Duration::from_millis(pick(rng, &[5, 50])),
        slow_read_one_in: 0,
    }
}
