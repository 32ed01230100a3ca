//! Controllers that break: what was in flight ends exactly once, and nothing hangs.

use std::time::Duration;

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    units::Lba,
};
use corebay_nvme::{
    emulated::{Emulated, EmulatedFaults, EmulatedOptions},
    pcie::DriverOptions,
};

use super::world::{Bench, Outcome, quick};

fn slow() -> EmulatedOptions {
    EmulatedOptions {
        latency: (Duration::from_millis(2), Duration::from_millis(4)),
        ..EmulatedOptions::default()
    }
}

/// As [`slow`], and to be disabled within half a second.
fn soon_overdue() -> EmulatedOptions {
    EmulatedOptions {
        cap: EmulatedOptions::default().cap.with_to(1),
        ..slow()
    }
}

/// It answers nothing, and stops only by a reset of its function.
fn stuck(reset_takes: Duration) -> EmulatedFaults {
    EmulatedFaults {
        stuck_ready: true,
        slow_function_reset: reset_takes,
        hang: true,
        ..EmulatedFaults::default()
    }
}

fn start_many(bench: &Bench, count: u64) -> Vec<Outcome<Result<(), DiskError>>> {
    (0..count)
        .map(|number| bench.start_write(number, number as u8 + 1, 1, Durability::Cached))
        .collect()
}

fn ends(bench: &Bench, writes: Vec<Outcome<Result<(), DiskError>>>) -> Vec<Result<(), DiskError>> {
    let all = |writes: &[Outcome<_>]| writes.iter().all(Outcome::is_there);
    bench
        .world
        .turn_until("the end of all operations", || all(&writes));
    writes.iter().map(Outcome::take).collect()
}

#[test]
fn a_lost_command_is_aborted_alone() {
    let bench = Bench::new(slow());
    bench.emulated().set_faults(EmulatedFaults {
        late: 1,
        late_by: Duration::from_secs(3600),
        ..EmulatedFaults::default()
    });
    let late = start_many(&bench, 1);
    bench.world.turn_for(Duration::from_millis(5));
    bench.emulated().set_faults(EmulatedFaults::default());
    assert_eq!(ends(&bench, late), [Err(DiskError::TimedOut)]);
    assert_eq!(bench.emulated().counters().aborts, 1);
    assert_eq!(bench.controller.drive().resets(), 0);
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    bench.settle();
}

#[test]
fn what_cannot_be_aborted_costs_a_reset_that_others_do_not_notice() {
    let bench = Bench::new(slow());
    bench.emulated().set_faults(EmulatedFaults {
        late: 1,
        late_by: Duration::from_secs(3600),
        deaf_to_abort: true,
        ..EmulatedFaults::default()
    });
    let stuck = start_many(&bench, 1);
    bench.world.turn_for(Duration::from_millis(5));
    bench.emulated().set_faults(EmulatedFaults {
        deaf_to_abort: true,
        ..EmulatedFaults::default()
    });
    let mut others = Vec::new();
    while !stuck[0].is_there() {
        others.push(bench.start_write(100 + others.len() as u64, 9, 1, Durability::Cached));
        bench.world.turn_for(Duration::from_millis(1));
    }
    assert_eq!(stuck[0].take(), Err(DiskError::TimedOut));
    let count = others.len();
    assert!(count > 50, "{count}");
    assert!(ends(&bench, others).iter().all(Result::is_ok));
    assert_eq!(bench.controller.drive().resets(), 1);
    let there = bench.read(100, count.min(100)).unwrap();
    assert!(there.iter().all(|&content| content == 9));
    bench.settle();
}

/// An admin command that hangs breaks the queue; the keeper's Abort in it has a deadline all the same.
#[test]
fn an_abort_that_hangs_after_another_admin_command_ends_too() {
    let bench = Bench::new(slow());
    bench.emulated().set_faults(EmulatedFaults {
        hang: true,
        ..EmulatedFaults::default()
    });
    let write = start_many(&bench, 1);
    bench.world.turn_for(Duration::from_millis(50));
    let controller = bench.controller.clone();
    let smart = bench
        .world
        .spawn(async move { controller.smart().await.is_err() });
    bench.world.turn_for(Duration::from_secs(2));
    assert!(smart.take());
    assert!(write[0].is_there(), "the keeper waits");
}

/// Driver options under which an admin command may take long.
fn patient() -> DriverOptions {
    DriverOptions {
        admin_timeout: Duration::from_secs(30),
        ..quick()
    }
}

fn hanging() -> EmulatedFaults {
    EmulatedFaults {
        hang: true,
        ..EmulatedFaults::default()
    }
}

#[test]
fn a_hung_controller_is_reset_once_the_abort_took_too_long() {
    let bench = Bench::with(slow(), patient());
    let writes = start_many(&bench, 4);
    bench.world.turn();
    bench.emulated().set_faults(hanging());
    let began = bench.world.now();
    let enabled = bench.emulated().counters().enabled;
    bench.world.turn_until("the reset", || {
        bench.emulated().counters().enabled > enabled
    });
    let took = bench.world.now().since(began);
    let limit = quick().io_timeout + quick().abort_timeout;
    assert!(
        took < limit + Duration::from_millis(50),
        "{took:?}: io_timeout and abort_timeout are {limit:?}"
    );
    drop(writes);
}

#[test]
fn a_controller_that_answers_admin_commands_more_than_once_is_reset() {
    let bench = Bench::new(EmulatedOptions::default());
    bench.emulated().set_faults(EmulatedFaults {
        duplicate: 1,
        ..EmulatedFaults::default()
    });
    let controller = bench.controller.clone();
    let asked = bench.world.run(async move {
        let mut good = 0;
        while good < 100 && controller.smart().await.is_ok() {
            good += 1;
        }
        good
    });
    assert!((1..10).contains(&asked), "{asked}");
    bench.emulated().set_faults(EmulatedFaults::default());
    let drive = bench.controller.drive();
    bench
        .world
        .turn_until("the reset", || drive.resets() == 1 || drive.has_failed());
    assert_eq!(bench.write(0, 1, 1), Ok(()));
}

#[test]
fn a_drive_that_comes_back_from_a_reset_with_another_cache_or_limits_is_given_up() {
    let changes: [fn(&mut EmulatedOptions); 4] = [
        |options| options.volatile_cache = true,
        |options| options.mdts = 1,
        |options| options.sgl = true,
        |options| options.zeroes_limit = 2,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let bench = Bench::new(EmulatedOptions {
            volatile_cache: false,
            ..EmulatedOptions::default()
        });
        bench.emulated().fail_fatally();
        assert_eq!(bench.write(0, 1, 1), Ok(()), "the same as before");
        bench.emulated().change(change);
        bench.emulated().fail_fatally();
        assert_eq!(bench.write(0, 1, 1), Err(DiskError::Gone), "{index}");
        assert!(bench.controller.drive().has_failed());
    }
}

#[test]
fn a_fatal_status_during_an_abort_is_seen_at_once() {
    let bench = Bench::with(
        slow(),
        DriverOptions {
            abort_timeout: Duration::from_secs(10),
            ..patient()
        },
    );
    let writes = start_many(&bench, 4);
    bench.world.turn();
    bench.emulated().set_faults(hanging());
    bench.world.turn_for(Duration::from_millis(300));
    assert!(!writes[0].is_there(), "its abort is awaited");
    bench.emulated().set_faults(EmulatedFaults::default());
    let began = bench.world.now();
    bench.emulated().fail_fatally();
    let _ = ends(&bench, writes);
    let took = bench.world.now().since(began);
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert_eq!(bench.controller.drive().resets(), 1);
}

#[test]
fn a_drive_that_is_pulled_out_while_the_keeper_waits_fails_its_io_at_once() {
    let options = DriverOptions {
        abort_timeout: Duration::from_secs(10),
        ..patient()
    };
    // While an Abort is awaited, and while Identify is after a reset.
    for (fatal, wait) in [(false, 300), (true, 50)] {
        let bench = Bench::with(slow(), options.clone());
        let writes = start_many(&bench, 4);
        bench.world.turn();
        bench.emulated().set_faults(hanging());
        if fatal {
            bench.emulated().fail_fatally();
        }
        bench.world.turn_for(Duration::from_millis(wait));
        assert!(!writes[0].is_there(), "the keeper waits");
        let began = bench.world.now();
        bench.emulated().unplug_to_zeroes();
        let outcomes = ends(&bench, writes);
        assert!(outcomes.iter().all(|end| *end == Err(DiskError::Gone)));
        let took = bench.world.now().since(began);
        assert!(took < quick().health_interval * 3, "{took:?}");
        bench.settle();
    }
}

#[test]
fn a_fatal_status_is_reset_and_work_goes_on() {
    let bench = Bench::new(slow());
    let writes = start_many(&bench, 31);
    bench.world.turn();
    bench.emulated().fail_fatally();
    assert!(ends(&bench, writes).iter().all(Result::is_ok));
    assert_eq!(bench.controller.drive().resets(), 1);
    let expected: Vec<u8> = (1..=31).collect();
    assert_eq!(bench.read(0, 31), Ok(expected));
    assert!(bench.queue.counters().resubmitted >= 31);
    bench.settle();
}

#[test]
fn too_many_resets_are_a_failure() {
    let bench = Bench::new(slow());
    for _ in 0..3 {
        bench.emulated().fail_fatally();
        assert_eq!(bench.write(0, 1, 1), Ok(()));
    }
    bench.emulated().fail_fatally();
    assert_eq!(bench.write(0, 1, 1), Err(DiskError::Gone));
    assert!(bench.controller.drive().has_failed());
    bench.settle();
}

#[test]
fn a_controller_that_hangs_for_good_is_given_up() {
    let bench = Bench::new(slow());
    let writes = start_many(&bench, 31);
    bench.world.turn();
    bench.emulated().set_faults(EmulatedFaults {
        hang: true,
        ..EmulatedFaults::default()
    });
    let began = bench.world.now();
    let outcomes = ends(&bench, writes);
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    let took = bench.world.now().since(began);
    assert!(took < Duration::from_secs(2), "{took:?}");
    bench.settle();
    bench
        .world
        .turn_until("the end", || bench.controller.drive().has_failed());
    assert_eq!(bench.read(0, 1), Err(DiskError::Gone));
    let flush = bench.on_disk(|disk| async move { disk.flush().await });
    assert_eq!(flush, Err(DiskError::Gone));
}

#[test]
fn one_that_cannot_be_disabled_gets_a_function_reset() {
    let bench = Bench::new(soon_overdue());
    let writes = start_many(&bench, 8);
    bench.world.turn();
    bench.emulated().set_faults(stuck(Duration::ZERO));
    bench.emulated().fail_fatally();
    bench.world.turn_for(Duration::from_millis(700));
    bench.emulated().set_faults(EmulatedFaults::default());
    assert!(ends(&bench, writes).iter().all(Result::is_ok));
    assert_eq!(bench.controller.drive().resets(), 1);
}

#[test]
fn where_nothing_stops_the_device_its_memory_is_never_used_again() {
    let bench = Bench::new(soon_overdue());
    let writes = start_many(&bench, 8);
    bench.world.turn();
    bench.emulated().set_faults(EmulatedFaults {
        stuck_function: true,
        ..stuck(Duration::ZERO)
    });
    bench.emulated().fail_fatally();
    let outcomes = ends(&bench, writes);
    assert!(outcomes.iter().all(|end| *end == Err(DiskError::Gone)));
    bench.world.turn_for(Duration::from_millis(10));
    let pool = &bench.world.pool;
    assert_eq!(pool.total_bytes() - pool.free_bytes(), 8 * 4096);
}

#[test]
fn surprise_removal_ends_everything_and_a_return_is_a_new_drive() {
    let bench = Bench::new(slow());
    assert_eq!(bench.write(5, 7, 1), Ok(()));
    let flush = bench.on_disk(|disk| async move { disk.flush().await });
    assert_eq!(flush, Ok(()));
    let writes = start_many(&bench, 40);
    bench.world.turn();
    bench.emulated().unplug();
    let outcomes = ends(&bench, writes);
    assert!(outcomes.iter().all(|end| *end == Err(DiskError::Gone)));
    bench.settle();
    bench.emulated().plug();
    bench.world.turn_for(Duration::from_millis(100));
    assert_eq!(bench.read(5, 1), Err(DiskError::Gone), "gone is final");
    let controller = bench.world.bring_up(quick()).unwrap();
    let queue = bench.world.open(controller.drive());
    let disk = queue.disk(1).unwrap();
    let buffer = bench.world.buffer(512, 0);
    let read = bench.world.run(async move {
        let into = std::slice::from_ref(&buffer);
        disk.read(Lba(5), into).await.unwrap();
        buffer.bytes()[0]
    });
    // Block 5 was flushed as 7, and written as 6 when the drive was pulled out.
    assert!(read == 7 || read == 6, "{read}");
}

/// Registers of an empty slot read as ones or as zeroes. Zeroes look like a controller that is not ready,
/// and no reset has to be waited for to know better.
#[test]
fn a_drive_that_is_pulled_out_fails_its_io_at_once() {
    for unplug in [Emulated::unplug, Emulated::unplug_to_zeroes] {
        let bench = Bench::new(slow());
        let writes = start_many(&bench, 40);
        bench.world.turn();
        let began = bench.world.now();
        unplug(bench.emulated());
        let outcomes = ends(&bench, writes);
        assert!(outcomes.iter().all(|end| *end == Err(DiskError::Gone)));
        let took = bench.world.now().since(began);
        assert!(took < quick().health_interval * 2, "{took:?}");
        assert_eq!(bench.controller.drive().resets(), 0);
        bench.settle();
    }
}

#[test]
fn a_drive_that_is_pulled_out_with_writes_in_its_cache_is_known_to_have_had_them() {
    for flushed in [false, true] {
        let bench = Bench::new(slow());
        assert_eq!(bench.write(0, 1, 8), Ok(()));
        if flushed {
            let flush = bench.on_disk(|disk| async move { disk.flush().await });
            assert_eq!(flush, Ok(()));
        }
        bench.emulated().unplug();
        let drive = bench.controller.drive();
        bench.world.turn_until("the loss", || drive.has_failed());
        assert_eq!(bench.disk.namespace().has_unflushed(), !flushed);
    }
}

#[test]
fn a_drive_that_loses_its_power_for_a_moment_does_not_pass_over_what_its_cache_held() {
    let bench = Bench::new(slow());
    let drive = bench.controller.drive().clone();
    assert_eq!(bench.write(0, 1, 8), Ok(()));
    // A reset by us loses nothing.
    bench.emulated().fail_fatally();
    assert_eq!(bench.write(0, 2, 8), Ok(()));
    assert_eq!(drive.resets(), 1);
    assert!(bench.disk.namespace().is_attached());
    bench.emulated().lose_power();
    bench.world.turn_until("the reset", || drive.resets() == 2);
    let was = bench.disk.namespace().clone();
    assert!(!was.is_attached() && was.has_unflushed());
    let flush = bench.on_disk(|disk| async move { disk.flush().await });
    assert_eq!(flush, Err(DiskError::Gone), "not as if nothing had been");
    let bench = bench.reopened();
    assert_eq!(was.differs(bench.disk.namespace()), None);
    let flush = || bench.on_disk(|disk| async move { disk.flush().await });
    assert_eq!(flush(), Ok(()));
    bench.emulated().lose_power();
    bench.world.turn_until("the reset", || drive.resets() == 3);
    assert_eq!(flush(), Ok(()), "there was nothing to lose");
}

#[test]
fn a_drive_that_is_pulled_out_during_a_reset_is_given_up_at_once() {
    let bench = Bench::new(EmulatedOptions {
        ready_delay: Duration::from_millis(500),
        ..slow()
    });
    let writes = start_many(&bench, 4);
    bench.world.turn();
    bench.emulated().fail_fatally();
    bench.world.turn_for(Duration::from_millis(100));
    assert!(!writes[0].is_there(), "it is being reset");
    let began = bench.world.now();
    bench.emulated().unplug_to_zeroes();
    let outcomes = ends(&bench, writes);
    assert!(outcomes.iter().all(|end| *end == Err(DiskError::Gone)));
    assert!(bench.world.now().since(began) < Duration::from_millis(10));
}

#[test]
fn a_drive_that_is_wanted_back_is_closed_in_good_order() {
    let bench = Bench::new(slow());
    assert_eq!(bench.write(0, 9, 64), Ok(()));
    let writes = start_many(&bench, 10);
    bench.world.turn();
    bench.emulated().want_back();
    let outcomes = ends(&bench, writes);
    let ended = |end: &Result<(), DiskError>| matches!(end, Ok(()) | Err(DiskError::Gone));
    assert!(outcomes.iter().all(ended), "{outcomes:?}");
    bench
        .world
        .turn_until("the giving back", || !bench.emulated().is_lent());
    bench.emulated().lose_power();
    // Cached writes that had completed were flushed by the shutdown.
    assert!((10..64).all(|lba| bench.emulated().block(1, lba).unwrap()[0] == 9));
    bench.settle();
}

#[test]
fn a_drive_that_hangs_does_not_hang_another() {
    let bench = Bench::new(slow());
    let healthy = Emulated::new(EmulatedOptions::default());
    // The same arena has the same device address for both.
    let window = healthy.map(&bench.world.memory());
    assert_eq!(window, bench.world.window);
    bench
        .world
        .reactor
        .add_source(std::rc::Rc::new(healthy.clone()));
    let other = bench.world.bring_up_on(&healthy, quick()).unwrap();
    let queue = bench.world.open(other.drive());
    let disk = std::rc::Rc::new(queue.disk(1).unwrap());
    let writes = start_many(&bench, 10);
    bench.world.turn();
    bench.emulated().set_faults(EmulatedFaults {
        hang: true,
        ..EmulatedFaults::default()
    });
    let mut good = 0;
    while !writes.iter().all(Outcome::is_there) {
        let (disk, buffer) = (disk.clone(), bench.world.buffer(512, 1));
        let began = bench.world.now();
        let written = bench.world.run(async move {
            let from = std::slice::from_ref(&buffer);
            disk.write(Lba(good), from, Durability::Cached).await
        });
        assert_eq!(written, Ok(()));
        assert!(bench.world.now().since(began) < Duration::from_millis(2));
        good += 1;
    }
    assert!(good > 100, "{good}");
    assert!(ends(&bench, writes).iter().all(Result::is_err));
}

/// Both have the same keeper. The emulated controller panics where it is touched amid its reset.
#[test]
fn a_function_that_takes_long_to_reset_keeps_no_other_drive_waiting() {
    let dead = Bench::new(soon_overdue());
    let alive = Emulated::new(soon_overdue());
    assert_eq!(alive.map(&dead.world.memory()), dead.world.window);
    let source = std::rc::Rc::new(alive.clone());
    dead.world.reactor.add_source(source);
    let other = dead.world.bring_up_on(&alive, quick()).unwrap();
    let disk = dead.world.open(other.drive()).disk(1).unwrap();
    let lost = start_many(&dead, 4);
    dead.world.turn();
    dead.emulated().set_faults(stuck(Duration::from_secs(60)));
    dead.emulated().fail_fatally();
    dead.world.turn_for(Duration::from_millis(600));
    // Its function is being reset. The other one loses a command, which takes an Abort.
    alive.set_faults(EmulatedFaults {
        late: 1,
        late_by: Duration::from_secs(3600),
        ..EmulatedFaults::default()
    });
    let (began, buffer) = (dead.world.now(), dead.world.buffer(512, 1));
    let write = dead.world.spawn(async move {
        let from = std::slice::from_ref(&buffer);
        disk.write(Lba(0), from, Durability::Cached).await
    });
    dead.world.turn_for(Duration::from_millis(5));
    alive.set_faults(EmulatedFaults::default());
    dead.world.turn_until("its end", || write.is_there());
    assert_eq!(write.take(), Err(DiskError::TimedOut));
    let limit = quick().io_timeout + quick().abort_timeout;
    assert!(dead.world.now().since(began) < limit);
    assert!(!lost[0].is_there(), "the dead one is still being reset");
    // Nor does one that comes up while the reset goes on.
    let began = dead.world.now();
    drop(dead.world.run(async move { other.shut_down().await }));
    assert!(dead.world.bring_up_on(&alive, quick()).is_ok());
    assert!(dead.world.now().since(began) < Duration::from_millis(100));
    assert!(!lost[0].is_there());
}

#[test]
fn a_reset_of_the_function_that_never_ends_costs_the_drive_and_its_buffers() {
    let bench = Bench::new(soon_overdue());
    let writes = start_many(&bench, 8);
    bench.world.turn();
    bench
        .emulated()
        .set_faults(stuck(Duration::from_secs(86_400)));
    bench.emulated().fail_fatally();
    let outcomes = ends(&bench, writes);
    assert!(outcomes.iter().all(|end| *end == Err(DiskError::Gone)));
    bench.world.turn_for(Duration::from_millis(10));
    // Nobody can say what the device does now.
    let pool = &bench.world.pool;
    assert_eq!(pool.total_bytes() - pool.free_bytes(), 8 * 4096);
}

#[test]
fn a_duplicate_or_stale_completion_ends_nothing_twice() {
    for fault in 0..4 {
        let bench = Bench::new(slow());
        let faults = EmulatedFaults::default();
        bench.emulated().set_faults(match fault {
            0 => EmulatedFaults {
                duplicate: 2,
                ..faults
            },
            1 => EmulatedFaults {
                wrong_sqid: 30,
                ..faults
            },
            2 => EmulatedFaults {
                bad_phase: 30,
                ..faults
            },
            _ => EmulatedFaults { lost: 30, ..faults },
        });
        let writes = start_many(&bench, 200);
        let outcomes = ends(&bench, writes);
        let good = outcomes.iter().filter(|end| end.is_ok()).count();
        assert!(good > 0, "fault {fault}");
        bench.emulated().set_faults(EmulatedFaults::default());
        bench.settle();
        let counters = bench.queue.counters();
        match fault {
            0 => assert!(counters.strange_completions > 8),
            1 => assert!(counters.strange_completions > 0),
            // Nobody sees these: what they would have ended takes too long.
            _ => assert!(counters.timeouts > 0, "fault {fault}"),
        }
        if fault == 0 {
            assert!(bench.controller.drive().resets() >= 1);
        }
    }
}

#[test]
fn a_late_second_completion_does_not_end_the_slots_next_command() {
    let bench = Bench::with(
        slow(),
        DriverOptions {
            entries: 2,
            ..quick()
        },
    );
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    let next = bench.start_write(1, 2, 1, Durability::Cached);
    bench.world.turn_for(Duration::from_millis(1));
    assert_eq!(bench.queue.in_flight(), 1, "in the only slot there is");
    bench.emulated().complete_again();
    bench.world.turn_for(Duration::from_micros(500));
    assert!(!next.is_there(), "ended by the completion of another");
    assert_eq!(bench.queue.counters().strange_completions, 1);
    bench.world.turn_until("its own end", || next.is_there());
    assert_eq!(next.take(), Ok(()));
}

#[test]
fn an_operation_that_nobody_waits_for_keeps_its_buffer_until_it_ends() {
    let bench = Bench::new(slow());
    let buffer = bench.world.buffer(4096, 1);
    let disk = bench.disk.clone();
    let task = async move {
        let from = std::slice::from_ref(&buffer);
        let mut write = std::pin::pin!(disk.write(Lba(0), from, Durability::Cached));
        std::future::poll_fn(|context| {
            use std::future::Future;
            let _ = write.as_mut().poll(context);
            std::task::Poll::Ready(())
        })
        .await;
    };
    bench.world.run(task);
    assert_eq!(bench.queue.in_flight(), 1);
    let pool = &bench.world.pool;
    assert_eq!(pool.total_bytes() - pool.free_bytes(), 4096);
    bench.settle();
    assert_eq!(bench.queue.in_flight(), 0);
    assert_eq!(bench.read(0, 8), Ok(vec![1; 8]));
}
