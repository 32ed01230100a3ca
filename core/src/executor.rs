//! The single-threaded executor: futures live in preallocated slots, and waking one is a push to a
//! fixed ring.
//!
//! Invariants:
//! - A task's future is made in its slot once and never moves until it has ended.
//! - The ready ring holds each slot at most once, so it never outgrows the number of slots.
//! - Spawning, waking and running allocate nothing.
//! - A waker that outlives its task wakes whatever task took the slot since: a spurious wake-up,
//!   which every future must bear.
//! - Everything happens on the thread that made the executor; a waker used elsewhere aborts the
//!   process, because its counts are not atomic.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::VecDeque,
    future::Future,
    mem::{ManuallyDrop, MaybeUninit, align_of, size_of},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, RawWaker, RawWakerVTable, Waker},
};

/// The bytes that one task's future may take; a larger one does not compile. With its head a slot is an
/// odd number of cache lines: the beginnings of all slots would share a few places of the caches else.
pub const TASK_BYTES_MAX: usize = 8192;

/// The most task polls of one [`Executor::run_ready`], so that a task that always wakes itself
/// cannot keep the devices from being polled.
const POLLS_PER_RUN_MAX: usize = 1024;

/// The cache lines of a slot that are fetched while the task before it is polled: its head and where most
/// futures keep what they wait for.
#[cfg(target_arch = "x86_64")]
const PREFETCH_LINES: usize = 10;

/// No slot was free: try again when a task has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<F>(pub F);

#[repr(C, align(64))]
struct Slot {
    index: u32,
    queued: Cell<bool>,
    executor: Cell<*const Inner>,
    /// The task's own functions; `None` while the slot is free.
    task: Cell<Option<TaskVtable>>,
    future: Storage,
}

#[repr(align(64))]
struct Storage(UnsafeCell<MaybeUninit<[u8; TASK_BYTES_MAX]>>);

const _: () = assert!(size_of::<Slot>() == TASK_BYTES_MAX + 64);
const _: () = assert!(size_of::<Slot>() / 64 % 2 == 1);

#[derive(Clone, Copy)]
struct TaskVtable {
    poll: unsafe fn(*mut u8, &mut Context<'_>) -> Poll<()>,
    drop: unsafe fn(*mut u8),
}

struct Inner {
    slots: Box<[Slot]>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<u32>>,
    owner: usize,
    live: Cell<usize>,
}

/// A handle to an executor; clones name the same one.
#[derive(Clone)]
pub struct Executor {
    inner: Rc<Inner>,
}

impl Executor {
    /// An executor for at most `slots` tasks at a time. All its memory is taken here.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        let count = u32::try_from(slots).expect("fewer than 2^32 task slots");
        let inner = Rc::new(Inner {
            slots: (0..count).map(Slot::free).collect(),
            free: RefCell::new((0..count).rev().collect()),
            ready: RefCell::new(VecDeque::with_capacity(slots)),
            owner: this_thread(),
            live: Cell::new(0),
        });
        for slot in &inner.slots {
            slot.executor.set(Rc::as_ptr(&inner));
        }
        Self { inner }
    }

    /// Puts `future` into a free slot, to be polled at the next [`run_ready`](Self::run_ready).
    ///
    /// # Errors
    /// Gives the future back where every slot is taken.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, future: F) -> Result<(), Full<F>> {
        let Some(slot) = self.take_slot() else {
            return Err(Full(future));
        };
        slot.fill(|| future);
        self.inner.enqueue(slot);
        Ok(())
    }

    /// Makes a future in a free slot and polls it at once, so that one which does not have to wait
    /// ends here. False, without making it, where every slot is taken.
    #[must_use]
    pub fn start<F: Future<Output = ()> + 'static>(&self, make: impl FnOnce() -> F) -> bool {
        let Some(slot) = self.take_slot() else {
            return false;
        };
        slot.fill(make);
        self.poll_slot(slot);
        true
    }

    fn take_slot(&self) -> Option<&Slot> {
        let index = self.inner.free.borrow_mut().pop()?;
        self.inner.live.set(self.inner.live.get() + 1);
        Some(&self.inner.slots[index as usize])
    }

    /// Polls the tasks that are ready, and those that they make ready, up to a bound. Returns how
    /// many polls that were.
    pub fn run_ready(&self) -> usize {
        let mut polls = 0;
        while polls < POLLS_PER_RUN_MAX {
            let mut ready = self.inner.ready.borrow_mut();
            let Some(index) = ready.pop_front() else {
                break;
            };
            if let Some(next) = ready.front() {
                self.inner.slots[*next as usize].prefetch();
            }
            drop(ready);
            let slot = &self.inner.slots[index as usize];
            slot.queued.set(false);
            self.poll_slot(slot);
            polls += 1;
        }
        polls
    }

    /// True where no task waits to be polled.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.inner.ready.borrow().is_empty()
    }

    /// The tasks that have been spawned and have not ended.
    #[must_use]
    pub fn live(&self) -> usize {
        self.inner.live.get()
    }

    /// The slots that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.inner.free.borrow().len()
    }

    /// All slots, free or not.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.inner.slots.len()
    }

    /// Drops every task where it stands. For the end of a process or of a simulated node, once its
    /// devices are quiet.
    pub fn drop_tasks(&self) {
        for slot in &self.inner.slots {
            self.inner.end(slot);
        }
    }

    fn poll_slot(&self, slot: &Slot) {
        let Some(task) = slot.task.get() else { return };
        // SAFETY: the vtable's contract is met by a slot of a living executor; the waker is not
        // counted, and `ManuallyDrop` keeps it from giving back a count it never took.
        let waker = ManuallyDrop::new(unsafe { Waker::from_raw(raw_waker(slot)) });
        let mut context = Context::from_waker(&waker);
        // SAFETY: `task` was made for the future that this slot holds, which is not being polled
        // now: `start` polls a future that it has just made, and a task cannot poll itself by
        // `run_ready`, where a nested call finds this slot not ready (its `queued` flag only leads
        // to a poll after this one).
        if unsafe { (task.poll)(slot.storage(), &mut context) }.is_ready() {
            self.inner.end(slot);
        }
    }
}

impl Inner {
    fn enqueue(&self, slot: &Slot) {
        if slot.task.get().is_some() && !slot.queued.replace(true) {
            self.ready.borrow_mut().push_back(slot.index);
        }
    }

    /// Drops the task of a slot, if it has one, and frees the slot.
    fn end(&self, slot: &Slot) {
        let Some(task) = slot.task.take() else { return };
        // SAFETY: the future was written by `spawn` and, as `task` has just been taken, is dropped
        // once.
        unsafe { (task.drop)(slot.storage()) };
        self.live.set(self.live.get() - 1);
        self.free.borrow_mut().push(slot.index);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for slot in &self.slots {
            if let Some(task) = slot.task.take() {
                // SAFETY: as in `end`.
                unsafe { (task.drop)(slot.storage()) };
            }
        }
    }
}

impl Slot {
    fn free(index: u32) -> Self {
        Self {
            index,
            queued: Cell::new(false),
            executor: Cell::new(std::ptr::null()),
            task: Cell::new(None),
            future: Storage(UnsafeCell::new(MaybeUninit::uninit())),
        }
    }

    /// Makes a task in this slot, which is free and off the free list.
    fn fill<F: Future<Output = ()> + 'static>(&self, make: impl FnOnce() -> F) {
        const {
            assert!(
                size_of::<F>() <= TASK_BYTES_MAX,
                "the task's future does not fit its slot"
            );
            assert!(
                align_of::<F>() <= 64,
                "the task's future is aligned beyond its slot"
            );
        }
        assert!(
            self.task.get().is_none(),
            "a slot on the free list holds a task"
        );
        // SAFETY: the slot is free, so nothing else refers to its storage; size and alignment were
        // checked above.
        unsafe { self.storage().cast::<F>().write(make()) };
        self.task.set(Some(TaskVtable {
            poll: poll_in_place::<F>,
            drop: drop_in_place::<F>,
        }));
    }

    fn storage(&self) -> *mut u8 {
        self.future.0.get().cast()
    }

    /// Lets the processor fetch what a poll of the task looks at first.
    #[inline]
    fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..PREFETCH_LINES {
            let at = std::ptr::from_ref(self).cast::<i8>();
            // SAFETY: the address lies within the slot; nothing is read or written.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(at.add(line * 64));
            }
        }
    }
}

/// # Safety
/// `at` holds a live `F` that nothing else refers to, and that never moves.
unsafe fn poll_in_place<F: Future<Output = ()>>(
    at: *mut u8,
    context: &mut Context<'_>,
) -> Poll<()> {
    // SAFETY: by the caller's promise.
    unsafe { Pin::new_unchecked(&mut *at.cast::<F>()) }.poll(context)
}

/// # Safety
/// `at` holds a live `F`, which is not used again.
unsafe fn drop_in_place<F>(at: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe { at.cast::<F>().drop_in_place() }
}

/// A number that differs between living threads.
fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}

const WAKER: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_waker);

fn raw_waker(slot: &Slot) -> RawWaker {
    RawWaker::new(std::ptr::from_ref(slot).cast(), &WAKER)
}

/// The slot and executor behind a waker's pointer.
///
/// # Safety
/// `data` came from [`raw_waker`], and the executor lives: either this is the uncounted waker of a
/// running poll, or the waker holds a count.
unsafe fn parts<'a>(data: *const ()) -> (&'a Slot, *const Inner) {
    // SAFETY: by the caller's promise.
    let slot = unsafe { &*data.cast::<Slot>() };
    let inner = slot.executor.get();
    // SAFETY: as above; `owner` is never written after the start.
    if unsafe { (*inner).owner } != this_thread() {
        // `Waker` is `Send`, but these counts are not atomic: carrying on would corrupt memory.
        eprintln!("corebay: a task's waker was used on another thread");
        std::process::abort();
    }
    (slot, inner)
}

unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: `data` is that of a living waker.
    let (slot, inner) = unsafe { parts(data) };
    // SAFETY: `inner` came from `Rc::as_ptr` and lives.
    unsafe { Rc::increment_strong_count(inner) };
    raw_waker(slot)
}

unsafe fn wake(data: *const ()) {
    // SAFETY: `data` is that of a living waker, so the executor lives.
    let (slot, inner) = unsafe { parts(data) };
    // SAFETY: as above; the waker gives up its count after waking.
    unsafe {
        (*inner).enqueue(slot);
        Rc::decrement_strong_count(inner);
    }
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: `data` is that of a living waker, so the executor lives.
    let (slot, inner) = unsafe { parts(data) };
    // SAFETY: as above.
    unsafe { (*inner).enqueue(slot) };
}

unsafe fn drop_waker(data: *const ()) {
    // SAFETY: `data` is that of a counted waker, which ends here.
    let (_, inner) = unsafe { parts(data) };
    // SAFETY: the count was taken by `clone`.
    unsafe { Rc::decrement_strong_count(inner) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[test]
    fn a_task_runs_to_its_end_and_frees_its_slot() {
        let executor = Executor::new(2);
        let ran = Rc::new(Cell::new(0));
        for _ in 0..2 {
            let ran = ran.clone();
            executor
                .spawn(async move { ran.set(ran.get() + 1) })
                .ok()
                .unwrap();
        }
        assert!(executor.spawn(async {}).is_err());
        assert_eq!(executor.run_ready(), 2);
        assert_eq!((ran.get(), executor.live(), executor.free()), (2, 0, 2));
    }

    #[test]
    fn a_started_task_is_polled_at_once_also_from_within_a_task() {
        let executor = Executor::new(2);
        let ran = Rc::new(Cell::new(0));
        let (inner, count) = (executor.clone(), ran.clone());
        let outer = move || async move {
            let again = count.clone();
            assert!(inner.start(move || async move { again.set(again.get() + 1) }));
            assert_eq!((count.get(), inner.free()), (1, 1));
            std::future::pending::<()>().await;
        };
        assert!(executor.start(outer));
        assert_eq!((ran.get(), executor.live(), executor.free()), (1, 1, 1));
        assert!(executor.start(std::future::pending::<()>));
        assert!(!executor.start(|| -> std::future::Pending<()> { panic!("there is no slot") }));
        executor.drop_tasks();
        assert_eq!((executor.live(), executor.run_ready()), (0, 0));
    }

    #[test]
    fn a_waker_outlives_its_task_and_its_executor() {
        let executor = Executor::new(1);
        let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
        let keep = kept.clone();
        let task = poll_fn(move |context| {
            *keep.borrow_mut() = Some(context.waker().clone());
            Poll::Ready(())
        });
        executor.spawn(task).ok().unwrap();
        executor.run_ready();
        let waker = kept.borrow_mut().take().unwrap();
        waker.wake_by_ref();
        assert!(executor.is_idle());
        drop(executor);
        waker.wake();
    }

    #[test]
    fn a_task_that_always_wakes_itself_is_bounded() {
        let executor = Executor::new(1);
        let forever = poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        executor.spawn(forever).ok().unwrap();
        assert_eq!(executor.run_ready(), POLLS_PER_RUN_MAX);
    }

    #[test]
    fn dropping_the_executor_drops_its_tasks() {
        let marker = Rc::new(());
        let executor = Executor::new(4);
        let held = marker.clone();
        let never = async move {
            std::future::pending::<()>().await;
            drop(held);
        };
        executor.spawn(never).ok().unwrap();
        executor.run_ready();
        drop(executor);
        assert_eq!(Rc::strong_count(&marker), 1);
    }
}
