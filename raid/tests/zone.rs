//! The mirrored zone: it keeps a disk's contract, through power cuts and the loss of members.

use std::rc::Rc;

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_raid::{
    geometry::{Level, Wish, ZONE_OFFSET},
    state::RoleState,
    sweep::{Pace, SweepError},
};

use crate::support::{
    bench::{Bench, Machine, small},
    ec,
    power::{Power, PowerDisk},
};

type Array = Rc<corebay_raid::array::Array<PowerDisk>>;

const SIZE: BlockSize = BlockSize::B512;

fn wish(level: Level, roles: usize) -> Wish {
    Wish {
        zone_bytes: 256 << 10,
        ..small(level, roles, SIZE)
    }
}

async fn put(array: &Array, bench: &BufferPool, at: u64, count: u64, tag: u8) -> Outcome {
    let mut buffer = bench.allocate(count as usize * 512).await;
    buffer.bytes_mut().fill(tag);
    let zone = array.zone().expect("it has one");
    zone.write(Lba(at), &[buffer], Durability::Durable).await
}

/// The whole zone holds `tag`.
fn fill(array: &Array, bench: &Bench, tag: u8) {
    let (writing, pool) = (array.clone(), bench.pool.clone());
    let filled = bench.run(async move {
        for at in (0..512).step_by(128) {
            put(&writing, &pool, at, 128, tag).await?;
        }
        Ok::<_, DiskError>(())
    });
    assert_eq!(filled, Some(Ok(())));
}

async fn tags(array: Array, pool: BufferPool) -> Result<Vec<u8>, DiskError> {
    let zone = array.zone().expect("it has one");
    let mut tags = Vec::new();
    for at in 0..zone.info().blocks {
        let buffer = pool.allocate(512).await;
        zone.read(Lba(at), std::slice::from_ref(&buffer)).await?;
        let bytes = buffer.bytes();
        assert!(
            bytes.iter().all(|byte| *byte == bytes[0]),
            "block {at} is torn"
        );
        tags.push(bytes[0]);
    }
    Ok(tags)
}

type BufferPool = corebay_core::buffer::BufferPool;
type Outcome = Result<(), DiskError>;

fn all(machine: &Machine, bench: &Bench) -> Array {
    machine.assemble(bench, &machine.all()).unwrap().unwrap().0
}

/// Writes a known content, then overlapping writes with the power cut amid them; then it is read with
/// other members lost, and each block is old or new, and stays that.
fn crash(level: Level, roles: usize, bears: usize, cut: u64) {
    let power = Power::new(cut, false);
    let machine = Machine::new(wish(level, roles), cut.is_multiple_of(2), &power);
    let bench = Bench::new(&power);
    let array = all(&machine, &bench);
    assert_eq!(array.zone().unwrap().info().bytes(), 256 << 10);
    fill(&array, &bench, 1);
    power.cut_after(cut);
    let (writing, pool) = (array.clone(), bench.pool.clone());
    let done = bench.run(async move {
        for step in 0..4 {
            put(&writing, &pool, 200 + step, 100, 2 + step as u8).await?;
        }
        Ok::<_, DiskError>(())
    });
    drop((array, bench));
    machine.lose_power();
    let bench = Bench::new(&power);
    let array = all(&machine, &bench);
    let first = bench.run(tags(array.clone(), bench.pool.clone())).unwrap();
    let first = first.expect("it can be read");
    for (at, tag) in first.iter().enumerate() {
        let steps = (0..4).filter(|step| (200 + step..300 + step).contains(&at));
        let newest = steps.max().map_or(1, |step| 2 + step as u8);
        match done {
            Some(_) => assert_eq!(*tag, newest, "block {at}"),
            None => assert!((1..=newest).contains(tag), "block {at} is {tag}"),
        }
    }
    for lost in 0..bears {
        machine.media[lost].borrow_mut().gone = true;
        let again = bench.run(tags(array.clone(), bench.pool.clone())).unwrap();
        assert_eq!(
            again.as_ref(),
            Ok(&first),
            "{level}: cut {cut}, lost {lost}"
        );
    }
}

#[test]
fn blocks_are_old_or_new_after_a_power_cut_and_stay_so_without_members() {
    for (level, roles, bears) in [
        (Level::Raid5, 4, 1),
        (Level::Raid6, 5, 2),
        (Level::Mirrored, 2, 1),
        (ec(3, 3), 6, 3),
    ] {
        for cut in (0..900).step_by(181) {
            crash(level, roles, bears, cut);
        }
    }
}

#[test]
fn a_new_member_gets_its_copy_before_it_counts() {
    let power = Power::new(5, false);
    let machine = Machine::new(wish(Level::Raid5, 4), false, &power);
    let bench = Bench::new(&power);
    let array = all(&machine, &bench);
    machine.media[0].borrow_mut().gone = true;
    let (writing, pool) = (array.clone(), bench.pool.clone());
    let wrote = bench.run(async move { put(&writing, &pool, 0, 200, 7).await });
    assert_eq!(wrote, Some(Ok(())));
    machine.media[0].borrow_mut().wipe();
    array.set_member(0, Some(machine.disk(0)));
    let (rebuilding, pool) = (array.clone(), bench.pool.clone());
    let rebuilt = bench.run(async move {
        rebuilding.replace(0, &mut Rng::from_seed(5), &pool).await?;
        // Not copied yet: it is read from elsewhere, and written to both.
        let before = tags(rebuilding.clone(), pool.clone()).await?;
        assert_eq!((before[0], before[199], before[200]), (7, 7, 0));
        put(&rebuilding, &pool, 100, 10, 8).await?;
        rebuilding.rebuild(0, Pace::default()).await
    });
    assert_eq!(rebuilt, Some(Ok(())));
    machine.media[1].borrow_mut().gone = true;
    let after = bench.run(tags(array, bench.pool.clone())).unwrap().unwrap();
    assert_eq!((after[0], after[100], after[110], after[200]), (7, 8, 7, 0));
}

/// The block of a member where its copy of the zone begins.
const ZONE_AT: u64 = ZONE_OFFSET / 512;

/// An array whose zone holds 7 everywhere.
fn full(level: Level, roles: usize) -> (Machine, Bench, Array) {
    let power = Power::new(5, false);
    let machine = Machine::new(wish(level, roles), false, &power);
    let bench = Bench::new(&power);
    let array = all(&machine, &bench);
    fill(&array, &bench, 7);
    (machine, bench, array)
}

/// A blank disk takes the place of role 0.
fn replace(machine: &Machine, bench: &Bench, array: &Array) {
    machine.media[0].borrow_mut().wipe();
    array.set_member(0, Some(machine.disk(0)));
    let (replacing, pool) = (array.clone(), bench.pool.clone());
    let replaced =
        bench.run(async move { replacing.replace(0, &mut Rng::from_seed(5), &pool).await });
    assert!(matches!(replaced, Some(Ok(_))), "{replaced:?}");
}

#[test]
fn a_copy_of_which_only_a_part_was_made_is_not_taken_for_its_successors() {
    let (machine, bench, array) = full(Level::Raid5, 4);
    machine.media[0].borrow_mut().gone = true;
    let fail = (array.clone(), bench.pool.clone());
    let noticed = bench.run(async move { put(&fail.0, &fail.1, 0, 1, 7).await });
    assert_eq!(noticed, Some(Ok(())));
    replace(&machine, &bench, &array);
    // The new member fails amid the copy.
    machine.media[0].borrow_mut().gone_with = Some(ZONE_AT + 100);
    let rebuilding = array.clone();
    let rebuilt = bench.run(async move { rebuilding.rebuild(0, Pace::default()).await });
    assert!(
        matches!(rebuilt, Some(Err(SweepError::State(RoleState::Failed)))),
        "{rebuilt:?}"
    );
    assert!(
        machine.media[0].borrow().is_blank(ZONE_AT + 511),
        "all was copied"
    );
    replace(&machine, &bench, &array);
    let found = bench.run(tags(array, bench.pool.clone())).unwrap();
    assert_eq!(found, Ok(vec![7; 512]));
}

#[test]
fn a_block_that_no_copy_has_keeps_no_member_from_being_rebuilt() {
    let (machine, bench, array) = full(Level::Raid5, 4);
    machine.media[0].borrow_mut().gone = true;
    let fail = (array.clone(), bench.pool.clone());
    let noticed = bench.run(async move { put(&fail.0, &fail.1, 0, 1, 7).await });
    assert_eq!(noticed, Some(Ok(())));
    replace(&machine, &bench, &array);
    machine.media[1].borrow_mut().bad.insert(ZONE_AT + 5);
    // This one is only hard to read.
    machine.media[1].borrow_mut().bad_once.insert(ZONE_AT + 300);
    let rebuilding = array.clone();
    let rebuilt = bench.run(async move { rebuilding.rebuild(0, Pace::default()).await });
    assert_eq!(rebuilt, Some(Ok(())));
    let found = bench.run(tags(array, bench.pool.clone())).unwrap().unwrap();
    let expected: Vec<u8> = (0..512).map(|at| if at == 5 { 0 } else { 7 }).collect();
    assert_eq!(found, expected);
}

#[test]
fn copies_are_made_equal_beside_a_block_that_is_lost() {
    let (machine, bench, array) = full(Level::Raid5, 4);
    drop((array, bench));
    machine.lose_power();
    // As a crash amid a write leaves them.
    machine.media[1].borrow_mut().corrupt(ZONE_AT + 9);
    for copy in [0, 1] {
        machine.media[copy].borrow_mut().bad.insert(ZONE_AT + 5);
    }
    let bench = Bench::new(&machine.power);
    let array = all(&machine, &bench);
    machine.media[0].borrow_mut().gone = true;
    let (reading, pool) = (array.clone(), bench.pool.clone());
    let read = bench.run(async move {
        let zone = reading.zone().expect("it has one");
        let buffer = pool.allocate(512).await;
        let lost = zone.read(Lba(5), std::slice::from_ref(&buffer)).await;
        zone.read(Lba(9), std::slice::from_ref(&buffer)).await?;
        let byte = buffer.bytes()[0];
        Ok::<_, DiskError>((lost, byte))
    });
    assert_eq!(read, Some(Ok((Err(DiskError::UnrecoveredRead), 7))));
}

#[test]
fn an_array_without_a_zone_says_so() {
    let power = Power::new(5, false);
    let machine = Machine::new(small(Level::Raid5, 4, SIZE), false, &power);
    let bench = Bench::new(&power);
    assert!(all(&machine, &bench).zone().is_none());
}
