//! The first core's care for each array: it does what is ordered, lets spares step in, and runs one
//! sweep at a time: resync after a crash, rebuild, scrub.
//!
//! Invariants:
//! - While the array changes its shape (`reshape.rs`) no sweep begins.
//! - A resync or a rebuild waits for no scrub: that ends at its next stripe, and goes on from there once it
//!   may. How far it is outlasts the process.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use corebay_core::disk::{Disk, DiskError, Durability, Space};
use corebay_core::units::{Lba, Time};
use corebay_raid::{
    array::Array,
    assemble::{Refusal, check_returning, examine},
    create::occupant_of,
    geometry::Level,
    reshape::Change,
    state::RoleState,
    sweep::{Scrubbed, SweepError},
    within,
};
use corebay_target::{core::Core, environment::Environment};
use tracing::{info, warn};

use super::{
    arrays::{Answer, ArrayMedium, LastScrub, Named, Order, Scrubbing, Sweep, SweepKind, random},
    environment::{Devices, MachineEnvironment, PlainDisk},
};

/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_millis(100);

/// How long a sweep that failed is not begun again.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Looks after which marks of the dirty map are taken away where nothing is written any more.
const LOOKS_PER_TIDY: u32 = 50;

/// How long a resync that failed is not begun again: what it could not read may be written meanwhile. Each time
/// twice as long, up to a bound.
const AFTER_RESYNC: Duration = Duration::from_secs(60);
const AFTER_RESYNC_MAX: Duration = Duration::from_secs(3600);

/// How often it is kept how far a scrub is.
const SCRUB_KEPT: Duration = Duration::from_secs(60);

/// How long a member that returned and could not be taken back is left alone.
const RETURN_AGAIN: Duration = Duration::from_secs(10);

/// How long tasks that tend an array may take to end where the process ends.
pub const END_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a disk that is looked at may take: no order waits longer for it.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a disk that an array is to do without may take to end what was asked of it.
const QUIET_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the copies of a superblock lie, and how long they are (`raid/FORMAT.md`).
const SUPERBLOCKS: [(u64, u64); 2] = [(0, 4096), (64 << 10, 4096)];

/// What is looked at of a disk before it is taken for a member (`raid/FORMAT.md`).
const BEGINNING_BYTES: u64 = 128 << 10;

pub type MachineCore = Rc<Core<MachineEnvironment>>;
type OpenArray = Rc<Array<PlainDisk>>;

fn does_not_answer(name: &str) -> String {
    format!("the disk \"{name}\" does not answer")
}

/// Tends an array from now on. On the first core.
pub fn tend(core: &MachineCore, medium: Arc<ArrayMedium>) {
    medium.tenders.fetch_add(2, Ordering::SeqCst);
    let tender = Rc::new(Tender {
        core: core.clone(),
        medium,
        reshaping: Cell::new(false),
        resync: Again::default(),
        may_pass: Cell::new(false),
    });
    let orders = tender.clone();
    core.spawn_control(async move {
        orders.obey().await;
        orders.ended();
    });
    core.spawn_control(async move {
        tender.sweep().await;
        tender.ended();
    });
}

/// Ends the care for an array: what goes over it ends with its progress recorded, what is written is
/// durable, and nothing is marked that is in place. Where no time is given, it takes as long as it takes.
/// On the first core.
pub async fn end(
    core: &MachineCore,
    medium: &Arc<ArrayMedium>,
    time: Option<Duration>,
) -> Result<(), DiskError> {
    medium.ending.store(true, Ordering::SeqCst);
    let deadline = time.map(|time| core.reactor.now().plus(time));
    let may_wait = || deadline.is_none_or(|deadline| core.reactor.now() < deadline);
    while medium.tenders.load(Ordering::SeqCst) > 0 && may_wait() {
        // Whoever changes the shape assembles it anew.
        medium.assembled().halt_sweeps();
        core.reactor.sleep(LOOK / 10).await;
    }
    let Some(array) = core.environment.array(medium) else {
        return Ok(());
    };
    let all_durable = async {
        array.flush().await?;
        array.tidy().await.map(drop)
    };
    // Without redundancy a member that hangs is waited for by whoever uses the array.
    let ended = within(&core.reactor, END_TIMEOUT, all_durable).await;
    ended.unwrap_or(Err(DiskError::TimedOut))
}

/// Waits until no disk of an array that nobody uses any more has anything left to end: a write that
/// comes late would spoil what is made of the disk next. The disks that hang: nobody waits for them
/// longer, and they are not to be used again. On the first core.
pub async fn quiet(core: &MachineCore, medium: &Arc<ArrayMedium>) -> Vec<String> {
    let deadline = core.reactor.now().plus(QUIET_TIMEOUT);
    while medium.unquiet(None).is_some() && core.reactor.now() < deadline {
        core.reactor.sleep(LOOK / 10).await;
    }
    medium.unended()
}

/// Makes the beginning of a disk blank that nobody else gets before that has ended.
pub(super) async fn clear(devices: &Devices, by: &Named) -> Result<(), String> {
    let name = &by.name;
    let opened = devices.open(&by.medium);
    let disk = opened.map_err(|error| format!("the disk \"{name}\" cannot be opened: {error}"))?;
    let blocks = disk.info().block_size.blocks_in(BEGINNING_BYTES);
    let zeroes = disk.write_zeroes(Lba(0), blocks, Space::Keep, Durability::Durable);
    let cleared = within(&devices.reactor, DISK_TIMEOUT, zeroes).await;
    let cleared = cleared.ok_or_else(|| does_not_answer(name))?;
    cleared.map_err(|error| format!("the disk \"{name}\" cannot be cleared: {error}"))
}

pub(super) struct Tender {
    pub(super) core: MachineCore,
    pub(super) medium: Arc<ArrayMedium>,
    pub(super) reshaping: Cell<bool>,
    resync: Again,
    /// Why a member that returned was not taken back may pass by itself.
    may_pass: Cell<bool>,
}

/// When a resync that failed is begun again.
#[derive(Default)]
struct Again {
    from: Cell<Time>,
    failures: Cell<u32>,
}

impl Again {
    fn is_time(&self, now: Time) -> bool {
        now >= self.from.get()
    }

    fn failed(&self, now: Time) {
        let failures = self.failures.get().min(16);
        self.failures.set(failures + 1);
        let wait = AFTER_RESYNC * (1 << failures);
        self.from.set(now.plus(wait.min(AFTER_RESYNC_MAX)));
    }

    fn may_begin(&self) {
        self.from.set(Time(0));
    }

    fn succeeded(&self) {
        self.failures.set(0);
    }
}

impl Tender {
    fn ended(&self) {
        self.medium.tenders.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_ending(&self) -> bool {
        self.medium.ending.load(Ordering::SeqCst)
    }

    /// The array, unless it could not be assembled again.
    pub(super) fn array(&self) -> Result<OpenArray, String> {
        let open = self.core.environment.array(&self.medium);
        open.ok_or_else(|| "the array is closed: look at the log".to_owned())
    }

    /// Does what is ordered, and what has to be done without: apart from sweeps, which take long.
    async fn obey(&self) {
        let mut looks = 0;
        while !self.is_ending() {
            self.core.reactor.sleep(LOOK).await;
            self.use_spare().await;
            looks += 1;
            if looks % LOOKS_PER_TIDY == 0
                && let Ok(array) = self.array()
                && let Err(error) = array.tidy().await
            {
                warn!(array = self.medium.name, %error, "the dirty map could not be written");
            }
            self.medium.order_returns(self.core.reactor.now());
            let next = {
                let mut tending = self.medium.tending();
                let ready = |(order, _): &(Order, _)| !self.medium.has_to_wait(order);
                let place = tending.orders.iter().position(ready);
                place.and_then(|place| tending.orders.remove(place))
            };
            let Some((order, answer)) = next else {
                continue;
            };
            let returns = match &order {
                Order::Return { role, by } => Some((*role, by.clone())),
                _ => None,
            };
            let done = self.do_order(order).await;
            if let (Err(_), Some((role, by)), true) = (&done, returns, self.may_pass.take()) {
                let at = self.core.reactor.now().plus(RETURN_AGAIN);
                self.medium.tending().returns.push((at.0, role, by));
            }
            if let Err(why) = &done {
                warn!(array = self.medium.name, "{why}");
            }
            self.keep(answer, done);
        }
        let orders = std::mem::take(&mut self.medium.tending().orders);
        for (_, answer) in orders {
            let _ = answer.send(Err("the array is being stopped".to_owned()));
        }
    }

    /// Whoever ordered is answered once what has changed is kept.
    fn keep(&self, answer: Answer, done: Result<(), String>) {
        let medium = self.medium.clone();
        self.core.environment.keeper.then(move |main| {
            let kept = done.and_then(|()| main.keep_array(&medium));
            let _ = answer.send(kept);
        });
    }

    async fn do_order(&self, order: Order) -> Result<(), String> {
        let name = &self.medium.name;
        match order {
            Order::Fail { role } => {
                // The same order again has been carried out already.
                if self.medium.assembled().state().roles[role].state != RoleState::Failed {
                    self.give_up(role).await?;
                    warn!(array = name, role, "given up");
                }
                Ok(())
            }
            Order::Replace { role, by, lose } => self.replace(role, by, lose).await,
            Order::Return { role, by } => self.take_back(role, by).await,
            Order::Add { by, lose } => self.add(by, lose).await,
            Order::Spare { by, lose } => self.take_spare(by, lose).await,
            Order::Remove { role, disk } => {
                let members = self.medium.members();
                let has = members.get(role).and_then(|has| has.as_ref());
                match disk.is_some() && has.map(|has| &has.name) != disk.as_ref() {
                    // The same order before it has been carried out.
                    true => Ok(()),
                    false => self.remove(role).await,
                }
            }
            Order::Grow => self.grow().await,
        }
    }

    async fn take_back(&self, role: usize, by: Named) -> Result<(), String> {
        if self.medium.assembled().is_stopped() {
            let (array, name) = (&self.medium.name, &by.name);
            return Err(format!(
                "the disk \"{name}\" is there again, but the array \"{array}\" has stopped, as it lost more \
                 than it bears: restart corebay once all its disks are there, to assemble it again"
            ));
        }
        self.may_be_given(role)?;
        self.is_who_was_lost(role, &by).await?;
        self.give(role, Some(&by)).await?;
        let returned = self.array()?.take_back(role).await;
        returned.map_err(|error| {
            let passes = matches!(error, SweepError::StillOut | SweepError::Disk(_));
            self.may_pass.set(passes);
            format!("role {role} is not taken back: {error}")
        })?;
        let roles = self.medium.assembled().state().roles;
        let delta = match roles[role].state {
            RoleState::Rebuilding { delta: false, .. } => "it is rebuilt whole",
            _ => "what it missed is brought up to date",
        };
        info!(
            array = self.medium.name,
            role,
            disk = by.name,
            "taken back: {delta}"
        );
        self.medium.set_member(role, by);
        Ok(())
    }

    /// What a disk holds is still what the member of this role held when it was lost, or older.
    async fn is_who_was_lost(&self, role: usize, by: &Named) -> Result<(), String> {
        let (disk, assembled) = (self.open(by)?, self.medium.assembled());
        let checking = check_returning(&disk, &assembled, role, &self.core.memory.scratch);
        let checked = self.timely(checking).await;
        let unread = Err(Refusal::Unreadable(DiskError::TimedOut));
        checked.unwrap_or(unread).map_err(|why| {
            self.may_pass.set(matches!(why, Refusal::Unreadable(_)));
            let (array, name) = (&self.medium.name, &by.name);
            format!(
                "the disk \"{name}\" is not taken back as role {role}: {why}; `corebay array add {array} \
                 {name} --lose {name}` rebuilds it whole"
            )
        })
    }

    async fn add(&self, by: Named, lose: bool) -> Result<(), String> {
        let assembled = self.medium.assembled();
        let (state, name) = (assembled.state(), &self.medium.name);
        if !lose && let Some(role) = self.former_role(&by).await? {
            info!(array = name, role, disk = by.name, "returns");
            return self.take_back(role, by).await;
        }
        let mut roles = state.roles.iter();
        if let Some(role) = roles.position(|record| record.state == RoleState::Failed) {
            return self.replace(role, by, lose).await;
        }
        if assembled.geometry().wish().level != Level::Mirrored {
            return Err(format!(
                "no member of the array \"{name}\" has failed: `corebay array spare {name} {}` lets \
                 the disk step in for the next one that does",
                by.name
            ));
        }
        self.clear(&by, lose).await?;
        self.is_fit(&by).await?;
        self.reshape(Change::AddLeg).await?;
        let role = self.medium.assembled().geometry().roles() - 1;
        self.replace(role, by, false).await
    }

    async fn give_up(&self, role: usize) -> Result<(), String> {
        let failed = self.array()?.give_up(role).await;
        failed.map_err(|error| match error {
            SweepError::State(RoleState::Failed) => format!("role {role} has failed already"),
            _ => format!("role {role} stays: without it blocks would be lost"),
        })
    }

    /// The disk of a role that has failed has ended what was asked of it, or ends it soon.
    async fn is_quiet(&self, role: usize) -> bool {
        let unended = || self.medium.assembled().unended(role) > 0;
        let deadline = self.core.reactor.now().plus(QUIET_TIMEOUT);
        while unended() && self.core.reactor.now() < deadline {
            self.core.reactor.sleep(LOOK / 10).await;
        }
        !unended()
    }

    async fn replace(&self, role: usize, by: Named, lose: bool) -> Result<(), String> {
        self.may_be_given(role)?;
        // A spare steps in for a disk that hangs; but that one itself has to end what it was asked.
        let had_it = self.medium.members().get(role).cloned().flatten();
        if !self.is_quiet(role).await && had_it.is_some_and(|had| had.name == by.name) {
            return Err(format!(
                "the disk \"{}\" has not ended what was asked of it before it was given up",
                by.name
            ));
        }
        self.clear(&by, lose).await?;
        self.is_fit(&by).await?;
        self.give(role, Some(&by)).await?;
        let mut rng = random();
        let array = self.array()?;
        let replaced = array.replace(role, &mut rng, &self.core.memory.scratch);
        if let Err(error) = replaced.await {
            let help = match error {
                SweepError::Occupied(_) => {
                    format!("; --lose {} says that its content may be lost", by.name)
                }
                _ => String::new(),
            };
            return Err(format!(
                "the disk \"{}\" does not become role {role}: {error}{help}",
                by.name
            ));
        }
        info!(array = self.medium.name, role, disk = by.name, "replaced");
        self.medium.set_member(role, by);
        Ok(())
    }

    async fn remove(&self, role: usize) -> Result<(), String> {
        let geometry = self.medium.assembled().geometry();
        if geometry.wish().level == Level::Mirrored {
            return self.remove_leg(role).await;
        }
        let state = self.medium.assembled().state();
        if state.roles[role].state != RoleState::Failed {
            self.give_up(role).await?;
        }
        if !self.is_quiet(role).await {
            return Err(format!(
                "role {role} is given up, but its disk has not ended what was asked of it: it stays \
                 with the array until it has, or is pulled out"
            ));
        }
        self.give(role, None).await?;
        self.medium.clear_member(role);
        warn!(array = self.medium.name, role, "removed");
        Ok(())
    }

    /// A leg that was good says so for good: started with that disk alone, the array would go on from it,
    /// with what was its content by then. So it loses its superblocks, and keeps its data.
    async fn remove_leg(&self, role: usize) -> Result<(), String> {
        let state = self.medium.assembled().state();
        let was_good = state
            .roles
            .get(role)
            .is_some_and(|r| r.state != RoleState::Failed);
        let disk = self.medium.members().get(role).cloned().flatten();
        self.reshape(Change::RemoveLeg { role }).await?;
        if let Some(disk) = &disk {
            self.medium.tending().does_without(disk.name.clone());
        }
        if let Some(disk) = disk.filter(|_| was_good)
            && let Err(why) = self.blank(&disk, &SUPERBLOCKS).await
        {
            return Err(format!(
                "the leg is removed, but its superblock stays: {why}; do not start with that disk alone"
            ));
        }
        Ok(())
    }

    /// The role that a disk had, if it had one. What else lies on it is looked at when it is taken.
    async fn former_role(&self, by: &Named) -> Result<Option<usize>, String> {
        let disk = self.open(by)?;
        let said = self.timely(examine(&disk, &self.core.memory.scratch)).await;
        let said = said.ok_or_else(|| does_not_answer(&by.name))?;
        let assembled = self.medium.assembled();
        let Ok(said) = said else {
            return Ok(None);
        };
        match assembled.state().role_of(said.member) {
            Some(role) if said.array == assembled.uuid() => Ok(Some(role)),
            None if said.array == assembled.uuid() => Err(format!(
                "the array does without the disk \"{0}\" for good: it was removed or replaced; --lose \
                 {0} says that its content may be lost",
                by.name
            )),
            _ => Ok(None),
        }
    }

    async fn timely<T>(&self, looking: impl Future<Output = T>) -> Option<T> {
        within(&self.core.reactor, DISK_TIMEOUT, looking).await
    }

    fn open(&self, by: &Named) -> Result<PlainDisk, String> {
        let opened = self.core.environment.devices.open(&by.medium);
        opened.map_err(|error| format!("the disk \"{}\" cannot be opened: {error}", by.name))
    }

    /// Makes the beginning of a disk blank whose content may be lost.
    pub(super) async fn clear(&self, by: &Named, lose: bool) -> Result<(), String> {
        match lose {
            true => self.blank(by, &[(0, BEGINNING_BYTES)]).await,
            false => Ok(()),
        }
    }

    /// Zeroes parts of a disk. It takes no longer than any other order; where the disk does, it is free for
    /// nobody before it has ended.
    async fn blank(&self, by: &Named, parts: &[(u64, u64)]) -> Result<(), String> {
        let (disk, parts, name) = (self.open(by)?, parts.to_vec(), by.name.clone());
        let ended: Rc<Cell<Option<Result<(), DiskError>>>> = Rc::default();
        let (medium, tell) = (self.medium.clone(), ended.clone());
        medium.tending().blanking.push(name.clone());
        self.core.spawn_control(async move {
            let (size, mut blanked) = (disk.info().block_size, Ok(()));
            for (at, bytes) in parts {
                let (at, blocks) = (Lba(size.blocks_in(at)), size.blocks_in(bytes));
                let zeroes = disk.write_zeroes(at, blocks, Space::Keep, Durability::Durable);
                blanked = blanked.and(zeroes.await);
            }
            medium.tending().blanking.retain(|known| *known != name);
            tell.set(Some(blanked));
        });
        let deadline = self.core.reactor.now().plus(DISK_TIMEOUT);
        while ended.get().is_none() && self.core.reactor.now() < deadline {
            self.core.reactor.sleep(LOOK / 50).await;
        }
        let blanked = ended.get().ok_or_else(|| does_not_answer(&by.name))?;
        blanked.map_err(|error| format!("the disk \"{}\" cannot be cleared: {error}", by.name))
    }

    /// A disk can be a member, and is blank.
    pub(super) async fn is_fit(&self, by: &Named) -> Result<(), String> {
        let (disk, geometry) = (self.open(by)?, self.medium.assembled().geometry());
        let (info, name) = (disk.info(), &by.name);
        let needs = geometry.member_bytes();
        if info.block_size != geometry.block_size() {
            let size = info.block_size;
            return Err(format!("the disk \"{name}\" has blocks of {size} bytes"));
        }
        if info.bytes() < needs {
            let bytes = info.bytes();
            return Err(format!(
                "the disk \"{name}\" is too small: it has {bytes} bytes, {needs} are needed"
            ));
        }
        let occupant = self.timely(occupant_of(&disk, &self.core.memory.scratch));
        let occupant = occupant.await.ok_or_else(|| does_not_answer(name))?;
        match occupant.map_err(|error| format!("the disk \"{name}\": {error}"))? {
            None => Ok(()),
            Some(by) => Err(format!(
                "the disk \"{name}\" is not free: {by}; --lose {name} says that its content may be lost"
            )),
        }
    }

    fn may_be_given(&self, role: usize) -> Result<(), String> {
        let state = self.medium.assembled().state();
        match state.roles.get(role).map(|record| record.state) {
            Some(RoleState::Failed) => Ok(()),
            Some(_) => Err(format!(
                "role {role} has a member that has not failed; `corebay array fail` gives it up"
            )),
            None => Err(format!("there is no role {role}")),
        }
    }

    /// Every core has this disk, or none, for a role from now on.
    async fn give(&self, role: usize, by: Option<&Named>) -> Result<(), String> {
        self.may_be_given(role)?;
        let (medium, plain) = (self.medium.clone(), by.map(|by| by.medium.clone()));
        let opened = self.core.call_all(move |core, reply| {
            let environment = &core.environment;
            let disk = plain.as_ref().map(|plain| environment.devices.open(plain));
            let opened = disk.transpose().and_then(|disk| {
                let array = environment.array(&medium).ok_or(DiskError::Gone)?;
                array.set_member(role, disk);
                Ok(())
            });
            reply.send(core, opened);
        });
        let opened: Result<Vec<()>, DiskError> = opened.await.into_iter().collect();
        let name = by.map_or("", |by| &by.name);
        opened.map_err(|error| format!("the disk \"{name}\" cannot be opened: {error}"))?;
        Ok(())
    }

    /// A spare steps in for the first role whose member failed.
    async fn use_spare(&self) {
        let assembled = self.medium.assembled();
        let state = assembled.state();
        if state.is_whole() || assembled.is_stopped() {
            return;
        }
        let failed = |record: &corebay_raid::state::RoleRecord| record.state == RoleState::Failed;
        let Some(role) = state.roles.iter().position(failed) else {
            return;
        };
        let spare = {
            let mut tending = self.medium.tending();
            let returning = |(order, _): &(Order, _)| {
                let returns = matches!(order, Order::Return { .. } | Order::Add { .. });
                returns && !self.medium.has_to_wait(order)
            };
            match tending.spares.is_empty() || tending.orders.iter().any(returning) {
                true => return,
                false => tending.spares.remove(0),
            }
        };
        info!(
            array = self.medium.name,
            role,
            disk = spare.name,
            "a spare steps in"
        );
        let by = spare.clone();
        if let Err(why) = self.replace(role, by, false).await {
            warn!(array = self.medium.name, "{why}");
            let mut tending = self.medium.tending();
            tending.unfit_spares.push(spare.name.clone());
            tending.refused.push((spare, why));
        }
        let (answer, _) = std::sync::mpsc::channel();
        self.keep(answer, Ok(()));
    }

    async fn sweep(&self) {
        while !self.is_ending() {
            if let Some((kind, from)) = self.next_sweep() {
                self.run(kind, from).await;
            }
            self.core.reactor.sleep(LOOK).await;
        }
    }

    fn next_sweep(&self) -> Option<(SweepKind, u64)> {
        let assembled = self.medium.assembled();
        if self.reshaping.get() {
            return None;
        }
        let state = assembled.state();
        let roles = state.roles.iter().enumerate();
        let rebuilding = roles.filter_map(|(role, record)| match record.state {
            RoleState::Rebuilding { stripes, .. } => Some((role, stripes)),
            _ => None,
        });
        // Who has stripes that could not be made comes after the others, which may supply them.
        let lost = assembled.lost_stripes();
        let wanting = |(role, _): &(usize, u64)| lost.iter().any(|(of, _)| of == role);
        let rebuilding = rebuilding.min_by_key(wanting);
        let is_time = self.resync.is_time(self.core.reactor.now());
        // One that waits for the rebuild does not go before it.
        let is_due = assembled.needs_resync() && !assembled.resync_waits();
        if is_due && is_time && !assembled.is_stopped() {
            return Some((SweepKind::Resync, 0));
        }
        if let Some((role, from)) = rebuilding.filter(|_| !assembled.is_stopped()) {
            return Some((SweepKind::Rebuild(role), from));
        }
        let mut tending = self.medium.tending();
        if tending.scrubbing.is_none() && state.is_whole() && self.scrub_is_due() {
            tending.scrubbing = Some(Scrubbing::default());
        }
        let from = tending.scrubbing.as_ref()?.found.done;
        drop(tending);
        self.may_scrub().then_some((SweepKind::Scrub, from))
    }

    /// What is to be rebuilt comes first, and where strips of a stripe with parity are missing there is
    /// nothing to compare: a scrub waits.
    fn may_scrub(&self) -> bool {
        let assembled = self.medium.assembled();
        let state = assembled.state();
        let mut roles = state.roles.iter();
        let rebuilding = roles.any(|role| matches!(role.state, RoleState::Rebuilding { .. }));
        let compares = state.is_whole() || assembled.geometry().parity() == 0;
        compares && !rebuilding && !self.reshaping.get() && !self.is_ending()
    }

    fn scrub_is_due(&self) -> bool {
        let Some(every) = self.medium.scrub_every else {
            return false;
        };
        let last = self.medium.scrubbed_at.load(Ordering::Relaxed);
        self.unix_seconds() >= last.saturating_add(every.as_secs())
    }

    fn unix_seconds(&self) -> u64 {
        self.core.environment.wall_clock_ms() / 1000
    }

    async fn run(&self, kind: SweepKind, from: u64) {
        let (name, since) = (&self.medium.name, self.core.reactor.now());
        let Ok(array) = self.array() else {
            return;
        };
        self.medium.tending().sweep = Some(Sweep {
            kind: kind.clone(),
            since,
            from,
        });
        let pace = self.medium.pace;
        let outcome = match kind {
            SweepKind::Resync | SweepKind::Grow => array.resync(pace).await,
            SweepKind::Rebuild(role) => {
                info!(array = name, role, from, "rebuild");
                array.rebuild(role, pace).await
            }
            SweepKind::Scrub => {
                info!(array = name, from, "scrub");
                self.scrub(&array).await
            }
        };
        self.medium.tending().sweep = None;
        match (&kind, outcome) {
            (SweepKind::Resync, outcome) => self.resync_ended(outcome),
            // What could not be read without the member may be.
            (SweepKind::Rebuild(_), Ok(())) => self.resync.may_begin(),
            _ => {}
        }
        match (outcome, kind) {
            (Ok(()), SweepKind::Rebuild(role)) => info!(array = name, role, "rebuilt"),
            (Ok(()), _) | (Err(SweepError::Halted), _) => {}
            (Err(error), kind) => {
                warn!(array = name, ?kind, %error, "ended early");
                drop(array);
                let deadline = self.core.reactor.now().plus(AFTER_FAILURE);
                while !self.is_ending() && self.core.reactor.now() < deadline {
                    self.core.reactor.sleep(LOOK).await;
                }
            }
        }
    }

    fn resync_ended(&self, outcome: Result<(), SweepError>) {
        match outcome {
            // Where it is still due it waits for a member, and has not seen all.
            Ok(()) if self.medium.assembled().needs_resync() => {}
            Ok(()) => {
                self.resync.succeeded();
                self.medium.tending().resync_lost = None;
            }
            Err(error) => {
                self.resync.failed(self.core.reactor.now());
                if let SweepError::Lost { stripe } = error {
                    self.medium.tending().resync_lost = Some(stripe);
                }
            }
        }
    }

    /// Goes on with the scrub until it has come to its end, or something goes before it.
    async fn scrub(&self, array: &OpenArray) -> Result<(), SweepError> {
        loop {
            let begun = self.medium.tending().scrubbing.clone();
            let Some(begun) = begun else { return Ok(()) };
            let since = self.core.reactor.now();
            let until = since.plus(SCRUB_KEPT);
            let goes_on = || {
                let is_wanted = self.medium.tending().scrubbing.is_some();
                is_wanted && self.may_scrub() && self.core.reactor.now() < until
            };
            let from = begun.found.done;
            let outcome = array.scrub_on(self.medium.pace, begun.found, goes_on).await;
            let took = begun.took + self.core.reactor.now().since(since);
            let stripes = array.assembled().geometry().stripes();
            match outcome {
                Ok(found) if found.done < stripes => {
                    let moved = found.done > from;
                    if let Some(scrubbing) = &mut self.medium.tending().scrubbing {
                        *scrubbing = Scrubbing { found, took };
                    }
                    self.keep_scrub();
                    if !moved || !self.may_scrub() {
                        return Ok(());
                    }
                }
                ended => {
                    self.scrub_ended(&ended, took);
                    return ended.map(drop);
                }
            }
        }
    }

    fn scrub_ended(&self, outcome: &Result<Scrubbed, SweepError>, took: Duration) {
        if let Ok(found) = outcome {
            let (mismatches, lost) = (found.mismatch_count, found.lost.len());
            info!(array = self.medium.name, mismatches, lost, "scrubbed");
        }
        let last = LastScrub {
            at_unix: self.unix_seconds(),
            seconds: took.as_secs(),
            outcome: outcome.clone().map_err(|error| error.to_string()),
        };
        let at = &self.medium.scrubbed_at;
        at.store(last.at_unix, Ordering::Relaxed);
        let mut tending = self.medium.tending();
        tending.scrubbing = None;
        tending.scrubbed = Some(last);
        drop(tending);
        self.keep_scrub();
    }

    fn keep_scrub(&self) {
        let medium = self.medium.clone();
        let keep = move |main: &mut super::run::Main| main.keep_scrub(&medium);
        self.core.environment.keeper.then(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resync_that_fails_is_begun_again_ever_more_rarely() {
        let (again, mut now) = (Again::default(), Time(5));
        assert!(again.is_time(now));
        let mut waits = Vec::new();
        for _ in 0..40 {
            again.failed(now);
            let from = now;
            while !again.is_time(now) {
                now = now.plus(Duration::from_secs(30));
            }
            waits.push(now.since(from).as_secs());
        }
        assert_eq!(waits[..8], [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert!(waits[8..].iter().all(|wait| *wait == 3600));
        again.succeeded();
        again.failed(now);
        assert!(again.is_time(now.plus(AFTER_RESYNC)));
    }
}
