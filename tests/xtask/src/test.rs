//! Owns `cargo xtask test`: the stages, their order, and the one count at the end.

use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::tally::Tally;
use crate::{fast, guest, machine, sim};

/// What to test.
#[derive(Args)]
pub struct Arguments {
    /// Only this stage.
    #[arg(value_enum)]
    stage: Option<Stage>,
    /// Only the tests of the stage whose name holds one of these.
    filters: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// The workspace's tests, clippy, format and house rules.
    Fast,
    /// The simulator finds each of the deliberate faults, and arrays and pools survive power cuts at
    /// every change.
    Prove,
    /// Real Linux hosts in virtual machines against the release build.
    Guest,
}

/// Runs the chosen stages.
pub fn run(arguments: &Arguments) -> Result<Tally> {
    let chosen = |stage| arguments.stage.is_none_or(|only| only == stage);
    let mut total = Tally::default();
    if chosen(Stage::Guest) {
        machine::prepare()?;
    }
    if chosen(Stage::Fast) {
        total += timed("fast", || fast::run(&arguments.filters))?;
    }
    if chosen(Stage::Prove) {
        total += timed("prove", || {
            let mut tally = sim::prove()?;
            tally += fast::sweeps()?;
            Ok(tally)
        })?;
    }
    if chosen(Stage::Guest) {
        total += timed("guest", || guest::run(&arguments.filters))?;
    }
    Ok(total)
}

fn timed(stage: &str, run: impl FnOnce() -> Result<Tally>) -> Result<Tally> {
    println!("== stage {stage}");
    let start = Instant::now();
    let tally = run()?;
    println!(
        "== stage {stage}: {tally} ({} s)\n",
        start.elapsed().as_secs()
    );
    Ok(tally)
}
