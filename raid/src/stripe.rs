//! Owns what a sweep does to one stripe: making a role's strip anew, or making all strips agree.
//!
//! Invariants:
//! - A stripe is locked by the operation that works on it, and held by it alone.
//! - A rebuild's stripes count in their order, each while it is locked: a stripe that is done before
//!   its predecessors stays locked until they are. So a write finds the role out of a stripe only where
//!   the rebuild is still to come. No scratch memory is held while waiting for predecessors, and they
//!   have their workers already, so the wait ends.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, Durability},
};

use crate::{
    engine::{Core, Fan, Outcome, Scratch, Segments, Transfer, one},
    geometry::{Band, ROLES_MAX},
    kernels::DATA_MAX,
    read::{Recover, gather, make, recover_locked},
    shared::{Set, Shared, Tally},
    state::RoleState,
    sweep::{Scrubbed, SweepError},
    write::encode,
};

/// One stripe's part of a sweep.
pub(crate) enum Work {
    /// A role's strip is made of the others.
    Rebuild(Rc<Run>, usize, u64),
    /// Strips are made to agree.
    Check(Rc<Run>, u64),
}

/// What the stripes of a sweep have in common.
#[derive(Default)]
pub(crate) struct Run {
    /// What a check has found.
    pub(crate) found: RefCell<Scrubbed>,
    failed: Cell<Option<SweepError>>,
    /// The first stripe of which a check had nothing to compare, as data are missing with their member.
    pub(crate) overlooked: Cell<Option<u64>>,
    /// Of a rebuild: which of the role's members in turn it is for.
    incarnation: Cell<u32>,
}

impl Run {
    /// Why it does not go on, if it does not.
    pub(crate) fn failed(&self) -> Option<SweepError> {
        self.failed.get()
    }

    fn fail(&self, error: SweepError) {
        self.failed.set(self.failed.get().or(Some(error)));
    }

    /// It is a rebuild for the member that a role has now.
    pub(crate) fn is_for(&self, shared: &Shared, role: usize) {
        self.incarnation.set(shared.manners.incarnation(role));
    }

    /// True while a rebuild has something to do: the role's member has neither failed nor returned or
    /// been replaced since, which begins anew.
    pub(crate) fn goes_on(&self, shared: &Shared, role: usize) -> bool {
        if self.failed().is_some() {
            return false;
        }
        let state = shared.state().roles[role].state;
        let same = shared.manners.incarnation(role) == self.incarnation.get();
        let good = same && matches!(state, RoleState::Rebuilding { .. });
        if !good {
            self.fail(SweepError::State(state));
        }
        good
    }
}

/// Checks of a stripe after which what could not be read is taken for lost.
const CHECKS_MAX: usize = 3;

/// Does one stripe's part; how it ended is with the sweep.
pub(crate) async fn work<D: Disk>(core: &Core<D>, work: Work) {
    match work {
        Work::Rebuild(run, role, stripe) => rebuild(core, &run, role, stripe).await,
        Work::Check(run, stripe) => check(core, &run, stripe).await,
    }
}

async fn rebuild<D: Disk>(core: &Core<D>, run: &Run, role: usize, stripe: u64) {
    let shared = &core.shared;
    let locked = shared.stripes.acquire(&core.parking, stripe).await;
    if run.goes_on(shared, role) && !shared.is_good(role, stripe) {
        match rebuild_stripe(core, role, stripe).await {
            Ok(()) => shared.made(role, stripe),
            // The stripes after it can be made; of a role that failed meanwhile none is kept in mind.
            Err(SweepError::Lost { .. })
                if run.goes_on(shared, role) && shared.step_over(role, stripe) => {}
            Err(error) => run.fail(error),
        }
    }
    let in_turn = || (!run.goes_on(shared, role) || shared.good(role) >= stripe).then_some(());
    core.parking.until(in_turn).await;
    // With the stripe locked: a write that comes next includes the role.
    if run.goes_on(shared, role) && shared.good(role) == stripe {
        shared.advance(role, stripe, stripe + 1);
    }
    shared.stripes.release(locked);
}

async fn check<D: Disk>(core: &Core<D>, run: &Run, stripe: u64) {
    let shared = &core.shared;
    let locked = shared.stripes.acquire(&core.parking, stripe).await;
    let checked = match run.failed() {
        None => check_patiently(core, run, stripe).await,
        Some(_) => Ok(false),
    };
    shared.stripes.release(locked);
    let found = &mut *run.found.borrow_mut();
    match checked {
        Ok(false) => {}
        Ok(true) => {
            found.mismatch_count += 1;
            Tally::count(&shared.tally.mismatches);
            if found.mismatches.len() < Scrubbed::LISTED_MAX {
                found.mismatches.push(stripe);
            }
        }
        Err(DiskError::UnrecoveredRead) => {
            if found.lost.len() < Scrubbed::LISTED_MAX {
                found.lost.push(stripe);
            }
        }
        Err(error) => run.fail(error.into()),
    }
}

/// The row ranges that a strip is worked on in.
fn units<D: Disk>(core: &Core<D>) -> impl Iterator<Item = Range<u32>> + use<D> {
    let (strip, unit) = (
        core.shared.geometry.strip_bytes(),
        core.shared.geometry.unit_bytes(),
    );
    (0..strip)
        .step_by(unit as usize)
        .map(move |row| row..strip.min(row + unit))
}

/// With the stripe locked.
async fn rebuild_stripe<D: Disk>(
    core: &Core<D>,
    role: usize,
    stripe: u64,
) -> Result<(), SweepError> {
    let block = core.shared.geometry.block_size().bytes() as u32;
    for rows in units(core) {
        match rebuild_rows(core, role, stripe, &rows).await {
            Err(DiskError::UnrecoveredRead) => {}
            other => {
                other?;
                continue;
            }
        }
        for row in rows.step_by(block as usize) {
            let rows = row..row + block;
            match rebuild_rows(core, role, stripe, &rows).await {
                // The new member has to say that it is lost, or zeroes would be taken for it.
                Err(DiskError::UnrecoveredRead) => spoil(core, role, stripe, row).await?,
                other => other?,
            }
        }
    }
    Ok(())
}

async fn spoil<D: Disk>(
    core: &Core<D>,
    role: usize,
    stripe: u64,
    row: u32,
) -> Result<(), SweepError> {
    let at = core.shared.geometry.row_lba(stripe, row);
    let flight = core.transfer(role, at, || Transfer::Spoil(1)).await;
    core.run();
    let spoiled = flight.outcome().await;
    spoiled.map_err(|_| SweepError::Lost { stripe })
}

async fn rebuild_rows<D: Disk>(
    core: &Core<D>,
    role: usize,
    stripe: u64,
    rows: &Range<u32>,
) -> Outcome {
    let geometry = core.shared.geometry;
    let bytes = (rows.end - rows.start) as usize;
    let mut scratch = Scratch::new();
    if geometry.parity() == 0 {
        core.scratch(std::iter::once(bytes), &mut scratch).await;
        let into = one(scratch[0].clone());
        let strip = geometry.index_of(stripe, role);
        read_leg(core, stripe, strip, rows, into.clone()).await?;
        return write_rows(core, role, stripe, rows, into).await;
    }
    let index = geometry.index_of(stripe, role);
    let mut unreadable = Set::default();
    loop {
        let lost = core.shared.absent(stripe).union(unreadable);
        let plan = core.plan(lost).ok_or(DiskError::UnrecoveredRead)?;
        scratch.clear();
        let lengths = std::iter::repeat_n(bytes, plan.sources().len() + 1);
        core.scratch(lengths, &mut scratch).await;
        let more = gather(core, stripe, rows, plan.sources(), &scratch).await;
        unreadable = unreadable.union(more);
        if more.is_empty() {
            let number = plan.lost().iter().position(|&lost| lost == index);
            let mut made = scratch.pop().expect("one more than sources");
            make(&plan, number.expect("it is lost"), &scratch, &mut made);
            return write_rows(core, role, stripe, rows, one(made)).await;
        }
    }
}

async fn read_leg<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    strip: usize,
    rows: &Range<u32>,
    into: Segments,
) -> Outcome {
    let job = Recover {
        piece: Band {
            stripe,
            rows: rows.clone(),
            strips: strip..strip + 1,
        },
        into,
        failed: None,
    };
    recover_locked(core, &job, rows).await
}

async fn write_rows<D: Disk>(
    core: &Core<D>,
    role: usize,
    stripe: u64,
    rows: &Range<u32>,
    from: Segments,
) -> Outcome {
    let at = core.shared.geometry.row_lba(stripe, rows.start);
    let write = Transfer::Write(from, Durability::Cached);
    let flight = core.transfer(role, at, || write).await;
    core.run();
    if flight.outcome().await.is_err() {
        core.fail(role).await?;
    }
    Ok(())
}

/// Checks a stripe, and again where it could not be read: what fails once may succeed.
async fn check_patiently<D: Disk>(
    core: &Core<D>,
    run: &Run,
    stripe: u64,
) -> Result<bool, DiskError> {
    let mut outcome = check_stripe(core, run, stripe).await;
    for _ in 1..CHECKS_MAX {
        if outcome != Err(DiskError::UnrecoveredRead) {
            break;
        }
        outcome = check_stripe(core, run, stripe).await;
    }
    outcome
}

/// Makes a stripe agree with itself; true where it did not. With the stripe locked.
///
/// # Errors
/// Where rows of it are lost: all others agree then.
async fn check_stripe<D: Disk>(core: &Core<D>, run: &Run, stripe: u64) -> Result<bool, DiskError> {
    let block = core.shared.geometry.block_size().bytes() as u32;
    let (mut differed, mut lost) = (false, false);
    for rows in units(core) {
        match check_rows(core, run, stripe, &rows).await {
            Err(DiskError::UnrecoveredRead) => {}
            other => {
                differed |= other?;
                continue;
            }
        }
        // What is lost in one row says nothing about the others.
        for row in rows.step_by(block as usize) {
            match check_rows(core, run, stripe, &(row..row + block)).await {
                Err(DiskError::UnrecoveredRead) => lost = true,
                other => differed |= other?,
            }
        }
    }
    match lost {
        true => Err(DiskError::UnrecoveredRead),
        false => Ok(differed),
    }
}

async fn check_rows<D: Disk>(
    core: &Core<D>,
    run: &Run,
    stripe: u64,
    rows: &Range<u32>,
) -> Result<bool, DiskError> {
    let geometry = core.shared.geometry;
    if geometry.parity() > 0 {
        return check_parity(core, run, stripe, rows).await;
    }
    let mut outcome = Ok(false);
    for strip in 0..geometry.data() {
        let checked = check_legs(core, stripe, strip, rows).await;
        outcome = match (outcome, checked) {
            (Ok(before), Ok(differed)) => Ok(before | differed),
            // The other strips are still made to agree.
            (_, Err(error)) if error != DiskError::UnrecoveredRead => return Err(error),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
    }
    outcome
}

async fn check_parity<D: Disk>(
    core: &Core<D>,
    run: &Run,
    stripe: u64,
    rows: &Range<u32>,
) -> Result<bool, DiskError> {
    let (shared, geometry) = (&core.shared, core.shared.geometry);
    let (data, parity) = (geometry.data(), geometry.parity());
    let absent = shared.absent(stripe);
    let is_unequal = shared.dirty.unequal.get(shared.dirty.region_of(stripe));
    if Set::first(data).meets(absent) && !(is_unequal && absent.len() < parity) {
        // There is nothing to compare: what is there has to make the rest.
        let first = run.overlooked.get();
        run.overlooked
            .set(Some(first.map_or(stripe, |first| first.min(stripe))));
        return Ok(false);
    }
    let unreadable = {
        let mut scratch = Scratch::new();
        let bytes = (rows.end - rows.start) as usize;
        // All strips as they are, then parity as it should be.
        let lengths = std::iter::repeat_n(bytes, data + 2 * parity);
        core.scratch(lengths, &mut scratch).await;
        let present = Set::first(data + parity).without(absent);
        let indices: ArrayVec<usize, ROLES_MAX> = present.iter().collect();
        let into: ArrayVec<Buffer, ROLES_MAX> = indices
            .iter()
            .map(|&index| scratch[index].clone())
            .collect();
        let unreadable = gather(core, stripe, rows, &indices, &into).await;
        drop(into);
        if unreadable.is_empty() {
            make_absent(core, absent, &mut scratch, |index| index)?;
            return compare_parity(core, stripe, rows, &mut scratch, absent).await;
        }
        unreadable
    };
    // What cannot be read is made of the others and written back; parity, as if it were wrong.
    for strip in Set(unreadable.0 & Set::first(data).0).iter() {
        let mut scratch = Scratch::new();
        let bytes = (rows.end - rows.start) as usize;
        core.scratch(std::iter::once(bytes), &mut scratch).await;
        read_leg(core, stripe, strip, rows, one(scratch[0].clone())).await?;
    }
    check_again(core, stripe, rows, unreadable).await
}

/// Makes data that are missing with their member as reads of them do: of the others and the first parities
/// that are there, each of which is in scratch at its `place`. The other parities can be compared with that.
fn make_absent<D: Disk>(
    core: &Core<D>,
    lost: Set,
    scratch: &mut Scratch,
    place: impl Fn(usize) -> usize,
) -> Outcome {
    let data = core.shared.geometry.data();
    if !Set::first(data).meets(lost) {
        return Ok(());
    }
    let plan = core.plan(lost).ok_or(DiskError::UnrecoveredRead)?;
    let sources: ArrayVec<Buffer, DATA_MAX> = plan
        .sources()
        .iter()
        .map(|&index| scratch[place(index)].clone())
        .collect();
    for (number, &index) in plan.lost().iter().enumerate() {
        if index < data {
            make(&plan, number, &sources, &mut scratch[index]);
        }
    }
    Ok(())
}

/// Makes parity agree with the data, all of which `scratch` holds.
async fn compare_parity<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    rows: &Range<u32>,
    scratch: &mut Scratch,
    absent: Set,
) -> Result<bool, DiskError> {
    let (shared, geometry) = (&core.shared, core.shared.geometry);
    let (data, parity) = (geometry.data(), geometry.parity());
    let codec = shared.codec.as_ref().expect("a level with parity");
    {
        let sources: ArrayVec<Segments, DATA_MAX> = scratch[..data]
            .iter()
            .map(|strip| one(strip.clone()))
            .collect();
        encode(codec, &sources, &mut scratch[data + parity..]);
    }
    let mut differed = false;
    for index in (data..data + parity).filter(|index| !absent.has(*index)) {
        let made = &scratch[index + parity];
        if scratch[index].bytes()[..] != made.bytes()[..] {
            differed = true;
            let role = geometry.role_of(stripe, index);
            write_rows(core, role, stripe, rows, one(made.clone())).await?;
        }
    }
    Ok(differed)
}

async fn check_again<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    rows: &Range<u32>,
    was_unreadable: Set,
) -> Result<bool, DiskError> {
    let (shared, geometry) = (&core.shared, core.shared.geometry);
    let (data, parity) = (geometry.data(), geometry.parity());
    let bytes = (rows.end - rows.start) as usize;
    let mut scratch = Scratch::new();
    // Each parity that is read has a buffer of its own: a member that does not answer keeps its one.
    let lengths = std::iter::repeat_n(bytes, data + 2 * parity);
    core.scratch(lengths, &mut scratch).await;
    let (all_data, absent) = (Set::first(data), shared.absent(stripe));
    let lost = absent.union(was_unreadable.without(all_data));
    let wanted = match all_data.meets(absent) {
        true => Set::first(data + parity).without(lost),
        false => all_data,
    };
    let place = |index: usize| index + if index < data { 0 } else { parity };
    let indices: ArrayVec<usize, ROLES_MAX> = wanted.iter().collect();
    let into: ArrayVec<Buffer, ROLES_MAX> = indices
        .iter()
        .map(|&index| scratch[place(index)].clone())
        .collect();
    let unreadable = gather(core, stripe, rows, &indices, &into).await;
    drop(into);
    if !unreadable.is_empty() {
        return Err(DiskError::UnrecoveredRead);
    }
    make_absent(core, lost, &mut scratch, place)?;
    let sources: Vec<Segments> = scratch[..data].iter().map(|b| one(b.clone())).collect();
    let codec = shared.codec.as_ref().expect("a level with parity");
    encode(codec, &sources, &mut scratch[data..data + parity]);
    let mut differed = false;
    for index in data..data + parity {
        if shared.absent(stripe).has(index) {
            continue;
        }
        let old = scratch[index + parity].clone();
        let read = gather(core, stripe, rows, &[index], std::slice::from_ref(&old)).await;
        let same = read.is_empty() && old.bytes()[..] == scratch[index].bytes()[..];
        if !same {
            // What cannot be read has said nothing yet.
            differed |= read.is_empty() && !was_unreadable.has(index);
            let role = geometry.role_of(stripe, index);
            write_rows(core, role, stripe, rows, one(scratch[index].clone())).await?;
        }
    }
    Ok(differed)
}

async fn check_legs<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    strip: usize,
    rows: &Range<u32>,
) -> Result<bool, DiskError> {
    let geometry = core.shared.geometry;
    if geometry.copies() == 1 {
        return Ok(false);
    }
    let bytes = (rows.end - rows.start) as usize;
    let good = |role: &usize| core.shared.is_good(*role, stripe);
    let legs: ArrayVec<usize, ROLES_MAX> = geometry.legs_of(strip).filter(good).collect();
    let mut scratch = Scratch::new();
    let lengths = std::iter::repeat_n(bytes, legs.len());
    core.scratch(lengths, &mut scratch).await;
    let at = geometry.row_lba(stripe, rows.start);
    let mut fan = Fan::new();
    for (&role, into) in legs.iter().zip(&scratch) {
        let read = Transfer::Read(one(into.clone()));
        fan.transfer(core, role, at, || read).await;
    }
    let ends = fan.land(core).await;
    core.fail_all(ends.failed).await?;
    let wanting = ends.unreadable.union(ends.failed);
    let Some(first) = legs.iter().position(|&leg| !wanting.has(leg)) else {
        return Err(DiskError::UnrecoveredRead);
    };
    let mut differ = Set::default();
    for (place, &role) in legs.iter().enumerate() {
        if !wanting.has(role) && scratch[place].bytes()[..] != scratch[first].bytes()[..] {
            differ = differ.with(role);
        }
    }
    let mut stale = differ;
    if legs.iter().any(|&leg| ends.unreadable.has(leg)) {
        // Block by block, another leg may have what this one has not. Where legs differ, that may be
        // something else than the first one holds.
        read_leg(core, stripe, strip, rows, one(scratch[first].clone())).await?;
        let is_stale = |(place, role): &(usize, usize)| {
            let unknown = *place == first || wanting.has(*role);
            unknown || scratch[*place].bytes()[..] != scratch[first].bytes()[..]
        };
        let places = legs.iter().copied().enumerate().filter(is_stale);
        stale = places.map(|(_, role)| role).collect();
    }
    let stale = stale.without(ends.failed);
    if !stale.is_empty() {
        core.shared.changes.begin(stripe..stripe + 1);
    }
    let mut mended = Ok(());
    for role in stale.iter() {
        let written = write_rows(core, role, stripe, rows, one(scratch[first].clone())).await;
        mended = mended.and(written);
    }
    if !stale.is_empty() {
        core.shared.changes.end(stripe..stripe + 1);
    }
    mended.map(|()| !differ.is_empty())
}
