//! Owns the one operation that all arithmetic here is: sums of strips times coefficients.

use std::ops::Range;

use super::{
    field::power,
    matrix::{DATA_MAX, PARITY_MAX},
    portable::{self, BitRow},
};

/// Up to `PARITY_MAX` sums, each over the same up to `DATA_MAX` sources, made ready to be computed.
#[derive(Clone, Debug)]
pub struct Product {
    rows: usize,
    columns: usize,
    bits: Vec<BitRow>,
}

impl Product {
    /// Sums by these coefficients, row by row.
    pub fn new(rows: usize, columns: usize, coefficients: &[u8]) -> Self {
        assert!(rows <= PARITY_MAX && (1..=DATA_MAX).contains(&columns));
        assert_eq!(coefficients.len(), rows * columns);
        let bits = coefficients
            .chunks(columns)
            .map(|row| portable::bit_row(row.iter().copied()))
            .collect();
        Self {
            rows,
            columns,
            bits,
        }
    }

    /// Output `r` becomes, or with `accumulate` is XORed with, the sum over `columns` of source times
    /// coefficient. `sources` are those of these columns alone.
    pub fn apply(
        &self,
        columns: Range<usize>,
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
        accumulate: bool,
    ) {
        assert!(columns.end <= self.columns, "columns that there are");
        assert_eq!(sources.len(), columns.len(), "a source for each column");
        assert_eq!(outputs.len(), self.rows, "an output for each row");
        let Some(bytes) = outputs.first().map(|output| output.len()) else {
            return;
        };
        assert!(
            sources.iter().all(|source| source.len() == bytes)
                && outputs.iter().all(|output| output.len() == bytes),
            "strips of one length"
        );
        let wanted = u32::MAX >> (32 - columns.len());
        for (row, output) in self.bits.iter().zip(outputs) {
            let row = row.map(|sources| sources >> columns.start & wanted);
            portable::combine(&row, sources, output, accumulate);
        }
    }
}

/// `dest` becomes, or with `accumulate` is XORed with, the XOR of all sources.
pub fn xor(sources: &[&[u8]], dest: &mut [u8], accumulate: bool) {
    assert!((1..=DATA_MAX).contains(&sources.len()), "1 to {DATA_MAX}");
    assert!(sources.iter().all(|source| source.len() == dest.len()));
    let row = portable::bit_row(sources.iter().map(|_| 1));
    portable::combine(&row, sources, dest, accumulate);
}

/// RAID 6's parity.
pub fn pq(data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
    xor(data, p, false);
    assert_eq!(p.len(), q.len(), "strips of one length");
    let row = portable::bit_row((0..data.len()).map(|index| power(2, index)));
    portable::combine(&row, data, q, false);
}
