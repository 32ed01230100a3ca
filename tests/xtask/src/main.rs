//! Owns the project's own commands, `cargo xtask ...`: one file for each subcommand.
//!
//! To add one: a module with its clap arguments and a `run`, a variant of [`Command`] and its arm in
//! `main`. What several share is in [`shell`] (running programs) and [`tally`] (counting results).
#![forbid(unsafe_code)]
// A developer's tool drives real processes in real time; no simulator ever runs it.
#![allow(clippy::disallowed_methods)]

mod bench;
mod fast;
mod guest;
mod machine;
mod shell;
mod sim;
mod tally;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands for working on corebay.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all tests, or one stage of them; the last line counts the results.
    Test(test::Arguments),
    /// Compare with a limit or a peer, and print a table: a benchmark, never a test.
    Bench(bench::Arguments),
    /// Run the appliance and its hosts in simulated worlds; `--help` lists how.
    Sim(sim::Arguments),
    /// Check the sources' house rules only: lengths of files and functions, forbidden words.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(arguments) => return bench::run(&arguments),
        Command::Sim(arguments) => return sim::run(&arguments),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(tally) => {
            println!("{tally}");
            if tally.failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
