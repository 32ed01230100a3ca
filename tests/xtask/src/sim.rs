//! Owns `cargo xtask sim`: builds the simulator and hands its arguments on.
//!
//! Deliberate faults need a build of their own, which lives in a folder beside the others.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{shell, tally::Tally};

/// What to simulate; `cargo xtask sim --help` lists what there is.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// The simulator's own arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
    /// Build as the product is, without assertions.
    #[arg(long)]
    fast: bool,
}

/// How many seeds' scripts are cut after every change.
const SCRIPTS: &str = "3";

/// The stage that proves that the simulator finds bugs, and cuts the power of scripts everywhere.
pub fn prove() -> Result<Tally> {
    let mut total = Tally::default();
    let everywhere = ["--everywhere", "--seed", "0", "--runs", SCRIPTS];
    for (name, arguments) in [("prove", &["--prove"][..]), ("cut everywhere", &everywhere)] {
        // The same build for both: without a chosen fault it has none.
        let mut command = simulator();
        optimized(&mut command);
        build_faults(&mut command);
        let good = shell::succeeds(command.arg("--").args(arguments))?;
        println!("{name} ... {}", if good { "ok" } else { "FAILED" });
        total += Tally::one(good);
    }
    Ok(total)
}

fn simulator() -> Command {
    shell::cargo(&["run", "--quiet", "--package", "corebay-sim"])
}

/// All of it optimized, with its assertions.
fn optimized(command: &mut Command) {
    command.args(["--profile", "sim"]);
}

fn build_faults(command: &mut Command) {
    command.env("RUSTFLAGS", "--cfg corebay_fault");
    command.env("CARGO_TARGET_DIR", shell::build_folder().join("faults"));
}

/// Runs the simulator.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut command = simulator();
    match arguments.fast {
        true => drop(command.arg("--release")),
        false => optimized(&mut command),
    }
    let faulty = |argument: &String| argument == "--prove" || argument.starts_with("--fault");
    if arguments.arguments.iter().any(faulty) {
        build_faults(&mut command);
    }
    match shell::succeeds(command.arg("--").args(&arguments.arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
