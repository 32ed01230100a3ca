//! The seam between the target and what surrounds it: network, disks, wall clock, and what outlasts
//! the process.

use std::{future::Future, sync::Arc};

use corebay_core::{
    disk::{Disk, DiskError},
    net::Network,
};

use crate::{feature::FeatureChange, subsystem::Subsystem};

/// What was to outlast the process could not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotKept;

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

    /// Changes what controllers of the subsystem start with from now on, also after a restart
    /// ([`Subsystem::save_feature`]). Ends once that is safe.
    ///
    /// # Errors
    /// Where it cannot be kept; nothing is changed then.
    fn save_feature(
        &self,
        subsystem: &Arc<Subsystem<Self::Medium>>,
        change: FeatureChange,
    ) -> impl Future<Output = Result<(), NotKept>>;
}
