//! A host: one core with the real fabrics host on it, the task that keeps it connected, and the tasks
//! that send commands.
//!
//! Invariants:
//! - Each command's outcome goes to the model; what no host may ever see goes to the verdict.
//! - Where nothing disturbs connections, losing one is a failure.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use corebay_core::{arena::Arena, buffer::BufferPool, reactor::Reactor, rng::Rng, units::Time};
use corebay_nvme::fabrics::{
    Controller, ControllerOptions, Digests, Error, Host, HostIdentity, IoQueue, LostCommands,
    Recovery,
};

use crate::{
    model::Model,
    net::{Hub, SimNetwork},
    node::{HOST_CORE, SUBSYSTEM},
    plan::{AfterLoss, HostPlan, Plan},
    trace::Trace,
    workload,
};

/// A host's memory for data.
const MEMORY_BYTES: usize = 2 << 20;

/// A host's task slots.
const TASK_SLOTS: usize = 64;

/// How often a host looks after its controller.
const LOOK: Duration = Duration::from_millis(10);

/// A controller that is lost for so long is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(20);

/// What the hosts of a world share.
pub struct Common {
    /// What the world is made of.
    pub plan: Plan,
    /// The run's trace.
    pub trace: Trace,
    /// The network.
    pub hub: Hub,
    /// One model for each namespace, from NSID 1.
    pub models: Vec<RefCell<Model>>,
    /// Where the target listens.
    pub target: SocketAddr,
    /// The first failure.
    pub verdict: RefCell<Option<String>>,
    /// No worker begins another command.
    pub stopping: Cell<bool>,
    /// The hosts end.
    pub finishing: Cell<bool>,
    /// The power has failed, also in a world where nothing else disturbs.
    pub power_failed: Cell<bool>,
    values: Cell<u64>,
    commands: Cell<u64>,
}

impl Common {
    /// What the hosts of a world of this plan share.
    #[must_use]
    pub fn new(plan: Plan, trace: &Trace, hub: &Hub, target: SocketAddr) -> Rc<Self> {
        let model = |(medium, nsid): (&crate::medium::MediumOptions, u32)| {
            RefCell::new(Model::new(nsid, medium.blocks, medium.volatile_cache))
        };
        Rc::new(Self {
            models: plan.media.iter().zip(1..).map(model).collect(),
            plan,
            trace: trace.clone(),
            hub: hub.clone(),
            target,
            verdict: RefCell::default(),
            stopping: Cell::new(false),
            finishing: Cell::new(false),
            power_failed: Cell::new(false),
            values: Cell::new(1),
            commands: Cell::new(0),
        })
    }

    /// Something happened that must not: the first such thing is the run's failure.
    pub fn fail(&self, what: String) {
        self.verdict.borrow_mut().get_or_insert(what);
    }

    /// True where no connection may be lost.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.plan.is_calm() && !self.power_failed.get()
    }

    /// A value that was never written.
    pub fn new_value(&self) -> u64 {
        let value = self.values.get();
        self.values.set(value + 1);
        value
    }

    /// Numbers a command.
    pub fn new_command(&self) -> u64 {
        let command = self.commands.get();
        self.commands.set(command + 1);
        command
    }

    /// The commands so far.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.commands.get()
    }
}

/// What the tasks of a host share.
pub struct Shared {
    /// What all hosts share.
    pub common: Rc<Common>,
    /// Which host it is.
    pub index: usize,
    /// Its plan.
    pub plan: HostPlan,
    /// Its initiator.
    pub host: Rc<Host<SimNetwork>>,
    /// Commands under way, for the report of a run that hangs.
    pub under_way: RefCell<BTreeMap<u64, String>>,
    /// Commands of it were lost since it was last fenced off.
    pub has_lost: Cell<bool>,
    ip: IpAddr,
    controller: RefCell<Option<Controller<SimNetwork>>>,
    busy: Cell<usize>,
}

/// A host.
pub struct Client {
    /// Its core's reactor, for the world to turn.
    pub reactor: Reactor,
    /// What its tasks share.
    pub shared: Rc<Shared>,
}

impl Client {
    /// The host `index`, which begins to connect and then to work.
    #[must_use]
    pub fn start(common: &Rc<Common>, index: usize, ip: IpAddr, seed: u64, now: Time) -> Self {
        let reactor = Reactor::new(HOST_CORE, TASK_SLOTS, now);
        let mut arena = Arena::lazy(MEMORY_BYTES).expect("memory for a host");
        let region = arena.take(MEMORY_BYTES).expect("all of the arena");
        let buffers = BufferPool::new(region, TASK_SLOTS);
        let network = SimNetwork::new(&common.hub, ip);
        let plan = common.plan.hosts[index];
        let shared = Rc::new(Shared {
            common: common.clone(),
            index,
            plan,
            host: Host::new(&reactor, network, buffers),
            under_way: RefCell::default(),
            has_lost: Cell::new(false),
            ip,
            controller: RefCell::default(),
            busy: Cell::new(plan.workers),
        });
        let client = Self { reactor, shared };
        client.spawn(keep_connected(client.shared.clone()));
        let mut rng = Rng::from_seed(seed);
        for worker in 0..plan.workers {
            let shared = client.shared.clone();
            let rng = Rng::from_seed(rng.next_u64());
            client.spawn(async move {
                workload::work(&shared, worker, rng).await;
                shared.busy.set(shared.busy.get() - 1);
            });
        }
        client
    }

    /// Starts the check of every block of every namespace.
    pub fn start_check(&self) {
        let shared = self.shared.clone();
        shared.busy.set(shared.busy.get() + 1);
        self.spawn(async move {
            workload::check_all(&shared).await;
            shared.busy.set(shared.busy.get() - 1);
        });
    }

    /// True once no worker works.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.shared.busy.get() == 0
    }

    /// True once every task and connection has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.reactor.executor().live() == 0 && self.shared.host.connections() == 0
    }

    /// Says what a host that has ended still holds.
    #[must_use]
    pub fn leaks(&self) -> Option<String> {
        let buffers = self.shared.host.buffers();
        let held = buffers.total_bytes() - buffers.free_bytes();
        (held != 0).then(|| format!("host {} still holds {held} bytes", self.shared.index))
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.reactor.spawn(Box::pin(task)).is_err() {
            unreachable!("a host has more slots than tasks");
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reactor.tear_down();
        drop(self.shared.controller.take());
    }
}

impl Shared {
    /// An I/O queue of the host's controller, once it has one; `None` where it is to stop.
    pub async fn queue(&self, index: usize) -> Option<IoQueue<SimNetwork>> {
        loop {
            if let Some(controller) = &*self.controller.borrow() {
                let count = controller.io_queues().max(1);
                let index = u16::try_from(index).unwrap_or(0) % count;
                if let Ok(queue) = controller.io_queue(index) {
                    return Some(queue);
                }
            }
            if self.common.stopping.get() {
                return None;
            }
            self.reactor().sleep(Duration::from_millis(2)).await;
        }
    }

    /// The host's reactor.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        self.host.reactor()
    }

    /// Tells the models where nothing that this host lost can have an effect any more.
    pub fn fence(&self) {
        let live = self
            .controller
            .borrow()
            .as_ref()
            .is_some_and(|controller| controller.io_queues() != 0);
        if live && self.has_lost.get() && self.common.hub.is_fenced(self.ip) {
            self.has_lost.set(false);
            for model in &self.common.models {
                model.borrow_mut().fence(self.index);
            }
        }
    }

    /// Counts the associations that the host has had, as far as it shows.
    #[must_use]
    pub fn associations(&self) -> u64 {
        let controller = self.controller.borrow();
        controller.as_ref().map_or(0, Controller::associations)
    }

    fn options(&self) -> ControllerOptions {
        let mut id = [0x5A; 16];
        id[0] = u8::try_from(self.index).unwrap_or(0xff);
        let nqn = format!("nqn.2026-01.io.corebay:simhost{}", self.index);
        let identity = HostIdentity {
            nqn: nqn.parse().expect("a valid NQN"),
            id,
        };
        let subsystem = SUBSYSTEM.parse().expect("a constant");
        let reconnect = |commands| Recovery::Reconnect {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(200),
            give_up_after: GIVE_UP_AFTER,
            commands,
        };
        ControllerOptions {
            digests: Digests {
                header: self.plan.digests.0,
                data: self.plan.digests.1,
            },
            io_queues: self.plan.io_queues,
            depth: self.plan.depth,
            keep_alive: self.plan.keep_alive,
            connect_timeout: Duration::from_millis(800),
            command_timeout: self.plan.command_timeout,
            recovery: match self.plan.after_loss {
                AfterLoss::GiveUp => Recovery::None,
                AfterLoss::Fail => reconnect(LostCommands::Fail),
                AfterLoss::Replay(after) => reconnect(LostCommands::Replay { after }),
            },
            ..ControllerOptions::new(self.common.target, subsystem, identity)
        }
    }

    /// True where the controller is lost and will not come back by itself.
    fn is_lost(&self, since: &mut Option<Time>) -> bool {
        let controller = self.controller.borrow();
        let lost = controller
            .as_ref()
            .is_none_or(|controller| controller.facts().is_err());
        let now = self.reactor().now();
        if !lost {
            *since = None;
            return false;
        }
        let since = *since.get_or_insert(now);
        self.plan.after_loss == AfterLoss::GiveUp || now.since(since) > GIVE_UP_AFTER * 2
    }
}

/// Keeps the host connected until the world ends.
async fn keep_connected(shared: Rc<Shared>) {
    while !shared.common.finishing.get() {
        match Controller::connect(&shared.host, shared.options()).await {
            Ok(controller) => {
                drop(shared.controller.replace(Some(controller)));
                watch(&shared).await;
            }
            Err(error) => {
                if may_not_happen(&shared.common, &error) {
                    shared
                        .common
                        .fail(format!("host {} cannot connect: {error}", shared.index));
                }
                shared.reactor().sleep(LOOK).await;
            }
        }
    }
    let controller = shared.controller.take();
    if let Some(controller) = controller {
        let shut_down = controller.shutdown().await;
        if let Err(error) = shut_down
            && shared.common.is_calm()
        {
            shared
                .common
                .fail(format!("host {} cannot shut down: {error}", shared.index));
        }
    }
}

/// Waits until the controller is lost for good or the world ends.
async fn watch(shared: &Rc<Shared>) {
    let mut since = None;
    while !shared.common.finishing.get() {
        if shared.is_lost(&mut since) {
            drop(shared.controller.take());
            return;
        }
        shared.reactor().sleep(LOOK).await;
    }
}

/// True for an error that no host may ever see, or not in this world.
pub fn may_not_happen(common: &Common, error: &Error) -> bool {
    match error {
        Error::Transport(_) | Error::TimedOut | Error::Closed => common.is_calm(),
        // A host that comes back while its former association lives may be told to wait.
        Error::Refused { .. } => common.is_calm(),
        Error::Status(_) => !common.plan.media_fail(),
        Error::Protocol(_)
        | Error::Terminated { .. }
        | Error::DataDigest
        | Error::Short { .. }
        | Error::Controller(_)
        | Error::Invalid(_) => true,
    }
}
