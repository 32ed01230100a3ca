//! The simulator's command line, behind `cargo xtask sim`.

// A developer's tool measures how fast the simulator is.
#![allow(clippy::disallowed_methods)]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use corebay_sim::{
    cut_everywhere, cut_once,
    plan::{Plan, Script},
    replay, replay_script, run_seed,
};

/// Runs the appliance and its hosts in simulated worlds.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Cli {
    /// The world to run, or the first of several.
    #[arg(long)]
    seed: Option<u64>,
    /// How many worlds to run, with one seed after the other.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
    /// Print what the world is made of.
    #[arg(long)]
    plan: bool,
    /// Cut the power of short scripts after every single change of their media, for each seed.
    #[arg(long)]
    everywhere: bool,
    /// Only the scripts that work on this.
    #[arg(long, value_parser = script_of)]
    script: Option<Script>,
    /// Cut the power of scripts after this change alone; after change 0 it is not cut.
    #[arg(long, requires = "everywhere")]
    cut: Option<u64>,
    /// Show that every deliberate fault in the target is found; needs `--cfg corebay_fault`.
    #[arg(long)]
    prove: bool,
    /// Run with this deliberate fault in the target; needs `--cfg corebay_fault`.
    #[arg(long)]
    fault: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Only where no seed is given: each run is then a fresh one.
    let first = cli.seed.unwrap_or_else(|| {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since.map_or(0, |since| since.subsec_nanos().into())
    });
    if cli.prove || cli.fault.is_some() {
        match deliberate(&cli) {
            Ok(true) => return ExitCode::SUCCESS,
            Ok(false) => {}
            Err(what) => {
                eprintln!("error: {what}");
                return ExitCode::FAILURE;
            }
        }
    }
    if cli.everywhere {
        return everywhere(first, &cli);
    }
    let start = Instant::now();
    let mut simulated = Duration::ZERO;
    let mut commands = 0;
    for seed in first..first + cli.runs {
        if cli.plan {
            println!("{:#?}", Plan::draw(seed));
        }
        match run_seed(seed, cli.trace) {
            Ok(report) => {
                simulated += report.simulated;
                commands += report.commands;
                println!("seed {seed}: trace hash {:016x}", report.hash);
                if cli.runs == 1 {
                    println!("{report:?}");
                }
            }
            Err(failure) => {
                println!("seed {seed} FAILED: {failure}");
                println!("{}", replay(seed));
                return ExitCode::FAILURE;
            }
        }
    }
    let real = start.elapsed().as_secs_f64();
    println!(
        "{} worlds from seed {first}: {:.0} a minute, {commands} commands, {:.1} s simulated, {:.0} times \
         faster than real",
        cli.runs,
        cli.runs as f64 * 60.0 / real,
        simulated.as_secs_f64(),
        simulated.as_secs_f64() / real,
    );
    ExitCode::SUCCESS
}

fn script_of(name: &str) -> Result<Script, String> {
    let found = Script::ALL.into_iter().find(|script| script.name() == name);
    found.ok_or_else(|| format!("scripts work on {:?}", Script::ALL.map(Script::name)))
}

/// Cuts the power at every point of the scripts of these seeds.
fn everywhere(first: u64, cli: &Cli) -> ExitCode {
    let chosen = |script: &Script| cli.script.is_none_or(|only| only == *script);
    for seed in first..first + cli.runs {
        for script in Script::ALL.into_iter().filter(chosen) {
            let name = script.name();
            let outcome = match cli.cut {
                Some(cut) => cut_once(seed, script, cut, cli.trace)
                    .map(|report| format!("{report:?}"))
                    .map_err(|failure| format!("{failure}\n{}", replay_script(seed, script, cut))),
                None => cut_everywhere(seed, script, (1, 1))
                    .map(|cuts| format!("good after each of {cuts} power cuts")),
            };
            match outcome {
                Ok(good) => println!("script {seed}, {name}: {good}"),
                Err(failure) => {
                    println!("script {seed}, {name} FAILED: {failure}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

/// Proves that faults are found (true), or chooses one for the runs to come (false).
#[cfg(corebay_fault)]
fn deliberate(cli: &Cli) -> Result<bool, String> {
    use corebay_target::fault::{ALL, choose};
    let Some(wanted) = &cli.fault else {
        return match corebay_sim::prove::run() {
            0 => Ok(true),
            missed => Err(format!("{missed} faults were not found")),
        };
    };
    let found = ALL.iter().find(|(name, _)| name == wanted);
    let (_, fault) = found.ok_or_else(|| format!("faults are {:?}", ALL.map(|(name, _)| name)))?;
    choose(Some(*fault));
    Ok(false)
}

#[cfg(not(corebay_fault))]
fn deliberate(_: &Cli) -> Result<bool, String> {
    Err("this build has no faults to choose: start it with `cargo xtask sim`".into())
}
