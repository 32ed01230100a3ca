//! Members that fail, come back, are replaced, are damaged or do not belong.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_raid::{
    array::Array,
    assemble::{AssembleError, Refusal, Report, check_returning},
    create::{CreateError, Occupant, create},
    geometry::{Consistency, Level, Wish},
    state::RoleState,
    superblock::{BadSuperblock, Superblock},
    sweep::{Pace, SweepError},
};

use crate::support::{
    self,
    bench::{Bench, Machine, Model, Worker, settle, small},
    ec,
    power::{Medium, Power, PowerDisk},
};

const BLOCKS: u64 = 160;

pub type Shared = Rc<Array<PowerDisk>>;

/// A machine, its model, and what runs on it.
pub struct Rig {
    pub machine: Machine,
    model: Rc<RefCell<Model>>,
    pub bench: Bench,
    seed: u64,
}

impl Rig {
    pub fn new(wish: Wish, volatile: bool) -> Self {
        let power = Power::new(3, false);
        Self {
            machine: Machine::new(wish, volatile, &power),
            model: Rc::new(RefCell::new(Model::new(BLOCKS))),
            bench: Bench::new(&power),
            seed: 1,
        }
    }

    fn assemble(&self, members: &[usize]) -> Result<(Shared, Report), AssembleError> {
        self.machine.assemble(&self.bench, members).unwrap()
    }

    pub fn all(&self) -> Shared {
        self.assemble(&self.machine.all()).unwrap().0
    }

    pub fn work(&mut self, array: &Shared, operations: usize) {
        self.seed += 1;
        let worker = Worker {
            array: array.clone(),
            model: self.model.clone(),
            pool: self.bench.pool.clone(),
            rng: Rng::from_seed(self.seed),
            first: 0,
            blocks: BLOCKS,
            longest: 70,
        };
        self.bench.run(worker.run(operations)).unwrap();
    }

    /// Reads everything and holds it against the model.
    pub fn verify(&self, array: &Shared) {
        let read = settle(
            array.clone(),
            self.model.clone(),
            self.bench.pool.clone(),
            false,
        );
        self.bench.run(read).unwrap();
    }

    pub fn rebuild(&self, array: &Shared, role: usize) -> Result<(), SweepError> {
        let array = array.clone();
        let rebuild = async move { array.rebuild(role, Pace::default()).await };
        self.bench.run(rebuild).unwrap()
    }

    pub fn mismatches(&self, array: &Shared) -> u64 {
        let array = array.clone();
        let scrub = async move { array.scrub(Pace::default()).await };
        self.bench.run(scrub).unwrap().unwrap().mismatch_count
    }
}

pub fn redundant() -> Vec<(Wish, usize)> {
    let size = BlockSize::B512;
    vec![
        (small(Level::Mirrored, 3, size), 2),
        (small(Level::StripedMirrors, 4, size), 1),
        (small(Level::Raid5, 4, size), 1),
        (small(Level::Raid6, 5, BlockSize::B4096), 2),
        (small(ec(3, 3), 6, size), 3),
    ]
}

#[test]
fn members_may_come_in_any_order() {
    for (wish, _) in redundant() {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 10);
        drop(array);
        let mut order = rig.machine.all();
        for turn in 0..order.len() {
            order.rotate_left(1);
            order.swap(0, turn);
            let (array, report) = rig.assemble(&order).unwrap();
            assert!(report.refused.is_empty(), "{report:?}");
            rig.verify(&array);
        }
    }
}

#[test]
fn as_many_members_as_the_level_bears_may_fail_amid_work() {
    for (wish, bears) in redundant() {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 10);
        for victim in 0..bears {
            rig.machine.media[victim].borrow_mut().gone = true;
            rig.work(&array, 10);
            rig.verify(&array);
            // Its own state tells, once somebody had to do with it.
            let state = array.assembled().state();
            assert!(state.roles[victim].state == RoleState::Failed, "{state:?}");
        }
        assert!(!array.assembled().is_stopped());
        drop(array);
        let members: Vec<usize> = rig.machine.all().split_off(bears);
        let (array, _) = rig.assemble(&members).unwrap();
        rig.verify(&array);
        rig.work(&array, 10);
        rig.verify(&array);
    }
}

#[test]
fn beyond_the_redundancy_writes_stop_and_reads_go_on() {
    let mut rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    let array = rig.all();
    rig.work(&array, 20);
    rig.machine.media[0].borrow_mut().gone = true;
    rig.work(&array, 10);
    rig.machine.media[1].borrow_mut().gone = true;
    let (writing, pool) = (array.clone(), rig.bench.pool.clone());
    let written = rig.bench.run(async move {
        use corebay_core::disk::{Disk, Durability};
        let buffer = pool.allocate(96 * 512).await;
        let at = corebay_core::units::Lba(0);
        writing.write(at, &[buffer], Durability::Cached).await
    });
    assert_eq!(written, Some(Err(DiskError::WriteFault)));
    assert!(array.assembled().is_stopped());
    // Role 2 and 3 still hold half of the blocks.
    let (reading, pool) = (array.clone(), rig.bench.pool.clone());
    let readable = rig.bench.run(async move {
        use corebay_core::disk::Disk;
        let mut readable = 0;
        for lba in 0..BLOCKS {
            let buffer = pool.allocate(512).await;
            let at = corebay_core::units::Lba(lba);
            readable += u64::from(reading.read(at, &[buffer]).await.is_ok());
        }
        readable
    });
    assert!(readable.unwrap() >= 32, "{readable:?}");
}

#[test]
fn a_replaced_member_is_rebuilt_while_hosts_write() {
    for (wish, _) in redundant() {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 15);
        rig.machine.media[1].borrow_mut().gone = true;
        rig.work(&array, 10);
        rig.verify(&array);
        rig.machine.media[1].borrow_mut().wipe();
        array.set_member(1, Some(rig.machine.disk(1)));
        let (replacing, pool) = (array.clone(), rig.bench.pool.clone());
        let replaced = rig
            .bench
            .run(async move { replacing.replace(1, &mut Rng::from_seed(5), &pool).await });
        replaced.unwrap().unwrap();
        let worker = Worker {
            array: array.clone(),
            model: rig.model.clone(),
            pool: rig.bench.pool.clone(),
            rng: Rng::from_seed(77),
            first: 0,
            blocks: BLOCKS,
            longest: 40,
        };
        let task: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(worker.run(30));
        assert!(rig.bench.reactor.spawn(task).is_ok());
        rig.rebuild(&array, 1).unwrap();
        while rig.bench.reactor.executor().live() > 0 {
            rig.bench.run(async {}).unwrap();
        }
        assert!(array.assembled().state().is_whole());
        assert_eq!(rig.mismatches(&array), 0, "{}", wish.level);
        rig.verify(&array);
        drop(array);
        // Others may go now.
        let members: Vec<usize> = rig.machine.all().into_iter().filter(|m| *m != 0).collect();
        let (array, _) = rig.assemble(&members).unwrap();
        rig.verify(&array);
    }
}

#[test]
fn a_spare_steps_in() {
    let mut rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    // Made anew, with a fifth disk.
    let spare = Rc::new(RefCell::new(rig.machine.media[0].borrow().clone()));
    rig.machine.media.push(spare);
    let wish = *rig.machine.geometry.wish();
    let (disks, pool) = (
        rig.machine.disks(&rig.machine.all()),
        rig.bench.pool.clone(),
    );
    let made = rig.bench.run(async move {
        let mut rng = Rng::from_seed(21);
        create(&disks, wish, "spared", &[true; 5], &mut rng, &pool).await
    });
    made.unwrap().unwrap();
    let (array, report) = rig.assemble(&[4, 3, 2, 1, 0]).unwrap();
    assert_eq!((report.spares.clone(), report.refused.len()), (vec![0], 0));
    rig.work(&array, 10);
    rig.machine.media[2].borrow_mut().gone = true;
    rig.work(&array, 10);
    let spare = array.assembled().state().spares[0];
    array.set_member(2, Some(rig.machine.disk(4)));
    let using = array.clone();
    let used = rig
        .bench
        .run(async move { using.use_spare(2, spare).await });
    used.unwrap().unwrap();
    rig.work(&array, 5);
    rig.rebuild(&array, 2).unwrap();
    assert_eq!(rig.mismatches(&array), 0);
    drop(array);
    let (array, report) = rig.assemble(&[0, 1, 3, 4]).unwrap();
    assert_eq!(
        (report.roles, report.refused.len()),
        (vec![Some(0), Some(1), Some(3), Some(2)], 0)
    );
    rig.verify(&array);
    drop(array);
    // The one that it replaced is known no more.
    rig.machine.media[2].borrow_mut().gone = false;
    let (_, report) = rig.assemble(&rig.machine.all()).unwrap();
    assert_eq!(report.refused, [(2, Refusal::Removed)]);
}

#[test]
fn a_member_that_returns_takes_what_it_missed() {
    for (wish, _) in redundant() {
        let mut rig = Rig::new(wish, true);
        let array = rig.all();
        rig.work(&array, 15);
        drop(array);
        // It is not there for a while.
        let members: Vec<usize> = rig.machine.all().into_iter().filter(|m| *m != 2).collect();
        let (array, _) = rig.assemble(&members).unwrap();
        rig.work(&array, 15);
        drop(array);
        let (array, report) = rig.assemble(&rig.machine.all()).unwrap();
        assert!(
            matches!(report.refused[..], [(2, Refusal::Stale { role: 2, .. })]),
            "{report:?}"
        );
        array.set_member(2, Some(rig.machine.disk(2)));
        let returning = array.clone();
        let returned = rig.bench.run(async move { returning.take_back(2).await });
        returned.unwrap().unwrap();
        rig.work(&array, 5);
        rig.rebuild(&array, 2).unwrap();
        assert_eq!(rig.mismatches(&array), 0, "{}", wish.level);
        rig.verify(&array);
        let tidying = array.clone();
        rig.bench
            .run(async move { tidying.tidy().await })
            .unwrap()
            .unwrap();
        rig.work(&array, 5);
        rig.verify(&array);
    }
}

#[test]
fn a_rebuild_goes_on_after_a_power_cut_anywhere() {
    for cut in (0..1600).step_by(160) {
        let mut rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), true);
        let array = rig.all();
        rig.work(&array, 15);
        rig.machine.media[1].borrow_mut().gone = true;
        rig.work(&array, 5);
        rig.machine.media[1].borrow_mut().wipe();
        array.set_member(1, Some(rig.machine.disk(1)));
        let (replacing, pool) = (array.clone(), rig.bench.pool.clone());
        let replace = async move { replacing.replace(1, &mut Rng::from_seed(5), &pool).await };
        rig.bench.run(replace).unwrap().unwrap();
        rig.machine.power.cut_after(cut);
        let rebuilding = array.clone();
        let rebuild = async move { rebuilding.rebuild(1, Pace::default()).await };
        let ended = rig.bench.run(rebuild);
        drop(array);
        rig.bench = Bench::new(&rig.machine.power);
        rig.machine.lose_power();
        let (array, _) = rig.assemble(&rig.machine.all()).unwrap();
        rig.verify(&array);
        if ended.is_none() {
            rig.rebuild(&array, 1).unwrap();
        }
        assert_eq!(rig.mismatches(&array), 0, "cut {cut}");
        rig.verify(&array);
        rig.machine.media[3].borrow_mut().gone = true;
        rig.verify(&array);
    }
}

#[test]
fn blocks_that_cannot_be_read_are_made_anew() {
    for (wish, _) in redundant() {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 15);
        let first = array.assembled().geometry().row_lba(0, 0).0;
        {
            let mut medium = rig.machine.media[0].borrow_mut();
            medium.bad.extend([first, first + 1, first + 3]);
        }
        {
            // In other rows of the same stripe another member is bad.
            let mut medium = rig.machine.media[1].borrow_mut();
            medium.bad.extend([first + 2]);
        }
        rig.verify(&array);
        rig.work(&array, 5);
        rig.verify(&array);
        assert_eq!(rig.mismatches(&array), 0);
        for medium in &rig.machine.media {
            assert!(
                medium.borrow().bad.is_empty(),
                "{}: not repaired",
                wish.level
            );
        }
        assert!(array.assembled().state().is_whole());
    }
}

#[test]
fn a_scrub_finds_and_mends_what_changed_by_itself() {
    for (wish, _) in redundant() {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 15);
        let geometry = array.assembled().geometry();
        // The last index of stripe 1: parity, or a leg that is not the first.
        let role = match geometry.copies() {
            1 => geometry.role_of(1, geometry.data() + geometry.parity() - 1),
            _ => 1,
        };
        let at = geometry.row_lba(1, 0).0;
        rig.machine.media[role].borrow_mut().corrupt(at);
        assert_eq!(rig.mismatches(&array), 1, "{}", wish.level);
        assert_eq!(array.assembled().counters().mismatches, 1);
        assert_eq!(rig.mismatches(&array), 0);
        rig.verify(&array);
    }
}

#[test]
fn what_a_scrub_has_mended_outlives_the_power() {
    for (wish, _) in redundant() {
        let mut rig = Rig::new(wish, true);
        let array = rig.all();
        rig.work(&array, 15);
        let flushed = array.clone();
        let flush = async move { flushed.flush().await };
        rig.bench.run(flush).unwrap().unwrap();
        let geometry = array.assembled().geometry();
        for stripe in 0..4 {
            let role = match geometry.copies() {
                1 => geometry.role_of(stripe, geometry.data()),
                _ => 1,
            };
            let at = geometry.row_lba(stripe, 0).0;
            rig.machine.media[role].borrow_mut().corrupt(at);
        }
        assert!(rig.mismatches(&array) > 0, "{}", wish.level);
        drop(array);
        rig.machine.lose_power();
        assert_eq!(rig.mismatches(&rig.all()), 0, "{}", wish.level);
    }
}

#[test]
fn legs_that_differ_agree_after_a_scrub_that_could_not_read_one_of_them_at_once() {
    for roles in [2, 3] {
        let mut rig = Rig::new(small(Level::Mirrored, roles, BlockSize::B512), false);
        let array = rig.all();
        rig.work(&array, 15);
        let first = array.assembled().geometry().row_lba(1, 0).0;
        rig.machine.media[0].borrow_mut().bad_once.insert(first);
        rig.machine.media[1].borrow_mut().corrupt(first + 1);
        let _ = rig.mismatches(&array);
        assert_eq!(rig.mismatches(&array), 0, "{roles} legs");
    }
}

/// Lets everybody have so many turns.
pub async fn turns(count: usize) {
    let mut left = count;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[test]
fn a_rebuild_ends_when_its_member_fails_amid_it_and_spoils_nothing_of_the_next() {
    let mut rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    let array = rig.all();
    rig.work(&array, 15);
    let failing = array.clone();
    let failed = async move { failing.give_up(1).await };
    rig.bench.run(failed).unwrap().unwrap();
    rig.work(&array, 5);
    drop(array);
    for count in (0..90).step_by(3) {
        let power = Power::new(count as u64, false);
        let (machine, bench) = (rig.machine.fork(&power), Bench::new(&power));
        let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        array.set_member(1, Some(machine.disk(1)));
        let returning = array.clone();
        let returned = bench.run(async move { returning.take_back(1).await });
        returned.unwrap().unwrap();
        let ended = Rc::new(RefCell::new(None));
        let (rebuilding, into) = (array.clone(), ended.clone());
        let task: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let outcome = rebuilding.rebuild(1, Pace::default()).await;
            *into.borrow_mut() = Some(outcome);
        });
        assert!(bench.reactor.spawn(task).is_ok());
        let failing = array.clone();
        let back = bench.run(async move {
            turns(count).await;
            failing.give_up(1).await?;
            failing.take_back(1).await
        });
        back.unwrap().unwrap();
        for _ in 0..200 {
            if ended.borrow().is_none() {
                bench.run(turns(100)).unwrap();
            }
        }
        assert!(ended.borrow().is_some(), "after {count} turns it hangs");
        if array.assembled().state().is_whole() {
            continue;
        }
        let again = array.clone();
        let rebuilt = bench.run(async move { again.rebuild(1, Pace::default()).await });
        rebuilt.unwrap().unwrap();
        let scrubbed = bench.run(async move { array.scrub(Pace::default()).await });
        assert_eq!(
            scrubbed.unwrap().unwrap().mismatch_count,
            0,
            "{count} turns"
        );
    }
}

fn superblock_copy(rig: &Rig, member: usize, offset: u64) {
    let block = rig.machine.geometry.block_size().bytes() as u64;
    rig.machine.media[member]
        .borrow_mut()
        .corrupt(offset / block);
}

#[test]
fn a_damaged_superblock_copy_is_repaired_from_the_other() {
    for offset in [0, 64 << 10] {
        let rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
        superblock_copy(&rig, 2, offset);
        let (array, report) = rig.assemble(&rig.machine.all()).unwrap();
        assert_eq!((report.repaired_copies, report.refused.len()), (1, 0));
        drop(array);
        let (_, report) = rig.assemble(&rig.machine.all()).unwrap();
        assert_eq!(report.repaired_copies, 0);
    }
}

#[test]
fn without_a_good_copy_a_disk_is_refused_and_the_array_degraded() {
    let mut rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    let array = rig.all();
    rig.work(&array, 5);
    drop(array);
    superblock_copy(&rig, 2, 0);
    superblock_copy(&rig, 2, 64 << 10);
    let (array, report) = rig.assemble(&rig.machine.all()).unwrap();
    let refused = [(2, Refusal::Superblock(BadSuperblock::Absent))];
    assert_eq!(report.refused, refused);
    rig.verify(&array);
}

#[test]
fn disks_of_other_arrays_and_twins_are_refused() {
    let rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    let array = rig.all();
    let uuid = array.assembled().uuid();
    drop(array);
    let other = Rig::new(small(Level::Raid6, 4, BlockSize::B512), false);
    // The same seed made it; another identity.
    let foreign = {
        let (disks, pool) = (other.machine.disks(&[0, 1, 2, 3]), other.bench.pool.clone());
        let wish = *other.machine.geometry.wish();
        let made = other.bench.run(async move {
            let mut rng = Rng::from_seed(99);
            create(&disks, wish, "other", &[true; 4], &mut rng, &pool).await
        });
        made.unwrap().unwrap()
    };
    let mut machine = rig.machine.clone();
    machine.media.push(other.machine.media[0].clone());
    let twin = machine.media[1].borrow().clone();
    machine.media.push(Rc::new(RefCell::new(twin)));
    let refused = machine.assemble(&rig.bench, &machine.all()).unwrap().err();
    let arrays = [uuid, foreign];
    assert_eq!(refused, Some(AssembleError::SeveralArrays { arrays }));
    let (disks, reactor) = (machine.disks(&machine.all()), rig.bench.reactor.clone());
    let pool = support::scratch(&machine.geometry);
    let assembled = rig.bench.run(async move {
        corebay_raid::assemble::assemble(disks, Some(uuid), &reactor, &pool).await
    });
    let report = assembled.unwrap().expect("an array").report;
    let expected = [
        (4, Refusal::Foreign { array: foreign }),
        (5, Refusal::Duplicate { of: 1 }),
    ];
    assert_eq!(report.refused, expected);
}

#[test]
fn halves_that_went_on_alone_are_told_apart() {
    let mut rig = Rig::new(small(Level::Mirrored, 2, BlockSize::B512), false);
    for alone in [[0], [1]] {
        let (array, _) = rig.assemble(&alone).unwrap();
        if alone == [0] {
            rig.work(&array, 5);
        }
    }
    // Nobody's changes are lost without being told which.
    let refused = rig.assemble(&[0, 1]).err();
    assert!(
        matches!(refused, Some(AssembleError::Diverged { .. })),
        "{refused:?}"
    );
    let (array, _) = rig.assemble(&[0]).unwrap();
    rig.verify(&array);
}

/// A member whose last state calls another one failed that has come back since is stale, not a half.
#[test]
fn a_member_that_failed_while_another_returned_is_stale() {
    let mut rig = Rig::new(small(Level::Raid6, 4, BlockSize::B512), false);
    let array = rig.all();
    rig.machine.media[0].borrow_mut().gone = true;
    rig.work(&array, 20);
    rig.machine.media[0].borrow_mut().gone = false;
    rig.machine.media[1].borrow_mut().gone = true;
    let returning = array.clone();
    let returned = rig.bench.run(async move { returning.take_back(0).await });
    returned.unwrap().unwrap();
    rig.rebuild(&array, 0).unwrap();
    drop(array);
    rig.machine.media[1].borrow_mut().gone = false;
    let (array, report) = rig.assemble(&rig.machine.all()).unwrap();
    let refused = &report.refused[..];
    assert!(
        matches!(refused, [(1, Refusal::Stale { role: 1, .. })]),
        "{refused:?}"
    );
    rig.verify(&array);
}

/// While both legs of a mirror are being written, what was read new once is not read old again.
#[test]
fn a_mirror_does_not_go_back_while_it_is_written() {
    for seed in 0..20 {
        let power = Power::new(seed, false);
        let machine = Machine::new(small(Level::Mirrored, 2, BlockSize::B512), false, &power);
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        let (writing, pool) = (array.clone(), bench.pool.clone());
        let writer = Box::pin(async move {
            for value in 1..=20u8 {
                let mut from = pool.allocate(512).await;
                from.bytes_mut().fill(value);
                let written = writing.write(Lba(0), &[from], Durability::Cached).await;
                written.expect("both legs are there");
            }
        });
        assert!(bench.reactor.spawn(writer).is_ok());
        let pool = bench.pool.clone();
        let reads = bench.run(async move {
            let mut seen = Vec::new();
            while seen.last() != Some(&20) {
                let into = pool.allocate(512).await;
                let read = array.read(Lba(0), std::slice::from_ref(&into)).await;
                read.expect("both legs are there");
                seen.push(into.bytes()[0]);
            }
            seen
        });
        let seen = reads.unwrap();
        assert!(seen.is_sorted(), "seed {seed}: {seen:?}");
    }
}

#[test]
fn what_may_be_data_is_not_overwritten() {
    let rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    let wish = *rig.machine.geometry.wish();
    let create_again = |overwrite: Vec<bool>| {
        let (disks, pool) = (rig.machine.disks(&[0, 1, 2, 3]), rig.bench.pool.clone());
        rig.bench
            .run(async move {
                let mut rng = Rng::from_seed(8);
                create(&disks, wish, "again", &overwrite, &mut rng, &pool).await
            })
            .unwrap()
    };
    let refused = create_again(vec![true, true]).unwrap_err();
    assert!(
        matches!(
            refused,
            CreateError::Occupied {
                member: 2,
                by: Occupant::Member { .. }
            }
        ),
        "{refused}"
    );
    // What was refused is as it was.
    drop(rig.all());
    create_again(vec![true; 4]).unwrap();
    assert_eq!(rig.mismatches(&rig.all()), 0);
}

#[test]
fn a_newer_format_is_left_alone() {
    let rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    let (disk, pool) = (rig.machine.disk(3), rig.bench.pool.clone());
    rig.bench.run(async move {
        use corebay_core::disk::{Disk, Durability};
        let at = corebay_core::units::Lba(0);
        let mut buffer = pool.allocate(4096).await;
        disk.read(at, std::slice::from_ref(&buffer)).await.unwrap();
        {
            let mut bytes = buffer.bytes_mut();
            assert!(Superblock::decode(&bytes).is_ok());
            bytes[8] = 3;
            bytes[12..16].fill(0);
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes) as u32;
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        }
        disk.write(at, &[buffer], Durability::Durable)
            .await
            .unwrap();
    });
    let (_, report) = rig.assemble(&rig.machine.all()).unwrap();
    let newer = BadSuperblock::Newer { version: 3 };
    assert_eq!(report.refused, [(3, Refusal::Superblock(newer))]);
}

/// A new member that goes while it is being rebuilt has not what nobody wrote meanwhile either.
#[test]
fn a_member_that_went_amid_its_rebuild_is_rebuilt_whole() {
    for (wish, _) in redundant() {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 40);
        // What is marked from here on is what is written from here on.
        let (resyncing, tidying) = (array.clone(), array.clone());
        let resync = async move { resyncing.resync(Pace::default()).await };
        rig.bench.run(resync).unwrap().unwrap();
        let tidied = rig.bench.run(async move { tidying.tidy().await });
        tidied.unwrap().unwrap();
        rig.machine.media[1].borrow_mut().wipe();
        let (giving, pool) = (array.clone(), rig.bench.pool.clone());
        let disk = rig.machine.disk(1);
        let replaced = rig.bench.run(async move {
            giving.give_up(1).await?;
            giving.set_member(1, Some(disk));
            giving.replace(1, &mut Rng::from_seed(5), &pool).await
        });
        replaced.unwrap().unwrap();
        let returning = array.clone();
        let returned = rig.bench.run(async move {
            returning.give_up(1).await?;
            returning.take_back(1).await
        });
        returned.unwrap().unwrap();
        rig.verify(&array);
        rig.rebuild(&array, 1).unwrap();
        assert_eq!(rig.mismatches(&array), 0, "{}", wish.level);
        rig.verify(&array);
    }
}

/// Without a journal, what cannot be read after a crash is not made of what may not belong together.
#[test]
fn what_a_crash_tore_is_lost_rather_than_made_up_where_there_is_no_journal() {
    let wish = Wish {
        consistency: Consistency::DirtyRegions,
        ..small(Level::Raid5, 4, BlockSize::B512)
    };
    let mut rig = Rig::new(wish, false);
    let array = rig.all();
    rig.work(&array, 40);
    drop(array);
    let geometry = rig.machine.geometry;
    let at = geometry.row_lba(0, 0).0;
    let (data, parity) = (geometry.role_of(0, 0), geometry.role_of(0, 3));
    rig.machine.media[parity].borrow_mut().corrupt(at);
    rig.machine.media[data].borrow_mut().bad.insert(at);
    let array = rig.all();
    assert!(array.assembled().needs_resync());
    let read = |array: &Shared| {
        let (array, pool) = (array.clone(), rig.bench.pool.clone());
        let read = rig.bench.run(async move {
            let into = pool.allocate(1024).await;
            array.read(Lba(0), std::slice::from_ref(&into)).await?;
            Ok::<u8, DiskError>(into.bytes()[0])
        });
        read.unwrap()
    };
    let resync = |array: &Shared| {
        let array = array.clone();
        let resync = async move { array.resync(Pace::default()).await };
        rig.bench.run(resync).unwrap()
    };
    assert_eq!(read(&array), Err(DiskError::UnrecoveredRead));
    let lost = Err(SweepError::Lost { stripe: 0 });
    assert_eq!(resync(&array), lost);
    assert!(array.assembled().needs_resync());
    assert_eq!(read(&array), Err(DiskError::UnrecoveredRead));
    // Once it is written anew all is well.
    let (writing, pool) = (array.clone(), rig.bench.pool.clone());
    let wrote = rig.bench.run(async move {
        let mut from = pool.allocate(512).await;
        from.bytes_mut().fill(7);
        writing.write(Lba(0), &[from], Durability::Cached).await
    });
    wrote.unwrap().unwrap();
    assert_eq!(resync(&array), Ok(()));
    assert!(!array.assembled().needs_resync());
    rig.machine.media[data].borrow_mut().bad.insert(at);
    assert_eq!(read(&array), Ok(7));
}

/// What comes back to a role is what left it: not blank, not of another array, not another member, and
/// not a half that went on alone.
#[test]
fn who_comes_back_is_looked_at() {
    let mut rig = Rig::new(small(Level::Mirrored, 3, BlockSize::B512), false);
    let array = rig.all();
    rig.work(&array, 5);
    drop(array);
    // Role 2 goes on alone, but nobody knows yet.
    let before = rig.machine.media[2].borrow().clone();
    let (array, _) = rig.assemble(&[2]).unwrap();
    rig.work(&array, 5);
    drop(array);
    let (array, _) = rig.assemble(&[0, 1]).unwrap();
    let check = |role: usize, place: usize| {
        let (disk, assembled) = (rig.machine.disk(place), array.assembled().clone());
        let pool = rig.bench.pool.clone();
        let check = async move { check_returning(&disk, &assembled, role, &pool).await };
        rig.bench.run(check).unwrap()
    };
    assert_eq!(check(2, 2), Err(Refusal::Diverged { role: 2 }));
    *rig.machine.media[2].borrow_mut() = before;
    assert_eq!(check(2, 2), Ok(()));
    assert_eq!(check(2, 0), Err(Refusal::OtherRole { role: 0 }));
    rig.machine.media[2].borrow_mut().wipe();
    let absent = Refusal::Superblock(BadSuperblock::Absent);
    assert_eq!(check(2, 2), Err(absent));
}

/// Hosts of an array without a volatile cache flush nothing. A member with one that joins later does not
/// change what they were told.
#[test]
fn a_member_with_a_cache_that_joins_an_array_without_loses_nothing() {
    let journaled = redundant();
    let resynced = journaled.iter().map(|(wish, bears)| {
        let consistency = Consistency::DirtyRegions;
        (
            Wish {
                consistency,
                ..*wish
            },
            *bears,
        )
    });
    for (wish, _) in resynced.chain(redundant()) {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 10);
        rig.machine.media[1].borrow_mut().gone = true;
        rig.work(&array, 5);
        let cached = Medium::new(wish.block_size, 4 << 20, true);
        rig.machine.media[1].replace(cached);
        array.set_member(1, Some(rig.machine.disk(1)));
        let (replacing, pool) = (array.clone(), rig.bench.pool.clone());
        let replace = async move { replacing.replace(1, &mut Rng::from_seed(5), &pool).await };
        rig.bench.run(replace).unwrap().unwrap();
        rig.rebuild(&array, 1).unwrap();
        rig.work(&array, 40);
        let tidying = array.clone();
        let tidy = async move { tidying.tidy().await.map(drop) };
        assert_eq!(rig.bench.run(tidy), Some(Ok(())));
        assert!(!array.info().volatile_cache);
        // Assembled anew while hosts go on, it keeps its promise.
        let before = array.assembled().clone();
        drop(array);
        let (again, _) = rig.assemble(&rig.machine.all()).unwrap();
        let assembled = again.assembled().clone();
        drop(again);
        assembled.keep_promise_of(&before);
        assert!(!assembled.info().volatile_cache);
        let scratch = support::scratch(&rig.machine.geometry);
        let members = rig.machine.disks(&rig.machine.all());
        let members = members.into_iter().map(Some).collect();
        let opened = Array::open(&assembled, members, &rig.bench.reactor, &scratch);
        let array = Rc::new(opened.unwrap());
        rig.work(&array, 20);
        let tidying = array.clone();
        let tidy = async move { tidying.tidy().await.map(drop) };
        assert_eq!(rig.bench.run(tidy), Some(Ok(())));
        rig.machine.power.cut_after(0);
        drop(array);
        rig.bench = Bench::new(&rig.machine.power);
        rig.machine.lose_power();
        let array = rig.all();
        rig.verify(&array);
        assert_eq!(rig.mismatches(&array), 0, "{}", wish.level);
        drop(array);
        let members: Vec<usize> = rig.machine.all().into_iter().filter(|m| *m != 0).collect();
        rig.verify(&rig.assemble(&members).unwrap().0);
    }
}

/// While one member is brought up to date, a second one comes back; what is written meanwhile lacks in
/// neither of them.
#[test]
fn two_members_that_come_back_one_after_the_other_lack_nothing() {
    for delay in (0..60).step_by(6) {
        let mut rig = Rig::new(small(Level::Raid6, 5, BlockSize::B512), false);
        let array = rig.all();
        for away in [3, 4] {
            rig.machine.media[away].borrow_mut().gone = true;
        }
        rig.work(&array, 6);
        for away in [3, 4] {
            rig.machine.media[away].borrow_mut().gone = false;
            array.set_member(away, Some(rig.machine.disk(away)));
        }
        let first = array.clone();
        let first = async move { first.take_back(3).await };
        assert_eq!(rig.bench.run(first).unwrap(), Ok(()));
        let pace = Pace {
            floor_mib_s: 4000,
            ceiling_mib_s: 0,
        };
        let rebuild = |array: &Shared, role| {
            let array = array.clone();
            let rebuild = async move { array.rebuild(role, pace).await };
            rig.bench.run(rebuild).unwrap().unwrap();
        };
        let geometry = rig.machine.geometry;
        // A block of the first member in a region that nobody has written to.
        let of_first = |stripe: &u64| geometry.role_of(*stripe, 0) == 3;
        let stripe = (16..32)
            .find(of_first)
            .expect("it has data in some of them");
        let at = Lba(stripe * (geometry.stripe_bytes() / 512));
        let (writing, pool) = (array.clone(), rig.bench.pool.clone());
        let (is_back, last) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0_u8)));
        let (until, wrote) = (is_back.clone(), last.clone());
        let task: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            while !until.get() {
                wrote.set(wrote.get() % 250 + 1);
                let mut buffer = pool.allocate(512).await;
                buffer.bytes_mut().fill(wrote.get());
                let from = std::slice::from_ref(&buffer);
                writing.write(at, from, Durability::Cached).await.unwrap();
                turns(1).await;
            }
        });
        assert!(rig.bench.reactor.spawn(task).is_ok());
        let second = array.clone();
        let mut turns = delay;
        let task: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            std::future::poll_fn(|context| {
                turns -= i32::from(turns > 0);
                context.waker().wake_by_ref();
                match turns {
                    0 => std::task::Poll::Ready(()),
                    _ => std::task::Poll::Pending,
                }
            })
            .await;
            second.take_back(4).await.unwrap();
            is_back.set(true);
        });
        assert!(rig.bench.reactor.spawn(task).is_ok());
        rebuild(&array, 3);
        while rig.bench.reactor.executor().live() > 0 {
            rig.bench.run(async {}).unwrap();
        }
        rebuild(&array, 4);
        assert_eq!(rig.mismatches(&array), 0, "delay {delay}");
        let (reading, pool) = (array.clone(), rig.bench.pool.clone());
        let read = rig.bench.run(async move {
            let buffer = pool.allocate(512).await;
            let read = reading.read(at, std::slice::from_ref(&buffer));
            read.await.unwrap();
            buffer.bytes()[0]
        });
        assert_eq!(read, Some(last.get()), "delay {delay}");
    }
}

/// An array without redundancy cannot do without a member, but says which one is gone.
#[test]
fn an_array_without_redundancy_says_who_is_gone() {
    for (level, roles) in [(Level::Striped, 3), (Level::Mirrored, 1)] {
        let mut rig = Rig::new(small(level, roles, BlockSize::B512), false);
        let array = rig.all();
        rig.work(&array, 3);
        assert_eq!(array.assembled().lost().count(), 0);
        rig.machine.media[0].borrow_mut().gone = true;
        for blocks in [1, 64] {
            let (reading, pool) = (array.clone(), rig.bench.pool.clone());
            let read = rig.bench.run(async move {
                let buffer = pool.allocate(512 * blocks).await;
                reading.read(Lba(0), &[buffer]).await
            });
            assert_eq!(read, Some(Err(DiskError::Gone)));
            assert_eq!(array.assembled().lost().collect::<Vec<_>>(), [0]);
        }
    }
}
