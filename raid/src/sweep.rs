//! Owns what goes over a whole array beside the hosts: rebuilding a member, making equal what a crash
//! left unequal, scrubbing.
//!
//! A sweep takes one stripe at a time, locked, so hosts wait for one stripe's work at most. It goes at
//! its [`Pace`]: at the ceiling while the core's hosts are idle, at the floor while they are not.
//!
//! # A rebuild
//! 1. The role's state becomes *rebuilding* from stripe 0, on all members and the new one. Writes to
//!    stripes that are not done yet leave the new member out; so nothing of it is read.
//! 2. Stripe by stripe its strip is made of the others, written, and counts from then on, while the
//!    stripe is still locked.
//! 3. From time to time the new member is flushed and the progress recorded. After a crash it goes on
//!    there: stripes after it are made again.
//! 4. At the end it is flushed once more and the state becomes *active*.
//!
//! A member that comes back is rebuilt in the same way, but counts at once in all regions that are not
//! marked as written since it went.

use std::{fmt, ops::Range, rc::Rc, time::Duration};

use corebay_core::{
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError, Durability},
    rng::Rng,
};

use crate::{
    array::Array,
    create::{Occupant, occupant_of},
    engine::{Core, Fan, Outcome, Scratch, Segments, Transfer, one},
    geometry::Band,
    read::{Recover, gather, make, recover_locked},
    shared::{Set, Tally},
    state::{RoleState, Uuid},
    write::encode,
};

/// Stripes after which a rebuild's progress is recorded.
const STRIPES_PER_RECORD: u64 = 1024;

/// How fast a sweep goes, in MiB of each member per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// While hosts are busy.
    pub floor_mib_s: u32,
    /// While they are not; 0 is as fast as it gets.
    pub ceiling_mib_s: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            floor_mib_s: 20,
            ceiling_mib_s: 0,
        }
    }
}

/// Why a sweep ended early, or did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepError {
    /// The role is not in a state for that.
    State(RoleState),
    /// The disk is too small, or its blocks have another size.
    Unfit,
    /// The disk holds something.
    Occupied(Occupant),
    /// The array has no such spare.
    NoSpare,
    /// The member was given up because it did not answer, and still has not ended what was asked of
    /// it: a write that comes late would spoil newer data.
    StillOut,
    /// A member failed, or more than the redundancy is lost.
    Disk(DiskError),
    /// Blocks of a stripe are lost on too many members, and the new one cannot be told so.
    Lost {
        /// Which stripe.
        stripe: u64,
    },
    /// It was to end: see [`Assembled::halt_sweeps`](crate::array::Assembled::halt_sweeps).
    Halted,
}

impl fmt::Display for SweepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "the role is {state:?}"),
            Self::Unfit => write!(f, "the disk is too small, or its blocks have another size"),
            Self::NoSpare => write!(f, "the array has no such spare"),
            Self::StillOut => write!(
                f,
                "the member has not ended what was asked of it before it was given up"
            ),
            Self::Occupied(by) => write!(f, "the disk is not free: {by}"),
            Self::Disk(error) => write!(f, "{error}"),
            Self::Lost { stripe } => write!(f, "blocks of stripe {stripe} are lost"),
            Self::Halted => write!(f, "it was to end early"),
        }
    }
}

impl std::error::Error for SweepError {}

impl From<DiskError> for SweepError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Stripes whose strips did not agree, and were made to: the first [`Scrubbed::LISTED_MAX`].
    pub mismatches: Vec<u64>,
    /// How many there were.
    pub mismatch_count: u64,
    /// Stripes with blocks that could not be read and not be made anew.
    pub lost: Vec<u64>,
}

impl Scrubbed {
    /// Stripes that are listed.
    pub const LISTED_MAX: usize = 64;
}

/// A stretch of a sweep, for its pace.
struct Meter {
    pace: Pace,
    activity: u64,
}

impl Meter {
    /// Between two stripes, with neither locked.
    async fn rest<D: Disk>(&mut self, core: &Core<D>) -> Result<(), SweepError> {
        if core.shared.sweeps_halted() {
            return Err(SweepError::Halted);
        }
        let activity = core.shared.activity.sum();
        let busy = std::mem::replace(&mut self.activity, activity) != activity;
        let rate = match busy {
            true => self.pace.floor_mib_s.max(1),
            false => self.pace.ceiling_mib_s,
        };
        if rate == 0 {
            core.next_turn().await;
            return Ok(());
        }
        let bytes = u64::from(core.shared.geometry.strip_bytes());
        let nanos = bytes * 1_000_000_000 / (u64::from(rate) << 20);
        core.reactor.sleep(Duration::from_nanos(nanos)).await;
        Ok(())
    }
}

impl<D: Disk> Array<D> {
    /// This core's disk of a role from now on. Before a member is replaced or returns, every core is
    /// given its disk.
    pub fn set_member(&self, role: usize, disk: Option<D>) {
        self.core.set_member(role, disk.map(Rc::new));
    }

    /// Gives a failed role to a new member: this core's disk of the role. Then [`rebuild`](Self::rebuild).
    ///
    /// # Errors
    /// Where the role has not failed, or the disk does not fit or holds something.
    pub async fn replace(
        &self,
        role: usize,
        rng: &mut Rng,
        pool: &BufferPool,
    ) -> Result<Uuid, SweepError> {
        let disk = self.fit(role)?;
        if let Some(by) = occupant_of(&*disk, pool).await? {
            return Err(SweepError::Occupied(by));
        }
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        self.core.shared.manners.begin_anew(role);
        self.core
            .change_member(|state| {
                state.roles[role].member = Uuid(bytes);
                state.roles[role].state = RoleState::Rebuilding {
                    stripes: 0,
                    delta: false,
                };
                Ok(true)
            })
            .await?;
        Ok(Uuid(bytes))
    }

    /// Gives a failed role to a spare of the array: this core's disk of the role is the spare's. Then
    /// [`rebuild`](Self::rebuild).
    ///
    /// # Errors
    /// Where the role has not failed, or there is no such spare.
    pub async fn use_spare(&self, role: usize, spare: Uuid) -> Result<(), SweepError> {
        self.fit(role)?;
        self.core.shared.manners.begin_anew(role);
        let mut known = false;
        self.core
            .change_member(|state| {
                let Some(place) = state.spares.iter().position(|known| *known == spare) else {
                    return Ok(false);
                };
                known = true;
                state.spares.remove(place);
                state.roles[role].member = spare;
                state.roles[role].state = RoleState::Rebuilding {
                    stripes: 0,
                    delta: false,
                };
                Ok(true)
            })
            .await?;
        known.then_some(()).ok_or(SweepError::NoSpare)
    }

    /// Takes a member back that was away: this core's disk of the role is the one that had it last.
    /// Then [`rebuild`](Self::rebuild), which goes over what was written meanwhile.
    ///
    /// # Errors
    /// Where the role has not failed, or commands of the member are still out.
    pub async fn take_back(&self, role: usize) -> Result<(), SweepError> {
        self.fit(role)?;
        if self.core.shared.manners.strays(role) > 0 {
            return Err(SweepError::StillOut);
        }
        self.core.shared.manners.begin_anew(role);
        self.core.shared.prepare_delta();
        self.core
            .change_member(|state| {
                state.roles[role].state = RoleState::Rebuilding {
                    stripes: 0,
                    delta: true,
                };
                Ok(true)
            })
            .await?;
        self.core.shared.begin_delta();
        Ok(())
    }

    /// Gives a role up, as if its member had failed.
    ///
    /// # Errors
    /// Where blocks would be lost with it, or it has failed already: nothing is changed then.
    pub async fn give_up(&self, role: usize) -> Result<(), SweepError> {
        let shared = &self.core.shared;
        let mut without = shared.state().clone();
        let state = without.roles[role].state;
        without.roles[role].state = RoleState::Failed;
        if state == RoleState::Failed || !without.is_viable(&shared.geometry) {
            return Err(SweepError::State(state));
        }
        self.core.fail(role).await?;
        Ok(())
    }

    fn fit(&self, role: usize) -> Result<Rc<D>, SweepError> {
        let shared = &self.core.shared;
        let state = shared.state().roles[role].state;
        if state != RoleState::Failed {
            return Err(SweepError::State(state));
        }
        let disk = self.core.member(role).ok_or(SweepError::Unfit)?;
        let (info, geometry) = (disk.info(), &shared.geometry);
        let fits =
            info.block_size == geometry.block_size() && info.bytes() >= geometry.member_bytes();
        fits.then_some(disk).ok_or(SweepError::Unfit)
    }

    /// Rebuilds a role from where it stands; after a restart, from the recorded progress. As all
    /// sweeps it is run to its end, by a task of its own and one sweep at a time: dropped, it leaves a
    /// stripe locked.
    ///
    /// # Errors
    /// Where the role is not rebuilding (any more), or what it needs is lost.
    pub async fn rebuild(&self, role: usize, pace: Pace) -> Result<(), SweepError> {
        let (core, shared) = (&self.core, &self.core.shared);
        let mut meter = Meter {
            pace,
            activity: shared.activity.sum(),
        };
        let total = shared.geometry.stripes();
        let mut recorded = shared.good(role);
        while shared.good(role) < total {
            let state = shared.state().roles[role].state;
            if !matches!(state, RoleState::Rebuilding { .. }) {
                return Err(SweepError::State(state));
            }
            let stripe = shared.good(role);
            let locked = shared.stripes.acquire(&core.parking, stripe).await;
            let mut outcome = Ok(());
            let needed = !shared.is_good(role, stripe);
            if needed {
                outcome = rebuild_stripe(core, role, stripe).await;
            }
            // With the stripe locked: a write that comes next includes the role.
            if outcome.is_ok() && !matches!(shared.state().roles[role].state, RoleState::Failed) {
                shared.advance(role, stripe + 1);
            }
            shared.stripes.release(locked);
            outcome?;
            core.set_swept(stripe + 1);
            let rested = match needed {
                true => meter.rest(core).await,
                false => Ok(()),
            };
            if rested.is_err() || stripe + 1 >= recorded + STRIPES_PER_RECORD {
                recorded = stripe + 1;
                self.record(role, recorded).await?;
            }
            rested?;
        }
        core.flush_members().await?;
        core.change(|state| {
            let rebuilt = matches!(state.roles[role].state, RoleState::Rebuilding { .. });
            if rebuilt {
                state.roles[role].state = RoleState::Active;
            }
            Ok(rebuilt)
        })
        .await?;
        let state = shared.state().roles[role].state;
        match state {
            RoleState::Active => Ok(()),
            other => Err(SweepError::State(other)),
        }
    }

    async fn record(&self, role: usize, done: u64) -> Outcome {
        self.core.flush_members().await?;
        self.core
            .change(|state| match &mut state.roles[role].state {
                RoleState::Rebuilding { stripes, .. } => {
                    *stripes = done;
                    Ok(true)
                }
                _ => Ok(false),
            })
            .await
    }

    /// Makes regions equal that a crash may have left unequal. Run after assembly.
    ///
    /// # Errors
    /// Where members fail beyond the redundancy.
    pub async fn resync(&self, pace: Pace) -> Result<(), SweepError> {
        let (core, shared) = (&self.core, &self.core.shared);
        let mut meter = Meter {
            pace,
            activity: shared.activity.sum(),
        };
        let dirty = &shared.dirty;
        for region in 0..dirty.regions() {
            if !dirty.unequal.get(region) {
                continue;
            }
            let first = region as u64 * dirty.region_stripes();
            let last = (first + dirty.region_stripes()).min(shared.geometry.stripes());
            for stripe in first..last {
                let locked = shared.stripes.acquire(&core.parking, stripe).await;
                let outcome = check_stripe(core, stripe).await;
                shared.stripes.release(locked);
                outcome?;
                meter.rest(core).await?;
            }
            dirty.unequal.clear(region);
        }
        self.tidy().await?;
        Ok(())
    }

    /// Reads everything, and makes agree what does not: parity with its data, legs with the first.
    ///
    /// # Errors
    /// Where members fail beyond the redundancy.
    pub async fn scrub(&self, pace: Pace) -> Result<Scrubbed, SweepError> {
        let (core, shared) = (&self.core, &self.core.shared);
        let mut meter = Meter {
            pace,
            activity: shared.activity.sum(),
        };
        let mut report = Scrubbed::default();
        for stripe in 0..shared.geometry.stripes() {
            let locked = shared.stripes.acquire(&core.parking, stripe).await;
            let outcome = check_stripe(core, stripe).await;
            shared.stripes.release(locked);
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    report.mismatch_count += 1;
                    Tally::count(&shared.tally.mismatches);
                    if report.mismatches.len() < Scrubbed::LISTED_MAX {
                        report.mismatches.push(stripe);
                    }
                }
                Err(DiskError::UnrecoveredRead) => {
                    if report.lost.len() < Scrubbed::LISTED_MAX {
                        report.lost.push(stripe);
                    }
                }
                Err(error) => return Err(error.into()),
            }
            core.set_swept(stripe + 1);
            meter.rest(core).await?;
        }
        Ok(report)
    }

    /// Takes marks away where nothing is being written and nobody is missing; how many. To be called
    /// from time to time.
    ///
    /// # Errors
    /// Where the map could not be written.
    pub async fn tidy(&self) -> Result<usize, DiskError> {
        self.core.unmark().await
    }

    /// The stripes that a sweep under way has done, and all there are.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        self.assembled().progress()
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
    let disk = core.member(role).ok_or(SweepError::Unfit)?;
    let at = core.shared.geometry.row_lba(stripe, row);
    let spoiled = disk.write_uncorrectable(at, 1).await;
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

/// Makes a stripe agree with itself; true where it did not. With the stripe locked.
async fn check_stripe<D: Disk>(core: &Core<D>, stripe: u64) -> Result<bool, DiskError> {
    let geometry = core.shared.geometry;
    let mut differed = false;
    for rows in units(core) {
        if geometry.parity() > 0 {
            differed |= check_parity(core, stripe, &rows).await?;
        } else {
            for strip in 0..geometry.data() {
                differed |= check_legs(core, stripe, strip, &rows).await?;
            }
        }
    }
    Ok(differed)
}

async fn check_parity<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    rows: &Range<u32>,
) -> Result<bool, DiskError> {
    let (shared, geometry) = (&core.shared, core.shared.geometry);
    let (data, parity) = (geometry.data(), geometry.parity());
    let bytes = (rows.end - rows.start) as usize;
    // What cannot be read is made of the others and written back; parity, as if it were wrong.
    let mut scratch = Scratch::new();
    let lengths = std::iter::repeat_n(bytes, data + parity);
    core.scratch(lengths, &mut scratch).await;
    let absent = shared.absent(stripe);
    if Set::first(data).meets(absent) {
        // Without all data there is nothing to compare; what is there has to make the rest.
        return Ok(false);
    }
    let present = Set::first(data + parity).without(absent);
    let indices: Vec<usize> = present.iter().collect();
    let into: Vec<Buffer> = indices
        .iter()
        .map(|&index| scratch[index].clone())
        .collect();
    let unreadable = gather(core, stripe, rows, &indices, &into).await;
    drop((into, scratch));
    for strip in Set(unreadable.0 & Set::first(data).0).iter() {
        let mut scratch = Scratch::new();
        core.scratch(std::iter::once(bytes), &mut scratch).await;
        read_leg(core, stripe, strip, rows, one(scratch[0].clone())).await?;
    }
    compare_parity(core, stripe, rows, unreadable).await
}

async fn compare_parity<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    rows: &Range<u32>,
    was_unreadable: Set,
) -> Result<bool, DiskError> {
    let (shared, geometry) = (&core.shared, core.shared.geometry);
    let (data, parity) = (geometry.data(), geometry.parity());
    let bytes = (rows.end - rows.start) as usize;
    let mut scratch = Scratch::new();
    let lengths = std::iter::repeat_n(bytes, data + parity + 1);
    core.scratch(lengths, &mut scratch).await;
    let indices: Vec<usize> = (0..data).collect();
    if !gather(core, stripe, rows, &indices, &scratch)
        .await
        .is_empty()
    {
        return Err(DiskError::UnrecoveredRead);
    }
    let sources: Vec<Segments> = scratch[..data].iter().map(|b| one(b.clone())).collect();
    let codec = shared.codec.as_ref().expect("a level with parity");
    encode(codec, &sources, &mut scratch[data..data + parity]);
    let mut differed = false;
    for index in data..data + parity {
        if shared.absent(stripe).has(index) {
            continue;
        }
        let old = scratch[data + parity].clone();
        let read = gather(core, stripe, rows, &[index], std::slice::from_ref(&old)).await;
        let same = read.is_empty() && old.bytes()[..] == scratch[index].bytes()[..];
        if !same {
            differed |= !was_unreadable.has(index);
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
    let mut scratch = Scratch::new();
    core.scratch(std::iter::repeat_n(bytes, 2), &mut scratch)
        .await;
    let first = scratch[0].clone();
    read_leg(core, stripe, strip, rows, one(first.clone())).await?;
    let mut differed = false;
    for role in geometry.legs_of(strip) {
        if !core.shared.is_good(role, stripe) {
            continue;
        }
        let at = geometry.row_lba(stripe, rows.start);
        let mut fan = Fan::new();
        let read = Transfer::Read(one(scratch[1].clone()));
        fan.add(role, core.transfer(role, at, || read).await);
        let ends = fan.land(core).await;
        let same = ends.unreadable.is_empty()
            && ends.failed.is_empty()
            && scratch[1].bytes()[..] == first.bytes()[..];
        if !same {
            differed |= ends.unreadable.is_empty();
            write_rows(core, role, stripe, rows, one(first.clone())).await?;
        }
    }
    Ok(differed)
}
