//! The appliance on the machine: opens what a configuration names, runs a reactor on each core, and
//! ends cleanly.

mod announce;
mod array_plan;
mod arrays;
mod control;
mod door;
mod drives;
mod environment;
mod health;
mod keeper;
mod kept;
mod lease;
mod making;
mod manage;
mod media;
mod naming;
mod offline;
mod openings;
mod operate;
mod pools;
mod put_off;
mod reload;
mod reserve;
mod reshape;
mod returns;
mod run;
mod spares;
mod state;
mod tend;

use std::path::Path;

use corebay_conf::Appliance;

pub use health::as_json as health_as_json;
pub use kept::ThisMachine;
pub use lease::Lease;
pub use naming::check_lent;
pub use offline::create_array as create_array_offline;
pub use pools::check_offline as check_pool;
pub use returns::Opener;
pub use state::State;

use crate::cli::Failure;

/// Serves what `appliance` says until a signal ends it; `config` is the file that says it, if one
/// does, to be read again at SIGHUP; `control` is where the control socket is.
pub fn serve(
    appliance: &Appliance,
    config: Option<&Path>,
    control: &Path,
    mut state: State,
) -> Result<(), Failure> {
    state.begins();
    let (regions, drives, memory) = run::memory(appliance, &state)?;
    let exports = media::open(appliance, drives, memory, &mut state)?;
    // Before a host can write: if this run ends without a word, the next one knows.
    state.save()?;
    run::run(appliance, (config, control), exports, regions, state)
}
