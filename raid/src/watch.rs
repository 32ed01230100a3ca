//! Owns a core's patience with the members: which commands are out since when, and how long each
//! member takes.
//!
//! A member whose command is out longer than [`Patience::deadline`] is given up, and what waits for it
//! goes on without it: reads are made of the others, writes leave it out. The age of a command counts
//! in ticks, each of which needs a turn of this core, so a machine that stood still (a paused guest, a
//! stopped process) has given nobody up when it goes on.
//!
//! Invariants:
//! - Nobody is given up whom the array cannot do without; where more members are late at once than it
//!   bears to lose, they are all waited for: what they share has failed rather than each of them.
//! - Giving a command up takes nothing from the device: its buffers stay with it until it ends. A read
//!   that is given up is dropped, and the disk keeps its buffers (`corebay_core::disk`). Whatever may
//!   still change the member stays as a *stray* until it has ended ([`Strays`]), and a member does not
//!   come back before its strays have ended: they would land on newer data. The same goes for those that
//!   are about to be given up because their role gets a member anew ([`Unended`]).
//! - A read that ends at once costs nothing here; another one a place in a table. What changes a member
//!   is counted as well, in its core's own line of memory.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::{
        Arc, Weak as SharedWeak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use corebay_core::{
    disk::Disk,
    reactor::{PollSource, Reactor},
    units::{CoreId, Time},
};

use crate::{
    engine::{Core, Outcome},
    geometry::{Geometry, ROLES_MAX},
    shared::{Set, Shared, Tally},
    state::{ArrayState, RoleState},
};

/// A deadline's ticks: a command is given up between the deadline and an eighth more.
const TICKS: u32 = 8;

/// Flushes and zeroing may take so many times the deadline: their work has no bound that is known here.
const LONG: u32 = 6;

/// Commands of a member within a window that it is judged by, at least.
const SAMPLES_MIN: u64 = 32;

/// Windows in a row that a member has to be slow in.
const SLOW_WINDOWS: u32 = 3;

/// Commands that a core keeps an eye on while nobody waits for them any more.
const STRAYS_MAX: usize = 512;

/// How long members may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A member whose read or write is out longer than this is failed, where the array can do without
    /// it. Flushes and zeroing may take six times as long.
    pub deadline: Duration,
    /// A member is slow where its mean over a window is so many times the others' median ...
    pub slow_factor: u32,
    /// ... and at least this.
    pub slow_from: Duration,
    /// What is averaged over; a member has to be slow in three windows in a row.
    pub slow_window: Duration,
    /// What becomes of a slow member.
    pub slow: SlowMembers,
}

/// What becomes of a member that is much slower than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SlowMembers {
    /// The array says so ([`Assembled::slow`](crate::array::Assembled::slow)) and keeps it.
    #[default]
    Warn,
    /// It is failed, where the array can do without it.
    Fail,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            slow_factor: 8,
            slow_from: Duration::from_millis(10),
            slow_window: Duration::from_secs(10),
            slow: SlowMembers::Warn,
        }
    }
}

/// What all cores know of the members' manners.
#[derive(Debug)]
pub(crate) struct Manners {
    patience: std::sync::Mutex<Patience>,
    /// Roles that are given up, and about to be recorded as failed if they are not yet.
    doomed: AtomicU32,
    /// By role: counts its members, so that a command is not held against its member's successor.
    incarnations: [AtomicU32; ROLES_MAX],
    /// By role: commands given up that may still change the member.
    strays: [AtomicU32; ROLES_MAX],
    /// By role: commands that took longer than the deadline.
    overdue: [AtomicU64; ROLES_MAX],
    /// By role: the window's commands and their nanoseconds.
    latencies: [(AtomicU64, AtomicU64); ROLES_MAX],
    /// By role: the mean of the last window with commands, in nanoseconds; 0: none yet.
    means: [AtomicU64; ROLES_MAX],
    window_ends: AtomicU64,
    slow_windows: [AtomicU32; ROLES_MAX],
    slow: AtomicU32,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            patience: std::sync::Mutex::default(),
            doomed: AtomicU32::new(0),
            incarnations: std::array::from_fn(|_| AtomicU32::new(0)),
            strays: std::array::from_fn(|_| AtomicU32::new(0)),
            overdue: std::array::from_fn(|_| AtomicU64::new(0)),
            means: std::array::from_fn(|_| AtomicU64::new(0)),
            latencies: std::array::from_fn(|_| (AtomicU64::new(0), AtomicU64::new(0))),
            window_ends: AtomicU64::new(0),
            slow_windows: std::array::from_fn(|_| AtomicU32::new(0)),
            slow: AtomicU32::new(0),
        }
    }
}

impl Manners {
    pub(crate) fn patience(&self) -> Patience {
        *self
            .patience
            .lock()
            .unwrap_or_else(|lock| lock.into_inner())
    }

    pub(crate) fn set_patience(&self, patience: Patience) {
        *self
            .patience
            .lock()
            .unwrap_or_else(|lock| lock.into_inner()) = patience;
    }

    /// Roles that were given up.
    pub(crate) fn doomed(&self) -> Set {
        Set(self.doomed.load(Ordering::SeqCst))
    }

    pub(crate) fn incarnation(&self, role: usize) -> u32 {
        self.incarnations[role].load(Ordering::SeqCst)
    }

    /// Roles that have been slow for some windows.
    pub(crate) fn slow(&self) -> Set {
        Set(self.slow.load(Ordering::Relaxed))
    }

    /// Commands that were given up and may still change a role's former or present member.
    pub(crate) fn strays(&self, role: usize) -> u32 {
        self.strays[role].load(Ordering::SeqCst)
    }

    /// Commands of a role that took longer than the deadline.
    pub(crate) fn overdue(&self, role: usize) -> u64 {
        self.overdue[role].load(Ordering::Relaxed)
    }

    /// How long a role's reads and writes took, by the last window that had some.
    pub(crate) fn latency(&self, role: usize) -> Option<Duration> {
        let nanos = self.means[role].load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    /// A role that was given up stays all the same: the array cannot do without it.
    pub(crate) fn pardon(&self, role: usize) {
        let bit = Set::default().with(role).0;
        self.doomed.fetch_and(!bit, Ordering::SeqCst);
    }

    /// A role gets a member anew.
    pub(crate) fn begin_anew(&self, role: usize) {
        self.incarnations[role].fetch_add(1, Ordering::SeqCst);
        self.pardon(role);
        let bit = Set::default().with(role).0;
        self.means[role].store(0, Ordering::Relaxed);
        self.slow.fetch_and(!bit, Ordering::Relaxed);
        self.slow_windows[role].store(0, Ordering::Relaxed);
    }

    /// Gives up those of the roles that have not failed, if the array can do without all of them. With
    /// the state held, so that cores do not each give up another one.
    fn doom(&self, roles: Set, state: &ArrayState, geometry: &Geometry) {
        let mut without = state.clone();
        for role in self.doomed().union(roles).iter() {
            without.roles[role].state = RoleState::Failed;
        }
        if without.is_viable(geometry) {
            self.doomed.fetch_or(roles.0, Ordering::SeqCst);
        }
    }

    /// True for the one core that closes the window.
    fn window_has_ended(&self, now: Time, window: Duration) -> bool {
        let ends = self.window_ends.load(Ordering::Relaxed);
        let next = now.plus(window).0;
        let (done, looked) = (Ordering::SeqCst, Ordering::Relaxed);
        let closed = |from| self.window_ends.compare_exchange(from, next, done, looked);
        match ends {
            0 => {
                let _ = closed(0);
                false
            }
            ends => ends <= now.0 && closed(ends).is_ok(),
        }
    }

    /// The roles that were too slow in the window that ends now, by their means.
    fn judge(&self, patience: &Patience) -> Set {
        let means: arrayvec::ArrayVec<(usize, u64), ROLES_MAX> = (0..ROLES_MAX)
            .filter_map(|role| {
                let (count, nanos) = &self.latencies[role];
                let (count, nanos) = (
                    count.swap(0, Ordering::SeqCst),
                    nanos.swap(0, Ordering::SeqCst),
                );
                if let Some(mean) = nanos.checked_div(count) {
                    self.means[role].store(mean, Ordering::Relaxed);
                }
                (count >= SAMPLES_MIN).then(|| (role, nanos / count))
            })
            .collect();
        slow_roles(&means, patience)
    }

    /// Ends a window; the roles that have been slow for long enough.
    fn end_window(&self, patience: &Patience) -> Set {
        let slow = self.judge(patience);
        let mut long = Set::default();
        for role in 0..ROLES_MAX {
            match slow.has(role) {
                true => {
                    let windows = self.slow_windows[role].fetch_add(1, Ordering::Relaxed) + 1;
                    if windows >= SLOW_WINDOWS {
                        long = long.with(role);
                    }
                }
                false => self.slow_windows[role].store(0, Ordering::Relaxed),
            }
        }
        self.slow.store(long.0, Ordering::Relaxed);
        long
    }
}

/// Of roles and their means those that stand out.
fn slow_roles(means: &[(usize, u64)], patience: &Patience) -> Set {
    let from = u64::try_from(patience.slow_from.as_nanos()).unwrap_or(u64::MAX);
    let stands_out = |&(role, mean): &(usize, u64)| {
        let others = means.iter().filter(|(other, _)| *other != role);
        let mut others: arrayvec::ArrayVec<u64, ROLES_MAX> =
            others.map(|(_, mean)| *mean).collect();
        others.sort_unstable();
        let median = others.get(others.len() / 2);
        let factor = u64::from(patience.slow_factor);
        median.is_some_and(|median| mean >= from && mean > median.saturating_mul(factor))
    };
    let slow = means.iter().filter(|entry| stands_out(entry));
    slow.map(|(role, _)| *role).collect()
}

/// How long a command may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// As reads and writes.
    Usual,
    /// As flushes and zeroing.
    Long,
}

/// A command that is out.
struct Out {
    role: usize,
    incarnation: u32,
    /// When it began, and the ticks that it may take.
    tick: u32,
    ticks: u32,
    since: Time,
    /// It was counted among those that took longer than the deadline.
    overdue: bool,
    given_up: bool,
    waker: Waker,
}

/// One core's commands that are out on members.
pub(crate) struct Watch {
    places: RefCell<Box<[Option<Out>]>>,
    free: RefCell<Vec<u32>>,
    tick: Cell<u32>,
    /// Whoever ticks, where nothing is out.
    resting: RefCell<Option<Waker>>,
    latencies: [Cell<(u64, u64)>; ROLES_MAX],
}

impl Watch {
    /// With room for so many commands; those beyond are not watched.
    pub(crate) fn new(commands: usize) -> Rc<Self> {
        let count = u32::try_from(commands).expect("fewer than 2^32 commands");
        Rc::new(Self {
            places: RefCell::new((0..commands).map(|_| None).collect()),
            free: RefCell::new((0..count).rev().collect()),
            tick: Cell::new(0),
            resting: RefCell::new(None),
            latencies: std::array::from_fn(|_| Cell::new((0, 0))),
        })
    }

    /// A command's outcome, or nothing where it is given up first; it is not dropped then.
    pub(crate) async fn over<F: Future<Output = Outcome>>(
        &self,
        shared: &Shared,
        reactor: &Reactor,
        role: usize,
        takes: Takes,
        mut command: Pin<&mut F>,
    ) -> Option<Outcome> {
        let mut entry = Entry {
            watch: self,
            place: None,
        };
        poll_fn(|context| {
            if let Poll::Ready(outcome) = command.as_mut().poll(context) {
                if takes == Takes::Usual {
                    entry.came_back(reactor.now());
                }
                return Poll::Ready(Some(outcome));
            }
            match entry.is_given_up(shared, (role, takes), reactor.now(), context.waker()) {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        })
        .await
    }

    fn is_resting(&self) -> bool {
        let free = self.free.borrow().len();
        free == self.places.borrow().len()
    }

    /// Waits until something is out.
    async fn rest(&self) {
        poll_fn(|context| match self.is_resting() {
            true => {
                *self.resting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
            false => Poll::Ready(()),
        })
        .await;
    }

    /// The roles with commands that are late.
    fn late(&self, shared: &Shared) -> Set {
        let tick = self.tick.get();
        let is_late = |out: &Out| {
            tick.wrapping_sub(out.tick) > out.ticks
                && shared.manners.incarnation(out.role) == out.incarnation
        };
        let (mut places, mut late) = (self.places.borrow_mut(), Set::default());
        for out in places.iter_mut().flatten() {
            if is_late(out) {
                late = late.with(out.role);
                if !std::mem::replace(&mut out.overdue, true) {
                    Tally::count(&shared.manners.overdue[out.role]);
                }
            }
        }
        late
    }

    /// Wakes whoever waits for a member that was given up, or that its role has no more.
    fn give_up(&self, shared: &Shared) {
        let doomed = shared.manners.doomed();
        for out in self.places.borrow_mut().iter_mut().flatten() {
            let former = shared.manners.incarnation(out.role) != out.incarnation;
            if !out.given_up && (doomed.has(out.role) || former) {
                out.given_up = true;
                out.waker.wake_by_ref();
            }
        }
    }

    fn hand_latencies_over(&self, shared: &Shared) {
        for (own, all) in self.latencies.iter().zip(&shared.manners.latencies) {
            let (count, nanos) = own.take();
            if count > 0 {
                all.0.fetch_add(count, Ordering::SeqCst);
                all.1.fetch_add(nanos, Ordering::SeqCst);
            }
        }
    }

    fn tick(&self, shared: &Shared, now: Time) {
        self.tick.set(self.tick.get().wrapping_add(1));
        let manners = &shared.manners;
        let late = self.late(shared);
        if !late.is_empty() {
            manners.doom(late, &shared.state(), &shared.geometry);
        }
        self.hand_latencies_over(shared);
        let patience = manners.patience();
        if manners.window_has_ended(now, patience.slow_window) {
            let before = manners.slow();
            let slow = manners.end_window(&patience);
            for _ in slow.without(before).iter() {
                Tally::count(&shared.tally.slow_members);
            }
            if !slow.is_empty() && patience.slow == SlowMembers::Fail {
                manners.doom(slow, &shared.state(), &shared.geometry);
            }
        }
        self.give_up(shared);
    }
}

/// A command's place, given back when it is dropped.
struct Entry<'a> {
    watch: &'a Watch,
    place: Option<u32>,
}

impl Entry<'_> {
    fn came_back(&self, now: Time) {
        let Some(place) = self.place else { return };
        if let Some(out) = &self.watch.places.borrow()[place as usize] {
            let latency = &self.watch.latencies[out.role];
            let (count, nanos) = latency.get();
            let took = u64::try_from(now.since(out.since).as_nanos()).unwrap_or(u64::MAX);
            latency.set((count + 1, nanos.saturating_add(took)));
        }
    }

    fn is_given_up(
        &mut self,
        shared: &Shared,
        (role, takes): (usize, Takes),
        now: Time,
        waker: &Waker,
    ) -> bool {
        if let Some(place) = self.place {
            let places = &mut *self.watch.places.borrow_mut();
            let Some(out) = &mut places[place as usize] else {
                return false;
            };
            if !out.waker.will_wake(waker) {
                out.waker = waker.clone();
            }
            return out.given_up;
        }
        let Some(place) = self.watch.free.borrow_mut().pop() else {
            return false;
        };
        self.place = Some(place);
        self.watch.places.borrow_mut()[place as usize] = Some(Out {
            role,
            incarnation: shared.manners.incarnation(role),
            tick: self.watch.tick.get(),
            ticks: match takes {
                Takes::Usual => TICKS,
                Takes::Long => TICKS * LONG,
            },
            since: now,
            overdue: false,
            given_up: false,
            waker: waker.clone(),
        });
        if let Some(resting) = self.watch.resting.borrow_mut().take() {
            resting.wake();
        }
        false
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.watch.places.borrow_mut()[place as usize] = None;
            self.watch.free.borrow_mut().push(place);
        }
    }
}

/// Ticks as long as the array is open, while something is out.
pub(crate) async fn keep_watch<D: Disk>(watch: Rc<Watch>, core: Weak<Core<D>>) {
    loop {
        watch.rest().await;
        let timer = match core.upgrade() {
            Some(core) => {
                let deadline = core.shared.manners.patience().deadline;
                core.reactor.sleep(deadline / TICKS)
            }
            None => return,
        };
        timer.await;
        let Some(core) = core.upgrade() else { return };
        watch.tick(&core.shared, core.reactor.now());
    }
}

/// One core's commands that were given up and may still change their member. They are looked at in
/// each turn: it happens at most once in a member's life.
pub(crate) struct Strays(RefCell<Vec<(usize, Stray)>>);

type Stray = Pin<Box<dyn Future<Output = Outcome>>>;

impl Strays {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// Keeps a command until it has ended. Where there is no room, it is dropped, and the role's member
    /// does not come back until the array is assembled anew: nobody would know when it has ended.
    pub(crate) fn keep<F>(&self, shared: &Shared, role: usize, stray: Pin<Box<F>>)
    where
        F: Future<Output = Outcome> + 'static,
    {
        shared.manners.strays[role].fetch_add(1, Ordering::SeqCst);
        let mut strays = self.0.borrow_mut();
        if strays.len() < STRAYS_MAX {
            strays.push((role, stray));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets those that have ended go; how many.
    pub(crate) fn look(&self, shared: &Shared, core: CoreId) -> usize {
        if self.is_empty() {
            return 0;
        }
        let mut strays = self.0.borrow_mut();
        let before = strays.len();
        strays.retain_mut(|(role, stray)| {
            let mut context = Context::from_waker(Waker::noop());
            let ended = stray.as_mut().poll(&mut context).is_ready();
            if ended {
                shared.manners.strays[*role].fetch_sub(1, Ordering::SeqCst);
                shared.unended.ended(core, *role);
            }
            !ended
        });
        before - strays.len()
    }

    /// The array is closed on this core, whose reactor looks at what is left until that has ended: others
    /// may go on with the array.
    pub(crate) fn outlive(&self, shared: &Arc<Shared>, reactor: &Reactor) {
        let left = self.0.take();
        if !left.is_empty() && !reactor.is_over() {
            reactor.add_source(Rc::new(LeftOver {
                strays: Self(RefCell::new(left)),
                shared: Arc::downgrade(shared),
                core: reactor.core(),
            }));
        }
    }
}

/// Strays of an array that its core has closed.
struct LeftOver {
    strays: Strays,
    shared: SharedWeak<Shared>,
    core: CoreId,
}

impl PollSource for LeftOver {
    fn poll(&self, _now: Time) -> usize {
        match self.shared.upgrade() {
            Some(shared) => self.strays.look(&shared, self.core),
            // Nobody asks any more; buffers stay with their devices.
            None => self.strays.0.take().len(),
        }
    }

    fn is_over(&self) -> bool {
        self.strays.is_empty()
    }
}

/// Each core's count of commands that are out and may change their member, by role, given up or not.
/// Whoever begins one counts it before it looks at the role's incarnation; so once a role has a member
/// anew, all that is not counted here belongs to the new one.
#[derive(Debug)]
pub(crate) struct Unended(Box<[Roles]>);

#[derive(Debug)]
#[repr(align(128))]
struct Roles([AtomicU32; ROLES_MAX]);

impl Unended {
    pub(crate) fn new() -> Self {
        let none = || Roles(std::array::from_fn(|_| AtomicU32::new(0)));
        Self((0..Activity::CORES).map(|_| none()).collect())
    }

    fn count(&self, core: CoreId, role: usize) -> &AtomicU32 {
        &self.0[core.0 % Activity::CORES].0[role]
    }

    pub(crate) fn began(&self, core: CoreId, role: usize) {
        self.count(core, role).fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn ended(&self, core: CoreId, role: usize) {
        self.count(core, role).fetch_sub(1, Ordering::SeqCst);
    }

    /// Those of a role, of all cores.
    pub(crate) fn of(&self, role: usize) -> u32 {
        let counts = self.0.iter().map(|core| &core.0[role]);
        counts.map(|count| count.load(Ordering::SeqCst)).sum()
    }
}

/// What a future comes to, or nothing where that takes longer; it is dropped then, so it may only do what
/// bears that, as reads do.
pub async fn within<F: Future>(reactor: &Reactor, time: Duration, future: F) -> Option<F::Output> {
    let (mut future, mut timer) = (pin!(future), pin!(reactor.sleep(time)));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => timer.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Each core's count of what hosts ask for, in a cache line of its own.
#[derive(Debug)]
pub(crate) struct Activity(Box<[Line]>);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicU64);

impl Activity {
    const CORES: usize = 64;

    pub(crate) fn new() -> Self {
        Self((0..Self::CORES).map(|_| Line::default()).collect())
    }

    /// A host asks a core for something.
    pub(crate) fn count(&self, core: CoreId) {
        self.0[core.0 % Self::CORES]
            .0
            .fetch_add(1, Ordering::Relaxed);
    }

    /// What was asked for so far.
    pub(crate) fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|line| line.0.load(Ordering::Relaxed))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(means: &[u64]) -> Vec<usize> {
        let means: Vec<_> = means.iter().map(|ms| ms * 1_000_000).enumerate().collect();
        slow_roles(&means, &Patience::default()).iter().collect()
    }

    #[test]
    fn only_who_stands_out_among_the_others_is_slow() {
        assert_eq!(slow(&[1, 1, 50, 1]), [2]);
        assert_eq!(slow(&[50, 50, 50, 50]), [0; 0], "all alike");
        assert_eq!(slow(&[1, 1, 7, 1]), [0; 0], "quick enough");
        assert_eq!(slow(&[1, 80]), [1]);
        assert_eq!(slow(&[80]), [0; 0], "nobody to compare with");
        assert_eq!(slow(&[1, 1, 1, 90, 90, 1]), [3, 4]);
    }
}
