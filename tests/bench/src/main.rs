//! Owns the benchmarks: each compares corebay with a limit or with a peer, side by side in one run,
//! and prints a table together with the command that made it.
//!
//! No benchmark is a test: nothing here fails because a machine is slow. Machines differ and are
//! noisy, so what is compared runs in turns, and ratios are what counts.
//!
//! - [`echo`]: the target against a bare echo of the same bytes, over loopback TCP.
//! - [`idle`]: what an appliance costs while nothing is asked of it, and its first answer then.
//! - [`memory`]: what a connection takes.
//! - [`path`]: what an I/O costs the server's thread, the target's beside the echo's.
//! - [`pcie`]: what the NVMe driver costs, beside a bare loop over the same emulated controller.
//! - [`parity`]: the arrays' kernels against ISA-L and reed-solomon-erasure.
//! - [`array`]: what arrays cost beside their members' own work, and how fast they are rebuilt.
//! - [`volume`]: what a volume costs over its bare disk.
//! - [`scale`]: what large pools take.
//! - [`host`]: the raw host that loads either, and that holds idle connections.
#![deny(unsafe_code)]
// A benchmark owns its clock and its threads; no simulator ever runs it.
#![allow(clippy::disallowed_methods)]

mod appliance;
mod array;
mod echo;
mod host;
mod idle;
mod instructions;
mod load;
mod memory;
mod parity;
mod path;
mod pcie;
mod pin;
mod scale;
mod table;
mod volume;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benchmarks of corebay, each against a limit or a peer.
#[derive(Parser)]
#[command(name = "corebay-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The target over a null disk against a bare echo of the same bytes, over loopback TCP.
    Echo(echo::Arguments),
    /// An idle appliance with connected hosts: its processor time, and its first answer.
    Idle(idle::Arguments),
    /// The memory of an appliance with many connections that do nothing.
    Memory(memory::Arguments),
    /// The processor time that one I/O takes the target and the bare echo.
    Path(path::Arguments),
    /// What the NVMe driver costs, beside a bare loop over the same emulated controller.
    Pcie(pcie::Arguments),
    /// The arrays' kernels against those of ISA-L and of reed-solomon-erasure.
    Parity(parity::Arguments),
    /// What arrays cost beside their members' own work, and how fast they are rebuilt.
    Array(array::Arguments),
    /// A volume against its bare disk: overwrites, reads, first writes, snapshots.
    Volume(volume::Arguments),
    /// What large pools take: memory, an import after a crash, the first I/O then.
    Scale(scale::Arguments),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Echo(arguments) => echo::run(&arguments),
        Command::Idle(arguments) => idle::run(&arguments),
        Command::Memory(arguments) => memory::run(&arguments),
        Command::Path(arguments) => path::run(&arguments),
        Command::Pcie(arguments) => pcie::run(&arguments),
        Command::Parity(arguments) => parity::run(&arguments),
        Command::Array(arguments) => array::run(&arguments),
        Command::Volume(arguments) => volume::run(&arguments),
        Command::Scale(arguments) => scale::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
