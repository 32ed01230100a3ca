//! Owns how fast a sweep goes beside the hosts: between a floor and a ceiling, by what hosts ask for.
//!
//! Invariants:
//! - The floor is always granted, and the ceiling never exceeded, over any stretch of time.
//! - While hosts ask for much the rate falls by a quarter in each interval, down to the floor; while
//!   they ask for little it stays, while they ask for nothing it rises as fast, and once they have been
//!   quiet for some time it is the ceiling at once.

use std::time::Duration;

use corebay_core::units::Time;

use crate::shared::Shared;

/// How often the rate is looked at.
const INTERVAL: Duration = Duration::from_millis(25);

/// Requests of hosts within an interval that make a sweep slower.
const MUCH: u64 = 8;

/// Intervals without any request after which the ceiling counts.
const QUIET: u32 = 4;

/// A rate beyond any device's: no limit.
const UNLIMITED: u64 = 1 << 40;

/// How fast a sweep goes, in MiB of each member per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// While hosts are busy.
    pub floor_mib_s: u32,
    /// While they are not; 0 is as fast as it gets.
    pub ceiling_mib_s: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            floor_mib_s: 20,
            ceiling_mib_s: 0,
        }
    }
}

impl Pace {
    fn floor(&self) -> u64 {
        u64::from(self.floor_mib_s.max(1)) << 20
    }

    fn ceiling(&self) -> u64 {
        match self.ceiling_mib_s {
            0 => UNLIMITED,
            mib => (u64::from(mib) << 20).max(self.floor()),
        }
    }
}

/// A sweep's rate, and when its next stripe may begin.
pub(crate) struct Meter {
    pace: Pace,
    /// Bytes of each member per second.
    rate: u64,
    activity: u64,
    looked: Time,
    /// Bytes since then.
    done: u64,
    quiet: u32,
    next: Time,
}

impl Meter {
    pub(crate) fn new(pace: Pace, shared: &Shared, now: Time) -> Self {
        Self {
            pace,
            rate: pace.ceiling(),
            activity: shared.activity.sum(),
            looked: now,
            done: 0,
            quiet: QUIET,
            next: now,
        }
    }

    /// True while hosts ask for something.
    pub(crate) fn is_busy(&self) -> bool {
        self.quiet < QUIET
    }

    /// How long the next stripe has to wait. It counts from now on.
    pub(crate) fn pause(&mut self, shared: &Shared, now: Time) -> Duration {
        if now.since(self.looked) >= INTERVAL {
            let activity = shared.activity.sum();
            let asked = activity - std::mem::replace(&mut self.activity, activity);
            self.adapt(asked, now.since(self.looked));
            (self.looked, self.done) = (now, 0);
        }
        let bytes = u64::from(shared.geometry.strip_bytes());
        self.done += bytes;
        let begin = self.next.max(now);
        let takes = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        self.next = begin.plus(Duration::from_nanos(
            u64::try_from(takes).unwrap_or(u64::MAX),
        ));
        begin.since(now)
    }

    fn adapt(&mut self, asked: u64, interval: Duration) {
        let (floor, ceiling) = (self.pace.floor(), self.pace.ceiling());
        if asked >= MUCH {
            self.quiet = 0;
            // A rate that is not reached would fall for long without any effect.
            let nanos = interval.as_nanos().max(1);
            let reached = u128::from(self.done) * 1_000_000_000 / nanos;
            let reached = u64::try_from(reached).unwrap_or(u64::MAX);
            self.rate = (self.rate.min(reached) / 4 * 3).max(floor);
        } else if asked > 0 {
            self.quiet = 0;
        } else {
            self.quiet = QUIET.min(self.quiet + 1);
            self.rate = match self.quiet {
                QUIET => ceiling,
                _ => (self.rate / 3 * 4).clamp(floor, ceiling),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(floor_mib_s: u32, ceiling_mib_s: u32) -> Meter {
        let pace = Pace {
            floor_mib_s,
            ceiling_mib_s,
        };
        Meter {
            pace,
            rate: pace.ceiling(),
            activity: 0,
            looked: Time(0),
            done: 0,
            quiet: QUIET,
            next: Time(0),
        }
    }

    #[test]
    fn busy_hosts_slow_it_to_the_floor_and_quiet_ones_let_it_go() {
        let mut meter = meter(10, 1000);
        let mut fell = Vec::new();
        for _ in 0..20 {
            meter.done = meter.rate / 40;
            meter.adapt(1000, INTERVAL);
            fell.push(meter.rate >> 20);
        }
        assert!(
            meter.is_busy() && fell.is_sorted_by(|a, b| a >= b),
            "{fell:?}"
        );
        assert_eq!(fell[19], 10);
        assert!(fell[3] > 100, "not at once: {fell:?}");
        meter.adapt(3, INTERVAL);
        assert_eq!(meter.rate >> 20, 10, "little is asked for: it stays");
        for _ in 0..QUIET {
            assert!(meter.rate >> 20 < 1000);
            meter.adapt(0, INTERVAL);
        }
        assert_eq!((meter.rate >> 20, meter.is_busy()), (1000, false));
    }

    #[test]
    fn without_a_ceiling_it_falls_from_what_it_reached() {
        let mut meter = meter(10, 0);
        assert_eq!(meter.rate, UNLIMITED);
        meter.done = 100 << 20;
        meter.adapt(100, Duration::from_secs(1));
        assert_eq!(meter.rate >> 20, 75);
    }

    #[test]
    fn a_floor_above_the_ceiling_counts() {
        let meter = meter(50, 20);
        assert_eq!(meter.rate >> 20, 50);
    }
}
