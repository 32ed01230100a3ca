//! The target's protocol tests, against the real core and the real NVMe/TCP: by far the most in a
//! world without threads, where the network is memory and time stands still unless a test moves it.

#![allow(
    clippy::disallowed_methods,
    reason = "tests on the machine's own network need threads and a clock"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod admin;
mod association;
mod discovery;
mod drain;
mod events;
mod fair;
mod fused;
mod fuzz;
mod io;
mod limits;
mod machine;
mod malformed;
mod robust;
mod segments;
mod staging;
