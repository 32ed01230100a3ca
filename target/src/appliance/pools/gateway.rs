//! The main thread's way to the pools: opening them at the start, and passing orders on.

use std::{
    collections::BTreeSet,
    rc::Rc,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use corebay_conf::{
    Appliance,
    appliance::{Pool, Store},
};
use corebay_core::{
    mesh::Port,
    units::{CoreId, Time},
};
use corebay_lvol::Owner;
use corebay_target::{
    core::{Core, Message},
    subsystem::{Registry, Subsystem},
};
use serde_json::Value;
use tracing::warn;

use super::{
    DiskClaim, Home, KeptExport, KnownPool, NamedVolume, Opening, Order, PoolBook, PoolMemory,
    named_volumes, orders, starting::START_WAIT, streams, subsystem_for,
};
use crate::{
    appliance::{
        control::{Reply, RpcError},
        environment::{MachineEnvironment, Medium},
        media::Media,
        state::State,
    },
    cli::Failure,
};

/// How long pools may take to be opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(600);

/// All pools have the first core as their home.
const HOME: CoreId = CoreId(0);

type MachinePort = Port<Message<MachineEnvironment>>;

/// What the pools begin with.
pub struct AtStart {
    /// Their memory.
    pub memory: PoolMemory,
    /// Those that are to be opened.
    pub openings: Vec<Opening>,
    /// What all threads know of them.
    pub book: PoolBook,
    /// Who has them.
    pub owner: Owner,
}

/// The pools that a configuration describes, and those that were added before. Those whose disk is not
/// there are noted as not available: they are opened once it is.
pub fn openings(appliance: &Appliance, media: &Media, state: &State) -> Vec<Opening> {
    let missing = |on: &str, name: &str, added: bool| {
        let problem = format!("\"{on}\" is not there, or used otherwise");
        warn!("pool \"{name}\" is not available: {problem}");
        media.pools.pools().push(KnownPool {
            name: name.to_owned(),
            on: on.to_owned(),
            problem: Some(problem),
            is_opening: false,
            added,
        });
    };
    let mut openings = Vec::new();
    for pool in appliance.pools() {
        let on = appliance.store_name(pool.store);
        let Some(medium) = media.medium(appliance, pool.store) else {
            missing(on, &pool.name, false);
            continue;
        };
        let first = pool.first_volume.as_ref();
        openings.push(Opening {
            create: pool.create,
            thresholds: (pool.warn_at, pool.critical_at),
            first_volume: first.map(|(name, size)| (name.clone(), size.bytes())),
            ..opening(on, &pool.name, medium)
        });
    }
    for (on, name) in state.pools() {
        let configured = |pool: &Pool| appliance.store_name(pool.store) == on;
        if appliance.pools().iter().any(configured) {
            continue;
        }
        let found = appliance.store(on).and_then(|store| {
            let medium = media.medium(appliance, store);
            medium.filter(|_| !is_used(appliance, media, store))
        });
        match found {
            Some(medium) => openings.push(Opening {
                added: true,
                ..opening(on, name, medium)
            }),
            None => missing(on, name, true),
        }
    }
    openings
}

fn opening(on: &str, name: &str, medium: Medium) -> Opening {
    Opening {
        on: on.to_owned(),
        medium,
        name: name.to_owned(),
        create: false,
        thresholds: (None, None),
        force: false,
        first_volume: None,
        added: false,
    }
}

/// True where a disk or an array is a namespace, or a disk an array's.
fn is_used(appliance: &Appliance, media: &Media, store: Store) -> bool {
    let namespaces = appliance.subsystems().iter();
    let mut namespaces = namespaces.flat_map(|subsystem| &subsystem.namespaces);
    if namespaces.any(|namespace| namespace.store == store) {
        return true;
    }
    let Store::Disk(disk) = store else {
        return false;
    };
    let name = &appliance.disk(disk).name;
    let lists = appliance.arrays().iter();
    let mut lists = lists.flat_map(|array| array.members.iter().chain(&array.spares));
    let mut arrays = media.arrays().iter();
    lists.any(|member| *member == disk)
        || arrays.any(|array| {
            let members = array.members();
            let mut members = members.iter().flatten();
            let spares = &array.tending().spares;
            members.any(|member| member.name == *name) || spares.iter().any(|s| s.name == *name)
        })
}

/// Runs a task on the pools' home core.
fn at_home<F>(port: &MachinePort, task: impl FnOnce(Rc<Home>) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let begin = move |core: &Rc<Core<MachineEnvironment>>| {
        let home = core.environment.pools.borrow().clone();
        if let Some(home) = home {
            core.spawn_control(task(home));
        }
    };
    port.send(HOME, Box::new(begin));
}

/// Opens the pools and exports what they and the configuration say. Every core has started, and none
/// listens.
///
/// # Errors
/// Where it takes too long.
pub fn open(
    port: &MachinePort,
    start: AtStart,
    appliance: &Appliance,
    registry: &Arc<Registry<Medium>>,
    state: &State,
) -> Result<(), Failure> {
    let slow = |_| Failure::new("the pools do not open", "look at the log above");
    let usual = usual(appliance, registry);
    let (answer, opened) = mpsc::channel();
    let begin = move |core: &Rc<Core<MachineEnvironment>>| {
        let home = Home::start(core, start.memory, start.book, start.owner, usual);
        core.spawn_control(async move {
            let _ = answer.send(home.open_all(start.openings, START_WAIT).await);
        });
    };
    port.send(HOME, Box::new(begin));
    let kept = opened.recv_timeout(OPEN_TIMEOUT).map_err(slow)?;
    let mut made = BTreeSet::new();
    let mut ready: Vec<(KeptExport, Arc<Subsystem<Medium>>)> = Vec::new();
    for kept in kept {
        match subsystem_for(registry, &kept.export) {
            Ok((subsystem, new)) => {
                if new {
                    state.restore(&subsystem);
                    made.insert(subsystem.id);
                }
                ready.push((kept, subsystem));
            }
            Err(why) => warn!("an export of a pool: {why}"),
        }
    }
    let named = named_volumes(appliance, registry);
    let (answer, attached) = mpsc::channel();
    at_home(port, move |home| async move {
        home.made.borrow_mut().extend(made);
        let showing = home.turns.of_showing().await;
        home.attach_kept(ready).await;
        drop(showing);
        home.set_named(named);
        let pools = home.pools.borrow().clone();
        for pool in pools {
            home.show_named(&pool).await;
        }
        home.is_shown.set(true);
        let _ = answer.send(());
    });
    attached.recv_timeout(OPEN_TIMEOUT).map_err(slow)
}

/// What volumes are exported by where nothing else is said: the only subsystem of the configuration.
fn usual(appliance: &Appliance, registry: &Registry<Medium>) -> Option<Arc<Subsystem<Medium>>> {
    match appliance.subsystems() {
        [one] => registry.find(&one.nqn),
        _ => None,
    }
}

/// The configuration has changed.
pub fn reload(port: &MachinePort, appliance: &Appliance, registry: &Registry<Medium>) {
    let named: Vec<NamedVolume> = named_volumes(appliance, registry);
    let usual = usual(appliance, registry);
    at_home(port, move |home| async move {
        *home.usual.borrow_mut() = usual;
        home.set_named(named);
        home.show_named_anew();
    });
}

/// Disks were lost: the pools on them are given up.
pub fn floors_lost(port: &MachinePort, names: &[String]) {
    let names = names.to_vec();
    at_home(port, move |home| async move { home.lose(&names) });
}

/// Disks that were lost are there again: the pools on them are opened anew.
pub fn floors_returned(port: &MachinePort, appliance: &Appliance, media: &Media, names: &[String]) {
    for name in names {
        let store = appliance.store(name);
        if let Some(medium) = store.and_then(|store| media.medium(appliance, store)) {
            floor_returned(port, media, name, medium);
        }
    }
}

/// A disk or an array is there: the pool that is known to lie on it is opened.
pub fn floor_returned(port: &MachinePort, media: &Media, name: &str, medium: Medium) {
    if media.pools.on(name).is_none() {
        return;
    }
    let name = name.to_owned();
    at_home(port, move |home| async move {
        home.reopen(&name, medium).await;
    });
}

/// Passes on what a client orders of the pools, and until when it may begin; `None` where it is no order to
/// them.
pub fn order(
    port: &MachinePort,
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
    until: Time,
    (method, params): (&str, &Value),
) -> Option<Reply> {
    let what = match orders::parse(method, params)? {
        Ok(what) => what,
        Err(error) => return Some(Reply::Now(Err(error))),
    };
    let order = opening_of(&what, appliance, media, state).and_then(|opening| {
        Ok(Order {
            opening,
            claim: claim_of(&what, media),
            stream: streams::open(&what)?,
            what,
            deadline: until,
        })
    });
    let order = match order {
        Ok(order) => order,
        Err(error) => return Some(Reply::Now(Err(error))),
    };
    let (answer, outcome) = mpsc::channel();
    at_home(port, move |home| async move {
        let _ = answer.send(home.perform(order).await);
    });
    Some(Reply::Later(outcome))
}

/// Until the order has ended, no array is made of its disk.
fn claim_of(what: &orders::What, media: &Media) -> Option<DiskClaim> {
    match what {
        orders::What::PoolCreate(on) | orders::What::PoolImport(on) => {
            Some(media.pools.claim(&on.disk, &on.pool))
        }
        _ => None,
    }
}

/// The disk or array that an order names, where it is free.
fn opening_of(
    what: &orders::What,
    appliance: &Appliance,
    media: &mut Media,
    state: &mut State,
) -> Result<Option<Opening>, RpcError> {
    let (orders::What::PoolCreate(on) | orders::What::PoolImport(on)) = what else {
        return Ok(None);
    };
    // A UUID is compared by who knows it.
    let is_other = |pool: &String| *pool != on.pool && uuid::Uuid::parse_str(&on.pool).is_err();
    if let Some(pool) = media.pools.known_on(&on.disk).filter(is_other) {
        return Err(RpcError::conflict(format!(
            "\"{}\" is beneath the pool \"{pool}\"",
            on.disk
        )));
    }
    if media.claimed().contains(&on.disk) {
        let message = format!("an array is being made of \"{}\"", on.disk);
        return Err(RpcError::refused(message));
    }
    let store = appliance.store(&on.disk);
    // One that was made since the configuration was read last is exported by nothing.
    let made = media.array(&on.disk).filter(|_| store.is_none());
    if let Some(array) = made.filter(|array| !array.ending.load(Ordering::SeqCst)) {
        return Ok(Some(Opening {
            thresholds: (on.warn_at, on.critical_at),
            force: on.force,
            added: true,
            ..opening(&on.disk, &on.pool, Medium::Array(array.clone()))
        }));
    }
    let store = store.ok_or_else(|| {
        RpcError::missing(format!(
            "there is no disk or array \"{}\": the configuration lists them, and is read again at \
             SIGHUP",
            on.disk
        ))
    })?;
    if is_used(appliance, media, store) {
        return Err(RpcError::refused(format!(
            "\"{}\" is exported, or in an array",
            on.disk
        )));
    }
    let medium = match store {
        Store::Disk(_) => {
            let medium = media.disk(appliance, &on.disk, state);
            medium
                .map(Medium::Plain)
                .map_err(|failure| RpcError::refused(failure.to_string()))?
        }
        _ => media
            .medium(appliance, store)
            .ok_or_else(|| RpcError::missing("it is not there"))?,
    };
    let configured = appliance.pools().iter().any(|pool| pool.store == store);
    Ok(Some(Opening {
        thresholds: (on.warn_at, on.critical_at),
        force: on.force,
        added: !configured,
        ..opening(&on.disk, &on.pool, medium)
    }))
}
