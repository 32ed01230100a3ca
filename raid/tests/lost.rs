//! Rebuilds of stripes of which more is lost than the level bears.

use corebay_core::{
    disk::{Disk, Durability},
    rng::Rng,
    units::Lba,
};
use corebay_raid::sweep::SweepError;

use crate::members::{Rig, Shared, redundant};

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
