//! Every bound of a configuration, by name.

use crate::units::Size;

/// The longest configuration file that is read.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Errors, and as many warnings, that are kept of one file; what is beyond is counted.
pub const DIAGNOSTICS_MAX: usize = 100;
/// Reactors of one process.
pub const CORES_MAX: usize = 256;
/// Listeners of one process.
pub const LISTENERS_MAX: usize = 64;
/// Disks of one process.
pub const DISKS_MAX: usize = 1024;
/// Arrays of one process.
pub const ARRAYS_MAX: usize = 64;
/// Pools of one process.
pub const POOLS_MAX: usize = 16;
/// Members, and as many spares, that one array lists.
pub const ARRAY_DISKS_MAX: usize = 32;
/// Subsystems of one process.
pub const SUBSYSTEMS_MAX: usize = 1024;
/// Namespaces of all subsystems together.
pub const NAMESPACES_MAX: usize = 1024;
/// Hosts that one subsystem lists.
pub const HOSTS_MAX: usize = 1024;
/// Referrals of the discovery service.
pub const REFERRALS_MAX: usize = 64;
/// Connections of all hosts together.
pub const CONNECTIONS_MAX: u64 = 1024;
/// Entries of a queue.
pub const QUEUE_DEPTH_MAX: u64 = 1024;
/// I/O queues of one controller.
pub const IO_QUEUES_MAX: u64 = 128;
/// Characters of a disk's or listener's name.
pub const NAME_CHARS_MAX: usize = 64;
/// The largest disk.
pub const DISK_SIZE_MAX: Size = Size::TIB.times(1 << 20);
/// The smallest DMA arena, for each reactor.
pub const MEMORY_PER_CORE_MIN: Size = Size::MIB.times(16);
/// The largest DMA arena.
pub const MEMORY_MAX: Size = Size::TIB;
