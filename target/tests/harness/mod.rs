//! What the target's tests share: a network in memory, a world of one or several cores that turn in
//! the test's own thread under a clock that the test moves, and a host that can send any bytes.
//!
//! Nothing here sleeps or waits for the machine: a test that waits turns the world instead, and
//! fails once the world has nothing left to do.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod disk;
pub mod host;
pub mod net;
pub mod socket;
pub mod wire;
pub mod world;
