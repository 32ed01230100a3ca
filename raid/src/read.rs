//! Owns reads that a member alone cannot answer: of strips that are missing, and of blocks that cannot
//! be read, which are made of the others and written back.
//!
//! Invariants:
//! - With the stripe locked, data and parity belong together, so what is made of them is right. Without
//!   a journal that is not so between a crash and the resync after it: what cannot be read then is lost
//!   rather than made of what may not belong together. Only where a whole member is missing as well is
//!   there no choice: that is the write hole, which the journal closes.
//! - Of a mirror, what was read new is not read old again, although a write changes its legs one by one.
//!   While a stripe is being written its first leg answers; where that one is missing, a read waits for
//!   the write. What another leg answered counts only if no write began meanwhile; else it is read again,
//!   and with the stripe locked only after some times. A read never makes another one not count.
//! - A block is given as unreadable only where more than the redundancy is lost in its own row.

use std::ops::Range;

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::{Buffer, Bytes},
    disk::{Disk, DiskError, Durability},
};

use crate::{
    engine::{Core, Fan, Outcome, Scratch, Segments, Transfer, one, window},
    geometry::Band,
    kernels::DATA_MAX,
    lock::Look,
    shared::{Set, Shared, Tally},
};

/// A piece of one strip that could not be read as usual.
pub(crate) struct Recover {
    pub(crate) piece: Band,
    pub(crate) into: Segments,
    /// The member that failed on it, where it was more than its medium.
    pub(crate) failed: Option<Asked>,
}

/// A member that is asked. By the time that it has failed, its role may have another one.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) role: u8,
    pub(crate) incarnation: u32,
}

/// Whom to read a piece from.
pub(crate) struct Reader {
    pub(crate) member: Asked,
    /// How the stripe was, where what is read counts only if it still is so afterwards.
    seen: Option<Look>,
}

impl Reader {
    fn new(shared: &Shared, role: usize, seen: Option<Look>) -> Self {
        let member = Asked {
            role: role as u8,
            incarnation: shared.manners.incarnation(role),
        };
        Self { member, seen }
    }

    pub(crate) fn role(&self) -> usize {
        self.member.role.into()
    }

    /// What was read counts. Where the member failed meanwhile, its role may have had another disk by then.
    pub(crate) fn counts(&self, shared: &Shared, piece: &Band) -> bool {
        let seen = self.seen;
        seen.is_none_or(|seen| shared.changes.look(piece.stripe) == seen)
            && (shared.is_whole() || shared.is_good(self.role(), piece.stripe))
    }
}

/// Reads of a piece that changes, before its stripe is locked.
pub(crate) const READS_MAX: u32 = 4;

/// Who can be asked for a piece.
pub(crate) enum Whom {
    /// A role, at once.
    Ask(Reader),
    /// Nobody while the stripe is being written.
    Later,
    /// No role has it alone.
    Nobody,
}

/// Whom to read a piece from, once no write stands in the way; nobody also where that lasts.
pub(crate) async fn reader_in_time<D: Disk>(core: &Core<D>, piece: &Band) -> Option<Reader> {
    match whom(core, piece) {
        Whom::Ask(reader) => return Some(reader),
        Whom::Nobody => return None,
        Whom::Later => {}
    }
    let changes = &core.shared.changes;
    let first = changes.look(piece.stripe);
    let ask = || match whom(core, piece) {
        Whom::Ask(reader) => Some(Some(reader)),
        Whom::Nobody => Some(None),
        Whom::Later => {
            let lasts = changes.look(piece.stripe).ended_since(first) >= READS_MAX;
            lasts.then_some(None)
        }
    };
    core.parking.until(ask).await
}

/// Whom to read a piece from.
pub(crate) fn whom<D: Disk>(core: &Core<D>, piece: &Band) -> Whom {
    let (shared, strip) = (&core.shared, piece.strips.start);
    let geometry = &shared.geometry;
    if geometry.copies() == 1 {
        let role = geometry.role_of(piece.stripe, strip);
        return match shared.is_whole() || shared.is_good(role, piece.stripe) {
            true => Whom::Ask(Reader::new(shared, role, None)),
            false => Whom::Nobody,
        };
    }
    let legs = geometry.legs_of(strip);
    let first = legs.start;
    // Legs that may differ must not answer by turns: what was read new once would be read old again.
    let equal = !shared
        .dirty
        .unequal
        .get(shared.dirty.region_of(piece.stripe));
    let look = shared.changes.look(piece.stripe);
    let turn = match equal && !look.is_under_way() {
        true => core.turn(),
        false => 0,
    };
    let mut by_turns = (0..legs.len()).map(|leg| first + (leg + turn) % legs.len());
    let Some(role) = by_turns.find(|&role| shared.is_good(role, piece.stripe)) else {
        return Whom::Nobody;
    };
    let is_first = role == first;
    match is_first || !look.is_under_way() {
        true => Whom::Ask(Reader::new(shared, role, (!is_first).then_some(look))),
        false => Whom::Later,
    }
}

/// Reads a piece in whatever way is left.
pub(crate) async fn recover<D: Disk>(core: &Core<D>, job: &Recover) -> Outcome {
    if let Some(failed) = job.failed {
        // Where the array cannot do without it, what can be read still is.
        let _ = core
            .fail_member(failed.role.into(), failed.incarnation)
            .await;
    }
    if job.into.iter().any(Buffer::is_used) {
        // The member that was given up may still write there. Into other buffers it can be read.
        return Err(DiskError::TimedOut);
    }
    let piece = &job.piece;
    let locked = core
        .shared
        .stripes
        .acquire(&core.parking, piece.stripe)
        .await;
    let most = core.shared.geometry.unit_bytes();
    let mut outcome = Ok(());
    let mut row = piece.rows.start;
    while row < piece.rows.end && outcome.is_ok() {
        let rows = row..piece.rows.end.min(row + most);
        outcome = recover_rows(core, job, rows.clone()).await;
        row = rows.end;
    }
    core.shared.stripes.release(locked);
    outcome
}

/// Rows that one operation works on at a time, with the stripe locked.
pub(crate) async fn recover_locked<D: Disk>(
    core: &Core<D>,
    job: &Recover,
    rows: &Range<u32>,
) -> Outcome {
    recover_rows(core, job, rows.clone()).await
}

async fn recover_rows<D: Disk>(core: &Core<D>, job: &Recover, rows: Range<u32>) -> Outcome {
    let outcome = recover_at_once(core, job, &rows).await;
    let block = core.shared.geometry.block_size().bytes() as u32;
    if outcome != Err(DiskError::UnrecoveredRead) || rows.end - rows.start <= block {
        return outcome;
    }
    for row in rows.step_by(block as usize) {
        recover_at_once(core, job, &(row..row + block)).await?;
    }
    Ok(())
}

async fn recover_at_once<D: Disk>(core: &Core<D>, job: &Recover, rows: &Range<u32>) -> Outcome {
    let geometry = &core.shared.geometry;
    let begin = (rows.start - job.piece.rows.start) as usize;
    let into = window(&job.into, begin..begin + (rows.end - rows.start) as usize);
    match (geometry.parity(), geometry.copies()) {
        (0, 1) => Err(DiskError::UnrecoveredRead),
        (0, _) => recover_mirrored(core, &job.piece, rows, into).await,
        _ => recover_by_parity(core, &job.piece, rows, into).await,
    }
}

/// Reads the other legs in turn; what could not be read on one is written there.
async fn recover_mirrored<D: Disk>(
    core: &Core<D>,
    piece: &Band,
    rows: &Range<u32>,
    into: Segments,
) -> Outcome {
    let shared = &core.shared;
    let at = shared.geometry.row_lba(piece.stripe, rows.start);
    let region = shared.dirty.region_of(piece.stripe);
    let is_unequal = shared.dirty.unequal.get(region);
    let is_block = (rows.end - rows.start) as usize == shared.geometry.block_size().bytes();
    let mut unreadable = Set::default();
    for role in shared.geometry.legs_of(piece.strips.start) {
        if !shared.is_good(role, piece.stripe) {
            continue;
        }
        let mut fan = Fan::new();
        let read = Transfer::Read(into.clone());
        fan.transfer(core, role, at, || read).await;
        let ends = fan.land(core).await;
        if ends.unreadable.is_empty() && ends.failed.is_empty() {
            if !shared.is_good(role, piece.stripe) {
                continue;
            }
            if !unreadable.is_empty() {
                Tally::count(&shared.tally.reconstructed);
                rewrite(core, piece, rows, unreadable, &into).await;
            }
            return Ok(());
        }
        if ends.failed.is_empty() {
            unreadable = unreadable.with(role);
            if into.iter().any(Buffer::is_used) {
                // The member was replaced meanwhile, and the one before may still write there.
                return Err(DiskError::TimedOut);
            }
            if is_unequal && !is_block {
                // Each block is read of the first leg that has it, as it is without the others.
                return Err(DiskError::UnrecoveredRead);
            }
        } else {
            let _ = core.fail(role).await;
            if into.iter().any(Buffer::is_used) {
                return Err(DiskError::TimedOut);
            }
        }
    }
    Err(DiskError::UnrecoveredRead)
}

async fn rewrite<D: Disk>(
    core: &Core<D>,
    piece: &Band,
    rows: &Range<u32>,
    roles: Set,
    content: &Segments,
) {
    let at = core.shared.geometry.row_lba(piece.stripe, rows.start);
    let mut fan = Fan::new();
    for role in roles.iter() {
        // Durable: nobody waits for it, and the next flush would not be asked for it.
        let write = Transfer::Write(content.clone(), Durability::Durable);
        fan.transfer(core, role, at, || write).await;
    }
    let ends = fan.land(core).await;
    let failed = ends.failed.union(ends.unreadable);
    if failed.is_empty() {
        Tally::count(&core.shared.tally.repaired);
    }
    // A member that cannot take back what it lost has failed. The read itself is answered.
    let _ = core.fail_all(failed).await;
}

async fn recover_by_parity<D: Disk>(
    core: &Core<D>,
    piece: &Band,
    rows: &Range<u32>,
    mut into: Segments,
) -> Outcome {
    let (shared, strip) = (&core.shared, piece.strips.start);
    let geometry = shared.geometry;
    let role = geometry.role_of(piece.stripe, strip);
    let mut unreadable = Set::default().with(strip);
    let is_block = (rows.end - rows.start) as usize == geometry.block_size().bytes();
    if is_block && !shared.absent(piece.stripe).has(strip) {
        // Of a longer piece that failed, this block may be good.
        let at = geometry.row_lba(piece.stripe, rows.start);
        let mut fan = Fan::new();
        let read = Transfer::Read(into.clone());
        fan.transfer(core, role, at, || read).await;
        let ends = fan.land(core).await;
        let is_read = ends.unreadable.is_empty() && ends.failed.is_empty();
        if is_read && shared.is_good(role, piece.stripe) {
            return Ok(());
        }
        if into.iter().any(Buffer::is_used) {
            let _ = core.fail(role).await;
            return Err(DiskError::TimedOut);
        }
    }
    let region = shared.dirty.region_of(piece.stripe);
    if !geometry.is_journaled()
        && shared.dirty.unequal.get(region)
        && !shared.absent(piece.stripe).has(strip)
    {
        return Err(DiskError::UnrecoveredRead);
    }
    let mut scratch = Scratch::new();
    loop {
        let absent = shared.absent(piece.stripe);
        let lost = absent.union(unreadable);
        let Some(plan) = core.plan(lost) else {
            return Err(DiskError::UnrecoveredRead);
        };
        scratch.clear();
        let bytes = (rows.end - rows.start) as usize;
        let lengths = std::iter::repeat_n(bytes, plan.sources().len() + 1);
        core.scratch(lengths, &mut scratch).await;
        let more = gather(core, piece.stripe, rows, plan.sources(), &scratch).await;
        unreadable = unreadable.union(more);
        if !more.is_empty() {
            continue;
        }
        let number = plan.lost().iter().position(|&index| index == strip);
        let number = number.expect("it is among the lost ones");
        let mut made = scratch.pop().expect("one more than sources");
        make(&plan, number, &scratch, &mut made);
        copy(&made, &mut into);
        Tally::count(&shared.tally.reconstructed);
        if !absent.has(strip) {
            let roles = Set::default().with(role);
            rewrite(core, piece, rows, roles, &one(made)).await;
        }
        return Ok(());
    }
}

/// Reads strips by index, each into its buffer; those that could not be read. With the stripe locked.
///
/// A member that failed meanwhile counts as one that could not be read, whatever came: its role may have
/// another disk by now, which has nothing of the stripe yet.
pub(crate) async fn gather<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    rows: &Range<u32>,
    indices: &[usize],
    into: &[Buffer],
) -> Set {
    let geometry = core.shared.geometry;
    let at = geometry.row_lba(stripe, rows.start);
    let mut fan = Fan::new();
    for (&index, buffer) in indices.iter().zip(into) {
        let role = geometry.role_of(stripe, index);
        let read = Transfer::Read(one(buffer.clone()));
        fan.transfer(core, role, at, || read).await;
    }
    let ends = fan.land(core).await;
    let _ = core.fail_all(ends.failed).await;
    let failed = ends.failed.union(ends.unreadable).iter();
    let failed: Set = failed.map(|role| geometry.index_of(stripe, role)).collect();
    let read: Set = indices.iter().copied().collect();
    failed.union(Set(read.0 & core.shared.absent(stripe).0))
}

/// Makes the lost strip that comes at `number` in the plan.
pub(crate) fn make(
    plan: &crate::kernels::Plan,
    number: usize,
    sources: &[Buffer],
    into: &mut Buffer,
) {
    let sources = sources.iter().take(plan.sources().len());
    let guards: ArrayVec<Bytes<'_>, DATA_MAX> = sources.map(Buffer::bytes).collect();
    let slices: ArrayVec<&[u8], DATA_MAX> = guards.iter().map(|guard| &guard[..]).collect();
    plan.reconstruct_one(number, &slices, &mut into.bytes_mut());
}

fn copy(from: &Buffer, into: &mut Segments) {
    let from = from.bytes();
    let mut at = 0;
    for buffer in into {
        let end = at + buffer.len();
        buffer.bytes_mut().copy_from_slice(&from[at..end]);
        at = end;
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
