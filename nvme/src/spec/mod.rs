//! The NVMe specification's wire types, opcodes, status codes and bit fields, and nothing else.
//!
//! Every structure lies in memory as it lies on the wire: little-endian, without padding, its size
//! asserted at compile time, its fields under the specification's own lower-case names. A value the
//! specification doesn't define is carried or reported, never a panic.
//!
//! The references are to NVM Express Base Specification 2.1 ("Base"), NVM Command Set
//! Specification 1.1 ("NVM") and NVMe over TCP Transport Specification 1.1 ("TCP").

pub mod ascii;
pub mod command;
pub mod completion;
pub mod event;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod nqn;
pub mod property;
pub mod sgl;
pub mod status;
pub mod tcp;
