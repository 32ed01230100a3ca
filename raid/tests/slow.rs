//! Members that are slow or do not answer at all, in simulated time.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use corebay_core::{
    arena::Arena,
    buffer::{Buffer, BufferPool, DevicePin, Direction},
    disk::{
        Disk, DiskError, DiskInfo, Durability, Space,
        fault::{Effect, FaultDisk, Faults, Operation, Rule},
        ram::{RamDisk, RamMedium},
    },
    reactor::Reactor,
    rng::Rng,
    units::{BlockSize, CoreId, Lba, Time},
};
use corebay_raid::{
    Patience, SlowMembers,
    array::Array,
    assemble::{Refusal, assemble},
    create::create,
    geometry::{Geometry, Level, Wish},
    state::RoleState,
    sweep::{Pace, SweepError},
};

use crate::support::{ec, scratch};

pub const SIZE: BlockSize = BlockSize::B4096;
const STRIP: usize = 16 << 10;
pub const DEADLINE: Duration = Duration::from_secs(5);

/// A device that can be told to leave its commands unanswered. As a real one, it keeps their buffers
/// whoever still waits, and what it has begun it ends some day.
pub struct Device<D> {
    pub disk: D,
    pub state: Rc<State>,
}

#[derive(Default)]
pub struct State {
    pub holds: Cell<bool>,
    /// Where this is set, only what begins at this block.
    pub only_at: Cell<Option<Lba>>,
    pub held: RefCell<Vec<DevicePin>>,
    waiting: RefCell<Vec<Waker>>,
}

impl State {
    pub fn let_go(&self) {
        self.holds.set(false);
        self.held.borrow_mut().clear();
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

impl<D> Device<D> {
    async fn hold(&self, at: Lba, buffers: &[Buffer], direction: Direction) {
        if self.state.only_at.get().is_some_and(|only| only != at) {
            return;
        }
        if self.state.holds.get() {
            let pins = buffers.iter().map(|buffer| buffer.pin(direction));
            self.state.held.borrow_mut().extend(pins);
        }
        poll_fn(|context| match self.state.holds.get() {
            true => {
                self.state
                    .waiting
                    .borrow_mut()
                    .push(context.waker().clone());
                Poll::Pending
            }
            false => Poll::Ready(()),
        })
        .await;
    }
}

impl<D: Disk> Disk for Device<D> {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        self.hold(at, into, Direction::FromDevice).await;
        self.disk.read(at, into).await
    }

    async fn write(&self, at: Lba, from: &[Buffer], d: Durability) -> Result<(), DiskError> {
        self.hold(at, from, Direction::ToDevice).await;
        self.disk.write(at, from, d).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.hold(Lba(u64::MAX), &[], Direction::ToDevice).await;
        self.disk.flush().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.hold(at, &[], Direction::ToDevice).await;
        self.disk.deallocate(at, blocks).await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.hold(at, &[], Direction::ToDevice).await;
        self.disk.write_zeroes(at, blocks, space, durability).await
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.disk.write_uncorrectable(at, blocks).await
    }
}

pub type Member = Device<FaultDisk<RamDisk>>;

/// An array, its members' faults and devices, and a clock that is set by hand.
pub struct Rig {
    pub reactor: Reactor,
    pub pool: BufferPool,
    pub now: Cell<u64>,
    pub media: Vec<std::sync::Arc<RamMedium>>,
    pub faults: Vec<Faults>,
    pub devices: Vec<Rc<State>>,
    pub array: Rc<Array<Member>>,
}

impl Rig {
    pub fn new(level: Level, roles: usize) -> Self {
        let wish = Wish {
            strip_bytes: STRIP as u32,
            journal_slots: 64,
            ..Wish::new(level, roles, SIZE)
        };
        let bytes = 8 << 20;
        let medium = || RamMedium::new(SIZE, SIZE.blocks_in(bytes)).unwrap();
        let media: Vec<_> = (0..roles).map(|_| medium()).collect();
        let faults: Vec<_> = (0..roles as u64).map(Faults::new).collect();
        let devices: Vec<Rc<State>> = (0..roles).map(|_| Rc::default()).collect();
        let reactor = Reactor::new(CoreId(0), 600, Time(0));
        let mut arena = Arena::lazy(8 << 20).unwrap();
        let pool = BufferPool::new(arena.take(8 << 20).unwrap(), 512);
        let geometry = Geometry::new(wish, bytes).unwrap();
        let disks: Vec<_> = (0..roles)
            .map(|role| member(&media[role], &faults[role], &devices[role], &reactor))
            .collect();
        let (scratch, on) = (scratch(&geometry), reactor.clone());
        let now = Cell::new(0);
        let array = run(&reactor, &now, async move {
            let mut rng = Rng::from_seed(1);
            let made = create(&disks, wish, "slow", &[], &mut rng, &scratch).await;
            made.expect("an array");
            assemble(disks, None, &on, &scratch).await.unwrap().array
        });
        Self {
            reactor,
            pool,
            now,
            media,
            faults,
            devices,
            array: Rc::new(array),
        }
    }

    /// Starts a task; its value comes later.
    pub fn start<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
    ) -> Rc<Cell<Option<T>>> {
        start(&self.reactor, task)
    }

    pub fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        run(&self.reactor, &self.now, task)
    }

    pub fn turn(&self, step: Duration) {
        self.now.set(self.now.get() + step.as_nanos() as u64);
        self.reactor.poll_once(Time(self.now.get()));
    }

    /// Turns for a time, in many turns.
    pub fn pass(&self, time: Duration) {
        (0..1000).for_each(|_| self.turn(time / 1000));
    }

    pub fn filled(&self, bytes: usize, byte: u8) -> Buffer {
        let mut buffer = self.pool.try_allocate(bytes).expect("memory");
        buffer.bytes_mut().fill(byte);
        buffer
    }

    pub fn write(
        &self,
        at: u64,
        bytes: usize,
        byte: u8,
    ) -> Rc<Cell<Option<Result<(), DiskError>>>> {
        let (array, buffer) = (self.array.clone(), self.filled(bytes, byte));
        self.start(async move { array.write(Lba(at), &[buffer], Durability::Cached).await })
    }

    pub fn read(&self, at: u64, into: &Buffer) -> Rc<Cell<Option<Result<(), DiskError>>>> {
        let (array, into) = (self.array.clone(), into.clone());
        self.start(async move { array.read(Lba(at), &[into]).await })
    }

    pub fn state(&self, role: usize) -> RoleState {
        self.array.assembled().state().roles[role].state
    }

    /// The role that a block's strip lies on, by whom a read of it asks.
    pub fn role_of(&self, at: u64) -> usize {
        let before: Vec<u64> = self.faults.iter().map(Faults::seen).collect();
        let into = self.filled(4096, 0);
        let array = self.array.clone();
        self.run(async move { array.read(Lba(at), &[into]).await })
            .unwrap();
        let asked = |role: &usize| self.faults[*role].seen() > before[*role];
        (0..before.len()).find(asked).expect("somebody was asked")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}

pub fn member(
    medium: &std::sync::Arc<RamMedium>,
    faults: &Faults,
    state: &Rc<State>,
    reactor: &Reactor,
) -> Member {
    let ram = RamDisk::new(medium.clone(), reactor);
    Device {
        disk: FaultDisk::new(ram, faults.clone(), reactor),
        state: state.clone(),
    }
}

fn start<T: 'static>(
    reactor: &Reactor,
    task: impl Future<Output = T> + 'static,
) -> Rc<Cell<Option<T>>> {
    let value = Rc::new(Cell::new(None));
    let into = value.clone();
    let task: Pin<Box<dyn Future<Output = ()>>> =
        Box::pin(async move { into.set(Some(task.await)) });
    assert!(reactor.spawn(task).is_ok());
    value
}

fn run<T: 'static>(
    reactor: &Reactor,
    now: &Cell<u64>,
    task: impl Future<Output = T> + 'static,
) -> T {
    let value = start(reactor, task);
    for _ in 0..1_000_000 {
        if let Some(value) = value.take() {
            return value;
        }
        now.set(now.get() + 1_000);
        reactor.poll_once(Time(now.get()));
    }
    panic!("nothing moves any more");
}

pub fn hang() -> Rule {
    Rule::new(Effect::Hang)
}

#[test]
fn a_read_of_a_member_that_does_not_answer_is_made_of_the_others() {
    for (level, roles) in [
        (Level::Mirrored, 2),
        (Level::Raid5, 4),
        (Level::Raid6, 5),
        (ec(3, 3), 6),
    ] {
        let rig = Rig::new(level, roles);
        assert_eq!(rig.array.assembled().patience().deadline, DEADLINE);
        let wrote = rig.write(0, 64 << 10, 7);
        rig.pass(Duration::from_millis(1));
        assert_eq!(wrote.take(), Some(Ok(())));
        let role = rig.role_of(0);
        rig.faults[role].add(hang());
        // One piece, which goes to its member directly; several, which do not.
        for (at, bytes) in [(0, 4096), (1, 60 << 10)] {
            let began = rig.now.get();
            let into = rig.filled(bytes, 0);
            let read = rig.read(at, &into);
            let ended = loop {
                rig.turn(Duration::from_millis(20));
                if let Some(outcome) = read.take() {
                    break outcome;
                }
                let waited = Duration::from_nanos(rig.now.get() - began);
                assert!(waited < DEADLINE * 5 / 4, "{level}: waited {waited:?}");
            };
            assert_eq!(ended, Ok(()), "{level}");
            assert!(into.bytes().iter().all(|byte| *byte == 7), "{level}");
        }
        rig.pass(Duration::from_millis(1));
        assert_eq!(rig.state(role), RoleState::Failed, "{level}");
        // From now on nobody waits.
        let (into, began) = (rig.filled(64 << 10, 0), rig.now.get());
        let array = rig.array.clone();
        let own = into.clone();
        rig.run(async move { array.read(Lba(0), &[own]).await })
            .unwrap();
        assert!(into.bytes().iter().all(|byte| *byte == 7));
        assert!(rig.now.get() - began < 1_000_000, "{level}");
    }
}

#[test]
fn writes_go_on_without_a_member_that_does_not_answer() {
    for (level, roles) in [(Level::Mirrored, 3), (Level::Raid5, 4), (Level::Raid6, 5)] {
        let rig = Rig::new(level, roles);
        rig.devices[1].holds.set(true);
        // Small ones and large ones, many more than there is scratch memory for at once.
        let writes: Vec<_> = (0..150)
            .map(|write| rig.write(write * 11 % 300, 4096 * (1 + write as usize % 5), 9))
            .collect();
        rig.pass(DEADLINE * 6 / 5);
        rig.pass(Duration::from_secs(1));
        for write in writes {
            assert_eq!(write.take(), Some(Ok(())), "{level}");
        }
        assert_eq!(rig.state(1), RoleState::Failed);
        assert_eq!(rig.array.assembled().counters().failed_members, 1);
        let into = rig.filled(4096, 0);
        let read = rig.read(0, &into);
        rig.pass(Duration::from_millis(1));
        assert_eq!(read.take(), Some(Ok(())));
        assert!(into.bytes().iter().all(|byte| *byte == 9), "{level}");
    }
}

#[test]
fn a_buffer_that_the_member_may_still_write_is_not_filled_by_others() {
    for (level, roles, bytes) in [
        (Level::Raid5, 4, 4096),
        (Level::Raid5, 4, 64 << 10),
        (Level::Mirrored, 2, 4096),
    ] {
        let rig = Rig::new(level, roles);
        let wrote = rig.write(0, 64 << 10, 7);
        rig.pass(Duration::from_millis(1));
        assert_eq!(wrote.take(), Some(Ok(())));
        let role = rig.role_of(0);
        if level == Level::Mirrored {
            rig.role_of(0);
        }
        rig.devices[role].holds.set(true);
        let into = rig.filled(bytes, 0);
        let read = rig.read(0, &into);
        rig.pass(DEADLINE * 6 / 5);
        assert_eq!(read.take(), Some(Err(DiskError::TimedOut)), "{level}");
        assert!(into.is_used(), "the device keeps it");
        // Into another one it is read at once.
        let other = rig.filled(bytes, 0);
        let again = rig.read(0, &other);
        rig.pass(Duration::from_millis(1));
        assert_eq!(again.take(), Some(Ok(())), "{level}");
        assert!(other.bytes().iter().all(|byte| *byte == 7));
        rig.devices[role].let_go();
        assert!(!into.is_used());
    }
}

#[test]
fn a_member_comes_back_only_after_its_late_writes_have_ended() {
    let rig = Rig::new(Level::Raid5, 4);
    let first = rig.write(0, 48 << 10, 1);
    rig.pass(Duration::from_millis(1));
    assert_eq!(first.take(), Some(Ok(())));
    rig.devices[2].holds.set(true);
    let late = rig.write(0, 48 << 10, 2);
    rig.pass(DEADLINE * 6 / 5);
    assert_eq!(late.take(), Some(Ok(())));
    let newer = rig.write(0, 48 << 10, 3);
    rig.pass(Duration::from_millis(1));
    assert_eq!(newer.take(), Some(Ok(())));
    let (array, disk) = (
        rig.array.clone(),
        RamDisk::new(rig.media[2].clone(), &rig.reactor),
    );
    let fresh = Device {
        disk: FaultDisk::new(disk, Faults::new(0), &rig.reactor),
        state: Rc::default(),
    };
    array.set_member(2, Some(fresh));
    let returning = array.clone();
    let refused = rig.run(async move { returning.take_back(2).await });
    assert_eq!(refused, Err(SweepError::StillOut));
    // The device does now what it was asked for long ago.
    rig.devices[2].let_go();
    rig.pass(Duration::from_millis(1));
    let outcome = rig.run(async move {
        array.take_back(2).await?;
        array.rebuild(2, Pace::default()).await?;
        array.scrub(Pace::default()).await
    });
    assert_eq!(outcome.unwrap().mismatch_count, 0);
    assert_eq!(rig.state(2), RoleState::Active);
    // Its content counts: the others are held against it.
    rig.devices[0].holds.set(true);
    let into = rig.filled(48 << 10, 0);
    for _ in 0..2 {
        // A read whose buffer the device keeps is repeated with another one.
        let again = rig.read(0, &rig.filled(48 << 10, 0));
        rig.pass(DEADLINE * 6 / 5);
        assert!(again.take().is_some());
    }
    let read = rig.read(0, &into);
    rig.pass(Duration::from_millis(1));
    assert_eq!(read.take(), Some(Ok(())));
    assert!(into.bytes().iter().all(|byte| *byte == 3));
}

/// Nor before those have ended that nobody has given up yet.
#[test]
fn a_member_comes_back_only_after_what_is_under_way_has_ended() {
    let rig = Rig::new(Level::Raid5, 4);
    rig.devices[2].holds.set(true);
    let late = rig.write(0, 48 << 10, 2);
    rig.pass(Duration::from_millis(1));
    assert!(late.take().is_none());
    let giving = rig.array.clone();
    rig.run(async move { giving.give_up(2).await }).unwrap();
    let disk = RamDisk::new(rig.media[2].clone(), &rig.reactor);
    let fresh = Device {
        disk: FaultDisk::new(disk, Faults::new(0), &rig.reactor),
        state: Rc::default(),
    };
    rig.array.set_member(2, Some(fresh));
    let array = rig.array.clone();
    let refused = rig.run(async move { array.take_back(2).await });
    assert_eq!(refused, Err(SweepError::StillOut));
    assert_eq!(rig.state(2), RoleState::Failed);
    rig.devices[2].let_go();
    rig.pass(DEADLINE);
    assert_eq!(late.take(), Some(Ok(())));
    assert_eq!(rig.array.assembled().unended(2), 0);
    let array = rig.array.clone();
    let outcome = rig.run(async move {
        array.take_back(2).await?;
        array.rebuild(2, Pace::default()).await?;
        array.scrub(Pace::default()).await
    });
    assert_eq!(outcome.unwrap().mismatch_count, 0);
}

/// A member is given up, but the others cannot record it: then it stays, and what it holds is read.
#[test]
fn a_member_whose_failure_cannot_be_recorded_is_read_again() {
    let rig = Rig::new(Level::Raid5, 4);
    let wrote = rig.write(0, 48 << 10, 7);
    rig.pass(Duration::from_millis(1));
    assert_eq!(wrote.take(), Some(Ok(())));
    let silent = rig.role_of(0);
    let failing = (silent + 1) % 4;
    let fails = Effect::Fail(DiskError::WriteFault);
    rig.faults[failing].add(Rule::new(fails).on(Operation::Write).at(Lba(0), 1));
    rig.devices[silent].holds.set(true);
    let late = rig.write(0, 4096, 8);
    rig.pass(DEADLINE * 6 / 5);
    assert!(rig.array.assembled().is_stopped());
    assert_eq!(late.take(), Some(Err(DiskError::WriteFault)));
    assert_eq!(rig.state(silent), RoleState::Active);
    assert!(rig.array.assembled().overdue(silent) > 0);
    rig.devices[silent].let_go();
    rig.pass(Duration::from_millis(1));
    let (into, before) = (rig.filled(4096, 0), rig.faults[silent].seen());
    let read = rig.read(0, &into);
    rig.pass(Duration::from_millis(1));
    assert_eq!(read.take(), Some(Ok(())));
    assert!(matches!(into.bytes()[0], 7 | 8));
    assert!(rig.faults[silent].seen() > before, "it is asked");
}

/// A disk that does not answer keeps nobody from assembling the others.
#[test]
fn an_array_is_assembled_without_a_disk_that_does_not_answer() {
    let rig = Rig::new(Level::Raid6, 5);
    rig.devices[3].holds.set(true);
    let disks: Vec<_> = (0..5)
        .map(|role| {
            let (faults, device) = (&rig.faults[role], &rig.devices[role]);
            member(&rig.media[role], faults, device, &rig.reactor)
        })
        .collect();
    let (on, scratch) = (
        rig.reactor.clone(),
        scratch(&rig.array.assembled().geometry()),
    );
    let assembled = rig.start(async move {
        let assembly = assemble(disks, None, &on, &scratch).await;
        assembly.map(|assembly| assembly.report.refused)
    });
    rig.pass(DEADLINE * 3);
    let refused = assembled.take().expect("nobody waits").unwrap();
    let silent = Refusal::Unreadable(DiskError::TimedOut);
    assert_eq!(refused, [(3, silent)]);
}

#[test]
fn nobody_is_given_up_whom_the_array_needs() {
    // No redundancy; or more that are silent than it bears.
    for (level, roles, silent) in [
        (Level::Striped, 3, vec![0, 1, 2]),
        (Level::Raid5, 4, vec![1, 2]),
        (Level::Mirrored, 2, vec![0, 1]),
    ] {
        let rig = Rig::new(level, roles);
        for &role in &silent {
            rig.devices[role].holds.set(true);
        }
        let write = rig.write(0, 96 << 10, 4);
        rig.pass(DEADLINE * 10);
        assert!(write.take().is_none(), "{level}: it waits");
        for &role in &silent {
            rig.devices[role].let_go();
        }
        rig.pass(Duration::from_secs(1));
        // The task was dropped by nobody, so it ended by itself.
        assert!(rig.array.assembled().state().is_whole(), "{level}");
        let into = rig.filled(96 << 10, 0);
        let read = rig.read(0, &into);
        rig.pass(Duration::from_millis(1));
        assert_eq!(read.take(), Some(Ok(())), "{level}");
        assert!(into.bytes().iter().all(|byte| *byte == 4), "{level}");
    }
}

#[test]
fn a_machine_that_stood_still_has_given_nobody_up() {
    let rig = Rig::new(Level::Raid5, 4);
    let wait = Duration::from_millis(5);
    rig.faults[0].add(Rule::new(Effect::Delay(wait)));
    rig.faults[1].add(Rule::new(Effect::Delay(wait)));
    let write = rig.write(0, 48 << 10, 5);
    rig.turn(Duration::from_millis(1));
    rig.turn(Duration::from_secs(3600));
    rig.pass(Duration::from_secs(1));
    assert_eq!(write.take(), Some(Ok(())));
    assert!(rig.array.assembled().state().is_whole());
}

#[test]
fn a_member_that_hangs_while_another_failure_is_recorded_is_failed_too() {
    let rig = Rig::new(Level::Raid6, 5);
    rig.faults[0].add(Rule::new(Effect::Fail(DiskError::WriteFault)));
    rig.faults[3].add(hang().on(Operation::Write).at(Lba(0), 1));
    let write = rig.write(0, 48 << 10, 6);
    rig.pass(DEADLINE * 6 / 5);
    assert_eq!(write.take(), Some(Ok(())));
    assert_eq!([0, 3].map(|role| rig.state(role)), [RoleState::Failed; 2]);
}

#[test]
fn a_member_much_slower_than_the_others_is_told_or_failed_by_choice() {
    for slow in [SlowMembers::Warn, SlowMembers::Fail] {
        let rig = Rig::new(Level::Raid5, 4);
        rig.array.assembled().set_patience(Patience {
            slow,
            slow_window: Duration::from_secs(1),
            ..Patience::default()
        });
        for (role, faults) in rig.faults.iter().enumerate() {
            let takes = if role == 2 { 60 } else { 1 };
            faults.add(Rule::new(Effect::Delay(Duration::from_millis(takes))));
        }
        for turn in 0..120 {
            let writes: Vec<_> = (0..4)
                .map(|stripe| rig.write(stripe * 12, 48 << 10, turn))
                .collect();
            rig.pass(Duration::from_millis(300));
            let ended = |write: &Rc<Cell<Option<Result<(), DiskError>>>>| write.take().is_some();
            assert!(writes.iter().all(ended));
        }
        let assembled = rig.array.assembled();
        assert_eq!(assembled.counters().slow_members, 1, "{slow:?}");
        match slow {
            SlowMembers::Warn => {
                assert_eq!(assembled.slow().collect::<Vec<_>>(), [2]);
                let latency = |role| assembled.latency(role).expect("it had work");
                assert!(latency(2) > 20 * latency(1), "{:?}", latency(2));
                assert!(assembled.state().is_whole());
            }
            SlowMembers::Fail => assert_eq!(rig.state(2), RoleState::Failed),
        }
    }
}

impl Rig {
    /// Gives role 1 up and to a new member; how long its rebuild takes, and a scrub after it.
    fn replaced(&self, pace: Pace, while_it_lasts: impl Fn()) -> [Duration; 2] {
        let array = self.array.clone();
        let medium = RamMedium::new(SIZE, self.media[1].info().blocks).unwrap();
        let fresh = member(&medium, &self.faults[1], &self.devices[1], &self.reactor);
        let (pool, replacing) = (self.pool.clone(), array.clone());
        let replaced = self.start(async move {
            replacing.give_up(1).await?;
            replacing.set_member(1, Some(fresh));
            replacing.replace(1, &mut Rng::from_seed(2), &pool).await
        });
        self.pass(Duration::from_secs(1));
        assert!(replaced.take().expect("it has ended").is_ok());
        let rebuilding = array.clone();
        let rebuilt = self.start(async move { rebuilding.rebuild(1, pace).await });
        let rebuild = self.lasts(|| rebuilt.take().map(Result::unwrap), &while_it_lasts);
        let scrubbed = self.start(async move { array.scrub(pace).await });
        let mismatches = || {
            scrubbed
                .take()
                .map(|found| assert_eq!(found.unwrap().mismatch_count, 0))
        };
        [rebuild, self.lasts(mismatches, &while_it_lasts)]
    }

    fn lasts(&self, ended: impl Fn() -> Option<()>, while_it_lasts: &impl Fn()) -> Duration {
        let began = self.now.get();
        while ended().is_none() {
            self.turn(Duration::from_micros(500));
            while_it_lasts();
            assert!(self.now.get() - began < 600_000_000_000, "it does not end");
        }
        Duration::from_nanos(self.now.get() - began)
    }

    fn stripes(&self) -> u32 {
        self.array.assembled().geometry().stripes() as u32
    }
}

/// Each keeps the buffer of the map that was written to it, and more of them fall silent one after the
/// other than may at a time.
#[test]
fn members_that_fall_silent_for_good_in_turn_use_nothing_up() {
    let rig = Rig::new(Level::Mirrored, 2);
    let mut silent = rig.devices[1].clone();
    let mut all = vec![silent.clone()];
    for turn in 0..4 {
        silent.holds.set(true);
        // To a region that nobody has written.
        let write = rig.write(turn * 16 * 4, 4096, 1);
        rig.pass(DEADLINE * 6 / 5);
        assert_eq!(write.take(), Some(Ok(())), "turn {turn}");
        assert_eq!(rig.state(1), RoleState::Failed);
        silent = Rc::default();
        all.push(silent.clone());
        let medium = RamMedium::new(SIZE, rig.media[1].info().blocks).unwrap();
        let fresh = member(&medium, &rig.faults[1], &silent, &rig.reactor);
        rig.array.set_member(1, Some(fresh));
        let (array, pool) = (rig.array.clone(), rig.pool.clone());
        let replaced =
            rig.start(async move { array.replace(1, &mut Rng::from_seed(turn), &pool).await });
        rig.pass(Duration::from_secs(1));
        assert!(replaced.take().expect("it has ended").is_ok());
    }
    all.iter().for_each(|state| state.let_go());
    rig.pass(Duration::from_millis(1));
}

#[test]
fn sweeps_have_several_stripes_in_flight() {
    let rig = Rig::new(Level::Raid5, 4);
    let takes = Duration::from_millis(4);
    for faults in &rig.faults {
        faults.add(Rule::new(Effect::Delay(takes)));
    }
    let write = rig.write(0, 900 << 10, 3);
    rig.pass(Duration::from_secs(2));
    assert_eq!(write.take(), Some(Ok(())));
    let [rebuild, scrub] = rig.replaced(Pace::default(), || {});
    // One after the other: reads, then a write; reads.
    let (serial_rebuild, serial_scrub) = (2 * takes * rig.stripes(), takes * rig.stripes());
    assert!(
        rebuild < serial_rebuild / 2,
        "{rebuild:?} of {serial_rebuild:?}"
    );
    assert!(scrub < serial_scrub / 2, "{scrub:?} of {serial_scrub:?}");
}

#[test]
fn sweeps_keep_their_pace_beside_hosts() {
    let rig = Rig::new(Level::Raid5, 4);
    let mib = f64::from(rig.stripes()) * STRIP as f64 / f64::from(1 << 20);
    let pace = Pace {
        floor_mib_s: 1,
        ceiling_mib_s: 8,
    };
    let per_second = |time: Duration| mib / time.as_secs_f64();
    for time in rig.replaced(pace, || {}) {
        let rate = per_second(time);
        assert!(
            (7.0..8.2).contains(&rate),
            "{rate} MiB/s beside quiet hosts"
        );
    }
    let writes = Cell::new(0);
    let host = || {
        writes.set(writes.get() + 1);
        let write = rig.write(writes.get() % 500, 4096, 1);
        assert!(write.take().is_none_or(|outcome| outcome.is_ok()));
    };
    for time in rig.replaced(pace, host) {
        let rate = per_second(time);
        assert!(
            (0.95..2.0).contains(&rate),
            "{rate} MiB/s beside busy hosts"
        );
    }
}

fn seen(rig: &Rig) -> u64 {
    rig.faults.iter().map(Faults::seen).sum()
}

#[test]
fn writes_that_wait_for_a_stripe_become_one() {
    for (level, roles, data) in [(Level::Raid5, 4, 3), (Level::Raid6, 6, 4), (ec(3, 3), 6, 3)] {
        let rig = Rig::new(level, roles);
        for faults in &rig.faults {
            faults.add(Rule::new(Effect::Delay(Duration::from_millis(1))));
        }
        let stripe = data * 4;
        let before = seen(&rig);
        // Of each of three stripes every block, in an order of its own.
        let order = |stripe_number: u64, block: u64| match stripe_number {
            0 => block,
            1 => stripe - 1 - block,
            _ => block * 5 % stripe,
        };
        let writes: Vec<_> = (0..3 * stripe)
            .map(|number| {
                let at = number / stripe * stripe + order(number / stripe, number % stripe);
                rig.write(at, 4096, at as u8 + 1)
            })
            .collect();
        rig.pass(Duration::from_millis(200));
        assert!(writes.iter().all(|write| write.take() == Some(Ok(()))));
        // One write each goes alone (reads, journal, in place); the rest in a few slices.
        let each = seen(&rig).wrapping_sub(before) / 3;
        let alone = 3 * roles as u64;
        assert!(
            each <= 4 * alone,
            "{level}: {each} transfers for {stripe} writes"
        );
        let into = rig.filled((3 * stripe) as usize * 4096, 0);
        let read = rig.read(0, &into);
        rig.pass(Duration::from_millis(100));
        assert_eq!(read.take(), Some(Ok(())));
        for (at, block) in into.bytes().chunks_exact(4096).enumerate() {
            assert!(
                block.iter().all(|byte| *byte == at as u8 + 1),
                "{level}: block {at}"
            );
        }
        let array = rig.array.clone();
        let scrubbed = rig.start(async move { array.scrub(Pace::default()).await });
        rig.pass(Duration::from_secs(3));
        let found = scrubbed.take().expect("it has ended").unwrap();
        assert_eq!(found.mismatch_count, 0, "{level}");
    }
}

#[test]
fn what_waits_for_one_stripe_keeps_nobody_from_another() {
    let rig = Rig::new(Level::Raid5, 4);
    let first = rig.array.assembled().geometry().row_lba(0, 0);
    for faults in &rig.faults {
        faults.add(hang().at(first, 4));
    }
    // More than there are workers, and all want the same block.
    let waiting: Vec<_> = (0..450)
        .map(|byte| rig.write(0, 4096, byte as u8))
        .collect();
    rig.turn(Duration::from_millis(1));
    let other = rig.write(60, 4096, 1);
    rig.pass(Duration::from_millis(1));
    assert_eq!(other.take(), Some(Ok(())));
    assert!(waiting.iter().all(|write| write.take().is_none()));
    for faults in &rig.faults {
        faults.clear();
        faults.release();
    }
    rig.pass(Duration::from_millis(100));
    assert!(waiting.iter().all(|write| write.take() == Some(Ok(()))));
}

/// What a read has given new is not read old again: legs change one by one, and one of them may still be
/// the old one when the other has answered.
#[test]
fn what_was_read_new_is_not_read_old_again() {
    let ms = Duration::from_millis;
    // One block, which is asked for directly, and one more than the strip has left, in two pieces.
    for (at, blocks) in [(0, 1), (3, 2)] {
        let rig = Rig::new(Level::Mirrored, 2);
        let wrote = rig.write(at, 4096 * blocks, 1);
        rig.pass(ms(1));
        assert_eq!(wrote.take(), Some(Ok(())));
        let data = rig.array.assembled().geometry().row_lba(0, 0);
        let delay = |time| Rule::new(Effect::Delay(time)).at(data, 16);
        rig.faults[0].add(delay(ms(20)).on(Operation::Write));
        rig.faults[1].add(delay(ms(10)).on(Operation::Read));
        // Legs answer by turns: the next piece is the second one's.
        while rig.role_of(0) != 0 {}
        let into = rig.filled(4096 * blocks, 0);
        let mut values = Vec::new();
        let mut read = rig.read(at, &into);
        rig.turn(ms(0));
        let write = rig.write(at, 4096 * blocks, 2);
        for _ in 0..100 {
            rig.turn(ms(1));
            if let Some(outcome) = read.take() {
                assert_eq!(outcome, Ok(()));
                values.extend([into.bytes()[0], into.bytes()[4096 * blocks - 1]]);
                read = rig.read(at, &into);
            }
        }
        assert_eq!(write.take(), Some(Ok(())));
        for of_block in [0, 1] {
            let of_block: Vec<u8> = values.iter().skip(of_block).step_by(2).copied().collect();
            assert!(of_block.is_sorted(), "{values:?}");
            assert_eq!(of_block.last(), Some(&2));
        }
    }
}

/// The same, where the leg that answered is lost before the others have been written.
#[test]
fn what_was_read_new_of_a_leg_that_fails_is_not_read_old_again() {
    let ms = Duration::from_millis;
    let rig = Rig::new(Level::Mirrored, 3);
    let wrote = rig.write(0, 4096, 1);
    rig.pass(ms(1));
    assert_eq!(wrote.take(), Some(Ok(())));
    let data = rig.array.assembled().geometry().row_lba(0, 0);
    for faults in &rig.faults[1..] {
        let slow = Rule::new(Effect::Delay(ms(50)));
        faults.add(slow.at(data, 1).on(Operation::Write));
    }
    let (write, into) = (rig.write(0, 4096, 2), rig.filled(4096, 0));
    rig.turn(ms(1));
    let read = rig.read(0, &into);
    rig.pass(ms(5));
    assert_eq!((read.take(), into.bytes()[0]), (Some(Ok(())), 2));
    rig.faults[0].add(Rule::new(Effect::Gone));
    let array = rig.array.clone();
    let failed = rig.start(async move { array.give_up(0).await });
    rig.pass(ms(5));
    assert_eq!(failed.take(), Some(Ok(())));
    assert_eq!(write.take(), None, "the other legs are still being written");
    for _ in 0..3 {
        let read = rig.read(0, &into);
        rig.pass(ms(60));
        assert_eq!((read.take(), into.bytes()[0]), (Some(Ok(())), 2));
    }
    assert_eq!(write.take(), Some(Ok(())));
}

/// Zeroing takes its memory before its room in the journal, as writes do: else each would wait for what
/// the other one holds.
#[test]
fn zeroing_beside_more_writes_than_there_is_memory_for_ends() {
    let rig = Rig::new(Level::Raid5, 4);
    for faults in &rig.faults {
        let slow = Rule::new(Effect::Delay(Duration::from_millis(5)));
        faults.add(slow.on(Operation::Read));
    }
    let writes: Vec<_> = (0..150).map(|at| rig.write(at * 12, 4096, 1)).collect();
    let zeroing = {
        let array = rig.array.clone();
        let (at, cached) = (Lba(12 * 200), Durability::Cached);
        rig.start(async move { array.write_zeroes(at, 12, Space::Deallocate, cached).await })
    };
    rig.pass(Duration::from_secs(1));
    assert_eq!(zeroing.take(), Some(Ok(())));
    assert!(writes.iter().all(|write| write.take() == Some(Ok(()))));
}

/// A write finds out by its own read that a member is gone, and waits for room in the journal. The member
/// is back before it goes on: it has missed this write, too.
#[test]
fn zeroing_stripes_costs_a_member_a_record_and_a_command_for_each_region() {
    let rig = Rig::new(Level::Raid5, 4);
    let (array, blocks, before) = (rig.array.clone(), rig.array.info().blocks, seen(&rig));
    let zeroed = rig.run(async move { array.deallocate(Lba(0), blocks).await });
    assert_eq!(zeroed, Ok(()));
    let regions = u64::from(rig.stripes()).div_ceil(16);
    assert_eq!(seen(&rig) - before, regions * 4 * 2);
}

#[test]
fn a_member_that_is_back_before_a_write_without_it_goes_on_has_missed_it() {
    let ms = Duration::from_millis;
    let rig = Rig::new(Level::Raid5, 5);
    let geometry = rig.array.assembled().geometry();
    let (stripe, at) = (100, 100 * 16);
    let role = geometry.role_of(stripe, 0);
    let other = geometry.role_of(stripe, 1);
    // These keep the journal from being drained for a while.
    let data = geometry.row_lba(0, 0);
    let slow = Rule::new(Effect::Delay(ms(500))).on(Operation::Write);
    rig.faults[other].add(slow.at(data, 64));
    let before: Vec<_> = (0..8)
        .map(|stripe| rig.write(stripe * 16, 64 << 10, 1))
        .collect();
    rig.pass(ms(5));
    let row = geometry.row_lba(stripe, 0);
    let lost = Rule::new(Effect::Fail(DiskError::Gone)).on(Operation::Read);
    rig.faults[role].add(lost.at(row, 1).times(1));
    // What it reads then takes longer than the member is away.
    for (number, faults) in rig.faults.iter().enumerate() {
        let slow = Rule::new(Effect::Delay(ms(50))).on(Operation::Read);
        if number != role {
            faults.add(slow.at(row, 1));
        }
    }
    let write = rig.write(at, 4096, 2);
    rig.pass(ms(20));
    let array = rig.array.clone();
    let disk = member(
        &rig.media[role],
        &rig.faults[role],
        &rig.devices[role],
        &rig.reactor,
    );
    let returned = rig.start(async move {
        poll_fn(|context| {
            context.waker().wake_by_ref();
            match array.assembled().state().roles[role].state {
                RoleState::Failed => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
        array.set_member(role, Some(disk));
        array.take_back(role).await
    });
    rig.pass(Duration::from_secs(1));
    assert_eq!(returned.take(), Some(Ok(())));
    assert_eq!(write.take(), Some(Ok(())));
    assert!(before.iter().all(|write| write.take() == Some(Ok(()))));
    let array = rig.array.clone();
    rig.run(async move { array.rebuild(role, Pace::default()).await })
        .unwrap();
    let (array, into) = (rig.array.clone(), rig.filled(4096, 0));
    let own = into.clone();
    rig.run(async move { array.read(Lba(at), &[own]).await })
        .unwrap();
    assert_eq!(into.bytes()[0], 2);
}

/// A scrub looks at each parity anew where a block could not be read; one of them does not answer, and
/// keeps the buffer.
#[test]
fn a_parity_that_does_not_answer_amid_a_second_look_keeps_its_buffer() {
    let ms = Duration::from_millis;
    let rig = Rig::new(Level::Raid6, 5);
    let wrote = rig.write(0, 144 << 10, 3);
    rig.pass(ms(10));
    assert_eq!(wrote.take(), Some(Ok(())));
    let geometry = rig.array.assembled().geometry();
    let (row, data) = (geometry.row_lba(0, 0), geometry.role_of(0, 0));
    let bad = Rule::new(Effect::Fail(DiskError::UnrecoveredRead)).on(Operation::Read);
    rig.faults[data].add(bad.at(row, 4).times(1));
    let slow = Rule::new(Effect::Delay(ms(50))).on(Operation::Write);
    rig.faults[data].add(slow.at(row, 4));
    let array = rig.array.clone();
    let scrubbed = rig.start(async move { array.scrub(Pace::default()).await });
    rig.pass(ms(20));
    let parity = geometry.role_of(0, 3);
    rig.devices[parity].holds.set(true);
    rig.pass(DEADLINE * 3);
    let found = scrubbed.take().expect("it has ended").unwrap();
    assert_eq!(found.mismatch_count, 0);
    assert_eq!(rig.state(parity), RoleState::Failed);
    rig.devices[parity].let_go();
}
