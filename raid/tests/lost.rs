//! Rebuilds of stripes of which more is lost than the level bears.

use std::{cell::RefCell, pin::Pin, rc::Rc, time::Duration};

use corebay_core::{
    disk::{Disk, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_raid::{
    geometry::Level,
    sweep::{Pace, SweepError},
    within,
};

use crate::{
    members::{Rig, Shared, redundant, turns},
    support::bench::small,
};

/// One block that cannot be read while its stripe has no redundancy left keeps one stripe from being
/// rebuilt, and no other one; once all of that stripe is written, the rebuild ends.
#[test]
fn a_rebuild_steps_over_what_is_lost_and_ends_once_that_is_written() {
    for (wish, again) in redundant()
        .into_iter()
        .flat_map(|(wish, _)| [(wish, false), (wish, true)])
    {
        let mut rig = Rig::new(wish, false);
        let mut array = rig.all();
        let geometry = array.assembled().geometry();
        let blocks = geometry.block_size().blocks_in(geometry.stripe_bytes());
        rig.work(&array, 10);
        // As many as may be lost at this stripe; the first of them gets another member.
        let lost = 20;
        let (first, others) = match geometry.copies() {
            1 => (geometry.role_of(lost, 0), geometry.parity() - 1),
            legs => (0, legs - 2),
        };
        let next = |role: usize| (role + 1) % geometry.roles();
        let mut bad = first;
        for _ in 0..=others {
            bad = next(bad);
            let at = geometry.row_lba(lost, 4096).0;
            rig.machine.media[bad].borrow_mut().bad.insert(at);
        }
        rig.machine.media[first].borrow_mut().gone = true;
        rig.work(&array, 10);
        write_all(&rig, &array, 30 * blocks, 1);
        rig.machine.media[first].borrow_mut().wipe();
        array.set_member(first, Some(rig.machine.disk(first)));
        let (replacing, pool) = (array.clone(), rig.bench.pool.clone());
        let replace = async move {
            replacing
                .replace(first, &mut Rng::from_seed(5), &pool)
                .await
        };
        rig.bench.run(replace).unwrap().unwrap();
        let stepped = Err(SweepError::Lost { stripe: lost });
        assert_eq!(rig.rebuild(&array, first), stepped, "{}", wish.level);
        assert_eq!(array.assembled().lost_stripes(), [(first, lost)]);
        // What comes after it has been made, and follows writes.
        for at in 30 * blocks..31 * blocks {
            write_all(&rig, &array, at, 1);
        }
        assert_eq!(rig.rebuild(&array, first), stepped);
        if again {
            drop(array);
            array = rig.all();
            assert_eq!(rig.rebuild(&array, first), stepped);
        }
        rig.work(&array, 5);
        write_all(&rig, &array, lost * blocks, blocks);
        assert_eq!(rig.rebuild(&array, first), Ok(()), "{}", wish.level);
        assert!(array.assembled().lost_stripes().is_empty());
        assert!(array.assembled().state().is_whole());
        assert_eq!(rig.mismatches(&array), 0, "{}", wish.level);
        rig.verify(&array);
    }
}

fn write_all(rig: &Rig, array: &Shared, at: u64, blocks: u64) {
    let (array, pool) = (array.clone(), rig.bench.pool.clone());
    let written = rig.bench.run(async move {
        let size = array.info().block_size.bytes();
        let mut buffer = pool.allocate(blocks as usize * size).await;
        buffer.bytes_mut().fill(0x3c);
        array.write(Lba(at), &[buffer], Durability::Durable).await
    });
    written.unwrap().unwrap();
}

/// The role fails while a stripe is found lost; its next member has nothing to do with that. Nobody waits for
/// ever, whenever it fails.
#[test]
fn a_role_that_fails_amid_a_lost_stripe_is_rebuilt_by_its_next_member() {
    let longest = Duration::from_millis(200);
    for after in (40..1000).step_by(40) {
        let rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
        let array = rig.all();
        let geometry = array.assembled().geometry();
        let blocks = geometry.block_size().blocks_in(geometry.stripe_bytes());
        // More stripes before it than are worked on at a time.
        let lost = 20;
        let first = geometry.role_of(lost, 0);
        let bad = (first + 1) % geometry.roles();
        let at = geometry.row_lba(lost, 8192).0;
        rig.machine.media[bad].borrow_mut().bad.insert(at);
        let replace = |seed: u64| {
            rig.machine.media[first].borrow_mut().wipe();
            array.set_member(first, Some(rig.machine.disk(first)));
            let (array, pool) = (array.clone(), rig.bench.pool.clone());
            let replace =
                async move { array.replace(first, &mut Rng::from_seed(seed), &pool).await };
            rig.bench.run(replace).unwrap().unwrap();
        };
        let give_up = array.clone();
        let given_up = rig.bench.run(async move { give_up.give_up(first).await });
        given_up.unwrap().unwrap();
        replace(5);
        let (rebuilding, ended) = (array.clone(), Rc::new(RefCell::new(None)));
        let tell = ended.clone();
        let rebuild: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let rebuilt = rebuilding.rebuild(first, Pace::default()).await;
            *tell.borrow_mut() = Some(rebuilt);
        });
        assert!(rig.bench.reactor.spawn(rebuild).is_ok());
        // Each turn takes a microsecond.
        let (failing, waiting) = (array.clone(), rig.bench.reactor.clone());
        let failed = rig.bench.run(async move {
            waiting.sleep(Duration::from_micros(after)).await;
            failing.give_up(first).await
        });
        failed.unwrap().unwrap();
        rig.bench.run(turns(5000)).unwrap();
        assert!(ended.borrow().is_some(), "after {after} turns");
        replace(6);
        let (array, reactor) = (array.clone(), rig.bench.reactor.clone());
        let pool = rig.bench.pool.clone();
        let outcome = rig.bench.run(async move {
            let rebuild = array.rebuild(first, Pace::default());
            let rebuilt = within(&reactor, longest, rebuild).await;
            let buffer = pool.allocate((blocks * 512) as usize).await;
            let at = Lba(lost * blocks);
            let buffers = [buffer];
            let write = array.write(at, &buffers, Durability::Cached);
            let written = within(&reactor, longest, write).await;
            let rebuild = array.rebuild(first, Pace::default());
            (rebuilt, written, within(&reactor, longest, rebuild).await)
        });
        let stepped = Err(SweepError::Lost { stripe: lost });
        let good = (Some(stepped), Some(Ok(())), Some(Ok(())));
        assert_eq!(outcome, Some(good), "after {after} turns");
    }
}
