//! Reads, writes and their kin on a controller that does nothing wrong.

use std::time::Duration;

use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    units::{BlockSize, Lba},
};
use corebay_nvme::{
    emulated::{EmulatedFaults, EmulatedNamespace, EmulatedOptions},
    spec::{command::admin as opcode, event::AsyncEvent, identify::controller::oncs},
};

use super::world::{Bench, World, quick};

#[test]
fn what_is_written_is_read() {
    let bench = Bench::new(EmulatedOptions::default());
    assert_eq!(bench.write(5, 7, 3), Ok(()));
    assert_eq!(bench.read(4, 5), Ok(vec![0, 7, 7, 7, 0]));
    bench.settle();
}

#[test]
fn transfers_beyond_mdts_are_cut() {
    for (mdts, sgl) in [(0, false), (1, false), (5, false), (2, true)] {
        let bench = Bench::new(EmulatedOptions {
            mdts,
            sgl,
            ..EmulatedOptions::default()
        });
        let before = bench.queue.counters().commands;
        assert_eq!(bench.write(9, 3, 2048), Ok(()));
        let commands = bench.queue.counters().commands - before;
        let expected = if mdts == 0 {
            1
        } else {
            (1 << 20) / (4096 << mdts)
        };
        assert_eq!(commands, expected, "mdts {mdts}");
        assert_eq!(bench.read(9, 2048), Ok(vec![3; 2048]));
        assert_eq!(bench.read(8, 1), Ok(vec![0]));
        bench.settle();
    }
}

#[test]
fn windows_that_prp_entries_cannot_describe_are_cut_or_become_sgls() {
    for sgl in [false, true] {
        let bench = Bench::new(EmulatedOptions {
            sgl,
            ..EmulatedOptions::default()
        });
        let buffer = bench.world.buffer(16384, 0);
        let mut parts = Vec::new();
        for (index, offset) in [512, 2048, 5120, 12288, 15872].into_iter().enumerate() {
            let mut part = buffer.slice(offset..offset + 512);
            part.bytes_mut().fill(index as u8 + 1);
            parts.push(part);
        }
        let before = bench.queue.counters().commands;
        let from = parts.clone();
        let written = bench
            .on_disk(|disk| async move { disk.write(Lba(7), &from, Durability::Cached).await });
        assert_eq!(written, Ok(()));
        let commands = bench.queue.counters().commands - before;
        assert_eq!(commands, if sgl { 1 } else { 5 });
        assert_eq!(bench.read(7, 5), Ok(vec![1, 2, 3, 4, 5]));
        let into = parts.clone();
        bench
            .on_disk(|disk| async move { disk.read(Lba(8), &into[..3]).await })
            .unwrap();
        let firsts: Vec<u8> = parts.iter().map(|part| part.bytes()[0]).collect();
        assert_eq!(firsts, [2, 3, 4, 4, 5]);
        assert_eq!(bench.emulated().counters().sgls > 0, sgl);
    }
}

#[test]
fn durability_is_honest() {
    let bench = Bench::new(EmulatedOptions::default());
    assert_eq!(bench.write(0, 1, 64), Ok(()));
    let flush = bench.on_disk(|disk| async move { disk.flush().await });
    assert_eq!(flush, Ok(()));
    let durable = bench.start_write(64, 2, 64, Durability::Durable);
    bench.world.turn_until("a write", || durable.is_there());
    assert_eq!(bench.write(128, 3, 64), Ok(()));
    let counters = bench.emulated().counters();
    assert_eq!((counters.flushes, counters.forced), (1, 1));
    bench.emulated().lose_power();
    let block = |lba| bench.emulated().block(1, lba).unwrap()[0];
    assert!((0..64).all(|lba| block(lba) == 1));
    assert!((64..128).all(|lba| block(lba) == 2));
    let kept = (128..192).filter(|&lba| block(lba) == 3).count();
    assert!((1..64).contains(&kept), "each by itself stays or goes");
}

#[test]
fn without_a_volatile_cache_nothing_is_flushed_or_forced() {
    let bench = Bench::new(EmulatedOptions {
        volatile_cache: false,
        ..EmulatedOptions::default()
    });
    assert!(!bench.disk.info().volatile_cache);
    let durable = bench.start_write(0, 2, 1, Durability::Durable);
    bench.world.turn_until("a write", || durable.is_there());
    let flush = bench.on_disk(|disk| async move { disk.flush().await });
    assert_eq!(flush, Ok(()));
    let counters = bench.emulated().counters();
    assert_eq!((counters.flushes, counters.forced), (0, 0));
}

#[test]
fn zeroes_are_zeroes_whatever_the_controller_has() {
    let ways = [
        (oncs::WRITE_ZEROES, 0b1001),
        (oncs::WRITE_ZEROES, 0),
        (oncs::WRITE_ZEROES | oncs::DATASET_MANAGEMENT, 1),
        (oncs::DATASET_MANAGEMENT, 0),
        (0, 0),
    ];
    for (oncs, dlfeat) in ways {
        let bench = Bench::new(EmulatedOptions {
            oncs,
            dlfeat,
            ..EmulatedOptions::default()
        });
        for deallocate in [false, true] {
            assert_eq!(bench.write(0, 9, 1024), Ok(()));
            assert_eq!(bench.write(1024, 9, 1024), Ok(()));
            let cleared = bench.on_disk(|disk| async move {
                let (durability, space) = (Durability::Durable, Space::Keep);
                match deallocate {
                    true => disk.deallocate(Lba(3), 2000).await,
                    false => disk.write_zeroes(Lba(3), 2000, space, durability).await,
                }
            });
            assert_eq!(cleared, Ok(()), "{oncs:#x} {dlfeat:#b}");
            assert_eq!(bench.read(0, 4), Ok(vec![9, 9, 9, 0]));
            assert_eq!(bench.read(2000, 5), Ok(vec![0, 0, 0, 9, 9]));
            assert_eq!(bench.read(1000, 100), Ok(vec![0; 100]));
        }
    }
}

#[test]
fn compare_verify_and_write_uncorrectable() {
    let bench = Bench::new(EmulatedOptions::default());
    bench.write(3, 5, 2).unwrap();
    let compare = |content| {
        let buffer = bench.world.buffer(1024, content);
        bench.on_disk(
            |disk| async move { disk.compare(Lba(3), std::slice::from_ref(&buffer)).await },
        )
    };
    assert_eq!((compare(5), compare(6)), (Ok(true), Ok(false)));
    let verify = || bench.on_disk(|disk| async move { disk.verify(Lba(0), 100).await });
    assert_eq!(verify(), Ok(()));
    let spoiled = bench.on_disk(|disk| async move { disk.write_uncorrectable(Lba(4), 1).await });
    assert_eq!(spoiled, Ok(()));
    assert_eq!(verify(), Err(DiskError::UnrecoveredRead));
    assert_eq!(bench.read(4, 1), Err(DiskError::UnrecoveredRead));
    assert_eq!(bench.read(3, 1), Ok(vec![5]));
}

#[test]
fn a_turn_rings_a_doorbell_once() {
    let bench = Bench::new(EmulatedOptions::default());
    let before = bench.emulated().counters().doorbells;
    let writes: Vec<_> = (0..20)
        .map(|number| bench.start_write(number, 1, 1, Durability::Cached))
        .collect();
    bench.world.turn();
    assert_eq!(bench.emulated().counters().doorbells - before, 1);
    bench
        .world
        .turn_until("all writes", || writes.iter().all(|write| write.is_there()));
    // One more for the completions.
    assert!(bench.emulated().counters().doorbells - before <= 3);
}

#[test]
fn doorbells_in_memory_save_registers() {
    let bench = Bench::new(EmulatedOptions {
        shadow_doorbells: true,
        ..EmulatedOptions::default()
    });
    let before = bench.emulated().counters();
    for lba in 0..100 {
        assert_eq!(bench.write(lba, lba as u8, 1), Ok(()));
    }
    assert_eq!(bench.read(50, 1), Ok(vec![50]));
    let after = bench.emulated().counters();
    assert!(after.io_commands - before.io_commands >= 101);
    let doorbells = after.doorbells - before.doorbells;
    assert!(doorbells < 150, "{doorbells} registers for 101 commands");
}

#[test]
fn commands_beyond_the_depth_wait_and_end() {
    let bench = Bench::new(EmulatedOptions {
        latency: (Duration::from_micros(50), Duration::from_millis(3)),
        ..EmulatedOptions::default()
    });
    let writes: Vec<_> = (0..300)
        .map(|number| bench.start_write(number * 4, number as u8, 4, Durability::Cached))
        .collect();
    bench.world.turn_for(Duration::from_millis(1));
    assert_eq!(bench.queue.in_flight(), 31);
    for write in writes {
        bench.world.turn_until("a write", || write.is_there());
        assert_eq!(write.take(), Ok(()));
    }
    assert_eq!(bench.read(1196, 4), Ok(vec![43; 4]));
    bench.settle();
}

#[test]
fn namespaces_grow_and_go() {
    let bench = Bench::new(EmulatedOptions {
        namespaces: vec![
            EmulatedNamespace::new(BlockSize::B512, 1000),
            EmulatedNamespace::new(BlockSize::B4096, 1000),
        ],
        ..EmulatedOptions::default()
    });
    assert_eq!(bench.write(1000, 1, 1), Err(DiskError::OutOfRange));
    bench.emulated().resize(1, 2000);
    bench
        .world
        .turn_until("the growth", || bench.disk.info().blocks == 2000);
    assert_eq!(bench.write(1000, 1, 1), Ok(()));
    bench.emulated().set_attached(1, false);
    bench
        .world
        .turn_until("the detaching", || !bench.disk.namespace().is_attached());
    assert_eq!(bench.write(0, 1, 1), Err(DiskError::Gone));
    let second = bench.queue.disk(2).unwrap();
    let buffer = bench.world.buffer(4096, 3);
    let written = bench.world.run(async move {
        let from = std::slice::from_ref(&buffer);
        second.write(Lba(0), from, Durability::Cached).await
    });
    assert_eq!(written, Ok(()), "the other one stays");
}

#[test]
fn a_namespace_that_is_attached_again_takes_the_place_of_what_it_was() {
    let bench = Bench::new(EmulatedOptions {
        namespaces: vec![EmulatedNamespace::new(BlockSize::B512, 1000); 2],
        ..EmulatedOptions::default()
    });
    let drive = bench.controller.drive().clone();
    assert_eq!(bench.write(7, 7, 1), Ok(()));
    bench.emulated().set_attached(1, false);
    let was = bench.disk.namespace().clone();
    bench
        .world
        .turn_until("the detaching", || !was.is_attached());
    let changes = drive.changes();
    assert!(changes > 0);
    bench.emulated().set_attached(1, true);
    let there = || drive.namespace(1).is_some_and(|now| now.is_attached());
    bench.world.turn_until("the attaching", there);
    assert!(drive.changes() > changes);
    assert!(!was.is_attached(), "its users have to look what it is now");
    let now = drive.namespace(1).unwrap();
    assert_eq!(was.differs(&now), None);
    let again = bench.reopened();
    // An event that a reset swallows.
    again.emulated().fail_fatally();
    again.emulated().resize(1, 2000);
    let grown = || again.disk.info().blocks == 2000;
    again.world.turn_until("the growth", grown);
    assert_eq!(again.read(7, 1), Ok(vec![7]));
}

#[test]
fn a_namespace_that_was_away_between_two_looks_is_looked_at_by_its_users() {
    let bench = Bench::new(EmulatedOptions::default());
    let drive = bench.controller.drive().clone();
    let was = bench.disk.namespace().clone();
    // By the time that its event is seen, it is there again.
    bench.emulated().detach_unseen(1);
    assert_eq!(bench.write(0, 1, 1), Err(DiskError::Gone));
    assert!(was.is_attached(), "nobody has looked");
    bench.emulated().set_attached(1, true);
    let other = || {
        drive
            .namespace(1)
            .is_some_and(|now| !std::sync::Arc::ptr_eq(&now, &was))
    };
    bench.world.turn_until("the look", other);
    assert!(!was.is_attached());
    assert_eq!(bench.reopened().write(0, 1, 1), Ok(()));
}

#[test]
fn a_namespace_that_was_not_there_at_first_can_be_opened() {
    let world = World::new(EmulatedOptions {
        namespaces: vec![EmulatedNamespace::new(BlockSize::B512, 1000); 2],
        ..EmulatedOptions::default()
    });
    world.emulated.set_attached(2, false);
    let controller = world.bring_up(quick()).unwrap();
    let queue = world.open(controller.drive());
    assert!(queue.disk(2).is_none());
    world.emulated.set_attached(2, true);
    world.turn_until("the attaching", || queue.disk(2).is_some());
    assert_eq!(queue.disk(2).unwrap().info().blocks, 1000);
}

#[test]
fn events_are_asked_for_again() {
    let bench = Bench::new(EmulatedOptions::default());
    for count in 1..=20 {
        bench.emulated().report(AsyncEvent::smart(1));
        bench.world.turn_for(Duration::from_millis(20));
        assert_eq!(bench.emulated().counters().events, count);
    }
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    assert_eq!(bench.controller.drive().resets(), 0);
}

#[test]
fn metadata_in_a_buffer_of_its_own_is_left_alone() {
    let bench = Bench::new(EmulatedOptions {
        namespaces: vec![EmulatedNamespace {
            metadata_bytes: 64,
            ..EmulatedNamespace::new(BlockSize::B512, 4000)
        }],
        dlfeat: 0,
        oncs: 0,
        ..EmulatedOptions::default()
    });
    // More than the metadata of one command, there and back, and zeroes as they are written.
    assert_eq!(bench.write(3, 7, 600), Ok(()));
    assert_eq!(bench.read(3, 600), Ok(vec![7; 600]));
    let cleared = bench.on_disk(|disk| async move { disk.deallocate(Lba(4), 500).await });
    assert_eq!(cleared, Ok(()));
    assert_eq!(bench.read(3, 2), Ok(vec![7, 0]));
    assert_eq!(bench.write(9, 9, 1), Ok(()));
}

/// The emulated controller refuses a metadata pointer where there is no data.
#[test]
fn commands_without_data_have_no_metadata() {
    let bench = Bench::new(EmulatedOptions {
        namespaces: vec![EmulatedNamespace {
            metadata_bytes: 8,
            ..EmulatedNamespace::new(BlockSize::B512, 4000)
        }],
        ..EmulatedOptions::default()
    });
    assert_eq!(bench.write(0, 7, 100), Ok(()));
    let verified = bench.on_disk(|disk| async move { disk.verify(Lba(0), 100).await });
    assert_eq!(verified, Ok(()));
    let cleared = bench.on_disk(|disk| async move {
        let (durability, space) = (Durability::Durable, Space::Keep);
        disk.write_zeroes(Lba(1), 50, space, durability).await
    });
    assert_eq!(cleared, Ok(()));
    let spoiled = bench.on_disk(|disk| async move { disk.write_uncorrectable(Lba(60), 1).await });
    assert_eq!(spoiled, Ok(()));
    assert_eq!(bench.read(0, 2), Ok(vec![7, 0]));
}

#[test]
fn an_operation_of_no_blocks_ends() {
    let bench = Bench::new(EmulatedOptions::default());
    let outcome = bench.on_disk(|disk| async move {
        disk.read(Lba(0), &[]).await?;
        disk.write(Lba(0), &[], Durability::Durable).await?;
        disk.write_zeroes(Lba(0), 0, Space::Keep, Durability::Cached)
            .await
    });
    assert_eq!(outcome, Ok(()));
}

#[test]
fn a_large_operation_does_not_keep_others_waiting() {
    let bench = Bench::new(EmulatedOptions {
        zeroes_limit: 1,
        latency: (Duration::from_millis(1), Duration::from_millis(1)),
        ..EmulatedOptions::default()
    });
    let disk = bench.disk.clone();
    // 6000 commands, of which 31 are under way at a time.
    let large = bench
        .world
        .spawn(async move { disk.deallocate(Lba(0), 6000 * 16).await });
    bench.world.turn_for(Duration::from_millis(5));
    let began = bench.world.now();
    assert_eq!(bench.write(100_000, 3, 4), Ok(()));
    let took = bench.world.now().since(began);
    assert!(took < Duration::from_millis(5), "{took:?}");
    assert!(!large.is_there());
    bench
        .world
        .turn_until("the large one's end", || large.is_there());
    assert_eq!(large.take(), Ok(()));
}

#[test]
fn more_namespaces_than_a_few_may_change_at_a_time() {
    let count = 140;
    let bench = Bench::new(EmulatedOptions {
        namespaces: vec![EmulatedNamespace::new(BlockSize::B512, 1000); count],
        ..EmulatedOptions::default()
    });
    for nsid in 1..=count as u32 {
        bench.emulated().resize(nsid, 2000);
    }
    let drive = bench.controller.drive().clone();
    let grown = |nsid| drive.namespace(nsid).unwrap().disk_info().blocks == 2000;
    bench
        .world
        .turn_until("the growth of the first", || grown(1));
    bench.world.turn_for(Duration::from_millis(200));
    assert!((1..=count as u32).all(grown));
}

#[test]
fn a_passing_error_detaches_no_namespace_and_hides_no_change() {
    for opcode in [opcode::GET_LOG_PAGE, opcode::IDENTIFY] {
        let bench = Bench::new(EmulatedOptions::default());
        bench.emulated().set_faults(EmulatedFaults {
            refuses: Some(opcode),
            ..EmulatedFaults::default()
        });
        bench.emulated().resize(1, 1 << 20);
        bench.world.turn_for(Duration::from_millis(100));
        assert!(bench.disk.namespace().is_attached());
        assert_eq!(bench.write(0, 1, 1), Ok(()));
        bench.emulated().set_faults(EmulatedFaults::default());
        bench.world.turn_for(Duration::from_secs(2));
        assert_eq!(bench.disk.info().blocks, 1 << 20, "opcode {opcode}");
    }
}

#[test]
fn a_shutdown_may_take_as_long_as_the_drive_states() {
    for (rtd3e, good) in [(0, false), (12_000_000, true)] {
        let bench = Bench::new(EmulatedOptions {
            shutdown_delay: Duration::from_secs(11),
            rtd3e,
            ..EmulatedOptions::default()
        });
        let controller = bench.controller.clone();
        let ended = bench.world.run(async move { controller.shut_down().await });
        assert_eq!(ended.is_ok(), good, "{ended:?}");
    }
}

#[test]
fn a_drive_says_how_it_is() {
    let bench = Bench::new(EmulatedOptions::default());
    let controller = bench.controller.clone();
    let report = bench.world.run(async move { controller.report().await });
    let report = report.unwrap();
    assert_eq!(report.serial, "EMULATED1");
    assert_eq!(report.slots.revisions, [Some("1.0".to_owned())]);
    assert_eq!(report.health.temperature, Some(27));
    assert_eq!(report.health.spare_percent, 100);
}

#[test]
fn a_shutdown_keeps_what_the_cache_holds() {
    let bench = Bench::new(EmulatedOptions::default());
    assert_eq!(bench.write(0, 8, 64), Ok(()));
    let controller = bench.controller.clone();
    let ended = bench.world.run(async move { controller.shut_down().await });
    assert_eq!(ended, Ok(()));
    bench.emulated().lose_power();
    assert!((0..64).all(|lba| bench.emulated().block(1, lba).unwrap()[0] == 8));
    assert_eq!(bench.write(0, 1, 1), Err(DiskError::Gone));
}

/// What is in the drive's cache is known: after a write, until a flush or an orderly end.
#[test]
fn what_was_not_flushed_is_known() {
    let bench = Bench::new(EmulatedOptions::default());
    let namespace = bench.disk.namespace().clone();
    let flush = || bench.on_disk(|disk| async move { disk.flush().await });
    assert!(!namespace.has_unflushed());
    assert_eq!(bench.read(0, 1), Ok(vec![0]));
    let durable = bench.start_write(0, 1, 1, Durability::Durable);
    bench.world.turn_until("its end", || durable.is_there());
    assert!(!namespace.has_unflushed(), "it went through the cache");
    let zeroes = || {
        bench.on_disk(|disk| async move {
            let space = corebay_core::disk::Space::Keep;
            disk.write_zeroes(Lba(0), 8, space, Durability::Cached)
                .await
        })
    };
    assert_eq!(zeroes(), Ok(()));
    assert!(namespace.has_unflushed());
    assert_eq!(flush(), Ok(()));
    assert!(!namespace.has_unflushed());
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    bench.emulated().set_faults(EmulatedFaults {
        failing: 1,
        ..EmulatedFaults::default()
    });
    assert!(flush().is_err());
    assert!(namespace.has_unflushed(), "that flush failed");
    bench.emulated().set_faults(EmulatedFaults::default());
    let controller = bench.controller.clone();
    let ended = bench.world.run(async move { controller.shut_down().await });
    assert_eq!(ended, Ok(()));
    assert!(!namespace.has_unflushed(), "the end wrote the cache");
}

#[test]
fn without_a_cache_nothing_waits_for_a_flush() {
    let bench = Bench::new(EmulatedOptions {
        volatile_cache: false,
        ..EmulatedOptions::default()
    });
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    assert!(!bench.disk.namespace().has_unflushed());
}
