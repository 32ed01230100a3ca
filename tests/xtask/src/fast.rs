//! Owns the fast stage: the workspace's tests, the formatter, clippy and the house rules.

use std::{process::Command, time::Instant};

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

/// The programs that hold tests. No doc comment holds one, and clippy compiles the examples.
const PROGRAMS: [&str; 3] = ["--lib", "--bins", "--tests"];

/// How many of the slowest tests are named at the end.
const SLOWEST: usize = 10;

/// Builds everything with its warnings on the terminal, then runs the tests.
fn workspace_tests(filters: &[String]) -> Result<Tally> {
    let mut build = shell::cargo(&["test", "--workspace", "--no-run"]);
    if !shell::succeeds(build.args(PROGRAMS))? {
        println!("test build ... FAILED");
        return Ok(Tally::one(false));
    }
    let start = Instant::now();
    let mut command = shell::cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(PROGRAMS);
    let tally = tests(timing(&mut command).args(filters))?;
    println!(
        "the tests without their build: {} s",
        start.elapsed().as_secs()
    );
    Ok(tally)
}

/// The long stage's part: all that the tests of arrays and pools can try, where the fast stage takes a
/// sample.
pub fn sweeps() -> Result<Tally> {
    let mut command = shell::cargo(&[
        "test",
        "--no-fail-fast",
        "--test",
        "arrays",
        "--test",
        "pools",
    ]);
    command.args(["--package", "corebay-raid", "--package", "corebay-lvol"]);
    command.env("COREBAY_LONG", "1");
    tests(timing(&mut command))
}

/// Has each test's time printed, and opens the test programs' own arguments.
fn timing(command: &mut Command) -> &mut Command {
    // The toolchain's test harness tells times only where unstable options are let through. The build
    // must not see that: build scripts look for it.
    let runner = "target.'cfg(unix)'.runner=['env', 'RUSTC_BOOTSTRAP=1']";
    command.args(["--config", runner]);
    command.args(["--", "-Zunstable-options", "--report-time"])
}

fn tests(command: &mut Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut slowest = Slowest::default();
    let good = shell::each_line(command, |line| {
        if let Some(counts) = Tally::parse(line) {
            tally += counts;
        }
        // What passed is in the summary; everything else is shown.
        let passed = slowest.take(line);
        if !passed && !line.is_empty() && line != "running 0 tests" {
            println!("{line}");
        }
    })?;
    if !good && tally.failed == 0 {
        println!("a test program ended without a result ... FAILED");
        tally.failed += 1;
    }
    slowest.tell();
    Ok(tally)
}

/// The tests that took longest.
#[derive(Default)]
struct Slowest(Vec<(f64, String)>);

impl Slowest {
    /// Takes what a test program says of one test: `test NAME ... ok <0.123s>`. False where the line is
    /// no such one.
    fn take(&mut self, line: &str) -> bool {
        let named = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ok"));
        let Some((name, time)) = named else {
            return false;
        };
        let seconds = time
            .trim()
            .strip_prefix('<')
            .and_then(|time| time.strip_suffix("s>"));
        let seconds = seconds
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or(0.0);
        self.0.push((seconds, name.to_owned()));
        self.0.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.0.truncate(SLOWEST);
        true
    }

    fn tell(&self) {
        println!("the slowest tests, in seconds:");
        for (seconds, name) in &self.0 {
            println!("{seconds:8.1} {name}");
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_tests_are_kept() {
        let mut slowest = Slowest::default();
        for number in 0..30 {
            assert!(slowest.take(&format!("test a::n{number} ... ok <{number}.250s>")));
        }
        assert!(slowest.take("test b ... ok"));
        assert!(!slowest.take("test c ... FAILED <100.0s>"));
        assert!(!slowest.take("running 3 tests"));
        assert_eq!(slowest.0.len(), SLOWEST);
        assert_eq!(slowest.0[0], (29.25, "a::n29".to_owned()));
        assert_eq!(slowest.0[9], (20.25, "a::n20".to_owned()));
    }
}
