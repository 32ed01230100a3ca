//! The lab: real Linux hosts in small virtual machines, and the tests that they run against corebay.
//!
//! A guest is Debian's generic kernel under QEMU's software emulation, with the kernel's own NVMe/TCP
//! initiator, `nvme-cli`, `fio` and the file system tools. It needs neither root nor KVM.
//!
//! - [`image`] makes the kernel, the initramfs and the guest root from Debian packages, once.
//! - [`guest`] boots it and runs scripts in it; [`initiator`] is what a host administrator does there.
//! - [`corebay`] is the target process on the machine itself, [`nvmet`] the kernel's own target inside
//!   the guest: the peer to compare with, and the check that the lab itself is sound.
//! - [`hardware`] is a guest with an IOMMU and NVMe drives, [`monitor`] takes drives out of it, and
//!   [`inside`] is corebay within it, over those drives.
//! - [`suite`] runs the named tests of [`cases`].
#![forbid(unsafe_code)]
// These tools drive real processes in real time; no simulator ever runs them.
#![allow(clippy::disallowed_methods)]

pub mod agent;
pub mod apt;
pub mod cases;
pub mod compare;
pub mod compare_arrays;
pub mod compare_drives;
pub mod corebay;
pub mod endpoint;
pub mod fio;
pub mod guest;
pub mod hardware;
pub mod image;
pub mod initiator;
pub mod initramfs;
pub mod inside;
pub mod machine;
pub mod monitor;
pub mod nvmet;
pub mod process;
pub mod recipe;
pub mod suite;
