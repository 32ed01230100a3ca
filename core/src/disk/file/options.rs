//! What a [`FileEngine`](super::FileEngine) is made with, why it could not be, and what it counts.

use std::{fmt, io};

use super::threads::{SpawnThread, machine_thread};

/// How an engine makes its system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// By io_uring where the machine allows it, else by a helper thread.
    #[default]
    Auto,
    /// By io_uring.
    IoUring,
    /// By a helper thread, one call after the other.
    Threads,
}

/// What an engine is made with.
#[derive(Clone, Copy, Debug)]
pub struct FileEngineOptions {
    /// How it makes its system calls.
    pub kind: EngineKind,
    /// The operations that can be in flight at a time, over all file disks of the core.
    pub depth: usize,
    /// The tasks that can wait for one of them.
    pub waiters: usize,
    /// Whether to register the pool's memory with the kernel.
    pub register_memory: bool,
    /// How to start the helper thread, if one is needed.
    pub spawn: SpawnThread,
}

impl Default for FileEngineOptions {
    fn default() -> Self {
        Self {
            kind: EngineKind::Auto,
            depth: 1024,
            waiters: 4096,
            register_memory: true,
            spawn: machine_thread,
        }
    }
}

/// An engine could not be made.
#[derive(Debug)]
pub enum FileEngineError {
    /// io_uring was asked for, and the machine has none or refuses it.
    IoUring(io::Error),
    /// The helper thread could not be started.
    Thread(io::Error),
}

impl fmt::Display for FileEngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring(source) => write!(
                f,
                "this machine refuses io_uring ({source}); see `sysctl kernel.io_uring_disabled` \
                 and the container's seccomp profile, or use helper threads"
            ),
            Self::Thread(source) => {
                write!(f, "cannot start the helper thread for file disks: {source}")
            }
        }
    }
}

impl std::error::Error for FileEngineError {}

/// Counts of an engine since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileEngineCounters {
    /// Turns in which calls were handed in or waited for.
    pub enters: u64,
    /// Calls that were handed to the kernel.
    pub calls: u64,
    /// Calls that the kernel did in part and that were carried on.
    pub continued: u64,
    /// Flushes that were answered by another one's call.
    pub flushes_shared: u64,
}
