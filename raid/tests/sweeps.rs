//! Sweeps that end early and go on, or go over what is being zeroed.

use std::{cell::Cell, pin::Pin};

use corebay_core::{
    disk::{Disk, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_raid::{
    geometry::Level,
    sweep::{Pace, Scrubbed},
};

use crate::{
    members::{Rig, redundant, turns},
    support::bench::small,
};

#[test]
fn a_scrub_goes_on_where_it_ended_early_and_knows_what_it_has_found() {
    let mut rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512), false);
    let array = rig.all();
    rig.work(&array, 20);
    let geometry = rig.machine.geometry;
    for stripe in [3, 60] {
        let parity = geometry.role_of(stripe, geometry.data());
        let at = geometry.row_lba(stripe, 0).0;
        rig.machine.media[parity].borrow_mut().scribble(at);
    }
    let scrub_on = |found: Scrubbed, stripes: u64| {
        let (array, left) = (array.clone(), Cell::new(stripes));
        let goes_on = move || left.replace(left.get().saturating_sub(1)) > 0;
        let scrub = async move { array.scrub_on(Pace::default(), found, goes_on).await };
        rig.bench.run(scrub).unwrap().unwrap()
    };
    let first = scrub_on(Scrubbed::default(), 20);
    assert_eq!((first.done, &first.mismatches[..]), (20, &[3][..]));
    let second = scrub_on(first, 30);
    assert_eq!((second.done, second.mismatch_count), (50, 1));
    assert_eq!(array.assembled().progress(), (50, geometry.stripes()));
    let all = scrub_on(second, u64::MAX);
    assert_eq!(
        (all.done, &all.mismatches[..]),
        (geometry.stripes(), &[3, 60][..])
    );
    assert_eq!(rig.mismatches(&array), 0);
    rig.verify(&array);
    // An array that is about to be closed.
    array.assembled().halt_sweeps();
    assert_eq!(scrub_on(Scrubbed::default(), 20).done, 0);
}

/// Both lock many stripes at a time, and the member that is rebuilt counts in some of them and not in others.
#[test]
fn zeroing_beside_a_rebuild_ends_and_leaves_all_equal() {
    for (wish, _) in redundant().into_iter().take(3) {
        let mut rig = Rig::new(wish, false);
        let array = rig.all();
        rig.work(&array, 20);
        rig.machine.media[1].borrow_mut().gone = true;
        rig.work(&array, 10);
        rig.machine.media[1].borrow_mut().wipe();
        array.set_member(1, Some(rig.machine.disk(1)));
        let (replacing, pool) = (array.clone(), rig.bench.pool.clone());
        let rebuild: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let replaced = replacing.replace(1, &mut Rng::from_seed(5), &pool).await;
            replaced.unwrap();
            let pace = Pace {
                floor_mib_s: 4000,
                ceiling_mib_s: 0,
            };
            replacing.rebuild(1, pace).await.unwrap();
        });
        assert!(rig.bench.reactor.spawn(rebuild).is_ok());
        let blocks = array.info().blocks;
        let (zeroing, pool) = (array.clone(), rig.bench.pool.clone());
        let zero = async move {
            let mut buffer = pool.allocate(4096).await;
            buffer.bytes_mut().fill(7);
            let whole = Lba(0)..Lba(blocks);
            let parts = (0..8).map(|part| Lba(blocks / 8 * part)..Lba(blocks / 8 * (part + 1)));
            for part in parts.cycle() {
                let is_whole = zeroing.assembled().state().is_whole();
                let part = match is_whole {
                    true => whole.clone(),
                    false => part,
                };
                let from = std::slice::from_ref(&buffer);
                let wrote = zeroing.write(part.start, from, Durability::Cached);
                wrote.await.unwrap();
                let count = part.end.0 - part.start.0;
                let zeroed =
                    zeroing.write_zeroes(part.start, count, Space::Keep, Durability::Cached);
                zeroed.await.unwrap();
                if is_whole {
                    break;
                }
                turns(100).await;
            }
        };
        rig.bench.run(zero).unwrap();
        assert_eq!(rig.mismatches(&array), 0, "{}", wish.level);
        let (reading, pool) = (array.clone(), rig.bench.pool.clone());
        let all_zero = rig.bench.run(async move {
            let size = reading.info().block_size.bytes();
            for at in 0..blocks {
                let buffer = pool.allocate(size).await;
                let read = reading.read(Lba(at), std::slice::from_ref(&buffer));
                read.await.unwrap();
                if buffer.bytes().iter().any(|byte| *byte != 0) {
                    return false;
                }
            }
            true
        });
        assert_eq!(all_zero, Some(true), "{}", wish.level);
    }
}
