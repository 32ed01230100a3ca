//! The command line of the lab: run the guest tests, one script in a guest, or the comparison.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use corebay_guest::apt::PackagesUnavailable;
use corebay_guest::guest::Guest;
use corebay_guest::image::Image;
use corebay_guest::suite::{self, Peer, Tally};
use corebay_guest::{compare, compare_arrays, compare_drives, machine};

/// Real Linux hosts in small virtual machines, against corebay.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Do,
}

#[derive(Subcommand)]
enum Do {
    /// Run the guest tests; the last line says how many passed, failed and were skipped.
    Test {
        /// Which target they run against.
        #[arg(long, value_enum, default_value_t = Against::Corebay)]
        target: Against,
        /// The corebay program.
        #[arg(long, default_value = ".build/release/corebay")]
        corebay: PathBuf,
        /// Only name the tests.
        #[arg(long)]
        list: bool,
        /// Run the tests whose name holds one of these.
        filters: Vec<String>,
    },
    /// Measure corebay against the kernel's own target, both inside one guest.
    Compare {
        /// The corebay program.
        #[arg(long, default_value = ".build/release/corebay")]
        corebay: PathBuf,
        /// How often each load runs on each target; the median counts.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// How long each load runs.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Measure corebay's own NVMe driver against the kernel's, on the same emulated drive.
    CompareDrives {
        /// The corebay program.
        #[arg(long, default_value = ".build/release/corebay")]
        corebay: PathBuf,
        /// How often each load runs on each driver; the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// How long each load runs.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// Measure corebay's arrays against Linux md, both inside one guest on the same drives.
    CompareArrays {
        /// The corebay program.
        #[arg(long, default_value = ".build/release/corebay")]
        corebay: PathBuf,
        /// How often each load runs on each array; the median counts.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// How long each load runs.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Boot a guest, run a bash script in it and print what it says.
    Exec {
        /// The script; it finds the files given with --share in /share.
        script: String,
        /// A file to copy into the guest's /share.
        #[arg(long)]
        share: Vec<PathBuf>,
        /// How long the script may take.
        #[arg(long, default_value_t = 600)]
        limit_s: u64,
    },
    /// Make the guest image, or say where it is.
    Image,
}

#[derive(Clone, Copy, ValueEnum)]
enum Against {
    /// A corebay process on this machine.
    Corebay,
    /// The kernel's own target in the guest: a check of the lab itself.
    Nvmet,
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    match Cli::parse().command {
        Do::Test {
            target,
            corebay,
            list,
            filters,
        } => {
            let peer = match target {
                Against::Corebay => Peer::Corebay(corebay),
                Against::Nvmet => Peer::Nvmet,
            };
            if list {
                for (group, cases) in suite::selection(&filters, &peer) {
                    cases
                        .iter()
                        .for_each(|case| println!("{}::{}", group.name, case.name));
                }
                return Ok(ExitCode::SUCCESS);
            }
            test(&peer, &filters)
        }
        Do::Compare {
            corebay,
            rounds,
            seconds,
        } => {
            let image = Image::prepare(&Image::cache())?;
            print!(
                "{}",
                compare::table(&compare::run(&image, &corebay, rounds.max(1), seconds)?)
            );
            Ok(ExitCode::SUCCESS)
        }
        Do::CompareDrives {
            corebay,
            rounds,
            seconds,
        } => {
            let image = Image::prepare(&Image::cache())?;
            let table = compare_drives::run(&image, &corebay, rounds.max(1), seconds)?;
            print!("{table}");
            Ok(ExitCode::SUCCESS)
        }
        Do::CompareArrays {
            corebay,
            rounds,
            seconds,
        } => {
            let image = Image::prepare(&Image::cache())?;
            compare_arrays::run(&image, &corebay, rounds.max(1), seconds)?;
            Ok(ExitCode::SUCCESS)
        }
        Do::Exec {
            script,
            share,
            limit_s,
        } => {
            let image = Image::prepare(&Image::cache())?;
            let guest = Guest::boot(&image, machine::loopback())?;
            for file in share {
                let name = file.file_name().context("a shared file has a name")?;
                std::fs::copy(&file, guest.share().join(name))?;
            }
            let output = guest.attempt(&script, Duration::from_secs(limit_s))?;
            print!("{}", output.said());
            Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)))
        }
        Do::Image => {
            println!("{:#?}", Image::prepare(&Image::cache())?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn test(peer: &Peer, filters: &[String]) -> Result<ExitCode> {
    let skip = |why: String| {
        let count: usize = suite::selection(filters, peer)
            .iter()
            .map(|(_, c)| c.len())
            .sum();
        println!("guest stage skipped: {why}");
        Tally {
            skipped: u32::try_from(count).unwrap_or(u32::MAX),
            ..Tally::default()
        }
    };
    let tally = match machine::obstacle() {
        Some(why) => skip(why),
        None => match Image::prepare(&Image::cache()) {
            Ok(image) => suite::run(&image, peer, filters),
            Err(error) if error.is::<PackagesUnavailable>() => skip(format!("{error:#}")),
            Err(error) => return Err(error),
        },
    };
    let Tally {
        passed,
        failed,
        skipped,
    } = tally;
    println!("guest result: {passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
