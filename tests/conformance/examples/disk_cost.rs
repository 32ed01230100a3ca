//! What one operation costs on each disk: `cargo run --release -p corebay-conformance --example
//! disk_cost [FOLDER]`. Prints nanoseconds per operation of one core, for reads and writes of 4 KiB
//! and 128 KiB; the file lies in FOLDER (the system's folder for temporary files, unless given).

use std::{cell::Cell, path::PathBuf, rc::Rc, time::Duration};

use corebay_conformance::TestCore;
use corebay_core::{
    disk::{
        Disk, Durability,
        file::{
            Caching, EngineKind, FileDisk, FileEngine, FileEngineOptions, FileMedium,
            FileMediumOptions,
        },
        null::{NullDisk, NullReads},
        ram::{RamDisk, RamMedium},
    },
    rng::Rng,
    units::{BlockSize, Lba},
};

const SIZE: BlockSize = BlockSize::B4096;
const BLOCKS: u64 = 1 << 16;
const ROUND: Duration = Duration::from_millis(100);
const ROUNDS: usize = 8;

fn main() {
    let info = |name: &str| println!("\n{name}");
    info("memcpy, from 256 MiB, random");
    memcpy(BLOCKS);
    info("memcpy, from 1 MiB");
    memcpy(256);
    info("null, reads untouched");
    measure(|_| NullDisk::new(SIZE, BLOCKS, NullReads::Untouched), &[1]);
    info("null, reads zeroes");
    measure(|_| NullDisk::new(SIZE, BLOCKS, NullReads::Zeroes), &[1]);
    info("ram (256 MiB, random)");
    let ram = RamMedium::new(SIZE, BLOCKS).expect("memory");
    measure(|core| RamDisk::new(ram.clone(), &core.reactor), &[1]);
    info("ram (1 MiB)");
    let ram = RamMedium::new(SIZE, 256).expect("memory");
    measure(|core| RamDisk::new(ram.clone(), &core.reactor), &[1]);
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    for (name, kind, register_memory, caching) in [
        ("file, io_uring", EngineKind::IoUring, true, Caching::Direct),
        (
            "file, io_uring, memory not registered",
            EngineKind::IoUring,
            false,
            Caching::Direct,
        ),
        (
            "file, helper thread",
            EngineKind::Threads,
            false,
            Caching::Direct,
        ),
        (
            "file, io_uring, page cache",
            EngineKind::IoUring,
            true,
            Caching::Buffered,
        ),
    ] {
        info(name);
        let options = FileMediumOptions {
            bytes: Some(SIZE.bytes_of(BLOCKS)),
            create: true,
            caching,
            ..FileMediumOptions::new(SIZE)
        };
        let path = folder.path().join("disk");
        let medium = FileMedium::open(&path, options).expect("the file");
        let open = |core: &TestCore| {
            let options = FileEngineOptions {
                kind,
                register_memory,
                ..FileEngineOptions::default()
            };
            let engine = FileEngine::start(&core.reactor, &core.pool, options);
            FileDisk::open(&engine.expect("an engine"), &medium)
        };
        measure(open, &[1, 32, 128]);
    }
}

/// The limit: copying between random places of the same memory and a small one.
fn memcpy(total: u64) {
    let core = TestCore::single();
    let memory = vec![1u8; usize::try_from(SIZE.bytes_of(total)).expect("fits")];
    for blocks in [1, 32] {
        let mut into = vec![0u8; blocks * SIZE.bytes()];
        let mut rng = Rng::from_seed(1);
        let best = (0..ROUNDS).map(|_| {
            let (began, mut count) = (core.now(), 0);
            while core.now().since(began) < ROUND {
                for _ in 0..16 {
                    let len = into.len();
                    let at = rng.below(total / blocks as u64) as usize * len;
                    into.copy_from_slice(&memory[at..at + len]);
                    std::hint::black_box(&mut into);
                    count += 1;
                }
            }
            core.now().since(began).as_nanos() / count
        });
        let nanos = best.min().unwrap_or(0);
        println!("memcpy of {:3} KiB: {nanos} ns", blocks * 4);
    }
}

fn measure<D: Disk>(open: impl Fn(&TestCore) -> D, depths: &[usize]) {
    let core = TestCore::single();
    let disk = Rc::new(open(&core));
    prefill(&core, &disk);
    for blocks in [1usize, 32] {
        for write in [false, true] {
            for &depth in depths {
                if depth * blocks > 2048 {
                    continue;
                }
                one(&core, &disk, blocks, write, depth);
            }
        }
    }
}

fn prefill<D: Disk>(core: &TestCore, disk: &Rc<D>) {
    let (disk, buffer) = (disk.clone(), core.buffer(1 << 20));
    core.run(async move {
        for at in (0..disk.info().blocks).step_by(256) {
            let buffers = std::slice::from_ref(&buffer);
            let written = disk.write(Lba(at), buffers, Durability::Cached).await;
            written.expect("prefill");
        }
    });
}

fn one<D: Disk>(core: &TestCore, disk: &Rc<D>, blocks: usize, write: bool, depth: usize) {
    let (done, stop) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(false)));
    let (all, mut ends) = (disk.info().blocks, Vec::new());
    for worker in 0..depth {
        let (disk, done, stop) = (disk.clone(), done.clone(), stop.clone());
        let buffer = core.buffer(blocks * SIZE.bytes());
        let mut rng = Rng::from_seed(worker as u64);
        ends.push(core.spawn(async move {
            while !stop.get() {
                for _ in 0..8 {
                    let at = Lba(rng.below(all / blocks as u64) * blocks as u64);
                    let buffers = std::slice::from_ref(&buffer);
                    let result = match write {
                        true => disk.write(at, buffers, Durability::Cached).await,
                        false => disk.read(at, buffers).await,
                    };
                    result.expect("an operation");
                    done.set(done.get() + 1);
                }
                yield_once().await;
            }
        }));
    }
    // The best of several rounds: the machine may be busy with something else in the others.
    let best = (0..ROUNDS).map(|_| {
        let (began, before) = (core.now(), done.get());
        core.turn_until("a round's end", || core.now().since(began) >= ROUND);
        core.now().since(began).as_nanos() / u128::from((done.get() - before).max(1))
    });
    let nanos = best.min().unwrap_or(0);
    stop.set(true);
    for end in ends {
        core.turn_until("a worker's end", || end.is_there());
    }
    let what = if write { "write" } else { "read " };
    println!(
        "  {what} {:3} KiB, depth {depth:3}: {nanos:7} ns",
        blocks * 4
    );
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
