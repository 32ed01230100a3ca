//! Owns what an array records about itself on its members while it works: who failed, what is marked.
//!
//! # Changing the state
//! 1. The next state gets the next generation.
//! 2. Its superblock is written over copy 0 of every member that is not failed, durably. A crash here
//!    leaves some members with the old state twice and some with both: the newest that is found
//!    counts, and nothing relied on it yet, so both are true.
//! 3. The same for copy 1. A crash here is the same; a copy that was torn is made anew of the other.
//! 4. Now the state counts: what relies on it (a write without the failed member) may be acknowledged.
//!
//! A member that fails amid this is failed in the next state, and it begins again.

use std::sync::atomic::Ordering;

use corebay_core::disk::{Disk, DiskError, Durability};

use crate::{
    dirty::Marks,
    engine::{Core, Ends, Fan, Outcome, Transfer, one},
    geometry::{MAP_OFFSETS, SUPERBLOCK_OFFSETS},
    shared::{Set, Tally},
    state::{ArrayState, RoleState},
};

impl<D: Disk> Core<D> {
    /// Changes the state, on the members first. `change` says whether there is anything to change.
    pub(crate) async fn change(
        &self,
        change: impl FnOnce(&mut ArrayState) -> Result<bool, DiskError>,
    ) -> Outcome {
        let shared = &self.shared;
        let locked = shared.update.acquire(&self.parking, 0).await;
        let mut next = shared.state().clone();
        let before = failed_roles(&next);
        let outcome = match change(&mut next) {
            Ok(true) => {
                let written = self.write_state(&mut next).await;
                if !failed_roles(&next).without(before).is_empty() {
                    // Before anybody who waits for the lock finds it known, and retires.
                    self.want_unretired();
                }
                written
            }
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        shared.update.release(locked);
        outcome
    }

    /// Changes the state, and makes void what the journal holds.
    ///
    /// The new member of a role has no part of any record there is. Were one replayed that asks for
    /// it, it would be dropped as if nobody had acknowledged it, and older ones would be carried out
    /// over it.
    ///
    /// 1. No write begins with the journal; those that have are waited for.
    /// 2. Members are flushed: everything is durable in place. A crash replays what is there already.
    /// 3. The state is written with the next epoch. From here on there are no records.
    pub(crate) async fn change_member(
        &self,
        change: impl FnOnce(&mut ArrayState) -> Result<bool, DiskError>,
    ) -> Outcome {
        let shared = &self.shared;
        if !shared.geometry.is_journaled() {
            return self.change(change).await;
        }
        let locked = shared.voiding.acquire(&self.parking, 0).await;
        shared.ring.close();
        let outcome = self.void_and_change(change).await;
        shared.ring.open();
        shared.voiding.release(locked);
        outcome
    }

    /// With the ring closed.
    async fn void_and_change(
        &self,
        change: impl FnOnce(&mut ArrayState) -> Result<bool, DiskError>,
    ) -> Outcome {
        let shared = &self.shared;
        while !shared.ring.is_drained() {
            if shared.is_stopped() {
                return Err(DiskError::WriteFault);
            }
            self.next_turn().await;
        }
        self.flush_members().await?;
        shared.ring.retire(shared.ring.settled());
        let epoch = shared.epoch() + 1;
        let mut changed = false;
        self.change(|state| {
            changed = change(state)?;
            if changed {
                state.epoch = epoch;
            }
            Ok(changed)
        })
        .await?;
        if changed {
            shared.set_epoch(epoch);
        }
        Ok(())
    }

    /// With the update lock held.
    async fn write_state(&self, next: &mut ArrayState) -> Outcome {
        loop {
            next.generation += 1;
            let failed = self.write_superblocks(next).await;
            if failed.is_empty() {
                self.shared.publish(next);
                return Ok(());
            }
            for role in failed.iter() {
                next.roles[role].state = RoleState::Failed;
            }
            if !next.is_viable(&self.shared.geometry) {
                self.shared.stop();
                return Err(DiskError::WriteFault);
            }
        }
    }

    /// The roles whose superblock could not be written.
    async fn write_superblocks(&self, state: &ArrayState) -> Set {
        let mut failed = Set::default();
        let mut buffers = self.superblock_buffers().await;
        for offset in SUPERBLOCK_OFFSETS {
            let at = self.shared.geometry.member_lba(offset);
            let mut fan = Fan::new();
            for (role, record) in state.roles.iter().enumerate() {
                if record.state == RoleState::Failed || failed.has(role) {
                    continue;
                }
                let superblock = self.shared.superblock(record.member, state);
                let place = &mut buffers[role];
                place.bytes_mut().copy_from_slice(&superblock.encode());
                let write = Transfer::Write(one(place.clone()), Durability::Durable);
                fan.transfer(self, role, at, || write).await;
            }
            let Ends {
                unreadable,
                failed: more,
            } = fan.land(self).await;
            failed = failed.union(unreadable).union(more);
        }
        failed
    }

    /// A member failed: says so on all others, before anything is done without it.
    ///
    /// # Errors
    /// Where the array cannot do without it: nothing is written from now on.
    pub(crate) async fn fail(&self, role: usize) -> Outcome {
        let incarnation = self.shared.manners.incarnation(role);
        self.fail_member(role, incarnation).await
    }

    /// The same of one of a role's members in turn, unless the role has another one by now.
    pub(crate) async fn fail_member(&self, role: usize, incarnation: u32) -> Outcome {
        // On the heap: it happens once for a member, and the state would not fit an operation's slot.
        let news = Box::pin(self.record_failure(role, incarnation)).await?;
        if self.shared.geometry.is_journaled() {
            let dirty = &self.shared.dirty;
            Box::pin(self.write_marks(|| news || dirty.has_unwritten())).await?;
        }
        Ok(())
    }

    /// True where that was not known yet.
    async fn record_failure(&self, role: usize, incarnation: u32) -> Result<bool, DiskError> {
        let (shared, mut news) = (&self.shared, false);
        let outcome = self.change(|state| {
            if shared.manners.incarnation(role) != incarnation {
                return Ok(false);
            }
            let before = state.roles[role].state;
            state.roles[role].state = RoleState::Failed;
            news = before != RoleState::Failed;
            match before == RoleState::Active && !state.is_viable(&shared.geometry) {
                true => Err(DiskError::WriteFault),
                false => Ok(news),
            }
        });
        if let Err(error) = outcome.await {
            shared.stop();
            // What can be read of it is read.
            shared.manners.pardon(role);
            return Err(error);
        }
        if news {
            Tally::count(&shared.tally.failed_members);
        }
        Ok(news)
    }

    /// Fails all these roles.
    pub(crate) async fn fail_all(&self, roles: Set) -> Outcome {
        for role in roles.iter() {
            self.fail(role).await?;
        }
        Ok(())
    }

    /// What a record of the journal writes to a stripe is missed by a member, where the array is not whole
    /// (any more): that is on the members before the record is void.
    pub(crate) async fn mark_missed(&self, stripe: u64) -> Outcome {
        let shared = &self.shared;
        if !shared.is_whole() {
            self.mark(stripe).await?;
            shared.dirty.leave(shared.dirty.region_of(stripe));
        }
        Ok(())
    }

    /// A write comes to a stripe: marks its region on the members, unless it is marked.
    pub(crate) async fn mark(&self, stripe: u64) -> Outcome {
        let dirty = &self.shared.dirty;
        let region = dirty.region_of(stripe);
        if dirty.enter(region) {
            return Ok(());
        }
        // On the heap: it happens once for a region.
        Box::pin(self.write_marks(|| !dirty.is_written(region))).await
    }

    /// Writes the map for a member that has just been taken in: were it among those without any, all would
    /// be taken for marked.
    pub(crate) async fn give_map(&self) -> Outcome {
        Box::pin(self.write_marks(|| true)).await
    }

    /// Writes the map where it is still needed once it is this core's turn.
    ///
    /// The place that is written is the one that does not hold the newest map, so a torn write leaves
    /// that: what it lacks are marks whose writers have not begun.
    async fn write_marks(&self, needed: impl FnOnce() -> bool) -> Outcome {
        let shared = &self.shared;
        let locked = shared.marking.acquire(&self.parking, 0).await;
        let outcome = match needed() {
            true => self.write_map().await,
            false => Ok(()),
        };
        shared.marking.release(locked);
        outcome
    }

    /// Gives every member the marks of all, before any of them counts. `behind` are those whose newest
    /// map does not lie at the place of the newest of all, or that have none.
    ///
    /// 1. They get the marks with the newest sequence; what was their newest lies at the other place.
    /// 2. Now nobody's newest lies at the place of the next sequence: all get the marks with that.
    ///
    /// A crash amid either leaves each member what it had or what all had together.
    pub(crate) async fn level_maps(&self, behind: Set) -> Outcome {
        let shared = &self.shared;
        let locked = shared.marking.acquire(&self.parking, 0).await;
        let (marks, newest) = (shared.dirty.marks(), shared.dirty.sequence());
        let behind = Set(behind.0 & self.written_roles().0);
        let failed = self.write_map_to(behind, &marks, newest).await;
        let mut outcome = Ok(());
        for role in failed.iter() {
            let incarnation = shared.manners.incarnation(role);
            let recorded = Box::pin(self.record_failure(role, incarnation)).await;
            outcome = outcome.and(recorded.map(drop));
        }
        if outcome.is_ok() {
            outcome = self.write_map().await;
        }
        shared.marking.release(locked);
        outcome
    }

    /// The roles to whose members it could not be written.
    async fn write_map_to(&self, roles: Set, marks: &Marks, sequence: u64) -> Set {
        let shared = &self.shared;
        let mut buffer = self.map_buffer().await;
        let bytes = marks.encode(shared.array, shared.dirty.region_stripes(), sequence);
        buffer.bytes_mut().copy_from_slice(&bytes);
        let at = MAP_OFFSETS[(sequence % 2) as usize];
        let at = shared.geometry.member_lba(at);
        let mut fan = Fan::new();
        for role in roles.iter() {
            let write = Transfer::Write(one(buffer.clone()), Durability::Durable);
            fan.transfer(self, role, at, || write).await;
        }
        let ends = fan.land(self).await;
        ends.failed.union(ends.unreadable)
    }

    /// With the map's lock held.
    async fn write_map(&self) -> Outcome {
        let shared = &self.shared;
        loop {
            let (marks, sequence) = shared.dirty.next();
            let roles = self.written_roles();
            let failed = self.write_map_to(roles, &marks, sequence).await;
            if failed.is_empty() {
                shared.dirty.wrote(&marks);
                return Ok(());
            }
            for role in failed.iter() {
                let incarnation = shared.manners.incarnation(role);
                Box::pin(self.record_failure(role, incarnation)).await?;
            }
        }
    }

    /// What is not retired may be in a failed member's volatile cache, or in flight to it: should it
    /// return, it has to take that anew. Writes reserved from now on see that it failed.
    fn want_unretired(&self) {
        let shared = &self.shared;
        if shared.geometry.is_journaled() {
            for stripe in shared.ring.unretired() {
                shared.dirty.want(shared.dirty.region_of(stripe));
            }
        }
    }

    /// Roles whose members take part at all.
    pub(crate) fn written_roles(&self) -> Set {
        let state = self.shared.state();
        let roles = state.roles.iter().enumerate();
        roles
            .filter(|(_, record)| record.state != RoleState::Failed)
            .map(|(role, _)| role)
            .collect()
    }

    /// Flushes the members that take part.
    pub(crate) async fn flush_members(&self) -> Outcome {
        let mut fan = Fan::new();
        for role in self.written_roles().iter() {
            let at = self.shared.geometry.member_lba(0);
            fan.transfer(self, role, at, || Transfer::Flush).await;
        }
        let ends = fan.land(self).await;
        let failed = ends.failed.union(ends.unreadable);
        if !failed.is_empty() && !self.shared.has_redundancy() {
            return Err(DiskError::WriteFault);
        }
        self.fail_all(failed).await
    }

    /// Takes the marks of regions in which nothing is being written, where all members have it all.
    ///
    /// 1. In memory the marks go; a write that comes now waits for the map to mark its region again.
    /// 2. The members are flushed: what was written under these marks is durable on all of them.
    /// 3. The map without the marks is written. A crash before it leaves marks too many.
    pub(crate) async fn unmark(&self) -> Result<usize, DiskError> {
        let shared = &self.shared;
        if !shared.is_whole() || shared.is_stopped() {
            return Ok(0);
        }
        let locked = shared.marking.acquire(&self.parking, 0).await;
        let count = shared.dirty.unmark_idle();
        let mut outcome = Ok(());
        if count > 0 {
            #[cfg(corebay_fault)]
            let early = corebay_core::fault::is(corebay_core::fault::Fault::ArrayUnmarksEarly);
            #[cfg(not(corebay_fault))]
            let early = false;
            if shared.is_volatile() && !early {
                outcome = self.flush_members_quietly().await;
            }
            if outcome.is_ok() && shared.is_whole() {
                outcome = self.write_map().await;
            } else {
                shared.dirty.remark();
            }
        }
        shared.marking.release(locked);
        outcome.map(|()| count)
    }

    async fn flush_members_quietly(&self) -> Outcome {
        let mut fan = Fan::new();
        for role in self.written_roles().iter() {
            let at = self.shared.geometry.member_lba(0);
            fan.transfer(self, role, at, || Transfer::Flush).await;
        }
        let ends = fan.land(self).await;
        match ends.failed.union(ends.unreadable).is_empty() {
            true => Ok(()),
            false => Err(DiskError::WriteFault),
        }
    }

    /// Room in the journal for a write to a stripe: its sequence, and the tail.
    pub(crate) async fn reserve(&self, stripe: u64) -> Result<(u64, u64), DiskError> {
        let ring = &self.shared.ring;
        loop {
            if let Some(reserved) = ring.reserve(stripe) {
                return Ok(reserved);
            }
            if self.shared.is_stopped() {
                return Err(DiskError::WriteFault);
            }
            match self.shared.is_volatile() && ring.has_settled() {
                // On the heap: it happens once for half of the ring.
                true => Box::pin(self.retire()).await?,
                false => self.next_turn().await,
            }
        }
    }

    /// Makes what is in place durable there, so that its slots can be used again.
    pub(crate) async fn retire(&self) -> Outcome {
        let shared = &self.shared;
        let locked = shared.flushing.acquire(&self.parking, 0).await;
        let mut outcome = Ok(());
        if shared.ring.has_settled() {
            let settled = shared.ring.settled();
            outcome = self.flush_members().await;
            if outcome.is_ok() {
                shared.ring.retire(settled);
            }
        }
        shared.flushing.release(locked);
        outcome
    }

    /// A journaled write is in place.
    pub(crate) fn settle(&self, sequence: u64) {
        let ring = &self.shared.ring;
        ring.settle(sequence);
        if !self.shared.is_volatile() {
            ring.retire(ring.settled());
        }
    }

    /// A sweep begins that goes over so many stripes.
    pub(crate) fn begin_sweep(&self, stripes: u64) {
        self.set_swept(0);
        self.shared.to_sweep.store(stripes, Ordering::Relaxed);
    }

    /// How far a sweep is.
    pub(crate) fn set_swept(&self, stripes: u64) {
        self.shared.swept.store(stripes, Ordering::Relaxed);
    }
}

fn failed_roles(state: &ArrayState) -> Set {
    let roles = state.roles.iter().enumerate();
    let failed = roles.filter(|(_, record)| record.state == RoleState::Failed);
    failed.map(|(role, _)| role).collect()
}
