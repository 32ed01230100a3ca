//! Owns writes to torn rows. Where there is no journal, a crash may leave blocks of more members unreadable in
//! one row than the level bears to lose. The row's parity belongs to what these blocks held, which nobody knows
//! any more; of other blocks of the row no new parity can be made. They are written without:
//! 1. The region is marked, and unequal since the crash. It stays both until a resync finds nothing lost there.
//! 2. Whatever parity the row has is made unreadable, durably. That takes nothing from anybody: in an unequal
//!    region parity stands in for missing members alone, and none of those has data of this row. A crash here
//!    leaves all data as they were.
//! 3. The data change in place. A crash leaves each block old, new, or torn, and says which.
//! 4. The write is acknowledged if every member took its block: nothing else has it.
//!
//! Invariant: once such a write has changed data of a row, none of its parity is readable while any of its data
//! is lost: no other write can make parity before, and a member with parity that was missing is given none, as
//! the region is among those that it missed. Whatever asks for what is lost finds more lost than the level
//! bears, so that it is unreadable and never wrong, also once further members are missing. Such a write has no
//! redundancy. The write of what was lost last reads all other data, and makes parity anew.

use corebay_core::{
    disk::{Disk, DiskError},
    units::Lba,
};

use crate::{
    engine::{Core, Fan, Outcome, Transfer},
    shared::Set,
    write::Piece,
};

/// Whether a write that too much is lost for is one of a row that a crash may have torn. A longer one is tried
/// row by row first.
pub(crate) fn may_be_torn<D: Disk>(core: &Core<D>, piece: &Piece<'_>) -> bool {
    let (shared, geometry) = (&core.shared, core.shared.geometry);
    let region = shared.dirty.region_of(piece.stripe);
    let is_row = (piece.rows.end - piece.rows.start) as usize == geometry.block_size().bytes();
    is_row && !geometry.is_journaled() && shared.dirty.unequal.get(region)
}

/// Writes blocks of one row without parity. With the stripe locked, and its region marked.
///
/// # Errors
/// As if nothing were to be done about what is lost, where data of a missing member are in the row, or its
/// parity cannot be made unreadable.
pub(crate) async fn write_torn<D: Disk>(core: &Core<D>, piece: &Piece<'_>) -> Outcome {
    let (shared, stripe) = (&core.shared, piece.stripe);
    let geometry = shared.geometry;
    let data = Set::first(geometry.data());
    let absent = shared.absent(stripe);
    let strips = Set::first(geometry.data() + geometry.parity());
    let parities = strips.without(data).without(absent);
    let role_of = |strip: usize| geometry.role_of(stripe, strip);
    let can_be_spoiled = |strip: usize| {
        let disk = core.usable(role_of(strip));
        disk.is_some_and(|disk| disk.info().write_uncorrectable)
    };
    if absent.meets(data) || !parities.iter().all(can_be_spoiled) {
        return Err(DiskError::UnrecoveredRead);
    }
    let at = geometry.row_lba(stripe, piece.rows.start);
    for parity in parities.iter() {
        spoil(core, role_of(parity), at).await?;
    }
    let mut fan = Fan::new();
    for strip in piece.touched.iter() {
        let write = || Transfer::Write(piece.data(core, strip), piece.durability);
        fan.transfer(core, role_of(strip), at, write).await;
    }
    let ends = fan.land(core).await;
    let failed = ends.failed.union(ends.unreadable);
    core.fail_all(failed).await?;
    // Also where another core has found its member failed.
    match failed.is_empty() && !shared.absent(stripe).meets(piece.touched) {
        true => Ok(()),
        false => Err(DiskError::WriteFault),
    }
}

/// Makes a role's block unreadable, whatever becomes of the power. A member that fails on it takes no part from
/// now on.
///
/// # Errors
/// Where the member refuses it.
async fn spoil<D: Disk>(core: &Core<D>, role: usize, at: Lba) -> Outcome {
    for what in [Transfer::Spoil(1), Transfer::Flush] {
        let flight = core.transfer(role, at, || what).await;
        core.run();
        match flight.outcome().await {
            Ok(()) => {}
            Err(DiskError::Gone | DiskError::TimedOut | DiskError::WriteFault) => {
                return core.fail(role).await;
            }
            // It refuses, and is none the worse for it.
            Err(_) => return Err(DiskError::UnrecoveredRead),
        }
    }
    Ok(())
}
