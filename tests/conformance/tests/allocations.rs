//! Reads and writes allocate nothing on the heap once a disk has warmed up, and a turn of the reactor
//! makes at most one `io_uring_enter`.

use std::{cell::Cell, rc::Rc};

use corebay_conformance::{
    Bed, TestCore,
    beds::{FaultBed, FileBed, NullBed, RamBed},
    counting::{Counting, taken},
    nvme::{NvmeBed, NvmeManner},
};
use corebay_core::{
    disk::{
        Disk, Durability,
        file::{Caching, EngineKind, FileDisk},
    },
    units::{BlockSize, Lba},
};

#[global_allocator]
static COUNTING: Counting = Counting;

const WORKERS: u64 = 24;
const WARM_UP: u64 = 500;
const MEASURED: u64 = 3000;

/// Reads and writes, in one buffer and in two, from several tasks at once; what that takes from the
/// heap after the warm-up.
fn allocations<D: Disk>(core: &TestCore, disk: D) -> u64 {
    let (disk, done) = (Rc::new(disk), Rc::new(Cell::new(0)));
    for worker in 0..WORKERS {
        let (disk, done) = (disk.clone(), done.clone());
        let one = core.buffer(4096);
        let two = core.buffer(3 * 4096);
        let several = [one.slice(0..4096), two.slice(8192..12_288)];
        core.spawn(async move {
            loop {
                let at = Lba(worker * 2);
                for buffers in [&several[..1], &several[..]] {
                    let written = disk.write(at, buffers, Durability::Cached).await;
                    written.expect("write");
                    disk.read(at, buffers).await.expect("read");
                    done.set(done.get() + 2);
                }
                // Where the disk never suspends, the task must.
                yield_once().await;
            }
        });
    }
    core.turn_until("the warm-up", || done.get() >= WARM_UP);
    let before = taken();
    core.turn_until("the operations", || done.get() >= WARM_UP + MEASURED);
    taken() - before
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn none<B: Bed>(bed: &B) {
    let core = TestCore::single();
    let disk = bed.open(&core);
    assert_eq!(allocations(&core, disk), 0);
}

#[test]
fn none_on_ram() {
    none(&RamBed::new(BlockSize::B4096));
}

#[test]
fn none_on_null() {
    none(&NullBed::new(BlockSize::B4096));
}

#[test]
fn none_on_nvme() {
    for manner in [NvmeManner::WriteBack, NvmeManner::Sgl] {
        none(&NvmeBed::new(BlockSize::B4096, manner).turned_by_keeper());
    }
}

#[test]
fn none_on_a_fault_disk() {
    none(&FaultBed::new(BlockSize::B4096));
}

#[test]
fn none_on_a_file_by_io_uring() {
    let kind = EngineKind::IoUring;
    none(&FileBed::new(BlockSize::B4096, kind, Caching::Direct));
}

#[test]
fn none_on_a_file_by_a_helper_thread() {
    let kind = EngineKind::Threads;
    none(&FileBed::new(BlockSize::B4096, kind, Caching::Direct));
}

#[test]
fn a_turn_enters_the_kernel_at_most_once() {
    let bed = FileBed::new(
        BlockSize::B4096,
        EngineKind::IoUring,
        Caching::DirectElseBuffered,
    );
    let core = TestCore::single();
    let engine = bed.engine(&core);
    let disk = Rc::new(FileDisk::open(&engine, bed.medium()));
    let mut ends = Vec::new();
    for number in 0..10 {
        let (disk, buffer) = (disk.clone(), core.buffer(4096));
        ends.push(core.spawn(async move {
            let buffers = std::slice::from_ref(&buffer);
            disk.write(Lba(number), buffers, Durability::Cached).await
        }));
    }
    core.turn();
    let counters = engine.counters();
    assert_eq!((counters.calls, counters.enters), (10, 1), "one for all");
    for end in ends {
        while !end.is_there() {
            let before = engine.counters().enters;
            core.turn();
            assert!(engine.counters().enters - before <= 1);
        }
    }
    let idle = engine.counters().enters;
    for _ in 0..100 {
        core.turn();
    }
    assert_eq!(engine.counters().enters, idle, "nothing to do, no call");
}
