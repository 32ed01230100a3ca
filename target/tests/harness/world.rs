//! A target of one or several cores in the test's own thread.
//!
//! Invariants:
//! - Time stands still unless a test moves it ([`World::advance`]) or waits for an answer.
//! - The same test makes the same turns in the same order.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use corebay_core::{
    arena::Arena,
    disk::{DiskError, fault::Faults, ram::RamMedium},
    mesh::{Port, Wakeups, mesh},
    net::Network,
    reactor::Reactor,
    units::{BlockSize, CoreId, Time},
};
use corebay_nvme::spec::nqn::Nqn;
use corebay_target::{
    core::{Core, Message},
    environment::{Environment, NotKept},
    feature::FeatureChange,
    limits::{Limits, MESH_CAPACITY, TASKS_PER_CORE},
    memory::Memory,
    namespace::{Identity, NamespaceSpec},
    subsystem::{Access, Listen, Registry, Subsystem, SubsystemNames, TransportType},
    tcp::{ConnectionCount, Tcp, TcpOptions},
};

use super::{
    disk::{Call, Calls, Kind, Limit, Medium, TestDisk},
    net::{Hub, MemNetwork, MemStream},
};

/// The subsystem that the tests' namespaces are in.
pub const SUBSYSTEM: &str = "nqn.2026-01.io.corebay:test";

/// The wall clock of every test: 2026-01-01 00:00 UTC.
pub const WALL_CLOCK_MS: u64 = 1_767_225_600_000;

/// What time passes in a turn with nothing to do, while a test waits for an answer.
const IDLE_TURN: Duration = Duration::from_micros(20);

/// Idle turns after which an answer is taken not to come.
const PATIENCE: usize = 250_000;

/// A core's surroundings.
pub struct TestEnvironment<N: Network> {
    pub network: N,
    pub faults: Faults,
    pub calls: Calls,
    pub reactor: Reactor,
}

impl<N: Network> Environment for TestEnvironment<N> {
    type Network = N;
    type Disk = TestDisk;
    type Medium = Medium;

    fn network(&self) -> &N {
        &self.network
    }

    fn open(&self, medium: &Medium) -> Result<TestDisk, DiskError> {
        if matches!(medium.kind, Kind::Broken(..)) {
            return Err(DiskError::Gone);
        }
        Ok(TestDisk::open(
            medium,
            &self.faults,
            &self.calls,
            &self.reactor,
        ))
    }

    fn wall_clock_ms(&self) -> u64 {
        WALL_CLOCK_MS
    }

    async fn save_feature(
        &self,
        subsystem: &Arc<Subsystem<Medium>>,
        change: FeatureChange,
    ) -> Result<(), NotKept> {
        // Nothing here starts a second time with what hosts have saved.
        subsystem.save_feature(change);
        Ok(())
    }
}

pub type Env = TestEnvironment<MemNetwork>;

/// What a world is made of.
#[derive(Clone)]
pub struct Plan {
    pub cores: usize,
    /// Bytes of buffers of each core.
    pub memory_bytes: usize,
    pub limits: Limits,
    pub tcp: TcpOptions,
    /// The namespaces, from NSID 1.
    pub media: Vec<Medium>,
    /// Those that are read-only.
    pub read_only: Vec<u32>,
    pub access: Access,
    /// Where to listen: address, discovery, subsystems.
    pub listen: Vec<(SocketAddr, bool, bool)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            cores: 1,
            memory_bytes: 8 << 20,
            limits: Limits::default(),
            tcp: TcpOptions::default(),
            media: vec![ram(BlockSize::B4096, 4096)],
            read_only: Vec::new(),
            access: Access::Any,
            listen: vec![(address(4420), true, true)],
        }
    }
}

/// An address of the host's own machine.
pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A disk in memory.
pub fn ram(size: BlockSize, blocks: u64) -> Medium {
    Medium {
        kind: Kind::Ram(RamMedium::new(size, blocks).unwrap()),
        volatile_cache: false,
    }
}

/// A disk in memory that has the faults of [`World::faults`].
pub fn faulty(size: BlockSize, blocks: u64) -> Medium {
    Medium {
        kind: Kind::Fault(RamMedium::new(size, blocks).unwrap()),
        volatile_cache: false,
    }
}

/// A disk in memory with limits, and these.
pub fn limited(size: BlockSize, blocks: u64, per_second: u64) -> (Medium, Arc<Limit>) {
    let limit = Arc::new(Limit::default());
    limit.per_second.store(per_second, Ordering::Relaxed);
    let medium = Medium {
        kind: Kind::Limited(RamMedium::new(size, blocks).unwrap(), limit.clone()),
        volatile_cache: false,
    };
    (medium, limit)
}

/// A disk that keeps nothing.
pub fn null(size: BlockSize, blocks: u64) -> Medium {
    Medium {
        kind: Kind::Null(size, blocks),
        volatile_cache: false,
    }
}

/// Who a namespace of the tests is.
pub fn identity(nsid: u32) -> Identity {
    let mut uuid = [0x11; 16];
    uuid[12..].copy_from_slice(&nsid.to_be_bytes());
    let mut nguid = [0x22; 16];
    nguid[12..].copy_from_slice(&nsid.to_be_bytes());
    Identity {
        uuid,
        nguid,
        eui64: [0x33, 0, 0, 0, 0, 0, 0, nsid as u8],
    }
}

/// One core, and what stands around it.
pub struct Node {
    pub reactor: Reactor,
    pub core: Rc<Core<Env>>,
    pub tcp: Rc<Tcp<Env>>,
    pub faults: Faults,
    calls: Calls,
    free_tasks: Cell<usize>,
}

/// The target.
pub struct World {
    pub hub: Hub,
    pub nodes: Vec<Node>,
    pub registry: Arc<Registry<Medium>>,
    pub subsystem: Arc<Subsystem<Medium>>,
    pub plan: Plan,
    /// Turns the world takes while a host waits for it.
    pub now: Cell<Time>,
    pub count: ConnectionCount,
    specs: RefCell<Vec<Arc<NamespaceSpec<Medium>>>>,
    _port: Port<Message<Env>>,
}

/// Makes what is exported of a plan.
pub fn registry(plan: &Plan) -> (Arc<Registry<Medium>>, Arc<Subsystem<Medium>>) {
    let registry = Registry::default();
    let names = SubsystemNames {
        nqn: SUBSYSTEM.parse().unwrap(),
        serial: "CB0001".into(),
        model: "corebay test".into(),
    };
    let subsystem = registry.add_subsystem(names, plan.access.clone(), None);
    registry.set_listens(listens(plan));
    (Arc::new(registry), subsystem)
}

fn listens(plan: &Plan) -> Vec<Listen> {
    let listens = plan.listen.iter().zip(1..);
    listens
        .map(|(&(address, discovery, subsystems), port_id)| Listen {
            port_id,
            transport: TransportType::Tcp,
            address,
            discovery,
            subsystems,
        })
        .collect()
}

/// A namespace of a plan.
pub fn spec(plan: &Plan, nsid: u32, medium: &Medium) -> Arc<NamespaceSpec<Medium>> {
    Arc::new(NamespaceSpec {
        nsid,
        identity: identity(nsid),
        info: medium.info(),
        medium: medium.clone(),
        read_only: plan.read_only.contains(&nsid),
        live: None,
    })
}

/// A core's memory.
pub fn memory(bytes: usize) -> Memory {
    let mut arena = Arena::lazy(bytes).unwrap();
    Memory::divide(&mut |bytes| arena.take(bytes), bytes).unwrap()
}

impl World {
    pub fn new(plan: Plan) -> Rc<Self> {
        let hub = Hub::default();
        let (registry, subsystem) = registry(&plan);
        let mut ports = mesh(plan.cores + 1, MESH_CAPACITY, Wakeups::None).unwrap();
        let port = ports.pop().unwrap();
        let count = ConnectionCount::default();
        let nodes: Vec<_> = ports
            .into_iter()
            .enumerate()
            .map(|(index, port)| node(&plan, &hub, &registry, &count, index, port))
            .collect();
        let world = Rc::new(Self {
            hub,
            nodes,
            registry,
            subsystem,
            now: Cell::new(Time(1)),
            count,
            specs: RefCell::default(),
            _port: port,
            plan,
        });
        for (medium, nsid) in world.plan.media.iter().zip(1..) {
            world.attach(nsid, medium);
        }
        for (index, &(address, ..)) in world.plan.listen.iter().enumerate() {
            world.nodes[index % world.plan.cores]
                .tcp
                .listen(address)
                .unwrap();
        }
        world.settle();
        for node in &world.nodes {
            node.free_tasks.set(node.reactor.executor().free());
        }
        world
    }

    /// A world with these namespaces.
    pub fn with(media: Vec<Medium>) -> Rc<Self> {
        Self::new(Plan {
            media,
            ..Plan::default()
        })
    }

    /// Attaches a namespace on every core.
    pub fn attach(&self, nsid: u32, medium: &Medium) {
        let spec = spec(&self.plan, nsid, medium);
        self.subsystem.add_namespace(spec.clone());
        for node in &self.nodes {
            node.core.attach(self.subsystem.id, spec.clone()).unwrap();
        }
        self.specs.borrow_mut().push(spec);
    }

    /// One turn of every core; how much there was to do.
    pub fn turn(&self) -> usize {
        let now = self.now.get();
        self.nodes
            .iter()
            .map(|node| node.reactor.poll_once(now))
            .sum()
    }

    /// Turns until nothing is left to do. Time stands still.
    pub fn settle(&self) {
        let mut idle = 0;
        let mut turns = 0u32;
        // Under load the target asks only now and then which connections are ready.
        while idle < 10 {
            idle = if self.turn() == 0 { idle + 1 } else { 0 };
            turns += 1;
            assert!(turns < 5_000_000, "the target never comes to rest");
        }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let end = self.now.get().plus(by);
        while self.now.get() < end {
            let step = Duration::from_millis(5).min(end.since(self.now.get()));
            self.now.set(self.now.get().plus(step));
            self.settle();
        }
    }

    /// Turns until `look` gives something; time passes while there is nothing to do.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let mut idle = 0;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if self.turn() == 0 {
                idle += 1;
                self.now.set(self.now.get().plus(IDLE_TURN));
            }
            assert!(idle < PATIENCE, "waited in vain: {what}");
        }
    }

    /// A connection to the first listener.
    pub fn connect(&self) -> MemStream {
        self.connect_to(self.plan.listen[0].0)
    }

    pub fn connect_to(&self, to: SocketAddr) -> MemStream {
        self.hub.connect(to).unwrap()
    }

    /// The faults of the first core.
    pub fn faults(&self) -> &Faults {
        &self.nodes[0].faults
    }

    /// Notes what disks are asked from now on.
    pub fn note_calls(&self) {
        for node in &self.nodes {
            *node.calls.borrow_mut() = Some(Vec::new());
        }
    }

    /// What the disks were asked since the last time.
    pub fn calls(&self) -> Vec<Call> {
        let take = |node: &Node| node.calls.borrow_mut().as_mut().map(std::mem::take);
        self.nodes.iter().filter_map(take).flatten().collect()
    }

    /// The queues of all cores.
    pub fn queue_count(&self) -> usize {
        self.nodes.iter().map(|node| node.core.queue_count()).sum()
    }

    /// Nothing of a former connection is left: no memory, no task, no connection.
    pub fn assert_at_rest(&self) {
        self.settle();
        for node in &self.nodes {
            let memory = &node.core.memory;
            for (pool, what) in [
                (&memory.payload, "payload"),
                (&memory.in_capsule, "in-capsule"),
                (&memory.scratch, "scratch"),
            ] {
                assert_eq!(pool.free_bytes(), pool.total_bytes(), "{what} memory leaks");
                assert_eq!(pool.waiting(), 0, "somebody waits for {what} memory");
            }
            let free = node.reactor.executor().free();
            assert_eq!(free, node.free_tasks.get(), "a task slot leaks");
            assert_eq!(node.core.shares.fused(), 0, "a fused command waits");
            assert_eq!(node.core.pacer.waiting(), 0, "a command waits for limits");
        }
    }

    /// The same, and every connection is gone.
    pub fn assert_deserted(&self) {
        self.assert_at_rest();
        assert_eq!(self.queue_count(), 0, "a queue is left");
        let connections: usize = self.nodes.iter().map(|n| n.tcp.connection_count()).sum();
        assert_eq!(connections, 0, "a connection is left");
        assert!(
            self.subsystem.controllers().is_empty(),
            "a controller is left"
        );
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.reactor.tear_down();
        }
    }
}

fn node(
    plan: &Plan,
    hub: &Hub,
    registry: &Arc<Registry<Medium>>,
    count: &ConnectionCount,
    index: usize,
    port: Port<Message<Env>>,
) -> Node {
    let reactor = Reactor::new(CoreId(index), TASKS_PER_CORE, Time(1));
    let faults = Faults::new(index as u64);
    let calls = Calls::default();
    let environment = TestEnvironment {
        network: MemNetwork::new(hub),
        faults: faults.clone(),
        calls: calls.clone(),
        reactor: reactor.clone(),
    };
    let core = Core::start(
        reactor.clone(),
        environment,
        registry.clone(),
        plan.limits,
        memory(plan.memory_bytes),
        port,
    );
    let tcp = Tcp::start(&core, plan.tcp, count.clone());
    Node {
        reactor,
        core,
        tcp,
        faults,
        calls,
        free_tasks: Cell::new(0),
    }
}

/// The NQN of the `n`th host.
pub fn host_nqn(n: usize) -> Nqn {
    format!("nqn.2026-01.io.corebay:host{n}").parse().unwrap()
}
