//! The NVMe-oF target: subsystems, controllers and namespaces, and the transports that hosts reach
//! them over.
//!
//! Everything here is generic over an [`environment::Environment`], which says what network, disks
//! and clock there are: the binary puts the machine's in, a simulator its own. Only the binary names
//! concrete disks.
//!
//! Invariants:
//! - A queue pair lives on one core from connect to disconnect, and an I/O never leaves it.
//! - Whatever a host sends is an allegation until it is parsed; nothing it sends panics, and nothing
//!   it withholds blocks another host.
//! - Every command accepted ends exactly once: with a completion, or with its connection.

pub mod admin;
pub mod controller;
pub mod core;
pub mod discovery;
pub mod environment;
pub mod fabrics;
#[cfg(corebay_fault)]
pub use corebay_core::fault;
pub mod feature;
pub mod io;
pub mod lifecycle;
pub mod limits;
mod lost;
pub mod memory;
pub mod namespace;
pub mod pace;
pub mod queue;
pub mod subsystem;
pub mod tcp;
