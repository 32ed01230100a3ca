//! The proof that the simulator finds bugs: the product with one deliberate fault after the other.
//!
//! Exists only in builds with `--cfg corebay_fault`, as the faults do.

use std::panic::catch_unwind;

use corebay_target::fault::{ALL, Fault, choose};

use crate::{cut_everywhere, plan::Script, run_seed};

/// The seeds within which each fault is found: about three times the first that was measured to find
/// it, and no fewer than 40.
fn seeds_max(fault: Fault) -> u64 {
    match fault {
        Fault::FuaIgnored
        | Fault::CompletionLost
        | Fault::ScratchLeaked
        | Fault::FusedUnlocked
        | Fault::EdgeForgotten
        | Fault::QueuesOutliveReset
        | Fault::AckBeforeWrite => 40,
        Fault::FlushSkipped => 50,
        Fault::WrongFlush | Fault::CacheOffIgnored | Fault::CopyUngated => 70,
        Fault::ArrayJournalSkipped | Fault::ArrayJournalCached => 85,
        Fault::FusedLocksOneCore | Fault::FormerNotAwaited => 110,
        Fault::PoolSuperblockEarly | Fault::PoolDataUnflushed => 260,
        Fault::ArrayUnmarksEarly | Fault::DriverForgetsReset | Fault::PoolLooksNotAwaited => 320,
        // Scripts, each cut after every change.
        Fault::PoolJournalCached => 3,
    }
}

/// Looks for each fault, and prints what it found; how many it did not find.
#[must_use]
pub fn run() -> usize {
    let mut missed = 0;
    for (name, fault) in ALL {
        choose(Some(fault));
        let most = seeds_max(fault);
        let found = (0..most).find_map(|seed| Some((seed, failure(fault, seed)?)));
        match found {
            Some((seed, _)) if fails_also_without(fault, seed) => {
                missed += 1;
                println!("{name}: seed {seed} fails also WITHOUT the fault");
            }
            Some((seed, failure)) => {
                let line = failure.lines().next().unwrap_or_default();
                let short: String = line.chars().take(160).collect();
                println!("{name}: found with seed {seed} (of at most {most}): {short}");
            }
            None => {
                missed += 1;
                println!("{name}: NOT FOUND within {most} seeds");
            }
        }
    }
    choose(None);
    missed
}

/// A world that fails by itself proves nothing.
fn fails_also_without(fault: Fault, seed: u64) -> bool {
    choose(None);
    failure(fault, seed).is_some()
}

fn failure(fault: Fault, seed: u64) -> Option<String> {
    let run = || match fault {
        // Only the last batch before a cut is lost: a script is cut after each.
        Fault::PoolJournalCached => cut_everywhere(seed, Script::Pool, (1, 1)).map(drop),
        _ => run_seed(seed, false).map(drop),
    };
    match catch_unwind(run) {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(_) => Some("a panic".into()),
    }
}
