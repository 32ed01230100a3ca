//! What a target does before its cores start: it finds what lies beneath its namespaces. And, before
//! a world begins, what somebody did to have it there.
//!
//! Invariant: a boot has a reactor of its own, and its own way to the disks, which ends with it.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use corebay_core::{
    arena::Arena,
    dma::DmaRegion,
    reactor::Reactor,
    rng::Rng,
    units::{CoreId, Time},
};
use corebay_nvme::{
    emulated::{Emulated, EmulatedDevice},
    pcie::{Controller, DmaWindows, DriverOptions},
};
use corebay_raid::{
    assemble::{Assembly, Refusal, assemble},
    create::create,
    state::RoleState,
    superblock::BadSuperblock,
};
use corebay_target::memory::Memory;

use crate::{
    beneath::{ArrayPlan, FloorPlan},
    disk::Queues,
    pool,
    store::{ArrayStore, Bays, DRIVE_NSID, DriveStore, Opener, Scratch, Store},
    trace::Trace,
};

/// Its task slots.
const TASK_SLOTS: usize = 64;

/// The most time that somebody takes to make what lies on a floor.
const CREATION_MAX: Time = Time(100_000_000_000);

type Outcome<T> = Rc<RefCell<Option<Result<T, String>>>>;

/// Who keeps the drives' controllers, on a core of its own, for as long as the target lives.
pub struct Keeper {
    /// Its reactor, for the world to turn.
    pub reactor: Reactor,
    controllers: Rc<RefCell<Vec<Controller<EmulatedDevice>>>>,
}

impl Keeper {
    /// True where a drive was given up.
    #[must_use]
    pub fn has_failed_drive(&self) -> bool {
        let controllers = self.controllers.borrow();
        controllers.iter().any(|each| each.drive().has_failed())
    }

    /// True where a drive is being reset.
    #[must_use]
    pub fn resets_drive(&self) -> bool {
        let controllers = self.controllers.borrow();
        controllers.iter().any(|each| each.drive().is_resetting())
    }

    /// Its controllers are given up, as the end of the process does it.
    pub fn give_up(&self) {
        for controller in self.controllers.borrow().iter() {
            controller.give_up();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.give_up();
        drop(self.controllers.take());
        self.reactor.tear_down();
    }
}

/// A target that looks for its stores.
pub struct Boot {
    keeper: Keeper,
    queues: Queues,
    found: Rc<RefCell<Option<Found>>>,
}

/// What lies on the floors; or by floor, what is wrong with it.
pub type Found = Result<Vec<Store>, Vec<(usize, String)>>;

impl Boot {
    /// Begins to look for what lies on these floors. `scratch` is memory of each core.
    #[must_use]
    pub fn start(
        floors: &[Arc<Bays>],
        scratch: &[Vec<Scratch>],
        memories: &[Memory],
        trace: &Trace,
        now: Time,
    ) -> Self {
        let reactor = Reactor::new(CoreId(0), TASK_SLOTS, now);
        let queues = Queues::default();
        let opener = Opener::new(&reactor, &queues, trace, &scratch[0]);
        let found = Rc::<RefCell<Option<Found>>>::default();
        let scratch = scratch.to_vec();
        let (floors, into) = (floors.to_vec(), found.clone());
        let controllers: Rc<RefCell<Vec<_>>> = Rc::default();
        let (memories, kept) = (memories.to_vec(), controllers.clone());
        spawn(&reactor, async move {
            let (mut stores, mut failed) = (Vec::new(), Vec::new());
            for (index, bays) in floors.iter().enumerate() {
                let store = match &bays.controller {
                    Some(emulated) => {
                        let more = scratch.iter().map(|core| core[index].clone());
                        let memories: Vec<_> = memories.iter().cloned().zip(more).collect();
                        bring_up(&opener, emulated, &memories, &kept).await
                    }
                    None => find(&opener, index, bays).await,
                };
                match store {
                    Ok(store) => stores.push(store),
                    Err(what) => failed.push((index, what)),
                }
            }
            drop(opener);
            *into.borrow_mut() = Some(match failed.is_empty() {
                true => Ok(stores),
                false => Err(failed),
            });
        });
        Self {
            keeper: Keeper {
                reactor,
                controllers,
            },
            queues,
            found,
        }
    }

    /// Its reactor, for the world to turn.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        &self.keeper.reactor
    }

    /// Who keeps the controllers from now on.
    #[must_use]
    pub fn into_keeper(self) -> Keeper {
        self.keeper
    }

    /// What was found, once all was looked for.
    #[must_use]
    pub fn found(&self) -> Option<Found> {
        self.found.borrow_mut().take()
    }

    /// The queues of its disks.
    #[must_use]
    pub fn queues(&self) -> &Queues {
        &self.queues
    }
}

fn spawn(reactor: &Reactor, task: impl Future<Output = ()> + 'static) {
    if reactor.spawn(Box::pin(task)).is_err() {
        unreachable!("a boot has more slots than tasks");
    }
}

async fn bring_up(
    opener: &Opener,
    emulated: &Emulated,
    memories: &[(Memory, Scratch)],
    kept: &Rc<RefCell<Vec<Controller<EmulatedDevice>>>>,
) -> Result<Store, String> {
    let options = DriverOptions {
        queues: memories.len() as u16,
        entries: 32,
        io_timeout: Duration::from_millis(100),
        abort_timeout: Duration::from_millis(50),
        admin_timeout: Duration::from_millis(200),
        health_interval: Duration::from_millis(5),
        resets_max: usize::MAX,
        ..DriverOptions::default()
    };
    let bytes = options.memory_bytes();
    let mut arena = Arena::lazy(bytes).expect("memory for a drive");
    let region = arena.take(bytes).expect("all of the arena");
    let window = emulated.map(&arena.memory());
    let memory = DmaRegion::new(region).expect("it begins with a page");
    let (device, reactor) = (emulated.device(), &opener.reactor);
    let controller = Controller::bring_up(device, reactor, memory, window, options).await;
    let controller = controller.map_err(|error| error.to_string())?;
    let drive = controller.drive().clone();
    kept.borrow_mut().push(controller);
    if drive.namespace(DRIVE_NSID).is_none() || drive.queues() < memories.len() {
        return Err("the drive is not what it was".into());
    }
    let windows = |(memory, more): &(Memory, Scratch)| {
        let pools = [&memory.payload, &memory.in_capsule, &memory.scratch];
        let all = pools.into_iter().chain(more.all());
        let mapped: Vec<_> = all.map(|pool| emulated.map(&pool.arena_memory())).collect();
        DmaWindows::new(&mapped)
    };
    let windows = memories.iter().map(windows).collect();
    Ok(Store::Drive(Arc::new(DriveStore { drive, windows })))
}

async fn find(opener: &Opener, floor: usize, bays: &Arc<Bays>) -> Result<Store, String> {
    // A pool is imported by the core that is its home.
    match bays.plan.base() {
        FloorPlan::Array(plan) => find_array(opener, floor, bays, plan).await,
        // A drive's medium is written offline, before the world begins.
        _ => Ok(Store::Disk(bays.media().swap_remove(0))),
    }
}

async fn find_array(
    opener: &Opener,
    floor: usize,
    bays: &Arc<Bays>,
    plan: &ArrayPlan,
) -> Result<Store, String> {
    let media = bays.media();
    let mut there = Vec::new();
    let mut disks = Vec::new();
    for (bay, medium) in media.iter().enumerate() {
        if let Ok(disk) = opener.open_leaf(medium) {
            there.push(bay);
            disks.push(disk);
        }
    }
    let scratch = opener.scratch[floor].array.clone();
    let pool = scratch.expect("an array has some");
    let assembled = assemble(disks, None, &opener.reactor, &pool).await;
    let Assembly { array, report, .. } = assembled.map_err(|error| error.to_string())?;
    let mut holders = vec![None; plan.wish.roles];
    for (role, place) in report.roles.iter().enumerate() {
        holders[role] = place.map(|place| media[there[place]].clone());
    }
    let spare = report
        .spares
        .first()
        .map(|place| media[there[*place]].clone());
    for (place, refusal) in report.refused {
        let bay = there[place];
        match refusal {
            Refusal::Stale { role, .. } => holders[role] = Some(media[bay].clone()),
            // A spare that failed in the role that it had taken, which went to another one.
            Refusal::Removed if bay >= plan.wish.roles => {}
            // A blank medium, or one whose superblocks have rotten.
            _ if !plan.victims.contains(&bay) => {
                return Err(format!("the member in bay {bay} takes no part: {refusal}"));
            }
            Refusal::Superblock(BadSuperblock::Newer { version }) => {
                return Err(format!("bay {bay} is said to be of version {version}"));
            }
            Refusal::Foreign { .. } | Refusal::Duplicate { .. } | Refusal::BlockSize { .. } => {
                return Err(format!("the member in bay {bay}: {refusal}"));
            }
            _ => {}
        }
    }
    let assembled = array.assembled().clone();
    let state = assembled.state();
    for (role, record) in state.roles.iter().enumerate() {
        if record.state == RoleState::Failed && !plan.victims.contains(&role) {
            return Err(format!(
                "role {role} has failed, whose member has no faults"
            ));
        }
    }
    Ok(Store::Array(ArrayStore::new(
        assembled,
        bays,
        floor,
        (holders, spare),
    )))
}

/// Makes what lies on these floors, before anything goes wrong.
///
/// # Errors
/// Says why that is not possible.
pub fn make(
    floors: &[Arc<Bays>],
    scratch: &[Scratch],
    trace: &Trace,
    rng: &mut Rng,
) -> Result<(), String> {
    for (index, bays) in floors.iter().enumerate() {
        if let Some(plan) = bays.plan.array() {
            let mut rng = Rng::from_seed(rng.next_u64());
            let (media, wish) = (bays.media(), plan.wish);
            let pool = scratch[index].array.clone().expect("an array has some");
            alone(scratch, trace, async move |opener| {
                let disks = media.iter().map(|medium| opener.open_leaf(medium));
                let disks: Vec<_> = disks.collect::<Result<_, _>>().expect("plugged in");
                let made = create(&disks, wish, "sim", &[], &mut rng, &pool).await;
                made.map(drop).map_err(|error| error.to_string())
            })?;
        }
        if let FloorPlan::Pool(plan) = &bays.plan {
            let (plan, bays) = (plan.clone(), bays.clone());
            let (rng, buffers) = (Rng::from_seed(rng.next_u64()), scratch[index].pool.clone());
            alone(scratch, trace, async move |opener| {
                let buffers = buffers.expect("a pool has some");
                let base = find(opener, index, &bays).await?;
                pool::create(opener, &buffers, &base, &plan, rng).await
            })?;
        }
    }
    Ok(())
}

/// Runs a task to its end, with nothing else in the world.
fn alone<T: 'static>(
    scratch: &[Scratch],
    trace: &Trace,
    task: impl AsyncFnOnce(&Opener) -> Result<T, String> + 'static,
) -> Result<T, String> {
    let reactor = Reactor::new(CoreId(0), TASK_SLOTS, Time(0));
    let queues = Queues::default();
    let opener = Opener::new(&reactor, &queues, trace, scratch);
    let outcome = Outcome::default();
    let into = outcome.clone();
    spawn(&reactor, async move {
        let ended = task(&opener).await;
        opener.close();
        *into.borrow_mut() = Some(ended);
    });
    let mut now = Time(0);
    while outcome.borrow().is_none() && now < CREATION_MAX {
        now = Time(now.0 + 1_000);
        for queue in queues.borrow().iter() {
            queue.advance(now);
        }
        if reactor.poll_once(now) == 0 {
            let due = queues
                .borrow()
                .iter()
                .filter_map(|queue| queue.next_event())
                .min();
            now = now.max(due.unwrap_or(now));
        }
    }
    reactor.tear_down();
    let ended = outcome.borrow_mut().take();
    ended.unwrap_or_else(|| Err("it does not end".into()))
}
