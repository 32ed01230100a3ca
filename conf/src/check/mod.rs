//! From [`RawAppliance`] to [`Appliance`]: what needs two values, or the machine, to be judged.
//!
//! Invariant: every `None` here comes with an error that was pushed, here or when it was read.

mod arrays;
mod disks;
mod listeners;
mod pools;
mod stores;
mod subsystems;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::appliance::{Appliance, Reactor};
use crate::diagnostic::{Draft, Sink};
use crate::limits;
use crate::machine::{CoreState, Machine, PathState};
use crate::reader::At;
use crate::schema::{RawAppliance, RawReactor};
use crate::units::Size;

/// The appliance, unless something is wrong with it; all that is wrong is pushed.
pub(crate) fn check(
    raw: RawAppliance,
    machine: &dyn Machine,
    sink: &mut Sink,
) -> Option<Appliance> {
    let reactor = reactor(&raw.reactor, machine, sink);
    data_dir(&raw, machine, sink);
    let listeners = listeners::check(&raw, machine, sink);
    let disks = disks::check(&raw, machine, sink);
    let (arrays, mut owners) = arrays::check(&raw, disks.as_deref(), machine, sink);
    let pools = pools::check(&raw, &mut owners, sink);
    let subsystems = subsystems::check(&raw, &owners, sink);
    let referrals = listeners::check_referrals(&raw, sink);
    let (subsystems, volumes) = subsystems?;
    Some(Appliance {
        data_dir: raw.data_dir.value,
        reactor,
        tcp: raw.tcp,
        listeners: listeners?,
        disks: disks?,
        arrays: arrays?,
        pools: pools?,
        volumes,
        subsystems,
        referrals: referrals?,
        log: raw.log,
    })
}

fn reactor(raw: &RawReactor, machine: &dyn Machine, sink: &mut Sink) -> Reactor {
    let mut seen: HashMap<u32, &At<u32>> = HashMap::new();
    for core in &raw.cores {
        if let Some(first) = seen.insert(core.value, core) {
            let draft = Draft::error(format!("core {} is named twice", core.value))
                .at(core.span, "again here");
            sink.push(
                draft
                    .and_at(first.span, "first here")
                    .help("a reactor has a core of its own"),
            );
            continue;
        }
        let draft = match machine.core(core.value) {
            CoreState::Usable => continue,
            CoreState::Absent => Draft::error(format!("this machine has no core {}", core.value)),
            CoreState::NotAllowed => {
                Draft::error(format!("this process may not run on core {}", core.value))
            }
        };
        let help = format!("the cores that it may use are {}", machine.usable_cores());
        sink.push(draft.at(core.span, "").help(help));
    }
    memory(raw, machine, sink);
    let cores = match raw.cores.is_empty() {
        true => vec![machine.first_core().unwrap_or(0)],
        false => raw.cores.iter().map(|core| core.value).collect(),
    };
    Reactor {
        cores,
        memory: raw.memory.value,
        array_memory: array_memory(raw, sink),
        hugepages: raw.hugepages,
        idle_sleep: raw.idle_sleep,
    }
}

fn memory(raw: &RawReactor, machine: &dyn Machine, sink: &mut Sink) {
    let cores = raw.cores.len().clamp(1, limits::CORES_MAX) as u64;
    let least = limits::MEMORY_PER_CORE_MIN.times(cores);
    let memory = &raw.memory;
    if memory.value < least {
        let message = format!("{} is too little memory for {cores} cores", memory.value);
        let draft = Draft::error(message).at(memory.span, format!("expected at least {least}"));
        sink.push(draft.help(format!("each core needs {}", limits::MEMORY_PER_CORE_MIN)));
    }
    if let Some(there) = machine.memory_bytes()
        && memory.value.bytes() > there
    {
        let message = format!("this machine does not have {} of memory", memory.value);
        sink.push(Draft::error(message).at(memory.span, format!("it has {}", roughly(there))));
    }
}

/// What is left of the memory for arrays to come: an eighth, unless something else is said.
fn array_memory(raw: &RawReactor, sink: &mut Sink) -> Size {
    let cores = raw.cores.len().clamp(1, limits::CORES_MAX) as u64;
    let least = limits::MEMORY_PER_CORE_MIN.times(cores);
    let most = raw.memory.value.bytes().saturating_sub(least.bytes());
    let Some(said) = &raw.array_memory else {
        return Size::from_bytes((raw.memory.value.bytes() / 8).min(most));
    };
    if said.value.bytes() > most {
        let message = format!("{} for arrays leave too little for the cores", said.value);
        let label = format!("expected at most {}", Size::from_bytes(most));
        let draft = Draft::error(message).at(said.span, label);
        sink.push(draft.help(format!(
            "it is a part of `memory`, of which each core needs {}",
            limits::MEMORY_PER_CORE_MIN
        )));
    }
    said.value
}

fn data_dir(raw: &RawAppliance, machine: &dyn Machine, sink: &mut Sink) {
    let shown = raw.data_dir.value.display();
    let draft = match machine.path(&raw.data_dir.value) {
        PathState::Folder | PathState::Missing | PathState::MissingFolder => return,
        PathState::Unreadable(why) => Draft::error(format!("`{shown}` cannot be used: {why}")),
        PathState::File { .. } | PathState::BlockDevice { .. } | PathState::Other(_) => {
            Draft::error(format!("`{shown}` is not a folder"))
        }
    };
    let help = "say data_dir = \"...\" with a folder that the appliance may write to";
    sink.push(draft.at(raw.data_dir.span, "expected a folder").help(help));
}

/// Where the file of a disk is, that may be named relative to the folder of disks.
pub(crate) fn disk_path(disk_dir: &Path, path: &Path) -> PathBuf {
    disks::normal(&disk_dir.join(path))
}

/// A number of bytes as people say it: "62.6GiB".
fn roughly(bytes: u64) -> String {
    let gib = Size::GIB.bytes();
    match bytes / gib {
        0 => format!("{}MiB", bytes / Size::MIB.bytes()),
        whole => format!("{whole}.{}GiB", (bytes % gib) * 10 / gib),
    }
}
