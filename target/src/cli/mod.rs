//! The command line: what can be asked of `corebay`, and who answers.
//!
//! Invariants:
//! - Results go to standard output, everything else to standard error.
//! - The exit status is 0 where what was asked for was done, 1 where it failed, 2 where the
//!   command line itself is wrong.
//! - A message of an error says what failed, where, and how to mend it.

mod address;
mod array;
mod bench;
mod check;
mod client;
mod discover;
mod doctor;
mod drives;
mod examine;
mod export;
mod failure;
mod id;
mod manual;
mod pool;
mod serve;
mod session;
mod snapshot;
mod stream;
mod table;
mod volume;

pub use client::is_looked_for;
pub use failure::Failure;
use std::{io::IsTerminal, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

/// An NVMe-oF target appliance: takes drives, files or memory, and exports them over NVMe/TCP.
#[derive(Debug, Parser)]
#[command(
    name = "corebay",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "\
Examples:
  corebay serve                          a pool with a volume, exported on 127.0.0.1:4420
  corebay volume create vm-1 --size 100GiB --export   the next volume
  corebay check /etc/corebay/corebay.toml  say every mistake in a configuration
  corebay discover 127.0.0.1             what a target offers
  corebay bench --rw read --depth 32     how fast it reads

COREBAY_LOG sets what is logged to standard error, as in COREBAY_LOG=debug.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Export disks as NVMe namespaces until interrupted
    Serve(serve::Args),
    /// Look at the arrays of a running appliance, and change them
    Array(array::Args),
    /// Print the completion script of a shell
    Completion(manual::Completion),
    /// Check a configuration file without starting anything
    Check(check::Args),
    /// Measure a target: throughput and latency, or the truth of its data
    Bench(bench::Args),
    /// Print what a discovery service offers
    Discover(discover::Args),
    /// Say what the machine lacks, and the command that mends it
    Doctor(doctor::Args),
    /// List the machine's NVMe drives, and take them from the kernel or give them back
    Drives(drives::Args),
    /// Show volumes to hosts, and take them back
    Export(export::Args),
    /// Print what a controller and its namespaces say about themselves
    Id(id::Args),
    /// Write the manual pages
    Man(manual::Man),
    /// Look at the pools of a running appliance, and change them
    Pool(pool::Args),
    /// Take snapshots of volumes, and delete them
    Snapshot(snapshot::Args),
    /// Make volumes, and change them
    Volume(volume::Args),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Serve(_)) {
        // `serve` logs as its configuration says.
        log_to_stderr();
    }
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Array(args) => array::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Completion(args) => manual::complete(&args, Cli::command()),
        Command::Bench(args) => bench::run(args),
        Command::Discover(args) => discover::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Drives(args) => drives::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Id(args) => id::run(&args),
        Command::Man(args) => manual::write(&args, Cli::command()),
        Command::Pool(args) => pool::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Volume(args) => volume::run(&args),
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("COREBAY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
