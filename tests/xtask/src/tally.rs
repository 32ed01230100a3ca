//! Owns the count of results, and reading it from what test programs print.

use std::fmt;
use std::ops::AddAssign;

/// How many tests went how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u32,
    /// Failed.
    pub failed: u32,
    /// Not run, for a reason that was printed.
    pub skipped: u32,
}

impl Tally {
    /// One test that passed or failed.
    pub fn one(passed: bool) -> Tally {
        Tally {
            passed: passed.into(),
            failed: (!passed).into(),
            skipped: 0,
        }
    }

    /// Reads a summary line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...` of cargo's tests or
    /// `guest result: 3 passed, 0 failed, 1 skipped`.
    pub fn parse(line: &str) -> Option<Tally> {
        let counts = line
            .strip_prefix("test result: ")
            .or(line.strip_prefix("guest result: "))?;
        let words: Vec<&str> = counts
            .split([' ', ';', ',', '.'])
            .filter(|w| !w.is_empty())
            .collect();
        let count = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at.checked_sub(1)?)?.parse().ok()
        };
        Some(Tally {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored").or(count("skipped")).unwrap_or(0),
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(out, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_read() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out";
        assert_eq!(
            Tally::parse(line),
            Some(Tally {
                passed: 12,
                failed: 3,
                skipped: 1
            })
        );
        let line = "guest result: 40 passed, 0 failed, 2 skipped";
        assert_eq!(
            Tally::parse(line),
            Some(Tally {
                passed: 40,
                failed: 0,
                skipped: 2
            })
        );
        assert_eq!(Tally::parse("test a::b ... ok"), None);
    }

    #[test]
    fn skipped_is_named_only_where_there_is_one() {
        let mut tally = Tally {
            passed: 2,
            failed: 0,
            skipped: 0,
        };
        assert_eq!(tally.to_string(), "2 passed, 0 failed");
        tally += Tally {
            skipped: 3,
            ..Tally::one(false)
        };
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 3 skipped");
    }
}
