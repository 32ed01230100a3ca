//! The simulator: the real target and real hosts, on one thread, from one seed, while disks, network
//! and power fail.
//!
//! A [`world::World`] is made from a [`plan::Plan`], which a seed draws. It turns the cores of the
//! targets ([`machine`], [`node`]) and of the hosts ([`client`]) in any order, under a clock of its
//! own. The hosts send commands ([`workload`], [`admin`]); a [`model`] says for each block what a read may return. Every run
//! has a hash ([`trace`]): the same seed gives the same one.
//!
//! Invariants:
//! - Nothing here or below reads a clock, a socket, a file or ambient randomness.
//! - Several worlds, and several lives of a target, fit into one process and leave nothing behind.

pub mod admin;
pub mod beneath;
pub mod boot;
pub mod client;
pub mod content;
pub mod discover;
pub mod disk;
pub mod family;
pub mod machine;
pub mod medium;
pub mod model;
pub mod net;
pub mod node;
pub mod notice;
pub mod offer;
pub mod operator;
pub mod plan;
pub mod pool;
#[cfg(corebay_fault)]
pub mod prove;
pub mod size;
pub mod store;
pub mod tend;
pub mod trace;
pub mod twin;
pub mod workload;
pub mod world;

use std::{cell::RefCell, sync::Once};

use plan::{Plan, Script};
use trace::Trace;
use world::{Report, World};

thread_local! {
    /// The command that runs again what this thread runs, for a panic's message.
    static REPLAY: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The command that replays a seed.
#[must_use]
pub fn replay(seed: u64) -> String {
    let (build, fault) = (build(), fault());
    format!("replay: cargo xtask sim {build}--seed {seed} --trace{fault}")
}

/// The command that replays a script whose power is cut after one of its changes.
#[must_use]
pub fn replay_script(seed: u64, script: Script, cut: u64) -> String {
    let (build, fault, name) = (build(), fault(), script.name());
    format!(
        "replay: cargo xtask sim {build}--everywhere --script {name} --seed {seed} --cut {cut} --trace{fault}"
    )
}

/// What the replayed simulator is built as.
fn build() -> &'static str {
    match cfg!(debug_assertions) {
        true => "",
        false => "--fast ",
    }
}

/// The deliberate fault that is chosen.
#[cfg(corebay_fault)]
fn fault() -> String {
    let mut all = corebay_target::fault::ALL.iter();
    let chosen = all.find(|(_, fault)| corebay_target::fault::is(*fault));
    chosen.map_or_else(String::new, |(name, _)| format!(" --fault {name}"))
}

#[cfg(not(corebay_fault))]
fn fault() -> &'static str {
    ""
}

/// A panic from here on says how to come to it again, also where it ends the process.
fn announce(replay: String) {
    static HOOK: Once = Once::new();
    REPLAY.set(replay);
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            usual(panic);
            let replay = REPLAY.try_with(|replay| replay.borrow().clone());
            match replay {
                Ok(replay) if !replay.is_empty() => eprintln!("FAILED by a panic\n{replay}"),
                _ => {}
            }
        }));
    });
}

/// Runs the world of `seed`; with `print`, its trace goes to standard output.
///
/// # Errors
/// Says what went wrong.
pub fn run_seed(seed: u64, print: bool) -> Result<Report, String> {
    announce(replay(seed));
    let trace = Trace::new(print);
    let report = World::new(Plan::draw(seed), seed, &trace).and_then(World::run);
    REPLAY.set(String::new());
    report
}

/// Runs a short script once for each change that it makes on its media, and cuts the power right after
/// that change; of several in a row (`step`) only after one, from `first` on. Gives how many changes
/// there are.
///
/// # Errors
/// Says what went wrong, and after which change the power was cut.
pub fn cut_everywhere(
    seed: u64,
    script: Script,
    (first_cut, step): (u64, usize),
) -> Result<u64, String> {
    announce(replay_script(seed, script, 0));
    let first = scripted(seed, script, &Trace::new(false))?;
    let before = first.changes();
    let changes = first.run()?.changes - before;
    for cut in (first_cut..=changes).step_by(step) {
        let report = cut_once(seed, script, cut, false);
        report.map_err(|failure| {
            let replay = replay_script(seed, script, cut);
            format!("cut after change {cut} of {changes}: {failure}\n{replay}")
        })?;
    }
    Ok(changes)
}

/// Runs a short script and cuts the power after one of the changes that it makes on its media; after
/// change 0 it is not cut. With `print`, its trace goes to standard output.
///
/// # Errors
/// Says what went wrong.
pub fn cut_once(seed: u64, script: Script, cut: u64, print: bool) -> Result<Report, String> {
    announce(replay_script(seed, script, cut));
    let mut world = scripted(seed, script, &Trace::new(print))?;
    if cut > 0 {
        world.cut_after(cut);
    }
    let report = world.run();
    REPLAY.set(String::new());
    report
}

fn scripted(seed: u64, script: Script, trace: &Trace) -> Result<World, String> {
    World::new(Plan::script(seed, script), seed, trace)
}
