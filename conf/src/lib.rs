//! The configuration of a corebay appliance: a TOML file, or the options of the command line,
//! parsed once into an [`Appliance`] that cannot be wrong.
#![forbid(unsafe_code)]

pub mod appliance;
pub mod disk_spec;
pub mod limits;
pub mod nqn;
mod suggest;
pub mod units;

pub use appliance::{Appliance, BlockSize};
pub use disk_spec::{DiskSpec, DiskSpecKind};
pub use nqn::Nqn;
pub use units::{Size, TimeSpan};
