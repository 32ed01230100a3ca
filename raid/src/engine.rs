//! Owns one core's part of an array: its tasks, what they have in flight on members, its scratch memory.
//!
//! An operation on a stripe is done by one of the array's own workers, so that it runs to its end
//! whatever becomes of whoever asked for it: a stripe is never left half written by a dropped future.
//! Each transfer to or from a member has a worker too, so fan-out costs whoever fans out nothing but
//! a token. A worker is a task that lives as long as the array is open: its memory is taken once.
//!
//! Invariants:
//! - Operations wait for locks, scratch memory, room in the journal and transfers; transfers wait for
//!   members alone. The two have workers of their own, so neither starves the other.
//! - An operation takes its scratch memory all at once and while no other one of the core is taking
//!   some; it holds none while it waits for some.
//! - After the start nothing is taken from the heap for a read or a write.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Poll, Waker},
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError, Durability, SEGMENTS_MAX, Space},
    executor::Executor,
    reactor::{PollSource, Reactor},
    sync::{OpTable, Permits, Submitted, Token},
    units::{Lba, Time},
};
use hashbrown::HashMap;

use crate::{
    dirty::MAP_BYTES,
    geometry::{ROLES_MAX, UNIT_BYTES_MAX},
    kernels::Plan,
    lock::Parking,
    read::{Recover, recover},
    shared::{Set, Shared},
    superblock::SUPERBLOCK_BYTES,
    write::{Write, write_mirrored, write_with_parity, zero_stripe},
};

/// Operations on stripes that a core works on at a time.
pub(crate) const OPERATIONS: usize = 192;

/// Transfers that a core has in flight on members at a time.
const TRANSFERS: usize = 320;

/// Tasks of the layers above that may wait for either.
const WAITERS: usize = 4096;

/// Ways to restore lost strips that are kept ready.
const PLANS_MAX: usize = 1024;

/// Buffers of a transfer.
pub(crate) type Segments = ArrayVec<Buffer, SEGMENTS_MAX>;

/// How an operation or a transfer ended.
pub(crate) type Outcome = Result<(), DiskError>;

/// Something that is on its way.
pub(crate) type Flight<'a> = Submitted<'a, (), Outcome>;

/// A transfer to or from a member.
pub(crate) enum Transfer {
    Read(Segments),
    Write(Segments, Durability),
    Zero(u64, Space, Durability),
    Flush,
}

/// An operation on a stripe.
pub(crate) enum Job {
    /// To a stripe with parity.
    Write(Write),
    /// To a mirror.
    Mirror(Write),
    /// Of what a member alone cannot answer.
    Recover(Recover),
    /// Of a whole stripe.
    Zero {
        stripe: u64,
        space: Space,
        durability: Durability,
    },
}

/// A transfer and its member.
struct Errand<D> {
    disk: Option<Rc<D>>,
    at: Lba,
    what: Transfer,
}

/// What is handed to workers, by their number, and how they are told.
struct Desk<J> {
    places: Box<[RefCell<Place<J>>]>,
    table: OpTable<(), Outcome>,
    executor: Executor,
}

struct Place<J> {
    job: Option<(Token, J)>,
    waker: Option<Waker>,
}

impl<J: 'static> Desk<J> {
    fn new(workers: usize) -> Self {
        let empty = || Place {
            job: None,
            waker: None,
        };
        Self {
            places: (0..workers).map(|_| RefCell::new(empty())).collect(),
            table: OpTable::new(workers, WAITERS),
            executor: Executor::new(workers),
        }
    }

    /// Starts the workers: each does one job after the other.
    fn employ<F: Future<Output = ()> + 'static>(&self, worker: impl Fn(usize) -> F) {
        for number in 0..self.places.len() {
            let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(worker(number));
            assert!(self.executor.spawn(task).is_ok(), "a slot for each worker");
        }
    }

    /// Hands a job to a free worker, waiting for one.
    async fn hand(&self, job: impl FnOnce() -> J) -> Flight<'_> {
        let submitted = self.table.begin(()).await;
        let token = submitted.token();
        let mut place = self.places[token.index()].borrow_mut();
        place.job = Some((token, job()));
        if let Some(waker) = place.waker.take() {
            waker.wake();
        }
        submitted
    }

    /// The next job of a worker.
    async fn take(&self, number: usize) -> (Token, J) {
        poll_fn(|context| {
            let mut place = self.places[number].borrow_mut();
            match place.job.take() {
                Some(job) => Poll::Ready(job),
                None => {
                    place.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// One core's part of an array.
pub(crate) struct Core<D> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reactor: Reactor,
    members: RefCell<ArrayVec<Option<Rc<D>>, ROLES_MAX>>,
    pool: BufferPool,
    gate: Rc<Permits>,
    operations: Rc<Desk<Job>>,
    transfers: Rc<Desk<Errand<D>>>,
    pub(crate) parking: Parking,
    plans: RefCell<HashMap<u32, Rc<Plan>>>,
    zeroes: Buffer,
    /// For superblocks, by role; used with the update lock held.
    superblocks: Buffer,
    /// For the dirty map; used with the map's lock held.
    map: Buffer,
    turn: Cell<usize>,
    /// Counts what hosts ask for.
    activity: Cell<u64>,
}

impl<D: Disk> Core<D> {
    /// The part of the core of `reactor`; `members` are its disks by role. `pool` is for scratch.
    pub(crate) fn new(
        shared: Arc<Shared>,
        members: ArrayVec<Option<Rc<D>>, ROLES_MAX>,
        reactor: &Reactor,
        pool: &BufferPool,
    ) -> Option<Rc<Self>> {
        let mut zeroes = pool.try_allocate(UNIT_BYTES_MAX as usize)?;
        zeroes.bytes_mut().fill(0);
        let superblocks = pool.try_allocate(ROLES_MAX * SUPERBLOCK_BYTES)?;
        let map = pool.try_allocate(MAP_BYTES)?;
        let core = Rc::new(Self {
            shared,
            reactor: reactor.clone(),
            members: RefCell::new(members),
            pool: pool.clone(),
            gate: Permits::new(1, OPERATIONS),
            operations: Rc::new(Desk::new(OPERATIONS)),
            transfers: Rc::new(Desk::new(TRANSFERS)),
            parking: Parking::new(2 * OPERATIONS),
            plans: RefCell::new(HashMap::with_capacity(PLANS_MAX)),
            zeroes,
            superblocks,
            map,
            turn: Cell::new(0),
            activity: Cell::new(0),
        });
        let (operations, me) = (&core.operations, Rc::downgrade(&core));
        operations.employ(|number| operator(operations.clone(), number, me.clone()));
        let transfers = &core.transfers;
        transfers.employ(|number| carrier(transfers.clone(), number));
        reactor.add_source(Rc::new(Source(me)));
        Some(core)
    }

    /// The member with a role, if it is open.
    pub(crate) fn member(&self, role: usize) -> Option<Rc<D>> {
        self.members.borrow().get(role)?.clone()
    }

    /// Replaces the disk of a role.
    pub(crate) fn set_member(&self, role: usize, disk: Option<Rc<D>>) {
        self.members.borrow_mut()[role] = disk;
    }

    /// Starts an operation.
    pub(crate) async fn operate(&self, job: impl FnOnce() -> Job) -> Flight<'_> {
        self.operations.hand(job).await
    }

    /// Starts a transfer.
    pub(crate) async fn transfer(
        &self,
        role: usize,
        at: Lba,
        what: impl FnOnce() -> Transfer,
    ) -> Flight<'_> {
        let errand = || Errand {
            disk: self.member(role),
            at,
            what: what(),
        };
        self.transfers.hand(errand).await
    }

    /// Runs what is ready. A task above that has just started something calls it, so that the members
    /// have it within the same turn.
    pub(crate) fn run(&self) -> usize {
        self.operations.executor.run_ready() + self.transfers.executor.run_ready()
    }

    /// Waits until somebody else has had a turn.
    pub(crate) async fn next_turn(&self) {
        let mut first = true;
        self.parking
            .until(|| (!std::mem::take(&mut first)).then_some(()))
            .await;
    }

    /// Buffers of these lengths, all at once.
    pub(crate) async fn scratch(&self, lengths: impl Iterator<Item = usize>, into: &mut Scratch) {
        let _turn = self.gate.acquire(1).await;
        for length in lengths {
            into.push(self.pool.allocate(length).await);
        }
    }

    /// Zeroes: at most [`UNIT_BYTES_MAX`] bytes of them.
    pub(crate) fn zeroes(&self, bytes: usize) -> Buffer {
        self.zeroes.slice(0..bytes)
    }

    /// How to restore strips that are lost, if that is possible.
    pub(crate) fn plan(&self, lost: Set) -> Option<Rc<Plan>> {
        if let Some(plan) = self.plans.borrow().get(&lost.0) {
            return Some(plan.clone());
        }
        let codec = self.shared.codec.as_ref()?;
        let lost_list: ArrayVec<usize, ROLES_MAX> = lost.iter().collect();
        let plan = Rc::new(codec.plan(&lost_list).ok()?);
        let mut plans = self.plans.borrow_mut();
        if plans.len() == PLANS_MAX {
            plans.clear();
        }
        plans.insert(lost.0, plan.clone());
        Some(plan)
    }

    /// The place for the superblock of a role. With the update lock held.
    pub(crate) fn superblock_buffer(&self, role: usize) -> Buffer {
        let at = role * SUPERBLOCK_BYTES;
        self.superblocks.slice(at..at + SUPERBLOCK_BYTES)
    }

    /// The place for the dirty map. With the map's lock held.
    pub(crate) fn map_buffer(&self) -> Buffer {
        self.map.clone()
    }

    /// A number that turns, to share reads out among mirrors.
    pub(crate) fn turn(&self) -> usize {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        turn
    }

    /// Requests of hosts so far.
    pub(crate) fn activity(&self) -> u64 {
        self.activity.get()
    }

    /// A host asks for something.
    pub(crate) fn count_activity(&self) {
        self.activity.set(self.activity.get() + 1);
    }

    /// Drops all tasks where they stand: the core ends.
    pub(crate) fn end(&self) {
        self.operations.executor.drop_tasks();
        self.transfers.executor.drop_tasks();
    }

    fn is_idle(&self) -> bool {
        self.operations.executor.is_idle()
            && self.transfers.executor.is_idle()
            && self.parking.is_empty()
    }
}

/// Buffers of an operation.
pub(crate) type Scratch = ArrayVec<Buffer, { ROLES_MAX + 1 }>;

/// Does operations for as long as the array is open.
async fn operator<D: Disk>(desk: Rc<Desk<Job>>, number: usize, core: Weak<Core<D>>) {
    loop {
        let (token, job) = desk.take(number).await;
        let Some(core) = core.upgrade() else { return };
        let outcome = match job {
            Job::Write(write) => write_with_parity(&core, &write).await,
            Job::Mirror(write) => write_mirrored(&core, &write).await,
            Job::Recover(recovering) => recover(&core, &recovering).await,
            Job::Zero {
                stripe,
                space,
                durability,
            } => zero_stripe(&core, stripe, space, durability).await,
        };
        desk.table.complete(token, outcome);
    }
}

/// Carries out transfers for as long as the array is open.
async fn carrier<D: Disk>(desk: Rc<Desk<Errand<D>>>, number: usize) {
    loop {
        let (token, errand) = desk.take(number).await;
        let outcome = match errand.disk {
            Some(disk) => carry_out(&*disk, errand.at, errand.what).await,
            None => Err(DiskError::Gone),
        };
        desk.table.complete(token, outcome);
    }
}

async fn carry_out<D: Disk>(disk: &D, at: Lba, what: Transfer) -> Outcome {
    match what {
        Transfer::Read(into) => disk.read(at, &into).await,
        Transfer::Write(from, durability) => disk.write(at, &from, durability).await,
        Transfer::Zero(blocks, space, durability) => {
            disk.write_zeroes(at, blocks, space, durability).await
        }
        Transfer::Flush => disk.flush().await,
    }
}

/// Lets the reactor turn a core's part; it does nothing once the array is closed.
struct Source<D>(Weak<Core<D>>);

impl<D: Disk> PollSource for Source<D> {
    fn poll(&self, _now: Time) -> usize {
        self.0.upgrade().map_or(0, |core| {
            core.parking.wake();
            core.run()
        })
    }

    fn flush(&self, _now: Time) -> usize {
        self.0.upgrade().map_or(0, |core| core.run())
    }

    fn prepare_sleep(&self) -> bool {
        self.0.upgrade().is_none_or(|core| core.is_idle())
    }

    fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Several transfers, each to another role.
pub(crate) struct Fan<'a>(ArrayVec<(usize, Flight<'a>), ROLES_MAX>);

/// How a fan of transfers ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    /// Roles whose medium could not be read, but whose member is there.
    pub(crate) unreadable: Set,
    /// Roles whose member failed otherwise.
    pub(crate) failed: Set,
}

impl<'a> Fan<'a> {
    pub(crate) fn new() -> Self {
        Self(ArrayVec::new())
    }

    pub(crate) fn add(&mut self, role: usize, flight: Flight<'a>) {
        self.0.push((role, flight));
    }

    /// Waits for all of them.
    pub(crate) async fn land<D: Disk>(self, core: &Core<D>) -> Ends {
        core.transfers.executor.run_ready();
        let mut ends = Ends::default();
        for (role, flight) in self.0 {
            match flight.outcome().await {
                Ok(()) => {}
                Err(DiskError::UnrecoveredRead) => ends.unreadable = ends.unreadable.with(role),
                Err(_) => ends.failed = ends.failed.with(role),
            }
        }
        ends
    }
}

/// The windows of `buffers` that hold `bytes` of their content, in order.
pub(crate) fn window(buffers: &[Buffer], bytes: std::ops::Range<usize>) -> Segments {
    let mut windows = Segments::new();
    let mut begin = 0;
    for buffer in buffers {
        let end = begin + buffer.len();
        if begin < bytes.end && bytes.start < end {
            let from = bytes.start.max(begin) - begin;
            windows.push(buffer.slice(from..bytes.end.min(end) - begin));
        }
        begin = end;
    }
    windows
}

/// The one buffer, as segments.
pub(crate) fn one(buffer: Buffer) -> Segments {
    let mut segments = Segments::new();
    segments.push(buffer);
    segments
}
