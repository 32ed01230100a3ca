//! A pool on several cores: what they share, and what they ask of the home core.
//!
//! Invariants:
//! - Everything that changes a pool is done by its home core. Another core asks by message, with a bound
//!   on how much it has asked for; an answer comes for each.
//! - The data of a write never change core: the home core says where they go, the asking core writes
//!   them, and the home core then makes the record.
//! - The end of a slow write waits for no beginning, neither for a place to ask by nor for a task slot:
//!   beginnings wait for the space that ends set free.
//! - A slow write whose future is dropped, or whose core ends, is given up at the home core too, which
//!   keeps its extents for good: the disk may still work for it.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeSet, HashMap, VecDeque},
    ops::Range,
    os::fd::BorrowedFd,
    rc::{Rc, Weak},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

use arrayvec::ArrayVec;
use corebay_core::{
    disk::{Disk, DiskInfo},
    mesh::{Port, Wakeups, mesh},
    reactor::{PollSource, Reactor},
    sync::FifoWait,
    units::{CoreId, Time},
};

use crate::{
    ends::Ends,
    epoch::{Epochs, Looks},
    error::PoolError,
    flat::{FlatVolume, Slots},
    format::{Extent, Layout},
    gather::Gather,
    pool::Shared,
    slow::{FirstWrite, SlowWrite, WRITE_EXTENTS_MAX},
    state::State,
    sync::{BuildMix, Signal},
};

/// What a core may have asked of the home core at a time; more waits.
const ASKS_MAX: usize = 512;

/// The messages that fit the ring between two cores.
const RING: usize = 1024;

/// The home core's number among the cores that share a pool.
const HOME_PORT: CoreId = CoreId(0);

/// What all cores know of a pool.
pub(crate) struct Common {
    pub epochs: Arc<Epochs>,
    pub slots: Slots,
    /// The block at which the first extent begins.
    pub data: u64,
    /// What volumes are, but for their size.
    pub info: DiskInfo,
    /// No volume is opened any more.
    pub closing: AtomicBool,
    uuid: [u8; 16],
    home: CoreId,
    /// Each core takes its own, once.
    ports: Mutex<Vec<Port<Message>>>,
}

impl Common {
    pub fn new(state: &State, below: DiskInfo, home: CoreId) -> Self {
        let layout: &Layout = &state.layout;
        let block_bytes = 1 << layout.block_size.shift();
        Self {
            epochs: Arc::default(),
            slots: Slots::default(),
            data: layout.lba(layout.data_at()).0,
            info: DiskInfo {
                block_size: layout.block_size,
                blocks: 0,
                volatile_cache: below.volatile_cache,
                deallocate_granularity: Some(1),
                write_uncorrectable: false,
                // Beyond a block, neighbours may lie in different extents.
                atomic_write_bytes: below.atomic_write_bytes.min(block_bytes),
            },
            closing: AtomicBool::new(false),
            uuid: state.uuid,
            home,
            ports: Mutex::default(),
        }
    }
}

/// An open pool, for all cores: see [`Pool::share`](crate::Pool::share).
#[derive(Clone)]
pub struct PoolHandle {
    common: Arc<Common>,
}

impl PoolHandle {
    /// The pool's identity.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.common.uuid
    }

    /// The core that the pool lives on.
    #[must_use]
    pub fn home(&self) -> CoreId {
        self.common.home
    }
}

/// A volume, for all cores: see [`Pool::volume_handle`](crate::Pool::volume_handle).
#[derive(Clone)]
pub struct VolumeHandle {
    pub(crate) flat: Arc<FlatVolume>,
    pub(crate) common: Arc<Common>,
}

impl VolumeHandle {
    /// What the disks over it are, at present.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        DiskInfo {
            blocks: self.flat.blocks.load(Ordering::Relaxed),
            ..self.common.info
        }
    }

    /// The blocks that hold something, in this volume's own view (NUSE).
    #[must_use]
    pub fn mapped_blocks(&self) -> u64 {
        self.flat.counts.mapped.load(Ordering::Relaxed)
    }

    /// It is a snapshot, or takes no writes for now.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flat.read_only.load(Ordering::Relaxed)
    }

    /// It was deleted.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.flat.gone.load(Ordering::Relaxed)
    }

    /// Disks that are open over it, on all cores.
    #[must_use]
    pub fn open_disks(&self) -> u32 {
        self.flat.counts.handles.load(Ordering::SeqCst)
    }

    /// True where both are the same volume.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.flat, &other.flat)
    }
}

/// What is asked of the home core. What may change a volume carries a count of its own among the
/// volume's writers, so that whoever freezes the volume waits for it, whatever became of who asked.
pub(crate) enum Ask {
    /// Show where a block lies.
    LookUp { volume: u32, block: u64 },
    /// A slow write begins.
    Begin { volume: u32, blocks: Range<u64> },
    /// Its data are where they belong, or could not be written.
    Finish {
        ticket: u64,
        is_written: bool,
        writing: Counted,
    },
    /// It will not be finished.
    GiveUp { ticket: u64 },
    /// The core has ended: nor will anything else that it began.
    Leave,
    /// Blocks become zeroes.
    Clear {
        volume: u32,
        blocks: Range<u64>,
        keep: bool,
        _writing: Counted,
    },
}

/// One of a volume's writers, as long as it is there.
pub(crate) struct Counted(Arc<FlatVolume>);

impl Counted {
    fn new(flat: &Arc<FlatVolume>) -> Self {
        flat.counts.writers.fetch_add(1, Ordering::SeqCst);
        Self(flat.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counts.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The home core's answer.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    Begun {
        ticket: u64,
        extents: ArrayVec<Extent, WRITE_EXTENTS_MAX>,
    },
}

pub(crate) type Answer = Result<Reply, PoolError>;

/// What goes between cores.
pub(crate) enum Message {
    Ask { from: CoreId, token: u64, ask: Ask },
    Answer { token: u64, answer: Answer },
}

/// One core's part of a pool: its disk, its looks, its way to the home core.
pub struct PoolCore<D: Disk> {
    pub(crate) common: Arc<Common>,
    pub(crate) looks: Rc<Looks>,
    pub(crate) disk: Rc<D>,
    pub(crate) gather: Gather,
    seat: Seat<D>,
    /// Volumes may take writes again: looked at in each turn.
    pub(crate) thawed: Signal,
}

enum Seat<D: Disk> {
    Home(Rc<Shared<D>>),
    Away(Away),
}

struct Away {
    port: Rc<Port<Message>>,
    asked: RefCell<Vec<Asked>>,
    /// By the number of what is asked, in groups of [`ASKS_MAX`]: ends of slow writes, and all else.
    lanes: [Lane; 2],
}

/// Places to ask by, which are waited for in turn.
struct Lane {
    free: RefCell<Vec<usize>>,
    turn: FifoWait,
}

impl Lane {
    fn new(number: usize) -> Self {
        let all = number * ASKS_MAX..(number + 1) * ASKS_MAX;
        Self {
            free: RefCell::new(all.rev().collect()),
            turn: FifoWait::new(ASKS_MAX),
        }
    }
}

/// Something that was asked.
enum Asked {
    Free,
    Waiting(Option<Waker>),
    /// Nobody waits for the answer any more.
    Dropped,
    Answered(Answer),
}

impl<D: Disk> PoolCore<D> {
    pub(crate) fn home(shared: &Rc<Shared<D>>) -> Rc<Self> {
        let core = Rc::new(Self {
            common: shared.common.clone(),
            looks: shared.looks.clone(),
            disk: shared.device.disk.clone(),
            gather: Gather::new(&shared.device.disk),
            seat: Seat::Home(shared.clone()),
            thawed: Signal::default(),
        });
        let source = CoreSource {
            core: Rc::downgrade(&core),
            port: None,
        };
        shared.reactor.add_source(Rc::new(source));
        core
    }

    /// Opens the pool on the core of `reactor`, which is not its home; once. `disk` is this core's way to
    /// what the pool lies on.
    ///
    /// # Errors
    /// Where as many cores have it as it is shared by.
    pub fn open(handle: &PoolHandle, reactor: &Reactor, disk: D) -> Result<Rc<Self>, PoolError> {
        let common = &handle.common;
        let mut ports = common.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = Rc::new(ports.pop().ok_or(PoolError::Busy)?);
        drop(ports);
        let away = Away {
            port: port.clone(),
            asked: RefCell::new((0..2 * ASKS_MAX).map(|_| Asked::Free).collect()),
            lanes: [0, 1].map(Lane::new),
        };
        let disk = Rc::new(disk);
        let opened = Rc::new(Self {
            common: common.clone(),
            looks: Rc::new(Looks::new(common.epochs.clone(), Some(port.core().0))),
            gather: Gather::new(&disk),
            disk,
            seat: Seat::Away(away),
            thawed: Signal::default(),
        });
        let source = CoreSource {
            core: Rc::downgrade(&opened),
            port: Some(port),
        };
        reactor.add_source(Rc::new(source));
        Ok(opened)
    }

    /// The pool lives on this core.
    pub(crate) fn is_home(&self) -> bool {
        matches!(self.seat, Seat::Home(_))
    }

    /// Shows where a block lies, for another look.
    pub(crate) async fn look_up(&self, volume: u32, block: u64) -> Result<(), PoolError> {
        match &self.seat {
            Seat::Home(shared) => shared.look_up(volume, block).await,
            Seat::Away(away) => away.ask(Ask::LookUp { volume, block }).await.map(drop),
        }
    }

    /// Begins a slow write to blocks of one extent at once, where that is possible here.
    pub(crate) fn try_begin(
        &self,
        volume: u32,
        blocks: &Range<u64>,
        lies: Option<Option<Extent>>,
    ) -> Option<FirstWrite<'_, D>> {
        match &self.seat {
            Seat::Home(shared) => shared.try_begin(volume, blocks, lies),
            Seat::Away(_) => None,
        }
    }

    pub(crate) async fn begin_write(
        &self,
        flat: &Arc<FlatVolume>,
        blocks: Range<u64>,
    ) -> Result<Begun<'_, D>, PoolError> {
        let volume = flat.id;
        match &self.seat {
            Seat::Home(shared) => {
                let write = shared.begin_write(volume, blocks).await?;
                Ok(Begun::Here(shared, write))
            }
            Seat::Away(away) => match away.ask(Ask::Begin { volume, blocks }).await? {
                Reply::Begun { ticket, extents } => Ok(Begun::There {
                    begun: Ticket {
                        away,
                        flat: flat.clone(),
                        ticket: Some(ticket),
                    },
                    extents,
                }),
                Reply::Done => unreachable!("a write that begins is answered by its extents"),
            },
        }
    }

    pub(crate) async fn clear(
        &self,
        flat: &Arc<FlatVolume>,
        blocks: Range<u64>,
        keep: bool,
    ) -> Result<(), PoolError> {
        let volume = flat.id;
        match &self.seat {
            Seat::Home(shared) => shared.clear(volume, blocks, keep).await,
            Seat::Away(away) => {
                let ask = Ask::Clear {
                    volume,
                    blocks,
                    keep,
                    _writing: Counted::new(flat),
                };
                away.ask(ask).await.map(drop)
            }
        }
    }

    fn turn(&self) -> usize {
        self.thawed.notify();
        match &self.seat {
            Seat::Home(shared) => shared.turn() + shared.serve(),
            Seat::Away(away) => {
                self.looks.turn();
                away.take_answers()
            }
        }
    }
}

/// A slow write that has begun; its data may be written now.
#[allow(
    clippy::large_enum_variant,
    reason = "it lives in one future, which is on the heap"
)]
pub(crate) enum Begun<'a, D: Disk> {
    Here(&'a Rc<Shared<D>>, SlowWrite<D>),
    There {
        begun: Ticket<'a>,
        extents: ArrayVec<Extent, WRITE_EXTENTS_MAX>,
    },
}

/// A slow write that the home core knows by a number.
pub(crate) struct Ticket<'a> {
    away: &'a Away,
    flat: Arc<FlatVolume>,
    ticket: Option<u64>,
}

impl<D: Disk> Begun<'_, D> {
    /// An extent for each of the volume's extents that are written to.
    pub fn extents(&self) -> ArrayVec<Extent, WRITE_EXTENTS_MAX> {
        match self {
            Self::Here(_, write) => write.extents().clone(),
            Self::There { extents, .. } => extents.clone(),
        }
    }

    pub async fn finish(self, is_written: bool) -> Result<(), PoolError> {
        match self {
            Self::Here(shared, write) => shared.finish_write(write, is_written).await,
            Self::There { mut begun, .. } => {
                let ticket = begun.ticket.take().expect("it is finished once");
                let ask = Ask::Finish {
                    ticket,
                    is_written,
                    writing: Counted::new(&begun.flat),
                };
                begun.away.ask(ask).await.map(drop)
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.away.tell(Ask::GiveUp { ticket });
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.tell(Ask::Leave);
    }
}

impl Away {
    fn tell(&self, ask: Ask) {
        let from = self.port.core();
        let token = u64::MAX;
        self.port.send(HOME_PORT, Message::Ask { from, token, ask });
    }

    /// Asks, and waits for the answer.
    async fn ask(&self, ask: Ask) -> Answer {
        let lane = match ask {
            Ask::Finish { .. } => &self.lanes[0],
            _ => &self.lanes[1],
        };
        let index = lane.turn.wait_for(|| lane.free.borrow_mut().pop()).await;
        self.asked.borrow_mut()[index] = Asked::Waiting(None);
        let asking = Asking { away: self, index };
        let message = Message::Ask {
            from: self.port.core(),
            token: index as u64,
            ask,
        };
        self.port.send(HOME_PORT, message);
        let answer = std::future::poll_fn(|context| {
            let asked = &mut self.asked.borrow_mut()[index];
            match std::mem::replace(asked, Asked::Free) {
                Asked::Answered(answer) => Poll::Ready(answer),
                _ => {
                    *asked = Asked::Waiting(Some(context.waker().clone()));
                    Poll::Pending
                }
            }
        });
        let answer = answer.await;
        std::mem::forget(asking);
        self.give_back(index);
        answer
    }

    fn give_back(&self, index: usize) {
        let lane = &self.lanes[index / ASKS_MAX];
        lane.free.borrow_mut().push(index);
        lane.turn.notify();
    }

    fn take_answers(&self) -> usize {
        let mut taken = 0;
        while let Some(message) = self.port.receive() {
            taken += 1;
            let Message::Answer { token, answer } = message else {
                unreachable!("only the home core is asked")
            };
            let index = usize::try_from(token).expect("it was this core's");
            let asked = &mut self.asked.borrow_mut()[index];
            match std::mem::replace(asked, Asked::Free) {
                Asked::Waiting(waker) => {
                    *asked = Asked::Answered(answer);
                    waker.into_iter().for_each(Waker::wake);
                }
                Asked::Dropped => self.unwanted(index, answer),
                Asked::Free | Asked::Answered(_) => unreachable!("each is answered once"),
            }
        }
        self.port.push_waiting();
        taken
    }

    /// An answer that nobody waits for any more.
    fn unwanted(&self, index: usize, answer: Answer) {
        if let Ok(Reply::Begun { ticket, .. }) = answer {
            self.tell(Ask::GiveUp { ticket });
        }
        self.give_back(index);
    }
}

/// Somebody waits for an answer.
struct Asking<'a> {
    away: &'a Away,
    index: usize,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let asked = &mut self.away.asked.borrow_mut()[self.index];
        if let Asked::Answered(answer) = std::mem::replace(asked, Asked::Dropped) {
            *asked = Asked::Free;
            self.away.unwanted(self.index, answer);
        }
    }
}

/// One core's part in its reactor's turns.
struct CoreSource<D: Disk> {
    core: Weak<PoolCore<D>>,
    /// What other cores wake this one by.
    port: Option<Rc<Port<Message>>>,
}

impl<D: Disk> PollSource for CoreSource<D> {
    fn poll(&self, _now: Time) -> usize {
        self.core.upgrade().map_or(0, |core| core.turn())
    }

    fn flush(&self, _now: Time) -> usize {
        if let Some(core) = self.core.upgrade() {
            core.looks.rest();
        }
        0
    }

    fn prepare_sleep(&self) -> bool {
        let Some(core) = self.core.upgrade() else {
            return true;
        };
        let quiet = match &core.seat {
            Seat::Home(shared) => shared.may_sleep(),
            Seat::Away(_) => true,
        };
        let heard = self.port.as_ref().is_none_or(|port| port.prepare_sleep());
        quiet && heard && core.thawed.is_empty()
    }

    fn awake(&self) {
        if let Some(port) = &self.port {
            port.awake();
        }
    }

    /// Once the core's part is over, and its last word is on its way.
    fn is_over(&self) -> bool {
        let is_said = || self.port.as_ref().is_none_or(|port| !port.push_waiting());
        self.core.strong_count() == 0 && is_said()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.as_ref()?.wake_fd()
    }
}

/// The home core's side of what others ask.
pub(crate) struct Desk<D: Disk> {
    port: OnceCell<Rc<Port<Message>>>,
    /// Slow writes of other cores, by number.
    writes: RefCell<HashMap<u64, (CoreId, SlowWrite<D>), BuildMix>>,
    /// Cores that have ended.
    left: RefCell<BTreeSet<CoreId>>,
    next_ticket: Cell<u64>,
    /// Asked for while no task slot was free.
    waiting: RefCell<VecDeque<(CoreId, u64, Ask)>>,
    pub ends: Ends<D>,
}

impl<D: Disk> Default for Desk<D> {
    fn default() -> Self {
        Self {
            port: OnceCell::new(),
            writes: RefCell::default(),
            left: RefCell::default(),
            next_ticket: Cell::new(0),
            waiting: RefCell::default(),
            ends: Ends::default(),
        }
    }
}

/// See [`Pool::share`](crate::Pool::share).
pub(crate) fn share<D: Disk>(
    shared: &Rc<Shared<D>>,
    core: &Rc<PoolCore<D>>,
    cores: usize,
    wakeups: Wakeups,
) -> Result<PoolHandle, PoolError> {
    let common = &shared.common;
    if shared.desk.port.get().is_some() {
        return Err(PoolError::Busy);
    }
    let cores = cores.max(1);
    let mut ports = mesh(cores, RING, wakeups).map_err(|_| PoolError::TooMany)?;
    let port = Rc::new(ports.remove(HOME_PORT.0));
    common.epochs.share(cores);
    *common.ports.lock().unwrap_or_else(PoisonError::into_inner) = ports;
    let _ = shared.desk.port.set(port.clone());
    let source = HomeSource {
        shared: Rc::downgrade(shared),
        core: Rc::downgrade(core),
        port,
    };
    shared.reactor.add_source(Rc::new(source));
    Ok(PoolHandle {
        common: common.clone(),
    })
}

/// What wakes the home core of a pool that is shared.
struct HomeSource<D: Disk> {
    shared: Weak<Shared<D>>,
    core: Weak<PoolCore<D>>,
    port: Rc<Port<Message>>,
}

impl<D: Disk> PollSource for HomeSource<D> {
    fn poll(&self, _now: Time) -> usize {
        match self.core.upgrade().as_ref().map(|core| &core.seat) {
            Some(Seat::Home(shared)) => shared.serve(),
            _ => 0,
        }
    }

    fn prepare_sleep(&self) -> bool {
        self.port.prepare_sleep()
    }

    fn awake(&self) {
        self.port.awake();
    }

    fn is_over(&self) -> bool {
        self.core.strong_count() == 0
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.wake_fd()
    }
}

impl<D: Disk> Drop for HomeSource<D> {
    /// Slow writes of cores that will say no more hold the pool, which holds them.
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            drop(shared.desk.writes.take());
            shared.desk.ends.give_up();
        }
    }
}

impl<D: Disk> Shared<D> {
    /// Takes what other cores ask.
    fn serve(self: &Rc<Self>) -> usize {
        let Some(port) = self.desk.port.get() else {
            return 0;
        };
        let mut taken = 0;
        while let Some(message) = port.receive() {
            taken += 1;
            let Message::Ask { from, token, ask } = message else {
                unreachable!("the home core asks nobody")
            };
            match ask {
                // These free what others wait for, so they wait for no slot.
                Ask::Finish {
                    ticket,
                    is_written,
                    writing,
                } => {
                    let write = self.desk.writes.borrow_mut().remove(&ticket);
                    match write {
                        Some((_, write)) => {
                            self.end_of((from, token), write, is_written, writing);
                        }
                        // A core that has ended has given it up.
                        None => self.answer_core(from, token, Ok(Reply::Done)),
                    }
                }
                Ask::GiveUp { ticket } => drop(self.desk.writes.borrow_mut().remove(&ticket)),
                Ask::Leave => {
                    self.desk.left.borrow_mut().insert(from);
                    let mut writes = self.desk.writes.borrow_mut();
                    writes.retain(|_, (by, _)| *by != from);
                }
                ask => match self.begin_at_once(from, &ask) {
                    Some(answer) => self.answer_core(from, token, answer),
                    None => self.desk.waiting.borrow_mut().push_back((from, token, ask)),
                },
            }
        }
        taken += self.serve_ends();
        while self.reactor.executor().free() > 0 {
            let next = self.desk.waiting.borrow_mut().pop_front();
            let Some((from, token, ask)) = next else {
                break;
            };
            let shared = self.clone();
            let started = self.reactor.start(move || async move {
                let answer = shared.answer(from, &ask).await;
                shared.answer_core(from, token, answer);
            });
            debug_assert!(started, "a slot is free");
        }
        port.push_waiting();
        taken
    }

    /// A write that has to wait for nothing begins here, without a task. Nobody is overtaken who waits for one.
    fn begin_at_once(self: &Rc<Self>, from: CoreId, ask: &Ask) -> Option<Answer> {
        let Ask::Begin { volume, blocks } = ask else {
            return None;
        };
        let begun = match self.desk.waiting.borrow().is_empty() {
            true => self.try_begin_write(*volume, blocks)?,
            false => return None,
        };
        Some(begun.map(|write| self.begun(from, write)))
    }

    /// A write of another core has begun.
    fn begun(&self, from: CoreId, write: SlowWrite<D>) -> Reply {
        let extents = write.extents().clone();
        let ticket = self.desk.next_ticket.get();
        self.desk.next_ticket.set(ticket + 1);
        self.desk.writes.borrow_mut().insert(ticket, (from, write));
        Reply::Begun { ticket, extents }
    }

    async fn answer(self: &Rc<Self>, from: CoreId, ask: &Ask) -> Answer {
        match ask {
            Ask::LookUp { volume, block } => self.look_up(*volume, *block).await?,
            Ask::Begin { volume, blocks } => {
                let write = self.begin_write(*volume, blocks.clone()).await?;
                return Ok(match self.desk.left.borrow().contains(&from) {
                    true => Reply::Done,
                    false => self.begun(from, write),
                });
            }
            Ask::Clear {
                volume,
                blocks,
                keep,
                ..
            } => self.clear(*volume, blocks.clone(), *keep).await?,
            Ask::Finish { .. } | Ask::GiveUp { .. } | Ask::Leave => {}
        }
        Ok(Reply::Done)
    }

    pub fn answer_core(&self, core: CoreId, token: u64, answer: Answer) {
        let port = self.desk.port.get().expect("it is shared");
        port.send(core, Message::Answer { token, answer });
    }
}
