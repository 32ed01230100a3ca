//! The fast part of the simulation: many short worlds, the same ones and fresh ones.

// Fresh seeds come from the clock, and are printed.
#![allow(clippy::disallowed_methods)]

use corebay_sim::{cut_everywhere, run_seed};

/// Worlds that run every time.
const SEEDS: u64 = 60;

/// Worlds that are new every time.
const FRESH: u64 = 12;

fn run(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        if let Err(failure) = run_seed(seed, false) {
            panic!("{failure}\nreplay: cargo xtask sim --seed {seed} --trace");
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
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let first = since.map_or(0, |since| since.as_millis() as u64);
    println!("fresh worlds from seed {first}");
    run(first..first + FRESH);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3, 5] {
        let runs = [run_seed(seed, false), run_seed(seed, false)];
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}

#[test]
fn the_power_may_fail_after_any_change() {
    for seed in 0..1 {
        let cuts = cut_everywhere(seed).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(cuts > 5, "the script changes too little");
    }
}
