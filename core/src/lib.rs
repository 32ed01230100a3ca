//! The engine under every floor of corebay: units, time, reactors, memory, disks and the seams to
//! the machine.
//!
//! Invariants:
//! - Nothing here reads a clock, draws a random number or starts a thread of its own accord: the
//!   environment (the binary, a test, a simulator) hands these in. Several reactors can therefore
//!   share one thread.
//! - `unsafe` lives only in [`executor`], [`buffer`], [`arena`], [`dma`] and the modules that make
//!   system calls below [`disk`] and [`net`].
//! - After start, the data path allocates nothing on the heap and takes no lock.

pub mod arena;
pub mod buffer;
pub mod disk;
pub mod dma;
pub mod executor;
#[cfg(corebay_fault)]
pub mod fault;
pub mod mesh;
pub mod net;
pub mod reactor;
pub mod rng;
pub mod sync;
pub mod timer;
pub mod units;
