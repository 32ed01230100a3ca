//! Owns how much memory connections take: an appliance's resident memory without any, with many that
//! have only connected, and after each was once loaded to its depth.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::{
    appliance::{Appliance, Program, Resident, raise_open_files},
    host::{driver::Driver, handshake::Association},
    load::LOADS,
    pin::pin,
    table::{Table, command_line},
};

/// Entries of an I/O queue.
const ENTRIES: u16 = 128;
/// How long each queue is loaded once.
const LOADED_FOR: Duration = Duration::from_millis(2);
/// What is left to settle before memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    program: Program,
    /// Connected hosts.
    #[arg(long, default_value_t = 40)]
    hosts: u16,
    /// Connections of each host: one for its admin queue, the others for I/O queues.
    #[arg(long, default_value_t = 25)]
    connections: u16,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    raise_open_files();
    let appliance = Appliance::start(&arguments.program)?;
    pin(arguments.program.host_cpu);
    let resident = || -> Result<Resident> {
        std::thread::sleep(SETTLE);
        appliance.resident()
    };
    let none = resident()?;
    let (mut hosts, mut streams) = (Vec::new(), Vec::new());
    for host in 0..arguments.hosts {
        let association = Association::open(appliance.address, &appliance.nqn, host, 0)?;
        for qid in 1..arguments.connections {
            streams.push(association.io_queue(qid, ENTRIES, false)?.into_stream());
        }
        hosts.push(association);
    }
    let idle = resident()?;
    let mut deepest = LOADS[0];
    deepest.depth = usize::from(ENTRIES) - 1;
    for stream in &streams {
        let driver = Driver::new(stream.try_clone()?, deepest, 1)?;
        driver.run(Duration::ZERO, LOADED_FOR, |_| {})?;
    }
    let used = resident()?;
    let count = u64::from(arguments.hosts) * u64::from(arguments.connections);
    let mut table = Table::new(&[
        "appliance with",
        "own KiB",
        "buffers KiB",
        "own KiB per connection",
    ]);
    for (name, now) in [
        ("no connections".to_owned(), none),
        (format!("{count} idle connections"), idle),
        (format!("{count}, each once {} deep", deepest.depth), used),
    ] {
        let more = now.anonymous.saturating_sub(none.anonymous);
        table.row(vec![
            name,
            now.anonymous.to_string(),
            now.shared.to_string(),
            format!("{:.1}", more as f64 / count as f64),
        ]);
    }
    println!("{}\n", command_line());
    println!(
        "Resident memory: the process's own, and its buffers, which it takes all at its start. The \
         kernel's socket buffers are not counted.\n"
    );
    println!("{}", table.markdown());
    drop((streams, hosts));
    Ok(())
}
