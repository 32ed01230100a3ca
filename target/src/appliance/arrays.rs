//! The appliance's arrays: found or made at the start, before a core runs; then opened by every core.
//!
//! Invariants:
//! - Nothing that a disk holds is overwritten unasked: an array is made only where the configuration
//!   says so and all its members are blank.
//! - All memory for arrays comes out of the arena, before it is divided among the cores, so that
//!   every drive reaches it. So arrays are neither added nor removed while the process runs.
//! - Each array is tended by the first core alone (`tend.rs`); who may ask it pushes an [`Order`].

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use corebay_conf::{Appliance, appliance};
use corebay_core::{
    arena::{Arena, Region},
    buffer::BufferPool,
    disk::file::{FileEngine, FileEngineOptions},
    reactor::{MachineClock, Reactor, run as run_reactor},
    rng::Rng,
    units::{CoreId, Time},
};
use corebay_raid::{
    array::Assembled,
    assemble::{AssembleError, Assembly, Refusal, Report, assemble},
    create::{CreateError, create},
    geometry::{Consistency, Geometry, Wish},
    state::RoleState,
    superblock::BadSuperblock,
    sweep::{Pace, Scrubbed},
};
use tracing::{info, warn};

use super::environment::{Devices, PlainMedium};
use crate::cli::Failure;

/// Tasks of an array that may wait for its scratch memory.
const SCRATCH_WAITERS: usize = 512;

/// Orders to an array that may wait.
const ORDERS_MAX: usize = 16;

/// A disk and its name.
#[derive(Clone)]
pub struct Named {
    /// Its name in the configuration.
    pub name: String,
    /// What it is opened from.
    pub medium: PlainMedium,
}

/// What an array is asked to do; its outcome is text for the operator.
pub enum Order {
    /// Read everything, and make agree what does not.
    Scrub,
    /// Give up a member, as if it had failed.
    Fail {
        /// Its role.
        role: usize,
    },
    /// Give a role whose member failed to a disk.
    Replace {
        /// The role.
        role: usize,
        /// The new member.
        by: Named,
    },
    /// Take a member back that was away, and bring it up to date.
    Return {
        /// Its role.
        role: usize,
        /// The disk.
        by: Named,
    },
}

/// Whoever waits for an order to be accepted or refused.
pub type Answer = mpsc::Sender<Result<(), String>>;

/// What goes over the whole array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SweepKind {
    /// Regions that a crash may have left unequal are made equal.
    Resync,
    /// A role is being rebuilt.
    Rebuild(usize),
    /// Everything is read and compared.
    Scrub,
}

/// A sweep that is under way.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Which.
    pub kind: SweepKind,
    /// When it began, by the process's clock.
    pub since: Time,
    /// The stripes that were done by then.
    pub from: u64,
}

/// How the last scrub ended.
#[derive(Clone, Debug)]
pub struct LastScrub {
    /// When, by the process's clock.
    pub at: Time,
    /// What it found, or why it ended early.
    pub outcome: Result<Scrubbed, String>,
}

/// What changes about an array besides what its members record.
#[derive(Default)]
pub struct Tending {
    /// By role.
    members: Vec<Option<Named>>,
    /// Disks that may take the place of a member that fails.
    pub spares: Vec<Named>,
    /// Disks that take no part, and why.
    pub refused: Vec<(Named, String)>,
    /// What is to be done.
    pub orders: VecDeque<(Order, Answer)>,
    /// What goes over the array.
    pub sweep: Option<Sweep>,
    /// How the last scrub ended.
    pub scrubbed: Option<LastScrub>,
}

/// An array that is assembled, to be opened by every core.
pub struct ArrayMedium {
    /// Its name in the configuration.
    pub name: String,
    /// What all cores share of it.
    pub assembled: Assembled,
    /// How fast sweeps go over it.
    pub pace: Pace,
    tending: Mutex<Tending>,
    /// By core.
    scratch: Mutex<Vec<Option<Region>>>,
}

impl ArrayMedium {
    /// The disks, by role.
    pub fn members(&self) -> Vec<Option<Named>> {
        self.tending().members.clone()
    }

    /// A role has another disk from now on.
    pub fn set_member(&self, role: usize, by: Named) {
        let mut tending = self.tending();
        tending.spares.retain(|spare| spare.name != by.name);
        tending
            .refused
            .retain(|(refused, _)| refused.name != by.name);
        tending.members[role] = Some(by);
    }

    /// What changes. Control path.
    pub fn tending(&self) -> MutexGuard<'_, Tending> {
        self.tending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for something to be done, unless too much waits already.
    pub fn order(&self, order: Order, answer: Answer) {
        let mut tending = self.tending();
        if tending.orders.len() == ORDERS_MAX {
            let _ = answer.send(Err("too many orders wait already".into()));
            return;
        }
        tending.orders.push_back((order, answer));
    }

    /// A member whose drive was lost is there again.
    pub fn take_back(&self, role: usize, by: Named) {
        let record = self.assembled.state().roles.get(role).copied();
        info!(
            array = self.name,
            disk = by.name,
            role,
            "the disk is there again"
        );
        // A member that nobody missed yet has missed nothing either, but its old disk is gone.
        if record.is_some_and(|record| record.state != RoleState::Failed) {
            let (answer, _) = mpsc::channel();
            self.order(Order::Fail { role }, answer);
        }
        let (answer, _) = mpsc::channel();
        self.order(Order::Return { role, by }, answer);
    }

    /// A core's scratch memory; each core takes it once.
    pub fn take_scratch(&self, core: CoreId) -> Option<BufferPool> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let region = scratch.get_mut(core.0)?.take()?;
        Some(BufferPool::new(region, SCRATCH_WAITERS))
    }
}

/// What arrays take of the arena: for each core by array, and for finding them.
pub struct ArrayMemory {
    scratch: VecDeque<Vec<Region>>,
    finding: Option<Region>,
}

impl ArrayMemory {
    /// Takes it.
    ///
    /// # Errors
    /// Where the arena is too small.
    pub fn take(appliance: &Appliance, arena: &mut Arena) -> Result<Self, Failure> {
        let cores = appliance.reactor().cores.len();
        let mut largest = 0;
        let mut scratch = VecDeque::new();
        let mut enough = true;
        for array in appliance.arrays() {
            let bytes = scratch_bytes(array);
            largest = largest.max(bytes);
            let regions: Vec<_> = (0..cores).map_while(|_| arena.take(bytes)).collect();
            enough &= regions.len() == cores;
            scratch.push_back(regions);
        }
        let finding = arena.take(largest).filter(|_| largest > 0);
        if !enough || (largest > 0 && finding.is_none()) {
            return Err(Failure::new(
                "there is too little memory for the arrays",
                "raise reactor.memory",
            ));
        }
        Ok(Self { scratch, finding })
    }
}

/// Enough for an array of these members and this level, whatever its strip.
fn scratch_bytes(array: &appliance::Array) -> usize {
    let mut wish = wish_of(array, corebay_conf::BlockSize::B4096);
    wish.strip_bytes = 1 << 20;
    let geometry = Geometry::new(wish, 1 << 50).expect("it was checked with the configuration");
    Assembled::scratch_bytes(&geometry)
}

fn wish_of(array: &appliance::Array, block_size: corebay_conf::BlockSize) -> Wish {
    Wish {
        strip_bytes: u32::try_from(array.strip.bytes()).unwrap_or(u32::MAX),
        consistency: array.consistency,
        ..Wish::new(array.level, array.members.len(), block_size)
    }
}

/// Finds the arrays of a configuration, or makes them, by a reactor that ends with it. `disk` gives the
/// disks that could be opened.
pub fn open(
    appliance: &Appliance,
    memory: ArrayMemory,
    disk: impl Fn(appliance::DiskId) -> Option<PlainMedium>,
) -> Result<Vec<Arc<ArrayMedium>>, Failure> {
    let ArrayMemory {
        mut scratch,
        finding,
    } = memory;
    let Some(finding) = finding else {
        return Ok(Vec::new());
    };
    let pool = BufferPool::new(finding, SCRATCH_WAITERS);
    let mut arrays = Vec::new();
    for array in appliance.arrays() {
        let named = |id: &appliance::DiskId| {
            let name = appliance.disk(*id).name.clone();
            (name, disk(*id))
        };
        let finding = Finding {
            array: array.clone(),
            members: array.members.iter().map(named).collect(),
            spares: array.spares.iter().map(named).collect(),
        };
        let scratch = scratch.pop_front().unwrap_or_default();
        let found = finding.find(&pool)?;
        arrays.push(Arc::new(found.into_medium(array, scratch)));
    }
    Ok(arrays)
}

/// An array that is looked for.
struct Finding {
    array: appliance::Array,
    members: Vec<(String, Option<PlainMedium>)>,
    spares: Vec<(String, Option<PlainMedium>)>,
}

/// An array that was found.
struct Found {
    assembled: Assembled,
    tending: Tending,
}

impl Found {
    fn into_medium(self, array: &appliance::Array, scratch: Vec<Region>) -> ArrayMedium {
        let mib = |size: corebay_conf::Size| u32::try_from(size.bytes() >> 20).unwrap_or(u32::MAX);
        ArrayMedium {
            name: array.name.clone(),
            assembled: self.assembled,
            pace: Pace {
                floor_mib_s: mib(array.rebuild_floor),
                ceiling_mib_s: array.rebuild_ceiling.map_or(0, mib),
            },
            tending: Mutex::new(self.tending),
            scratch: Mutex::new(scratch.into_iter().map(Some).collect()),
        }
    }
}

impl Finding {
    /// The disks that are there, members first.
    fn there(&self) -> Vec<Named> {
        let all = self.members.iter().chain(&self.spares);
        let there = all.filter_map(|(name, medium)| {
            let (name, medium) = (name.clone(), medium.clone()?);
            Some(Named { name, medium })
        });
        there.collect()
    }

    fn find(&self, pool: &BufferPool) -> Result<Found, Failure> {
        let there = self.there();
        match self.assemble(&there, pool)? {
            Ok(found) => self.look(found, &there),
            Err(AssembleError::NoMember) if self.array.create => {
                self.make(&there, pool)?;
                let again = self.assemble(&there, pool)?;
                let found = again.map_err(|error| self.cannot(&error, &there))?;
                self.look(found, &there)
            }
            Err(error) => Err(self.cannot(&error, &there)),
        }
    }

    fn cannot(&self, error: &AssembleError, there: &[Named]) -> Failure {
        let name = &self.array.name;
        let help = match error {
            AssembleError::NoMember => format!(
                "no disk of it carries its superblock; to make it of blank disks say create = true \
                 in [[array]] \"{name}\""
            ),
            AssembleError::TooFew { .. } => {
                let missing = self.members.iter().filter(|(_, medium)| medium.is_none());
                let missing: Vec<&str> = missing.map(|(name, _)| name.as_str()).collect();
                match missing.is_empty() {
                    true => "look at the log above for the disks that were refused".to_owned(),
                    false => format!("could not be opened: {}", missing.join(", ")),
                }
            }
            AssembleError::NoMemory => "raise reactor.memory".to_owned(),
            _ => {
                let names = there.iter().enumerate();
                let names: Vec<String> = names
                    .map(|(place, disk)| format!("disk {place} is {}", disk.name))
                    .collect();
                names.join(", ")
            }
        };
        Failure::new(format!("array \"{name}\": {error}"), help)
    }

    fn assemble(
        &self,
        there: &[Named],
        pool: &BufferPool,
    ) -> Result<Result<(Assembled, Report), AssembleError>, Failure> {
        let (media, own) = (media(there), pool.clone());
        run_here(pool, move |devices| async move {
            let disks = open_all(&devices, &media)?;
            let found = assemble(disks, None, &devices.reactor, &own).await;
            Ok(found.map(|Assembly { array, report, .. }| (array.assembled().clone(), report)))
        })
    }

    /// Makes the array of its members, which are all there and blank.
    fn make(&self, there: &[Named], pool: &BufferPool) -> Result<(), Failure> {
        let name = &self.array.name;
        if let Some((missing, _)) = self.members.iter().find(|(_, medium)| medium.is_none()) {
            return Err(Failure::new(
                format!(
                    "array \"{name}\" cannot be made: the disk \"{missing}\" could not be opened"
                ),
                "all members have to be there when an array is made",
            ));
        }
        let members = &there[..self.members.len()];
        let wish = wish_of(&self.array, members[0].medium.info().block_size);
        let (media, own, label) = (media(members), pool.clone(), name.clone());
        let made = run_here(pool, move |devices| async move {
            let disks = open_all(&devices, &media)?;
            let mut rng = random();
            Ok(create(&disks, wish, &label, &[], &mut rng, &own).await)
        })?;
        let uuid = made.map_err(|error| {
            let what = match error {
                CreateError::Occupied { member, by } => {
                    format!("the disk \"{}\" is not free: {by}", members[member].name)
                }
                CreateError::Member { member, error } => {
                    format!("the disk \"{}\": {error}", members[member].name)
                }
                CreateError::BlockSize { member, size } => {
                    format!(
                        "the disk \"{}\" has blocks of {size} bytes",
                        members[member].name
                    )
                }
                other => other.to_string(),
            };
            let help = match error {
                CreateError::Occupied { .. } => {
                    "nothing was written; name another disk, or clear this one yourself"
                }
                _ => "",
            };
            Failure::new(format!("array \"{name}\" cannot be made: {what}"), help)
        })?;
        info!(array = name, %uuid, level = %self.array.level, "made");
        Ok(())
    }

    /// Says what is worth saying of an array that was found, and refuses another than is configured.
    fn look(
        &self,
        (assembled, report): (Assembled, Report),
        there: &[Named],
    ) -> Result<Found, Failure> {
        let (name, geometry) = (&self.array.name, assembled.geometry());
        let has = geometry.wish();
        if (has.level, has.roles) != (self.array.level, self.array.members.len()) {
            return Err(Failure::new(
                format!(
                    "array \"{name}\": the disks are {} of {} members, the configuration says {} of {}",
                    has.level,
                    has.roles,
                    self.array.level,
                    self.array.members.len()
                ),
                "write in [[array]] what the disks are",
            ));
        }
        self.say_what_is_kept(has);
        let mut tending = Tending {
            members: report
                .roles
                .iter()
                .map(|place| place.map(|place| there[place].clone()))
                .collect(),
            ..Tending::default()
        };
        for place in report.spares {
            tending.spares.push(there[place].clone());
        }
        for (place, refusal) in report.refused {
            self.refused(&mut tending, &there[place], refusal);
        }
        let state = assembled.state();
        if report.replayed > 0 {
            info!(
                array = name,
                writes = report.replayed,
                "finished what a crash had interrupted"
            );
        }
        if report.repaired_copies > 0 {
            warn!(
                "array \"{name}\": {} damaged superblock copies were repaired",
                report.repaired_copies
            );
        }
        let missing: Vec<String> = (0..state.roles.len())
            .filter(|&role| tending.members[role].is_none())
            .map(|role| role.to_string())
            .collect();
        if !missing.is_empty() {
            warn!(
                "array \"{name}\" is degraded: role {} has no disk. `corebay array replace {name} ROLE \
                 DISK` gives it one",
                missing.join(", ")
            );
        }
        let info = assembled.info();
        if info.may_tear_blocks() {
            warn!(
                "array \"{name}\": if the power fails while a block of {} bytes is written, the block \
                 may be left half old and half new: its disks write {} bytes as a whole",
                info.block_size.bytes(),
                info.atomic_write_bytes
            );
        }
        info!(array = name, uuid = %assembled.uuid(), level = %has.level, "assembled");
        Ok(Found { assembled, tending })
    }

    /// What an array was made with stays.
    fn say_what_is_kept(&self, has: &Wish) {
        let name = &self.array.name;
        if u64::from(has.strip_bytes) != self.array.strip.bytes() {
            warn!(
                "array \"{name}\" has strips of {} bytes: what it was made with stays",
                has.strip_bytes
            );
        }
        if has.consistency != self.array.consistency {
            let word = match has.consistency {
                Consistency::Journal => "journal",
                Consistency::DirtyRegions => "resync",
            };
            warn!("array \"{name}\" has consistency = \"{word}\": what it was made with stays");
        }
    }

    fn refused(&self, tending: &mut Tending, disk: &Named, refusal: Refusal) {
        let name = &self.array.name;
        let is_spare = self.spares.iter().any(|(spare, _)| *spare == disk.name);
        match refusal {
            Refusal::Superblock(BadSuperblock::Absent) if is_spare => {
                tending.spares.push(disk.clone())
            }
            Refusal::Stale { role, .. } => {
                info!(
                    array = name,
                    disk = disk.name,
                    role,
                    "returns, and is brought up to date"
                );
                let (answer, _) = mpsc::channel();
                let by = disk.clone();
                tending
                    .orders
                    .push_back((Order::Return { role, by }, answer));
            }
            refusal => {
                warn!(
                    "array \"{name}\": the disk \"{}\" takes no part: {refusal}",
                    disk.name
                );
                tending.refused.push((disk.clone(), refusal.to_string()));
            }
        }
    }
}

fn media(disks: &[Named]) -> Vec<PlainMedium> {
    disks.iter().map(|disk| disk.medium.clone()).collect()
}

fn open_all(
    devices: &Devices,
    media: &[PlainMedium],
) -> Result<Vec<super::environment::PlainDisk>, Failure> {
    let opened = media.iter().map(|medium| devices.open(medium));
    opened
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::new(format!("cannot open a member of an array: {error}"), ""))
}

/// Random numbers that nobody can tell in advance.
pub fn random() -> Rng {
    Rng::from_seed(uuid::Uuid::new_v4().as_u64_pair().0)
}

/// Runs a task to its end by a reactor of its own, on this thread.
pub fn run_here<T: 'static, F>(
    pool: &BufferPool,
    task: impl FnOnce(Devices) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>> + 'static,
{
    let clock = MachineClock::new();
    let reactor = Reactor::new(CoreId(0), 16, clock.now());
    let engine = FileEngine::start(&reactor, pool, FileEngineOptions::default())
        .map_err(|error| Failure::new(error.to_string(), ""))?;
    let outcome = std::rc::Rc::new(std::cell::RefCell::new(None));
    let (done, ending) = (outcome.clone(), reactor.clone());
    let task = Box::pin(task(Devices::new(engine, reactor.clone())));
    let run = async move {
        let ended = task.await;
        *done.borrow_mut() = Some(ended);
        ending.stop();
    };
    let spawned = reactor.spawn(run);
    debug_assert!(spawned.is_ok(), "it has slots");
    run_reactor(&reactor, clock, Some(std::time::Duration::from_micros(100)));
    reactor.tear_down();
    let ended = outcome.borrow_mut().take();
    ended.expect("the reactor stops with the task's end")
}
