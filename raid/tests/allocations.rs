//! Reads and writes of arrays take nothing from the heap once the array has warmed up: on healthy
//! members and without one of them.

use std::{cell::Cell, rc::Rc};

use corebay_conformance::{Bed, TestCore, counting::taken};
use corebay_core::{
    disk::{Disk, Durability},
    units::{BlockSize, Lba},
};
use corebay_raid::geometry::Level;

use crate::support::{ArrayBed, ec};

const WORKERS: u64 = 24;
const WARM_UP: u64 = 600;
const MEASURED: u64 = 2000;

/// Reads and writes of one block and of many stripes' worth, in one buffer and in two, from several
/// tasks at once.
fn allocations<D: Disk>(core: &TestCore, disk: &Rc<D>) -> u64 {
    let done = Rc::new(Cell::new(0));
    for worker in 0..WORKERS {
        let (disk, done) = (disk.clone(), done.clone());
        let one = core.buffer(4096);
        let two = core.buffer(40 * 4096);
        let several = [one.slice(0..4096), two.slice(4096..40 * 4096)];
        core.spawn(async move {
            while done.get() < WARM_UP + MEASURED {
                let at = Lba(worker * 23);
                for buffers in [&several[..1], &several[..]] {
                    let written = disk.write(at, buffers, Durability::Cached).await;
                    written.expect("write");
                    disk.read(at, buffers).await.expect("read");
                    done.set(done.get() + 2);
                }
            }
        });
    }
    core.turn_until("the warm-up", || done.get() >= WARM_UP);
    let before = taken();
    core.turn_until("the operations", || done.get() >= WARM_UP + MEASURED);
    let taken = taken() - before;
    core.turn_until("the end of all", || core.reactor.executor().live() == 0);
    taken
}

fn none(level: Level, roles: usize) {
    let bed = ArrayBed::new(level, roles, BlockSize::B4096);
    let core = TestCore::single();
    let array = Rc::new(bed.open(&core));
    assert_eq!(allocations(&core, &array), 0, "{level}");
    if array.assembled().geometry().parity() + array.assembled().geometry().copies() > 1 {
        // The first write finds out and records it.
        array.set_member(0, None);
        assert_eq!(allocations(&core, &array), 0, "{level}, degraded");
        assert!(!array.assembled().state().is_whole());
    }
}

#[test]
fn none_on_plain_stripes() {
    none(Level::Striped, 3);
}

#[test]
fn none_on_mirrors() {
    none(Level::Mirrored, 2);
    none(Level::StripedMirrors, 4);
}

#[test]
fn none_on_parity() {
    none(Level::Raid5, 4);
    none(Level::Raid6, 6);
    none(ec(4, 3), 7);
}
