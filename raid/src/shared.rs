//! Owns what all cores of an assembled array share.
//!
//! Invariants:
//! - A role may be read and written at a stripe only where [`Shared::is_good`] says so. That changes
//!   only after the superblocks say so, and, as a rebuild advances, only with the stripe locked.
//! - Nothing here is locked on the data path: the mutex guards what superblocks are written from.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use corebay_core::disk::DiskError;

use crate::{
    dirty::{Bits, DirtyMap, Marks},
    geometry::{Geometry, ROLES_MAX},
    journal::Ring,
    kernels::Codec,
    lock::{Changes, TicketLocks},
    state::{ArrayState, RoleState, Uuid},
    superblock::Superblock,
    watch::{Activity, Manners, Unended},
};

/// The most locks of stripes: those whose numbers are as far apart share one.
const STRIPE_LOCKS_MAX: u64 = 1 << 16;

/// Parts of the mirrored zone that can be locked at a time.
const ZONE_LOCKS: usize = 256;

/// A set of roles, or of strips of a stripe by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set(pub(crate) u32);

impl Set {
    pub(crate) fn first(count: usize) -> Self {
        (0..count).collect()
    }

    pub(crate) fn has(self, member: usize) -> bool {
        self.0 >> member & 1 == 1
    }

    pub(crate) fn with(self, member: usize) -> Self {
        Self(self.0 | 1 << member)
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..32).filter(move |&member| self.has(member))
    }
}

impl FromIterator<usize> for Set {
    fn from_iter<I: IntoIterator<Item = usize>>(members: I) -> Self {
        members.into_iter().fold(Self(0), Self::with)
    }
}

/// What has been counted since the array was assembled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Strips' rows that were made of others because they could not be read.
    pub reconstructed: u64,
    /// Of these, the ones written back to their member.
    pub repaired: u64,
    /// Members that failed.
    pub failed_members: u64,
    /// Members that were much slower than the others for some time.
    pub slow_members: u64,
    /// Rows found by a scrub that did not agree.
    pub mismatches: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reconstructed: AtomicU64,
    pub(crate) repaired: AtomicU64,
    pub(crate) failed_members: AtomicU64,
    pub(crate) slow_members: AtomicU64,
    pub(crate) mismatches: AtomicU64,
}

impl Tally {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The most stripes that a rebuild steps over.
const HOLES_MAX: usize = 1024;

/// Stripes that rebuilds could not make, because too much of them is lost, and stepped over: their role
/// is not good there, however far the rebuild is. Changed with the stripe locked.
#[derive(Debug)]
struct Holes {
    count: AtomicU32,
    /// The stripe and the role, or 0.
    places: [AtomicU64; HOLES_MAX],
}

impl Holes {
    fn new() -> Self {
        Self {
            count: AtomicU32::new(0),
            places: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn code(role: usize, stripe: u64) -> u64 {
        1 << 63 | stripe << 5 | role as u64
    }

    fn all(&self) -> impl Iterator<Item = (usize, u64)> {
        let codes = self.places.iter().map(|place| place.load(Ordering::SeqCst));
        codes
            .filter(|code| *code != 0)
            .map(|code| ((code & 31) as usize, (code & !(1 << 63)) >> 5))
    }

    fn has(&self, role: usize, stripe: u64) -> bool {
        self.count.load(Ordering::SeqCst) > 0 && self.all().any(|hole| hole == (role, stripe))
    }

    /// False where there are too many.
    fn dig(&self, role: usize, stripe: u64) -> bool {
        if self.has(role, stripe) {
            return true;
        }
        let code = Self::code(role, stripe);
        let (done, looked) = (Ordering::SeqCst, Ordering::SeqCst);
        let mut places = self.places.iter();
        let dug = places.any(|place| place.compare_exchange(0, code, done, looked).is_ok());
        self.count.fetch_add(u32::from(dug), Ordering::SeqCst);
        dug
    }

    fn fill(&self, is: impl Fn(usize, u64) -> bool) {
        for place in &self.places {
            let code = place.load(Ordering::SeqCst);
            if code != 0 && is((code & 31) as usize, (code & !(1 << 63)) >> 5) {
                // Another core may fill it, too.
                let (done, looked) = (Ordering::SeqCst, Ordering::SeqCst);
                let filled = place.compare_exchange(code, 0, done, looked).is_ok();
                self.count.fetch_sub(u32::from(filled), Ordering::SeqCst);
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) array: Uuid,
    pub(crate) geometry: Geometry,
    pub(crate) codec: Option<Codec>,
    template: Superblock,
    epoch: AtomicU64,
    state: Mutex<ArrayState>,
    /// By role: the stripes that are good.
    good: [AtomicU64; ROLES_MAX],
    /// Roles that are good in all regions that are not in `missed`, too.
    delta: AtomicU32,
    holes: Holes,
    /// Regions that members being rebuilt missed.
    missed: Bits,
    whole: AtomicBool,
    /// More is lost than there is redundancy for: nothing is written any more.
    stopped: AtomicBool,
    /// Of an array without redundancy: roles whose disks are gone.
    lost: AtomicU32,
    /// Sweeps are to end.
    halted: AtomicBool,
    /// Some member had a volatile cache when the array was assembled, so that it is flushed.
    volatile: AtomicBool,
    pub(crate) stripes: TicketLocks,
    /// Of stripes on several legs.
    pub(crate) changes: Changes,
    /// Held by parts of the mirrored zone.
    pub(crate) zone: TicketLocks,
    /// Roles being rebuilt whose copy of the zone is good.
    zone_good: AtomicU32,
    /// Held while superblocks are written.
    pub(crate) update: TicketLocks,
    /// Held while the dirty map is written.
    pub(crate) marking: TicketLocks,
    /// Held while the journal is made void.
    pub(crate) voiding: TicketLocks,
    /// Held while caches are flushed to make room in the journal.
    pub(crate) flushing: TicketLocks,
    pub(crate) ring: Ring,
    pub(crate) dirty: DirtyMap,
    pub(crate) tally: Tally,
    pub(crate) manners: Manners,
    pub(crate) activity: Activity,
    pub(crate) unended: Unended,
    /// The stripes that the sweep under way has done.
    pub(crate) swept: AtomicU64,
    /// And those that it goes over.
    pub(crate) to_sweep: AtomicU64,
}

impl Shared {
    pub(crate) fn new(superblock: Superblock, dirty: DirtyMap, ring: Ring, volatile: bool) -> Self {
        let stripes = superblock.geometry.stripes();
        let locks = stripes.min(STRIPE_LOCKS_MAX);
        let changes = match superblock.geometry.copies() {
            1 => 0,
            _ => locks as usize,
        };
        let shared = Self {
            array: superblock.array,
            geometry: superblock.geometry,
            codec: superblock.codec.clone(),
            epoch: AtomicU64::new(superblock.state.epoch),
            state: Mutex::new(superblock.state.clone()),
            template: superblock,
            good: std::array::from_fn(|_| AtomicU64::new(0)),
            delta: AtomicU32::new(0),
            holes: Holes::new(),
            missed: dirty.empty_bits(),
            whole: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            lost: AtomicU32::new(0),
            halted: AtomicBool::new(false),
            volatile: AtomicBool::new(volatile),
            stripes: TicketLocks::new(locks as usize),
            changes: Changes::new(changes),
            zone: TicketLocks::new(ZONE_LOCKS),
            zone_good: AtomicU32::new(0),
            update: TicketLocks::new(1),
            marking: TicketLocks::new(1),
            voiding: TicketLocks::new(1),
            flushing: TicketLocks::new(1),
            ring,
            dirty,
            tally: Tally::default(),
            manners: Manners::default(),
            activity: Activity::new(),
            unended: Unended::new(),
            swept: AtomicU64::new(0),
            to_sweep: AtomicU64::new(stripes),
        };
        let state = shared.state().clone();
        shared.missed.store(&shared.dirty.marks());
        shared.publish(&state);
        shared
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, ArrayState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A state is on the members: from now on it counts.
    pub(crate) fn publish(&self, state: &ArrayState) {
        // Held until all follows it: no rebuild advances meanwhile.
        let mut current = self.state();
        *current = state.clone();
        let (mut delta, mut rebuilding) = (Set::default(), Set::default());
        let mut failed = Set::default();
        for (role, record) in state.roles.iter().enumerate() {
            let stripes = match record.state {
                RoleState::Active => u64::MAX,
                RoleState::Failed => {
                    failed = failed.with(role);
                    0
                }
                RoleState::Rebuilding {
                    stripes,
                    delta: yes,
                } => {
                    rebuilding = rebuilding.with(role);
                    if yes {
                        delta = delta.with(role);
                    }
                    // What is on the members lags behind.
                    stripes.max(match self.good(role) {
                        u64::MAX => 0,
                        good => good,
                    })
                }
            };
            self.good[role].store(stripes, Ordering::SeqCst);
        }
        self.delta.store(delta.0, Ordering::SeqCst);
        // Not before the role is good nowhere: its strip there was never written.
        self.holes.fill(|of, _| failed.has(of));
        self.zone_good.fetch_and(rebuilding.0, Ordering::SeqCst);
        self.whole.store(state.is_whole(), Ordering::SeqCst);
    }

    /// The copy of the zone of a role being rebuilt is good.
    pub(crate) fn has_zone(&self, role: usize) -> bool {
        Set(self.zone_good.load(Ordering::SeqCst)).has(role)
    }

    pub(crate) fn set_zone(&self, role: usize) {
        let bit = Set::default().with(role).0;
        self.zone_good.fetch_or(bit, Ordering::SeqCst);
    }

    pub(crate) fn unset_zone(&self, role: usize) {
        let bit = Set::default().with(role).0;
        self.zone_good.fetch_and(!bit, Ordering::SeqCst);
    }

    /// Until [`begin_delta`](Self::begin_delta) a member that returns has missed everything; and, as
    /// there is one set for all roles, so has one that is being rebuilt already. Its rebuild steps over
    /// no region that it has not looked at since, by the same core that calls this.
    pub(crate) fn prepare_delta(&self) {
        self.missed.store(&Marks::all(self.dirty.regions()));
    }

    /// A member that has returned missed what is marked now. A write marks its region first and looks
    /// at who is good after. If it looked before the first line, the second sees its mark.
    pub(crate) fn begin_delta(&self) {
        self.missed.store(&self.dirty.marks());
        self.missed.add(&self.dirty.marks());
    }

    /// True where members' caches are flushed. Where it is not, nothing is left in them.
    pub(crate) fn is_volatile(&self) -> bool {
        self.volatile.load(Ordering::Relaxed)
    }

    /// From now on nothing is left in members' caches. Before any core opens the array.
    pub(crate) fn set_nonvolatile(&self) {
        self.volatile.store(false, Ordering::Relaxed);
    }

    /// How many stripes of a role are good.
    pub(crate) fn good(&self, role: usize) -> u64 {
        self.good[role].load(Ordering::SeqCst)
    }

    /// A rebuild that had done `from` stripes of a role has done so many. With the last of them locked.
    /// False where the role has failed meanwhile.
    pub(crate) fn advance(&self, role: usize, from: u64, stripes: u64) -> bool {
        let state = self.state();
        let rebuilding = matches!(state.roles[role].state, RoleState::Rebuilding { .. });
        let (done, looked) = (Ordering::SeqCst, Ordering::SeqCst);
        rebuilding
            && self.good[role]
                .compare_exchange(from, stripes, done, looked)
                .is_ok()
    }

    /// True where a role's member holds what it should at a stripe.
    pub(crate) fn is_good(&self, role: usize, stripe: u64) -> bool {
        let made = stripe < self.good(role)
            || (Set(self.delta.load(Ordering::SeqCst)).has(role)
                && !self.missed.get(self.dirty.region_of(stripe)))
            // A rebuild may have stepped over it just before all was said to be missed.
            || stripe < self.good(role);
        made && !self.holes.has(role, stripe)
    }

    /// A rebuild could not make a stripe of a role, and steps over it; false where there are too many of
    /// these. With the stripe locked.
    pub(crate) fn step_over(&self, role: usize, stripe: u64) -> bool {
        self.holes.dig(role, stripe)
    }

    /// A stripe of a role has been made. With the stripe locked.
    pub(crate) fn made(&self, role: usize, stripe: u64) {
        self.holes.fill(|of, at| (of, at) == (role, stripe));
    }

    /// The roles and stripes that rebuilds stepped over, in the stripes' order.
    pub(crate) fn stepped_over(&self) -> Vec<(usize, u64)> {
        let mut all: Vec<_> = self.holes.all().collect();
        all.sort_unstable_by_key(|&(role, stripe)| (stripe, role));
        all
    }

    /// The first stripe of a role that a rebuild stepped over.
    pub(crate) fn first_stepped_over(&self, role: usize) -> Option<u64> {
        let own = self.holes.all().filter(|(of, _)| *of == role);
        own.map(|(_, stripe)| stripe).min()
    }

    /// The strips of a stripe, by index, that are not to be had.
    pub(crate) fn absent(&self, stripe: u64) -> Set {
        let geometry = &self.geometry;
        if self.is_whole() {
            return Set::default();
        }
        let absent = |index: &usize| !self.is_good(geometry.role_of(stripe, *index), stripe);
        (0..geometry.data() + geometry.parity())
            .filter(absent)
            .collect()
    }

    /// The epoch of the journal.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Records of other epochs are void from now on.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// The journal begins anew at a sequence: what it held is in place. What a crash may have left
    /// unequal is to be made equal.
    pub(crate) fn begin_epoch(&self, next: u64) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.ring.begin(next);
        // With a journal marks tell only what a missing member lacks. Where nobody is missing, they are left
        // of an end without a word: of one amid making equal what stale members had left, maybe.
        if self.has_redundancy() && (!self.geometry.is_journaled() || self.is_whole()) {
            self.dirty.unequal.store(&self.dirty.marks());
        }
    }

    /// True where some member can be lost.
    pub(crate) fn has_redundancy(&self) -> bool {
        self.geometry.parity() > 0 || self.geometry.copies() > 1
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::SeqCst)
    }

    /// Of an array with parity: so many members are away that none of it is left to compare with, or one is
    /// still to be rebuilt, which comes first. One whose rebuild has stepped over stripes lacks those alone.
    pub(crate) fn keeps_resync_waiting(&self) -> bool {
        if self.geometry.parity() == 0 || self.is_whole() {
            return false;
        }
        let stripes = self.geometry.stripes();
        let state = self.state().clone();
        let (mut failed, mut rebuilds) = (0, false);
        for (role, record) in state.roles.iter().enumerate() {
            match record.state {
                RoleState::Active => {}
                RoleState::Rebuilding { .. } => rebuilds |= self.good(role) < stripes,
                RoleState::Failed => failed += 1,
            }
        }
        rebuilds || failed >= self.geometry.parity()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// How a command to a role's member ended: where nothing else records that its disk is gone, it is
    /// kept here, to be told.
    pub(crate) fn heard(&self, role: usize, outcome: Result<(), DiskError>) {
        if outcome == Err(DiskError::Gone) && !self.has_redundancy() {
            self.lost
                .fetch_or(Set::default().with(role).0, Ordering::Relaxed);
        }
    }

    pub(crate) fn lost(&self) -> Set {
        Set(self.lost.load(Ordering::Relaxed))
    }

    pub(crate) fn sweeps_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    pub(crate) fn halt_sweeps(&self) {
        self.halted.store(true, Ordering::Relaxed);
    }

    /// The superblock of a member in a state.
    pub(crate) fn superblock(&self, member: Uuid, state: &ArrayState) -> Superblock {
        self.template.for_member(member, state)
    }

    pub(crate) fn counters(&self) -> Counters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            reconstructed: load(&self.tally.reconstructed),
            repaired: load(&self.tally.repaired),
            failed_members: load(&self.tally.failed_members),
            slow_members: load(&self.tally.slow_members),
            mismatches: load(&self.tally.mismatches),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_that_two_fill_at_once_is_filled_once() {
        let holes = Holes::new();
        assert!(holes.dig(1, 7) && holes.dig(1, 7));
        holes.fill(|role, stripe| {
            if (role, stripe) == (1, 7) {
                // Another core fills it after this one has looked, and one is dug in its place.
                holes.fill(|of, at| (of, at) == (1, 7));
                assert!(holes.dig(2, 9));
            }
            (role, stripe) == (1, 7)
        });
        assert!(holes.has(2, 9) && !holes.has(1, 7));
        assert_eq!(holes.count.load(Ordering::SeqCst), 1);
        holes.fill(|_, _| true);
        assert_eq!(holes.count.load(Ordering::SeqCst), 0);
    }
}
