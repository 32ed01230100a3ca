//! Arrays: many disks as one that outlives the loss of some of them.
//!
//! An array is [assembled](assemble::assemble) of its members on one core, and then
//! [opened](array::Array::open) on every core that uses it. `FORMAT.md` maps what lies on the members.
//!
//! Invariants:
//! - `unsafe` lives only below [`kernels`].
#![deny(unsafe_code)]

pub mod array;
pub mod assemble;
#[cfg(test)]
mod bed;
mod control;
pub mod create;
mod dirty;
mod engine;
pub mod geometry;
mod journal;
pub mod kernels;
mod lock;
mod merge;
mod pace;
mod read;
mod recovery;
pub mod reshape;
mod shared;
pub mod state;
mod stripe;
pub mod superblock;
pub mod sweep;
mod torn;
mod watch;
mod write;
pub mod zone;

pub use shared::Counters;
pub use watch::{Patience, SlowMembers, within};
