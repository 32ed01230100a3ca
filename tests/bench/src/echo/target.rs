//! Owns the target under test: a core as the appliance makes it, over null disks.
//!
//! It is the appliance's own core, network, transport and loop; what differs is the disk type, which
//! here is the null disk alone, so that both kinds of its reads can be measured.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
};

use anyhow::{Context, Result, anyhow};
use corebay_core::{
    arena::{Arena, Hugepages},
    disk::{
        Disk, DiskError,
        file::{FileEngine, FileEngineOptions},
        null::{NullDisk, NullReads},
    },
    mesh::{Port, Wakeups, mesh},
    net::os::OsNetwork,
    reactor::{MachineClock, Reactor},
    units::{BlockSize, CoreId},
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
    tcp::{Tcp, TcpOptions},
};

/// The core's buffers, as many as the appliance takes by default.
const MEMORY_BYTES: usize = 256 << 20;
/// Each disk has 1 TiB.
const DISK_BLOCKS: u64 = 1 << 28;
/// The namespace whose reads give zeroes.
pub const NSID_ZEROES: u32 = 1;
/// The namespace whose reads leave the buffers as they are.
pub const NSID_UNTOUCHED: u32 = 2;

/// The subsystem's name.
pub fn nqn() -> Nqn {
    "nqn.2026-01.bench.corebay:null"
        .parse()
        .expect("a valid NQN")
}

/// The target on the calling thread.
pub struct Target {
    /// What turns it.
    pub reactor: Reactor,
    /// Its clock.
    pub clock: MachineClock,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its connections, which count their calls.
    pub tcp: Rc<Tcp<NullEnvironment>>,
    _main_port: Port<Message<NullEnvironment>>,
}

/// A core's surroundings: the machine's network, and null disks.
pub struct NullEnvironment {
    network: OsNetwork,
}

impl Environment for NullEnvironment {
    type Network = OsNetwork;
    type Disk = NullDisk;
    type Medium = NullReads;

    fn network(&self) -> &OsNetwork {
        &self.network
    }

    fn open(&self, medium: &NullReads) -> Result<NullDisk, DiskError> {
        Ok(NullDisk::new(BlockSize::B4096, DISK_BLOCKS, *medium))
    }

    fn wall_clock_ms(&self) -> u64 {
        0
    }

    async fn save_feature(
        &self,
        subsystem: &Arc<Subsystem<NullReads>>,
        change: FeatureChange,
    ) -> Result<(), NotKept> {
        subsystem.save_feature(change);
        Ok(())
    }
}

impl Target {
    /// Starts a core on the calling thread, to be turned by whoever calls.
    pub fn start() -> Result<Self> {
        let clock = MachineClock::new();
        let reactor = Reactor::new(CoreId(0), TASKS_PER_CORE, clock.now());
        let mut arena = Arena::new(MEMORY_BYTES, Hugepages::Auto)
            .map_err(|error| anyhow!("buffers: {error}"))?;
        let mut take = |bytes| arena.take(bytes);
        let memory = Memory::divide(&mut take, MEMORY_BYTES).context("too little memory")?;
        // The appliance always has one: it is polled in every turn, also over a null disk.
        FileEngine::start(&reactor, &memory.payload, FileEngineOptions::default())
            .map_err(|error| anyhow!("the file engine: {error}"))?;
        let network = OsNetwork::new().context("epoll")?;
        let mut ports = mesh(2, MESH_CAPACITY, Wakeups::Eventfd).context("mesh")?;
        let (main_port, port) = (
            ports.pop().context("a port")?,
            ports.pop().context("a port")?,
        );
        let registry = Arc::new(Registry::default());
        let subsystem = registry.add_subsystem(
            SubsystemNames {
                nqn: nqn(),
                serial: "bench".into(),
                model: "corebay bench".into(),
            },
            Access::Any,
            None,
        );
        let environment = NullEnvironment { network };
        let limits = Limits::default();
        let core = Core::start(
            reactor.clone(),
            environment,
            registry.clone(),
            limits,
            memory,
            port,
        );
        for (nsid, reads) in [
            (NSID_ZEROES, NullReads::Zeroes),
            (NSID_UNTOUCHED, NullReads::Untouched),
        ] {
            let spec = Arc::new(NamespaceSpec {
                nsid,
                identity: Identity::default(),
                medium: reads,
                info: NullDisk::new(BlockSize::B4096, DISK_BLOCKS, reads).info(),
                read_only: false,
                live: None,
            });
            subsystem.add_namespace(spec.clone());
            core.attach(subsystem.id, spec)
                .map_err(|error| anyhow!("the null disk: {error}"))?;
        }
        let (tcp, address) = listen(&core)?;
        registry.set_listens(vec![Listen {
            port_id: 1,
            transport: TransportType::Tcp,
            address,
            discovery: false,
            subsystems: true,
        }]);
        Ok(Self {
            reactor,
            clock,
            address,
            tcp,
            _main_port: main_port,
        })
    }
}

type NullTcp = Rc<Tcp<NullEnvironment>>;

fn listen(core: &Rc<Core<NullEnvironment>>) -> Result<(NullTcp, SocketAddr)> {
    let tcp = Tcp::start(core, TcpOptions::default(), Arc::new(AtomicUsize::new(0)));
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let address = tcp.listen(address).context("listen")?;
    Ok((tcp, address))
}
