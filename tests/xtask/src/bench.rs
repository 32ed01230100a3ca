//! Owns `cargo xtask bench`: builds what a benchmark needs as a release, and runs it.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::shell;

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// The benchmark.
    #[arg(value_enum)]
    benchmark: Benchmark,
    /// The benchmark's own options; `--help` names them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// The target against a bare echo of the same bytes, over loopback TCP.
    Echo,
    /// The processor time that one I/O takes the target and the bare echo, without waiting.
    Path,
    /// What an idle appliance with connected hosts costs, and its first answer after idling.
    Idle,
    /// The memory of idle connections.
    Memory,
    /// What the NVMe driver costs per I/O, beside a bare loop over the same emulated controller.
    Pcie,
    /// The arrays' kernels against those of ISA-L and of reed-solomon-erasure.
    Parity,
    /// What arrays cost beside their members' own work, and how fast they are rebuilt.
    Array,
    /// A volume against its bare disk, over memory and over arrays.
    Volume,
    /// What large pools take: memory, an import after a crash, the first I/O then.
    Scale,
    /// In a guest: corebay's own NVMe driver against the kernel's, same emulated drive.
    Drives,
    /// In a guest: corebay's arrays against Linux md, same initiator, same drives.
    ArrayGuest,
    /// In a guest: corebay against the kernel's target, same initiator, same disk.
    Guest,
}

const TARGET: &[&str] = &[
    "--release",
    "--package",
    "corebay-target",
    "--bin",
    "corebay",
];
const BENCH: &[&str] = &["--release", "--package", "corebay-bench"];
const LAB: &[&str] = &["--package", "corebay-guest", "--bin", "corebay-guest"];

/// Runs the benchmark. It fails where it could not measure, never because of what it measured.
pub fn run(arguments: &Arguments) -> ExitCode {
    match measure(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<bool> {
    let (name, builds): (_, &[&[&str]]) = match arguments.benchmark {
        Benchmark::Echo => ("echo", &[BENCH]),
        Benchmark::Path => ("path", &[BENCH]),
        Benchmark::Idle => ("idle", &[TARGET, BENCH]),
        Benchmark::Memory => ("memory", &[TARGET, BENCH]),
        Benchmark::Pcie => ("pcie", &[BENCH]),
        Benchmark::Parity => ("parity", &[BENCH]),
        Benchmark::Array => ("array", &[BENCH]),
        Benchmark::Volume => ("volume", &[BENCH]),
        Benchmark::Scale => ("scale", &[BENCH]),
        Benchmark::Drives => ("compare-drives", &[TARGET, LAB]),
        Benchmark::ArrayGuest => ("compare-arrays", &[TARGET, LAB]),
        Benchmark::Guest => ("compare", &[TARGET, LAB]),
    };
    for build in builds {
        let mut command = shell::cargo(&["build"]);
        ensure!(shell::succeeds(command.args(*build))?, "the build failed");
    }
    let folder = shell::build_folder();
    let program = match arguments.benchmark {
        Benchmark::Drives | Benchmark::ArrayGuest | Benchmark::Guest => {
            folder.join("debug/corebay-guest")
        }
        _ => folder.join("release/corebay-bench"),
    };
    let mut command = shell::command(program);
    command.arg(name);
    if builds.contains(&TARGET) {
        command.arg("--corebay").arg(folder.join("release/corebay"));
    }
    shell::succeeds(command.args(&arguments.options))
}
