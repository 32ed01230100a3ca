//! Owns the vectors of x86-64 and the kernels made of them.
//!
//! A product with a constant is linear in the bits of the other factor. It is therefore the XOR of two
//! values looked up by nibble (a shuffle each), or one affine transformation by an 8 x 8 bit matrix
//! (GFNI), which works in any field of 256 elements.
//!
//! Invariants:
//! - [`Tables`] exist only where the processor has the instructions that they are for.

use std::{arch::x86_64::*, ops::Range};

use super::{
    field::{POLYNOMIAL, multiply},
    level::Level,
    vector::{self, Strips, Vector},
};

/// The products of a coefficient with every low nibble, then with every high nibble.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub struct Nibbles([u8; 32]);

impl Nibbles {
    fn new(coefficient: u8) -> Self {
        let mut products = [0; 32];
        for nibble in 0..16 {
            products[usize::from(nibble)] = multiply(coefficient, nibble);
            products[16 + usize::from(nibble)] = multiply(coefficient, nibble << 4);
        }
        Self(products)
    }
}

/// The matrix of the product with a coefficient, as the affine transformation takes it: the byte
/// `7 - i` says of which bits the bit `i` of the product is the parity.
fn affine(coefficient: u8) -> u64 {
    let mut rows = [0; 8];
    for bit in 0..8 {
        let product = multiply(coefficient, 1 << bit);
        for (i, row) in rows.iter_mut().rev().enumerate() {
            *row |= (product >> i & 1) << bit;
        }
    }
    u64::from_le_bytes(rows)
}

/// What the coefficients of a product are multiplied by: for each source, one after the other for all
/// rows.
#[derive(Clone, Debug)]
pub enum Tables {
    /// For [`Level::Avx2`].
    Avx2(Vec<Nibbles>),
    /// For [`Level::Avx512`].
    Avx512(Vec<Nibbles>),
    /// For [`Level::Avx2Gfni`].
    Avx2Gfni(Vec<u64>),
    /// For [`Level::Avx512Gfni`].
    Avx512Gfni(Vec<u64>),
}

impl Tables {
    /// `None` where the level has no tables: its kernel is another.
    pub fn new(level: Level, coefficients: impl Iterator<Item = u8>) -> Option<Self> {
        assert!(level.is_available(), "this processor has no {level}");
        match level {
            Level::Portable => None,
            Level::Avx2 => Some(Self::Avx2(coefficients.map(Nibbles::new).collect())),
            Level::Avx512 => Some(Self::Avx512(coefficients.map(Nibbles::new).collect())),
            Level::Avx2Gfni => Some(Self::Avx2Gfni(coefficients.map(affine).collect())),
            Level::Avx512Gfni => Some(Self::Avx512Gfni(coefficients.map(affine).collect())),
        }
    }

    /// Sums of products by the entries in `range`. Returns how many bytes of each strip it did.
    pub fn products(&self, range: Range<usize>, strips: &Strips<'_>, accumulate: bool) -> usize {
        // SAFETY: the tables exist, so the processor has their instructions.
        unsafe {
            match self {
                Self::Avx2(tables) => avx2::products(&tables[range], strips, accumulate),
                Self::Avx512(tables) => avx512::products(&tables[range], strips, accumulate),
                Self::Avx2Gfni(tables) => avx2_gfni::products(&tables[range], strips, accumulate),
                Self::Avx512Gfni(tables) => {
                    avx512_gfni::products(&tables[range], strips, accumulate)
                }
            }
        }
    }
}

/// XOR of all sources. Returns how many bytes of each strip it did.
pub fn xor(level: Level, strips: &Strips<'_>, accumulate: bool) -> usize {
    assert!(level.is_available(), "this processor has no {level}");
    // SAFETY: the processor has the instructions.
    unsafe {
        match level {
            Level::Portable => 0,
            Level::Avx2 | Level::Avx2Gfni => avx2::xor(strips, accumulate),
            Level::Avx512 | Level::Avx512Gfni => avx512::xor(strips, accumulate),
        }
    }
}

/// RAID 6's parity. Returns how many bytes of each strip it did.
pub fn pq(level: Level, strips: &Strips<'_>) -> usize {
    assert!(level.is_available(), "this processor has no {level}");
    // SAFETY: the processor has the instructions.
    unsafe {
        match level {
            Level::Portable => 0,
            Level::Avx2 => avx2::pq(strips),
            Level::Avx512 => avx512::pq(strips),
            Level::Avx2Gfni => avx2_gfni::pq(strips),
            Level::Avx512Gfni => avx512_gfni::pq(strips),
        }
    }
}

/// The kernels of a kind of vector, compiled with these instructions enabled.
macro_rules! kernels {
    ($name:ident, $vector:ty, $features:literal, unroll $one:literal $two:literal $three:literal $four:literal) => {
        mod $name {
            use super::*;

            #[target_feature(enable = $features)]
            pub fn products(
                entries: &[<$vector as Vector>::Entry],
                strips: &Strips<'_>,
                accumulate: bool,
            ) -> usize {
                // SAFETY: the instructions are enabled here, so they are there.
                unsafe {
                    match strips.rows() {
                        1 => vector::products::<$vector, 1, $one>(entries, strips, accumulate),
                        2 => vector::products::<$vector, 2, $two>(entries, strips, accumulate),
                        3 => vector::products::<$vector, 3, $three>(entries, strips, accumulate),
                        4 => vector::products::<$vector, 4, $four>(entries, strips, accumulate),
                        rows => unreachable!("{rows} rows"),
                    }
                }
            }

            #[target_feature(enable = $features)]
            #[allow(dead_code, reason = "XOR does not depend on how products are made")]
            pub fn xor(strips: &Strips<'_>, accumulate: bool) -> usize {
                // SAFETY: the instructions are enabled here, so they are there.
                unsafe {
                    let done = vector::xor::<$vector, 8>(strips, accumulate);
                    if strips.streams(accumulate) {
                        _mm_sfence();
                    }
                    done
                }
            }

            #[target_feature(enable = $features)]
            pub fn pq(strips: &Strips<'_>) -> usize {
                // SAFETY: the instructions are enabled here, so they are there.
                unsafe { vector::pq::<$vector, 4>(strips) }
            }
        }
    };
}

kernels!(avx2, Avx2, "avx2", unroll 4 2 2 2);
kernels!(avx512, Avx512, "avx512f,avx512bw", unroll 4 4 4 2);
kernels!(avx2_gfni, Avx2Gfni, "avx2,gfni", unroll 4 4 3 2);
kernels!(avx512_gfni, Avx512Gfni, "avx512f,avx512bw,gfni", unroll 4 4 4 4);

/// Bytes `0` to `15` and `16` to `31` of [`Nibbles`], each repeated.
type NibbleFactor<T> = (T, T);

#[derive(Clone, Copy)]
struct Avx2(__m256i);

// SAFETY: the loads and stores are of 32 bytes.
unsafe impl Vector for Avx2 {
    const BYTES: usize = 32;
    type Entry = Nibbles;
    type Factor = NibbleFactor<__m256i>;
    type Ready = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_xor_si256(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn double_and_add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let is_high = _mm256_cmpgt_epi8(_mm256_setzero_si256(), self.0);
            let carry = _mm256_and_si256(is_high, _mm256_set1_epi8(POLYNOMIAL as i8));
            let doubled = _mm256_add_epi8(self.0, self.0);
            Self(_mm256_xor_si256(_mm256_xor_si256(doubled, other.0), carry))
        }
    }

    #[inline(always)]
    unsafe fn factor(entry: &Nibbles) -> Self::Factor {
        // SAFETY: the caller's promise; the entry is of twice 16 bytes.
        unsafe {
            let low = _mm_load_si128(entry.0.as_ptr().cast());
            let high = _mm_load_si128(entry.0.as_ptr().add(16).cast());
            (
                _mm256_broadcastsi128_si256(low),
                _mm256_broadcastsi128_si256(high),
            )
        }
    }

    #[inline(always)]
    unsafe fn ready(self) -> Self::Ready {
        // SAFETY: the caller's promise.
        unsafe {
            let nibble = _mm256_set1_epi8(0x0f);
            let high = _mm256_srli_epi16::<4>(self.0);
            (
                _mm256_and_si256(self.0, nibble),
                _mm256_and_si256(high, nibble),
            )
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, (low, high): Self::Ready, factor: Self::Factor) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_shuffle_epi8(factor.0, low);
            let high = _mm256_shuffle_epi8(factor.1, high);
            Self(_mm256_xor_si256(_mm256_xor_si256(self.0, low), high))
        }
    }
}

/// The XOR of three, for [`_mm512_ternarylogic_epi32`].
const XOR_OF_THREE: i32 = 0x96;

#[derive(Clone, Copy)]
struct Avx512(__m512i);

// SAFETY: the loads and stores are of 64 bytes.
unsafe impl Vector for Avx512 {
    const BYTES: usize = 64;
    type Entry = Nibbles;
    type Factor = NibbleFactor<__m512i>;
    type Ready = (__m512i, __m512i);

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_xor_si512(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn double_and_add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let is_high = _mm512_movepi8_mask(self.0);
            let carry = _mm512_maskz_set1_epi8(is_high, POLYNOMIAL as i8);
            let doubled = _mm512_add_epi8(self.0, self.0);
            Self(_mm512_ternarylogic_epi32::<XOR_OF_THREE>(
                doubled, other.0, carry,
            ))
        }
    }

    #[inline(always)]
    unsafe fn factor(entry: &Nibbles) -> Self::Factor {
        // SAFETY: the caller's promise; the entry is of twice 16 bytes.
        unsafe {
            let low = _mm_load_si128(entry.0.as_ptr().cast());
            let high = _mm_load_si128(entry.0.as_ptr().add(16).cast());
            (_mm512_broadcast_i32x4(low), _mm512_broadcast_i32x4(high))
        }
    }

    #[inline(always)]
    unsafe fn ready(self) -> Self::Ready {
        // SAFETY: the caller's promise.
        unsafe {
            let nibble = _mm512_set1_epi8(0x0f);
            let high = _mm512_srli_epi16::<4>(self.0);
            (
                _mm512_and_si512(self.0, nibble),
                _mm512_and_si512(high, nibble),
            )
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, (low, high): Self::Ready, factor: Self::Factor) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm512_shuffle_epi8(factor.0, low);
            let high = _mm512_shuffle_epi8(factor.1, high);
            Self(_mm512_ternarylogic_epi32::<XOR_OF_THREE>(self.0, low, high))
        }
    }
}

#[derive(Clone, Copy)]
struct Avx2Gfni(__m256i);

// SAFETY: the loads and stores are of 32 bytes.
unsafe impl Vector for Avx2Gfni {
    const BYTES: usize = 32;
    type Entry = u64;
    type Factor = __m256i;
    type Ready = __m256i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_xor_si256(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn double_and_add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { other.add_product(self.0, Self::factor(&TWICE)) }
    }

    #[inline(always)]
    unsafe fn factor(entry: &u64) -> Self::Factor {
        // SAFETY: the caller's promise.
        unsafe { _mm256_set1_epi64x(*entry as i64) }
    }

    #[inline(always)]
    unsafe fn ready(self) -> Self::Ready {
        self.0
    }

    #[inline(always)]
    unsafe fn add_product(self, ready: Self::Ready, factor: Self::Factor) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let product = _mm256_gf2p8affine_epi64_epi8::<0>(ready, factor);
            Self(_mm256_xor_si256(self.0, product))
        }
    }
}

/// The affine transformation that doubles.
const TWICE: u64 = u64::from_le_bytes([0x40, 0x20, 0x10, 0x88, 0x84, 0x82, 0x01, 0x80]);

#[derive(Clone, Copy)]
struct Avx512Gfni(__m512i);

// SAFETY: the loads and stores are of 64 bytes.
unsafe impl Vector for Avx512Gfni {
    const BYTES: usize = 64;
    type Entry = u64;
    type Factor = __m512i;
    type Ready = __m512i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_xor_si512(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn double_and_add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { other.add_product(self.0, Self::factor(&TWICE)) }
    }

    #[inline(always)]
    unsafe fn factor(entry: &u64) -> Self::Factor {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_epi64(*entry as i64) }
    }

    #[inline(always)]
    unsafe fn ready(self) -> Self::Ready {
        self.0
    }

    #[inline(always)]
    unsafe fn add_product(self, ready: Self::Ready, factor: Self::Factor) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let product = _mm512_gf2p8affine_epi64_epi8::<0>(ready, factor);
            Self(_mm512_xor_si512(self.0, product))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the instruction does, by its description.
    fn transform(matrix: u64, byte: u8) -> u8 {
        let rows = matrix.to_le_bytes();
        let bit = |i: usize| ((rows[7 - i] & byte).count_ones() as u8 & 1) << i;
        (0..8).map(bit).sum()
    }

    #[test]
    fn affine_transformations_are_products() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(transform(affine(a), b), multiply(a, b), "{a} x {b}");
            }
        }
        assert_eq!(TWICE, affine(2), "{:x?}", affine(2).to_le_bytes());
    }

    #[test]
    fn nibbles_add_up_to_products() {
        for a in 0..=255 {
            let Nibbles(products) = Nibbles::new(a);
            for b in 0..=255 {
                let (low, high) = (usize::from(b & 15), usize::from(b >> 4));
                assert_eq!(products[low] ^ products[16 + high], multiply(a, b));
            }
        }
    }
}
