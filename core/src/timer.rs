//! Timers of one core: a heap of deadlines, run by the reactor once per turn.
//!
//! Invariant: a timer fires at the first turn whose time has reached its deadline, never before.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::units::Time;

/// The timers of a core.
#[derive(Debug)]
pub struct Timers {
    heap: RefCell<BinaryHeap<Reverse<(Time, u64)>>>,
    armed: RefCell<slab::Slab<Armed>>,
    sequence: Cell<u64>,
}

#[derive(Debug)]
struct Armed {
    sequence: u64,
    waker: Option<Waker>,
    fired: bool,
}

impl Timers {
    /// An empty set with room for `count` timers before it grows.
    #[must_use]
    pub fn new(count: usize) -> Rc<Self> {
        Rc::new(Self {
            heap: RefCell::new(BinaryHeap::with_capacity(count)),
            armed: RefCell::new(slab::Slab::with_capacity(count)),
            sequence: Cell::new(0),
        })
    }

    /// A future that ends at `deadline`.
    #[must_use]
    pub fn at(self: &Rc<Self>, deadline: Time) -> Timer {
        // The sequence's low bits are the slab's key, the others order equal deadlines by age.
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        let key = self.armed.borrow_mut().insert(Armed {
            sequence,
            waker: None,
            fired: false,
        });
        let order = sequence << 24 | key as u64;
        assert!(key < 1 << 24, "more than 2^24 timers");
        self.heap.borrow_mut().push(Reverse((deadline, order)));
        Timer {
            timers: self.clone(),
            key,
        }
    }

    /// The earliest deadline, if any timer is armed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.heap
            .borrow()
            .peek()
            .map(|Reverse((deadline, _))| *deadline)
    }

    /// Fires every timer whose deadline `now` has reached; returns how many.
    pub fn fire(&self, now: Time) -> usize {
        let mut fired = 0;
        loop {
            let order = {
                let mut heap = self.heap.borrow_mut();
                match heap.peek() {
                    Some(Reverse((deadline, _))) if *deadline <= now => {
                        let Some(Reverse((_, order))) = heap.pop() else {
                            break;
                        };
                        order
                    }
                    _ => break,
                }
            };
            let key = usize::try_from(order & 0xff_ffff).expect("24 bits");
            let mut armed = self.armed.borrow_mut();
            // A timer that was dropped leaves its entry in the heap until its deadline.
            let Some(timer) = armed.get_mut(key).filter(|t| t.sequence == order >> 24) else {
                continue;
            };
            timer.fired = true;
            fired += 1;
            if let Some(waker) = timer.waker.take() {
                drop(armed);
                waker.wake();
            }
        }
        fired
    }
}

/// Ends at its deadline. Dropping it disarms it.
#[derive(Debug)]
pub struct Timer {
    timers: Rc<Timers>,
    key: usize,
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut armed = self.timers.armed.borrow_mut();
        let timer = &mut armed[self.key];
        if timer.fired {
            return Poll::Ready(());
        }
        timer.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.armed.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Executor;

    #[test]
    fn timers_fire_in_order_and_not_early() {
        let executor = Executor::new(4);
        let timers = Timers::new(4);
        let order: Rc<RefCell<Vec<u64>>> = Rc::default();
        for nanos in [30, 10, 20] {
            let (timers, order) = (timers.clone(), order.clone());
            let task = async move {
                timers.at(Time(nanos)).await;
                order.borrow_mut().push(nanos);
            };
            executor.spawn(task).ok().unwrap();
        }
        executor.run_ready();
        assert_eq!(timers.next_deadline(), Some(Time(10)));
        assert_eq!(timers.fire(Time(9)), 0);
        assert_eq!(timers.fire(Time(25)), 2);
        executor.run_ready();
        assert_eq!(*order.borrow(), [10, 20]);
        timers.fire(Time(30));
        executor.run_ready();
        assert_eq!(*order.borrow(), [10, 20, 30]);
    }

    #[test]
    fn a_dropped_timer_does_not_fire_its_successor() {
        let timers = Timers::new(1);
        drop(timers.at(Time(5)));
        let _second = timers.at(Time(50));
        assert_eq!(timers.fire(Time(10)), 0);
        assert_eq!(timers.fire(Time(50)), 1);
    }
}
