//! The appliance's life: a thread for each core, from its start to its clean end.
//!
//! The main thread holds a port of its own in the mesh, by which it asks the cores to do things; it
//! waits for signals and for what the cores ask otherwise, and keeps the state file.
//!
//! Order of a clean end, each step bounded in time: no new connections; commands in flight are
//! answered and their connections closed; what is left is closed; every disk is flushed; the
//! reactors stop; the state is marked clean.

use std::{
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use corebay_conf::{
    Appliance,
    appliance::{Digest, Hugepages as ConfiguredHugepages},
};
use corebay_core::{
    arena::{Arena, HUGEPAGE_BYTES, Hugepages, Region},
    disk::{
        Disk,
        file::{FileEngine, FileEngineOptions},
    },
    mesh::{Port, Wakeups, mesh},
    net::os::OsNetwork,
    reactor::{MachineClock, Reactor, run as run_reactor},
    units::{CoreId, Time},
};
use corebay_target::{
    core::{Core, Message},
    environment::NotKept,
    limits::{DRAIN_TIMEOUT, Limits, MESH_CAPACITY, TASKS_PER_CORE},
    memory::Memory,
    namespace::NamespaceSpec,
    subsystem::{Listen, Referral, Registry, SubsystemId, TransportType},
    tcp::{ConnectionCount, DigestPolicy, Tcp, TcpOptions},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::{Handle, Signals},
};
use tracing::{info, warn};

use super::{
    announce,
    arrays::{ArrayMedium, ArrayMemory},
    control,
    drives::Drives,
    environment::{Devices, MachineEnvironment, Medium},
    keeper::{Event, Keep, Keeper, SaveRequest},
    kept::{KeptScrub, ThisMachine},
    media::{Exports, port_id},
    pools::{self, AtStart, PoolMemory},
    put_off::{self, PutOff},
    reload::{self, Running},
    state::State,
    tend,
};
use crate::cli::Failure;

/// How long the cores may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the disks may take to flush at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the counters are kept: what a crash can take of them.
const KEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How often the end of the connections is looked for while they drain.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// What a core is started with.
struct CorePlan {
    id: CoreId,
    cpu: u32,
    region: Region,
    port: Port<Message<MachineEnvironment>>,
    registry: Arc<Registry<Medium>>,
    arrays: Vec<Arc<ArrayMedium>>,
    namespaces: Vec<(SubsystemId, Arc<NamespaceSpec<Medium>>)>,
    limits: Limits,
    tcp: TcpOptions,
    count: ConnectionCount,
    /// The addresses that this core listens on, with their place in the configuration.
    listen: Vec<(usize, SocketAddr)>,
    clock: MachineClock,
    idle_sleep: Option<Duration>,
    events: mpsc::Sender<Event>,
}

/// What a core says once it has started.
type Started = Result<(), Failure>;

/// Runs the appliance until a signal ends it. `config` is read again at SIGHUP.
pub fn run(
    appliance: &Appliance,
    (config, control): (Option<&Path>, &Path),
    mut exports: Exports,
    regions: Vec<Region>,
    mut state: State,
) -> Result<(), Failure> {
    let (sender, events) = mpsc::channel();
    // Before anything is promised: a signal from here on ends the appliance cleanly.
    let signals = forward_signals(sender.clone())?;
    raise_open_files();
    let clock = MachineClock::new();
    let pools = exports.pools.take();
    let started = start(
        appliance,
        (&exports, pools),
        regions,
        (clock, &sender),
        &state,
    );
    let (port, threads, addresses) = started.inspect_err(|_| {
        state.did_not_begin();
        if let Err(failure) = state.save() {
            warn!("{failure}");
        }
    })?;
    tend_arrays(&port, &exports);
    exports.media.watch_drives(sender.clone());
    // Without it everything is served all the same.
    let socket =
        control::start(control, sender.clone(), clock).map_err(|failure| warn!("{failure}"));
    announce::ready(appliance, &exports, &addresses, control);
    let mut main = Main {
        port,
        cores: threads.len(),
        clock,
        events,
        exports,
        state,
        put_off: PutOff::default(),
        counters_kept: clock.now(),
    };
    main.serve(appliance, config);
    drop(socket);
    let clean = main.end();
    for thread in threads {
        // A core that panicked has ended the process already.
        let _ = thread.join();
    }
    let shut_down = main.exports.media.end();
    signals.close();
    main.note();
    if clean {
        main.state.ends_cleanly();
    }
    main.state.save()?;
    let what = match (clean, shut_down) {
        (true, true) => return Ok(()),
        (true, false) => "not every drive was shut down",
        (false, _) => "not every disk could be flushed",
    };
    Err(Failure::new(
        what,
        "look at the log above for the disks; what hosts had flushed before is safe",
    ))
}

/// The first core tends the arrays: every core has opened them.
fn tend_arrays(port: &Port<Message<MachineEnvironment>>, exports: &Exports) {
    if exports.media.arrays().is_empty() {
        return;
    }
    let tend = |core: &Rc<Core<MachineEnvironment>>| {
        let arrays = core.environment.arrays.borrow().clone();
        for (medium, _) in arrays {
            tend::tend(core, medium);
        }
    };
    port.send(CoreId(0), Box::new(tend));
}

/// Lets signals come as events. A thread waits for them, so that the main thread can wait for all.
fn forward_signals(events: mpsc::Sender<Event>) -> Result<Handle, Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| {
        Failure::new(format!("cannot wait for signals: {error}"), String::new())
    })?;
    let handle = signals.handle();
    spawn("corebay-signals".into(), move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    Ok(handle)
}

/// The main thread, while the cores run.
pub struct Main {
    /// Its port in the mesh.
    pub port: Port<Message<MachineEnvironment>>,
    /// How many cores there are.
    pub cores: usize,
    /// The machine's clock.
    pub clock: MachineClock,
    events: mpsc::Receiver<Event>,
    /// What is served.
    pub exports: Exports,
    /// What is kept.
    pub state: State,
    /// What waits for drives.
    pub put_off: PutOff,
    /// When the counters were last looked at.
    counters_kept: Time,
}

impl Main {
    /// Does what comes, until a signal ends it.
    fn serve(&mut self, appliance: &Appliance, config: Option<&Path>) {
        let mut current = None;
        loop {
            let next = self.counters_kept.plus(KEEP_INTERVAL);
            let now = self.clock.now();
            if now >= next {
                self.keep_counters();
                continue;
            }
            let mut wait = next.since(now);
            if self.exports.media.all_drives().are_awaited() {
                wait = wait.min(put_off::LOOK);
            }
            match self.events.recv_timeout(wait) {
                Ok(Event::Save(request)) => self.save(request),
                Ok(Event::Control(request)) => {
                    self.control(current.as_ref().unwrap_or(appliance), request);
                }
                Ok(Event::DriveChanged) => {
                    let names = self.exports.media.look_again();
                    self.take_back(current.as_ref().unwrap_or(appliance), &names);
                }
                Ok(Event::DriveLost(drive)) => {
                    let names = self.exports.media.on_drive(&drive);
                    pools::floors_lost(&self.port, &names);
                }
                Ok(Event::DriveReturned(returned)) => {
                    let names = self.exports.media.take_back(&returned);
                    self.take_back(current.as_ref().unwrap_or(appliance), &names);
                }
                Ok(Event::Then(action)) => action(self),
                Ok(Event::Signal(SIGHUP)) => {
                    let now = current.as_ref().unwrap_or(appliance);
                    let new = self.reload(now, config);
                    current = new.or(current);
                }
                Ok(Event::Signal(signal)) => {
                    info!(signal, "ending: connections drain, disks are flushed");
                    return;
                }
                // The cores hold the other ends of the channel, so it does not end before them.
                Err(_) => {}
            }
            let new = self.go_on(current.as_ref().unwrap_or(appliance), config);
            current = new.or(current);
        }
    }

    /// Uses disks again whose drives were lost.
    fn take_back(&mut self, appliance: &Appliance, names: &[String]) {
        let media = &self.exports.media;
        media.return_members(names);
        pools::floors_returned(&self.port, appliance, media, names);
        self.renew(appliance);
    }

    /// Opens anew whatever is not what it was.
    fn renew(&mut self, appliance: &Appliance) {
        let Exports {
            registry, media, ..
        } = &mut self.exports;
        let mut running = Running {
            port: &self.port,
            cores: self.cores,
            registry,
            media,
        };
        if let Err(failure) = reload::renew(&mut running, appliance, &mut self.state) {
            warn!("a drive has changed, but cannot be used as it is: {failure}");
        }
    }

    /// Keeps what a core asks for, and tells it.
    fn save(&mut self, request: SaveRequest) {
        let saved = match request.what {
            Keep::Feature(subsystem, change) => self.state.save_feature(&subsystem, change),
            Keep::Restore(subsystem) => {
                self.state.restore(&subsystem);
                Ok(())
            }
            Keep::Pools(pools) => self.state.keep_pools(pools),
        };
        let outcome = saved.map_err(|failure| {
            warn!("something could not be kept: {failure}");
            NotKept
        });
        let key = request.key;
        self.port.send(
            request.core,
            Box::new(move |core| core.environment.keeper.answer(key, outcome)),
        );
    }

    /// Keeps the counters, where they have changed: what a crash can take of them is bounded.
    fn keep_counters(&mut self) {
        self.counters_kept = self.clock.now();
        if self.note()
            && let Err(failure) = self.state.save()
        {
            warn!("the health counters are not kept: {failure}");
        }
    }

    fn note(&mut self) -> bool {
        let seconds = self.clock.now().0 / 1_000_000_000;
        self.state.note(&self.exports.registry, seconds)
    }

    /// Reads the configuration again; gives what is in force then, if that has changed.
    pub fn read_again(&mut self, now: &Appliance, config: Option<&Path>) -> Option<Appliance> {
        let Some(path) = config else {
            warn!("SIGHUP: there is no configuration file to read again");
            return None;
        };
        let new = match corebay_conf::load(path, &ThisMachine) {
            Ok((new, warnings)) => {
                warnings.iter().for_each(|warning| warn!("{warning}"));
                new
            }
            Err(mistakes) => {
                mistakes.iter().for_each(|mistake| warn!("{mistake}"));
                warn!(path = %path.display(), "SIGHUP: the file has mistakes; nothing was changed");
                return None;
            }
        };
        // What a subsystem that goes has counted is kept.
        self.note();
        let Exports {
            registry, media, ..
        } = &mut self.exports;
        let mut running = Running {
            port: &self.port,
            cores: self.cores,
            registry,
            media,
        };
        match reload::apply(&mut running, now, &new, &mut self.state) {
            Ok(()) => {
                info!(path = %path.display(), "SIGHUP: the configuration is in force");
                Some(new)
            }
            Err(failure) => {
                match self.exports.media.all_drives().is_put_off() {
                    true => info!("SIGHUP: {failure}; the file is read again after that"),
                    false => warn!("SIGHUP: nothing was changed: {failure}"),
                }
                None
            }
        }
    }

    /// Ends all cores; true where every disk was flushed.
    fn end(&mut self) -> bool {
        for core in 0..self.cores {
            self.port.send(CoreId(core), Box::new(|core| core.drain()));
        }
        let deadline = self.clock.now().plus(DRAIN_TIMEOUT);
        while self.clock.now() < deadline && connections(&self.port, self.cores) != Some(0) {
            // Commands that drain may save something.
            if let Ok(Event::Save(request)) = self.events.recv_timeout(DRAIN_STEP) {
                self.save(request);
            }
        }
        for core in 0..self.cores {
            let close = Box::new(|core: &Rc<Core<_>>| core.close_all());
            self.port.send(CoreId(core), close);
        }
        let flushed = flush(&self.port, self.cores);
        for array in self.exports.media.arrays() {
            // Scrubs have ended with it.
            let scrub = KeptScrub::of(array);
            self.state.keep_scrub(array.assembled().uuid(), scrub);
        }
        for core in 0..self.cores {
            let stop = Box::new(|core: &Rc<Core<_>>| core.reactor.stop());
            self.port.send(CoreId(core), stop);
        }
        flushed
    }
}

type Threads = (
    Port<Message<MachineEnvironment>>,
    Vec<JoinHandle<()>>,
    Vec<SocketAddr>,
);

fn start(
    appliance: &Appliance,
    (exports, pools): (&Exports, Option<AtStart>),
    mut regions: Vec<Region>,
    (clock, events): (MachineClock, &mpsc::Sender<Event>),
    state: &State,
) -> Result<Threads, Failure> {
    let cpus = &appliance.reactor().cores;
    let mut ports = mesh(cpus.len() + 1, MESH_CAPACITY, Wakeups::Eventfd).map_err(|error| {
        Failure::new(
            format!("cannot connect the cores: {error}"),
            "raise the limit of open files",
        )
    })?;
    let own = ports.pop().expect("one port more than cores");
    let count = ConnectionCount::default();
    let mut threads = Vec::new();
    let mut answers = Vec::new();
    publish(appliance, exports, &listen_addresses(appliance));
    for (index, (&cpu, port)) in cpus.iter().zip(ports).enumerate() {
        let listen = listen_addresses(appliance).into_iter().enumerate();
        let plan = CorePlan {
            id: CoreId(index),
            cpu,
            region: regions.remove(0),
            port,
            registry: exports.registry.clone(),
            arrays: exports.media.arrays().to_vec(),
            namespaces: exports.namespaces.clone(),
            limits: limits(appliance),
            tcp: tcp_options(appliance),
            count: count.clone(),
            listen: listen
                .filter(|(place, _)| place % cpus.len() == index)
                .collect(),
            clock,
            idle_sleep: appliance.reactor().idle_sleep,
            events: events.clone(),
        };
        let (answer, started) = mpsc::channel();
        answers.push(started);
        let name = format!("corebay-{index}");
        threads.push(spawn(name, move || core_main(plan, &answer))?);
    }
    for started in answers {
        let lost = || Failure::new("a core did not start", "look at the log above");
        started.recv_timeout(START_TIMEOUT).map_err(|_| lost())??;
    }
    // Before any host comes: one that found a namespace missing would take its disk away.
    if let Some(pools) = pools {
        pools::open(&own, pools, appliance, &exports.registry, state)?;
    }
    let addresses = listen(appliance, &own)?;
    publish(appliance, exports, &addresses);
    Ok((own, threads, addresses))
}

/// Lets every core listen; where they do then.
fn listen(
    appliance: &Appliance,
    port: &Port<Message<MachineEnvironment>>,
) -> Result<Vec<SocketAddr>, Failure> {
    let mut addresses = listen_addresses(appliance);
    let (answer, answers) = mpsc::channel();
    let cores = appliance.reactor().cores.len();
    for core in 0..cores {
        let answer = answer.clone();
        let begin = move |core: &Rc<Core<MachineEnvironment>>| {
            let listen = core.environment.listen.take();
            let _ = answer.send(listen.map_or_else(|| Ok(Vec::new()), |listen| listen()));
        };
        port.send(CoreId(core), Box::new(begin));
    }
    for _ in 0..cores {
        let lost = |_| Failure::new("a core does not listen", "look at the log above");
        for (place, address) in answers.recv_timeout(START_TIMEOUT).map_err(lost)?? {
            addresses[place] = address;
        }
    }
    Ok(addresses)
}

/// Starts a thread.
#[allow(clippy::disallowed_methods, reason = "the binary makes the threads")]
pub fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Failure> {
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .map_err(|error| {
            Failure::new(
                format!("cannot start a thread: {error}"),
                "raise the limit of processes",
            )
        })
}

/// Every connection takes a file descriptor, and the usual soft limit is 1,024.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, current = ?limit.current, "the limit of open files stays as it is");
    }
}

/// The memory of the cores, the drives that reach all of it, and the memory of arrays and pools.
type Divided = (Vec<Region>, Drives, (ArrayMemory, PoolMemory));

/// The arena, divided among the cores, the arrays and the pools, and the drives that reach all of it.
pub fn memory(appliance: &Appliance, state: &State) -> Result<Divided, Failure> {
    let reactor = appliance.reactor();
    let hugepages = match reactor.hugepages {
        ConfiguredHugepages::Auto => Hugepages::Auto,
        ConfiguredHugepages::Require => Hugepages::Require,
        ConfiguredHugepages::Off => Hugepages::Off,
    };
    let bytes = usize::try_from(reactor.memory.bytes()).unwrap_or(usize::MAX);
    let mut arena = Arena::new(bytes, hugepages)
        .map_err(|error| Failure::new(error.to_string(), String::new()))?;
    let backing = arena.backing();
    info!(
        mebibytes = arena.remaining() >> 20,
        hugepages = backing.hugepages,
        locked = backing.locked,
        "buffers"
    );
    let arrays = ArrayMemory::take(appliance, &mut arena)?;
    let pools = PoolMemory::take(appliance, state.pools().len(), &mut arena);
    let cores = reactor.cores.len();
    let share = arena.remaining() / cores / HUGEPAGE_BYTES * HUGEPAGE_BYTES;
    let regions: Option<Vec<_>> = (0..cores).map(|_| arena.take(share)).collect();
    let regions = regions.filter(|_| share > 0).ok_or_else(|| {
        Failure::new(
            format!("{} are too little memory for {cores} cores", reactor.memory),
            "give each core 16 MiB or more with reactor.memory",
        )
    })?;
    let drives = Drives::new(arena.memory(), cores, hugepages, state.host_identifier());
    Ok((regions, drives, (arrays, pools)))
}

fn limits(appliance: &Appliance) -> Limits {
    let tcp = appliance.tcp();
    let bytes = |size: corebay_conf::Size| usize::try_from(size.bytes()).unwrap_or(usize::MAX);
    Limits {
        transfer_bytes_max: bytes(tcp.max_transfer),
        in_capsule_bytes: bytes(tcp.in_capsule),
        queue_depth_max: tcp.queue_depth,
        io_queues_max: tcp.io_queues,
        connections_max: tcp.max_connections as usize,
        stall_timeout: tcp.stall_timeout,
    }
}

fn tcp_options(appliance: &Appliance) -> TcpOptions {
    let tcp = appliance.tcp();
    let policy = |digest| match digest {
        Digest::Allow => DigestPolicy::Allow,
        Digest::Require => DigestPolicy::Require,
        Digest::Off => DigestPolicy::Off,
    };
    TcpOptions {
        h2c_data_bytes_max: u32::try_from(tcp.max_h2c_data.bytes()).unwrap_or(u32::MAX),
        header_digest: policy(tcp.header_digest),
        data_digest: policy(tcp.data_digest),
    }
}

fn listen_addresses(appliance: &Appliance) -> Vec<SocketAddr> {
    appliance
        .listeners()
        .iter()
        .map(|listener| listener.address)
        .collect()
}

/// Tells the registry where hosts connect.
fn publish(appliance: &Appliance, exports: &Exports, addresses: &[SocketAddr]) {
    let listeners = appliance.listeners().iter().zip(addresses).enumerate();
    let listens = listeners.map(|(index, (listener, &address))| Listen {
        port_id: port_id(index),
        transport: TransportType::Tcp,
        address,
        discovery: listener.discovery,
        subsystems: listener.subsystems,
    });
    exports.registry.set_listens(listens.collect());
    exports.registry.set_referrals(referrals(appliance));
}

/// The referrals of a configuration.
pub fn referrals(appliance: &Appliance) -> Vec<Referral> {
    let referral = |referral: &corebay_conf::appliance::Referral| Referral {
        transport: TransportType::Tcp,
        address: referral.address,
        nqn: referral.nqn.clone(),
    };
    appliance.referrals().iter().map(referral).collect()
}

/// A core's thread.
fn core_main(plan: CorePlan, answer: &mpsc::Sender<Started>) {
    pin(plan.cpu);
    let (clock, idle_sleep) = (plan.clock, plan.idle_sleep);
    let reactor = Reactor::new(plan.id, TASKS_PER_CORE, clock.now());
    match start_core(&reactor, plan) {
        Ok(()) => {
            if answer.send(Ok(())).is_ok() {
                run_reactor(&reactor, clock, idle_sleep);
            }
        }
        Err(failure) => {
            let _ = answer.send(Err(failure));
        }
    }
    reactor.tear_down();
}

fn pin(cpu: u32) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu as usize);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        warn!(cpu, %error, "this core's thread is not pinned");
    }
}

fn start_core(reactor: &Reactor, plan: CorePlan) -> Started {
    let mut region = Some(plan.region);
    let bytes = region.as_ref().map_or(0, Region::len);
    let mut take = |bytes| region.as_mut().and_then(|region| region.split_off(bytes));
    let memory = Memory::divide(&mut take, bytes).ok_or_else(|| {
        Failure::new(
            format!("{} MiB of buffers are too little for a core", bytes >> 20),
            "give each core 16 MiB or more with reactor.memory",
        )
    })?;
    let engine = FileEngine::start(reactor, &memory.payload, FileEngineOptions::default())
        .map_err(|error| Failure::new(error.to_string(), String::new()))?;
    let network = OsNetwork::new().map_err(|error| {
        Failure::new(
            format!("no epoll: {error}"),
            "raise the limit of open files",
        )
    })?;
    let environment = MachineEnvironment {
        network,
        devices: Devices::new(engine, reactor.clone()),
        arrays: Default::default(),
        pool_cores: Default::default(),
        pools: Default::default(),
        listen: Default::default(),
        keeper: Keeper::new(plan.id, plan.events),
    };
    let core = Core::start(
        reactor.clone(),
        environment,
        plan.registry,
        plan.limits,
        memory,
        plan.port,
    );
    for array in plan.arrays {
        core.environment.open_array(&array).map_err(|error| {
            Failure::new(format!("cannot open array \"{}\": {error}", array.name), "")
        })?;
    }
    for (subsystem, spec) in plan.namespaces {
        let nsid = spec.nsid;
        core.attach(subsystem, spec).map_err(|error| {
            Failure::new(
                format!("cannot open the disk of namespace {nsid}: {error}"),
                String::new(),
            )
        })?;
    }
    let tcp = Tcp::start(&core, plan.tcp, plan.count);
    let addresses = plan.listen;
    let listen = move || {
        let listening = addresses.into_iter().map(|(place, address)| {
            let actual = tcp.listen(address);
            let actual = actual.map_err(|error| cannot_listen(address, &error))?;
            Ok((place, actual))
        });
        listening.collect()
    };
    *core.environment.listen.borrow_mut() = Some(Box::new(listen));
    Ok(())
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    let help = match error.kind() {
        ErrorKind::AddrInUse => {
            "another program listens there: end it, or choose another port with --listen and \
             --discovery, or in [[listener]]"
        }
        ErrorKind::AddrNotAvailable => "no network interface of this machine has that address",
        ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one"
        }
        _ => "choose another address with --listen and --discovery, or in [[listener]]",
    };
    Failure::new(format!("cannot listen on {address}: {error}"), help)
}

/// The queues of all cores; `None` where a core does not answer.
fn connections(port: &Port<Message<MachineEnvironment>>, cores: usize) -> Option<usize> {
    let (answer, answers) = mpsc::channel();
    for core in 0..cores {
        let answer = answer.clone();
        port.send(
            CoreId(core),
            Box::new(move |core| {
                let _ = answer.send(core.queue_count());
            }),
        );
    }
    (0..cores)
        .map(|_| answers.recv_timeout(Duration::from_secs(1)).ok())
        .sum()
}

/// Flushes every disk, by the first core: what one core has written, any core can flush.
fn flush(port: &Port<Message<MachineEnvironment>>, cores: usize) -> bool {
    let (answer, answers) = mpsc::channel();
    if cores == 0 {
        return true;
    }
    port.send(
        CoreId(0),
        Box::new(move |core| {
            let flushing = core.clone();
            core.spawn_control(async move {
                let mut all = true;
                for subsystem in flushing.registry.subsystems() {
                    for namespace in flushing.table(subsystem.id).all() {
                        if let Err(error) = namespace.disk.flush().await {
                            warn!(nsid = namespace.spec.nsid, %error, "a disk was not flushed");
                            all = false;
                        }
                    }
                }
                // They hold their core: left there, neither would go, nor the queues of its drives.
                let pools = flushing.environment.pools.borrow_mut().take();
                if let Some(pools) = pools {
                    all &= pools.end().await;
                }
                let arrays = flushing.environment.arrays.borrow().clone();
                for (medium, _) in &arrays {
                    // All at once: each takes a while.
                    medium.ending.store(true, Ordering::SeqCst);
                    medium.assembled().halt_sweeps();
                }
                for (medium, _) in arrays {
                    if let Err(error) = tend::end(&flushing, &medium, Some(tend::END_TIMEOUT)).await
                    {
                        warn!(array = medium.name, %error, "an array was not ended cleanly");
                        all = false;
                    }
                }
                let _ = answer.send(all);
            });
        }),
    );
    answers.recv_timeout(FLUSH_TIMEOUT).unwrap_or(false)
}
