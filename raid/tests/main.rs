//! The tests of arrays, one program: what an array is made of for a kind of disk is compiled once.

mod allocations;
mod conformance;
mod crash;
mod crowd;
mod lost;
mod members;
mod parity;
mod parity_allocations;
mod random;
mod replay;
mod reshape;
mod silent;
mod sizes;
mod slow;
mod support;
mod sweeps;
mod torn;
mod zone;

use corebay_conformance::counting::Counting;

#[global_allocator]
static COUNTING: Counting = Counting;
