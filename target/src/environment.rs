//! The seam between the target and what surrounds it: network, disks, wall clock, randomness.

use corebay_core::{
    disk::{Disk, DiskError},
    net::Network,
};

/// One core's surroundings. The binary makes one per core from the machine, a simulator from its
/// seed.
pub trait Environment: 'static {
    /// The network.
    type Network: Network;
    /// A core's way to a disk.
    type Disk: Disk;
    /// What a disk is opened from, by every core for itself.
    type Medium: Clone + Send + Sync + 'static;

    /// The core's network.
    fn network(&self) -> &Self::Network;

    /// Opens this core's way to `medium`.
    ///
    /// # Errors
    /// Where the medium cannot be used by this core.
    fn open(&self, medium: &Self::Medium) -> Result<Self::Disk, DiskError>;

    /// Milliseconds since 1970-01-01 00:00 UTC, for timestamps that hosts ask for.
    fn wall_clock_ms(&self) -> u64;
}
