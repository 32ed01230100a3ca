//! The pools on their home core: opening them, finding volumes, and looking after them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use corebay_core::{buffer::BufferPool, disk::DiskInfo, mesh::Wakeups};
use corebay_lvol::{
    CheckReport, CreateOptions, Export, Identity, ImportOptions, Owner, Pool, PoolContext,
    PoolCore, PoolDisk, PoolLabel, SpaceLevel, Thresholds, VolumeId,
    error::PoolError,
    format::page::{Kind, VolumeRecord},
};
use corebay_raid::create::occupant_of;
use corebay_target::{
    controller::Event,
    core::Core,
    fabrics::report,
    namespace::Live,
    subsystem::{Access, Spare, Subsystem, SubsystemId},
};
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    KnownPool, NamedVolume, PoolBook, PoolMemory,
    exports::Attached,
    streams::{IMPORTING, Work},
    turns::{Promised, Turns},
};
use crate::appliance::{
    control::RpcError,
    environment::{Floor, MachineEnvironment, Medium},
};

/// How often sizes and use are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What the volume ends with that an appliance without a configuration is making.
pub const BEGUN: &str = ".begun";

/// Why a pool is not opened that there is no memory for.
pub const NO_MEMORY: &str = "there is no memory for another pool: raise reactor.memory, or restart";

pub type MachineCore = Rc<Core<MachineEnvironment>>;

/// A pool that is to be opened.
#[derive(Clone)]
pub struct Opening {
    /// The disk or array that it lies on.
    pub on: String,
    /// What that is opened from.
    pub medium: Medium,
    /// The name of a new pool, and of a pool that cannot be opened.
    pub name: String,
    /// Where the disk is blank, the pool is made.
    pub create: bool,
    /// How full it may be, in percent, before that is told and before it is urgent; else as it keeps.
    pub thresholds: (Option<u8>, Option<u8>),
    /// It is taken from a machine that has not released it.
    pub force: bool,
    /// The volume that a new pool begins with, and its bytes.
    pub first_volume: Option<(String, u64)>,
    /// It was added while the process ran.
    pub added: bool,
}

/// A pool that is open.
pub struct OpenPool {
    /// The pool.
    pub pool: Pool<Floor>,
    /// What it lies on.
    pub on: String,
    /// What that is.
    pub info: DiskInfo,
    /// What is exported of it.
    pub attached: RefCell<BTreeMap<VolumeId, Attached>>,
    /// Its disk was lost: it is opened anew once that is there again.
    pub is_lost: Cell<bool>,
    /// How full it was when it was last looked at.
    level: Cell<SpaceLevel>,
    /// Somebody waits for its turn to look what the configuration says.
    pub is_change_awaited: Cell<bool>,
    /// What one of its volumes takes is being found out.
    pub is_measured: Cell<bool>,
    pub memory: BufferPool,
}

/// The pools, on their home core.
pub struct Home {
    /// The core.
    pub core: MachineCore,
    /// The pools that are open.
    pub pools: RefCell<Vec<Rc<OpenPool>>>,
    /// What all threads know of them.
    pub book: PoolBook,
    /// Held by whoever changes something of a pool.
    pub turns: Turns,
    /// Subsystems that were made for exports.
    pub made: RefCell<BTreeSet<SubsystemId>>,
    /// What is exported unless something else is said.
    pub usual: RefCell<Option<Arc<Subsystem<Medium>>>>,
    /// Volumes that the configuration names.
    pub named: RefCell<Vec<NamedVolume>>,
    /// What was open in time at the start has been shown: who is late does not come between.
    pub is_shown: Cell<bool>,
    /// Of pools that may still be opened.
    pub memory: RefCell<Vec<BufferPool>>,
    /// Pools that could not be opened at the start.
    pub closed: RefCell<Vec<Opening>>,
    /// What takes long and is under way.
    pub work: RefCell<Vec<Rc<Work>>>,
    /// The appliance, as its pools know it.
    pub owner: Owner,
}

/// A volume whose pool says how it is exported.
pub struct KeptExport {
    /// Its pool's identity.
    pub pool: [u8; 16],
    /// The volume.
    pub id: VolumeId,
    /// How it is exported.
    pub export: Export,
}

impl Home {
    /// The home of all pools on this core.
    pub fn start(
        core: &MachineCore,
        memory: PoolMemory,
        book: PoolBook,
        owner: Owner,
        usual: Option<Arc<Subsystem<Medium>>>,
    ) -> Rc<Self> {
        let home = Rc::new(Self {
            core: core.clone(),
            pools: RefCell::default(),
            book,
            turns: Turns::new(),
            made: RefCell::default(),
            is_shown: Cell::new(false),
            usual: RefCell::new(usual),
            named: RefCell::default(),
            memory: RefCell::new(memory.into_pools()),
            closed: RefCell::default(),
            work: RefCell::default(),
            owner,
        });
        *core.environment.pools.borrow_mut() = Some(home.clone());
        let tending = home.clone();
        core.spawn_control(async move {
            loop {
                tending.core.reactor.sleep(LOOK).await;
                tending.look();
            }
        });
        home
    }

    /// What a pool that could not be opened would be opened from; without a name, of the only pool there is.
    pub fn closed(&self, name: Option<&str>) -> Option<Opening> {
        let closed = self.closed.borrow();
        match (name, closed.as_slice()) {
            (Some(name), all) => all.iter().find(|opening| opening.name == name).cloned(),
            (None, [only]) if self.pools.borrow().is_empty() => Some(only.clone()),
            (None, _) => None,
        }
    }

    /// Checks a pool that could not be opened. Nothing is written.
    ///
    /// # Errors
    /// Where its disk cannot be opened.
    pub async fn check_closed(
        &self,
        opening: &Opening,
    ) -> Result<Result<CheckReport, PoolError>, RpcError> {
        let floor = self.core.environment.open_pool_disk(&opening.medium);
        let floor = floor.map_err(|error| RpcError::refused(error.to_string()))?;
        let check = async |context: &PoolContext| corebay_lvol::check(context, floor).await;
        let checked = self.with_memory(check).await;
        checked.ok_or_else(no_memory)
    }

    /// Works on a pool that is not open, with the memory of one that may still be opened; `None` where
    /// there is none.
    pub async fn with_memory<T>(&self, work: impl AsyncFnOnce(&PoolContext) -> T) -> Option<T> {
        let memory = self.memory.borrow_mut().pop()?;
        let context = PoolContext {
            reactor: self.core.reactor.clone(),
            buffers: memory.clone(),
        };
        let done = work(&context).await;
        self.memory.borrow_mut().push(memory);
        Some(done)
    }

    /// Opens a pool, or makes it where that is asked and its disk is blank.
    pub async fn open(&self, opening: &Opening) -> Result<Rc<OpenPool>, String> {
        let memory = self.memory.borrow_mut().pop();
        let memory = memory.ok_or(NO_MEMORY)?;
        let opened = self.open_in(opening, &memory).await;
        if opened.is_err() {
            self.memory.borrow_mut().push(memory);
        }
        opened
    }

    /// The same with this memory, which is the pool's from then on.
    pub async fn open_in(
        &self,
        opening: &Opening,
        memory: &BufferPool,
    ) -> Result<Rc<OpenPool>, String> {
        let context = PoolContext {
            reactor: self.core.reactor.clone(),
            buffers: memory.clone(),
        };
        let mut promise = None;
        if let Some(label) = self.probe(&context, opening).await {
            // As no other order opens one of its identity, one that is not open now is not later either.
            promise = self.turns.promise(Promised::Pool(label.uuid));
            if promise.is_none() {
                let problem = "another order is opening a pool of its UUID: one of them is a copy";
                return Err(problem.to_owned());
            }
            if let Some(open) = self.by_uuid(&label.uuid)
                && !open.pool.status().failed
            {
                return Err(format!(
                    "the pool of its UUID is open already, on \"{}\": one of them is a copy",
                    open.on
                ));
            }
        }
        let pool = self.open_with(opening, memory).await?;
        let name = pool.pool.name();
        let mut known = self.book.pools();
        known.retain(|known| known.on != opening.on);
        known.push(KnownPool {
            name: name.clone(),
            on: opening.on.clone(),
            problem: None,
            is_opening: false,
            added: opening.added,
        });
        self.closed.borrow_mut().retain(|old| old.on != opening.on);
        info!(pool = name, on = opening.on, "open");
        tell_leftovers(&pool);
        self.pools.borrow_mut().push(pool.clone());
        drop(promise);
        Ok(pool)
    }

    /// What is told of the pool on a disk, if one is and there is memory to look with. Nothing is written.
    pub async fn label(&self, opening: &Opening) -> Option<PoolLabel> {
        let look = async |context: &PoolContext| self.probe(context, opening).await;
        self.with_memory(look).await?
    }

    /// The same with this memory.
    pub async fn label_by(&self, opening: &Opening, memory: &BufferPool) -> Option<PoolLabel> {
        let context = PoolContext {
            reactor: self.core.reactor.clone(),
            buffers: memory.clone(),
        };
        self.probe(&context, opening).await
    }

    async fn probe(&self, context: &PoolContext, opening: &Opening) -> Option<PoolLabel> {
        let floor = self.core.environment.open_floor(&opening.medium).ok()?;
        corebay_lvol::probe(context, floor).await.ok()
    }

    /// Whether this appliance has the pool.
    pub fn is_ours(&self, label: &PoolLabel) -> bool {
        let owner = label.owner.as_ref();
        owner.is_some_and(|owner| owner.id == self.owner.id)
    }

    async fn open_with(
        &self,
        opening: &Opening,
        memory: &BufferPool,
    ) -> Result<Rc<OpenPool>, String> {
        let floor = |what: &str| {
            let opened = self.core.environment.open_pool_disk(&opening.medium);
            opened.map_err(|error| format!("{what}: {error}"))
        };
        let context = PoolContext {
            reactor: self.core.reactor.clone(),
            buffers: memory.clone(),
        };
        let import = ImportOptions {
            owner: Some(self.owner.clone()),
            force: opening.force,
        };
        let disk = floor("its disk cannot be opened")?;
        let found = Pool::import_as(&context, disk, &import).await;
        let pool = match found {
            Ok(pool) => pool,
            Err(PoolError::NotAPool) if opening.create => {
                let disk = floor("its disk cannot be opened")?;
                self.make(opening, &context, disk).await?
            }
            Err(PoolError::NotAPool) => {
                return Err(format!(
                    "there is no pool on \"{}\"; to make one where it is blank, say create = true \
                     in [[pool]], or `corebay pool create`",
                    opening.on
                ));
            }
            Err(error @ PoolError::Foreign(_)) => {
                return Err(format!(
                    "{error}; where it certainly does not any more, `corebay pool import --force` \
                     takes it"
                ));
            }
            Err(error @ PoolError::Corrupt(_)) => {
                return Err(format!(
                    "{error}; `corebay pool check --offline PATH` says what it finds, once no \
                     appliance uses the file or device"
                ));
            }
            Err(error) => return Err(error.to_string()),
        };
        let before = pool.thresholds();
        let wanted = Thresholds {
            warning_percent: opening.thresholds.0.unwrap_or(before.warning_percent),
            critical_percent: opening.thresholds.1.unwrap_or(before.critical_percent),
            ..before
        };
        if wanted != before
            && let Err(error) = pool.set_thresholds(&wanted).await
        {
            warn!(
                pool = opening.name,
                "its thresholds stay as they are: {error}"
            );
        }
        if let Err(problem) = self.open_everywhere(&pool, opening).await {
            // Nobody has it open.
            let _ = pool.close().await;
            return Err(problem);
        }
        Ok(Rc::new(OpenPool {
            pool,
            on: opening.on.clone(),
            info: opening.medium.info(),
            attached: RefCell::default(),
            is_lost: Cell::new(false),
            level: Cell::new(SpaceLevel::default()),
            is_change_awaited: Cell::new(false),
            is_measured: Cell::new(false),
            memory: memory.clone(),
        }))
    }

    /// Makes a pool, where its disk is blank.
    async fn make(
        &self,
        opening: &Opening,
        context: &PoolContext,
        disk: PoolDisk<Floor>,
    ) -> Result<Pool<Floor>, String> {
        match occupant_of(&disk.disk, &context.buffers).await {
            Ok(None) => {}
            Ok(Some(by)) => {
                let on = &opening.on;
                return Err(format!("\"{on}\" is not blank, and is left as it is: {by}"));
            }
            Err(error) => return Err(format!("its disk cannot be read: {error}")),
        }
        let options = CreateOptions {
            name: opening.name.clone(),
            uuid: *Uuid::new_v4().as_bytes(),
            journal_bytes: None,
        };
        let made = Pool::create_as(context, disk, &options, &self.owner).await;
        let made = made.map_err(|error| error.to_string())?;
        info!(pool = opening.name, on = opening.on, "made");
        Ok(made)
    }

    /// Every core gets a way to a pool.
    async fn open_everywhere(&self, pool: &Pool<Floor>, opening: &Opening) -> Result<(), String> {
        let handle = pool.share(self.core.count(), Wakeups::Eventfd);
        let handle = handle.map_err(|error| format!("not all cores can share it: {error}"))?;
        let (home, uuid, medium) = (self.core.id(), pool.uuid(), opening.medium.clone());
        let own = (uuid, pool.core().clone());
        self.core.environment.pool_cores.borrow_mut().push(own);
        let opened = self.core.call_all(move |core, reply| {
            let environment = &core.environment;
            let opened = match core.id() == home {
                true => Ok(()),
                false => environment
                    .open_floor(&medium)
                    .map_err(PoolError::from)
                    .and_then(|floor| PoolCore::open(&handle, &core.reactor, floor))
                    .map(|opened| environment.pool_cores.borrow_mut().push((uuid, opened))),
            };
            reply.send(core, opened.map_err(|error| error.to_string()));
        });
        let opened: Result<Vec<()>, String> = opened.await.into_iter().collect();
        if let Err(problem) = opened {
            self.close_everywhere(uuid).await;
            return Err(format!("not every core can open it: {problem}"));
        }
        Ok(())
    }

    /// No core has a way to a pool any more.
    pub async fn close_everywhere(&self, uuid: [u8; 16]) {
        let closed = self.core.call_all(move |core, reply| {
            let mut cores = core.environment.pool_cores.borrow_mut();
            cores.retain(|(known, _)| *known != uuid);
            drop(cores);
            reply.send(core, ());
        });
        closed.await;
    }

    /// The pool is closed: its memory is for another one.
    pub async fn forget(&self, pool: &Rc<OpenPool>) {
        self.close_everywhere(pool.pool.uuid()).await;
        self.pools
            .borrow_mut()
            .retain(|known| !Rc::ptr_eq(known, pool));
        self.book.pools().retain(|known| known.on != pool.on);
        self.memory.borrow_mut().push(pool.memory.clone());
    }

    /// Makes the volume that an appliance without a configuration begins with, and exports it.
    ///
    /// 1. It is made under another name. A crash before leaves a pool in which nothing ever happened:
    ///    the next start begins again.
    /// 2. Its export is kept. A crash before leaves the other name: the next start goes on here.
    /// 3. It gets its name. From then on it is its operator's, who may delete it for good.
    pub async fn first_volume(&self, pool: &OpenPool, opening: &Opening) -> Result<(), PoolError> {
        let Some((name, bytes)) = &opening.first_volume else {
            return Ok(());
        };
        let begun = format!("{name}{BEGUN}");
        let id = match pool.pool.find(&begun) {
            Some(id) => id,
            None if !pool.pool.is_pristine() => return Ok(()),
            None => {
                let identity = Identity {
                    name: begun,
                    uuid: *Uuid::new_v4().as_bytes(),
                };
                let blocks = pool.info.block_size.blocks_in(*bytes);
                pool.pool.create_volume(&identity, blocks, false).await?
            }
        };
        let usual = self.usual.borrow().clone();
        if let Some(subsystem) = usual {
            let export = Export {
                subsystem: subsystem.names.nqn.to_string(),
                serial: subsystem.names.serial.clone(),
                nsid: 1,
                allow_any_host: subsystem.access() == Access::Any,
                hosts: Vec::new(),
            };
            pool.pool.set_export(id, Some(&export)).await?;
        }
        pool.pool.rename(id, name).await
    }

    /// The open pool of this name, or of this UUID.
    pub fn find(&self, name: &str) -> Option<Rc<OpenPool>> {
        let pools = self.pools.borrow();
        let called = pools.iter().find(|pool| pool.pool.name() == name).cloned();
        drop(pools);
        called.or_else(|| self.by_uuid(Uuid::parse_str(name).ok()?.as_bytes()))
    }

    /// The open pool of this identity.
    pub fn by_uuid(&self, uuid: &[u8; 16]) -> Option<Rc<OpenPool>> {
        let pools = self.pools.borrow();
        pools.iter().find(|pool| pool.pool.uuid() == *uuid).cloned()
    }

    /// The open pool on this disk or array.
    pub fn open_on(&self, disk: &str) -> Option<Rc<OpenPool>> {
        let pools = self.pools.borrow();
        pools.iter().find(|pool| pool.on == disk).cloned()
    }

    /// Looks at sizes and use: of what is exported, and of each pool.
    fn look(&self) {
        let mut spare: BTreeMap<SubsystemId, (Arc<Subsystem<Medium>>, Spare, bool)> =
            BTreeMap::new();
        for pool in self.pools.borrow().iter() {
            let status = pool.pool.status();
            let low = status.level >= SpaceLevel::Warning;
            let before = pool.level.replace(status.level);
            let is_worse = low && status.level > before;
            if status.level != before {
                let (name, used_percent) = (pool.pool.name(), status.used_percent);
                match status.level {
                    SpaceLevel::Normal => info!(pool = name, used_percent, "enough space again"),
                    SpaceLevel::Full => warn!(pool = name, "full: writes that need space fail"),
                    level => warn!(pool = name, used_percent, ?level, "little space is left"),
                }
            }
            let threshold_percent = 100 - pool.pool.thresholds().warning_percent;
            let this = Spare {
                percent: 100 - status.used_percent.min(100),
                threshold_percent,
                low,
            };
            for (id, attached) in pool.attached.borrow().iter() {
                let live = &attached.medium.live;
                let _ = (pool.pool).with_volume(*id, |record| refresh(live, *id, record, pool));
                let subsystem = &attached.subsystem;
                let entry = spare.entry(subsystem.id);
                let (_, least, told) = entry.or_insert_with(|| (subsystem.clone(), this, false));
                *told |= is_worse;
                if (this.low, least.percent) > (least.low, this.percent) {
                    *least = this;
                }
            }
        }
        // Hosts hear of each threshold: of the second and of the end as of the first.
        for (subsystem, spare, is_worse) in spare.into_values() {
            if subsystem.set_spare(spare) || is_worse {
                for controller in subsystem.controllers() {
                    report(&self.core, &controller, Event::SpareBelowThreshold);
                }
            }
        }
    }
}

/// What a pool says is exported and is not yet.
pub fn kept_exports(pool: &Rc<OpenPool>) -> Vec<KeptExport> {
    let attached = pool.attached.borrow();
    let exports = pool.pool.exports().into_iter();
    let missing = exports.filter(|(id, ..)| !attached.contains_key(id));
    let pool = pool.pool.uuid();
    missing
        .map(|(id, _, export)| KeptExport { pool, id, export })
        .collect()
}

/// What an import of an image that did not end has left takes space.
fn tell_leftovers(pool: &OpenPool) {
    for (_, record) in pool.pool.volumes() {
        if record.kind == Kind::Volume && record.name.ends_with(IMPORTING) {
            warn!(
                pool = pool.pool.name(),
                volume = record.name,
                "an import of an image did not end: import it again, or `corebay volume delete` this"
            );
        }
    }
}

/// Brings what hosts are told of a volume up to date.
pub fn refresh(live: &Live, id: VolumeId, record: &VolumeRecord, pool: &OpenPool) {
    let Ok(space) = pool.pool.namespace_space(id) else {
        return;
    };
    live.blocks.store(space.size, Ordering::Relaxed);
    live.capacity.store(space.capacity, Ordering::Relaxed);
    live.used.store(space.used, Ordering::Relaxed);
    live.thin.store(space.thin, Ordering::Relaxed);
    let read_only = record.read_only || record.kind == Kind::Snapshot;
    live.read_only.store(read_only, Ordering::Relaxed);
}

/// There is none for a pool that is only worked on.
pub fn no_memory() -> RpcError {
    RpcError::refused("there is no memory for it now")
}
