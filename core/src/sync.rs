//! Waiting between tasks of one core: first-come-first-served queues, permits, and the table of
//! operations that a device still works on.
//!
//! Invariants:
//! - Nothing here allocates after it was made, as long as no more tasks wait than it was made for.
//! - Nobody overtakes: a waiter that asks for much is served before a later one that asks for
//!   little, so every waiter is served once enough has been given back.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// A first-come-first-served queue of tasks that wait for something to become possible.
#[derive(Debug)]
pub struct FifoWait {
    queue: RefCell<VecDeque<(u64, Waker)>>,
    next_ticket: Cell<u64>,
}

impl FifoWait {
    /// A queue with room for `waiters` tasks.
    #[must_use]
    pub fn new(waiters: usize) -> Self {
        Self {
            queue: RefCell::new(VecDeque::with_capacity(waiters)),
            next_ticket: Cell::new(1),
        }
    }

    /// Waits until it is this caller's turn and `attempt` gives a value.
    pub fn wait_for<T, F: FnMut() -> Option<T>>(&self, attempt: F) -> WaitFor<'_, F> {
        WaitFor {
            queue: self,
            attempt,
            ticket: 0,
        }
    }

    /// Something was given back: lets the first waiter try.
    pub fn notify(&self) {
        if let Some((_, waker)) = self.queue.borrow().front() {
            waker.wake_by_ref();
        }
    }

    /// True where nobody waits, so that trying without queueing overtakes nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// The tasks that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.borrow().len()
    }

    fn leave(&self, ticket: u64) {
        let mut queue = self.queue.borrow_mut();
        let was_first = queue.front().is_some_and(|(first, _)| *first == ticket);
        queue.retain(|(waiting, _)| *waiting != ticket);
        drop(queue);
        if was_first {
            self.notify();
        }
    }
}

/// See [`FifoWait::wait_for`].
#[derive(Debug)]
pub struct WaitFor<'a, F> {
    queue: &'a FifoWait,
    attempt: F,
    ticket: u64,
}

impl<T, F: FnMut() -> Option<T> + Unpin> Future for WaitFor<'_, F> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let first = match this.queue.queue.borrow().front() {
            None => true,
            Some((ticket, _)) => *ticket == this.ticket,
        };
        if first && let Some(value) = (this.attempt)() {
            if this.ticket != 0 {
                let ticket = std::mem::take(&mut this.ticket);
                this.queue.leave(ticket);
            }
            return Poll::Ready(value);
        }
        if this.ticket == 0 {
            this.ticket = this.queue.next_ticket.get();
            this.queue.next_ticket.set(this.ticket + 1);
            this.queue
                .queue
                .borrow_mut()
                .push_back((this.ticket, context.waker().clone()));
        }
        Poll::Pending
    }
}

impl<F> Drop for WaitFor<'_, F> {
    fn drop(&mut self) {
        if self.ticket != 0 {
            self.queue.leave(self.ticket);
        }
    }
}

/// A bounded number of permits, handed out first come, first served.
#[derive(Debug)]
pub struct Permits {
    available: Cell<usize>,
    total: usize,
    waiters: FifoWait,
}

impl Permits {
    /// `total` permits, with room for `waiters` waiting tasks.
    #[must_use]
    pub fn new(total: usize, waiters: usize) -> Rc<Self> {
        Rc::new(Self {
            available: Cell::new(total),
            total,
            waiters: FifoWait::new(waiters),
        })
    }

    /// Takes `count` permits, waiting for them. `count` must not exceed the total.
    pub async fn acquire(self: &Rc<Self>, count: usize) -> Permit {
        assert!(
            count <= self.total,
            "{count} permits asked for, {} exist",
            self.total
        );
        self.waiters.wait_for(|| self.take(count)).await
    }

    /// Takes `count` permits if nobody waits for some and enough are there.
    #[must_use]
    pub fn try_acquire(self: &Rc<Self>, count: usize) -> Option<Permit> {
        if self.waiters.is_empty() {
            self.take(count)
        } else {
            None
        }
    }

    /// The permits that nobody holds.
    #[must_use]
    pub fn available(&self) -> usize {
        self.available.get()
    }

    fn take(self: &Rc<Self>, count: usize) -> Option<Permit> {
        let left = self.available.get().checked_sub(count)?;
        self.available.set(left);
        Some(Permit {
            of: self.clone(),
            count,
        })
    }
}

/// Permits held; dropping it gives them back.
#[derive(Debug)]
pub struct Permit {
    of: Rc<Permits>,
    count: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.available.set(self.of.available.get() + self.count);
        self.of.waiters.notify();
    }
}

/// A value that comes once, to one waiting task. Control path: it is made on the heap.
#[derive(Debug)]
pub struct Oneshot<T> {
    state: Rc<RefCell<OneshotState<T>>>,
}

#[derive(Debug)]
struct OneshotState<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> Clone for Oneshot<T> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
        }
    }
}

impl<T> Default for Oneshot<T> {
    fn default() -> Self {
        Self {
            state: Rc::new(RefCell::new(OneshotState {
                value: None,
                waker: None,
            })),
        }
    }
}

impl<T> Oneshot<T> {
    /// Gives the value and wakes the waiter. A second value replaces one that was not yet taken.
    pub fn send(&self, value: T) {
        let waker = {
            let mut state = self.state.borrow_mut();
            state.value = Some(value);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits for the value.
    pub async fn receive(&self) -> T {
        std::future::poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            match state.value.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Names one operation in an [`OpTable`]: an index and the generation of its slot, so that a
/// completion that comes late or twice is told from the slot's next operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// The token as the 64 bits that travel through a device's queue.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.index) | u64::from(self.generation) << 32
    }

    /// The token from [`to_bits`](Self::to_bits).
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }

    /// The slot's index in its table.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug)]
struct Op<T, R> {
    generation: u32,
    state: OpState<T, R>,
}

#[derive(Debug)]
enum OpState<T, R> {
    Free,
    /// The device works on it; `kept` owns what the device may touch.
    InFlight {
        kept: T,
        waker: Option<Waker>,
        abandoned: bool,
    },
    Done(R),
}

/// The operations that a device works on. The table owns what each of them needs (its buffers)
/// until the device's terminal completion, whatever becomes of the task that asked for it.
#[derive(Debug)]
pub struct OpTable<T, R> {
    ops: RefCell<Box<[Op<T, R>]>>,
    free: RefCell<Vec<u32>>,
    waiters: FifoWait,
}

impl<T, R> OpTable<T, R> {
    /// A table of `depth` operations, with room for `waiters` tasks that wait for a free one.
    #[must_use]
    pub fn new(depth: usize, waiters: usize) -> Self {
        let count = u32::try_from(depth).expect("fewer than 2^32 operations");
        Self {
            ops: RefCell::new(
                (0..count)
                    .map(|_| Op {
                        generation: 1,
                        state: OpState::Free,
                    })
                    .collect(),
            ),
            free: RefCell::new((0..count).rev().collect()),
            waiters: FifoWait::new(waiters),
        }
    }

    /// Takes a slot for an operation, waiting for one. The slot holds `kept` from now on; the
    /// caller hands the token to the device and then awaits [`Submitted::outcome`].
    pub async fn begin(&self, kept: T) -> Submitted<'_, T, R> {
        let index = self.waiters.wait_for(|| self.free.borrow_mut().pop()).await;
        self.occupy(index, kept)
    }

    /// The same without waiting: `None` where no slot is free, or others wait for one.
    pub fn try_begin(&self, kept: T) -> Option<Submitted<'_, T, R>> {
        if !self.waiters.is_empty() {
            return None;
        }
        let index = self.free.borrow_mut().pop()?;
        Some(self.occupy(index, kept))
    }

    fn occupy(&self, index: u32, kept: T) -> Submitted<'_, T, R> {
        let op = &mut self.ops.borrow_mut()[index as usize];
        debug_assert!(matches!(op.state, OpState::Free));
        op.state = OpState::InFlight {
            kept,
            waker: None,
            abandoned: false,
        };
        Submitted {
            table: self,
            token: Token {
                index,
                generation: op.generation,
            },
            ended: false,
        }
    }

    /// The device is done with the operation: hands its result to the task and gives back what was
    /// kept for it. `None` for a token that names no operation in flight (stale, or made up).
    pub fn complete(&self, token: Token, result: R) -> Option<T> {
        let mut ops = self.ops.borrow_mut();
        let op = ops.get_mut(token.index as usize)?;
        if op.generation != token.generation || !matches!(op.state, OpState::InFlight { .. }) {
            return None;
        }
        let OpState::InFlight {
            kept,
            waker,
            abandoned,
        } = std::mem::replace(&mut op.state, OpState::Done(result))
        else {
            unreachable!("matched above");
        };
        if abandoned {
            Self::release(op);
            drop(ops);
            self.give_back(token.index);
        } else if let Some(waker) = waker {
            waker.wake();
        }
        Some(kept)
    }

    /// Looks at what is kept for an operation in flight.
    pub fn with_kept<O>(&self, token: Token, look: impl FnOnce(&mut T) -> O) -> Option<O> {
        let mut ops = self.ops.borrow_mut();
        let op = ops.get_mut(token.index as usize)?;
        match &mut op.state {
            OpState::InFlight { kept, .. } if op.generation == token.generation => Some(look(kept)),
            _ => None,
        }
    }

    /// The operations that are in flight or whose result nobody has taken yet.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.ops.borrow().len() - self.free.borrow().len()
    }

    fn release(op: &mut Op<T, R>) {
        op.state = OpState::Free;
        op.generation = op.generation.wrapping_add(1);
    }

    fn give_back(&self, index: u32) {
        self.free.borrow_mut().push(index);
        self.waiters.notify();
    }
}

/// An operation handed to a device. Dropping it does not end the operation: its slot and what it
/// keeps stay until the device completes it.
#[derive(Debug)]
pub struct Submitted<'a, T, R> {
    table: &'a OpTable<T, R>,
    token: Token,
    ended: bool,
}

impl<T, R> Submitted<'_, T, R> {
    /// The operation's token, to travel with it through the device.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// Waits for the terminal completion.
    pub async fn outcome(mut self) -> R {
        let (table, token) = (self.table, self.token);
        let result = std::future::poll_fn(|context| {
            let mut ops = table.ops.borrow_mut();
            let op = &mut ops[token.index as usize];
            match &mut op.state {
                OpState::Done(_) => {
                    let state = std::mem::replace(&mut op.state, OpState::Free);
                    OpTable::release(op);
                    let OpState::Done(result) = state else {
                        unreachable!("matched above")
                    };
                    Poll::Ready(result)
                }
                OpState::InFlight { waker, .. } => {
                    match waker {
                        Some(known) if known.will_wake(context.waker()) => {}
                        _ => *waker = Some(context.waker().clone()),
                    }
                    Poll::Pending
                }
                OpState::Free => unreachable!("the slot is released only here"),
            }
        })
        .await;
        self.ended = true;
        table.give_back(token.index);
        result
    }
}

impl<T, R> Drop for Submitted<'_, T, R> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut ops = self.table.ops.borrow_mut();
        let op = &mut ops[self.token.index as usize];
        match &mut op.state {
            OpState::InFlight {
                abandoned, waker, ..
            } => {
                *abandoned = true;
                *waker = None;
            }
            OpState::Done(_) => {
                OpTable::release(op);
                drop(ops);
                self.table.give_back(self.token.index);
            }
            OpState::Free => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Executor;

    fn run<T: 'static>(
        executor: &Executor,
        task: impl Future<Output = T> + 'static,
    ) -> Rc<Cell<Option<T>>> {
        let out = Rc::new(Cell::new(None));
        let into = out.clone();
        executor
            .spawn(async move { into.set(Some(task.await)) })
            .ok()
            .unwrap();
        executor.run_ready();
        out
    }

    #[test]
    fn permits_are_first_come_first_served() {
        let executor = Executor::new(8);
        let permits = Permits::new(4, 8);
        let held = permits.try_acquire(3).unwrap();
        let (a, b) = (permits.clone(), permits.clone());
        let large = run(&executor, async move { a.acquire(4).await });
        let small = run(&executor, async move { b.acquire(1).await });
        assert!(permits.try_acquire(1).is_none(), "overtook a waiter");
        drop(held);
        executor.run_ready();
        let got = large.take().unwrap();
        assert!(small.take().is_none());
        drop(got);
        executor.run_ready();
        assert!(small.take().is_some());
        assert_eq!(permits.available(), 4);
    }

    #[test]
    fn an_abandoned_operation_keeps_its_slot_until_completion() {
        let executor = Executor::new(4);
        let table: Rc<OpTable<u8, u32>> = Rc::new(OpTable::new(1, 4));
        let token = Rc::new(Cell::new(None));
        let (t, seen) = (table.clone(), token.clone());
        run(&executor, async move {
            let op = t.begin(9).await;
            seen.set(Some(op.token()));
        });
        assert_eq!(table.in_use(), 1);
        assert_eq!(table.complete(token.get().unwrap(), 1), Some(9));
        assert_eq!(table.complete(token.get().unwrap(), 1), None);
        assert_eq!(table.in_use(), 0);
    }

    #[test]
    fn who_does_not_wait_overtakes_nobody() {
        let executor = Executor::new(4);
        let table: Rc<OpTable<u8, u32>> = Rc::new(OpTable::new(1, 4));
        let held = table.try_begin(1).unwrap();
        assert!(table.try_begin(2).is_none());
        let t = table.clone();
        let waited = run(&executor, async move { t.begin(3).await.token() });
        assert_eq!(table.complete(held.token(), 0), Some(1));
        drop(held);
        assert!(table.try_begin(2).is_none(), "overtook a waiter");
        executor.run_ready();
        assert_eq!(table.complete(waited.take().unwrap(), 0), Some(3));
        assert!(table.try_begin(2).is_some());
    }

    #[test]
    fn a_stale_token_completes_nothing() {
        let executor = Executor::new(4);
        let table: Rc<OpTable<(), u32>> = Rc::new(OpTable::new(1, 4));
        let tokens = Rc::new(RefCell::new(Vec::new()));
        for _ in 0..2 {
            let (t, seen) = (table.clone(), tokens.clone());
            let result = run(&executor, async move {
                let op = t.begin(()).await;
                seen.borrow_mut().push(op.token());
                op.outcome().await
            });
            let newest = *tokens.borrow().last().unwrap();
            if tokens.borrow().len() == 2 {
                assert_eq!(table.complete(tokens.borrow()[0], 7), None);
            }
            assert!(table.complete(newest, 5).is_some());
            executor.run_ready();
            assert_eq!(result.take(), Some(5));
        }
    }
}
