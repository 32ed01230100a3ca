//! Owns the one operation that all arithmetic here is: sums of strips times coefficients; and which
//! kernel computes it.

use std::ops::Range;

use super::{
    field::power,
    level::Level,
    matrix::{DATA_MAX, PARITY_MAX},
    portable::{self, BitRow},
};
#[cfg(target_arch = "x86_64")]
use super::{
    vector::Strips,
    x86::{self, Tables},
};

/// Up to `PARITY_MAX` sums, each over the same up to `DATA_MAX` sources, made ready to be computed.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "the portable kernel knows one kind and one level")
)]
pub struct Product {
    rows: usize,
    columns: usize,
    kind: Kind,
    level: Level,
    bits: Vec<BitRow>,
    #[cfg(target_arch = "x86_64")]
    tables: Option<Tables>,
}

/// Coefficients for which there is a faster way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One row of ones.
    Xor,
    /// A row of ones, and one of the powers of 2 from `2^0` on.
    Pq,
    General,
}

impl Kind {
    fn of(rows: usize, columns: usize, coefficients: &[u8]) -> Self {
        let (first, second) = coefficients.split_at(columns.min(coefficients.len()));
        let is_power = |(index, &coefficient)| coefficient == power(2, index);
        match rows {
            1 | 2 if first.iter().any(|&coefficient| coefficient != 1) => Self::General,
            1 => Self::Xor,
            2 if second.iter().enumerate().all(is_power) => Self::Pq,
            _ => Self::General,
        }
    }
}

impl Product {
    /// Sums by these coefficients, row by row.
    ///
    /// # Panics
    /// Where the processor lacks the level.
    pub fn new(rows: usize, columns: usize, coefficients: &[u8], level: Level) -> Self {
        assert!(rows <= PARITY_MAX && (1..=DATA_MAX).contains(&columns));
        assert_eq!(coefficients.len(), rows * columns);
        assert!(level.is_available(), "this processor has no {level}");
        let row = |row: &[u8]| portable::bit_row(row.iter().copied());
        #[cfg(target_arch = "x86_64")]
        let by_column = (0..columns)
            .flat_map(|column| (0..rows).map(move |row| coefficients[row * columns + column]));
        Self {
            rows,
            columns,
            kind: Kind::of(rows, columns, coefficients),
            level,
            bits: coefficients.chunks(columns).map(row).collect(),
            #[cfg(target_arch = "x86_64")]
            tables: Tables::new(level, by_column),
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
        assert!(!columns.is_empty(), "a column");
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
        let done = self.vectors(columns.clone(), sources, outputs, accumulate);
        if done == bytes {
            return;
        }
        let wanted = u32::MAX >> (32 - columns.len());
        for (row, output) in self.bits.iter().zip(outputs) {
            let row = row.map(|sources| sources >> columns.start & wanted);
            portable::combine(&row, sources, output, done, accumulate);
        }
    }

    /// Computes by vectors as many bytes as these can, from the first on, and returns how many.
    #[cfg(target_arch = "x86_64")]
    fn vectors(
        &self,
        columns: Range<usize>,
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
        accumulate: bool,
    ) -> usize {
        let Some(tables) = &self.tables else {
            return 0;
        };
        let is_whole = columns.len() == self.columns && !accumulate;
        let strips = Strips::new(sources, outputs);
        match self.kind {
            Kind::Xor => x86::xor(self.level, &strips, accumulate),
            Kind::Pq if is_whole => x86::pq(self.level, &strips),
            Kind::Pq | Kind::General => {
                let entries = columns.start * self.rows..columns.end * self.rows;
                tables.products(entries, &strips, accumulate)
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn vectors(&self, _: Range<usize>, _: &[&[u8]], _: &mut [&mut [u8]], _: bool) -> usize {
        0
    }
}

/// `dest` becomes, or with `accumulate` is XORed with, the XOR of all sources.
pub fn xor(level: Level, sources: &[&[u8]], dest: &mut [u8], accumulate: bool) {
    debug_assert!(level.is_available(), "this processor has no {level}");
    assert!((1..=DATA_MAX).contains(&sources.len()), "1 to {DATA_MAX}");
    assert!(
        sources.iter().all(|source| source.len() == dest.len()),
        "strips of one length"
    );
    #[cfg(target_arch = "x86_64")]
    let done = x86::xor(level, &Strips::new(sources, &mut [dest]), accumulate);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    if done < dest.len() {
        let row = portable::bit_row(sources.iter().map(|_| 1));
        portable::combine(&row, sources, dest, done, accumulate);
    }
}

/// RAID 6's parity.
pub fn pq(level: Level, data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
    debug_assert!(level.is_available(), "this processor has no {level}");
    assert!((1..=DATA_MAX).contains(&data.len()), "1 to {DATA_MAX}");
    assert!(
        p.len() == q.len() && data.iter().all(|strip| strip.len() == p.len()),
        "strips of one length"
    );
    #[cfg(target_arch = "x86_64")]
    let done = x86::pq(level, &Strips::new(data, &mut [p, q]));
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    if done < p.len() {
        let ones = portable::bit_row(data.iter().map(|_| 1));
        portable::combine(&ones, data, p, done, false);
        let powers = portable::bit_row((0..data.len()).map(|index| power(2, index)));
        portable::combine(&powers, data, q, done, false);
    }
}
