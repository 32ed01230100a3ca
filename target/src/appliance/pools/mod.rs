//! The appliance's pools: opened by their home core, changed there by what the control socket orders,
//! and exported by every core.
//!
//! Invariants:
//! - All pools have the first core as their home. What changes a pool, its volumes or exports runs there as
//!   a task, one at a time for each pool; the main thread passes orders on and waits for none of them.
//! - A volume's export is kept in its pool before a host sees it, and taken from hosts before the pool
//!   forgets it; so a start finds what hosts have seen.
//! - Nothing that a disk holds is overwritten unasked: a pool is made on a blank disk alone.
//! - All memory of pools comes out of the arena at the start, so there may be only so many of them.

mod describe;
mod exporting;
mod exports;
mod gateway;
mod home;
mod offline;
mod orders;
mod refusals;
mod reopen;
mod starting;
mod streams;
mod turns;
#[cfg(test)]
mod turns_tests;
mod volumes;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use corebay_conf::Appliance;
use corebay_core::{
    arena::{Arena, Region},
    buffer::BufferPool,
};
use corebay_lvol::VolumeHandle;
use corebay_target::{
    namespace::{Live, NamespaceSpec},
    subsystem::Subsystem,
};

use super::environment::Medium;

pub use exports::subsystem_for;
pub use gateway::{
    AtStart, floor_returned, floors_lost, floors_returned, open, openings, order, reload,
};
pub use home::{Home, KeptExport, Opening};
pub use offline::check_offline;
use orders::Order;

/// What a pool takes for its books.
const POOL_MEMORY_BYTES: usize = 1 << 20;

/// Pools that may be added while the process runs, where there is memory for them.
const FURTHER_POOLS: usize = 4;

/// How long the last commands of hosts on a volume that goes are waited for, each time.
const BUSY_STEP: std::time::Duration = std::time::Duration::from_millis(10);

/// Tasks of a pool that may wait for its memory.
const MEMORY_WAITERS: usize = 512;

/// A volume that is exported.
pub struct VolumeMedium {
    /// The pool's identity.
    pub pool: [u8; 16],
    /// The names of the pool and the volume when it was attached.
    pub name: String,
    /// What every core opens it by.
    pub handle: VolumeHandle,
    /// What may change of it.
    pub live: Arc<Live>,
    /// The pool says how it is exported; else the configuration does.
    pub by_pool: bool,
}

/// What all threads know of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPool {
    /// Its name.
    pub name: String,
    /// The disk or array that it lies on.
    pub on: String,
    /// Why it could not be opened, if so.
    pub problem: Option<String>,
    /// It could not be opened yet, and still may be.
    pub is_opening: bool,
    /// It was added while the process ran, and is found again by the state file.
    pub added: bool,
}

/// What all threads know of the pools. Written by the home core, and claims by the main thread.
#[derive(Clone, Default)]
pub struct PoolBook {
    pools: Arc<Mutex<Vec<KnownPool>>>,
    /// Disks that orders under way may put a pool on, and what these call it.
    claims: Arc<Mutex<Vec<(String, String)>>>,
}

/// For as long as this is there, nobody makes an array of a disk.
pub struct DiskClaim {
    book: PoolBook,
    disk: String,
}

impl Drop for DiskClaim {
    fn drop(&mut self) {
        let mut claims = self.book.claims();
        if let Some(at) = claims.iter().position(|(disk, _)| *disk == self.disk) {
            claims.remove(at);
        }
    }
}

impl PoolBook {
    /// The pools.
    pub fn pools(&self) -> MutexGuard<'_, Vec<KnownPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool that lies on a disk or an array.
    fn known_on(&self, disk: &str) -> Option<String> {
        let pools = self.pools();
        let known = pools.iter().find(|pool| pool.on == disk);
        known.map(|pool| pool.name.clone())
    }

    /// The same, also of a pool that is about to.
    pub fn on(&self, disk: &str) -> Option<String> {
        self.known_on(disk).or_else(|| {
            let claims = self.claims();
            let claimed = claims.iter().find(|(claimed, _)| claimed == disk);
            claimed.map(|(_, pool)| pool.clone())
        })
    }

    /// An order is about to make or open a pool on a disk.
    fn claim(&self, disk: &str, pool: &str) -> DiskClaim {
        self.claims().push((disk.to_owned(), pool.to_owned()));
        let (book, disk) = (self.clone(), disk.to_owned());
        DiskClaim { book, disk }
    }

    /// The pools that were added while the process ran, by what they lie on.
    fn added(&self) -> BTreeMap<String, String> {
        let pools = self.pools();
        let added = pools.iter().filter(|pool| pool.added);
        added
            .map(|pool| (pool.on.clone(), pool.name.clone()))
            .collect()
    }
}

/// What pools take of the arena.
pub struct PoolMemory(Vec<Region>);

impl PoolMemory {
    /// Takes it: for what is configured, what was added before, and for some more.
    pub fn take(appliance: &Appliance, added: usize, arena: &mut Arena) -> Self {
        let further = (arena.remaining() >> 26).min(FURTHER_POOLS);
        let count = appliance.pools().len() + added + further;
        Self(
            (0..count)
                .map_while(|_| arena.take(POOL_MEMORY_BYTES))
                .collect(),
        )
    }

    fn into_pools(self) -> Vec<BufferPool> {
        let regions = self.0.into_iter();
        regions
            .map(|region| BufferPool::new(region, MEMORY_WAITERS))
            .collect()
    }
}

/// A volume that a namespace of the configuration names.
#[derive(Clone)]
pub struct NamedVolume {
    /// The subsystem.
    pub subsystem: Arc<Subsystem<Medium>>,
    /// The namespace, which is what the volume is once it is there.
    pub namespace: corebay_conf::appliance::Namespace,
    /// The pool's name.
    pub pool: String,
    /// The volume's name.
    pub volume: String,
}

/// The volumes that the configuration names, of subsystems that there are.
pub fn named_volumes(
    appliance: &Appliance,
    registry: &corebay_target::subsystem::Registry<Medium>,
) -> Vec<NamedVolume> {
    let mut named = Vec::new();
    for configured in appliance.subsystems() {
        let Some(subsystem) = registry.find(&configured.nqn) else {
            continue;
        };
        for namespace in &configured.namespaces {
            let corebay_conf::appliance::Store::Volume(volume) = namespace.store else {
                continue;
            };
            let (pool, volume) = appliance.volume(volume).parts();
            named.push(NamedVolume {
                subsystem: subsystem.clone(),
                namespace: namespace.clone(),
                pool: pool.to_owned(),
                volume: volume.to_owned(),
            });
        }
    }
    named
}

/// True where a pool, and not the configuration, says that this namespace is exported.
pub fn is_by_pool(spec: &NamespaceSpec<Medium>) -> bool {
    matches!(&spec.medium, Medium::Volume(volume) if volume.by_pool)
}
