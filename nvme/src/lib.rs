//! NVMe and NVMe over Fabrics for corebay: the specification's wire types in [`spec`], under
//! everything that speaks the protocol, on whichever side of it.

#![forbid(unsafe_code)]

pub mod digest;
pub mod fabrics;
pub mod spec;
