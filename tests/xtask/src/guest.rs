//! Owns the guest stage: the release build of corebay under the hosts of the lab.

use anyhow::{Context, Result};

use crate::shell;
use crate::tally::Tally;

/// Builds corebay and runs the guest tests whose name holds one of the filters; none means all.
pub fn run(filters: &[String]) -> Result<Tally> {
    let target = [
        "build",
        "--release",
        "--package",
        "corebay-target",
        "--bin",
        "corebay",
    ];
    let lab = [
        "build",
        "--package",
        "corebay-guest",
        "--bin",
        "corebay-guest",
    ];
    for build in [&target[..], &lab] {
        if !shell::succeeds(&mut shell::cargo(build))? {
            println!("build for the guest stage ... FAILED");
            return Ok(Tally::one(false));
        }
    }
    let folder = shell::build_folder();
    let mut command = shell::command(folder.join("debug/corebay-guest"));
    command
        .args(["test", "--corebay"])
        .arg(folder.join("release/corebay"))
        .args(filters);
    let mut tally = None;
    let good = shell::each_line(&mut command, |line| {
        println!("{line}");
        tally = Tally::parse(line).or(tally);
    })?;
    let mut tally = tally.context("the guest tests ended without a result")?;
    if !good && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}
