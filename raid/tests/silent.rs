//! What members leave unanswered for long, and who must not wait for it, in simulated time.

use std::{cell::Cell, rc::Rc, time::Duration};

use corebay_core::{
    disk::{
        Disk, DiskError, Durability,
        fault::{Effect, FaultDisk, Faults, Operation, Rule},
        ram::{RamDisk, RamMedium},
    },
    rng::Rng,
    units::Lba,
};
use corebay_raid::{
    array::{Array, Assembled},
    assemble::assemble,
    geometry::Level,
    state::RoleState,
    sweep::{Pace, SweepError},
    within,
};

use crate::{
    slow::{DEADLINE, Device, Member, Rig, SIZE, State, hang, member},
    support::scratch,
};

const MS: Duration = Duration::from_millis(1);

fn members(rig: &Rig) -> Vec<Member> {
    let roles = 0..rig.media.len();
    roles
        .map(|role| {
            member(
                &rig.media[role],
                &rig.faults[role],
                &rig.devices[role],
                &rig.reactor,
            )
        })
        .collect()
}

/// The core that finds an array lets go of it before the others open it. A member that hung on its first
/// superblock comes back to them all the same once it lets go.
#[test]
fn a_member_that_hung_while_its_array_was_assembled_comes_back() {
    let rig = Rig::new(Level::Raid5, 4);
    let geometry = rig.array.assembled().geometry();
    rig.faults[2].add(hang().on(Operation::Write));
    let (disks, on, memory) = (members(&rig), rig.reactor.clone(), scratch(&geometry));
    let found = rig.start(async move {
        let assembly = assemble(disks, None, &on, &memory).await.unwrap();
        assembly.array.assembled().clone()
    });
    rig.pass(DEADLINE * 2);
    let assembled: Assembled = found.take().expect("nobody waits for it");
    let state = |assembled: &Assembled| assembled.state().roles[2].state;
    assert_eq!(state(&assembled), RoleState::Failed);
    let disks = members(&rig).into_iter().map(Some).collect();
    let array = Array::open(&assembled, disks, &rig.reactor, &scratch(&geometry)).unwrap();
    rig.pass(DEADLINE);
    assert_eq!((assembled.unended(2), assembled.strays(2)), (1, 1));
    rig.faults[2].clear();
    rig.faults[2].release();
    rig.pass(MS);
    assert_eq!((assembled.unended(2), assembled.strays(2)), (0, 0));
    let returned = rig.run(async move {
        array.take_back(2).await?;
        array.rebuild(2, Pace::default()).await
    });
    assert_eq!((returned, state(&assembled)), (Ok(()), RoleState::Active));
}

/// The same of what nobody has given up when its core closes the array.
#[test]
fn what_is_out_when_a_core_closes_an_array_is_known_until_it_has_ended() {
    let rig = Rig::new(Level::Raid5, 4);
    let assembled = rig.array.assembled().clone();
    let disks = members(&rig).into_iter().map(Some).collect();
    let memory = scratch(&assembled.geometry());
    let array = Array::open(&assembled, disks, &rig.reactor, &memory).unwrap();
    rig.devices[1].holds.set(true);
    let (buffer, on) = (rig.filled(48 << 10, 1), rig.reactor.clone());
    let left = rig.start(async move {
        let buffers = [buffer];
        let write = array.write(Lba(0), &buffers, Durability::Cached);
        assert_eq!(within(&on, MS, write).await, None);
        drop(array);
    });
    rig.pass(10 * MS);
    assert_eq!(left.take(), Some(()));
    assert!(assembled.unended(1) > 0);
    rig.devices[1].let_go();
    rig.pass(MS);
    assert_eq!(assembled.unended(1), 0);
}

fn until(rig: &Rig, is_so: impl Fn() -> bool) {
    for _ in 0..200_000 {
        if is_so() {
            return;
        }
        rig.turn(Duration::from_micros(1));
    }
    panic!("it does not come to that");
}

/// Each member in turn hangs for good on the superblock that records the end of its rebuild, and on all that
/// hosts write at that moment: they wait for the record, which needs nothing that they hold.
#[test]
fn recording_failures_needs_no_memory_that_writes_hold() {
    let rig = Rig::new(Level::Raid5, 4);
    let mut all: Vec<Rc<State>> = Vec::new();
    for turn in 0..4 {
        let silent: Rc<State> = Rc::default();
        all.push(silent.clone());
        let medium = RamMedium::new(SIZE, rig.media[1].info().blocks).unwrap();
        let disk = FaultDisk::new(
            RamDisk::new(medium, &rig.reactor),
            Faults::new(0),
            &rig.reactor,
        );
        let fresh = Device {
            disk,
            state: silent.clone(),
        };
        let (array, pool) = (rig.array.clone(), rig.pool.clone());
        let rebuilt = rig.start(async move {
            if array.assembled().state().roles[1].state != RoleState::Failed {
                array.give_up(1).await?;
            }
            array.set_member(1, Some(fresh));
            array.replace(1, &mut Rng::from_seed(turn), &pool).await?;
            array.rebuild(1, Pace::default()).await
        });
        let rebuilding = || matches!(rig.state(1), RoleState::Rebuilding { .. });
        let goes_on = || rig.array.assembled().progress().0 < 100 || !rebuilding();
        until(&rig, || !goes_on());
        assert!(rebuilt.take().is_none(), "turn {turn}");
        silent.only_at.set(Some(Lba(0)));
        silent.holds.set(true);
        until(&rig, || !silent.held.borrow().is_empty());
        silent.only_at.set(None);
        let writes: Vec<_> = (0..150)
            .map(|write| rig.write(write * 12, 4096, 9))
            .collect();
        rig.pass(DEADLINE * 2);
        rig.pass(DEADLINE);
        for write in writes {
            assert_eq!(write.take(), Some(Ok(())), "turn {turn}");
        }
        assert_eq!(rig.state(1), RoleState::Failed, "turn {turn}");
        let ended = rebuilt.take().expect("it has ended");
        assert_eq!(ended, Err(SweepError::State(RoleState::Failed)));
    }
    all.iter().for_each(|state| state.let_go());
    rig.pass(MS);
}

type Ended = Rc<Cell<Option<Result<(), DiskError>>>>;

/// A mirror without its first leg: one write makes the reads under way not count. They are read again together,
/// and keep nobody from other stripes.
#[test]
fn reads_that_a_write_disturbed_do_not_wait_for_one_another() {
    let rig = Rig::new(Level::Mirrored, 2);
    let array = rig.array.clone();
    rig.run(async move { array.give_up(0).await }).unwrap();
    rig.faults[1].add(Rule::new(Effect::Delay(MS)));
    let into = rig.filled(4096, 0);
    let mut reads: Vec<Ended> = (0..250).map(|_| rig.read(0, &into)).collect();
    let step = Duration::from_micros(100);
    let (mut before, mut after) = (0, 0);
    let mut write = None;
    let other = Cell::new(None);
    for turn in 0..400 {
        rig.turn(step);
        for read in &mut reads {
            if let Some(outcome) = read.take() {
                assert_eq!(outcome, Ok(()));
                *read = rig.read(0, &into);
                match turn {
                    ..100 => before += 1,
                    300.. => after += 1,
                    _ => {}
                }
            }
        }
        if turn == 100 {
            write = Some((rig.write(0, 4096, 2), rig.write(400, 4096, 3)));
        }
        if let Some((_, to_other)) = &write
            && let Some(outcome) = to_other.take()
        {
            other.set(Some((turn, outcome)));
        }
    }
    assert!(before > 1000, "{before}");
    assert!(after * 10 > before * 9, "{after} after, {before} before");
    let (turn, outcome) = other.get().expect("it has ended");
    assert!(outcome.is_ok() && turn < 200, "{turn}");
    assert_eq!(into.bytes()[0], 2);
}

/// Stripes that wait behind one that takes long to be rebuilt are read meanwhile of the leg that is good.
#[test]
fn reads_do_not_wait_for_a_rebuild_of_the_first_leg() {
    let rig = Rig::new(Level::Mirrored, 2);
    let geometry = rig.array.assembled().geometry();
    let medium = RamMedium::new(SIZE, rig.media[0].info().blocks).unwrap();
    let fresh = member(&medium, &rig.faults[0], &rig.devices[0], &rig.reactor);
    let (array, pool) = (rig.array.clone(), rig.pool.clone());
    rig.run(async move {
        array.give_up(0).await?;
        array.set_member(0, Some(fresh));
        array.replace(0, &mut Rng::from_seed(2), &pool).await
    })
    .unwrap();
    let slow = Rule::new(Effect::Delay(1000 * MS)).on(Operation::Read);
    rig.faults[1].add(slow.at(geometry.row_lba(5, 0), 4).times(1));
    let array = rig.array.clone();
    let rebuilt = rig.start(async move { array.rebuild(0, Pace::default()).await });
    rig.pass(100 * MS);
    assert_eq!(rebuilt.take(), None);
    let into = rig.filled(4096, 1);
    let (one, several) = (rig.filled(4096, 1), rig.filled(24 << 10, 1));
    let reads = [
        rig.read(6 * 4, &into),
        rig.read(7 * 4, &one),
        rig.read(6 * 4, &several),
    ];
    rig.pass(10 * MS);
    assert!(reads.iter().all(|read| read.take() == Some(Ok(()))));
    rig.pass(2000 * MS);
    assert_eq!(rebuilt.take(), Some(Ok(())));
}
