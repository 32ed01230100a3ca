//! One core's engine for all its file disks: the operations in flight, and the io_uring or helper
//! thread that makes their system calls.
//!
//! Invariants:
//! - An operation holds its buffers, its file and its claim on blocks from before the kernel learns
//!   of it until the kernel is done with it, whatever becomes of the task that asked for it.
//! - An operation ends exactly once. What the kernel does in part is carried on here, so nobody
//!   above sees a short read or write.
//! - Operations beyond the ring's size wait in the table, those beyond the table's in line for it.
//! - A medium has at most one flush in the kernel, on whatever core. Flushes that are asked for while
//!   one is under way share the next one. So a failed flush is known before another one begins.
//! - The engine does not end before the kernel is done with its buffers; where the kernel does not
//!   finish in time, they are never used again.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    rc::{Rc, Weak},
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use arrayvec::ArrayVec;

use super::{
    call::{Action, Call, Iovec, errno},
    claims::Claim,
    medium::FileMedium,
    threads::{Helper, SpawnThread, machine_thread},
    uring::Uring,
};
use crate::{
    buffer::{Buffer, BufferPool, DevicePin, Direction},
    disk::SEGMENTS_MAX,
    reactor::{PollSource, Reactor},
    sync::{OpTable, Token},
    units::Time,
};

/// The entries of a core's submission ring: the most calls handed in by one turn.
const RING_ENTRIES: u32 = 256;

/// How long the end of an engine waits for the kernel, in steps of [`DRAIN_STEP`].
const DRAIN_STEPS: usize = 100;
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// How an engine makes its system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// By io_uring where the machine allows it, else by a helper thread.
    #[default]
    Auto,
    /// By io_uring.
    IoUring,
    /// By a helper thread, one call after the other.
    Threads,
}

/// What an engine is made with.
#[derive(Clone, Copy, Debug)]
pub struct FileEngineOptions {
    /// How it makes its system calls.
    pub kind: EngineKind,
    /// The operations that can be in flight at a time, over all file disks of the core.
    pub depth: usize,
    /// The tasks that can wait for one of them.
    pub waiters: usize,
    /// Whether to register the pool's memory with the kernel.
    pub register_memory: bool,
    /// How to start the helper thread, if one is needed.
    pub spawn: SpawnThread,
}

impl Default for FileEngineOptions {
    fn default() -> Self {
        Self {
            kind: EngineKind::Auto,
            depth: 1024,
            waiters: 4096,
            register_memory: true,
            spawn: machine_thread,
        }
    }
}

/// An engine could not be made.
#[derive(Debug)]
pub enum FileEngineError {
    /// io_uring was asked for, and the machine has none or refuses it.
    IoUring(io::Error),
    /// The helper thread could not be started.
    Thread(io::Error),
}

impl fmt::Display for FileEngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring(source) => write!(
                f,
                "this machine refuses io_uring ({source}); see `sysctl kernel.io_uring_disabled` \
                 and the container's seccomp profile, or use helper threads"
            ),
            Self::Thread(source) => {
                write!(f, "cannot start the helper thread for file disks: {source}")
            }
        }
    }
}

impl std::error::Error for FileEngineError {}

/// Counts of an engine since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileEngineCounters {
    /// Turns in which calls were handed in or waited for.
    pub enters: u64,
    /// Calls that were handed to the kernel.
    pub calls: u64,
    /// Calls that the kernel did in part and that were carried on.
    pub continued: u64,
    /// Flushes that were answered by another one's call.
    pub flushes_shared: u64,
}

/// A file as one core's engine knows it.
pub(super) struct Target {
    pub(super) medium: Arc<FileMedium>,
    engine: Weak<FileEngine>,
    registered: Option<u32>,
}

impl Drop for Target {
    fn drop(&mut self) {
        if let (Some(engine), Some(place)) = (self.engine.upgrade(), self.registered)
            && let Backend::Uring(ring) = &mut *engine.backend.borrow_mut()
        {
            ring.release_file(place);
        }
    }
}

/// What else an operation keeps, and what is to happen at its end, also when nobody waits for it any
/// more. For the control path.
pub(super) struct Extra {
    /// Another file than the medium's own.
    pub(super) file: Arc<OwnedFd>,
    /// Bytes to write that do not lie in a buffer.
    pub(super) bytes: Box<[u8]>,
    /// Told the operation's result.
    pub(super) at_end: Box<dyn FnOnce(i32)>,
}

/// An operation in flight.
struct Operation {
    action: Action,
    target: Option<Rc<Target>>,
    /// In bytes, as are `len` and `done`.
    offset: u64,
    len: u64,
    done: u64,
    claim: Claim,
    iovecs: [Iovec; SEGMENTS_MAX],
    /// The iovecs that are not yet done with.
    next_iovec: usize,
    iovec_count: usize,
    pins: ArrayVec<DevicePin, SEGMENTS_MAX>,
    extra: Option<Extra>,
}

impl Operation {
    fn unused() -> Box<Self> {
        Box::new(Self {
            action: Action::Sync,
            target: None,
            offset: 0,
            len: 0,
            done: 0,
            claim: Claim::default(),
            iovecs: [Iovec::EMPTY; SEGMENTS_MAX],
            next_iovec: 0,
            iovec_count: 0,
            pins: ArrayVec::new(),
            extra: None,
        })
    }

    fn begin(&mut self, target: &Rc<Target>, action: Action, offset: u64, len: u64) {
        self.action = action;
        self.target = Some(target.clone());
        self.offset = offset;
        self.len = len;
        self.done = 0;
        self.claim = Claim::default();
        self.next_iovec = 0;
        self.iovec_count = 0;
    }

    /// Adds memory, joined to the last piece where it follows right after it.
    fn add_memory(&mut self, base: *mut u8, len: usize) {
        if let Some(last) = self.iovecs[..self.iovec_count].last_mut()
            && last.base.wrapping_add(last.len) == base
        {
            last.len += len;
            return;
        }
        self.iovecs[self.iovec_count] = Iovec { base, len };
        self.iovec_count += 1;
    }

    fn is_main_file(&self) -> bool {
        self.extra.is_none()
    }

    fn call(&self) -> Call {
        let target = self.target.as_ref().expect("an operation has a file");
        let (fd, registered) = match &self.extra {
            Some(extra) => (extra.file.as_raw_fd(), None),
            None => (target.medium.fd().as_raw_fd(), target.registered),
        };
        let iovecs = &self.iovecs[self.next_iovec..self.iovec_count];
        Call {
            action: self.action,
            fd,
            registered,
            offset: self.offset + self.done,
            len: self.len - self.done,
            iovecs: iovecs.as_ptr(),
            iovec_count: u32::try_from(iovecs.len()).expect("at most SEGMENTS_MAX"),
        }
    }

    /// Takes a call's result; `None` where the operation goes on with another call.
    fn advance(&mut self, result: i32) -> Option<i32> {
        if result == errno::INTERRUPTED || result == errno::AGAIN {
            return None;
        }
        let Ok(bytes) = u64::try_from(result) else {
            return Some(result);
        };
        if !matches!(self.action, Action::Read | Action::Write { .. }) {
            return Some(0);
        }
        if bytes == 0 {
            // The file ends here, though it did not when it was opened.
            return Some(errno::IO);
        }
        self.done += bytes;
        if self.done >= self.len {
            return Some(0);
        }
        let mut left = bytes;
        while left > 0 {
            let iovec = &mut self.iovecs[self.next_iovec];
            let step = left.min(iovec.len as u64);
            let in_memory = usize::try_from(step).expect("at most the piece's length");
            iovec.base = iovec.base.wrapping_add(in_memory);
            iovec.len -= in_memory;
            left -= step;
            if iovec.len == 0 {
                self.next_iovec += 1;
            }
        }
        None
    }
}

enum Backend {
    Uring(Box<Uring>),
    Threads(Box<Helper>),
}

enum Started {
    /// Handed to the kernel, or ended.
    Yes,
    /// It waits for others.
    NotYet,
    /// The ring is full.
    Full,
}

/// One core's engine for file disks. See the module.
pub struct FileEngine {
    table: OpTable<Option<Box<Operation>>, i32>,
    /// Operations that nobody uses, as many as the table has places.
    #[allow(
        clippy::vec_box,
        reason = "the kernel is told where an operation's memory list lies"
    )]
    spare: RefCell<Vec<Box<Operation>>>,
    /// Operations that the kernel does not know yet.
    waiting: RefCell<VecDeque<Token>>,
    /// The flush that this turn hands in, for others of the turn to share.
    leader: Cell<Option<Token>>,
    /// Flushes and the one that answers them.
    followers: RefCell<Vec<(Token, Token)>>,
    backend: RefCell<Backend>,
    /// Tasks that try something again at each turn. Control path.
    next_turn: RefCell<Vec<Waker>>,
    counters: Cell<FileEngineCounters>,
    /// Keeps the registered memory mapped.
    pool: BufferPool,
}

impl FileEngine {
    /// Makes the core's engine and lets `reactor` poll it. `pool` is where the core's buffers come
    /// from. Call it on the thread that turns the reactor.
    ///
    /// # Errors
    /// Where the kind that was asked for is not to be had.
    pub fn start(
        reactor: &Reactor,
        pool: &BufferPool,
        options: FileEngineOptions,
    ) -> Result<Rc<Self>, FileEngineError> {
        let threads = || {
            let name = format!("corebay-io-{}", reactor.core().0);
            Helper::new(name, options.depth, options.spawn)
                .map(|helper| Backend::Threads(Box::new(helper)))
                .map_err(FileEngineError::Thread)
        };
        let ring = || {
            let ring = Uring::new(RING_ENTRIES, options.depth);
            ring.map(|ring| Backend::Uring(Box::new(ring)))
        };
        let mut backend = match options.kind {
            EngineKind::IoUring => ring().map_err(FileEngineError::IoUring)?,
            EngineKind::Threads => threads()?,
            EngineKind::Auto => match ring() {
                Ok(ring) => ring,
                Err(error) => {
                    tracing::warn!(%error, "io_uring is refused: file disks use a helper thread");
                    threads()?
                }
            },
        };
        if let Backend::Uring(ring) = &mut backend
            && options.register_memory
        {
            let (base, len) = pool.memory();
            // SAFETY: the engine keeps the pool, and so its memory, as long as the ring.
            let registered = unsafe { ring.register_memory(base, len) };
            if !registered {
                tracing::warn!(
                    mebibytes = len >> 20,
                    "buffers are not registered with io_uring; raise the limit of locked memory"
                );
            }
        }
        let engine = Rc::new(Self {
            table: OpTable::new(options.depth, options.waiters),
            spare: RefCell::new((0..options.depth).map(|_| Operation::unused()).collect()),
            waiting: RefCell::new(VecDeque::with_capacity(options.depth)),
            leader: Cell::new(None),
            followers: RefCell::new(Vec::with_capacity(options.depth)),
            backend: RefCell::new(backend),
            next_turn: RefCell::default(),
            counters: Cell::default(),
            pool: pool.clone(),
        });
        reactor.add_source(engine.clone());
        Ok(engine)
    }

    /// How it makes its system calls: never [`EngineKind::Auto`].
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        match *self.backend.borrow() {
            Backend::Uring(_) => EngineKind::IoUring,
            Backend::Threads(_) => EngineKind::Threads,
        }
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> FileEngineCounters {
        self.counters.get()
    }

    /// The operations that have begun and whose result nobody has taken yet.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.table.in_use()
    }

    /// Makes a medium known to this engine.
    pub(super) fn target(self: &Rc<Self>, medium: &Arc<FileMedium>) -> Rc<Target> {
        let registered = match &mut *self.backend.borrow_mut() {
            Backend::Uring(ring) => ring.register_file(medium.fd().as_raw_fd()),
            Backend::Threads(_) => None,
        };
        Rc::new(Target {
            medium: medium.clone(),
            engine: Rc::downgrade(self),
            registered,
        })
    }

    /// Reads or writes `len` bytes at byte `offset`. The result is 0 or an error number, as of the
    /// other operations.
    pub(super) async fn transfer(
        &self,
        target: &Rc<Target>,
        action: Action,
        offset: u64,
        len: u64,
        buffers: &[Buffer],
    ) -> i32 {
        let direction = match action {
            Action::Read => Direction::FromDevice,
            _ => Direction::ToDevice,
        };
        self.run(|operation| {
            operation.begin(target, action, offset, len);
            operation.claim = target.medium.claim(action, offset, len);
            for buffer in buffers {
                let pin = buffer.pin(direction);
                operation.add_memory(pin.address(), pin.len());
                operation.pins.push(pin);
            }
        })
        .await
    }

    /// Writes `len` zeroes at byte `offset`, at most what
    /// [`zero_memory`](super::zero_memory) can give at a time.
    pub(super) async fn write_zeroes(&self, target: &Rc<Target>, offset: u64, len: u64) -> i32 {
        self.run(|operation| {
            let action = Action::Write { durable: false };
            operation.begin(target, action, offset, len);
            operation.claim = target.medium.claim(action, offset, len);
            let mut left = usize::try_from(len).expect("at most a transfer");
            while left > 0 {
                let (base, most) = super::zero_memory();
                let piece = left.min(most);
                // Not joined: every piece is the same memory.
                operation.iovecs[operation.iovec_count] = Iovec { base, len: piece };
                operation.iovec_count += 1;
                left -= piece;
            }
        })
        .await
    }

    /// Flushes, or works on a range of bytes without moving any.
    pub(super) async fn command(
        &self,
        target: &Rc<Target>,
        action: Action,
        offset: u64,
        len: u64,
    ) -> i32 {
        self.run(|operation| operation.begin(target, action, offset, len))
            .await
    }

    /// Writes bytes to, or flushes, another file of the medium's.
    pub(super) async fn extra(
        &self,
        target: &Rc<Target>,
        action: Action,
        offset: u64,
        extra: Extra,
    ) -> i32 {
        self.run(|operation| {
            operation.begin(target, action, offset, extra.bytes.len() as u64);
            if !extra.bytes.is_empty() {
                operation.add_memory(extra.bytes.as_ptr().cast_mut(), extra.bytes.len());
            }
            operation.extra = Some(extra);
        })
        .await
    }

    /// Ends at the next turn.
    pub(super) async fn next_turn(&self) {
        let mut waited = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            self.next_turn.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    async fn run(&self, fill: impl FnOnce(&mut Operation)) -> i32 {
        let submitted = self.table.begin(None).await;
        let token = submitted.token();
        let spare = self.spare.borrow_mut().pop();
        let mut operation = spare.expect("as many operations as the table has places");
        fill(&mut operation);
        self.table
            .with_kept(token, |kept| *kept = Some(operation))
            .expect("the operation has just begun");
        self.waiting.borrow_mut().push_back(token);
        submitted.outcome().await
    }

    fn with<T>(&self, token: Token, look: impl FnOnce(&mut Operation) -> T) -> Option<T> {
        self.table
            .with_kept(token, |kept| kept.as_deref_mut().map(look))
            .flatten()
    }

    fn count(&self, change: impl FnOnce(&mut FileEngineCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Hands what waits to the kernel, as far as it may go and there is room.
    fn start_waiting(&self) -> usize {
        let mut started = 0;
        let waiting = self.waiting.borrow().len();
        for _ in 0..waiting {
            let Some(token) = self.waiting.borrow_mut().pop_front() else {
                break;
            };
            match self.start_one(token) {
                Started::Yes => started += 1,
                Started::NotYet => self.waiting.borrow_mut().push_back(token),
                Started::Full => {
                    self.waiting.borrow_mut().push_front(token);
                    break;
                }
            }
        }
        started
    }

    fn start_one(&self, token: Token) -> Started {
        if self.is_flush(token) {
            return self.start_flush(token);
        }
        let call = self.with(token, |operation| {
            let target = operation.target.as_ref().expect("an operation has a file");
            let taken = target.medium.take_claim(&mut operation.claim);
            taken.then(|| operation.call())
        });
        match call {
            Some(Some(call)) => self.push(token, &call),
            Some(None) => Started::NotYet,
            None => Started::Yes,
        }
    }

    fn is_flush(&self, token: Token) -> bool {
        self.with(token, |operation| {
            operation.action == Action::Sync && operation.is_main_file()
        }) == Some(true)
    }

    fn start_flush(&self, token: Token) -> Started {
        let Some(medium) = self.medium_of(token) else {
            return Started::Yes;
        };
        if let Some(leader) = self.leader.get()
            && self
                .medium_of(leader)
                .is_some_and(|of| Arc::ptr_eq(&of, &medium))
        {
            self.followers.borrow_mut().push((leader, token));
            self.count(|counters| counters.flushes_shared += 1);
            return Started::Yes;
        }
        if !medium.flushes.begin() {
            return Started::NotYet;
        }
        if medium.flushes.has_failed() {
            medium.flushes.end(errno::IO);
            self.end(token, errno::IO);
            return Started::Yes;
        }
        let call = self.with(token, |operation| operation.call());
        let started = call.map_or(Started::Yes, |call| self.push(token, &call));
        match started {
            Started::Yes => self.leader.set(Some(token)),
            _ => medium.flushes.end(0),
        }
        started
    }

    fn medium_of(&self, token: Token) -> Option<Arc<FileMedium>> {
        self.with(token, |operation| {
            operation
                .target
                .as_ref()
                .map(|target| target.medium.clone())
        })
        .flatten()
    }

    fn push(&self, token: Token, call: &Call) -> Started {
        // SAFETY: the operation stays in the table, and so keeps the call's file and memory, until
        // `end` has taken its result.
        let pushed = unsafe {
            match &mut *self.backend.borrow_mut() {
                Backend::Uring(ring) => ring.push(token.to_bits(), call),
                Backend::Threads(helper) => helper.push(token.to_bits(), call),
            }
        };
        if pushed {
            self.count(|counters| counters.calls += 1);
            Started::Yes
        } else {
            Started::Full
        }
    }

    fn enter(&self) {
        let entered = match &mut *self.backend.borrow_mut() {
            Backend::Uring(ring) => {
                let wanted = ring.wants_enter();
                if wanted {
                    ring.enter();
                }
                wanted
            }
            Backend::Threads(helper) => helper.kick(),
        };
        if entered {
            self.count(|counters| counters.enters += 1);
        }
    }

    fn next_result(&self) -> Option<(u64, i32)> {
        match &mut *self.backend.borrow_mut() {
            Backend::Uring(ring) => ring.next(),
            Backend::Threads(helper) => helper.next(),
        }
    }

    /// Takes the results that are there.
    fn reap(&self) -> usize {
        let mut results = 0;
        while let Some((bits, result)) = self.next_result() {
            results += 1;
            let token = Token::from_bits(bits);
            match self.with(token, |operation| operation.advance(result)) {
                Some(Some(result)) => self.end_of_call(token, result),
                Some(None) => {
                    self.count(|counters| counters.continued += 1);
                    self.continue_(token);
                }
                None => debug_assert!(false, "a result for no operation"),
            }
        }
        results
    }

    /// The operation goes on with another call. A flush stays its medium's only one.
    fn continue_(&self, token: Token) {
        let call = self.with(token, |operation| operation.call());
        let Some(call) = call else { return };
        if self.is_flush(token) {
            if !matches!(self.push(token, &call), Started::Yes) {
                self.end_of_call(token, errno::IO);
            }
            return;
        }
        self.waiting.borrow_mut().push_back(token);
    }

    fn end_of_call(&self, token: Token, result: i32) {
        if self.is_flush(token) {
            if let Some(medium) = self.medium_of(token) {
                medium.flushes.end(result);
            }
            // One at a time, as whoever is woken by it may flush again.
            loop {
                let mut followers = self.followers.borrow_mut();
                let Some(found) = followers.iter().position(|(leader, _)| *leader == token) else {
                    break;
                };
                let (_, follower) = followers.swap_remove(found);
                drop(followers);
                self.end(follower, result);
            }
        }
        self.end(token, result);
    }

    /// The operation has ended: gives its result to whoever waits, and back what it kept.
    fn end(&self, token: Token, result: i32) {
        let Some(Some(mut operation)) = self.table.complete(token, result) else {
            return;
        };
        if let Some(target) = operation.target.take() {
            target.medium.release_claim(&mut operation.claim);
        }
        operation.pins.clear();
        if let Some(extra) = operation.extra.take() {
            (extra.at_end)(result);
        }
        self.spare.borrow_mut().push(operation);
    }
}

impl PollSource for FileEngine {
    fn poll(&self, _now: Time) -> usize {
        let waiting = std::mem::take(&mut *self.next_turn.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
        self.reap()
    }

    fn flush(&self, _now: Time) -> usize {
        self.leader.set(None);
        let started = self.start_waiting();
        self.leader.set(None);
        self.enter();
        started + self.reap()
    }

    fn prepare_sleep(&self) -> bool {
        // What waits for another core's operation is tried again at each turn.
        self.waiting.borrow().is_empty()
            && self.next_turn.borrow().is_empty()
            && match &mut *self.backend.borrow_mut() {
                Backend::Uring(ring) => ring.prepare_sleep(),
                Backend::Threads(helper) => helper.prepare_sleep(),
            }
    }

    fn awake(&self) {
        match &mut *self.backend.borrow_mut() {
            Backend::Uring(ring) => ring.awake(),
            Backend::Threads(helper) => helper.awake(),
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the backend is never replaced, and its descriptor lives as long as the engine.
        let lasting = |fd: BorrowedFd<'_>| unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        Some(match &*self.backend.borrow() {
            Backend::Uring(ring) => lasting(ring.fd()),
            Backend::Threads(helper) => lasting(helper.fd()),
        })
    }
}

impl Drop for FileEngine {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for token in waiting {
            self.end(token, errno::CANCELED);
        }
        for _ in 0..DRAIN_STEPS {
            let left = match &mut *self.backend.borrow_mut() {
                Backend::Uring(ring) => {
                    if ring.in_kernel() > 0 && !ring.has_results() {
                        ring.wait(DRAIN_STEP);
                    }
                    ring.in_kernel()
                }
                Backend::Threads(helper) => {
                    helper.finish();
                    helper.in_kernel()
                }
            };
            if left == 0 {
                return;
            }
            while let Some((bits, result)) = self.next_result() {
                self.end_of_call(Token::from_bits(bits), result);
            }
        }
        tracing::error!("the kernel still works on file disks: their buffers are given up");
        std::mem::forget(std::mem::replace(&mut self.table, OpTable::new(0, 0)));
        std::mem::forget(self.pool.clone());
    }
}
