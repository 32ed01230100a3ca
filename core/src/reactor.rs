//! One core's loop: what runs on it, and in which order.
//!
//! A turn is: fire due timers, poll the sources (rings from other cores, device completions,
//! sockets), run the tasks that became ready, flush the sources (doorbells, sends). [`Reactor::poll_once`]
//! makes one turn: production loops it ([`run`]), a simulator decides which core turns next.
//!
//! Invariants:
//! - A reactor reads no clock: each turn is told the time.
//! - While there is work it never sleeps; it sleeps only after every source has agreed that it has
//!   none and has armed its wake-up.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    os::fd::BorrowedFd,
    rc::Rc,
    time::Duration,
};

use crate::{
    executor::{Executor, Full},
    timer::{Timer, Timers},
    units::{CoreId, Time},
};

/// The timers that a core has room for before their table grows.
const TIMERS: usize = 4096;

/// Something that a reactor polls once per turn.
pub trait PollSource {
    /// Takes what has arrived; returns how many events that were (0: nothing to do).
    fn poll(&self, now: Time) -> usize;

    /// Hands on what the turn has gathered: doorbells, sends. Returns how much that was.
    fn flush(&self, _now: Time) -> usize {
        0
    }

    /// Arms the wake-up before the reactor sleeps. False where there is work after all.
    fn prepare_sleep(&self) -> bool {
        true
    }

    /// The reactor is awake again: disarms what [`prepare_sleep`](Self::prepare_sleep) armed.
    fn awake(&self) {}

    /// It has nothing to do any more, for good: the reactor lets it go.
    fn is_over(&self) -> bool {
        false
    }

    /// What becomes readable when there is work, if the source does not merely wait for others.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Counts of a reactor since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorCounters {
    /// Turns made.
    pub turns: u64,
    /// Turns in which there was something to do.
    pub busy_turns: u64,
    /// Times it slept.
    pub sleeps: u64,
}

struct Inner {
    core: CoreId,
    now: Cell<Time>,
    executor: Executor,
    timers: Rc<Timers>,
    sources: RefCell<Vec<Rc<dyn PollSource>>>,
    /// A source was added since the last turn began.
    added: Cell<bool>,
    stopping: Cell<bool>,
    /// It is torn down.
    over: Cell<bool>,
    /// When a source last had something: what comes from outside, and comes again.
    last_event: Cell<Time>,
    counters: Cell<ReactorCounters>,
}

/// A handle to one core's reactor; clones name the same one.
#[derive(Clone)]
pub struct Reactor {
    inner: Rc<Inner>,
}

impl Reactor {
    /// A reactor for `core` with room for `tasks` tasks, whose time starts at `now`.
    #[must_use]
    pub fn new(core: CoreId, tasks: usize, now: Time) -> Self {
        Self {
            inner: Rc::new(Inner {
                core,
                now: Cell::new(now),
                executor: Executor::new(tasks),
                timers: Timers::new(TIMERS),
                sources: RefCell::default(),
                added: Cell::new(false),
                stopping: Cell::new(false),
                over: Cell::new(false),
                last_event: Cell::new(now),
                counters: Cell::default(),
            }),
        }
    }

    /// Which core this is.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.inner.core
    }

    /// The time of the current turn.
    #[must_use]
    pub fn now(&self) -> Time {
        self.inner.now.get()
    }

    /// The tasks' executor.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.inner.executor
    }

    /// Starts a task.
    ///
    /// # Errors
    /// Gives the future back where every task slot is taken.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, future: F) -> Result<(), Full<F>> {
        self.inner.executor.spawn(future)
    }

    /// Makes a task and polls it at once. False, without making it, where every task slot is taken.
    #[must_use]
    pub fn start<F: Future<Output = ()> + 'static>(&self, make: impl FnOnce() -> F) -> bool {
        self.inner.executor.start(make)
    }

    /// Ends `after` the current turn's time.
    #[must_use]
    pub fn sleep(&self, after: Duration) -> Timer {
        self.inner.timers.at(self.now().plus(after))
    }

    /// Ends at `deadline`.
    #[must_use]
    pub fn sleep_until(&self, deadline: Time) -> Timer {
        self.inner.timers.at(deadline)
    }

    /// Adds a source, to be polled from the next turn on. With it those go that are over.
    pub fn add_source(&self, source: Rc<dyn PollSource>) {
        self.inner.sources.borrow_mut().push(source);
        self.inner.added.set(true);
    }

    /// The sources that it has.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.inner.sources.borrow().len()
    }

    /// Makes one turn at time `now`; returns how much there was to do.
    pub fn poll_once(&self, now: Time) -> usize {
        let inner = &*self.inner;
        inner.now.set(now);
        let mut work = inner.timers.fire(now);
        if inner.added.take() {
            let mut sources = inner.sources.borrow_mut();
            sources.retain(|source| !source.is_over());
        }
        // During a turn sources are only added, so each keeps its index.
        let sources = inner.sources.borrow().len();
        for index in 0..sources {
            let source = inner.sources.borrow()[index].clone();
            let events = source.poll(now);
            if events > 0 {
                inner.last_event.set(now);
            }
            work += events;
        }
        work += inner.executor.run_ready();
        for index in 0..sources {
            let source = inner.sources.borrow()[index].clone();
            work += source.flush(now);
        }
        let mut counters = inner.counters.get();
        counters.turns += 1;
        counters.busy_turns += u64::from(work > 0);
        inner.counters.set(counters);
        work
    }

    /// When the next timer is due, if one is armed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.inner.timers.next_deadline()
    }

    /// Asks [`run`] to return after the current turn.
    pub fn stop(&self) {
        self.inner.stopping.set(true);
    }

    /// True once [`stop`](Self::stop) was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.inner.stopping.get()
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> ReactorCounters {
        self.inner.counters.get()
    }

    /// Whether it is being torn down, or was: nobody may poll what is added.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.inner.over.get()
    }

    /// Drops all tasks and sources, so that what they refer to (this reactor too) is freed.
    pub fn tear_down(&self) {
        self.inner.over.set(true);
        self.inner.executor.drop_tasks();
        let sources = std::mem::take(&mut *self.inner.sources.borrow_mut());
        drop(sources);
    }

    fn may_sleep(&self) -> bool {
        self.inner.executor.is_idle()
            && self
                .inner
                .sources
                .borrow()
                .iter()
                .all(|source| source.prepare_sleep())
    }

    fn awake(&self) {
        for source in self.inner.sources.borrow().iter() {
            source.awake();
        }
    }
}

/// The monotonic clock of the machine. The binary and tests make one and hand it to [`run`]; all
/// reactors of a process share it.
#[derive(Clone, Copy, Debug)]
pub struct MachineClock {
    start: std::time::Instant,
}

impl MachineClock {
    /// A clock that starts now.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the environment's clock")]
    pub fn new() -> Self {
        Self {
            start: std::time::Instant::now(),
        }
    }

    /// The time since the clock's start.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::default().plus(self.start.elapsed())
    }
}

impl Default for MachineClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Turns `reactor` until it is stopped. Polls while there is work, and until `idle_sleep` after a source
/// last had some; then sleeps until a source or a timer wakes it. A timer by itself does not keep it
/// awake: nothing from outside is to be expected after it. `None` never sleeps.
pub fn run(reactor: &Reactor, clock: MachineClock, idle_sleep: Option<Duration>) {
    while !reactor.is_stopping() {
        let now = clock.now();
        if reactor.poll_once(now) > 0 {
            continue;
        }
        match idle_sleep {
            Some(after) if now.since(reactor.inner.last_event.get()) >= after => {
                if reactor.may_sleep() {
                    sleep(reactor, clock.now());
                }
                reactor.awake();
            }
            _ => std::hint::spin_loop(),
        }
    }
}

/// Sleeps until a source is ready or the next timer is due.
fn sleep(reactor: &Reactor, now: Time) {
    let timeout = reactor.next_deadline().map(|deadline| {
        let left = deadline.since(now);
        // Rounds up, so as not to wake just before the deadline and find nothing to do.
        rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    });
    let sources = reactor.inner.sources.borrow();
    let mut fds: Vec<_> = sources
        .iter()
        .filter_map(|source| source.wake_fd())
        .map(|fd| rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN))
        .collect();
    // An interrupted or failed wait is a wake-up like any other: the next turn looks at everything.
    let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    drop(fds);
    drop(sources);
    let mut counters = reactor.inner.counters.get();
    counters.sleeps += 1;
    reactor.inner.counters.set(counters);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_fires_timers_and_runs_tasks() {
        let reactor = Reactor::new(CoreId(0), 4, Time(0));
        let done = Rc::new(Cell::new(false));
        let (r, d) = (reactor.clone(), done.clone());
        let task = async move {
            r.sleep(Duration::from_nanos(100)).await;
            d.set(true);
        };
        reactor.spawn(task).ok().unwrap();
        assert_eq!(reactor.poll_once(Time(0)), 1);
        assert_eq!(reactor.next_deadline(), Some(Time(100)));
        assert_eq!(reactor.poll_once(Time(99)), 0);
        assert!(reactor.poll_once(Time(100)) > 0);
        assert!(done.get());
    }

    #[test]
    fn a_source_that_is_over_is_let_go() {
        struct Source(Cell<bool>);
        impl PollSource for Source {
            fn poll(&self, _now: Time) -> usize {
                1
            }

            fn is_over(&self) -> bool {
                self.0.get()
            }
        }
        let reactor = Reactor::new(CoreId(0), 4, Time(0));
        let source = || Rc::new(Source(Cell::new(false)));
        let (first, second) = (source(), source());
        reactor.add_source(first.clone());
        assert_eq!(reactor.poll_once(Time(0)), 1);
        first.0.set(true);
        reactor.add_source(second);
        assert_eq!(reactor.poll_once(Time(1)), 1);
        assert_eq!(Rc::strong_count(&first), 1);
    }

    #[test]
    fn it_sleeps_until_a_timer_is_due() {
        let reactor = Reactor::new(CoreId(0), 4, Time(0));
        let clock = MachineClock::new();
        let r = reactor.clone();
        let task = async move {
            r.sleep(Duration::from_millis(20)).await;
            r.stop();
        };
        reactor.spawn(task).ok().unwrap();
        run(&reactor, clock, Some(Duration::from_millis(1)));
        assert!(clock.now() >= Time(20_000_000));
        assert!(reactor.counters().sleeps >= 1);
    }

    #[test]
    fn timers_do_not_keep_it_awake() {
        let reactor = Reactor::new(CoreId(0), 4, Time(0));
        let clock = MachineClock::new();
        let r = reactor.clone();
        let task = async move {
            for _ in 0..20 {
                r.sleep(Duration::from_millis(2)).await;
            }
            r.stop();
        };
        reactor.spawn(task).ok().unwrap();
        run(&reactor, clock, Some(Duration::from_millis(10)));
        let counters = reactor.counters();
        // It polls for the first 10 ms, sleeps between the timers after that, and never spins.
        assert!(counters.sleeps >= 5, "{counters:?}");
    }
}
