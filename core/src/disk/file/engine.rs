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
    os::fd::{AsRawFd, BorrowedFd},
    rc::{Rc, Weak},
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use super::{
    call::{Action, Call, errno},
    medium::FileMedium,
    operation::{Extra, Operation},
    options::{EngineKind, FileEngineCounters, FileEngineError, FileEngineOptions},
    threads::{Helper, SpawnThread},
    uring::Uring,
};
use crate::{
    buffer::{Buffer, BufferPool},
    reactor::{PollSource, Reactor},
    sync::{OpTable, Token},
    units::Time,
};

/// The entries of a core's submission ring: the most calls handed in by one turn.
const RING_ENTRIES: u32 = 256;

/// How long the end of an engine waits for the kernel, in steps of [`DRAIN_STEP`].
const DRAIN_STEPS: usize = 100;
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// A file as one core's engine knows it.
pub(super) struct Target {
    pub(super) medium: Arc<FileMedium>,
    engine: Weak<FileEngine>,
    /// Its place among the ring's registered files.
    pub(super) registered: Option<u32>,
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
    spawn: SpawnThread,
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
            spawn: options.spawn,
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
        self.run(|operation| {
            operation.begin(target, action, offset, len);
            operation.claim = target.medium.claim(action, offset, len);
            buffers
                .iter()
                .for_each(|buffer| operation.add_buffer(buffer));
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
            operation.add_zeroes(len);
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
                let (base, len) = (extra.bytes.as_ptr().cast_mut(), extra.bytes.len());
                operation.add_memory(base, len);
            }
            operation.extra = Some(extra);
        })
        .await
    }

    /// Starts a thread for what blocks, as the environment starts threads. Control path.
    pub(super) fn spawn_thread(
        &self,
        name: String,
        body: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<()> {
        // Whoever waits for it learns of its end otherwise.
        (self.spawn)(name, body).map(drop)
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
        let call = self.with(token, |operation| {
            if operation.is_flush() {
                return Err(Started::NotYet);
            }
            let target = operation.target.as_ref().expect("an operation has a file");
            let taken = target.medium.take_claim(&mut operation.claim);
            Ok(taken.then(|| operation.call()))
        });
        match call {
            Some(Ok(Some(call))) => self.push(token, &call),
            Some(Ok(None)) => Started::NotYet,
            Some(Err(_)) => self.start_flush(token),
            None => Started::Yes,
        }
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
            let advanced = self.with(token, |operation| {
                (operation.advance(result), operation.is_flush())
            });
            match advanced {
                Some((Some(result), false)) => self.end(token, result),
                Some((Some(result), true)) => self.end_flush(token, result),
                Some((None, flush)) => {
                    self.count(|counters| counters.continued += 1);
                    self.carry_on(token, flush);
                }
                None => debug_assert!(false, "a result for no operation"),
            }
        }
        results
    }

    /// The operation goes on with another call. A flush stays its medium's only one.
    fn carry_on(&self, token: Token, flush: bool) {
        if !flush {
            self.waiting.borrow_mut().push_back(token);
            return;
        }
        let call = self.with(token, |operation| operation.call());
        let pushed = call.map(|call| self.push(token, &call));
        if !matches!(pushed, Some(Started::Yes)) {
            self.end_flush(token, errno::IO);
        }
    }

    /// A flush has ended, and with it those that share it.
    fn end_flush(&self, token: Token, result: i32) {
        if let Some(medium) = self.medium_of(token) {
            medium.flushes.end(result);
        }
        loop {
            let mut followers = self.followers.borrow_mut();
            let Some(found) = followers.iter().position(|(leader, _)| *leader == token) else {
                break;
            };
            let (_, follower) = followers.swap_remove(found);
            drop(followers);
            self.end(follower, result);
        }
        self.end(token, result);
    }

    /// The operation has ended: gives its result to whoever waits, and back what it kept.
    fn end(&self, token: Token, result: i32) {
        let Some(Some(mut operation)) = self.table.complete(token, result) else {
            return;
        };
        operation.end(result);
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
                let token = Token::from_bits(bits);
                match self.with(token, |operation| operation.is_flush()) {
                    Some(true) => self.end_flush(token, result),
                    _ => self.end(token, result),
                }
            }
        }
        tracing::error!("the kernel still works on file disks: their buffers are given up");
        std::mem::forget(std::mem::replace(&mut self.table, OpTable::new(0, 0)));
        std::mem::forget(self.pool.clone());
    }
}
