//! The same target on the machine's own network: two threads, real sockets, real time.

use std::{
    net::{SocketAddr, TcpStream},
    rc::Rc,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use corebay_core::{
    disk::fault::Faults,
    mesh::{Port, Wakeups, mesh},
    net::os::OsNetwork,
    reactor::{MachineClock, Reactor, run},
    units::{BlockSize, CoreId},
};
use corebay_nvme::spec::{
    command::{Fuse, nvm},
    fabrics::CNTLID_DYNAMIC,
    tcp::{DGST_DATA, DGST_HEADER},
};
use corebay_target::{
    core::{Core, Message},
    limits::{MESH_CAPACITY, TASKS_PER_CORE},
    namespace::NamespaceSpec,
    subsystem::{Listen, Registry, Subsystem, TransportType},
    tcp::{ConnectionCount, Tcp},
};

use crate::harness::{
    disk::Medium,
    host::pattern,
    socket,
    wire::{Connection, Payload, Pipe},
    world::{Plan, SUBSYSTEM, TestEnvironment, memory, ram, registry, spec},
};

type MachineEnv = TestEnvironment<OsNetwork>;

struct Machine {
    address: SocketAddr,
    port: Port<Message<MachineEnv>>,
    threads: Vec<JoinHandle<()>>,
}

struct Start {
    plan: Plan,
    registry: Arc<Registry<Medium>>,
    subsystem: Arc<Subsystem<Medium>>,
    specs: Vec<Arc<NamespaceSpec<Medium>>>,
    count: ConnectionCount,
    clock: MachineClock,
}

impl Machine {
    fn start(plan: Plan) -> Self {
        let (registry, subsystem) = registry(&plan);
        let specs: Vec<_> = plan
            .media
            .iter()
            .zip(1..)
            .map(|(medium, nsid)| spec(&plan, nsid, medium))
            .collect();
        for spec in &specs {
            subsystem.add_namespace(spec.clone());
        }
        let cores = plan.cores;
        let mut ports = mesh(cores + 1, MESH_CAPACITY, Wakeups::Eventfd).unwrap();
        let port = ports.pop().unwrap();
        let start = Arc::new(Start {
            plan,
            registry: registry.clone(),
            subsystem,
            specs,
            count: ConnectionCount::default(),
            clock: MachineClock::new(),
        });
        let (answer, answers) = mpsc::channel();
        let threads = ports
            .into_iter()
            .enumerate()
            .map(|(index, port)| {
                let (start, answer) = (start.clone(), answer.clone());
                std::thread::spawn(move || core_main(index, port, &start, &answer))
            })
            .collect();
        let address = answers.recv().unwrap();
        registry.set_listens(vec![Listen {
            port_id: 1,
            transport: TransportType::Tcp,
            address,
            discovery: true,
            subsystems: true,
        }]);
        Self {
            address,
            port,
            threads,
        }
    }

    /// Asks each core something.
    fn ask<T: Send + 'static>(&self, ask: fn(&Rc<Core<MachineEnv>>) -> T) -> Vec<T> {
        let (answer, answers) = mpsc::channel();
        for core in 0..self.threads.len() {
            let answer = answer.clone();
            self.port.send(
                CoreId(core),
                Box::new(move |core| {
                    let _ = answer.send(ask(core));
                }),
            );
        }
        let patience = Duration::from_secs(20);
        self.threads
            .iter()
            .map(|_| answers.recv_timeout(patience).unwrap())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for core in 0..self.threads.len() {
            self.port
                .send(CoreId(core), Box::new(|core| core.reactor.stop()));
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("a core ends without a panic");
        }
    }
}

fn core_main(
    index: usize,
    port: Port<Message<MachineEnv>>,
    start: &Start,
    answer: &mpsc::Sender<SocketAddr>,
) {
    let reactor = Reactor::new(CoreId(index), TASKS_PER_CORE, start.clock.now());
    let environment = TestEnvironment {
        network: OsNetwork::new().unwrap(),
        faults: Faults::new(0),
        calls: Rc::default(),
        reactor: reactor.clone(),
    };
    let memory = memory(start.plan.memory_bytes);
    let core = Core::start(
        reactor.clone(),
        environment,
        start.registry.clone(),
        start.plan.limits,
        memory,
        port,
    );
    for spec in &start.specs {
        core.attach(start.subsystem.id, spec.clone()).unwrap();
    }
    let tcp = Tcp::start(&core, start.plan.tcp, start.count.clone());
    if index == 0 {
        let address = tcp.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        answer.send(address).unwrap();
    }
    drop((core, tcp));
    run(&reactor, start.clock, Some(Duration::from_micros(200)));
    reactor.tear_down();
}

fn queue(
    machine: &Machine,
    dgst: u8,
    qid: u16,
    depth: u16,
    cntlid: u16,
) -> (Connection<TcpStream>, u16) {
    let subsystem = SUBSYSTEM.parse().unwrap();
    socket::queue(machine.address, &subsystem, dgst, (qid, depth), cntlid)
}

/// Four threads count in one block by fused commands, beside plain writes and reads of their own
/// blocks, with and without digests.
#[test]
fn two_threads_lose_no_update() {
    const EACH: u64 = 40;
    let machine = Machine::start(Plan {
        cores: 2,
        media: vec![ram(BlockSize::B4096, 4096)],
        ..Plan::default()
    });
    let (admin, cntlid) = queue(&machine, 0, 0, 32, CNTLID_DYNAMIC);
    let hosts: Vec<_> = (1..=4u16)
        .map(|qid| {
            let dgst = if qid % 2 == 0 {
                DGST_HEADER | DGST_DATA
            } else {
                0
            };
            let (mut queue, _) = queue(&machine, dgst, qid, 64, cntlid);
            std::thread::spawn(move || {
                let mut counted = 0;
                let mut seen = 0u64;
                let block = |count: u64| {
                    let mut block = vec![0; 4096];
                    block[..8].copy_from_slice(&count.to_le_bytes());
                    block
                };
                while counted < EACH {
                    let data = pattern(counted, 64 << 10);
                    let at = 64 * u64::from(qid);
                    let write = queue.submit(nvm::write(1, at, 16, false), Payload::Asked(&data));
                    let compare = nvm::compare(1, 0, 1).with_fuse(Fuse::First);
                    let (first, mut bytes) = queue.capsule(compare, Payload::Capsule(&block(seen)));
                    let second = nvm::write(1, 0, 1, false).with_fuse(Fuse::Second);
                    let (second, more) = queue.capsule(second, Payload::Capsule(&block(seen + 1)));
                    bytes.extend(more);
                    queue.pipe.send_all(&bytes);
                    let won = queue.complete(first).status.is_success();
                    assert_eq!(queue.complete(second).status.is_success(), won);
                    counted += u64::from(won);
                    queue.complete(write).ok();
                    let read = queue.command(nvm::read(1, at, 16), Payload::ToHost(64 << 10));
                    assert!(read.ok() == data);
                    let now = queue
                        .command(nvm::read(1, 0, 1), Payload::ToHost(4096))
                        .ok();
                    seen = u64::from_le_bytes(now[..8].try_into().unwrap());
                }
                queue
            })
        })
        .collect();
    let mut queues: Vec<_> = hosts.into_iter().map(|host| host.join().unwrap()).collect();
    let now = queues[0]
        .command(nvm::read(1, 0, 1), Payload::ToHost(4096))
        .ok();
    assert_eq!(u64::from_le_bytes(now[..8].try_into().unwrap()), 4 * EACH);
    let counts = machine.ask(|core| core.queue_count());
    assert_eq!(counts.iter().sum::<usize>(), 5);
    assert!(
        counts.iter().all(|&count| count > 0),
        "both cores have queues"
    );
    drop((queues, admin));
    // All is given back once the cores have seen the connections end.
    let at_rest = |core: &Rc<Core<MachineEnv>>| {
        let memory = &core.memory;
        let pools = [&memory.payload, &memory.in_capsule, &memory.scratch];
        core.queue_count() == 0
            && pools
                .iter()
                .all(|pool| pool.free_bytes() == pool.total_bytes())
    };
    let asked = (0..1_000_000).find(|_| machine.ask(at_rest).iter().all(|&rest| rest));
    assert!(asked.is_some(), "something is left behind");
}

#[test]
fn a_deep_queue_over_real_sockets() {
    let machine = Machine::start(Plan {
        media: vec![ram(BlockSize::B4096, 4096)],
        ..Plan::default()
    });
    let (_admin, cntlid) = queue(&machine, 0, 0, 32, CNTLID_DYNAMIC);
    let (mut io, _) = queue(&machine, 0, 1, 1024, cntlid);
    let data = pattern(3, 16 << 10);
    let writes: Vec<_> = (0..500u64)
        .map(|n| io.submit(nvm::write(1, n * 4, 4, false), Payload::Asked(&data)))
        .collect();
    for cid in writes {
        io.complete(cid).ok();
    }
    let reads: Vec<_> = (0..1000u64)
        .map(|n| io.submit(nvm::read(1, n, 4), Payload::ToHost(16 << 10)))
        .collect();
    for (n, cid) in reads.into_iter().enumerate() {
        let read = io.complete(cid).ok();
        assert!(n % 4 != 0 || read == data);
    }
}
