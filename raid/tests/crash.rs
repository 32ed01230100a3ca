//! Power cuts at any change of any block, with members lost in the same crash.

use std::{cell::RefCell, rc::Rc};

use corebay_core::{
    disk::{Disk, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_raid::{
    array::Array,
    assemble::{AssembleError, Refusal},
    geometry::{Consistency, Level, Wish},
    sweep::Pace,
};

use crate::support::{
    bench::{Bench, Machine, Model, Worker, settle, small},
    ec,
    power::{Power, PowerDisk},
};

/// Where a member's journal begins: it has no mirrored zone.
const JOURNAL: u64 = 128 << 10;

/// What a run is made of.
#[derive(Clone, Copy)]
struct Case {
    wish: Wish,
    volatile: bool,
    tears: bool,
    /// Members lost in the crash.
    losses: usize,
    /// A member fails amid the work before the crash, and is there again after it.
    fails: bool,
    /// Of how many members nothing of their journals can be read after it.
    forget: usize,
    /// Who works at the same time, how much, and how many blocks at most at a time.
    workers: u64,
    operations: usize,
    longest: u64,
}

/// Blocks that are worked on: several stripes.
const BLOCKS: u64 = 200;

/// Works until all is done; nothing if the power fails before.
fn work(
    bench: &Bench,
    array: &Rc<Array<PowerDisk>>,
    model: &Rc<RefCell<Model>>,
    seed: u64,
    case: &Case,
) -> Option<()> {
    let workers = case.workers;
    let mut tasks = Vec::new();
    let share = BLOCKS / workers;
    for worker in 0..workers {
        let worker = Worker {
            array: array.clone(),
            model: model.clone(),
            pool: bench.pool.clone(),
            rng: Rng::from_seed(seed.wrapping_mul(31) + worker),
            first: worker * share,
            blocks: share,
            longest: case.longest,
        };
        tasks.push(worker.run(case.operations));
    }
    let left = Rc::new(std::cell::Cell::new(tasks.len()));
    for task in tasks {
        let left = left.clone();
        let task: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            task.await;
            left.set(left.get() - 1);
        });
        assert!(bench.reactor.spawn(task).is_ok());
    }
    bench.run(std::future::poll_fn(move |context| {
        if left.get() == 0 {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    }))
}

/// Members that a crash takes, as many as the level bears at most.
fn victims(case: &Case, roles: usize, rng: &mut Rng) -> Vec<usize> {
    let mut victims = Vec::new();
    while victims.len() < case.losses {
        let victim = rng.below(roles as u64) as usize;
        // Of a pair of RAID 10 one at most.
        let pair = |other: &usize| match case.wish.level {
            Level::StripedMirrors => other / 2 == victim / 2,
            _ => *other == victim,
        };
        if !victims.iter().any(pair) {
            victims.push(victim);
        }
    }
    victims
}

/// One crash of a machine whose blocks are as the model says.
fn crash(case: &Case, base: &Machine, model: &Model, seed: u64, cut: u64, nested: bool) {
    let mut rng = Rng::from_seed(seed ^ cut << 20);
    let power = Power::new(seed ^ cut << 8, case.tears);
    let machine = base.fork(&power);
    let model = Rc::new(RefCell::new(model.clone()));
    let bench = Bench::new(&power);
    let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
    power.cut_after(cut);
    let failing = rng.below(machine.media.len() as u64) as usize;
    machine.media[failing].borrow_mut().gone = case.fails;
    let _ = work(&bench, &array, &model, seed, case);
    drop((bench, array));
    machine.lose_power();
    machine.media[failing].borrow_mut().gone = false;
    for member in (failing..).take(case.forget) {
        let journal = machine.geometry.member_lba(JOURNAL).0..machine.geometry.row_lba(0, 0).0;
        let mut medium = machine.media[member % machine.media.len()].borrow_mut();
        medium.bad.extend(journal);
    }
    let lost = victims(case, machine.media.len(), &mut rng);
    let here = |member: &usize| !lost.contains(member);
    let mut members: Vec<usize> = machine.all().into_iter().filter(here).collect();
    if nested {
        // The power fails again, amid recovery; after it those that were lost may be there again.
        let bench = Bench::new(&power);
        power.cut_after(rng.below(90));
        drop(machine.assemble(&bench, &members));
        drop(bench);
        machine.lose_power();
        if rng.below(2) == 0 {
            members = machine.all();
        }
    }
    let bench = Bench::new(&power);
    let (array, report) = machine.assemble(&bench, &members).unwrap().unwrap();
    let stale = |(_, why): &(usize, Refusal)| matches!(why, Refusal::Stale { .. });
    assert!(report.refused.iter().all(stale), "{report:?}");
    assert!(report.refused.len() <= lost.len() + usize::from(case.fails));
    let may_be_lost = case.tears && !machine.geometry.is_journaled();
    let read = settle(
        array.clone(),
        model.clone(),
        bench.pool.clone(),
        may_be_lost,
    );
    bench.run(read).unwrap();
    if !may_be_lost {
        let sweeping = array.clone();
        let scrubbed = bench.run(async move {
            let is_due = sweeping.assembled().needs_resync();
            sweeping.resync(Pace::default()).await?;
            let (done, all) = sweeping.progress();
            assert!(done == all && is_due == (all > 0), "{done} of {all}");
            sweeping.scrub(Pace::default()).await
        });
        let scrubbed = scrubbed.unwrap().unwrap();
        assert_eq!(scrubbed.mismatch_count, 0, "{scrubbed:?}");
        work(&bench, &array, &model, seed + 1, case).unwrap();
    }
    drop((bench, array));
}

fn base(case: &Case, seed: u64) -> (Machine, Model) {
    let power = Power::new(seed, false);
    let machine = Machine::new(case.wish, case.volatile, &power);
    let model = Rc::new(RefCell::new(Model::new(BLOCKS)));
    let bench = Bench::new(&power);
    let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
    let more = Case {
        workers: 2,
        operations: 12,
        longest: 48,
        ..*case
    };
    work(&bench, &array, &model, seed + 99, &more).unwrap();
    drop((bench, array));
    // A clean end of the machine: nothing is in caches.
    let bench = Bench::new(&power);
    for member in machine.all() {
        let disk = machine.disk(member);
        let flushed = bench.run(async move { corebay_core::disk::Disk::flush(&disk).await });
        flushed.unwrap().unwrap();
    }
    let model = model.borrow().clone();
    (machine, model)
}

/// How many crashes each test makes: many of them where `COREBAY_LONG` is set.
fn crash_count() -> u64 {
    from_environment("COREBAY_CRASHES").unwrap_or(if is_long() { 200 } else { 30 })
}

/// Whether `COREBAY_LONG` asks for all that can be tried, which takes minutes, and not for a sample.
fn is_long() -> bool {
    std::env::var_os("COREBAY_LONG").is_some()
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Crashes at changes all over the work of one seed.
fn crashes(case: Case, seed: u64) {
    // Other work, for long searches.
    let seed = seed + from_environment("COREBAY_SEED").unwrap_or(0);
    let (machine, model) = base(&case, seed);
    let total = changes_of(&case, &machine, &model, seed);
    let count = crash_count();
    for run in 0..count {
        let cut = (run * total / count) + seed % (total / count).max(1);
        attempt(&case, &machine, &model, seed, cut, run % 3 == 2);
    }
}

/// A crash whose failure names it.
fn attempt(case: &Case, machine: &Machine, model: &Model, seed: u64, cut: u64, nested: bool) {
    let run = || crash(case, machine, model, seed, cut, nested);
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        eprintln!("seed {seed}, cut {cut}, nested {nested}");
        std::panic::resume_unwind(panic);
    }
}

/// The changes that the work of a seed comes to.
fn changes_of(case: &Case, base: &Machine, model: &Model, seed: u64) -> u64 {
    let power = Power::new(seed, false);
    let machine = base.fork(&power);
    let model = Rc::new(RefCell::new(model.clone()));
    let bench = Bench::new(&power);
    let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
    let before = power.changes();
    work(&bench, &array, &model, seed, case).unwrap();
    power.changes() - before
}

fn case(level: Level, roles: usize, losses: usize) -> Case {
    Case {
        wish: small(level, roles, BlockSize::B512),
        volatile: false,
        tears: false,
        losses,
        fails: false,
        forget: 0,
        workers: 3,
        operations: 4,
        longest: 48,
    }
}

/// Many small writes to few stripes, so that records which may still be wanted meet in the same rows.
fn unreadable(level: Level, roles: usize, forget: usize) -> Case {
    Case {
        forget,
        volatile: true,
        operations: 8,
        longest: 8,
        ..case(level, roles, 0)
    }
}

macro_rules! crash_tests {
    ($($name:ident: $case:expr, $seed:expr;)+) => {
        $(#[test]
        fn $name() {
            crashes($case, $seed);
        })+
    };
}

crash_tests! {
    raid5: case(Level::Raid5, 4, 0), 1;
    raid5_losing_a_member: case(Level::Raid5, 4, 1), 10;
    raid5_volatile_and_torn: Case { volatile: true, tears: true, ..case(Level::Raid5, 4, 0) }, 20;
    raid5_volatile_losing_a_member: Case { volatile: true, ..case(Level::Raid5, 4, 1) }, 30;
    raid6_losing_two: case(Level::Raid6, 5, 2), 40;
    raid6_torn_losing_one: Case { volatile: true, tears: true, ..case(Level::Raid6, 5, 1) }, 50;
    ec_losing_three: case(ec(3, 3), 6, 3), 60;
    raid5_with_a_member_failing: Case { fails: true, volatile: true, ..case(Level::Raid5, 4, 0) }, 120;
    raid6_with_a_member_failing_and_another_lost: Case { fails: true, volatile: true, ..case(Level::Raid6, 5, 1) }, 130;
    raid1_with_a_member_failing: Case { fails: true, ..case(Level::Mirrored, 3, 1) }, 140;
    raid5_with_a_journal_that_cannot_be_read: unreadable(Level::Raid5, 3, 1), 150;
    raid6_with_two_journals_that_cannot_be_read: unreadable(Level::Raid6, 5, 2), 160;
    raid1: case(Level::Mirrored, 2, 0), 70;
    raid1_losing_two_legs: Case { volatile: true, ..case(Level::Mirrored, 3, 2) }, 80;
    raid1_torn: Case { volatile: true, tears: true, ..case(Level::Mirrored, 2, 0) }, 90;
    raid10_losing_a_leg_of_each: case(Level::StripedMirrors, 4, 2), 100;
    raid5_dirty_regions: Case {
        wish: Wish { consistency: Consistency::DirtyRegions, ..small(Level::Raid5, 4, BlockSize::B512) },
        ..case(Level::Raid5, 4, 0)
    }, 110;
}

/// One write, and the power cut at every single change of it, with each member lost and with none.
#[test]
fn every_change_of_one_write() {
    for (seed, losses) in [(1, 0), (2, 1), (3, 1), (4, 1)] {
        let case = Case {
            workers: 1,
            operations: 1,
            longest: 3,
            ..case(Level::Raid5, 3, losses)
        };
        let (machine, model) = base(&case, seed);
        let total = changes_of(&case, &machine, &model, seed);
        for cut in 0..=total {
            attempt(&case, &machine, &model, seed, cut, false);
        }
    }
}

/// One write cut at every change of it, a member lost, and its recovery without that member cut at
/// some of its changes, in a long run at all; then the member is there again. What the first recovery
/// decided stands.
#[test]
fn every_change_of_the_recovery_of_one_write() {
    let case = Case {
        workers: 1,
        operations: 1,
        longest: 1,
        ..case(Level::Raid5, 3, 0)
    };
    // A seed whose one operation is a write.
    let seed = 1;
    let (machine, model) = base(&case, seed);
    let total = changes_of(&case, &machine, &model, seed);
    assert!(total > 0);
    for cut in 1..=total {
        for lost in machine.all() {
            let step = if is_long() { 1 } else { 8 };
            let mut again = 1 + (cut + lost as u64) % step;
            while recover_twice(&case, &machine, &model, seed, [cut, again], lost) {
                again += step;
            }
        }
    }
}

/// False where the second cut came too late.
fn recover_twice(
    case: &Case,
    base: &Machine,
    model: &Model,
    seed: u64,
    cuts: [u64; 2],
    lost: usize,
) -> bool {
    let power = Power::new(seed ^ cuts[0] << 8 ^ cuts[1], false);
    let machine = base.fork(&power);
    let model = Rc::new(RefCell::new(model.clone()));
    let bench = Bench::new(&power);
    let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
    power.cut_after(cuts[0]);
    let _ = work(&bench, &array, &model, seed, case);
    drop((bench, array));
    machine.lose_power();
    let others: Vec<usize> = machine.all().into_iter().filter(|m| *m != lost).collect();
    let bench = Bench::new(&power);
    power.cut_after(cuts[1]);
    let finished = machine.assemble(&bench, &others).is_some();
    drop(bench);
    machine.lose_power();
    let bench = Bench::new(&power);
    let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
    let read = settle(array.clone(), model, bench.pool.clone(), false);
    bench.run(read).unwrap();
    let scrubbed = bench.run(async move { array.scrub(Pace::default()).await });
    assert_eq!(
        scrubbed.unwrap().unwrap().mismatch_count,
        0,
        "cuts {cuts:?}, lost {lost}"
    );
    !finished
}

#[test]
fn too_few_members_are_refused() {
    let case = case(Level::Raid5, 4, 0);
    let (machine, _) = base(&case, 1);
    let bench = Bench::new(&machine.power);
    let refused = machine.assemble(&bench, &[3, 1]).unwrap().err();
    let expected = AssembleError::TooFew {
        missing: vec![0, 2],
        may_miss: 1,
    };
    assert_eq!(refused, Some(expected));
}

/// A failure that only one leg has heard of did not count: it does not keep that leg from the others.
#[test]
fn a_failure_that_only_one_leg_knows_divides_nothing() {
    let case = Case {
        fails: true,
        ..case(Level::Mirrored, 3, 1)
    };
    let (machine, model) = base(&case, 140);
    attempt(&case, &machine, &model, 140, 54, true);
}

/// A part of a write's record cannot be read, and a later record has changed other strips in the same
/// rows: what lies in place tells nothing of the older one then.
#[test]
fn a_part_that_cannot_be_read_is_not_made_of_what_was_written_later() {
    for seed in 0..24 {
        let power = Power::new(seed, false);
        let size = BlockSize::B512;
        let machine = Machine::new(small(Level::Raid5, 4, size), true, &power);
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        let strip = u64::from(machine.geometry.strip_bytes()) / 512;
        let put = |array: Rc<Array<PowerDisk>>, strips: &'static [(u64, u8)]| {
            let pool = bench.pool.clone();
            async move {
                for (number, tag) in strips {
                    let mut buffer = pool.allocate(512).await;
                    buffer.bytes_mut().fill(*tag);
                    let at = Lba(number * strip);
                    array
                        .write(at, &[buffer], Durability::Cached)
                        .await
                        .unwrap();
                }
            }
        };
        bench
            .run(put(array.clone(), &[(0, 1), (1, 2), (2, 3), (0, 4)]))
            .unwrap();
        drop(array);
        machine.lose_power();
        // The first strip's part of the first record, and of the last one, the journal's.
        let geometry = machine.geometry;
        let role = geometry.role_of(0, 0);
        let slot = geometry.journal_offset() + 4096;
        let victim = if seed % 2 == 0 { 0 } else { 1 };
        let of = if victim == 0 {
            role
        } else {
            geometry.role_of(0, 1)
        };
        let bad = geometry.member_lba(slot + victim * geometry.slot_bytes()).0;
        machine.media[of].borrow_mut().bad.insert(bad);
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        for (number, tag) in [(0, 4), (1, 2), (2, 3)] {
            let (reading, pool) = (array.clone(), bench.pool.clone());
            let read = bench.run(async move {
                let buffer = pool.allocate(512).await;
                let at = Lba(number * strip);
                reading
                    .read(at, std::slice::from_ref(&buffer))
                    .await
                    .unwrap();
                buffer.bytes()[0]
            });
            assert_eq!(read, Some(tag), "seed {seed}, strip {number}");
        }
        let scrubbing = array.clone();
        let scrub = async move { scrubbing.scrub(Pace::default()).await };
        assert_eq!(bench.run(scrub).unwrap().unwrap().mismatch_count, 0);
    }
}

/// Several stripes that are zeroed by one record: after a cut at any change each block is old or zero, whoever
/// is lost, and the stripes beside them are untouched.
#[test]
fn stripes_that_are_zeroed_at_once_are_old_or_zeroes() {
    let size = BlockSize::B4096;
    let cases = [(Level::Raid5, 4, false), (Level::Raid6, 5, true)];
    for (level, roles, volatile) in cases {
        let power = Power::new(1, false);
        let base = Machine::new(small(level, roles, size), volatile, &power);
        let stripe = size.blocks_in(base.geometry.stripe_bytes());
        let blocks = 6 * stripe;
        let worker = |bench: &Bench, machine: &Machine, model: &Rc<RefCell<Model>>| {
            let (array, _) = machine.assemble(bench, &machine.all()).unwrap().unwrap();
            Worker {
                array,
                model: model.clone(),
                pool: bench.pool.clone(),
                rng: Rng::from_seed(5),
                first: 0,
                blocks,
                longest: blocks,
            }
        };
        let model = Rc::new(RefCell::new(Model::new(blocks)));
        let bench = Bench::new(&power);
        let mut writing = worker(&bench, &base, &model);
        let written = async move {
            writing.write(0, blocks).await.unwrap();
            writing.array.flush().await.unwrap();
            writing.model
        };
        let model = bench.run(written).unwrap().borrow().clone();
        drop(bench);
        let (mut replayed, mut cut, mut ended) = (0, 0, false);
        while !ended {
            cut += 2;
            let power = Power::new(cut, false);
            let machine = base.fork(&power);
            let model = Rc::new(RefCell::new(model.clone()));
            let bench = Bench::new(&power);
            let mut zeroing = worker(&bench, &machine, &model);
            power.cut_after(cut);
            let zero = async move { zeroing.zero(stripe, 4 * stripe).await };
            ended = bench.run(zero).is_some();
            drop(bench);
            machine.lose_power();
            let lost = cut as usize / 2 % (roles + 1);
            let here: Vec<usize> = (0..roles).filter(|role| *role != lost).collect();
            let bench = Bench::new(&power);
            let (array, report) = machine.assemble(&bench, &here).unwrap().unwrap();
            assert!(report.replayed <= 1, "{report:?}");
            replayed += report.replayed;
            let read = settle(array.clone(), model, bench.pool.clone(), false);
            bench.run(read).expect("power");
            if here.len() == roles {
                let scrub = async move { array.scrub(Pace::default()).await };
                assert_eq!(bench.run(scrub).unwrap().unwrap().mismatch_count, 0);
            }
        }
        assert!(replayed > 10, "{replayed} of {cut} cuts");
    }
}

/// A mark counts once all members have it. The power fails while the map is written, so some have it and
/// some do not; then the region is written without a member, and one of those that have the mark is lost.
#[test]
fn a_mark_that_only_some_members_have_is_given_to_all() {
    for (seed, cut) in (0..4).flat_map(|seed| (1..25).step_by(3).map(move |cut| (seed, cut))) {
        let power = Power::new(seed, false);
        let machine = Machine::new(small(Level::Raid6, 5, BlockSize::B512), false, &power);
        let stripe = machine.geometry.stripe_bytes() / 512;
        let far = Lba(stripe * (machine.geometry.stripes() - 5));
        let put = |bench: &Bench, array: &Rc<Array<PowerDisk>>, tag: u8| {
            let (pool, array) = (bench.pool.clone(), array.clone());
            bench.run(async move {
                let mut buffers = Vec::new();
                for _ in 0..stripe {
                    let mut buffer = pool.allocate(512).await;
                    buffer.bytes_mut().fill(tag);
                    buffers.push(buffer);
                }
                for (at, buffer) in buffers.iter().enumerate() {
                    let from = std::slice::from_ref(buffer);
                    let at = Lba(far.0 + at as u64);
                    array.write(at, from, Durability::Cached).await.unwrap();
                }
            })
        };
        let near = |bench: &Bench, array: &Rc<Array<PowerDisk>>| {
            let (pool, array) = (bench.pool.clone(), array.clone());
            let wrote = bench.run(async move {
                let buffer = pool.allocate(512).await;
                array.write(Lba(0), &[buffer], Durability::Cached).await
            });
            assert_eq!(wrote, Some(Ok(())));
        };
        let here = [0, 1, 2, 3];
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &here).unwrap().unwrap();
        near(&bench, &array);
        power.cut_after(cut);
        let _ = put(&bench, &array, 1);
        drop((bench, array));
        machine.lose_power();
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &here).unwrap().unwrap();
        put(&bench, &array, 2).unwrap();
        // Of a region that is marked already: what is replayed says nothing of the other one.
        near(&bench, &array);
        drop((bench, array));
        for lost in here {
            let machine = machine.fork(&power);
            let bench = Bench::new(&power);
            let left: Vec<usize> = here.into_iter().filter(|member| *member != lost).collect();
            let (array, _) = machine.assemble(&bench, &left).unwrap().unwrap();
            array.set_member(4, Some(machine.disk(4)));
            let returning = array.clone();
            let returned = bench.run(async move {
                returning.take_back(4).await?;
                returning.rebuild(4, Pace::default()).await
            });
            assert_eq!(returned, Some(Ok(())));
            for at in 0..stripe {
                let (reading, pool) = (array.clone(), bench.pool.clone());
                let read = bench.run(async move {
                    let buffer = pool.allocate(512).await;
                    let at = Lba(far.0 + at);
                    reading
                        .read(at, std::slice::from_ref(&buffer))
                        .await
                        .unwrap();
                    buffer.bytes()[0]
                });
                assert_eq!(
                    read,
                    Some(2),
                    "seed {seed}, cut {cut}, without {lost}, block {at}"
                );
            }
        }
    }
}
