//! Bringing controllers up, and refusing those that cannot be used.

use std::time::Duration;

use corebay_core::{disk::Disk, units::BlockSize};
use corebay_nvme::{
    emulated::{EmulatedFaults, EmulatedNamespace, EmulatedOptions},
    pcie::{BringUpError, DriverOptions, Refusal},
    spec::property::{Cap, Vs},
};

use super::world::{Bench, World, quick};

#[test]
fn a_controller_comes_up_and_says_who_it_is() {
    let bench = Bench::new(EmulatedOptions::default());
    let drive = bench.controller.drive();
    let info = drive.info();
    assert_eq!(
        (&*info.serial, &*info.model, info.version),
        ("EMULATED1", "Emulated NVMe Controller", Vs::V2_1)
    );
    assert_eq!(info.transfer_bytes_max, 128 << 10);
    assert!(info.volatile_cache && bench.disk.info().volatile_cache);
    assert_eq!(drive.queues(), 2);
    assert_eq!(bench.emulated().host_identifier(), *b"host identifier!");
    assert_eq!(bench.emulated().arbitration_burst(), Some(3));
    let controller = bench.controller.clone();
    let smart = bench.world.run(async move { controller.smart().await });
    assert_eq!(smart.unwrap().composite_temperature.get(), 300);
}

#[test]
fn namespaces_are_served_or_refused_with_the_reason() {
    let with_metadata = EmulatedNamespace {
        metadata_bytes: 8,
        metadata_extended: true,
        ..EmulatedNamespace::new(BlockSize::B512, 1000)
    };
    let bench = Bench::new(EmulatedOptions {
        namespaces: vec![
            EmulatedNamespace::new(BlockSize::B4096, 1000),
            with_metadata,
            EmulatedNamespace::new(BlockSize::B512, 5000),
            EmulatedNamespace::new(BlockSize::B512, 0),
        ],
        ..EmulatedOptions::default()
    });
    let states: Vec<_> = bench
        .controller
        .drive()
        .namespaces()
        .iter()
        .map(|namespace| {
            let state = namespace.state.as_ref();
            state
                .map(|info| info.disk_info().blocks)
                .map_err(|why| *why)
        })
        .collect();
    let metadata = Refusal::Metadata {
        bytes: 8,
        extended: true,
    };
    assert_eq!(
        states,
        [Ok(1000), Err(metadata), Ok(5000), Err(Refusal::Size(0))]
    );
    assert!(bench.queue.disk(2).is_none());
    let third = bench.queue.disk(3).unwrap();
    assert_eq!(third.info().block_size, BlockSize::B512);
    assert_eq!(third.namespace().nguid[12..], [0, 0, 0, 3]);
}

fn refused(options: EmulatedOptions) -> BringUpError {
    let world = World::new(options);
    match world.bring_up(quick()) {
        Ok(_) => panic!("it came up"),
        Err(error) => error,
    }
}

#[test]
fn capabilities_that_cannot_be_worked_with_are_refused() {
    let with = |cap: Cap| EmulatedOptions {
        cap,
        ..EmulatedOptions::default()
    };
    let cap = EmulatedOptions::default().cap;
    let words = |cap| refused(with(cap)).to_string();
    assert!(words(cap.with_mpsmin(1)).contains("MPSMIN"));
    assert!(words(cap.with_mqes(0)).contains("MQES"));
    assert!(words(cap.with_css(0)).contains("CSS"));
    assert!(words(cap.with_dstrd(15)).contains("DSTRD"));
    assert_eq!(refused(with(Cap(u64::MAX))), BringUpError::NotThere);
}

#[test]
fn one_that_never_gets_ready_is_given_up_after_its_own_time() {
    let options = EmulatedOptions {
        cap: EmulatedOptions::default().cap.with_to(2),
        ready_delay: Duration::from_secs(5),
        ..EmulatedOptions::default()
    };
    let BringUpError::NotReady { wanted, waited_ms } = refused(options) else {
        panic!("another error");
    };
    assert!(wanted && (1000..1100).contains(&waited_ms), "{waited_ms}");
}

#[test]
fn one_that_is_slow_within_its_time_comes_up() {
    let bench = Bench::new(EmulatedOptions {
        cap: EmulatedOptions::default().cap.with_to(20),
        ready_delay: Duration::from_secs(9),
        ..EmulatedOptions::default()
    });
    assert_eq!(bench.write(0, 1, 1), Ok(()));
}

/// What whoever had the drive before left behind is in nobody's way: neither a controller that is
/// enabled nor one that can be disabled only by a reset of the function.
#[test]
fn one_that_was_left_enabled_comes_up() {
    for stuck in [false, true] {
        let bench = Bench::with(
            EmulatedOptions {
                cap: EmulatedOptions::default().cap.with_to(1),
                ..EmulatedOptions::default()
            },
            DriverOptions {
                queues: 1,
                ..quick()
            },
        );
        assert_eq!(bench.write(0, 3, 1), Ok(()));
        bench.emulated().set_faults(EmulatedFaults {
            stuck_ready: stuck,
            ..EmulatedFaults::default()
        });
        let Bench { world, .. } = bench;
        // Whoever had it is gone, without a word to the controller.
        world.reactor.tear_down();
        let emulated = world.emulated.clone();
        world.reactor.add_source(std::rc::Rc::new(emulated.clone()));
        // The fault passes once the driver has had to find another way.
        let mut turns = 0;
        let second = world.start_bring_up(quick());
        world.turn_until("the bring-up", || {
            turns += 1;
            if turns == 6000 {
                emulated.set_faults(EmulatedFaults::default());
            }
            second.is_there()
        });
        assert!(second.take().is_ok(), "stuck {stuck}");
    }
}

#[test]
fn one_that_hangs_at_its_first_command_is_given_up() {
    let world = World::new(EmulatedOptions::default());
    world.emulated.set_faults(EmulatedFaults {
        hang: true,
        ..EmulatedFaults::default()
    });
    let error = world.bring_up(quick()).err().unwrap();
    assert!(error.to_string().contains("no answer in time"), "{error}");
}

#[test]
fn small_queues_wide_strides_and_few_of_them() {
    let bench = Bench::with(
        EmulatedOptions {
            cap: EmulatedOptions::default().cap.with_mqes(1).with_dstrd(2),
            queues: 1,
            ..EmulatedOptions::default()
        },
        DriverOptions {
            queues: 4,
            ..quick()
        },
    );
    assert_eq!(bench.controller.drive().queues(), 1);
    for lba in 0..20 {
        assert_eq!(bench.write(lba, lba as u8 + 1, 1), Ok(()));
    }
    assert_eq!(bench.read(3, 4), Ok(vec![4, 5, 6, 7]));
}

#[test]
fn a_queue_pair_is_free_again_after_its_core_ended() {
    let bench = Bench::with(
        EmulatedOptions::default(),
        DriverOptions {
            queues: 1,
            ..quick()
        },
    );
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    let Bench {
        disk,
        queue,
        controller,
        world,
    } = bench;
    let windows = corebay_nvme::pcie::DmaWindows::new(&[world.window]);
    let again =
        || corebay_nvme::pcie::Queue::open(controller.drive(), &world.reactor, windows.clone());
    assert!(again().is_none(), "the only one is taken");
    world.reactor.tear_down();
    drop((disk, queue));
    world
        .reactor
        .add_source(std::rc::Rc::new(world.emulated.clone()));
    let queue = again().expect("it is free");
    let disk = queue.disk(1).unwrap();
    let buffer = world.buffer(512, 0);
    let read = world.run(async move {
        disk.read(corebay_core::units::Lba(0), std::slice::from_ref(&buffer))
            .await
            .map(|()| buffer.bytes()[0])
    });
    assert_eq!(read, Ok(1));
}
