//! Owns the mirrored zone: a small disk beside an array's data, as safe as the array and without its
//! parity, for journals and metadata of what lies above (a pool's, say). A write to it costs one write
//! on each of a few members and no reads, however small it is.
//!
//! The array's own journal lies on each member for itself (`journal.rs`), which costs no more.
//!
//! The zone has a copy on as many members as the array bears to lose, and one more: the roles from 0
//! on. It is there where the array was made with [`Wish::zone_bytes`](crate::geometry::Wish). How a pool
//! uses it: [`Array::zone`] gives each core its disk; what is written there keeps [`Disk`]'s contract.
//!
//! Invariants:
//! - A block is the same on all copies that are read, but for those being written: copies are made
//!   equal after a crash amid a write (the zone's mark in the dirty map says so), before anything is
//!   read of them, and on a member that is new or returns before it counts.
//! - Writes to the same part of the zone do not overtake each other, whatever their cores.
//! - A write is acknowledged once it is on all copies whose members have not failed.
//! - A block that no copy has any more cannot be read; once a member was rebuilt, it may be zeroes. Who uses
//!   the zone checks what it reads.

use std::{ops::Range, rc::Rc};

use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, DiskInfo, Durability, Space},
    units::Lba,
};

use crate::{
    array::Array,
    engine::{Core, Fan, Job, Outcome, Scratch, Segments, Transfer, one, window},
    geometry::{UNIT_BYTES_MAX, ZONE_OFFSET},
    shared::Set,
    state::RoleState,
    write::finish,
};

/// The stripe whose region of the dirty map says that the zone's copies may differ.
const MARKED_STRIPE: u64 = 0;

/// What is locked, and copied at a time.
const PART_BYTES: u64 = UNIT_BYTES_MAX as u64;

/// Looks at a block after which it is taken for lost.
const LOST_LOOKS: usize = 3;

/// A core's way to the zone of an array. It ends with the core's [`Array`].
pub struct Zone<D: Disk> {
    core: Rc<Core<D>>,
}

/// Work on a part of the zone.
pub(crate) enum ZoneWork {
    /// Write these buffers.
    Write(u64, Segments, Durability),
    /// Read into these, of whatever copy is left.
    Read(u64, Segments),
}

impl<D: Disk> Array<D> {
    /// This core's disk over the mirrored zone, if the array has one.
    #[must_use]
    pub fn zone(&self) -> Option<Zone<D>> {
        let zone = Zone {
            core: self.core.clone(),
        };
        (zone.core.shared.geometry.zone_bytes() > 0).then_some(zone)
    }
}

impl<D: Disk> Core<D> {
    /// The roles that have a copy of the zone.
    fn zone_roles(&self) -> Range<usize> {
        let geometry = &self.shared.geometry;
        0..1 + geometry.parity().max(geometry.copies() - 1)
    }

    /// Those whose copy may be read.
    fn zone_readers(&self) -> Set {
        let state = self.shared.state();
        let good = |role: &usize| match state.roles[*role].state {
            RoleState::Active => true,
            RoleState::Failed => false,
            RoleState::Rebuilding { .. } => self.shared.has_zone(*role),
        };
        self.zone_roles().filter(good).collect()
    }

    fn zone_lba(&self, at: u64) -> Lba {
        self.shared.geometry.member_lba(ZONE_OFFSET + at)
    }

    /// Makes all copies of the zone equal. At assembly, where the mark says that they may differ.
    pub(crate) async fn mend_zone(&self) -> Outcome {
        let bytes = self.shared.geometry.zone_bytes();
        if bytes == 0
            || !self
                .shared
                .dirty
                .is_written(self.shared.dirty.region_of(MARKED_STRIPE))
        {
            return Ok(());
        }
        self.copy_zone(Set::default(), || true).await
    }

    /// Makes the copy of a role that is new or returns, as long as that `goes_on`.
    pub(crate) async fn give_zone(&self, role: usize, goes_on: impl Fn() -> bool) -> Outcome {
        if self.shared.geometry.zone_bytes() > 0 && self.zone_roles().contains(&role) {
            self.copy_zone(Set::default().with(role), &goes_on).await?;
        }
        self.shared.set_zone(role);
        // It may fail at any time on any core: a member that takes its place has nothing yet.
        if !goes_on() {
            self.shared.unset_zone(role);
        }
        Ok(())
    }

    /// Copies the zone from where it may be read to the others, as long as that `goes_on`; `to` is written
    /// without being compared.
    async fn copy_zone(&self, to: Set, goes_on: impl Fn() -> bool) -> Outcome {
        let mut at = 0;
        while at < self.shared.geometry.zone_bytes() && goes_on() {
            let end = (at + PART_BYTES).min(self.shared.geometry.zone_bytes());
            let locked = self
                .shared
                .zone
                .acquire(&self.parking, at / PART_BYTES)
                .await;
            let mut outcome = self.copy_part(at, (end - at) as usize, to).await;
            if outcome == Err(DiskError::UnrecoveredRead) {
                outcome = self.copy_blocks(at..end, to).await;
            }
            self.shared.zone.release(locked);
            outcome?;
            at = end;
        }
        Ok(())
    }

    /// The same for a part that cannot be read as a whole, with it locked. A block that no copy has is
    /// lost, and stays so; a new copy gets zeroes, and those who rely on the zone find that their
    /// checksums are wrong. It must not keep an array from being whole again.
    async fn copy_blocks(&self, part: Range<u64>, to: Set) -> Outcome {
        let block = self.shared.geometry.block_size().bytes();
        for at in part.step_by(block) {
            let mut outcome = self.copy_part(at, block, to).await;
            for _ in 1..LOST_LOOKS {
                if outcome == Err(DiskError::UnrecoveredRead) {
                    outcome = self.copy_part(at, block, to).await;
                }
            }
            let is_lost = outcome == Err(DiskError::UnrecoveredRead);
            if is_lost && !self.shared.is_stopped() && !self.zone_readers().is_empty() {
                let zeroes = one(self.zeroes(block));
                outcome = self
                    .write_copies(at, &zeroes, Durability::Durable, to)
                    .await;
            }
            outcome?;
        }
        Ok(())
    }

    /// With the part locked.
    async fn copy_part(&self, at: u64, bytes: usize, to: Set) -> Outcome {
        let mut scratch = Scratch::new();
        self.scratch(std::iter::repeat_n(bytes, 2), &mut scratch)
            .await;
        let content = one(scratch[0].clone());
        self.read_copies(at, &content).await?;
        let mut differ = to;
        for role in self.zone_readers().iter() {
            let mut fan = Fan::new();
            let read = Transfer::Read(one(scratch[1].clone()));
            fan.transfer(self, role, self.zone_lba(at), || read).await;
            let ends = fan.land(self).await;
            if !ends.failed.is_empty() {
                // It may keep the buffer, having not answered.
                self.fail_all(ends.failed).await?;
                scratch.truncate(1);
                self.scratch(std::iter::once(bytes), &mut scratch).await;
                continue;
            }
            let same =
                ends.unreadable.is_empty() && scratch[1].bytes()[..] == scratch[0].bytes()[..];
            if !same {
                differ = differ.with(role);
            }
        }
        self.write_copies(at, &content, Durability::Durable, differ)
            .await
    }

    async fn write_copies(
        &self,
        at: u64,
        from: &Segments,
        durability: Durability,
        roles: Set,
    ) -> Outcome {
        let mut fan = Fan::new();
        for role in roles.iter() {
            let write = Transfer::Write(from.clone(), durability);
            fan.transfer(self, role, self.zone_lba(at), || write).await;
        }
        let ends = fan.land(self).await;
        if !self.shared.has_redundancy() && !ends.failed.union(ends.unreadable).is_empty() {
            return Err(DiskError::WriteFault);
        }
        finish(self, ends, None).await
    }

    /// Reads from the first copy that can be read, and block by block where none can be as a whole.
    async fn read_copies(&self, at: u64, into: &Segments) -> Outcome {
        let outcome = self.read_copy(at, into).await;
        let block = self.shared.geometry.block_size().bytes();
        let bytes: usize = into.iter().map(Buffer::len).sum();
        if outcome != Err(DiskError::UnrecoveredRead) || bytes == block {
            return outcome;
        }
        for from in (0..bytes).step_by(block) {
            let one_block = window(into, from..from + block);
            self.read_copy(at + from as u64, &one_block).await?;
        }
        Ok(())
    }

    async fn read_copy(&self, at: u64, into: &Segments) -> Outcome {
        let mut unreadable = Set::default();
        loop {
            let left = self.zone_readers().without(unreadable);
            let role = left.iter().next().ok_or(DiskError::UnrecoveredRead)?;
            let mut fan = Fan::new();
            let read = Transfer::Read(into.clone());
            fan.transfer(self, role, self.zone_lba(at), || read).await;
            let ends = fan.land(self).await;
            if ends.failed.is_empty() && ends.unreadable.is_empty() {
                // What others could not read is written there.
                let mended = self.write_copies(at, into, Durability::Durable, unreadable);
                mended.await?;
                return Ok(());
            }
            unreadable = unreadable.with(role);
            if !ends.failed.is_empty() {
                if !self.shared.has_redundancy() {
                    return Err(DiskError::Gone);
                }
                let _ = self.fail(role).await;
                unreadable = unreadable.without(ends.failed);
                if self.shared.is_stopped() {
                    return Err(DiskError::UnrecoveredRead);
                }
            }
            if into.iter().any(Buffer::is_used) {
                return Err(DiskError::TimedOut);
            }
        }
    }
}

/// Does work on the zone. A write may touch several parts, a lock for each, in ascending order.
pub(crate) async fn zone_work<D: Disk>(core: &Core<D>, work: ZoneWork) -> Outcome {
    let (at, segments) = match &work {
        ZoneWork::Write(at, segments, _) | ZoneWork::Read(at, segments) => (*at, segments),
    };
    let bytes: usize = segments.iter().map(Buffer::len).sum();
    let end = at + bytes as u64;
    let mut from = at;
    while from < end {
        let to = end.min((from / PART_BYTES + 1) * PART_BYTES);
        let part = window(segments, (from - at) as usize..(to - at) as usize);
        let locked = core
            .shared
            .zone
            .acquire(&core.parking, from / PART_BYTES)
            .await;
        let outcome = match &work {
            ZoneWork::Write(_, _, durability) => write_part(core, from, &part, *durability).await,
            ZoneWork::Read(..) => core.read_copies(from, &part).await,
        };
        core.shared.zone.release(locked);
        outcome?;
        from = to;
    }
    Ok(())
}

/// With the part locked.
async fn write_part<D: Disk>(
    core: &Core<D>,
    at: u64,
    part: &Segments,
    durability: Durability,
) -> Outcome {
    if core.shared.is_stopped() {
        return Err(DiskError::WriteFault);
    }
    core.mark(MARKED_STRIPE).await?;
    let taking_part = core.written_roles();
    let roles = core.zone_roles().filter(|role| taking_part.has(*role));
    let outcome = core
        .write_copies(at, part, durability, roles.collect())
        .await;
    if outcome.is_ok() {
        core.shared
            .dirty
            .leave(core.shared.dirty.region_of(MARKED_STRIPE));
    }
    outcome
}

impl<D: Disk> Zone<D> {
    async fn operate(&self, work: impl FnOnce() -> ZoneWork) -> Outcome {
        let flight = self.core.operate(|| Job::Zone(work())).await;
        self.core.run();
        flight.outcome().await
    }

    fn place(&self, at: Lba, blocks: u64) -> Result<u64, DiskError> {
        let info = self.info();
        match info.contains(at, blocks) {
            true => Ok(info.block_size.bytes_of(at.0)),
            false => Err(DiskError::OutOfRange),
        }
    }

    fn place_of(&self, at: Lba, buffers: &[Buffer]) -> Result<u64, DiskError> {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        self.place(at, self.info().block_size.blocks_in(bytes as u64))
    }
}

impl<D: Disk> Disk for Zone<D> {
    fn info(&self) -> DiskInfo {
        let shared = &self.core.shared;
        let geometry = &shared.geometry;
        let member = self
            .core
            .zone_roles()
            .find_map(|role| self.core.member(role));
        DiskInfo {
            block_size: geometry.block_size(),
            blocks: geometry.block_size().blocks_in(geometry.zone_bytes()),
            volatile_cache: shared.is_volatile(),
            deallocate_granularity: None,
            write_uncorrectable: false,
            atomic_write_bytes: member.map_or(512, |disk| disk.info().atomic_write_bytes),
        }
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let place = self.place_of(at, into)?;
        let work = || ZoneWork::Read(place, into.iter().cloned().collect());
        self.operate(work).await
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let place = self.place_of(at, from)?;
        let work = || ZoneWork::Write(place, from.iter().cloned().collect(), durability);
        self.operate(work).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        if !self.core.shared.is_volatile() {
            return Ok(());
        }
        let flight = self.core.operate(|| Job::Flush).await;
        self.core.run();
        flight.outcome().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.write_zeroes(at, blocks, Space::Deallocate, Durability::Cached)
            .await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        _space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let place = self.place(at, blocks)?;
        let end = place + self.info().block_size.bytes_of(blocks);
        for at in (place..end).step_by(PART_BYTES as usize) {
            let bytes = (end - at).min(PART_BYTES) as usize;
            let work = || ZoneWork::Write(at, one(self.core.zeroes(bytes)), durability);
            self.operate(work).await?;
        }
        Ok(())
    }

    async fn write_uncorrectable(&self, _at: Lba, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
}
