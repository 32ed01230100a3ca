//! Owns `cargo xtask sim`: builds the simulator and hands its arguments on.
//!
//! Deliberate faults need a build of their own, which lives in a folder beside the others.

use std::process::ExitCode;

use clap::Args;

use crate::shell;

/// What to simulate; `cargo xtask sim --help` lists what there is.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// The simulator's own arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
    /// Build with all optimizations: for long runs.
    #[arg(long)]
    fast: bool,
}

/// Runs the simulator.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut command = shell::cargo(&["run", "--quiet", "--package", "corebay-sim"]);
    if arguments.fast {
        command.arg("--release");
    }
    let faulty = |argument: &String| argument == "--prove" || argument.starts_with("--fault");
    if arguments.arguments.iter().any(faulty) {
        command.env("RUSTFLAGS", "--cfg corebay_fault");
        command.env("CARGO_TARGET_DIR", shell::build_folder().join("faults"));
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
