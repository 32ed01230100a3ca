//! Owns the loops of the kernels, for any kind of vector.
//!
//! All rows are computed in one pass over the sources: their sums stay in registers while the sources
//! go by, each source byte is loaded once, and each sum is stored once.
//!
//! Invariants:
//! - All functions here are inlined into functions that enable the vector's instructions; by
//!   themselves they would be slow calls of single instructions.
//! - Nothing at or behind `bytes` is touched. What is done is a multiple of the vector's length; the
//!   rest is left to the caller.

use super::matrix::PARITY_MAX;

/// A register of bytes, and how elements of the field are multiplied in it.
///
/// # Safety
/// `load` and `store` touch `BYTES` bytes and no others.
pub unsafe trait Vector: Copy {
    /// The length of the register.
    const BYTES: usize;
    /// What a coefficient is multiplied by, as it is kept in memory.
    type Entry: Copy;
    /// What a coefficient is multiplied by, in registers.
    type Factor: Copy;
    /// Bytes made ready to be multiplied by several coefficients.
    type Ready: Copy;

    /// Loads from an address of any alignment.
    ///
    /// # Safety
    /// The address is valid for reads of `BYTES`, the processor has the vector's instructions.
    unsafe fn load(from: *const u8) -> Self;
    /// Stores to an address of any alignment.
    ///
    /// # Safety
    /// The address is valid for writes of `BYTES`, the processor has the vector's instructions.
    unsafe fn store(self, to: *mut u8);
    /// Stores past the caches.
    ///
    /// # Safety
    /// The address is valid for writes of `BYTES` and a multiple of it, the processor has the vector's
    /// instructions. A store fence follows before anybody else may look.
    unsafe fn stream(self, to: *mut u8);
    /// # Safety
    /// The processor has the vector's instructions.
    unsafe fn zero() -> Self;
    /// # Safety
    /// The processor has the vector's instructions.
    unsafe fn xor(self, other: Self) -> Self;
    /// Each element times 2, plus that of `other`.
    ///
    /// # Safety
    /// The processor has the vector's instructions.
    unsafe fn double_and_add(self, other: Self) -> Self;
    /// # Safety
    /// The processor has the vector's instructions.
    unsafe fn factor(entry: &Self::Entry) -> Self::Factor;
    /// # Safety
    /// The processor has the vector's instructions.
    unsafe fn ready(self) -> Self::Ready;
    /// Each element plus the product of `ready` and `factor`.
    ///
    /// # Safety
    /// The processor has the vector's instructions.
    unsafe fn add_product(self, ready: Self::Ready, factor: Self::Factor) -> Self;
}

/// The longest vector's.
const ALIGNMENT: usize = 64;
/// Stripes from this length on do not fit a core's own cache.
const STREAM_BYTES_MIN: usize = 512 << 10;

/// What a kernel works on: as many bytes of each source and output.
pub struct Strips<'a> {
    sources: &'a [&'a [u8]],
    outputs: [*mut u8; PARITY_MAX],
    rows: usize,
    bytes: usize,
}

impl<'a> Strips<'a> {
    /// All strips must be of one length, and there must be at least one source and one output.
    pub fn new(sources: &'a [&'a [u8]], outputs: &'a mut [&mut [u8]]) -> Self {
        let (rows, bytes) = (outputs.len(), outputs[0].len());
        assert!(!sources.is_empty() && rows <= PARITY_MAX);
        assert!(
            sources.iter().all(|source| source.len() == bytes)
                && outputs.iter().all(|output| output.len() == bytes),
            "strips of one length"
        );
        let mut pointers = [std::ptr::null_mut(); PARITY_MAX];
        for (pointer, output) in pointers.iter_mut().zip(outputs) {
            *pointer = output.as_mut_ptr();
        }
        Self {
            sources,
            outputs: pointers,
            rows,
            bytes,
        }
    }

    /// Whether the one output is better stored past the cache, so that no line of it is fetched only to
    /// be overwritten. With several outputs this is slower, as processors gather few lines at a time.
    pub fn streams(&self, accumulate: bool) -> bool {
        !accumulate
            && self.bytes * (self.sources.len() + 1) >= STREAM_BYTES_MIN
            && self.outputs[0].align_offset(ALIGNMENT) == 0
    }

    /// How many outputs there are.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Sums of products: output `r` becomes, or with `accumulate` is XORed with, the sum of source `s`
/// times `entries[s * ROWS + r]`. Returns how many bytes of each strip it did.
///
/// # Safety
/// The processor has the vector's instructions.
#[inline(always)]
pub unsafe fn products<V: Vector, const ROWS: usize, const UNROLL: usize>(
    entries: &[V::Entry],
    strips: &Strips<'_>,
    accumulate: bool,
) -> usize {
    assert_eq!(strips.rows, ROWS);
    assert_eq!(entries.len(), strips.sources.len() * ROWS);
    let mut at = 0;
    // SAFETY: the caller says that the instructions are there; each call ends within the strips.
    unsafe {
        while strips.bytes - at >= UNROLL * V::BYTES {
            products_at::<V, ROWS, UNROLL>(entries, strips, accumulate, at);
            at += UNROLL * V::BYTES;
        }
        while strips.bytes - at >= V::BYTES {
            products_at::<V, ROWS, 1>(entries, strips, accumulate, at);
            at += V::BYTES;
        }
    }
    at
}

/// # Safety
/// As for [`products`]; `UNROLL * V::BYTES` bytes at `at` lie within the strips.
#[inline(always)]
unsafe fn products_at<V: Vector, const ROWS: usize, const UNROLL: usize>(
    entries: &[V::Entry],
    strips: &Strips<'_>,
    accumulate: bool,
    at: usize,
) {
    // SAFETY: the instructions are there and the addresses within the strips, says the caller. The
    // outputs are borrowed exclusively as long as `strips` lives, so nothing else is written.
    unsafe {
        let mut sums = [[V::zero(); UNROLL]; ROWS];
        if accumulate {
            for (sums, output) in sums.iter_mut().zip(strips.outputs) {
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(output.add(at + index * V::BYTES));
                }
            }
        }
        let (entries, _) = entries.as_chunks::<ROWS>();
        for (source, entries) in strips.sources.iter().zip(entries) {
            let from = source.as_ptr().add(at);
            let mut ready = [V::zero().ready(); UNROLL];
            for (index, ready) in ready.iter_mut().enumerate() {
                *ready = V::load(from.add(index * V::BYTES)).ready();
            }
            for (sums, entry) in sums.iter_mut().zip(entries) {
                let factor = V::factor(entry);
                for (sum, &ready) in sums.iter_mut().zip(&ready) {
                    *sum = sum.add_product(ready, factor);
                }
            }
        }
        for (sums, output) in sums.iter().zip(strips.outputs) {
            for (index, sum) in sums.iter().enumerate() {
                sum.store(output.add(at + index * V::BYTES));
            }
        }
    }
}

/// The XOR of all sources, to one output. Returns how many bytes of each strip it did.
///
/// # Safety
/// The processor has the vector's instructions. A store fence follows where it streams.
#[inline(always)]
pub unsafe fn xor<V: Vector, const UNROLL: usize>(strips: &Strips<'_>, accumulate: bool) -> usize {
    let streams = strips.streams(accumulate);
    let mut at = 0;
    // SAFETY: the caller says that the instructions are there; each call ends within the strips.
    unsafe {
        while strips.bytes - at >= UNROLL * V::BYTES {
            xor_at::<V, UNROLL>(strips, accumulate, streams, at);
            at += UNROLL * V::BYTES;
        }
        while strips.bytes - at >= V::BYTES {
            xor_at::<V, 1>(strips, accumulate, streams, at);
            at += V::BYTES;
        }
    }
    at
}

/// # Safety
/// As for [`xor`]; `UNROLL * V::BYTES` bytes at `at`, a multiple of `V::BYTES`, lie within the strips.
#[inline(always)]
unsafe fn xor_at<V: Vector, const UNROLL: usize>(
    strips: &Strips<'_>,
    accumulate: bool,
    streams: bool,
    at: usize,
) {
    // SAFETY: as in `products_at`; where it streams, the output is aligned to any vector's length.
    unsafe {
        let output = strips.outputs[0].add(at);
        let (first, others) = match accumulate {
            true => (output.cast_const(), strips.sources),
            false => (strips.sources[0].as_ptr().add(at), &strips.sources[1..]),
        };
        let mut sums = [V::zero(); UNROLL];
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = V::load(first.add(index * V::BYTES));
        }
        for source in others {
            let from = source.as_ptr().add(at);
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = sum.xor(V::load(from.add(index * V::BYTES)));
            }
        }
        for (index, sum) in sums.iter().enumerate() {
            let to = output.add(index * V::BYTES);
            match streams {
                true => sum.stream(to),
                false => sum.store(to),
            }
        }
    }
}

/// RAID 6's parity, to two outputs, by Horner's rule. Returns how many bytes of each strip it did.
///
/// # Safety
/// The processor has the vector's instructions.
#[inline(always)]
pub unsafe fn pq<V: Vector, const UNROLL: usize>(strips: &Strips<'_>) -> usize {
    assert_eq!(strips.rows, 2);
    let mut at = 0;
    // SAFETY: the caller says that the instructions are there; each call ends within the strips.
    unsafe {
        while strips.bytes - at >= UNROLL * V::BYTES {
            pq_at::<V, UNROLL>(strips, at);
            at += UNROLL * V::BYTES;
        }
        while strips.bytes - at >= V::BYTES {
            pq_at::<V, 1>(strips, at);
            at += V::BYTES;
        }
    }
    at
}

/// # Safety
/// As for [`pq`]; `UNROLL * V::BYTES` bytes at `at` lie within the strips.
#[inline(always)]
unsafe fn pq_at<V: Vector, const UNROLL: usize>(strips: &Strips<'_>, at: usize) {
    let Some((last, others)) = strips.sources.split_last() else {
        return;
    };
    // SAFETY: as in `products_at`.
    unsafe {
        let mut p = [V::zero(); UNROLL];
        for (index, p) in p.iter_mut().enumerate() {
            *p = V::load(last.as_ptr().add(at + index * V::BYTES));
        }
        let mut q = p;
        for source in others.iter().rev() {
            let from = source.as_ptr().add(at);
            for (index, (p, q)) in p.iter_mut().zip(&mut q).enumerate() {
                let data = V::load(from.add(index * V::BYTES));
                *p = p.xor(data);
                *q = q.double_and_add(data);
            }
        }
        for (sums, output) in [p, q].iter().zip(strips.outputs) {
            for (index, sum) in sums.iter().enumerate() {
                sum.store(output.add(at + index * V::BYTES));
            }
        }
    }
}
