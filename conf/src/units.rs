//! Human units: sizes ("8GiB") and time spans ("200us"), parsed without rounding.
//!
//! Invariants: a parsed value is exactly what was written (a fraction that is no whole number of
//! bytes or nanoseconds is refused), and what `Display` prints parses to the same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 12] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("EiB", 1 << 60),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
];

const TIME_UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A number of bytes, written as "8GiB", "1TB" or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// 1,024 bytes.
    pub const KIB: Size = Size(1 << 10);
    /// 1,024 KiB.
    pub const MIB: Size = Size(1 << 20);
    /// 1,024 MiB.
    pub const GIB: Size = Size(1 << 30);
    /// 1,024 GiB.
    pub const TIB: Size = Size(1 << 40);

    /// A size of so many bytes.
    pub const fn from_bytes(bytes: u64) -> Size {
        Size(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// `count` times this size; for constants: overflow is a compile-time error there.
    pub const fn times(self, count: u64) -> Size {
        Size(self.0 * count)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |scale: u64| self.0 >= scale && self.0.is_multiple_of(scale);
        // "kB" is read, and never written: 1000B says it as shortly.
        let units = SIZE_UNITS
            .iter()
            .filter(|(unit, scale)| *unit != "kB" && fits(*scale));
        match units.max_by_key(|(_, scale)| *scale) {
            Some((unit, scale)) => write!(out, "{}{unit}", self.0 / scale),
            None => write!(out, "{}B", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        let (number, unit) = split(text).ok_or_else(|| UnitError::not_a_size(text))?;
        let scale = if unit.is_empty() {
            1
        } else {
            scale_of(&SIZE_UNITS, unit).ok_or_else(|| UnitError::size_unit(number, unit))?
        };
        scaled(number, scale, "bytes").map(Size)
    }
}

/// A length of time, written as "200us", "30s" or "5min".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeSpan(Duration);

impl TimeSpan {
    /// The time span as the standard library's type.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for TimeSpan {
    fn from(duration: Duration) -> TimeSpan {
        TimeSpan(duration)
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let fits =
            |scale: u64| nanos >= u128::from(scale) && nanos.is_multiple_of(u128::from(scale));
        // "µs" is read, and "us" is written: not every terminal has the letter.
        let mut units = TIME_UNITS.iter().rev().filter(|(unit, _)| *unit != "µs");
        match units.find(|(_, scale)| fits(*scale)) {
            Some((unit, scale)) => write!(out, "{}{unit}", nanos / u128::from(*scale)),
            None => write!(out, "{nanos}ns"),
        }
    }
}

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<TimeSpan, UnitError> {
        let (number, unit) = split(text).ok_or_else(|| UnitError::not_a_time(text))?;
        let scale =
            scale_of(&TIME_UNITS, unit).ok_or_else(|| UnitError::time_unit(number, unit))?;
        scaled(number, scale, "nanoseconds").map(|nanos| TimeSpan(Duration::from_nanos(nanos)))
    }
}

/// Why a text is no size or no time span, and what to write in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    message: String,
    help: String,
}

const SIZE_HELP: &str = "write a number and a unit: \"512MiB\", \"8GiB\", \"1TB\"";
const TIME_HELP: &str = "write a number and a unit: \"200us\", \"50ms\", \"30s\", \"5min\"";

impl UnitError {
    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to mend it.
    pub fn help(&self) -> &str {
        &self.help
    }

    fn not_a_size(text: &str) -> UnitError {
        let message = format!("{} is not a size", quoted(text));
        UnitError {
            message,
            help: SIZE_HELP.to_owned(),
        }
    }

    fn not_a_time(text: &str) -> UnitError {
        let message = format!("{} is not a time span", quoted(text));
        UnitError {
            message,
            help: TIME_HELP.to_owned(),
        }
    }

    fn size_unit(number: &str, unit: &str) -> UnitError {
        let message = format!("{} is not a unit of size", quoted(unit));
        let letter = unit.chars().next().map(|first| first.to_ascii_uppercase());
        let help = match letter {
            Some(letter) if "KMGTPE".contains(letter) && unit.len() <= 3 => {
                let binary = format!("{letter}iB");
                let power = 10 * ("KMGTPE".find(letter).unwrap_or(0) + 1);
                format!("did you mean \"{number}{binary}\"? ({binary} is 2^{power} bytes)")
            }
            _ => SIZE_HELP.to_owned(),
        };
        UnitError { message, help }
    }

    fn time_unit(number: &str, unit: &str) -> UnitError {
        if unit.is_empty() {
            let message = format!("{} says no unit of time", quoted(number));
            let help = format!("did you mean \"{number}s\" (seconds) or \"{number}ms\"?");
            return UnitError { message, help };
        }
        let message = format!("{} is not a unit of time", quoted(unit));
        let help = match unit.to_ascii_lowercase().as_str() {
            "m" | "mins" | "minute" | "minutes" => format!("did you mean \"{number}min\"?"),
            "sec" | "secs" | "second" | "seconds" => format!("did you mean \"{number}s\"?"),
            "msec" | "millis" | "milliseconds" => format!("did you mean \"{number}ms\"?"),
            "u" | "usec" | "micros" | "microseconds" => format!("did you mean \"{number}us\"?"),
            _ => TIME_HELP.to_owned(),
        };
        UnitError { message, help }
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.message, self.help)
    }
}

impl std::error::Error for UnitError {}

/// A text in backquotes, cut where it is too long to read.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 64;
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// Number and unit of "8 GiB"; `None` where it does not begin with a digit.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    number
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some((number, unit.trim_start()))
}

fn scale_of(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, scale)| *scale)
}

/// `number` (digits, perhaps with a fraction) times `scale`, exact or not at all.
fn scaled(number: &str, scale: u64, what: &str) -> Result<u64, UnitError> {
    const FRACTION_DIGITS_MAX: usize = 18;
    let too_large = || UnitError {
        message: format!("{} is too large", quoted(number)),
        help: format!("at most 2^64 - 1 {what}"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.ends_with('.') || fraction.contains('.') {
        let message = format!("{} is not a number", quoted(number));
        return Err(UnitError {
            message,
            help: "write it as in \"8\" or \"1.5\"".to_owned(),
        });
    }
    let not_whole = || UnitError {
        message: format!("{} is no whole number of {what}", quoted(number)),
        help: "write it in a smaller unit".to_owned(),
    };
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let whole = whole.checked_mul(scale).ok_or_else(too_large)?;
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        return Ok(whole);
    }
    if fraction.len() > FRACTION_DIGITS_MAX {
        return Err(not_whole());
    }
    let tenths = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| not_whole())?);
    let part = fraction.parse::<u128>().map_err(|_| not_whole())? * u128::from(scale);
    if !part.is_multiple_of(tenths) {
        return Err(not_whole());
    }
    let part = u64::try_from(part / tenths).map_err(|_| too_large())?;
    whole.checked_add(part).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(text: &str) -> Result<u64, String> {
        text.parse::<Size>()
            .map(Size::bytes)
            .map_err(|error| error.to_string())
    }

    fn nanos(text: &str) -> Result<u128, String> {
        text.parse::<TimeSpan>()
            .map(|span| span.duration().as_nanos())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn sizes() {
        assert_eq!(size("8GiB"), Ok(8 << 30));
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("1TB"), Ok(1_000_000_000_000));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("4096B"), Ok(4096));
        assert_eq!(size("1.5 GiB"), Ok(3 << 29));
        assert_eq!(size("1.50GiB"), Ok(3 << 29));
        assert_eq!(size("0"), Ok(0));
        assert_eq!(
            size("15.999EiB").unwrap_err(),
            "`15.999` is no whole number of bytes: write it in a smaller unit"
        );
        assert_eq!(
            size("16EiB").unwrap_err(),
            "`16` is too large: at most 2^64 - 1 bytes"
        );
    }

    #[test]
    fn sizes_that_are_none() {
        assert!(
            size("8G")
                .unwrap_err()
                .contains("did you mean \"8GiB\"? (GiB is 2^30 bytes)")
        );
        assert!(size("8gib").unwrap_err().contains("did you mean \"8GiB\""));
        assert!(
            size("8 parsecs")
                .unwrap_err()
                .contains("`parsecs` is not a unit of size")
        );
        assert!(size("GiB").unwrap_err().contains("`GiB` is not a size"));
        assert!(size("").unwrap_err().contains("`` is not a size"));
        assert!(size("-1GiB").unwrap_err().contains("is not a size"));
        assert!(size("1..5GiB").unwrap_err().contains("is not a number"));
        assert!(size("1.GiB").unwrap_err().contains("is not a number"));
        assert!(size(".5GiB").unwrap_err().contains("is not a size"));
        assert!(
            size("0.3KiB")
                .unwrap_err()
                .contains("no whole number of bytes")
        );
        assert!(
            size("99999999999999999999")
                .unwrap_err()
                .contains("too large")
        );
    }

    #[test]
    fn times() {
        assert_eq!(nanos("200us"), Ok(200_000));
        assert_eq!(nanos("200µs"), Ok(200_000));
        assert_eq!(nanos("1.5s"), Ok(1_500_000_000));
        assert_eq!(nanos("5min"), Ok(300_000_000_000));
        assert_eq!(nanos("1h"), Ok(3_600_000_000_000));
        assert!(
            nanos("30")
                .unwrap_err()
                .contains("did you mean \"30s\" (seconds)")
        );
        assert!(nanos("5m").unwrap_err().contains("did you mean \"5min\"?"));
        assert!(
            nanos("soon")
                .unwrap_err()
                .contains("`soon` is not a time span")
        );
        assert!(
            nanos("0.5ns")
                .unwrap_err()
                .contains("no whole number of nanoseconds")
        );
    }

    #[test]
    fn display_is_short() {
        assert_eq!(Size::GIB.times(8).to_string(), "8GiB");
        assert_eq!(Size::from_bytes(1_000_000_000_000).to_string(), "1TB");
        assert_eq!(Size::from_bytes(1001).to_string(), "1001B");
        assert_eq!(Size::from_bytes(0).to_string(), "0B");
        assert_eq!(TimeSpan::from(Duration::from_secs(30)).to_string(), "30s");
        assert_eq!(
            TimeSpan::from(Duration::from_micros(200)).to_string(),
            "200us"
        );
    }

    proptest! {
        #[test]
        fn a_size_survives_printing(bytes: u64) {
            prop_assert_eq!(size(&Size(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn a_round_size_survives_printing(count in 0_u64..1 << 20, shift in 0_u32..44) {
            let bytes = count << shift;
            prop_assert_eq!(size(&Size(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn a_time_survives_printing(count: u64) {
            let span = TimeSpan(Duration::from_nanos(count));
            prop_assert_eq!(span.to_string().parse::<TimeSpan>(), Ok(span));
        }

        #[test]
        fn any_text_is_taken_without_panic(text: String) {
            let _ = size(&text);
            let _ = nanos(&text);
        }
    }
}
