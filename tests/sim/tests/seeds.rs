//! The fast part of the simulation: many short worlds, the same ones and fresh ones.

// Fresh seeds come from the clock, and are printed.
#![allow(clippy::disallowed_methods)]

use std::io::Write;

use corebay_sim::{cut_everywhere, plan::Script, replay, run_seed};

/// Worlds that run every time.
const SEEDS: u64 = 240;

/// Worlds that are new every time.
const FRESH: u64 = 60;

/// Of the pool's script, the power is cut after one of so many changes.
const POOL_STEP: u64 = 11;

/// A number that is new every time.
fn now() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.map_or(0, |since| since.as_millis() as u64)
}

fn run(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        if let Err(failure) = run_seed(seed, false) {
            panic!("{failure}\n{}", replay(seed));
        }
    }
}

#[test]
fn the_first_half_of_the_known_worlds() {
    run(0..SEEDS / 2);
}

#[test]
fn the_second_half_of_the_known_worlds() {
    run(SEEDS / 2..SEEDS);
}

#[test]
fn fresh_worlds() {
    let first = now();
    // Past the test harness, which keeps what a test that passes prints.
    let last = first + FRESH - 1;
    let told = writeln!(std::io::stderr(), "fresh worlds: seeds {first} to {last}");
    assert!(told.is_ok());
    run(first..first + FRESH);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..12 {
        let runs = [run_seed(seed, false), run_seed(seed, false)];
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}

#[test]
fn the_power_may_fail_after_any_change() {
    let drawn = now();
    for script in Script::ALL {
        // A pool changes its disk more often than there is time for here: others of its changes each time.
        // Of an array's levels, one.
        let (seed, cuts) = match script {
            Script::Pool => (0, (1 + drawn % POOL_STEP, POOL_STEP as usize)),
            Script::Array => (drawn % 4, (1, 1)),
            Script::Disk => (0, (1, 1)),
        };
        let cuts = cut_everywhere(seed, script, cuts).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(
            cuts > 5,
            "the script on a {} changes too little",
            script.name()
        );
    }
}
