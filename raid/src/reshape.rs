//! Owns changes of an array's shape: more stripes over larger members, a leg more or less of a mirror.
//!
//! The caller sees to it that nothing else goes on in the array, on any core, and assembles it anew
//! afterwards, whatever the outcome: what the members say counts.
//!
//! # Order
//! 1. To grow, what lies behind the array's end on every member is deallocated, so that it reads as
//!    zeroes and agrees with its parity. Hosts may go on meanwhile. A crash leaves the old shape.
//! 2. Members are flushed: what was acknowledged is in place, durably, and no journal record is needed.
//! 3. Marks are taken away where nobody is missing, so that no resync follows. To grow, the empty map of
//!    the new size is then written to the place that does not hold the newest one. A crash leaves the old
//!    shape with the old map, which says the same.
//! 4. Superblocks of the new shape are written as for any change of state (`control.rs`), with the next
//!    generation. A crash amid this leaves some: the newest counts, and every member fits both shapes.

use std::fmt;

use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    rng::Rng,
};

use crate::{
    array::Array,
    dirty::{MAP_BYTES, Marks, region_stripes},
    engine::{Core, Fan, Outcome, Scratch, Transfer, one},
    geometry::{Geometry, InvalidGeometry, Level, MAP_OFFSETS, SUPERBLOCK_OFFSETS, Wish},
    state::{ArrayState, RoleRecord, RoleState, Uuid},
    superblock::{SUPERBLOCK_BYTES, Superblock},
};

/// What is deallocated of each member at a time.
const STEP_BYTES: u64 = 256 << 20;

/// How an array's shape changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// As large as its members allow. [`Array::prepare_growth`] precedes it.
    Grow,
    /// A mirror gets a leg more; its role is the last, and has no member yet.
    AddLeg,
    /// A mirror does without a leg from now on.
    RemoveLeg {
        /// Its role.
        role: usize,
    },
}

/// Why a shape does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReshapeError {
    /// No member has room for another stripe.
    NoRoom {
        /// The bytes of the smallest member.
        bytes: u64,
    },
    /// A member is missing or not up to date.
    NotWhole,
    /// Only mirrors get legs, or lose some.
    NoMirror,
    /// The last good leg stays.
    LastLeg,
    /// There is no such array.
    Geometry(InvalidGeometry),
    /// Something still goes on in the array.
    Busy,
    /// It is about to be closed.
    Halted,
    /// A member failed.
    Disk(DiskError),
}

impl fmt::Display for ReshapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { bytes } => write!(
                f,
                "the smallest member has {bytes} bytes, which is no more than the array uses"
            ),
            Self::NotWhole => write!(f, "a member is missing or not up to date"),
            Self::NoMirror => write!(f, "only RAID 1 gets legs, or loses some"),
            Self::LastLeg => write!(f, "it is the last good leg"),
            Self::Geometry(error) => write!(f, "{error}"),
            Self::Halted => write!(f, "it is being stopped"),
            Self::Busy => write!(f, "something still goes on in it"),
            Self::Disk(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ReshapeError {}

impl From<DiskError> for ReshapeError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl<D: Disk> Array<D> {
    /// The array over its members as large as they are now.
    ///
    /// # Errors
    /// Where that is no larger, or not all members are good.
    pub fn grown(&self) -> Result<Geometry, ReshapeError> {
        let shared = &self.core.shared;
        let geometry = shared.geometry;
        if !shared.is_whole() {
            return Err(ReshapeError::NotWhole);
        }
        let members = (0..geometry.roles()).map(|role| self.core.member(role));
        let bytes = members.map(|disk| disk.map_or(0, |disk| disk.info().bytes()));
        let bytes = bytes.min().unwrap_or(0);
        let grown = Geometry::new(*geometry.wish(), bytes).map_err(ReshapeError::Geometry)?;
        match grown.stripes() > geometry.stripes() {
            true => Ok(grown),
            false => Err(ReshapeError::NoRoom { bytes }),
        }
    }

    /// Step 1 of growing.
    ///
    /// # Errors
    /// Where it would not grow, or a member fails.
    pub async fn prepare_growth(&self) -> Result<(), ReshapeError> {
        let (core, grown) = (&self.core, self.grown()?);
        let mut at = core.shared.geometry.member_bytes();
        let end = grown.member_bytes();
        while at < end {
            if core.shared.sweeps_halted() {
                return Err(ReshapeError::Halted);
            }
            let bytes = STEP_BYTES.min(end - at);
            let blocks = grown.block_size().blocks_in(bytes);
            let mut fan = Fan::new();
            for role in 0..grown.roles() {
                let zero = || Transfer::Zero(blocks, Space::Deallocate, Durability::Durable);
                fan.transfer(core, role, grown.member_lba(at), zero).await;
            }
            landed(core, fan).await?;
            at += bytes;
        }
        Ok(())
    }

    /// Steps 2 to 4, with nothing else going on.
    ///
    /// # Errors
    /// Where the change makes no sense, or a member fails.
    pub async fn reshape(&self, change: Change, rng: &mut Rng) -> Result<(), ReshapeError> {
        let core = &self.core;
        let shared = &core.shared;
        let old = shared.state().clone();
        let (geometry, state, kept) = self.changed(change, &old, rng)?;
        core.flush_members().await?;
        self.tidy().await?;
        if change == Change::Grow {
            let (marks, sequence) = shared.dirty.next();
            if marks != Marks::none() {
                return Err(ReshapeError::Busy);
            }
            let stripes = region_stripes(geometry.stripes());
            let bytes = marks.encode(shared.array, stripes, sequence);
            let mut buffer = room(core, 1).await.remove(0);
            buffer.bytes_mut().copy_from_slice(&bytes);
            let at = geometry.member_lba(MAP_OFFSETS[(sequence % 2) as usize]);
            let mut fan = Fan::new();
            for role in 0..geometry.roles() {
                let write = Transfer::Write(one(buffer.clone()), Durability::Durable);
                fan.transfer(core, role, at, || write).await;
            }
            landed(core, fan).await?;
        }
        let mut buffers = room(core, kept.len()).await;
        for offset in SUPERBLOCK_OFFSETS {
            let at = geometry.member_lba(offset);
            let mut fan = Fan::new();
            for (&role, buffer) in kept.iter().zip(&mut buffers) {
                let superblock = Superblock {
                    geometry,
                    ..shared.superblock(old.roles[role].member, &state)
                };
                buffer.bytes_mut().copy_from_slice(&superblock.encode());
                let write = Transfer::Write(one(buffer.clone()), Durability::Durable);
                fan.transfer(core, role, at, || write).await;
            }
            landed(core, fan).await?;
        }
        Ok(())
    }

    /// The new shape, the state that says so, and the roles, as they are now, whose members are told.
    fn changed(
        &self,
        change: Change,
        old: &ArrayState,
        rng: &mut Rng,
    ) -> Result<(Geometry, ArrayState, Vec<usize>), ReshapeError> {
        let geometry = self.core.shared.geometry;
        let is_mirror = geometry.wish().level == Level::Mirrored;
        let mut state = old.clone();
        state.generation += 1;
        let taking_part = |role: &usize| old.roles[*role].state != RoleState::Failed;
        let mut kept: Vec<usize> = (0..geometry.roles()).filter(taking_part).collect();
        let with_legs = |roles: usize| {
            let wish = Wish {
                roles,
                ..*geometry.wish()
            };
            let shaped = Geometry::new(wish, geometry.member_bytes());
            shaped.map_err(ReshapeError::Geometry)
        };
        let shaped = match change {
            Change::Grow => self.grown()?,
            _ if !is_mirror => return Err(ReshapeError::NoMirror),
            Change::AddLeg => {
                let shaped = with_legs(geometry.roles() + 1)?;
                let mut member = [0; 16];
                rng.fill(&mut member);
                state.roles.push(RoleRecord {
                    member: Uuid(member),
                    state: RoleState::Failed,
                });
                shaped
            }
            Change::RemoveLeg { role } => {
                state.roles.remove(role);
                state.taken_in[role..].rotate_left(1);
                state.taken_in[geometry.roles() - 1..].fill(0);
                kept.retain(|&kept| kept != role);
                let good = |record: &RoleRecord| record.state == RoleState::Active;
                if !state.roles.iter().any(good) {
                    return Err(ReshapeError::LastLeg);
                }
                with_legs(geometry.roles() - 1)?
            }
        };
        Ok((shaped, state, kept))
    }
}

/// Room for so many superblocks or maps.
async fn room<D: Disk>(core: &Core<D>, count: usize) -> Scratch {
    const _: () = assert!(SUPERBLOCK_BYTES == MAP_BYTES);
    let mut scratch = Scratch::new();
    let lengths = std::iter::repeat_n(SUPERBLOCK_BYTES, count);
    core.scratch(lengths, &mut scratch).await;
    scratch
}

async fn landed<D: Disk>(core: &Core<D>, mut fan: Fan<'_>) -> Outcome {
    let ends = fan.land(core).await;
    match ends.failed.union(ends.unreadable).is_empty() {
        true => Ok(()),
        false => Err(DiskError::WriteFault),
    }
}
