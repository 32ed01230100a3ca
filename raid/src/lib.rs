//! Arrays: many disks as one that outlives the loss of some of them.
//!
//! Invariants:
//! - `unsafe` lives only below [`kernels`].
#![deny(unsafe_code)]

pub mod geometry;
pub mod kernels;
