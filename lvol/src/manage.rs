//! What is done to pools and volumes: making, sharing, resizing, deleting.
//!
//! Invariants:
//! - One operation at a time checks and changes; each is done when its record has taken effect.
//! - What shares or replaces a volume's content does so while none of its writes is under way, so
//!   that a snapshot is a point in time. Writes wait meanwhile; they are not refused.
//! - A deleted volume's name is free at once; its space follows in the background, and goes on after
//!   a restart.

use std::{cell::Cell, ops::Range, rc::Rc, sync::atomic::Ordering};

use corebay_core::{
    disk::Disk,
    mesh::Wakeups,
    sync::{Permit, Permits},
};

use crate::{
    across::{self, PoolCore, PoolHandle, VolumeHandle},
    error::PoolError,
    format::{
        BATCH_BYTES_MAX, BLOCKS_PER_EXTENT, JournalPlace, NAME_BYTES_MAX, VOLUME_BLOCKS_MAX,
        VOLUMES_MAX,
        page::{ATTRIBUTES_MAX, Kind, LEAF_EXTENTS, VolumeRecord},
        record::Record,
    },
    pool::{Frozen, PoolContext, Shared},
    publish::SlotLimits,
    space::SpaceLevel,
    volume::Volume,
};

/// Tasks that may wait to change a pool.
const WAITERS: usize = 64;

/// What stands between a volume's name and its snapshot's own.
const SNAPSHOT_SIGN: char = '@';

/// Names that are changed by one batch of the journal, whatever their length.
const RENAMED_AT_ONCE: usize = 128;

const _: () = assert!(RENAMED_AT_ONCE * 2 * NAME_BYTES_MAX <= BATCH_BYTES_MAX);

/// Names a volume or a snapshot within its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

/// What a new volume, snapshot or clone is called.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its UUID, drawn by the caller.
    pub uuid: [u8; 16],
}

/// How a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Bytes of all extents.
    pub total_bytes: u64,
    /// Bytes of extents that nothing refers to.
    pub free_bytes: u64,
    /// Bytes that volumes may still take.
    pub available_bytes: u64,
    /// Bytes that are reserved for thick volumes and not taken yet.
    pub reserved_bytes: u64,
    /// Bytes of all volumes' sizes, without snapshots: more than the pool has where it is overcommitted.
    pub provisioned_bytes: u64,
    /// How full the pool is.
    pub level: SpaceLevel,
    /// The same in percent: all that is taken, reserved or kept for metadata.
    pub used_percent: u8,
    /// The journal lies in the mirrored zone beside the disk.
    pub journal_in_zone: bool,
    /// Bytes that the journal took since the pool was opened, of each copy.
    pub journal_bytes: u64,
    /// Bytes of metadata that checkpoints wrote since then, of each copy.
    pub metadata_bytes: u64,
    /// Bytes of free extents that the disk was told of since then.
    pub trimmed_bytes: u64,
    /// Damaged copies of metadata that were mended.
    pub repairs: u64,
    /// Pages of metadata of which neither copy could be read: some blocks cannot be found.
    pub lost_pages: u64,
    /// The newest checkpoint.
    pub generation: u64,
    /// The disk has failed, and nothing more is changed.
    pub failed: bool,
}

/// An open pool, on its home core; clones name the same one.
pub struct Pool<D: Disk> {
    pub(crate) shared: Rc<Shared<D>>,
    core: Rc<PoolCore<D>>,
    control: Rc<Permits>,
    /// It is being closed.
    pub(crate) leaving: Rc<Cell<bool>>,
}

impl<D: Disk> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            core: self.core.clone(),
            control: self.control.clone(),
            leaving: self.leaving.clone(),
        }
    }
}

impl<D: Disk> Pool<D> {
    /// Starts the pool's tasks.
    pub(crate) fn start(context: &PoolContext, shared: Rc<Shared<D>>) -> Result<Self, PoolError> {
        let pool = Self {
            core: PoolCore::home(&shared),
            shared,
            control: Permits::new(1, WAITERS),
            leaving: Rc::default(),
        };
        pool.shared.look_at_space();
        let (writer, maker, dropper) = (pool.shared.clone(), pool.shared.clone(), pool.clone());
        let teller = pool.shared.clone();
        // On the heap, once for each pool, so that a task's slot bounds nothing here.
        let tasks: [std::pin::Pin<Box<dyn Future<Output = ()>>>; 4] = [
            Box::pin(async move { writer.write_batches().await }),
            Box::pin(async move { maker.make_checkpoints().await }),
            Box::pin(async move { dropper.drop_dying().await }),
            Box::pin(async move { teller.tell_what_is_free().await }),
        ];
        for task in tasks {
            if context.reactor.spawn(task).is_err() {
                pool.shared.fail();
                return Err(PoolError::TooMany);
            }
        }
        Ok(pool)
    }

    pub(crate) async fn control(&self) -> Result<Permit, PoolError> {
        let permit = self.control.acquire(1).await;
        match self.shared.stopped() {
            Some(error) => Err(error),
            None => Ok(permit),
        }
    }

    pub(crate) async fn change(&self, records: &[Record]) -> Result<(), PoolError> {
        for record in records {
            self.shared.prepare(record).await?;
        }
        let ticket = self.shared.append(|| records.iter().cloned()).await?;
        self.shared.committed(ticket).await
    }

    /// The pool's identity.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.shared.state.borrow().uuid
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.shared.state.borrow().name.clone()
    }

    /// How the pool stands.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let state = self.shared.state.borrow();
        let extent = state.layout.extent_bytes();
        PoolStatus {
            total_bytes: state.layout.extents() * extent,
            free_bytes: state.extents.unreferenced * extent,
            available_bytes: state.available_soon() * extent,
            reserved_bytes: state.extents.reserved * extent,
            provisioned_bytes: state.layout.block_size.bytes_of(state.provisioned_blocks()),
            level: self.shared.space_level.get(),
            used_percent: state.used_percent(),
            journal_in_zone: state.layout.journal == JournalPlace::Zone,
            journal_bytes: self.shared.journal.bytes_written.get(),
            metadata_bytes: self.shared.metadata_written.get(),
            trimmed_bytes: self.shared.trims.told_bytes.get(),
            repairs: self.shared.device.repairs.get(),
            lost_pages: self.shared.lost.borrow().len() as u64,
            generation: self.shared.generation.get(),
            failed: self.shared.failed.get(),
        }
    }

    /// Whether it never had a volume.
    #[must_use]
    pub fn is_pristine(&self) -> bool {
        let state = self.shared.state.borrow();
        state.serials == 0 && state.volumes.ids().next().is_none()
    }

    /// All volumes and snapshots, those that are being deleted too.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeId, VolumeRecord)> {
        let state = self.shared.state.borrow();
        let ids: Vec<u32> = state.volumes.ids().collect();
        ids.into_iter()
            .filter_map(|id| Some((VolumeId(id), state.volumes.body(id)?.clone())))
            .collect()
    }

    /// The volume or snapshot of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<VolumeId> {
        self.shared.state.borrow().volumes.named(name).map(VolumeId)
    }

    /// A volume as it stands.
    ///
    /// # Errors
    /// Where there is none.
    pub fn volume(&self, id: VolumeId) -> Result<VolumeRecord, PoolError> {
        let state = self.shared.state.borrow();
        let record = state.volume(id.0)?;
        match record.kind {
            Kind::Dying => Err(PoolError::NotFound),
            _ => Ok(record.clone()),
        }
    }

    /// What `look` says of a volume, without a copy of it.
    ///
    /// # Errors
    /// Where there is none.
    pub fn with_volume<R>(
        &self,
        id: VolumeId,
        look: impl FnOnce(&VolumeRecord) -> R,
    ) -> Result<R, PoolError> {
        let state = self.shared.state.borrow();
        let record = state.volume(id.0)?;
        match record.kind {
            Kind::Dying => Err(PoolError::NotFound),
            _ => Ok(look(record)),
        }
    }

    /// A volume or snapshot that is whole.
    pub(crate) fn whole_volume(&self, id: VolumeId) -> Result<VolumeRecord, PoolError> {
        let record = self.volume(id)?;
        match record.receiving {
            Some(_) => Err(PoolError::Busy),
            None => Ok(record),
        }
    }

    pub(crate) fn check_identity(&self, identity: &Identity) -> Result<(), PoolError> {
        self.check_name(&identity.name)
    }

    fn check_name(&self, name: &str) -> Result<(), PoolError> {
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
            return Err(PoolError::BadName);
        }
        match self.find(name) {
            Some(_) => Err(PoolError::Exists),
            None => Ok(()),
        }
    }

    pub(crate) fn free_id(&self, beyond: u32) -> Result<u32, PoolError> {
        let id = self.shared.state.borrow().volumes.free_after(beyond);
        if id < VOLUMES_MAX {
            Ok(id)
        } else {
            Err(PoolError::TooMany)
        }
    }

    /// Keeps so many more extents for what is about to reserve them, until its record has taken effect or
    /// the promise is dropped. For who has the control.
    pub(crate) fn promise(&self, extents: u64) -> Result<Promise<'_, D>, PoolError> {
        let mut state = self.shared.state.borrow_mut();
        if state.available_soon() < extents {
            return Err(PoolError::NoSpace);
        }
        state.extents.promised = extents;
        Ok(Promise(&self.shared))
    }

    /// Makes an empty volume.
    ///
    /// # Errors
    /// Where the name is taken, or the space for a thick volume is not there.
    pub async fn create_volume(
        &self,
        identity: &Identity,
        blocks: u64,
        thick: bool,
    ) -> Result<VolumeId, PoolError> {
        let _control = self.control().await?;
        self.check_identity(identity)?;
        if !(1..=VOLUME_BLOCKS_MAX).contains(&blocks) {
            return Err(PoolError::BadSize);
        }
        let reserved = if thick {
            blocks.div_ceil(BLOCKS_PER_EXTENT as u64)
        } else {
            0
        };
        let _promise = self.promise(reserved)?;
        let volume = self.free_id(0)?;
        let (uuid, name) = (identity.uuid, identity.name.clone());
        self.change(&[Record::Create {
            volume,
            blocks,
            thick,
            uuid,
            name,
        }])
        .await?;
        Ok(VolumeId(volume))
    }

    pub(crate) async fn freeze(&self, ids: impl IntoIterator<Item = u32>) -> Vec<Frozen> {
        let mut ids: Vec<u32> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        let mut frozen = Vec::new();
        for id in ids {
            frozen.push(self.shared.freeze(id).await);
        }
        frozen
    }

    /// The same for volumes whose blocks are to stay as they are. Where a write was given up amid its way,
    /// nobody knows when the disk writes no more to what would be shared.
    ///
    /// The space that they reserve once they share all that they have is kept only then: what is written
    /// until they are frozen takes some, too.
    async fn freeze_to_share(
        &self,
        ids: impl IntoIterator<Item = u32>,
    ) -> Result<(Vec<Frozen>, Promise<'_, D>), PoolError> {
        let frozen = self.freeze(ids).await;
        if frozen.iter().any(Frozen::is_forsaken) {
            return Err(PoolError::Busy);
        }
        let mut growth = 0;
        for volume in &frozen {
            let grows = |record: &VolumeRecord| record.growth_when_shared(record.blocks);
            growth += self.with_volume(VolumeId(volume.id()), grows)?;
        }
        Ok((frozen, self.promise(growth)?))
    }

    /// Takes snapshots of several volumes at one point in time.
    ///
    /// # Errors
    /// Where a name is taken, a source is not there, or a thick volume's space could not be kept.
    pub async fn snapshot(&self, of: &[(VolumeId, Identity)]) -> Result<Vec<VolumeId>, PoolError> {
        let _control = self.control().await?;
        let mut records = Vec::new();
        let mut last = 0;
        for (number, (source, identity)) in of.iter().enumerate() {
            self.whole_volume(*source)?;
            self.check_identity(identity)?;
            if of[..number]
                .iter()
                .any(|(_, other)| other.name == identity.name)
            {
                return Err(PoolError::Exists);
            }
            last = self.free_id(last)?;
            records.push(Record::Share {
                volume: last,
                source: source.0,
                snapshot: true,
                uuid: identity.uuid,
                name: identity.name.clone(),
            });
        }
        let _kept = self.freeze_to_share(of.iter().map(|(id, _)| id.0)).await?;
        self.change(&records).await?;
        let made = records.iter().filter_map(|record| match record {
            Record::Share { volume, .. } => Some(VolumeId(*volume)),
            _ => None,
        });
        Ok(made.collect())
    }

    /// Makes a volume that begins with the content of a snapshot, or of another volume as it is now.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    pub async fn clone_volume(
        &self,
        source: VolumeId,
        identity: &Identity,
    ) -> Result<VolumeId, PoolError> {
        let _control = self.control().await?;
        self.whole_volume(source)?;
        self.check_identity(identity)?;
        let volume = self.free_id(0)?;
        let _kept = self.freeze_to_share([source.0]).await?;
        self.change(&[Record::Share {
            volume,
            source: source.0,
            snapshot: false,
            uuid: identity.uuid,
            name: identity.name.clone(),
        }])
        .await?;
        Ok(VolumeId(volume))
    }

    /// Deletes a volume or a snapshot, wherever it stands among others.
    ///
    /// # Errors
    /// Where it is open, or a stream that is the difference to it is being received.
    pub async fn delete(&self, id: VolumeId) -> Result<(), PoolError> {
        let _control = self.control().await?;
        self.delete_locked(id).await
    }

    /// As [`delete`](Self::delete), for who has the control already.
    pub(crate) async fn delete_locked(&self, id: VolumeId) -> Result<(), PoolError> {
        self.refuse_base(&self.volume(id)?)?;
        let flat = self.shared.flat_volume(id.0);
        // Whoever opens it meanwhile finds one of the two.
        flat.gone.store(true, Ordering::SeqCst);
        let busy = flat.counts.handles.load(Ordering::SeqCst) > 0;
        let deleted = match busy {
            true => Err(PoolError::Busy),
            false => {
                // What other cores have asked for goes on though nobody waits for it any more.
                let _frozen = self.freeze([id.0]).await;
                self.shared.drained().await;
                self.change(&[Record::Delete { volume: id.0 }]).await
            }
        };
        if deleted.is_err() {
            flat.gone.store(false, Ordering::SeqCst);
            return deleted;
        }
        self.shared.dying.notify();
        Ok(())
    }

    /// Gives a volume the content of a snapshot of it.
    ///
    /// # Errors
    /// Where it is not one, or a thick volume's space could not be kept.
    pub async fn roll_back(&self, id: VolumeId, to: VolumeId) -> Result<(), PoolError> {
        let _control = self.control().await?;
        let (record, snapshot) = (self.whole_volume(id)?, self.volume(to)?);
        if record.kind != Kind::Volume || snapshot.kind != Kind::Snapshot {
            return Err(PoolError::WrongKind);
        }
        self.roll_back_locked(id, to, None).await
    }

    /// As [`roll_back`](Self::roll_back), for who has the control already; `also` takes effect with it.
    pub(crate) async fn roll_back_locked(
        &self,
        id: VolumeId,
        to: VolumeId,
        also: Option<Record>,
    ) -> Result<(), PoolError> {
        // What other cores have asked for goes on though nobody waits for it any more: it would change what
        // the volume has then. What is written until that has ended takes space, too.
        let _frozen = self.freeze([id.0]).await;
        self.shared.drained().await;
        let blocks = self.with_volume(to, |snapshot| snapshot.blocks)?;
        let growth = |record: &VolumeRecord| record.growth_when_shared(blocks.max(record.blocks));
        let _promise = self.promise(self.with_volume(id, growth)?)?;
        let back = Record::Rollback {
            volume: id.0,
            snapshot: to.0,
            old: self.free_id(0)?,
        };
        let records: Vec<Record> = std::iter::once(back).chain(also).collect();
        self.change(&records).await?;
        self.shared.dying.notify();
        Ok(())
    }

    /// Gives a volume another size. What would be cut off must be unused, unless `cut`.
    ///
    /// # Errors
    /// Where blocks are in use, or a thick volume's space is not there.
    pub async fn resize(&self, id: VolumeId, blocks: u64, cut: bool) -> Result<(), PoolError> {
        let _control = self.control().await?;
        self.whole_volume(id)?;
        self.resize_locked(id, blocks, cut).await
    }

    /// As [`resize`](Self::resize), for who has the control already.
    pub(crate) async fn resize_locked(
        &self,
        id: VolumeId,
        blocks: u64,
        cut: bool,
    ) -> Result<(), PoolError> {
        let record = self.volume(id)?;
        if record.kind != Kind::Volume {
            return Err(PoolError::WrongKind);
        }
        if !(1..=VOLUME_BLOCKS_MAX).contains(&blocks) {
            return Err(PoolError::BadSize);
        }
        let larger = VolumeRecord {
            blocks,
            ..record.clone()
        };
        let growth = larger
            .unused_reservation()
            .saturating_sub(record.unused_reservation());
        let _promise = self.promise(growth)?;
        let lost = blocks..record.blocks;
        if !lost.is_empty() {
            // What takes long is done while the volume takes writes; what is not to be cut is left alone.
            self.refuse_in_use(id.0, &lost, cut).await?;
            if cut {
                self.shared.clear(id.0, lost.clone(), false).await?;
            }
        }
        let _frozen = self.freeze([id.0]).await;
        if !lost.is_empty() {
            // A write that was given up may have left its record: it maps blocks that are to be cut.
            self.shared.drained().await;
            self.refuse_in_use(id.0, &lost, cut).await?;
            self.shared.unmap(id.0, lost.start, lost.end, false).await?;
        }
        self.change(&[Record::Resize {
            volume: id.0,
            blocks,
        }])
        .await
    }

    /// Refuses to cut off blocks of which some hold something, unless that is wanted.
    async fn refuse_in_use(
        &self,
        volume: u32,
        blocks: &Range<u64>,
        cut: bool,
    ) -> Result<(), PoolError> {
        match !cut && self.is_mapped(volume, blocks.start, blocks.end).await? {
            true => Err(PoolError::InUse),
            false => Ok(()),
        }
    }

    /// True where a block of the range holds something.
    async fn is_mapped(&self, volume: u32, first: u64, end: u64) -> Result<bool, PoolError> {
        let per_extent = BLOCKS_PER_EXTENT as u64;
        let mut at = first;
        while at < end {
            let index = at / per_extent;
            let Some(leaf) = self
                .shared
                .next_leaf(volume, index / LEAF_EXTENTS as u64)
                .await?
            else {
                return Ok(false);
            };
            at = at.max(leaf * LEAF_EXTENTS as u64 * per_extent);
            if at >= end {
                return Ok(false);
            }
            let run = self.shared.run(volume, at, end).await?;
            if run.extent.is_some() {
                return Ok(true);
            }
            at += run.blocks as u64;
        }
        Ok(false)
    }

    /// Gives a volume another name, and its snapshots that are called as it is, `NAME@...`, theirs anew.
    ///
    /// 1. The snapshots get their names, by groups of records. A crash between two: some have them, the volume
    ///    has its former one, and the same order renames the rest.
    /// 2. The volume's record is the last of the last group: all have their names.
    ///
    /// # Errors
    /// Where one of the names is taken or too long: nothing is renamed.
    pub async fn rename(&self, id: VolumeId, name: &str) -> Result<(), PoolError> {
        let _control = self.control().await?;
        let former = self.volume(id)?.name;
        if former == name {
            return Ok(());
        }
        let mut renamed = Vec::new();
        for (snapshot, record) in self.snapshots_of(id) {
            let behind = record.name.strip_prefix(&former);
            if let Some(own) = behind.filter(|behind| behind.starts_with(SNAPSHOT_SIGN)) {
                renamed.push((snapshot.0, format!("{name}{own}")));
            }
        }
        renamed.push((id.0, name.to_owned()));
        for (_, name) in &renamed {
            self.check_name(name)?;
        }
        let record = |(volume, name)| Record::Rename { volume, name };
        let records: Vec<Record> = renamed.into_iter().map(record).collect();
        for group in records.chunks(RENAMED_AT_ONCE) {
            self.change(group).await?;
        }
        Ok(())
    }

    /// Says whether a volume may be written, and whether all its space is reserved; `None` leaves it as it is.
    ///
    /// # Errors
    /// Where it is a snapshot, or the space is not there.
    pub async fn set_flags(
        &self,
        id: VolumeId,
        read_only: Option<bool>,
        thick: Option<bool>,
    ) -> Result<(), PoolError> {
        match self.try_set_flags(id, read_only, thick).await {
            // What it shared once may be its own by now, and needs no reservation.
            Err(PoolError::NoSpace) if thick == Some(true) => {
                self.count(id.0).await?;
                self.try_set_flags(id, read_only, thick).await
            }
            ended => ended,
        }
    }

    async fn try_set_flags(
        &self,
        id: VolumeId,
        read_only: Option<bool>,
        thick: Option<bool>,
    ) -> Result<(), PoolError> {
        let _control = self.control().await?;
        let record = self.volume(id)?;
        let read_only = read_only.unwrap_or(record.read_only);
        let thick = thick.unwrap_or(record.thick);
        if (read_only, thick) == (record.read_only, record.thick) {
            return Ok(());
        }
        if record.kind != Kind::Volume {
            return Err(PoolError::WrongKind);
        }
        let after = VolumeRecord {
            thick,
            ..record.clone()
        };
        let growth = after
            .unused_reservation()
            .saturating_sub(record.unused_reservation());
        let _promise = self.promise(growth)?;
        let _frozen = self.freeze([id.0]).await;
        self.change(&[Record::Flags {
            volume: id.0,
            read_only,
            thick,
        }])
        .await?;
        if thick && !record.thick {
            self.count_soon([id.0]);
        }
        Ok(())
    }

    /// Keeps bytes with a volume, for whoever exports it.
    ///
    /// # Errors
    /// Where they are too many.
    pub async fn set_attributes(&self, id: VolumeId, bytes: &[u8]) -> Result<(), PoolError> {
        let _control = self.control().await?;
        self.volume(id)?;
        if bytes.len() > ATTRIBUTES_MAX {
            return Err(PoolError::TooMany);
        }
        let (volume, bytes) = (id.0, bytes.to_vec());
        self.change(&[Record::Attributes { volume, bytes }]).await
    }

    /// A volume, for any core to open: see [`Volume::open`].
    ///
    /// # Errors
    /// Where there is none.
    pub fn volume_handle(&self, id: VolumeId) -> Result<VolumeHandle, PoolError> {
        self.volume(id)?;
        Ok(VolumeHandle {
            flat: self.shared.flat_volume(id.0),
            common: self.shared.common.clone(),
        })
    }

    /// Opens a volume on the pool's home core.
    ///
    /// # Errors
    /// Where there is none, or it is being received.
    pub fn open(&self, id: VolumeId) -> Result<Volume<D>, PoolError> {
        Volume::open(&self.core, &self.volume_handle(id)?)
    }

    /// The home core's part of the pool, to open volumes by.
    #[must_use]
    pub fn core(&self) -> &Rc<PoolCore<D>> {
        &self.core
    }

    /// Lets so many cores in all use the pool, its home core among them; once. Each of the others then
    /// calls [`PoolCore::open`].
    ///
    /// # Errors
    /// Where the means to wake a core are not to be had, or it was called before.
    pub fn share(&self, cores: usize, wakeups: Wakeups) -> Result<PoolHandle, PoolError> {
        across::share(&self.shared, &self.core, cores, wakeups)
    }

    /// How many leaves and pages of fragments may stay in memory; more are there while they have
    /// changed since the last checkpoint, and where operations need more of them at a time.
    pub fn set_page_limit(&self, pages: usize) {
        self.shared.page_limit.set(pages);
        self.shared.evict();
    }

    /// How many extents, partly written or with blocks in several places, all cores may know of each kind
    /// without asking: each takes 48 bytes, or a KiB.
    pub fn set_slot_limits(&self, partial: usize, fragments: usize) {
        self.shared.flat.borrow_mut().limits = SlotLimits { partial, fragments };
    }

    /// Such extents that all cores know.
    #[must_use]
    pub fn slots_in_use(&self) -> usize {
        self.shared.flat.borrow().slots()
    }

    /// Pages of maps that are in memory.
    #[must_use]
    pub fn pages_in_memory(&self) -> usize {
        self.shared.state.borrow().nodes.held()
    }

    /// Makes a checkpoint now, of everything that has taken effect by now.
    ///
    /// # Errors
    /// Where the pool has failed, or was closed before.
    pub async fn checkpoint(&self) -> Result<(), PoolError> {
        // One that is under way was begun before.
        let under_way = u64::from(self.shared.checkpoint_under_way.get());
        let wanted = self.shared.generation.get() + 1 + under_way;
        self.shared.want_checkpoint();
        let is_made = || self.shared.generation.get() >= wanted;
        let done = || is_made() || self.shared.stopped().is_some();
        self.shared
            .checkpoint_done
            .until(|| done().then_some(()))
            .await;
        match self.shared.stopped() {
            Some(error) if self.shared.failed.get() || !is_made() => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until the space of all deleted volumes has been given back.
    ///
    /// # Errors
    /// Where the pool has failed.
    pub async fn settled(&self) -> Result<(), PoolError> {
        let done = || self.first_dying().is_none() || self.shared.stopped().is_some();
        self.shared
            .journal
            .progress
            .until(|| done().then_some(()))
            .await;
        self.shared.stopped().map_or(Ok(()), Err)
    }

    /// Closes the pool: everything is in a checkpoint afterwards, and nobody works on the disk.
    ///
    /// # Errors
    /// Where a volume is open, or the pool has failed.
    pub async fn close(&self) -> Result<(), PoolError> {
        let _control = self.control().await?;
        self.finish(false).await
    }

    /// Gives the pool up: its disk is gone for good, or another way to it is to be opened. Nothing more is
    /// written, what is under way ends as failed, and no volume is opened any more. The caller answers
    /// for it that nothing that is in flight reaches the disk once the pool is imported again.
    pub fn abandon(&self) {
        self.shared.common.closing.store(true, Ordering::SeqCst);
        self.shared.fail();
    }

    /// True where the disk works no more for a pool that was given up, but for what holds its buffers: no
    /// volume is open on any core.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let shared = &self.shared;
        shared.open_handles() == 0 && !shared.is_abandoned() && shared.trims.is_idle()
    }

    /// Closes the pool, and releases it where that is told.
    pub(crate) async fn finish(&self, release: bool) -> Result<(), PoolError> {
        self.shared.common.closing.store(true, Ordering::SeqCst);
        if self.shared.open_handles() > 0 {
            self.shared.common.closing.store(false, Ordering::SeqCst);
            self.shared.trims.wake();
            return Err(PoolError::Busy);
        }
        self.shared.told().await;
        self.leaving.set(true);
        self.shared.dying.notify();
        {
            let mut state = self.shared.state.borrow_mut();
            state.clean = true;
            state.owner = state.owner.take().filter(|_| !release);
        }
        // What was dropping a volume may still append one record.
        loop {
            self.shared.drained().await;
            self.checkpoint().await?;
            if self.shared.journal.is_idle() && !self.shared.checkpoint_under_way.get() {
                break;
            }
        }
        self.shared.closed.set(true);
        self.shared.wake_all();
        Ok(())
    }

    pub(crate) fn first_dying(&self) -> Option<u32> {
        self.shared.state.borrow().volumes.dying().next()
    }
}

/// Extents that are kept for a change under way.
pub(crate) struct Promise<'a, D: Disk>(&'a Shared<D>);

impl<D: Disk> Drop for Promise<'_, D> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().extents.promised = 0;
        self.0.space.notify();
    }
}

impl VolumeRecord {
    /// How much more the volume would have reserved if it had so many blocks, not fewer than now, and shared all
    /// its extents.
    pub(crate) fn growth_when_shared(&self, blocks: u64) -> u64 {
        let sharing = Self {
            blocks,
            own_extents: 0,
            ..self.clone()
        };
        sharing.unused_reservation() - self.unused_reservation()
    }
}
