//! Owns the locks that all cores of an array share: fixed tables of tickets, first come, first served.
//!
//! Invariants:
//! - A lock is held by one operation of one core at a time, and handed on in the order in which it was
//!   asked for, whatever the core.
//! - Whoever waits holds up nobody but those behind it at the same lock. No operation holds two locks
//!   of one table, except a neighbourhood that it takes in ascending order, or a run of stripes that it
//!   takes in descending order ([`TicketLocks::acquire_run`]).
//! - A lock whose holder was dropped amid its work stays locked: what it left may be half done. That
//!   happens only as the core ends; assembling the array anew mends it.

use std::{
    cell::RefCell,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
    task::{Poll, Waker},
};

/// A table of locks.
#[derive(Debug)]
pub(crate) struct TicketLocks {
    slots: Box<[Slot]>,
}

#[derive(Debug, Default)]
#[repr(align(8))]
struct Slot {
    next: AtomicU32,
    serving: AtomicU32,
}

/// A lock that is held; to be released by name.
#[derive(Debug)]
#[must_use = "a lock that is not released stays locked"]
pub(crate) struct Locked {
    slot: usize,
    ticket: u32,
}

/// Locks of neighbouring keys that are held.
#[derive(Debug)]
#[must_use = "locks that are not released stay locked"]
pub(crate) struct LockedRun {
    keys: Range<u64>,
}

/// By key, counts what changes several legs one by one, so that who reads one of them without the lock sees
/// whether that was under way. Begun and ended with the key locked.
#[derive(Debug)]
pub(crate) struct Changes(Box<[AtomicU32]>);

/// How often that has begun and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look(u32);

impl Look {
    pub(crate) fn is_under_way(self) -> bool {
        self.0 % 2 == 1
    }

    /// How many have ended since an earlier look.
    pub(crate) fn ended_since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0) / 2
    }
}

impl Changes {
    /// For a table of `count` locks; 0 where there are no legs.
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| AtomicU32::new(0)).collect())
    }

    fn count(&self, key: u64) -> Option<&AtomicU32> {
        match self.0.is_empty() {
            true => None,
            false => Some(&self.0[(key % self.0.len() as u64) as usize]),
        }
    }

    pub(crate) fn begin(&self, keys: Range<u64>) {
        keys.filter_map(|key| self.count(key)).for_each(|count| {
            count.fetch_add(1, Ordering::SeqCst);
        });
    }

    pub(crate) fn end(&self, keys: Range<u64>) {
        self.begin(keys);
    }

    /// Where two looks give the same and nothing is under way, nothing has changed between.
    pub(crate) fn look(&self, key: u64) -> Look {
        Look(
            self.count(key)
                .map_or(0, |count| count.load(Ordering::SeqCst)),
        )
    }
}

impl TicketLocks {
    /// A table of `count` locks.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
        }
    }

    /// Waits for the lock of `key`; keys that are as far apart as the table is long share one.
    pub(crate) async fn acquire(&self, parking: &Parking, key: u64) -> Locked {
        let slot = self.slot(key);
        let ticket = self.slots[slot].next.fetch_add(1, Ordering::SeqCst);
        parking
            .until(|| (self.slots[slot].serving.load(Ordering::SeqCst) == ticket).then_some(()))
            .await;
        Locked { slot, ticket }
    }

    /// Takes the lock of `key` where nobody has it or waits for it.
    pub(crate) fn try_acquire(&self, key: u64) -> Option<Locked> {
        let slot = self.slot(key);
        let Slot { next, serving } = &self.slots[slot];
        let ticket = serving.load(Ordering::SeqCst);
        let (done, looked) = (Ordering::SeqCst, Ordering::Relaxed);
        let taken = next.compare_exchange(ticket, ticket.wrapping_add(1), done, looked);
        taken.is_ok().then_some(Locked { slot, ticket })
    }

    /// Waits for the locks of neighbouring keys, none of which share one, the last key first. Stripes of a
    /// rebuild wait for their predecessors with their own lock held, so whoever had the first one and waited
    /// for the last would wait for ever.
    pub(crate) async fn acquire_run(&self, parking: &Parking, keys: Range<u64>) -> LockedRun {
        assert!(
            keys.end - keys.start <= self.slots.len() as u64,
            "each key has a lock of its own"
        );
        for key in keys.clone().rev() {
            // Kept by the run.
            let _ = self.acquire(parking, key).await;
        }
        LockedRun { keys }
    }

    /// Hands the locks of a run on.
    pub(crate) fn release_run(&self, locked: LockedRun) {
        for key in locked.keys {
            self.slots[self.slot(key)]
                .serving
                .fetch_add(1, Ordering::SeqCst);
        }
    }

    fn slot(&self, key: u64) -> usize {
        (key % self.slots.len() as u64) as usize
    }

    /// Hands the lock on.
    pub(crate) fn release(&self, locked: Locked) {
        let next = locked.ticket.wrapping_add(1);
        self.slots[locked.slot]
            .serving
            .store(next, Ordering::SeqCst);
    }
}

/// The tasks of one core that wait for something that other cores may give: looked at in each turn.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    waiting: RefCell<Vec<Waker>>,
    waking: RefCell<Vec<Waker>>,
}

impl Parking {
    /// Room for so many tasks.
    pub(crate) fn new(tasks: usize) -> Self {
        Self {
            waiting: RefCell::new(Vec::with_capacity(tasks)),
            waking: RefCell::new(Vec::with_capacity(tasks)),
        }
    }

    /// Waits until `attempt` gives a value.
    pub(crate) async fn until<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(|context| match attempt() {
            Some(value) => Poll::Ready(value),
            None => {
                self.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// Lets everybody look again.
    pub(crate) fn wake(&self) {
        if self.waiting.borrow().is_empty() {
            return;
        }
        self.waiting.swap(&self.waking);
        self.waking.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// True where nobody waits, so that the core may sleep.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use corebay_core::executor::Executor;

    use super::*;

    #[test]
    fn locks_are_first_come_first_served_and_independent() {
        let (executor, locks) = (Executor::new(8), Rc::new(TicketLocks::new(4)));
        let (parking, order) = (Rc::new(Parking::new(8)), Rc::new(RefCell::new(Vec::new())));
        let go = Rc::new(Cell::new(false));
        for (name, key) in [("a", 1), ("b", 5), ("c", 2), ("d", 1)] {
            let (locks, parking) = (locks.clone(), parking.clone());
            let (order, go) = (order.clone(), go.clone());
            let task = async move {
                let locked = locks.acquire(&parking, key).await;
                order.borrow_mut().push(name);
                parking.until(|| go.get().then_some(())).await;
                locks.release(locked);
            };
            executor.spawn(task).ok().unwrap();
        }
        executor.run_ready();
        assert_eq!(*order.borrow(), ["a", "c"]);
        assert!(locks.try_acquire(1).is_none(), "it would overtake");
        go.set(true);
        while executor.live() > 0 {
            parking.wake();
            executor.run_ready();
        }
        assert_eq!(*order.borrow(), ["a", "c", "b", "d"]);
        assert!(parking.is_empty());
        let locked = locks.try_acquire(1).expect("it is free");
        assert!(locks.try_acquire(5).is_none() && locks.try_acquire(2).is_some());
        locks.release(locked);
        assert!(locks.try_acquire(5).is_some());
    }

    #[test]
    fn changes_are_seen_while_they_go_on_and_afterwards() {
        let changes = Changes::new(4);
        let (before, other) = (changes.look(1), changes.look(3));
        assert!(!before.is_under_way());
        changes.begin(5..6);
        assert!(changes.look(1).is_under_way() && !changes.look(3).is_under_way());
        changes.end(5..6);
        let after = changes.look(1);
        assert!(!after.is_under_way() && after != before);
        assert_eq!((after.ended_since(before), other), (1, changes.look(3)));
        let none = Changes::new(0);
        none.begin(0..9);
        assert!(!none.look(3).is_under_way());
    }
}
