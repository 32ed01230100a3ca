//! What volumes, snapshots and clones come from, and how a clone gets rid of that: inflating copies all
//! that it shares into extents of its own; promoting makes it what its origin was to their common
//! snapshots.
//!
//! Invariants:
//! - Where a volume comes from is for those who look at it: any of them can be deleted at any time.
//!   Numbers of volumes are used again, so the serial tells whether the origin is still the same.
//! - Copying is like a host's first writes of what is there already: in its turn among others, with the
//!   data durable before the record. A crash, or an end halfway, leaves the content as it is; what was
//!   copied is not copied again.
//! - Promoting moves the older snapshots first, one record each, and the last one together with the
//!   volumes: repeating it after a crash finishes it.

use std::ops::Range;

use corebay_core::{
    disk::{Disk, Durability},
    units::Lba,
};

use crate::{
    device::TRANSFER_BYTES,
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT, Extent,
        page::{Kind, VolumeRecord},
        record::Record,
    },
    manage::{Pool, VolumeId},
    pool::Shared,
    slow::Candidate,
    state::map::{Target, leaf_place},
    sync::breathe,
    volume::Volume,
};

const PER_EXTENT: u64 = BLOCKS_PER_EXTENT as u64;

/// Extents that are looked at before others get their turn.
const EXTENTS_AT_ONCE: u64 = 64;

/// How far inflating is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflateProgress {
    /// Blocks of the volume before which nothing is shared any more.
    pub position: u64,
    /// All its blocks.
    pub blocks: u64,
    /// Blocks that were copied.
    pub copied: u64,
}

/// Copies what a volume shares, a part at a time.
pub struct Inflate<D: Disk> {
    pool: Pool<D>,
    id: VolumeId,
    volume: Volume<D>,
    position: u64,
    copied: u64,
}

impl<D: Disk> Pool<D> {
    /// What a snapshot was taken of, or a clone was made of, if that is still there.
    #[must_use]
    pub fn origin_of(&self, id: VolumeId) -> Option<VolumeId> {
        let record = self.volume(id).ok()?;
        let origin = VolumeId(record.origin);
        let same = |origin: &VolumeRecord| origin.serial == record.origin_serial;
        let found = self.volume(origin).ok().filter(same);
        found.filter(|_| origin != id).map(|_| origin)
    }

    /// The snapshots of a volume, from the oldest on.
    #[must_use]
    pub fn snapshots_of(&self, id: VolumeId) -> Vec<(VolumeId, VolumeRecord)> {
        let state = self.shared.state.borrow();
        let of_it = |other: u32| {
            let record = state.volumes.body(other)?;
            let is_snapshot = record.kind == Kind::Snapshot && other != id.0;
            let same = state.known(id.0).ok()?.serial == record.origin_serial;
            (is_snapshot && same).then(|| (VolumeId(other), record.clone()))
        };
        let mut found: Vec<_> = state.volumes.of_origin(id.0).filter_map(of_it).collect();
        found.sort_by_key(|(_, record)| record.serial);
        found
    }

    /// Begins to copy all that a volume shares with others into extents of its own.
    ///
    /// # Errors
    /// Where it is a snapshot, or is being received.
    pub fn inflate(&self, id: VolumeId) -> Result<Inflate<D>, PoolError> {
        if self.whole_volume(id)?.kind != Kind::Volume {
            return Err(PoolError::WrongKind);
        }
        Ok(Inflate {
            pool: self.clone(),
            id,
            volume: self.open(id)?,
            position: 0,
            copied: 0,
        })
    }

    /// Makes a clone what its origin was: it takes over the snapshot that it was made of and all older
    /// ones, and the volume that they were taken of becomes a clone of that snapshot.
    ///
    /// # Errors
    /// [`PoolError::WrongKind`] where it is not the clone of a snapshot that is still there.
    pub async fn promote(&self, id: VolumeId) -> Result<(), PoolError> {
        let _control = self.control().await?;
        self.volume(id)?;
        let snapshot = self.origin_of(id).ok_or(PoolError::WrongKind)?;
        let base = self.volume(snapshot)?;
        let former = self.origin_of(snapshot).filter(|former| *former != id);
        let former = former.ok_or(PoolError::WrongKind)?;
        if base.kind != Kind::Snapshot || self.volume(id)?.kind != Kind::Volume {
            return Err(PoolError::WrongKind);
        }
        let origin = |volume: VolumeId, origin: VolumeId| Record::Origin {
            volume: volume.0,
            origin: origin.0,
        };
        for (older, record) in self.snapshots_of(former) {
            if record.serial < base.serial {
                self.change(&[origin(older, id)]).await?;
            }
        }
        // Where the former one came from, the promoted one comes from now.
        let further = self.origin_of(former).unwrap_or(id);
        self.change(&[
            origin(id, further),
            origin(snapshot, id),
            origin(former, snapshot),
        ])
        .await
    }
}

impl<D: Disk> Inflate<D> {
    /// Copies the next part; `None` once nothing is shared, and the volume comes from nowhere.
    ///
    /// # Errors
    /// [`PoolError::NoSpace`] where the pool is full: what was copied stays so.
    pub async fn step(&mut self) -> Result<Option<InflateProgress>, PoolError> {
        let shared = self.pool.shared.clone();
        let mut looked_at = 0;
        loop {
            let blocks = self.pool.volume(self.id)?.blocks;
            let (leaf, _) = leaf_place(self.position / PER_EXTENT);
            let next = shared.next_leaf(self.id.0, leaf).await?;
            let first = next.map(|leaf| leaf * crate::format::page::LEAF_EXTENTS as u64);
            let first = first.map(|index| self.position.max(index * PER_EXTENT));
            let Some(at) = first.filter(|at| *at < blocks) else {
                return self.end().await;
            };
            self.position = at;
            let index = at / PER_EXTENT;
            let copied = self.copy_one(&shared, index).await?;
            if copied > 0 {
                self.copied += copied;
                return Ok(Some(InflateProgress {
                    position: self.position,
                    blocks,
                    copied: self.copied,
                }));
            }
            self.position = (index + 1) * PER_EXTENT;
            looked_at += 1;
            if looked_at % EXTENTS_AT_ONCE == 0 {
                breathe(&shared.reactor).await;
            }
        }
    }

    async fn end(&mut self) -> Result<Option<InflateProgress>, PoolError> {
        let _control = self.pool.control().await?;
        let (volume, origin) = (self.id.0, self.id.0);
        if self.pool.volume(self.id)?.origin != origin {
            self.pool
                .change(&[Record::Origin { volume, origin }])
                .await?;
        }
        // Whoever shared with it may be alone with that now.
        let concerned = self.pool.shared.state.borrow().to_recount();
        self.pool.count_soon(concerned);
        Ok(None)
    }

    /// Copies the first shared blocks of an extent; how many: 0 where there are none.
    async fn copy_one(
        &self,
        shared: &std::rc::Rc<Shared<D>>,
        index: u64,
    ) -> Result<u64, PoolError> {
        loop {
            // The volume keeps its size from here on.
            let _writing = self.volume.writing().await;
            let blocks = self.pool.volume(self.id)?.blocks;
            let Some(range) = shared.shared_range(self.id.0, index, blocks).await? else {
                return Ok(0);
            };
            let write = shared.begin_write(self.id.0, range.clone()).await?;
            // Somebody may have written or cleared it before this one's turn came.
            let same = shared.shared_range(self.id.0, index, blocks).await;
            let copied = match same {
                Ok(now) if now.as_ref() == Some(&range) => {
                    let target = write.extents().first().copied();
                    let target = target.expect("a write within an extent has one");
                    shared.copy_blocks(self.id.0, range.clone(), target).await
                }
                Ok(_) => Ok(false),
                Err(error) => Err(error),
            };
            let done = matches!(copied, Ok(true));
            let shown = shared.finish_write(write, done).await;
            if copied? {
                shown?;
                return Ok(range.end - range.start);
            }
        }
    }
}

impl<D: Disk> Shared<D> {
    /// The first blocks of a volume's extent that hold something, side by side, of which others have
    /// some too.
    async fn shared_range(
        &self,
        volume: u32,
        index: u64,
        blocks: u64,
    ) -> Result<Option<Range<u64>>, PoolError> {
        self.note_own(volume, index).await?;
        let end = blocks.min((index + 1) * PER_EXTENT);
        let mut range = index * PER_EXTENT..index * PER_EXTENT;
        let mut shared = false;
        while range.end < end {
            let run = self.run(volume, range.end, end).await?;
            if run.extent.is_some() {
                shared |= !run.own;
                range.end += run.blocks as u64;
            } else if shared {
                break;
            } else {
                let next = range.end + run.blocks as u64;
                range = next..next;
            }
            if !shared && run.own {
                // What is its own alone needs no copy, and begins nothing.
                range.start = range.end;
            }
        }
        Ok(shared.then_some(range))
    }

    /// Notes which blocks of a volume's extent are its own; waits for who may be looking at what others had
    /// too. Not while writes are on their way to another extent, as others would then write in place
    /// what is being copied.
    async fn note_own(&self, volume: u32, index: u64) -> Result<(), PoolError> {
        let mut needs = self.needs();
        let mut left: Option<Candidate> = None;
        loop {
            let leaf = leaf_place(index).0;
            let missing = self.state.borrow_mut().missing_for(volume, leaf)?;
            if let Some(missing) = missing {
                needs.load(missing).await?;
                continue;
            }
            if self.is_staged(volume, index) {
                return Ok(());
            }
            let target = {
                let state = &mut *self.state.borrow_mut();
                let epoch = state.epoch(volume);
                let is_left = |extent| self.is_left() || left == Some((epoch, extent));
                let target = state.own_target(volume, index, is_left)?;
                (epoch, target)
            };
            let (epoch, Target::Left(extent)) = target else {
                return Ok(());
            };
            self.grace().await;
            if let Some(error) = self.stopped() {
                return Err(error);
            }
            left = Some((epoch, extent));
        }
    }

    /// Copies the blocks of a range that are not the volume's own.
    async fn copy_blocks(
        &self,
        volume: u32,
        range: Range<u64>,
        target: Extent,
    ) -> Result<bool, PoolError> {
        let layout = self.state.borrow().layout;
        let most = layout.block_size.blocks_in(TRANSFER_BYTES as u64);
        let place = |extent: Extent, block: u64| -> Lba {
            let within = usize::try_from(block % PER_EXTENT).expect("within an extent");
            layout.block_of(extent, within)
        };
        let mut block = range.start;
        while block < range.end {
            let run = self.run(volume, block, range.end.min(block + most)).await?;
            let count = run.blocks as u64;
            if let (Some(from), false) = (run.extent, run.own) {
                let bytes = layout.block_size.bytes_of(count);
                let bytes = usize::try_from(bytes).expect("at most TRANSFER_BYTES");
                let buffer = self.device.buffer(bytes).await;
                let buffers = std::slice::from_ref(&buffer);
                let disk = &self.device.disk;
                disk.read(place(from, block), buffers).await?;
                disk.write(place(target, block), buffers, Durability::Cached)
                    .await?;
            }
            block += count;
        }
        Ok(true)
    }
}
