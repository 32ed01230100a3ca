//! The appliance's arrays: found or made at the start, before a core runs, or by the first core while
//! the appliance runs (`manage.rs`); then opened by every core.
//!
//! Invariants:
//! - Nothing that a disk holds is overwritten unasked: an array is made only where that is said, and
//!   of disks that are blank or named as those whose content may be lost.
//! - All memory for arrays comes out of the arena, before it is divided among the cores, so that
//!   every drive reaches it. What is kept for arrays to come (`reserve.rs`) is the bound for them.
//! - Each array is tended by the first core alone (`tend.rs`); who may ask it pushes an [`Order`].

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
        mpsc,
    },
    time::Duration,
};

use corebay_conf::{Appliance, appliance};
use corebay_core::{
    arena::{Arena, HUGEPAGE_BYTES, Region},
    buffer::BufferPool,
    disk::{
        DiskError,
        file::{FileEngine, FileEngineOptions},
    },
    reactor::{MachineClock, Reactor, run as run_reactor},
    rng::Rng,
    units::{CoreId, Time},
};
use corebay_raid::{
    array::Assembled,
    assemble::{AssembleError, Assembly, Refusal, Report, assemble, assemble_with_stale, examine},
    geometry::{Consistency, Level, Wish},
    state::{RoleState, Uuid},
    superblock::{BadSuperblock, Superblock},
    sweep::{Pace, Scrubbed},
    within,
};
use tracing::{error, info, warn};

use super::{
    array_plan::ArrayPlan,
    environment::{Devices, PlainDisk, PlainMedium},
    making::Making,
    media::is_exported,
    reserve::Reserve,
    spares::{others, spares_since, unused},
    state::State,
};
use crate::cli::Failure;

/// Tasks of an array that may wait for its scratch memory.
const SCRATCH_WAITERS: usize = 512;

/// How long a disk that is looked at may take to answer.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Disks that were taken from an array by orders and are known as such: whoever retries one asks soon.
const DONE_WITHOUT_MAX: usize = 32;

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
        /// What it holds may be lost.
        lose: bool,
    },
    /// Take a member back that was away, and bring it up to date.
    Return {
        /// Its role.
        role: usize,
        /// The disk.
        by: Named,
    },
    /// Take a disk in: back where it was, or for a role whose member failed, or as a mirror's new leg.
    Add {
        /// The disk.
        by: Named,
        /// What it holds may be lost.
        lose: bool,
    },
    /// Let a disk take the place of the next member that fails.
    Spare {
        /// The disk.
        by: Named,
        /// What it holds may be lost.
        lose: bool,
    },
    /// Do without a member from now on: its disk is free.
    Remove {
        /// Its role.
        role: usize,
        /// The disk that had it as the order came: roles of a mirror's legs move up.
        disk: Option<String>,
    },
    /// Become as large as the members allow.
    Grow,
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
    /// What the array grows by is made blank.
    Grow,
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
    /// When, in seconds since 1970.
    pub at_unix: u64,
    /// How long it took.
    pub seconds: u64,
    /// What it found, or why it ended early.
    pub outcome: Result<Scrubbed, String>,
}

/// A scrub that has not come to its end: it is under way, or goes on once it may.
#[derive(Clone, Debug, Default)]
pub struct Scrubbing {
    /// How far it is, and what it has found.
    pub found: Scrubbed,
    /// How long it has taken so far.
    pub took: Duration,
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
    /// Those of them that were spares, and could not step in.
    pub unfit_spares: Vec<String>,
    /// Disks that a role had before, which have not ended what was asked of them.
    former: Vec<(usize, String)>,
    /// The last disks that orders took from the array, by name.
    pub done_without: VecDeque<String>,
    /// What is to be done.
    pub orders: VecDeque<(Order, Answer)>,
    /// Members that could not be taken back: when that is tried again, their roles and disks.
    pub returns: Vec<(u64, usize, Named)>,
    /// Disks that are being blanked, by name.
    pub blanking: Vec<String>,
    /// What goes over the array.
    pub sweep: Option<Sweep>,
    /// A stripe that keeps the resync from its end, as blocks of it cannot be read.
    pub resync_lost: Option<u64>,
    /// The scrub that is to be brought to its end.
    pub scrubbing: Option<Scrubbing>,
    /// How the last scrub ended.
    pub scrubbed: Option<LastScrub>,
}

impl Tending {
    /// A disk was taken from the array by an order.
    pub fn does_without(&mut self, name: String) {
        if self.done_without.len() == DONE_WITHOUT_MAX {
            self.done_without.pop_front();
        }
        self.done_without.push_back(name);
    }

    /// A disk is refused no more, or taken again.
    pub fn forget(&mut self, name: &str) {
        self.done_without.retain(|known| known != name);
        self.refused.retain(|(refused, _)| refused.name != name);
        self.unfit_spares.retain(|unfit| unfit != name);
    }
}

/// An array that is assembled, to be opened by every core.
pub struct ArrayMedium {
    /// Its name in the configuration.
    pub name: String,
    /// How fast sweeps go over it.
    pub pace: Pace,
    /// How often it is scrubbed by itself.
    pub scrub_every: Option<Duration>,
    /// From when that counts, in seconds since 1970: the last scrub, or when it was first seen.
    pub scrubbed_at: AtomicU64,
    /// It was made while the appliance ran.
    pub kept: AtomicBool,
    /// It is about to be closed: nobody tends it any more.
    pub ending: AtomicBool,
    /// The tasks that tend it.
    pub tenders: AtomicUsize,
    /// It does not go on by itself: why.
    pub trouble: Mutex<Option<String>>,
    assembled: Mutex<Assembled>,
    tending: Mutex<Tending>,
    /// By core.
    scratch: Mutex<Vec<Option<Region>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ArrayMedium {
    /// What all cores share of it. Control path.
    pub fn assembled(&self) -> Assembled {
        locked(&self.assembled).clone()
    }

    /// It was assembled anew.
    pub fn set_assembled(&self, assembled: Assembled) {
        *locked(&self.assembled) = assembled;
    }

    /// The disks, by role.
    pub fn members(&self) -> Vec<Option<Named>> {
        self.tending().members.clone()
    }

    /// A role, but for one, whose member has not ended what was asked of it, by number.
    pub fn unquiet(&self, but: Option<usize>) -> Option<usize> {
        let assembled = self.assembled();
        let mut roles = (0..assembled.geometry().roles()).filter(|role| Some(*role) != but);
        roles.find(|role| assembled.unended(*role) > 0)
    }

    /// The disks that have not ended what was asked of them, by name.
    pub fn unended(&self) -> Vec<String> {
        let assembled = self.assembled();
        let tending = self.tending();
        let members = tending.members.iter().enumerate();
        let members = members.filter_map(|(role, disk)| Some((role, disk.as_ref()?.name.clone())));
        let all = members.chain(tending.former.iter().cloned());
        let all = all.filter(|(role, _)| assembled.unended(*role) > 0);
        let all = all.map(|(_, name)| name);
        all.chain(tending.blanking.iter().cloned()).collect()
    }

    /// A role of which a disk of this name still has something to end, that was asked of it before it
    /// was given up.
    pub fn still_asked(&self, name: &str) -> Option<usize> {
        let assembled = self.assembled();
        let tending = self.tending();
        let members = tending.members.iter().enumerate();
        let members = members.filter_map(|(role, disk)| Some((role, &disk.as_ref()?.name)));
        let former = tending.former.iter().map(|(role, name)| (*role, name));
        let mut of_disk = members.chain(former).filter(|(_, known)| *known == name);
        of_disk.find_map(|(role, _)| (assembled.strays(role) > 0).then_some(role))
    }

    /// An order that has to wait: what returns has to end first what was asked of it.
    pub fn has_to_wait(&self, order: &Order) -> bool {
        let Order::Return { role, .. } = order else {
            return false;
        };
        let assembled = self.assembled();
        let record = assembled.state().roles.get(*role).copied();
        record.is_some_and(|record| record.state == RoleState::Failed)
            && assembled.unended(*role) > 0
    }

    /// The names of its spares; one that could not step in may be well at the next start.
    pub fn spares(&self) -> Vec<String> {
        let tending = self.tending();
        let spares = tending.spares.iter().map(|spare| &spare.name);
        spares.chain(&tending.unfit_spares).cloned().collect()
    }

    /// A spare's drive was lost and is there again.
    pub fn take_back_spare(&self, by: &Named) {
        let mut tending = self.tending();
        if let Some(spare) = tending
            .spares
            .iter_mut()
            .find(|spare| spare.name == by.name)
        {
            *spare = by.clone();
        } else if tending.unfit_spares.contains(&by.name) {
            tending.forget(&by.name);
            tending.spares.push(by.clone());
        } else {
            return;
        }
        info!(
            array = self.name,
            disk = by.name,
            "the spare is there again"
        );
    }

    /// A role has another disk from now on.
    pub fn set_member(&self, role: usize, by: Named) {
        let is_out = self.assembled().unended(role) > 0;
        let mut tending = self.tending();
        let had = tending.members[role].take();
        if let Some(had) = had.filter(|had| had.name != by.name) {
            tending.does_without(had.name.clone());
            if is_out {
                tending.former.push((role, had.name));
            }
        }
        tending.former.retain(|(_, former)| *former != by.name);
        tending.spares.retain(|spare| spare.name != by.name);
        tending.forget(&by.name);
        tending.members[role] = Some(by);
    }

    /// The disks by role are others from now on. All have ended what was asked of them.
    pub fn set_members(&self, members: Vec<Option<Named>>) {
        let mut tending = self.tending();
        tending.former.clear();
        tending.members = members;
    }

    /// A role has no disk from now on.
    pub fn clear_member(&self, role: usize) {
        let mut tending = self.tending();
        if let Some(had) = tending.members[role].take() {
            tending.does_without(had.name);
        }
    }

    /// What changes. Control path.
    pub fn tending(&self) -> MutexGuard<'_, Tending> {
        locked(&self.tending)
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
        let record = self.assembled().state().roles.get(role).copied();
        info!(
            array = self.name,
            disk = by.name,
            role,
            "the disk is there again"
        );
        if self.assembled().lost().any(|lost| lost == role) {
            warn!(
                array = self.name,
                role, "without redundancy, a restart of corebay alone takes it in again"
            );
            return;
        }
        // A member that nobody missed yet has missed nothing either, but its old disk is gone.
        if record.is_some_and(|record| record.state != RoleState::Failed) {
            let (answer, _) = mpsc::channel();
            self.order(Order::Fail { role }, answer);
        }
        self.order_return(role, by);
    }

    /// Takes a member back: that is bounded by the roles, and is never one order too many.
    fn order_return(&self, role: usize, by: Named) {
        let mut tending = self.tending();
        tending.returns.retain(|(_, known, _)| *known != role);
        let (answer, _) = mpsc::channel();
        tending
            .orders
            .push_back((Order::Return { role, by }, answer));
    }

    /// What could not be taken back is tried again, where its role has nobody yet.
    pub fn order_returns(&self, now: Time) {
        let due = |tending: &mut Tending| {
            let place = tending.returns.iter().position(|(at, ..)| *at <= now.0)?;
            Some(tending.returns.remove(place))
        };
        loop {
            let Some((_, role, by)) = due(&mut self.tending()) else {
                return;
            };
            let record = self.assembled().state().roles.get(role).copied();
            if record.is_some_and(|record| record.state == RoleState::Failed) {
                self.order_return(role, by);
            }
        }
    }

    /// A core's scratch memory; each core takes it once.
    pub fn take_scratch(&self, core: CoreId) -> Option<BufferPool> {
        let region = locked(&self.scratch).get_mut(core.0)?.take()?;
        Some(BufferPool::new(region, SCRATCH_WAITERS))
    }

    /// What no core has taken.
    pub fn take_all_scratch(&self) -> Vec<Region> {
        locked(&self.scratch).drain(..).flatten().collect()
    }
}

/// What arrays take of the arena: for each core by array, for finding them, and for arrays to come.
pub struct ArrayMemory {
    reserve: Reserve,
    finding_bytes: usize,
}

impl ArrayMemory {
    /// Takes it.
    ///
    /// # Errors
    /// Where the arena is too small.
    pub fn take(appliance: &Appliance, arena: &mut Arena) -> Result<Self, Failure> {
        let cores = appliance.reactor().cores.len();
        let arrays = appliance.arrays().iter();
        let bytes: Vec<usize> = arrays
            .map(|array| ArrayPlan::of(array).scratch_bytes())
            .collect();
        let finding_bytes = bytes.iter().copied().max().unwrap_or(0);
        let later = usize::try_from(appliance.reactor().array_memory.bytes()).unwrap_or(0);
        let later = later / HUGEPAGE_BYTES * HUGEPAGE_BYTES;
        let region = arena.take(bytes.iter().sum::<usize>() * cores + finding_bytes + later);
        let region = region.ok_or_else(|| {
            Failure::new(
                "there is too little memory for the arrays",
                "raise reactor.memory",
            )
        })?;
        Ok(Self {
            reserve: Reserve::new(region),
            finding_bytes,
        })
    }
}

/// The arrays that a configuration comes to.
pub struct Opened {
    /// Those that are there.
    pub arrays: Vec<Arc<ArrayMedium>>,
    /// Those that too many members are away of, and others that were made while the appliance ran, are not
    /// exported, and cannot be had; and why.
    pub absent: Vec<(String, String)>,
    /// The memory for more.
    pub reserve: Reserve,
}

/// Finds the arrays of a configuration, or makes them, by a reactor that ends with it. `disk` gives the
/// disks that could be opened.
pub fn open(
    appliance: &Appliance,
    memory: ArrayMemory,
    state: &State,
    disk: impl Fn(appliance::DiskId) -> Option<PlainMedium>,
) -> Result<Opened, Failure> {
    let mut opened = Opened {
        arrays: Vec::new(),
        absent: Vec::new(),
        reserve: memory.reserve,
    };
    if appliance.arrays().is_empty() {
        return Ok(opened);
    }
    let memory_failure =
        || Failure::new("no memory is left for the arrays", "raise reactor.memory");
    let finding = opened.reserve.take(memory.finding_bytes, 1);
    let finding = finding.and_then(|mut taken| taken.pop());
    let pool = BufferPool::new(finding.ok_or_else(memory_failure)?, SCRATCH_WAITERS);
    for array in appliance.arrays() {
        let named = |id: &appliance::DiskId| {
            let name = appliance.disk(*id).name.clone();
            (name, disk(*id))
        };
        let plan = ArrayPlan::of(array);
        let cores = appliance.reactor().cores.len();
        let scratch = opened.reserve.take(plan.scratch_bytes(), cores);
        let scratch = scratch.ok_or_else(memory_failure)?;
        let members: Vec<_> = array.members.iter().map(named).collect();
        let unused: Vec<_> = unused(appliance).map(|id| named(&id)).collect();
        let mut finding = Finding {
            making: Making::new(&plan, members.iter().map(|(name, _)| name)),
            plan,
            members,
            spares: array
                .spares
                .iter()
                .map(named)
                .chain(spares_since(appliance, array, state).iter().map(named))
                .collect(),
            others: others(appliance, array, state).iter().map(named).collect(),
            running: uuids(&opened.arrays),
        };
        let (plan, own) = (finding.plan.clone(), pool.clone());
        let found = run_here(&pool, |devices| async move {
            finding.look_further(unused, &devices, &own).await?;
            Ok(finding.find_at_start(&devices, &own).await)
        });
        let exported = is_exported(appliance, &array.name);
        match found? {
            Ok(found) => opened
                .arrays
                .push(Arc::new(found.into_medium(&plan, scratch))),
            Err(missed) if missed.is_away || (array.kept.is_some() && !exported) => {
                let failure = missed.failure;
                error!("everything else is served without it: {failure}");
                opened.absent.push((plan.name, failure.to_string()));
                scratch.into_iter().for_each(|r| opened.reserve.give(r));
            }
            Err(missed) => return Err(missed.failure),
        }
    }
    if let Ok(region) = pool.reclaim() {
        opened.reserve.give(region);
    }
    Ok(opened)
}

/// The arrays' identifiers.
pub fn uuids(arrays: &[Arc<ArrayMedium>]) -> Vec<Uuid> {
    let uuid = |array: &Arc<ArrayMedium>| array.assembled().uuid();
    arrays.iter().map(uuid).collect()
}

/// An array that is looked for.
pub struct Finding {
    /// What it is to be.
    pub plan: ArrayPlan,
    /// Its members, as far as they could be opened.
    pub members: Vec<(String, Option<PlainMedium>)>,
    /// Its spares.
    pub spares: Vec<(String, Option<PlainMedium>)>,
    /// Disks that may have become members while it ran.
    pub others: Vec<(String, Option<PlainMedium>)>,
    /// The arrays that run already.
    pub running: Vec<Uuid>,
    /// How far it is, where it is made.
    pub making: Arc<Making>,
}

/// Why an array was not found.
pub struct Missed {
    /// What there is to say about it.
    pub failure: Failure,
    /// Too many of its members are away: it may be found once they are there.
    is_away: bool,
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            is_away: false,
        }
    }
}

/// An array that was found.
pub struct Found {
    assembled: Assembled,
    pub(super) tending: Tending,
}

impl Found {
    /// What all cores share of it.
    pub(super) fn assembled(&self) -> &Assembled {
        &self.assembled
    }

    /// To be opened with this memory, a region for each core.
    pub fn into_medium(self, plan: &ArrayPlan, scratch: Vec<Region>) -> ArrayMedium {
        self.assembled.set_patience(plan.patience);
        ArrayMedium {
            name: plan.name.clone(),
            pace: plan.pace,
            scrub_every: plan.scrub,
            scrubbed_at: AtomicU64::new(0),
            kept: AtomicBool::new(plan.uuid.is_some()),
            ending: AtomicBool::new(false),
            tenders: AtomicUsize::new(0),
            trouble: Mutex::new(None),
            assembled: Mutex::new(self.assembled),
            tending: Mutex::new(self.tending),
            scratch: Mutex::new(scratch.into_iter().map(Some).collect()),
        }
    }
}

impl Finding {
    /// The disks that are there, members first.
    pub(super) fn there(&self) -> Vec<Named> {
        let all = self.members.iter().chain(&self.spares).chain(&self.others);
        let there = all.filter_map(|(name, medium)| {
            let (name, medium) = (name.clone(), medium.clone()?);
            Some(Named { name, medium })
        });
        there.collect()
    }

    /// Finds it, or makes it where that is wanted.
    ///
    /// # Errors
    /// Where there is none, or it is not what is wanted.
    pub async fn find(&self, devices: &Devices, pool: &BufferPool) -> Result<Found, Missed> {
        let there = self.there();
        self.does_not_run(&there, devices, pool).await?;
        let lacks_some = self.members.iter().any(|(_, medium)| medium.is_none());
        let mut assembled = self.assemble(&there, devices, pool).await?;
        if let (Err(AssembleError::NoMember), true) = (&assembled, self.plan.create) {
            let made = self.make(devices, pool).await;
            made.map_err(|failure| Missed {
                failure,
                is_away: lacks_some,
            })?;
            assembled = self.assemble(&there, devices, pool).await?;
        }
        let mut found = match assembled {
            Ok(found) => self.look(found, &there)?,
            Err(error) => {
                let is_away = match &error {
                    AssembleError::TooFew { .. } => true,
                    AssembleError::NoMember => lacks_some,
                    _ => false,
                };
                let failure = self.cannot(&error, &there, devices, pool).await;
                return Err(Missed { failure, is_away });
            }
        };
        self.refuse_spares(&mut found, devices, pool).await;
        Ok(found)
    }

    /// An array that runs is not assembled once more under another name: the two would not know of each
    /// other's changes.
    async fn does_not_run(
        &self,
        there: &[Named],
        devices: &Devices,
        pool: &BufferPool,
    ) -> Result<(), Failure> {
        let mut wanted: Vec<Uuid> = self.plan.uuid.into_iter().collect();
        if wanted.is_empty() {
            for disk in open_all(devices, there)? {
                let said = look_at(&disk, devices, pool).await;
                wanted.extend(said.map(|superblock| superblock.array));
            }
        }
        match wanted.iter().find(|uuid| self.running.contains(uuid)) {
            None => Ok(()),
            Some(uuid) => Err(Failure::new(
                format!(
                    "array \"{}\": the array {uuid} runs already, under another name",
                    self.plan.name
                ),
                "nothing was written; `corebay array add` takes a member back that it does without",
            )),
        }
    }

    /// Makes it, and finds it.
    ///
    /// # Errors
    /// Where a disk is not free, or does not fit.
    pub async fn make_new(&self, devices: &Devices, pool: &BufferPool) -> Result<Found, Failure> {
        self.check_spares(devices, pool).await?;
        let uuid = self.make(devices, pool).await?;
        self.clear_spares(devices).await;
        let there = self.there();
        let disks = open_all(devices, &there)?;
        let assembled = assemble(disks, Some(uuid), &devices.reactor, pool).await;
        let mut found = match assembled {
            Ok(Assembly { array, report, .. }) => {
                self.look((array.assembled().clone(), report), &there)
            }
            Err(error) => Err(self.cannot(&error, &there, devices, pool).await),
        }?;
        self.refuse_spares(&mut found, devices, pool).await;
        Ok(found)
    }

    async fn cannot(
        &self,
        error: &AssembleError,
        there: &[Named],
        devices: &Devices,
        pool: &BufferPool,
    ) -> Failure {
        let name = &self.plan.name;
        let help = match error {
            AssembleError::NoMember => {
                let refused = self.refusals(there, devices, pool).await;
                match refused.is_empty() {
                    true => format!(
                        "no disk of it carries its superblock; to make it of blank disks say create \
                         = true in [[array]] \"{name}\", or `corebay array create`"
                    ),
                    false => refused.join("; "),
                }
            }
            AssembleError::TooFew { .. } => {
                let missing = self.members.iter().filter(|(_, medium)| medium.is_none());
                let missing: Vec<String> = missing
                    .map(|(name, _)| format!("disk \"{name}\": it could not be opened"))
                    .chain(self.refusals(there, devices, pool).await)
                    .chain([super::operate::TOO_FEW.to_owned()])
                    .collect();
                missing.join("; ")
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

    /// Why disks are no members, and which are stale.
    async fn refusals(&self, there: &[Named], devices: &Devices, pool: &BufferPool) -> Vec<String> {
        let Ok(disks) = open_all(devices, there) else {
            return Vec::new();
        };
        let mut said = Vec::new();
        let mut newest = 0;
        let mut found = Vec::new();
        for (disk, Named { name, .. }) in disks.iter().zip(there) {
            match look_at(disk, devices, pool).await {
                Ok(superblock) => {
                    newest = newest.max(superblock.state.generation);
                    found.push((name, superblock.state.generation));
                }
                Err(Refusal::Superblock(BadSuperblock::Absent)) => {}
                Err(refusal) => said.push(format!("disk \"{name}\": {refusal}")),
            }
        }
        let stale = found.iter().filter(|(_, generation)| *generation < newest);
        said.extend(stale.map(|(name, generation)| {
            format!("disk \"{name}\": it is of state {generation}, the array is at {newest}")
        }));
        said
    }

    async fn assemble(
        &self,
        there: &[Named],
        devices: &Devices,
        pool: &BufferPool,
    ) -> Result<Result<(Assembled, Report), AssembleError>, Failure> {
        let (disks, uuid) = (open_all(devices, there)?, self.plan.uuid);
        let reactor = &devices.reactor;
        let found = match self.plan.lose.contains(&self.plan.name) {
            true => assemble_with_stale(disks, uuid, reactor, pool).await,
            false => assemble(disks, uuid, reactor, pool).await,
        };
        Ok(found.map(|Assembly { array, report, .. }| (array.assembled().clone(), report)))
    }

    /// Says what is worth saying of an array that was found, and refuses another than is configured.
    fn look(
        &self,
        (assembled, report): (Assembled, Report),
        there: &[Named],
    ) -> Result<Found, Failure> {
        let (name, geometry) = (&self.plan.name, assembled.geometry());
        let (has, plan) = (geometry.wish(), &self.plan);
        // Legs come and go while the appliance runs, and what members say of that counts.
        let is_mirror = has.level == Level::Mirrored;
        let same_roles = has.roles == plan.roles || is_mirror;
        if !plan.as_found && (has.level != plan.level || !same_roles) {
            return Err(Failure::new(
                format!(
                    "array \"{name}\": the disks are {} of {} members, the configuration says {} of {}",
                    has.level, has.roles, plan.level, plan.roles
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
        if !report.unmade.is_empty() {
            warn!(
                "array \"{name}\": of what a crash had interrupted some blocks of stripes {:?} cannot be read in \
                 the journal: what was being written there is old or new",
                report.unmade
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
        let name = &self.plan.name;
        if u64::from(has.strip_bytes) != u64::from(self.plan.strip_bytes) {
            warn!(
                "array \"{name}\" has strips of {} bytes: what it was made with stays",
                has.strip_bytes
            );
        }
        if has.consistency != self.plan.consistency {
            let word = match has.consistency {
                Consistency::Journal => "journal",
                Consistency::DirtyRegions => "resync",
            };
            warn!("array \"{name}\" has consistency = \"{word}\": what it was made with stays");
        }
        if self
            .plan
            .zone_bytes
            .is_some_and(|zone| zone != has.zone_bytes)
        {
            warn!(
                "array \"{name}\" has a mirrored zone of {} bytes: what it was made with stays",
                has.zone_bytes
            );
        }
    }

    fn refused(&self, tending: &mut Tending, disk: &Named, refusal: Refusal) {
        let name = &self.plan.name;
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

/// What a disk says of itself, unless it does not answer.
pub(super) async fn look_at(
    disk: &PlainDisk,
    devices: &Devices,
    pool: &BufferPool,
) -> Result<Superblock, Refusal> {
    let looked = within(&devices.reactor, LOOK_TIMEOUT, examine(disk, pool)).await;
    looked.unwrap_or(Err(Refusal::Unreadable(DiskError::TimedOut)))
}

/// Opens a core's way to all these disks.
pub fn open_all(devices: &Devices, disks: &[Named]) -> Result<Vec<PlainDisk>, Failure> {
    let opened = disks.iter().map(|disk| devices.open(&disk.medium));
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

#[cfg(test)]
#[path = "arrays_tests.rs"]
mod tests;
#[cfg(test)]
pub use tests::plan_of_a_mirror;
