//! Every bound of the target that a host can run into, by name.

use std::time::Duration;

/// Namespaces of one subsystem, and the largest NSID.
pub const NAMESPACES_MAX: u32 = 1024;

/// The largest controller id that is handed out.
pub const CNTLID_MAX: u16 = 0xffef;

/// Asynchronous Event Requests outstanding on one controller (AERL + 1).
pub const ASYNC_EVENT_REQUESTS_MAX: usize = 4;

/// Events that wait for an Asynchronous Event Request; beyond it the oldest of a kind is enough.
pub const PENDING_EVENTS_MAX: usize = 16;

/// Abort commands executed at a time (ACL + 1).
pub const ABORTS_MAX: u8 = 8;

/// Entries of the error information log (ELPE + 1).
pub const ERROR_LOG_ENTRIES: usize = 64;

/// Entries of the admin submission queue: what a host may ask for at Connect.
pub const ADMIN_QUEUE_DEPTH_MAX: u16 = 4096;

/// The fewest entries of a queue.
pub const QUEUE_DEPTH_MIN: u16 = 2;

/// Keep Alive Timeout granularity (KAS), in units of 100 ms.
pub const KEEP_ALIVE_GRANULARITY_100MS: u16 = 1;

/// Ranges of one Dataset Management command.
pub const DSM_RANGES_MAX: usize = 256;

/// Blocks that one Dataset Management command deallocates, in one range (DMRSL) or in all (DMSL): it has
/// begun by the time that it is aborted or its controller reset, and both wait for it.
pub const DSM_BLOCKS_MAX: u32 = 1 << 20;

/// Source ranges of one Copy command (MSRC + 1).
pub const COPY_RANGES_MAX: usize = 128;

/// Blocks of one Copy source range (MSSRL).
pub const COPY_RANGE_BLOCKS_MAX: u16 = u16::MAX;

/// Blocks of one Copy command (MCL).
pub const COPY_BLOCKS_MAX: u32 = 1 << 20;

/// The pieces that Copy, Compare and Verify work in, in bytes.
pub const SCRATCH_BYTES: usize = 128 << 10;

/// Scratch pieces of a core: as many of those commands make progress at a time.
pub const SCRATCH_COUNT: usize = 32;

/// Task slots of a core: the commands that may be executing on it at a time.
pub const TASKS_PER_CORE: usize = 4096;

/// Messages on their way from one core to another before the sender holds them back.
pub const MESH_CAPACITY: usize = 1024;

/// How often a core looks after its connections' time-outs.
pub const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(50);

/// How long a new connection may take to its Connect command.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a drain waits for commands in flight before it closes their connections.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// In-capsule data of one command in bytes, whatever is configured.
pub const IN_CAPSULE_BYTES_MAX: usize = 16 << 10;

/// Fused commands of a core, from their first half's arrival on; beyond it they are told to retry.
/// A host has no more of them than it leaves to the others.
pub const FUSED_MAX: usize = 128;

/// A host that takes nothing of what is sent to it, or sends nothing of what it was asked for, is
/// slow after so long: it gets none of the memory's reserve.
pub const SLOW_AFTER: Duration = Duration::from_millis(100);

/// How long somebody may wait for memory that stalled connections hold before those are closed, if
/// they have stalled for as long.
pub const SQUEEZE_AFTER: Duration = Duration::from_secs(2);

/// The fewest bytes in a second that a host takes, or sends, while more is under way. It is looked
/// at over [`Limits::stall_timeout`], so that a pause is forgiven. Far below what any host needs to
/// be served before it gives up by itself (1 MiB within 30 s are 35 kB a second), and so much that
/// nobody can hold memory by a byte a second.
pub const RATE_MIN_BYTES_PER_SECOND: u64 = 1024;

/// What the binary configures; the rest are constants.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest transfer of one command in bytes: a power of two times 4 KiB.
    pub transfer_bytes_max: usize,
    /// In-capsule data of an I/O command in bytes, a multiple of 16; at most
    /// [`IN_CAPSULE_BYTES_MAX`].
    pub in_capsule_bytes: usize,
    /// Entries of an I/O queue (MQES + 1).
    pub queue_depth_max: u16,
    /// I/O queues of a controller.
    pub io_queues_max: u16,
    /// Connections of the whole process.
    pub connections_max: usize,
    /// A host that takes, or sends, less than [`RATE_MIN_BYTES_PER_SECOND`] over this long is
    /// disconnected.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfer_bytes_max: 1 << 20,
            in_capsule_bytes: 8 << 10,
            queue_depth_max: 1024,
            io_queues_max: 128,
            connections_max: 1024,
            stall_timeout: Duration::from_secs(30),
        }
    }
}
