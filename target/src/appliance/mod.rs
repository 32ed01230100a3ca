//! The appliance on the machine: opens what a configuration names, runs a reactor on each core, and
//! ends cleanly.

mod announce;
mod environment;
mod media;
mod run;
mod state;

use corebay_conf::Appliance;

pub use state::State;

use crate::cli::Failure;

/// Serves what `appliance` says until a signal ends it.
pub fn serve(appliance: &Appliance, mut state: State) -> Result<(), Failure> {
    let exports = media::open(appliance, &mut state)?;
    state.save()?;
    run::run(appliance, &exports, state)
}
