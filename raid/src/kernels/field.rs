//! Owns the arithmetic of GF(2^8) over x^8 + x^4 + x^3 + x^2 + 1, one element at a time.

/// The polynomial, without its highest bit.
pub const POLYNOMIAL: u8 = 0x1d;

/// The powers of 2, twice over, so that a sum of two logarithms needs no reduction.
static POWERS: [u8; 2 * GROUP] = powers();
/// By which power of 2 an element is reached; 0 has none.
static LOGARITHMS: [u8; 256] = logarithms();
/// How many elements there are but zero.
const GROUP: usize = 255;

const fn powers() -> [u8; 2 * GROUP] {
    let mut table = [1; 2 * GROUP];
    let mut exponent = 1;
    while exponent < table.len() {
        table[exponent] = double(table[exponent - 1]);
        exponent += 1;
    }
    table
}

const fn logarithms() -> [u8; 256] {
    let powers = powers();
    let mut table = [0; 256];
    let mut exponent = 0;
    while exponent < GROUP {
        table[powers[exponent] as usize] = exponent as u8;
        exponent += 1;
    }
    table
}

/// `value` times 2.
pub const fn double(value: u8) -> u8 {
    (value << 1) ^ (((value as i8) >> 7) as u8 & POLYNOMIAL)
}

/// The product of two elements.
pub fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let logarithm = |value| usize::from(LOGARITHMS[usize::from(value)]);
    POWERS[logarithm(a) + logarithm(b)]
}

/// `base` multiplied `exponent` times; 1 for none, also of 0.
pub fn power(base: u8, exponent: usize) -> u8 {
    match (base, exponent) {
        (_, 0) => 1,
        (0, _) => 0,
        _ => POWERS[usize::from(LOGARITHMS[usize::from(base)]) * exponent % GROUP],
    }
}

/// The element whose product with `value` is 1. There is none for 0.
pub fn invert(value: u8) -> Option<u8> {
    // The multiplicative group has `GROUP` elements.
    (value != 0).then(|| power(value, GROUP - 1))
}

/// The product of two elements by the definition, for checking all else.
#[cfg(test)]
pub fn multiply_slowly(a: u8, b: u8) -> u8 {
    let mut product: u16 = 0;
    for bit in 0..8 {
        if b >> bit & 1 == 1 {
            product ^= u16::from(a) << bit;
        }
    }
    for bit in (8..16).rev() {
        if product >> bit & 1 == 1 {
            product ^= (0x100 | u16::from(POLYNOMIAL)) << (bit - 8);
        }
    }
    product as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        for a in 0..=255 {
            assert_eq!(double(a), multiply_slowly(a, 2));
            for b in 0..=255 {
                assert_eq!(multiply(a, b), multiply_slowly(a, b), "{a} x {b}");
            }
        }
        assert_eq!(multiply_slowly(0x80, 2), 0x1d);
    }

    #[test]
    fn every_element_but_zero_has_an_inverse() {
        for value in 1..=255 {
            assert_eq!(multiply(value, invert(value).unwrap()), 1, "{value}");
        }
        assert_eq!(invert(0), None);
    }

    #[test]
    fn powers_are_repeated_products() {
        for base in 0..=255 {
            let mut product = 1;
            for exponent in 0..600 {
                assert_eq!(power(base, exponent), product, "{base}^{exponent}");
                product = multiply_slowly(product, base);
            }
        }
    }
}
