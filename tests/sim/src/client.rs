//! A host: one core with the real fabrics host on it, and for each appliance that it uses a session:
//! the task that keeps it connected, and the tasks that send commands.
//!
//! Invariants:
//! - Each command's outcome goes to the model; what no host may ever see goes to the verdict.
//! - Where nothing disturbs connections, losing one is a failure.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use corebay_core::{arena::Arena, buffer::BufferPool, reactor::Reactor, rng::Rng, units::Time};
use corebay_nvme::{
    fabrics::{
        Controller, ControllerOptions, Digests, Error, Host, HostIdentity, IoQueue, LostCommands,
        Recovery,
    },
    spec::{nqn::Nqn, status::Status},
};

use crate::{
    admin,
    beneath::NamespacePlan,
    discover,
    family::Stream,
    medium::MediumFaults,
    model::Model,
    net::{Hub, SimNetwork},
    node::{HOST_CORE, subsystem},
    notice::Notices,
    offer::{Informed, Offers},
    plan::{AfterLoss, HostPlan, NodePlan, Plan},
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

/// The name of a host, but for its number.
const HOST_NQN: &str = "nqn.2026-01.io.corebay:simhost";

/// Which host has this name.
#[must_use]
pub fn host_of(nqn: &str) -> Option<usize> {
    nqn.strip_prefix(HOST_NQN)?.parse().ok()
}

/// The name of a host.
#[must_use]
pub fn name_of(host: usize) -> Nqn {
    let nqn = format!("{HOST_NQN}{host}");
    nqn.parse().expect("a valid NQN")
}

/// What the hosts of a world share.
pub struct Common {
    /// What the world is made of.
    pub plan: Plan,
    /// The run's trace.
    pub trace: Trace,
    /// The network.
    pub hub: Hub,
    /// One model for each namespace of each appliance, from NSID 1.
    pub models: Vec<Vec<RefCell<Model>>>,
    /// By appliance: what it has told hosts of its namespaces.
    pub notices: Vec<Rc<RefCell<Notices>>>,
    /// By appliance: what it offers, and who is told of it.
    pub offers: Vec<Rc<RefCell<Offers>>>,
    /// The snapshot that an operator has sent last.
    pub stream: RefCell<Option<Rc<Stream>>>,
    /// The snapshots that operators have received, by their UUIDs.
    pub received: RefCell<BTreeSet<[u8; 16]>>,
    /// Where the targets listen.
    pub targets: Vec<SocketAddr>,
    /// The first failure.
    pub verdict: RefCell<Option<String>>,
    /// The hosts end.
    pub finishing: Cell<bool>,
    /// The power has failed, also in a world where nothing else disturbs.
    pub power_failed: Cell<bool>,
    values: Cell<u64>,
    commands: Cell<u64>,
    ended: Cell<u64>,
    /// Commands under way, with their hosts.
    under_way: RefCell<BTreeMap<u64, (usize, String)>>,
}

impl Common {
    /// What the hosts of a world of this plan share.
    #[must_use]
    pub fn new(plan: Plan, trace: &Trace, hub: &Hub, targets: Vec<SocketAddr>) -> Rc<Self> {
        let models = |(index, node): (usize, &NodePlan)| {
            let model = |(plan, nsid): (&NamespacePlan, u32)| {
                let name = format!("appliance {index} namespace {nsid}");
                let tears = node.floors[plan.floor].may_fail(&MediumFaults::default());
                RefCell::new(Model::new(name, plan.blocks, plan.volatile_cache, tears))
            };
            node.namespaces.iter().zip(1..).map(model).collect()
        };
        Rc::new(Self {
            models: plan.nodes.iter().enumerate().map(models).collect(),
            notices: plan.nodes.iter().map(|_| Rc::default()).collect(),
            offers: plan.nodes.iter().map(|_| Rc::default()).collect(),
            plan,
            trace: trace.clone(),
            hub: hub.clone(),
            targets,
            stream: RefCell::default(),
            received: RefCell::default(),
            verdict: RefCell::default(),
            finishing: Cell::new(false),
            power_failed: Cell::new(false),
            values: Cell::new(1),
            commands: Cell::new(0),
            ended: Cell::new(0),
            under_way: RefCell::default(),
        })
    }

    /// A host's process is no more, and with it all that it had under way.
    pub fn crash(&self, host: usize) {
        for model in self.models.iter().flatten() {
            model.borrow_mut().crash(host);
        }
        let mut under_way = self.under_way.borrow_mut();
        let before = under_way.len();
        under_way.retain(|_, (of, _)| *of != host);
        let lost = (before - under_way.len()) as u64;
        self.ended.set(self.ended.get() + lost);
    }

    /// Says what has begun and never ended.
    #[must_use]
    pub fn commands_left(&self) -> Option<String> {
        let left = self.commands.get() - self.ended.get();
        let operations: usize = self
            .models
            .iter()
            .flatten()
            .map(|model| model.borrow().under_way())
            .sum();
        let under_way = self.under_way.borrow();
        (left != 0 || operations != 0 || !under_way.is_empty()).then(|| {
            format!("{left} commands, {operations} operations, {under_way:?} have not ended")
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

    /// Numbers a command of a host, which begins.
    pub fn begin_command(&self, host: usize, what: String) -> u64 {
        let command = self.commands.get();
        self.commands.set(command + 1);
        self.under_way.borrow_mut().insert(command, (host, what));
        command
    }

    /// A command ends: each does so once.
    pub fn end_command(&self, command: u64) {
        self.ended.set(self.ended.get() + 1);
        let known = self.under_way.borrow_mut().remove(&command);
        assert!(known.is_some(), "a command ends twice");
    }

    /// The commands so far.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.commands.get()
    }
}

/// What the tasks of a host share that use one appliance.
pub struct Session {
    /// What all hosts share.
    pub common: Rc<Common>,
    /// Which host it is.
    pub index: usize,
    /// Which appliance it uses.
    pub node: usize,
    /// The host's plan.
    pub plan: HostPlan,
    /// The host's initiator.
    pub host: Rc<Host<SimNetwork>>,
    /// Commands of it were lost since it was last fenced off.
    pub has_lost: Cell<bool>,
    /// The association, by its number, for which this host turned the write cache off.
    pub cache_off: Cell<Option<u64>>,
    /// The association, by its number, whose controller this host has reset.
    pub disabled: Cell<Option<u64>>,
    /// The discovery controller that it keeps.
    pub informed: Cell<Option<Informed>>,
    ip: IpAddr,
    controller: RefCell<Option<Rc<SimController>>>,
    busy: Cell<usize>,
    checking: Cell<bool>,
    /// Events that nobody has looked at, each with the association that was told.
    events: RefCell<VecDeque<(u64, u32)>>,
    /// How often it was begun to say which events are wanted.
    mask_sets: Cell<u64>,
    /// The controllers that there have been.
    controllers: Cell<u64>,
}

/// A controller over the simulated network.
pub type SimController = Controller<SimNetwork>;

/// A host, in one life of its process.
pub struct Client {
    /// Its core's reactor, for the world to turn.
    pub reactor: Reactor,
    host: Rc<Host<SimNetwork>>,
    index: usize,
    /// One for each appliance that it uses.
    sessions: Vec<Rc<Session>>,
}

impl Client {
    /// The host `index`, which begins to connect and then to work; `again` where it had a life
    /// before.
    #[must_use]
    pub fn start(
        common: &Rc<Common>,
        (index, ip): (usize, IpAddr),
        seed: u64,
        now: Time,
        again: bool,
    ) -> Self {
        let reactor = Reactor::new(HOST_CORE, TASK_SLOTS, now);
        let mut arena = Arena::lazy(MEMORY_BYTES).expect("memory for a host");
        let region = arena.take(MEMORY_BYTES).expect("all of the arena");
        let buffers = BufferPool::new(region, TASK_SLOTS);
        let network = SimNetwork::new(&common.hub, ip);
        let plan = common.plan.hosts[index];
        let host = Host::new(&reactor, network, buffers);
        let mut client = Self {
            reactor,
            host,
            index,
            sessions: Vec::new(),
        };
        let mut rng = Rng::from_seed(seed);
        for node in 0..common.targets.len() {
            if !plan.nodes[node] {
                continue;
            }
            let session = Rc::new(Session {
                common: common.clone(),
                index,
                node,
                plan,
                host: client.host.clone(),
                has_lost: Cell::new(again),
                cache_off: Cell::new(None),
                disabled: Cell::new(None),
                informed: Cell::new(None),
                ip,
                controller: RefCell::default(),
                busy: Cell::new(plan.workers),
                checking: Cell::new(false),
                events: RefCell::default(),
                mask_sets: Cell::new(0),
                controllers: Cell::new(0),
            });
            client.start_session(&session, &mut rng);
            client.sessions.push(session);
        }
        client
    }

    fn start_session(&self, session: &Rc<Session>, rng: &mut Rng) {
        self.spawn(keep_connected(session.clone()));
        for worker in 0..session.plan.workers {
            let session = session.clone();
            let rng = Rng::from_seed(rng.next_u64());
            self.spawn(async move {
                workload::work(&session, worker, rng).await;
                session.busy.set(session.busy.get() - 1);
            });
        }
        let workload = session.common.plan.workload;
        if workload.admin || workload.aborts || workload.resets {
            let rng = Rng::from_seed(rng.next_u64());
            self.spawn(admin::administrate(session.clone(), rng));
        }
        if workload.admin {
            self.spawn(admin::take_events(session.clone()));
            self.spawn(admin::read_of_events(session.clone()));
        }
        if session.common.plan.discovers {
            self.spawn(discover::keep_informed(session.clone()));
        }
    }

    /// Starts the check of every block of every namespace that it uses.
    pub fn start_check(&self) {
        for session in &self.sessions {
            let session = session.clone();
            session.busy.set(session.busy.get() + 1);
            session.checking.set(true);
            self.spawn(async move {
                workload::check_all(&session).await;
                session.busy.set(session.busy.get() - 1);
            });
        }
    }

    /// True once no worker works.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.sessions.iter().all(|session| session.busy.get() == 0)
    }

    /// True where it has not read yet of all changes of namespaces, and of what is offered, that it was told
    /// of.
    #[must_use]
    pub fn has_unread_notices(&self) -> bool {
        let unread = |session: &Rc<Session>| {
            let offers = session.common.offers[session.node].borrow();
            if session
                .informed
                .get()
                .is_some_and(|of| offers.has_unread(of))
            {
                return true;
            }
            let notices = session.common.notices[session.node].borrow();
            let taker = session.common.plan.workload.admin && !session.is_disabled();
            taker && session.told_as().is_some_and(|of| notices.has_unread(of))
        };
        self.sessions.iter().any(unread)
    }

    /// True once every task and connection has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.reactor.executor().live() == 0 && self.host.connections() == 0
    }

    /// Says what a host that has ended still holds.
    #[must_use]
    pub fn leaks(&self) -> Option<String> {
        let buffers = self.host.buffers();
        let held = buffers.total_bytes() - buffers.free_bytes();
        (held != 0).then(|| format!("host {} still holds {held} bytes", self.index))
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
        for session in &self.sessions {
            drop(session.controller.take());
        }
    }
}

impl Session {
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
            if self.common.finishing.get() {
                return None;
            }
            self.reactor().sleep(LOOK).await;
        }
    }

    /// The host's controller, to be used for one command and not to be kept.
    #[must_use]
    pub fn controller(&self) -> Option<Rc<SimController>> {
        self.controller.borrow().clone()
    }

    /// The model of a namespace.
    #[must_use]
    pub fn model(&self, nsid: u32) -> &RefCell<Model> {
        &self.common.models[self.node][nsid as usize - 1]
    }

    /// The namespaces of the appliance.
    #[must_use]
    pub fn namespaces(&self) -> &[NamespacePlan] {
        &self.common.plan.nodes[self.node].namespaces
    }

    /// The host's reactor.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        self.host.reactor()
    }

    /// Tells the models where nothing that this host lost can have an effect any more.
    pub fn fence(&self) {
        let peer = self.common.targets[self.node].ip();
        let live = self
            .controller
            .borrow()
            .as_ref()
            .is_some_and(|controller| controller.io_queues() != 0);
        if live && self.has_lost.get() && self.common.hub.is_fenced(self.ip, peer) {
            self.has_lost.set(false);
            for model in &self.common.models[self.node] {
                model.borrow_mut().fence(self.index);
            }
        }
    }

    /// The number of the host's association: another one has another number.
    #[must_use]
    pub fn association(&self) -> u64 {
        let controller = self.controller.borrow();
        let made = controller
            .as_ref()
            .map_or(0, |controller| controller.associations());
        self.controllers.get() << 32 | made
    }

    /// The controller has told of an event.
    pub fn add_event(&self, dword: u32) {
        let event = (self.association(), dword);
        self.events.borrow_mut().push_back(event);
    }

    /// Somebody says which events are wanted: how often that has been begun.
    pub fn sets_mask(&self) -> u64 {
        let sets = self.mask_sets.get() + 1;
        self.mask_sets.set(sets);
        sets
    }

    /// The next event to look at, and the association that was told.
    #[must_use]
    pub fn next_event(&self) -> Option<(u64, u32)> {
        self.events.borrow_mut().pop_front()
    }

    /// As whom the appliance tells the host of its namespaces: the host, and its controller's identifier.
    #[must_use]
    pub fn told_as(&self) -> Option<(usize, u16)> {
        let controller = self.controller.borrow();
        let facts = controller.as_ref()?.facts().ok()?;
        Some((self.index, facts.cntlid))
    }

    /// True while the write cache is off for the host's association, as it asked.
    #[must_use]
    pub fn is_cache_off(&self) -> bool {
        self.cache_off.get() == Some(self.association())
    }

    /// True where the host has reset its association's controller: nothing works there any more.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.disabled.get() == Some(self.association())
    }

    /// True once the workers have done their work.
    #[must_use]
    pub fn is_checking(&self) -> bool {
        self.checking.get()
    }

    /// How it connects to the appliance.
    #[must_use]
    pub fn options(&self) -> ControllerOptions {
        let mut id = [0x5A; 16];
        id[0] = u8::try_from(self.index).unwrap_or(0xff);
        let identity = HostIdentity {
            nqn: name_of(self.index),
            id,
        };
        let subsystem = subsystem(self.node);
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
            ..ControllerOptions::new(self.common.targets[self.node], subsystem, identity)
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
async fn keep_connected(session: Rc<Session>) {
    while !session.common.finishing.get() {
        match Controller::connect(&session.host, session.options()).await {
            Ok(controller) => {
                session.controllers.set(session.controllers.get() + 1);
                drop(session.controller.replace(Some(Rc::new(controller))));
                watch(&session).await;
            }
            Err(error) => {
                if may_not_happen(&session.common, None, &error) {
                    session
                        .common
                        .fail(format!("host {} cannot connect: {error}", session.index));
                }
                session.reactor().sleep(LOOK).await;
            }
        }
    }
    let Some(mut controller) = session.controller.take() else {
        return;
    };
    // Who asks it something still has it.
    let controller = loop {
        match Rc::try_unwrap(controller) {
            Ok(controller) => break controller,
            Err(shared) => controller = shared,
        }
        session.reactor().sleep(LOOK).await;
    };
    let shut_down = controller.shutdown().await;
    if let Err(error) = shut_down
        && session.common.is_calm()
    {
        let index = session.index;
        session
            .common
            .fail(format!("host {index} cannot shut down: {error}"));
    }
}

/// Waits until the controller is lost for good or the world ends.
async fn watch(session: &Rc<Session>) {
    let mut since = None;
    while !session.common.finishing.get() {
        if session.is_lost(&mut since) {
            drop(session.controller.take());
            return;
        }
        session.reactor().sleep(LOOK).await;
    }
}

/// True for an error that no host may ever see, or not in this world of a command to the namespace that
/// `place` names by its appliance and its identifier.
pub fn may_not_happen(common: &Common, place: Option<(usize, u32)>, error: &Error) -> bool {
    match error {
        Error::Transport(_) | Error::TimedOut | Error::Closed => common.is_calm(),
        // A host that comes back while its former association lives may be told to wait.
        Error::Refused { .. } => common.is_calm(),
        Error::Status(status) => !may_be_told(common, place, *status),
        Error::Protocol(_)
        | Error::Terminated { .. }
        | Error::DataDigest
        | Error::Short { .. }
        | Error::Controller(_)
        | Error::Invalid(_) => true,
    }
}

/// True for a status that a command may end with in this world.
fn may_be_told(common: &Common, place: Option<(usize, u32)>, status: Status) -> bool {
    let any = |of: &[Status]| of.iter().any(|each| status.same_as(*each));
    let plan = &common.plan;
    let aborted = [
        Status::ABORT_REQUESTED,
        Status::ABORTED_FAILED_FUSED,
        Status::ABORTED_MISSING_FUSED,
    ];
    let media = [
        Status::UNRECOVERED_READ_ERROR,
        Status::WRITE_FAULT,
        Status::CAPACITY_EXCEEDED,
        Status::INTERNAL_ERROR,
        Status::COMMAND_INTERRUPTED,
        Status::ABORTED_FAILED_FUSED,
    ];
    // An identifier that is not active is a wrong field (Base, section 3.2.1.4).
    let away = [
        Status::INVALID_FIELD,
        Status::INVALID_NAMESPACE_OR_FORMAT,
        Status::ABORTED_FAILED_FUSED,
    ];
    // Its controller was reset or shut down, or its association ended, while it was under way.
    let ended = [
        Status::COMMAND_SEQUENCE_ERROR,
        Status::ABORT_REQUESTED,
        Status::ABORTED_FAILED_FUSED,
    ];
    place.is_some_and(|(node, nsid)| plan.media_fail(node, nsid)) && any(&media)
        || plan.reloads() && any(&away)
        || plan.workload.aborts && any(&aborted)
        || (plan.workload.resets || !common.is_calm()) && any(&ended)
}
