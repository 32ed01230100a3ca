//! Owns the kernel that every processor has: doubling and XOR of short arrays of bytes, which the
//! compiler turns into whatever vectors there are.
//!
//! A sum of products is evaluated by Horner's rule over the bits of the coefficients, from the highest
//! on: double what there is, then XOR the sources whose coefficient has this bit. The doublings are
//! shared by all sources; a row of ones is plain XOR.

use super::{
    field::POLYNOMIAL,
    matrix::{DATA_MAX, PARITY_MAX},
};

/// What is worked on at a time: long enough that the loops over bits and sources cost little.
const BLOCK_BYTES: usize = 256;

type Block = [u8; BLOCK_BYTES];

/// A row of coefficients: which sources have the bit, for each bit.
pub type BitRow = [u32; 8];

const _: () = assert!(DATA_MAX <= 32, "a source is a bit of an u32");
const _: () = assert!(PARITY_MAX <= DATA_MAX);

/// The bits of a row of coefficients.
pub fn bit_row(coefficients: impl Iterator<Item = u8>) -> BitRow {
    let mut row = BitRow::default();
    for (source, coefficient) in coefficients.enumerate() {
        for (bit, sources) in row.iter_mut().enumerate() {
            *sources |= u32::from(coefficient >> bit & 1) << source;
        }
    }
    row
}

/// From byte `start` on, `output` becomes, or with `accumulate` is XORed with, the sum of the sources'
/// products.
pub fn combine(row: &BitRow, sources: &[&[u8]], output: &mut [u8], start: usize, accumulate: bool) {
    for (index, piece) in output[start..].chunks_mut(BLOCK_BYTES).enumerate() {
        let at = start + index * BLOCK_BYTES;
        let mut sum: Block = [0; BLOCK_BYTES];
        let mut is_zero = true;
        for sources_of_bit in row.iter().rev() {
            if !is_zero {
                double(&mut sum);
            }
            let mut left = *sources_of_bit;
            while left != 0 {
                let source = sources[left.trailing_zeros() as usize];
                add(&mut sum, &source[at..at + piece.len()]);
                left &= left - 1;
                is_zero = false;
            }
        }
        if accumulate {
            add(&mut sum, piece);
        }
        piece.copy_from_slice(&sum[..piece.len()]);
    }
}

fn double(block: &mut Block) {
    for byte in block {
        *byte = (*byte << 1) ^ (((*byte as i8) >> 7) as u8 & POLYNOMIAL);
    }
}

fn add(block: &mut Block, source: &[u8]) {
    match <&Block>::try_from(source) {
        Ok(whole) => block
            .iter_mut()
            .zip(whole)
            .for_each(|(to, from)| *to ^= from),
        Err(_) => block
            .iter_mut()
            .zip(source)
            .for_each(|(to, from)| *to ^= from),
    }
}
