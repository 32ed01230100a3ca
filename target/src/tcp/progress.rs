//! How fast something moves that a host has to take or to send: looked at now and then, counted in
//! bytes.

use std::{cell::Cell, time::Duration};

use corebay_core::units::Time;

use crate::limits::RATE_MIN_BYTES_PER_SECOND;

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// When bytes were last seen to have moved, and how many had by then.
    seen: Cell<(Time, u64)>,
    /// The beginning of the time over which the rate is measured, and the bytes before it.
    measured: Cell<(Time, u64)>,
}

/// What a look shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Motion {
    /// Bytes that moved since the last look.
    pub moved: u64,
    /// For how long none has moved though some were to.
    pub still_for: Duration,
    /// Less has moved than [`RATE_MIN_BYTES_PER_SECOND`] over the whole time that was allowed.
    pub too_slow: bool,
}

impl Progress {
    /// `total` bytes have moved so far; `since` when there has always been more to move, where there
    /// is.
    pub fn look(&self, since: Option<Time>, total: u64, now: Time, allowed: Duration) -> Motion {
        let (seen_at, seen) = self.seen.get();
        let moved = total - seen;
        let Some(since) = since else {
            self.seen.set((now, total));
            self.measured.set((now, total));
            return Motion {
                moved,
                still_for: Duration::ZERO,
                too_slow: false,
            };
        };
        let moved_at = if moved > 0 { now } else { seen_at.max(since) };
        self.seen.set((moved_at, total));
        let (from, before) = self.measured.get();
        if total - before >= least(allowed) {
            self.measured.set((now, total));
        } else if since > from {
            // All was moved in between, and this is something new.
            self.measured.set((since, total));
        }
        Motion {
            moved,
            still_for: now.since(moved_at),
            too_slow: now.since(self.measured.get().0) > allowed,
        }
    }
}

/// The bytes that are to move within `time`.
fn least(time: Duration) -> u64 {
    let bytes = u128::from(RATE_MIN_BYTES_PER_SECOND) * time.as_millis() / 1000;
    u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Time {
        Time(1).plus(Duration::from_millis(millis))
    }

    /// Looks every 50 ms for a minute while `rate` bytes a second move; the second it was too slow.
    fn cut_off_at(rate: u64) -> Option<u64> {
        let progress = Progress::default();
        (0..60_000).step_by(50).find_map(|millis| {
            let total = millis * rate / 1000;
            let motion = progress.look(Some(at(0)), total, at(millis), ALLOWED);
            motion.too_slow.then_some(millis / 1000)
        })
    }

    #[test]
    fn slow_is_less_than_the_least_rate() {
        assert_eq!(cut_off_at(0), Some(10));
        assert_eq!(cut_off_at(1), Some(10));
        assert_eq!(cut_off_at(RATE_MIN_BYTES_PER_SECOND / 2), Some(10));
        assert_eq!(cut_off_at(RATE_MIN_BYTES_PER_SECOND * 11 / 10), None);
        assert_eq!(cut_off_at(1 << 30), None);
    }

    #[test]
    fn what_begins_anew_has_all_its_time() {
        let progress = Progress::default();
        for round in 0..5 {
            let begin = round * 20_000;
            for millis in (begin..begin + 9_000).step_by(50) {
                let motion = progress.look(Some(at(begin)), round, at(millis), ALLOWED);
                assert!(!motion.too_slow);
            }
        }
        // Nothing to move is never slow.
        for millis in (100_000..200_000).step_by(50) {
            let motion = progress.look(None, 5, at(millis), ALLOWED);
            assert!(!motion.too_slow && motion.still_for.is_zero());
        }
    }

    #[test]
    fn stillness_is_counted_from_the_last_byte() {
        let progress = Progress::default();
        let look = |millis, total| progress.look(Some(at(0)), total, at(millis), ALLOWED);
        assert_eq!(look(50, 7).moved, 7);
        assert_eq!(look(100, 7).still_for, Duration::from_millis(50));
        assert_eq!(look(250, 7).still_for, Duration::from_millis(200));
        assert_eq!(look(300, 8).still_for, Duration::ZERO);
    }
}
