//! Owns measuring what one I/O costs the server's thread: the target's beside the bare echo's.
//!
//! Host and server take turns in one thread, so that neither waits for the other and each finds all
//! that there is to do; only the server's turns are measured, by the thread's own processor time.
//! That repeats well also where other programs keep the machine busy. Instructions in user space are
//! counted where the machine can; elsewhere a simulator of processors can count those of
//! [`Server::turn`]:
//!
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*Server*turn*' corebay-bench path`

use std::{
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use crate::{
    echo::{
        bare::{Answers, INCOMING_BYTES},
        target::{self, NSID_UNTOUCHED, NSID_ZEROES, Target},
    },
    host::{driver::Driver, handshake::Association},
    instructions::{Counter, cpu_time},
    load::{LOADS, Load},
    pin::pin,
    table::{Table, command_line, median},
};

/// Turns of the host without anything to do after which the server has its turn.
const IDLE_TURNS: u32 = 1;

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// I/Os of each measurement; of those longer than 4 KiB, an eighth.
    #[arg(long, default_value_t = 40_000)]
    ios: u64,
    /// Only the loads whose name holds this (repeatable): read-4k-qd128, write-4k-qd32, ...
    #[arg(long)]
    only: Vec<String>,
    /// Only the target, not the echo.
    #[arg(long)]
    target_only: bool,
    /// The cpu of both sides.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Echo,
    Ours(u32),
}

/// What one I/O took the server.
#[derive(Clone, Copy)]
struct Sample {
    who: Who,
    nanos: f64,
    instructions: Option<f64>,
}

/// The side that is measured.
enum Server<'a> {
    Echo(Answers<'a>, Vec<u8>),
    Target(&'a Target),
}

impl Server<'_> {
    /// One turn; true where there was something to do.
    #[inline(never)]
    fn turn(&mut self) -> Result<bool> {
        match self {
            Server::Echo(answers, incoming) => {
                let (received, sent) = answers.turn(incoming)?;
                Ok(received.is_some() || sent)
            }
            Server::Target(target) => Ok(target.reactor.poll_once(target.clock.now()) > 0),
        }
    }
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    pin(arguments.cpu);
    let target = Target::start()?;
    let mut counter = Counter::new();
    let mut table = Table::new(&[
        "load",
        "null disk",
        "echo ns/IO",
        "ours ns/IO",
        "diff ns",
        "echo instr/IO",
        "ours instr/IO",
    ]);
    for load in LOADS {
        let wanted = |name: &String| load.name.contains(name.as_str());
        if !arguments.only.is_empty() && !arguments.only.iter().any(wanted) {
            continue;
        }
        let mut order = vec![Who::Ours(NSID_ZEROES)];
        if !load.write {
            order.push(Who::Ours(NSID_UNTOUCHED));
        }
        if !load.is_fetched() && !arguments.target_only {
            order.push(Who::Echo);
        }
        let ios = arguments.ios / if load.bytes > 4 << 10 { 8 } else { 1 };
        let mut samples = Vec::new();
        for _ in 0..arguments.rounds {
            for &who in &order {
                samples.push(sample(&target, load, who, ios, counter.as_mut())?);
            }
            order.reverse();
        }
        for nsid in [NSID_ZEROES, NSID_UNTOUCHED] {
            if order.contains(&Who::Ours(nsid)) {
                table.row(cells(load, nsid, &samples));
            }
        }
    }
    println!("{}\n", command_line());
    println!(
        "Processor time of the server's turns alone; {} rounds of {} I/Os, medians.\n",
        arguments.rounds, arguments.ios
    );
    println!("{}", table.markdown());
    Ok(())
}

fn sample(
    target: &Target,
    load: &Load,
    who: Who,
    ios: u64,
    counter: Option<&mut Counter>,
) -> Result<Sample> {
    match who {
        Who::Echo => {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let answers = Answers::new(&stream, load, true);
            let server = Server::Echo(answers, vec![0; INCOMING_BYTES]);
            measure(server, Driver::new(client, *load, 1)?, who, ios, counter)
        }
        Who::Ours(nsid) => {
            let (association, stream) = connect(target, load)?;
            let driver = Driver::new(stream, *load, nsid)?;
            let sample = measure(Server::Target(target), driver, who, ios, counter);
            drop(association);
            while target.tcp.connection_count() > 0 {
                target.reactor.poll_once(target.clock.now());
            }
            sample
        }
    }
}

/// Connects a host by a thread of its own, as that waits while the target turns here.
fn connect(target: &Target, load: &Load) -> Result<(Association, TcpStream)> {
    let (address, entries) = (target.address, u16::try_from(load.depth)?.max(2));
    std::thread::scope(|scope| {
        let host = scope.spawn(move || {
            let association = Association::open(address, &target::nqn(), 1, 0)?;
            let queue = association.io_queue(1, entries, load.flow_control)?;
            anyhow::Ok((association, queue.into_stream()))
        });
        while !host.is_finished() {
            target.reactor.poll_once(target.clock.now());
        }
        host.join().map_err(|_| anyhow!("the host panicked"))?
    })
}

fn measure(
    mut server: Server<'_>,
    mut driver: Driver,
    who: Who,
    ios: u64,
    mut counter: Option<&mut Counter>,
) -> Result<Sample> {
    driver.start();
    let warm_up = ios / 10;
    let mut nanos = Duration::ZERO;
    let mut instructions = 0;
    let mut begun_at = None;
    let mut stuck = 0;
    while driver.completed() < warm_up + ios {
        let mut idle = 0;
        while idle < IDLE_TURNS {
            idle += u32::from(!driver.turn()?);
        }
        let measuring = driver.completed() >= warm_up;
        if measuring && begun_at.is_none() {
            begun_at = Some(driver.completed());
        }
        let count = |counter: &mut Option<&mut Counter>| counter.as_mut().and_then(|c| c.read());
        let (count_before, before) = (count(&mut counter), cpu_time());
        let mut worked = false;
        while server.turn()? {
            worked = true;
        }
        if measuring {
            nanos += cpu_time() - before;
            instructions += count(&mut counter)
                .zip(count_before)
                .map_or(0, |(a, b)| a - b);
        }
        stuck = if worked { 0 } else { stuck + 1 };
        ensure!(stuck < 1000, "neither side has anything to do");
    }
    let measured = driver.completed() - begun_at.context("nothing was measured")?;
    Ok(Sample {
        who,
        nanos: nanos.as_nanos() as f64 / measured as f64,
        instructions: counter.map(|_| instructions as f64 / measured as f64),
    })
}

fn cells(load: &Load, nsid: u32, samples: &[Sample]) -> Vec<String> {
    let of = |who: Who| samples.iter().filter(move |sample| sample.who == who);
    let nanos = |who: Who| median(of(who).map(|sample| sample.nanos));
    let instructions = |who: Who| {
        let counts: Vec<f64> = of(who).filter_map(|sample| sample.instructions).collect();
        if counts.is_empty() {
            "-".to_owned()
        } else {
            format!("{:.0}", median(counts.into_iter()))
        }
    };
    let ours = Who::Ours(nsid);
    let echoed = of(Who::Echo).next().is_some();
    let or_none = |text: String| if echoed { text } else { "-".to_owned() };
    let disk = if nsid == NSID_ZEROES {
        "zeroes"
    } else {
        "untouched"
    };
    vec![
        load.name.to_owned(),
        disk.to_owned(),
        or_none(format!("{:.0}", nanos(Who::Echo))),
        format!("{:.0}", nanos(ours)),
        or_none(format!("{:+.0}", nanos(ours) - nanos(Who::Echo))),
        instructions(Who::Echo),
        instructions(ours),
    ]
}
