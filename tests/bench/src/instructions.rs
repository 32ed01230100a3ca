//! Owns what a thread has used: its processor time, and the instructions that it executed in user
//! space, where the machine counts them; and that memory which is not used is given back.
#![allow(
    unsafe_code,
    reason = "these system calls have no safe form that also works under valgrind"
)]

use std::{
    fs::File,
    io::Read,
    os::fd::{FromRawFd, OwnedFd},
    time::Duration,
};

const TYPE_HARDWARE: u32 = 0;
const COUNT_INSTRUCTIONS: u64 = 1;
/// Of the bit field: neither the kernel's nor the hypervisor's instructions.
const EXCLUDE_KERNEL_AND_HV: u64 = 1 << 5 | 1 << 6;

/// The first published form of `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

/// A counter of the thread that made it.
pub struct Counter {
    file: File,
}

impl Counter {
    /// A counter that runs from now on; `None` where the machine has none.
    pub fn new() -> Option<Self> {
        let attributes = Attributes {
            kind: TYPE_HARDWARE,
            size: size_of::<Attributes>() as u32,
            config: COUNT_INSTRUCTIONS,
            flags: EXCLUDE_KERNEL_AND_HV,
            ..Attributes::default()
        };
        let (this_thread, any_cpu, no_group, no_flags) = (0, -1, -1, 0);
        // SAFETY: the kernel reads `size` bytes of the attributes and keeps no pointer to them.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                this_thread,
                any_cpu,
                no_group,
                no_flags,
            )
        };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the call succeeded, so the descriptor is open and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Some(Self {
            file: File::from(fd),
        })
    }

    /// The instructions so far.
    pub fn read(&mut self) -> Option<u64> {
        let mut count = [0; 8];
        self.file.read_exact(&mut count).ok()?;
        Some(u64::from_ne_bytes(count))
    }
}

/// Gives memory that was freed back to the system, so that what the process has is what it uses.
pub fn give_back_freed() {
    // SAFETY: it has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// The processor time that the calling thread has had.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one `timespec`, which is ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "every thread has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
