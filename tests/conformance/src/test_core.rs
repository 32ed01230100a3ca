//! One core of a test: a reactor that is turned by hand, buffers, and a clock.

use std::{cell::RefCell, future::Future, pin::Pin, rc::Rc, time::Duration};

use corebay_core::{
    arena::Arena,
    buffer::{Buffer, BufferPool},
    reactor::{MachineClock, Reactor},
    units::{CoreId, Time},
};

/// The memory of a core's buffers, in bytes.
const POOL_BYTES: usize = 8 << 20;

/// The tasks that a core can run.
const TASKS: usize = 512;

/// How long a check may wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a fresh buffer is full of, so that reading nothing into it is told from reading zeroes.
pub(crate) const FILLING: u8 = 0xa5;

/// One core of a test. Every thread makes its own.
pub struct TestCore {
    /// The core's reactor.
    pub reactor: Reactor,
    /// The core's buffers.
    pub pool: BufferPool,
    clock: MachineClock,
}

impl TestCore {
    /// A core by its number and the clock that the test's cores share.
    #[must_use]
    pub fn new(number: usize, clock: MachineClock) -> Self {
        let mut arena = Arena::lazy(POOL_BYTES).expect("memory for the buffers");
        let region = arena.take(POOL_BYTES).expect("the arena is that large");
        Self {
            reactor: Reactor::new(CoreId(number), TASKS, clock.now()),
            pool: BufferPool::new(region, TASKS),
            clock,
        }
    }

    /// The only core of a test.
    #[must_use]
    pub fn single() -> Self {
        Self::new(0, MachineClock::new())
    }

    /// The time now: that of the clock, not of the turn.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> MachineClock {
        self.clock
    }

    /// Makes one turn.
    pub fn turn(&self) -> usize {
        self.reactor.poll_once(self.clock.now())
    }

    /// Turns until `done`.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn turn_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let began = self.clock.now();
        while !done() {
            if self.turn() == 0 {
                std::thread::yield_now();
            }
            assert!(
                self.clock.now().since(began) < PATIENCE,
                "{what} did not happen within {PATIENCE:?}"
            );
        }
    }

    /// Starts a task.
    ///
    /// # Panics
    /// Where no task slot is free.
    pub fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Outcome<T> {
        let outcome = Outcome(Rc::new(RefCell::new(None)));
        let into = outcome.0.clone();
        // Boxed, so that a check may be larger than a task's slot.
        let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let value = task.await;
            *into.borrow_mut() = Some(value);
        });
        assert!(self.reactor.spawn(task).is_ok(), "no task slot is free");
        outcome
    }

    /// Runs a task to its end.
    pub fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        let outcome = self.spawn(task);
        self.turn_until("the end of a task", || outcome.is_there());
        outcome.take()
    }

    /// A buffer of `len` bytes with this content.
    ///
    /// # Panics
    /// Where the pool is empty.
    #[must_use]
    pub fn filled(&self, content: &[u8]) -> Buffer {
        let mut buffer = self.buffer(content.len());
        buffer.bytes_mut().copy_from_slice(content);
        buffer
    }

    /// A buffer of `len` bytes that are not zero.
    ///
    /// # Panics
    /// Where the pool is empty.
    #[must_use]
    pub fn buffer(&self, len: usize) -> Buffer {
        let mut buffer = self.pool.try_allocate(len).expect("a free buffer");
        buffer.bytes_mut().fill(FILLING);
        buffer
    }
}

impl Drop for TestCore {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}

/// A task's value, once it has ended.
pub struct Outcome<T>(Rc<RefCell<Option<T>>>);

impl<T> Outcome<T> {
    /// True once the task has ended.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// The value.
    ///
    /// # Panics
    /// Where the task has not ended.
    #[must_use]
    pub fn take(&self) -> T {
        self.0.borrow_mut().take().expect("the task has ended")
    }
}
