//! The io_uring of one core.
//!
//! Invariants:
//! - At most one `io_uring_enter` per turn of the reactor: it hands in what the turn gathered and
//!   lets the kernel post what has completed.
//! - No more calls are in the kernel than the completion ring has room for.
//! - The ring is used by the thread that made it alone (`IORING_SETUP_SINGLE_ISSUER`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::FallocateFlags,
    io::{Errno, ReadWriteFlags},
};

use super::call::{Action, Call, Iovec};

/// The files that can be registered.
const FILES: u32 = 1024;

/// The most bytes that the kernel registers as one buffer. No buffer of a pool lies across a border
/// between two, as a pool's blocks are aligned to their size.
const REGISTERED_BYTES_MAX: usize = 1 << 30;

pub(super) struct Uring {
    ring: IoUring,
    /// Calls that the kernel has or will have at the next enter.
    in_kernel: usize,
    in_kernel_max: usize,
    memory: Option<Memory>,
    /// Reads and writes of several registered buffers (Linux 6.15).
    vectored: bool,
    free_files: Vec<u32>,
    /// Rung by the kernel while the core sleeps. (The ring's own descriptor does not become readable
    /// for completions that the kernel defers.)
    bell: OwnedFd,
}

/// The registered memory.
#[derive(Clone, Copy)]
struct Memory {
    base: usize,
    len: usize,
}

impl Memory {
    /// The registered buffer that holds all of `iovec`.
    fn index_of(&self, iovec: &Iovec) -> Option<u16> {
        let offset = (iovec.base as usize).checked_sub(self.base)?;
        let last = offset.checked_add(iovec.len)?.checked_sub(1)?;
        let index = offset / REGISTERED_BYTES_MAX;
        (last < self.len && last / REGISTERED_BYTES_MAX == index)
            .then(|| u16::try_from(index).ok())
            .flatten()
    }
}

impl Uring {
    /// A ring for `depth` calls.
    ///
    /// # Errors
    /// Where the kernel has no io_uring, refuses it, or has one that lacks what is needed.
    pub(super) fn new(entries: u32, depth: usize) -> io::Result<Self> {
        let completions = u32::try_from(depth).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ring = build(entries, completions.next_power_of_two().max(entries))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::ReadFixed::CODE,
            opcode::WriteFixed::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let vectored = probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE);
        // Without registered files each call looks its file up, which costs a little.
        let files = ring.submitter().register_files_sparse(FILES).is_ok();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        let mut this = Self {
            in_kernel: 0,
            in_kernel_max: ring.params().cq_entries() as usize,
            ring,
            memory: None,
            vectored,
            free_files: if files {
                (0..FILES).rev().collect()
            } else {
                Vec::new()
            },
            bell,
        };
        this.ring.completion().disable_eventfd();
        Ok(this)
    }

    /// Registers memory, so that a call need not pin its pages. False where the limits (locked
    /// memory) forbid it: everything works all the same.
    ///
    /// # Safety
    /// The memory stays mapped as long as the ring exists.
    pub(super) unsafe fn register_memory(&mut self, base: NonNull<u8>, len: usize) -> bool {
        let pieces: Vec<Iovec> = (0..len)
            .step_by(REGISTERED_BYTES_MAX)
            .map(|offset| Iovec {
                base: base.as_ptr().wrapping_add(offset),
                len: REGISTERED_BYTES_MAX.min(len - offset),
            })
            .collect();
        // SAFETY: `Iovec` has the layout of `struct iovec`; the memory is good by the caller's
        // promise.
        let registered = unsafe {
            let pieces = std::slice::from_raw_parts(pieces.as_ptr().cast(), pieces.len());
            self.ring.submitter().register_buffers(pieces)
        };
        self.memory = registered.is_ok().then_some(Memory {
            base: base.as_ptr() as usize,
            len,
        });
        registered.is_ok()
    }

    /// Registers a file; `None` where it must do without.
    pub(super) fn register_file(&mut self, fd: RawFd) -> Option<u32> {
        let place = self.free_files.pop()?;
        match self.ring.submitter().register_files_update(place, &[fd]) {
            Ok(_) => Some(place),
            Err(_) => {
                self.free_files.push(place);
                None
            }
        }
    }

    /// The place is free again. No call on it may be in the ring.
    pub(super) fn release_file(&mut self, place: u32) {
        if self
            .ring
            .submitter()
            .register_files_update(place, &[-1])
            .is_ok()
        {
            self.free_files.push(place);
        }
    }

    /// Queues a call for the next [`enter`](Self::enter); false where the ring is full.
    ///
    /// # Safety
    /// The call's file and memory stay until its result has come.
    pub(super) unsafe fn push(&mut self, token: u64, call: &Call) -> bool {
        if self.in_kernel == self.in_kernel_max {
            return false;
        }
        let entry = self.entry(call).user_data(token);
        // SAFETY: by the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return false;
        }
        self.in_kernel += 1;
        true
    }

    /// The calls that were pushed and whose results have not come.
    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// True where [`enter`](Self::enter) has something to do.
    pub(super) fn wants_enter(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Hands in what was pushed and lets the kernel post completions. Returns how many calls it
    /// took.
    pub(super) fn enter(&mut self) -> usize {
        match self.ring.submit() {
            Ok(taken) => taken,
            Err(error) => {
                let code = error.raw_os_error().map(Errno::from_raw_os_error);
                match code {
                    // The kernel is short of something: what was pushed stays for the next turn.
                    Some(Errno::AGAIN | Errno::BUSY | Errno::INTR | Errno::NOMEM) => 0,
                    _ => panic!("the ring refuses to work: {error}"),
                }
            }
        }
    }

    /// Waits until something has completed, at most `timeout`.
    pub(super) fn wait(&mut self, timeout: std::time::Duration) {
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        if let Err(error) = self.ring.submitter().submit_with_args(1, &arguments)
            && error.raw_os_error() != Some(Errno::TIME.raw_os_error())
        {
            // Linux before 5.11 waits without end.
            let _ = self.ring.submit_and_wait(1);
        }
    }

    /// The next result: its call's token, and what the system call would have returned (an error
    /// number where negative).
    pub(super) fn next(&mut self) -> Option<(u64, i32)> {
        let completed = self.ring.completion().next()?;
        self.in_kernel -= 1;
        Some((completed.user_data(), completed.result()))
    }

    pub(super) fn has_results(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Lets the kernel wake the core; false where there is something to do already.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // Either the kernel sees that it is to ring, or its completion is seen here.
        fence(Ordering::SeqCst);
        !self.has_results() && !self.wants_enter()
    }

    pub(super) fn awake(&mut self) {
        self.ring.completion().disable_eventfd();
        let mut count = [0; 8];
        // Fails where nothing was rung.
        let _ = rustix::io::read(&self.bell, &mut count);
    }

    /// What becomes readable when there are results while the core sleeps.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn entry(&self, call: &Call) -> squeue::Entry {
        let fd = match call.registered {
            // Together with the flag below, the number is the file's place.
            Some(place) => types::Fd(place.cast_signed()),
            None => types::Fd(call.fd),
        };
        let entry = match call.action {
            Action::Read | Action::Write { .. } => self.transfer(fd, call),
            Action::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Action::Punch | Action::ZeroRange => opcode::Fallocate::new(fd, call.len)
                .offset(call.offset)
                .mode(allocate_flags(call.action).bits().cast_signed())
                .build(),
        };
        match call.registered {
            Some(_) => entry.flags(squeue::Flags::FIXED_FILE),
            None => entry,
        }
    }

    fn transfer(&self, fd: types::Fd, call: &Call) -> squeue::Entry {
        // SAFETY: the caller of `push` promises that they are there.
        let iovecs = unsafe { std::slice::from_raw_parts(call.iovecs, call.iovec_count as usize) };
        let index = |iovec| self.memory.and_then(|memory| memory.index_of(iovec));
        let first = index(&iovecs[0]);
        let flags = transfer_flags(call.action).bits().cast_signed();
        let (vector, count) = (call.iovecs.cast(), call.iovec_count);
        let (one, bytes) = (
            iovecs[0].base,
            u32::try_from(iovecs[0].len).unwrap_or(u32::MAX),
        );
        let read = call.action == Action::Read;
        match first {
            Some(buffer) if count == 1 && read => opcode::ReadFixed::new(fd, one, bytes, buffer)
                .offset(call.offset)
                .build(),
            Some(buffer) if count == 1 => opcode::WriteFixed::new(fd, one, bytes, buffer)
                .offset(call.offset)
                .rw_flags(flags)
                .build(),
            Some(buffer) if self.vectored && iovecs.iter().all(|i| index(i) == first) => {
                if read {
                    opcode::ReadvFixed::new(fd, vector, count, buffer)
                        .offset(call.offset)
                        .build()
                } else {
                    opcode::WritevFixed::new(fd, vector, count, buffer)
                        .offset(call.offset)
                        .rw_flags(flags)
                        .build()
                }
            }
            _ if read => opcode::Readv::new(fd, call.iovecs.cast(), count)
                .offset(call.offset)
                .build(),
            _ => opcode::Writev::new(fd, call.iovecs.cast(), count)
                .offset(call.offset)
                .rw_flags(flags)
                .build(),
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel takes a closed ring apart in its own time; until then the files would stay
        // open, and locked.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// The flags of a call that works on a range.
pub(super) fn allocate_flags(action: Action) -> FallocateFlags {
    match action {
        Action::ZeroRange => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        _ => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
    }
}

/// The flags of a call that moves bytes.
pub(super) fn transfer_flags(action: Action) -> ReadWriteFlags {
    match action {
        Action::Write { durable: true } => ReadWriteFlags::DSYNC,
        _ => ReadWriteFlags::empty(),
    }
}

/// A ring with as much of what makes it cheap as the kernel has.
fn build(entries: u32, completions: u32) -> io::Result<IoUring> {
    let best = IoUring::builder()
        .setup_clamp()
        .setup_submit_all()
        .setup_cqsize(completions)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match best {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        other => return other,
    }
    let without_deferral = IoUring::builder()
        .setup_clamp()
        .setup_submit_all()
        .setup_cqsize(completions)
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match without_deferral {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        other => return other,
    }
    IoUring::builder()
        .setup_clamp()
        .setup_cqsize(completions)
        .build(entries)
}
