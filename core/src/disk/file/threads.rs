//! The helper thread of one core, for machines that refuse io_uring: it makes the same calls, one
//! after the other, and waits for each.
//!
//! Invariants:
//! - The reactor never waits for the helper, and the helper touches nothing of the reactor's: calls
//!   go to it over one ring, results come back over another that always has room.
//! - A core that sleeps is woken: it says that it sleeps before it looks for results for the last
//!   time, and the helper looks for that after it has given a result.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, eventfd};

use super::{
    call::{Action, Call, Iovec, errno},
    uring::{allocate_flags, transfer_flags},
};
use crate::disk::SEGMENTS_MAX;

/// How the environment starts a thread: its name, and what it does.
pub type SpawnThread =
    fn(name: String, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;

/// Starts a thread of the machine that may run on every CPU, also where the caller is pinned to one
/// that it keeps busy.
///
/// # Errors
/// What the system says.
pub fn machine_thread(name: String, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    let unpinned = move || {
        let mut all = rustix::thread::CpuSet::new();
        for cpu in 0..rustix::thread::CpuSet::MAX_CPU {
            all.set(cpu);
        }
        // The system keeps what the machine has of it. Where it refuses, the thread stays pinned.
        let _ = rustix::thread::sched_setaffinity(None, &all);
        body();
    };
    std::thread::Builder::new().name(name).spawn(unpinned)
}

struct Job {
    token: u64,
    call: Call,
}

// SAFETY: a call's memory and file stay until its result has come, whatever thread makes the call.
unsafe impl Send for Job {}

struct Bell {
    sleeping: AtomicBool,
    eventfd: OwnedFd,
}

pub(super) struct Helper {
    /// `None` once the helper was told to end.
    jobs: Option<rtrb::Producer<Job>>,
    results: rtrb::Consumer<(u64, i32)>,
    thread: Option<JoinHandle<()>>,
    bell: Arc<Bell>,
    in_kernel: usize,
    new_jobs: bool,
}

impl Helper {
    /// A helper for at most `depth` calls at a time.
    ///
    /// # Errors
    /// Where the thread or its eventfd cannot be had.
    pub(super) fn new(name: String, depth: usize, spawn: SpawnThread) -> io::Result<Self> {
        let (jobs, mut todo) = rtrb::RingBuffer::<Job>::new(depth);
        let (mut done, results) = rtrb::RingBuffer::new(depth);
        let bell = Arc::new(Bell {
            sleeping: AtomicBool::new(false),
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let helpers_bell = bell.clone();
        let body = move || {
            loop {
                match todo.pop() {
                    Ok(job) => {
                        let result = make(&job.call);
                        done.push((job.token, result))
                            .expect("there is room for the results of all calls");
                        helpers_bell.ring();
                    }
                    Err(_) if todo.is_abandoned() && todo.is_empty() => break,
                    Err(_) => std::thread::park(),
                }
            }
        };
        let thread = spawn(name, Box::new(body))?;
        Ok(Self {
            jobs: Some(jobs),
            results,
            thread: Some(thread),
            bell,
            in_kernel: 0,
            new_jobs: false,
        })
    }

    /// Queues a call; false where there is no room.
    ///
    /// # Safety
    /// The call's file and memory stay until its result has come.
    pub(super) unsafe fn push(&mut self, token: u64, call: &Call) -> bool {
        let Some(jobs) = &mut self.jobs else {
            return false;
        };
        let room = self.in_kernel < jobs.buffer().capacity();
        if room && jobs.push(Job { token, call: *call }).is_ok() {
            self.in_kernel += 1;
            self.new_jobs = true;
            return true;
        }
        false
    }

    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// Wakes the helper if it has new calls; true where it had.
    pub(super) fn kick(&mut self) -> bool {
        if !std::mem::take(&mut self.new_jobs) {
            return false;
        }
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        true
    }

    /// The next result, as of [`super::uring::Uring::next`].
    pub(super) fn next(&mut self) -> Option<(u64, i32)> {
        let result = self.results.pop().ok()?;
        self.in_kernel -= 1;
        Some(result)
    }

    /// Says that the core is about to sleep; false where results are there.
    pub(super) fn prepare_sleep(&self) -> bool {
        self.bell.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.results.is_empty()
    }

    pub(super) fn awake(&self) {
        self.bell.sleeping.store(false, Ordering::Relaxed);
        let mut count = [0; 8];
        // Fails where nothing was rung.
        let _ = rustix::io::read(&self.bell.eventfd, &mut count);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.eventfd.as_fd()
    }

    /// Lets the helper make the calls that it has, and end.
    pub(super) fn finish(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends by panic only where a call's result found no room, which cannot be.
            let _ = thread.join();
        }
    }
}

impl Bell {
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            // Fails only where the counter is full, and then the core is being woken already.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// Makes a call and waits for it; the result as io_uring gives it.
fn make(call: &Call) -> i32 {
    // SAFETY: whoever made the call keeps its file open until the result has come.
    let fd = unsafe { BorrowedFd::borrow_raw(call.fd) };
    let result = match call.action {
        Action::Read => {
            let mut slices: [_; SEGMENTS_MAX] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            for (slice, iovec) in slices.iter_mut().zip(iovecs(call)) {
                // SAFETY: the memory is good for writing, and nobody else's, until the result has
                // come.
                let bytes = unsafe { std::slice::from_raw_parts_mut(iovec.base, iovec.len) };
                *slice = IoSliceMut::new(bytes);
            }
            let slices = &mut slices[..call.iovec_count as usize];
            rustix::io::preadv(fd, slices, call.offset)
        }
        Action::Write { .. } => {
            let mut slices: [_; SEGMENTS_MAX] = std::array::from_fn(|_| IoSlice::new(&[]));
            for (slice, iovec) in slices.iter_mut().zip(iovecs(call)) {
                // SAFETY: the memory is good for reading, and nobody writes it, until the result
                // has come.
                let bytes = unsafe { std::slice::from_raw_parts(iovec.base, iovec.len) };
                *slice = IoSlice::new(bytes);
            }
            let slices = &slices[..call.iovec_count as usize];
            match call.action {
                Action::Write { durable: true } => {
                    rustix::io::pwritev2(fd, slices, call.offset, transfer_flags(call.action))
                }
                _ => rustix::io::pwritev(fd, slices, call.offset),
            }
        }
        Action::Sync => rustix::fs::fdatasync(fd).map(|()| 0),
        Action::Punch | Action::ZeroRange => {
            let flags = allocate_flags(call.action);
            rustix::fs::fallocate(fd, flags, call.offset, call.len).map(|()| 0)
        }
    };
    match result {
        Ok(bytes) => i32::try_from(bytes).unwrap_or(errno::IO),
        Err(error) => -error.raw_os_error(),
    }
}

fn iovecs(call: &Call) -> &[Iovec] {
    // SAFETY: they stay in place until the result has come.
    unsafe { std::slice::from_raw_parts(call.iovecs, call.iovec_count as usize) }
}
