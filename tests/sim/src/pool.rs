//! Pools beneath namespaces, as a target has them: imported on its first core in each of its lives,
//! checked, and closed at an orderly end.
//!
//! Invariants:
//! - A pool's home is the first core. Each other core has a part of it, which it opens once.
//! - Whatever ended the life before, a pool that was imported agrees with itself. Nothing beneath it
//!   fails but a drive that is pulled out, so it neither fails nor is refused otherwise.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use corebay_core::{
    buffer::BufferPool,
    disk::{DiskError, DiskInfo},
    mesh::Wakeups,
    reactor::Reactor,
    rng::Rng,
};
use corebay_lvol::{
    CheckReport, CreateOptions, Identity, Pool, PoolContext, PoolCore, PoolHandle, Volume,
    VolumeHandle, VolumeId, error::PoolError,
};
use corebay_target::namespace::Live;

use crate::{
    beneath::PoolPlan,
    store::{Base, Opener, Store},
};

/// The buffers of a pool.
pub const POOL_BYTES: usize = 1 << 20;

/// Tasks that a pool has on its home core for as long as it is open; one of them tells its disk what is
/// free, where that takes it.
pub const OWN_TASKS: usize = 4;

/// The same, and whoever runs it.
pub const TASKS_OF_POOL: usize = OWN_TASKS + 1;

/// The volume beneath the namespace.
pub const VOLUME: &str = "volume";

/// How long it is waited until nobody has a volume open any more.
const LOOK: Duration = Duration::from_millis(1);

/// A pool that was imported, and the volume of its namespace.
pub struct PoolStore {
    handle: PoolHandle,
    volume: VolumeHandle,
    /// What it lies on.
    pub base: Store,
    /// What hosts are told of the volume.
    pub live: Arc<Live>,
    /// Nothing beneath it damages what is written.
    sound: bool,
}

/// One core's part of a pool.
pub struct OpenPool {
    store: Arc<PoolStore>,
    part: Rc<PoolCore<Base>>,
    /// On the first core.
    home: Option<Pool<Base>>,
}

impl PoolStore {
    /// Brings what hosts are told of the volume up to date.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn refresh(&self, pool: &Pool<Base>, id: VolumeId) -> Result<(), PoolError> {
        refresh(&self.live, pool, id)
    }

    /// What the disks over its volume are.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        self.volume.info()
    }
}

impl Opener {
    /// Opens this core's way to the volume of a pool.
    ///
    /// # Errors
    /// Where that cannot be.
    pub fn open_volume(&self, store: &Arc<PoolStore>) -> Result<Volume<Base>, DiskError> {
        let mut pools = self.pools.borrow_mut();
        let known = pools.iter().find(|open| Arc::ptr_eq(&open.store, store));
        let part = match known {
            Some(open) => open.part.clone(),
            None => {
                let disk = self.open_base(&store.base)?;
                let part = PoolCore::open(&store.handle, &self.reactor, disk);
                let part = part.map_err(|_| DiskError::Gone)?;
                pools.push(OpenPool {
                    store: store.clone(),
                    part: part.clone(),
                    home: None,
                });
                part
            }
        };
        drop(pools);
        Volume::open(&part, &store.volume).map_err(|_| DiskError::Gone)
    }

    /// Imports the pool that lies on a store, and checks it. This core is its home.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub async fn import(
        &self,
        (floor, sound): (usize, bool),
        base: &Store,
        cores: usize,
    ) -> Result<Arc<PoolStore>, String> {
        let told = |error: PoolError| error.to_string();
        let disk = self.open_pool_disk(base);
        let disk = disk.map_err(|error| error.to_string())?;
        let buffers = self.scratch[floor].pool.as_ref();
        let context = context(&self.reactor, buffers.expect("a pool has some"));
        let pool = Pool::import(&context, disk).await.map_err(told)?;
        let report = pool.check().await.map_err(told)?;
        if is_bad(&report, sound) {
            return Err(format!("after its import: {report:?}"));
        }
        let handle = pool.share(cores, Wakeups::None).map_err(told)?;
        let volume = pool.find(VOLUME).ok_or("its volume is not there")?;
        let live = Arc::new(Live::default());
        refresh(&live, &pool, volume).map_err(told)?;
        let store = Arc::new(PoolStore {
            handle,
            volume: pool.volume_handle(volume).map_err(told)?,
            base: base.clone(),
            live,
            sound,
        });
        self.pools.borrow_mut().push(OpenPool {
            store: store.clone(),
            part: pool.core().clone(),
            home: Some(pool),
        });
        Ok(store)
    }

    /// Closes the pools whose home this core is, once nobody has a volume of theirs open.
    ///
    /// # Errors
    /// Says what is wrong with one.
    pub async fn close_pools(&self) -> Result<(), String> {
        for (pool, store) in self.home_pools() {
            let closed = loop {
                match pool.close().await {
                    Err(PoolError::Busy) => self.reactor.sleep(LOOK).await,
                    ended => break ended,
                }
            };
            if !store.base.has_failed_drive() {
                closed.map_err(|error| format!("a pool is not closed: {error}"))?;
            }
        }
        Ok(())
    }

    /// True where a pool takes no change any more.
    #[must_use]
    pub fn has_failed_pool(&self) -> bool {
        let pools = self.home_pools();
        pools.iter().any(|(pool, _)| pool.status().failed)
    }

    /// A pool whose home this core is.
    #[must_use]
    pub fn home_pool(&self, store: &Arc<PoolStore>) -> Option<Pool<Base>> {
        let pools = self.pools.borrow();
        let open = pools.iter().find(|open| Arc::ptr_eq(&open.store, store));
        open?.home.clone()
    }

    /// With what they lie on.
    fn home_pools(&self) -> Vec<(Pool<Base>, Arc<PoolStore>)> {
        let pools = self.pools.borrow();
        let home = |open: &OpenPool| Some((open.home.clone()?, open.store.clone()));
        pools.iter().filter_map(home).collect()
    }

    /// Checks the pools whose home this core is.
    ///
    /// # Errors
    /// Says what is wrong with one.
    pub async fn check_pools(&self) -> Result<(), String> {
        for (pool, store) in self.home_pools() {
            let report = pool.check().await.map_err(|error| error.to_string())?;
            if is_bad(&report, store.sound) {
                return Err(format!("at the end: {report:?}"));
            }
        }
        Ok(())
    }
}

/// A copy may be damaged where something beneath the pool damages it, and nowhere else.
fn is_bad(report: &CheckReport, sound: bool) -> bool {
    let damaged = sound && report.damaged_copies != 0;
    !report.problems.is_empty() || report.more != 0 || damaged
}

/// Makes a pool with its volume on something blank.
///
/// # Errors
/// Says why that is not possible.
pub async fn create(
    opener: &Opener,
    buffers: &BufferPool,
    base: &Store,
    plan: &PoolPlan,
    mut rng: Rng,
) -> Result<(), String> {
    let told = |error: PoolError| error.to_string();
    let disk = opener.open_pool_disk(base);
    let disk = disk.map_err(|error| error.to_string())?;
    let options = CreateOptions {
        name: "sim".into(),
        uuid: uuid(&mut rng),
        journal_bytes: None,
    };
    let context = context(&opener.reactor, buffers);
    let pool = Pool::<Base>::create(&context, disk, &options).await;
    let pool = pool.map_err(told)?;
    let identity = Identity {
        name: VOLUME.into(),
        uuid: uuid(&mut rng),
    };
    let made = pool.create_volume(&identity, plan.blocks, plan.thick).await;
    made.map_err(told)?;
    pool.close().await.map_err(told)
}

fn refresh(live: &Live, pool: &Pool<Base>, id: VolumeId) -> Result<(), PoolError> {
    let space = pool.namespace_space(id)?;
    live.blocks.store(space.size, Ordering::Relaxed);
    live.capacity.store(space.capacity, Ordering::Relaxed);
    live.used.store(space.used, Ordering::Relaxed);
    live.thin.store(space.thin, Ordering::Relaxed);
    Ok(())
}

fn context(reactor: &Reactor, buffers: &BufferPool) -> PoolContext {
    PoolContext {
        reactor: reactor.clone(),
        buffers: buffers.clone(),
    }
}

/// A UUID of its own.
pub fn uuid(rng: &mut Rng) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
    uuid[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
    uuid
}
