//! NVMe for corebay: the specification's wire types in [`spec`], under everything that speaks the
//! protocol, on whichever side of it: the driver of controllers on PCIe in [`pcie`], the host over
//! fabrics in [`fabrics`], and (feature `emulated`, for tests) a controller in this process's memory.
//!
//! Real devices are reached by `vfio` (feature `vfio`). `unsafe` lives there, and in the emulated
//! controller's access to memory.

#![deny(unsafe_code)]

pub mod digest;
#[cfg(feature = "emulated")]
pub mod emulated;
pub mod fabrics;
pub mod machine;
pub mod pcie;
pub mod spec;
#[cfg(feature = "vfio")]
pub mod vfio;
