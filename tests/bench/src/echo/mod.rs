//! Owns the comparison with a bare echo of the same bytes, which is the limit that TCP over loopback
//! sets on this machine.
//!
//! The same raw host, pinned to one cpu, loads the target and the echo in turns; both run in one
//! thread pinned to another cpu, never at the same time. The target is in this process: the
//! appliance's core, transport and loop over a null disk.

pub mod bare;
mod server;
pub mod target;

use std::{net::TcpStream, time::Duration};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    host::{driver::Driver, handshake::Association},
    instructions::Counter,
    load::{LOADS, Load},
    pin::{pin, waited},
    table::{Table, command_line, median},
};
use server::{Role, Server};

/// How long a connection may take to be noticed as closed.
const SETTLE: Duration = Duration::from_millis(5);

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only the loads whose name holds this (repeatable): read-4k-qd1, write-128k-qd16, ...
    #[arg(long)]
    only: Vec<String>,
    /// Reads are completed by a response capsule of their own, as for a host that keeps the queue's
    /// flow control (Linux does so by default).
    #[arg(long)]
    flow_control: bool,
    /// The cpu of the target and of the echo.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// The cpu of the host.
    #[arg(long, default_value_t = 1)]
    host_cpu: usize,
    /// How to print the results.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Who {
    /// The bare echo that answers all that arrived together with one call.
    Echo,
    /// The bare echo that makes a call for each reply.
    SingleEcho,
    /// The target, whose null disk fills the buffers of reads with zeroes.
    Ours,
    /// The target, whose null disk leaves the buffers of reads as they are.
    OursUntouched,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    iops: f64,
    p50_us: f64,
    idle: f64,
    ios_per_send: f64,
    /// The larger part of the time in which the host or the server had to wait for its cpu.
    waited: f64,
    instructions_per_io: Option<f64>,
}

/// All measurements of one load with one kind of target, beside those of the echoes in the same
/// rounds.
#[derive(Serialize)]
struct Row {
    load: &'static str,
    who: Who,
    echo: Vec<Sample>,
    /// At a depth where it differs from the other.
    single_echo: Vec<Sample>,
    ours: Vec<Sample>,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    let loads: Vec<Load> = LOADS
        .iter()
        .filter(|load| {
            arguments.only.is_empty() || arguments.only.iter().any(|name| load.name.contains(name))
        })
        .map(|load| Load {
            flow_control: arguments.flow_control,
            ..*load
        })
        .collect();
    ensure!(!loads.is_empty(), "no load has such a name");
    ensure!(arguments.rounds > 0, "at least one round");
    let server = Server::start(arguments.server_cpu)?;
    pin(arguments.host_cpu);
    let mut rows = Vec::new();
    for load in &loads {
        rows.extend(measure(&server, load, arguments)?);
    }
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Table => print(&rows, arguments),
    }
    Ok(())
}

/// All rounds of one load. Every other round goes the other way round, so that nobody always comes
/// first.
fn measure(server: &Server, load: &Load, arguments: &Arguments) -> Result<Vec<Row>> {
    let mut order = vec![Who::Echo, Who::Ours];
    if load.depth > 1 && !load.is_fetched() {
        order.push(Who::SingleEcho);
    }
    if !load.write {
        order.push(Who::OursUntouched);
    }
    let mut samples: Vec<(Who, Sample)> = Vec::new();
    for round in 0..arguments.rounds {
        for &who in &order {
            samples.push((who, sample(server, load, who, arguments.seconds)?));
        }
        order.reverse();
        if arguments.output == Output::Table {
            eprint!(
                "\r{:<16} round {}/{}  ",
                load.name,
                round + 1,
                arguments.rounds
            );
        }
    }
    if arguments.output == Output::Table {
        eprint!("\r{:40}\r", "");
    }
    let of = |wanted| {
        let all = samples.iter().filter(|(who, _)| *who == wanted);
        all.map(|(_, sample)| *sample).collect::<Vec<_>>()
    };
    let is_ours = |who: &&Who| matches!(who, Who::Ours | Who::OursUntouched);
    let ours = order.iter().filter(is_ours);
    let mut rows: Vec<Row> = ours
        .map(|&who| Row {
            load: load.name,
            who,
            echo: of(Who::Echo),
            single_echo: of(Who::SingleEcho),
            ours: of(who),
        })
        .collect();
    rows.sort_by_key(|row| row.who == Who::OursUntouched);
    Ok(rows)
}

fn sample(server: &Server, load: &Load, who: Who, seconds: f64) -> Result<Sample> {
    let measured = Duration::from_secs_f64(seconds);
    let warm_up = measured / 4;
    let before = waited();
    let outcome = if matches!(who, Who::Echo | Who::SingleEcho) {
        server.begin(Role::Echo(*load, who == Who::Echo))?;
        let stream = TcpStream::connect(server.echo)?;
        let kept = stream.try_clone()?;
        let outcome =
            Driver::new(stream, *load, 1)?.run(warm_up, measured, |on| server.measure(on))?;
        (outcome, server.end()?, Some(kept))
    } else {
        server.begin(Role::Target)?;
        let association = Association::open(server.target, &target::nqn(), 1, 0)?;
        let entries = u16::try_from(load.depth)?.max(2);
        let queue = association.io_queue(1, entries, load.flow_control)?;
        let nsid = match who {
            Who::OursUntouched => target::NSID_UNTOUCHED,
            _ => target::NSID_ZEROES,
        };
        let outcome =
            Driver::new(queue.into_stream(), *load, nsid)?
                .run(warm_up, measured, |on| server.measure(on))?;
        drop(association);
        std::thread::sleep(SETTLE);
        (outcome, server.end()?, None)
    };
    let (outcome, report, _kept) = outcome;
    let host_waited = (waited() - before).as_secs_f64() / (measured + warm_up).as_secs_f64();
    let per_io = |count: u64| count as f64 / outcome.ios.max(1) as f64;
    Ok(Sample {
        iops: outcome.iops(),
        p50_us: outcome.p50_us(),
        idle: report.idle,
        waited: report.waited.max(host_waited),
        ios_per_send: outcome.ios as f64 / report.sends as f64,
        instructions_per_io: report.instructions.map(per_io),
    })
}

fn print(rows: &[Row], arguments: &Arguments) {
    let mut table = Table::new(&[
        "load",
        "null disk",
        "echo IOPS",
        "ours IOPS",
        "ours/echo",
        "min..max",
        "ours/single",
        "echo p50 us",
        "ours p50 us",
        "diff us",
        "echo idle",
        "ours idle",
        "echo I/O/send",
        "ours I/O/send",
    ]);
    for row in rows {
        table.row(cells(row));
    }
    println!("{}\n", command_line());
    println!(
        "{} rounds of {} s, in turns: one connection, the host on one cpu, the server on another.",
        arguments.rounds, arguments.seconds
    );
    println!(
        "echo: answers all requests that arrived together with one call; single: with a call for \
         each.\nRatios and diff (of the p50 latencies) are medians over the rounds' own pairs.\n\
         idle: the part of its time in which the server found nothing to do; where it is much, the \
         host is the limit."
    );
    println!("\n{}", table.markdown());
    let samples = rows.iter().flat_map(|row| row.echo.iter().chain(&row.ours));
    let waited = median(samples.map(|sample| sample.waited));
    println!(
        "Time in which other threads had one of the two cpus: {:.1} %.",
        100.0 * waited
    );
    if Counter::new().is_none() {
        println!("Instructions per I/O: this machine does not count them.");
    } else {
        println!("{}", instructions(rows).markdown());
    }
}

/// Instructions that the server executes in user space for one I/O.
fn instructions(rows: &[Row]) -> Table {
    let mut table = Table::new(&["load", "null disk", "echo instr/IO", "ours instr/IO"]);
    for row in rows {
        let count = |samples: &[Sample]| {
            let counts = samples.iter().filter_map(|s| s.instructions_per_io);
            format!("{:.0}", median(counts))
        };
        let (echo, ours) = (count(&row.echo), count(&row.ours));
        table.row(vec![row.load.into(), disk(row.who).into(), echo, ours]);
    }
    table
}

fn disk(who: Who) -> &'static str {
    match who {
        Who::OursUntouched => "untouched",
        _ => "zeroes",
    }
}

fn cells(row: &Row) -> Vec<String> {
    let over = |samples: &[Sample], value: fn(&Sample) -> f64| median(samples.iter().map(value));
    let ratios = |against: &[Sample]| -> Vec<f64> {
        let pairs = row.ours.iter().zip(against);
        pairs
            .map(|(ours, other)| 100.0 * ours.iops / other.iops)
            .collect()
    };
    let to_echo = ratios(&row.echo);
    let least = to_echo.iter().copied().fold(f64::INFINITY, f64::min);
    let most = to_echo.iter().copied().fold(0.0, f64::max);
    let to_single = match ratios(&row.single_echo) {
        none if none.is_empty() => "-".to_owned(),
        some => format!("{:.1} %", median(some)),
    };
    let pairs = row.ours.iter().zip(&row.echo);
    let differences = pairs.map(|(ours, echo)| ours.p50_us - echo.p50_us);
    vec![
        row.load.to_owned(),
        disk(row.who).to_owned(),
        format!("{:.0}", over(&row.echo, |s| s.iops)),
        format!("{:.0}", over(&row.ours, |s| s.iops)),
        format!("{:.1} %", median(to_echo)),
        format!("{least:.0}..{most:.0}"),
        to_single,
        format!("{:.1}", over(&row.echo, |s| s.p50_us)),
        format!("{:.1}", over(&row.ours, |s| s.p50_us)),
        format!("{:+.1}", median(differences)),
        format!("{:.0} %", 100.0 * over(&row.echo, |s| s.idle)),
        format!("{:.0} %", 100.0 * over(&row.ours, |s| s.idle)),
        format!("{:.1}", over(&row.echo, |s| s.ios_per_send)),
        format!("{:.1}", over(&row.ours, |s| s.ios_per_send)),
    ]
}
