//! The tests of pools, one program: what a pool is made of for a kind of disk is compiled once.

mod allocations;
mod checkpoints;
mod conformance;
mod cores;
mod damage;
mod extend;
mod family;
mod flips;
mod forged;
mod full;
mod images;
mod limits;
mod looks;
mod memory;
mod owners;
mod power_cuts;
mod reads;
mod scale;
mod space;
mod streams;
mod support;
mod thick;
mod trim;
mod volumes;
mod waits;
mod zone;

use corebay_conformance::counting::Counting;

#[global_allocator]
static COUNTING: Counting = Counting;
