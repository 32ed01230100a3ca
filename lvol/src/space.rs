//! What space a pool and its volumes take, and who is told when it runs out.
//!
//! Invariants:
//! - A pool's level follows from its extents and its thresholds alone, with hysteresis: it rises once a
//!   threshold is reached, and falls once usage is below it by more than the hysteresis.
//! - Events are states, not a queue: whoever watches is told the newest level and never too late, and a
//!   watcher that sleeps costs nothing.
//! - Full means that no more space is there for whoever has reserved none. All else is served then.

use std::rc::Rc;

use corebay_core::disk::Disk;

use crate::{
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT,
        page::{Entry, Kind, NodeId},
        record::Record,
        superblock::Thresholds,
    },
    manage::{Pool, VolumeId},
    pool::Shared,
    state::{
        State,
        map::{Way, owners_of},
    },
    sync::breathe,
};

/// Leaves that are looked at before others get their turn.
const LEAVES_AT_ONCE: u64 = 64;

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum SpaceLevel {
    /// Below all thresholds.
    #[default]
    Normal,
    /// The operator should make room.
    Warning,
    /// Soon writes will be refused.
    Critical,
    /// Writes that need space are refused.
    Full,
}

/// What a pool tells its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolEvent {
    /// The pool's level has changed.
    Space {
        /// The level now.
        level: SpaceLevel,
        /// How much of the pool is taken.
        used_percent: u8,
    },
    /// The pool's disk has failed, and nothing more is changed.
    Failed,
}

/// What a volume's namespace tells hosts of its space, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceSpace {
    /// NSZE: its size.
    pub size: u64,
    /// NCAP: blocks that can hold something at once, with the space that is there now. The size, where
    /// all of it is reserved.
    pub capacity: u64,
    /// NUSE: blocks that hold something.
    pub used: u64,
    /// Fewer may be there than its size (NSFEAT's THINP).
    pub thin: bool,
}

/// What a volume takes of its pool, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VolumeSpace {
    /// Its size.
    pub size: u64,
    /// Its blocks that hold something.
    pub used: u64,
    /// Extents that nobody else refers to: free once the volume is deleted.
    pub exclusive: u64,
    /// Extents that snapshots, clones or whatever it was made of refer to as well.
    pub shared: u64,
    /// Reserved for it, and not taken yet.
    pub reserved: u64,
}

impl State {
    /// Extents that are taken or promised, and all there are.
    fn usage(&self) -> (u64, u64) {
        let total = self.layout.extents();
        (total - self.available_soon().min(total), total)
    }

    pub fn used_percent(&self) -> u8 {
        let (used, total) = self.usage();
        u8::try_from(used * 100 / total.max(1)).unwrap_or(100)
    }

    /// The sizes of all volumes together.
    pub fn provisioned_blocks(&self) -> u64 {
        let records = self.volumes.ids().filter_map(|id| self.volumes.body(id));
        records
            .filter(|record| record.kind == Kind::Volume)
            .map(|record| record.blocks)
            .sum()
    }

    /// The level that follows after `before`.
    pub fn space_level(&self, before: SpaceLevel) -> SpaceLevel {
        use SpaceLevel::{Critical, Full, Normal, Warning};
        let (used, total) = self.usage();
        let limits = self.thresholds;
        let steps = [
            (Full, 100),
            (Critical, limits.critical_percent),
            (Warning, limits.warning_percent),
        ];
        let reached = |(level, percent): &(SpaceLevel, u8)| {
            let slack = if *level <= before {
                limits.hysteresis_percent
            } else {
                0
            };
            used * 100 >= total * u64::from(percent.saturating_sub(slack)) && used > 0
        };
        steps
            .iter()
            .find(|step| reached(step))
            .map_or(Normal, |(level, _)| *level)
    }

    /// The extents under a leaf: those of this volume alone, and all.
    fn extents_under(&self, leaf: NodeId, exclusive: bool) -> Result<(u64, u64), PoolError> {
        let (mut own, mut all) = (0, 0);
        for entry in &self.leaf(leaf)?.entries {
            if let Entry::Fragments(page) = entry {
                let exclusive = exclusive && self.nodes.number(*page) == 1;
                for owner in owners_of(self.fragments(*page)?) {
                    all += 1;
                    own += u64::from(exclusive && self.references(owner) == Some(1));
                }
            } else if let Some((extent, _)) = entry.single() {
                all += 1;
                own += u64::from(exclusive && self.references(extent) == Some(1));
            }
        }
        Ok((own, all))
    }
}

impl<D: Disk> Shared<D> {
    /// Extents were taken or given back: perhaps somebody is to be told.
    pub fn look_at_space(&self) {
        let before = self.space_level.get();
        let level = self.state.borrow().space_level(before);
        if level != before {
            self.space_level.set(level);
            self.events.notify();
        }
    }

    async fn extents_of(&self, volume: u32) -> Result<(u64, u64), PoolError> {
        let (mut own, mut all) = (0, 0);
        let (mut leaf, mut looked_at) = (0, 0);
        let mut needs = self.needs();
        while let Some(next) = self.next_leaf(volume, leaf).await? {
            let missing = self.state.borrow_mut().missing_for(volume, next)?;
            if let Some(missing) = missing {
                needs.load(missing).await?;
                continue;
            }
            needs = self.needs();
            {
                let state = self.state.borrow();
                if let Way::Leaf(id, exclusive) = state.way(volume, next)? {
                    let found = state.extents_under(id, exclusive)?;
                    (own, all) = (own + found.0, all + found.1);
                }
            }
            leaf = next + 1;
            looked_at += 1;
            if looked_at % LEAVES_AT_ONCE == 0 {
                breathe(&self.reactor).await;
            }
        }
        Ok((own, all))
    }
}

/// Waits for what a pool has to tell.
pub struct PoolWatch<D: Disk> {
    shared: Rc<Shared<D>>,
    level: SpaceLevel,
    failed: bool,
}

impl<D: Disk> PoolWatch<D> {
    /// What has changed since the last call, as soon as something has; `None` once the pool is closed.
    /// The first call tells at once what is not as it should be.
    pub async fn next(&mut self) -> Option<PoolEvent> {
        let shared = self.shared.clone();
        let event = shared.events.until(|| {
            let level = shared.space_level.get();
            if shared.failed.get() && !self.failed {
                self.failed = true;
                return Some(Some(PoolEvent::Failed));
            }
            if level != self.level {
                self.level = level;
                let used_percent = shared.state.borrow().used_percent();
                let event = PoolEvent::Space {
                    level,
                    used_percent,
                };
                return Some(Some(event));
            }
            shared.closed.get().then_some(None)
        });
        event.await
    }
}

impl<D: Disk> Pool<D> {
    /// A watch over what the pool has to tell.
    #[must_use]
    pub fn watch(&self) -> PoolWatch<D> {
        PoolWatch {
            shared: self.shared.clone(),
            level: SpaceLevel::Normal,
            failed: false,
        }
    }

    /// How full the pool is.
    #[must_use]
    pub fn space_level(&self) -> SpaceLevel {
        self.shared.space_level.get()
    }

    /// When the pool's owner is told that space runs out.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        self.shared.state.borrow().thresholds
    }

    /// Says when the pool's owner is told.
    ///
    /// # Errors
    /// [`PoolError::BadSize`] where they are not in order or above 100 %.
    pub async fn set_thresholds(&self, thresholds: &Thresholds) -> Result<(), PoolError> {
        let _control = self.control().await?;
        if !thresholds.are_sane() {
            return Err(PoolError::BadSize);
        }
        self.change(&[Record::Thresholds(*thresholds)]).await?;
        self.shared.look_at_space();
        Ok(())
    }

    /// What a volume's namespace tells hosts.
    ///
    /// # Errors
    /// Where there is no such volume.
    pub fn namespace_space(&self, id: VolumeId) -> Result<NamespaceSpace, PoolError> {
        let state = self.shared.state.borrow();
        let record = state.volume(id.0)?;
        if record.kind == Kind::Dying {
            return Err(PoolError::NotFound);
        }
        let thin = !record.thick && record.kind == Kind::Volume;
        let free = state
            .available_soon()
            .saturating_mul(BLOCKS_PER_EXTENT as u64);
        let capacity = match record.kind {
            Kind::Volume if thin => record.blocks.min(record.mapped.saturating_add(free)),
            _ => record.blocks,
        };
        Ok(NamespaceSpace {
            size: record.blocks,
            capacity,
            used: record.mapped,
            thin,
        })
    }

    /// What a volume takes of the pool. Its whole map is read, so this is for those who ask, not for
    /// lists; what changes meanwhile is counted before or after the change.
    ///
    /// # Errors
    /// Where there is no such volume, or its map cannot be read.
    pub async fn volume_space(&self, id: VolumeId) -> Result<VolumeSpace, PoolError> {
        let record = self.volume(id)?;
        let (own, all) = self.shared.extents_of(id.0).await?;
        let layout = self.shared.state.borrow().layout;
        Ok(VolumeSpace {
            size: layout.block_size.bytes_of(record.blocks),
            used: layout.block_size.bytes_of(record.mapped),
            exclusive: own * layout.extent_bytes(),
            shared: (all - own) * layout.extent_bytes(),
            reserved: record.unused_reservation() * layout.extent_bytes(),
        })
    }
}
