//! Fixed-width ASCII fields of the specification: left-justified and padded with spaces (Base 2.1 section 1.4.2,
//! "ASCII string"), as the serial number, model number and firmware revision are.

/// Left-justifies `text` in `N` bytes and pads it with spaces; what does not fit is cut off, and every character
/// that is not printable ASCII (20h to 7Eh) becomes `?`.
pub fn pad<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (byte, character) in field.iter_mut().zip(text.chars()) {
        *byte = match character {
            ' '..='~' => character as u8,
            _ => b'?',
        };
    }
    field
}

/// The text of a padded field: without the spaces and NUL bytes at its end and the spaces at its start, every byte
/// that is not printable ASCII shown as `?`.
pub fn trim(field: &[u8]) -> String {
    let end = field
        .iter()
        .rposition(|byte| !matches!(byte, b' ' | 0))
        .map_or(0, |last| last + 1);
    let start = field[..end]
        .iter()
        .position(|byte| *byte != b' ')
        .unwrap_or(end);
    field[start..end]
        .iter()
        .map(|byte| {
            if matches!(byte, b' '..=b'~') {
                char::from(*byte)
            } else {
                '?'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pads_cuts_and_replaces() {
        assert_eq!(&pad::<8>("abc"), b"abc     ");
        assert_eq!(&pad::<4>("abcdef"), b"abcd");
        assert_eq!(&pad::<6>("a\tbéc"), b"a?b?c ");
        assert_eq!(&pad::<3>(""), b"   ");
    }

    #[test]
    fn trims_what_was_padded() {
        assert_eq!(trim(&pad::<20>("serial 1")), "serial 1");
        assert_eq!(trim(b"  x\0\0 "), "x");
        assert_eq!(trim(b"    "), "");
        assert_eq!(trim(b""), "");
        assert_eq!(trim(&[b'a', 0xff, b'b']), "a?b");
    }
}
