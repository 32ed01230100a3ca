//! Owns what goes over a whole array beside the hosts: rebuilding a member, making equal what a crash
//! left unequal, scrubbing.
//!
//! A sweep has a few stripes in flight, each locked and worked on by an operation of its own
//! (`stripe.rs`); fewer of them while hosts are busy. It goes at its [`Pace`].
//!
//! # A rebuild
//! 1. The role's state becomes *rebuilding* from stripe 0, on all members and the new one. Writes to
//!    stripes that are not done yet leave the new member out; so nothing of it is read.
//! 2. Stripe by stripe its strip is made of the others, written, and counts from then on, in the
//!    stripes' order, while the stripe is still locked.
//! 3. From time to time the new member is flushed and the progress recorded. After a crash it goes on
//!    there: stripes after it are made again.
//! 4. A stripe of which too much is lost to make it is stepped over: the member does not count there, and
//!    the rebuild does not end. It is tried again from time to time: a write of all of the stripe mends it.
//! 5. At the end it is flushed once more and the state becomes *active*.
//!
//! A member that comes back is rebuilt in the same way, but counts at once in all regions that are not
//! marked as written since it went.

use std::{fmt, rc::Rc, time::Duration};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::BufferPool,
    disk::{Disk, DiskError},
    rng::Rng,
};

pub use crate::pace::Pace;
use crate::{
    array::Array,
    assemble::{Holds, LOOK, Refusal, look_with, returning},
    create::{Occupant, occupant_of},
    engine::{Core, Flight, Job, OPERATIONS_WITH_SCRATCH, Outcome, Scratch, operation_lengths},
    geometry::Geometry,
    pace::Meter,
    state::{RoleState, Uuid},
    stripe::{Run, Work},
    superblock::SUPERBLOCK_BYTES,
    watch::within,
};

/// The most stripes of a sweep in flight.
const STRIPES_MAX: usize = 16;

/// The most while hosts are busy: each is locked as long as it takes.
const STRIPES_BESIDE_HOSTS: usize = 2;

/// Stripes after which a rebuild's progress is recorded.
const STRIPES_PER_RECORD: u64 = 1024;

/// How long a member that comes back is waited for to end what was asked of it before.
const OLDER_COMMANDS: Duration = Duration::from_millis(100);

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
    /// It is not who had the role.
    Refused(Refusal),
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
            Self::Refused(refusal) => write!(f, "{refusal}"),
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
    /// The stripes, from the first on, that it has gone over.
    pub done: u64,
}

impl Scrubbed {
    /// Stripes that are listed.
    pub const LISTED_MAX: usize = 64;
}

/// Stripes that a sweep has in flight.
struct Convoy<'a, D> {
    core: &'a Core<D>,
    meter: Meter,
    run: Rc<Run>,
    flights: ArrayVec<Flight<'a>, STRIPES_MAX>,
    /// As many as there is scratch memory for beside the hosts'.
    widest: usize,
}

impl<'a, D: Disk> Convoy<'a, D> {
    /// A convoy whose stripes take so many buffers each.
    fn new(core: &'a Core<D>, pace: Pace, buffers: usize) -> Self {
        let geometry = &core.shared.geometry;
        let room = 3 * OPERATIONS_WITH_SCRATCH * operation_lengths(geometry).count() / 4;
        Self {
            core,
            meter: Meter::new(pace, &core.shared, core.reactor.now()),
            run: Rc::default(),
            flights: ArrayVec::new(),
            widest: (room / buffers.max(1)).clamp(1, STRIPES_MAX),
        }
    }

    /// Starts with a stripe when it is time for it.
    async fn start(&mut self, work: impl FnOnce(Rc<Run>) -> Work) -> Result<(), SweepError> {
        let core = self.core;
        if core.shared.sweeps_halted() {
            self.drain().await?;
            return Err(SweepError::Halted);
        }
        let pause = self.meter.pause(&core.shared, core.reactor.now());
        if !pause.is_zero() {
            core.reactor.sleep(pause).await;
        }
        let most = match self.meter.is_busy() {
            true => STRIPES_BESIDE_HOSTS.min(self.widest),
            false => self.widest,
        };
        while self.flights.len() >= most {
            self.end_one().await;
        }
        if self.run.failed().is_some() {
            return self.drain().await;
        }
        let run = self.run.clone();
        let mut job = || Job::Stripe(work(run));
        let flight = loop {
            match core.try_operate(job) {
                Ok(flight) => break flight,
                Err(back) if self.flights.is_empty() => break core.operate(back).await,
                Err(back) => job = back,
            }
            self.end_one().await;
        };
        self.flights.push(flight);
        core.run();
        Ok(())
    }

    /// Waits for the stripe that was started first.
    async fn end_one(&mut self) {
        self.core.next_turn().await;
        // How it ended is with the run.
        let _ = self.flights.remove(0).outcome().await;
    }

    /// Waits for all stripes that were started.
    async fn drain(&mut self) -> Result<(), SweepError> {
        while !self.flights.is_empty() {
            self.end_one().await;
        }
        self.run.failed().map_or(Ok(()), Err)
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
        let looked = within(&self.core.reactor, LOOK, occupant_of(&*disk, pool)).await;
        if let Some(by) = looked.unwrap_or(Err(DiskError::TimedOut))? {
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
                state.take_in(role, false);
                Ok(true)
            })
            .await?;
        self.core.give_map().await?;
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
                state.take_in(role, false);
                Ok(true)
            })
            .await?;
        if !known {
            return Err(SweepError::NoSpare);
        }
        Ok(self.core.give_map().await?)
    }

    /// Takes a member back that was away: this core's disk of the role is the one that had it last.
    /// Then [`rebuild`](Self::rebuild), which goes over what was written meanwhile, or over all of it
    /// where the member went while it was being rebuilt.
    ///
    /// # Errors
    /// Where the role has not failed, the disk is not its member, or commands of it are still out.
    pub async fn take_back(&self, role: usize) -> Result<(), SweepError> {
        let (disk, shared) = (self.fit(role)?, &self.core.shared);
        if shared.manners.strays(role) > 0 {
            return Err(SweepError::StillOut);
        }
        let holds = self.look_at_returning(&*disk, role).await?;
        shared.manners.begin_anew(role);
        self.wait_for_older(role).await?;
        let delta = holds == Holds::AllButMissed;
        if delta {
            shared.prepare_delta();
        }
        self.core
            .change_member(|state| {
                state.take_in(role, delta);
                Ok(true)
            })
            .await?;
        if delta {
            shared.begin_delta();
        }
        Ok(())
    }

    async fn look_at_returning(&self, disk: &D, role: usize) -> Result<Holds, SweepError> {
        let (core, mut scratch) = (&self.core, Scratch::new());
        core.scratch(std::iter::once(SUPERBLOCK_BYTES), &mut scratch)
            .await;
        let looked = within(&core.reactor, LOOK, look_with(disk, &scratch[0])).await;
        let own = looked.unwrap_or(Err(Refusal::Unreadable(DiskError::TimedOut)));
        let own = own.map_err(SweepError::Refused)?.superblock;
        returning(disk, &own, &core.shared, role).map_err(SweepError::Refused)
    }

    /// What was asked of a role's member before it was given up, or is about to be given up because the
    /// role begins anew, has ended.
    async fn wait_for_older(&self, role: usize) -> Result<(), SweepError> {
        let core = &self.core;
        let deadline = core.reactor.now().plus(OLDER_COMMANDS);
        while core.shared.unended.of(role) > 0 {
            if core.reactor.now() >= deadline {
                return Err(SweepError::StillOut);
            }
            core.next_turn().await;
        }
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

    /// Rebuilds a role from where it stands; after a restart, from the recorded progress. One sweep at
    /// a time goes over an array.
    ///
    /// # Errors
    /// Where the role is not rebuilding (any more), or what it needs of some stripes is lost: all others
    /// have been made then, see [`Assembled::lost_stripes`](crate::array::Assembled::lost_stripes).
    pub async fn rebuild(&self, role: usize, pace: Pace) -> Result<(), SweepError> {
        let (core, shared) = (&self.core, &self.core.shared);
        let mut convoy = Convoy::new(core, pace, shared.geometry.data() + 1);
        convoy.run.is_for(shared, role);
        let state = shared.state().roles[role].state;
        if !convoy.run.goes_on(shared, role) {
            return Err(SweepError::State(state));
        }
        let goes_on = || convoy.run.goes_on(shared, role);
        core.give_zone(role, goes_on).await?;
        let swept = self.rebuild_stripes(role, &mut convoy).await;
        let swept = swept.and(convoy.drain().await);
        if swept == Err(SweepError::Halted) {
            self.record(role).await?;
        }
        swept?;
        if let Some(stripe) = shared.first_stepped_over(role) {
            self.record(role).await?;
            return Err(SweepError::Lost { stripe });
        }
        core.flush_members().await?;
        core.change(|state| {
            let rebuilt = convoy.run.goes_on(shared, role);
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

    async fn rebuild_stripes(
        &self,
        role: usize,
        convoy: &mut Convoy<'_, D>,
    ) -> Result<(), SweepError> {
        let shared = &self.core.shared;
        let total = shared.geometry.stripes();
        self.core.begin_sweep(total);
        // One further on comes in its turn: whoever made it now would wait, with the stripe locked, for
        // those before it.
        let earlier = |&(of, stripe): &(usize, u64)| of == role && stripe < shared.good(role);
        for (_, stripe) in shared.stepped_over().into_iter().filter(earlier) {
            convoy.start(|run| Work::Rebuild(run, role, stripe)).await?;
        }
        let mut next = shared.good(role);
        let mut recorded = next;
        while next < total {
            if !convoy.run.goes_on(shared, role) {
                return convoy.drain().await;
            }
            if shared.is_good(role, next) {
                // What a member that returned has not missed counts already, locked or not.
                convoy.drain().await?;
                if !shared.is_good(role, next) {
                    // Another member returns meanwhile; a write may have left this one out.
                    continue;
                }
                let region = shared.dirty.region_stripes();
                let end = (next / region + 1) * region;
                let from = next;
                next = end.min(total);
                if !shared.advance(role, from, next) {
                    return Err(SweepError::State(shared.state().roles[role].state));
                }
            } else {
                let stripe = next;
                convoy.start(|run| Work::Rebuild(run, role, stripe)).await?;
                next += 1;
            }
            let done = shared.good(role).min(next);
            self.core.set_swept(done);
            if done >= recorded + STRIPES_PER_RECORD {
                recorded = done;
                self.record(role).await?;
            }
        }
        convoy.drain().await?;
        self.core.set_swept(total);
        Ok(())
    }

    /// Records on the members how far a rebuild is.
    async fn record(&self, role: usize) -> Outcome {
        let good = self.core.shared.good(role);
        // After a restart it goes on at the first that it has stepped over.
        let first = self.core.shared.first_stepped_over(role);
        let done = first.map_or(good, |first| first.min(good));
        self.core.flush_members().await?;
        self.core
            .change(|state| match &mut state.roles[role].state {
                RoleState::Rebuilding { stripes, .. } if *stripes != done => {
                    *stripes = done;
                    Ok(true)
                }
                _ => Ok(false),
            })
            .await
    }

    /// Makes regions equal that a crash may have left unequal. Run after assembly. A stripe that cannot
    /// be read leaves its own region unequal, and no other one; so does one of which a rebuild stepped over
    /// data. Where so many members are missing that no parity is left to compare with, it ends, and is due
    /// again ([`Assembled::resync_waits`](crate::array::Assembled::resync_waits)).
    ///
    /// # Errors
    /// Where members fail beyond the redundancy, or a stripe could not be read or was stepped over.
    pub async fn resync(&self, pace: Pace) -> Result<(), SweepError> {
        let (core, shared) = (&self.core, &self.core.shared);
        let mut convoy = Convoy::new(core, pace, checked_buffers(&shared.geometry));
        let dirty = &shared.dirty;
        let stripes_of = |region: usize| {
            let first = region as u64 * dirty.region_stripes();
            first..(first + dirty.region_stripes()).min(shared.geometry.stripes())
        };
        let count = |region| stripes_of(region).count() as u64;
        let unequal = (0..dirty.regions()).filter(|region| dirty.unequal.get(*region));
        core.begin_sweep(unequal.clone().map(count).sum());
        let (mut lost, mut done) = (None, 0);
        for region in unequal {
            for stripe in stripes_of(region) {
                convoy.start(|run| Work::Check(run, stripe)).await?;
            }
            convoy.drain().await?;
            if shared.keeps_resync_waiting() {
                break;
            }
            let overlooked = convoy.run.overlooked.take();
            let unread = convoy.run.found.take().lost.into_iter().min();
            match unread.or(overlooked) {
                None => dirty.unequal.clear(region),
                more => lost = lost.or(more),
            }
            done += count(region);
            core.set_swept(done);
        }
        self.tidy().await?;
        lost.map_or(Ok(()), |stripe| Err(SweepError::Lost { stripe }))
    }

    /// Reads everything, and makes agree, durably, what does not: parity with its data, legs with the
    /// first.
    ///
    /// # Errors
    /// Where members fail beyond the redundancy, or the array is about to be closed.
    pub async fn scrub(&self, pace: Pace) -> Result<Scrubbed, SweepError> {
        let found = self.scrub_on(pace, Scrubbed::default(), || true).await?;
        match found.done < self.core.shared.geometry.stripes() {
            true => Err(SweepError::Halted),
            false => Ok(found),
        }
    }

    /// The same, from where an earlier one ended, and only while `goes_on` says so: how far it came is
    /// with what it found.
    ///
    /// # Errors
    /// Where members fail beyond the redundancy.
    pub async fn scrub_on(
        &self,
        pace: Pace,
        so_far: Scrubbed,
        goes_on: impl Fn() -> bool,
    ) -> Result<Scrubbed, SweepError> {
        let (core, shared) = (&self.core, &self.core.shared);
        let stripes = shared.geometry.stripes();
        let mut convoy = Convoy::new(core, pace, checked_buffers(&shared.geometry));
        let (mut next, mended) = (so_far.done.min(stripes), so_far.mismatch_count);
        convoy.run.found.replace(so_far);
        core.begin_sweep(stripes);
        core.set_swept(next);
        while next < stripes && goes_on() {
            match convoy.start(|run| Work::Check(run, next)).await {
                Err(SweepError::Halted) => break,
                other => other?,
            }
            next += 1;
            core.set_swept(next.saturating_sub(convoy.flights.len() as u64));
        }
        convoy.drain().await?;
        core.set_swept(next);
        let mut found = convoy.run.found.take();
        if found.mismatch_count > mended {
            // What is told to be mended stays so.
            core.flush_members().await?;
        }
        found.mismatches.sort_unstable();
        found.lost.sort_unstable();
        found.done = next;
        Ok(found)
    }

    /// Takes marks away where nothing is being written and nobody is missing; how many. To be called
    /// from time to time.
    ///
    /// # Errors
    /// Where the map could not be written.
    pub async fn tidy(&self) -> Result<usize, DiskError> {
        self.core.unmark().await
    }

    /// The stripes that a sweep under way has done, and all that it goes over.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        self.assembled().progress()
    }
}

/// The buffers that checking a stripe takes.
fn checked_buffers(geometry: &Geometry) -> usize {
    match geometry.parity() {
        0 => geometry.copies(),
        parity => geometry.data() + 2 * parity,
    }
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
