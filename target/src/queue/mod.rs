//! Queue pairs, whatever the transport: the life of a command from its capsule to its completion.
//!
//! A command goes through these stages; what it may wait for at each is why nothing dead-locks:
//!
//! 1. `Limit`: where its namespace is limited, it waits until it may begin, with nothing in hand but the
//!    data that came in its capsule ([`pace`](crate::pace)).
//! 2. `Memory`: it waits in turn for a payload buffer. Buffers come back when hosts take or send
//!    data, or disks complete.
//! 3. `Data` (writes whose data did not come in the capsule): the transport fetches the data. It
//!    waits for its own host only.
//! 4. `Partner` (fused commands): the other half's data.
//! 5. `Slot`: it waits for a task slot. Slots come back when disks complete, whatever hosts do.
//! 6. `Running`: its task executes; it waits for disks, and for scratch memory, whose holders wait
//!    for disks only.
//! 7. `Responding`: the transport sends. Its entry and buffer are free once all was handed over.
//!
//! Invariants:
//! - Each command is answered once, or ends with its connection.
//! - A host has at most its queue's depth of commands here, so memory per connection is bounded.
//! - What a host's queues hold of the payload memory is counted in its share, block by block, and
//!   bounded by it ([`memory`](crate::memory)): slow hosts leave memory for the others.

mod control;
mod entry;
mod pair;
mod task;

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use corebay_core::{
    buffer::{Buffer, block_bytes},
    units::{CoreId, Time},
};
use corebay_nvme::spec::{
    command::{Fuse, Psdt, SubmissionEntry},
    completion::CompletionEntry,
    status::{SCT_MEDIA, Status},
};

pub use entry::EntryId;
use entry::{Entries, Entry, Stage};

use crate::{
    admin,
    controller::{ARRIVAL_RESOLUTION, Controller, ErrorRecord, Event, IoCounters},
    core::{Core, Table},
    environment::Environment,
    fabrics, io,
    memory::HostShare,
};

/// A queue's name within its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueKey(pub u64);

/// What a transport gives to its queue.
pub trait Wire: 'static {
    /// Begins to fetch a command's data from the host into `into`, all of it. The transport calls
    /// [`Queue::data_arrived`] when it is there.
    fn fetch(&self, entry: EntryId, cid: u16, into: Buffer);

    /// Sends a completion, behind its data if there are any. The transport calls [`Queue::sent`]
    /// once all is handed over.
    fn respond(&self, response: Response);

    /// Lets the connection go on at core `to`, beginning with its Connect command; false where it
    /// stays here because it has moved already.
    fn hand_over(&self, to: CoreId, connect: SubmissionEntry, data: Vec<u8>) -> bool;

    /// Our own address, where the transport has such.
    fn local_address(&self) -> Option<SocketAddr>;

    /// Ends the connection, after what was given to [`respond`](Self::respond) where that is
    /// possible without waiting.
    fn close(&self);

    /// Looks after time-outs, and at how fast the host takes and sends data.
    fn housekeeping(&self, now: Time) -> Pace;
}

/// How a host keeps up with a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Why the connection is to be closed, if it is.
    pub close: Option<&'static str>,
    /// Bytes that the host took or sent since the last look, of what holds memory.
    pub moved: u64,
    /// For how long it has taken nothing of what is sent, or sent nothing of what it was asked for.
    pub stalled_for: Duration,
}

/// A completion on its way to the host.
#[derive(Debug)]
pub struct Response {
    /// The command's entry.
    pub entry: EntryId,
    /// The completion queue entry.
    pub completion: CompletionEntry,
    /// Data for the host.
    pub data: Option<Buffer>,
    /// The completion says nothing but success, and the host does not need SQHD: a transport that
    /// can say so with the data may leave the completion out.
    pub may_be_implied: bool,
}

/// What a command transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Nothing.
    None,
    /// So many bytes from the host. Its buffer may be longer (SGLS bit 18): what is beyond is not
    /// looked at. (Linux sends room for 256 ranges with every Dataset Management command.)
    FromHost(usize),
    /// At most so many bytes to the host.
    ToHost(usize),
}

/// The data that a command's capsule announces.
#[derive(Debug, Default)]
pub struct Announced {
    /// The data block's length in bytes.
    pub len: usize,
    /// The data themselves, where they came in the capsule.
    pub in_capsule: Option<Buffer>,
}

/// A command that has been checked, except for its data.
pub struct Prepared<E: Environment> {
    /// What to do.
    pub operation: Operation<E>,
    /// What it transfers.
    pub transfer: Transfer,
}

/// What to do.
pub enum Operation<E: Environment> {
    /// An I/O command.
    Io(io::Operation<E>),
    /// An admin command; its submission queue entry says which.
    Admin,
    /// A fabrics command; its submission queue entry says which.
    Fabrics,
}

/// What came of a command.
#[derive(Debug)]
pub enum Outcome {
    /// It is completed.
    Done(Done),
    /// It stays outstanding until an event completes it (Asynchronous Event Request).
    Parked,
    /// The connection goes on elsewhere, the command with it.
    Moved,
}

/// A completed command.
#[derive(Debug)]
pub struct Done {
    /// Its status.
    pub status: Status,
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
    /// Data for the host.
    pub data: Option<Buffer>,
}

impl Done {
    /// Success, with nothing more to say.
    pub const SUCCESS: Self = Self {
        status: Status::SUCCESS,
        result: 0,
        data: None,
    };

    /// Success with a result.
    #[must_use]
    pub fn with_result(result: u64) -> Self {
        Self {
            result,
            ..Self::SUCCESS
        }
    }

    /// Success with data for the host.
    #[must_use]
    pub fn with_data(data: Buffer) -> Self {
        Self {
            data: Some(data),
            ..Self::SUCCESS
        }
    }

    /// This status and nothing more.
    #[must_use]
    pub fn status(status: Status) -> Self {
        Self {
            status,
            ..Self::SUCCESS
        }
    }
}

impl From<Result<(), Status>> for Done {
    fn from(result: Result<(), Status>) -> Self {
        Self::status(result.err().unwrap_or(Status::SUCCESS))
    }
}

impl From<Done> for Outcome {
    fn from(done: Done) -> Self {
        Self::Done(done)
    }
}

/// What a connected queue belongs to.
pub struct Binding<E: Environment> {
    /// Queue identifier; 0 is the admin queue.
    pub qid: u16,
    /// Entries of the submission queue.
    pub depth: u16,
    /// The host ignores SQHD, so a completion need not tell it.
    pub flow_control_disabled: bool,
    /// The association.
    pub controller: Arc<Controller<E::Medium>>,
    /// The subsystem's namespaces on this core.
    pub table: Rc<Table<E>>,
    /// What the queue has done.
    pub counters: Arc<IoCounters>,
    /// What the host holds of this core's memory.
    pub share: Rc<HostShare>,
}

/// The host sent more commands than its queue is deep.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

/// What a queue did with its turn. See [`QueueControl::pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// One command got its task slot.
    Started,
    /// One command got its buffer.
    TookMemory,
    /// None waits.
    Nothing,
    /// One waits, but its host holds its share of the memory.
    OverItsShare,
    /// One waits, and there is no memory for it.
    NoMemory,
    /// One waits, and there is no task slot for it.
    NoSlot,
}

/// What the control path does with queues of any transport.
pub trait QueueControl {
    /// Lets one waiting command go on; with `memory` also one that waits for a buffer.
    fn pump(self: Rc<Self>, memory: bool) -> Pumped;

    /// A command may begin that waited for the limits of its namespace.
    fn admitted(self: Rc<Self>, id: EntryId);

    /// Looks after time-outs.
    fn housekeeping(self: Rc<Self>, now: Time);

    /// Closes the connection where it is one of `share`'s host, holds memory, and its host has
    /// long stalled.
    fn squeeze(self: Rc<Self>, share: &Rc<HostShare>);

    /// Ends the connection and every command that does not execute.
    fn close(self: Rc<Self>, why: &'static str);

    /// Closes the connection once no command is outstanding.
    fn drain(self: Rc<Self>);

    /// Aborts a command that has not begun to execute; true where it has been answered as such.
    fn abort(self: Rc<Self>, cid: u16) -> bool;

    /// Reports pending events to outstanding Asynchronous Event Requests.
    fn deliver_events(self: Rc<Self>);
}

/// A queue pair on its connection.
pub struct Queue<E: Environment, W> {
    /// The core that it lives on.
    pub core: Rc<Core<E>>,
    /// Its transport.
    pub wire: W,
    /// Its name on its core.
    pub key: QueueKey,
    binding: OnceCell<Binding<E>>,
    entries: RefCell<Entries<E>>,
    waiting_for_memory: RefCell<VecDeque<EntryId>>,
    waiting_for_slot: RefCell<VecDeque<EntryId>>,
    parked: RefCell<VecDeque<EntryId>>,
    in_turn: Cell<bool>,
    held_bytes: Cell<usize>,
    /// The same of in-capsule data.
    capsules: Cell<usize>,
    /// Commands that wait for the limits of their namespace.
    limited: Cell<usize>,
    stalled_for: Cell<Duration>,
    running: Cell<usize>,
    fused_first: Cell<Option<EntryId>>,
    fused_since: Cell<Time>,
    sqhd: Cell<u16>,
    last_arrival: Cell<Time>,
    busy_since: Cell<Time>,
    closed: Cell<bool>,
    draining: Cell<bool>,
    opened: Time,
}

impl<E: Environment, W: Wire> Queue<E, W> {
    /// A queue on a connection that has not sent its Connect command yet.
    #[must_use]
    pub fn new(core: Rc<Core<E>>, wire: W) -> Rc<Self> {
        let (key, opened) = (core.new_queue_key(), core.reactor.now());
        let queue = Rc::new(Self {
            core,
            wire,
            key,
            binding: OnceCell::new(),
            entries: RefCell::new(Entries::default()),
            waiting_for_memory: RefCell::default(),
            waiting_for_slot: RefCell::default(),
            parked: RefCell::default(),
            in_turn: Cell::new(false),
            held_bytes: Cell::new(0),
            capsules: Cell::new(0),
            limited: Cell::new(0),
            stalled_for: Cell::default(),
            running: Cell::new(0),
            fused_first: Cell::new(None),
            fused_since: Cell::new(opened),
            sqhd: Cell::new(0),
            last_arrival: Cell::new(opened),
            busy_since: Cell::new(opened),
            closed: Cell::new(false),
            draining: Cell::new(false),
            opened,
        });
        queue.core.add_queue(key, queue.clone());
        queue
    }

    /// What the queue belongs to, once it is connected.
    #[must_use]
    pub fn binding(&self) -> Option<&Binding<E>> {
        self.binding.get()
    }

    /// The same for commands that only a connected queue lets pass.
    fn connected(&self) -> &Binding<E> {
        self.binding().expect("the queue is connected")
    }

    /// Connects the queue. Panics where it is connected.
    pub fn bind(&self, binding: Binding<E>) {
        let depth = binding.depth;
        // What Connect itself holds was counted to a host not known yet.
        let strangers = &self.core.shares.strangers;
        strangers.give_back(self.held_bytes.get());
        binding.share.take(self.held_bytes.get());
        strangers.let_capsule_go(self.capsules.get());
        binding.share.hold_capsule(self.capsules.get());
        strangers.end_run(self.running.get());
        binding.share.run(self.running.get());
        assert!(
            self.binding.set(binding).is_ok(),
            "a queue is connected once"
        );
        self.entries.borrow_mut().grow_to(depth.into());
        // Connect itself was the first entry.
        self.sqhd.set(1 % depth);
    }

    /// What its host holds of the core's memory.
    pub(crate) fn share(&self) -> &Rc<HostShare> {
        self.binding()
            .map_or(&self.core.shares.strangers, |binding| &binding.share)
    }

    /// What a capsule's data are held against. What keeps a host's controllers alive is not held against
    /// its share: one capsule at a time of each queue that takes no I/O.
    pub(crate) fn capsule_share(&self) -> Option<&HostShare> {
        let is_io = self.binding().is_some_and(|binding| binding.qid != 0);
        (is_io || self.capsules.get() > 0).then(|| &**self.share())
    }

    /// True once the queue is closed: nothing more is received for it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// True while the queue waits for its last commands to end: nothing new is received for it.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Takes a command capsule.
    ///
    /// # Errors
    /// Where the host sends more than the queue is deep; the connection cannot go on.
    pub fn accept(
        self: &Rc<Self>,
        sqe: &SubmissionEntry,
        announced: Result<Announced, Status>,
    ) -> Result<(), Overrun> {
        self.note_arrival();
        let mut entries = self.entries.borrow_mut();
        let (id, entry) = entries.insert(sqe).ok_or(Overrun)?;
        let conflicts = entry.conflicts;
        if entries.in_use() == 1 {
            self.busy_since.set(self.core.reactor.now());
        }
        drop(entries);
        if conflicts {
            self.finish(id, Done::status(Status::COMMAND_ID_CONFLICT.with_dnr()));
            return Ok(());
        }
        let Announced { len, in_capsule } = match announced {
            Ok(announced) => announced,
            Err(status) => {
                self.refuse(id, sqe, status);
                return Ok(());
            }
        };
        match self.prepare(sqe) {
            Ok(Prepared {
                operation,
                transfer,
            }) => match check_length(transfer, len, in_capsule.is_some()) {
                Ok(()) => self.admit(id, operation, transfer, in_capsule),
                Err(status) => self.refuse(id, sqe, status),
            },
            Err(status) => self.refuse(id, sqe, status),
        }
        Ok(())
    }

    /// A command does not pass its checks.
    #[cold]
    fn refuse(self: &Rc<Self>, id: EntryId, sqe: &SubmissionEntry, status: Status) {
        self.pair_failed(sqe);
        self.finish(id, Done::status(status));
    }

    /// A command's data have arrived, all of them, or `status` says why not.
    pub fn data_arrived(self: &Rc<Self>, id: EntryId, status: Status) {
        let aborted = {
            let mut entries = self.entries.borrow_mut();
            let Some(entry) = entries.get_mut(id) else {
                return;
            };
            assert_eq!(
                entry.stage,
                Stage::Data,
                "data came for a command that awaits none"
            );
            entry.aborted
        };
        if !status.is_success() {
            self.partner_failed(id);
            self.finish(id, Done::status(status));
        } else if aborted {
            self.partner_failed(id);
            self.finish(id, Done::status(Status::ABORT_REQUESTED));
        } else {
            self.data_ready(id);
        }
    }

    /// All of a response was handed over to the network: its entry is free.
    pub fn sent(&self, id: EntryId) {
        self.release(id);
    }

    /// Counts a command that failed, for the error information log, and reports it.
    fn log_failure(&self, id: EntryId, status: Status) {
        let Some(binding) = self.binding() else {
            return;
        };
        let entries = self.entries.borrow();
        let Some(entry) = entries.get(id) else { return };
        let sqe = &entry.sqe;
        let lba = u64::from(sqe.cdw11.get()) << 32 | u64::from(sqe.cdw10.get());
        binding.controller.log_error(ErrorRecord {
            count: 0,
            sqid: binding.qid,
            cid: sqe.cid.get(),
            status,
            opc: sqe.opc,
            lba: if binding.qid == 0 { 0 } else { lba },
            nsid: sqe.nsid.get(),
        });
        if status.sct() == SCT_MEDIA && !status.same_as(Status::COMPARE_FAILURE)
            || status.same_as(Status::INTERNAL_ERROR)
        {
            fabrics::report(&self.core, &binding.controller, Event::Error);
        }
    }

    fn note_arrival(&self) {
        let now = self.core.reactor.now();
        let Some(binding) = self.binding() else {
            return;
        };
        if now.since(self.last_arrival.get()) >= ARRIVAL_RESOLUTION {
            self.last_arrival.set(now);
            binding.controller.command_arrived(now);
        }
        if !binding.flow_control_disabled {
            self.sqhd.set((self.sqhd.get() + 1) % binding.depth);
        }
    }

    fn prepare(&self, sqe: &SubmissionEntry) -> Result<Prepared<E>, Status> {
        if sqe.opc == corebay_nvme::spec::command::FABRICS {
            return fabrics::prepare(self, sqe);
        }
        match self.binding() {
            None => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
            Some(binding) => {
                let (lifecycle, is_admin) = (&binding.controller.lifecycle, binding.qid == 0);
                let prepared = if is_admin && lifecycle.is_ready() {
                    admin::prepare(self, binding, sqe)?
                } else if !is_admin && lifecycle.accepts_io() {
                    io::prepare(&self.core, binding, sqe)?
                } else {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
                };
                // Fabrics know SGLs only; without data the pointer means nothing (Base, 4.1.1).
                match (&prepared.transfer, sqe.psdt()) {
                    (Transfer::None, _) | (_, Psdt::Sgl | Psdt::SglMetadataSgl) => Ok(prepared),
                    (_, Psdt::Prp | Psdt::Reserved) => Err(Status::INVALID_FIELD.with_dnr()),
                }
            }
        }
    }

    /// A checked command enters its stages.
    fn admit(
        self: &Rc<Self>,
        id: EntryId,
        operation: Operation<E>,
        transfer: Transfer,
        in_capsule: Option<Buffer>,
    ) {
        let mut data = match transfer {
            Transfer::FromHost(len) => in_capsule.map(|data| data.truncated(len)),
            _ => None,
        };
        if let Some(data) = &data {
            let block = block_bytes(data.len());
            self.capsules.set(self.capsules.get() + block);
            self.share().hold_capsule(block);
            self.with_entry(id, |entry| entry.capsule = block);
        }
        let fuse = match &operation {
            Operation::Io(operation) => operation.fuse(),
            _ => Fuse::Normal,
        };
        let is_limited = matches!(&operation, Operation::Io(operation) if operation.is_limited());
        let alone = fuse == Fuse::Normal && self.fused_first.get().is_none();
        if alone && !is_limited && !self.in_turn.get() && !self.core.has_waiting() && self.may_run()
        {
            // Nobody waits: it goes through its stages at once.
            if let Transfer::ToHost(len) = transfer {
                data = self.take_memory(id, len, false).ok();
            }
            if data.is_some() || transfer == Transfer::None {
                self.start(id, operation, data, None);
                return;
            }
        }
        self.with_entry(id, |entry| {
            entry.operation = Some(operation);
            entry.transfer = transfer;
            entry.buffer = data;
        });
        if !self.pair(id, fuse) || is_limited && fuse == Fuse::Normal && self.wait_for_limits(id) {
            return;
        }
        self.go_on(id);
    }

    /// True where a command has to wait for the limits of its namespace, and does from now on. The halves
    /// of fused commands do not: they are few, and are counted when they execute.
    fn wait_for_limits(&self, id: EntryId) -> bool {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(id) else {
            return false;
        };
        let Some(Operation::Io(operation)) = &entry.operation else {
            return false;
        };
        let Some((namespace, cost)) = operation.cost() else {
            return false;
        };
        let core = &self.core;
        let who = (self.key, id);
        if core.pacer.enter(namespace, cost, who, core.reactor.now()) {
            return false;
        }
        entry.stage = Stage::Limit;
        self.limited.set(self.limited.get() + 1);
        self.share().wait_for_limits();
        true
    }

    /// So many commands wait for limits no more.
    fn limits_passed(&self, commands: usize) {
        self.limited.set(self.limited.get() - commands);
        self.share().limits_passed(commands);
    }

    /// A command that no limit keeps goes on.
    fn go_on(self: &Rc<Self>, id: EntryId) {
        let found = self.entries.borrow().get(id).map(|entry| {
            let has_data = entry.buffer.is_some();
            (entry.transfer, has_data)
        });
        let Some((transfer, has_data)) = found else {
            return;
        };
        match transfer {
            Transfer::FromHost(_) if has_data => self.data_ready(id),
            Transfer::None => self.data_ready(id),
            Transfer::FromHost(_) | Transfer::ToHost(_) => {
                self.set_stage(id, Stage::Memory);
                self.waiting_for_memory.borrow_mut().push_back(id);
                self.take_turn();
            }
        }
    }

    /// The command needs nothing more from its host.
    fn data_ready(self: &Rc<Self>, id: EntryId) {
        let (partner, verdict, is_first) = {
            let entries = self.entries.borrow();
            let Some(entry) = entries.get(id) else { return };
            (
                entry.partner,
                entry.verdict,
                self.fused_first.get() == Some(id),
            )
        };
        if let Some(status) = verdict {
            self.finish(id, Done::status(status));
            return;
        }
        if is_first {
            self.set_stage(id, Stage::Partner);
            return;
        }
        if let Some(partner) = partner {
            let ready = self
                .entries
                .borrow()
                .get(partner)
                .is_some_and(|p| p.stage == Stage::Partner);
            if !ready {
                self.set_stage(id, Stage::Partner);
                return;
            }
            // The second half stands for both from here on.
            let second = {
                let entries = self.entries.borrow();
                let second = |id: EntryId| match entries.get(id).and_then(|e| e.operation.as_ref())
                {
                    Some(Operation::Io(operation)) => operation.fuse() == Fuse::Second,
                    _ => false,
                };
                if second(id) { id } else { partner }
            };
            self.set_stage(id, Stage::Partner);
            self.queue_for_slot(second);
            return;
        }
        self.queue_for_slot(id);
    }

    fn queue_for_slot(self: &Rc<Self>, id: EntryId) {
        self.set_stage(id, Stage::Slot);
        self.waiting_for_slot.borrow_mut().push_back(id);
        self.take_turn();
    }

    /// Goes on at once if nobody waits, else in turn.
    fn take_turn(self: &Rc<Self>) {
        if self.in_turn.get() {
            return;
        }
        if !self.core.has_waiting() {
            loop {
                match self.clone().pump(true) {
                    Pumped::Started | Pumped::TookMemory => {}
                    Pumped::Nothing => return,
                    _ => break,
                }
            }
        }
        self.in_turn.set(true);
        self.core.wait_in_turn(self.clone());
    }

    /// Whether a command may have a task slot now. What keeps a host's controllers alive is not held
    /// against its share.
    fn may_run(&self) -> bool {
        let free = self.core.free_slots();
        let is_io = self.binding().is_some_and(|binding| binding.qid != 0);
        free > 0 && (!is_io || self.share().may_run(free))
    }

    /// The first waiting command gets its buffer, if there is one.
    fn pump_memory(self: &Rc<Self>) -> Pumped {
        let Some(id) = self.waiting_for_memory.borrow().front().copied() else {
            return Pumped::Nothing;
        };
        let (transfer, cid, fused) = {
            let entries = self.entries.borrow();
            let Some(entry) = entries.get(id) else {
                self.waiting_for_memory.borrow_mut().pop_front();
                self.share().leave_line(self.key);
                return Pumped::Started;
            };
            (entry.transfer, entry.sqe.cid.get(), entry.partner.is_some())
        };
        let (Transfer::FromHost(len) | Transfer::ToHost(len)) = transfer else {
            unreachable!("only transfers wait for memory")
        };
        let buffer = match self.take_memory(id, len, fused) {
            Ok(buffer) => buffer,
            Err(why) => return why,
        };
        self.waiting_for_memory.borrow_mut().pop_front();
        let for_host = matches!(transfer, Transfer::ToHost(_));
        self.with_entry(id, |entry| {
            entry.buffer = Some(buffer.clone());
            entry.stage = if for_host { Stage::Slot } else { Stage::Data };
        });
        if for_host {
            self.waiting_for_slot.borrow_mut().push_back(id);
        } else {
            self.wire.fetch(id, cid, buffer);
        }
        Pumped::TookMemory
    }

    /// A block for a command's payload, if there is one and the host may have it.
    fn take_memory(&self, id: EntryId, len: usize, fused: bool) -> Result<Buffer, Pumped> {
        let (share, block) = (self.share(), block_bytes(len));
        let own = self.held_bytes.get();
        // The other half may hold its block until this one has its own.
        if !fused && !share.admits(self.key, own, block, &self.core.memory) {
            return Err(Pumped::OverItsShare);
        }
        let buffer = self.core.memory.payload.try_allocate(len);
        let buffer = buffer.ok_or(Pumped::NoMemory)?;
        share.take(block);
        self.held_bytes.set(own + block);
        self.with_entry(id, |entry| entry.held = block);
        Ok(buffer)
    }

    fn pump_slot(self: &Rc<Self>) -> Pumped {
        if self.waiting_for_slot.borrow().is_empty() {
            return Pumped::Nothing;
        }
        if !self.may_run() {
            return Pumped::NoSlot;
        }
        let Some(id) = self.waiting_for_slot.borrow_mut().pop_front() else {
            return Pumped::Nothing;
        };
        let mut entries = self.entries.borrow_mut();
        let entry = entries
            .get_mut(id)
            .expect("a waiting command has its entry");
        let operation = entry.operation.take().expect("a command runs once");
        let buffer = entry.buffer.take();
        let partner = entry.partner;
        let first = partner.and_then(|partner| {
            let first = entries.get_mut(partner)?;
            match first.operation.take() {
                Some(Operation::Io(operation)) => Some((partner, operation, first.buffer.take())),
                _ => None,
            }
        });
        drop(entries);
        self.start(id, operation, buffer, first);
        Pumped::Started
    }

    /// A command is completed: sends its completion.
    fn finish(&self, id: EntryId, done: Done) {
        if self.closed.get() {
            self.release(id);
            return;
        }
        if !done.status.is_success() {
            self.log_failure(id, done.status);
        }
        #[cfg(corebay_fault)]
        if crate::fault::is(crate::fault::Fault::CompletionLost)
            && self.binding().is_some_and(|binding| binding.qid != 0)
            && self
                .entries
                .borrow()
                .get(id)
                .is_some_and(|entry| (entry.sqe.cid.get() >> 4) % 4 == 3)
        {
            return;
        }
        let sends_data = done.data.is_some();
        let Some((cid, held_idle, held, capsule)) =
            self.entries.borrow_mut().get_mut(id).map(|entry| {
                entry.stage = Stage::Responding;
                entry.operation = None;
                let capsule = std::mem::take(&mut entry.capsule);
                let held = if sends_data {
                    0
                } else {
                    std::mem::take(&mut entry.held)
                };
                (entry.sqe.cid.get(), entry.buffer.take(), held, capsule)
            })
        else {
            return;
        };
        drop(held_idle);
        self.give_back(held);
        self.let_capsule_go(capsule);
        let (sqid, disabled) = self
            .binding()
            .map_or((0, false), |b| (b.qid, b.flow_control_disabled));
        let completion = CompletionEntry::new(cid, done.status)
            .with_result(done.result)
            .with_sqhd(self.sqhd.get())
            .with_sqid(sqid);
        self.wire.respond(Response {
            entry: id,
            completion,
            data: done.data,
            may_be_implied: disabled && done.status.is_success() && done.result == 0,
        });
    }

    fn park(self: &Rc<Self>, id: EntryId) {
        if self.closed.get() || self.is_reset() {
            self.release(id);
            return;
        }
        self.set_stage(id, Stage::Parked);
        self.parked.borrow_mut().push_back(id);
        self.clone().deliver_events();
    }

    /// The Asynchronous Event Requests outstanding.
    #[must_use]
    pub fn parked_count(&self) -> usize {
        self.parked.borrow().len()
    }

    fn release(&self, id: EntryId) {
        let mut entries = self.entries.borrow_mut();
        let Some(removed) = entries.remove(id) else {
            return;
        };
        let idle = entries.in_use() == 0;
        drop(entries);
        self.give_back(removed.held);
        self.let_capsule_go(removed.capsule);
        if removed.counts_as_fused {
            self.core.shares.end_fused(self.share());
        }
        if idle && let Some(binding) = self.binding() {
            let busy = self.core.reactor.now().since(self.busy_since.get());
            let nanos = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
            IoCounters::add(&binding.counters.busy_nanos, nanos);
        }
    }

    fn give_back(&self, block: usize) {
        self.held_bytes.set(self.held_bytes.get() - block);
        self.share().give_back(block);
    }

    fn let_capsule_go(&self, block: usize) {
        self.capsules.set(self.capsules.get() - block);
        self.share().let_capsule_go(block);
    }

    fn job_ended(&self) {
        self.running.set(self.running.get() - 1);
        self.share().end_run(1);
        if self.closed.get()
            && self.running.get() == 0
            && let Some(binding) = self.binding()
        {
            binding.controller.quiesce_ends();
        }
    }

    fn forget_waiting(&self, id: EntryId) {
        self.waiting_for_memory
            .borrow_mut()
            .retain(|waiting| *waiting != id);
        self.waiting_for_slot
            .borrow_mut()
            .retain(|waiting| *waiting != id);
        self.share().leave_line(self.key);
    }

    fn set_stage(&self, id: EntryId, stage: Stage) {
        self.with_entry(id, |entry| entry.stage = stage);
    }

    fn with_entry(&self, id: EntryId, change: impl FnOnce(&mut Entry<E>)) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(id) {
            change(entry);
        }
    }
}

/// Checks what the capsule announces against what the command transfers.
fn check_length(transfer: Transfer, announced: usize, in_capsule: bool) -> Result<(), Status> {
    match transfer {
        Transfer::FromHost(len) | Transfer::ToHost(len) if announced < len => {
            Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr())
        }
        Transfer::ToHost(_) | Transfer::None if in_capsule => {
            Err(Status::SGL_TYPE_INVALID.with_dnr())
        }
        _ => Ok(()),
    }
}

/// The core and key by which another core finds a queue.
pub type QueueAddress = (CoreId, QueueKey);
