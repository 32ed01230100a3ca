//! One core's part of the target: its memory, its open namespaces, its queues, and its end of the
//! mesh to the other cores.
//!
//! Invariants:
//! - Whatever is in here is touched by its own core alone. Another core asks by a message, which is
//!   a function that runs here ([`Core::send`], [`Core::call`]). Control path only.
//! - Whatever goes over all queues does so in the order of their keys, so that equal runs are equal.
//! - Queues that wait for memory or a task slot are served in turn, one command each, so that a
//!   deep queue does not keep a shallow one waiting; but the one that found no memory goes first,
//!   so that small commands do not overtake a large one for ever.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    marker::PhantomData,
    os::fd::BorrowedFd,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
};

use corebay_core::{
    mesh::Port,
    reactor::{PollSource, Reactor},
    sync::Oneshot,
    units::{CoreId, Lba, Time},
};
use hashbrown::{HashMap, hash_map::Entry};
use slab::Slab;
use tracing::{debug, error};

use crate::{
    environment::Environment,
    limits::{HOUSEKEEPING_INTERVAL, IN_CAPSULE_BYTES_MAX, Limits, SQUEEZE_AFTER, TASKS_PER_CORE},
    memory::{HostShares, Memory},
    namespace::{Namespace, NamespaceSpec, NamespaceTable, WriteGate},
    pace::{self, Lines, Pacer},
    queue::{Pumped, QueueControl, QueueKey},
    subsystem::{Registry, SubsystemId},
};

/// What one core asks of another: a function that runs there.
pub type Message<E> = Box<dyn FnOnce(&Rc<Core<E>>) + Send>;

/// A namespace that one core has opened.
type Opened<E> = Namespace<<E as Environment>::Disk, <E as Environment>::Medium>;

/// The namespace table of one subsystem on one core.
pub type Table<E> = NamespaceTable<<E as Environment>::Disk, <E as Environment>::Medium>;

/// By subsystem and namespace: those who wait until the fused command that has it has ended.
type FusedTurns = HashMap<(SubsystemId, u32), VecDeque<Reply<()>>>;

/// Task slots that I/O commands leave free, for the control path.
const CONTROL_SLOTS: usize = 64;

/// Task slots that a core holds from its start on: of its housekeeping, and of those who wait for limits.
pub const STANDING_TASKS: usize = 2;

/// What takes over a connection that another core has accepted.
pub type Adopter = Rc<dyn Fn(Box<dyn Any + Send>)>;

/// One core's part of the target.
pub struct Core<E: Environment> {
    /// The core's reactor.
    pub reactor: Reactor,
    /// What surrounds the core.
    pub environment: E,
    /// What is exported, by all cores together.
    pub registry: Arc<Registry<E::Medium>>,
    /// What the binary has configured.
    pub limits: Limits,
    /// The core's memory.
    pub memory: Memory,
    /// Who holds how much of it.
    pub shares: HostShares,
    /// Who waits for the limits of namespaces.
    pub pacer: Pacer<E>,
    port: Port<Message<E>>,
    tables: RefCell<HashMap<SubsystemId, Rc<Table<E>>>>,
    /// Namespaces that are open here and attached nowhere yet.
    staged: RefCell<HashMap<usize, Opened<E>>>,
    queues: RefCell<BTreeMap<QueueKey, Rc<dyn QueueControl>>>,
    waiting: RefCell<VecDeque<Rc<dyn QueueControl>>>,
    /// The queue that found no memory, and since when it waits. It is not among `waiting`.
    first_for_memory: RefCell<Option<(Rc<dyn QueueControl>, Time)>>,
    replies: RefCell<Slab<Answer>>,
    backlog: RefCell<VecDeque<Pin<Box<dyn Future<Output = ()>>>>>,
    adopters: RefCell<Vec<(&'static str, Adopter)>>,
    /// The namespaces that a fused command has, and those who wait to be next.
    fused_turns: RefCell<FusedTurns>,
    /// The write gates of namespaces, also of those that were detached while commands execute on them.
    gates: RefCell<HashMap<(SubsystemId, u32), Weak<WriteGate>>>,
    locked: RefCell<HashMap<u64, Rc<WriteGate>>>,
    next_lock: Cell<u64>,
    next_key: Cell<u64>,
    draining: Cell<bool>,
}

impl<E: Environment> Core<E> {
    /// A core that serves what is in `registry`. Its reactor polls it from now on.
    pub fn start(
        reactor: Reactor,
        environment: E,
        registry: Arc<Registry<E::Medium>>,
        limits: Limits,
        memory: Memory,
        port: Port<Message<E>>,
    ) -> Rc<Self> {
        assert!(limits.in_capsule_bytes <= IN_CAPSULE_BYTES_MAX);
        let shares = HostShares::new(memory.fused_max(limits.in_capsule_bytes));
        let core = Rc::new(Self {
            reactor,
            environment,
            registry,
            limits,
            memory,
            shares,
            pacer: Pacer::default(),
            port,
            tables: RefCell::default(),
            staged: RefCell::default(),
            queues: RefCell::default(),
            waiting: RefCell::new(VecDeque::with_capacity(limits.connections_max)),
            first_for_memory: RefCell::default(),
            replies: RefCell::default(),
            backlog: RefCell::default(),
            adopters: RefCell::default(),
            fused_turns: RefCell::default(),
            gates: RefCell::default(),
            locked: RefCell::default(),
            next_lock: Cell::new(1),
            next_key: Cell::new(1),
            draining: Cell::new(false),
        });
        core.reactor
            .add_source(Rc::new(CoreSource { core: core.clone() }));
        let keeper = core.clone();
        core.spawn_control(async move {
            loop {
                keeper.reactor.sleep(HOUSEKEEPING_INTERVAL).await;
                keeper.housekeeping();
            }
        });
        core.spawn_control(pace::run(core.clone()));
        core
    }

    /// Which core this is.
    #[must_use]
    pub fn id(&self) -> CoreId {
        self.port.core()
    }

    /// How many cores there are.
    #[must_use]
    pub fn count(&self) -> usize {
        // The last port is the main thread's.
        self.port.cores() - 1
    }

    /// Runs `action` on core `to`, which may be this one, in a later turn.
    pub fn send(&self, to: CoreId, action: impl FnOnce(&Rc<Self>) + Send + 'static) {
        self.port.send(to, Box::new(action));
    }

    /// Runs `action` on core `to` and waits for what it replies.
    pub async fn call<R: Send + 'static>(
        &self,
        to: CoreId,
        action: impl FnOnce(&Rc<Self>, Reply<R>) + Send + 'static,
    ) -> R {
        let (reply, answer) = self.expect_reply(self.id());
        self.send(to, move |core| action(core, reply));
        receive_reply(answer).await
    }

    /// Runs `action` on every core and waits until all have replied.
    pub async fn call_all<R: Send + 'static>(
        &self,
        action: impl Fn(&Rc<Self>, Reply<R>) + Clone + Send + 'static,
    ) -> Vec<R> {
        let mut answers = Vec::with_capacity(self.count());
        for to in 0..self.count() {
            let (reply, answer) = self.expect_reply(self.id());
            let action = action.clone();
            self.send(CoreId(to), move |core| action(core, reply));
            answers.push(answer);
        }
        let mut replies = Vec::with_capacity(answers.len());
        for answer in answers {
            replies.push(receive_reply(answer).await);
        }
        replies
    }

    fn expect_reply<R>(&self, to: CoreId) -> (Reply<R>, Answer) {
        let answer = Answer::default();
        let key = self.replies.borrow_mut().insert(answer.clone());
        (
            Reply {
                to,
                key,
                value: PhantomData,
            },
            answer,
        )
    }

    /// Starts a task of the control path; it waits for a slot if it must.
    pub fn spawn_control(&self, task: impl Future<Output = ()> + 'static) {
        self.backlog.borrow_mut().push_back(Box::pin(task));
        self.start_backlog();
    }

    /// True where an I/O command may take a task slot.
    #[must_use]
    pub fn has_free_slot(&self) -> bool {
        self.free_slots() > 0
    }

    /// Task slots that I/O commands may still take.
    pub fn free_slots(&self) -> usize {
        self.reactor.executor().free().saturating_sub(CONTROL_SLOTS)
    }

    /// A key that no other queue of this core has.
    pub fn new_queue_key(&self) -> QueueKey {
        let key = self.next_key.get();
        self.next_key.set(key + 1);
        QueueKey(key)
    }

    /// Makes a queue known to the control path.
    pub fn add_queue(&self, key: QueueKey, queue: Rc<dyn QueueControl>) {
        self.queues.borrow_mut().insert(key, queue);
    }

    /// Forgets a queue that has ended.
    pub fn remove_queue(&self, key: QueueKey) {
        self.queues.borrow_mut().remove(&key);
    }

    /// The queue with this key, if it still is.
    #[must_use]
    pub fn queue(&self, key: QueueKey) -> Option<Rc<dyn QueueControl>> {
        self.queues.borrow().get(&key).cloned()
    }

    /// The queues of this core.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.borrow().len()
    }

    /// Lets a queue be served in turn, once memory or slots are free.
    pub fn wait_in_turn(&self, queue: Rc<dyn QueueControl>) {
        self.waiting.borrow_mut().push_back(queue);
    }

    /// True where some queue waits its turn, so that nobody may help himself out of turn.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty() || self.first_for_memory.borrow().is_some()
    }

    /// The table of a subsystem's namespaces on this core.
    pub fn table(&self, subsystem: SubsystemId) -> Rc<Table<E>> {
        self.tables
            .borrow_mut()
            .entry(subsystem)
            .or_default()
            .clone()
    }

    /// Opens a namespace on this core.
    ///
    /// # Errors
    /// Where its disk cannot be opened here.
    pub fn attach(
        &self,
        subsystem: SubsystemId,
        spec: Arc<NamespaceSpec<E::Medium>>,
    ) -> Result<(), corebay_core::disk::DiskError> {
        let namespace = self.open(spec)?;
        self.show(subsystem, namespace);
        Ok(())
    }

    /// Opens a namespace on this core without showing it to anybody, so that a change of several
    /// can be given up as a whole. `key` names it for [`attach_staged`](Self::attach_staged).
    ///
    /// # Errors
    /// Where its disk cannot be opened here.
    pub fn stage(
        &self,
        key: usize,
        spec: Arc<NamespaceSpec<E::Medium>>,
    ) -> Result<(), corebay_core::disk::DiskError> {
        let namespace = self.open(spec)?;
        self.staged.borrow_mut().insert(key, namespace);
        Ok(())
    }

    /// Attaches the namespace that was staged as `key`.
    pub fn attach_staged(&self, key: usize, subsystem: SubsystemId) {
        let staged = self.staged.borrow_mut().remove(&key);
        debug_assert!(staged.is_some(), "namespace {key} was not staged");
        if let Some(namespace) = staged {
            self.show(subsystem, namespace);
        }
    }

    fn show(&self, subsystem: SubsystemId, mut namespace: Opened<E>) {
        let mut gates = self.gates.borrow_mut();
        let name = (subsystem, namespace.spec.nsid);
        match gates.get(&name).and_then(Weak::upgrade) {
            Some(gate) => namespace.gate = gate,
            None => {
                // Not each time: many may be attached one after the other.
                if gates.len() == gates.capacity() {
                    gates.retain(|_, gate| gate.strong_count() > 0);
                }
                gates.insert(name, Rc::downgrade(&namespace.gate));
            }
        }
        drop(gates);
        self.table(subsystem).attach(namespace);
    }

    /// Closes what is staged.
    pub fn drop_staged(&self) {
        drop(self.staged.take());
    }

    fn open(
        &self,
        spec: Arc<NamespaceSpec<E::Medium>>,
    ) -> Result<Opened<E>, corebay_core::disk::DiskError> {
        Ok(Namespace {
            disk: self.environment.open(&spec.medium)?,
            spec,
            gate: Rc::new(WriteGate::new(TASKS_PER_CORE)),
            lines: Lines::default(),
        })
    }

    /// A number that no other lock of any core has.
    #[must_use]
    pub fn new_lock_id(&self) -> u64 {
        let count = self.next_lock.get();
        self.next_lock.set(count + 1);
        count * self.count() as u64 + self.id().0 as u64
    }

    /// Replies once a fused command may have the namespace. To be called on the namespace's home core.
    /// Whoever waits holds no task slot here: what the others wait for may need one.
    pub fn take_fused_turn(&self, subsystem: SubsystemId, nsid: u32, reply: Reply<()>) {
        match self.fused_turns.borrow_mut().entry((subsystem, nsid)) {
            Entry::Occupied(mut waiting) => waiting.get_mut().push_back(reply),
            Entry::Vacant(nobody) => {
                nobody.insert(VecDeque::new());
                reply.send(self, ());
            }
        }
    }

    /// Lets the next fused command have the namespace.
    pub fn end_fused_turn(&self, subsystem: SubsystemId, nsid: u32) {
        let mut turns = self.fused_turns.borrow_mut();
        let next = turns.get_mut(&(subsystem, nsid));
        match next.and_then(VecDeque::pop_front) {
            Some(reply) => reply.send(self, ()),
            None => drop(turns.remove(&(subsystem, nsid))),
        }
    }

    /// Locks blocks against this core's writes, and replies once those that execute have ended.
    pub fn lock_blocks(self: &Rc<Self>, subsystem: SubsystemId, lock: Lock, reply: Reply<()>) {
        let gate = self.gates.borrow().get(&(subsystem, lock.nsid)).cloned();
        let Some(gate) = gate.as_ref().and_then(Weak::upgrade) else {
            reply.send(self, ());
            return;
        };
        self.locked.borrow_mut().insert(lock.id, gate.clone());
        let core = self.clone();
        let ready = move || reply.send(&core, ());
        gate.lock(lock.id, lock.at, lock.blocks, Box::new(ready));
    }

    /// Gives up the lock `id`, also where its namespace was detached since.
    pub fn unlock_blocks(&self, id: u64) {
        if let Some(gate) = self.locked.borrow_mut().remove(&id) {
            gate.unlock(id);
        }
    }

    /// Says who takes over connections of the transport `kind` on this core.
    pub fn set_adopter(&self, kind: &'static str, adopter: Adopter) {
        self.adopters.borrow_mut().push((kind, adopter));
    }

    /// Hands a connection of the transport `kind` to this core.
    pub fn adopt(&self, kind: &'static str, connection: Box<dyn Any + Send>) {
        let adopter = self
            .adopters
            .borrow()
            .iter()
            .find(|(of, _)| *of == kind)
            .map(|(_, a)| a.clone());
        match adopter {
            Some(adopter) => adopter(connection),
            None => error!(kind, "no transport of this kind runs on {}", self.id()),
        }
    }

    /// Accepts nothing new from now on, and closes each queue once its commands have ended.
    pub fn drain(&self) {
        self.draining.set(true);
        let queues: Vec<_> = self.queues.borrow().values().cloned().collect();
        for queue in queues {
            queue.drain();
        }
    }

    /// True once [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Closes whatever queue is left, at once.
    pub fn close_all(&self) {
        let queues: Vec<_> = self.queues.borrow().values().cloned().collect();
        for queue in queues {
            queue.close("the target ends");
        }
    }

    /// Lets go of queues, tables and tasks, so that this core and what refers to it are freed. For
    /// the end of a simulated node, together with [`Reactor::tear_down`].
    pub fn tear_down(&self) {
        drop(self.queues.take());
        drop(self.waiting.take());
        drop(self.first_for_memory.take());
        self.shares.clear();
        self.pacer.clear();
        drop(self.backlog.take());
        drop(self.adopters.take());
        drop(self.locked.take());
        drop(self.fused_turns.take());
        drop(self.tables.take());
        self.drop_staged();
    }

    fn housekeeping(&self) {
        let now = self.reactor.now();
        // Copied, since a queue that has timed out leaves the map.
        let queues: Vec<_> = self.queues.borrow().values().cloned().collect();
        self.shares.look(|| {
            for queue in &queues {
                queue.clone().housekeeping(now);
            }
        });
        let waits_since = self.first_for_memory.borrow().as_ref().map(|(_, at)| *at);
        if waits_since.is_some_and(|since| now.since(since) >= SQUEEZE_AFTER)
            && let Some(share) = self.shares.largest_stalled()
        {
            for queue in queues {
                queue.squeeze(&share);
            }
        }
    }

    fn start_backlog(&self) -> usize {
        let mut started = 0;
        while self.reactor.executor().free() > 0 {
            let Some(task) = self.backlog.borrow_mut().pop_front() else {
                break;
            };
            if let Err(corebay_core::executor::Full(task)) = self.reactor.spawn(task) {
                self.backlog.borrow_mut().push_front(task);
                break;
            }
            started += 1;
        }
        started
    }

    fn receive(self: &Rc<Self>) -> usize {
        let mut received = 0;
        while received < crate::limits::MESH_CAPACITY
            && let Some(action) = self.port.receive()
        {
            action(self);
            received += 1;
        }
        self.port.push_waiting();
        received
    }

    /// Lets the waiting queues go on as far as memory and slots reach, one command each in turn.
    ///
    /// Once one finds no memory, the others get none before it does; but they still get slots,
    /// because what waits for a slot may hold the memory that the first one needs.
    fn pump(&self) -> usize {
        let mut started = 0;
        loop {
            let before = started;
            let mut memory_left = self.pump_first(&mut started);
            let round = self.waiting.borrow().len();
            for _ in 0..round {
                let Some(queue) = self.waiting.borrow_mut().pop_front() else {
                    break;
                };
                match queue.clone().pump(memory_left) {
                    Pumped::Nothing => continue,
                    Pumped::Started | Pumped::TookMemory => started += 1,
                    Pumped::NoMemory if memory_left => {
                        memory_left = false;
                        let since = self.reactor.now();
                        *self.first_for_memory.borrow_mut() = Some((queue, since));
                        continue;
                    }
                    Pumped::OverItsShare | Pumped::NoMemory | Pumped::NoSlot => {}
                }
                self.waiting.borrow_mut().push_back(queue);
            }
            if started == before {
                return started;
            }
        }
    }

    /// The same for the queue that found no memory; true where the others may take some now.
    fn pump_first(&self, started: &mut usize) -> bool {
        let Some((queue, since)) = self.first_for_memory.take() else {
            return true;
        };
        match queue.clone().pump(true) {
            Pumped::Nothing => return true,
            Pumped::TookMemory => *started += 1,
            Pumped::OverItsShare | Pumped::NoSlot => {}
            outcome @ (Pumped::Started | Pumped::NoMemory) => {
                *started += usize::from(outcome == Pumped::Started);
                *self.first_for_memory.borrow_mut() = Some((queue, since));
                return false;
            }
        }
        self.waiting.borrow_mut().push_back(queue);
        true
    }

    fn answer(&self, key: usize, value: Box<dyn Any + Send>) {
        match self.replies.borrow_mut().try_remove(key) {
            Some(answer) => answer.send(value),
            None => debug!(key, "a reply to a call that nobody waits for"),
        }
    }
}

/// Blocks to be locked for a fused command.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// The lock's number, see [`Core::new_lock_id`].
    pub id: u64,
    /// The namespace.
    pub nsid: u32,
    /// The first block.
    pub at: Lba,
    /// How many.
    pub blocks: u64,
}

/// Where a call's reply will be.
type Answer = Oneshot<Box<dyn Any + Send>>;

async fn receive_reply<R: 'static>(answer: Answer) -> R {
    *answer
        .receive()
        .await
        .downcast()
        .expect("a reply has its call's type")
}

/// The way back from a call to another core. Dropping it unsent leaves the caller waiting, so it is
/// sent on every path.
#[must_use]
pub struct Reply<R> {
    to: CoreId,
    key: usize,
    value: PhantomData<fn(R)>,
}

impl<R: Send + 'static> Reply<R> {
    /// Sends the value back; `core` is the one that was called.
    pub fn send<E: Environment>(self, core: &Core<E>, value: R) {
        let key = self.key;
        core.send(self.to, move |caller| caller.answer(key, Box::new(value)));
    }
}

/// The core as its reactor polls it.
struct CoreSource<E: Environment> {
    core: Rc<Core<E>>,
}

impl<E: Environment> PollSource for CoreSource<E> {
    fn poll(&self, _now: Time) -> usize {
        self.core.receive() + self.core.start_backlog()
    }

    fn flush(&self, _now: Time) -> usize {
        self.core.pump()
    }

    fn prepare_sleep(&self) -> bool {
        self.core.port.prepare_sleep() && self.core.backlog.borrow().is_empty()
    }

    fn awake(&self) {
        self.core.port.awake();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.core.port.wake_fd()
    }
}
