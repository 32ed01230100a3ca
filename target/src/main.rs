//! The `corebay` binary: one command line for the appliance, its checks and its tools.

#![forbid(unsafe_code)]

#[macro_use]
mod output;
mod appliance;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
