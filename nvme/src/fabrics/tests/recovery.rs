//! Lost connections, time-outs, keep-alive, and commands that are sent again.

use std::{cell::RefCell, io, rc::Rc, time::Duration};

use super::{
    World,
    peer::{BLOCK, Manner, termination},
};
use crate::{
    fabrics::{Controller, Error, LostCommands, Recovery},
    spec::{status::Status, tcp::FatalErrorStatus},
};

fn reconnect(commands: LostCommands) -> Recovery {
    Recovery::Reconnect {
        delay_min: Duration::from_millis(5),
        delay_max: Duration::from_millis(40),
        give_up_after: Duration::from_secs(2),
        commands,
    }
}

#[test]
fn a_refused_connection_and_a_silent_controller_are_errors() {
    let mut world = World::new(1, Manner::default());
    world.network.refuse(true);
    let (host, options) = (world.host.clone(), world.options());
    let outcome = world.run(async move { Controller::connect(&host, options).await.map(drop) });
    assert_eq!(
        outcome,
        Err(Error::Transport(io::ErrorKind::ConnectionRefused))
    );
    world.network.refuse(false);
    let (host, options) = (world.host.clone(), world.options());
    let out = world.start(async move { Controller::connect(&host, options).await.map(drop) });
    // Nobody accepts: the target never sees the stream.
    for _ in 0..1_000_000 {
        world.now = world.now.plus(super::TURN);
        world.reactor.poll_once(world.now);
        if out.borrow().is_some() {
            break;
        }
    }
    assert_eq!(out.take(), Some(Err(Error::TimedOut)));
    assert_eq!(world.host.connections(), 0);
}

#[test]
fn a_command_without_answer_times_out_and_takes_its_connection_with_it() {
    let mut world = World::new(2, Manner::default());
    let mut options = world.options();
    options.command_timeout = Duration::from_millis(300);
    options.io_queues = 2;
    let controller = Rc::new(world.connect(options));
    world.target.manner.silent = true;
    let (a, b) = (
        controller.io_queue(0).unwrap(),
        controller.io_queue(1).unwrap(),
    );
    let start = world.now;
    let other = world.start(async move { b.flush(1).await });
    let outcome = world.run(async move { a.flush(1).await });
    assert_eq!(outcome, Err(Error::TimedOut));
    let waited = world.now.since(start);
    assert!(waited < Duration::from_millis(400), "{waited:?}");
    world.until(|_| other.borrow().is_some());
    assert!(other.take().unwrap().is_err());
    assert_eq!(controller.io_queues(), 0);
    let again = controller.io_queue(0);
    assert!(again.is_err());
    world.until(|world| world.host.connections() == 0);
}

#[test]
fn a_termination_request_ends_the_connection_with_its_reason() {
    let mut world = World::new(3, Manner::default());
    let options = world.options();
    let controller = Rc::new(world.connect(options));
    world.target.manner.silent = true;
    let queue = controller.io_queue(0).unwrap();
    let out = world.start(async move { queue.flush(1).await });
    world.turn();
    let bytes = termination(FatalErrorStatus::DataTransferOutOfRange, 12);
    world.target.peers[1].say(&bytes);
    world.until(|_| out.borrow().is_some());
    assert_eq!(out.take(), Some(Err(Error::Terminated { fes: 4, fei: 12 })));
}

#[test]
fn keep_alives_are_sent_and_their_absence_is_noticed() {
    let mut world = World::new(4, Manner::default());
    let mut options = world.options();
    options.keep_alive = Duration::from_secs(1);
    let controller = world.connect(options);
    let start = world.now;
    world.until(|world| world.now.since(start) > Duration::from_millis(2600));
    assert_eq!(world.target.keep_alives, 5);
    assert_eq!(controller.io_queues(), 1);
    // From now on nothing reaches the target.
    for _ in 0..60_000 {
        world.now = world.now.plus(super::TURN);
        world.reactor.poll_once(world.now);
    }
    assert_eq!(controller.io_queues(), 0);
}

/// Writes of several tasks, while the target drops the connection every now and then.
#[test]
fn replayed_commands_complete_once_each() {
    const TASKS: u64 = 16;
    const ROUNDS: u64 = 30;
    for seed in 0..8 {
        let manner = Manner {
            drop_after: Some(40),
            in_capsule: if seed % 2 == 0 { 4096 } else { 0 },
            ..Manner::default()
        };
        let mut world = World::chopped(seed, manner, 3000);
        let mut options = world.options();
        options.recovery = reconnect(LostCommands::Replay {
            after: Duration::from_millis(3),
        });
        options.io_queues = 2;
        let controller = Rc::new(world.connect(options));
        let completed = Rc::new(RefCell::new(Vec::new()));
        for task in 0..TASKS {
            let queue = controller.io_queue((task % 2) as u16).unwrap();
            let buffers = world.host.buffers().clone();
            let completed = completed.clone();
            world.start(async move {
                for round in 0..ROUNDS {
                    let mut buffer = buffers.allocate(BLOCK).await;
                    buffer.bytes_mut().fill((task * 31 + round) as u8);
                    let slba = task * ROUNDS + round;
                    let data = [buffer];
                    assert_eq!(queue.write(1, slba, 1, &data, false).await, Ok(()));
                    completed.borrow_mut().push(slba);
                }
            });
        }
        world.until(|_| completed.borrow().len() == (TASKS * ROUNDS) as usize);
        let mut blocks = completed.take();
        blocks.sort_unstable();
        assert!(blocks.iter().copied().eq(0..TASKS * ROUNDS), "each once");
        for slba in 0..TASKS * ROUNDS {
            let expected = (slba / ROUNDS * 31 + slba % ROUNDS) as u8;
            assert_eq!(world.target.disk[slba as usize * BLOCK], expected);
        }
        assert!(controller.associations() > 3);
        drop(controller);
        world.until(|world| world.host.connections() == 0);
    }
}

#[test]
fn where_commands_are_not_replayed_they_fail_until_the_controller_is_back() {
    let mut world = World::new(5, Manner::default());
    let mut options = world.options();
    options.recovery = reconnect(LostCommands::Fail);
    let controller = Rc::new(world.connect(options));
    let queue = controller.io_queue(0).unwrap();
    world.target.manner.silent = true;
    let one = queue.clone();
    let out = world.start(async move { one.flush(1).await });
    world.turn();
    world.network.refuse(true);
    world.target.drop_all();
    world.until(|_| out.borrow().is_some());
    assert_eq!(
        out.take(),
        Some(Err(Error::Transport(io::ErrorKind::UnexpectedEof)))
    );
    let one = queue.clone();
    let outcome = world.run(async move { one.flush(1).await });
    assert_eq!(outcome, Err(Error::Transport(io::ErrorKind::NotConnected)));
    world.network.refuse(false);
    world.target.manner.silent = false;
    world.until(|_| controller.io_queues() == 1);
    assert_eq!(world.run(async move { queue.flush(1).await }), Ok(()));
    assert_eq!(controller.associations(), 2);
}

#[test]
fn it_gives_up_and_says_why() {
    let mut world = World::new(6, Manner::default());
    let mut options = world.options();
    options.recovery = reconnect(LostCommands::Replay {
        after: Duration::ZERO,
    });
    let controller = Rc::new(world.connect(options));
    let queue = controller.io_queue(0).unwrap();
    world.network.refuse(true);
    world.target.drop_all();
    let start = world.now;
    let outcome = world.run(async move { queue.flush(1).await });
    let refused = Error::Transport(io::ErrorKind::ConnectionRefused);
    assert_eq!(outcome, Err(refused));
    assert_eq!(controller.facts().unwrap_err(), refused);
    let waited = world.now.since(start);
    assert!(
        waited > Duration::from_millis(1900) && waited < Duration::from_millis(2100),
        "{waited:?}"
    );
}

#[test]
fn a_dropped_controller_fails_its_queues_and_frees_everything() {
    let mut world = World::new(7, Manner::default());
    let mut options = world.options();
    options.recovery = reconnect(LostCommands::Replay {
        after: Duration::ZERO,
    });
    let controller = world.connect(options);
    let queue = controller.io_queue(0).unwrap();
    world.target.manner.silent = true;
    let one = queue.clone();
    let out = world.start(async move { one.flush(1).await });
    world.turn();
    drop(controller);
    world.until(|_| out.borrow().is_some());
    assert_eq!(out.take(), Some(Err(Error::Closed)));
    assert_eq!(
        world.run(async move { queue.flush(1).await }),
        Err(Error::Closed)
    );
    world.until(|world| world.host.connections() == 0);
    // The supervising task notices at its next turn.
    world.until(|world| world.reactor.executor().live() == 0);
}

#[test]
fn a_closed_controller_leaves_no_task_behind() {
    let mut world = World::new(8, Manner::default());
    let mut options = world.options();
    options.keep_alive = Duration::from_secs(100);
    for _ in 0..3 {
        drop(world.connect(options.clone()));
        world.until(|world| world.host.connections() == 0);
    }
    let since = world.now;
    world.until(|world| world.reactor.executor().live() == 0);
    assert!(world.now.since(since) < Duration::from_secs(1));
}

#[test]
fn statuses_are_no_reason_to_send_again() {
    let error = Error::Status(Status::INTERNAL_ERROR);
    assert!(!error.is_connection_lost());
    assert!(!Error::Closed.is_connection_lost());
    assert!(Error::TimedOut.is_connection_lost());
}
