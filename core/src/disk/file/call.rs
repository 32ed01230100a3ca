//! What is asked of the kernel, in the form that both engines take.
//!
//! Invariant: whoever hands a [`Call`] to an engine keeps its file open and its memory in place until
//! the engine has given its result.

use std::os::fd::RawFd;

/// A piece of memory, as the kernel's vectored calls take it (`struct iovec`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Iovec {
    pub(super) base: *mut u8,
    pub(super) len: usize,
}

impl Iovec {
    pub(super) const EMPTY: Self = Self {
        base: std::ptr::null_mut(),
        len: 0,
    };
}

/// What to do to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Read into the memory.
    Read,
    /// Write out of the memory; `durable` as by `RWF_DSYNC`.
    Write { durable: bool },
    /// Make what was written durable (`fdatasync`).
    Sync,
    /// Free the range and make it zeroes (`FALLOC_FL_PUNCH_HOLE`).
    Punch,
    /// Make the range zeroes and keep it allocated (`FALLOC_FL_ZERO_RANGE`).
    ZeroRange,
}

/// One system call, without its waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) action: Action,
    pub(super) fd: RawFd,
    /// The file's place among those registered with the ring.
    pub(super) registered: Option<u32>,
    /// In bytes, as is `len`: the range of [`Action::Punch`] and [`Action::ZeroRange`].
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The memory of reads and writes.
    pub(super) iovecs: *const Iovec,
    pub(super) iovec_count: u32,
}

/// The system's error numbers that have a meaning here.
pub(super) mod errno {
    use rustix::io::Errno;

    pub(in super::super) const INTERRUPTED: i32 = -Errno::INTR.raw_os_error();
    pub(in super::super) const AGAIN: i32 = -Errno::AGAIN.raw_os_error();
    pub(in super::super) const IO: i32 = -Errno::IO.raw_os_error();
    pub(in super::super) const CANCELED: i32 = -Errno::CANCELED.raw_os_error();
}
