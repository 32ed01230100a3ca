//! Waiting for a pool's progress, doing two things at once, and tables by number.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    hash::{BuildHasher, Hasher},
    pin::pin,
    task::{Poll, Waker},
    time::Duration,
};

use corebay_core::reactor::Reactor;

/// Tasks that wait until something has changed. All are woken by each change.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    wakers: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Something has changed: everybody looks again.
    pub fn notify(&self) {
        if self.is_empty() {
            return;
        }
        // Waking puts tasks into a ring and calls nothing back.
        for waker in self.wakers.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// True where nobody waits.
    pub fn is_empty(&self) -> bool {
        self.wakers.borrow().is_empty()
    }

    /// Waits until `look` gives a value.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(value) = look() {
                return Poll::Ready(value);
            }
            let mut wakers = self.wakers.borrow_mut();
            if !wakers.iter().any(|known| known.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// Who comes first of those that wait for the same thing, whether they are tasks or not.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Their numbers, in the order they came.
    waiting: RefCell<VecDeque<u64>>,
    next: Cell<u64>,
}

impl Line {
    /// One more waits, behind all others: its number.
    pub fn join(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        self.waiting.borrow_mut().push_back(number);
        number
    }

    /// True where nobody waits before the one with this number, or before one who has none.
    pub fn is_first(&self, number: Option<u64>) -> bool {
        let first = self.waiting.borrow().front().copied();
        first.is_none() || first == number
    }

    /// It waits no more.
    pub fn leave(&self, number: u64) {
        let mut waiting = self.waiting.borrow_mut();
        if let Ok(at) = waiting.binary_search(&number) {
            waiting.remove(at);
        }
    }
}

/// Goes on in the core's next turn: its devices, and what hosts ask, come first. A task that merely woke itself
/// would be polled again within the same turn.
pub(crate) async fn breathe(reactor: &Reactor) {
    reactor.sleep(Duration::ZERO).await;
}

/// Tasks that wait for a count to reach their numbers: each is woken once, when it has.
#[derive(Debug, Default)]
pub(crate) struct Milestones {
    /// By number.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
}

impl Milestones {
    /// The count has reached `count`.
    pub fn reach(&self, count: u64) {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(|(number, _)| *number <= count) {
            let front = waiting.pop_front();
            front.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }

    /// Wakes a task once the count has reached `number`.
    pub fn wait(&self, number: u64, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        // Mostly its number is the last.
        if waiting.back().is_none_or(|(last, _)| *last < number) {
            waiting.push_back((number, waker.clone()));
            return;
        }
        let at = waiting.partition_point(|(other, _)| *other <= number);
        let known = at.checked_sub(1).map(|known| &waiting[known]);
        if known.is_none_or(|(of, known)| *of != number || !known.will_wake(waker)) {
            waiting.insert(at, (number, waker.clone()));
        }
    }
}

/// Hashes small numbers, the same in each run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BuildMix;

/// See [`BuildMix`].
pub(crate) struct Mix(u64);

impl BuildHasher for BuildMix {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(0)
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Runs two futures at once to the end of both.
pub(crate) async fn both<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut one, mut two) = (None, None);
    poll_fn(|context| {
        if one.is_none()
            && let Poll::Ready(value) = first.as_mut().poll(context)
        {
            one = Some(value);
        }
        if two.is_none()
            && let Poll::Ready(value) = second.as_mut().poll(context)
        {
            two = Some(value);
        }
        match one.is_some() && two.is_some() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    (
        one.expect("polled to its end"),
        two.expect("polled to its end"),
    )
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use corebay_conformance::TestCore;

    use super::*;

    #[test]
    fn whoever_breathes_goes_on_in_the_next_turn() {
        let core = TestCore::single();
        let (reactor, passed) = (core.reactor.clone(), Rc::new(Cell::new(0)));
        let task = core.spawn({
            let passed = passed.clone();
            async move {
                for _ in 0..5 {
                    breathe(&reactor).await;
                    passed.set(passed.get() + 1);
                }
            }
        });
        for turn in 0..=5 {
            core.turn();
            assert_eq!(passed.get(), turn);
        }
        assert!(task.is_there());
    }
}
