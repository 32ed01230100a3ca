//! What a volume costs over its bare disk, in one process and on one core: `cargo run --release -p
//! corebay-lvol --example volume_cost`. The disk is in memory, so what is shown is the pool's own work.

use std::{rc::Rc, time::Duration};

use corebay_conformance::TestCore;
use corebay_core::{
    buffer::Buffer,
    disk::{
        Disk, Durability,
        ram::{RamDisk, RamMedium},
    },
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{CreateOptions, Identity, Pool, PoolContext, VolumeId};

const BLOCKS: u64 = 64 << 10;
/// The pool's size, in sizes of the volume.
const POOL_VOLUMES: u64 = 8;
const OPERATIONS: u64 = 400_000;
const FIRST_WRITES: u64 = 20_000;
/// After each snapshot: each takes an extent, until the next write to the same one.
const AFTER_SNAPSHOT: u64 = 20;
const DEPTH: u64 = 128;

fn identity(name: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        uuid: [1; 16],
    }
}

#[derive(Clone, Copy)]
enum Work {
    Write,
    Read,
}

/// Random blocks, each once where there are no more operations than blocks; the time that took.
fn measure<D: Disk>(
    core: &TestCore,
    disk: &Rc<D>,
    work: Work,
    operations: u64,
    seed: u64,
) -> Duration {
    let mut order: Vec<u64> = (0..BLOCKS).collect();
    let mut rng = Rng::from_seed(seed);
    for at in (1..order.len()).rev() {
        let other = usize::try_from(rng.below(at as u64 + 1)).expect("below");
        order.swap(at, other);
    }
    let order = Rc::new(order);
    let began = core.now();
    let ends: Vec<_> = (0..DEPTH)
        .map(|worker| {
            let (disk, order) = (disk.clone(), order.clone());
            let buffer: Buffer = core.buffer(4096);
            core.spawn(async move {
                let from = std::slice::from_ref(&buffer);
                for number in (worker..operations).step_by(DEPTH as usize) {
                    let at = Lba(order[usize::try_from(number % BLOCKS).expect("few")]);
                    match work {
                        Work::Write => disk.write(at, from, Durability::Cached).await,
                        Work::Read => disk.read(at, from).await,
                    }
                    .expect("an operation");
                }
            })
        })
        .collect();
    for end in ends {
        core.turn_until("the end", || end.is_there());
    }
    core.now().since(began)
}

fn report(what: &str, time: Duration, operations: u64, bare: Duration, bare_operations: u64) {
    let each = time.as_secs_f64() * 1e9 / operations as f64;
    let bare = bare.as_secs_f64() * 1e9 / bare_operations as f64;
    println!(
        "{what:<44} {each:8.0} ns  {:6.1} % of the bare disk's rate",
        bare / each * 100.0
    );
}

fn main() {
    let core = TestCore::single();
    let medium = RamMedium::new(BlockSize::B4096, BLOCKS * POOL_VOLUMES).expect("memory");
    let bare = Rc::new(RamDisk::new(
        RamMedium::new(BlockSize::B4096, BLOCKS).expect("memory"),
        &core.reactor,
    ));
    let disk = RamDisk::new(medium, &core.reactor);
    // Memory that was never touched is dear; that is not what is asked here.
    let whole = core.buffer(1 << 20);
    let disk = core.run(async move {
        for at in (0..BLOCKS * POOL_VOLUMES).step_by(256) {
            let from = std::slice::from_ref(&whole);
            let touched = disk.write(Lba(at), from, Durability::Cached).await;
            touched.expect("a write");
        }
        disk
    });
    let context = PoolContext {
        reactor: core.reactor.clone(),
        buffers: core.pool.clone(),
    };
    let options = CreateOptions {
        name: "pool".to_owned(),
        uuid: [1; 16],
        journal_bytes: None,
    };
    let (pool, id): (Pool<RamDisk>, VolumeId) = core.run(async move {
        let pool = Pool::create(&context, disk, &options)
            .await
            .expect("a pool");
        let id = pool
            .create_volume(&identity("v"), BLOCKS, false)
            .await
            .expect("a volume");
        (pool, id)
    });
    let volume = Rc::new(pool.open(id).expect("the volume"));
    measure(&core, &bare, Work::Write, BLOCKS, 1);
    let bare_write = measure(&core, &bare, Work::Write, OPERATIONS, 1);
    let bare_read = measure(&core, &bare, Work::Read, OPERATIONS, 1);
    let before = pool.status();
    let first = measure(&core, &volume, Work::Write, FIRST_WRITES, 1);
    let after = pool.status();
    report(
        "first writes, 4 KiB random, depth 128",
        first,
        FIRST_WRITES,
        bare_write,
        OPERATIONS,
    );
    println!(
        "  for each: {} bytes of journal, {} bytes of checkpoints, of each of two copies",
        (after.journal_bytes - before.journal_bytes) / FIRST_WRITES,
        (after.metadata_bytes - before.metadata_bytes) / FIRST_WRITES,
    );
    measure(&core, &volume, Work::Write, BLOCKS, 1);
    let time = measure(&core, &volume, Work::Write, OPERATIONS, 2);
    report("overwrites", time, OPERATIONS, bare_write, OPERATIONS);
    let time = measure(&core, &volume, Work::Read, OPERATIONS, 2);
    report("reads", time, OPERATIONS, bare_read, OPERATIONS);
    for number in 0..64 {
        let (pool, name) = (pool.clone(), identity(&format!("s{number}")));
        core.run(async move { pool.snapshot(&[(id, name)]).await })
            .expect("a snapshot");
        measure(&core, &volume, Work::Write, AFTER_SNAPSHOT, number + 10);
    }
    let time = measure(&core, &volume, Work::Read, OPERATIONS, 3);
    report(
        "reads with 64 snapshots beneath",
        time,
        OPERATIONS,
        bare_read,
        OPERATIONS,
    );
}
