//! The driver against controllers that say and do anything: it never panics, never hangs, and ends
//! every operation exactly once.

use std::time::Duration;

use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_nvme::{
    emulated::{EmulatedFaults, EmulatedNamespace, EmulatedOptions},
    pcie::DmaWindows,
    spec::{command::admin, property::Cap},
};

use super::world::{World, quick};

fn random_options(rng: &mut Rng) -> EmulatedOptions {
    let mut options = EmulatedOptions {
        seed: rng.next_u64(),
        mdts: rng.below(12) as u8,
        volatile_cache: rng.once_in(2),
        sgl: rng.once_in(2),
        shadow_doorbells: rng.once_in(2),
        dlfeat: rng.below(16) as u8,
        zeroes_limit: rng.below(12) as u8,
        queues: rng.below(4) as u16,
        latency: (Duration::ZERO, Duration::from_micros(rng.below(3000))),
        namespaces: (0..rng.below(4))
            .map(|number| {
                let size = [BlockSize::B512, BlockSize::B4096][number as usize % 2];
                EmulatedNamespace::new(size, rng.below(10_000))
            })
            .collect(),
        ..EmulatedOptions::default()
    };
    options.oncs &= rng.next_u64() as u16;
    if rng.once_in(2) {
        options.cap = options.cap.with_mqes(rng.below(64) as u16);
    }
    if rng.once_in(8) {
        options.cap = Cap(rng.next_u64());
    }
    if rng.once_in(8) {
        options.bar_bytes = rng.below(0x3000) as u32;
    }
    options
}

fn random_faults(rng: &mut Rng) -> EmulatedFaults {
    let mut chance = |most: u64| match rng.below(3) {
        0 => 1 + rng.below(most),
        _ => 0,
    };
    EmulatedFaults {
        late: chance(50),
        late_by: Duration::from_millis(chance(400)),
        lost: chance(100),
        duplicate: chance(30),
        wrong_cid: chance(30),
        wrong_sqid: chance(60),
        bad_phase: chance(60),
        failing: chance(30),
        garbled: chance(10),
        wild_registers: chance(40),
        hang: chance(8) == 1,
        refuses: (chance(20) == 1).then_some(admin::IDENTIFY),
        deaf_to_abort: chance(4) == 1,
        stuck_ready: chance(8) == 1,
        slow_function_reset: Duration::from_millis(chance(100)),
        stuck_function: false,
    }
}

/// Starts a random operation; how it ends counts as long as it ends.
fn start<D: Disk>(
    world: &World,
    disk: &std::rc::Rc<D>,
    rng: &mut Rng,
) -> super::world::Outcome<Result<(), DiskError>> {
    let info = disk.info();
    let size = info.block_size.bytes();
    let blocks = 1 + rng.below(40);
    let at = Lba(rng.below(info.blocks + 2));
    let disk = disk.clone();
    let kind = rng.below(6);
    let buffer = world.pool.try_allocate(blocks as usize * size);
    world.spawn(async move {
        let durability = Durability::Durable;
        match (kind, buffer) {
            (0, _) => disk.flush().await,
            (1, _) => disk.deallocate(at, blocks * 100).await,
            (2, _) => disk.write_zeroes(at, blocks, Space::Keep, durability).await,
            (3, Some(buffer)) => {
                let half = (blocks as usize / 2) * size;
                let parts = [buffer.slice(0..half), buffer.slice(half..buffer.len())];
                let parts = if half == 0 { &parts[1..] } else { &parts[..] };
                disk.read(at, parts).await
            }
            (4, Some(buffer)) => disk.read(at, std::slice::from_ref(&buffer)).await,
            (_, Some(buffer)) => {
                let from = std::slice::from_ref(&buffer);
                disk.write(at, from, durability).await
            }
            (_, None) => Ok(()),
        }
    })
}

fn run(seed: u64) {
    let mut rng = Rng::from_seed(seed);
    let world = World::new(random_options(&mut rng));
    let from_the_start = rng.once_in(3);
    if from_the_start {
        world.emulated.set_faults(random_faults(&mut rng));
    }
    let Ok(controller) = world.bring_up(quick()) else {
        return;
    };
    let drive = controller.drive().clone();
    let windows = DmaWindows::new(&[world.window]);
    let Some(queue) = corebay_nvme::pcie::Queue::open(&drive, &world.reactor, windows) else {
        return;
    };
    let disks: Vec<_> = drive
        .namespaces()
        .iter()
        .filter_map(|namespace| queue.disk(namespace.nsid))
        .filter(|disk| disk.info().blocks < 1 << 40)
        .map(std::rc::Rc::new)
        .collect();
    let mut running = Vec::new();
    for round in 0..120 {
        if round % 30 == 5 {
            world.emulated.set_faults(random_faults(&mut rng));
        }
        match rng.below(200) {
            0 => world.emulated.fail_fatally(),
            1 => world.emulated.unplug(),
            2 => world.emulated.plug(),
            3 => world.emulated.resize(1, rng.below(20_000)),
            4 => world.emulated.set_attached(2, rng.once_in(2)),
            _ => {}
        }
        if let Some(disk) = disks.get(rng.below(disks.len() as u64) as usize) {
            running.push(start(&world, disk, &mut rng));
        }
        world.turn_for(Duration::from_micros(rng.below(20_000)));
        running.retain(|outcome| !outcome.is_there());
        assert!(running.len() < 500, "operations pile up");
    }
    // The faults stay: even so, everything ends.
    world.turn_until("the end of all operations", || {
        running.iter().all(super::world::Outcome::is_there)
    });
    world.turn_until("all buffers' return", || {
        world.pool.free_bytes() == world.pool.total_bytes()
    });
}

/// Fresh seeds at each run; `COREBAY_SEED` replays one, `COREBAY_RUNS` says how many.
#[test]
fn a_hostile_controller_costs_errors_at_most() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("COREBAY_SEED").unwrap_or_else(|| {
        std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 16
    });
    for seed in first..first + number("COREBAY_RUNS").unwrap_or(40) {
        println!("COREBAY_SEED={seed} COREBAY_RUNS=1");
        run(seed);
    }
}
