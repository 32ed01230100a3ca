//! What can be set of the driver, and what it counts.

use std::time::Duration;

use corebay_core::dma::DMA_ALIGN;

/// How the driver treats a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverOptions {
    /// I/O queue pairs: one for each core that will open one.
    pub queues: u16,
    /// Entries of each I/O queue; one fewer is the most commands of a core in flight.
    pub entries: u16,
    /// How long an I/O command may take before it is aborted.
    pub io_timeout: Duration,
    /// How long the abort of a command may take before the controller is reset.
    pub abort_timeout: Duration,
    /// How long an admin command may take before the controller is reset.
    pub admin_timeout: Duration,
    /// How long the reset of a function may take before the drive is given up. The kernel waits a minute.
    pub function_reset_timeout: Duration,
    /// How often the controller's health is looked at.
    pub health_interval: Duration,
    /// Resets within [`reset_window`](Self::reset_window) after which the drive is given up.
    pub resets_max: usize,
    /// See [`resets_max`](Self::resets_max).
    pub reset_window: Duration,
    /// Use SGLs where the controller takes them and they are better than PRP lists.
    pub sgl: bool,
    /// Use doorbells in memory where the controller has them.
    pub shadow_doorbells: bool,
    /// The host identifier that the controller is told.
    pub host_identifier: [u8; 16],
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            entries: 256,
            io_timeout: Duration::from_secs(10),
            abort_timeout: Duration::from_secs(5),
            admin_timeout: Duration::from_secs(30),
            function_reset_timeout: Duration::from_secs(70),
            health_interval: Duration::from_millis(50),
            resets_max: 3,
            reset_window: Duration::from_secs(60),
            sgl: true,
            shadow_doorbells: true,
            host_identifier: [0; 16],
        }
    }
}

impl DriverOptions {
    /// The bytes of memory that a controller's queues and lists take at most.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let rings = (self.entries as usize * 80).next_multiple_of(DMA_ALIGN) + 2 * DMA_ALIGN;
        let lists = self.entries as usize * super::pointer::LIST_BYTES_MAX;
        FIXED_PAGES * DMA_ALIGN + self.queues as usize * (rings + lists + DMA_ALIGN)
    }
}

/// Pages of a controller beside its I/O queues: the admin queue's rings and data, shadow doorbells,
/// zeroes, and what rounding takes.
const FIXED_PAGES: usize = 48;

/// What a core's queue has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Commands submitted.
    pub commands: u64,
    /// Doorbell registers written.
    pub doorbells: u64,
    /// Completions that named no command in flight, or another queue.
    pub strange_completions: u64,
    /// Commands that took too long.
    pub timeouts: u64,
    /// Commands submitted again after a reset.
    pub resubmitted: u64,
}
