//! What a target does before its cores start: it finds what lies beneath its namespaces. And, before
//! a world begins, what somebody did to have it there.
//!
//! Invariant: a boot has a reactor of its own, and its own way to the disks, which ends with it.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use corebay_core::{
    buffer::BufferPool,
    reactor::Reactor,
    rng::Rng,
    units::{CoreId, Time},
};
use corebay_raid::{
    assemble::{Assembly, Refusal, assemble},
    create::create,
    state::RoleState,
    superblock::BadSuperblock,
};

use crate::{
    beneath::{ArrayPlan, FloorPlan},
    disk::Queues,
    store::{ArrayStore, Bays, Opener, Store},
    trace::Trace,
};

/// Its task slots.
const TASK_SLOTS: usize = 16;

/// The most time that somebody takes to make what lies on a floor.
const CREATION_MAX: Time = Time(100_000_000_000);

type Outcome<T> = Rc<RefCell<Option<Result<T, String>>>>;

/// A target that looks for its stores.
pub struct Boot {
    /// Its reactor, for the world to turn.
    pub reactor: Reactor,
    queues: Queues,
    found: Outcome<Vec<Store>>,
}

impl Boot {
    /// Begins to look for what lies on these floors. `scratch` is memory of the first core.
    #[must_use]
    pub fn start(
        floors: &[Arc<Bays>],
        scratch: &[Option<BufferPool>],
        trace: &Trace,
        now: Time,
    ) -> Self {
        let reactor = Reactor::new(CoreId(0), TASK_SLOTS, now);
        let queues = Queues::default();
        let opener = Opener::new(&reactor, &queues, trace, scratch);
        let found = Outcome::default();
        let (floors, into) = (floors.to_vec(), found.clone());
        spawn(&reactor, async move {
            let mut stores = Ok(Vec::new());
            for (index, bays) in floors.iter().enumerate() {
                let store = find(&opener, index, bays).await;
                let named = store.map_err(|what| format!("floor {index}: {what}"));
                stores = stores.and_then(|mut known: Vec<Store>| {
                    known.push(named?);
                    Ok(known)
                });
            }
            drop(opener);
            *into.borrow_mut() = Some(stores);
        });
        Self {
            reactor,
            queues,
            found,
        }
    }

    /// What was found, once all was looked for.
    #[must_use]
    pub fn found(&self) -> Option<Result<Vec<Store>, String>> {
        self.found.borrow_mut().take()
    }

    /// The queues of its disks.
    #[must_use]
    pub fn queues(&self) -> &Queues {
        &self.queues
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}

fn spawn(reactor: &Reactor, task: impl Future<Output = ()> + 'static) {
    if reactor.spawn(Box::pin(task)).is_err() {
        unreachable!("a boot has more slots than tasks");
    }
}

async fn find(opener: &Opener, floor: usize, bays: &Arc<Bays>) -> Result<Store, String> {
    match &bays.plan {
        FloorPlan::Disk(_) => Ok(Store::Disk(bays.media().swap_remove(0))),
        FloorPlan::Array(plan) => find_array(opener, floor, bays, plan).await,
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
    let pool = opener.scratch[floor].clone().expect("an array has some");
    let assembled = assemble(disks, None, &opener.reactor, &pool).await;
    let Assembly { array, report, .. } = assembled.map_err(|error| error.to_string())?;
    let mut holders = vec![None; plan.wish.roles];
    for (role, place) in report.roles.iter().enumerate() {
        holders[role] = place.map(|place| media[there[place]].clone());
    }
    for (place, refusal) in report.refused {
        let bay = there[place];
        match refusal {
            Refusal::Stale { role, .. } => holders[role] = Some(media[bay].clone()),
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
        assembled, bays, floor, holders,
    )))
}

/// Makes what lies on these floors, before anything goes wrong.
///
/// # Errors
/// Says why that is not possible.
pub fn make(
    floors: &[Arc<Bays>],
    scratch: &[Option<BufferPool>],
    trace: &Trace,
    rng: &mut Rng,
) -> Result<(), String> {
    for (index, bays) in floors.iter().enumerate() {
        let FloorPlan::Array(plan) = &bays.plan else {
            continue;
        };
        let mut rng = Rng::from_seed(rng.next_u64());
        let (wish, media) = (plan.wish, bays.media());
        let pool = scratch[index].clone().expect("an array has some");
        alone(scratch, trace, async move |opener| {
            let disks = media.iter().map(|medium| opener.open_leaf(medium));
            let disks: Vec<_> = disks.collect::<Result<_, _>>().expect("plugged in");
            let made = create(&disks, wish, "sim", &[], &mut rng, &pool).await;
            made.map(drop).map_err(|error| error.to_string())
        })?;
    }
    Ok(())
}

/// Runs a task to its end, with nothing else in the world.
fn alone<T: 'static>(
    scratch: &[Option<BufferPool>],
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
