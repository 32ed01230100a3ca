//! Commands that wait until the limits of their namespace let them begin.
//!
//! Invariants:
//! - Who waits here holds no task slot, no payload memory, no scratch memory and no gate: nothing that
//!   another host's command may need. Of in-capsule data a host has no
//!   more than its share ([`memory`](crate::memory)).
//! - The commands of one namespace and direction begin in the order in which they came to this core.
//!   Only the first of them is counted against the limits: so cores take turns, and a host that takes its
//!   commands back leaves no debt behind but the first one's.
//! - A line that moves late loses nothing: each is counted as if it came when the one before it could
//!   begin.
//! - Who waits longer than [`LOOK_AGAIN`] finds out by then that the limits have changed, or that the
//!   namespace is attached no more: then it begins at once.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use corebay_core::{
    disk::{Admission, Cost, Direction, Disk},
    sync::FifoWait,
    units::Time,
};

use crate::{
    core::Core,
    environment::Environment,
    io::Ns,
    queue::{EntryId, QueueKey},
};

/// How often it is looked whether limits are still the same.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A command that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    queue: QueueKey,
    entry: EntryId,
    cost: Cost,
}

/// The commands of one namespace, on one core, that wait for one direction.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Waiting>,
    /// When the first may begin, once it was counted.
    first: Option<Admission>,
    /// When the one before it could.
    since: Time,
}

impl Lane {
    /// The first one, where it may begin by now.
    fn take<D: Disk>(&mut self, disk: &D, now: Time, at_once: bool) -> Option<Waiting> {
        let first = self.waiting.front()?;
        if !at_once && disk.is_limited() {
            let generation = disk.limits_generation();
            let counted = self.first.filter(|first| first.generation == generation);
            if counted.is_none() && self.first.is_some() {
                self.since = now;
            }
            let admission = counted.unwrap_or_else(|| disk.admit(first.cost, self.since));
            self.first = Some(admission);
            if admission.from > now {
                return None;
            }
            self.since = self.since.max(admission.from);
        }
        self.first = None;
        self.waiting.pop_front()
    }

    fn leave(&mut self, who: impl Fn(&Waiting) -> bool) {
        if self.waiting.front().is_some_and(&who) {
            self.first = None;
        }
        self.waiting.retain(|waiting| !who(waiting));
    }
}

/// The commands of one namespace, on one core, that wait for its limits.
#[derive(Debug, Default)]
pub struct Lines {
    lanes: [RefCell<Lane>; 2],
    is_listed: Cell<bool>,
    is_detached: Cell<bool>,
}

impl Lines {
    fn lane(&self, direction: Direction) -> &RefCell<Lane> {
        &self.lanes[match direction {
            Direction::Read => 0,
            Direction::Write => 1,
        }]
    }

    /// The namespace is attached no more.
    pub fn detached(&self) {
        self.is_detached.set(true);
    }
}

/// The namespaces of one core with commands that wait for limits.
pub struct Pacer<E: Environment> {
    listed: RefCell<Vec<Ns<E>>>,
    /// Somebody has come who may begin before the next look.
    has_news: Cell<bool>,
    next_look: Cell<Time>,
    news: FifoWait,
}

impl<E: Environment> Default for Pacer<E> {
    fn default() -> Self {
        Self {
            listed: RefCell::default(),
            has_news: Cell::new(false),
            next_look: Cell::new(Time(u64::MAX)),
            news: FifoWait::new(1),
        }
    }
}

impl<E: Environment> Pacer<E> {
    /// Counts a command against the limits of its namespace; true where it may begin at once. Else it
    /// waits, and its queue is told when it may
    /// ([`QueueControl::admitted`](crate::queue::QueueControl::admitted)).
    pub fn enter(
        &self,
        namespace: &Ns<E>,
        cost: Cost,
        (queue, entry): (QueueKey, EntryId),
        now: Time,
    ) -> bool {
        let lines = &namespace.lines;
        let mut lane = lines.lane(cost.direction).borrow_mut();
        let is_first = lane.waiting.is_empty();
        if is_first {
            lane.since = now;
        }
        lane.waiting.push_back(Waiting { queue, entry, cost });
        if !is_first {
            return false;
        }
        if lane.take(&namespace.disk, now, false).is_some() {
            return true;
        }
        let from = lane.first.map_or(now, |first| first.from);
        drop(lane);
        if !lines.is_listed.replace(true) {
            self.listed.borrow_mut().push(namespace.clone());
        }
        if from.min(now.plus(LOOK_AGAIN)) < self.next_look.get() {
            self.has_news.set(true);
            self.news.notify();
        }
        false
    }

    /// One command of a queue, or all of them, wait no more.
    pub fn leave(&self, queue: QueueKey, entry: Option<EntryId>) {
        let is_it = |waiting: &Waiting| {
            waiting.queue == queue && entry.is_none_or(|entry| waiting.entry == entry)
        };
        for namespace in self.listed.borrow().iter() {
            for lane in &namespace.lines.lanes {
                lane.borrow_mut().leave(is_it);
            }
        }
    }

    /// The commands that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let listed = self.listed.borrow();
        let lanes = listed.iter().flat_map(|namespace| &namespace.lines.lanes);
        lanes.map(|lane| lane.borrow().waiting.len()).sum()
    }

    /// Lets go of all.
    pub fn clear(&self) {
        drop(self.listed.take());
    }

    /// Lets begin what may. When it is to be looked again, where anybody is left.
    fn look(&self, core: &Core<E>) -> Option<Time> {
        let now = core.reactor.now();
        let (mut next, mut index) = (None::<Time>, 0);
        loop {
            let namespace = self.listed.borrow().get(index).cloned();
            let Some(namespace) = namespace else { break };
            let lines = &namespace.lines;
            let mut is_empty = true;
            for lane in &lines.lanes {
                loop {
                    let mut taking = lane.borrow_mut();
                    let taken = taking.take(&namespace.disk, now, lines.is_detached.get());
                    drop(taking);
                    let Some(taken) = taken else { break };
                    if let Some(queue) = core.queue(taken.queue) {
                        queue.admitted(taken.entry);
                    }
                }
                if let Some(first) = lane.borrow().first {
                    is_empty = false;
                    next = Some(next.map_or(first.from, |next| next.min(first.from)));
                }
            }
            if is_empty {
                lines.is_listed.set(false);
                self.listed.borrow_mut().swap_remove(index);
            } else {
                index += 1;
            }
        }
        next.map(|next| next.min(now.plus(LOOK_AGAIN)))
    }
}

/// Lets commands begin when they may, for as long as the core is there.
pub(crate) async fn run<E: Environment>(core: Rc<Core<E>>) {
    loop {
        let pacer = &core.pacer;
        let next = pacer.look(&core);
        pacer.next_look.set(next.unwrap_or(Time(u64::MAX)));
        let mut news = pacer.news.wait_for(|| pacer.has_news.take().then_some(()));
        let mut timer = next.map(|next| core.reactor.sleep_until(next));
        poll_fn(|context| {
            let is_due = timer
                .as_mut()
                .is_some_and(|timer| Pin::new(timer).poll(context).is_ready());
            match is_due || Pin::new(&mut news).poll(context).is_ready() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}
