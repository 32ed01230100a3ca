//! A target node: the real cores, NVMe/TCP and registry, in one of its lives.
//!
//! Invariant: a life leaves nothing behind in memory; its media outlive it.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use corebay_core::{
    arena::Arena,
    disk::DiskError,
    mesh::{Port, Wakeups, mesh},
    reactor::Reactor,
    rng::Rng,
    units::{CoreId, Time},
};
use corebay_nvme::spec::nqn::Nqn;
use corebay_target::{
    controller::Event,
    core::{Core, Message, Reply, STANDING_TASKS},
    environment::{Environment, NotKept},
    fabrics::{report, tell_discovery},
    feature::FeatureChange,
    limits::MESH_CAPACITY,
    memory::Memory,
    namespace::{Identity, NamespaceSpec},
    subsystem::{Access, Listen, Referral, Registry, Subsystem, SubsystemNames, TransportType},
    tcp::{ConnectionCount, Tcp},
};

use crate::{
    beneath::FloorPlan,
    boot::Keeper,
    client::{host_of, name_of},
    disk::Queues,
    machine::Findings,
    net::{Hub, SimNetwork},
    notice::Notices,
    offer::{Admitted, Offer, Offers},
    operator::{Assignment, Operator},
    plan::NodePlan,
    pool::OWN_TASKS,
    store::{AnyDisk, ArrayStore, Opener, Scratch, Store},
    tend::Tender,
    trace::Trace,
};

/// The subsystem of an appliance.
#[must_use]
pub fn subsystem(node: usize) -> Nqn {
    let nqn = format!("nqn.2026-01.io.corebay:sim{node}");
    nqn.parse().expect("a valid NQN")
}

/// The subsystem that an appliance offers now and then beside its own, without namespaces.
#[must_use]
pub fn second_subsystem(node: usize) -> Nqn {
    let nqn = format!("nqn.2026-01.io.corebay:second{node}");
    nqn.parse().expect("a valid NQN")
}

/// Another discovery service that an appliance tells of: nobody goes there.
#[must_use]
pub fn referral(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 2, 1], 8009 + number))
}

/// Tasks that tend an array.
pub const TASKS_OF_TENDER: usize = 3;

/// What came of something that a task does.
type Outcome = Rc<RefCell<Option<Result<(), String>>>>;

/// How often it is looked whether operators have ended.
const LOOK: Duration = Duration::from_millis(1);

/// The wall clock at a world's start: 2026-01-01 00:00 UTC.
const WALL_CLOCK_MS: u64 = 1_767_225_600_000;

/// A core's surroundings.
pub struct SimEnvironment {
    /// The core's way to stores.
    pub opener: Opener,
    network: SimNetwork,
    /// What hosts are told of its namespaces.
    notices: Rc<RefCell<Notices>>,
    /// What hosts are told that it offers.
    offers: Rc<RefCell<Offers>>,
}

impl Environment for SimEnvironment {
    type Network = SimNetwork;
    type Disk = AnyDisk;
    type Medium = Store;

    fn network(&self) -> &SimNetwork {
        &self.network
    }

    fn open(&self, store: &Store) -> Result<AnyDisk, DiskError> {
        self.opener.open(store)
    }

    fn wall_clock_ms(&self) -> u64 {
        WALL_CLOCK_MS + self.opener.reactor.now().0 / 1_000_000
    }

    async fn save_feature(
        &self,
        subsystem: &Arc<Subsystem<Store>>,
        change: FeatureChange,
    ) -> Result<(), NotKept> {
        // Nothing here starts a second time with what hosts have saved.
        subsystem.save_feature(change);
        Ok(())
    }
}

/// One core of a node.
pub struct NodeCore {
    /// Its reactor, for the world to turn.
    pub reactor: Reactor,
    core: Rc<Core<SimEnvironment>>,
    tcp: Rc<Tcp<SimEnvironment>>,
}

/// A running target. Dropping it is the end of its process.
pub struct Node {
    /// Which appliance it is.
    node: usize,
    /// Its cores.
    pub cores: Vec<NodeCore>,
    /// Who keeps the controllers of drives.
    keeper: Option<Keeper>,
    /// A reload is under way.
    reloading: Rc<Cell<bool>>,
    subsystem: Arc<Subsystem<Store>>,
    /// Tasks of the first core that tend arrays, and those of pools.
    tenders: usize,
    queues: Queues,
    free_tasks: usize,
    /// By namespace, from NSID 1.
    stores: Vec<Store>,
    /// By floor; a pool's is its disk until it is imported.
    floors: Rc<RefCell<Vec<Store>>>,
    opened: Outcome,
    closed: Rc<Cell<bool>>,
    checking: Cell<bool>,
    checked: Rc<Cell<bool>>,
    /// Operators are to end, and how many have not.
    leaving: Rc<Cell<bool>>,
    operating: Rc<Cell<usize>>,
    plan: NodePlan,
    address: SocketAddr,
    seed: u64,
    /// The main thread's.
    port: Port<Message<SimEnvironment>>,
}

/// What surrounds a node for all its lives.
pub struct Surroundings<'a> {
    /// Which appliance it is.
    pub node: usize,
    /// What the world is made of.
    pub plan: &'a NodePlan,
    /// The network.
    pub hub: &'a Hub,
    /// The memory of its cores, which all its lives use one after the other.
    pub memories: &'a [Memory],
    /// Their scratch memory, by core and floor.
    pub scratch: &'a [Vec<Scratch>],
    /// The run's trace.
    pub trace: &'a Trace,
    /// What hosts are told of its namespaces.
    pub notices: &'a Rc<RefCell<Notices>>,
    /// What hosts are told that it offers.
    pub offers: &'a Rc<RefCell<Offers>>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Node {
    /// Starts the target's cores over what was found on its floors; the first one imports pools.
    #[must_use]
    pub fn start(
        around: &Surroundings<'_>,
        floors: Vec<Store>,
        keeper: Option<Keeper>,
        seed: u64,
        now: Time,
    ) -> Self {
        let plan = around.plan;
        let registry = Registry::default();
        let names = SubsystemNames {
            nqn: subsystem(around.node),
            serial: format!("SIM{:04}", around.node),
            model: "corebay simulated".into(),
        };
        let exported = registry.add_subsystem(names, Access::Any, None);
        registry.set_listens(vec![Listen {
            port_id: 1,
            transport: TransportType::Tcp,
            address: around.address,
            discovery: true,
            subsystems: true,
        }]);
        let (generation, ..) = registry.discovery_view();
        around.offers.borrow_mut().begin_life(generation);
        let registry = Arc::new(registry);
        let mut ports = mesh(plan.target.cores + 1, MESH_CAPACITY, Wakeups::None)
            .expect("without wake-ups the system is not asked");
        let port = ports.pop().expect("one port for each core, and one more");
        let queues = Queues::default();
        let count = ConnectionCount::default();
        let cores: Vec<NodeCore> = ports
            .into_iter()
            .map(|port| start_core(around, &registry, &queues, &count, port, now))
            .collect();
        let node = Self {
            node: around.node,
            free_tasks: plan.target.task_slots - STANDING_TASKS,
            cores,
            keeper,
            stores: Vec::new(),
            floors: Rc::new(RefCell::new(floors)),
            opened: Outcome::default(),
            closed: Rc::default(),
            checking: Cell::default(),
            checked: Rc::default(),
            leaving: Rc::default(),
            operating: Rc::default(),
            plan: plan.clone(),
            address: around.address,
            seed,
            reloading: Rc::default(),
            tenders: 0,
            subsystem: exported,
            queues,
            port,
        };
        node.open_pools();
        node
    }

    fn open_pools(&self) {
        if !self.has_pools() {
            *self.opened.borrow_mut() = Some(Ok(()));
            return;
        }
        let (core, count) = (self.cores[0].core.clone(), self.cores.len());
        let (floors, opened) = (self.floors.clone(), self.opened.clone());
        let all = &self.plan.floors;
        let is_sound = |at: usize| matches!(&all[at], FloorPlan::Pool(pool) if pool.is_sound());
        let stores: Vec<_> = self
            .pool_floors()
            .map(|at| ((at, is_sound(at)), floors.borrow()[at].clone()))
            .collect();
        self.cores[0].core.spawn_control(async move {
            let mut outcome = Ok(());
            for (at, store) in stores {
                match core.environment.opener.import(at, &store, count).await {
                    Ok(pool) => floors.borrow_mut()[at.0] = Store::Pool(pool),
                    Err(what) => outcome = Err(format!("the pool on floor {}: {what}", at.0)),
                }
            }
            *opened.borrow_mut() = Some(outcome);
        });
    }

    fn pool_floors(&self) -> impl Iterator<Item = usize> {
        let floors = self.plan.floors.iter().enumerate();
        floors.filter_map(|(at, floor)| matches!(floor, FloorPlan::Pool(_)).then_some(at))
    }

    /// True where there are pools beneath its namespaces.
    #[must_use]
    pub fn has_pools(&self) -> bool {
        self.pool_floors().next().is_some()
    }

    /// What came of its pools, once all are imported.
    #[must_use]
    pub fn opened(&self) -> Option<Result<(), String>> {
        self.opened.borrow_mut().take()
    }

    /// Attaches the namespaces, and listens for hosts.
    ///
    /// # Errors
    /// Where a store cannot be opened.
    pub fn serve(
        &mut self,
        operators: Vec<Assignment>,
        findings: &Findings,
    ) -> Result<(), DiskError> {
        let floors = self.floors.borrow().clone();
        let namespaces = self.plan.namespaces.iter();
        self.stores = namespaces.map(|each| floors[each.floor].clone()).collect();
        self.attach_all()?;
        let mut rng = Rng::from_seed(self.seed);
        for array in floors.iter().filter_map(Store::array) {
            Tender::start(&self.cores[0].core, array, findings, rng.next_u64())?;
            self.tenders += TASKS_OF_TENDER;
        }
        for pool in floors
            .iter()
            .filter(|store| matches!(store, Store::Pool(_)))
        {
            let trims = pool.base().info().deallocate_granularity.is_some();
            self.tenders += OWN_TASKS - usize::from(!trims);
        }
        for task in operators {
            let Store::Pool(store) = &floors[task.floor] else {
                unreachable!("pools have been imported")
            };
            let core = &self.cores[0].core;
            let pool = core.environment.opener.home_pool(store);
            let pool = pool.expect("its home is the first core");
            let until = (&self.leaving, &self.operating);
            let operated = (task, pool, store.clone());
            Operator::start(core, operated, findings, until, rng.next_u64());
            self.tenders += 1;
        }
        let tcp = &self.cores[0].tcp;
        tcp.listen(self.address).expect("nobody else listens there");
        Ok(())
    }

    /// True where no host is connected, and no namespace is on its way.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.connections() == 0 && !self.is_reloading()
    }

    /// Every core lets go of the namespaces, then the pools are closed.
    pub fn close_pools(&self, findings: &Findings) {
        let (core, id) = (self.cores[0].core.clone(), self.subsystem.id);
        let (count, closed) = (self.stores.len(), self.closed.clone());
        let (findings, operating) = (findings.clone(), self.operating.clone());
        self.leaving.set(true);
        self.cores[0].core.spawn_control(async move {
            while operating.get() > 0 {
                core.reactor.sleep(LOOK).await;
            }
            core.call_all(move |each, reply: Reply<()>| {
                for nsid in (1u32..).take(count) {
                    each.table(id).detach(nsid);
                }
                reply.send(each, ());
            })
            .await;
            if let Err(what) = core.environment.opener.close_pools().await {
                findings.report(what);
            }
            closed.set(true);
        });
    }

    /// Checks the pools once more, before the end; once.
    pub fn check_pools(&self, findings: &Findings) {
        if self.checking.replace(true) {
            return;
        }
        let (core, findings) = (self.cores[0].core.clone(), findings.clone());
        let checked = self.checked.clone();
        self.cores[0].core.spawn_control(async move {
            if let Err(what) = core.environment.opener.check_pools().await {
                findings.report(what);
            }
            checked.set(true);
        });
    }

    /// True once they are checked.
    #[must_use]
    pub fn has_checked(&self) -> bool {
        self.checked.get()
    }

    /// True once the pools are closed.
    #[must_use]
    pub fn has_closed(&self) -> bool {
        self.closed.get()
    }

    /// The queues of its disks.
    #[must_use]
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// How many reactors turn: the cores', and the keeper's.
    #[must_use]
    pub fn reactors(&self) -> usize {
        self.cores.len() + usize::from(self.keeper.is_some())
    }

    /// One of them.
    #[must_use]
    pub fn reactor(&self, index: usize) -> Option<&Reactor> {
        match self.cores.get(index) {
            Some(core) => Some(&core.reactor),
            None => self.keeper.as_ref().map(|keeper| &keeper.reactor),
        }
    }

    /// Accepts nothing new, and closes each queue once its commands have ended.
    pub fn drain(&self) {
        for each in &self.cores {
            each.core.drain();
        }
    }

    /// Queues and connections that are left.
    #[must_use]
    pub fn connections(&self) -> usize {
        let of = |each: &NodeCore| each.core.queue_count() + each.tcp.connection_count();
        self.cores.iter().map(of).sum()
    }

    /// Says what a target without hosts still holds that it should not.
    #[must_use]
    pub fn leaks(&self) -> Option<String> {
        for (index, each) in self.cores.iter().enumerate() {
            if let Some(held) = memory_held(&each.core.memory) {
                return Some(format!("core {index}: {held}"));
            }
            let mine = if index == 0 { self.tenders } else { 0 };
            let used = (self.free_tasks - mine).checked_sub(each.reactor.executor().free());
            if used != Some(0) {
                return Some(format!("core {index}: {used:?} task slots leak"));
            }
            if each.core.queue_count() + each.tcp.connection_count() != 0 {
                return Some(format!(
                    "core {index}: {} queues and {} connections are left",
                    each.core.queue_count(),
                    each.tcp.connection_count()
                ));
            }
            let commands = each.core.environment.opener.drive_commands();
            if commands != 0 {
                return Some(format!(
                    "core {index}: drives have {commands} commands left"
                ));
            }
            if let Some(held) = each.core.environment.opener.held_by_arrays() {
                return Some(format!("core {index}: {held}"));
            }
            if each.core.environment.opener.has_failed_pool() {
                return Some(format!("core {index}: a pool has failed"));
            }
            if each.core.shares.fused() != 0 {
                return Some(format!("core {index}: a fused command still counts"));
            }
        }
        let discovery = self.registry().discovery();
        let controllers = self.subsystem.controllers().len() + discovery.controllers().len();
        if controllers != 0 {
            return Some(format!("{controllers} controllers are left"));
        }
        let in_flight: usize = self
            .queues
            .borrow()
            .iter()
            .map(|queue| queue.in_use())
            .sum();
        (in_flight != 0).then(|| format!("{in_flight} disk operations are left"))
    }

    /// True while a reload is under way.
    #[must_use]
    pub fn is_reloading(&self) -> bool {
        self.reloading.get()
    }

    /// The namespaces that are attached.
    #[must_use]
    pub fn is_attached(&self, nsid: u32) -> bool {
        self.subsystem.namespace(nsid).is_some()
    }

    /// Detaches a namespace, in the steps of a reload: it leaves the registry, then each core.
    pub fn detach(&self, nsid: u32) {
        let (core, subsystem) = (self.cores[0].core.clone(), self.subsystem.clone());
        let reloading = self.reloading.clone();
        reloading.set(true);
        self.cores[0].core.spawn_control(async move {
            subsystem.remove_namespace(nsid);
            let id = subsystem.id;
            core.call_all(move |each, reply: Reply<()>| {
                each.table(id).detach(nsid);
                reply.send(each, ());
            })
            .await;
            tell(&core, &subsystem, nsid);
            reloading.set(false);
        });
    }

    /// Attaches a namespace, in the steps of a reload: every core opens it, then it is shown.
    pub fn attach(&self, nsid: u32) {
        let (core, subsystem) = (self.cores[0].core.clone(), self.subsystem.clone());
        let store = &self.stores[nsid as usize - 1];
        let (reloading, spec) = (self.reloading.clone(), specification(nsid, store));
        reloading.set(true);
        self.cores[0].core.spawn_control(async move {
            let (id, on_core) = (subsystem.id, spec.clone());
            let opened = core
                .call_all(move |each, reply: Reply<bool>| {
                    reply.send(each, each.attach(id, on_core.clone()).is_ok());
                })
                .await;
            if opened.into_iter().all(|good| good) {
                subsystem.add_namespace(spec);
                tell(&core, &subsystem, nsid);
            }
            reloading.set(false);
        });
    }

    fn registry(&self) -> &Registry<Store> {
        &self.cores[0].core.registry
    }

    /// Offers something else to hosts, in the steps of a reload: the main thread changes the registry, then
    /// the first core tells whoever keeps a discovery controller. What it is now.
    pub fn change_offer(&self, drawn: u64) -> Offer {
        let (registry, offers) = (self.registry(), &self.cores[0].core.environment.offers);
        let before = offers.borrow().current();
        let offer = before.changed(drawn);
        let name = second_subsystem(self.node);
        match (registry.find(&name), offer.second) {
            (None, None) => {}
            (Some(second), None) => drop(registry.remove_subsystem(second.id)),
            (Some(second), Some(whom)) => second.set_access(access(whom)),
            (None, Some(whom)) => {
                let names = SubsystemNames {
                    nqn: name,
                    serial: format!("SIM2{:04}", self.node),
                    model: "corebay simulated".into(),
                };
                registry.add_subsystem(names, access(whom), None);
            }
        }
        let referrals = (0..offer.referrals).map(|number| Referral {
            transport: TransportType::Tcp,
            address: referral(number),
            nqn: Nqn::discovery(),
        });
        registry.set_referrals(referrals.collect());
        registry.bump_generation();
        let (generation, ..) = registry.discovery_view();
        offers.borrow_mut().change(generation, offer);
        let tell = |core: &Rc<Core<SimEnvironment>>| {
            let now = core.reactor.now();
            core.environment.offers.borrow_mut().announce(now);
            tell_discovery(core);
        };
        self.port.send(CoreId(0), Box::new(tell));
        offer
    }

    fn arrays(&self) -> impl Iterator<Item = &Arc<ArrayStore>> {
        self.stores.iter().filter_map(Store::array)
    }

    /// True where no array lacks a member, and each was scrubbed in this life.
    #[must_use]
    pub fn are_arrays_whole(&self) -> bool {
        self.arrays()
            .all(|array| array.assembled.state().is_whole() && array.is_scrubbed())
    }

    /// True where an array takes no write any more, or a drive was given up.
    #[must_use]
    pub fn has_failed_store(&self) -> bool {
        let drive = self.keeper.as_ref().is_some_and(Keeper::has_failed_drive);
        drive || self.arrays().any(|array| array.assembled.is_stopped())
    }

    /// True where a drive is being reset.
    #[must_use]
    pub fn resets_drive(&self) -> bool {
        self.keeper.as_ref().is_some_and(Keeper::resets_drive)
    }

    /// Its arrays are to be scrubbed.
    pub fn scrub(&self) {
        self.arrays().for_each(|array| array.ask_scrub());
    }

    /// The process ends. What its disks were doing has been dealt with.
    ///
    /// # Errors
    /// Says what its end does not free.
    pub fn end(self) -> Result<(), String> {
        let memories: Vec<_> = self
            .cores
            .iter()
            .map(|each| each.core.memory.clone())
            .collect();
        let traces: Vec<Weak<Core<SimEnvironment>>> = self
            .cores
            .iter()
            .map(|each| Rc::downgrade(&each.core))
            .collect();
        drop(self);
        let left = traces
            .iter()
            .filter(|core| core.strong_count() != 0)
            .count();
        if left != 0 {
            return Err(format!("the end of the process does not free {left} cores"));
        }
        match memories.iter().find_map(memory_held) {
            Some(held) => Err(format!("the end of the process leaves {held}")),
            None => Ok(()),
        }
    }
}

/// Tells the subsystem's hosts that a namespace has changed.
pub fn tell(core: &Rc<Core<SimEnvironment>>, subsystem: &Subsystem<Store>, nsid: u32) {
    let mut notices = core.environment.notices.borrow_mut();
    for controller in subsystem.controllers() {
        if let Some(host) = host_of(controller.host_nqn.as_str()) {
            notices.announce((host, controller.cntlid), nsid, core.reactor.now());
        }
        controller.namespace_changed(nsid);
        report(core, &controller, Event::NamespaceAttributeChanged);
    }
}

fn access(whom: Admitted) -> Access {
    match whom {
        Admitted::All => Access::Any,
        Admitted::Only(_) => {
            let admitted = (0..u64::BITS as usize).filter(|host| whom.admits(*host));
            Access::Hosts(admitted.map(name_of).collect())
        }
    }
}

fn specification(nsid: u32, store: &Store) -> Arc<NamespaceSpec<Store>> {
    Arc::new(NamespaceSpec {
        nsid,
        identity: Identity {
            uuid: [u8::try_from(nsid).unwrap_or(0); 16],
            ..Identity::default()
        },
        info: store.info(),
        medium: store.clone(),
        read_only: false,
        live: match store {
            Store::Pool(pool) => Some(pool.live.clone()),
            _ => None,
        },
    })
}

/// Says what somebody holds of a core's memory.
fn memory_held(memory: &Memory) -> Option<String> {
    let pools = [
        (&memory.payload, "payload"),
        (&memory.in_capsule, "in-capsule"),
        (&memory.scratch, "scratch"),
    ];
    pools.into_iter().find_map(|(pool, what)| {
        let (held, waiting) = (pool.total_bytes() - pool.free_bytes(), pool.waiting());
        (held != 0 || waiting != 0)
            .then(|| format!("{held} bytes of {what} memory held, {waiting} tasks waiting"))
    })
}

impl Drop for Node {
    fn drop(&mut self) {
        // What drives had in flight ends with their controllers.
        if let Some(keeper) = &self.keeper {
            keeper.give_up();
        }
        for each in &self.cores {
            each.core.tear_down();
            each.reactor.tear_down();
            each.core.environment.opener.close();
        }
    }
}

impl Node {
    fn attach_all(&self) -> Result<(), DiskError> {
        for (store, nsid) in self.stores.iter().zip(1u32..) {
            let spec = specification(nsid, store);
            self.subsystem.add_namespace(spec.clone());
            for each in &self.cores {
                each.core.attach(self.subsystem.id, spec.clone())?;
            }
        }
        Ok(())
    }
}

fn start_core(
    around: &Surroundings<'_>,
    registry: &Arc<Registry<Store>>,
    queues: &Queues,
    count: &ConnectionCount,
    port: Port<Message<SimEnvironment>>,
    now: Time,
) -> NodeCore {
    let target = &around.plan.target;
    let reactor = Reactor::new(port.core(), target.task_slots, now);
    let ip: IpAddr = around.address.ip();
    let environment = SimEnvironment {
        opener: Opener::new(
            &reactor,
            queues,
            around.trace,
            &around.scratch[port.core().0],
        ),
        network: SimNetwork::new(around.hub, ip),
        notices: around.notices.clone(),
        offers: around.offers.clone(),
    };
    let core = Core::start(
        reactor.clone(),
        environment,
        registry.clone(),
        target.limits,
        around.memories[port.core().0].clone(),
        port,
    );
    let tcp = Tcp::start(&core, target.tcp, count.clone());
    NodeCore { reactor, core, tcp }
}

/// A core's memory.
#[must_use]
pub fn memory(bytes: usize) -> Memory {
    let mut arena = Arena::lazy(bytes).expect("memory for a simulated core");
    Memory::divide(&mut |bytes| arena.take(bytes), bytes).expect("8 MiB and more")
}

/// The core that a reactor of a host is.
pub const HOST_CORE: CoreId = CoreId(0);
