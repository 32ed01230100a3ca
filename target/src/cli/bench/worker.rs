//! One core's thread: pins itself, connects, waits for the others, runs its part and shuts down.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use corebay_core::{
    arena::Region,
    buffer::{BLOCK_BYTES_MIN, BufferPool},
    net::os::OsNetwork,
    reactor::{self, MachineClock, Reactor},
    units::CoreId,
};
use corebay_nvme::fabrics::{Controller, Host};

use super::{
    super::{failure::Failure, session::explain},
    job::Job,
    plan::Plan,
    stats::{Live, Stats},
};

/// How often a core looks whether the others are there, or its tasks at their end.
const POLL: Duration = Duration::from_millis(1);

/// The memory of a core's own commands, beside its data.
const OWN_BYTES: usize = 256 << 10;

/// The tasks of a core beside those of its commands.
const OWN_TASKS: usize = 16;

/// What all cores share.
pub struct Shared {
    /// Cores that are connected.
    pub ready: AtomicUsize,
    /// All are: begin.
    pub go: AtomicBool,
    /// One has failed, or the user wants to end.
    pub interrupted: Arc<AtomicBool>,
    /// Why the first one failed.
    pub failure: Mutex<Option<Failure>>,
    /// What there is to tell about the connections: the same line once.
    pub notes: Mutex<Vec<String>>,
}

/// What one core is started with.
pub struct Part {
    /// The core, counted from 0.
    pub index: usize,
    /// What is done.
    pub plan: Arc<Plan>,
    /// The core's memory.
    pub region: Region,
    /// What it lets others see.
    pub live: Arc<Live>,
    /// What all share.
    pub shared: Arc<Shared>,
    /// The time of all cores.
    pub clock: MachineClock,
}

/// The memory that core `index` needs, in bytes.
pub fn memory_bytes(plan: &Plan, index: usize) -> usize {
    let commands = usize::from(plan.queues_of(index)) * usize::from(plan.args.depth);
    // The allocator hands out powers of two of its smallest block.
    let one = (plan.unit_bytes as usize)
        .max(BLOCK_BYTES_MIN)
        .next_power_of_two();
    let align = 1 << 20;
    (commands * one + OWN_BYTES).next_multiple_of(align)
}

/// Runs one core's part on the calling thread.
pub fn run(part: Part) -> Stats {
    let shared = part.shared.clone();
    match try_run(part) {
        Ok(stats) => stats,
        Err(failure) => {
            shared
                .failure
                .lock()
                .expect("nobody panics")
                .get_or_insert(failure);
            shared.interrupted.store(true, Ordering::Relaxed);
            Stats::new()
        }
    }
}

fn try_run(part: Part) -> Result<Stats, Failure> {
    let cpu = part.plan.cpus[part.index];
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu as usize);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| {
        let message = format!("cannot stay on CPU {cpu}: {error}");
        Failure::new(message, "choose others with --cores")
    })?;
    let queues = part.plan.queues_of(part.index);
    let tasks = usize::from(queues) * usize::from(part.plan.args.depth) + OWN_TASKS;
    let reactor = Reactor::new(CoreId(part.index), tasks, part.clock.now());
    let network = OsNetwork::new().map_err(|error| {
        let message = format!("cannot use the network: {error}");
        Failure::new(message, "raise the limit of open files")
    })?;
    let buffers = BufferPool::new(part.region, tasks);
    let host = Host::new(&reactor, network, buffers);
    let outcome = Rc::new(RefCell::new(None));
    let clock = part.clock;
    let conductor = Conductor {
        index: part.index,
        plan: part.plan,
        live: part.live,
        shared: part.shared,
        host,
        clock,
    };
    let (into, stop) = (outcome.clone(), reactor.clone());
    let work = async move {
        let stats = conductor.conduct().await;
        *into.borrow_mut() = Some(stats);
        stop.stop();
    };
    if reactor.spawn(Box::pin(work)).is_err() {
        unreachable!("the reactor's first task has a slot");
    }
    // A core that measures never sleeps: waking up would be measured too.
    reactor::run(&reactor, clock, None);
    let counters = reactor.counters();
    tracing::debug!(
        cpu,
        counters.turns,
        counters.busy_turns,
        "the core has ended"
    );
    reactor.tear_down();
    outcome
        .take()
        .expect("the reactor stops once the conductor has ended")
}

/// What leads a core through its run.
struct Conductor {
    index: usize,
    plan: Arc<Plan>,
    live: Arc<Live>,
    shared: Arc<Shared>,
    host: Rc<Host<OsNetwork>>,
    clock: MachineClock,
}

impl Conductor {
    async fn conduct(self) -> Result<Stats, Failure> {
        let reactor = self.host.reactor().clone();
        let options = self.plan.controller(self.index);
        let controller = Controller::connect(&self.host, options).await;
        let address = self.plan.address;
        let controller = controller.map_err(|error| explain("connect", address, &error))?;
        self.note_what_was_granted(&controller)?;
        self.shared.ready.fetch_add(1, Ordering::Relaxed);
        while !self.shared.go.load(Ordering::Relaxed) {
            if self.shared.interrupted.load(Ordering::Relaxed) {
                return Ok(Stats::new());
            }
            reactor.sleep(POLL).await;
        }
        let job = Rc::new(Job::new(
            self.plan.clone(),
            self.index,
            reactor.clone(),
            self.clock,
            self.live.clone(),
            self.shared.interrupted.clone(),
        ));
        self.start(&job, &controller).await?;
        while job.measuring.get() > 0 {
            reactor.sleep(POLL).await;
        }
        job.finish();
        while job.running.get() > 0 {
            reactor.sleep(POLL).await;
        }
        let mut stats = job.stats.replace(Stats::new());
        stats.associations = controller.associations();
        // Everything was measured: how the controller ends does not change it.
        let _ = controller.shutdown().await;
        Ok(stats)
    }

    async fn start(
        &self,
        job: &Rc<Job>,
        controller: &Controller<OsNetwork>,
    ) -> Result<(), Failure> {
        let slots = job.slots();
        job.measuring.set(slots.len());
        job.running.set(slots.len());
        let mut tasks = Vec::with_capacity(slots.len());
        for slot in slots {
            let index = u16::try_from(slot.queue).expect("asked for with 16 bits");
            let queue = controller
                .io_queue(index)
                .map_err(|error| explain("use the I/O queues", self.plan.address, &error))?;
            let buffer = self
                .host
                .buffers()
                .allocate(self.plan.unit_bytes as usize)
                .await;
            tasks.push(job.clone().run(slot, queue, buffer));
        }
        job.start();
        for task in tasks {
            if self.host.reactor().spawn(Box::pin(task)).is_err() {
                unreachable!("the reactor has a slot for each command");
            }
        }
        Ok(())
    }

    /// Compares what the controller granted with what was asked for.
    fn note_what_was_granted(&self, controller: &Controller<OsNetwork>) -> Result<(), Failure> {
        let asked = self.plan.queues_of(self.index);
        let granted = controller.io_queues();
        if granted < asked {
            return Err(Failure::new(
                format!("the controller grants {granted} I/O queues of {asked} on one core"),
                "ask for fewer --queues",
            ));
        }
        let facts = controller
            .facts()
            .map_err(|error| explain("use the controller", self.plan.address, &error))?;
        let depth = self.plan.args.depth;
        let allowed = facts.depth;
        if allowed < depth {
            self.note(format!(
                "the controller allows {allowed} commands in flight on a queue: of depth {depth}, \
                 the others wait"
            ));
        }
        let asked = self.plan.args.host.digests();
        let agreed = controller.digests().unwrap_or_default();
        for (name, asked, agreed) in [
            ("header", asked.header, agreed.header),
            ("data", asked.data, agreed.data),
        ] {
            if asked && !agreed {
                self.note(format!("the controller declines {name} digests"));
            }
        }
        Ok(())
    }

    fn note(&self, line: String) {
        let mut notes = self.shared.notes.lock().expect("nobody panics");
        if !notes.contains(&line) {
            notes.push(line);
        }
    }
}
