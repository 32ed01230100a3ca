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
//! - Who waits for room in the journal may hold scratch memory and its stripes' locks; who has such room
//!   waits for transfers and for what is recorded alone, never for scratch memory or for a stripe.
//! - Whoever has something on its way waits for nothing else: where no worker is free for the next part, it
//!   waits for what it has on its way. A worker is not free again before its outcome was taken, so those who
//!   held some while they wait for more would all wait for each other.
//! - After the start nothing is taken from the heap for a read or a write.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    ops::Range,
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
    geometry::{Geometry, ROLES_MAX, UNIT_BYTES_MAX},
    kernels::Plan,
    lock::Parking,
    merge::Merges,
    read::{Recover, recover},
    shared::{Set, Shared},
    stripe::{Work, work},
    superblock::SUPERBLOCK_BYTES,
    watch::{Strays, Takes, Watch, keep_watch},
    write::{Write, write_mirrored, write_with_parity, zero_stripes},
    zone::{ZoneWork, zone_work},
};

/// Operations on stripes that a core works on at a time.
pub(crate) const OPERATIONS: usize = 192;

/// Transfers that a core has in flight on members at a time.
const TRANSFERS: usize = 320;

/// Tasks of the layers above that may wait for either.
const WAITERS: usize = 4096;

/// Members that were given up and keep a buffer for good that the state was written from.
const SILENT_MAX: usize = 24;

/// Buffers for superblocks, and for the dirty map.
const SUPERBLOCKS: usize = ROLES_MAX + SILENT_MAX;
const MAPS: usize = 1 + SILENT_MAX;

/// As many of the largest operations fit the scratch memory at a time.
pub(crate) const OPERATIONS_WITH_SCRATCH: usize = 4;

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
    /// Makes so many blocks unreadable; a flush makes that durable.
    Spoil(u64),
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
    /// Of all members.
    Flush,
    /// Of the mirrored zone.
    Zone(ZoneWork),
    /// Of a sweep.
    Stripe(Work),
    /// Of whole stripes.
    Zero {
        stripes: Range<u64>,
        space: Space,
        durability: Durability,
    },
}

/// A transfer and its member.
struct Errand<D> {
    role: usize,
    disk: Option<Rc<D>>,
    at: Lba,
    what: Transfer,
}

impl<D> Errand<D> {
    /// It may change the member when it ends, however late that is.
    fn changes(&self) -> bool {
        !matches!(self.what, Transfer::Read(_))
    }

    fn takes(&self) -> Takes {
        match self.what {
            Transfer::Read(_) | Transfer::Write(..) | Transfer::Spoil(_) => Takes::Usual,
            Transfer::Zero(..) | Transfer::Flush => Takes::Long,
        }
    }
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
    /// For so many workers, and room for `others` tasks beside them.
    fn new(workers: usize, others: usize) -> Self {
        let empty = || Place {
            job: None,
            waker: None,
        };
        Self {
            places: (0..workers).map(|_| RefCell::new(empty())).collect(),
            table: OpTable::new(workers, WAITERS),
            executor: Executor::new(workers + others),
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
        self.put(self.table.begin(()).await, job())
    }

    /// Hands it over only where that takes no waiting; else gives it back.
    fn try_hand<T, F: FnOnce(T) -> J>(&self, what: T, job: F) -> Result<Flight<'_>, T> {
        match self.table.try_begin(()) {
            Some(submitted) => Ok(self.put(submitted, job(what))),
            None => Err(what),
        }
    }

    fn put<'a>(&self, submitted: Flight<'a>, job: J) -> Flight<'a> {
        let token = submitted.token();
        let mut place = self.places[token.index()].borrow_mut();
        place.job = Some((token, job));
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
    /// Roles whose disks have a volatile cache although the array says that it has none: whatever
    /// changes them goes through it.
    through: Cell<Set>,
    pool: BufferPool,
    gate: Rc<Permits>,
    operations: Rc<Desk<Job>>,
    transfers: Rc<Desk<Errand<D>>>,
    pub(crate) merges: Merges,
    pub(crate) watch: Rc<Watch>,
    strays: Strays,
    pub(crate) parking: Parking,
    plans: RefCell<HashMap<u32, Rc<Plan>>>,
    zeroes: Buffer,
    /// For superblocks; used with the update lock held. More than there are roles, because members that
    /// were given up may still read from some.
    superblocks: ArrayVec<Buffer, SUPERBLOCKS>,
    /// For the dirty map; used with the map's lock held.
    maps: ArrayVec<Buffer, MAPS>,
    /// What one operation needs at most.
    reserve: Vec<Buffer>,
    turn: Cell<usize>,
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
        let wanted = superblock_buffers(&shared.geometry);
        let superblocks: ArrayVec<_, SUPERBLOCKS> = (0..wanted)
            .map_while(|_| pool.try_allocate(SUPERBLOCK_BYTES))
            .collect();
        let maps: ArrayVec<_, MAPS> = (0..MAPS)
            .map_while(|_| pool.try_allocate(MAP_BYTES))
            .collect();
        if superblocks.len() < wanted || maps.len() < MAPS {
            return None;
        }
        let reserve: Vec<Buffer> = operation_lengths(&shared.geometry)
            .map_while(|bytes| pool.try_allocate(bytes))
            .collect();
        if reserve.len() < operation_lengths(&shared.geometry).count() {
            return None;
        }
        let core = Rc::new(Self {
            shared,
            reactor: reactor.clone(),
            members: RefCell::new(members),
            through: Cell::default(),
            pool: pool.clone(),
            gate: Permits::new(1, OPERATIONS),
            operations: Rc::new(Desk::new(OPERATIONS, 1)),
            transfers: Rc::new(Desk::new(TRANSFERS, 0)),
            merges: Merges::new(OPERATIONS),
            watch: Watch::new(WAITERS + TRANSFERS),
            strays: Strays::new(),
            parking: Parking::new(OPERATIONS + WAITERS),
            plans: RefCell::new(HashMap::with_capacity(PLANS_MAX)),
            zeroes,
            superblocks,
            maps,
            reserve,
            turn: Cell::new(0),
        });
        (0..core.members.borrow().len()).for_each(|role| core.look_at_cache(role));
        let (operations, me) = (&core.operations, Rc::downgrade(&core));
        operations.employ(|number| operator(operations.clone(), number, me.clone()));
        let transfers = &core.transfers;
        transfers.employ(|number| carrier(transfers.clone(), number, me.clone(), carry_out::<D>));
        let watching = keep_watch(core.watch.clone(), me.clone());
        let watching = operations.executor.spawn(watching);
        assert!(watching.is_ok(), "a slot for whoever keeps watch");
        reactor.add_source(Rc::new(Source(me)));
        Some(core)
    }

    /// The member with a role, if it is open.
    pub(crate) fn member(&self, role: usize) -> Option<Rc<D>> {
        self.members.borrow().get(role)?.clone()
    }

    /// The member with a role, if there is any use in asking it.
    pub(crate) fn usable(&self, role: usize) -> Option<Rc<D>> {
        match self.shared.manners.doomed().has(role) {
            true => None,
            false => self.member(role),
        }
    }

    /// Replaces the disk of a role.
    pub(crate) fn set_member(&self, role: usize, disk: Option<Rc<D>>) {
        self.members.borrow_mut()[role] = disk;
        self.look_at_cache(role);
    }

    /// A member that joins may have a cache that nobody was told of, and that nobody flushes.
    fn look_at_cache(&self, role: usize) {
        let caches = |disk: Rc<D>| disk.info().volatile_cache && !self.shared.is_volatile();
        let through = self.through.get();
        let own = Set::default().with(role);
        self.through
            .set(match self.member(role).is_some_and(caches) {
                true => through.union(own),
                false => through.without(own),
            });
    }

    /// The same, durably, where the role's disk has a cache that nobody flushes.
    fn through_cache(&self, role: usize, what: Transfer) -> Transfer {
        match (self.through.get().has(role), what) {
            (true, Transfer::Write(from, _)) => Transfer::Write(from, Durability::Durable),
            (true, Transfer::Zero(blocks, space, _)) => {
                Transfer::Zero(blocks, space, Durability::Durable)
            }
            (_, what) => what,
        }
    }

    /// Starts an operation. Only for who has nothing on its way.
    pub(crate) async fn operate(&self, job: impl FnOnce() -> Job) -> Flight<'_> {
        self.operations.hand(job).await
    }

    /// Starts an operation where that takes no waiting.
    pub(crate) fn try_operate<F: FnOnce() -> Job>(&self, job: F) -> Result<Flight<'_>, F> {
        self.operations.try_hand(job, |job| job())
    }

    /// Waits while too many operations wait for a stripe: others shall find workers.
    pub(crate) async fn wait_for_room(&self, stripe: u64) {
        let room = || (!self.merges.is_crowded(stripe)).then_some(());
        self.parking.until(room).await;
    }

    /// Starts a transfer. Only for who has nothing on its way.
    pub(crate) async fn transfer(
        &self,
        role: usize,
        at: Lba,
        what: impl FnOnce() -> Transfer,
    ) -> Flight<'_> {
        let errand = || self.errand(role, at, what());
        self.transfers.hand(errand).await
    }

    /// Starts a transfer where that takes no waiting.
    pub(crate) fn try_transfer<F: FnOnce() -> Transfer>(
        &self,
        role: usize,
        at: Lba,
        what: F,
    ) -> Result<Flight<'_>, F> {
        let errand = |what: F| self.errand(role, at, what());
        self.transfers.try_hand(what, errand)
    }

    fn errand(&self, role: usize, at: Lba, what: Transfer) -> Errand<D> {
        Errand {
            role,
            disk: self.usable(role),
            at,
            what: self.through_cache(role, what),
        }
    }

    /// Runs what is ready. A task above that has just started something calls it, so that the members
    /// have it within the same turn.
    pub(crate) fn run(&self) -> usize {
        self.operations.executor.run_ready() + self.transfers.executor.run_ready()
    }

    /// Operations and transfers that have not ended, strays among them.
    pub(crate) fn under_way(&self) -> usize {
        self.operations.table.in_use() + self.transfers.table.in_use() + self.strays.len()
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
            let buffer = match self.pool.try_allocate(length) {
                Some(buffer) => buffer,
                None => {
                    let wanting = || self.last_resort(into, length);
                    self.parking
                        .until(|| self.pool.try_allocate(length).or_else(wanting))
                        .await
                }
            };
            into.push(buffer);
        }
    }

    /// Of the memory that is kept for when strays hold the rest: what an operation has not taken of it.
    fn last_resort(&self, taken: &Scratch, length: usize) -> Option<Buffer> {
        if self.strays.is_empty() {
            return None;
        }
        let begun = self
            .reserve
            .iter()
            .any(|own| taken.iter().any(|it| it.is_of(own)));
        let free = |own: &&Buffer| !own.is_shared() && own.len() >= length;
        match begun || self.reserve.iter().all(|own| !own.is_shared()) {
            true => Some(self.reserve.iter().find(free)?.slice(0..length)),
            false => None,
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

    /// A place for the superblock of each role. With the update lock held. They are there without waiting for
    /// memory, which operations may have that wait for the lock, until more members than [`SILENT_MAX`] were
    /// given up that keep one.
    pub(crate) async fn superblock_buffers(&self) -> ArrayVec<Buffer, ROLES_MAX> {
        let roles = self.shared.geometry.roles();
        let ready = self.superblocks.iter().filter(|buffer| !buffer.is_used());
        let mut buffers: ArrayVec<Buffer, ROLES_MAX> = ready.take(roles).cloned().collect();
        while buffers.len() < roles {
            let buffer = || self.pool.try_allocate(SUPERBLOCK_BYTES);
            buffers.push(self.parking.until(buffer).await);
        }
        buffers
    }

    /// A place for the dirty map, in the same way. With the map's lock held.
    pub(crate) async fn map_buffer(&self) -> Buffer {
        self.parking
            .until(|| {
                let own = self.maps.iter().find(|buffer| !buffer.is_used());
                own.cloned().or_else(|| self.pool.try_allocate(MAP_BYTES))
            })
            .await
    }

    /// A number that turns, to share reads out among mirrors.
    pub(crate) fn turn(&self) -> usize {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        turn
    }

    /// A host asks for something.
    pub(crate) fn count_activity(&self) {
        self.shared.activity.count(self.reactor.core());
    }

    /// Drops all tasks where they stand: the core ends.
    pub(crate) fn end(&self) {
        self.operations.executor.drop_tasks();
        self.transfers.executor.drop_tasks();
        self.strays.outlive(&self.shared, &self.reactor);
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
            Job::Write(write) => write_with_parity(&core, number, write).await,
            Job::Mirror(write) => write_mirrored(&core, &write).await,
            Job::Zone(part) => zone_work(&core, part).await,
            Job::Flush => core.flush_members().await,
            Job::Stripe(part) => {
                work(&core, part).await;
                Ok(())
            }
            Job::Recover(recovering) => recover(&core, &recovering).await,
            Job::Zero {
                stripes,
                space,
                durability,
            } => zero_stripes(&core, stripes, space, durability).await,
        };
        desk.table.complete(token, outcome);
    }
}

/// Carries out transfers for as long as the array is open.
async fn carrier<D: Disk, F: Future<Output = Outcome> + 'static>(
    desk: Rc<Desk<Errand<D>>>,
    number: usize,
    core: Weak<Core<D>>,
    carry_out: impl Fn(Errand<D>) -> F,
) {
    let mut place: Pin<Box<Option<F>>> = Box::pin(None);
    loop {
        let (token, errand) = desk.take(number).await;
        let Some(core) = core.upgrade() else { return };
        let (shared, role, changes) = (&core.shared, errand.role, errand.changes());
        if changes {
            shared.unended.began(core.reactor.core(), role);
        }
        let (takes, incarnation) = (errand.takes(), shared.manners.incarnation(role));
        place.set(Some(carry_out(errand)));
        let mut out = Out {
            core: &core,
            role,
            changes,
            place: &mut place,
        };
        let ended = core
            .watch
            .over(shared, &core.reactor, role, takes, out.command())
            .await;
        if ended.is_some() {
            out.place.set(None);
        }
        drop(out);
        let outcome = match ended {
            Some(Err(_)) | None if shared.manners.incarnation(role) != incarnation => {
                // The role's member is another one by now, which has nothing to do with it.
                match changes {
                    true => Ok(()),
                    false => Err(DiskError::UnrecoveredRead),
                }
            }
            ended => ended.unwrap_or(Err(DiskError::TimedOut)),
        };
        shared.heard(role, outcome);
        desk.table.complete(token, outcome);
    }
}

/// A command that is out on a member: given up, or left where its core closes the array, it is a stray from
/// then on.
struct Out<'a, D: Disk, F: Future<Output = Outcome> + 'static> {
    core: &'a Core<D>,
    role: usize,
    changes: bool,
    /// Empty once the command has ended.
    place: &'a mut Pin<Box<Option<F>>>,
}

impl<D: Disk, F: Future<Output = Outcome> + 'static> Out<'_, D, F> {
    fn command(&mut self) -> Pin<&mut F> {
        let command = self.place.as_mut().as_pin_mut();
        command.expect("it was just put there")
    }
}

impl<D: Disk, F: Future<Output = Outcome> + 'static> Drop for Out<'_, D, F> {
    fn drop(&mut self) {
        let shared = &self.core.shared;
        if !self.changes {
            self.place.set(None);
        } else if self.place.is_none() {
            shared.unended.ended(self.core.reactor.core(), self.role);
        } else {
            // On the heap: it happens while a member is given up, or at the end.
            let mut stray = std::mem::replace(self.place, Box::pin(None));
            let stray = async move {
                match stray.as_mut().as_pin_mut() {
                    Some(command) => command.await,
                    None => Ok(()),
                }
            };
            self.core.strays.keep(shared, self.role, Box::pin(stray));
        }
    }
}

async fn carry_out<D: Disk>(errand: Errand<D>) -> Outcome {
    let Some(disk) = errand.disk else {
        return Err(DiskError::Gone);
    };
    let at = errand.at;
    match errand.what {
        Transfer::Read(into) => disk.read(at, &into).await,
        Transfer::Write(from, durability) => disk.write(at, &from, durability).await,
        Transfer::Zero(blocks, space, durability) => {
            disk.write_zeroes(at, blocks, space, durability).await
        }
        Transfer::Spoil(blocks) => disk.write_uncorrectable(at, blocks).await,
        Transfer::Flush => disk.flush().await,
    }
}

/// Lets the reactor turn a core's part; it does nothing once the array is closed.
struct Source<D>(Weak<Core<D>>);

impl<D: Disk> PollSource for Source<D> {
    fn poll(&self, _now: Time) -> usize {
        self.0.upgrade().map_or(0, |core| {
            core.parking.wake();
            core.strays.look(&core.shared, core.reactor.core()) + core.run()
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

/// Several transfers, each to another role: at a time, but where few workers are free.
pub(crate) struct Fan<'a> {
    flights: ArrayVec<(usize, Flight<'a>), ROLES_MAX>,
    ends: Ends,
}

/// How a fan of transfers ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    /// Roles whose medium could not be read, but whose member is there.
    pub(crate) unreadable: Set,
    /// Roles whose member failed otherwise.
    pub(crate) failed: Set,
}

/// Buffers that superblocks are written from.
fn superblock_buffers(geometry: &Geometry) -> usize {
    geometry.roles() + SILENT_MAX
}

/// The buffers that an operation takes at most.
pub(crate) fn operation_lengths(geometry: &Geometry) -> impl Iterator<Item = usize> + use<> {
    let strips = (geometry.data() + 2 * geometry.parity()).max(geometry.copies());
    let headers = geometry.roles() * geometry.block_size().bytes();
    std::iter::repeat_n(geometry.unit_bytes() as usize, strips).chain([headers])
}

/// The scratch memory that a core takes: some of it for good, and for some operations.
pub(crate) fn scratch_bytes(geometry: &Geometry) -> usize {
    let states = superblock_buffers(geometry) * SUPERBLOCK_BYTES + MAPS * MAP_BYTES;
    let operation: usize = operation_lengths(geometry)
        .map(usize::next_power_of_two)
        .sum();
    let all = (1 + OPERATIONS_WITH_SCRATCH) * operation;
    UNIT_BYTES_MAX as usize + states + all
}

impl<'a> Fan<'a> {
    pub(crate) fn new() -> Self {
        Self {
            flights: ArrayVec::new(),
            ends: Ends::default(),
        }
    }

    /// Starts one more.
    pub(crate) async fn transfer<D: Disk>(
        &mut self,
        core: &'a Core<D>,
        role: usize,
        at: Lba,
        mut what: impl FnOnce() -> Transfer,
    ) {
        let flight = loop {
            match core.try_transfer(role, at, what) {
                Ok(flight) => break flight,
                Err(back) if self.flights.is_empty() => {
                    break core.transfer(role, at, back).await;
                }
                Err(back) => what = back,
            }
            core.transfers.executor.run_ready();
            self.land_one(0).await;
        };
        self.flights.push((role, flight));
    }

    async fn land_one(&mut self, number: usize) {
        let (role, flight) = self.flights.remove(number);
        let ends = &mut self.ends;
        match flight.outcome().await {
            Ok(()) => {}
            Err(DiskError::UnrecoveredRead) => ends.unreadable = ends.unreadable.with(role),
            Err(_) => ends.failed = ends.failed.with(role),
        }
    }

    /// Waits for all of them.
    pub(crate) async fn land<D: Disk>(&mut self, core: &Core<D>) -> Ends {
        core.transfers.executor.run_ready();
        while let Some(last) = self.flights.len().checked_sub(1) {
            self.land_one(last).await;
        }
        std::mem::take(&mut self.ends)
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
