//! Owns running other programs from the repository's root, and where things are.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// The repository's root folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Cargo's build folder.
pub fn build_folder() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| ".build".into()))
}

/// A command that runs in the root folder.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// The cargo that started us, with these arguments.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// Runs a command with its output on the terminal; says whether it succeeded.
pub fn succeeds(command: &mut Command) -> Result<bool> {
    let program = command.get_program().display().to_string();
    Ok(command
        .status()
        .with_context(|| format!("start {program}"))?
        .success())
}

/// Whether a command succeeds, without showing what it says.
pub fn succeeds_quietly(command: &mut Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs a command and hands over each line of its standard output as it comes.
pub fn each_line(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let program = command.get_program().display().to_string();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut output = BufReader::new(child.stdout.take().context("no output to read")?);
    let mut bytes = Vec::new();
    // Bytes, not text: a test may print anything.
    while output.read_until(b'\n', &mut bytes)? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end_matches('\n'));
        bytes.clear();
    }
    Ok(child.wait()?.success())
}
