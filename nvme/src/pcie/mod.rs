//! The driver of NVMe controllers on PCIe, in user space: polled, without system calls, locks or
//! heap allocations per I/O.
//!
//! A [`Controller`] lives on the core that keeps it: it brings the device up, watches it and resets
//! it. The [`Drive`] that comes of it is shared by all cores; each opens a [`Queue`] of its own, and
//! by it an [`NvmeDisk`] for each namespace. Everything reaches the device by the seam in
//! [`device`]: the same driver runs over VFIO and over the emulated controller.
//!
//! Invariants:
//! - No `unsafe` here: memory that the device shares is touched by atomics
//!   ([`DmaRegion`](corebay_core::dma::DmaRegion)), payload not at all.
//! - What registers, completions and Identify data say is an allegation: it is parsed into types that
//!   are in range, or the drive is refused, reset or given up. It never makes the driver panic, loop
//!   without end or wait without bound.
//! - Every command in flight ends exactly once.

#![forbid(unsafe_code)]

mod admin;
mod bring_up;
mod controller;
pub mod device;
mod disk;
mod error;
mod health;
mod info;
mod operation;
mod options;
mod pointer;
mod queue;
mod ring;
mod shared;

pub use controller::Controller;
pub use device::{DeviceError, DmaWindow, DmaWindows, PciDevice, PciFacts, Registers};
pub use disk::NvmeDisk;
pub use error::{AdminError, BringUpError};
pub use health::{DriveReport, FirmwareSlots, Health};
pub use info::{ControllerInfo, Namespace, NamespaceInfo, Refusal};
pub use options::{DriverOptions, QueueCounters};
pub use queue::Queue;
pub use shared::Drive;
