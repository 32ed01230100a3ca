//! Owns the fast stage: the workspace's tests, the formatter, clippy and the house rules.

use anyhow::Result;

use crate::tally::Tally;
use crate::{shell, tidy};

/// Runs the stage; with filters only the workspace's tests whose name holds one of them.
pub fn run(filters: &[String]) -> Result<Tally> {
    let mut tally = workspace_tests(filters)?;
    if filters.is_empty() {
        tally += check(
            "format",
            &["fmt", "--version"],
            &["fmt", "--all", "--check"],
        )?;
        tally += check(
            "clippy",
            &["clippy", "--version"],
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ],
        )?;
        tally += tidy::run()?;
    }
    Ok(tally)
}

/// Builds everything with its warnings on the terminal, then runs the tests.
fn workspace_tests(filters: &[String]) -> Result<Tally> {
    if !shell::succeeds(&mut shell::cargo(&["test", "--workspace", "--no-run"]))? {
        println!("test build ... FAILED");
        return Ok(Tally::one(false));
    }
    let mut tally = Tally::default();
    let mut command = shell::cargo(&["test", "--workspace", "--no-fail-fast", "--"]);
    let good = shell::each_line(command.args(filters), |line| {
        if let Some(counts) = Tally::parse(line) {
            tally += counts;
        }
        // What passed is in the summary; everything else is shown.
        let passed = line.starts_with("test ") && line.ends_with(" ... ok");
        if !passed && !line.is_empty() && line != "running 0 tests" {
            println!("{line}");
        }
    })?;
    if !good && tally.failed == 0 {
        println!("a test program ended without a result ... FAILED");
        tally.failed += 1;
    }
    Ok(tally)
}

/// One check by a tool of the toolchain; skipped where the toolchain lacks it.
fn check(name: &str, probe: &[&str], arguments: &[&str]) -> Result<Tally> {
    if !shell::succeeds_quietly(&mut shell::cargo(probe)) {
        println!(
            "{name} ... skipped: the toolchain has no `cargo {}`",
            probe[0]
        );
        return Ok(Tally {
            skipped: 1,
            ..Tally::default()
        });
    }
    let good = shell::succeeds(&mut shell::cargo(arguments))?;
    println!("{name} ... {}", if good { "ok" } else { "FAILED" });
    Ok(Tally::one(good))
}
