//! What happened to each block and when, and whether what was read can have been there.
//!
//! The obvious slow model: a read may return what a write has put there, if that write had begun
//! before the read ended, and no other write lies wholly between the two.

use corebay_core::units::Time;

use crate::pattern::ZEROES;

/// Something that happened to one block, from just before it began until just after it had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was begun.
    pub begin: Time,
    /// When its end was seen.
    pub end: Time,
    /// The write's tag, or the one that was read.
    pub tag: u64,
}

/// The events of a range of blocks, on one core or (merged) on several with one clock.
#[derive(Clone, Debug)]
pub struct History {
    first: u64,
    writes: Vec<Vec<Event>>,
    reads: Vec<Vec<Event>>,
}

impl History {
    /// No events yet, for `count` blocks from `first` on, which are zeroes.
    #[must_use]
    pub fn new(first: u64, count: usize) -> Self {
        let never = Event {
            begin: Time(0),
            end: Time(0),
            tag: ZEROES,
        };
        Self {
            first,
            writes: vec![vec![never]; count],
            reads: vec![Vec::new(); count],
        }
    }

    /// A write to block `lba`.
    pub fn wrote(&mut self, lba: u64, event: Event) {
        self.writes[usize::try_from(lba - self.first).expect("in range")].push(event);
    }

    /// A read of block `lba`.
    pub fn read(&mut self, lba: u64, event: Event) {
        self.reads[usize::try_from(lba - self.first).expect("in range")].push(event);
    }

    /// Adds another core's events.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.writes.iter_mut().zip(&other.writes) {
            mine.extend(theirs.iter().skip(1));
        }
        for (mine, theirs) in self.reads.iter_mut().zip(&other.reads) {
            mine.extend(theirs);
        }
    }

    /// Holds every read against the writes.
    ///
    /// # Errors
    /// Says which read cannot be.
    pub fn check(&self) -> Result<(), String> {
        for (at, reads) in self.reads.iter().enumerate() {
            let writes = &self.writes[at];
            for read in reads {
                if !can_be(read, writes) {
                    let lba = self.first + at as u64;
                    return Err(format!("block {lba}: {read:?} cannot be after {writes:#?}"));
                }
            }
        }
        Ok(())
    }
}

fn can_be(read: &Event, writes: &[Event]) -> bool {
    writes
        .iter()
        .filter(|write| write.tag == read.tag && write.begin <= read.end)
        .any(|write| {
            let overwritten = |other: &Event| other.begin > write.end && other.end < read.begin;
            !writes.iter().any(overwritten)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begin: u64, end: u64, tag: u64) -> Event {
        Event {
            begin: Time(begin),
            end: Time(end),
            tag,
        }
    }

    #[test]
    fn stale_early_and_concurrent_reads() {
        let mut history = History::new(5, 1);
        history.wrote(5, event(10, 20, 1));
        history.wrote(5, event(30, 40, 2));
        let check = |read| {
            let mut history = history.clone();
            history.read(5, read);
            history.check().is_ok()
        };
        assert!(check(event(5, 15, 0)) && check(event(5, 15, 1)));
        assert!(check(event(35, 36, 1)) && check(event(35, 36, 2)));
        assert!(!check(event(41, 42, 1)), "stale");
        assert!(!check(event(21, 22, 0)), "stale zeroes");
        assert!(!check(event(1, 9, 1)), "from the future");
    }
}
