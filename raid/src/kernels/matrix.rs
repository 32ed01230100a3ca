//! Owns the matrices that parity is computed by: how they are made, checked and inverted.
//!
//! Invariants:
//! - A [`Matrix`] holds `m` rows of `k` coefficients, the parity rows alone: above them stands the
//!   identity, as data strips are stored as they are.
//! - Every square submatrix of a [`Matrix`] is invertible. That is the same as: whatever `m` of the
//!   `k + m` members are lost, the others determine them.

use std::{array, fmt};

use super::field::{invert, multiply, power};

/// The most data members of a stripe.
pub const DATA_MAX: usize = 24;
/// The most parity members of a stripe.
pub const PARITY_MAX: usize = 4;

type Row = [u8; DATA_MAX];
/// A square matrix of up to `DATA_MAX` rows.
type Square = [Row; DATA_MAX];

/// Why a matrix cannot protect data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidMatrix {
    /// The number of data members is not 1 to `DATA_MAX`.
    DataMembers(usize),
    /// The number of parity members is not 1 to `PARITY_MAX`.
    ParityMembers(usize),
    /// The number of coefficients is not that of data members times that of parity members.
    Length {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// There are losses within the number of parity members that it could not undo: some square of
    /// coefficients, with this first row and column, is not invertible.
    Singular {
        /// The first parity member concerned, from 0.
        row: usize,
        /// The first data member concerned.
        column: usize,
    },
}

impl fmt::Display for InvalidMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DataMembers(k) => write!(f, "{k} data members, 1 to {DATA_MAX} are possible"),
            Self::ParityMembers(m) => {
                write!(f, "{m} parity members, 1 to {PARITY_MAX} are possible")
            }
            Self::Length { found, expected } => {
                write!(f, "a matrix of {found} coefficients instead of {expected}")
            }
            Self::Singular { row, column } => write!(
                f,
                "a matrix that cannot restore every loss (see row {row}, column {column})"
            ),
        }
    }
}

impl std::error::Error for InvalidMatrix {}

/// The coefficients of the parity members: `m` rows of `k`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    data: usize,
    parity: usize,
    coefficients: Vec<u8>,
}

impl Matrix {
    /// The matrix of the crate reed-solomon-erasure: row `r` of a Vandermonde matrix of `k + m` rows
    /// is the powers of `r`; it is multiplied by the inverse of its upper square, so that this
    /// becomes the identity.
    pub fn vandermonde(data: usize, parity: usize) -> Result<Self, InvalidMatrix> {
        check_size(data, parity)?;
        let mut top: Square = [[0; DATA_MAX]; DATA_MAX];
        let powers = |row: usize| -> Row { array::from_fn(|i| power(row as u8, i)) };
        for (row, coefficients) in top.iter_mut().enumerate().take(data) {
            *coefficients = powers(row);
        }
        let inverse = inverted(top, data).expect("the powers of different elements");
        let rows = (data..data + parity).map(|row| row_times(&powers(row), &inverse, data));
        let coefficients = rows.flat_map(|row| row[..data].to_vec()).collect();
        Self::new(data, parity, coefficients)
    }

    /// RAID 6's matrix, or RAID 5's for one parity member: row `r` is the powers of `2^r`.
    pub fn powers(data: usize, parity: usize) -> Result<Self, InvalidMatrix> {
        check_size(data, parity)?;
        let row = |row| (0..data).map(move |column| power(power(2, row), column));
        Self::new(data, parity, (0..parity).flat_map(row).collect())
    }

    /// Checks a matrix given row by row.
    pub fn new(data: usize, parity: usize, coefficients: Vec<u8>) -> Result<Self, InvalidMatrix> {
        check_size(data, parity)?;
        let (found, expected) = (coefficients.len(), data * parity);
        if found != expected {
            return Err(InvalidMatrix::Length { found, expected });
        }
        let matrix = Self {
            data,
            parity,
            coefficients,
        };
        matrix.check_squares()?;
        Ok(matrix)
    }

    /// How many data members there are.
    pub fn data(&self) -> usize {
        self.data
    }

    /// How many parity members there are.
    pub fn parity(&self) -> usize {
        self.parity
    }

    /// All coefficients, row by row.
    pub fn coefficients(&self) -> &[u8] {
        &self.coefficients
    }

    /// What parity member `row` takes of data member `column`.
    pub fn at(&self, row: usize, column: usize) -> u8 {
        self.coefficients[row * self.data + column]
    }

    /// By which sums of `sources` the members `wanted` are restored: a row for each of them, a column
    /// for each source. The sources are as many as there are data members, all different.
    pub fn restoring(&self, sources: &[usize], wanted: &[usize]) -> Vec<u8> {
        assert_eq!(sources.len(), self.data, "as many sources as data members");
        let mut square: Square = [[0; DATA_MAX]; DATA_MAX];
        for (row, &member) in square.iter_mut().zip(sources) {
            self.fill_row(member, row);
        }
        let inverse = inverted(square, self.data).expect("any members that are enough do");
        let restoring = |&member: &usize| {
            let mut row = [0; DATA_MAX];
            self.fill_row(member, &mut row);
            row_times(&row, &inverse, self.data)[..self.data].to_vec()
        };
        wanted.iter().flat_map(restoring).collect()
    }

    /// By which sum of the data members `member` comes about.
    fn fill_row(&self, member: usize, row: &mut Row) {
        match member.checked_sub(self.data) {
            None => row[member] = 1,
            Some(parity) => {
                let from = &self.coefficients[parity * self.data..][..self.data];
                row[..self.data].copy_from_slice(from);
            }
        }
    }

    fn check_squares(&self) -> Result<(), InvalidMatrix> {
        for rows in 1..1usize << self.parity {
            let rows: Vec<usize> = (0..self.parity).filter(|r| rows >> r & 1 == 1).collect();
            let mut columns: Vec<usize> = (0..rows.len()).collect();
            if columns.len() > self.data {
                continue;
            }
            loop {
                if !self.is_invertible(&rows, &columns) {
                    let (row, column) = (rows[0], columns[0]);
                    return Err(InvalidMatrix::Singular { row, column });
                }
                if !next_combination(&mut columns, self.data) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn is_invertible(&self, rows: &[usize], columns: &[usize]) -> bool {
        let mut square: Square = [[0; DATA_MAX]; DATA_MAX];
        for (to, &row) in square.iter_mut().zip(rows) {
            for (to, &column) in to.iter_mut().zip(columns) {
                *to = self.at(row, column);
            }
        }
        inverted(square, rows.len()).is_some()
    }
}

/// The product of a row and the upper left square of `size`.
fn row_times(row: &Row, square: &Square, size: usize) -> Row {
    let mut product = [0; DATA_MAX];
    for (&factor, row) in row.iter().zip(square).take(size) {
        for (sum, &coefficient) in product.iter_mut().zip(row).take(size) {
            *sum ^= multiply(factor, coefficient);
        }
    }
    product
}

fn check_size(data: usize, parity: usize) -> Result<(), InvalidMatrix> {
    if !(1..=DATA_MAX).contains(&data) {
        return Err(InvalidMatrix::DataMembers(data));
    }
    if !(1..=PARITY_MAX).contains(&parity) {
        return Err(InvalidMatrix::ParityMembers(parity));
    }
    Ok(())
}

/// The combination of as many numbers below `end` that comes next; false after the last.
fn next_combination(combination: &mut [usize], end: usize) -> bool {
    let count = combination.len();
    for at in (0..count).rev() {
        if combination[at] + (count - at) < end {
            combination[at] += 1;
            for next in at + 1..count {
                combination[next] = combination[next - 1] + 1;
            }
            return true;
        }
    }
    false
}

/// The inverse of the upper left square of `size`, by Gauss and Jordan's elimination.
fn inverted(mut square: Square, size: usize) -> Option<Square> {
    let mut inverse: Square = [[0; DATA_MAX]; DATA_MAX];
    for (index, row) in inverse.iter_mut().enumerate() {
        row[index] = 1;
    }
    for column in 0..size {
        let pivot = (column..size).find(|&row| square[row][column] != 0)?;
        square.swap(column, pivot);
        inverse.swap(column, pivot);
        let factor = invert(square[column][column])?;
        for i in 0..size {
            square[column][i] = multiply(square[column][i], factor);
            inverse[column][i] = multiply(inverse[column][i], factor);
        }
        for row in (0..size).filter(|&row| row != column) {
            let factor = square[row][column];
            if factor == 0 {
                continue;
            }
            for i in 0..size {
                square[row][i] ^= multiply(square[column][i], factor);
                inverse[row][i] ^= multiply(inverse[column][i], factor);
            }
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_singular_square_is_found_wherever_it_is() {
        let good = Matrix::vandermonde(5, 3).unwrap();
        assert_eq!(
            Matrix::new(5, 3, good.coefficients().to_vec()),
            Ok(good.clone())
        );
        let mut zero = good.coefficients().to_vec();
        zero[7] = 0;
        let expected = InvalidMatrix::Singular { row: 1, column: 2 };
        assert_eq!(Matrix::new(5, 3, zero), Err(expected));
        // Two columns of the last two rows that are multiples of each other.
        let mut dependent = good.coefficients().to_vec();
        for row in 1..3 {
            dependent[row * 5 + 4] = multiply(dependent[row * 5 + 1], 9);
        }
        let found = Matrix::new(5, 3, dependent);
        assert_eq!(found, Err(InvalidMatrix::Singular { row: 1, column: 1 }));
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(
            Matrix::vandermonde(0, 1),
            Err(InvalidMatrix::DataMembers(0))
        );
        assert_eq!(
            Matrix::vandermonde(25, 1),
            Err(InvalidMatrix::DataMembers(25))
        );
        assert_eq!(
            Matrix::vandermonde(1, 5),
            Err(InvalidMatrix::ParityMembers(5))
        );
        assert_eq!(Matrix::powers(1, 0), Err(InvalidMatrix::ParityMembers(0)));
        let length = InvalidMatrix::Length {
            found: 3,
            expected: 4,
        };
        assert_eq!(Matrix::new(2, 2, vec![1, 1, 1]), Err(length));
    }

    #[test]
    fn every_size_has_a_matrix() {
        for data in 1..=DATA_MAX {
            for parity in 1..=PARITY_MAX {
                Matrix::vandermonde(data, parity).unwrap();
                if parity <= 2 {
                    Matrix::powers(data, parity).unwrap();
                }
            }
        }
    }

    #[test]
    fn combinations_come_all_and_once() {
        let mut combination = vec![0, 1, 2];
        let mut seen = vec![combination.clone()];
        while next_combination(&mut combination, 6) {
            seen.push(combination.clone());
        }
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!((count, seen.len()), (20, 20));
    }
}
