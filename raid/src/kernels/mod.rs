//! Owns the arithmetic of parity: XOR, P+Q and Reed-Solomon over whole strips.
//!
//! A stripe has `k` data strips, members 0 to `k - 1`, and `m` parity strips, members `k` to
//! `k + m - 1`. A [`Codec`] says how parity follows from data, whatever the level: RAID 5 is
//! [`Codec::xor`], RAID 6 is [`Codec::pq`], anything else is a matrix. A [`Plan`] says how lost
//! members follow from others.
//!
//! Invariants:
//! - The field is GF(2^8) over 0x11d. A parity strip is a linear combination of the data strips, byte
//!   by byte; byte `i` of a strip depends on the bytes `i` of other strips alone. Strips may therefore
//!   be worked on in pieces of any length.
//! - Any `m` members of a codec can be lost: no other matrix becomes a codec.
//! - Codecs and plans allocate while they are made, never while they are used.

mod codec;
mod field;
mod level;
mod matrix;
mod portable;
mod product;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "loads and stores of vectors")]
mod vector;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "instructions that not every processor has")]
mod x86;

pub use codec::{Codec, Plan, Unrecoverable};
pub use level::Level;
pub use matrix::{DATA_MAX, InvalidMatrix, PARITY_MAX};

/// The most members of a stripe.
pub const MEMBERS_MAX: usize = DATA_MAX + PARITY_MAX;

/// `dest` becomes the XOR of all sources, at least one and at most `DATA_MAX`, each as long as it is.
pub fn xor(sources: &[&[u8]], dest: &mut [u8]) {
    product::xor(Level::best(), sources, dest, false);
}

/// XORs all sources into `dest`; as many and as long as for [`xor`].
pub fn xor_into(sources: &[&[u8]], dest: &mut [u8]) {
    product::xor(Level::best(), sources, dest, true);
}

/// RAID 6's parity of `data`: `p` is the XOR of all, `q` that of `data[i]` times `2^i`.
pub fn pq(data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
    product::pq(Level::best(), data, p, q);
}
